//! A simple initiator and a simple target round the engine, bytes between them: what a rule of the protocol forbids fails an
//! assertion on the other side.

use std::collections::{BTreeMap, VecDeque};

use super::*;

/// What stands at `offset` of the data of a task.
fn pattern(itt: u32, offset: usize) -> u8 {
    (itt as usize * 31 + offset * 7 + (offset >> 8)) as u8
}

/// A sequence of Data-Out that the initiator owes.
#[derive(Clone, Debug)]
struct Owed {
    ttt: u32,
    offset: u32,
    end: u32,
    data_sn: u32,
}

/// A task as its initiator sees it.
#[derive(Debug)]
struct Task {
    link: usize,
    write: bool,
    expected_len: u32,
    wanted: u32,
    got: Vec<u8>,
    next_sn: u32,
    next_r2t: u32,
    owed: VecDeque<Owed>,
}

/// A connection.
struct Link {
    conn: ConnId,
    decoder: Decoder,
    to_target: VecDeque<u8>,
    to_initiator: VecDeque<(Header, Vec<u8>)>,
    stat_sn: u32,
    /// Where data that arrives at the target goes.
    place: Option<(TaskId, u32)>,
}

/// Both sides and what lies between them.
pub(super) struct World {
    random: Random,
    pub params: Params,
    session: Session,
    links: Vec<Link>,
    // The initiator.
    tasks: BTreeMap<u32, Task>,
    next_itt: u32,
    cmd_sn: u32,
    max_cmd_sn: u32,
    pub completed: usize,
    // The target.
    buffers: Vec<Vec<u8>>,
    active: Vec<TaskId>,
    delivered: u32,
}

impl World {
    pub(super) fn new(seed: u64, params: Params, connections: usize) -> World {
        let mut login = established(params);
        // Numbers that wrap are where arithmetic goes wrong.
        login.cmd_sn = u32::MAX - 20;
        login.stat_sn = u32::MAX - 5;
        let limits = SessionLimits { window: 6, immediate: 2, connections: 4 };
        let (mut session, first) = Session::new(&login, limits, KEEPALIVE, 0);
        let mut conns = vec![first];
        for cid in 1..connections {
            login.cid = cid as u16;
            conns.push(session.add_connection(&login, 0).unwrap());
        }
        let limits = Limits { data: params.target_max_data, ahs: AHS_MAX as u16 };
        let link = |conn| {
            let mut decoder = Decoder::new();
            decoder.set_full_feature(params.header_digest, params.data_digest, limits);
            let (to_target, to_initiator) = (VecDeque::new(), VecDeque::new());
            Link { conn, decoder, to_target, to_initiator, stat_sn: login.stat_sn, place: None }
        };
        World {
            random: Random(seed),
            params,
            max_cmd_sn: session.max_cmd_sn(),
            links: conns.into_iter().map(link).collect(),
            session,
            tasks: BTreeMap::new(),
            next_itt: u32::MAX - 9,
            cmd_sn: login.cmd_sn,
            completed: 0,
            buffers: vec![vec![0xee; 20_000]; 8],
            active: Vec::new(),
            delivered: login.cmd_sn,
        }
    }

    fn framing(&self) -> Framing {
        Framing { header_digest: self.params.header_digest, data_digest: self.params.data_digest }
    }

    fn transmit(&mut self, link: usize, header: &Header, data: &[u8]) {
        let mut bytes = Vec::new();
        super::decode::put_pdu(&mut bytes, self.framing(), header, &[], data);
        self.links[link].to_target.extend(bytes);
    }

    /// Runs until `count` tasks are complete.
    pub(super) fn run(&mut self, count: usize) {
        let mut issued = 0;
        for _ in 0..200_000 {
            if self.completed == count {
                assert!(self.tasks.is_empty() && self.active.is_empty());
                return;
            }
            let link = self.random.below(self.links.len());
            match self.random.below(6) {
                0 if issued < count && self.cmd_sn.wrapping_sub(self.max_cmd_sn.wrapping_add(1)) as i32 != 0 => {
                    self.issue(link);
                    issued += 1;
                }
                1 => self.send_owed(),
                2 | 3 => self.deliver(link),
                4 => self.serve(),
                _ => self.receive(link),
            }
        }
        panic!("stuck with {:?}", self.tasks);
    }

    fn issue(&mut self, link: usize) {
        let sizes = [0, 1, 511, 512, 513, 1024, 4096, 4099, 9000, 16384];
        let expected_len = self.random.one_of(&sizes) as u32;
        let wanted = if self.random.below(3) == 0 { self.random.one_of(&sizes) as u32 } else { expected_len };
        let write = self.random.flip();
        let itt = self.next_itt;
        self.next_itt = if itt == NO_TAG - 1 { 1 } else { itt + 1 };
        let mut pdu = command(itt, self.cmd_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        pdu.expected_len.set(expected_len);
        pdu.cdb[0] = if write { 1 } else { 2 };
        pdu.cdb[4..8].copy_from_slice(&wanted.to_be_bytes());
        pdu.flags |= if write { FLAG_WRITE } else { FLAG_READ };
        let mut task =
            Task { link, write, expected_len, wanted, got: Vec::new(), next_sn: 0, next_r2t: 0, owed: VecDeque::new() };
        let mut data = Vec::new();
        if write {
            let limit = self.params.first_burst.min(expected_len);
            let immediate = match self.params.immediate_data {
                true => (self.random.below(limit as usize + 1) as u32).min(self.params.target_max_data),
                false => 0,
            };
            data = (0..immediate as usize).map(|i| pattern(itt, i)).collect();
            task.next_r2t = immediate;
            if !self.params.initial_r2t && immediate < limit && self.random.flip() {
                pdu.flags &= !FLAG_FINAL;
                let end = immediate + 1 + self.random.below((limit - immediate) as usize) as u32;
                task.owed.push_back(Owed { ttt: NO_TAG, offset: immediate, end, data_sn: 0 });
                task.next_r2t = end;
            }
        }
        self.tasks.insert(itt, task);
        self.transmit(link, &pdu.to_bytes(), &data);
    }

    /// Sends one Data-Out that is owed.
    fn send_owed(&mut self) {
        let owing: Vec<u32> =
            self.tasks.iter().filter(|(_, task)| !task.owed.is_empty()).map(|(itt, _)| *itt).collect();
        let Some(&itt) = owing.get(self.random.below(owing.len().max(1))) else { return };
        let task = self.tasks.get_mut(&itt).unwrap();
        let link = task.link;
        let owed = task.owed.front_mut().unwrap();
        let left = owed.end - owed.offset;
        let len = (1 + self.random.below(left as usize) as u32).min(self.params.target_max_data);
        let mut pdu = DataOut::new_zeroed();
        pdu.opcode = Opcode::DATA_OUT.0;
        pdu.itt.set(itt);
        pdu.ttt.set(owed.ttt);
        pdu.data_sn.set(owed.data_sn);
        pdu.buffer_offset.set(owed.offset);
        let data: Vec<u8> = (owed.offset..owed.offset + len).map(|i| pattern(itt, i as usize)).collect();
        owed.offset += len;
        owed.data_sn += 1;
        if len == left {
            pdu.flags = FLAG_FINAL;
            task.owed.pop_front();
        }
        self.transmit(link, &pdu.to_bytes(), &data);
    }

    /// Lets some bytes arrive at the target.
    fn deliver(&mut self, link: usize) {
        let n = 1 + self.random.below(3000);
        let take = n.min(self.links[link].to_target.len());
        let bytes: Vec<u8> = self.links[link].to_target.drain(..take).collect();
        let mut input = &bytes[..];
        while let Some(event) = self.links[link].decoder.next(&mut input).unwrap() {
            let link = &mut self.links[link];
            match event {
                Event::Request(request) => {
                    let verdict = self.session.request(link.conn, &request, link.decoder.ahs(), 1);
                    link.place = match verdict {
                        Verdict::Accept(task) => Some((task, 0)),
                        Verdict::Place { task, offset } => Some((task, offset)),
                        other => panic!("{other:?} for {request:?}"),
                    };
                    if Bhs::read(&request.header()).data_len.get() == 0 {
                        assert_eq!(self.session.data_end(link.conn, true), Received::Nothing);
                    }
                }
                Event::Data(data) => {
                    let (task, offset) = link.place.as_mut().unwrap();
                    let at = *offset as usize;
                    self.buffers[task.slot()][at..at + data.len()].copy_from_slice(data);
                    *offset += data.len() as u32;
                }
                Event::DataEnd { digest_ok } => {
                    assert!(digest_ok);
                    let received = self.session.data_end(link.conn, true);
                    assert!(matches!(received, Received::Command | Received::Write(..)), "{received:?}");
                }
            }
        }
        self.take_ready();
    }

    fn take_ready(&mut self) {
        while let Some(ready) = self.session.next_ready() {
            let Ready::Scsi(task) = ready else { panic!("{ready:?}") };
            let (command, _) = self.session.command(task).unwrap();
            assert_eq!(command.cmd_sn.get(), self.delivered, "out of order");
            self.delivered = self.delivered.wrapping_add(1);
            self.active.push(task);
        }
    }

    fn link_of(&self, task: TaskId) -> usize {
        let conn = self.session.connection_of(task).unwrap();
        self.links.iter().position(|link| link.conn == conn).unwrap()
    }

    /// The target works at one task.
    fn serve(&mut self) {
        if self.active.is_empty() {
            return;
        }
        let at = self.random.below(self.active.len());
        let task = self.active[at];
        let link = self.link_of(task);
        let (command, _) = self.session.command(task).unwrap();
        let wanted = u32::from_be_bytes(command.cdb[4..8].try_into().unwrap());
        let (itt, expected_len) = (command.itt.get(), command.expected_len.get());
        let residual = Residual::of(expected_len, wanted.into());
        if command.writes() {
            match self.session.data_wanted(task, wanted) {
                WriteProgress::Arriving => {}
                WriteProgress::Ask => {
                    let len_max = self.random.one_of(&[300, 4096, 20_000]);
                    let (header, ..) = self.session.next_r2t(task, len_max).unwrap();
                    self.links[link].to_initiator.push_back((header, Vec::new()));
                }
                WriteProgress::Complete => {
                    let len = wanted.min(expected_len) as usize;
                    let buffer = &self.buffers[task.slot()][..len];
                    assert!(buffer.iter().enumerate().all(|(i, byte)| *byte == pattern(itt, i)), "task {itt}");
                    self.buffers[task.slot()].fill(0xee);
                    let header = self.session.respond(task, 0, 0, residual, Residual::None).unwrap();
                    self.links[link].to_initiator.push_back((header, Vec::new()));
                    self.active.remove(at);
                }
                WriteProgress::Failed(fault) => panic!("{fault:?}"),
            }
            return;
        }
        let total = wanted.min(expected_len);
        let good = self.random.flip();
        let mut ended = false;
        while let Some(pdu) = self.session.next_data_in(task, total, good.then_some(residual)) {
            let data = (pdu.offset..pdu.offset + pdu.len).map(|i| pattern(itt, i as usize)).collect();
            self.links[link].to_initiator.push_back((pdu.header, data));
            ended |= pdu.ended;
        }
        if !ended {
            let sense_len = if good { 0 } else { 18 };
            let header =
                self.session.respond(task, if good { 0 } else { 2 }, sense_len, residual, Residual::None).unwrap();
            self.links[link].to_initiator.push_back((header, vec![0; if good { 0 } else { 20 }]));
        }
        self.active.remove(at);
    }

    fn check_stat_sn(&mut self, link: usize, stat_sn: u32, taken: bool) {
        let link = &mut self.links[link];
        assert_eq!(stat_sn, link.stat_sn);
        link.stat_sn = stat_sn.wrapping_add(u32::from(taken));
    }

    fn check_window(&mut self, exp_cmd_sn: u32, max_cmd_sn: u32) {
        // Several connections are read in any order: an older maximum says nothing.
        if max_cmd_sn.wrapping_sub(self.max_cmd_sn) as i32 > 0 {
            self.max_cmd_sn = max_cmd_sn;
        }
        assert!(exp_cmd_sn.wrapping_sub(self.cmd_sn) as i32 <= 0, "a command that was not sent");
    }

    /// The initiator takes one PDU.
    fn receive(&mut self, link: usize) {
        let Some((header, data)) = self.links[link].to_initiator.pop_front() else { return };
        let bhs = Bhs::read(&header);
        assert_eq!(bhs.data_len.get() as usize, data.len());
        assert!(data.len() <= self.params.initiator_max_data as usize);
        let itt = bhs.itt.get();
        let task = self.tasks.get_mut(&itt).expect("a task of ours");
        assert_eq!(task.link, link, "the connection of the command");
        match bhs.kind() {
            Opcode::R2T => {
                let pdu = R2t::read(&header);
                assert!(task.write);
                assert_eq!(pdu.r2t_sn.get(), task.next_sn);
                task.next_sn += 1;
                let (offset, len) = (pdu.buffer_offset.get(), pdu.desired_len.get());
                assert!(len != 0 && len <= self.params.max_burst);
                // What has been sent unasked is not asked for.
                assert_eq!(offset, task.next_r2t);
                assert!(offset + len <= task.expected_len.min(task.wanted));
                task.next_r2t = offset + len;
                task.owed.push_back(Owed { ttt: pdu.ttt.get(), offset, end: offset + len, data_sn: 0 });
                assert!(task.owed.len() <= usize::from(self.params.max_outstanding_r2t));
                self.check_stat_sn(link, pdu.stat_sn.get(), false);
                self.check_window(pdu.exp_cmd_sn.get(), pdu.max_cmd_sn.get());
            }
            Opcode::DATA_IN => {
                let pdu = DataIn::read(&header);
                assert!(!task.write && !data.is_empty());
                assert_eq!((pdu.data_sn.get(), pdu.buffer_offset.get()), (task.next_sn, task.got.len() as u32));
                task.next_sn += 1;
                assert!(data.iter().enumerate().all(|(i, byte)| *byte == pattern(itt, task.got.len() + i)));
                task.got.extend(&data);
                let total = task.wanted.min(task.expected_len);
                let at_end = task.got.len() as u32 == total;
                let burst_full = (task.got.len() as u32).is_multiple_of(self.params.max_burst);
                assert_eq!(pdu.flags & FLAG_FINAL != 0, at_end || burst_full);
                let status = pdu.flags & FLAG_STATUS != 0;
                if status {
                    assert!(at_end);
                    let residual = (pdu.flags & (FLAG_OVERFLOW | FLAG_UNDERFLOW), pdu.residual.get());
                    self.end(itt, 0, residual);
                    self.check_stat_sn(link, pdu.stat_sn.get(), true);
                }
                self.check_window(pdu.exp_cmd_sn.get(), pdu.max_cmd_sn.get());
            }
            Opcode::SCSI_RESPONSE => {
                let pdu = ScsiResponse::read(&header);
                assert_eq!(pdu.exp_data_sn.get(), task.next_sn);
                assert!(task.owed.is_empty());
                if !task.write {
                    assert_eq!(task.got.len() as u32, task.wanted.min(task.expected_len));
                }
                let residual = (pdu.flags & (FLAG_OVERFLOW | FLAG_UNDERFLOW), pdu.residual.get());
                self.end(itt, pdu.status, residual);
                self.check_stat_sn(link, pdu.stat_sn.get(), true);
                self.check_window(pdu.exp_cmd_sn.get(), pdu.max_cmd_sn.get());
            }
            other => panic!("{other:?}"),
        }
    }

    fn end(&mut self, itt: u32, status: u8, residual: (u8, u32)) {
        let task = self.tasks.remove(&itt).unwrap();
        assert!(status == 0 || !task.write);
        let (expected, wanted) = (task.expected_len, task.wanted);
        let right = match wanted.cmp(&expected) {
            std::cmp::Ordering::Equal => (0, 0),
            std::cmp::Ordering::Less => (FLAG_UNDERFLOW, expected - wanted),
            std::cmp::Ordering::Greater => (FLAG_OVERFLOW, wanted - expected),
        };
        assert_eq!(residual, right);
        self.completed += 1;
    }
}

//! The iSCSI door over loopback, driven by an initiator that allocates nothing either: reads, and writes whose data comes with the command, by
//! R2T, or in part by each.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reactor::bdev::BlockDevice;
use reactor::iscsi::door::{Door, Lun, Options, Target, TargetPortal};
use reactor::iscsi::{
    BHS_LEN, DataDigest, DataOut, FLAG_FINAL, FLAG_READ, FLAG_STATUS, FLAG_WRITE, Framing, Header, LoginRequest,
    LoginResponse, NO_TAG, NopIn, NopOut, Offer, Opcode, PREFIX_MAX, R2t, SUFFIX_MAX, ScsiCommand, ScsiResponse, U24,
};
use reactor::reactor::Idle;
use reactor::reactor::start::Reactors;
use zerocopy::FromZeros;

use super::{MIB, Progress, arena, cores, watch};

const IQN: &str = "iqn.2026-11.io.reactor:vol0";

/// What is asked again and again: the opcode, bytes, and how many of them come with the command.
const COMMANDS: [(u8, usize, usize); 8] = [
    (0x88, 4096, 0),
    (0x88, 65_536, 0),
    (0x8a, 4096, 4096),
    (0x8a, 65_536, 0),
    (0x8a, 65_536, 8192),
    (0x8a, 65_536, 65_536),
    (0x88, 262_144, 0),
    (0x8a, 262_144, 65_536),
];

/// One session of one connection.
struct Lane {
    socket: TcpStream,
    framing: Framing,
    input: Vec<u8>,
    output: Vec<u8>,
    data: Vec<u8>,
    cmd_sn: u32,
    exp_stat_sn: u32,
}

impl Lane {
    fn log_in(address: SocketAddr, framing: Framing) -> Lane {
        let digest = |used: bool| if used { "CRC32C" } else { "None" };
        let text = [
            "InitiatorName=iqn.2026-11.io.host:lane".to_owned(),
            format!("TargetName={IQN}"),
            "SessionType=Normal".to_owned(),
            format!("HeaderDigest={}", digest(framing.header_digest)),
            format!("DataDigest={}", digest(framing.data_digest)),
            "InitialR2T=Yes".to_owned(),
            "ImmediateData=Yes".to_owned(),
            "MaxRecvDataSegmentLength=65536".to_owned(),
            "MaxBurstLength=1048576".to_owned(),
            "FirstBurstLength=65536".to_owned(),
            "MaxOutstandingR2T=2".to_owned(),
        ];
        let text = text.join("\0") + "\0";
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        let (input, output, data) = (vec![0; MIB], Vec::with_capacity(2 * MIB), vec![0x5a; MIB]);
        let plain = Framing::default();
        let mut lane = Lane { socket, framing: plain, input, output, data, cmd_sn: 1, exp_stat_sn: 0 };
        let mut request = LoginRequest::new_zeroed();
        (request.opcode, request.flags) = (Opcode::LOGIN_REQUEST.0 | 0x40, 0x87);
        request.data_len = U24::new(text.len() as u32);
        request.isid = [0x80, 0, 0, 0, 0, 1];
        request.cmd_sn.set(1);
        lane.push(&request.to_bytes(), text.as_bytes());
        lane.flush();
        let (header, _) = lane.receive();
        let response = LoginResponse::read(&header);
        assert_eq!((response.status_class, response.status_detail, response.flags), (0, 0, 0x87), "the login");
        lane.exp_stat_sn = response.stat_sn.get().wrapping_add(1);
        lane.framing = framing;
        lane
    }

    fn push(&mut self, header: &Header, data: &[u8]) {
        let (mut prefix, mut suffix) = ([0; PREFIX_MAX], [0; SUFFIX_MAX]);
        let len = self.framing.prefix(header, &mut prefix);
        self.output.extend_from_slice(&prefix[..len]);
        self.output.extend_from_slice(data);
        if !data.is_empty() {
            let mut digest = DataDigest::new();
            digest.update(data);
            let len = self.framing.suffix(data.len() as u32, digest, &mut suffix);
            self.output.extend_from_slice(&suffix[..len]);
        }
    }

    /// A header with as many bytes of the data as it says.
    fn push_data(&mut self, header: &Header, len: usize) {
        let data = std::mem::take(&mut self.data);
        self.push(header, &data[..len]);
        self.data = data;
    }

    fn flush(&mut self) {
        self.socket.write_all(&self.output).unwrap();
        self.output.clear();
    }

    /// The next header, and how much data it had.
    fn receive(&mut self) -> (Header, usize) {
        let mut header = [0; BHS_LEN];
        self.socket.read_exact(&mut header).unwrap();
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut rest = len.next_multiple_of(4);
        rest += if self.framing.header_digest { 4 } else { 0 };
        rest += if self.framing.data_digest && len > 0 { 4 } else { 0 };
        self.socket.read_exact(&mut self.input[..rest]).unwrap();
        (header, len)
    }

    fn command(&mut self, itt: u32, cdb: [u8; 16], len: usize, immediate: usize) {
        let mut command = ScsiCommand::new_zeroed();
        let direction = if cdb[0] == 0x8a { FLAG_WRITE } else { FLAG_READ };
        command.opcode = Opcode::SCSI_COMMAND.0;
        command.flags = FLAG_FINAL | 1 | if len > 0 { direction } else { 0 };
        command.data_len = U24::new(immediate as u32);
        command.itt.set(itt);
        command.expected_len.set(len as u32);
        command.cmd_sn.set(self.cmd_sn);
        command.exp_stat_sn.set(self.exp_stat_sn);
        command.cdb = cdb;
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.push_data(&command.to_bytes(), immediate);
    }

    /// Answers the target until so many commands have ended. Returns how many of them with GOOD.
    fn finish(&mut self, commands: usize) -> u64 {
        let (mut left, mut good) = (commands, 0);
        while left > 0 {
            let (header, _) = self.receive();
            match Opcode(header[0]) {
                Opcode::DATA_IN if header[1] & FLAG_STATUS == 0 => {}
                Opcode::DATA_IN | Opcode::SCSI_RESPONSE => {
                    // Status and StatSN are in the same place.
                    let response = ScsiResponse::read(&header);
                    self.exp_stat_sn = response.stat_sn.get().wrapping_add(1);
                    good += u64::from(response.status == 0);
                    left -= 1;
                }
                Opcode::R2T => {
                    let r2t = R2t::read(&header);
                    let mut data = DataOut::new_zeroed();
                    (data.opcode, data.flags) = (Opcode::DATA_OUT.0, FLAG_FINAL);
                    data.data_len = U24::new(r2t.desired_len.get());
                    (data.lun, data.itt, data.ttt) = (r2t.lun, r2t.itt, r2t.ttt);
                    data.exp_stat_sn.set(self.exp_stat_sn);
                    data.buffer_offset = r2t.buffer_offset;
                    self.push_data(&data.to_bytes(), r2t.desired_len.get() as usize);
                    self.flush();
                }
                Opcode::NOP_IN => {
                    let ping = NopIn::read(&header);
                    let mut answer = NopOut::new_zeroed();
                    (answer.opcode, answer.flags, answer.ttt) = (0x40, FLAG_FINAL, ping.ttt);
                    answer.itt.set(NO_TAG);
                    answer.cmd_sn.set(self.cmd_sn);
                    answer.exp_stat_sn.set(self.exp_stat_sn);
                    self.push(&answer.to_bytes(), &[]);
                    self.flush();
                }
                opcode => panic!("{opcode:?}"),
            }
        }
        good
    }

    /// Takes the unit attention conditions of a new session.
    fn settle(&mut self) {
        for itt in 0..10 {
            self.command(itt, [0; 16], 0, 0);
            self.flush();
            if self.finish(1) == 1 {
                return;
            }
        }
        panic!("the unit is not ready");
    }

    /// Each of [`COMMANDS`], all at once.
    fn round(&mut self) {
        for (index, (opcode, len, immediate)) in COMMANDS.into_iter().enumerate() {
            let mut cdb = [0; 16];
            cdb[0] = opcode;
            cdb[2..10].copy_from_slice(&((index * MIB / 512) as u64).to_be_bytes());
            cdb[10..14].copy_from_slice(&((len / 512) as u32).to_be_bytes());
            self.command(index as u32, cdb, len, immediate);
        }
        self.flush();
        assert_eq!(self.finish(COMMANDS.len()), COMMANDS.len() as u64, "commands that ended with GOOD");
    }
}

/// Drives a device through the door on as many reactors.
pub fn over_loopback(name: &str, reactors: usize, device: Arc<dyn BlockDevice>, framing: Framing) {
    let reactors = Reactors::start(&cores(reactors), Idle::Adaptive, arena()).unwrap();
    let mut door = Door::open(reactors.remotes(), Options { secret: [7; 32], store: None }).unwrap();
    let listener = door.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = Target {
        iqn: IQN.to_owned(),
        alias: None,
        portals: vec![TargetPortal { listener, tpgt: 1, advertise: None }],
        redirect: None,
        initiators: None,
        chap: None,
        offer: Offer::default(),
        luns: vec![Lun { lun: 0, device, read_only: false }],
    };
    door.set_target(target).unwrap();
    let progress = Arc::new(Progress::default());
    let there = progress.clone();
    let lane = std::thread::spawn(move || {
        let mut lane = Lane::log_in(listener, framing);
        lane.settle();
        while !there.stop.load(Ordering::Relaxed) {
            lane.round();
            there.ios.fetch_add(COMMANDS.len() as u64, Ordering::Relaxed);
        }
    });
    watch(&format!("iSCSI, {name}, {} reactors, {framing:?}", reactors.remotes().len()), &progress);
    lane.join().unwrap();
    door.drain();
    for _ in 0..1000 {
        if door.connections() == 0 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert_eq!(door.connections(), 0, "connections stay");
    drop(door);
    assert_eq!(reactors.stop(), 0, "DMA buffers are still out");
}

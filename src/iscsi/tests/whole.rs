//! A connection from its first byte to its last, as bytes: login with CHAP and digests, a ping, a write, a read, discovery of the
//! own target, logout.

use super::decode::put_pdu;
use super::*;

/// The target's side of a connection: bytes in, bytes out.
struct Target {
    book: Book,
    registry: Registry,
    decoder: Decoder,
    login: Option<Login>,
    framing: Framing,
    session: Option<(Session, ConnId)>,
    exchange: TextExchange,
    request: Option<Request>,
    data: Vec<u8>,
    disk: Vec<u8>,
    out: Vec<u8>,
    closed: bool,
}

impl Target {
    fn new(book: Book) -> Target {
        Target {
            book,
            registry: Registry::new(4),
            decoder: Decoder::new(),
            login: Some(Login::new(1, &ENTROPY)),
            framing: Framing::default(),
            session: None,
            exchange: TextExchange::new(),
            request: None,
            data: Vec::new(),
            disk: vec![0; 4096],
            out: Vec::new(),
            closed: false,
        }
    }

    fn send(&mut self, header: &Header, data: &[u8]) {
        put_pdu(&mut self.out, self.framing, header, &[], data);
    }

    fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut input = bytes;
        // A copy of everything goes on as the original would.
        self.decoder = self.decoder.clone();
        self.session = self.session.clone();
        loop {
            match self.decoder.next(&mut input).unwrap() {
                None => return std::mem::take(&mut self.out),
                Some(Event::Request(request)) => {
                    self.request = Some(request);
                    self.data.clear();
                    if Bhs::read(&request.header()).data_len.get() == 0 {
                        self.whole(true);
                    }
                }
                Some(Event::Data(data)) => self.data.extend_from_slice(data),
                Some(Event::DataEnd { digest_ok }) => self.whole(digest_ok),
            }
        }
    }

    fn whole(&mut self, digest_ok: bool) {
        let request = self.request.take().unwrap();
        if let Request::Login(pdu) = &request {
            return self.log_in(pdu);
        }
        let (session, conn) = self.session.as_mut().unwrap();
        let verdict = session.request(*conn, &request, self.decoder.ahs(), 1);
        if let Verdict::Place { offset, .. } = verdict {
            self.disk[offset as usize..offset as usize + self.data.len()].copy_from_slice(&self.data);
        }
        assert!(matches!(verdict, Verdict::Accept(_) | Verdict::Place { .. }));
        let received = session.data_end(*conn, digest_ok);
        if let Received::Write(task, WriteProgress::Complete) = received {
            let header = session.respond(task, 0, 0, Residual::None, Residual::None).unwrap();
            self.send(&header, &[]);
        }
        while let Some(ready) = self.session.as_mut().unwrap().0.next_ready() {
            self.execute(ready);
        }
    }

    fn log_in(&mut self, pdu: &LoginRequest) {
        let login = self.login.as_mut().unwrap();
        let reply = match login.request(&self.book, pdu, &self.data) {
            Step::Reply(reply) => reply,
            Step::Refuse { reply, .. } => {
                self.closed = true;
                reply
            }
            Step::Admit(claim) => {
                let Admission::New { tsih, reinstates: None } = self.registry.admit(&claim) else { panic!() };
                let admitted = Admitted { tsih, joined: None, window: LIMITS.window };
                let (reply, established) = login.admitted(&admitted).unwrap();
                self.send(&reply.header, &reply.text);
                let params = established.params;
                let limits = Limits { data: params.target_max_data, ahs: AHS_MAX as u16 };
                self.decoder.set_full_feature(params.header_digest, params.data_digest, limits);
                self.framing = Framing { header_digest: params.header_digest, data_digest: params.data_digest };
                self.session = Some(Session::new(&established, LIMITS, KEEPALIVE, 0));
                self.login = None;
                return;
            }
        };
        self.send(&reply.header, &reply.text);
    }

    fn execute(&mut self, ready: Ready) {
        let (session, conn) = self.session.as_mut().unwrap();
        match ready {
            Ready::Nop(task) => {
                let (header, len) = session.nop_response(task).unwrap();
                let data = self.data[..len as usize].to_vec();
                self.send(&header, &data);
            }
            Ready::Text(task) => {
                let asker = Asker {
                    kind: SessionKind::Normal,
                    initiator: INITIATOR,
                    target: Some(TARGET),
                    listener: 1,
                    local: "127.0.0.1:3260",
                };
                let pdu = TextRequest::read(session.header(task).unwrap());
                let params = session.params_mut(*conn).unwrap();
                let reply = self.exchange.request(&self.book, &asker, params, &pdu, &self.data).unwrap();
                let header = session.text_response(task, &reply).unwrap();
                self.send(&header, &reply.text);
            }
            Ready::Scsi(task) => {
                let (command, _) = session.command(task).unwrap();
                let len = command.expected_len.get();
                if command.writes() {
                    assert_eq!(session.data_wanted(task, len), WriteProgress::Ask);
                    let (header, ..) = session.next_r2t(task, len).unwrap();
                    self.send(&header, &[]);
                    return;
                }
                let mut pdus = Vec::new();
                while let Some(pdu) = session.next_data_in(task, len, Some(Residual::None)) {
                    pdus.push(pdu);
                }
                for pdu in pdus {
                    let data = self.disk[pdu.offset as usize..(pdu.offset + pdu.len) as usize].to_vec();
                    self.send(&pdu.header, &data);
                }
            }
            Ready::Logout(task) => {
                assert_eq!(session.logout(task), Some(LogoutWork::CloseSession));
                let header = session.logout_response(task, LogoutOutcome::SUCCESS).unwrap();
                self.send(&header, &[]);
                self.closed = true;
            }
            Ready::Task(_) => panic!("nobody asked for that"),
        }
    }
}

/// Splits what a target has sent into headers and data; both digests must be good.
fn pdus(framing: Framing, mut bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let header: Header = bytes[..48].try_into().unwrap();
        let len = Bhs::read(&header).data_len.get();
        let whole = framing.wire_len(len) as usize;
        let mut again = Vec::new();
        let data_at = 48 + if framing.header_digest { 4 } else { 0 };
        let data = bytes[data_at..data_at + len as usize].to_vec();
        put_pdu(&mut again, framing, &header, &[], &data);
        assert_eq!(bytes[..whole], again[..], "digests and padding");
        found.push((header, data));
        bytes = &bytes[whole..];
    }
    found
}

#[test]
fn a_connection_from_begin_to_end() {
    let mut target = Target::new(book(TargetConfig { chap: Some(chap(false)), ..super::target(TARGET) }));
    let plain = Framing::default();
    let mut pdu = LoginRequest::new_zeroed();
    pdu.opcode = 0x43;
    pdu.cmd_sn.set(100);
    let mut say = |target: &mut Target, flags: u8, text: &[&str]| {
        pdu.flags = flags;
        let mut bytes = Vec::new();
        put_pdu(&mut bytes, plain, &pdu.to_bytes(), &[], &text_of(text));
        let answer = pdus(plain, &target.receive(&bytes)).remove(0);
        (answer.0[1], pairs_of(&answer.1))
    };
    let names = ["InitiatorName=iqn.1993-08.org.debian:01:abc", "TargetName=iqn.2026-11.io.reactor:vol0"];
    let first = [&names[..], &["AuthMethod=CHAP,None"]].concat();
    assert_eq!(say(&mut target, 0x81, &first).1[1], "AuthMethod=CHAP");
    assert_eq!(say(&mut target, 0, &["CHAP_A=5"]).1.len(), 3);
    let proof = ["CHAP_N=alice", "CHAP_R=0xbd858d98d355c097381e493b584d7473"];
    assert_eq!(say(&mut target, 0x81, &proof), (0x81, vec![]));
    let keys = ["HeaderDigest=CRC32C", "DataDigest=CRC32C", "MaxRecvDataSegmentLength=512", "InitialR2T=Yes"];
    assert_eq!(say(&mut target, 0x87, &keys).0, 0x87);

    let both = Framing { header_digest: true, data_digest: true };
    let mut exchange = |header: Header, data: &[u8]| {
        let mut bytes = Vec::new();
        put_pdu(&mut bytes, both, &header, &[], data);
        pdus(both, &target.receive(&bytes))
    };
    let ping = NopOut { ttt: NO_TAG.into(), cmd_sn: 100.into(), itt: 1.into(), ..NopOut::new_zeroed() };
    let answer = exchange(ping.to_bytes(), b"nopping\0!");
    assert_eq!((answer[0].0[0], &answer[0].1[..]), (0x20, &b"nopping\0!"[..]));

    let mut write = command(2, 101);
    write.flags = FLAG_FINAL | FLAG_WRITE;
    write.expected_len.set(1500);
    let answer = exchange(write.to_bytes(), &[]);
    let r2t = R2t::read(&answer[0].0);
    assert_eq!((answer[0].0[0], r2t.buffer_offset.get(), r2t.desired_len.get()), (0x31, 0, 1500));
    let data: Vec<u8> = (0..1500u32).map(|i| (i * 13) as u8).collect();
    let mut out = DataOut { opcode: 5, itt: 2.into(), ttt: r2t.ttt, ..DataOut::new_zeroed() };
    assert!(exchange(out.to_bytes(), &data[..700]).is_empty());
    out.data_sn.set(1);
    out.buffer_offset.set(700);
    out.flags = FLAG_FINAL;
    let answer = exchange(out.to_bytes(), &data[700..]);
    assert_eq!((answer.len(), answer[0].0[0], answer[0].0[3]), (1, 0x21, 0));

    let mut read = command(3, 102);
    read.flags = FLAG_FINAL | FLAG_READ;
    read.expected_len.set(1500);
    let answer = exchange(read.to_bytes(), &[]);
    let lens: Vec<usize> = answer.iter().map(|(_, data)| data.len()).collect();
    assert_eq!((lens, answer[2].0[1]), (vec![512, 512, 476], 0x81));
    assert_eq!(answer.iter().flat_map(|(_, data)| data.clone()).collect::<Vec<u8>>(), data);

    let text = TextRequest {
        opcode: 0x44,
        flags: FLAG_FINAL,
        itt: 4.into(),
        ttt: NO_TAG.into(),
        cmd_sn: 103.into(),
        ..TextRequest::new_zeroed()
    };
    let answer = exchange(text.to_bytes(), b"SendTargets=All\0");
    let told = ["TargetName=iqn.2026-11.io.reactor:vol0", "TargetAddress=192.0.2.1:3260,1"];
    assert_eq!((answer[0].0[1], pairs_of(&answer[0].1)), (0x80, told.map(str::to_owned).to_vec()));

    let logout =
        LogoutRequest { opcode: 0x46, flags: 0x80, itt: 5.into(), cmd_sn: 103.into(), ..LogoutRequest::new_zeroed() };
    let answer = exchange(logout.to_bytes(), &[]);
    assert_eq!((answer[0].0[0], answer[0].0[2]), (0x26, 0));
    // Four logins, then a ping, a write, a read and a text came before.
    assert_eq!(LogoutResponse::read(&answer[0].0).stat_sn.get(), 8);
    assert!(target.closed);
}

//! SendTargets and the text exchanges of the full feature phase.

use super::*;

const OTHER: &str = "iqn.2026-11.io.reactor:vol1";

fn two() -> Book {
    let portals = vec![portal(1, 1, Some("192.0.2.1:3260")), portal(2, 2, None)];
    let hidden = AllowedInitiators::Listed(["iqn.friend".to_owned()].into());
    let targets = vec![
        TargetConfig { portals, ..target(TARGET) },
        TargetConfig { portals: vec![portal(2, 7, None)], ..target(OTHER) },
        TargetConfig { initiators: hidden, ..target("iqn.2026-11.io.reactor:hidden") },
    ];
    Book::new(targets, None).unwrap()
}

fn asker(kind: SessionKind, listener: u16) -> Asker<'static> {
    let target = (kind == SessionKind::Normal).then_some(TARGET);
    Asker { kind, initiator: INITIATOR, target, listener, local: "[2001:db8::1]:3260" }
}

fn ask(kind: SessionKind, listener: u16, value: &str) -> Option<Vec<String>> {
    two().send_targets(&asker(kind, listener), value).map(|text| pairs_of(&text))
}

const FIRST: [&str; 3] =
    ["TargetName=iqn.2026-11.io.reactor:vol0", "TargetAddress=192.0.2.1:3260,1", "TargetAddress=[2001:db8::1]:3260,2"];
const SECOND: [&str; 2] = ["TargetName=iqn.2026-11.io.reactor:vol1", "TargetAddress=[2001:db8::1]:3260,7"];

#[test]
fn discovery_tells_of_all_that_may_be_used() {
    use SessionKind::Discovery;
    assert_eq!(ask(Discovery, 2, "All").unwrap(), [&FIRST[..], &SECOND].concat());
    // By the other listener, what has no address of its own cannot be told.
    assert_eq!(ask(Discovery, 1, "All").unwrap(), FIRST[..2]);
    assert_eq!(ask(Discovery, 2, OTHER).unwrap(), SECOND);
    assert_eq!(ask(Discovery, 2, &OTHER.to_uppercase()).unwrap(), SECOND);
    assert_eq!(ask(Discovery, 2, "iqn.2026-11.io.reactor:hidden").unwrap(), [""; 0]);
    assert_eq!(ask(Discovery, 2, "iqn.2026-11.io.reactor:none").unwrap(), [""; 0]);
    for value in ["", "Alle", "aLL", "all", "naa", "iqn."] {
        assert_eq!(ask(Discovery, 2, value).is_none(), value != "iqn.", "{value:?}");
    }
}

#[test]
fn who_came_by_the_loopback_is_told_what_else_listens_there() {
    let second = Portal { loopback: Some("127.0.0.1:3261".to_owned()), ..portal(2, 2, None) };
    let book =
        Book::new(vec![TargetConfig { portals: vec![portal(1, 1, None), second], ..target(TARGET) }], None).unwrap();
    let told = |local| {
        let asker = Asker { local, ..asker(SessionKind::Discovery, 1) };
        pairs_of(&book.send_targets(&asker, "All").unwrap())[1..].to_vec()
    };
    assert_eq!(told("127.0.0.1:3260"), ["TargetAddress=127.0.0.1:3260,1", "TargetAddress=127.0.0.1:3261,2"]);
    assert_eq!(told("192.0.2.7:3260"), ["TargetAddress=192.0.2.7:3260,1"]);
}

#[test]
fn a_normal_session_hears_of_its_own_target() {
    use SessionKind::Normal;
    for value in ["", "All", TARGET] {
        assert_eq!(ask(Normal, 2, value).unwrap(), FIRST, "{value:?}");
    }
    assert_eq!(ask(Normal, 2, OTHER).unwrap(), [""; 0]);
    assert_eq!(ask(Normal, 2, "Alle"), None);
}

fn text(itt: u32, ttt: u32, flags: u8) -> TextRequest {
    let mut pdu = TextRequest::new_zeroed();
    pdu.opcode = 4;
    pdu.flags = flags;
    pdu.itt.set(itt);
    pdu.ttt.set(ttt);
    pdu
}

/// A text exchange of a discovery session by listener 2.
struct Exchange {
    book: Book,
    exchange: TextExchange,
    params: Params,
}

impl Exchange {
    fn new() -> Exchange {
        Exchange { book: two(), exchange: TextExchange::new(), params: Params::default() }
    }

    fn send(&mut self, itt: u32, ttt: u32, flags: u8, data: &[u8]) -> Result<TextReply, RejectReason> {
        let pdu = text(itt, ttt, flags);
        self.exchange.request(&self.book, &asker(SessionKind::Discovery, 2), &mut self.params, &pdu, data)
    }
}

#[test]
fn a_request_and_its_response() {
    let mut it = Exchange::new();
    let reply = it.send(5, NO_TAG, FLAG_FINAL, b"SendTargets=All\0").unwrap();
    assert_eq!((reply.flags, reply.ttt), (FLAG_FINAL, NO_TAG));
    assert_eq!(pairs_of(&reply.text), [&FIRST[..], &SECOND].concat());
    for (request, answer) in [
        (&b"SendTargetsPlease=All\0X-a=1\0"[..], &["SendTargetsPlease=NotUnderstood", "X-a=NotUnderstood"][..]),
        (b"SendTargets=Alle\0InitiatorAlias=me\0", &["SendTargets=Reject"]),
        (b"MaxBurstLength=8192\0InitiatorName=x\0", &["MaxBurstLength=Reject", "InitiatorName=Reject"]),
        (b"AuthMethod=None\0", &["AuthMethod=Reject"]),
        (b"MaxRecvDataSegmentLength=1\0", &["MaxRecvDataSegmentLength=Reject"]),
        (b"InitiatorAlias=me\0", &[]),
        (b"", &[]),
    ] {
        let reply = it.send(5, NO_TAG, FLAG_FINAL, request).unwrap();
        assert_eq!(reply.flags, FLAG_FINAL);
        assert_eq!(pairs_of(&reply.text), answer);
    }
    // What has nothing that could be answered otherwise is rejected, as the conformance suite expects.
    for request in ["SendTargetsPlease=All\0", "SendTargets=Alle\0", "sENDtARGETS=aLL\0"] {
        assert_eq!(it.send(5, NO_TAG, FLAG_FINAL, request.as_bytes()), Err(RejectReason::INVALID_PDU_FIELD));
    }
    it.send(5, NO_TAG, FLAG_FINAL, b"MaxRecvDataSegmentLength=65536\0").unwrap();
    assert_eq!(it.params.initiator_max_data, 65536);
}

#[test]
fn a_long_response_in_pieces() {
    let names: Vec<String> = (0..100).map(|i| format!("iqn.2026-11.io.reactor:volume-{i:04}")).collect();
    let mut it = Exchange::new();
    it.book = Book::new(names.iter().map(|name| target(name)).collect(), None).unwrap();
    let whole = it.book.send_targets(&asker(SessionKind::Discovery, 1), "All").unwrap();
    it.params.initiator_max_data = 512;
    let mut got = Vec::new();
    let mut reply = it.send(5, NO_TAG, FLAG_FINAL, b"SendTargets=All\0").unwrap();
    loop {
        got.extend_from_slice(&reply.text);
        if reply.flags == FLAG_FINAL {
            break;
        }
        assert_eq!((reply.flags, reply.text.len()), (FLAG_CONTINUE, 512));
        assert_ne!(reply.ttt, NO_TAG);
        reply = it.send(5, reply.ttt, FLAG_FINAL, b"").unwrap();
    }
    assert_eq!((got, reply.ttt), (whole, NO_TAG));
}

#[test]
fn a_long_request_in_pieces() {
    let mut it = Exchange::new();
    let reply = it.send(5, NO_TAG, FLAG_CONTINUE, b"SendTar").unwrap();
    assert_eq!((reply.flags, reply.text.len()), (0, 0));
    let reply = it.send(5, reply.ttt, FLAG_FINAL, b"gets=All\0").unwrap();
    assert_eq!(pairs_of(&reply.text).len(), 5);
    // More requests of one exchange.
    let reply = it.send(5, NO_TAG, 0, b"X-a=1\0").unwrap();
    assert_eq!((reply.flags, pairs_of(&reply.text)), (0, vec!["X-a=NotUnderstood".to_owned()]));
    let reply = it.send(5, reply.ttt, FLAG_FINAL, b"X-b=1\0").unwrap();
    assert_eq!((reply.flags, pairs_of(&reply.text)), (FLAG_FINAL, vec!["X-b=NotUnderstood".to_owned()]));
}

#[test]
fn exchanges_that_are_none() {
    let mut it = Exchange::new();
    assert_eq!(it.send(5, NO_TAG, FLAG_FINAL | FLAG_CONTINUE, b""), Err(RejectReason::PROTOCOL_ERROR));
    assert_eq!(it.send(NO_TAG, NO_TAG, FLAG_FINAL, b""), Err(RejectReason::PROTOCOL_ERROR));
    assert_eq!(it.send(5, 9, FLAG_FINAL, b""), Err(RejectReason::INVALID_PDU_FIELD));
    assert_eq!(it.send(5, NO_TAG, FLAG_FINAL, b"nonsense\0"), Err(RejectReason::PROTOCOL_ERROR));
    assert_eq!(it.send(5, NO_TAG, FLAG_FINAL, b"A=b"), Err(RejectReason::PROTOCOL_ERROR));
    let twice = b"SendTargets=All\0SendTargets=All\0";
    assert_eq!(it.send(5, NO_TAG, FLAG_FINAL, twice), Err(RejectReason::PROTOCOL_ERROR));
    let reply = it.send(5, NO_TAG, FLAG_CONTINUE, b"X-A=").unwrap();
    assert_eq!(it.send(6, reply.ttt, FLAG_FINAL, b"b\0"), Err(RejectReason::INVALID_PDU_FIELD), "another tag");
    let reply = it.send(5, NO_TAG, FLAG_CONTINUE, b"X-A=").unwrap();
    assert!(it.send(7, NO_TAG, FLAG_FINAL, b"X-B=c\0").is_ok(), "a new exchange ends the old one");
    assert_eq!(it.send(5, reply.ttt, FLAG_FINAL, b"b\0"), Err(RejectReason::INVALID_PDU_FIELD));
    let mut ttt = NO_TAG;
    let end = (0..100).find_map(|_| match it.send(5, ttt, FLAG_CONTINUE, &[b'a'; 4096]) {
        Ok(reply) => {
            ttt = reply.ttt;
            None
        }
        Err(reason) => Some(reason),
    });
    assert_eq!(end, Some(RejectReason::PROTOCOL_ERROR), "text has a limit");
    it.params.initiator_max_data = 16;
    let reply = it.send(5, NO_TAG, FLAG_FINAL, b"SendTargets=All\0").unwrap();
    assert_eq!(it.send(5, reply.ttt, FLAG_FINAL, b"X=y\0"), Err(RejectReason::PROTOCOL_ERROR));
}

#[test]
fn what_cannot_be_a_target() {
    let refused = |target: TargetConfig| Book::new(vec![target], None).unwrap_err();
    for name in ["", "IQN.2026-11.io.reactor:vol0", "iqn.a b", "iqn.a,b", &"n".repeat(224)] {
        assert!(matches!(refused(target(name)), BadTarget::Name(_)), "{name}");
    }
    assert!(matches!(Book::new(vec![target(TARGET), target(TARGET)], None), Err(BadTarget::Twice(_))));
    let alias = TargetConfig { alias: Some("a\0".to_owned()), ..target(TARGET) };
    assert!(matches!(refused(alias), BadTarget::Alias(_)));
    for portals in [vec![portal(1, 1, None), portal(1, 2, None)], vec![portal(1, 1, Some("a b"))]] {
        assert!(matches!(refused(TargetConfig { portals, ..target(TARGET) }), BadTarget::Portals(_)));
    }
    // Nobody reaches it, for a while.
    assert!(Book::new(vec![TargetConfig { portals: Vec::new(), ..target(TARGET) }], None).is_ok());
    for offer in [
        Offer { max_recv_data_segment: 511, ..Offer::default() },
        Offer { max_burst: 1 << 24, ..Offer::default() },
        Offer { first_burst: 1 << 21, ..Offer::default() },
        Offer { max_outstanding_r2t: 0, ..Offer::default() },
        Offer { max_connections: 0, ..Offer::default() },
        Offer { time2wait: 3601, ..Offer::default() },
        Offer { time2retain: 3601, ..Offer::default() },
    ] {
        assert!(matches!(refused(TargetConfig { offer, ..target(TARGET) }), BadTarget::Offer(..)));
    }
}

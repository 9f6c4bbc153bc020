//! Logins: in all their orders, as known initiators begin them, and every refusal.

use super::*;

const NAMES: [&str; 3] =
    ["InitiatorName=iqn.1993-08.org.debian:01:abc", "SessionType=Normal", "TargetName=iqn.2026-11.io.reactor:vol0"];

/// An initiator at its login.
struct Peer {
    book: Book,
    login: Login,
    pdu: LoginRequest,
}

impl Peer {
    fn new(book: Book) -> Peer {
        let mut pdu = LoginRequest::new_zeroed();
        pdu.opcode = 0x43;
        pdu.isid = [0x40, 0, 1, 0x37, 0, 0];
        pdu.itt.set(77);
        pdu.cid.set(3);
        pdu.cmd_sn.set(100);
        Peer { book, login: Login::new(1, &ENTROPY), pdu }
    }

    fn plain() -> Peer {
        Peer::new(book(target(TARGET)))
    }

    /// One request from a stage to a next one, or with the stage staying.
    fn send(&mut self, current: u8, next: Option<u8>, text: &[&str]) -> Step {
        self.pdu.flags = current << 2 | next.map_or(0, |next| FLAG_TRANSIT | next);
        self.login.request(&self.book, &self.pdu, &text_of(text))
    }

    /// One that must be answered, and with which stages.
    fn answered(&mut self, current: u8, next: Option<u8>, text: &[&str]) -> (u8, Vec<String>) {
        match self.send(current, next, text) {
            Step::Reply(reply) => {
                let pdu = LoginResponse::read(&reply.header);
                assert_eq!((pdu.status_class, pdu.status_detail), (0, 0));
                assert_eq!(pdu.data_len.get() as usize, reply.text.len());
                (pdu.flags, pairs_of(&reply.text))
            }
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, current: u8, next: Option<u8>, text: &[&str]) -> LoginStatus {
        match self.send(current, next, text) {
            Step::Refuse { reply, delay_ns, status } => {
                let pdu = LoginResponse::read(&reply.header);
                assert_eq!(u16::from_be_bytes([pdu.status_class, pdu.status_detail]), status.0);
                assert_eq!(delay_ns != 0, status == LoginStatus::AUTHENTICATION_FAILURE);
                status
            }
            other => panic!("{other:?}"),
        }
    }

    /// The last request: the claim, then the last response and what holds.
    fn completed(&mut self, current: u8, text: &[&str]) -> (Claim, Vec<String>, Established) {
        let Step::Admit(claim) = self.send(current, Some(3), text) else { panic!("no claim") };
        let admitted = Admitted { tsih: 9, joined: None, window: 32 };
        let (reply, established) = self.login.admitted(&admitted).unwrap();
        let pdu = LoginResponse::read(&reply.header);
        assert_eq!((pdu.flags, pdu.tsih.get()), (FLAG_TRANSIT | current << 2 | 3, 9));
        assert_eq!((pdu.exp_cmd_sn.get(), pdu.max_cmd_sn.get()), (100, 131));
        assert_eq!(established.stat_sn, pdu.stat_sn.get() + 1);
        (claim, pairs_of(&reply.text), established)
    }
}

const OPERATIONAL: [&str; 4] =
    ["HeaderDigest=CRC32C,None", "InitialR2T=No", "MaxRecvDataSegmentLength=262144", "MaxBurstLength=16776192"];

#[test]
fn open_iscsi_without_authentication() {
    // One request in the operational stage, with all it has to say.
    let mut peer = Peer::plain();
    let text = [
        &NAMES[..],
        &[
            "InitiatorAlias=host",
            "HeaderDigest=None",
            "DataDigest=None",
            "DefaultTime2Wait=2",
            "DefaultTime2Retain=0",
            "IFMarker=No",
            "OFMarker=No",
            "ErrorRecoveryLevel=0",
            "InitialR2T=No",
            "ImmediateData=Yes",
            "MaxBurstLength=16776192",
            "FirstBurstLength=262144",
            "MaxOutstandingR2T=1",
            "MaxConnections=1",
            "DataPDUInOrder=Yes",
            "DataSequenceInOrder=Yes",
            "MaxRecvDataSegmentLength=262144",
        ],
    ]
    .concat();
    let (claim, answer, established) = peer.completed(1, &text);
    assert_eq!(
        answer,
        [
            "TargetPortalGroupTag=1",
            "HeaderDigest=None",
            "DataDigest=None",
            "DefaultTime2Wait=2",
            "DefaultTime2Retain=0",
            "IFMarker=No",
            "OFMarker=No",
            "ErrorRecoveryLevel=0",
            "InitialR2T=No",
            "ImmediateData=Yes",
            "MaxBurstLength=1048576",
            "FirstBurstLength=65536",
            "MaxOutstandingR2T=1",
            "MaxConnections=1",
            "DataPDUInOrder=Yes",
            "DataSequenceInOrder=Yes",
            "MaxRecvDataSegmentLength=262144",
        ]
    );
    assert_eq!(claim.nexus.initiator, INITIATOR);
    assert_eq!((claim.nexus.target.as_deref(), claim.nexus.tpgt, claim.tsih, claim.cid), (Some(TARGET), 1, 0, 3));
    assert_eq!((established.cmd_sn, established.cid, established.kind), (100, 3, SessionKind::Normal));
    let params = established.params;
    assert_eq!((params.max_burst, params.first_burst, params.initiator_max_data), (1 << 20, 65536, 262_144));
    assert!(!params.initial_r2t && params.immediate_data);
}

#[test]
fn libiscsi_with_and_without_a_user() {
    // With a user it begins in the security stage, and says its names again where no authentication is wanted.
    let mut peer = Peer::plain();
    let first = [&NAMES[..], &["AuthMethod=CHAP,None"]].concat();
    let (flags, answer) = peer.answered(0, Some(1), &first);
    assert_eq!((flags, answer), (0x81, vec!["TargetPortalGroupTag=1".to_owned(), "AuthMethod=None".to_owned()]));
    let text = [&NAMES[..], &OPERATIONAL].concat();
    let (_, answer, established) = peer.completed(1, &text);
    assert_eq!(answer[0], "HeaderDigest=CRC32C");
    assert!(established.params.header_digest);
    // With CHAP the same first request leads to the choice of an algorithm.
    let mut peer = Peer::new(book(TargetConfig { chap: Some(chap(false)), ..target(TARGET) }));
    let (flags, answer) = peer.answered(0, Some(1), &first);
    assert_eq!((flags, &answer[1][..]), (0, "AuthMethod=CHAP"));
    let (flags, answer) = peer.answered(0, None, &["CHAP_A=5"]);
    assert_eq!((flags, answer.len()), (0, 3));
    let (flags, answer) = peer.answered(0, Some(1), &["CHAP_N=alice", "CHAP_R=0xbd858d98d355c097381e493b584d7473"]);
    assert_eq!((flags, answer), (0x81, vec![]));
    peer.completed(1, &OPERATIONAL);
}

#[test]
fn windows_goes_through_the_stages_one_by_one() {
    let mut peer = Peer::plain();
    let (flags, _) = peer.answered(0, Some(1), &[&NAMES[..], &["AuthMethod=None"]].concat());
    assert_eq!(flags, 0x81);
    let (flags, answer) = peer.answered(1, None, &OPERATIONAL);
    assert_eq!(flags, 4);
    assert!(answer.contains(&"MaxRecvDataSegmentLength=262144".to_owned()));
    let (_, answer, _) = peer.completed(1, &[]);
    assert!(answer.is_empty(), "it is declared once: {answer:?}");
}

#[test]
fn esxi_offers_chap_and_is_content_without() {
    let mut peer = Peer::plain();
    let text = [&NAMES[..], &["AuthMethod=CHAP,None", "InitiatorAlias=esx"]].concat();
    let (flags, answer) = peer.answered(0, None, &text);
    assert_eq!((flags, &answer[1][..]), (0, "AuthMethod=None"));
    let (flags, _) = peer.answered(0, Some(1), &[]);
    assert_eq!(flags, 0x81);
    let text = [&OPERATIONAL[..], &["TaskReporting=RFC3720,ResponseFence,FastAbort", "X-com.vmware.thing=1"]].concat();
    let (_, answer, _) = peer.completed(1, &text);
    assert!(answer.contains(&"TaskReporting=RFC3720".to_owned()));
    assert!(answer.contains(&"X-com.vmware.thing=NotUnderstood".to_owned()));
}

#[test]
fn straight_from_security_to_the_full_feature_phase() {
    let mut peer = Peer::plain();
    let (_, answer, established) = peer.completed(0, &NAMES);
    assert_eq!(answer, ["TargetPortalGroupTag=1"]);
    assert_eq!(established.params, Params::default(), "defaults hold where nothing was said");
    let mut peer = Peer::new(book(TargetConfig {
        offer: Offer { data_digest: DigestPolicy::Require, ..Offer::default() },
        ..target(TARGET)
    }));
    assert_eq!(peer.refused(0, Some(3), &NAMES), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn text_in_pieces() {
    let text = text_of(&[&NAMES[..], &OPERATIONAL].concat());
    for cut in [1, 17, text.len() / 2, text.len() - 1] {
        let mut peer = Peer::plain();
        peer.pdu.flags = 1 << 2 | FLAG_CONTINUE;
        let Step::Reply(reply) = peer.login.request(&peer.book, &peer.pdu, &text[..cut]) else { panic!() };
        assert_eq!((reply.header[1], reply.text.len()), (4, 0));
        peer.pdu.flags = FLAG_TRANSIT | 1 << 2 | 3;
        assert!(matches!(peer.login.request(&peer.book, &peer.pdu, &text[cut..]), Step::Admit(_)));
    }
    let mut peer = Peer::plain();
    peer.pdu.flags = 1 << 2 | FLAG_CONTINUE;
    for _ in 0..2 {
        assert!(matches!(peer.login.request(&peer.book, &peer.pdu, &[b'a'; 8192]), Step::Reply(_)));
    }
    assert!(matches!(peer.login.request(&peer.book, &peer.pdu, b"a"), Step::Refuse { .. }));
}

#[test]
fn a_required_digest_is_asked_for() {
    let offer = Offer { header_digest: DigestPolicy::Require, ..Offer::default() };
    let mut peer = Peer::new(book(TargetConfig { offer, ..target(TARGET) }));
    let (flags, answer) = peer.answered(1, Some(3), &NAMES);
    assert_eq!(flags, 4, "the stage stays");
    assert_eq!(answer, ["TargetPortalGroupTag=1", "MaxRecvDataSegmentLength=262144", "HeaderDigest=CRC32C"]);
    let (_, _, established) = peer.completed(1, &["HeaderDigest=CRC32C"]);
    assert!(established.params.header_digest);
    let mut peer = Peer::new(book(TargetConfig { offer, ..target(TARGET) }));
    let refused = peer.refused(1, Some(3), &[&NAMES[..], &["HeaderDigest=None"]].concat());
    assert_eq!(refused, LoginStatus::INITIATOR_ERROR);
}

#[test]
fn discovery() {
    let mut peer = Peer::plain();
    let text = [
        "InitiatorName=iqn.1993-08.org.debian:01:abc",
        "SessionType=Discovery",
        "MaxBurstLength=8192",
        "HeaderDigest=None",
    ];
    let (claim, answer, established) = peer.completed(1, &text);
    assert_eq!(answer, ["MaxBurstLength=Irrelevant", "HeaderDigest=None", "MaxRecvDataSegmentLength=262144"]);
    assert_eq!((claim.nexus.target, claim.nexus.tpgt, claim.max_connections), (None, 0, 1));
    assert_eq!(established.kind, SessionKind::Discovery);
    // It may have to prove itself too.
    let mut peer = Peer::new(Book::new(vec![target(TARGET)], Some(chap(false))).unwrap());
    assert_eq!(peer.refused(1, Some(3), &text), LoginStatus::AUTHENTICATION_FAILURE);
}

#[test]
fn chap_step_by_step() {
    let with_chap = || Peer::new(book(TargetConfig { chap: Some(chap(true)), ..target(TARGET) }));
    let begin = [&NAMES[..], &["AuthMethod=CHAP"]].concat();
    let proof = ["CHAP_N=alice", "CHAP_R=0x0155d83e3b37419c86c4fd3fc1e4fbf30f4e98118ef36737127099736fc1391b"];
    let mut peer = with_chap();
    peer.answered(0, None, &begin);
    let (_, answer) = peer.answered(0, None, &["CHAP_A=7"]);
    assert_eq!(answer[0], "CHAP_A=7");
    let mutual = [&proof[..], &["CHAP_I=7", "CHAP_C=0xa0a1a2a3a4a5a6a7a8a9aaabacadaeaf"]].concat();
    let (flags, answer) = peer.answered(0, Some(1), &mutual);
    assert_eq!((flags, &answer[0][..], answer.len()), (0x81, "CHAP_N=target", 2));
    peer.completed(1, &OPERATIONAL);

    // A wrong secret, and then nothing more.
    let mut peer = with_chap();
    peer.answered(0, None, &begin);
    peer.answered(0, None, &["CHAP_A=7"]);
    let wrong = ["CHAP_N=alice", "CHAP_R=0x0255d83e3b37419c86c4fd3fc1e4fbf30f4e98118ef36737127099736fc1391b"];
    assert_eq!(peer.refused(0, Some(1), &wrong), LoginStatus::AUTHENTICATION_FAILURE);

    // Round the proof in all ways.
    for (current, next, text) in [
        (1, Some(3), vec![]),
        (0, Some(1), vec![]),
        (0, Some(3), vec![]),
        (0, Some(1), vec!["AuthMethod=None"]),
        (0, Some(1), vec!["AuthMethod=SRP,KRB5"]),
        (0, Some(1), vec!["CHAP_A=5"]),
    ] {
        let text = [&NAMES[..], &text].concat();
        assert_eq!(with_chap().refused(current, next, &text), LoginStatus::AUTHENTICATION_FAILURE, "{text:?}");
    }
    let proof_of_nothing = [&NAMES[..], &["CHAP_A=5"]].concat();
    assert_eq!(Peer::plain().refused(0, None, &proof_of_nothing), LoginStatus::AUTHENTICATION_FAILURE, "nobody asked");
    let mut peer = with_chap();
    peer.answered(0, Some(1), &begin);
    assert_eq!(peer.refused(1, Some(3), &[]), LoginStatus::INITIATOR_ERROR, "the stage has not changed");
    let mut peer = with_chap();
    peer.answered(0, None, &begin);
    let (flags, _) = peer.answered(0, Some(3), &[]);
    assert_eq!(flags, 0, "what is not proved does not transit");
    assert_eq!(peer.refused(0, None, &["AuthMethod=None"]), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn refusals() {
    let initiator = NAMES[0];
    let target_name = NAMES[2];
    let refused = |text: &[&str]| Peer::plain().refused(1, Some(3), text);
    assert_eq!(refused(&[target_name]), LoginStatus::MISSING_PARAMETER);
    assert_eq!(refused(&[]), LoginStatus::MISSING_PARAMETER);
    assert_eq!(refused(&[initiator]), LoginStatus::MISSING_PARAMETER);
    assert_eq!(refused(&[initiator, "TargetName=iqn.2026-11.io.reactor:none"]), LoginStatus::NOT_FOUND);
    assert_eq!(refused(&[initiator, target_name, "SessionType=Other"]), LoginStatus::SESSION_TYPE_NOT_SUPPORTED);
    assert_eq!(refused(&["InitiatorName=", target_name]), LoginStatus::INITIATOR_ERROR);
    assert_eq!(refused(&[initiator, target_name, "InitialR2T=No", "InitialR2T=No"]), LoginStatus::INITIATOR_ERROR);
    assert_eq!(refused(&[initiator, target_name, "nonsense"]), LoginStatus::INITIATOR_ERROR);
    // Another listener than the target's portals.
    let mut peer = Peer::plain();
    peer.login = Login::new(2, &ENTROPY);
    assert_eq!(peer.refused(1, Some(3), &NAMES), LoginStatus::NOT_FOUND);
    let listed = AllowedInitiators::Listed(["iqn.other".to_owned()].into());
    let mut peer = Peer::new(book(TargetConfig { initiators: listed, ..target(TARGET) }));
    assert_eq!(peer.refused(1, Some(3), &NAMES), LoginStatus::AUTHORIZATION_FAILURE);
    let listed = AllowedInitiators::Listed([INITIATOR.to_owned()].into());
    let mut peer = Peer::new(book(TargetConfig { initiators: listed, ..target(TARGET) }));
    peer.completed(1, &["InitiatorName=IQN.1993-08.org.debian:01:ABC", NAMES[2]]);
    // A version that nobody has.
    let mut peer = Peer::plain();
    peer.pdu.version_min = 1;
    peer.pdu.version_max = 3;
    assert_eq!(peer.refused(1, Some(3), &NAMES), LoginStatus::UNSUPPORTED_VERSION);
    let mut peer = Peer::plain();
    peer.pdu.version_max = 3;
    peer.completed(1, &NAMES);
}

#[test]
fn stages_and_flags_that_are_not() {
    for (flags, text) in [
        (0x80 | 1 << 2 | 1, &NAMES[..]),
        (0x80 | 1 << 2, &NAMES),
        (0x80 | 1 << 2 | 2, &NAMES),
        (0x80 | 2 << 2 | 3, &NAMES),
        (0x80 | 3 << 2 | 3, &NAMES),
        (0x80, &NAMES),
        (0xc0 | 1 << 2 | 3, &NAMES),
        (3 << 2, &NAMES),
    ] {
        let mut peer = Peer::plain();
        peer.pdu.flags = flags;
        let step = peer.login.request(&peer.book, &peer.pdu, &text_of(text));
        assert!(matches!(step, Step::Refuse { status: LoginStatus::INITIATOR_ERROR, .. }), "{flags:#x}");
    }
    // From operational back to security.
    let mut peer = Peer::plain();
    peer.answered(1, None, &NAMES);
    assert_eq!(peer.refused(0, None, &[]), LoginStatus::INITIATOR_ERROR);
    // What must not change.
    for change in [
        |pdu: &mut LoginRequest| pdu.isid[5] = 9,
        |pdu: &mut LoginRequest| pdu.tsih.set(9),
        |pdu: &mut LoginRequest| pdu.cid.set(9),
        |pdu: &mut LoginRequest| pdu.itt.set(9),
    ] {
        let mut peer = Peer::plain();
        peer.answered(1, None, &NAMES);
        change(&mut peer.pdu);
        assert_eq!(peer.refused(1, Some(3), &[]), LoginStatus::INITIATOR_ERROR);
    }
    let mut peer = Peer::plain();
    peer.answered(1, None, &NAMES);
    assert_eq!(peer.refused(1, None, &["InitiatorName=iqn.other"]), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn it_comes_to_an_end() {
    let mut peer = Peer::plain();
    peer.answered(1, None, &NAMES);
    let refusal = (0..100).find_map(|_| match peer.send(1, None, &[]) {
        Step::Refuse { status, .. } => Some(status),
        _ => None,
    });
    assert_eq!(refusal, Some(LoginStatus::INVALID_DURING_LOGIN));
    let mut peer = Peer::plain();
    assert!(matches!(peer.send(1, Some(3), &NAMES), Step::Admit(_)));
    assert_eq!(peer.refused(1, Some(3), &NAMES), LoginStatus::INVALID_DURING_LOGIN);
    // Answers that nobody could receive are not made.
    let keys: Vec<String> = (0..1200).map(|i| format!("K{i}=1")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert_eq!(Peer::plain().refused(1, Some(3), &[&NAMES[..], &keys].concat()), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn keys_in_the_wrong_stage() {
    let mut peer = Peer::plain();
    let (_, answer) = peer.answered(0, None, &[&NAMES[..], &["MaxBurstLength=4096", "X-y=1"]].concat());
    assert_eq!(answer[1..], ["MaxBurstLength=Reject", "X-y=NotUnderstood"]);
    let mut peer = Peer::plain();
    let (_, answer) = peer.answered(1, None, &[&NAMES[..], &["AuthMethod=None", "CHAP_A=5"]].concat());
    assert_eq!(answer[1..3], ["AuthMethod=Reject", "CHAP_A=Reject"]);
}

#[test]
fn redirection() {
    for (permanent, status) in [(false, LoginStatus::MOVED_TEMPORARILY), (true, LoginStatus::MOVED_PERMANENTLY)] {
        let redirect = Some(Redirect { address: "[2001:db8::2]:3260".to_owned(), permanent });
        let portals = vec![Portal { redirect, ..portal(1, 1, None) }];
        let mut peer = Peer::new(book(TargetConfig { portals, alias: Some("it".to_owned()), ..target(TARGET) }));
        let Step::Refuse { reply, status: found, delay_ns: 0 } = peer.send(0, Some(1), &NAMES) else { panic!() };
        assert_eq!((found, pairs_of(&reply.text)), (status, vec!["TargetAddress=[2001:db8::2]:3260".to_owned()]));
        assert_eq!(reply.header[36], 1);
    }
}

#[test]
fn an_alias_is_told_once() {
    let mut peer = Peer::new(book(TargetConfig { alias: Some("disk".to_owned()), ..target(TARGET) }));
    let (_, answer) = peer.answered(1, None, &NAMES);
    assert_eq!(answer.last().unwrap(), "TargetAlias=disk");
    let (_, answer, _) = peer.completed(1, &[]);
    assert!(answer.is_empty());
}

#[test]
fn a_second_connection_joins() {
    let mut peer = Peer::plain();
    peer.pdu.tsih.set(9);
    let text = [&NAMES[..], &["MaxBurstLength=4096", "DataDigest=CRC32C"]].concat();
    let Step::Admit(claim) = peer.send(1, Some(3), &text) else { panic!() };
    assert_eq!(claim.tsih, 9);
    let params = Params { max_burst: 8192, ..Params::default() };
    let joined = Some(Joined { params, exp_cmd_sn: 500, max_cmd_sn: 507 });
    let (reply, established) = peer.login.admitted(&Admitted { tsih: 9, joined, window: 32 }).unwrap();
    let pdu = LoginResponse::read(&reply.header);
    assert_eq!((pdu.exp_cmd_sn.get(), pdu.max_cmd_sn.get(), pdu.tsih.get()), (500, 507, 9));
    assert!(pairs_of(&reply.text).contains(&"MaxBurstLength=Irrelevant".to_owned()));
    assert_eq!((established.params.max_burst, established.params.data_digest), (8192, true));
    assert!(peer.login.admitted(&Admitted { tsih: 9, joined, window: 32 }).is_none(), "once");
    // Refused by the session.
    let mut peer = Peer::plain();
    peer.pdu.tsih.set(9);
    let Step::Admit(_) = peer.send(1, Some(3), &NAMES) else { panic!() };
    let Some(Step::Refuse { status, .. }) = peer.login.refused(LoginStatus::NO_SESSION) else { panic!() };
    assert_eq!(status, LoginStatus::NO_SESSION);
}

#[test]
fn a_target_that_goes_during_the_login() {
    let mut peer = Peer::plain();
    peer.answered(1, None, &NAMES);
    peer.book = book(target("iqn.2026-11.io.reactor:other"));
    assert_eq!(peer.refused(1, Some(3), &[]), LoginStatus::TARGET_REMOVED);
}

#[test]
fn ports_have_names() {
    let mut nexus = established(Params::default()).nexus;
    assert_eq!(nexus.initiator_port(), "iqn.1993-08.org.debian:01:abc,i,0x010101010101");
    assert_eq!(nexus.target_port().unwrap(), "iqn.2026-11.io.reactor:vol0,t,0x0001");
    nexus.target = None;
    assert_eq!(nexus.target_port(), None);
}

#[test]
fn who_comes_at_the_wrong_time_is_turned_away() {
    let mut peer = Peer::plain();
    let Step::Refuse { reply, delay_ns: 0, .. } = peer.login.turn_away(&peer.pdu, LoginStatus::SERVICE_UNAVAILABLE)
    else {
        panic!()
    };
    assert_eq!(reply.header[36..38], [3, 1]);
}

#[test]
fn noise_is_refused_and_never_admitted_without_its_proof() {
    let mut random = Random(17);
    let words = [
        NAMES[0],
        NAMES[1],
        NAMES[2],
        "AuthMethod=CHAP",
        "AuthMethod=None",
        "CHAP_A=5",
        "CHAP_N=alice",
        "CHAP_R=0x00",
        "CHAP_I=1",
        "CHAP_C=0x0102030405060708090a0b0c0d0e0f10",
        "HeaderDigest=CRC32C",
        "InitialR2T=No",
        "=",
        "",
        "X",
        "K=\u{e9}",
        "MaxRecvDataSegmentLength=0",
        "SessionType=Discovery",
    ];
    for _ in 0..20_000 {
        let config =
            Book::new(vec![TargetConfig { chap: Some(chap(true)), ..target(TARGET) }], Some(chap(false))).unwrap();
        let mut peer = Peer::new(config);
        for _ in 0..1 + random.below(5) {
            let mut text: Vec<&str> = if random.below(4) == 0 { vec![] } else { NAMES.to_vec() };
            text.extend((0..random.below(4)).map(|_| random.one_of(&words)));
            let mut bytes = text_of(&text);
            if random.below(8) == 0 && !bytes.is_empty() {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
            peer.pdu.flags = random.next() as u8;
            match peer.login.request(&peer.book, &peer.pdu, &bytes) {
                Step::Reply(_) => {}
                Step::Refuse { .. } => break,
                Step::Admit(_) => panic!("admitted without a proof"),
            }
        }
    }
}

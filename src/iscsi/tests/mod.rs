//! Tests of the iSCSI engine: one file per area.

mod chap;
mod decode;
mod hostile;
mod initiator;
mod login;
mod manage;
mod negotiate;
mod pdu;
mod registry;
mod sendtargets;
mod session;
mod text;
mod transfer;
mod whole;

use zerocopy::FromZeros;

use super::*;
use crate::util::Random;

/// What the tests here draw beside numbers.
impl Random {
    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

const TARGET: &str = "iqn.2026-11.io.reactor:vol0";
const INITIATOR: &str = "iqn.1993-08.org.debian:01:abc";
const ENTROPY: [u8; CHAP_ENTROPY] = {
    let mut entropy = [0; CHAP_ENTROPY];
    entropy[0] = 0x5a;
    let mut i = 1;
    while i < CHAP_ENTROPY {
        entropy[i] = i as u8;
        i += 1;
    }
    entropy
};

fn portal(listener: u16, tpgt: u16, advertise: Option<&str>) -> Portal {
    Portal { listener, tpgt, advertise: advertise.map(str::to_owned), loopback: None, redirect: None }
}

fn target(name: &str) -> TargetConfig {
    TargetConfig {
        name: name.to_owned(),
        alias: None,
        portals: vec![portal(1, 1, Some("192.0.2.1:3260"))],
        initiators: AllowedInitiators::Any,
        chap: None,
        offer: Offer::default(),
    }
}

fn chap(mutual: bool) -> ChapConfig {
    let credentials =
        |name: &str, secret: &str| Credentials::new(name.to_owned(), Secret::new(secret.into()).unwrap()).unwrap();
    let target = mutual.then(|| credentials("target", "another secret"));
    ChapConfig::new(credentials("alice", "a secret of 24 bytes...."), target).unwrap()
}

fn book(target: TargetConfig) -> Book {
    Book::new(vec![target], None).unwrap()
}

/// The text of pairs.
fn text_of(pairs: &[&str]) -> Vec<u8> {
    pairs.iter().flat_map(|pair| pair.bytes().chain([0])).collect()
}

/// The pairs of a text.
fn pairs_of(text: &[u8]) -> Vec<String> {
    let pairs = text.split(|byte| *byte == 0).filter(|pair| !pair.is_empty());
    pairs.map(|pair| String::from_utf8(pair.to_vec()).unwrap()).collect()
}

fn established(params: Params) -> Established {
    Established {
        kind: SessionKind::Normal,
        nexus: Nexus { initiator: INITIATOR.to_owned(), isid: [1; 6], target: Some(TARGET.to_owned()), tpgt: 1 },
        initiator: INITIATOR.to_owned(),
        tsih: 1,
        cid: 0,
        params,
        cmd_sn: 100,
        stat_sn: 500,
    }
}

const LIMITS: SessionLimits = SessionLimits { window: 8, immediate: 2, connections: 3 };
const KEEPALIVE: Keepalive = Keepalive { interval_ns: 1000, timeout_ns: 100 };

fn session(params: Params) -> (Session, ConnId) {
    Session::new(&established(params), LIMITS, KEEPALIVE, 0)
}

/// A SCSI Command without data: TEST UNIT READY.
fn command(itt: u32, cmd_sn: u32) -> ScsiCommand {
    let mut pdu = ScsiCommand::new_zeroed();
    pdu.opcode = Opcode::SCSI_COMMAND.0;
    pdu.flags = FLAG_FINAL;
    pdu.itt.set(itt);
    pdu.cmd_sn.set(cmd_sn);
    pdu
}

fn send(session: &mut Session, conn: ConnId, request: Request) -> Verdict {
    let verdict = session.request(conn, &request, &[], 1);
    if Bhs::read(&request.header()).data_len.get() == 0 {
        assert_eq!(session.data_end(conn, true), Received::Nothing);
    }
    verdict
}

/// Sends a command that must be accepted.
fn accept(session: &mut Session, conn: ConnId, request: Request) -> TaskId {
    match send(session, conn, request) {
        Verdict::Accept(task) => task,
        other => panic!("{other:?} for {request:?}"),
    }
}

fn ready(session: &mut Session) -> Vec<Ready> {
    std::iter::from_fn(|| session.next_ready()).collect()
}

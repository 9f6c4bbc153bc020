//! Every row of the table: the answer, then the end or a connection that goes on, while another host reads and writes.

use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use reactor::nvme::spec::{CNTLID_DYNAMIC, NvmOpcode, Sqe, StatusCode};
use reactor::nvme::tcp::{CapsuleRespPdu, FatalErrorStatus, PduType, R2tPdu, TermReqPdu, term_req};
use reactor::nvme::tcp::{MAX_PREFIX_LEN, Role};
use zerocopy::{FromBytes, IntoBytes};

use super::super::host::pattern;
use super::super::server::{PATIENCE, Place, Server, nqn};
use super::super::wire::connect;
use super::checker::Checker;
use super::config;
use super::raw::{Digests, Got, Raw, ic_request, property_get, read_sqe, write_sqe};
use super::rows::{Answer, Base, GRANT, ROWS, Row, Stage};

/// Identifier of the command that a row is about.
const CID: u16 = 0x1234;

/// A connection where a row begins, and what belongs to it.
struct Scene {
    host: Raw,
    /// The controller's admin queue, which keeps it alive.
    _admin: Option<Raw>,
    r2t: Option<R2tPdu>,
}

impl Scene {
    fn new(address: SocketAddr, stage: Stage, digests: Digests) -> Scene {
        let (mut admin, mut r2t) = (None, None);
        let host = match stage {
            Stage::Fresh => Raw::fresh(address),
            Stage::Open => Raw::open(address, digests),
            Stage::Admin => Raw::admin(address, &nqn(0), digests).0,
            Stage::Io | Stage::Granted => {
                let (queue, cntlid) = Raw::admin(address, &nqn(0), digests);
                admin = Some(queue);
                Raw::queue(address, &nqn(0), 1, cntlid, digests).0
            }
        };
        if stage == Stage::Granted {
            host.send(&host.capsule(CID, write_sqe(GRANT, false), &[]));
            r2t = Some(host.r2t());
        }
        Scene { host, _admin: admin, r2t }
    }

    /// The PDU that is right.
    fn base(&self, base: Base, digests: Digests) -> Vec<u8> {
        let host = &self.host;
        match base {
            Base::IcReq => ic_request(digests),
            Base::Connect => {
                let (sqe, data) = connect(0, CNTLID_DYNAMIC, &nqn(0));
                host.capsule(CID, sqe, data.as_bytes())
            }
            Base::PropertyGet => host.capsule(CID, property_get(), &[]),
            Base::Flush => host.capsule(CID, Sqe::nvm(NvmOpcode::FLUSH, 1), &[]),
            Base::Write => host.capsule(CID, write_sqe(512, true), &pattern(512, 1)),
            Base::Read => host.capsule(CID, read_sqe(4096), &[]),
            Base::H2c(offset, len, last) => {
                let ttag = self.r2t.map_or(0, |r2t| r2t.ttag.get());
                host.h2c_data(CID, ttag, offset, &pattern(len as usize, 2), last)
            }
            Base::Term => {
                let mut out = [0; MAX_PREFIX_LEN];
                let len = term_req(Role::Host, FatalErrorStatus::SEQUENCE_ERROR, 0, &[4; 8], &mut out);
                out[..len].to_vec()
            }
        }
    }

    /// The PDU of a row.
    fn pdu(&self, row: &Row) -> Vec<u8> {
        let mut pdu = self.base(row.base, row.digests);
        for (at, bytes) in row.patches {
            pdu[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let header_len = match row.base {
            Base::IcReq | Base::Term => return pdu,
            Base::H2c(..) => 24,
            _ => 72,
        };
        if !matches!(row.answer, Answer::HeaderDigest) {
            self.host.redigest(&mut pdu, header_len);
        }
        pdu
    }

    /// The peer's termination request, then its end.
    fn expect_termination(&self, status: FatalErrorStatus, info: u32, header: &[u8]) {
        let Got::Pdu(pdu) = self.host.next(PATIENCE) else { panic!("no termination request") };
        let (term, data) = TermReqPdu::read_from_prefix(&pdu).unwrap();
        assert_eq!((term.ch.pdu_type, term.ch.flags, term.ch.hlen, term.ch.pdo), (PduType::C2H_TERM_REQ, 0, 24, 0));
        assert_eq!((FatalErrorStatus(term.fes.get()), term.fei.get()), (status, info), "status and information");
        assert_eq!(term.reserved14, [0; 10]);
        assert_eq!(data, header, "the header at fault");
        self.expect_end();
    }

    /// The peer's end; its rest is read.
    fn expect_end(&self) {
        match self.host.next(PATIENCE) {
            Got::End | Got::Reset => {}
            other => panic!("no end: {other:?}"),
        }
    }

    /// The connection does what one at this stage can do.
    fn goes_on(&mut self, stage: Stage) {
        let status = match stage {
            Stage::Fresh | Stage::Open => {
                let (sqe, data) = connect(0, CNTLID_DYNAMIC, &nqn(0));
                self.host.command(1, sqe, data.as_bytes()).status()
            }
            Stage::Admin => self.host.command(1, property_get(), &[]).status(),
            Stage::Io | Stage::Granted => self.host.command(1, Sqe::nvm(NvmOpcode::FLUSH, 1), &[]).status(),
        };
        assert!(status.is_success(), "the connection does not go on: {status:?}");
    }
}

fn run(address: SocketAddr, row: &Row, piece: usize) {
    let mut scene = Scene::new(address, row.stage, row.digests);
    let pdu = scene.pdu(row);
    // The peer may hang up before all of it is there.
    scene.host.send_in_pieces(&pdu, piece);
    match row.answer {
        Answer::Fatal(status, info, header) => scene.expect_termination(status, info, &pdu[..header]),
        Answer::HeaderDigest => {
            let header = usize::from(pdu[2]);
            let digest = u32::from_le_bytes(pdu[header..header + 4].try_into().unwrap());
            scene.expect_termination(FatalErrorStatus::HEADER_DIGEST_ERROR, digest, &pdu[..header]);
        }
        Answer::Hangup => scene.expect_end(),
        Answer::Status(code) => {
            let cqe = scene.host.response();
            assert_eq!((cqe.cid.get(), cqe.status().code()), (CID, code));
            scene.goes_on(row.stage);
        }
        Answer::Accepted => {
            if row.stage == Stage::Fresh {
                let Got::Pdu(response) = scene.host.next(PATIENCE) else { panic!("no ICResp") };
                assert_eq!((response[0], response[11]), (PduType::IC_RESP.0, 0), "no digest was asked for");
            } else {
                assert!(scene.host.response().status().is_success());
            }
            scene.goes_on(row.stage);
        }
    }
}

/// Runs what a hostile host does while a well-behaved one works.
fn beside_a_checker(test: impl FnOnce(&Server)) {
    let server = Place::new().serve(&config("64MiB"));
    let checker = Checker::start(server.address(), nqn(0));
    test(&server);
    let phases = checker.stop();
    assert!(phases[0].max < Duration::from_secs(5), "{phases:?}");
    server.stop();
}

#[test]
fn every_violation_gets_its_answer_and_disturbs_nobody() {
    beside_a_checker(|server| {
        let mut wrong = Vec::new();
        for row in ROWS {
            for piece in [usize::MAX, 5] {
                if std::panic::catch_unwind(|| run(server.address(), row, piece)).is_err() {
                    wrong.push(format!("{} ({}), in pieces of {piece}", row.name, row.section));
                }
            }
        }
        assert!(wrong.is_empty(), "wrong answers to:\n{}", wrong.join("\n"));
    });
}

#[test]
fn data_after_the_end_of_its_transfer_is_terminated() {
    beside_a_checker(|server| {
        for digests in [(false, false), (true, true)] {
            let scene = Scene::new(server.address(), Stage::Granted, digests);
            let whole = scene.base(Base::H2c(0, GRANT, true), digests);
            scene.host.send(&whole);
            assert!(scene.host.response().status().is_success());
            scene.host.send(&whole);
            scene.expect_termination(FatalErrorStatus::INVALID_HEADER_FIELD, 10, &whole[..24]);
        }
        // Twice the same part, which is an overlap.
        let scene = Scene::new(server.address(), Stage::Granted, (false, false));
        let part = scene.base(Base::H2c(0, 4096, false), (false, false));
        scene.host.send(&part);
        scene.host.send(&part);
        scene.expect_termination(FatalErrorStatus::SEQUENCE_ERROR, 0, &part[..24]);
    });
}

/// What is cut: at which stage, and what of it.
const CUTS: [(Stage, Digests, Base); 6] = [
    (Stage::Fresh, (false, false), Base::IcReq),
    (Stage::Open, (true, true), Base::Connect),
    (Stage::Io, (false, false), Base::Flush),
    (Stage::Io, (true, true), Base::Write),
    (Stage::Granted, (false, true), Base::H2c(0, GRANT, true)),
    (Stage::Io, (false, false), Base::Term),
];

#[test]
fn a_pdu_that_is_cut_off_is_not_answered() {
    beside_a_checker(|server| {
        for (stage, digests, base) in CUTS {
            let len = Scene::new(server.address(), stage, digests).base(base, digests).len();
            for at in (0..len).filter(|at| *at < 32 || at % 29 == 0 || at + 8 > len) {
                let scene = Scene::new(server.address(), stage, digests);
                scene.host.send(&scene.base(base, digests)[..at]);
                if at % 2 == 0 {
                    scene.host.socket().shutdown(Shutdown::Write).unwrap();
                    // An answer would be to a command that was never complete.
                    scene.expect_end();
                } else {
                    scene.host.reset();
                }
            }
        }
    });
}

#[test]
fn more_bytes_behind_a_fatal_error_do_not_hide_the_answer() {
    beside_a_checker(|server| {
        let scene = Scene::new(server.address(), Stage::Io, (false, false));
        let mut bad = scene.base(Base::Flush, (false, false));
        bad[0] = 8;
        let mut all = bad.clone();
        all.extend(std::iter::repeat_n(0xaa, 1 << 20));
        scene.host.send(&all);
        scene.expect_termination(FatalErrorStatus::INVALID_HEADER_FIELD, 0, &bad[..8]);
    });
}

#[test]
fn a_command_identifier_in_use_gets_an_answer_each() {
    beside_a_checker(|server| {
        let scene = Scene::new(server.address(), Stage::Io, (false, false));
        let flush = scene.base(Base::Flush, (false, false));
        let read = scene.base(Base::Read, (false, false));
        scene.host.send(&[&flush[..], &read, &flush, &read].concat());
        let mut answers = 0;
        while answers < 4 {
            match scene.host.next(PATIENCE) {
                Got::Pdu(pdu) if pdu[0] == PduType::CAPSULE_RESP.0 => {
                    let cqe = CapsuleRespPdu::read_from_prefix(&pdu).unwrap().0.cqe;
                    assert_eq!(cqe.cid.get(), CID);
                    assert!(cqe.status().is_success() || cqe.status().code() == StatusCode::CID_CONFLICT);
                    answers += 1;
                }
                Got::Pdu(pdu) => assert_eq!(pdu[0], PduType::C2H_DATA.0),
                other => panic!("{other:?}"),
            }
        }
    });
}

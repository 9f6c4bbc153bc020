//! A peer that goes wrong: the I/O ends with a clear status, the connection with a reason, no buffer is lost.

use super::peer::Fault;
use super::*;
use crate::nvme::tcp::{FatalError, FatalErrorStatus, field};

/// Runs three I/Os, of which the one of `op` meets the fault; returns their statuses and the end of the queue.
fn with_fault(fault: Fault, op: IoOp, len: usize, options: Options) -> ([IoStatus; 3], Option<Ended>, u32) {
    let peer = Peer::start(Config { fault, in_capsule: 0, ..Config::default() });
    let result = Rc::new(Cell::new(None));
    let there = result.clone();
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options).await;
        let statuses = Rc::new(Cell::new([None; 3]));
        let waiter = reactor.current_task();
        for task in 0..3 {
            let (here, volume, statuses) = (reactor.clone(), connected.volume.clone(), statuses.clone());
            reactor.spawn("io", async move {
                let data = if op == IoOp::Read { Vec::new() } else { pattern(len, task as u8) };
                let ask = Ask { op, offset: 0, len: len as u64, pieces: &[len], data: &data };
                let (status, _) = run(&here, &volume, ask).await;
                let mut all = statuses.get();
                all[task] = Some(status);
                statuses.set(all);
                here.wake(waiter);
            });
        }
        let all = std::future::poll_fn(|_| {
            let all = statuses.get();
            if let [Some(a), Some(b), Some(c)] = all {
                std::task::Poll::Ready([a, b, c])
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
        let ended = connected.volume.queue().ended();
        connected.volume.queue().close().await;
        if ended.is_some() {
            // The peer reads the reason before its thread ends.
            while peer.seen.ended.load(Ordering::SeqCst) == 0 {
                reactor.sleep(1_000_000).await;
            }
            let (status, _) = read(&reactor, &connected.volume, 0, &[512]).await;
            assert_eq!(status, IoStatus::DeviceError, "later I/Os end at once");
        }
        there.set(Some((all, ended, peer.seen.terminated.load(Ordering::SeqCst))));
    });
    result.take().unwrap()
}

const LOST: [IoStatus; 3] = [IoStatus::DeviceError; 3];

fn digests() -> Options {
    let mut options = options();
    (options.header_digest, options.data_digest) = (true, true);
    options
}

#[test]
fn a_peer_that_breaks_the_protocol_is_told_and_left() {
    let fes = |status: FatalErrorStatus| FatalError::status(status);
    for (fault, op, error) in [
        (Fault::UnknownCid, IoOp::Read, FatalError::invalid_field(field::CCCID)),
        (Fault::DataBeyond, IoOp::Read, fes(FatalErrorStatus::DATA_OUT_OF_RANGE)),
        (Fault::SuccessFlag, IoOp::Read, FatalError::invalid_field(field::FLAGS)),
        (Fault::Sqhd, IoOp::Read, FatalError::invalid_field(16)),
        (Fault::R2tBeyond, IoOp::Write, fes(FatalErrorStatus::DATA_OUT_OF_RANGE)),
        (Fault::R2tGap, IoOp::Write, FatalError::invalid_field(field::DATAO)),
    ] {
        let (statuses, ended, told) = with_fault(fault, op, 65_536, options());
        assert_eq!(statuses, LOST, "{fault:?}");
        assert_eq!(ended, Some(Ended::Protocol(error)), "{fault:?}");
        let FatalError::Terminate { status, .. } = error else { unreachable!() };
        assert_eq!(told, u32::from(status.0), "{fault:?}");
    }
}

#[test]
fn a_second_answer_to_a_command_ends_the_connection() {
    let (statuses, ended, told) = with_fault(Fault::AnsweredTwice, IoOp::Read, 4096, options());
    assert_eq!(statuses[0], IoStatus::Success, "the first answer counts");
    assert_eq!(statuses[1..], LOST[1..]);
    assert_eq!(ended, Some(Ended::Protocol(FatalError::invalid_field(field::CCCID))));
    assert_eq!(told, u32::from(FatalErrorStatus::INVALID_HEADER_FIELD.0));
}

#[test]
fn more_r2ts_than_allowed_end_the_connection() {
    let mut options = options();
    options.max_r2t = 2;
    let peer =
        Peer::start(Config { fault: Fault::TooManyR2ts, in_capsule: 0, r2t_len: 16_384, r2ts: 2, ..Config::default() });
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options).await;
        let data = pattern(65_536, 3);
        assert_eq!(write(&reactor, &connected.volume, 0, &[65_536], &data).await, IoStatus::DeviceError);
        let limit = FatalError::status(FatalErrorStatus::LIMIT_EXCEEDED);
        assert_eq!(connected.volume.queue().ended(), Some(Ended::Protocol(limit)));
    });
}

#[test]
fn damage_is_noticed() {
    // Data: the command fails, the connection stays (TCP §3.5).
    for len in [4096, 262_144] {
        let (statuses, ended, _) = with_fault(Fault::DamagedData, IoOp::Read, len, digests());
        assert_eq!(statuses, [IoStatus::DeviceError, IoStatus::Success, IoStatus::Success], "{len}");
        assert_eq!(ended, None);
    }
    // Without digests nobody can notice: the test can fail.
    let (statuses, ended, _) = with_fault(Fault::None, IoOp::Read, 4096, digests());
    assert_eq!((statuses, ended), ([IoStatus::Success; 3], None));
    let (statuses, ended, told) = with_fault(Fault::DamagedHeader, IoOp::Read, 4096, digests());
    assert_eq!(statuses, LOST);
    let Some(Ended::Protocol(FatalError::Terminate { status, .. })) = ended else { panic!("{ended:?}") };
    assert_eq!((status, told), (FatalErrorStatus::HEADER_DIGEST_ERROR, 3));
}

#[test]
fn half_of_the_data_is_no_success() {
    for len in [4096, 262_144] {
        let (statuses, ended, _) = with_fault(Fault::ShortData, IoOp::Read, len, options());
        assert_eq!(statuses, [IoStatus::DeviceError, IoStatus::Success, IoStatus::Success], "{len}");
        assert_eq!(ended, None);
    }
}

#[test]
fn a_lost_connection_ends_every_io() {
    use crate::net::StreamError;
    for (fault, len) in [(Fault::ClosesInData, 4096), (Fault::ClosesInData, 1 << 20), (Fault::Terminates, 4096)] {
        let (statuses, ended, _) = with_fault(fault, IoOp::Read, len, options());
        assert_eq!(statuses, LOST, "{fault:?} {len}");
        match (fault, ended) {
            (Fault::ClosesInData, Some(Ended::Stream(StreamError::Closed | StreamError::Os(libc::ECONNRESET)))) => {}
            (Fault::Terminates, Some(Ended::Terminated { status, .. })) => {
                assert_eq!(status, FatalErrorStatus::LIMIT_EXCEEDED);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_overdue_command_ends_the_connection() {
    let mut options = options();
    options.command_timeout_ns = 1_000_000_000;
    let (statuses, ended, _) = with_fault(Fault::Silence, IoOp::Read, 4096, options);
    assert_eq!(statuses[0], IoStatus::DeviceError);
    assert_eq!(ended, Some(Ended::Timeout { opcode: 2 }));
}

#[test]
fn a_write_that_ends_before_its_data_was_asked_for_gives_its_buffer_back() {
    let peer = Peer::start(Config { fault: Fault::WriteEndsEarly, in_capsule: 0, ..Config::default() });
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options()).await;
        let data = pattern(65_536, 3);
        assert_eq!(write(&reactor, &connected.volume, 0, &[65_536], &data).await, IoStatus::NoSpace);
        assert_eq!(connected.volume.queue().ended(), None);
        assert!(read(&reactor, &connected.volume, 0, &[512]).await.0 == IoStatus::Success);
        connected.end().await;
    });
}

#[test]
fn closing_ends_ios_in_flight_as_gone() {
    let peer = Peer::start(Config { fault: Fault::Silence, ..Config::default() });
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options()).await;
        let (here, volume) = (reactor.clone(), connected.volume.clone());
        let status = Rc::new(Cell::new(None));
        let there = status.clone();
        reactor.spawn("io", async move { there.set(Some(read(&here, &volume, 0, &[4096]).await.0)) });
        while connected.volume.queue().in_flight() == 0 {
            reactor.yield_now().await;
        }
        connected.volume.queue().close().await;
        while status.get().is_none() {
            reactor.yield_now().await;
        }
        assert_eq!(status.get(), Some(IoStatus::Gone));
        assert_eq!(read(&reactor, &connected.volume, 0, &[512]).await.0, IoStatus::Gone);
        connected.controller.shut_down().await.unwrap();
    });
}

#[test]
fn a_dropped_wait_leaves_nothing_behind() {
    let peer = Peer::start(Config { fault: Fault::Silence, ..Config::default() });
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options()).await;
        let waited = super::super::queue::within(&reactor, 10_000_000, async {
            read(&reactor, &connected.volume, 0, &[4096]).await
        })
        .await;
        assert!(waited.is_none());
        assert_eq!(connected.volume.queue().in_flight(), 1, "the command is still out");
        connected.end().await;
    });
}

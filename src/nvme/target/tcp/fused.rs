//! Fused Compare and Write: two commands, one step for all writers (NVM §2.1.3).
//!
//! The second command's slot runs both; the first one's slot holds its command and data until then.

use std::rc::Rc;

use super::conn::{Command, Conn, Slot};
use super::slot::{Failure, data_in, fetch, finish, lookup, refuse, respond};
use crate::nvme::spec::StatusCode;
use crate::nvme::target::{DataPlace, Fault, check_fused_pair};
use crate::reactor::io::{Io, IoOp};

/// Carries out `first` and `second` and answers both, the first one first. Returns the number of the batch with the last answer.
pub async fn execute(conn: &Rc<Conn>, slot: &Slot, first: &Rc<Slot>, io: Io) -> (Io, u64) {
    if !first.take_held() {
        return (io, 0);
    }
    let (compare, second) = (first.command(), slot.command());
    let (io, failure) = run_pair(conn, slot, &second, first, &compare, io).await;
    let (first_fault, second_fault) = match failure {
        Ok(()) => (None, None),
        Err(Failure::Gone) => {
            conn.release(first, 0);
            return (io, 0);
        }
        // Only the one at fault says what it was; its partner was aborted with it.
        Err(Failure::Fault(fault)) => (Some(fault), Some(Fault::new(StatusCode::ABORTED_FAILED_FUSED))),
    };
    let number = match first_fault {
        None => respond(conn, compare.sqe.cid.get()).await,
        Some(fault) => refuse(conn, &compare.sqe, fault).await,
    };
    conn.release(first, number);
    let number = match second_fault {
        None => respond(conn, second.sqe.cid.get()).await,
        Some(fault) => refuse(conn, &second.sqe, fault).await,
    };
    (io, number)
}

async fn run_pair(
    conn: &Rc<Conn>,
    slot: &Slot,
    second: &Command,
    first: &Slot,
    compare: &Command,
    mut io: Io,
) -> (Io, Result<(), Failure>) {
    let decoded = lookup(conn, first).and_then(|(compare_request, ns)| {
        let (write_request, _) = lookup(conn, slot)?;
        check_fused_pair(&compare_request, &write_request, ns.info())?;
        Ok((compare_request, write_request, ns))
    });
    let (compare_request, write_request, ns) = match decoded {
        Ok(pair) => pair,
        Err(fault) => return (io, Err(fault.into())),
    };
    // Both halves at once: pairs that each hold one half and wait for the other would never end.
    let len = write_request.data_len as usize;
    let wanted = [&compare_request, &write_request].into_iter().filter(|r| r.place == DataPlace::HostBuffer).count();
    let reserved = wanted * len;
    let mut spare = None;
    if reserved > 0 {
        conn.tx.reserve(reserved).await;
        spare = Some(conn.reactor().buffer(reserved).await);
    }
    let mut failure = None;
    for (slot, command, request) in [(first, compare, &compare_request), (slot, second, &write_request)] {
        let cid = command.sqe.cid.get();
        let data = match spare.as_mut().filter(|_| request.place == DataPlace::HostBuffer) {
            Some(both) => {
                let half = both.split_to(len);
                fetch(conn, slot, cid, half).await
            }
            None => data_in(conn, slot, request, cid).await,
        };
        match data {
            Ok(data) => io.data.push_buf(data),
            Err(why) => {
                failure = Some(why);
                break;
            }
        }
    }
    let result = match failure {
        Some(why) => Err(why),
        None => {
            let (offset, len) = ns.bytes(write_request.lba, u64::from(write_request.blocks));
            io.prepare(IoOp::CompareAndWrite, offset, len);
            io.fua = write_request.fua;
            let result;
            (io, result) = finish(slot, &ns, io).await;
            result
        }
    };
    io.data.clear();
    conn.tx.unreserve(reserved);
    (io, result)
}

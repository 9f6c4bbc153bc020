//! A command slot of an admin queue: moves data, has the home decide, answers.

use std::rc::Rc;

use super::conn::{Command, Conn, Slot};
use super::home::{self, AdminAnswer, HOME};
use super::local::Local;
use crate::nvme::spec::{AdminOpcode, Cqe, Direction, LogId, Sqe, StatusCode};
use crate::nvme::target::{Fault, SmartCounters, admin_transfer};
use crate::nvme::tcp::{DIGEST_LEN, DataDigest, MAX_PREFIX_LEN};
use crate::reactor::Reactor;

/// The body of a slot's task: command after command until the connection has ended.
pub async fn run(conn: Rc<Conn>, slot: Rc<Slot>) {
    while slot.next(&conn).await {
        let number = execute(&conn, &slot, &slot.command()).await;
        conn.release(&slot, number);
    }
}

async fn execute(conn: &Rc<Conn>, slot: &Slot, command: &Command) -> u64 {
    let sqe = command.sqe;
    let controller = conn.queue().expect("slots run after Connect").controller;
    let capsule_len = slot.data.borrow().as_ref().map_or(0, |data| data.len() as u32);
    let transfer = if command.damaged {
        Err(Fault::retry(StatusCode::TRANSIENT_TRANSPORT_ERROR))
    } else {
        admin_transfer(&sqe, capsule_len)
    };
    let transfer = match transfer {
        Ok(transfer) => transfer,
        Err(fault) => {
            let cqe = at_home(conn, move |home, _| home.admin_fault(controller, &sqe, fault)).await;
            return answer(conn, &sqe, cqe).await;
        }
    };
    let out_len = if transfer.direction == Direction::ControllerToHost { transfer.len as usize } else { 0 };
    let counters = counters(conn, &sqe).await;
    let decided = at_home(conn, move |home, reactor| home.admin(reactor, controller, &sqe, out_len, counters)).await;
    match decided {
        None => answer(conn, &sqe, None).await,
        Some(AdminAnswer::Parked) => 0,
        Some(AdminAnswer::Done(cqe, data)) => send(conn, cqe, &data).await,
        Some(AdminAnswer::Abort { place, cid }) => {
            let aborted = match place {
                Some((reactor, connection)) => abort(conn.reactor(), reactor, connection, cid).await,
                None => false,
            };
            let cqe = at_home(conn, move |home, _| home.abort_done(controller, &sqe, aborted)).await;
            answer(conn, &sqe, cqe).await
        }
        Some(AdminAnswer::Quiesce(cqe, reason)) => {
            let number = conn.respond(cqe).await;
            at_home(conn, move |home, reactor| home.quiesce(reactor, controller, reason)).await;
            number
        }
    }
}

/// Runs `f` at the home; `None` if there is none any more.
async fn at_home<R: Send + 'static>(
    conn: &Conn,
    f: impl FnOnce(&home::Home, &Rc<Reactor>) -> R + Send + 'static,
) -> Option<R> {
    conn.reactor().call(HOME, move |reactor| home::of(reactor).map(|home| f(&home, reactor))).await
}

async fn answer(conn: &Conn, sqe: &Sqe, cqe: Option<Cqe>) -> u64 {
    conn.respond(cqe.unwrap_or_else(|| Cqe::new(sqe.cid.get(), StatusCode::INTERNAL_ERROR.retry()))).await
}

/// The counters of the subsystem from all reactors, for the log page that shows them.
async fn counters(conn: &Conn, sqe: &Sqe) -> SmartCounters {
    let mut sum = SmartCounters::default();
    if sqe.admin_opcode() != AdminOpcode::GET_LOG_PAGE || sqe.cdw10.get() as u8 != LogId::SMART.0 {
        return sum;
    }
    for reactor in 0..conn.reactor().reactors() {
        let nqn = conn.queue().map(|q| q.nqn.clone()).unwrap_or_default();
        sum = conn
            .reactor()
            .call(reactor, move |there| {
                if let Some(local) = Local::of(there) {
                    local.add_counters(&nqn, &mut sum);
                }
                sum
            })
            .await;
    }
    sum
}

/// Asks the device for an early end of a command on another queue.
async fn abort(reactor: &Reactor, to: u16, connection: u64, cid: u16) -> bool {
    reactor
        .call(to, move |there| {
            Local::of(there).and_then(|local| local.connection(connection)).is_some_and(|conn| conn.abort(cid))
        })
        .await
}

/// Sends the data of a command and its completion.
async fn send(conn: &Conn, mut cqe: Cqe, data: &[u8]) -> u64 {
    if data.is_empty() || !cqe.status().is_success() {
        return conn.respond(cqe).await;
    }
    conn.tx.reserve(data.len()).await;
    let mut buf = conn.reactor().buffer(data.len()).await;
    buf.copy_from_slice(data);
    let framing = *conn.framing();
    let digest = framing.data_digest().then(|| {
        let mut digest = DataDigest::new();
        digest.update(data);
        digest.to_bytes()
    });
    let cid = cqe.cid.get();
    conn.tx
        .push(3, 2 * MAX_PREFIX_LEN + DIGEST_LEN, |batch| {
            batch.push_head(|out| framing.c2h_data(cid, 0, data.len() as u32, true, false, out));
            batch.push_buf(buf);
            if let Some(digest) = digest {
                batch.push_head(|out| {
                    out[..DIGEST_LEN].copy_from_slice(&digest);
                    DIGEST_LEN
                });
            }
            conn.stamp(&mut cqe);
            batch.push_head(|out| framing.capsule_resp(&cqe, out));
        })
        .await
        .unwrap_or(0)
}

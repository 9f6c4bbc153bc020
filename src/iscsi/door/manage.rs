//! Requests that are no commands: NOP-Out, Text, task management, Logout.

use std::rc::Rc;
use std::task::Poll;

use super::conn::{Conn, digest_of, push_header, push_suffix};
use super::home::{self, Aborts, HOME};
use super::live::{Live, LunView};
use super::slot::Pieces;
use crate::iscsi::{
    Asker, Header, LogoutOutcome, LogoutWork, PREFIX_MAX, SUFFIX_MAX, TaskId, TaskOutcome, TaskWork, TextRequest,
};
use crate::scsi::UnitAttention;
use crate::scsi::spec::lun_decode;

/// Answers a NOP-Out with the data that it brought.
pub async fn nop(live: &Rc<Live>, conn: &Rc<Conn>, task: TaskId, pieces: Pieces) {
    let framing = conn.framing();
    let data = pieces.head;
    if let Some(data) = &data {
        conn.tx.reserve(data.len()).await;
    }
    let mut data = data;
    let push = conn.tx.push(3, PREFIX_MAX + SUFFIX_MAX, |batch| {
        let Some((header, len)) = live.engine().nop_response(task) else { return };
        push_header(batch, &framing, &header);
        if let Some(mut data) = data.take().filter(|_| len > 0) {
            data.truncate(len as usize);
            let (len, digest) = (data.len() as u32, digest_of(&framing, [&data[..]]));
            batch.push_buf(data);
            push_suffix(batch, &framing, len, digest);
        }
    });
    // Without a connection there is nobody to answer.
    let _ = push.await;
    if let Some(unsent) = data {
        conn.tx.drop_reserved(unsent);
    }
}

/// Answers a Text Request.
pub async fn text(live: &Rc<Live>, conn: &Rc<Conn>, task: TaskId, pieces: Pieces) {
    let Some((_, number)) = conn.session() else { return };
    let Some(header) = live.engine().header(task).copied() else { return };
    let request = TextRequest::read(&header);
    let data = pieces.head.as_deref().unwrap_or_default();
    let local_address = conn.local_address().to_string();
    let asker = Asker {
        kind: live.kind(),
        initiator: live.initiator(),
        target: live.target(),
        listener: conn.local.listener(conn.listener),
        local: &local_address,
    };
    let mut params = live.engine_params(*number);
    let reply = conn.exchange().request(&conn.local.book(), &asker, &mut params, &request, data);
    if let Some(own) = live.engine().params_mut(*number) {
        *own = params;
    }
    drop(pieces);
    let framing = conn.framing();
    match reply {
        Ok(reply) => {
            let len = reply.text.len();
            let mut text = None;
            if len > 0 {
                conn.tx.reserve(len).await;
                let mut buf = live.reactor().buffer(len).await;
                buf.copy_from_slice(&reply.text);
                text = Some(buf);
            }
            let push = conn.tx.push(3, PREFIX_MAX + SUFFIX_MAX, |batch| {
                let Some(header) = live.engine().text_response(task, &reply) else { return };
                push_header(batch, &framing, &header);
                if let Some(text) = text.take() {
                    let digest = digest_of(&framing, [&text[..]]);
                    batch.push_buf(text);
                    push_suffix(batch, &framing, len as u32, digest);
                }
            });
            // Without a connection there is nobody to answer.
            let _ = push.await;
            if let Some(unsent) = text {
                conn.tx.drop_reserved(unsent);
            }
        }
        Err(reason) => {
            let reject = || {
                let (header, rejected) = live.engine().reject_task(task, reason)?;
                Some((header, super::conn::ShortData::new(&[&rejected])))
            };
            let _ = conn.send_short(reject).await;
        }
    }
}

/// Carries out a task management request, and answers it when all that it affects has ended.
pub async fn task_management(live: &Rc<Live>, conn: &Rc<Conn>, task: TaskId) {
    let slot = live.slot(task);
    let has = |lun| lun_decode(lun).is_some_and(|lun| live.lun(lun).is_some());
    let work = live.engine().task_management(task, has);
    if let Some(work) = work {
        let mut affected: Vec<TaskId> = live.engine().affected(task).collect();
        affected.iter().for_each(|task| live.abort(*task));
        // A unit that is reset may have more than one number in the session. Commands behind the request have not begun yet.
        for view in live.luns() {
            let is_reset = match work {
                TaskWork::LunReset(lun) => {
                    lun_decode(lun).and_then(|lun| live.lun(lun)).is_some_and(|of| of.key == view.key)
                }
                TaskWork::WarmReset | TaskWork::ColdReset => true,
                _ => false,
            };
            if is_reset {
                affected.extend(live.abort_unit(view.key, false, None));
            }
        }
        let mut information = [0; 3];
        let outcome = carry_out(live, work, &affected, &mut information).await;
        live.engine().task_done(task, outcome);
        answer(live, conn, task, |live| live.engine().task_response(task, information)).await;
        if work == TaskWork::ColdReset
            && let Some(target) = live.target().map(str::to_owned)
        {
            // When the answer is on its way (RFC 7143 §11.5.1). The slot may have its next command already: nothing is waited for here.
            let reactor = live.reactor().clone();
            live.reactor().spawn("iscsi cold reset", async move {
                reactor.call_task(HOME, move |home| home::close_sessions(home, target)).await;
            });
        }
    }
    live.managed(&slot);
}

async fn carry_out(live: &Rc<Live>, work: TaskWork, affected: &[TaskId], information: &mut [u8; 3]) -> TaskOutcome {
    let (reactor, tsih) = (live.reactor(), live.tsih());
    let find = |lun: [u8; 8]| lun_decode(lun).and_then(|lun| live.lun(lun));
    let with_unit = |lun: [u8; 8]| find(lun).map(|view: Rc<LunView>| view.key);
    match work {
        TaskWork::Answer(outcome) => outcome,
        TaskWork::AbortTask(target) => {
            live.abort(target);
            TaskOutcome::COMPLETE
        }
        TaskWork::AbortTaskSet(lun) => match find(lun) {
            Some(_) => TaskOutcome::COMPLETE,
            None => TaskOutcome::NO_LUN,
        },
        TaskWork::ClearTaskSet(lun) => match with_unit(lun) {
            Some(key) => {
                let aborts = Aborts { by: tsih, reset: None };
                reactor.call_task(HOME, move |home| home::abort_unit(home, key, aborts)).await;
                TaskOutcome::COMPLETE
            }
            None => TaskOutcome::NO_LUN,
        },
        // No unit has NORMACA.
        TaskWork::ClearAca(_) => TaskOutcome::REJECTED,
        TaskWork::LunReset(lun) => match with_unit(lun) {
            Some(key) => {
                live.until_ended(affected).await;
                let aborts = Aborts { by: tsih, reset: Some(UnitAttention::DeviceReset) };
                reactor.call_task(HOME, move |home| home::abort_unit(home, key, aborts)).await;
                TaskOutcome::COMPLETE
            }
            None => TaskOutcome::NO_LUN,
        },
        TaskWork::WarmReset | TaskWork::ColdReset => {
            live.until_ended(affected).await;
            for key in live.luns().iter().map(|view| view.key) {
                let aborts = Aborts { by: tsih, reset: Some(UnitAttention::PowerOn) };
                reactor.call_task(HOME, move |home| home::abort_unit(home, key, aborts)).await;
            }
            TaskOutcome::COMPLETE
        }
        TaskWork::NexusReset => {
            live.until_ended(affected).await;
            reactor.call(HOME, move |home| home::of(home).map(|service| service.nexus_lost(home, tsih))).await;
            TaskOutcome::COMPLETE
        }
        TaskWork::QueryAsyncEvent(lun) => match with_unit(lun) {
            Some(key) => {
                let waits = reactor.call(HOME, move |home| home::of(home).and_then(|h| h.waiting(tsih, key))).await;
                match waits {
                    Some(sense) => {
                        // Sense key, code and qualifier (SAM-5, QUERY ASYNCHRONOUS EVENT).
                        let [code, qualifier] = sense.code.0.to_be_bytes();
                        *information = [sense.key.0, code, qualifier];
                        TaskOutcome::SUCCEEDED
                    }
                    None => TaskOutcome::COMPLETE,
                }
            }
            None => TaskOutcome::NO_LUN,
        },
    }
}

/// Sends a response as soon as the engine has it.
async fn answer(live: &Rc<Live>, conn: &Rc<Conn>, task: TaskId, make: impl Fn(&Live) -> Option<Header>) {
    loop {
        let mut sent = false;
        let pushed = conn.send_header(|| make(live).inspect(|_| sent = true)).await;
        if sent || pushed.is_err() || live.engine().header(task).is_none() {
            return;
        }
        loop {
            let ping = live.engine().next_ping(live.reactor().clock().now());
            let Some((number, header)) = ping else { break };
            if let Some(other) = live.conn(number) {
                let _ = other.send_header(|| Some(header)).await;
            }
        }
        // Woken by the ends of others, and by what is acknowledged.
        let mut waited = false;
        std::future::poll_fn(|_| match std::mem::replace(&mut waited, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

/// Logs a connection or the session out.
pub async fn logout(live: &Rc<Live>, conn: &Rc<Conn>, task: TaskId) {
    let slot = live.slot(task);
    let work = live.engine().logout(task);
    if let Some(work) = work {
        let affected: Vec<TaskId> = live.engine().affected(task).collect();
        affected.iter().for_each(|task| live.abort(*task));
        let outcome = match work {
            LogoutWork::Answer(outcome) => outcome,
            LogoutWork::CloseConnection(_) | LogoutWork::CloseSession => LogoutOutcome::SUCCESS,
        };
        let closing: Vec<Rc<Conn>> = match work {
            LogoutWork::Answer(_) => Vec::new(),
            LogoutWork::CloseConnection(number) => live.conn(number).into_iter().collect(),
            LogoutWork::CloseSession => live.conns().into_iter().map(|(_, conn)| conn).collect(),
        };
        answer(live, conn, task, |live| live.engine().logout_response(task, outcome)).await;
        if !closing.is_empty() {
            tracing::info!("{}: initiator {} logs out", conn.peer(), live.initiator());
        }
        closing.iter().for_each(|conn| conn.close_after_answers());
    }
    live.managed(&slot);
}

//! Task management and logout: what they affect, and their answer once that has ended (RFC 7143 §4.2.3, §11.5, §11.14; RFC 7144 §6).

use zerocopy::FromZeros;

use super::*;

/// What the caller does for a task management request. Own tasks of the session that it affects are aborted already
/// ([`Session::affected`]): end each. Then, and when the work is done, say so with [`Session::task_done`].
///
/// LUNs are compared as they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum TaskWork {
    /// Nothing: this is the answer.
    Answer(TaskOutcome),
    /// Abort this task and end it.
    AbortTask(TaskId),
    /// Abort the session's tasks of the LUN.
    AbortTaskSet([u8; 8]),
    /// Abort the tasks of all sessions of the LUN.
    ClearTaskSet([u8; 8]),
    /// Clear the auto contingent allegiance of the LUN.
    ClearAca([u8; 8]),
    /// Reset the LUN: abort the tasks of all sessions.
    LunReset([u8; 8]),
    /// Reset all LUNs of the target.
    WarmReset,
    /// Reset all LUNs of the target; when the answer is sent, close every connection of every session of the target.
    ColdReset,
    /// Abort the session's tasks of all LUNs and tell them of a lost nexus.
    NexusReset,
    /// Look for a unit attention or a deferred error of the LUN; the answer is [`TaskOutcome::SUCCEEDED`] if there is one, with
    /// its additional response information.
    QueryAsyncEvent([u8; 8]),
}

/// What the caller does for a Logout Request. Tasks that end with it are aborted already: end each, then send
/// [`Session::logout_response`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum LogoutWork {
    /// Nothing: this is the answer.
    Answer(LogoutOutcome),
    /// Close this connection once the answer is sent.
    CloseConnection(ConnId),
    /// Close all connections of the session once the answer is sent.
    CloseSession,
}

impl Session {
    /// Begins a task management request that [`Session::next_ready`] has brought; `has` says whether there is a logical unit of this
    /// LUN: tasks of one that is there no more are left to end by themselves. `None`: it has ended.
    pub fn task_management(&mut self, task: TaskId, has: impl Fn([u8; 8]) -> bool) -> Option<TaskWork> {
        let slot = self.slot_ref(task).filter(|slot| slot.kind == Kind::Task)?;
        let conn = slot.conn;
        let request = TaskRequest::read(&slot.header);
        let level = self.params(conn).map_or(1, |params| params.protocol_level);
        let lun = request.lun;
        let function = request.function();
        // The functions of RFC 7144 are for those who have agreed upon them.
        if function >= TaskFunction::QUERY_TASK && level < 2 {
            return Some(TaskWork::Answer(TaskOutcome::NOT_SUPPORTED));
        }
        let about_lun = [
            TaskFunction::ABORT_TASK_SET,
            TaskFunction::CLEAR_TASK_SET,
            TaskFunction::LOGICAL_UNIT_RESET,
            TaskFunction::QUERY_TASK_SET,
            TaskFunction::QUERY_ASYNC_EVENT,
        ];
        if about_lun.contains(&function) && !has(lun) {
            return Some(TaskWork::Answer(TaskOutcome::NO_LUN));
        }
        let of_lun = |slot: &Slot| slot.scsi().lun == lun;
        let work = match function {
            TaskFunction::ABORT_TASK => self.abort_task(task, &request),
            TaskFunction::ABORT_TASK_SET => {
                self.affect(task, &request, of_lun);
                TaskWork::AbortTaskSet(lun)
            }
            TaskFunction::CLEAR_TASK_SET => {
                self.affect(task, &request, of_lun);
                TaskWork::ClearTaskSet(lun)
            }
            TaskFunction::CLEAR_ACA => TaskWork::ClearAca(lun),
            TaskFunction::LOGICAL_UNIT_RESET => {
                self.affect(task, &request, of_lun);
                TaskWork::LunReset(lun)
            }
            TaskFunction::TARGET_WARM_RESET => {
                self.affect(task, &request, |_| true);
                TaskWork::WarmReset
            }
            TaskFunction::TARGET_COLD_RESET => {
                self.affect(task, &request, |_| true);
                TaskWork::ColdReset
            }
            TaskFunction::TASK_REASSIGN => TaskWork::Answer(match self.find(request.ref_itt.get()) {
                Some(place) if !self.is_scsi(place) => TaskOutcome::REJECTED,
                _ => TaskOutcome::REASSIGN_NOT_SUPPORTED,
            }),
            TaskFunction::QUERY_TASK => TaskWork::Answer(match self.find(request.ref_itt.get()) {
                Some(place) if self.is_scsi(place) => TaskOutcome::SUCCEEDED,
                Some(place) if self.slots[usize::from(place)].kind == Kind::Task => TaskOutcome::REJECTED,
                _ => TaskOutcome::COMPLETE,
            }),
            TaskFunction::QUERY_TASK_SET => {
                let in_set = |slot: &Slot| slot.state == State::Active && slot.kind == Kind::Scsi && of_lun(slot);
                let found = self.slots.iter().any(in_set);
                TaskWork::Answer(if found { TaskOutcome::SUCCEEDED } else { TaskOutcome::COMPLETE })
            }
            TaskFunction::I_T_NEXUS_RESET => {
                self.affect(task, &request, |_| true);
                TaskWork::NexusReset
            }
            TaskFunction::QUERY_ASYNC_EVENT => TaskWork::QueryAsyncEvent(lun),
            _ => TaskWork::Answer(TaskOutcome::NOT_SUPPORTED),
        };
        Some(work)
    }

    fn is_scsi(&self, place: u16) -> bool {
        self.slots[usize::from(place)].kind == Kind::Scsi
    }

    /// Of ABORT TASK for what is no command: a task management request is not aborted by another (RFC 7143 §11.5.1).
    fn outcome_of_other(&self, place: u16) -> TaskOutcome {
        match self.slots[usize::from(place)].kind {
            Kind::Task => TaskOutcome::REJECTED,
            _ => TaskOutcome::NO_TASK,
        }
    }

    /// ABORT TASK (RFC 7143 §11.6.1).
    fn abort_task(&mut self, by: TaskId, request: &TaskRequest) -> TaskWork {
        if let Some(place) = self.find(request.ref_itt.get()) {
            if !self.is_scsi(place) {
                return TaskWork::Answer(self.outcome_of_other(place));
            }
            let slot = &mut self.slots[usize::from(place)];
            slot.aborted = true;
            match slot.state {
                State::Active => {
                    let target = id(place.into(), slot);
                    self.wait_for(by, place);
                    return TaskWork::AbortTask(target);
                }
                State::Held => self.withdraw(place),
                // Its end is when its data is in; it will never be executed.
                State::Receiving | State::Free => {}
            }
            return TaskWork::Answer(TaskOutcome::COMPLETE);
        }
        let cmd_sn = request.ref_cmd_sn.get();
        let expected = serial::within(cmd_sn, self.exp_cmd_sn, self.max_cmd_sn());
        if !expected || !before(cmd_sn, request.cmd_sn.get()) {
            return TaskWork::Answer(TaskOutcome::NO_TASK);
        }
        // The command has not arrived and is not to: its number counts as received.
        let place = self.window_place(cmd_sn);
        if self.window[place] == Pending::Missing {
            self.window[place] = Pending::Void;
        }
        TaskWork::Answer(TaskOutcome::COMPLETE)
    }

    /// Aborts the active tasks that a request is about: those that came before it.
    fn affect(&mut self, by: TaskId, request: &TaskRequest, about: impl Fn(&Slot) -> bool) {
        for place in 0..self.slots.len() as u16 {
            let slot = &mut self.slots[usize::from(place)];
            let earlier = slot.immediate || before(slot.cmd_sn, request.cmd_sn.get());
            if slot.state == State::Active && slot.kind == Kind::Scsi && earlier && about(slot) {
                slot.aborted = true;
                self.wait_for(by, place);
            }
        }
    }

    /// A request waits for the end of a task, which others may wait for too: the answer to each says that it has ended.
    fn wait_for(&mut self, waiter: TaskId, place: u16) {
        let slot = &mut self.slots[usize::from(place)];
        slot.awaited = true;
        let task = id(place.into(), slot);
        if let Some(slot) = self.slot_mut(waiter) {
            slot.awaits.push(task);
        }
    }

    /// The tasks that a task management request or a logout waits for.
    pub fn affected(&self, task: TaskId) -> impl Iterator<Item = TaskId> + '_ {
        self.slot_ref(task).into_iter().flat_map(|slot| slot.awaits.iter().copied())
    }

    /// The caller has done its part of a task management request, with this outcome.
    pub fn task_done(&mut self, task: TaskId, outcome: TaskOutcome) {
        if let Some(slot) = self.slot_mut(task).filter(|slot| slot.kind == Kind::Task) {
            slot.outcome = Some(outcome);
        }
    }

    /// A task management request that can be answered with [`Session::task_response`]: its work is done, its tasks have ended, and if it is
    /// about many tasks, all responses that other connections have sent before have arrived (RFC 7143 §4.2.3.3). Where that must
    /// be asked for, [`Session::next_ping`] has the question.
    pub fn answerable(&mut self) -> Option<TaskId> {
        for place in 0..self.slots.len() as u16 {
            let slot = &self.slots[usize::from(place)];
            let task = id(place.into(), slot);
            if slot.state == State::Active && slot.kind == Kind::Task && self.may_answer(task) {
                return Some(task);
            }
        }
        None
    }

    fn may_answer(&mut self, task: TaskId) -> bool {
        let Some(slot) = self.slot_ref(task).filter(|slot| slot.outcome.is_some() && slot.awaits.is_empty()) else {
            return false;
        };
        let function = TaskRequest::read(&slot.header).function();
        if slot.aborted || matches!(function, TaskFunction::ABORT_TASK | TaskFunction::QUERY_TASK) {
            return true;
        }
        let own = slot.conn;
        if slot.fence.is_none() {
            // On its own connection responses arrive in their order anyway.
            let others = self.connections.iter_mut().enumerate().filter(|(place, _)| *place != own.index());
            let mut fence = Vec::new();
            for (place, connection) in others {
                if let Some(connection) = connection
                    && connection.acknowledged != connection.stat_sn
                {
                    connection.ask = true;
                    fence.push((ConnId(place as u16), connection.stat_sn));
                }
            }
            if let Some(slot) = self.slot_mut(task) {
                slot.fence = Some(fence);
            }
        }
        let fence = self.slot_ref(task).and_then(|slot| slot.fence.as_ref());
        // A connection that is lost acknowledges nothing any more.
        fence.into_iter().flatten().all(|(conn, stat_sn)| {
            let open = self.connection_ref(*conn).filter(|connection| !connection.closing);
            open.is_none_or(|connection| !before(connection.acknowledged, *stat_sn))
        })
    }

    /// The response to a task management request, which ends it. `None` while it is not [`Session::answerable`], or when it was aborted.
    /// `information` is the additional response information of QUERY ASYNCHRONOUS EVENT (RFC 7144 §6.4.2), else zeros.
    pub fn task_response(&mut self, task: TaskId, information: [u8; 3]) -> Option<Header> {
        if !self.may_answer(task) {
            return None;
        }
        let outcome = self.slot_ref(task)?.outcome?;
        let (conn, header) = self.finish(task, Kind::Task)?;
        let mut pdu = TaskResponse::new_zeroed();
        pdu.opcode = Opcode::TASK_RESPONSE.0;
        pdu.flags = FLAG_FINAL;
        pdu.outcome = outcome;
        pdu.reserved8[..3].copy_from_slice(&information);
        pdu.itt = TaskRequest::read(&header).itt;
        pdu.stat_sn.set(self.take_stat_sn(conn));
        let numbers = self.numbers(conn)?;
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        Some(pdu.to_bytes())
    }

    /// Begins a logout that [`Session::next_ready`] has brought. No more requests are taken on what it closes. `None`: it has
    /// ended, or another logout closes its connection.
    pub fn logout(&mut self, task: TaskId) -> Option<LogoutWork> {
        // Two that waited for each other would never end.
        let slot = self.slot_ref(task).filter(|slot| slot.kind == Kind::Logout && !slot.aborted)?;
        let request = LogoutRequest::read(&slot.header);
        let work = match request.reason() {
            LogoutReason::CLOSE_SESSION => {
                let all: Vec<ConnId> = self.connections().collect();
                all.into_iter().for_each(|conn| self.log_out(task, conn));
                LogoutWork::CloseSession
            }
            LogoutReason::CLOSE_CONNECTION => match self.connection(request.cid.get()) {
                Some(conn) => {
                    self.log_out(task, conn);
                    LogoutWork::CloseConnection(conn)
                }
                None => LogoutWork::Answer(LogoutOutcome::NO_CONNECTION),
            },
            _ => LogoutWork::Answer(LogoutOutcome::RECOVERY_NOT_SUPPORTED),
        };
        Some(work)
    }

    /// Closes a connection for a logout, whose own request goes on.
    fn log_out(&mut self, by: TaskId, conn: ConnId) {
        self.close_connection(conn);
        for place in 0..self.slots.len() as u16 {
            let slot = &mut self.slots[usize::from(place)];
            if slot.state != State::Active || slot.conn != conn {
                continue;
            }
            if id(place.into(), slot) == by {
                slot.aborted = false;
            } else {
                self.wait_for(by, place);
            }
        }
    }

    /// The Logout Response, which ends the request: send it on its connection, then close what the logout closes. `None` while tasks
    /// that it waits for have not ended, or when it was aborted.
    pub fn logout_response(&mut self, task: TaskId, outcome: LogoutOutcome) -> Option<Header> {
        self.slot_ref(task).filter(|slot| slot.awaits.is_empty())?;
        let (conn, header) = self.finish(task, Kind::Logout)?;
        let params = *self.params(conn)?;
        let mut pdu = LogoutResponse::new_zeroed();
        pdu.opcode = Opcode::LOGOUT_RESPONSE.0;
        pdu.flags = FLAG_FINAL;
        pdu.outcome = outcome;
        pdu.itt = LogoutRequest::read(&header).itt;
        pdu.stat_sn.set(self.take_stat_sn(conn));
        let numbers = self.numbers(conn)?;
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        pdu.time2wait.set(params.time2wait);
        pdu.time2retain.set(params.time2retain);
        Some(pdu.to_bytes())
    }
}

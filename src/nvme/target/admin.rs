//! Commands of the Admin Queue.

use super::controller::{CcAction, Controller, ControllerHandle};
use super::engine::{Notice, Target, deliver};
use super::fault::{Fault, at};
use super::io::{DataPlace, data_place};
use super::{MAX_TRANSFER_LEN, SmartCounters, feature, identify, log};
use crate::nvme::spec::{
    AbortFields, AdminOpcode, Cqe, Direction, FabricsType, IDENTIFY_LEN, LogId, NoticeInfo, PropertyGetCmd,
    PropertySetCmd, Psdt, Sqe, StatusCode,
};

/// What an admin command needs from outside.
#[derive(Clone, Copy, Debug)]
pub struct AdminContext<'a> {
    /// Now, in the time of the engine.
    pub now_ns: u64,
    /// Counters of the controller's subsystem.
    pub counters: &'a SmartCounters,
}

/// The data transfer of an admin or fabrics command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminTransfer {
    /// Direction; `None` for a command without data.
    pub direction: Direction,
    /// Where the data is.
    pub place: DataPlace,
    /// Bytes, at most [`MAX_TRANSFER_LEN`].
    pub len: u32,
}

/// What to do about an admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send `data_len` bytes of the output, then the completion.
    Done {
        /// Completion; SQHD is the transport's.
        cqe: Cqe,
        /// Bytes of the output.
        data_len: usize,
    },
    /// An Asynchronous Event Request was kept; [`Notice::AsyncEvent`] completes it.
    Parked,
    /// Try to abort the command `cid` of the I/O queue `sqid`, then call [`Target::abort_done`] and send what it returns.
    Abort {
        /// I/O queue.
        sqid: u16,
        /// Command on that queue.
        cid: u16,
    },
    /// Send the completion; then delete the I/O queues of the controller (close their connections once their commands have
    /// ended, reporting each with [`Target::disconnect`]) and call [`Target::quiesced`], once.
    Quiesce {
        /// Completion; SQHD is the transport's.
        cqe: Cqe,
        /// Why.
        reason: Quiesce,
    },
}

/// Why the I/O queues of a controller are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiesce {
    /// Reset: CC.EN was cleared.
    Reset,
    /// Shutdown: CC.SHN was set. What was acknowledged has to be durable before the controller is quiesced.
    Shutdown,
}

/// The data transfer that a command on the Admin Queue describes, for a capsule with `capsule_len` bytes of data.
///
/// # Errors
/// The status to answer with: PSDT is not SGL, a descriptor type that does not fit the direction, an in-capsule
/// descriptor that does not match the capsule, or a transfer beyond [`MAX_TRANSFER_LEN`].
pub fn admin_transfer(sqe: &Sqe, capsule_len: u32) -> Result<AdminTransfer, Fault> {
    if sqe.flags != Psdt::SGL.0 << 6 {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::FLAGS));
    }
    let direction = if sqe.is_fabrics() {
        Direction::of(sqe.fabrics_type().0)
    } else if matches!(sqe.admin_opcode(), AdminOpcode::GET_FEATURES | AdminOpcode::SET_FEATURES) {
        // Their opcodes announce data, which only some features have.
        if sqe.dptr.length.get() == 0 { Direction::None } else { Direction::of(sqe.opcode) }
    } else {
        Direction::of(sqe.opcode)
    };
    let len = sqe.dptr.length.get();
    let to_controller = match direction {
        Direction::HostToController => true,
        Direction::ControllerToHost => false,
        Direction::None if capsule_len == 0 => {
            return Ok(AdminTransfer { direction, place: DataPlace::None, len: 0 });
        }
        Direction::None => {
            return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
        }
        Direction::Bidirectional => return Err(Fault::at(StatusCode::INVALID_OPCODE, at::OPCODE)),
    };
    let place = data_place(sqe, to_controller, capsule_len)?;
    if len > MAX_TRANSFER_LEN {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::SGL_LENGTH));
    }
    Ok(AdminTransfer { direction, place, len })
}

impl Target {
    /// Executes a command of the Admin Queue of a controller.
    ///
    /// `out` has at least as many bytes as [`admin_transfer`] says for a transfer to the host. Data that a command
    /// brings is never needed: no supported command after Connect has any.
    pub fn admin(
        &mut self,
        handle: ControllerHandle,
        sqe: &Sqe,
        context: &AdminContext<'_>,
        out: &mut [u8],
    ) -> Outcome {
        match self.try_admin(handle, sqe, context, out) {
            Ok(outcome) => outcome,
            Err(fault) => Outcome::Done { cqe: self.admin_fault(handle, sqe, fault), data_len: 0 },
        }
    }

    /// The completion of an admin command that failed before it got to [`Target::admin`], for example with the error of
    /// [`admin_transfer`] or a data digest error. Enters it into the error log.
    pub fn admin_fault(&mut self, handle: ControllerHandle, sqe: &Sqe, fault: Fault) -> Cqe {
        let status = match self.controllers.get_mut(&handle) {
            Some(controller) => controller.log_error(&log::admin_report(sqe, fault)),
            None => fault.status,
        };
        Cqe::new(sqe.cid.get(), status)
    }

    fn try_admin(
        &mut self,
        handle: ControllerHandle,
        sqe: &Sqe,
        context: &AdminContext<'_>,
        out: &mut [u8],
    ) -> Result<Outcome, Fault> {
        let Some(controller) = self.controllers.get_mut(&handle) else {
            return Err(Fault::new(StatusCode::INTERNAL_ERROR));
        };
        if controller.is_discovery() && controller.kato_ms == 0 {
            controller.restart_keep_alive(context.now_ns);
        }
        if sqe.is_fabrics() {
            return fabrics(controller, sqe);
        }
        if !controller.csts.ready() || !controller.cc.enabled() {
            return Err(Fault::new(StatusCode::COMMAND_SEQUENCE_ERROR));
        }
        let cid = sqe.cid.get();
        let len = sqe.dptr.length.get() as usize;
        match sqe.admin_opcode() {
            AdminOpcode::IDENTIFY => {
                let Some(out) = identify_buffer(len, out) else {
                    return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
                };
                let subsystem = self.subsystems.get(&controller.subnqn);
                identify::identify(controller, subsystem, &self.params, sqe, out)?;
                Ok(Outcome::Done { cqe: Cqe::with_result(cid, 0), data_len: IDENTIFY_LEN })
            }
            AdminOpcode::GET_LOG_PAGE => {
                let (fields, len) = log::check(sqe)?;
                let Some(out) = out.get_mut(..len) else {
                    return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
                };
                if fields.lid == LogId::DISCOVERY && controller.is_discovery() {
                    let (hostnqn, local) = (controller.hostnqn.clone(), controller.local);
                    self.discovery_log(&hostnqn, local, fields.offset, out)?;
                } else {
                    let namespaces = self.subsystems.get(&controller.subnqn).map(|subsystem| &subsystem.namespaces);
                    log::get_log(controller, &self.params, namespaces, context.counters, &fields, out)?;
                }
                if !fields.rae {
                    self.log_was_read(handle, fields.lid);
                }
                Ok(Outcome::Done { cqe: Cqe::with_result(cid, 0), data_len: len })
            }
            AdminOpcode::GET_FEATURES => {
                let available = len.min(out.len());
                let (value, data_len) = feature::get(controller, &self.params, sqe, &mut out[..available])?;
                Ok(Outcome::Done { cqe: Cqe::with_result(cid, u64::from(value)), data_len })
            }
            AdminOpcode::SET_FEATURES => {
                let value = feature::set(controller, &self.params, sqe, context.now_ns)?;
                Ok(done(sqe, u64::from(value)))
            }
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                if !controller.park(cid) {
                    return Err(Fault::new(StatusCode::ASYNC_EVENT_LIMIT_EXCEEDED));
                }
                deliver(&mut self.notices, handle, controller);
                Ok(Outcome::Parked)
            }
            AdminOpcode::KEEP_ALIVE => {
                controller.restart_keep_alive(context.now_ns);
                Ok(done(sqe, 0))
            }
            AdminOpcode::ABORT => self.abort(handle, sqe),
            _ => Err(Fault::at(StatusCode::INVALID_OPCODE, at::OPCODE)),
        }
    }

    /// Reading a log page acknowledges its event; reading the Changed Namespace List clears it.
    fn log_was_read(&mut self, handle: ControllerHandle, lid: LogId) {
        if let Some(controller) = self.controllers.get_mut(&handle) {
            match lid {
                LogId::CHANGED_NAMESPACES => {
                    controller.changed.clear();
                    controller.acknowledge(NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED);
                }
                LogId::DISCOVERY => controller.acknowledge(NoticeInfo::DISCOVERY_LOG_CHANGED),
                _ => {}
            }
        }
    }

    /// Abort (Base §5.1). Of the Admin Queue only Asynchronous Event Requests are ever outstanding.
    fn abort(&mut self, handle: ControllerHandle, sqe: &Sqe) -> Result<Outcome, Fault> {
        let Some(controller) = self.controllers.get_mut(&handle) else {
            return Err(Fault::new(StatusCode::INTERNAL_ERROR));
        };
        let AbortFields { sqid, cid } = AbortFields::of(sqe);
        if sqid == 0 {
            let position = controller.parked.iter().position(|&parked| parked == cid);
            if let Some(position) = position {
                controller.parked.remove(position);
                let cqe = Cqe::new(cid, StatusCode::ABORT_REQUESTED.retry());
                self.notices.push_back(Notice::AsyncEvent { controller: handle, cqe });
            }
            return Ok(done(sqe, u64::from(position.is_none())));
        }
        if !controller.io_queues.contains(&sqid) {
            return Ok(done(sqe, 1));
        }
        if !controller.begin_abort() {
            return Err(Fault::retry(StatusCode::ABORT_LIMIT_EXCEEDED));
        }
        Ok(Outcome::Abort { sqid, cid })
    }

    /// The attempt of an [`Outcome::Abort`] is over: the completion of the Abort command `sqe`. `aborted` says that the
    /// command will complete, or has completed, with Command Abort Requested.
    pub fn abort_done(&mut self, handle: ControllerHandle, sqe: &Sqe, aborted: bool) -> Cqe {
        if let Some(controller) = self.controllers.get_mut(&handle) {
            controller.aborts = controller.aborts.saturating_sub(1);
        }
        Cqe::with_result(sqe.cid.get(), u64::from(!aborted))
    }
}

/// The output of Identify: the transfer has exactly its length.
fn identify_buffer(len: usize, out: &mut [u8]) -> Option<&mut [u8; IDENTIFY_LEN]> {
    if len != IDENTIFY_LEN {
        return None;
    }
    out.get_mut(..IDENTIFY_LEN)?.try_into().ok()
}

fn done(sqe: &Sqe, result: u64) -> Outcome {
    Outcome::Done { cqe: Cqe::with_result(sqe.cid.get(), result), data_len: 0 }
}

/// Property Get and Property Set (Base §6.5, §6.6); they work on a disabled controller.
fn fabrics(controller: &mut Controller, sqe: &Sqe) -> Result<Outcome, Fault> {
    match sqe.fabrics_type() {
        FabricsType::PROPERTY_GET => {
            let cmd = PropertyGetCmd::of(sqe);
            let wide = property_size(cmd.attrib)?;
            Ok(done(sqe, controller.property(cmd.ofst.get(), wide)?))
        }
        FabricsType::PROPERTY_SET => {
            let cmd = PropertySetCmd::of(sqe);
            let wide = property_size(cmd.attrib)?;
            if cmd.ofst.get() != crate::nvme::spec::Property::CC.0 {
                return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW11));
            }
            if wide {
                return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10));
            }
            let cqe = Cqe::with_result(sqe.cid.get(), 0);
            Ok(match controller.write_cc(cmd.value.get() as u32)? {
                CcAction::None => done(sqe, 0),
                CcAction::Reset => Outcome::Quiesce { cqe, reason: Quiesce::Reset },
                CcAction::Shutdown => Outcome::Quiesce { cqe, reason: Quiesce::Shutdown },
            })
        }
        // The queue exists already (Base §6.3).
        FabricsType::CONNECT => Err(Fault::new(StatusCode::COMMAND_SEQUENCE_ERROR)),
        _ => Err(Fault::at(StatusCode::INVALID_OPCODE, at::NSID)),
    }
}

/// The size field of a property command: whether it asks for 8 bytes.
fn property_size(attrib: u8) -> Result<bool, Fault> {
    match attrib & 7 {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10)),
    }
}

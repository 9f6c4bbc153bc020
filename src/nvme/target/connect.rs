//! Connect (Base §6.3): creating a controller with its Admin Queue, adding I/O queues.

use std::collections::{BTreeSet, VecDeque};
use std::mem::offset_of;
use std::net::IpAddr;

use zerocopy::FromBytes;

use super::controller::{Controller, ControllerHandle, EventState, Phase};
use super::engine::Target;
use super::fault::{Fault, at};
use crate::nvme::spec::{
    CATTR_DISABLE_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, CNTLID_MAX, Cc, ConnectCmd, ConnectData, ControllerType, Cqe, Csts,
    DISCOVERY_NQN, FabricsType, InvalidParameter, NQN_MAX_LEN, Psdt, Sqe, StatusCode, nul_text,
};

/// A Connect as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct ConnectRequest<'a> {
    /// The command.
    pub sqe: &'a Sqe,
    /// Its data, all of it.
    pub data: &'a [u8],
    /// The local address of the connection: where the host reached this target.
    pub local: IpAddr,
    /// Now, in the time of the engine.
    pub now_ns: u64,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// Admin Queue of an I/O controller.
    Admin,
    /// I/O queue.
    Io,
    /// Admin Queue of a discovery controller.
    Discovery,
}

/// A queue that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Its controller.
    pub controller: ControllerHandle,
    /// What it is for.
    pub kind: QueueKind,
    /// Queue identifier.
    pub qid: u16,
    /// Entries of the queue; SQHD counts modulo this.
    pub entries: u16,
    /// Submission queue flow control is off: SQHD is FFFFh in this completion and reserved in later ones, and C2HData
    /// may carry SUCCESS.
    pub sq_flow_control_disabled: bool,
    /// The controller is enabled with all command sets: commands of an I/O queue may address every namespace.
    pub all_command_sets: bool,
    /// The completion to send. Its SQHD is set when flow control is off, else it is the transport's.
    pub cqe: Cqe,
}

/// A Connect that is refused: a status, and for Connect Invalid Parameters where the fault is.
struct Refusal {
    fault: Fault,
    parameter: Option<InvalidParameter>,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self { fault, parameter: None }
    }
}

const fn bad_sqe(offset: usize) -> Refusal {
    Refusal {
        fault: Fault::new(StatusCode::CONNECT_INVALID_PARAMETERS),
        parameter: Some(InvalidParameter::Sqe(offset as u16)),
    }
}

const fn bad_data(offset: usize) -> Refusal {
    Refusal {
        fault: Fault::new(StatusCode::CONNECT_INVALID_PARAMETERS),
        parameter: Some(InvalidParameter::Data(offset as u16)),
    }
}

/// The text of an NQN field.
fn nqn_of(field: &[u8]) -> Option<&str> {
    nul_text(field).filter(|nqn| nqn.len() <= NQN_MAX_LEN)
}

impl Target {
    /// Executes the first command of a connection, which must be a Connect.
    ///
    /// # Errors
    /// The completion to send; the connection stays without a queue and is to be closed after it.
    pub fn connect(&mut self, request: &ConnectRequest<'_>) -> Result<Connected, Cqe> {
        self.try_connect(request).map_err(|refusal| {
            let mut cqe = Cqe::new(request.sqe.cid.get(), refusal.fault.status);
            if let Some(parameter) = refusal.parameter {
                cqe.result.set(u64::from(parameter.to_dword()));
            }
            cqe
        })
    }

    fn try_connect(&mut self, request: &ConnectRequest<'_>) -> Result<Connected, Refusal> {
        let sqe = request.sqe;
        if !sqe.is_fabrics() || sqe.fabrics_type() != FabricsType::CONNECT {
            return Err(Fault::new(StatusCode::COMMAND_SEQUENCE_ERROR).into());
        }
        if sqe.psdt() != Psdt::SGL {
            return Err(Fault::at(StatusCode::INVALID_FIELD, at::FLAGS).into());
        }
        let cmd = ConnectCmd::of(sqe);
        let length_ok = sqe.dptr.length.get() as usize == size_of::<ConnectData>();
        let Some(data) = ConnectData::ref_from_bytes(request.data).ok().filter(|_| length_ok) else {
            return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH).into());
        };
        if cmd.recfmt.get() != 0 {
            return Err(Fault::new(StatusCode::CONNECT_INCOMPATIBLE_FORMAT).into());
        }
        let qid = cmd.qid.get();
        if qid > self.params.max_io_queues {
            return Err(bad_sqe(offset_of!(ConnectCmd, qid)));
        }
        let max_entries = if qid == 0 { self.params.max_admin_entries } else { self.params.max_io_entries };
        let sqsize_z = cmd.sqsize_z.get();
        if sqsize_z == 0 || sqsize_z >= max_entries {
            return Err(bad_sqe(offset_of!(ConnectCmd, sqsize_z)));
        }
        if data.hostid == [0; 16] {
            return Err(bad_data(offset_of!(ConnectData, hostid)));
        }
        let Some(subnqn) = nqn_of(&data.subnqn) else {
            return Err(bad_data(offset_of!(ConnectData, subnqn)));
        };
        let Some(hostnqn) = nqn_of(&data.hostnqn) else {
            return Err(bad_data(offset_of!(ConnectData, hostnqn)));
        };
        let (kind, controller, cntlid) = if qid == 0 {
            self.connect_admin(request, cmd, data, subnqn, hostnqn)?
        } else {
            self.connect_io(qid, data, subnqn, hostnqn)?
        };
        let sq_flow_control_disabled = cmd.cattr & CATTR_DISABLE_SQ_FLOW_CONTROL != 0;
        let mut cqe = Cqe::with_result(sqe.cid.get(), u64::from(cntlid));
        if sq_flow_control_disabled {
            cqe.sqhd.set(0xffff);
        }
        // Fixed while the queue exists: the controller cannot be enabled otherwise without a reset, which deletes it.
        let all_command_sets = self.controllers.get(&controller).is_some_and(Controller::has_all_command_sets);
        let entries = sqsize_z + 1;
        Ok(Connected { controller, kind, qid, entries, sq_flow_control_disabled, all_command_sets, cqe })
    }

    fn connect_admin(
        &mut self,
        request: &ConnectRequest<'_>,
        cmd: &ConnectCmd,
        data: &ConnectData,
        subnqn: &str,
        hostnqn: &str,
    ) -> Result<(QueueKind, ControllerHandle, u16), Refusal> {
        let discovery = subnqn == DISCOVERY_NQN;
        let next_cntlid = if discovery {
            self.next_discovery_cntlid
        } else {
            let Some(subsystem) = self.subsystems.get(subnqn) else {
                return Err(bad_data(offset_of!(ConnectData, subnqn)));
            };
            if !subsystem.config.hosts.allows(hostnqn) {
                return Err(Fault::new(StatusCode::CONNECT_INVALID_HOST).into());
            }
            subsystem.next_cntlid
        };
        if data.cntlid.get() != CNTLID_DYNAMIC {
            return Err(bad_data(offset_of!(ConnectData, cntlid)));
        }
        let free = if self.controllers.len() < self.params.max_controllers {
            self.free_cntlid(subnqn, next_cntlid)
        } else {
            None
        };
        let Some(cntlid) = free else {
            return Err(Fault::retry(StatusCode::CONNECT_CONTROLLER_BUSY).into());
        };
        let following = if cntlid == CNTLID_MAX { 1 } else { cntlid + 1 };
        match self.subsystems.get_mut(subnqn) {
            Some(subsystem) => subsystem.next_cntlid = following,
            None => self.next_discovery_cntlid = following,
        }
        let mut controller = Controller {
            kind: if discovery { ControllerType::DISCOVERY } else { ControllerType::IO },
            subnqn: subnqn.to_owned(),
            cntlid,
            hostnqn: hostnqn.to_owned(),
            hostid: data.hostid,
            local: request.local,
            cap: Controller::capabilities(self.params.max_io_entries),
            cc: Cc(0),
            csts: Csts(0),
            phase: Phase::Running,
            admin_connected: true,
            io_queues: BTreeSet::new(),
            granted_queues: self.params.max_io_queues,
            kato_ms: 0,
            deadline_ns: None,
            async_config: 0,
            parked: VecDeque::with_capacity(super::ASYNC_EVENT_REQUESTS),
            namespace_event: EventState::Idle,
            discovery_event: EventState::Idle,
            changed: BTreeSet::new(),
            aborts: 0,
            errors: VecDeque::with_capacity(super::ERROR_LOG_ENTRIES),
            error_count: 0,
        };
        controller.set_kato(cmd.kato_ms.get(), request.now_ns);
        let handle = ControllerHandle(self.next_handle);
        self.next_handle += 1;
        self.controllers.insert(handle, controller);
        let kind = if discovery { QueueKind::Discovery } else { QueueKind::Admin };
        Ok((kind, handle, cntlid))
    }

    fn connect_io(
        &mut self,
        qid: u16,
        data: &ConnectData,
        subnqn: &str,
        hostnqn: &str,
    ) -> Result<(QueueKind, ControllerHandle, u16), Refusal> {
        if subnqn == DISCOVERY_NQN {
            // Discovery controllers have no I/O queues (Base §3.1.2.3).
            return Err(bad_sqe(offset_of!(ConnectCmd, qid)));
        }
        let Some(subsystem) = self.subsystems.get(subnqn) else {
            return Err(bad_data(offset_of!(ConnectData, subnqn)));
        };
        if !subsystem.config.hosts.allows(hostnqn) {
            return Err(Fault::new(StatusCode::CONNECT_INVALID_HOST).into());
        }
        let cntlid = data.cntlid.get();
        let found =
            self.controllers.iter_mut().find(|(_, c)| c.cntlid == cntlid && c.subnqn == subnqn && c.admin_connected);
        let Some((&handle, controller)) = found else {
            return Err(bad_data(offset_of!(ConnectData, cntlid)));
        };
        if controller.hostnqn != hostnqn {
            return Err(bad_data(offset_of!(ConnectData, hostnqn)));
        }
        if controller.hostid != data.hostid {
            return Err(bad_data(offset_of!(ConnectData, hostid)));
        }
        if !controller.accepts_io_queues() {
            return Err(Fault::new(StatusCode::COMMAND_SEQUENCE_ERROR).into());
        }
        // Entries of 64 and 16 bytes are all there is; the host had to say so (Base §3.1.3.5).
        if controller.cc.iosqes() != 6 || controller.cc.iocqes() != 4 || qid > controller.granted_queues {
            return Err(bad_sqe(offset_of!(ConnectCmd, qid)));
        }
        if !controller.io_queues.insert(qid) {
            return Err(Fault::new(StatusCode::COMMAND_SEQUENCE_ERROR).into());
        }
        Ok((QueueKind::Io, handle, cntlid))
    }
}

//! Why a controller cannot be used.

use crate::nvme::spec::{Csts, Status};

/// Why a controller does not come up, or did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// Reads of its registers find nobody.
    #[error("the controller is gone: its registers read as ones")]
    Gone,
    /// It says that it failed.
    #[error("the controller has failed (CSTS {:#x})", csts.0)]
    Fatal {
        /// Its status.
        csts: Csts,
    },
    /// It did not change its state in time.
    #[error("the controller is {state} for {ms} ms, longer than it said itself (CSTS {:#x})", csts.0)]
    Stuck {
        /// What it is at.
        state: &'static str,
        /// How long, in milliseconds.
        ms: u64,
        /// Its status.
        csts: Csts,
    },
    /// What it says of itself cannot be used.
    #[error("{0}")]
    Unfit(String),
    /// It refused an admin command.
    #[error("{command}: the controller says {status:?}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its status.
        status: Status,
    },
    /// It did not answer an admin command in time.
    #[error("{command}: no answer within {ms} ms")]
    Late {
        /// The command.
        command: &'static str,
        /// How long, in milliseconds.
        ms: u64,
    },
    /// It is being reset or shut down.
    #[error("{command}: the controller is being stopped")]
    Stopped {
        /// The command.
        command: &'static str,
    },
    /// There is no memory for its queues.
    #[error("no DMA memory left for {what}: raise [memory] size")]
    NoMemory {
        /// What it was for.
        what: &'static str,
    },
    /// Memory of the arena that it cannot reach.
    #[error("{what} lie in memory that the controller cannot reach")]
    Unreachable {
        /// What it was for.
        what: &'static str,
    },
}

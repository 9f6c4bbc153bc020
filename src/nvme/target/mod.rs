//! The NVMe over Fabrics target as pure engines: subsystems, controllers, admin commands, decoding of I/O commands.
//!
//! Nothing here does I/O, reads a clock or waits. All state is plain data that may be cloned, printed and moved to
//! another process. Time (`now_ns`, any monotonic origin) and counters are passed in.
//!
//! ```text
//!   transport (one home reactor)                         every reactor with I/O queues
//!     Connect ----> Target::connect                        Namespaces (a copy, replaced by message)
//!     admin  -----> Target::admin -> Outcome                 |
//!     lost   -----> Target::disconnect                       v
//!     timer  -----> Target::expire(now)                    decode_io(&Sqe, ..) -> IoRequest
//!     reload -----> Target::set_namespaces, ...
//!        <--------- Target::poll -> Notice (async event completions, controllers to close)
//! ```
//!
//! A namespace whose device has zones is one of the Zoned Namespace Command Set (`zoned`). Only hosts that enable a controller with all
//! command sets (CC.CSS 110b) see it: the others know no commands that it could be written with safely.
//!
//! A controller is dynamic: an Admin Queue Connect creates it, the loss of its Admin Queue removes it. Every failed
//! admin command leaves an entry in the controller's error log; the transport reports failed I/O commands with
//! [`Target::log_error`].

mod admin;
mod connect;
mod controller;
mod discovery;
mod engine;
mod fault;
mod feature;
mod identify;
mod io;
mod log;
mod namespace;
pub mod tcp;
mod zoned;

#[cfg(test)]
mod tests;

pub use admin::{AdminContext, AdminTransfer, Outcome, Quiesce, admin_transfer};
pub use connect::{ConnectRequest, Connected, QueueKind};
pub use controller::{ControllerHandle, ErrorReport};
pub use engine::{AllowedHosts, ConfigError, Disconnected, Listener, Notice, SubsystemConfig, Target, TargetParams};
pub use fault::Fault;
pub use io::{DataPlace, FuseStep, FuseTracker, IoOp, IoRequest, ZoneAsk, check_fused_pair, decode_io, dsm_ranges};
pub use log::SmartCounters;
pub use namespace::{NamespaceInfo, Namespaces, ZoneInfo};

/// Largest data transfer of one command in bytes: what MDTS advertises.
pub const MAX_TRANSFER_LEN: u32 = 1 << 20;

/// MDTS: [`MAX_TRANSFER_LEN`] as a power of two in units of the minimum memory page, 4 KiB.
const MDTS: u8 = 8;

const _: () = assert!(MAX_TRANSFER_LEN == 4096 << MDTS);

/// Asynchronous Event Requests a controller keeps.
const ASYNC_EVENT_REQUESTS: usize = 4;

/// Abort commands a controller executes at a time.
const ABORTS: u8 = 4;

/// Entries of the error log of a controller.
const ERROR_LOG_ENTRIES: usize = 64;

/// Granularity of the keep alive timeout in milliseconds; KAS counts units of 100 ms.
const KEEP_ALIVE_GRANULARITY_MS: u32 = 1000;

/// A discovery controller without keep alive ends after this long without a command (Base §3.1.2.3.2).
const DISCOVERY_IDLE_MS: u32 = 120_000;

/// CAP.TO and CRTO.CRWMT in units of 500 ms: a bound on enabling, which is immediate, and on a reset, which waits for
/// the I/O queues to close.
const READY_TIMEOUT_500MS: u8 = 15;

//! SCSI disks as pure engines: CDBs to requests, logical units, unit attention conditions, mode parameters, reservations.
//!
//! Nothing here does I/O, reads a clock or waits, but [`disk`], the owner of the blocks. Nothing knows a transport: initiators and target
//! ports have the names that their transport gives them. All state of the engines is plain data that may be cloned, printed and moved to
//! another process.
//!
//! ```text
//!   transport                              home reactor of the unit          every reactor
//!     login, logout -> attach, detach  -->   LogicalUnit
//!     CDB ------------------------------------------------------------->  Gate::admit -> Media: read, write, ...
//!                                             begin <------------------------------- Engine
//!                                              |-> Reply: data, sense
//!                                              |-> Media: carried out by `disk`
//!                                              `-> List: data-out, then finish -> Reaction
//! ```
//!
//! One table (`decode::catalogue`) holds the commands that exist. Decoding and REPORT SUPPORTED OPERATION CODES both read it.

mod attention;
mod command;
mod copy;
mod data;
mod decode;
pub mod disk;
mod inquiry;
mod lists;
mod logical_unit;
mod mode;
mod persist;
mod report;
pub mod reservation;
pub mod spec;
mod unit;

#[cfg(test)]
mod tests;

pub use attention::{Pending, UnitAttention};
pub use command::{
    Check, Command, DataOut, Fill, LunSelect, Media, OpcodeQuery, PageControl, Request, Residual, UnitCommand,
    Unmapping,
};
pub use copy::{CopyList, CopyProgress, CopySegment, CopyState, CopyUnit, Designator, ListId};
pub use decode::decode;
pub use lists::{LbaExtent, format_parameters, lba_status, lba_status_extents, unmap_ranges};
pub use logical_unit::{Action, Admission, Context, Gate, LogicalUnit, NexusId, Reaction, Reply, Store, absent};
pub use mode::{ModeState, QueueError};
pub use report::Resources;
pub use spec::{Cdb, Sense};
pub use unit::{Atomic, TargetPort, TaskFunctions, UNMAP_DESCRIPTORS_MAX, Unit, UnitError};

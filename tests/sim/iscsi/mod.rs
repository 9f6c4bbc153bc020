//! The iSCSI door in the same worlds: an initiator of its own, and hosts that work by it.

#[expect(dead_code, reason = "other tests use all of it")]
#[path = "../../native/iscsi/initiator/cdb.rs"]
pub mod cdb;
mod directed;
pub mod host;
pub mod initiator;
pub mod login;
mod overlap;
#[expect(dead_code, reason = "other tests use all of it")]
#[path = "../../native/iscsi/initiator/pdu.rs"]
pub mod pdu;
mod sense;
mod shapes;

pub use host::{Common, IQN, ScsiPlan, lun_of};

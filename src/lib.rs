//! The data plane.

pub mod nvme;
pub mod util;

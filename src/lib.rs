//! The data plane.

pub mod bdev;
pub mod control;
pub mod limits;
pub mod net;
pub mod nvme;
pub mod reactor;
pub mod sys;
pub mod util;

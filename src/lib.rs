//! The data plane.
pub mod bdev;
pub mod limits;
pub mod net;
pub mod reactor;
pub mod sys;

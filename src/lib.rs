//! The data plane.
pub mod bdev;
pub mod control;
pub mod limits;
pub mod net;
pub mod reactor;
pub mod sys;

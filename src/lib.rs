//! The data plane.

pub mod control;

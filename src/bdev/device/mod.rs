//! Leaves: devices that end a stack.

pub mod null;

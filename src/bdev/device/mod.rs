//! Leaves: devices that end a stack.

pub mod custom;
pub mod file;
pub mod malloc;
pub mod null;
pub mod nvme;
#[cfg(test)]
pub(crate) mod testing;

//! Leaves: devices that end a stack.

pub mod custom;
pub mod file;
pub mod malloc;
pub mod null;
#[cfg(test)]
pub(crate) mod testing;

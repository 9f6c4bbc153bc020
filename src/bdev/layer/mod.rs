//! Layers: devices on top of other devices.

pub mod inject;

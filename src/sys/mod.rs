//! The boundary to the machine: everything that talks to the kernel or the processor directly.
//!
//! Unsafe code is allowed in the modules that say so here and nowhere else above the `hugepages` crate.
//! A safe function of this layer that gives memory to the kernel takes owned buffers by value, keeps them in its own
//! table until the completion, and hands them back with it: it never takes a slice.

pub mod affinity;
pub mod descriptor;
pub mod file;
pub mod holders;
pub mod limits;
pub mod mapped;
pub mod mmio;
pub mod nvme_ioctl;
pub mod nvme_nodes;
pub mod nvme_ring;
pub mod op;
pub mod pagemap;
pub mod pci;
pub mod predecessor;
pub mod socket;
pub mod tsc;
pub mod tx;
pub mod ublk;
pub mod ublk_control;
pub mod uring;
pub mod vfio;

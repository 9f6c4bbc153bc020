//! The real reactors in simulated worlds: sockets, disks, time and chance from one seed, on one thread.
//!
//! `echo`: listener, stream and sending side. `iscsi`: the iSCSI door, with an initiator of the simulator. All else: the NVMe/TCP target, the
//! host and the block layer, whole.
//!
//! A seed that fails prints `REACTOR_SIM_SEED=...`. `REACTOR_SIM_SEED=N cargo test --test sim one_seed` runs it again, the same
//! step for step; `REACTOR_SIM_SECONDS=N cargo test --release --test sim fresh_seeds` tries new seeds for that long.

mod directed;
mod drive;
mod echo;
mod host;
mod iscsi;
mod model;
mod plan;
mod scenario;
mod suite;
mod target;
mod zoned;

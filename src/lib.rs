//! `reactor`, a polled-mode storage data plane in user space: volumes from RAM and files, stacked with layers, served over
//! NVMe/TCP, over iSCSI and as local block devices.
//!
//! # The pipeline
//! ```text
//!   one reactor: a pinned thread that turns, with one ring to the kernel
//!  +----------------------------------------------------------------------------------------------------+
//!  |  socket       connection              slot             handle            layers         leaf       |
//!  |                                                                                                    |
//!  | bytes in -> [decoder: PDUs] -> command -> slot task -> checks, stamps -> [inject] ... -> null      |
//!  |                  \-- data --> its buffer     |    Io       counts          |  ^          malloc    |
//!  |                                              |              ^        frame |  | frame    file      |
//!  | bytes out <------ [batch] <-- data, response-+              |            push  pop         |       |
//!  |                                              ^              |              |  |            |       |
//!  |                                              +--- landed <--+-- completion list <----------+       |
//!  +----------------------------------------------------------------------------------------------------+
//!     | messages: bounded rings, one per pair of reactors        | operations with owned buffers, one
//!     v                                                          v enter of the ring per turn
//!   the other reactors, and control threads                    the kernel, or a simulated world
//! ```
//! A connection lives on one reactor; its commands are parsed, executed and answered there. Nothing on that way locks,
//! allocates or waits for another thread, but for the kernel's own lock of a file in memory. `docs/architecture.md` follows one
//! read and one write with the names of all functions.
//!
//! # The vocabulary
//!
//! | word | what it is |
//! |---|---|
//! | reactor | One thread's worth of everything: loop, Ios, tasks, sockets, buffers. Shares nothing. [`reactor::Reactor`] |
//! | turn | One round of its loop: collect what ended, run what that woke, hand over what was started. [`reactor::Reactor::turn`] |
//! | task | A future that is created once, polled by index and woken by [`reactor::TaskId`]; there are no wakers |
//! | op | An operation that the world carries out: receive, send, read, write, sync. It owns its buffers until its completion. [`sys::op::Op`] |
//! | sink | Who gets the completions of ops, and parcels from other reactors. [`reactor::Sink`] |
//! | Io | A request to a block device: a move-only handle, which nobody can lose or hold twice. [`reactor::io::Io`] |
//! | segment | A piece of an Io's data: a buffer of the arena, or a range of shared memory. [`reactor::io::Segment`] |
//! | block device | A volume, shared by all reactors: identity and limits. [`bdev::BlockDevice`] |
//! | channel | A block device on one reactor: it takes Ios and completes them. [`bdev::Channel`] |
//! | handle | The gate in front of a channel: checks, time stamps, counters. [`bdev::Handle`] |
//! | leaf | A device that ends a stack. [`bdev::device`] |
//! | layer | A device on top of others. [`bdev::layer`] |
//! | frame | What a layer leaves on an Io that it passes down, to get it back with the completion. [`reactor::io::Frame`] |
//! | door | A protocol by which hosts reach volumes. [`nvme::target::tcp::Door`], [`iscsi::door::Door`] |
//! | slot | A command of a queue: one task and one Io, used for command after command. `nvme::target::tcp` |
//! | batch | What a connection sends by one call: headers, payloads, zeros. [`sys::tx::TxBatch`] |
//! | home | The reactor where what must be serialised runs: of a device, of the target's controllers. [`bdev::Common::home`] |
//! | local | What each reactor knows of a door: copies that the home changes by message, and its own connections. `nvme::target::tcp` |
//!
//! # The house
//! Each part uses only parts to its left; `tests/tidy` keeps it so.
//! ```text
//!   hugepages <- sys <- reactor <- bdev <-----+-- bdev::layer
//!                          ^        ^         +-- bdev::device
//!                          +- net <-+---------+-- nvme::host (nvme::io) <- drain <- serve, control <- main
//!   util <- nvme::spec <- nvme::tcp <---------+-- nvme::target::tcp
//!      ^            ^                +---------+-- ublk
//!      |            +---- nvme::target (engine) <-----^
//!      +---- scsi <- scsi::disk <---+---------+-- iscsi::door <- drain
//!      +---- iscsi (engine) <---------------------^
//! ```

pub mod bdev;
pub mod control;
pub mod drain;
pub mod iscsi;
pub mod limits;
pub mod net;
pub mod nvme;
pub mod reactor;
pub mod scsi;
pub mod serve;
pub mod sys;
pub mod ublk;
pub mod util;

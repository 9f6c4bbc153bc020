//! NVM Express: wire types, the TCP transport and the target's engine.
//!
//! ```text
//!   spec    what the specifications lay out: commands, completions, identify, log pages, fabrics (uses nothing)
//!     ^
//!   tcp     NVMe/TCP PDUs: decoder, encoders, negotiation, digests, for both ends (bytes in, events out)
//!     ^
//!   target  subsystems, controllers, admin commands, decoding of I/O commands (no I/O, plain state)
//!
//!   io      what initiators of all transports share: geometry of a namespace, command of an I/O, meaning of a status
//!     ^
//!   host    connections to remote controllers on a reactor: admin commands, discovery, I/O queues
//! ```

pub mod host;
pub mod io;
pub mod pcie;
pub mod spec;
pub mod target;
pub mod tcp;

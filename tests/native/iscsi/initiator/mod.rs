//! An initiator of our own, written from RFC 7143 without a look at the library's engine: a second reading finds the mistakes of
//! the first. Plain blocking calls; every number that the target sends is checked where it arrives.

pub mod cdb;
pub mod login;
pub mod pdu;
pub mod session;
pub mod wire;

pub use login::{Chap, Login, Offer, Options, Params};
pub use session::Session;
pub use wire::{Got, PATIENCE, Wire};

//! Listeners and streams on a reactor's ring, with owned buffers in both directions.

mod listener;
mod stream;
#[cfg(test)]
mod tests;
mod tx;

pub use listener::{Listener, Listeners};
pub use stream::{Stream, StreamError};
pub use tx::{LEND_MIN, RESERVE_MAX, Tx, is_short};

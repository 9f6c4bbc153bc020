//! Hosts that neither take the data they asked for nor send the data they announced, while others wait for the memory: they are
//! disconnected.

use std::rc::Rc;

use super::local::Local;
use crate::net;
use crate::reactor::Reactor;

/// How often a reactor looks, in nanoseconds.
const LOOK_NS: u64 = 1_000_000_000;
/// What a host has for its next step while others wait, in nanoseconds. The largest batch of answers takes that long at 7 Mbit/s.
const STALL_NS: u64 = 10_000_000_000;

/// Watches the connections of a reactor, for ever.
pub fn watch(reactor: &Rc<Reactor>) {
    let here = reactor.clone();
    reactor.spawn("nvmf stalled hosts", async move {
        loop {
            here.sleep(LOOK_NS).await;
            if let Some(local) = Local::of(&here)
                && net::is_short(&here)
            {
                for conn in local.all().iter().filter(|conn| conn.tx.stalled_ns() > STALL_NS) {
                    tracing::warn!(
                        "{}: disconnected: it holds data buffers that others wait for, and has not moved for {} s",
                        conn.peer(),
                        STALL_NS / 1_000_000_000
                    );
                    conn.close();
                }
            }
        }
    });
}

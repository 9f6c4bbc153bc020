//! What reactors notice and nobody asks for: told to the log, by a thread that asks them once a second. And what they
//! have counted, for whoever asks.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::reactor::mailbox::Remote;

/// How often reactors are asked; they wake as often by themselves.
const PERIOD: Duration = Duration::from_secs(1);

/// Watches until it is dropped.
pub struct Watch {
    /// Never sent to: its end is the word.
    _stop: mpsc::Sender<()>,
}

impl Watch {
    /// Starts to watch.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn start(remotes: &[Remote]) -> std::io::Result<Watch> {
        let remotes = remotes.to_vec();
        let (stop, stopped) = mpsc::channel();
        std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            let mut told = BTreeSet::new();
            loop {
                look(&remotes, &mut told);
                if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Watch { _stop: stop })
    }
}

/// Asks every reactor. Notes are about the machine: one that another reactor gave already is not told again.
fn look(remotes: &[Remote], told: &mut BTreeSet<String>) {
    for remote in remotes {
        let Some((notes, stalls)) = remote.ask_within(PERIOD, |reactor| (reactor.take_notes(), reactor.take_stalls()))
        else {
            continue;
        };
        for note in notes {
            if !told.contains(&note) {
                tracing::warn!("{note}");
                told.insert(note);
            }
        }
        for stall in stalls {
            tracing::warn!("reactor {} stalled for {} ms in {}", remote.id(), stall.ns / 1_000_000, stall.who);
        }
    }
}

/// Logs the counters of every reactor since its start, one line each: `reactor ID: NAME=NUMBER ...`.
pub fn tell_counters(remotes: &[Remote]) {
    for remote in remotes {
        let id = remote.id();
        let Some(now) = remote.ask_within(PERIOD, |reactor| reactor.stats()) else {
            tracing::error!("reactor {id} does not answer");
            continue;
        };
        tracing::info!(
            "reactor {id}: busy_turns={} idle_turns={} busy_ns={} asleep_ns={} sleeps={} enters={} misses={} submitted={} \
             completed={} overflows={} stale={}",
            now.busy_turns,
            now.idle_turns,
            now.busy_ns,
            now.asleep_ns,
            now.sleeps,
            now.ring.enters,
            now.ring.misses,
            now.ring.submitted,
            now.ring.completed,
            now.ring.overflows,
            now.ring.stale + now.stale_ios,
        );
    }
}

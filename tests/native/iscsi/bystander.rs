//! A well-behaved initiator beside the others: verified I/O without a pause, and how long it took.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::host::pattern;
use super::super::server::now;
use super::initiator::cdb::{read16, write16};
use super::initiator::{Options, Session};
use super::{BLOCK, IQN};

/// The volume of the bystander, which no hostile initiator writes to.
const LUN: u16 = 1;
/// No command of a well-behaved initiator may take longer, whatever others do: above what a loaded machine does.
const LONGEST: Duration = Duration::from_secs(3);
/// Blocks in turn: data in the command, and by R2T.
const LENGTHS: [u32; 3] = [1, 8, 300];

/// A running one.
pub struct Bystander {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Duration)>,
}

impl Bystander {
    pub fn start(address: SocketAddr) -> Bystander {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut session = Session::open(address, &Options::new(IQN, 250));
            session.settle(LUN);
            let (mut rounds, mut longest) = (0, Duration::ZERO);
            while rounds < 2 || !seen.load(Ordering::Relaxed) {
                let blocks = LENGTHS[rounds % LENGTHS.len()];
                let (at, data) = (rounds as u64 % 16 * 512, pattern(blocks as usize * BLOCK, rounds as u64));
                let start = now();
                session.command(LUN, &write16(at, blocks, 0), &data, 0).good();
                let between = now();
                let found = session.command(LUN, &read16(at, blocks), &[], data.len()).good();
                longest = longest.max(between - start).max(now() - between);
                assert!(found == data, "round {rounds}: {blocks} blocks at {at} are not what was written");
                rounds += 1;
            }
            session.end();
            (rounds, longest)
        });
        Bystander { stop, thread }
    }

    /// Whether it has failed: then [`Bystander::end`] says how.
    pub fn is_dead(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it.
    ///
    /// # Panics
    /// If an answer was wrong or late.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (rounds, longest) = self.thread.join().expect("every answer to the well-behaved initiator is right");
        println!("the well-behaved initiator: {rounds} rounds, the longest command {longest:?}");
        assert!(longest < LONGEST, "a command took {longest:?}");
    }
}

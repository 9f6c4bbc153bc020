//! Work that keeps reactors busy: what they tell each other takes its time meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::initiator::{Offer, Options, Session, cdb};
use super::{BLOCK, MIB};

/// Reads of a MiB in flight on each connection.
const DEPTH: usize = 6;

/// Sessions that read without a pause, each on a reactor of its own where there are several.
pub struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    /// By so many connections, one after the other, to LUN 0 of a target.
    pub fn start(address: SocketAddr, target: &str, connections: u8) -> Busy {
        let stop = Arc::new(AtomicBool::new(false));
        let session = |number| {
            let offer = Offer { max_recv: Some(1 << 20), max_burst: Some(1 << 20), ..Offer::PLAIN };
            let mut session = Session::open(address, &Options::new(target, 200 + number).with(offer));
            session.settle(0);
            session
        };
        let work = |mut session: Session| {
            let seen = stop.clone();
            std::thread::spawn(move || {
                let read = cdb::read16(0, (MIB / BLOCK) as u32);
                let mut tags: Vec<u32> = (0..DEPTH).map(|_| session.start(0, 0, &read, &[], MIB)).collect();
                for at in (0..DEPTH).cycle() {
                    session.wait(tags[at]).good();
                    if seen.load(Ordering::Relaxed) {
                        break;
                    }
                    tags[at] = session.start(0, 0, &read, &[], MIB);
                }
            })
        };
        let threads = (0..connections).map(session).map(work).collect();
        Busy { stop, threads }
    }

    /// Ends it.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("every read is answered");
        }
    }
}

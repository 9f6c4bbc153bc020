//! The end of service: hosts get the answers to what they have asked, what devices have in flight ends, and what was acknowledged
//! is made durable.
//!
//! For control threads only: it waits for reactors, which turn meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::bdev::{BlockDevice, Handle};
use crate::iscsi::door;
use crate::nvme::target::tcp;
use crate::reactor::io::{IoOp, IoStatus};
use crate::reactor::mailbox::Remote;
use crate::sys::tsc::monotonic_ns;

/// Hosts get this long to take their answers.
const HOSTS: Duration = Duration::from_millis(1200);
/// How often what is to end is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// A reactor that is not stuck answers within this.
const ANSWER: Duration = Duration::from_millis(100);

/// What has passed since `start`, of [`monotonic_ns`].
fn since(start: u64) -> Duration {
    Duration::from_nanos(monotonic_ns() - start)
}

/// A door with connections of hosts.
pub trait Connected {
    /// Takes no more connections and lets those that there are end. Returns at once.
    fn drain(&self);
    /// Closes all connections, answered or not.
    fn close(&self);
    /// Connections that have not ended.
    fn connections(&self) -> usize;
}

impl Connected for tcp::Door {
    fn drain(&self) {
        self.drain();
    }

    fn close(&self) {
        self.close();
    }

    fn connections(&self) -> usize {
        self.connections()
    }
}

impl Connected for door::Door {
    fn drain(&self) {
        self.drain();
    }

    fn close(&self) {
        self.close();
    }

    fn connections(&self) -> usize {
        self.connections()
    }
}

/// Lets connections end and then what is in flight, within `limit`. Returns what has not ended, as [`busy`].
pub fn drain(doors: &[&dyn Connected], remotes: &[Remote], limit: Duration) -> BTreeSet<String> {
    let start = monotonic_ns();
    let connected = || doors.iter().any(|door| door.connections() > 0);
    doors.iter().for_each(|door| door.drain());
    while connected() && since(start) < HOSTS {
        std::thread::park_timeout(LOOK);
    }
    // A host that does not read holds nobody up; a device that does not answer is named below.
    doors.iter().for_each(|door| door.close());
    loop {
        let busy = busy(remotes);
        if busy.is_empty() && !connected() || since(start) > limit {
            return busy;
        }
        std::thread::park_timeout(LOOK);
    }
}

/// Which volumes have I/O in flight, each as `volume "NAME"`, and which reactors do not say, as `reactor ID`.
pub fn busy(remotes: &[Remote]) -> BTreeSet<String> {
    let names = |remote: &Remote| {
        let answer = remote.ask_within(ANSWER, |reactor| {
            let busy = |handle: &&Handle| handle.stats().in_flight() > 0;
            let name = |handle: &Handle| format!("volume \"{}\"", handle.common().traits().name);
            Handle::all(reactor).iter().filter(busy).map(name).collect::<Vec<_>>()
        });
        answer.unwrap_or_else(|| vec![format!("reactor {}", remote.id())])
    };
    remotes.iter().flat_map(names).collect()
}

/// Makes acknowledged writes of `devices` durable, within `limit`. Returns the names of those of which it is not known, with the
/// flush's status if it has ended.
pub fn flush(
    devices: &[Arc<dyn BlockDevice>],
    remotes: &[Remote],
    limit: Duration,
) -> BTreeMap<String, Option<IoStatus>> {
    let start = monotonic_ns();
    let (sender, ends) = mpsc::channel();
    let mut left = BTreeMap::new();
    for device in devices.iter().filter(|device| device.common().traits().volatile_cache) {
        let name = device.common().traits().name.clone();
        left.insert(name.clone(), None);
        let (sender, device) = (sender.clone(), device.clone());
        let home = &remotes[usize::from(device.common().home())];
        // Any other does for what is not served by its home alone.
        let other = remotes.iter().find(|remote| home.has_ended() && !remote.has_ended());
        let remote = other.filter(|_| device.common().traits().concurrent).unwrap_or(home);
        remote.send(Box::new(move |reactor| {
            let (Ok(handle), here) = (Handle::open(reactor, &device), reactor.clone()) else { return };
            reactor.spawn("final flush", async move {
                let Some(mut io) = here.create_io() else { return };
                io.prepare(IoOp::Flush, 0, 0);
                io = handle.execute(io).await;
                // Nobody listens any more if it took too long.
                let _ = sender.send((name, io.status));
                here.retire_io(io);
            });
        }));
    }
    // What a reactor drops without an answer is waited for no longer than it is there.
    drop(sender);
    while left.values().any(Option::is_none) {
        match ends.recv_timeout(limit.saturating_sub(since(start))) {
            Ok((name, IoStatus::Success)) => drop(left.remove(&name)),
            Ok((name, status)) => drop(left.insert(name, Some(status))),
            Err(_) => break,
        }
    }
    left
}

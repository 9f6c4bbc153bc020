//! Which hosts have been told of what volumes lost.
//!
//! A flush that succeeds tells a host that what it wrote before is durable. When a volume has lost what it had acknowledged, the next
//! flush of each host fails, on each of its queues or sessions. A host may lose its connections over the same failure and come back, perhaps before the
//! answer reached it: it has still not been told.

use std::collections::BTreeMap;

use super::told::Told;
use crate::limits::{HOST_REMEMBERED_NS, HOSTS_REMEMBERED};

/// A host that still sends flushes so many nanoseconds after the answer to one has got that answer: else its keep alive timer had ended
/// the connection.
const ARRIVED_NS: u64 = 300_000_000_000;

/// Up to when a host has been told of losses, in nanoseconds of the reactors' clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTold {
    since: u64,
    /// By number of the volume (NSID, LUN): what it was told later.
    later: BTreeMap<u32, Later>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Later {
    told: Told,
    /// The answer has surely reached the host.
    sure: bool,
}

impl HostTold {
    /// A host that writes nothing before `now`.
    pub fn new(now: u64) -> HostTold {
        HostTold { since: now, later: BTreeMap::new() }
    }

    /// Of the losses of a namespace.
    pub fn of(&self, unit: u32) -> Told {
        self.later.get(&unit).map_or(Told::new(self.since), |later| later.told)
    }

    /// An answer tells it of a volume's losses.
    pub fn tell(&mut self, unit: u32, told: Told) {
        self.later.insert(unit, Later { told, sure: false });
    }

    /// It sends another flush at `now`. Returns up to when it has surely been told, if that is news.
    pub fn hear(&mut self, unit: u32, now: u64) -> Option<u64> {
        let later = self.later.get_mut(&unit)?;
        let is_news = !later.sure && now.saturating_sub(later.told.at()) > ARRIVED_NS;
        later.sure |= is_news;
        is_news.then_some(later.told.at())
    }
}

/// A host of a target, by their names: who of all that a door exports to whom.
pub type HostKey = (String, String);

#[derive(Debug)]
struct Host {
    told: HostTold,
    sessions: usize,
    /// It took leave, with all that it wrote durable.
    in_order: bool,
    gone_at: u64,
}

/// The hosts that are connected, and those that have gone without a word and may come back.
#[derive(Debug, Default)]
pub struct Hosts(BTreeMap<HostKey, Host>);

impl Hosts {
    /// A session of the host begins.
    pub fn arrive(&mut self, key: HostKey, now: u64) {
        let host = self.0.entry(key).or_insert_with(|| Host {
            told: HostTold::new(now),
            sessions: 0,
            in_order: false,
            gone_at: now,
        });
        let is_new = host.in_order || now.saturating_sub(host.gone_at) > HOST_REMEMBERED_NS;
        if host.sessions == 0 && is_new {
            host.told = HostTold::new(now);
        }
        host.in_order = false;
        host.sessions += 1;
    }

    /// What a connected host has been told.
    pub fn told(&self, key: &HostKey) -> Option<HostTold> {
        self.0.get(key).map(|host| host.told.clone())
    }

    /// A connected host has surely been told of a volume's losses up to `until`.
    pub fn tell(&mut self, key: &HostKey, unit: u32, until: u64) {
        if let Some(host) = self.0.get_mut(key) {
            host.told.later.insert(unit, Later { told: Told::new(until), sure: true });
        }
    }

    /// A session of the host was ended in order, and what it wrote is durable.
    pub fn shut_down(&mut self, key: &HostKey) {
        if let Some(host) = self.0.get_mut(key) {
            host.in_order = true;
        }
    }

    /// A session of the host has ended.
    pub fn leave(&mut self, key: &HostKey, now: u64) {
        if let Some(host) = self.0.get_mut(key) {
            host.sessions = host.sessions.saturating_sub(1);
            host.gone_at = now;
        }
        if self.0.len() > HOSTS_REMEMBERED {
            let gone = self.0.iter().filter(|(_, host)| host.sessions == 0);
            let first = gone.min_by_key(|(_, host)| (!host.in_order, host.gone_at)).map(|(key, _)| key.clone());
            first.and_then(|key| self.0.remove(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(host: usize) -> HostKey {
        ("vol".to_owned(), format!("host{host}"))
    }

    fn told(hosts: &Hosts, nsid: u32) -> Told {
        hosts.told(&key(1)).expect("a host that is known").of(nsid)
    }

    #[test]
    fn a_host_that_comes_back_is_told_what_it_was_not() {
        let mut hosts = Hosts::default();
        hosts.arrive(key(1), 100);
        hosts.tell(&key(1), 3, 150);
        assert_eq!((told(&hosts, 1), told(&hosts, 3)), (Told::new(100), Told::new(150)));
        hosts.leave(&key(1), 200);
        hosts.arrive(key(1), 300);
        assert_eq!((told(&hosts, 1), told(&hosts, 3)), (Told::new(100), Told::new(150)));
        let mut queue = hosts.told(&key(1)).expect("it is there");
        assert_eq!(queue.hear(3, 1 << 60), None, "no news");
    }

    #[test]
    fn an_answer_is_sure_to_have_arrived_after_a_while() {
        let mut host = HostTold::new(100);
        assert_eq!(host.hear(1, 1 << 60), None);
        let mut later = host.of(1);
        assert!(later.owes(150, 180, 200));
        host.tell(1, later);
        assert_eq!((host.of(1), host.of(2)), (later, Told::new(100)));
        assert_eq!(host.hear(1, 200 + ARRIVED_NS), None);
        assert_eq!(host.hear(1, 201 + ARRIVED_NS), Some(200));
        assert_eq!(host.hear(1, 202 + ARRIVED_NS), None);
    }

    #[test]
    fn a_host_that_took_leave_begins_anew() {
        let mut hosts = Hosts::default();
        hosts.arrive(key(1), 100);
        hosts.arrive(key(1), 101);
        hosts.shut_down(&key(1));
        hosts.leave(&key(1), 200);
        // It has another controller, and what that wrote.
        hosts.arrive(key(1), 300);
        assert_eq!(told(&hosts, 1), Told::new(100));
        hosts.leave(&key(1), 400);
        hosts.shut_down(&key(1));
        hosts.leave(&key(1), 400);
        hosts.arrive(key(1), 500);
        assert_eq!(told(&hosts, 1), Told::new(500));
        // Without a word, and too long ago.
        hosts.leave(&key(1), 600);
        hosts.arrive(key(1), 600 + HOST_REMEMBERED_NS);
        assert_eq!(told(&hosts, 1), Told::new(500));
        hosts.leave(&key(1), 600);
        hosts.arrive(key(1), 601 + HOST_REMEMBERED_NS);
        assert_eq!(told(&hosts, 1), Told::new(601 + HOST_REMEMBERED_NS));
    }

    #[test]
    fn of_too_many_the_first_that_went_are_forgotten() {
        let mut hosts = Hosts::default();
        for host in 0..HOSTS_REMEMBERED + 2 {
            hosts.arrive(key(host), 1);
        }
        // None of them has gone.
        hosts.leave(&key(0), 10);
        assert!(hosts.told(&key(0)).is_none());
        hosts.shut_down(&key(2));
        hosts.leave(&key(2), 30);
        hosts.leave(&key(1), 20);
        assert!(hosts.told(&key(1)).is_some() && hosts.told(&key(2)).is_none());
        assert!(hosts.told(&key(3)).is_some());
    }
}

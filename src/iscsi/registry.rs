//! The sessions that there are: who joins, who takes whose place (RFC 7143 §6.3.5, §6.3.6).

use std::collections::{BTreeMap, BTreeSet};

use super::admission::{Claim, LoginStatus, Nexus};

/// What becomes of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// A new session. `reinstates`: one of the same nexus is there; end all its tasks and connections first, tell its LUNs of the
    /// lost nexus, then let this login be complete.
    New {
        /// Its TSIH.
        tsih: u16,
        /// TSIH of the session that ends.
        reinstates: Option<u16>,
    },
    /// A further connection of a session. `reinstates`: its connection of the same identifier is still there; end that and its
    /// tasks first.
    Join {
        /// TSIH of the session.
        tsih: u16,
        /// Whether the connection takes the place of one with its identifier.
        reinstates: bool,
    },
    /// Refused.
    Refused(LoginStatus),
}

/// One session.
#[derive(Clone, Debug)]
struct Entry {
    nexus: Nexus,
    max_connections: u16,
    cids: BTreeSet<u16>,
}

/// All sessions of all targets. It has one home; logins ask it by message.
#[derive(Clone, Debug)]
pub struct Registry {
    /// By TSIH.
    sessions: BTreeMap<u16, Entry>,
    by_nexus: BTreeMap<Nexus, u16>,
    sessions_max: u16,
    last_tsih: u16,
}

impl Registry {
    /// A registry of at most `sessions_max` sessions, less than 65,535.
    pub fn new(sessions_max: u16) -> Registry {
        let sessions_max = sessions_max.min(u16::MAX - 1);
        Registry { sessions: BTreeMap::new(), by_nexus: BTreeMap::new(), sessions_max, last_tsih: 0 }
    }

    /// Decides about a login, and enters what it admits: report the ends of its sessions and connections. A session that is
    /// reinstated is not there any more.
    pub fn admit(&mut self, claim: &Claim) -> Admission {
        if claim.tsih == 0 { self.begin(claim) } else { self.join(claim) }
    }

    fn begin(&mut self, claim: &Claim) -> Admission {
        let reinstates = self.by_nexus.get(&claim.nexus).copied();
        if reinstates.is_none() && self.sessions.len() >= usize::from(self.sessions_max) {
            return Admission::Refused(LoginStatus::OUT_OF_RESOURCES);
        }
        // The old session keeps its number until the new one has another: late news of its end must not meet the new one.
        let Some(tsih) = self.free_tsih() else { return Admission::Refused(LoginStatus::OUT_OF_RESOURCES) };
        if let Some(old) = reinstates {
            self.sessions.remove(&old);
        }
        let cids = BTreeSet::from([claim.cid]);
        let max_connections = claim.max_connections.max(1);
        self.sessions.insert(tsih, Entry { nexus: claim.nexus.clone(), max_connections, cids });
        self.by_nexus.insert(claim.nexus.clone(), tsih);
        Admission::New { tsih, reinstates }
    }

    fn join(&mut self, claim: &Claim) -> Admission {
        let Some(entry) = self.sessions.get_mut(&claim.tsih) else {
            return Admission::Refused(LoginStatus::NO_SESSION);
        };
        if entry.nexus != claim.nexus {
            return Admission::Refused(LoginStatus::NO_SESSION);
        }
        if entry.nexus.target.is_none() {
            return Admission::Refused(LoginStatus::CANNOT_INCLUDE);
        }
        if entry.cids.contains(&claim.cid) {
            return Admission::Join { tsih: claim.tsih, reinstates: true };
        }
        if entry.cids.len() >= usize::from(entry.max_connections) {
            return Admission::Refused(LoginStatus::TOO_MANY_CONNECTIONS);
        }
        entry.cids.insert(claim.cid);
        Admission::Join { tsih: claim.tsih, reinstates: false }
    }

    /// The next number that no session has; 0 is none.
    fn free_tsih(&mut self) -> Option<u16> {
        for _ in 0..u16::MAX {
            self.last_tsih = self.last_tsih.checked_add(1).unwrap_or(1);
            if !self.sessions.contains_key(&self.last_tsih) {
                return Some(self.last_tsih);
            }
        }
        None
    }

    /// A connection has ended and nothing has taken its place. A session without connections remains until
    /// [`Registry::session_ended`].
    pub fn connection_ended(&mut self, tsih: u16, cid: u16) {
        if let Some(entry) = self.sessions.get_mut(&tsih) {
            entry.cids.remove(&cid);
        }
    }

    /// A session has ended. One that was reinstated is not known any more, which is no fault.
    pub fn session_ended(&mut self, tsih: u16) {
        if let Some(entry) = self.sessions.remove(&tsih) {
            self.by_nexus.remove(&entry.nexus);
        }
    }

    /// The sessions with their nexuses, in the order of their TSIH.
    pub fn sessions(&self) -> impl Iterator<Item = (u16, &Nexus)> {
        self.sessions.iter().map(|(tsih, entry)| (*tsih, &entry.nexus))
    }
}

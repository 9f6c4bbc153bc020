//! Which logins are let in, and what has to end before: one of a nexus at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::{Home, LOOK_NS, Place, of};
use crate::iscsi::door::local::Local;
use crate::iscsi::{Admission, Claim, LoginStatus, Nexus};
use crate::reactor::Reactor;

/// What a login became.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    /// The first connection of a session with this TSIH.
    New(u16),
    /// A further connection of the session.
    Join(u16),
}

/// Decides about a login that is complete otherwise; sessions and connections whose place it takes have ended then.
///
/// # Errors
/// Why it is refused.
pub async fn admit(reactor: Rc<Reactor>, claim: Claim, from: u16) -> Result<Entry, LoginStatus> {
    let home = of(&reactor).filter(|home| !home.draining.get()).ok_or(LoginStatus::SERVICE_UNAVAILABLE)?;
    let turn = home.turn_of(&reactor, &claim).await?;
    let entry = home.enter(&reactor, claim, from).await;
    drop(turn);
    entry
}

/// A login that is being decided about: the next one of its nexus waits for its end, for what it waits for must have ended for that too.
struct Turn {
    home: Rc<Home>,
    nexus: Nexus,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.home.deciding.borrow_mut().entry(self.nexus.clone()).and_modify(|logins| logins.busy = false);
        self.home.forget_logins(&self.nexus);
    }
}

/// The logins of a nexus that have not been decided about yet.
#[derive(Default)]
pub(super) struct Logins {
    /// One is being decided about.
    busy: bool,
    /// Those that wait for it.
    waiting: u32,
    /// Number of the latest that begins a session.
    latest: u64,
}

impl Home {
    /// Waits until no other login of the nexus is decided about.
    ///
    /// # Errors
    /// A later login that begins a session has come meanwhile: the initiator has given this one up.
    async fn turn_of(self: &Rc<Self>, reactor: &Reactor, claim: &Claim) -> Result<Turn, LoginStatus> {
        let (stamp, nexus) = (self.next_stamp(), &claim.nexus);
        let begins = claim.tsih == 0;
        let with = |f: &mut dyn FnMut(&mut Logins) -> Option<bool>| {
            f(self.deciding.borrow_mut().entry(nexus.clone()).or_default())
        };
        with(&mut |logins| {
            logins.waiting += 1;
            logins.latest = if begins { stamp } else { logins.latest };
            None
        });
        let may_go = loop {
            let turn = with(&mut |logins| {
                let given_up = begins && logins.latest != stamp;
                if logins.busy && !given_up {
                    return None;
                }
                logins.waiting -= 1;
                logins.busy |= !given_up;
                Some(!given_up)
            });
            match turn {
                Some(may_go) => break may_go,
                None => reactor.sleep(LOOK_NS).await,
            }
        };
        self.forget_logins(nexus);
        may_go.then(|| Turn { home: self.clone(), nexus: nexus.clone() }).ok_or(LoginStatus::SERVICE_UNAVAILABLE)
    }

    fn forget_logins(&self, nexus: &Nexus) {
        let mut deciding = self.deciding.borrow_mut();
        if deciding.get(nexus).is_some_and(|logins| !logins.busy && logins.waiting == 0) {
            deciding.remove(nexus);
        }
    }

    async fn enter(&self, reactor: &Rc<Reactor>, claim: Claim, from: u16) -> Result<Entry, LoginStatus> {
        // The targets may have changed since its first request.
        if !self.exports.borrow().allows(&claim.nexus) {
            return Err(LoginStatus::AUTHORIZATION_FAILURE);
        }
        let admission = self.registry.borrow_mut().admit(&claim);
        match admission {
            Admission::Refused(status) => Err(status),
            Admission::New { tsih, reinstates } => {
                if let Some(old) = reinstates {
                    self.end_session(reactor, old).await;
                }
                let place = Place {
                    reactor: from,
                    nexus: claim.nexus,
                    open: false,
                    luns: BTreeMap::new(),
                    lost: BTreeSet::new(),
                };
                self.sessions.borrow_mut().insert(tsih, place);
                Ok(Entry::New(tsih))
            }
            Admission::Join { tsih, reinstates } => {
                let there = self.place_of(tsih);
                if there != Some(from) {
                    if !reinstates {
                        self.registry.borrow_mut().connection_ended(tsih, claim.cid);
                    }
                    return Err(LoginStatus::CANNOT_INCLUDE);
                }
                if reinstates {
                    let cid = claim.cid;
                    let end = move |there: Rc<Reactor>| async move {
                        if let Some(live) = Local::of(&there).and_then(|local| local.session(tsih)) {
                            live.end_connection(cid).await;
                        }
                    };
                    reactor.call_task(from, end).await;
                    // The end of the old one took the identifier along.
                    if let Admission::Refused(status) = self.registry.borrow_mut().admit(&claim) {
                        return Err(status);
                    }
                }
                Ok(Entry::Join(tsih))
            }
        }
    }
}

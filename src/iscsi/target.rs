//! What a target is configured to be: its names, portals, who may log in, and what SendTargets says of that.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::chap::ChapConfig;
use super::keys::{Offer, SessionKind};
use super::text::{VALUE_MAX, put};

/// Longest iSCSI name in bytes (RFC 7143 §4.2.7.2).
pub const NAME_MAX: usize = 223;

/// Whether a text can be an iSCSI name. Names are compared without regard to the case of ASCII letters.
pub fn is_name(name: &str) -> bool {
    let legal = |c: char| !c.is_control() && !c.is_whitespace() && c != ',';
    !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(legal)
}

/// Which initiators may use a target.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum AllowedInitiators {
    /// Every initiator.
    #[default]
    Any,
    /// Those with these names, in lower case.
    Listed(BTreeSet<String>),
}

impl AllowedInitiators {
    /// Whether the initiator with this name is one of them.
    pub fn allows(&self, initiator: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(names) => names.contains(&initiator.to_ascii_lowercase()),
        }
    }
}

/// Where logins at a portal are sent instead (RFC 7143 §11.13.5, status class 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Address with port, as TargetAddress spells it without the tag.
    pub address: String,
    /// The target has moved for good.
    pub permanent: bool,
}

/// An address at which a target is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portal {
    /// The listener it stands for.
    pub listener: u16,
    /// Target portal group tag.
    pub tpgt: u16,
    /// Address with port that initiators are told. `None`: the one they came by, and nothing to who came by another listener.
    pub advertise: Option<String>,
    /// Address with port that those are told who came by the loopback themselves, where `advertise` says nothing.
    pub loopback: Option<String>,
    /// Logins are sent elsewhere.
    pub redirect: Option<Redirect>,
}

/// One target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// iSCSI name, in lower case.
    pub name: String,
    /// TargetAlias.
    pub alias: Option<String>,
    /// Where it is reached; without one, by nobody.
    pub portals: Vec<Portal>,
    /// Who may use it.
    pub initiators: AllowedInitiators,
    /// What initiators must prove; `None`: nothing.
    pub chap: Option<ChapConfig>,
    /// What it brings to negotiations.
    pub offer: Offer,
}

impl TargetConfig {
    /// The portal of a listener.
    pub fn portal(&self, listener: u16) -> Option<&Portal> {
        self.portals.iter().find(|portal| portal.listener == listener)
    }
}

/// Why a target cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// The name cannot be an iSCSI name in lower case.
    #[error("{0:?} cannot be the name of a target")]
    Name(String),
    /// Two targets have this name.
    #[error("there are two targets {0}")]
    Twice(String),
    /// The alias is longer than 255 bytes or has a NUL.
    #[error("the alias of {0} cannot be one")]
    Alias(String),
    /// A target has two portals of the same listener, or an address that cannot be one.
    #[error("the portals of {0} cannot be")]
    Portals(String),
    /// A number of the offer is out of its range.
    #[error("{1} of {0} is out of range")]
    Offer(String, &'static str),
}

/// All targets. What it has told an initiator may change by the next question: a reload makes a new book.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Book {
    targets: Vec<TargetConfig>,
    discovery_chap: Option<ChapConfig>,
    discovery_offer: Offer,
}

impl Book {
    /// A book of `targets`. Initiators that only ask for targets must prove `discovery_chap`.
    ///
    /// # Errors
    /// A target cannot be.
    pub fn new(targets: Vec<TargetConfig>, discovery_chap: Option<ChapConfig>) -> Result<Book, BadTarget> {
        let mut names = BTreeSet::new();
        for target in &targets {
            let name = &target.name;
            if !is_name(name) || *name != name.to_ascii_lowercase() {
                return Err(BadTarget::Name(name.clone()));
            }
            if !names.insert(name) {
                return Err(BadTarget::Twice(name.clone()));
            }
            if target.alias.as_ref().is_some_and(|alias| alias.len() > VALUE_MAX || alias.contains('\0')) {
                return Err(BadTarget::Alias(name.clone()));
            }
            let bad_address = |address: &String| address.is_empty() || address.len() > VALUE_MAX || !is_name(address);
            let bad_portal = |portal: &Portal| {
                portal.advertise.as_ref().is_some_and(bad_address)
                    || portal.redirect.as_ref().is_some_and(|to| bad_address(&to.address))
            };
            let listeners: BTreeSet<u16> = target.portals.iter().map(|portal| portal.listener).collect();
            if listeners.len() != target.portals.len() || target.portals.iter().any(bad_portal) {
                return Err(BadTarget::Portals(name.clone()));
            }
            if let Some(bad) = bad_offer(&target.offer) {
                return Err(BadTarget::Offer(name.clone(), bad));
            }
        }
        Ok(Book { targets, discovery_chap, discovery_offer: Offer::default() })
    }

    /// The target of a name.
    pub fn target(&self, name: &str) -> Option<&TargetConfig> {
        self.targets.iter().find(|target| target.name.eq_ignore_ascii_case(name))
    }

    /// What initiators of a discovery session must prove.
    pub(super) const fn discovery_chap(&self) -> Option<&ChapConfig> {
        self.discovery_chap.as_ref()
    }

    /// What discovery sessions are offered.
    pub(super) const fn discovery_offer(&self) -> Offer {
        self.discovery_offer
    }

    /// The answer to `SendTargets=value` (RFC 7143 appendix C): targets that the initiator may use, each with all its addresses.
    /// `None`: the value is none; answer `Reject`.
    ///
    /// In a normal session it names the session's own target, whatever is asked: `All` must not tell of others there, and
    /// initiators exist that ask so.
    pub fn send_targets(&self, asker: &Asker<'_>, value: &str) -> Option<Vec<u8>> {
        let own = asker.target;
        let wanted: Box<dyn Fn(&TargetConfig) -> bool + '_> = match (asker.kind, value) {
            (SessionKind::Discovery, "All") => Box::new(|_| true),
            (SessionKind::Discovery, "") => return None,
            (SessionKind::Normal, "All" | "") => {
                Box::new(move |target| own.is_some_and(|own| own.eq_ignore_ascii_case(&target.name)))
            }
            (_, name) if has_name_form(name) => Box::new(move |target| {
                let may_see =
                    asker.kind == SessionKind::Discovery || own.is_some_and(|own| own.eq_ignore_ascii_case(name));
                may_see && target.name.eq_ignore_ascii_case(name)
            }),
            _ => return None,
        };
        let mut text = Vec::new();
        let allowed = |target: &&TargetConfig| target.initiators.allows(asker.initiator) && wanted(target);
        for target in self.targets.iter().filter(allowed) {
            let addresses: Vec<String> = target.portals.iter().filter_map(|portal| asker.address(portal)).collect();
            if addresses.is_empty() {
                continue;
            }
            put(&mut text, "TargetName", &target.name);
            for address in addresses {
                put(&mut text, "TargetAddress", &address);
            }
        }
        Some(text)
    }
}

/// Whether a text begins as iSCSI names do (RFC 7143 §4.2.7.3).
fn has_name_form(name: &str) -> bool {
    let begins = |prefix: &str| name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    is_name(name) && (begins("iqn.") || begins("eui.") || begins("naa."))
}

/// Who asks for targets.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The kind of its session.
    pub kind: SessionKind,
    /// Its name.
    pub initiator: &'a str,
    /// The target of a normal session.
    pub target: Option<&'a str>,
    /// The listener it came by.
    pub listener: u16,
    /// The address with port that it came by.
    pub local: &'a str,
}

impl Asker<'_> {
    fn is_on_loopback(&self) -> bool {
        self.local.parse::<SocketAddr>().is_ok_and(|local| local.ip().to_canonical().is_loopback())
    }

    /// TargetAddress of a portal, if this asker can be told one.
    fn address(&self, portal: &Portal) -> Option<String> {
        let address = match &portal.advertise {
            Some(address) => address,
            None if portal.listener == self.listener => self.local,
            None => portal.loopback.as_ref().filter(|_| self.is_on_loopback())?,
        };
        Some(format!("{address},{}", portal.tpgt))
    }
}

/// The number of an offer that is out of its range.
fn bad_offer(offer: &Offer) -> Option<&'static str> {
    let lengths = 512..=super::pdu::DATA_SEGMENT_MAX;
    if !lengths.contains(&offer.max_recv_data_segment) {
        Some("MaxRecvDataSegmentLength")
    } else if !lengths.contains(&offer.max_burst) {
        Some("MaxBurstLength")
    } else if !(512..=offer.max_burst).contains(&offer.first_burst) {
        Some("FirstBurstLength")
    } else if offer.max_outstanding_r2t == 0 {
        Some("MaxOutstandingR2T")
    } else if offer.max_connections == 0 {
        Some("MaxConnections")
    } else if offer.time2wait > 3600 {
        Some("DefaultTime2Wait")
    } else if offer.time2retain > 3600 {
        Some("DefaultTime2Retain")
    } else {
        None
    }
}

//! What a controller and its namespaces are.

use zerocopy::FromBytes;

use super::*;
use crate::nvme::io::{Geometry, Identified, Unusable, is_for_now};
use crate::nvme::spec::{
    Cns, Csi, IDENTIFY_LEN, IdentifyControllerNvm, IdentifyControllerZoned, IdentifyFields, IdentifyNamespace,
    IdentifyNamespaceZoned, NamespaceIds, namespace_list,
};

/// Most namespaces that are looked at: as many as a queue can tell apart.
const NAMESPACES_MAX: usize = super::super::queue::TENANTS_MAX;

/// One active namespace.
#[derive(Clone, Debug)]
pub struct NamespaceInfo {
    /// Namespace identifier.
    pub nsid: u32,
    /// Its identity: see [`io::identity`].
    pub uuid: [u8; 16],
    /// What it is, or why it cannot be used.
    pub geometry: Result<Geometry, Unusable>,
}

impl NamespaceInfo {
    /// Its size in bytes; 0 of one that cannot be used.
    pub fn size(&self) -> u64 {
        self.geometry.as_ref().map_or(0, |geometry| geometry.size)
    }
}

type Page = Box<[u8; IDENTIFY_LEN]>;

impl<P: Port> Controller<P> {
    async fn identify(&self, cns: Cns, nsid: u32, csi: Csi) -> Outcome<Page> {
        // Kept, so that a reset needs no memory. One that a question has which was given up is not taken: it may be written to still.
        let data = match self.page.take() {
            Some(data) => data,
            None => self.memory("Identify data", IDENTIFY_LEN)?.0,
        };
        // What a controller leaves out must not be what it said before.
        data.zero();
        let mut sqe = Sqe::bare(AdminOpcode::IDENTIFY.0, nsid);
        IdentifyFields { cns, cntid: 0, cns_specific: 0, csi }.put(&mut sqe);
        let answer = self.ask("Identify", sqe, Some(&data)).await;
        let mut page = Box::new([0; IDENTIFY_LEN]);
        data.read(0, &mut page[..]);
        match &answer {
            Ok(_) | Err(ControllerError::Refused { .. }) => *self.page.borrow_mut() = Some(data),
            Err(_) => *self.late_page.borrow_mut() = Some(data),
        }
        answer.map(|_| page)
    }

    /// As [`Self::identify`], where a controller may not know the question.
    async fn identify_if_there(&self, cns: Cns, nsid: u32, csi: Csi) -> Outcome<Option<Page>> {
        match self.identify(cns, nsid, csi).await {
            Ok(page) => Ok(Some(page)),
            Err(ControllerError::Refused { status, .. }) if !is_for_now(status) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn identify_controller(&self) -> Outcome<()> {
        let page = self.identify(Cns::CONTROLLER, 0, Csi::NVM).await?;
        *self.identity.borrow_mut() = Some(Box::new(IdentifyController::read_from_bytes(&page[..]).expect("a page")));
        Ok(())
    }

    /// Bytes of one transfer at most.
    pub(super) fn transfer_max(&self) -> u64 {
        self.identity.borrow().as_ref().map_or(0, |identity| io::transfer_max(identity, self.cap))
    }

    async fn read_namespaces(&self) -> Outcome<Vec<NamespaceInfo>> {
        let mut all: Vec<u32> = Vec::new();
        while all.len() < NAMESPACES_MAX {
            let page = self.identify(Cns::ACTIVE_NAMESPACES, all.last().copied().unwrap_or(0), Csi::NVM).await?;
            let before = all.len();
            // A list that does not go up would be read for ever.
            let mut last = all.last().copied().unwrap_or(0);
            all.extend(namespace_list(&page[..]).take_while(|nsid| *nsid > std::mem::replace(&mut last, *nsid)));
            if all.len() - before < IDENTIFY_LEN / 4 {
                break;
            }
        }
        all.truncate(NAMESPACES_MAX);
        let limits = self.identify_if_there(Cns::CONTROLLER_CSI, 0, Csi::NVM).await?;
        let mut found = Vec::new();
        for nsid in all {
            found.push(match self.identify_namespace(nsid, limits.as_ref()).await {
                // The others are none the worse for it.
                Err(ControllerError::Refused { status, .. }) => {
                    NamespaceInfo { nsid, uuid: [0; 16], geometry: Err(Unusable::Untold { nsid, status }) }
                }
                other => other?,
            });
        }
        Ok(found)
    }

    pub(super) async fn identify_namespaces(&self) -> Outcome<()> {
        let found = self.read_namespaces().await?;
        *self.namespaces.borrow_mut() = found;
        Ok(())
    }

    /// Whether all namespaces are as they were: their volumes go on without another look.
    pub(super) async fn compare_namespaces(&self) -> Outcome<()> {
        let before = self.known.borrow().clone();
        let now = self.read_namespaces().await?;
        for was in &before {
            let Ok(geometry) = &was.geometry else { continue };
            let nsid = was.nsid;
            let differs = match now.iter().find(|is| is.nsid == nsid) {
                None => Some("that it is there"),
                // Nothing says that it has changed.
                Some(NamespaceInfo { geometry: Err(Unusable::Untold { status, .. }), .. }) if is_for_now(*status) => {
                    return Err(ControllerError::Refused { command: "Identify", status: *status });
                }
                Some(is) if is.uuid != was.uuid => Some("its identity"),
                Some(NamespaceInfo { geometry: Ok(is), .. }) => is.differs(geometry),
                Some(_) => Some("its format"),
            };
            if let Some(what) = differs {
                return Err(ControllerError::Unfit(format!("namespace {nsid} has changed with the reset: {what}")));
            }
        }
        self.remember(&now);
        *self.namespaces.borrow_mut() = now;
        Ok(())
    }

    /// Those that have only grown are known so from now on.
    pub(super) fn remember(&self, now: &[NamespaceInfo]) {
        for was in self.known.borrow_mut().iter_mut() {
            if let Some(is) = now.iter().find(|is| is.nsid == was.nsid && is.uuid == was.uuid)
                && let (Ok(before), Ok(geometry)) = (&was.geometry, &is.geometry)
                && geometry.differs(before).is_none()
            {
                was.geometry = Ok(*geometry);
            }
        }
    }

    async fn identify_namespace(&self, nsid: u32, limits: Option<&Page>) -> Outcome<NamespaceInfo> {
        let page = self.identify(Cns::NAMESPACE, nsid, Csi::NVM).await?;
        let namespace = IdentifyNamespace::read_from_bytes(&page[..]).expect("a page");
        let ids = match self.identify_if_there(Cns::NAMESPACE_DESCRIPTORS, nsid, Csi::NVM).await? {
            Some(page) => NamespaceIds::of(&page[..]),
            None => NamespaceIds::default(),
        };
        let zoned = match ids.csi {
            Csi::ZONED => Some((
                self.identify(Cns::NAMESPACE_CSI, nsid, Csi::ZONED).await?,
                self.identify(Cns::CONTROLLER_CSI, 0, Csi::ZONED).await?,
            )),
            _ => None,
        };
        let identity = self.identity.borrow();
        let controller = identity.as_ref().expect("the controller was identified");
        let limits = limits.map(|page| IdentifyControllerNvm::read_from_bytes(&page[..]).expect("a page"));
        let zoned = zoned.map(|(its, all)| {
            let its = IdentifyNamespaceZoned::read_from_bytes(&its[..]).expect("a page");
            (its, IdentifyControllerZoned::read_from_bytes(&all[..]).expect("a page"))
        });
        let identified = Identified {
            nsid,
            cap: self.cap,
            controller,
            namespace: &namespace,
            limits: limits.as_ref(),
            zoned: zoned.as_ref().map(|(its, all)| (its, all)),
        };
        let geometry = Geometry::new(&identified, self.transfer_max(), self.entries());
        Ok(NamespaceInfo { nsid, uuid: io::identity(&ids.or(&namespace), controller, nsid), geometry })
    }

    /// Identify data of the controller.
    pub fn identity(&self) -> Box<IdentifyController> {
        self.identity.borrow().clone().expect("the controller was identified")
    }

    /// The active namespaces.
    pub fn namespaces(&self) -> Vec<NamespaceInfo> {
        self.namespaces.borrow().clone()
    }
}

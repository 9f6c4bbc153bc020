//! The discovery log page (Base §5.16.1.23).

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use zerocopy::FromBytes;

use super::controller::{Controller, Identity, Options};
use super::{Address, HostError};
use crate::nvme::spec::{
    AddressFamily, DISCOVERY_NQN, DiscoveryLogEntry, DiscoveryLogHeader, LogId, SubsystemType, TransportType, nul_text,
};
use crate::reactor::Reactor;

/// Entries that a log page may have: a bound on what a controller can make this host read.
const ENTRIES_MAX: u64 = 4096;
/// Times the log is read before giving up on one that keeps changing.
const READS_MAX: usize = 10;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// Subsystem NQN.
    pub nqn: String,
    /// What kind of subsystem.
    pub subtype: SubsystemType,
    /// Transport type.
    pub transport: TransportType,
    /// Address family.
    pub family: AddressFamily,
    /// Transport address.
    pub address: String,
    /// Transport service identifier: the TCP port.
    pub service: String,
    /// Port identifier.
    pub port_id: u16,
    /// Controller identifier, FFFFh for the dynamic model.
    pub cntlid: u16,
    /// Largest admin queue.
    pub admin_queue_max: u16,
    /// Transport requirements, `TREQ_*`.
    pub requirements: u8,
    /// `EFLAGS_*`.
    pub flags: u16,
}

impl Discovered {
    fn new(entry: &DiscoveryLogEntry) -> Discovered {
        Discovered {
            nqn: nul_text(&entry.subnqn).unwrap_or_default().to_owned(),
            subtype: entry.subtype,
            transport: entry.trtype,
            family: entry.adrfam,
            address: padded(&entry.traddr),
            service: padded(&entry.trsvcid),
            port_id: entry.portid.get(),
            cntlid: entry.cntlid.get(),
            admin_queue_max: entry.asqsz.get(),
            requirements: entry.treq,
            flags: entry.eflags.get(),
        }
    }

    /// The address of an NVMe/TCP subsystem, `None` for other transports or text that is none.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        if self.transport != TransportType::TCP {
            return None;
        }
        let ip: IpAddr = self.address.parse().ok()?;
        Some(SocketAddr::new(ip, self.service.parse().ok()?))
    }

    /// Namespace `nsid` of the subsystem, as text that `--connect` takes.
    pub fn namespace(&self, nsid: u32) -> Option<Address> {
        let at = self.socket_address()?;
        Some(Address { host: at.ip().to_string(), port: at.port(), nqn: self.nqn.clone(), nsid })
    }
}

/// Text padded with spaces, or by some targets with NULs.
fn padded(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim_end_matches([' ', '\0']).to_owned()
}

/// A whole log page, read while it did not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryLog {
    /// Changes with the content.
    pub generation: u64,
    /// The entries in their order.
    pub entries: Vec<Discovered>,
}

impl DiscoveryLog {
    /// The log page with these entries, each [`DiscoveryLogEntry`] long; what is left over is none.
    pub fn of(generation: u64, entries: &[u8]) -> DiscoveryLog {
        let entries = entries
            .chunks_exact(size_of::<DiscoveryLogEntry>())
            .filter_map(|bytes| DiscoveryLogEntry::ref_from_bytes(bytes).ok())
            .map(Discovered::new)
            .collect();
        DiscoveryLog { generation, entries }
    }
}

impl Controller {
    /// The log page of a discovery controller. Reading it clears the discovery log change event.
    ///
    /// # Errors
    /// What the controller says; a log of an unknown format or one that changes with every read.
    pub async fn discovery_log(&self) -> Result<DiscoveryLog, HostError> {
        let header_len = size_of::<DiscoveryLogHeader>();
        let entry_len = size_of::<DiscoveryLogEntry>();
        for _ in 0..READS_MAX {
            let before = self.discovery_header(true).await?;
            if before.recfmt.get() != 0 || before.numrec.get() > ENTRIES_MAX {
                return Err(HostError::Unsupported(format!(
                    "a discovery log of format {} with {} entries",
                    before.recfmt, before.numrec
                )));
            }
            let count = before.numrec.get() as usize;
            let bytes = self.log(LogId::DISCOVERY, 0, header_len as u64, count * entry_len, true).await?;
            // Without Retain: whatever changes from here on makes a new event.
            let after = self.discovery_header(false).await?;
            if after.genctr != before.genctr {
                continue;
            }
            return Ok(DiscoveryLog::of(after.genctr.get(), &bytes));
        }
        Err(HostError::Unsupported(format!("the discovery log changed in each of {READS_MAX} reads")))
    }

    async fn discovery_header(&self, retain: bool) -> Result<DiscoveryLogHeader, HostError> {
        let bytes = self.log(LogId::DISCOVERY, 0, 0, size_of::<DiscoveryLogHeader>(), retain).await?;
        DiscoveryLogHeader::read_from_bytes(&bytes).map_err(|_| HostError::Data { what: "Get Log Page" })
    }
}

/// Connects to the discovery controller at `address`, reads its log and disconnects.
///
/// # Errors
/// As [`Controller::connect`] and [`Controller::discovery_log`].
pub async fn discover(
    reactor: &Rc<Reactor>,
    address: SocketAddr,
    identity: Identity,
) -> Result<DiscoveryLog, HostError> {
    let mut options = Options::new(DISCOVERY_NQN, identity);
    options.kato_ms = 0;
    let controller = Controller::connect(reactor, address, options).await?;
    let log = controller.discovery_log().await;
    controller.close().await;
    log
}

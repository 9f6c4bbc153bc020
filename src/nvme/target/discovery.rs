//! The discovery log page (Base §5.16.1.23): what a host may connect to, and where.

use std::net::IpAddr;

use zerocopy::{FromZeros, IntoBytes};

use super::engine::{Listener, Target};
use super::fault::{Fault, at};
use crate::nvme::spec::{
    AddressFamily, CNTLID_DYNAMIC, DISCOVERY_NQN, DiscoveryLogEntry, DiscoveryLogHeader, EFLAGS_DUPLICATE,
    EFLAGS_EPCSD, StatusCode, SubsystemType, TREQ_DISABLE_SQ_FLOW_CONTROL, TREQ_SECURE_NOT_REQUIRED, TransportType,
    put_text,
};

/// Size of the header and of each entry.
const RECORD_LEN: usize = size_of::<DiscoveryLogEntry>();

const _: () = assert!(RECORD_LEN == size_of::<DiscoveryLogHeader>());

/// One entry before it is written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Visible {
    subtype: SubsystemType,
    nqn: String,
    portid: u16,
    ip: IpAddr,
    port: u16,
}

/// The address at which a host that reached this target at `local` reaches a listener: its own, or for a wildcard
/// listener the local one, when the families allow it.
fn reachable(listener: &Listener, local: IpAddr) -> Option<IpAddr> {
    match listener.addr.ip() {
        ip if !ip.is_unspecified() => Some(ip.to_canonical()),
        IpAddr::V4(_) => Some(local.to_canonical()).filter(IpAddr::is_ipv4),
        // An IPv4 host shows as a mapped address only if the listener takes both families.
        IpAddr::V6(_) => Some(local).filter(IpAddr::is_ipv6).map(|ip| ip.to_canonical()),
    }
}

impl Target {
    /// What the discovery log shows a host: this discovery subsystem, then the subsystems it may use, on every
    /// listener it can reach.
    pub(super) fn visible(&self, hostnqn: &str, local: IpAddr) -> Vec<Visible> {
        let allowed = self.subsystems.values().filter(|s| s.config.hosts.allows(hostnqn));
        let all = core::iter::once((SubsystemType::CURRENT_DISCOVERY, DISCOVERY_NQN))
            .chain(allowed.map(|s| (SubsystemType::NVM, s.config.nqn.as_str())));
        let mut entries = Vec::new();
        for (subtype, nqn) in all {
            for listener in &self.params.listeners {
                if let Some(ip) = reachable(listener, local) {
                    let (portid, port) = (listener.portid, listener.addr.port());
                    entries.push(Visible { subtype, nqn: nqn.to_owned(), portid, ip, port });
                }
            }
        }
        entries
    }

    /// Writes the part of the discovery log from `offset` on to `out`; what is beyond its end reads as zeros.
    pub(super) fn discovery_log(&self, hostnqn: &str, local: IpAddr, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
        let entries = self.visible(hostnqn, local);
        let total = (entries.len() + 1) * RECORD_LEN;
        let start = usize::try_from(offset).ok().filter(|&start| start <= total);
        let Some(start) = start else {
            return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW12));
        };
        out.fill(0);
        let end = total.min(start + out.len());
        for index in start / RECORD_LEN..end.div_ceil(RECORD_LEN) {
            let mut record = [0; RECORD_LEN];
            match index.checked_sub(1) {
                None => {
                    let mut header = DiscoveryLogHeader::new_zeroed();
                    header.genctr.set(self.genctr);
                    header.numrec.set(entries.len() as u64);
                    record.copy_from_slice(header.as_bytes());
                }
                Some(i) => record.copy_from_slice(self.entry(&entries[i]).as_bytes()),
            }
            let record_start = index * RECORD_LEN;
            let from = start.max(record_start);
            let to = end.min(record_start + RECORD_LEN);
            out[from - start..to - start].copy_from_slice(&record[from - record_start..to - record_start]);
        }
        Ok(())
    }

    fn entry(&self, visible: &Visible) -> DiscoveryLogEntry {
        let mut entry = DiscoveryLogEntry::new_zeroed();
        entry.trtype = TransportType::TCP;
        entry.adrfam = if visible.ip.is_ipv4() { AddressFamily::IPV4 } else { AddressFamily::IPV6 };
        entry.subtype = visible.subtype;
        entry.treq = TREQ_SECURE_NOT_REQUIRED | TREQ_DISABLE_SQ_FLOW_CONTROL;
        entry.portid.set(visible.portid);
        entry.cntlid.set(CNTLID_DYNAMIC);
        entry.asqsz.set(self.params.max_admin_entries);
        if visible.subtype == SubsystemType::CURRENT_DISCOVERY {
            entry.eflags.set(EFLAGS_DUPLICATE | EFLAGS_EPCSD);
        }
        put_text(&mut entry.trsvcid, &visible.port.to_string(), b' ');
        put_text(&mut entry.subnqn, &visible.nqn, 0);
        put_text(&mut entry.traddr, &visible.ip.to_string(), b' ');
        entry
    }
}

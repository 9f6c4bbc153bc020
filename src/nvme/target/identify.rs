//! Identify (Base §5.17).

use zerocopy::{FromZeros, IntoBytes};

use super::controller::Controller;
use super::engine::{Subsystem, TargetParams};
use super::fault::{Fault, at};
use super::namespace::NamespaceInfo;
use super::zoned;
use super::{ABORTS, ASYNC_EVENT_REQUESTS, ERROR_LOG_ENTRIES, KEEP_ALIVE_GRANULARITY_MS, MDTS};
use crate::nvme::spec::{
    CTRATT_HOST_ID_128, Cns, Csi, FUSES_COMPARE_AND_WRITE, IDENTIFY_LEN, IdentifyController, IdentifyControllerNvm,
    IdentifyFields, IdentifyNamespaceNvm, LPA_COMMANDS_EFFECTS, LPA_EXTENDED_DATA, LPA_SUPPORTED_PAGES,
    NAMESPACE_LIST_MAX, NSID_BROADCAST, OAES_DISCOVERY_LOG, OAES_NAMESPACE_ATTRIBUTE, ONCS_COMPARE, ONCS_DSM,
    ONCS_SAVE_SELECT, ONCS_VERIFY, ONCS_WRITE_ZEROES, SGLS_OFFSET, SGLS_SUPPORTED, SGLS_TRANSPORT, Sqe, StatusCode,
    VERSION_2_0, VWC_FLUSH_BROADCAST_REFUSED, VWC_PRESENT, put_text,
};

/// Writes the data structure that `sqe` asks for.
pub(super) fn identify(
    controller: &Controller,
    subsystem: Option<&Subsystem>,
    params: &TargetParams,
    sqe: &Sqe,
    out: &mut [u8; IDENTIFY_LEN],
) -> Result<(), Fault> {
    out.fill(0);
    let fields = IdentifyFields::of(sqe);
    let nsid = sqe.nsid.get();
    const BAD_CNS: Fault = Fault::at(StatusCode::INVALID_FIELD, at::CDW10);
    if fields.cns == Cns::CONTROLLER {
        put(out, &identify_controller(controller, subsystem, params));
        return Ok(());
    }
    if controller.is_discovery() {
        return Err(BAD_CNS);
    }
    let Some(subsystem) = subsystem else {
        // Removed by a reload; its controllers are being closed.
        return Err(Fault::new(StatusCode::INVALID_NAMESPACE));
    };
    let namespaces = &subsystem.namespaces;
    let sees_zones = controller.has_all_command_sets();
    let check_csi = || match fields.csi {
        Csi::NVM => Ok(()),
        Csi::ZONED if sees_zones && namespaces.is_zoned() => Ok(()),
        _ => Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW11)),
    };
    let is_seen = |ns: &&NamespaceInfo| sees_zones || ns.zones.is_none();
    match fields.cns {
        // A valid NSID that is not active returns zeros.
        Cns::NAMESPACE | Cns::NAMESPACE_INDEPENDENT | Cns::NAMESPACE_CSI => {
            if fields.cns == Cns::NAMESPACE_CSI {
                check_csi()?;
            }
            if !namespaces.is_valid(nsid) {
                return Err(Fault::at(StatusCode::INVALID_NAMESPACE, at::NSID));
            }
            if let Some(ns) = namespaces.get(nsid).filter(is_seen) {
                match (fields.cns, &ns.zones) {
                    (Cns::NAMESPACE, _) => put(out, &ns.identify()),
                    (Cns::NAMESPACE_CSI, _) if fields.csi != ns.csi() => {
                        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW11));
                    }
                    (Cns::NAMESPACE_CSI, Some(zones)) => put(out, &zones.identify()),
                    (Cns::NAMESPACE_CSI, None) => put(out, &IdentifyNamespaceNvm::new_zeroed()),
                    _ => put(out, &ns.identify_independent()),
                }
            }
        }
        Cns::ACTIVE_NAMESPACES | Cns::ACTIVE_NAMESPACES_CSI => {
            let of_set = fields.cns == Cns::ACTIVE_NAMESPACES_CSI;
            if of_set {
                check_csi()?;
            }
            if nsid >= NSID_BROADCAST - 1 {
                return Err(Fault::at(StatusCode::INVALID_NAMESPACE, at::NSID));
            }
            let listed = namespaces.iter().filter(is_seen).filter(|ns| !of_set || ns.csi() == fields.csi);
            let after = listed.map(|ns| ns.nsid).filter(|&id| id > nsid);
            for (slot, id) in out.chunks_exact_mut(4).zip(after.take(NAMESPACE_LIST_MAX)) {
                slot.copy_from_slice(&id.to_le_bytes());
            }
        }
        Cns::NAMESPACE_DESCRIPTORS => {
            let ns = Some(namespaces.resolve(nsid)?).filter(is_seen);
            *out = ns.ok_or_else(|| namespaces.unresolved(nsid))?.descriptors();
        }
        Cns::CONTROLLER_CSI => {
            check_csi()?;
            if fields.csi == Csi::ZONED {
                put(out, &zoned::identify_controller(namespaces));
                return Ok(());
            }
            // All limits 0: a command is bounded by its own fields only. A Verify of as many blocks as they can say, up to 256 MiB, is
            // read a few pieces at a time where its volume has no better way.
            put(out, &IdentifyControllerNvm::new_zeroed());
        }
        Cns::COMMAND_SETS => {
            if fields.cntid != 0xffff && fields.cntid != controller.cntlid {
                return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10 + 2));
            }
            // One combination of command sets: the NVM Command Set, and that of zones where there are any.
            out[0] = 1 << Csi::NVM.0 | u8::from(namespaces.is_zoned()) << Csi::ZONED.0;
        }
        _ => return Err(BAD_CNS),
    }
    Ok(())
}

fn put<T: IntoBytes + zerocopy::Immutable>(out: &mut [u8; IDENTIFY_LEN], data: &T) {
    out.copy_from_slice(data.as_bytes());
}

fn identify_controller(
    controller: &Controller,
    subsystem: Option<&Subsystem>,
    params: &TargetParams,
) -> IdentifyController {
    let mut id = IdentifyController::new_zeroed();
    put_text(&mut id.sn, subsystem.map_or("", |s| &s.config.serial), b' ');
    put_text(&mut id.mn, subsystem.map_or("reactor discovery", |s| &s.config.model), b' ');
    put_text(&mut id.fr, &params.firmware, b' ');
    // Several controllers, and several ports when there are several listeners.
    id.cmic = 1 << 1 | u8::from(params.listeners.len() > 1);
    id.mdts = MDTS;
    id.cntlid.set(controller.cntlid);
    id.ver.set(VERSION_2_0);
    id.ctratt.set(CTRATT_HOST_ID_128);
    id.cntrltype = controller.kind;
    id.acl_z = ABORTS - 1;
    id.aerl_z = ASYNC_EVENT_REQUESTS as u8 - 1;
    id.elpe_z = ERROR_LOG_ENTRIES as u8 - 1;
    id.kas_100ms.set((KEEP_ALIVE_GRANULARITY_MS / 100) as u16);
    id.lpa = LPA_EXTENDED_DATA | LPA_SUPPORTED_PAGES;
    id.sqes = 0x66;
    id.cqes = 0x44;
    id.sgls.set(SGLS_SUPPORTED | SGLS_OFFSET | SGLS_TRANSPORT);
    id.msdbd = 1;
    id.ioccsz_16b.set(4);
    id.iorcsz_16b.set(1);
    put_text(&mut id.subnqn, &controller.subnqn, 0);
    if controller.is_discovery() {
        id.oaes.set(OAES_DISCOVERY_LOG);
        id.maxcmd.set(params.max_admin_entries);
        // A direct discovery controller.
        id.dctype = 1;
        return id;
    }
    id.oaes.set(OAES_NAMESPACE_ATTRIBUTE);
    id.lpa |= LPA_COMMANDS_EFFECTS;
    // One firmware slot, read-only.
    id.frmw = 1 << 1 | 1;
    id.maxcmd.set(params.max_io_entries);
    id.ioccsz_16b.set((64 + params.in_capsule_len) / 16);
    id.nn.set(params.max_nsid);
    id.mnan.set(params.max_namespaces);
    id.oncs.set(ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES | ONCS_SAVE_SELECT | ONCS_VERIFY);
    id.fuses.set(FUSES_COMPARE_AND_WRITE);
    // Always present: a namespace with a cache may be added while hosts are connected, and hosts that read 0 here never
    // send Flush.
    id.vwc = VWC_PRESENT | VWC_FLUSH_BROADCAST_REFUSED;
    // AWUN, AWUPF and ACWU stay at one block, the least of any namespace; each namespace states its own.
    id
}

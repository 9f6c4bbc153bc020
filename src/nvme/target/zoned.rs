//! The Zoned Namespace Command Set (ZNS §3.4): what its commands ask, and what Identify says.

use zerocopy::FromZeros;

use super::MAX_TRANSFER_LEN;
use super::fault::{Fault, at};
use super::io::{DataPlace, IoOp, IoRequest, ZoneAsk, check_protection, check_write, data_place, range_of};
use super::namespace::{NamespaceInfo, Namespaces, ZoneInfo};
use crate::nvme::spec::{
    Fuse, IdentifyControllerZoned, IdentifyNamespaceZoned, NvmOpcode, OZCS_READ_ACROSS, Psdt, RwCdw12, Sqe, StatusCode,
    ZoneDescriptor, ZoneReceiveAction, ZoneReceiveFields, ZoneReportFilter, ZoneReportHeader, ZoneSendAction,
    ZoneSendFields, ZoneState,
};

/// Bytes of the header of a report, and of each descriptor behind it.
pub(super) const DESCRIPTOR_LEN: usize = size_of::<ZoneDescriptor>();

const _: () = assert!(size_of::<ZoneReportHeader>() == DESCRIPTOR_LEN);

/// log2 of the unit of ZASL: the smallest memory page.
const PAGE_SHIFT: u32 = 12;

/// Decodes a command that only zoned namespaces have.
#[cold]
pub(super) fn decode<'a>(
    sqe: &Sqe,
    namespaces: &'a Namespaces,
    capsule_len: u32,
) -> Result<(IoRequest, &'a NamespaceInfo), Fault> {
    const PLAIN: u8 = Psdt::SGL.0 << 6;
    if sqe.flags != PLAIN {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::FLAGS));
    }
    let ns = namespaces.resolve(sqe.nsid.get())?;
    let Some(zones) = &ns.zones else {
        return Err(Fault::at(StatusCode::INVALID_OPCODE, at::OPCODE));
    };
    let request = match sqe.nvm_opcode() {
        NvmOpcode::ZONE_APPEND => append(sqe, ns, zones, capsule_len)?,
        NvmOpcode::ZONE_MANAGEMENT_SEND => send(sqe, ns, zones, capsule_len)?,
        _ => receive(sqe, ns, capsule_len)?,
    };
    Ok((request, ns))
}

fn request(op: IoOp, ns: &NamespaceInfo, lba: u64) -> IoRequest {
    IoRequest {
        op,
        place: DataPlace::None,
        fuse: Fuse::NONE,
        nsid: ns.nsid,
        fua: false,
        deallocate: false,
        lba,
        blocks: 0,
        data_len: 0,
        zone: ZoneAsk::default(),
    }
}

/// Zone Append (ZNS §3.4.1).
fn append(sqe: &Sqe, ns: &NamespaceInfo, zones: &ZoneInfo, capsule_len: u32) -> Result<IoRequest, Fault> {
    let cdw12 = sqe.cdw12.get();
    let (lba, blocks) = range_of(sqe, ns)?;
    check_protection(cdw12)?;
    let len = blocks << ns.block_shift();
    if u64::from(len) > zones.append_max.min(u64::from(MAX_TRANSFER_LEN)) {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW12));
    }
    check_write(cdw12, ns)?;
    if !lba.is_multiple_of(zones.blocks) {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10));
    }
    let place = data_place(sqe, true, capsule_len)?;
    if sqe.dptr.length.get() != len {
        return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
    }
    let fua = cdw12 & RwCdw12::FUA != 0;
    Ok(IoRequest { place, fua, blocks, data_len: len, ..request(IoOp::ZoneAppend, ns, lba) })
}

/// Zone Management Send (ZNS §3.4.3). No zone becomes read only here, so that none is taken offline, and no format has descriptor
/// extensions.
fn send(sqe: &Sqe, ns: &NamespaceInfo, zones: &ZoneInfo, capsule_len: u32) -> Result<IoRequest, Fault> {
    let fields = ZoneSendFields::of(sqe);
    let op = match fields.action {
        ZoneSendAction::CLOSE => IoOp::ZoneClose,
        ZoneSendAction::FINISH => IoOp::ZoneFinish,
        ZoneSendAction::OPEN => IoOp::ZoneOpen,
        ZoneSendAction::RESET => IoOp::ZoneReset,
        _ => return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW13)),
    };
    if capsule_len != 0 {
        return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
    }
    if ns.read_only {
        return Err(Fault::at(StatusCode::NAMESPACE_WRITE_PROTECTED, at::NSID));
    }
    if fields.all {
        return Ok(IoRequest { zone: ZoneAsk { all: true, ..ZoneAsk::default() }, ..request(op, ns, 0) });
    }
    if fields.slba >= ns.blocks {
        return Err(Fault::at(StatusCode::LBA_OUT_OF_RANGE, at::CDW10));
    }
    if !fields.slba.is_multiple_of(zones.blocks) {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10));
    }
    Ok(request(op, ns, fields.slba))
}

/// Zone Management Receive (ZNS §3.4.2).
fn receive(sqe: &Sqe, ns: &NamespaceInfo, capsule_len: u32) -> Result<IoRequest, Fault> {
    let fields = ZoneReceiveFields::of(sqe);
    if fields.action != ZoneReceiveAction::REPORT || fields.filter > ZoneReportFilter::OFFLINE {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW13));
    }
    let len = fields.bytes();
    if !(DESCRIPTOR_LEN as u64..=u64::from(MAX_TRANSFER_LEN)).contains(&len) {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW12));
    }
    if fields.slba >= ns.blocks {
        return Err(Fault::at(StatusCode::LBA_OUT_OF_RANGE, at::CDW10));
    }
    let place = data_place(sqe, false, capsule_len)?;
    if u64::from(sqe.dptr.length.get()) != len {
        return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
    }
    let zone = ZoneAsk { all: false, partial: fields.partial, filter: fields.filter };
    Ok(IoRequest { place, data_len: len as u32, zone, ..request(IoOp::ZoneReport, ns, fields.slba) })
}

/// Whether a report with this filter is of zones in this state.
pub(super) fn is_wanted(filter: ZoneReportFilter, state: ZoneState) -> bool {
    match filter {
        ZoneReportFilter::ALL => true,
        ZoneReportFilter::EMPTY => state == ZoneState::EMPTY,
        ZoneReportFilter::IMPLICITLY_OPEN => state == ZoneState::IMPLICITLY_OPEN,
        ZoneReportFilter::EXPLICITLY_OPEN => state == ZoneState::EXPLICITLY_OPEN,
        ZoneReportFilter::CLOSED => state == ZoneState::CLOSED,
        ZoneReportFilter::FULL => state == ZoneState::FULL,
        ZoneReportFilter::READ_ONLY => state == ZoneState::READ_ONLY,
        ZoneReportFilter::OFFLINE => state == ZoneState::OFFLINE,
        _ => false,
    }
}

/// The header of a report on so many zones.
pub(super) fn header(zones: u64) -> [u8; DESCRIPTOR_LEN] {
    zerocopy::transmute!(ZoneReportHeader { zones: zones.into(), reserved8: [0; 56] })
}

impl ZoneInfo {
    /// Identify Namespace of this command set, CNS 05h CSI 02h (ZNS §4.1.5.1).
    pub(super) fn identify(&self) -> IdentifyNamespaceZoned {
        let mut id = IdentifyNamespaceZoned::new_zeroed();
        id.ozcs.set(if self.read_across { OZCS_READ_ACROSS } else { 0 });
        let zeros_based = |most: Option<u32>| most.map_or(u32::MAX, |most| most.saturating_sub(1));
        id.mar_z.set(zeros_based(self.active_max));
        id.mor_z.set(zeros_based(self.open_max));
        id.lbafe[0].zsze.set(self.blocks);
        id
    }
}

/// Identify Controller of this command set, CNS 06h CSI 02h (ZNS §4.1.5.2): the largest append that every zoned namespace takes.
pub(super) fn identify_controller(namespaces: &Namespaces) -> IdentifyControllerZoned {
    let least = namespaces.iter().filter_map(|ns| Some(ns.zones.as_ref()?.append_max)).min().unwrap_or(0);
    let most = least.clamp(1 << PAGE_SHIFT, u64::from(MAX_TRANSFER_LEN));
    let mut id = IdentifyControllerZoned::new_zeroed();
    // 0 would be no limit of its own.
    id.zasl = (most.ilog2() - PAGE_SHIFT).max(1) as u8;
    id
}

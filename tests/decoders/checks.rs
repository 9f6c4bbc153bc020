//! What must hold for any bytes from the wire: one function for each decoder, shared by the seeded tests beside this file and by
//! the targets in `fuzz/`.
//!
//! Each says whether the input was accepted. None may panic. Work is bounded by the input, what is decoded stays in its bounds, how the bytes were cut does not matter, and
//! what was decoded is found again after it was encoded.

use std::net::{IpAddr, Ipv4Addr};

use reactor::nvme::host::DiscoveryLog;
use reactor::nvme::io::{Geometry, Identified, Unmapping, identity, transfer_max};
use reactor::nvme::spec::{
    AbortFields, AsyncEventResult, CNTLID_DYNAMIC, Cap, Cmbloc, Cmbsz, Cqe, CreateCqFields, CreateSqFields, Crto,
    DOORBELLS, Doorbells, ErrorLogEntry, FeatureFields, FirmwareSlotLog, FormatFields, Fuse, GetLogFields,
    IdentifyController, IdentifyControllerNvm, IdentifyControllerZoned, IdentifyFields, IdentifyNamespace,
    IdentifyNamespaceZoned, InvalidParameter, NamespaceIds, NvmOpcode, Property, PropertySetCmd, Psdt, QueueCounts,
    SglDescriptor, Sqe, Status, ZoneReceiveFields, ZoneSendFields, all_namespaces_changed, descriptors, namespace_list,
    ready_timeout_ms, zone_report,
};
use reactor::nvme::spec::{ConnectCmd, ConnectData, put_text};
use reactor::nvme::target::{
    AdminContext, AllowedHosts, ConnectRequest, ControllerHandle, DataPlace, IoOp, MAX_TRANSFER_LEN, NamespaceInfo,
    Namespaces, Outcome, SmartCounters, SubsystemConfig, Target, TargetParams, ZoneInfo, admin_transfer, decode_io,
    dsm_ranges,
};
use reactor::nvme::tcp::{
    DataPdu, Decoder, Event, Framing, Limits, MAX_PREFIX_LEN, Negotiated, R2tPdu, Role, TERM_DATA_MAX, ic_req, ic_resp,
    term_req,
};
use reactor::reactor::io::IoOp as Op;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// The first bytes of the input of [`stream`], which say how the rest is received.
pub const STREAM_HEAD: usize = 3;
/// Most data in the capsules and data PDUs of [`stream`].
const STREAM_LIMITS: Limits = Limits { in_capsule: 8192, data: 131_072, alignment_z: 0 };
/// The last byte of the transcript of a stream that broke.
const BROKEN: u8 = 0xbb;
/// Bytes of a command in the input of [`admin`]: the length of its capsule's data, then the entry.
pub const ADMIN_STEP: usize = 2 + size_of::<Sqe>();
/// Subsystem of the targets here.
pub const NQN: &str = "nqn.2026-11.io.reactor:vol0";
/// A host.
pub const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";

/// How a stream is received.
#[derive(Clone, Copy)]
struct Mode {
    role: Role,
    header_digest: bool,
    data_digest: bool,
    alignment_z: u8,
}

impl Mode {
    fn decoder(self) -> Decoder {
        Decoder::new(self.role, Limits { alignment_z: self.alignment_z, ..STREAM_LIMITS })
    }

    /// A decoder behind ICReq or ICResp.
    fn initialized(self) -> Decoder {
        let mut decoder = self.decoder();
        let mut first = [0; MAX_PREFIX_LEN];
        let len = match self.role {
            Role::Controller => ic_req(&reactor::nvme::tcp::IcRequest { hpda_z: 0, dgst: 0, maxr2t_z: 0 }, &mut first),
            Role::Host => ic_resp(&reactor::nvme::tcp::IcResponse { cpda_z: 0, dgst: 0, maxh2cdata: 4096 }, &mut first),
        };
        assert!(matches!(decoder.next(&mut &first[..len]), Ok(Some(Event::IcReq(_) | Event::IcResp(_)))));
        decoder.set_digests(self.header_digest, self.data_digest);
        decoder
    }

    /// How the other end writes.
    fn framing(self) -> Framing {
        let (sender, z) = match self.role {
            Role::Controller => (Role::Host, self.alignment_z),
            Role::Host => (Role::Controller, self.alignment_z),
        };
        let agreed = Negotiated {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            hpda_z: z,
            cpda_z: z,
            max_h2c_data: STREAM_LIMITS.data,
            max_r2t: 1,
        };
        Framing::new(sender, &agreed)
    }
}

/// The decoder of NVMe/TCP PDUs, for both ends: bits of the first byte are the role, the digests, the alignment and whether the
/// stream is past its first PDU; two bytes choose the cuts.
pub fn stream(input: &[u8]) -> bool {
    let Some((head, bytes)) = input.split_at_checked(STREAM_HEAD) else { return false };
    let bit = |n: u8| head[0] & 1 << n != 0;
    let mode = Mode {
        role: if bit(0) { Role::Host } else { Role::Controller },
        header_digest: bit(1),
        data_digest: bit(2),
        alignment_z: if bit(3) { 31 } else { 0 },
    };
    let decoder = if bit(4) { mode.initialized() } else { mode.decoder() };
    let whole = transcript(mode, decoder.clone(), bytes, usize::MAX, 0, true);
    let step = usize::from(head[1] % 61) + 1;
    let pieces = transcript(mode, decoder, bytes, step, usize::from(head[2]), false);
    assert!(whole == pieces, "in pieces of {step} the stream says something else");
    whole.last() != Some(&BROKEN)
}

/// What a decoder says of a stream: the headers, the data, the end.
fn transcript(mode: Mode, mut decoder: Decoder, bytes: &[u8], step: usize, first: usize, encode: bool) -> Vec<u8> {
    let mut said = Vec::with_capacity(2 * bytes.len() + 64);
    let mut calls = 0;
    let mut rest = bytes;
    let mut len = first.min(rest.len());
    loop {
        let (mut piece, tail) = rest.split_at(len);
        rest = tail;
        len = step.min(rest.len());
        loop {
            calls += 1;
            let before = piece.len();
            match decoder.next(&mut piece) {
                Ok(Some(event)) => {
                    assert!(piece.len() < before || matches!(event, Event::DataEnd { .. }), "no progress");
                    note(&mut said, &event);
                    if matches!(event, Event::IcReq(_) | Event::IcResp(_)) {
                        decoder.set_digests(mode.header_digest, mode.data_digest);
                    }
                    if encode {
                        round_trip(mode, &event);
                    }
                }
                Ok(None) => {
                    assert!(piece.is_empty(), "bytes are left");
                    break;
                }
                Err(error) => {
                    let header = decoder.offending_header();
                    assert!((8..=TERM_DATA_MAX).contains(&header.len()));
                    said.extend_from_slice(header);
                    said.extend_from_slice(format!("{error:?}").as_bytes());
                    assert_eq!(decoder.next(&mut &bytes[..]), Err(error), "a broken stream stays broken");
                    assert!(calls <= 3 * bytes.len() + 4, "{calls} calls");
                    said.push(BROKEN);
                    return said;
                }
            }
        }
        if rest.is_empty() {
            break;
        }
    }
    // At most one event a byte, one end a header, one call a piece.
    assert!(calls <= 3 * bytes.len() + 4, "{calls} calls for {} bytes", bytes.len());
    said.push(u8::from(decoder.at_boundary()));
    said
}

fn note(said: &mut Vec<u8>, event: &Event<'_>) {
    match event {
        Event::IcReq(req) => {
            said.extend_from_slice(&[1, req.hpda_z, req.dgst]);
            said.extend_from_slice(&req.maxr2t_z.to_le_bytes());
        }
        Event::IcResp(resp) => {
            said.extend_from_slice(&[2, resp.cpda_z, resp.dgst]);
            said.extend_from_slice(&resp.maxh2cdata.to_le_bytes());
        }
        Event::Command { sqe, data_len } => {
            assert!(*data_len <= STREAM_LIMITS.in_capsule);
            said.push(3);
            said.extend_from_slice(sqe.as_bytes());
            said.extend_from_slice(&data_len.to_le_bytes());
        }
        Event::H2cData(pdu) | Event::C2hData(pdu) => {
            assert!(pdu.datal.get() <= STREAM_LIMITS.data);
            said.push(4);
            said.extend_from_slice(pdu.as_bytes());
        }
        Event::R2t(pdu) => {
            said.push(5);
            said.extend_from_slice(pdu.as_bytes());
        }
        Event::Response(cqe) => {
            said.push(6);
            said.extend_from_slice(cqe.as_bytes());
        }
        Event::Data(data) => said.extend_from_slice(data),
        Event::DataEnd { digest_ok } => said.extend_from_slice(&[7, u8::from(*digest_ok)]),
        Event::Term { status, info } => {
            said.push(8);
            said.extend_from_slice(&status.0.to_le_bytes());
            said.extend_from_slice(&info.to_le_bytes());
        }
    }
}

/// Encodes what was decoded and decodes it again.
fn round_trip(mode: Mode, event: &Event<'_>) {
    let framing = mode.framing();
    let mut out = [0; MAX_PREFIX_LEN];
    let len = match event {
        Event::Command { sqe, data_len } => framing.capsule_cmd(sqe, *data_len, &mut out),
        Event::H2cData(pdu) => {
            framing.h2c_data(pdu.cccid.get(), pdu.ttag.get(), pdu.datao.get(), pdu.datal.get(), pdu.last(), &mut out)
        }
        Event::C2hData(pdu) => {
            framing.c2h_data(pdu.cccid.get(), pdu.datao.get(), pdu.datal.get(), pdu.last(), pdu.success(), &mut out)
        }
        Event::R2t(pdu) => framing.r2t(pdu.cccid.get(), pdu.ttag.get(), pdu.r2to.get(), pdu.r2tl.get(), &mut out),
        Event::Response(cqe) => framing.capsule_resp(cqe, &mut out),
        Event::IcReq(req) => ic_req(req, &mut out),
        Event::IcResp(resp) => ic_resp(resp, &mut out),
        Event::Term { status, info } => {
            let sender = if mode.role == Role::Host { Role::Controller } else { Role::Host };
            term_req(sender, *status, *info, &[0; 8], &mut out)
        }
        Event::Data(_) | Event::DataEnd { .. } => return,
    };
    let mut decoder = match event {
        Event::IcReq(_) | Event::IcResp(_) => mode.decoder(),
        _ => mode.initialized(),
    };
    let again = decoder.next(&mut &out[..len]);
    let same_data = |a: &DataPdu, b: &DataPdu| {
        (a.cccid, a.datao, a.datal, a.last(), a.success()) == (b.cccid, b.datao, b.datal, b.last(), b.success())
    };
    let same_r2t = |a: &R2tPdu, b: &R2tPdu| (a.cccid, a.ttag, a.r2to, a.r2tl) == (b.cccid, b.ttag, b.r2to, b.r2tl);
    let same = match (event, &again) {
        (Event::H2cData(a), Ok(Some(Event::H2cData(b)))) => same_data(a, b) && a.ttag == b.ttag,
        (Event::C2hData(a), Ok(Some(Event::C2hData(b)))) => same_data(a, b),
        (Event::R2t(a), Ok(Some(Event::R2t(b)))) => same_r2t(a, b),
        (a, Ok(Some(b))) => a == b,
        _ => false,
    };
    assert!(same, "{event:?} came back as {again:?}");
}

/// A namespace of the targets here.
fn namespace(nsid: u32, block_size: u32, read_only: bool) -> NamespaceInfo {
    NamespaceInfo {
        nsid,
        uuid: [nsid as u8 + 1; 16],
        block_size,
        blocks: 100_000,
        physical_block_size: 4096,
        optimal_write_size: 65_536,
        unmap_granularity: 4096,
        atomic_write_blocks: 1,
        atomic_write_power_fail_blocks: 1,
        compare_and_write_blocks: 8,
        read_only,
        zones: None,
    }
}

/// The namespaces that I/O commands are decoded against.
pub fn namespaces() -> Namespaces {
    let mut all = Namespaces::new(8);
    for (nsid, block_size, read_only) in [(1, 512, false), (2, 4096, false), (4, 512, true)] {
        assert!(all.insert(namespace(nsid, block_size, read_only)));
    }
    let (open_max, active_max, read_across, write_zeroes) = (Some(4), None, false, true);
    let zones = ZoneInfo { blocks: 1000, append_max: 65_536, open_max, active_max, read_across, write_zeroes };
    assert!(all.insert(NamespaceInfo { zones: Some(zones), ..namespace(6, 512, false) }));
    all
}

/// The decoder of I/O commands: two bytes are the length of the capsule's data, then the entry, then data for ranges.
pub fn io(all: &Namespaces, input: &[u8]) -> bool {
    let Some((head, rest)) = input.split_at_checked(2) else { return false };
    let Ok((sqe, data)) = Sqe::read_from_prefix(rest) else { return false };
    let capsule_len = u32::from(u16::from_le_bytes([head[0], head[1]]));
    let Ok((request, ns)) = decode_io(&sqe, all, capsule_len) else { return false };
    assert_eq!(request.nsid, ns.nsid);
    assert!(request.data_len <= MAX_TRANSFER_LEN);
    assert!(request.place != DataPlace::InCapsule || request.data_len == capsule_len);
    let of_zones = is_of_zones(request.op);
    assert!(!of_zones || ns.zones.is_some(), "{:?} where there are no zones", request.op);
    let writes = matches!(request.op, IoOp::Write | IoOp::WriteZeroes)
        || request.op == IoOp::Dsm && request.deallocate
        || of_zones && request.op != IoOp::ZoneReport;
    assert!(!(writes && ns.read_only), "a write to a read-only namespace");
    match request.op {
        IoOp::Dsm => {
            if let Ok(ranges) = dsm_ranges(&request, data, ns) {
                let ranges: Vec<(u64, u32)> = ranges.collect();
                assert!(ranges.len() <= request.blocks as usize);
                for (lba, blocks) in ranges {
                    assert!(blocks > 0 && lba.checked_add(u64::from(blocks)).is_some_and(|end| end <= ns.blocks));
                }
            }
        }
        IoOp::Flush => assert_eq!((request.blocks, request.data_len), (0, 0)),
        IoOp::ZoneReport => assert!(request.lba < ns.blocks && request.data_len >= 64 && request.data_len % 4 == 0),
        IoOp::ZoneOpen | IoOp::ZoneClose | IoOp::ZoneFinish | IoOp::ZoneReset => {
            let start = request.lba % 1000 == 0 && request.lba < ns.blocks;
            assert!(start && (request.blocks, request.data_len, request.place) == (0, 0, DataPlace::None));
            assert!(!request.zone.all || request.lba == 0);
        }
        _ => {
            let end = request.lba.checked_add(u64::from(request.blocks));
            assert!(request.blocks > 0 && end.is_some_and(|end| end <= ns.blocks), "outside of the namespace");
        }
    }
    // The command that says just this is decoded to the same.
    let opcode = match request.op {
        IoOp::Read => NvmOpcode::READ,
        IoOp::Write => NvmOpcode::WRITE,
        IoOp::Compare => NvmOpcode::COMPARE,
        IoOp::WriteZeroes => NvmOpcode::WRITE_ZEROES,
        IoOp::Verify => NvmOpcode::VERIFY,
        IoOp::ZoneAppend => NvmOpcode::ZONE_APPEND,
        _ => return true,
    };
    let mut plain = Sqe::nvm(opcode, request.nsid);
    plain.flags |= request.fuse.0;
    plain.set_slba(request.lba);
    let deallocate = if request.op == IoOp::WriteZeroes && request.deallocate { 1 << 25 } else { 0 };
    plain.cdw12.set((request.blocks - 1) | u32::from(request.fua) << 30 | deallocate);
    plain.dptr = match request.place {
        DataPlace::None => SglDescriptor::transport(0),
        DataPlace::InCapsule => SglDescriptor::in_capsule(request.data_len),
        DataPlace::HostBuffer => SglDescriptor::transport(request.data_len),
    };
    assert_eq!(decode_io(&plain, all, capsule_len).map(|(again, _)| again), Ok(request));
    assert!(request.fuse == Fuse::NONE || matches!(request.op, IoOp::Compare | IoOp::Write));
    true
}

fn is_of_zones(op: IoOp) -> bool {
    matches!(
        op,
        IoOp::ZoneAppend | IoOp::ZoneOpen | IoOp::ZoneClose | IoOp::ZoneFinish | IoOp::ZoneReset | IoOp::ZoneReport
    )
}

/// A target with one subsystem.
pub fn target() -> Target {
    let params = TargetParams {
        listeners: Vec::new(),
        max_io_queues: 8,
        max_io_entries: 128,
        max_admin_entries: 32,
        in_capsule_len: 8192,
        max_controllers: 16,
        max_nsid: 8,
        max_namespaces: 8,
        firmware: "0.1.0".to_owned(),
    };
    let mut target = Target::new(params).unwrap();
    let config = SubsystemConfig {
        nqn: NQN.to_owned(),
        serial: "S1".to_owned(),
        model: "reactor".to_owned(),
        hosts: AllowedHosts::Any,
    };
    target.add_subsystem(config).unwrap();
    target.set_namespaces(NQN, vec![namespace(1, 512, false), namespace(2, 4096, true)]).unwrap();
    target
}

/// A right Connect for a new controller: the entry, then its data.
pub fn connect_input() -> Vec<u8> {
    let mut data = ConnectData::new_zeroed();
    data.hostid = [7; 16];
    data.cntlid.set(CNTLID_DYNAMIC);
    put_text(&mut data.subnqn, NQN, 0);
    put_text(&mut data.hostnqn, HOST, 0);
    [ConnectCmd::new(0, 31, 0, 0).to_sqe().as_bytes(), data.as_bytes()].concat()
}

/// Connect: an entry, then the capsule's data. What connects leaves again.
pub fn connect(target: &mut Target, input: &[u8]) -> bool {
    let before = target.controllers().count();
    let connected = try_connect(target, input);
    if let Some(controller) = connected {
        target.disconnect(controller, 0);
        while target.poll().is_some() {}
    }
    assert_eq!(target.controllers().count(), before, "a Connect that is over left a controller");
    connected.is_some()
}

fn try_connect(target: &mut Target, input: &[u8]) -> Option<ControllerHandle> {
    let (sqe, data) = Sqe::read_from_prefix(input).ok()?;
    let request = ConnectRequest { sqe: &sqe, data, local: IpAddr::V4(Ipv4Addr::LOCALHOST), now_ns: 1 };
    match target.connect(&request) {
        Ok(connected) => {
            assert!(connected.cqe.status().is_success());
            assert_eq!(connected.cqe.cid, sqe.cid);
            assert!(
                connected.qid == 0 && (2..=32).contains(&connected.entries),
                "a queue of a controller that is not there"
            );
            Some(connected.controller)
        }
        Err(cqe) => {
            assert!(!cqe.status().is_success());
            assert_eq!(cqe.cid, sqe.cid);
            None
        }
    }
}

/// Admin commands, one after the other, to a controller that was just enabled; `out` is room for their data.
pub fn admin(input: &[u8], out: &mut [u8]) -> bool {
    let mut target = target();
    let controller = try_connect(&mut target, &connect_input()).expect("a right Connect");
    let counters = SmartCounters::default();
    let enable = PropertySetCmd::new(Property::CC.0, 1 | 6 << 16 | 4 << 20).to_sqe();
    let mut now_ns = 1_000_000_000;
    let mut succeeded = 0;
    for step in std::iter::once([&[0, 0], enable.as_bytes()].concat().as_slice()).chain(input.chunks_exact(ADMIN_STEP))
    {
        let sqe = Sqe::read_from_bytes(&step[2..]).expect("a step has a whole entry");
        now_ns += 1_000_000;
        let transfer = match admin_transfer(&sqe, u32::from(u16::from_le_bytes([step[0], step[1]]))) {
            Ok(transfer) => transfer,
            Err(fault) => {
                assert!(!target.admin_fault(controller, &sqe, fault).status().is_success());
                continue;
            }
        };
        assert!(transfer.len <= MAX_TRANSFER_LEN);
        let len = transfer.len as usize;
        let context = AdminContext { now_ns, counters: &counters };
        match target.admin(controller, &sqe, &context, &mut out[..len]) {
            Outcome::Done { cqe, data_len } => {
                assert!(data_len <= len);
                assert_eq!(cqe.cid, sqe.cid);
                succeeded += usize::from(cqe.status().is_success());
            }
            Outcome::Parked => {}
            Outcome::Abort { .. } => assert_eq!(target.abort_done(controller, &sqe, false).cid, sqe.cid),
            Outcome::Quiesce { cqe, .. } => {
                assert_eq!(cqe.cid, sqe.cid);
                target.quiesced(controller);
            }
        }
        while target.poll().is_some() {}
    }
    // One is the command that enables it.
    succeeded > 1
}

/// The discovery log as a host reads it.
pub fn discovery(input: &[u8]) -> bool {
    let log = DiscoveryLog::of(1, input);
    assert_eq!(log.entries.len(), input.len() / 1024);
    for entry in &log.entries {
        // A replacement character takes three bytes where a wrong byte took one.
        assert!(entry.nqn.len() < 256 && entry.address.len() <= 3 * 256 && entry.service.len() <= 3 * 32);
        if let (Some(at), Some(namespace)) = (entry.socket_address(), entry.namespace(1)) {
            assert_eq!((namespace.host.parse(), namespace.port), (Ok(at.ip()), at.port()));
        }
    }
    log.entries.iter().any(|entry| entry.socket_address().is_some())
}

/// What an initiator makes of identify data: changes to right data, each a place and a byte. The data is that of the controller,
/// the namespace, the limits of the NVM command set, the zones, the limits of the zoned one, and the capabilities.
pub fn identify(input: &[u8]) -> bool {
    let (mut controller, mut namespace) = (IdentifyController::new_zeroed(), IdentifyNamespace::new_zeroed());
    let (mut limits, mut zones) = (IdentifyControllerNvm::new_zeroed(), IdentifyNamespaceZoned::new_zeroed());
    let mut append = IdentifyControllerZoned::new_zeroed();
    let mut cap = [0; 8];
    namespace.nsze.set(4096);
    namespace.lbaf[0].lbads = 9;
    zones.lbafe[0].zsze.set(64);
    for change in input.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let byte = match at / 4096 {
            0 => &mut controller.as_mut_bytes()[at % 4096],
            1 => &mut namespace.as_mut_bytes()[at % 4096],
            2 => &mut limits.as_mut_bytes()[at % 4096],
            3 => &mut zones.as_mut_bytes()[at % 4096],
            4 => &mut append.as_mut_bytes()[at % 4096],
            _ => &mut cap[at % 8],
        };
        *byte = change[2];
    }
    let cap = Cap(u64::from_le_bytes(cap));
    let plain = Identified { nsid: 1, cap, controller: &controller, namespace: &namespace, limits: None, zoned: None };
    let zoned = Identified { limits: Some(&limits), zoned: Some((&zones, &append)), ..plain };
    let most = transfer_max(&controller, cap);
    assert!((4096..=1 << 20).contains(&most));
    let of_list = NamespaceIds::of(input).or(&namespace);
    assert_eq!(identity(&of_list, &controller, 1), identity(&of_list, &controller, 1));
    let geometry = Geometry::new(&plain, most, 32);
    let with_zones = Geometry::new(&zoned, most, 32);
    assert!(geometry.is_ok() || with_zones.is_err(), "zones make nothing usable");
    for geometry in [&geometry, &with_zones].into_iter().flatten() {
        let block = 1_u64 << geometry.block_shift;
        assert!(geometry.size > 0 && geometry.size.is_multiple_of(block));
        assert_eq!(geometry.size >> geometry.block_shift, namespace.nsze.get());
        let limits = &geometry.limits;
        assert!(limits.transfer_max >= block && limits.transfer_max <= 1 << 20);
        assert!(limits.zeroes_max >= block && limits.zeroes_max >> geometry.block_shift <= 1 << 16);
        assert!(limits.verify_max >> geometry.block_shift <= 1 << 16);
        assert_eq!(limits.verify_max >= block, geometry.ops.has(Op::Verify), "a limit of what is not there");
        for unit in [limits.write_granularity, limits.unmap_granularity] {
            assert!(u64::from(unit).is_multiple_of(block), "a granularity of {unit} in blocks of {block}");
        }
        let performance = namespace.nsfeat & 1 << 4 != 0;
        assert_eq!(limits.write_granularity > 0, performance, "a granularity that was lost");
        assert_eq!(limits.unmap_granularity > 0, performance, "a granularity that was lost");
        let physical = u64::from(geometry.physical_block_size);
        assert!(physical.is_power_of_two() && (block..=65_536).contains(&physical), "physical blocks of {physical}");
        assert!(geometry.compare_and_write_max >= block && limits.boundary.is_multiple_of(block));
        let deallocate = &geometry.deallocate;
        assert!((1..=256).contains(&deallocate.ranges_max));
        assert!(deallocate.range_max >= block && deallocate.range_max >> geometry.block_shift <= u64::from(u32::MAX));
        assert!(deallocate.bytes_max >= block);
        if let Some(zones) = &geometry.zones {
            assert!(zones.size > 0 && geometry.size.is_multiple_of(zones.size));
            assert!(limits.boundary > 0 && zones.size.is_multiple_of(limits.boundary), "a write could cross zones");
            assert!((block..=limits.transfer_max).contains(&zones.append_max));
        }
        let traits = geometry.traits("d".to_owned(), "nvme", [1; 16]);
        assert_eq!(traits.ops.has(Op::Unmap), geometry.unmapping != Unmapping::None);
        assert!(!traits.ops.has(Op::Unmap) || traits.ops.has(Op::WriteZeroes), "an unmap that would be advice");
    }
    geometry.is_ok()
}

/// Lists, logs and reports as a controller sends them; the first byte says which.
pub fn pages(input: &[u8]) -> bool {
    let Some((kind, page)) = input.split_first() else { return false };
    match kind % 6 {
        0 => {
            let found: Vec<_> = descriptors(page).collect();
            let bytes: usize = found.iter().map(|found| 4 + found.value.len()).sum();
            assert!(bytes <= page.len() && found.iter().all(|found| !found.value.is_empty()));
            let ids = NamespaceIds::of(page);
            assert!(ids.nguid != Some([0; 16]) && ids.uuid != Some([0; 16]) && ids.eui64 != Some([0; 8]));
            ids.uuid.is_some()
        }
        1 => {
            let found: Vec<u32> = namespace_list(page).collect();
            assert!(found.len() <= page.len() / 4 && !found.contains(&0));
            assert_eq!(all_namespaces_changed(page), found.first() == Some(&u32::MAX));
            !found.is_empty()
        }
        2 => {
            let Some((zones, there)) = zone_report(page) else { return false };
            let there: Vec<_> = there.collect();
            assert!(there.len() as u64 <= zones && there.len() < page.len() / 64);
            for zone in &there {
                assert!(zone.writable() <= zone.zcap.get());
                let mut again = **zone;
                again.set(zone.zone_type(), zone.state());
                assert_eq!((again.zone_type(), again.state()), (zone.zone_type(), zone.state()));
            }
            !there.is_empty()
        }
        3 => {
            let entries: Vec<_> = ErrorLogEntry::list(page).collect();
            assert!(entries.len() <= page.len() / 64);
            entries.iter().any(|entry| !entry.status().is_success())
        }
        4 => {
            let Ok((log, _)) = FirmwareSlotLog::ref_from_prefix(page) else { return false };
            assert!(log.active_slot() <= 7 && log.next_slot() <= 7);
            log.revision(log.active_slot()).is_some()
        }
        _ => {
            let Some((registers, _)) = page.split_first_chunk::<16>() else { return false };
            let dword = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| registers[at + byte]));
            let cap = Cap(u64::from(dword(0)) | u64::from(dword(4)) << 32);
            let (size, location) = (Cmbsz(dword(8)), Cmbloc(dword(12)));
            assert_eq!(size.bytes().is_some(), size.offset(location).is_some());
            if let (Some(offset), Some(bytes)) = (size.offset(location), size.bytes()) {
                assert!(offset.checked_add(bytes).is_some());
            }
            let bells = Doorbells::of(cap);
            let qid = dword(12) as u16;
            assert!(bells.sq_tail(qid) < bells.cq_head(qid) && bells.end(qid) > bells.cq_head(qid));
            assert_eq!(bells.cq_head(qid) - bells.shadow_cq_head(qid), u64::from(DOORBELLS));
            ready_timeout_ms(cap, Crto(dword(12))) > 0
        }
    }
}

/// Fields of commands and completions: what was read from a dword is what is written to it.
pub fn fields(input: &[u8]) -> bool {
    let Ok((sqe, rest)) = Sqe::read_from_prefix(input) else { return false };
    let (log, feature, identify) = (GetLogFields::of(&sqe), FeatureFields::of(&sqe), IdentifyFields::of(&sqe));
    let mut again = Sqe::default();
    log.put(&mut again);
    assert_eq!(GetLogFields::of(&again), log);
    let mut again = Sqe::default();
    feature.put(&mut again);
    assert_eq!(FeatureFields::of(&again), feature);
    let mut again = Sqe::default();
    identify.put(&mut again);
    assert_eq!(IdentifyFields::of(&again), identify);
    let (cq, sq) = (CreateCqFields::of(&sqe), CreateSqFields::of(&sqe));
    assert_eq!((CreateCqFields::of(&cq.to_sqe(1)), CreateSqFields::of(&sq.to_sqe(1))), (cq, sq));
    let (abort, format) = (AbortFields::of(&sqe), FormatFields::of(&sqe));
    assert_eq!((AbortFields::of(&abort.to_sqe()), FormatFields::of(&format.to_sqe(1))), (abort, format));
    let (send, receive) = (ZoneSendFields::of(&sqe), ZoneReceiveFields::of(&sqe));
    assert_eq!((ZoneSendFields::of(&send.to_sqe(1)), ZoneReceiveFields::of(&receive.to_sqe(1))), (send, receive));
    let prps = sqe.prps();
    let mut again = sqe;
    again.set_prps(prps.prp1.get(), prps.prp2.get());
    assert_eq!((again.dptr, again.psdt(), again.fuse()), (sqe.dptr, Psdt::PRP, sqe.fuse()));
    if let Ok((cqe, _)) = Cqe::read_from_prefix(rest) {
        let status = cqe.status();
        assert_eq!(Status::from_wire(status.to_wire()), status);
        let event = AsyncEventResult::of(cqe.dw0());
        assert_eq!(AsyncEventResult::of(event.to_dword()), event);
        // An event of whatever type has a name.
        assert!(!format!("{:?}", event.event()).is_empty());
        assert_eq!((cqe.dw3().cid(), cqe.dw3().status()), (cqe.cid.get(), status));
        let counts = QueueCounts::of(cqe.dw0());
        assert_eq!(counts.to_dword(), cqe.dw0());
        assert!(counts.usable() > 0 && counts.usable() <= u32::from(counts.submission_z) + 1);
        let parameter = InvalidParameter::of(cqe.dw0());
        assert_eq!(InvalidParameter::of(parameter.to_dword()), parameter);
        return true;
    }
    false
}

//! Every decoder that faces the wire, under random and mutated input from a seed. In a release build 10^7 inputs each.
//!
//! `DECODER_SEED` and `DECODER_INPUTS` choose another seed and number. A failure prints the input.

mod checks;
mod device;
mod iscsi;
mod iscsi_inputs;
mod mutate;
mod scsi;

use reactor::nvme::spec::{
    AddressFamily, AdminOpcode, Cns, Cqe, DiscoveryLogEntry, ErrorLogEntry, FeatureFields, FeatureId, FeatureSelect,
    FirmwareSlotLog, GetLogFields, IdentifyFields, LogId, NvmOpcode, Property, PropertyGetCmd, PropertySetCmd,
    SglDescriptor, Sqe, StatusCode, SubsystemType, TransportType, ZoneDescriptor, ZoneReportHeader, ZoneState,
    ZoneType, put_text,
};
use reactor::nvme::target::MAX_TRANSFER_LEN;
use reactor::nvme::tcp::{
    DataDigest, FatalErrorStatus, Framing, IcRequest, IcResponse, MAX_PREFIX_LEN, Negotiated, Role, ic_req, ic_resp,
    term_req,
};
use zerocopy::{FromZeros, IntoBytes};

use mutate::run;

/// Appends a PDU: its header, data, and the digest of the data.
fn append(stream: &mut Vec<u8>, framing: &Framing, data: &[u8], head: impl FnOnce(&mut [u8]) -> usize) {
    let mut prefix = [0; MAX_PREFIX_LEN];
    let len = head(&mut prefix);
    stream.extend_from_slice(&prefix[..len]);
    stream.extend_from_slice(data);
    if framing.data_digest() && !data.is_empty() {
        let mut digest = DataDigest::new();
        digest.update(data);
        stream.extend_from_slice(&digest.to_bytes());
    }
}

/// Streams of one end that are right: in every mode, from the first PDU and past it.
fn streams(host: bool) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for mode in 0..16_u8 {
        let z = if mode & 4 != 0 { 31 } else { 0 };
        let (header_digest, data_digest) = (mode & 1 != 0, mode & 2 != 0);
        let agreed = Negotiated { header_digest, data_digest, hpda_z: z, cpda_z: z, max_h2c_data: 131_072, max_r2t: 1 };
        let past = mode & 8 != 0;
        let mut stream = vec![u8::from(!host) | mode << 1, 7, 3];
        let mut prefix = [0; MAX_PREFIX_LEN];
        if host {
            let framing = Framing::new(Role::Host, &agreed);
            if !past {
                let len = ic_req(&IcRequest { hpda_z: z, dgst: mode & 3, maxr2t_z: 0 }, &mut prefix);
                stream.extend_from_slice(&prefix[..len]);
            }
            let mut write = Sqe::nvm(NvmOpcode::WRITE, 1);
            write.dptr = SglDescriptor::in_capsule(64);
            append(&mut stream, &framing, &[], |out| framing.capsule_cmd(&Sqe::nvm(NvmOpcode::FLUSH, 1), 0, out));
            append(&mut stream, &framing, &[9; 64], |out| framing.capsule_cmd(&write, 64, out));
            append(&mut stream, &framing, &[8; 32], |out| framing.h2c_data(1, 1, 0, 32, false, out));
            append(&mut stream, &framing, &[7; 4], |out| framing.h2c_data(1, 1, 32, 4, true, out));
            if mode % 3 == 0 {
                let len = term_req(Role::Host, FatalErrorStatus::SEQUENCE_ERROR, 0, &[3; 24], &mut prefix);
                stream.extend_from_slice(&prefix[..len]);
            }
        } else {
            let framing = Framing::new(Role::Controller, &agreed);
            if !past {
                let len = ic_resp(&IcResponse { cpda_z: z, dgst: mode & 3, maxh2cdata: 4096 }, &mut prefix);
                stream.extend_from_slice(&prefix[..len]);
            }
            let cqe = Cqe::new(3, StatusCode::SUCCESS.retry());
            append(&mut stream, &framing, &[], |out| framing.r2t(1, 1, 0, 4096, out));
            append(&mut stream, &framing, &[9; 64], |out| framing.c2h_data(1, 0, 64, false, false, out));
            append(&mut stream, &framing, &[8; 8], |out| framing.c2h_data(1, 64, 8, true, true, out));
            append(&mut stream, &framing, &[], |out| framing.capsule_resp(&cqe, out));
            if mode % 3 == 0 {
                let len = term_req(Role::Controller, FatalErrorStatus::DATA_OUT_OF_RANGE, 0, &[3; 24], &mut prefix);
                stream.extend_from_slice(&prefix[..len]);
            }
        }
        all.push(stream);
    }
    all
}

#[test]
fn streams_of_hosts() {
    run("streams_of_hosts", &streams(true), checks::STREAM_HEAD, checks::stream);
}

#[test]
fn streams_of_controllers() {
    run("streams_of_controllers", &streams(false), checks::STREAM_HEAD, checks::stream);
}

fn io_commands() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (opcode, len, in_capsule) in [
        (NvmOpcode::READ, 4096, false),
        (NvmOpcode::WRITE, 4096, true),
        (NvmOpcode::WRITE, 65_536, false),
        (NvmOpcode::COMPARE, 4096, true),
        (NvmOpcode::WRITE_ZEROES, 0, false),
        (NvmOpcode::VERIFY, 0, false),
        (NvmOpcode::FLUSH, 0, false),
        (NvmOpcode::DATASET_MANAGEMENT, 32, true),
    ] {
        // The third one is read-only.
        let writes = !matches!(opcode, NvmOpcode::READ | NvmOpcode::COMPARE | NvmOpcode::FLUSH | NvmOpcode::VERIFY);
        for (nsid, shift) in [(1, 9), (2, 12), (4, 9)].into_iter().take(if writes { 2 } else { 3 }) {
            let mut sqe = Sqe::nvm(opcode, nsid);
            sqe.set_slba(99_000);
            let mut data = Vec::new();
            if opcode == NvmOpcode::DATASET_MANAGEMENT {
                sqe.cdw10.set(1);
                sqe.cdw11.set(4);
                for lba in [5_u64, 99_990] {
                    data.extend_from_slice(&[0; 4]);
                    data.extend_from_slice(&10_u32.to_le_bytes());
                    data.extend_from_slice(&lba.to_le_bytes());
                }
            } else if opcode != NvmOpcode::FLUSH {
                sqe.cdw12.set(if len > 0 { (len >> shift) - 1 } else { 7 });
            }
            sqe.dptr = if in_capsule { SglDescriptor::in_capsule(len) } else { SglDescriptor::transport(len) };
            let capsule = if in_capsule { len as u16 } else { 0 };
            all.push([&capsule.to_le_bytes(), sqe.as_bytes(), &data].concat());
        }
    }
    all
}

#[test]
fn commands_of_io_queues() {
    let namespaces = checks::namespaces();
    run("commands_of_io_queues", &io_commands(), 0, |input| checks::io(&namespaces, input));
}

fn admin_commands() -> Vec<Sqe> {
    let mut all = Vec::new();
    for opcode in [
        AdminOpcode::IDENTIFY,
        AdminOpcode::GET_LOG_PAGE,
        AdminOpcode::SET_FEATURES,
        AdminOpcode::GET_FEATURES,
        AdminOpcode::ASYNC_EVENT_REQUEST,
        AdminOpcode::KEEP_ALIVE,
        AdminOpcode::ABORT,
    ] {
        all.push(Sqe::admin(opcode, 1));
    }
    for cns in [Cns::NAMESPACE, Cns::CONTROLLER, Cns::ACTIVE_NAMESPACES, Cns::NAMESPACE_DESCRIPTORS] {
        let mut sqe = Sqe::admin(AdminOpcode::IDENTIFY, 1);
        let mut fields = IdentifyFields::of(&sqe);
        fields.cns = cns;
        fields.put(&mut sqe);
        sqe.dptr = SglDescriptor::transport(4096);
        all.push(sqe);
    }
    for lid in [LogId::ERROR, LogId::SMART, LogId::CHANGED_NAMESPACES, LogId::COMMANDS_EFFECTS] {
        let mut sqe = Sqe::admin(AdminOpcode::GET_LOG_PAGE, 0xffff_ffff);
        let mut fields = GetLogFields::of(&sqe);
        (fields.lid, fields.numd_z) = (lid, 127);
        fields.put(&mut sqe);
        sqe.dptr = SglDescriptor::transport(512);
        all.push(sqe);
    }
    for fid in [FeatureId::KEEP_ALIVE_TIMER, FeatureId::NUMBER_OF_QUEUES, FeatureId::ASYNC_EVENT_CONFIG] {
        for opcode in [AdminOpcode::GET_FEATURES, AdminOpcode::SET_FEATURES] {
            let mut sqe = Sqe::admin(opcode, 0);
            FeatureFields { fid, select: FeatureSelect(0), save: false }.put(&mut sqe);
            sqe.cdw11.set(0x0003_0003);
            all.push(sqe);
        }
    }
    for property in [Property::CAP, Property::CC, Property::CSTS] {
        all.push(PropertyGetCmd::new(property.0, property == Property::CAP).to_sqe());
    }
    for value in [0, 1 | 6 << 16 | 4 << 20, 1 | 1 << 14 | 6 << 16 | 4 << 20] {
        all.push(PropertySetCmd::new(Property::CC.0, value).to_sqe());
    }
    all
}

#[test]
fn commands_of_admin_queues() {
    let step = |sqe: &Sqe| [&[0, 0], sqe.as_bytes()].concat();
    let commands: Vec<Vec<u8>> = admin_commands().iter().map(step).collect();
    // Thirty-two in a row to each controller.
    let rows: Vec<Vec<u8>> = (0..64)
        .map(|row| (0..32).flat_map(|n| commands[(row * 7 + n * (row % 5 + 1)) % commands.len()].clone()).collect())
        .collect();
    let mut out = vec![0; MAX_TRANSFER_LEN as usize];
    mutate::run_counted("commands_of_admin_queues", &rows, 0, 32, |input| checks::admin(input, &mut out));
}

#[test]
fn connects() {
    let mut target = checks::target();
    run("connects", &[checks::connect_input()], 0, |input| checks::connect(&mut target, input));
}

#[test]
fn discovery_logs() {
    let mut entry = DiscoveryLogEntry::new_zeroed();
    entry.trtype = TransportType::TCP;
    entry.adrfam = AddressFamily::IPV4;
    entry.subtype = SubsystemType::NVM;
    put_text(&mut entry.trsvcid, "4420", b' ');
    put_text(&mut entry.traddr, "127.0.0.1", b' ');
    put_text(&mut entry.subnqn, checks::NQN, 0);
    let one = entry.as_bytes().to_vec();
    entry.adrfam = AddressFamily::IPV6;
    put_text(&mut entry.traddr, "2001:db8::1", b' ');
    let both = [&one, entry.as_bytes()].concat();
    run("discovery_logs", &[one, both], 0, checks::discovery);
}

#[test]
fn identify_data() {
    // ONCS, FUSES, VWC, ACWU, then NSZE, NSFEAT, FLBAS, NOIOB, NPWG, NPDG, NSATTR, the first format, and DLFEAT; WZSL, DMRL and
    // DMRSL; OZCS, and the zone size; ZASL; MPSMIN.
    let right: [(u16, u8); 27] = [
        (520, 0x8d),
        (522, 1),
        (525, 1),
        (532, 7),
        (4096, 9),
        (4096 + 6, 1),
        (4096 + 24, 1 << 4),
        (4096 + 26, 0),
        (4096 + 46, 8),
        (4096 + 64, 7),
        (4096 + 65, 0xff),
        (4096 + 68, 7),
        (4096 + 69, 0xff),
        (4096 + 99, 1),
        (4096 + 128, 0),
        (4096 + 129, 0),
        (4096 + 130, 12),
        (4096 + 74, 7),
        (4096 + 33, 9),
        (8192 + 1, 5),
        (8192 + 3, 1),
        (8192 + 5, 1),
        (12_288 + 2, 1),
        (12_288 + 2816, 128),
        (12_288 + 2817, 0),
        (16_384, 3),
        (20_480 + 6, 0x40),
    ];
    let change = |(place, byte): &(u16, u8)| [&place.to_le_bytes()[..], &[*byte]].concat();
    let all: Vec<Vec<u8>> = right.windows(6).map(|some| some.iter().flat_map(change).collect()).collect();
    run("identify_data", &all, 0, checks::identify);
}

/// One page of each kind that [`checks::pages`] knows.
fn pages() -> Vec<Vec<u8>> {
    let mut identifiers = vec![0, 1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 1, 0, 0, 2, 3, 16, 0, 0];
    identifiers.extend_from_slice(&[0xcc; 16]);
    identifiers.extend_from_slice(&[0; 4]);
    let namespaces = [&[1][..], &1_u32.to_le_bytes(), &7_u32.to_le_bytes(), &[0; 8]].concat();
    let mut zone = ZoneDescriptor::default();
    zone.set(ZoneType::SEQUENTIAL_WRITE_REQUIRED, ZoneState::CLOSED);
    zone.zcap.set(96);
    zone.zslba.set(128);
    zone.wp.set(160);
    let mut header = ZoneReportHeader::new_zeroed();
    header.zones.set(2);
    let zones = [&[2], header.as_bytes(), zone.as_bytes(), zone.as_bytes()].concat();
    let mut error = ErrorLogEntry::default();
    error.error_count.set(3);
    error.status.set(StatusCode::UNRECOVERED_READ_ERROR.retry().to_wire());
    let errors = [&[3], error.as_bytes(), error.as_bytes()].concat();
    let mut firmware = FirmwareSlotLog::new_zeroed();
    firmware.afi = 0x12;
    firmware.frs[1] = *b"1.2.3   ";
    let registers =
        [&[5][..], &0x0240_0820_0f01_07ff_u64.to_le_bytes(), &0x0001_0205_u32.to_le_bytes(), &[2, 0x40, 0, 0]];
    vec![identifiers, namespaces, zones, errors, [&[4], firmware.as_bytes()].concat(), registers.concat()]
}

#[test]
fn pages_of_controllers() {
    run("pages_of_controllers", &pages(), 0, checks::pages);
}

#[test]
fn fields_of_entries() {
    let entry = |sqe: &Sqe| [sqe.as_bytes(), Cqe::new(1, StatusCode::INVALID_FIELD.dnr()).as_bytes()].concat();
    let all: Vec<Vec<u8>> = admin_commands().iter().map(entry).collect();
    run("fields_of_entries", &all, 0, checks::fields);
}

/// Inputs of the other checks that take as long as one of these, which has a world of its own.
const DEVICE_COST: u64 = 1_000;

#[test]
fn nvme_devices() {
    // Honest ones, of all kinds, up to where the change of an input begins.
    let honest = |kind: u8| [&[kind, kind.wrapping_mul(37), kind.wrapping_mul(11), kind][..], &[0; 400]].concat();
    let all: Vec<Vec<u8>> = (0..24).map(honest).collect();
    mutate::run_counted("nvme_devices", &all, device::DEVICE_HEAD, DEVICE_COST, device::device);
}

#[test]
fn nvme_devices_that_lie_again_and_again() {
    let make = |random: &mut mutate::Random| {
        let often = [200, 50, 10, 2][random.below(4)];
        let lies = random.below(500);
        let byte = |random: &mut mutate::Random| if random.below(often) == 0 { random.next() as u8 } else { 0 };
        let head: Vec<u8> = (0..device::DEVICE_HEAD).map(|_| random.next() as u8).collect();
        head.into_iter().chain((0..lies).map(|_| byte(random))).collect()
    };
    mutate::run_made("nvme_devices_that_lie_again_and_again", DEVICE_COST, make, device::device);
}

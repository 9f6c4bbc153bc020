//! INQUIRY: standard data and vital product data pages (SPC-4 §6.6, §7.8, SBC-3 §6).

use super::copy;
use super::data::Put;
use super::spec::{PERIPHERAL_ABSENT, Sense, VpdPage};
use super::unit::{TargetPort, UNMAP_DESCRIPTORS_MAX, Unit};

/// Bytes of standard INQUIRY data with the version descriptors.
const STANDARD_LEN: usize = 96;

/// VERSION: SPC-4.
const VERSION: u8 = 0x06;

/// Version descriptors: SAM-5, SPC-4, SBC-3, each without a claim of a revision.
const VERSIONS: [u16; 3] = [0x00a0, 0x0460, 0x04c0];

/// Standard INQUIRY data.
pub(super) fn standard(unit: &Unit, ports: usize) -> Vec<u8> {
    let mut out = vec![0; STANDARD_LEN];
    let (vendor, product, revision) = unit.names();
    out[2] = VERSION;
    // HISUP: LUNs as SAM has them; response data format 2.
    out[3] = 0x12;
    out[4] = (STANDARD_LEN - 5) as u8;
    // TPGS 01b: implicit asymmetric access; 3PC: third-party copy.
    out[5] = 0x10 | u8::from(unit.copies) << 3;
    // MULTIP.
    out[6] = u8::from(ports > 1) << 4;
    // CMDQUE.
    out[7] = 0x02;
    out[8..16].copy_from_slice(&vendor);
    out[16..32].copy_from_slice(&product);
    out[32..36].copy_from_slice(&revision);
    let transport = Some(unit.transport_version).filter(|&version| version != 0);
    for (index, version) in VERSIONS.into_iter().chain(transport).enumerate() {
        out.set_u16(58 + 2 * index, version);
    }
    out
}

/// Standard INQUIRY data of a logical unit that does not exist.
pub(super) fn absent() -> Vec<u8> {
    let mut out = vec![0; 36];
    out[0] = PERIPHERAL_ABSENT;
    out[2] = VERSION;
    out[3] = 0x12;
    out[4] = 31;
    out[8..36].fill(b' ');
    out
}

/// The pages of `unit`, ascending.
fn pages(unit: &Unit) -> impl Iterator<Item = VpdPage> + use<> {
    let copies = unit.copies;
    [
        VpdPage::SUPPORTED,
        VpdPage::SERIAL,
        VpdPage::IDENTIFICATION,
        VpdPage::EXTENDED_INQUIRY,
        VpdPage::MODE_POLICY,
        VpdPage::THIRD_PARTY_COPY,
        VpdPage::BLOCK_LIMITS,
        VpdPage::CHARACTERISTICS,
        VpdPage::PROVISIONING,
    ]
    .into_iter()
    .filter(move |&page| copies || page != VpdPage::THIRD_PARTY_COPY)
}

/// A vital product data page, for a nexus at `port`.
pub(super) fn page(page: VpdPage, unit: &Unit, port: Option<&TargetPort>) -> Result<Vec<u8>, Sense> {
    if !pages(unit).any(|known| known == page) {
        return Err(Sense::field(2));
    }
    let mut out = vec![0, page.0, 0, 0];
    match page {
        VpdPage::SUPPORTED => out.extend(pages(unit).map(|page| page.0)),
        VpdPage::SERIAL => out.extend_from_slice(unit.serial().as_bytes()),
        VpdPage::IDENTIFICATION => identification(&mut out, unit, port),
        VpdPage::EXTENDED_INQUIRY => {
            out.put_zeros(60);
            // SIMPSUP; V_SUP.
            out[5] = 0x01;
            out[6] = u8::from(unit.volatile_cache);
        }
        // Every page and subpage is one for all (SPC-4 §7.8.9).
        VpdPage::MODE_POLICY => out.extend_from_slice(&[0x3f, 0xff, 0, 0]),
        VpdPage::THIRD_PARTY_COPY => copy::describe(&mut out, unit),
        VpdPage::BLOCK_LIMITS => limits(&mut out, unit),
        VpdPage::CHARACTERISTICS => {
            out.put_zeros(60);
            // MEDIUM ROTATION RATE 1: it does not rotate.
            out[5] = 1;
        }
        _ => provisioning(&mut out, unit),
    }
    let len = out.len() as u16 - 4;
    out.set_u16(2, len);
    Ok(out)
}

/// Designation descriptors (SPC-4 §7.8.6).
fn identification(out: &mut Vec<u8>, unit: &Unit, port: Option<&TargetPort>) {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const UTF8: u8 = 3;
    const OF_PORT: u8 = 0x80 | 1 << 4;
    const OF_DEVICE: u8 = 0x80 | 2 << 4;
    let mut put = |first: u8, second: u8, value: &[u8]| {
        // What follows counts its length in a byte.
        let value = &value[..value.len().min(usize::from(u8::MAX))];
        out.extend_from_slice(&[first, second, 0, value.len() as u8]);
        out.extend_from_slice(value);
    };
    put(BINARY, 0x03, &unit.naa());
    let mut vendor = unit.names().0.to_vec();
    vendor.extend_from_slice(unit.serial().as_bytes());
    put(ASCII, 0x01, &vendor);
    let Some(port) = port else { return };
    let protocol = port.protocol << 4;
    let [high, low] = port.relative_id.to_be_bytes();
    put(protocol | BINARY, OF_PORT | 0x04, &[0, 0, high, low]);
    let [high, low] = port.group.to_be_bytes();
    put(protocol | BINARY, OF_PORT | 0x05, &[0, 0, high, low]);
    put(protocol | UTF8, OF_PORT | 0x08, &name_string(&port.port_name));
    put(protocol | UTF8, OF_DEVICE | 0x08, &name_string(&port.device_name));
}

/// A SCSI name string: it ends with one to four NULs, at a multiple of 4 bytes (SPC-4 §7.8.6.11).
fn name_string(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.truncate(248);
    bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    bytes
}

/// Block Limits (SBC-3, Block Limits VPD page; with the atomic limits SBC-4 §6.6.4).
fn limits(out: &mut Vec<u8>, unit: &Unit) {
    // WSNZ is zero: WRITE SAME without a length goes to the end.
    out.extend_from_slice(&[0, unit.compare_and_write_max]);
    out.put_u16(unit.optimal_granularity);
    out.put_u32(unit.transfer_max);
    out.put_u32(unit.optimal_transfer);
    // MAXIMUM PREFETCH LENGTH: no limit.
    out.put_u32(0);
    out.put_u32(unit.unmap_limit());
    out.put_u32(if unit.can_unmap { UNMAP_DESCRIPTORS_MAX } else { 0 });
    out.put_u32(unit.unmap_granularity);
    out.put_u32(unit.unmap_alignment.map_or(0, |alignment| 0x8000_0000 | alignment));
    out.put_u64(unit.write_same_max);
    let atomic = unit.atomic.map_or([0; 3], |atomic| [atomic.max, atomic.alignment, atomic.granularity]);
    for value in atomic {
        out.put_u32(value);
    }
    // No atomic boundaries.
    out.put_u64(0);
}

/// Logical Block Provisioning (SBC-3, Logical Block Provisioning VPD page).
fn provisioning(out: &mut Vec<u8>, unit: &Unit) {
    let threshold_exponent = super::report::threshold_exponent(unit);
    // LBPU, LBPWS, LBPWS10; LBPRZ 001b: unmapped blocks read as zeros; ANC_SUP.
    let flags = if unit.can_unmap { 0xe4 | u8::from(unit.can_anchor) << 1 } else { 0 };
    // PROVISIONING TYPE 2: thin.
    out.extend_from_slice(&[threshold_exponent, flags, if unit.can_unmap { 2 } else { 0 }, 0]);
}

//! EXTENDED COPY(LID1) as a plan, and RECEIVE COPY RESULTS (SPC-4 §5.17.7, §6.4, §6.5, §6.22, §6.25).
//!
//! Copy source and copy destination (CSCD) descriptors are of type E4h, identification; segments are block to block: 02h in blocks, 0Ah in
//! bytes. A copy moves whole blocks only, which DATA SEGMENT GRANULARITY says.

use super::data::Put;
use super::spec::*;
use super::unit::Unit;

/// CSCD descriptors of one list.
const CSCDS_MAX: u16 = 8;
/// Segment descriptors of one list.
const SEGMENTS_MAX: u16 = 64;
/// Bytes of all descriptors of one list.
const DESCRIPTORS_MAX: u32 = 2048;
/// Bytes of one segment.
const SEGMENT_BYTES_MAX: u32 = 64 << 20;
/// Copies of one logical unit at a time.
pub(super) const COPIES_MAX: u16 = 16;

const HEADER_LEN: usize = 16;
const CSCD_LEN: usize = 32;

/// Bytes of the longest parameter list: there is no inline data.
pub(super) const COPY_LIST_MAX: usize = HEADER_LEN + DESCRIPTORS_MAX as usize;

const CSCD_IDENTIFICATION: u8 = 0xe4;
const SEGMENT_BLOCKS: u8 = 0x02;
const SEGMENT_BYTES: u8 = 0x0a;

/// Bytes of a segment descriptor behind its length field.
const SEGMENT_BLOCKS_LEN: u16 = 0x18;
const SEGMENT_BYTES_LEN: u16 = 0x1c;

/// What a CSCD descriptor names a logical unit with (SPC-4 §7.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Designator {
    /// Code set.
    pub code_set: u8,
    /// Association; 0 is the logical unit.
    pub association: u8,
    /// Designator type; 3 is NAA.
    pub kind: u8,
    len: u8,
    bytes: [u8; 20],
}

impl Designator {
    /// The identifier.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether it is the NAA designator of `unit`.
    pub fn names(&self, unit: &Unit) -> bool {
        (self.code_set, self.association, self.kind) == (1, 0, 3) && self.bytes() == unit.naa()
    }
}

/// What the status of a copy is kept for (LIST ID USAGE, SPC-4 §6.4.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListId {
    /// Kept until it was read (00b).
    Hold(u8),
    /// Kept while the copy runs (10b).
    Discard(u8),
    /// There is none (11b).
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cscd {
    designator: Designator,
    block_size: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amount {
    /// Blocks of the source.
    SourceBlocks(u16),
    /// Blocks of the destination.
    DestinationBlocks(u16),
    /// Bytes.
    Bytes(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    source: u16,
    destination: u16,
    amount: Amount,
    source_lba: u64,
    destination_lba: u64,
    /// Where its descriptor begins in the parameter list.
    at: usize,
}

/// A parameter list of EXTENDED COPY, whose form is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyList {
    /// What the status is kept for.
    pub list_id: ListId,
    cscds: Vec<Cscd>,
    segments: Vec<Segment>,
}

/// A logical unit as a copy needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyUnit<T> {
    /// How the caller knows it.
    pub unit: T,
    /// Size in blocks.
    pub blocks: u64,
    /// Block size in bytes.
    pub block_size: u32,
    /// Reservations let the nexus read it.
    pub readable: bool,
    /// Reservations let the nexus write it.
    pub writable: bool,
    /// Writes are refused, by its owner or by SWP.
    pub protected: bool,
}

/// One step of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopySegment<T> {
    /// From where.
    pub source: T,
    /// First block there.
    pub source_lba: u64,
    /// To where.
    pub destination: T,
    /// First block there.
    pub destination_lba: u64,
    /// Bytes: whole blocks of both, not 0.
    pub bytes: u32,
    /// Which segment descriptor it is of; [`Sense::copy_aborted`] tells it if the step fails.
    pub index: u16,
}

impl CopyList {
    /// Reads a parameter list.
    ///
    /// # Errors
    /// PARAMETER LIST LENGTH ERROR; TOO MANY TARGET or SEGMENT DESCRIPTORS; UNSUPPORTED TARGET or SEGMENT DESCRIPTOR TYPE CODE; INLINE DATA
    /// LENGTH EXCEEDED; INCORRECT COPY TARGET DEVICE TYPE; INVALID FIELD IN PARAMETER LIST. Each with the byte at fault.
    pub fn decode(list: &[u8]) -> Result<Self, Sense> {
        let (Some(cscds_len), Some(segments_len), Some(inline_len), Some(&[id, flags])) =
            (take_u16(list, 2), take_u32(list, 8), take_u32(list, 12), list.first_chunk())
        else {
            return Err(Sense::list_length());
        };
        let descriptors = u64::from(cscds_len) + u64::from(segments_len);
        if descriptors > u64::from(DESCRIPTORS_MAX) || HEADER_LEN as u64 + descriptors > list.len() as u64 {
            return Err(Sense::list_length().at(2));
        }
        if inline_len != 0 {
            return Err(Sense::illegal(Asc::INLINE_DATA_EXCEEDED).at(12));
        }
        let list_id = match flags >> 3 & 3 {
            0b00 => ListId::Hold(id),
            0b10 => ListId::Discard(id),
            0b11 if id == 0 => ListId::None,
            0b11 => return Err(Sense::parameter(0)),
            _ => return Err(Sense::parameter(1)),
        };
        let cscds_len = usize::from(cscds_len);
        if !cscds_len.is_multiple_of(CSCD_LEN) {
            return Err(Sense::parameter(2));
        }
        if cscds_len / CSCD_LEN > usize::from(CSCDS_MAX) {
            return Err(Sense::illegal(Asc::TOO_MANY_CSCDS).at(2));
        }
        let segments_at = HEADER_LEN + cscds_len;
        let (head, segments) = list[..HEADER_LEN + descriptors as usize].split_at(segments_at);
        let mut cscds = Vec::with_capacity(usize::from(CSCDS_MAX));
        for (index, descriptor) in head[HEADER_LEN..].as_chunks::<CSCD_LEN>().0.iter().enumerate() {
            cscds.push(decode_cscd(descriptor, HEADER_LEN + index * CSCD_LEN)?);
        }
        Ok(Self { list_id, cscds, segments: decode_segments(segments, segments_at)? })
    }

    /// Whether it names a logical unit, as a source or a destination.
    pub fn names(&self, unit: &Unit) -> bool {
        self.cscds.iter().any(|cscd| cscd.designator.names(unit))
    }

    /// What to copy, in order. `resolve` finds the logical unit that a designator names and that the nexus sees.
    ///
    /// # Errors
    /// COPY ABORTED with the number of the segment: UNREACHABLE COPY TARGET for a CSCD that is not in the list, COPY TARGET DEVICE NOT
    /// REACHABLE for one that nobody has, THIRD PARTY DEVICE FAILURE for one that a reservation forbids, no additional sense for blocks that
    /// it does not have. DATA PROTECT. INVALID FIELD IN PARAMETER LIST for a wrong block size, parts of blocks, or a segment that is too long.
    pub fn plan<T: Copy>(
        &self,
        mut resolve: impl FnMut(&Designator) -> Option<CopyUnit<T>>,
    ) -> Result<Vec<CopySegment<T>>, Sense> {
        let mut steps = Vec::with_capacity(self.segments.len());
        let found: Vec<_> = self.cscds.iter().map(|cscd| resolve(&cscd.designator)).collect();
        for (index, segment) in self.segments.iter().enumerate() {
            let number = index as u16;
            let aborted = |code| Sense::copy_aborted(code, number);
            let find = |cscd: u16, index_at: usize| -> Result<CopyUnit<T>, Sense> {
                let at = usize::from(cscd);
                let (Some(cscd), Some(unit)) = (self.cscds.get(at), found.get(at)) else {
                    return Err(aborted(Asc::UNREACHABLE_COPY_TARGET).at(segment.at + index_at));
                };
                let cscd_at = HEADER_LEN + at * CSCD_LEN;
                let unit = unit.ok_or(aborted(Asc::COPY_TARGET_NOT_REACHABLE).at(cscd_at))?;
                if cscd.block_size != unit.block_size {
                    return Err(Sense::parameter(cscd_at + 29));
                }
                Ok(unit)
            };
            let (source, destination) = (find(segment.source, 4)?, find(segment.destination, 6)?);
            if !source.readable || !destination.writable {
                return Err(aborted(Asc::THIRD_PARTY_FAILURE));
            }
            if destination.protected {
                return Err(Sense::new(SenseKey::DATA_PROTECT, Asc::WRITE_PROTECTED));
            }
            let bytes = match segment.amount {
                Amount::SourceBlocks(blocks) => u32::from(blocks) * source.block_size,
                Amount::DestinationBlocks(blocks) => u32::from(blocks) * destination.block_size,
                Amount::Bytes(bytes) => bytes,
            };
            let is_whole = |unit: &CopyUnit<T>| bytes.is_multiple_of(unit.block_size);
            if bytes > SEGMENT_BYTES_MAX || !is_whole(&source) || !is_whole(&destination) {
                return Err(Sense::parameter(segment.at + 8));
            }
            let fits = |unit: &CopyUnit<T>, lba: u64| {
                let blocks = u64::from(bytes / unit.block_size);
                blocks <= unit.blocks && lba <= unit.blocks - blocks
            };
            if !fits(&source, segment.source_lba) {
                return Err(aborted(Asc::NONE).at(segment.at + 12));
            }
            if !fits(&destination, segment.destination_lba) {
                return Err(aborted(Asc::NONE).at(segment.at + 20));
            }
            if bytes != 0 {
                steps.push(CopySegment {
                    source: source.unit,
                    source_lba: segment.source_lba,
                    destination: destination.unit,
                    destination_lba: segment.destination_lba,
                    bytes,
                    index: number,
                });
            }
        }
        Ok(steps)
    }
}

fn decode_cscd(descriptor: &[u8; CSCD_LEN], at: usize) -> Result<Cscd, Sense> {
    if descriptor[0] != CSCD_IDENTIFICATION {
        return Err(Sense::illegal(Asc::UNSUPPORTED_CSCD_TYPE).at(at));
    }
    // Of the upper bits LU ID TYPE is ignored in this descriptor, and NUL is obsolete (SPC-4 §6.4.5.6).
    if descriptor[1] & 0x1f != PeripheralType::DISK.0 {
        return Err(Sense::illegal(Asc::INCORRECT_COPY_TARGET_TYPE).at(at + 1));
    }
    let len = descriptor[7];
    if len > 20 {
        return Err(Sense::parameter(at + 7));
    }
    let mut bytes = [0; 20];
    bytes.copy_from_slice(&descriptor[8..28]);
    let designator = Designator {
        code_set: descriptor[4] & 0xf,
        association: descriptor[5] >> 4 & 3,
        kind: descriptor[5] & 0xf,
        len,
        bytes,
    };
    let block_size = u32::from_be_bytes([0, descriptor[29], descriptor[30], descriptor[31]]);
    Ok(Cscd { designator, block_size })
}

fn decode_segments(mut rest: &[u8], mut at: usize) -> Result<Vec<Segment>, Sense> {
    let mut segments = Vec::with_capacity(usize::from(SEGMENTS_MAX));
    while let Some(&kind) = rest.first() {
        if segments.len() == usize::from(SEGMENTS_MAX) {
            return Err(Sense::illegal(Asc::TOO_MANY_SEGMENTS).at(8));
        }
        let expected = match kind {
            SEGMENT_BLOCKS => SEGMENT_BLOCKS_LEN,
            SEGMENT_BYTES => SEGMENT_BYTES_LEN,
            _ => return Err(Sense::illegal(Asc::UNSUPPORTED_SEGMENT_TYPE).at(at)),
        };
        if take_u16(rest, 2).is_some_and(|len| len != expected) {
            return Err(Sense::parameter(at + 2));
        }
        let Some((descriptor, after)) = rest.split_at_checked(4 + usize::from(expected)) else {
            return Err(Sense::list_length().at(8));
        };
        let (Some(source), Some(destination), Some(source_lba), Some(destination_lba)) =
            (take_u16(descriptor, 4), take_u16(descriptor, 6), take_u64(descriptor, 12), take_u64(descriptor, 20))
        else {
            return Err(Sense::list_length().at(8));
        };
        let amount = if kind == SEGMENT_BYTES {
            // Offsets into blocks would copy parts of blocks.
            if let Some(offset) = descriptor[28..32].iter().position(|&byte| byte != 0) {
                return Err(Sense::parameter(at + 28 + (offset & !1)));
            }
            Amount::Bytes(take_u32(descriptor, 8).unwrap_or(0))
        } else {
            let blocks = take_u16(descriptor, 10).unwrap_or(0);
            // DC: the number is of the destination's blocks.
            if descriptor[1] & 0x02 != 0 { Amount::DestinationBlocks(blocks) } else { Amount::SourceBlocks(blocks) }
        };
        segments.push(Segment { source, destination, amount, source_lba, destination_lba, at });
        at += descriptor.len();
        rest = after;
    }
    Ok(segments)
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// It runs.
    Running,
    /// It is done.
    Done,
    /// It ended with an error.
    Failed,
}

/// What RECEIVE COPY STATUS(LID1) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    /// How far it is.
    pub state: CopyState,
    /// Segments that were worked on.
    pub segments: u16,
    /// Bytes that were written.
    pub bytes: u64,
}

impl CopyProgress {
    /// A copy that has just begun.
    pub const START: Self = Self { state: CopyState::Running, segments: 0, bytes: 0 };

    /// The data of RECEIVE COPY STATUS(LID1) (SPC-4 §6.25).
    pub(super) fn status(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12);
        out.put_u32(8);
        out.push(match self.state {
            CopyState::Running => 0,
            CopyState::Done => 1,
            CopyState::Failed => 2,
        });
        out.put_u16(self.segments);
        // Units of TRANSFER COUNT: bytes, KiB, MiB, GiB, TiB.
        let (mut unit, mut count) = (0u8, self.bytes);
        while count > u64::from(u32::MAX) && unit < 4 {
            unit += 1;
            count >>= 10;
        }
        out.push(unit);
        out.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
        out
    }
}

/// The descriptor types, ascending.
const TYPES: [u8; 3] = [SEGMENT_BLOCKS, SEGMENT_BYTES, CSCD_IDENTIFICATION];

/// The data of RECEIVE COPY OPERATING PARAMETERS (SPC-4 §6.22).
pub(super) fn parameters(unit: &Unit) -> Vec<u8> {
    let mut out = vec![0; 8];
    out.put_u16(CSCDS_MAX);
    out.put_u16(SEGMENTS_MAX);
    out.put_u32(DESCRIPTORS_MAX);
    out.put_u32(SEGMENT_BYTES_MAX);
    // No inline data, no held data, no stream devices.
    out.put_zeros(14);
    out.put_u16(COPIES_MAX);
    out.push(COPIES_MAX as u8);
    out.push(unit.block_shift() as u8);
    out.put_zeros(5);
    out.push(TYPES.len() as u8);
    out.extend_from_slice(&TYPES);
    let available = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&available.to_be_bytes());
    // SNLID: list identifiers may be left out.
    out[4] = 1;
    out
}

/// Adds the descriptors of VPD page Third-party Copy (SPC-4 §7.8.17).
pub(super) fn describe(out: &mut Vec<u8>, unit: &Unit) {
    let mut put = |kind: u16, body: &[u8]| {
        let len = body.len().next_multiple_of(4);
        out.put_u16(kind);
        out.put_u16(len as u16);
        out.extend_from_slice(body);
        out.put_zeros(len - body.len());
    };
    // Supported Commands.
    put(
        0x0001,
        &[
            7,
            Opcode::EXTENDED_COPY.0,
            1,
            SA_EXTENDED_COPY_LID1,
            Opcode::RECEIVE_COPY.0,
            2,
            SA_COPY_STATUS_LID1,
            SA_COPY_PARAMETERS,
        ],
    );
    // Parameter Data.
    let mut body = vec![0; 4];
    body.put_u16(CSCDS_MAX);
    body.put_u16(SEGMENTS_MAX);
    body.put_u32(DESCRIPTORS_MAX);
    body.put_zeros(16);
    put(0x0004, &body);
    // Supported Descriptors.
    put(0x0008, &[TYPES.len() as u8, TYPES[0], TYPES[1], TYPES[2]]);
    // Supported CSCD Descriptor IDs: none beyond the indices of the list.
    put(0x000c, &[0, 0]);
    // General Copy Operations.
    let mut body = Vec::with_capacity(32);
    body.put_u32(u32::from(COPIES_MAX));
    body.put_u32(u32::from(COPIES_MAX));
    body.put_u32(SEGMENT_BYTES_MAX);
    body.push(unit.block_shift() as u8);
    body.put_zeros(19);
    put(0x8001, &body);
}

//! Command descriptor blocks that the tests send (SPC-4, SBC-3).

pub type Cdb = [u8; 16];

/// Status of a command (SAM-5 §5.3.1).
pub mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const CONDITION_MET: u8 = 0x04;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    pub const TASK_ABORTED: u8 = 0x40;
}

fn short(bytes: &[u8]) -> Cdb {
    let mut cdb = [0; 16];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

/// A command of sixteen bytes with an eight byte address and a four byte length.
fn long(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Cdb {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, flags);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

pub fn test_unit_ready() -> Cdb {
    [0; 16]
}

/// Page 0 without EVPD.
pub fn inquiry(page: Option<u8>, allocation: u16) -> Cdb {
    let [high, low] = allocation.to_be_bytes();
    short(&[0x12, u8::from(page.is_some()), page.unwrap_or(0), high, low])
}

/// RESERVE(6): the unit for the nexus alone, until RELEASE(6) or the loss of the nexus (SPC-2, RESERVE(6)).
pub fn reserve6() -> Cdb {
    short(&[0x16])
}

pub fn read6(lba: u32, blocks: u8) -> Cdb {
    let [_, high, middle, low] = lba.to_be_bytes();
    short(&[0x08, high, middle, low, blocks])
}

fn ten(opcode: u8, lba: u32, blocks: u16) -> Cdb {
    let mut cdb = short(&[opcode]);
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

pub fn read10(lba: u32, blocks: u16) -> Cdb {
    ten(0x28, lba, blocks)
}

pub fn write10(lba: u32, blocks: u16) -> Cdb {
    ten(0x2a, lba, blocks)
}

/// Force unit access.
pub const FUA: u8 = 0x08;

pub fn read16(lba: u64, blocks: u32) -> Cdb {
    long(0x88, 0, lba, blocks)
}

pub fn write16(lba: u64, blocks: u32, flags: u8) -> Cdb {
    long(0x8a, flags, lba, blocks)
}

/// With BYTCHK 1: compares with what is sent.
pub fn compare16(lba: u64, blocks: u32) -> Cdb {
    long(0x8f, 0x02, lba, blocks)
}

/// With BYTCHK 3: compares each block with the one that is sent.
pub fn compare_each16(lba: u64, blocks: u32) -> Cdb {
    long(0x8f, 0x06, lba, blocks)
}

/// The bitwise OR of what is there and what is sent.
pub fn orwrite16(lba: u64, blocks: u32) -> Cdb {
    long(0x8b, 0, lba, blocks)
}

/// WRITE ATOMIC(16) in pieces of `boundary` blocks; 0: in one.
pub fn write_atomic16(lba: u64, blocks: u16, boundary: u16) -> Cdb {
    let mut cdb = long(0x9c, 0, lba, 0);
    cdb[10..12].copy_from_slice(&boundary.to_be_bytes());
    cdb[12..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// FORMAT UNIT without a parameter list.
pub fn format_unit() -> Cdb {
    short(&[0x04])
}

pub fn synchronize_cache16() -> Cdb {
    long(0x91, 0, 0, 0)
}

/// One block in every block of the range; or zeros with `unmap`.
pub fn write_same16(lba: u64, blocks: u32, unmap: bool) -> Cdb {
    long(0x93, if unmap { 0x08 } else { 0 }, lba, blocks)
}

pub fn write_same10(lba: u32, blocks: u16) -> Cdb {
    ten(0x41, lba, blocks)
}

pub fn compare_and_write(lba: u64, blocks: u8) -> Cdb {
    let mut cdb = long(0x89, 0, lba, 0);
    cdb[13] = blocks;
    cdb
}

pub fn unmap(parameters: u16) -> Cdb {
    let mut cdb = short(&[0x42]);
    cdb[7..9].copy_from_slice(&parameters.to_be_bytes());
    cdb
}

/// The parameters of an UNMAP of one range (SBC-3 §5.28).
pub fn unmap_parameters(lba: u64, blocks: u32) -> Vec<u8> {
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend_from_slice(&lba.to_be_bytes());
    list.extend_from_slice(&blocks.to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    list
}

/// LOG SENSE of the cumulative values of a page.
pub fn log_sense(page: u8, allocation: u16) -> Cdb {
    let mut cdb = ten(0x4d, 0, allocation);
    cdb[2] = 0x40 | page;
    cdb
}

pub fn read_capacity16() -> Cdb {
    let mut cdb = short(&[0x9e, 0x10]);
    cdb[13] = 32;
    cdb
}

pub fn report_luns(allocation: u32) -> Cdb {
    let mut cdb = short(&[0xa0]);
    cdb[6..10].copy_from_slice(&allocation.to_be_bytes());
    cdb
}

pub fn mode_select10(parameters: u16) -> Cdb {
    let mut cdb = ten(0x55, 0, parameters);
    cdb[1] = 0x10;
    cdb
}

pub fn mode_sense10(page: u8, allocation: u16) -> Cdb {
    let mut cdb = ten(0x5a, 0, allocation);
    // Without block descriptors.
    (cdb[1], cdb[2]) = (0x08, page);
    cdb
}

/// PERSISTENT RESERVE IN: the action, room for 256 bytes.
pub fn reserve_in(action: u8) -> Cdb {
    let mut cdb = ten(0x5e, 0, 256);
    cdb[1] = action;
    cdb
}

/// PERSISTENT RESERVE OUT: the action, the type, 24 bytes of parameters.
pub fn reserve_out(action: u8, kind: u8) -> Cdb {
    let mut cdb = short(&[0x5f, action, kind]);
    cdb[8] = 24;
    cdb
}

/// Its parameters: the key of who sends it, the key it is about, and whether it outlives a loss of power.
pub fn reserve_parameters(key: u64, about: u64, aptpl: bool) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), about.to_be_bytes()].concat();
    list.extend_from_slice(&[0, 0, 0, 0, u8::from(aptpl), 0, 0, 0]);
    list
}

/// PERSISTENT RESERVE OUT with REGISTER AND MOVE, which has parameters of any length.
pub fn reserve_move(parameters: u32) -> Cdb {
    let mut cdb = short(&[0x5f, 0x07]);
    cdb[5..9].copy_from_slice(&parameters.to_be_bytes());
    cdb
}

/// Its parameters (SPC-4 §6.16.4): the key of who sends it and that of the new holder, an initiator port by its TransportID, at the target
/// port of this relative identifier. `unregister`: who sends it is registered no more.
pub fn move_parameters(key: u64, new_key: u64, unregister: bool, port: u16, to: &[u8]) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), new_key.to_be_bytes()].concat();
    list.extend_from_slice(&[0, u8::from(unregister) << 1]);
    list.extend_from_slice(&port.to_be_bytes());
    list.extend_from_slice(&(to.len() as u32).to_be_bytes());
    list.extend_from_slice(to);
    list
}

/// The TransportID of an iSCSI initiator port (SPC-4 §7.6.4.6).
pub fn transport_id(initiator: &str, isid: [u8; 6]) -> Vec<u8> {
    let digits: String = isid.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = format!("{initiator},i,0x{digits}").into_bytes();
    // It ends with a NUL at least, at a multiple of four bytes.
    name.resize((name.len() + 1).next_multiple_of(4), 0);
    let [high, low] = (name.len() as u16).to_be_bytes();
    [&[0x45, 0, high, low][..], &name].concat()
}

pub fn release6() -> Cdb {
    short(&[0x17])
}

/// START STOP UNIT.
pub fn start_stop(start: bool) -> Cdb {
    short(&[0x1b, 0, 0, 0, u8::from(start)])
}

/// EXTENDED COPY(LID1).
pub fn extended_copy(parameters: u32) -> Cdb {
    let mut cdb = short(&[0x83]);
    cdb[10..14].copy_from_slice(&parameters.to_be_bytes());
    cdb
}

/// Its parameters (SPC-4 §6.4): so many blocks of 512 bytes from the start of one logical unit to the start of another, told by their NAA
/// designators. Nobody can ask for its status.
pub fn copy_parameters(source: &[u8], destination: &[u8], blocks: u16) -> Vec<u8> {
    const WITHOUT_LIST_ID: u8 = 0x18;
    const BLOCK_TO_BLOCK: u8 = 0x02;
    let mut list = vec![0, WITHOUT_LIST_ID, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    for designator in [source, destination] {
        let mut descriptor = [0; 32];
        // An identification descriptor: binary, of the logical unit, NAA.
        (descriptor[0], descriptor[4], descriptor[5]) = (0xe4, 1, 3);
        descriptor[7] = designator.len() as u8;
        descriptor[8..8 + designator.len()].copy_from_slice(designator);
        descriptor[29..].copy_from_slice(&[0, 2, 0]);
        list.extend_from_slice(&descriptor);
    }
    let mut segment = [0; 28];
    (segment[0], segment[3], segment[7]) = (BLOCK_TO_BLOCK, 24, 1);
    segment[10..12].copy_from_slice(&blocks.to_be_bytes());
    list.extend_from_slice(&segment);
    list
}

//! A logical unit as it is seen by everybody: its blocks, and what it is called.

use super::super::host::pattern;
use super::initiator::{Session, cdb};
use super::{BLOCK, MIB, SIZE};

/// Blocks of a MiB, which one command may move.
const PIECE: usize = MIB / BLOCK;

/// Association and type of designators (SPC-4 §7.8.6): NAA of the logical unit, relative identifier of the target port.
pub const NAA: u8 = 0x03;
pub const RELATIVE_PORT: u8 = 0x14;

/// A designator of a logical unit.
pub fn designator(session: &mut Session, lun: u16, wanted: u8) -> Vec<u8> {
    let page = session.command(lun, &cdb::inquiry(Some(0x83), 512), &[], 512).data;
    let mut rest = &page[4..];
    while let [_, kind, _, len, after @ ..] = rest {
        let (designator, next) = after.split_at(usize::from(*len));
        if kind & 0x3f == wanted {
            return designator.to_vec();
        }
        rest = next;
    }
    panic!("no designator {wanted:#04x}: {page:02x?}");
}

/// Writes blocks from `lba` on in pieces of a MiB, at once.
pub fn put(session: &mut Session, lun: u16, lba: u64, bytes: &[u8]) {
    let write = |(number, part): (usize, &[u8])| {
        let blocks = (part.len() / BLOCK) as u32;
        session.start(0, lun, &cdb::write16(lba + (number * PIECE) as u64, blocks, 0), part, 0)
    };
    let tags: Vec<u32> = bytes.chunks(MIB).enumerate().map(write).collect();
    for tag in tags {
        session.wait(tag).good();
    }
}

/// Blocks from `lba` on.
pub fn get(session: &mut Session, lun: u16, lba: u64, blocks: usize) -> Vec<u8> {
    let read = |at: usize| {
        let count = PIECE.min(blocks - at);
        session.command(lun, &cdb::read16(lba + at as u64, count as u32), &[], count * BLOCK).good()
    };
    (0..blocks).step_by(PIECE).flat_map(read).collect()
}

/// Writes all of a unit.
pub fn fill(session: &mut Session, lun: u16, seed: u64) {
    put(session, lun, 0, &pattern(SIZE, seed));
}

/// All of a unit.
pub fn whole(session: &mut Session, lun: u16) -> Vec<u8> {
    get(session, lun, 0, SIZE / BLOCK)
}

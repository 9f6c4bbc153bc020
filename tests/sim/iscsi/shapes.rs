//! Operations on blocks as SCSI commands: each in one of the shapes that it may have (SBC-3 §5).

use reactor::reactor::clock::Entropy;
use reactor::reactor::io::IoOp;

use super::cdb::{self, Cdb, FUA};
use super::host::Unit;

/// A command with its data-out, and how much data-in it takes.
pub struct Shape {
    pub cdb: Cdb,
    pub out: Vec<u8>,
    pub in_len: usize,
}

/// Of six bytes, for at most 256 blocks.
fn six(opcode: u8, lba: u64, blocks: u64) -> Cdb {
    let mut cdb = cdb::read6(lba as u32, blocks as u8);
    cdb[0] = opcode;
    cdb
}

fn ten(opcode: u8, flags: u8, lba: u64, blocks: u64) -> Cdb {
    let mut cdb = cdb::read10(lba as u32, blocks as u16);
    (cdb[0], cdb[1]) = (opcode, flags);
    cdb
}

fn twelve(opcode: u8, flags: u8, lba: u64, blocks: u64) -> Cdb {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, flags);
    cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
    cdb[6..10].copy_from_slice(&(blocks as u32).to_be_bytes());
    cdb
}

fn sixteen(opcode: u8, flags: u8, lba: u64, blocks: u64) -> Cdb {
    let mut cdb = cdb::write16(lba, blocks as u32, flags);
    cdb[0] = opcode;
    cdb
}

/// A shape of an operation on `len` bytes from `offset` on. Also whether what it writes is durable when it succeeds: because `fua` asks for that.
pub fn shape(
    chance: &Entropy,
    unit: &Unit,
    op: IoOp,
    (offset, len, fua): (u64, u64, bool),
    out: Vec<u8>,
) -> (bool, Shape) {
    const DPO: u8 = 0x10;
    const COMPARE: u8 = 0x02;
    let (lba, blocks) = (offset / unit.block, len / unit.block);
    let flags = if fua { FUA } else { 0 } | if chance.below(8) == 0 { DPO } else { 0 };
    let any = |shapes: &[Cdb]| shapes[chance.below(shapes.len() as u64) as usize];
    let data = |cdb: Cdb, out: Vec<u8>| Shape { cdb, out, in_len: 0 };
    let shape = match op {
        IoOp::Read => {
            let fua = if chance.below(8) == 0 { FUA } else { 0 };
            let mut shapes =
                vec![ten(0x28, fua, lba, blocks), twelve(0xa8, fua, lba, blocks), sixteen(0x88, fua, lba, blocks)];
            if blocks <= 256 {
                shapes.push(six(0x08, lba, blocks));
            }
            Shape { cdb: any(&shapes), out: Vec::new(), in_len: len as usize }
        }
        IoOp::Write => {
            let mut shapes = vec![
                ten(0x2a, flags, lba, blocks),
                twelve(0xaa, flags, lba, blocks),
                sixteen(0x8a, flags, lba, blocks),
            ];
            if !fua && blocks <= 256 {
                shapes.push(six(0x0a, lba, blocks));
            }
            if !fua && chance.below(4) == 0 {
                let compare = if chance.below(2) == 0 { COMPARE } else { 0 };
                shapes = vec![
                    ten(0x2e, compare, lba, blocks),
                    twelve(0xae, compare, lba, blocks),
                    sixteen(0x8e, compare, lba, blocks),
                ];
            }
            data(any(&shapes), out)
        }
        IoOp::Flush => {
            let some = [ten(0x35, 0, 0, 0), sixteen(0x91, 0, 0, 0)];
            data(any(&some), out)
        }
        IoOp::Verify => {
            let shapes = [ten(0x2f, 0, lba, blocks), twelve(0xaf, 0, lba, blocks), sixteen(0x8f, 0, lba, blocks)];
            data(any(&shapes), out)
        }
        IoOp::Compare => {
            let flags = COMPARE;
            let shapes =
                [ten(0x2f, flags, lba, blocks), twelve(0xaf, flags, lba, blocks), sixteen(0x8f, flags, lba, blocks)];
            data(any(&shapes), out)
        }
        IoOp::CompareAndWrite => {
            let mut cdb = cdb::compare_and_write(lba, blocks as u8);
            cdb[1] = flags;
            data(cdb, out)
        }
        IoOp::WriteZeroes => {
            const NO_DATA: u8 = 0x01;
            let zeros = vec![0; unit.block as usize];
            match chance.below(3) {
                0 => data(sixteen(0x93, NO_DATA, lba, blocks), Vec::new()),
                1 => data(ten(0x41, 0, lba, blocks), zeros),
                _ => data(sixteen(0x93, 0, lba, blocks), zeros),
            }
        }
        _ => unmap(chance, unit, lba, blocks),
    };
    (fua, shape)
}

/// UNMAP of the range in pieces of any order, or WRITE SAME with the UNMAP bit.
fn unmap(chance: &Entropy, unit: &Unit, lba: u64, blocks: u64) -> Shape {
    const UNMAP: u8 = 0x08;
    if chance.below(3) == 0 {
        let cdb = sixteen(0x93, UNMAP, lba, blocks);
        return Shape { cdb, out: vec![0; unit.block as usize], in_len: 0 };
    }
    let mut pieces = vec![(lba, blocks)];
    while pieces.len() < 4 && chance.below(2) == 0 {
        let (at, len) = pieces.swap_remove(chance.below(pieces.len() as u64) as usize);
        let first = chance.below(len + 1);
        pieces.extend([(at + first, len - first), (at, first)]);
    }
    let descriptors = pieces.len() as u16 * 16;
    let mut list = Vec::new();
    list.extend_from_slice(&(descriptors + 6).to_be_bytes());
    list.extend_from_slice(&descriptors.to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    for (at, len) in pieces {
        list.extend_from_slice(&cdb::unmap_parameters(at, len as u32)[8..]);
    }
    Shape { cdb: cdb::unmap(list.len() as u16), out: list, in_len: 0 }
}

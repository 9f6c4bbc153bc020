//! Extents: which parts of a device hold data, and which were never written or are unmapped, as [`IoOp::Extents`](crate::reactor::io::IoOp::Extents) tells.
//!
//! ```text
//!   offset asked for
//!   |<- Mapped ->|<------ Deallocated ------>|<- Mapped ->|  what more there is does not fit, or is not known yet: asked for again
//!   record 0     record 1                    record 2        then zeros
//! ```
//! What is deallocated reads as zeros. What is mapped may do so too: a block that somebody wrote zeros to, one that shares the unit in
//! which a device allocates with another that holds data, and all of a device that cannot tell. The answer is as of some moment between
//! the submission and the end; a write that ended before is in it.
//!
//! A device whose traits have no [`IoOp::Extents`](crate::reactor::io::IoOp::Extents) is not asked: [`super::Handle`] says that all of it is mapped, or deallocated where
//! it keeps nothing.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::contract::Common;
use super::scatter;
use crate::reactor::io::{Io, IoCell, IoStatus};
use crate::util::open_enum;

open_enum! {
    /// What is in an extent.
    pub enum ExtentState: u8 {
        /// It holds data, or may.
        MAPPED = 1,
        /// It reads as zeros, and uses nothing of what the device has.
        DEALLOCATED = 2,
    }
}

/// One extent as [`IoOp::Extents`](crate::reactor::io::IoOp::Extents) tells of it. A record of zeros is none: it ends the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtentRecord {
    /// First byte on the device: of the first record the one asked for, of each other one the end of that before.
    pub offset: U64,
    /// Bytes, whole blocks, never 0.
    pub len: U64,
    /// What is in it.
    pub state: ExtentState,
    /// Zeros.
    pub reserved: [u8; 7],
}

const _: () = assert!(size_of::<ExtentRecord>() == ExtentRecord::LEN);

impl ExtentRecord {
    /// Bytes of a record.
    pub const LEN: usize = 24;
}

/// The records in the data of a report.
pub fn extents(data: &[u8]) -> impl Iterator<Item = ExtentRecord> + '_ {
    let all = data.chunks_exact(ExtentRecord::LEN).filter_map(|bytes| ExtentRecord::read_from_bytes(bytes).ok());
    all.take_while(|record| record.len.get() != 0)
}

/// Fills the data of a report. Neighbours in the same state become one record.
#[must_use = "the last record is written at the end"]
pub struct ExtentWriter<'a> {
    io: &'a mut Io,
    /// Bytes of the data that are written.
    written: usize,
    /// The extent that may go on.
    open: ExtentRecord,
}

impl ExtentWriter<'_> {
    /// For the data of a report that has room for one record at least, as that of every report that [`super::Handle`] lets pass.
    pub fn new(io: &mut Io) -> ExtentWriter<'_> {
        let open = ExtentRecord { offset: io.offset.into(), ..ExtentRecord::default() };
        ExtentWriter { io, written: 0, open }
    }

    /// Where the next extent begins.
    pub fn end(&self) -> u64 {
        self.open.offset.get() + self.open.len.get()
    }

    /// Most records that there is room for.
    pub fn room(&self) -> usize {
        self.io.len as usize / ExtentRecord::LEN
    }

    /// Adds the next `len` bytes. `false`: there is no room for one more record, and these bytes are left out.
    pub fn push(&mut self, len: u64, state: ExtentState) -> bool {
        if len == 0 {
            return true;
        }
        if self.open.len.get() != 0 && self.open.state != state {
            if self.written + 2 * ExtentRecord::LEN > self.io.len as usize {
                return false;
            }
            let offset = self.end();
            self.write();
            self.open = ExtentRecord { offset: offset.into(), ..ExtentRecord::default() };
        }
        self.open.state = state;
        self.open.len += len;
        true
    }

    fn write(&mut self) {
        self.put(self.open.as_bytes().len());
    }

    /// Writes the first `len` bytes of the open record.
    fn put(&mut self, len: usize) {
        if let Err(status) = scatter::scatter(&mut self.io.data, self.written, &self.open.as_bytes()[..len]) {
            self.io.status = status;
        }
        self.written += len;
    }

    /// Writes the last record, and zeros behind it.
    pub fn finish(mut self) {
        debug_assert!(self.open.len.get() != 0, "a report tells at least of the block asked for");
        self.write();
        self.open = ExtentRecord::default();
        while self.written < self.io.len as usize {
            self.put(ExtentRecord::LEN.min(self.io.len as usize - self.written));
        }
    }
}

/// What is asked of a report on a device of `size` bytes.
///
/// # Errors
/// [`IoStatus::Misaligned`] for what does not begin at a block, [`IoStatus::OutOfRange`] for what begins at the end of the device or
/// behind it, [`IoStatus::DataLength`] for data that has no room for one record.
pub(super) fn check(io: &IoCell, block_size: u32, size: u64) -> Result<(), IoStatus> {
    match () {
        () if !io.offset.is_multiple_of(u64::from(block_size)) => Err(IoStatus::Misaligned),
        () if io.offset >= size => Err(IoStatus::OutOfRange),
        () if io.len < ExtentRecord::LEN as u64 => Err(IoStatus::DataLength),
        () => Ok(()),
    }
}

/// The report of a device that has none of its own.
#[cold]
pub(super) fn answer(mut io: Io, common: &Common) -> Io {
    let state = if common.traits().keeps_nothing { ExtentState::DEALLOCATED } else { ExtentState::MAPPED };
    let rest = common.size() - io.offset;
    let mut writer = ExtentWriter::new(&mut io);
    writer.push(rest, state);
    writer.finish();
    io
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::device::null::{CompleteIn, Null, Options};
    use crate::bdev::device::testing::One;
    use crate::bdev::leaf::{Book, Leaf};
    use crate::bdev::{BlockDevice, DeviceLimits};
    use crate::reactor::io::IoOp;
    use std::sync::Arc;

    const SIZE: u64 = 1 << 20;
    const MAPPED: ExtentState = ExtentState::MAPPED;
    const DEALLOCATED: ExtentState = ExtentState::DEALLOCATED;

    fn told(data: &[u8]) -> Vec<(u64, u64, ExtentState)> {
        extents(data).map(|record| (record.offset.get(), record.len.get(), record.state)).collect()
    }

    #[test]
    fn records_join_follow_each_other_and_end_with_zeros() {
        let one = One::new(&Leaf::device(SIZE, true, DeviceLimits::default()));
        for (len, cuts, room) in [(100, &[1, 30][..], 4), (72, &[][..], 3), (71, &[25, 1], 2), (24, &[7], 1)] {
            let mut io = one.io(IoOp::Extents, 512, len as u64, &vec![0xEE; len], cuts);
            let mut writer = ExtentWriter::new(&mut io);
            assert_eq!((writer.room(), writer.end()), (room, 512));
            let pushed = [(512, MAPPED), (0, DEALLOCATED), (512, MAPPED), (4096, DEALLOCATED), (512, MAPPED)];
            let fitted = pushed.into_iter().take_while(|(len, state)| writer.push(*len, *state)).count();
            assert_eq!(fitted, [3, 4, 5, 5][room - 1]);
            writer.finish();
            let mut data = vec![0; len];
            scatter::gather(&io.data, 0, &mut data).unwrap();
            let all = [(512, 1024, MAPPED), (1536, 4096, DEALLOCATED), (5632, 512, MAPPED)];
            assert_eq!(told(&data), all[..room.min(3)]);
            assert!(data[room.min(3) * ExtentRecord::LEN..].iter().all(|byte| *byte == 0), "{data:?}");
            one.reactor.retire_io(io);
        }
        one.close();
    }

    #[test]
    fn a_device_without_an_answer_is_not_asked() {
        let leaf = |concurrent| {
            Leaf::altered(SIZE, concurrent, DeviceLimits::default(), |traits| {
                traits.ops = traits.ops.without(IoOp::Extents);
            })
        };
        let one = One::new(&leaf(true));
        let done = one.run(IoOp::Extents, 4096, 100, &[0xEE; 100]);
        assert_eq!((done.status, told(&done.data)), (IoStatus::Success, vec![(4096, SIZE - 4096, MAPPED)]));
        assert!(done.data[24..].iter().all(|byte| *byte == 0));
        assert_eq!(Book::of(&one.reactor).take_log(), []);
        one.close();
        let null: Arc<dyn BlockDevice> = Arc::new(Null::new(Options {
            name: "null".to_owned(),
            uuid: [0; 16],
            size: SIZE,
            block_size: 512,
            physical_block_size: 512,
            complete: CompleteIn::Submit,
        }));
        let one = One::new(&null);
        let done = one.run(IoOp::Extents, 0, 4096, &[0xEE; 4096]);
        assert_eq!((done.status, told(&done.data)), (IoStatus::Success, vec![(0, SIZE, DEALLOCATED)]));
        assert_eq!(one.run(IoOp::Extents, 0, 4096, &[]).status, IoStatus::DataLength, "it has to be put somewhere");
        one.close();
    }

    #[test]
    fn what_cannot_be_asked_for_is_refused() {
        let limits = DeviceLimits { transfer_max: 4096, zeroes_max: 4096, boundary: 4096, ..DeviceLimits::default() };
        let one = One::new(&Leaf::device(SIZE, true, limits));
        for (offset, len, data, status) in [
            (1, 4096, 4096, IoStatus::Misaligned),
            (SIZE, 4096, 4096, IoStatus::OutOfRange),
            (u64::MAX / 512 * 512, 4096, 4096, IoStatus::OutOfRange),
            (0, 0, 0, IoStatus::DataLength),
            (0, 23, 23, IoStatus::DataLength),
            (0, 4096, 4095, IoStatus::DataLength),
            (0, 2 << 20, 0, IoStatus::DataLength),
        ] {
            let done = one.run(IoOp::Extents, offset, len, &vec![0xEE; data]);
            assert_eq!((done.status, done.data), (status, vec![0xEE; data]), "{offset} {len}");
        }
        assert_eq!(Book::of(&one.reactor).take_log(), []);
        // The end of the device bounds what is told, not what is asked; nothing of it is cut.
        for (offset, len) in [(SIZE - 512, 24), (512, 64 << 10)] {
            assert_eq!(one.run(IoOp::Extents, offset, len, &vec![0; len as usize]).status, IoStatus::Success);
            assert_eq!(Book::of(&one.reactor).take_log(), [(IoOp::Extents, offset, len)]);
        }
        one.close();
    }
}

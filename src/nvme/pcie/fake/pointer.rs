//! Data pointers as a controller reads them: PRPs and SGLs become pieces of host memory (Base §4.1).

use zerocopy::FromBytes;

use super::memory::Dma;
use crate::nvme::spec::{PRP_ENTRY_LEN, Psdt, SGL_DESCRIPTOR_LEN, SglDescriptor, SglId, Sqe, StatusCode};

/// Most descriptors of one SGL that are read.
const DESCRIPTORS_MAX: usize = 4096;

/// Pieces of host memory, in order: address and length.
pub(super) type Pieces = Vec<(u64, usize)>;

/// What the controller takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// CC.MPS, in bytes.
    pub(super) page: u64,
    /// Bits that are 0 in addresses and lengths of data blocks, if there are SGLs on I/O queues.
    pub(super) sgl: Option<u64>,
}

/// Why a pointer leads nowhere: the status, and what the driver did wrong, unless the fault is in its memory.
pub(super) type Refusal = (StatusCode, &'static str);

impl Rules {
    /// The pieces of `len` bytes of data of a command.
    pub(super) fn follow(self, dma: &Dma<'_>, sqe: &Sqe, len: usize, into: &mut Pieces) -> Result<(), Refusal> {
        into.clear();
        match sqe.psdt() {
            Psdt::PRP => self.prps(dma, sqe, len, into),
            Psdt::SGL if dma.qid != 0 && self.sgl.is_some() => self.sgl(dma, sqe.dptr, len, into),
            _ => Err((StatusCode::INVALID_FIELD, "PSDT that the controller does not take")),
        }
    }

    fn prps(self, dma: &Dma<'_>, sqe: &Sqe, len: usize, into: &mut Pieces) -> Result<(), Refusal> {
        let inside = self.page - 1;
        let prps = sqe.prps();
        let (first, second) = (prps.prp1.get(), prps.prp2.get());
        if first & 3 != 0 {
            return Err((StatusCode::PRP_OFFSET_INVALID, "PRP1 is no multiple of 4"));
        }
        let here = len.min((self.page - (first & inside)) as usize);
        into.push((first, here));
        let mut left = len - here;
        if left == 0 {
            return Ok(());
        }
        let page = self.page as usize;
        if left <= page {
            into.push((self.whole(second)?, left));
            return Ok(());
        }
        if second & (PRP_ENTRY_LEN as u64 - 1) != 0 {
            return Err((StatusCode::PRP_OFFSET_INVALID, "a PRP list is not aligned to 8 bytes"));
        }
        let mut list = second;
        while left > 0 {
            // A list goes to the end of its page; its last entry there leads on if it is not the last of all.
            let room = ((self.page - (list & inside)) / PRP_ENTRY_LEN as u64) as usize;
            let needed = left.div_ceil(page);
            let entries = needed.min(room);
            let mut bytes = vec![0; entries * PRP_ENTRY_LEN];
            if !dma.read(list, &mut bytes) {
                return Err((StatusCode::DATA_TRANSFER_ERROR, ""));
            }
            let data = if needed > room { entries - 1 } else { entries };
            let entry = |index: usize| {
                let (bytes, _) = bytes[index * PRP_ENTRY_LEN..].split_first_chunk().expect("whole entries");
                u64::from_le_bytes(*bytes)
            };
            for index in 0..data {
                let here = left.min(page);
                into.push((self.whole(entry(index))?, here));
                left -= here;
            }
            if left > 0 {
                list = self.whole(entry(entries - 1))?;
            }
        }
        Ok(())
    }

    fn whole(self, entry: u64) -> Result<u64, Refusal> {
        if entry & (self.page - 1) != 0 {
            return Err((StatusCode::PRP_OFFSET_INVALID, "a PRP behind the first does not begin a page"));
        }
        Ok(entry)
    }

    fn sgl(self, dma: &Dma<'_>, first: SglDescriptor, len: usize, into: &mut Pieces) -> Result<(), Refusal> {
        let (mut left, mut read) = (len, 0);
        let mut block = |descriptor: SglDescriptor| -> Result<(), Refusal> {
            let (address, here) = (descriptor.address.get(), descriptor.length.get() as usize);
            if (address | here as u64) & self.sgl.unwrap_or(0) != 0 {
                return Err((StatusCode::SGL_GRANULARITY_INVALID, "an SGL data block is not aligned as SGLS asks"));
            }
            if here > left {
                return Err((StatusCode::SGL_DATA_LENGTH_INVALID, "an SGL is longer than the data"));
            }
            if here > 0 {
                into.push((address, here));
                left -= here;
            }
            Ok(())
        };
        let mut segment = match first.id {
            SglId::DATA_BLOCK_ADDRESS => {
                block(first)?;
                None
            }
            SglId::SEGMENT | SglId::LAST_SEGMENT => Some(first),
            _ => return Err((StatusCode::SGL_DESCRIPTOR_TYPE_INVALID, "an SGL descriptor of another type")),
        };
        while let Some(here) = segment.take() {
            let bytes = here.length.get();
            if bytes == 0 || bytes % SGL_DESCRIPTOR_LEN != 0 || here.address.get() & 7 != 0 {
                return Err((
                    StatusCode::INVALID_SGL_SEGMENT,
                    "an SGL segment that is empty, cut short or not aligned",
                ));
            }
            let count = (bytes / SGL_DESCRIPTOR_LEN) as usize;
            read += count;
            if read > DESCRIPTORS_MAX {
                return Err((StatusCode::INVALID_SGL_COUNT, "an SGL without end"));
            }
            let mut list = vec![0; bytes as usize];
            if !dma.read(here.address.get(), &mut list) {
                return Err((StatusCode::DATA_TRANSFER_ERROR, ""));
            }
            for (index, bytes) in list.chunks_exact(SGL_DESCRIPTOR_LEN as usize).enumerate() {
                let descriptor = SglDescriptor::read_from_bytes(bytes).expect("whole descriptors");
                let is_last = index + 1 == count;
                match descriptor.id {
                    SglId::DATA_BLOCK_ADDRESS if !is_last || here.id == SglId::LAST_SEGMENT => block(descriptor)?,
                    SglId::SEGMENT | SglId::LAST_SEGMENT if is_last && here.id == SglId::SEGMENT => {
                        segment = Some(descriptor);
                    }
                    SglId::DATA_BLOCK_ADDRESS | SglId::SEGMENT | SglId::LAST_SEGMENT => {
                        let why = "a segment that does not lead on, or a last one that does";
                        return Err((StatusCode::INVALID_SGL_SEGMENT, why));
                    }
                    _ => return Err((StatusCode::SGL_DESCRIPTOR_TYPE_INVALID, "an SGL descriptor of another type")),
                }
            }
        }
        if left > 0 {
            return Err((StatusCode::SGL_DATA_LENGTH_INVALID, "an SGL is shorter than the data"));
        }
        Ok(())
    }
}

//! Data pointers: PRPs and SGLs over the segments of an I/O.
//!
//! ```text
//!  1 page            PRP1
//!  2 pages           PRP1  PRP2
//!  more              PRP1  PRP2 -> list: page page page ...            in the slot's part of the list memory
//!  SGL, 1 segment    data block in the command
//!  SGL, more         last segment -> data block data block ...         same place
//! ```
//! Memory of one segment is contiguous for the controller too, so an SGL needs a descriptor a segment, whatever its length, and no alignment beyond
//! what the controller asks for. PRPs want every segment but the first to begin a page, and every one but the last to end one
//! (Base §4.1.1).

use hugepages::{Buf, DeviceBuf};
use zerocopy::IntoBytes;

use super::super::port::Port;
use crate::limits::SEGMENTS_MAX;
use crate::nvme::spec::{PRP_ENTRY_LEN, SGL_DESCRIPTOR_LEN, SglDescriptor, Sqe};
use crate::reactor::io::{Segment, Segments};

/// Bits of an address that must be 0 in a PRP, and in an SGL of a controller that asks for that: multiples of 4.
const DWORD: u64 = 3;

/// What a controller takes for data pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Pointers {
    /// log2 of the controller's page size, at least 12.
    pub(in super::super) page_shift: u8,
    /// Whether it takes SGLs, and if so, the bits that have to be 0 in their addresses and lengths.
    pub(in super::super) sgl: Option<u64>,
}

/// Memory for the list of one command.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<'a> {
    pub(super) memory: &'a DeviceBuf,
    /// First byte in `memory`; a list does not leave its page.
    pub(super) at: usize,
    /// The controller's address of that byte.
    pub(super) address: u64,
}

/// The buffers from byte `skip` on, `len` bytes of them: addresses and lengths.
fn blocks<P: Port>(port: &P, data: &Segments, skip: usize, len: usize) -> impl Iterator<Item = Option<(u64, usize)>> {
    let (mut skip, mut left) = (skip, len);
    data.iter().filter_map(move |segment| {
        let here = segment.len().saturating_sub(skip).min(left);
        let from = skip;
        skip = skip.saturating_sub(segment.len());
        if here == 0 {
            return None;
        }
        left -= here;
        Some(match segment {
            Segment::Buf(buf) => port.data(buf).map(|address| (address + from as u64, here)),
            Segment::Region { .. } | Segment::Request(_) => None,
        })
    })
}

impl Pointers {
    /// Of a controller with these pages, and this answer to whether it takes SGLs (SGLS of Identify, bits 1:0).
    pub(in super::super) fn new(page_shift: u8, sgls: u32) -> Pointers {
        let sgl = match sgls & 3 {
            1 => Some(0),
            2 => Some(DWORD),
            _ => None,
        };
        Pointers { page_shift, sgl }
    }

    fn page(self) -> u64 {
        1 << self.page_shift
    }

    /// Bytes of list memory that a command with `transfer_max` bytes of data may need: a power of two.
    pub(in super::super) fn list_len(self, transfer_max: u64) -> usize {
        // A first page that begins within, and as many more; the first entry is in the command.
        let pages = transfer_max.div_ceil(self.page()) as usize + 1;
        let prps = pages * PRP_ENTRY_LEN;
        let descriptors = SEGMENTS_MAX * SGL_DESCRIPTOR_LEN as usize;
        prps.max(descriptors).next_power_of_two()
    }

    /// Whether there is a pointer to this data: if not, it has to be copied to where there is.
    #[inline]
    pub(in super::super) fn reach<P: Port>(self, port: &P, data: &Segments) -> bool {
        if let Some(Segment::Buf(buf)) = data.sole() {
            return self.reaches_one(port, buf);
        }
        self.reaches_all(port, data)
    }

    #[inline]
    fn reaches_one<P: Port>(self, port: &P, buf: &Buf) -> bool {
        // One segment needs either way no more than this; with an SGL of bytes, nothing at all.
        let mask = self.sgl.map_or(DWORD, |mask| mask & DWORD);
        port.data(buf).is_some_and(|address| address & mask == 0)
    }

    #[cold]
    fn reaches_all<P: Port>(self, port: &P, data: &Segments) -> bool {
        let len = data.bytes() as usize;
        self.is_described(port, data, 0, len) || self.is_paged(port, data, 0, len)
    }

    /// Whether an SGL can say where these bytes are.
    fn is_described<P: Port>(self, port: &P, data: &Segments, skip: usize, len: usize) -> bool {
        self.sgl.is_some_and(|mask| {
            blocks(port, data, skip, len)
                .all(|block| block.is_some_and(|(address, len)| (address | len as u64) & mask == 0))
        })
    }

    /// Whether PRPs can say where these bytes are.
    fn is_paged<P: Port>(self, port: &P, data: &Segments, skip: usize, len: usize) -> bool {
        let inside = self.page() - 1;
        let mut end = None;
        blocks(port, data, skip, len).all(|block| {
            block.is_some_and(|(address, len)| {
                let fits = match end {
                    None => address & DWORD == 0,
                    Some(end) => (end | address) & inside == 0,
                };
                end = Some(address + len as u64);
                fits
            })
        })
    }

    /// Points a command to `len` bytes of `data` from byte `skip` on; `false` if they are not to be reached by a pointer.
    #[inline]
    pub(super) fn point<'a, P: Port>(
        self,
        port: &P,
        sqe: &mut Sqe,
        (data, skip, len): (&Segments, usize, usize),
        list: impl FnOnce() -> List<'a>,
    ) -> bool {
        if skip == 0
            && let Some(Segment::Buf(buf)) = data.sole()
            && let Some(address) = port.data(buf)
            && address & DWORD == 0
        {
            let end = (address & (self.page() - 1)) + len as u64;
            if end <= 2 * self.page() {
                let second = if end > self.page() { (address & !(self.page() - 1)) + self.page() } else { 0 };
                sqe.set_prps(address, second);
                return true;
            }
        }
        self.point_by_list(port, sqe, (data, skip, len), list())
    }

    #[cold]
    fn point_by_list<P: Port>(
        self,
        port: &P,
        sqe: &mut Sqe,
        (data, skip, len): (&Segments, usize, usize),
        list: List<'_>,
    ) -> bool {
        if self.is_described(port, data, skip, len) {
            self.describe(port, sqe, (data, skip, len), list);
            true
        } else if self.is_paged(port, data, skip, len) {
            self.page_by_page(port, sqe, (data, skip, len), list);
            true
        } else {
            false
        }
    }

    fn describe<P: Port>(self, port: &P, sqe: &mut Sqe, (data, skip, len): (&Segments, usize, usize), list: List<'_>) {
        let mut count = 0;
        let mut first = SglDescriptor::default();
        for (address, len) in blocks(port, data, skip, len).flatten() {
            let descriptor = SglDescriptor::data_block(address, len as u32);
            if count == 0 {
                first = descriptor;
            }
            list.memory.write(list.at + count * size_of::<SglDescriptor>(), descriptor.as_bytes());
            count += 1;
        }
        sqe.set_sgl(if count == 1 { first } else { SglDescriptor::last_segment(list.address, count as u32) });
    }

    fn page_by_page<P: Port>(
        self,
        port: &P,
        sqe: &mut Sqe,
        (data, skip, len): (&Segments, usize, usize),
        list: List<'_>,
    ) {
        let page = self.page();
        let mut pages = blocks(port, data, skip, len).flatten().flat_map(|(address, len)| {
            let end = address + len as u64;
            std::iter::successors(Some(address), move |at| Some((at & !(page - 1)) + page))
                .take_while(move |at| *at < end)
        });
        let (first, second) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
        let mut count = 1;
        for address in pages {
            list.memory.store64(list.at + count * PRP_ENTRY_LEN, address);
            count += 1;
        }
        if count == 1 {
            sqe.set_prps(first, second);
        } else {
            list.memory.store64(list.at, second);
            sqe.set_prps(first, list.address);
        }
    }
}

#[cfg(test)]
mod tests;

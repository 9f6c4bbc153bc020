//! A batch of bytes on its way into a socket: protocol headers, payload buffers and zeros, sent by one gather call.

use hugepages::{Buf, Region};

use super::limits::{TX_IOV_MAX, ZERO_AREA_LEN};

/// Zeros to send for volumes that keep nothing: never written, so the kernel keeps mapping its one zero page.
static ZEROES: [u8; ZERO_AREA_LEN] = [0; ZERO_AREA_LEN];

/// Zeros of the shared area.
///
/// # Panics
/// Beyond [`ZERO_AREA_LEN`].
pub fn zeroes(len: usize) -> &'static [u8] {
    &ZEROES[..len]
}

#[derive(Debug)]
enum Part {
    /// A range of `heads`.
    Head { at: usize, len: usize },
    /// A payload, owned until the batch was sent.
    Buf(Buf),
    /// That many bytes of `ZEROES`.
    Zeroes { len: usize },
    /// Memory that others may change, by its number in the batch: a part is as small as those that nearly all are.
    Lent { number: u32, len: u32 },
}

/// Memory that others may change, and a buffer for a copy of it: see [`TxBatch::push_lent`].
struct Lent {
    region: Region,
    at: usize,
    spare: Buf,
}

/// Pieces of memory that a batch has at most.
const LENT_MAX: usize = 32;

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::Head { len, .. } | Part::Zeroes { len } => *len,
            Part::Buf(buf) => buf.len(),
            Part::Lent { len, .. } => *len as usize,
        }
    }
}

/// Bytes to send in order. Its capacity is fixed when it is made: pushing never allocates.
///
/// Payload buffers belong to the batch until [`TxBatch::clear`], which the connection calls when all was sent: the kernel
/// may read them until then.
pub struct TxBatch {
    heads: Box<[u8]>,
    heads_used: usize,
    parts: Vec<Part>,
    lent: Vec<Lent>,
    total: usize,
    sent: usize,
    payload: usize,
    pub(super) iov: Vec<libc::iovec>,
    pub(super) message: libc::msghdr,
}

impl std::fmt::Debug for TxBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TxBatch({} of {} bytes, {} parts)", self.sent, self.total, self.parts.len())
    }
}

impl TxBatch {
    /// A batch with room for `parts` gather entries and `heads` bytes of headers.
    pub fn new(parts: usize, heads: usize) -> Box<TxBatch> {
        Box::new(TxBatch {
            heads: vec![0; heads].into_boxed_slice(),
            heads_used: 0,
            parts: Vec::with_capacity(parts),
            lent: Vec::with_capacity(LENT_MAX),
            total: 0,
            sent: 0,
            payload: 0,
            iov: Vec::with_capacity(parts.min(TX_IOV_MAX)),
            message: libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: std::ptr::null_mut(),
                msg_iovlen: 0,
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
        })
    }

    /// Whether `parts` more entries with `heads` more header bytes fit.
    pub fn has_room(&self, parts: usize, heads: usize) -> bool {
        self.parts.len() + parts <= self.parts.capacity() && self.heads_used + heads <= self.heads.len()
    }

    /// Appends header bytes: `fill` writes them in place, at most what [`TxBatch::has_room`] was asked for, and returns how
    /// many. Neighbours share one gather entry.
    #[inline]
    pub fn push_head(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) {
        let at = self.heads_used;
        let len = fill(&mut self.heads[at..]);
        self.heads_used += len;
        self.total += len;
        match self.parts.last_mut() {
            Some(Part::Head { at: first, len: so_far }) if *first + *so_far == at => *so_far += len,
            _ => self.push(Part::Head { at, len }),
        }
    }

    /// Appends a payload; it is dropped when the batch was sent.
    pub fn push_buf(&mut self, buf: Buf) {
        if buf.is_empty() {
            return;
        }
        self.total += buf.len();
        self.payload += buf.capacity();
        self.push(Part::Buf(buf));
    }

    /// Appends `len` zeros from the shared area, at most [`ZERO_AREA_LEN`].
    pub fn push_zeroes(&mut self, len: usize) {
        assert!(len <= ZERO_AREA_LEN, "zeros beyond the shared area");
        if len > 0 {
            self.total += len;
            self.push(Part::Zeroes { len });
        }
    }

    /// Appends memory that others may change, as much as fits in `spare`. It is sent once, before it changes; then [`TxBatch::keep_lent`]
    /// takes a copy of what was not.
    pub fn push_lent(&mut self, region: Region, at: usize, spare: Buf) {
        assert!(self.has_room_to_lend(), "it was not asked");
        let (number, len) = (self.lent.len() as u32, spare.len() as u32);
        self.total += spare.len();
        self.payload += spare.capacity();
        self.lent.push(Lent { region, at, spare });
        self.push(Part::Lent { number, len });
    }

    /// Whether one more piece of memory fits, beside what [`TxBatch::has_room`] says.
    pub fn has_room_to_lend(&self) -> bool {
        self.lent.len() < LENT_MAX
    }

    /// Copies what was lent and is not sent: nothing is lent any more.
    pub fn keep_lent(&mut self) {
        let mut lent = self.lent.drain(..);
        let mut begin = 0;
        for part in &mut self.parts {
            let len = part.len();
            if matches!(part, Part::Lent { .. })
                && let Some(Lent { region, at, mut spare }) = lent.next()
            {
                let sent = self.sent.saturating_sub(begin).min(len);
                region.read(at + sent, &mut spare[sent..]);
                *part = Part::Buf(spare);
            }
            begin += len;
        }
    }

    fn push(&mut self, part: Part) {
        assert!(self.parts.len() < self.parts.capacity(), "has_room was not asked");
        self.parts.push(part);
    }

    /// Bytes not yet sent.
    pub fn remaining(&self) -> usize {
        self.total - self.sent
    }

    /// Bytes of the pool in the batch: buffers by their capacity.
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// Bytes in the batch, sent ones included.
    pub fn len(&self) -> usize {
        self.total
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Notes that `bytes` more went out.
    pub fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        assert!(self.sent <= self.total, "sent more than there was");
    }

    /// As [`TxBatch::clear`], but gives the payloads back, in the order they were pushed: for senders that only lent them.
    pub fn reclaim(&mut self, mut take: impl FnMut(Buf)) {
        for part in self.parts.drain(..) {
            if let Part::Buf(buf) = part {
                take(buf);
            }
        }
        self.clear();
    }

    /// Drops all payloads and starts over.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.lent.clear();
        self.heads_used = 0;
        self.total = 0;
        self.sent = 0;
        self.payload = 0;
    }

    /// The unsent bytes as slices, at most [`TX_IOV_MAX`]. Nothing is lent in it.
    pub fn unsent(&self) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.sent;
        self.parts
            .iter()
            .filter_map(move |part| {
                let len = part.len();
                if skip >= len {
                    skip -= len;
                    return None;
                }
                Some(self.slice(part, std::mem::take(&mut skip)))
            })
            .take(TX_IOV_MAX)
    }

    /// The bytes of a part from `from` on.
    #[inline]
    fn slice<'a>(&'a self, part: &'a Part, from: usize) -> &'a [u8] {
        match part {
            Part::Head { at, len } => &self.heads[at + from..at + len],
            Part::Buf(buf) => &buf[from..],
            Part::Zeroes { len } => &ZEROES[from..*len],
            Part::Lent { .. } => unreachable!("memory that others change is no slice"),
        }
    }

    /// Describes the unsent rest for sendmsg(2). The addresses stay valid while the box lives and nothing is pushed,
    /// advanced or cleared.
    pub(super) fn describe(&mut self) {
        let mut iov = std::mem::take(&mut self.iov);
        iov.clear();
        let mut skip = self.sent;
        for part in &self.parts {
            let len = part.len();
            if skip >= len {
                skip -= len;
                continue;
            }
            if iov.len() == iov.capacity() {
                break;
            }
            let from = std::mem::take(&mut skip);
            let base = match part {
                Part::Lent { number, .. } => {
                    let Lent { region, at, .. } = &self.lent[*number as usize];
                    std::ptr::with_exposed_provenance_mut(region.address_of(*at + from))
                }
                part => self.slice(part, from).as_ptr().cast_mut().cast(),
            };
            iov.push(libc::iovec { iov_base: base, iov_len: len - from });
        }
        self.iov = iov;
        self.message.msg_iov = self.iov.as_mut_ptr();
        self.message.msg_iovlen = self.iov.len();
    }
}

#[cfg(test)]
mod tests {
    use hugepages::{Arena, Pool};

    use super::*;

    #[test]
    fn neighbouring_heads_share_an_entry_and_a_partial_send_resumes_in_the_middle() {
        let mut batch = TxBatch::new(4, 64);
        let head = |batch: &mut TxBatch, text: &[u8]| {
            batch.push_head(|b| {
                b[..text.len()].copy_from_slice(text);
                text.len()
            });
        };
        head(&mut batch, b"abc");
        head(&mut batch, b"def");
        batch.push_zeroes(4);
        head(&mut batch, b"gh");
        let all = |b: &TxBatch| b.unsent().flatten().copied().collect::<Vec<u8>>();
        assert_eq!(batch.unsent().count(), 3);
        assert_eq!(all(&batch), b"abcdef\0\0\0\0gh");
        for sent in 1..=12 {
            batch.advance(1);
            assert_eq!(all(&batch), b"abcdef\0\0\0\0gh"[sent..]);
        }
        assert_eq!(batch.remaining(), 0);
        batch.clear();
        assert!(batch.is_empty() && batch.unsent().next().is_none());
    }

    #[test]
    fn what_was_lent_and_not_sent_is_a_copy_afterwards() {
        const LEN: usize = 5000;
        let region = Region::new(1 << 16, hugepages::RegionOptions::default()).unwrap();
        let pool = Pool::new(0);
        for chunk in Arena::heap(4 << 20).grow(4 << 20).unwrap() {
            pool.add(chunk);
        }
        let data: Vec<u8> = (0..2 * LEN).map(|at| (at / 7) as u8).collect();
        let (first, second) = data.split_at(LEN);
        let all = [b"one", first, b"two", second].concat();
        for sent in [0, 2, 3, 4, 4000, 5003, 5004, 5006, 5007, 9000, 10_005, 10_006] {
            region.write(100, first);
            region.write(20_000, second);
            let mut batch = TxBatch::new(4, 64);
            for (head, at) in [(b"one", 100), (b"two", 20_000)] {
                batch.push_head(|out| {
                    out[..3].copy_from_slice(head);
                    3
                });
                batch.push_lent(region.clone(), at, pool.alloc(LEN).unwrap());
            }
            assert!(batch.payload() >= 2 * LEN);
            batch.advance(sent);
            batch.keep_lent();
            region.write(0, &[0xff; 1 << 16]);
            let rest: Vec<u8> = batch.unsent().flatten().copied().collect();
            assert!(rest == all[sent..], "after {sent} bytes");
        }
    }

    #[test]
    fn a_batch_is_described_from_wherever_it_was_sent_to() {
        const LEN: usize = 5000;
        let region = Region::new(1 << 16, hugepages::RegionOptions::default()).unwrap();
        let pool = Pool::new(0);
        for chunk in Arena::heap(4 << 20).grow(4 << 20).unwrap() {
            pool.add(chunk);
        }
        for sent in [0, 2, 3, 4, 4000, 5002, 5003, 5004, 5009, 5010] {
            let mut batch = TxBatch::new(4, 64);
            for (head, lends) in [(&b"one"[..], true), (b"another", false)] {
                batch.push_head(|out| {
                    out[..head.len()].copy_from_slice(head);
                    head.len()
                });
                if lends {
                    batch.push_lent(region.clone(), 100, pool.alloc(LEN).unwrap());
                }
            }
            batch.advance(sent);
            batch.describe();
            let described: usize = batch.iov.iter().map(|entry| entry.iov_len).sum();
            assert_eq!(described, batch.remaining(), "after {sent} bytes");
            if (3..3 + LEN).contains(&sent) {
                assert_eq!(batch.iov[0].iov_base.addr(), region.address_of(100 + sent - 3), "after {sent} bytes");
            }
        }
    }
}

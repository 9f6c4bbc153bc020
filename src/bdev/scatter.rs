//! The bytes of scattered data, whatever memory they lie in.

use crate::reactor::io::{IoStatus, Segment, Segments};

/// Bytes copied at a time between two memories that may only be copied in and out.
pub const BOUNCE: usize = 4096;

/// A piece of a segment: `len` bytes from `start` of it, which are at `at` of the window asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte within the segment.
    pub start: usize,
    /// Bytes.
    pub len: usize,
    /// First byte within the window.
    pub at: usize,
}

/// What a segment of `segment_len` bytes that begins at `begin` of the data has of the window.
fn piece(begin: usize, segment_len: usize, from: usize, len: usize) -> Option<Piece> {
    let first = from.max(begin);
    let end = (from + len).min(begin + segment_len);
    (first < end).then(|| Piece { start: first - begin, len: end - first, at: first - from })
}

/// Calls `f` for each segment that has bytes of `from..from + len` of the data, in order, until it fails.
///
/// # Errors
/// The first error of `f`.
pub fn each<E>(
    data: &Segments,
    from: usize,
    len: usize,
    mut f: impl FnMut(&Segment, Piece) -> Result<(), E>,
) -> Result<(), E> {
    let mut begin = 0;
    for segment in data.iter() {
        if let Some(piece) = piece(begin, segment.len(), from, len) {
            f(segment, piece)?;
        }
        begin += segment.len();
    }
    Ok(())
}

/// Copies bytes of the data, beginning at `from`, into all of `into`.
///
/// # Errors
/// If the data of a request is out of reach: it has been taken from this server.
pub fn gather(data: &Segments, from: usize, into: &mut [u8]) -> Result<(), IoStatus> {
    each(data, from, into.len(), |segment, piece| {
        let target = &mut into[piece.at..piece.at + piece.len];
        match segment {
            Segment::Buf(buf) => target.copy_from_slice(&buf[piece.start..piece.start + piece.len]),
            Segment::Region { region, offset, .. } => region.read(*offset as usize + piece.start, target),
            Segment::Request(request) => request.take(piece.start, target).map_err(|_| IoStatus::Gone)?,
        }
        Ok(())
    })
}

/// Copies all of `source` into the data, beginning at `from`.
///
/// # Errors
/// As [`gather`].
pub fn scatter(data: &mut Segments, from: usize, source: &[u8]) -> Result<(), IoStatus> {
    let mut begin = 0;
    for segment in data.iter_mut() {
        let len = segment.len();
        if let Some(piece) = piece(begin, len, from, source.len()) {
            let bytes = &source[piece.at..piece.at + piece.len];
            match segment {
                Segment::Buf(buf) => buf[piece.start..piece.start + piece.len].copy_from_slice(bytes),
                Segment::Region { region, offset, .. } => region.write(*offset as usize + piece.start, bytes),
                Segment::Request(request) => request.give(piece.start, bytes).map_err(|_| IoStatus::Gone)?,
            }
        }
        begin += len;
    }
    Ok(())
}

/// Fills the data with zeros. That of a request stays as it is: the kernel gives nobody what a failed one has.
pub fn clear(data: &mut Segments) {
    for segment in data.iter_mut() {
        match segment {
            Segment::Buf(buf) => buf.fill(0),
            Segment::Region { region, offset, len } => region.zero(*offset as usize, *len as usize),
            Segment::Request(_) => {}
        }
    }
}

/// Compares bytes of the data, beginning at `from`, with all of `with`.
///
/// # Errors
/// The index in `with` of the first byte that differs.
///
/// # Panics
/// For the data of a request: the kernel asks for no comparison.
pub fn compare(data: &Segments, from: usize, with: &[u8]) -> Result<(), usize> {
    each(data, from, with.len(), |segment, piece| {
        let other = &with[piece.at..piece.at + piece.len];
        match segment {
            Segment::Buf(buf) => differs(&buf[piece.start..piece.start + piece.len], other),
            Segment::Region { region, offset, .. } => region.compare(*offset as usize + piece.start, other),
            Segment::Request(request) => unreachable!("a comparison with {request:?}"),
        }
        .map_err(|index| piece.at + index)
    })
}

fn differs(a: &[u8], b: &[u8]) -> Result<(), usize> {
    if a == b {
        return Ok(());
    }
    Err(a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{Region, RegionOptions};

    fn scattered(lens: &[usize]) -> Segments {
        let region = Region::new(1 << 16, RegionOptions::default()).unwrap();
        let mut data = Segments::default();
        let mut offset = 7;
        for &len in lens {
            data.push(Segment::Region { region: region.clone(), offset, len: len as u32 });
            offset += len as u64 + 100;
        }
        data
    }

    #[test]
    fn bytes_go_in_and_out_at_every_window() {
        let lens = [1, 511, 512, 3, 1000];
        let total: usize = lens.iter().sum();
        let whole: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
        let mut data = scattered(&lens);
        for from in [0, 1, 2, 511, 512, 513, 1024, 1027, total - 1] {
            for len in [1, 2, 512, 513, 1100] {
                let len = len.min(total - from);
                clear(&mut data);
                scatter(&mut data, from, &whole[from..from + len]).unwrap();
                let mut back = vec![0xEE; total];
                gather(&data, 0, &mut back).unwrap();
                let mut expected = vec![0; total];
                expected[from..from + len].copy_from_slice(&whole[from..from + len]);
                assert_eq!(back, expected, "{from}+{len}");
                let mut window = vec![0; len];
                gather(&data, from, &mut window).unwrap();
                assert_eq!(window, whole[from..from + len]);
                assert_eq!(compare(&data, from, &window), Ok(()));
                window[len - 1] ^= 1;
                assert_eq!(compare(&data, from, &window), Err(len - 1));
            }
        }
    }
}

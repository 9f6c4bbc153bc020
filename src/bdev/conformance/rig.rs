//! What scenarios do I/O with.

use hugepages::{Region, RegionOptions};

use crate::bdev::{Handle, scatter};
use crate::limits::{SEGMENTS_MAX, TRANSFER_MAX};
use crate::reactor::clock::Entropy;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};

/// How a scenario ends: what was found to be wrong.
pub(super) type Outcome = Result<(), String>;

/// Fails the scenario with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(super) use ensure;

/// Memory that the data of an I/O lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Each piece has a buffer of its own.
    Own,
    /// The pieces are parts of one buffer, one behind the other.
    Parts,
    /// The pieces are ranges of a region, with gaps.
    Regions,
    /// In turn of a buffer of its own and of a region.
    Mixed,
}

impl Shape {
    pub(super) const ALL: [Shape; 4] = [Shape::Own, Shape::Parts, Shape::Regions, Shape::Mixed];
}

/// A completed I/O.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) status: IoStatus,
    pub(super) info: u64,
    pub(super) data: Vec<u8>,
}

/// What is asked: everything of an I/O but its memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) op: IoOp,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) fua: bool,
    pub(super) atomic: bool,
}

impl Ask {
    pub(super) fn new(op: IoOp, offset: u64, len: u64) -> Ask {
        Ask { op, offset, len, fua: false, atomic: false }
    }
}

/// A device on one reactor.
#[derive(Clone)]
pub(super) struct Rig {
    pub(super) handle: Handle,
    /// For everything that looks like chance.
    pub(super) seed: u64,
    /// The device keeps data, so that it can be looked at.
    pub(super) keeps: bool,
}

/// Random bytes, the same for the same seed.
pub(super) fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let entropy = Entropy::new(seed ^ 0x5eed);
    let mut bytes = vec![0; len as usize];
    for word in bytes.chunks_mut(8) {
        word.copy_from_slice(&entropy.next().to_le_bytes()[..word.len()]);
    }
    bytes
}

/// Where two equally long slices differ first.
pub(super) fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b { None } else { a.iter().zip(b).position(|(a, b)| a != b) }
}

impl Rig {
    pub(super) fn block(&self) -> u64 {
        u64::from(self.handle.common().traits().block_size)
    }

    pub(super) fn size(&self) -> u64 {
        self.handle.common().size()
    }

    pub(super) fn has(&self, op: IoOp) -> bool {
        self.handle.common().traits().ops.has(op)
    }

    /// Bytes at the beginning of the device that scenarios work on.
    pub(super) fn window(&self) -> u64 {
        self.size().min(2 << 20)
    }

    /// An I/O that carries `data`, cut to pieces of the given lengths; what is left over is one more piece.
    pub(super) async fn io(&self, ask: Ask, data: &[u8], cuts: &[usize], shape: Shape) -> Result<Io, String> {
        let reactor = self.handle.reactor();
        let mut io = reactor.create_io().ok_or("the reactor has no I/O left")?;
        io.prepare(ask.op, ask.offset, ask.len);
        (io.fua, io.atomic) = (ask.fua, ask.atomic);
        let mut lens = Vec::new();
        let mut left = data.len();
        for cut in cuts.iter().copied().take(SEGMENTS_MAX - 1).chain([usize::MAX]) {
            let len = cut.min(left);
            left -= len;
            if len > 0 {
                lens.push(len);
            }
        }
        let mut whole = match shape {
            Shape::Parts if !data.is_empty() => Some(reactor.buffer(data.len()).await),
            _ => None,
        };
        let region = match shape {
            Shape::Regions | Shape::Mixed if !data.is_empty() => {
                let len = data.len() + SEGMENTS_MAX * GAP + GAP;
                Some(Region::new(len, RegionOptions { reserve: len, ..RegionOptions::default() }))
            }
            _ => None,
        }
        .transpose()
        .map_err(|error| error.to_string())?;
        let mut at = 0;
        for (index, len) in lens.into_iter().enumerate() {
            let in_region = shape == Shape::Regions || shape == Shape::Mixed && index % 2 == 1;
            io.data.push(match (&region, &mut whole) {
                (Some(region), _) if in_region => {
                    Segment::Region { region: region.clone(), offset: (at + index * GAP + 1) as u64, len: len as u32 }
                }
                (_, Some(whole)) => Segment::Buf(whole.split_to(len)),
                _ => Segment::Buf(reactor.buffer(len).await),
            });
            at += len;
        }
        scatter::scatter(&mut io.data, 0, data).expect("no request of the kernel's");
        Ok(io)
    }

    /// Executes an I/O to its end and retires it.
    pub(super) async fn end(&self, io: Io) -> Result<Done, String> {
        let lens = |io: &Io| io.data.iter().map(Segment::len).collect::<Vec<_>>();
        let (asked, before) = (format!("{:?} {}+{}", io.op, io.offset, io.len), lens(&io));
        let io = self.handle.execute(io).await;
        let after = lens(&io);
        let mut data = vec![0; after.iter().sum()];
        scatter::gather(&io.data, 0, &mut data).expect("no request of the kernel's");
        let done = Done { status: io.status, info: io.info, data };
        self.handle.reactor().retire_io(io);
        ensure!(before == after, "{asked} was given segments of {before:?} bytes and returned {after:?}");
        Ok(done)
    }

    /// Executes what is asked with `data` in one piece.
    pub(super) async fn run(&self, ask: Ask, data: &[u8]) -> Result<Done, String> {
        let io = self.io(ask, data, &[], Shape::Own).await?;
        self.end(io).await
    }

    /// Executes what is asked and insists on its status.
    pub(super) async fn expect(&self, ask: Ask, data: &[u8], status: IoStatus) -> Result<Done, String> {
        let done = self.run(ask, data).await?;
        ensure!(
            done.status == status,
            "{ask:?} with {} bytes of data ended with {:?}, not {status:?}",
            data.len(),
            done.status
        );
        Ok(done)
    }

    pub(super) async fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        for (index, piece) in data.chunks(TRANSFER_MAX).enumerate() {
            let at = offset + (index * TRANSFER_MAX) as u64;
            self.expect(Ask::new(IoOp::Write, at, piece.len() as u64), piece, IoStatus::Success).await?;
        }
        Ok(())
    }

    pub(super) async fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, String> {
        let mut data = Vec::new();
        while (data.len() as u64) < len {
            let at = offset + data.len() as u64;
            let piece = (len - data.len() as u64).min(TRANSFER_MAX as u64);
            // What the device does not fill shows.
            let fill = vec![0xA5; piece as usize];
            data.extend(self.expect(Ask::new(IoOp::Read, at, piece), &fill, IoStatus::Success).await?.data);
        }
        Ok(data)
    }

    /// Insists on what is stored from `offset` on, if the device keeps anything.
    pub(super) async fn holds(&self, offset: u64, expected: &[u8], when: &str) -> Outcome {
        let found = self.read(offset, expected.len() as u64).await?;
        match first_difference(&found, expected) {
            Some(at) if self.keeps => Err(format!(
                "{when}: byte {} of the device is {:#04x}, not {:#04x} (read at {offset}, {} bytes)",
                offset + at as u64,
                found[at],
                expected[at],
                expected.len()
            )),
            _ => Ok(()),
        }
    }
}

/// Bytes between the pieces of a region: odd, so that no piece is aligned.
const GAP: usize = 37;

//! A volume in memory and a crowd of workers that do random things to both, on disjoint ranges at any moment.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use reactor::nvme::host::Volume;
use reactor::reactor::Reactor;
use reactor::reactor::io::{IoOp, IoStatus};

use super::host::{flush, pattern, run_fua};

/// Largest I/O, in bytes.
const LEN_MAX: u64 = 1 << 20;

/// What a volume has to hold.
pub struct Model {
    bytes: RefCell<Vec<u8>>,
    block: u64,
    /// Ranges of I/Os in flight, and whether they write.
    busy: RefCell<Vec<(u64, u64, bool)>>,
    /// Operations carried out, by [`IoOp`] and whether data went by R2T.
    done: [[Cell<u64>; 2]; IoOp::ALL.len()],
}

/// What a worker does next.
struct Step {
    op: IoOp,
    offset: u64,
    len: u64,
}

impl Model {
    /// A volume of zeros.
    pub fn new(size: u64, block: u64) -> Rc<Model> {
        Rc::new(Model {
            bytes: RefCell::new(vec![0; size as usize]),
            block,
            busy: RefCell::default(),
            done: Default::default(),
        })
    }

    /// The bytes that the volume has to have.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }

    /// Operations of a kind so far, with data of at most `in_capsule` bytes and with more.
    pub fn count(&self, op: IoOp) -> (u64, u64) {
        let [small, large] = &self.done[op as usize];
        (small.get(), large.get())
    }

    fn claim(&self, step: &Step) -> bool {
        let (start, end, writes) = (step.offset, step.offset + step.len, step.op.writes());
        let mut busy = self.busy.borrow_mut();
        let free = busy.iter().all(|(s, e, w)| *e <= start || *s >= end || !(*w || writes));
        if free && step.len > 0 {
            busy.push((start, end, writes));
        }
        free
    }

    fn release(&self, step: &Step) {
        let mut busy = self.busy.borrow_mut();
        if let Some(at) = busy.iter().position(|(s, e, _)| (*s, *e) == (step.offset, step.offset + step.len)) {
            busy.swap_remove(at);
        }
    }

    /// A random step whose range is free.
    fn choose(&self, reactor: &Reactor, compare_and_write_max: u64) -> Step {
        let chance = reactor.entropy();
        let blocks = self.bytes.borrow().len() as u64 / self.block;
        loop {
            let op = match chance.below(100) {
                0..34 => IoOp::Read,
                34..38 => IoOp::Verify,
                38..74 => IoOp::Write,
                74..79 => IoOp::WriteZeroes,
                79..84 => IoOp::Unmap,
                84..90 => IoOp::Compare,
                90..96 => IoOp::CompareAndWrite,
                _ => IoOp::Flush,
            };
            let most = if op == IoOp::CompareAndWrite { compare_and_write_max } else { LEN_MAX } / self.block;
            // As many of each magnitude: small ones are the most common in life, and large ones find other bugs.
            let magnitude = chance.below(u64::from(most.ilog2()) + 1);
            let len = (1 + chance.below(1 << magnitude) + (1 << magnitude) - 1).min(most);
            let offset = chance.below(blocks - len + 1);
            let step = if op == IoOp::Flush {
                Step { op, offset: 0, len: 0 }
            } else {
                Step { op, offset: offset * self.block, len: len * self.block }
            };
            if self.claim(&step) {
                return step;
            }
        }
    }

    /// Does `count` random things through `volume`, checks each answer and keeps the model up to date.
    pub async fn work(&self, volume: &Volume, count: usize) {
        let reactor = volume.queue().reactor().clone();
        for _ in 0..count {
            let step = self.choose(&reactor, volume.geometry().compare_and_write_max);
            self.carry_out(&reactor, volume, &step).await;
            self.release(&step);
        }
    }

    async fn carry_out(&self, reactor: &Reactor, volume: &Volume, step: &Step) {
        let Step { op, offset, len } = *step;
        let range = offset as usize..(offset + len) as usize;
        let old = self.bytes.borrow()[range.clone()].to_vec();
        let new = match op {
            IoOp::Write | IoOp::CompareAndWrite => pattern(len as usize, reactor.entropy().next()),
            _ => vec![0; len as usize],
        };
        let mut expected = IoStatus::Success;
        let mut sent = if op == IoOp::Write { new.clone() } else { old.clone() };
        if matches!(op, IoOp::Compare | IoOp::CompareAndWrite) && reactor.entropy().below(2) == 0 {
            expected = IoStatus::Miscompare;
            sent[reactor.entropy().below(len) as usize] ^= 1 << reactor.entropy().below(8);
        }
        if op == IoOp::CompareAndWrite {
            sent.extend_from_slice(&new);
        }
        let data = if op.data_len(len) > 0 && op != IoOp::Read { &sent[..] } else { &[] };
        let fua = op.writes() && op != IoOp::Unmap && reactor.entropy().below(8) == 0;
        let (status, read) = run_fua(volume, op, offset, len, data, fua).await;
        assert_eq!(status, expected, "{op:?} of {len} bytes at {offset}");
        if op == IoOp::Read && read != old {
            let at = (0..old.len()).find(|at| read[*at] != old[*at]).unwrap_or(0);
            panic!("read of {len} bytes at {offset}: byte {at} is {:#x}, not {:#x}", read[at], old[at]);
        }
        if op.writes() && expected == IoStatus::Success {
            self.bytes.borrow_mut()[range].copy_from_slice(&new);
        }
        let large = usize::from(op.data_len(len) > u64::from(reactor::nvme::target::tcp::IN_CAPSULE_IO));
        let counter = &self.done[op as usize][large];
        counter.set(counter.get() + 1);
    }

    /// `depth` workers on each of the volumes, which are queues to one namespace; then a flush.
    pub async fn crowd(self: &Rc<Self>, volumes: &[Rc<Volume>], depth: usize, count: usize) {
        let reactor = volumes[0].queue().reactor().clone();
        let left = Rc::new(Cell::new(volumes.len() * depth));
        let waiter = reactor.current_task();
        for volume in volumes.iter().flat_map(|volume| std::iter::repeat_n(volume, depth)) {
            let (this, volume, left, reactor) = (self.clone(), volume.clone(), left.clone(), reactor.clone());
            reactor.clone().spawn("worker", async move {
                this.work(&volume, count).await;
                left.set(left.get() - 1);
                reactor.wake(waiter);
            });
        }
        std::future::poll_fn(|_| if left.get() == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending })
            .await;
        flush(&volumes[0]).await;
    }
}

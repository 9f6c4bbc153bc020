//! Random operations, many in flight, against a model in memory.
//!
//! The operations are planned from the seed before the first one starts. Each waits for the earlier ones that it overlaps, so what
//! each must find does not depend on the order of completions, and a run is played again by its seed.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

use super::rig::{Ask, Outcome, Rig, Shape, ensure, first_difference, pattern};
use crate::limits::TRANSFER_MAX;
use crate::reactor::TaskId;
use crate::reactor::clock::Entropy;
use crate::reactor::io::{IoOp, IoStatus};

/// I/Os in flight.
const DEPTH: usize = 12;

#[derive(Clone, Debug)]
struct Step {
    ask: Ask,
    /// For compares: the byte that is made to differ.
    differs: Option<u64>,
    cuts: Vec<usize>,
    shape: Shape,
    seed: u64,
}

impl Step {
    /// Relative to the beginning of the window.
    fn range(&self, base: u64) -> Range<u64> {
        self.ask.offset - base..self.ask.offset - base + self.ask.len
    }

    fn goes_with(&self, other: &Step) -> bool {
        let apart =
            self.ask.offset + self.ask.len <= other.ask.offset || other.ask.offset + other.ask.len <= self.ask.offset;
        apart || !self.ask.op.writes() && !other.ask.op.writes()
    }
}

struct Run {
    rig: Rig,
    base: u64,
    steps: Vec<Step>,
    next: Cell<usize>,
    /// Taken and not ended.
    open: RefCell<Vec<usize>>,
    waiting: RefCell<Vec<TaskId>>,
    model: RefCell<Vec<u8>>,
    failure: RefCell<Option<String>>,
    alive: Cell<usize>,
}

/// Random lengths: mostly small, some up to a whole transfer.
fn length(entropy: &Entropy, block: u64, max: u64) -> u64 {
    let blocks = match entropy.below(10) {
        0..5 => 1 + entropy.below(4),
        5..9 => 1 + entropy.below((64 << 10) / block),
        _ => 1 + entropy.below(max / block),
    };
    (blocks * block).min(max)
}

fn plan(rig: &Rig, count: usize, base: u64, window: u64) -> Vec<Step> {
    let (entropy, block) = (Entropy::new(rig.seed), rig.block());
    let ops: Vec<IoOp> = [
        IoOp::Read,
        IoOp::Read,
        IoOp::Read,
        IoOp::Write,
        IoOp::Write,
        IoOp::Write,
        IoOp::Write,
        IoOp::Unmap,
        IoOp::WriteZeroes,
        IoOp::Compare,
        IoOp::Verify,
        IoOp::CompareAndWrite,
        IoOp::CompareAndWrite,
        IoOp::Flush,
    ]
    .into_iter()
    .filter(|&op| rig.has(op))
    .collect();
    let limits = rig.handle.common().traits().limits;
    let (swap_max, boundary) = ((16 * block).min(limits.transfer_max), limits.boundary);
    let step = |_| {
        let op = ops[entropy.below(ops.len() as u64) as usize];
        let len = match op {
            IoOp::Flush => 0,
            IoOp::CompareAndWrite => length(&entropy, block, swap_max),
            _ => length(&entropy, block, (TRANSFER_MAX as u64).min(window)),
        };
        let offset = if op.has_range() { base + entropy.below((window - len) / block + 1) * block } else { base };
        // A compare and write across a boundary is refused: in pieces it would not be one step.
        let offset = match op {
            IoOp::CompareAndWrite if boundary != 0 && offset % boundary + len > boundary => {
                offset / boundary * boundary
            }
            _ => offset,
        };
        let fua = matches!(op, IoOp::Write | IoOp::WriteZeroes) && entropy.below(8) == 0;
        let atomic = op == IoOp::Write && len <= limits.atomic_max && entropy.below(4) == 0;
        let compares = matches!(op, IoOp::Compare | IoOp::CompareAndWrite);
        Step {
            ask: Ask { op, offset, len, fua, atomic },
            differs: (compares && rig.keeps && entropy.below(3) == 0).then(|| entropy.below(len.max(1))),
            cuts: (0..entropy.below(4)).map(|_| 1 + entropy.below(op.data_len(len).max(1)) as usize).collect(),
            shape: Shape::ALL[entropy.below(4) as usize],
            seed: entropy.next(),
        }
    };
    (0..count).map(step).collect()
}

/// `count` operations on `window` bytes from `base` on, which nobody else touches meanwhile.
pub(super) async fn run(rig: Rig, count: usize, base: u64, window: u64) -> Outcome {
    let transfer = TRANSFER_MAX as u64;
    for offset in (0..window).step_by(TRANSFER_MAX) {
        rig.write(base + offset, &vec![0; transfer.min(window - offset) as usize]).await?;
    }
    let run = Rc::new(Run {
        base,
        steps: plan(&rig, count, base, window),
        next: Cell::new(0),
        open: RefCell::default(),
        waiting: RefCell::default(),
        model: RefCell::new(vec![0; window as usize]),
        failure: RefCell::default(),
        alive: Cell::new(DEPTH),
        rig,
    });
    let reactor = run.rig.handle.reactor().clone();
    let waiter = reactor.current_task();
    for _ in 0..DEPTH {
        let (run, reactor) = (run.clone(), reactor.clone());
        reactor.clone().spawn("conformance random", async move {
            run.work().await;
            run.alive.set(run.alive.get() - 1);
            reactor.wake(waiter);
        });
    }
    poll_fn(|_| if run.alive.get() == 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    if let Some(failure) = run.failure.take() {
        return Err(failure);
    }
    let model = run.model.take();
    run.rig.holds(base, &model, "after all operations").await
}

impl Run {
    async fn work(&self) {
        loop {
            let index = self.next.get();
            if index >= self.steps.len() || self.failure.borrow().is_some() {
                return;
            }
            self.next.set(index + 1);
            self.open.borrow_mut().push(index);
            poll_fn(|_| self.may_start(index)).await;
            let outcome = self.carry_out(&self.steps[index]).await;
            if let Err(what) = outcome {
                let text = format!("operation {index}, {:?}: {what}", self.steps[index]);
                self.failure.borrow_mut().get_or_insert(text);
            }
            self.open.borrow_mut().retain(|&open| open != index);
            for task in self.waiting.take() {
                self.rig.handle.reactor().wake(task);
            }
        }
    }

    fn may_start(&self, index: usize) -> Poll<()> {
        let step = &self.steps[index];
        let free =
            self.open.borrow().iter().filter(|&&open| open < index).all(|&open| self.steps[open].goes_with(step));
        if free {
            return Poll::Ready(());
        }
        self.waiting.borrow_mut().push(self.rig.handle.reactor().current_task());
        Poll::Pending
    }

    async fn carry_out(&self, step: &Step) -> Outcome {
        let (rig, ask) = (&self.rig, step.ask);
        let range = step.range(self.base);
        let range = range.start as usize..range.end as usize;
        // Nothing that overlaps and writes is in flight: the model shows what is stored, now and until the end of this.
        let stored = self.model.borrow()[range.clone()].to_vec();
        let written = match ask.op {
            IoOp::Write | IoOp::CompareAndWrite => pattern(step.seed, ask.len),
            _ => vec![0; ask.len as usize],
        };
        let mut compared = stored.clone();
        if let Some(at) = step.differs {
            compared[at as usize] ^= 1 << (step.seed % 8);
        }
        let data = match ask.op {
            IoOp::Read => vec![0x3C; ask.len as usize],
            IoOp::Write => written.clone(),
            IoOp::Compare => compared,
            IoOp::CompareAndWrite => [&compared[..], &written].concat(),
            _ => Vec::new(),
        };
        let io = rig.io(ask, &data, &step.cuts, step.shape).await?;
        let done = rig.end(io).await?;
        let status = if step.differs.is_some() { IoStatus::Miscompare } else { IoStatus::Success };
        ensure!(done.status == status, "ended with {:?}, not {status:?}", done.status);
        if let Some(at) = step.differs {
            ensure!(done.info == at, "found the difference at {}, not at {at}", done.info);
        } else if ask.op.writes() {
            self.model.borrow_mut()[range].copy_from_slice(&written);
        }
        if ask.op == IoOp::Read && rig.keeps {
            let difference = first_difference(&done.data, &stored);
            ensure!(difference.is_none(), "read data that differs from the model at {difference:?}");
        }
        Ok(())
    }
}

//! Several tasks, and two reactors, on the same blocks.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use super::rig::{Ask, Outcome, Rig, Shape, ensure};
use crate::reactor::io::{IoOp, IoStatus};

/// Tasks of one reactor that count.
const COUNTERS: u64 = 4;

fn words(len: u64, value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(len as usize / 8)
}

fn word(data: &[u8], index: usize) -> u64 {
    data[index * 8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Adds one to the number in every word of two blocks, `each` times in each of some tasks, by compare and write.
pub(super) async fn count(rig: Rig, each: u64) -> Outcome {
    let reactor = rig.handle.reactor().clone();
    let (alive, failure) = (Rc::new(Cell::new(COUNTERS)), Rc::new(Cell::new(None)));
    let waiter = reactor.current_task();
    for _ in 0..COUNTERS {
        let (rig, alive, failure, reactor) = (rig.clone(), alive.clone(), failure.clone(), reactor.clone());
        reactor.clone().spawn("conformance count", async move {
            if let Err(what) = add(&rig, each).await {
                failure.set(Some(what));
            }
            alive.set(alive.get() - 1);
            reactor.wake(waiter);
        });
    }
    poll_fn(|_| if alive.get() == 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    failure.take().map_or(Ok(()), Err)
}

async fn add(rig: &Rig, each: u64) -> Outcome {
    let (block, mut left) = (rig.block(), each);
    while left > 0 {
        // What is read while another reactor writes may be torn; then the compare does not match.
        let now = word(&rig.read(2 * block, block).await?, 0);
        let data = [words(2 * block, now), words(2 * block, now + 1)].concat();
        match rig.run(Ask::new(IoOp::CompareAndWrite, 2 * block, 2 * block), &data).await?.status {
            IoStatus::Success => left -= 1,
            IoStatus::Miscompare => rig.handle.reactor().yield_now().await,
            other => return Err(format!("a compare and write ended with {other:?}")),
        }
    }
    Ok(())
}

/// What [`count`] of `reactors` reactors must have left.
pub(super) async fn counted(rig: Rig, each: u64, reactors: u64) -> Outcome {
    let block = rig.block();
    let expected = words(2 * block, each * COUNTERS * reactors);
    rig.holds(2 * block, &expected, "after counting by compare and write, an update was lost or torn").await
}

/// Writes numbers plainly, while [`swap`] compares and writes the same block on another reactor. The upper half of each word is the number
/// of the plain write: an acknowledged one may not be undone.
pub(super) async fn write_plainly(rig: Rig, writes: u64, over: Arc<AtomicBool>) -> Outcome {
    let outcome = async {
        let (block, entropy) = (rig.block(), rig.handle.reactor().entropy());
        for number in 1..=writes {
            rig.write(block, &words(block, number << 32)).await?;
            // Looking for a while gives the other side time to compare and write in between.
            for _ in 0..=entropy.below(3) {
                let found = rig.read(block, block).await?;
                let undone = (0..block as usize / 8).map(|index| word(&found, index)).find(|word| word >> 32 != number);
                ensure!(
                    undone.is_none(),
                    "plain write {number} was undone or torn by a compare and write: {undone:x?}"
                );
            }
        }
        Ok(())
    }
    .await;
    over.store(true, Ordering::Relaxed);
    outcome
}

/// Adds one to what it finds in the block by compare and write, until `over`.
pub(super) async fn swap(rig: Rig, over: Arc<AtomicBool>) -> Outcome {
    let block = rig.block();
    while !over.load(Ordering::Relaxed) {
        let now = word(&rig.read(block, block).await?, 0);
        let data = [words(block, now), words(block, now + 1)].concat();
        let io = rig.io(Ask::new(IoOp::CompareAndWrite, block, block), &data, &[], Shape::Own).await?;
        let status = rig.end(io).await?.status;
        ensure!(
            matches!(status, IoStatus::Success | IoStatus::Miscompare),
            "a compare and write ended with {status:?}"
        );
        rig.handle.reactor().yield_now().await;
    }
    Ok(())
}

/// Tasks of one reactor that write atomically.
const WRITERS: u64 = 2;
/// Most that they write at a time, in bytes.
const WHOLE_MAX: u64 = 256 << 10;

/// Writes a range atomically, `each` times in each of some tasks, every time all of it to a number of its own, and reads it: never is a
/// part of one write there and a part of another.
pub(super) async fn write_atomically(rig: Rig, each: u64) -> Outcome {
    let reactor = rig.handle.reactor().clone();
    let (alive, failure) = (Rc::new(Cell::new(WRITERS)), Rc::new(Cell::new(None)));
    let waiter = reactor.current_task();
    for task in 0..WRITERS {
        let (rig, alive, failure, reactor) = (rig.clone(), alive.clone(), failure.clone(), reactor.clone());
        reactor.clone().spawn("conformance atomic", async move {
            let first = (u64::from(reactor.id()) * WRITERS + task + 1) << 32;
            if let Err(what) = write_and_look(&rig, first..first + each).await {
                failure.set(Some(what));
            }
            alive.set(alive.get() - 1);
            reactor.wake(waiter);
        });
    }
    poll_fn(|_| if alive.get() == 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    failure.take().map_or(Ok(()), Err)
}

async fn write_and_look(rig: &Rig, numbers: std::ops::Range<u64>) -> Outcome {
    let (block, limits) = (rig.block(), rig.handle.common().traits().limits);
    let len = limits.atomic_max.min(WHOLE_MAX).min(rig.window()) / block * block;
    // What is read in pieces is whole in each of them.
    let boundary = if limits.boundary == 0 { u64::MAX } else { limits.boundary };
    let look = len.min(limits.transfer_max).min(boundary) / block * block;
    // All of it is one of these numbers before anybody looks.
    for number in numbers {
        let ask = Ask { atomic: true, ..Ask::new(IoOp::Write, 0, len) };
        rig.expect(ask, &words(len, number), IoStatus::Success).await?;
        // As many as chance says: tasks in step would all write, and then all read.
        for _ in 0..=rig.handle.reactor().entropy().below(4) {
            let ask = Ask::new(IoOp::Read, 0, look);
            let found = rig.expect(ask, &words(look, 0), IoStatus::Success).await?.data;
            let first = word(&found, 0);
            let other = (0..look as usize / 8).map(|index| word(&found, index)).find(|word| *word != first);
            ensure!(other.is_none(), "a read of {look} bytes found {first:#x} and {other:#x?}, of two atomic writes");
            ensure!(first != 0, "a read behind an atomic write of {len} bytes found nothing of any");
            rig.handle.reactor().yield_now().await;
        }
    }
    Ok(())
}

/// I/Os in flight when a reset comes.
const IN_FLIGHT: usize = 24;

/// A reset ends when nothing that was submitted before it is left, and the device works on.
pub(super) async fn reset(rig: Rig) -> Outcome {
    if !rig.has(IoOp::Reset) {
        return Ok(());
    }
    let reactor = rig.handle.reactor().clone();
    let (block, ended) = (rig.block(), Rc::new(Cell::new(0)));
    let (submitted, wrong) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
    for index in 0..IN_FLIGHT {
        let ops = [IoOp::Write, IoOp::Read, IoOp::WriteZeroes, IoOp::Flush];
        let op = ops.into_iter().cycle().skip(index).find(|&op| rig.has(op)).unwrap_or(IoOp::Read);
        let len = if op.has_range() { 16 * block } else { 0 };
        let data = vec![7; op.data_len(len) as usize];
        let io = rig.io(Ask::new(op, index as u64 * 16 * block, len), &data, &[], Shape::Own).await?;
        let (rig, ended, submitted, wrong) = (rig.clone(), ended.clone(), submitted.clone(), wrong.clone());
        reactor.spawn("conformance reset", async move {
            submitted.set(submitted.get() + 1);
            match rig.end(io).await {
                Ok(done) if matches!(done.status, IoStatus::Success | IoStatus::Aborted) => {}
                Ok(done) => wrong.set(Some(format!("an I/O that a reset met ended with {:?}", done.status))),
                Err(what) => wrong.set(Some(what)),
            }
            ended.set(ended.get() + 1);
        });
    }
    while submitted.get() < IN_FLIGHT {
        reactor.yield_now().await;
    }
    rig.expect(Ask::new(IoOp::Reset, 0, 0), &[], IoStatus::Success).await?;
    // What landed before the reset has woken its task before: one round lets them all run.
    reactor.sleep(0).await;
    reactor.yield_now().await;
    reactor.yield_now().await;
    ensure!(ended.get() == IN_FLIGHT, "{} of {IN_FLIGHT} I/Os were left when the reset ended", IN_FLIGHT - ended.get());
    if let Some(what) = wrong.take() {
        return Err(what);
    }
    let data = super::rig::pattern(rig.seed, 4 * block);
    rig.write(block, &data).await?;
    rig.holds(block, &data, "written after a reset").await
}

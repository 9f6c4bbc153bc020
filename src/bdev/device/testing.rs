//! What the tests of the leaves share: one device on one reactor, step by step, or on two reactors that race.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use hugepages::{Arena, ArenaOptions, HugepagePolicy};

use crate::bdev::{BlockDevice, Handle, Told};
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::reactor::start::{Reactors, solo};
use crate::reactor::{Idle, Reactor};

/// How an I/O ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: IoStatus,
    pub(crate) info: u64,
    pub(crate) data: Vec<u8>,
}

/// An I/O with `data` in pieces of the given lengths; what is left over is one more piece.
pub(crate) fn io_with(reactor: &Reactor, op: IoOp, offset: u64, len: u64, data: &[u8], cuts: &[usize]) -> Io {
    let mut io = reactor.create_io().unwrap();
    io.prepare(op, offset, len);
    let mut rest = data;
    for &cut in cuts.iter().chain([&usize::MAX]) {
        let (now, later) = rest.split_at(cut.min(rest.len()));
        rest = later;
        if !now.is_empty() {
            let mut buf = reactor.pool().alloc(now.len()).unwrap();
            buf.copy_from_slice(now);
            io.data.push_buf(buf);
        }
    }
    io
}

/// Flushes for a user who has been `told` of losses, and tells it of more.
pub(crate) async fn flush_for(handle: &Handle, told: &mut Told) -> IoStatus {
    let mut io = handle.execute(io_with(handle.reactor(), IoOp::Flush, 0, 0, &[], &[])).await;
    *told = handle.end_flush(&mut io, *told);
    let status = io.status;
    handle.reactor().retire_io(io);
    status
}

/// Executes an I/O to its end.
pub(crate) async fn end(handle: &Handle, io: Io) -> Done {
    let io = handle.execute(io).await;
    let mut data = Vec::new();
    for segment in io.data.iter() {
        let Segment::Buf(buf) = segment else { panic!("a buffer went in") };
        data.extend_from_slice(buf);
    }
    let done = Done { status: io.status, info: io.info, data };
    handle.reactor().retire_io(io);
    done
}

/// A device on a reactor of the calling thread.
pub(crate) struct One {
    pub(crate) reactor: Rc<Reactor>,
    pub(crate) handle: Handle,
}

impl One {
    pub(crate) fn new(device: &Arc<dyn BlockDevice>) -> One {
        let reactor = solo(32 << 20).unwrap();
        let handle = Handle::open(&reactor, device).unwrap();
        One { reactor, handle }
    }

    /// See [`io_with`].
    pub(crate) fn io(&self, op: IoOp, offset: u64, len: u64, data: &[u8], cuts: &[usize]) -> Io {
        io_with(&self.reactor, op, offset, len, data, cuts)
    }

    /// Executes an I/O to its end.
    pub(crate) fn end(&self, io: Io) -> Done {
        let handle = self.handle.clone();
        self.reactor.run_until(async move { end(&handle, io).await })
    }

    pub(crate) fn run(&self, op: IoOp, offset: u64, len: u64, data: &[u8]) -> Done {
        self.end(self.io(op, offset, len, data, &[]))
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        assert_eq!(self.run(IoOp::Write, offset, data.len() as u64, data).status, IoStatus::Success);
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let done = self.run(IoOp::Read, offset, len as u64, &vec![0xDB; len]);
        assert_eq!(done.status, IoStatus::Success);
        done.data
    }

    /// The status of an operation without data.
    pub(crate) fn status(&self, op: IoOp, offset: u64, len: u64) -> IoStatus {
        self.run(op, offset, len, &[]).status
    }

    /// Ends the reactor: no buffer may be left.
    pub(crate) fn close(self) {
        drop(self.handle);
        assert_eq!(self.reactor.shut_down(), 0, "leaked buffers");
    }
}

/// Bytes that tell position and `seed` apart.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (seed.wrapping_mul(31) ^ (i / 512).wrapping_mul(7) ^ i) as u8).collect()
}

/// Two reactors on threads of their own.
pub(crate) fn two_reactors() -> Reactors {
    let options = ArenaOptions { size: 64 << 20, hugepages: HugepagePolicy::Off, numa_node: None };
    Reactors::start(&[0, 1], Idle::Adaptive, Arena::new(options).unwrap()).unwrap()
}

/// Runs a task on each reactor and waits for what they give.
pub(crate) fn on_each<R, F>(
    reactors: &Reactors,
    device: &Arc<dyn BlockDevice>,
    body: impl Fn(Handle, usize) -> F + Clone + Send + 'static,
) -> Vec<R>
where
    R: Send + 'static,
    F: Future<Output = R> + 'static,
{
    let (sender, receiver) = mpsc::channel();
    for (index, remote) in reactors.remotes().iter().enumerate() {
        let (sender, device, body) = (sender.clone(), device.clone(), body.clone());
        remote.send(Box::new(move |reactor| {
            let handle = Handle::open(reactor, &device).unwrap();
            reactor.spawn("test", async move {
                let result = body(handle, index).await;
                sender.send(result).unwrap();
            });
        }));
    }
    drop(sender);
    receiver.iter().collect()
}

/// Bytes that racing writes share: enough that a compare and write takes a while between its read and its write.
const SPAN: usize = 16 << 10;

/// A span in which every word is `value`.
fn block(handle: &Handle, value: u64) -> hugepages::Buf {
    let mut buf = handle.reactor().pool().alloc(SPAN).expect("few are out");
    for word in buf.chunks_exact_mut(8) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    buf
}

async fn execute(handle: &Handle, op: IoOp, offset: u64, data: Vec<hugepages::Buf>) -> (IoStatus, Vec<u64>) {
    let mut io = handle.reactor().create_io().unwrap();
    io.prepare(op, offset, SPAN as u64);
    for buf in data {
        io.data.push_buf(buf);
    }
    let mut io = handle.execute(io).await;
    let mut words = Vec::new();
    if let Some(Segment::Buf(buf)) = io.data.pop() {
        words.extend(buf.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())));
    }
    let status = io.status;
    handle.reactor().retire_io(io);
    (status, words)
}

async fn read_words(handle: &Handle, offset: u64) -> Vec<u64> {
    let (status, words) = execute(handle, IoOp::Read, offset, vec![block(handle, 0)]).await;
    assert_eq!(status, IoStatus::Success);
    words
}

/// Both reactors count in one range by compare and write, several tasks each: no count is lost, none is torn.
pub(crate) fn count_together(device: Arc<dyn BlockDevice>, each: u64) {
    let reactors = two_reactors();
    let successes =
        on_each(&reactors, &device, move |handle, _| async move {
            let finished = Rc::new(std::cell::Cell::new(0));
            let reactor = handle.reactor().clone();
            for _ in 0..4 {
                let (handle, finished, waiter) = (handle.clone(), finished.clone(), reactor.current_task());
                reactor.spawn("counter", async move {
                    for _ in 0..each {
                        loop {
                            let now = read_words(&handle, 1024).await[0];
                            let data = vec![block(&handle, now), block(&handle, now + 1)];
                            match execute(&handle, IoOp::CompareAndWrite, 1024, data).await.0 {
                                IoStatus::Success => break,
                                IoStatus::Miscompare => {}
                                other => panic!("{other:?}"),
                            }
                        }
                    }
                    finished.set(finished.get() + 1);
                    handle.reactor().wake(waiter);
                });
            }
            std::future::poll_fn(|_| {
                if finished.get() == 4 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
            4 * each
        });
    assert_eq!(successes.len(), 2, "a reactor failed");
    let total: u64 = successes.iter().sum();
    let seen = on_each(&reactors, &device, |handle, _| async move {
        execute(&handle, IoOp::Read, 1024, vec![block(&handle, 0)]).await.1
    });
    for words in seen {
        let other = words.iter().find(|word| **word != total);
        assert_eq!(other, None, "{total} were counted");
    }
    assert_eq!(reactors.stop(), 0, "leaked buffers");
}

/// One reactor writes a range plainly, the other changes what it finds there by compare and write: an acknowledged plain
/// write is never undone. Every second write lets one whole compare and write pass before it, the others race it.
pub(crate) fn race_plain_writes(device: Arc<dyn BlockDevice>, writes: u64) {
    let reactors = two_reactors();
    // Attempts of the other side that were started, that ended, and whether to stop.
    let shared = Arc::new((AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false)));
    let results = on_each(&reactors, &device, move |handle, index| {
        let shared = shared.clone();
        async move {
            let (started, ended, stop) = &*shared;
            if index == 0 {
                let _stop = StopAtEnd(stop);
                // The upper half of each word counts the plain writes, the lower half what was added to each.
                for count in 1..=writes {
                    let (status, _) = execute(&handle, IoOp::Write, 0, vec![block(&handle, count << 32)]).await;
                    assert_eq!(status, IoStatus::Success);
                    let (before, marker) =
                        (started.load(Ordering::SeqCst), if count % 2 == 0 { ended } else { started });
                    loop {
                        let words = read_words(&handle, 0).await;
                        let other = words.iter().find(|word| **word >> 32 != count);
                        assert_eq!(other, None, "plain write {count} was undone");
                        if marker.load(Ordering::SeqCst) > before {
                            for _ in 0..handle.reactor().entropy().below(100) {
                                handle.reactor().yield_now().await;
                            }
                            break;
                        }
                        handle.reactor().sleep(5_000).await;
                    }
                }
                return 0;
            }
            let mut successes = 0;
            while !stop.load(Ordering::SeqCst) {
                started.fetch_add(1, Ordering::SeqCst);
                let now = read_words(&handle, 0).await[0];
                let data = vec![block(&handle, now), block(&handle, now + 1)];
                match execute(&handle, IoOp::CompareAndWrite, 0, data).await.0 {
                    IoStatus::Success => successes += 1,
                    IoStatus::Miscompare => {}
                    other => panic!("{other:?}"),
                }
                ended.fetch_add(1, Ordering::SeqCst);
            }
            successes
        }
    });
    assert_eq!(results.len(), 2, "a reactor failed");
    assert!(results.iter().sum::<u64>() >= writes / 2, "{results:?} of {writes} compare and writes succeeded");
    let seen = on_each(&reactors, &device, |handle, _| async move {
        execute(&handle, IoOp::Read, 0, vec![block(&handle, 0)]).await.1
    });
    for words in seen {
        assert_eq!(words[0] >> 32, writes, "the last plain write was undone");
        assert_eq!(words.iter().find(|word| **word != words[0]), None, "torn: the rest is {:#x}", words[0]);
    }
    assert_eq!(reactors.stop(), 0, "leaked buffers");
}

/// Bytes of racing writes that are to be seen whole: copying them takes so long that reads meet it.
const WHOLE: usize = 1 << 20;

/// Both reactors write one range, each time all of it to another number, atomically or not, and read it, until a read has found parts of
/// two writes or `rounds` have gone by on each. Whether one has, and the numbers that reads of both found of the other reactor's.
pub(crate) fn tears(device: &Arc<dyn BlockDevice>, atomic: bool, rounds: u64) -> (bool, u64) {
    let reactors = two_reactors();
    let torn = Arc::new(AtomicBool::new(false));
    let (seen, begun) = (torn.clone(), Arc::new(AtomicU64::new(0)));
    let met = on_each(&reactors, device, move |handle, index| {
        let (torn, begun) = (seen.clone(), begun.clone());
        async move {
            let reactor = handle.reactor().clone();
            let (mut met, mut buf) = (0, Some(reactor.buffer(WHOLE).await));
            for round in 0..rounds {
                if round == 1 {
                    // The other has the device open by then; one alone would be through before.
                    begun.fetch_add(1, Ordering::SeqCst);
                    while begun.load(Ordering::SeqCst) < 2 {
                        reactor.sleep(5_000).await;
                    }
                }
                if torn.load(Ordering::SeqCst) {
                    break;
                }
                let mine = (index as u64 + 1) << 32 | round;
                for (step, op) in [IoOp::Write, IoOp::Read, IoOp::Read].into_iter().enumerate() {
                    let mut io = reactor.create_io().unwrap();
                    io.prepare(op, 0, WHOLE as u64);
                    // The last read is from where the data is, if the device lends it.
                    io.atomic = atomic && op == IoOp::Write;
                    let mut data = buf.take().expect("given back");
                    let fill = if op == IoOp::Write { mine } else { 0 }.to_le_bytes();
                    data.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&fill));
                    io.data.push_buf(data);
                    let lent = if step == 2 { handle.lend(&mut io) } else { None };
                    if let Some(mut lent) = lent {
                        lent.region.read(lent.at, &mut lent.spare);
                        io.data.push_buf(lent.spare);
                    } else {
                        io = handle.execute(io).await;
                    }
                    assert_eq!(io.status, IoStatus::Success);
                    let Some(Segment::Buf(data)) = io.data.pop() else { panic!("a buffer went in") };
                    reactor.retire_io(io);
                    let (first, rest) = data.split_at(8);
                    assert!(*first != [0; 8], "a read behind a write found nothing");
                    if op == IoOp::Read && rest.chunks_exact(8).any(|word| word != first) {
                        torn.store(true, Ordering::SeqCst);
                    }
                    met += u64::from(op == IoOp::Read && first[4] != mine.to_le_bytes()[4]);
                    buf = Some(data);
                    reactor.yield_now().await;
                }
            }
            met
        }
    });
    assert_eq!(met.len(), 2, "a reactor failed");
    assert_eq!(reactors.stop(), 0, "leaked buffers");
    (torn.load(Ordering::SeqCst), met.iter().sum())
}

/// Tells the other side to stop, at a panic too.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

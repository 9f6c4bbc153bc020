//! What the tests of the leaves share: one device on one reactor, step by step, or on two reactors that race.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;

use hugepages::{Arena, ArenaOptions, HugepagePolicy};

use crate::bdev::{BlockDevice, Handle};
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

    /// An I/O with `data` in pieces of the given lengths; what is left over is one more piece.
    pub(crate) fn io(&self, op: IoOp, offset: u64, len: u64, data: &[u8], cuts: &[usize]) -> Io {
        let mut io = self.reactor.create_io().unwrap();
        io.prepare(op, offset, len);
        let mut rest = data;
        for &cut in cuts.iter().chain([&usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            if !now.is_empty() {
                let mut buf = self.reactor.pool().alloc(now.len()).unwrap();
                buf.copy_from_slice(now);
                io.data.push_buf(buf);
            }
        }
        io
    }

    /// Executes an I/O to its end.
    pub(crate) fn end(&self, io: Io) -> Done {
        let handle = self.handle.clone();
        let io = self.reactor.run_until(async move { handle.execute(io).await });
        let mut data = Vec::new();
        for segment in io.data.iter() {
            let Segment::Buf(buf) = segment else { panic!("a buffer went in") };
            data.extend_from_slice(buf);
        }
        let done = Done { status: io.status, info: io.info, data };
        self.reactor.retire_io(io);
        done
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

/// A block of 512 bytes in which every word is `value`.
fn block(handle: &Handle, value: u64) -> hugepages::Buf {
    let mut buf = handle.reactor().pool().alloc(512).expect("few are out");
    for word in buf.chunks_exact_mut(8) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    buf
}

async fn execute(handle: &Handle, op: IoOp, offset: u64, data: Vec<hugepages::Buf>) -> (IoStatus, Vec<u64>) {
    let mut io = handle.reactor().create_io().unwrap();
    io.prepare(op, offset, 512);
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

async fn read_word(handle: &Handle, offset: u64) -> u64 {
    let (status, words) = execute(handle, IoOp::Read, offset, vec![block(handle, 0)]).await;
    assert_eq!(status, IoStatus::Success);
    words[0]
}

/// Both reactors count in one block by compare and write, several tasks each: no count is lost, no block is torn.
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
                            let now = read_word(&handle, 1024).await;
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
    let total: u64 = successes.iter().sum();
    let seen = on_each(&reactors, &device, |handle, _| async move {
        execute(&handle, IoOp::Read, 1024, vec![block(&handle, 0)]).await.1
    });
    for words in seen {
        assert!(words.iter().all(|word| *word == total), "{total} counted, found {words:?}");
    }
    assert_eq!(reactors.stop(), 0, "leaked buffers");
}

/// One reactor writes a block plainly, the other changes what it finds there by compare and write: an acknowledged plain
/// write is never undone. Returns how often the compare and write succeeded.
pub(crate) fn race_plain_writes(device: Arc<dyn BlockDevice>, writes: u64) -> u64 {
    let reactors = two_reactors();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let results = on_each(&reactors, &device, move |handle, index| {
        let stop = stop.clone();
        async move {
            if index == 0 {
                // The upper half of each word counts the plain writes, the lower half what was added to each.
                for count in 1..=writes {
                    let (status, _) = execute(&handle, IoOp::Write, 0, vec![block(&handle, count << 32)]).await;
                    assert_eq!(status, IoStatus::Success);
                    let (_, words) = execute(&handle, IoOp::Read, 0, vec![block(&handle, 0)]).await;
                    if let Some(word) = words.iter().find(|word| **word >> 32 != count) {
                        stop.store(true, std::sync::atomic::Ordering::Relaxed);
                        panic!("plain write {count} was undone: {word:#x}");
                    }
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                return 0;
            }
            let mut successes = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let now = read_word(&handle, 0).await;
                let data = vec![block(&handle, now), block(&handle, now + 1)];
                match execute(&handle, IoOp::CompareAndWrite, 0, data).await.0 {
                    IoStatus::Success => successes += 1,
                    IoStatus::Miscompare => {}
                    other => panic!("{other:?}"),
                }
            }
            successes
        }
    });
    let seen = on_each(&reactors, &device, |handle, _| async move {
        execute(&handle, IoOp::Read, 0, vec![block(&handle, 0)]).await.1
    });
    for words in seen {
        assert!(words.iter().all(|word| *word == words[0] && *word >> 32 == writes), "torn: {words:?}");
    }
    assert_eq!(reactors.stop(), 0, "leaked buffers");
    assert_eq!(results.len(), 2, "a reactor failed");
    results.into_iter().max().unwrap()
}

//! Our own host in the test process: on a reactor of its own, with plain calls for single commands.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use reactor::nvme::host::{Controller, Identity, Options, Queue, Volume};
use reactor::nvme::spec::{AsyncEventType, NoticeInfo};
use reactor::reactor::io::{IoOp, IoStatus, Segment};
use reactor::reactor::{Idle, Reactor, start};

/// The time that everything a test does on its host may take.
const TEST_LIMIT: Duration = Duration::from_secs(120);

/// Runs `test` on a reactor on this thread, which sleeps when there is nothing to do. No buffer may be lost.
pub fn on_host<R: 'static, F: Future<Output = R> + 'static>(test: impl FnOnce(Rc<Reactor>) -> F) -> R {
    let reactor = start::solo(96 << 20).unwrap();
    let result = Rc::new(std::cell::Cell::new(None));
    let (there, here, body) = (result.clone(), reactor.clone(), test(reactor.clone()));
    reactor.spawn("test", async move {
        there.set(within(&here, TEST_LIMIT, body).await);
        here.stop();
    });
    reactor.run(Idle::Adaptive);
    let result = result.take().expect("the test takes too long");
    // Connections that the test dropped end by themselves.
    for _ in 0..1000 {
        reactor.turn();
    }
    assert_eq!(reactor.shut_down(), 0, "DMA buffers are still out");
    result
}

/// The outcome of `future`, or `None` if it takes longer than `limit`.
pub async fn within<T>(reactor: &Reactor, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut sleep = std::pin::pin!(pause(reactor, limit));
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending => sleep.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Lets time pass.
pub async fn pause(reactor: &Reactor, time: Duration) {
    reactor.sleep(time.as_nanos() as u64).await;
}

/// A host with a number of its own.
pub fn identity(number: u8) -> Identity {
    Identity::from_uuid([number; 16])
}

/// How the tests connect to a subsystem.
pub fn options(nqn: &str) -> Options {
    let mut options = Options::new(nqn, identity(1));
    // A loaded machine is late, not dead.
    options.kato_ms = 30_000;
    options
}

/// A controller with one I/O queue and a namespace through it.
pub struct Connected {
    /// The controller.
    pub controller: Controller,
    /// The namespace.
    pub volume: Rc<Volume>,
}

impl Connected {
    /// Connects to namespace `nsid`.
    pub async fn new(reactor: &Rc<Reactor>, address: SocketAddr, options: Options, nsid: u32) -> Connected {
        let controller = Controller::connect(reactor, address, options).await.unwrap();
        let volume = volume(reactor, &controller, 1, nsid).await;
        Connected { controller, volume }
    }

    /// Ends in order.
    pub async fn end(self) {
        self.volume.queue().close().await;
        self.controller.shut_down().await.unwrap();
    }
}

/// Namespace `nsid` through a new queue `qid`.
pub async fn volume(reactor: &Rc<Reactor>, controller: &Controller, qid: u16, nsid: u32) -> Rc<Volume> {
    let queue = Queue::connect(reactor, &controller.ticket(), qid).await.unwrap();
    let geometry = controller.geometry(nsid).await.unwrap();
    Rc::new(Volume::new(Rc::new(queue), geometry))
}

/// One I/O: the operation, its range, its data; the status and the data afterwards.
pub async fn run(volume: &Volume, op: IoOp, offset: u64, len: u64, data: &[u8]) -> (IoStatus, Vec<u8>) {
    run_fua(volume, op, offset, len, data, false).await
}

/// As [`run`], durable before the answer if `fua`.
pub async fn run_fua(volume: &Volume, op: IoOp, offset: u64, len: u64, data: &[u8], fua: bool) -> (IoStatus, Vec<u8>) {
    let reactor = volume.queue().reactor();
    let mut buffers = Vec::new();
    let data_len = op.data_len(len) as usize;
    // A compare and write is two halves; a half fits one buffer.
    let piece = if op == IoOp::CompareAndWrite { len as usize } else { data_len };
    for at in (0..data_len).step_by(piece.max(1)) {
        let mut buf = reactor.buffer(piece).await;
        match data.get(at..at + piece) {
            Some(part) => buf.copy_from_slice(part),
            None => buf.fill(0xee),
        }
        buffers.push(buf);
    }
    let mut io = reactor.create_io().unwrap();
    io.prepare(op, offset, len);
    io.fua = fua;
    for buf in buffers {
        io.data.push_buf(buf);
    }
    let mut io = volume.execute(io).await;
    let mut back = Vec::new();
    if op == IoOp::Read {
        for segment in io.data.iter() {
            let Segment::Buf(buf) = segment else { panic!("a buffer turned into {segment:?}") };
            back.extend_from_slice(buf);
        }
    }
    io.data.clear();
    let status = io.status;
    reactor.retire_io(io);
    (status, back)
}

/// A write that has to succeed.
pub async fn write(volume: &Volume, offset: u64, data: &[u8]) {
    let (status, _) = run(volume, IoOp::Write, offset, data.len() as u64, data).await;
    assert_eq!(status, IoStatus::Success, "write of {} at {offset}", data.len());
}

/// A read that has to succeed.
pub async fn read(volume: &Volume, offset: u64, len: u64) -> Vec<u8> {
    let (status, data) = run(volume, IoOp::Read, offset, len, &[]).await;
    assert_eq!(status, IoStatus::Success, "read of {len} at {offset}");
    data
}

/// A flush that has to succeed.
pub async fn flush(volume: &Volume) {
    assert_eq!(run(volume, IoOp::Flush, 0, 0, &[]).await.0, IoStatus::Success);
}

/// Bytes that differ with their place and with `seed`.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The next event, which has to be this notice and has to come.
pub async fn expect_notice(reactor: &Reactor, controller: &Controller, notice: NoticeInfo) {
    let event = within(reactor, Duration::from_secs(20), controller.next_event()).await;
    let event = event.expect("an event").unwrap();
    assert_eq!((event.event_type, event.info), (AsyncEventType::NOTICE, notice.0), "{event:?}");
}

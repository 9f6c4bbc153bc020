//! Streams on a real ring against plain sockets: in use, silent, and more than are tried directly.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use hugepages::{Region, RegionOptions};

use super::tx::{HEADS, PARTS};
use super::{Stream, StreamError, Tx};
use crate::reactor::Reactor;
use crate::reactor::start::solo;
use crate::sys::tx::TxBatch;

/// More than the ring tries directly.
const STREAMS: usize = 7;
/// Longer than a receive is tried.
const SILENCE: Duration = Duration::from_millis(20);

fn byte(stream: usize, at: usize) -> u8 {
    (at / 5) as u8 ^ (at >> 10) as u8 ^ (stream as u8) << 4
}

/// A stream of the reactor and the plain socket at its other end.
async fn pair(reactor: &Rc<Reactor>) -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = Stream::connect(reactor, listener.local_addr().unwrap()).await.unwrap();
    (stream, listener.accept().unwrap().0)
}

/// Runs a test on a reactor of this thread.
fn on_reactor<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rc<Reactor>) -> F) {
    let reactor = solo(32 << 20).unwrap();
    reactor.run_until(test(reactor.clone()));
    assert_eq!(reactor.shut_down(), 0, "buffers that never came home");
}

/// Sends the pattern in pieces of many sizes, some at once and some after a silence.
fn send_pieces(mut peer: TcpStream, stream: usize, total: usize) {
    let bytes: Vec<u8> = (0..total).map(|at| byte(stream, at)).collect();
    let (mut at, mut piece) = (0, 1 + stream);
    while at < total {
        let end = (at + piece).min(total);
        peer.write_all(&bytes[at..end]).unwrap();
        if piece % 3 == 0 {
            thread::park_timeout(SILENCE);
        }
        at = end;
        piece = piece * 7 % 262_147;
    }
}

#[test]
fn every_stream_receives_what_was_sent_in_use_or_silent() {
    const TOTAL: usize = 3 << 20;
    on_reactor(|reactor| async move {
        let ended = Rc::new(Cell::new(0));
        for number in 0..STREAMS {
            let (stream, peer) = pair(&reactor).await;
            let sender = thread::spawn(move || send_pieces(peer, number, TOTAL));
            let (here, ended) = (reactor.clone(), ended.clone());
            reactor.spawn("receiver", async move {
                let mut at = 0;
                while at < TOTAL {
                    // In turn: whatever there is, little, and a buffer to be filled.
                    let got = match at % 3 {
                        0 => stream.recv().await.unwrap(),
                        1 => stream.recv_at_most(100).await.unwrap(),
                        _ => {
                            let buf = here.buffer(50_000.min(TOTAL - at)).await;
                            stream.recv_into(buf, 0).await.unwrap()
                        }
                    };
                    assert!(
                        got.iter().enumerate().all(|(i, found)| *found == byte(number, at + i)),
                        "{number} at {at}"
                    );
                    at += got.len();
                }
                sender.join().unwrap();
                assert_eq!(stream.recv().await.err(), Some(StreamError::Closed), "the end of the stream");
                ended.set(ended.get() + 1);
            });
        }
        while ended.get() < STREAMS {
            reactor.sleep(1_000_000).await;
        }
        let ring = reactor.stats().ring;
        assert_eq!((ring.stale, ring.overflows), (0, 0));
        assert!(ring.misses > 0, "none was tried directly");
    });
}

#[test]
fn a_send_beyond_what_the_socket_takes_is_finished_by_the_ring() {
    const TOTAL: usize = 24 << 20;
    on_reactor(|reactor| async move {
        let (stream, mut peer) = pair(&reactor).await;
        let stream = Rc::new(stream);
        let reader = thread::spawn(move || {
            thread::park_timeout(SILENCE);
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        // Receives meanwhile, so that its sends are direct ones at first.
        let receiving = stream.clone();
        reactor.spawn("receiver", async move { drop(receiving.recv().await) });
        reactor.yield_now().await;
        let mut batch = TxBatch::new(24, 64);
        for piece in 0..24 {
            let mut buf = reactor.buffer(TOTAL / 24).await;
            buf.iter_mut().enumerate().for_each(|(i, place)| *place = byte(1, piece * (TOTAL / 24) + i));
            batch.push_buf(buf);
        }
        let (batch, result) = stream.send(batch).await;
        assert_eq!((result, batch.remaining()), (Ok(()), 0));
        stream.shut_down();
        drop((batch, stream));
        while !reader.is_finished() {
            reactor.sleep(1_000_000).await;
        }
        let all = reader.join().unwrap();
        assert_eq!(all.len(), TOTAL);
        assert!(all.iter().enumerate().all(|(at, found)| *found == byte(1, at)), "other bytes");
    });
}

#[test]
fn a_receive_ends_when_it_is_told_to_tried_or_in_the_ring() {
    on_reactor(|reactor| async move {
        for wait_ns in [0, 5_000, SILENCE.as_nanos() as u64] {
            let (stream, peer) = pair(&reactor).await;
            let stream = Rc::new(stream);
            let (receiving, ended) = (stream.clone(), Rc::new(Cell::new(None)));
            let end = ended.clone();
            reactor.spawn("receiver", async move { end.set(Some(receiving.recv().await.map(|buf| buf.len()))) });
            reactor.sleep(wait_ns).await;
            assert_eq!(ended.get(), None, "nothing was sent");
            stream.stop_receiving();
            while ended.get().is_none() {
                reactor.yield_now().await;
            }
            assert!(ended.get().is_some_and(|end| end.is_err()), "after {wait_ns} ns");
            drop(stream);
            // The socket closed with its stream, and a new one in its place hears nothing of it.
            peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!((&peer).read(&mut [0]).unwrap(), 0);
            let (stream, mut peer) = pair(&reactor).await;
            peer.write_all(b"new").unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            let mut got = stream.recv().await.unwrap().to_vec();
            while let Ok(more) = stream.recv().await {
                got.extend_from_slice(&more);
            }
            assert_eq!(got, b"new");
        }
    });
}

/// However little the socket takes, what arrives is what the memory held when it was lent.
#[test]
fn memory_is_lent_for_one_call_only() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 24;
    on_reactor(|reactor| async move {
        let (stream, mut peer) = pair(&reactor).await;
        let stream = Rc::new(stream);
        let tx = Tx::new(&stream);
        let sender = tx.clone();
        let ended = Rc::new(Cell::new(false));
        let end = ended.clone();
        reactor.spawn("sender", async move {
            sender.run().await;
            end.set(true);
        });
        reactor.yield_now().await;
        let reader = thread::spawn(move || {
            thread::park_timeout(SILENCE);
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        let region = Region::new(PIECE, RegionOptions::default()).unwrap();
        let mut at_once = 0;
        for piece in 0..PIECES {
            tx.reserve(PIECE).await;
            let spare = reactor.buffer(PIECE).await;
            while !tx.can_lend(PARTS, HEADS) {
                reactor.yield_now().await;
            }
            let data: Vec<u8> = (0..PIECE).map(|i| byte(2, piece * PIECE + i)).collect();
            region.write(0, &data);
            tx.lend(|batch| batch.push_lent(region.clone(), 0, spare));
            tx.flush_lent();
            region.write(0, &[0xee; PIECE]);
            at_once += usize::from(tx.can_lend(PARTS, HEADS));
        }
        tx.finish();
        while !ended.get() {
            reactor.sleep(1_000_000).await;
        }
        stream.shut_down();
        drop(stream);
        while !reader.is_finished() {
            reactor.sleep(1_000_000).await;
        }
        let all = reader.join().unwrap();
        assert_eq!(all.len(), PIECES * PIECE);
        assert!(all.iter().enumerate().all(|(at, found)| *found == byte(2, at)), "other bytes");
        assert!(at_once > 0 && at_once < PIECES, "{at_once} of {PIECES} were taken at once: both ways are to be seen");
    });
}

/// What is lent behind a batch that the socket has taken in part, before the sender has gone on with it.
#[test]
fn memory_is_lent_behind_what_was_sent_in_part() {
    const PIECE: usize = 512 << 10;
    const PIECES: usize = 14;
    on_reactor(|reactor| async move {
        let (stream, mut peer) = pair(&reactor).await;
        let stream = Rc::new(stream);
        let tx = Tx::new(&stream);
        let sender = tx.clone();
        reactor.spawn("sender", async move { sender.run().await });
        reactor.yield_now().await;
        let region = Region::new(PIECE, RegionOptions::default()).unwrap();
        for piece in 0..PIECES {
            // Nothing here waits: the sender does not run in between.
            tx.reserve(PIECE).await;
            let spare = reactor.buffer(PIECE).await;
            assert!(tx.can_lend(1, 0));
            let data: Vec<u8> = (0..PIECE).map(|i| byte(3, piece * PIECE + i)).collect();
            region.write(0, &data);
            tx.lend(|batch| batch.push_lent(region.clone(), 0, spare));
            tx.flush_lent();
            region.write(0, &[0xee; PIECE]);
        }
        let reader = thread::spawn(move || {
            let mut all = vec![0; PIECES * PIECE];
            peer.read_exact(&mut all).unwrap();
            all
        });
        while !reader.is_finished() {
            reactor.sleep(1_000_000).await;
        }
        let all = reader.join().unwrap();
        assert!(all.iter().enumerate().all(|(at, found)| *found == byte(3, at)), "other bytes");
        tx.finish();
        reactor.sleep(10_000_000).await;
    });
}

use super::super::{Fault, Rates};
use super::*;
use crate::reactor::sim::Stuck;
use crate::sys::limits::RX_BUFFER_LEN;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[test]
fn a_sender_waits_for_its_reader_and_no_byte_is_lost() {
    for seed in 0..20 {
        let mut two = Two::new(seed);
        let (near, far, ..) = two.connect();
        let (data, taken) = (bytes(3_000_000), Rc::new(Cell::new(0)));
        let (reactor, all, count) = (two.here.clone(), data.clone(), taken.clone());
        two.here.spawn("sender", async move {
            while count.get() < all.len() {
                let sent = send(&reactor, near, &all[count.get()..]).await;
                assert!(sent > 0, "a send gave {sent}");
                count.set(count.get() + sent as usize);
            }
        });
        two.sim.run_for(1_000_000_000).unwrap();
        let held = taken.get();
        assert!((4096..=512 * 1024).contains(&held), "seed {seed}: two socket buffers took {held} bytes");
        let there = two.there.clone();
        let read = two.sim.run_until(&two.there, async move { recv_all(&there, far, 3_000_000).await }).unwrap();
        assert!(read == data, "seed {seed}: other bytes came");
    }
}

#[test]
fn sends_and_deliveries_are_cut_and_merged() {
    let mut two = Two::new(1);
    two.sim.world().set_rates(Rates { no_buffers: 0, no_descriptor: 0, ..Rates::default() });
    let (near, far, ..) = two.connect();
    let (mut sends, mut short) = (0, 0);
    let mut stream = 0;
    while stream < 200_000 {
        let part = send_len(stream);
        let sent = two.send(&two.here.clone(), near, &bytes(part)) as usize;
        sends += 1;
        short += usize::from(sent < part);
        stream += sent;
        if stream % 3 == 0 {
            while two.recv_now(far).is_some() {}
        }
    }
    assert!(short > sends / 50, "{short} of {sends} sends were short");
}

fn send_len(at: usize) -> usize {
    1 + at % 1999
}

impl Two {
    /// What has arrived, if anything.
    fn recv_now(&mut self, file: FileId) -> Option<Vec<u8>> {
        self.sim.run_for(100_000_000).unwrap();
        let reactor = self.there.clone();
        let got = self.sim.run_until(&self.there, async move {
            let op = reactor.op(Op::Recv { file, len: RX_BUFFER_LEN as u32 });
            reactor.cancel_op(op.token());
            op.await
        });
        match got.unwrap() {
            done if done.result == -libc::ECANCELED => None,
            done => match done.payload {
                Payload::Buf(buf) => Some(buf.to_vec()),
                other => panic!("{} {other:?}", done.result),
            },
        }
    }
}

#[test]
fn a_placed_receive_larger_than_the_socket_buffers_comes_back_full() {
    for seed in 0..10 {
        let mut two = Two::new(seed);
        let (near, far, ..) = two.connect();
        let data = bytes(1 << 20);
        let (reactor, all) = (two.here.clone(), data.clone());
        two.here.spawn("sender", async move {
            let mut done = 0;
            while done < all.len() {
                done += send(&reactor, near, &all[done..]).await as usize;
            }
            reactor.remove_file(near);
        });
        let there = two.there.clone();
        let (first, rest) = two
            .sim
            .run_until(&two.there, async move {
                let buf = there.pool().alloc(1_000_000).unwrap();
                let first = there.op(Op::RecvInto { file: far, buf, from: 100 }).await;
                let mut buf = there.pool().alloc(100_000).unwrap();
                buf[48_676 - 1] = 7;
                let rest = there.op(Op::RecvInto { file: far, buf, from: 0 }).await;
                (first, rest)
            })
            .unwrap();
        assert_eq!(first.result, 999_900);
        let Payload::Buf(buf) = first.payload else { panic!("the buffer comes back") };
        assert!(buf[100..] == data[..999_900]);
        assert_eq!(rest.result, (1 << 20) - 999_900, "the end of the stream ends a placed receive with what there was");
        let Payload::Buf(buf) = rest.payload else { panic!("the buffer comes back") };
        assert!(buf[..48_676] == data[999_900..]);
    }
}

#[test]
fn an_orderly_end_is_seen_after_the_last_byte() {
    let mut two = Two::new(5);
    let (here, there) = (two.here.clone(), two.there.clone());
    let (near, far, ..) = two.connect();
    assert_eq!(two.send(&here, near, b"last words"), 10);
    here.remove_file(near);
    assert_eq!(two.recv(&there, far).unwrap(), b"last words");
    assert_eq!(two.recv(&there, far).unwrap(), b"");
    assert_eq!(two.recv(&there, far).unwrap(), b"");
    // The first answer meets a closed socket and is reset; the next send knows.
    assert_eq!(two.send(&there, far, b"hello?"), 6);
    two.sim.run_for(1_000_000).unwrap();
    assert_eq!(two.send(&there, far, b"hello?"), -libc::EPIPE);
}

#[test]
fn a_shutdown_ends_both_directions_and_a_receive_that_waits() {
    let mut two = Two::new(6);
    let (here, there) = (two.here.clone(), two.there.clone());
    let (near, far, ..) = two.connect();
    let waiting = Rc::new(Cell::new(None));
    let (reactor, result) = (here.clone(), waiting.clone());
    here.spawn("receiver", async move { result.set(Some(recv(&reactor, near).await)) });
    assert_eq!(two.send(&here, near, b"bye"), 3);
    assert_eq!(two.op(&here, Op::Shutdown { file: near, sending_only: false }), 0);
    two.sim.run_for(1_000_000).unwrap();
    assert_eq!(waiting.take(), Some(Ok(Vec::new())));
    assert_eq!(two.send(&here, near, b"more"), -libc::EPIPE);
    assert_eq!(two.recv(&there, far).unwrap(), b"bye");
    assert_eq!(two.recv(&there, far).unwrap(), b"");
}

#[test]
fn closing_with_unread_bytes_resets_and_what_arrived_before_can_be_read() {
    let mut two = Two::new(7);
    let (here, there) = (two.here.clone(), two.there.clone());
    let (near, far, ..) = two.connect();
    assert_eq!(two.send(&there, far, b"arrives"), 7);
    assert_eq!(two.send(&here, near, b"never read"), 10);
    two.sim.run_for(1_000_000).unwrap();
    there.remove_file(far);
    two.sim.run_for(1_000_000).unwrap();
    assert_eq!(two.recv(&here, near).unwrap(), b"arrives");
    assert_eq!(two.recv(&here, near), Err(-libc::ECONNRESET));
    assert_eq!(two.recv(&here, near).unwrap(), b"", "a reset is told once");
    assert_eq!(two.send(&here, near, b"x"), -libc::EPIPE);
    assert_eq!(here.establish_socket(near).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn a_connect_ends_as_the_other_side_has_it() {
    let mut two = Two::new(8);
    let here = two.here.clone();
    let (listener, address) = two.sim.world().listen(two.far, 4420).unwrap();
    assert_eq!(two.sim.world().listen(two.far, 4420).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
    let connect = |two: &mut Two, to: SocketAddr| {
        let file = two.here.add_socket(to).unwrap();
        let before = two.sim.world().now();
        let result = two.op(&two.here.clone(), Op::Connect { file, to });
        (result, (two.sim.world().now() - before) / 1_000_000_000)
    };
    let nobody = SocketAddr::new("10.9.9.9".parse().unwrap(), 1);
    assert_eq!(connect(&mut two, nobody), (-libc::EHOSTUNREACH, 3));
    let closed = SocketAddr::new(address.ip(), 4421);
    assert_eq!(connect(&mut two, closed), (-libc::ECONNREFUSED, 0));
    two.sim.world().fault(Fault::Vanish(two.far));
    assert_eq!(connect(&mut two, address), (-libc::ETIMEDOUT, 127));
    two.sim.world().fault(Fault::Return(two.far));
    assert_eq!(connect(&mut two, address), (0, 0), "in the backlog, before any accept");
    let file = here.add_socket(address).unwrap();
    assert_eq!(two.op(&here, Op::Connect { file, to: address }), 0);
    drop(listener);
    two.sim.run_for(1_000_000).unwrap();
    assert_eq!(two.recv(&here, file), Err(-libc::ECONNRESET), "nobody accepted it");
    assert_eq!(connect(&mut two, address), (-libc::ECONNREFUSED, 0));
    assert!(two.sim.world().listen(two.far, 4420).is_ok(), "the port is free again");
}

#[test]
fn a_silent_peer_is_given_up_after_a_quarter_of_an_hour_or_comes_back() {
    let mut two = Two::new(9);
    let (here, there) = (two.here.clone(), two.there.clone());
    let (near, far, ..) = two.connect();
    two.sim.world().fault(Fault::Vanish(two.far));
    assert_eq!(two.send(&here, near, b"anybody?"), 8);
    two.sim.run_for(600_000_000_000).unwrap();
    two.sim.world().fault(Fault::Return(two.far));
    assert_eq!(two.recv(&there, far).unwrap(), b"anybody?");
    two.sim.world().fault(Fault::Vanish(two.far));
    assert_eq!(two.send(&here, near, b"anybody?"), 8);
    let before = two.sim.world().now();
    assert_eq!(two.recv(&here, near), Err(-libc::ETIMEDOUT));
    assert_eq!((two.sim.world().now() - before) / 1_000_000_000, 924);
}

#[test]
fn a_handle_on_a_closed_file_is_refused_and_buffers_come_back() {
    let mut two = Two::new(10);
    let here = two.here.clone();
    let (near, ..) = two.connect();
    here.remove_file(near);
    let again = here.add_socket("10.0.0.2:1".parse().unwrap()).unwrap();
    assert_eq!(again.index, near.index, "the place in the table is used again");
    let buf = || here.pool().alloc(4096).unwrap();
    let batch = TxBatch::new(1, 1);
    for op in [
        Op::Recv { file: near, len: RX_BUFFER_LEN as u32 },
        Op::RecvInto { file: near, buf: buf(), from: 0 },
        Op::Send { file: near, batch },
        Op::Read { file: near, offset: 0, buf: buf() },
        Op::Shutdown { file: near, sending_only: false },
    ] {
        let (owns, reactor) = (matches!(op, Op::RecvInto { .. } | Op::Read { .. }), here.clone());
        let done = two.sim.run_until(&two.here, async move { reactor.op(op).await }).unwrap();
        assert_eq!(done.result, -libc::EBADF);
        assert_eq!(matches!(done.payload, Payload::Buf(_)), owns);
    }
    assert_eq!(two.op(&here, Op::Read { file: again, offset: 0, buf: buf() }), -libc::ESPIPE);
    assert_eq!(two.op(&here, Op::Recv { file: again, len: RX_BUFFER_LEN as u32 }), -libc::ENOTCONN);
}

#[test]
fn a_cancelled_receive_leaves_the_connection_as_it_was() {
    let mut two = Two::new(11);
    let (here, there) = (two.here.clone(), two.there.clone());
    let (near, far, ..) = two.connect();
    let reactor = here.clone();
    let (cancelled, late) = two
        .sim
        .run_until(&two.here, async move {
            let op = reactor.op(Op::Recv { file: near, len: RX_BUFFER_LEN as u32 });
            let token = op.token();
            reactor.sleep(5_000_000).await;
            reactor.cancel_op(token);
            let cancelled = op.await.result;
            (cancelled, reactor.op(Op::Cancel { target: token }).await.result)
        })
        .unwrap();
    assert_eq!((cancelled, late), (-libc::ECANCELED, -libc::ENOENT));
    assert_eq!(two.send(&there, far, b"still here"), 10);
    assert_eq!(two.recv(&here, near).unwrap(), b"still here");
    // Cancelled in the middle, a placed receive says how far it came.
    assert_eq!(two.send(&there, far, b"half"), 4);
    let reactor = here.clone();
    let partial = two.sim.run_until(&two.here, async move {
        let buf = reactor.pool().alloc(8).unwrap();
        let op = reactor.op(Op::RecvInto { file: near, buf, from: 0 });
        reactor.sleep(5_000_000).await;
        reactor.cancel_op(op.token());
        op.await.result
    });
    assert_eq!(partial.unwrap(), 4);
}

#[test]
fn a_connection_that_nobody_takes_closes_with_its_descriptor() {
    let mut two = Two::new(12);
    let (here, there) = (two.here.clone(), two.there.clone());
    let (listener, address) = two.sim.world().listen(two.far, 0).unwrap();
    let listener = there.add_file(listener);
    let reactor = there.clone();
    there.spawn("accept", async move { drop(reactor.op(Op::Accept { listener }).await) });
    let file = here.add_socket(address).unwrap();
    assert_eq!(two.op(&here, Op::Connect { file, to: address }), 0);
    assert_eq!(two.recv(&here, file).unwrap(), b"");
}

#[test]
fn a_receive_keeps_its_socket_open_until_it_ends() {
    let mut two = Two::new(13);
    let (here, there) = (two.here.clone(), two.there.clone());
    let (near, far, ..) = two.connect();
    let got = Rc::new(Cell::new(None));
    let (reactor, result) = (here.clone(), got.clone());
    here.spawn("receiver", async move { result.set(Some(recv(&reactor, near).await)) });
    two.sim.run_for(1_000_000).unwrap();
    here.remove_file(near);
    assert_eq!(two.send(&there, far, b"in time"), 7);
    two.sim.run_for(1_000_000).unwrap();
    assert_eq!(got.take(), Some(Ok(b"in time".to_vec())));
    assert_eq!(two.recv(&there, far).unwrap(), b"", "now it is closed");
}

#[test]
fn an_empty_pool_is_enobufs_and_the_bytes_stay() {
    let mut two = Two::new(14);
    let (here, there) = (two.here.clone(), two.there.clone());
    let (near, far, ..) = two.connect();
    assert_eq!(two.send(&there, far, b"patience"), 8);
    let all: Vec<_> = std::iter::from_fn(|| here.pool().alloc(64 * 1024)).collect();
    assert_eq!(two.recv(&here, near), Err(-libc::ENOBUFS));
    drop(all);
    assert_eq!(two.recv(&here, near).unwrap(), b"patience");
}

#[test]
fn who_waits_for_what_never_comes_is_stuck() {
    let mut two = Two::new(15);
    let here = two.here.clone();
    let (near, ..) = two.connect();
    let reactor = here.clone();
    let stuck = two.sim.run_until(&here, async move { recv(&reactor, near).await }).unwrap_err();
    assert!(matches!(stuck, Stuck::Deadlock(_)));
    assert!(stuck.to_string().contains("seed 15"), "{stuck}");
}

//! What the simulated world promises, operation by operation.

mod disks;
mod loops;
mod pollers;
mod sockets;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use super::{Machine, Rates, Simulation};
use crate::reactor::Reactor;
use crate::sys::limits::RX_BUFFER_LEN;
use crate::sys::op::{FileId, Op, Payload};
use crate::sys::tx::TxBatch;

/// Two machines with a reactor each, in a world where nothing rare happens.
struct Two {
    sim: Simulation,
    here: Rc<Reactor>,
    there: Rc<Reactor>,
    far: Machine,
}

impl Two {
    fn new(seed: u64) -> Two {
        let mut sim = Simulation::new(seed);
        sim.world().set_rates(Rates::calm());
        let (near, far) = (sim.machine(1), sim.machine(1));
        let (here, there) = (sim.reactor(near, 0), sim.reactor(far, 0));
        Two { sim, here, there, far }
    }

    /// A connection: the end here, the end there, and their addresses.
    fn connect(&mut self) -> (FileId, FileId, SocketAddr, SocketAddr) {
        let (fd, address) = self.sim.world().listen(self.far, 0).expect("a free port");
        let listener = self.there.add_file(fd);
        let accepted = Rc::new(Cell::new(None));
        let (there, slot) = (self.there.clone(), accepted.clone());
        self.there.spawn("accept", async move {
            let Payload::Fd(fd) = there.op(Op::Accept { listener }).await.payload else { return };
            slot.set(Some(there.add_file(fd)));
        });
        let reactor = self.here.clone();
        let near = self.sim.run_until(&self.here, async move {
            let file = reactor.add_socket(address).expect("a socket");
            assert_eq!(reactor.op(Op::Connect { file, to: address }).await.result, 0);
            file
        });
        let near = near.expect("connected");
        self.sim.run_for(1_000_000).expect("time passes");
        let far = accepted.get().expect("accepted");
        self.there.remove_file(listener);
        let (peer, local) = self.here.establish_socket(near).expect("connected");
        assert_eq!(peer, address);
        assert_eq!(self.there.establish_socket(far).expect("connected"), (local, peer));
        (near, far, local, peer)
    }

    fn send(&mut self, on: &Rc<Reactor>, file: FileId, bytes: &[u8]) -> i32 {
        let (reactor, bytes) = (on.clone(), bytes.to_vec());
        self.sim.run_until(on, async move { send(&reactor, file, &bytes).await }).expect("sent")
    }

    fn recv(&mut self, on: &Rc<Reactor>, file: FileId) -> Result<Vec<u8>, i32> {
        let reactor = on.clone();
        self.sim.run_until(on, async move { recv(&reactor, file).await }).expect("received")
    }

    fn op(&mut self, on: &Rc<Reactor>, op: Op) -> i32 {
        let reactor = on.clone();
        self.sim.run_until(on, async move { reactor.op(op).await.result }).expect("done")
    }
}

/// One send; its result.
async fn send(reactor: &Reactor, file: FileId, bytes: &[u8]) -> i32 {
    let mut batch = TxBatch::new(1, bytes.len());
    batch.push_head(|head| {
        head.copy_from_slice(bytes);
        bytes.len()
    });
    reactor.op(Op::Send { file, batch }).await.result
}

/// One receive: the bytes, none at the end of the stream, or the error.
async fn recv(reactor: &Reactor, file: FileId) -> Result<Vec<u8>, i32> {
    let done = reactor.op(Op::Recv { file, len: RX_BUFFER_LEN as u32 }).await;
    match (done.result, done.payload) {
        (n, Payload::Buf(buf)) if n as usize == buf.len() => Ok(buf.to_vec()),
        (0, Payload::None) => Ok(Vec::new()),
        (e, Payload::None) => Err(e),
        other => panic!("a receive gave {other:?}"),
    }
}

/// Receives until `len` bytes are there.
async fn recv_all(reactor: &Reactor, file: FileId, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let more = recv(reactor, file).await.expect("more bytes");
        assert!(!more.is_empty(), "the stream ended after {} bytes", bytes.len());
        bytes.extend(more);
    }
    bytes
}

//! Reaches a device that is not concurrent from reactors that are not its home.
//!
//! ```text
//!   a reactor                                   the home
//!   Forward::submit --- Parcel in the ring ---> Server::parcel -> Handle::submit
//!     parks the Io                                an Io of its own, with the server's frame
//!   Reach::parcel  <--- the same Parcel ------- Server::completed
//!     unparks, completes
//! ```
//! An Io never leaves its reactor: a description and the owned buffers do. The parcels are made when the channel is opened
//! and used again, so their number bounds what is in flight; the rest waits in the channel's list.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::contract::{BlockDevice, Channel, DeviceError};
use super::handle::Handle;
use crate::limits::FORWARD_DEPTH;
use crate::reactor::io::{Frame, Io, IoList, IoOp, IoStatus, IoToken};
use crate::reactor::mailbox::{Message, Parcel};
use crate::reactor::{Layer, Reactor, Sink};

/// The channel of a device on a reactor that is not its home.
pub(super) struct Forward(Rc<Reach>);

/// Where a device is found at its home.
#[derive(Clone, Copy, Debug)]
struct Address {
    sink: u32,
    target: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The home has been asked; I/Os wait.
    Asking,
    /// Parcels flow.
    Open(Address),
    /// The home could not open the device: nothing gets through.
    Refused,
    /// The channel was dropped before the home answered.
    Closed,
}

struct Reach {
    reactor: Rc<Reactor>,
    device: Arc<dyn BlockDevice>,
    home: u16,
    sink: Cell<u32>,
    state: Cell<State>,
    #[expect(clippy::vec_box, reason = "a parcel travels in its box, which comes back")]
    free: RefCell<Vec<Box<Parcel>>>,
    waiting: IoList,
    /// A reset has a parcel of its own: it is what ends the I/Os that hold all the others.
    free_for_reset: Cell<Option<Box<Parcel>>>,
    resets: IoList,
}

impl Forward {
    /// A channel that reaches `device` at its home, which opens the device while the first I/Os wait.
    ///
    /// # Errors
    /// If the home is no reactor of this process.
    pub(super) fn open(reactor: &Rc<Reactor>, device: &Arc<dyn BlockDevice>) -> Result<Forward, DeviceError> {
        let home = device.common().home();
        if home >= reactor.reactors() {
            return Err(DeviceError::Refused(format!(
                "volume \"{}\": its home is reactor {home}, but there are only {}",
                device.common().traits().name,
                reactor.reactors()
            )));
        }
        let reach = Rc::new(Reach {
            reactor: reactor.clone(),
            device: device.clone(),
            home,
            sink: Cell::new(0),
            state: Cell::new(State::Asking),
            free: RefCell::new((0..FORWARD_DEPTH).map(|_| Box::default()).collect()),
            waiting: IoList::default(),
            free_for_reset: Cell::new(Some(Box::default())),
            resets: IoList::default(),
        });
        reach.sink.set(reactor.add_sink("forward", reach.clone()));
        let (asking, device) = (reach.clone(), device.clone());
        reactor.spawn("forward opens", async move {
            let answer = asking.reactor.call(home, move |there| Server::of(there).open(&device)).await;
            asking.opened(answer);
        });
        Ok(Forward(reach))
    }
}

impl Channel for Forward {
    #[inline]
    fn submit(&self, io: Io) -> Poll<Io> {
        let reach = &*self.0;
        if io.op == IoOp::Reset {
            // What has not left yet ends here; the reset itself follows what has.
            while let Some(io) = reach.waiting.pop() {
                reach.reactor.complete(io.with_status(IoStatus::Aborted));
            }
            reach.resets.push(io);
        } else {
            reach.waiting.push(io);
        }
        reach.send_waiting();
        Poll::Pending
    }

    /// What has left is asked for at the home, which may be too late: only what has not is promised to end.
    fn abort(&self, io_slot: u32) -> bool {
        let reach = &*self.0;
        if let Some(io) = reach.waiting.remove(io_slot) {
            reach.reactor.complete(io.with_status(IoStatus::Aborted));
            return true;
        }
        if let State::Open(_) = reach.state.get() {
            let (from, sink) = (reach.reactor.id(), reach.sink.get());
            reach
                .reactor
                .send(reach.home, Message::Call(Box::new(move |there| Server::of(there).abort(from, sink, io_slot))));
        }
        false
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let reach = &*self.0;
        if let State::Open(address) = reach.state.replace(State::Closed) {
            reach.close(address);
        }
        reach.reactor.remove_sink(reach.sink.get());
    }
}

impl Reach {
    fn opened(&self, answer: Option<Address>) {
        match (self.state.get(), answer) {
            (State::Closed, Some(address)) => self.close(address),
            (State::Closed, None) => {}
            (_, Some(address)) => self.state.set(State::Open(address)),
            (_, None) => self.state.set(State::Refused),
        }
        self.send_waiting();
    }

    fn close(&self, address: Address) {
        self.reactor.send(self.home, Message::Call(Box::new(move |there| Server::of(there).close(address.target))));
    }

    fn send_waiting(&self) {
        let address = match self.state.get() {
            State::Open(address) => address,
            State::Asking => return,
            State::Refused | State::Closed => {
                let closing = self.device.common().is_closing();
                let status = if closing { IoStatus::Gone } else { IoStatus::DeviceError };
                while let Some(io) = self.waiting.pop().or_else(|| self.resets.pop()) {
                    self.reactor.complete(io.with_status(status));
                }
                return;
            }
        };
        let mut free = self.free.borrow_mut();
        while !free.is_empty()
            && let Some(io) = self.waiting.pop()
        {
            self.send(io, free.pop().expect("looked"), address);
        }
        if !self.resets.is_empty()
            && let Some(parcel) = self.free_for_reset.take()
            && let Some(io) = self.resets.pop()
        {
            self.send(io, parcel, address);
        }
    }

    fn send(&self, mut io: Io, mut parcel: Box<Parcel>, address: Address) {
        parcel.op = io.op;
        parcel.fua = io.fua;
        parcel.atomic = io.atomic;
        parcel.class = io.class;
        parcel.offset = io.offset;
        parcel.len = io.len;
        parcel.trace = io.trace;
        parcel.load(&mut io.data);
        parcel.target = address.target;
        let token = self.reactor.park(io);
        parcel.reply_to = (self.reactor.id(), self.sink.get(), token.to_bits());
        self.reactor.send(self.home, Message::Parcel(address.sink, parcel));
    }
}

impl Sink for Reach {
    fn completed(&self, _: u64, _: crate::sys::op::Completion) {
        unreachable!("a forward channel starts no operation of the backend");
    }

    /// The answer to one of this channel's I/Os.
    fn parcel(&self, mut parcel: Box<Parcel>) {
        if let Some(mut io) = self.reactor.unpark(IoToken::from_bits(parcel.reply_to.2)) {
            io.status = parcel.status;
            io.info = parcel.info;
            parcel.unload(&mut io.data, self.reactor.pool());
            self.reactor.complete(io);
        }
        match parcel.op {
            IoOp::Reset => self.free_for_reset.set(Some(parcel)),
            _ => self.free.borrow_mut().push(parcel),
        }
        self.send_waiting();
    }
}

/// What a home reactor serves to the others: one per reactor.
struct Server {
    reactor: Rc<Reactor>,
    sink: Cell<u32>,
    layer: Cell<u32>,
    targets: RefCell<Vec<Option<Rc<Handle>>>>,
    /// What is being carried out, by the number in the I/O's frame.
    jobs: RefCell<Vec<Option<Job>>>,
    free_jobs: RefCell<Vec<u32>>,
}

struct Job {
    parcel: Box<Parcel>,
    io_slot: u32,
}

impl Server {
    fn of(reactor: &Rc<Reactor>) -> Rc<Server> {
        if let Some(server) = reactor.service::<Server>() {
            return server;
        }
        let server = Rc::new(Server {
            reactor: reactor.clone(),
            sink: Cell::new(0),
            layer: Cell::new(0),
            targets: RefCell::default(),
            jobs: RefCell::default(),
            free_jobs: RefCell::default(),
        });
        server.sink.set(reactor.add_sink("forward home", server.clone()));
        server.layer.set(reactor.add_layer(server.clone()));
        reactor.set_service(server.clone());
        server
    }

    fn open(&self, device: &Arc<dyn BlockDevice>) -> Option<Address> {
        let handle = match Handle::open(&self.reactor, device) {
            Ok(handle) => handle,
            Err(error) => {
                tracing::error!(reactor = self.reactor.id(), "a volume cannot be served to other reactors: {error}");
                return None;
            }
        };
        let mut targets = self.targets.borrow_mut();
        let index = targets.iter().position(Option::is_none).unwrap_or_else(|| {
            targets.push(None);
            targets.len() - 1
        });
        targets[index] = Some(Rc::new(handle));
        Some(Address { sink: self.sink.get(), target: index as u32 })
    }

    fn close(&self, target: u32) {
        let handle = self.targets.borrow_mut()[target as usize].take();
        // Dropped while nothing is borrowed: it may be the last, and its channel goes with it.
        drop(handle);
    }

    fn abort(&self, from: u16, sink: u32, io_slot: u32) {
        let asked = |job: &&Job| {
            let (reactor, reply_sink, token) = job.parcel.reply_to;
            (reactor, reply_sink, IoToken::from_bits(token).slot()) == (from, sink, io_slot)
        };
        let here = self.jobs.borrow().iter().flatten().find(asked).map(|job| (job.parcel.target as usize, job.io_slot));
        if let Some((target, io_slot)) = here
            && let Some(handle) = self.targets.borrow()[target].clone()
        {
            handle.abort(io_slot);
        }
    }

    fn start_job(&self, parcel: Box<Parcel>, io_slot: u32) -> u32 {
        let mut jobs = self.jobs.borrow_mut();
        let job = self.free_jobs.borrow_mut().pop().unwrap_or_else(|| {
            jobs.push(None);
            jobs.len() as u32 - 1
        });
        jobs[job as usize] = Some(Job { parcel, io_slot });
        job
    }

    fn answer(&self, parcel: Box<Parcel>) {
        let (to, sink, _) = parcel.reply_to;
        self.reactor.send(to, Message::Parcel(sink, parcel));
    }

    fn finish(&self, mut io: Io, job: u32) {
        let Job { mut parcel, .. } = self.jobs.borrow_mut()[job as usize].take().expect("each job ends once");
        self.free_jobs.borrow_mut().push(job);
        parcel.status = io.status;
        parcel.info = io.info;
        parcel.load(&mut io.data);
        self.reactor.retire_io(io);
        self.answer(parcel);
    }
}

impl Sink for Server {
    fn completed(&self, _: u64, _: crate::sys::op::Completion) {
        unreachable!("the home of forwarded I/Os starts no operation of the backend");
    }

    /// An I/O of another reactor.
    fn parcel(&self, mut parcel: Box<Parcel>) {
        let Some(handle) = self.targets.borrow().get(parcel.target as usize).cloned().flatten() else {
            parcel.status = IoStatus::Gone;
            return self.answer(parcel);
        };
        let Some(mut io) = self.reactor.create_io() else {
            parcel.status = IoStatus::DeviceError;
            return self.answer(parcel);
        };
        io.prepare(parcel.op, parcel.offset, parcel.len);
        io.fua = parcel.fua;
        io.atomic = parcel.atomic;
        io.class = parcel.class;
        io.trace = parcel.trace;
        parcel.unload(&mut io.data, self.reactor.pool());
        let job = self.start_job(parcel, io.slot());
        io.push_frame(self.layer.get(), Frame { a: u64::from(job), b: 0 });
        // The reactor that asked counts the I/O in its own handle; counted here too, it would be there twice.
        if let Poll::Ready(mut io) = handle.relay(io) {
            io.pop_frame();
            self.finish(io, job);
        }
    }
}

impl Layer for Server {
    fn completed(&self, io: Io, frame: Frame) -> Poll<Io> {
        self.finish(io, frame.a as u32);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;

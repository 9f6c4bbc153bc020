//! A listening socket whose connections are spread over the reactors before a byte of them is read.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use crate::reactor::Reactor;
use crate::reactor::mailbox::Message;
use crate::sys::descriptor::Descriptor;
use crate::sys::op::{FileId, Op, Payload};

/// Accepts on one reactor; see [`Listener::start`].
pub struct Listener {
    reactor: Rc<Reactor>,
    file: FileId,
    address: SocketAddr,
    accept: std::cell::Cell<Option<crate::sys::op::OpToken>>,
    stopped: std::cell::Cell<bool>,
}

/// What to do with a connection, on the reactor it was given to. The address is the one that the listener is bound to.
pub type OnConnection = fn(&Rc<Reactor>, Descriptor, SocketAddr);

impl Listener {
    /// Accepts connections of a bound and listening socket and hands each to the next reactor in turn, where `serve` takes it.
    pub fn start(
        reactor: &Rc<Reactor>,
        fd: impl Into<Descriptor>,
        address: SocketAddr,
        serve: OnConnection,
    ) -> Rc<Listener> {
        let listener = Rc::new(Listener {
            reactor: reactor.clone(),
            file: reactor.add_file(fd),
            address,
            accept: std::cell::Cell::new(None),
            stopped: std::cell::Cell::new(false),
        });
        let this = listener.clone();
        reactor.spawn("listener", async move { this.accept_all(serve).await });
        listener
    }

    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more. The socket closes when the accept in flight has ended.
    pub fn stop(&self) {
        if !self.stopped.replace(true)
            && let Some(token) = self.accept.get()
        {
            self.reactor.cancel_op(token);
        }
    }

    async fn accept_all(&self, serve: OnConnection) {
        let mut next = 0;
        while !self.stopped.get() {
            let op = self.reactor.op(Op::Accept { listener: self.file });
            self.accept.set(Some(op.token()));
            let done = op.await;
            self.accept.set(None);
            match (done.result, done.payload) {
                (_, Payload::Fd(fd)) => {
                    let to = next % self.reactor.reactors();
                    next = to + 1;
                    let address = self.address;
                    self.reactor.send(to, Message::Call(Box::new(move |reactor| serve(reactor, fd, address))));
                }
                (e, _) if e == -libc::EMFILE || e == -libc::ENFILE || e == -libc::ENOMEM || e == -libc::ENOBUFS => {
                    // No descriptor or memory for one more: those that wait stay in the kernel's queue.
                    tracing::warn!(
                        "{}: a connection cannot be accepted ({}); raise the limit of open files (LimitNOFILE=, ulimit -n)",
                        self.address,
                        std::io::Error::from_raw_os_error(-e)
                    );
                    self.reactor.sleep(100_000_000).await;
                }
                // The one that was accepted has gone again, or the accept was cancelled; whatever else it is must not spin.
                _ => self.reactor.sleep(1_000_000).await,
            }
        }
    }
}

/// The listeners of a door, on the reactor that accepts.
#[derive(Default)]
pub struct Listeners {
    open: RefCell<Vec<Rc<Listener>>>,
    /// Those that were stopped together: a socket is open until its accept has ended.
    stopped: RefCell<Vec<Weak<Listener>>>,
}

impl Listeners {
    /// One more.
    pub fn add(&self, listener: Rc<Listener>) {
        self.open.borrow_mut().push(listener);
    }

    /// Stops the one that is bound to `address`.
    pub fn stop(&self, address: SocketAddr) {
        self.open.borrow_mut().retain(|listener| {
            if listener.address() == address {
                listener.stop();
            }
            listener.address() != address
        });
    }

    /// Stops all.
    pub fn stop_all(&self) {
        for listener in self.open.borrow_mut().drain(..) {
            listener.stop();
            self.stopped.borrow_mut().push(Rc::downgrade(&listener));
        }
    }

    /// Those that [`Listeners::stop_all`] has stopped and that are still open.
    pub fn closing(&self) -> usize {
        self.stopped.borrow().iter().filter(|listener| listener.strong_count() > 0).count()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.reactor.remove_file(self.file);
    }
}

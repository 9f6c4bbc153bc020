//! A queue of a device on the reactor that serves it: one task for each of its tags.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;

use hugepages::Buf;

use super::slot;
use super::wire::{self, IoDesc};
use crate::bdev::{BlockDevice, Handle, Told, Unaddressed};
use crate::reactor::{Reactor, Sink, TaskId};
use crate::sys::op::{Completion, Ended, FileId, Owner, Payload, UblkCommand, UblkStep};
use crate::sys::ublk::{Descriptors, RequestData, Requests, serve_disks};

/// How the bytes of requests travel.
///
/// | | copies of a read, of a write: RAM, a file in memory | a file | a layer that looks at bytes |
/// |---|---|---|---|
/// | `InPlace` | | none | |
/// | `ByServer` | 1 | 1 | 1, and what is below |
/// | `ByKernel` | 2 | 1 | 1, and what is below |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Travel {
    /// The kernel registers the pages of a request with the ring, and the volume's I/O goes to them. What cannot go there is copied
    /// as in user copy.
    InPlace,
    /// This server copies between requests and where the bytes are kept, by calls on the character device.
    ByServer,
    /// The kernel copies to and from buffers of this server: at the commit of a read, and when the data of a write is asked for.
    ByKernel,
}

/// The queues of a reactor, by the numbers of their devices.
#[derive(Default)]
struct Queues(RefCell<Vec<(u32, Weak<Queue>)>>);

impl Queues {
    fn of(reactor: &Reactor) -> Rc<Queues> {
        reactor.service().unwrap_or_else(|| {
            let queues = Rc::<Queues>::default();
            reactor.set_service(queues.clone());
            queues
        })
    }
}

/// Requests of a device that this reactor has in hand.
pub(super) fn working(reactor: &Reactor, device: u32) -> usize {
    let queues = Queues::of(reactor);
    let mut queues = queues.0.borrow_mut();
    queues.retain(|(_, queue)| queue.strong_count() > 0);
    let of_device = queues.iter().filter(|(number, _)| *number == device);
    of_device.filter_map(|(_, queue)| queue.upgrade()).map(|queue| usize::from(queue.working.get())).sum()
}

/// The queues of a reactor, for tests.
#[cfg(test)]
pub(super) fn all(reactor: &Reactor) -> Vec<Rc<Queue>> {
    Queues::of(reactor).0.borrow().iter().filter_map(|(_, queue)| queue.upgrade()).collect()
}

/// What a queue is made from.
#[derive(Clone)]
pub(super) struct QueueOptions {
    /// The volume.
    pub device: Arc<dyn BlockDevice>,
    /// The number of the ublk device.
    pub device_number: u32,
    /// The character device.
    pub requests: Requests,
    /// Its number.
    pub number: u16,
    /// Its tags.
    pub depth: u16,
    /// How data travels.
    pub travel: Travel,
    /// Writes are refused.
    pub read_only: bool,
    /// Requests that come from now on are left to the next server.
    pub leaving: Arc<AtomicBool>,
    /// Gets what goes wrong; disconnected when all queues have ended.
    pub faults: mpsc::Sender<String>,
}

/// What a tag's task waits for.
#[derive(Default)]
struct Tag {
    task: Cell<TaskId>,
    /// How its command ended, until the task looks.
    ended: Cell<Option<i32>>,
    /// The buffer that came back with it.
    buf: Cell<Option<Buf>>,
}

/// See the module's head.
pub(super) struct Queue {
    pub reactor: Rc<Reactor>,
    pub handle: Handle,
    pub travel: Travel,
    /// Whether the volume takes the pages of requests as they are, so that no memory of ours is needed.
    pub passes_pages: bool,
    pub read_only: bool,
    requests: Requests,
    /// Where the data of requests is registered with the ring, by tag; tags beyond have no place.
    places: Vec<u16>,
    tags: Vec<Tag>,
    /// Tags whose tasks have not ended.
    alive: Cell<u16>,
    /// Tags with a request in hand.
    working: Cell<u16>,
    sink: Cell<u32>,
    leaving: Arc<AtomicBool>,
    descriptors: Descriptors,
    device: u32,
    number: u16,
    file: FileId,
    failed: Cell<bool>,
    /// What its flushes have told of what the volume lost.
    pub told: Cell<Told>,
    // Dropped last: whoever waits for the end of all queues then finds the device closed here.
    faults: mpsc::Sender<String>,
}

impl Queue {
    /// Opens a queue on this reactor and starts the tasks of its tags, which fetch their first requests.
    ///
    /// # Errors
    /// What the volume or the kernel says.
    pub fn open(reactor: &Rc<Reactor>, options: QueueOptions) -> Result<(), String> {
        let QueueOptions { device, device_number, requests, number, depth, travel, read_only, leaving, faults } =
            options;
        let refused = |what: &str, error: io::Error| format!("queue {number}: {what}: {error}");
        if let Err(error) = serve_disks()
            && number == 0
        {
            tracing::info!(
                "ublk device {device_number}: for want of memory the kernel may make its server wait for the device itself: \
                 PR_SET_IO_FLUSHER: {error}"
            );
        }
        let handle = Handle::open(reactor, &device).map_err(|error| error.to_string())?;
        let descriptors = Descriptors::map(&requests, number, depth)
            .map_err(|error| refused("its descriptors cannot be mapped", error))?;
        let descriptor = requests.descriptor().map_err(|error| refused("another descriptor of its device", error))?;
        let file = reactor.add_file(descriptor);
        let failed = Cell::new(false);
        let places = if travel == Travel::InPlace { reactor.take_places(usize::from(depth)) } else { Vec::new() };
        if travel == Travel::InPlace && places.len() < usize::from(depth) {
            tracing::info!(
                "{} of {depth} tags have a place in the ring's table of buffers: the others copy",
                places.len()
            );
        }
        let passes_pages = travel != Travel::ByKernel && handle.common().traits().unaddressed != Unaddressed::Refuses;
        let reactor = reactor.clone();
        let queue = Rc::new(Queue {
            reactor: reactor.clone(),
            handle,
            travel,
            passes_pages,
            read_only,
            requests,
            places,
            tags: (0..depth).map(|_| Tag::default()).collect(),
            alive: Cell::new(depth),
            working: Cell::new(0),
            sink: Cell::new(0),
            leaving,
            descriptors,
            device: device_number,
            number,
            file,
            failed,
            told: Cell::new(Told::new(reactor.clock().now())),
            faults,
        });
        queue.sink.set(reactor.add_sink("ublk queue", queue.clone()));
        Queues::of(&reactor).0.borrow_mut().push((device_number, Rc::downgrade(&queue)));
        for tag in 0..depth {
            let slot = queue.clone();
            let task = reactor.spawn("ublk slot", async move {
                slot::run(&slot, tag).await;
                slot.tag_ended();
            });
            queue.tags[usize::from(tag)].task.set(task);
        }
        Ok(())
    }

    fn tag_ended(&self) {
        self.alive.set(self.alive.get() - 1);
        if self.alive.get() == 0 {
            // Nothing is in flight: the reactor lets go of the queue.
            self.reactor.remove_sink(self.sink.get());
        }
    }

    /// Starts a command about a tag; its end comes by [`Queue::end_of`].
    #[inline]
    pub fn start(&self, step: UblkStep, tag: u16, result: i32, buf: Option<Buf>) {
        // Where there is none, registering fails at a place beyond the table, and the request says so.
        let place = (self.travel == Travel::InPlace).then(|| self.place(tag).unwrap_or(u16::MAX));
        let command = UblkCommand { step, queue: self.number, tag, result, place, buf };
        #[cfg(test)]
        if let Some(kernel) = self.reactor.service::<super::stand_in::tests::Kernel>() {
            return kernel.take(command);
        }
        self.reactor.submit_command(self.file, command, Owner { sink: self.sink.get(), tag: u64::from(tag) });
    }

    /// Waits for the end of a tag's command, for its task. What it says: see [`UblkStep`].
    #[inline]
    pub fn end_of(&self, tag: u16) -> impl Future<Output = i32> + '_ {
        let tag = &self.tags[usize::from(tag)];
        std::future::poll_fn(move |_| tag.ended.take().map_or(Poll::Pending, Poll::Ready))
    }

    /// The buffer that came back with it.
    pub fn take_buf(&self, tag: u16) -> Option<Buf> {
        self.tags[usize::from(tag)].buf.take()
    }

    /// The request that the kernel handed over for a tag.
    #[inline]
    pub fn request(&self, tag: u16) -> IoDesc {
        self.descriptors.get(tag)
    }

    /// A tag has a request in hand.
    #[inline]
    pub fn begin_work(&self) {
        self.working.set(self.working.get() + 1);
    }

    /// The kernel has it back.
    #[inline]
    pub fn end_work(&self) {
        self.working.set(self.working.get() - 1);
    }

    /// Whether requests are left to the next server: they stay with the kernel, which asks it for them again.
    #[inline]
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Where the data of a tag's requests is registered.
    #[inline]
    pub fn place(&self, tag: u16) -> Option<u16> {
        self.places.get(usize::from(tag)).copied()
    }

    /// The data of a tag's request.
    #[inline]
    pub fn pages(&self, tag: u16, request: &IoDesc, len: usize) -> RequestData {
        self.requests.data(self.number, tag, len as u32, self.registered(tag, request))
    }

    /// Makes the data of a tag's last request that of the next.
    #[inline]
    pub fn renew(&self, pages: &mut RequestData, tag: u16, request: &IoDesc, len: usize) {
        pages.renew(self.number, tag, len as u32, self.registered(tag, request));
    }

    #[inline]
    fn registered(&self, tag: u16, request: &IoDesc) -> Option<u16> {
        if request.op_flags & wire::IO_F_NEED_REG_BUF == 0 { self.place(tag) } else { None }
    }

    /// The kernel, or this reactor, does not let a tag go on: told once for each queue.
    pub fn fails(&self, tag: u16, why: &str) {
        if !self.failed.replace(true) {
            tracing::error!("ublk device {}, queue {}, tag {tag}: {why}", self.device, self.number);
            // Nobody listens any more once the device is closed.
            let _ = self.faults.send(format!("queue {}, tag {tag}: {why}", self.number));
        }
    }
}

impl Sink for Queue {
    #[inline]
    fn completed(&self, tag: u64, completion: Completion) {
        let tag = &self.tags[tag as usize];
        tag.ended.set(Some(completion.result));
        if let Payload::Buf(buf) = completion.payload {
            tag.buf.set(Some(buf));
        }
        self.reactor.wake(tag.task.get());
    }

    #[inline]
    fn ended(&self, Ended { owner, result }: Ended) -> Option<TaskId> {
        let tag = &self.tags[owner.tag as usize];
        tag.ended.set(Some(result));
        Some(tag.task.get())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.reactor.remove_file(self.file);
        // Requests that were not committed, since the next server is to have them, are registered there still: the ring lets go of
        // them, or the kernel would keep the device from that server.
        self.reactor.give_places(std::mem::take(&mut self.places));
    }
}

//! Commands that the controller could not carry out for the moment: they are given to it again, a few times and after a while.
//!
//! Which those are, the controller says: a status without Do Not Retry that tells of a passing state. How long to wait, it may say too
//! (Command Retry Delay, Base §3.3.3.2.1): an index into the times of its Identify data.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Poll;

use crate::limits::{NVME_PATH_RETRY_NS, NVME_RETRY_NS, NVME_RETRY_NS_MAX};
use crate::nvme::spec::{IdentifyController, Status, StatusCode};
use crate::reactor::io::Io;
use crate::reactor::{Reactor, TaskId};

/// Nanoseconds of a unit of CRDT1 to CRDT3.
const UNIT_NS: u64 = 100_000_000;

/// The times that a controller asks to be left alone for, in nanoseconds; 0 where it says none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delays([u64; 3]);

impl Delays {
    pub(super) fn of(identity: &IdentifyController) -> Delays {
        Delays(identity.crdt_100ms.map(|units| u64::from(units.get()) * UNIT_NS))
    }

    /// How long to wait before attempt `attempt`, from 1, at a command that ended so.
    fn after(self, status: Status, attempt: u8) -> u64 {
        let asked = usize::from(status.crd()).checked_sub(1).map_or(0, |index| self.0[index]);
        let first = if is_of_the_kernel(status) { NVME_PATH_RETRY_NS } else { NVME_RETRY_NS };
        match asked {
            0 => first << attempt.saturating_sub(1).min(8),
            asked => asked.min(NVME_RETRY_NS_MAX),
        }
    }
}

/// Whether the kernel's driver says so, which is resetting the controller: a host's own statuses.
fn is_of_the_kernel(status: Status) -> bool {
    matches!(status.code(), StatusCode::HOST_PATH_ERROR | StatusCode::ABORTED_BY_HOST)
}

/// Whether what the controller says may be otherwise in a moment.
pub(super) fn is_passing(status: Status) -> bool {
    let by_controller = || {
        matches!(
            status.code(),
            StatusCode::COMMAND_INTERRUPTED
                | StatusCode::NAMESPACE_NOT_READY
                | StatusCode::TRANSIENT_TRANSPORT_ERROR
                // It was late, or somebody else wanted its end; or the controller ended what it had when it was disabled.
                | StatusCode::ABORT_REQUESTED
                | StatusCode::ABORTED_SQ_DELETION
        )
    };
    !status.is_dnr() && (is_of_the_kernel(status) || by_controller())
}

/// Whether, of what is passing, this says that the command was not even begun.
pub(super) fn is_undone(status: Status) -> bool {
    matches!(status.code(), StatusCode::NAMESPACE_NOT_READY | StatusCode::HOST_PATH_ERROR)
}

/// I/Os that wait for their next attempt, and the task that waits with them.
pub(super) struct Retries {
    reactor: Rc<Reactor>,
    delays: Delays,
    /// By when they are due, in nanoseconds of the clock.
    waiting: RefCell<VecDeque<(u64, Io)>>,
    task: Cell<Option<TaskId>>,
    closed: Cell<bool>,
}

impl Retries {
    pub(super) fn new(reactor: &Rc<Reactor>, delays: Delays) -> Retries {
        let (waiting, task, closed) = (RefCell::default(), Cell::new(None), Cell::new(false));
        Retries { reactor: reactor.clone(), delays, waiting, task, closed }
    }

    /// Keeps an I/O until its attempt `attempt`, from 1.
    pub(super) fn push(&self, io: Io, status: Status, attempt: u8) {
        let due = self.reactor.clock().now().saturating_add(self.delays.after(status, attempt));
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.partition_point(|(other, _)| *other <= due);
        waiting.insert(at, (due, io));
        drop(waiting);
        self.wake();
    }

    fn wake(&self) {
        if let Some(task) = self.task.get() {
            self.reactor.wake(task);
        }
    }

    /// Takes one that waits, to end it.
    pub(super) fn take_waiting(&self) -> Option<Io> {
        self.waiting.borrow_mut().pop_front().map(|(_, io)| io)
    }

    /// Lets the task end when nothing is left.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.wake();
    }

    /// The next one that is due, for the task; `None` once this is closed and empty.
    pub(super) async fn next(&self) -> Option<Io> {
        self.task.set(Some(self.reactor.current_task()));
        let mut timer = u64::MAX;
        std::future::poll_fn(|_| {
            let mut waiting = self.waiting.borrow_mut();
            match waiting.front() {
                Some((due, _)) if *due <= self.reactor.clock().now() => {
                    Poll::Ready(waiting.pop_front().map(|(_, io)| io))
                }
                Some((due, _)) => {
                    // One that has passed was for an I/O that is not here any more.
                    if *due < timer || timer <= self.reactor.clock().now() {
                        timer = *due;
                        self.reactor.wake_at(*due, self.reactor.current_task());
                    }
                    Poll::Pending
                }
                None if self.closed.get() => Poll::Ready(None),
                None => {
                    timer = u64::MAX;
                    Poll::Pending
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::sim::Simulation;

    #[test]
    fn one_that_is_taken_away_takes_no_others_time_along() {
        let mut simulation = Simulation::new(1);
        let machine = simulation.machine(1);
        let reactor = simulation.reactor(machine, 0);
        let retries = Rc::new(Retries::new(&reactor, Delays([1, 10, 0].map(|units| units * UNIT_NS))));
        let ended = Rc::new(RefCell::new(Vec::new()));
        let (its, there, here) = (retries.clone(), ended.clone(), reactor.clone());
        reactor.spawn("retries", async move {
            while let Some(io) = its.next().await {
                there.borrow_mut().push(here.clock().now());
                here.retire_io(io);
            }
        });
        let asking = |crd: u16| Status(StatusCode::COMMAND_INTERRUPTED.0 | crd << 11);
        retries.push(reactor.create_io().unwrap(), asking(1), 1);
        simulation.run_for(UNIT_NS / 2).unwrap();
        reactor.retire_io(retries.take_waiting().unwrap());
        let pushed = reactor.clock().refresh();
        retries.push(reactor.create_io().unwrap(), asking(2), 1);
        simulation.run_for(20 * UNIT_NS).unwrap();
        let at = ended.borrow().first().copied().expect("it comes");
        assert!((10 * UNIT_NS..11 * UNIT_NS).contains(&(at - pushed)), "after {} ns", at - pushed);
        retries.close();
        simulation.run_for(UNIT_NS).unwrap();
        drop((retries, reactor));
        assert_eq!(simulation.finish(), 0);
    }

    #[test]
    fn only_a_passing_state_that_may_be_tried_again_is() {
        assert!(is_passing(StatusCode::NAMESPACE_NOT_READY.retry()));
        assert!(is_passing(StatusCode::COMMAND_INTERRUPTED.retry().with_more()));
        assert!(is_passing(StatusCode::ABORTED_BY_HOST.retry()) && !is_passing(StatusCode::ABORTED_BY_HOST.dnr()));
        assert!(!is_passing(StatusCode::NAMESPACE_NOT_READY.dnr()));
        for code in [StatusCode::SUCCESS, StatusCode::UNRECOVERED_READ_ERROR, StatusCode::INTERNAL_ERROR] {
            assert!(!is_passing(code.retry()), "{code:?}");
        }
    }

    #[test]
    fn the_controller_says_how_long_or_it_is_longer_each_time() {
        let delays = Delays([0, 3 * UNIT_NS, u64::MAX]);
        let asking = |crd: u16| Status(StatusCode::COMMAND_INTERRUPTED.0 | crd << 11);
        assert_eq!(delays.after(asking(2), 5), 3 * UNIT_NS);
        assert_eq!(delays.after(asking(3), 1), NVME_RETRY_NS_MAX, "within reason");
        let path = StatusCode::HOST_PATH_ERROR.retry();
        assert_eq!(
            [1, 5].map(|n| delays.after(path, n)),
            [1, 16].map(|n| n * NVME_PATH_RETRY_NS),
            "a reset takes longer"
        );
        for crd in [0, 1] {
            assert_eq!(
                [1, 2, 5].map(|attempt| delays.after(asking(crd), attempt)),
                [1, 2, 16].map(|n| n * NVME_RETRY_NS)
            );
        }
    }
}

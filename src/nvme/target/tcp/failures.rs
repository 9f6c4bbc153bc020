//! Failed I/O commands on their way to the error logs of their controllers, which live at the home.
//!
//! The first one is told at once. Those that fail while the home has not answered gather here and go with the next message, so
//! that commands that fail at full speed cost a bounded number of messages and bytes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::home::{self, HOME};
use crate::nvme::target::{ControllerHandle, ERROR_LOG_ENTRIES, ErrorReport};
use crate::reactor::Reactor;
use crate::reactor::mailbox::Message;

/// Reports of one message. The log of a controller has no room for more.
const REPORTS_MAX: usize = ERROR_LOG_ENTRIES;

/// What the next message says.
#[derive(Default)]
struct Batch {
    reports: Vec<(ControllerHandle, ErrorReport)>,
    /// Failures that found no room: only counted.
    more: BTreeMap<ControllerHandle, u64>,
}

/// The failures of one reactor.
#[derive(Default)]
pub struct Failures {
    next: RefCell<Batch>,
    telling: Cell<bool>,
}

impl Failures {
    /// Takes note of a failed command.
    pub fn add(self: &Rc<Self>, reactor: &Rc<Reactor>, controller: ControllerHandle, report: ErrorReport) {
        {
            let mut next = self.next.borrow_mut();
            if next.reports.len() < REPORTS_MAX {
                next.reports.push((controller, report));
            } else {
                *next.more.entry(controller).or_default() += 1;
            }
        }
        if self.telling.replace(true) {
            return;
        }
        self.tell(reactor);
        let (this, here) = (self.clone(), reactor.clone());
        reactor.spawn("nvmf error reports", async move {
            loop {
                // Messages to the home keep their order: its answer says that it has read the last batch.
                here.call(HOME, |_| ()).await;
                if this.next.borrow().reports.is_empty() {
                    this.telling.set(false);
                    return;
                }
                this.tell(&here);
            }
        });
    }

    fn tell(&self, reactor: &Reactor) {
        let Batch { reports, more } = self.next.take();
        let tell = move |home: &Rc<Reactor>| {
            let Some(service) = home::of(home) else { return };
            for (controller, report) in &reports {
                service.log_error(*controller, report);
            }
            for (controller, count) in more {
                service.count_errors(controller, count);
            }
        };
        reactor.send(HOME, Message::Call(Box::new(tell)));
    }
}

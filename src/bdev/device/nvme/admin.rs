//! Admin commands to a disk that this process has open, for control threads: they wait for the answer.

use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::nvme::pcie::ControllerError;
use crate::nvme::spec::{Sqe, Status};
use crate::reactor::mailbox::Remote;

/// What the home reactor may take beyond the time of the command itself: it may be spinning down or in a reset.
const SLACK: Duration = Duration::from_secs(5);
/// What a reset may take: each of two attempts waits for the controller twice, at most 127.5 s by its own word, and mostly for less than one.
const RESET: Duration = Duration::from_secs(600);

/// Why a command came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The controller refused it.
    #[error("{command}: the controller says {status:?}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What it said.
        status: Status,
    },
    /// It did not get there, or no answer came back.
    #[error("{0}")]
    Failed(String),
}

impl From<ControllerError> for AdminError {
    fn from(error: ControllerError) -> AdminError {
        match error {
            ControllerError::Refused { command, status } => AdminError::Refused { command, status },
            other => AdminError::Failed(other.to_string()),
        }
    }
}

/// The way to an open disk. It does not keep the disk open.
pub struct Admin<P: Port> {
    drive: Arc<NvmeDrive<P>>,
    home: Remote,
}

impl<P: Port> Admin<P> {
    /// To a drive, whose home is `home`.
    pub fn new(drive: &Arc<NvmeDrive<P>>, home: &Remote) -> Admin<P> {
        Admin { drive: drive.clone(), home: home.clone() }
    }

    /// Has the controller carry out a command within `limit`, and returns the `len` bytes that it says, at most a page.
    ///
    /// # Errors
    /// If it refuses or does not answer.
    pub fn command(&self, command: &'static str, sqe: Sqe, len: usize, limit: Duration) -> Result<Vec<u8>, AdminError> {
        let ns = limit.as_nanos() as u64;
        self.wait(limit + SLACK, move |drive, home| async move { drive.command(&home, command, sqe, len, ns).await })
    }

    /// Resets the controller, by which no I/O is lost.
    ///
    /// # Errors
    /// If it is not in use, or does not come back.
    pub fn reset(&self) -> Result<(), AdminError> {
        self.wait(RESET, |drive, home| async move { drive.reset(&home).await })
    }

    fn wait<R, F>(
        &self,
        limit: Duration,
        work: impl FnOnce(Arc<NvmeDrive<P>>, Rc<Reactor>) -> F + Send + 'static,
    ) -> Result<R, AdminError>
    where
        R: Send + 'static,
        F: Future<Output = Result<R, ControllerError>> + 'static,
    {
        let (sender, answered) = mpsc::channel();
        let drive = self.drive.clone();
        self.home.send(Box::new(move |reactor| {
            let here = reactor.clone();
            reactor.spawn("nvme command", async move {
                // Nobody waits for it any more once the limit is over.
                let _ = sender.send(work(drive, here).await);
            });
        }));
        match answered.recv_timeout(limit) {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(AdminError::Failed("the home reactor of the disk does not answer".to_owned())),
        }
    }
}

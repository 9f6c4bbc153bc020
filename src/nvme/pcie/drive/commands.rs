//! What a user asks of a controller while it serves: admin commands, and a reset.

use super::*;
use crate::nvme::spec::Sqe;

impl<P: Port, T: Tenant> Drive<P, T> {
    /// Has the controller carry out an admin command within so many nanoseconds, and returns the `len` bytes that it says, at most a page.
    /// A command that changes what its namespaces are is none for a drive with volumes: they would go on as they were.
    ///
    /// # Errors
    /// If the controller refuses, does not answer in time, or is being reset or closed.
    pub async fn command(
        &self,
        home: &Rc<Reactor>,
        command: &'static str,
        sqe: Sqe,
        len: usize,
        ns: u64,
    ) -> Result<Vec<u8>, ControllerError> {
        match keeper_of::<P, T>(home, self.id) {
            Some(keeper) => keeper.controller.carry_out(command, sqe, len, ns).await,
            None => Err(ControllerError::Stopped { command }),
        }
    }

    /// Resets the controller as if it had failed: I/O waits, and what was in flight is given to it again.
    ///
    /// # Errors
    /// If it is not in use, has been reset so often that one more would be the last, or does not come back.
    pub async fn reset(&self, home: &Rc<Reactor>) -> Result<(), ControllerError> {
        let Some(keeper) = keeper_of::<P, T>(home, self.id) else {
            return Err(ControllerError::Stopped { command: "reset" });
        };
        // A close that has ended leaves it busy.
        while keeper.busy.get() && self.life() != Life::Ended {
            home.sleep(NVME_WATCH_NS / 100).await;
        }
        if self.life() != Life::Live {
            return Err(ControllerError::Unfit(format!("the controller is {:?}", self.life())));
        }
        let now = home.clock().now();
        let recent = keeper.resets.borrow().iter().filter(|at| now.saturating_sub(**at) < NVME_RESETS_NS).count();
        if recent >= NVME_RESETS_MAX {
            let within = NVME_RESETS_NS / 1_000_000_000;
            let why = format!("{recent} resets within {within} s: one more, and the disk would be given up");
            return Err(ControllerError::Unfit(why));
        }
        keeper.reset(home, "asked for").await;
        match self.life() {
            Life::Live => Ok(()),
            life => Err(ControllerError::Unfit(format!("the controller does not come back: it is {life:?}"))),
        }
    }
}

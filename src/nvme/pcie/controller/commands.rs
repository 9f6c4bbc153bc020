//! Admin commands on somebody's behalf, while the controller does its work.

use super::*;

impl<P: Port> Controller<P> {
    /// Has the controller carry out a command within so many nanoseconds, and returns the `len` bytes that it says, at most a page.
    ///
    /// # Errors
    /// If it refuses, does not answer in time, or is being reset.
    pub(in super::super) async fn carry_out(
        &self,
        command: &'static str,
        sqe: Sqe,
        len: usize,
        ns: u64,
    ) -> Outcome<Vec<u8>> {
        // One address leads to no more than a page.
        if len > 1 << self.page_shift {
            return Err(ControllerError::Unfit(format!("{command}: {len} bytes are more than a page")));
        }
        let data = if len == 0 { None } else { Some(self.memory("an admin command", len)?.0) };
        self.ask_within(ns, command, sqe, data.as_ref()).await?;
        let mut bytes = vec![0; len];
        if let Some(data) = data {
            data.read(0, &mut bytes);
        }
        Ok(bytes)
    }
}

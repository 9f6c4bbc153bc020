//! Task management and changes of connections, beside the work of a session.

use super::super::initiator::{End, function, outcome};
use super::super::login::Ask;
use super::{GRACE_NS, MS, Unit, Work, lun_of};

impl Work {
    /// Has commands aborted, units reset, connections changed, now and then.
    pub(super) async fn manage(&self, units: &[Unit], ask: &Ask) -> Result<(), End> {
        let chance = self.reactor.entropy();
        let all = self.context.plan.volumes.len();
        while self.goes_on() {
            self.reactor.sleep(chance.below(60 * MS)).await;
            if !self.goes_on() || units.is_empty() {
                break;
            }
            let deadline = self.now() + self.context.plan.hosts[self.number].patience_ns;
            let volume = units[chance.below(units.len() as u64) as usize].volume;
            match chance.below(16) {
                0..6 => {
                    let in_flight = self.session.in_flight();
                    if in_flight.is_empty() {
                        continue;
                    }
                    let (itt, conn, lun) = in_flight[chance.below(in_flight.len() as u64) as usize];
                    let done = self.session.manage(conn, function::ABORT_TASK, (lun, itt), deadline).await?;
                    assert!(matches!(done, outcome::COMPLETE | outcome::NO_TASK), "ABORT TASK: {done}");
                    self.context.aborted.set(self.context.aborted.get() + u64::from(done == outcome::COMPLETE));
                }
                6..8 => self.function(function::ABORT_TASK_SET, volume..volume + 1, deadline).await?,
                8..10 => self.function(function::CLEAR_TASK_SET, volume..volume + 1, deadline).await?,
                10 | 11 => self.function(function::LOGICAL_UNIT_RESET, volume..volume + 1, deadline).await?,
                12 if chance.below(3) == 0 => self.function(function::TARGET_WARM_RESET, 0..all, deadline).await?,
                13 if chance.below(6) == 0 => {
                    // What comes by other connections until the last one has noticed.
                    self.context.scsi.reset_until.set(deadline + GRACE_NS);
                    self.function(function::TARGET_COLD_RESET, 0..all, deadline).await?;
                }
                _ => self.change_connection(ask, deadline).await?,
            }
        }
        Ok(())
    }

    async fn function(&self, what: u8, volumes: std::ops::Range<usize>, deadline: u64) -> Result<(), End> {
        let common = &self.context.scsi;
        let (first, conn) = (volumes.start, self.some_connection());
        volumes.clone().for_each(|volume| common.begin(volume));
        let response = self.session.manage(conn, what, (lun_of(first), 0), deadline).await;
        // One that was not answered may still go on.
        let until = self.now() + if response.is_ok() { 0 } else { 60_000 * MS };
        volumes.for_each(|volume| common.end(volume, until));
        let response = response?;
        let gone = response == outcome::NO_LUN && self.context.plan.may_be_removed(first);
        assert!(response == outcome::COMPLETE || gone, "function {what}: {response}");
        Ok(())
    }

    /// Logs one of several connections out, and has another one take its place.
    async fn change_connection(&self, ask: &Ask, deadline: u64) -> Result<(), End> {
        let usable = self.session.usable();
        if usable.len() < 2 {
            return Ok(());
        }
        let index = self.some_connection();
        while !self.session.retire(index) {
            self.reactor.sleep(MS).await;
            if let Some(end) = self.session.end() {
                return Err(end);
            }
        }
        let cid = self.session.log_out_connection(index, deadline).await?;
        if self.session.is_logout_asked() {
            return Ok(());
        }
        self.session.join(self.context.address, cid, ask).await
    }
}

//! Commands about the tags of ublk queues.

use io_uring::opcode;

use super::table::{Held, Refusable};
use super::{Uring, table};
use crate::sys::op::{FileId, OpToken, Owner, UblkCommand, UblkStep};
use crate::sys::ublk::RequestData;
use crate::ublk::wire::{self, AutoBufReg, IoCmd};

impl Uring {
    /// As [`Uring::submit`] of [`crate::sys::op::Op::Ublk`], without moving an operation about.
    #[inline]
    pub fn command(&mut self, file: FileId, command: UblkCommand, owner: Owner) {
        self.stats.submitted += 1;
        self.urgent = true;
        self.start_command(file, command, owner);
    }

    #[inline(always)]
    pub(super) fn start_command(&mut self, file: FileId, command: UblkCommand, owner: Owner) -> OpToken {
        let UblkCommand { step, queue, tag, result, place, buf } = command;
        let Some((fd, flags)) = self.files.target(file) else {
            return self.refuse(owner, buf.map_or(Refusable::Nothing, Refusable::Buf));
        };
        let code = match step {
            UblkStep::Fetch => wire::U_IO_FETCH_REQ,
            UblkStep::Commit => wire::U_IO_COMMIT_AND_FETCH_REQ,
            UblkStep::GetData => wire::U_IO_NEED_GET_DATA,
        };
        let mut addr = 0;
        let token = match buf {
            None => table::bare(owner),
            Some(mut buf) => {
                assert!(result.max(0) as usize <= buf.len(), "a commit of {result} bytes with {} in hand", buf.len());
                // It stays where it is when its handle moves.
                addr = buf.as_mut_ptr().expose_provenance() as u64;
                let (token, _) = self.table.insert(owner, Held::Ublk(Some(buf)));
                if step == UblkStep::Commit {
                    self.given.push(token);
                }
                token
            }
        };
        let bytes = zerocopy::transmute!(IoCmd { q_id: queue, tag, result, addr });
        let register = |index| AutoBufReg { index, flags: wire::AUTO_BUF_REG_FALLBACK, ..AutoBufReg::default() };
        let place = place.map(|index| register(index).to_sqe_addr());
        let entry = opcode::UringCmd16::new(fd, code).cmd(bytes).addr(place).build();
        self.push(&entry.flags(flags).user_data(token.0));
        token
    }

    /// Has the kernel move bytes between a file and a request's pages.
    pub(super) fn transfer(
        &mut self,
        owner: Owner,
        file: FileId,
        offset: u64,
        data: RequestData,
        write: Option<bool>,
    ) -> OpToken {
        let (Some((fd, flags)), Some((index, first))) = (self.files.target(file), data.registered()) else {
            return self.refuse(owner, Refusable::Request(data));
        };
        let len = data.len() as u32;
        let (token, _) = self.table.insert(owner, Held::Request(data));
        // What is registered has no address: its first byte counts as 0.
        let at = std::ptr::without_provenance_mut(first as usize);
        let entry = match write {
            None => opcode::ReadFixed::new(fd, at, len, index).offset(offset).build(),
            Some(durable) => {
                let rw_flags = if durable { super::RWF_DSYNC } else { 0 };
                opcode::WriteFixed::new(fd, at, len, index).offset(offset).rw_flags(rw_flags).build()
            }
        };
        self.push(&entry.flags(flags).user_data(token.0));
        token
    }

    /// Places of the table of buffers for the data of requests, at most `count` of them.
    pub fn take_places(&mut self, count: usize) -> Vec<u16> {
        let kept = self.places.len().saturating_sub(count);
        self.places.split_off(kept)
    }

    /// Gives places back, and empties them. The kernel empties one at the commit of its request: one that was left to the next server,
    /// or whose commit was refused, is there still. The next registration at its place would fail and its request be copied, time after
    /// time; and the kernel would not let the device go to another server before this ring is closed.
    ///
    /// What cannot be emptied is not used again.
    pub fn give_places(&mut self, mut places: Vec<u16>) {
        // As they are taken, the first ones last, so that neighbours are taken together and go together.
        places.sort_unstable_by(|a, b| b.cmp(a));
        for run in places.chunk_by(|a, b| *a == *b + 1) {
            let first = u32::from(run[run.len() - 1]);
            match self.empty_entries(first, run.len()) {
                Ok(()) => self.places.extend_from_slice(run),
                Err(error) => {
                    self.notes.push(format!("{} places of the ring's table of buffers are lost: {error}", run.len()));
                }
            }
        }
    }

    /// Lets go of the data of commits that the kernel has taken: it copies while it takes them, and not later.
    #[inline]
    pub(super) fn release_given(&mut self) {
        if self.given.is_empty() || !self.ring.submission().is_empty() {
            return;
        }
        while let Some(token) = self.given.pop() {
            if let Some(Held::Ublk(buf)) = self.table.held(token) {
                *buf = None;
            }
        }
    }
}

//! EXTENDED COPY between the logical units that a session sees.

use std::rc::Rc;

use super::home::{self, HOME};
use super::live::LunView;
use super::slot::Work;
use crate::reactor::Reactor;
use crate::reactor::io::{Io, Segment};
use crate::reactor::mailbox::Message;
use crate::scsi::disk::{Context, CopyAccess, CopyDisk, Outcome, copy};
use crate::scsi::reservation::Access;
use crate::scsi::{CopyList, CopyProgress, CopyState, CopyUnit, Designator};

/// Bytes after which the home is told again how far a copy is.
const TELL: u64 = 16 << 20;

/// Carries out a copy, whose parameter list is the data of `io`.
pub async fn run(work: &Work<'_>, lun: &LunView, context: &Context<'_>, mut io: Io) -> (Io, Outcome) {
    let mut bytes = Vec::new();
    let mut segments = io.data.take_all();
    while let Some(segment) = segments.pop() {
        if let Segment::Buf(buf) = segment {
            // The last piece comes first.
            bytes.splice(0..0, buf.iter().copied());
        }
    }
    if bytes.is_empty() {
        // Without a list there is nothing to copy (SPC-4 §6.4.1).
        return (io, Outcome::Good);
    }
    let list = match CopyList::decode(&bytes) {
        Ok(list) => list,
        Err(sense) => return (io, Outcome::Check(sense)),
    };
    let seen = work.live.luns();
    // From here on who aborts commands of one of these units aborts this one, whichever unit it came by.
    work.slot.copies_between(seen.iter().filter(|view| list.names(view.disk().unit())).map(|view| view.key).collect());
    let result = run_list(work, lun, context, io, &seen, list).await;
    work.slot.copies_between(Vec::new());
    result
}

async fn run_list(
    work: &Work<'_>,
    lun: &LunView,
    context: &Context<'_>,
    io: Io,
    seen: &[Rc<LunView>],
    list: CopyList,
) -> (Io, Outcome) {
    let resolve = |designator: &Designator| {
        let index = seen.iter().position(|view| designator.names(view.disk().unit()))?;
        let (disk, gate) = (seen[index].disk(), seen[index].gate());
        let unit = disk.unit();
        Some(CopyUnit {
            unit: index,
            blocks: unit.blocks,
            block_size: unit.block_size,
            readable: gate.grant.allows(Access::Read),
            writable: gate.grant.allows(Access::Write),
            protected: unit.read_only || gate.mode.software_write_protect,
        })
    };
    let steps = match list.plan(resolve) {
        Ok(steps) => steps,
        Err(sense) => return (io, Outcome::Check(sense)),
    };
    let (reactor, tsih, key) = (work.live.reactor().clone(), work.live.tsih(), lun.key);
    let list = std::sync::Arc::new(list);
    let begun = list.clone();
    let begin = move |home: &Rc<Reactor>| home::of(home).map(|home| home.copy_begin(tsih, key, &begun));
    match reactor.call(HOME, begin).await {
        Some(Ok(())) => {}
        Some(Err(sense)) => return (io, Outcome::Check(sense)),
        None => return (io, Outcome::Aborted),
    }
    let tell = |progress: CopyProgress, ended: bool| {
        let list = list.clone();
        let tell = move |home: &Rc<Reactor>| {
            if let Some(home) = home::of(home) {
                home.copy_progress(tsih, key, &list, progress, ended);
            }
        };
        reactor.send(HOME, Message::Call(Box::new(tell)));
    };
    let disk = |view: &Rc<LunView>| {
        let (live, view) = (work.live.clone(), view.clone());
        let disk = view.disk();
        let access = move || {
            let (gate, seen) = (view.gate(), live.lun(view.lun).is_some_and(|now| Rc::ptr_eq(&now, &view)));
            CopyAccess {
                mode: gate.mode,
                readable: seen && gate.grant.allows(Access::Read),
                writable: seen && gate.grant.allows(Access::Write) && !gate.mode.software_write_protect,
            }
        };
        CopyDisk { disk, access: Box::new(access) }
    };
    let disks: Vec<CopyDisk> = seen.iter().map(disk).collect();
    let mut last = CopyProgress::START;
    let (io, outcome) = copy(&steps, &disks, context, io, |progress| {
        if progress.bytes - last.bytes >= TELL {
            tell(progress, false);
        }
        if progress.bytes - last.bytes >= TELL || progress.state != CopyState::Running {
            last = progress;
        }
    })
    .await;
    tell(last, true);
    (io, outcome)
}

//! Hosts that come by iSCSI: sessions that log in, work with a crowd of tasks on all connections, have tasks aborted and units reset, check
//! every answer against the models, and come again.

mod manage;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use reactor::iscsi::Offer;
use reactor::reactor::io::{IoOp, IoStatus};
use reactor::reactor::{Reactor, TaskId};

use super::super::host::Context;
use super::super::model::{Ended as Wrote, SECTOR, Step};
use super::super::plan::{MS, Plan, Volume};
use super::cdb::{self, Cdb};
use super::initiator::{Answer, End, Ended, Session, function, outcome};
use super::login::{Ask, Place};
use super::sense::{Meaning, meaning};
use super::shapes::{Shape, shape};

/// The target.
pub const IQN: &str = "iqn.2026-11.io.reactor:sim";
/// How long after a function a host waits for commands that it may have ended without a word.
const GRACE_NS: u64 = 3_000 * MS;
/// Most bytes of a command whose blocks are looked at, by whomever: MAXIMUM TRANSFER LENGTH.
const TRANSFER_MAX: u64 = 1 << 20;
/// How often a host looks whether somebody has.
const LOOK_NS: u64 = 500 * MS;

/// The logical unit number of a volume.
pub fn lun_of(volume: usize) -> u16 {
    volume as u16 * 9
}

/// What the initiators of a plan ask for.
#[derive(Clone, Debug)]
pub struct ScsiPlan {
    pub offer: Offer,
    pub asks: Vec<Ask>,
}

/// What all hosts that come by iSCSI share.
#[derive(Default)]
pub struct Common {
    /// Of each volume: functions under way that end commands of others, and when the last one ended.
    cleared: RefCell<Vec<(u32, u64)>>,
    /// Until then sessions end because a target was reset.
    reset_until: Cell<u64>,
    /// Writes without an answer that may still be on their way, with their hosts and volumes.
    unanswered: RefCell<Vec<(usize, usize, Step)>>,
}

impl Common {
    pub fn new(volumes: usize) -> Common {
        Common { cleared: RefCell::new(vec![(0, 0); volumes]), ..Common::default() }
    }

    fn begin(&self, volume: usize) {
        self.cleared.borrow_mut()[volume].0 += 1;
    }

    fn end(&self, volume: usize, now: u64) {
        let entry = &mut self.cleared.borrow_mut()[volume];
        *entry = (entry.0 - 1, entry.1.max(now));
    }

    /// Whether somebody may have ended a command that was sent at `sent`, and when at the latest.
    fn cleared(&self, volume: usize, sent: u64) -> Option<u64> {
        let (under_way, last) = self.cleared.borrow()[volume];
        if under_way > 0 { Some(u64::MAX) } else { Some(last).filter(|last| *last >= sent) }
    }
}

/// A logical unit as a host sees it.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    pub volume: usize,
    pub block: u64,
    pub size: u64,
    /// Most blocks of a COMPARE AND WRITE.
    pub compare_max: u64,
}

/// A session at work.
struct Work {
    context: Rc<Context>,
    reactor: Rc<Reactor>,
    number: usize,
    session: Rc<Session>,
    busy: Cell<u32>,
    left: Cell<u32>,
    leaving: Cell<bool>,
    /// A command is being aborted: there is room for few requests for immediate delivery at a time.
    aborting: Cell<bool>,
}

/// Host `number` at the target.
pub fn place(number: usize) -> Place {
    Place {
        initiator: format!("iqn.2026-11.io.host:{number}"),
        isid: [0x80, 0, 0, 0, 0, number as u8],
        target: IQN.to_owned(),
    }
}

/// Checks that a session may end so.
fn check_end(context: &Context, reactor: &Reactor, end: &End, leaving: bool) {
    let reset = reactor.clock().now() < context.scsi.reset_until.get();
    let may = context.may_lose() || reset;
    let right = match end {
        End::Stream(_) | End::Timeout(_) => may || leaving,
        // The target does not serve, or the session has ended that a connection was to join.
        End::Refused(_) => may,
        End::Digest | End::Protocol(_) => context.plan.flips(),
        End::Dropped => reset || context.stopping.get(),
        End::Closed => true,
    };
    assert!(right, "a session ended: {end:?}");
    context.lost.set(context.lost.get() + 1);
}

/// Host `number` in this round: until its share is done, or the target stops.
pub async fn run(reactor: Rc<Reactor>, context: Rc<Context>, number: usize) {
    while context.goes_on(number) {
        if let Err(end) = connect_and_work(&reactor, &context, number).await {
            check_end(&context, &reactor, &end, false);
            reactor.sleep((20 + reactor.entropy().below(500)) * MS).await;
        }
    }
    context.finished[number].set(true);
}

async fn connect_and_work(reactor: &Rc<Reactor>, context: &Rc<Context>, number: usize) -> Result<(), End> {
    let plan = &context.plan.hosts[number];
    let ask = context.plan.scsi.as_ref().expect("it is planned").asks[number];
    let chance = reactor.entropy();
    let session = Session::open(reactor, context.address, place(number), &ask).await?;
    // What was on its way in a session whose place this one has taken is over.
    resolve(context, number);
    for cid in 1..session.agreed.connections {
        match session.join(context.address, cid, &ask).await {
            Ok(()) => {}
            // It has ended meanwhile.
            Err(end @ End::Refused(_)) => {
                session.close(End::Closed);
                return Err(end);
            }
            Err(end) => {
                session.close(end.clone());
                return Err(end);
            }
        }
    }
    let left = context.left[number].get();
    let work = Rc::new(Work {
        context: context.clone(),
        reactor: reactor.clone(),
        number,
        session: session.clone(),
        busy: Cell::new(0),
        left: Cell::new(if chance.below(3) == 0 { 1 + chance.below(u64::from(left)) as u32 } else { left }),
        leaving: Cell::new(false),
        aborting: Cell::new(false),
    });
    let mut units = Vec::new();
    for volume in 0..context.plan.volumes.len() {
        units.extend(work.unit(volume).await.inspect_err(|end| session.close(end.clone()))?);
    }
    let (units, waiter): (Rc<[Unit]>, _) = (units.into(), reactor.current_task());
    for _ in 0..plan.workers * u32::from(plan.queues) {
        let (here, units) = (work.clone(), units.clone());
        work.start(waiter, async move {
            let mut again = None;
            while here.step(&units, &mut again).await {}
        });
    }
    if plan.chatter {
        let (here, units) = (work.clone(), units.clone());
        work.start(waiter, async move {
            if let Err(end) = here.manage(&units, &ask).await {
                here.session.close(end);
            }
        });
    }
    let deadline = |work: &Work| work.reactor.clock().now() + plan.patience_ns;
    let mut over = false;
    if chance.below(5) == 0 {
        // Goes in the middle of things: commands in flight are left to the target.
        reactor.sleep(chance.below(200 * MS)).await;
        work.leaving.set(true);
        if chance.below(2) == 0 {
            over = session.log_out(deadline(&work)).await.is_ok();
        }
        session.close(End::Closed);
    }
    poll_fn(|_| if work.busy.get() == 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    if session.end().is_none() && chance.below(4) > 0 {
        work.leaving.set(true);
        over = session.log_out(deadline(&work)).await.is_ok();
    }
    let end = session.end();
    session.close(End::Closed);
    if over {
        resolve(context, number);
    }
    match end {
        Some(end) if end != End::Closed => check_end(context, reactor, &end, work.leaving.get()),
        _ => {}
    }
    Ok(())
}

/// All that a host had on its way is over.
fn resolve(context: &Context, number: usize) {
    context.scsi.unanswered.borrow_mut().retain(|(host, volume, step)| {
        if *host == number {
            context.model(*volume).resolve(step);
        }
        *host != number
    });
}

impl Work {
    fn start(self: &Rc<Self>, waiter: TaskId, body: impl Future<Output = ()> + 'static) {
        self.busy.set(self.busy.get() + 1);
        let here = self.clone();
        self.reactor.spawn("initiator at work", async move {
            body.await;
            here.busy.set(here.busy.get() - 1);
            here.reactor.wake(waiter);
        });
    }

    fn now(&self) -> u64 {
        self.reactor.clock().now()
    }

    fn goes_on(&self) -> bool {
        let goes_on = self.context.goes_on(self.number) && self.left.get() > 0 && !self.leaving.get();
        goes_on && self.session.end().is_none() && !self.session.is_logout_asked()
    }

    /// One of the connections.
    fn some_connection(&self) -> usize {
        let usable = self.session.usable();
        usable[self.reactor.entropy().below(usable.len() as u64) as usize]
    }

    /// Carries out a command; it may be ended by functions of this host and of others.
    async fn command(&self, volume: usize, shape: Shape) -> Result<Ended, End> {
        let chance = self.reactor.entropy();
        let (conn, sent) = (self.some_connection(), self.now());
        let attribute = [1, 1, 1, 1, 1, 1, 1, 0, 2, 3][chance.below(10) as usize];
        let Shape { cdb, out, in_len } = shape;
        let itt = self.session.command(conn, lun_of(volume), &cdb, out, in_len, attribute).await?;
        let patience_ns = self.context.plan.hosts[self.number].patience_ns;
        let deadline = self.now() + patience_ns;
        let hasty = self.context.plan.hosts[self.number].chatter && chance.below(40) == 0;
        let mut until = if hasty { self.now() + chance.below(20 * MS) } else { self.now() + LOOK_NS };
        loop {
            if let Some(ended) = self.session.wait(itt, until.min(deadline)).await? {
                let legal = !matches!(ended, Ended::Over { known: false });
                let now = self.now();
                assert!(
                    legal || self.context.scsi.cleared(volume, sent).is_some(),
                    "a command is gone: {cdb:x?}, {sent}, {now}"
                );
                return Ok(ended);
            }
            let now = self.now();
            // One that may be ended by a function whose end nobody knows is asked about in time.
            let late = now > sent + patience_ns / 2;
            let is_over = |end: u64| late || now > end.saturating_add(GRACE_NS);
            let cleared = self.context.scsi.cleared(volume, sent).is_some_and(is_over);
            if (hasty && until < deadline || cleared) && !self.aborting.replace(true) {
                let function = function::ABORT_TASK;
                let response = self.session.manage(conn, function, (lun_of(volume), itt), now + patience_ns).await?;
                self.aborting.set(false);
                assert!(matches!(response, outcome::COMPLETE | outcome::NO_TASK), "ABORT TASK: {response}");
                self.context.aborted.set(self.context.aborted.get() + u64::from(response == outcome::COMPLETE));
                until = deadline;
                continue;
            }
            if now >= deadline {
                let end = End::Timeout("command");
                self.session.close(end.clone());
                return Err(end);
            }
            // A reset may have ended many at once, which are asked about one after the other.
            until = now + if cleared { LOOK_NS / 50 } else { LOOK_NS };
        }
    }

    /// Asks a unit something that does not touch its blocks. `None`: it is not there.
    async fn ask(&self, volume: usize, cdb: Cdb, in_len: usize) -> Result<Option<Vec<u8>>, End> {
        for _ in 0..100 {
            match self.command(volume, Shape { cdb, out: Vec::new(), in_len }).await? {
                Ended::Scsi(answer) => match meaning(&answer) {
                    Meaning::Status(IoStatus::Success) => return Ok(Some(answer.data)),
                    Meaning::Attention | Meaning::Busy => {}
                    Meaning::Status(IoStatus::Unsupported) if self.context.plan.may_be_removed(volume) => {
                        return Ok(None);
                    }
                    Meaning::Status(_) | Meaning::Unknown => panic!("volume {volume}: {cdb:x?}: {answer:x?}"),
                },
                Ended::Over { .. } => {}
                Ended::Response(_) => unreachable!("a command has no response of a function"),
            }
        }
        panic!("volume {volume}: {cdb:x?} is not answered");
    }

    /// Looks at a unit.
    async fn unit(&self, volume: usize) -> Result<Option<Unit>, End> {
        const BLOCK_LIMITS: u8 = 0xb0;
        if self.ask(volume, cdb::test_unit_ready(), 0).await?.is_none() {
            return Ok(None);
        }
        let Some(capacity) = self.ask(volume, cdb::read_capacity16(), 32).await? else { return Ok(None) };
        let Some(limits) = self.ask(volume, cdb::inquiry(Some(BLOCK_LIMITS), 64), 64).await? else { return Ok(None) };
        // It may have gone in between: an INQUIRY is answered for one that is not there.
        if limits.len() < 64 || limits[0] != 0 {
            assert!(self.context.plan.may_be_removed(volume), "volume {volume}: limits {limits:x?}");
            return Ok(None);
        }
        let (Some(last), Some(block)) = (capacity.first_chunk::<8>(), capacity[8..].first_chunk::<4>()) else {
            panic!("volume {volume}: capacity {capacity:x?}");
        };
        let (blocks, block) = (u64::from_be_bytes(*last) + 1, u64::from(u32::from_be_bytes(*block)));
        let planned = &self.context.plan.volumes[volume];
        assert_eq!((blocks * block, block), (planned.size, planned.block.into()), "volume {volume}");
        let compare_max = u64::from(limits[5]);
        assert!(compare_max > 0, "volume {volume} has no COMPARE AND WRITE");
        Ok(Some(Unit { volume, block, size: planned.size, compare_max }))
    }

    /// Does one random I/O, or reads what was written just now. Returns whether there is more to do.
    async fn step(&self, units: &[Unit], written: &mut Option<(Unit, u64, u64)>) -> bool {
        if !self.goes_on() || units.is_empty() {
            return false;
        }
        self.left.set(self.left.get() - 1);
        let left = &self.context.left[self.number];
        left.set(left.get() - 1);
        let chance = self.reactor.entropy();
        let (unit, op, offset, len) = match written.take().filter(|_| chance.below(2) == 0) {
            Some((unit, offset, len)) => (unit, IoOp::Read, offset, len),
            None => {
                let unit = units[chance.below(units.len() as u64) as usize];
                let op = self.choose();
                let (offset, len) = self.range(&unit, op);
                (unit, op, offset, len)
            }
        };
        let model = self.context.model(unit.volume);
        *written = (op.writes() && len <= self.context.plan.len_max).then_some((unit, offset, len));
        let fua = matches!(op, IoOp::Write | IoOp::CompareAndWrite) && chance.below(4) == 0;
        let other = (chance.below(4) == 0 && len > 0).then(|| chance.below(len / SECTOR as u64));
        let expected = match op {
            IoOp::Compare | IoOp::CompareAndWrite => model.guess(offset, len, other),
            _ => Vec::new(),
        };
        let zeros = matches!(op, IoOp::WriteZeroes | IoOp::Unmap);
        let step = if op.writes() { model.begin_write(offset, len, zeros) } else { model.begin(offset, len) };
        let mut data = expected.clone();
        if op.writes() && !zeros {
            data.extend(model.payload(&step));
        }
        let begun = self.now();
        let (durable, shape) = shape(chance, &unit, op, (offset, len, fua), data);
        let cdb = shape.cdb;
        let ended = self.command(unit.volume, shape).await;
        let compares = matches!(cdb[0], 0x2e | 0xae | 0x8e) && cdb[1] & 2 != 0;
        let seen = Seen { op, durable, compares, took_ns: self.now() - begun, expected };
        let (volume, said) = (unit.volume, format!("{ended:x?}").chars().take(400).collect::<String>());
        match self.judge(volume, &step, seen, ended) {
            Ok(goes_on) => goes_on,
            Err(why) => panic!("volume {volume}, {op:?}, {cdb:x?}, {len} bytes at {offset}: {said}: {why}"),
        }
    }

    fn choose(&self) -> IoOp {
        match self.reactor.entropy().below(100) {
            0..30 => IoOp::Read,
            30..34 => IoOp::Verify,
            34..68 => IoOp::Write,
            68..74 => IoOp::Flush,
            74..80 => IoOp::WriteZeroes,
            80..86 => IoOp::Unmap,
            86..92 => IoOp::Compare,
            _ => IoOp::CompareAndWrite,
        }
    }

    /// A range in whole blocks, as many of each magnitude.
    fn range(&self, unit: &Unit, op: IoOp) -> (u64, u64) {
        if op == IoOp::Flush {
            return (0, 0);
        }
        let (chance, plan) = (self.reactor.entropy(), &self.context.plan);
        let space = if chance.below(2) == 0 { plan.crowd.min(unit.size) } else { unit.size };
        let most = match op {
            IoOp::CompareAndWrite => (unit.compare_max * unit.block).min(plan.len_max / 2),
            IoOp::Unmap | IoOp::WriteZeroes if chance.below(4) == 0 => unit.size,
            IoOp::Verify if chance.below(4) == 0 => unit.size.min(TRANSFER_MAX),
            _ => plan.len_max,
        };
        let most = most.min(space) / unit.block;
        let magnitude = chance.below(u64::from(most.max(1).ilog2()) + 1);
        let len = ((1 << magnitude) + chance.below(1 << magnitude)).min(most.max(1));
        (chance.below(space / unit.block - len + 1) * unit.block, len * unit.block)
    }

    /// Checks an answer and tells the model.
    fn judge(&self, volume: usize, step: &Step, seen: Seen, ended: Result<Ended, End>) -> Result<bool, String> {
        let (context, model) = (&self.context, self.context.model(volume));
        let Seen { op, durable, compares, took_ns, expected } = seen;
        let end_without = |how: Wrote| {
            if op.writes() {
                model.end_write(step, how)?;
            } else {
                model.end_unheard(step);
            }
            Ok(true)
        };
        let answer = match ended {
            Ok(Ended::Scsi(answer)) => answer,
            Ok(Ended::Over { .. }) => {
                end_without(Wrote::Lost)?;
                if op.writes() {
                    model.resolve(step);
                }
                return Ok(true);
            }
            Ok(Ended::Response(_)) => return Err("a response to something else".to_owned()),
            Err(_) => {
                if op.writes() {
                    context.scsi.unanswered.borrow_mut().push((self.number, volume, *step));
                }
                end_without(Wrote::Lost)?;
                return Ok(false);
            }
        };
        let status = match meaning(&answer) {
            Meaning::Status(status) => status,
            // It was not carried out.
            Meaning::Attention | Meaning::Busy => return end_without(Wrote::Untouched),
            Meaning::Unknown => return Err("nobody may say this".to_owned()),
        };
        *context.answers.borrow_mut().entry((op as u8, status as u8)).or_default() += 1;
        let key = (self.number, volume);
        if status == IoStatus::Success {
            context.note(key, op, true, step)?;
            match op {
                IoOp::Read => model.end_read(step, &answer.data)?,
                IoOp::Compare => model.end_read(step, &expected)?,
                IoOp::Verify => model.end_unheard(step),
                // One that was asked for before a loss, and came to the target when that had been told of for long enough.
                IoOp::Flush if took_ns > 30_000 * MS && !model.is_after_loss(step) => model.end_unheard(step),
                IoOp::Flush => model.end_flush(step),
                _ => {
                    if op == IoOp::CompareAndWrite {
                        model.end_compare_and_write(step, &expected, true)?;
                    }
                    model.end_write(step, Wrote::Done { durable })?;
                }
            }
            return Ok(true);
        }
        if status == IoStatus::Miscompare && matches!(op, IoOp::Compare | IoOp::CompareAndWrite) {
            model.end_miscompare(step, &expected)?;
            if op.writes() {
                model.end_write(step, Wrote::Untouched)?;
            }
            return Ok(true);
        }
        if status == IoStatus::Miscompare && op == IoOp::Write && compares {
            // What it has written may have been written over before it was verified.
            return end_without(Wrote::Perhaps);
        }
        context.note(key, op, false, step)?;
        let plan = &context.plan.volumes[volume];
        let removed = status == IoStatus::Unsupported && context.plan.may_be_removed(volume);
        let damaged = status == IoStatus::DeviceError && context.plan.flips();
        if !may_fail(plan, op, status, &context.plan) && !removed && !damaged {
            return Err("nothing makes it fail so".to_owned());
        }
        let by_rule = !removed && !damaged && plan.is_flawless(&context.plan);
        context.failed.set(context.failed.get() + u64::from(by_rule));
        let one_step = matches!(op, IoOp::CompareAndWrite) || removed;
        end_without(if plan.refuses_whole(&context.plan) && one_step { Wrote::Untouched } else { Wrote::Perhaps })
    }
}

/// Whether a command may fail so: as one of the operations that it takes of its device.
fn may_fail(volume: &Volume, op: IoOp, status: IoStatus, plan: &Plan) -> bool {
    let parts: &[IoOp] = match op {
        IoOp::Read => &[IoOp::Read, IoOp::Flush],
        IoOp::Write => &[IoOp::Write, IoOp::Flush, IoOp::Read, IoOp::Compare, IoOp::Verify],
        IoOp::Compare | IoOp::Verify => &[IoOp::Compare, IoOp::Verify, IoOp::Read, IoOp::Flush],
        IoOp::CompareAndWrite => &[IoOp::CompareAndWrite],
        IoOp::WriteZeroes | IoOp::Unmap => &[IoOp::Write, IoOp::WriteZeroes, IoOp::Unmap],
        _ => &[op],
    };
    // By NVMe hosts are not told that a device has gone, but that it has failed.
    let status = if status == IoStatus::Gone { IoStatus::DeviceError } else { status };
    parts.iter().any(|part| volume.may_fail(*part, status, plan))
}

/// A command that has ended.
struct Seen {
    op: IoOp,
    /// What it wrote is durable if it succeeded.
    durable: bool,
    /// WRITE AND VERIFY, byte by byte.
    compares: bool,
    took_ns: u64,
    /// Of a compare.
    expected: Vec<u8>,
}

/// Reads all volumes, in pieces, for the models to see. `lasting`: no crash undoes what is found.
///
/// # Errors
/// What cannot be.
pub async fn inspect(reactor: Rc<Reactor>, context: Rc<Context>, lasting: bool) -> Result<(), String> {
    const PIECE: u64 = 128 << 10;
    let offer = context.plan.scsi.as_ref().expect("it is planned").offer;
    let said = |end: End| format!("{end:?}");
    let session = Session::open(&reactor, context.address, place(0xee), &Ask::plain(offer)).await.map_err(said)?;
    for (index, model) in context.models.iter().enumerate() {
        let block = u64::from(context.plan.volumes[index].block);
        for offset in (0..model.size()).step_by(PIECE as usize) {
            let len = PIECE.min(model.size() - offset);
            let cdb = cdb::read16(offset / block, (len / block) as u32);
            let answer = loop {
                let answer = execute(&session, &reactor, index, cdb, Vec::new(), len as usize).await.map_err(said)?;
                if meaning(&answer) != Meaning::Attention {
                    break answer;
                }
            };
            if meaning(&answer) != Meaning::Status(IoStatus::Success) {
                return Err(format!("volume {index}: inspection at {offset}: {answer:x?}"));
            }
            model.found(offset, &answer.data, lasting).map_err(|why| format!("volume {index}: {why}"))?;
        }
    }
    session.log_out(reactor.clock().now() + 60_000 * MS).await.map_err(said)
}

/// Carries out a command in a session that nobody disturbs.
pub async fn execute(
    session: &Rc<Session>,
    reactor: &Reactor,
    volume: usize,
    cdb: Cdb,
    out: Vec<u8>,
    in_len: usize,
) -> Result<Answer, End> {
    let index = session.usable()[0];
    let itt = session.command(index, lun_of(volume), &cdb, out, in_len, 1).await?;
    match session.wait(itt, reactor.clock().now() + 60_000 * MS).await? {
        Some(Ended::Scsi(answer)) => Ok(answer),
        Some(other) => Err(End::Protocol(format!("{other:?} to a command"))),
        None => Err(End::Timeout("command")),
    }
}

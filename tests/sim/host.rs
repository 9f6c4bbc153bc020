//! Hosts: sessions that connect, work with a crowd of tasks, check every answer against the models, and come again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use reactor::bdev::OpSet;
use reactor::nvme::host::{
    Command, Controller, Ended as Lost, Geometry, HostError, Identity, Options, Queue, Volume, discover,
};
use reactor::nvme::pcie::fake::FakeDisk;
use reactor::nvme::spec::{AdminOpcode, Cc, Csts, FeatureId, FeatureSelect, LogId, Property, Sqe, StatusCode};
use reactor::reactor::Reactor;
use reactor::reactor::io::{IoOp, IoStatus, Segment};

use super::iscsi;
use super::model::{Ended, Model, Step};
use super::plan::{Host, Kind, MS, Plan};
use super::target::NQN;

/// What all hosts of a scenario share.
pub struct Context {
    pub plan: Rc<Plan>,
    pub address: SocketAddr,
    pub models: Vec<Rc<Model>>,
    /// The NVMe drive's, and how often the models know that it has lost its cache.
    pub disk: Option<FakeDisk>,
    pub losses: Cell<u64>,
    /// Hosts and volumes: what was written is not durable for sure.
    pub unflushed: RefCell<BTreeSet<(usize, usize)>>,
    /// Hosts and volumes: some of that was lost, and no flush has said so.
    pub owed: RefCell<BTreeSet<(usize, usize)>>,
    /// I/Os that each host has left to do in this round.
    pub left: Vec<Cell<u32>>,
    /// Hosts whose session has ended.
    pub finished: Vec<Cell<bool>>,
    /// Nobody begins anything any more: the target fails or is being shut down.
    pub stopping: Cell<bool>,
    /// I/Os that ended with an error while the connection held.
    pub failed: Cell<u64>,
    /// Answers by operation and status, for the summary.
    pub answers: RefCell<BTreeMap<(u8, u8), u64>>,
    /// Connections that were lost.
    pub lost: Cell<u64>,
    /// Commands that were aborted.
    pub aborted: Cell<u64>,
    /// What those share that come by iSCSI.
    pub scsi: iscsi::Common,
}

/// One connection to the controller, until it ends.
struct Session {
    context: Rc<Context>,
    reactor: Rc<Reactor>,
    number: usize,
    /// Tasks at work.
    busy: Cell<u32>,
    /// I/Os that this session still does.
    left: Cell<u32>,
    /// It goes without waiting for what is in flight.
    leaving: Cell<bool>,
    /// It has asked for commands to be aborted.
    aborts: Cell<bool>,
    /// Writes without an answer, with their volumes.
    unanswered: RefCell<Vec<(usize, Step)>>,
}

impl Context {
    /// The model of a volume, which knows all that has happened so far.
    pub fn model(&self, index: usize) -> &Rc<Model> {
        self.heed_losses();
        &self.models[index]
    }

    /// Tells the models that the drive has lost its cache, if it has since. In between, nothing happens for them.
    pub fn heed_losses(&self) {
        if let Some(disk) = &self.disk
            && self.losses.replace(disk.losses()) != disk.losses()
        {
            let volumes = self.models.iter().zip(&self.plan.volumes);
            volumes.filter(|(_, v)| matches!(v.kind, Kind::Nvme { cache: true, .. })).for_each(|(m, _)| m.lose_cache());
            let cached = |index: usize| matches!(self.plan.volumes[index].kind, Kind::Nvme { cache: true, .. });
            let unflushed = self.unflushed.take();
            self.owed.borrow_mut().extend(unflushed.into_iter().filter(|(_, index)| cached(*index)));
        }
    }

    /// A write or flush of a host was answered.
    ///
    /// # Errors
    /// If a flush that began after a loss conceals it.
    pub fn note(&self, key: (usize, usize), op: IoOp, done: bool, step: &Step) -> Result<(), String> {
        match (op, done) {
            (IoOp::Flush, true) if self.models[key.1].is_after_loss(step) && self.owed.borrow().contains(&key) => {
                return Err("the cache was lost, and this host has not been told".to_owned());
            }
            (IoOp::Flush, true) => drop(self.unflushed.borrow_mut().remove(&key)),
            (IoOp::Flush, false) => drop(self.owed.borrow_mut().remove(&key)),
            _ if op.writes() && done => drop(self.unflushed.borrow_mut().insert(key)),
            _ => {}
        }
        Ok(())
    }

    /// A host has taken leave, or there is nobody any more who could tell it.
    fn forget_owed(&self, of: impl Fn(usize) -> bool) {
        self.unflushed.borrow_mut().retain(|(host, _)| !of(*host));
        self.owed.borrow_mut().retain(|(host, _)| !of(*host));
    }

    /// The models know already.
    pub fn forget_losses(&self) {
        if let Some(disk) = &self.disk {
            self.losses.set(disk.losses());
        }
        self.forget_owed(|_| true);
    }

    pub fn may_lose(&self) -> bool {
        self.plan.loses_connections() || self.stopping.get()
    }

    /// Checks that a connection may end so.
    fn check_end(&self, ended: Lost, leaving: bool) {
        let may = match ended {
            Lost::Stream(_) | Lost::Timeout { .. } => self.may_lose(),
            Lost::Closed => leaving,
            Lost::Protocol(_) | Lost::Terminated { .. } => self.plan.flips(),
        };
        assert!(may || leaving && matches!(ended, Lost::Stream(_)), "a connection ended: {ended}");
    }

    /// Checks that what was asked of a controller may fail so.
    fn check_error(&self, error: &HostError, leaving: bool) {
        match error {
            HostError::Lost(ended) => self.check_end(*ended, leaving),
            // Of a controller that is being reset.
            HostError::Refused { status, .. } if leaving => {
                assert_eq!(status.code(), StatusCode::COMMAND_SEQUENCE_ERROR, "{error}");
            }
            // The controller may have been given up, with its queues, while another was being connected.
            HostError::NotInTime { .. } if self.plan.is_drive_troubled() => {}
            HostError::Connect { .. } | HostError::Refused { .. } | HostError::NotInTime { .. } => {
                assert!(self.may_lose(), "{error}");
            }
            HostError::Data { .. } if self.plan.flips() => {}
            HostError::Data { .. } | HostError::Unsupported(_) | HostError::NoIo => panic!("{error}"),
        }
        self.lost.set(self.lost.get() + 1);
    }

    pub fn goes_on(&self, number: usize) -> bool {
        !self.stopping.get() && self.left[number].get() > 0
    }
}

/// The options of host `number`.
fn options(number: usize, host: &Host) -> Options {
    let mut options = Options::new(NQN, Identity::from_uuid([number as u8 + 1; 16]));
    options.queues = host.queues;
    options.queue_size = host.queue_size;
    options.header_digest = host.header_digest;
    options.data_digest = host.data_digest;
    options.disable_sqflow = host.disable_sqflow;
    options.max_r2t = host.max_r2t;
    options.hpda_z = host.hpda_z;
    options.kato_ms = host.kato_ms;
    options.events = host.events;
    options.command_timeout_ns = host.patience_ns;
    options
}

/// Host `number` in this round: until its share is done, or the target stops.
pub async fn run(reactor: Rc<Reactor>, context: Rc<Context>, number: usize) {
    while context.goes_on(number) {
        if let Err(error) = connect_and_work(&reactor, &context, number).await {
            context.check_error(&error, false);
            reactor.sleep((20 + reactor.entropy().below(500)) * MS).await;
        }
    }
    context.finished[number].set(true);
}

async fn connect_and_work(reactor: &Rc<Reactor>, context: &Rc<Context>, number: usize) -> Result<(), HostError> {
    let plan = &context.plan.hosts[number];
    let chance = reactor.entropy();
    let controller = Rc::new(Controller::connect(reactor, context.address, options(number, plan)).await?);
    assert_eq!(controller.queues(), plan.queues, "queues granted");
    let mut geometries = Vec::new();
    for (index, volume) in context.plan.volumes.iter().enumerate() {
        let geometry = match controller.geometry(index as u32 + 1).await {
            // Not active.
            Err(HostError::Unsupported(_)) if context.plan.may_be_removed(index) => continue,
            geometry => geometry?,
        };
        assert_eq!((geometry.size, 1 << geometry.block_shift), (volume.size, volume.block));
        let all = OpSet::ALL.without(IoOp::Reset).without(IoOp::Extents);
        let ops = if plan.queue_size > 2 { all } else { all.without(IoOp::CompareAndWrite) };
        assert!(IoOp::ALL.iter().all(|op| geometry.ops.has(*op) == ops.has(*op)), "{:?}", geometry.ops);
        geometries.push(geometry);
    }
    let active = controller.active_namespaces().await?.len();
    assert!(active == geometries.len() || context.plan.changes, "{active} namespaces");
    let mut queues = Vec::new();
    for qid in 1..=controller.queues() {
        queues.push(Rc::new(Queue::connect(reactor, &controller.ticket(), qid).await?));
    }
    if chance.below(8) == 0 {
        let log = discover(reactor, context.address, options(number, plan).identity).await?;
        assert!(log.entries.iter().any(|entry| entry.socket_address() == Some(context.address)), "{log:?}");
    }
    let left = context.left[number].get();
    let session = Rc::new(Session {
        context: context.clone(),
        reactor: reactor.clone(),
        number,
        busy: Cell::new(0),
        left: Cell::new(if chance.below(3) == 0 { 1 + chance.below(u64::from(left)) as u32 } else { left }),
        leaving: Cell::new(false),
        aborts: Cell::new(false),
        unanswered: RefCell::default(),
    });
    let waiter = reactor.current_task();
    for queue in &queues {
        let volume = |geometry: &Geometry| (geometry.nsid as usize - 1, Volume::new(queue.clone(), *geometry));
        let volumes: Rc<[(usize, Volume)]> = geometries.iter().map(volume).collect();
        for _ in 0..plan.workers {
            let (here, volumes) = (session.clone(), volumes.clone());
            session.start(waiter, async move {
                let mut again = None;
                while here.step(&volumes, &mut again).await {}
            });
        }
    }
    if plan.chatter {
        let (here, controller) = (session.clone(), controller.clone());
        session.start(waiter, async move { here.chat(&controller).await });
    }
    let mut over = false;
    if chance.below(5) == 0 {
        // Goes in the middle of things: commands in flight are left to the target.
        reactor.sleep(chance.below(200 * MS)).await;
        session.leaving.set(true);
        if chance.below(2) == 0 {
            match reset(&controller, chance.below(2) == 0, plan.patience_ns.max(60_000 * MS)).await {
                Ok(()) => over = true,
                Err(error) => context.check_error(&error, false),
            }
        }
        for queue in &queues {
            queue.close().await;
        }
    }
    poll_fn(|_| if session.busy.get() == 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    match chance.below(4) {
        0 => {}
        1 => controller.close().await,
        _ => {
            for queue in &queues {
                queue.close().await;
            }
            drop(queues);
            let controller = Rc::into_inner(controller).expect("nobody else is at work");
            context.heed_losses();
            let flushes: Vec<Step> = context.models.iter().map(|model| model.begin(0, 0)).collect();
            let ended = controller.shut_down().await;
            context.heed_losses();
            for (flush, model) in flushes.iter().zip(&context.models) {
                if ended.is_ok() && context.plan.always_flushes() {
                    model.end_flush(flush);
                } else {
                    model.end_unheard(flush);
                }
            }
            match ended {
                Ok(()) => {
                    over = true;
                    context.forget_owed(|host| host == number);
                }
                Err(error) => context.check_error(&error, false),
            }
        }
    }
    if over {
        for (index, step) in session.unanswered.borrow_mut().drain(..) {
            context.model(index).resolve(&step);
        }
    }
    Ok(())
}

/// Resets the controller, and enables it again if asked. All its commands are over then.
async fn reset(controller: &Controller, enable: bool, limit_ns: u64) -> Result<(), HostError> {
    let reactor = controller.admin_queue().reactor();
    let enabled = controller.property_get(Property::CC, false).await? as u32;
    for (cc, ready) in [(enabled & !Cc::EN, false), (enabled, true)] {
        controller.property_set(Property::CC, cc).await?;
        let deadline = reactor.clock().now() + limit_ns;
        while Csts(controller.property_get(Property::CSTS, false).await? as u32).ready() != ready {
            assert!(reactor.clock().now() < deadline, "the controller does not become ready: {ready}");
            reactor.sleep(MS).await;
        }
        if !enable {
            break;
        }
    }
    Ok(())
}

impl Session {
    fn start(self: &Rc<Self>, waiter: reactor::reactor::TaskId, body: impl Future<Output = ()> + 'static) {
        self.busy.set(self.busy.get() + 1);
        let here = self.clone();
        self.reactor.spawn("host at work", async move {
            body.await;
            here.busy.set(here.busy.get() - 1);
            here.reactor.wake(waiter);
        });
    }

    fn goes_on(&self) -> bool {
        self.context.goes_on(self.number) && self.left.get() > 0 && !self.leaving.get()
    }

    /// Asks the controller for this and that.
    async fn chat(&self, controller: &Controller) {
        while self.goes_on() {
            self.reactor.sleep(self.reactor.entropy().below(30 * MS)).await;
            let answer = match self.reactor.entropy().below(7) {
                0 => controller.identify_namespace(1).await.map(drop),
                1 => controller.log(LogId::SMART, u32::MAX, 0, 512, true).await.map(drop),
                2 => controller.log(LogId::ERROR, u32::MAX, 0, 4096, true).await.map(drop),
                3 => self.abort_some(controller).await,
                5 => controller.log(LogId::CHANGED_NAMESPACES, u32::MAX, 0, 4096, false).await.map(drop),
                4 => controller.get_feature(FeatureId::NUMBER_OF_QUEUES, FeatureSelect::CURRENT).await.map(drop),
                _ => controller.property_get(Property::CSTS, false).await.map(drop),
            };
            if let Err(error) = answer {
                return self.context.check_error(&error, self.leaving.get());
            }
        }
    }

    /// Has commands aborted that may be in flight: those of one slot of a queue, whatever its generation.
    async fn abort_some(&self, controller: &Controller) -> Result<(), HostError> {
        let chance = self.reactor.entropy();
        self.aborts.set(true);
        let queue = 1 + chance.below(u64::from(controller.queues())) as u32;
        let slot = chance.below(8) as u32;
        for generation in 0..63 {
            let mut sqe = Sqe::admin(AdminOpcode::ABORT, 0);
            sqe.cdw10.set(queue | (generation << 10 | slot) << 16);
            let answer = controller.admin_queue().command(Command::new(sqe)).await?;
            let (status, result) = (answer.cqe.status(), answer.cqe.result.get());
            if !status.is_success() {
                return Err(HostError::Refused { what: "Abort", status, result });
            }
            // Bit 0: it was not aborted.
            if answer.cqe.dw0() & 1 == 0 {
                self.context.aborted.set(self.context.aborted.get() + 1);
            }
        }
        Ok(())
    }

    /// Does one random I/O, or reads what was written just now. Returns whether there is more to do.
    async fn step(&self, volumes: &[(usize, Volume)], written: &mut Option<(usize, u64, u64)>) -> bool {
        if !self.goes_on() {
            return false;
        }
        self.left.set(self.left.get() - 1);
        let left = &self.context.left[self.number];
        left.set(left.get() - 1);
        let chance = self.reactor.entropy();
        let (at, op, offset, len) = match written.take().filter(|_| chance.below(2) == 0) {
            Some((at, offset, len)) => (at, IoOp::Read, offset, len),
            None => {
                let at = chance.below(volumes.len() as u64) as usize;
                let op = self.choose(&volumes[at].1);
                let (offset, len) = self.range(&volumes[at].1, op);
                (at, op, offset, len)
            }
        };
        let (index, volume) = (volumes[at].0, &volumes[at].1);
        let model = self.context.model(index);
        *written = (op.writes() && len <= self.context.plan.len_max).then_some((at, offset, len));
        let fua = matches!(op, IoOp::Write | IoOp::WriteZeroes | IoOp::CompareAndWrite) && chance.below(4) == 0;
        // What a compare expects: what may be there, or sometimes surely not.
        let other = (chance.below(4) == 0 && len > 0).then(|| chance.below(len / 512));
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
        let begun = self.reactor.clock().now();
        let (status, back) = execute(&self.reactor, volume, op, (offset, len, fua), &data).await;
        let took_ns = self.reactor.clock().now() - begun;
        let seen = Seen { op, status, fua, took_ns, expected, sent: data, back };
        match self.judge(index, volume, &step, seen) {
            Ok(goes_on) => goes_on,
            Err(why) => panic!("volume {index}, {op:?} of {len} bytes at {offset}: {status:?}: {why}"),
        }
    }

    fn choose(&self, volume: &Volume) -> IoOp {
        let op = match self.reactor.entropy().below(100) {
            0..30 => IoOp::Read,
            30..34 => IoOp::Verify,
            34..68 => IoOp::Write,
            68..74 => IoOp::Flush,
            74..80 => IoOp::WriteZeroes,
            80..86 => IoOp::Unmap,
            86..92 => IoOp::Compare,
            _ => IoOp::CompareAndWrite,
        };
        if volume.geometry().ops.has(op) { op } else { IoOp::Write }
    }

    /// A range in whole blocks, as many of each magnitude.
    fn range(&self, volume: &Volume, op: IoOp) -> (u64, u64) {
        if op == IoOp::Flush {
            return (0, 0);
        }
        let (chance, plan, geometry) = (self.reactor.entropy(), &self.context.plan, volume.geometry());
        let block = 1 << geometry.block_shift;
        let space = if chance.below(2) == 0 { plan.crowd.min(geometry.size) } else { geometry.size };
        let most = match op {
            IoOp::CompareAndWrite => geometry.compare_and_write_max.min(plan.len_max / 2),
            IoOp::Unmap | IoOp::WriteZeroes | IoOp::Verify if chance.below(4) == 0 => geometry.size,
            _ => plan.len_max,
        };
        let most = most.min(space) / block;
        let magnitude = chance.below(u64::from(most.max(1).ilog2()) + 1);
        let len = ((1 << magnitude) + chance.below(1 << magnitude)).min(most.max(1));
        (chance.below(space / block - len + 1) * block, len * block)
    }

    /// Checks an answer and tells the model.
    fn judge(&self, index: usize, volume: &Volume, step: &Step, seen: Seen) -> Result<bool, String> {
        let (context, model) = (&self.context, self.context.model(index));
        let Seen { op, status, fua, took_ns, expected, sent, back } = seen;
        if !back.is_empty() && op != IoOp::Read && back != sent {
            return Err("the data that was sent is not what it was".to_owned());
        }
        *context.answers.borrow_mut().entry((op as u8, status as u8)).or_default() += 1;
        let ended = volume.queue().ended();
        match status {
            IoStatus::Success => {
                context.note((self.number, index), op, true, step)?;
                match op {
                    IoOp::Read => model.end_read(step, &back)?,
                    IoOp::Compare => model.end_read(step, &expected)?,
                    IoOp::Verify => model.end_unheard(step),
                    // One that was asked for before a loss, and came to the target when that had been told of for long enough.
                    IoOp::Flush if took_ns > 30_000 * MS && !model.is_after_loss(step) => model.end_unheard(step),
                    IoOp::Flush => model.end_flush(step),
                    _ => {
                        if op == IoOp::CompareAndWrite {
                            model.end_compare_and_write(step, &expected, true)?;
                        }
                        model.end_write(step, Ended::Done { durable: fua })?;
                    }
                }
                return Ok(true);
            }
            IoStatus::Miscompare if matches!(op, IoOp::Compare | IoOp::CompareAndWrite) => {
                model.end_miscompare(step, &expected)?;
                if op.writes() {
                    model.end_write(step, Ended::Untouched)?;
                }
                return Ok(true);
            }
            _ => {}
        }
        let lost = ended.filter(|_| matches!(status, IoStatus::Gone | IoStatus::DeviceError));
        let outcome = match lost {
            Some(reason) => {
                context.check_end(reason, self.leaving.get());
                if op.writes() {
                    self.unanswered.borrow_mut().push((index, *step));
                }
                Ended::Lost
            }
            None => {
                context.note((self.number, index), op, false, step)?;
                let plan = &context.plan.volumes[index];
                // A namespace identifier that is valid and not active: Invalid Field in Command (Base §3.2.1.3).
                let removed = status == IoStatus::Unsupported && context.plan.may_be_removed(index);
                let aborted = status == IoStatus::Aborted && self.aborts.get();
                let damaged = status == IoStatus::DeviceError && self.context.plan.flips();
                if !plan.may_fail(op, status, &context.plan) && !removed && !aborted && !damaged {
                    return Err(format!("nothing makes it fail so; queue ended: {ended:?}"));
                }
                let by_rule = !removed && !aborted && !damaged && plan.is_flawless(&context.plan);
                context.failed.set(context.failed.get() + u64::from(by_rule));
                if plan.refuses_whole(&context.plan) { Ended::Untouched } else { Ended::Perhaps }
            }
        };
        if op.writes() {
            model.end_write(step, outcome)?;
        } else {
            model.end_unheard(step);
        }
        Ok(lost.is_none())
    }
}

/// An I/O that has ended.
struct Seen {
    op: IoOp,
    status: IoStatus,
    fua: bool,
    took_ns: u64,
    /// Of a compare.
    expected: Vec<u8>,
    sent: Vec<u8>,
    /// The I/O's data afterwards.
    back: Vec<u8>,
}

/// Carries out an I/O with its data in one or several pieces; returns its status and data.
pub async fn execute(
    reactor: &Rc<Reactor>,
    volume: &Volume,
    op: IoOp,
    (offset, len, fua): (u64, u64, bool),
    data: &[u8],
) -> (IoStatus, Vec<u8>) {
    let total = op.data_len(len) as usize;
    let mut pieces = Vec::new();
    let mut done = 0;
    while done < total {
        let left = total - done;
        let part = match reactor.entropy().below(3) {
            0 if pieces.len() < 3 => 1 + reactor.entropy().below(left as u64) as usize,
            _ => left,
        };
        let mut buf = reactor.buffer(part).await;
        if data.is_empty() {
            buf.fill(0xa5)
        } else {
            buf.copy_from_slice(&data[done..done + part])
        }
        pieces.push(buf);
        done += part;
    }
    let mut io = reactor.create_io().expect("an I/O");
    io.prepare(op, offset, len);
    io.fua = fua;
    pieces.into_iter().for_each(|buf| io.data.push_buf(buf));
    let io = volume.execute(io).await;
    let status = io.status;
    let mut back = Vec::with_capacity(total);
    for segment in io.data.iter() {
        match segment {
            Segment::Buf(buf) => back.extend_from_slice(buf),
            Segment::Region { .. } => unreachable!("only buffers were given"),
            Segment::Request(_) => unreachable!("no kernel asks here"),
        }
    }
    reactor.retire_io(io);
    (status, back)
}

/// Reads all volumes, in pieces, for the models to see. `lasting`: no crash undoes what is found.
///
/// # Errors
/// What cannot be.
pub async fn inspect(reactor: Rc<Reactor>, context: Rc<Context>, lasting: bool) -> Result<(), String> {
    const PIECE: u64 = 128 << 10;
    let said = |error: HostError| error.to_string();
    let mut options = Options::new(NQN, Identity::from_uuid([0xee; 16]));
    options.kato_ms = 0;
    let controller = Controller::connect(&reactor, context.address, options).await.map_err(said)?;
    let queue = Rc::new(Queue::connect(&reactor, &controller.ticket(), 1).await.map_err(said)?);
    for (index, model) in context.models.iter().enumerate() {
        let volume = Volume::new(queue.clone(), controller.geometry(index as u32 + 1).await.map_err(said)?);
        for offset in (0..model.size()).step_by(PIECE as usize) {
            let len = PIECE.min(model.size() - offset);
            let (status, bytes) = execute(&reactor, &volume, IoOp::Read, (offset, len, false), &[]).await;
            if status != IoStatus::Success {
                return Err(format!("volume {index}: inspection at {offset}: {status:?}, {:?}", queue.ended()));
            }
            model.found(offset, &bytes, lasting).map_err(|why| format!("volume {index}: {why}"))?;
        }
    }
    queue.close().await;
    controller.shut_down().await.map_err(said)
}

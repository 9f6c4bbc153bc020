//! A command slot of a session: the life of one SCSI command, read from top to bottom in [`execute`].

mod answer;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Poll;

use hugepages::Buf;

use self::answer::{Answer, DataIn};
use super::conn::Conn;
use super::copy;
use super::home::{self, HOME, UnitKey};
use super::live::{Live, LunView};
use super::manage;
use crate::bdev::{Lent, Told};
use crate::iscsi::{Ahs, PREFIX_MAX, Ready, Residual, SUFFIX_MAX, ScsiCommand, TaskAttribute, TaskId, WriteProgress};
use crate::net::LEND_MIN;
use crate::reactor::io::{Io, Segment};
use crate::reactor::{Reactor, TaskId as TaskHandle};
use crate::scsi::disk::{Context, Disk, InDevice, Outcome};
use crate::scsi::spec::{Asc, Opcode, Sense, SenseKey, Status, lun_decode};
use crate::scsi::{self, Action, Admission, Cdb, DataOut, Media, QueueError, Request, Resources, UnitCommand, absent};

/// How long a command that holds data waits for memory for the rest of it, in nanoseconds: who holds some must not wait for others who do
/// the same. Its initiator is told to try again.
const HOLD_NS: u64 = 200_000_000;

/// Data of a command: what comes without being asked for, and what is asked for. They are apart, so that the one never waits for memory of
/// the other.
#[derive(Default)]
pub struct Pieces {
    /// From the begin on.
    pub head: Option<Buf>,
    /// What follows.
    pub body: Option<Buf>,
}

impl Pieces {
    /// Where the body begins.
    pub fn base(&self) -> usize {
        self.head.as_ref().map_or(0, Buf::len)
    }
}

/// A command slot.
pub struct Slot {
    task: Cell<TaskHandle>,
    work: Cell<Option<Ready>>,
    /// The command that it works on.
    command: Cell<Option<TaskId>>,
    /// Whose data it has.
    owner: Cell<Option<TaskId>>,
    pieces: RefCell<Pieces>,
    /// Bytes of the head, wherever that is.
    base: Cell<usize>,
    /// The logical unit that it works on, so that others may abort it.
    lun: RefCell<Option<Rc<LunView>>>,
    /// The units that a copy is between, which count as well.
    copies: RefCell<Vec<UnitKey>>,
    device: InDevice,
    aborted: Cell<bool>,
    /// It is answered with TASK ABORTED.
    tell_aborted: Cell<bool>,
}

impl Slot {
    /// A slot without a task yet.
    pub fn new() -> Slot {
        Slot {
            task: Cell::new(TaskHandle::NONE),
            work: Cell::new(None),
            command: Cell::new(None),
            owner: Cell::new(None),
            pieces: RefCell::default(),
            base: Cell::new(0),
            lun: RefCell::new(None),
            copies: RefCell::default(),
            device: InDevice::default(),
            aborted: Cell::new(false),
            tell_aborted: Cell::new(false),
        }
    }

    /// Has it begin with a command whose turn has come.
    #[inline]
    pub fn start(self: &Rc<Self>, live: &Rc<Live>, ready: Ready) {
        self.work.set(Some(ready));
        if self.task.get() == TaskHandle::NONE {
            self.task.set(live.reactor().spawn("iscsi command", run(live.clone(), self.clone())));
        } else {
            self.wake(live.reactor());
        }
    }

    /// Has its task look again.
    pub fn wake(&self, reactor: &Reactor) {
        reactor.wake(self.task.get());
    }

    /// From now on it has data of this command. What is left of one before, which was taken back before its turn came, goes.
    pub fn own(&self, task: TaskId) {
        if self.owner.replace(Some(task)) != Some(task) {
            self.pieces.take();
            self.base.set(0);
        }
    }

    /// Takes its data, to put more there.
    pub fn take_pieces(&self) -> Pieces {
        self.pieces.take()
    }

    /// A buffer for unsolicited data is somewhere.
    pub fn set_base(&self, base: usize) {
        self.base.set(base);
    }

    /// Gives data back that was taken. A body may have come meanwhile.
    pub fn put_back(&self, pieces: Pieces) {
        let mut here = self.pieces.borrow_mut();
        here.head = pieces.head;
        if pieces.body.is_some() {
            here.body = pieces.body;
        }
    }

    /// The command that it works on, if that is about a logical unit.
    pub fn working_on(&self, key: UnitKey) -> Option<TaskId> {
        let works = self.lun.borrow().as_ref().is_some_and(|lun| lun.key == key);
        self.command.get().filter(|_| works || self.copies.borrow().contains(&key))
    }

    /// It copies between these logical units; none: not any more.
    pub fn copies_between(&self, units: Vec<UnitKey>) {
        self.copies.replace(units);
    }

    /// Has its command end as soon as it can. `tell`: with TASK ABORTED, if anything is to be answered.
    pub fn abort(&self, reactor: &Reactor, tell: bool) {
        self.aborted.set(true);
        self.tell_aborted.set(self.tell_aborted.get() || tell);
        if let (Some(io), Some(lun)) = (self.device.slot(), &*self.lun.borrow()) {
            lun.disk().handle().abort(io);
        }
        self.wake(reactor);
    }

    async fn next(&self, live: &Live) -> Option<Ready> {
        std::future::poll_fn(|_| match self.work.take() {
            Some(ready) => Poll::Ready(Some(ready)),
            None if live.is_over() => Poll::Ready(None),
            None => Poll::Pending,
        })
        .await
    }

    fn reset(&self) {
        self.command.set(None);
        self.pieces.take();
        self.base.set(0);
        self.aborted.set(false);
        self.tell_aborted.set(false);
    }
}

/// The body of a slot's task: command after command until the session is over.
async fn run(live: Rc<Live>, slot: Rc<Slot>) {
    let mut spare = None;
    while let Some(ready) = slot.next(&live).await {
        let task = ready.task();
        slot.command.set(Some(task));
        slot.own(task);
        if let Some(conn) = live.conn_of(task) {
            match ready {
                Ready::Scsi(_) => spare = execute(&live, &conn, &slot, task, spare).await,
                Ready::Nop(_) => manage::nop(&live, &conn, task, slot.take_pieces()).await,
                Ready::Text(_) => manage::text(&live, &conn, task, slot.take_pieces()).await,
                Ready::Task(_) => manage::task_management(&live, &conn, task).await,
                Ready::Logout(_) => manage::logout(&live, &conn, task).await,
            }
        }
        // Unless its answer has ended it.
        live.engine().end(task);
        slot.reset();
        live.ended();
    }
    if let Some(io) = spare {
        live.reactor().retire_io(io);
    }
}

/// A command on its way through [`execute`].
pub struct Work<'a> {
    /// The session.
    pub live: &'a Rc<Live>,
    /// Where it came by and is answered.
    pub conn: &'a Rc<Conn>,
    /// Its slot.
    pub slot: &'a Rc<Slot>,
    /// Its number in the session.
    pub task: TaskId,
    /// It.
    pub command: ScsiCommand,
    /// How what moves differs from what was announced, as far as is known.
    residual: Cell<Residual>,
    /// The same for what a command in both directions was to read.
    unread: Residual,
    /// Bytes of memory for data that was asked for.
    reserved: Cell<usize>,
}

/// Carries out one command and answers it.
async fn execute(live: &Rc<Live>, conn: &Rc<Conn>, slot: &Rc<Slot>, task: TaskId, spare: Option<Io>) -> Option<Io> {
    let (command, both_ways) = live.engine().command(task).map(|(command, ahs)| (command, both_ways(&command, ahs)))?;
    let expected = if command.reads() { command.expected_len.get() } else { 0 };
    let residual = Cell::new(Residual::of(command.expected_len.get(), 0));
    let unread = Residual::of(both_ways.unwrap_or_default(), 0);
    let work = Work { live, conn, slot, task, command, residual, unread, reserved: Cell::new(0) };
    let Some(io) = spare.or_else(|| live.reactor().create_io()) else {
        // All I/Os of the reactor are taken: the initiator is told to try again.
        work.answer(Answer::Status(Status::BUSY), false).await;
        return None;
    };
    let lun = lun_decode(command.lun).and_then(|number| live.lun(number));
    let (mut io, answer) = match &lun {
        // No command of a disk moves data both ways.
        _ if both_ways.is_some() => (io, Sense::illegal(Asc::INVALID_INFORMATION_UNIT).into()),
        Some(lun) => work.of_unit(lun, io).await,
        None => (io, absent(&Cdb::new(&command.cdb), &live.lun_numbers()).into()),
    };
    io.data.clear();
    if work.reserved.get() > 0 {
        conn.tx.unreserve(work.reserved.get());
    }
    let mode = lun.as_ref().map(|lun| lun.gate().mode);
    if let (Answer::Check(_), Some(lun), Some(mode)) = (&answer, &lun, mode)
        && mode.queue_error != QueueError::Continue
    {
        work.abort_others(lun, mode.queue_error).await;
    }
    let answer = match answer {
        answer if slot.aborted.get() => {
            if let Answer::Good(DataIn::Buf(buf) | DataIn::Lent(Lent { spare: buf, .. })) = answer {
                conn.tx.drop_reserved(buf);
            }
            if slot.tell_aborted.get() { Answer::Status(Status::TASK_ABORTED) } else { Answer::None }
        }
        Answer::Good(data) => {
            if expected > 0 || data.len() > 0 {
                work.residual.set(Residual::of(expected, data.len()));
            }
            Answer::Good(data)
        }
        answer => answer,
    };
    work.answer(answer, mode.is_some_and(|mode| mode.descriptor_sense)).await;
    Some(io)
}

/// The bytes that a command in both directions is to read, beside those that it sends; `None` for one that moves data in one direction at most.
#[inline]
fn both_ways(command: &ScsiCommand, ahs: &[u8]) -> Option<u32> {
    if !(command.reads() && command.writes()) {
        return None;
    }
    let len = Ahs::read(ahs).ok().and_then(|ahs| ahs.bidi_read_len).unwrap_or(0);
    (command.expected_len.get() > 0 || len > 0).then_some(len)
}

impl Work<'_> {
    /// A command to a logical unit that is there.
    async fn of_unit(&self, lun: &Rc<LunView>, io: Io) -> (Io, Answer) {
        let attribute = self.command.attribute();
        if attribute == TaskAttribute::ACA {
            // No unit has NORMACA (SAM-5, task attributes).
            return (io, Sense::illegal(Asc::INVALID_MESSAGE).into());
        }
        let cdb = Cdb::new(&self.command.cdb);
        let disk = lun.disk();
        match lun.gate().admit(&cdb, disk.unit()) {
            Admission::Media(media, request) => self.media(lun, &disk, &media, &request, io).await,
            Admission::Good(data_out) => {
                let (residual, taken) = data_out.settle(self.announced().into(), disk.unit().block_size);
                if !self.command.reads() {
                    self.residual.set(told(residual));
                }
                (io, taken.map_or_else(Answer::from, |_| Answer::Good(DataIn::None)))
            }
            Admission::Check(sense) => (io, sense.into()),
            Admission::Conflict => (io, Answer::Status(Status::RESERVATION_CONFLICT)),
            Admission::Engine => self.at_home(lun, &disk, &cdb, io).await,
        }
    }

    /// A command that only the unit's home can decide.
    async fn at_home(&self, lun: &Rc<LunView>, disk: &Disk, cdb: &Cdb, mut io: Io) -> (Io, Answer) {
        let (tsih, key, cdb) = (self.live.tsih(), lun.key, *cdb);
        let reactor = self.live.reactor();
        let mut resources = Resources::default();
        if Resources::are_told_by(&cdb) {
            let (slot, told) = (self.slot, Cell::new(Told::new(0)));
            let context = Context { mode: lun.gate().mode, told: &told, slot: &slot.device, aborted: &slot.aborted };
            (io, resources) = disk.resources(&context, io).await;
        }
        let begin = move |home: &Rc<Reactor>| home::of(home).and_then(|h| h.begin(home, tsih, key, &cdb, resources));
        // What the home aborts after it has decided must find it, though the answer is still on its way.
        *self.slot.lun.borrow_mut() = Some(lun.clone());
        let action = reactor.call(HOME, begin).await;
        self.slot.lun.take();
        if self.slot.aborted.get() {
            return (io, Answer::None);
        }
        match action {
            None => (io, Sense::illegal(Asc::LUN_NOT_SUPPORTED).into()),
            Some(Action::Reply(reply)) => {
                if matches!(Opcode(cdb.opcode()), Opcode::RESERVE_6 | Opcode::RELEASE_6) {
                    reactor.call_task(HOME, move |home| home::fence(home, key)).await;
                }
                (io, reply.into())
            }
            Some(Action::Media(media, request)) => {
                let (io, answer) = self.media(lun, disk, &media, &request, io).await;
                if let (Media::StartStop { start, .. }, Answer::Good(_)) = (media, &answer) {
                    reactor.call_task(HOME, move |home| home::set_started(home, key, start)).await;
                }
                (io, answer)
            }
            Some(Action::List(command, len)) => {
                let (cached, answer) = (lun.gate().mode.write_cache, self.list(lun, command, len).await);
                match command {
                    UnitCommand::ModeSelect { .. } if cached && !lun.gate().mode.write_cache => {
                        self.flush(lun, disk, answer, io).await
                    }
                    _ => (io, answer),
                }
            }
        }
    }

    /// The volatile cache was switched off: what was answered before is as durable as what comes now when that is answered.
    async fn flush(&self, lun: &Rc<LunView>, disk: &Disk, answer: Answer, io: Io) -> (Io, Answer) {
        let whole = Media::SynchronizeCache { lba: 0, blocks: disk.unit().blocks };
        let (io, flushed) = self.carry_out(lun, disk, &whole, 0, io).await;
        (io, if matches!(flushed, Answer::Good(_)) { answer } else { flushed })
    }

    /// A command with a parameter list for the unit's home.
    async fn list(&self, lun: &Rc<LunView>, command: UnitCommand, len: u32) -> Answer {
        let (residual, taken) = DataOut::Parameters(len).settle(self.announced().into(), 512);
        self.residual.set(told(residual));
        // Until all of its list is here others may abort it.
        *self.slot.lun.borrow_mut() = Some(lun.clone());
        let data = match taken {
            Ok(len) => self.data_out(len as u32).await,
            Err(sense) => Err(sense.into()),
        };
        self.slot.lun.take();
        let pieces = match data {
            Ok(pieces) => pieces,
            Err(answer) => return answer,
        };
        let list: Vec<u8> = pieces.head.iter().chain(&pieces.body).flat_map(|buf| buf.iter().copied()).collect();
        let (tsih, key) = (self.live.tsih(), lun.key);
        let reply = self.live.reactor().call_task(HOME, move |home| home::finish(home, tsih, key, command, list)).await;
        reply.into()
    }

    /// A command on blocks.
    async fn media(
        &self,
        lun: &Rc<LunView>,
        disk: &Disk,
        media: &Media,
        request: &Request,
        mut io: Io,
    ) -> (Io, Answer) {
        let (residual, taken) = request.data_out.settle(self.announced().into(), disk.unit().block_size);
        self.residual.set(if self.command.reads() {
            Residual::of(self.command.expected_len.get(), 0)
        } else {
            told(residual)
        });
        let taken = match taken {
            Ok(taken) => taken as u32,
            Err(sense) => return (io, sense.into()),
        };
        let reads = match media {
            Media::Read { .. } if !disk.keeps_nothing() => request.data_in as usize,
            _ => 0,
        };
        // From here on others may abort it.
        *self.slot.lun.borrow_mut() = Some(lun.clone());
        let ordered = self.command.attribute() == TaskAttribute::ORDERED;
        if !lun.enter(ordered) {
            let may_go = std::future::poll_fn(|_| {
                if self.is_over() {
                    Poll::Ready(false)
                } else if lun.may_enter(self.live.reactor().current_task(), ordered) {
                    Poll::Ready(true)
                } else {
                    Poll::Pending
                }
            });
            if !may_go.await {
                lun.give_up(self.live.reactor());
                self.slot.lun.take();
                return (io, Answer::None);
            }
            // It may be the turn of the next one too.
            lun.wake_all(self.live.reactor());
        }
        if ordered {
            // Reads before it have ended, and what they lent must not change any more.
            self.live.flush_lent();
        }
        let mut reads = reads;
        let mut prepared = Ok(());
        if taken > 0 {
            prepared = self.data_out(taken).await.map(|pieces| {
                pieces.head.into_iter().chain(pieces.body).for_each(|buf| io.data.push_buf(buf));
            });
        } else if reads > 0 {
            match self.read_buffer(reads).await {
                Some(buf) => io.data.push_buf(buf),
                None => (reads, prepared) = (0, Err(Answer::None)),
            }
        }
        // Its data may have taken long: a reservation that was taken meanwhile holds for it, and so does a change of the target's units.
        if !lun.gate().grant.allows(request.access) {
            prepared = prepared.and(Err(Answer::Status(Status::RESERVATION_CONFLICT)));
        }
        if !self.live.lun(lun.lun).is_some_and(|now| Rc::ptr_eq(&now, lun)) {
            prepared = prepared.and(Err(Sense::illegal(Asc::LUN_NOT_SUPPORTED).into()));
        }
        let answer;
        (io, answer) = match prepared {
            Ok(()) => self.carry_out(lun, disk, media, request.data_in, io).await,
            Err(answer) => (io, answer),
        };
        self.slot.lun.take();
        lun.leave(self.live.reactor(), ordered);
        // Memory of a read that gives nothing; what is sent gives its own back.
        if reads > 0 && !matches!(answer, Answer::Good(DataIn::Buf(_) | DataIn::Lent(_))) {
            io.data.clear();
            self.conn.tx.unreserve(reads);
        }
        (io, answer)
    }

    async fn carry_out(&self, lun: &Rc<LunView>, disk: &Disk, media: &Media, data_in: u64, mut io: Io) -> (Io, Answer) {
        if let Some(lent) = self.lend(disk, media, &mut io) {
            return (io, Answer::Good(lent));
        }
        let tells = media.tells_of_losses();
        let heard = if tells { self.live.heard_of_losses(lun) } else { Told::new(0) };
        let told = Cell::new(heard);
        let slot = self.slot;
        let context = Context { mode: lun.gate().mode, told: &told, slot: &slot.device, aborted: &slot.aborted };
        let (mut io, outcome) = match media {
            Media::ExtendedCopy => copy::run(self, lun, &context, io).await,
            _ => disk.execute(media, &context, io).await,
        };
        if tells {
            self.live.tell_of_losses(lun, heard, told.get(), io.start);
        }
        let answer = match outcome {
            Outcome::Good => Answer::Good(match (media, io.data.pop()) {
                (Media::Read { .. }, None) => DataIn::Zeroes(data_in as u32),
                (_, Some(Segment::Buf(buf))) if data_in > 0 => match media {
                    Media::Read { .. } => DataIn::Buf(buf),
                    _ => DataIn::Bytes(buf.to_vec()),
                },
                _ => DataIn::None,
            }),
            Outcome::Check(sense) => Answer::Check(sense),
            Outcome::Aborted => Answer::None,
        };
        (io, answer)
    }

    /// The data of a long read of a device that lends it, to be sent from where it is. Nothing may be waited for until then.
    fn lend(&self, disk: &Disk, media: &Media, io: &mut Io) -> Option<DataIn> {
        let lends = io.data.single_buf().is_some_and(|spare| spare.len() >= LEND_MIN)
            // Of a digest it would be read twice, and may differ.
            && !self.conn.framing().data_digest
            // Commands behind it may write in this very turn.
            && self.command.attribute() != TaskAttribute::ORDERED
            && self.conn.tx.can_lend(3, PREFIX_MAX + SUFFIX_MAX);
        if lends { disk.lend(media, io).map(DataIn::Lent) } else { None }
    }

    /// Bytes that the initiator has announced to send.
    fn announced(&self) -> u32 {
        if self.command.writes() { self.command.expected_len.get() } else { 0 }
    }

    /// Whether nothing more is to be done for the command.
    fn is_over(&self) -> bool {
        self.slot.aborted.get() || self.live.engine().is_aborted(self.task)
    }

    /// The first `len` bytes of the command's data: those that came with it, and the rest by R2T.
    ///
    /// # Errors
    /// How the command ends without them.
    async fn data_out(&self, len: u32) -> Result<Pieces, Answer> {
        let slot = self.slot;
        let mut progress = self.live.engine().data_wanted(self.task, len);
        let more = (len as usize).saturating_sub(slot.base.get());
        if more > 0 && progress == WriteProgress::Complete {
            // A buffer for it would have whatever was in it before.
            return Err(Sense::new(SenseKey::HARDWARE_ERROR, Asc::INTERNAL_FAILURE).into());
        }
        if more > 0 {
            self.reserve(more).await?;
            let buf = self.unless_over(self.live.reactor().buffer(more)).await.ok_or(Answer::None)?;
            slot.pieces.borrow_mut().body = Some(buf);
            progress = self.live.engine().write_progress(self.task).unwrap_or(progress);
        }
        let mut long = 0;
        let waits = progress != WriteProgress::Complete;
        if waits {
            self.conn.tx.expect_peer();
        }
        let result = loop {
            if self.is_over() {
                break Err(Answer::None);
            }
            match progress {
                WriteProgress::Complete => break Ok(()),
                WriteProgress::Failed(fault) => {
                    let (key, asc, ascq) = fault.sense();
                    break Err(Sense::new(SenseKey(key), Asc(u16::from_be_bytes([asc, ascq]))).into());
                }
                WriteProgress::Ask => {
                    let asked = self.conn.send_header(|| {
                        let (header, _, len) = self.live.engine().next_r2t(self.task, u32::MAX)?;
                        self.conn.asks(len);
                        long += u32::from(len as usize >= super::conn::DIRECT_MIN);
                        Some(header)
                    });
                    if asked.await.is_err() {
                        break Err(Answer::None);
                    }
                }
                WriteProgress::Arriving => {
                    std::future::poll_fn(|_| {
                        let moved = self.live.engine().write_progress(self.task) != Some(WriteProgress::Arriving);
                        if moved || self.is_over() { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
            }
            progress = self.live.engine().write_progress(self.task).unwrap_or(WriteProgress::Arriving);
        };
        if waits {
            self.conn.tx.peer_acted();
        }
        self.conn.asked(long);
        result?;
        let mut pieces = slot.take_pieces();
        if let Some(head) = &mut pieces.head {
            head.truncate(len as usize);
        }
        let rest = (len as usize).saturating_sub(pieces.base());
        if let Some(body) = &mut pieces.body {
            body.truncate(rest);
        }
        if pieces.body.as_ref().map_or(0, Buf::len) < rest {
            return Err(Sense::new(SenseKey::HARDWARE_ERROR, Asc::INTERNAL_FAILURE).into());
        }
        Ok(pieces)
    }

    /// Waits until memory for so many bytes may be in use. Who holds data does not wait for long.
    ///
    /// # Errors
    /// How the command ends without it.
    async fn reserve(&self, len: usize) -> Result<(), Answer> {
        let mut room = std::pin::pin!(self.conn.tx.reserve(len));
        let mut time_up = std::pin::pin!(async {
            // Unsolicited data may come while it waits.
            std::future::poll_fn(|_| if self.slot.base.get() > 0 { Poll::Ready(()) } else { Poll::Pending }).await;
            self.live.reactor().sleep(HOLD_NS).await;
        });
        std::future::poll_fn(|cx| {
            if self.is_over() {
                return Poll::Ready(Err(Answer::None));
            }
            match room.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Ok(())),
                Poll::Pending => time_up.as_mut().poll(cx).map(|()| Err(Answer::Status(Status::BUSY))),
            }
        })
        .await?;
        self.reserved.set(self.reserved.get() + len);
        Ok(())
    }

    /// Memory for what a read gives, reserved; `None` if the command is aborted before there is any.
    async fn read_buffer(&self, len: usize) -> Option<Buf> {
        self.unless_over(self.conn.tx.reserve(len)).await?;
        let buf = self.unless_over(self.live.reactor().buffer(len)).await;
        if buf.is_none() {
            self.conn.tx.unreserve(len);
        }
        buf
    }

    /// What a future gives, if the command is not aborted before.
    async fn unless_over<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if self.is_over() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Ends the other commands that a CHECK CONDITION ends.
    async fn abort_others(&self, lun: &LunView, whose: QueueError) {
        let (tsih, key, task) = (self.live.tsih(), lun.key, self.task);
        let all = whose == QueueError::AbortAll;
        self.live.reactor().call_task(HOME, move |home| home::abort_after_error(home, tsih, key, task, all)).await;
    }
}

/// A residual as the transport has it.
fn told(residual: scsi::Residual) -> Residual {
    let clamp = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    match residual {
        scsi::Residual::None => Residual::None,
        scsi::Residual::Under(n) => Residual::Underflow(clamp(n)),
        scsi::Residual::Over(n) => Residual::Overflow(clamp(n)),
    }
}

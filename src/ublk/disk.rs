//! One device, /dev/ublkbN: its life from create to close, driven from a control thread.
//!
//! ```text
//!   create   ADD_DEV, SET_PARAMS           or, for a device that survived its server, START_USER_RECOVERY
//!   start    queues on their reactors, each tag fetching; START_DEV, or END_USER_RECOVERY
//!   stop     STOP_DEV: the disk is gone, tags end, queues go        or leave: no server, the disk waits for the next
//!   close    the character device is closed; DEL_DEV
//! ```
//! Each step may be called again, and does what is left of it to do. Nothing but the end of the disk, or of this process, takes back
//! what tags have fetched before a recovery has come to its end: a start that fails keeps its queues, and the next one goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

use super::control::{Control, SERVER_DIES_NS};
use super::door::DoorError;
use super::holders::{self, Use};
use super::left;
use super::params;
use super::queue::{self, Queue, QueueOptions, Travel};
use super::recovery::Mark;
use super::wire::{DevInfo, Features};
use crate::bdev::{BlockDevice, Unaddressed};
use crate::reactor::mailbox::Remote;
use crate::sys::tsc::monotonic_ns;
use crate::sys::ublk::Requests;

/// What a queue has to end once the kernel has cancelled its commands, in nanoseconds.
const QUEUES_END_NS: u64 = 5_000_000_000;

/// What zero copy takes, beside user copy for what cannot go that way.
const ZERO_COPY: Features = Features(Features::SUPPORT_ZERO_COPY.0 | Features::AUTO_BUF_REG.0);
/// A reactor that is not stuck answers within this.
const ANSWER: Duration = Duration::from_secs(1);
/// How often such things are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// What requests in flight have to end before a device is left to the next server, in nanoseconds.
const LEAVE_NS: u64 = 5_000_000_000;
/// How long the kernel looks for a tag that waits, each time that it is asked to quiesce a device.
const QUIESCE: Duration = Duration::from_millis(100);

/// How the data of requests is to travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// The best that the kernel offers.
    #[default]
    Auto,
    /// The kernel's pages are used where they are.
    ZeroCopy,
    /// This server copies between requests and its own memory.
    UserCopy,
    /// The kernel copies to and from this server's buffers.
    Copy,
}

/// What a device is made from.
#[derive(Clone)]
pub struct Options {
    /// Its name: that of the volume.
    pub name: String,
    /// The volume.
    pub device: Arc<dyn BlockDevice>,
    /// What keeps its bytes, part of its [`Identity`](super::Identity); may be empty.
    pub backing: String,
    /// The number N of /dev/ublkbN; `None`: one that is free.
    pub id: Option<u32>,
    /// Queues; the kernel grants at most one for each processor.
    pub queues: u16,
    /// Commands in flight on each.
    pub depth: u16,
    /// How data travels.
    pub mode: Mode,
    /// The device outlives its server and waits for the next, unless the volume's contents end with the process.
    pub recover: bool,
    /// Writes are refused.
    pub read_only: bool,
}

/// A reactor and the core it runs on.
#[derive(Clone, Debug)]
pub struct Place {
    /// The reactor.
    pub remote: Remote,
    /// Its core.
    pub core: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Known to the kernel, without a server and without a disk.
    Created,
    /// Its disk waits for a server.
    Recovering,
    Started,
    Stopped,
    Closed,
}

/// See the module's head.
pub struct Disk {
    options: Options,
    info: DevInfo,
    stage: Stage,
    leaving: Arc<AtomicBool>,
    faults: Option<Receiver<String>>,
    /// The reactors, once there are queues.
    places: Vec<Place>,
    /// A start that has not come to its end.
    starting: Option<Starting>,
}

/// What a start has done so far.
struct Starting {
    requests: Requests,
    faults: Sender<String>,
    /// Queues of each reactor.
    load: Vec<usize>,
    /// Queues that are open, the first of all.
    opened: u16,
    /// What a queue has told: it does not come to life any more.
    broken: Option<String>,
}

impl Disk {
    fn new(options: Options, info: DevInfo, stage: Stage) -> Disk {
        Disk { options, info, stage, leaving: Arc::default(), faults: None, places: Vec::new(), starting: None }
    }

    /// Has the kernel make a device, which says by its mark whose it is.
    ///
    /// # Errors
    /// What the kernel says; nothing is left then.
    pub(super) fn create(control: &mut Control, mut options: Options, mark: Mark) -> Result<Disk, DoorError> {
        options.recover &= !options.device.common().traits().ephemeral;
        let wanted = DevInfo {
            nr_hw_queues: options.queues,
            queue_depth: options.depth,
            max_io_buf_bytes: params::IO_MAX,
            dev_id: options.id.unwrap_or(u32::MAX),
            flags: flags(control.features(), &options)?,
            ublksrv_flags: mark.to_bits(),
            ..DevInfo::default()
        };
        let info = control.add(&wanted)?;
        let mut disk = Disk::new(options, info, Stage::Created);
        let params = params::of(disk.options.device.common(), disk.options.read_only);
        if let Err(error) = control.set_params(info.dev_id, &params) {
            // The first error is the one to tell.
            let _ = disk.close(control);
            return Err(error.into());
        }
        Ok(disk)
    }

    /// Takes over a device whose server has gone. Queues and depth are those that it has.
    ///
    /// # Errors
    /// What the kernel says; the device is as it was.
    pub fn recover(control: &mut Control, options: Options, info: DevInfo) -> Result<Disk, DoorError> {
        let disk = Disk::new(options, info, Stage::Recovering);
        let end = monotonic_ns() + SERVER_DIES_NS;
        loop {
            match control.start_recovery(info.dev_id) {
                Ok(()) => return Ok(disk),
                // The kernel still clears up after its last server.
                Err(error)
                    if error.errno() == Some(libc::EBUSY)
                        && !left::serves(info.dev_id, info.ublksrv_pid)
                        && monotonic_ns() < end =>
                {
                    std::thread::park_timeout(LOOK);
                }
                Err(error) if error.errno() == Some(libc::EBUSY) => {
                    let why = format!("process {} still serves it", info.ublksrv_pid);
                    return Err(disk.refused(why));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The number N of /dev/ublkbN.
    pub fn id(&self) -> u32 {
        self.info.dev_id
    }

    /// What it was made from.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What the kernel granted.
    pub fn info(&self) -> &DevInfo {
        &self.info
    }

    /// Brings the disk up: queues on their reactors, then /dev/ublkbN. After an error it may be called again, and goes on with what is
    /// left to do; or [`Disk::close`] is.
    ///
    /// # Errors
    /// What a reactor or the kernel says.
    pub fn start(&mut self, control: &mut Control, places: &[Place]) -> Result<(), DoorError> {
        let recovering = match self.stage {
            Stage::Created => false,
            Stage::Recovering => true,
            Stage::Started => return Ok(()),
            Stage::Stopped | Stage::Closed => return Err(self.refused("it was stopped".to_owned())),
        };
        let id = self.id();
        let mut starting = match self.starting.take() {
            Some(starting) => starting,
            None => self.begin(places)?,
        };
        let begun = self.open_queues(control, &mut starting);
        self.starting = Some(starting);
        begun?;
        let pid = std::process::id();
        let started = if recovering { control.end_recovery(id, pid) } else { control.start(id, pid) };
        started.map_err(|error| match self.fault() {
            Some(fault) => self.refused(fault),
            None => error.into(),
        })?;
        // The queues keep the device open, and say by their end of the channel that they have ended.
        self.starting = None;
        self.stage = Stage::Started;
        Ok(())
    }

    fn begin(&mut self, places: &[Place]) -> Result<Starting, DoorError> {
        let id = self.id();
        let device = super::control::open_char(id).map_err(|error| {
            self.refused(format!("/dev/ublkc{id} cannot be opened: {error}; another server may have it"))
        })?;
        let (faults, told) = mpsc::channel();
        self.faults = Some(told);
        self.places = places.to_vec();
        Ok(Starting { requests: Requests::new(device), faults, load: vec![0; places.len()], opened: 0, broken: None })
    }

    /// Opens the queues that are not open yet, and waits until their tags fetch.
    fn open_queues(&self, control: &mut Control, starting: &mut Starting) -> Result<(), DoorError> {
        let (id, places) = (self.id(), &self.places);
        for number in starting.opened..self.info.nr_hw_queues {
            let cores = control.queue_affinity(id, number)?;
            let at = choose(places, &cores, &starting.load);
            let options = QueueOptions {
                device: self.options.device.clone(),
                device_number: id,
                requests: starting.requests.clone(),
                number,
                depth: self.info.queue_depth,
                travel: self.travel(),
                read_only: self.options.read_only,
                leaving: self.leaving.clone(),
                faults: starting.faults.clone(),
            };
            let opened = places[at].remote.ask(move |reactor| Queue::open(reactor, options));
            opened.ok_or(DoorError::Ended)?.map_err(|why| self.refused(why))?;
            starting.load[at] += 1;
            starting.opened += 1;
        }
        // A turn later what the kernel refuses has been told.
        for place in places {
            place.remote.ask(|_| ()).ok_or(DoorError::Ended)?;
            place.remote.ask(|_| ()).ok_or(DoorError::Ended)?;
        }
        starting.broken = starting.broken.take().or_else(|| self.fault());
        starting.broken.clone().map_or(Ok(()), |fault| Err(self.refused(fault)))
    }

    /// Whether queues run, though the disk is not up: their commands end with the disk, or with this process.
    pub fn is_half_started(&self) -> bool {
        self.starting.as_ref().is_some_and(|starting| starting.opened > 0)
    }

    /// Tells the kernel the volume's size, which has grown.
    ///
    /// # Errors
    /// If the kernel cannot change the size of a device (before Linux 6.16).
    pub fn resize(&mut self, control: &mut Control) -> Result<(), DoorError> {
        if !control.features().has(Features::UPDATE_SIZE) {
            return Err(self.refused(
                "this kernel cannot change the size of a ublk device: it grows with the next start of a device that nobody uses"
                    .to_owned(),
            ));
        }
        let sectors = self.options.device.common().size() / params::SECTOR;
        Ok(control.resize(self.id(), sectors)?)
    }

    /// Whether the volume is larger than the kernel knows.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn has_grown(&self, control: &mut Control) -> Result<bool, DoorError> {
        let known = control.params(self.id())?.basic.dev_sectors;
        Ok(known < self.options.device.common().size() / params::SECTOR)
    }

    /// Whether nobody uses the disk; then it is stopped at once where the kernel can tell, so that nobody comes in between.
    ///
    /// # Errors
    /// As [`Disk::stop`].
    pub fn is_free(&mut self, control: &mut Control) -> Result<bool, DoorError> {
        if matches!(self.stage, Stage::Stopped | Stage::Closed) {
            return Ok(true);
        }
        let found = holders::stop_if_free(control, self.id())?;
        if found == Use::Stopped {
            self.end_queues()?;
        }
        Ok(found != Use::Held)
    }

    /// Ends the service, and leaves the disk to the next server: requests wait for it. Kernels before Linux 6.16 notice that the
    /// service has ended when this process has, and so do all of one that was not started to its end.
    ///
    /// # Errors
    /// What the kernel says, or that requests in flight do not end.
    pub fn leave(&mut self, control: &mut Control) -> Result<(), DoorError> {
        if self.stage != Stage::Started {
            return Ok(());
        }
        // A commit after the kernel has quiesced the device would wait for ever, so what was begun ends before.
        self.hold();
        let end = monotonic_ns() + LEAVE_NS;
        while self.working()? > 0 {
            if monotonic_ns() > end {
                return Err(
                    self.refused(format!("requests in flight have not ended within {} s", LEAVE_NS / 1_000_000_000))
                );
            }
            std::thread::park_timeout(LOOK);
        }
        // The turn that ended the last one has handed its commit over.
        self.working()?;
        if !self.info.flags.has(Features::QUIESCE) {
            return Ok(());
        }
        // One look of the kernel may miss a command whose request it is just taking back, and answers EBUSY if no tag waits: asked
        // again, it finds the others, until all have ended.
        while !self.has_ended() && monotonic_ns() < end {
            match control.quiesce(self.id(), QUIESCE) {
                Err(error) if error.errno() != Some(libc::EBUSY) => return Err(error.into()),
                _ => std::thread::park_timeout(LOOK),
            }
        }
        self.end_queues()
    }

    /// Requests that come from now on are not begun.
    pub fn hold(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Takes the disk away; who has it open gets errors from now on.
    ///
    /// # Errors
    /// What the kernel says, or that a queue does not end.
    pub fn stop(&mut self, control: &mut Control) -> Result<(), DoorError> {
        if matches!(self.stage, Stage::Stopped | Stage::Closed) {
            return Ok(());
        }
        match control.stop(self.id()) {
            Err(error) if error.errno() != Some(libc::ENODEV) => return Err(error.into()),
            _ => {}
        }
        self.end_queues()
    }

    /// Requests that reactors have in hand.
    fn working(&self) -> Result<usize, DoorError> {
        let id = self.id();
        let ask = |place: &Place| {
            let answer = place.remote.ask_within(ANSWER, move |reactor| queue::working(reactor, id));
            answer.ok_or_else(|| self.refused(format!("reactor {} does not answer", place.remote.id())))
        };
        self.places.iter().map(ask).sum()
    }

    /// Whether all queues have ended.
    fn has_ended(&self) -> bool {
        self.faults.as_ref().is_none_or(|faults| matches!(faults.try_recv(), Err(TryRecvError::Disconnected)))
    }

    fn end_queues(&mut self) -> Result<(), DoorError> {
        // What it holds would keep the channel and the device open.
        self.starting = None;
        let end = monotonic_ns() + QUEUES_END_NS;
        while let Some(faults) = &self.faults {
            match faults.recv_timeout(Duration::from_nanos(end.saturating_sub(monotonic_ns()))) {
                // The queue has logged it.
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => self.faults = None,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(
                        self.refused(format!("its queues have not ended within {} s", QUEUES_END_NS / 1_000_000_000))
                    );
                }
            }
        }
        self.stage = Stage::Stopped;
        Ok(())
    }

    /// Deletes the device.
    ///
    /// # Errors
    /// As [`Disk::stop`].
    pub fn close(&mut self, control: &mut Control) -> Result<(), DoorError> {
        if self.stage == Stage::Closed {
            return Ok(());
        }
        self.stop(control)?;
        match control.delete(self.id()) {
            Err(error) if error.errno() != Some(libc::ENODEV) => return Err(error.into()),
            Ok(false) => {
                tracing::warn!("/dev/ublkb{} is still open somewhere: it is gone when that is closed", self.id())
            }
            _ => {}
        }
        self.stage = Stage::Closed;
        Ok(())
    }

    /// What a queue has told and nobody has heard yet.
    pub fn fault(&self) -> Option<String> {
        self.faults.as_ref()?.try_recv().ok()
    }

    fn travel(&self) -> Travel {
        let flags = self.info.flags;
        match flags.has(Features::USER_COPY) {
            true if flags.has(ZERO_COPY) => Travel::InPlace,
            true => Travel::ByServer,
            false => Travel::ByKernel,
        }
    }

    fn refused(&self, why: String) -> DoorError {
        DoorError::Disk { name: self.options.name.clone(), id: self.id(), why }
    }
}

/// The features to ask for.
fn flags(offered: Features, options: &Options) -> Result<Features, DoorError> {
    let mut flags = Features::CMD_IOCTL_ENCODE.0;
    let user_copy = match options.mode {
        Mode::Auto => offered.has(Features::USER_COPY),
        Mode::ZeroCopy => true,
        Mode::UserCopy if !offered.has(Features::USER_COPY) => {
            return Err(DoorError::Mode { name: options.name.clone(), mode: "user-copy" });
        }
        Mode::UserCopy => true,
        Mode::Copy => false,
    };
    flags |= if user_copy { Features::USER_COPY.0 } else { Features::NEED_GET_DATA.0 };
    let zero_copy = Features(ZERO_COPY.0 | Features::USER_COPY.0);
    let passes = options.device.common().traits().unaddressed == Unaddressed::Passes;
    match options.mode {
        Mode::ZeroCopy if !offered.has(zero_copy) => {
            return Err(DoorError::Mode { name: options.name.clone(), mode: "zero-copy" });
        }
        Mode::ZeroCopy if !passes => {
            return Err(DoorError::Bytes { name: options.name.clone() });
        }
        Mode::Auto | Mode::ZeroCopy if passes && offered.has(zero_copy) => flags |= zero_copy.0,
        _ => {}
    }
    if options.recover {
        flags |= Features::USER_RECOVERY.0 | Features::USER_RECOVERY_REISSUE.0;
        flags |= Features::QUIESCE.0 & offered.0;
    }
    Ok(Features(flags))
}

/// The reactor for a queue whose requests come from `cores`: one that runs on such a core, or else any; among these the one with
/// the fewest queues.
fn choose(places: &[Place], cores: &[usize], load: &[usize]) -> usize {
    let near = (0..places.len()).filter(|&at| cores.contains(&places[at].core)).min_by_key(|&at| load[at]);
    near.or_else(|| (0..places.len()).min_by_key(|&at| load[at])).expect("a process has a reactor")
}

//! A remote controller: its admin queue and what is asked over it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::Poll;

use hugepages::{Buf, MAX_BUF};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::command::{Answer, Command, TimeLimit};
use super::queue::{Queue, R2T_MAX, SLOTS_MAX};
use super::{Ended, HostError};
use crate::nvme::io::{Geometry, Identified, is_for_now, transfer_max};
use crate::nvme::spec::{
    AdminOpcode, AsyncEventResult, CATTR_DISABLE_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, Cap, Cc, Cns, ConnectCmd,
    ConnectData, ControllerType, Csi, Csts, FeatureFields, FeatureId, FeatureSelect, GetLogFields, IDENTIFY_LEN,
    IdentifyController, IdentifyControllerNvm, IdentifyFields, IdentifyNamespace, LogId, NAMESPACE_LIST_MAX, Property,
    PropertyGetCmd, PropertySetCmd, QueueCounts, Sqe, async_event_config, namespace_list, put_text,
};
use crate::reactor::clock::Entropy;
use crate::reactor::{Reactor, TaskId};

/// Entries of an admin queue: the least that a controller must offer (Base §5.16.1.23, ASQSZ).
const ADMIN_QUEUE_SIZE: u16 = 32;

/// CC of an enabled controller: NVM command set, 4 KiB pages, round robin, entries of 64 and 16 bytes (Base §3.1.3.5).
const CC_ENABLED: u32 = Cc::enable(0, 0).0;

/// Between two looks at CSTS, in nanoseconds.
const CSTS_POLL_NS: u64 = 1_000_000;
/// Time for a shutdown where RTD3E states none, in milliseconds.
const SHUTDOWN_MS: u64 = 10_000;
/// Bytes of a log page read by one command.
const LOG_PIECE: usize = 64 * 1024;

/// Who the host says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Host NQN.
    pub nqn: String,
    /// Host identifier, not 0.
    pub id: [u8; 16],
}

impl Identity {
    /// The identity that a UUID gives (Base §4.5).
    pub fn from_uuid(id: [u8; 16]) -> Identity {
        Identity { nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid::Uuid::from_bytes(id)), id }
    }

    /// A new identity, for a tool that keeps none.
    pub fn random(entropy: &Entropy) -> Identity {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&entropy.next().to_le_bytes());
        id[8..].copy_from_slice(&entropy.next().to_le_bytes());
        Identity::from_uuid(*uuid::Builder::from_random_bytes(id).as_uuid().as_bytes())
    }
}

/// How to connect to a subsystem.
#[derive(Clone, Debug)]
pub struct Options {
    /// Subsystem NQN.
    pub subnqn: String,
    /// Who this host is.
    pub identity: Identity,
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// Alignment of received data in dwords, zero's-based, 0 to 31.
    pub hpda_z: u8,
    /// Outstanding R2Ts per command allowed, 1 to 4.
    pub max_r2t: u8,
    /// Ask to do without submission queue flow control on I/O queues.
    pub disable_sqflow: bool,
    /// Keep alive timeout in milliseconds; 0: none. A command is sent every half of it.
    pub kato_ms: u32,
    /// I/O queues to ask for.
    pub queues: u16,
    /// Entries of each I/O queue; one fewer commands are in flight. The controller may allow fewer.
    pub queue_size: u16,
    /// Ask for asynchronous events: [`Controller::next_event`].
    pub events: bool,
    /// Time for TCP and ICResp in nanoseconds.
    pub connect_timeout_ns: u64,
    /// Time for the answer to a command in nanoseconds. An overdue command ends its connection.
    pub command_timeout_ns: u64,
}

impl Options {
    /// Connect to `subnqn` with one queue of 128 entries, no digests, a keep alive timeout of 5 s.
    pub fn new(subnqn: &str, identity: Identity) -> Options {
        Options {
            subnqn: subnqn.to_owned(),
            identity,
            header_digest: false,
            data_digest: false,
            hpda_z: 0,
            max_r2t: R2T_MAX as u8,
            disable_sqflow: false,
            kato_ms: 5_000,
            queues: 1,
            queue_size: 128,
            events: false,
            connect_timeout_ns: 10_000_000_000,
            command_timeout_ns: 30_000_000_000,
        }
    }
}

/// All it takes to connect an I/O queue of a controller, on any reactor.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// Where the controller listens.
    pub address: SocketAddr,
    /// As the controller was connected with.
    pub options: Options,
    /// Controller identifier.
    pub cntlid: u16,
    /// I/O queues granted: queue identifiers 1 to this.
    pub queues: u16,
    /// Entries of an I/O queue.
    pub queue_size: u16,
    /// Most in-capsule data on an I/O queue in bytes.
    pub in_capsule_max: u32,
}

/// The Connect command of queue `qid`. `data` has the length of [`ConnectData`].
pub(super) fn connect_command(ticket: &Ticket, qid: u16, mut data: Buf) -> Command {
    let options = &ticket.options;
    let mut content = ConnectData::new_zeroed();
    content.hostid = options.identity.id;
    content.cntlid.set(ticket.cntlid);
    put_text(&mut content.subnqn, &options.subnqn, 0);
    put_text(&mut content.hostnqn, &options.identity.nqn, 0);
    data.copy_from_slice(content.as_bytes());
    let (size, kato_ms) = if qid == 0 { (ADMIN_QUEUE_SIZE, options.kato_ms) } else { (ticket.queue_size, 0) };
    // The admin queue keeps flow control: its commands are few.
    let cattr = if options.disable_sqflow && qid != 0 { CATTR_DISABLE_SQ_FLOW_CONTROL } else { 0 };
    Command::new(ConnectCmd::new(qid, size - 1, cattr, kato_ms).to_sqe()).sending(data)
}

/// Events that arrived and were not asked for yet.
#[derive(Default)]
struct Events {
    arrived: RefCell<VecDeque<AsyncEventResult>>,
    ended: Cell<bool>,
    waiter: Cell<Option<TaskId>>,
}

/// A connected and enabled controller. Dropping it closes the admin queue; [`Controller::shut_down`] ends it in order.
pub struct Controller {
    admin: Rc<Queue>,
    ticket: Ticket,
    cap: Cap,
    identify: Box<IdentifyController>,
    events: Rc<Events>,
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.admin.abandon();
    }
}

impl Controller {
    /// Connects and enables a controller, identifies it, and agrees on the number of I/O queues.
    ///
    /// # Errors
    /// No connection, a broken protocol, or what the controller says to one of the commands.
    pub async fn connect(
        reactor: &Rc<Reactor>,
        address: SocketAddr,
        options: Options,
    ) -> Result<Controller, HostError> {
        let admin = Rc::new(Queue::open(reactor, address, &options, ADMIN_QUEUE_SIZE).await?);
        let ticket = Ticket { address, options, cntlid: CNTLID_DYNAMIC, queues: 0, queue_size: 2, in_capsule_max: 0 };
        let mut this = Controller {
            admin,
            ticket,
            cap: Cap::default(),
            identify: Box::new(IdentifyController::new_zeroed()),
            events: Rc::default(),
        };
        let data = reactor.buffer(size_of::<ConnectData>()).await;
        let answer = this.admin.enter(connect_command(&this.ticket, 0, data)).await?;
        this.ticket.cntlid = answer.cqe.dw0() as u16;
        this.cap = Cap(this.property_get(Property::CAP, true).await?);
        this.property_set(Property::CC, CC_ENABLED).await?;
        this.wait_for("ready", u64::from(this.cap.to()) * 500, |csts| csts.ready()).await?;
        let identify = this.identify(Cns::CONTROLLER, 0).await?;
        this.identify.as_mut_bytes().copy_from_slice(&identify);
        drop(identify);
        if this.ticket.options.kato_ms != 0 {
            this.keep_alive();
        }
        if this.ticket.options.events {
            this.start_events().await?;
        }
        if this.identify.cntrltype != ControllerType::DISCOVERY {
            this.settle_queues().await?;
        }
        Ok(this)
    }

    async fn settle_queues(&mut self) -> Result<(), HostError> {
        let asked = self.ticket.options.queues.max(1);
        let granted = self.set_feature(FeatureId::NUMBER_OF_QUEUES, QueueCounts::pairs(asked).to_dword()).await?;
        self.ticket.queues = QueueCounts::of(granted).usable().min(u32::from(asked)) as u16;
        let mut size = u32::from(self.ticket.options.queue_size).min(u32::from(self.cap.mqes_z()) + 1);
        if self.identify.maxcmd.get() != 0 {
            size = size.min(u32::from(self.identify.maxcmd.get()) + 1);
        }
        self.ticket.queue_size = size.clamp(2, u32::from(SLOTS_MAX)) as u16;
        // An offset of in-capsule data is not for TCP (TCP §3.2); who has one gets no in-capsule data.
        let capsule = self.identify.ioccsz_16b.get().saturating_mul(16);
        self.ticket.in_capsule_max =
            if self.identify.icdoff_16b.get() == 0 { capsule.saturating_sub(size_of::<Sqe>() as u32) } else { 0 };
        Ok(())
    }

    // --- what it is ---

    /// The Identify Controller data structure.
    pub fn identity(&self) -> &IdentifyController {
        &self.identify
    }

    /// Controller Capabilities.
    pub fn cap(&self) -> Cap {
        self.cap
    }

    /// Controller identifier.
    pub fn cntlid(&self) -> u16 {
        self.ticket.cntlid
    }

    /// I/O queues granted.
    pub fn queues(&self) -> u16 {
        self.ticket.queues
    }

    /// What [`Queue::connect`] needs, on this or another reactor.
    pub fn ticket(&self) -> Ticket {
        self.ticket.clone()
    }

    /// Largest transfer of one command in bytes: MDTS, and what this host's buffers hold.
    pub fn transfer_max(&self) -> u64 {
        transfer_max(&self.identify, self.cap)
    }

    /// The admin queue.
    pub fn admin_queue(&self) -> &Queue {
        &self.admin
    }

    // --- what is asked of it ---

    /// Carries out any command on the admin queue; the answer has the completion, whatever its status.
    ///
    /// # Errors
    /// [`HostError::Lost`].
    pub async fn command(&self, command: Command) -> Result<Answer, HostError> {
        self.admin.command(command).await
    }

    async fn expect(&self, what: &'static str, command: Command) -> Result<Answer, HostError> {
        let answer = self.command(command).await?;
        if !answer.cqe.status().is_success() {
            return Err(HostError::refused(what, &answer.cqe));
        }
        Ok(answer)
    }

    /// As [`Controller::expect`] for a command that fills a buffer of `len` bytes.
    async fn expect_data(&self, what: &'static str, sqe: Sqe, len: usize) -> Result<Buf, HostError> {
        let buf = self.admin.reactor().buffer(len).await;
        let answer = self.expect(what, Command::new(sqe).filling(buf)).await?;
        match answer.data {
            Some(data) if answer.received as usize == len && answer.digest_ok => Ok(data),
            _ => Err(HostError::Data { what }),
        }
    }

    /// Property Get; `wide` for properties of 8 bytes.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn property_get(&self, property: Property, wide: bool) -> Result<u64, HostError> {
        let command = Command::new(PropertyGetCmd::new(property.0, wide).to_sqe());
        Ok(self.expect("Property Get", command).await?.cqe.result.get())
    }

    /// Property Set of 4 bytes.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn property_set(&self, property: Property, value: u32) -> Result<(), HostError> {
        self.expect("Property Set", Command::new(PropertySetCmd::new(property.0, value).to_sqe())).await?;
        Ok(())
    }

    async fn wait_for(&self, what: &'static str, ms: u64, done: impl Fn(Csts) -> bool) -> Result<(), HostError> {
        let reactor = self.admin.reactor();
        let deadline = reactor.clock().now().saturating_add(ms.max(1) * 1_000_000);
        loop {
            let csts = Csts(self.property_get(Property::CSTS, false).await? as u32);
            if done(csts) {
                return Ok(());
            }
            if csts.fatal() || reactor.clock().now() >= deadline {
                return Err(HostError::NotInTime { what, ms });
            }
            reactor.sleep(CSTS_POLL_NS).await;
        }
    }

    /// Identify of the NVM command set: 4,096 bytes.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn identify(&self, cns: Cns, nsid: u32) -> Result<Buf, HostError> {
        let mut sqe = Sqe::admin(AdminOpcode::IDENTIFY, nsid);
        IdentifyFields { cns, cntid: 0, cns_specific: 0, csi: Csi::NVM }.put(&mut sqe);
        self.expect_data("Identify", sqe, IDENTIFY_LEN).await
    }

    /// Identify Namespace.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn identify_namespace(&self, nsid: u32) -> Result<Box<IdentifyNamespace>, HostError> {
        let data = self.identify(Cns::NAMESPACE, nsid).await?;
        let namespace = IdentifyNamespace::read_from_bytes(&data).map_err(|_| HostError::Data { what: "Identify" })?;
        Ok(Box::new(namespace))
    }

    /// The limits of the NVM command set, from a controller that has them.
    async fn limits(&self) -> Result<Option<Box<IdentifyControllerNvm>>, HostError> {
        match self.identify(Cns::CONTROLLER_CSI, 0).await {
            Ok(data) => match IdentifyControllerNvm::read_from_bytes(&data) {
                Ok(limits) => Ok(Some(Box::new(limits))),
                Err(_) => Err(HostError::Data { what: "Identify" }),
            },
            Err(HostError::Refused { status, .. }) if !is_for_now(status) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Size, block size and limits of a namespace.
    ///
    /// # Errors
    /// What the controller says; [`HostError::Unsupported`] for a format this host cannot use.
    pub async fn geometry(&self, nsid: u32) -> Result<Geometry, HostError> {
        let namespace = self.identify_namespace(nsid).await?;
        let limits = self.limits().await?;
        let (cap, controller) = (self.cap, &*self.identify);
        let id = Identified { nsid, cap, controller, namespace: &namespace, limits: limits.as_deref(), zoned: None };
        Ok(Geometry::new(&id, self.transfer_max(), self.ticket.queue_size)?)
    }

    /// Identifiers of all active namespaces, in order.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn active_namespaces(&self) -> Result<Vec<u32>, HostError> {
        let mut all = Vec::new();
        loop {
            let page = self.identify(Cns::ACTIVE_NAMESPACES, all.last().copied().unwrap_or(0)).await?;
            let before = all.len();
            for nsid in namespace_list(&page) {
                if all.last().is_some_and(|last| *last >= nsid) {
                    return Err(HostError::Unsupported("the namespace list is not in order".to_owned()));
                }
                all.push(nsid);
            }
            if all.len() - before < NAMESPACE_LIST_MAX {
                return Ok(all);
            }
        }
    }

    /// `len` bytes of a log page from `offset`, both multiples of 4. `retain` leaves the event set that the page belongs to.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn log(
        &self,
        lid: LogId,
        nsid: u32,
        offset: u64,
        len: usize,
        retain: bool,
    ) -> Result<Vec<u8>, HostError> {
        let piece = LOG_PIECE.min(self.transfer_max() as usize);
        let mut page = Vec::with_capacity(len);
        while page.len() < len {
            let now = (len - page.len()).min(piece);
            let mut sqe = Sqe::admin(AdminOpcode::GET_LOG_PAGE, nsid);
            GetLogFields { rae: retain, ..GetLogFields::new(lid, offset + page.len() as u64, now) }.put(&mut sqe);
            page.extend_from_slice(&self.expect_data("Get Log Page", sqe, now).await?);
        }
        Ok(page)
    }

    /// Set Features without data; returns dword 0 of the completion.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn set_feature(&self, fid: FeatureId, value: u32) -> Result<u32, HostError> {
        let mut sqe = Sqe::admin(AdminOpcode::SET_FEATURES, 0);
        FeatureFields { fid, select: FeatureSelect::CURRENT, save: false }.put(&mut sqe);
        sqe.cdw11.set(value);
        Ok(self.expect("Set Features", Command::new(sqe)).await?.cqe.dw0())
    }

    /// Get Features without data; returns dword 0 of the completion.
    ///
    /// # Errors
    /// What the controller says.
    pub async fn get_feature(&self, fid: FeatureId, select: FeatureSelect) -> Result<u32, HostError> {
        let mut sqe = Sqe::admin(AdminOpcode::GET_FEATURES, 0);
        FeatureFields { fid, select, save: false }.put(&mut sqe);
        Ok(self.expect("Get Features", Command::new(sqe)).await?.cqe.dw0())
    }

    // --- while it is connected ---

    fn keep_alive(&self) {
        let reactor = self.admin.reactor().clone();
        let (queue, kato_ns) = (Rc::downgrade(&self.admin), u64::from(self.ticket.options.kato_ms) * 1_000_000);
        let here = reactor.clone();
        reactor.spawn("nvme host: keep alive", async move {
            loop {
                here.sleep(kato_ns / 2).await;
                // Weak: this task does not keep an admin queue open that nobody uses.
                let Some(queue) = Weak::upgrade(&queue) else {
                    return;
                };
                let mut command = Command::new(Sqe::admin(AdminOpcode::KEEP_ALIVE, 0));
                command.limit = TimeLimit::Ns(kato_ns);
                match queue.command(command).await {
                    Ok(answer) if answer.cqe.status().is_success() => {}
                    Ok(answer) => {
                        tracing::warn!("keep alive refused: {:?}", answer.cqe.status());
                        return;
                    }
                    // The queue tells whoever uses it why it ended.
                    Err(_) => return,
                }
            }
        });
    }

    async fn start_events(&self) -> Result<(), HostError> {
        let wanted = async_event_config::NAMESPACE_ATTRIBUTE | async_event_config::DISCOVERY_LOG;
        self.set_feature(FeatureId::ASYNC_EVENT_CONFIG, self.identify.oaes.get() & wanted).await?;
        let (queue, events) = (self.admin.clone(), self.events.clone());
        let reactor = queue.reactor().clone();
        let here = reactor.clone();
        reactor.spawn("nvme host: events", async move {
            loop {
                let mut command = Command::new(Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0));
                command.limit = TimeLimit::Never;
                let answer = queue.command(command).await;
                let event = match answer {
                    Ok(answer) if answer.cqe.status().is_success() => Some(AsyncEventResult::of(answer.cqe.dw0())),
                    _ => None,
                };
                let ended = event.is_none();
                events.arrived.borrow_mut().extend(event);
                events.ended.set(ended);
                if let Some(task) = events.waiter.take() {
                    here.wake(task);
                }
                if ended {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Waits for the next asynchronous event. One task at a time; needs [`Options::events`].
    ///
    /// # Errors
    /// [`HostError::Lost`] when the controller takes no more requests for events.
    pub async fn next_event(&self) -> Result<AsyncEventResult, HostError> {
        std::future::poll_fn(|_| {
            if let Some(event) = self.events.arrived.borrow_mut().pop_front() {
                return Poll::Ready(Ok(event));
            }
            if self.events.ended.get() || !self.ticket.options.events {
                return Poll::Ready(Err(self.admin.ended().unwrap_or(Ended::Closed).into()));
            }
            self.events.waiter.set(Some(self.admin.reactor().current_task()));
            Poll::Pending
        })
        .await
    }

    // --- the end ---

    /// Shuts the controller down in order (Base §3.6.1) and closes the admin queue. I/O queues are closed by their owners,
    /// before.
    ///
    /// # Errors
    /// If the controller does not finish in the time it states; the connection is closed in any case.
    pub async fn shut_down(self) -> Result<(), HostError> {
        let rtd3e_ms = u64::from(self.identify.rtd3e_us.get()) / 1000;
        let limit_ms = if rtd3e_ms == 0 { SHUTDOWN_MS } else { rtd3e_ms };
        let mut ended = self.property_set(Property::CC, CC_ENABLED | Cc::SHN_NORMAL).await;
        if ended.is_ok() {
            ended = self.wait_for("shut down", limit_ms, |csts| csts.0 & Csts::SHST_COMPLETE != 0).await;
        }
        self.close().await;
        ended
    }

    /// Closes the admin queue at once, as a host does that vanishes; returns when all its commands have ended.
    pub async fn close(&self) {
        self.admin.close().await;
    }
}

const _: () = assert!(LOG_PIECE <= MAX_BUF && IDENTIFY_LEN <= MAX_BUF);

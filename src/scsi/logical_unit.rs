//! The engine of one logical unit: who is there, what waits for them, what they may do, and the commands that move no blocks.

use std::collections::BTreeMap;

use super::attention::{Pending, UnitAttention};
use super::command::{Command, DataOut, LunSelect, Media, Request, UnitCommand};
use super::copy::{self, COPIES_MAX, CopyList, CopyProgress, CopyState, ListId};
use super::decode::{absent_request, decode_entry, find};
use super::inquiry;
use super::mode::{self, ModeQuery, ModeState};
use super::persist::{self, Failure, Known};
use super::report::{self, Resources};
use super::reservation::{Access, Grant, Nexus, Notice, Outcome, Persist, Reservations};
use super::spec::{Asc, Cdb, SENSE_MAX, Sense, SenseKey, TransportId, VpdPage};
use super::unit::{TargetPort, Unit, UnitError};

/// A nexus as the owner of the logical unit numbers those that are logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NexusId(pub u64);

/// How a command ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// GOOD, after these data: cut to the allocation length, to be cut further to what the transport takes.
    Good(Vec<u8>),
    /// CHECK CONDITION. [`Sense::encode`] it in the format that [`ModeState::descriptor_sense`] says.
    Check(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
}

/// What to do with a command.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer it.
    Reply(Reply),
    /// Carry it out on the blocks, with the data that the request tells.
    Media(Media, Request),
    /// Receive a parameter list of this many bytes, then [`LogicalUnit::finish`].
    List(UnitCommand, u32),
}

/// What must be stored before an answer is sent, so that reservations outlive a loss of power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// These bytes, for [`super::reservation::decode_snapshot`].
    Keep(Vec<u8>),
    /// Nothing: remove what is stored.
    Remove,
}

/// How a command with a parameter list ends, and what must be done before its answer.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reaction {
    /// The answer.
    pub reply: Reply,
    /// What to store first.
    pub store: Option<Store>,
    /// Whose commands to abort first, all but this very one.
    pub abort: Vec<NexusId>,
    /// Unit attention conditions that wait since then: for [`LogicalUnit::undo`].
    pub told: Vec<(NexusId, UnitAttention)>,
}

impl Reaction {
    const fn reply(reply: Reply) -> Self {
        Self { reply, store: None, abort: Vec::new(), told: Vec::new() }
    }
}

/// What the answers of [`LogicalUnit::begin`] need from outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The logical units that the nexus sees, ascending.
    pub luns: &'a [u16],
    /// What is mapped.
    pub resources: Resources,
}

/// What decides whether a nexus may run a command, as plain data: a copy for each reactor that serves the nexus stays right until
/// [`LogicalUnit::version`] changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// What reservations allow.
    pub grant: Grant,
    /// A unit attention condition waits.
    pub attention: bool,
    /// The unit is started.
    pub started: bool,
    /// The mode parameters.
    pub mode: ModeState,
}

/// What [`Gate::admit`] found.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// A command on blocks that may run.
    Media(Media, Request),
    /// GOOD: there is nothing to do, if [`DataOut::settle`] agrees.
    Good(DataOut),
    /// Only the engine itself can answer: [`LogicalUnit::begin`].
    Engine,
    /// CHECK CONDITION.
    Check(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
}

impl Gate {
    /// Decides on a command without the engine, in the order of [`LogicalUnit::begin`].
    #[inline]
    pub fn admit(&self, cdb: &Cdb, unit: &Unit) -> Admission {
        if self.attention {
            return Admission::Engine;
        }
        match self.check(cdb, unit) {
            // A stop changes the gates of all: only one reactor may begin it.
            Ok(Request { command: Command::Media(Media::StartStop { .. }), .. }) => Admission::Engine,
            Ok(request) => match request.command {
                Command::Media(media) => Admission::Media(media, request),
                Command::Unit(UnitCommand::Good) => Admission::Good(request.data_out),
                Command::Unit(_) => Admission::Engine,
            },
            Err(Failure::Check(sense)) => Admission::Check(sense),
            Err(Failure::Conflict) => Admission::Conflict,
        }
    }

    /// Everything but unit attention conditions: the command exists, reservations allow it, the unit is started, its fields are right.
    #[inline]
    fn check(&self, cdb: &Cdb, unit: &Unit) -> Result<Request, Failure> {
        let entry = find(cdb, unit)?;
        if !self.grant.allows(entry.access(cdb)) {
            return Err(Failure::Conflict);
        }
        if entry.needs_start && !self.started {
            return Err(Sense::new(SenseKey::NOT_READY, Asc::NOT_READY_INITIALIZE).into());
        }
        Ok(decode_entry(entry, cdb, unit, &self.mode)?)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    initiator: TransportId,
    nexus: Nexus,
    pending: Pending,
}

/// A logical unit and all that SCSI keeps about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalUnit {
    unit: Unit,
    ports: Vec<TargetPort>,
    mode: ModeState,
    started: bool,
    reservations: Reservations,
    attached: BTreeMap<NexusId, Attached>,
    /// Copies whose status can be asked for, by list identifier.
    copies: BTreeMap<(NexusId, u8), CopyProgress>,
    copies_running: u16,
    version: u64,
}

impl LogicalUnit {
    /// A logical unit that is started, with the target ports it is seen at, and the reservations that outlived the loss of power.
    ///
    /// # Errors
    /// What [`Unit::check`] finds.
    pub fn new(unit: Unit, ports: Vec<TargetPort>, reservations: Reservations) -> Result<Self, UnitError> {
        unit.check()?;
        Ok(Self {
            mode: ModeState::new(&unit),
            unit,
            ports,
            started: true,
            reservations,
            attached: BTreeMap::new(),
            copies: BTreeMap::new(),
            copies_running: 0,
            version: 0,
        })
    }

    /// Its description.
    pub const fn unit(&self) -> &Unit {
        &self.unit
    }

    /// Its mode parameters, which its owner obeys.
    pub const fn mode(&self) -> &ModeState {
        &self.mode
    }

    /// Its reservations.
    pub const fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// Changes whenever a [`Gate`] of some nexus does.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// What `id` may do; `None` for a nexus that is not attached.
    pub fn gate(&self, id: NexusId) -> Option<Gate> {
        let attached = self.attached.get(&id)?;
        Some(Gate {
            grant: self.reservations.grant(&attached.nexus),
            attention: !attached.pending.is_empty(),
            started: self.started,
            mode: self.mode,
        })
    }

    /// A nexus has logged in at the target port `port`. Power on waits for it as unit attention condition. Who had the number before is
    /// lost.
    pub fn attach(&mut self, id: NexusId, initiator: TransportId, port: u16) {
        self.detach(id);
        let nexus = Nexus { initiator: initiator.encode(), port };
        let mut pending = Pending::default();
        pending.raise(UnitAttention::PowerOn);
        self.attached.insert(id, Attached { initiator, nexus, pending });
        self.version += 1;
    }

    /// A nexus is lost: what it had reserved with RESERVE is free, and the status of its copies is forgotten. Its registration stays.
    pub fn detach(&mut self, id: NexusId) {
        let Some(gone) = self.attached.remove(&id) else { return };
        self.copies.retain(|&(owner, _), _| owner != id);
        // Another session of the same port may be there.
        if !self.attached.values().any(|other| other.nexus == gone.nexus) {
            self.reservations.legacy_drop(&gone.nexus);
        }
        self.version += 1;
    }

    /// The transport was asked to treat a nexus as lost, which stays logged in (I_T NEXUS RESET; SAM-5, I_T nexus loss).
    pub fn nexus_lost(&mut self, id: NexusId) {
        let Some(attached) = self.attached.get_mut(&id) else { return };
        attached.pending.raise(UnitAttention::NexusLoss);
        self.reservations.legacy_drop(&attached.nexus);
        self.copies.retain(|&(owner, _), _| owner != id);
        self.version += 1;
    }

    /// The unit attention condition that a nexus would be told next.
    pub fn awaiting(&self, id: NexusId) -> Option<UnitAttention> {
        self.attached.get(&id)?.pending.first()
    }

    /// It is seen at these target ports from now on: whoever sees another number of them, or others, is told, since INQUIRY answers with
    /// MULTIP and REPORT TARGET PORT GROUPS names them.
    pub fn set_ports(&mut self, ports: Vec<TargetPort>) {
        if self.ports != ports {
            self.ports = ports;
            self.raise_all(UnitAttention::InquiryChanged, None);
        }
    }

    /// Raises a unit attention condition for one nexus.
    pub fn raise(&mut self, id: NexusId, attention: UnitAttention) {
        if let Some(attached) = self.attached.get_mut(&id) {
            attached.pending.raise(attention);
            self.version += 1;
        }
    }

    /// Raises a unit attention condition for all but one nexus, or for all.
    pub fn raise_all(&mut self, attention: UnitAttention, but: Option<NexusId>) {
        for (_, attached) in self.attached.iter_mut().filter(|&(&id, _)| Some(id) != but) {
            attached.pending.raise(attention);
        }
        self.version += 1;
    }

    /// The logical unit was reset (LOGICAL UNIT RESET, or TARGET RESET with [`UnitAttention::PowerOn`]): RESERVE ends, mode parameters
    /// return to their defaults, and everybody is told (SAM-5, logical unit reset). Persistent reservations stay.
    pub fn reset(&mut self, attention: UnitAttention) {
        self.reservations.reset();
        self.mode = ModeState::new(&self.unit);
        self.started = true;
        self.raise_all(attention, None);
    }

    /// The unit has become another: a resize, another write protection, other limits. Everybody is told what has changed.
    ///
    /// # Errors
    /// What [`Unit::check`] finds; then nothing changed.
    pub fn update(&mut self, unit: Unit) -> Result<(), UnitError> {
        unit.check()?;
        let old = core::mem::replace(&mut self.unit, unit);
        let new = &self.unit;
        let capacity = (old.blocks, old.block_size) != (new.blocks, new.block_size);
        let mode = old.read_only != new.read_only || old.volatile_cache != new.volatile_cache;
        if old.volatile_cache != new.volatile_cache {
            self.mode.write_cache = new.volatile_cache;
        }
        let rest = Unit { blocks: new.blocks, block_size: new.block_size, read_only: new.read_only, ..old };
        let inquiry = rest != *new;
        for (changed, attention) in [
            (capacity, UnitAttention::CapacityChanged),
            (mode, UnitAttention::ModeChanged),
            (inquiry, UnitAttention::InquiryChanged),
        ] {
            if changed {
                self.raise_all(attention, None);
            }
        }
        Ok(())
    }

    /// The unit was started or stopped: the end of [`Media::StartStop`].
    pub fn set_started(&mut self, started: bool) {
        self.started = started;
        self.version += 1;
    }

    /// Decides on a command: unit attention conditions first, then whether it exists, reservations, whether the unit is started, its fields
    /// (SAM-5 §5.14). For a nexus that is not attached the answer is LOGICAL UNIT NOT SUPPORTED.
    pub fn begin(&mut self, id: NexusId, cdb: &Cdb, context: &Context<'_>) -> Action {
        let Some(gate) = self.gate(id) else {
            return Action::Reply(Reply::Check(Sense::illegal(Asc::LUN_NOT_SUPPORTED)));
        };
        if gate.attention
            && !find(cdb, &self.unit).is_ok_and(|entry| entry.ignores_attention())
            && let Some(attention) = self.take_attention(id)
        {
            return Action::Reply(Reply::Check(attention.sense()));
        }
        match gate.check(cdb, &self.unit) {
            Err(Failure::Check(sense)) => Action::Reply(Reply::Check(sense)),
            Err(Failure::Conflict) => Action::Reply(Reply::Conflict),
            Ok(request) => match (request.command, request.data_out) {
                (Command::Media(media), _) => Action::Media(media, request),
                (Command::Unit(command), DataOut::Parameters(len)) => Action::List(command, len),
                (Command::Unit(command), _) => {
                    let reply = match self.answer(id, command, context) {
                        Ok(mut data) => {
                            data.truncate(request.data_in as usize);
                            Reply::Good(data)
                        }
                        Err(Failure::Check(sense)) => Reply::Check(sense),
                        Err(Failure::Conflict) => Reply::Conflict,
                    };
                    Action::Reply(reply)
                }
            },
        }
    }

    /// Carries out a command of [`Action::List`] with its parameter list. That may have taken long to come: a reservation that was made
    /// meanwhile forbids the command as if it came now.
    pub fn finish(&mut self, id: NexusId, command: UnitCommand, list: &[u8]) -> Reaction {
        let Some(gate) = self.gate(id) else {
            return Reaction::reply(Reply::Check(Sense::illegal(Asc::LUN_NOT_SUPPORTED)));
        };
        let access = match command {
            UnitCommand::PersistOut { .. } => Access::Persistent,
            _ => Access::Write,
        };
        if !gate.grant.allows(access) {
            return Reaction::reply(Reply::Conflict);
        }
        match command {
            UnitCommand::ModeSelect { ten } => match mode::mode_select(list, ten, &self.mode, &self.unit) {
                Ok(new) => {
                    if new != self.mode {
                        self.mode = new;
                        self.raise_all(UnitAttention::ModeChanged, Some(id));
                    }
                    Reaction::reply(Reply::Good(Vec::new()))
                }
                Err(sense) => Reaction::reply(Reply::Check(sense)),
            },
            UnitCommand::PersistOut { action, kind } => {
                let Some(attached) = self.attached.get(&id) else {
                    return Reaction::reply(Reply::Check(Sense::illegal(Asc::LUN_NOT_SUPPORTED)));
                };
                let ports: Vec<u16> = self.ports.iter().map(|port| port.relative_id).collect();
                let of_node = |name: &str| {
                    let ports = self.attached.values().filter(|other| other.initiator.name == name);
                    let mut names: Vec<_> = ports.map(|other| other.nexus.initiator.clone()).collect();
                    names.sort_unstable();
                    names.dedup();
                    names
                };
                let known = Known { ports: &ports, of_node: &of_node };
                match persist::act(action, kind, list, &attached.nexus, &known, &mut self.reservations) {
                    Ok(outcome) => self.react(outcome),
                    Err(Failure::Check(sense)) => Reaction::reply(Reply::Check(sense)),
                    Err(Failure::Conflict) => Reaction::reply(Reply::Conflict),
                }
            }
            // Nothing else has a list; answered so that it can never look as if it were done.
            _ => Reaction::reply(Reply::Check(Sense::illegal(Asc::INTERNAL_FAILURE))),
        }
    }

    /// Admits a copy of `id` to run: its status can be asked for from now on. [`LogicalUnit::copy_end`] must follow.
    ///
    /// # Errors
    /// OPERATION IN PROGRESS for a list identifier of a copy that runs; INSUFFICIENT RESOURCES.
    pub fn copy_begin(&mut self, id: NexusId, list: &CopyList) -> Result<(), Sense> {
        let full = Sense::illegal(Asc::INSUFFICIENT_RESOURCES);
        if self.copies_running >= COPIES_MAX {
            return Err(full);
        }
        if let ListId::Hold(list_id) | ListId::Discard(list_id) = list.list_id {
            let key = (id, list_id);
            match self.copies.get(&key) {
                Some(old) if old.state == CopyState::Running => {
                    return Err(Sense::illegal(Asc::OPERATION_IN_PROGRESS).at(0));
                }
                // A new copy takes the place of what was kept (SPC-4 §6.25).
                Some(_) => {}
                None if self.kept(id) >= usize::from(COPIES_MAX) => return Err(full),
                None => {}
            }
            self.copies.insert(key, CopyProgress::START);
        }
        self.copies_running += 1;
        Ok(())
    }

    /// How far a copy is.
    pub fn copy_progress(&mut self, id: NexusId, list: &CopyList, progress: CopyProgress) {
        if let ListId::Hold(list_id) | ListId::Discard(list_id) = list.list_id
            && let Some(kept) = self.copies.get_mut(&(id, list_id))
        {
            *kept = progress;
        }
    }

    /// A copy has ended, `progress` says how.
    pub fn copy_end(&mut self, id: NexusId, list: &CopyList, progress: CopyProgress) {
        self.copies_running = self.copies_running.saturating_sub(1);
        match list.list_id {
            ListId::Discard(list_id) => drop(self.copies.remove(&(id, list_id))),
            ListId::Hold(_) | ListId::None => self.copy_progress(id, list, progress),
        }
    }

    fn kept(&self, id: NexusId) -> usize {
        self.copies.range((id, 0)..=(id, u8::MAX)).count()
    }

    fn take_attention(&mut self, id: NexusId) -> Option<UnitAttention> {
        let taken = self.attached.get_mut(&id)?.pending.take();
        self.version += u64::from(taken.is_some());
        taken
    }

    /// The data of a command without a parameter list.
    fn answer(&mut self, id: NexusId, command: UnitCommand, context: &Context<'_>) -> Result<Vec<u8>, Failure> {
        let unit = &self.unit;
        Ok(match command {
            UnitCommand::Good => Vec::new(),
            UnitCommand::Inquiry { page: None, .. } => inquiry::standard(unit, self.ports.len()),
            UnitCommand::Inquiry { page: Some(page), .. } => {
                let at = self.attached.get(&id).map(|attached| attached.nexus.port);
                let port = self.ports.iter().find(|port| Some(port.relative_id) == at);
                inquiry::page(VpdPage(page), unit, port)?
            }
            UnitCommand::RequestSense { descriptor, .. } => {
                let stopped = Sense::new(SenseKey::NOT_READY, Asc::NOT_READY_INITIALIZE);
                let idle = if self.started { Sense::NONE } else { stopped };
                let sense = self.take_attention(id).map_or(idle, UnitAttention::sense);
                encode(&sense, descriptor)
            }
            UnitCommand::ReportLuns { select, .. } => {
                if let Some(attached) = self.attached.get_mut(&id) {
                    attached.pending.clear(UnitAttention::LunsChanged);
                    self.version += 1;
                }
                report_luns(select, context.luns)
            }
            UnitCommand::ReadCapacity10 => report::capacity_10(unit),
            UnitCommand::ReadCapacity16 { .. } => report::capacity_16(unit),
            UnitCommand::ModeSense { ten, block_descriptor, long_descriptor, control, page, subpage, .. } => {
                let query = ModeQuery { ten, block_descriptor, long_descriptor, control, page, subpage };
                mode::mode_sense(query, &self.mode, unit)?
            }
            UnitCommand::LogSense { page, subpage, from, .. } => {
                report::log(page, subpage, from, unit, &context.resources)?
            }
            UnitCommand::DefectData { twelve, lists, .. } => report::defects(twelve, lists),
            UnitCommand::TargetPortGroups { extended, .. } => report::port_groups(&self.ports, extended),
            UnitCommand::SupportedOpcodes { query, timeouts, .. } => report::opcodes(query, timeouts, unit)?,
            UnitCommand::SupportedTaskFunctions { extended, .. } => {
                report::task_functions(&unit.task_functions, extended)
            }
            UnitCommand::Reserve | UnitCommand::Release => {
                let Some(attached) = self.attached.get(&id) else { return Err(Failure::Conflict) };
                match command {
                    UnitCommand::Reserve => self.reservations.legacy_reserve(&attached.nexus)?,
                    _ => self.reservations.legacy_release(&attached.nexus)?,
                }
                self.version += 1;
                Vec::new()
            }
            UnitCommand::PersistIn { action, .. } => persist::report(action, &self.reservations)?,
            UnitCommand::CopyParameters { .. } => copy::parameters(unit),
            UnitCommand::CopyStatus { list_id, .. } => {
                let Some(progress) = self.copies.get(&(id, list_id)).copied() else {
                    return Err(Sense::field(2).into());
                };
                if progress.state != CopyState::Running {
                    self.copies.remove(&(id, list_id));
                }
                progress.status()
            }
            // These have a parameter list, and come by `finish`.
            UnitCommand::ModeSelect { .. } | UnitCommand::PersistOut { .. } => {
                return Err(Sense::illegal(Asc::INTERNAL_FAILURE).into());
            }
        })
    }

    /// Tells the nexuses what an action on the reservations did.
    fn react(&mut self, outcome: Outcome) -> Reaction {
        let mut told = Vec::new();
        for (id, attached) in &mut self.attached {
            for (_, notice) in outcome.notices.iter().filter(|(nexus, _)| *nexus == attached.nexus) {
                let attention = match notice {
                    Notice::ReservationsPreempted => UnitAttention::ReservationsPreempted,
                    Notice::ReservationsReleased => UnitAttention::ReservationsReleased,
                    Notice::RegistrationsPreempted => UnitAttention::RegistrationsPreempted,
                };
                if !attached.pending.has(attention) {
                    attached.pending.raise(attention);
                    told.push((*id, attention));
                }
            }
        }
        self.version += 1;
        let lost = self.attached.iter().filter(|(_, attached)| outcome.abort.contains(&attached.nexus));
        let abort = lost.map(|(&id, _)| id).collect();
        let store = match outcome.persist {
            Persist::Unchanged => None,
            Persist::Store => Some(Store::Keep(self.reservations.snapshot())),
            Persist::Erase => Some(Store::Remove),
        };
        Reaction { reply: Reply::Good(Vec::new()), store, abort, told }
    }

    /// Puts reservations back as they were before a [`Reaction`] that could not be stored, and takes back what it has `told`: the command fails
    /// with INTERNAL TARGET FAILURE and has no effect. Its owner runs one PERSISTENT RESERVE OUT of a unit at a time, from
    /// [`LogicalUnit::finish`] until the store is done.
    pub fn undo(&mut self, reservations: Reservations, told: &[(NexusId, UnitAttention)]) {
        self.reservations = reservations;
        for (id, attention) in told {
            if let Some(attached) = self.attached.get_mut(id) {
                attached.pending.clear(*attention);
            }
        }
        self.version += 1;
    }
}

fn encode(sense: &Sense, descriptor: bool) -> Vec<u8> {
    let mut out = [0; SENSE_MAX];
    let len = sense.encode(descriptor, &mut out);
    out[..len].to_vec()
}

fn report_luns(select: LunSelect, luns: &[u16]) -> Vec<u8> {
    match select {
        LunSelect::Units | LunSelect::All => report::luns(luns),
        LunSelect::WellKnown => report::luns(&[]),
    }
}

/// Answers a command to a logical unit that does not exist: INQUIRY says so, REPORT LUNS lists those that do, REQUEST SENSE and every other
/// command tell LOGICAL UNIT NOT SUPPORTED (SPC-4 §6.6.1, §6.39; SAM-5, incorrect logical unit selection).
pub fn absent(cdb: &Cdb, luns: &[u16]) -> Reply {
    let not_supported = Sense::illegal(Asc::LUN_NOT_SUPPORTED);
    match absent_request(cdb) {
        Ok(Some(UnitCommand::Inquiry { page: None, allocation })) => Reply::Good(cut(inquiry::absent(), allocation)),
        Ok(Some(UnitCommand::ReportLuns { select, allocation })) => {
            Reply::Good(cut(report_luns(select, luns), allocation))
        }
        Ok(Some(UnitCommand::RequestSense { descriptor, allocation })) => {
            Reply::Good(cut(encode(&not_supported, descriptor), allocation))
        }
        Ok(_) => Reply::Check(not_supported),
        Err(sense) => Reply::Check(sense),
    }
}

fn cut(mut data: Vec<u8>, allocation: u32) -> Vec<u8> {
    data.truncate(allocation as usize);
    data
}

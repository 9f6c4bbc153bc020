//! Zones: their states, write pointers and resources (ZNS §2.1.1), and the commands for them (ZNS §3.4).
//!
//! ```text
//!   Empty --write--> Implicitly open --write to another zone, as many are open as may be--> Closed --write--> Implicitly open
//!     \--open--> Explicitly open --close--> Closed                      any of these, written to the end of its capacity, or finished: Full
//!   all of these --reset--> Empty                                       Read only --offline--> Offline
//! ```

use zerocopy::{FromZeros, IntoBytes};

use super::io::Outcome;
use crate::nvme::spec::{
    Status, StatusCode, ZoneDescriptor, ZoneReceiveAction, ZoneReceiveFields, ZoneReportFilter, ZoneReportHeader,
    ZoneSendAction, ZoneSendFields, ZoneState, ZoneType,
};

/// What the zones of a namespace are made as. Lengths are in blocks of its first format.
#[derive(Clone, Debug)]
pub struct ZoneOptions {
    /// Blocks from the start of one to the start of the next.
    pub blocks: u64,
    /// Blocks of each that can be written.
    pub capacity: u64,
    /// Most open zones; `None`: no limit.
    pub open_max: Option<u32>,
    /// Most active zones; `None`: no limit.
    pub active_max: Option<u32>,
    /// Reads may cross zones.
    pub read_across: bool,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    state: ZoneState,
    /// Blocks written.
    written: u64,
    capacity: u64,
    /// When it was opened, counted in openings: the oldest is closed first.
    opened: u64,
}

/// The zones of a namespace, in blocks.
#[derive(Clone, Debug)]
pub struct Zones {
    options: ZoneOptions,
    zones: Vec<Zone>,
    openings: u64,
}

impl Zones {
    /// Empty zones of a namespace of so many blocks.
    ///
    /// # Panics
    /// If it is no whole number of zones, or these can hold more than they are large.
    pub fn new(options: &ZoneOptions, blocks: u64) -> Zones {
        assert!(options.blocks > 0 && (1..=options.blocks).contains(&options.capacity), "{options:?}");
        let mut zones = Zones { options: options.clone(), zones: Vec::new(), openings: 0 };
        zones.resize(blocks);
        zones
    }

    /// What they were made as.
    pub fn options(&self) -> &ZoneOptions {
        &self.options
    }

    /// Gives the namespace another size: more zones are empty.
    ///
    /// # Panics
    /// If that is no whole number of zones.
    pub fn resize(&mut self, blocks: u64) {
        assert!(blocks.is_multiple_of(self.options.blocks), "{blocks} blocks in zones of {}", self.options.blocks);
        let capacity = self.options.capacity;
        let empty = Zone { state: ZoneState::EMPTY, written: 0, capacity, opened: 0 };
        self.zones.resize((blocks / self.options.blocks) as usize, empty);
    }

    /// Puts a zone into a state, whatever it was in: a zone that wears out becomes read only, or offline.
    ///
    /// # Panics
    /// If there is no such zone.
    pub fn set_state(&mut self, index: usize, state: ZoneState) {
        self.zones[index].state = state;
    }

    /// What a loss of power makes of zones that are open.
    pub fn lose_power(&mut self) {
        self.zones.iter_mut().filter(|zone| zone.state.is_open()).for_each(|zone| zone.state = ZoneState::CLOSED);
    }

    fn index(&self, block: u64) -> usize {
        (block / self.options.blocks) as usize
    }

    fn start(&self, index: usize) -> u64 {
        index as u64 * self.options.blocks
    }

    fn count(&self, is: impl Fn(ZoneState) -> bool) -> u32 {
        self.zones.iter().filter(|zone| is(zone.state)).count() as u32
    }

    /// The blocks of a zone.
    pub fn blocks(&self, index: usize) -> (u64, u64) {
        (self.start(index), self.options.blocks)
    }

    /// Whether blocks, of those that there are, can be read.
    ///
    /// # Errors
    /// Zoned Boundary Error, Zone Is Offline.
    pub fn read(&self, block: u64, blocks: u64) -> Result<(), StatusCode> {
        let (first, last) = (self.index(block), self.index(block + blocks - 1));
        if first != last && !self.options.read_across {
            return Err(StatusCode::ZONE_BOUNDARY_ERROR);
        }
        let offline = self.zones[first..=last].iter().any(|zone| zone.state == ZoneState::OFFLINE);
        if offline { Err(StatusCode::ZONE_IS_OFFLINE) } else { Ok(()) }
    }

    /// Takes a write of blocks, of those that there are: opens its zone and moves the write pointer.
    ///
    /// # Errors
    /// What the zone or the limits say; nothing has changed then.
    pub fn write(&mut self, block: u64, blocks: u64) -> Result<(), StatusCode> {
        let index = self.index(block);
        self.writable(index)?;
        let zone = self.zones[index];
        if block != self.start(index) + zone.written {
            return Err(StatusCode::ZONE_INVALID_WRITE);
        }
        if zone.written + blocks > zone.capacity {
            return Err(StatusCode::ZONE_BOUNDARY_ERROR);
        }
        self.open(index, ZoneState::IMPLICITLY_OPEN)?;
        let zone = &mut self.zones[index];
        zone.written += blocks;
        if zone.written == zone.capacity {
            zone.state = ZoneState::FULL;
        }
        Ok(())
    }

    /// As [`Zones::write`], at the write pointer of the zone that begins at `block`, which is returned.
    ///
    /// # Errors
    /// As [`Zones::write`], and Invalid Field if no zone begins there.
    pub fn append(&mut self, block: u64, blocks: u64) -> Result<u64, StatusCode> {
        let index = self.index(block);
        if block != self.start(index) {
            return Err(StatusCode::INVALID_FIELD);
        }
        let at = block + self.zones[index].written;
        // Said of a zone that is full too, whose pointer is nowhere.
        self.write(at.min(block + self.options.blocks - 1), blocks)?;
        Ok(at)
    }

    fn writable(&self, index: usize) -> Result<(), StatusCode> {
        match self.zones[index].state {
            ZoneState::FULL => Err(StatusCode::ZONE_IS_FULL),
            ZoneState::READ_ONLY => Err(StatusCode::ZONE_IS_READ_ONLY),
            ZoneState::OFFLINE => Err(StatusCode::ZONE_IS_OFFLINE),
            _ => Ok(()),
        }
    }

    /// Opens an empty or closed zone if there are the resources; one that is open stays as it is, but that it can become explicitly so.
    fn open(&mut self, index: usize, state: ZoneState) -> Result<(), StatusCode> {
        let before = self.zones[index].state;
        if !before.is_open() {
            let full = |most: Option<u32>, used: u32| most.is_some_and(|most| used >= most);
            if before == ZoneState::EMPTY && full(self.options.active_max, self.count(ZoneState::is_active)) {
                return Err(StatusCode::TOO_MANY_ACTIVE_ZONES);
            }
            if full(self.options.open_max, self.count(ZoneState::is_open)) {
                let implicit = self.zones.iter_mut().filter(|zone| zone.state == ZoneState::IMPLICITLY_OPEN);
                let oldest = implicit.min_by_key(|zone| zone.opened).ok_or(StatusCode::TOO_MANY_OPEN_ZONES)?;
                oldest.state = ZoneState::CLOSED;
            }
            self.openings += 1;
            self.zones[index].opened = self.openings;
            self.zones[index].state = state;
        } else if state == ZoneState::EXPLICITLY_OPEN {
            self.zones[index].state = state;
        }
        Ok(())
    }

    /// Carries out Zone Management Send: the zones whose blocks are deallocated with that.
    ///
    /// # Errors
    /// What the command, the zone or the limits say; nothing has changed then.
    pub fn manage(&mut self, fields: &ZoneSendFields) -> Result<Vec<usize>, StatusCode> {
        let every = 0..self.zones.len();
        let indices: Vec<usize> = if fields.all {
            every.filter(|index| is_for_all(fields.action, self.zones[*index].state)).collect()
        } else {
            let index = self.index(fields.slba);
            if index >= self.zones.len() {
                return Err(StatusCode::LBA_OUT_OF_RANGE);
            }
            if fields.slba != self.start(index) {
                return Err(StatusCode::INVALID_FIELD);
            }
            vec![index]
        };
        if fields.all && fields.action == ZoneSendAction::OPEN {
            let opened = indices.len() as u32 + self.count(|state| state == ZoneState::EXPLICITLY_OPEN);
            if self.options.open_max.is_some_and(|most| opened > most) {
                return Err(StatusCode::TOO_MANY_OPEN_ZONES);
            }
        }
        let mut emptied = Vec::new();
        for index in indices {
            self.manage_one(index, fields.action)?;
            if fields.action == ZoneSendAction::RESET {
                emptied.push(index);
            }
        }
        Ok(emptied)
    }

    fn manage_one(&mut self, index: usize, action: ZoneSendAction) -> Result<(), StatusCode> {
        let state = self.zones[index].state;
        let is_live = !matches!(state, ZoneState::READ_ONLY | ZoneState::OFFLINE);
        match action {
            ZoneSendAction::OPEN if is_live && state != ZoneState::FULL => {
                return self.open(index, ZoneState::EXPLICITLY_OPEN);
            }
            ZoneSendAction::CLOSE if state.is_active() => self.zones[index].state = ZoneState::CLOSED,
            ZoneSendAction::FINISH if is_live => self.zones[index].state = ZoneState::FULL,
            ZoneSendAction::RESET if is_live => {
                let zone = &mut self.zones[index];
                (zone.state, zone.written) = (ZoneState::EMPTY, 0);
            }
            ZoneSendAction::OFFLINE if !is_live => self.zones[index].state = ZoneState::OFFLINE,
            ZoneSendAction::OPEN
            | ZoneSendAction::CLOSE
            | ZoneSendAction::FINISH
            | ZoneSendAction::RESET
            | ZoneSendAction::OFFLINE => return Err(StatusCode::INVALID_ZONE_TRANSITION),
            // No format has descriptor extensions.
            _ => return Err(StatusCode::INVALID_FIELD),
        }
        Ok(())
    }

    /// Carries out Zone Management Receive: its data, as many bytes as it asks for.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn report(&self, fields: &ZoneReceiveFields) -> Result<Vec<u8>, StatusCode> {
        let len = fields.bytes() as usize;
        if fields.action != ZoneReceiveAction::REPORT
            || fields.filter > ZoneReportFilter::OFFLINE
            || len < size_of::<ZoneReportHeader>()
        {
            return Err(StatusCode::INVALID_FIELD);
        }
        if self.index(fields.slba) >= self.zones.len() {
            return Err(StatusCode::LBA_OUT_OF_RANGE);
        }
        let wanted = |state: ZoneState| fields.filter == ZoneReportFilter::ALL || state == filtered(fields.filter);
        let from = self.index(fields.slba);
        let descriptors: Vec<ZoneDescriptor> = (from..self.zones.len())
            .filter(|index| wanted(self.zones[*index].state))
            .map(|index| self.descriptor(index))
            .collect();
        let room = len / size_of::<ZoneDescriptor>() - 1;
        let told = if fields.partial { descriptors.len().min(room) } else { descriptors.len() };
        let mut header = ZoneReportHeader::new_zeroed();
        header.zones.set(told as u64);
        let mut data = header.as_bytes().to_vec();
        descriptors.iter().take(room).for_each(|descriptor| data.extend_from_slice(descriptor.as_bytes()));
        data.resize(len, 0);
        Ok(data)
    }

    fn descriptor(&self, index: usize) -> ZoneDescriptor {
        let zone = self.zones[index];
        let mut descriptor = ZoneDescriptor::default();
        descriptor.set(ZoneType::SEQUENTIAL_WRITE_REQUIRED, zone.state);
        descriptor.zcap.set(zone.capacity);
        descriptor.zslba.set(self.start(index));
        let has_pointer = zone.state == ZoneState::EMPTY || zone.state.is_active();
        descriptor.wp.set(if has_pointer { self.start(index) + zone.written } else { u64::MAX });
        descriptor
    }
}

/// Whether a zone in this state is one of those that an action on all is for (ZNS §3.4.3).
fn is_for_all(action: ZoneSendAction, state: ZoneState) -> bool {
    match action {
        ZoneSendAction::OPEN => state == ZoneState::CLOSED,
        ZoneSendAction::CLOSE => state.is_open(),
        ZoneSendAction::FINISH => state.is_active(),
        ZoneSendAction::RESET => state.is_active() || state == ZoneState::FULL,
        ZoneSendAction::OFFLINE => state == ZoneState::READ_ONLY,
        _ => false,
    }
}

fn filtered(filter: ZoneReportFilter) -> ZoneState {
    match filter {
        ZoneReportFilter::EMPTY => ZoneState::EMPTY,
        ZoneReportFilter::IMPLICITLY_OPEN => ZoneState::IMPLICITLY_OPEN,
        ZoneReportFilter::EXPLICITLY_OPEN => ZoneState::EXPLICITLY_OPEN,
        ZoneReportFilter::CLOSED => ZoneState::CLOSED,
        ZoneReportFilter::FULL => ZoneState::FULL,
        ZoneReportFilter::READ_ONLY => ZoneState::READ_ONLY,
        _ => ZoneState::OFFLINE,
    }
}

/// The outcome of what zones say.
pub(super) fn outcome<T>(said: Result<T, StatusCode>) -> Result<T, Status> {
    said.map_err(StatusCode::dnr)
}

/// Nothing to say of zones where there are none.
pub(super) fn if_zoned(zones: Option<&mut Zones>, f: impl FnOnce(&mut Zones) -> Result<(), StatusCode>) -> Outcome {
    zones.map_or(Ok(()), |zones| outcome(f(zones)))
}

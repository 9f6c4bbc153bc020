//! The disk behind controllers: namespaces, what they hold, and what of it would survive a loss of power.
//!
//! ```text
//!   write --> contents (what reads see) ----- flush, FUA, or no write cache ----> durable
//!                 |                                                                  ^
//!                 +-- journal: what was durable before, by block -- power cut: each block by chance as it was, or as it is
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::lock::Lock;
use super::zoned::{ZoneOptions, Zones};
use crate::nvme::spec::{DeallocatedReads, ErrorLogEntry, LbaFormat, StatusCode, ZoneState};
use crate::reactor::clock::Entropy;

/// Bytes of a piece of contents: what was never written takes no memory, in units of this.
const PIECE: usize = 64 << 10;

/// What a namespace is made as.
#[derive(Clone, Debug)]
pub struct NamespaceOptions {
    /// Namespace identifier, from 1.
    pub nsid: u32,
    /// Blocks of the first format.
    pub blocks: u64,
    /// Formats: log2 of the block size, and bytes of metadata. The first is in use.
    pub formats: Vec<(u8, u16)>,
    /// New controllers have it.
    pub attached: bool,
    /// Several controllers may have it.
    pub shared: bool,
    /// Optimal I/O boundary in blocks; 0: none.
    pub noiob: u16,
    /// What deallocated blocks read as.
    pub deallocated: DeallocatedReads,
    /// Write Zeroes takes the Deallocate bit.
    pub deac: bool,
    /// NVM-specific preferred granularities in blocks, zero's-based: NPWG, NPWA, NPDG, NPDA, NOWS.
    pub optimal: Option<[u16; 5]>,
    /// Atomic compare and write unit of the namespace in blocks, zero's-based; `None`: the controller's.
    pub nacwu_z: Option<u16>,
    /// NABSN, zero's-based, and NABO in blocks: a fused pair across such a boundary is refused. `None`: there is none.
    pub atomic_boundary: Option<(u16, u16)>,
    /// No write is taken.
    pub write_protected: bool,
    /// It has zones; `None`: it has not.
    pub zones: Option<ZoneOptions>,
}

impl NamespaceOptions {
    /// A namespace of `bytes` bytes in blocks of 2 to the power of `shift` bytes, or of the other of 512 and 4,096 when it is
    /// formatted so, with everything that a driver may want.
    pub fn new(nsid: u32, bytes: u64, shift: u8) -> NamespaceOptions {
        NamespaceOptions {
            nsid,
            blocks: bytes >> shift,
            formats: vec![(shift, 0), (if shift == 9 { 12 } else { 9 }, 0), (shift, 8)],
            attached: true,
            shared: false,
            noiob: 0,
            deallocated: DeallocatedReads::ZEROS,
            deac: true,
            optimal: None,
            nacwu_z: None,
            atomic_boundary: None,
            write_protected: false,
            zones: None,
        }
    }

    /// The same with zones of which three quarters can be written, `bytes` of each in all, and which at most 4 of may be open and 6 active.
    pub fn zoned(nsid: u32, bytes: u64, shift: u8, zone: u64) -> NamespaceOptions {
        let blocks = zone >> shift;
        let (open_max, active_max) = (Some(4), Some(6));
        let zones = ZoneOptions { blocks, capacity: blocks / 4 * 3, open_max, active_max, read_across: true };
        NamespaceOptions { zones: Some(zones), ..NamespaceOptions::new(nsid, bytes, shift) }
    }

    /// Its zones in blocks of format `index`.
    pub(super) fn zones_of(&self, index: usize) -> Option<ZoneOptions> {
        let (first, shift) = (self.formats[0].0, self.formats[index].0);
        let convert = |blocks: u64| (blocks << first) >> shift;
        let zones = self.zones.clone()?;
        Some(ZoneOptions { blocks: convert(zones.blocks), capacity: convert(zones.capacity), ..zones })
    }
}

/// What a disk is made as.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Its namespaces.
    pub namespaces: Vec<NamespaceOptions>,
    /// There is a volatile write cache, and it is on.
    pub write_cache: bool,
    /// MDTS: 2 to the power of this many pages of 4 KiB in a transfer; 0: no limit.
    pub mdts: u8,
    /// WZSL, VSL: the same for Write Zeroes and Verify.
    pub write_zeroes_limit: u8,
    /// See `write_zeroes_limit`.
    pub verify_limit: u8,
    /// DMRL: most ranges of a Dataset Management command; 0: no limit.
    pub ranges_max: u8,
    /// DMRSL: most blocks of a range; 0: no limit.
    pub range_blocks_max: u32,
    /// DMSL: most blocks of a command; 0: no limit.
    pub ranges_blocks_max: u64,
    /// ONCS: which optional commands there are.
    pub oncs: u16,
    /// Fused compare and write.
    pub fused: bool,
    /// ACWU, zero's-based, in blocks.
    pub acwu_z: u16,
    /// SGLS.
    pub sgls: u32,
    /// CRDT1 to CRDT3, in units of 100 ms.
    pub crdt_100ms: [u16; 3],
    /// ZASL: 2 to the power of this many pages of 4 KiB in an append; 0: as MDTS says.
    pub zasl: u8,
}

impl Default for DiskOptions {
    fn default() -> DiskOptions {
        use crate::nvme::spec::{ONCS_COMPARE, ONCS_DSM, ONCS_VERIFY, ONCS_WRITE_ZEROES, SGLS_SUPPORTED};
        DiskOptions {
            serial: "FAKE0001".to_owned(),
            namespaces: vec![NamespaceOptions::new(1, 64 << 20, 12)],
            write_cache: false,
            mdts: 5,
            write_zeroes_limit: 0,
            verify_limit: 0,
            ranges_max: 0,
            range_blocks_max: 0,
            ranges_blocks_max: 0,
            oncs: ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES | ONCS_VERIFY,
            fused: true,
            acwu_z: u16::MAX,
            sgls: SGLS_SUPPORTED,
            crdt_100ms: [0; 3],
            zasl: 0,
        }
    }
}

/// Sparse bytes.
#[derive(Debug, Default)]
struct Contents {
    pieces: Vec<Option<Box<[u8]>>>,
}

static ZEROS: [u8; PIECE] = [0; PIECE];

impl Contents {
    fn new(bytes: u64) -> Contents {
        Contents { pieces: (0..bytes.div_ceil(PIECE as u64)).map(|_| None).collect() }
    }

    /// Calls `f` with the bytes in order, until it says `false`; whether it never did.
    fn read(&self, mut at: u64, mut len: usize, mut f: impl FnMut(&[u8]) -> bool) -> bool {
        while len > 0 {
            let (index, inside) = ((at / PIECE as u64) as usize, (at % PIECE as u64) as usize);
            let here = len.min(PIECE - inside);
            let piece = self.pieces[index].as_deref().unwrap_or(&ZEROS);
            if !f(&piece[inside..inside + here]) {
                return false;
            }
            (at, len) = (at + here as u64, len - here);
        }
        true
    }

    /// As [`Contents::read`], to be written.
    fn write(&mut self, mut at: u64, mut len: usize, mut f: impl FnMut(&mut [u8]) -> bool) -> bool {
        while len > 0 {
            let (index, inside) = ((at / PIECE as u64) as usize, (at % PIECE as u64) as usize);
            let here = len.min(PIECE - inside);
            let piece = self.pieces[index].get_or_insert_with(|| vec![0; PIECE].into_boxed_slice());
            if !f(&mut piece[inside..inside + here]) {
                return false;
            }
            (at, len) = (at + here as u64, len - here);
        }
        true
    }

    fn fill(&mut self, mut at: u64, mut len: u64, byte: u8) {
        while len > 0 {
            let (index, inside) = ((at / PIECE as u64) as usize, (at % PIECE as u64) as usize);
            let here = len.min((PIECE - inside) as u64);
            match &mut self.pieces[index] {
                piece if byte == 0 && here == PIECE as u64 => *piece = None,
                None if byte == 0 => {}
                piece => {
                    let piece = piece.get_or_insert_with(|| vec![0; PIECE].into_boxed_slice());
                    piece[inside..inside + here as usize].fill(byte);
                }
            }
            (at, len) = (at + here, len - here);
        }
    }
}

/// What changes of a namespace.
#[derive(Debug)]
pub(super) struct State {
    pub(super) blocks: u64,
    /// Index of the format in use.
    pub(super) format: usize,
    pub(super) write_protected: bool,
    contents: Contents,
    /// By block that was written and not made durable: what it was before.
    journal: BTreeMap<u64, Box<[u8]>>,
    /// Blocks that cannot be read.
    poisoned: BTreeSet<u64>,
    pub(super) zones: Option<Zones>,
}

/// One namespace.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) options: NamespaceOptions,
    pub(super) state: Lock<State>,
}

impl Namespace {
    fn new(options: &NamespaceOptions) -> Arc<Namespace> {
        let shift = options.formats[0].0;
        let state = State {
            blocks: options.blocks,
            format: 0,
            write_protected: options.write_protected,
            contents: Contents::new(options.blocks << shift),
            journal: BTreeMap::new(),
            poisoned: BTreeSet::new(),
            zones: options.zones.as_ref().map(|zones| Zones::new(zones, options.blocks)),
        };
        Arc::new(Namespace { options: options.clone(), state: Lock::new(state) })
    }

    /// Its formats as Identify has them.
    pub(super) fn formats(&self) -> impl Iterator<Item = LbaFormat> {
        self.options.formats.iter().map(|(lbads, ms)| LbaFormat { ms: (*ms).into(), lbads: *lbads, rp: 0 })
    }

    pub(super) fn metadata(&self, state: &State) -> u16 {
        self.options.formats[state.format].1
    }

    pub(super) fn shift(&self, state: &State) -> u8 {
        self.options.formats[state.format].0
    }

    /// Gives it another format, and forgets all that it holds.
    pub(super) fn format(&self, index: usize) -> bool {
        let mut state = self.state.lock();
        let Some((shift, _)) = self.options.formats.get(index) else {
            return false;
        };
        let bytes = state.blocks << self.shift(&state);
        state.format = index;
        state.blocks = bytes >> shift;
        state.contents = Contents::new(bytes);
        state.journal.clear();
        state.poisoned.clear();
        let blocks = state.blocks;
        state.zones = self.options.zones_of(index).map(|zones| Zones::new(&zones, blocks));
        true
    }
}

/// Blocks of a namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) slba: u64,
    pub(super) blocks: u64,
    pub(super) shift: u8,
}

impl Range {
    fn at(self) -> u64 {
        self.slba << self.shift
    }

    pub(super) fn bytes(self) -> u64 {
        self.blocks << self.shift
    }
}

impl State {
    pub(super) fn check(&self, range: Range) -> Result<(), StatusCode> {
        match range.slba.checked_add(range.blocks) {
            Some(end) if end <= self.blocks => Ok(()),
            _ => Err(StatusCode::LBA_OUT_OF_RANGE),
        }
    }

    /// The first block of a range that cannot be read.
    pub(super) fn unreadable(&self, range: Range) -> Option<u64> {
        if self.poisoned.is_empty() {
            return None;
        }
        self.poisoned.range(range.slba..range.slba + range.blocks).next().copied()
    }

    /// Hands out `len` bytes from byte `skip` of a range on.
    pub(super) fn read(&self, range: Range, skip: usize, len: usize, f: impl FnMut(&[u8]) -> bool) -> bool {
        self.contents.read(range.at() + skip as u64, len, f)
    }

    /// Before a range is written: remembers what is durable, if the new will not be at once.
    pub(super) fn begin_write(&mut self, range: Range, cached: bool) {
        for block in range.slba..range.slba + range.blocks {
            if cached && !self.journal.contains_key(&block) {
                let mut old = Vec::with_capacity(1 << range.shift);
                self.contents.read(block << range.shift, 1 << range.shift, |bytes| {
                    old.extend_from_slice(bytes);
                    true
                });
                self.journal.insert(block, old.into_boxed_slice());
            } else if !cached && !self.journal.is_empty() {
                self.journal.remove(&block);
            }
            if !self.poisoned.is_empty() {
                self.poisoned.remove(&block);
            }
        }
    }

    /// Has `len` bytes from byte `skip` of a range on filled in.
    pub(super) fn write(&mut self, range: Range, skip: usize, len: usize, f: impl FnMut(&mut [u8]) -> bool) -> bool {
        self.contents.write(range.at() + skip as u64, len, f)
    }

    pub(super) fn fill(&mut self, range: Range, byte: u8) {
        self.contents.fill(range.at(), range.bytes(), byte);
    }

    pub(super) fn flush(&mut self) {
        self.journal.clear();
    }

    /// Blocks that a loss of power may take back.
    fn lose_power(&mut self, shift: u8, entropy: &Entropy) {
        for (block, old) in std::mem::take(&mut self.journal) {
            if entropy.below(2) == 0 {
                let mut from = &old[..];
                self.contents.write(block << shift, old.len(), |bytes| {
                    let (here, rest) = from.split_at(bytes.len());
                    bytes.copy_from_slice(here);
                    from = rest;
                    true
                });
            }
        }
    }
}

/// Counters of the SMART log, and settings that outlive controllers.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) media_errors: AtomicU64,
    pub(super) power_cycles: AtomicU64,
    pub(super) unsafe_shutdowns: AtomicU64,
    pub(super) warning: AtomicU32,
    pub(super) temperature_k: AtomicU32,
    pub(super) errors: Lock<Vec<ErrorLogEntry>>,
    pub(super) error_count: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    options: DiskOptions,
    namespaces: Lock<BTreeMap<u32, Arc<Namespace>>>,
    cache: AtomicBool,
    health: Health,
    controllers: AtomicU32,
    losses: AtomicU64,
}

/// See the module's head. Clones are the same disk; it outlives controllers, processes and power.
#[derive(Clone, Debug)]
pub struct FakeDisk(Arc<Inner>);

impl FakeDisk {
    /// A disk that holds zeros.
    ///
    /// # Panics
    /// If a namespace has no format, or the identifier of another.
    pub fn new(options: DiskOptions) -> FakeDisk {
        let mut namespaces = BTreeMap::new();
        for namespace in &options.namespaces {
            let other = namespaces.insert(namespace.nsid, Namespace::new(namespace));
            assert!(other.is_none() && namespace.nsid > 0, "two namespaces {}", namespace.nsid);
        }
        let health =
            Health { temperature_k: AtomicU32::new(300), power_cycles: AtomicU64::new(1), ..Health::default() };
        FakeDisk(Arc::new(Inner {
            cache: AtomicBool::new(options.write_cache),
            options,
            namespaces: Lock::new(namespaces),
            health,
            controllers: AtomicU32::new(0),
            losses: AtomicU64::new(0),
        }))
    }

    pub(super) fn options(&self) -> &DiskOptions {
        &self.0.options
    }

    pub(super) fn health(&self) -> &Health {
        &self.0.health
    }

    /// Number of the next controller.
    pub(super) fn number(&self) -> u16 {
        self.0.controllers.fetch_add(1, Ordering::Relaxed) as u16 + 1
    }

    pub(super) fn namespaces(&self) -> Vec<Arc<Namespace>> {
        self.0.namespaces.lock().values().cloned().collect()
    }

    pub(super) fn namespace(&self, nsid: u32) -> Option<Arc<Namespace>> {
        self.0.namespaces.lock().get(&nsid).cloned()
    }

    /// Whether what is written is durable later only.
    #[inline]
    pub(super) fn caches(&self) -> bool {
        self.0.cache.load(Ordering::Relaxed)
    }

    /// Turns the write cache on or off; what is in it becomes durable with that.
    pub(super) fn set_cache(&self, on: bool) {
        self.0.cache.store(on, Ordering::Relaxed);
        if !on {
            self.flush();
        }
    }

    /// Makes all that is written durable.
    pub(super) fn flush(&self) {
        self.namespaces().iter().for_each(|namespace| namespace.state.lock().flush());
    }

    fn at(&self, nsid: u32) -> Arc<Namespace> {
        self.namespace(nsid).unwrap_or_else(|| panic!("there is no namespace {nsid}"))
    }

    /// The power of the disk fails: each block that was written and is not durable is by chance as it was, or as it is. Controllers are to
    /// be removed, and made anew.
    pub fn power_cut(&self, entropy: &Entropy) {
        self.lose_cache(entropy);
        self.0.cache.store(self.0.options.write_cache, Ordering::Relaxed);
        let health = self.health();
        health.power_cycles.fetch_add(1, Ordering::Relaxed);
        health.unsafe_shutdowns.fetch_add(1, Ordering::Relaxed);
    }

    /// Each block that was written and is not durable is by chance as it was, or as it is.
    pub(super) fn lose_cache(&self, entropy: &Entropy) {
        self.0.losses.fetch_add(1, Ordering::Release);
        for namespace in self.namespaces() {
            let mut state = namespace.state.lock();
            let shift = namespace.shift(&state);
            state.lose_power(shift, entropy);
            if let Some(zones) = &mut state.zones {
                zones.lose_power();
            }
        }
    }

    /// How often it has lost what it had cached, or would have.
    pub fn losses(&self) -> u64 {
        self.0.losses.load(Ordering::Acquire)
    }

    /// `len` bytes that a namespace holds, from byte `offset` on.
    ///
    /// # Panics
    /// If there is no such namespace, or they are not in it.
    pub fn contents(&self, nsid: u32, offset: u64, len: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(len);
        self.at(nsid).state.lock().contents.read(offset, len, |bytes| {
            all.extend_from_slice(bytes);
            true
        });
        all
    }

    /// Puts bytes into a namespace, durably, from byte `offset` on.
    ///
    /// # Panics
    /// As [`FakeDisk::contents`].
    pub fn put(&self, nsid: u32, offset: u64, mut data: &[u8]) {
        self.at(nsid).state.lock().contents.write(offset, data.len(), |bytes| {
            let (here, rest) = data.split_at(bytes.len());
            bytes.copy_from_slice(here);
            data = rest;
            true
        });
    }

    /// Blocks of a namespace that are written and not durable.
    ///
    /// # Panics
    /// If there is no such namespace.
    pub fn unflushed(&self, nsid: u32) -> usize {
        self.at(nsid).state.lock().journal.len()
    }

    /// Has a block be unreadable until it is written.
    ///
    /// # Panics
    /// If there is no such namespace.
    pub fn poison(&self, nsid: u32, block: u64) {
        self.at(nsid).state.lock().poisoned.insert(block);
    }

    /// Takes writes of a namespace no more, or again.
    ///
    /// # Panics
    /// If there is no such namespace.
    pub fn protect(&self, nsid: u32, protected: bool) {
        self.at(nsid).state.lock().write_protected = protected;
    }

    /// Gives a namespace another size in blocks; what is behind the end is lost. Controllers are told by
    /// [`super::FakePort::changed`].
    ///
    /// # Panics
    /// If there is no such namespace.
    pub fn resize(&self, nsid: u32, blocks: u64) {
        let namespace = self.at(nsid);
        let state = &mut *namespace.state.lock();
        if let Some(zones) = &mut state.zones {
            zones.resize(blocks);
        }
        let shift = namespace.shift(state);
        state.blocks = blocks;
        let pieces = (blocks << shift).div_ceil(PIECE as u64) as usize;
        state.contents.pieces.resize_with(pieces, || None);
        state.journal.retain(|block, _| *block < blocks);
    }

    /// Puts a zone of a namespace, by its number, into a state.
    ///
    /// # Panics
    /// If there is no such namespace or zone.
    pub fn set_zone(&self, nsid: u32, index: usize, to: ZoneState) {
        let namespace = self.at(nsid);
        namespace.state.lock().zones.as_mut().expect("a namespace with zones").set_state(index, to);
    }

    /// Whether any of its namespaces has zones.
    pub(super) fn is_zoned(&self) -> bool {
        self.0.options.namespaces.iter().any(|namespace| namespace.zones.is_some())
    }

    /// The composite temperature in kelvin, and the critical warnings of the SMART log, bits of
    /// [`critical_warning`](crate::nvme::spec::critical_warning). Controllers tell of a new warning by [`super::FakePort::warn`].
    pub fn set_health(&self, temperature_k: u16, warning: u8) {
        self.health().temperature_k.store(u32::from(temperature_k), Ordering::Relaxed);
        self.health().warning.store(u32::from(warning), Ordering::Relaxed);
    }
}

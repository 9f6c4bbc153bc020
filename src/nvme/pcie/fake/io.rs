//! Commands of the NVM Command Set (NVM §3).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::FromBytes;

use super::disk::{Namespace, Range, State};
use super::memory::Dma;
use super::pointer::{Pieces, Rules};
use super::zoned::{if_zoned, outcome};
use super::{Inner, count};
use crate::nvme::spec::{
    DeallocatedReads, DsmAttributes, DsmRange, ErrorLogEntry, NSID_BROADCAST, NvmOpcode, ONCS_COMPARE, ONCS_DSM,
    ONCS_VERIFY, ONCS_WRITE_ZEROES, RwCdw12, SGLS_DWORD, SGLS_MASK, SGLS_SUPPORTED, Sqe, Status, StatusCode,
    ZoneReceiveFields, ZoneSendFields, dsm_ranges_z, size_limit,
};

/// What a deallocated block reads as whose namespace does not say what: nobody may rely on it.
const UNSAID: u8 = 0x5a;

/// A status, or success.
pub(super) type Outcome = Result<(), Status>;

/// Moves the first `end` bytes of a command's data, piece by piece: `f` gets the address, how many bytes came before, and how many
/// these are, and says whether the host's memory was there.
fn transfer(pieces: &Pieces, end: usize, mut f: impl FnMut(u64, usize, usize) -> bool) -> Outcome {
    let mut skip = 0;
    for (address, len) in pieces.iter().copied() {
        let len = len.min(end - skip);
        if !f(address, skip, len) {
            return Err(StatusCode::DATA_TRANSFER_ERROR.dnr());
        }
        skip += len;
    }
    Ok(())
}

impl Inner {
    pub(super) fn rules(&self) -> Rules {
        let sgl = match self.disk.options().sgls & SGLS_MASK {
            SGLS_SUPPORTED => Some(0),
            SGLS_DWORD => Some(3),
            _ => None,
        };
        Rules { page: self.page(), sgl }
    }

    /// A namespace that commands may name (Base §3.2.1.2).
    pub(super) fn named(&self, nsid: u32) -> Result<Arc<Namespace>, Status> {
        if let Some(namespace) = self.namespaces.lock().get(&nsid) {
            return Ok(Arc::clone(namespace));
        }
        let is_valid = nsid != 0 && nsid != NSID_BROADCAST && nsid <= self.namespaces_max();
        let code = if is_valid { StatusCode::INVALID_FIELD } else { StatusCode::INVALID_NAMESPACE };
        Err(code.dnr())
    }

    /// Carries out a command of an I/O queue: its status, and dwords 0 and 1. `half`: only the first half of its data, and says nothing
    /// of that.
    pub(super) fn io_command(&self, dma: &Dma<'_>, sqe: &Sqe, half: bool, pieces: &mut Pieces) -> (Status, u64) {
        pieces.clear();
        let mut result = 0;
        let status = self.try_command(dma, sqe, (half, &mut result), pieces).err().unwrap_or(Status::SUCCESS);
        (status, result)
    }

    fn try_command(&self, dma: &Dma<'_>, sqe: &Sqe, (half, result): (bool, &mut u64), pieces: &mut Pieces) -> Outcome {
        let opcode = self.supported(sqe)?;
        if opcode == NvmOpcode::FLUSH && sqe.nsid.get() == NSID_BROADCAST {
            self.disk.flush();
            return Ok(());
        }
        let namespace = self.named(sqe.nsid.get())?;
        let state = &mut *namespace.state.lock();
        if matches!(
            opcode,
            NvmOpcode::ZONE_APPEND | NvmOpcode::ZONE_MANAGEMENT_SEND | NvmOpcode::ZONE_MANAGEMENT_RECEIVE
        ) {
            return self.zone_command(dma, sqe, (&namespace, state), (half, result), pieces);
        }
        self.command_on(dma, sqe, (&namespace, state), half, pieces)
    }

    /// The commands that only namespaces with zones have.
    fn zone_command(
        &self,
        dma: &Dma<'_>,
        sqe: &Sqe,
        (namespace, state): (&Namespace, &mut State),
        (half, result): (bool, &mut u64),
        pieces: &mut Pieces,
    ) -> Outcome {
        let Some(zones) = &mut state.zones else {
            return Err(StatusCode::INVALID_OPCODE.dnr());
        };
        match sqe.nvm_opcode() {
            NvmOpcode::ZONE_MANAGEMENT_RECEIVE => {
                let data = outcome(zones.report(&ZoneReceiveFields::of(sqe)))?;
                self.data(dma, sqe, data.len() as u64, pieces)?;
                let end = if half { data.len() / 2 } else { data.len() };
                transfer(pieces, end, |to, skip, len| dma.write(to, &data[skip..skip + len]))
            }
            _ if state.write_protected => Err(StatusCode::NAMESPACE_WRITE_PROTECTED.dnr()),
            NvmOpcode::ZONE_MANAGEMENT_SEND => {
                let shift = namespace.options.formats[state.format].0;
                let emptied = outcome(zones.manage(&ZoneSendFields::of(sqe)))?.into_iter();
                let ranges: Vec<Range> = emptied
                    .map(|index| zones.blocks(index))
                    .map(|(slba, blocks)| Range { slba, blocks, shift })
                    .collect();
                self.deallocate(namespace, state, &ranges);
                Ok(())
            }
            _ => {
                let range = self.range(sqe, namespace, state)?;
                self.limit(self.disk.options().zasl, range)?;
                self.data(dma, sqe, range.bytes(), pieces)?;
                let slba = match &mut state.zones {
                    Some(zones) => outcome(zones.append(range.slba, range.blocks))?,
                    None => unreachable!("it has zones"),
                };
                *result = slba;
                self.store(dma, sqe, (state, Range { slba, ..range }), half, pieces)
            }
        }
    }

    fn deallocate(&self, namespace: &Namespace, state: &mut State, ranges: &[Range]) {
        for range in ranges {
            state.begin_write(*range, self.disk.caches());
            state.fill(
                *range,
                match namespace.options.deallocated {
                    DeallocatedReads::ZEROS => 0,
                    DeallocatedReads::ONES => u8::MAX,
                    _ => UNSAID,
                },
            );
        }
    }

    fn supported(&self, sqe: &Sqe) -> Result<NvmOpcode, Status> {
        let opcode = sqe.nvm_opcode();
        if self.has_command(opcode) { Ok(opcode) } else { Err(StatusCode::INVALID_OPCODE.dnr()) }
    }

    /// Whether it is one of the mandatory commands, or of those that ONCS says.
    pub(super) fn has_command(&self, opcode: NvmOpcode) -> bool {
        let needed = match opcode {
            NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::FLUSH => 0,
            NvmOpcode::COMPARE => ONCS_COMPARE,
            NvmOpcode::WRITE_ZEROES => ONCS_WRITE_ZEROES,
            NvmOpcode::DATASET_MANAGEMENT => ONCS_DSM,
            NvmOpcode::VERIFY => ONCS_VERIFY,
            NvmOpcode::ZONE_APPEND | NvmOpcode::ZONE_MANAGEMENT_SEND | NvmOpcode::ZONE_MANAGEMENT_RECEIVE => {
                return self.disk.is_zoned();
            }
            _ => return false,
        };
        self.disk.options().oncs & needed == needed
    }

    fn command_on(
        &self,
        dma: &Dma<'_>,
        sqe: &Sqe,
        (namespace, state): (&Namespace, &mut State),
        half: bool,
        pieces: &mut Pieces,
    ) -> Outcome {
        let opcode = sqe.nvm_opcode();
        if namespace.metadata(state) != 0 && opcode != NvmOpcode::FLUSH {
            // Metadata is not modelled, and nothing is served without it.
            return Err(StatusCode::INTERNAL_ERROR.dnr());
        }
        match opcode {
            NvmOpcode::FLUSH => {
                state.flush();
                Ok(())
            }
            NvmOpcode::DATASET_MANAGEMENT => self.dataset_management(dma, sqe, namespace, state, pieces),
            _ => {
                let range = self.range(sqe, namespace, state)?;
                match opcode {
                    NvmOpcode::READ => self.read_blocks(dma, sqe, (state, range), half, pieces),
                    NvmOpcode::WRITE => self.write_blocks(dma, sqe, (state, range), half, pieces),
                    NvmOpcode::COMPARE => self.compare(dma, sqe, (state, range), pieces),
                    NvmOpcode::WRITE_ZEROES => self.write_zeroes(sqe, namespace, state, range),
                    _ => self.verify(dma, sqe, state, range),
                }
            }
        }
    }

    fn range(&self, sqe: &Sqe, namespace: &Namespace, state: &State) -> Result<Range, Status> {
        let blocks = u64::from(RwCdw12(sqe.cdw12.get()).nlb_z()) + 1;
        let range = Range { slba: sqe.slba(), blocks, shift: namespace.shift(state) };
        state.check(range).map_err(StatusCode::dnr)?;
        Ok(range)
    }

    fn limit(&self, power: u8, range: Range) -> Outcome {
        match size_limit(power, self.cap()) {
            Some(most) if range.bytes() > most => Err(StatusCode::INVALID_FIELD.dnr()),
            _ => Ok(()),
        }
    }

    /// The pieces of a command's data, which is not longer than MDTS says.
    fn data(&self, dma: &Dma<'_>, sqe: &Sqe, len: u64, pieces: &mut Pieces) -> Outcome {
        let mdts = size_limit(self.disk.options().mdts, self.cap());
        if mdts.is_some_and(|most| len > most) {
            self.breaks(|| format!("queue {}: {len} bytes are more than MDTS", dma.qid));
            return Err(StatusCode::INVALID_FIELD.dnr());
        }
        self.point(dma, sqe, len as usize, pieces)
    }

    pub(super) fn point(&self, dma: &Dma<'_>, sqe: &Sqe, len: usize, pieces: &mut Pieces) -> Outcome {
        self.rules().follow(dma, sqe, len, pieces).map_err(|(code, why)| {
            if !why.is_empty() {
                self.breaks(|| format!("queue {} command {:#06x}: {why}", dma.qid, dma.cid));
            }
            code.dnr()
        })
    }

    /// An entry for the error log, with the status that says so.
    fn media_error(&self, dma: &Dma<'_>, sqe: &Sqe, lba: u64, code: StatusCode) -> Status {
        let health = self.disk.health();
        count(&health.media_errors);
        let status = code.retry().with_more();
        let mut entry = ErrorLogEntry::default();
        entry.error_count.set(health.error_count.fetch_add(1, Ordering::Relaxed) + 1);
        entry.sqid.set(dma.qid);
        entry.cid.set(sqe.cid.get());
        entry.status.set(status.to_wire());
        entry.parameter_location.set(u16::MAX);
        entry.lba.set(lba);
        entry.nsid.set(sqe.nsid.get());
        self.log_error(entry);
        status
    }

    fn readable(&self, dma: &Dma<'_>, sqe: &Sqe, state: &State, range: Range) -> Outcome {
        if let Some(zones) = &state.zones {
            outcome(zones.read(range.slba, range.blocks))?;
        }
        match state.unreadable(range) {
            Some(lba) => Err(self.media_error(dma, sqe, lba, StatusCode::UNRECOVERED_READ_ERROR)),
            None => Ok(()),
        }
    }

    fn read_blocks(
        &self,
        dma: &Dma<'_>,
        sqe: &Sqe,
        (state, range): (&mut State, Range),
        half: bool,
        pieces: &mut Pieces,
    ) -> Outcome {
        self.data(dma, sqe, range.bytes(), pieces)?;
        self.readable(dma, sqe, state, range)?;
        let end = if half { range.bytes() as usize / 2 } else { range.bytes() as usize };
        transfer(pieces, end, |mut to, skip, len| {
            state.read(range, skip, len, |bytes| {
                let written = dma.write(to, bytes);
                to += bytes.len() as u64;
                written
            })
        })?;
        let health = self.disk.health();
        count(&health.reads);
        health.bytes_read.fetch_add(range.bytes(), Ordering::Relaxed);
        Ok(())
    }

    fn write_blocks(
        &self,
        dma: &Dma<'_>,
        sqe: &Sqe,
        (state, range): (&mut State, Range),
        half: bool,
        pieces: &mut Pieces,
    ) -> Outcome {
        if state.write_protected {
            return Err(StatusCode::NAMESPACE_WRITE_PROTECTED.dnr());
        }
        self.data(dma, sqe, range.bytes(), pieces)?;
        if_zoned(state.zones.as_mut(), |zones| zones.write(range.slba, range.blocks))?;
        self.store(dma, sqe, (state, range), half, pieces)
    }

    fn store(
        &self,
        dma: &Dma<'_>,
        sqe: &Sqe,
        (state, range): (&mut State, Range),
        half: bool,
        pieces: &mut Pieces,
    ) -> Outcome {
        let fua = sqe.cdw12.get() & RwCdw12::FUA != 0;
        state.begin_write(range, self.disk.caches() && !fua);
        let end = if half { range.bytes() as usize / 2 } else { range.bytes() as usize };
        transfer(pieces, end, |mut from, skip, len| {
            state.write(range, skip, len, |bytes| {
                let read = dma.read(from, bytes);
                from += bytes.len() as u64;
                read
            })
        })?;
        let health = self.disk.health();
        count(&health.writes);
        health.bytes_written.fetch_add(range.bytes(), Ordering::Relaxed);
        Ok(())
    }

    fn compare(&self, dma: &Dma<'_>, sqe: &Sqe, (state, range): (&mut State, Range), pieces: &mut Pieces) -> Outcome {
        self.data(dma, sqe, range.bytes(), pieces)?;
        self.readable(dma, sqe, state, range)?;
        let (mut skip, mut same) = (0, true);
        for (address, len) in pieces.iter().copied() {
            let mut theirs = vec![0; len];
            if !dma.read(address, &mut theirs) {
                return Err(StatusCode::DATA_TRANSFER_ERROR.dnr());
            }
            let mut rest = &theirs[..];
            state.read(range, skip, len, |bytes| {
                let (here, behind) = rest.split_at(bytes.len());
                same &= here == bytes;
                rest = behind;
                same
            });
            skip += len;
        }
        count(&self.disk.health().reads);
        if same { Ok(()) } else { Err(StatusCode::COMPARE_FAILURE.dnr()) }
    }

    fn write_zeroes(&self, sqe: &Sqe, namespace: &Namespace, state: &mut State, range: Range) -> Outcome {
        if state.write_protected {
            return Err(StatusCode::NAMESPACE_WRITE_PROTECTED.dnr());
        }
        self.limit(self.disk.options().write_zeroes_limit, range)?;
        let flags = sqe.cdw12.get();
        if flags & RwCdw12::DEAC != 0 && !namespace.options.deac {
            self.breaks(|| "Write Zeroes with DEAC, which DLFEAT does not offer".to_owned());
        }
        if_zoned(state.zones.as_mut(), |zones| zones.write(range.slba, range.blocks))?;
        state.begin_write(range, self.disk.caches() && flags & RwCdw12::FUA == 0);
        // Deallocated or not, the blocks read as zeros afterwards (NVM §3.2.8).
        state.fill(range, 0);
        Ok(())
    }

    fn verify(&self, dma: &Dma<'_>, sqe: &Sqe, state: &State, range: Range) -> Outcome {
        self.limit(self.disk.options().verify_limit, range)?;
        self.readable(dma, sqe, state, range)
    }

    fn dataset_management(
        &self,
        dma: &Dma<'_>,
        sqe: &Sqe,
        namespace: &Namespace,
        state: &mut State,
        pieces: &mut Pieces,
    ) -> Outcome {
        let options = self.disk.options();
        let count = usize::from(dsm_ranges_z(sqe)) + 1;
        let mut list = vec![0; count * size_of::<DsmRange>()];
        self.point(dma, sqe, list.len(), pieces)?;
        let mut rest = &mut list[..];
        for (address, len) in pieces.iter().copied() {
            let (here, behind) = rest.split_at_mut(len);
            if !dma.read(address, here) {
                return Err(StatusCode::DATA_TRANSFER_ERROR.dnr());
            }
            rest = behind;
        }
        let shift = namespace.shift(state);
        let ranges: Vec<Range> = list
            .chunks_exact(size_of::<DsmRange>())
            .map(|bytes| DsmRange::read_from_bytes(bytes).expect("whole ranges"))
            .map(|range| Range { slba: range.slba.get(), blocks: u64::from(range.blocks.get()), shift })
            .collect();
        let exceeds = |most: u64, asked: u64| most != 0 && asked > most;
        let longest = ranges.iter().map(|range| range.blocks).max().unwrap_or(0);
        let total = ranges.iter().map(|range| range.blocks).sum();
        if exceeds(options.ranges_max.into(), count as u64)
            || exceeds(options.range_blocks_max.into(), longest)
            || exceeds(options.ranges_blocks_max, total)
        {
            return Err(StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED.dnr());
        }
        ranges.iter().try_for_each(|range| state.check(*range).map_err(StatusCode::dnr))?;
        if sqe.cdw11.get() & DsmAttributes::DEALLOCATE == 0 {
            return Ok(());
        }
        if state.write_protected {
            return Err(StatusCode::NAMESPACE_WRITE_PROTECTED.dnr());
        }
        // Of what is in zones it is advice that is not followed.
        if state.zones.is_none() {
            self.deallocate(namespace, state, &ranges);
        }
        Ok(())
    }

    /// Carries out a fused compare and write as one (NVM §2.1.5): the namespace is locked meanwhile. The answers of both.
    pub(super) fn pair(&self, dma: &Dma<'_>, first: &Sqe, second: &Sqe, pieces: &mut Pieces) -> (Status, Status) {
        let same = |of: fn(&Sqe) -> u64| of(first) == of(second);
        let failed = |code: StatusCode| (code.dnr(), StatusCode::ABORTED_FAILED_FUSED.dnr());
        let is_pair = first.nvm_opcode() == NvmOpcode::COMPARE && second.nvm_opcode() == NvmOpcode::WRITE;
        let same_blocks =
            same(|sqe| sqe.nsid.get().into()) && same(Sqe::slba) && same(|sqe| sqe.cdw12.get() as u16 as u64);
        if !self.disk.options().fused || !is_pair || !same_blocks {
            self.breaks(|| format!("queue {}: a fused pair that is none", dma.qid));
            return failed(StatusCode::INVALID_FIELD);
        }
        let namespace = match self.supported(first).and_then(|_| self.named(first.nsid.get())) {
            Ok(namespace) => namespace,
            Err(status) => return (status, StatusCode::ABORTED_FAILED_FUSED.dnr()),
        };
        let limit = namespace.options.nacwu_z.unwrap_or(self.disk.options().acwu_z);
        if RwCdw12(first.cdw12.get()).nlb_z() > limit {
            return failed(StatusCode::ATOMIC_WRITE_UNIT_EXCEEDED);
        }
        if let Some((nabsn_z, nabo)) = namespace.options.atomic_boundary {
            let section = |block: u64| block.checked_sub(nabo.into()).map(|at| at / (u64::from(nabsn_z) + 1));
            let (start, more) = (first.slba(), u64::from(RwCdw12(first.cdw12.get()).nlb_z()));
            if section(start) != section(start + more) {
                self.breaks(|| format!("queue {}: a fused pair across an atomic boundary is none", dma.qid));
            }
        }
        let state = &mut *namespace.state.lock();
        if let Err(status) = self.command_on(dma, first, (&namespace, state), false, pieces) {
            return (status, StatusCode::ABORTED_FAILED_FUSED.dnr());
        }
        let dma = Dma { cid: second.cid.get(), ..*dma };
        let written = self.command_on(&dma, second, (&namespace, state), false, pieces);
        (Status::SUCCESS, written.err().unwrap_or(Status::SUCCESS))
    }
}

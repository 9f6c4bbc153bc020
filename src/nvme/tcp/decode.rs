//! The decoder: received bytes in, events out.

use core::mem::size_of;

use zerocopy::FromBytes;

use super::negotiate::{IcRequest, IcResponse};
use super::pdu::*;
use crate::nvme::spec::{Cqe, Sqe};
use crate::util::{DataDigest, crc32c};

/// Which end of the connection this side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives host-to-controller PDUs, sends controller-to-host PDUs.
    Controller,
    /// The other way round.
    Host,
}

/// Bounds on what the peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of in-capsule data in a command capsule (controller only).
    pub in_capsule: u32,
    /// Most bytes in one data PDU: MAXH2CDATA for a controller, the largest transfer for a host.
    pub data: u32,
    /// Alignment of data this side asked for (CPDA or HPDA), in dwords, zero's-based, 0 to 31.
    pub alignment_z: u8,
}

/// What the decoder found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The host's first PDU. Answer it, then tell the decoder with [`Decoder::set_digests`].
    IcReq(IcRequest),
    /// The controller's first PDU.
    IcResp(IcResponse),
    /// A command; `data_len` bytes of in-capsule data follow as [`Event::Data`], ended by [`Event::DataEnd`] unless 0.
    Command {
        /// The command.
        sqe: Sqe,
        /// Bytes of in-capsule data.
        data_len: u32,
    },
    /// Header of an H2CData PDU; its data follows. Check it with [`super::WriteGrant::accept`].
    H2cData(DataPdu),
    /// Header of a C2HData PDU; its data follows. Check it with [`super::ReadProgress::accept`].
    C2hData(DataPdu),
    /// The controller asks for data.
    R2t(R2tPdu),
    /// A response.
    Response(Cqe),
    /// A piece of the data of the last header.
    Data(&'a [u8]),
    /// All data of the last header has arrived.
    DataEnd {
        /// The data digest matched, or none is in use. A mismatch fails the command with Transient Transport Error
        /// and leaves the connection intact (TCP §3.5).
        digest_ok: bool,
    },
    /// The peer ends the connection; what follows is dropped. Close it.
    Term {
        /// Fatal Error Status.
        status: FatalErrorStatus,
        /// Fatal Error Information.
        info: u32,
    },
}

/// Transfers of this length or more are long.
pub const LONG_DATA: u32 = 64 * 1024;

/// Bytes received at once while long data is awaited: some headers, and little of the data behind them.
const HEADERS_LEN: usize = 512;

/// Bytes of the longest header: ICReq and ICResp, which have no digest.
const CARRY_LEN: usize = size_of::<IcReqPdu>();

/// What the decoder waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A header.
    Header,
    /// Padding, data and digest of the last header.
    Payload,
    /// Nothing: the stream broke, every call returns the error.
    Failed(FatalError),
    /// Nothing: the peer terminated the connection, bytes are dropped.
    Closed,
}

/// Decoder of one connection.
///
/// It copies nothing but headers that arrive in pieces. Plain data: it may be cloned or moved to another process at
/// any time, best at a PDU boundary ([`Decoder::at_boundary`]).
#[derive(Clone, Debug)]
pub struct Decoder {
    role: Role,
    stage: Stage,
    /// ICReq or ICResp has been received.
    initialized: bool,
    header_digest: bool,
    data_digest: bool,
    limits: Limits,
    /// Padding still to skip.
    pad_left: u8,
    /// Digest bytes still to come.
    digest_left: u8,
    /// The current data has a digest.
    digest_used: bool,
    /// Data bytes still to come.
    data_left: u32,
    digest: DataDigest,
    received_digest: [u8; DIGEST_LEN],
    /// Good while digests and limits are what they are.
    plans: Plans,
    /// Bytes in `carry`.
    carry_len: u8,
    /// The start of a header that arrived in pieces; after an error the offending header.
    carry: [u8; CARRY_LEN],
}

/// What a common header says about the rest of its PDU.
#[derive(Clone, Copy, Debug)]
struct Plan {
    data_len: u32,
    /// Header without digest.
    hlen: u8,
    /// Header with digest.
    header_len: u8,
    pad: u8,
    data_digest: bool,
}

impl Plan {
    const NONE: Plan = Plan { data_len: 0, hlen: 0, header_len: 0, pad: 0, data_digest: false };
}

/// The plans made last, by PDU type: nearly all headers of a type are the same for long.
#[derive(Clone, Debug)]
struct Plans([(u64, Plan); Plans::LEN]);

impl Plans {
    /// The types that carry commands, data and responses have places of their own.
    const LEN: usize = 8;

    /// No header stands at its place.
    const fn new() -> Plans {
        let mut plans = [(0, Plan::NONE); Plans::LEN];
        let mut place = 0;
        while place < Plans::LEN {
            plans[place].0 = place as u64 ^ 1;
            place += 1;
        }
        Plans(plans)
    }

    #[inline]
    fn place(header: u64) -> usize {
        header as usize % Plans::LEN
    }

    #[inline]
    fn find(&self, header: u64) -> Option<Plan> {
        let (known, plan) = self.0[Plans::place(header)];
        (known == header).then_some(plan)
    }
}

impl Decoder {
    /// A decoder that waits for the peer's first PDU, which has no digests.
    pub const fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            stage: Stage::Header,
            initialized: false,
            header_digest: false,
            data_digest: false,
            limits,
            pad_left: 0,
            digest_left: 0,
            digest_used: false,
            data_left: 0,
            digest: DataDigest::new(),
            received_digest: [0; DIGEST_LEN],
            plans: Plans::new(),
            carry_len: 0,
            carry: [0; CARRY_LEN],
        }
    }

    /// Sets the digests in use, after [`Event::IcReq`] or [`Event::IcResp`] and before the next call of
    /// [`Decoder::next`].
    pub const fn set_digests(&mut self, header: bool, data: bool) {
        self.header_digest = header;
        self.data_digest = data;
        self.plans = Plans::new();
    }

    /// Sets the most in-capsule data, when Connect has told an I/O queue from an admin queue.
    pub const fn set_in_capsule_limit(&mut self, bytes: u32) {
        self.limits.in_capsule = bytes;
        self.plans = Plans::new();
    }

    /// Whether the next byte starts a PDU: nothing is half received.
    pub fn at_boundary(&self) -> bool {
        self.stage == Stage::Header && self.carry_len == 0
    }

    /// After an error, the header that caused it, for the termination request: 8 bytes when its common header was
    /// at fault, else all of it.
    pub fn offending_header(&self) -> &[u8] {
        &self.carry[..usize::from(self.carry_len)]
    }

    /// Stops the decoder for an error that its caller found in the PDU of the last event: `header` is that PDU's, without its
    /// digest. Returns the error.
    pub fn refuse(&mut self, error: FatalError, header: &[u8]) -> FatalError {
        self.fail(error, header)
    }

    /// Bytes of data, without padding and digest, still to come for the current PDU. The caller may receive up to
    /// that many straight into their place and report them with [`Decoder::data_received`]. 0 while padding is
    /// outstanding.
    pub const fn data_remaining(&self) -> usize {
        match self.stage {
            Stage::Payload if self.pad_left == 0 => self.data_left as usize,
            _ => 0,
        }
    }

    /// How many bytes to receive next, at most. While long data is awaited, these are a header and little more: the rest of its PDU
    /// can be received straight into its place.
    #[inline]
    pub fn wanted(&self, long_data_awaited: bool) -> usize {
        if long_data_awaited && self.stage == Stage::Header { HEADERS_LEN } else { usize::MAX }
    }

    /// Accounts for data that was received elsewhere, in order; the digest is computed from it.
    ///
    /// # Panics
    /// When `bytes` is longer than [`Decoder::data_remaining`].
    pub fn data_received(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.data_remaining(), "more data than the PDU has");
        if self.digest_used {
            self.digest.update(bytes);
        }
        self.data_left -= bytes.len() as u32;
    }

    /// Consumes a prefix of `input` and returns one event, or `None` when all of `input` was consumed without
    /// completing one. It may return [`Event::DataEnd`] on an empty input, after [`Decoder::data_received`].
    ///
    /// # Errors
    /// The stream is broken: the error says what to answer, [`Decoder::offending_header`] what to put in. Every later
    /// call returns the same error.
    #[inline]
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FatalError> {
        match self.stage {
            Stage::Header => self.header(input),
            Stage::Payload => Ok(self.payload(input)),
            Stage::Failed(error) => Err(error),
            Stage::Closed => {
                *input = &[];
                Ok(None)
            }
        }
    }

    #[inline]
    fn header<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FatalError> {
        if self.carry_len == 0
            && let Some(first) = input.first_chunk()
        {
            let first = u64::from_le_bytes(*first);
            let plan = match self.plans.find(first) {
                Some(plan) => plan,
                None => self.new_plan(first).map_err(|error| self.fail(error, &input[..size_of::<CommonHeader>()]))?,
            };
            let header_len = usize::from(plan.header_len);
            if input.len() >= header_len {
                let (header, rest) = input.split_at(header_len);
                *input = rest;
                return self.dispatch(header, plan).map(Some);
            }
        }
        self.header_in_pieces(input)
    }

    #[cold]
    fn header_in_pieces<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FatalError> {
        if !self.fill_carry(input, size_of::<CommonHeader>()) {
            return Ok(None);
        }
        // A copy, so that the header can be read while the decoder changes; headers in pieces are rare.
        let (ch, _) = CommonHeader::read_from_prefix(&self.carry).expect("the carry is longer");
        let plan = match self.plan(&ch) {
            Ok(plan) => plan,
            Err(error) => {
                let carry = self.carry;
                return Err(self.fail(error, &carry[..size_of::<CommonHeader>()]));
            }
        };
        if !self.fill_carry(input, usize::from(plan.header_len)) {
            return Ok(None);
        }
        let carry = self.carry;
        self.carry_len = 0;
        self.dispatch(&carry[..usize::from(plan.header_len)], plan).map(Some)
    }

    /// Fills the carry to `len` bytes; says whether it got there.
    fn fill_carry(&mut self, input: &mut &[u8], len: usize) -> bool {
        let have = usize::from(self.carry_len);
        let take = len.saturating_sub(have).min(input.len());
        let (head, rest) = input.split_at(take);
        self.carry[have..have + take].copy_from_slice(head);
        *input = rest;
        self.carry_len += take as u8;
        usize::from(self.carry_len) >= len
    }

    /// Stops the decoder and keeps the offending header.
    #[cold]
    fn fail(&mut self, error: FatalError, header: &[u8]) -> FatalError {
        let len = header.len().min(CARRY_LEN);
        self.carry[..len].copy_from_slice(&header[..len]);
        self.carry_len = len as u8;
        self.stage = Stage::Failed(error);
        error
    }

    /// Checks a common header, and remembers what it says: before ICReq and ICResp have passed it depends on more than the header.
    #[cold]
    fn new_plan(&mut self, header: u64) -> Result<Plan, FatalError> {
        let plan = self.plan(view::<CommonHeader>(&header.to_le_bytes()))?;
        if self.initialized {
            self.plans.0[Plans::place(header)] = (header, plan);
        }
        Ok(plan)
    }

    /// Checks a common header. Fields are checked in the order of their offsets, because the lowest one at fault is to
    /// be reported (TCP §3.6.2.4).
    fn plan(&self, ch: &CommonHeader) -> Result<Plan, FatalError> {
        const SEQUENCE: FatalError = FatalError::status(FatalErrorStatus::SEQUENCE_ERROR);
        let digest = FLAG_HEADER_DIGEST;
        let (hlen, flags, has_data) = match (self.role, ch.pdu_type) {
            (Role::Controller, PduType::CAPSULE_CMD) => (size_of::<CapsuleCmdPdu>(), digest | FLAG_DATA_DIGEST, true),
            (Role::Controller, PduType::H2C_DATA) => {
                (size_of::<DataPdu>(), digest | FLAG_DATA_DIGEST | FLAG_LAST, true)
            }
            (Role::Host, PduType::C2H_DATA) => {
                (size_of::<DataPdu>(), digest | FLAG_DATA_DIGEST | FLAG_LAST | FLAG_SUCCESS, true)
            }
            (Role::Host, PduType::CAPSULE_RESP) => (size_of::<CapsuleRespPdu>(), digest, false),
            (Role::Host, PduType::R2T) => (size_of::<R2tPdu>(), digest, false),
            (Role::Controller, PduType::H2C_TERM_REQ) | (Role::Host, PduType::C2H_TERM_REQ) => {
                return Self::plan_term(ch);
            }
            (Role::Controller, PduType::IC_REQ) | (Role::Host, PduType::IC_RESP) => {
                if self.initialized {
                    return Err(SEQUENCE);
                }
                (size_of::<IcReqPdu>(), 0, false)
            }
            _ => return Err(FatalError::invalid_field(field::TYPE)),
        };
        if flags != 0 && !self.initialized {
            return Err(SEQUENCE);
        }
        // A digest flag that the type defines stands exactly when the digest is in use.
        let header_digest = if self.header_digest { flags & FLAG_HEADER_DIGEST } else { 0 };
        let plen = ch.plen.get();
        let header_len = hlen + if header_digest != 0 { DIGEST_LEN } else { 0 };
        let no_data = plen == header_len as u32;
        let mut data_digest = if self.data_digest { flags & FLAG_DATA_DIGEST } else { 0 };
        if no_data {
            // A capsule without data has no data digest, whatever its flag says (TCP §3.6.2.6).
            data_digest &= ch.flags;
        }
        if ch.flags & !flags != 0
            || ch.flags & (FLAG_HEADER_DIGEST | FLAG_DATA_DIGEST) != header_digest | data_digest
            || ch.flags & (FLAG_LAST | FLAG_SUCCESS) == FLAG_SUCCESS
        {
            return Err(FatalError::invalid_field(field::FLAGS));
        }
        if usize::from(ch.hlen) != hlen {
            return Err(FatalError::invalid_field(field::HLEN));
        }
        if no_data && (!has_data || ch.pdu_type == PduType::CAPSULE_CMD) {
            return Ok(Plan { hlen: hlen as u8, header_len: header_len as u8, ..Plan::NONE });
        }
        if !has_data || plen < header_len as u32 {
            return Err(FatalError::invalid_field(field::PLEN));
        }
        let pdo = usize::from(ch.pdo);
        // Data right behind the header is aligned to a dword: the usual case needs no division.
        if (pdo != header_len || self.limits.alignment_z != 0) && !self.aligned(pdo, header_len) || pdo as u32 > plen {
            return Err(FatalError::invalid_field(field::PDO));
        }
        let digest_len = if data_digest != 0 { DIGEST_LEN as u32 } else { 0 };
        let data_len = (plen - pdo as u32).saturating_sub(digest_len);
        if data_len == 0 || (ch.pdu_type == PduType::CAPSULE_CMD && data_len > self.limits.in_capsule) {
            return Err(FatalError::invalid_field(field::PLEN));
        }
        Ok(Plan {
            hlen: hlen as u8,
            header_len: header_len as u8,
            // Below 256: PDO is one byte.
            pad: (pdo - header_len) as u8,
            data_len,
            data_digest: data_digest != 0,
        })
    }

    /// Whether data may start at `pdo` behind a header of `header_len` bytes.
    fn aligned(&self, pdo: usize, header_len: usize) -> bool {
        pdo >= header_len && pdo.is_multiple_of((usize::from(self.limits.alignment_z) + 1) * 4)
    }

    /// A termination request ends the connection in any case; only its length decides whether it is read (TCP §3.5).
    fn plan_term(ch: &CommonHeader) -> Result<Plan, FatalError> {
        let hlen = size_of::<TermReqPdu>();
        let plen = ch.plen.get() as usize;
        if !(hlen..=hlen + TERM_DATA_MAX).contains(&plen) {
            return Err(FatalError::Close);
        }
        Ok(Plan { hlen: hlen as u8, header_len: hlen as u8, ..Plan::NONE })
    }

    /// Turns a complete header of `plan.header_len` bytes into its event.
    #[inline]
    fn dispatch<'a>(&mut self, header: &[u8], plan: Plan) -> Result<Event<'a>, FatalError> {
        let (pdu, digest) = header.split_at(usize::from(plan.hlen));
        if let Ok(digest) = <[u8; DIGEST_LEN]>::try_from(digest) {
            let received = u32::from_le_bytes(digest);
            if crc32c(pdu) != received {
                let error = FatalError::Terminate { status: FatalErrorStatus::HEADER_DIGEST_ERROR, info: received };
                return Err(self.fail(error, pdu));
            }
        }
        match self.event(pdu, &plan) {
            Ok(event) => {
                if plan.data_len != 0 {
                    self.stage = Stage::Payload;
                    self.pad_left = plan.pad;
                    self.data_left = plan.data_len;
                    self.digest_used = plan.data_digest;
                    self.digest_left = if plan.data_digest { DIGEST_LEN as u8 } else { 0 };
                    self.digest = DataDigest::new();
                }
                Ok(event)
            }
            Err(error) => Err(self.fail(error, pdu)),
        }
    }

    /// Reads and checks the PDU specific header.
    #[inline]
    fn event<'a>(&mut self, pdu: &[u8], plan: &Plan) -> Result<Event<'a>, FatalError> {
        // The type was checked with the common header, and with it the length of `pdu`.
        match PduType(pdu[field::TYPE]) {
            PduType::CAPSULE_CMD => {
                let capsule = view::<CapsuleCmdPdu>(pdu);
                Ok(Event::Command { sqe: capsule.sqe, data_len: plan.data_len })
            }
            PduType::H2C_DATA => {
                let data = *view::<DataPdu>(pdu);
                self.check_data(&data, plan)?;
                Ok(Event::H2cData(data))
            }
            PduType::C2H_DATA => {
                let data = *view::<DataPdu>(pdu);
                self.check_data(&data, plan)?;
                Ok(Event::C2hData(data))
            }
            PduType::CAPSULE_RESP => Ok(Event::Response(view::<CapsuleRespPdu>(pdu).cqe)),
            PduType::R2T => {
                let r2t = *view::<R2tPdu>(pdu);
                if !r2t.r2to.get().is_multiple_of(4) {
                    return Err(FatalError::invalid_field(field::DATAO));
                }
                if !r2t.r2tl.get().is_multiple_of(4) || r2t.r2tl.get() == 0 {
                    return Err(FatalError::invalid_field(field::DATAL));
                }
                Ok(Event::R2t(r2t))
            }
            PduType::IC_REQ => {
                let req = view::<IcReqPdu>(pdu);
                check_version(req.pfv.get(), req.hpda_z)?;
                self.initialized = true;
                Ok(Event::IcReq(IcRequest { hpda_z: req.hpda_z, dgst: req.dgst, maxr2t_z: req.maxr2t_z.get() }))
            }
            PduType::IC_RESP => {
                let resp = view::<IcRespPdu>(pdu);
                check_version(resp.pfv.get(), resp.cpda_z)?;
                self.initialized = true;
                Ok(Event::IcResp(IcResponse {
                    cpda_z: resp.cpda_z,
                    dgst: resp.dgst,
                    maxh2cdata: resp.maxh2cdata.get(),
                }))
            }
            _ => {
                let term = view::<TermReqPdu>(pdu);
                self.stage = Stage::Closed;
                Ok(Event::Term { status: FatalErrorStatus(term.fes.get()), info: term.fei.get() })
            }
        }
    }

    #[inline]
    fn check_data(&self, data: &DataPdu, plan: &Plan) -> Result<(), FatalError> {
        if data.datal.get() != plan.data_len {
            return Err(FatalError::invalid_field(field::PLEN));
        }
        if !data.datao.get().is_multiple_of(4) {
            return Err(FatalError::invalid_field(field::DATAO));
        }
        if !plan.data_len.is_multiple_of(4) {
            return Err(FatalError::invalid_field(field::DATAL));
        }
        if plan.data_len > self.limits.data {
            // Towards a host only an R2T has a limit; too much data there lies outside every buffer.
            return Err(FatalError::status(match self.role {
                Role::Controller => FatalErrorStatus::LIMIT_EXCEEDED,
                Role::Host => FatalErrorStatus::DATA_OUT_OF_RANGE,
            }));
        }
        Ok(())
    }

    #[inline]
    fn payload<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        if self.pad_left != 0 {
            let skip = usize::from(self.pad_left).min(input.len());
            *input = &input[skip..];
            self.pad_left -= skip as u8;
            if self.pad_left != 0 {
                return None;
            }
        }
        if self.data_left != 0 {
            if input.is_empty() {
                return None;
            }
            let (bytes, rest) = input.split_at(input.len().min(self.data_left as usize));
            *input = rest;
            self.data_received(bytes);
            return Some(Event::Data(bytes));
        }
        if self.digest_left != 0 {
            let take = usize::from(self.digest_left).min(input.len());
            let (bytes, rest) = input.split_at(take);
            *input = rest;
            let have = DIGEST_LEN - usize::from(self.digest_left);
            self.received_digest[have..have + take].copy_from_slice(bytes);
            self.digest_left -= take as u8;
            if self.digest_left != 0 {
                return None;
            }
        }
        self.stage = Stage::Header;
        Some(Event::DataEnd { digest_ok: !self.digest_used || self.received_digest == self.digest.to_bytes() })
    }
}

/// Reads a header whose length the common header has fixed.
fn view<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned>(pdu: &[u8]) -> &T {
    T::ref_from_bytes(pdu).expect("HLEN was checked against the type")
}

/// PFV and HPDA or CPDA, which ICReq and ICResp have at the same place.
fn check_version(pfv: u16, alignment_z: u8) -> Result<(), FatalError> {
    if pfv != 0 {
        return Err(FatalError::unsupported(field::PFV));
    }
    if alignment_z > ALIGNMENT_MAX_Z {
        return Err(FatalError::invalid_field(field::PDA));
    }
    Ok(())
}

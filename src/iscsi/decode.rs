//! The decoder of the target's side: received bytes in, events out.

use super::pdu::*;
use crate::util::{DataDigest, crc32c};

/// Bounds on what the initiator may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most data bytes of one PDU: the MaxRecvDataSegmentLength that this side declared.
    pub data: u32,
    /// Most bytes of additional header segments, at most [`AHS_MAX`].
    pub ahs: u16,
}

impl Limits {
    /// What holds during the login: there is nothing but its requests, and their data has the default limit (RFC 7143 §13.12).
    pub const LOGIN: Limits = Limits { data: DEFAULT_DATA_SEGMENT, ahs: 0 };
}

/// Why a connection must end without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// A header digest did not match: where the next PDU begins is not known (RFC 7143 §7.8).
    #[error("header digest mismatch")]
    HeaderDigest,
    /// A header is not as it must be; all connections of the session end (RFC 7143 §7.7).
    #[error("format error: {0}")]
    Format(&'static str),
    /// Something else than a Login Request before the login was complete (RFC 7143 §6.3).
    #[error("{0:?} before the login was complete")]
    BeforeLogin(Opcode),
}

impl Fatal {
    /// Whether the other connections of the session end too.
    pub const fn ends_session(self) -> bool {
        matches!(self, Fatal::Format(_))
    }
}

/// The header of a PDU from an initiator. Its data, `data_len` bytes, follows as [`Event::Data`], ended by [`Event::DataEnd`]
/// unless there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// NOP-Out.
    NopOut(NopOut),
    /// SCSI Command; [`Decoder::ahs`] has its additional header segments.
    ScsiCommand(ScsiCommand),
    /// Task management.
    Task(TaskRequest),
    /// Login.
    Login(LoginRequest),
    /// Text.
    Text(TextRequest),
    /// Data-Out.
    DataOut(DataOut),
    /// Logout.
    Logout(LogoutRequest),
    /// SNACK.
    Snack(Snack),
    /// Anything else: reject it with [`RejectReason::COMMAND_NOT_SUPPORTED`] and drop its data.
    Unknown(Bhs),
}

impl Request {
    /// The bytes of the header, as a Reject returns them.
    pub fn header(&self) -> Header {
        match self {
            Request::NopOut(pdu) => pdu.to_bytes(),
            Request::ScsiCommand(pdu) => pdu.to_bytes(),
            Request::Task(pdu) => pdu.to_bytes(),
            Request::Login(pdu) => pdu.to_bytes(),
            Request::Text(pdu) => pdu.to_bytes(),
            Request::DataOut(pdu) => pdu.to_bytes(),
            Request::Logout(pdu) => pdu.to_bytes(),
            Request::Snack(pdu) => pdu.to_bytes(),
            Request::Unknown(pdu) => pdu.to_bytes(),
        }
    }

    fn read(header: &Header) -> Request {
        match Opcode(header[0] & OPCODE_MASK) {
            Opcode::NOP_OUT => Request::NopOut(NopOut::read(header)),
            Opcode::SCSI_COMMAND => Request::ScsiCommand(ScsiCommand::read(header)),
            Opcode::TASK_REQUEST => Request::Task(TaskRequest::read(header)),
            Opcode::LOGIN_REQUEST => Request::Login(LoginRequest::read(header)),
            Opcode::TEXT_REQUEST => Request::Text(TextRequest::read(header)),
            Opcode::DATA_OUT => Request::DataOut(DataOut::read(header)),
            Opcode::LOGOUT_REQUEST => Request::Logout(LogoutRequest::read(header)),
            Opcode::SNACK => Request::Snack(Snack::read(header)),
            _ => Request::Unknown(Bhs::read(header)),
        }
    }
}

/// What the decoder found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A header. Every check of the digest has been passed.
    Request(Request),
    /// A piece of the data of the last header.
    Data(&'a [u8]),
    /// All data of the last header has arrived.
    DataEnd {
        /// The data digest matched, or none is in use.
        digest_ok: bool,
    },
}

/// Bytes received at once while long data is awaited: some headers, and little of the data behind them.
const HEADERS_LEN: usize = 512;

/// Bytes of the longest header with its segments and digest.
const CARRY_LEN: usize = BHS_LEN + AHS_MAX + DIGEST_LEN;

/// What the decoder waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// A header.
    Header,
    /// Data, padding and digest of the last header.
    Payload,
    /// Nothing: the stream broke, every call returns the error.
    Failed(Fatal),
}

/// Decoder of one connection.
///
/// It copies nothing but headers that arrive in pieces or have additional segments. Plain data: it may be cloned or moved to
/// another process at any time, best at a PDU boundary ([`Decoder::at_boundary`]).
#[derive(Clone, Debug)]
pub struct Decoder {
    expect: Expect,
    full_feature: bool,
    header_digest: bool,
    data_digest: bool,
    limits: Limits,
    /// Data bytes still to come.
    data_left: u32,
    /// Padding still to come.
    pad_left: u8,
    /// Digest bytes still to come.
    digest_left: u8,
    digest: DataDigest,
    received_digest: [u8; DIGEST_LEN],
    /// Bytes of additional segments of the last header, in `carry` behind a header.
    ahs_len: u16,
    /// Bytes in `carry`.
    carry_len: u16,
    /// The start of a header that arrived in pieces.
    carry: [u8; CARRY_LEN],
}

impl Decoder {
    /// A decoder that waits for the first Login Request: no digests yet.
    pub const fn new() -> Decoder {
        Decoder {
            expect: Expect::Header,
            full_feature: false,
            header_digest: false,
            data_digest: false,
            limits: Limits::LOGIN,
            data_left: 0,
            pad_left: 0,
            digest_left: 0,
            digest: DataDigest::new(),
            received_digest: [0; DIGEST_LEN],
            ahs_len: 0,
            carry_len: 0,
            carry: [0; CARRY_LEN],
        }
    }

    /// The login is complete: its last response is on its way, and from the next PDU on the digests hold. Call it after the
    /// [`Event::DataEnd`] of the last Login Request.
    pub fn set_full_feature(&mut self, header_digest: bool, data_digest: bool, limits: Limits) {
        self.full_feature = true;
        self.header_digest = header_digest;
        self.data_digest = data_digest;
        self.limits = Limits { ahs: limits.ahs.min(AHS_MAX as u16), ..limits };
    }

    /// Whether the next byte starts a PDU: nothing is half received.
    pub fn at_boundary(&self) -> bool {
        self.expect == Expect::Header && self.carry_len == 0
    }

    /// The additional header segments of the last [`Event::Request`], until the next one.
    pub fn ahs(&self) -> &[u8] {
        &self.carry[BHS_LEN..BHS_LEN + usize::from(self.ahs_len)]
    }

    /// Bytes of data, without padding and digest, still to come for the current PDU. The caller may receive up to that many straight
    /// into their place and report them with [`Decoder::data_received`].
    pub const fn data_remaining(&self) -> usize {
        match self.expect {
            Expect::Payload => self.data_left as usize,
            _ => 0,
        }
    }

    /// How many bytes to receive next, at most. While long data is awaited, these are a header and little more: the rest of its PDU
    /// can be received straight into its place.
    #[inline]
    pub fn wanted(&self, long_data_awaited: bool) -> usize {
        if long_data_awaited && self.expect == Expect::Header { HEADERS_LEN } else { usize::MAX }
    }

    /// Accounts for data that was received elsewhere, in order; the digest is computed from it.
    ///
    /// # Panics
    /// When `bytes` is longer than [`Decoder::data_remaining`].
    pub fn data_received(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.data_remaining(), "more data than the PDU has");
        if self.data_digest {
            self.digest.update(bytes);
        }
        self.data_left -= bytes.len() as u32;
    }

    /// Consumes a prefix of `input` and returns one event, or `None` when all of `input` was consumed without completing one. It may
    /// return [`Event::DataEnd`] on an empty input, after [`Decoder::data_received`].
    ///
    /// # Errors
    /// The stream is broken: close the connection. Every later call returns the same error.
    #[inline]
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fatal> {
        match self.expect {
            Expect::Header => self.header(input),
            Expect::Payload => Ok(self.payload(input)),
            Expect::Failed(error) => Err(error),
        }
    }

    #[inline]
    fn header<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fatal> {
        let len = BHS_LEN + if self.header_digest { DIGEST_LEN } else { 0 };
        if self.carry_len == 0
            && let Some((header, rest)) = input.split_first_chunk::<BHS_LEN>()
            && header[4] == 0
            && input.len() >= len
        {
            let digest = rest.first_chunk().filter(|_| self.header_digest);
            *input = &input[len..];
            self.ahs_len = 0;
            if digest.is_some_and(|digest| u32::from_le_bytes(*digest) != crc32c(header)) {
                return Err(self.fail(Fatal::HeaderDigest));
            }
            return self.dispatch(header).map(Some);
        }
        self.header_in_pieces(input)
    }

    #[cold]
    fn header_in_pieces<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fatal> {
        if !self.fill_carry(input, BHS_LEN) {
            return Ok(None);
        }
        let ahs_len = u16::from(self.carry[4]) * 4;
        // The length is believed before the digest is there to check it: it bounds what is carried, no more.
        if ahs_len > AHS_MAX as u16 {
            return Err(self.fail(Fatal::Format("additional header segments are too long")));
        }
        let end = BHS_LEN + usize::from(ahs_len);
        let digest_len = if self.header_digest { DIGEST_LEN } else { 0 };
        if !self.fill_carry(input, end + digest_len) {
            return Ok(None);
        }
        let (segments, digest) = self.carry[..end + digest_len].split_at(end);
        let good = match digest.first_chunk() {
            Some(digest) => u32::from_le_bytes(*digest) == crc32c(segments),
            None => true,
        };
        self.carry_len = 0;
        self.ahs_len = ahs_len;
        if !good {
            return Err(self.fail(Fatal::HeaderDigest));
        }
        let mut header = [0; BHS_LEN];
        header.copy_from_slice(&self.carry[..BHS_LEN]);
        self.dispatch(&header).map(Some)
    }

    /// Fills the carry to `len` bytes; says whether it got there.
    fn fill_carry(&mut self, input: &mut &[u8], len: usize) -> bool {
        let have = usize::from(self.carry_len);
        let take = len.saturating_sub(have).min(input.len());
        let (head, rest) = input.split_at(take);
        self.carry[have..have + take].copy_from_slice(head);
        *input = rest;
        self.carry_len += take as u16;
        usize::from(self.carry_len) >= len
    }

    #[cold]
    fn fail(&mut self, error: Fatal) -> Fatal {
        self.expect = Expect::Failed(error);
        error
    }

    /// Checks a header whose digest is good and turns it into its event.
    #[inline]
    fn dispatch<'a>(&mut self, header: &Header) -> Result<Event<'a>, Fatal> {
        let bhs = Bhs::read(header);
        let kind = bhs.kind();
        let len = bhs.data_len.get();
        let may_have_data = !matches!(kind, Opcode::TASK_REQUEST | Opcode::LOGOUT_REQUEST | Opcode::SNACK);
        if !self.full_feature && kind != Opcode::LOGIN_REQUEST {
            return Err(self.fail(Fatal::BeforeLogin(kind)));
        }
        if len > self.limits.data {
            return Err(self.fail(Fatal::Format("the data segment is longer than MaxRecvDataSegmentLength")));
        }
        if len != 0 && !may_have_data {
            return Err(self.fail(Fatal::Format("a data segment where none can be")));
        }
        if self.ahs_len != 0 && (kind != Opcode::SCSI_COMMAND || self.ahs_len > self.limits.ahs) {
            return Err(self.fail(Fatal::Format("additional header segments where none can be")));
        }
        if len != 0 {
            self.expect = Expect::Payload;
            self.data_left = len;
            self.pad_left = padding(len) as u8;
            self.digest_left = if self.data_digest { DIGEST_LEN as u8 } else { 0 };
            self.digest = DataDigest::new();
        }
        Ok(Event::Request(Request::read(header)))
    }

    #[inline]
    fn payload<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        if self.data_left != 0 {
            if input.is_empty() {
                return None;
            }
            let (bytes, rest) = input.split_at(input.len().min(self.data_left as usize));
            *input = rest;
            self.data_received(bytes);
            return Some(Event::Data(bytes));
        }
        if self.pad_left != 0 {
            let (bytes, rest) = input.split_at(input.len().min(usize::from(self.pad_left)));
            *input = rest;
            // The digest covers the padding, whatever it holds (RFC 7143 §13.1).
            if self.data_digest {
                self.digest.update(bytes);
            }
            self.pad_left -= bytes.len() as u8;
            if self.pad_left != 0 {
                return None;
            }
        }
        let digest_used = self.data_digest;
        if self.digest_left != 0 {
            let (bytes, rest) = input.split_at(input.len().min(usize::from(self.digest_left)));
            *input = rest;
            let have = DIGEST_LEN - usize::from(self.digest_left);
            self.received_digest[have..have + bytes.len()].copy_from_slice(bytes);
            self.digest_left -= bytes.len() as u8;
            if self.digest_left != 0 {
                return None;
            }
        }
        self.expect = Expect::Header;
        Some(Event::DataEnd { digest_ok: !digest_used || self.received_digest == self.digest.to_bytes() })
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

//! Negotiation of the operational keys, each by its rule (RFC 7143 §6.2, §13).

use super::pdu::{DATA_SEGMENT_MAX, DEFAULT_DATA_SEGMENT};
use super::text::{VALUE_MAX, boolean, number, put, yes_no};

/// Whether a digest is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DigestPolicy {
    /// As the initiator prefers.
    #[default]
    Offer,
    /// Always; who refuses it is refused.
    Require,
    /// Never.
    Off,
}

/// What kind of session it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// For SCSI tasks.
    Normal,
    /// For SendTargets alone.
    Discovery,
}

/// What the target brings to a negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Header digest.
    pub header_digest: DigestPolicy,
    /// Data digest.
    pub data_digest: DigestPolicy,
    /// Most data bytes of a PDU that this side receives, 512 to 16,777,215.
    pub max_recv_data_segment: u32,
    /// Most bytes of a sequence of Data-In or Data-Out, 512 to 16,777,215.
    pub max_burst: u32,
    /// Most bytes of unsolicited data of a command, 512 to `max_burst`.
    pub first_burst: u32,
    /// Data must be asked for, besides immediate data.
    pub initial_r2t: bool,
    /// Immediate data is taken.
    pub immediate_data: bool,
    /// Most R2Ts of a task at a time, at least 1.
    pub max_outstanding_r2t: u16,
    /// Most connections of a session, at least 1.
    pub max_connections: u16,
    /// Seconds an initiator waits at least before it comes back.
    pub time2wait: u16,
    /// Seconds tasks outlive their connection at most: 0 without error recovery.
    pub time2retain: u16,
}

impl Default for Offer {
    fn default() -> Self {
        Offer {
            header_digest: DigestPolicy::Offer,
            data_digest: DigestPolicy::Offer,
            max_recv_data_segment: 256 * 1024,
            max_burst: 1 << 20,
            first_burst: 64 * 1024,
            initial_r2t: false,
            immediate_data: true,
            max_outstanding_r2t: 4,
            max_connections: 4,
            time2wait: 2,
            time2retain: 0,
        }
    }
}

/// What holds for a session and its connection. [`Params::default`] is what holds where nothing is said (RFC 7143 §13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Headers have digests (of the connection).
    pub header_digest: bool,
    /// Data has digests (of the connection).
    pub data_digest: bool,
    /// Most data bytes of a PDU that the initiator receives (of the connection).
    pub initiator_max_data: u32,
    /// Most data bytes of a PDU that the target receives (of the connection).
    pub target_max_data: u32,
    /// Most connections of the session.
    pub max_connections: u16,
    /// Data must be asked for, besides immediate data.
    pub initial_r2t: bool,
    /// Commands may carry data.
    pub immediate_data: bool,
    /// Most bytes of a sequence of data PDUs.
    pub max_burst: u32,
    /// Most bytes of unsolicited data of a command.
    pub first_burst: u32,
    /// Seconds an initiator waits before it comes back.
    pub time2wait: u16,
    /// Seconds tasks outlive their connection.
    pub time2retain: u16,
    /// Most R2Ts of a task at a time.
    pub max_outstanding_r2t: u16,
    /// iSCSIProtocolLevel: with 2 the functions of RFC 7144 §6.3 may be asked for.
    pub protocol_level: u8,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            header_digest: false,
            data_digest: false,
            initiator_max_data: DEFAULT_DATA_SEGMENT,
            target_max_data: DEFAULT_DATA_SEGMENT,
            max_connections: 1,
            initial_r2t: true,
            immediate_data: true,
            max_burst: 262_144,
            first_burst: 65_536,
            time2wait: 2,
            time2retain: 20,
            max_outstanding_r2t: 1,
            protocol_level: 1,
        }
    }
}

/// iSCSIProtocolLevel of RFC 7144 (§7.1.1).
const PROTOCOL_LEVEL: u64 = 2;

/// A key of RFC 7143 §13 that is negotiated or declared in the operational stage. The value is the place of its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Key {
    HeaderDigest,
    DataDigest,
    MaxConnections,
    InitialR2T,
    ImmediateData,
    MaxRecvDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    MaxOutstandingR2T,
    DataPDUInOrder,
    DataSequenceInOrder,
    ErrorRecoveryLevel,
    TaskReporting,
    ProtocolLevel,
    IfMarker,
    OfMarker,
    IfMarkInt,
    OfMarkInt,
}

/// All keys with their names.
const KEYS: [(&str, Key); 20] = [
    ("HeaderDigest", Key::HeaderDigest),
    ("DataDigest", Key::DataDigest),
    ("MaxConnections", Key::MaxConnections),
    ("InitialR2T", Key::InitialR2T),
    ("ImmediateData", Key::ImmediateData),
    ("MaxRecvDataSegmentLength", Key::MaxRecvDataSegmentLength),
    ("MaxBurstLength", Key::MaxBurstLength),
    ("FirstBurstLength", Key::FirstBurstLength),
    ("DefaultTime2Wait", Key::DefaultTime2Wait),
    ("DefaultTime2Retain", Key::DefaultTime2Retain),
    ("MaxOutstandingR2T", Key::MaxOutstandingR2T),
    ("DataPDUInOrder", Key::DataPDUInOrder),
    ("DataSequenceInOrder", Key::DataSequenceInOrder),
    ("ErrorRecoveryLevel", Key::ErrorRecoveryLevel),
    ("TaskReporting", Key::TaskReporting),
    ("iSCSIProtocolLevel", Key::ProtocolLevel),
    ("IFMarker", Key::IfMarker),
    ("OFMarker", Key::OfMarker),
    ("IFMarkInt", Key::IfMarkInt),
    ("OFMarkInt", Key::OfMarkInt),
];

impl Key {
    fn of(name: &str) -> Option<Key> {
        KEYS.iter().find(|(known, _)| *known == name).map(|(_, key)| *key)
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }

    /// Of a connection, not of the session: every connection may negotiate it.
    const fn of_connection(self) -> bool {
        matches!(self, Key::HeaderDigest | Key::DataDigest | Key::MaxRecvDataSegmentLength)
    }

    /// Without a meaning in a discovery session.
    const fn needs_tasks(self) -> bool {
        matches!(
            self,
            Key::MaxConnections
                | Key::InitialR2T
                | Key::ImmediateData
                | Key::MaxBurstLength
                | Key::FirstBurstLength
                | Key::MaxOutstandingR2T
                | Key::DataPDUInOrder
                | Key::DataSequenceInOrder
                | Key::TaskReporting
                | Key::ProtocolLevel
        )
    }
}

/// Why a negotiation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNegotiation {
    /// A key came a second time (RFC 7143 §6.3).
    #[error("a key came twice")]
    Twice,
    /// The initiator refused what this side cannot do without.
    #[error("the initiator refused what is required")]
    Refused,
}

/// Where a key came from and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The kind of session.
    pub kind: SessionKind,
    /// The first connection of its session: keys of the session may be negotiated.
    pub leading: bool,
}

/// The negotiation of one login.
#[derive(Clone, Debug)]
pub(super) struct Negotiation {
    offer: Offer,
    params: Params,
    /// Keys the initiator has sent.
    seen: u32,
    /// Keys this side has begun with, and no answer is there yet.
    asked: u32,
    /// MaxRecvDataSegmentLength has been declared.
    declared: bool,
}

impl Negotiation {
    pub(super) fn new(offer: Offer) -> Negotiation {
        Negotiation { offer, params: Params::default(), seen: 0, asked: 0, declared: false }
    }

    /// What holds by now.
    pub(super) const fn params(&self) -> Params {
        self.params
    }

    /// What holds for the session of a connection that is not its first.
    pub(super) fn adopt(&mut self, session: &Params) {
        self.params = Params {
            header_digest: self.params.header_digest,
            data_digest: self.params.data_digest,
            initiator_max_data: self.params.initiator_max_data,
            target_max_data: self.params.target_max_data,
            ..*session
        };
    }

    /// Takes one pair of the operational stage and appends the answer to `out`.
    ///
    /// # Errors
    /// The login must fail.
    pub(super) fn take(
        &mut self,
        place: Place,
        name: &str,
        value: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), BadNegotiation> {
        let Some(key) = Key::of(name) else {
            // Answers to what was not asked are none (RFC 7143 §6.2).
            if !matches!(value, "NotUnderstood" | "Irrelevant" | "Reject") {
                put(out, name, "NotUnderstood");
            }
            return Ok(());
        };
        if self.seen & key.bit() != 0 {
            return Err(BadNegotiation::Twice);
        }
        self.seen |= key.bit();
        if self.asked & key.bit() != 0 {
            self.asked &= !key.bit();
            return self.answered(key, value);
        }
        if key.needs_tasks() && place.kind == SessionKind::Discovery || !key.of_connection() && !place.leading {
            put(out, name, "Irrelevant");
            return Ok(());
        }
        match self.decide(key, value) {
            Some(Decision::Answer(answer)) => put(out, name, &answer),
            Some(Decision::Declared) => {}
            None => put(out, name, "Reject"),
        }
        Ok(())
    }

    /// The rule of each key; `None`: the value is none that the key can have, and the default stays.
    fn decide(&mut self, key: Key, value: &str) -> Option<Decision> {
        let offer = self.offer;
        let params = &mut self.params;
        if value.len() > VALUE_MAX {
            return None;
        }
        let in_range = |low: u64, high: u64| number(value).filter(|n| (low..=high).contains(n));
        let lower = |low: u64, high: u64, own: u64| in_range(low, high).map(|n| n.min(own));
        let answer = match key {
            Key::HeaderDigest => {
                params.header_digest = digest(offer.header_digest, value)?;
                digest_name(params.header_digest).to_owned()
            }
            Key::DataDigest => {
                params.data_digest = digest(offer.data_digest, value)?;
                digest_name(params.data_digest).to_owned()
            }
            Key::MaxConnections => {
                params.max_connections = lower(1, 0xffff, offer.max_connections.into())? as u16;
                params.max_connections.to_string()
            }
            Key::InitialR2T => {
                params.initial_r2t = boolean(value)? | offer.initial_r2t;
                yes_no(params.initial_r2t).to_owned()
            }
            Key::ImmediateData => {
                params.immediate_data = boolean(value)? & offer.immediate_data;
                yes_no(params.immediate_data).to_owned()
            }
            Key::MaxRecvDataSegmentLength => {
                params.initiator_max_data = in_range(512, DATA_SEGMENT_MAX.into())? as u32;
                return Some(Decision::Declared);
            }
            Key::MaxBurstLength => {
                params.max_burst = lower(512, DATA_SEGMENT_MAX.into(), offer.max_burst.into())? as u32;
                params.max_burst.to_string()
            }
            Key::FirstBurstLength => {
                params.first_burst = lower(512, DATA_SEGMENT_MAX.into(), offer.first_burst.into())? as u32;
                params.first_burst.to_string()
            }
            Key::DefaultTime2Wait => {
                params.time2wait = in_range(0, 3600)?.max(offer.time2wait.into()) as u16;
                params.time2wait.to_string()
            }
            Key::DefaultTime2Retain => {
                params.time2retain = lower(0, 3600, offer.time2retain.into())? as u16;
                params.time2retain.to_string()
            }
            Key::MaxOutstandingR2T => {
                params.max_outstanding_r2t = lower(1, 0xffff, offer.max_outstanding_r2t.into())? as u16;
                params.max_outstanding_r2t.to_string()
            }
            // The result is Yes if one side says so, and this one does.
            Key::DataPDUInOrder | Key::DataSequenceInOrder => boolean(value).map(|_| "Yes".to_owned())?,
            Key::ErrorRecoveryLevel => in_range(0, 2).map(|_| "0".to_owned())?,
            Key::TaskReporting => value.split(',').find(|name| *name == "RFC3720")?.to_owned(),
            Key::ProtocolLevel => {
                params.protocol_level = lower(0, 31, PROTOCOL_LEVEL)? as u8;
                params.protocol_level.to_string()
            }
            // Obsolete, but never not understood (RFC 7143 §13.25).
            Key::IfMarker | Key::OfMarker => boolean(value).map(|_| "No".to_owned())?,
            Key::IfMarkInt | Key::OfMarkInt => return None,
        };
        Some(Decision::Answer(answer))
    }

    /// Takes the answer to what this side began with.
    fn answered(&mut self, key: Key, value: &str) -> Result<(), BadNegotiation> {
        let agreed = match key {
            Key::HeaderDigest => {
                self.params.header_digest = value == "CRC32C";
                self.params.header_digest
            }
            Key::DataDigest => {
                self.params.data_digest = value == "CRC32C";
                self.params.data_digest
            }
            Key::ImmediateData => {
                self.params.immediate_data = false;
                value == "No"
            }
            Key::FirstBurstLength => {
                let limit = u64::from(self.offer.first_burst);
                let agreed = number(value).filter(|n| (512..=limit).contains(n));
                self.params.first_burst = agreed.unwrap_or(limit) as u32;
                agreed.is_some()
            }
            _ => false,
        };
        if agreed { Ok(()) } else { Err(BadNegotiation::Refused) }
    }

    /// What this side declares once in the operational stage; whether this was the time.
    pub(super) fn declare(&mut self, out: &mut Vec<u8>) -> bool {
        if self.declared {
            return false;
        }
        self.declared = true;
        self.params.target_max_data = self.offer.max_recv_data_segment;
        put(out, "MaxRecvDataSegmentLength", &self.offer.max_recv_data_segment.to_string());
        true
    }

    /// Whether it is a key of the operational stage.
    pub(super) fn knows(name: &str) -> bool {
        Key::of(name).is_some()
    }

    /// Begins with what the initiator did not mention and whose default this side cannot live with. Whether the negotiation is
    /// complete: nothing waits for an answer.
    ///
    /// # Errors
    /// What is required has been refused.
    pub(super) fn complete(&mut self, place: Place, out: &mut Vec<u8>) -> Result<bool, BadNegotiation> {
        let offer = self.offer;
        let wants = [
            (Key::HeaderDigest, offer.header_digest == DigestPolicy::Require && !self.params.header_digest),
            (Key::DataDigest, offer.data_digest == DigestPolicy::Require && !self.params.data_digest),
        ];
        for (key, wanted) in wants {
            if wanted && self.seen & key.bit() != 0 {
                return Err(BadNegotiation::Refused);
            }
            self.ask(key, wanted, "CRC32C", out);
        }
        if place.leading && place.kind == SessionKind::Normal {
            self.ask(Key::ImmediateData, !offer.immediate_data && self.params.immediate_data, "No", out);
            let too_long = self.params.first_burst > offer.first_burst;
            self.ask(Key::FirstBurstLength, too_long, &offer.first_burst.to_string(), out);
        }
        Ok(self.asked == 0)
    }

    fn ask(&mut self, key: Key, wanted: bool, value: &str, out: &mut Vec<u8>) {
        let name = KEYS.iter().find(|(_, known)| *known == key).map(|(name, _)| *name);
        if let Some(name) = name
            && wanted
            && (self.seen | self.asked) & key.bit() == 0
        {
            self.asked |= key.bit();
            put(out, name, value);
        }
    }

    /// A pair of a Text Request in the full feature phase: what may still change is the initiator's MaxRecvDataSegmentLength.
    pub(super) fn take_later(params: &mut Params, name: &str, value: &str, out: &mut Vec<u8>) {
        match Key::of(name) {
            Some(Key::MaxRecvDataSegmentLength) => {
                match number(value).filter(|n| (512..=u64::from(DATA_SEGMENT_MAX)).contains(n)) {
                    Some(len) => params.initiator_max_data = len as u32,
                    None => put(out, name, "Reject"),
                }
            }
            Some(_) => put(out, name, "Reject"),
            None => put(out, name, "NotUnderstood"),
        }
    }
}

/// What becomes of a value.
enum Decision {
    Answer(String),
    Declared,
}

/// The first of a list of digests that this side takes too: whether there is one.
fn digest(policy: DigestPolicy, list: &str) -> Option<bool> {
    list.split(',').find_map(|name| match (name, policy) {
        ("CRC32C", DigestPolicy::Offer | DigestPolicy::Require) => Some(true),
        ("None", DigestPolicy::Offer | DigestPolicy::Off) => Some(false),
        _ => None,
    })
}

const fn digest_name(used: bool) -> &'static str {
    if used { "CRC32C" } else { "None" }
}

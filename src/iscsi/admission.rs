//! What a login, the registry of sessions and a session say to each other.

use super::keys::{Params, SessionKind};
use super::text::hex;
use crate::util::open_enum;

open_enum! {
    /// Status-Class and Status-Detail of a Login Response (RFC 7143 §11.13.5).
    pub enum LoginStatus: u16 {
        /// Login is proceeding or complete.
        SUCCESS = 0x0000,
        /// The target has moved for the time being.
        MOVED_TEMPORARILY = 0x0101,
        /// The target has moved for good.
        MOVED_PERMANENTLY = 0x0102,
        /// Something the initiator did wrong.
        INITIATOR_ERROR = 0x0200,
        /// The initiator has not proved itself.
        AUTHENTICATION_FAILURE = 0x0201,
        /// The initiator may not use the target.
        AUTHORIZATION_FAILURE = 0x0202,
        /// There is no such target here.
        NOT_FOUND = 0x0203,
        /// The target has been removed.
        TARGET_REMOVED = 0x0204,
        /// No version that both know.
        UNSUPPORTED_VERSION = 0x0205,
        /// The session has all the connections it may have.
        TOO_MANY_CONNECTIONS = 0x0206,
        /// A key that must be there is missing.
        MISSING_PARAMETER = 0x0207,
        /// The connection cannot be of this session.
        CANNOT_INCLUDE = 0x0208,
        /// A session type that is not known.
        SESSION_TYPE_NOT_SUPPORTED = 0x0209,
        /// There is no session of this TSIH.
        NO_SESSION = 0x020a,
        /// A request that the login has no place for.
        INVALID_DURING_LOGIN = 0x020b,
        /// The target cannot do what it should.
        TARGET_ERROR = 0x0300,
        /// The target does not serve at the time.
        SERVICE_UNAVAILABLE = 0x0301,
        /// The target has no room.
        OUT_OF_RESOURCES = 0x0302,
    }
}

/// Who is at the two ends of a session (RFC 7143 §4.4.2, §4.4.3): there is one session of a nexus at most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nexus {
    /// Name of the initiator, in lower case.
    pub initiator: String,
    /// Its part of the session identifier.
    pub isid: [u8; 6],
    /// Name of the target; `None` for a discovery session.
    pub target: Option<String>,
    /// Target portal group tag; 0 for a discovery session.
    pub tpgt: u16,
}

impl Nexus {
    /// Name of the SCSI initiator port, as a TransportID has it (RFC 7143 §4.4.2, SPC-4 §7.6.4.6).
    pub fn initiator_port(&self) -> String {
        format!("{},i,{}", self.initiator, hex(&self.isid))
    }

    /// Name of the SCSI target port (RFC 7143 §4.4.2); `None` for a discovery session, which has none.
    pub fn target_port(&self) -> Option<String> {
        self.target.as_ref().map(|target| format!("{target},t,{}", hex(&self.tpgt.to_be_bytes())))
    }
}

/// A login that is complete but for the session's consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The nexus.
    pub nexus: Nexus,
    /// TSIH of the session to join, or 0.
    pub tsih: u16,
    /// Identifier of the connection.
    pub cid: u16,
    /// Most connections that a new session may have.
    pub max_connections: u16,
}

/// What the session says of a connection that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// TSIH.
    pub tsih: u16,
    /// Parameters of the session that the connection joins; `None` for the first one.
    pub joined: Option<Joined>,
    /// Commands a new session takes: its [`super::SessionLimits::window`].
    pub window: u16,
}

/// A session that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Its parameters.
    pub params: Params,
    /// Next expected CmdSN.
    pub exp_cmd_sn: u32,
    /// Largest CmdSN it takes.
    pub max_cmd_sn: u32,
}

/// A connection in the full feature phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    /// Kind of the session.
    pub kind: SessionKind,
    /// The nexus.
    pub nexus: Nexus,
    /// Name of the initiator as it was given.
    pub initiator: String,
    /// TSIH.
    pub tsih: u16,
    /// Identifier of the connection.
    pub cid: u16,
    /// What was agreed.
    pub params: Params,
    /// CmdSN of the first command, of a new session.
    pub cmd_sn: u32,
    /// StatSN of the next response.
    pub stat_sn: u32,
}

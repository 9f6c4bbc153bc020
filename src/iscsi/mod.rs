//! iSCSI: protocol data units, login, sessions and tasks of a target, as pure engines, and the door that they make.
//!
//! Citations are of RFC 7143 unless another is named. No engine touches a socket, a clock or the entropy of the machine: time is
//! passed in as nanoseconds of any monotonic origin, challenges are made from bytes that are passed in. All state is plain data
//! that may be cloned and moved to another process.
//!
//! ```text
//!   bytes -> Decoder -> Login (a Login Request at a time) --Claim--> Registry: all sessions, at one home
//!               |          | Established                                 | Admission
//!               |          v                                             v
//!               '-----> Session (requests, data, window, tasks) <--- its connections, on one reactor
//!                          |         ^
//!            SCSI: CDB, LUN, data    status, sense, residual
//!
//!   pdu       wire types          decode, encode, digest   framing, both digests
//!   text      pairs and values    keys   negotiation       chap   authentication     login   stages and refusals
//!   target    configuration, SendTargets                   exchange   Text Requests
//!   registry  who joins which session                      session    the full feature phase, at error recovery level 0
//! ```
//!
//! The engines know SCSI as bytes of a CDB and a LUN, a status, sense data, residuals and task attributes. What drives them on sockets, with
//! disks of [`crate::scsi::disk`] behind them, is the [`door`].

mod admission;
mod chap;
mod decode;
pub mod door;
mod encode;
mod exchange;
mod keys;
mod login;
mod pdu;
mod registry;
mod session;
mod target;
mod text;

#[cfg(test)]
mod tests;

pub use crate::util::{DataDigest, crc32c};
pub use admission::{Admitted, Claim, Established, Joined, LoginStatus, Nexus};
pub use chap::{
    BadChap, CHAP_ENTROPY, ChapAlgorithm, ChapConfig, Credentials, NotAuthentic, SECRET_MAX, SECRET_MIN, Secret,
    chap_entropy,
};
pub use decode::{Decoder, Event, Fatal, Limits, Request};
pub use encode::{Framing, PREFIX_MAX, SUFFIX_MAX};
pub use exchange::{TextExchange, TextReply};
pub use keys::{DigestPolicy, Offer, Params, SessionKind};
pub use login::{AUTHENTICATION_DELAY_NS, Login, Reply, Step};
pub use pdu::*;
pub use registry::{Admission, Registry};
pub use session::{
    Alive, ConnId, DataInPdu, Keepalive, LogoutWork, Notice, R2TS_MAX, Ready, Received, Residual, Session,
    SessionLimits, TaskId, TaskWork, TransportFault, Verdict, WriteProgress,
};
pub use target::{AllowedInitiators, Asker, BadTarget, Book, NAME_MAX, Portal, Redirect, TargetConfig, is_name};
pub use text::{BadText, TEXT_MAX};

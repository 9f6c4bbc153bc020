//! NVMe/TCP: protocol data units, their framing and digests, for both ends of a connection.
//!
//! Citations: *TCP* is the NVM Express TCP Transport Specification 1.0. Nothing here touches a socket, a clock or the
//! heap: the [`Decoder`] takes received bytes and returns [`Event`]s, [`Framing`] writes headers into the caller's
//! memory. Both are plain data, so that a connection can be frozen between two PDUs and continue elsewhere.
//!
//! ```text
//!        0      8          HLEN    +4      PDO              PLEN
//!        | CH   | PSH      | HDGST | PAD   | DATA    | DDGST |
//!          type flags hlen pdo plen
//! ```
//!
//! A received PDU with payload shows as its header event ([`Event::Command`], [`Event::H2cData`],
//! [`Event::C2hData`]), then [`Event::Data`] for each piece, then [`Event::DataEnd`] with the verdict on the digest.

mod decode;
mod encode;
mod negotiate;
mod pdu;
mod transfer;

#[cfg(test)]
mod tests;

pub use crate::util::{DataDigest, crc32c};
pub use decode::{Decoder, Event, LONG_DATA, Limits, Role};
pub use encode::{Framing, MAX_PREFIX_LEN, ic_req, ic_resp, term_req};
pub use negotiate::{ControllerParams, HostParams, IcRequest, IcResponse, Negotiated, accept, conclude};
pub use pdu::*;
pub use transfer::{ReadProgress, WriteGrant};

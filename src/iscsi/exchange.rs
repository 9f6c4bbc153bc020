//! Text Requests and Responses of the full feature phase, which may take several PDUs each (RFC 7143 §11.10, §11.11).

use std::collections::BTreeSet;

use super::keys::{Negotiation, Params};
use super::pdu::{FLAG_CONTINUE, FLAG_FINAL, NO_TAG, RejectReason, TextRequest};
use super::target::{Asker, Book};
use super::text::{Text, put};

/// Most bytes that are kept to be sent: the addresses of some thousand targets.
const RESPONSE_MAX: usize = 1 << 20;

/// What a Text Response holds besides the numbers of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextReply {
    /// `FLAG_FINAL`, `FLAG_CONTINUE`.
    pub flags: u8,
    /// Target Transfer Tag.
    pub ttt: u32,
    /// The text.
    pub text: Vec<u8>,
}

/// The one text exchange that a connection has at a time.
#[derive(Clone, Debug, Default)]
pub struct TextExchange {
    request: Text,
    /// What is still to be sent.
    response: Vec<u8>,
    /// The exchange that goes on: its Initiator Task Tag and the tag that its next request has.
    open: Option<(u32, u32)>,
    last_ttt: u32,
}

impl TextExchange {
    /// No exchange.
    pub const fn new() -> TextExchange {
        TextExchange { request: Text::new(), response: Vec::new(), open: None, last_ttt: 0 }
    }

    /// Takes a Text Request and its data and makes the response. `params` are those of the connection: the initiator may change its
    /// MaxRecvDataSegmentLength.
    ///
    /// # Errors
    /// The request is to be rejected; the exchange is forgotten.
    pub fn request(
        &mut self,
        book: &Book,
        asker: &Asker<'_>,
        params: &mut Params,
        pdu: &TextRequest,
        data: &[u8],
    ) -> Result<TextReply, RejectReason> {
        let reply = self.advance(book, asker, params, pdu, data);
        if reply.is_err() {
            self.forget();
        }
        reply
    }

    fn forget(&mut self) {
        self.request.clear();
        self.response.clear();
        self.open = None;
    }

    fn advance(
        &mut self,
        book: &Book,
        asker: &Asker<'_>,
        params: &mut Params,
        pdu: &TextRequest,
        data: &[u8],
    ) -> Result<TextReply, RejectReason> {
        let (last, more) = (pdu.flags & FLAG_FINAL != 0, pdu.flags & FLAG_CONTINUE != 0);
        if last && more || pdu.itt.get() == NO_TAG {
            return Err(RejectReason::PROTOCOL_ERROR);
        }
        match (pdu.ttt.get(), self.open) {
            // A request without a tag ends what was before (RFC 7143 §11.10.4).
            (NO_TAG, _) => self.forget(),
            (ttt, Some(open)) if open == (pdu.itt.get(), ttt) => {}
            _ => return Err(RejectReason::INVALID_PDU_FIELD),
        }
        if !self.response.is_empty() {
            // The rest of the response is asked for by a request without text.
            return if data.is_empty() && !more {
                Ok(self.piece(pdu, params, last))
            } else {
                Err(RejectReason::PROTOCOL_ERROR)
            };
        }
        self.request.add(data).map_err(|_| RejectReason::PROTOCOL_ERROR)?;
        if !more {
            let text = core::mem::take(&mut self.request);
            let pairs = text.pairs().map_err(|_| RejectReason::PROTOCOL_ERROR)?;
            let mut keys = BTreeSet::new();
            let mut served = pairs.is_empty();
            for (key, value) in pairs {
                if !keys.insert(key) {
                    return Err(RejectReason::PROTOCOL_ERROR);
                }
                served |= answer(book, asker, params, key, value, &mut self.response);
            }
            if !served {
                return Err(RejectReason::INVALID_PDU_FIELD);
            }
            if self.response.len() > RESPONSE_MAX {
                return Err(RejectReason::LONG_OPERATION_REJECT);
            }
        }
        Ok(self.piece(pdu, params, last))
    }

    /// The next piece of what there is to say: as much as the initiator receives at once.
    fn piece(&mut self, pdu: &TextRequest, params: &Params, last: bool) -> TextReply {
        let len = self.response.len().min(params.initiator_max_data as usize);
        let rest = self.response.split_off(len);
        let text = core::mem::replace(&mut self.response, rest);
        let more = !self.response.is_empty();
        if last && !more {
            self.forget();
            return TextReply { flags: FLAG_FINAL, ttt: NO_TAG, text };
        }
        self.last_ttt = if self.last_ttt >= NO_TAG - 1 { 1 } else { self.last_ttt + 1 };
        self.open = Some((pdu.itt.get(), self.last_ttt));
        TextReply { flags: if more { FLAG_CONTINUE } else { 0 }, ttt: self.last_ttt, text }
    }
}

/// Answers one pair. Whether it is one that has a place here. A request without any such pair is rejected as a whole: initiators
/// exist that take `NotUnderstood` for a broken connection. Keys of vendors are answered in any case (RFC 7143 §6.2).
fn answer(book: &Book, asker: &Asker<'_>, params: &mut Params, key: &str, value: &str, out: &mut Vec<u8>) -> bool {
    match key {
        "SendTargets" => match book.send_targets(asker, value) {
            Some(text) => {
                out.extend_from_slice(&text);
                return true;
            }
            None => {
                put(out, key, "Reject");
                return false;
            }
        },
        "InitiatorAlias" => {}
        "InitiatorName" | "TargetName" | "SessionType" | "AuthMethod" => put(out, key, "Reject"),
        _ => {
            Negotiation::take_later(params, key, value, out);
            return Negotiation::knows(key) || key.starts_with("X-");
        }
    }
    true
}

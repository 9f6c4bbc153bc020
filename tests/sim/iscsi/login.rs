//! Logging in (RFC 7143 §6): the keys in any order, the answers held against what the rules make of both sides' values.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use reactor::iscsi::Offer;
use reactor::net::{Stream, Tx};
use reactor::reactor::Reactor;

use super::initiator::{End, broken, cut};
use super::pdu::{Pdu, flag, op};

/// What a PDU may bring before anything is agreed on (RFC 7143 §13.12).
const DEFAULT_SEGMENT: u32 = 8192;
/// Stages (RFC 7143 §11.12.3).
const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;
/// How long a login may take, in nanoseconds.
pub const PATIENCE_NS: u64 = 20_000_000_000;

/// What an initiator asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub header_digest: bool,
    pub data_digest: bool,
    pub immediate: bool,
    pub initial_r2t: bool,
    /// Most data of a PDU that it takes.
    pub max_recv: u32,
    pub max_burst: u32,
    pub first_burst: u32,
    pub r2ts: u16,
    pub connections: u16,
    /// By way of the security stage.
    pub security: bool,
    /// What the target brings.
    pub offer: Offer,
    /// How long the login may take, in nanoseconds: it is given up then.
    pub patience_ns: u64,
}

/// What holds between the two.
#[derive(Clone, Copy, Debug)]
pub struct Agreed {
    pub header_digest: bool,
    pub data_digest: bool,
    pub immediate: bool,
    pub initial_r2t: bool,
    pub max_recv: u32,
    pub max_send: u32,
    pub max_burst: u32,
    pub first_burst: u32,
    pub r2ts: u16,
    pub connections: u16,
}

/// Who logs in to what.
#[derive(Clone, Debug)]
pub struct Place {
    pub initiator: String,
    pub isid: [u8; 6],
    pub target: String,
}

/// A connection in its full feature phase.
pub struct LoggedIn {
    pub stream: Rc<Stream>,
    pub input: Vec<u8>,
    pub agreed: Agreed,
    pub tsih: u16,
    pub exp_stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
}

impl Ask {
    /// Whatever the target offers, by one connection without digests.
    pub fn plain(offer: Offer) -> Ask {
        Ask {
            header_digest: false,
            data_digest: false,
            immediate: true,
            initial_r2t: false,
            max_recv: 262_144,
            max_burst: 1 << 20,
            first_burst: 65_536,
            r2ts: 1,
            connections: 1,
            security: false,
            offer,
            patience_ns: PATIENCE_NS,
        }
    }

    /// What the rules of RFC 7143 §13 make of this and the target's values. A connection that joins negotiates only what is its own.
    fn expected(&self) -> Agreed {
        let offer = &self.offer;
        Agreed {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            immediate: self.immediate && offer.immediate_data,
            initial_r2t: self.initial_r2t || offer.initial_r2t,
            max_recv: self.max_recv,
            max_send: offer.max_recv_data_segment,
            max_burst: self.max_burst.min(offer.max_burst),
            first_burst: self.first_burst.min(offer.first_burst),
            r2ts: self.r2ts.min(offer.max_outstanding_r2t),
            connections: self.connections.min(offer.max_connections),
        }
    }

    fn keys(&self, leading: bool) -> Vec<(&'static str, String)> {
        let digest = |used: bool| if used { "CRC32C,None" } else { "None" }.to_owned();
        let boolean = |yes: bool| if yes { "Yes" } else { "No" }.to_owned();
        let mut keys = vec![
            ("HeaderDigest", digest(self.header_digest)),
            ("DataDigest", digest(self.data_digest)),
            ("MaxRecvDataSegmentLength", self.max_recv.to_string()),
        ];
        if leading {
            keys.extend([
                ("MaxConnections", self.connections.to_string()),
                ("InitialR2T", boolean(self.initial_r2t)),
                ("ImmediateData", boolean(self.immediate)),
                ("MaxBurstLength", self.max_burst.to_string()),
                ("FirstBurstLength", self.first_burst.to_string()),
                ("MaxOutstandingR2T", self.r2ts.to_string()),
                ("DefaultTime2Wait", "0".to_owned()),
                ("DefaultTime2Retain", "0".to_owned()),
                ("DataPDUInOrder", "Yes".to_owned()),
                ("DataSequenceInOrder", "Yes".to_owned()),
                ("ErrorRecoveryLevel", "0".to_owned()),
            ]);
        }
        keys
    }

    /// Checks the target's answers.
    fn check(&self, answers: &BTreeMap<String, String>, leading: bool) -> Result<Agreed, End> {
        let expected = self.expected();
        let boolean = |yes: bool| if yes { "Yes" } else { "No" }.to_owned();
        let digest = |used: bool| if used { "CRC32C" } else { "None" }.to_owned();
        let mut right = vec![
            ("HeaderDigest", digest(expected.header_digest)),
            ("DataDigest", digest(expected.data_digest)),
            ("MaxRecvDataSegmentLength", expected.max_send.to_string()),
        ];
        if leading {
            right.extend([
                ("MaxConnections", expected.connections.to_string()),
                ("InitialR2T", boolean(expected.initial_r2t)),
                ("ImmediateData", boolean(expected.immediate)),
                ("MaxBurstLength", expected.max_burst.to_string()),
                ("FirstBurstLength", expected.first_burst.to_string()),
                ("MaxOutstandingR2T", expected.r2ts.to_string()),
                ("ErrorRecoveryLevel", "0".to_owned()),
            ]);
        }
        for (key, value) in right {
            let answer = answers.get(key);
            // A result that the offer alone decides need not be said (RFC 7143 §6.2.2).
            let silent = answer.is_none() && (key, value.as_str()) == ("InitialR2T", "Yes");
            if !silent && answer != Some(&value) {
                return broken(format!("{key}={answer:?}, not {value}"));
            }
        }
        Ok(expected)
    }
}

/// Logs in by a new connection. `which`: TSIH of the session, 0 for a new one, and the connection's identifier.
///
/// # Errors
/// Why not.
pub async fn log_in(
    reactor: &Rc<Reactor>,
    to: SocketAddr,
    place: &Place,
    ask: &Ask,
    which: (u16, u16),
    cmd_sn: u32,
) -> Result<LoggedIn, End> {
    let stream = Rc::new(Stream::connect(reactor, to).await.map_err(|error| End::Stream(error.to_string()))?);
    let tx = Tx::new(&stream);
    let sender = tx.clone();
    let done = Rc::new(Cell::new(false));
    let (ended, waiter) = (done.clone(), reactor.current_task());
    let here = reactor.clone();
    reactor.spawn("initiator logs in", async move {
        sender.run().await;
        ended.set(true);
        here.wake(waiter);
    });
    let talked = {
        let mut time_up = pin!(reactor.sleep(ask.patience_ns));
        let mut talk = pin!(talk(reactor, &stream, &tx, place, ask, which, cmd_sn));
        poll_fn(|cx| match talk.as_mut().poll(cx) {
            Poll::Pending => time_up.as_mut().poll(cx).map(|()| Err(End::Timeout("login"))),
            ready => ready,
        })
        .await
    };
    if talked.is_err() {
        stream.shut_down();
    }
    tx.finish();
    poll_fn(|_| if done.get() { Poll::Ready(()) } else { Poll::Pending }).await;
    let (input, agreed, last) = talked?;
    let (tsih, exp_stat_sn) = (last.get16(14), last.get(24).wrapping_add(1));
    Ok(LoggedIn { stream, input, agreed, tsih, exp_stat_sn, exp_cmd_sn: last.get(28), max_cmd_sn: last.get(32) })
}

async fn talk(
    reactor: &Rc<Reactor>,
    stream: &Stream,
    tx: &Tx,
    place: &Place,
    ask: &Ask,
    (tsih, cid): (u16, u16),
    cmd_sn: u32,
) -> Result<(Vec<u8>, Agreed, Pdu), End> {
    let chance = reactor.entropy();
    let plain = Agreed { header_digest: false, data_digest: false, max_recv: DEFAULT_SEGMENT, ..ask.expected() };
    let leading = tsih == 0;
    let mut stage = if ask.security { SECURITY } else { OPERATIONAL };
    let mut first = vec![
        ("InitiatorName", place.initiator.clone()),
        ("TargetName", place.target.clone()),
        ("SessionType", "Normal".to_owned()),
    ];
    let mut operational = ask.keys(leading);
    let len = operational.len() as u64;
    operational.rotate_left(chance.below(len) as usize);
    let itt = chance.below(1 << 31) as u32;
    let (mut input, mut answers, mut exp_stat_sn) = (Vec::new(), BTreeMap::new(), None);
    for _ in 0..8 {
        let mut pairs = std::mem::take(&mut first);
        let next = if stage == SECURITY {
            pairs.push(("AuthMethod", "None".to_owned()));
            OPERATIONAL
        } else {
            pairs.append(&mut operational);
            FULL_FEATURE
        };
        let text: Vec<u8> = pairs.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect();
        let mut request = Pdu::new(op::LOGIN | op::IMMEDIATE, flag::FINAL | stage << 2 | next).with_data(&text);
        request.bhs[8..14].copy_from_slice(&place.isid);
        let request = request.with16(14, tsih).with(16, itt).with16(20, cid).with(24, cmd_sn);
        let bytes = request.with(28, exp_stat_sn.unwrap_or(0)).encode(false, false);
        let push = |batch: &mut reactor::sys::tx::TxBatch| {
            batch.push_head(|out| {
                out[..bytes.len()].copy_from_slice(&bytes);
                bytes.len()
            });
        };
        tx.push(1, bytes.len(), push).await?;
        let answer = loop {
            if let Some(answer) = cut(&mut input, &plain)? {
                break answer;
            }
            let received = stream.recv().await?;
            input.extend_from_slice(&received);
        };
        if answer.opcode() != op::LOGIN_RESPONSE || answer.itt() != itt {
            return broken(format!("{answer:?} to a login"));
        }
        let status = answer.get16(36);
        if status != 0 {
            return Err(End::Refused(status));
        }
        let stat_sn = answer.get(24);
        if exp_stat_sn.is_some_and(|expected| expected != stat_sn) {
            return broken(format!("StatSN {stat_sn} in a login, not {exp_stat_sn:?}"));
        }
        exp_stat_sn = Some(stat_sn.wrapping_add(1));
        for pair in answer.data.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
            let pair = String::from_utf8_lossy(pair);
            let Some((key, value)) = pair.split_once('=') else { return broken(format!("{pair} in a login")) };
            if answers.insert(key.to_owned(), value.to_owned()).is_some() {
                return broken(format!("{key} came twice"));
            }
        }
        if answer.is(flag::FINAL) {
            if answer.bhs[1] & 3 != next {
                return broken(format!("a login goes to {:#x}", answer.bhs[1]));
            }
            stage = next;
        }
        if stage == FULL_FEATURE {
            return Ok((input, ask.check(&answers, leading)?, answer));
        }
    }
    broken("a login does not end")
}

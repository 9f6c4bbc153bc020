//! The login phase (RFC 7143 §6, §12, §13): a request at a time, in any order that a test likes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use md5::{Digest, Md5};
use sha2::Sha256;

use super::pdu::{Pdu, flag, op};
use super::wire::{Got, PATIENCE, Wire};

/// Stages of a login (RFC 7143 §11.12.3).
pub const SECURITY: u8 = 0;
pub const OPERATIONAL: u8 = 1;
pub const FULL: u8 = 3;

/// What follows a refusal: Status-Class and Status-Detail as one number.
pub type Refusal = u16;

pub const AUTHENTICATION_FAILURE: Refusal = 0x0201;
pub const NOT_ALLOWED: Refusal = 0x0202;
pub const NOT_FOUND: Refusal = 0x0203;
pub const SESSION_DOES_NOT_EXIST: Refusal = 0x020a;
/// Where the target has gone: temporarily, for ever.
pub const MOVED_FOR_NOW: Refusal = 0x0101;
pub const MOVED_FOR_EVER: Refusal = 0x0102;

/// Keys with their values.
pub type Keys = BTreeMap<String, String>;

/// What is offered. Those that are `None` are not mentioned: then the default of the standard holds.
#[derive(Clone, Debug)]
pub struct Offer {
    pub header_digest: Option<&'static str>,
    pub data_digest: Option<&'static str>,
    pub initial_r2t: Option<bool>,
    pub immediate_data: Option<bool>,
    /// MaxRecvDataSegmentLength, what we take in a PDU.
    pub max_recv: Option<u32>,
    pub max_burst: Option<u32>,
    pub first_burst: Option<u32>,
    pub max_r2t: Option<u32>,
    pub max_connections: Option<u32>,
    /// 2: the functions of RFC 7144.
    pub protocol_level: Option<u32>,
}

impl Offer {
    /// Every default of the standard.
    pub const PLAIN: Offer = Offer {
        header_digest: None,
        data_digest: None,
        initial_r2t: None,
        immediate_data: None,
        max_recv: None,
        max_burst: None,
        first_burst: None,
        max_r2t: None,
        max_connections: None,
        protocol_level: None,
    };

    /// As key and value.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let yes_no = |value: bool| if value { "Yes" } else { "No" }.to_owned();
        let number = |value: u32| value.to_string();
        let pairs = [
            ("HeaderDigest", self.header_digest.map(str::to_owned)),
            ("DataDigest", self.data_digest.map(str::to_owned)),
            ("InitialR2T", self.initial_r2t.map(yes_no)),
            ("ImmediateData", self.immediate_data.map(yes_no)),
            ("MaxRecvDataSegmentLength", self.max_recv.map(number)),
            ("MaxBurstLength", self.max_burst.map(number)),
            ("FirstBurstLength", self.first_burst.map(number)),
            ("MaxOutstandingR2T", self.max_r2t.map(number)),
            ("MaxConnections", self.max_connections.map(number)),
            ("iSCSIProtocolLevel", self.protocol_level.map(number)),
        ];
        pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// What holds in a session, and for the connection that negotiated it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    pub header_digest: bool,
    pub data_digest: bool,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    /// What we may send in a PDU, what we take in one.
    pub max_send: usize,
    pub max_recv: usize,
    pub max_burst: usize,
    pub first_burst: usize,
    pub max_r2t: usize,
    pub max_connections: u32,
    pub protocol_level: u32,
}

impl Params {
    /// What an offer and its answers come to.
    ///
    /// # Panics
    /// If an answer is not one that the offer allows.
    pub fn of(offer: &Offer, answers: &Keys) -> Params {
        let answer = |key: &str| answers.get(key).map(String::as_str);
        let number = |key: &str| answer(key).map(|text| text.parse::<u32>().unwrap_or_else(|_| panic!("{key}={text}")));
        let digest = |offer: Option<&str>, key: &str| match (offer, answer(key)) {
            (None, None) | (Some(_), Some("None")) => false,
            (Some(list), Some("CRC32C")) => {
                assert!(list.contains("CRC32C"), "{key}=CRC32C was not offered");
                true
            }
            other => panic!("{key}: {other:?}"),
        };
        // Min and Max of two numbers, one of which may be the default.
        let least = |offer: Option<u32>, key: &str, default: u32| {
            let answer = number(key);
            assert_eq!(offer.is_some(), answer.is_some(), "{key}: {offer:?} was answered by {answer:?}");
            if let (Some(ours), Some(theirs)) = (offer, answer) {
                assert!(theirs <= ours, "{key}={theirs} for an offer of {ours}");
            }
            answer.unwrap_or(default)
        };
        let boolean = |offer: Option<bool>, key: &str, default: bool| match (offer, answer(key)) {
            (None, None) => default,
            (Some(_), Some("Yes")) => true,
            (Some(_), Some("No")) => false,
            other => panic!("{key}: {other:?}"),
        };
        let initial_r2t = boolean(offer.initial_r2t, "InitialR2T", true);
        // InitialR2T is an OR, ImmediateData an AND (RFC 7143 §13.10, §13.11).
        assert!(offer.initial_r2t != Some(true) || initial_r2t);
        let immediate_data = boolean(offer.immediate_data, "ImmediateData", true);
        assert!(offer.immediate_data != Some(false) || !immediate_data);
        Params {
            header_digest: digest(offer.header_digest, "HeaderDigest"),
            data_digest: digest(offer.data_digest, "DataDigest"),
            initial_r2t,
            immediate_data,
            max_send: number("MaxRecvDataSegmentLength").unwrap_or(8192) as usize,
            max_recv: offer.max_recv.unwrap_or(8192) as usize,
            max_burst: least(offer.max_burst, "MaxBurstLength", 262_144) as usize,
            first_burst: least(offer.first_burst, "FirstBurstLength", 65_536) as usize,
            max_r2t: least(offer.max_r2t, "MaxOutstandingR2T", 1) as usize,
            max_connections: least(offer.max_connections, "MaxConnections", 1),
            protocol_level: least(offer.protocol_level, "iSCSIProtocolLevel", 1),
        }
    }
}

/// How CHAP hashes: the number in CHAP_A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Md5 = 5,
    Sha256 = 7,
}

impl Hash {
    fn response(self, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        match self {
            Hash::Md5 => Md5::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize().to_vec(),
            Hash::Sha256 => {
                Sha256::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize().to_vec()
            }
        }
    }
}

/// Who logs in, and whether the target has to prove itself too.
#[derive(Clone, Debug)]
pub struct Chap {
    /// The list in CHAP_A.
    pub algorithms: &'static str,
    pub user: &'static str,
    pub secret: &'static [u8],
    /// User and secret of the target.
    pub mutual: Option<(&'static str, &'static [u8])>,
}

/// How to log in.
#[derive(Clone, Debug)]
pub struct Options {
    pub initiator: String,
    /// The target's name; none for a discovery session.
    pub target: Option<String>,
    pub isid: [u8; 6],
    /// Of the session to join; 0 for a new one.
    pub tsih: u16,
    pub cid: u16,
    pub offer: Offer,
    pub chap: Option<Chap>,
    /// Begins with the security stage even without CHAP.
    pub security: bool,
}

impl Options {
    /// A normal session, its initiator told by a number.
    pub fn new(target: &str, initiator: u8) -> Options {
        Options {
            initiator: format!("iqn.2026-11.test.initiator:{initiator}"),
            target: Some(target.to_owned()),
            isid: [0x80, 0, 0, 0, 0, initiator],
            tsih: 0,
            cid: 0,
            offer: Offer::PLAIN,
            chap: None,
            security: true,
        }
    }

    pub fn with(mut self, offer: Offer) -> Options {
        self.offer = offer;
        self
    }

    /// The keys that name the two ends.
    pub fn names(&self) -> Vec<(String, String)> {
        let mut pairs = vec![("InitiatorName".to_owned(), self.initiator.clone())];
        match &self.target {
            Some(target) => {
                pairs.push(("SessionType".to_owned(), "Normal".to_owned()));
                pairs.push(("TargetName".to_owned(), target.clone()));
            }
            None => pairs.push(("SessionType".to_owned(), "Discovery".to_owned())),
        }
        pairs
    }
}

/// Keys as the text of a data segment.
pub fn text(pairs: &[(String, String)]) -> Vec<u8> {
    pairs.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()
}

/// The keys of a data segment.
///
/// # Panics
/// If it is not text, or names a key twice.
pub fn keys(data: &[u8]) -> Keys {
    let mut keys = Keys::new();
    for pair in all_pairs(data) {
        assert!(keys.insert(pair.0.clone(), pair.1).is_none(), "{} comes twice", pair.0);
    }
    keys
}

/// The pairs of a data segment in their order.
pub fn all_pairs(data: &[u8]) -> Vec<(String, String)> {
    let Some(data) = data.strip_suffix(&[0]) else {
        assert!(data.is_empty(), "text without an end");
        return Vec::new();
    };
    let text = std::str::from_utf8(data).expect("UTF-8");
    let pairs = text.split('\0').map(|pair| pair.split_once('=').unwrap_or_else(|| panic!("no pair: {pair:?}")));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A connection whose login goes on.
pub struct Login {
    pub wire: Wire,
    pub isid: [u8; 6],
    pub tsih: u16,
    pub cid: u16,
    pub itt: u32,
    pub cmd_sn: u32,
    /// Of the next response, once one has come.
    pub stat_sn: Option<u32>,
    /// ExpCmdSN and MaxCmdSN of the last response.
    pub window: (u32, u32),
}

/// What a request brought.
#[derive(Debug)]
pub struct Answer {
    pub csg: u8,
    pub nsg: u8,
    /// Whether the target goes to the next stage.
    pub transit: bool,
    pub pairs: Vec<(String, String)>,
}

impl Login {
    pub fn new(address: SocketAddr, options: &Options) -> Login {
        Login {
            wire: Wire::connect(address),
            isid: options.isid,
            tsih: options.tsih,
            cid: options.cid,
            itt: 0x1000_0000 | u32::from(options.cid),
            cmd_sn: 1,
            stat_sn: None,
            window: (0, 0),
        }
    }

    /// A request of this login.
    pub fn request(&self, (csg, nsg, transit): (u8, u8, bool), more: bool, data: &[u8]) -> Pdu {
        let flags = if transit { flag::FINAL | nsg } else { 0 } | if more { flag::CONTINUE } else { 0 } | csg << 2;
        let mut pdu = Pdu::new(op::LOGIN | op::IMMEDIATE, flags);
        pdu.bhs[8..14].copy_from_slice(&self.isid);
        let expected = self.stat_sn.unwrap_or(0);
        pdu.with16(14, self.tsih)
            .with(16, self.itt)
            .with16(20, self.cid)
            .with(24, self.cmd_sn)
            .with(28, expected)
            .with_data(data)
    }

    /// One response, checked.
    pub fn response(&mut self) -> Result<(Pdu, Answer), Refusal> {
        let pdu = match self.wire.next(PATIENCE) {
            Got::Pdu(pdu) => *pdu,
            other => panic!("no Login Response but {other:?}"),
        };
        assert_eq!(pdu.opcode(), op::LOGIN_RESPONSE, "{pdu:02x?}");
        assert_eq!((pdu.bhs[2], pdu.bhs[3]), (0, 0), "versions");
        assert_eq!((&pdu.bhs[8..14], pdu.itt()), (&self.isid[..], self.itt));
        let status = pdu.get16(36);
        if status >> 8 == 1 {
            // TargetAddress says where.
            assert!(keys(&pdu.data).contains_key("TargetAddress"));
        }
        if status != 0 {
            assert!(!pdu.is(flag::FINAL), "a refusal does not go on");
            return Err(status);
        }
        if let Some(expected) = self.stat_sn {
            assert_eq!(pdu.get(24), expected, "StatSN");
        }
        self.stat_sn = Some(pdu.get(24).wrapping_add(1));
        self.window = (pdu.get(28), pdu.get(32));
        let answer =
            Answer { csg: pdu.bhs[1] >> 2 & 3, nsg: pdu.bhs[1] & 3, transit: pdu.is(flag::FINAL), pairs: Vec::new() };
        let tsih = pdu.get16(14);
        if answer.transit && answer.nsg == FULL {
            assert!(tsih != 0 && (self.tsih == 0 || self.tsih == tsih), "TSIH {tsih}");
            self.tsih = tsih;
        } else {
            assert_eq!(tsih, self.tsih);
        }
        Ok((pdu, answer))
    }

    /// Sends `data` in pieces of at most `piece` bytes and gives the answer to the last, put together.
    pub fn exchange(&mut self, stage: (u8, u8, bool), data: &[u8], piece: usize) -> Result<Answer, Refusal> {
        let count = data.len().div_ceil(piece).max(1);
        for part in data.chunks(piece).take(count - 1) {
            self.wire.send(&self.request((stage.0, 0, false), true, part));
            let (pdu, _) = self.response()?;
            assert!(pdu.data.is_empty() && !pdu.is(flag::FINAL), "an answer to what is not complete: {pdu:02x?}");
        }
        let last = data.chunks(piece).last().unwrap_or_default();
        self.wire.send(&self.request(stage, false, last));
        let mut whole = Vec::new();
        loop {
            let (pdu, mut answer) = self.response()?;
            whole.extend_from_slice(&pdu.data);
            assert_eq!(answer.csg, stage.0, "the stage of the answer");
            if !pdu.is(flag::CONTINUE) {
                assert!(!answer.transit || stage.2 && answer.nsg == stage.1, "nobody asked for {answer:?}");
                answer.pairs = all_pairs(&whole);
                return Ok(answer);
            }
            self.wire.send(&self.request((stage.0, 0, false), false, &[]));
        }
    }

    /// As [`Login::exchange`], all at once, the keys without repetition.
    pub fn ask(&mut self, stage: (u8, u8, bool), pairs: &[(String, String)]) -> Result<(Answer, Keys), Refusal> {
        let answer = self.exchange(stage, &text(pairs), usize::MAX)?;
        let keys = keys(&text(&answer.pairs));
        Ok((answer, keys))
    }

    /// The security stage by CHAP; `first` goes before it. The target's side of a mutual one is checked.
    pub fn chap(&mut self, chap: &Chap, first: Vec<(String, String)>, next: u8) -> Result<(), Refusal> {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut pairs = first;
        pairs.push(pair("AuthMethod", "CHAP"));
        let (_, answer) = self.ask((SECURITY, next, false), &pairs)?;
        assert_eq!(answer["AuthMethod"], "CHAP");
        let (_, answer) = self.ask((SECURITY, next, false), &[pair("CHAP_A", chap.algorithms)])?;
        let hash = match answer["CHAP_A"].as_str() {
            "5" => Hash::Md5,
            "7" => Hash::Sha256,
            other => panic!("CHAP_A={other}"),
        };
        assert!(chap.algorithms.split(',').any(|one| one == (hash as u8).to_string()));
        let id: u8 = answer["CHAP_I"].parse().expect("CHAP_I");
        let challenge = binary(&answer["CHAP_C"]);
        assert!(challenge.len() >= 16, "a challenge of {} bytes", challenge.len());
        let response = hex(&hash.response(id, chap.secret, &challenge));
        let mut pairs = vec![pair("CHAP_N", chap.user), pair("CHAP_R", &response)];
        let (own_id, own_challenge) =
            (id.wrapping_add(77), challenge.iter().map(|byte| byte ^ 0x5a).collect::<Vec<_>>());
        if chap.mutual.is_some() {
            pairs.extend([pair("CHAP_I", &own_id.to_string()), pair("CHAP_C", &hex(&own_challenge))]);
        }
        let (done, answer) = self.ask((SECURITY, next, true), &pairs)?;
        if let Some((user, secret)) = chap.mutual {
            assert_eq!(answer["CHAP_N"], user);
            assert_eq!(binary(&answer["CHAP_R"]), hash.response(own_id, secret, &own_challenge), "the target's proof");
        }
        if !done.transit {
            let (done, _) = self.ask((SECURITY, next, true), &[])?;
            assert!(done.transit);
        }
        Ok(())
    }

    /// The whole of a login in the usual order. What holds then; the digests are on.
    pub fn run(&mut self, options: &Options) -> Result<Params, Refusal> {
        let mut first = options.names();
        let secure = options.security || options.chap.is_some();
        if let Some(chap) = &options.chap {
            self.chap(chap, std::mem::take(&mut first), OPERATIONAL)?;
        } else if secure {
            let mut pairs = std::mem::take(&mut first);
            pairs.push(("AuthMethod".to_owned(), "None".to_owned()));
            let (answer, keys) = self.ask((SECURITY, OPERATIONAL, true), &pairs)?;
            assert!(answer.transit && keys["AuthMethod"] == "None", "{keys:?}");
        }
        let pairs = [first, options.offer.pairs()].concat();
        let (mut answer, mut found) = self.ask((OPERATIONAL, FULL, true), &pairs)?;
        while !answer.transit {
            // The target has keys of its own to declare first, or more to say.
            let more;
            (answer, more) = self.ask((OPERATIONAL, FULL, true), &[])?;
            found.extend(more);
        }
        Ok(self.begin(options, &found))
    }

    /// The full feature phase begins with these answers.
    pub fn begin(&mut self, options: &Options, found: &Keys) -> Params {
        let params = Params::of(&options.offer, found);
        self.wire.agree(params.header_digest, params.data_digest);
        params
    }
}

/// Bytes as a binary value, in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    "0x".to_owned() + &bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
}

/// A binary value: hexadecimal or Base64 (RFC 7143 §6.1).
pub fn binary(value: &str) -> Vec<u8> {
    if let Some(digits) = value.strip_prefix("0x").or(value.strip_prefix("0X")) {
        let digits = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits.to_owned() };
        return (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    }
    let digits = value.strip_prefix("0b").or(value.strip_prefix("0B")).expect("a binary value");
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in digits.trim_end_matches('=').bytes() {
        let six = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => panic!("{value}"),
        };
        (bits, count) = (bits << 6 | u32::from(six), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

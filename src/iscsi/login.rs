//! The login of one connection (RFC 7143 §6.3, §11.12, §11.13).

use std::collections::BTreeSet;

use zerocopy::FromZeros;

use super::admission::{Admitted, Claim, Established, LoginStatus, Nexus};
use super::chap::{CHAP_ENTROPY, Chap, ChapConfig};
use super::keys::{BadNegotiation, Negotiation, Place, SessionKind};
use super::pdu::*;
use super::target::{Book, TargetConfig, is_name};
use super::text::{BadText, Text, put};
/// How long the answer to a wrong proof is held back, in nanoseconds: a secret is guessed at this pace by each connection.
pub const AUTHENTICATION_DELAY_NS: u64 = 1_000_000_000;

/// Requests of one login, beyond which it is refused: the longest exchange has some twenty.
const REQUESTS_MAX: u16 = 64;

/// Most text of one Login Response: what every initiator receives (RFC 7143 §13.12).
const REPLY_MAX: usize = DEFAULT_DATA_SEGMENT as usize;

/// A Login Response and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The header, without digest: logins have none.
    pub header: Header,
    /// The text.
    pub text: Vec<u8>,
}

/// What the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Send it and wait for the next Login Request.
    Reply(Reply),
    /// Ask the registry of sessions, then call [`Login::admitted`] or [`Login::refused`].
    Admit(Claim),
    /// Send it, no sooner than `delay_ns` from now, and close the connection.
    Refuse {
        /// What to send.
        reply: Reply,
        /// How long to wait before.
        delay_ns: u64,
        /// Why.
        status: LoginStatus,
    },
}

/// What does not change during a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    isid: [u8; 6],
    tsih: u16,
    cid: u16,
    itt: u32,
}

/// Who logs in where.
#[derive(Clone, Debug)]
struct Who {
    initiator: String,
    kind: SessionKind,
    target: Option<String>,
    tpgt: u16,
    /// The tag has been told.
    told_tpgt: bool,
}

/// How the initiator is to prove itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Not agreed upon.
    Open,
    /// Nothing is to be proved.
    None,
    /// CHAP.
    Chap,
}

/// A response that waits for the registry.
#[derive(Clone, Debug)]
struct Waiting {
    request: LoginRequest,
    text: Vec<u8>,
}

/// The login of one connection.
///
/// ```text
///            CSG 0               CSG 1
///   (begin) -----> Security ----------> Operational ----> Full feature
///      |               '----------------------------------------^
///      '---------------------------------^   (only if nothing is to be proved)
/// ```
#[derive(Clone, Debug)]
pub struct Login {
    listener: u16,
    /// Where the initiator is; `None` before the first request.
    stage: Option<Stage>,
    identity: Option<Identity>,
    who: Option<Who>,
    method: Method,
    chap: Chap,
    negotiation: Negotiation,
    /// Text of requests that go on.
    text: Text,
    waiting: Option<Waiting>,
    cmd_sn: u32,
    stat_sn: u32,
    requests: u16,
}

/// Why a step fails.
type Refusal = LoginStatus;

impl From<BadText> for LoginStatus {
    fn from(_: BadText) -> LoginStatus {
        LoginStatus::INITIATOR_ERROR
    }
}

impl From<BadNegotiation> for LoginStatus {
    fn from(_: BadNegotiation) -> LoginStatus {
        LoginStatus::INITIATOR_ERROR
    }
}

impl Login {
    /// Whether the next request may prove who the initiator is: a challenge is out.
    pub fn awaits_proof(&self) -> bool {
        self.chap.awaits_response()
    }

    /// The login of a connection that came by `listener`. `entropy` must never have been used before.
    pub fn new(listener: u16, entropy: &[u8; CHAP_ENTROPY]) -> Login {
        Login {
            listener,
            stage: None,
            identity: None,
            who: None,
            method: Method::Open,
            chap: Chap::new(entropy),
            negotiation: Negotiation::new(Default::default()),
            text: Text::new(),
            waiting: None,
            cmd_sn: 0,
            stat_sn: 0,
            requests: 0,
        }
    }

    /// Takes a Login Request and its data.
    pub fn request(&mut self, book: &Book, request: &LoginRequest, data: &[u8]) -> Step {
        match self.advance(book, request, data) {
            Ok(step) => step,
            Err(status) => self.refuse(request, status, Vec::new()),
        }
    }

    /// The session takes the connection: the last response, and what holds from now on. Send it, then tell the decoder
    /// ([`super::Decoder::set_full_feature`]). `None` when nothing waits for the session.
    pub fn admitted(&mut self, admitted: &Admitted) -> Option<(Reply, Established)> {
        let Waiting { request, text } = self.waiting.take()?;
        let who = self.who.take()?;
        if let Some(joined) = &admitted.joined {
            self.negotiation.adopt(&joined.params);
        }
        let mut response = self.response(&request);
        response.flags = request.flags;
        response.tsih.set(admitted.tsih);
        let max = self.cmd_sn.wrapping_add(u32::from(admitted.window.max(1)) - 1);
        response.exp_cmd_sn.set(admitted.joined.map_or(self.cmd_sn, |joined| joined.exp_cmd_sn));
        response.max_cmd_sn.set(admitted.joined.map_or(max, |joined| joined.max_cmd_sn));
        let nexus = nexus(&who, &request);
        let established = Established {
            kind: who.kind,
            nexus,
            initiator: who.initiator,
            tsih: admitted.tsih,
            cid: request.cid.get(),
            params: self.negotiation.params(),
            cmd_sn: self.cmd_sn,
            stat_sn: self.stat_sn,
        };
        Some((reply(response, text), established))
    }

    /// The session, or the caller for a reason of its own, does not take the connection.
    pub fn refused(&mut self, status: LoginStatus) -> Option<Step> {
        let Waiting { request, .. } = self.waiting.take()?;
        Some(self.refuse(&request, status, Vec::new()))
    }

    /// Refuses a login whatever it says: the target is going down, or has no room for a connection more.
    pub fn turn_away(&mut self, request: &LoginRequest, status: LoginStatus) -> Step {
        self.refuse(request, status, Vec::new())
    }

    fn advance(&mut self, book: &Book, request: &LoginRequest, data: &[u8]) -> Result<Step, Refusal> {
        self.requests = self.requests.saturating_add(1);
        if self.waiting.is_some() || self.requests > REQUESTS_MAX {
            return Err(LoginStatus::INVALID_DURING_LOGIN);
        }
        if request.version_min > VERSION {
            return Err(LoginStatus::UNSUPPORTED_VERSION);
        }
        self.check_header(request)?;
        self.text.add(data)?;
        if request.flags & FLAG_CONTINUE != 0 {
            // An empty response asks for the rest (RFC 7143 §6.2).
            let response = self.response(request);
            return Ok(Step::Reply(reply(response, Vec::new())));
        }
        let text = core::mem::take(&mut self.text);
        let pairs = text.pairs()?;
        let mut keys = BTreeSet::new();
        if !pairs.iter().all(|(key, _)| keys.insert(*key)) {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        self.identify(book, &pairs)?;
        let Some(who) = &self.who else { return Err(LoginStatus::MISSING_PARAMETER) };
        let target = match &who.target {
            Some(name) => Some(book.target(name).ok_or(LoginStatus::TARGET_REMOVED)?),
            None => None,
        };
        if let Some(redirect) = self.redirect(request, target) {
            return Ok(redirect);
        }
        let mut out = Vec::new();
        self.tell_tpgt(&mut out);
        let chap = target.map_or(book.discovery_chap(), |target| target.chap.as_ref());
        let step = match request.current() {
            Stage::SECURITY => self.security(request, chap, &pairs, out)?,
            _ => self.operational(request, chap, target, &pairs, out)?,
        };
        Ok(step)
    }

    /// Stages, flags and identifiers.
    fn check_header(&mut self, request: &LoginRequest) -> Result<(), Refusal> {
        let transit = request.flags & FLAG_TRANSIT != 0;
        let (current, next) = (request.current(), request.next());
        let legal = match (current, next) {
            _ if !transit => matches!(current, Stage::SECURITY | Stage::OPERATIONAL),
            (Stage::SECURITY, Stage::OPERATIONAL | Stage::FULL_FEATURE) => true,
            (Stage::OPERATIONAL, Stage::FULL_FEATURE) => true,
            _ => false,
        };
        if !legal || transit && request.flags & FLAG_CONTINUE != 0 || request.itt.get() == NO_TAG {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let identity =
            Identity { isid: request.isid, tsih: request.tsih.get(), cid: request.cid.get(), itt: request.itt.get() };
        match (self.identity, self.stage) {
            (None, _) => self.cmd_sn = request.cmd_sn.get(),
            (Some(known), Some(stage)) if known == identity && stage == current => {}
            _ => return Err(LoginStatus::INITIATOR_ERROR),
        }
        self.identity = Some(identity);
        self.stage = Some(current);
        Ok(())
    }

    /// Takes the names, which the first request must have. Later ones may say them again, but nothing else.
    fn identify(&mut self, book: &Book, pairs: &[(&str, &str)]) -> Result<(), Refusal> {
        let of = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let (initiator, target, kind) = (of("InitiatorName"), of("TargetName"), of("SessionType"));
        if let Some(who) = &self.who {
            let other = |now: Option<&str>, before: &str| now.is_some_and(|now| !now.eq_ignore_ascii_case(before));
            let kind_before = if who.kind == SessionKind::Discovery { "Discovery" } else { "Normal" };
            let differs = other(initiator, &who.initiator)
                || other(kind, kind_before)
                || who.target.as_deref().is_some_and(|before| other(target, before));
            return if differs { Err(LoginStatus::INITIATOR_ERROR) } else { Ok(()) };
        }
        let initiator = initiator.ok_or(LoginStatus::MISSING_PARAMETER)?;
        if !is_name(initiator) {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let kind = match kind {
            None | Some("Normal") => SessionKind::Normal,
            Some("Discovery") => SessionKind::Discovery,
            Some(_) => return Err(LoginStatus::SESSION_TYPE_NOT_SUPPORTED),
        };
        let mut who = Who { initiator: initiator.to_owned(), kind, target: None, tpgt: 0, told_tpgt: true };
        let mut offer = book.discovery_offer();
        if kind == SessionKind::Normal {
            let name = target.ok_or(LoginStatus::MISSING_PARAMETER)?;
            let target = book.target(name).ok_or(LoginStatus::NOT_FOUND)?;
            let portal = target.portal(self.listener).ok_or(LoginStatus::NOT_FOUND)?;
            if !target.initiators.allows(initiator) {
                return Err(LoginStatus::AUTHORIZATION_FAILURE);
            }
            who.target = Some(target.name.clone());
            who.tpgt = portal.tpgt;
            who.told_tpgt = false;
            offer = target.offer;
        }
        self.negotiation = Negotiation::new(offer);
        self.who = Some(who);
        Ok(())
    }

    /// Sends the initiator elsewhere, if the portal does that.
    fn redirect(&mut self, request: &LoginRequest, target: Option<&TargetConfig>) -> Option<Step> {
        let redirect = target?.portal(self.listener)?.redirect.clone()?;
        let mut text = Vec::new();
        put(&mut text, "TargetAddress", &redirect.address);
        let status = if redirect.permanent { LoginStatus::MOVED_PERMANENTLY } else { LoginStatus::MOVED_TEMPORARILY };
        Some(self.refuse(request, status, text))
    }

    /// The response to the first request that is whole has the tag, in a normal session (RFC 7143 §13.9).
    fn tell_tpgt(&mut self, out: &mut Vec<u8>) {
        if let Some(who) = &mut self.who
            && !who.told_tpgt
        {
            who.told_tpgt = true;
            put(out, "TargetPortalGroupTag", &who.tpgt.to_string());
        }
    }

    fn security(
        &mut self,
        request: &LoginRequest,
        chap: Option<&ChapConfig>,
        pairs: &[(&str, &str)],
        mut out: Vec<u8>,
    ) -> Result<Step, Refusal> {
        let mut proofs = Vec::new();
        for &(key, value) in pairs {
            match key {
                _ if is_declaration(key) => {}
                "AuthMethod" => self.choose_method(chap, value, &mut out)?,
                _ if key.starts_with("CHAP_") => proofs.push((key, value)),
                _ if Negotiation::knows(key) => put(&mut out, key, "Reject"),
                _ => put(&mut out, key, "NotUnderstood"),
            }
        }
        match (self.method, chap) {
            (Method::Chap, Some(chap)) => {
                self.chap.step(chap, &proofs, &mut out).map_err(|_| LoginStatus::AUTHENTICATION_FAILURE)?;
            }
            (Method::Chap, None) => return Err(LoginStatus::TARGET_ERROR),
            _ if !proofs.is_empty() => return Err(LoginStatus::AUTHENTICATION_FAILURE),
            _ => {}
        }
        let proved = match self.method {
            Method::Chap => self.chap.is_done(),
            Method::None | Method::Open => chap.is_none(),
        };
        if request.flags & FLAG_TRANSIT == 0 {
            return self.go_on(request, out);
        }
        if !proved {
            // Who has agreed upon a method may still prove itself; who has not will not.
            return match self.method {
                Method::Chap => self.go_on(request, out),
                Method::None | Method::Open => Err(LoginStatus::AUTHENTICATION_FAILURE),
            };
        }
        self.stage = Some(request.next());
        if request.next() == Stage::OPERATIONAL {
            return self.transit(request, out);
        }
        // Straight to the full feature phase: defaults hold, and what they do not allow for cannot be asked any more.
        let place = self.place(request);
        if !self.negotiation.complete(place, &mut Vec::new())? {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        self.admit(request, out)
    }

    fn choose_method(&mut self, chap: Option<&ChapConfig>, offered: &str, out: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.method != Method::Open {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let wanted = if chap.is_some() { ("CHAP", Method::Chap) } else { ("None", Method::None) };
        if !offered.split(',').any(|method| method == wanted.0) {
            return Err(LoginStatus::AUTHENTICATION_FAILURE);
        }
        put(out, "AuthMethod", wanted.0);
        self.method = wanted.1;
        Ok(())
    }

    fn operational(
        &mut self,
        request: &LoginRequest,
        chap: Option<&ChapConfig>,
        target: Option<&TargetConfig>,
        pairs: &[(&str, &str)],
        mut out: Vec<u8>,
    ) -> Result<Step, Refusal> {
        if chap.is_some() && !self.chap.is_done() {
            return Err(LoginStatus::AUTHENTICATION_FAILURE);
        }
        let place = self.place(request);
        for &(key, value) in pairs {
            match key {
                _ if is_declaration(key) => {}
                "AuthMethod" => put(&mut out, key, "Reject"),
                _ if key.starts_with("CHAP_") => put(&mut out, key, "Reject"),
                _ => self.negotiation.take(place, key, value, &mut out)?,
            }
        }
        if self.negotiation.declare(&mut out)
            && let Some(alias) = target.and_then(|target| target.alias.as_ref())
        {
            put(&mut out, "TargetAlias", alias);
        }
        if request.flags & FLAG_TRANSIT == 0 || !self.negotiation.complete(place, &mut out)? {
            return self.go_on(request, out);
        }
        self.stage = Some(Stage::FULL_FEATURE);
        self.admit(request, out)
    }

    fn place(&self, request: &LoginRequest) -> Place {
        let kind = self.who.as_ref().map_or(SessionKind::Normal, |who| who.kind);
        Place { kind, leading: request.tsih.get() == 0 }
    }

    /// The stage stays.
    fn go_on(&mut self, request: &LoginRequest, text: Vec<u8>) -> Result<Step, Refusal> {
        if text.len() > REPLY_MAX {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let response = self.response(request);
        Ok(Step::Reply(reply(response, text)))
    }

    /// The next stage begins.
    fn transit(&mut self, request: &LoginRequest, text: Vec<u8>) -> Result<Step, Refusal> {
        if text.len() > REPLY_MAX {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let mut response = self.response(request);
        response.flags = request.flags;
        Ok(Step::Reply(reply(response, text)))
    }

    fn admit(&mut self, request: &LoginRequest, text: Vec<u8>) -> Result<Step, Refusal> {
        if text.len() > REPLY_MAX {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let Some(who) = &self.who else { return Err(LoginStatus::TARGET_ERROR) };
        let max_connections = match who.kind {
            SessionKind::Normal => self.negotiation.params().max_connections,
            SessionKind::Discovery => 1,
        };
        let claim =
            Claim { nexus: nexus(who, request), tsih: request.tsih.get(), cid: request.cid.get(), max_connections };
        self.waiting = Some(Waiting { request: *request, text });
        Ok(Step::Admit(claim))
    }

    fn refuse(&mut self, request: &LoginRequest, status: LoginStatus, text: Vec<u8>) -> Step {
        let mut response = self.response(request);
        [response.status_class, response.status_detail] = status.0.to_be_bytes();
        let delay_ns = if status == LoginStatus::AUTHENTICATION_FAILURE { AUTHENTICATION_DELAY_NS } else { 0 };
        Step::Refuse { reply: reply(response, text), delay_ns, status }
    }

    /// A response that stays in the stage. It takes the next StatSN.
    fn response(&mut self, request: &LoginRequest) -> LoginResponse {
        let mut response = LoginResponse::new_zeroed();
        response.opcode = Opcode::LOGIN_RESPONSE.0;
        response.flags = request.current().0 << 2;
        response.version_max = VERSION;
        response.version_active = VERSION;
        response.isid = request.isid;
        response.tsih = request.tsih;
        response.itt = request.itt;
        response.stat_sn.set(self.stat_sn);
        response.exp_cmd_sn.set(self.cmd_sn);
        response.max_cmd_sn.set(self.cmd_sn);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        response
    }
}

/// Keys that say something and want no answer, in every stage.
fn is_declaration(key: &str) -> bool {
    matches!(key, "InitiatorName" | "InitiatorAlias" | "TargetName" | "SessionType")
}

fn nexus(who: &Who, request: &LoginRequest) -> Nexus {
    Nexus {
        initiator: who.initiator.to_ascii_lowercase(),
        isid: request.isid,
        target: who.target.clone(),
        tpgt: who.tpgt,
    }
}

fn reply(mut response: LoginResponse, text: Vec<u8>) -> Reply {
    response.data_len = U24::new(text.len() as u32);
    Reply { header: response.to_bytes(), text }
}

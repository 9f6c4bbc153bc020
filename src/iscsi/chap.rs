//! CHAP: the target's side of one-way and mutual authentication (RFC 7143 §12.1.3, RFC 1994).

use std::collections::BTreeSet;

use md5::{Digest, Md5};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::text::{VALUE_MAX, binary, hex, number, put};

/// Shortest secret: one of less than 96 bits must not be used on a link without IPsec (RFC 7143 §9.2.1).
pub const SECRET_MIN: usize = 12;
/// Longest secret.
pub const SECRET_MAX: usize = 255;
/// Longest challenge of an initiator in bytes (RFC 7143 §12.1.3).
const CHALLENGE_MAX: usize = 1024;
/// Bytes of chance one authentication needs: the identifier and the longest challenge.
pub const CHAP_ENTROPY: usize = 33;

/// The bytes of chance of one authentication: those of a secret that nobody else has, for a number that comes once.
pub fn chap_entropy(secret: &[u8; 32], number: u64) -> [u8; CHAP_ENTROPY] {
    let mut out = [0; CHAP_ENTROPY];
    for (part, bytes) in out.chunks_mut(32).enumerate() {
        let hash = Sha256::new().chain_update(secret).chain_update(number.to_be_bytes()).chain_update([part as u8]);
        bytes.copy_from_slice(&hash.finalize()[..bytes.len()]);
    }
    out
}

/// A secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A secret or a name that must not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChap {
    /// The secret has less than 12 bytes or more than 255.
    #[error("a CHAP secret has {SECRET_MIN} to {SECRET_MAX} bytes")]
    SecretLength,
    /// The name is empty, longer than 255 bytes or has a NUL.
    #[error("a CHAP name has 1 to {VALUE_MAX} bytes and no NUL")]
    Name,
    /// Both directions have the same secret: the answer of one would open the other (RFC 7143 §9.2.1).
    #[error("the secrets of both directions are the same")]
    SameSecret,
}

impl Secret {
    /// A secret of 12 to 255 bytes.
    ///
    /// # Errors
    /// It is shorter or longer.
    pub fn new(bytes: Vec<u8>) -> Result<Secret, BadChap> {
        if (SECRET_MIN..=SECRET_MAX).contains(&bytes.len()) { Ok(Secret(bytes)) } else { Err(BadChap::SecretLength) }
    }
}

/// Who one side says it is, and how it proves that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    name: String,
    secret: Secret,
}

impl Credentials {
    /// A name and its secret.
    ///
    /// # Errors
    /// The name cannot be one.
    pub fn new(name: String, secret: Secret) -> Result<Credentials, BadChap> {
        if name.is_empty() || name.len() > VALUE_MAX || name.contains('\0') {
            return Err(BadChap::Name);
        }
        Ok(Credentials { name, secret })
    }
}

/// What initiators of a target must prove, and what the target can prove to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapConfig {
    initiator: Credentials,
    target: Option<Credentials>,
    algorithms: BTreeSet<ChapAlgorithm>,
}

impl ChapConfig {
    /// Initiators prove `initiator`; who asks for it gets the proof of `target`.
    ///
    /// # Errors
    /// Both have the same secret.
    pub fn new(initiator: Credentials, target: Option<Credentials>) -> Result<ChapConfig, BadChap> {
        if target.as_ref().is_some_and(|target| target.secret == initiator.secret) {
            return Err(BadChap::SameSecret);
        }
        Ok(ChapConfig { initiator, target, algorithms: BTreeSet::from(ChapAlgorithm::ALL) })
    }

    /// The same with no other hashes than these; without one nobody can prove anything.
    pub fn only(self, algorithms: BTreeSet<ChapAlgorithm>) -> ChapConfig {
        ChapConfig { algorithms, ..self }
    }
}

/// A hash that CHAP is done with (the registry of PPP authentication algorithms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChapAlgorithm {
    /// MD5, 5.
    Md5,
    /// SHA-256, 7.
    Sha256,
}

impl ChapAlgorithm {
    const ALL: [ChapAlgorithm; 2] = [ChapAlgorithm::Md5, ChapAlgorithm::Sha256];

    const fn number(self) -> u8 {
        match self {
            ChapAlgorithm::Md5 => 5,
            ChapAlgorithm::Sha256 => 7,
        }
    }

    const fn len(self) -> usize {
        match self {
            ChapAlgorithm::Md5 => 16,
            ChapAlgorithm::Sha256 => 32,
        }
    }

    /// The hash of identifier, secret and challenge (RFC 1994 §4.1).
    fn response(self, id: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        fn hash<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        }
        let parts = [&[id][..], &secret.0, challenge];
        match self {
            ChapAlgorithm::Md5 => hash::<Md5>(parts),
            ChapAlgorithm::Sha256 => hash::<Sha256>(parts),
        }
    }
}

/// What the authentication waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// CHAP_A.
    Algorithm,
    /// CHAP_N and CHAP_R, and for mutual authentication CHAP_I and CHAP_C.
    Response(ChapAlgorithm),
    /// Nothing: the initiator has proved itself.
    Nothing,
}

/// The initiator has not proved itself. Which part of its answer was wrong is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct NotAuthentic;

/// One authentication.
///
/// ```text
///   Algorithm --CHAP_A--> Response --CHAP_N, CHAP_R [, CHAP_I, CHAP_C]--> Nothing
///                 |                       |
///        CHAP_A, CHAP_I, CHAP_C     [CHAP_N, CHAP_R]
/// ```
#[derive(Clone, Debug)]
pub(super) struct Chap {
    expect: Expect,
    id: u8,
    challenge: [u8; 32],
}

impl Chap {
    /// An authentication that has not begun; `entropy` is its identifier and challenge and must never come again.
    pub(super) fn new(entropy: &[u8; CHAP_ENTROPY]) -> Chap {
        let mut challenge = [0; 32];
        challenge.copy_from_slice(&entropy[1..]);
        Chap { expect: Expect::Algorithm, id: entropy[0], challenge }
    }

    /// Whether the initiator has proved itself.
    pub(super) fn is_done(&self) -> bool {
        self.expect == Expect::Nothing
    }

    /// Whether the challenge is out and not answered.
    pub(super) fn awaits_response(&self) -> bool {
        matches!(self.expect, Expect::Response(_))
    }

    /// Takes the CHAP keys of one request and writes the answer to `out`. No key: nothing happens.
    ///
    /// # Errors
    /// The keys are not those of this step, or prove nothing.
    pub(super) fn step(
        &mut self,
        config: &ChapConfig,
        keys: &[(&str, &str)],
        out: &mut Vec<u8>,
    ) -> Result<(), NotAuthentic> {
        let of = |name: &str| keys.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let only = |names: &[&str]| keys.iter().all(|(key, _)| names.contains(key));
        if keys.is_empty() {
            return Ok(());
        }
        match self.expect {
            Expect::Algorithm if only(&["CHAP_A"]) => {
                let offered = of("CHAP_A").ok_or(NotAuthentic)?;
                // The initiator's order of preference counts (RFC 7143 §12.1.3).
                let known = |offered: &str| {
                    let number = number(offered)?;
                    config.algorithms.iter().copied().find(|algorithm| u64::from(algorithm.number()) == number)
                };
                let algorithm = offered.split(',').find_map(known).ok_or(NotAuthentic)?;
                put(out, "CHAP_A", &algorithm.number().to_string());
                put(out, "CHAP_I", &self.id.to_string());
                put(out, "CHAP_C", &hex(&self.challenge[..algorithm.len()]));
                self.expect = Expect::Response(algorithm);
                Ok(())
            }
            Expect::Response(algorithm) if only(&["CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"]) => {
                self.verify(config, algorithm, of("CHAP_N"), of("CHAP_R"))?;
                match (of("CHAP_I"), of("CHAP_C")) {
                    (None, None) => {}
                    (Some(id), Some(challenge)) => self.prove(config, algorithm, id, challenge, out)?,
                    _ => return Err(NotAuthentic),
                }
                self.expect = Expect::Nothing;
                Ok(())
            }
            _ => Err(NotAuthentic),
        }
    }

    fn verify(
        &self,
        config: &ChapConfig,
        algorithm: ChapAlgorithm,
        name: Option<&str>,
        response: Option<&str>,
    ) -> Result<(), NotAuthentic> {
        let name = name.ok_or(NotAuthentic)?;
        let response = response.and_then(|text| binary(text, algorithm.len())).ok_or(NotAuthentic)?;
        let expected = algorithm.response(self.id, &config.initiator.secret, &self.challenge[..algorithm.len()]);
        // Both are compared in any case, so that the time does not tell which one was wrong.
        let known = name.as_bytes().ct_eq(config.initiator.name.as_bytes());
        if bool::from(known & response.ct_eq(&expected)) { Ok(()) } else { Err(NotAuthentic) }
    }

    /// Answers the initiator's challenge, which comes only after it has proved itself.
    fn prove(
        &self,
        config: &ChapConfig,
        algorithm: ChapAlgorithm,
        id: &str,
        challenge: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), NotAuthentic> {
        let target = config.target.as_ref().ok_or(NotAuthentic)?;
        let id = number(id).and_then(|id| u8::try_from(id).ok()).ok_or(NotAuthentic)?;
        let challenge = binary(challenge, CHALLENGE_MAX).ok_or(NotAuthentic)?;
        // Our own challenge sent back wants us to do the initiator's work (RFC 7143 §9.2.1).
        if challenge == self.challenge[..algorithm.len()] || challenge == self.challenge {
            return Err(NotAuthentic);
        }
        put(out, "CHAP_N", &target.name);
        put(out, "CHAP_R", &hex(&algorithm.response(id, &target.secret, &challenge)));
        Ok(())
    }
}

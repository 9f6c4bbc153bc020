//! What outlives a loss of power: registrations and the persistent reservation as bytes (SPC-4 §5.13.5).
//!
//! ```text
//!   0   magic "RSV1"                      then each registrant:
//!   4   kind (0: no reservation)            key, 8 bytes
//!   5   reserved                            target port, 2 bytes
//!   6   registrants, 2 bytes                length of the initiator port's name, 2 bytes
//!   8   index of the holder, 2 bytes        the name
//!       (FFFFh: none, or all)             last: FNV-1a of all before, 8 bytes
//! ```

use super::{Held, INITIATOR_MAX, Kind, Nexus, REGISTRANTS_MAX, Registrant, Reservations};
use crate::util::fnv1a;

const MAGIC: [u8; 4] = *b"RSV1";
const NO_HOLDER: u16 = 0xffff;
const CHECKSUM_LEN: usize = 8;

const _: () = assert!(REGISTRANTS_MAX < NO_HOLDER as usize && INITIATOR_MAX <= u16::MAX as usize);

/// Why a snapshot is not taken: nothing of it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It is of another version, or no snapshot.
    #[error("not a snapshot of reservations, or of another version")]
    Version,
    /// Its checksum is wrong, or it is cut short.
    #[error("the snapshot is damaged")]
    Damaged,
    /// Its checksum is right, its contents are not.
    #[error("the snapshot holds what cannot be")]
    Impossible,
}

impl Reservations {
    /// The bytes to store for [`decode_snapshot`].
    pub fn snapshot(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let kind = self.held.as_ref().map_or(0, |held| number_of(held.kind));
        let holder = self.held.as_ref().and_then(|held| held.holder.as_ref());
        let index = holder.and_then(|nexus| self.registrants.iter().position(|other| other.nexus == *nexus));
        out.extend_from_slice(&[kind, 0]);
        out.extend_from_slice(&(self.registrants.len() as u16).to_be_bytes());
        out.extend_from_slice(&index.map_or(NO_HOLDER, |index| index as u16).to_be_bytes());
        for registrant in &self.registrants {
            out.extend_from_slice(&registrant.key.to_be_bytes());
            out.extend_from_slice(&registrant.nexus.port.to_be_bytes());
            out.extend_from_slice(&(registrant.nexus.initiator.len() as u16).to_be_bytes());
            out.extend_from_slice(&registrant.nexus.initiator);
        }
        out.extend_from_slice(&fnv1a(&out).to_be_bytes());
        out
    }
}

/// Reads what [`Reservations::snapshot`] wrote. PRGENERATION begins at 0 and no RESERVE is held, as after every loss of power.
///
/// # Errors
/// [`SnapshotError`], for whatever is not exactly such a snapshot.
pub fn decode_snapshot(bytes: &[u8]) -> Result<Reservations, SnapshotError> {
    if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
        return Err(SnapshotError::Version);
    }
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(SnapshotError::Damaged)?;
    if fnv1a(body) != u64::from_be_bytes(*checksum) {
        return Err(SnapshotError::Damaged);
    }
    decode_body(&body[MAGIC.len()..]).ok_or(SnapshotError::Impossible)
}

fn decode_body(body: &[u8]) -> Option<Reservations> {
    let (&[kind, 0, c0, c1, h0, h1], mut rest) = body.split_first_chunk()? else { return None };
    let count = usize::from(u16::from_be_bytes([c0, c1]));
    if count > REGISTRANTS_MAX {
        return None;
    }
    let mut registrants: Vec<Registrant> = Vec::with_capacity(count);
    for _ in 0..count {
        let (key, after) = rest.split_first_chunk()?;
        let (&[p0, p1, l0, l1], after) = after.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let (initiator, after) = after.split_at_checked(len)?;
        rest = after;
        let nexus = Nexus { initiator: initiator.to_vec(), port: u16::from_be_bytes([p0, p1]) };
        let key = u64::from_be_bytes(*key);
        if key == 0 || len > INITIATOR_MAX || registrants.iter().any(|other| other.nexus == nexus) {
            return None;
        }
        registrants.push(Registrant { nexus, key });
    }
    let index = u16::from_be_bytes([h0, h1]);
    let holder = registrants.get(usize::from(index)).map(|registrant| registrant.nexus.clone());
    let held = match kind {
        0 if index == NO_HOLDER => None,
        0 => return None,
        number => {
            let kind = Kind::ALL.into_iter().find(|&kind| number_of(kind) == number)?;
            let fits = if kind.all_hold() { index == NO_HOLDER && count != 0 } else { holder.is_some() };
            if !fits {
                return None;
            }
            Some(Held { kind, holder })
        }
    };
    rest.is_empty().then_some(Reservations { generation: 0, registrants, held, persistent: true, legacy: None })
}

const fn number_of(kind: Kind) -> u8 {
    match kind {
        Kind::WriteExclusive => 1,
        Kind::ExclusiveAccess => 2,
        Kind::WriteExclusiveRegistrants => 3,
        Kind::ExclusiveAccessRegistrants => 4,
        Kind::WriteExclusiveAll => 5,
        Kind::ExclusiveAccessAll => 6,
    }
}

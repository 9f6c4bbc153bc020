//! PERSISTENT RESERVE IN and OUT between command formats and the state machine (SPC-4 §6.15, §6.16).

use super::data::Put;
use super::reservation::{Kind, Move, Nexus, Outcome, Refusal, Register, Registrant, Reservations};
use super::spec::*;

const fn code_of(kind: Kind) -> PersistType {
    match kind {
        Kind::WriteExclusive => PersistType::WRITE_EXCLUSIVE,
        Kind::ExclusiveAccess => PersistType::EXCLUSIVE_ACCESS,
        Kind::WriteExclusiveRegistrants => PersistType::WRITE_EXCLUSIVE_REGISTRANTS,
        Kind::ExclusiveAccessRegistrants => PersistType::EXCLUSIVE_ACCESS_REGISTRANTS,
        Kind::WriteExclusiveAll => PersistType::WRITE_EXCLUSIVE_ALL,
        Kind::ExclusiveAccessAll => PersistType::EXCLUSIVE_ACCESS_ALL,
    }
}

/// The type that a code names.
pub(super) fn kind_of(code: PersistType) -> Option<Kind> {
    Kind::ALL.into_iter().find(|&kind| code_of(kind) == code)
}

const fn scope_and_type(kind: Kind) -> u8 {
    PERSIST_SCOPE_LU << 4 | code_of(kind).0
}

/// The data of PERSISTENT RESERVE IN.
pub(super) fn report(action: PersistIn, reservations: &Reservations) -> Result<Vec<u8>, Sense> {
    let mut out = Vec::new();
    if action == PersistIn::REPORT_CAPABILITIES {
        out.put_u16(8);
        // CRH, SIP_C, ATP_C, PTPL_C; TMV, PTPL_A.
        out.extend_from_slice(&[0x1d, 0x80 | u8::from(reservations.persistent())]);
        // All six types.
        out.extend_from_slice(&[0xea, 0x01, 0, 0]);
        return Ok(out);
    }
    out.put_u32(reservations.generation());
    out.put_u32(0);
    match action {
        PersistIn::READ_KEYS => {
            for registrant in reservations.registrants() {
                out.put_u64(registrant.key);
            }
        }
        PersistIn::READ_RESERVATION => {
            if let Some(held) = reservations.held() {
                out.put_u64(reservations.holder_key());
                out.put_zeros(5);
                out.push(scope_and_type(held.kind));
                out.put_zeros(2);
            }
        }
        PersistIn::READ_FULL_STATUS => {
            for Registrant { nexus, key } in reservations.registrants() {
                let held = reservations.held().filter(|_| reservations.is_holder(nexus));
                out.put_u64(*key);
                out.put_zeros(4);
                // R_HOLDER. ALL_TG_PT is zero: each port has its own registration.
                out.push(u8::from(held.is_some()));
                out.push(held.map_or(0, |held| scope_and_type(held.kind)));
                out.put_zeros(4);
                out.put_u16(nexus.port);
                out.put_u32(nexus.initiator.len() as u32);
                out.extend_from_slice(&nexus.initiator);
            }
        }
        _ => return Err(Sense::bit(1, 4)),
    }
    let len = (out.len() - 8) as u32;
    out[4..8].copy_from_slice(&len.to_be_bytes());
    Ok(out)
}

/// Why a PERSISTENT RESERVE OUT changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION.
    Check(Sense),
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Check(match refusal {
            Refusal::Conflict => return Self::Conflict,
            Refusal::InvalidRelease => Sense::illegal(Asc::INVALID_RELEASE),
            Refusal::InvalidKey => Sense::parameter(8),
            Refusal::NoKind => Sense::bit(2, 3),
            Refusal::NotReserved => Sense::bit(1, 4),
            Refusal::InvalidNexus => Sense::parameter(24),
            Refusal::AlreadyRegistered => Sense::parameter(20),
            Refusal::NoRoom => Sense::illegal(Asc::INSUFFICIENT_REGISTRATIONS),
        })
    }
}

/// Bytes of the parameter list before TransportIDs.
const LIST_LEN: usize = 24;

/// What a TransportID in a list may name.
pub(super) struct Known<'a> {
    /// Relative identifiers of the target ports.
    pub ports: &'a [u16],
    /// The initiator ports of a node that are logged in: for TransportIDs that name a node.
    pub of_node: &'a dyn Fn(&str) -> Vec<Vec<u8>>,
}

/// Carries PERSISTENT RESERVE OUT out.
pub(super) fn act(
    action: PersistOut,
    kind: Option<Kind>,
    list: &[u8],
    nexus: &Nexus,
    known: &Known<'_>,
    reservations: &mut Reservations,
) -> Result<Outcome, Failure> {
    let (Some(key), Some(new_key), Some(&flags)) = (take_u64(list, 0), take_u64(list, 8), list.get(20)) else {
        return Err(Sense::list_length().into());
    };
    if action == PersistOut::REGISTER_AND_MOVE {
        return move_to(list, key, new_key, nexus, known, reservations);
    }
    let (spec_i_pt, all_tg_pt, persistent) = (flags & 0x08 != 0, flags & 0x04 != 0, flags & 0x01 != 0);
    if spec_i_pt && action != PersistOut::REGISTER {
        return Err(Sense::parameter(20).into());
    }
    if !spec_i_pt && list.len() != LIST_LEN {
        return Err(Sense::list_length().into());
    }
    let type_of = || kind.ok_or(Failure::Check(Sense::bit(2, 3)));
    Ok(match action {
        PersistOut::REGISTER | PersistOut::REGISTER_AND_IGNORE => {
            let initiators = if spec_i_pt { Some(initiators(list, known)?) } else { None };
            let ask = Register {
                key: (action == PersistOut::REGISTER).then_some(key),
                new_key,
                ports: if all_tg_pt { known.ports } else { &[] },
                initiators: initiators.as_deref(),
                persistent,
            };
            reservations.register(nexus, ask)?
        }
        PersistOut::RESERVE => reservations.reserve(nexus, key, type_of()?)?,
        PersistOut::RELEASE => reservations.release(nexus, key, type_of()?)?,
        PersistOut::CLEAR => reservations.clear(nexus, key)?,
        PersistOut::PREEMPT => reservations.preempt(nexus, key, new_key, kind, false)?,
        PersistOut::PREEMPT_AND_ABORT => reservations.preempt(nexus, key, new_key, kind, true)?,
        _ => return Err(Sense::bit(1, 4).into()),
    })
}

/// The initiator ports of the additional parameter data of REGISTER (SPC-4 §6.16.3).
fn initiators(list: &[u8], known: &Known<'_>) -> Result<Vec<Vec<u8>>, Failure> {
    let Some(len) = take_u32(list, LIST_LEN) else { return Err(Sense::list_length().into()) };
    let mut at = LIST_LEN + 4;
    if u64::from(len) != (list.len() - at) as u64 {
        return Err(Sense::list_length().into());
    }
    let mut out = Vec::new();
    while at < list.len() {
        let Some((id, used)) = TransportId::decode(&list[at..]) else { return Err(Sense::parameter(at).into()) };
        match id.isid {
            Some(_) => out.push(id.encode()),
            None => {
                let ports = (known.of_node)(&id.name);
                if ports.is_empty() {
                    return Err(Sense::parameter(at).into());
                }
                out.extend(ports);
            }
        }
        at += used;
    }
    Ok(out)
}

/// REGISTER AND MOVE (SPC-4 §6.16.4).
fn move_to(
    list: &[u8],
    key: u64,
    new_key: u64,
    nexus: &Nexus,
    known: &Known<'_>,
    reservations: &mut Reservations,
) -> Result<Outcome, Failure> {
    let (Some(&flags), Some(port), Some(len)) = (list.get(17), take_u16(list, 18), take_u32(list, 20)) else {
        return Err(Sense::list_length().into());
    };
    let id = &list[LIST_LEN..];
    if len as usize != id.len() {
        return Err(Sense::list_length().into());
    }
    if !known.ports.contains(&port) {
        return Err(Sense::parameter(18).into());
    }
    // Only a port can hold a reservation, not a node.
    let initiator = match TransportId::decode(id) {
        Some((id, used)) if id.isid.is_some() && used == len as usize => id.encode(),
        _ => return Err(Sense::parameter(LIST_LEN).into()),
    };
    let ask = Move {
        key,
        new_key,
        to: &Nexus { initiator, port },
        unregister: flags & 0x02 != 0,
        persistent: flags & 0x01 != 0,
    };
    Ok(reservations.register_and_move(nexus, ask)?)
}

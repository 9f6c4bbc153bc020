//! Operations in flight: what the kernel may still touch, owned until the completion.

use std::net::SocketAddr;

use hugepages::Buf;
use zerocopy::IntoBytes;

use crate::sys::op::{OpToken, Owner};
use crate::sys::tx::TxBatch;
use crate::sys::ublk::RequestData;

/// What an operation owns while the kernel works on it.
#[derive(Debug)]
pub(super) enum Held {
    Nothing,
    /// A receive that picks a buffer of the ring when bytes arrive, at most so many.
    Picked(u32),
    Buf(Buf),
    /// A receive into the rest of a buffer, from this byte on.
    Filling(Buf, usize),
    Batch(Box<TxBatch>),
    /// An accept: the result is a descriptor.
    Accept,
    /// A connect: the address.
    Address(Box<[u8; 28]>),
    /// Data of a request that another operation fills or takes.
    Request(RequestData),
    /// A ublk command, and what the kernel copies to or from; a commit lets go of it before it ends.
    Ublk(Option<Buf>),
    /// A read of the doorbell's counter.
    Doorbell(Box<u64>),
    /// Never reached the ring: completes at the next reap, with this result.
    Answered(i32, Refusable),
}

/// What an operation that never reached the ring gives back.
#[derive(Debug)]
pub(super) enum Refusable {
    Nothing,
    Buf(Buf),
    Batch(Box<TxBatch>),
    Request(RequestData),
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    owner: Owner,
    held: Option<Held>,
}

/// Generations leave the highest bit of a token free: see [`bare`].
const GENERATIONS: u32 = u32::MAX >> 1;
const BARE: u64 = 1 << 63;

/// The token of an operation that owns nothing and never is cancelled, nor outlives its sink: it needs no entry, since it says
/// itself whose it is. Tags are below 2^32.
#[inline]
pub(super) fn bare(owner: Owner) -> OpToken {
    debug_assert!(owner.sink < 1 << 31 && owner.tag < 1 << 32);
    OpToken(BARE | u64::from(owner.sink) << 32 | owner.tag)
}

/// Whose operation it is, if its token says so.
#[inline]
pub(super) fn owner_of(token: OpToken) -> Option<Owner> {
    let owner = Owner { sink: (token.0 >> 32) as u32 & GENERATIONS, tag: token.0 & 0xFFFF_FFFF };
    (token.0 & BARE != 0).then_some(owner)
}

/// A slab of entries; a token is slot and generation, so a stale completion finds nothing.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl Table {
    /// Takes what the operation owns and returns the token that the kernel carries, and the entry's address-stable content.
    pub(super) fn insert(&mut self, owner: Owner, held: Held) -> (OpToken, &mut Held) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, owner, held: None });
            self.entries.len() as u32 - 1
        });
        let entry = &mut self.entries[slot as usize];
        entry.generation = entry.generation.wrapping_add(1) & GENERATIONS;
        entry.owner = owner;
        let token = OpToken(u64::from(entry.generation) << 32 | u64::from(slot));
        (token, entry.held.insert(held))
    }

    /// Ends an operation. `None`: nobody knows this token.
    pub(super) fn remove(&mut self, token: OpToken) -> Option<(Owner, Held)> {
        let (slot, generation) = (token.0 as u32, (token.0 >> 32) as u32);
        let entry = self.entries.get_mut(slot as usize)?;
        if entry.generation != generation {
            return None;
        }
        let held = entry.held.take()?;
        self.free.push(slot);
        Some((entry.owner, held))
    }

    /// What an operation in flight owns.
    pub(super) fn held(&mut self, token: OpToken) -> Option<&mut Held> {
        let entry = self.entries.get_mut(token.0 as u32 as usize)?;
        if entry.generation == (token.0 >> 32) as u32 { entry.held.as_mut() } else { None }
    }

    /// Whether there is an operation that ends when it is cancelled, or owns something. A ublk command that waits for a request
    /// is none: it ends with the device or the ring.
    pub(super) fn is_working(&self) -> bool {
        self.entries.iter().any(|entry| entry.held.as_ref().is_some_and(|held| !matches!(held, Held::Ublk(None))))
    }
}

/// The kernel's form of a socket address: sockaddr_in or sockaddr_in6, the family in host order, the rest in network
/// order, laid out in 28 bytes.
pub(super) fn sockaddr(to: SocketAddr) -> (Box<[u8; 28]>, libc::socklen_t) {
    let mut bytes = Box::new([0u8; 28]);
    bytes[2..4].copy_from_slice(&to.port().to_be_bytes());
    let len = match to {
        SocketAddr::V4(a) => {
            bytes[0..2].copy_from_slice((libc::AF_INET as u16).as_bytes());
            bytes[4..8].copy_from_slice(&a.ip().octets());
            16
        }
        SocketAddr::V6(a) => {
            bytes[0..2].copy_from_slice((libc::AF_INET6 as u16).as_bytes());
            bytes[4..8].copy_from_slice(&a.flowinfo().to_be_bytes());
            bytes[8..24].copy_from_slice(&a.ip().octets());
            bytes[24..28].copy_from_slice(a.scope_id().as_bytes());
            28
        }
    };
    (bytes, len)
}

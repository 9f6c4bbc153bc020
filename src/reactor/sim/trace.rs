//! The record of a simulation: a hash of all of it, and its end in words.

use std::collections::VecDeque;
use std::fmt;

/// Entries kept in words.
const TAIL: usize = 200;

#[derive(Clone, Copy)]
struct Entry {
    at: u64,
    what: &'static str,
    subject: usize,
    amount: i64,
}

/// See the module's head.
#[derive(Default)]
pub(super) struct Trace {
    hash: u64,
    length: u64,
    tail: VecDeque<Entry>,
}

impl Trace {
    fn mix(&mut self, word: u64) {
        // A step of the SplitMix64 finaliser: every bit of the past and of the word moves half of the hash.
        let mut x = (self.hash.rotate_left(23) ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.hash = x ^ (x >> 29);
    }

    pub(super) fn note(&mut self, at: u64, what: &'static str, subject: usize, amount: i64) {
        self.length += 1;
        self.mix(at);
        self.mix_bytes(what.as_bytes());
        self.mix(subject as u64);
        self.mix(amount as u64);
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(Entry { at, what, subject, amount });
    }

    /// A turn of a reactor: of the hash, but not of the words, which it would fill.
    pub(super) fn turn(&mut self, reactor: usize, kind: u64) {
        self.mix((reactor as u64) << 8 | kind);
    }

    /// Contents that were moved count too.
    pub(super) fn mix_bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash ^ self.length
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} events, hash {:016x}; the last {}:", self.length, self.hash(), self.tail.len())?;
        for Entry { at, what, subject, amount } in &self.tail {
            writeln!(f, "{:>6}.{:09} {what} {subject}: {amount}", at / 1_000_000_000, at % 1_000_000_000)?;
        }
        Ok(())
    }
}

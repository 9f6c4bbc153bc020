//! How fast secrets can be guessed: on each reactor one try a second from one address, by however many connections.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use crate::iscsi::AUTHENTICATION_DELAY_NS;

/// How long after its last try an address with a wrong one is remembered, in nanoseconds.
const FORGET_NS: u64 = 60_000_000_000;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 1024;

/// Addresses that have tried a wrong secret, each with the time from which on it may try the next.
#[derive(Default)]
pub struct Guesses(RefCell<BTreeMap<IpAddr, u64>>);

/// Who has one address of IPv6 has its whole network of 64 bits.
fn origin(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

impl Guesses {
    /// From when on a proof of an address is looked at: at once, if none of it was wrong lately. Who asks has that turn, and others come
    /// after it.
    pub fn turn(&self, from: IpAddr, now: u64) -> u64 {
        match self.0.borrow_mut().get_mut(&origin(from)) {
            Some(next) if *next + FORGET_NS > now => {
                let turn = now.max(*next);
                *next = turn + AUTHENTICATION_DELAY_NS;
                turn
            }
            _ => now,
        }
    }

    /// A proof of this address was wrong.
    pub fn wrong(&self, from: IpAddr, now: u64) {
        let mut all = self.0.borrow_mut();
        let next = all.entry(origin(from)).or_default();
        *next = (*next).max(now + AUTHENTICATION_DELAY_NS);
        if all.len() > ADDRESSES_MAX {
            all.retain(|_, next| *next + FORGET_NS > now);
        }
        // The one that has been quiet for the longest time.
        if all.len() > ADDRESSES_MAX
            && let Some((quiet, _)) = all.iter().min_by_key(|(_, next)| **next)
        {
            let quiet = *quiet;
            all.remove(&quiet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = AUTHENTICATION_DELAY_NS;
    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn after_a_wrong_guess_turns_are_a_second_apart() {
        let guesses = Guesses::default();
        assert_eq!([5, 5, 6].map(|now| guesses.turn(ONE, now)), [5, 5, 6], "nothing was wrong");
        guesses.wrong(ONE, 10);
        let turns: Vec<u64> = (0..4).map(|_| guesses.turn(ONE, 20)).collect();
        assert_eq!(turns, [1, 2, 3, 4].map(|n| 10 + n * SECOND));
        assert_eq!(guesses.turn(OTHER, 20), 20);
        assert_eq!(guesses.turn(ONE, 200 * SECOND), 200 * SECOND, "it is forgotten");
    }

    #[test]
    fn a_network_of_ipv6_is_one_and_a_mapped_address_is_itself() {
        let guesses = Guesses::default();
        guesses.wrong("2001:db8::1".parse().unwrap(), 0);
        assert_eq!(guesses.turn("2001:db8::ffff:2".parse().unwrap(), 0), SECOND);
        assert_eq!(guesses.turn("2001:db8:0:1::1".parse().unwrap(), 0), 0);
        guesses.wrong(ONE, 0);
        assert_eq!(guesses.turn("::ffff:192.0.2.1".parse().unwrap(), 0), SECOND);
    }

    #[test]
    fn there_is_a_limit_to_what_is_remembered() {
        let guesses = Guesses::default();
        for number in 0..3 * ADDRESSES_MAX as u32 {
            guesses.wrong(IpAddr::V4(number.into()), u64::from(number));
        }
        assert_eq!(guesses.0.borrow().len(), ADDRESSES_MAX);
        let last = IpAddr::V4((3 * ADDRESSES_MAX as u32 - 1).into());
        assert!(guesses.turn(last, 0) > 0, "the latest are remembered");
    }
}

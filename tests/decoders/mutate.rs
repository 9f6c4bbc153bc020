//! Inputs from a seed: right ones with a few changes, and plain noise.

use std::fmt::Write as _;

/// Where the numbers begin, unless `DECODER_SEED` says otherwise.
const SEED: u64 = 0x5eed_2026;
/// Inputs for each decoder: all of them only where the code is optimised.
const INPUTS: u64 = if cfg!(debug_assertions) { 100_000 } else { 10_000_000 };
/// Bytes of noise at most.
const NOISE: usize = 200;
/// Values at which lengths and counters go wrong.
const EDGES: [u32; 12] = [0, 1, 3, 4, 71, 72, 4096, 8192, 8193, 0x7fff_ffff, 0xffff_fffc, 0xffff_ffff];

/// SplitMix64.
pub struct Random(u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// Prints the input if a check panics on it.
struct Guard<'a> {
    name: &'a str,
    number: u64,
    input: &'a [u8],
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut hex = String::new();
            for byte in self.input {
                let _ = write!(hex, "{byte:02x}");
            }
            eprintln!("{}: input {}: {hex}", self.name, self.number);
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// Runs a check on as many inputs as there are to be. The first `head` bytes of an input stay in their place. The check says whether
/// it accepted its input: right ones always, and changed ones now and then, or the changes would only test the first refusal.
pub fn run(name: &str, right: &[Vec<u8>], head: usize, check: impl FnMut(&[u8]) -> bool) {
    run_counted(name, right, head, 1, check);
}

/// As [`run`] for inputs that are `each` inputs in a row.
pub fn run_counted(name: &str, right: &[Vec<u8>], head: usize, each: u64, mut check: impl FnMut(&[u8]) -> bool) {
    let seed = number("DECODER_SEED", SEED);
    let mut random = Random(seed);
    for input in right {
        let _guard = Guard { name, number: 0, input };
        assert!(check(input), "a right input is refused");
    }
    let mut input = Vec::new();
    let inputs = number("DECODER_INPUTS", INPUTS) / each;
    let mut accepted = 0;
    for count in 1..=inputs {
        input.clear();
        if random.below(8) == 0 {
            let len = random.below(NOISE + 1);
            while input.len() < len {
                input.extend_from_slice(&random.next().to_le_bytes());
            }
            input.truncate(len);
        } else {
            input.extend_from_slice(&right[random.below(right.len())]);
            for _ in 0..random.below(5) {
                change(&mut input, head, right, &mut random);
            }
            for byte in 1..head.min(input.len()) {
                input[byte] = random.next() as u8;
            }
        }
        let _guard = Guard { name, number: count, input: &input };
        accepted += u64::from(check(&input));
    }
    println!("{name}: {accepted} of {inputs} accepted, seed {seed}");
    // A fifth of those that are not noise is not changed at all.
    assert!(accepted > inputs / 5 && accepted < inputs, "{accepted} of {inputs} accepted");
}

/// Runs a check on inputs that `make` makes, each of which takes as long as `each` of others. It says what it likes.
pub fn run_made(
    name: &str,
    each: u64,
    mut make: impl FnMut(&mut Random) -> Vec<u8>,
    mut check: impl FnMut(&[u8]) -> bool,
) {
    let seed = number("DECODER_SEED", SEED);
    let mut random = Random(seed);
    let inputs = number("DECODER_INPUTS", INPUTS) / each;
    let mut accepted = 0;
    for count in 1..=inputs {
        let input = make(&mut random);
        let _guard = Guard { name, number: count, input: &input };
        accepted += u64::from(check(&input));
    }
    println!("{name}: {accepted} of {inputs} accepted, seed {seed}");
    assert!(accepted > 0 && accepted < inputs, "{accepted} of {inputs} accepted");
}

/// Changes one thing.
fn change(input: &mut Vec<u8>, head: usize, right: &[Vec<u8>], random: &mut Random) {
    if input.len() <= head {
        return;
    }
    // Half of the hits go where headers are dense.
    let dense = (input.len() - head).min(220);
    let at = head + if random.below(2) == 0 { random.below(dense) } else { random.below(input.len() - head) };
    match random.below(8) {
        0 => input[at] = random.next() as u8,
        1 => input[at] ^= 1 << random.below(8),
        2 => drop(input.remove(at)),
        3 => input.insert(at, random.next() as u8),
        4 => input.truncate(at),
        5 | 6 => {
            let edge = EDGES[random.below(EDGES.len())].wrapping_add(random.below(3) as u32).wrapping_sub(1);
            for (byte, value) in input[at..].iter_mut().zip(edge.to_le_bytes()).take(1 << random.below(3)) {
                *byte = value;
            }
        }
        _ => {
            // The rest of another one.
            let other = &right[random.below(right.len())];
            let from = head.min(other.len()) + random.below(other.len() - head.min(other.len()) + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

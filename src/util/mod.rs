//! What is nobody's: small helpers that depend on nothing else in the crate.

mod bad;
mod digest;
mod hash;
mod losses;
mod open_enum;
#[cfg(test)]
mod random;
mod zone;

pub use bad::Bad;
pub(crate) use bad::bad;
pub use digest::{DataDigest, crc32c};
pub(crate) use hash::fnv1a;
pub use losses::Losses;
pub(crate) use open_enum::open_enum;
#[cfg(test)]
pub(crate) use random::Random;
pub use zone::ZoneState;

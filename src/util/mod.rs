//! What is nobody's: small helpers that depend on nothing else in the crate.

mod open_enum;

pub(crate) use open_enum::open_enum;

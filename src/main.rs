//! reactor.
fn main() {}

//! State that several threads may work at: each queue on its own reactor.

use std::sync::{MutexGuard, PoisonError};

/// A lock that is held for a step at most. A panic of a test leaves what it guards as it is.
#[expect(
    clippy::disallowed_types,
    reason = "a device of tests, whose queues are worked on by the reactors they belong to"
)]
#[derive(Debug, Default)]
pub(super) struct Lock<T>(std::sync::Mutex<T>);

impl<T> Lock<T> {
    #[expect(clippy::disallowed_types, reason = "see the type")]
    pub(super) fn new(value: T) -> Lock<T> {
        Lock(std::sync::Mutex::new(value))
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

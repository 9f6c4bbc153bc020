//! What crosses cores, replaced by the model checker's own under `--cfg loom`: it then explores every order of these and
//! reports races and chunks that are never freed.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc,
    atomic::{AtomicIsize, AtomicU32, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicIsize, AtomicU32, Ordering, fence},
};

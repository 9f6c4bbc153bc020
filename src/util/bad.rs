//! Why a text of a person's is refused.

/// What is wrong with a value, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {help}")]
pub struct Bad {
    /// The complaint, naming the value.
    pub message: String,
    /// The remedy.
    pub help: String,
}

/// Shorthand for a refused value.
pub(crate) fn bad<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, Bad> {
    Err(Bad { message: message.into(), help: help.into() })
}

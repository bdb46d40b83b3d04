//! Outcome of a callback, from which a dialect builds its reply.

use super::Answer;

/// Outcome of a callback at the time of its answer. A dialect turns it into a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done. `instance_id` is set if there is an instance.
    Applied {
        /// The id by which the marketplace knows the instance from now on.
        instance_id: Option<String>,
        /// The result of the hook.
        answer: Box<Answer>,
    },
    /// The hook has not finished; the marketplace must call again.
    NotYet,
    /// The hook refused the request, or the lifecycle forbids it.
    Refused {
        /// Stable code of the reason, a word that never changes.
        code: &'static str,
        /// The reason, in words that the marketplace's staff may read.
        reason: String,
    },
    /// The callback is held for an operator; the marketplace must call again.
    Held {
        /// The reason, in words that the marketplace's staff may read.
        reason: String,
    },
    /// The store could not store the callback; the marketplace must call again.
    Unavailable,
}

impl Outcome {
    /// Creates an [`Outcome::Applied`] with an empty answer.
    pub fn done(instance_id: Option<String>) -> Outcome {
        Outcome::Applied { instance_id, answer: Box::default() }
    }

    /// Returns true if this reports success to the marketplace.
    pub const fn is_success(&self) -> bool {
        matches!(self, Outcome::Applied { .. })
    }

    /// All words that [`Outcome::as_str`] can return.
    pub const WORDS: [&'static str; 5] = ["applied", "not-yet", "refused", "held", "unavailable"];

    /// Word for the outcome in logs and `--json`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Outcome::Applied { .. } => "applied",
            Outcome::NotYet => "not-yet",
            Outcome::Refused { .. } => "refused",
            Outcome::Held { .. } => "held",
            Outcome::Unavailable => "unavailable",
        }
    }
}

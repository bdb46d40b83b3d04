//! Result of an attempt, with the texts of the hook made fit to be stored, logged and shown.

use std::time::Duration;

use crate::callback::Answer;
use crate::text::{is_plain, without_user_info};
use crate::{HookError, HookErrorKind, limits};

/// Result of an attempt. Texts are at most [`limits::REASON_MAX_BYTES`] long and contain no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptResult {
    /// The work is done.
    Done(Answer),
    /// The work failed, and may succeed later.
    Retry {
        /// The error text.
        error: String,
        /// The delay that the hook asked for, clamped to [`limits::RETRY_AFTER_MAX_S`].
        after: Option<Duration>,
    },
    /// Retried as above. An operator must look as well, because the hook is configured wrongly.
    Misconfigured {
        /// The error text.
        error: String,
        /// The delay that the hook asked for, clamped to [`limits::RETRY_AFTER_MAX_S`].
        after: Option<Duration>,
    },
    /// The work will not be done.
    Refused {
        /// The reason, in words that the marketplace's staff may read.
        reason: String,
    },
    /// The hook does not know the action.
    Unsupported {
        /// The reason, in words that the marketplace's staff may read.
        reason: String,
    },
    /// The work is accepted, and a person completes it later.
    Pending {
        /// The event that the work waits for.
        note: String,
    },
}

impl AttemptResult {
    /// A failure that may pass, told by the runner itself.
    pub fn retry(error: String) -> AttemptResult {
        AttemptResult::Retry { error: bounded(&error), after: None }
    }
}

impl From<Result<Answer, HookError>> for AttemptResult {
    fn from(result: Result<Answer, HookError>) -> AttemptResult {
        let error = match result {
            Ok(answer) => return AttemptResult::Done(answer),
            Err(error) => error,
        };
        // Every text of a hook is stored, logged and shown, so bound and clean all of them here.
        let text = bounded(error.message());
        match error.kind() {
            HookErrorKind::Retry { after } => AttemptResult::Retry { error: text, after: clamped(after) },
            HookErrorKind::Misconfigured { after } => {
                AttemptResult::Misconfigured { error: text, after: clamped(after) }
            }
            HookErrorKind::Refuse => AttemptResult::Refused { reason: text },
            HookErrorKind::Unsupported => AttemptResult::Unsupported { reason: text },
            HookErrorKind::Pending => AttemptResult::Pending { note: text },
        }
    }
}

fn clamped(after: Option<Duration>) -> Option<Duration> {
    after.map(|after| after.min(Duration::from_secs(limits::RETRY_AFTER_MAX_S)))
}

/// Returns a text that may be stored, logged and shown. Control characters become spaces, and a text that was
/// cut ends with `…`.
fn bounded(text: &str) -> String {
    const MORE: char = '…';
    // An error often quotes a URL, for example a connection string with a password.
    let text = without_user_info(text);
    let mut clean: String = text.trim().chars().map(|c| if is_plain(c) { c } else { ' ' }).collect();
    if clean.len() <= limits::REASON_MAX_BYTES {
        return clean;
    }
    // Cut at a character, and leave room for the `…`.
    let mut end = limits::REASON_MAX_BYTES - MORE.len_utf8();
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    clean.truncate(end);
    clean.push(MORE);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_at_a_character_and_cleaned() {
        let long = bounded(&"é\n".repeat(limits::REASON_MAX_BYTES));
        assert!(long.len() <= limits::REASON_MAX_BYTES, "{}", long.len());
        assert!(long.ends_with('…'));
        assert!(!long.contains('\n'));
        assert_eq!(bounded(" short\u{1b}[2J "), "short [2J");
    }
}

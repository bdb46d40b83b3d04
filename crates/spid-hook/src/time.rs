//! Time as an argument.
//!
//! No module above this one reads the system's clock. It asks the [`Clock`] it was given, so that a test, the
//! simulation and a replay control the time. `clippy.toml` bans the direct calls.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::fmt::temporal::Pieces;
use jiff::{SignedDuration, Timestamp};

/// Source of the time.
///
/// ```
/// use spid_hook::time::Clock;
/// let clock = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
/// clock.advance(jiff::SignedDuration::from_hours(1));
/// assert_eq!(clock.now().to_string(), "2026-01-01T01:00:00Z");
/// ```
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The system's clock.
    #[default]
    System,
    /// A clock that stands still until it is moved; clones share it.
    Manual(Arc<Mutex<Timestamp>>),
    /// A clock that the caller provides.
    Given(Given),
}

/// Clock that the caller provides, for example the clock of a simulation that follows its runtime's simulated time.
#[derive(Clone)]
pub struct Given(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Given")
    }
}

impl Clock {
    /// Creates a clock that stands at `start` until it is moved.
    pub fn manual(start: Timestamp) -> Clock {
        Clock::Manual(Arc::new(Mutex::new(start)))
    }

    /// Creates a clock that returns the value of `now`.
    pub fn given(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Clock {
        Clock::Given(Given(Arc::new(now)))
    }

    /// Returns the present instant, to the millisecond, so that a stored instant reads back equal.
    pub fn now(&self) -> Timestamp {
        let now = match self {
            #[expect(clippy::disallowed_methods, reason = "this is the one place the system's clock is read")]
            Clock::System => Timestamp::now(),
            Clock::Manual(at) => *at.lock().unwrap_or_else(PoisonError::into_inner),
            Clock::Given(Given(now)) => now(),
        };
        // The store keeps milliseconds.
        from_millis(now.as_millisecond())
    }

    /// Moves a manual clock, forwards or back. Any other clock stays as it is.
    pub fn advance(&self, by: SignedDuration) {
        if let Clock::Manual(at) = self {
            let mut at = at.lock().unwrap_or_else(PoisonError::into_inner);
            *at = at.saturating_add(by).unwrap_or(*at);
        }
    }
}

/// Returns the last instant that can be stored. It means "forever".
pub fn last_instant() -> Timestamp {
    from_millis(Timestamp::MAX.as_millisecond())
}

/// Reads an instant of RFC 3339, with its offset. "Forever" is commonly written 9999-12-31. That is one day
/// after the last instant that can be represented, and is read as that last instant.
pub fn read_rfc3339(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| {
        let pieces = Pieces::parse(text).ok()?;
        let is_whole = pieces.time().is_some() && pieces.offset().is_some();
        (is_whole && pieces.date().year() == 9999).then(last_instant)
    })
}

/// Returns the instant `millis` after the epoch, clamped to the range that can be represented.
pub fn from_millis(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// Returns `at` moved by `millis`, clamped to the range that can be represented.
pub fn plus_millis(at: Timestamp, millis: i64) -> Timestamp {
    from_millis(at.as_millisecond().saturating_add(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_moved() {
        let clock = Clock::manual(from_millis(5));
        let same = clock.clone();
        assert_eq!(clock.now(), from_millis(5));
        same.advance(SignedDuration::from_millis(-3));
        assert_eq!(clock.now(), from_millis(2));
    }

    #[test]
    fn instants_are_clamped_not_wrapped() {
        assert_eq!(from_millis(i64::MAX), Timestamp::MAX);
        assert_eq!(plus_millis(from_millis(1), i64::MAX), Timestamp::MAX);
    }

    #[test]
    fn for_ever_is_an_instant_in_every_spelling() {
        for text in [
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59.999Z",
            "9999-12-31t23:59:59z",
            "9999-12-31T23:59:59+08:00",
            "9999-12-31T00:00:00-12:00",
            "9999-12-30T23:00:00Z",
        ] {
            let at = read_rfc3339(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(at, last_instant(), "{text}");
            assert_eq!(from_millis(at.as_millisecond()), at, "it reads back as it was stored");
        }
        for text in
            ["9999-12-31", "9999-12-31T23:59:59", "9999-13-31T23:59:59Z", "10000-01-01T00:00:00Z", "", "x"]
        {
            assert_eq!(read_rfc3339(text), None, "{text}");
        }
        assert!(read_rfc3339("9999-12-29T00:00:00Z").unwrap() < last_instant());
    }
}

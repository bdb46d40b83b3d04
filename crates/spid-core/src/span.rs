//! Time spans as text: the same in configurations, in fixtures and on the command line.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, SpanRelativeTo};

/// Time span with a text form: `200ms`, `3s`, `10m`, `1d 12h`. A day has 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Error: the text is no time span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time span looks like 200ms, 5s, 10m, 24h or 30d")]
pub struct BadSpan;

impl Span {
    /// Creates a time span from milliseconds.
    pub const fn from_millis(ms: u64) -> Span {
        Span(Duration::from_millis(ms))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            ms if ms > 0 && ms.is_multiple_of(1_000) => write!(f, "{}s", ms / 1_000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

impl FromStr for Span {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Span, BadSpan> {
        let signed = match text.parse::<SignedDuration>() {
            Ok(signed) => signed,
            // jiff's `SignedDuration` knows no days, so they are parsed as a `Span`.
            Err(_) => {
                let span = text.parse::<jiff::Span>().map_err(|_| BadSpan)?;
                span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| BadSpan)?
            }
        };
        // A negative span fails here.
        Duration::try_from(signed).map(Span).map_err(|_| BadSpan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_span_can_be_parsed() {
        for (ms, text) in [(0, "0ms"), (200, "200ms"), (5_000, "5s"), (90_000, "90s"), (1_500, "1500ms")] {
            let span = Span::from_millis(ms);
            assert_eq!(span.to_string(), text);
            assert_eq!(text.parse::<Span>(), Ok(span));
        }
    }

    #[test]
    fn span_has_a_unit_and_is_not_negative() {
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.0.as_secs()).ok();
        for (text, expected) in
            [("3s", 3), ("10m", 600), ("2h", 7_200), ("30d", 30 * 86_400), ("1d 12h", 36 * 3_600), ("0s", 0)]
        {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for wrong in ["", "3", "s", "-3s", "three", "1month", "9223372036854775807d"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}

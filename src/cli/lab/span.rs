//! Duration on the command line, written as in fixtures and configurations: `200ms`, `5s`, `10m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::lab::scenario;

/// Duration with a text form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    pub(crate) const fn from_millis(ms: u64) -> Span {
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
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Span, &'static str> {
        scenario::span(text).map(Span).ok_or("a time looks like 200ms, 5s or 10m (ms s m h d)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_can_be_given() {
        for (ms, text) in [(0, "0ms"), (200, "200ms"), (5_000, "5s"), (90_000, "90s"), (1_500, "1500ms")] {
            let span = Span::from_millis(ms);
            assert_eq!(span.to_string(), text);
            assert_eq!(text.parse::<Span>(), Ok(span));
        }
        assert_eq!("10m".parse::<Span>(), Ok(Span::from_millis(600_000)));
        assert!("5".parse::<Span>().is_err() && "".parse::<Span>().is_err());
    }
}

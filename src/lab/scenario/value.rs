//! Values in a fixture, in the place of a marketplace's values: text with `${names}` in it, a time relative to now, or
//! an id that was never used before.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use spid_core::span::Span;
use spid_hook::id::Id;
use spid_hook::time::{Clock, last_instant, plus_millis, read_rfc3339};

/// Values of the names in a scenario, as far as the run has come.
pub(super) type Variables = BTreeMap<String, String>;

/// Text in which `${name}` is replaced by a variable or a captured value. `$${` is a literal `${`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Name(String),
}

impl Template {
    /// Creates literal text, in which no `${}` is replaced.
    pub(super) fn literal(text: &str) -> Template {
        Template(vec![Piece::Text(text.to_owned())])
    }

    /// Parses a text.
    ///
    /// # Errors
    /// A sentence, if a `${` is not closed or has no name in it.
    pub(super) fn parse(text: &str) -> Result<Template, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            // `$${` is a literal `${`: drop one `$` and go on behind it.
            if let Some(before) = before.strip_suffix('$') {
                pieces.push(Piece::Text(format!("{before}${{")));
                rest = after;
                continue;
            }
            let (name, behind) =
                after.split_once('}').ok_or("a `${` is not closed; a literal one is written `$${`")?;
            if !is_name(name) {
                return Err(format!("`${{{name}}}` is not a valid name; use letters, digits, `-` and `_`"));
            }
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Name(name.to_owned()));
            rest = behind;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Template(pieces))
    }

    /// Returns the names that the text needs.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Name(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// Returns the text with all names replaced by their values.
    pub(super) fn fill(&self, known: &Variables) -> String {
        let mut filled = String::new();
        for piece in &self.0 {
            filled.push_str(match piece {
                Piece::Text(text) => text,
                // The reader of the file refuses a name without a value, so no name is missing here.
                Piece::Name(name) => known.get(name).map_or("", String::as_str),
            });
        }
        filled
    }
}

/// Returns true if the text is a valid name between `${` and `}`.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Value of a variable or a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// `"text with ${names}"`.
    Text(Template),
    /// `{ unique = "prefix" }`: the prefix and an id that sorts by time.
    Unique(String),
    /// `{ time = "now + 30d" }`.
    Moment(Moment),
}

impl Value {
    /// Returns the value as it is sent.
    ///
    /// # Errors
    /// If the system has no randomness for a unique id.
    pub(super) fn resolve(
        &self,
        known: &Variables,
        clock: &Clock,
        zone: &TimeZone,
    ) -> Result<String, getrandom::Error> {
        Ok(match self {
            Value::Text(template) => template.fill(known),
            Value::Unique(prefix) => format!("{prefix}-{}", Id::new(clock.now())?),
            Value::Moment(moment) => moment.write(clock.now(), zone),
        })
    }
}

/// A time relative to now, and its text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) offset_ms: i64,
    pub(super) format: Format,
}

/// Text formats of a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Format {
    /// `yyyy-MM-dd HH:mm:ss` in the scenario's zone, as the marketplaces write times.
    #[default]
    Civil,
    /// RFC 3339, in UTC.
    Rfc3339,
}

const CIVIL: &str = "%Y-%m-%d %H:%M:%S";

impl Moment {
    fn write(&self, now: Timestamp, zone: &TimeZone) -> String {
        let at = plus_millis(now, self.offset_ms);
        match self.format {
            Format::Civil => at.to_zoned(zone.clone()).strftime(CIVIL).to_string(),
            Format::Rfc3339 => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }
    }
}

/// Parses `now`, `now + 30d`, `now - 10m` as the distance from now, in milliseconds.
pub(super) fn read_offset(text: &str) -> Option<i64> {
    let rest = text.trim().strip_prefix("now")?.trim_start();
    match rest.split_at_checked(1) {
        None => Some(0),
        Some(("+", span)) => read_millis(span),
        Some(("-", span)) => read_millis(span).map(|ms| -ms),
        Some(_) => None,
    }
}

fn read_millis(text: &str) -> Option<i64> {
    let span = text.trim_start().parse::<Span>().ok()?;
    i64::try_from(span.0.as_millis()).ok()
}

/// Parses a time in either format of [`Moment`].
pub(super) fn read_instant(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    if let Some(at) = read_rfc3339(text) {
        return Some(at);
    }
    let civil = DateTime::strptime(CIVIL, text).ok()?;
    // A civil time at the end of the year 9999 may lie outside the range of instants: it means "forever".
    zone.to_timestamp(civil).ok().or_else(|| (civil.year() == 9999).then(last_instant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Variables {
        Variables::from([("order".to_owned(), "o-1".to_owned())])
    }

    #[test]
    fn names_are_filled_in_and_a_dollar_is_a_dollar() {
        for (text, filled) in [
            ("", ""),
            ("plain", "plain"),
            ("${order}", "o-1"),
            ("a ${order} b ${order}", "a o-1 b o-1"),
            ("$5 and $order", "$5 and $order"),
            ("$${order}", "${order}"),
            ("中${order}文", "中o-1文"),
        ] {
            assert_eq!(Template::parse(text).unwrap().fill(&known()), filled, "{text}");
        }
        assert_eq!(Template::literal("${order}").fill(&known()), "${order}");
        assert_eq!(Template::parse("${a} ${b-1}").unwrap().names().collect::<Vec<_>>(), ["a", "b-1"]);
        for broken in ["${", "${a", "${}", "${a b}", "x ${a${b}}"] {
            assert!(Template::parse(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn times_are_relative_to_the_clock_that_was_given() {
        let clock = Clock::manual("2026-01-01T00:00:00.250Z".parse().unwrap());
        let zone = TimeZone::get("Asia/Shanghai").unwrap();
        let written = |offset: &str, format| {
            let moment = Moment { offset_ms: read_offset(offset).unwrap(), format };
            Value::Moment(moment).resolve(&known(), &clock, &zone).unwrap()
        };
        assert_eq!(written("now", Format::Civil), "2026-01-01 08:00:00");
        assert_eq!(written("now + 30d", Format::Civil), "2026-01-31 08:00:00");
        assert_eq!(written("now-10m", Format::Civil), "2026-01-01 07:50:00");
        assert_eq!(written("now + 2h", Format::Rfc3339), "2026-01-01T02:00:00Z");
        for format in [Format::Civil, Format::Rfc3339] {
            let back = read_instant(&written("now + 1d", format), &zone).unwrap();
            assert_eq!(back.to_string(), "2026-01-02T00:00:00Z");
        }
        for broken in ["", "today", "now 5m", "now + ", "now + 5", "now + 5 months", "now + -5m", "nowhere"] {
            assert_eq!(read_offset(broken), None, "{broken}");
        }
    }

    #[test]
    fn unique_values_are_unique() {
        let clock = Clock::default();
        let make = || Value::Unique("order".to_owned()).resolve(&known(), &clock, &TimeZone::UTC).unwrap();
        let (one, other) = (make(), make());
        assert!(one.starts_with("order-") && one != other);
    }
}

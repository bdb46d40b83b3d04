//! Dates in the marketplaces' forms.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use spid_hook::time::{last_instant, plus_millis};

/// Reads exactly `yyyy-MM-dd HH:mm:ss` in `zone`.
/// A clock change can make the text ambiguous: then the earlier of the two instants is used. A text within the
/// gap of a clock change is moved behind the gap.
pub(super) fn read_civil(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    const SHAPE: &str = "0000-00-00 00:00:00";
    // Check the shape first, because the parser also accepts other forms of a date.
    let fits = text.len() == SHAPE.len()
        && text.bytes().zip(SHAPE.bytes()).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == other,
        });
    let civil: jiff::civil::DateTime = text.parse().ok().filter(|_| fits)?;
    // "For ever" is commonly written 9999-12-31, which is one day after the last instant we can represent.
    zone.to_timestamp(civil).ok().or_else(|| (civil.year() == 9999).then(last_instant))
}

/// Reads exactly `yyyyMMddHHmmss`, with or without milliseconds, in UTC. The vendor documents 14 digits and also
/// sends 17.
pub(super) fn read_compact(text: &str, _zone: &TimeZone) -> Option<Timestamp> {
    if !matches!(text.len(), 14 | 17) || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (seconds, millis) = text.split_at_checked(14)?;
    let civil = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", seconds).ok()?;
    // As everywhere, "for ever" becomes the last instant we can represent.
    let Ok(at) = TimeZone::UTC.to_timestamp(civil) else {
        return (civil.year() == 9999).then(last_instant);
    };
    Some(plus_millis(at, if millis.is_empty() { 0 } else { millis.parse().ok()? }))
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;
    use spid_hook::time::from_millis;

    fn shanghai() -> TimeZone {
        Options::default().timezone
    }

    #[test]
    fn dates_are_read_in_the_zone_or_not_at_all() {
        let at = read_civil("2030-01-01 00:00:00", &shanghai()).unwrap();
        assert_eq!(at.to_string(), "2029-12-31T16:00:00Z");
        let at = read_civil("2030-01-01 00:00:00", &TimeZone::UTC).unwrap();
        assert_eq!(at.to_string(), "2030-01-01T00:00:00Z");
        for unreadable in [
            "",
            "2030-01-01",
            "2030-1-1 00:00:00",
            "2030-02-30 00:00:00",
            "2030-01-01T00:00:00",
            "2030-01-01 00:00:00Z",
            "2030-01-01 24:00:00",
            " 2030-01-01 00:00:00",
            "2030/01/01 00:00:00",
            "9999-99-99 99:99:99",
            "二〇三〇年一月",
        ] {
            assert_eq!(read_civil(unreadable, &shanghai()), None, "{unreadable}");
        }
    }

    #[test]
    fn for_ever_is_a_date() {
        for zone in [shanghai(), TimeZone::UTC] {
            let at = read_civil("9999-12-31 23:59:59", &zone).unwrap();
            assert!(at.to_string().starts_with("9999-12-30"), "{at}");
            assert_eq!(from_millis(at.as_millisecond()), at, "it reads back as it was stored");
            assert!(read_civil("9999-12-29 00:00:00", &zone).unwrap() < at);
        }
    }
}

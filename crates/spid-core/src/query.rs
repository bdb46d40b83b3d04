//! Query strings and forms, read so strictly that two programs cannot read them differently.
//!
//! A query-string token signs *decoded* parameters. A lenient decoder sometimes picks one of two readings: the
//! first of two equal names, or a replacement character for a broken byte. Then an attacker could choose the
//! reading that we see, while the signature stays valid. So every input with two readings is denied here, before
//! the signature check, and only then decoded.
//!
//! Three things are accepted, because every decoder reads them alike:
//!
//! * an empty pair (`a=1&&b=2`) is ignored;
//! * a pair without `=` has an empty value;
//! * both `+` and `%20` are a space.
//!
//! Strictness does not help against an `&` *inside* a value: see [`ambiguous`].

mod tokens;

use std::borrow::Cow;
use std::fmt;

pub use tokens::{TOKEN_PLACEHOLDER, masked, names_a_token, without_tokens};

use crate::limits::{PARAMETER_NAME_MAX_BYTES, PARAMETER_VALUE_MAX_BYTES, PARAMETERS_MAX_COUNT};

/// A decoded name and its decoded value.
pub type Pair = (String, String);

spid_hook::words! {
    /// Rule for query strings and forms.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum Rule {
        /// `%` without two hex digits behind it.
        BadEncoding = "bad-encoding",
        /// Decoded bytes that are not UTF-8.
        NotUtf8 = "not-utf8",
        /// NUL byte. Many programs ignore the text behind it.
        Nul = "nul",
        /// Name that is empty, or contains `&` or `=`.
        BadName = "bad-name",
        /// Name that is given twice, in one part or in both.
        DuplicateParameter = "duplicate-parameter",
        /// More parameters than [`PARAMETERS_MAX_COUNT`].
        TooManyParameters = "too-many-parameters",
        /// Name longer than [`PARAMETER_NAME_MAX_BYTES`].
        NameTooLong = "name-too-long",
        /// Value longer than [`PARAMETER_VALUE_MAX_BYTES`].
        ValueTooLong = "value-too-long",
    }
}

impl Rule {
    fn sentence(self) -> Cow<'static, str> {
        match self {
            Rule::BadEncoding => "`%` must be followed by two hex digits".into(),
            Rule::NotUtf8 => "the decoded text is not UTF-8".into(),
            Rule::Nul => "a name or value contains a NUL byte".into(),
            Rule::BadName => "a parameter name is empty, or contains `&` or `=`".into(),
            Rule::DuplicateParameter => "a parameter occurs twice".into(),
            Rule::TooManyParameters => format!("more than {PARAMETERS_MAX_COUNT} parameters").into(),
            Rule::NameTooLong => {
                format!("a parameter name is longer than {PARAMETER_NAME_MAX_BYTES} bytes").into()
            }
            Rule::ValueTooLong => {
                format!("a parameter value is longer than {PARAMETER_VALUE_MAX_BYTES} bytes").into()
            }
        }
    }
}

spid_hook::words! {
    /// Part of a request that contains a parameter.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Part {
        /// Query string.
        Query = "query",
        /// Form in the body.
        Form = "form",
    }
}

/// Position in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Part of the request.
    pub part: Part,
    /// Offset from the start of the part as it was sent, in bytes.
    pub offset: usize,
}

/// Reason why a query string or form is denied. Names the parameter, never its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError {
    /// Rule that was broken.
    pub rule: Rule,
    /// Parameter name, shortened; `None` when the fault is not about one parameter.
    pub parameter: Option<String>,
    /// Position; `None` when the parameters did not come as a query or a form.
    pub place: Option<Position>,
}

impl QueryError {
    fn new(rule: Rule, name: Option<&str>, place: Option<Position>) -> QueryError {
        // Long enough to recognize, and short enough for a log line, because the sender chooses the name.
        // Tokens are removed before the name is cut: half a token would not be recognized.
        let parameter = name.map(|name| without_tokens(name).chars().take(64).collect());
        QueryError { rule, parameter, place }
    }

    /// Short, stable word under which denied requests are counted.
    pub const fn reason(&self) -> &'static str {
        self.rule.as_str()
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rule.sentence())?;
        if let Some(name) = &self.parameter {
            write!(f, ": `{}`", name.escape_debug())?;
        }
        match self.place {
            Some(Position { part, offset }) => write!(f, " (byte {offset} of the {part})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for QueryError {}

/// A pair as it was sent.
#[derive(Clone, Copy)]
struct RawPair<'a> {
    place: Position,
    name: &'a [u8],
    value: &'a [u8],
}

/// Reads the query string and the form, if there is one, as one list of parameters in sending order.
///
/// ```
/// let pairs = spid_core::query::parse(b"on=2030-01-01+00%3A00&empty=", Some(b"label=%E4%B8%AD")).unwrap();
/// assert_eq!(pairs[0], ("on".into(), "2030-01-01 00:00".into()));
/// assert_eq!(pairs[2].1, "中");
/// assert_eq!(spid_core::query::parse(b"a=1&a=1", None).unwrap_err().reason(), "duplicate-parameter");
/// ```
///
/// # Errors
/// [`QueryError`] names the first broken rule: encoding first, then names and lengths, each in sending order.
pub fn parse(query: &[u8], form: Option<&[u8]>) -> Result<Vec<Pair>, QueryError> {
    let form = form.unwrap_or_default();
    let raw: Vec<RawPair<'_>> = split(query, Part::Query)
        .chain(split(form, Part::Form))
        // Take one pair more than allowed: enough to detect too many, and the rest is never split.
        .take(PARAMETERS_MAX_COUNT.saturating_add(1))
        .collect();
    if raw.len() > PARAMETERS_MAX_COUNT {
        let place = raw.last().map(|pair| pair.place);
        return Err(QueryError::new(Rule::TooManyParameters, None, place));
    }
    // Decode everything before the other checks, because those need decoded names.
    let pairs = raw.iter().map(decode).collect::<Result<Vec<Pair>, _>>()?;
    // Duplicates are searched among decoded names: `a` and `%61` are one name.
    check_decoded(pairs.iter().zip(raw.iter().map(|pair| Some(pair.place))))?;
    Ok(pairs)
}

/// Checks parameters that came in another form (JSON) against the same rules.
///
/// # Errors
/// See [`parse`], except for encoding; without a position.
pub fn check(pairs: &[Pair]) -> Result<(), QueryError> {
    if pairs.len() > PARAMETERS_MAX_COUNT {
        return Err(QueryError::new(Rule::TooManyParameters, None, None));
    }
    // `parse` finds a NUL while it decodes; other forms need this check.
    if let Some((name, _)) = pairs.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(QueryError::new(Rule::Nul, Some(name), None));
    }
    check_decoded(pairs.iter().zip(std::iter::repeat(None)))
}

/// Writes parameters as a query string or form, with `+` for a space.
pub fn encode(pairs: &[Pair]) -> String {
    // Serialization of pairs of texts cannot fail.
    serde_urlencoded::to_string(pairs).unwrap_or_default()
}

/// Encodes one text: everything but the unreserved characters of RFC 3986.
///
/// ```
/// assert_eq!(spid_core::query::encode_text("a b*~会"), "a%20b%2A~%E4%BC%9A");
/// ```
pub fn encode_text(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            other => {
                encoded.push('%');
                encoded.push_str(&hex::encode_upper([other]));
            }
        }
    }
    encoded
}

/// Canonical query of the clouds' API gateways: sorted by name, each name and value encoded by [`encode_text`].
///
/// ```
/// let pairs = ["Tag.10", "Tag.1", "Tag"].map(|name| (name.to_owned(), "a b".to_owned()));
/// assert_eq!(spid_core::query::canonical(&pairs), "Tag=a%20b&Tag.1=a%20b&Tag.10=a%20b");
/// ```
pub fn canonical(pairs: &[Pair]) -> String {
    // The pairs are sorted and not their texts: `=` sorts after digits, so `Tag.10=` would come before `Tag.1=`.
    let mut sorted: Vec<&Pair> = pairs.iter().collect();
    sorted.sort();
    let mut encoded: Vec<String> = Vec::with_capacity(pairs.len());
    for (name, value) in sorted {
        encoded.push(format!("{}={}", encode_text(name), encode_text(value)));
    }
    encoded.join("&")
}

/// The same query as [`canonical`], as the vendors' SDKs send it: with `+` for a space.
pub fn encode_sorted(pairs: &[Pair]) -> String {
    canonical(pairs).replace("%20", "+")
}

/// Returns the first parameter whose value may hide another signed parameter, if there is one.
/// The pairs come sorted by name, each name once.
///
/// The token signs `a=1&b=2` without marking where a value ends. So `{a: "1&b=2"}` has the token of `{a: "1", b:
/// "2"}`. An attacker with a signed URL can hide a parameter in the value before it. But a value with an `&` may also
/// be honest (`R&D`).
///
/// A value is suspicious only if, for some `&` in it, the text up to the next `=`:
///
/// * contains no `&`;
/// * sorts strictly between this parameter's name and the next one, because the signer sorts by name.
///
/// Behind the last parameter, every later name fits.
///
/// ```
/// use spid_core::query::ambiguous;
/// let forged = [("aliUid", "1&expiredOn=2099-01-01 00:00:00"), ("orderBizId", "7")];
/// assert_eq!(ambiguous(forged), Some("aliUid"));
/// assert_eq!(ambiguous([("label", "R&D"), ("orderBizId", "7")]), None);
/// ```
pub fn ambiguous<'a>(sorted: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<&'a str> {
    let mut pairs = sorted.into_iter().peekable();
    while let Some((name, value)) = pairs.next() {
        let next = pairs.peek().map(|(next, _)| *next);
        if hides_a_name(name, value, next) {
            return Some(name);
        }
    }
    None
}

fn hides_a_name(name: &str, value: &str, next: Option<&str>) -> bool {
    value.match_indices('&').any(|(at, ampersand)| {
        let rest = value.get(at + ampersand.len()..).unwrap_or_default();
        rest.split_once('=').is_some_and(|(hidden, _)| {
            !hidden.contains('&') && hidden > name && next.is_none_or(|next| hidden < next)
        })
    })
}

/// Splits one part into its pairs, without empty ones, as every decoder does (including ours below).
fn split(text: &[u8], part: Part) -> impl Iterator<Item = RawPair<'_>> {
    let mut next_offset = 0;
    text.split(|byte| *byte == b'&')
        .map(move |pair| {
            let offset = next_offset;
            next_offset += pair.len() + 1;
            (offset, pair)
        })
        .filter(|(_, pair)| !pair.is_empty())
        .map(move |(offset, pair)| {
            // Only the first `=` separates; all others belong to the value.
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            let name = halves.next().unwrap_or_default();
            let value = halves.next().unwrap_or_default();
            RawPair { place: Position { part, offset }, name, value }
        })
}

/// Decodes a name and its value. Gives the result of `serde_urlencoded`, which denies nothing.
fn decode(pair: &RawPair<'_>) -> Result<Pair, QueryError> {
    let name = decode_part(pair, pair.name, 0)?;
    let value = decode_part(pair, pair.value, pair.name.len() + 1)?;
    Ok((name, value))
}

/// Decodes a part of a pair that begins at the offset `start` in it.
fn decode_part(pair: &RawPair<'_>, text: &[u8], start: usize) -> Result<String, QueryError> {
    decode_text(text).map_err(|(rule, at)| {
        let offset = pair.place.offset + start + at;
        let name = String::from_utf8_lossy(pair.name);
        QueryError::new(rule, Some(&name), Some(Position { part: pair.place.part, offset }))
    })
}

/// Decodes one name or value.
/// The number in the error is the offset of the fault, or 0 if only the decoded text shows the fault.
fn decode_text(text: &[u8]) -> Result<String, (Rule, usize)> {
    let decoded = unescape(text).map_err(|at| (Rule::BadEncoding, at))?;
    if decoded.contains(&0) {
        return Err((Rule::Nul, 0));
    }
    String::from_utf8(decoded).map_err(|_| (Rule::NotUtf8, 0))
}

/// Decodes `+` and percent-encoding. The error is the offset of a `%` without two hex digits.
fn unescape(text: &[u8]) -> Result<Vec<u8>, usize> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match *byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|(_, byte)| char::from(*byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else { return Err(at) };
                decoded.push(u8::try_from(high * 16 + low).map_err(|_| at)?);
            }
            b'+' => decoded.push(b' '),
            plain => decoded.push(plain),
        }
    }
    Ok(decoded)
}

fn check_decoded<'a>(
    pairs: impl Iterator<Item = (&'a Pair, Option<Position>)> + Clone,
) -> Result<(), QueryError> {
    for (count, ((name, value), place)) in pairs.clone().enumerate() {
        // There are few parameters, so a scan is faster than a hash table.
        let is_given_before = || pairs.clone().take(count).any(|((before, _), _)| before == name);
        let broken = if name.is_empty() || name.contains(['&', '=']) {
            Some(Rule::BadName)
        } else if name.len() > PARAMETER_NAME_MAX_BYTES {
            Some(Rule::NameTooLong)
        } else if value.len() > PARAMETER_VALUE_MAX_BYTES {
            Some(Rule::ValueTooLong)
        } else if is_given_before() {
            Some(Rule::DuplicateParameter)
        } else {
            None
        };
        if let Some(rule) = broken {
            return Err(QueryError::new(rule, Some(name), place));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(query: &[u8]) -> &'static str {
        parse(query, None).unwrap_err().reason()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<Pair> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_every_decoder_reads_alike_is_read() {
        assert_eq!(parse(b"", None).unwrap(), []);
        assert_eq!(parse(b"&&a=1&&b&c=&", None).unwrap(), owned(&[("a", "1"), ("b", ""), ("c", "")]));
        assert_eq!(parse(b"a=x+y%20z%2B", None).unwrap(), owned(&[("a", "x y z+")]));
        assert_eq!(parse(b"a=1=2", None).unwrap(), owned(&[("a", "1=2")]));
        assert_eq!(parse("a=中".as_bytes(), None).unwrap(), owned(&[("a", "中")]));
        assert_eq!(parse(b"a=1", Some(b"b=2")).unwrap(), owned(&[("a", "1"), ("b", "2")]));
    }

    #[test]
    fn every_rule_refuses() {
        for broken in [&b"a=%"[..], b"a=%4", b"a=%zz", b"%g1=1", b"a=%%41", b"a=1&b=%2"] {
            assert_eq!(rule(broken), "bad-encoding", "{}", broken.escape_ascii());
        }
        assert_eq!(rule(b"a=%ff"), "not-utf8");
        assert_eq!(rule(b"a=\xc3\x28"), "not-utf8");
        assert_eq!(rule(b"%ed%a0%80=1"), "not-utf8");
        assert_eq!(rule(b"a=x%00y"), "nul");
        assert_eq!(rule(b"a\0=x"), "nul");
        for bad in [&b"=1"[..], b"=", b"a%26b=1", b"a%3Db=1"] {
            assert_eq!(rule(bad), "bad-name", "{}", bad.escape_ascii());
        }
        for twice in [&b"a=1&a=1"[..], b"a=1&b=2&%61=3", b"a&a=", b"a+b=1&a%20b=2"] {
            assert_eq!(rule(twice), "duplicate-parameter", "{}", twice.escape_ascii());
        }
    }

    #[test]
    fn a_name_may_not_stand_in_the_query_and_in_the_form() {
        let error = parse(b"x=0&a=1", Some(b"b=2&a=1")).unwrap_err();
        assert_eq!(error.rule, Rule::DuplicateParameter);
        assert_eq!(error.place, Some(Position { part: Part::Form, offset: 4 }));
        assert_eq!(error.to_string(), "a parameter occurs twice: `a` (byte 4 of the form)");
    }

    #[test]
    fn limits_hold_to_the_byte() {
        let name = "n".repeat(PARAMETER_NAME_MAX_BYTES);
        let value = "v".repeat(PARAMETER_VALUE_MAX_BYTES);
        assert!(parse(format!("{name}={value}").as_bytes(), None).is_ok());
        assert_eq!(rule(format!("{name}n=1").as_bytes()), "name-too-long");
        assert_eq!(rule(format!("a={value}v").as_bytes()), "value-too-long");
        let many =
            |count: usize| (0..count).map(|n| format!("p{n}=1")).collect::<Vec<_>>().join("&").into_bytes();
        assert!(parse(&many(PARAMETERS_MAX_COUNT), None).is_ok());
        assert_eq!(rule(&many(PARAMETERS_MAX_COUNT + 1)), "too-many-parameters");
        assert_eq!(
            parse(&many(PARAMETERS_MAX_COUNT), Some(b"one=more")).unwrap_err().reason(),
            "too-many-parameters"
        );
    }

    #[test]
    fn errors_name_the_parameter_and_never_the_value() {
        let error = parse(b"first=1&password=hunter%2", None).unwrap_err();
        assert_eq!(error.parameter.as_deref(), Some("password"));
        assert_eq!(error.place, Some(Position { part: Part::Query, offset: 23 }));
        assert!(!error.to_string().contains("hunter"));
        let error = parse(b"a%0ab=1&a%0ab=2", None).unwrap_err();
        assert!(!error.to_string().contains('\n'), "a log line stays one line");
    }

    #[test]
    fn parameters_from_elsewhere_obey_the_same_rules() {
        assert_eq!(check(&owned(&[("a", "1"), ("b", "")])), Ok(()));
        for (pairs, reason) in [
            (owned(&[("a", "1"), ("a", "2")]), "duplicate-parameter"),
            (owned(&[("", "1")]), "bad-name"),
            (owned(&[("a", "\0")]), "nul"),
        ] {
            assert_eq!(check(&pairs).unwrap_err().reason(), reason);
        }
    }

    #[test]
    fn an_ampersand_is_ambiguous_only_where_a_name_fits() {
        assert_eq!(ambiguous([("a", "1&b=2"), ("c", "3")]), Some("a"));
        assert_eq!(ambiguous([("a", "1&d=2"), ("c", "3")]), None, "sorts behind the next name");
        assert_eq!(ambiguous([("b", "1&a=2"), ("c", "3")]), None, "sorts before its own name");
        assert_eq!(ambiguous([("a", "1&c=2"), ("c", "3")]), None, "would be given twice");
        assert_eq!(ambiguous([("a", "R&D"), ("c", "x&y")]), None, "nothing with a value");
        assert_eq!(ambiguous([("a", "1"), ("c", "3&z=9")]), Some("c"), "nothing bounds the last one");
        assert_eq!(ambiguous([("a", "1&&b=2"), ("c", "3")]), Some("a"));
        assert_eq!(ambiguous([("a", "1&x&y=2")]), Some("a"));
    }

    /// Returns every way to cut `value` at some of its `&` into a value and further pairs, as lists of their
    /// names. Pieces without `=` are not pairs.
    fn cuts(value: &str) -> Vec<Vec<String>> {
        let pieces: Vec<&str> = value.split('&').collect();
        let mut found = Vec::new();
        for choice in 0..1u32 << (pieces.len() - 1) {
            let mut groups = vec![pieces[0].to_owned()];
            for (index, piece) in pieces[1..].iter().enumerate() {
                if choice & (1 << index) == 0 {
                    let last = groups.last_mut().unwrap();
                    last.push('&');
                    last.push_str(piece);
                } else {
                    groups.push((*piece).to_owned());
                }
            }
            let names: Option<Vec<String>> =
                groups[1..].iter().map(|pair| pair.split_once('=').map(|(n, _)| n.to_owned())).collect();
            found.extend(names);
        }
        found
    }

    fn ambiguous_by_force(pairs: &[(String, String)]) -> bool {
        let mut splits: Vec<Vec<String>> = vec![Vec::new()];
        for (name, value) in pairs {
            let mut longer = Vec::new();
            for names in &splits {
                for cut in cuts(value) {
                    longer.push([names.clone(), vec![name.clone()], cut].concat());
                }
            }
            splits = longer;
        }
        splits.iter().any(|names| {
            names.len() > pairs.len()
                && names.windows(2).all(|two| two[0] < two[1])
                && names.iter().all(|name| !name.is_empty() && !name.contains('&'))
        })
    }

    proptest! {
        #[test]
        fn ambiguous_agrees_with_brute_force(
            pairs in prop::collection::btree_map("[a-c]{1,2}", "[abc=&]{0,7}", 1..4)
        ) {
            let pairs: Vec<Pair> = pairs.into_iter().collect();
            let found = ambiguous(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str()))).is_some();
            prop_assert_eq!(found, ambiguous_by_force(&pairs), "{:?}", pairs);
        }

        #[test]
        fn what_is_encoded_reads_back(
            pairs in prop::collection::btree_map("[^\0&=]{1,12}", "[^\0]{0,40}", 0..8)
        ) {
            let pairs: Vec<Pair> = pairs.into_iter().collect();
            let text = encode(&pairs);
            prop_assert_eq!(parse(text.as_bytes(), None).unwrap(), pairs.clone());
            prop_assert_eq!(parse(b"", Some(text.as_bytes())).unwrap(), pairs);
        }

        #[test]
        fn arbitrary_bytes_are_read_or_refused_and_never_changed(
            query in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            if let Ok(pairs) = parse(&query, None) {
                let sent = String::from_utf8(unescape(&query).unwrap()).unwrap().matches('\u{fffd}').count();
                let read: usize = pairs.iter().map(|(n, v)| n.matches('\u{fffd}').count() + v.matches('\u{fffd}').count()).sum();
                prop_assert_eq!(read, sent, "no replacement character that was not sent");
                prop_assert_eq!(&parse(encode(&pairs).as_bytes(), None).unwrap(), &pairs);
                // A lenient decoder must read the same pairs from accepted input.
                prop_assert_eq!(serde_urlencoded::from_bytes::<Vec<Pair>>(&query).unwrap(), pairs);
            }
        }

        #[test]
        fn what_is_read_is_what_a_lenient_decoder_reads(query in "([a-c%+&=]|%2[0-9b]|%4[1-9]){0,40}") {
            if let Ok(pairs) = parse(query.as_bytes(), None) {
                prop_assert_eq!(serde_urlencoded::from_str::<Vec<Pair>>(&query).unwrap(), pairs);
            }
        }
    }
}

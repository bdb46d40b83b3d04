//! Checks of all fuzz targets, one function each: the input is bytes, and a failed check panics.
//!
//! These functions are called with three kinds of input:
//! - by `cargo fuzz`, for any time,
//! - by the ordinary tests (`tests/it/fuzz_smoke.rs`, which includes this file), with the seeds under `corpus/`,
//! - by the same tests, with some thousand random inputs.
//!
//! If possible, spid's result is compared with that of a second implementation. It is slow, simple, and written here
//! without spid's code.
#![allow(unreachable_pub, reason = "a library here, a module in the tests")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target that panics has found something"
)]

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use md5::{Digest, Md5};
use serde_json::Value;
use spid::hook::AnyHook;
use spid::internals::config::Config;
use spid::internals::hooks::log::LogHook;
use spid::internals::lab::scenario::{Scenario, ScenarioError};
use spid::internals::observe::limits::{
    PARAMETER_NAME_MAX_BYTES, PARAMETER_VALUE_MAX_BYTES, PARAMETERS_MAX_COUNT,
};
use spid_core::dialect;
use spid_core::dialect::{Dialect, Options, RawRequest, Sending};
use spid_core::query;
use spid_core::query::Pair;
use spid_core::signature::{Keys, Parts};
use spid_hook::Secret;
use spid_hook::callback::{Callback, Field};

/// Name and function of a target.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 6] = [
    ("query", query),
    ("token", token),
    ("date", date),
    ("scenario", scenario),
    ("answer", answer),
    ("config", config),
];

/// Checks a query string and, after the first line break, a form. spid must read both as any decoder does, and reject
/// input that can be read in two ways.
pub fn query(data: &[u8]) {
    let (query, form) = halves(data);
    let read = query::parse(query, form);
    let slow = [query, form.unwrap_or_default()].map(read_slowly).concat();
    let Ok(pairs) = read else {
        // A rejected input must have a reason that can be printed.
        assert!(!read.unwrap_err().to_string().contains('\0'));
        return;
    };
    assert_eq!(Some(&pairs), all_text(&slow).as_ref(), "it was read differently");
    let names: BTreeSet<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), pairs.len(), "a name was given twice");
    assert!(pairs.len() <= PARAMETERS_MAX_COUNT);
    for (name, value) in &pairs {
        assert!(!name.is_empty() && !name.contains(['&', '=', '\0']) && !value.contains('\0'));
        assert!(name.len() <= PARAMETER_NAME_MAX_BYTES && value.len() <= PARAMETER_VALUE_MAX_BYTES);
    }
    assert_eq!(query::parse(query::encode(&pairs).as_bytes(), None).as_ref(), Ok(&pairs));
    let base = format!("{}<key>", canonical(&pairs));
    let backwards: Vec<Pair> = pairs.iter().rev().cloned().collect();
    for order in [pairs, backwards] {
        assert_eq!(Parts::Pairs(order).base(), base, "the order of the parameters must not matter");
    }
}

/// Checks a key and, after the first line break, a signed query. spid must accept the query if and only if its token
/// equals that of a second implementation.
pub fn token(data: &[u8]) {
    let (key, Some(query)) = halves(data) else { return };
    let Some(key) = std::str::from_utf8(key).ok() else { return };
    let Ok(keys) = Keys::single(Secret::new(key)) else { return };
    for name in ["alibaba", "jdcloud"] {
        let dialect = dialect::by_name(name).unwrap();
        let Ok(signed) = dialect.parts(&RawRequest::get(query), Timestamp::UNIX_EPOCH) else { continue };
        let mut pairs = all_text(&read_slowly(query)).unwrap();
        let presented = pairs.iter().position(|(name, _)| name == "token").map(|at| pairs.remove(at).1);
        let right = digest(&pairs, key);
        let expected = presented.is_some_and(|presented| presented.eq_ignore_ascii_case(&right));
        assert_eq!(signed.verify(&keys).is_ok(), expected, "{pairs:?}");
        the_right_one_opens(dialect, &pairs, &right, &keys);
    }
}

fn the_right_one_opens(dialect: &dyn Dialect, pairs: &[Pair], right: &str, keys: &Keys) {
    let token = |digest: &str| vec![("token".to_owned(), digest.to_owned())];
    let verify = |pairs: &[Pair], digest: &str| {
        let query = query::encode(&[pairs.to_vec(), token(digest)].concat());
        let signed = dialect.parts(&RawRequest::get(query.as_bytes()), Timestamp::UNIX_EPOCH);
        signed.ok().map(|signed| signed.verify(keys).is_ok())
    };
    // An added parameter may exceed the limit on parameters: then the query is rejected before its token is checked.
    assert_ne!(verify(pairs, right), Some(false), "the right token was denied");
    let first = if right.starts_with('0') { "1" } else { "0" };
    assert_ne!(verify(pairs, &format!("{first}{}", &right[1..])), Some(true), "a wrong token was accepted");
    let mut altered = pairs.to_vec();
    if let Some((_, value)) = altered.first_mut() {
        value.push('x');
        assert_ne!(verify(&altered, right), Some(true), "an altered value was accepted");
    }
    let out = dialect.request("", pairs, keys, &Sending::at(Timestamp::UNIX_EPOCH));
    let signed = dialect.parts(&RawRequest::get(out.query.as_bytes()), Timestamp::UNIX_EPOCH);
    assert!(signed.is_err() || signed.unwrap().verify(keys).is_ok(), "our own signature must be valid");
}

/// Checks an expiry date from an untrusted sender. spid must read it as the date it is, or not at all.
pub fn date(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(callback) = callback_with("alibaba", "expiredOn", text) else { return };
    match callback.expires_on {
        None => assert_eq!(text, "", "a received date must be kept, at least as text"),
        Some(expiry) => {
            assert_eq!(expiry.raw, text);
            assert_eq!(expiry.at.map(Timestamp::as_second), date_slowly(text), "{text:?}");
        }
    }
    if let Some(at) = callback_with("generic", "expires_on", text).and_then(|it| it.expires_on?.at) {
        assert_eq!(at.to_string().parse::<Timestamp>().ok(), Some(at));
    }
}

/// Signs and reads a renewal with one additional parameter in this dialect; `None` if it cannot be sent.
fn callback_with(dialect: &str, name: &str, value: &str) -> Option<Callback> {
    let dialect = dialect::by_name(dialect).unwrap();
    let keys = Keys::single(Secret::new("fake-key")).unwrap();
    let now = Timestamp::UNIX_EPOCH;
    let out = dialect.request("renewInstance", &[(name.into(), value.into())], &keys, &Sending::at(now));
    let header = |name: &str| out.header(name);
    let raw =
        RawRequest { method: out.method, query: out.query.as_bytes(), header: &header, body: &out.body };
    let verified = dialect.parts(&raw, now).ok()?.verify(&keys).unwrap();
    Some(dialect.callback(verified, &Options { timezone: TimeZone::UTC, ..Options::default() }))
}

/// Checks a fixture: spid must read it, or report every mistake with a line of the file and a message.
pub fn scenario(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Scenario::parse(text, "fuzz.toml") {
        Ok(scenario) => {
            assert!(!scenario.title().is_empty() && !scenario.source().is_empty());
            let steps = u64::try_from(scenario.steps().len()).unwrap();
            assert!(scenario.deliveries() >= steps, "every step is delivered");
            let names: BTreeSet<&str> = scenario.steps().collect();
            assert_eq!(names.len(), scenario.steps().len(), "two steps have one name");
        }
        Err(ScenarioError::Mistakes { mistakes, .. }) => {
            assert!(!mistakes.is_empty(), "neither a scenario nor a mistake");
            let lines = text.split('\n').count();
            for mistake in &mistakes {
                assert!((1..=lines).contains(&mistake.line), "{mistake:?} in {lines} lines");
                assert!(!mistake.message.is_empty());
            }
            assert!(mistakes.is_sorted_by_key(|mistake| mistake.line));
        }
        Err(other) => panic!("{other}"),
    }
}

/// Checks a hook's answer: spid must read it, or report a mistake that names members and no value. In both cases no
/// secret may be printed.
pub fn answer(data: &[u8]) {
    let read = spid::hook::read_answer(data);
    let value = serde_json::from_slice::<Value>(data).ok();
    let said = match &read {
        Ok(answer) => {
            assert!(matches!(value, Some(Value::Object(_))), "only an object is an answer");
            for section in [&answer.app, &answer.host] {
                for (name, field) in section {
                    let secret = spid_hook::callback::SECRET_FIELDS.contains(&name.as_str());
                    assert_eq!(matches!(field, Field::Secret(_)), secret, "{name}");
                }
            }
            // A plain field may be shown, a secret field may not.
            let sections = [&answer.app, &answer.host, &answer.info];
            let fields = sections.into_iter().flatten().map(|(_, field)| field);
            let secrets = fields.filter(|field| matches!(field, Field::Secret(_))).map(Field::expose);
            let secrets: Vec<String> = secrets.map(str::to_owned).collect();
            (format!("{answer:?}"), secrets, plain_text(answer))
        }
        Err(message) => {
            let (mut names, mut values) = (String::new(), Vec::new());
            collect(value.as_ref().unwrap_or(&Value::Null), &mut names, &mut values);
            (message.clone(), values, names)
        }
    };
    let (shown, secrets, known) = said;
    for secret in secrets.iter().filter(|secret| is_telling(secret) && !known.contains(secret.as_str())) {
        assert!(!shown.contains(secret.as_str()), "{secret:?} is shown in {shown:?}");
    }
}

/// Returns all text of an answer that may be shown.
fn plain_text(answer: &spid_hook::callback::Answer) -> String {
    let sections = [&answer.app, &answer.host, &answer.info];
    let fields = sections.into_iter().flatten();
    let mut text: String = fields
        .map(|(name, field)| match field {
            Field::Plain(text) => format!("{name} {text} "),
            Field::Secret(_) => format!("{name} "),
        })
        .collect();
    text.push_str(answer.instance_id.as_deref().unwrap_or_default());
    text
}

/// Returns true if a text is long and unusual enough that it does not occur by chance.
fn is_telling(text: &str) -> bool {
    text.len() >= 8
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && text.bytes().any(|byte| byte.is_ascii_digit())
}

fn collect(value: &Value, names: &mut String, values: &mut Vec<String>) {
    match value {
        Value::String(text) => values.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, names, values)),
        Value::Object(members) => {
            for (name, member) in members {
                names.push_str(name);
                names.push(' ');
                collect(member, names, values);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Checks a configuration: spid must read it, or report every mistake without a key. A public admin listener and an
/// endpoint without a key are mistakes.
pub fn config(data: &[u8]) {
    const KEY: &str = "fake-canary-key-7Q";
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Keys from files and credentials would read any path the fuzzer writes, and `\u` escapes can hide these words.
    if ["file", "credential", "sealing", "\\"].iter().any(|word| text.contains(word)) {
        return;
    }
    let unclean = format!("{KEY}\n");
    let environment = HashMap::from(
        [("FAKE_KEY", KEY), ("FAKE_UNCLEAN", unclean.as_str()), ("FAKE_EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    match Config::parse(text, "fuzz.toml", &environment, &[], Some(AnyHook::from(LogHook).into())) {
        Ok(config) => {
            assert!(config.admin_listen.is_none_or(|address| address.ip().is_loopback()));
            assert!(!config.live.endpoints.is_empty());
            for (path, endpoint) in &config.live.endpoints {
                assert!(path.starts_with('/') && endpoint.keys.labels().count() > 0);
            }
        }
        Err(mistakes) => {
            assert!(!mistakes.mistakes.is_empty());
            let shown = format!("{mistakes} {mistakes:?}");
            assert!(text.contains(KEY) || !shown.contains(KEY), "{shown}");
        }
    }
}

/// Splits the input at the first line break.
fn halves(data: &[u8]) -> (&[u8], Option<&[u8]>) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&data[..at], Some(&data[at + 1..])),
        None => (data, None),
    }
}

type Bytes = Vec<u8>;

/// Splits and decodes as common decoders do: a `%` without two hexadecimal digits is kept as it is.
fn read_slowly(text: &[u8]) -> Vec<(Bytes, Bytes)> {
    let mut pairs = Vec::new();
    for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let at = pair.iter().position(|byte| *byte == b'=');
        let (name, value) = at.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
        pairs.push((decode_slowly(name), decode_slowly(value)));
    }
    pairs
}

fn decode_slowly(text: &[u8]) -> Bytes {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap());
                at += 2;
            }
            (b'+', ..) => decoded.push(b' '),
            (other, ..) => decoded.push(other),
        }
        at += 1;
    }
    decoded
}

fn all_text(pairs: &[(Bytes, Bytes)]) -> Option<Vec<Pair>> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.clone()).ok();
    pairs.iter().map(|(name, value)| Some((text(name)?, text(value)?))).collect()
}

/// Builds the canonical string of the vendor's page, step by step: sort by name, join with `=` and `&`, append `key=`.
fn canonical(pairs: &[Pair]) -> String {
    let mut left = pairs.to_vec();
    let mut text = String::new();
    while !left.is_empty() {
        let mut smallest = 0;
        for at in 1..left.len() {
            if left[at].0.as_bytes() < left[smallest].0.as_bytes() {
                smallest = at;
            }
        }
        let (name, value) = left.remove(smallest);
        text = text + &name + "=" + &value + "&";
    }
    text + "key="
}

fn digest(pairs: &[Pair], key: &str) -> String {
    Md5::digest(canonical(pairs) + key).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Converts `yyyy-MM-dd HH:mm:ss` in UTC to seconds by counting days. A leap second counts as the second before it, and
/// a date after the last instant as the last instant.
fn date_slowly(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().unwrap())
    };
    let mark = |at: usize, expected: u8| text.as_bytes().get(at) == Some(&expected);
    let marks = [(4, b'-'), (7, b'-'), (10, b' '), (13, b':'), (16, b':')];
    if text.len() != 19 || !marks.into_iter().all(|(at, expected)| mark(at, expected)) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || day < 1 || day > month_days(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_until_year(year) - days_until_year(1970)
        + (1..month).map(|month| month_days(year, month)).sum::<i64>()
        + day
        - 1;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second.min(59);
    Some(seconds.min(Timestamp::MAX.as_second()))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Returns the days from the start of year 0 to the start of this year.
fn days_until_year(year: i64) -> i64 {
    (0..year).map(|year| 365 + i64::from(is_leap(year))).sum()
}

//! Expectations of an answer and of the instance afterwards, and the differences from them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::value::{Template, Variables, read_instant};
use crate::lab::exchange as shown;
use crate::net::ClientResponse;
use spid_core::query::without_tokens;
use spid_hook::instance::{Instance, State};
use spid_hook::json::Json;
use spid_hook::text::plain;

/// Longest text of an answer in a failure, in characters.
const SHOWN_MAX_CHARS: usize = 300;

/// A difference between the expected and the actual result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Number of the delivery in its step, from 1; `None` for a difference in the state afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<u32>,
    /// Name of the compared value: `status`, `json.instanceId`, `state` and so on.
    pub what: String,
    /// Value in the fixture.
    pub expected: String,
    /// Actual value.
    pub actual: String,
}

impl Failure {
    pub(super) fn new(
        what: impl Into<String>,
        expected: impl Into<String>,
        actual: impl Into<String>,
    ) -> Failure {
        // Escape and mask all of it: it is printed, and the SPI endpoint under test may have written any part of it.
        let shown = [what.into(), expected.into(), actual.into()]
            .map(|text: String| plain(&without_tokens(&text)).into_owned());
        let [what, expected, actual] = shown;
        Failure { delivery: None, what, expected, actual }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Failure { what, expected, actual, .. } = self;
        if let Some(delivery) = self.delivery {
            write!(f, "delivery {delivery}: ")?;
        }
        write!(f, "{what}\n  expected  {expected}\n  actual    {actual}")
    }
}

/// A sold instance, as far as a scenario can check it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The id that the marketplace knows, once there is one.
    pub id: Option<String>,
    /// Applied state.
    pub state: State,
    /// End of the term.
    pub expires_on: Option<Timestamp>,
    /// The SKU in force.
    pub sku: Option<String>,
    /// The billed quantities in force.
    pub items: BTreeMap<String, String>,
}

impl From<Instance> for Seen {
    fn from(instance: Instance) -> Seen {
        let Instance { id, state, expires_on, sku, items, .. } = instance;
        Seen { id, state, expires_on, sku, items }
    }
}

/// Expectations of a step. A value that is not mentioned may be anything, except the status.
#[derive(Debug, Clone, Default)]
pub(super) struct Expectation {
    /// Status of the answer; `None` for 200.
    pub(super) status: Option<u16>,
    pub(super) headers: Vec<(String, Template)>,
    pub(super) body_contains: Option<Template>,
    pub(super) json: Option<Pattern>,
    /// Name of the instance to check; `None` for that of the callback.
    pub(super) instance: Option<Template>,
    /// State that the instance must have; `Some(None)` if there must be no such instance.
    pub(super) state: Option<Option<State>>,
    pub(super) expires_on: Option<Template>,
    pub(super) sku: Option<Template>,
    pub(super) items: Vec<(String, Template)>,
    pub(super) held: Option<bool>,
    /// Time in which the instance and the held callbacks must become as expected.
    pub(super) within: Duration,
}

/// A JSON value, or a condition for one.
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    /// This text.
    Text(Template),
    /// This number or boolean.
    Exactly(Json),
    /// Any text, number or boolean but an empty text.
    Nonempty,
    /// The value must be missing.
    Absent,
    /// A text other than this one.
    Not(Template),
    /// An object that has at least these members.
    Members(Vec<(String, Pattern)>),
    /// A list of exactly these.
    List(Vec<Pattern>),
}

impl Expectation {
    /// Returns the status that the answer must have.
    pub(super) fn status(&self) -> u16 {
        self.status.unwrap_or(200)
    }

    /// Returns true if it expects anything of an instance.
    pub(super) fn is_about_an_instance(&self) -> bool {
        self.state.is_some() || self.expires_on.is_some() || self.sku.is_some() || !self.items.is_empty()
    }

    /// Returns the differences in an answer.
    pub(super) fn check_answer(&self, answer: &ClientResponse, known: &Variables) -> Vec<Failure> {
        let mut failures = Vec::new();
        let body = String::from_utf8_lossy(&answer.body);
        if answer.status != self.status() {
            // The body usually explains an unexpected status, so show it.
            let actual = format!("{} {}", answer.status, shorten(&shown::body(&answer.body)));
            failures.push(Failure::new("status", self.status().to_string(), actual.trim_end()));
        }
        for (name, prefix) in &self.headers {
            failures.extend(check_header(name, &prefix.fill(known), answer.headers.text(name)));
        }
        if let Some(part) = self.body_contains.as_ref().map(|part| part.fill(known))
            && !body.contains(&part)
        {
            failures.push(Failure::new(
                "body",
                format!("a text with `{part}` in it"),
                shorten(&shown::body(&answer.body)),
            ));
        }
        if let Some(pattern) = &self.json {
            match Json::read(&answer.body) {
                Ok(json) => pattern.check("json", Some(&json), known, &mut failures),
                Err(_) => failures.push(Failure::new(
                    "json",
                    "a JSON document",
                    shorten(&shown::body(&answer.body)),
                )),
            }
        }
        failures
    }

    /// Returns the differences in the instance `name`.
    pub(super) fn check_instance(
        &self,
        name: &str,
        seen: Option<&Seen>,
        known: &Variables,
        zone: &TimeZone,
    ) -> Vec<Failure> {
        let mut failures = Vec::new();
        let state = seen.map(|seen| seen.state);
        if let Some(wanted) = self.state.filter(|wanted| *wanted != state) {
            let [wanted, state] = [wanted, state].map(|state| state.map_or("none", State::as_str));
            failures.push(Failure::new(format!("state of `{name}`"), wanted, state));
        }
        if let Some(wanted) = self.expires_on.as_ref().map(|wanted| wanted.fill(known)) {
            let actual = seen.and_then(|seen| seen.expires_on);
            // Compare instants, because one time can be written in several ways.
            if read_instant(&wanted, zone).is_none_or(|wanted| actual != Some(wanted)) {
                let actual = actual.map(|at| at.to_string());
                failures.push(Failure::new("expires_on", wanted, or_nothing(actual)));
            }
        }
        let sku =
            self.sku.iter().map(|wanted| ("sku".to_owned(), wanted, seen.and_then(|seen| seen.sku.clone())));
        let items = self.items.iter().map(|(item, wanted)| {
            (format!("items.{item}"), wanted, seen.and_then(|seen| seen.items.get(item).cloned()))
        });
        for (what, wanted, actual) in sku.chain(items) {
            let wanted = wanted.fill(known);
            if actual.as_ref() != Some(&wanted) {
                failures.push(Failure::new(what, wanted, or_nothing(actual)));
            }
        }
        failures
    }

    /// Returns the difference in the number of held callbacks before and after the step, if there is one.
    pub(super) fn check_held(&self, before: u64, after: u64) -> Option<Failure> {
        let wanted = self.held.filter(|wanted| *wanted != (after > before))?;
        let words = match wanted {
            true => "more callbacks are held than before",
            false => "no more callbacks are held than before",
        };
        Some(Failure::new("held", words, format!("{before} held before, {after} after")))
    }
}

fn check_header(name: &str, prefix: &str, actual: Option<&str>) -> Option<Failure> {
    if actual.is_some_and(|actual| actual.starts_with(prefix)) {
        return None;
    }
    let actual = or_nothing(actual.map(shown::header));
    Some(Failure::new(format!("header {name}"), format!("begins with `{prefix}`"), actual))
}

impl Pattern {
    fn check(&self, path: &str, actual: Option<&Json>, known: &Variables, failures: &mut Vec<Failure>) {
        let fails = match self {
            Pattern::Members(members) => {
                if let Some(Json::Object(object)) = actual {
                    for (name, pattern) in members {
                        pattern.check(&format!("{path}.{name}"), object.get(name), known, failures);
                    }
                    return;
                }
                true
            }
            // A list of another length is reported as a whole.
            Pattern::List(patterns) => {
                if let Some(Json::List(list)) = actual.filter(|json| has_length(json, patterns.len())) {
                    for (index, (pattern, value)) in patterns.iter().zip(list).enumerate() {
                        pattern.check(&format!("{path}.{index}"), Some(value), known, failures);
                    }
                    return;
                }
                true
            }
            Pattern::Text(wanted) => actual.and_then(Json::as_text) != Some(&wanted.fill(known)),
            Pattern::Exactly(wanted) => actual != Some(wanted),
            Pattern::Nonempty => !actual.is_some_and(is_filled),
            Pattern::Absent => actual.is_some(),
            // A missing value is not another text, so it fails.
            Pattern::Not(text) => actual.and_then(Json::as_text).is_none_or(|is| is == text.fill(known)),
        };
        if fails {
            let actual = actual.map(|json| shorten(&shown::json(path, json)));
            failures.push(Failure::new(path, self.describe(known), or_nothing(actual)));
        }
    }

    fn describe(&self, known: &Variables) -> String {
        match self {
            Pattern::Text(text) => Json::Text(text.fill(known)).to_string(),
            Pattern::Exactly(json) => json.to_string(),
            Pattern::Nonempty => "a value that is not empty".to_owned(),
            Pattern::Absent => "nothing".to_owned(),
            Pattern::Not(text) => format!("a text other than {}", Json::Text(text.fill(known))),
            Pattern::Members(_) => "an object".to_owned(),
            Pattern::List(patterns) => format!("a list of {}", patterns.len()),
        }
    }
}

fn has_length(json: &Json, length: usize) -> bool {
    matches!(json, Json::List(list) if list.len() == length)
}

fn is_filled(json: &Json) -> bool {
    match json {
        Json::Text(text) => !text.is_empty(),
        Json::Number(_) | Json::Bool(_) => true,
        Json::Null | Json::List(_) | Json::Object(_) => false,
    }
}

fn or_nothing(actual: Option<String>) -> String {
    actual.unwrap_or_else(|| "nothing".to_owned())
}

/// Shortens a text to its beginning, on one line.
fn shorten(text: &str) -> String {
    let mut shown: String =
        text.chars().take(SHOWN_MAX_CHARS).map(|c| if c == '\n' { ' ' } else { c }).collect();
    if text.chars().nth(SHOWN_MAX_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// Returns the value at a path as text. A path joins member names and list positions with dots.
pub(super) fn value_at(body: &[u8], path: &str) -> Option<String> {
    let json = Json::read(body).ok()?;
    let mut value = &json;
    for name in path.split('.') {
        value = match value {
            Json::List(list) => list.get(name.parse::<usize>().ok()?)?,
            other => other.get(name)?,
        };
    }
    value.to_text()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn differences(pattern: &Pattern, json: &serde_json::Value) -> Vec<String> {
        let json = &Json::from(json.clone());
        let mut failures = Vec::new();
        let known = Variables::from([("order".to_owned(), "o-1".to_owned())]);
        pattern.check("json", Some(json), &known, &mut failures);
        failures.into_iter().map(|it| format!("{}: {} / {}", it.what, it.expected, it.actual)).collect()
    }

    fn text(text: &str) -> Pattern {
        Pattern::Text(Template::parse(text).unwrap())
    }

    fn members(members: Vec<(&str, Pattern)>) -> Pattern {
        Pattern::Members(members.into_iter().map(|(name, pattern)| (name.to_owned(), pattern)).collect())
    }

    #[test]
    fn a_subset_is_enough_and_every_difference_is_named() {
        let wanted = members(vec![
            ("instanceId", text("${order}")),
            ("success", Pattern::Exactly(Json::Bool(true))),
            ("info", members(vec![("key", Pattern::Nonempty)])),
            ("list", Pattern::List(vec![text("a"), Pattern::Not(Template::literal("0"))])),
            ("gone", Pattern::Absent),
        ]);
        let good =
            json!({"instanceId": "o-1", "success": true, "more": 1, "info": {"key": 7}, "list": ["a", "b"]});
        assert_eq!(differences(&wanted, &good), Vec::<String>::new());
        let bad =
            json!({"instanceId": "0", "success": "true", "info": {"key": ""}, "list": ["b", "0"], "gone": 1});
        assert_eq!(
            differences(&wanted, &bad),
            [
                r#"json.instanceId: "o-1" / "0""#,
                r#"json.success: true / "true""#,
                r#"json.info.key: a value that is not empty / """#,
                r#"json.list.0: "a" / "b""#,
                r#"json.list.1: a text other than "0" / "0""#,
                "json.gone: nothing / 1",
            ]
        );
        assert_eq!(
            differences(&wanted, &json!({"info": 1, "list": ["a"], "success": null})),
            [
                r#"json.instanceId: "o-1" / nothing"#,
                "json.success: true / null",
                "json.info: an object / \"***\"",
                r#"json.list: a list of 2 / ["a"]"#,
            ]
        );
        assert_eq!(differences(&wanted, &json!([])), ["json: an object / []"]);
    }

    #[test]
    fn numbers_are_compared_digit_for_digit() {
        let check = |wanted: &str, body: &str| {
            let mut failures = Vec::new();
            let pattern = Pattern::Exactly(Json::read(wanted.as_bytes()).unwrap());
            pattern.check(
                "json",
                Some(&Json::read(body.as_bytes()).unwrap()),
                &Variables::new(),
                &mut failures,
            );
            failures.into_iter().map(|it| it.actual).collect::<Vec<_>>()
        };
        assert_eq!(check("7", "7"), Vec::<String>::new());
        let other = "202611300000000000000002";
        assert_eq!(check("202611300000000000000001", other), [other]);
        let id = value_at(br#"{"instanceId": 202611300000000000000001}"#, "instanceId");
        assert_eq!(id.as_deref(), Some("202611300000000000000001"));
    }

    #[test]
    fn a_missing_member_is_no_other_text() {
        let wanted = members(vec![("id", Pattern::Not(Template::literal("0")))]);
        assert_eq!(differences(&wanted, &json!({})), [r#"json.id: a text other than "0" / nothing"#]);
        assert_eq!(differences(&wanted, &json!({"id": 0})), [r#"json.id: a text other than "0" / 0"#]);
    }

    #[test]
    fn values_are_found_by_their_path() {
        let body = br#"{"a": {"b": ["x", 5, null]}, "t": true}"#;
        let at = |path| value_at(body, path);
        assert_eq!(at("a.b.0").as_deref(), Some("x"));
        assert_eq!(at("a.b.1").as_deref(), Some("5"));
        assert_eq!(at("t").as_deref(), Some("true"));
        assert_eq!([at("a.b.2"), at("a.b.3"), at("a"), at("z"), at("t.x")], [const { None }; 5]);
        assert_eq!(value_at(b"no json", "a"), None);
    }

    #[test]
    fn instances_are_compared_by_instants_not_by_spelling() {
        let zone = TimeZone::get("Asia/Shanghai").unwrap();
        let seen = Seen {
            id: Some("o-1".to_owned()),
            state: State::Active,
            expires_on: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            sku: Some("basic".to_owned()),
            items: BTreeMap::from([("Count".to_owned(), "2".to_owned())]),
        };
        let wanted = Expectation {
            state: Some(Some(State::Active)),
            expires_on: Some(Template::literal("2026-01-01 08:00:00")),
            sku: Some(Template::literal("basic")),
            items: vec![("Count".to_owned(), Template::literal("2"))],
            ..Expectation::default()
        };
        assert_eq!(wanted.check_instance("o-1", Some(&seen), &Variables::new(), &zone), []);
        let whats: Vec<String> = wanted
            .check_instance("o-1", None, &Variables::new(), &zone)
            .into_iter()
            .map(|it| it.what)
            .collect();
        assert_eq!(whats, ["state of `o-1`", "expires_on", "sku", "items.Count"]);
        let none = Expectation { state: Some(None), ..Expectation::default() };
        assert_eq!(none.check_instance("o-1", None, &Variables::new(), &zone), []);
        assert_eq!(none.check_instance("o-1", Some(&seen), &Variables::new(), &zone)[0].actual, "active");
    }

    #[test]
    fn held_is_a_difference_not_a_number() {
        let wanted = |held| Expectation { held: Some(held), ..Expectation::default() };
        assert_eq!(wanted(true).check_held(3, 4), None);
        assert_eq!(wanted(false).check_held(3, 3), None);
        assert_eq!(wanted(true).check_held(3, 3).unwrap().actual, "3 held before, 3 after");
        assert!(wanted(false).check_held(0, 1).is_some());
    }

    #[test]
    fn long_answers_are_shortened_to_one_line() {
        let shown = shorten(&format!("a\nb{}", "中".repeat(400)));
        assert!(shown.starts_with("a b中") && shown.ends_with('…'));
        assert_eq!(shown.chars().count(), SHOWN_MAX_CHARS + 1);
    }
}

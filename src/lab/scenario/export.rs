//! Export of stored callbacks as a scenario: real requests of a marketplace, to be replayed and shown to others.
//!
//! The stored callbacks are decoded and verified; this module turns them into steps. By default it replaces personal
//! values. Equal values get equal replacements everywhere, so that the steps still fit together. It also moves dates
//! into the next hours, in their order: one day a recorded renewal lies in the past, and an SPI endpoint then rightly
//! refuses it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::expect::Seen;
use spid_hook::callback::{Action, Callback, Expiry, InstanceRef};
use spid_hook::text::is_plain;

/// A stored callback and its result.
#[derive(Debug, Clone)]
pub struct RecordedCallback {
    /// The callback.
    pub callback: Callback,
    /// Result of the callback.
    pub outcome: SenderOutcome,
}

/// Result of a callback, as far as its sender can see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderOutcome {
    /// Carried out.
    Done,
    /// Refused.
    Refused,
    /// Held for an operator.
    Held,
    /// Not ended, or ended in a way that no replay can repeat.
    Open,
}

/// Options for the export.
#[derive(Debug, Clone)]
pub struct Export<'a> {
    /// Title of the scenario.
    pub title: String,
    /// Dialect of the scenario.
    pub dialect: &'a str,
    /// Keep personal values: buyers, order numbers, addresses, secrets.
    pub keeps_personal: bool,
    /// Keep the dates as they were sent.
    pub keeps_dates: bool,
    /// Final state of the instance, which the last step expects.
    pub end: Option<Seen>,
}

impl Export<'_> {
    /// Returns the text of the scenario.
    pub fn scenario(&self, recorded: &[RecordedCallback]) -> String {
        let mut writer =
            Writer { export: self, names: Names::default(), dates: Dates::of(recorded), captures: false };
        let mut text = writer.head(recorded);
        for (index, one) in recorded.iter().enumerate() {
            text.push_str(&writer.step(index, one, index + 1 == recorded.len()));
        }
        text
    }
}

/// Replacements of personal values: equal values get equal replacements.
#[derive(Default)]
struct Names {
    known: BTreeMap<String, String>,
    orders: BTreeMap<String, String>,
}

impl Names {
    fn order(&mut self, value: &str) -> String {
        let next = self.orders.len() + 1;
        self.orders.entry(value.to_owned()).or_insert_with(|| format!("${{order}}-{next}")).clone()
    }

    /// Returns a replacement of the same shape.
    fn personal(&mut self, value: &str) -> String {
        let next = self.known.len() + 1;
        self.known.entry(value.to_owned()).or_insert_with(|| another(value, next)).clone()
    }
}

/// Returns a meaningless value of a shape that dialects check for: a list, an object, digits, or a text.
fn another(value: &str, number: usize) -> String {
    let trimmed = value.trim_start();
    if value.is_empty() {
        String::new()
    } else if trimmed.starts_with('[') {
        "[]".to_owned()
    } else if trimmed.starts_with('{') {
        "{}".to_owned()
    } else if value.bytes().all(|byte| byte.is_ascii_digit()) {
        let width = value.len();
        format!("{number:0>width$}")
    } else {
        format!("replaced-{number}")
    }
}

/// Names whose values are kept. Their values are words of a marketplace or of the seller's catalog, and decide the
/// meaning of a request: without them no replay has the same result. docs/fixtures.md lists them. A name belongs here
/// only if no buyer can write its value.
const KEPT: [&str; 24] = [
    "action",
    "activity",
    "chargingMode",
    "flag",
    "instanceStatus",
    "isRefund",
    "orderAmount",
    "package_version",
    "periodNumber",
    "periodType",
    "product",
    "productCode",
    "productId",
    "refund",
    "scene",
    "serviceCode",
    "sku",
    "skuCode",
    "skuId",
    "status",
    "testFlag",
    "trial",
    "trialFlag",
    "trialToFormal",
];

/// Longest value that is kept, in bytes.
const KEPT_MAX_BYTES: usize = 64;
/// Longest quantity that is kept, in bytes. A telephone number is longer.
const QUANTITY_MAX_BYTES: usize = 6;

/// Returns true if a value under this name may be exported unchanged.
fn is_kept(callback: &Callback, name: &str, value: &str) -> bool {
    if callback.items.contains_key(name) || callback.items.contains_key(item_name(name)) {
        // A billed item can hold any text, so only a short number is kept.
        return is_quantity(value);
    }
    KEPT.contains(&name) && is_code(value)
}

/// Returns the name of a billing item in a dialect where items cannot be nested.
fn item_name(name: &str) -> &str {
    name.strip_prefix("items.").unwrap_or(name)
}

/// Returns true if the text is a short number, which cannot identify a person.
fn is_quantity(value: &str) -> bool {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    value.len() <= QUANTITY_MAX_BYTES && is_number
}

/// Returns true if the text is a code: one ASCII word that is not as long a number as a telephone number.
fn is_code(value: &str) -> bool {
    let digits = value.bytes().filter(u8::is_ascii_digit).count();
    let is_word = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:+/".contains(&byte));
    // A telephone number has 7 to 15 digits.
    let is_telephone = (7..=15).contains(&digits) && digits == value.trim_start_matches(['+', '-']).len();
    value.len() <= KEPT_MAX_BYTES && is_word && !is_telephone
}

/// Dates of all steps, in their order.
struct Dates {
    instants: Vec<Timestamp>,
    zone: Option<&'static str>,
}

/// Time zones to try for the dates of the steps.
const ZONES: [&str; 2] = ["Asia/Shanghai", "UTC"];
/// Largest distance of a date from now, in minutes: an expire is believed up to a day before the end of the term.
const SPREAD_MINUTES: usize = 20 * 60;

impl Dates {
    fn of(recorded: &[RecordedCallback]) -> Dates {
        let expiries: Vec<&Expiry> =
            recorded.iter().filter_map(|one| one.callback.expires_on.as_ref()).collect();
        let instants: BTreeSet<Timestamp> = expiries.iter().filter_map(|expiry| expiry.at).collect();
        let fits = |zone: &&str| expiries.iter().all(|expiry| is_of_zone(expiry, zone));
        Dates { instants: instants.into_iter().collect(), zone: ZONES.into_iter().find(fits) }
    }

    fn name(&self, at: Timestamp) -> Option<String> {
        let position = self.instants.iter().position(|instant| *instant == at)?;
        Some(format!("date{}", position + 1))
    }

    /// Minutes from now for the date at `position`: the dates are as far apart as the spread allows.
    fn minutes(&self, position: usize) -> usize {
        let gap = (SPREAD_MINUTES / self.instants.len().max(1)).clamp(1, 60);
        (position + 1) * gap
    }
}

/// Returns true if a date can be of this zone. A date that cannot be read fits every zone, because it is not converted.
fn is_of_zone(expiry: &Expiry, zone: &str) -> bool {
    let civil = DateTime::strptime("%Y-%m-%d %H:%M:%S", &expiry.raw).ok();
    let read = civil.zip(TimeZone::get(zone).ok()).and_then(|(civil, zone)| zone.to_timestamp(civil).ok());
    read.is_none() || expiry.at.is_none() || read == expiry.at
}

struct Writer<'a> {
    export: &'a Export<'a>,
    names: Names,
    dates: Dates,
    /// True if an earlier create captured the id.
    captures: bool,
}

/// Words in the answers of a dialect.
struct Words {
    id: &'static str,
    done: &'static str,
    not_done: &'static str,
}

fn words(dialect: &str) -> Words {
    match dialect {
        "generic" => Words { id: "instance_id", done: "status = \"applied\"", not_done: "" },
        "alibaba" | "jdcloud" => {
            Words { id: "instanceId", done: "success = true", not_done: "success = false" }
        }
        // Other dialects have their own words for success, so the user must add them.
        _ => Words { id: "instanceId", done: "", not_done: "" },
    }
}

impl Writer<'_> {
    fn head(&self, recorded: &[RecordedCallback]) -> String {
        let Export { title, dialect, keeps_personal, keeps_dates, .. } = self.export;
        let mut head = Vec::new();
        if !keeps_personal {
            head.push("# Personal values are replaced; words of the marketplace and of the seller's catalog are kept. See docs/fixtures.md.".to_owned());
        }
        head.push("version = 1".to_owned());
        head.push(format!("title = {}", quoted(title)));
        head.push(format!("dialect = {}", quoted(dialect)));
        head.push("source = \"recorded\"".to_owned());
        // Asia/Shanghai is the default zone of a scenario.
        if let Some(zone) = self.dates.zone.filter(|zone| *zone != "Asia/Shanghai") {
            head.push(format!("timezone = {}", quoted(zone)));
        }
        head.push("\n[vars]".to_owned());
        if !keeps_personal {
            head.push("order = { unique = \"order\" }".to_owned());
        }
        let format = if *dialect == "generic" { ", format = \"rfc3339\"" } else { "" };
        for position in 0..if *keeps_dates { 0 } else { self.dates.instants.len() } {
            let minutes = self.dates.minutes(position);
            head.push(format!("date{} = {{ time = \"now + {minutes}m\"{format} }}", position + 1));
        }
        if recorded.is_empty() {
            head.push("# no callbacks to replay".to_owned());
        }
        head.join("\n") + "\n"
    }

    fn step(&mut self, index: usize, recorded: &RecordedCallback, is_last: bool) -> String {
        let RecordedCallback { callback, outcome } = recorded;
        let is_kept = self.export.keeps_personal || is_code(&callback.action_name);
        let word =
            if is_kept { callback.action_name.clone() } else { self.names.personal(&callback.action_name) };
        let mut step =
            format!("\n[[step]]\nname = \"{} {}\"\naction = {}\n", index + 1, callback.action, quoted(&word));
        // The first answers may be "call again": allow 150 requests in 30 s.
        if *outcome == SenderOutcome::Done {
            step.push_str("retry = { every = \"200ms\", limit = 150 }\n");
        }
        if *outcome == SenderOutcome::Done && callback.action == Action::Create {
            let _ = writeln!(step, "capture = {{ id = \"{}\" }}", words(self.export.dialect).id);
            self.captures = true;
        }
        step.push_str("\n[step.params]\n");
        // The action has its own member in a step.
        for (name, value) in callback.parameters.iter().filter(|(name, _)| *name != "action") {
            let written = self.value(callback, name, value);
            let _ = writeln!(step, "{} = {written}", key(name));
        }
        step.push_str("\n[step.expect]\n");
        step.push_str(&self.expect(callback, *outcome));
        if is_last {
            step.push_str(&self.end(callback.action));
        }
        step
    }

    /// Returns a value as it is written in the file.
    fn value(&mut self, callback: &Callback, name: &str, value: &str) -> String {
        if let Some(date) = self.date(callback, name, value) {
            return date;
        }
        let InstanceRef { instance_id, order_biz_id } = &callback.subject;
        let value_is = Some(value);
        let is_instance = instance_id.as_deref() == value_is;
        // A replay creates another instance, so use the id that its create captured.
        if is_instance && self.captures {
            return "\"${id}\"".to_owned();
        }
        if self.export.keeps_personal {
            return template(value);
        }
        if is_instance || order_biz_id.as_deref() == value_is {
            return "\"${order}\"".to_owned();
        }
        if callback.order_id.as_deref() == value_is || callback.request_id.as_deref() == value_is {
            return format!("\"{}\"", self.names.order(value));
        }
        let is_expiry = callback.expires_on.as_ref().is_some_and(|expiry| expiry.raw == value);
        if is_expiry && is_date(value) || is_kept(callback, name, value) {
            return template(value);
        }
        template(&self.names.personal(value))
    }

    fn date(&self, callback: &Callback, name: &str, value: &str) -> Option<String> {
        if name == "timeStamp" {
            // A dated request is accepted only near its date.
            return Some("{ time = \"now\" }".to_owned());
        }
        let expiry =
            callback.expires_on.as_ref().filter(|expiry| expiry.raw == value && !self.export.keeps_dates)?;
        Some(format!("\"${{{}}}\"", self.dates.name(expiry.at?)?))
    }

    fn expect(&self, callback: &Callback, outcome: SenderOutcome) -> String {
        let words = words(self.export.dialect);
        let json = match (outcome, callback.action) {
            (_, Action::SignOn) | (SenderOutcome::Open, _) => return String::new(),
            (SenderOutcome::Done, Action::Create) => format!("{} = {{ not = \"0\" }}", words.id),
            (SenderOutcome::Done, Action::Other | Action::Query) => return String::new(),
            (SenderOutcome::Done, _) => words.done.to_owned(),
            (SenderOutcome::Refused | SenderOutcome::Held, Action::Create) => String::new(),
            (SenderOutcome::Refused | SenderOutcome::Held, _) => words.not_done.to_owned(),
        };
        let mut expect = String::new();
        if !json.is_empty() {
            let _ = writeln!(expect, "json = {{ {json} }}");
        }
        if outcome == SenderOutcome::Held {
            expect.push_str("held = true\n");
        }
        expect
    }

    fn end(&mut self, last: Action) -> String {
        let Some(end) = self.export.end.as_ref().filter(|_| self.captures) else { return String::new() };
        let mut expect = format!("state = \"{}\"\n", end.state);
        // A create is about its order, so it needs no `instance`. Later steps know its answer.
        if last != Action::Create {
            expect.push_str("instance = \"${id}\"\n");
        }
        if let Some(at) = end.expires_on {
            if self.export.keeps_dates {
                let _ = writeln!(expect, "expires_on = {}", quoted(&at.to_string()));
            } else if let Some(name) = self.dates.name(at) {
                let _ = writeln!(expect, "expires_on = \"${{{name}}}\"");
            }
        }
        if let Some(sku) = &end.sku {
            let _ = writeln!(expect, "sku = {}", self.kept_or_replaced(sku, is_code(sku)));
        }
        let mut items = Vec::new();
        for (name, value) in &end.items {
            items.push(format!("{} = {}", key(name), self.kept_or_replaced(value, is_quantity(value))));
        }
        if !items.is_empty() {
            let _ = writeln!(expect, "items = {{ {} }}", items.join(", "));
        }
        expect
    }

    fn kept_or_replaced(&mut self, value: &str, is_harmless: bool) -> String {
        match self.export.keeps_personal || is_harmless {
            true => template(value),
            false => template(&self.names.personal(value)),
        }
    }
}

/// Returns true if the text has only characters of a date.
fn is_date(value: &str) -> bool {
    value.len() <= 40 && value.bytes().all(|byte| byte.is_ascii_digit() || b"-:+.TZ ".contains(&byte))
}

/// Quotes a text on one line, as a TOML value or key.
fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if !is_plain(c) => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Quotes a text as a literal, in which no `${}` is replaced.
fn template(text: &str) -> String {
    quoted(&text.replace("${", "$${"))
}

/// Returns the name of a member, quoted if TOML requires it.
fn key(name: &str) -> String {
    let bare =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if bare { name.to_owned() } else { quoted(name) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::value::{Value, Variables};
    use super::*;
    use crate::lab::scenario::Scenario;
    use spid_hook::instance::State;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn callback(action: Action, word: &str, pairs: &[(&str, &str)]) -> Callback {
        let get =
            |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Callback {
            subject: InstanceRef { instance_id: get("instanceId"), order_biz_id: get("orderBizId") },
            order_id: get("orderId"),
            buyer: get("aliUid"),
            items: get("Count").map(|count| ("Count".to_owned(), count)).into_iter().collect(),
            expires_on: get("expiredOn").map(|raw| Expiry {
                at: Some(format!("{}+08:00", raw.replace(' ', "T")).parse().unwrap()),
                raw,
            }),
            parameters: pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..Callback::new(action, word)
        }
    }

    fn history() -> Vec<RecordedCallback> {
        let done = |callback| RecordedCallback { callback, outcome: SenderOutcome::Done };
        vec![
            done(callback(
                Action::Create,
                "createInstance",
                &[
                    ("action", "createInstance"),
                    ("aliUid", "1958273645"),
                    ("orderBizId", "4711"),
                    ("orderId", "815"),
                    ("expiredOn", "2024-01-31 00:00:00"),
                    ("mobile", "13912345678"),
                    ("note", "say \"${hi}\" \\ 中\n"),
                    ("adminPassword", "hunter2"),
                    ("Count", "2"),
                    ("contact", "Li Lei"),
                    ("mail to", "li@acme.cn"),
                ],
            )),
            done(callback(
                Action::Renew,
                "renewInstance",
                &[
                    ("instanceId", "tenant-9"),
                    ("orderId", "816"),
                    ("expiredOn", "2024-03-01 00:00:00"),
                    ("aliUid", "1958273645"),
                ],
            )),
            RecordedCallback {
                callback: callback(Action::Expire, "expiredInstance", &[("instanceId", "tenant-9")]),
                outcome: SenderOutcome::Held,
            },
        ]
    }

    fn export(keeps: bool) -> String {
        let end = Seen {
            id: Some("tenant-9".to_owned()),
            state: State::Active,
            expires_on: Some(at("2024-02-29T16:00:00Z")),
            sku: Some("basic".to_owned()),
            items: BTreeMap::from([("Count".to_owned(), "2".to_owned())]),
        };
        let export = Export {
            title: "a \"history\"".to_owned(),
            dialect: "alibaba",
            keeps_personal: keeps,
            keeps_dates: keeps,
            end: Some(end),
        };
        export.scenario(&history())
    }

    #[test]
    fn what_is_exported_is_a_scenario() {
        for keeps in [false, true] {
            let text = export(keeps);
            let scenario = Scenario::parse(&text, "t.toml").unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(scenario.steps().collect::<Vec<_>>(), ["1 create", "2 renew", "3 expire"]);
        }
    }

    #[test]
    fn what_is_somebodys_own_is_replaced_and_still_fits_together() {
        let text = export(false);
        for own in [
            "1958273645",
            "4711",
            "815",
            "816",
            "13912345678",
            "hunter2",
            "Li Lei",
            "acme",
            "tenant-9",
            "2024",
        ] {
            assert!(!text.contains(own), "{own} in\n{text}");
        }
        for recorded in [
            "Count = \"2\"",
            "orderBizId = \"${order}\"",
            "orderId = \"${order}-2\"",
            "instanceId = \"${id}\"",
        ] {
            assert!(text.contains(recorded), "{recorded} in\n{text}");
        }
        let buyer = text.lines().find(|line| line.starts_with("aliUid = ")).unwrap();
        assert_eq!(text.matches(buyer).count(), 2, "the same by the same\n{text}");
        assert!(
            text.contains("date1 = { time = \"now + 60m\" }") && text.contains("expires_on = \"${date2}\"")
        );
    }

    proptest! {
        #[test]
        fn whatever_was_sent_is_sent_again(
            parameters in prop::collection::btree_map("[^\0]{1,12}", "[^\0]{0,30}", 0..6)
        ) {
            let mut callback = Callback::new(Action::Other, "x");
            callback.parameters = parameters.clone().into_iter().filter(|(name, _)| name != "action").collect();
            let export = Export {
                title: "t".to_owned(), dialect: "alibaba", keeps_personal: true, keeps_dates: true, end: None,
            };
            let text = export.scenario(&[RecordedCallback { callback: callback.clone(), outcome: SenderOutcome::Done }]);
            let scenario = Scenario::parse(&text, "t.toml").map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            let sent: BTreeMap<String, String> = scenario.steps[0]
                .params
                .iter()
                .map(|(name, value)| match value {
                    Value::Text(template) => (name.clone(), template.fill(&Variables::new())),
                    other => panic!("{other:?}"),
                })
                .collect();
            let recorded: BTreeMap<String, String> =
                callback.parameters.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            prop_assert_eq!(sent, recorded);
        }
    }

    #[test]
    fn only_what_is_known_to_be_needed_is_kept() {
        let own = [
            ("name", "Wang-Fang"),
            ("vatNumber", "DE123456789"),
            ("remark", "call 13912345678"),
            ("remark2", "+8613912345678"),
            ("city", "Hangzhou"),
            ("isRefundTo", "6222021234567890"),
            ("skuId", "13912345678"),
            ("trial", "fang@example.cn"),
            ("status", "Wang Fang"),
            ("Seats", "+49-170-1234567"),
            ("Label", "Wang"),
            ("userList", r#"[{"userName":"Wang"}]"#),
            ("extra", r#"{"phone":"13912345678"}"#),
            ("idcard", "330106199001011234"),
            ("empty", ""),
        ];
        let mut create = callback(Action::Other, "call Wang Fang", &own);
        create.items = [("Seats", "+49-170-1234567"), ("Label", "Wang")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let mut renew = callback(
            Action::Renew,
            "renewInstance",
            &[("again", "Hangzhou"), ("productCode", "cmgj000001"), ("Seats", "25")],
        );
        renew.items = [("Seats".to_owned(), "25".to_owned())].into();
        let end = Seen {
            id: None,
            state: State::Active,
            expires_on: None,
            sku: Some("13912345678".to_owned()),
            items: create.items.clone(),
        };
        let export = Export {
            title: "t".into(),
            dialect: "alibaba",
            keeps_personal: false,
            keeps_dates: false,
            end: Some(end),
        };
        let recorded =
            [create, renew].map(|callback| RecordedCallback { callback, outcome: SenderOutcome::Done });
        let text = export.scenario(&recorded);
        for (_, value) in own.into_iter().filter(|(_, value)| !value.is_empty()) {
            assert!(!text.contains(value), "{value} in\n{text}");
        }
        for word in ["Wang", "1391", "1234"] {
            assert!(!text.contains(word), "{word} in\n{text}");
        }
        assert!(text.contains("productCode = \"cmgj000001\"") && text.contains("Seats = \"25\""), "{text}");
        let city = text.lines().find_map(|line| line.strip_prefix("city = ")).unwrap();
        assert!(text.contains(&format!("again = {city}")), "the same by the same\n{text}");
        assert!(text.contains("userList = \"[]\"") && text.contains("extra = \"{}\""), "{text}");
        Scenario::parse(&text, "t.toml").unwrap_or_else(|error| panic!("{error}\n{text}"));
    }

    #[test]
    fn what_is_to_be_kept_is_kept() {
        let text = export(true);
        for own in
            ["1958273645", "4711", "815", "Li Lei", "2024-01-31 00:00:00", "hunter2", "2024-02-29T16:00:00Z"]
        {
            assert!(text.contains(own), "{own} in\n{text}");
        }
    }
}

//! Reader of scenario files.
//!
//! The reader walks the file by hand instead of deriving the types. So it can report all mistakes at once, each with
//! its line, and a hint if a name is nearly right. Its central type is [`Table`], which hands out the requested
//! members. Every member that was never requested is a mistake.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::expect::{Expectation, Pattern, WantedState};
use super::value::{Format, Moment, Template, Value, is_name, read_offset, read_span};
use super::{Mistake, Retry, Scenario, Step};
use crate::observe::limits::CONNECTIONS_MAX_COUNT;
use spid_core::dialect;
use spid_core::dialect::{Dialect, Options, SendForm, SendSignature};
use spid_hook::json::Json;

type Item<'t> = &'t Spanned<DeValue<'t>>;

/// Version of the format that this reader supports.
const VERSION: u64 = 1;
/// Values that `matches` accepts.
const MATCHES: [&str; 2] = ["nonempty", "absent"];

/// Members of earlier versions, with the replacement.
const REMOVED: [(&str, &str); 2] =
    [("include", "write the steps out in this file"), ("defaults", "write the values out in each step")];

/// Reads a scenario, or returns all its mistakes. Files that it names are read from `folder`.
pub(super) fn read(text: &str, folder: Option<&Path>) -> Result<Scenario, Vec<Mistake>> {
    // The parser goes on after a syntax error, so that all of them are reported.
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        text,
        folder: folder.map(Path::to_owned),
        mistakes: Vec::new(),
        known: BTreeSet::new(),
        used: BTreeSet::new(),
    };
    for error in &errors {
        reader.note(error.span().map_or(0, |span| span.start), error.message());
    }
    // Skip the recovered part of a broken file, because it would add false mistakes.
    let scenario = if errors.is_empty() { reader.scenario(root.get_ref()) } else { None };
    let mut mistakes = reader.mistakes;
    mistakes.sort_by_key(|mistake| mistake.line);
    match scenario {
        Some(scenario) if mistakes.is_empty() => Ok(scenario),
        _ => Err(mistakes),
    }
}

/// Returns `; did you mean …?` if one of `candidates` is close to `name`, else an empty text.
pub(super) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let near = candidates.into_iter().map(|candidate| (distance(name, candidate), candidate)).min();
    match near {
        // Near means at most one wrong character in three.
        Some((distance, candidate)) if distance <= name.chars().count().div_ceil(3) => {
            format!("; did you mean `{candidate}`?")
        }
        _ => String::new(),
    }
}

/// Levenshtein distance: the number of characters to insert, delete or change, ignoring case.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, left) in one.to_lowercase().chars().enumerate() {
        let mut diagonal = index;
        let mut behind = index + 1;
        for (cell, right) in row.iter_mut().skip(1).zip(&other) {
            let changed = diagonal + usize::from(left != *right);
            diagonal = *cell;
            behind = changed.min(diagonal + 1).min(behind + 1);
            *cell = behind;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// A table while it is read. It knows every requested member, and reports all others at the end.
struct Table<'t> {
    what: String,
    at: usize,
    members: Vec<(&'t str, usize, Item<'t>)>,
    asked: Vec<&'static str>,
}

impl<'t> Table<'t> {
    fn new(what: impl Into<String>, at: usize, table: &'t DeTable<'t>) -> Table<'t> {
        Table { what: what.into(), at, members: in_order(table), asked: Vec::new() }
    }

    fn take(&mut self, name: &'static str) -> Option<Item<'t>> {
        self.asked.push(name);
        let at = self.members.iter().position(|(member, ..)| *member == name)?;
        Some(self.members.remove(at).2)
    }

    fn need(&mut self, name: &'static str, reader: &mut Reader<'_>) -> Option<Item<'t>> {
        let found = self.take(name);
        if found.is_none() {
            reader.note(self.at, format!("{} has no `{name}`", self.what));
        }
        found
    }

    fn finish(self, reader: &mut Reader<'_>) {
        for (name, at, _) in &self.members {
            let hint = did_you_mean(name, self.asked.iter().copied());
            reader.note(*at, format!("`{name}` is unknown in {}{hint}", self.what));
        }
    }
}

/// Returns the members of a table in the order of the file, because they are sent in that order.
fn in_order<'t>(table: &'t DeTable<'t>) -> Vec<(&'t str, usize, Item<'t>)> {
    let mut members: Vec<_> =
        table.iter().map(|(name, value)| (name.get_ref().as_ref(), name.span().start, value)).collect();
    members.sort_by_key(|(_, at, _)| *at);
    members
}

/// State of the reader: the file, and the mistakes found so far.
struct Reader<'f> {
    text: &'f str,
    /// Folder of the file.
    folder: Option<PathBuf>,
    mistakes: Vec<Mistake>,
    /// Names that have a value at this point: variables above, and captures of earlier steps.
    known: BTreeSet<String>,
    /// Names used since this set was last taken or cleared.
    used: BTreeSet<String>,
}

impl Reader<'_> {
    fn note(&mut self, at: usize, message: impl Into<String>) {
        let before = self.text.as_bytes().iter().take(at);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        self.mistakes.push(Mistake { line, message: message.into() });
    }

    fn scenario(&mut self, root: &DeTable<'_>) -> Option<Scenario> {
        let mut table = Table::new("the scenario", 0, root);
        if let Some(version) = table.need("version", self) {
            self.version(version);
        }
        for (name, instead) in REMOVED {
            if let Some(item) = table.take(name) {
                self.note(item.span().start, format!("`{name}` was removed; {instead}"));
            }
        }
        let title = table.need("title", self).and_then(|item| self.filled(item, "title"));
        let dialect = table.need("dialect", self).and_then(|item| self.dialect(item));
        let source = table.need("source", self).and_then(|item| self.filled(item, "source"));
        let timezone = table.take("timezone").and_then(|item| self.timezone(item));
        let vars = table.take("vars").map(|item| self.vars(item)).unwrap_or_default();
        // Names used in variables are not needed by any step.
        self.used.clear();
        let steps = table.need("step", self).map(|item| self.steps(item)).unwrap_or_default();
        // Last, because every member must have been requested by now.
        table.finish(self);
        // Missing members are reported above; a file without them gives no scenario.
        Some(Scenario {
            title: title?,
            source: source?,
            dialect: dialect?,
            timezone: timezone.unwrap_or_else(|| Options::default().timezone),
            vars,
            steps,
        })
    }

    /// Returns the path of a file that is named in this one.
    fn beside(&self, name: &str) -> PathBuf {
        self.folder.as_deref().map_or_else(|| PathBuf::from(name), |folder| folder.join(name))
    }

    fn version(&mut self, item: Item<'_>) {
        let version = self.integer(item, "version");
        if let Some(version) = version.filter(|version| *version != VERSION) {
            let message = format!("version {version} is not supported; this spid reads version {VERSION}");
            self.note(item.span().start, message);
        }
    }

    fn dialect(&mut self, item: Item<'_>) -> Option<&'static dyn Dialect> {
        let name = self.text(item, "dialect")?;
        let found = dialect::by_name(name);
        if found.is_none() {
            self.note(item.span().start, unknown_word("dialect", name, dialect::names()));
        }
        found
    }

    fn timezone(&mut self, item: Item<'_>) -> Option<TimeZone> {
        let name = self.text(item, "timezone")?;
        let found = TimeZone::get(name).ok();
        if found.is_none() {
            self.note(
                item.span().start,
                format!("`{name}` is not a time zone; an example is `Asia/Shanghai`"),
            );
        }
        found
    }

    fn vars(&mut self, item: Item<'_>) -> Vec<(String, Value)> {
        let mut vars = Vec::new();
        for (name, at, item) in self.members(item, "vars") {
            if !is_name(name) {
                self.note(at, format!("`{name}` is not a valid name; use letters, digits, `-` and `_`"));
            }
            vars.extend(self.value(item, name, true).map(|value| (name.to_owned(), value)));
            // Only now, so that a variable can use only those above it.
            self.known.insert(name.to_owned());
        }
        vars
    }

    fn steps(&mut self, item: Item<'_>) -> Vec<Arc<Step>> {
        let DeValue::Array(array) = item.get_ref() else {
            self.note(item.span().start, "`step` must be a list of tables: write `[[step]]`");
            return Vec::new();
        };
        if array.is_empty() {
            self.note(item.span().start, "there must be at least one step");
        }
        let mut names = BTreeSet::new();
        let mut steps = Vec::new();
        for item in array.iter() {
            let Some(step) = self.step(item) else { continue };
            if !names.insert(step.name.clone()) {
                self.note(item.span().start, format!("there are two steps called `{}`", step.name));
            }
            steps.push(Arc::new(step));
        }
        steps
    }

    fn step(&mut self, item: Item<'_>) -> Option<Step> {
        let DeValue::Table(members) = item.get_ref() else {
            self.note(item.span().start, "a step must be a table: write `[[step]]`");
            return None;
        };
        let mut table = Table::new("a step", item.span().start, members);
        let name = table.need("name", self).and_then(|item| self.filled(item, "name"));
        // From now on, mistakes name the step.
        if let Some(name) = &name {
            table.what = format!("step `{name}`");
        }
        let request = self.recorded(&mut table);
        let action = match &request {
            Some(_) => Some(self.unasked(&mut table)),
            None => table.need("action", self).and_then(|item| self.filled(item, "action")),
        };
        let params = table.take("params").map(|item| self.params(item)).unwrap_or_default();
        let altered = table.take("alter").map(|item| self.altered(item, &params)).unwrap_or_default();
        let duplicated = table.take("duplicate").map(|item| self.templates(item, "duplicate"));
        let mut step = Step {
            name: name.unwrap_or_default(),
            action: action.clone().unwrap_or_default(),
            params,
            request,
            endpoint: table.take("endpoint").and_then(|item| self.filled(item, "endpoint")),
            key: table.take("key").and_then(|item| self.filled(item, "key")),
            form: table.take("send").and_then(|item| self.form(item)).unwrap_or_default(),
            signature: table.take("token").and_then(|item| self.signature(item)).unwrap_or_default(),
            dated_ms: table.take("dated").and_then(|item| self.offset(item, "dated")).unwrap_or_default(),
            altered,
            duplicated: duplicated.unwrap_or_default(),
            raw: table.take("raw").and_then(|item| self.filled(item, "raw")).unwrap_or_default(),
            wait: table.take("wait").and_then(|item| self.duration(item, "wait")).unwrap_or_default(),
            repeat: table.take("repeat").and_then(|item| self.count(item, "repeat")).unwrap_or(1),
            concurrent: table.take("concurrent").and_then(|item| self.concurrent(item)).unwrap_or(1),
            retry: table.take("retry").and_then(|item| self.retry(item)).unwrap_or(Retry::ONCE),
            expect: table.take("expect").and_then(|item| self.expect(item)).unwrap_or_default(),
            capture: table.take("capture").map(|item| self.capture(item)).unwrap_or_default(),
            needs: BTreeSet::new(),
        };
        // Everything read for this step has noted the names that it uses.
        step.needs = std::mem::take(&mut self.used);
        table.finish(self);
        action.map(|_| step)
    }

    /// Reads a recorded request, which is sent byte for byte: from the text, or from a file beside this one.
    fn recorded(&mut self, table: &mut Table<'_>) -> Option<Vec<u8>> {
        if let Some(item) = table.take("request") {
            return self.filled(item, "request").map(String::into_bytes);
        }
        let item = table.take("request_file")?;
        let name = self.filled(item, "request_file").unwrap_or_default();
        let bytes = std::fs::read(self.beside(&name));
        let noted = bytes.inspect_err(|error| self.note(item.span().start, format!("{name}: {error}")));
        // The missing file is reported; go on without it to find further mistakes.
        Some(noted.unwrap_or_default())
    }

    /// Reports every member that has no effect on a recorded request, because that request is already complete.
    fn unasked(&mut self, table: &mut Table<'_>) -> String {
        for name in ["action", "params", "alter", "duplicate", "token", "send", "raw", "dated", "key"] {
            if let Some(item) = table.take(name) {
                self.note(
                    item.span().start,
                    format!("`{name}` has no effect on a recorded request; remove it"),
                );
            }
        }
        "recorded".to_owned()
    }

    fn params(&mut self, item: Item<'_>) -> Vec<(String, Value)> {
        let members = self.members(item, "params");
        let read = members.into_iter().filter_map(|(name, _, item)| {
            self.value(item, name, false).map(|value| (name.to_owned(), value))
        });
        read.collect()
    }

    fn altered(&mut self, item: Item<'_>, params: &[(String, Value)]) -> Vec<(String, Template)> {
        for (name, at, _) in self.members(item, "alter") {
            if name != "action" && !params.iter().any(|(param, _)| param == name) {
                let hint = did_you_mean(name, params.iter().map(|(param, _)| param.as_str()));
                self.note(at, format!("`{name}` cannot be altered: it is not among the params{hint}"));
            }
        }
        self.templates(item, "alter")
    }

    fn form(&mut self, item: Item<'_>) -> Option<SendForm> {
        match self.text(item, "send")? {
            "usual" => Some(SendForm::Usual),
            "form" => Some(SendForm::Form),
            other => {
                self.note(item.span().start, unknown_word("way to send", other, ["usual", "form"]));
                None
            }
        }
    }

    fn signature(&mut self, item: Item<'_>) -> Option<SendSignature> {
        let text = self.text(item, "token")?;
        match text {
            "wrong" => Some(SendSignature::Altered),
            "missing" => Some(SendSignature::Omitted),
            hex if !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Some(SendSignature::Pinned(hex.to_owned()))
            }
            other => {
                let message = format!("`{other}` is neither `wrong`, `missing` nor hex digits");
                self.note(item.span().start, message);
                None
            }
        }
    }

    fn concurrent(&mut self, item: Item<'_>) -> Option<u32> {
        let count = self.count(item, "concurrent")?;
        let fits = usize::try_from(count).is_ok_and(|count| count <= CONNECTIONS_MAX_COUNT);
        if !fits {
            let message = format!("`concurrent` can be at most {CONNECTIONS_MAX_COUNT}");
            self.note(item.span().start, message);
        }
        Some(count)
    }

    fn retry(&mut self, item: Item<'_>) -> Option<Retry> {
        let mut table = self.table(item, "retry")?;
        let every = table.need("every", self).and_then(|item| self.duration(item, "every"));
        let limit = table.need("limit", self).and_then(|item| self.count(item, "limit"));
        table.finish(self);
        Some(Retry { every: every?, limit: limit? })
    }

    fn capture(&mut self, item: Item<'_>) -> Vec<(String, String)> {
        let mut captures = Vec::new();
        for (name, at, item) in self.members(item, "capture") {
            if !is_name(name) {
                self.note(at, format!("`{name}` is not a valid name; use letters, digits, `-` and `_`"));
            }
            captures.extend(self.filled(item, name).map(|path| (name.to_owned(), path)));
            self.known.insert(name.to_owned());
        }
        captures
    }

    fn expect(&mut self, item: Item<'_>) -> Option<Expectation> {
        let mut table = self.table(item, "expect")?;
        let template = |reader: &mut Self, table: &mut Table<'_>, name| {
            table.take(name).and_then(|item| reader.template(item, name))
        };
        let expect = Expectation {
            status: table.take("status").and_then(|item| self.status(item)).unwrap_or(200),
            headers: table.take("header").map(|it| self.templates(it, "header")).unwrap_or_default(),
            body_contains: template(self, &mut table, "body_contains"),
            json: table.take("json").and_then(|item| self.json(item)),
            instance: template(self, &mut table, "instance"),
            state: table.take("state").and_then(|item| self.state(item)),
            expires_on: template(self, &mut table, "expires_on"),
            sku: template(self, &mut table, "sku"),
            items: table.take("items").map(|item| self.templates(item, "items")).unwrap_or_default(),
            held: table.take("held").and_then(|item| self.boolean(item, "held")),
            within: table.take("within").and_then(|item| self.duration(item, "within")).unwrap_or_default(),
        };
        table.finish(self);
        Some(expect)
    }

    fn status(&mut self, item: Item<'_>) -> Option<u16> {
        let status = self.integer(item, "status")?;
        let status = u16::try_from(status).ok().filter(|status| (100..=999).contains(status));
        if status.is_none() {
            self.note(item.span().start, "`status` must be an HTTP status, such as 200");
        }
        status
    }

    fn state(&mut self, item: Item<'_>) -> Option<WantedState> {
        let word = self.text(item, "state")?;
        let state = WantedState::from_word(word);
        if state.is_none() {
            self.note(item.span().start, unknown_word("state", word, WantedState::WORDS));
        }
        state
    }

    fn json(&mut self, item: Item<'_>) -> Option<Pattern> {
        match item.get_ref() {
            DeValue::String(_) => self.template(item, "json").map(Pattern::Text),
            DeValue::Boolean(value) => Some(Pattern::Exactly(Json::Bool(*value))),
            DeValue::Integer(value) => {
                // Keep all digits: an id can be longer than 64 bits.
                let digits = value.as_str().replace('_', "");
                let number = i128::from_str_radix(&digits, value.radix());
                if number.is_err() {
                    self.note(item.span().start, "the integer is too large: compare it as a text");
                }
                Some(Pattern::Exactly(Json::Number(number.ok()?.to_string())))
            }
            DeValue::Array(list) => {
                Some(Pattern::List(list.iter().filter_map(|item| self.json(item)).collect()))
            }
            DeValue::Table(table) => self.json_table(item, table),
            DeValue::Float(_) | DeValue::Datetime(_) => {
                self.note(
                    item.span().start,
                    "an answer can only be compared with texts, integers and booleans",
                );
                None
            }
        }
    }

    fn json_table(&mut self, item: Item<'_>, table: &DeTable<'_>) -> Option<Pattern> {
        // A table whose only member is `matches` or `not` is a condition, and no object.
        if let [(name @ ("matches" | "not"), _, value)] = in_order(table).as_slice() {
            return match *name {
                "not" => self.template(value, "not").map(Pattern::Not),
                _ => self.matches(value),
            };
        }
        let members = self.members(item, "json").into_iter();
        let read = members.filter_map(|(name, _, item)| Some((name.to_owned(), self.json(item)?)));
        Some(Pattern::Members(read.collect()))
    }

    fn matches(&mut self, item: Item<'_>) -> Option<Pattern> {
        match self.text(item, "matches")? {
            "nonempty" => Some(Pattern::Nonempty),
            "absent" => Some(Pattern::Absent),
            other => {
                self.note(item.span().start, unknown_word("match", other, MATCHES));
                None
            }
        }
    }

    /// Reads the value of a variable or a parameter.
    fn value(&mut self, item: Item<'_>, name: &str, is_var: bool) -> Option<Value> {
        let DeValue::Table(members) = item.get_ref() else {
            return self.template(item, name).map(Value::Text);
        };
        let mut table = Table::new(format!("`{name}`"), item.span().start, members);
        if let Some(unique) = table.take("unique") {
            if !is_var {
                let message = "`unique` is only allowed under `[vars]`, because later steps need its name to send the same value";
                self.note(unique.span().start, message);
            }
            table.finish(self);
            return self.filled(unique, "unique").map(Value::Unique);
        }
        let offset_ms = table.need("time", self).and_then(|item| self.offset(item, "time"));
        let format = table.take("format").map(|item| self.format(item)).unwrap_or_default();
        table.finish(self);
        Some(Value::Moment(Moment { offset_ms: offset_ms?, format }))
    }

    fn format(&mut self, item: Item<'_>) -> Format {
        let word = self.text(item, "format").unwrap_or("civil");
        Format::from_word(word).unwrap_or_else(|| {
            self.note(item.span().start, unknown_word("format", word, ["civil", "rfc3339"]));
            Format::Civil
        })
    }

    fn templates(&mut self, item: Item<'_>, name: &str) -> Vec<(String, Template)> {
        let members = self.members(item, name).into_iter();
        let read = members.filter_map(|(name, _, item)| Some((name.to_owned(), self.template(item, name)?)));
        read.collect()
    }

    fn template(&mut self, item: Item<'_>, name: &str) -> Option<Template> {
        let text = self.text(item, name)?;
        let template = Template::parse(text).inspect_err(|error| self.note(item.span().start, error)).ok()?;
        for missing in template.names().filter(|name| !self.known.contains(*name)).collect::<Vec<_>>() {
            let hint = did_you_mean(missing, self.known.iter().map(String::as_str));
            self.note(
                item.span().start,
                format!(
                    "`${{{missing}}}` has no value: define a variable above, or capture the value in an earlier step{hint}"
                ),
            );
        }
        self.used.extend(template.names().map(str::to_owned));
        Some(template)
    }

    fn offset(&mut self, item: Item<'_>, name: &str) -> Option<i64> {
        let offset = read_offset(self.text(item, name)?);
        if offset.is_none() {
            let message = format!("`{name}` must look like `now`, `now + 30d` or `now - 10m` (ms s m h d)");
            self.note(item.span().start, message);
        }
        offset
    }

    fn duration(&mut self, item: Item<'_>, name: &str) -> Option<Duration> {
        let span = read_span(self.text(item, name)?).and_then(|ms| u64::try_from(ms).ok());
        if span.is_none() {
            self.note(item.span().start, format!("`{name}` must look like `200ms` or `5s` (ms s m h d)"));
        }
        span.map(Duration::from_millis)
    }

    fn count(&mut self, item: Item<'_>, name: &str) -> Option<u32> {
        let count = u32::try_from(self.integer(item, name)?).ok().filter(|count| *count > 0);
        if count.is_none() {
            self.note(item.span().start, format!("`{name}` must be a number from 1 to {}", u32::MAX));
        }
        count
    }

    fn filled(&mut self, item: Item<'_>, name: &str) -> Option<String> {
        let text = self.text(item, name)?;
        if text.trim().is_empty() {
            self.note(item.span().start, format!("`{name}` is empty"));
        }
        Some(text.to_owned())
    }

    fn text<'t>(&mut self, item: Item<'t>, name: &str) -> Option<&'t str> {
        let text = item.get_ref().as_str();
        if text.is_none() {
            self.note(item.span().start, format!("`{name}` must be a text, in quotes"));
        }
        text
    }

    fn integer(&mut self, item: Item<'_>, name: &str) -> Option<u64> {
        let number = item.get_ref().as_integer().filter(|number| number.radix() == 10);
        let number = number.and_then(|number| number.as_str().parse().ok());
        if number.is_none() {
            self.note(item.span().start, format!("`{name}` must be a whole number, without quotes"));
        }
        number
    }

    fn boolean(&mut self, item: Item<'_>, name: &str) -> Option<bool> {
        let value = item.get_ref().as_bool();
        if value.is_none() {
            self.note(item.span().start, format!("`{name}` must be `true` or `false`, without quotes"));
        }
        value
    }

    fn table<'t>(&mut self, item: Item<'t>, name: &str) -> Option<Table<'t>> {
        let DeValue::Table(table) = item.get_ref() else {
            self.note(item.span().start, format!("`{name}` must be a table"));
            return None;
        };
        Some(Table::new(format!("`{name}`"), item.span().start, table))
    }

    /// Returns the members of a table that may have any names.
    fn members<'t>(&mut self, item: Item<'t>, name: &str) -> Vec<(&'t str, usize, Item<'t>)> {
        self.table(item, name).map(|table| table.members).unwrap_or_default()
    }
}

impl Retry {
    /// Sends once, without a retry.
    const ONCE: Retry = Retry { every: Duration::ZERO, limit: 1 };
}

fn unknown_word<'a>(what: &str, word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let hint = did_you_mean(word, known.iter().copied());
    format!("`{word}` is not a {what}; use one of: {}{hint}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "version = 1\ntitle = \"t\"\ndialect = \"alibaba\"\nsource = \"s\"\n";

    /// Returns the mistakes in a file that begins with `HEAD`, as `line: message`. The first line of `text` is line 5.
    fn mistakes(text: &str) -> Vec<String> {
        let Err(mistakes) = read(&format!("{HEAD}{text}"), None) else { panic!("no mistake in {text}") };
        mistakes.into_iter().map(|mistake| format!("{}: {}", mistake.line, mistake.message)).collect()
    }

    /// Returns the only mistake in a step with these further lines, the first of them line 8.
    fn in_step(lines: &str) -> String {
        let found = mistakes(&format!("[[step]]\nname = \"buy\"\naction = \"x\"\n{lines}"));
        assert_eq!(found.len(), 1, "{found:?}");
        found.into_iter().next().unwrap()
    }

    #[test]
    fn integers_are_compared_with_all_their_digits() {
        for (written, digits) in [
            ("7", "7"),
            ("+7", "7"),
            ("-7", "-7"),
            ("1_000", "1000"),
            ("0x1F", "31"),
            ("202611300000000000000001", "202611300000000000000001"),
        ] {
            let text = format!(
                "{HEAD}[[step]]\nname = \"a\"\naction = \"x\"\nexpect = {{ json = {{ n = {written} }} }}\n"
            );
            let scenario = read(&text, None).unwrap_or_else(|mistakes| panic!("{written}: {mistakes:?}"));
            let Some(Pattern::Members(members)) = &scenario.steps[0].expect.json else { panic!("{written}") };
            let [(_, Pattern::Exactly(number))] = members.as_slice() else { panic!("{written}") };
            assert_eq!(number.to_string(), digits, "{written}");
        }
    }

    #[test]
    fn number_may_have_underscores_between_its_digits() {
        let text = format!("{HEAD}[[step]]\nname = \"a\"\naction = \"x\"\nrepeat = 1_000\n");
        let scenario = read(&text, None).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        assert_eq!(scenario.steps[0].repeat, 1_000);
    }

    #[test]
    fn all_mistakes_are_reported_together_in_order() {
        let text = "version = 2\ntitel = \"t\"\ndialect = \"alibab\"\nsource = \"\"\n\n[[step]]\nname = \"a\"\n\n\
                    [[step]]\naction = \"x\"\nname = 5\nrepat = 2\n";
        let mistakes = read(text, None).unwrap_err();
        let found: Vec<_> = mistakes.iter().map(|it| (it.line, it.message.as_str())).collect();
        assert_eq!(
            found,
            [
                (1, "version 2 is not supported; this spid reads version 1"),
                (1, "the scenario has no `title`"),
                (2, "`titel` is unknown in the scenario; did you mean `title`?"),
                (
                    3,
                    "`alibab` is not a dialect; use one of: alibaba, generic, jdcloud, koogallery; did you mean `alibaba`?"
                ),
                (4, "`source` is empty"),
                (6, "step `a` has no `action`"),
                (11, "`name` must be a text, in quotes"),
                (12, "`repat` is unknown in a step; did you mean `repeat`?"),
            ]
        );
    }

    #[test]
    fn broken_toml_is_a_mistake_with_a_line() {
        let found = mistakes("step = [\n");
        assert!(found[0].starts_with("5: ") || found[0].starts_with("6: "), "{found:?}");
        let found = mistakes("\ntitle = \"again\"\n");
        assert!(found[0].starts_with("6: "), "{found:?}");
    }

    #[test]
    fn every_member_says_what_it_takes() {
        for (lines, mistake) in [
            ("params = { a = 5 }", "8: `a` must be a text, in quotes"),
            ("params = 5", "8: `params` must be a table"),
            ("params.a = { unique = \"x\" }", "8: `unique` is only allowed under `[vars]`"),
            ("params.a = {}", "8: `a` has no `time`"),
            ("params.a = { time = \"soon\" }", "8: `time` must look like"),
            ("params.a = { time = \"now\", format = \"iso\" }", "8: `iso` is not a format"),
            ("params.a = \"${a\"", "8: a `${` is not closed"),
            ("params.a = \"${order}\"", "8: `${order}` has no value"),
            ("alter = { a = \"1\" }", "8: `a` cannot be altered"),
            ("duplicate = { a = 1 }", "8: `a` must be a text"),
            ("token = \"wrnog\"", "8: `wrnog` is neither"),
            ("send = \"GET\"", "8: `GET` is not a way to send; use one of: usual, form"),
            ("dated = \"10m\"", "8: `dated` must look like"),
            ("raw = \"\"", "8: `raw` is empty"),
            ("wait = \"5\"", "8: `wait` must look like"),
            ("repeat = 0", "8: `repeat` must be a number from 1"),
            ("repeat = \"2\"", "8: `repeat` must be a whole number"),
            ("concurrent = 2000", "8: `concurrent` can be at most 1024"),
            ("retry = { every = \"1s\" }", "8: `retry` has no `limit`"),
            ("retry = { every = \"1s\", limit = 2, until = \"x\" }", "8: `until` is unknown in `retry`"),
            ("capture = { \"a b\" = \"id\" }", "8: `a b` is not a valid name"),
            ("\n[step.expect]\nstatus = 1000", "10: `status` must be an HTTP status"),
            ("expect = { state = \"activ\" }", "8: `activ` is not a state; use one of: pending, active,"),
            ("expect = { held = \"yes\" }", "8: `held` must be `true` or `false`"),
            ("expect = { json = 1.5 }", "8: an answer can only be compared with"),
            ("expect = { json.a = { matches = \"empty\" } }", "8: `empty` is not a match"),
            ("expect = { json.a = \"${id}\" }", "8: `${id}` has no value"),
            ("expect = { jsn = {} }", "8: `jsn` is unknown in `expect`; did you mean `json`?"),
        ] {
            let found = in_step(lines);
            assert!(found.starts_with(mistake), "{lines}: {found}");
        }
    }

    #[test]
    fn names_are_known_from_where_they_get_their_value() {
        let step = |name: &str, rest: &str| format!("[[step]]\nname = \"{name}\"\naction = \"x\"\n{rest}\n");
        let capture = "capture = { id = \"instanceId\" }";
        let uses = "params = { instanceId = \"${id}\" }";
        assert!(read(&format!("{HEAD}{}{}", step("a", capture), step("b", uses)), None).is_ok());
        let found = mistakes(&format!("{}{}", step("b", uses), step("a", capture)));
        assert!(found[0].starts_with("8: `${id}` has no value"), "{found:?}");
        let vars = "[vars]\nb = \"${a}\"\na = \"1\"\n";
        let found = mistakes(&format!("{vars}{}", step("x", "")));
        assert!(found[0].starts_with("6: `${a}` has no value"), "a variable uses those above it: {found:?}");
        let found = mistakes(&format!("{}{}", step("a", ""), step("a", "")));
        assert!(found[0].ends_with("there are two steps called `a`"), "{found:?}");
    }

    #[test]
    fn parameters_keep_the_order_of_the_file() {
        let text = format!(
            "{HEAD}[[step]]\nname = \"a\"\naction = \"x\"\nparams = {{ z = \"1\", a = \"2\", M = \"3\" }}\n"
        );
        let scenario = read(&text, None).unwrap();
        let names: Vec<&str> = scenario.steps[0].params.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["z", "a", "M"]);
    }

    #[test]
    fn a_recorded_request_has_everything_in_it() {
        let step = |rest: &str| format!("[[step]]\nname = \"a\"\n{rest}\n");
        let scenario =
            read(&format!("{HEAD}{}", step("request = \"GET / HTTP/1.1\\r\\n\\r\\n\"")), None).unwrap();
        assert_eq!(scenario.steps[0].request.as_deref(), Some(&b"GET / HTTP/1.1\r\n\r\n"[..]));
        let found = mistakes(&step("request = \"GET /\"\ntoken = \"wrong\""));
        assert_eq!(found, ["8: `token` has no effect on a recorded request; remove it"]);
        let found = mistakes(&step("request_file = \"nowhere.http\""));
        assert!(found[0].starts_with("7: nowhere.http: "), "{found:?}");
        assert!(mistakes(&step(""))[0].contains("step `a` has no `action`"));
    }

    #[test]
    fn members_that_were_removed_say_what_to_do() {
        let found = mistakes(
            "include = [\"a.toml\"]\n[defaults.any]\nwait = \"1s\"\n[[step]]\nname = \"a\"\naction = \"x\"\n",
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`include` was removed; write the steps out"), "{found:?}");
        assert!(found[1].contains("`defaults` was removed; write the values out"), "{found:?}");
    }

    /// Checks that the schema for editors has the names that the reader accepts.
    #[test]
    fn the_schema_knows_the_members_that_are_read() {
        let schema: serde_json::Value = serde_json::from_str(crate::lab::scenario::SCHEMA).unwrap();
        let names = |path: &str| -> Vec<String> {
            schema.pointer(path).unwrap().as_object().unwrap().keys().cloned().collect()
        };
        let unknown = |text: &str, name: &str| {
            let mistakes = read(text, None).err().unwrap_or_default();
            mistakes.iter().any(|it| it.message.starts_with(&format!("`{name}` is unknown")))
        };
        for name in names("/properties") {
            assert!(!unknown(&format!("{name} = 1\n"), &name), "{name}");
        }
        for name in names("/$defs/step/properties") {
            assert!(!unknown(&format!("{HEAD}[[step]]\n{name} = 1\n"), &name), "{name}");
        }
        for name in names("/$defs/expect/properties") {
            let text = format!("{HEAD}[[step]]\nname = \"a\"\naction = \"x\"\nexpect.{name} = 1\n");
            assert!(!unknown(&text, &name), "{name}");
        }
        let page = include_str!("../../../docs/fixtures.md");
        let rows =
            page.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').nth(1).unwrap());
        let all: BTreeSet<String> = ["/properties", "/$defs/step/properties", "/$defs/expect/properties"]
            .into_iter()
            .flat_map(names)
            .collect();
        let told: BTreeSet<&str> = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
        for name in &all {
            let shown = told.iter().any(|word| word.trim_matches(['[', ']']) == name);
            assert!(shown, "docs/fixtures.md does not describe `{name}`");
        }
    }

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        assert_eq!(did_you_mean("statsu", ["status", "json"]), "; did you mean `status`?");
        assert_eq!(did_you_mean("skuid", ["skuId"]), "; did you mean `skuId`?");
        assert_eq!(did_you_mean("colour", ["status", "json"]), "");
        assert_eq!(did_you_mean("x", []), "");
        assert_eq!([distance("", "abc"), distance("abc", ""), distance("kitten", "sitting")], [3, 3, 3]);
    }
}

//! Reader of scenario files.
//!
//! The reader goes through the document instead of deriving the types. So it can report all mistakes at once, each with
//! its line, and a hint if a name is nearly right.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use toml::de::DeValue;

use super::expect::{Expectation, Pattern};
use super::value::{Format, Moment, Template, Value, is_name, read_offset};
use super::{Mistake, Retry, Scenario, Step};
use crate::observe::limits::CONNECTIONS_MAX_COUNT;
use spid_core::dialect::{self, Dialect, Options, SendForm, SendSignature};
use spid_core::document::{Document, Item, Member, Table, WrongType, did_you_mean};
use spid_core::span::Span;
use spid_hook::instance::State;
use spid_hook::json::Json;

/// Version of the format that this reader supports.
const VERSION: u64 = 1;
/// Members that have no effect on a recorded request, because that request is already complete.
const NOT_RECORDED: [&str; 9] =
    ["action", "params", "alter", "duplicate", "token", "send", "raw", "dated", "key"];
/// Members of earlier versions, with the replacement.
const REMOVED: [(&str, &str); 2] =
    [("include", "write the steps out in this file"), ("defaults", "write the values out in each step")];

/// Reads a scenario, or returns all its mistakes. Files that it names are read from `folder`.
pub(super) fn read(text: &str, folder: Option<&Path>) -> Result<Scenario, Vec<Mistake>> {
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(errors) => {
            let mistakes = errors.into_iter();
            let mistakes = mistakes.map(|it| Mistake { line: it.line.unwrap_or(1), message: it.message });
            return Err(mistakes.collect());
        }
    };
    let mut reader = Reader {
        document: &document,
        folder,
        mistakes: Vec::new(),
        known: BTreeSet::new(),
        used: BTreeSet::new(),
    };
    let scenario = reader.scenario();
    let mut mistakes = reader.mistakes;
    for unknown in document.unknown_keys() {
        let hint = did_you_mean(&unknown.key, unknown.known.iter().copied());
        let message = format!("`{}` is unknown in {}{hint}", unknown.key, unknown.table);
        mistakes.push(Mistake { line: unknown.line, message });
    }
    mistakes.sort_by_key(|mistake| mistake.line);
    match scenario {
        Some(scenario) if mistakes.is_empty() => Ok(scenario),
        _ => Err(mistakes),
    }
}

/// State of the reader: the document, and the mistakes found so far.
struct Reader<'d> {
    document: &'d Document<'d>,
    /// Folder of the file.
    folder: Option<&'d Path>,
    mistakes: Vec<Mistake>,
    /// Names that have a value at this point: variables above, and captures of earlier steps.
    known: BTreeSet<String>,
    /// Names used since this set was last taken or cleared.
    used: BTreeSet<String>,
}

/// Reading of one member: the value, and its name for mistakes.
type Read<'d, T> = fn(&mut Reader<'d>, Item<'d>, &str) -> Option<T>;

impl<'d> Reader<'d> {
    fn note(&mut self, at: usize, message: impl Into<String>) {
        self.mistakes.push(Mistake { line: self.document.line(at), message: message.into() });
    }

    /// Reads a member that may be missing.
    fn optional<T>(&mut self, table: Table<'d>, name: &'static str, read: Read<'d, T>) -> Option<T> {
        table.get(name).and_then(|item| read(self, item, name))
    }

    /// Reads a member that must not be missing.
    fn required<T>(&mut self, table: Table<'d>, name: &'static str, read: Read<'d, T>) -> Option<T> {
        let item = table.get(name);
        if item.is_none() {
            let (what, at) = table.place();
            self.note(at, format!("{what} has no `{name}`"));
        }
        read(self, item?, name)
    }

    fn scenario(&mut self) -> Option<Scenario> {
        let table = self.document.root("the scenario");
        self.required(table, "version", Self::version);
        for (name, instead) in REMOVED {
            if let Some(item) = table.get(name) {
                self.note(item.at(), format!("`{name}` was removed; {instead}"));
            }
        }
        let title = self.required(table, "title", Self::filled);
        let dialect = self.required(table, "dialect", Self::dialect);
        let source = self.required(table, "source", Self::filled);
        let timezone = self.optional(table, "timezone", Self::timezone);
        let vars = self.optional(table, "vars", Self::vars).unwrap_or_default();
        // Names used in variables are not needed by any step.
        self.used.clear();
        let steps = self.required(table, "step", Self::steps).unwrap_or_default();
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

    fn version(&mut self, item: Item<'d>, name: &str) -> Option<()> {
        let version = self.typed(item, name, item.whole())?;
        if version != VERSION {
            let message = format!("version {version} is not supported; this spid reads version {VERSION}");
            self.note(item.at(), message);
        }
        Some(())
    }

    fn dialect(&mut self, item: Item<'d>, name: &str) -> Option<&'static dyn Dialect> {
        let known: Vec<_> =
            dialect::names().filter_map(|name| Some((name, dialect::by_name(name)?))).collect();
        self.word(item, name, "dialect", &known)
    }

    fn timezone(&mut self, item: Item<'d>, name: &str) -> Option<TimeZone> {
        let zone = self.text(item, name)?;
        let found = TimeZone::get(zone).ok();
        if found.is_none() {
            self.note(item.at(), format!("`{zone}` is not a time zone; an example is `Asia/Shanghai`"));
        }
        found
    }

    fn vars(&mut self, item: Item<'d>, name: &str) -> Option<Vec<(String, Value)>> {
        let mut vars = Vec::new();
        for Member { key, at, item } in self.members(item, name)? {
            self.check_name(key, at);
            vars.extend(self.value(item, key, true).map(|value| (key.to_owned(), value)));
            // Only now, so that a variable can use only those above it.
            self.known.insert(key.to_owned());
        }
        Some(vars)
    }

    fn check_name(&mut self, name: &str, at: usize) {
        if !is_name(name) {
            self.note(at, format!("`{name}` is not a valid name; use letters, digits, `-` and `_`"));
        }
    }

    fn steps(&mut self, item: Item<'d>, _: &str) -> Option<Vec<Arc<Step>>> {
        let Ok(list) = item.list() else {
            self.note(item.at(), "`step` must be a list of tables: write `[[step]]`");
            return None;
        };
        if list.is_empty() {
            self.note(item.at(), "there must be at least one step");
        }
        let mut names = BTreeSet::new();
        let mut steps = Vec::new();
        for item in list {
            let Some(step) = self.step(item) else { continue };
            if !names.insert(step.name.clone()) {
                self.note(item.at(), format!("there are two steps called `{}`", step.name));
            }
            steps.push(Arc::new(step));
        }
        Some(steps)
    }

    fn step(&mut self, item: Item<'d>) -> Option<Step> {
        let Ok(table) = item.table("a step") else {
            self.note(item.at(), "a step must be a table: write `[[step]]`");
            return None;
        };
        let name = self.required(table, "name", Self::filled);
        // From now on, mistakes name the step.
        if let Some(name) = &name {
            table.rename(format!("step `{name}`"));
        }
        let request = self.recorded(table);
        let action = match &request {
            Some(_) => Some("recorded".to_owned()),
            None => self.required(table, "action", Self::filled),
        };
        let params = self.optional(table, "params", Self::params).unwrap_or_default();
        self.check_altered(table, &params);
        let step = Step {
            name: name.unwrap_or_default(),
            action: action.clone().unwrap_or_default(),
            params,
            request,
            endpoint: self.optional(table, "endpoint", Self::filled),
            key: self.optional(table, "key", Self::filled),
            form: self.optional(table, "send", Self::form).unwrap_or_default(),
            signature: self.optional(table, "token", Self::signature).unwrap_or_default(),
            dated_ms: self.optional(table, "dated", Self::offset).unwrap_or_default(),
            altered: self.optional(table, "alter", Self::templates).unwrap_or_default(),
            duplicated: self.optional(table, "duplicate", Self::templates).unwrap_or_default(),
            raw: self.optional(table, "raw", Self::filled).unwrap_or_default(),
            wait: self.optional(table, "wait", Self::duration).unwrap_or_default(),
            repeat: self.optional(table, "repeat", Self::count).unwrap_or(1),
            concurrent: self.optional(table, "concurrent", Self::concurrent).unwrap_or(1),
            retry: self.optional(table, "retry", Self::retry).unwrap_or(Retry::ONCE),
            expect: self.optional(table, "expect", Self::expect).unwrap_or_default(),
            capture: self.optional(table, "capture", Self::capture).unwrap_or_default(),
            // Everything read for this step has noted the names that it uses.
            needs: std::mem::take(&mut self.used),
        };
        action.map(|_| step)
    }

    /// Reads a recorded request, which is sent byte for byte: from the text, or from a file beside this one.
    fn recorded(&mut self, table: Table<'d>) -> Option<Vec<u8>> {
        let request = self.optional(table, "request", Self::filled).map(String::into_bytes);
        let request = request.or_else(|| self.optional(table, "request_file", Self::bytes_of_file))?;
        for name in NOT_RECORDED {
            if let Some(item) = table.peek(name) {
                self.note(item.at(), format!("`{name}` has no effect on a recorded request; remove it"));
            }
        }
        Some(request)
    }

    /// Reads a file beside this one. A missing file is reported, and counts as empty, to find further mistakes.
    fn bytes_of_file(&mut self, item: Item<'d>, name: &str) -> Option<Vec<u8>> {
        let file = self.filled(item, name).unwrap_or_default();
        let path = self.folder.map_or_else(|| PathBuf::from(&file), |folder| folder.join(&file));
        let bytes = std::fs::read(path).inspect_err(|error| self.note(item.at(), format!("{file}: {error}")));
        Some(bytes.unwrap_or_default())
    }

    fn params(&mut self, item: Item<'d>, name: &str) -> Option<Vec<(String, Value)>> {
        let mut params = Vec::new();
        for Member { key, item, .. } in self.members(item, name)? {
            params.extend(self.value(item, key, false).map(|value| (key.to_owned(), value)));
        }
        Some(params)
    }

    /// Checks that only parameters of the step are altered.
    fn check_altered(&mut self, table: Table<'d>, params: &[(String, Value)]) {
        for Member { key, at, .. } in
            table.peek("alter").and_then(|item| item.members().ok()).unwrap_or_default()
        {
            if key != "action" && !params.iter().any(|(param, _)| param == key) {
                let hint = did_you_mean(key, params.iter().map(|(param, _)| param.as_str()));
                self.note(at, format!("`{key}` cannot be altered: it is not among the params{hint}"));
            }
        }
    }

    fn form(&mut self, item: Item<'d>, name: &str) -> Option<SendForm> {
        self.word(item, name, "way to send", &[("usual", SendForm::Usual), ("form", SendForm::Form)])
    }

    fn signature(&mut self, item: Item<'d>, name: &str) -> Option<SendSignature> {
        match self.text(item, name)? {
            "wrong" => Some(SendSignature::Altered),
            "missing" => Some(SendSignature::Omitted),
            hex if !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Some(SendSignature::Pinned(hex.to_owned()))
            }
            other => {
                let hint = did_you_mean(other, ["wrong", "missing"]);
                self.note(item.at(), format!("`{other}` is neither `wrong`, `missing` nor hex digits{hint}"));
                None
            }
        }
    }

    fn concurrent(&mut self, item: Item<'d>, name: &str) -> Option<u32> {
        let count = self.count(item, name)?;
        if usize::try_from(count).is_ok_and(|count| count > CONNECTIONS_MAX_COUNT) {
            self.note(item.at(), format!("`{name}` is {count}, but can be at most {CONNECTIONS_MAX_COUNT}"));
        }
        Some(count)
    }

    fn retry(&mut self, item: Item<'d>, name: &str) -> Option<Retry> {
        let table = self.table(item, name)?;
        let every = self.required(table, "every", Self::duration);
        let limit = self.required(table, "limit", Self::count);
        Some(Retry { every: every?, limit: limit? })
    }

    fn capture(&mut self, item: Item<'d>, name: &str) -> Option<Vec<(String, String)>> {
        let mut captures = Vec::new();
        for Member { key, at, item } in self.members(item, name)? {
            self.check_name(key, at);
            captures.extend(self.filled(item, key).map(|path| (key.to_owned(), path)));
            self.known.insert(key.to_owned());
        }
        Some(captures)
    }

    fn expect(&mut self, item: Item<'d>, name: &str) -> Option<Expectation> {
        let table = self.table(item, name)?;
        Some(Expectation {
            status: self.optional(table, "status", Self::status),
            headers: self.optional(table, "header", Self::templates).unwrap_or_default(),
            body_contains: self.optional(table, "body_contains", Self::template),
            json: self.optional(table, "json", Self::json),
            instance: self.optional(table, "instance", Self::template),
            state: self.optional(table, "state", Self::state),
            expires_on: self.optional(table, "expires_on", Self::template),
            sku: self.optional(table, "sku", Self::template),
            items: self.optional(table, "items", Self::templates).unwrap_or_default(),
            held: self.optional(table, "held", Self::boolean),
            within: self.optional(table, "within", Self::duration).unwrap_or_default(),
        })
    }

    fn status(&mut self, item: Item<'d>, name: &str) -> Option<u16> {
        let status = self.typed(item, name, item.whole())?;
        let fits = u16::try_from(status).ok().filter(|status| (100..=999).contains(status));
        if fits.is_none() {
            self.note(item.at(), format!("`{name}` must be an HTTP status, such as 200, not {status}"));
        }
        fits
    }

    fn state(&mut self, item: Item<'d>, name: &str) -> Option<Option<State>> {
        let mut known: Vec<_> = State::ALL.map(|state| (state.as_str(), Some(state))).to_vec();
        known.push(("none", None));
        self.word(item, name, "state", &known)
    }

    fn json(&mut self, item: Item<'d>, name: &str) -> Option<Pattern> {
        match item.spanned().get_ref() {
            DeValue::String(_) => self.template(item, name).map(Pattern::Text),
            DeValue::Boolean(value) => Some(Pattern::Exactly(Json::Bool(*value))),
            DeValue::Integer(value) => {
                // Keep all digits: an id can be longer than 64 bits.
                let digits = value.as_str().replace('_', "");
                let number = i128::from_str_radix(&digits, value.radix());
                if number.is_err() {
                    self.note(item.at(), "the integer is too large: compare it as a text");
                }
                Some(Pattern::Exactly(Json::Number(number.ok()?.to_string())))
            }
            DeValue::Array(_) => {
                let list = item.list().unwrap_or_default();
                Some(Pattern::List(list.into_iter().filter_map(|item| self.json(item, name)).collect()))
            }
            DeValue::Table(_) => self.json_table(item, name),
            DeValue::Float(_) | DeValue::Datetime(_) => {
                self.note(item.at(), "an answer can only be compared with texts, integers and booleans");
                None
            }
        }
    }

    fn json_table(&mut self, item: Item<'d>, name: &str) -> Option<Pattern> {
        let members = self.members(item, name)?;
        // A table whose only member is `matches` or `not` is a condition, and no object.
        match members.as_slice() {
            [Member { key: "not", item, .. }] => return self.template(*item, "not").map(Pattern::Not),
            [Member { key: "matches", item, .. }] => {
                let known = [("nonempty", Pattern::Nonempty), ("absent", Pattern::Absent)];
                return self.word(*item, "matches", "match", &known);
            }
            _ => {}
        }
        let mut patterns = Vec::new();
        for Member { key, item, .. } in members {
            patterns.extend(self.json(item, name).map(|pattern| (key.to_owned(), pattern)));
        }
        Some(Pattern::Members(patterns))
    }

    /// Reads the value of a variable or a parameter.
    fn value(&mut self, item: Item<'d>, name: &str, is_var: bool) -> Option<Value> {
        let Ok(table) = item.table(&format!("`{name}`")) else {
            return self.template(item, name).map(Value::Text);
        };
        if let Some(unique) = table.get("unique") {
            if !is_var {
                let message = "`unique` is only allowed under `[vars]`, because later steps need its name to send the same value";
                self.note(unique.at(), message);
            }
            return self.filled(unique, "unique").map(Value::Unique);
        }
        let offset_ms = self.required(table, "time", Self::offset);
        let format = self.optional(table, "format", Self::format).unwrap_or_default();
        Some(Value::Moment(Moment { offset_ms: offset_ms?, format }))
    }

    fn format(&mut self, item: Item<'d>, name: &str) -> Option<Format> {
        self.word(item, name, "format", &[("civil", Format::Civil), ("rfc3339", Format::Rfc3339)])
    }

    fn templates(&mut self, item: Item<'d>, name: &str) -> Option<Vec<(String, Template)>> {
        let mut templates = Vec::new();
        for Member { key, item, .. } in self.members(item, name)? {
            templates.extend(self.template(item, key).map(|template| (key.to_owned(), template)));
        }
        Some(templates)
    }

    fn template(&mut self, item: Item<'d>, name: &str) -> Option<Template> {
        let text = self.text(item, name)?;
        let template = Template::parse(text).inspect_err(|error| self.note(item.at(), error)).ok()?;
        for missing in template.names() {
            if !self.known.contains(missing) {
                let hint = did_you_mean(missing, self.known.iter().map(String::as_str));
                let message = format!(
                    "`${{{missing}}}` has no value: define a variable above, or capture the value in an earlier step{hint}"
                );
                self.note(item.at(), message);
            }
        }
        self.used.extend(template.names().map(str::to_owned));
        Some(template)
    }

    fn offset(&mut self, item: Item<'d>, name: &str) -> Option<i64> {
        let text = self.text(item, name)?;
        let offset = read_offset(text);
        if offset.is_none() {
            let message = format!(
                "`{name}` must look like `now`, `now + 30d` or `now - 10m` (ms s m h d), not `{text}`"
            );
            self.note(item.at(), message);
        }
        offset
    }

    fn duration(&mut self, item: Item<'d>, name: &str) -> Option<Duration> {
        let text = self.text(item, name)?;
        let span = text.parse::<Span>().map(|span| span.0).ok();
        if span.is_none() {
            let message = format!("`{name}` must look like `200ms` or `5s` (ms s m h d), not `{text}`");
            self.note(item.at(), message);
        }
        span
    }

    fn count(&mut self, item: Item<'d>, name: &str) -> Option<u32> {
        let number = self.typed(item, name, item.whole())?;
        let count = u32::try_from(number).ok().filter(|count| *count > 0);
        if count.is_none() {
            self.note(item.at(), format!("`{name}` must be a number from 1 to {}, not {number}", u32::MAX));
        }
        count
    }

    fn filled(&mut self, item: Item<'d>, name: &str) -> Option<String> {
        let text = self.text(item, name)?;
        if text.trim().is_empty() {
            self.note(item.at(), format!("`{name}` is empty"));
        }
        Some(text.to_owned())
    }

    /// Reads one of several words.
    fn word<T: Clone>(&mut self, item: Item<'d>, name: &str, what: &str, known: &[(&str, T)]) -> Option<T> {
        let word = self.text(item, name)?;
        let found = known.iter().find(|(known, _)| *known == word).map(|(_, value)| value.clone());
        if found.is_none() {
            let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            let hint = did_you_mean(word, words.iter().copied());
            self.note(item.at(), format!("`{word}` is not a {what}; use one of: {}{hint}", words.join(", ")));
        }
        found
    }

    fn text(&mut self, item: Item<'d>, name: &str) -> Option<&'d str> {
        self.typed(item, name, item.text())
    }

    fn boolean(&mut self, item: Item<'d>, name: &str) -> Option<bool> {
        self.typed(item, name, item.boolean())
    }

    fn table(&mut self, item: Item<'d>, name: &str) -> Option<Table<'d>> {
        self.typed(item, name, item.table(&format!("`{name}`")))
    }

    /// Returns the members of a table that may have any names.
    fn members(&mut self, item: Item<'d>, name: &str) -> Option<Vec<Member<'d>>> {
        self.typed(item, name, item.members())
    }

    /// Returns the value if it has the right type, and reports it otherwise.
    fn typed<T>(&mut self, item: Item<'d>, name: &str, value: Result<T, WrongType>) -> Option<T> {
        value.map_err(|wrong| self.note(item.at(), format!("`{name}` {wrong}"))).ok()
    }
}

impl Retry {
    /// Sends once, without a retry.
    pub(super) const ONCE: Retry = Retry { every: Duration::ZERO, limit: 1 };
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
                (11, "`name` must be text in quotes, not a number"),
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
            ("params = { a = 5 }", "8: `a` must be text in quotes, not a number"),
            ("params = 5", "8: `params` must be a table, not a number"),
            ("params.a = { unique = \"x\" }", "8: `unique` is only allowed under `[vars]`"),
            ("params.a = {}", "8: `a` has no `time`"),
            ("params.a = { time = \"soon\" }", "8: `time` must look like"),
            ("params.a = { time = \"now\", format = \"iso\" }", "8: `iso` is not a format"),
            ("params.a = \"${a\"", "8: a `${` is not closed"),
            ("params.a = \"${order}\"", "8: `${order}` has no value"),
            ("alter = { a = \"1\" }", "8: `a` cannot be altered"),
            ("duplicate = { a = 1 }", "8: `a` must be text in quotes, not a number"),
            (
                "token = \"wrnog\"",
                "8: `wrnog` is neither `wrong`, `missing` nor hex digits; did you mean `wrong`?",
            ),
            ("send = \"GET\"", "8: `GET` is not a way to send; use one of: usual, form"),
            ("dated = \"10m\"", "8: `dated` must look like"),
            ("raw = \"\"", "8: `raw` is empty"),
            ("wait = \"5\"", "8: `wait` must look like"),
            ("repeat = 0", "8: `repeat` must be a number from 1 to 4294967295, not 0"),
            ("repeat = \"2\"", "8: `repeat` must be a whole number without quotes, not text"),
            ("concurrent = 2000", "8: `concurrent` is 2000, but can be at most 1024"),
            ("retry = { every = \"1s\" }", "8: `retry` has no `limit`"),
            ("retry = { every = \"1s\", limit = 2, until = \"x\" }", "8: `until` is unknown in `retry`"),
            ("capture = { \"a b\" = \"id\" }", "8: `a b` is not a valid name"),
            ("\n[step.expect]\nstatus = 1000", "10: `status` must be an HTTP status, such as 200, not 1000"),
            ("expect = { state = \"activ\" }", "8: `activ` is not a state; use one of: pending, active,"),
            ("expect = { held = \"yes\" }", "8: `held` must be true or false without quotes, not text"),
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
}

//! Reader of the configuration file: reads it key by key, and collects all mistakes.
//!
//! Code that needs a key reads it here, once, with its default. Everything else follows from these reads: the
//! variable and the flag that override the file, the unknown keys (which no code has read), and the complete
//! configuration with its defaults.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Environment, Flag, Mistake, Mistakes, Origin, keys};
use crate::observe::limits;
use spid_core::document::{
    self, Document, Item, Member, SyntaxError, UnknownKey, WrongType, did_you_mean, nearest,
};
use spid_core::span::Span;
use spid_hook::Secret;

/// Version since which removed keys have no effect.
const REMOVED_SINCE: &str = "0.2";

/// Variables with the prefix of overrides that have another meaning.
const NOT_OVERRIDES: [&str; 3] = ["SPID_LOG", "SPID_LOG_FORMAT", "SPID_CONFIG"];

/// Keys that were read, with their values, given or default. Secrets are not included, but their sources are.
pub(super) type Settings = BTreeMap<String, String>;

/// Result of reading a configuration.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) settings: Settings,
    /// Mistakes, in the order of the file.
    pub(super) mistakes: Vec<Mistake>,
    /// Warnings: the configuration works, but should be changed.
    pub(super) warnings: Vec<Mistake>,
    /// Names of the variables that override a key.
    variables: Vec<String>,
    /// Names of variables that had an effect in an earlier version.
    removed_variables: Vec<String>,
}

/// State of reading one configuration.
pub(super) struct Reader<'a> {
    document: Document<'a>,
    environment: &'a dyn Environment,
    flags: &'a [Flag],
    notes: RefCell<Findings>,
}

/// Value that was given for a key.
enum Given<'a> {
    File(Item<'a>),
    /// Text of a variable or a flag, which have no types.
    Text(String),
}

/// Creates the mistake for an error of the parser. The parser's message may quote the value, which may be a secret
/// key, and such a value must not reach a log.
fn syntax(text: &str, error: &SyntaxError) -> Mistake {
    // The name of the key helps the operator, but only if it cannot be a secret.
    let written =
        error.line.and_then(|line| text.lines().nth(line - 1)).and_then(|line| line.split_once('='));
    let name = written.map(|(name, _)| name.trim()).filter(|name| is_named_like_a_key(name, &[]));
    Mistake {
        key: name.unwrap_or_default().to_owned(),
        origin: Origin::File { line: error.line },
        text: format!("this is not TOML: {}", without_values(&error.message)),
    }
}

/// Returns true if a name resembles a configuration key. Any other name may be a pasted secret.
fn is_named_like_a_key(name: &str, known: &[&str]) -> bool {
    let is_word = |word: &str| word.len() <= 16 && word.bytes().all(|c| c.is_ascii_lowercase());
    !name.is_empty()
        && (name.split(['_', '.']).all(is_word) || nearest(name, known.iter().copied()).is_some())
}

/// Removes the text in double quotes from a message: a quoted value. Names are in backticks.
fn without_values(reason: &str) -> String {
    match (reason.find('"'), reason.rfind('"')) {
        // From the first to the last quote, because the value may contain quotes itself.
        (Some(from), Some(to)) if from < to => {
            let (head, tail) = (reason.get(..from), reason.get(to + 1..));
            format!("{}…{}", head.unwrap_or_default(), tail.unwrap_or_default())
        }
        _ => reason.to_owned(),
    }
}

/// Suggestion for an unknown name.
pub(super) fn unknown(what: &str, known: &[&str]) -> String {
    match nearest(what, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("use {}", known.join(", ")),
    }
}

/// Creates the mistake for a key that no code has read. Its name is shown only if it looks like a key: it may be a
/// pasted secret.
fn unknown_key(found: &UnknownKey) -> Mistake {
    let UnknownKey { table, key, line, known } = found;
    let (key, text) = match is_named_like_a_key(key, known) {
        true => (joined(table, key), format!("unknown key; {}", unknown(key, known))),
        false => {
            let known = known.join(", ");
            let text = format!("unknown key; its name is not shown, because it may be a secret; use {known}");
            (table.clone(), text)
        }
    };
    Mistake { key, origin: Origin::File { line: Some(*line) }, text }
}

/// Joins the name of a table and a key.
fn joined(table: &str, key: &str) -> String {
    match (table, key) {
        (path, "") => path.to_owned(),
        ("", key) => key.to_owned(),
        (path, key) => format!("{path}.{key}"),
    }
}

impl<'a> Reader<'a> {
    /// Parses the file.
    ///
    /// # Errors
    /// Returns all mistakes of syntax. Other mistakes are not searched for: the meaning of a file that is not TOML is
    /// unknown.
    pub(super) fn new(
        text: &'a str,
        source: &str,
        environment: &'a dyn Environment,
        flags: &'a [Flag],
    ) -> Result<Reader<'a>, Mistakes> {
        match Document::parse(text) {
            Ok(document) => Ok(Reader { document, environment, flags, notes: RefCell::default() }),
            Err(errors) => {
                let mistakes = errors.iter().map(|error| syntax(text, error)).collect();
                Err(Mistakes { source: source.to_owned(), mistakes })
            }
        }
    }

    pub(super) fn root(&self) -> Table<'_> {
        let entries = Some(self.document.root(""));
        Table { reader: self, path: String::new(), entries, line: None, single: true }
    }

    pub(super) fn environment(&self) -> &dyn Environment {
        self.environment
    }

    fn mistake(&self, key: String, origin: Origin, text: String) {
        self.notes.borrow_mut().mistakes.push(Mistake { key, origin, text });
    }

    /// Ends the reading: every key and variable that no code has read is a mistake.
    pub(super) fn finish(self) -> Findings {
        self.note_unknown_variables();
        let mut findings = self.notes.into_inner();
        findings.mistakes.extend(self.document.unknown_keys().iter().map(unknown_key));
        findings.mistakes.sort_by_key(place);
        findings.warnings.sort_by_key(place);
        findings
    }

    fn note_unknown_variables(&self) {
        let mut known = self.notes.borrow().variables.clone();
        known.sort();
        known.dedup();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let mut names = self.environment.names();
        // Names with `__` are overrides, and so are those that lack only an underscore. Other variables may belong to the
        // hooks.
        let lacks_underscore = |name: &str| known.iter().any(|known| known.replace("__", "_") == name);
        names.retain(|name| name.starts_with("SPID_") && (name.contains("__") || lacks_underscore(name)));
        names.retain(|name| !self.notes.borrow().removed_variables.contains(name));
        names.retain(|name| !known.contains(&name.as_str()) && !NOT_OVERRIDES.contains(&name.as_str()));
        names.sort();
        for name in names {
            let text = format!("unknown variable; {}", unknown(&name, &known));
            self.mistake(String::new(), Origin::Variable(name), text);
        }
    }
}

/// Table of the file, or a missing one.
pub(super) struct Table<'a> {
    reader: &'a Reader<'a>,
    path: String,
    entries: Option<document::Table<'a>>,
    line: Option<usize>,
    /// True if the table cannot be one of several: variables and flags can name its keys then.
    single: bool,
}

impl<'a> Table<'a> {
    /// Full name of a key of this table.
    pub(super) fn path(&self, key: &str) -> String {
        joined(&self.path, key)
    }

    pub(super) fn reader(&self) -> &'a Reader<'a> {
        self.reader
    }

    /// Returns true if the table is present.
    pub(super) fn is_there(&self) -> bool {
        self.entries.is_some()
    }

    /// Returns true if the key is present.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.item(key).is_some()
    }

    /// Returns true if the key is present, and a text.
    pub(super) fn is_text(&self, key: &'static str) -> bool {
        self.peek(key).is_some_and(|item| item.text().is_ok())
    }

    /// Returns true if the key is missing, or an empty list.
    pub(super) fn lacks(&self, key: &'static str) -> bool {
        self.peek(key).is_none_or(|item| item.list().is_ok_and(|list| list.is_empty()))
    }

    /// Value of a key in the file, which is known from now on.
    fn item(&self, key: &'static str) -> Option<Item<'a>> {
        self.entries.and_then(|entries| entries.get(key))
    }

    fn peek(&self, key: &str) -> Option<Item<'a>> {
        self.entries.and_then(|entries| entries.peek(key))
    }

    /// Reports a mistake about one of its keys, or about the table itself if the key is empty.
    pub(super) fn mistake(&self, key: &str, text: impl Into<String>) {
        // Without the key, the line of its table is the best position.
        let line = self.peek(key).map(Item::line).or(self.line);
        let mut origin = Origin::File { line };
        // An override is the effective value, so the mistake is in the variable or flag and not in the file.
        if self.single {
            origin = self.overridden(key).map_or(origin, |(origin, _)| origin);
        }
        self.reader.mistake(self.path(key), origin, text.into());
    }

    /// Reports a warning about the table: the configuration works, but should be changed.
    pub(super) fn warning(&self, text: impl Into<String>) {
        let warning =
            Mistake { key: self.path.clone(), origin: Origin::File { line: self.line }, text: text.into() };
        self.reader.notes.borrow_mut().warnings.push(warning);
    }

    /// Accepts a key of an earlier version for one release, so that an upgrade never prevents a start. A warning says
    /// that it has no effect. `variables` are the names of its variables, or of those of the keys in it.
    pub(super) fn removed(&self, key: &'static str, variables: &[&str]) {
        let text = format!("has no effect since {REMOVED_SINCE}; remove it");
        let mut notes = self.reader.notes.borrow_mut();
        // Read only if it is there: a key that was read is a suggestion for an unknown one.
        if self.peek(key).is_some()
            && let Some(item) = self.item(key)
        {
            let origin = Origin::File { line: Some(item.line()) };
            notes.warnings.push(Mistake { key: self.path(key), origin, text: text.clone() });
        }
        for name in variables {
            notes.removed_variables.push((*name).to_owned());
            if self.reader.environment.get(name).is_some() {
                let origin = Origin::Variable((*name).to_owned());
                notes.warnings.push(Mistake { key: String::new(), origin, text: text.clone() });
            }
        }
    }

    fn note(&self, key: &str, value: &impl Debug) {
        self.reader.notes.borrow_mut().settings.insert(self.path(key), format!("{value:?}"));
    }

    fn variable(&self, key: &str) -> String {
        format!("SPID_{}", self.path(key).replace('.', "__").to_uppercase())
    }

    /// Returns the value that overrides the file: of a flag, or else of a variable.
    fn overridden(&self, key: &str) -> Option<(Origin, String)> {
        let path = self.path(key);
        if let Some(flag) = self.reader.flags.iter().find(|flag| flag.key == path) {
            return Some((Origin::Flag(flag.name), flag.value.clone()));
        }
        let variable = self.variable(key);
        let value = self.reader.environment.get(&variable)?;
        Some((Origin::Variable(variable), value))
    }

    fn given(&self, key: &'static str) -> Option<Given<'a>> {
        let item = self.item(key);
        // Keys of the root and of lists have no variable.
        if self.single && !self.path.is_empty() {
            self.reader.notes.borrow_mut().variables.push(self.variable(key));
            if let Some((_, text)) = self.overridden(key) {
                return Some(Given::Text(text));
            }
        }
        item.map(Given::File)
    }

    /// Returns the value if it has the right type, and reports it otherwise.
    fn typed<T>(&self, key: &str, value: Result<T, WrongType>) -> Option<T> {
        value.map_err(|wrong| self.mistake(key, format!("the value {wrong}"))).ok()
    }

    fn written(&self, key: &'static str) -> Option<String> {
        match self.given(key)? {
            Given::Text(text) => Some(text),
            Given::File(item) => self.typed(key, item.text()).map(str::to_owned),
        }
    }

    /// Reads an optional text.
    pub(super) fn text(&self, key: &'static str) -> Option<String> {
        let text = self.written(key);
        self.note(key, &text);
        text
    }

    /// Reads a required text.
    pub(super) fn required(&self, key: &'static str) -> Option<String> {
        let text = self.text(key);
        match &text {
            // A value of the wrong type is present, and reported already.
            None if !self.has(key) => self.mistake(key, "the value is missing"),
            Some(text) if text.is_empty() => self.mistake(key, "the value is empty"),
            _ => {}
        }
        text
    }

    /// Reads an optional value that is written as text.
    pub(super) fn optional<T: Debug>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let parsed = self.written(key).map(|text| parse(&text));
        let value = parsed.and_then(|parsed| parsed.map_err(|wrong| self.mistake(key, wrong)).ok());
        self.note(key, &value);
        value
    }

    /// Reads a value that is written as text.
    pub(super) fn value<T: Debug>(
        &self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        // `optional` has noted the value without the default, so it is noted again.
        let value = self.optional(key, parse).unwrap_or(default);
        self.note(key, &value);
        value
    }

    /// Reads one of these words.
    pub(super) fn choice<T: Debug + Copy>(
        &self,
        key: &'static str,
        default: T,
        words: &[(&'static str, T)],
    ) -> T {
        self.value(key, default, |text| {
            let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
            found.ok_or_else(|| {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                let hint = did_you_mean(text, known.iter().copied());
                format!("`{text}` is not one of {}{hint}", known.join(", "))
            })
        })
    }

    /// Reads a duration that is not zero.
    pub(super) fn duration(&self, key: &'static str, default: Duration) -> Duration {
        self.value(key, default, |text| {
            span(text).ok_or_else(|| format!("`{text}` is not a time span, like 500ms, 3s, 10m, 24h or 30d"))
        })
    }

    /// Reads a list of durations that are not zero. `fault` describes the problem of a duration, if it has one.
    pub(super) fn durations(
        &self,
        key: &'static str,
        default: &[Duration],
        fault: impl Fn(Duration) -> Option<String>,
    ) -> Vec<Duration> {
        let texts = self.texts(key);
        let mut spans = Vec::new();
        for (index, text) in texts.iter().flatten().enumerate() {
            let wrong = match span(text) {
                None => Some("is not a time span, like 500ms, 3s, 10m, 24h or 30d".to_owned()),
                Some(wait) => fault(wait),
            };
            match wrong {
                Some(wrong) => self.mistake(key, format!("number {}, `{text}`, {wrong}", index + 1)),
                // Only valid durations are kept; the mistakes prevent a start anyway.
                None => spans.extend(span(text)),
            }
        }
        let spans = if texts.is_some() { spans } else { default.to_vec() };
        self.note(key, &spans);
        spans
    }

    /// Reads a number that is not zero.
    pub(super) fn count(&self, key: &'static str, default: usize) -> usize {
        let number = match self.given(key) {
            None => Some(default),
            Some(Given::Text(text)) => text.parse().ok(),
            Some(Given::File(item)) => item.whole().ok().and_then(|number| usize::try_from(number).ok()),
        };
        let number = number.filter(|number| *number > 0);
        if number.is_none() {
            self.mistake(key, "the value must be a whole number above zero");
        }
        let number = number.unwrap_or(default);
        self.note(key, &number);
        number
    }

    /// Reads true or false; the default is false.
    pub(super) fn flag(&self, key: &'static str) -> bool {
        let said = match self.given(key) {
            None => Some(false),
            Some(Given::Text(text)) => text.parse().ok(),
            Some(Given::File(item)) => item.boolean().ok(),
        };
        if said.is_none() {
            self.mistake(key, "the value must be true or false, without quotes");
        }
        self.note(key, &said.unwrap_or(false));
        said.unwrap_or(false)
    }

    /// Reads a list of texts; `None` if there is no list.
    pub(super) fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let texts = match self.given(key) {
            Some(Given::File(item)) => self.typed(key, texts_of(item)),
            // A variable has no syntax for lists.
            Some(Given::Text(_)) => {
                self.mistake(key, "a list can only be set in the file");
                None
            }
            None => None,
        };
        self.note(key, &texts);
        texts
    }

    /// Returns a table in this one. A missing table is empty.
    pub(super) fn table(&self, key: &'static str) -> Table<'a> {
        let (path, item) = (self.path(key), self.item(key));
        // A value that is no table is reported, and then treated as an empty table.
        let entries = item.and_then(|item| self.typed(key, item.table(&path)));
        let line = item.map(Item::line).or(self.line);
        Table { reader: self.reader, path, entries, line, single: self.single }
    }

    /// Reads a table by a type that this program does not know. A mistake names the key in the table, and never its
    /// value. A missing table is empty.
    pub(super) fn foreign(
        &self,
        key: &'static str,
        read: &dyn Fn(Spanned<DeTable<'_>>) -> Result<(), toml::de::Error>,
    ) {
        let (span, table) = match self.item(key).map(|item| (item.spanned().span(), item.spanned().get_ref()))
        {
            None => (0..0, DeTable::new()),
            Some((span, DeValue::Table(table))) => (span, table.clone()),
            Some((_, other)) => {
                return self.mistake(key, format!("the value {}", WrongType::new("a table", other)));
            }
        };
        // Only for the comparison at a reload: a value may be a secret.
        let mut hasher = DefaultHasher::new();
        hash(&table, &mut hasher);
        self.note(key, &hasher.finish());
        let Err(error) = read(Spanned::new(span, table.clone())) else { return };
        let text = without_values(error.message());
        match error.span().and_then(|at| Some((key_at(&table, &at)?, at))) {
            Some((inner, at)) => {
                let origin = Origin::File { line: Some(self.reader.document.line(at.start)) };
                self.reader.mistake(format!("{}.{inner}", self.path(key)), origin, text);
            }
            None => self.mistake(key, text),
        }
    }

    /// Reads a table of texts with names of the operator's choice. A text stands in the file, or is read from the file,
    /// variable or credential that a table names.
    pub(super) fn settings(
        &self,
        key: &'static str,
        fault: fn(&str) -> Option<&'static str>,
    ) -> Vec<(String, Secret)> {
        let members = self.item(key).and_then(|item| self.typed(key, item.members()));
        let mut settings = Vec::new();
        for Member { key: name, item, .. } in members.into_iter().flatten() {
            let path = format!("{}.{name}", self.path(key));
            let line = Some(item.line());
            if let Some(fault) = fault(name) {
                self.reader.mistake(self.path(key), Origin::File { line }, format!("`{name}`: {fault}"));
            }
            let value = match item.text() {
                Ok(text) => Some(Secret::new(text)),
                Err(_) => self
                    .member(path.clone(), item)
                    .and_then(|table| keys::secret(&table))
                    .map(|(_, value)| value),
            };
            match value {
                Some(value) if value.expose().contains('\0') => {
                    self.reader.mistake(path, Origin::File { line }, "the value contains a NUL".to_owned());
                }
                value => settings.extend(value.map(|value| (name.to_owned(), value))),
            }
        }
        // Only for the comparison at a reload: a value may be a secret.
        let mut hasher = DefaultHasher::new();
        settings.iter().for_each(|(name, value)| (name, value.expose()).hash(&mut hasher));
        self.note(key, &hasher.finish());
        settings
    }

    /// Returns the tables of a list. A single table counts as a list of one if `alone` is true.
    pub(super) fn tables(&self, key: &'static str, alone: bool) -> Vec<Table<'a>> {
        let Some(item) = self.item(key) else { return Vec::new() };
        let path = self.path(key);
        if alone && item.table(&path).is_ok() {
            return self.member(path, item).into_iter().collect();
        }
        let mut tables = Vec::new();
        match item.list() {
            Ok(list) => {
                for (index, item) in list.into_iter().enumerate() {
                    tables.extend(self.member(format!("{path}[{index}]"), item));
                }
            }
            Err(_) => {
                let wanted = if alone { "a table, or a list of tables" } else { "a list of tables" };
                let wrong = WrongType::new(wanted, item.spanned().get_ref());
                self.mistake(key, format!("the value {wrong}"));
            }
        }
        tables
    }

    fn member(&self, path: String, item: Item<'a>) -> Option<Table<'a>> {
        let line = Some(item.line());
        let entries = item.table(&path);
        let noted = entries.inspect_err(|wrong| {
            self.reader.mistake(path.clone(), Origin::File { line }, format!("the value {wrong}"));
        });
        // A list may have several tables, so no variable can name a key in one of them.
        Some(Table { reader: self.reader, entries: Some(noted.ok()?), path, line, single: false })
    }
}

/// Returns the place of a mistake in a list: by its line, or at the end without one.
fn place(mistake: &Mistake) -> usize {
    match mistake.origin {
        Origin::File { line: Some(line) } => line,
        _ => usize::MAX,
    }
}

/// Returns the texts of a list.
fn texts_of(item: Item<'_>) -> Result<Vec<String>, WrongType> {
    let wrong = || WrongType::new("a list of texts", item.spanned().get_ref());
    let list = item.list().map_err(|_| wrong())?;
    list.into_iter().map(|item| item.text().map(str::to_owned).map_err(|_| wrong())).collect()
}

/// Returns the path of the deepest key whose name or value contains this part of the file.
fn key_at(table: &DeTable<'_>, at: &Range<usize>) -> Option<String> {
    let contains = |span: &Range<usize>| span.start <= at.start && at.end <= span.end;
    table.iter().find_map(|(name, value)| {
        let inner = value.as_ref().as_table().and_then(|table| key_at(table, at));
        let name_span = name.span();
        let name: &str = name.as_ref();
        match inner {
            Some(inner) => Some(format!("{name}.{inner}")),
            None => (contains(&name_span) || contains(&value.span())).then(|| name.to_owned()),
        }
    })
}

/// Hashes the keys and values of a table, wherever they stand in the file.
fn hash(table: &DeTable<'_>, hasher: &mut DefaultHasher) {
    fn hash_value(value: &DeValue<'_>, hasher: &mut DefaultHasher) {
        match value {
            DeValue::Table(table) => hash(table, hasher),
            DeValue::Array(list) => {
                list.len().hash(hasher);
                list.iter().for_each(|value| hash_value(value.as_ref(), hasher));
            }
            other => format!("{other:?}").hash(hasher),
        }
    }
    table.len().hash(hasher);
    // The map is sorted by name.
    for (name, value) in table {
        let name: &str = name.as_ref();
        name.hash(hasher);
        hash_value(value.as_ref(), hasher);
    }
}

/// Parses a duration that is not zero.
fn span(text: &str) -> Option<Duration> {
    let Span(span) = text.parse().ok()?;
    (!span.is_zero() && span.as_secs() <= limits::SPAN_MAX_S).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_neither_zero_nor_without_end() {
        assert_eq!(span("1d 12h"), Some(Duration::from_secs(36 * 3_600)));
        for wrong in ["0s", "-3s", "40000d"] {
            assert_eq!(span(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_reason_is_told_without_the_value_in_it() {
        assert_eq!(without_values("expected `]`, found \"a \" b\" there"), "expected `]`, found … there");
        assert_eq!(without_values("expected `]`"), "expected `]`");
    }
}

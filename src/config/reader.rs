//! Reader of the configuration file: reads it key by key, and collects all mistakes.
//!
//! Code that needs a key reads it here, once, with its default. Everything else follows from these reads: the
//! variable and the flag that override the file, the unknown keys (which no code has read), and the complete
//! configuration with its defaults.
//!
//! The file is walked as a document and not deserialized. A deserializer ends at the first mistake, but an operator
//! at night needs all of them, each with its line.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Environment, Flag, Mistake, Mistakes, Origin};
use crate::observe::limits;

/// Variables with the prefix of overrides that have another meaning.
const NOT_OVERRIDES: [&str; 2] = ["SPID_LOG", "SPID_CONFIG"];

/// Keys that were read, with their values, given or default. Secrets are not included, but their sources are.
pub(super) type Settings = BTreeMap<String, String>;

#[derive(Default)]
struct Notes {
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
    settings: Settings,
    variables: Vec<String>,
}

/// Result of reading a configuration.
pub(super) struct Findings {
    pub(super) settings: Settings,
    /// Mistakes, in the order of the file.
    pub(super) mistakes: Vec<Mistake>,
    /// Warnings: the configuration works, but should be changed.
    pub(super) warnings: Vec<Mistake>,
}

/// State of reading one configuration.
pub(super) struct Reader<'a> {
    text: &'a str,
    environment: &'a dyn Environment,
    flags: &'a [Flag],
    notes: RefCell<Notes>,
}

/// Value that was given for a key.
enum Given<'a> {
    File(&'a Spanned<DeValue<'a>>),
    /// Text of a variable or a flag, which have no types.
    Text(String),
}

/// Parses a TOML document.
///
/// # Errors
/// Returns all mistakes of syntax. Other mistakes are not searched for: the meaning of a file that is not TOML is
/// unknown.
pub(super) fn document<'a>(text: &'a str, source: &str) -> Result<DeTable<'a>, Mistakes> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(document.into_inner());
    }
    let mistakes = errors.iter().map(|error| syntax(text, error)).collect();
    Err(Mistakes { source: source.to_owned(), mistakes })
}

/// Creates the mistake for an error of the parser. The parser's message may quote the value, which may be a secret
/// key, and such a value must not reach a log.
fn syntax(text: &str, error: &toml::de::Error) -> Mistake {
    let line = error.span().map(|span| line_of(text, &span));
    // The name of the key helps the operator, but only if it cannot be a secret.
    let written = line.and_then(|line| text.lines().nth(line - 1)).and_then(|line| line.split_once('='));
    let name = written.map(|(name, _)| name.trim()).filter(|name| is_named_like_a_key(name, &[]));
    Mistake {
        key: name.unwrap_or_default().to_owned(),
        origin: Origin::File { line },
        text: format!("this is not TOML: {}", without_values(error.message())),
    }
}

/// Returns true if a name resembles a configuration key. Any other name may be a pasted secret.
fn is_named_like_a_key(name: &str, known: &[&str]) -> bool {
    let is_word = |word: &str| word.len() <= 16 && word.bytes().all(|c| c.is_ascii_lowercase());
    !name.is_empty() && (name.split(['_', '.']).all(is_word) || meant(name, known.iter().copied()).is_some())
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

fn line_of(text: &str, span: &Range<usize>) -> usize {
    text.get(..span.start).unwrap_or(text).matches('\n').count() + 1
}

/// Known name that was probably meant.
pub(super) fn meant<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let near = |known: &&str| strsim::osa_distance(name, known);
    // About one typing error is allowed for every four characters.
    let nearest = known.into_iter().min_by_key(near)?;
    (near(&nearest) <= 1 + name.chars().count() / 4).then_some(nearest)
}

/// Suggestion for an unknown name.
pub(super) fn unknown(what: &str, known: &[&str]) -> String {
    match meant(what, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("use {}", known.join(", ")),
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, environment: &'a dyn Environment, flags: &'a [Flag]) -> Reader<'a> {
        Reader { text, environment, flags, notes: RefCell::default() }
    }

    pub(super) fn root(&'a self, document: &'a DeTable<'a>) -> Table<'a> {
        Table {
            reader: self,
            path: String::new(),
            entries: Some(document),
            line: None,
            single: true,
            asked: RefCell::default(),
        }
    }

    pub(super) fn environment(&self) -> &dyn Environment {
        self.environment
    }

    fn mistake(&self, key: String, origin: Origin, text: String) {
        self.notes.borrow_mut().mistakes.push(Mistake { key, origin, text });
    }

    /// Ends the reading. Returns the values and all mistakes, in the order of the file.
    pub(super) fn finish(self) -> (Settings, Vec<Mistake>) {
        let Findings { settings, mistakes, .. } = self.findings();
        (settings, mistakes)
    }

    /// Ends the reading. Returns the values, mistakes and warnings.
    pub(super) fn findings(self) -> Findings {
        self.note_unknown_variables();
        let Notes { mut mistakes, warnings, settings, .. } = self.notes.into_inner();
        // Mistakes without a line come last.
        mistakes.sort_by_key(|mistake| match mistake.origin {
            Origin::File { line: Some(line) } => line,
            _ => usize::MAX,
        });
        Findings { settings, mistakes, warnings }
    }

    fn note_unknown_variables(&self) {
        let known = self.notes.borrow().variables.clone();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let mut names = self.environment.names();
        // Only names with `__` can be overrides. Other variables may belong to the hooks.
        names.retain(|name| name.starts_with("SPID_") && name.contains("__"));
        names.retain(|name| !known.contains(&name.as_str()) && !NOT_OVERRIDES.contains(&name.as_str()));
        names.sort();
        for name in names {
            let text = format!("unknown variable; {}", unknown(&name, &known));
            self.mistake(String::new(), Origin::Variable(name), text);
        }
    }
}

/// Table of the file, or a missing one. When it is dropped, every key of it that no code has read is a mistake.
pub(super) struct Table<'a> {
    reader: &'a Reader<'a>,
    path: String,
    entries: Option<&'a DeTable<'a>>,
    line: Option<usize>,
    /// True if the table cannot be one of several: variables and flags can name its keys then.
    single: bool,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    /// Full name of one of its keys.
    pub(super) fn path(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            (path, "") => path.to_owned(),
            ("", key) => key.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
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
        self.asked.borrow_mut().push(key);
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    /// Returns true if the key is missing, or an empty list.
    pub(super) fn lacks(&self, key: &'static str) -> bool {
        let value = self.entries.and_then(|entries| entries.get(key));
        value.is_none_or(|value| value.as_ref().as_array().is_some_and(|list| list.is_empty()))
    }

    /// Reports a mistake about one of its keys, or about the table itself if the key is empty.
    pub(super) fn mistake(&self, key: &str, text: impl Into<String>) {
        let written = self.entries.and_then(|entries| entries.get(key));
        // Without the key, the line of its table is the best position.
        let line = written.map(|value| line_of(self.reader.text, &value.span())).or(self.line);
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
        self.asked.borrow_mut().push(key);
        // Keys of the root and of lists have no variable.
        if self.single && !self.path.is_empty() {
            self.reader.notes.borrow_mut().variables.push(self.variable(key));
            if let Some((_, text)) = self.overridden(key) {
                return Some(Given::Text(text));
            }
        }
        self.entries.and_then(|entries| entries.get(key)).map(Given::File)
    }

    /// Reports a value of the wrong type. Only its type is named, because the value may be a secret key.
    fn wrong_type(&self, key: &str, value: &DeValue<'_>, wanted: &str) {
        self.mistake(key, format!("the value must be {wanted}, not {}", type_of(value)));
    }

    fn written(&self, key: &'static str) -> Option<String> {
        match self.given(key)? {
            Given::Text(text) => Some(text),
            Given::File(value) => {
                let text = value.as_ref().as_str().map(str::to_owned);
                if text.is_none() {
                    self.wrong_type(key, value.as_ref(), "text in quotes");
                }
                text
            }
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
                format!("`{text}` is not one of {}", known.join(", "))
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
        let wanted = "a whole number above zero";
        let number = match self.given(key) {
            None => Some(default),
            Some(Given::Text(text)) => text.parse().ok(),
            Some(Given::File(value)) => whole(value.as_ref()),
        };
        let number = number.filter(|number| *number > 0);
        if number.is_none() {
            self.mistake(key, format!("the value must be {wanted}"));
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
            Some(Given::File(value)) => value.as_ref().as_bool(),
        };
        if said.is_none() {
            self.mistake(key, "the value must be true or false, without quotes");
        }
        self.note(key, &said.unwrap_or(false));
        said.unwrap_or(false)
    }

    /// Reads a list of texts; `None` if there is no list.
    pub(super) fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let wanted = "a list of texts";
        let texts = match self.given(key) {
            Some(Given::File(value)) => {
                let list = value.as_ref().as_array();
                let text = |value: &Spanned<DeValue<'_>>| value.as_ref().as_str().map(str::to_owned);
                let texts = list.and_then(|list| list.iter().map(text).collect::<Option<Vec<String>>>());
                if texts.is_none() {
                    self.wrong_type(key, value.as_ref(), wanted);
                }
                texts
            }
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
        self.asked.borrow_mut().push(key);
        let value = self.entries.and_then(|entries| entries.get(key));
        // A value that is no table is reported, and then treated as an empty table.
        let entries = value.and_then(|value| value.as_ref().as_table());
        if let (Some(value), None) = (value, entries) {
            self.wrong_type(key, value.as_ref(), "a table");
        }
        let line = value.map(|value| line_of(self.reader.text, &value.span())).or(self.line);
        let single = self.single;
        Table { reader: self.reader, path: self.path(key), entries, line, single, asked: RefCell::default() }
    }

    /// Reads a table by a type that this program does not know. A mistake names the key in the table, and never its
    /// value. A missing table is empty.
    pub(super) fn foreign(
        &self,
        key: &'static str,
        read: &dyn Fn(Spanned<DeTable<'_>>) -> Result<(), toml::de::Error>,
    ) {
        self.asked.borrow_mut().push(key);
        let value = self.entries.and_then(|entries| entries.get(key));
        let (span, table) = match value.map(|value| (value.span(), value.as_ref())) {
            None => (0..0, DeTable::new()),
            Some((span, DeValue::Table(table))) => (span, table.clone()),
            Some((_, other)) => return self.wrong_type(key, other, "a table"),
        };
        // Only for the comparison at a reload: a value may be a secret.
        let mut hasher = DefaultHasher::new();
        hash(&table, &mut hasher);
        self.note(key, &hasher.finish());
        let Err(error) = read(Spanned::new(span, table.clone())) else { return };
        let text = without_values(error.message());
        match error.span().and_then(|at| Some((key_at(&table, &at)?, at))) {
            Some((inner, at)) => {
                let origin = Origin::File { line: Some(line_of(self.reader.text, &at)) };
                self.reader.mistake(format!("{}.{inner}", self.path(key)), origin, text);
            }
            None => self.mistake(key, text),
        }
    }

    /// Returns the tables of a list. A single table counts as a list of one if `alone` is true.
    pub(super) fn tables(&self, key: &'static str, alone: bool) -> Vec<Table<'a>> {
        self.asked.borrow_mut().push(key);
        let Some(value) = self.entries.and_then(|entries| entries.get(key)) else { return Vec::new() };
        let numbered = |index: usize| format!("{}[{index}]", self.path(key));
        match value.as_ref() {
            DeValue::Array(list) => {
                let one = |(index, value)| self.member(numbered(index), value);
                list.iter().enumerate().filter_map(one).collect()
            }
            DeValue::Table(_) if alone => self.member(self.path(key), value).into_iter().collect(),
            other => {
                let wanted = if alone { "a table, or a list of tables" } else { "a list of tables" };
                self.wrong_type(key, other, wanted);
                Vec::new()
            }
        }
    }

    fn member(&self, path: String, value: &'a Spanned<DeValue<'a>>) -> Option<Table<'a>> {
        let line = Some(line_of(self.reader.text, &value.span()));
        let entries = value.as_ref().as_table();
        if entries.is_none() {
            let text = format!("the value must be a table, not {}", type_of(value.as_ref()));
            self.reader.mistake(path.clone(), Origin::File { line }, text);
        }
        let (reader, asked) = (self.reader, RefCell::default());
        // A list may have several tables, so no variable can name a key in one of them.
        Some(Table { reader, path, entries: Some(entries?), line, single: false, asked })
    }
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

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        for (name, _) in self.entries.into_iter().flat_map(|entries| entries.iter()) {
            // Keys that were never asked for are unknown.
            let (name, span): (&str, _) = (name.as_ref(), name.span());
            if asked.contains(&name) {
                continue;
            }
            let line = Some(line_of(self.reader.text, &span));
            // The name of an unknown key is shown only if it looks like a key: it may be a pasted secret.
            let (path, text) = match is_named_like_a_key(name, &asked) {
                true => (self.path(name), format!("unknown key; {}", unknown(name, &asked))),
                false => (
                    self.path(""),
                    format!(
                        "unknown key; its name is not shown, because it may be a secret; use {}",
                        asked.join(", ")
                    ),
                ),
            };
            self.reader.mistake(path, Origin::File { line }, text);
        }
    }
}

fn whole(value: &DeValue<'_>) -> Option<usize> {
    let number = value.as_integer()?;
    usize::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
}

fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Parses a duration; a day has 24 hours.
fn span(text: &str) -> Option<Duration> {
    let of_days = |text: &str| {
        let span = text.parse::<Span>().ok()?;
        span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()
    };
    // jiff's `SignedDuration` knows no days, so they are parsed as a `Span`.
    let signed = text.parse::<SignedDuration>().ok().or_else(|| of_days(text))?;
    let span = Duration::try_from(signed).ok()?;
    (!span.is_zero() && span.as_secs() <= limits::SPAN_MAX_S).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_may_be_counted_in_days() {
        let seconds = |text: &str| span(text).map(|span| span.as_secs());
        assert_eq!(seconds("3s"), Some(3));
        assert_eq!(seconds("30d"), Some(30 * 86_400));
        assert_eq!(seconds("1d 12h"), Some(36 * 3_600));
        for wrong in ["", "3", "0s", "-3s", "three", "1month", "40000d", "9223372036854775807s"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_near_miss_is_recognised_and_a_far_one_is_not() {
        let known = ["listen", "admin_listen", "reply_within"];
        assert_eq!(meant("lisen", known), Some("listen"));
        assert_eq!(meant("replywithin", known), Some("reply_within"));
        assert_eq!(meant("hook", known), None);
    }

    #[test]
    fn a_reason_is_told_without_the_value_in_it() {
        assert_eq!(without_values("expected `]`, found \"a \" b\" there"), "expected `]`, found … there");
        assert_eq!(without_values("expected `]`"), "expected `]`");
    }
}

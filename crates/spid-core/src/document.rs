//! TOML documents, read key by key: configurations and fixtures.
//!
//! A deserializer stops at the first mistake. A reader of a [`Document`] goes on after a mistake, and knows the line of
//! each value. Each table remembers the keys that were read from it. [`Document::unknown_keys`] returns all others.

use std::cell::RefCell;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// TOML document, and the keys that were read from it.
pub struct Document<'t> {
    text: &'t str,
    root: DeTable<'t>,
    opened: RefCell<Vec<OpenedTable>>,
}

/// Keys of a table that was opened.
struct OpenedTable {
    name: String,
    at: usize,
    /// Keys in the document, each with its position.
    keys: Vec<(String, usize)>,
    read: Vec<&'static str>,
}

/// Mistake of syntax. The message can quote a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line, from 1.
    pub line: Option<usize>,
    /// Message of the parser.
    pub message: String,
}

/// Key that no reader has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// Name of the table, as the reader has given it.
    pub table: String,
    /// The unknown key.
    pub key: String,
    /// Line of the key, from 1.
    pub line: usize,
    /// Keys that were read from this table.
    pub known: Vec<&'static str>,
}

/// Value of a wrong type. Only its type is named, because the value may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongType {
    wanted: &'static str,
    found: &'static str,
}

impl WrongType {
    /// Creates the error for a value that should have been `wanted`.
    pub fn new(wanted: &'static str, value: &DeValue<'_>) -> WrongType {
        let found = match value {
            DeValue::String(_) => "text",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        WrongType { wanted, found }
    }
}

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must be {}, not {}", self.wanted, self.found)
    }
}

impl<'t> Document<'t> {
    /// Parses a document.
    ///
    /// # Errors
    /// All mistakes of syntax, sorted by line. The rest of the document has no certain meaning then.
    pub fn parse(text: &'t str) -> Result<Document<'t>, Vec<SyntaxError>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Document { text, root: root.into_inner(), opened: RefCell::default() });
        }
        let mut found = Vec::new();
        for error in errors {
            let line = error.span().map(|span| line_of(text, span.start));
            found.push(SyntaxError { line, message: error.message().to_owned() });
        }
        found.sort_by_key(|error| error.line);
        Err(found)
    }

    /// Opens the table of the whole document. `name` is for [`UnknownKey::table`].
    pub fn root(&self, name: &str) -> Table<'_> {
        self.open(name, 0, &self.root)
    }

    /// Returns the line of a position, from 1.
    pub fn line(&self, at: usize) -> usize {
        line_of(self.text, at)
    }

    /// Returns the keys that were in an opened table and not read, in the order of the document.
    pub fn unknown_keys(&self) -> Vec<UnknownKey> {
        let mut unknown = Vec::new();
        for table in self.opened.borrow().iter() {
            for (key, at) in &table.keys {
                if !table.read.contains(&key.as_str()) {
                    let (name, known) = (table.name.clone(), table.read.clone());
                    unknown.push((
                        *at,
                        UnknownKey { table: name, key: key.clone(), line: self.line(*at), known },
                    ));
                }
            }
        }
        unknown.sort_by_key(|(at, _)| *at);
        unknown.into_iter().map(|(_, key)| key).collect()
    }

    fn open<'d>(&'d self, name: &str, at: usize, entries: &'d DeTable<'d>) -> Table<'d> {
        let mut opened = self.opened.borrow_mut();
        // A table that is opened twice is one table: each reader may read a part of its keys.
        let known = opened.iter().position(|table| table.at == at && table.name == name);
        let index = known.unwrap_or_else(|| {
            let key =
                |name: &Spanned<_>| (AsRef::<str>::as_ref(name.get_ref()).to_owned(), name.span().start);
            let keys = entries.keys().map(key).collect();
            opened.push(OpenedTable { name: name.to_owned(), at, keys, read: Vec::new() });
            opened.len() - 1
        });
        Table { document: self, entries, index }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

/// Table of a document.
#[derive(Clone, Copy)]
pub struct Table<'d> {
    document: &'d Document<'d>,
    entries: &'d DeTable<'d>,
    index: usize,
}

impl<'d> Table<'d> {
    /// Gives the table another name for [`UnknownKey::table`].
    pub fn rename(&self, name: String) {
        if let Some(table) = self.document.opened.borrow_mut().get_mut(self.index) {
            table.name = name;
        }
    }

    /// Returns the name and the position of the table.
    pub fn place(&self) -> (String, usize) {
        let opened = self.document.opened.borrow();
        opened.get(self.index).map(|table| (table.name.clone(), table.at)).unwrap_or_default()
    }

    /// Reads a key: it is known from now on.
    pub fn get(&self, key: &'static str) -> Option<Item<'d>> {
        if let Some(table) = self.document.opened.borrow_mut().get_mut(self.index)
            && !table.read.contains(&key)
        {
            table.read.push(key);
        }
        self.peek(key)
    }

    /// Returns a value without making its key known.
    pub fn peek(&self, key: &str) -> Option<Item<'d>> {
        self.entries.get(key).map(|value| Item { document: self.document, value })
    }
}

/// Value in a document.
#[derive(Clone, Copy)]
pub struct Item<'d> {
    document: &'d Document<'d>,
    value: &'d Spanned<DeValue<'d>>,
}

/// Member of a table that can have any keys.
pub struct Member<'d> {
    /// The key.
    pub key: &'d str,
    /// Position of the key.
    pub at: usize,
    /// The value.
    pub item: Item<'d>,
}

impl<'d> Item<'d> {
    /// Returns the position of the value.
    pub fn at(self) -> usize {
        self.value.span().start
    }

    /// Returns the line of the value, from 1.
    pub fn line(self) -> usize {
        self.document.line(self.at())
    }

    /// Returns the value of the parser.
    pub fn spanned(self) -> &'d Spanned<DeValue<'d>> {
        self.value
    }

    /// Returns the text.
    ///
    /// # Errors
    /// [`WrongType`].
    pub fn text(self) -> Result<&'d str, WrongType> {
        self.value.get_ref().as_str().ok_or_else(|| self.not("text in quotes"))
    }

    /// Returns the boolean.
    ///
    /// # Errors
    /// [`WrongType`].
    pub fn boolean(self) -> Result<bool, WrongType> {
        self.value.get_ref().as_bool().ok_or_else(|| self.not("true or false without quotes"))
    }

    /// Returns the number.
    ///
    /// # Errors
    /// [`WrongType`], also if the number is negative or has more than 64 bits.
    pub fn whole(self) -> Result<u64, WrongType> {
        let wanted = "a whole number without quotes";
        let number = self.value.get_ref().as_integer().ok_or_else(|| self.not(wanted))?;
        u64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map_err(|_| WrongType { wanted, found: "a negative number or one above 2^64" })
    }

    /// Returns the values of the list.
    ///
    /// # Errors
    /// [`WrongType`].
    pub fn list(self) -> Result<Vec<Item<'d>>, WrongType> {
        let list = self.value.get_ref().as_array().ok_or_else(|| self.not("a list"))?;
        Ok(list.iter().map(|value| Item { document: self.document, value }).collect())
    }

    /// Opens the table. `name` is for [`UnknownKey::table`].
    ///
    /// # Errors
    /// [`WrongType`].
    pub fn table(self, name: &str) -> Result<Table<'d>, WrongType> {
        let table = self.value.get_ref().as_table().ok_or_else(|| self.not("a table"))?;
        Ok(self.document.open(name, self.at(), table))
    }

    /// Returns the members of a table that can have any keys, in the order of the document.
    ///
    /// # Errors
    /// [`WrongType`].
    pub fn members(self) -> Result<Vec<Member<'d>>, WrongType> {
        let table = self.value.get_ref().as_table().ok_or_else(|| self.not("a table"))?;
        let mut members = Vec::new();
        for (key, value) in table {
            let item = Item { document: self.document, value };
            members.push(Member { key: key.get_ref(), at: key.span().start, item });
        }
        members.sort_by_key(|member| member.at);
        Ok(members)
    }

    fn not(self, wanted: &'static str) -> WrongType {
        WrongType::new(wanted, self.value.get_ref())
    }
}

/// Returns the known name that was probably meant. About one typing error is allowed for every four characters; case is
/// ignored.
pub fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let name = name.to_lowercase();
    let distance = |known: &str| strsim::osa_distance(&name, &known.to_lowercase());
    let nearest = known.into_iter().min_by_key(|known| distance(known))?;
    (distance(nearest) <= 1 + name.chars().count() / 4).then_some(nearest)
}

/// Returns `; did you mean …?` if a known name is near, else an empty text.
pub fn did_you_mean<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> String {
    nearest(name, known).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_keys_are_unknown_and_have_their_line() {
        let document = Document::parse("a = 1\nb = 2\n[t]\nc = 3\nd = 4\n[unopened]\ne = 5\n").unwrap();
        let root = document.root("the file");
        assert!(root.get("a").is_some() && root.get("t").is_some() && root.get("unopened").is_some());
        assert!(root.get("missing").is_none());
        let table = root.get("t").unwrap().table("t").unwrap();
        assert!(table.get("c").is_some() && table.peek("d").is_some());
        let unknown = document.unknown_keys();
        let found: Vec<_> = unknown.iter().map(|it| (it.table.as_str(), it.key.as_str(), it.line)).collect();
        assert_eq!(found, [("the file", "b", 2), ("t", "d", 5)]);
        assert_eq!(unknown[0].known, ["a", "t", "unopened", "missing"]);
    }

    #[test]
    fn table_that_is_opened_twice_is_one_table() {
        let document = Document::parse("t = { a = 1, b = 2 }").unwrap();
        for key in ["a", "b"] {
            document.root("").get("t").unwrap().table("t").unwrap().get(key).unwrap();
        }
        assert_eq!(document.unknown_keys(), []);
    }

    #[test]
    fn wrong_type_names_both_types() {
        let document = Document::parse("n = 1_0\nminus = -1\nt = \"x\"\nl = [true]\nhex = 0x1f\n").unwrap();
        let item = |key| document.root("").get(key).unwrap();
        assert_eq!((item("n").whole(), item("hex").whole()), (Ok(10), Ok(31)));
        assert_eq!((item("t").text(), item("l").list().unwrap()[0].boolean()), (Ok("x"), Ok(true)));
        for (wrong, message) in [
            (item("n").text().unwrap_err(), "must be text in quotes, not a number"),
            (item("t").whole().unwrap_err(), "must be a whole number without quotes, not text"),
            (
                item("minus").whole().unwrap_err(),
                "must be a whole number without quotes, not a negative number or one above 2^64",
            ),
            (item("l").boolean().unwrap_err(), "must be true or false without quotes, not a list"),
        ] {
            assert_eq!(wrong.to_string(), message);
        }
        assert!(item("t").table("").is_err() && item("t").members().is_err() && item("t").list().is_err());
    }

    #[test]
    fn syntax_errors_have_lines() {
        let Err(errors) = Document::parse("a = 1\na = 2\nb = [\n") else { panic!("no error") };
        assert!(errors.iter().any(|error| error.line == Some(2)), "{errors:?}");
    }

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        assert_eq!(nearest("lisen", ["listen", "admin_listen"]), Some("listen"));
        assert_eq!(nearest("replywithin", ["listen", "reply_within"]), Some("reply_within"));
        assert_eq!(nearest("hook", ["listen", "admin_listen", "reply_within"]), None);
        assert_eq!(did_you_mean("statsu", ["status", "json"]), "; did you mean `status`?");
        assert_eq!(did_you_mean("SKUID", ["skuId"]), "; did you mean `skuId`?");
        assert_eq!(did_you_mean("colour", ["status", "json"]), "");
        assert_eq!(did_you_mean("x", []), "");
    }
}

//! `[[endpoint]]`: a path, one seller account, its keys.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::front;
use super::keys::endpoint_keys;
use super::reader::{Table, unknown};
use crate::dialect::{self, Dialect, Options, SuccessAs};
use crate::front::Network;
use crate::http::Url;
use crate::intake::Endpoint;

/// The endpoints as they stand in the file.
pub(super) struct Endpoints {
    /// Those without a mistake, each with its path.
    pub(super) sound: Vec<(String, Endpoint)>,
    /// The names of all.
    pub(super) names: Vec<String>,
    /// The networks that may call those which do not take calls from everywhere, by their names.
    pub(super) allow: HashMap<Arc<str>, Vec<Network>>,
}

pub(super) fn endpoints(root: &Table<'_>) -> Endpoints {
    let tables = root.tables("endpoint", false);
    if root.lacks("endpoint") {
        root.mistake("endpoint", "there is none: add an [[endpoint]] with name, path, dialect and keys");
    }
    let (mut names, mut paths, mut sound) = (Vec::new(), Vec::new(), Vec::new());
    let mut allow = HashMap::new();
    for table in tables {
        let name = table.required("name").unwrap_or_default();
        if !name.is_empty() && names.contains(&name) {
            table.mistake("name", format!("`{name}` is the name of an earlier endpoint"));
        }
        let path = path(&table).unwrap_or_default();
        if !path.is_empty() && paths.contains(&path) {
            table.mistake("path", format!("`{path}` is the path of an earlier endpoint"));
        }
        sound.extend(endpoint(&table, &name).map(|endpoint| (path.clone(), endpoint)));
        allow.extend(front::allow(&table).map(|networks| (Arc::from(name.as_str()), networks)));
        names.push(name);
        paths.push(path);
    }
    Endpoints { sound, names, allow }
}

fn endpoint(table: &Table<'_>, name: &str) -> Option<Endpoint> {
    let dialect = dialect(table);
    let account = table.text("account").unwrap_or_else(|| name.to_owned());
    let options = options(table);
    let keys = endpoint_keys(table)?;
    Some(Endpoint { name: name.into(), account: account.into(), dialect: dialect?, keys, options })
}

fn path(table: &Table<'_>) -> Option<String> {
    let path = table.required("path")?;
    if !path.is_empty() && (!path.starts_with('/') || path.contains(['?', '#', ' '])) {
        let text = format!("`{path}` is not a path: it begins with `/` and has no `?`, `#` or space");
        table.mistake("path", text);
    }
    Some(path)
}

fn dialect(table: &Table<'_>) -> Option<&'static dyn Dialect> {
    let name = table.required("dialect")?;
    let dialect = dialect::by_name(&name);
    if dialect.is_none() && !name.is_empty() {
        let known: Vec<&str> = dialect::names().collect();
        table.mistake("dialect", format!("`{name}` is not a dialect; {}", unknown(&name, &known)));
    }
    dialect
}

fn options(table: &Table<'_>) -> Options {
    let default = Options::default();
    let zone = |name: &str| {
        TimeZone::get(name).map_err(|_| format!("`{name}` is not a time zone, like Asia/Shanghai or UTC"))
    };
    let url = |text: &str| match text.parse::<Url>() {
        Ok(_) => Ok(text.to_owned()),
        Err(wrong) => Err(format!("it is not the URL of this endpoint as a browser reaches it: {wrong}")),
    };
    Options {
        timezone: table.value("timezone", default.timezone, zone),
        success_as: table.choice(
            "success_as",
            default.success_as,
            &[("boolean", SuccessAs::Boolean), ("string", SuccessAs::String)],
        ),
        public_url: table.optional("public_url", url),
    }
}

//! Keys of earlier versions that have no effect any more. They are accepted with a warning for one release, so that an
//! upgrade never prevents a start.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Environment, Mistake, Origin};

/// Version since which they have no effect.
const SINCE: &str = "0.2";

/// Variables that set such a key.
const VARIABLES: [&str; 3] =
    ["SPID_POLICY__KEY_UNUSED_AFTER", "SPID_RATE__PER_ADDRESS", "SPID_RATE__PER_ENDPOINT"];

/// Environment without the variables of removed keys, which would be unknown.
pub(super) struct WithoutRemoved<'e>(pub(super) &'e dyn Environment);

impl Environment for WithoutRemoved<'_> {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.0.names();
        names.retain(|name| !VARIABLES.contains(&name.as_str()));
        names
    }
}

/// Takes removed keys out of the document. Returns a warning for each, and for each of their variables.
pub(super) fn take(text: &str, document: &mut DeTable<'_>, environment: &dyn Environment) -> Vec<Mistake> {
    let mut found = Vec::new();
    if let Some(rate) = document.remove("rate") {
        found.push(("rate", rate.span()));
    }
    if let Some(DeValue::Table(policy)) = document.get_mut("policy").map(Spanned::get_mut)
        && let Some(unused_after) = policy.remove("key_unused_after")
    {
        found.push(("policy.key_unused_after", unused_after.span()));
    }
    let mut warnings = Vec::new();
    for (key, span) in found {
        let before = text.get(..=span.start).unwrap_or(text);
        warnings.push(warning(key, Origin::File { line: Some(before.lines().count()) }));
    }
    for variable in VARIABLES.into_iter().filter(|variable| environment.get(variable).is_some()) {
        warnings.push(warning("", Origin::Variable(variable.to_owned())));
    }
    warnings
}

fn warning(key: &str, origin: Origin) -> Mistake {
    let text = format!("has no effect since {SINCE}; remove it");
    Mistake { key: key.to_owned(), origin, text }
}

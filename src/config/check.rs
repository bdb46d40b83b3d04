//! Everything a start would trip over, looked at without a start.

use std::path::Path;

use super::{Config, Environment, Mistake, Mistakes, Origin, store_of};
use crate::hook::AnyHook;
use crate::store;

/// A configuration a daemon would start with.
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// What it would start with all the same, and somebody should know.
    pub warnings: Vec<String>,
}

/// Reads a configuration as [`Config::load`] does, and looks at the database and the sealing key as a
/// start would. Nothing is bound, made or changed; a daemon may be running.
///
/// # Errors
/// Every mistake at once.
pub fn check(path: &Path, environment: &dyn Environment, hook: Option<AnyHook>) -> Result<Checked, Mistakes> {
    let config = Config::load(path, environment, &[], hook);
    let (wrong, warnings) = look_at_store(path, environment);
    match config {
        Ok(config) if wrong.is_empty() => Ok(Checked { config, warnings }),
        Ok(_) => Err(Mistakes { source: path.display().to_string(), mistakes: wrong }),
        Err(mut mistakes) => {
            mistakes.mistakes.extend(wrong);
            Err(mistakes)
        }
    }
}

/// What is wrong with the store, and what is to be known of it. Where it is not even known which store,
/// reading the configuration has said so.
fn look_at_store(path: &Path, environment: &dyn Environment) -> (Vec<Mistake>, Vec<String>) {
    let Ok((database, options)) = store_of(path, environment) else { return (Vec::new(), Vec::new()) };
    let mut mistakes = Vec::new();
    let mut mistake = |key: &str, text: String| {
        mistakes.push(Mistake { key: key.to_owned(), origin: Origin::File { line: None }, text });
    };
    let is_sealed = store::check_database(&database);
    let is_sealed = is_sealed.map_err(|wrong| mistake("store.path", wrong.to_string())).unwrap_or(false);
    let there = store::check_sealing_key(&database, &options);
    let there = there.map_err(|wrong| mistake("store.sealing_key", wrong.to_string())).unwrap_or(true);
    let mut warnings = Vec::new();
    if is_sealed && !there {
        warnings.push("the sealing key of the database is missing: a start makes a new one, and passwords given out before cannot be told again".to_owned());
    }
    (mistakes, warnings)
}

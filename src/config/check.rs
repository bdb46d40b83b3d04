//! Everything a start would trip over, looked at without a start.

use std::path::Path;

use super::reader::Table;
use super::{Config, Environment, Mistakes, text_of};
use crate::hook::AnyHook;
use crate::store::{self, StoreOptions};

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
    let mut warnings = Vec::new();
    let look = |table: &Table<'_>, database: &Path, options: &StoreOptions| {
        warnings.extend(look_at_store(table, database, options));
    };
    let source = path.display().to_string();
    let config = Config::parse_and(&text_of(path)?, &source, environment, &[], hook, look)?;
    Ok(Checked { config, warnings })
}

fn look_at_store(table: &Table<'_>, database: &Path, options: &StoreOptions) -> Option<String> {
    let is_sealed = store::check_database(database).map_err(|wrong| table.mistake("path", wrong.to_string()));
    // Beside a database that cannot be, no key can be: that is said already.
    if is_sealed.is_err() && options.sealing_key.is_none() {
        return None;
    }
    let has_key = store::check_sealing_key(database, options);
    let has_key = has_key.map_err(|wrong| table.mistake("sealing_key", wrong.to_string()));
    (is_sealed == Ok(true) && has_key == Ok(false)).then(|| "the sealing key of the database is missing: a start makes a new one, and passwords given out before cannot be told again".to_owned())
}

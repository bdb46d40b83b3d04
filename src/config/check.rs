//! Configuration check: finds everything that would make a start fail, without a start.

use std::path::Path;

use super::reader::Table;
use super::{Config, Environment, InProcess, Mistake, Mistakes, Origin, text_of};
use crate::serve::intake::Orphans;
use crate::store::encryption::KeyId;
use crate::store::{self, Sealed, StoreOptions};

/// Configuration that a daemon would start with.
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// Problems that do not prevent a start, but that the operator should know.
    pub warnings: Vec<String>,
}

/// Reads a configuration as [`Config::load`] does, and checks the database and the sealing keys as a start would.
/// Nothing is bound, created or changed; a daemon may be running.
///
/// # Errors
/// Returns all mistakes at once.
pub fn check(
    path: &Path,
    environment: &dyn Environment,
    hook: Option<InProcess>,
) -> Result<Checked, Mistakes> {
    let mut warnings = Vec::new();
    let look = |table: &Table<'_>, database: &Path, options: &StoreOptions| {
        warnings.extend(look_at_store(table, database, options));
    };
    let source = path.display().to_string();
    let config = Config::parse_and(&text_of(path)?, &source, environment, &[], hook, look)?;
    // Only a configuration without other mistakes has a complete list of endpoints.
    check_accounts(&config, source)?;
    warnings.extend(config.warnings.iter().cloned());
    Ok(Checked { config, warnings })
}

/// Checks that an endpoint serves every account with live instances.
fn check_accounts(config: &Config, source: String) -> Result<(), Mistakes> {
    let mistake =
        |text: String| Mistake { key: "endpoint".to_owned(), origin: Origin::File { line: None }, text };
    let unserved = |served: &[&str]| store::unserved_accounts(&config.store_path, served);
    let mistakes: Vec<Mistake> =
        match Orphans::find(&config.live.endpoints, &config.retired_accounts, unserved) {
            Ok(None) => return Ok(()),
            Ok(Some(orphans)) => orphans.lines().map(mistake).collect(),
            Err(error) => vec![mistake(error.to_string())],
        };
    Err(Mistakes { source, mistakes })
}

fn look_at_store(table: &Table<'_>, database: &Path, options: &StoreOptions) -> Vec<String> {
    let sealed =
        store::check_database(database, options).map_err(|wrong| table.mistake("path", wrong.to_string()));
    // If the database cannot be used, its folder has no key either. That mistake is reported already.
    if sealed.is_err() && options.sealing_keys.is_empty() {
        return Vec::new();
    }
    let key = if options.is_keeping_its_own_key() { "sealing_key" } else { "sealing_keys" };
    let known = store::check_sealing_keys(database, options);
    let Ok(known) = known.map_err(|wrong| table.mistake(key, wrong.to_string())) else { return Vec::new() };
    let sealed = sealed.unwrap_or_default();
    let Some(known) = known else {
        let lost = sealed.iter().any(|(_, count)| *count > 0);
        return lost.then(|| "the sealing key of the database is missing: a start creates a new one, and stored passwords cannot be repeated".to_owned()).into_iter().collect();
    };
    // Answers of a key that is not configured do not prevent a start, but their passwords cannot be decrypted.
    let mut warnings: Vec<String> = of_unnamed(&sealed, database, &known).into_iter().collect();
    let unknown =
        sealed.into_iter().filter_map(|(id, count)| Some((id.filter(|id| !known.contains(id))?, count)));
    warnings.extend(unknown.map(|(id, count)| format!("{count} answers are encrypted with key {id}, which `store.sealing_keys` does not list: their passwords cannot be decrypted")));
    warnings
}

/// Warning about data without a key id: most likely the key file beside the database encrypted it, but is not listed.
fn of_unnamed(sealed: &Sealed, database: &Path, known: &[KeyId]) -> Option<String> {
    let count = sealed.get(&None).filter(|count| **count > 0)?;
    let key = StoreOptions::unlisted_key(database, known)?;
    Some(format!(
        "{count} answers of an older spid have no key id; `{}` exists and `store.sealing_keys` does not list it: list it until `spid seal rotate` has re-encrypted them",
        key.display()
    ))
}

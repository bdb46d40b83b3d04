//! Where keys come from: a file, a variable, a credential; never the configuration itself.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Environment;
use super::reader::Table;
use crate::files;
use crate::limits;
use crate::seal::KeySource;
use crate::signature::{Key, Keys, Secret, WebhookKey, WebhookKeys};

const NO_KEY: &str = "there is none: give one as { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }";

const ONE_SOURCE: &str =
    "a key has exactly one of `file`, `env` and `credential`; it is never written here itself";

/// The keys of an endpoint, the current one first.
pub(super) fn endpoint_keys(endpoint: &Table<'_>) -> Option<Keys> {
    let tables = endpoint.tables("keys", false);
    if endpoint.lacks("keys") {
        endpoint.mistake("keys", NO_KEY);
    }
    let mut labels = HashSet::new();
    let count = tables.len();
    let keys: Vec<Key> = tables
        .into_iter()
        .enumerate()
        .filter_map(|(index, table)| {
            let label = table.text("label").unwrap_or_else(|| usual_label(index));
            if label.is_empty() {
                table.mistake("label", "it is empty");
            } else if !labels.insert(label.clone()) {
                table.mistake("label", format!("`{label}` is the label of an earlier key"));
            }
            let (member, secret) = secret(&table)?;
            Key::new(label, secret).map_err(|wrong| table.mistake(member, wrong.to_string())).ok()
        })
        .collect();
    if keys.len() == count { Keys::new(keys) } else { None }
}

/// What a key is called by its place alone: a label is shown everywhere, so nothing of the key is in it.
fn usual_label(index: usize) -> String {
    match index {
        0 => "current".to_owned(),
        1 => "previous".to_owned(),
        _ => format!("previous-{index}"),
    }
}

/// The secrets of a hook: one, or a list of them while it is changed.
pub(super) fn webhook_keys(hook: &Table<'_>) -> Option<WebhookKeys> {
    let tables = hook.tables("secret", true);
    if hook.lacks("secret") {
        let text = format!("{NO_KEY}; make one with `echo whsec_$(openssl rand -base64 32)`");
        hook.mistake("secret", text);
    }
    let count = tables.len();
    let keys: Vec<WebhookKey> = tables
        .into_iter()
        .filter_map(|table| {
            if table.has("label") {
                table.mistake("label", "the secret of a hook has no label");
            }
            let (member, secret) = secret(&table)?;
            WebhookKey::new(&secret).map_err(|wrong| table.mistake(member, wrong.to_string())).ok()
        })
        .collect();
    if keys.len() == count { WebhookKeys::new(keys) } else { None }
}

/// The secret a table leads to, and the key it is named under.
pub(super) fn secret(table: &Table<'_>) -> Option<(&'static str, Secret)> {
    let environment = table.reader().environment();
    let (member, secret) = match (table.text("file"), table.text("env"), table.text("credential")) {
        (Some(path), None, None) => ("file", read_key_file(Path::new(&path))),
        (None, Some(name), None) => ("env", variable(environment, &name)),
        (None, None, Some(name)) => ("credential", credential(environment, &name)),
        _ => {
            table.mistake("", ONE_SOURCE);
            return None;
        }
    };
    secret.map(|secret| (member, secret)).map_err(|wrong| table.mistake(member, wrong)).ok()
}

/// Where the sealing keys come from, the current one first; none when the one beside the database will do.
/// The file of `sealing_key` comes behind those that are listed, and is not made then. They are not read here: whoever reads the store need not be able to.
pub(super) fn sealing_keys(store: &Table<'_>) -> Vec<KeySource> {
    let path = |text: &str| match text {
        "" => Err("it is empty".to_owned()),
        text => Ok(PathBuf::from(text)),
    };
    let own = store.optional("sealing_key", path);
    let listed: Vec<KeySource> = store.tables("sealing_keys", false).iter().filter_map(sealing_key).collect();
    let own = own.map(|own| if listed.is_empty() { KeySource::Own(own) } else { KeySource::File(own) });
    listed.into_iter().chain(own).collect()
}

fn sealing_key(table: &Table<'_>) -> Option<KeySource> {
    let environment = table.reader().environment();
    match (table.text("file"), table.text("env"), table.text("credential")) {
        (Some(path), None, None) => Some(KeySource::File(PathBuf::from(path))),
        (None, Some(name), None) => Some(KeySource::Text {
            text: variable(environment, &name),
            name: format!("of the variable `{name}`"),
        }),
        (None, None, Some(name)) => Some(match credential_file(environment, &name) {
            Ok(path) => KeySource::File(path),
            Err(why) => KeySource::Text { name: format!("of the credential `{name}`"), text: Err(why) },
        }),
        _ => {
            table.mistake("", ONE_SOURCE);
            None
        }
    }
}

fn variable(environment: &dyn Environment, name: &str) -> Result<Secret, String> {
    let value = environment.get(name).map(Secret::new);
    value.ok_or_else(|| format!("the environment variable `{name}` is not set, or not text"))
}

fn credential(environment: &dyn Environment, name: &str) -> Result<Secret, String> {
    read_key_file(&credential_file(environment, name)?)
}

/// The file of a systemd credential: it lies in the folder the unit was given.
pub(super) fn credential_file(environment: &dyn Environment, name: &str) -> Result<PathBuf, String> {
    let folder = environment.get("CREDENTIALS_DIRECTORY").ok_or(
        "there is no CREDENTIALS_DIRECTORY: is this running as a systemd unit with LoadCredential=?",
    )?;
    if name.contains('/') || name.is_empty() {
        return Err(format!("`{name}` is not the name of a credential"));
    }
    Ok(Path::new(&folder).join(name))
}

/// Reads the key file of a configuration: a regular file, because a daemon must not wait for one.
fn read_key_file(path: &Path) -> Result<Secret, String> {
    key_in(path, files::open(path))
}

/// Reads a key file that was named on the command line, which may be a pipe. One line ending at its end is not part
/// of the key.
///
/// # Errors
/// What is wrong with the file, never what is in it.
pub fn read_key(path: &Path) -> Result<Secret, String> {
    key_in(path, File::open(path))
}

fn key_in(path: &Path, file: std::io::Result<File>) -> Result<Secret, String> {
    let unreadable = |error: std::io::Error| format!("`{}` cannot be read: {error}", path.display());
    let mut bytes = Zeroizing::new(Vec::new());
    let file = file.map_err(unreadable)?;
    file.take(limits::KEY_FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limits::KEY_FILE_MAX_BYTES {
        return Err(format!("`{}` is too long to be a key", path.display()));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("`{}` is not text", path.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    Ok(Secret::new(text))
}

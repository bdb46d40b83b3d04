//! Sources of keys: a file, an environment variable or a credential; never the configuration itself.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Environment;
use super::reader::Table;
use crate::observe::files;
use crate::observe::limits;
use crate::store::encryption::KeySource;
use spid_core::signature::{Key, Keys};
use spid_hook::Secret;
use spid_hook::text::named_file;
use spid_hook::webhook::{WebhookKey, WebhookKeys};

const NO_KEY: &str = "no key: give one as { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }";

const ONE_SOURCE: &str =
    "a key has exactly one of `file`, `env` and `credential`; it is never written here itself";

/// Keys of an endpoint, the current one first.
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
                table.mistake("label", "the label is empty");
            } else if !labels.insert(label.clone()) {
                table.mistake("label", format!("`{label}` is the label of an earlier key"));
            }
            let (member, secret) = secret(&table)?;
            if let Some(issue) = doubt_of_key(secret.expose()) {
                table.warning(issue);
            }
            Key::new(label, secret).map_err(|wrong| table.mistake(member, wrong.to_string())).ok()
        })
        .collect();
    // One wrong key makes the whole list unusable: it must not disappear silently.
    if keys.len() == count { Keys::new(keys) } else { None }
}

/// Placeholders of examples, compared without digits and punctuation.
const PLACEHOLDERS: [&str; 6] = ["changeme", "replaceme", "yourkey", "isvkey", "placeholder", "example"];

/// Warning about a suspicious key, which may nevertheless be genuine.
fn doubt_of_key(key: &str) -> Option<String> {
    let (least, length) = (limits::KEY_USUAL_MIN_BYTES, key.len());
    let letters: String = key.chars().filter(char::is_ascii_alphabetic).collect();
    if PLACEHOLDERS.contains(&letters.to_ascii_lowercase().as_str()) {
        return Some("the key is a placeholder of an example; use the marketplace's key".to_owned());
    }
    let is_short = length < least;
    is_short
        .then(|| format!("the key has {length} characters, and a key has {least} or more; copy all of it"))
}

/// Returns true for a text in quotes, which were probably copied with it.
fn is_quoted(text: &str) -> bool {
    ['"', '\'', '`']
        .into_iter()
        .any(|quote| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote))
}

/// Default label of a key, from its position. Labels are shown everywhere, so they contain nothing of the key.
fn usual_label(index: usize) -> String {
    match index {
        0 => "current".to_owned(),
        1 => "previous".to_owned(),
        _ => format!("previous-{index}"),
    }
}

/// Secrets of a hook: one, or several during a key change.
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

/// Secret that a table refers to, and the name of the member that refers to it.
pub(super) fn secret(table: &Table<'_>) -> Option<(&'static str, Secret)> {
    let environment = table.reader().environment();
    // All three are read, so that none is reported as an unknown key.
    let (member, secret) = match (table.text("file"), table.text("env"), table.text("credential")) {
        (Some(path), None, None) => ("file", read_key_file(Path::new(&path))),
        (None, Some(name), None) => ("env", variable(environment, &name)),
        (None, None, Some(name)) => ("credential", credential(environment, &name)),
        _ => {
            table.mistake("", ONE_SOURCE);
            return None;
        }
    };
    let secret = secret.map_err(|wrong| table.mistake(member, wrong)).ok()?;
    if is_quoted(secret.expose()) {
        table.warning("the secret is in quotes, which are part of it; remove the quotes from its source");
    }
    Some((member, secret))
}

/// Sources of the sealing keys, the current one first; empty if the key beside the database is used. The file of
/// `sealing_key` follows the listed keys, and is not created then. The keys are not read here, because some commands
/// read the store without permission to read the keys.
pub(super) fn sealing_keys(store: &Table<'_>) -> Vec<KeySource> {
    let own = store.optional("sealing_key", path);
    let listed: Vec<KeySource> = store.tables("sealing_keys", false).iter().filter_map(sealing_key).collect();
    // `Own` may be created at the first start, `File` must exist.
    let own = own.map(|own| if listed.is_empty() { KeySource::Own(own) } else { KeySource::File(own) });
    listed.into_iter().chain(own).collect()
}

/// Path in a text.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("the path is empty".to_owned()),
        text => Ok(PathBuf::from(text)),
    }
}

fn sealing_key(table: &Table<'_>) -> Option<KeySource> {
    let environment = table.reader().environment();
    match (table.text("file"), table.text("env"), table.text("credential")) {
        (Some(path), None, None) => Some(KeySource::File(PathBuf::from(path))),
        (None, Some(name), None) => Some(KeySource::Text {
            text: variable(environment, &name),
            name: format!("of {}", named_variable(&name)),
        }),
        (None, None, Some(name)) => Some(match credential_file(environment, &name) {
            Ok(path) => KeySource::File(path),
            Err(why) => {
                KeySource::Text { name: "of the credential that is named there".to_owned(), text: Err(why) }
            }
        }),
        _ => {
            table.mistake("", ONE_SOURCE);
            None
        }
    }
}

fn variable(environment: &dyn Environment, name: &str) -> Result<Secret, String> {
    let value = environment.get(name).map(Secret::new);
    value.ok_or_else(|| format!("{} is not set, or not text", named_variable(name)))
}

/// Names a variable in an error. A text that does not look like a variable may be a pasted key, so it is not shown.
fn named_variable(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    match name.chars().all(is_plain) {
        true => format!("the environment variable `{name}`"),
        false => "the environment variable that is named there".to_owned(),
    }
}

/// Reads a credential. Its name may be a pasted key, so errors do not show it.
fn credential(environment: &dyn Environment, name: &str) -> Result<Secret, String> {
    let path = credential_file(environment, name)?;
    key_in("the credential that is named there", files::open(&path))
}

/// File of a systemd credential, in the folder that systemd gives to the unit.
pub(super) fn credential_file(environment: &dyn Environment, name: &str) -> Result<PathBuf, String> {
    let folder = environment.get("CREDENTIALS_DIRECTORY").ok_or(
        "there is no CREDENTIALS_DIRECTORY: is this running as a systemd unit with LoadCredential=?",
    )?;
    // The name must not lead out of the folder.
    if name.contains('/') || name.is_empty() {
        return Err("this is not the name of a credential: it is empty, or holds `/`".to_owned());
    }
    Ok(Path::new(&folder).join(name))
}

/// Reads the key file of a configuration. It must be a regular file, because a daemon must not block on a pipe.
fn read_key_file(path: &Path) -> Result<Secret, String> {
    key_in(&named_file(path), files::open(path))
}

/// Reads a key file that was named on the command line, which may be a pipe. A line break at its end is not part of
/// the key.
///
/// # Errors
/// Returns a description of the problem; it never contains the file's content.
pub fn read_key(path: &Path) -> Result<Secret, String> {
    key_in(&format!("`{}`", path.display()), File::open(path))
}

fn key_in(name: &str, file: std::io::Result<File>) -> Result<Secret, String> {
    let unreadable = |error: std::io::Error| format!("{name} cannot be read: {error}");
    // The key must not stay in freed memory.
    let mut bytes = Zeroizing::new(Vec::new());
    let file = file.map_err(unreadable)?;
    // The limit protects against a wrong file, like a device or a database: one byte more shows that it is too long.
    file.take(limits::KEY_FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limits::KEY_FILE_MAX_BYTES {
        return Err(format!("{name} is too long to be a key"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{name} is not text"))?;
    // Editors and `echo` end a file with a line break: `\n`, or `\r\n` on Windows.
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    Ok(Secret::new(text))
}

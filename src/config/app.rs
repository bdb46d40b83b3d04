//! `[app]`: the listener for the seller's own application, and its tokens.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::reader::{Table, unknown};
use super::server::address;
use super::{keys, millis};
use crate::observe::limits;
use crate::serve::app::{AppOptions, AppToken, Role};
use spid_core::signature::Key;

pub(super) struct AppTable {
    pub(super) listen: Option<SocketAddr>,
    pub(super) options: AppOptions,
}

/// Reads the table. `accounts` are those of the endpoints, and the retired ones.
pub(super) fn app(table: &Table<'_>, accounts: &[String]) -> AppTable {
    let listen = table.optional("listen", address);
    let overrun = table.duration("overrun", Duration::from_millis(limits::APP_OVERRUN_MS.unsigned_abs()));
    let mut tokens: Vec<AppToken> = Vec::new();
    let mut names = HashSet::new();
    for entry in table.tables("tokens", false) {
        let Some(token) = token(&entry, accounts) else { continue };
        if !names.insert(token.name.clone()) {
            entry.mistake("name", format!("`{}` is the name of an earlier token", token.name));
        }
        if let Some(same) = tokens.iter().find(|known| known.secret == token.secret) {
            entry.mistake("", format!("this token is the same as `{}`", same.name));
        }
        tokens.push(token);
    }
    // Without a token no request could be allowed, so this is a mistake and not an open door.
    if listen.is_some() && table.lacks("tokens") {
        table.mistake("tokens", "the listener needs a token: create one with `openssl rand -hex 24`");
    }
    AppTable { listen, options: AppOptions { tokens, overrun_ms: millis(overrun) } }
}

fn token(entry: &Table<'_>, known: &[String]) -> Option<AppToken> {
    let name = entry.required("name");
    let roles = roles(entry);
    let accounts = entry.texts("accounts").unwrap_or_default();
    if accounts.is_empty() {
        entry.mistake("accounts", "name the accounts that this token may see");
    }
    for account in &accounts {
        if !known.contains(account) {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            entry.mistake(
                "accounts",
                format!("`{account}` is no account of an endpoint; {}", unknown(account, &known)),
            );
        }
    }
    let (member, secret) = keys::secret(entry)?;
    let least = limits::ADMIN_TOKEN_MIN_BYTES;
    if let Err(wrong) = Key::new("app", secret.clone()) {
        entry.mistake(member, wrong.to_string());
    } else if secret.expose().len() < least {
        // A short token could be guessed over the network.
        entry.mistake(
            member,
            format!("the token has fewer than {least} bytes; create one with `openssl rand -hex 24`"),
        );
    }
    Some(AppToken { name: name?, secret, accounts, roles })
}

fn roles(entry: &Table<'_>) -> Vec<Role> {
    let Some(words) = entry.texts("roles") else { return Role::ALL.to_vec() };
    let mut roles = Vec::new();
    for word in words {
        match Role::ALL.into_iter().find(|role| role.as_str() == word) {
            Some(role) => roles.push(role),
            None => {
                let known = Role::ALL.map(Role::as_str);
                entry.mistake("roles", format!("`{word}` is no role; {}", unknown(&word, &known)));
            }
        }
    }
    roles
}

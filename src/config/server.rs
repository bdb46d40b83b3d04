//! `[server]`: the addresses of the listeners, and the token of the admin listener.

use std::net::SocketAddr;
use std::time::Duration;

use super::reader::Table;
use super::{DEFAULT_LISTEN, keys};
use crate::admin::AdminOptions;
use crate::observe::limits;
use spid_core::signature::Key;
use spid_hook::Secret;

pub(super) struct Server {
    pub(super) listen: SocketAddr,
    pub(super) admin_listen: Option<SocketAddr>,
    pub(super) admin: AdminOptions,
    pub(super) reply_within: Duration,
}

pub(super) fn server(table: &Table<'_>) -> Server {
    let listen = table.value("listen", DEFAULT_LISTEN, address);
    let token = table.table("admin_token");
    // A variable can name the token even if the table is not in the file.
    let named = ["file", "env", "credential"].map(|member| token.text(member).is_some());
    let guarded = token.is_there() || named.contains(&true);
    let admin = AdminOptions { token: guarded.then(|| admin_token(&token)).flatten() };
    let admin_listen =
        table.optional("admin_listen", |text| address(text).and_then(|address| for_admins(address, guarded)));
    let reply_within = table.duration("reply_within", Duration::from_millis(limits::REPLY_WITHIN_MS));
    Server { listen, admin_listen, admin, reply_within }
}

/// Token of the admin listener. It must be long enough that it cannot be guessed over the network.
fn admin_token(table: &Table<'_>) -> Option<Secret> {
    let (member, secret) = keys::secret(table)?;
    let least = limits::ADMIN_TOKEN_MIN_BYTES;
    let wrong = match Key::new("admin", secret.clone()) {
        Err(wrong) => wrong.to_string(),
        // A short token could be guessed over the network.
        Ok(_) if secret.expose().len() < least => {
            format!("the token has fewer than {least} bytes; create one with `openssl rand -hex 24`")
        }
        Ok(_) => return Some(secret),
    };
    table.mistake(member, wrong);
    None
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("`{text}` is not an address and a port, like 0.0.0.0:8080 or [::]:8080"))
}

/// Checks the address of the admin listener. Without a token the listener does not identify its clients, so it must
/// stay on loopback.
fn for_admins(address: SocketAddr, guarded: bool) -> Result<SocketAddr, String> {
    if address.ip().is_loopback() || guarded {
        return Ok(address);
    }
    Err(format!(
        "`{address}` is not a loopback address: without a token every client there could read and change data; configure a token with `admin_token = {{ file = \"…\" }}`, or use 127.0.0.1"
    ))
}

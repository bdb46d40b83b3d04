//! Parts of a configuration, for commands that need no more. They run without permission to read what they do not need,
//! and mistakes elsewhere do not matter to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::endpoints;
use super::hooks::{IN_PROCESS, route};
use super::reader::{Reader, Table, unknown};
use super::server::address;
use super::{DEFAULT_LISTEN, Environment, Mistakes, millis, policy, store, text_of};
use crate::hooks::runner::Route;
use crate::serve::intake::Endpoint;
use crate::store::StoreOptions;
use spid_core::lifecycle::Policy;
use spid_hook::Subject;

/// Reads a part of a configuration. Mistakes of other keys than those that `concerns` names do not matter, and neither
/// do keys that are not read.
fn part<T>(
    path: &Path,
    environment: &dyn Environment,
    concerns: fn(&str) -> bool,
    read: impl FnOnce(&Table<'_>) -> T,
) -> Result<T, Mistakes> {
    let text = text_of(path)?;
    let source = path.display().to_string();
    let reader = Reader::new(&text, &source, environment, &[])?;
    let part = read(&reader.root());
    let mut mistakes = reader.finish().mistakes;
    mistakes.retain(|mistake| concerns(&mistake.key));
    if mistakes.is_empty() { Ok(part) } else { Err(Mistakes { source, mistakes }) }
}

/// Reads only the database and the store's options from a configuration. Commands that only use the store can run
/// without permission to read the keys.
///
/// # Errors
/// Returns an error if the file cannot be read, is not a configuration, or has a mistake about the store.
pub fn store_of(path: &Path, environment: &dyn Environment) -> Result<(PathBuf, StoreOptions), Mistakes> {
    let concerns = |key: &str| key.starts_with("store") || key == "policy.secrets_window";
    part(path, environment, concerns, |root| {
        let (database, sealing_keys) = store(&root.table("store"));
        let secrets_window_ms = millis(policy(&root.table("policy")).secrets_window);
        (database, StoreOptions { sealing_keys, secrets_window_ms, ..StoreOptions::default() })
    })
}

/// Reads only the address of the admin listener from a configuration. A health check can run without permission to
/// read the keys.
///
/// # Errors
/// Returns an error if the file cannot be read, is not a configuration, or has no admin listener.
pub fn admin_of(path: &Path, environment: &dyn Environment) -> Result<SocketAddr, Mistakes> {
    part(
        path,
        environment,
        |key| key == "server.admin_listen",
        |root| {
            let table = root.table("server");
            let listen = table.optional("admin_listen", address);
            if listen.is_none() && !table.has("admin_listen") {
                table.mistake(
                    "admin_listen",
                    "no admin listener is configured: set \"127.0.0.1:8081\", for example",
                );
            }
            // Without an address there is a mistake, and this value is not used.
            listen.unwrap_or(DEFAULT_LISTEN)
        },
    )
}

/// Reads only the accounts from a configuration: those of endpoints and the retired ones. An import can run without
/// permission to read the keys.
///
/// # Errors
/// Returns an error if the file cannot be read or is not a configuration.
pub fn accounts_of(path: &Path, environment: &dyn Environment) -> Result<Vec<String>, Mistakes> {
    part(
        path,
        environment,
        |_| false,
        |root| {
            let mut accounts: Vec<String> =
                root.tables("endpoint", false).iter().filter_map(account).collect();
            accounts.extend(root.table("policy").texts("retired_accounts").unwrap_or_default());
            accounts
        },
    )
}

/// Account of an endpoint. As in the daemon, the default is the endpoint's name.
fn account(endpoint: &Table<'_>) -> Option<String> {
    endpoint.text("account").or_else(|| endpoint.text("name"))
}

/// Reads only the accounts of the endpoints from a configuration, by path. A replay can run without permission to read
/// the keys.
///
/// # Errors
/// Returns an error if the file cannot be read or is not a configuration.
pub fn accounts_by_path(
    path: &Path,
    environment: &dyn Environment,
) -> Result<BTreeMap<String, String>, Mistakes> {
    part(
        path,
        environment,
        |_| false,
        |root| {
            let tables = root.tables("endpoint", false);
            tables.iter().filter_map(|table| table.text("path").zip(account(table))).collect()
        },
    )
}

/// Routes of a configuration, without the hooks that they lead to.
#[derive(Debug, Clone)]
pub struct RouteList {
    endpoints: Vec<String>,
    hooks: Vec<String>,
    routes: Vec<Route>,
}

impl RouteList {
    /// Returns the hook of this subject; `None` if its endpoint is not configured, or there is no hook.
    pub fn hook(&self, subject: &Subject<'_>) -> Option<&str> {
        if !self.endpoints.iter().any(|name| name == subject.endpoint) {
            return None;
        }
        let route = self.routes.iter().find(|route| route.unmet(subject).next().is_none());
        let hook = route.map(|route| &route.hook).or(self.hooks.first());
        hook.map(String::as_str)
    }

    /// Checks that there is a hook with this name.
    ///
    /// # Errors
    /// Returns the names that there are.
    pub fn check(&self, hook: &str) -> Result<(), String> {
        let known: Vec<&str> = self.hooks.iter().map(String::as_str).collect();
        if known.contains(&hook) {
            return Ok(());
        }
        Err(format!("there is no hook `{hook}`; {}", unknown(hook, &known)))
    }
}

/// Reads only the routes from a configuration. `has_hook_inside` is true in a program that embeds spid.
///
/// # Errors
/// Returns an error if the file cannot be read or is not a configuration.
pub fn routes_of(
    path: &Path,
    environment: &dyn Environment,
    has_hook_inside: bool,
) -> Result<RouteList, Mistakes> {
    part(
        path,
        environment,
        |_| false,
        |root| {
            let tables = root.tables("hook", false);
            let mut hooks = Vec::new();
            // As in the daemon, the hook inside is the first one unless an entry places it.
            if has_hook_inside && !tables.iter().any(|table| table.has("in_process")) {
                hooks.push(IN_PROCESS.to_owned());
            }
            hooks.extend(tables.iter().filter_map(|table| table.text("name")));
            let endpoints = root.tables("endpoint", false);
            let endpoints = endpoints.iter().filter_map(|table| table.text("name")).collect();
            let routes = root.tables("route", false).iter().map(route).collect();
            RouteList { endpoints, hooks, routes }
        },
    )
}

/// Keys, dialect and address of an endpoint, for a caller of it.
pub struct EndpointAccess {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Path of its URL.
    pub path: String,
    /// Address of the public listener.
    pub listen: SocketAddr,
    /// True if the listener needs TLS.
    pub is_tls: bool,
    /// Policy of the seller.
    pub policy: Policy,
}

/// Reads only the endpoints and the public address from a configuration.
///
/// # Errors
/// Returns an error if the file cannot be read, is not a configuration, or has a mistake about them.
pub fn endpoints_of(path: &Path, environment: &dyn Environment) -> Result<Vec<EndpointAccess>, Mistakes> {
    let concerns =
        |key: &str| key.starts_with("endpoint") || key.starts_with("policy") || key == "server.listen";
    part(path, environment, concerns, |root| {
        let server = root.table("server");
        let listen = server.value("listen", DEFAULT_LISTEN, address);
        let is_tls = server.has("tls");
        let policy = policy(&root.table("policy")).of_instances;
        let mut found = Vec::new();
        for (path, endpoint) in endpoints::endpoints(root, listen).sound {
            found.push(EndpointAccess { endpoint, path, listen, is_tls, policy });
        }
        found
    })
}

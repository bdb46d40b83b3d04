//! Parts of a configuration, for commands that need no more. They run without permission to read what they do not need,
//! and mistakes elsewhere do not matter to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::endpoints::{self, Endpoints};
use super::hooks::IN_PROCESS;
use super::reader::{Reader, unknown};
use super::server::address;
use super::{DEFAULT_LISTEN, Environment, Mistakes, millis, policy, store, text_of};
use crate::hooks::runner::Route;
use crate::serve::intake::Endpoint;
use crate::store::StoreOptions;
use spid_hook::Subject;

/// Reads only the database and the store's options from a configuration. Commands that only use the store can run
/// without permission to read the keys.
///
/// # Errors
/// Returns an error if the file cannot be read, is not a configuration, or has a mistake about the store.
pub fn store_of(path: &Path, environment: &dyn Environment) -> Result<(PathBuf, StoreOptions), Mistakes> {
    let text = text_of(path)?;
    let source = path.display().to_string();
    let reader = Reader::new(&text, &source, environment, &[])?;
    let root = reader.root();
    let (database, sealing_keys) = store(&root.table("store"));
    let secrets_window_ms = millis(policy(&root.table("policy")).secrets_window);
    let mut mistakes = reader.finish().mistakes;
    // Only the store is read here, so mistakes elsewhere do not matter, like unknown tables.
    mistakes.retain(|mistake| mistake.key.starts_with("store") || mistake.key == "policy.secrets_window");
    if mistakes.is_empty() {
        return Ok((database, StoreOptions { sealing_keys, secrets_window_ms, ..StoreOptions::default() }));
    }
    Err(Mistakes { source, mistakes })
}

/// Reads only the address of the admin listener from a configuration. A health check can run without permission to
/// read the keys.
///
/// # Errors
/// Returns an error if the file cannot be read, is not a configuration, or has no admin listener.
pub fn admin_of(path: &Path, environment: &dyn Environment) -> Result<SocketAddr, Mistakes> {
    let text = text_of(path)?;
    let source = path.display().to_string();
    let reader = Reader::new(&text, &source, environment, &[])?;
    let table = reader.root().table("server");
    let listen = table.optional("admin_listen", address);
    if listen.is_none() && !table.has("admin_listen") {
        table.mistake("admin_listen", "no admin listener is configured: set \"127.0.0.1:8081\", for example");
    }
    let mut mistakes = reader.finish().mistakes;
    // Only this key is read here, so mistakes elsewhere do not matter.
    mistakes.retain(|mistake| mistake.key == "server.admin_listen");
    listen.filter(|_| mistakes.is_empty()).ok_or(Mistakes { source, mistakes })
}

/// Reads only the accounts from a configuration: those of endpoints and the retired ones. An import can run without
/// permission to read the keys.
///
/// # Errors
/// Returns an error if the file cannot be read or is not a configuration.
pub fn accounts_of(path: &Path, environment: &dyn Environment) -> Result<Vec<String>, Mistakes> {
    let text = text_of(path)?;
    let source = path.display().to_string();
    let reader = Reader::new(&text, &source, environment, &[])?;
    let root = reader.root();
    // As in the daemon, the default account is the endpoint's name.
    let mut accounts = Vec::new();
    for table in root.tables("endpoint", false) {
        accounts.extend(table.text("account").or_else(|| table.text("name")));
    }
    accounts.extend(root.table("policy").texts("retired_accounts").unwrap_or_default());
    Ok(accounts)
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
    let text = text_of(path)?;
    let source = path.display().to_string();
    let reader = Reader::new(&text, &source, environment, &[])?;
    let mut accounts = BTreeMap::new();
    for table in reader.root().tables("endpoint", false) {
        // As in the daemon, the default account is the endpoint's name.
        let account = table.text("account").or_else(|| table.text("name"));
        accounts.extend(table.text("path").zip(account));
    }
    Ok(accounts)
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
    let text = text_of(path)?;
    let source = path.display().to_string();
    let reader = Reader::new(&text, &source, environment, &[])?;
    let root = reader.root();
    let tables = root.tables("hook", false);
    let mut hooks = Vec::new();
    // As in the daemon, the hook inside is the first one unless an entry places it.
    if has_hook_inside && !tables.iter().any(|table| table.has("in_process")) {
        hooks.push(IN_PROCESS.to_owned());
    }
    hooks.extend(tables.iter().filter_map(|table| table.text("name")));
    let endpoints = root.tables("endpoint", false).iter().filter_map(|table| table.text("name")).collect();
    let mut routes = Vec::new();
    for table in root.tables("route", false) {
        routes.push(Route {
            endpoint: table.text("endpoint"),
            product: table.text("product"),
            sku: table.text("sku"),
            buyer: table.text("buyer"),
            hook: table.text("hook").unwrap_or_default(),
        });
    }
    Ok(RouteList { endpoints, hooks, routes })
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
}

/// Reads only the endpoints and the public address from a configuration.
///
/// # Errors
/// Returns an error if the file cannot be read, is not a configuration, or has a mistake about them.
pub fn endpoints_of(path: &Path, environment: &dyn Environment) -> Result<Vec<EndpointAccess>, Mistakes> {
    let text = text_of(path)?;
    let source = path.display().to_string();
    let reader = Reader::new(&text, &source, environment, &[])?;
    let root = reader.root();
    let server = root.table("server");
    let listen = server.value("listen", DEFAULT_LISTEN, address);
    let is_tls = server.has("tls");
    let Endpoints { sound, .. } = endpoints::endpoints(&root, listen);
    let mut mistakes = reader.finish().mistakes;
    mistakes.retain(|mistake| mistake.key.starts_with("endpoint") || mistake.key == "server.listen");
    if !mistakes.is_empty() {
        return Err(Mistakes { source, mistakes });
    }
    let mut found = Vec::new();
    for (path, endpoint) in sound {
        found.push(EndpointAccess { endpoint, path, listen, is_tls });
    }
    Ok(found)
}

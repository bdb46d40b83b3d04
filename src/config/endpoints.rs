//! `[[endpoint]]`: a path, a seller account, and its keys.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::DEV_KEY;
use super::hooks::tls;
use super::keys::{endpoint_keys, secret};
use super::public_listener;
use super::reader::{Table, unknown};
use crate::market_api::order_lookup::OrderLookupClient;
use crate::net::Url;
use crate::serve::intake::Endpoint;
use crate::serve::public::Network;
use spid_core::dialect;
use spid_core::dialect::{Dialect, Options, SuccessAs};
use spid_core::signature::{AccessKey, BadKey, Cipher, Keys};
use spid_hook::Secret;
use spid_hook::text::fault_of_secret;

/// Endpoints of the file.
pub(super) struct Endpoints {
    /// Endpoints without mistakes, each with its path.
    pub(super) sound: Vec<(String, Endpoint)>,
    /// Clients for order lookups, by the names of the endpoints that need one.
    pub(super) lookup_clients: Vec<(String, OrderLookupClient)>,
    /// Names of all endpoints.
    pub(super) names: Vec<String>,
    /// Networks that may call, by the names of the endpoints that have a list of them.
    pub(super) allow: HashMap<Arc<str>, Vec<Network>>,
}

pub(super) fn endpoints(root: &Table<'_>, listen: SocketAddr) -> Endpoints {
    let tables = root.tables("endpoint", false);
    if root.lacks("endpoint") {
        root.mistake(
            "endpoint",
            "no endpoint is configured: add an [[endpoint]] with name, path, dialect and keys",
        );
    }
    let (mut names, mut paths, mut sound) = (Vec::new(), Vec::new(), Vec::new());
    let (mut allow, mut lookup_clients) = (HashMap::new(), Vec::new());
    for table in tables {
        // Continue without a name or path, so that all mistakes of the endpoint are reported.
        let name = table.required("name").unwrap_or_default();
        if !name.is_empty() && names.contains(&name) {
            table.mistake("name", format!("`{name}` is the name of an earlier endpoint"));
        }
        let path = path(&table).unwrap_or_default();
        if !path.is_empty() && paths.contains(&path) {
            table.mistake("path", format!("`{path}` is the path of an earlier endpoint"));
        }
        let dialect = dialect(&table);
        if let Some(dialect) = dialect {
            lookup_clients
                .extend(lookup_client(&table, dialect).map(|lookup_client| (name.clone(), lookup_client)));
        } else {
            // The contents can be checked only if the dialect is known. Asking prevents a second mistake about an
            // unknown key.
            table.has("orders");
        }
        let shared_key = table.flag("shared_key");
        if let Some(endpoint) = endpoint(&table, &name, dialect) {
            // The checks compare with earlier endpoints, so that the line of the later one is named.
            refuse_shared_key(&table, &endpoint, shared_key, &sound);
            refuse_known_key(&table, &endpoint, listen);
            sound.push((path.clone(), endpoint, shared_key));
        }
        allow.extend(public_listener::allow(&table).map(|networks| (Arc::from(name.as_str()), networks)));
        names.push(name);
        paths.push(path);
    }
    let sound = sound.into_iter().map(|(path, endpoint, _)| (path, endpoint)).collect();
    Endpoints { sound, lookup_clients, names, allow }
}

/// Reports a key that two accounts share. A signature covers neither path nor account. With one key for two accounts,
/// a request that was signed for one of them is valid at the other's path, and would create an instance there, too.
fn refuse_shared_key(
    table: &Table<'_>,
    endpoint: &Endpoint,
    shared_key: bool,
    earlier: &[(String, Endpoint, bool)],
) {
    for (_, other, is_meant) in earlier {
        let same_rule = endpoint.dialect.signing() == other.dialect.signing();
        // With one account there is nothing to confuse; with different signing rules no signature is valid at both.
        if endpoint.account == other.account || !same_rule || (shared_key && *is_meant) {
            continue;
        }
        if let Some((own, label)) = endpoint.keys.shared_with(&other.keys) {
            table.mistake("keys", format!(
                "the key `{own}` is also the key `{label}` of endpoint `{}`, which has another account: a request signed for one is valid at both; give each account its own key, or write `shared_key = true` in both if this is meant",
                other.name
            ));
        }
    }
}

/// Reports the key of the marketplace's documentation on a public listener: everyone can sign with it, so it may only
/// be used for tests on this machine.
fn refuse_known_key(table: &Table<'_>, endpoint: &Endpoint, listen: SocketAddr) {
    if !listen.ip().is_loopback() && is_known_key(&endpoint.keys) {
        table.mistake("keys", format!(
            "the key `{DEV_KEY}` is public (it is in the documentation), so everyone can sign with it, and `server.listen` is {listen}; use the marketplace's key, or listen on 127.0.0.1"
        ));
    }
}

/// Returns true if the key of the documentation is among these keys.
pub(super) fn is_known_key(keys: &Keys) -> bool {
    let known = Keys::single(Secret::new(DEV_KEY));
    known.is_ok_and(|known| keys.shared_with(&known).is_some())
}

fn endpoint(table: &Table<'_>, name: &str, dialect: Option<&'static dyn Dialect>) -> Option<Endpoint> {
    let account = account(table, name);
    let options = options(table);
    let keys = endpoint_keys(table)?;
    Some(Endpoint { name: name.into(), account: account.into(), dialect: dialect?, keys, options })
}

/// Account of the endpoint. The default is the endpoint's name, with a warning: a changed name would change the
/// account.
fn account(table: &Table<'_>, name: &str) -> String {
    table.text("account").unwrap_or_else(|| {
        table.warning(format!(
            "no `account`: instances are stored under the endpoint's name, and a changed name would lose them; write `account = \"{name}\"`"
        ));
        name.to_owned()
    })
}

fn path(table: &Table<'_>) -> Option<String> {
    let path = table.required("path")?;
    if let Some(fault) = fault_of_path(&path).filter(|_| !path.is_empty()) {
        table.mistake("path", fault);
    }
    Some(path)
}

/// Explains why no request can match this path, and which path to write instead. Paths are compared as they are sent:
/// percent-encoded, and without `.` and `..`, which callers resolve.
fn fault_of_path(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains(['?', '#']) {
        return Some(format!("`{path}` is not a path: it begins with `/` and has no `?` or `#`"));
    }
    // Every part behind a `%` must begin with two hex digits.
    let broken = path.split('%').skip(1).find(|behind| {
        let digits = behind.bytes().take(2).filter(u8::is_ascii_hexdigit).count();
        digits < 2
    });
    if broken.is_some() {
        return Some(format!(
            "`{path}` has a `%` without two hex digits behind it; write a percent sign as `%25`"
        ));
    }
    let encoded = percent_encoded(path);
    let resolved = resolved(&encoded);
    if resolved == path {
        return None;
    }
    let why = match encoded == path {
        true => "callers resolve `.` and `..` before they send a path",
        false => "callers send a path percent-encoded",
    };
    Some(format!("no request can match `{path}`, because {why}; write `{resolved}`"))
}

/// Percent-encodes all characters that a path must not contain (RFC 3986, section 3.3). Encoded characters stay as
/// they are.
fn percent_encoded(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            byte if byte.is_ascii_alphanumeric() || b"/%-._~!$&'()*+,;=:@".contains(&byte) => {
                encoded.push(char::from(byte));
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// Removes the segments `.` and `..` from a path (RFC 3986, section 5.2.4).
fn resolved(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_folder = false;
    for segment in path.split('/').skip(1) {
        // Callers treat an encoded dot like a plain one.
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        // A path that ends in such a segment names a folder, so it keeps a `/` at its end.
        ends_in_folder = matches!(plain.as_str(), "." | "..");
        match plain.as_str() {
            "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let end = if ends_in_folder && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}", segments.join("/"))
}

fn dialect(table: &Table<'_>) -> Option<&'static dyn Dialect> {
    let name = table.required("dialect")?;
    let dialect = dialect::by_name(&name);
    if dialect.is_none() && !name.is_empty() {
        let known: Vec<&str> = dialect::names().collect();
        table.mistake("dialect", format!("`{name}` is not a dialect; {}", unknown(&name, &known)));
    }
    dialect
}

fn options(table: &Table<'_>) -> Options {
    let default = Options::default();
    let zone = |name: &str| {
        TimeZone::get(name).map_err(|_| format!("`{name}` is not a time zone, like Asia/Shanghai or UTC"))
    };
    let url = |what: &'static str| {
        move |text: &str| match text.parse::<Url>() {
            Ok(url) => match fault_of_path(url.target().split('?').next().unwrap_or_default()) {
                None => Ok(text.to_owned()),
                Some(fault) => Err(format!("not the URL of {what}: {fault}")),
            },
            Err(wrong) => Err(format!("not the URL of {what}: {wrong}")),
        }
    };
    let success = SuccessAs::ALL.map(|success| (success.as_str(), success));
    Options {
        timezone: table.value("timezone", default.timezone, zone),
        success_as: table.choice("success_as", default.success_as, &success),
        public_url: table.optional("public_url", url("this endpoint as a browser reaches it")),
        test_url: table.optional("test_url", url("an application")),
        field_cipher: table.choice(
            "field_cipher",
            default.field_cipher,
            &[("aes128", Cipher::Aes128), ("aes256", Cipher::Aes256)],
        ),
    }
}

/// Client for the order lookups of an endpoint. A dialect that needs lookups must configure them: without the order's
/// details a hook would provision without knowing what was bought.
fn lookup_client(endpoint: &Table<'_>, dialect: &'static dyn Dialect) -> Option<OrderLookupClient> {
    // All keys are read before any decision, so that none of them is reported as unknown.
    let asks = endpoint.has("orders");
    let table = endpoint.table("orders");
    let none = table.flag("none");
    let url = table.optional("url", |text| text.parse::<Url>().map_err(|wrong| wrong.to_string()));
    let more = table.text("ca_file");
    let key = access_key(&table, asks && !none && dialect.order_api().is_some());
    match dialect.order_api() {
        None if asks => {
            endpoint.mistake("orders", format!("{} says in its callbacks what was ordered", dialect.name()));
            None
        }
        Some(_) if !asks => {
            endpoint.mistake("orders", format!("{} does not say in its callbacks what was ordered: give `{{ access_key = \"…\", secret_key = {{ file = \"…\" }} }}`, or `{{ none = true }}` if the hook looks orders up itself", dialect.name()));
            None
        }
        Some(api) if !none => {
            // A wrong URL has been reported. The vendor's URL must not replace it.
            let url = if table.has("url") { url } else { api.url.parse().ok() }?;
            let key = key?;
            let tls = tls(&table, &url, more.as_deref().map(Path::new));
            Some(OrderLookupClient::new(api, url, key, tls))
        }
        _ => None,
    }
}

fn access_key(table: &Table<'_>, wanted: bool) -> Option<AccessKey> {
    let (id, scope) = (table.text("access_key"), (table.text("region"), table.text("service")));
    let is_there = table.has("secret_key");
    let secret_table = table.table("secret_key");
    let secret = is_there.then(|| secret(&secret_table));
    // Report this only if lookups are needed; otherwise another mistake about `orders` follows.
    let (Some(id), Some(secret)) = (id, secret) else {
        if wanted {
            table.mistake("", "give an `access_key`, which is a name, and a `secret_key`, which is `{ file = \"…\" }`, `{ env = \"…\" }` or `{ credential = \"…\" }`");
        }
        return None;
    };
    let (member, secret) = secret?;
    if let Some(fault) = fault_of_secret(&id) {
        table.mistake("access_key", format!("the key cannot be used: {fault}"));
        return None;
    }
    let wrong = |wrong: BadKey| secret_table.mistake(member, wrong.to_string());
    let key = AccessKey::new(id, secret).map_err(wrong).ok()?;
    match scope {
        (None, None) => Some(key),
        // Only the older form of the vendor's signature contains region and service.
        (Some(region), Some(service)) => Some(key.scoped(region, service)),
        _ => {
            let text =
                "`region` and `service` belong together: with them requests are signed in the older form";
            table.mistake("", text);
            None
        }
    }
}

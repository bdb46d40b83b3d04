//! From a file, the environment and nothing else to everything the daemon is made of.
//!
//! Defaults < file < environment (< flags, which `cli` adds). Every mistake is reported at once, each
//! with the key it stands under; a daemon with a mistake in its configuration does not start. A key
//! that is missing, empty or unreadable is such a mistake: there is no way to run unsigned.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::admin::AdminOptions;
use crate::dialect::{self, Dialect, Options, SuccessAs};
use crate::hook::AnyHook;
use crate::hook::exec::{BadCommand, ExecHook};
use crate::hook::http::{HttpHook, HttpHookOptions};
use crate::hook::log::LogHook;
use crate::hook::runner::{NamedHook, Route, Runner};
use crate::http::{Tls, Url};
use crate::instance::UnknownInstance;
use crate::intake::{Endpoint, IntakeOptions};
use crate::job::Schedule;
use crate::limits;
use crate::orders::{Desk, Orders};
use crate::signature::{AccessKey, Cipher, Key, Keys, Secret, WebhookKey, WebhookKeys};
use crate::store::StoreOptions;

/// The environment, as far as the configuration may see it.
pub trait Environment {
    /// The value of a variable.
    fn get(&self, name: &str) -> Option<String>;
    /// The names of all variables.
    fn names(&self) -> Vec<String>;
}

/// The process's environment.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    #[expect(clippy::disallowed_methods, reason = "this is the one place the environment is read")]
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn names(&self) -> Vec<String> {
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect()
    }
}

impl Environment for HashMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        HashMap::get(self, name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

/// One mistake, and the key it stands under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The key, as `server.listen` or `endpoint[0].keys[1].file`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what to do.
    pub text: String,
}

/// All mistakes of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// Where the configuration came from.
    pub source: String,
    /// Never empty.
    pub mistakes: Vec<Mistake>,
}

impl std::fmt::Display for Mistakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match mistake.key.as_str() {
                "" => write!(f, "{}: {}", self.source, mistake.text)?,
                key => write!(f, "{}: `{key}`: {}", self.source, mistake.text)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    server: ServerTable,
    store: StoreTable,
    endpoint: Vec<EndpointTable>,
    hook: Vec<HookTable>,
    route: Vec<RouteTable>,
    policy: PolicyTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ServerTable {
    listen: Option<String>,
    admin_listen: Option<String>,
    admin_token: Option<KeyTable>,
    reply_within: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StoreTable {
    path: Option<PathBuf>,
    sealing_key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointTable {
    name: String,
    path: String,
    dialect: String,
    account: Option<String>,
    #[serde(default)]
    keys: Vec<KeyTable>,
    timezone: Option<String>,
    #[serde(default)]
    success_as: SuccessAs,
    public_url: Option<String>,
    test_url: Option<String>,
    #[serde(default)]
    field_cipher: Cipher,
    orders: Option<OrdersTable>,
}

/// Where a marketplace is asked what was ordered.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OrdersTable {
    url: Option<String>,
    access_key: Option<String>,
    secret_key: Option<KeyTable>,
    region: Option<String>,
    service: Option<String>,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    none: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyTable {
    label: Option<String>,
    file: Option<PathBuf>,
    env: Option<String>,
    credential: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HookTable {
    name: String,
    exec: Option<ExecTable>,
    http: Option<HttpTable>,
    log: Option<LogTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExecTable {
    command: Vec<String>,
    working_dir: Option<PathBuf>,
    timeout: Option<String>,
    concurrency: Option<usize>,
    retry: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpTable {
    url: String,
    secret: Option<OneOrMore>,
    timeout: Option<String>,
    concurrency: Option<usize>,
    retry: Option<Vec<String>>,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    insecure: bool,
}

/// One key, or a list of them: while it is changed there are two.
#[derive(Debug)]
struct OneOrMore(Vec<KeyTable>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<OneOrMore, D::Error> {
        struct Either;
        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`{ file = … }`, `{ env = … }` or `{ credential = … }`, or a list of these")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<OneOrMore, A::Error> {
                let one = KeyTable::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(OneOrMore(vec![one]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, list: A) -> Result<OneOrMore, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list)).map(OneOrMore)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteTable {
    endpoint: Option<String>,
    product: Option<String>,
    sku: Option<String>,
    buyer: Option<String>,
    hook: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyTable {
    unknown_instance: UnknownInstance,
    sign_on_window: Option<String>,
    secrets_window: Option<String>,
}

/// Everything a daemon is made of.
#[derive(Clone)]
pub struct Config {
    /// Where the marketplace calls.
    pub listen: SocketAddr,
    /// Where the operator looks; `None` for nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// What is chosen about the admin listener.
    pub admin: AdminOptions,
    /// The database.
    pub store_path: PathBuf,
    /// What is chosen about the store.
    pub store: StoreOptions,
    /// The endpoints, each with its path.
    pub endpoints: Vec<(String, Endpoint)>,
    /// Where it is asked what was ordered, for marketplaces whose callbacks do not say.
    pub orders: Orders,
    /// The hooks, and the way to the right one.
    pub runner: Runner,
    /// What is chosen about the intake.
    pub intake: IntakeOptions,
}

const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
/// The database when none is named.
pub const DEFAULT_STORE: &str = "spid.db";

/// The variables that may override a key.
const OVERRIDES: [&str; 8] = [
    "SPID_SERVER__LISTEN",
    "SPID_SERVER__ADMIN_LISTEN",
    "SPID_SERVER__REPLY_WITHIN",
    "SPID_STORE__PATH",
    "SPID_STORE__SEALING_KEY",
    "SPID_POLICY__UNKNOWN_INSTANCE",
    "SPID_POLICY__SIGN_ON_WINDOW",
    "SPID_POLICY__SECRETS_WINDOW",
];

/// Variables that begin like overrides and are something else.
const NOT_OVERRIDES: [&str; 2] = ["SPID_LOG", "SPID_CONFIG"];

impl Config {
    /// Reads a configuration file. `hook` is an in-process hook, which then is the default one.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn load(
        path: &Path,
        environment: &dyn Environment,
        hook: Option<AnyHook>,
    ) -> Result<Config, Mistakes> {
        let source = path.display().to_string();
        let whole = |text: String| Mistakes {
            source: source.clone(),
            mistakes: vec![Mistake { key: String::new(), text }],
        };
        let text =
            std::fs::read_to_string(path).map_err(|error| whole(format!("it cannot be read: {error}")))?;
        Config::parse(&text, &source, environment, hook)
    }

    /// As [`Config::load`], from text.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn parse(
        text: &str,
        source: &str,
        environment: &dyn Environment,
        hook: Option<AnyHook>,
    ) -> Result<Config, Mistakes> {
        let mut file: File = toml::from_str(text).map_err(|error| Mistakes {
            source: source.to_owned(),
            mistakes: vec![Mistake { key: String::new(), text: unreadable(text, &error) }],
        })?;
        let mut builder = Builder { mistakes: Vec::new(), desks: Vec::new(), environment };
        builder.override_from_environment(&mut file);
        let config = builder.build(file, hook);
        match config {
            Some(config) if builder.mistakes.is_empty() => Ok(config),
            _ => Err(Mistakes { source: source.to_owned(), mistakes: builder.mistakes }),
        }
    }

    /// The fixed configuration of `serve --dev`: loopback, path `/spi`, dialect `alibaba`, key `isvkey`.
    ///
    /// # Errors
    /// Never, unless this program is broken.
    pub fn dev(hook: Option<AnyHook>) -> Result<Config, Mistakes> {
        let environment = HashMap::from([(DEV_KEY_VARIABLE.to_owned(), DEV_KEY.to_owned())]);
        let hook = hook.unwrap_or_else(|| AnyHook::from(LogHook));
        Config::parse(DEV_CONFIG, "--dev", &environment, Some(hook))
    }
}

/// The key of `--dev`: the one of the vendor's documentation, which nobody may use for anything else.
pub const DEV_KEY: &str = "isvkey";
const DEV_KEY_VARIABLE: &str = "DEV_KEY";
const DEV_CONFIG: &str = r#"
[[endpoint]]
name = "dev"
path = "/spi"
dialect = "alibaba"
keys = [{ env = "DEV_KEY", label = "dev" }]

[[endpoint]]
name = "dev-jdcloud"
path = "/jdcloud"
dialect = "jdcloud"
keys = [{ env = "DEV_KEY", label = "dev" }]

[[endpoint]]
name = "dev-generic"
path = "/generic"
dialect = "generic"
keys = [{ env = "DEV_KEY", label = "dev" }]

[[endpoint]]
name = "dev-koogallery"
path = "/koogallery"
dialect = "koogallery"
keys = [{ env = "DEV_KEY", label = "dev" }]
orders = { none = true }
"#;

struct Builder<'a> {
    mistakes: Vec<Mistake>,
    desks: Vec<(String, Desk)>,
    environment: &'a dyn Environment,
}

impl Builder<'_> {
    fn mistake(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.mistakes.push(Mistake { key: key.into(), text: text.into() });
    }

    fn override_from_environment(&mut self, file: &mut File) {
        let known =
            |name: &String| OVERRIDES.contains(&name.as_str()) || NOT_OVERRIDES.contains(&name.as_str());
        let mut unknown: Vec<String> = self.environment.names();
        unknown.retain(|name| name.starts_with("SPID_") && name.contains("__") && !known(name));
        unknown.sort();
        for name in unknown {
            self.mistake(
                name,
                format!("this environment variable overrides nothing; there is {}", OVERRIDES.join(", ")),
            );
        }
        let get = |name: &str| self.environment.get(name);
        let text = |slot: &mut Option<String>, name: &str| *slot = get(name).or(slot.take());
        text(&mut file.server.listen, "SPID_SERVER__LISTEN");
        text(&mut file.server.admin_listen, "SPID_SERVER__ADMIN_LISTEN");
        text(&mut file.server.reply_within, "SPID_SERVER__REPLY_WITHIN");
        text(&mut file.policy.sign_on_window, "SPID_POLICY__SIGN_ON_WINDOW");
        text(&mut file.policy.secrets_window, "SPID_POLICY__SECRETS_WINDOW");
        let path =
            |slot: &mut Option<PathBuf>, name: &str| *slot = get(name).map(PathBuf::from).or(slot.take());
        path(&mut file.store.path, "SPID_STORE__PATH");
        path(&mut file.store.sealing_key, "SPID_STORE__SEALING_KEY");
        match get("SPID_POLICY__UNKNOWN_INSTANCE").as_deref() {
            None => {}
            Some("refuse") => file.policy.unknown_instance = UnknownInstance::Refuse,
            Some("succeed") => file.policy.unknown_instance = UnknownInstance::Succeed,
            Some("adopt") => file.policy.unknown_instance = UnknownInstance::Adopt,
            Some(other) => {
                let text = format!("`{other}` is not one of refuse, succeed, adopt");
                self.mistake("SPID_POLICY__UNKNOWN_INSTANCE", text);
            }
        }
    }

    fn build(&mut self, file: File, hook: Option<AnyHook>) -> Option<Config> {
        let listen = self.address("server.listen", file.server.listen.as_deref().unwrap_or(DEFAULT_LISTEN));
        let admin =
            AdminOptions { token: file.server.admin_token.as_ref().and_then(|key| self.admin_token(key)) };
        let has_token = file.server.admin_token.is_some();
        let admin_listen = file.server.admin_listen.as_deref();
        let admin_listen = admin_listen.and_then(|text| self.admin_address(text, has_token));
        let mut intake = IntakeOptions::default();
        if let Some(within) = self.duration("server.reply_within", file.server.reply_within.as_deref()) {
            intake.reply_within = within;
        }
        intake.policy.unknown_instance = file.policy.unknown_instance;
        if let Some(window) = self.duration("policy.sign_on_window", file.policy.sign_on_window.as_deref()) {
            intake.policy.sign_on_window_ms = millis(window);
        }
        let mut store = StoreOptions { sealing_key: file.store.sealing_key, ..StoreOptions::default() };
        if let Some(window) = self.duration("policy.secrets_window", file.policy.secrets_window.as_deref()) {
            store.secrets_window_ms = millis(window);
        }
        self.check_routes(&file.route, &file.endpoint);
        let endpoints = self.endpoints(file.endpoint);
        let runner = self.runner(file.hook, file.route, hook);
        Some(Config {
            listen: listen?,
            admin_listen,
            admin,
            store_path: file.store.path.unwrap_or_else(|| PathBuf::from(DEFAULT_STORE)),
            store,
            endpoints,
            orders: Orders::new(std::mem::take(&mut self.desks)),
            runner: runner?,
            intake,
        })
    }

    fn address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let address = text.parse();
        if address.is_err() {
            self.mistake(
                key,
                format!("`{text}` is not an address and a port, like 0.0.0.0:8080 or [::]:8080"),
            );
        }
        address.ok()
    }

    /// Without a token the admin listener asks nobody who they are, so it stays on this machine.
    fn admin_address(&mut self, text: &str, has_token: bool) -> Option<SocketAddr> {
        let address = self.address("server.admin_listen", text)?;
        if address.ip().is_loopback() || has_token {
            return Some(address);
        }
        self.mistake("server.admin_listen", format!("`{text}` is not a loopback address: whoever reaches it could look and mend; give it a token with `admin_token = {{ file = \"…\" }}`, or use 127.0.0.1"));
        None
    }

    /// What opens the admin listener. It is guessed at from outside, so it is not a short one.
    fn admin_token(&mut self, table: &KeyTable) -> Option<Secret> {
        let (place, secret) = self.secret("server.admin_token", table)?;
        let least = limits::ADMIN_TOKEN_MIN_BYTES;
        let mistake = match Key::new("admin", secret.clone()) {
            Err(_) => "it is empty, or has white space or a control character in it".to_owned(),
            Ok(_) if secret.expose().len() < least => {
                format!("it is shorter than {least} bytes; `openssl rand -hex 24` makes a good one")
            }
            Ok(_) => return Some(secret),
        };
        self.mistake(place, mistake);
        None
    }

    fn duration(&mut self, key: &str, text: Option<&str>) -> Option<Duration> {
        let text = text?;
        let parsed = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
        let duration = parsed.filter(|duration| !duration.is_zero());
        if duration.is_none() {
            self.mistake(key, format!("`{text}` is not a time span, like 500ms, 3s, 10m or 24h"));
        }
        duration
    }

    fn endpoints(&mut self, tables: Vec<EndpointTable>) -> Vec<(String, Endpoint)> {
        if tables.is_empty() {
            self.mistake("endpoint", "there is none: add an [[endpoint]] with name, path, dialect and keys");
        }
        let mut names = HashSet::new();
        let mut paths = HashSet::new();
        let mut endpoints = Vec::new();
        for (index, table) in tables.into_iter().enumerate() {
            let key = format!("endpoint[{index}]");
            if !names.insert(table.name.clone()) {
                self.mistake(
                    format!("{key}.name"),
                    format!("`{}` is the name of an earlier endpoint", table.name),
                );
            }
            if !paths.insert(table.path.clone()) {
                self.mistake(
                    format!("{key}.path"),
                    format!("`{}` is the path of an earlier endpoint", table.path),
                );
            }
            let path = table.path.clone();
            if let Some(endpoint) = self.endpoint(&key, table) {
                endpoints.push((path, endpoint));
            }
        }
        endpoints
    }

    fn endpoint(&mut self, key: &str, table: EndpointTable) -> Option<Endpoint> {
        if table.name.is_empty() {
            self.mistake(format!("{key}.name"), "it is empty");
        }
        if !table.path.starts_with('/') || table.path.contains(['?', '#', ' ']) {
            let text =
                format!("`{}` is not a path: it begins with `/` and has no `?`, `#` or space", table.path);
            self.mistake(format!("{key}.path"), text);
        }
        let dialect = dialect::by_name(&table.dialect);
        if dialect.is_none() {
            let known: Vec<&str> = dialect::names().collect();
            let text = format!("`{}` is not a dialect; there is {}", table.dialect, known.join(", "));
            self.mistake(format!("{key}.dialect"), text);
        }
        if let Some(dialect) = dialect {
            let desk = self.desk(&format!("{key}.orders"), dialect, table.orders);
            self.desks.extend(desk.map(|desk| (table.name.clone(), desk)));
        }
        let mut options = Options {
            success_as: table.success_as,
            public_url: table.public_url,
            test_url: table.test_url,
            field_cipher: table.field_cipher,
            ..Options::default()
        };
        if let Some(name) = &table.timezone {
            match TimeZone::get(name) {
                Ok(zone) => options.timezone = zone,
                Err(_) => self.mistake(
                    format!("{key}.timezone"),
                    format!("`{name}` is not a time zone, like Asia/Shanghai or UTC"),
                ),
            }
        }
        if let Some(Err(wrong)) = options.test_url.as_ref().map(|url| url.parse::<Url>()) {
            self.mistake(format!("{key}.test_url"), format!("it is not the URL of an application: {wrong}"));
        }
        if let Some(Err(wrong)) = options.public_url.as_ref().map(|url| url.parse::<Url>()) {
            let text = format!("it is not the URL of this endpoint as a browser reaches it: {wrong}");
            self.mistake(format!("{key}.public_url"), text);
        }
        let keys = self.keys(key, &table.keys);
        let account = table.account.unwrap_or_else(|| table.name.clone());
        Some(Endpoint {
            name: table.name.into(),
            account: account.into(),
            dialect: dialect?,
            keys: keys?,
            options,
        })
    }

    /// Where an endpoint asks what was ordered. A marketplace that has to be asked must not be forgotten: a
    /// hook would make something without knowing what was bought.
    fn desk(&mut self, key: &str, dialect: &'static dyn Dialect, table: Option<OrdersTable>) -> Option<Desk> {
        let table = match (dialect.asked_at(), table) {
            (None, None) | (Some(_), Some(OrdersTable { none: true, .. })) => return None,
            (None, Some(_)) => {
                self.mistake(key, format!("{} says in its callbacks what was ordered", dialect.name()));
                return None;
            }
            (Some(_), None) => {
                self.mistake(key, format!("{} does not say in its callbacks what was ordered: give `{{ access_key = \"…\", secret_key = {{ file = \"…\" }} }}`, or `{{ none = true }}` where the hook finds out by itself", dialect.name()));
                return None;
            }
            (Some(_), Some(table)) => table,
        };
        let url = table.url.as_deref().or(dialect.asked_at()).unwrap_or_default().parse::<Url>();
        let url = url.map_err(|error| self.mistake(format!("{key}.url"), error.to_string())).ok()?;
        let access_key = self.access_key(key, &table)?;
        let tls = self.tls(&format!("{key}.ca_file"), &url, table.ca_file.as_deref());
        Some(Desk::new(dialect, url, access_key, tls))
    }

    fn access_key(&mut self, key: &str, table: &OrdersTable) -> Option<AccessKey> {
        let (Some(id), Some(secret)) = (&table.access_key, &table.secret_key) else {
            self.mistake(key, "it has an `access_key`, which is a name, and a `secret_key`, which is `{ file = \"…\" }`, `{ env = \"…\" }` or `{ credential = \"…\" }`");
            return None;
        };
        let (place, secret) = self.secret(&format!("{key}.secret_key"), secret)?;
        let made = AccessKey::new(id, secret).map_err(|error| self.mistake(place, error.to_string())).ok()?;
        match (&table.region, &table.service) {
            (None, None) => Some(made),
            (Some(region), Some(service)) => Some(made.scoped(region, service)),
            _ => {
                self.mistake(
                    key,
                    "`region` and `service` belong together: with them requests are signed in the older form",
                );
                None
            }
        }
    }

    fn keys(&mut self, key: &str, tables: &[KeyTable]) -> Option<Keys> {
        if tables.is_empty() {
            self.mistake(
                format!("{key}.keys"),
                "there is none: give one as { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }",
            );
        }
        let mut labels = HashSet::new();
        let mut keys = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            let key = format!("{key}.keys[{index}]");
            let label = table.label.clone().unwrap_or_else(|| match index {
                0 => "current".to_owned(),
                1 => "previous".to_owned(),
                _ => format!("previous-{index}"),
            });
            if !labels.insert(label.clone()) {
                self.mistake(format!("{key}.label"), format!("`{label}` is the label of an earlier key"));
            }
            keys.extend(self.key(&key, label, table));
        }
        if keys.len() == tables.len() { Keys::new(keys) } else { None }
    }

    fn key(&mut self, key: &str, label: String, table: &KeyTable) -> Option<Key> {
        let (place, secret) = self.secret(key, table)?;
        let made = Key::new(label, secret);
        made.map_err(|error| self.mistake(place, error.to_string())).ok()
    }

    /// The secret a table leads to, and the key of the file it stands under.
    fn secret(&mut self, key: &str, table: &KeyTable) -> Option<(String, Secret)> {
        let (member, secret) = match (&table.file, &table.env, &table.credential) {
            (Some(path), None, None) => ("file", read_key(path)),
            (None, Some(name), None) => {
                let value = self.environment.get(name).map(Secret::new);
                (
                    "env",
                    value.ok_or_else(|| format!("the environment variable `{name}` is not set, or not text")),
                )
            }
            (None, None, Some(name)) => ("credential", self.credential(name)),
            _ => {
                self.mistake(key, "a key has exactly one of `file`, `env` and `credential`; it is never written here itself");
                return None;
            }
        };
        let place = format!("{key}.{member}");
        match secret {
            Ok(secret) => Some((place, secret)),
            Err(text) => {
                self.mistake(place, text);
                None
            }
        }
    }

    /// A systemd credential: a file in the folder the unit was given.
    fn credential(&self, name: &str) -> Result<Secret, String> {
        let folder = self.environment.get("CREDENTIALS_DIRECTORY").ok_or(
            "there is no CREDENTIALS_DIRECTORY: is this running as a systemd unit with LoadCredential=?",
        )?;
        if name.contains('/') || name.is_empty() {
            return Err(format!("`{name}` is not the name of a credential"));
        }
        read_key(&Path::new(&folder).join(name))
    }

    fn runner(
        &mut self,
        hooks: Vec<HookTable>,
        routes: Vec<RouteTable>,
        in_process: Option<AnyHook>,
    ) -> Option<Runner> {
        let mut named = Vec::new();
        if let Some(hook) = in_process {
            named.push(NamedHook::new("in-process", hook));
        } else if hooks.is_empty() {
            self.mistake(
                "hook",
                "there is none: add a [[hook]] with a name and `exec = { command = […] }`, `http = { url = \"…\", secret = … }` or `log = {}`",
            );
        }
        for (index, table) in hooks.into_iter().enumerate() {
            named.extend(self.hook(&format!("hook[{index}]"), table));
        }
        let routes = routes.into_iter().map(route).collect();
        if named.is_empty() {
            return None;
        }
        let runner = Runner::new(named, routes);
        runner.map_err(|wrong| wrong.iter().for_each(|wrong| self.mistake("route", wrong.to_string()))).ok()
    }

    /// A route whose endpoint is misspelt would match nothing, and nobody would hear of it.
    fn check_routes(&mut self, routes: &[RouteTable], endpoints: &[EndpointTable]) {
        let names: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
        for (index, route) in routes.iter().enumerate() {
            let Some(wanted) = route.endpoint.as_deref().filter(|wanted| !names.contains(wanted)) else {
                continue;
            };
            let text = format!("no endpoint is called `{wanted}`; there is {}", names.join(", "));
            self.mistake(format!("route[{index}].endpoint"), text);
        }
    }

    fn hook(&mut self, key: &str, table: HookTable) -> Option<NamedHook> {
        match (table.exec, table.http, table.log) {
            (Some(exec), None, None) => self.exec(key, table.name, exec),
            (None, Some(http), None) => self.http(&format!("{key}.http"), table.name, http),
            (None, None, Some(LogTable {})) => Some(NamedHook::new(table.name, AnyHook::from(LogHook))),
            _ => {
                self.mistake(key, "a hook has exactly one of `exec`, `http` and `log`");
                None
            }
        }
    }

    fn exec(&mut self, key: &str, name: String, table: ExecTable) -> Option<NamedHook> {
        let mut hook = ExecHook::new(table.command);
        if let Some(folder) = table.working_dir {
            hook = hook.working_dir(folder);
        }
        match hook.check() {
            Ok(()) => {}
            Err(error @ BadCommand::NoFolder(_)) => {
                self.mistake(format!("{key}.exec.working_dir"), error.to_string());
            }
            Err(error) => self.mistake(format!("{key}.exec.command"), error.to_string()),
        }
        let timeout = self.duration(&format!("{key}.exec.timeout"), table.timeout.as_deref());
        let hook = NamedHook::new(name, AnyHook::built_in(hook))
            .timeout(timeout.unwrap_or(Duration::from_millis(limits::HOOK_TIMEOUT_MS)))
            .concurrency(table.concurrency.unwrap_or(limits::HOOK_CONCURRENCY_COUNT));
        Some(self.retrying(hook, &format!("{key}.exec.retry"), table.retry.as_deref()))
    }

    /// The hook with its own retry list, if it has one.
    fn retrying(&mut self, hook: NamedHook, key: &str, waits: Option<&[String]>) -> NamedHook {
        let Some(waits) = waits else { return hook };
        let most = limits::RETRY_LIST_MAX_COUNT;
        if waits.is_empty() || waits.len() > most {
            self.mistake(key, format!("it has {} waits; there is room for 1 to {most}: one failure more than there are waits, and the job is dead", waits.len()));
        }
        let mut millis = Vec::new();
        for (index, text) in waits.iter().enumerate() {
            let key = format!("{key}[{index}]");
            let Some(wait) = self.duration(&key, Some(text)) else { continue };
            let (least, most) = (limits::RETRY_LIST_WAIT_MIN_S, limits::RETRY_LIST_WAIT_MAX_S);
            if wait < Duration::from_secs(least) || wait > Duration::from_secs(most) {
                self.mistake(key, format!("`{text}` is not between {least} s and {} h", most / 3600));
            }
            millis.push(self::millis(wait));
        }
        hook.retry(Schedule::from_millis(millis))
    }

    fn http(&mut self, key: &str, name: String, table: HttpTable) -> Option<NamedHook> {
        let keys = self.webhook_keys(&format!("{key}.secret"), table.secret);
        let timeout = self.duration(&format!("{key}.timeout"), table.timeout.as_deref());
        let url = table.url.parse::<Url>();
        let url = url.map_err(|error| self.mistake(format!("{key}.url"), error.to_string())).ok()?;
        let tls = self.tls(&format!("{key}.ca_file"), &url, table.ca_file.as_deref());
        let concurrency = table.concurrency.unwrap_or(limits::HOOK_CONCURRENCY_COUNT);
        let options = HttpHookOptions {
            tls,
            insecure: table.insecure,
            keep: concurrency,
            ..HttpHookOptions::default()
        };
        let hook = HttpHook::new(url, keys?, options);
        if let Err(error) = hook.check() {
            self.mistake(format!("{key}.url"), error.to_string());
        }
        let hook = NamedHook::new(name, AnyHook::from(hook))
            .timeout(timeout.unwrap_or(Duration::from_millis(limits::HOOK_TIMEOUT_MS)))
            .concurrency(concurrency);
        Some(self.retrying(hook, &format!("{key}.retry"), table.retry.as_deref()))
    }

    fn webhook_keys(&mut self, key: &str, secret: Option<OneOrMore>) -> Option<WebhookKeys> {
        let OneOrMore(tables) = secret.unwrap_or(OneOrMore(Vec::new()));
        if tables.is_empty() {
            self.mistake(key, "there is none: give one as { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }; make one with `echo whsec_$(openssl rand -base64 32)`");
        }
        let mut keys = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            let key = if tables.len() == 1 { key.to_owned() } else { format!("{key}[{index}]") };
            if table.label.is_some() {
                self.mistake(format!("{key}.label"), "the secret of a hook has no label");
            }
            let Some((place, secret)) = self.secret(&key, table) else { continue };
            let made = WebhookKey::new(&secret);
            keys.extend(made.map_err(|error| self.mistake(place, error.to_string())));
        }
        if keys.len() == tables.len() { WebhookKeys::new(keys) } else { None }
    }

    /// Whom the hook trusts: read now, so that a missing file is a mistake now.
    fn tls(&mut self, key: &str, url: &Url, more: Option<&Path>) -> Option<Tls> {
        if !url.is_secure() {
            if more.is_some() {
                self.mistake(key, "it is for https, and the URL is http");
            }
            return None;
        }
        Tls::new(more).map_err(|error| self.mistake(key, error.to_string())).ok()
    }
}

/// Where the reader of the file stopped, and why. The reader's own text shows the line, and its reasons
/// quote the value: a key somebody wrote there by mistake must not go on into a log.
fn unreadable(text: &str, error: &toml::de::Error) -> String {
    let reason = without_values(error.message());
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return reason };
    let index = before.matches('\n').count();
    let number = index + 1;
    let name = text.lines().nth(index).and_then(|line| line.split_once('=')).map(|(name, _)| name.trim());
    match name.filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))) {
        Some(name) => format!("line {number}, `{name}`: {reason}"),
        None => format!("line {number}: {reason}"),
    }
}

/// A reason without what stands in double quotes in it; names stand in backticks.
fn without_values(reason: &str) -> String {
    match (reason.find('"'), reason.rfind('"')) {
        (Some(from), Some(to)) if from < to => {
            let (head, tail) = (reason.get(..from), reason.get(to + 1..));
            format!("{}…{}", head.unwrap_or_default(), tail.unwrap_or_default())
        }
        _ => reason.to_owned(),
    }
}

fn route(table: RouteTable) -> Route {
    Route {
        endpoint: table.endpoint,
        product: table.product,
        sku: table.sku,
        buyer: table.buyer,
        hook: table.hook,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Reads a key file. One line ending at its end is not part of the key.
///
/// # Errors
/// What is wrong with the file, never what is in it.
pub fn read_key(path: &Path) -> Result<Secret, String> {
    let bytes =
        std::fs::read(path).map_err(|error| format!("`{}` cannot be read: {error}", path.display()))?;
    let bytes = zeroize::Zeroizing::new(bytes);
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("`{}` is not text", path.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    Ok(Secret::new(text))
}

/// The database a configuration names, without looking at anything else in it: whoever reads the store
/// need not be able to read the keys.
///
/// # Errors
/// When the file cannot be read or is not a configuration.
pub fn store_of(path: &Path, environment: &dyn Environment) -> Result<(PathBuf, StoreOptions), Mistakes> {
    let whole = |text: String| Mistakes {
        source: path.display().to_string(),
        mistakes: vec![Mistake { key: String::new(), text }],
    };
    let text = std::fs::read_to_string(path).map_err(|error| whole(format!("it cannot be read: {error}")))?;
    let file: File = toml::from_str(&text).map_err(|error| whole(unreadable(&text, &error)))?;
    let chosen = |name: &str, written| environment.get(name).map(PathBuf::from).or(written);
    let database = chosen("SPID_STORE__PATH", file.store.path);
    let sealing_key = chosen("SPID_STORE__SEALING_KEY", file.store.sealing_key);
    let options = StoreOptions { sealing_key, ..StoreOptions::default() };
    Ok((database.unwrap_or_else(|| PathBuf::from(DEFAULT_STORE)), options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(endpoint: &str) -> Vec<String> {
        let text = format!(
            "[[endpoint]]\nname = \"a\"\npath = \"/spi\"\ndialect = \"alibaba\"\nkeys = [{{ env = \"FAKE\" }}]\n{endpoint}\n\
             [[hook]]\nname = \"try\"\nlog = {{}}\n"
        );
        let environment = HashMap::from([("FAKE".to_owned(), "fake-key".to_owned())]);
        let wrong = Config::parse(&text, "spid.toml", &environment, None).err();
        wrong.map_or_else(Vec::new, |wrong| wrong.mistakes.into_iter().map(|mistake| mistake.key).collect())
    }

    #[test]
    fn a_marketplace_that_has_to_be_asked_is_not_forgotten() {
        let koogallery = |orders: &str| {
            let text = format!(
                "[[endpoint]]\nname = \"k\"\npath = \"/k\"\ndialect = \"koogallery\"\nkeys = [{{ env = \"FAKE\" }}]\n{orders}\n\
                 [[hook]]\nname = \"try\"\nlog = {{}}\n"
            );
            let environment = HashMap::from([("FAKE".to_owned(), "fake-key".to_owned())]);
            let wrong = Config::parse(&text, "spid.toml", &environment, None).err();
            wrong.map_or_else(Vec::new, |wrong| {
                wrong.mistakes.into_iter().map(|mistake| mistake.key).collect()
            })
        };
        let good = "access_key = \"FAKEACCESS\", secret_key = { env = \"FAKE\" }";
        let url = "url = \"http://127.0.0.1:9\"";
        assert!(koogallery(&format!("orders = {{ {good}, {url} }}")).is_empty());
        assert!(
            koogallery(&format!("orders = {{ {good}, {url}, region = \"r\", service = \"s\" }}")).is_empty()
        );
        assert!(koogallery("orders = { none = true }").is_empty());
        for (orders, key) in [
            (String::new(), "endpoint[0].orders"),
            ("orders = {}".to_owned(), "endpoint[0].orders"),
            (format!("orders = {{ {good}, {url}, region = \"r\" }}"), "endpoint[0].orders"),
            (format!("orders = {{ {good}, url = \"mkt\" }}"), "endpoint[0].orders.url"),
            (
                format!("orders = {{ access_key = \"\", secret_key = {{ env = \"FAKE\" }}, {url} }}"),
                "endpoint[0].orders.secret_key.env",
            ),
        ] {
            assert_eq!(koogallery(&orders), [key], "{orders}");
        }
        assert_eq!(mistakes(&format!("orders = {{ {good} }}")), ["endpoint[0].orders"]);
    }

    #[test]
    fn the_public_url_is_one_a_browser_can_open() {
        assert!(mistakes("public_url = \"https://spi.example/spi\"").is_empty());
        for wrong in ["spi.example", "/spi", "ftp://spi.example", "https://"] {
            assert_eq!(mistakes(&format!("public_url = \"{wrong}\"")), ["endpoint[0].public_url"], "{wrong}");
            assert_eq!(mistakes(&format!("test_url = \"{wrong}\"")), ["endpoint[0].test_url"], "{wrong}");
        }
    }

    fn hook(table: &str) -> Result<Config, Vec<String>> {
        let text = format!(
            "[[endpoint]]\nname = \"a\"\npath = \"/spi\"\ndialect = \"alibaba\"\nkeys = [{{ env = \"FAKE\" }}]\n\
             [[hook]]\nname = \"do\"\n{table}\n"
        );
        let environment = HashMap::from([("FAKE".to_owned(), "fake-key".to_owned())]);
        let keys = |wrong: Mistakes| wrong.mistakes.into_iter().map(|mistake| mistake.key).collect();
        Config::parse(&text, "spid.toml", &environment, None).map_err(keys)
    }

    #[test]
    fn a_hook_has_a_retry_list_of_its_own() {
        let list = |waits: &str| hook(&format!("exec = {{ command = [\"sh\"], retry = {waits} }}"));
        let config = list(r#"["5s", "1m 30s", "24h"]"#).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        let retry = config.runner.hooks().next().and_then(|hook| hook.retry.clone());
        assert_eq!(retry, Some(Schedule::from_millis(vec![5_000, 90_000, 86_400_000])));
        let many = format!("[{}]", ["\"5s\""; limits::RETRY_LIST_MAX_COUNT + 1].join(", "));
        for (waits, key) in [
            ("[]", "hook[0].exec.retry"),
            (many.as_str(), "hook[0].exec.retry"),
            (r#"["5s", "soon"]"#, "hook[0].exec.retry[1]"),
            (r#"["999ms"]"#, "hook[0].exec.retry[0]"),
            (r#"["25h"]"#, "hook[0].exec.retry[0]"),
            (r#"["-5s"]"#, "hook[0].exec.retry[0]"),
        ] {
            assert_eq!(list(waits).err(), Some(vec![key.to_owned()]), "{waits}");
        }
    }

    #[test]
    fn a_working_folder_must_be_there() {
        let folder =
            |path: &str| hook(&format!("exec = {{ command = [\"sh\"], working_dir = \"{path}\" }}")).err();
        assert_eq!(folder("/"), None);
        assert_eq!(folder("/no/such/folder"), Some(vec!["hook[0].exec.working_dir".to_owned()]));
        assert_eq!(folder("/etc/passwd"), Some(vec!["hook[0].exec.working_dir".to_owned()]));
    }

    #[test]
    fn a_route_leads_from_an_endpoint_that_is_there() {
        let route = |endpoint: &str| {
            hook(&format!("log = {{}}\n[[route]]\nendpoint = \"{endpoint}\"\nhook = \"do\"")).err()
        };
        assert_eq!(route("a"), None);
        assert_eq!(route("b"), Some(vec!["route[0].endpoint".to_owned()]));
    }
}

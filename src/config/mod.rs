//! Configuration: reads a file, environment variables and flags into the options of all modules.
//!
//! Order of precedence, the lowest first: defaults, file, environment, flags. All mistakes are reported at once, each
//! with its line and key. A daemon does not start with a mistake in its configuration; a running daemon keeps its old
//! one. A missing, empty or unreadable key is a mistake, too: there is no way to run without signatures.
//!
//! To add a key of the configuration:
//!
//! * Read it in `Config::read` or in the file of its table (`endpoints`, `hooks`, `keys`), with its default from
//!   [`limits`].
//! * Add a line to `default.toml`; a test compares that file with the keys that are read.
//! * If a running daemon cannot change it, add it to [`NEEDS_RESTART`].

mod check;
mod endpoints;
mod front;
mod hooks;
mod keys;
mod reader;
mod telemetry;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::admin::AdminOptions;
use crate::hooks::log::LogHook;
use crate::hooks::runner::Runner;
use crate::market_api::order_lookup::OrderLookupClients;
use crate::net::ServerTls;
use crate::observe::files;
use crate::observe::limits;
use crate::serve::intake::{Endpoint, IntakeOptions};
use crate::serve::public::AccessPolicy;
use crate::serve::spans::TelemetryOptions;
use crate::store::StoreOptions;
use crate::store::encryption::KeySource;
use endpoints::Endpoints;
use reader::{Reader, Settings, Table};
use spid_core::lifecycle::UnknownInstance;
use spid_core::signature::Key;
use spid_hook::AnyHook;

pub use hooks::{InProcess, SETTINGS};
use spid_hook::Secret;

pub use check::{Checked, check};
pub use keys::read_key;

/// Default configuration file with comments: every key there is. A test compares its defaults with those of the code.
pub const DEFAULT_FILE: &str = include_str!("default.toml");

/// Keys that a running daemon cannot change: it keeps the values it was started with.
pub const NEEDS_RESTART: [&str; 9] = [
    "server.listen",
    "server.admin_listen",
    "store.path",
    "telemetry.otlp",
    "telemetry.ca_file",
    "telemetry.headers.file",
    "telemetry.headers.env",
    "telemetry.headers.credential",
    "telemetry.service_name",
];

/// Environment variables, as the configuration reads them. Tests use a map.
pub trait Environment {
    /// Returns the value of a variable.
    fn get(&self, name: &str) -> Option<String>;
    /// Returns the names of all variables.
    fn names(&self) -> Vec<String>;
}

/// Environment of this process.
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

/// Key of the configuration that was given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Name of the flag, like `--listen`.
    pub name: &'static str,
    /// Key that the flag sets, like `server.listen`.
    pub key: &'static str,
    /// Value of the flag.
    pub value: String,
}

/// Place of a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File {
        /// Line number, from 1; `None` if a part of the file is missing or the whole file is wrong.
        line: Option<usize>,
    },
    /// Environment variable with this name.
    Variable(String),
    /// Flag with this name.
    Flag(&'static str),
}

/// Mistake in the configuration, with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Name of the key, like `server.listen` or `endpoint[0].keys[1].file`; empty for the whole file.
    pub key: String,
    /// Place of the mistake.
    pub origin: Origin,
    /// Problem, and the action to take. Never contains a secret key.
    pub text: String,
}

/// All mistakes of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// Name of the source: the path of the file, or `--dev`.
    pub source: String,
    /// List of mistakes; never empty.
    pub mistakes: Vec<Mistake>,
}

impl Mistake {
    /// Formats the mistake as one line: `spid.toml:3: `server.listen`: …`.
    fn line(&self, source: &str) -> String {
        let Mistake { key, origin, text } = self;
        let place = match origin {
            Origin::File { line: Some(line) } => format!("{source}:{line}"),
            Origin::File { line: None } => source.to_owned(),
            Origin::Variable(name) => name.clone(),
            Origin::Flag(name) => (*name).to_owned(),
        };
        if key.is_empty() { format!("{place}: {text}") } else { format!("{place}: `{key}`: {text}") }
    }
}

impl Mistakes {
    /// Creates a mistake about the whole file.
    fn whole(path: &Path, text: String) -> Mistakes {
        let mistake = Mistake { key: String::new(), origin: Origin::File { line: None }, text };
        Mistakes { source: path.display().to_string(), mistakes: vec![mistake] }
    }

    /// Returns the mistakes, each as one line: `spid.toml:3: `server.listen`: …`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.mistakes.iter().map(|mistake| mistake.line(&self.source))
    }
}

impl std::fmt::Display for Mistakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.lines().collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// Configuration of a daemon: the options of all its parts.
#[derive(Clone)]
pub struct Config {
    /// Address of the public listener, which the marketplace calls.
    pub listen: SocketAddr,
    /// Address of the admin listener; `None` if there is none.
    pub admin_listen: Option<SocketAddr>,
    /// Options for the admin listener.
    pub admin: AdminOptions,
    /// Path of the database.
    pub store_path: PathBuf,
    /// Options for the store.
    pub store: StoreOptions,
    /// Endpoints, each with its path.
    pub endpoints: Vec<(String, Endpoint)>,
    /// Order lookups, for marketplaces whose callbacks do not say what was ordered.
    pub orders: OrderLookupClients,
    /// Hooks and routes.
    pub runner: Runner,
    /// Options for the intake.
    pub intake: IntakeOptions,
    /// Certificate of the public listener; `None` for plain HTTP.
    pub tls: Option<ServerTls>,
    /// Access rules of the public listener: proxies, allowed networks and rates.
    pub guard: AccessPolicy,
    /// Time without a signature after which a previous key is reported as unused.
    pub key_unused_after: Duration,
    /// Options for sending spans; `None` if no spans are sent.
    pub telemetry: Option<TelemetryOptions>,
    /// Log level, unless the command line sets the filter.
    pub log_level: LevelFilter,
    /// Log format, unless the command line sets it.
    pub log_format: LogFormat,
    /// Accounts that have live instances and deliberately no endpoint.
    pub retired_accounts: Vec<String>,
    /// Warnings: the configuration works, but should be changed.
    pub warnings: Vec<String>,
    settings: Settings,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// JSON for programs: one object per line.
    Json,
}

impl LogFormat {
    /// All formats.
    pub const ALL: [LogFormat; 2] = [LogFormat::Text, LogFormat::Json];

    /// Name of the format in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(word: &str) -> Result<LogFormat, String> {
        let found = LogFormat::ALL.into_iter().find(|format| format.as_str() == word);
        found.ok_or_else(|| "use text or json".to_owned())
    }
}

/// Default path of the database.
pub const DEFAULT_STORE: &str = "spid.db";
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

impl Config {
    /// Reads a configuration file, and every file it names. `hook` is the hook of a program that embeds spid; it is
    /// the default hook then.
    ///
    /// # Errors
    /// Returns all mistakes at once.
    pub fn load(
        path: &Path,
        environment: &dyn Environment,
        flags: &[Flag],
        hook: Option<InProcess>,
    ) -> Result<Config, Mistakes> {
        Config::parse(&text_of(path)?, &path.display().to_string(), environment, flags, hook)
    }

    /// Reads a configuration from text, like [`Config::load`] does from a file.
    ///
    /// # Errors
    /// Returns all mistakes at once.
    pub fn parse(
        text: &str,
        source: &str,
        environment: &dyn Environment,
        flags: &[Flag],
        hook: Option<InProcess>,
    ) -> Result<Config, Mistakes> {
        Config::parse_and(text, source, environment, flags, hook, |_, _, _| {})
    }

    /// Reads a configuration like [`Config::parse`], and calls `look` with the store's table, which may add mistakes.
    fn parse_and(
        text: &str,
        source: &str,
        environment: &dyn Environment,
        flags: &[Flag],
        hook: Option<InProcess>,
        look: impl FnOnce(&Table<'_>, &Path, &StoreOptions),
    ) -> Result<Config, Mistakes> {
        let reader = Reader::new(text, source, environment, flags)?;
        let config = Config::read(&reader.root(), hook, look);
        let reader::Findings { settings, mistakes, warnings, .. } = reader.finish();
        let warnings = warnings.iter().map(|warning| warning.line(source)).collect();
        match config {
            // Warnings do not prevent a start, mistakes do.
            Some(config) if mistakes.is_empty() => Ok(Config { settings, warnings, ..config }),
            _ => Err(Mistakes { source: source.to_owned(), mistakes }),
        }
    }

    /// Returns the fixed configuration of `serve --dev`: loopback, paths `/spi` (alibaba), `/jdcloud`, `/generic` and
    /// `/koogallery`, key `isvkey`.
    ///
    /// # Errors
    /// Returns mistakes only if a flag is wrong or spid has a bug.
    pub fn dev(flags: &[Flag], hook: Option<InProcess>) -> Result<Config, Mistakes> {
        let environment = HashMap::from([(DEV_KEY_VARIABLE.to_owned(), DEV_KEY.to_owned())]);
        let hook = hook.unwrap_or_else(|| AnyHook::from(LogHook).into());
        let config = Config::parse(DEV_CONFIG, "--dev", &environment, flags, Some(hook))?;
        // The fixed configuration has a known key, and the warning about it would confuse.
        Ok(Config { warnings: Vec::new(), ..config })
    }

    /// Reads all tables. Returns `None` if a part without a default is missing; the mistake is reported then.
    fn read(
        root: &Table<'_>,
        hook: Option<InProcess>,
        look: impl FnOnce(&Table<'_>, &Path, &StoreOptions),
    ) -> Option<Config> {
        let server_table = root.table("server");
        let Server { listen, admin_listen, admin, reply_within } = server(&server_table);
        let (tls, proxies) = (front::tls(&server_table), front::proxies(&server_table));
        let rate = front::rate(&root.table("rate"));
        let policy = policy(&root.table("policy"));
        let store_table = root.table("store");
        let (store_path, sealing_keys) = store(&store_table);
        let secrets_window_ms = millis(policy.secrets_window);
        let store = StoreOptions { sealing_keys, secrets_window_ms, ..StoreOptions::default() };
        look(&store_table, &store_path, &store);
        let (log_level, log_format) = log(&root.table("log"));
        let telemetry = telemetry::telemetry(&root.table("telemetry"));
        let Endpoints { sound: endpoints, lookup_clients, names, allow } = endpoints::endpoints(root, listen);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // Last, because it ends this function early: all other tables have reported their mistakes by now.
        let runner = hooks::runner(root, hook, &names)?;
        Some(Config {
            listen,
            admin_listen,
            admin,
            store_path,
            store,
            endpoints,
            orders: OrderLookupClients::new(lookup_clients),
            runner,
            intake: IntakeOptions { reply_within, policy: policy.of_instances },
            tls,
            guard: AccessPolicy { proxies, allow, rate },
            key_unused_after: policy.key_unused_after,
            telemetry,
            log_level,
            log_format,
            retired_accounts: policy.retired_accounts,
            warnings: Vec::new(),
            settings: Settings::new(),
        })
    }

    /// Returns true if an endpoint uses the key of the documentation, with which everyone can sign.
    pub fn has_known_key(&self) -> bool {
        self.endpoints.iter().any(|(_, endpoint)| endpoints::is_known_key(&endpoint.keys))
    }

    /// Returns the names of the keys that differ from `other`. Values are compared as text; for the keys of endpoints
    /// the secrets are compared, too. For other files only their names are compared.
    pub fn changes(&self, other: &Config) -> Vec<String> {
        let keys = self.settings.keys().chain(other.settings.keys());
        let changed = keys.filter(|key| self.settings.get(*key) != other.settings.get(*key)).cloned();
        let secrets =
            |config: &Config, index: usize| config.endpoints.get(index).map(|(_, it)| it.keys.clone());
        // The settings contain only where a key is read from, so the keys themselves are compared here.
        let rekeyed = (0..self.endpoints.len().max(other.endpoints.len()))
            .filter(|index| secrets(self, *index) != secrets(other, *index))
            .map(|index| format!("endpoint[{index}].keys"));
        let mut all: Vec<String> = changed.chain(rekeyed).collect();
        // An endpoint can be in both lists.
        all.sort();
        all.dedup();
        all
    }
}

fn text_of(path: &Path) -> Result<String, Mistakes> {
    files::read_text(path, limits::CONFIG_FILE_MAX_BYTES)
        .map_err(|error| Mistakes::whole(path, format!("the file cannot be read: {error}")))
}

struct Server {
    listen: SocketAddr,
    admin_listen: Option<SocketAddr>,
    admin: AdminOptions,
    reply_within: Duration,
}

fn server(table: &Table<'_>) -> Server {
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

fn address(text: &str) -> Result<SocketAddr, String> {
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

fn store(table: &Table<'_>) -> (PathBuf, Vec<KeySource>) {
    let path = |text: &str| match text {
        "" => Err("the path is empty".to_owned()),
        text => Ok(PathBuf::from(text)),
    };
    (table.value("path", PathBuf::from(DEFAULT_STORE), path), keys::sealing_keys(table))
}

struct PolicyTable {
    of_instances: spid_core::lifecycle::Policy,
    secrets_window: Duration,
    key_unused_after: Duration,
    retired_accounts: Vec<String>,
}

fn policy(table: &Table<'_>) -> PolicyTable {
    let default = spid_core::lifecycle::Policy::default();
    let words = [
        ("refuse", UnknownInstance::Refuse),
        ("succeed", UnknownInstance::Succeed),
        ("adopt", UnknownInstance::Adopt),
    ];
    let of_millis = |millis: i64| Duration::from_millis(millis.unsigned_abs());
    let window = table.duration("sign_on_window", of_millis(default.sign_on_window_ms));
    if millis(window) > limits::SIGN_ON_WINDOW_MAX_MS {
        table.mistake(
            "sign_on_window",
            "the window is longer than 24h, so an old sign-on link would still work; use 24h or less",
        );
    }
    PolicyTable {
        of_instances: spid_core::lifecycle::Policy {
            unknown_instance: table.choice("unknown_instance", default.unknown_instance, &words),
            sign_on_window_ms: millis(window),
        },
        secrets_window: table.duration("secrets_window", of_millis(limits::SECRETS_WINDOW_MS)),
        key_unused_after: table
            .duration("key_unused_after", Duration::from_millis(limits::KEY_UNUSED_AFTER_MS)),
        retired_accounts: table.texts("retired_accounts").unwrap_or_default(),
    }
}

fn log(table: &Table<'_>) -> (LevelFilter, LogFormat) {
    let words = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    let formats = LogFormat::ALL.map(|format| (format.as_str(), format));
    (table.choice("level", LevelFilter::INFO, &words), table.choice("format", LogFormat::default(), &formats))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Suggestion for an unknown name.
pub(crate) fn unknown(what: &str, known: &[&str]) -> String {
    reader::unknown(what, known)
}

/// Key of `--dev`: the key in the vendor's documentation. It must not be used for anything else.
pub const DEV_KEY: &str = "isvkey";
const DEV_KEY_VARIABLE: &str = "DEV_KEY";
const DEV_CONFIG: &str = r#"
[[endpoint]]
name = "dev"
account = "dev"
path = "/spi"
dialect = "alibaba"
keys = [{ env = "DEV_KEY", label = "dev" }]
shared_key = true

[[endpoint]]
name = "dev-jdcloud"
account = "dev-jdcloud"
path = "/jdcloud"
dialect = "jdcloud"
keys = [{ env = "DEV_KEY", label = "dev" }]
shared_key = true

[[endpoint]]
name = "dev-generic"
account = "dev-generic"
path = "/generic"
dialect = "generic"
keys = [{ env = "DEV_KEY", label = "dev" }]

[[endpoint]]
name = "dev-koogallery"
account = "dev-koogallery"
path = "/koogallery"
dialect = "koogallery"
keys = [{ env = "DEV_KEY", label = "dev" }]
orders = { none = true }
"#;

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
    let reader = Reader::new(&text, &path.display().to_string(), environment, &[])?;
    let root = reader.root();
    // As in the daemon, the default account is the endpoint's name.
    let account = |table: Table<'_>| table.text("account").or_else(|| table.text("name"));
    let served = root.tables("endpoint", false).into_iter().filter_map(account);
    let retired = root.table("policy").texts("retired_accounts").unwrap_or_default();
    Ok(served.chain(retired).collect())
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
    let reader = Reader::new(&text, &path.display().to_string(), environment, &[])?;
    let mut accounts = BTreeMap::new();
    for table in reader.root().tables("endpoint", false) {
        // As in the daemon, the default account is the endpoint's name.
        let account = table.text("account").or_else(|| table.text("name"));
        accounts.extend(table.text("path").zip(account));
    }
    Ok(accounts)
}

#[cfg(test)]
mod tests;

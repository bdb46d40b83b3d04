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

mod app;
mod check;
mod dev;
mod endpoints;
mod environment;
mod hooks;
mod keys;
mod log;
mod markets;
mod mistakes;
mod partial;
mod public_listener;
mod reader;
mod server;
mod telemetry;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::hooks::log::LogHook;
use crate::market_api::order_lookup::OrderLookupClients;
use crate::observe::files;
use crate::observe::limits;
use crate::serve::daemon::LiveOptions;
use crate::serve::intake::IntakeOptions;
use crate::serve::public::AccessPolicy;
use crate::serve::spans::TelemetryOptions;
use crate::store::StoreOptions;
use crate::store::encryption::KeySource;
use app::AppTable;
use dev::{DEV_CONFIG, DEV_KEY_VARIABLE};
use endpoints::Endpoints;
use reader::{Reader, Settings, Table};
use server::Server;
use spid_core::lifecycle::UnknownInstance;
use spid_hook::AnyHook;

pub use hooks::{InProcess, SETTINGS};

pub use check::{Checked, check};
pub use dev::DEV_KEY;
pub use environment::{Environment, Flag, ProcessEnvironment};
pub use keys::read_key;
pub use log::LogFormat;
pub use mistakes::{Mistake, Mistakes, Origin};
pub use partial::{
    EndpointAccess, RouteList, accounts_by_path, accounts_of, admin_of, endpoints_of, routes_of, store_of,
};

/// Default configuration file with comments: every key there is. A test compares its defaults with those of the code.
pub const DEFAULT_FILE: &str = include_str!("default.toml");

/// Keys that a running daemon cannot change: it keeps the values it was started with.
pub const NEEDS_RESTART: [&str; 10] = [
    "app.listen",
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

/// Configuration of a daemon: the options of all its parts.
#[derive(Clone)]
pub struct Config {
    /// Address of the public listener, which the marketplace calls.
    pub listen: SocketAddr,
    /// Address of the admin listener; `None` if there is none.
    pub admin_listen: Option<SocketAddr>,
    /// Address of the listener for the seller's application; `None` if there is none.
    pub app_listen: Option<SocketAddr>,
    /// Path of the database.
    pub store_path: PathBuf,
    /// Options for the store.
    pub store: StoreOptions,
    /// Options that a reload changes: endpoints, hooks and routes, access.
    pub live: LiveOptions,
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
        let Server { listen, admin_listen, admin, reply_within } = server::server(&server_table);
        let (tls, proxies) = (public_listener::tls(&server_table), public_listener::proxies(&server_table));
        root.removed("rate", &["SPID_RATE__PER_ADDRESS", "SPID_RATE__PER_ENDPOINT"]);
        let policy = policy(&root.table("policy"));
        let store_table = root.table("store");
        let (store_path, sealing_keys) = store(&store_table);
        let secrets_window_ms = millis(policy.secrets_window);
        let store = StoreOptions { sealing_keys, secrets_window_ms, ..StoreOptions::default() };
        look(&store_table, &store_path, &store);
        let (log_level, log_format) = log::log(&root.table("log"));
        let telemetry = telemetry::telemetry(&root.table("telemetry"));
        let Endpoints { sound: endpoints, lookup_clients, names, allow } = endpoints::endpoints(root, listen);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut accounts = policy.retired_accounts.clone();
        accounts.extend(endpoints.iter().map(|(_, endpoint)| endpoint.account.to_string()));
        let AppTable { listen: app_listen, options: app } = app::app(&root.table("app"), &accounts);
        let markets = markets::markets(root, &endpoints);
        // Last, because it ends this function early: all other tables have reported their mistakes by now.
        let runner = hooks::runner(root, hook, &names)?;
        Some(Config {
            listen,
            admin_listen,
            app_listen,
            store_path,
            store,
            live: LiveOptions {
                endpoints,
                runner,
                orders: OrderLookupClients::new(lookup_clients),
                intake: IntakeOptions { reply_within, policy: policy.of_instances },
                access_policy: AccessPolicy { proxies, allow },
                tls,
                admin,
                app,
                markets,
            },
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
        self.live.endpoints.iter().any(|(_, endpoint)| endpoints::is_known_key(&endpoint.keys))
    }

    /// Returns the names of the keys that differ from `other`. Values are compared as text; for the keys of endpoints
    /// the secrets are compared, too. For other files only their names are compared.
    pub fn changes(&self, other: &Config) -> Vec<String> {
        let keys = self.settings.keys().chain(other.settings.keys());
        let changed = keys.filter(|key| self.settings.get(*key) != other.settings.get(*key)).cloned();
        let secrets =
            |config: &Config, index: usize| config.live.endpoints.get(index).map(|(_, it)| it.keys.clone());
        // The settings contain only where a key is read from, so the keys themselves are compared here.
        let rekeyed = (0..self.live.endpoints.len().max(other.live.endpoints.len()))
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

fn store(table: &Table<'_>) -> (PathBuf, Vec<KeySource>) {
    (table.value("path", PathBuf::from(DEFAULT_STORE), keys::path), keys::sealing_keys(table))
}

struct PolicyTable {
    of_instances: spid_core::lifecycle::Policy,
    secrets_window: Duration,
    retired_accounts: Vec<String>,
}

fn policy(table: &Table<'_>) -> PolicyTable {
    table.removed("key_unused_after", &["SPID_POLICY__KEY_UNUSED_AFTER"]);
    let default = spid_core::lifecycle::Policy::default();
    let words = UnknownInstance::ALL.map(|choice| (choice.as_str(), choice));
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
        retired_accounts: table.texts("retired_accounts").unwrap_or_default(),
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Suggestion for an unknown name.
pub(crate) fn unknown(what: &str, known: &[&str]) -> String {
    reader::unknown(what, known)
}

#[cfg(test)]
mod tests;

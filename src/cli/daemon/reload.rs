//! Reload on SIGHUP: the configuration is read again, and applied completely or not at all.
//!
//! The running configuration is always one complete file, never a mixture of two. A reload has three outcomes; each
//! is logged in one line and counted:
//!
//! * The new configuration is applied.
//! * It needs a restart, and no part of it is applied.
//! * It has a mistake, and the old configuration is kept.

use std::path::PathBuf;

use crate::cli::daemon::logging::Logging;
use crate::cli::daemon::serve;
use crate::config::{Config, Flag, InProcess, Mistakes, NEEDS_RESTART, ProcessEnvironment, SETTINGS};
use crate::observe::metrics::Metric;
use crate::serve::daemon::Daemon;
use crate::store::StoreError;
use crate::store::encryption::Encryptor;

/// Source of the configuration, for the start and for every reload.
#[derive(Clone)]
pub(crate) struct Source {
    /// Configuration file; `None` for `--dev`.
    pub(crate) path: Option<PathBuf>,
    /// Flags of the command line, which override the file.
    pub(crate) flags: Vec<Flag>,
    /// Hook of a program that embeds spid.
    pub(crate) hook: Option<InProcess>,
}

impl Source {
    pub(crate) fn read(self) -> Result<Config, Mistakes> {
        match &self.path {
            Some(path) => Config::load(path, &ProcessEnvironment, &self.flags, self.hook),
            None => Config::dev(&self.flags, self.hook),
        }
    }
}

/// Outcome of a reload.
enum Outcome {
    Applied { changed: Vec<String> },
    RestartRequired { keys: Vec<String> },
    Kept { why: String },
}

/// Returns true if a running daemon cannot change this key. The hook inside was started with its settings.
fn needs_restart(key: &str) -> bool {
    NEEDS_RESTART.contains(&key) || key.starts_with("hook[") && key.ends_with(SETTINGS)
}

/// Reads the configuration and its sealing keys. A missing key file is not created again while a daemon uses the key.
fn read(source: Source) -> Result<(Config, Result<Encryptor, StoreError>), String> {
    let config = source.read().map_err(|mistakes| mistakes.lines().collect::<Vec<_>>().join("; "))?;
    let encryptor = config.store.encryptor(&config.store_path);
    Ok((config, encryptor))
}

/// Reloads the configuration, once for each SIGHUP.
pub(crate) struct Reloader {
    source: Source,
    current: Config,
    logging: Logging,
}

impl Reloader {
    /// Creates a reloader for a daemon that runs with `current`.
    pub(crate) fn new(source: Source, current: Config, logging: Logging) -> Reloader {
        Reloader { source, current, logging }
    }

    /// Reloads now. Requests and jobs in progress keep the configuration they began with.
    pub(crate) async fn reload(&mut self, daemon: &Daemon) {
        let outcome = self.apply(daemon).await;
        let word = match &outcome {
            Outcome::Applied { .. } => "applied",
            Outcome::RestartRequired { .. } => "restart-required",
            Outcome::Kept { .. } => "kept",
        };
        match outcome {
            Outcome::Applied { changed } if changed.is_empty() => {
                tracing::info!("reload: applied; no key has changed, and the files it names were read again");
            }
            Outcome::Applied { changed } => tracing::info!(changed = changed.join(", "), "reload: applied"),
            Outcome::RestartRequired { keys } => {
                tracing::warn!(
                    keys = keys.join(", "),
                    "reload: restart required, and nothing was applied: these keys cannot change while the daemon runs"
                );
            }
            Outcome::Kept { why } => tracing::error!("reload: kept the old configuration: {why}"),
        }
        daemon.metrics().count(Metric::Reloads, [word, ""]);
    }

    async fn apply(&mut self, daemon: &Daemon) -> Outcome {
        let source = self.source.clone();
        // A file may be on a disk that hangs, so it is read on a thread of its own: nothing else waits for it.
        let (config, encryptor) = match tokio::task::spawn_blocking(|| read(source)).await {
            Ok(Ok(read)) => read,
            Ok(Err(why)) => return Outcome::Kept { why },
            Err(error) => {
                return Outcome::Kept {
                    why: format!("internal error while reading the configuration: {error}"),
                };
            }
        };
        // Keys that a running daemon cannot change: refuse the whole reload, so that no half of it applies.
        let changed = self.current.changes(&config);
        let mut keys: Vec<String> = changed.iter().filter(|key| needs_restart(key)).cloned().collect();
        // A new certificate can be used at once, but a listener cannot switch between HTTP and TLS.
        if self.current.live.tls.is_some() != config.live.tls.is_some() {
            keys.push("server.tls".to_owned());
        }
        // The values, wherever they are stored: a change of the header's source is in `keys` already.
        let headers = |config: &Config| config.telemetry.as_ref().map(|telemetry| telemetry.headers.clone());
        if keys.is_empty() && headers(&self.current) != headers(&config) {
            keys.push("telemetry.headers".to_owned());
        }
        if !keys.is_empty() {
            return Outcome::RestartRequired { keys };
        }
        let encryptor = match encryptor {
            Ok(encryptor) => encryptor,
            Err(error) => return Outcome::Kept { why: error.to_string() },
        };
        // Last check before anything changes: live instances must keep an endpoint of their account.
        if let Err(error) = daemon.check_accounts(&config.live.endpoints, &config.retired_accounts) {
            return Outcome::Kept { why: error.to_string() };
        }
        serve::warn(&config);
        // Nothing can fail from here on.
        daemon.change(config.live.clone(), config.store.secrets_window_ms, encryptor);
        self.logging.configure(config.log_level, config.log_format);
        self.current = config;
        Outcome::Applied { changed }
    }
}

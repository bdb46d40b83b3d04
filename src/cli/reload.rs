//! SIGHUP: the configuration is read again, and applied whole or not at all.
//!
//! What runs is always one file somebody wrote, never half of one and half of another. So there are three
//! outcomes, each said in one line and counted: it is applied; it needs a restart, and nothing of it is
//! applied; or something is wrong with it, and the old one is kept.

use std::path::PathBuf;

use super::logging::Logging;
use super::serve;
use crate::config::{Config, Flag, Mistakes, NEEDS_RESTART, ProcessEnvironment};
use crate::hook::AnyHook;
use crate::observe::metrics::Metric;
use crate::serve::daemon::{Changes, Daemon};
use crate::store::StoreError;
use crate::store::encryption::Sealer;

/// Where the configuration comes from, every time.
#[derive(Clone)]
pub(super) struct Source {
    /// The file; `None` for `--dev`.
    pub(super) path: Option<PathBuf>,
    /// What comes before it.
    pub(super) flags: Vec<Flag>,
    /// The hook inside of this program.
    pub(super) hook: Option<AnyHook>,
}

impl Source {
    pub(super) fn read(self) -> Result<Config, Mistakes> {
        match &self.path {
            Some(path) => Config::load(path, &ProcessEnvironment, &self.flags, self.hook),
            None => Config::dev(&self.flags, self.hook),
        }
    }
}

/// What became of a reload.
enum Outcome {
    Applied { changed: Vec<String> },
    RestartRequired { keys: Vec<String> },
    Kept { why: String },
}

/// The configuration, and its sealing keys. A key that has gone is not made anew while a daemon has it.
fn read(source: Source) -> Result<(Config, Result<Sealer, StoreError>), String> {
    let config = source.read().map_err(|mistakes| mistakes.lines().collect::<Vec<_>>().join("; "))?;
    let sealer = config.store.sealer(&config.store_path);
    Ok((config, sealer))
}

/// Reads the configuration again, as often as it is asked to.
pub(super) struct Reloader {
    source: Source,
    current: Config,
    logging: Logging,
}

impl Reloader {
    /// For a daemon that runs with `current`.
    pub(super) fn new(source: Source, current: Config, logging: Logging) -> Reloader {
        Reloader { source, current, logging }
    }

    /// Reads it again now. What runs already ends with what it began with.
    pub(super) async fn reload(&mut self, daemon: &Daemon) {
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
        // A file may lie on a disk that hangs: nobody else waits for it.
        let (config, sealer) = match tokio::task::spawn_blocking(|| read(source)).await {
            Ok(Ok(read)) => read,
            Ok(Err(why)) => return Outcome::Kept { why },
            Err(error) => {
                return Outcome::Kept { why: format!("reading it failed, which is a bug: {error}") };
            }
        };
        let changed = self.current.changes(&config);
        let mut keys: Vec<String> =
            changed.iter().filter(|key| NEEDS_RESTART.contains(&key.as_str())).cloned().collect();
        if self.current.tls.is_some() != config.tls.is_some() {
            keys.push("server.tls".to_owned());
        }
        // Whichever file they are in: a name that has changed is among the keys already.
        let headers = |config: &Config| config.telemetry.as_ref().map(|telemetry| telemetry.headers.clone());
        if keys.is_empty() && headers(&self.current) != headers(&config) {
            keys.push("telemetry.headers".to_owned());
        }
        if !keys.is_empty() {
            return Outcome::RestartRequired { keys };
        }
        let sealer = match sealer {
            Ok(sealer) => sealer,
            Err(error) => return Outcome::Kept { why: error.to_string() },
        };
        if let Err(error) = daemon.check_accounts(&config.endpoints, &config.retired_accounts) {
            return Outcome::Kept { why: error.to_string() };
        }
        serve::warn(&config);
        daemon.change(Changes {
            endpoints: config.endpoints.clone(),
            runner: config.runner.clone(),
            orders: config.orders.clone(),
            intake: config.intake.clone(),
            guard: config.guard.clone(),
            tls: config.tls.clone(),
            secrets_window_ms: config.store.secrets_window_ms,
            sealer: Some(sealer),
            key_unused_after: config.key_unused_after,
            admin: config.admin.clone(),
        });
        self.logging.configure(config.log_level, config.log_format);
        self.current = config;
        Outcome::Applied { changed }
    }
}

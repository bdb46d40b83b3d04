//! `serve`: runs the daemon.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::app::{self, in_process};
use crate::cli::daemon::logging::Logging;
use crate::cli::daemon::reload::{Reloader, Source};
use crate::cli::daemon::sockets;
use crate::cli::{Done, Exit, Failure, Inside, Program, is_typed, runtime};
use crate::config::{Config, Flag, InProcess};
use crate::net::ServerOptions;
use crate::observe::limits;
use crate::observe::metrics::Metrics;
use crate::serve::daemon::{Daemon, DaemonOptions, Stopped};
use crate::serve::dispatch::DispatchOptions;
use crate::serve::supervisor::{Sockets, Supervisor};
use spid_hook::time::Clock;

#[derive(Args)]
#[group(id = "mode", required = true, multiple = true)]
pub(crate) struct ModeArguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", env = "SPID_CONFIG")]
    config: Option<PathBuf>,
    /// Run without a configuration, and ignore SPID_CONFIG: loopback only, paths `/spi` (alibaba), `/jdcloud`,
    /// `/koogallery` and `/generic`, key `isvkey`, database `./spid.db`, the log hook.
    #[arg(long)]
    dev: bool,
}

#[derive(Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    mode: ModeArguments,
    /// Address to listen on. Overrides the configuration.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Database file. Overrides the configuration.
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
}

pub(crate) fn serve(
    arguments: ServeArguments,
    program: Program,
    hook: Option<Inside>,
    logging: Logging,
) -> Done {
    // Must run before a second thread exists: it removes the sockets from the environment, which is not thread-safe.
    let sockets = sockets::sockets()?;
    let metrics = Metrics::default();
    // Starts the thread of the log. From here on a full or stuck stderr cannot delay an order.
    logging.never_wait(metrics.clone())?;
    // Must run before the configuration is read, because reading it loads the keys.
    hide_memory();
    let dev = arguments.mode.dev;
    let source = arguments.source(in_process(hook.as_ref()))?;
    let mut config = source.clone().read()?;
    // The store and the log count in the same metrics.
    config.store.metrics = metrics;
    // The warnings below already follow the configured level and format.
    logging.configure(config.log_level, config.log_format);
    warn(&config);
    run_and_leave(async {
        // Before a listener is opened: a daemon without its hook must not take callbacks.
        app::start(hook).await?;
        run(config.clone(), Reloader::new(source, config, logging), sockets, dev, program).await
    })
}

/// Logs the warnings of a configuration.
pub(crate) fn warn(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!("configuration: {warning}");
    }
}

/// Hides the memory of this process, which holds keys: no core dump is written, and other processes of the same user
/// cannot read its memory or its environment in `/proc`. Must be called before a key is read. Hooks are separate
/// programs: the protection of `/proc` does not extend to them. They inherit the soft limit for core dumps, and may
/// raise it.
fn hide_memory() {
    let limit = getrlimit(Resource::Core);
    let none = Rlimit { current: Some(0), maximum: limit.maximum };
    // A supervisor that has set the limit to 0 may also have forbidden this call, so it is made only if needed.
    let limited = if limit.current == Some(0) { Ok(()) } else { setrlimit(Resource::Core, none) };
    let hidden = limited.and(not_dumpable());
    if let Err(error) = hidden {
        tracing::warn!(%error, "the memory of this process cannot be kept from other programs: a core could hold keys");
    }
}

#[cfg(target_os = "linux")]
fn not_dumpable() -> rustix::io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

#[cfg(not(target_os = "linux"))]
fn not_dumpable() -> rustix::io::Result<()> {
    Ok(())
}

impl ServeArguments {
    /// Source of the configuration, for the start and for every reload.
    fn source(self, hook: Option<InProcess>) -> Result<Source, Failure> {
        let dev = self.mode.dev;
        if dev && is_typed(self.mode.config.as_deref()) {
            return Err(Failure::new(Exit::Usage, "`--dev` and `--config` exclude each other: give one"));
        }
        // With the public key of `--dev`, other machines could sign requests.
        if let Some(listen) = self.listen.filter(|listen| dev && !listen.ip().is_loopback()) {
            return Err(Failure::new(
                Exit::Usage,
                format!("--dev uses a public key, so it can listen only on loopback, not on {listen}"),
            )
            .hint("write a configuration with a key of your own"));
        }
        let listen = self.listen.map(|listen| listen.to_string());
        let db = self.db.map(|db| db.into_os_string().into_string());
        let db = db.transpose().map_err(|_| Failure::new(Exit::Usage, "`--db` is not text"))?;
        let listen = listen.map(|value| Flag { name: "--listen", key: "server.listen", value });
        let db = db.map(|value| Flag { name: "--db", key: "store.path", value });
        // `--dev` ignores the SPID_CONFIG of the environment.
        let path = self.mode.config.filter(|_| !dev);
        Ok(Source { path, flags: listen.into_iter().chain(db).collect(), hook })
    }
}

/// Runs `work` to its end, and then does not wait for blocked threads. A hook that never awaits would block one for
/// ever; it ends with the process.
fn run_and_leave(work: impl Future<Output = Done>) -> Done {
    let runtime = runtime()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

async fn run(config: Config, reloader: Reloader, sockets: Sockets, dev: bool, program: Program) -> Done {
    // The limit of open files decides how many connections and hooks are allowed below.
    let share = raise_descriptors();
    let (listener, admin) = listen(&config, sockets, dev).await?;
    let app = match config.app_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    // Signal handlers come before anything is started: an early signal must not be lost.
    let signals = Signals::install()?;
    let paths: Vec<String> = config
        .live
        .endpoints
        .iter()
        .map(|(path, endpoint)| format!("{path} ({})", endpoint.dialect.name()))
        .collect();
    let store_path = config.store_path.display().to_string();
    let options = DaemonOptions {
        store_path: config.store_path,
        store: config.store,
        live: config.live,
        retired_accounts: config.retired_accounts,
        dispatch: DispatchOptions { permits: share.jobs, ..DispatchOptions::default() },
        server: ServerOptions { connections_max: share.connections, ..ServerOptions::default() },
        app,
        telemetry: config.telemetry,
        clock: Clock::System,
    };
    // Opens the database and recovers jobs. Callbacks are accepted when this returns.
    let daemon = Daemon::start(listener, admin, options).await?;
    tracing::info!(address = %daemon.address(), admin = daemon.admin_address().map(tracing::field::display), app = daemon.app_address().map(tracing::field::display), store = store_path, endpoints = paths.join(", "), program = program.label(), "ready");
    let supervisor = sockets::supervisor();
    // The supervisor is told last: it may start other services that depend on this one.
    supervisor.ready(&format!("taking callbacks on {}", daemon.address()));
    signals.until_stop(daemon, reloader, &supervisor).await
}

/// Opens the listeners: sockets of the supervisor first, or else the configured addresses.
async fn listen(
    config: &Config,
    sockets: Sockets,
    dev: bool,
) -> Result<(TcpListener, Option<TcpListener>), Failure> {
    let listener = match sockets::handed(sockets.spi, Some(config.listen))? {
        // The configuration checks only `server.listen`, so a socket of the supervisor is checked here.
        Some(listener) if dev || config.has_known_key() => {
            sockets::only_on_this_machine(&listener, "an endpoint uses the public key of the documentation")?;
            listener
        }
        Some(listener) => listener,
        None => bind(config.listen).await?,
    };
    let admin = match (sockets::handed(sockets.admin, config.admin_listen)?, config.admin_listen) {
        // With a token the listener identifies its clients, so other machines may reach it, as a configured address.
        (Some(listener), _) if config.live.admin.token.is_some() => Some(listener),
        (Some(listener), _) => {
            sockets::only_on_this_machine(
                &listener,
                "without `server.admin_token` every client there could read and change data",
            )?;
            Some(listener)
        }
        (None, Some(address)) => Some(bind(address).await?),
        (None, None) => None,
    };
    Ok((listener, admin))
}

/// Raises the limit of open files, and divides it: peers that only hold connections open must not take the
/// descriptors that hooks and the database need. The limit is not raised further than necessary, because hooks
/// inherit it and some programs close every descriptor number below it. If the limit stays lower, fewer connections
/// and running hooks share it.
fn raise_descriptors() -> Share {
    let limit = getrlimit(Resource::Nofile);
    if let Some((soft, _)) = descriptors(limit.current, limit.maximum) {
        let raised = Rlimit { current: Some(soft), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
    // Read the limit again: the kernel may allow less than was requested.
    let got = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let share = Share::of(got);
    if got < limits::DESCRIPTORS_WANTED_COUNT {
        tracing::warn!(
            limit = got,
            wanted = limits::DESCRIPTORS_WANTED_COUNT,
            "few files may be open at once: each listener takes {} connections, and {} hooks run at once; raise the hard limit (LimitNOFILE= in a systemd unit)",
            share.connections,
            share.jobs
        );
    }
    share
}

/// Number of connections and running hooks that the limit of open files allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    /// Maximum number of connections of each listener.
    connections: usize,
    /// Maximum number of jobs that run at once.
    jobs: usize,
}

impl Share {
    /// Divides `limit`: hooks get half of the unreserved descriptors, or less if they cannot use so many. The two
    /// listeners share the rest.
    fn of(limit: u64) -> Share {
        // Enough for all limits at once, so nothing needs to be divided.
        if limit >= limits::DESCRIPTORS_WANTED_COUNT {
            return Share {
                connections: limits::CONNECTIONS_MAX_COUNT,
                jobs: limits::JOBS_RUNNING_MAX_COUNT,
            };
        }
        let free = limit.saturating_sub(limits::DESCRIPTORS_RESERVED_COUNT);
        let clamp =
            |count: u64, least: usize, most: usize| usize::try_from(count).unwrap_or(most).clamp(least, most);
        let jobs = clamp(free / 2 / limits::DESCRIPTORS_PER_JOB_COUNT, 1, limits::JOBS_RUNNING_MAX_COUNT);
        // Both listeners have the same limit.
        let of_hooks = limits::DESCRIPTORS_PER_JOB_COUNT * jobs as u64;
        let connections = free.saturating_sub(of_hooks) / 2;
        let connections = clamp(connections, limits::CONNECTIONS_MIN_COUNT, limits::CONNECTIONS_MAX_COUNT);
        Share { connections, jobs }
    }
}

/// Soft limit to set, and true if it is sufficient. `None` if the present limit is sufficient or there is no limit.
fn descriptors(soft: Option<u64>, hard: Option<u64>) -> Option<(u64, bool)> {
    let wanted = limits::DESCRIPTORS_WANTED_COUNT;
    soft.filter(|soft| *soft < wanted)?;
    let possible = hard.map_or(wanted, |hard| hard.min(wanted));
    Some((possible, possible == wanted))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        // Distinct codes: a privileged port needs permission, a used port may become free.
        let exit = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::Permission,
            std::io::ErrorKind::AddrInUse => Exit::Unavailable,
            _ => Exit::Io,
        };
        Failure::new(exit, format!("cannot listen on {address}: {error}"))
    })
}

fn install(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(Exit::Io, format!("signals cannot be handled: {error}")))
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn install() -> Result<Signals, Failure> {
        Ok(Signals {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
            hang_up: install(SignalKind::hangup())?,
        })
    }

    /// Runs until a signal or a failed component ends the daemon. The first signal stops the daemon in order, the
    /// second one at once. If a component stops unexpectedly, the daemon stops and exits with 70, and its supervisor
    /// starts another one.
    async fn until_stop(self, daemon: Daemon, mut reloader: Reloader, supervisor: &Supervisor) -> Done {
        let Signals { mut terminate, mut interrupt, mut hang_up } = self;
        let mut stop = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let reloads = async {
            while hang_up.recv().await.is_some() {
                // A supervisor waits for `ready` after `reloading`, even if the reload was refused.
                supervisor.reloading();
                reloader.reload(&daemon).await;
                supervisor.ready(&format!("taking callbacks on {}", daemon.address()));
            }
            std::future::pending().await
        };
        // First phase: serve until a signal arrives or a component ends. Reloads and the watchdog never complete.
        let broken = tokio::select! {
            () = stop() => None,
            part = daemon.ended() => Some(part),
            () = reloads => None,
            () = sockets::feed_watchdog(supervisor, &daemon) => None,
        };
        // Tell the supervisor first: a stop may take long, and the supervisor must not call it a failure.
        supervisor.stopping("answering what is in flight, letting hooks end");
        match broken {
            None => tracing::info!("stopping"),
            Some(part) => tracing::error!(part, "a component stopped unexpectedly; stopping the daemon"),
        }
        // Second phase: the stop itself. Its steps have time limits, and a second signal ends it at once.
        tokio::select! {
            stopped = daemon.stop() => {
                let Stopped { answered, cut, closed } = stopped;
                tracing::info!(answered, cut, closed, "stopped");
                broken.map_or(Ok(()), |part| Err(ended(part)))
            }
            // Never completes: it only prevents the watchdog from ending the stop.
            () = sockets::feed_watchdog_while_stopping(supervisor) => Ok(()),
            () = stop() => Err(Failure::new(Exit::TryAgain, "stopped at once by a second signal; unfinished work continues at the next start")),
        }
    }
}

fn ended(part: &str) -> Failure {
    let message = format!("the {part} stopped unexpectedly; no acknowledged callback is lost");
    Failure::new(Exit::Bug, message).hint("start it again, and report what the log says above this")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_raised_as_far_as_needed_and_allowed() {
        let wanted = limits::DESCRIPTORS_WANTED_COUNT;
        assert_eq!(descriptors(Some(1024), Some(1 << 20)), Some((wanted, true)));
        assert_eq!(descriptors(Some(1024), None), Some((wanted, true)));
        assert_eq!(descriptors(Some(256), Some(1024)), Some((1024, false)));
        assert_eq!(descriptors(Some(1 << 20), Some(1 << 20)), None);
        assert_eq!(descriptors(None, None), None);
    }

    #[test]
    fn what_may_be_open_is_shared_out() {
        let all = Share { connections: limits::CONNECTIONS_MAX_COUNT, jobs: limits::JOBS_RUNNING_MAX_COUNT };
        assert_eq!(Share::of(u64::MAX), all);
        assert_eq!(Share::of(limits::DESCRIPTORS_WANTED_COUNT), all);
        for limit in 64..limits::DESCRIPTORS_WANTED_COUNT {
            let Share { connections, jobs } = Share::of(limit);
            let taken = 2 * connections as u64 + limits::DESCRIPTORS_PER_JOB_COUNT * jobs as u64;
            assert!(taken + limits::DESCRIPTORS_RESERVED_COUNT <= limit, "{limit}");
            assert!(jobs > 0 && connections >= limits::CONNECTIONS_MIN_COUNT, "{limit}");
        }
    }

    /// The test ends only if the blocked hook does not keep the program alive.
    #[test]
    fn a_hook_that_blocks_its_thread_does_not_keep_the_program() {
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let done = run_and_leave(async move {
            let (begun, begins) = tokio::sync::oneshot::channel();
            tokio::spawn(async move {
                let _ = begun.send(());
                let _ = blocked.recv();
            });
            begins.await.unwrap();
            Ok(())
        });
        assert!(done.is_ok());
        drop(release);
    }
}

//! Puts the daemon together, starts it in order and stops it in order.
//!
//! The caller brings the listeners and says when to stop, so that a test runs a whole daemon on a
//! free port and an embedder runs one in a larger program. Two daemons in one process do not know of
//! each other.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::admin::{Admin, AdminOptions, AdminParts};
use crate::clock::Clock;
use crate::dispatch::{Dialects, Dispatch, DispatchOptions};
use crate::front::Front;
use crate::hook::Subject;
use crate::hook::leftovers::Leftovers;
use crate::hook::runner::Runner;
use crate::http::{self, Drained, Handler, ServerOptions};
use crate::intake::{Endpoint, Intake, IntakeOptions};
use crate::limits;
use crate::metrics::Metrics;
use crate::orders::Orders;
use crate::refusals::Refusals;
use crate::store::{Closed, Retrying, Store, StoreError, StoreOptions};

/// What a daemon is made of.
pub struct DaemonOptions {
    /// The database; `None` for a store that lives in memory and dies with the daemon.
    pub store_path: Option<PathBuf>,
    /// What is chosen about the store.
    pub store: StoreOptions,
    /// The endpoints, each with its path.
    pub endpoints: Vec<(String, Endpoint)>,
    /// The hooks.
    pub runner: Runner,
    /// Where it is asked what was ordered, for marketplaces whose callbacks do not say.
    pub orders: Orders,
    /// What is chosen about the intake.
    pub intake: IntakeOptions,
    /// What is chosen about the dispatcher.
    pub dispatch: DispatchOptions,
    /// How much a peer may.
    pub server: ServerOptions,
    /// What is chosen about the admin listener.
    pub admin: AdminOptions,
    /// The time.
    pub clock: Clock,
}

impl DaemonOptions {
    /// A daemon with these endpoints and hooks, and the defaults for everything else.
    pub fn new(
        store_path: Option<PathBuf>,
        endpoints: Vec<(String, Endpoint)>,
        runner: Runner,
    ) -> DaemonOptions {
        DaemonOptions {
            store_path,
            store: StoreOptions::default(),
            endpoints,
            runner,
            orders: Orders::default(),
            intake: IntakeOptions::default(),
            dispatch: DispatchOptions::default(),
            server: ServerOptions::default(),
            admin: AdminOptions::default(),
            clock: Clock::System,
        }
    }
}

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder in which running hooks are marked, beside the database.
    #[error("the folder that marks running hooks cannot be used: {0}")]
    Leftovers(#[source] std::io::Error),
    /// Others than this machine could reach the admin listener, and nothing asks them who they are.
    #[error("the admin listener at {0} is not on loopback and has no token")]
    Unguarded(SocketAddr),
    /// A listener.
    #[error("the listener cannot be used: {0}")]
    Listener(#[from] std::io::Error),
}

/// A daemon that runs.
pub struct Daemon {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    store: Store,
    metrics: Metrics,
    closed: Closed,
    stop_front: watch::Sender<bool>,
    stop_dispatch: watch::Sender<bool>,
    front: JoinHandle<Drained>,
    admin: Option<JoinHandle<Drained>>,
    dispatch: JoinHandle<usize>,
    ended: watch::Receiver<Option<&'static str>>,
}

/// A part of the daemon that is to run until the stop. Dropped when the part ends, however it ends.
struct Part {
    name: &'static str,
    ended: watch::Sender<Option<&'static str>>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.ended.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(self.name);
            is_first
        });
    }
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Whether every request in flight was answered.
    pub answered: bool,
    /// Hooks that were cut short; their jobs are due at the next start.
    pub cut: usize,
    /// Whether the database was closed in time.
    pub closed: bool,
}

impl Daemon {
    /// Starts a daemon behind these listeners.
    ///
    /// # Errors
    /// When the store cannot be opened or a listener cannot be used; then nothing runs.
    pub async fn start(
        listener: TcpListener,
        admin: Option<TcpListener>,
        options: DaemonOptions,
    ) -> Result<Daemon, StartError> {
        let address = listener.local_addr()?;
        let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
        check_guarded(admin_address, &options.admin)?;
        let metrics = Metrics::default();
        let choices = with_retry_lists(options.store, &options.runner);
        let choices = StoreOptions { metrics: metrics.clone(), ..choices };
        let database = options.store_path.clone().map(|path| (path, choices.clone()));
        let (store, closed) =
            open_store(options.store_path.as_deref(), choices, options.clock.clone()).await?;
        log_backlog(&store);
        // Under the store's lock, and before the first attempt: what a dead daemon left must not meet it.
        let runner = match &options.store_path {
            Some(path) => options.runner.marking(clear_leftovers(path).await?),
            None => options.runner,
        };
        let (parts, ended) = watch::channel(None);
        let part = |name| Part { name, ended: parts.clone() };
        let (writing, writer_closed) = (part("writer"), closed.clone());
        tokio::spawn(async move {
            let _writing = writing;
            writer_closed.wait().await;
        });
        let (stop_dispatch, stopping) = watch::channel(false);
        let dispatch =
            Dispatch::new(store.clone(), options.clock.clone(), metrics.clone(), runner, options.dispatch)
                .asking(options.orders)
                .speaking(dialects(&options.endpoints));
        let dispatching = part("dispatcher");
        let dispatch = tokio::spawn(async move {
            let _dispatching = dispatching;
            dispatch.run(stopping).await
        });
        let refusals = Refusals::new(options.clock.clone(), metrics.clone());
        let intake = Intake::new(
            store.clone(),
            options.clock.clone(),
            metrics.clone(),
            refusals.clone(),
            options.intake,
        );
        let endpoints: HashMap<String, Endpoint> = options.endpoints.into_iter().collect();
        let (stop_front, _) = watch::channel(false);
        let front = Front::new(endpoints, intake, metrics.clone());
        let front = serve(listener, options.server.clone(), front, &stop_front, part("listener"));
        let parts = AdminParts {
            store: store.clone(),
            database,
            metrics: metrics.clone(),
            refusals,
            clock: options.clock,
        };
        let handler = Admin::new(parts, options.admin)?;
        let admin = admin
            .map(|listener| serve(listener, options.server, handler, &stop_front, part("admin listener")));
        Ok(Daemon {
            address,
            admin_address,
            store,
            metrics,
            closed,
            stop_front,
            stop_dispatch,
            front,
            admin,
            dispatch,
            ended,
        })
    }

    /// Waits until a part of the daemon has ended that was to run until the stop, and says which. It means
    /// a bug. What is left cannot do the work (it takes orders that nobody runs, say), so whoever runs the
    /// daemon should [stop](Daemon::stop) it and start another.
    pub async fn ended(&self) -> &'static str {
        let mut ended = self.ended.clone();
        let part = ended.wait_for(Option::is_some).await.ok().and_then(|part| *part);
        part.unwrap_or("daemon")
    }

    /// Where the marketplace calls.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the operator looks.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// What is kept.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Stops: accepts nothing more, answers what is in flight, takes no more jobs, lets hooks end or
    /// gives their jobs back, writes, closes. Each step is bounded.
    pub async fn stop(self) -> Stopped {
        self.stop_front.send_replace(true);
        let drained = self.front.await;
        let answered = matches!(drained, Ok(Drained { finished: true, .. }));
        if !answered {
            tracing::warn!("some requests were cut off by the stop; the marketplace will call again");
        }
        if let Some(admin) = self.admin {
            let _ = admin.await;
        }
        self.stop_dispatch.send_replace(true);
        let cut = stopped(self.dispatch).await;
        drop(self.store);
        let closed = timeout(Duration::from_millis(limits::STOP_STORE_MS), self.closed.wait()).await.is_ok();
        if !closed {
            tracing::warn!("the database was not closed in time");
        }
        Stopped { answered, cut, closed }
    }
}

/// Fails closed: what lets people look and mend is not for everybody who can reach it.
fn check_guarded(admin: Option<SocketAddr>, options: &AdminOptions) -> Result<(), StartError> {
    match admin.filter(|address| !address.ip().is_loopback()) {
        Some(address) if options.token.is_none() => Err(StartError::Unguarded(address)),
        _ => Ok(()),
    }
}

async fn open_store(
    path: Option<&Path>,
    options: StoreOptions,
    clock: Clock,
) -> Result<(Store, Closed), StoreError> {
    match path {
        Some(path) => Store::open(path, options, clock).await,
        None => Store::in_memory(options, clock).await,
    }
}

/// The end of the dispatcher: how many hooks it cut short. It bounds its own wait for hooks; a store that
/// hangs must not keep it beyond that.
async fn stopped(mut dispatch: JoinHandle<usize>) -> usize {
    let bound = Duration::from_millis(limits::STOP_HOOKS_MS + limits::STOP_STORE_MS);
    match timeout(bound, &mut dispatch).await {
        Ok(Ok(cut)) => cut,
        Ok(Err(error)) => {
            tracing::error!(%error, "the dispatcher did not end as it should");
            0
        }
        Err(_) => {
            tracing::error!(
                "the dispatcher did not end in time: the store hangs; what ran runs again at the next start"
            );
            dispatch.abort();
            0
        }
    }
}

fn serve(
    listener: TcpListener,
    options: ServerOptions,
    handler: impl Handler,
    stop: &watch::Sender<bool>,
    part: Part,
) -> JoinHandle<Drained> {
    let mut stopping = stop.subscribe();
    tokio::spawn(async move {
        let _part = part;
        let stop = async move {
            // An error means that the daemon itself is gone: that is a stop, too.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        http::serve(listener, options, handler, stop).await
    })
}

/// How the marketplace behind each endpoint speaks.
fn dialects(endpoints: &[(String, Endpoint)]) -> Dialects {
    endpoints.iter().map(|(_, endpoint)| (endpoint.name.to_string(), endpoint.dialect)).collect()
}

/// The store knows no hooks: it is told how to find the retry list of the one a job is for. Whoever embeds
/// a daemon may have chosen otherwise.
fn with_retry_lists(mut options: StoreOptions, runner: &Runner) -> StoreOptions {
    let runner = runner.clone();
    options.schedules.chosen.get_or_insert_with(|| {
        Arc::new(move |failed: &Retrying<'_>| {
            let subject = Subject::new(failed.endpoint, failed.callback, failed.instance);
            runner.retry(&subject).cloned()
        })
    });
    options
}

/// Kills the hooks that a dead daemon of this database left running.
async fn clear_leftovers(store_path: &Path) -> Result<Leftovers, StartError> {
    let real = store_path.canonicalize().map_err(StartError::Leftovers)?;
    let mut folder = real.into_os_string();
    folder.push(".running");
    Leftovers::clear(Path::new(&folder)).await.map_err(StartError::Leftovers)
}

/// What waits for somebody is said at every start.
fn log_backlog(store: &Store) {
    match store.reader().totals() {
        Ok(totals) => {
            let dead = totals.jobs.get("dead").copied().unwrap_or(0);
            let held = totals.held + totals.jobs.get("held").copied().unwrap_or(0);
            tracing::info!(
                instances = totals.instances.values().sum::<u64>(),
                jobs = totals.jobs.values().sum::<u64>(),
                "the store is open"
            );
            if dead + held + totals.untold > 0 {
                tracing::warn!(
                    dead,
                    held,
                    untold = totals.untold,
                    "work waits for an operator: spid held list, spid jobs list --state dead"
                );
            }
        }
        Err(error) => tracing::warn!(%error, "the backlog cannot be counted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::AnyHook;
    use crate::hook::log::LogHook;
    use crate::hook::runner::NamedHook;

    async fn a_daemon() -> Daemon {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let runner = Runner::new(vec![NamedHook::new("log", AnyHook::from(LogHook))], Vec::new()).unwrap();
        Daemon::start(listener, None, DaemonOptions::new(None, Vec::new(), runner)).await.unwrap()
    }

    #[tokio::test]
    async fn an_admin_listener_for_everybody_needs_a_token() {
        let listener = || async { TcpListener::bind("0.0.0.0:0").await.unwrap() };
        let runner = Runner::new(vec![NamedHook::new("log", AnyHook::from(LogHook))], Vec::new()).unwrap();
        let mut options = DaemonOptions::new(None, Vec::new(), runner.clone());
        let refused = Daemon::start(listener().await, Some(listener().await), options).await;
        assert!(matches!(refused, Err(StartError::Unguarded(_))));
        options = DaemonOptions::new(None, Vec::new(), runner);
        options.admin.token = Some(crate::signature::Secret::new("fake-token-of-a-test"));
        let daemon = Daemon::start(listener().await, Some(listener().await), options).await.unwrap();
        assert!(daemon.stop().await.closed);
    }

    #[tokio::test]
    async fn a_dispatcher_that_ends_by_itself_is_noticed() {
        let daemon = a_daemon().await;
        daemon.dispatch.abort();
        assert_eq!(daemon.ended().await, "dispatcher");
        daemon.stop().await;
    }

    #[tokio::test]
    async fn a_listener_that_ends_by_itself_is_noticed() {
        let daemon = a_daemon().await;
        daemon.front.abort();
        assert_eq!(daemon.ended().await, "listener");
        daemon.stop().await;
    }

    #[tokio::test]
    async fn a_daemon_at_work_has_not_ended() {
        let daemon = a_daemon().await;
        tokio::select! {
            biased;
            part = daemon.ended() => unreachable!("{part}"),
            ready = daemon.store().probe() => ready.unwrap(),
        }
        assert!(daemon.stop().await.closed);
    }
}

//! Puts the daemon together, starts it in order and stops it in order.
//!
//! The caller brings the listeners and says when to stop, so that a test runs a whole daemon on a
//! free port and an embedder runs one in a larger program. Two daemons in one process do not know of
//! each other.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::liveness::Liveness;
use crate::admin::{Admin, AdminOptions, AdminParts};
use crate::hook::Subject;
use crate::hook::clock::Clock;
use crate::hooks::leftovers::Leftovers;
use crate::hooks::runner::Runner;
use crate::market_api::order_lookup::Orders;
use crate::net;
use crate::net::{Drained, Handler, ServerOptions, ServerTls};
use crate::observe::denied::Refusals;
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::dispatch;
use crate::serve::dispatch::{Dispatch, DispatchOptions, KnownEndpoint, KnownEndpoints};
use crate::serve::intake::{Endpoint, Intake, IntakeOptions, Orphans};
use crate::serve::keywatch::{KeyWatch, Watched};
use crate::serve::public::{Doors, Front, Guard};
use crate::serve::spans::{Telemetry, TelemetryOptions};
use crate::store::encryption::Sealer;
use crate::store::{self, Closed, Retrying, Store, StoreError, StoreOptions};

/// What a daemon is made of.
pub struct DaemonOptions {
    /// The database; `None` for a store that lives in memory and dies with the daemon.
    pub store_path: Option<PathBuf>,
    /// What is chosen about the store.
    pub store: StoreOptions,
    /// The endpoints, each with its path.
    pub endpoints: Vec<(String, Endpoint)>,
    /// Accounts that no endpoint serves any more, on purpose, though they have live instances.
    pub retired_accounts: Vec<String>,
    /// The hooks.
    pub runner: Runner,
    /// Where it is asked what was ordered, for marketplaces whose callbacks do not say.
    pub orders: Orders,
    /// What is chosen about the intake.
    pub intake: IntakeOptions,
    /// What is chosen about the dispatcher.
    pub dispatch: DispatchOptions,
    /// After how long without a signature a previous key is named as one that can go.
    pub key_unused_after: Duration,
    /// How much a peer may, at either listener.
    pub server: ServerOptions,
    /// What is chosen about the admin listener.
    pub admin: AdminOptions,
    /// The certificate the marketplace is shown; without one, plain HTTP.
    pub tls: Option<ServerTls>,
    /// Who may call.
    pub guard: Guard,
    /// Where spans are sent; nowhere, unless it is said.
    pub telemetry: Option<TelemetryOptions>,
    /// The time.
    pub clock: Clock,
}

/// What a daemon that runs can change. The rest it is bound to.
pub struct Changes {
    /// The endpoints, each with its path.
    pub endpoints: Vec<(String, Endpoint)>,
    /// The hooks.
    pub runner: Runner,
    /// Where it is asked what was ordered, for marketplaces whose callbacks do not say.
    pub orders: Orders,
    /// What is chosen about the intake.
    pub intake: IntakeOptions,
    /// Who may call.
    pub guard: Guard,
    /// The certificate the marketplace is shown from the next handshake on, if the daemon shows one.
    pub tls: Option<ServerTls>,
    /// How long passwords and licence keys are repeated after they were first told, in milliseconds.
    pub secrets_window_ms: i64,
    /// What seals from now on, and opens; `None` leaves that as it is.
    pub sealer: Option<Sealer>,
    /// After how long without a signature a previous key is named as one that can go.
    pub key_unused_after: Duration,
    /// What is chosen about the admin listener.
    pub admin: AdminOptions,
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
            retired_accounts: Vec::new(),
            runner,
            orders: Orders::default(),
            intake: IntakeOptions::default(),
            dispatch: DispatchOptions::default(),
            key_unused_after: Duration::from_millis(limits::KEY_UNUSED_AFTER_MS),
            server: ServerOptions::default(),
            admin: AdminOptions::default(),
            tls: None,
            guard: Guard::default(),
            telemetry: None,
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
    /// Accounts with live instances and without an endpoint.
    #[error(transparent)]
    Orphans(#[from] Orphans),
    /// A listener.
    #[error("the listener cannot be used: {0}")]
    Listener(#[from] std::io::Error),
}

/// A daemon that runs.
pub struct Daemon {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    store: Store,
    liveness: Liveness,
    metrics: Metrics,
    closed: Closed,
    stop_front: watch::Sender<bool>,
    stop_dispatch: watch::Sender<bool>,
    doors: watch::Sender<Arc<Doors>>,
    known: watch::Sender<KnownEndpoints>,
    orders: watch::Sender<Orders>,
    runner: watch::Sender<Runner>,
    watched: watch::Sender<Watched>,
    tls: Option<ServerTls>,
    front: JoinHandle<Drained>,
    admin: Option<JoinHandle<Drained>>,
    /// The admin listener's handler, whose token may change.
    operators: Admin,
    dispatch: JoinHandle<usize>,
    telemetry: Option<Telemetry>,
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
        check_accounts(&options)?;
        let (metrics, clock) = (options.store.metrics.clone(), options.clock);
        let (runner, runners) = watch::channel(options.runner);
        let (known, knowing) = watch::channel(known(&options.endpoints));
        let choices = with_retry_lists(options.store, runners.clone(), knowing.clone());
        let database = options.store_path.clone().map(|path| (path, choices.clone()));
        let (store, closed) = open_store(options.store_path.as_deref(), choices, clock.clone()).await?;
        drop(log_backlog(store.clone()));
        announce(&metrics);
        // Under the store's lock, and before the first attempt: what a dead daemon left must not meet it.
        if let Some(path) = &options.store_path {
            let leftovers = clear_leftovers(path).await?;
            runner.send_modify(|runner| *runner = runner.clone().marking(leftovers));
        }
        let refusals = Refusals::new(clock.clone(), metrics.clone());
        // While nothing runs yet: it is the last that may fail.
        let operators = Admin::new(shown(&store, database, &metrics, &refusals, &clock), options.admin)?;
        let (parts, ended) = watch::channel(None);
        let part = |name| Part { name, ended: parts.clone() };
        drop(run(part("writer"), closed.clone().wait()));
        let watched = watched(&options.endpoints, options.key_unused_after);
        let watched = watch_keys(&store, &clock, &metrics, watched).await;
        let telemetry = options.telemetry.map(|it| Telemetry::start(it, metrics.clone(), clock.clone()));
        let spans = telemetry.as_ref().map(Telemetry::spans).unwrap_or_default();
        let (stop_dispatch, stopping) = watch::channel(false);
        let (orders, desks) = watch::channel(options.orders);
        let dispatch =
            Dispatch::new(store.clone(), clock.clone(), metrics.clone(), runners, options.dispatch)
                .asking(desks)
                .knowing(knowing)
                .telling(spans.clone());
        let liveness = Liveness::of(store.clone(), dispatch.turned());
        let dispatch = run(part("dispatcher"), dispatch.run(stopping));
        let intake = Intake::new(store.clone(), clock, metrics.clone(), refusals, options.intake);
        let doors = Doors::new(options.endpoints, intake, options.guard);
        let (doors, behind) = watch::channel(Arc::new(doors));
        let (stop_front, _) = watch::channel(false);
        let front = Front::new(behind, metrics.clone()).telling(spans);
        let spi = ServerOptions { tls: options.tls.clone(), ..options.server.clone() };
        let front = serve(listener, spi, front, &stop_front, part("listener"));
        let admin = admin.map(|listener| {
            serve(listener, options.server, operators.clone(), &stop_front, part("admin listener"))
        });
        Ok(Daemon {
            address,
            admin_address,
            store,
            liveness,
            metrics,
            closed,
            stop_front,
            stop_dispatch,
            doors,
            known,
            orders,
            runner,
            watched,
            tls: options.tls,
            front,
            admin,
            operators,
            dispatch,
            telemetry,
            ended,
        })
    }

    /// Looks for live instances of accounts that none of these endpoints would serve.
    ///
    /// # Errors
    /// When there are any, or the database cannot be read.
    pub fn check_accounts(
        &self,
        endpoints: &[(String, Endpoint)],
        retired: &[String],
    ) -> Result<(), StartError> {
        let unserved = |served: &[&str]| self.store.reader().unserved_accounts(served);
        Ok(Orphans::find(endpoints, retired, unserved)?.map_or(Ok(()), Err)?)
    }

    /// Changes what can be changed, between one request and the next: a request that has begun, and a hook
    /// that runs, end with what they began with. Call [`Daemon::check_accounts`] before: endpoints that leave live
    /// instances without one are taken here as they are.
    pub fn change(&self, changes: Changes) {
        let Changes {
            endpoints,
            runner,
            orders,
            intake,
            guard,
            tls,
            secrets_window_ms,
            sealer,
            key_unused_after,
            admin,
        } = changes;
        self.operators.change(admin);
        self.watched.send_replace(watched(&endpoints, key_unused_after));
        self.store.repeat_secrets_for(secrets_window_ms);
        if let Some(sealer) = sealer {
            self.store.seal_with(sealer);
        }
        // The hooks first: nothing may come through a new endpoint and go to an old hook.
        let runner = runner.succeeding(&self.runner.borrow());
        dispatch::announce(&self.metrics, &runner);
        self.runner.send_replace(runner);
        self.orders.send_replace(orders);
        self.known.send_replace(known(&endpoints));
        let intake = self.doors.borrow().intake.with_options(intake);
        endpoints.iter().for_each(|(_, endpoint)| intake.announce(endpoint));
        self.doors.send_replace(Arc::new(Doors::new(endpoints, intake, guard)));
        if let (Some(shown), Some(new)) = (&self.tls, &tls) {
            shown.show(new);
        }
    }

    /// Waits until a part of the daemon has ended that was to run until the stop, and says which. It means
    /// a bug. What is left cannot do the work (it takes orders that nobody runs, say), so whoever runs the
    /// daemon should [stop](Daemon::stop) it and start another.
    pub async fn ended(&self) -> &'static str {
        let mut ended = self.ended.clone();
        let part = ended.wait_for(Option::is_some).await.ok().and_then(|part| *part);
        part.unwrap_or("daemon")
    }

    /// Whether the writer answers and the dispatcher goes round, within [`limits::ALIVE_WITHIN_MS`]: what a
    /// watchdog is to be fed for.
    ///
    /// # Errors
    /// The name of the part that does not.
    pub async fn alive(&self) -> Result<(), &'static str> {
        self.liveness.check().await
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
        let telling = async {
            if let Some(telemetry) = self.telemetry {
                telemetry.stop().await;
            }
        };
        // The writer ends with the last handle on the store: the doors have one, the admin listener, and the key watch.
        drop((self.store, self.liveness, self.doors, self.watched, self.operators));
        let closing = timeout(Duration::from_millis(limits::STOP_STORE_MS), self.closed.wait());
        let (closed, ()) = tokio::join!(closing, telling);
        let closed = closed.is_ok();
        if !closed {
            tracing::warn!("the database was not closed in time");
        }
        Stopped { answered, cut, closed }
    }
}

/// Looks at the accounts before the schema is brought up to date: a start that is refused must leave the way back open.
fn check_accounts(options: &DaemonOptions) -> Result<(), StartError> {
    let Some(path) = &options.store_path else { return Ok(()) };
    let unserved = |served: &[&str]| store::unserved_accounts(path, served);
    let orphans = Orphans::find(&options.endpoints, &options.retired_accounts, unserved)?;
    Ok(orphans.map_or(Ok(()), Err)?)
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
    let stop = async move {
        // An error means that the daemon itself is gone: that is a stop, too.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    run(part, net::serve(listener, options, handler, stop))
}

/// What the admin listener shows.
fn shown(
    store: &Store,
    database: Option<(PathBuf, StoreOptions)>,
    metrics: &Metrics,
    refusals: &Refusals,
    clock: &Clock,
) -> AdminParts {
    AdminParts {
        store: store.clone(),
        database,
        metrics: metrics.clone(),
        refusals: refusals.clone(),
        clock: clock.clone(),
    }
}

/// Shows what may be counted as 0, so that somebody can be alerted by the first of it.
fn announce(metrics: &Metrics) {
    for outcome in ["applied", "restart-required", "kept"] {
        metrics.announce(Metric::Reloads, [outcome, ""]);
    }
}

/// Runs a part of the daemon.
fn run<T: Send + 'static>(part: Part, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(async move {
        let _part = part;
        work.await
    })
}

/// The endpoints, as far as jobs need them.
fn known(endpoints: &[(String, Endpoint)]) -> KnownEndpoints {
    KnownEndpoints::new(endpoints.iter().map(|(_, endpoint)| {
        let known = KnownEndpoint { account: endpoint.account.clone(), dialect: endpoint.dialect };
        (endpoint.name.to_string(), known)
    }))
}

/// The store knows no hooks: it is told how to find the retry list of the one a job is for now. Whoever
/// embeds a daemon may have chosen otherwise.
fn with_retry_lists(
    mut options: StoreOptions,
    runners: watch::Receiver<Runner>,
    known: watch::Receiver<KnownEndpoints>,
) -> StoreOptions {
    options.schedules.chosen.get_or_insert_with(|| {
        Arc::new(move |failed: &Retrying<'_>| {
            let dialect = failed.callback.dialect.as_deref();
            let successors = known.borrow().successors(failed.endpoint, failed.account, dialect);
            let endpoint = successors.name().unwrap_or(failed.endpoint);
            let subject = Subject::new(endpoint, failed.callback, failed.instance);
            runners.borrow().retry(&subject).cloned()
        })
    });
    options
}

fn watched(endpoints: &[(String, Endpoint)], unused_after: Duration) -> Watched {
    Watched::new(endpoints.iter().map(|(_, endpoint)| (&endpoint.name, &endpoint.keys)), unused_after)
}

/// Watches these keys, and those that are sent, until the sender is dropped.
async fn watch_keys(
    store: &Store,
    clock: &Clock,
    metrics: &Metrics,
    watched: Watched,
) -> watch::Sender<Watched> {
    let (sender, receiver) = watch::channel(watched);
    let mut watch = KeyWatch::new(store.clone(), clock.clone(), metrics.clone(), receiver);
    watch.look().await;
    tokio::spawn(watch.run());
    sender
}

/// Kills the hooks that a dead daemon of this database left running.
async fn clear_leftovers(store_path: &Path) -> Result<Leftovers, StartError> {
    let real = store_path.canonicalize().map_err(StartError::Leftovers)?;
    let mut folder = real.into_os_string();
    folder.push(".running");
    Leftovers::clear(Path::new(&folder)).await.map_err(StartError::Leftovers)
}

/// What waits for somebody is said at every start. To count it takes longer the more there is in the store, so
/// nobody waits for that.
fn log_backlog(store: Store) -> JoinHandle<()> {
    tokio::task::spawn_blocking(move || match store.reader().totals() {
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::AnyHook;
    use crate::hooks::log::LogHook;
    use crate::hooks::runner::NamedHook;

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
        options.admin.token = Some(crate::core::signature::Secret::new("fake-token-of-a-test"));
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

    /// The loop goes round though its one place is taken by a hook that does not end.
    #[tokio::test]
    async fn a_dispatcher_is_alive_as_long_as_it_turns() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let runner = Runner::new(vec![NamedHook::new("log", AnyHook::from(LogHook))], Vec::new()).unwrap();
        let mut options = DaemonOptions::new(None, Vec::new(), runner);
        options.dispatch.poll = Duration::from_millis(5);
        let mut daemon = Daemon::start(listener, None, options).await.unwrap();
        let _taken = daemon.store.places().clone().acquire_many_owned(64).await.unwrap();
        daemon.liveness.within = Duration::from_secs(30);
        let before = *daemon.liveness.turned.borrow();
        daemon.liveness.turned.wait_for(|turned| *turned > before).await.unwrap();
        assert_eq!(daemon.alive().await, Ok(()));
        daemon.dispatch.abort();
        daemon.ended().await;
        daemon.liveness.within = Duration::from_secs(1);
        while daemon.alive().await != Err("dispatcher") {
            tokio::task::yield_now().await;
        }
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

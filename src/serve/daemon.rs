//! Assembly, ordered start and ordered stop of the daemon.
//!
//! The caller provides the listeners and decides when to stop. So a test can run a whole daemon on a free port, and a
//! larger program can embed one. Two daemons in one process share nothing.

mod keys;
mod options;

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
use crate::hooks::orphaned_hooks::OrphanedHooks;
use crate::hooks::runner::Runner;
use crate::market_api::order_lookup::OrderLookupClients;
use crate::net;
use crate::net::{Drained, Handler, ServerOptions, ServerTls};
use crate::observe::denied::DeniedRequests;
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::app::{App, AppOptions};
use crate::serve::dispatch;
use crate::serve::dispatch::{Dispatch, KnownEndpoint, KnownEndpoints};
use crate::serve::intake::{Endpoint, Intake, Orphans};
use crate::serve::market_jobs::{Market, MarketJobsRunner};
use crate::serve::public::{PublicListener, Routes};
use crate::serve::spans::Telemetry;
use crate::store::encryption::Encryptor;
use crate::store::{self, Closed, ConfiguredKey, Retrying, Store, StoreError, StoreOptions};
use keys::{configured_keys, record_keys};
use spid_hook::Subject;
use spid_hook::time::Clock;

pub use options::{DaemonOptions, LiveOptions, StartError};

/// A running daemon.
pub struct Daemon {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    store: Store,
    liveness: Liveness,
    metrics: Metrics,
    closed: Closed,
    stop_listeners: watch::Sender<bool>,
    stop_dispatch: watch::Sender<bool>,
    routes: watch::Sender<Arc<Routes>>,
    known: watch::Sender<KnownEndpoints>,
    orders: watch::Sender<OrderLookupClients>,
    runner: watch::Sender<Runner>,
    /// Signature keys whose last use is recorded.
    keys: watch::Sender<Vec<ConfiguredKey>>,
    tls: Option<ServerTls>,
    listener_task: JoinHandle<Drained>,
    admin: Option<JoinHandle<Drained>>,
    /// Handler of the admin listener, kept because a reload may change its token.
    operators: Admin,
    /// Listener for the seller's application.
    app: Option<RunningApp>,
    dispatch: JoinHandle<usize>,
    market_jobs: RunningMarketJobs,
    telemetry: Option<Telemetry>,
    ended: watch::Receiver<Option<&'static str>>,
}

/// Listener for the seller's application, with its handler, whose options a reload may change.
struct RunningApp {
    address: SocketAddr,
    app: App,
    task: JoinHandle<Drained>,
}

impl RunningApp {
    fn start(
        listener: Option<TcpListener>,
        options: AppOptions,
        server: &ServerOptions,
        (store, clock, metrics): (&Store, &Clock, &Metrics),
        stop: &watch::Sender<bool>,
        part: &dyn Fn(&'static str) -> Part,
    ) -> Result<Option<RunningApp>, StartError> {
        let Some(listener) = listener else { return Ok(None) };
        let address = listener.local_addr()?;
        let app = App::new(store.clone(), clock.clone(), metrics.clone(), options, stop.subscribe());
        let task = serve(listener, server.clone(), app.clone(), stop, part("application's listener"));
        Ok(Some(RunningApp { address, app, task }))
    }
}

/// Runner of the market client's jobs, with the markets, which a reload may change.
struct RunningMarketJobs {
    markets: watch::Sender<Vec<Market>>,
    task: JoinHandle<()>,
}

impl RunningMarketJobs {
    fn start(
        markets: Vec<Market>,
        (store, clock, metrics): (&Store, &Clock, &Metrics),
        routes: &watch::Sender<Arc<Routes>>,
        stop: &watch::Sender<bool>,
        part: &dyn Fn(&'static str) -> Part,
    ) -> RunningMarketJobs {
        let (markets, known) = watch::channel(markets);
        let (store, clock, metrics) = (store.clone(), clock.clone(), metrics.clone());
        let runner = MarketJobsRunner::new(store, clock, metrics, routes.subscribe(), known);
        let task = run(part("runner of market jobs"), runner.run(stop.subscribe()));
        RunningMarketJobs { markets, task }
    }
}

/// A component that must run until the stop. Dropped when the component ends for any reason, a panic included.
struct Part {
    name: &'static str,
    ended: watch::Sender<Option<&'static str>>,
}

impl Drop for Part {
    fn drop(&mut self) {
        // Only the first end is reported, because the others usually follow from it.
        self.ended.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(self.name);
            is_first
        });
    }
}

/// Result of a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// True if every request in flight was answered.
    pub answered: bool,
    /// Number of aborted hook calls; their jobs are due at the next start.
    pub cut: usize,
    /// True if the database was closed in time.
    pub closed: bool,
}

impl Daemon {
    /// Starts a daemon on these listeners. The steps have a fixed order:
    /// 1. Check the admin listener and the accounts, so that a start that fails here changes nothing on disk.
    /// 2. Open the store with the retry lists, because its recovery already schedules retries.
    /// 3. Kill the hooks that a dead daemon left running.
    /// 4. Start the dispatcher, and then the listeners, so that the first callback finds a dispatcher.
    ///
    /// # Errors
    /// Fails if the store cannot be opened or a listener cannot be used; nothing runs then.
    pub async fn start(
        listener: TcpListener,
        admin: Option<TcpListener>,
        options: DaemonOptions,
    ) -> Result<Daemon, StartError> {
        let address = listener.local_addr()?;
        let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
        check(&options, admin_address)?;
        let (live, metrics, clock) = (options.live, options.store.metrics.clone(), options.clock);
        let (runner, runners) = watch::channel(live.runner);
        let (known, knowing) = watch::channel(known(&live.endpoints));
        let choices = with_retry_lists(options.store, runners.clone(), knowing.clone());
        let database = Some((options.store_path.clone(), choices.clone()));
        let (store, closed) = open_store(&options.store_path, choices, clock.clone()).await?;
        let refusals = DeniedRequests::new(clock.clone(), metrics.clone());
        let parts = shown(&store, database, &metrics, &refusals, &clock);
        let (leftovers, operators) = match prepare(&options.store_path, parts, live.admin).await {
            Ok(prepared) => prepared,
            Err(error) => return Err(close_after(error, store, closed).await),
        };
        runner.send_modify(|runner| *runner = runner.clone().marking(leftovers));
        let (parts, ended) = watch::channel(None);
        let part = |name| Part { name, ended: parts.clone() };
        drop(run(part("writer"), closed.clone().wait()));
        let keys = record_keys(&store, configured_keys(&live.endpoints)).await;
        let telemetry = options.telemetry.map(|it| Telemetry::start(it, metrics.clone(), clock.clone()));
        let spans = telemetry.as_ref().map(Telemetry::spans).unwrap_or_default();
        let (stop_dispatch, stopping) = watch::channel(false);
        let (orders, lookup_clients) = watch::channel(live.orders);
        let dispatch =
            Dispatch::new(store.clone(), clock.clone(), metrics.clone(), runners, options.dispatch)
                .asking(lookup_clients)
                .knowing(knowing)
                .telling(spans.clone());
        let liveness = Liveness::of(store.clone(), dispatch.iterated_at());
        let dispatch = run(part("dispatcher"), dispatch.run(stopping));
        let intake = Intake::new(store.clone(), clock.clone(), metrics.clone(), refusals, live.intake);
        let routes = Routes::new(live.endpoints, intake, live.access_policy);
        let (routes, behind) = watch::channel(Arc::new(routes));
        let shared = (&store, &clock, &metrics);
        let market_jobs = RunningMarketJobs::start(live.markets, shared, &routes, &stop_dispatch, &part);
        let (stop_listeners, _) = watch::channel(false);
        let listener_task = PublicListener::new(behind, metrics.clone()).telling(spans);
        let spi = ServerOptions { tls: live.tls.clone(), ..options.server.clone() };
        let listener_task = serve(listener, spi, listener_task, &stop_listeners, part("listener"));
        let app = RunningApp::start(options.app, live.app, &options.server, shared, &stop_listeners, &part)?;
        let handler = operators.clone();
        let admin =
            admin.map(|it| serve(it, options.server, handler, &stop_listeners, part("admin listener")));
        Ok(Daemon {
            address,
            admin_address,
            store,
            liveness,
            metrics,
            closed,
            stop_listeners,
            stop_dispatch,
            routes,
            known,
            orders,
            runner,
            keys,
            tls: live.tls,
            listener_task,
            admin,
            operators,
            app,
            dispatch,
            market_jobs,
            telemetry,
            ended,
        })
    }

    /// Finds live instances of accounts that none of these endpoints serves.
    ///
    /// # Errors
    /// Fails if there are any, or if the database cannot be read.
    pub fn check_accounts(
        &self,
        endpoints: &[(String, Endpoint)],
        retired: &[String],
    ) -> Result<(), StartError> {
        let unserved = |served: &[&str]| self.store.reader().unserved_accounts(served);
        Ok(Orphans::find(endpoints, retired, unserved)?.map_or(Ok(()), Err)?)
    }

    /// Applies new options between two requests. A request or a hook call in progress ends with its old options.
    ///
    /// From now on passwords are repeated for `secrets_window_ms` after their first report, and sealed by `encryptor`.
    ///
    /// Call [`Daemon::check_accounts`] first. This method does not check if the endpoints leave live instances
    /// unserved.
    pub fn change(&self, live: LiveOptions, secrets_window_ms: i64, encryptor: Encryptor) {
        let LiveOptions { endpoints, runner, orders, intake, access_policy, tls, admin, app, markets } = live;
        self.market_jobs.markets.send_replace(markets);
        self.operators.change(admin);
        if let Some(running) = &self.app {
            running.app.change(app);
        }
        self.keys.send_replace(configured_keys(&endpoints));
        self.store.repeat_secrets_for(secrets_window_ms);
        self.store.seal_with(encryptor);
        // The hooks change before the routes: no callback of a new endpoint may reach an old hook.
        let runner = runner.succeeding(&self.runner.borrow());
        dispatch::announce(&self.metrics, &runner);
        self.runner.send_replace(runner);
        self.orders.send_replace(orders);
        self.known.send_replace(known(&endpoints));
        let intake = self.routes.borrow().intake.with_options(intake);
        endpoints.iter().for_each(|(_, endpoint)| intake.announce(endpoint));
        // The routes change after all that they use, as one value: a request sees either all old or all new ones.
        self.routes.send_replace(Arc::new(Routes::new(endpoints, intake, access_policy)));
        // A reload cannot turn TLS on or off, because the listener was created with or without it.
        if let (Some(shown), Some(new)) = (&self.tls, &tls) {
            shown.show(new);
        }
    }

    /// Waits until a component ends that must run until the stop, and returns its name.
    ///
    /// An end before the stop is a bug. The remaining components cannot do the work: without a dispatcher, for example,
    /// accepted orders are never run. So the caller should [stop](Daemon::stop) the daemon and start another.
    pub async fn ended(&self) -> &'static str {
        let mut ended = self.ended.clone();
        let part = ended.wait_for(Option::is_some).await.ok().and_then(|part| *part);
        part.unwrap_or("daemon")
    }

    /// Checks that the writer answers and the dispatcher turns, within [`limits::ALIVE_WITHIN_MS`]. Notify a watchdog
    /// only after a success.
    ///
    /// # Errors
    /// Returns the name of the component that is not alive.
    pub async fn alive(&self) -> Result<(), &'static str> {
        self.liveness.check().await
    }

    /// Returns the address of the public listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the admin listener.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Returns the address of the application's listener.
    pub fn app_address(&self) -> Option<SocketAddr> {
        self.app.as_ref().map(|app| app.address)
    }

    /// Returns the store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Stops the daemon in order. Each step has a time limit:
    /// 1. Accept no more connections, and answer the requests in flight.
    /// 2. Lease no more jobs. Let hooks end, or give their jobs back.
    /// 3. Write the last commit, and close the database.
    pub async fn stop(self) -> Stopped {
        // Step 1: the listeners, because a request in flight may still wait for a hook.
        self.stop_listeners.send_replace(true);
        let drained = self.listener_task.await;
        let answered = matches!(drained, Ok(Drained { finished: true, .. }));
        if !answered {
            tracing::warn!("the stop aborted some requests; the marketplace calls again");
        }
        if let Some(admin) = self.admin {
            let _ = admin.await;
        }
        if let Some(app) = self.app {
            // The handler goes, too: it holds the store.
            drop(app.app);
            let _ = app.task.await;
        }
        // Step 2: the dispatcher, after the last callback was accepted.
        self.stop_dispatch.send_replace(true);
        let cut = stopped(self.dispatch).await;
        // It ends at once: a call that it cuts short is made again.
        let _ = self.market_jobs.task.await;
        let telling = async {
            if let Some(telemetry) = self.telemetry {
                telemetry.stop().await;
            }
        };
        // Step 3: the writer ends with the last handle on the store. The routes, the admin listener and the task
        // that records keys hold one each.
        drop((self.store, self.liveness, self.routes, self.keys, self.operators));
        let closing = timeout(Duration::from_millis(limits::STOP_STORE_MS), self.closed.wait());
        // The last spans are sent while the database closes, so that a slow collector does not delay the close.
        let (closed, ()) = tokio::join!(closing, telling);
        let closed = closed.is_ok();
        if !closed {
            tracing::warn!("the database was not closed within {} ms", limits::STOP_STORE_MS);
        }
        Stopped { answered, cut, closed }
    }
}

/// Checks the accounts before the schema is migrated: a start that fails here must leave the database usable for the
/// older spid.
fn check_accounts(options: &DaemonOptions) -> Result<(), StartError> {
    let unserved = |served: &[&str]| store::unserved_accounts(&options.store_path, served);
    let orphans = Orphans::find(&options.live.endpoints, &options.retired_accounts, unserved)?;
    Ok(orphans.map_or(Ok(()), Err)?)
}

/// Refuses a start that would leave instances without an endpoint, or the admin listener without a token.
fn check(options: &DaemonOptions, admin: Option<SocketAddr>) -> Result<(), StartError> {
    check_guarded(admin, &options.live.admin)?;
    check_accounts(options)
}

/// Fails if the admin listener has no token and its address is not loopback. Every peer that reaches the listener could
/// otherwise read and change data.
fn check_guarded(admin: Option<SocketAddr>, options: &AdminOptions) -> Result<(), StartError> {
    match admin.filter(|address| !address.ip().is_loopback()) {
        Some(address) if options.token.is_none() => Err(StartError::Unguarded(address)),
        _ => Ok(()),
    }
}

async fn open_store(path: &Path, options: StoreOptions, clock: Clock) -> Result<(Store, Closed), StoreError> {
    announce(&options.metrics);
    let (store, closed) = Store::open(path, options, clock).await?;
    drop(log_backlog(store.clone()));
    Ok((store, closed))
}

/// The steps that can fail after the database is open. They come before any component runs.
async fn prepare(
    store_path: &Path,
    parts: AdminParts,
    options: AdminOptions,
) -> Result<(OrphanedHooks, Admin), StartError> {
    // Under the store's lock, before the first attempt: a hook that a dead daemon left must not meet its retry.
    let leftovers = clear_leftovers(store_path).await?;
    Ok((leftovers, Admin::new(parts, options)?))
}

/// Closes the database after a failed start: the next start must find it closed and unlocked.
async fn close_after(error: StartError, store: Store, closed: Closed) -> StartError {
    drop(store);
    if timeout(Duration::from_millis(limits::STOP_STORE_MS), closed.wait()).await.is_err() {
        tracing::warn!("the database was not closed in time");
    }
    error
}

/// Waits for the dispatcher and returns the number of aborted hook calls. The dispatcher limits its own wait for hooks.
/// The limit here also covers a store that hangs.
async fn stopped(mut dispatch: JoinHandle<usize>) -> usize {
    let bound = Duration::from_millis(limits::STOP_HOOKS_MS + limits::STOP_STORE_MS);
    match timeout(bound, &mut dispatch).await {
        Ok(Ok(cut)) => cut,
        Ok(Err(error)) => {
            tracing::error!(%error, "the dispatcher panicked or was aborted");
            0
        }
        Err(_) => {
            tracing::error!(
                "the dispatcher did not end in time, probably because the store hangs; its jobs run again at the next start"
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
        // An error means that the daemon was dropped, which counts as a stop.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    run(part, net::serve(listener, options, handler, stop))
}

/// Returns the parts that the admin listener shows.
fn shown(
    store: &Store,
    database: Option<(PathBuf, StoreOptions)>,
    metrics: &Metrics,
    refusals: &DeniedRequests,
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

/// Creates the counters with the value 0, so that an alert rule sees the first increment.
fn announce(metrics: &Metrics) {
    for outcome in ["applied", "restart-required", "kept"] {
        metrics.announce(Metric::Reloads, [outcome, ""]);
    }
}

/// Runs a component in a task of its own.
fn run<T: Send + 'static>(part: Part, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(async move {
        let _part = part;
        work.await
    })
}

/// Returns the facts about the endpoints that jobs need.
fn known(endpoints: &[(String, Endpoint)]) -> KnownEndpoints {
    KnownEndpoints::new(endpoints.iter().map(|(_, endpoint)| {
        let known = KnownEndpoint { account: endpoint.account.clone(), dialect: endpoint.dialect };
        (endpoint.name.to_string(), known)
    }))
}

/// Adds the function that finds the retry list of a job's current hook, because the store does not know hooks. A
/// function set by an embedding program is kept.
fn with_retry_lists(
    mut options: StoreOptions,
    runners: watch::Receiver<Runner>,
    known: watch::Receiver<KnownEndpoints>,
) -> StoreOptions {
    options.schedules.chosen.get_or_insert_with(|| {
        Arc::new(move |failed: &Retrying<'_>| {
            // The endpoint may have been renamed since: route the job as the dispatcher does.
            let dialect = failed.callback.dialect.as_deref();
            let successors = known.borrow().successors(failed.endpoint, failed.account, dialect);
            let endpoint = successors.name().unwrap_or(failed.endpoint);
            let subject = Subject::new(endpoint, failed.callback, failed.instance);
            runners.borrow().retry(&subject).cloned()
        })
    });
    options
}

/// Kills the hooks that an earlier daemon of this database left running.
async fn clear_leftovers(store_path: &Path) -> Result<OrphanedHooks, StartError> {
    // One folder per database file: a symbolic link to the database must lead to the same marks.
    let real = store_path.canonicalize().map_err(StartError::Leftovers)?;
    let mut folder = real.into_os_string();
    folder.push(".running");
    OrphanedHooks::clear(Path::new(&folder)).await.map_err(StartError::Leftovers)
}

/// Logs the backlog that waits for an operator, at every start. The count takes longer in a larger store, so the start
/// does not wait for it.
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
            let unreported = totals.unreported;
            if let Some(commands) = commands_for(held, dead, unreported) {
                tracing::warn!(dead, held, unreported, "work waits for an operator: {commands}");
            }
        }
        Err(error) => tracing::warn!(%error, "the backlog cannot be counted"),
    })
}

/// Returns the commands that list the work, or `None` if there is none. A command that prints nothing is not named.
fn commands_for(held: u64, dead: u64, unreported: u64) -> Option<String> {
    let lists = [
        (held, "spid held list"),
        (dead, "spid jobs list --state dead"),
        (unreported, "spid callbacks list --unreported"),
    ];
    let commands: Vec<&str> =
        lists.iter().filter(|(count, _)| *count > 0).map(|(_, command)| *command).collect();
    (!commands.is_empty()).then(|| commands.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::log::LogHook;
    use crate::hooks::runner::NamedHook;
    use spid_hook::AnyHook;

    fn without_endpoints(folder: &tempfile::TempDir) -> DaemonOptions {
        let runner = Runner::new(vec![NamedHook::new("log", AnyHook::from(LogHook))], Vec::new()).unwrap();
        DaemonOptions::new(folder.path().join("spid.db"), Vec::new(), runner)
    }

    async fn a_daemon(folder: &tempfile::TempDir) -> Daemon {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Daemon::start(listener, None, without_endpoints(folder)).await.unwrap()
    }

    #[test]
    fn only_commands_that_print_something_are_named() {
        assert_eq!(commands_for(0, 0, 0), None);
        assert_eq!(commands_for(0, 0, 7).as_deref(), Some("spid callbacks list --unreported"));
        assert_eq!(commands_for(2, 1, 0).as_deref(), Some("spid held list, spid jobs list --state dead"));
    }

    #[tokio::test]
    async fn an_admin_listener_for_everybody_needs_a_token() {
        let listener = || async { TcpListener::bind("0.0.0.0:0").await.unwrap() };
        let folder = tempfile::tempdir().unwrap();
        let mut options = without_endpoints(&folder);
        let refused = Daemon::start(listener().await, Some(listener().await), options).await;
        assert!(matches!(refused, Err(StartError::Unguarded(_))));
        options = without_endpoints(&folder);
        options.live.admin.token = Some(spid_hook::Secret::new("fake-token-of-a-test"));
        let daemon = Daemon::start(listener().await, Some(listener().await), options).await.unwrap();
        assert!(daemon.stop().await.closed);
    }

    #[tokio::test]
    async fn failed_start_leaves_the_database_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db");
        // A file where the folder of the marks must be lets the start fail behind the store.
        std::fs::write(folder.path().join("spid.db.running"), "").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let failed = Daemon::start(listener, None, without_endpoints(&folder)).await;
        assert!(failed.is_err());
        let log = folder.path().join("spid.db-wal");
        assert!(path.exists() && !log.exists(), "the writer has closed the database");
    }

    #[tokio::test]
    async fn a_dispatcher_that_ends_by_itself_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let daemon = a_daemon(&folder).await;
        daemon.dispatch.abort();
        assert_eq!(daemon.ended().await, "dispatcher");
        daemon.stop().await;
    }

    #[tokio::test]
    async fn a_listener_that_ends_by_itself_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let daemon = a_daemon(&folder).await;
        daemon.listener_task.abort();
        assert_eq!(daemon.ended().await, "listener");
        daemon.stop().await;
    }

    /// The loop turns although a hook that does not end has its only permit.
    #[tokio::test]
    async fn a_dispatcher_is_alive_as_long_as_it_turns() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut options = without_endpoints(&folder);
        options.dispatch.poll = Duration::from_millis(5);
        let mut daemon = Daemon::start(listener, None, options).await.unwrap();
        let _taken = daemon.store.permits().clone().acquire_many_owned(64).await.unwrap();
        daemon.liveness.within = Duration::from_secs(30);
        let before = *daemon.liveness.iterated_at.borrow();
        daemon.liveness.iterated_at.wait_for(|iterated_at| *iterated_at > before).await.unwrap();
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
        let folder = tempfile::tempdir().unwrap();
        let daemon = a_daemon(&folder).await;
        tokio::select! {
            biased;
            part = daemon.ended() => unreachable!("{part}"),
            ready = daemon.store().probe() => ready.unwrap(),
        }
        assert!(daemon.stop().await.closed);
    }
}

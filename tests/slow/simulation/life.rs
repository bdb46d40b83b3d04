//! Lives of a daemon: it starts with the disk of the last one, works with faults, and crashes or stops. The last life
//! has no faults, and everything must end correctly.

use std::sync::Arc;
use std::time::Duration;

use spid::hook::AnyHook;
use spid::internals::hooks::runner::{NamedHook, Runner};
use spid::internals::net::Handler as _;
use spid::internals::observe::limits;
use spid::internals::observe::metrics::Metrics;
use spid::internals::serve::dispatch::{Dispatch, DispatchOptions};
use spid::internals::serve::intake::{Intake, IntakeOptions};
use spid::internals::serve::public::{AccessPolicy, PublicListener, Routes};
use spid::internals::store::Store;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::check;
use crate::disk::{self, PlantedBug, Writer};
use crate::hook::{Machine, TIMEOUT};
use crate::market::{self, Spoilt};
use crate::world::{FAIR, FOUL, Sim};

/// Maximum duration of a commit.
const COMMIT_MAX_MS: u64 = 8_000;

/// Result of a whole simulation.
pub(crate) struct Run {
    pub(crate) trace: Vec<String>,
    pub(crate) violation: Option<String>,
    pub(crate) counts: std::collections::BTreeMap<&'static str, u64>,
}

/// One simulation, which depends only on its seed.
pub(crate) fn simulate(seed: u64, planted: PlantedBug) -> Run {
    let sim = Sim::new(seed, planted);
    let lives = sim.between(1, 4);
    for _ in 0..lives {
        if !sim.is_broken() {
            live(&sim, foul_life);
        }
    }
    if !sim.is_broken() {
        sim.time.catch_up();
        live(&sim, fair_life);
    }
    if !sim.is_broken() {
        check::end(&sim);
    }
    let violation = sim.world().violation.take();
    let counts = std::mem::take(&mut sim.world().counts);
    Run { trace: sim.take_trace(), violation, counts }
}

/// One life is one runtime: dropping it drops all memory.
fn live<L: Future<Output = ()>>(sim: &Sim, life: impl FnOnce(Sim) -> L) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        sim.time.begin_life();
        sim.note("starts", "");
        life(sim.clone()).await;
        sim.time.end_life();
    });
    drop(runtime);
    sim.world().machines.forget_running();
    sim.world().in_flight = 0;
    sim.world().rival = false;
    check::commit(sim);
}

/// A running daemon.
#[derive(Clone)]
struct Daemon {
    /// The handler that the daemon's own listener has.
    listener: PublicListener,
    store: Store,
    stop: Arc<watch::Sender<bool>>,
}

/// Starts it. `None` if its disk failed.
async fn start(sim: &Sim) -> Option<(Daemon, JoinHandle<usize>)> {
    let clock = sim.time.clock();
    let (store, writer) =
        disk::assemble(&sim.disk, sim.store.clone(), clock.clone(), sim.fault_chooser(), sim.planted);
    tokio::spawn(drive(sim.clone(), writer));
    store.recover().await.ok()?;
    let metrics = Metrics::default();
    let hook = NamedHook::new("machine", AnyHook::new(Machine(sim.clone())));
    let hook = hook.timeout(TIMEOUT).concurrency(sim.between(1, 6) as usize);
    let runner = Runner::new(vec![hook], Vec::new()).unwrap();
    let options = DispatchOptions { permits: sim.between(1, 8) as usize, ..DispatchOptions::default() };
    let (_, runner) = watch::channel(runner);
    let dispatch = Dispatch::new(store.clone(), clock.clone(), metrics.clone(), runner, options);
    let (stop, stopping) = watch::channel(false);
    let dispatching = tokio::spawn(dispatch.run(stopping));
    let refusals = spid::internals::observe::denied::DeniedRequests::new(clock.clone(), metrics.clone());
    let intake = Intake::new(store.clone(), clock, metrics.clone(), refusals, IntakeOptions::default());
    let endpoints =
        (0..market::ACCOUNTS.len()).map(|account| (market::path(account), market::endpoint(account)));
    let routes = Routes::new(endpoints.collect(), intake, AccessPolicy::default());
    let listener = PublicListener::new(watch::channel(Arc::new(routes)).1, metrics);
    Some((Daemon { listener, store, stop: Arc::new(stop) }, dispatching))
}

/// Controls the writer: size of a batch, duration of each step, and the moment of the daemon's death.
async fn drive(sim: Sim, mut writer: Writer) {
    loop {
        let most = sim.between(1, 6) as usize;
        let Some(operated) = writer.operate(most).await else { return };
        let slow = sim.world().weather.slow;
        linger(&sim, if slow { COMMIT_MAX_MS } else { 20 }).await;
        let ended = writer.commit(operated);
        check::commit(&sim);
        linger(&sim, if sim.mishap(10) { 50 } else { 0 }).await;
        writer.settle(ended);
        // Clients that got an answer have read it before the next commit.
        sleep(Duration::from_millis(1)).await;
    }
}

/// Time passes, up to this duration, or the daemon dies.
async fn linger(sim: &Sim, most_ms: u64) {
    if sim.mishap(1) && sim.percent(30) {
        sim.crash.notify_one();
        std::future::pending::<()>().await;
    }
    if most_ms > 0 {
        sleep(Duration::from_millis(sim.between(0, most_ms))).await;
    }
}

async fn foul_life(sim: Sim) {
    sim.world().weather = FOUL;
    let life = async {
        let Some((daemon, dispatching)) = start(&sim).await else { return sim.note("does not start", "") };
        for _ in 0..sim.between(10, 60) {
            if sim.is_broken() {
                return;
            }
            step(&sim, &daemon).await;
        }
        if sim.percent(40) {
            sim.note("stops", "");
            daemon.stop.send_replace(true);
            let _ = dispatching.await;
        }
    };
    tokio::select! {
        biased;
        () = sim.crash.notified() => sim.note("crashes", ""),
        () = life => {}
    }
}

/// Causes one random event.
async fn step(sim: &Sim, daemon: &Daemon) {
    match sim.between(0, 99) {
        0..=54 => announce(sim, daemon),
        55..=59 => spoil(sim, daemon),
        60..=63 => jump(sim),
        64..=69 => turn(sim),
        70..=72 => rival(sim, daemon).await,
        _ => {}
    }
    let wait = match sim.between(0, 9) {
        0..=5 => sim.between(0, 60),
        6..=8 => sim.between(60, 6_000),
        _ => sim.between(6_000, 70_000),
    };
    sleep(Duration::from_millis(wait)).await;
}

/// The marketplace sends a request: an unreported one, a new one, or an old one again, sometimes several at once.
fn announce(sim: &Sim, daemon: &Daemon) {
    let (order, event) = {
        let world = &mut *sim.world();
        let order = world.random.next() as usize % world.orders.len();
        let events = &world.orders[order].events;
        let next = events.iter().position(|event| !event.sent);
        let unreported = events.iter().position(|event| event.sent && !event.reported);
        let known = next.unwrap_or(events.len()).max(1);
        let old = world.random.next() as usize % known;
        let event = match world.random.between(0, 9) {
            0..=4 => unreported.or(next),
            5..=7 => next.or(unreported),
            _ => None,
        };
        (order, event.unwrap_or(old).min(events.len() - 1))
    };
    for _ in 0..if sim.percent(25) { sim.between(2, 4) } else { 1 } {
        let before = if sim.percent(30) { sim.between(0, 9_000) } else { 0 };
        tokio::spawn(deliver(sim.clone(), daemon.clone(), order, event, before));
    }
}

/// One delivery and its answer. Either can be lost or delayed.
async fn deliver(sim: Sim, daemon: Daemon, order: usize, event: usize, before_ms: u64) {
    let (account, pairs) = {
        let mut world = sim.world();
        let sold = &mut world.orders[order];
        sold.events[event].sent = true;
        (sold.account, sold.events[event].parameters(&sold.biz))
    };
    let request = market::request(account, &pairs, sim.time.now_ms(), Spoilt::Nothing);
    if before_ms > 0 {
        sleep(Duration::from_millis(before_ms)).await;
    }
    sim.note("delivery", format_args!("{order}.{event} {pairs:?}"));
    let (status, id) = ask(&sim, &daemon, request).await;
    sim.note("answer", format_args!("{order}.{event} {status} {id:?}"));
    check::answer(&sim, order, event, &status, id.as_deref());
    if sim.mishap(15) {
        return sim.note("answer lost", format_args!("{order}.{event}"));
    }
    if sim.mishap(20) {
        sleep(Duration::from_millis(sim.between(0, 20_000))).await;
    }
    let world = &mut *sim.world();
    let sold = &mut world.orders[order];
    sold.events[event].reported |= status == "applied";
    sold.events[event].heard = status;
    if sold.told_id.is_none() {
        sold.told_id = id;
    }
}

/// Sends a request to the daemon, and reads status and id of the answer. It must come in time.
async fn ask(sim: &Sim, daemon: &Daemon, request: spid::internals::net::Request) -> (String, Option<String>) {
    let asked = Instant::now();
    sim.world().in_flight += 1;
    let response = daemon.listener.handle(request).await;
    sim.world().in_flight -= 1;
    let bound = Duration::from_millis(limits::REPLY_WITHIN_MS + limits::REPLY_GRACE_MS + 500);
    sim.demand(asked.elapsed() <= bound, || format!("an answer took {:?}", asked.elapsed()));
    let body: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    let text = |name: &str| body.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    (text("status").unwrap(), text("instance_id"))
}

/// A sender without the key, or with an old recording, sends a request.
fn spoil(sim: &Sim, daemon: &Daemon) {
    let spoilt = sim.world().random.weighted(&[
        (1, Spoilt::WrongKey),
        (1, Spoilt::Altered),
        (1, Spoilt::Unsigned),
        (1, Spoilt::Stale),
    ]);
    let (sim, daemon) = (sim.clone(), daemon.clone());
    tokio::spawn(async move {
        let pairs = [("action", "release"), ("order_biz_id", "biz-0"), ("order_id", "forged")];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let request = market::request(0, &pairs, sim.time.now_ms(), spoilt);
        let (status, _) = ask(&sim, &daemon, request).await;
        sim.note("forgery", format_args!("{spoilt:?} {status}"));
        sim.demand(status == "rejected", || format!("a request that is {spoilt:?} was answered {status}"));
    });
}

/// The wall clock jumps.
fn jump(sim: &Sim) {
    let by = match sim.between(0, 9) {
        0..=4 => sim.between(0, 60_000),
        5..=7 => sim.between(60_000, 900_000),
        _ => sim.between(900_000, 40 * 86_400_000),
    };
    let by = by as i64 * if sim.percent(60) { 1 } else { -1 };
    sim.time.jump(by);
    sim.note("clock jumps", format_args!("{by} ms"));
}

/// Another daemon on the same store, with a clock ahead of ours, takes over our leases.
async fn rival(sim: &Sim, daemon: &Daemon) {
    sim.time.jump(limits::LEASE_MS + 1);
    sim.world().rival = true;
    let taken = daemon.store.take(0).await;
    sim.world().rival = false;
    sim.note("rival", taken.is_ok());
}

/// The faults change.
fn turn(sim: &Sim) {
    let (outage, slow) = (sim.percent(25), sim.percent(25));
    let weather = &mut sim.world().weather;
    (weather.outage, weather.slow) = (outage, slow);
}

/// Without faults the marketplace repeats its unreported requests until all are reported.
async fn fair_life(sim: Sim) {
    sim.world().weather = FAIR;
    let Some((daemon, dispatching)) = start(&sim).await else {
        return sim.violate("a daemon with a good disk did not start");
    };
    for _ in 0..14 {
        if sim.is_broken() || !redeliver(&sim, &daemon).await {
            break;
        }
        sleep(Duration::from_secs(40)).await;
    }
    sleep(Duration::from_secs(300)).await;
    check::quiet(&sim);
    daemon.stop.send_replace(true);
    let _ = dispatching.await;
}

/// Repeats all unreported requests. Returns true if there were any.
async fn redeliver(sim: &Sim, daemon: &Daemon) -> bool {
    let orders = sim.world().orders.clone();
    let mut any = false;
    for (order, sold) in orders.iter().enumerate() {
        for (event, announced) in sold.events.iter().enumerate() {
            if announced.sent && !announced.reported {
                any = true;
                deliver(sim.clone(), daemon.clone(), order, event, 0).await;
            }
        }
    }
    any
}

//! The simulator with receivers that lose something, and with our own daemon, which is killed and started again
//! meanwhile.
//!
//! `cargo test` plays some hundred orders with the daemon. For ten thousand:
//!
//! ```text
//! SPID_MARKET_ORDERS=10000 cargo test --test receivers killed -- --nocapture
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "the driver of other processes: it waits, prints, and panics when it has found something"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use spid::internals::lab::simulator::Simulator;
use spid::internals::lab::simulator::ledger::{FinalState, Ledger, LossKind, Summary};
use spid::internals::lab::simulator::plan::Plan;
use spid_core::signature::Keys;
use spid_hook::Secret;

use crate::forwarder::Forwarder;
use crate::receiver::{Fault, KEY, receiver};
use crate::support::serving::Serving;

fn simulator(url: &str, orders: u32, rate: f64) -> Simulator {
    let keys = Keys::single(Secret::new(KEY)).unwrap();
    let plan = Plan::new(7, orders, rate);
    let mut simulator = Simulator::new(url.parse().unwrap(), keys, plan, "sim");
    simulator.day = Duration::from_millis(1);
    simulator.every = Duration::from_millis(1);
    simulator.minute = Duration::ZERO;
    simulator
}

async fn played(fault: Fault) -> Summary {
    let url = receiver(fault).await;
    simulator(&url, 60, 1_000_000.0).play(std::future::pending(), |_| {}).await.1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_without_a_fault_loses_nothing() {
    let summary = played(Fault::None).await;
    assert!(summary.is_clean(), "{summary:#?}");
    assert_eq!(summary.orders, 60);
    assert!(summary.asked.values().all(|asked| asked.happened == asked.done), "{summary:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_receiver_loses_is_found_and_named() {
    for (fault, kind) in [
        (Fault::AlwaysZero, LossKind::Lost),
        (Fault::RenewsNot, LossKind::Lost),
        (Fault::UpgradesNot, LossKind::Lost),
        (Fault::NewIdPerRetry, LossKind::Doubled),
        (Fault::OneIdForAll, LossKind::Doubled),
        (Fault::ExpiresNot, LossKind::Unpaid),
        (Fault::ReleasesNot, LossKind::Unpaid),
        (Fault::RenewsOnce, LossKind::Contradicted),
    ] {
        let summary = played(fault).await;
        assert!(summary.count(kind) > 0, "{fault:?}: {:?}", summary.losses);
        assert!(!summary.examples.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_answered_with_0_is_asked_for_120_times_more() {
    let url = receiver(Fault::AlwaysZero).await;
    let mut simulator = simulator(&url, 1, 1.0);
    simulator.plan.orders[0].events.truncate(1);
    simulator.plan.orders[0].events[0].twins = false;
    let (_, summary) = simulator.play(std::future::pending(), |_| {}).await;
    assert_eq!(summary.asked["create"].requests, 121);
    assert_eq!(summary.losses[&LossKind::Lost].worth, 99);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_nobody_takes_note_of_climbs_its_ladder_and_is_left_to_the_seller() {
    let url = receiver(Fault::PaysNot).await;
    let mut simulator = simulator(&url, 60, 1_000_000.0);
    for order in &mut simulator.plan.orders {
        order.events.iter_mut().for_each(|event| event.twins = false);
    }
    let (_, summary) = simulator.play(std::future::pending(), |_| {}).await;
    let payments = summary.asked["payment"];
    assert_eq!((payments.requests, payments.done), (12 * payments.happened, 0));
    assert_eq!(summary.losses.keys().collect::<Vec<_>>(), [&LossKind::Unheard]);
    assert_eq!(summary.count(LossKind::Unheard), payments.happened);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_market_that_is_stopped_tells_what_it_knows() {
    let url = receiver(Fault::None).await;
    let mut simulator = simulator(&url, 40, 1_000_000.0);
    // The last ones come after a year.
    simulator.plan.orders.iter_mut().skip(10).for_each(|order| order.arrives_ms = 365 * 86_400_000);
    let (through, all_through) = tokio::sync::oneshot::channel();
    let (mut through, mut count) = (Some(through), 0);
    let stop = async move { all_through.await.unwrap() };
    let (_, summary) = simulator
        .play(stop, |_| {
            count += 1;
            if count == 10 {
                through.take().unwrap().send(()).unwrap();
            }
        })
        .await;
    assert_eq!((summary.orders, summary.is_clean()), (10, true), "{summary:#?}");
}

/// Everything for a daemon, in a folder.
fn prepare(folder: &Path) {
    let at = |name: &str| folder.join(name);
    std::fs::write(at("key"), KEY).unwrap();
    let text = format!(
        "server.reply_within = \"1s\"\nstore.path = {:?}\n\
         [[endpoint]]\nname = \"alibaba\"\npath = \"/spi\"\ndialect = \"alibaba\"\nkeys = [{{ file = {:?} }}]\n\
         [[hook]]\nname = \"log\"\nlog = {{}}\n",
        at("spid.db"),
        at("key")
    );
    std::fs::write(at("spid.toml"), text).unwrap();
}

/// Kills the daemon and starts it again until it is told to stop. Returns the number of kills.
fn kill_over_and_over(folder: &Path, forwarder: &Forwarder, over: &AtomicBool) -> u64 {
    let environment = [("SPID_LOG".to_owned(), "warn,spid=info,spid::hook=warn".to_owned())];
    let mut kills = 0;
    loop {
        let mut daemon = Serving::start(folder, &environment);
        forwarder.leads_to(daemon.address());
        // Each run is a little longer, so that the moments differ.
        let alive = Duration::from_millis(400 + kills * 137 % 1_100);
        let (begin, done) = (std::time::Instant::now(), || over.load(Ordering::Relaxed));
        while begin.elapsed() < alive && !done() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if done() {
            daemon.terminate();
            let ended = daemon.ended_within(Duration::from_secs(60));
            assert!(
                ended.is_some_and(|status| status.success()),
                "the last stop was not a clean one: {ended:?}"
            );
            return kills;
        }
        daemon.kill();
        let _ = daemon.ended_within(Duration::from_secs(30));
        forwarder.leads_to(None);
        kills += 1;
    }
}

/// The database must agree with the ledger: every order is there once, in the state of the last answer, and every
/// reported work was done once.
fn compare(database: &Path, ledger: &Ledger, summary: &Summary) {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let kept: BTreeMap<String, (Option<String>, i64)> = connection
        .prepare("SELECT order_biz_id, id, state FROM instance")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let count = |sql: &str| -> i64 { connection.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(count("SELECT count(*) FROM instance"), i64::from(u32::try_from(kept.len()).unwrap()));
    for entry in ledger.entries() {
        let (id, state) = kept.get(&entry.biz).unwrap_or_else(|| panic!("{} is not kept", entry.biz));
        let told = match entry.end {
            FinalState::Active => 1,
            FinalState::Frozen => 2,
            FinalState::Released => 3,
            FinalState::Nothing => panic!("{} was never told", entry.biz),
        };
        assert_eq!((id, *state), (&entry.id, told), "{}", entry.biz);
    }
    let mut done: BTreeMap<String, u64> = BTreeMap::new();
    let sql = "SELECT json_extract(callback.body, '$.action'), count(*) FROM job
               JOIN callback ON callback.number = job.callback GROUP BY 1";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))).unwrap();
    done.extend(rows.map(Result::unwrap).map(|(action, count)| (action, count.unsigned_abs())));
    let told = summary.asked.iter().filter(|(name, _)| **name != "late-create");
    let told: BTreeMap<String, u64> = told.map(|(name, asked)| ((*name).to_owned(), asked.done)).collect();
    assert_eq!(done, told, "a job for everything that was told, and no other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_over_and_over_our_daemon_loses_and_doubles_nothing() {
    let orders: u32 = std::env::var("SPID_MARKET_ORDERS").map_or(200, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let forwarder = Forwarder::start().await;
    let url = format!("http://{}/spi", forwarder.address());
    let over = std::sync::Arc::new(AtomicBool::new(false));
    let killer = {
        let (folder, forwarder, over) = (folder.path().to_owned(), forwarder.clone(), over.clone());
        tokio::task::spawn_blocking(move || kill_over_and_over(&folder, &forwarder, &over))
    };
    let mut simulator = simulator(&url, orders, 60.0);
    // A day of 15 ms and 4 s of orders: the daemon is killed several times meanwhile.
    simulator.day = Duration::from_millis(15);
    simulator.every = Duration::from_millis(500);
    simulator.minute = Duration::from_millis(100);
    let (ledger, summary) = simulator.play(std::future::pending(), |_| {}).await;
    over.store(true, Ordering::Relaxed);
    let kills = killer.await.unwrap();
    eprintln!(
        "{orders} orders, {kills} kills, {} requests, {} without an answer: {:?}",
        summary.requests, summary.unanswered, summary.losses
    );
    let log = || std::fs::read_to_string(folder.path().join("spid.log")).unwrap();
    assert!(
        summary.is_clean(),
        "{:#?}\n{}",
        summary,
        log().lines().rev().take(50).collect::<Vec<_>>().join("\n")
    );
    assert!(kills >= 3, "{kills} kills");
    compare(&folder.path().join("spid.db"), &ledger, &summary);
}

/// Runs `spid` to its end, which must succeed.
fn spid(folder: &Path, arguments: &[&str]) -> String {
    let mut spid = std::process::Command::new(env!("CARGO_BIN_EXE_spid"));
    let output = spid.args(arguments).current_dir(folder).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}\n{told}{}", String::from_utf8_lossy(&output.stderr));
    told
}

/// Instances of a daemon, without the fields that differ between daemons.
fn instances(folder: &Path) -> BTreeMap<String, serde_json::Value> {
    let listed = spid(folder, &["instances", "list", "--json", "--limit", "1000", "--db", "spid.db"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    let row = |mut row: serde_json::Value| {
        let id = row["id"].as_str().unwrap().to_owned();
        for own in ["created_at", "updated_at"] {
            row.as_object_mut().unwrap().remove(own);
        }
        (id, row)
    };
    rows.into_iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lives_of_a_market_are_exported_and_replayed_to_the_same_end() {
    let (lived, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |folder: &Path| {
        prepare(folder);
        let daemon = Serving::start(folder, &[]);
        let url = format!("http://{}/spi", daemon.address().unwrap());
        (daemon, url)
    };
    let (_one, url) = start(lived.path());
    let (_other, to) = start(again.path());
    let mut simulator = simulator(&url, 25, 1_000_000.0);
    simulator.every = Duration::from_millis(50);
    simulator.minute = Duration::from_millis(50);
    let (_, summary) = simulator.play(std::future::pending(), |_| {}).await;
    assert!(summary.is_clean(), "{summary:#?}");
    let before = instances(lived.path());
    for id in before.keys() {
        let kept = ["instances", "export", id, "--keep-personal", "--keep-dates", "--db", "spid.db"];
        for (name, arguments) in
            [("kept.toml", &kept[..]), ("replaced.toml", &["instances", "export", id, "--db", "spid.db"])]
        {
            std::fs::write(again.path().join(name), spid(lived.path(), arguments)).unwrap();
        }
        // The last step of the second one states the final state.
        let files = ["kept.toml", "replaced.toml"];
        spid(
            again.path(),
            &[&["replay", "-q", "--to", &to, "--key-file", "key", "--db", "spid.db"], &files[..]].concat(),
        );
    }
    let mut after = instances(again.path());
    after.retain(|id, _| before.contains_key(id));
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_says_what_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), KEY).unwrap();
    for (fault, code, says) in
        [(Fault::None, 0, "worth 0.00"), (Fault::NewIdPerRetry, 1, "created twice, or shared by two orders")]
    {
        let url = receiver(fault).await;
        let mut spid = std::process::Command::new(env!("CARGO_BIN_EXE_spid"));
        spid.args(["simulate", "--to", &url, "--key-file", "key", "--orders", "40", "--seed", "7"])
            .args([
                "--rate", "1000", "--day", "1ms", "--retry", "1ms", "--minute", "0ms", "--ledger", "ledger",
            ])
            .current_dir(folder.path());
        let output = tokio::task::spawn_blocking(move || spid.output().unwrap()).await.unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{told}{}", String::from_utf8_lossy(&output.stderr));
        assert!(told.contains(says) && told.contains("40 orders, ") && told.contains("seed 7"), "{told}");
        let ledger = std::fs::read_to_string(folder.path().join("ledger")).unwrap();
        assert_eq!(ledger.lines().count(), 40);
    }
}

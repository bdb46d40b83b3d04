//! Every fixture with a complete daemon: the real listener, intake, store, dispatcher and log hook. The store is
//! checked after every step.

#![allow(clippy::unwrap_used, reason = "a test that panics has said what it found")]

use std::path::{Path, PathBuf};

use spid::hook::AnyHook;
use spid::internals::hooks::log::LogHook;
use spid::internals::hooks::runner::{NamedHook, Runner};
use spid::internals::lab::scenario::{Report, Scenario, Seen, States, Target};
use spid::internals::serve::daemon::{Daemon, DaemonOptions};
use spid::internals::serve::intake::Endpoint;
use spid::internals::store::Reader;
use spid_core::dialect;
use spid_core::dialect::Options;
use spid_core::signature::Keys;
use spid_hook::Secret;
use spid_hook::time::Clock;
use tokio::net::TcpListener;

fn keys() -> Keys {
    Keys::single(Secret::new("isvkey")).unwrap()
}

struct Kept<'a>(&'a Reader);

impl States for Kept<'_> {
    fn state(&self, name: &str) -> Option<Seen> {
        let rows = self.0.instances_named(name).unwrap();
        assert!(rows.len() < 2, "`{name}` is the name of several instances");
        let instance = rows.into_iter().next()?.instance;
        Some(Seen {
            id: instance.id,
            state: instance.state,
            expires_on: instance.expires_on,
            sku: instance.sku,
            items: instance.items,
        })
    }

    fn held(&self) -> u64 {
        let totals = self.0.totals().unwrap();
        totals.held + totals.jobs.get("held").copied().unwrap_or(0)
    }
}

/// A daemon with one endpoint per dialect, named after it, and an empty store.
async fn daemon(store: PathBuf) -> Daemon {
    let endpoint = |name: &str| Endpoint {
        name: name.into(),
        account: name.into(),
        dialect: dialect::by_name(name).unwrap(),
        keys: keys(),
        options: Options::default(),
    };
    let endpoints = dialect::names().map(|name| (format!("/{name}"), endpoint(name))).collect();
    let runner = Runner::new(vec![NamedHook::new("log", AnyHook::new(LogHook))], Vec::new()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Daemon::start(listener, None, DaemonOptions::new(store, endpoints, runner)).await.unwrap()
}

fn fixtures(dialect: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("spi-fixtures").join(dialect);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

async fn run(daemon: &Daemon, scenario: &Scenario) -> Report {
    let url = format!("http://{}/{}", daemon.address(), scenario.dialect().name());
    let target = Target { keep_going: true, ..Target::new(url.parse().unwrap(), keys()) };
    let kept = Kept(daemon.store().reader());
    scenario.run(&target, Some(&kept), &Clock::System, &mut ()).await
}

fn complaints(report: &Report) -> String {
    let failures = report.steps.iter().flat_map(|step| {
        step.failures.iter().map(move |failure| format!("{} / {}: {failure}\n", report.title, step.name))
    });
    let error = report.error.iter().map(|error| format!("{}: {error}\n", report.title));
    failures.chain(error).collect()
}

/// Runs every fixture of a dialect in sequence with the same daemon.
async fn all(dialect: &str) {
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path().join("spid.db")).await;
    let mut failed = String::new();
    for file in fixtures(dialect) {
        let report = run(&daemon, &Scenario::load(&file).unwrap()).await;
        assert!(report.steps.iter().all(|step| step.not_checked.is_empty()));
        assert_eq!(report.passed, complaints(&report).is_empty());
        failed.push_str(&complaints(&report));
    }
    assert!(failed.is_empty(), "{failed}");
    let stopped = daemon.stop().await;
    assert!(stopped.answered && stopped.closed && stopped.cut == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alibaba() {
    all("alibaba").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jdcloud() {
    all("jdcloud").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generic() {
    all("generic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn koogallery() {
    all("koogallery").await;
}

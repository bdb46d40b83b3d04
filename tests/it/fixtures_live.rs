//! Every fixture with a complete daemon: the real listener, intake, store, dispatcher and log hook. The store is
//! checked after every step.

#![allow(clippy::unwrap_used, reason = "a test that panics has said what it found")]

use std::path::{Path, PathBuf};

use spid::hook::AnyHook;
use spid::internals::hooks::log::LogHook;
use spid::internals::hooks::runner::{NamedHook, Runner};
use spid::internals::lab::scenario::{Report, Scenario, Seen, States, Target};
use spid::internals::net::Url;
use spid::internals::serve::daemon::{Daemon, DaemonOptions};
use spid::internals::serve::intake::Endpoint;
use spid::internals::store::Reader;
use spid_core::dialect;
use spid_core::dialect::Options;
use spid_core::signature::{Key, Keys};
use spid_hook::Secret;
use spid_hook::time::Clock;
use tokio::net::TcpListener;

const KEY: &str = "isvkey";
const PREVIOUS_KEY: &str = "fake-key-before-the-change";

/// States of the instances of one account.
struct StoreStates<'a> {
    reader: &'a Reader,
}

impl States for StoreStates<'_> {
    fn state(&self, url: &Url, name: &str) -> Result<Option<Seen>, String> {
        let account = url.target().trim_start_matches('/');
        let mut rows = self.reader.instances_named(name).unwrap();
        rows.retain(|row| row.instance.account == account);
        Ok(rows.into_iter().next().map(|row| row.instance.into()))
    }

    fn held(&self) -> u64 {
        let totals = self.reader.totals().unwrap();
        totals.held + totals.jobs.get("held").copied().unwrap_or(0)
    }
}

/// A daemon with one endpoint per dialect, named after it, and an empty store.
async fn daemon(store: PathBuf) -> Daemon {
    // The keys of an endpoint whose key is being changed.
    let both = [("current", KEY), ("previous", PREVIOUS_KEY)]
        .map(|(label, key)| Key::new(label, Secret::new(key)).unwrap())
        .to_vec();
    let endpoint = |name: &str, account: &str, dialect: &str| Endpoint {
        name: name.into(),
        account: account.into(),
        dialect: dialect::by_name(dialect).unwrap(),
        keys: Keys::new(both.clone()).unwrap(),
        options: Options::default(),
    };
    let mut endpoints: Vec<(String, Endpoint)> =
        dialect::names().map(|name| (format!("/{name}"), endpoint(name, name, name))).collect();
    // A second site with an account of its own, and the path of the recorded request.
    endpoints.push(("/intl".to_owned(), endpoint("intl", "intl", "alibaba")));
    endpoints.push(("/spi".to_owned(), endpoint("spi", "alibaba", "alibaba")));
    let runner = Runner::new(vec![NamedHook::new("log", AnyHook::new(LogHook))], Vec::new()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Daemon::start(listener, None, DaemonOptions::new(store, endpoints, runner)).await.unwrap()
}

fn fixtures(dialect: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("spi-fixtures").join(dialect);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Recorded requests are beside their fixtures.
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

async fn run(daemon: &Daemon, scenario: &Scenario) -> Report {
    let url = format!("http://{}/{}", daemon.address(), scenario.dialect().name());
    let mut target = Target {
        keep_going: true,
        ..Target::new(url.parse().unwrap(), Keys::single(Secret::new(KEY)).unwrap())
    };
    let intl = format!("http://{}/intl", daemon.address()).parse().unwrap();
    target.endpoints.insert("intl".to_owned(), intl);
    let previous = Keys::single(Secret::new(PREVIOUS_KEY)).unwrap();
    target.other_keys.insert("previous".to_owned(), previous);
    let states = StoreStates { reader: daemon.store().reader() };
    scenario.run(&target, Some(&states), &Clock::System, &mut ()).await
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

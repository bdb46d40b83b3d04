//! Stores of a given size: orders that were bought and answered, created by the daemon's own code.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use spid::hook::AnyHook;
use spid::internals::hooks::runner::{NamedHook, Runner};
use spid::internals::net::{Handler as _, Request};
use spid::internals::observe::denied::DeniedRequests;
use spid::internals::observe::metrics::Metrics;
use spid::internals::serve::dispatch::{Dispatch, DispatchOptions};
use spid::internals::serve::intake::{Endpoint, Intake, IntakeOptions};
use spid::internals::serve::public::{AccessPolicy, PublicListener, Routes};
use spid::internals::store::{Store, StoreOptions};
use spid_core::dialect;
use spid_hook::time::Clock;
use tokio::sync::watch;

use crate::{orders, servers};

/// Maximum number of concurrent callbacks.
const AT_ONCE: usize = 512;

/// Returns a folder with a database of `count` finished orders named `full-0000000` and so on. The database is created
/// once and then copied, because a million orders take minutes.
pub(crate) fn store(cache: &Path, count: usize) -> tempfile::TempDir {
    let kept = cache.join(format!("orders-{count}-schema-{}", schema_version(cache)));
    if !kept.join("whole").exists() {
        let _ = std::fs::remove_dir_all(&kept);
        std::fs::create_dir_all(&kept).unwrap();
        eprintln!("creating a store of {count} orders …");
        fill(&kept.join("spid.db"), count);
        // Written last: a store without this file was interrupted and is created again.
        std::fs::write(kept.join("whole"), "").unwrap();
    }
    let folder = tempfile::tempdir_in(cache).unwrap();
    for file in ["spid.db", "spid.db.key"] {
        std::fs::copy(kept.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// Returns the schema version of a new database, because a cached store of another schema cannot be used.
fn schema_version(cache: &Path) -> i64 {
    let probe = tempfile::tempdir_in(cache).unwrap();
    let path = probe.path().join("spid.db");
    fill(&path, 0);
    // `user_version` is at offset 60 of the file, big-endian (sqlite.org/fileformat.html).
    let head = std::fs::read(&path).unwrap();
    i64::from(u32::from_be_bytes([head[60], head[61], head[62], head[63]]))
}

fn fill(path: &Path, count: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(fill_with(path.to_owned(), count));
}

async fn fill_with(path: PathBuf, count: usize) {
    let clock = Clock::System;
    let (store, closed) = Store::open(&path, StoreOptions::default(), clock.clone()).await.unwrap();
    let metrics = Metrics::default();
    let hook = NamedHook::new("nothing", AnyHook::new(servers::Nothing)).concurrency(AT_ONCE);
    let runner = Runner::new(vec![hook], Vec::new()).unwrap();
    let options = DispatchOptions { permits: AT_ONCE, ..DispatchOptions::default() };
    let (_hooks, runners) = watch::channel(runner);
    let dispatch = Dispatch::new(store.clone(), clock.clone(), metrics.clone(), runners, options);
    let (stop, stopping) = watch::channel(false);
    let dispatching = tokio::spawn(dispatch.run(stopping));
    let refusals = DeniedRequests::new(clock.clone(), metrics.clone());
    let intake = Intake::new(store.clone(), clock, metrics.clone(), refusals, IntakeOptions::default());
    let endpoint = Endpoint {
        name: "bench".into(),
        account: "bench".into(),
        dialect: dialect::by_name("alibaba").unwrap(),
        keys: orders::keys(),
        options: dialect::Options::default(),
    };
    let routes = Routes::new(vec![("/spi".to_owned(), endpoint)], intake, AccessPolicy::default());
    let (routes, current) = watch::channel(Arc::new(routes));
    let listener = PublicListener::new(current, metrics);
    let next = Arc::new(AtomicUsize::new(0));
    let tasks = (0..AT_ONCE).map(|_| tokio::spawn(buy(listener.clone(), next.clone(), count)));
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    // The writer ends with the last handle on the store.
    stop.send_replace(true);
    dispatching.await.unwrap();
    drop((listener, routes, store));
    closed.wait().await;
}

async fn buy(listener: PublicListener, next: Arc<AtomicUsize>, count: usize) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return;
        }
        let request = Request::get(format!("/spi?{}", orders::query(&format!("full-{number:07}"))));
        while !is_done(&listener.handle(request.clone()).await.body) {}
    }
}

/// Returns true if the response contains an id, and false if it asks for another call.
fn is_done(body: &[u8]) -> bool {
    !String::from_utf8_lossy(body).contains(r#""0""#)
}

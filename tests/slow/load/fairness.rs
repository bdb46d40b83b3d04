//! A slow hook delays its own orders, and no others.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics has said what it found")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use spid::hook::{AnyHook, Call, HookError};
use spid::internals::hooks::log::LogHook;
use spid::internals::hooks::runner::{NamedHook, Route, Runner};
use spid::internals::net::{Client, ClientOptions, ClientRequest};
use spid::internals::serve::daemon::{Daemon, DaemonOptions};
use spid::internals::serve::dispatch::DispatchOptions;
use spid::internals::serve::intake::Endpoint;
use spid_core::dialect;
use spid_core::dialect::Sending;
use spid_core::lifecycle::schedule::Schedule;
use spid_core::signature::Keys;
use spid_hook::Secret;
use spid_hook::callback::Answer;
use spid_hook::time::Clock;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Number of calls in flight over all hooks, and its maximum so far.
#[derive(Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
    begun: AtomicUsize,
}

/// Ends when the test allows it.
#[derive(Clone)]
struct Slow(Arc<Semaphore>, Arc<Running>);

impl Slow {
    fn new(gate: &Arc<Semaphore>) -> Slow {
        Slow(gate.clone(), Arc::default())
    }
}

impl From<Slow> for AnyHook {
    fn from(Slow(gate, running): Slow) -> AnyHook {
        AnyHook::from_fn(move |_| {
            let (gate, running) = (gate.clone(), running.clone());
            async move {
                running.begun.fetch_add(1, Ordering::SeqCst);
                running.most.fetch_max(1 + running.now.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                let let_go = gate.acquire().await;
                running.now.fetch_sub(1, Ordering::SeqCst);
                let_go?.forget();
                Ok(Answer::default())
            }
        })
    }
}

/// A hook that fails the first attempt at each order.
fn flaky() -> AnyHook {
    AnyHook::from_fn(async |call: Call| {
        if call.context().attempt == 1 { Err(HookError::retry("not yet")) } else { Ok(Answer::default()) }
    })
}

fn keys() -> Keys {
    Keys::single(Secret::new("fake-key-of-a-test")).unwrap()
}

/// A daemon with two permits and two hooks. The slow hook runs one call at a time.
async fn daemon(slow: Slow, folder: &std::path::Path) -> Daemon {
    let dispatch = DispatchOptions { permits: 2, waiting: 8, ..DispatchOptions::default() };
    daemon_with(NamedHook::new("quick", LogHook), one_at_a_time(slow), folder, dispatch).await
}

fn one_at_a_time(slow: Slow) -> NamedHook {
    NamedHook::new("slow", slow).concurrency(1)
}

/// A daemon with the hook `slow` for the product `slow`, and another hook for the rest.
async fn daemon_with(
    other: NamedHook,
    slow: NamedHook,
    folder: &std::path::Path,
    dispatch: DispatchOptions,
) -> Daemon {
    let endpoint = Endpoint {
        name: "test".into(),
        account: "test".into(),
        dialect: dialect::by_name("alibaba").unwrap(),
        keys: keys(),
        options: dialect::Options::default(),
    };
    let route = Route {
        endpoint: None,
        product: Some("slow".to_owned()),
        sku: None,
        buyer: None,
        hook: "slow".to_owned(),
    };
    let hooks = vec![other, slow];
    let runner = Runner::new(hooks, vec![route]).unwrap();
    let mut options = DaemonOptions {
        dispatch,
        ..DaemonOptions::new(folder.join("spid.db"), vec![("/spi".to_owned(), endpoint)], runner)
    };
    options.live.intake.reply_within = Duration::from_millis(200);
    options.store.schedules = Schedule::from_millis(vec![0; 20]).into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Daemon::start(listener, None, options).await.unwrap()
}

async fn buy(daemon: &Daemon, order: &str, product: &str) -> String {
    let pairs: Vec<(String, String)> =
        [("aliUid", "1"), ("orderBizId", order), ("orderId", order), ("productCode", product)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let dialect = dialect::by_name("alibaba").unwrap();
    let request = dialect.request("createInstance", &pairs, &keys(), &Sending::at(Clock::System.now()));
    let url = format!("http://{}/spi?{}", daemon.address(), request.query).parse().unwrap();
    let answer = Client::new(ClientOptions::default()).send(ClientRequest::get(url)).await.unwrap();
    String::from_utf8(answer.body.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_hook_keeps_nobody_else_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let daemon = daemon(Slow::new(&gate), folder.path()).await;
    let slow: Vec<String> = (0..6).map(|number| format!("slow-{number}")).collect();
    for order in &slow {
        assert_eq!(buy(&daemon, order, "slow").await, r#"{"instanceId":"0"}"#);
    }
    for number in 0..4 {
        let order = format!("quick-{number}");
        assert_eq!(buy(&daemon, &order, "other").await, format!(r#"{{"instanceId":"{order}"}}"#));
    }
    // Then every slow order is created, though more were waiting than there are permits.
    gate.add_permits(slow.len());
    for order in &slow {
        let made = format!(r#"{{"instanceId":"{order}"}}"#);
        while buy(&daemon, order, "slow").await != made {}
    }
    assert_eq!(daemon.stop().await.cut, 0);
}

/// Buys until the order is done. If that never happens, the test fails.
async fn made(daemon: &Daemon, order: &str, product: &str) {
    let made = format!(r#"{{"instanceId":"{order}"}}"#);
    for _ in 0..200 {
        if buy(daemon, order, product).await == made {
            return;
        }
    }
    panic!("{order} is never made");
}

/// One due job of the other hook is enough: it is leased and not handed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_with_more_orders_than_may_wait_keeps_nobody_else_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let dispatch = DispatchOptions {
        permits: 2,
        waiting: 2,
        poll: Duration::from_millis(50),
        ..DispatchOptions::default()
    };
    let slow = one_at_a_time(Slow::new(&gate));
    let daemon = daemon_with(NamedHook::new("flaky", flaky()), slow, folder.path(), dispatch).await;
    let slow: Vec<String> = (0..12).map(|number| format!("slow-{number}")).collect();
    for order in &slow {
        assert_eq!(buy(&daemon, order, "slow").await, r#"{"instanceId":"0"}"#);
    }
    for number in 0..4 {
        made(&daemon, &format!("flaky-{number}"), "other").await;
    }
    gate.add_permits(slow.len());
    for order in &slow {
        made(&daemon, order, "slow").await;
    }
    assert_eq!(daemon.stop().await.cut, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_calls_run_at_once_than_there_are_places() {
    let folder = tempfile::tempdir().unwrap();
    let (slow_gate, other_gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let slow = Slow::new(&slow_gate);
    let other = Slow(other_gate.clone(), slow.1.clone());
    let running = slow.1.clone();
    let dispatch = DispatchOptions { permits: 2, waiting: 8, ..DispatchOptions::default() };
    let slow = one_at_a_time(slow);
    let daemon = daemon_with(NamedHook::new("other", other), slow, folder.path(), dispatch).await;
    // The second waits for its hook, and the third gets its permit.
    for (order, product) in [("slow-1", "slow"), ("slow-2", "slow"), ("other-1", "other")] {
        assert_eq!(buy(&daemon, order, product).await, r#"{"instanceId":"0"}"#);
    }
    assert_eq!(running.now.load(Ordering::SeqCst), 2);
    // The hook is free for the second, while the fourth waits for the permit of the first.
    slow_gate.add_permits(1);
    made(&daemon, "slow-1", "slow").await;
    assert_eq!(buy(&daemon, "other-2", "other").await, r#"{"instanceId":"0"}"#);
    slow_gate.add_permits(1);
    other_gate.add_permits(2);
    for (order, product) in [("slow-2", "slow"), ("other-1", "other"), ("other-2", "other")] {
        made(&daemon, order, product).await;
    }
    assert_eq!((running.begun.load(Ordering::SeqCst), running.most.load(Ordering::SeqCst)), (4, 2));
    assert_eq!(daemon.stop().await.cut, 0);
}

/// The slow hook may use all permits, and more of its orders wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_hangs_cannot_take_the_last_call() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let slow = Slow::new(&gate);
    let running = slow.1.clone();
    let dispatch = DispatchOptions { permits: 3, waiting: 16, ..DispatchOptions::default() };
    let hook = NamedHook::new("slow", slow).concurrency(64);
    let daemon = daemon_with(NamedHook::new("quick", LogHook), hook, folder.path(), dispatch).await;
    let slow: Vec<String> = (0..8).map(|number| format!("slow-{number}")).collect();
    for order in &slow {
        assert_eq!(buy(&daemon, order, "slow").await, r#"{"instanceId":"0"}"#);
    }
    for number in 0..4 {
        made(&daemon, &format!("quick-{number}"), "other").await;
    }
    assert_eq!(running.now.load(Ordering::SeqCst), 2, "one of three calls is the other hook's");
    gate.add_permits(slow.len());
    for order in &slow {
        made(&daemon, order, "slow").await;
    }
    assert_eq!((running.begun.load(Ordering::SeqCst), running.most.load(Ordering::SeqCst)), (8, 2));
    assert_eq!(daemon.stop().await.cut, 0);
}

//! A slow hook keeps its own orders waiting, and nobody else's.

#![allow(clippy::unwrap_used, reason = "a test that panics has said what it found")]

use std::sync::Arc;
use std::time::Duration;

use spid::clock::Clock;
use spid::daemon::{Daemon, DaemonOptions};
use spid::dialect::{self, Sending};
use spid::dispatch::DispatchOptions;
use spid::hook::log::LogHook;
use spid::hook::runner::{NamedHook, Route, Runner};
use spid::hook::{
    CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated,
};
use spid::http::{Client, ClientOptions, ClientRequest};
use spid::intake::{Endpoint, IntakeOptions};
use spid::signature::{Keys, Secret};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Ends when it is let.
struct Slow(Arc<Semaphore>);

impl ProvisioningHook for Slow {
    async fn create(&self, _call: CreateCall) -> Result<Provisioned, HookError> {
        self.0.acquire().await?.forget();
        Ok(Provisioned::new())
    }
    async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> {
        Ok(Updated::new())
    }
    async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> {
        Ok(())
    }
    async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> {
        Ok(())
    }
}

fn keys() -> Keys {
    Keys::single(Secret::new("fake-key-of-a-test")).unwrap()
}

/// A daemon with two places, and two hooks of which the slow one runs one call at a time.
async fn daemon(slow: Slow, folder: &std::path::Path) -> Daemon {
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
    let hooks = vec![NamedHook::new("quick", LogHook), NamedHook::new("slow", slow).concurrency(1)];
    let runner = Runner::new(hooks, vec![route]).unwrap();
    let options = DaemonOptions {
        intake: IntakeOptions { reply_within: Duration::from_millis(200), ..IntakeOptions::default() },
        dispatch: DispatchOptions { places: 2, waiting: 8, ..DispatchOptions::default() },
        ..DaemonOptions::new(Some(folder.join("spid.db")), vec![("/spi".to_owned(), endpoint)], runner)
    };
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
    let daemon = daemon(Slow(gate.clone()), folder.path()).await;
    let slow: Vec<String> = (0..6).map(|number| format!("slow-{number}")).collect();
    for order in &slow {
        assert_eq!(buy(&daemon, order, "slow").await, r#"{"instanceId":"0"}"#);
    }
    for number in 0..4 {
        let order = format!("quick-{number}");
        assert_eq!(buy(&daemon, &order, "other").await, format!(r#"{{"instanceId":"{order}"}}"#));
    }
    // Let go, every slow order is made, though more waited than there are places.
    gate.add_permits(slow.len());
    for order in &slow {
        let made = format!(r#"{{"instanceId":"{order}"}}"#);
        while buy(&daemon, order, "slow").await != made {}
    }
    assert_eq!(daemon.stop().await.cut, 0);
}

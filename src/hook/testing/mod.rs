//! The hook author's test: runs a hook through whole lives and says where it cannot be run twice.
//!
//! A hook is run at least once, and the second time is the one nobody tries: after a crash, a timeout, an
//! answer that got lost. So this makes those happen, in the author's own test, with nothing around the hook:
//! it asks everything twice with one idempotency key, several times at once, and again after an attempt that
//! was dropped where it waited. Every finding is one sentence: what was wrong, in which step, what to do.
//!
//! ```
//! # use std::collections::BTreeMap;
//! # use std::sync::{Arc, Mutex};
//! use spid::hook::{
//!     CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated,
//! };
//!
//! # #[derive(Clone, Default)]
//! # struct Tenants(Arc<Mutex<BTreeMap<String, bool>>>);
//! # impl Tenants {
//! #     fn put(&self, name: Option<String>, usable: bool) { self.0.lock().unwrap().insert(name.unwrap(), usable); }
//! #     fn drop(&self, name: Option<String>) { self.0.lock().unwrap().remove(&name.unwrap()); }
//! #     fn count(&self, name: Option<String>) -> usize { usize::from(self.0.lock().unwrap().contains_key(&name.unwrap())) }
//! # }
//! struct MyHook {
//!     tenants: Tenants,
//! }
//!
//! impl ProvisioningHook for MyHook {
//!     async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
//!         self.tenants.put(call.instance.order_biz_id, true); // the same name each time: nothing doubles
//!         Ok(Provisioned::new())
//!     }
//!     async fn renew(&self, call: RenewCall) -> Result<Updated, HookError> {
//!         self.tenants.put(call.instance.order_biz_id, true);
//!         Ok(Updated::new())
//!     }
//!     async fn expire(&self, call: ExpireCall) -> Result<(), HookError> {
//!         self.tenants.put(call.instance.order_biz_id, false);
//!         Ok(())
//!     }
//!     async fn release(&self, call: ReleaseCall) -> Result<(), HookError> {
//!         self.tenants.drop(call.instance.order_biz_id);
//!         Ok(())
//!     }
//! }
//!
//! #[tokio::test]
//! async fn my_hook_can_be_run_twice() {
//!     spid::testing::check(MyHook { tenants: Tenants::default() }).await.assert_ok();
//! }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! #     spid::testing::check(MyHook { tenants: Tenants::default() }).await.assert_ok();
//! # }
//! ```
//!
//! Answers are all it sees by itself. Told how to look at what really exists, it finds more:
//!
//! ```
//! # use spid::hook::log::LogHook as MyHook;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # let tenants = std::sync::Arc::new(std::sync::Mutex::new(std::collections::BTreeMap::<String, u32>::new()));
//! use spid::testing::Check;
//!
//! let report = Check::new(MyHook)
//!     .product("cmgj000001")
//!     .sku("basic")
//!     .upgrade_to("pro")
//!     .item("seats", "5")
//!     .upgraded_item("seats", "9")
//!     .count(move |instance| {
//!         let tenants = tenants.clone();
//!         // In your test: how many tenants your database has for `instance.order_biz_id`.
//!         async move { Ok(tenants.lock().unwrap().len()) }
//!     })
//!     .run()
//!     .await;
//! assert!(report.to_string().contains("it succeeded and nothing exists"));
//! # }
//! ```
//!
//! It runs in real time: leave `start_paused` away. Each attempt has a thread of its own, inside the
//! runtime of the test, so that even a hook that blocks can be given up. What is drawn by chance, which
//! of several attempts goes on first, comes from a seed; names and keys are new in every run, because a
//! hook that remembers keys would answer the second run from the first.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

mod attempt;
mod bench;
mod life;
mod order;
mod report;

use crate::core::lifecycle::Instance;
use crate::hook::callback::Action;
use crate::hook::clock::Clock;
use crate::hook::{AnyHook, Call, HookError};
use crate::observe::limits;
use bench::Bench;
use order::{Market, Wares};
pub use report::{Finding, FindingKind, Report, Section};

/// Runs the whole test with what is usual.
///
/// ```no_run
/// # use spid::hook::log::LogHook as MyHook;
/// #[tokio::test]
/// async fn my_hook_can_be_run_twice() {
///     spid::testing::check(MyHook).await.assert_ok();
/// }
/// ```
pub async fn check(hook: impl Into<AnyHook>) -> Report {
    Check::new(hook).run().await
}

/// Hears what is done while the test runs.
pub trait Observer: Send {
    /// A part of the test begins.
    fn section(&mut self, title: &str) {
        let _ = title;
    }

    /// An attempt has ended.
    fn attempted(&mut self, attempted: &Attempted<'_>) {
        let _ = attempted;
    }
}

impl Observer for () {}

/// One attempt, for an [`Observer`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempted<'a> {
    /// The step, as it is called in the report.
    pub step: &'a str,
    /// What was sent.
    pub call: &'a Call,
    /// How it ended, in words; no secret of the answer.
    pub end: String,
}

type Looking<T> = Pin<Box<dyn Future<Output = Result<T, HookError>> + Send>>;
type Probe<T> = Arc<dyn Fn(Instance) -> Looking<T> + Send + Sync>;

/// What the author chose.
#[derive(Debug, Clone)]
struct Options {
    timeout: Duration,
    at_once: usize,
    kills: u32,
    seed: u64,
    without: Vec<Action>,
    required: Vec<Action>,
}

/// The author's own eyes on what exists.
#[derive(Clone, Default)]
struct Probes {
    count: Option<Probe<usize>>,
    state: Option<Probe<String>>,
}

/// A test of one hook: what to buy, how long to wait, where to look.
#[must_use = "nothing is tested until `run`"]
pub struct Check {
    hook: AnyHook,
    wares: Wares,
    options: Options,
    probes: Probes,
}

impl Check {
    /// A test of this hook with what is usual.
    pub fn new(hook: impl Into<AnyHook>) -> Check {
        let options = Options {
            timeout: Duration::from_millis(limits::HOOK_TEST_TIMEOUT_MS),
            at_once: limits::HOOK_TEST_AT_ONCE_COUNT,
            kills: 0,
            seed: 1,
            without: Vec::new(),
            required: Vec::new(),
        };
        Check { hook: hook.into(), wares: Wares::default(), options, probes: Probes::default() }
    }

    /// Buys this product.
    pub fn product(mut self, product: impl Into<String>) -> Check {
        self.wares.product = product.into();
        self
    }

    /// Buys this SKU.
    pub fn sku(mut self, sku: impl Into<String>) -> Check {
        self.wares.sku = sku.into();
        self
    }

    /// Upgrades to this SKU.
    pub fn upgrade_to(mut self, sku: impl Into<String>) -> Check {
        self.wares.upgrade_to = sku.into();
        self
    }

    /// Buys this much of something that is billed beside the SKU.
    pub fn item(mut self, name: impl Into<String>, value: impl Into<String>) -> Check {
        self.wares.items.insert(name.into(), value.into());
        self
    }

    /// The upgrade asks for this much of it.
    pub fn upgraded_item(mut self, name: impl Into<String>, value: impl Into<String>) -> Check {
        self.wares.upgraded_items.insert(name.into(), value.into());
        self
    }

    /// Sends this parameter with every call, beside those a marketplace always sends.
    pub fn parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Check {
        self.wares.parameters.insert(name.into(), value.into());
        self
    }

    /// Buys as this account of the marketplace.
    pub fn buyer(mut self, buyer: impl Into<String>) -> Check {
        self.wares.buyer = buyer.into();
        self
    }

    /// Calls come through this endpoint of this seller account.
    pub fn endpoint(mut self, name: impl Into<String>, account: impl Into<String>) -> Check {
        self.wares.endpoint = name.into();
        self.wares.account = account.into();
        self
    }

    /// How long one attempt may take; 30 s unless given.
    pub fn timeout(mut self, timeout: Duration) -> Check {
        self.options.timeout = timeout;
        self
    }

    /// How many attempts are made at once; 3 unless given.
    pub fn at_once(mut self, attempts: usize) -> Check {
        self.options.at_once = attempts.max(2);
        self
    }

    /// Leaves an action out: `upgrade`, say, of a product with one SKU. A create is always made.
    pub fn without(mut self, action: Action) -> Check {
        self.options.without.push(action);
        self
    }

    /// Makes it a fault if this action is not supported. Usually only create, renew, expire and release
    /// have to be.
    pub fn requires(mut self, action: Action) -> Check {
        self.options.required.push(action);
        self
    }

    /// Cuts so many attempts at each action short at a moment of the running time, drawn from the seed: for
    /// hooks that work where no `await` is seen, as executables do, which are killed then.
    pub fn kills(mut self, kills: u32) -> Check {
        self.options.kills = kills;
        self
    }

    /// Draws from this seed, to repeat a run; 1 unless given.
    pub fn seed(mut self, seed: u64) -> Check {
        self.options.seed = seed;
        self
    }

    /// How many things really exist for an instance: tenants, databases, machines. The instance is as it
    /// is applied then; its `order_biz_id` is there from the first attempt on, its `id` once it was made.
    ///
    /// Whatever a first create makes is right; nothing may add to it or take from it but an upgrade, and a
    /// release leaves nothing. An error is reported as a failure of the probe.
    pub fn count<F, L>(mut self, count: F) -> Check
    where
        F: Fn(Instance) -> L + Send + Sync + 'static,
        L: Future<Output = Result<usize, HookError>> + Send + 'static,
    {
        self.probes.count = Some(Arc::new(move |instance| Box::pin(count(instance))));
        self
    }

    /// What an instance is like, in any words: `frozen, 9 seats`. No repeat may change it. The words
    /// are shown in the report.
    pub fn state<F, L>(mut self, state: F) -> Check
    where
        F: Fn(Instance) -> L + Send + Sync + 'static,
        L: Future<Output = Result<String, HookError>> + Send + 'static,
    {
        self.probes.state = Some(Arc::new(move |instance| Box::pin(state(instance))));
        self
    }

    /// Runs the test. Everything it buys it also releases.
    pub async fn run(self) -> Report {
        self.run_watched(&mut ()).await
    }

    /// As [`Check::run`]; `observer` hears what happens while it does.
    pub async fn run_watched(self, observer: &mut dyn Observer) -> Report {
        let market = Market::new(self.wares, Clock::System);
        let bench = Bench::new(self.hook, self.options, self.probes, market, observer);
        Box::pin(bench.run()).await
    }
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check")
            .field("wares", &self.wares)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What was learnt about an action from attempts that were left alone: how often it waits at most, and how
/// long it takes at least.
type Measured = BTreeMap<Action, (u32, Duration)>;

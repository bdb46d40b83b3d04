//! Test for hook authors: runs a hook through whole instance histories and reports the calls that are not safe
//! to repeat.
//!
//! spid runs a hook at least once. Authors rarely test the second run, which follows a crash, a timeout or a
//! lost answer. This test produces these cases in the author's own test, without a daemon around the hook. It
//! sends every call twice with one idempotency key, several times at once, and again after an attempt that was
//! dropped at an `await`. Every finding is one sentence: the fault, the step, and the remedy.
//!
//! ```
//! # use std::collections::BTreeMap;
//! # use std::sync::{Arc, Mutex};
//! use spid_hook::{
//!     CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, SignOnCall,
//!     SignedOn, Updated,
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
//!     async fn sign_on(&self, call: SignOnCall) -> Result<SignedOn, HookError> {
//!         let ticket = call.context.idempotency_key; // in your hook: random, stored, valid once
//!         Ok(SignedOn::redirect(format!("https://app.example/login?ticket={ticket}")))
//!     }
//! }
//!
//! #[tokio::test]
//! async fn my_hook_can_be_run_twice() {
//!     spid_hook::testing::check(MyHook { tenants: Tenants::default() }).await.assert_ok();
//! }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! #     spid_hook::testing::check(MyHook { tenants: Tenants::default() }).await.assert_ok();
//! # }
//! ```
//!
//! By itself the test sees only answers. With probes that look at what really exists, it finds more:
//!
//! ```
//! # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
//! # struct MyHook;
//! # impl ProvisioningHook for MyHook {
//! #     async fn create(&self, _call: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new()) }
//! #     async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
//! #     async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> { Ok(()) }
//! #     async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> { Ok(()) }
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # let tenants = std::sync::Arc::new(std::sync::Mutex::new(std::collections::BTreeMap::<String, u32>::new()));
//! use spid_hook::testing::Check;
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
//! assert!(report.to_string().contains("the create succeeded and nothing exists"));
//! # }
//! ```
//!
//! The test runs in real time, so do not use `start_paused`. Each attempt has its own thread inside the runtime
//! of the test, so that even a hook that blocks can be given up. A seed decides everything random, such as
//! which of several attempts continues first. Names and keys are new in every run, because a hook that
//! remembers keys would answer the second run from the first.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

mod attempt;
mod bench;
mod english;
mod life;
mod order;
mod report;

use crate::callback::Action;
use crate::instance::Instance;
use crate::limits;
use crate::time::Clock;
use crate::{AnyHook, Call, HookError};
pub use attempt::End;
use bench::Bench;
use order::{Purchase, TestOrders};
pub use report::{Finding, FindingKind, Part, Report, Section, Step};

/// Runs the whole test with default options.
///
/// ```no_run
/// # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
/// # struct MyHook;
/// # impl ProvisioningHook for MyHook {
/// #     async fn create(&self, _call: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new()) }
/// #     async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
/// #     async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> { Ok(()) }
/// #     async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> { Ok(()) }
/// # }
/// #[tokio::test]
/// async fn my_hook_can_be_run_twice() {
///     spid_hook::testing::check(MyHook).await.assert_ok();
/// }
/// ```
pub async fn check(hook: impl Into<AnyHook>) -> Report {
    Check::new(hook).run().await
}

/// Returns a call as the test sends it, for a test of one method of a hook: of the first order for a create or a
/// payment, else of an active instance with the id of its order. The members of the call can be changed.
///
/// ```
/// use spid_hook::{Action, Call, testing};
///
/// let Call::Release(mut call) = testing::call(Action::Release) else { unreachable!() };
/// call.maybe_provisioned = true;
/// assert!(call.instance.id.is_some());
/// ```
#[expect(
    clippy::expect_used,
    reason = "the orders of the test have an instance, and this runs in tests only"
)]
pub fn call(action: Action) -> Call {
    let mut orders = TestOrders::new(Purchase::default(), Clock::System);
    let timeout = Duration::from_millis(limits::HOOK_TEST_TIMEOUT_MS);
    orders.example(action, timeout).expect("an instance")
}

/// Observer of a running test.
pub trait Observer: Send {
    /// Called when a part of the test begins.
    fn section(&mut self, part: Part) {
        let _ = part;
    }

    /// Called when an attempt has ended.
    fn attempted(&mut self, attempted: &AttemptReport<'_>) {
        let _ = attempted;
    }
}

impl Observer for () {}

/// An attempt, for an [`Observer`].
#[derive(Debug)]
#[non_exhaustive]
pub struct AttemptReport<'a> {
    /// The step, as in the report.
    pub step: Step,
    /// The call that was sent.
    pub call: &'a Call,
    /// End of the attempt.
    pub end: &'a End,
}

type Looking<T> = Pin<Box<dyn Future<Output = Result<T, HookError>> + Send>>;
type Probe<T> = Arc<dyn Fn(Instance) -> Looking<T> + Send + Sync>;

/// Options that the author chose.
#[derive(Debug, Clone)]
struct Options {
    timeout: Duration,
    at_once: usize,
    kills: u32,
    seed: u64,
    without: Vec<Action>,
    required: Vec<Action>,
    pending: Vec<Action>,
}

type Restarting = Pin<Box<dyn Future<Output = Result<AnyHook, HookError>> + Send>>;

/// Way to restart the hook.
#[derive(Clone, Default)]
enum Restart {
    /// The test knows none.
    #[default]
    Unknown,
    /// Every call starts the hook, so each repeat is one after a restart.
    EveryCall,
    By(Arc<dyn Fn() -> Restarting + Send + Sync>),
}

/// The author's probes, which look at what exists.
#[derive(Clone, Default)]
struct Probes {
    count: Option<Probe<usize>>,
    state: Option<Probe<String>>,
}

/// Test of one hook, with its options: the product to buy, the timeout, the probes.
#[must_use = "the test runs only when `run` is called"]
pub struct Check {
    hook: AnyHook,
    purchase: Purchase,
    options: Options,
    probes: Probes,
    restart: Restart,
}

impl Check {
    /// Creates a test of this hook with default options.
    pub fn new(hook: impl Into<AnyHook>) -> Check {
        let options = Options {
            timeout: Duration::from_millis(limits::HOOK_TEST_TIMEOUT_MS),
            at_once: limits::HOOK_TEST_AT_ONCE_COUNT,
            kills: 0,
            seed: 1,
            without: Vec::new(),
            required: Vec::new(),
            pending: Vec::new(),
        };
        Check {
            hook: hook.into(),
            purchase: Purchase::default(),
            options,
            probes: Probes::default(),
            restart: Restart::default(),
        }
    }

    /// Sets the product to buy.
    pub fn product(mut self, product: impl Into<String>) -> Check {
        self.purchase.product = product.into();
        self
    }

    /// Sets the SKU to buy.
    pub fn sku(mut self, sku: impl Into<String>) -> Check {
        self.purchase.sku = sku.into();
        self
    }

    /// Sets the SKU to upgrade to.
    pub fn upgrade_to(mut self, sku: impl Into<String>) -> Check {
        self.purchase.upgrade_to = sku.into();
        self
    }

    /// Adds a quantity to buy that is billed beside the SKU.
    pub fn item(mut self, name: impl Into<String>, value: impl Into<String>) -> Check {
        self.purchase.items.insert(name.into(), value.into());
        self
    }

    /// Adds a quantity that the upgrade asks for.
    pub fn upgraded_item(mut self, name: impl Into<String>, value: impl Into<String>) -> Check {
        self.purchase.upgraded_items.insert(name.into(), value.into());
        self
    }

    /// Adds a parameter to every call, beside those that a marketplace always sends.
    pub fn parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Check {
        self.purchase.parameters.insert(name.into(), value.into());
        self
    }

    /// Sets the marketplace account of the buyer.
    pub fn buyer(mut self, buyer: impl Into<String>) -> Check {
        self.purchase.buyer = buyer.into();
        self
    }

    /// Sets the endpoint that the calls come through, and the seller account it belongs to.
    pub fn endpoint(mut self, name: impl Into<String>, account: impl Into<String>) -> Check {
        self.purchase.endpoint = name.into();
        self.purchase.account = account.into();
        self
    }

    /// Sets the maximum duration of one attempt; default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Check {
        self.options.timeout = timeout;
        self
    }

    /// Sets the number of attempts made at once; default 3, minimum 2.
    pub fn at_once(mut self, attempts: usize) -> Check {
        self.options.at_once = attempts.max(2);
        self
    }

    /// Leaves an action out, for example `upgrade` for a product with one SKU. A create is always made.
    ///
    /// ```no_run
    /// # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
    /// # struct MyHook;
    /// # impl ProvisioningHook for MyHook {
    /// #     async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new().id("tenant-1")) }
    /// #     async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
    /// #     async fn expire(&self, _: ExpireCall) -> Result<(), HookError> { Ok(()) }
    /// #     async fn release(&self, _: ReleaseCall) -> Result<(), HookError> { Ok(()) }
    /// # }
    /// use spid_hook::Action;
    /// use spid_hook::testing::Check;
    ///
    /// #[tokio::test]
    /// async fn my_hook_can_be_run_twice() {
    ///     // The product has one SKU, and its buyers sign on.
    ///     Check::new(MyHook).without(Action::Upgrade).requires(Action::SignOn).run().await.assert_ok();
    /// }
    /// ```
    pub fn without(mut self, action: Action) -> Check {
        self.options.without.push(action);
        self
    }

    /// Makes it a fault if this action is not supported. By default create, renew, expire, release and sign-on are
    /// required.
    pub fn requires(mut self, action: Action) -> Check {
        self.options.required.push(action);
        self
    }

    /// Allows the hook to answer this action with `pending`, because a person completes the work. The test then goes
    /// on as if the call were completed with an empty answer. Without this, a pending call is a fault.
    pub fn pending(mut self, action: Action) -> Check {
        self.options.pending.push(action);
        self
    }

    /// Sets the way to restart the hook: `start` returns a hook that knows only what the old one has stored. The test
    /// repeats calls after a restart, which finds a hook that keeps its answers in memory.
    ///
    /// ```no_run
    /// # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
    /// # struct MyHook;
    /// # impl MyHook { fn open(_: &str) -> Result<MyHook, HookError> { Ok(MyHook) } }
    /// # impl ProvisioningHook for MyHook {
    /// #     async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new().id("tenant-1")) }
    /// #     async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
    /// #     async fn expire(&self, _: ExpireCall) -> Result<(), HookError> { Ok(()) }
    /// #     async fn release(&self, _: ReleaseCall) -> Result<(), HookError> { Ok(()) }
    /// # }
    /// # async fn test() -> Result<(), HookError> {
    /// use spid_hook::testing::Check;
    ///
    /// let report = Check::new(MyHook::open("test.db")?).restart(|| async { MyHook::open("test.db") }).run().await;
    /// report.assert_ok();
    /// # Ok(())
    /// # }
    /// ```
    pub fn restart<F, S, H>(mut self, start: F) -> Check
    where
        F: Fn() -> S + Send + Sync + 'static,
        S: Future<Output = Result<H, HookError>> + Send + 'static,
        H: Into<AnyHook>,
    {
        self.restart = Restart::By(Arc::new(move || {
            let started = start();
            Box::pin(async move { started.await.map(Into::into) })
        }));
        self
    }

    /// States that every call starts the hook anew, as an executable is started. Each repeat is then one after a restart.
    pub fn starts_for_every_call(mut self) -> Check {
        self.restart = Restart::EveryCall;
        self
    }

    /// Sets the number of attempts per action that are cut short at a random moment of the running time, drawn
    /// from the seed. Use it for hooks that wait inside a child process: an executable is killed at that moment.
    pub fn kills(mut self, kills: u32) -> Check {
        self.options.kills = kills;
        self
    }

    /// Sets the seed, to repeat a run; default 1.
    pub fn seed(mut self, seed: u64) -> Check {
        self.options.seed = seed;
        self
    }

    /// Sets a probe that returns how many things really exist for an instance: tenants, databases, machines.
    /// The probe gets the instance as the calls before have left it. Its `order_biz_id` is set from the first attempt
    /// on, its `id` after the create.
    ///
    /// The first create decides the right number. Only an upgrade may change that number, and a release must
    /// leave nothing. An error is reported as a failure of the probe.
    pub fn count<F, L>(mut self, count: F) -> Check
    where
        F: Fn(Instance) -> L + Send + Sync + 'static,
        L: Future<Output = Result<usize, HookError>> + Send + 'static,
    {
        self.probes.count = Some(Arc::new(move |instance| Box::pin(count(instance))));
        self
    }

    /// Sets a probe that describes the state of an instance in any words, for example `frozen, 9 seats`. No
    /// repeat may change it. The words are shown in the report.
    ///
    /// ```
    /// # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
    /// # struct MyHook;
    /// # impl ProvisioningHook for MyHook {
    /// #     async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new().id("tenant-1")) }
    /// #     async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
    /// #     async fn expire(&self, _: ExpireCall) -> Result<(), HookError> { Ok(()) }
    /// #     async fn release(&self, _: ReleaseCall) -> Result<(), HookError> { Ok(()) }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use spid_hook::testing::Check;
    ///
    /// let report = Check::new(MyHook)
    ///     .state(|instance| async move {
    ///         // In your test: read the tenant `instance.id` from your database.
    ///         Ok(format!("{} seats", 9))
    ///     })
    ///     .run()
    ///     .await;
    /// # let _ = report;
    /// # }
    /// ```
    pub fn state<F, L>(mut self, state: F) -> Check
    where
        F: Fn(Instance) -> L + Send + Sync + 'static,
        L: Future<Output = Result<String, HookError>> + Send + 'static,
    {
        self.probes.state = Some(Arc::new(move |instance| Box::pin(state(instance))));
        self
    }

    /// Runs the test. It releases everything that it buys.
    pub async fn run(self) -> Report {
        self.run_watched(&mut ()).await
    }

    /// Runs the test as [`Check::run`] does, and reports the progress to `observer`.
    pub async fn run_watched(self, observer: &mut dyn Observer) -> Report {
        let orders = TestOrders::new(self.purchase, Clock::System);
        let bench = Bench::new(self.hook, self.options, self.probes, self.restart, orders, observer);
        Box::pin(bench.run()).await
    }
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check")
            .field("purchase", &self.purchase)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Measurements of an action, from attempts that ran undisturbed: the maximum number of waits and the minimum duration.
type Measured = BTreeMap<Action, (u32, Duration)>;

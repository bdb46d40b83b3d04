//! Orders of the test's marketplace: each with its instance, and the calls about it.
//!
//! Names and keys are new in every run. A hook that remembers keys, as it should, would otherwise answer the
//! second run from its memory of the first.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::report::Step;
use crate::callback::{Action, Answer, Callback, Expiry, Parameters};
use crate::id::{Id, Ids};
use crate::instance::Instance;
use crate::time::{Clock, plus_millis};
use crate::{Call, CallFacts, NoInstance};

/// Description of the purchase: seller account, endpoint, buyer, product, quantities and parameters.
#[derive(Debug, Clone)]
pub(super) struct Purchase {
    pub(super) account: String,
    pub(super) endpoint: String,
    pub(super) buyer: String,
    pub(super) product: String,
    pub(super) sku: String,
    pub(super) upgrade_to: String,
    pub(super) items: BTreeMap<String, String>,
    pub(super) upgraded_items: BTreeMap<String, String>,
    pub(super) parameters: BTreeMap<String, String>,
}

impl Default for Purchase {
    fn default() -> Purchase {
        Purchase {
            account: "test-account".to_owned(),
            endpoint: "test-endpoint".to_owned(),
            buyer: "1234567890123456".to_owned(),
            product: "cmgj000001".to_owned(),
            sku: "yuncode0000100001".to_owned(),
            upgrade_to: "yuncode0000100002".to_owned(),
            items: BTreeMap::new(),
            upgraded_items: BTreeMap::new(),
            parameters: BTreeMap::new(),
        }
    }
}

/// An order, and its instance as the jobs that are done have left it.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) name: String,
    pub(super) instance: Instance,
    /// Number of things that existed for the order at the last look.
    pub(super) made: Option<usize>,
    trial: bool,
    jobs: u32,
}

/// A request with its idempotency key.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) step: Step,
    pub(super) callback: Callback,
    pub(super) key: String,
    pub(super) attempts: u32,
    /// The instance before the job is done. It is the same for every attempt.
    pub(super) before: Instance,
    received_at: Timestamp,
}

/// Source of orders.
#[derive(Debug)]
pub(super) struct TestOrders {
    pub(super) purchase: Purchase,
    clock: Clock,
    ids: Ids,
    /// First digits of the names of this run.
    prefix: u64,
    orders: u32,
}

impl TestOrders {
    pub(super) fn new(purchase: Purchase, clock: Clock) -> TestOrders {
        let ids = Ids::default();
        let prefix = random(&ids, &clock) % 900_000_000 + 100_000_000;
        TestOrders { purchase, clock, ids, prefix, orders: 0 }
    }

    /// Creates a new order. Its name consists of digits, like the names of the marketplaces.
    pub(super) fn order(&mut self, trial: bool) -> Order {
        self.orders += 1;
        let name = format!("{}{:03}", self.prefix, self.orders);
        let mut order = Order { instance: self.nothing(&name), name, made: None, trial, jobs: 0 };
        let create = self.callback(&mut order, Action::Create);
        order.instance.describe(&create);
        // From the first attempt on, the instance counts as begun, regardless of the attempt's result.
        order.instance.began = true;
        order
    }

    fn nothing(&self, name: &str) -> Instance {
        let mut callback = Callback::new(Action::Create, "createInstance");
        callback.subject.order_biz_id = Some(name.to_owned());
        Instance::pending(&callback, &self.purchase.account, &self.purchase.endpoint, self.clock.now())
    }

    /// Creates the next request about the order.
    pub(super) fn job(&mut self, order: &mut Order, step: Step) -> Job {
        let callback = self.callback(order, step.action);
        let now = self.clock.now();
        let key = self.ids.next(now).unwrap_or_else(|_| {
            // No randomness: build the key from the time, the run and the number of the request.
            Id::from_parts(now, (u128::from(self.prefix) << 64 | u128::from(order.jobs)).to_be_bytes())
        });
        Job {
            step,
            callback,
            key: key.to_string(),
            attempts: 0,
            before: order.instance.clone(),
            received_at: now,
        }
    }

    /// Builds the callback of a request. It also counts the order's requests.
    fn callback(&self, order: &mut Order, action: Action) -> Callback {
        // The payment and the create belong to the first order; every later request has its own.
        let of_the_first = matches!(action, Action::Create | Action::Payment);
        order.jobs = if of_the_first { order.jobs.max(1) } else { order.jobs + 1 };
        let number = if of_the_first { 1 } else { order.jobs };
        let purchase = &self.purchase;
        let mut callback = Callback::new(action, spelt(action));
        callback.subject.order_biz_id = Some(order.name.clone());
        callback.subject.instance_id = order.instance.id.clone();
        callback.order_id = Some(format!("{}{:02}", order.name, number));
        match action {
            Action::Create | Action::Payment => {
                callback.buyer = Some(purchase.buyer.clone());
                callback.product = Some(purchase.product.clone());
                callback.sku = Some(purchase.sku.clone());
            }
            Action::Upgrade => {
                callback.sku = Some(purchase.upgrade_to.clone());
                callback.items = purchase.upgraded_items.clone();
            }
            // No buyer places an order for these.
            Action::Expire | Action::Release => callback.order_id = None,
            _ => {}
        }
        if action == Action::Release {
            callback.refund = Some(order.trial);
        }
        if action == Action::Create {
            callback.trial = Some(order.trial);
            callback.items = purchase.items.clone();
        }
        callback.expires_on = self.expiry(order, action);
        callback.parameters = self.parameters(&callback);
        callback
    }

    /// Returns the expiry that a request sends. A renewal adds a month to the term, and its refund takes the
    /// month back.
    fn expiry(&self, order: &Order, action: Action) -> Option<Expiry> {
        const MONTH: SignedDuration = SignedDuration::from_hours(30 * 24);
        let term = order.instance.expires_on;
        let at = match (action, term) {
            (Action::Renew, Some(term)) => term.saturating_add(MONTH),
            (Action::RefundRenew, Some(term)) => term.saturating_sub(MONTH),
            (Action::Create | Action::Renew | Action::RefundRenew, _) => {
                Timestamp::from_second(self.clock.now().as_second()).unwrap_or_default().saturating_add(MONTH)
            }
            _ => return None,
        };
        let at = at.ok()?;
        // Alibaba's marketplaces write China time, UTC+8.
        let zone = jiff::tz::Offset::constant(8).to_time_zone();
        let raw = at.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S").to_string();
        Some(Expiry { raw, at: Some(at) })
    }

    /// Returns the parameters that a marketplace would have signed.
    fn parameters(&self, callback: &Callback) -> Parameters {
        let known = [
            ("action", Some(callback.action_name.clone())),
            ("aliUid", callback.buyer.clone()),
            ("orderBizId", callback.subject.order_biz_id.clone()),
            ("instanceId", callback.subject.instance_id.clone()),
            ("orderId", callback.order_id.clone()),
            ("productCode", callback.product.clone()),
            ("skuId", callback.sku.clone()),
            ("trial", callback.trial.map(|trial| trial.to_string())),
            ("expiredOn", callback.expires_on.as_ref().map(|expiry| expiry.raw.clone())),
        ];
        let known = known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let items = callback.items.iter().chain(&self.purchase.parameters);
        known.chain(items.map(|(name, value)| (name.clone(), value.clone()))).collect()
    }

    /// Creates the call for the next attempt at a job.
    pub(super) fn call(&self, job: &mut Job, timeout: Duration) -> Result<Call, NoInstance> {
        job.attempts += 1;
        let within = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        Call::new(CallFacts {
            callback: &job.callback,
            // A payment arrives before anything is known of the instance it pays for.
            instance: (job.callback.action != Action::Payment).then_some(&job.before),
            idempotency_key: job.key.clone(),
            attempt: job.attempts,
            deadline: plus_millis(self.clock.now(), within),
            received_at: job.received_at,
            account: &self.purchase.account,
            endpoint: &self.purchase.endpoint,
            dashscope_euid: None,
        })
    }

    /// Creates a call for an action: of a new order, or of one whose create is done.
    pub(super) fn example(&mut self, action: Action, timeout: Duration) -> Result<Call, NoInstance> {
        let mut order = self.order(false);
        if !matches!(action, Action::Create | Action::Payment) {
            let create = self.job(&mut order, Step::usual(Action::Create));
            self.apply(&mut order, &create, &Answer::default());
        }
        let mut job = self.job(&mut order, Step::usual(action));
        self.call(&mut job, timeout)
    }

    /// Applies a finished job to the order's instance, as the daemon does when the hook reports success.
    pub(super) fn apply(&self, order: &mut Order, job: &Job, answer: &Answer) {
        if job.callback.action == Action::Create {
            order.instance.id = Some(id_of(order, answer));
        }
        order.instance.apply(&job.callback, self.clock.now());
    }
}

/// Returns the id that the instance gets by this answer.
pub(super) fn id_of(order: &Order, answer: &Answer) -> String {
    answer.instance_id.clone().unwrap_or_else(|| order.name.clone())
}

/// Returns a random number for the names of this run, or the time if no randomness is available.
fn random(ids: &Ids, clock: &Clock) -> u64 {
    let Ok(id) = ids.next(clock.now()) else { return clock.now().as_millisecond().unsigned_abs() };
    id.as_bytes().iter().skip(9).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Returns the name of the action in the spelling of the marketplace that most hooks are written for.
fn spelt(action: Action) -> &'static str {
    match action {
        Action::Create => "createInstance",
        Action::Renew => "renewInstance",
        Action::RefundRenew => "refundRenewInstance",
        Action::Upgrade => "upgradeInstance",
        Action::Expire => "expiredInstance",
        Action::Release => "releaseInstance",
        Action::SignOn => "sso",
        Action::Payment => "payment",
        Action::Query | Action::Other => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::State;

    fn market() -> TestOrders {
        TestOrders::new(Purchase::default(), Clock::manual("2026-01-01T00:00:00Z".parse().unwrap()))
    }

    #[test]
    fn a_refund_takes_the_renewal_back_exactly() {
        let mut market = market();
        let mut order = market.order(false);
        let first = order.instance.expires_on;
        for action in [Action::Create, Action::Renew, Action::RefundRenew] {
            let job = market.job(&mut order, Step::usual(action));
            market.apply(&mut order, &job, &Answer::default());
        }
        assert_eq!(order.instance.expires_on, first);
        assert_eq!(order.instance.expires_on_raw.as_deref(), Some("2026-01-31 08:00:00"));
        assert_eq!(order.instance.state, State::Active);
        assert_eq!(order.instance.id.as_deref(), Some(order.name.as_str()));
    }

    #[test]
    fn attempts_share_a_key_and_jobs_do_not() {
        let mut market = market();
        let mut order = market.order(false);
        let mut create = market.job(&mut order, Step::usual(Action::Create));
        let first = market.call(&mut create, Duration::from_secs(5)).unwrap();
        let second = market.call(&mut create, Duration::from_secs(5)).unwrap();
        assert_eq!((first.context().attempt, second.context().attempt), (1, 2));
        assert_eq!(first.context().idempotency_key, second.context().idempotency_key);
        assert_eq!(first.context().deadline.to_string(), "2026-01-01T00:00:05Z");
        let other = market.job(&mut order, Step::usual(Action::Renew));
        assert_ne!(other.key, create.key);
        assert_ne!(market.order(false).name, order.name);
    }

    #[test]
    fn a_create_that_began_and_has_no_id_may_have_left_something() {
        let mut market = market();
        let mut order = market.order(false);
        let mut release = market.job(&mut order, Step::usual(Action::Release));
        let Ok(Call::Release(call)) = market.call(&mut release, Duration::ZERO) else {
            panic!("not a release")
        };
        assert!(call.maybe_provisioned);
    }
}

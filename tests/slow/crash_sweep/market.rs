//! The marketplace of the sweep: lives of instances. Each step is delivered again and again until its answer is
//! success.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use spid_core::dialect;
use spid_core::dialect::{OutRequest, Sending};
use spid_core::signature::Keys;
use spid_hook::Secret;
use spid_hook::time::Clock;

use crate::support::random::Random;
use crate::support::serving::deliver;

pub(crate) const KEY: &str = "fake-sweep-key";
/// The endpoints: account (and name, and path), dialect.
pub(crate) const ENDPOINTS: [(&str, &str); 4] =
    [("ali-one", "alibaba"), ("ali-two", "alibaba"), ("jd", "jdcloud"), ("door", "generic")];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ask {
    Create,
    Upgrade,
    Renew,
    RefundRenew,
    Expire,
    Release,
    Payment,
    /// The create again, after the release: the answer is the stored id, and nothing runs.
    LateCreate,
    /// A renewal after the release: it must never succeed.
    LateRenew,
}

impl Ask {
    /// Name of the action in the store and in the hook.
    pub(crate) fn action(self) -> &'static str {
        match self {
            Ask::Create | Ask::LateCreate => "create",
            Ask::Upgrade => "upgrade",
            Ask::Renew | Ask::LateRenew => "renew",
            Ask::RefundRenew => "refund-renew",
            Ask::Expire => "expire",
            Ask::Release => "release",
            Ask::Payment => "payment",
        }
    }

    fn word(self, dialect: &str) -> &'static str {
        if dialect == "generic" {
            return self.action();
        }
        match self {
            Ask::Create | Ask::LateCreate => "createInstance",
            Ask::Upgrade => "upgradeInstance",
            Ask::Renew | Ask::LateRenew => "renewInstance",
            Ask::RefundRenew => "refundRenewInstance",
            Ask::Expire => "expiredInstance",
            Ask::Release => "releaseInstance",
            Ask::Payment => "orderPay",
        }
    }
}

/// One step of a life at the marketplace.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) ask: Ask,
    /// The order, or a payment's request id. It is unique. `None` if the marketplace sends none.
    pub(crate) order: Option<String>,
    sku: String,
    expires_on: Timestamp,
}

/// A success in an answer.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) account: &'static str,
    pub(crate) biz: String,
    pub(crate) step: Step,
    /// Number of this kind in its life, from 1. It distinguishes steps without an order.
    pub(crate) nth: u64,
    pub(crate) id: Option<String>,
}

/// State that clients and driver share.
pub(crate) struct Market {
    pub(crate) seed: u64,
    /// Current address of the daemon.
    address: Mutex<Option<SocketAddr>>,
    moved: Condvar,
    /// Number of requests sent so far.
    pub(crate) sent: AtomicU64,
    /// No new lives; the open ones are completed.
    pub(crate) heals: AtomicBool,
    pub(crate) given_up: AtomicBool,
    /// Number of unfinished clients.
    pub(crate) clients: AtomicU64,
    answered: Mutex<Vec<Answered>>,
    violations: Mutex<Vec<String>>,
}

impl Market {
    pub(crate) fn new(seed: u64, clients: u64) -> Market {
        Market {
            seed,
            address: Mutex::default(),
            moved: Condvar::new(),
            sent: AtomicU64::new(0),
            heals: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            clients: AtomicU64::new(clients),
            answered: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    pub(crate) fn daemon_is_at(&self, address: Option<SocketAddr>) {
        *self.address.lock().unwrap() = address;
        self.moved.notify_all();
    }

    pub(crate) fn wrong(&self, what: String) {
        eprintln!("violation: {what}");
        self.violations.lock().unwrap().push(what);
    }

    pub(crate) fn violations(&self) -> usize {
        self.violations.lock().unwrap().len()
    }

    /// Successes since the last call.
    pub(crate) fn newly_answered(&self) -> Vec<Answered> {
        std::mem::take(&mut self.answered.lock().unwrap())
    }

    fn somewhere(&self) -> Option<SocketAddr> {
        let address = self.address.lock().unwrap();
        let waiting = |address: &mut Option<SocketAddr>| address.is_none();
        *self.moved.wait_timeout_while(address, Duration::from_millis(100), waiting).unwrap().0
    }

    /// Delivers a step once. `None` if there was no answer.
    fn ask(&self, life: &Life, step: &Step) -> Option<Said> {
        let (account, _) = ENDPOINTS[life.endpoint];
        let sent = || {
            self.sent.fetch_add(1, Ordering::Relaxed);
        };
        let body = deliver(self.somewhere()?, &format!("/{account}"), &life.request(step), sent).ok()?;
        match serde_json::from_str(&body) {
            Ok(body) => Some(Said::read(&body)),
            Err(_) => {
                self.wrong(format!("{account} {}: an answer that is not JSON: {body}", life.biz));
                None
            }
        }
    }
}

/// Verdict of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    success: bool,
    id: Option<String>,
}

impl Said {
    fn read(body: &Value) -> Said {
        let id = body["instanceId"].as_str().or(body["instance_id"].as_str());
        let id = id.filter(|id| !id.is_empty() && *id != "0").map(str::to_owned);
        let success = match (&body["status"], &body["success"]) {
            (Value::String(status), _) => status == "applied",
            (_, Value::Bool(success)) => *success,
            _ => id.is_some(),
        };
        Said { success, id }
    }
}

/// The life of one instance, from the view of its marketplace.
struct Life {
    endpoint: usize,
    biz: String,
    steps: Vec<Step>,
    done: Vec<bool>,
    id: Option<String>,
}

impl Life {
    fn new(endpoint: usize, biz: String, random: &mut Random) -> Life {
        let steps = script(endpoint, &biz, random);
        Life { endpoint, biz, done: vec![false; steps.len()], steps, id: None }
    }

    fn request(&self, step: &Step) -> OutRequest {
        let (_, dialect) = ENDPOINTS[self.endpoint];
        let [biz, instance, order, request, product, sku, expiry] = match dialect {
            "generic" => {
                ["order_biz_id", "instance_id", "order_id", "request_id", "product", "sku", "expires_on"]
            }
            "jdcloud" => {
                ["orderBizId", "instanceId", "orderId", "requestId", "serviceCode", "skuId", "expiredOn"]
            }
            _ => ["orderBizId", "instanceId", "orderId", "requestId", "productCode", "skuId", "expiredOn"],
        };
        let mut pairs = Vec::new();
        let mut pair = |name: &str, value: &str| pairs.push((name.to_owned(), value.to_owned()));
        let at = match dialect {
            "generic" => step.expires_on.to_string(),
            _ => step.expires_on.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        };
        match step.ask {
            Ask::Create | Ask::LateCreate => {
                pair(biz, &self.biz);
                pair(product, "product-1");
                pair(sku, &step.sku);
                pair(expiry, &at);
            }
            Ask::Payment => pair(request, step.order.as_deref().unwrap_or_default()),
            _ => pair(instance, self.id.as_deref().unwrap_or(&self.biz)),
        }
        match step.ask {
            Ask::Upgrade => pair(sku, &step.sku),
            Ask::Renew | Ask::LateRenew | Ask::RefundRenew => pair(expiry, &at),
            _ => {}
        }
        if let Some(value) = step.order.as_deref().filter(|_| step.ask != Ask::Payment) {
            pair(order, value);
        }
        let keys = Keys::single(Secret::new(KEY)).unwrap();
        let sending = Sending::at(Clock::System.now());
        dialect::by_name(dialect).unwrap().request(step.ask.word(dialect), &pairs, &keys, &sending)
    }

    fn open(&self) -> Option<usize> {
        self.done.iter().position(|done| !done)
    }

    /// Delivers the next step, and sometimes also the one after it, or the same step twice at once.
    fn go_on(&mut self, market: &Market, random: &mut Random) {
        let Some(at) = self.open() else { return };
        if random.percent(15) {
            let step = &self.steps[at];
            let (one, other) = std::thread::scope(|scope| {
                let beside = scope.spawn(|| market.ask(self, step));
                (market.ask(self, step), beside.join().unwrap())
            });
            self.hear(market, at, other);
            self.hear(market, at, one);
        } else {
            let said = market.ask(self, &self.steps[at]);
            self.hear(market, at, said);
        }
        if let Some(next) = self.may_overtake(at).filter(|_| random.percent(25)) {
            let said = market.ask(self, &self.steps[next]);
            self.hear(market, next, said);
        }
        if self.done[at] && self.open() == Some(at + 1) && random.percent(10) {
            let again = market.ask(self, &self.steps[at]);
            self.hear(market, at, again);
        }
    }

    /// A step that may be delivered before its predecessor is done: one whose order does not matter, or a release.
    fn may_overtake(&self, at: usize) -> Option<usize> {
        let (now, next) = (self.steps[at].ask, self.steps.get(at + 1)?.ask);
        let free = matches!(
            (now, next),
            (Ask::Create, Ask::Upgrade) | (Ask::Upgrade, Ask::Renew) | (Ask::Renew, Ask::Upgrade)
        );
        let releases = next == Ask::Release && now != Ask::Create;
        (!self.done[at] && (free || releases)).then_some(at + 1)
    }

    fn hear(&mut self, market: &Market, at: usize, said: Option<Said>) {
        let Some(said) = said else { return };
        let (account, _) = ENDPOINTS[self.endpoint];
        let step = self.steps[at].clone();
        if step.ask == Ask::LateRenew {
            if said.success {
                market.wrong(format!("{account} {}: a renewal after the release succeeded", self.biz));
            }
            self.done[at] = true;
            return;
        }
        if !said.success {
            return;
        }
        if let (Ask::Create | Ask::LateCreate, Some(id)) = (step.ask, &said.id) {
            if self.id.as_ref().is_some_and(|known| known != id) {
                market.wrong(format!("{account} {}: the id was {:?} and is {id}", self.biz, self.id));
            }
            self.id = Some(id.clone());
        }
        // Steps that a release superseded are not repeated.
        let superseded = step.ask == Ask::Release;
        self.done.iter_mut().take(at).filter(|_| superseded).for_each(|done| *done = true);
        let nth = self.steps.iter().take(at + 1).filter(|other| other.ask == step.ask).count() as u64;
        if !std::mem::replace(&mut self.done[at], true) {
            let answered = Answered { account, biz: self.biz.clone(), step, nth, id: said.id };
            market.answered.lock().unwrap().push(answered);
        }
    }
}

/// Expiries are within one day, so that every expire is accepted.
fn script(endpoint: usize, biz: &str, random: &mut Random) -> Vec<Step> {
    let (_, dialect) = ENDPOINTS[endpoint];
    let whole = dialect != "jdcloud";
    let begin = Clock::System.now() + SignedDuration::from_hours(3);
    let begin = Timestamp::from_second(begin.as_second()).unwrap();
    let mut steps: Vec<Step> = Vec::new();
    let mut minutes = 0;
    let mut add = |ask: Ask, minutes: i64| {
        let order = !matches!(ask, Ask::Expire | Ask::Release);
        let number = if ask == Ask::LateCreate { 0 } else { steps.len() };
        steps.push(Step {
            ask,
            order: order.then(|| format!("order-{biz}-{number}")),
            sku: if matches!(ask, Ask::Create | Ask::LateCreate) {
                "basic".into()
            } else {
                format!("sku-{number}")
            },
            expires_on: begin + SignedDuration::from_mins(minutes),
        });
    };
    add(Ask::Create, 0);
    for _ in 0..random.below(5) {
        match random.below(if whole { 6 } else { 4 }) {
            0 | 1 => add(Ask::Upgrade, 0),
            2 => {
                minutes += 1;
                add(Ask::Renew, minutes);
            }
            3 => {
                minutes += 1;
                add(Ask::Expire, 0);
                add(Ask::Renew, minutes);
            }
            4 => {
                add(Ask::Renew, minutes + 1);
                add(Ask::RefundRenew, minutes);
            }
            _ => add(Ask::Payment, 0),
        }
    }
    if whole && random.percent(60) {
        if random.percent(50) {
            add(Ask::Expire, 0);
        }
        add(Ask::Release, 0);
        if random.percent(60) {
            add(Ask::LateCreate, 0);
        }
        if random.percent(30) {
            add(Ask::LateRenew, 600);
        }
    }
    steps
}

/// One client. It plays some lives at once until it is told to complete them, and has done so.
pub(crate) fn client(market: &Market, number: u64) {
    let mut random = Random::new(market.seed ^ (number + 1));
    let mut lives: Vec<Life> = Vec::new();
    let mut born = 0u64;
    loop {
        let heals = market.heals.load(Ordering::Relaxed);
        if market.given_up.load(Ordering::Relaxed) || (heals && lives.is_empty()) {
            break;
        }
        if !heals && lives.len() < 3 {
            born += 1;
            let endpoint = random.below(ENDPOINTS.len() as u64) as usize;
            lives.push(Life::new(endpoint, format!("biz-{number}-{born}"), &mut random));
        }
        if !lives.is_empty() {
            let at = random.below(lives.len() as u64) as usize;
            lives[at].go_on(market, &mut random);
            if lives[at].open().is_none() {
                lives.swap_remove(at);
            }
        }
        let pause = Instant::now() + Duration::from_millis(random.below(12));
        std::thread::sleep(pause.saturating_duration_since(Instant::now()));
    }
    for life in lives {
        let (account, _) = ENDPOINTS[life.endpoint];
        let open = life.open().map(|at| life.steps[at].clone());
        market.wrong(format!("{account} {}: never answered with success: {open:?}", life.biz));
    }
    market.clients.fetch_sub(1, Ordering::Relaxed);
}

//! Ledger of the simulated marketplace: every response it received, and the losses they imply for the seller.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::Response;
use super::plan::{Event, OrderPlan, RequestKind};

/// Final state of an order, as reported to the marketplace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinalState {
    /// The order never had an instance.
    Nothing,
    /// In use.
    Active,
    /// Frozen.
    Frozen,
    /// Released.
    Released,
}

/// A loss on one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The kind of loss.
    pub kind: LossKind,
    /// The request that failed.
    pub what: &'static str,
    /// Amount of the loss, in simulated yuan.
    pub worth: u64,
}

/// Kinds of loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Paid by the buyer, requested as often as the marketplace does, and never done.
    Lost,
    /// Never frozen, released or shortened, although the buyer pays no longer.
    Unpaid,
    /// A payment that was never acknowledged: the seller must fetch it from the marketplace.
    Unheard,
    /// Several ids for one order, or several orders with one id.
    Doubled,
    /// Reported as done, and as not done when the marketplace asked again.
    Contradicted,
}

impl LossKind {
    /// Every kind, the worst first.
    pub const ALL: [LossKind; 5] =
        [LossKind::Lost, LossKind::Doubled, LossKind::Unpaid, LossKind::Contradicted, LossKind::Unheard];

    /// Returns a description of the kind.
    pub const fn words(self) -> &'static str {
        match self {
            LossKind::Lost => "paid but never done",
            LossKind::Doubled => "created twice, or shared by two orders",
            LossKind::Unpaid => "used but not paid",
            LossKind::Contradicted => "reported as done, then as not done",
            LossKind::Unheard => "payments that were never acknowledged",
        }
    }
}

/// Ledger entry of one order.
#[derive(Debug, Clone, Serialize)]
pub struct LedgerEntry {
    /// Number of the order in the plan.
    pub number: u32,
    /// The `orderBizId` of the order.
    pub biz: String,
    /// Account id of the buyer.
    #[serde(skip)]
    pub buyer: String,
    /// The instance id that the marketplace received.
    pub id: Option<String>,
    /// Final state of the order.
    pub end: FinalState,
    /// Counts of events and successes, by the name of the request.
    pub asked: BTreeMap<&'static str, RequestCounts>,
    /// Number of requests sent.
    pub requests: u64,
    /// Number of requests without a response.
    pub unanswered: u64,
    /// Losses on this order.
    pub losses: Vec<Loss>,
    #[serde(skip)]
    price: u64,
}

/// Counts for requests of one name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    /// Number of events.
    pub happened: u64,
    /// Number of events reported as done.
    pub done: u64,
    /// Number of requests sent for these events.
    pub requests: u64,
}

impl LedgerEntry {
    pub(super) fn new(plan: &OrderPlan, run: &str) -> LedgerEntry {
        LedgerEntry {
            number: plan.number,
            biz: format!("{run}-{}", plan.number),
            buyer: format!("{:016}", 1_000_000_000_000_000 + u64::from(plan.number % 1_000)),
            id: None,
            end: FinalState::Nothing,
            asked: BTreeMap::new(),
            requests: 0,
            unanswered: 0,
            losses: Vec::new(),
            price: plan.events.first().map_or(0, |event| event.sku.price()),
        }
    }

    /// Returns true if the event is possible: an order without an instance cannot be renewed, for example.
    pub(super) fn may(&self, event: &Event) -> bool {
        matches!(event.what, RequestKind::Create | RequestKind::Pay) || self.id.is_some()
    }

    pub(super) fn begin(&mut self, what: RequestKind) {
        self.asked.entry(what.as_str()).or_default().happened += 1;
    }

    pub(super) fn record(&mut self, what: RequestKind, response: &Response) {
        self.requests += 1;
        self.asked.entry(what.as_str()).or_default().requests += 1;
        match response {
            Response::Nothing => self.unanswered += 1,
            Response::Done(id) if matches!(what, RequestKind::Create | RequestKind::LateCreate) => {
                self.record_id(what, id.clone())
            }
            Response::Done(_) | Response::NotYet => {}
        }
    }

    fn record_id(&mut self, what: RequestKind, id: Option<String>) {
        // A second id for one purchase means that the seller created two instances.
        if id.is_some() && self.id.is_some() && id != self.id {
            self.add_loss(LossKind::Doubled, what);
        }
        // The first id is kept: it is the one that the marketplace uses from then on.
        self.id = self.id.take().or(id);
    }

    pub(super) fn done(&mut self, what: RequestKind) {
        self.asked.entry(what.as_str()).or_default().done += 1;
        self.end = match what {
            // A repeated create does not reactivate an instance that was frozen or released.
            RequestKind::Create if self.end == FinalState::Nothing => FinalState::Active,
            RequestKind::Renew => FinalState::Active,
            RequestKind::Expire => FinalState::Frozen,
            RequestKind::Release => FinalState::Released,
            _ => self.end,
        };
    }

    /// Records the response to a repeated request whose event was already done.
    pub(super) fn record_repeat(&mut self, what: RequestKind, response: &Response) {
        self.record(what, response);
        // A lost response (`Response::Nothing`) is no contradiction.
        if *response == Response::NotYet {
            self.add_loss(LossKind::Contradicted, what);
        }
    }

    pub(super) fn give_up(&mut self, what: RequestKind) {
        match what {
            RequestKind::Create | RequestKind::Upgrade | RequestKind::Renew => {
                self.add_loss(LossKind::Lost, what)
            }
            RequestKind::Expire | RequestKind::Release | RequestKind::RefundRenew => {
                self.add_loss(LossKind::Unpaid, what)
            }
            RequestKind::Pay => self.add_loss(LossKind::Unheard, what),
            // A late create may be answered with the old id or with 0; neither costs anything.
            RequestKind::LateCreate => {}
        }
    }

    fn add_loss(&mut self, kind: LossKind, what: RequestKind) {
        let worth = if kind == LossKind::Contradicted { 0 } else { self.price };
        self.losses.push(Loss { kind, what: what.as_str(), worth });
    }
}

/// Ledger entries of all orders.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Vec<LedgerEntry>,
    /// The order that received an id first, by id.
    ids: BTreeMap<String, u32>,
}

/// Summary of a simulation.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Seed of the plan.
    pub seed: u64,
    /// Prefix of its order numbers.
    pub run: String,
    /// Number of orders.
    pub orders: usize,
    /// Number of requests sent.
    pub requests: u64,
    /// Number of requests without a response.
    pub unanswered: u64,
    /// Counts of events, by the name of the request.
    pub asked: BTreeMap<&'static str, RequestCounts>,
    /// Number and amount of the losses, by kind.
    pub losses: BTreeMap<LossKind, LossTotal>,
    /// Orders with a loss, at most 100, sorted by number.
    pub examples: Vec<LedgerEntry>,
    /// Duration of the simulation, in milliseconds.
    pub took_ms: u64,
}

/// Number and amount of losses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LossTotal {
    /// Number of losses.
    pub count: u64,
    /// Amount, in simulated yuan.
    pub worth: u64,
}

impl Summary {
    /// Returns true if there is no loss.
    pub fn is_clean(&self) -> bool {
        self.losses.is_empty()
    }

    /// Returns the number of losses of this kind.
    pub fn count(&self, kind: LossKind) -> u64 {
        self.losses.get(&kind).map_or(0, |sum| sum.count)
    }
}

/// Maximum number of entries in `Summary::examples`.
const EXAMPLES_COUNT: usize = 100;

impl Ledger {
    pub(super) fn add(&mut self, mut entry: LedgerEntry) {
        if let Some(id) = &entry.id {
            let first = *self.ids.entry(id.clone()).or_insert(entry.number);
            // Two orders with one id share an instance, so one buyer has none.
            if first != entry.number {
                entry.add_loss(LossKind::Doubled, RequestKind::Create);
            }
        }
        self.entries.push(entry);
    }

    /// Returns the entries, in the order in which they were added.
    pub fn entries(&self) -> &[LedgerEntry] {
        &self.entries
    }

    pub(super) fn summary(&self, seed: u64, run: &str, took: Duration) -> Summary {
        let mut asked: BTreeMap<&'static str, RequestCounts> = BTreeMap::new();
        let mut losses: BTreeMap<LossKind, LossTotal> = BTreeMap::new();
        for entry in &self.entries {
            for (name, one) in &entry.asked {
                let sum = asked.entry(name).or_default();
                sum.happened += one.happened;
                sum.done += one.done;
                sum.requests += one.requests;
            }
            for loss in &entry.losses {
                let sum = losses.entry(loss.kind).or_default();
                sum.count += 1;
                sum.worth += loss.worth;
            }
        }
        let mut examples: Vec<LedgerEntry> = self
            .entries
            .iter()
            .filter(|entry| !entry.losses.is_empty())
            .take(EXAMPLES_COUNT)
            .cloned()
            .collect();
        examples.sort_by_key(|entry| entry.number);
        Summary {
            seed,
            run: run.to_owned(),
            orders: self.entries.len(),
            requests: self.entries.iter().map(|entry| entry.requests).sum(),
            unanswered: self.entries.iter().map(|entry| entry.unanswered).sum(),
            asked,
            losses,
            examples,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Plan;
    use super::*;

    fn entry(number: u32) -> LedgerEntry {
        let plan = Plan::new(1, number, 1.0);
        LedgerEntry::new(plan.orders.last().unwrap(), "r")
    }

    fn kinds(entry: &LedgerEntry) -> Vec<LossKind> {
        entry.losses.iter().map(|loss| loss.kind).collect()
    }

    #[test]
    fn what_was_told_is_held_against_what_is_told_later() {
        let mut one = entry(1);
        let id = |id: &str| Response::Done(Some(id.to_owned()));
        one.record(RequestKind::Create, &Response::Nothing);
        one.record(RequestKind::Create, &Response::NotYet);
        one.record(RequestKind::Create, &id("a"));
        one.done(RequestKind::Create);
        assert_eq!((one.requests, one.unanswered, one.end), (3, 1, FinalState::Active));
        one.record_repeat(RequestKind::Create, &id("a"));
        one.record_repeat(RequestKind::Create, &Response::Nothing);
        assert_eq!(kinds(&one), [], "an answer that got lost denies nothing");
        one.record_repeat(RequestKind::Create, &id("b"));
        one.record_repeat(RequestKind::Create, &Response::NotYet);
        assert_eq!(kinds(&one), [LossKind::Doubled, LossKind::Contradicted]);
        assert_eq!(one.id.as_deref(), Some("a"));
    }

    #[test]
    fn what_is_never_done_is_lost_to_somebody() {
        let mut one = entry(2);
        for (what, kind) in [
            (RequestKind::Create, Some(LossKind::Lost)),
            (RequestKind::Renew, Some(LossKind::Lost)),
            (RequestKind::Release, Some(LossKind::Unpaid)),
            (RequestKind::Pay, Some(LossKind::Unheard)),
            (RequestKind::LateCreate, None),
        ] {
            one.losses.clear();
            one.give_up(what);
            assert_eq!(one.losses.first().map(|loss| loss.kind), kind, "{what:?}");
        }
    }

    #[test]
    fn two_orders_with_one_id_are_one_too_few() {
        let mut ledger = Ledger::default();
        for number in [1, 2] {
            let mut one = entry(number);
            one.record(RequestKind::Create, &Response::Done(Some("same".to_owned())));
            ledger.add(one);
        }
        let summary = ledger.summary(1, "r", Duration::ZERO);
        assert_eq!((summary.count(LossKind::Doubled), summary.examples.len()), (1, 1));
    }
}

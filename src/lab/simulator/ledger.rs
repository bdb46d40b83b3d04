//! Ledger of the simulated marketplace: every response it received, and the losses they imply for the seller.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::Said;
use super::plan::{Event, Life, What};

/// Final state of an order, as reported to the marketplace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
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
    pub kind: Kind,
    /// The request that failed.
    pub what: &'static str,
    /// Amount of the loss, in simulated yuan.
    pub worth: u64,
}

/// Kinds of loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
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

impl Kind {
    /// Every kind, the worst first.
    pub const ALL: [Kind; 5] = [Kind::Lost, Kind::Doubled, Kind::Unpaid, Kind::Contradicted, Kind::Unheard];

    /// Returns a description of the kind.
    pub const fn words(self) -> &'static str {
        match self {
            Kind::Lost => "paid but never done",
            Kind::Doubled => "created twice, or shared by two orders",
            Kind::Unpaid => "used but not paid",
            Kind::Contradicted => "reported as done, then as not done",
            Kind::Unheard => "payments that were never acknowledged",
        }
    }
}

/// Ledger entry of one order.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
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
    pub end: End,
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

impl Entry {
    pub(super) fn new(life: &Life, run: &str) -> Entry {
        Entry {
            number: life.number,
            biz: format!("{run}-{}", life.number),
            buyer: format!("{:016}", 1_000_000_000_000_000 + u64::from(life.number % 1_000)),
            id: None,
            end: End::Nothing,
            asked: BTreeMap::new(),
            requests: 0,
            unanswered: 0,
            losses: Vec::new(),
            price: life.events.first().map_or(0, |event| event.sku.price()),
        }
    }

    /// Returns true if the event is possible: an order without an instance cannot be renewed, for example.
    pub(super) fn may(&self, event: &Event) -> bool {
        matches!(event.what, What::Create | What::Pay) || self.id.is_some()
    }

    pub(super) fn begin(&mut self, what: What) {
        self.asked.entry(what.name()).or_default().happened += 1;
    }

    pub(super) fn hear(&mut self, what: What, said: &Said) {
        self.requests += 1;
        self.asked.entry(what.name()).or_default().requests += 1;
        match said {
            Said::Nothing => self.unanswered += 1,
            Said::Done(id) if matches!(what, What::Create | What::LateCreate) => self.told(what, id.clone()),
            Said::Done(_) | Said::NotYet => {}
        }
    }

    fn told(&mut self, what: What, id: Option<String>) {
        // A second id for one purchase means that the seller created two instances.
        if id.is_some() && self.id.is_some() && id != self.id {
            self.lose(Kind::Doubled, what);
        }
        // The first id is kept: it is the one that the marketplace uses from then on.
        self.id = self.id.take().or(id);
    }

    pub(super) fn done(&mut self, what: What) {
        self.asked.entry(what.name()).or_default().done += 1;
        self.end = match what {
            // A repeated create does not reactivate an instance that was frozen or released.
            What::Create if self.end == End::Nothing => End::Active,
            What::Renew => End::Active,
            What::Expire => End::Frozen,
            What::Release => End::Released,
            _ => self.end,
        };
    }

    /// Records the response to a repeated request whose event was already done.
    pub(super) fn hear_again(&mut self, what: What, said: &Said) {
        self.hear(what, said);
        // A lost response (`Said::Nothing`) is no contradiction.
        if *said == Said::NotYet {
            self.lose(Kind::Contradicted, what);
        }
    }

    pub(super) fn give_up(&mut self, what: What) {
        match what {
            What::Create | What::Upgrade | What::Renew => self.lose(Kind::Lost, what),
            What::Expire | What::Release | What::RefundRenew => self.lose(Kind::Unpaid, what),
            What::Pay => self.lose(Kind::Unheard, what),
            // A late create may be answered with the old id or with 0; neither costs anything.
            What::LateCreate => {}
        }
    }

    fn lose(&mut self, kind: Kind, what: What) {
        let worth = if kind == Kind::Contradicted { 0 } else { self.price };
        self.losses.push(Loss { kind, what: what.name(), worth });
    }
}

/// Ledger entries of all orders.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Vec<Entry>,
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
    pub losses: BTreeMap<Kind, Sum>,
    /// Orders with a loss, at most 100, sorted by number.
    pub examples: Vec<Entry>,
    /// Duration of the simulation, in milliseconds.
    pub took_ms: u64,
}

/// Number and amount of losses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
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
    pub fn count(&self, kind: Kind) -> u64 {
        self.losses.get(&kind).map_or(0, |sum| sum.count)
    }
}

/// Maximum number of entries in `Summary::examples`.
const EXAMPLES_COUNT: usize = 100;

impl Ledger {
    pub(super) fn add(&mut self, mut entry: Entry) {
        if let Some(id) = &entry.id {
            let first = *self.ids.entry(id.clone()).or_insert(entry.number);
            // Two orders with one id share an instance, so one buyer has none.
            if first != entry.number {
                entry.lose(Kind::Doubled, What::Create);
            }
        }
        self.entries.push(entry);
    }

    /// Returns the entries, in the order in which they were added.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn summary(&self, seed: u64, run: &str, took: Duration) -> Summary {
        let mut asked: BTreeMap<&'static str, RequestCounts> = BTreeMap::new();
        let mut losses: BTreeMap<Kind, Sum> = BTreeMap::new();
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
        let mut examples: Vec<Entry> = self
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

    fn entry(number: u32) -> Entry {
        let plan = Plan::new(1, number, 1.0);
        Entry::new(plan.lives.last().unwrap(), "r")
    }

    fn kinds(entry: &Entry) -> Vec<Kind> {
        entry.losses.iter().map(|loss| loss.kind).collect()
    }

    #[test]
    fn what_was_told_is_held_against_what_is_told_later() {
        let mut one = entry(1);
        let id = |id: &str| Said::Done(Some(id.to_owned()));
        one.hear(What::Create, &Said::Nothing);
        one.hear(What::Create, &Said::NotYet);
        one.hear(What::Create, &id("a"));
        one.done(What::Create);
        assert_eq!((one.requests, one.unanswered, one.end), (3, 1, End::Active));
        one.hear_again(What::Create, &id("a"));
        one.hear_again(What::Create, &Said::Nothing);
        assert_eq!(kinds(&one), [], "an answer that got lost denies nothing");
        one.hear_again(What::Create, &id("b"));
        one.hear_again(What::Create, &Said::NotYet);
        assert_eq!(kinds(&one), [Kind::Doubled, Kind::Contradicted]);
        assert_eq!(one.id.as_deref(), Some("a"));
    }

    #[test]
    fn what_is_never_done_is_lost_to_somebody() {
        let mut one = entry(2);
        for (what, kind) in [
            (What::Create, Some(Kind::Lost)),
            (What::Renew, Some(Kind::Lost)),
            (What::Release, Some(Kind::Unpaid)),
            (What::Pay, Some(Kind::Unheard)),
            (What::LateCreate, None),
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
            one.hear(What::Create, &Said::Done(Some("same".to_owned())));
            ledger.add(one);
        }
        let summary = ledger.summary(1, "r", Duration::ZERO);
        assert_eq!((summary.count(Kind::Doubled), summary.examples.len()), (1, 1));
    }
}

//! What the market was told, and what a seller has lost by it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::Said;
use super::plan::{Event, Life, What};

/// How an order ended, as far as the market was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It never had an instance.
    Nothing,
    /// In use.
    Active,
    /// Frozen.
    Frozen,
    /// Given up.
    Released,
}

/// One thing that went wrong with an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// Which kind.
    pub kind: Kind,
    /// What was to be done.
    pub what: &'static str,
    /// What it was worth, in pretended yuan.
    pub worth: u64,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Paid for, asked for as often as the marketplace asks, and never done.
    Lost,
    /// Never taken away, though nobody pays any more.
    Unpaid,
    /// Never acknowledged: the seller has to fetch it from the marketplace.
    Unheard,
    /// One order with two ids, or two orders with one.
    Doubled,
    /// Done, and then not done when it was asked again.
    Contradicted,
}

impl Kind {
    /// Every kind, the worst first.
    pub const ALL: [Kind; 5] = [Kind::Lost, Kind::Doubled, Kind::Unpaid, Kind::Contradicted, Kind::Unheard];

    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Kind::Lost => "paid for and never done",
            Kind::Doubled => "made twice, or shared",
            Kind::Unpaid => "used and not paid for",
            Kind::Contradicted => "done, and denied when asked again",
            Kind::Unheard => "payments the seller has to fetch",
        }
    }
}

/// The account of one order.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Its number in the plan.
    pub number: u32,
    /// Its `orderBizId`.
    pub biz: String,
    /// Its buyer.
    #[serde(skip)]
    pub buyer: String,
    /// The id it was told.
    pub id: Option<String>,
    /// How it ended.
    pub end: End,
    /// What was asked, by name: how often it began, and how often it was done.
    pub asked: BTreeMap<&'static str, Asked>,
    /// Requests that were sent.
    pub requests: u64,
    /// Requests that got no answer.
    pub unanswered: u64,
    /// What went wrong.
    pub losses: Vec<Loss>,
    #[serde(skip)]
    price: u64,
}

/// How something of one name went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// How often it happened.
    pub happened: u64,
    /// How often it was told as done.
    pub done: u64,
    /// Requests that were needed.
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

    /// Whether it can happen at all: what was never made is not renewed.
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
        if id.is_some() && self.id.is_some() && id != self.id {
            self.lose(Kind::Doubled, what);
        }
        self.id = self.id.take().or(id);
    }

    pub(super) fn done(&mut self, what: What) {
        self.asked.entry(what.name()).or_default().done += 1;
        self.end = match what {
            What::Create if self.end == End::Nothing => End::Active,
            What::Renew => End::Active,
            What::Expire => End::Frozen,
            What::Release => End::Released,
            _ => self.end,
        };
    }

    /// What was done is asked once more.
    pub(super) fn hear_again(&mut self, what: What, said: &Said) {
        self.hear(what, said);
        if *said == Said::NotYet {
            self.lose(Kind::Contradicted, what);
        }
    }

    pub(super) fn give_up(&mut self, what: What) {
        match what {
            What::Create | What::Upgrade | What::Renew => self.lose(Kind::Lost, what),
            What::Expire | What::Release | What::RefundRenew => self.lose(Kind::Unpaid, what),
            What::Pay => self.lose(Kind::Unheard, what),
            // Whether a late purchase is answered with the old id or with 0 costs nobody anything.
            What::LateCreate => {}
        }
    }

    fn lose(&mut self, kind: Kind, what: What) {
        let worth = if kind == Kind::Contradicted { 0 } else { self.price };
        self.losses.push(Loss { kind, what: what.name(), worth });
    }
}

/// The accounts of all orders.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Vec<Entry>,
    /// By id: the order that was told it first.
    ids: BTreeMap<String, u32>,
}

/// What it comes to.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// What the market was planned from.
    pub seed: u64,
    /// What its order numbers begin with.
    pub run: String,
    /// Orders.
    pub orders: usize,
    /// Requests that were sent.
    pub requests: u64,
    /// Requests that got no answer.
    pub unanswered: u64,
    /// What was asked, by name.
    pub asked: BTreeMap<&'static str, Asked>,
    /// What went wrong, by kind: how often, and what it was worth.
    pub losses: BTreeMap<Kind, Sum>,
    /// Orders with a loss, at most a hundred, by their numbers.
    pub examples: Vec<Entry>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// How often, and what it was worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// How often.
    pub count: u64,
    /// Pretended yuan.
    pub worth: u64,
}

impl Summary {
    /// Whether nothing went wrong.
    pub fn is_clean(&self) -> bool {
        self.losses.is_empty()
    }

    /// How often this went wrong.
    pub fn count(&self, kind: Kind) -> u64 {
        self.losses.get(&kind).map_or(0, |sum| sum.count)
    }
}

/// Entries that are shown.
const EXAMPLES_COUNT: usize = 100;

impl Ledger {
    pub(super) fn add(&mut self, mut entry: Entry) {
        if let Some(id) = &entry.id {
            let first = *self.ids.entry(id.clone()).or_insert(entry.number);
            if first != entry.number {
                entry.lose(Kind::Doubled, What::Create);
            }
        }
        self.entries.push(entry);
    }

    /// The accounts, in the order in which they were closed.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn summary(&self, seed: u64, run: &str, took: Duration) -> Summary {
        let mut asked: BTreeMap<&'static str, Asked> = BTreeMap::new();
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

//! The marketplace, pretended: orders arrive, are paid, renewed, forgotten, refunded and given up, at any URL.
//!
//! A receiver that passes every single test may still lose an order when it is restarted at the wrong moment.
//! So this plays Alibaba for as long and as hard as one likes: it calls again as the vendor says (120 times
//! for an order that is answered with 0, the written ladder for a payment), it sends twice what may come twice, and it keeps a
//! [`ledger`] of everything it was told. In the end that says what a seller would have lost.
//!
//! What is asked is planned beforehand from a seed ([`plan`]): the same seed is the same market. A market day
//! is as short as one wants it ([`Market::day`]). The dates on the wire are not compressed as much: every one lies
//! some hours ahead, in the order of the plan, so that a receiver that compares them with its own clock
//! believes them.

pub mod ledger;
pub mod plan;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::core::dialect;
use crate::core::dialect::{Options, Sending};
use crate::core::query::Pair;
use crate::core::signature::Keys;
use crate::hook::clock::{Clock, plus_millis};
use crate::hook::json::Json;
use crate::lab::exchange;
use crate::net::{Client, ClientOptions, Url};
use crate::observe::limits;
use ledger::{Entry, Ledger, Summary};
use plan::{Event, Life, Plan, What};

/// How often the marketplace calls for one thing at most: once, and 120 times again
/// (help.aliyun.com/document_detail/147358.html).
pub const TRIES: u32 = 121;
/// After how many minutes a payment that was not acknowledged is announced again; then the seller has to ask for it
/// (help.aliyun.com/zh/marketplace/orderpay).
pub const PAYMENT_LADDER_MINUTES: [u32; 11] = [1, 1, 1, 5, 10, 10, 10, 60, 60, 120, 240];
/// How far ahead the first date on the wire lies.
const FIRST_DATE_MS: i64 = 3 * 3_600_000;
/// How far apart the dates of two market days lie at least.
const DAY_ON_THE_WIRE_MS: i64 = 60_000;
/// Things told and not yet noted.
const EVENTS_MAX_COUNT: usize = 1_024;

/// A pretended market.
#[derive(Debug, Clone)]
pub struct Market {
    /// The receiver's endpoint.
    pub url: Url,
    /// The key; the first one signs.
    pub keys: Keys,
    /// What happens.
    pub plan: Plan,
    /// What all order numbers begin with: two runs with one name are one market to the receiver.
    pub run: String,
    /// How long a market day takes.
    pub day: Duration,
    /// How long the market waits before it calls again: the vendor does not say.
    pub every: Duration,
    /// How long a minute of the payments' ladder takes.
    pub minute: Duration,
    /// Requests on the way at once.
    pub at_once: usize,
    /// The zone of dates.
    pub zone: TimeZone,
    /// The time.
    pub clock: Clock,
}

impl Market {
    /// A market with a day of a second.
    pub fn new(url: Url, keys: Keys, plan: Plan, run: &str) -> Market {
        Market {
            url,
            keys,
            plan,
            run: run.to_owned(),
            day: Duration::from_millis(limits::MARKET_DAY_MS),
            every: Duration::from_millis(limits::MARKET_RETRY_MS),
            minute: Duration::from_millis(limits::MARKET_MINUTE_MS),
            at_once: limits::MARKET_AT_ONCE_COUNT,
            zone: Options::default().timezone,
            clock: Clock::System,
        }
    }

    /// Plays it to its end, or until `stop`; then only the orders that are through are accounted for. `ended` is
    /// called for each of them.
    pub async fn play(
        &self,
        stop: impl Future<Output = ()>,
        mut ended: impl FnMut(&Entry),
    ) -> (Ledger, Summary) {
        let begin = Instant::now();
        let (notes, mut inbox) = mpsc::channel(EVENTS_MAX_COUNT);
        let seller = Arc::new(Seller::new(self));
        let mut lives = JoinSet::new();
        for life in self.plan.lives.clone() {
            let (seller, notes) = (seller.clone(), notes.clone());
            lives.spawn(async move {
                sleep_until(begin + Duration::from_millis(life.arrives_ms)).await;
                let _ = notes.send(seller.live(&life).await).await;
            });
        }
        drop(notes);
        let mut ledger = Ledger::default();
        let mut stop = pin!(stop);
        loop {
            let entry = tokio::select! {
                () = &mut stop => break,
                entry = inbox.recv() => entry,
            };
            let Some(entry) = entry else { break };
            ended(&entry);
            ledger.add(entry);
        }
        let took = begin.elapsed();
        let summary = ledger.summary(self.plan.seed, &self.run, took);
        (ledger, summary)
    }
}

/// What every life needs of the market.
struct Seller {
    market: Market,
    client: Client,
    places: Semaphore,
}

/// What an answer says to a marketplace.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// Done; with an id, where one was asked for.
    Done(Option<String>),
    /// Call again.
    NotYet,
    /// Nobody answered.
    Nothing,
}

impl Seller {
    fn new(market: &Market) -> Seller {
        let client = Client::new(ClientOptions {
            connect: Duration::from_millis(limits::HEADERS_READ_MS),
            total: Duration::from_millis(limits::HEADERS_READ_MS + limits::BODY_READ_MS),
            keep: market.at_once,
            ..ClientOptions::default()
        });
        let places = Semaphore::new(market.at_once.max(1));
        // The plan is the caller's: lives carry their own part of it.
        let market = Market { plan: Plan { seed: market.plan.seed, lives: Vec::new() }, ..market.clone() };
        Seller { market, client, places }
    }

    /// One order from its purchase to its end.
    async fn live(&self, life: &Life) -> Entry {
        let mut entry = Entry::new(life, &self.market.run);
        let born = self.market.clock.now();
        for event in &life.events {
            sleep(self.market.day.saturating_mul(event.after_days)).await;
            if entry.may(event) {
                self.bring_about(event, born, &mut entry).await;
            }
        }
        entry
    }

    /// Calls until it is done, or the market gives up.
    async fn bring_about(&self, event: &Event, born: Timestamp, entry: &mut Entry) {
        let pairs = self.pairs(event, born, entry);
        entry.begin(event.what);
        for attempt in 0..self.tries(event.what) {
            if attempt > 0 {
                sleep(self.pause(event.what, attempt)).await;
            }
            let said = if event.twins && attempt == 0 {
                let (one, other) = tokio::join!(self.ask(event.what, &pairs), self.ask(event.what, &pairs));
                entry.hear(event.what, &one);
                entry.hear(event.what, &other);
                if matches!(one, Said::Done(_)) { one } else { other }
            } else {
                let said = self.ask(event.what, &pairs).await;
                entry.hear(event.what, &said);
                said
            };
            if matches!(said, Said::Done(_)) {
                entry.done(event.what);
                if event.again {
                    entry.hear_again(event.what, &self.ask(event.what, &pairs).await);
                }
                return;
            }
        }
        entry.give_up(event.what);
    }

    fn tries(&self, what: What) -> u32 {
        match what {
            What::Pay => 1 + u32::try_from(PAYMENT_LADDER_MINUTES.len()).unwrap_or_default(),
            What::LateCreate => 1,
            _ => TRIES,
        }
    }

    fn pause(&self, what: What, attempt: u32) -> Duration {
        let step = usize::try_from(attempt).unwrap_or(usize::MAX).saturating_sub(1);
        match PAYMENT_LADDER_MINUTES.get(step) {
            Some(minutes) if what == What::Pay => self.market.minute.saturating_mul(*minutes),
            _ => self.market.every,
        }
    }

    /// A date of the plan, on the wire.
    fn date(&self, born: Timestamp, days: u32) -> String {
        let day = i64::try_from(self.market.day.as_millis()).unwrap_or(i64::MAX);
        let day = day.saturating_mul(2).max(DAY_ON_THE_WIRE_MS);
        let at = plus_millis(born, FIRST_DATE_MS.saturating_add(day.saturating_mul(i64::from(days))));
        at.to_zoned(self.market.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    fn pairs(&self, event: &Event, born: Timestamp, entry: &Entry) -> Vec<Pair> {
        let date = self.date(born, event.until_days);
        let order = format!("{}-{}", entry.biz, event.order);
        let id = entry.id.clone().unwrap_or_default();
        let mut pairs = Vec::new();
        let mut pair = |name: &str, value: &str| pairs.push((name.to_owned(), value.to_owned()));
        match event.what {
            What::Create | What::LateCreate | What::Pay => {
                pair("aliUid", &entry.buyer);
                pair("orderBizId", &entry.biz);
                pair("orderId", &order);
                pair("productCode", "cmgj000001");
                pair("skuId", event.sku.name());
            }
            _ => pair("instanceId", &id),
        }
        match event.what {
            What::Create | What::LateCreate => {
                pair("trial", if event.is_trial { "true" } else { "false" });
                pair("expiredOn", &date);
            }
            What::Pay => pair("requestId", &format!("{order}-paid")),
            What::Renew => {
                pair("orderId", &order);
                pair("expiredOn", &date);
            }
            What::RefundRenew => pair("expiredOn", &date),
            What::Upgrade => {
                pair("orderId", &order);
                pair("skuId", event.sku.name());
            }
            What::Release => pair("isRefund", if event.is_refund { "true" } else { "false" }),
            What::Expire => {}
        }
        pairs
    }

    async fn ask(&self, what: What, pairs: &[Pair]) -> Said {
        let Ok(_place) = self.places.acquire().await else { return Said::Nothing };
        let sending = Sending::at(self.market.clock.now());
        let out = dialect::alibaba().request(what.word(), pairs, &self.market.keys, &sending);
        let Ok(request) = exchange::addressed(&out, &self.market.url) else { return Said::Nothing };
        match self.client.send(request).await {
            Ok(answer) if answer.status < 300 => read(what, &answer.body),
            Ok(_) => Said::NotYet,
            Err(_) => Said::Nothing,
        }
    }
}

/// A purchase is done when there is an id, whatever else is said; anything else when success is.
fn read(what: What, body: &[u8]) -> Said {
    let Ok(json) = Json::read(body) else { return Said::NotYet };
    if matches!(what, What::Create | What::LateCreate) {
        let id = match json.get("instanceId") {
            Some(Json::Text(text) | Json::Number(text)) => Some(text.clone()),
            _ => None,
        };
        let id = id.filter(|id| !id.is_empty() && id != "0");
        return id.map_or(Said::NotYet, |id| Said::Done(Some(id)));
    }
    match json.get("success") {
        Some(Json::Bool(true)) => Said::Done(None),
        Some(Json::Text(text)) if text == "true" => Said::Done(None),
        _ => Said::NotYet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_a_marketplace_reads_it() {
        let made = |id: &str| Said::Done(Some(id.to_owned()));
        for (what, body, said) in [
            (What::Create, r#"{"instanceId": "i-1"}"#, made("i-1")),
            (What::Create, r#"{"instanceId": 7}"#, made("7")),
            (What::Create, r#"{"instanceId": "0"}"#, Said::NotYet),
            // Nothing that could be renewed or released was ever told.
            (What::Create, r#"{"success": true}"#, Said::NotYet),
            (What::LateCreate, r#"{"success": true}"#, Said::NotYet),
            (What::Renew, r#"{"success": true}"#, Said::Done(None)),
            (What::Pay, r#"{"success": "true"}"#, Said::Done(None)),
            (What::Renew, r#"{"success": false, "message": "m"}"#, Said::NotYet),
            (What::Renew, r#"{"instanceId": "i-1"}"#, Said::NotYet),
            (What::Renew, r#"{"instanceId": "i-1", "success": false}"#, Said::NotYet),
            (What::Release, "<html>", Said::NotYet),
        ] {
            assert_eq!(read(what, body.as_bytes()), said, "{what:?} {body}");
        }
    }

    #[test]
    fn the_ladder_is_the_documented_one() {
        assert_eq!(PAYMENT_LADDER_MINUTES.iter().sum::<u32>(), 518, "8 h 38 min");
    }
}

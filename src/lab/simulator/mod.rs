//! Simulator of a marketplace: orders arrive, are paid, renewed, left to expire, refunded and released, at any URL.
//!
//! An SPI endpoint that passes every single test may still lose an order if it is restarted at the wrong moment. So the
//! simulator plays Alibaba for any time and at any rate:
//! - It calls again as the vendor documents: 120 times for an order that is answered with 0, and the documented
//!   schedule for a payment.
//! - It sends requests twice where the vendor may do so.
//! - It keeps a [`ledger`] of every response, which shows the losses of a seller.
//!
//! A seed determines the planned requests ([`plan`]): the same seed gives the same simulation. The duration of a market
//! day is an option ([`Market::day`]). Dates on the wire are compressed less: each one lies some hours ahead, in the
//! order of the plan. So an SPI endpoint that compares them with its own clock accepts them.

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

use crate::lab::exchange;
use crate::net::{Client, ClientOptions, Url};
use crate::observe::limits;
use ledger::{Entry, Ledger, Summary};
use plan::{Event, Life, Plan, What};
use spid_core::dialect;
use spid_core::dialect::{Options, Sending};
use spid_core::query::Pair;
use spid_core::signature::Keys;
use spid_hook::json::Json;
use spid_hook::time::{Clock, plus_millis};

/// Maximum number of calls for one event: one, and 120 repeats (help.aliyun.com/document_detail/147358.html).
pub const TRIES: u32 = 121;
/// Minutes between the notifications of a payment that was not acknowledged. After the last one, the seller must ask
/// for the payment (help.aliyun.com/zh/marketplace/orderpay).
pub const PAYMENT_LADDER_MINUTES: [u32; 11] = [1, 1, 1, 5, 10, 10, 10, 60, 60, 120, 240];
/// Distance of the first date on the wire from now, in milliseconds.
const FIRST_DATE_MS: i64 = 3 * 3_600_000;
/// Minimum distance between the dates of two market days, in milliseconds.
const DAY_ON_THE_WIRE_MS: i64 = 60_000;
/// Capacity of the channel for finished entries.
const EVENTS_MAX_COUNT: usize = 1_024;

/// A simulated marketplace.
#[derive(Debug, Clone)]
pub struct Market {
    /// URL of the SPI endpoint under test.
    pub url: Url,
    /// The keys; the first one signs.
    pub keys: Keys,
    /// The planned orders.
    pub plan: Plan,
    /// Prefix of all order numbers. Two runs with the same prefix are the same orders for the SPI endpoint.
    pub run: String,
    /// Duration of a market day.
    pub day: Duration,
    /// Pause before a repeated call. The vendor does not document it.
    pub every: Duration,
    /// Duration of a minute in the schedule of payments.
    pub minute: Duration,
    /// Maximum number of concurrent requests.
    pub at_once: usize,
    /// Time zone of dates.
    pub zone: TimeZone,
    /// The clock.
    pub clock: Clock,
}

impl Market {
    /// Creates a simulator with default options; a market day takes one second.
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

    /// Runs the simulation to its end, or until `stop`; then only finished orders are in the ledger. Calls `ended` for
    /// each of them.
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
        // The last task that ends then closes the channel, and the loop below ends.
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

/// State shared by all orders.
struct Seller {
    market: Market,
    client: Client,
    places: Semaphore,
}

/// Meaning of a response to the marketplace.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// The request is done; with an instance id, if the request is a purchase.
    Done(Option<String>),
    /// The marketplace must call again.
    NotYet,
    /// No response was received.
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
        // Each task holds the events of its own order, so the shared state keeps no copy of the plan.
        let market = Market { plan: Plan { seed: market.plan.seed, lives: Vec::new() }, ..market.clone() };
        Seller { market, client, places }
    }

    /// Plays one order from its purchase to its end.
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

    /// Sends the requests of an event until it is done, or until the marketplace gives up.
    async fn bring_about(&self, event: &Event, born: Timestamp, entry: &mut Entry) {
        let pairs = self.pairs(event, born, entry);
        entry.begin(event.what);
        for attempt in 0..self.tries(event.what) {
            if attempt > 0 {
                sleep(self.pause(event.what, attempt)).await;
            }
            // The vendor may deliver a callback twice, so some first requests are sent twice at the same time.
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
                // A repeated delivery of a request that is done must get the same answer.
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

    /// Formats a date of the plan for the wire.
    fn date(&self, born: Timestamp, days: u32) -> String {
        let day = i64::try_from(self.market.day.as_millis()).unwrap_or(i64::MAX);
        // Twice a market day, so that the dates advance faster than the simulation and stay in the future.
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
        // The limit counts requests, not orders: an order between two requests holds no permit.
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

/// Reads a response as the marketplace does: a purchase is done if it has an id, any other request if it reports
/// success.
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
            // Without an id, the marketplace has no instance to renew or release.
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

//! Simulator of a marketplace: orders arrive, are paid, renewed, left to expire, refunded and released, at any URL.
//!
//! An SPI endpoint that passes every single test may still lose an order if it is restarted at the wrong moment. So the
//! simulator plays Alibaba for any time and at any rate:
//! - It calls again as the vendor documents: 120 times for an order that is answered with 0, and the documented
//!   schedule for a payment.
//! - It sends requests twice where the vendor may do so.
//! - It keeps a [`ledger`] of every response, which shows the losses of a seller.
//!
//! A seed determines the planned requests ([`plan`]): the same seed gives the same simulation. The duration of a simulator
//! day is an option ([`Simulator::day`]). Dates on the wire are compressed less: each one lies some hours ahead, in the
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

use crate::lab::exchange::{self, Answer, PreparedRequest, Repetitions};
use crate::net::{Client, ClientOptions, Url};
use crate::observe::limits;
use ledger::{Ledger, LedgerEntry, Summary};
use plan::{Event, OrderPlan, Plan, RequestKind};
use spid_core::dialect;
use spid_core::dialect::{Options, Sending};
use spid_core::query::Pair;
use spid_core::signature::Keys;
use spid_hook::time::{Clock, plus_millis};

/// Maximum number of repeated calls for one event (help.aliyun.com/document_detail/147358.html).
pub const REPETITIONS_COUNT: usize = 120;
/// Minutes between the notifications of a payment that was not acknowledged. After the last one, the seller must ask
/// for the payment (help.aliyun.com/zh/marketplace/orderpay).
pub const PAYMENT_LADDER_MINUTES: [u32; 11] = [1, 1, 1, 5, 10, 10, 10, 60, 60, 120, 240];
/// Distance of the first date on the wire from now, in milliseconds.
const FIRST_DATE_MS: i64 = 3 * 3_600_000;
/// Minimum distance between the dates of two simulated days, in milliseconds.
const DAY_ON_THE_WIRE_MS: i64 = 60_000;
/// Capacity of the channel for finished entries.
const EVENTS_MAX_COUNT: usize = 1_024;

/// A simulated marketplace.
#[derive(Debug, Clone)]
pub struct Simulator {
    /// URL of the SPI endpoint under test.
    pub url: Url,
    /// The keys; the first one signs.
    pub keys: Keys,
    /// The planned orders.
    pub plan: Plan,
    /// Prefix of all order numbers. Two runs with the same prefix are the same orders for the SPI endpoint.
    pub run: String,
    /// Duration of a simulated day.
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

impl Simulator {
    /// Creates a simulator with default options; a simulated day takes one second.
    pub fn new(url: Url, keys: Keys, plan: Plan, run: &str) -> Simulator {
        Simulator {
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
        mut ended: impl FnMut(&LedgerEntry),
    ) -> (Ledger, Summary) {
        let begin = Instant::now();
        let (notes, mut inbox) = mpsc::channel(EVENTS_MAX_COUNT);
        let run = Arc::new(SimulatorRun::new(self));
        let mut orders = JoinSet::new();
        for order in self.plan.orders.clone() {
            let (run, notes) = (run.clone(), notes.clone());
            orders.spawn(async move {
                sleep_until(begin + Duration::from_millis(order.arrives_ms)).await;
                let _ = notes.send(run.play_order(&order).await).await;
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
struct SimulatorRun {
    simulator: Simulator,
    client: Client,
    permits: Semaphore,
}

/// Meaning of a response to the marketplace.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Response {
    /// The request is done; with an instance id, if the request is a purchase.
    Done(Option<String>),
    /// The marketplace must call again.
    NotYet,
    /// No response was received.
    Nothing,
}

impl SimulatorRun {
    fn new(simulator: &Simulator) -> SimulatorRun {
        let options = exchange::client_options(Duration::ZERO);
        let client = Client::new(ClientOptions { keep: simulator.at_once, ..options });
        let permits = Semaphore::new(simulator.at_once.max(1));
        // Each task holds the events of its own order, so the shared state keeps no copy of the plan.
        let simulator =
            Simulator { plan: Plan { seed: simulator.plan.seed, orders: Vec::new() }, ..simulator.clone() };
        SimulatorRun { simulator, client, permits }
    }

    /// Plays one order from its purchase to its end.
    async fn play_order(&self, order: &OrderPlan) -> LedgerEntry {
        let mut entry = LedgerEntry::new(order, &self.simulator.run);
        let purchased_at = self.simulator.clock.now();
        for event in &order.events {
            sleep(self.simulator.day.saturating_mul(event.after_days)).await;
            if entry.may(event) {
                self.send_event(event, purchased_at, &mut entry).await;
            }
        }
        entry
    }

    /// Sends the requests of an event until it is done, or until the marketplace gives up.
    async fn send_event(&self, event: &Event, purchased_at: Timestamp, entry: &mut LedgerEntry) {
        let pairs = self.pairs(event, purchased_at, entry);
        entry.begin(event.what);
        let mut repetitions = Repetitions::after(self.waits(event.what));
        let mut response = if event.twins {
            // The vendor may deliver a callback twice, so some first requests are sent twice at the same time.
            let (one, other) = tokio::join!(self.send(event.what, &pairs), self.send(event.what, &pairs));
            entry.record(event.what, &one);
            entry.record(event.what, &other);
            if matches!(one, Response::Done(_)) { one } else { other }
        } else {
            self.send_and_record(event.what, &pairs, entry).await
        };
        while !matches!(response, Response::Done(_)) {
            if !repetitions.again().await {
                return entry.give_up(event.what);
            }
            response = self.send_and_record(event.what, &pairs, entry).await;
        }
        entry.done(event.what);
        // A repeated delivery of a request that is done must get the same answer.
        if event.again {
            entry.record_repeat(event.what, &self.send(event.what, &pairs).await);
        }
    }

    async fn send_and_record(&self, what: RequestKind, pairs: &[Pair], entry: &mut LedgerEntry) -> Response {
        let response = self.send(what, pairs).await;
        entry.record(what, &response);
        response
    }

    /// Returns the waits before the repetitions of a request that is not done.
    fn waits(&self, what: RequestKind) -> Vec<Duration> {
        match what {
            RequestKind::Pay => {
                PAYMENT_LADDER_MINUTES.map(|minutes| self.simulator.minute.saturating_mul(minutes)).to_vec()
            }
            RequestKind::LateCreate => Vec::new(),
            _ => vec![self.simulator.every; REPETITIONS_COUNT],
        }
    }

    /// Formats a date of the plan for the wire.
    fn date(&self, purchased_at: Timestamp, days: u32) -> String {
        let day = i64::try_from(self.simulator.day.as_millis()).unwrap_or(i64::MAX);
        // Twice a simulated day, so that the dates advance faster than the simulation and stay in the future.
        let day = day.saturating_mul(2).max(DAY_ON_THE_WIRE_MS);
        let at = plus_millis(purchased_at, FIRST_DATE_MS.saturating_add(day.saturating_mul(i64::from(days))));
        at.to_zoned(self.simulator.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    fn pairs(&self, event: &Event, purchased_at: Timestamp, entry: &LedgerEntry) -> Vec<Pair> {
        let date = self.date(purchased_at, event.until_days);
        let order = format!("{}-{}", entry.biz, event.order);
        let id = entry.id.clone().unwrap_or_default();
        let (payment, sku) = (format!("{order}-paid"), event.sku.as_str());
        let order_params = [
            ("aliUid", entry.buyer.as_str()),
            ("orderBizId", &entry.biz),
            ("orderId", &order),
            ("productCode", "cmgj000001"),
            ("skuId", sku),
        ];
        let instance = [("instanceId", id.as_str())];
        let first: &[_] = match event.what {
            RequestKind::Create | RequestKind::LateCreate | RequestKind::Pay => &order_params,
            _ => &instance,
        };
        let more: &[(&str, &str)] = match event.what {
            RequestKind::Create | RequestKind::LateCreate => {
                &[("trial", if event.is_trial { "true" } else { "false" }), ("expiredOn", &date)]
            }
            RequestKind::Pay => &[("requestId", &payment)],
            RequestKind::Renew => &[("orderId", &order), ("expiredOn", &date)],
            RequestKind::RefundRenew => &[("expiredOn", &date)],
            RequestKind::Upgrade => &[("orderId", &order), ("skuId", sku)],
            RequestKind::Release => &[("isRefund", if event.is_refund { "true" } else { "false" })],
            RequestKind::Expire => &[],
        };
        first.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    async fn send(&self, what: RequestKind, pairs: &[Pair]) -> Response {
        // The limit counts requests, not orders: an order between two requests holds no permit.
        let Ok(_permit) = self.permits.acquire().await else { return Response::Nothing };
        let sending = Sending::at(self.simulator.clock.now());
        let out = dialect::alibaba().request(what.word(), pairs, &self.simulator.keys, &sending);
        let Ok(request) = PreparedRequest::signed(&out, &self.simulator.url) else {
            return Response::Nothing;
        };
        match request.send(&self.client).await {
            Ok(response) => read(what, &Answer::from(&response)),
            Err(_) => Response::Nothing,
        }
    }
}

/// Reads an answer as the marketplace does: a purchase is done if it has an id, any other request if it reports
/// success.
fn read(what: RequestKind, answer: &Answer) -> Response {
    match what {
        _ if answer.status >= 300 => Response::NotYet,
        RequestKind::Create | RequestKind::LateCreate => {
            answer.id().map_or(Response::NotYet, |id| Response::Done(Some(id)))
        }
        _ if answer.success() == Some(true) => Response::Done(None),
        _ => Response::NotYet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spid_hook::json::Json;

    #[test]
    fn an_answer_is_read_as_a_marketplace_reads_it() {
        let made = |id: &str| Response::Done(Some(id.to_owned()));
        for (what, body, response) in [
            (RequestKind::Create, r#"{"instanceId": "i-1"}"#, made("i-1")),
            (RequestKind::Create, r#"{"instanceId": 7}"#, made("7")),
            (RequestKind::Create, r#"{"instanceId": "0"}"#, Response::NotYet),
            // Without an id, the marketplace has no instance to renew or release.
            (RequestKind::Create, r#"{"success": true}"#, Response::NotYet),
            (RequestKind::LateCreate, r#"{"success": true}"#, Response::NotYet),
            (RequestKind::Renew, r#"{"success": true}"#, Response::Done(None)),
            (RequestKind::Pay, r#"{"success": "true"}"#, Response::Done(None)),
            (RequestKind::Renew, r#"{"success": false, "message": "m"}"#, Response::NotYet),
            (RequestKind::Renew, r#"{"instanceId": "i-1"}"#, Response::NotYet),
            (RequestKind::Renew, r#"{"instanceId": "i-1", "success": false}"#, Response::NotYet),
            (RequestKind::Release, "<html>", Response::NotYet),
        ] {
            let json = Json::read(body.as_bytes()).ok();
            let answer =
                Answer { status: 200, content_type: String::new(), location: None, json, is_empty: false };
            assert_eq!(read(what, &answer), response, "{what:?} {body}");
        }
    }

    #[test]
    fn the_ladder_is_the_documented_one() {
        assert_eq!(PAYMENT_LADDER_MINUTES.iter().sum::<u32>(), 518, "8 h 38 min");
    }
}

//! Executor of the market client's jobs: calls of marketplaces' APIs that are owed.
//!
//! Each market has its own bound of attempts at once, beside the bounds of its client. So a marketplace that hangs takes
//! nothing from another one, nor from a hook.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use spid_core::market_api::{ApiCall, Notification, Notifications};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::market_api::client::{CallError, MarketClient};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::public::Routes;
use crate::store::{CallEnd, MarketJob, MarketJobKind, MarketJobs, OwedCall, Store};
use spid_hook::time::Clock;

/// A market, and what is owed to it.
#[derive(Debug, Clone)]
pub struct Market {
    /// Client of its APIs.
    pub client: MarketClient,
    /// Look for notifications that the marketplace has given up sending. `None`: none.
    pub notifications: Option<FailedNotifications>,
}

/// Look for notifications that a marketplace has given up sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedNotifications {
    /// Name of the endpoint that keeps them, as if they had come there.
    pub endpoint: String,
    /// Interval.
    pub every: Duration,
}

/// Subject of the job that fetches the notifications of a market.
const NOTIFICATIONS: &str = "notifications";

/// Wait before the list is read again after something was kept.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

// Results of an attempt, as the metrics count them.
const DONE: &str = "done";
const RETRY: &str = "retry";
const REFUSED: &str = "refused";

/// The executor.
pub struct MarketJobsRunner {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    routes: watch::Receiver<Arc<Routes>>,
    markets: watch::Receiver<Vec<Market>>,
    permits: HashMap<String, Arc<Semaphore>>,
}

impl MarketJobsRunner {
    /// Creates an executor. It finds the endpoint of a market in the routes that are current at each attempt.
    pub fn new(
        store: Store,
        clock: Clock,
        metrics: Metrics,
        routes: watch::Receiver<Arc<Routes>>,
        markets: watch::Receiver<Vec<Market>>,
    ) -> MarketJobsRunner {
        for kind in MarketJobKind::ALL {
            for result in [DONE, RETRY, REFUSED] {
                metrics.announce(Metric::MarketCalls, [kind.as_str(), result]);
            }
        }
        MarketJobsRunner { store, clock, metrics, routes, markets, permits: HashMap::new() }
    }

    /// Runs due jobs until the stop. Attempts that are cut short by it are due again at the next start.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        let mut tick = interval(Duration::from_millis(limits::MARKET_JOB_POLL_MS));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut configured, mut is_start) = (false, true);
        loop {
            tokio::select! {
                // A dropped sender counts as a stop.
                _ = stop.wait_for(|stop| *stop) => break,
                Ok(()) = self.markets.changed() => configured = false,
                Some(_) = running.join_next(), if !running.is_empty() => {}
                _ = tick.tick() => {}
            }
            if !configured {
                configured = self.configure(is_start).await;
            }
            if configured {
                is_start = false;
                self.begin_due(&mut running).await;
            }
        }
        // No one waits for these calls, so they are cut short and made again.
        running.shutdown().await;
    }

    /// Keeps a recurring job for everything that is configured. `false`: the store could not be written.
    async fn configure(&mut self, is_start: bool) -> bool {
        let markets = self.markets.borrow_and_update().clone();
        let mut recurring = Vec::new();
        for market in &markets {
            if market.notifications.is_some() {
                let Ok(id) = self.store.new_id(self.clock.now()) else { return false };
                recurring.push(OwedCall {
                    id,
                    kind: MarketJobKind::NotificationFetch,
                    market: market.client.name().to_owned(),
                    about: NOTIFICATIONS.to_owned(),
                    held: None,
                });
            }
        }
        let known = self.store.reader().market_jobs(MarketJobs::AllLive);
        // Without a market there is nothing to write, unless an earlier configuration has left something.
        if recurring.is_empty() && known.is_ok_and(|known| known.is_empty()) {
            return true;
        }
        let configured = self.store.configure_market_jobs(recurring, is_start).await;
        configured
            .inspect_err(|error| tracing::error!(%error, "the jobs of the markets could not be kept"))
            .is_ok()
    }

    async fn begin_due(&mut self, running: &mut JoinSet<()>) {
        let markets = self.markets.borrow().clone();
        for market in markets {
            let permits = self
                .permits
                .entry(market.client.name().to_owned())
                .or_insert_with(|| Arc::new(Semaphore::new(limits::MARKET_JOBS_RUNNING_MAX_COUNT)));
            for kind in MarketJobKind::ALL {
                let free = permits.available_permits();
                let leased = self.store.lease_market_jobs(market.client.name(), kind, free).await;
                let leased = leased.unwrap_or_else(|error| {
                    tracing::error!(%error, market = market.client.name(), "due jobs of the market could not be leased");
                    Vec::new()
                });
                for job in leased {
                    // There are as many permits as jobs were leased: only this loop takes them.
                    let Ok(permit) = permits.clone().try_acquire_owned() else { break };
                    let attempt = Attempt {
                        store: self.store.clone(),
                        clock: self.clock.clone(),
                        metrics: self.metrics.clone(),
                        routes: self.routes.clone(),
                        market: market.clone(),
                        job,
                    };
                    running.spawn(attempt.run(permit));
                }
            }
        }
    }
}

/// One attempt at a job.
struct Attempt {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    routes: watch::Receiver<Arc<Routes>>,
    market: Market,
    job: MarketJob,
}

impl Attempt {
    async fn run(self, permit: OwnedSemaphorePermit) {
        let mut found = Vec::new();
        let end = match self.job.kind {
            MarketJobKind::NotificationFetch => self.fetch(&mut found).await,
            MarketJobKind::NotificationConfirm => self.confirm().await,
        };
        self.log(&end);
        if let Some(result) = result(&end) {
            self.metrics.count(Metric::MarketCalls, [self.job.kind.as_str(), result]);
        }
        // The end must be kept: without it the call would be made again after the lease.
        while let Err(error) = self.store.finish_market_job(&self.job, end.clone(), found.clone()).await {
            tracing::error!(%error, job = %self.job.id, "the end of a call of the market could not be kept");
            sleep(Duration::from_millis(limits::MARKET_JOB_POLL_MS)).await;
        }
        drop(permit);
    }

    fn log(&self, end: &CallEnd) {
        let (job, kind, market) = (self.job.id, self.job.kind.as_str(), self.market.client.name());
        match end {
            CallEnd::Done { note: Some(note), .. } => {
                tracing::info!(%job, kind, market, %note, "call of the market done");
            }
            CallEnd::Done { note: None, .. } | CallEnd::GivenBack => {
                tracing::debug!(%job, kind, market, "call of the market done");
            }
            CallEnd::Retry { error, .. } => {
                tracing::warn!(%job, kind, market, %error, "call of the market failed; it is tried again");
            }
            CallEnd::Refused { error } => {
                tracing::error!(%job, kind, market, %error, "the market refuses the call");
            }
        }
    }

    /// Keeps the notifications on all pages. Each that is kept is owed a confirmation, in the commit that ends this
    /// attempt. One that cannot be kept is owed one, too, but a person must decide about it first.
    async fn fetch(&self, found: &mut Vec<OwedCall>) -> CallEnd {
        let Some(options) = &self.market.notifications else { return CallEnd::GivenBack };
        let (mut seen, mut total) = (0, 0);
        for number in 1..=limits::FAILED_NOTIFICATIONS_PAGES_MAX_COUNT {
            let page = match self.page(number).await {
                Ok(page) => page,
                Err(end) => return end,
            };
            if let Err(error) = self.keep_page(options, &page, found).await {
                // What was kept before is confirmed; the rest is fetched again.
                return CallEnd::Retry { error, after: None };
            }
            let count = page.list.len() + page.unreadable.len();
            (seen, total) = (seen + count as u64, page.total);
            if count == 0 || seen >= total {
                break;
            }
        }
        let kept = found.iter().filter(|call| call.held.is_none()).count();
        // Confirmed notifications leave the list while it is read, so a later page may have been missed.
        let again = if kept > 0 { LOOK_AGAIN.min(options.every) } else { options.every };
        let note = (total > 0).then(|| format!("{total} on the list, {kept} kept now"));
        CallEnd::Done { again, note }
    }

    async fn page(&self, number: u32) -> Result<Notifications, CallEnd> {
        let size = limits::FAILED_NOTIFICATIONS_PAGE_COUNT;
        let answer = self.market.client.call(&ApiCall::describe_failed_notifications(number, size)).await;
        let answer = answer.map_err(|error| failed(&error))?;
        Notifications::read(&answer).map_err(|error| CallEnd::Refused { error: error.to_string() })
    }

    async fn keep_page(
        &self,
        options: &FailedNotifications,
        page: &Notifications,
        found: &mut Vec<OwedCall>,
    ) -> Result<(), String> {
        for notification in &page.list {
            if self.is_owed(&notification.id)? {
                continue;
            }
            let held = match self.keep(options, notification).await {
                Ok(()) => None,
                Err(Fault::Left(reason)) => Some(left(&notification.action, reason)),
                Err(Fault::Later(error)) => return Err(error),
            };
            found.push(self.confirmation(&notification.id, held)?);
        }
        for id in &page.unreadable {
            if !self.is_owed(id)? {
                found.push(self.confirmation(id, Some(left("?", "its message is malformed")))?);
            }
        }
        Ok(())
    }

    /// Returns true if the confirmation of this notification is owed already.
    fn is_owed(&self, id: &str) -> Result<bool, String> {
        let kind = MarketJobKind::NotificationConfirm;
        let owed = self.store.reader().market_jobs(MarketJobs::Live(kind, self.market.client.name(), id));
        owed.map(|owed| !owed.is_empty()).map_err(|error| error.to_string())
    }

    fn confirmation(&self, id: &str, held: Option<String>) -> Result<OwedCall, String> {
        if let Some(reason) = &held {
            let market = self.market.client.name();
            tracing::warn!(id, market, reason, "a failed notification is left at the marketplace");
        }
        Ok(OwedCall {
            id: self.store.new_id(self.clock.now()).map_err(|error| error.to_string())?,
            kind: MarketJobKind::NotificationConfirm,
            market: self.market.client.name().to_owned(),
            about: id.to_owned(),
            held,
        })
    }

    /// Keeps one notification as if it had come to the endpoint.
    async fn keep(&self, options: &FailedNotifications, notification: &Notification) -> Result<(), Fault> {
        let routes = self.routes.borrow().clone();
        let mut endpoints = routes.endpoints.values();
        match endpoints.find(|endpoint| *endpoint.name == *options.endpoint) {
            Some(endpoint) => routes.intake.keep_fetched(endpoint, notification).await,
            None => Err(Fault::Later(format!("there is no endpoint `{}`", options.endpoint))),
        }
    }

    async fn confirm(&self) -> CallEnd {
        let call = ApiCall::confirm_notification(&self.job.about);
        match self.market.client.call(&call).await {
            Ok(_) => CallEnd::Done { again: Duration::ZERO, note: None },
            Err(error) => failed(&error),
        }
    }
}

/// Reason why a notification was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// It cannot be kept by itself. It stays at the marketplace for a person.
    Left(&'static str),
    /// It could not be kept now.
    Later(String),
}

/// Returns the result that is counted. An attempt that was given back has none.
const fn result(end: &CallEnd) -> Option<&'static str> {
    match end {
        CallEnd::Done { .. } => Some(DONE),
        CallEnd::Retry { .. } => Some(RETRY),
        CallEnd::Refused { .. } => Some(REFUSED),
        CallEnd::GivenBack => None,
    }
}

/// Returns the reason why a person must decide about a notification.
fn left(action: &str, reason: &str) -> String {
    format!(
        "the failed notification ({action}) was not kept: {reason}; do what it asks for by hand, then retry this job to confirm it"
    )
}

fn failed(error: &CallError) -> CallEnd {
    match error.is_temporary() {
        true => CallEnd::Retry { error: error.to_string(), after: None },
        false => CallEnd::Refused { error: error.to_string() },
    }
}

//! Conformance suite: tests any SPI endpoint that speaks the Alibaba dialect, ours or another one.
//!
//! Otherwise a seller learns only in production what an endpoint does with a `+` in a date, with a request that
//! comes twice at once, or with a create that arrives after the release. A marketplace does not offer such tests.
//! This suite runs all of them in seconds, from the outside, with only the URL and the key. It tests only what an
//! answer shows.
//!
//! * `cases` is the table. Every case has a stable id, a [`Level`], a rule and the page that the rule comes
//!   from.
//! * [`Suite::judge`] buys instances under order numbers that were never used before, runs case by case, and
//!   releases every instance. So it can be run again and again.
//! * [`Judgement`] is the result of a run, and [`report`] writes documents from it.
//!
//! An SPI endpoint with one fault fails one case. A case that depends on another one lists it in `needs`, and is
//! *not judged* if that one failed.
//!
//! An SPI endpoint that computes its token in another way than documented would fail every case. So the suite
//! tries the ways seen in the wild. Then the case about the token fails, and all other cases use the token that
//! the endpoint expects.

mod cases;
mod recipe;
pub mod report;
mod trial;

use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::net::{Client, ClientOptions, Url};
use crate::observe::limits;
use spid_core::dialect::Options;
use spid_core::signature::Keys;
use spid_hook::id::Id;
use spid_hook::time::Clock;

pub use cases::cases;
use trial::{Run, Trial};

/// Importance of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Required by the vendor's pages. Without it orders are lost, created twice, or forged.
    Must,
    /// Follows from the pages, or one of the two sites needs it. Without it some orders go wrong.
    Should,
    /// Requests of an attacker or a broken client, which no page describes.
    Hardening,
}

impl Level {
    /// All levels, the most important first.
    pub const ALL: [Level; 3] = [Level::Must, Level::Should, Level::Hardening];

    /// Word in reports and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Must => "must",
            Level::Should => "should",
            Level::Hardening => "hardening",
        }
    }

    /// Returns the level with this word.
    pub fn from_word(word: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.as_str() == word)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Subject of a case.
/// The first five are the questions of the vendor's self-test of a product
/// (help.aliyun.com/zh/marketplace/self-test-saas-commodities).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// Purchase.
    Purchase,
    /// Activation: from purchased to usable.
    Activation,
    /// Single sign-on: from the buyer's console into the application.
    SignOn,
    /// Information that the buyer's console shows about the application.
    Information,
    /// Renewal.
    Renewal,
    /// All other changes of an instance: upgrade, expiry, release.
    Life,
    /// Token.
    Signature,
    /// Requests that no honest client sends.
    Robustness,
}

impl Aspect {
    /// Questions of the self-test, in its order.
    pub const SELF_TEST: [Aspect; 5] =
        [Aspect::Purchase, Aspect::Activation, Aspect::SignOn, Aspect::Information, Aspect::Renewal];
    /// All aspects.
    pub const ALL: [Aspect; 8] = [
        Aspect::Purchase,
        Aspect::Activation,
        Aspect::SignOn,
        Aspect::Information,
        Aspect::Renewal,
        Aspect::Life,
        Aspect::Signature,
        Aspect::Robustness,
    ];

    /// Heading in reports.
    pub const fn title(self) -> &'static str {
        match self {
            Aspect::Purchase => "Purchase",
            Aspect::Activation => "Activation",
            Aspect::SignOn => "Single sign-on",
            Aspect::Information => "Application information",
            Aspect::Renewal => "Renewal",
            Aspect::Life => "Upgrade, expiry, release",
            Aspect::Signature => "Token",
            Aspect::Robustness => "Forged and broken requests",
        }
    }
}

/// A test case for an SPI endpoint.
pub struct Case {
    /// Permanent id: reports and scripts refer to it.
    pub id: &'static str,
    /// Importance.
    pub level: Level,
    /// Subject.
    pub aspect: Aspect,
    /// Rule, in one sentence.
    pub rule: &'static str,
    /// Page that the rule comes from. For [`Level::Hardening`], the page that does not mention it.
    pub source: &'static str,
    /// Cases that must pass before this one says anything.
    needs: &'static [&'static str],
    judge: cases::Judge,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("id", &self.id).field("level", &self.level).finish_non_exhaustive()
    }
}

/// Result of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The rule holds.
    Passed,
    /// The rule does not hold.
    Failed,
    /// A case that this one needs has failed.
    NotJudged,
}

impl Verdict {
    /// Word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::NotJudged => "not judged",
        }
    }
}

/// A request and its answer, safe to show: without tokens, passwords and license keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// Description of the request, in a few words.
    pub what: String,
    /// Method.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// Body; empty when there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// HTTP status of the answer; `None` when there was no answer.
    pub status: Option<u16>,
    /// Body of the answer, or the reason why there is none.
    pub answer: String,
    /// Duration, in milliseconds.
    pub duration_ms: u64,
}

/// A case and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// Id of the case.
    pub id: &'static str,
    /// Importance.
    pub level: Level,
    /// Subject.
    pub aspect: Aspect,
    /// Rule.
    pub rule: &'static str,
    /// Page that the rule comes from.
    pub source: &'static str,
    /// Result.
    pub verdict: Verdict,
    /// Finding, in one sentence.
    pub said: String,
    /// Requests and answers. If there are very many, only the first and the last ones.
    pub exchanges: Vec<Exchange>,
    /// Number of exchanges that are left out.
    pub left_out: u32,
    /// Duration, in milliseconds.
    pub duration_ms: u64,
}

/// Result of a whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Judgement {
    /// Version of spid that ran the suite.
    pub spid: &'static str,
    /// URL of the SPI endpoint under test, without its query.
    pub receiver: String,
    /// Start time.
    pub began_at: Timestamp,
    /// Highest level that was tested.
    pub level: Level,
    /// True if the run was not stopped, and every selected case passed.
    pub passed: bool,
    /// True if the run was stopped before its end. The cases after that point are missing in `cases`.
    pub stopped: bool,
    /// Cases, in the order of the table.
    pub cases: Vec<Judged>,
    /// Ids of instances that were created and could not be released. An operator must release them.
    pub left_behind: Vec<String>,
}

impl Judgement {
    /// Returns the number of cases with this result.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cases.iter().filter(|case| case.verdict == verdict).count()
    }

    /// Returns the ids of the cases with this result.
    pub fn ids(&self, verdict: Verdict) -> Vec<&'static str> {
        self.cases.iter().filter(|case| case.verdict == verdict).map(|case| case.id).collect()
    }
}

/// Reason why nothing could be tested.
#[derive(Debug, thiserror::Error)]
pub enum Unjudged {
    /// Unknown case id.
    #[error("unknown case `{0}`; the cases are: {known}", known = known())]
    NoSuchCase(String),
    /// No answer at all to the first request.
    #[error("no answer from {receiver}: {cause}")]
    NoAnswer {
        /// URL of the request.
        receiver: String,
        /// Cause.
        cause: String,
    },
    /// No randomness for new order numbers.
    #[error("the system's random generator failed: {0}")]
    NoRandomness(#[from] getrandom::Error),
}

fn known() -> String {
    cases().iter().map(|case| case.id).collect::<Vec<_>>().join(", ")
}

/// Observer of a run.
pub trait Watcher: Send {
    /// Called before a case starts.
    fn begins(&mut self, case: &Case) {
        let _ = case;
    }

    /// Called after a case has ended.
    fn judged(&mut self, case: &Judged) {
        let _ = case;
    }
}

/// Observer that does nothing.
impl Watcher for () {}

/// Goods that the simulated buyer buys.
#[derive(Debug, Clone)]
pub struct Goods {
    /// `productCode`.
    pub product: String,
    /// `skuId`.
    pub sku: String,
    /// `skuId` that an upgrade changes to.
    pub upgrade: String,
    /// `aliUid`.
    pub buyer: String,
}

impl Default for Goods {
    fn default() -> Goods {
        Goods {
            product: "cmgj000001".to_owned(),
            sku: "yuncode0000100001".to_owned(),
            upgrade: "yuncode0000100002".to_owned(),
            buyer: "1234567890123456".to_owned(),
        }
    }
}

/// Options for a run: the SPI endpoint under test, and the limits.
#[derive(Debug, Clone)]
pub struct Suite {
    /// URL of the SPI endpoint, as the marketplace would have it.
    pub url: Url,
    /// Keys that the SPI endpoint accepts; the first one signs.
    pub keys: Keys,
    /// Base URL of sign-on links.
    /// `None` uses `appInfo.authUrl` of the answer to a purchase. If the answer has none, or it is on another
    /// host, the SPI endpoint itself is used.
    pub sign_on: Option<Url>,
    /// Highest level to test.
    pub level: Level,
    /// Ids of the only cases to run, with the cases that they need; empty for all.
    pub only: BTreeSet<String>,
    /// Goods to buy.
    pub goods: Goods,
    /// Time zone of dates without a zone.
    pub zone: TimeZone,
    /// Time limit for every answer.
    pub within: Duration,
    /// Interval between repetitions after a "call again" answer.
    pub every: Duration,
    /// Maximum number of times that one request is sent, the first time included.
    pub limit: u32,
    /// Clock.
    pub clock: Clock,
}

impl Suite {
    /// Creates a suite with all cases and the default limits.
    pub fn new(url: Url, keys: Keys) -> Suite {
        Suite {
            url,
            keys,
            sign_on: None,
            level: Level::Hardening,
            only: BTreeSet::new(),
            goods: Goods::default(),
            zone: Options::default().timezone,
            within: Duration::from_millis(limits::CONFORMANCE_ANSWER_MS),
            every: Duration::from_millis(limits::CONFORMANCE_RETRY_MS),
            limit: limits::CONFORMANCE_RETRIES_COUNT,
            clock: Clock::System,
        }
    }

    /// Returns the selected cases: those of the level or of the list, and the cases that they need.
    ///
    /// # Errors
    /// [`Unjudged::NoSuchCase`], if an id is unknown.
    pub fn selected(&self) -> Result<Vec<&'static Case>, Unjudged> {
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        for id in &self.only {
            let case = find(id).ok_or_else(|| Unjudged::NoSuchCase(id.clone()))?;
            include(case, &mut wanted);
        }
        // A list of ids overrides the level.
        let is_wanted = |case: &&Case| {
            if self.only.is_empty() { case.level <= self.level } else { wanted.contains(case.id) }
        };
        Ok(cases().iter().filter(is_wanted).collect())
    }

    /// Tests the SPI endpoint.
    ///
    /// # Errors
    /// [`Unjudged`], if there is no endpoint to test. An endpoint that answers nonsense is tested.
    pub async fn judge(&self, watcher: &mut dyn Watcher) -> Result<Judgement, Unjudged> {
        self.judge_until(std::future::pending(), watcher).await
    }

    /// Tests the SPI endpoint until `stop`. Purchased instances are released in any case.
    ///
    /// # Errors
    /// See [`Suite::judge`].
    pub async fn judge_until(
        &self,
        stop: impl Future<Output = ()>,
        watcher: &mut dyn Watcher,
    ) -> Result<Judgement, Unjudged> {
        let selected = self.selected()?;
        let began_at = self.clock.now();
        let orders = trial::Orders::from(Id::new(began_at)?);
        let client = self.client();
        let run = Arc::new(Run { suite: self.clone(), client, orders, slowest: Mutex::default() });
        let (mut stop, mut stopped) = (pin!(stop), false);
        // Before the first case: find out how the endpoint computes its token.
        let mut first = trial::Learning::new(&run);
        tokio::select! {
            biased;
            () = &mut stop => stopped = true,
            order_details = first.learn() => order_details?,
        }
        let (learnt, mut made) = first.end();
        let learnt = Arc::new(learnt);
        let mut judged: Vec<Judged> = Vec::new();
        for case in selected.into_iter().filter(|_| !stopped).collect::<Vec<_>>() {
            watcher.begins(case);
            let mut trial = Trial::new(run.clone(), learnt.clone());
            let one = tokio::select! {
                // Check `stop` first, so that no further case starts after it.
                biased;
                () = &mut stop => None,
                one = self.one(&mut trial, case, &judged) => Some(one),
            };
            // A case that was stopped halfway may have created instances too.
            made.append(&mut trial.made);
            let Some(one) = one else {
                stopped = true;
                break;
            };
            watcher.judged(&one);
            judged.push(one);
        }
        // Release the instances after a stop too: none may remain at a live endpoint.
        let left_behind = trial::give_back(&run, &learnt, made).await;
        Ok(Judgement {
            spid: env!("CARGO_PKG_VERSION"),
            receiver: self.url.to_string(),
            began_at,
            level: self.level,
            passed: !stopped && judged.iter().all(|case| case.verdict == Verdict::Passed),
            stopped,
            cases: judged,
            left_behind,
        })
    }

    async fn one(&self, trial: &mut Trial, case: &'static Case, before: &[Judged]) -> Judged {
        let begin = self.clock.now();
        let (verdict, said) = match unmet(case, before) {
            Some(unmet) => (Verdict::NotJudged, format!("needs `{unmet}`, which did not pass")),
            // An `Err` is the finding of a failed case, not a fault of the suite.
            None => match (case.judge)(trial).await {
                Ok(said) => (Verdict::Passed, said),
                Err(said) => (Verdict::Failed, said),
            },
        };
        let duration_ms = self.clock.now().as_millisecond().saturating_sub(begin.as_millisecond());
        Judged {
            id: case.id,
            level: case.level,
            aspect: case.aspect,
            rule: case.rule,
            source: case.source,
            verdict,
            said,
            exchanges: std::mem::take(&mut trial.exchanges),
            left_out: trial.left_out,
            duration_ms: u64::try_from(duration_ms).unwrap_or_default(),
        }
    }

    /// Creates a client that waits longer than the time limit, so that a late answer is measured as late.
    fn client(&self) -> Client {
        let connect = Duration::from_millis(limits::HEADERS_READ_MS);
        let total = connect + self.within.saturating_mul(2) + Duration::from_millis(limits::BODY_READ_MS);
        Client::new(ClientOptions { connect, total, ..ClientOptions::default() })
    }
}

fn find(id: &str) -> Option<&'static Case> {
    cases().iter().find(|case| case.id == id)
}

fn include(case: &'static Case, wanted: &mut BTreeSet<&str>) {
    if wanted.insert(case.id) {
        case.needs.iter().filter_map(|id| find(id)).for_each(|needed| include(needed, wanted));
    }
}

/// Returns the first needed case that has run and not passed. A needed case that was not selected is ignored.
fn unmet(case: &Case, before: &[Judged]) -> Option<&'static str> {
    let failed = |id: &&&'static str| before.iter().any(|it| it.id == **id && it.verdict != Verdict::Passed);
    case.needs.iter().find(failed).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use spid_hook::Secret;

    fn suite() -> Suite {
        let keys = Keys::single(Secret::new("fake-key")).unwrap();
        Suite::new("http://127.0.0.1:9/spi".parse().unwrap(), keys)
    }

    #[test]
    fn the_table_is_sound() {
        let mut seen = BTreeSet::new();
        for case in cases() {
            for needed in case.needs {
                assert!(seen.contains(needed), "{} needs `{needed}`, which is not judged before it", case.id);
                let needed = find(needed).unwrap();
                assert!(needed.level <= case.level, "{} needs {}, a lesser level", case.id, needed.id);
            }
            assert!(seen.insert(case.id), "{} is there twice", case.id);
            assert!(case.rule.ends_with('.') && case.source.contains('.'), "{}", case.id);
            assert!(case.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{}", case.id);
        }
    }

    #[test]
    fn a_case_brings_what_it_needs() {
        let mut suite = suite();
        suite.level = Level::Must;
        let must = suite.selected().unwrap();
        assert!(must.iter().all(|case| case.level == Level::Must) && must.len() > 10);
        suite.only = BTreeSet::from(["token-short".to_owned()]);
        let ids: Vec<&str> = suite.selected().unwrap().iter().map(|case| case.id).collect();
        assert_eq!(ids.last(), Some(&"token-short"));
        assert!(ids.contains(&"create") && ids.contains(&"wrong-token"), "{ids:?}");
        suite.only = BTreeSet::from(["nonsense".to_owned()]);
        assert!(matches!(suite.selected(), Err(Unjudged::NoSuchCase(id)) if id == "nonsense"));
    }

    #[tokio::test]
    async fn stop_before_the_first_purchase_ends_the_run() {
        // No endpoint listens there, so any request would end the run with an error.
        let judged = suite().judge_until(std::future::ready(()), &mut ()).await.unwrap();
        assert!(judged.stopped && !judged.passed && judged.cases.is_empty());
    }
}

//! Conformance suite: tests any SPI endpoint that speaks the Alibaba dialect, ours or another one.
//!
//! Otherwise a seller learns only in production what an endpoint does with a `+` in a date, with a request that
//! comes twice at once, or with a create that arrives after the release. A marketplace does not offer such tests.
//! This suite runs all of them in seconds, from the outside, with only the URL and the key. It tests only what an
//! answer shows.
//!
//! * `cases` is the table. Every case has a stable id, a [`Level`], a rule and the page that the rule comes
//!   from.
//! * [`Suite::run`] buys instances under order numbers that were never used before, runs case by case, and
//!   releases every instance. So it can be run again and again.
//! * [`SelfTestReport`] is the result of a run, and [`report`] writes documents from it. It contains each [`Finding`] as
//!   data.
//!
//! An SPI endpoint with one fault fails one case. A case that depends on another one lists it in `needs`, and is
//! *not judged* if that one failed.
//!
//! An SPI endpoint that computes its token in another way than documented would fail every case. So the suite
//! tries the ways seen in the wild. Then the case about the token fails, and all other cases use the token that
//! the endpoint expects.

mod cases;
mod finding;
pub mod report;
mod test_run;
mod token_method;

use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::lab::exchange::Exchange;
use crate::lab::report::Verdict;
use crate::net::Url;
use crate::observe::limits;
use spid_core::dialect::Options;
use spid_core::document::did_you_mean;
use spid_core::signature::Keys;
use spid_hook::time::Clock;

pub use cases::cases;
pub use finding::{AnswerSummary, Finding};
pub use token_method::TokenMethod;

use cases::Check;
use test_run::{Discovery, SuiteRun, TestRun};

spid_hook::words! {
    /// Importance of a case.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum Level {
        /// Required by the vendor's pages. Without it orders are lost, created twice, or forged.
        Must = "must",
        /// Follows from the pages, or one of the two sites needs it. Without it some orders go wrong.
        Should = "should",
        /// Requests of an attacker or a broken client, which no page describes.
        Hardening = "hardening",
    }
}

spid_hook::words! {
    /// Subject of a case. Its word is the heading in reports.
    ///
    /// The first five are the questions of the vendor's self-test of a product
    /// (help.aliyun.com/zh/marketplace/self-test-saas-commodities).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum Aspect {
        /// Purchase.
        Purchase = "Purchase",
        /// Activation: from purchased to usable.
        Activation = "Activation",
        /// Single sign-on: from the buyer's console into the application.
        SignOn = "Single sign-on",
        /// Information that the buyer's console shows about the application.
        Information = "Application information",
        /// Renewal.
        Renewal = "Renewal",
        /// All other changes of an instance: upgrade, expiry, release.
        #[serde(rename = "life")]
        Lifecycle = "Upgrade, expiry, release",
        /// Token.
        Signature = "Token",
        /// Requests that no honest client sends.
        Robustness = "Forged and broken requests",
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
    check: Check,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("id", &self.id).field("level", &self.level).finish_non_exhaustive()
    }
}

/// A case and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaseReport {
    /// Id of the case.
    pub id: &'static str,
    /// Level of the case: must, should or hardening.
    pub level: Level,
    /// Subject.
    pub aspect: Aspect,
    /// Rule that the case tests.
    pub rule: &'static str,
    /// Page that the rule comes from.
    pub source: &'static str,
    /// Result of the case.
    pub verdict: Verdict,
    /// Finding. In JSON it is a sentence in English.
    #[serde(rename = "said")]
    pub finding: Finding,
    /// Requests and answers. A long list keeps only the first and the last ones.
    pub exchanges: Vec<Exchange>,
    /// Number of exchanges that are left out.
    pub left_out: u32,
    /// Duration, in milliseconds.
    pub duration_ms: u64,
}

/// Result of a whole run.
#[derive(Debug, Clone, Serialize)]
pub struct SelfTestReport {
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
    pub cases: Vec<CaseReport>,
    /// Ids of instances that were created and could not be released. An operator must release them.
    pub left_behind: Vec<String>,
}

impl SelfTestReport {
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
pub enum SuiteError {
    /// Unknown case id.
    #[error("unknown case `{0}`{near}; the cases are: {known}", near = did_you_mean(.0, case_ids()), known = case_ids().collect::<Vec<_>>().join(", "))]
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

fn case_ids() -> impl Iterator<Item = &'static str> {
    cases().iter().map(|case| case.id)
}

/// Observer of a run.
pub trait SuiteObserver: Send {
    /// Called before a case starts.
    fn case_started(&mut self, case: &Case) {
        let _ = case;
    }

    /// Called after a case has ended.
    fn case_ended(&mut self, case: &CaseReport) {
        let _ = case;
    }
}

/// Observer that does nothing.
impl SuiteObserver for () {}

/// Product that the simulated buyer buys, and the buyer.
#[derive(Debug, Clone)]
pub struct TestProduct {
    /// `productCode`.
    pub code: String,
    /// `skuId`.
    pub sku: String,
    /// `skuId` that an upgrade changes to.
    pub upgrade_sku: String,
    /// `aliUid`.
    pub buyer: String,
}

impl Default for TestProduct {
    fn default() -> TestProduct {
        TestProduct {
            code: "cmgj000001".to_owned(),
            sku: "yuncode0000100001".to_owned(),
            upgrade_sku: "yuncode0000100002".to_owned(),
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
    /// Product to buy.
    pub product: TestProduct,
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
            product: TestProduct::default(),
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
    /// [`SuiteError::NoSuchCase`], if an id is unknown.
    pub fn selected(&self) -> Result<Vec<&'static Case>, SuiteError> {
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        for id in &self.only {
            let case = find(id).ok_or_else(|| SuiteError::NoSuchCase(id.clone()))?;
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
    /// [`SuiteError`], if there is no endpoint to test. An endpoint that answers nonsense is tested.
    pub async fn run(&self, observer: &mut dyn SuiteObserver) -> Result<SelfTestReport, SuiteError> {
        self.run_until(std::future::pending(), observer).await
    }

    /// Tests the SPI endpoint until `stop`. Purchased instances are released in any case.
    ///
    /// # Errors
    /// See [`Suite::run`].
    pub async fn run_until(
        &self,
        stop: impl Future<Output = ()>,
        observer: &mut dyn SuiteObserver,
    ) -> Result<SelfTestReport, SuiteError> {
        let selected = self.selected()?;
        let began_at = self.clock.now();
        let run = Arc::new(SuiteRun::new(self)?);
        let mut stop = pin!(stop);
        // Before the first case: find out how the endpoint computes its token.
        let mut first = TestRun::new(run.clone(), Arc::default());
        let mut discovery = Discovery::default();
        let found = unless_stopped(stop.as_mut(), first.discover(&mut discovery)).await;
        let mut stopped = found.transpose()?.is_none();
        discovery.exchanges = first.exchanges;
        let (discovery, mut created, mut unanswered) = (Arc::new(discovery), first.created, first.unanswered);
        let mut cases: Vec<CaseReport> = Vec::new();
        for case in selected {
            if stopped {
                break;
            }
            observer.case_started(case);
            let mut test = TestRun::new(run.clone(), discovery.clone());
            let report = unless_stopped(stop.as_mut(), self.run_case(&mut test, case, &cases)).await;
            // A case that was stopped halfway may have created instances too.
            created.append(&mut test.created);
            unanswered.append(&mut test.unanswered);
            stopped = report.is_none();
            if let Some(report) = report {
                observer.case_ended(&report);
                cases.push(report);
            }
        }
        // Release the instances after a stop too: none may remain at a live endpoint.
        let left_behind = TestRun::new(run, discovery).release_all(created, unanswered).await;
        Ok(SelfTestReport {
            spid: env!("CARGO_PKG_VERSION"),
            receiver: self.url.to_string(),
            began_at,
            level: self.level,
            passed: !stopped && cases.iter().all(|case| case.verdict == Verdict::Passed),
            stopped,
            cases,
            left_behind,
        })
    }

    async fn run_case(&self, test: &mut TestRun, case: &'static Case, before: &[CaseReport]) -> CaseReport {
        let begin = self.clock.now();
        let (verdict, finding) = match unmet(case, before) {
            Some(case) => (Verdict::NotJudged, Finding::Needs { case }),
            // An `Err` is the finding of a failed case, not a fault of the suite.
            None => match case.check.run(test).await {
                Ok(finding) => (Verdict::Passed, finding),
                Err(finding) => (Verdict::Failed, finding),
            },
        };
        let duration_ms = self.clock.now().as_millisecond().saturating_sub(begin.as_millisecond());
        CaseReport {
            id: case.id,
            level: case.level,
            aspect: case.aspect,
            rule: case.rule,
            source: case.source,
            verdict,
            finding,
            exchanges: std::mem::take(&mut test.exchanges),
            left_out: test.left_out,
            duration_ms: u64::try_from(duration_ms).unwrap_or_default(),
        }
    }
}

/// Returns the result of the work, or `None` if `stop` comes first. A stop is checked first, so that no work begins
/// after it.
async fn unless_stopped<T>(stop: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stop => None,
        done = work => Some(done),
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
fn unmet(case: &Case, before: &[CaseReport]) -> Option<&'static str> {
    case.needs.iter().find(|id| has_not_passed(before, id)).copied()
}

fn has_not_passed(cases: &[CaseReport], id: &str) -> bool {
    cases.iter().any(|case| case.id == id && case.verdict != Verdict::Passed)
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
        assert!(matches!(suite.selected(), Err(SuiteError::NoSuchCase(id)) if id == "nonsense"));
    }

    #[tokio::test]
    async fn stop_before_the_first_purchase_ends_the_run() {
        // No endpoint listens there, so any request would end the run with an error.
        let report = suite().run_until(std::future::ready(()), &mut ()).await.unwrap();
        assert!(report.stopped && !report.passed && report.cases.is_empty());
    }
}

//! Judging any receiver that speaks the Alibaba dialect: ours, or one written in an afternoon.
//!
//! A seller learns in production what a receiver does with a `+` in a date, with a request that comes
//! twice at once, or with a create that arrives after the release; a marketplace cannot be asked to try.
//! This suite tries all of it in seconds, from the outside, with nothing but the URL and the key: what is
//! not in an answer is not judged.
//!
//! * [`cases`] is the table: every case has a stable id, a [`Level`], a rule and the page it comes from;
//! * [`Suite::judge`] buys instances under order numbers nobody had before, judges case by case, and
//!   gives everything back; so it can be run again and again;
//! * [`Judgement`] is what came of it, [`report`] makes documents of one.
//!
//! A receiver with one fault fails one case. A case that stands on another says so (`needs`) and is *not
//! judged* when that one failed. A receiver that makes its token in another way than documented would
//! fail everything: so the ways seen in the wild are tried, the case that is about the
//! token fails, and the rest is judged with the token the receiver wants.

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

use crate::core::dialect::Options;
use crate::core::signature::Keys;
use crate::hook::clock::{Clock, Id};
use crate::net::{Client, ClientOptions, Url};
use crate::observe::limits;

pub use cases::cases;
use trial::{Run, Trial};

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The vendor's pages say so. Without it orders are lost, made twice, or forged.
    Must,
    /// It follows from the pages, or one of the two sites needs it. Without it some orders go wrong.
    Should,
    /// What an attacker or a broken client may send, which no page speaks of.
    Hardening,
}

impl Level {
    /// Every level, the strictest need first.
    pub const ALL: [Level; 3] = [Level::Must, Level::Should, Level::Hardening];

    /// The word in reports and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Must => "must",
            Level::Should => "should",
            Level::Hardening => "hardening",
        }
    }

    /// The level with this word.
    pub fn from_word(word: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.as_str() == word)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a case is about; the first five are what the vendor's self-test of a product asks
/// (help.aliyun.com/zh/marketplace/self-test-saas-commodities).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// Buying.
    Purchase,
    /// From bought to usable.
    Activation,
    /// From the buyer's console into the application.
    SignOn,
    /// What the buyer's console shows about the application.
    Information,
    /// Renewing.
    Renewal,
    /// The rest of an instance's life.
    Life,
    /// The token.
    Signature,
    /// What nobody sends who means well.
    Robustness,
}

impl Aspect {
    /// What the self-test asks, in its order.
    pub const SELF_TEST: [Aspect; 5] =
        [Aspect::Purchase, Aspect::Activation, Aspect::SignOn, Aspect::Information, Aspect::Renewal];
    /// Every aspect.
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

    /// The heading in reports.
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

/// One thing a receiver is judged by.
pub struct Case {
    /// Its name for ever: reports and scripts refer to it.
    pub id: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What it is about.
    pub aspect: Aspect,
    /// The rule, in a sentence.
    pub rule: &'static str,
    /// The page the rule comes from; for [`Level::Hardening`] the page that is silent.
    pub source: &'static str,
    /// The cases without which it says nothing.
    needs: &'static [&'static str],
    judge: cases::Judge,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("id", &self.id).field("level", &self.level).finish_non_exhaustive()
    }
}

/// What came of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The rule holds.
    Passed,
    /// It does not.
    Failed,
    /// A case it stands on failed.
    NotJudged,
}

impl Verdict {
    /// The word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::NotJudged => "not judged",
        }
    }
}

/// One request and its answer, fit to be shown: no token stands in it, no password, no licence key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// What it was, in a few words.
    pub what: String,
    /// The method.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// The body; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// The HTTP status of the answer; `None` when none came.
    pub status: Option<u16>,
    /// The answer's body, or why there is none.
    pub answer: String,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// A case and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// The case's id.
    pub id: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What it is about.
    pub aspect: Aspect,
    /// The rule.
    pub rule: &'static str,
    /// Where the rule comes from.
    pub source: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found, in a sentence.
    pub said: String,
    /// What was sent and what came back; of very many alike only the first and the last ones.
    pub exchanges: Vec<Exchange>,
    /// How many exchanges are left out.
    pub left_out: u32,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// What came of a whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Judgement {
    /// The version of spid that judged.
    pub spid: &'static str,
    /// Who was judged, without a query.
    pub receiver: String,
    /// When it began.
    pub began_at: Timestamp,
    /// Up to which level.
    pub level: Level,
    /// Whether no case failed and every case was judged.
    pub passed: bool,
    /// Whether it was stopped before its end: the cases behind are not among those judged.
    pub stopped: bool,
    /// The cases, in the order of the table.
    pub cases: Vec<Judged>,
    /// Instances that were made and could not be given back, by their ids: somebody has to.
    pub left_behind: Vec<String>,
}

impl Judgement {
    /// How many cases ended so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cases.iter().filter(|case| case.verdict == verdict).count()
    }

    /// The ids of the cases that ended so.
    pub fn ids(&self, verdict: Verdict) -> Vec<&'static str> {
        self.cases.iter().filter(|case| case.verdict == verdict).map(|case| case.id).collect()
    }
}

/// Why nothing could be judged.
#[derive(Debug, thiserror::Error)]
pub enum Unjudged {
    /// There is no case of this name.
    #[error("there is no case `{0}`; there are: {known}", known = known())]
    NoSuchCase(String),
    /// The first request got no answer at all.
    #[error("{receiver} does not answer: {cause}")]
    Nobody {
        /// Where it was sent.
        receiver: String,
        /// What happened.
        cause: String,
    },
    /// No order number can be made that nobody has.
    #[error("the system's random generator failed: {0}")]
    NoRandomness(#[from] getrandom::Error),
}

fn known() -> String {
    cases().iter().map(|case| case.id).collect::<Vec<_>>().join(", ")
}

/// Watches a run.
pub trait Watcher: Send {
    /// A case begins.
    fn begins(&mut self, case: &Case) {
        let _ = case;
    }

    /// A case has ended.
    fn judged(&mut self, case: &Judged) {
        let _ = case;
    }
}

/// Watches nothing.
impl Watcher for () {}

/// What the pretended buyer buys.
#[derive(Debug, Clone)]
pub struct Goods {
    /// `productCode`.
    pub product: String,
    /// `skuId`.
    pub sku: String,
    /// The `skuId` an upgrade leads to.
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

/// Whom to judge, and how patiently.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The endpoint, as the marketplace would be given it.
    pub url: Url,
    /// The key it is to accept; the first one signs.
    pub keys: Keys,
    /// Where sign-on links lead; `None` for what the answer to a purchase says (`appInfo.authUrl`), or the
    /// endpoint itself where it says nothing or leads to another host.
    pub sign_on: Option<Url>,
    /// Cases up to this level are judged.
    pub level: Level,
    /// Only these cases, and what they need; empty for all.
    pub only: BTreeSet<String>,
    /// What is bought.
    pub goods: Goods,
    /// The zone of dates without one.
    pub zone: TimeZone,
    /// Every answer is due within this time.
    pub within: Duration,
    /// What is answered "call again" is asked again after this time,
    pub every: Duration,
    /// at most so often.
    pub limit: u32,
    /// The time.
    pub clock: Clock,
}

impl Suite {
    /// A suite with everything in it, as patient as a marketplace's buyer.
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

    /// The cases that will be judged: those of the level that were asked for, and what they need.
    ///
    /// # Errors
    /// [`Unjudged::NoSuchCase`].
    pub fn selected(&self) -> Result<Vec<&'static Case>, Unjudged> {
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        for id in &self.only {
            let case = find(id).ok_or_else(|| Unjudged::NoSuchCase(id.clone()))?;
            include(case, &mut wanted);
        }
        let is_wanted = |case: &&Case| {
            if self.only.is_empty() { case.level <= self.level } else { wanted.contains(case.id) }
        };
        Ok(cases().iter().filter(is_wanted).collect())
    }

    /// Judges the receiver.
    ///
    /// # Errors
    /// [`Unjudged`], when there is nobody to judge. A receiver that answers nonsense is judged.
    pub async fn judge(&self, watcher: &mut dyn Watcher) -> Result<Judgement, Unjudged> {
        self.judge_until(std::future::pending(), watcher).await
    }

    /// Judges the receiver until `stop`. Then what was bought is given back all the same.
    ///
    /// # Errors
    /// As [`Suite::judge`].
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
        let (learnt, mut made) = trial::learn(&run).await?;
        let learnt = Arc::new(learnt);
        let mut judged: Vec<Judged> = Vec::new();
        let (mut stop, mut stopped) = (pin!(stop), false);
        for case in selected {
            watcher.begins(case);
            let mut trial = Trial::new(run.clone(), learnt.clone());
            let one = tokio::select! {
                biased;
                () = &mut stop => None,
                one = self.one(&mut trial, case, &judged) => Some(one),
            };
            made.append(&mut trial.made);
            let Some(one) = one else {
                stopped = true;
                break;
            };
            watcher.judged(&one);
            judged.push(one);
        }
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
            Some(unmet) => (Verdict::NotJudged, format!("`{unmet}` did not pass, and this stands on it")),
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

    /// A client that waits longer than an answer may take, so that a late one is seen to be late.
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

/// The first case this one needs that has not passed. One that is not among those judged was not asked for.
fn unmet(case: &Case, before: &[Judged]) -> Option<&'static str> {
    let failed = |id: &&&'static str| before.iter().any(|it| it.id == **id && it.verdict != Verdict::Passed);
    case.needs.iter().find(failed).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::signature::Secret;

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
}

//! Test bench for a hook: makes attempts, and judges their results, their answers, and what the author's probes
//! saw afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::timeout;

use super::attempt::{self, Cut, End, Interleaving, Ran};
use super::order::{Job, Market, Order, id_of};
use super::{AttemptReport, FindingKind, Measured, Observer, Options, Probes, Report};
use crate::AttemptResult;
use crate::callback::{Action, Answer, Field, Fields};
use crate::id::split_mix;
use crate::instance::fault_of_id;
use crate::limits;
use crate::{AnyHook, Call, HookError};

/// Number of attempts that miss the deadline before the test is given up, because each costs a whole deadline.
const HUNG_MAX_COUNT: u32 = 2;

/// History before an attempt with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// No earlier attempt.
    Nothing,
    /// An answer that was lost.
    Answer,
    /// An attempt that was cut short.
    Cut(Cut),
    /// Several attempts at once.
    AtOnce,
    /// No earlier attempt, but several at the same time as this one.
    Among,
}

impl After {
    /// Returns the beginning of a sentence about the hook at that attempt.
    fn who(self) -> String {
        match self {
            After::Nothing => "the hook".to_owned(),
            After::Answer => "called again with the same idempotency key, the hook".to_owned(),
            After::Cut(cut) => format!("called again after an attempt was cut short {cut}, the hook"),
            After::AtOnce => "called again after several attempts at once, the hook".to_owned(),
            After::Among => "called several times at once with one idempotency key, the hook".to_owned(),
        }
    }

    /// Returns the remedy.
    fn advice(self) -> &'static str {
        match self {
            After::Nothing => "return a retry error instead",
            After::Answer => {
                "store the answer under the idempotency key before returning it, and return the stored answer to a repeat"
            }
            After::Cut(_) => {
                "the next attempt must find the remains of an earlier one and continue from there"
            }
            After::AtOnce | After::Among => {
                "let one attempt win, with a unique index or a lock on the idempotency key, and return its answer to the others"
            }
        }
    }
}

/// Result of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The work is done.
    Done(Answer),
    /// The work is accepted, and a person completes it later.
    Pending,
    /// The work is not done and will not be.
    Not,
}

impl Outcome {
    pub(super) fn answer(self) -> Option<Answer> {
        match self {
            Outcome::Done(answer) => Some(answer),
            _ => None,
        }
    }
}

/// Results of the author's probes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) count: Option<usize>,
    pub(super) state: Option<String>,
}

pub(super) struct Bench<'a> {
    hook: AnyHook,
    pub(super) options: Options,
    probes: Probes,
    pub(super) market: Market,
    observer: &'a mut dyn Observer,
    pub(super) report: Report,
    chance: u64,
    /// Every name of an instance, with the order it belongs to.
    names: BTreeMap<String, String>,
    /// Number of things that one create makes.
    usual: Option<usize>,
    pub(super) measured: Measured,
    /// Actions that the test leaves out or the hook does not support.
    left_out: Vec<Action>,
    /// Actions that succeeded at least once.
    done: BTreeSet<Action>,
    hung: u32,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        hook: AnyHook,
        options: Options,
        probes: Probes,
        market: Market,
        observer: &'a mut dyn Observer,
    ) -> Bench<'a> {
        Bench {
            hook,
            probes,
            market,
            observer,
            report: Report::empty(options.seed),
            chance: options.seed,
            names: BTreeMap::new(),
            usual: None,
            measured: Measured::new(),
            left_out: options.without.clone(),
            done: BTreeSet::new(),
            hung: 0,
            options,
        }
    }

    pub(super) fn begin(&mut self, title: &'static str) {
        self.report.begin(title);
        self.observer.section(title);
    }

    /// Returns true if further attempts cannot find anything.
    pub(super) fn is_hopeless(&self) -> bool {
        self.hung >= HUNG_MAX_COUNT
    }

    pub(super) fn draw(&mut self) -> u64 {
        split_mix(&mut self.chance)
    }

    pub(super) fn does(&self, action: Action) -> bool {
        !self.left_out.contains(&action)
    }

    /// Creates a new order.
    pub(super) fn order(&mut self, trial: bool) -> Order {
        let order = self.market.order(trial);
        self.names.insert(order.name.clone(), order.name.clone());
        order
    }

    fn fault(&mut self, kind: FindingKind, job: &Job, text: &str) {
        let sentence = format!("`{}`: {text}.", job.step);
        self.report.find(true, kind, job.callback.action, sentence);
    }

    fn remark(&mut self, kind: FindingKind, job: &Job, text: &str) {
        let sentence = format!("`{}`: {text}.", job.step);
        self.report.find(false, kind, job.callback.action, sentence);
    }

    // Attempts.

    fn call(&mut self, job: &mut Job) -> Option<Call> {
        // Every job that needs an instance has one, so this never fails.
        self.market.call(job, self.options.timeout).ok()
    }

    /// Records an attempt: in the report, for the give-up limit, and for the observer.
    fn ran(&mut self, step: &str, call: &Call, ran: &Ran) {
        self.report.count(1);
        // Count lost deadlines, so that a hook that always hangs does not take hours.
        if matches!(ran.end, End::TooLong | End::Blocks) {
            self.hung += 1;
        }
        self.observer.attempted(&AttemptReport { step, call, end: words(&ran.end) });
    }

    /// Makes one attempt.
    pub(super) async fn attempt(&mut self, job: &mut Job, cut: Option<Cut>) -> Option<Ran> {
        let call = self.call(job)?;
        let ran = attempt::run(&self.hook, call.clone(), self.options.timeout, cut).await;
        self.ran(&job.step, &call, &ran);
        Some(ran)
    }

    /// Makes attempts at once: one for each of these jobs.
    pub(super) async fn together(&mut self, jobs: &mut [Job], interleaving: Interleaving) -> Vec<End> {
        let calls: Vec<Call> = jobs.iter_mut().filter_map(|job| self.call(job)).collect();
        let all = attempt::at_once(&self.hook, calls.clone(), self.options.timeout, interleaving).await;
        for ((job, call), ran) in jobs.iter().zip(&calls).zip(&all) {
            self.ran(&job.step, call, ran);
        }
        all.into_iter().map(|ran| ran.end).collect()
    }

    /// Makes several attempts at once at one job.
    pub(super) async fn crowd(&mut self, job: &mut Job, interleaving: Interleaving) -> Vec<Answer> {
        let mut jobs: Vec<Job> = Vec::new();
        for index in 0..self.options.at_once {
            // Every attempt gets its own number, as from the daemon.
            let attempts = job.attempts + u32::try_from(index).unwrap_or(u32::MAX);
            let mut one = job.clone();
            one.attempts = attempts;
            jobs.push(one);
        }
        let ends = self.together(&mut jobs, interleaving).await;
        job.attempts = jobs.last().map_or(job.attempts, |last| last.attempts);
        let mut answers = Vec::new();
        for end in ends {
            answers.extend(self.ended(job, end, After::Among).ok().and_then(Outcome::answer));
        }
        answers
    }

    /// Makes attempts until one succeeds, up to a limit, and reports the error if none does.
    pub(super) async fn finish(&mut self, job: &mut Job, after: After) -> Outcome {
        let mut last = String::new();
        for tries in 1..=limits::HOOK_TEST_TRIES_COUNT {
            let Some(ran) = self.attempt(job, None).await else { return Outcome::Not };
            // Only an undisturbed attempt shows how often the hook waits and how long it takes.
            if after == After::Nothing {
                let known = self.measured.entry(job.callback.action).or_insert((0, ran.took));
                *known = (known.0.max(ran.waits), known.1.min(ran.took));
            }
            match self.ended(job, ran.end, after) {
                Ok(outcome) => {
                    if tries > 1 && matches!(after, After::Nothing | After::Answer) {
                        let text = format!(
                            "the hook took {tries} attempts; the error before the last attempt was: {last}"
                        );
                        self.remark(FindingKind::Flaky, job, &text);
                    }
                    return outcome;
                }
                Err(error) => last = error,
            }
        }
        self.fails(job, after, &last);
        Outcome::Not
    }

    /// Judges the end of an attempt. `Err` means that another attempt may succeed.
    pub(super) fn ended(&mut self, job: &Job, end: End, after: After) -> Result<Outcome, String> {
        let within = self.options.timeout;
        let (who, advice) = (after.who(), after.advice());
        match end {
            End::Returned(AttemptResult::Done(answer)) => {
                self.done.insert(job.callback.action);
                return Ok(Outcome::Done(answer));
            }
            End::Returned(
                AttemptResult::Retry { error, .. } | AttemptResult::Misconfigured { error, .. },
            ) => {
                return Err(error);
            }
            End::Returned(AttemptResult::Pending { note }) => return Ok(self.pending(job, after, &note)),
            End::Returned(AttemptResult::Refused { reason }) => self.refused(job, after, &reason),
            End::Returned(AttemptResult::Unsupported { .. }) => self.unsupported(job),
            End::Panicked => {
                self.fault(FindingKind::Panics, job, &format!("{who} panicked; {advice}"));
            }
            End::TooLong => {
                let text = format!(
                    "{who} did not answer within {within:?}; do the long part in the background and answer `pending`, or raise the timeout"
                );
                self.fault(FindingKind::TooLong, job, &text);
            }
            End::Blocks => {
                let text = format!(
                    "{who} blocked its thread for more than {within:?}; use async calls, or move the blocking part into `tokio::task::spawn_blocking`"
                );
                self.fault(FindingKind::Blocks, job, &text);
            }
            End::NotStarted => {
                let text = "an attempt was not made, because the system gave no thread for it: the test is incomplete; allow more threads, and run it again";
                self.fault(FindingKind::NotTested, job, text);
            }
            End::Cut => {}
        }
        Ok(Outcome::Not)
    }

    fn pending(&mut self, job: &Job, after: After, note: &str) -> Outcome {
        if after == After::Nothing {
            let text = format!("the call is pending ({note}), so the calls after it could not be tested");
            self.remark(FindingKind::Pending, job, &text);
        // After a cut or among several attempts, "pending" may be correct: another attempt does the work.
        } else if matches!(after, After::Answer) {
            let text = format!(
                "{} answered pending ({note}) for work that was done before; {}",
                after.who(),
                after.advice()
            );
            self.fault(FindingKind::PendingAgain, job, &text);
        }
        Outcome::Pending
    }

    /// Returns true if a hook may leave the action unsupported.
    fn is_optional(&self, action: Action) -> bool {
        let optional = matches!(
            action,
            Action::Upgrade | Action::RefundRenew | Action::SignOn | Action::Payment | Action::Other
        );
        optional && !self.options.required.contains(&action)
    }

    fn refused(&mut self, job: &Job, after: After, reason: &str) {
        let action = job.callback.action;
        if after != After::Nothing {
            let text = format!("{} refused ({reason}); {}", after.who(), after.advice());
            self.fault(FindingKind::RefusesAgain, job, &text);
        } else if self.is_optional(action) {
            // An action that succeeded before is refused only in this state, for example while frozen. Keep testing it.
            if !self.done.contains(&action) {
                self.left_out.push(action);
            }
            let text = format!(
                "the hook refused the call ({reason}); this is no fault if the marketplace never sends it"
            );
            self.remark(FindingKind::Refuses, job, &text);
        } else {
            let text = format!(
                "the hook refused a required call ({reason}), so a paid order is lost; if the hook needs another product, SKU or parameter, set it in the test"
            );
            self.fault(FindingKind::Refuses, job, &text);
        }
    }

    fn unsupported(&mut self, job: &Job) {
        let action = job.callback.action;
        self.left_out.push(action);
        if self.is_optional(action) {
            let text =
                "the hook does not support the action; this is no fault if the marketplace never sends it";
            self.remark(FindingKind::Unsupported, job, text);
        } else {
            self.fault(
                FindingKind::Unsupported,
                job,
                "the hook does not support a required action; implement it",
            );
        }
    }

    /// Returns the remedy for a call that always fails.
    fn mend(&self, job: &Job) -> &'static str {
        if self.is_optional(job.callback.action) {
            "refuse an action that the hook does not support, because a retry continues for most of a day"
        } else {
            "fix that first, or set the values the hook needs in the test"
        }
    }

    fn fails(&mut self, job: &Job, after: After, error: &str) {
        let tries = limits::HOOK_TEST_TRIES_COUNT;
        let (kind, text) = match after {
            After::Nothing => {
                (FindingKind::Fails, format!("all {tries} attempts failed: {error}; {}", self.mend(job)))
            }
            After::Answer => {
                (FindingKind::FailsAgain, format!("{} failed: {error}; {}", after.who(), after.advice()))
            }
            After::Cut(_) | After::AtOnce | After::Among => (
                FindingKind::NotResumed,
                format!("{} fails at every further attempt: {error}; {}", after.who(), after.advice()),
            ),
        };
        self.fault(kind, job, &text);
    }

    // Answers.

    /// Checks that the answer can be sent to a marketplace.
    pub(super) fn judge_answer(&mut self, order: &Order, job: &Job, answer: &Answer) {
        if job.callback.action == Action::Create {
            self.judge_id(order, job, &id_of(order, answer));
        }
        let urls = ["front_end_url", "admin_url", "auth_url"];
        let of_app = urls.into_iter().filter_map(|name| Some((name, answer.app.get(name)?.expose())));
        let redirect = answer.redirect.as_ref().map(|url| ("redirect", url.expose()));
        let wrong: Vec<&str> =
            of_app.chain(redirect).filter(|(_, url)| !is_url(url)).map(|(name, _)| name).collect();
        for name in wrong {
            let text = format!(
                "`{name}` does not begin with https:// or http://, so no browser can open it; answer the complete URL"
            );
            self.remark(FindingKind::NotAUrl, job, &text);
        }
    }

    fn judge_id(&mut self, order: &Order, job: &Job, id: &str) {
        if let Some(fault) = fault_of_id(id) {
            let text = format!(
                "the `instance_id` of the answer is invalid: {fault}; answer an id unique to this instance, or none to keep the marketplace's id"
            );
            return self.fault(FindingKind::BadId, job, &text);
        }
        // The marketplace's own names are in this table, too, so an id may not be the name of another order.
        let owner = self.names.entry(id.to_owned()).or_insert_with(|| order.name.clone());
        if *owner != order.name {
            let text = format!(
                "the orders {owner} and {} both got the `instance_id` `{id}`; give each order its own, from `order_biz_id` or a counter in a transaction",
                order.name
            );
            self.fault(FindingKind::SharedId, job, &text);
        }
    }

    /// Checks that two attempts with one key gave the same answer.
    pub(super) fn compare(&mut self, order: &Order, job: &Job, first: &Answer, again: &Answer, after: After) {
        let (before, now) = (id_of(order, first), id_of(order, again));
        let (who, advice) = (after.who(), after.advice());
        if job.callback.action == Action::Create && before != now {
            let text = format!("{who} answered the `instance_id` `{now}`, and `{before}` before; {advice}");
            return self.fault(FindingKind::AnotherId, job, &text);
        }
        let differing = differing(job.callback.action, first, again);
        if !differing.is_empty() {
            let text = format!("{who} answered a different {}; {advice}", differing.join(", "));
            self.fault(FindingKind::AnotherAnswer, job, &text);
        }
    }

    // What exists.

    /// Runs the author's probes.
    pub(super) async fn look(&mut self, order: &Order, job: &Job) -> Seen {
        let within = self.options.timeout;
        let count = self.probes.count.as_ref().map(|probe| probe(order.instance.clone()));
        let state = self.probes.state.as_ref().map(|probe| probe(order.instance.clone()));
        let mut seen = Seen::default();
        if let Some(count) = count {
            seen.count = self.looked(job, timeout(within, count).await.ok());
        }
        if let Some(state) = state {
            seen.state = self.looked(job, timeout(within, state).await.ok());
        }
        seen
    }

    fn looked<T>(&mut self, job: &Job, looked: Option<Result<T, HookError>>) -> Option<T> {
        let error = match looked {
            Some(Ok(seen)) => return Some(seen),
            Some(Err(error)) => error.message().to_owned(),
            None => format!("the probe did not answer within {:?}", self.options.timeout),
        };
        let text = format!("the test's own probe failed after this call: {error}; fix the probe");
        self.fault(FindingKind::ProbeFails, job, &text);
        // Report a broken probe once, then do without probes.
        self.probes = Probes::default();
        None
    }

    /// Checks that the right number of things exists after the job.
    pub(super) fn judge_effect(&mut self, job: &Job, made: &mut Option<usize>, seen: &Seen, after: After) {
        let Some(count) = seen.count else { return };
        // Compare with the order's own number, or else with that of an earlier create.
        let usual = made.or(self.usual);
        match (job.callback.action, usual) {
            (Action::Create, _) if count == 0 => {
                self.fault(
                    FindingKind::NothingMade,
                    job,
                    "the create succeeded and nothing exists; create the instance before answering, or fix the test's `count` probe",
                );
            }
            (Action::Create, Some(usual)) if count > usual => self.doubled(job, usual, count, after),
            (Action::Create, _) => self.usual = self.usual.or(Some(count)),
            (Action::Release, _) if count > 0 => {
                let left = things(count);
                let text = format!(
                    "the release left {left}; remove everything, including the remains of attempts that were cut short"
                );
                self.fault(FindingKind::LeftBehind, job, &text);
            }
            (Action::Renew | Action::RefundRenew | Action::Expire, Some(usual)) if count > usual => {
                self.doubled(job, usual, count, after);
            }
            (Action::Renew | Action::RefundRenew | Action::Expire, Some(usual)) if count < usual => {
                let text = format!(
                    "the call left {}, and {} existed before; only a release may remove anything",
                    things(count),
                    things(usual)
                );
                self.fault(FindingKind::DataLost, job, &text);
            }
            _ => {}
        }
        // An upgrade may change the number: it is the new basis for this order.
        *made = Some(count);
    }

    fn doubled(&mut self, job: &Job, usual: usize, count: usize, after: After) {
        let advice = match after {
            After::Nothing => "check what exists before you create anything",
            after => after.advice(),
        };
        let (left, who) = (things(count), after.who());
        let text = format!("{who} left {left} for one order, where {usual} should be; {advice}");
        self.fault(FindingKind::Doubled, job, &text);
    }

    /// Checks that a repeat changed nothing.
    pub(super) fn judge_repeat(&mut self, job: &Job, before: &Seen, now: &Seen) {
        let after = After::Answer;
        match (before.count, now.count) {
            (Some(before), Some(now)) if now > before => return self.doubled(job, before, now, after),
            (Some(before), Some(now)) if now < before => {
                let text = format!(
                    "{} left {}, and {} existed before; a repeat must change nothing",
                    after.who(),
                    things(now),
                    things(before)
                );
                return self.fault(FindingKind::DataLost, job, &text);
            }
            _ => {}
        }
        if let (Some(before), Some(now)) = (&before.state, &now.state)
            && before != now
        {
            let text = format!(
                "{} left the instance `{now}`, which had been `{before}`; set values (\"9 seats\"), never add to them (\"4 more\")",
                after.who()
            );
            self.fault(FindingKind::Changed, job, &text);
        }
    }
}

fn things(count: usize) -> String {
    match count {
        0 => "nothing".to_owned(),
        1 => "1 thing".to_owned(),
        count => format!("{count} things"),
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

/// Returns the names of the members that differ. Their values may be secret. The browser's URL may differ,
/// because each sign-on has its own ticket.
fn differing(action: Action, first: &Answer, again: &Answer) -> Vec<String> {
    let mut names = Vec::new();
    for (section, one, other) in [
        ("app", &first.app, &again.app),
        ("host", &first.host, &again.host),
        ("info", &first.info, &again.info),
    ] {
        names.extend(unlike(one, other).map(|name| format!("`{section}.{name}`")));
    }
    if action != Action::SignOn && first.redirect != again.redirect {
        names.push("`redirect`".to_owned());
    }
    if first.body != again.body {
        names.push("`body`".to_owned());
    }
    names
}

fn unlike<'a>(one: &'a Fields, other: &'a Fields) -> impl Iterator<Item = &'a String> {
    let text = |field: Option<&'a Field>| field.map(Field::expose);
    let changed = one.iter().filter(move |(name, field)| text(other.get(*name)) != Some(field.expose()));
    let new = other.iter().filter(move |(name, _)| !one.contains_key(*name));
    changed.chain(new).map(|(name, _)| name)
}

/// Describes the result of an attempt, without a secret.
fn words(end: &End) -> String {
    match end {
        End::Returned(AttemptResult::Done(answer)) => {
            let open = answer.split().open.unwrap_or_else(|| "{}".to_owned());
            format!("done {open}")
        }
        End::Returned(AttemptResult::Retry { error, .. }) => format!("retry: {error}"),
        End::Returned(AttemptResult::Misconfigured { error, .. }) => format!("retry, misconfigured: {error}"),
        End::Returned(AttemptResult::Refused { reason }) => format!("refused: {reason}"),
        End::Returned(AttemptResult::Unsupported { reason }) => format!("unsupported: {reason}"),
        End::Returned(AttemptResult::Pending { note }) => format!("pending: {note}"),
        End::Panicked => "panicked".to_owned(),
        End::TooLong => "no answer by the deadline".to_owned(),
        End::Blocks => "blocks its thread".to_owned(),
        End::Cut => "cut short by the test".to_owned(),
        End::NotStarted => "not made: no thread".to_owned(),
    }
}

/// Returns so many thousandths of `whole`.
pub(super) fn part_of(whole: Duration, thousandths: u64) -> Duration {
    let micros = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(micros.saturating_mul(thousandths) / 1000)
}

//! Test bench for a hook: makes attempts, and judges their results, their answers, and what the author's probes
//! saw afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::timeout;

use super::attempt::{self, Cut, End, Interleaving, Ran};
use super::order::{Job, Order, TestOrders, id_of};
use super::report::{After, Finding, Part, Step, Value, Values};
use super::{AttemptReport, FindingKind, Measured, Observer, Options, Probes, Report, Restart};
use crate::AttemptResult;
use crate::callback::{Action, Answer, Field, Fields};
use crate::id::split_mix;
use crate::instance::fault_of_id;
use crate::limits;
use crate::{AnyHook, Call, HookError};

/// Number of attempts that miss the deadline before the test is given up, because each costs a whole deadline.
const HUNG_MAX_COUNT: u32 = 2;

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
    pub(super) restart: Restart,
    pub(super) orders: TestOrders,
    observer: &'a mut dyn Observer,
    pub(super) report: Report,
    /// The part that runs.
    part: Part,
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
        restart: Restart,
        orders: TestOrders,
        observer: &'a mut dyn Observer,
    ) -> Bench<'a> {
        Bench {
            hook,
            probes,
            restart,
            orders,
            observer,
            report: Report::empty(options.seed),
            part: Part::LifeCycle,
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

    pub(super) fn begin(&mut self, part: Part) {
        self.part = part;
        self.report.begin(part);
        self.observer.section(part);
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
        let order = self.orders.order(trial);
        self.names.insert(order.name.clone(), order.name.clone());
        order
    }

    fn fault(&mut self, kind: FindingKind, job: &Job, after: After, values: Values) {
        self.find(true, kind, job, after, values);
    }

    fn remark(&mut self, kind: FindingKind, job: &Job, values: Values) {
        self.find(false, kind, job, After::Nothing, values);
    }

    fn find(&mut self, fault: bool, kind: FindingKind, job: &Job, after: After, values: Values) {
        let (step, action) = (job.step, job.step.action);
        let required = !self.is_optional(action);
        self.report.find(Finding {
            kind,
            fault,
            action,
            part: self.part,
            times: 1,
            step,
            after,
            required,
            values,
        });
    }

    // Attempts.

    fn call(&mut self, job: &mut Job) -> Option<Call> {
        // Every job that needs an instance has one, so this never fails.
        self.orders.call(job, self.options.timeout).ok()
    }

    /// Records an attempt: in the report, for the give-up limit, and for the observer.
    fn ran(&mut self, step: Step, call: &Call, ran: &Ran) {
        self.report.count(1);
        // Count lost deadlines, so that a hook that always hangs does not take hours.
        if matches!(ran.end, End::TooLong | End::Blocks) {
            self.hung += 1;
        }
        self.observer.attempted(&AttemptReport { step, call, end: &ran.end });
    }

    /// Makes one attempt.
    pub(super) async fn attempt(&mut self, job: &mut Job, cut: Option<Cut>) -> Option<Ran> {
        let call = self.call(job)?;
        let ran = attempt::run(&self.hook, call.clone(), self.options.timeout, cut).await;
        self.ran(job.step, &call, &ran);
        Some(ran)
    }

    /// Makes attempts at once: one for each of these jobs.
    pub(super) async fn together(&mut self, jobs: &mut [Job], interleaving: Interleaving) -> Vec<End> {
        let calls: Vec<Call> = jobs.iter_mut().filter_map(|job| self.call(job)).collect();
        let all = attempt::at_once(&self.hook, calls.clone(), self.options.timeout, interleaving).await;
        for ((job, call), ran) in jobs.iter().zip(&calls).zip(&all) {
            self.ran(job.step, call, ran);
        }
        all.into_iter().map(|ran| ran.end).collect()
    }

    /// Makes several attempts at once at one job.
    pub(super) async fn concurrent_attempts(
        &mut self,
        job: &mut Job,
        interleaving: Interleaving,
    ) -> Vec<Answer> {
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
        for attempts in 1..=limits::HOOK_TEST_TRIES_COUNT {
            let Some(ran) = self.attempt(job, None).await else { return Outcome::Not };
            // Only an undisturbed attempt shows how often the hook waits and how long it takes.
            if after == After::Nothing {
                let known = self.measured.entry(job.step.action).or_insert((0, ran.took));
                *known = (known.0.max(ran.waits), known.1.min(ran.took));
            }
            match self.ended(job, ran.end, after) {
                Ok(outcome) => {
                    if attempts > 1 && matches!(after, After::Nothing | After::Answer) {
                        let values = vec![("attempts", text(attempts)), ("error", text(last))];
                        self.remark(FindingKind::Flaky, job, values);
                    }
                    return outcome;
                }
                Err(error) => last = error,
            }
        }
        self.fails(job, after, last);
        Outcome::Not
    }

    /// Judges the end of an attempt. `Err` means that another attempt may succeed.
    pub(super) fn ended(&mut self, job: &Job, end: End, after: After) -> Result<Outcome, String> {
        let within = || vec![("within", text(format!("{:?}", self.options.timeout)))];
        match end {
            End::Returned(AttemptResult::Done(answer)) => {
                self.done.insert(job.step.action);
                return Ok(Outcome::Done(answer));
            }
            End::Returned(
                AttemptResult::Retry { error, .. } | AttemptResult::Misconfigured { error, .. },
            ) => {
                return Err(error);
            }
            End::Returned(AttemptResult::Pending { note }) => return Ok(self.pending(job, after, note)),
            End::Returned(AttemptResult::Refused { reason }) => self.refused(job, after, reason),
            End::Returned(AttemptResult::Unsupported { .. }) => self.unsupported(job),
            End::Panicked => self.fault(FindingKind::Panics, job, after, Vec::new()),
            End::TooLong => self.fault(FindingKind::TooLong, job, after, within()),
            End::Blocks => self.fault(FindingKind::Blocks, job, after, within()),
            End::NotStarted => self.fault(FindingKind::NotTested, job, after, Vec::new()),
            End::Cut => {}
        }
        Ok(Outcome::Not)
    }

    fn pending(&mut self, job: &Job, after: After, note: String) -> Outcome {
        let values = vec![("note", text(note))];
        match after {
            After::Nothing | After::Answer | After::Restart if self.may_be_pending(job) => {}
            After::Nothing => self.fault(FindingKind::Pending, job, after, values),
            After::Answer | After::Restart => self.fault(FindingKind::PendingAgain, job, after, values),
            // "Pending" may be correct here: another attempt does the work.
            After::Cut(_) | After::AtOnce | After::Among => {}
        }
        Outcome::Pending
    }

    fn may_be_pending(&self, job: &Job) -> bool {
        self.options.pending.contains(&job.step.action)
    }

    /// Returns the answer of a job: the hook's, or the empty one with which a person completes a pending call.
    pub(super) fn answer_of(&self, job: &Job, outcome: Outcome) -> Option<Answer> {
        match outcome {
            Outcome::Done(answer) => Some(answer),
            Outcome::Pending => self.may_be_pending(job).then(Answer::default),
            Outcome::Not => None,
        }
    }

    /// Restarts the hook. Returns false if that failed, or if the test knows no way.
    pub(super) async fn restart(&mut self, job: &Job) -> bool {
        let Restart::By(start) = &self.restart else { return false };
        match start().await {
            Ok(hook) => {
                self.hook = hook;
                true
            }
            Err(error) => {
                let values = vec![("error", text(error.message()))];
                self.fault(FindingKind::RestartFails, job, After::Nothing, values);
                false
            }
        }
    }

    /// Returns true if a hook may leave the action unsupported.
    fn is_optional(&self, action: Action) -> bool {
        let optional =
            matches!(action, Action::Upgrade | Action::RefundRenew | Action::Payment | Action::Other);
        optional && !self.options.required.contains(&action)
    }

    fn refused(&mut self, job: &Job, after: After, reason: String) {
        let action = job.step.action;
        let values = vec![("reason", text(reason))];
        if after != After::Nothing {
            self.fault(FindingKind::RefusesAgain, job, after, values);
        } else if self.is_optional(action) {
            // An action that succeeded before is refused only in this state, for example while frozen. Keep testing it.
            if !self.done.contains(&action) {
                self.left_out.push(action);
            }
            self.remark(FindingKind::Refuses, job, values);
        } else {
            self.fault(FindingKind::Refuses, job, after, values);
        }
    }

    fn unsupported(&mut self, job: &Job) {
        let action = job.step.action;
        self.left_out.push(action);
        let fault = !self.is_optional(action);
        self.find(fault, FindingKind::Unsupported, job, After::Nothing, Vec::new());
    }

    fn fails(&mut self, job: &Job, after: After, error: String) {
        let kind = match after {
            After::Nothing => FindingKind::Fails,
            After::Answer | After::Restart => FindingKind::FailsAgain,
            After::Cut(_) | After::AtOnce | After::Among => FindingKind::NotResumed,
        };
        let values = vec![("attempts", text(limits::HOOK_TEST_TRIES_COUNT)), ("error", text(error))];
        self.fault(kind, job, after, values);
    }

    // Answers.

    /// Checks that the answer can be sent to a marketplace.
    pub(super) fn judge_answer(&mut self, order: &Order, job: &Job, answer: &Answer) {
        if job.step.action == Action::Create {
            self.judge_id(order, job, &id_of(order, answer));
        }
        let urls = ["front_end_url", "admin_url", "auth_url"];
        let mut shown: Vec<(&str, &str)> = Vec::new();
        for name in urls {
            shown.extend(answer.app.get(name).map(|url| (name, url.expose())));
        }
        shown.extend(answer.redirect.as_ref().map(|url| ("redirect", url.expose())));
        for (member, url) in shown {
            if !is_url(url) {
                self.remark(FindingKind::NotAUrl, job, vec![("member", text(member))]);
            }
        }
    }

    fn judge_id(&mut self, order: &Order, job: &Job, id: &str) {
        if let Some(fault) = fault_of_id(id) {
            return self.fault(FindingKind::BadId, job, After::Nothing, vec![("fault", text(fault))]);
        }
        // The marketplace's own names are in this table, too, so an id may not be the name of another order.
        let owner = self.names.entry(id.to_owned()).or_insert_with(|| order.name.clone());
        if *owner != order.name {
            let values = vec![("other", text(&*owner)), ("order", text(&order.name)), ("id", text(id))];
            self.fault(FindingKind::SharedId, job, After::Nothing, values);
        }
    }

    /// Checks that two attempts with one key gave the same answer.
    pub(super) fn compare(&mut self, order: &Order, job: &Job, first: &Answer, again: &Answer, after: After) {
        let (before, now) = (id_of(order, first), id_of(order, again));
        if job.step.action == Action::Create && before != now {
            let values = vec![("now", text(now)), ("before", text(before))];
            return self.fault(FindingKind::AnotherId, job, after, values);
        }
        let differing = differing(job.step.action, first, again);
        if !differing.is_empty() {
            let values = vec![("members", text(differing.join(", ")))];
            self.fault(FindingKind::AnotherAnswer, job, after, values);
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
            Some(Err(error)) => text(error.message()),
            None => Value::ProbeTimeout(self.options.timeout),
        };
        self.fault(FindingKind::ProbeFails, job, After::Nothing, vec![("error", error)]);
        // Report a broken probe once, then do without probes.
        self.probes = Probes::default();
        None
    }

    /// Checks that the right number of things exists after the job.
    pub(super) fn judge_effect(&mut self, job: &Job, made: &mut Option<usize>, seen: &Seen, after: After) {
        let Some(count) = seen.count else { return };
        // Compare with the order's own number, or else with that of an earlier create.
        let usual = made.or(self.usual);
        match (job.step.action, usual) {
            // A person has not completed the call, so nothing exists yet.
            _ if self.may_be_pending(job) => return,
            (Action::Create, _) if count == 0 => {
                self.fault(FindingKind::NothingMade, job, after, Vec::new());
            }
            (Action::Create, Some(usual)) if count > usual => {
                self.fault(FindingKind::Doubled, job, after, counts(usual, count));
            }
            (Action::Create, _) => self.usual = self.usual.or(Some(count)),
            (Action::Release, _) if count > 0 => {
                self.fault(FindingKind::LeftBehind, job, after, counts(0, count));
            }
            (Action::Renew | Action::RefundRenew | Action::Expire, Some(usual)) if count > usual => {
                self.fault(FindingKind::Doubled, job, after, counts(usual, count));
            }
            (Action::Renew | Action::RefundRenew | Action::Expire, Some(usual)) if count < usual => {
                // The history of the attempt does not matter: no call but a release may remove anything.
                self.fault(FindingKind::DataLost, job, After::Nothing, counts(usual, count));
            }
            _ => {}
        }
        // An upgrade may change the number: it is the new basis for this order.
        *made = Some(count);
    }

    /// Checks that a repeat changed nothing.
    pub(super) fn judge_repeat(&mut self, job: &Job, before: &Seen, now: &Seen, after: After) {
        match (before.count, now.count) {
            (Some(before), Some(now)) if now > before => {
                return self.fault(FindingKind::Doubled, job, after, counts(before, now));
            }
            (Some(before), Some(now)) if now < before => {
                return self.fault(FindingKind::DataLost, job, after, counts(before, now));
            }
            _ => {}
        }
        if let (Some(before), Some(now)) = (&before.state, &now.state)
            && before != now
        {
            let values = vec![("before", text(before)), ("now", text(now))];
            self.fault(FindingKind::Changed, job, after, values);
        }
    }
}

fn text(value: impl ToString) -> Value {
    Value::Text(value.to_string())
}

/// Values of a finding about the number of things that exist.
fn counts(before: usize, now: usize) -> Values {
    vec![("usual", text(before)), ("before", Value::Things(before)), ("now", Value::Things(now))]
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

/// Returns so many thousandths of `whole`.
pub(super) fn part_of(whole: Duration, thousandths: u64) -> Duration {
    let micros = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(micros.saturating_mul(thousandths) / 1000)
}

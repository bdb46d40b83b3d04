//! Parts of the test: the calls, their order, and the faults that the test provokes.

use super::Restart;
use super::attempt::{Cut, End, Interleaving};
use super::bench::{Bench, Outcome, Seen, part_of};
use super::order::{Job, Order};
use super::report::{After, Circumstance, Part, Report, Step};
use crate::AttemptResult;
use crate::callback::{Action, Answer};
use crate::limits;

/// Actions after a create, for the orders with several attempts at once and those with attempts cut short.
const AFTERWARDS: [Step; 5] = [
    Step::usual(Action::Upgrade),
    Step::usual(Action::Renew),
    Step::usual(Action::Expire),
    Step::new(Action::Renew, Circumstance::Thaws),
    Step::usual(Action::Release),
];

/// Maximum number of cuts at waits for hooks that also get cuts at random moments. Such hooks do not show where
/// they wait, so each cut at a wait finds little.
const WAITS_BESIDE_KILLS_COUNT: u32 = 2;

impl Bench<'_> {
    /// Runs every part that can still find something.
    pub(super) async fn run(mut self) -> Report {
        let mut goes_on = true;
        for part in Part::ALL {
            if part == Part::Restarts && matches!(self.restart, Restart::EveryCall) {
                continue;
            }
            // Skip a part that cannot find anything more, and name it in the report.
            let has_nothing_to_try = match part {
                Part::Cuts => !self.can_cut(),
                Part::Restarts => matches!(self.restart, Restart::Unknown),
                _ => false,
            };
            if !goes_on || self.is_hopeless() || has_nothing_to_try {
                self.report.not_run.push(part);
                continue;
            }
            self.begin(part);
            match part {
                Part::LifeCycle => goes_on = self.life().await,
                Part::Trial => self.trial().await,
                Part::Releases => self.releases().await,
                Part::Orders => self.several_orders().await,
                Part::Concurrent => self.concurrent_orders().await,
                Part::Cuts => self.cuts().await,
                Part::Restarts => self.restarts().await,
            }
        }
        self.report
    }

    /// Runs one instance from the payment to the release. Returns true if the hook creates anything at all.
    async fn life(&mut self) -> bool {
        let mut order = self.order(false);
        self.step(&mut order, Step::usual(Action::Payment)).await;
        let made = self.step(&mut order, Step::usual(Action::Create)).await;
        // Without an instance nothing else can be tested. Release what a pending create may leave.
        if order.instance.id.is_none() {
            if made == Outcome::Pending {
                self.step(&mut order, Step::new(Action::Release, Circumstance::PendingCreate)).await;
            }
            return false;
        }
        for step in [
            Step::usual(Action::SignOn),
            Step::usual(Action::Upgrade),
            Step::usual(Action::Renew),
            Step::usual(Action::RefundRenew),
            Step::usual(Action::Expire),
            Step::new(Action::Renew, Circumstance::Thaws),
            Step::new(Action::Expire, Circumstance::Again),
            Step::usual(Action::Release),
        ] {
            self.step(&mut order, step).await;
        }
        true
    }

    /// Runs a trial: upgraded while frozen, released while in use.
    async fn trial(&mut self) {
        let mut order = self.order(true);
        for step in [
            Step::new(Action::Create, Circumstance::Trial),
            Step::new(Action::Expire, Circumstance::Trial),
            Step::new(Action::Upgrade, Circumstance::Frozen),
            Step::new(Action::Renew, Circumstance::Thaws),
            Step::new(Action::Release, Circumstance::InUse),
        ] {
            self.step(&mut order, step).await;
        }
    }

    /// Releases instances in unusual states: never created, created with a lost answer, already released.
    async fn releases(&mut self) {
        let mut never = self.order(false);
        self.step(&mut never, Step::new(Action::Release, Circumstance::NeverCreated)).await;

        let mut unheard = self.order(false);
        let mut create = self.orders.job(&mut unheard, Step::new(Action::Create, Circumstance::AnswerLost));
        // Do not apply the answer: the marketplace did not receive it, so it does not know the id.
        self.finish(&mut create, After::Nothing).await;
        self.step(&mut unheard, Step::new(Action::Release, Circumstance::CreateAnswerLost)).await;

        let mut gone = self.order(false);
        let mut create = self.orders.job(&mut gone, Step::usual(Action::Create));
        self.finish_and_settle(&mut gone, &mut create, After::Nothing).await;
        self.discard(&mut gone).await;
        self.step(&mut gone, Step::new(Action::Release, Circumstance::Released)).await;
    }

    /// Checks that several orders at once each get their own instance.
    async fn several_orders(&mut self) {
        let mut orders: Vec<Order> = (0..self.options.at_once).map(|_| self.order(false)).collect();
        for step in [
            Step::new(Action::Create, Circumstance::AtOnce),
            Step::new(Action::Release, Circumstance::AtOnce),
        ] {
            if !self.does(step.action) {
                continue;
            }
            let mut jobs: Vec<Job> = orders.iter_mut().map(|order| self.orders.job(order, step)).collect();
            let ends = self.together(&mut jobs, Interleaving::Threads).await;
            for ((order, job), end) in orders.iter_mut().zip(&mut jobs).zip(ends) {
                match end {
                    End::Returned(AttemptResult::Done(answer)) => {
                        self.settle(order, job, &answer, After::Nothing).await;
                    }
                    // A failure under load is no fault: the retry schedule tries again.
                    End::Returned(AttemptResult::Retry { .. }) => {
                        self.finish_and_settle(order, job, After::Nothing).await;
                    }
                    end => {
                        let outcome = self.ended(job, end, After::Nothing).unwrap_or(Outcome::Not);
                        if let Some(answer) = self.answer_of(job, outcome) {
                            self.settle(order, job, &answer, After::Nothing).await;
                        }
                    }
                }
            }
        }
    }

    /// Runs several attempts at one job at once, because the rest of an attempt may meet the next one.
    async fn concurrent_orders(&mut self) {
        let chance = [self.draw(), self.draw()].map(Interleaving::Seeded);
        let interleavings = [Interleaving::RoundRobin, Interleaving::Threads].into_iter().chain(chance);
        for (round, interleaving) in interleavings.enumerate() {
            let mut order = self.order(false);
            self.concurrent(&mut order, Step::usual(Action::Create), interleaving).await;
            // The rounds with a random order test only the create.
            if round > 1 {
                self.discard(&mut order).await;
                continue;
            }
            for step in AFTERWARDS {
                self.concurrent(&mut order, step, interleaving).await;
            }
        }
    }

    /// Makes several attempts at one job at once and compares their answers.
    async fn concurrent(&mut self, order: &mut Order, step: Step, interleaving: Interleaving) {
        if !self.does(step.action) || self.is_hopeless() {
            return;
        }
        let mut job = self.orders.job(order, step);
        let answers = self.concurrent_attempts(&mut job, interleaving).await;
        if self.is_hopeless() {
            return;
        }
        // One attempt more, on its own: its answer is the one that the others are compared with.
        let outcome = self.finish(&mut job, After::AtOnce).await;
        if let Outcome::Done(last) = &outcome {
            for answer in &answers {
                self.compare(order, &job, answer, last, After::Among);
            }
        }
        let Some(last) = self.answer_of(&job, outcome) else { return };
        self.settle(order, &job, &last, After::AtOnce).await;
    }

    /// Returns true if there is a point at which an attempt can be cut: a random moment, or an observed wait.
    fn can_cut(&self) -> bool {
        self.options.kills > 0 || self.measured.values().any(|(waits, _)| *waits > 0)
    }

    /// Cuts attempts short and tries again. Every create that is cut belongs to a new order, so that the
    /// remains of each can be told apart. The other actions are cut in one instance's history.
    async fn cuts(&mut self) {
        for cut in self.cut_points(Action::Create) {
            let mut order = self.order(false);
            self.cut(&mut order, Step::usual(Action::Create), &[cut]).await;
            self.discard(&mut order).await;
        }
        let mut order = self.order(false);
        let mut create = self.orders.job(&mut order, Step::usual(Action::Create));
        self.finish_and_settle(&mut order, &mut create, After::Nothing).await;
        for step in AFTERWARDS {
            let points = self.cut_points(step.action);
            self.cut(&mut order, step, &points).await;
        }
    }

    /// Cuts attempts at one job short, lets the last one finish, and compares the answers.
    async fn cut(&mut self, order: &mut Order, step: Step, points: &[Cut]) {
        if !self.does(step.action) || self.is_hopeless() {
            return;
        }
        let mut job = self.orders.job(order, step);
        let mut after = After::Nothing;
        let mut answers = Vec::new();
        for point in points {
            let Some(ran) = self.attempt(&mut job, Some(*point)).await else { return };
            if ran.end == End::Cut {
                after = After::Cut(*point);
            } else {
                answers.extend(self.ended(&job, ran.end, after).ok().and_then(Outcome::answer));
            }
        }
        // The attempt ended before any cut took effect, so it was an ordinary repeat.
        if after == After::Nothing && !answers.is_empty() {
            after = After::Answer;
        }
        let Some(last) = self.finish_and_settle(order, &mut job, after).await else { return };
        for answer in &answers {
            self.compare(order, &job, answer, &last, after);
        }
    }

    /// Returns the points at which the attempts at an action are cut short: observed waits and random moments.
    fn cut_points(&mut self, action: Action) -> Vec<Cut> {
        let (waits, took) = self.measured.get(&action).copied().unwrap_or_default();
        let kills = self.options.kills;
        let most = if kills > 0 { WAITS_BESIDE_KILLS_COUNT } else { limits::HOOK_TEST_CUTS_MAX_COUNT };
        let split = waits.div_ceil(most).max(1);
        let mut points: Vec<Cut> =
            (1..=waits).step_by(usize::try_from(split).unwrap_or(1)).map(Cut::AtWait).collect();
        points.extend((0..kills).map(|_| Cut::After(part_of(took, self.draw() % 1000))));
        points
    }

    // Steps.

    /// Sends one request, and sends it again as if its answer had been lost.
    async fn step(&mut self, order: &mut Order, step: Step) -> Outcome {
        if !self.does(step.action) || self.is_hopeless() {
            return Outcome::Not;
        }
        let mut job = self.orders.job(order, step);
        let outcome = self.finish(&mut job, After::Nothing).await;
        let Some(answer) = self.answer_of(&job, outcome.clone()) else { return outcome };
        let seen = self.settle(order, &job, &answer, After::Nothing).await;
        // Repeat with the same key, as after a lost answer.
        self.repeat(order, &mut job, &outcome, &seen, After::Answer).await;
        outcome
    }

    /// Sends a finished call again. The two answers must be equal, and nothing may change.
    async fn repeat(&mut self, order: &mut Order, job: &mut Job, first: &Outcome, seen: &Seen, after: After) {
        if let (Outcome::Done(first), Outcome::Done(again)) = (first, self.finish(job, after).await) {
            self.compare(order, job, first, &again, after);
        }
        // Look again: the repeat must not have changed anything.
        let now = self.look(order, job).await;
        self.judge_repeat(job, seen, &now, after);
        order.made = now.count.or(order.made);
    }

    /// Restarts the hook after each call, and sends the call again.
    async fn restarts(&mut self) {
        let mut order = self.order(false);
        for step in [Step::usual(Action::Create)].into_iter().chain(AFTERWARDS) {
            if !self.does(step.action) || self.is_hopeless() {
                continue;
            }
            let mut job = self.orders.job(&mut order, step);
            let outcome = self.finish(&mut job, After::Nothing).await;
            let Some(answer) = self.answer_of(&job, outcome.clone()) else { return };
            let seen = self.settle(&mut order, &job, &answer, After::Nothing).await;
            if !self.restart(&job).await {
                return;
            }
            self.repeat(&mut order, &mut job, &outcome, &seen, After::Restart).await;
        }
    }

    async fn finish_and_settle(&mut self, order: &mut Order, job: &mut Job, after: After) -> Option<Answer> {
        let outcome = self.finish(job, after).await;
        let answer = self.answer_of(job, outcome.clone())?;
        self.settle(order, job, &answer, after).await;
        // The answer of a person is none of the hook's, so it is not compared.
        matches!(outcome, Outcome::Done(_)).then_some(answer)
    }

    /// Applies the result of a job, and checks with the probes that the work was done.
    async fn settle(&mut self, order: &mut Order, job: &Job, answer: &Answer, after: After) -> Seen {
        self.judge_answer(order, job, answer);
        self.orders.apply(order, job, answer);
        let seen = self.look(order, job).await;
        self.judge_effect(job, &mut order.made, &seen, after);
        seen
    }

    /// Releases an instance that was created only for a check.
    async fn discard(&mut self, order: &mut Order) {
        if self.does(Action::Release) && !self.is_hopeless() {
            let mut job = self.orders.job(order, Step::usual(Action::Release));
            self.finish_and_settle(order, &mut job, After::Nothing).await;
        }
    }
}

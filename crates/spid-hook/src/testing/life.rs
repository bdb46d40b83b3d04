//! Parts of the test: the calls, their order, and the faults that the test provokes.

use super::Report;
use super::attempt::{Cut, End, Interleaving};
use super::bench::{After, Bench, Outcome, Seen, part_of};
use super::order::{Job, Order};
use crate::AttemptResult;
use crate::callback::{Action, Answer};
use crate::limits;

/// A part of the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Life,
    Trial,
    Releases,
    Orders,
    Crowd,
    Cuts,
}

impl Part {
    const ALL: [Part; 6] = [Part::Life, Part::Trial, Part::Releases, Part::Orders, Part::Crowd, Part::Cuts];

    const fn title(self) -> &'static str {
        match self {
            Part::Life => "a full life cycle, every call twice",
            Part::Trial => "a trial, upgraded while frozen, released while in use",
            Part::Releases => "releases of instances that are incomplete, released, or never created",
            Part::Orders => "several orders at once",
            Part::Crowd => "one call several times at once",
            Part::Cuts => "attempts cut short, then tried again",
        }
    }
}

/// Actions after a create, for the orders with several attempts at once and those with attempts cut short.
const AFTERWARDS: [(Action, &str); 5] = [
    (Action::Upgrade, "upgrade"),
    (Action::Renew, "renew"),
    (Action::Expire, "expire"),
    (Action::Renew, "renew (thaws)"),
    (Action::Release, "release"),
];

/// Maximum number of cuts at waits for hooks that also get cuts at random moments. Such hooks do not show where
/// they wait, so each cut at a wait finds little.
const WAITS_BESIDE_KILLS_COUNT: u32 = 2;

impl Bench<'_> {
    /// Runs every part that can still find something.
    pub(super) async fn run(mut self) -> Report {
        let mut goes_on = true;
        for part in Part::ALL {
            // Skip a part that cannot find anything more, and name it in the report.
            if !goes_on || self.is_hopeless() || (part == Part::Cuts && !self.can_cut()) {
                self.report.not_run.push(part.title());
                continue;
            }
            self.begin(part.title());
            match part {
                Part::Life => goes_on = self.life().await,
                Part::Trial => self.trial().await,
                Part::Releases => self.releases().await,
                Part::Orders => self.orders().await,
                Part::Crowd => self.crowds().await,
                Part::Cuts => self.cuts().await,
            }
        }
        self.report
    }

    /// Runs one instance from the payment to the release. Returns true if the hook creates anything at all.
    async fn life(&mut self) -> bool {
        let mut order = self.order(false);
        self.step(&mut order, Action::Payment, "payment").await;
        let made = self.step(&mut order, Action::Create, "create").await;
        // Without an instance nothing else can be tested. Release what a pending create may leave.
        if !matches!(made, Outcome::Done(_)) {
            if made == Outcome::Pending {
                self.step(&mut order, Action::Release, "release (of a pending create)").await;
            }
            return false;
        }
        for (action, step) in [
            (Action::SignOn, "sign-on"),
            (Action::Upgrade, "upgrade"),
            (Action::Renew, "renew"),
            (Action::RefundRenew, "refund-renew"),
            (Action::Expire, "expire"),
            (Action::Renew, "renew (thaws)"),
            (Action::Expire, "expire (again)"),
            (Action::Release, "release"),
        ] {
            self.step(&mut order, action, step).await;
        }
        true
    }

    /// Runs a trial: upgraded while frozen, released while in use.
    async fn trial(&mut self) {
        let mut order = self.order(true);
        for (action, step) in [
            (Action::Create, "create (trial)"),
            (Action::Expire, "expire (trial)"),
            (Action::Upgrade, "upgrade (while frozen)"),
            (Action::Renew, "renew (thaws)"),
            (Action::Release, "release (while in use)"),
        ] {
            self.step(&mut order, action, step).await;
        }
    }

    /// Releases instances in unusual states: never created, created with a lost answer, already released.
    async fn releases(&mut self) {
        let mut never = self.order(false);
        self.step(&mut never, Action::Release, "release (of an instance that was never created)").await;

        let mut unheard = self.order(false);
        let mut create = self.market.job(&mut unheard, Action::Create, "create (its answer is lost)");
        // Do not apply the answer: the marketplace did not receive it, so it does not know the id.
        self.finish(&mut create, After::Nothing).await;
        self.step(&mut unheard, Action::Release, "release (of a create whose answer was lost)").await;

        let mut gone = self.order(false);
        let mut create = self.market.job(&mut gone, Action::Create, "create");
        self.finish_and_settle(&mut gone, &mut create, After::Nothing).await;
        self.discard(&mut gone).await;
        self.step(&mut gone, Action::Release, "release (of a released instance)").await;
    }

    /// Checks that several orders at once each get their own instance.
    async fn orders(&mut self) {
        let mut orders: Vec<Order> = (0..self.options.at_once).map(|_| self.order(false)).collect();
        for (action, step) in [
            (Action::Create, "create (several orders at once)"),
            (Action::Release, "release (several orders at once)"),
        ] {
            if !self.does(action) {
                continue;
            }
            let mut jobs: Vec<Job> =
                orders.iter_mut().map(|order| self.market.job(order, action, step)).collect();
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
                    end => _ = self.ended(job, end, After::Nothing),
                }
            }
        }
    }

    /// Runs several attempts at one job at once, because the rest of an attempt may meet the next one.
    async fn crowds(&mut self) {
        let chance = [self.draw(), self.draw()].map(Interleaving::Seeded);
        let weaves = [Interleaving::RoundRobin, Interleaving::Threads].into_iter().chain(chance);
        for (round, interleaving) in weaves.enumerate() {
            let mut order = self.order(false);
            self.crowded(&mut order, Action::Create, "create", interleaving).await;
            // The rounds with a random order test only the create.
            if round > 1 {
                self.discard(&mut order).await;
                continue;
            }
            for (action, step) in AFTERWARDS {
                self.crowded(&mut order, action, step, interleaving).await;
            }
        }
    }

    /// Makes several attempts at one job at once and compares their answers.
    async fn crowded(&mut self, order: &mut Order, action: Action, step: &str, interleaving: Interleaving) {
        if !self.does(action) || self.is_hopeless() {
            return;
        }
        let mut job = self.market.job(order, action, step);
        let answers = self.crowd(&mut job, interleaving).await;
        if self.is_hopeless() {
            return;
        }
        // One attempt more, on its own: its answer is the one that the others are compared with.
        let Some(last) = self.finish(&mut job, After::AtOnce).await.answer() else { return };
        for answer in &answers {
            self.compare(order, &job, answer, &last, After::Among);
        }
        self.settle(order, &job, &last, After::AtOnce).await;
    }

    /// Returns true if there is a point at which an attempt can be cut: a random moment, or an observed wait.
    fn can_cut(&self) -> bool {
        self.options.kills > 0 || self.measured.values().any(|(waits, _)| *waits > 0)
    }

    /// Cuts attempts short and tries again. Every create that is cut belongs to a new order, so that the
    /// remains of each can be told apart. The other actions are cut in one instance's history.
    async fn cuts(&mut self) {
        for cut in self.places(Action::Create) {
            let mut order = self.order(false);
            self.cut(&mut order, Action::Create, "create", &[cut]).await;
            self.discard(&mut order).await;
        }
        let mut order = self.order(false);
        let mut create = self.market.job(&mut order, Action::Create, "create");
        self.finish_and_settle(&mut order, &mut create, After::Nothing).await;
        for (action, step) in AFTERWARDS {
            let places = self.places(action);
            self.cut(&mut order, action, step, &places).await;
        }
    }

    /// Cuts attempts at one job short, lets the last one finish, and compares the answers.
    async fn cut(&mut self, order: &mut Order, action: Action, step: &str, places: &[Cut]) {
        if !self.does(action) || self.is_hopeless() {
            return;
        }
        let mut job = self.market.job(order, action, step);
        let mut after = After::Nothing;
        let mut answers = Vec::new();
        for place in places {
            let Some(ran) = self.attempt(&mut job, Some(*place)).await else { return };
            if ran.end == End::Cut {
                after = After::Cut(*place);
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
    fn places(&mut self, action: Action) -> Vec<Cut> {
        let (waits, took) = self.measured.get(&action).copied().unwrap_or_default();
        let kills = self.options.kills;
        let most = if kills > 0 { WAITS_BESIDE_KILLS_COUNT } else { limits::HOOK_TEST_CUTS_MAX_COUNT };
        let split = waits.div_ceil(most).max(1);
        let mut places: Vec<Cut> =
            (1..=waits).step_by(usize::try_from(split).unwrap_or(1)).map(Cut::AtWait).collect();
        places.extend((0..kills).map(|_| Cut::After(part_of(took, self.draw() % 1000))));
        places
    }

    // Steps.

    /// Sends one request, and sends it again as if its answer had been lost.
    async fn step(&mut self, order: &mut Order, action: Action, step: &str) -> Outcome {
        if !self.does(action) || self.is_hopeless() {
            return Outcome::Not;
        }
        let mut job = self.market.job(order, action, step);
        let outcome = self.finish(&mut job, After::Nothing).await;
        let Outcome::Done(first) = &outcome else { return outcome };
        let seen = self.settle(order, &job, first, After::Nothing).await;
        // Repeat with the same key, as after a lost answer. The two answers must be equal.
        if let Outcome::Done(again) = self.finish(&mut job, After::Answer).await {
            self.compare(order, &job, first, &again, After::Answer);
        }
        // Look again: the repeat must not have changed anything.
        let now = self.look(order, &job).await;
        self.judge_repeat(&job, &seen, &now);
        order.made = now.count.or(order.made);
        outcome
    }

    async fn finish_and_settle(&mut self, order: &mut Order, job: &mut Job, after: After) -> Option<Answer> {
        let answer = self.finish(job, after).await.answer()?;
        self.settle(order, job, &answer, after).await;
        Some(answer)
    }

    /// Applies the result of a job, and checks with the probes that the work was done.
    async fn settle(&mut self, order: &mut Order, job: &Job, answer: &Answer, after: After) -> Seen {
        self.judge_answer(order, job, answer);
        self.market.apply(order, job, answer);
        let seen = self.look(order, job).await;
        self.judge_effect(job, &mut order.made, &seen, after);
        seen
    }

    /// Releases an instance that was created only for a check.
    async fn discard(&mut self, order: &mut Order) {
        if self.does(Action::Release) && !self.is_hopeless() {
            let mut job = self.market.job(order, Action::Release, "release");
            self.finish_and_settle(order, &mut job, After::Nothing).await;
        }
    }
}

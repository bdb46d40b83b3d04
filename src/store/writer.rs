//! The one thread that writes, and how it makes one commit of many operations.
//!
//! It blocks for one operation, drains what queued meanwhile, runs each so that it is kept whole or not at
//! all, commits, and only then answers. There is no timer: the queue that builds up during one `fsync`
//! is the next batch, so a slow disk costs one `fsync` a batch and a fast one costs no waiting.
//!
//! The steps of a batch are types: what has been [`Operated`] cannot be answered, only committed; what
//! has [`Ended`] can only be answered. A simulation drives the same steps, one by one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::key_use::{self, ConfiguredKey};
use super::ledger::{self, Acceptance, Accepted, Aside, Birth, Finish, Finished, Taken, Told};
use super::rows::{Backend, Result};
use super::waiters::{Claimed, Signals, Waiting};
use super::{Postpone, Shared, StoreError};
use crate::core::lifecycle::Instance;
use crate::hook::callback::{Action, Answer, Callback, Once, Outcome};
use crate::hook::clock::{Id, plus_millis};
use crate::observe::limits;
use crate::observe::metrics::Metric;

/// What a caller waits for: what the operation came to, once that is committed.
#[derive(Debug)]
pub(crate) struct Asked<T> {
    reply: oneshot::Sender<Result<T>>,
    done: Option<Result<T>>,
}

impl<T> Asked<T> {
    pub(crate) fn new(reply: oneshot::Sender<Result<T>>) -> Asked<T> {
        Asked { reply, done: None }
    }

    /// Whether whoever asked has gone.
    fn is_deserted(&self) -> bool {
        self.reply.is_closed()
    }

    /// Keeps what the operation came to. `false`: it failed.
    fn come_to(&mut self, done: Result<T>) -> bool {
        let succeeded = done.is_ok();
        self.done = Some(done);
        succeeded
    }

    /// Answers with the operation's own result, unless the commit failed: then nothing of it is true.
    fn answer(self, committed: &Result<()>) {
        self.answer_after(committed, |_| {});
    }

    /// The same, when `first` has been done about it.
    fn answer_after(self, committed: &Result<()>, first: impl FnOnce(&mut Result<T>)) {
        let mut kept = match committed {
            Ok(()) => self.done.unwrap_or(Err(StoreError::Inconsistent("an operation was not run"))),
            Err(error) => Err(error.clone()),
        };
        first(&mut kept);
        let _ = self.reply.send(kept);
    }
}

/// One operation, and what it came to.
pub(crate) enum Command {
    Accept(Box<AcceptCommand>),
    Finish(Box<FinishCommand>),
    Take {
        limit: usize,
        held: Vec<(i64, u32)>,
        postpone: Option<Arc<Postpone>>,
        now: Timestamp,
        asked: Asked<Taking>,
    },
    Extend {
        held: Vec<(i64, u32)>,
        now: Timestamp,
        asked: Asked<()>,
    },
    Recover {
        now: Timestamp,
        asked: Asked<ledger::Recovered>,
    },
    Count {
        counts: Vec<(i64, u64, Timestamp)>,
        keys: Vec<key_use::Used>,
        asked: Asked<()>,
    },
    ConfigureKeys {
        keys: Vec<ConfiguredKey>,
        now: Timestamp,
        asked: Asked<()>,
    },
    Spend {
        account: String,
        once: Once,
        now: Timestamp,
        asked: Asked<bool>,
    },
    Learn(Box<LearnCommand>),
    Probe {
        asked: Asked<()>,
    },
}

pub(crate) struct AcceptCommand {
    pub(crate) acceptance: Acceptance,
    pub(crate) id: Id,
    /// A place among the running jobs: with it the new job may be born leased.
    pub(crate) place: Option<OwnedSemaphorePermit>,
    /// Keys whose use is to be written by now.
    pub(crate) keys: Vec<key_use::Used>,
    /// `None`: the request is a copy. Like a fenced finish that is an outcome and no failure, which would have
    /// the whole batch run again.
    pub(crate) asked: Asked<Option<(Accepted, Option<Waiting>)>>,
}

pub(crate) struct FinishCommand {
    pub(crate) finish: Finish,
    /// The answer as the hook gave it, for those who wait.
    pub(crate) answer: Answer,
    /// Those who wait, once they have been taken out.
    pub(crate) claimed: Option<Claimed>,
    pub(crate) asked: Asked<Finished>,
}

pub(crate) struct LearnCommand {
    pub(crate) attempt: (i64, u32),
    pub(crate) callback: Callback,
    pub(crate) now: Timestamp,
    pub(crate) asked: Asked<Option<Instance>>,
}

/// Jobs taken up, and when to look again.
#[derive(Debug, Default)]
pub struct Taking {
    /// The jobs.
    pub taken: Vec<Taken>,
    /// When the next one becomes due.
    pub next_due: Option<Timestamp>,
    /// How many were put off.
    pub postponed: usize,
    /// Those that could not be read, or not what they need.
    pub aside: Vec<Aside>,
    /// How many leases had run out before.
    pub(crate) leases_ended: usize,
}

/// A batch whose operations have run, in a transaction that is still open.
pub(super) struct Operated {
    pub(super) begun: Result<()>,
    pub(super) batch: Vec<Command>,
}

/// A batch whose transaction has ended, well or not.
pub(super) struct Ended {
    pub(super) committed: Result<()>,
    pub(super) batch: Vec<Command>,
}

/// The one who writes.
pub(super) struct Writer<B> {
    pub(super) backend: B,
    pub(super) queue: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
}

impl<B: Backend> Writer<B> {
    pub(super) fn new(backend: B, queue: mpsc::Receiver<Command>, shared: Arc<Shared>) -> Writer<B> {
        Writer { backend, queue, shared }
    }

    /// Writes until every sender is gone.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let batch = self.gather(first, limits::WRITER_BATCH_MAX_COUNT);
            let operated = self.operate(batch);
            let ended = self.commit(operated);
            self.settle(ended);
        }
    }

    /// What queued behind `first`, up to `most` operations.
    pub(super) fn gather(&mut self, first: Command, most: usize) -> Vec<Command> {
        let mut batch = vec![first];
        while batch.len() < most {
            match self.queue.try_recv() {
                Ok(command) => batch.push(command),
                Err(_) => break,
            }
        }
        batch
    }

    /// Begins a transaction and runs the operations in it.
    ///
    /// Nearly always all of them succeed, so that they are run without a way back first: a savepoint costs as
    /// much as the operation in it. If one fails, what all of them did is undone, and they are run once more,
    /// each in a savepoint of its own.
    pub(super) fn operate(&mut self, mut batch: Vec<Command>) -> Operated {
        let mut begun = self.backend.begin();
        if begun.is_ok() && !self.all_succeed(&mut batch) {
            undo(&mut batch, &self.shared.signals);
            begun = self.backend.rollback().and_then(|()| self.backend.begin());
            for command in &mut batch {
                let usable = self.usable(&begun);
                run(&mut self.backend, command, Guard::Savepoint(usable), &self.shared);
            }
        }
        Operated { begun, batch }
    }

    fn all_succeed(&mut self, batch: &mut [Command]) -> bool {
        batch.iter_mut().all(|command| run(&mut self.backend, command, Guard::Batch, &self.shared))
            && self.backend.in_transaction()
    }

    fn usable(&self, begun: &Result<()>) -> Result<()> {
        match begun {
            Ok(()) if self.backend.in_transaction() => Ok(()),
            Ok(()) => Err(StoreError::Io("the transaction was ended by an earlier fault".to_owned())),
            Err(error) => Err(error.clone()),
        }
    }

    /// Commits; what cannot be committed is rolled back.
    pub(super) fn commit(&mut self, operated: Operated) -> Ended {
        let Operated { begun, mut batch } = operated;
        let committed = match begun {
            Ok(()) if self.backend.in_transaction() => self.backend.commit(),
            Ok(()) => Err(StoreError::Io("the transaction was ended by a fault".to_owned())),
            Err(error) => Err(error),
        };
        self.shared.metrics.observe(Metric::CommitOperations, ["", ""], batch.len() as f64);
        if let Err(error) = &committed {
            tracing::error!(%error, operations = batch.len(), "the store could not commit; nothing of the batch was kept");
            if let Err(error) = self.backend.rollback() {
                tracing::error!(%error, "the store could not roll back");
            }
            undo(&mut batch, &self.shared.signals);
        }
        Ended { committed, batch }
    }

    /// Answers.
    pub(super) fn settle(&self, ended: Ended) {
        for command in ended.batch {
            command.settle(&ended.committed, &self.shared.signals);
        }
    }
}

/// What takes an operation back that fails.
enum Guard {
    /// The end of the whole batch, which is then run again.
    Batch,
    /// A savepoint of its own, if the transaction can be used.
    Savepoint(Result<()>),
}

/// Runs one operation: what it does is kept whole or not at all.
///
/// A panic is walled in: whatever a peer sent that brought it about, it must not end the writing for
/// everybody else.
fn guarded<B: Backend, T>(
    backend: &mut B,
    guard: Guard,
    operation: impl FnOnce(&mut B) -> Result<T>,
) -> Result<T> {
    match guard {
        Guard::Batch => walled(backend, operation),
        Guard::Savepoint(usable) => usable.and_then(|()| in_savepoint(backend, operation)),
    }
}

fn walled<B: Backend, T>(backend: &mut B, operation: impl FnOnce(&mut B) -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(|| operation(backend))).unwrap_or_else(|_| {
        tracing::error!("an operation of the store panicked: this is a bug; nothing of it was kept");
        Err(StoreError::Inconsistent("an operation panicked"))
    })
}

/// Where even the savepoint fails nobody can say what the transaction holds, so it is given up with all that
/// is in it.
fn in_savepoint<B: Backend, T>(backend: &mut B, operation: impl FnOnce(&mut B) -> Result<T>) -> Result<T> {
    backend.savepoint()?;
    let done = walled(backend, operation);
    let ended = match &done {
        Ok(_) => backend.release_savepoint(),
        Err(_) if backend.in_transaction() => backend.rollback_savepoint(),
        Err(_) => Ok(()),
    };
    if let Err(error) = ended {
        backend.rollback()?;
        return Err(error);
    }
    done
}

/// Forgets what operations came to that were taken back. Those who were taken out as told wait on, and only
/// then do those leave who began to wait.
fn undo(batch: &mut [Command], signals: &Signals) {
    for command in batch.iter_mut() {
        if let Command::Finish(command) = command
            && let Some(claimed) = command.claimed.take()
        {
            signals.waiters().restore(claimed);
        }
    }
    for command in batch {
        if let Command::Accept(command) = command {
            command.asked.done = None;
        }
    }
}

/// Runs one operation and keeps what it came to. `false`: it failed.
fn run<B: Backend>(backend: &mut B, command: &mut Command, guard: Guard, shared: &Shared) -> bool {
    match command {
        Command::Accept(command) => accept(backend, command, guard, shared),
        Command::Finish(command) => finish(backend, command, guard, shared),
        Command::Take { limit, held, postpone, now, asked } => {
            asked.come_to(guarded(backend, guard, |rows| {
                let until = plus_millis(*now, limits::LEASE_MS);
                let ended = ledger::end_leases(rows, held, &shared.schedules, *now)?;
                let (leases_ended, mut aside) = (ended.count, ended.aside);
                let (taken, postponed) =
                    ledger::take(rows, *limit, postpone.as_deref(), until, *now, &mut aside)?;
                Ok(Taking { taken, postponed, aside, next_due: rows.next_due(*now)?, leases_ended })
            }))
        }
        Command::Extend { held, now, asked } => {
            let until = plus_millis(*now, limits::LEASE_MS);
            asked.come_to(guarded(backend, guard, |rows| ledger::extend(rows, held, until)))
        }
        Command::Recover { now, asked } => {
            let recover = |rows: &mut B| ledger::recover(rows, &shared.schedules, *now, None, |_| true);
            asked.come_to(guarded(backend, guard, recover))
        }
        Command::Count { counts, keys, asked } => {
            let count = |rows: &mut B| ledger::count(rows, counts).and_then(|()| key_use::used(rows, keys));
            asked.come_to(guarded(backend, guard, count))
        }
        Command::ConfigureKeys { keys, now, asked } => {
            asked.come_to(guarded(backend, guard, |rows| key_use::configure(rows, keys, *now)))
        }
        Command::Spend { account, once, now, asked } => {
            asked.come_to(guarded(backend, guard, |rows| ledger::spend(rows, account, once, *now)))
        }
        Command::Learn(command) => {
            let LearnCommand { attempt, callback, now, asked } = &mut **command;
            asked.come_to(guarded(backend, guard, |rows| ledger::learn(rows, *attempt, callback, *now)))
        }
        Command::Probe { asked } => asked.come_to(guarded(backend, guard, B::touch)),
    }
}

fn accept<B: Backend>(backend: &mut B, command: &mut AcceptCommand, guard: Guard, shared: &Shared) -> bool {
    let AcceptCommand { acceptance, id, place, keys, asked } = command;
    let lease_until = place.is_some().then(|| plus_millis(acceptance.received_at, limits::LEASE_MS));
    // Whoever gave up waiting for the store has answered "call again" by now.
    let birth = Birth { id: *id, lease_until, heard: !asked.is_deserted() };
    let accepted = guarded(backend, guard, |rows| {
        key_use::used(rows, keys)?;
        ledger::accept_once(rows, acceptance, birth)
    });
    let with_waiter = |accepted: Accepted| {
        let waiters = shared.signals.waiters();
        let waiting = match accepted.told {
            // One sign-on lets one browser in: whoever comes with it meanwhile is not told where to go.
            Told::Wait(job) if accepted.row.action == Action::SignOn && waiters.are_there(job) => None,
            Told::Wait(job) => Some(waiters.join(job, accepted.row.number)),
            _ => None,
        };
        (accepted, waiting)
    };
    asked.come_to(accepted.map(|accepted| accepted.map(with_waiter)))
}

fn finish<B: Backend>(backend: &mut B, command: &mut FinishCommand, guard: Guard, shared: &Shared) -> bool {
    let FinishCommand { finish, claimed, asked, .. } = command;
    let claimed = claimed.insert(shared.signals.waiters().claim(finish.job));
    let told = claimed.callbacks();
    asked.come_to(guarded(backend, guard, |rows| ledger::finish(rows, finish, &told)))
}

impl Command {
    /// Answers, after the commit and never before.
    fn settle(self, committed: &Result<()>, signals: &Signals) {
        match self {
            Command::Accept(command) => settle_accept(*command, committed, signals),
            Command::Finish(command) => settle_finish(*command, committed, signals),
            Command::Take { asked, .. } => asked.answer_after(committed, |taking| {
                // Of a commit that failed nobody knows for sure that it did: then the next hand-overs are looked up.
                signals.end_leases(taking.as_ref().map_or(1, |taking| taking.leases_ended as u64));
            }),
            Command::Recover { asked, .. } => asked.answer(committed),
            Command::Learn(command) => command.asked.answer(committed),
            Command::Spend { asked, .. } => asked.answer(committed),
            Command::Extend { asked, .. }
            | Command::Count { asked, .. }
            | Command::ConfigureKeys { asked, .. }
            | Command::Probe { asked } => asked.answer(committed),
        }
    }
}

fn settle_accept(command: AcceptCommand, committed: &Result<()>, signals: &Signals) {
    let AcceptCommand { place, asked, .. } = command;
    asked.answer_after(committed, |kept| {
        let Ok(Some((accepted, _))) = kept else { return };
        match (accepted.taken.take(), place) {
            (Some(taken), Some(place)) => signals.hand_over(taken, place),
            _ if accepted.wakes => signals.work.notify_one(),
            _ => {}
        }
    });
}

fn settle_finish(command: FinishCommand, committed: &Result<()>, signals: &Signals) {
    let FinishCommand { answer, claimed, asked, .. } = command;
    asked.answer_after(committed, |kept| match (kept, claimed) {
        (Ok(Finished::Kept { told, wakes, .. }), Some(claimed)) => {
            claimed.tell(&outcome_for_waiters(told, answer));
            if *wakes {
                signals.work.notify_one();
            }
        }
        (_, Some(claimed)) => signals.waiters().restore(claimed),
        // The commit failed, and they were put back already.
        (_, None) => {}
    });
}

fn outcome_for_waiters(told: &Told, answer: Answer) -> Outcome {
    match told {
        Told::Applied(stored) => {
            Outcome::Applied { instance_id: stored.instance_id.clone(), answer: Box::new(answer) }
        }
        Told::Refused(code, reason) => Outcome::Refused { code, reason: reason.clone() },
        Told::Held(reason) => Outcome::Held { reason: reason.clone() },
        Told::NotYet | Told::Wait(_) => Outcome::NotYet,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Schedules;
    use super::super::memory::Memory;
    use super::super::rows::{ActRow, JobRow, Read, Write};
    use super::*;
    use crate::hook::clock::from_millis;

    fn act(text: &str) -> ActRow {
        let text = text.to_owned();
        ActRow {
            at: Timestamp::UNIX_EPOCH,
            who: text.clone(),
            act: text.clone(),
            target: text.clone(),
            why: text,
        }
    }

    #[test]
    fn a_panic_takes_back_its_own_operation_and_no_other() {
        let mut backend = Memory::default();
        let reader = backend.reader();
        backend.begin().unwrap();
        in_savepoint(&mut backend, |rows| rows.add_act(&act("before"))).unwrap();
        let panicked = in_savepoint(&mut backend, |rows| -> Result<()> {
            rows.add_act(&act("half done"))?;
            std::panic::resume_unwind(Box::new("on purpose"))
        });
        assert!(matches!(panicked, Err(StoreError::Inconsistent(_))), "{panicked:?}");
        in_savepoint(&mut backend, |rows| rows.add_act(&act("after"))).unwrap();
        backend.commit().unwrap();
        let kept: Vec<String> = reader.list_acts(10).unwrap().into_iter().map(|act| act.act).collect();
        assert_eq!(kept, ["after", "before"]);
    }

    fn spending(nonce: &str) -> (Command, oneshot::Receiver<Result<bool>>) {
        let (reply, answer) = oneshot::channel();
        let once = Once { nonce: nonce.to_owned(), until: from_millis(60_000) };
        let now = Timestamp::UNIX_EPOCH;
        (Command::Spend { account: "acme".to_owned(), once, now, asked: Asked::new(reply) }, answer)
    }

    /// Learns of a job that belongs to no instance, which no order is.
    fn failing(job: i64) -> (Command, oneshot::Receiver<Result<Option<Instance>>>) {
        let (reply, answer) = oneshot::channel();
        let callback = Callback::new(Action::Payment, "orderPay");
        let asked = Asked::new(reply);
        let command = LearnCommand { attempt: (job, 1), callback, now: Timestamp::UNIX_EPOCH, asked };
        (Command::Learn(Box::new(command)), answer)
    }

    fn writer(mut backend: Memory) -> Writer<Memory> {
        backend.begin().unwrap();
        backend.add_job(&running()).unwrap();
        backend.commit().unwrap();
        let (signals, _ready) = Signals::new();
        let (schedules, metrics) = (Schedules::default(), crate::observe::metrics::Metrics::default());
        let shared = Arc::new(Shared { signals, schedules, metrics });
        let (_queue, commands) = mpsc::channel(1);
        Writer::new(backend, commands, shared)
    }

    fn running() -> JobRow {
        JobRow {
            number: 1,
            id: Id::from_bytes([1; 16]),
            callback: 1,
            instance: None,
            in_lane: false,
            action: Action::Payment,
            state: crate::core::lifecycle::schedule::JobState::Running,
            attempts: 1,
            step: 0,
            extra: crate::core::lifecycle::schedule::Extra::No,
            due_at: Timestamp::UNIX_EPOCH,
            lease_until: None,
            attempted_at: None,
            note: None,
            answer: None,
            sealed: None,
            proposed_id: None,
            created_at: Timestamp::UNIX_EPOCH,
            ended_at: None,
        }
    }

    fn write(writer: &mut Writer<Memory>, batch: Vec<Command>) {
        let operated = writer.operate(batch);
        let ended = writer.commit(operated);
        writer.settle(ended);
    }

    #[test]
    fn of_a_batch_with_a_failure_everything_else_is_kept() {
        let mut writer = writer(Memory::default());
        let (mut batch, answers): (Vec<_>, Vec<_>) = ["a", "b", "a", "c"].map(spending).into_iter().unzip();
        let (fails, failed) = failing(1);
        batch.insert(2, fails);
        write(&mut writer, batch);
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap()).collect();
        assert_eq!(answers, [Ok(true), Ok(true), Ok(false), Ok(true)]);
        assert!(matches!(failed.blocking_recv().unwrap(), Err(StoreError::Inconsistent(_))));
        let (again, answer) = spending("c");
        write(&mut writer, vec![again]);
        assert_eq!(answer.blocking_recv().unwrap(), Ok(false), "it was kept");
    }
}

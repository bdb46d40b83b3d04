//! Writer thread of the store: it makes one commit of many operations.
//!
//! The writer blocks for one operation and takes the operations that were queued meanwhile. It runs each of them so
//! that it is kept whole or not at all. Then it commits, and only then answers. There is no timer: the operations
//! queued during one `fsync` are the next batch. So a slow disk costs one `fsync` a batch, and a fast disk costs no
//! waiting.
//!
//! The steps of a batch are types. A batch that has been [`Operated`] cannot be answered, only committed. A batch that
//! has [`Ended`] can only be answered. A simulation drives the same steps, one by one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::key_use::{self, ConfiguredKey};
use super::rows::{Backend, DueMarketJobs, MarketJob, MarketJobKind, Read as _, Result};
use super::rules::{
    self, Acceptance, Accepted, AttemptEnd, CallEnd, EndedAttempt, Finish, KnownAnswer, LeasedJob, NewJob,
    OwedCall, UnreadableJob,
};
use super::waiters::{DrainedWaiters, ResultWaiter, StoreSignals};
use super::work::{Work, WorkRows};
use super::{Postpone, Shared, StoreError};
use crate::observe::limits;
use crate::observe::metrics::Metric;
use spid_hook::callback::{Action, Answer, Callback, Nonce, Outcome};
use spid_hook::id::Id;
use spid_hook::instance::Instance;
use spid_hook::time::plus_millis;

/// Reply slot of a caller: it receives the result of the operation after the commit.
#[derive(Debug)]
pub(crate) struct ReplySlot<T> {
    reply: oneshot::Sender<Result<T>>,
    done: Option<Result<T>>,
}

impl<T> ReplySlot<T> {
    pub(crate) fn new(reply: oneshot::Sender<Result<T>>) -> ReplySlot<T> {
        ReplySlot { reply, done: None }
    }

    /// Returns true if the caller no longer waits for the reply.
    fn is_cancelled(&self) -> bool {
        self.reply.is_closed()
    }

    /// Keeps the result of the operation.
    fn set_result(&mut self, done: Result<T>) {
        self.done = Some(done);
    }

    /// Sends the operation's own result, or the error of the commit if that failed.
    fn answer(self, committed: &Result<()>) {
        self.answer_after(committed, |_| {});
    }

    /// Sends the result like [`ReplySlot::answer`], after calling `first` with it.
    fn answer_after(self, committed: &Result<()>, first: impl FnOnce(&mut Result<T>)) {
        let mut kept = match committed {
            Ok(()) => self.done.unwrap_or(Err(StoreError::Inconsistent("an operation was not run"))),
            Err(error) => Err(error.clone()),
        };
        first(&mut kept);
        // A caller that has gone needs no answer.
        let _ = self.reply.send(kept);
    }
}

/// An operation of the writer, with its reply slot.
pub(crate) enum Command {
    Accept(Box<AcceptCommand>),
    Finish(Box<FinishCommand>),
    Lease {
        limit: usize,
        in_flight: Vec<(i64, u32)>,
        postpone: Option<Arc<Postpone>>,
        now: Timestamp,
        asked: ReplySlot<LeasedJobs>,
    },
    Extend {
        in_flight: Vec<(i64, u32)>,
        now: Timestamp,
        asked: ReplySlot<()>,
    },
    Recover {
        now: Timestamp,
        asked: ReplySlot<rules::Recovered>,
    },
    Count {
        counts: Vec<(i64, u64, Timestamp)>,
        keys: Vec<key_use::Used>,
        asked: ReplySlot<()>,
    },
    ConfigureKeys {
        keys: Vec<ConfiguredKey>,
        now: Timestamp,
        asked: ReplySlot<()>,
    },
    Consume {
        account: String,
        nonce: Nonce,
        now: Timestamp,
        asked: ReplySlot<bool>,
    },
    AddOrderDetails(Box<OrderDetailsCommand>),
    MarketJobs {
        step: MarketStep,
        now: Timestamp,
        asked: ReplySlot<Vec<MarketJob>>,
    },
    Probe {
        asked: ReplySlot<()>,
    },
}

pub(crate) struct AcceptCommand {
    pub(crate) acceptance: Acceptance,
    pub(crate) id: Id,
    /// Permit of the dispatcher. With it the new job may be created in state running.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    /// Uses of signature keys that are due to be written.
    pub(crate) keys: Vec<key_use::Used>,
    /// Reply slot. `None`: the request is a copy.
    ///
    /// A copy is a result and not an error, like a fenced finish.
    pub(crate) asked: ReplySlot<Option<(Accepted, Option<ResultWaiter>)>>,
}

pub(crate) struct FinishCommand {
    pub(crate) finish: Finish,
    /// Waiters of the job, after they were taken out.
    pub(crate) drained: Option<DrainedWaiters>,
    /// Reply slot. `None`: the attempt has lost its lease.
    pub(crate) asked: ReplySlot<Option<EndedAttempt>>,
}

/// Operation on jobs of the market client.
pub(crate) enum MarketStep {
    /// Keeps exactly these recurring jobs, at a start or later.
    Configure { recurring: Vec<OwedCall>, is_start: bool },
    /// Leases due jobs of a market and a kind, up to a number of them.
    Lease(String, MarketJobKind, usize),
    /// Records the end of an attempt at a job, and the calls that it found to be owed.
    Finish((i64, u32), CallEnd, Vec<OwedCall>),
}

impl MarketStep {
    /// Returns the leased jobs, or the job that ended; none if its attempt was fenced.
    fn run(&self, work: &mut Work<'_>, now: Timestamp) -> Result<Vec<MarketJob>> {
        match self {
            MarketStep::Configure { recurring, is_start } => {
                rules::configure(work, recurring, *is_start, now).map(|()| Vec::new())
            }
            MarketStep::Lease(market, kind, limit) => {
                rules::lease_calls(work, DueMarketJobs { kind: *kind, market, now, limit: *limit })
            }
            MarketStep::Finish(attempt, end, found) => {
                let ended = rules::finish_call(work, *attempt, end, found, now)?;
                Ok(ended.into_iter().collect())
            }
        }
    }
}

pub(crate) struct OrderDetailsCommand {
    pub(crate) attempt: (i64, u32),
    pub(crate) callback: Callback,
    pub(crate) now: Timestamp,
    pub(crate) asked: ReplySlot<Option<Instance>>,
}

/// Leased jobs, and the time of the next due job.
#[derive(Debug, Default)]
pub struct LeasedJobs {
    /// The leased jobs.
    pub taken: Vec<LeasedJob>,
    /// Due time of the next job.
    pub next_due: Option<Timestamp>,
    /// Number of postponed jobs.
    pub postponed: usize,
    /// Jobs that were not leased because their row, or a row that they need, cannot be read.
    pub unreadable: Vec<UnreadableJob>,
    /// Number of leases that had ended before.
    pub(crate) leases_ended: usize,
}

/// Operations that share one commit.
#[derive(Default)]
pub struct Batch(Vec<Command>);

impl Batch {
    /// Returns the job and the attempt of each operation that ends an attempt.
    pub fn ended_attempts(&mut self) -> impl Iterator<Item = (i64, &mut u32)> {
        self.0.iter_mut().filter_map(|command| match command {
            Command::Finish(command) => Some((command.finish.job, &mut command.finish.attempt)),
            _ => None,
        })
    }
}

/// A batch whose operations have run in a transaction that is still open.
pub struct Operated {
    /// Result of beginning the transaction.
    pub begun: Result<()>,
    /// The operations.
    pub batch: Batch,
}

/// A batch whose transaction was committed or rolled back.
pub struct Ended {
    /// Result of the commit.
    pub committed: Result<()>,
    /// The operations.
    pub batch: Batch,
}

/// The writer. There is one for each store.
///
/// Its own thread drives it with [`Writer::run`]. A simulation drives the steps itself.
pub struct Writer<B> {
    backend: B,
    queue: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    /// Rows of the open batch; after its commit, rows that the next one will need.
    known: WorkRows,
}

impl<B: Backend> Writer<B> {
    pub(super) fn new(backend: B, queue: mpsc::Receiver<Command>, shared: Arc<Shared>) -> Writer<B> {
        Writer { backend, queue, shared, known: WorkRows::default() }
    }

    /// Writes until every sender is gone.
    pub fn run(mut self) {
        // Wait for an operation.
        while let Some(first) = self.queue.blocking_recv() {
            // Take all operations that were queued during the last commit: they share one commit.
            let batch = self.gather(first, limits::WRITER_BATCH_MAX_COUNT);
            // Run them in one transaction. No answer is sent yet.
            let operated = self.operate(batch);
            // Make them durable, or take all of them back.
            let ended = self.commit(operated);
            // Only now answer the callers, and wake waiters and dispatcher.
            self.settle(ended);
        }
    }

    /// Waits for an operation, and takes the queued ones with it, at most `most` in total. `None`: the store is gone.
    pub async fn next_batch(&mut self, most: usize) -> Option<Batch> {
        let first = self.queue.recv().await?;
        Some(self.gather(first, most))
    }

    /// Returns the number of queued operations.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Returns `first` and the operations queued behind it, at most `most` operations.
    fn gather(&mut self, first: Command, most: usize) -> Batch {
        let mut batch = vec![first];
        while batch.len() < most {
            match self.queue.try_recv() {
                Ok(command) => batch.push(command),
                Err(_) => break,
            }
        }
        Batch(batch)
    }

    /// Begins a transaction and runs the operations in it.
    ///
    /// All operations share one unit of work, so each row is read and written once. An operation that fails changes
    /// nothing, and the others go on. If the rows cannot be stored, the whole batch is rolled back, and its operations
    /// run again, each with a unit of work and a savepoint of its own.
    pub fn operate(&mut self, mut batch: Batch) -> Operated {
        let known = std::mem::take(&mut self.known);
        let mut stored = false;
        let mut begun = self.backend.begin().map(|is_alone| {
            // Rows that are known from the last commit count only if no other process has committed since.
            let known = if is_alone { known } else { WorkRows::default() };
            (self.known, stored) = self.run_together(&mut batch.0, known);
        });
        if begun.is_ok() && !stored {
            // Take back the effects outside the rows, too. Otherwise the second run would do them twice.
            undo(&mut batch.0, &self.shared.signals);
            // Start again with the rows as they were before the batch.
            self.known = WorkRows::default();
            begun = self.backend.rollback().and_then(|()| self.backend.begin()).map(drop);
            for command in &mut batch.0 {
                // Without a transaction an operation would be kept on its own, so it then fails instead.
                if let Err(error) = self.usable(&begun).and_then(|()| self.run_alone(command)) {
                    command.fail(error);
                }
            }
        }
        Operated { begun, batch }
    }

    /// Runs the operations of a batch in one unit of work, and stores its changes.
    ///
    /// Returns the rows, and `false` if they could not be stored.
    fn run_together(&mut self, batch: &mut [Command], known: WorkRows) -> (WorkRows, bool) {
        let mut work = Work::with(&self.backend, known);
        for command in batch {
            run(&mut work, command, &self.shared);
        }
        let rows = work.into_rows();
        let stored = catch_panic(|| self.backend.store(&rows.changes()));
        // SQLite can end a transaction by itself after an error, for example when the disk is full.
        (rows, stored.is_ok() && self.backend.in_transaction())
    }

    /// Runs one operation in a unit of work and a savepoint of its own.
    ///
    /// If the savepoint cannot be ended, the content of the transaction is unknown. Then the whole transaction is rolled
    /// back.
    fn run_alone(&mut self, command: &mut Command) -> Result<()> {
        let mut work = Work::on(&self.backend);
        run(&mut work, command, &self.shared);
        let rows = work.into_rows();
        self.backend.savepoint()?;
        let stored = catch_panic(|| self.backend.store(&rows.changes()));
        let ended = match &stored {
            Ok(()) => self.backend.release_savepoint(),
            Err(_) if self.backend.in_transaction() => self.backend.rollback_savepoint(),
            // The transaction has ended by itself, and the savepoint with it.
            Err(_) => Ok(()),
        };
        if let Err(error) = ended {
            self.backend.rollback()?;
            return Err(error);
        }
        stored
    }

    fn usable(&self, begun: &Result<()>) -> Result<()> {
        match begun {
            Ok(()) if self.backend.in_transaction() => Ok(()),
            // An earlier operation ended the transaction. Without this check the rest would be committed one by one.
            Ok(()) => Err(StoreError::Io("an earlier error ended the transaction".to_owned())),
            Err(error) => Err(error.clone()),
        }
    }

    /// Commits the batch. If the commit fails, rolls it back.
    pub fn commit(&mut self, operated: Operated) -> Ended {
        let Operated { begun, mut batch } = operated;
        let committed = match begun {
            Ok(()) if self.backend.in_transaction() => self.backend.commit(),
            // Do not commit a transaction that has ended: the operations in it are lost.
            Ok(()) => Err(StoreError::Io("an error ended the transaction".to_owned())),
            Err(error) => Err(error),
        };
        let known = std::mem::take(&mut self.known);
        if committed.is_ok() {
            self.known = known.settled();
        }
        self.shared.metrics.observe(Metric::CommitOperations, ["", ""], batch.0.len() as f64);
        if let Err(error) = &committed {
            tracing::error!(%error, operations = batch.0.len(), "the store could not commit; nothing of the batch was kept");
            if let Err(error) = self.backend.rollback() {
                tracing::error!(%error, "the store could not roll back");
            }
            // Nothing of the batch was kept, so the waiters that were taken out must wait on.
            undo(&mut batch.0, &self.shared.signals);
        }
        Ended { committed, batch }
    }

    /// Answers every operation of the batch.
    pub fn settle(&self, ended: Ended) {
        if ended.committed.is_ok() {
            self.shared.signals.commit();
        }
        for command in ended.batch.0 {
            command.settle(&ended.committed, &self.shared.signals);
        }
    }
}

/// Decides in a unit of work, and keeps all of the operation or nothing.
///
/// A panic is caught and becomes an error. A request that causes a panic must not end the writer for all others.
fn decide<T>(work: &mut Work<'_>, operation: impl FnOnce(&mut Work<'_>) -> Result<T>) -> Result<T> {
    let decided = catch_panic(|| operation(work));
    match &decided {
        Ok(_) => work.keep(),
        Err(_) => work.undo(),
    }
    decided
}

fn catch_panic<T>(operation: impl FnOnce() -> Result<T>) -> Result<T> {
    // Safe to go on after a panic: the error makes the caller take back the operation or the whole batch.
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(|_| {
        tracing::error!("an operation of the store panicked: this is a bug; nothing of it was kept");
        Err(StoreError::Inconsistent("an operation panicked"))
    })
}

/// Takes back the effects of a batch outside the rows.
///
/// First the waiters that were taken out wait again. Then the waiters that the batch added leave.
fn undo(batch: &mut [Command], signals: &StoreSignals) {
    for command in batch.iter_mut() {
        if let Command::Finish(command) = command
            && let Some(drained) = command.drained.take()
        {
            signals.waiters().restore(drained);
        }
    }
    for command in batch {
        if let Command::Accept(command) = command {
            // Dropping the result drops the new waiter in it, which then leaves.
            command.asked.done = None;
        }
    }
}

/// Runs one operation and keeps its result.
fn run(work: &mut Work<'_>, command: &mut Command, shared: &Shared) {
    match command {
        Command::Accept(command) => accept(work, command, shared),
        Command::Finish(command) => finish(work, command, shared),
        Command::Lease { limit, in_flight, postpone, now, asked } => {
            asked.set_result(decide(work, |rows| {
                let until = plus_millis(*now, limits::LEASE_MS);
                // End the leases that ran out before leasing, so that their jobs can be leased at once.
                let ended = rules::end_leases(rows, in_flight, &shared.schedules, *now)?;
                let mut leased = rules::lease_due(rows, *limit, postpone.as_deref(), until, *now)?;
                leased.unreadable.extend(ended.unreadable);
                leased.next_due = rows.next_due(*now)?;
                leased.leases_ended = ended.count;
                Ok(leased)
            }));
        }
        Command::Extend { in_flight, now, asked } => {
            let until = plus_millis(*now, limits::LEASE_MS);
            asked.set_result(decide(work, |rows| rules::extend(rows, in_flight, until)));
        }
        Command::Recover { now, asked } => {
            asked.set_result(decide(work, |rows| {
                rules::recover(rows, &shared.schedules, *now, None, |_| true)
            }));
        }
        Command::Count { counts, keys, asked } => {
            asked.set_result(decide(work, |rows| {
                rules::count(rows, counts)?;
                key_use::used(rows, keys)
            }));
        }
        Command::ConfigureKeys { keys, now, asked } => {
            asked.set_result(decide(work, |rows| key_use::configure(rows, keys, *now)));
        }
        Command::Consume { account, nonce, now, asked } => {
            asked.set_result(decide(work, |rows| rules::consume(rows, account, nonce, *now)));
        }
        Command::AddOrderDetails(command) => {
            let OrderDetailsCommand { attempt, callback, now, asked } = &mut **command;
            asked.set_result(decide(work, |rows| rules::add_order_details(rows, *attempt, callback, *now)));
        }
        Command::MarketJobs { step, now, asked } => {
            asked.set_result(decide(work, |rows| step.run(rows, *now)));
        }
        Command::Probe { asked } => {
            asked.set_result(decide(work, |rows| {
                rows.touch();
                Ok(())
            }));
        }
    }
}

fn accept(work: &mut Work<'_>, command: &mut AcceptCommand, shared: &Shared) {
    let AcceptCommand { acceptance, id, permit, keys, asked } = command;
    let lease_until = permit.is_some().then(|| plus_millis(acceptance.received_at, limits::LEASE_MS));
    // A caller that no longer waits has already answered "call again", so its result does not count as reported.
    let new_job = NewJob { id: *id, lease_until, is_caller_waiting: !asked.is_cancelled() };
    let accepted = decide(work, |rows| {
        key_use::used(rows, keys)?;
        rules::accept_once(rows, acceptance, new_job)
    });
    asked.set_result(accepted.map(|accepted| {
        let accepted = accepted?;
        let waiter = waiter_for(&accepted, &shared.signals);
        Some((accepted, waiter))
    }));
}

/// Adds a waiter for the job that answers the callback, if there is one.
fn waiter_for(accepted: &Accepted, signals: &StoreSignals) -> Option<ResultWaiter> {
    let KnownAnswer::Wait(job) = accepted.answer else { return None };
    let waiters = signals.waiters();
    // A sign-on lets one browser in. A second browser with the same sign-on does not receive the address.
    if accepted.row.action == Action::SignOn && waiters.are_there(job) {
        return None;
    }
    Some(waiters.join(job, accepted.row.number))
}

fn finish(work: &mut Work<'_>, command: &mut FinishCommand, shared: &Shared) {
    let FinishCommand { finish, drained, asked, .. } = command;
    // Take the waiters out before the commit. The commit records the result as reported for exactly these callbacks, so
    // none of them may leave now.
    let drained = drained.insert(shared.signals.waiters().drain(finish.job));
    let reported = drained.callbacks();
    asked.set_result(decide(work, |rows| rules::finish(rows, finish, &reported)));
}

impl Command {
    /// Makes the operation fail, because its changes could not be stored.
    fn fail(&mut self, error: StoreError) {
        match self {
            Command::Accept(command) => command.asked.set_result(Err(error)),
            Command::Finish(command) => command.asked.set_result(Err(error)),
            Command::Lease { asked, .. } => asked.set_result(Err(error)),
            Command::Recover { asked, .. } => asked.set_result(Err(error)),
            Command::AddOrderDetails(command) => command.asked.set_result(Err(error)),
            Command::Consume { asked, .. } => asked.set_result(Err(error)),
            Command::MarketJobs { asked, .. } => asked.set_result(Err(error)),
            Command::Extend { asked, .. }
            | Command::Count { asked, .. }
            | Command::ConfigureKeys { asked, .. }
            | Command::Probe { asked } => asked.set_result(Err(error)),
        }
    }

    /// Sends the answer. Called only after the commit or the rollback.
    fn settle(self, committed: &Result<()>, signals: &StoreSignals) {
        match self {
            Command::Accept(command) => settle_accept(*command, committed, signals),
            Command::Finish(command) => settle_finish(*command, committed, signals),
            Command::Lease { asked, .. } => asked.answer_after(committed, |taking| {
                // After a failed commit it is unknown if leases ended. Count one, so that the next hand-overs are
                // looked up.
                signals.end_leases(taking.as_ref().map_or(1, |taking| taking.leases_ended as u64));
            }),
            Command::Recover { asked, .. } => asked.answer(committed),
            Command::AddOrderDetails(command) => command.asked.answer(committed),
            Command::Consume { asked, .. } => asked.answer(committed),
            Command::MarketJobs { asked, .. } => asked.answer(committed),
            Command::Extend { asked, .. }
            | Command::Count { asked, .. }
            | Command::ConfigureKeys { asked, .. }
            | Command::Probe { asked } => asked.answer(committed),
        }
    }
}

fn settle_accept(command: AcceptCommand, committed: &Result<()>, signals: &StoreSignals) {
    let AcceptCommand { permit, asked, .. } = command;
    asked.answer_after(committed, |kept| {
        let Ok(Some((accepted, _))) = kept else { return };
        match (accepted.taken.take(), permit) {
            // The job is committed in state running: hand it over together with its permit.
            (Some(taken), Some(permit)) => signals.hand_over(taken, permit),
            // A queued job was added or brought forward. The unused permit is returned when it is dropped.
            _ if accepted.wakes => signals.work.notify_one(),
            _ => {}
        }
    });
}

fn settle_finish(command: FinishCommand, committed: &Result<()>, signals: &StoreSignals) {
    let FinishCommand { finish, drained, asked } = command;
    asked.answer_after(committed, |kept| match (kept, drained) {
        (Ok(Some(ended)), Some(drained)) => {
            // Committed: the rows say "reported", so send the outcome now.
            let answer = std::mem::replace(&mut ended.answer, KnownAnswer::NotYet);
            drained.send(&outcome_for_waiters(answer, finish.end));
            if ended.wakes {
                signals.work.notify_one();
            }
        }
        // Fenced or failed: the attempt did not end the job, so the waiters wait on.
        (_, Some(drained)) => signals.waiters().restore(drained),
        // The commit failed, and `undo` has put the waiters back already.
        (_, None) => {}
    });
}

/// Returns the outcome of an attempt. The waiters get the hook's answer with its secrets.
fn outcome_for_waiters(known: KnownAnswer, end: AttemptEnd) -> Outcome {
    known.outcome(|stored| {
        let answer = match end {
            AttemptEnd::Done(answer) => answer,
            _ => Answer::default(),
        };
        Outcome::Applied { instance_id: stored.instance_id, answer: Box::new(answer) }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Schedules;
    use super::super::fixtures::{a_callback, a_job, change};
    use super::super::rows::{AuditEntry, JobRow, Lists as _, Numbered};
    use super::super::sqlite::Sqlite;
    use super::*;
    use spid_core::lifecycle::schedule::JobState;
    use spid_hook::time::from_millis;

    fn entry(text: &str) -> AuditEntry {
        let text = text.to_owned();
        AuditEntry {
            at: Timestamp::UNIX_EPOCH,
            who: text.clone(),
            act: text.clone(),
            target: text.clone(),
            why: text,
        }
    }

    fn database(folder: &tempfile::TempDir) -> Sqlite {
        Sqlite::open(&folder.path().join("spid.db"), None).unwrap()
    }

    #[test]
    fn a_panic_takes_back_its_own_operation_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut backend = database(&folder);
        change(&mut backend, |work| {
            let add = |work: &mut Work<'_>, text| {
                work.add_audit_entry(entry(text));
                work.add_name("acme", text, 1).map(drop)
            };
            decide(work, |rows| add(rows, "before"))?;
            let panicked = decide(work, |rows| -> Result<()> {
                add(rows, "half done")?;
                std::panic::resume_unwind(Box::new("on purpose"))
            });
            assert!(matches!(panicked, Err(StoreError::Inconsistent(_))), "{panicked:?}");
            assert_eq!(work.name_holder("acme", "half done"), Ok(None));
            decide(work, |rows| add(rows, "after"))?;
            work.add_instance(&Instance::adopted(
                &Callback::new(Action::Renew, "renew"),
                "acme",
                "e",
                Timestamp::UNIX_EPOCH,
            ))
        });
        let kept: Vec<String> = backend.audit_log(10).unwrap().into_iter().map(|entry| entry.act).collect();
        assert_eq!(kept, ["after", "before"]);
        assert_eq!(backend.name_holder("acme", "half done"), Ok(None));
        assert_eq!(backend.name_holder("acme", "after"), Ok(Some(1)));
    }

    fn consuming(nonce: &str) -> (Command, oneshot::Receiver<Result<bool>>) {
        let (reply, answer) = oneshot::channel();
        let nonce = Nonce { nonce: nonce.to_owned(), until: from_millis(60_000) };
        let now = Timestamp::UNIX_EPOCH;
        (Command::Consume { account: "acme".to_owned(), nonce, now, asked: ReplySlot::new(reply) }, answer)
    }

    /// Looks up order details for a job without an instance, so the operation fails.
    fn failing(job: i64) -> (Command, oneshot::Receiver<Result<Option<Instance>>>) {
        let (reply, answer) = oneshot::channel();
        let callback = Callback::new(Action::Payment, "orderPay");
        let asked = ReplySlot::new(reply);
        let command = OrderDetailsCommand { attempt: (job, 1), callback, now: Timestamp::UNIX_EPOCH, asked };
        (Command::AddOrderDetails(Box::new(command)), answer)
    }

    /// Returns a writer on a database with one running job, without an instance.
    fn writer(mut backend: Sqlite) -> Writer<Sqlite> {
        let callback = Callback::new(Action::Payment, "orderPay");
        change(&mut backend, |rows| {
            let callback = rows.add_callback(&a_callback(Action::Payment), &Arc::new(callback))?;
            let number = rows.take_number(Numbered::Job)?;
            let job = a_job(Id::from_bytes([1; 16]), callback, Action::Payment, JobState::Running);
            rows.add_job(&JobRow { number, attempts: 1, ..job })
        });
        let (signals, _ready) = StoreSignals::new();
        let (schedules, metrics) = (Schedules::default(), crate::observe::metrics::Metrics::default());
        let shared = Arc::new(Shared { signals, schedules, metrics });
        let (_queue, commands) = mpsc::channel(1);
        Writer::new(backend, commands, shared)
    }

    fn write(writer: &mut Writer<Sqlite>, batch: Vec<Command>) {
        let operated = writer.operate(Batch(batch));
        let ended = writer.commit(operated);
        writer.settle(ended);
    }

    #[test]
    fn of_a_batch_with_a_failure_everything_else_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(database(&folder));
        let (mut batch, answers): (Vec<_>, Vec<_>) = ["a", "b", "a", "c"].map(consuming).into_iter().unzip();
        let (fails, failed) = failing(1);
        batch.insert(2, fails);
        write(&mut writer, batch);
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap()).collect();
        assert_eq!(answers, [Ok(true), Ok(true), Ok(false), Ok(true)]);
        assert!(matches!(failed.blocking_recv().unwrap(), Err(StoreError::Inconsistent(_))));
        let (again, answer) = consuming("c");
        write(&mut writer, vec![again]);
        assert_eq!(answer.blocking_recv().unwrap(), Ok(false), "it was kept");
    }
}

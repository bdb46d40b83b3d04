//! The simulated disk: the real writer, driven step by step, on tables in memory that fail when the simulation says so.
//!
//! This module makes no decisions. The tables outlive the store that wrote them, as a disk outlives a crash. The writer
//! is a value instead of a thread, and its owner drives each batch. The owner chooses the size of the batch and the
//! duration of its commit, and may leave the batch unfinished.

use std::sync::Arc;

use jiff::Timestamp;
use spid::internals::store;
use spid::internals::store::encryption::Encryptor;
use spid::internals::store::{
    Backend, CallbackRow, Changes, Ended, InstanceAndQueue, InstanceRow, JobRow, KeyUse, MarketJob,
    MarketJobs, Numbered, Operated, Read, ReadableJob, Reader, Store, StoreError, StoreOptions,
};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::Callback;
use spid_hook::id::Id;
use spid_hook::time::Clock;

use crate::support::memory_store::{Memory, MemoryReader};

type Result<T> = std::result::Result<T, StoreError>;

/// State that survives a crash: the committed tables and the sealing key.
#[derive(Clone)]
pub(crate) struct Disk {
    tables: MemoryReader,
    encryptor: Encryptor,
}

impl Disk {
    /// Creates an empty disk.
    pub(crate) fn empty() -> Result<Disk> {
        Ok(Disk { tables: MemoryReader::default(), encryptor: Encryptor::ephemeral()? })
    }

    /// Returns a reader of the committed tables.
    pub(crate) fn reader(&self) -> Reader {
        Reader::of(self.tables.clone())
    }
}

/// Points at which a disk may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// A transaction begins.
    Begin,
    /// A row is written.
    Write,
    /// The transaction is committed.
    Commit,
}

/// Effects of a disk fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An error.
    Error,
    /// An error, and the whole transaction is rolled back.
    Aborts,
    /// An error on commit, although the commit succeeded. At other points, a plain error.
    Unheard,
}

/// Callback that decides if the disk fails at a point.
pub(crate) type FaultChooser = Arc<dyn Fn(Point) -> Option<Fault> + Send + Sync>;

/// Bugs planted on purpose, to check that the simulation finds them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PlantedBug {
    /// Nothing.
    #[default]
    Nothing,
    /// Answers leave before the commit.
    EarlyAnswers,
    /// An attempt that lost its lease can still end the job.
    NoFence,
    /// A callback is decided on data that was committed before its batch.
    StaleDecisions,
    /// A job that is done but unreported counts as not ended: a redelivery joins it, regardless of later changes.
    DoneJoins,
}

/// Creates a store on `disk`, and the writer that the caller must drive for it.
pub(crate) fn assemble(
    disk: &Disk,
    options: StoreOptions,
    clock: Clock,
    choose_fault: FaultChooser,
    planted: PlantedBug,
) -> (Store, Writer) {
    let backend =
        FailingRows { rows: Memory::on(&disk.tables), committed: disk.tables.clone(), choose_fault, planted };
    let (store, writer) = Store::assemble(backend, disk.reader(), disk.encryptor.clone(), options, clock);
    (store, Writer { writer, committed: disk.tables.clone(), planted })
}

/// A writer that the simulation drives step by step.
pub(crate) struct Writer {
    writer: store::Writer<FailingRows>,
    committed: MemoryReader,
    planted: PlantedBug,
}

impl Writer {
    /// Waits for an operation, and runs it together with the queued ones, at most `most` in total. `None`: the store is
    /// gone.
    pub(crate) async fn operate(&mut self, most: usize) -> Option<Operated> {
        let mut batch = self.writer.next_batch(most).await?;
        if self.planted == PlantedBug::NoFence {
            // Any attempt may end the job, as if it were the last attempt.
            for (job, attempt) in batch.ended_attempts() {
                if let Ok(Some(job)) = self.committed.job(job) {
                    *attempt = job.attempts;
                }
            }
        }
        let mut operated = self.writer.operate(batch);
        if self.planted == PlantedBug::EarlyAnswers {
            // Answer now and leave the batch empty, so that the later `settle` answers no operation twice.
            let batch = std::mem::take(&mut operated.batch);
            self.writer.settle(Ended { committed: Ok(()), batch });
        }
        Some(operated)
    }

    /// Commits the batch, or rolls it back.
    pub(crate) fn commit(&mut self, operated: Operated) -> Ended {
        self.writer.commit(operated)
    }

    /// Sends the answers of the batch.
    pub(crate) fn settle(&self, ended: Ended) {
        self.writer.settle(ended);
    }
}

fn failed(point: Point) -> StoreError {
    StoreError::Io(format!("the simulated disk failed: {point:?}"))
}

/// Store in memory, on a disk that fails when `choose_fault` says so.
struct FailingRows {
    rows: Memory,
    committed: MemoryReader,
    choose_fault: FaultChooser,
    planted: PlantedBug,
}

impl FailingRows {
    fn at(&mut self, point: Point) -> Result<()> {
        let Some(fault) = (self.choose_fault)(point) else { return Ok(()) };
        // Some disk errors make SQLite roll back the whole transaction.
        if fault == Fault::Aborts {
            self.rows.rollback()?;
        }
        Err(failed(point))
    }

    /// Rows that decisions are made on: the committed ones if `StaleDecisions` is planted.
    fn decided_on(&self) -> &dyn Read {
        if self.planted == PlantedBug::StaleDecisions { &self.committed } else { &self.rows }
    }
}

impl Read for FailingRows {
    fn instance(&self, number: i64) -> Result<Option<InstanceRow>> {
        self.rows.instance(number)
    }
    fn instance_by_name(&self, account: &str, name: &str) -> Result<Option<InstanceAndQueue>> {
        self.decided_on().instance_by_name(account, name)
    }
    fn name_holder(&self, account: &str, name: &str) -> Result<Option<i64>> {
        self.rows.name_holder(account, name)
    }
    fn instances_by_order(&self, account: &str, order_id: &str) -> Result<Vec<i64>> {
        self.decided_on().instances_by_order(account, order_id)
    }
    fn instance_bought(&self, account: &str, order_id: &str, order_biz_id: &str) -> Result<Option<i64>> {
        self.decided_on().instance_bought(account, order_id, order_biz_id)
    }
    fn queue(&self, instance: i64) -> Result<Vec<(JobRow, Callback)>> {
        self.decided_on().queue(instance)
    }
    fn queue_jobs(&self, instance: i64) -> Result<Vec<JobRow>> {
        Ok(self.decided_on().queue(instance)?.into_iter().map(|(job, _)| job).collect())
    }
    fn instance_jobs(&self, instance: i64) -> Result<Vec<JobRow>> {
        self.rows.instance_jobs(instance)
    }
    fn instance_callbacks(&self, instance: i64) -> Result<Vec<CallbackRow>> {
        self.rows.instance_callbacks(instance)
    }
    fn has_queue(&self, instance: i64) -> Result<bool> {
        self.rows.has_queue(instance)
    }
    fn nonce_until(&self, account: &str, mark: &[u8; 16]) -> Result<Option<Timestamp>> {
        self.rows.nonce_until(account, mark)
    }
    fn earlier_callbacks(&self, key: &[u8; 16]) -> Result<Vec<(CallbackRow, Option<JobRow>)>> {
        let mut earlier_callbacks = self.decided_on().earlier_callbacks(key)?;
        if self.planted == PlantedBug::DoneJoins {
            let unreported = earlier_callbacks.iter_mut().filter(|(row, _)| row.reported_at.is_none());
            for job in unreported.filter_map(|(_, job)| job.as_mut()) {
                if job.state == JobState::Done {
                    // A pending job counts as not ended, so the rules let a redelivery join it.
                    job.state = JobState::Pending;
                }
            }
        }
        Ok(earlier_callbacks)
    }
    fn callback(&self, number: i64) -> Result<Option<(CallbackRow, Callback)>> {
        self.rows.callback(number)
    }
    fn callback_row(&self, number: i64) -> Result<Option<CallbackRow>> {
        self.rows.callback_row(number)
    }
    fn job(&self, number: i64) -> Result<Option<JobRow>> {
        self.rows.job(number)
    }
    fn next_number(&self, table: Numbered) -> Result<i64> {
        self.rows.next_number(table)
    }
    fn job_by_id(&self, id: Id) -> Result<Option<JobRow>> {
        self.rows.job_by_id(id)
    }
    fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<ReadableJob>> {
        self.rows.due(now, limit)
    }
    fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        self.rows.next_due(now)
    }
    fn running(&self, ended_before: Option<Timestamp>) -> Result<Vec<ReadableJob>> {
        self.rows.running(ended_before)
    }
    fn payments(&self, account: &str, order_id: &str) -> Result<Vec<(CallbackRow, Callback)>> {
        self.rows.payments(account, order_id)
    }
    fn market_jobs(&self, which: MarketJobs<'_>) -> Result<Vec<MarketJob>> {
        self.rows.market_jobs(which)
    }
    fn key_uses(&self) -> Result<Vec<KeyUse>> {
        self.rows.key_uses()
    }
}

impl Backend for FailingRows {
    fn begin(&mut self) -> Result<bool> {
        self.at(Point::Begin)?;
        self.rows.begin()
    }
    fn store(&mut self, changes: &Changes<'_>) -> Result<()> {
        // Each row is a write of its own, and may fail.
        for _ in 0..changes.rows_count() {
            self.at(Point::Write)?;
        }
        self.rows.store(changes)
    }
    fn commit(&mut self) -> Result<()> {
        let fault = (self.choose_fault)(Point::Commit);
        if fault == Some(Fault::Aborts) {
            self.rows.rollback()?;
        }
        // `Unheard` commits first and reports the error afterwards.
        if fault.is_none_or(|fault| fault == Fault::Unheard) {
            self.rows.commit()?;
        }
        fault.map_or(Ok(()), |_| Err(failed(Point::Commit)))
    }
    fn rollback(&mut self) -> Result<()> {
        self.rows.rollback()
    }
    fn savepoint(&mut self) -> Result<()> {
        self.rows.savepoint()
    }
    fn release_savepoint(&mut self) -> Result<()> {
        self.rows.release_savepoint()
    }
    fn rollback_savepoint(&mut self) -> Result<()> {
        self.rows.rollback_savepoint()
    }
    fn in_transaction(&self) -> bool {
        self.rows.in_transaction()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use spid::internals::store::{Acceptance, AttemptEnd, Filter};
    use spid_core::lifecycle::Policy;
    use spid_hook::callback::{Action, Answer, InstanceRef, Nonce};

    fn a_create(clock: &Clock) -> Acceptance {
        let subject = InstanceRef { instance_id: None, order_biz_id: Some("ob-1".to_owned()) };
        Acceptance {
            account: "acme".to_owned(),
            endpoint: "alibaba-cn".to_owned(),
            key_label: "current".to_owned(),
            callback: Arc::new(Callback { subject, ..Callback::new(Action::Create, "createInstance") }),
            received_at: clock.now(),
            policy: Policy::default(),
            fetched: false,
            approved: false,
            delivery_limit: None,
        }
    }

    async fn turn(writer: &mut Writer) {
        let operated = writer.operate(16).await.unwrap();
        let ended = writer.commit(operated);
        writer.settle(ended);
    }

    /// Lets a callback join a job in the batch that ends the job. The batch cannot be committed.
    #[tokio::test]
    async fn who_was_told_to_call_again_does_not_count_as_told() {
        let disk = Disk::empty().unwrap();
        let fails = Arc::new(AtomicBool::new(false));
        let failing = fails.clone();
        let choose_fault: FaultChooser = Arc::new(move |point| {
            (point == Point::Commit && failing.load(Ordering::Relaxed)).then_some(Fault::Error)
        });
        let clock = Clock::System;
        let (store, mut writer) =
            assemble(&disk, StoreOptions::default(), clock.clone(), choose_fault, PlantedBug::Nothing);
        let deliver = || {
            let (store, acceptance) = (store.clone(), a_create(&clock));
            tokio::spawn(async move { store.accept(acceptance).await })
        };

        let first = deliver();
        turn(&mut writer).await;
        drop(first.await.unwrap().unwrap());
        let taking = tokio::spawn({
            let store = store.clone();
            async move { store.take(1).await }
        });
        turn(&mut writer).await;
        let taken = Arc::new(taking.await.unwrap().unwrap().taken.remove(0));
        let finish = || {
            let (store, taken) = (store.clone(), taken.clone());
            tokio::spawn(async move { store.finish(&taken, AttemptEnd::Done(Answer::default())).await })
        };

        fails.store(true, Ordering::Relaxed);
        let (again, finishing) = (deliver(), finish());
        turn(&mut writer).await;
        assert!(again.await.unwrap().is_err());
        assert!(finishing.await.unwrap().is_err());

        fails.store(false, Ordering::Relaxed);
        let finishing = finish();
        turn(&mut writer).await;
        finishing.await.unwrap().unwrap();
        let row = &disk.reader().callbacks(&Filter { limit: 2, ..Filter::default() }).unwrap()[0];
        assert_eq!((row.deliveries, row.reported_at), (1, None));
    }

    /// A peer can send any number of copies, so a copy must not double the work of the orders in its batch.
    #[tokio::test]
    async fn a_copied_request_is_an_outcome_and_its_batch_runs_once() {
        let disk = Disk::empty().unwrap();
        let begun = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counted = begun.clone();
        let choose_fault: FaultChooser = Arc::new(move |point| {
            counted.fetch_add(u64::from(point == Point::Begin), Ordering::Relaxed);
            None
        });
        let clock = Clock::System;
        let (store, mut writer) =
            assemble(&disk, StoreOptions::default(), clock.clone(), choose_fault, PlantedBug::Nothing);
        let deliver = |order: &str, nonce: &str| {
            let mut acceptance = a_create(&clock);
            let callback = Arc::make_mut(&mut acceptance.callback);
            callback.subject.order_biz_id = Some(order.to_owned());
            callback.nonce = Some(Nonce { nonce: nonce.to_owned(), until: clock.now() });
            let store = store.clone();
            tokio::spawn(async move { store.accept(acceptance).await })
        };
        // Send all three before any commit: later a reader would recognize the copy, and the writer would never see it.
        let before = begun.load(Ordering::Relaxed);
        let (first, order, copy) = (deliver("ob-1", "n-1"), deliver("ob-2", "n-2"), deliver("ob-1", "n-1"));
        while writer.writer.queued() < 3 {
            tokio::task::yield_now().await;
        }
        turn(&mut writer).await;
        assert!(first.await.unwrap().is_ok() && order.await.unwrap().is_ok());
        assert_eq!(copy.await.unwrap().unwrap_err(), StoreError::Replayed);
        assert_eq!(begun.load(Ordering::Relaxed) - before, 1, "the batch ran more than once");
        let rows = disk.reader().callbacks(&Filter { limit: 9, ..Filter::default() }).unwrap();
        assert_eq!(
            rows.iter().map(|row| row.deliveries).collect::<Vec<_>>(),
            [1, 1],
            "a copy stores nothing"
        );
    }
}

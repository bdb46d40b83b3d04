//! Writes of the SQLite backend. The rules decide which rows to write; this module only writes them.

use rusqlite::{CachedStatement, ErrorCode, Params, params};

use super::codes::{DONE, JOB_HELD, QUEUED};
use super::read::{key_of, kind_code, millis};
use super::{MIGRATIONS, Sqlite};
use crate::store::StoreError;
use crate::store::rows::{AttemptRow, CallbackRow, InstanceRow, JobRow, MarketJob, Result};
use crate::store::work::{Changes, Stored, StoredCallback};
use spid_hook::callback::Callback;
use spid_hook::instance::{Instance, State};

/// Change of the row of table `head` in one transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct HeadChange {
    /// Highest number of an added instance, callback and job.
    numbers: [i64; 3],
    /// Added instances in each state, less those that left it.
    states: [i64; State::ALL.len()],
}

const INSERT_INSTANCE: &str =
    "INSERT INTO instance (number, id, order_biz_id, state, account, endpoint, buyer, product, sku, order_id, trial,
       expires_on, expires_on_raw, items, began, tombstone, adopted, claimed_at, tenant, created_at, updated_at,
       converted, created_by, public_id, known_as)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
       ?24, ?25)";

const UPDATE_INSTANCE: &str =
    "UPDATE instance SET id = ?2, order_biz_id = ?3, state = ?4, account = ?5, endpoint = ?6, buyer = ?7, product = ?8,
    sku = ?9, order_id = ?10, trial = ?11, expires_on = ?12, expires_on_raw = ?13, items = ?14, began = ?15,
    tombstone = ?16, adopted = ?17, claimed_at = ?18, tenant = ?19, created_at = ?20, updated_at = ?21,
    converted = ?22, created_by = ?23, public_id = ?24, known_as = ?25
     WHERE number = ?1";

const INSERT_NAME: &str = "INSERT INTO name (account, name, instance) VALUES (?1, ?2, ?3)";

/// A redelivered order may be known already.
const INSERT_ORDER: &str =
    "INSERT INTO purchase (account, order_id, instance) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";

const INSERT_CALLBACK: &str =
    "INSERT INTO callback (number, account, endpoint, key_label, occurrence, instance, job, action,
               disposition, reason_code, reason, received_at, last_received_at, deliveries, budget, told_at,
               dismissed_at, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)";

const UPDATE_CALLBACK: &str = "UPDATE callback SET job = ?2, disposition = ?3, reason_code = ?4, reason = ?5,
               last_received_at = ?6, deliveries = ?7, told_at = ?8, dismissed_at = ?9 WHERE number = ?1";

const INSERT_JOB: &str =
    "INSERT INTO job (number, id, callback, instance, in_lane, action, state, attempts, step, extra,
               due_at, lease_until, attempted_at, note, answer, sealed, proposed_id, created_at, ended_at, blocked)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)";

const UPDATE_JOB: &str =
    "UPDATE job SET state = ?2, attempts = ?3, step = ?4, extra = ?5, due_at = ?6, lease_until = ?7,
               attempted_at = ?8, note = ?9, answer = ?10, sealed = ?11, proposed_id = ?12, ended_at = ?13,
               blocked = ?14 WHERE number = ?1";

/// A statement that is prepared at its first use, for all rows of one table in a batch.
struct Prepared<'a> {
    sqlite: &'a Sqlite,
    sql: &'static str,
    statement: Option<CachedStatement<'a>>,
}

impl<'a> Prepared<'a> {
    fn of(sqlite: &'a Sqlite, sql: &'static str) -> Prepared<'a> {
        Prepared { sqlite, sql, statement: None }
    }

    fn run(&mut self, params: impl Params) -> Result<()> {
        let statement = match &mut self.statement {
            Some(statement) => statement,
            none => none.insert(self.sqlite.statement(self.sql)?),
        };
        statement.execute(params)?;
        Ok(())
    }
}

impl Sqlite {
    /// Writes the changes of a unit of work: each row before those that refer to it.
    pub(super) fn write(&self, changes: &Changes<'_>) -> Result<()> {
        let (mut add, mut put) = (Prepared::of(self, INSERT_INSTANCE), Prepared::of(self, UPDATE_INSTANCE));
        for instance in &changes.instances {
            match instance {
                Stored::Added(row) => write_instance(&mut add, row)?,
                Stored::Changed(row) => write_instance(&mut put, row)?,
            }
        }
        self.write_names(changes)?;
        let (mut add, mut put) = (Prepared::of(self, INSERT_CALLBACK), Prepared::of(self, UPDATE_CALLBACK));
        for callback in &changes.callbacks {
            match callback {
                StoredCallback::Added(row, callback) => add_callback(&mut add, row, callback)?,
                StoredCallback::Changed(row) => put_callback(&mut put, row)?,
                StoredCallback::Body(number, callback) => self.put_body(*number, callback)?,
            }
        }
        let (mut add, mut put) = (Prepared::of(self, INSERT_JOB), Prepared::of(self, UPDATE_JOB));
        for job in &changes.jobs {
            match job {
                Stored::Added(row) => add_job(&mut add, row)?,
                Stored::Changed(row) => put_job(&mut put, row)?,
            }
        }
        for job in &changes.market_jobs {
            self.write_market_job(job)?;
        }
        self.write_unreadable(changes)?;
        self.write_notes(changes)?;
        self.write_nonces(changes)?;
        self.write_keys(changes)?;
        self.count_head(changes);
        if changes.touch {
            // The value does not change, but SQLite still writes the page to disk.
            self.connection.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
        }
        Ok(())
    }

    fn write_names(&self, changes: &Changes<'_>) -> Result<()> {
        let mut add = Prepared::of(self, INSERT_NAME);
        for (account, name, instance) in &changes.names {
            add.run(params![account, name, instance])?;
        }
        let mut add = Prepared::of(self, INSERT_ORDER);
        for (account, order_id, instance) in &changes.orders {
            add.run(params![account, order_id, instance])?;
        }
        Ok(())
    }

    /// Writes what is known about rows that cannot be read.
    fn write_unreadable(&self, changes: &Changes<'_>) -> Result<()> {
        for instance in &changes.unblocked {
            self.unblock(*instance)?;
        }
        for (job, note) in &changes.held_unreadable {
            self.hold_unreadable(*job, note)?;
        }
        for (job, until) in &changes.postponed {
            let sql = &format!("UPDATE job SET due_at = ?2 WHERE number = ?1 AND state = {QUEUED}");
            self.run_or_skip(*job, sql, params![job, until.as_millisecond()])?;
        }
        Ok(())
    }

    fn write_notes(&self, changes: &Changes<'_>) -> Result<()> {
        for attempt in changes.attempts {
            self.add_attempt(attempt)?;
        }
        for entry in changes.audit {
            // An entry is never deleted, and a number that was edited by hand must not block the next ones.
            self.run(
                "INSERT INTO act (number, at, who, act, target, why)
                 SELECT 1 + coalesce(max(number), 0), ?1, ?2, ?3, ?4, ?5 FROM act WHERE number < 9007199254740991",
                params![entry.at.as_millisecond(), entry.who, entry.act, entry.target, entry.why],
            )?;
        }
        Ok(())
    }

    fn write_nonces(&self, changes: &Changes<'_>) -> Result<()> {
        if let Some(before) = changes.forget_nonces {
            self.run("DELETE FROM once WHERE until < ?1", [before.as_millisecond()])?;
        }
        for (account, digest, until) in &changes.nonces {
            let sql = "INSERT INTO once (account, mark, until) VALUES (?1, ?2, ?3)";
            self.run(sql, params![account, digest, until.as_millisecond()])?;
        }
        Ok(())
    }

    fn write_keys(&self, changes: &Changes<'_>) -> Result<()> {
        for (endpoint, label) in &changes.dropped_keys {
            self.run("DELETE FROM key_use WHERE endpoint = ?1 AND label = ?2", params![endpoint, label])?;
        }
        for row in &changes.key_uses {
            let used_at = millis(row.used_at);
            self.run(
                "INSERT INTO key_use (endpoint, label, mark, since, used_at) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (endpoint, label) DO UPDATE SET mark = ?3, since = ?4, used_at = ?5",
                params![row.endpoint, row.label, row.mark, row.since.as_millisecond(), used_at],
            )?;
        }
        Ok(())
    }

    /// Adds to the change of numbers and totals that the commit writes.
    fn count_head(&self, changes: &Changes<'_>) {
        let head = &mut *self.head.borrow_mut();
        for (count, change) in head.states.iter_mut().zip(changes.states) {
            *count += change;
        }
        for (highest, added) in head.numbers.iter_mut().zip(changes.highest_added()) {
            *highest = (*highest).max(added);
        }
    }

    /// Writes the change of numbers and totals, and the stamp of the commit, into the open transaction.
    pub(super) fn write_head(&self, stamp: Option<i64>) -> Result<()> {
        let HeadChange { numbers: [instance, callback, job], states: [pending, active, frozen, released] } =
            *self.head.borrow();
        if stamp.is_none() && *self.head.borrow() == HeadChange::default() {
            return Ok(());
        }
        let put = "UPDATE head SET stamp = coalesce(?1, stamp), instance = max(instance, ?2),
             callback = max(callback, ?3), job = max(job, ?4), pending = pending + ?5, active = active + ?6,
             frozen = frozen + ?7, released = released + ?8 WHERE id = 1";
        let params = params![stamp, instance, callback, job, pending, active, frozen, released];
        if self.change(put, params)? == 0 {
            let add =
                "INSERT INTO head (id, stamp, instance, callback, job, pending, active, frozen, released)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            self.run(add, params)?;
        }
        Ok(())
    }

    /// Replaces the content of a callback.
    pub(in crate::store) fn put_body(&self, number: i64, callback: &Callback) -> Result<()> {
        self.run("UPDATE callback SET body = ?2 WHERE number = ?1", params![number, body_text(callback)?])
    }

    fn write_market_job(&self, stored: &Stored<'_, MarketJob>) -> Result<()> {
        let (sql, job) = match stored {
            Stored::Added(job) => (
                "INSERT INTO job (number, kind, key, id, created_at, state, attempts, step, due_at, lease_until,
                   attempted_at, note, ended_at, in_lane, extra)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, 0, 0)",
                job,
            ),
            Stored::Changed(job) => (
                "UPDATE job SET state = ?6, attempts = ?7, step = ?8, due_at = ?9, lease_until = ?10,
                   attempted_at = ?11, note = ?12, ended_at = ?13
                 WHERE number = ?1 AND kind = ?2 AND key = ?3 AND id = ?4 AND created_at = ?5",
                job,
            ),
        };
        self.run(
            sql,
            params![
                job.number,
                kind_code(job.kind),
                key_of(&job.market, &job.about),
                job.id.as_bytes(),
                job.created_at.as_millisecond(),
                job.state as i64,
                job.attempts,
                job.step,
                job.due_at.as_millisecond(),
                millis(job.lease_until),
                millis(job.attempted_at),
                job.note,
                millis(job.ended_at),
            ],
        )
    }

    fn hold_unreadable(&self, job: i64, note: &str) -> Result<()> {
        self.run_or_skip(
            job,
            &format!(
                "UPDATE job SET state = {JOB_HELD}, lease_until = NULL, note = ?2
             WHERE number = ?1 AND state < {DONE}"
            ),
            params![job, note],
        )
    }

    fn add_attempt(&self, row: &AttemptRow) -> Result<()> {
        self.run(
            "INSERT INTO attempt (job, attempt, ended_at, ending, note) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
            params![row.job, row.attempt, row.ended_at.as_millisecond(), row.ending, row.note],
        )
    }

    /// Runs a statement on the row of a job, and skips the job from now on if no row changes.
    ///
    /// A row that breaks a constraint of the schema in any column cannot be updated. A running job cannot be put off.
    fn run_or_skip(&self, job: i64, sql: &str, params: impl Params) -> Result<()> {
        let changed = match self.statement(sql)?.execute(params) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => 0,
            changed => changed?,
        };
        if changed == 0 {
            self.skipped.borrow_mut().insert(job);
        }
        Ok(())
    }

    /// Unblocks the first job of an instance's queue, if a row of the queue cannot be read.
    fn unblock(&self, instance: i64) -> Result<()> {
        self.run(
            &format!(
                "UPDATE job SET blocked = 0 WHERE blocked = 1 AND number =
             (SELECT number FROM job WHERE instance = ?1 AND in_lane = 1 AND state < {DONE} ORDER BY number LIMIT 1)"
            ),
            [instance],
        )
    }
}

fn write_instance(statement: &mut Prepared<'_>, row: &InstanceRow) -> Result<()> {
    let instance = &row.instance;
    statement.run(params![
        row.number,
        instance.id,
        instance.order_biz_id,
        instance.state as i64,
        instance.account,
        instance.endpoint,
        instance.buyer,
        instance.product,
        instance.sku,
        instance.order_id,
        instance.trial,
        millis(instance.expires_on),
        instance.expires_on_raw,
        items_text(instance)?,
        instance.began,
        instance.tombstone,
        instance.adopted,
        millis(instance.claimed_at),
        instance.tenant,
        instance.created_at.as_millisecond(),
        instance.updated_at.as_millisecond(),
        instance.converted,
        row.created_by,
        row.marketplace_instance_id,
        row.known_as,
    ])
}

fn add_callback(statement: &mut Prepared<'_>, row: &CallbackRow, callback: &Callback) -> Result<()> {
    statement.run(params![
        row.number,
        row.account,
        row.endpoint,
        row.key_label,
        row.deduplication_key,
        row.instance,
        row.job,
        row.action as i64,
        row.disposition as i64,
        row.reason_code,
        row.reason,
        row.received_at.as_millisecond(),
        row.last_received_at.as_millisecond(),
        row.deliveries.cast_signed(),
        row.delivery_limit,
        millis(row.reported_at),
        millis(row.dismissed_at),
        body_text(callback)?,
    ])
}

fn put_callback(statement: &mut Prepared<'_>, row: &CallbackRow) -> Result<()> {
    statement.run(params![
        row.number,
        row.job,
        row.disposition as i64,
        row.reason_code,
        row.reason,
        row.last_received_at.as_millisecond(),
        row.deliveries.cast_signed(),
        millis(row.reported_at),
        millis(row.dismissed_at),
    ])
}

fn add_job(statement: &mut Prepared<'_>, row: &JobRow) -> Result<()> {
    statement.run(params![
        row.number,
        row.id.as_bytes(),
        row.callback,
        row.instance,
        row.ordered,
        row.action as i64,
        row.state as i64,
        row.attempts,
        row.step,
        row.extra as i64,
        row.due_at.as_millisecond(),
        millis(row.lease_until),
        millis(row.attempted_at),
        row.note,
        row.answer,
        row.sealed,
        row.proposed_id,
        row.created_at.as_millisecond(),
        millis(row.ended_at),
        row.blocked,
    ])
}

fn put_job(statement: &mut Prepared<'_>, row: &JobRow) -> Result<()> {
    statement.run(params![
        row.number,
        row.state as i64,
        row.attempts,
        row.step,
        row.extra as i64,
        row.due_at.as_millisecond(),
        millis(row.lease_until),
        millis(row.attempted_at),
        row.note,
        row.answer,
        row.sealed,
        row.proposed_id,
        millis(row.ended_at),
        row.blocked,
    ])
}

fn body_text(callback: &Callback) -> Result<String> {
    serde_json::to_string(callback)
        .map_err(|_| StoreError::Inconsistent("a callback cannot be serialized as JSON"))
}

fn items_text(instance: &Instance) -> Result<Option<String>> {
    if instance.items.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_string(&instance.items);
    text.map(Some)
        .map_err(|_| StoreError::Inconsistent("the items of an instance cannot be serialized as JSON"))
}

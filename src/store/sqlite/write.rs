//! Writes of the SQLite backend. The rules decide which rows to write; this module only writes them.

use jiff::Timestamp;
use rusqlite::{ErrorCode, Params, params};

use super::Sqlite;
use super::codes::{DONE, JOB_HELD, QUEUED};
use super::read::{dangling_reference, millis, next_number};
use crate::store::StoreError;
use crate::store::rows::{AttemptRow, AuditEntry, CallbackRow, InstanceRow, JobRow, KeyUse, Result, Write};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::Callback;
use spid_hook::instance::Instance;

impl Write for Sqlite {
    fn add_instance(&mut self, instance: &Instance) -> Result<i64> {
        self.insert(
            &format!("INSERT INTO instance (number, id, order_biz_id, state, account, endpoint, buyer, product, sku,
             order_id, trial, expires_on, expires_on_raw, items, began, tombstone, adopted, claimed_at, tenant,
             created_at, updated_at, converted)
             VALUES ({}, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14,
             ?15, ?16, ?17, ?18, ?19, ?20, ?21)", next_number("instance")),
            params![
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
            ],
        )
    }

    fn put_instance(&mut self, row: &InstanceRow) -> Result<()> {
        let instance = &row.instance;
        self.run(
            "UPDATE instance SET id = ?2, state = ?3, buyer = ?4, product = ?5, sku = ?6, order_id = ?7,
               trial = ?8, expires_on = ?9, expires_on_raw = ?10, items = ?11, began = ?12, tombstone = ?13,
               created_by = ?14, claimed_at = ?15, tenant = ?16, updated_at = ?17, public_id = ?18, converted = ?19 WHERE number = ?1",
            params![
                row.number,
                instance.id,
                instance.state as i64,
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
                row.created_by,
                millis(instance.claimed_at),
                instance.tenant,
                instance.updated_at.as_millisecond(),
                row.marketplace_instance_id,
                instance.converted,
            ],
        )
    }

    fn replace_instance(&mut self, row: &InstanceRow) -> Result<()> {
        let instance = &row.instance;
        // These columns are fixed at the insert, so `put_instance` leaves them unchanged. It writes all others.
        self.run(
            "UPDATE instance SET order_biz_id = ?2, endpoint = ?3, adopted = ?4, created_at = ?5 WHERE number = ?1",
            params![
                row.number,
                instance.order_biz_id,
                instance.endpoint,
                instance.adopted,
                instance.created_at.as_millisecond(),
            ],
        )?;
        self.put_instance(row)
    }

    fn add_name(&mut self, account: &str, name: &str, instance: i64) -> Result<bool> {
        let holder =
            self.one("SELECT instance FROM name WHERE account = ?1 AND name = ?2", [account, name], |row| {
                row.get::<_, i64>(0).map_err(|_| dangling_reference("name", account, name))
            })?;
        if holder.is_none() {
            let sql = "INSERT INTO name (account, name, instance) VALUES (?1, ?2, ?3)";
            self.run(sql, params![account, name, instance])?;
        }
        // A name belongs to one instance of an account: an existing entry is never moved to another instance.
        Ok(holder.is_none_or(|holder| holder == instance))
    }

    fn add_order(&mut self, account: &str, order_id: &str, instance: i64) -> Result<()> {
        // A redelivered order may be known already.
        self.run(
            "INSERT INTO purchase (account, order_id, instance) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![account, order_id, instance],
        )
    }

    fn add_callback(&mut self, row: &CallbackRow, callback: &Callback) -> Result<i64> {
        let body = body_text(callback)?;
        self.insert(
            &format!("INSERT INTO callback (number, account, endpoint, key_label, occurrence, instance, job,
             action, disposition, reason_code, reason, received_at, last_received_at, deliveries, budget, told_at, body)
             VALUES ({}, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14,
             ?15, ?16)", next_number("callback")),
            params![
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
                body,
            ],
        )
    }

    fn put_callback(&mut self, row: &CallbackRow) -> Result<()> {
        self.run(
            "UPDATE callback SET job = ?2, disposition = ?3, reason_code = ?4, reason = ?5,
               last_received_at = ?6, deliveries = ?7, told_at = ?8, dismissed_at = ?9 WHERE number = ?1",
            params![
                row.number,
                row.job,
                row.disposition as i64,
                row.reason_code,
                row.reason,
                row.last_received_at.as_millisecond(),
                row.deliveries.cast_signed(),
                millis(row.reported_at),
                millis(row.dismissed_at),
            ],
        )
    }

    fn put_reported(&mut self, callback: i64, at: Timestamp) -> Result<()> {
        // The first report counts, so a later one does not move its time.
        self.run(
            "UPDATE callback SET told_at = ?2 WHERE number = ?1 AND told_at IS NULL",
            [callback, at.as_millisecond()],
        )
    }

    fn put_body(&mut self, number: i64, callback: &Callback) -> Result<()> {
        self.run("UPDATE callback SET body = ?2 WHERE number = ?1", params![number, body_text(callback)?])
    }

    fn add_nonce(&mut self, account: &str, mark: &[u8; 16], until: Timestamp) -> Result<bool> {
        // No added row means that the nonce is known, so the request is a copy.
        let added = self.change(
            "INSERT INTO once (account, mark, until) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![account, mark, until.as_millisecond()],
        )?;
        Ok(added == 1)
    }

    fn forget_nonces(&mut self, before: Timestamp) -> Result<()> {
        self.run("DELETE FROM once WHERE until < ?1", [before.as_millisecond()])
    }

    fn add_job(&mut self, row: &JobRow) -> Result<i64> {
        // A queued job is blocked if its instance already has a live job in the queue.
        self.insert(
            &format!("INSERT INTO job (number, id, callback, instance, in_lane, action, state, attempts, step, extra,
             due_at, lease_until, created_at, blocked)
             VALUES ({}, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12,
             CASE WHEN ?13 THEN EXISTS (SELECT 1 FROM job WHERE instance = ?3 AND in_lane = 1 AND state < {DONE})
             ELSE 0 END)", next_number("job")),
            params![
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
                row.created_at.as_millisecond(),
                // A job that is created in state running is the first of its instance's queue, so the query is not
                // needed.
                row.ordered && row.state == JobState::Queued,
            ],
        )
    }

    fn put_job(&mut self, row: &JobRow) -> Result<()> {
        // An ended job is never blocked.
        self.run(
            &format!("UPDATE job SET state = ?2, attempts = ?3, step = ?4, extra = ?5, due_at = ?6,
             lease_until = ?7, attempted_at = ?8, note = ?9, answer = ?10, sealed = ?11, proposed_id = ?12, ended_at = ?13,
             blocked = blocked AND ?2 < {DONE} WHERE number = ?1"),
            params![
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
            ],
        )?;
        // An ended job frees the next one in its instance's queue, in the same transaction.
        match row.instance.filter(|_| row.ordered && !row.state.is_live()) {
            Some(instance) => self.unblock(instance),
            None => Ok(()),
        }
    }

    fn hold_unreadable(&mut self, job: i64, note: &str) -> Result<()> {
        self.run_or_skip(
            job,
            &format!(
                "UPDATE job SET state = {JOB_HELD}, lease_until = NULL, note = ?2
             WHERE number = ?1 AND state < {DONE}"
            ),
            params![job, note],
        )
    }

    fn postpone(&mut self, job: i64, until: Timestamp) -> Result<()> {
        let sql = &format!("UPDATE job SET due_at = ?2 WHERE number = ?1 AND state = {QUEUED}");
        self.run_or_skip(job, sql, params![job, until.as_millisecond()])
    }

    fn add_attempt(&mut self, row: &AttemptRow) -> Result<()> {
        self.run(
            "INSERT INTO attempt (job, attempt, ended_at, ending, note) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
            params![row.job, row.attempt, row.ended_at.as_millisecond(), row.ending, row.note],
        )
    }

    fn add_audit_entry(&mut self, row: &AuditEntry) -> Result<()> {
        self.run(
            &format!(
                "INSERT INTO act (number, at, who, act, target, why)
             VALUES ({}, ?1, ?2, ?3, ?4, ?5)",
                next_number("act")
            ),
            params![row.at.as_millisecond(), row.who, row.act, row.target, row.why],
        )
    }

    fn put_key_use(&mut self, row: &KeyUse) -> Result<()> {
        self.run(
            "INSERT OR REPLACE INTO key_use (endpoint, label, mark, since, used_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![row.endpoint, row.label, row.mark, row.since.as_millisecond(), millis(row.used_at)],
        )
    }

    fn drop_key_use(&mut self, endpoint: &str, label: &str) -> Result<()> {
        self.run("DELETE FROM key_use WHERE endpoint = ?1 AND label = ?2", params![endpoint, label])
    }
}

impl Sqlite {
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

    /// Unblocks the first job of the instance's queue after the job before it has ended.
    ///
    /// `put_job` writes every end of a job and calls this function, so no job stays blocked without a job before it. An
    /// ended job returns only to an empty queue (see `check_refused` in `operations::jobs`), so no job becomes blocked
    /// again.
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

//! What is kept, put together for whoever looks. The command line, the JSON API and the console show the
//! same objects, made here and nowhere else.

use jiff::Timestamp;
use serde::Serialize;

use super::rows::{AttemptRow, CallbackRow, Disposition, Filter, InstanceRow, JobRow};
use super::{Reader, StoreError};
use crate::core::lifecycle::schedule;
use crate::hook::callback::{Action, Callback};
use crate::hook::clock::Id;
use crate::hook::trace::TraceId;

/// Why something cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not there.
    #[error("{0}")]
    NotFound(String),
    /// No instance has this name.
    #[error("no instance is called `{0}`")]
    NoInstance(String),
    /// The name is not enough: these accounts each have an instance of it.
    #[error("several accounts have an instance called `{name}`: {}", .accounts.join(", "))]
    Several {
        /// The name.
        name: String,
        /// The accounts.
        accounts: Vec<String>,
    },
}

/// One instance and everything that happened to it.
#[derive(Debug, Clone, Serialize)]
pub struct Life {
    /// The instance.
    #[serde(flatten)]
    pub instance: InstanceRow,
    /// What was asked about it, the oldest first.
    pub callbacks: Vec<CallbackRow>,
    /// What was owed for it, the oldest first.
    pub jobs: Vec<JobRow>,
    /// Whether there is more, and older, than these.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub older: bool,
}

/// One job and its attempts.
#[derive(Debug, Clone, Serialize)]
pub struct JobDetail {
    /// The job.
    #[serde(flatten)]
    pub job: JobRow,
    /// The attempts that did not succeed.
    pub failed_attempts: Vec<AttemptRow>,
    /// The trace that the lines of the log about it bear.
    pub trace_id: TraceId,
}

/// One callback, with all it said.
#[derive(Debug, Clone, Serialize)]
pub struct CallbackDetail {
    /// What became of it.
    #[serde(flatten)]
    pub row: CallbackRow,
    /// What it said.
    pub callback: Callback,
    /// The id of its job, if it has one.
    pub job_id: Option<Id>,
    /// The trace of that job: what the lines of the log about both bear.
    pub trace_id: Option<TraceId>,
}

/// A callback in a list, with what it says about its instance. Of what was refused for an unknown instance nothing
/// else says which customer it was.
#[derive(Debug, Clone, Serialize)]
pub struct ListedCallback {
    /// What became of it.
    #[serde(flatten)]
    pub row: CallbackRow,
    /// The names it has for the instance.
    pub names: Vec<String>,
    /// The buyer, where it says one.
    pub buyer: Option<String>,
}

/// Something that waits for a person.
#[derive(Debug, Clone, Serialize)]
pub struct Errand {
    /// `held-callback`, `held-job`, `dead-job` or `pending-job`.
    pub kind: &'static str,
    /// The callback.
    pub callback: i64,
    /// Its job, if that is what waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
    /// The account.
    pub account: String,
    /// A name of its instance, if it has one.
    pub instance: Option<String>,
    /// What was asked.
    pub action: &'static str,
    /// Since when it waits.
    pub since: Timestamp,
    /// How often the marketplace has called for it.
    pub deliveries: u64,
    /// How often it calls before it gives up.
    pub budget: Option<u32>,
    /// Both in a word, as far as they still matter.
    #[serde(skip)]
    pub tries: String,
    /// Why.
    pub reason: String,
    /// The stable word for why, of a held callback.
    #[serde(skip)]
    pub reason_code: Option<String>,
}

impl Errand {
    /// A job whose callback cannot be read.
    fn of_unreadable(job: JobRow) -> Errand {
        Errand {
            kind: "held-job",
            callback: job.callback,
            job: Some(job.id),
            account: String::new(),
            instance: None,
            action: job.action.as_str(),
            since: job.attempted_at.unwrap_or(job.created_at),
            deliveries: 0,
            budget: None,
            tries: String::new(),
            reason: job.note.unwrap_or_default(),
            reason_code: None,
        }
    }
}

impl InstanceRow {
    /// A name it is known by: its id, or until it has one its orderBizId, or what it was first called by.
    pub fn name(&self) -> Option<&str> {
        let own = self.instance.id.as_ref().or(self.instance.order_biz_id.as_ref());
        own.or(self.known_as.as_ref()).map(String::as_str)
    }
}

impl CallbackRow {
    /// How often it was delivered, and out of how many times while that still matters.
    pub fn tries(&self) -> String {
        match self.budget.filter(|_| self.told_at.is_none() && self.deliveries > 0) {
            Some(budget) => format!("{}/{budget}", self.deliveries),
            None => self.deliveries.to_string(),
        }
    }
}

impl Reader {
    /// The one instance of this name; `account` is needed where several have one.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, name: &str, account: Option<&str>) -> Result<InstanceRow, ViewError> {
        let mut rows = self.instances_named(name)?;
        rows.retain(|row| account.is_none_or(|account| row.instance.account == account));
        match rows.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(ViewError::NoInstance(name.to_owned())),
            several => Err(ViewError::Several {
                name: name.to_owned(),
                accounts: several.iter().map(|row| row.instance.account.clone()).collect(),
            }),
        }
    }

    /// Everything that happened to the instance of this name.
    ///
    /// # Errors
    /// As [`Reader::find`].
    pub fn life(&self, name: &str, account: Option<&str>) -> Result<Life, ViewError> {
        let instance = self.find(name, account)?;
        let filter = Filter { instance: Some(instance.number), limit: usize::MAX, ..Filter::default() };
        let (mut callbacks, mut jobs) = (self.callbacks(&filter)?, self.jobs(&filter)?);
        callbacks.reverse();
        jobs.reverse();
        Ok(Life { instance, callbacks, jobs, older: false })
    }

    /// The latest of it: so many callbacks, so many jobs, and of what is older what still waits. Of sign-ons there
    /// is no end, and whoever looks at a daemon that runs must not keep it busy with all of them.
    ///
    /// # Errors
    /// As [`Reader::find`].
    pub fn latest(&self, name: &str, account: Option<&str>, most: usize) -> Result<Life, ViewError> {
        let instance = self.find(name, account)?;
        let all =
            Filter { instance: Some(instance.number), limit: most.saturating_add(1), ..Filter::default() };
        let (mut callbacks, mut jobs) = (self.callbacks(&all)?, self.jobs(&all)?);
        let older = callbacks.len() > most || jobs.len() > most;
        callbacks.truncate(most);
        jobs.truncate(most);
        if let Some(last) = callbacks.last().filter(|_| older) {
            let before = Some(last.number);
            let held = Filter { disposition: Some(Disposition::Held), before, ..all.clone() };
            callbacks.extend(self.callbacks(&held)?);
        }
        if let Some(last) = jobs.last().filter(|_| older) {
            let live = schedule::JobState::ALL.into_iter().filter(|state| state.is_live()).collect();
            jobs.extend(self.jobs(&Filter { jobs: live, before: Some(last.number), ..all })?);
        }
        callbacks.reverse();
        jobs.reverse();
        Ok(Life { instance, callbacks, jobs, older })
    }

    /// The job with this id, and its attempts.
    ///
    /// # Errors
    /// When there is none.
    pub fn job_detail(&self, id: Id) -> Result<JobDetail, ViewError> {
        let job = self.job(id)?.ok_or_else(|| ViewError::NotFound(format!("there is no job {id}")))?;
        let failed_attempts = self.attempts(job.number)?;
        let trace_id = TraceId::of(job.id);
        Ok(JobDetail { job, failed_attempts, trace_id })
    }

    /// The callback with this number, with all it said.
    ///
    /// # Errors
    /// When there is none.
    pub fn callback_detail(&self, number: i64) -> Result<CallbackDetail, ViewError> {
        let found = self.callback(number)?;
        let missing = || ViewError::NotFound(format!("there is no callback {number}"));
        let (row, callback) = found.ok_or_else(missing)?;
        let job = match row.job.map(|job| self.with(|rows| rows.job(job))).transpose() {
            Err(StoreError::Unreadable(_)) => None,
            job => job?.flatten(),
        };
        let job_id = job.map(|job| job.id);
        Ok(CallbackDetail { row, callback, job_id, trace_id: job_id.map(TraceId::of) })
    }

    /// Callbacks, the newest first, each with the names and the buyer it says.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn listed_callbacks(&self, filter: &Filter) -> Result<Vec<ListedCallback>, StoreError> {
        let listed = |row: CallbackRow| {
            let callback = match self.content(row.number) {
                Ok(callback) => callback,
                Err(ViewError::Store(error)) => return Err(error),
                Err(_) => Callback::new(row.action, row.action.as_str()),
            };
            let names = callback.subject.names().map(str::to_owned).collect();
            Ok(ListedCallback { row, names, buyer: callback.buyer })
        };
        self.callbacks(filter)?.into_iter().map(listed).collect()
    }

    /// What waits for a person: held callbacks, and jobs that are held, dead or pending. The latest first, at most
    /// `limit` of them, and how many were left out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn errands(&self, limit: usize) -> Result<(Vec<Errand>, usize), StoreError> {
        let all = usize::MAX;
        let filter = Filter { disposition: Some(Disposition::Held), limit: all, ..Filter::default() };
        let mut errands = Vec::new();
        for row in self.callbacks(&filter)? {
            errands.push(self.held_callback(row)?);
        }
        let jobs = vec![schedule::JobState::Held, schedule::JobState::Dead, schedule::JobState::Pending];
        for job in self.jobs(&Filter { jobs, limit: all, ..Filter::default() })? {
            errands.extend(self.stopped_job(job)?);
        }
        errands.sort_by_key(|errand| std::cmp::Reverse(errand.since));
        let left_out = errands.len().saturating_sub(limit);
        errands.truncate(limit);
        Ok((errands, left_out))
    }

    fn held_callback(&self, row: CallbackRow) -> Result<Errand, StoreError> {
        Ok(Errand {
            kind: "held-callback",
            callback: row.number,
            job: None,
            instance: self.instance_name(row.instance)?,
            tries: row.tries(),
            account: row.account,
            action: row.action.as_str(),
            since: row.received_at,
            deliveries: row.deliveries,
            budget: row.budget,
            reason: row.reason.unwrap_or_default(),
            reason_code: row.reason_code,
        })
    }

    fn stopped_job(&self, job: JobRow) -> Result<Option<Errand>, StoreError> {
        let row = match self.with(|rows| rows.callback_row(job.callback)) {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(None),
            // It waits all the same, and its note says why.
            Err(StoreError::Unreadable(_)) => return Ok(Some(Errand::of_unreadable(job))),
            Err(error) => return Err(error),
        };
        Ok(Some(Errand {
            kind: match job.state {
                schedule::JobState::Held => "held-job",
                schedule::JobState::Dead => "dead-job",
                _ => "pending-job",
            },
            callback: row.number,
            job: Some(job.id),
            instance: self.instance_name(job.instance)?,
            tries: row.tries(),
            account: row.account,
            action: job.action.as_str(),
            since: job.attempted_at.unwrap_or(job.created_at),
            deliveries: row.deliveries,
            budget: row.budget,
            reason: job.note.unwrap_or_default(),
            reason_code: None,
        }))
    }

    /// The instance with this number; `None` also where it cannot be read.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn readable_instance(&self, number: Option<i64>) -> Result<Option<InstanceRow>, StoreError> {
        match number.map(|number| self.instance(number)).transpose() {
            Err(StoreError::Unreadable(_)) => Ok(None),
            row => Ok(row?.flatten()),
        }
    }

    /// The instance with one of the names it is found by, where it has no id yet and no orderBizId.
    pub(super) fn named(&self, row: InstanceRow) -> Result<InstanceRow, StoreError> {
        if row.name().is_some() {
            return Ok(row);
        }
        let known_as = self.with(|rows| rows.name_of(row.number))?;
        Ok(InstanceRow { known_as, ..row })
    }

    /// The content of a callback; where it cannot be read, one that says so.
    ///
    /// # Errors
    /// When there is none.
    pub fn content(&self, number: i64) -> Result<Callback, ViewError> {
        match self.callback(number) {
            Err(StoreError::Unreadable(unreadable)) => {
                Ok(Callback::new(Action::Other, unreadable.to_string()))
            }
            Ok(Some((_, callback))) => Ok(callback),
            Ok(None) => Err(ViewError::NotFound(format!("there is no callback {number}"))),
            Err(error) => Err(error.into()),
        }
    }

    /// A name of the instance with this number.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn instance_name(&self, number: Option<i64>) -> Result<Option<String>, StoreError> {
        let row = self.readable_instance(number)?;
        Ok(row.and_then(|row| row.name().map(str::to_owned)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lifecycle::Policy;
    use crate::hook::callback::{Answer, InstanceRef};
    use crate::hook::clock::Clock;
    use crate::store::{Acceptance, Ending, Store, StoreOptions};

    fn asked(action: Action, number: u32, clock: &Clock) -> Acceptance {
        let mut callback = Callback::new(action, "x");
        callback.subject = InstanceRef { instance_id: None, order_biz_id: Some("biz-1".to_owned()) };
        callback.request_id = Some(number.to_string());
        Acceptance {
            account: "acme".to_owned(),
            endpoint: "e".to_owned(),
            key_label: "current".to_owned(),
            callback: callback.into(),
            received_at: clock.now(),
            policy: Policy::default(),
            approved: false,
            budget: None,
        }
    }

    #[tokio::test]
    async fn the_latest_of_a_life_without_end_is_a_page_and_what_waits() {
        let clock = Clock::System;
        let (store, _closed) = Store::in_memory(StoreOptions::default(), clock.clone()).await.unwrap();
        drop(store.accept(asked(Action::Create, 0, &clock)).await.unwrap());
        for number in 1..=20 {
            drop(store.accept(asked(Action::Other, number, &clock)).await.unwrap());
        }
        for taken in store.take(100).await.unwrap().taken {
            let ending = match taken.job.action {
                Action::Create => Ending::Pending { note: "somebody finishes it".to_owned() },
                _ => Ending::Done(Answer::default()),
            };
            store.finish(&taken, ending).await.unwrap();
        }
        let reader = store.reader();
        let whole = reader.life("biz-1", None).unwrap();
        assert_eq!((whole.callbacks.len(), whole.jobs.len(), whole.older), (21, 21, false));
        let page = reader.latest("biz-1", None, 5).unwrap();
        assert_eq!((&page.callbacks[..], page.older), (&whole.callbacks[16..], true));
        assert_eq!((&page.jobs[0], &page.jobs[1..]), (&whole.jobs[0], &whole.jobs[16..]));
        assert!(serde_json::to_string(&page).unwrap().contains("\"older\":true"));
        let all = reader.latest("biz-1", None, 21).unwrap();
        assert_eq!((&all.callbacks, &all.jobs, all.older), (&whole.callbacks, &whole.jobs, false));
        assert!(!serde_json::to_string(&all).unwrap().contains("older"));
    }
}

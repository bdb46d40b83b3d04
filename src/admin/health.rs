//! Liveness, readiness and metrics of the daemon.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;

use super::{Admin, Denied, Fault};
use crate::net::{Request, Response};
use crate::observe::limits;
use crate::observe::metrics::{Gauges, Metric};
use crate::store::Totals;
use spid_core::lifecycle::schedule::JobState;
use spid_hook::instance::State;

/// Readiness of the daemon, and the facts it is based on.
#[derive(Serialize)]
pub(super) struct Readiness {
    pub(super) ready: bool,
    /// Reasons why the daemon is not ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) reasons: Vec<String>,
    store: StoreHealth,
    #[serde(skip_serializing_if = "Option::is_none")]
    backlog: Option<Backlog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disk: Option<Disk>,
    version: &'static str,
    started_at: Timestamp,
}

#[derive(Serialize)]
struct StoreHealth {
    writable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Unfinished work. It does not affect readiness, because callbacks can be accepted with any backlog.
#[derive(Serialize)]
struct Backlog {
    queued: u64,
    running: u64,
    dead: u64,
    held: u64,
    pending: u64,
    unreported: u64,
    oldest_job_age_seconds: f64,
    overdue_seconds: f64,
}

/// Disk of the database, and the space that the database uses, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Disk {
    pub(super) free_bytes: u64,
    pub(super) size_bytes: u64,
    pub(super) database_bytes: u64,
    pub(super) wal_bytes: u64,
}

impl Disk {
    /// Measures the disk; `None` if that fails.
    fn of(database: &Path) -> Option<Disk> {
        // A relative file name has an empty parent, which means the current folder.
        let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty());
        let volume = rustix::fs::statvfs(folder.unwrap_or(Path::new("."))).ok()?;
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        Some(Disk {
            // `f_bavail` is the space for unprivileged processes; root has a reserve that the daemon cannot use.
            free_bytes: volume.f_bavail.saturating_mul(volume.f_frsize),
            size_bytes: volume.f_blocks.saturating_mul(volume.f_frsize),
            database_bytes: size_of_file(database),
            wal_bytes: size_of_file(&PathBuf::from(wal)),
        })
    }
}

fn size_of_file(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

/// Seconds from `then` to `now`; 0 if `then` is in the future or `None`.
fn seconds_since(then: Option<Timestamp>, now: Timestamp) -> f64 {
    let millis = then.map_or(0, |then| now.as_millisecond() - then.as_millisecond());
    millis.max(0) as f64 / 1000.0
}

fn is_fresh(at: Timestamp, now_ms: i64) -> bool {
    (0..limits::READY_REMEMBERED_MS).contains(&(now_ms - at.as_millisecond()))
}

fn of_jobs(totals: &Totals, state: JobState) -> u64 {
    totals.jobs.get(state.as_str()).copied().unwrap_or(0)
}

impl Backlog {
    fn of(totals: &Totals, now: Timestamp) -> Backlog {
        Backlog {
            queued: of_jobs(totals, JobState::Queued),
            running: of_jobs(totals, JobState::Running),
            dead: of_jobs(totals, JobState::Dead),
            held: of_jobs(totals, JobState::Held) + totals.held,
            pending: of_jobs(totals, JobState::Pending),
            unreported: totals.unreported,
            oldest_job_age_seconds: seconds_since(totals.oldest_job, now),
            overdue_seconds: seconds_since(totals.next_due, now),
        }
    }
}

impl Admin {
    /// Returns the error if a write to the store fails now, or takes too long.
    async fn fault_of_store(&self) -> Option<String> {
        let within = Duration::from_millis(limits::READY_WITHIN_MS);
        // A real write: a full or failing disk shows only when it is written.
        match timeout(within, self.inner.parts.store.probe()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => {
                Some(format!("a write to the database took longer than {} ms", limits::READY_WITHIN_MS))
            }
        }
    }

    async fn disk(&self) -> Option<Disk> {
        let (database, _) = self.inner.parts.database.clone()?;
        tokio::task::spawn_blocking(move || Disk::of(&database)).await.ok().flatten()
    }

    /// Examines the readiness of the daemon, and reads the totals.
    pub(super) async fn examine(&self) -> (Readiness, Result<Totals, Fault>) {
        let error = self.fault_of_store().await;
        let totals = self.read(|reader| Ok(reader.totals()?)).await;
        let disk = self.disk().await;
        let mut reasons: Vec<String> = error.clone().into_iter().collect();
        // Report a nearly full disk before writes fail.
        if let Some(disk) = disk.filter(|disk| disk.free_bytes < limits::READY_DISK_MIN_BYTES) {
            reasons.push(format!(
                "the disk has {} bytes free, less than {}; free some space",
                disk.free_bytes,
                limits::READY_DISK_MIN_BYTES
            ));
        }
        if let Err(fault) = &totals {
            reasons.push(format!("the store cannot be read: {}", fault.text));
        }
        let readiness = Readiness {
            ready: reasons.is_empty(),
            reasons,
            store: StoreHealth { writable: error.is_none(), error },
            backlog: totals.as_ref().ok().map(|totals| Backlog::of(totals, self.now())),
            disk,
            version: env!("CARGO_PKG_VERSION"),
            started_at: self.inner.started,
        };
        (readiness, totals)
    }

    /// Answers `/readyz`: a status code for every client, and the details for an operator.
    pub(super) async fn ready(&self, request: &Request) -> Response {
        // Without access there is only a status code, from a recent examination.
        if let Err(denied) = self.inner.access.check(request) {
            // A probe without a token is normal. Only a wrong token is a possible attack.
            if denied == Denied::WrongToken {
                self.note(denied, request);
            }
            return match self.ready_for_strangers().await {
                true => Response::text(200, "ready\n"),
                false => Response::text(503, "not ready\n"),
            };
        }
        let (readiness, _) = self.examine().await;
        let status = if readiness.ready { 200 } else { 503 };
        match serde_json::to_string(&readiness) {
            Ok(text) => Response::json(status, text),
            Err(_) => Response::empty(500),
        }
    }

    async fn ready_for_strangers(&self) -> bool {
        let remembered = &self.inner.remembered;
        let now = self.now().as_millisecond();
        let last = *remembered.lock().unwrap_or_else(PoisonError::into_inner);
        // The last result is reused for a short time: otherwise strangers could make the daemon write as often as
        // they like.
        if let Some((_, ready)) = last.filter(|(at, _)| is_fresh(*at, now)) {
            return ready;
        }
        let (readiness, _) = self.examine().await;
        *remembered.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.now(), readiness.ready));
        readiness.ready
    }

    /// Answers `/metrics`.
    pub(super) async fn metrics(&self) -> Response {
        match self.gauges().await {
            Ok(gauges) => {
                let page = self.inner.parts.metrics.render(&gauges);
                Response::new(200, "text/plain; version=0.0.4; charset=utf-8", page)
            }
            Err(fault) => Response::text(503, format!("the store cannot be read: {}\n", fault.text)),
        }
    }

    async fn gauges(&self) -> Result<Gauges, Fault> {
        let (readiness, totals) = self.examine().await;
        let mut gauges = Gauges::default();
        of_totals(&mut gauges, &totals?, self.now());
        let now = self.now();
        for (reason, count) in self.read(move |reader| Ok(reader.attention_counts(now)?)).await? {
            gauges.set(Metric::Attention, reason.as_str(), count as f64);
        }
        // An unreadable row of this table must not hide the other metrics.
        for key in self.read(|reader| Ok(reader.key_uses().unwrap_or_default())).await? {
            let used_at = key.used_at.map_or(0, Timestamp::as_second);
            gauges.set_with(Metric::KeyLastUsed, [&key.endpoint, &key.label], used_at as f64);
        }
        if let Some(disk) = readiness.disk {
            gauges.set(Metric::DatabaseSize, "", disk.database_bytes as f64);
            gauges.set(Metric::WalSize, "", disk.wal_bytes as f64);
            gauges.set(Metric::DiskFree, "", disk.free_bytes as f64);
            gauges.set(Metric::DiskSize, "", disk.size_bytes as f64);
        }
        gauges.set(Metric::Ready, "", f64::from(u8::from(readiness.ready)));
        gauges.set(Metric::ProcessStart, "", self.inner.started.as_millisecond() as f64 / 1000.0);
        // The version is the label; the value is always 1.
        gauges.set(Metric::BuildInfo, env!("CARGO_PKG_VERSION"), 1.0);
        Ok(gauges)
    }
}

/// Sets the gauges of the totals. A state with no rows is exported as 0, too.
fn of_totals(gauges: &mut Gauges, totals: &Totals, now: Timestamp) {
    for state in State::ALL {
        let count = totals.instances.get(state.as_str()).copied().unwrap_or(0);
        gauges.set(Metric::Instances, state.as_str(), count as f64);
    }
    // Jobs in a final state are not exported.
    for state in JobState::ALL.into_iter().filter(|state| state.is_live()) {
        gauges.set(Metric::Jobs, state.as_str(), of_jobs(totals, state) as f64);
    }
    gauges.set(Metric::OldestJobAge, "", seconds_since(totals.oldest_job, now));
    gauges.set(Metric::JobsOverdue, "", seconds_since(totals.next_due, now));
    gauges.set(Metric::HeldCallbacks, "", totals.held as f64);
    gauges.set(Metric::UnreportedResults, "", totals.unreported as f64);
    gauges.set(Metric::DeliveriesUsed, "", totals.tries as f64);
    gauges.set(Metric::DeliveriesUsedRatio, "", totals.deliveries_used_ratio);
}

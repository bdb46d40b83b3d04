//! Overview: current state of the daemon.

use std::fmt::Display;

use jiff::Timestamp;
use maud::{Markup, html};

use super::super::target::{Link, Target};
use super::super::{Admin, Fault};
use super::parts::{
    self, badge, button, cell, instance_or_dash, nothing, or_dash, section, table, time, time_or_dash,
};
use super::{NavigationEntry, Page, PageContext, Paged};
use crate::observe::limits;
use crate::store::{Attention, AuditEntry, CallbackRow, Filter, JobRow, KeyUse, Reader, Totals};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::Action;

/// Maximum number of rows of each list on this page.
const ROWS: usize = 10;

/// Content of the page.
struct Overview {
    attention: Attention,
    /// Unfinished jobs, each with the name and the account of its instance.
    jobs: Vec<(JobRow, Option<(String, String)>)>,
    callbacks: Vec<(CallbackRow, Option<String>)>,
    acts: Vec<AuditEntry>,
    /// Signature keys of all endpoints.
    keys: Vec<KeyUse>,
}

pub(super) async fn page(admin: &Admin, context: &PageContext, target: &Target) -> Paged {
    target.only(&["done"])?;
    let (readiness, totals) = admin.examine().await;
    let now = context.now;
    let (totals, shown) = (totals?, admin.read(move |reader| read(reader, now)).await?);
    let body = html! {
        @if !readiness.ready {
            p class="notice bad" role="alert" { "Not ready: " (readiness.reasons.join("; ")) }
        }
        div class="tiles" {
            (tiles(&totals))
            @if let Some(disk) = readiness.disk {
                (tile("", "Database", parts::bytes(disk.database_bytes + disk.wal_bytes),
                    &format!("{} free on the disk", parts::bytes(disk.free_bytes)), None))
            }
        }
        (section("Needs attention", attention(context, &shown.attention)))
        (section("In progress", jobs(context, &shown.jobs)))
        (section("Latest callbacks", callbacks(context, &shown.callbacks)))
        (section("Keys", keys(context, &shown.keys)))
        (section("Audit log", acts(context, &shown.acts)))
    };
    Ok(Page { title: "Now".to_owned(), place: NavigationEntry::Now, body })
}

fn read(reader: &Reader, now: Timestamp) -> Result<Overview, Fault> {
    let states = vec![JobState::Running, JobState::Queued];
    let mut jobs = Vec::new();
    for job in reader.jobs(&Filter { jobs: states, limit: ROWS, ..Filter::default() })? {
        let row = reader.readable_instance(job.instance)?;
        let named = row.and_then(|row| Some((row.name()?.to_owned(), row.instance.account.clone())));
        jobs.push((job, named));
    }
    let mut callbacks = Vec::new();
    for row in reader.callbacks(&Filter { limit: ROWS, ..Filter::default() })? {
        let name = reader.instance_name(row.instance)?;
        callbacks.push((row, name));
    }
    let (attention, acts) = (reader.attention(now, ROWS, limits::ATTENTION_CHECKED_COUNT)?, reader.acts(5)?);
    // An unreadable row of this table must not hide the page.
    let keys = reader.key_uses().unwrap_or_default();
    Ok(Overview { attention, jobs, callbacks, acts, keys })
}

fn tiles(totals: &Totals) -> Markup {
    let jobs = |state: JobState| totals.jobs.get(state.as_str()).copied().unwrap_or(0);
    let instances = |state: &str| totals.instances.get(state).copied().unwrap_or(0);
    let (dead, pending) = (jobs(JobState::Dead), jobs(JobState::Pending));
    let held = totals.held + jobs(JobState::Held);
    let waiting = dead + held + pending;
    let (running, queued) = (jobs(JobState::Running), jobs(JobState::Queued));
    let (frozen, released) = (instances("frozen"), instances("released"));
    let used = totals.deliveries_used_ratio * 100.0;
    let waiting_tone = if waiting > 0 { "alarm" } else { "calm" };
    let unreported_tone = if totals.unreported > 0 { "alarm" } else { "" };
    let work = Link::to("/console/work");
    html! {
        (tile(waiting_tone, "Needs attention", waiting,
            &format!("{dead} dead · {held} held · {pending} pending"), Some(&work)))
        (tile("", "In progress", running + queued, &format!("{running} running · {queued} queued"), None))
        (tile("", "Active instances", instances("active"),
            &format!("{} pending · {frozen} frozen · {released} released", instances("pending")),
            Some(&Link::to("/console/instances"))))
        (tile(unreported_tone, "Unreported results", totals.unreported,
            &format!("most deliveries used: {} ({used:.0} %)", totals.tries), Some(&work)))
    }
}

fn tile(tone: &str, title: &str, number: impl Display, detail: &str, link: Option<&Link>) -> Markup {
    html! {
        div class="tile" data-tone=(tone) {
            @if let Some(link) = link {
                a href=(link) class="tile-title" { (title) }
            } @else {
                span class="tile-title" { (title) }
            }
            strong { (number) }
            span class="tile-detail" { (detail) }
        }
    }
}

fn attention(context: &PageContext, attention: &Attention) -> Markup {
    if attention.items.is_empty() {
        return nothing("Nothing. No order is refused, dead, held, pending or unreported.");
    }
    let headings = ["Why", "Action", "Instance", "Since", "Deadline", "Details"];
    let rows = attention.items.iter().map(|row| {
        [
            badge(row.reason.as_str()),
            cell(row.action.map_or("–", Action::as_str)),
            instance_or_dash(row.instance.as_deref(), &row.account),
            time(row.since, context.now),
            time_or_dash(row.deadline, context.now),
            cell(&row.detail),
        ]
    });
    html! {
        (table("Needs attention", headings, rows))
        @if attention.left_out > 0 { p class="hint" { (attention.left_out) " more are not shown here." } }
        p { (button(&Link::to("/console/work"), "Open the work list")) }
    }
}

fn jobs(context: &PageContext, jobs: &[(JobRow, Option<(String, String)>)]) -> Markup {
    if jobs.is_empty() {
        return nothing("Nothing is running or queued.");
    }
    let headings = ["State", "Action", "Instance", "Attempts", "Due", "Note"];
    let rows = jobs.iter().map(|(job, named)| {
        let (name, account) = named.as_ref().map(|(name, account)| (name.as_str(), account.as_str())).unzip();
        [
            badge(job.state.as_str()),
            cell(job.action.as_str()),
            instance_or_dash(name, account.unwrap_or_default()),
            cell(job.attempts),
            time(job.due_at, context.now),
            or_dash(job.note.as_deref()),
        ]
    });
    table("Jobs in progress", headings, rows)
}

fn callbacks(context: &PageContext, callbacks: &[(CallbackRow, Option<String>)]) -> Markup {
    if callbacks.is_empty() {
        return nothing("No marketplace has called yet.");
    }
    let headings = ["Last", "Action", "Instance", "Endpoint", "Deliveries", "Reported"];
    let rows = callbacks.iter().map(|(row, name)| {
        let reported = row.reported_at.map(|at| time(at, context.now));
        [
            time(row.last_received_at, context.now),
            cell(row.action.as_str()),
            instance_or_dash(name.as_deref(), &row.account),
            cell(&row.endpoint),
            cell(row.deliveries),
            reported.unwrap_or_else(|| cell("not yet")),
        ]
    });
    table("Latest callbacks", headings, rows)
}

fn keys(context: &PageContext, keys: &[KeyUse]) -> Markup {
    if keys.is_empty() {
        return nothing("No endpoint has a signature key.");
    }
    let rows = keys.iter().map(|key| {
        let used = key.used_at.map(|at| time(at, context.now));
        [
            cell(&key.endpoint),
            cell(&key.label),
            used.unwrap_or_else(|| cell("not yet")),
            time(key.since, context.now),
        ]
    });
    table("Keys", ["Endpoint", "Key", "Last used", "Configured since"], rows)
}

fn acts(context: &PageContext, acts: &[AuditEntry]) -> Markup {
    if acts.is_empty() {
        return nothing("Nothing yet.");
    }
    let rows = acts.iter().map(|row| {
        [time(row.at, context.now), cell(&row.who), cell(&row.act), cell(&row.target), cell(&row.why)]
    });
    table("Audit log", ["When", "Who", "Operation", "Target", "Why"], rows)
}

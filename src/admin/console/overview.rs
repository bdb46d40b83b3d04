//! Overview: current state of the daemon.

use jiff::Timestamp;

use super::super::html::Html;
use super::super::target::{Link, Target};
use super::super::{Admin, Fault};
use super::parts::{self, badge, instance_link, nothing, section, table, time};
use super::{NavigationEntry, Page, PageContext, Paged};
use crate::store::{Attention, AuditEntry, CallbackRow, Filter, JobRow, Reader, Totals};
use spid_core::lifecycle::schedule;
use spid_hook::callback::Action;

/// Maximum number of rows of each list on this page.
const ROWS: usize = 10;

struct Shown {
    attention: Attention,
    /// Unfinished jobs, each with the name and the account of its instance.
    jobs: Vec<(JobRow, Option<(String, String)>)>,
    callbacks: Vec<(CallbackRow, Option<String>)>,
    acts: Vec<AuditEntry>,
}

pub(super) async fn page(admin: &Admin, context: &PageContext, target: &Target) -> Paged {
    target.only(&["done"])?;
    let (readiness, totals) = admin.examine().await;
    let now = context.now;
    let (totals, shown) = (totals?, admin.read(move |reader| read(reader, now)).await?);
    let mut body = Html::default();
    if !readiness.ready {
        body.element("p", &[("class", "notice bad"), ("role", "alert")], |html| {
            html.text(&format!("Not ready: {}", readiness.reasons.join("; ")));
        });
    }
    body.element("div", &[("class", "tiles")], |html| {
        tiles(html, &totals);
        if let Some(disk) = readiness.disk {
            let used = format!("{} free on the disk", parts::bytes(disk.free_bytes));
            tile(html, "", "Database", &parts::bytes(disk.database_bytes + disk.wal_bytes), &used, None);
        }
    });
    section(&mut body, "Needs attention", |html| attention(html, context, &shown.attention));
    section(&mut body, "In progress", |html| jobs(html, context, &shown.jobs));
    section(&mut body, "Latest callbacks", |html| callbacks(html, context, &shown.callbacks));
    section(&mut body, "Audit log", |html| acts(html, context, &shown.acts));
    Ok(Page { title: "Now".to_owned(), place: NavigationEntry::Now, body })
}

fn read(reader: &Reader, now: Timestamp) -> Result<Shown, Fault> {
    let states = vec![schedule::JobState::Running, schedule::JobState::Queued];
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
    Ok(Shown { attention: reader.attention(now, ROWS)?, jobs, callbacks, acts: reader.acts(5)? })
}

fn tiles(html: &mut Html, totals: &Totals) {
    let jobs = |state: schedule::JobState| totals.jobs.get(state.as_str()).copied().unwrap_or(0);
    let waiting = totals.held
        + jobs(schedule::JobState::Dead)
        + jobs(schedule::JobState::Held)
        + jobs(schedule::JobState::Pending);
    let tone = if waiting > 0 { "alarm" } else { "calm" };
    let detail = format!(
        "{} dead · {} held · {} pending",
        jobs(schedule::JobState::Dead),
        totals.held + jobs(schedule::JobState::Held),
        jobs(schedule::JobState::Pending)
    );
    tile(html, tone, "Needs attention", &waiting.to_string(), &detail, Some(Link::to("/console/work")));
    let under_way = jobs(schedule::JobState::Running) + jobs(schedule::JobState::Queued);
    let detail = format!(
        "{} running · {} queued",
        jobs(schedule::JobState::Running),
        jobs(schedule::JobState::Queued)
    );
    tile(html, "", "In progress", &under_way.to_string(), &detail, None);
    let of = |state: &str| totals.instances.get(state).copied().unwrap_or(0);
    let detail = format!("{} pending · {} frozen · {} released", of("pending"), of("frozen"), of("released"));
    let link = Link::to("/console/instances");
    tile(html, "", "Active instances", &of("active").to_string(), &detail, Some(link));
    let tone = if totals.unreported > 0 { "alarm" } else { "" };
    let detail =
        format!("most deliveries used: {} ({:.0} %)", totals.tries, totals.deliveries_used_ratio * 100.0);
    let link = Link::to("/console/work");
    tile(html, tone, "Unreported results", &totals.unreported.to_string(), &detail, Some(link));
}

fn tile(html: &mut Html, tone: &str, title: &str, number: &str, detail: &str, link: Option<Link>) {
    html.element("div", &[("class", "tile"), ("data-tone", tone)], |html| {
        match link {
            Some(link) => html.link("tile-title", &link, title),
            None => html.leaf("span", "tile-title", title),
        }
        html.leaf("strong", "", number);
        html.leaf("span", "tile-detail", detail);
    });
}

fn attention(html: &mut Html, context: &PageContext, attention: &Attention) {
    if attention.items.is_empty() {
        return nothing(html, "Nothing. No order is refused, dead, held, pending or unreported.");
    }
    let headings = ["Why", "Action", "Instance", "Since", "Deadline", "Details"];
    table(html, "Needs attention", &headings, &attention.items, |html, row, column| match column {
        0 => badge(html, row.reason.as_str()),
        1 => html.text(row.action.map_or("–", Action::as_str)),
        2 => match &row.instance {
            Some(name) => html.link("name", &instance_link(name, &row.account), name),
            None => html.text("–"),
        },
        3 => time(html, row.since, context.now),
        4 => match row.deadline {
            Some(at) => time(html, at, context.now),
            None => html.text("–"),
        },
        _ => html.text(&row.detail),
    });
    if attention.left_out > 0 {
        html.leaf("p", "hint", &format!("{} more are not shown here.", attention.left_out));
    }
    html.element("p", &[], |html| html.link("button", &Link::to("/console/work"), "Open the work list"));
}

fn jobs(html: &mut Html, context: &PageContext, jobs: &[(JobRow, Option<(String, String)>)]) {
    if jobs.is_empty() {
        return nothing(html, "Nothing is running or queued.");
    }
    let headings = ["State", "Action", "Instance", "Attempts", "Due", "Note"];
    table(html, "Jobs in progress", &headings, jobs, |html, (job, named), column| match column {
        0 => badge(html, job.state.as_str()),
        1 => html.text(job.action.as_str()),
        2 => match named {
            Some((name, account)) => html.link("name", &instance_link(name, account), name),
            None => html.text("–"),
        },
        3 => html.text(&job.attempts.to_string()),
        4 => time(html, job.due_at, context.now),
        _ => html.text(job.note.as_deref().unwrap_or("–")),
    });
}

fn callbacks(html: &mut Html, context: &PageContext, callbacks: &[(CallbackRow, Option<String>)]) {
    if callbacks.is_empty() {
        return nothing(html, "No marketplace has called yet.");
    }
    let headings = ["Last", "Action", "Instance", "Endpoint", "Deliveries", "Reported"];
    table(html, "Latest callbacks", &headings, callbacks, |html, (row, name), column| match column {
        0 => time(html, row.last_received_at, context.now),
        1 => html.text(row.action.as_str()),
        2 => match name {
            Some(name) => html.link("name", &instance_link(name, &row.account), name),
            None => html.text("–"),
        },
        3 => html.text(&row.endpoint),
        4 => html.text(&row.deliveries.to_string()),
        _ => match row.reported_at {
            Some(at) => time(html, at, context.now),
            None => html.text("not yet"),
        },
    });
}

fn acts(html: &mut Html, context: &PageContext, acts: &[AuditEntry]) {
    if acts.is_empty() {
        return nothing(html, "Nothing yet.");
    }
    let headings = ["When", "Who", "Operation", "Target", "Why"];
    table(html, "Audit log", &headings, acts, |html, row, column| match column {
        0 => time(html, row.at, context.now),
        1 => html.text(&row.who),
        2 => html.text(&row.act),
        3 => html.text(&row.target),
        _ => html.text(&row.why),
    });
}

//! Single instance: its state, the possible operations, and its history, the latest event first.

use jiff::Timestamp;
use maud::{Markup, html};

use super::super::target::Target;
use super::super::{Admin, Fault};
use super::parts::{self, ActForm, badge, facts, held_acts, job_acts, moment, nothing, section, time};
use super::{NavigationEntry, Page, PageContext, Paged, words};
use crate::store::{AttemptRow, AuditEntry, CallbackRow, Disposition, InstanceHistory, JobRow, Reader};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::Callback;
use spid_hook::instance::{Instance, State};
use spid_hook::text::without_user_info;

/// Maximum number of events on a page.
const EVENTS: usize = 300;

struct Timeline {
    history: InstanceHistory,
    /// Content of each callback, in the order of `history.callbacks`.
    bodies: Vec<Callback>,
    attempts: Vec<AttemptRow>,
}

/// Event of an instance's history.
struct Event<'a> {
    at: Timestamp,
    kind: EventKind<'a>,
}

enum EventKind<'a> {
    Received(&'a CallbackRow, &'a Callback),
    Reported(&'a CallbackRow),
    Attempted(&'a JobRow, &'a AttemptRow),
    JobState(&'a JobRow),
    Operation(&'a AuditEntry),
}

pub(super) async fn page(admin: &Admin, context: &PageContext, target: &Target, name: &str) -> Paged {
    target.only(&["account", "done"])?;
    let (wanted, account) = (name.to_owned(), target.get("account").map(str::to_owned));
    let shown = admin.read(move |reader| read(reader, &wanted, account.as_deref())).await?;
    let instance = &shown.history.instance.instance;
    let body = html! {
        section class="card" { (summary(context, instance)) }
        (section("Operations", acts(context, &shown)))
        (section("History, the latest first", events(context, &shown)))
    };
    Ok(Page { title: name.to_owned(), place: NavigationEntry::Instances, body })
}

fn read(reader: &Reader, name: &str, account: Option<&str>) -> Result<Timeline, Fault> {
    let history = reader.latest(name, account, EVENTS)?;
    let (mut bodies, mut attempts) = (Vec::new(), Vec::new());
    for listed in &history.callbacks {
        bodies.push(reader.content(listed.row.number)?);
    }
    for job in &history.jobs {
        attempts.extend(reader.attempts(job.row.number)?);
    }
    Ok(Timeline { history, bodies, attempts })
}

/// Rows of the jobs and of the callbacks.
fn rows(history: &InstanceHistory) -> (Vec<&JobRow>, Vec<&CallbackRow>) {
    let callbacks = history.callbacks.iter().map(|listed| &listed.row);
    (history.jobs.iter().map(|listed| &listed.row).collect(), callbacks.collect())
}

fn summary(context: &PageContext, instance: &Instance) -> Markup {
    let items: Vec<String> = instance.items.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    html! {
        p class="state" {
            (badge(instance.state.as_str()))
            @if let Some(at) = instance.expires_on { span class="soft" { "expires" } (time(at, context.now)) }
        }
        (facts([
            ("id", instance.id.clone()),
            ("orderBizId", instance.order_biz_id.clone()),
            ("order", instance.order_id.clone()),
            ("account", Some(instance.account.clone())),
            ("endpoint", Some(instance.endpoint.clone())),
            ("buyer", instance.buyer.clone()),
            ("product", instance.product.clone()),
            ("SKU", instance.sku.clone()),
            ("items", (!items.is_empty()).then(|| items.join(", "))),
            ("trial", instance.trial.map(|trial| if trial { "yes" } else { "no" }.to_owned())),
            ("expiry as sent", instance.expires_on_raw.clone()),
            ("imported or adopted", instance.adopted.then(|| "yes: not created by spid".to_owned())),
            ("tombstone", instance.tombstone.then(|| "yes: its release came before its create".to_owned())),
            ("first seen", Some(moment(instance.created_at))),
            ("last changed", Some(moment(instance.updated_at))),
        ]))
    }
}

fn acts(context: &PageContext, shown: &Timeline) -> Markup {
    let row = &shown.history.instance;
    let named = row.name().map(|name| (name, row.instance.account.as_str()));
    let (mut jobs, mut held) = rows(&shown.history);
    jobs.retain(|job| waits(job.state));
    held.retain(|row| row.disposition == Disposition::Held);
    let none = jobs.is_empty() && held.is_empty();
    html! {
        @for job in jobs {
            div class="errand" {
                p { (badge(job.state.as_str())) " " (job.action) " · " (job.note.as_deref().unwrap_or_default()) }
                div class="acts" { (job_acts(context, job.id, named)) }
            }
        }
        @for held in held {
            @let code = held.reason_code.as_deref();
            div class="errand" {
                p { (badge("held")) " " (held.action) " · " (held.reason.as_deref().unwrap_or_default()) }
                p class="hint" { (words::advice("held-callback", code)) }
                div class="acts" { (held_acts(context, held.number, code)) }
            }
        }
        @if let Some((name, account)) = named.filter(|_| row.instance.state != State::Released) {
            div class="acts" { (release_act(context, name, account)) }
        } @else if none {
            (nothing("No operations: the instance is released."))
        }
    }
}

fn waits(state: JobState) -> bool {
    matches!(state, JobState::Dead | JobState::Held | JobState::Pending)
}

fn release_act(context: &PageContext, name: &str, account: &str) -> Markup {
    let hint =
        "Releases the instance as if the marketplace had asked for it. The hook runs. This cannot be undone.";
    let form = ActForm::new("release", "Release", name, hint);
    parts::act(context, &ActForm { account: Some(account), ..form })
}

fn events(context: &PageContext, shown: &Timeline) -> Markup {
    let mut events = collect_events(shown);
    // Truncate after sorting, so that the oldest events are left out.
    events.sort_by_key(|event| std::cmp::Reverse(event.at));
    let left_out = shown.history.older || events.len() > EVENTS;
    events.truncate(EVENTS);
    html! {
        ol class="timeline" {
            @for event in &events {
                li data-tone=(tone(&event.kind)) { (time(event.at, context.now)) div { (draw(&event.kind)) } }
            }
        }
        @if left_out { (nothing("Earlier events are left out; `spid instances show` has them all.")) }
    }
}

/// Collects all events, effects before their causes. The list is shown latest first, and the stable sort keeps this
/// order for events at the same instant.
fn collect_events(shown: &Timeline) -> Vec<Event<'_>> {
    let (jobs, callbacks) = rows(&shown.history);
    let mut events = Vec::new();
    for row in callbacks.iter().copied().rev() {
        events.extend(row.reported_at.map(|at| Event { at, kind: EventKind::Reported(row) }));
    }
    for job in jobs.into_iter().rev() {
        let at = job.ended_at.or(job.attempted_at).unwrap_or(job.created_at);
        events.push(Event { at, kind: EventKind::JobState(job) });
        let failed = shown.attempts.iter().rev().filter(|attempt| attempt.job == job.number);
        events.extend(
            failed.map(|attempt| Event { at: attempt.ended_at, kind: EventKind::Attempted(job, attempt) }),
        );
    }
    let operations = shown.history.operations.iter().rev();
    events.extend(operations.map(|act| Event { at: act.at, kind: EventKind::Operation(act) }));
    for (row, body) in callbacks.into_iter().zip(&shown.bodies).rev() {
        events.push(Event { at: row.received_at, kind: EventKind::Received(row, body) });
    }
    events
}

fn tone(kind: &EventKind<'_>) -> &'static str {
    match kind {
        EventKind::Received(row, _) if row.disposition == Disposition::Held => "warn",
        EventKind::Received(..) => "cool",
        EventKind::Reported(_) => "good",
        EventKind::Attempted(..) => "warn",
        EventKind::JobState(job) => match job.state {
            JobState::Done => "good",
            JobState::Dead => "bad",
            JobState::Refused | JobState::Held | JobState::Pending => "warn",
            _ => "",
        },
        EventKind::Operation(_) => "hand",
    }
}

fn draw(kind: &EventKind<'_>) -> Markup {
    match kind {
        EventKind::Received(row, body) => received(row, body),
        EventKind::Reported(row) => html! {
            strong { "reported" }
            " The success of callback " (row.number) " (" (row.action) ") was reported to the marketplace."
        },
        EventKind::Attempted(job, attempt) => html! {
            p { strong { "attempt " (attempt.attempt) " of " (job.action) } " " (badge(&attempt.ending)) }
            p class="said" { (attempt.note) }
        },
        EventKind::JobState(job) => job_state(job),
        EventKind::Operation(act) => html! {
            p { strong { (act.act) " (admin operation)" } " " (act.target) " · " (act.who) }
            p class="said" { (act.why) }
        },
    }
}

fn received(row: &CallbackRow, body: &Callback) -> Markup {
    html! {
        p {
            strong { (row.action) }
            " asked through " (row.endpoint) " · callback " (row.number) " · key " (row.key_label)
            @if row.disposition != Disposition::Job { " " (badge(row.disposition.as_str())) }
        }
        @if let Some(reason) = &row.reason { p class="said" { (reason) } }
        p class="soft" { (deliveries(row)) }
        @if let Some(at) = body.pruned_at {
            p class="soft" { "the content was pruned at " (moment(at)) }
        } @else {
            (parts::signed(&body.parameters))
        }
    }
}

fn deliveries(row: &CallbackRow) -> String {
    if row.deliveries == 1 {
        return "delivered once".to_owned();
    }
    let times = parts::times(row.deliveries, "time");
    let last = moment(row.last_received_at);
    // A reported callback does not come again, so its delivery limit does not matter.
    match row.delivery_limit.filter(|_| row.reported_at.is_none()) {
        Some(delivery_limit) => format!("delivered {times} of at most {delivery_limit}, last {last}"),
        None => format!("delivered {times}, last {last}"),
    }
}

fn job_state(job: &JobRow) -> Markup {
    html! {
        p {
            strong { "job: " (job.action) } " " (badge(job.state.as_str()))
            " after " (parts::times(u64::from(job.attempts), "attempt"))
            @if job.state == JobState::Queued { ", due " (moment(job.due_at)) }
        }
        @if let Some(note) = &job.note { p class="said" { (note) } }
        p class="soft" { "key " code { (job.id) } }
        @if let Some(answer) = &job.answer {
            details class="more" {
                summary { "answer without secrets" }
                // A URL in an answer may contain a password.
                pre { (without_user_info(answer)) }
            }
        }
    }
}

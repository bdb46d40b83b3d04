//! Single instance: its state, the possible operations, and its history, the latest event first.

use std::collections::HashSet;

use jiff::Timestamp;

use super::super::html::Html;
use super::super::target::Target;
use super::super::{Admin, Fault};
use super::parts::{self, ActForm, Field, badge, facts, held_acts, job_acts, moment, nothing, section, time};
use super::{NavigationEntry, Page, PageContext, Paged, words};
use crate::store::{AttemptRow, AuditEntry, CallbackRow, Disposition, InstanceHistory, JobRow, Reader};
use spid_core::lifecycle::schedule;
use spid_hook::callback::Callback;
use spid_hook::instance::{Instance, State};
use spid_hook::text::without_user_info;

/// Maximum number of events on a page, and of audit entries.
const EVENTS: usize = 300;

struct Shown {
    life: InstanceHistory,
    /// Content of each callback, in the order of `life.callbacks`.
    bodies: Vec<Callback>,
    attempts: Vec<AttemptRow>,
    acts: Vec<AuditEntry>,
}

/// Event of an instance's history.
struct Event<'a> {
    at: Timestamp,
    what: What<'a>,
}

enum What<'a> {
    Asked(&'a CallbackRow, &'a Callback),
    Told(&'a CallbackRow),
    Failed(&'a JobRow, &'a AttemptRow),
    Stands(&'a JobRow),
    AuditNote(&'a AuditEntry),
}

pub(super) async fn page(admin: &Admin, context: &PageContext, target: &Target, name: &str) -> Paged {
    target.only(&["account", "done"])?;
    let (wanted, account) = (name.to_owned(), target.get("account").map(str::to_owned));
    let shown = admin.read(move |reader| read(reader, &wanted, account.as_deref())).await?;
    let instance = &shown.life.instance.instance;
    let mut body = Html::default();
    body.element("section", &[("class", "card")], |html| summary(html, context, instance));
    section(&mut body, "Operations", |html| acts(html, context, &shown));
    section(&mut body, "History, the latest first", |html| events(html, context, &shown));
    Ok(Page { title: name.to_owned(), place: NavigationEntry::Instances, body })
}

fn read(reader: &Reader, name: &str, account: Option<&str>) -> Result<Shown, Fault> {
    let life = reader.latest(name, account, EVENTS)?;
    let (mut bodies, mut attempts) = (Vec::new(), Vec::new());
    for row in &life.callbacks {
        bodies.push(reader.content(row.number)?);
    }
    for job in &life.jobs {
        attempts.extend(reader.attempts(job.number)?);
    }
    let targets = targets(&life);
    // The audit log cannot be read by target, so all of its entries are searched.
    let acts = reader.acts(usize::MAX)?.into_iter().filter(|act| targets.contains(&act.target));
    let acts = acts.take(EVENTS).collect();
    Ok(Shown { life, bodies, attempts, acts })
}

/// Names of this instance, its jobs and its callbacks in the audit log.
fn targets(life: &InstanceHistory) -> HashSet<String> {
    let row = &life.instance;
    let itself = format!("instance {} of {}", row.name().unwrap_or_default(), row.instance.account);
    let jobs = life.jobs.iter().map(|job| format!("job {}", job.id));
    let callbacks = life.callbacks.iter().map(|row| format!("callback {}", row.number));
    jobs.chain(callbacks).chain([itself]).collect()
}

fn summary(html: &mut Html, context: &PageContext, instance: &Instance) {
    html.element("p", &[("class", "state")], |html| {
        badge(html, instance.state.as_str());
        if let Some(at) = instance.expires_on {
            html.leaf("span", "soft", "expires");
            time(html, at, context.now);
        }
    });
    let items: Vec<String> = instance.items.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    let said = |flag: bool, word: &str| flag.then(|| word.to_owned());
    facts(
        html,
        &[
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
            ("imported or adopted", said(instance.adopted, "yes: not created by spid")),
            ("tombstone", said(instance.tombstone, "yes: its release came before its create")),
            ("first seen", Some(moment(instance.created_at))),
            ("last changed", Some(moment(instance.updated_at))),
        ],
    );
}

fn acts(html: &mut Html, context: &PageContext, shown: &Shown) {
    let row = &shown.life.instance;
    let named = row.name().map(|name| (name, row.instance.account.as_str()));
    let mut any = false;
    let waits = |job: &&JobRow| {
        matches!(job.state, schedule::JobState::Dead | schedule::JobState::Held | schedule::JobState::Pending)
    };
    for job in shown.life.jobs.iter().filter(waits) {
        any = true;
        html.element("div", &[("class", "errand")], |html| {
            html.element("p", &[], |html| {
                badge(html, job.state.as_str());
                html.text(&format!(" {} · {}", job.action, job.note.as_deref().unwrap_or_default()));
            });
            html.element("div", &[("class", "acts")], |html| job_acts(html, context, job.id, named));
        });
    }
    for held in shown.life.callbacks.iter().filter(|row| row.disposition == Disposition::Held) {
        any = true;
        html.element("div", &[("class", "errand")], |html| {
            html.element("p", &[], |html| {
                badge(html, "held");
                html.text(&format!(" {} · {}", held.action, held.reason.as_deref().unwrap_or_default()));
            });
            let code = held.reason_code.as_deref();
            html.leaf("p", "hint", words::advice("held-callback", code));
            html.element("div", &[("class", "acts")], |html| held_acts(html, context, held.number, code));
        });
    }
    if let Some((name, account)) = named.filter(|_| row.instance.state != State::Released) {
        html.element("div", &[("class", "acts")], |html| {
            parts::act(html, context, &ActForm {
                act: "release",
                label: "Release",
                target: name,
                account: Some(account),
                hint: "Releases the instance as if the marketplace had asked for it. The hook runs. This cannot be undone.",
                field: Field::Nothing,
            });
        });
    } else if !any {
        nothing(html, "No operations: the instance is released.");
    }
}

fn events(html: &mut Html, context: &PageContext, shown: &Shown) {
    let mut events = happened(shown);
    // Truncate after sorting, so that the oldest events are left out.
    events.sort_by_key(|event| std::cmp::Reverse(event.at));
    let left_out = shown.life.older || events.len() > EVENTS;
    events.truncate(EVENTS);
    html.element("ol", &[("class", "timeline")], |html| {
        for event in &events {
            html.element("li", &[("data-tone", tone(&event.what))], |html| {
                time(html, event.at, context.now);
                html.element("div", &[], |html| draw(html, &event.what));
            });
        }
    });
    if left_out {
        nothing(html, "Earlier events are left out; `spid instances show` has them all.");
    }
}

/// Collects all events, effects before their causes. The list is shown latest first, and the stable sort keeps this
/// order for events at the same instant.
fn happened(shown: &Shown) -> Vec<Event<'_>> {
    let life = &shown.life;
    let mut events = Vec::new();
    for row in life.callbacks.iter().rev() {
        events.extend(row.reported_at.map(|at| Event { at, what: What::Told(row) }));
    }
    for job in life.jobs.iter().rev() {
        let at = job.ended_at.or(job.attempted_at).unwrap_or(job.created_at);
        events.push(Event { at, what: What::Stands(job) });
        let failed = shown.attempts.iter().rev().filter(|attempt| attempt.job == job.number);
        events.extend(failed.map(|attempt| Event { at: attempt.ended_at, what: What::Failed(job, attempt) }));
    }
    events.extend(shown.acts.iter().map(|act| Event { at: act.at, what: What::AuditNote(act) }));
    for (row, body) in life.callbacks.iter().zip(&shown.bodies).rev() {
        events.push(Event { at: row.received_at, what: What::Asked(row, body) });
    }
    events
}

fn tone(what: &What<'_>) -> &'static str {
    match what {
        What::Asked(row, _) if row.disposition == Disposition::Held => "warn",
        What::Asked(..) => "cool",
        What::Told(_) => "good",
        What::Failed(..) => "warn",
        What::Stands(job) => match job.state {
            schedule::JobState::Done => "good",
            schedule::JobState::Dead => "bad",
            schedule::JobState::Refused | schedule::JobState::Held | schedule::JobState::Pending => "warn",
            _ => "",
        },
        What::AuditNote(_) => "hand",
    }
}

fn draw(html: &mut Html, what: &What<'_>) {
    match what {
        What::Asked(row, body) => asked(html, row, body),
        What::Told(row) => {
            html.leaf("strong", "", "reported");
            html.text(&format!(
                " The success of callback {} ({}) was reported to the marketplace.",
                row.number, row.action
            ));
        }
        What::Failed(job, attempt) => {
            html.element("p", &[], |html| {
                html.leaf("strong", "", &format!("attempt {} of {}", attempt.attempt, job.action));
                html.text(" ");
                badge(html, &attempt.ending);
            });
            html.leaf("p", "said", &attempt.note);
        }
        What::Stands(job) => stands(html, job),
        What::AuditNote(act) => {
            html.element("p", &[], |html| {
                html.leaf("strong", "", &format!("{} (admin operation)", act.act));
                html.text(&format!(" {} · {}", act.target, act.who));
            });
            html.leaf("p", "said", &act.why);
        }
    }
}

fn asked(html: &mut Html, row: &CallbackRow, body: &Callback) {
    html.element("p", &[], |html| {
        html.leaf("strong", "", row.action.as_str());
        html.text(&format!(
            " asked through {} · callback {} · key {}",
            row.endpoint, row.number, row.key_label
        ));
        if row.disposition != Disposition::Job {
            html.text(" ");
            badge(html, word(row.disposition));
        }
    });
    if let Some(reason) = &row.reason {
        html.leaf("p", "said", reason);
    }
    // A reported callback does not come again, so its delivery limit does not matter.
    let tries = match row.delivery_limit.filter(|_| row.reported_at.is_none()) {
        Some(delivery_limit) => {
            format!("delivered {} of at most {delivery_limit}", parts::times(row.deliveries, "time"))
        }
        None => format!("delivered {}", parts::times(row.deliveries, "time")),
    };
    let last = format!("{tries}, last {}", moment(row.last_received_at));
    html.leaf("p", "soft", if row.deliveries == 1 { "delivered once" } else { &last });
    if let Some(at) = body.pruned_at {
        return html.leaf("p", "soft", &format!("the content was pruned at {}", moment(at)));
    }
    parts::signed(html, &body.parameters);
}

fn word(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Job => "job",
        Disposition::Held => "held",
        Disposition::Refused => "refused",
        Disposition::Recorded => "recorded",
    }
}

fn stands(html: &mut Html, job: &JobRow) {
    html.element("p", &[], |html| {
        html.leaf("strong", "", &format!("job: {}", job.action));
        html.text(" ");
        badge(html, job.state.as_str());
        html.text(&format!(" after {}", parts::times(u64::from(job.attempts), "attempt")));
        if job.state == schedule::JobState::Queued {
            html.text(&format!(", due {}", moment(job.due_at)));
        }
    });
    if let Some(note) = &job.note {
        html.leaf("p", "said", note);
    }
    html.element("p", &[("class", "soft")], |html| {
        html.text("key ");
        html.leaf("code", "", &job.id.to_string());
    });
    if let Some(answer) = &job.answer {
        html.element("details", &[("class", "more")], |html| {
            html.leaf("summary", "", "answer without secrets");
            // A URL in an answer may contain a password.
            html.leaf("pre", "", &without_user_info(answer));
        });
    }
}

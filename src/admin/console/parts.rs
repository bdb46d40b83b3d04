//! Building blocks of pages: badges, times, tables, facts, and the forms of operations.

use std::fmt::Display;

use jiff::Timestamp;
use maud::{Markup, html};

use super::super::target::Link;
use super::PageContext;
use crate::observe::limits;
use spid_core::query;
use spid_hook::callback::Parameters;
use spid_hook::id::Id;

/// State as a colored word. The words are our own.
pub(super) fn badge(word: &str) -> Markup {
    let tone = match word {
        "active" | "done" | "applied" | "ready" => "badge good",
        "dead" | "not ready" => "badge bad",
        "held" | "pending" | "retry" | "lost" | "unreported" => "badge warn",
        "running" | "frozen" => "badge cool",
        "refused" => "badge rose",
        _ => "badge",
    };
    html! { span class=(tone) { (word) } }
}

/// Formats an instant with a precision of seconds.
pub(super) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Instant, and its distance from now.
pub(super) fn time(at: Timestamp, now: Timestamp) -> Markup {
    html! {
        time datetime=(at) title=(moment(at)) { (moment(at)) " " small { (distance(at, now)) } }
    }
}

/// Instant or a dash.
pub(super) fn time_or_dash(at: Option<Timestamp>, now: Timestamp) -> Markup {
    match at {
        Some(at) => time(at, now),
        None => html! { "–" },
    }
}

/// Text of a cell.
pub(super) fn cell(text: impl Display) -> Markup {
    html! { (text) }
}

/// Text of a cell or a dash.
pub(super) fn or_dash(text: Option<&str>) -> Markup {
    html! { (text.unwrap_or("–")) }
}

/// Distance of an instant from now, in the largest unit that fits.
pub(super) fn distance(at: Timestamp, now: Timestamp) -> String {
    let seconds = (at.as_millisecond() - now.as_millisecond()) / 1000;
    // Each unit is used up to 89 s, 89 min and 47 h; after that the next one.
    let (amount, unit) = match seconds.abs() {
        few @ 0..=89 => (few, "s"),
        few @ 90..=5_399 => (few / 60, "min"),
        few @ 5_400..=172_799 => (few / 3_600, "h"),
        many => (many / 86_400, "d"),
    };
    match seconds {
        1.. => format!("in {amount} {unit}"),
        _ => format!("{amount} {unit} ago"),
    }
}

pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = count as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let unit = units.get(unit).copied().unwrap_or_default();
    if amount < 10.0 && unit != "B" { format!("{amount:.1} {unit}") } else { format!("{amount:.0} {unit}") }
}

/// Count and its noun, in singular or plural.
pub(super) fn times(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// Link that looks like a button.
pub(super) fn button(link: &Link, word: &str) -> Markup {
    html! { a href=(link) class="button" { (word) } }
}

/// Link to the page of an instance, or `otherwise` for work without an instance.
pub(super) fn instance(name: Option<&str>, account: &str, otherwise: Markup) -> Markup {
    let Some(name) = name else { return otherwise };
    let link = Link::to("/console/instances").segment(name).with("account", account);
    html! { a href=(link) class="name" { (name) } }
}

/// Link to the page of an instance or a dash.
pub(super) fn instance_or_dash(name: Option<&str>, account: &str) -> Markup {
    instance(name, account, html! { "–" })
}

/// Table. On a narrow screen the heading is beside its cell.
pub(super) fn table<const N: usize>(
    caption: &str,
    headings: [&'static str; N],
    rows: impl Iterator<Item = [Markup; N]>,
) -> Markup {
    html! {
        table {
            caption class="hidden" { (caption) }
            thead { tr { @for heading in headings { th scope="col" { (heading) } } } }
            tbody {
                @for row in rows {
                    tr { @for (heading, cell) in headings.iter().zip(row) { td data-label=(heading) { (cell) } } }
                }
            }
        }
    }
}

/// List of facts; unknown facts are left out.
pub(super) fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, Option<String>)>) -> Markup {
    html! {
        dl class="facts" {
            @for (name, value) in facts {
                @if let Some(value) = value { div { dt { (name) } dd { (value) } } }
            }
        }
    }
}

/// Signed parameters of a callback, folded. Values of parameters whose names look like a token's are not shown.
pub(super) fn signed(parameters: &Parameters) -> Markup {
    let mut shown = Vec::new();
    for (name, value) in parameters.iter() {
        let value = if query::names_a_token(name) { query::TOKEN_PLACEHOLDER } else { value };
        shown.push((name, Some(value.to_owned())));
    }
    html! {
        details class="more" {
            summary { (times(parameters.len() as u64, "signed parameter")) }
            (facts(shown))
        }
    }
}

/// Section with a heading.
pub(super) fn section(title: &str, inside: Markup) -> Markup {
    html! { section class="card" { h2 { (title) } (inside) } }
}

/// Sentence that replaces an empty list.
pub(super) fn nothing(sentence: &str) -> Markup {
    html! { p class="nothing" { (sentence) } }
}

/// Operation as a button that asks for a reason.
pub(super) struct ActForm<'a> {
    pub(super) act: &'static str,
    pub(super) label: &'static str,
    pub(super) target: &'a str,
    pub(super) account: Option<&'a str>,
    /// Effect of the operation, shown before it runs.
    pub(super) hint: &'static str,
    pub(super) field: Field,
}

impl<'a> ActForm<'a> {
    /// Form of an operation that needs no account and no further input.
    pub(super) fn new(
        act: &'static str,
        label: &'static str,
        target: &'a str,
        hint: &'static str,
    ) -> ActForm<'a> {
        ActForm { act, label, target, account: None, hint, field: Field::Nothing }
    }
}

/// Additional input of an operation, beside the acting person and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Nothing,
    /// Real meaning of a conflicting create.
    Instead,
    /// Answer that completes the work.
    Answer,
}

pub(super) fn act(context: &PageContext, form: &ActForm<'_>) -> Markup {
    html! {
        // `details` opens and closes without a script.
        details class="act" {
            summary class="button" { (form.label) }
            form method="post" action="/console/act" {
                p class="hint" { (form.hint) }
                (hidden("token", context.form_token.expose()))
                (hidden("act", form.act))
                // Encoded: a page shows invisible characters as escapes, and the escape would name another instance.
                (hidden("target", &query::encode_text(form.target)))
                // The page to return to after the operation.
                (hidden("back", &context.here))
                @if let Some(account) = form.account { (hidden("account", account)) }
                (field(form.field))
                (label("Who", html! { input name="who" value=(context.who) required maxlength="100"; }))
                (label("Why", html! { input name="why" required maxlength=(limits::REASON_MAX_BYTES); }))
                button class="primary" { (form.label) " now" }
            }
        }
    }
}

fn field(field: Field) -> Markup {
    match field {
        Field::Nothing => html! {},
        Field::Instead => label(
            "Run it as",
            html! {
                select name="as" required {
                    option value="" { "…" }
                    option value="conversion" { "conversion of the trial" }
                    option value="renew" { "renewal" }
                    option value="upgrade" { "upgrade" }
                }
            },
        ),
        Field::Answer => label(
            "Answer, as JSON; empty for none",
            html! {
                textarea name="answer" rows="3" spellcheck="false" {}
            },
        ),
    }
}

pub(super) fn label(word: &str, input: Markup) -> Markup {
    html! { label { span { (word) } (input) } }
}

fn hidden(name: &'static str, value: &str) -> Markup {
    html! { input type="hidden" name=(name) value=(value); }
}

/// Operations on a job that waits for an operator.
pub(super) fn job_acts(context: &PageContext, job: Id, instance: Option<(&str, &str)>) -> Markup {
    let id = job.to_string();
    let hint = "Cancels the job without running it. Jobs behind it go on; jobs behind a create end, too.";
    let drop = ActForm::new("drop", "Drop", &id, hint);
    let hint = "Completes the waiting job with this answer, if you did the work by hand.";
    let complete = instance.map(|(name, account)| {
        let form = ActForm::new("complete", "Complete", name, hint);
        ActForm { account: Some(account), field: Field::Answer, ..form }
    });
    let hint = "Runs the hook once, now. The attempt does not count against the retry schedule.";
    html! {
        (retry_act(context, job, hint))
        @if let Some(complete) = complete { (act(context, &complete)) }
        (act(context, &drop))
    }
}

/// Retry of a job. `hint` says what runs.
pub(super) fn retry_act(context: &PageContext, job: Id, hint: &'static str) -> Markup {
    act(context, &ActForm::new("retry", "Retry", &job.to_string(), hint))
}

/// Operation on an attention item for which no job and no decision waits.
pub(super) fn dismiss_act(context: &PageContext, callback: i64) -> Markup {
    let (number, hint) = (callback.to_string(), "Removes the item from the list. Nothing else changes.");
    act(context, &ActForm::new("dismiss", "Dismiss", &number, hint))
}

/// Operations on a held callback.
pub(super) fn held_acts(context: &PageContext, callback: i64, reason_code: Option<&str>) -> Markup {
    let number = callback.to_string();
    let mut approve = ActForm::new("approve", "Approve", &number, "Approves the callback, so that it runs.");
    if reason_code == Some("conflicting-create") {
        approve.field = Field::Instead;
    }
    let hint = "For a repeat of finished work: the next delivery is answered with success, and nothing runs.";
    let settle = ActForm::new("settle", "Settle", &number, hint);
    let hint = "Rejects the callback and its redeliveries. The marketplace learns that you declined, not the reason.";
    let reject = ActForm::new("reject", "Reject", &number, hint);
    html! { (act(context, &approve)) (act(context, &settle)) (act(context, &reject)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spid_hook::time::{from_millis, plus_millis};

    #[test]
    fn distances_and_sizes_are_said_shortly() {
        let now = from_millis(1_000_000_000_000);
        let far = |seconds: i64| distance(plus_millis(now, seconds * 1000), now);
        assert_eq!([far(0), far(-89), far(-90)], ["0 s ago", "89 s ago", "1 min ago"]);
        assert_eq!([far(7_200), far(-200_000)], ["in 2 h", "2 d ago"]);
        assert_eq!([bytes(0), bytes(1_536), bytes(20 << 30)], ["0 B", "1.5 KiB", "20 GiB"]);
    }
}

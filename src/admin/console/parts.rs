//! Building blocks of pages: badges, times, tables, facts, and the forms of operations.

use jiff::Timestamp;

use super::super::html::Html;
use super::super::target::Link;
use super::PageContext;
use crate::observe::limits;
use spid_core::query;
use spid_hook::callback::Parameters;
use spid_hook::id::Id;

/// State as a colored word. The words are our own.
pub(super) fn badge(html: &mut Html, word: &str) {
    let tone = match word {
        "active" | "done" | "applied" | "ready" => "badge good",
        "dead" | "not ready" => "badge bad",
        "held" | "pending" | "retry" | "lost" | "unreported" => "badge warn",
        "running" | "frozen" => "badge cool",
        "refused" => "badge rose",
        _ => "badge",
    };
    html.leaf("span", tone, word);
}

/// Formats an instant with a precision of seconds.
pub(super) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Instant, and its distance from now.
pub(super) fn time(html: &mut Html, at: Timestamp, now: Timestamp) {
    let attributes = [("datetime", &*at.to_string()), ("title", &*moment(at))];
    html.element("time", &attributes, |html| {
        html.text(&moment(at));
        html.text(" ");
        html.leaf("small", "", &distance(at, now));
    });
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

/// Link to the page of an instance.
pub(super) fn instance_link(name: &str, account: &str) -> Link {
    Link::to("/console/instances").segment(name).with("account", account)
}

/// Table with a function that draws each cell. On a narrow screen the heading is beside its cell.
pub(super) fn table<T>(
    html: &mut Html,
    caption: &str,
    headings: &[&'static str],
    rows: &[T],
    cell: impl Fn(&mut Html, &T, usize),
) {
    html.element("table", &[], |html| {
        html.leaf("caption", "hidden", caption);
        html.element("thead", &[], |html| {
            html.element("tr", &[], |html| {
                for heading in headings {
                    html.element("th", &[("scope", "col")], |html| html.text(heading));
                }
            });
        });
        html.element("tbody", &[], |html| {
            for row in rows {
                html.element("tr", &[], |html| {
                    for (column, heading) in headings.iter().enumerate() {
                        html.element("td", &[("data-label", heading)], |html| cell(html, row, column));
                    }
                });
            }
        });
    });
}

/// List of facts; unknown facts are left out.
pub(super) fn facts(html: &mut Html, facts: &[(&str, Option<String>)]) {
    html.element("dl", &[("class", "facts")], |html| {
        for (name, value) in facts {
            let Some(value) = value else { continue };
            html.element("div", &[], |html| {
                html.leaf("dt", "", name);
                html.leaf("dd", "", value);
            });
        }
    });
}

/// Signed parameters of a callback, folded. Values of parameters whose names look like a token's are not shown.
pub(super) fn signed(html: &mut Html, parameters: &Parameters) {
    html.element("details", &[("class", "more")], |html| {
        html.leaf("summary", "", &times(parameters.len() as u64, "signed parameter"));
        let value = |name: &str, value: &str| match query::names_a_token(name) {
            true => query::TOKEN_PLACEHOLDER.to_owned(),
            false => value.to_owned(),
        };
        let shown: Vec<(&str, Option<String>)> =
            parameters.iter().map(|(name, it)| (name, Some(value(name, it)))).collect();
        facts(html, &shown);
    });
}

/// Section with a heading.
pub(super) fn section(html: &mut Html, title: &str, inside: impl FnOnce(&mut Html)) {
    html.element("section", &[("class", "card")], |html| {
        html.leaf("h2", "", title);
        inside(html);
    });
}

/// Sentence that replaces an empty list.
pub(super) fn nothing(html: &mut Html, sentence: &str) {
    html.leaf("p", "nothing", sentence);
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

/// Additional input of an operation, beside the acting person and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Nothing,
    /// Real meaning of a conflicting create.
    Instead,
    /// Answer that completes the work.
    Answer,
}

pub(super) fn act(html: &mut Html, context: &PageContext, form: &ActForm<'_>) {
    // `details` opens and closes without a script.
    html.element("details", &[("class", "act")], |html| {
        html.element("summary", &[("class", "button")], |html| html.text(form.label));
        html.element("form", &[("method", "post"), ("action", "/console/act")], |html| {
            html.leaf("p", "hint", form.hint);
            hidden(html, "token", context.form_token.expose());
            hidden(html, "act", form.act);
            hidden(html, "target", form.target);
            // The page to return to after the operation.
            hidden(html, "back", &context.here);
            if let Some(account) = form.account {
                hidden(html, "account", account);
            }
            field(html, form.field);
            let most = limits::REASON_MAX_BYTES.to_string();
            label(html, "Who", |html| {
                let known =
                    [("name", "who"), ("value", &*context.who), ("required", ""), ("maxlength", "100")];
                html.void("input", &known);
            });
            label(html, "Why", |html| {
                html.void("input", &[("name", "why"), ("required", ""), ("maxlength", &most)]);
            });
            let label = format!("{} now", form.label);
            html.element("button", &[("class", "primary")], |html| html.text(&label));
        });
    });
}

fn field(html: &mut Html, field: Field) {
    match field {
        Field::Nothing => {}
        Field::Instead => label(html, "Run it as", |html| {
            html.element("select", &[("name", "as"), ("required", "")], |html| {
                for (value, word) in [
                    ("", "…"),
                    ("conversion", "conversion of the trial"),
                    ("renew", "renewal"),
                    ("upgrade", "upgrade"),
                ] {
                    html.element("option", &[("value", value)], |html| html.text(word));
                }
            });
        }),
        Field::Answer => label(html, "Answer, as JSON; empty for none", |html| {
            let attributes = [("name", "answer"), ("rows", "3"), ("spellcheck", "false")];
            html.element("textarea", &attributes, |_| {});
        }),
    }
}

pub(super) fn label(html: &mut Html, word: &str, inside: impl FnOnce(&mut Html)) {
    html.element("label", &[], |html| {
        html.leaf("span", "", word);
        inside(html);
    });
}

pub(super) fn hidden(html: &mut Html, name: &'static str, value: &str) {
    html.void("input", &[("type", "hidden"), ("name", name), ("value", value)]);
}

/// Operations on a job that waits for an operator.
pub(super) fn job_acts(html: &mut Html, context: &PageContext, job: Id, instance: Option<(&str, &str)>) {
    let id = job.to_string();
    let plain = ActForm {
        act: "retry",
        label: "Retry",
        target: &id,
        account: None,
        hint: "Runs the hook once, now. The attempt does not count against the retry schedule.",
        field: Field::Nothing,
    };
    act(html, context, &plain);
    if let Some((name, account)) = instance {
        act(
            html,
            context,
            &ActForm {
                act: "complete",
                label: "Complete",
                target: name,
                account: Some(account),
                hint: "Completes the waiting job with this answer, if you did the work by hand.",
                field: Field::Answer,
            },
        );
    }
    act(
        html,
        context,
        &ActForm {
            act: "drop",
            label: "Drop",
            hint: "Cancels the job without running it. Jobs behind it go on; jobs behind a create end, too.",
            ..plain
        },
    );
}

/// Operation on an attention item for which no job and no decision waits.
pub(super) fn dismiss_act(html: &mut Html, context: &PageContext, callback: i64) {
    let dismiss = ActForm {
        act: "dismiss",
        label: "Dismiss",
        target: &callback.to_string(),
        account: None,
        hint: "Removes the item from the list. Nothing else changes.",
        field: Field::Nothing,
    };
    act(html, context, &dismiss);
}

/// Operations on a held callback.
pub(super) fn held_acts(html: &mut Html, context: &PageContext, callback: i64, reason_code: Option<&str>) {
    let number = callback.to_string();
    let conflicting = reason_code == Some("conflicting-create");
    let approve = ActForm {
        act: "approve",
        label: "Approve",
        target: &number,
        account: None,
        hint: "Approves the callback, so that it runs.",
        field: if conflicting { Field::Instead } else { Field::Nothing },
    };
    act(html, context, &approve);
    act(
        html,
        context,
        &ActForm {
            act: "settle",
            label: "Settle",
            hint: "For a repeat of finished work: the next delivery is answered with success, and nothing runs.",
            field: Field::Nothing,
            ..approve
        },
    );
    act(
        html,
        context,
        &ActForm {
            act: "reject",
            label: "Reject",
            hint: "Rejects the callback and its redeliveries. The marketplace learns that you declined, not the reason.",
            field: Field::Nothing,
            ..approve
        },
    );
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

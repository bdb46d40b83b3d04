//! Work that waits for a person, with reasons and buttons.

use jiff::Timestamp;

use super::super::html::Html;
use super::super::target::Target;
use super::super::{Admin, Fault};
use super::parts::{
    badge, dismiss_act, facts, held_acts, instance_link, job_acts, nothing, section, signed, table, time,
};
use super::{Desk, Page, Paged, Place, words};
use crate::observe::limits;
use crate::store::{AttentionItem, CallbackRow, Errand, Filter, Reader};
use spid_hook::callback::Callback;

/// Content of the page.
struct Shown {
    /// Attention items with a job or a decision, each with its callback.
    errands: Vec<(Errand, Callback)>,
    /// Number of items that are not shown.
    left_out: usize,
    /// All other attention items.
    others: Vec<AttentionItem>,
    /// Number of other attention items that are not shown.
    others_left_out: usize,
    /// Callbacks with an unreported result, each with the name of its instance.
    untold: Vec<(CallbackRow, Option<String>)>,
}

pub(super) async fn page(admin: &Admin, desk: &Desk, target: &Target) -> Paged {
    target.only(&["done"])?;
    let now = desk.now;
    let shown = admin.read(move |reader| read(reader, now)).await?;
    let mut body = Html::default();
    if shown.errands.is_empty() && shown.others.is_empty() {
        nothing(
            &mut body,
            "Nothing waits for a person. Dead, held, pending, refused and unreported work would stand here.",
        );
    }
    for (errand, callback) in &shown.errands {
        body.element("article", &[("class", "card errand")], |html| draw(html, desk, errand, callback));
    }
    if shown.left_out > 0 {
        nothing(&mut body, &format!("{} more wait: these are the latest.", shown.left_out));
    }
    for item in &shown.others {
        body.element("article", &[("class", "card errand")], |html| draw_item(html, desk, item));
    }
    if shown.others_left_out > 0 {
        nothing(&mut body, &format!("{} more wait: these are the most urgent.", shown.others_left_out));
    }
    if !shown.untold.is_empty() {
        section(&mut body, "Untold results", |html| untold(html, desk, &shown.untold));
    }
    Ok(Page { title: "Work that waits for a person".to_owned(), place: Place::Work, body })
}

fn read(reader: &Reader, now: Timestamp) -> Result<Shown, Fault> {
    let (errands, left_out) = reader.errands(limits::LIST_DEFAULT_COUNT)?;
    // Items that wait for a job or a decision are among the errands. They must not use up the limit of the others.
    let mut others = reader.attention(now, usize::MAX)?.items;
    others.retain(|item| item.may_be_dismissed);
    let others_left_out = others.len().saturating_sub(limits::LIST_DEFAULT_COUNT);
    others.truncate(limits::LIST_DEFAULT_COUNT);
    let mut shown = Shown { errands: Vec::new(), left_out, others, others_left_out, untold: Vec::new() };
    for errand in errands {
        let body = reader.content(errand.callback)?;
        shown.errands.push((errand, body));
    }
    let filter = Filter { untold: true, limit: limits::LIST_DEFAULT_COUNT, ..Filter::default() };
    for row in reader.callbacks(&filter)? {
        let name = reader.instance_name(row.instance)?;
        shown.untold.push((row, name));
    }
    Ok(shown)
}

fn untold(html: &mut Html, desk: &Desk, rows: &[(CallbackRow, Option<String>)]) {
    html.leaf(
        "p",
        "hint",
        "Done, and the marketplace has not come back for the answer yet. If it has given up, reset its counter on the seller's production message retry page.",
    );
    let headings = ["Action", "Instance", "Callback", "Tries", "Last"];
    table(html, "Untold results", &headings, rows, |html, (row, name), column| match column {
        0 => html.text(row.action.as_str()),
        1 => match name {
            Some(name) => html.link("name", &instance_link(name, &row.account), name),
            None => html.text("–"),
        },
        2 => html.text(&row.number.to_string()),
        3 => match row.budget {
            Some(budget) => html.text(&format!("{} of {budget}", row.deliveries)),
            None => html.text(&row.deliveries.to_string()),
        },
        _ => time(html, row.last_received_at, desk.now),
    });
}

/// Draws an attention item for which no job and no decision waits.
fn draw_item(html: &mut Html, desk: &Desk, item: &AttentionItem) {
    html.element("h2", &[], |html| {
        badge(html, item.reason.as_str());
        html.text(&format!(" {} ", item.action));
        match &item.instance {
            Some(name) => html.link("name", &instance_link(name, &item.account), name),
            None => html.leaf("span", "soft", "no instance"),
        }
    });
    html.element("p", &[("class", "soft")], |html| {
        html.text(&format!("callback {} · {} · since ", item.callback, item.account));
        time(html, item.since, desk.now);
    });
    html.leaf("p", "said", &item.detail);
    html.leaf("p", "hint", &item.todo);
    let order = item.order.clone();
    facts(html, &[("order", order), ("buyer", item.buyer.clone())]);
    html.element("div", &[("class", "acts")], |html| dismiss_act(html, desk, item.callback));
}

fn draw(html: &mut Html, desk: &Desk, errand: &Errand, callback: &Callback) {
    html.element("h2", &[], |html| {
        badge(html, words::kind(errand.kind));
        html.text(&format!(" {} ", errand.action));
        match &errand.instance {
            Some(name) => html.link("name", &instance_link(name, &errand.account), name),
            None => html.leaf("span", "soft", "no instance"),
        }
    });
    html.element("p", &[("class", "soft")], |html| {
        let Errand { callback: number, account, .. } = errand;
        html.text(&format!("{} · callback {number} · {account} · since ", callback.action_name));
        time(html, errand.since, desk.now);
    });
    html.leaf("p", "said", &errand.reason);
    html.leaf("p", "hint", words::advice(errand.kind, errand.reason_code.as_deref()));
    signed(html, &callback.parameters);
    html.element("div", &[("class", "acts")], |html| match errand.job {
        Some(job) => {
            let named = errand.instance.as_deref().map(|name| (name, errand.account.as_str()));
            job_acts(html, desk, job, named);
        }
        None => held_acts(html, desk, errand.callback, errand.reason_code.as_deref()),
    });
}

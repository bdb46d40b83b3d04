//! Work that needs attention, with reasons and buttons.

use jiff::Timestamp;

use super::super::html::Html;
use super::super::target::Target;
use super::super::{Admin, Fault};
use super::parts::{
    badge, dismiss_act, facts, held_acts, instance_link, job_acts, nothing, section, signed, table, time,
};
use super::{NavigationEntry, Page, PageContext, Paged, words};
use crate::observe::limits;
use crate::store::{AttentionItem, CallbackRow, Filter, HeldItem, Reader};
use spid_hook::callback::{Action, Callback};

/// Content of the page.
struct Shown {
    /// Attention items with a job or a decision, each with its callback.
    held_items: Vec<(HeldItem, Callback)>,
    /// Number of items that are not shown.
    left_out: usize,
    /// All other attention items.
    others: Vec<AttentionItem>,
    /// Number of other attention items that are not shown.
    others_left_out: usize,
    /// Callbacks with an unreported result, each with the name of its instance.
    unreported: Vec<(CallbackRow, Option<String>)>,
}

pub(super) async fn page(admin: &Admin, context: &PageContext, target: &Target) -> Paged {
    target.only(&["done"])?;
    let now = context.now;
    let shown = admin.read(move |reader| read(reader, now)).await?;
    let mut body = Html::default();
    if shown.held_items.is_empty() && shown.others.is_empty() {
        nothing(
            &mut body,
            "Nothing needs attention. This page lists dead, held, pending, refused and unreported work.",
        );
    }
    for (held_item, callback) in &shown.held_items {
        body.element("article", &[("class", "card errand")], |html| draw(html, context, held_item, callback));
    }
    if shown.left_out > 0 {
        nothing(&mut body, &format!("{} more are not shown; these are the latest.", shown.left_out));
    }
    for item in &shown.others {
        body.element("article", &[("class", "card errand")], |html| draw_item(html, context, item));
    }
    if shown.others_left_out > 0 {
        nothing(&mut body, &format!("{} more wait: these are the most urgent.", shown.others_left_out));
    }
    if !shown.unreported.is_empty() {
        section(&mut body, "Unreported results", |html| unreported(html, context, &shown.unreported));
    }
    Ok(Page { title: "Work that needs attention".to_owned(), place: NavigationEntry::Work, body })
}

fn read(reader: &Reader, now: Timestamp) -> Result<Shown, Fault> {
    let (held_items, left_out) = reader.held_items(limits::LIST_DEFAULT_COUNT)?;
    // Items that wait for a job or a decision are among the errands. They must not use up the limit of the others.
    let mut others = reader.attention(now, usize::MAX)?.items;
    others.retain(|item| item.may_be_dismissed || item.callback.is_none());
    let others_left_out = others.len().saturating_sub(limits::LIST_DEFAULT_COUNT);
    others.truncate(limits::LIST_DEFAULT_COUNT);
    let mut shown =
        Shown { held_items: Vec::new(), left_out, others, others_left_out, unreported: Vec::new() };
    for held_item in held_items {
        let missing = || Callback::new(Action::Other, "the callback is missing");
        let body = reader.content_if_kept(held_item.callback)?.unwrap_or_else(missing);
        shown.held_items.push((held_item, body));
    }
    let filter = Filter { unreported: true, limit: limits::LIST_DEFAULT_COUNT, ..Filter::default() };
    for row in reader.callbacks(&filter)? {
        let name = reader.instance_name(row.instance)?;
        shown.unreported.push((row, name));
    }
    Ok(shown)
}

fn unreported(html: &mut Html, context: &PageContext, rows: &[(CallbackRow, Option<String>)]) {
    html.leaf(
        "p",
        "hint",
        "The work is done, but the marketplace has not called again. If it has given up, reset its counter on the seller's production message retry page.",
    );
    let headings = ["Action", "Instance", "Callback", "Deliveries", "Last"];
    table(html, "Unreported results", &headings, rows, |html, (row, name), column| match column {
        0 => html.text(row.action.as_str()),
        1 => match name {
            Some(name) => html.link("name", &instance_link(name, &row.account), name),
            None => html.text("–"),
        },
        2 => html.text(&row.number.to_string()),
        3 => match row.delivery_limit {
            Some(delivery_limit) => html.text(&format!("{} of {delivery_limit}", row.deliveries)),
            None => html.text(&row.deliveries.to_string()),
        },
        _ => time(html, row.last_received_at, context.now),
    });
}

/// Draws an attention item for which no job and no decision waits.
fn draw_item(html: &mut Html, context: &PageContext, item: &AttentionItem) {
    html.element("h2", &[], |html| {
        badge(html, item.reason.as_str());
        html.text(&format!(" {} ", item.action.map_or("instance", Action::as_str)));
        match &item.instance {
            Some(name) => html.link("name", &instance_link(name, &item.account), name),
            None => html.leaf("span", "soft", "no instance"),
        }
    });
    html.element("p", &[("class", "soft")], |html| {
        if let Some(callback) = item.callback {
            html.text(&format!("callback {callback} · "));
        }
        html.text(&format!("{} · since ", item.account));
        time(html, item.since, context.now);
    });
    html.leaf("p", "said", &item.detail);
    html.leaf("p", "hint", &item.todo);
    let order = item.order.clone();
    facts(html, &[("order", order), ("buyer", item.buyer.clone())]);
    if let Some(callback) = item.callback.filter(|_| item.may_be_dismissed) {
        html.element("div", &[("class", "acts")], |html| dismiss_act(html, context, callback));
    }
}

fn draw(html: &mut Html, context: &PageContext, held_item: &HeldItem, callback: &Callback) {
    html.element("h2", &[], |html| {
        badge(html, words::kind(held_item.kind));
        html.text(&format!(" {} ", held_item.action));
        match &held_item.instance {
            Some(name) => html.link("name", &instance_link(name, &held_item.account), name),
            None => html.leaf("span", "soft", "no instance"),
        }
    });
    html.element("p", &[("class", "soft")], |html| {
        let HeldItem { callback: number, account, .. } = held_item;
        html.text(&format!("{} · callback {number} · {account} · since ", callback.action_name));
        time(html, held_item.since, context.now);
    });
    html.leaf("p", "said", &held_item.reason);
    html.leaf("p", "hint", words::advice(held_item.kind, held_item.reason_code.as_deref()));
    signed(html, &callback.parameters);
    html.element("div", &[("class", "acts")], |html| match held_item.job {
        Some(job) => {
            let named = held_item.instance.as_deref().map(|name| (name, held_item.account.as_str()));
            job_acts(html, context, job, named);
        }
        None => held_acts(html, context, held_item.callback, held_item.reason_code.as_deref()),
    });
}

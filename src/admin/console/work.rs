//! Work that needs attention, with reasons and buttons.

use std::fmt::Display;

use jiff::Timestamp;
use maud::{Markup, html};

use super::super::target::Target;
use super::super::{Admin, Fault};
use super::parts::{
    badge, cell, dismiss_act, facts, held_acts, instance, instance_or_dash, job_acts, nothing, retry_act,
    section, signed, table, time,
};
use super::{NavigationEntry, Page, PageContext, Paged, words};
use crate::observe::limits;
use crate::store::{AttentionItem, CallbackRow, Filter, HeldItem, Reader};
use spid_hook::callback::{Action, Callback};

/// Content of the page.
struct WorkList {
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
    let body = html! {
        @if shown.held_items.is_empty() && shown.others.is_empty() {
            (nothing("Nothing needs attention. This page lists dead, held, pending, refused and unreported work, and calls of a market that fail."))
        }
        @for (item, callback) in &shown.held_items {
            article class="card errand" { (held(context, item, callback)) }
        }
        @if shown.left_out > 0 {
            (nothing(&format!("{} more are not shown; these are the latest.", shown.left_out)))
        }
        @for item in &shown.others { article class="card errand" { (other(context, item)) } }
        @if shown.others_left_out > 0 {
            (nothing(&format!("{} more wait: these are the most urgent.", shown.others_left_out)))
        }
        @if !shown.unreported.is_empty() {
            (section("Unreported results", unreported(context, &shown.unreported)))
        }
    };
    Ok(Page { title: "Work that needs attention".to_owned(), place: NavigationEntry::Work, body })
}

fn read(reader: &Reader, now: Timestamp) -> Result<WorkList, Fault> {
    let (held_items, left_out) = reader.held_items(limits::LIST_DEFAULT_COUNT)?;
    // Items that wait for a job or a decision are among the held items. They must not use up the limit of the others.
    let mut others = reader.attention(now, usize::MAX, limits::ATTENTION_CHECKED_COUNT)?.items;
    others.retain(|item| item.may_be_dismissed || item.callback.is_none());
    let others_left_out = others.len().saturating_sub(limits::LIST_DEFAULT_COUNT);
    others.truncate(limits::LIST_DEFAULT_COUNT);
    let mut shown =
        WorkList { held_items: Vec::new(), left_out, others, others_left_out, unreported: Vec::new() };
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

fn unreported(context: &PageContext, rows: &[(CallbackRow, Option<String>)]) -> Markup {
    let rows = rows.iter().map(|(row, name)| {
        let deliveries = match row.delivery_limit {
            Some(delivery_limit) => format!("{} of {delivery_limit}", row.deliveries),
            None => row.deliveries.to_string(),
        };
        [
            cell(row.action.as_str()),
            instance_or_dash(name.as_deref(), &row.account),
            cell(row.number),
            cell(deliveries),
            time(row.last_received_at, context.now),
        ]
    });
    html! {
        p class="hint" {
            "The work is done, but the marketplace has not called again. If it has given up, reset its counter on the seller's production message retry page."
        }
        (table("Unreported results", ["Action", "Instance", "Callback", "Deliveries", "Last"], rows))
    }
}

/// Heading of an item: why it waits, for what, and of which instance.
fn heading(reason: &str, action: impl Display, name: Option<&str>, account: &str) -> Markup {
    let none = html! { span class="soft" { "no instance" } };
    html! { h2 { (badge(reason)) " " (action) " " (instance(name, account, none)) } }
}

/// Attention item for which no job and no decision waits.
fn other(context: &PageContext, item: &AttentionItem) -> Markup {
    html! {
        @match &item.market {
            Some(market) => h2 { (badge(item.reason.as_str())) " market " (market) },
            None => (heading(item.reason.as_str(), item.action.map_or("instance", Action::as_str), item.instance.as_deref(), &item.account)),
        }
        p class="soft" {
            @if let Some(callback) = item.callback { "callback " (callback) " · " }
            @if item.market.is_none() { (item.account) " · " }
            "since " (time(item.since, context.now))
        }
        p class="said" { (item.detail) }
        p class="hint" { (item.todo) }
        (facts([("order", item.order.clone()), ("buyer", item.buyer.clone())]))
        @if let Some(callback) = item.callback.filter(|_| item.may_be_dismissed) {
            div class="acts" { (dismiss_act(context, callback)) }
        }
        @if let Some(job) = item.job.filter(|_| item.market.is_some()) {
            div class="acts" { (retry_act(context, job, "Makes the call once, now.")) }
        }
    }
}

/// Item that waits for a job or a decision.
fn held(context: &PageContext, item: &HeldItem, callback: &Callback) -> Markup {
    // A name that only the callback uses finds no page.
    let name = item.instance.as_deref().filter(|_| item.has_instance);
    let code = item.reason_code.as_deref();
    html! {
        (heading(words::kind(item.kind), item.action, name, &item.account))
        p class="soft" {
            (callback.action_name) " · callback " (item.callback) " · " (item.account) " · since "
            (time(item.since, context.now))
        }
        p class="said" { (item.reason) }
        p class="hint" { (words::advice(item.kind, code)) }
        (signed(&callback.parameters))
        div class="acts" {
            @match item.job {
                Some(job) => (job_acts(context, job, name.map(|name| (name, item.account.as_str())))),
                None => (held_acts(context, item.callback, code)),
            }
        }
    }
}

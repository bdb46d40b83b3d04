//! Instances: search form, list, and links to further pages.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use maud::{Markup, html};

use super::super::target::{Link, Target};
use super::super::{Admin, Fault, api};
use super::parts::{badge, button, cell, instance_or_dash, label, nothing, or_dash, table, time_or_dash};
use super::{NavigationEntry, Page, PageContext, Paged};
use crate::store::InstanceRow;
use spid_hook::instance::State;

/// Maximum number of instances on a page.
const ROWS: usize = 50;

pub(super) async fn page(admin: &Admin, context: &PageContext, target: &Target) -> Paged {
    target.only(&["search", "state", "account", "expires", "before", "done"])?;
    let mut filter = api::instances_filter(target, ROWS)?;
    // Only the console filters by day; the API does not offer it.
    filter.expires = target.get("expires").map(day).transpose()?;
    let rows = admin.read(move |reader| Ok(reader.instances(&filter)?)).await?;
    let body = html! {
        (search(target))
        section class="card" { (list(context, &rows)) }
        (pages(target, api::next(&rows, ROWS, |row| row.number)))
    };
    Ok(Page { title: "Instances".to_owned(), place: NavigationEntry::Instances, body })
}

/// First instant of a UTC day, and of the day after it.
fn day(text: &str) -> Result<(Timestamp, Timestamp), Fault> {
    let bounds = text.parse::<Date>().and_then(|day| Ok((start(day)?, start(day.tomorrow()?)?)));
    bounds.map_err(|_| Fault::new(400, format!("`expires` must be a day like 2027-01-31, not `{text}`")))
}

fn start(day: Date) -> Result<Timestamp, jiff::Error> {
    Ok(day.to_zoned(TimeZone::UTC)?.timestamp())
}

fn search(target: &Target) -> Markup {
    let value = |name: &str| target.get(name).unwrap_or_default();
    let search = html! {
        input type="search" name="search" value=(value("search"))
            placeholder="id, orderBizId, buyer, order, product or SKU";
    };
    html! {
        form class="search" role="search" action="/console/instances" {
            (label("Search", search))
            (label("State", states(value("state"))))
            (label("Account", html! { input name="account" value=(value("account")) placeholder="any"; }))
            (label("Expires on", html! { input type="date" name="expires" value=(value("expires")); }))
            button class="primary" { "Search" }
            (button(&Link::to("/console/instances"), "Clear"))
        }
    }
}

fn states(chosen: &str) -> Markup {
    html! {
        select name="state" {
            option value="" { "any" }
            @for state in State::ALL.map(State::as_str) {
                option value=(state) selected[state == chosen] { (state) }
            }
        }
    }
}

fn list(context: &PageContext, rows: &[InstanceRow]) -> Markup {
    if rows.is_empty() {
        return nothing("No instance matches.");
    }
    let headings = ["Instance", "State", "Buyer", "Product", "SKU", "Account", "Expires"];
    let rows = rows.iter().map(|row| {
        let instance = &row.instance;
        [
            instance_or_dash(row.name(), &instance.account),
            badge(instance.state.as_str()),
            or_dash(instance.buyer.as_deref()),
            or_dash(instance.product.as_deref()),
            or_dash(instance.sku.as_deref()),
            cell(&instance.account),
            time_or_dash(instance.expires_on, context.now),
        ]
    });
    table("Instances", headings, rows)
}

fn pages(target: &Target, next: Option<i64>) -> Markup {
    // Links keep the filter, but not the position.
    let mut filtered = Link::to("/console/instances");
    for name in ["search", "state", "account", "expires"] {
        if let Some(value) = target.get(name) {
            filtered = filtered.with(name, value);
        }
    }
    html! {
        nav class="pages" aria-label="More instances" {
            @if target.get("before").is_some() { (button(&filtered, "First page")) }
            @if let Some(next) = next { (button(&filtered.with("before", next), "Next page")) }
        }
    }
}

//! Instances: search form, list, and links to further pages.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::super::html::Html;
use super::super::target::{Link, Target};
use super::super::{Admin, Fault, api};
use super::parts::{badge, instance_link, label, nothing, table, time};
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
    let mut body = Html::default();
    search(&mut body, target);
    body.element("section", &[("class", "card")], |html| list(html, context, &rows));
    pages(&mut body, target, api::next(&rows, ROWS, |row| row.number));
    Ok(Page { title: "Instances".to_owned(), place: NavigationEntry::Instances, body })
}

/// First instant of a UTC day, and of the day after it.
fn day(text: &str) -> Result<(Timestamp, Timestamp), Fault> {
    let bounds = text.parse::<Date>().and_then(|day| {
        let start = |day: Date| Ok::<_, jiff::Error>(day.to_zoned(TimeZone::UTC)?.timestamp());
        Ok((start(day)?, start(day.tomorrow()?)?))
    });
    bounds.map_err(|_| Fault::new(400, format!("`expires` must be a day like 2027-01-31, not `{text}`")))
}

fn search(html: &mut Html, target: &Target) {
    let known = |name: &str| target.get(name).unwrap_or_default();
    html.element(
        "form",
        &[("class", "search"), ("role", "search"), ("action", "/console/instances")],
        |html| {
            label(html, "Search", |html| {
                html.void(
                    "input",
                    &[
                        ("type", "search"),
                        ("name", "search"),
                        ("value", known("search")),
                        ("placeholder", "id, orderBizId, buyer, order, product or SKU"),
                    ],
                );
            });
            label(html, "State", |html| states(html, known("state")));
            label(html, "Account", |html| {
                html.void(
                    "input",
                    &[("name", "account"), ("value", known("account")), ("placeholder", "any")],
                );
            });
            label(html, "Expires on", |html| {
                html.void("input", &[("type", "date"), ("name", "expires"), ("value", known("expires"))]);
            });
            html.element("button", &[("class", "primary")], |html| html.text("Search"));
            html.link("button", &Link::to("/console/instances"), "Clear");
        },
    );
}

fn states(html: &mut Html, chosen: &str) {
    html.element("select", &[("name", "state")], |html| {
        html.element("option", &[("value", "")], |html| html.text("any"));
        for state in State::ALL.map(State::as_str) {
            let selected: &[_] = &[("value", state), ("selected", "")];
            let attributes = if state == chosen { selected } else { &[("value", state)] };
            html.element("option", attributes, |html| html.text(state));
        }
    });
}

fn list(html: &mut Html, context: &PageContext, rows: &[InstanceRow]) {
    if rows.is_empty() {
        return nothing(html, "No instance matches.");
    }
    let headings = ["Instance", "State", "Buyer", "Product", "SKU", "Account", "Expires"];
    table(html, "Instances", &headings, rows, |html, row, column| {
        let instance = &row.instance;
        let or_dash = |text: Option<&String>| text.map_or("–".to_owned(), Clone::clone);
        match column {
            0 => match row.name() {
                Some(name) => html.link("name", &instance_link(name, &instance.account), name),
                None => html.text("–"),
            },
            1 => badge(html, instance.state.as_str()),
            2 => html.text(&or_dash(instance.buyer.as_ref())),
            3 => html.text(&or_dash(instance.product.as_ref())),
            4 => html.text(&or_dash(instance.sku.as_ref())),
            5 => html.text(&instance.account),
            _ => match instance.expires_on {
                Some(at) => time(html, at, context.now),
                None => html.text("–"),
            },
        }
    });
}

fn pages(html: &mut Html, target: &Target, next: Option<i64>) {
    // Links keep the filter, but not the position.
    let kept = || {
        ["search", "state", "account", "expires"].into_iter().fold(
            Link::to("/console/instances"),
            |link, name| match target.get(name) {
                Some(value) => link.with(name, value),
                None => link,
            },
        )
    };
    html.element("nav", &[("class", "pages"), ("aria-label", "More instances")], |html| {
        if target.get("before").is_some() {
            html.link("button", &kept(), "First page");
        }
        if let Some(next) = next {
            html.link("button", &kept().with("before", next), "Next page");
        }
    });
}

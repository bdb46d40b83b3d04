//! What waits for a person, why, and the buttons.

use super::super::html::Html;
use super::super::target::Target;
use super::super::{Admin, Fault};
use super::parts::{badge, held_acts, instance_link, job_acts, nothing, section, signed, table, time};
use super::{Desk, Page, Paged, Place, words};
use crate::callback::Callback;
use crate::limits;
use crate::store::{CallbackRow, Errand, Filter, Reader};

/// What the page shows.
struct Shown {
    /// What waits, each with what its callback said.
    errands: Vec<(Errand, Callback)>,
    /// What the marketplace never came back for, with the name of its instance.
    untold: Vec<(CallbackRow, Option<String>)>,
}

pub(super) async fn page(admin: &Admin, desk: &Desk, target: &Target) -> Paged {
    target.only(&["done"])?;
    let shown = admin.read(read).await?;
    let mut body = Html::default();
    if shown.errands.is_empty() {
        nothing(&mut body, "Nothing waits for a person. Dead, held and pending work would stand here.");
    }
    for (errand, callback) in &shown.errands {
        body.element("article", &[("class", "card errand")], |html| draw(html, desk, errand, callback));
    }
    if shown.errands.len() == limits::LIST_DEFAULT_COUNT {
        nothing(&mut body, "There is more: these are the latest.");
    }
    if !shown.untold.is_empty() {
        section(&mut body, "Untold results", |html| untold(html, desk, &shown.untold));
    }
    Ok(Page { title: "Work that waits for a person".to_owned(), place: Place::Work, body })
}

fn read(reader: &Reader) -> Result<Shown, Fault> {
    let mut shown = Shown { errands: Vec::new(), untold: Vec::new() };
    for errand in reader.errands(limits::LIST_DEFAULT_COUNT)? {
        let body = reader.callback_detail(errand.callback)?.callback;
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

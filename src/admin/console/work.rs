//! What waits for a person, why, and the buttons.

use super::super::Admin;
use super::super::html::Html;
use super::super::target::Target;
use super::parts::{badge, facts, held_acts, instance_link, job_acts, nothing, time, times};
use super::{Desk, Page, Paged, Place, words};
use crate::callback::Callback;
use crate::limits;
use crate::store::Errand;

pub(super) async fn page(admin: &Admin, desk: &Desk, target: &Target) -> Paged {
    target.only(&["done"])?;
    let errands = admin
        .read(|reader| {
            let mut shown = Vec::new();
            for errand in reader.errands(limits::LIST_DEFAULT_COUNT)? {
                let body = reader.callback_detail(errand.callback)?.callback;
                shown.push((errand, body));
            }
            Ok(shown)
        })
        .await?;
    let mut body = Html::default();
    if errands.is_empty() {
        nothing(&mut body, "Nothing waits for a person. Dead, held and pending work would stand here.");
    }
    for (errand, callback) in &errands {
        body.element("article", &[("class", "card errand")], |html| draw(html, desk, errand, callback));
    }
    if errands.len() == limits::LIST_DEFAULT_COUNT {
        nothing(&mut body, "There is more: these are the latest.");
    }
    Ok(Page { title: "Work that waits for a person".to_owned(), place: Place::Work, body })
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
    html.element("details", &[("class", "more")], |html| {
        html.leaf("summary", "", &times(callback.parameters.len() as u64, "signed parameter"));
        let parameters: Vec<(&str, Option<String>)> =
            callback.parameters.iter().map(|(name, value)| (name, Some(value.to_owned()))).collect();
        facts(html, &parameters);
    });
    html.element("div", &[("class", "acts")], |html| match errand.job {
        Some(job) => {
            let named = errand.instance.as_deref().map(|name| (name, errand.account.as_str()));
            job_acts(html, desk, job, named);
        }
        None => held_acts(html, desk, errand.callback, errand.reason_code.as_deref()),
    });
}

//! Denied requests: the last ones, each with its reason.

use super::super::Admin;
use super::super::html::Html;
use super::super::target::Target;
use super::parts::{badge, nothing, time};
use super::{NavigationEntry, Page, PageContext, Paged, words};
use crate::observe::denied::Shown;
use crate::observe::limits;

pub(super) fn page(admin: &Admin, context: &PageContext, target: &Target) -> Paged {
    target.only(&["done"])?;
    let refusals = admin.inner.parts.refusals.latest(limits::DENIED_SHOWN_COUNT);
    let mut body = Html::default();
    body.leaf(
        "p",
        "hint",
        "The last denied requests. They are stored only in memory, and their contents are not verified.",
    );
    if refusals.is_empty() {
        nothing(&mut body, "No request was denied since the start.");
    }
    for refusal in &refusals {
        body.element("article", &[("class", "card")], |html| draw(html, context, refusal));
    }
    Ok(Page { title: "Refusals".to_owned(), place: NavigationEntry::DeniedRequests, body })
}

fn draw(html: &mut Html, context: &PageContext, refusal: &Shown) {
    html.element("h2", &[], |html| {
        badge(html, "refused");
        html.text(&format!(" {}", refusal.reason));
    });
    html.element("p", &[("class", "soft")], |html| {
        html.text(&format!("{} at {} from {} · ", refusal.method, refusal.endpoint, refusal.peer));
        time(html, refusal.at, context.now);
    });
    html.leaf("p", "said", &refusal.message);
    let explanation = refusal.explanation.as_deref().filter(|text| *text != refusal.message);
    html.leaf("p", "hint", explanation.unwrap_or(words::refusal(refusal.reason)));
    if let Some(base) = &refusal.base {
        html.element("details", &[("class", "more")], |html| {
            let cut = if refusal.base_cut { " (shortened)" } else { "" };
            html.leaf("summary", "", &format!("the text that should have been signed{cut}"));
            html.leaf("pre", "", base);
        });
    }
    if refusal.not_kept_before > 0 {
        html.leaf(
            "p",
            "soft",
            &format!("{} similar requests before it were counted, but not stored", refusal.not_kept_before),
        );
    }
}

//! Denied requests: the last ones, each with its reason.

use maud::{Markup, html};

use super::super::Admin;
use super::super::target::Target;
use super::parts::{badge, nothing, time};
use super::{NavigationEntry, Page, PageContext, Paged, words};
use crate::observe::denied::Shown;
use crate::observe::limits;

pub(super) fn page(admin: &Admin, context: &PageContext, target: &Target) -> Paged {
    target.only(&["done"])?;
    let refusals = admin.inner.parts.refusals.latest(limits::DENIED_SHOWN_COUNT);
    let body = html! {
        p class="hint" {
            "The last denied requests. They are stored only in memory, and their contents are not verified."
        }
        @if refusals.is_empty() { (nothing("No request was denied since the start.")) }
        @for refusal in &refusals { article class="card" { (denied(context, refusal)) } }
    };
    Ok(Page { title: "Refusals".to_owned(), place: NavigationEntry::DeniedRequests, body })
}

fn denied(context: &PageContext, refusal: &Shown) -> Markup {
    let explanation = refusal.explanation.as_deref().filter(|text| *text != refusal.message);
    html! {
        h2 { (badge("refused")) " " (refusal.reason) }
        p class="soft" {
            (refusal.method) " at " (refusal.endpoint) " from " (refusal.peer) " · " (time(refusal.at, context.now))
        }
        p class="said" { (refusal.message) }
        p class="hint" { (explanation.unwrap_or(words::refusal(refusal.reason))) }
        @if let Some(base) = &refusal.base {
            details class="more" {
                summary {
                    "the text that should have been signed"
                    @if refusal.base_cut { " (shortened)" }
                }
                pre { (base) }
            }
        }
        @if refusal.not_kept_before > 0 {
            p class="soft" {
                (refusal.not_kept_before) " similar requests before it were counted, but not stored"
            }
        }
    }
}

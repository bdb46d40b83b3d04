//! Console: the data of the API for people, and the same operations behind buttons.
//!
//! The pages are complete HTML without scripts, and the content policy forbids scripts. A form carries a token that a
//! page of another site cannot read, the acting person, and the reason. After an operation the browser is redirected
//! to the page with the form, which shows the result; reloading that page does nothing twice.

mod calendar;
mod instances;
mod overview;
mod parts;
mod refusals;
mod timeline;
mod words;
mod work;

use super::access::{self, Operator};
use super::html::Html;
use super::operations::{AdminOperation, Named, signed};
use super::target::{Link, Target};
use super::{Admin, Fault, api, is_read};
use crate::net::{Method, Request, Response};
use crate::store::AuditNote;
use jiff::Timestamp;
use spid_core::query;
use spid_hook::Secret;
use std::collections::BTreeMap;

const STYLE: &str = include_str!("style.css");
const ICON: &str = include_str!("icon.svg");

/// Content policy: no scripts, no frames, nothing from other sites.
const CONTENT_POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Data that every page needs.
struct PageContext {
    now: Timestamp,
    form_token: Secret,
    /// Name of the operator, if the browser has sent one.
    who: String,
    /// Path of this page, to return to.
    here: String,
    /// Operation that led to this page.
    done: Option<String>,
}

/// Page without its frame.
struct Page {
    title: String,
    /// Navigation entry of the page.
    place: NavigationEntry,
    body: Html,
}

/// Navigation entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NavigationEntry {
    Now,
    Instances,
    Work,
    DeniedRequests,
    Expiry,
    Nowhere,
}

const NAVIGATION: [(NavigationEntry, &str, &str); 5] = [
    (NavigationEntry::Now, "Now", "/console/"),
    (NavigationEntry::Instances, "Instances", "/console/instances"),
    (NavigationEntry::Work, "Work", "/console/work"),
    (NavigationEntry::DeniedRequests, "Refusals", "/console/refusals"),
    (NavigationEntry::Expiry, "Expiry", "/console/expiry"),
];

type Paged = Result<Page, Fault>;

/// Answers requests under `/console`.
pub(super) async fn answer(
    admin: &Admin,
    operator: &Operator,
    request: &Request,
    target: &Target,
) -> Response {
    let context = PageContext::of(admin, operator, request, target);
    let path = target.segments();
    let path = path.get(1..).unwrap_or_default();
    match (&request.method, path) {
        (Method::Post, ["act"]) => match act(admin, &context, request).await {
            Ok(response) => framed(response),
            Err(fault) => sent(fault.status, &context, fault_page(&fault, back_of(request))),
        },
        _ if !is_read(request) => Response::text(405, "only GET\n").with_header("allow", "GET, HEAD"),
        (_, ["style.css"]) => asset("text/css; charset=utf-8", STYLE),
        (_, ["icon.svg"]) => asset("image/svg+xml", ICON),
        (_, path) => match read(admin, &context, target, path).await {
            Ok(page) => sent(200, &context, page),
            Err(fault) => sent(fault.status, &context, fault_page(&fault, None)),
        },
    }
}

async fn read(admin: &Admin, context: &PageContext, target: &Target, path: &[&str]) -> Paged {
    match path {
        [] => overview::page(admin, context, target).await,
        ["instances"] => instances::page(admin, context, target).await,
        ["instances", name] => timeline::page(admin, context, target, name).await,
        ["work"] => work::page(admin, context, target).await,
        ["refusals"] => refusals::page(admin, context, target),
        ["expiry"] => calendar::page(admin, context, target).await,
        _ => Err(Fault::nothing_here()),
    }
}

impl PageContext {
    fn of(admin: &Admin, operator: &Operator, request: &Request, target: &Target) -> PageContext {
        // The result of an operation is shown once, so it is not part of the path to return to.
        let mut here = request.path().to_owned();
        let pairs = query::parse(request.query(), None).unwrap_or_default();
        let kept: Vec<query::Pair> = pairs.into_iter().filter(|(name, _)| name != "done").collect();
        if !kept.is_empty() {
            here = format!("{here}?{}", query::encode(&kept));
        }
        PageContext {
            now: admin.now(),
            form_token: admin.inner.form_token.clone(),
            who: operator.name.clone().unwrap_or_default(),
            here,
            done: target.get("done").map(str::to_owned),
        }
    }
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    framed(Response::new(200, kind, text)).with_header("cache-control", "private, max-age=3600")
}

/// Adds the security headers of the console.
fn framed(response: Response) -> Response {
    response
        .with_header("content-security-policy", CONTENT_POLICY)
        // `no-referrer` would make browsers send `Origin: null` with our own forms.
        .with_header("referrer-policy", "same-origin")
        .with_header("cross-origin-opener-policy", "same-origin")
        .with_header("cross-origin-resource-policy", "same-origin")
}

fn sent(status: u16, context: &PageContext, page: Page) -> Response {
    let mut html = Html::default();
    html.element("html", &[("lang", "en")], |html| {
        html.element("head", &[], |html| head(html, &page.title));
        html.element("body", &[], |html| {
            html.element("a", &[("class", "skip"), ("href", "#content")], |html| {
                html.text("Skip to content")
            });
            html.element("header", &[("class", "bar")], |html| navigation(html, page.place));
            html.element("main", &[("id", "content")], |html| {
                html.leaf("h1", "", &page.title);
                if let Some(sentence) = context.done.as_deref().and_then(words::done) {
                    html.element("p", &[("class", "notice good"), ("role", "status")], |html| {
                        html.text(sentence)
                    });
                }
                html.push(page.body);
            });
            html.element("footer", &[], |html| {
                let version = env!("CARGO_PKG_VERSION");
                html.text(&format!("spid {version} · {} · all times UTC", parts::moment(context.now)));
            });
        });
    });
    framed(Response::new(status, "text/html; charset=utf-8", html.into_page()))
}

fn head(html: &mut Html, title: &str) {
    html.void("meta", &[("charset", "utf-8")]);
    html.void("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]);
    html.void("meta", &[("name", "color-scheme"), ("content", "light dark")]);
    html.leaf("title", "", &format!("{title} · spid"));
    // Browsers cache the style sheet; the version in its URL makes them load the one of an upgrade.
    let version = concat!("/console/style.css?v=", env!("CARGO_PKG_VERSION"));
    html.void("link", &[("rel", "stylesheet"), ("href", version)]);
    html.void("link", &[("rel", "icon"), ("type", "image/svg+xml"), ("href", "/console/icon.svg")]);
}

fn navigation(html: &mut Html, here: NavigationEntry) {
    html.element("a", &[("class", "brand"), ("href", "/console/")], |html| {
        html.void("img", &[("src", "/console/icon.svg"), ("alt", ""), ("width", "22"), ("height", "22")]);
        html.text("spid");
    });
    html.element("nav", &[("aria-label", "Pages")], |html| {
        for (place, word, path) in NAVIGATION {
            if place == here {
                let current = [("href", path), ("aria-current", "page")];
                html.element("a", &current, |html| html.text(word));
            } else {
                html.link("", &Link::to(path), word);
            }
        }
    });
}

fn fault_page(fault: &Fault, back: Option<String>) -> Page {
    let mut body = Html::default();
    body.element("p", &[("class", "notice bad"), ("role", "alert")], |html| html.text(&fault.text));
    body.element("p", &[], |html| match back {
        Some(back) => {
            html.element("a", &[("class", "button"), ("href", &back)], |html| html.text("Back"));
        }
        None => html.link("button", &Link::to("/console/"), "Now"),
    });
    let title = if fault.status == 404 { "Not found" } else { "Not done" };
    Page { title: title.to_owned(), place: NavigationEntry::Nowhere, body }
}

/// Fields of a submitted form.
struct Form(BTreeMap<String, String>);

impl Form {
    fn of(request: &Request) -> Result<Form, Fault> {
        Ok(Form(query::parse(&[], Some(&request.body))?.into_iter().collect()))
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn filled(&self, name: &str) -> Option<String> {
        self.0.get(name).filter(|value| !value.trim().is_empty()).cloned()
    }
}

/// Page that contained the form, if it is a page of the console. Any other target would be an open redirect.
fn back_of(request: &Request) -> Option<String> {
    let back = Form::of(request).ok()?.filled("back")?;
    // A line break in the path could add a header to the redirect.
    let plain = back.bytes().all(|byte| byte.is_ascii_graphic());
    (plain && back.starts_with("/console/")).then_some(back)
}

async fn act(admin: &Admin, context: &PageContext, request: &Request) -> Result<Response, Fault> {
    // The browser's headers come first; the form token is a second, independent check.
    if !access::is_from_our_page(request) {
        return Err(Fault::new(403, "admin operations are denied for pages of other sites"));
    }
    let form = Form::of(request)?;
    if Secret::new(form.get("token")) != context.form_token {
        return Err(Fault::new(
            403,
            "the form is older than the last start of the daemon; go back, reload the page and try again",
        ));
    }
    let act: AuditNote = signed(form.get("who"), form.get("why"))?;
    let report = admin.act(operation(&form)?, act).await?;
    let back = back_of(request).unwrap_or_else(|| "/console/work".to_owned());
    let join = if back.contains('?') { '&' } else { '?' };
    // Only the name of the operation is in the URL. The page translates known names, so it shows no text of others.
    let there = format!("{back}{join}done={}", report.act);
    // 303: the browser loads the page with GET, so a reload does not repeat the operation.
    Ok(Response::empty(303).with_header("location", there))
}

fn operation(form: &Form) -> Result<AdminOperation, Fault> {
    let target = form.get("target");
    let named = || Named { name: target.to_owned(), account: form.filled("account") };
    Ok(match form.get("act") {
        "retry" => AdminOperation::Retry(api::job_id(target)?),
        "drop" => AdminOperation::Drop(api::job_id(target)?),
        "approve" => AdminOperation::Approve {
            callback: api::callback_number(target)?,
            instead: api::really(form.filled("as").as_deref())?,
        },
        "reject" => AdminOperation::Reject(api::callback_number(target)?),
        "settle" => AdminOperation::Settle(api::callback_number(target)?),
        "dismiss" => AdminOperation::Dismiss(api::callback_number(target)?),
        "complete" => {
            let answer = form.filled("answer").map(|text| api::read_answer(text.as_bytes())).transpose()?;
            AdminOperation::Complete { instance: named(), answer: Box::new(answer.unwrap_or_default()) }
        }
        "release" => AdminOperation::Release(named()),
        other => return Err(Fault::new(400, format!("unknown operation `{other}`"))),
    })
}

//! Console: the data of the API for people, and the same operations behind buttons.
//!
//! The pages are complete HTML without scripts, and the content policy forbids scripts. Everything that a marketplace
//! sends is untrusted: `maud` escapes every text and value, and [`page_text`] shows invisible characters. A form carries a token that a
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
use super::operations::{Given, read_operation, signed};
use super::target::{Target, decode};
use super::{Admin, Fault, is_read};
use crate::net::{Method, Request, Response};
use crate::store::{AdminOperation, AuditNote};
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};
use spid_core::query;
use spid_hook::{Secret, text};
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
    body: Markup,
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
    let done = context.done.as_deref().and_then(words::done);
    let version = env!("CARGO_PKG_VERSION");
    let whole = html! {
        (DOCTYPE)
        html lang="en" {
            (head(&page.title))
            body {
                a class="skip" href="#content" { "Skip to content" }
                (navigation(page.place))
                main id="content" {
                    h1 { (page.title) }
                    @if let Some(sentence) = done {
                        p class="notice good" role="status" { (sentence) }
                    }
                    (page.body)
                }
                footer { "spid " (version) " · " (parts::moment(context.now)) " · all times UTC" }
            }
        }
    };
    framed(Response::new(status, "text/html; charset=utf-8", page_text(whole)))
}

/// Returns the bytes of a page. Characters that could reverse or hide the text around them are shown as escapes. This is
/// done for the whole page, so that no text can be left out; markup of our own has no such character.
fn page_text(whole: Markup) -> String {
    let whole = whole.into_string();
    let mut shown = String::with_capacity(whole.len());
    for character in whole.chars() {
        if matches!(character, '\n' | '\t') || text::is_plain(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_unicode());
        }
    }
    shown
}

fn head(title: &str) -> Markup {
    // Browsers cache the style sheet; the version in its URL makes them load the one of an upgrade.
    let style = concat!("/console/style.css?v=", env!("CARGO_PKG_VERSION"));
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · spid" }
            link rel="stylesheet" href=(style);
            link rel="icon" type="image/svg+xml" href="/console/icon.svg";
        }
    }
}

fn navigation(here: NavigationEntry) -> Markup {
    html! {
        header class="bar" {
            a class="brand" href="/console/" {
                img src="/console/icon.svg" alt="" width="22" height="22";
                "spid"
            }
            nav aria-label="Pages" {
                @for (place, word, path) in NAVIGATION {
                    a href=(path) aria-current=[(place == here).then_some("page")] { (word) }
                }
            }
        }
    }
}

fn fault_page(fault: &Fault, back: Option<String>) -> Page {
    let body = html! {
        p class="notice bad" role="alert" { (fault.text) }
        p {
            @if let Some(back) = back {
                a class="button" href=(back) { "Back" }
            } @else {
                a class="button" href="/console/" { "Now" }
            }
        }
    };
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
    let note: AuditNote = signed(form.get("who"), form.get("why"))?;
    let report = admin.act(operation(&form)?, note).await?;
    let back = back_of(request).unwrap_or_else(|| "/console/work".to_owned());
    let join = if back.contains('?') { '&' } else { '?' };
    // Only the name of the operation is in the URL. The page translates known names, so it shows no text of others.
    let there = format!("{back}{join}done={}", report.act);
    // 303: the browser loads the page with GET, so a reload does not repeat the operation.
    Ok(Response::empty(303).with_header("location", there))
}

fn operation(form: &Form) -> Result<AdminOperation, Fault> {
    let word = form.get("act");
    let target = decode(form.get("target"))
        .ok_or_else(|| Fault::new(400, "the target of the form is not percent-encoded text"))?;
    let collection = match word {
        "retry" | "drop" => "jobs",
        "approve" | "reject" | "settle" => "held",
        "dismiss" => "attention",
        _ => "instances",
    };
    let given =
        Given { account: form.filled("account"), instead: form.filled("as"), answer: form.filled("answer") };
    read_operation(&[collection, &target, word], given)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(text: &str) -> String {
        page_text(html! { p title=(text) { (text) } })
    }

    /// Text as a browser decodes it.
    fn unescaped(markup: &str) -> String {
        let marks = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&amp;", "&")];
        marks.iter().fold(markup.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    #[test]
    fn what_turns_text_around_is_shown() {
        assert_eq!(page("a\u{202e}b\0"), "<p title=\"a\\u{202e}b\\u{0}\">a\\u{202e}b\\u{0}</p>");
        for odd in ['\u{61c}', '\u{2028}', '\u{2029}', '\u{ad}', '\u{180e}', '\u{fff9}', '\u{e0041}', '\r'] {
            assert!(!page(&format!("a{odd}b")).contains(odd), "{odd:?}");
        }
    }

    /// The page of an instance with an odd name must not change an instance that has the escape as its name.
    #[test]
    fn a_form_names_the_instance_that_its_page_shows() {
        for name in ["a\u{200b}b", "a\\u{200b}b", "a+b%20c&d=\"'<é", "会员"] {
            let context = PageContext {
                now: Timestamp::UNIX_EPOCH,
                form_token: Secret::new("fake"),
                who: String::new(),
                here: "/console/".to_owned(),
                done: None,
            };
            let form = parts::ActForm {
                act: "release",
                label: "Release",
                target: name,
                account: None,
                hint: "",
                field: parts::Field::Nothing,
            };
            let page = page_text(parts::act(&context, &form));
            let (_, value) = page.split_once("name=\"target\" value=\"").unwrap();
            let value = unescaped(value.split_once('"').unwrap().0);
            let sent =
                query::encode(&[("act".to_owned(), "release".to_owned()), ("target".to_owned(), value)]);
            let form = Form::of(&Request::post("/console/act").with_body(sent)).unwrap();
            let AdminOperation::Release(named) = operation(&form).unwrap() else { panic!() };
            assert_eq!(named.name, name);
        }
    }

    proptest! {
        #[test]
        fn text_stays_text(text in "[<>\"'&a-z/=\\s\\PC]{0,60}") {
            let page = page(&text);
            let inner = page.strip_prefix("<p title=\"").unwrap().strip_suffix("</p>").unwrap();
            let (value, body) = inner.split_once("\">").unwrap();
            for part in [value, body] {
                prop_assert!(!part.contains(['<', '>', '"']), "{}", part);
            }
            prop_assert_eq!(value, body);
            if text.chars().all(|c| matches!(c, '\n' | '\t') || text::is_plain(c)) {
                prop_assert_eq!(unescaped(body), text);
            }
        }
    }
}

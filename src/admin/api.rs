//! JSON API under `/v1`: the objects that the command line prints with `--json`, and its operations.
//!
//! A list is an object with its rows. If there are more rows, `next` is present: pass it as `before` to get the next
//! page. An operation is a POST of JSON with `who` and `why`. A browser asks for permission before a page of another
//! site may send JSON, and never gets it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::operations::{Given, read_operation, signed};
use super::target::Target;
use super::{Admin, Fault, access, is_read};
use crate::net::{Method, Request, Response};
use crate::observe::denied::Shown;
use crate::observe::limits;
use crate::store::{AnyJob, Disposition, Filter, HeldItem, InstanceRow, JobKind, ListedCallback};
use spid_core::lifecycle::schedule;
use spid_hook::id::Id;
use spid_hook::instance::State;
use spid_hook::text;

/// Body of an operation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActBody {
    who: String,
    why: String,
    /// Account of the instance, if several accounts have an instance of that name.
    account: Option<String>,
    /// Real meaning of a conflicting create.
    r#as: Option<String>,
    /// Answer that completes the work: the JSON of docs/hooks.md.
    answer: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct Instances {
    instances: Vec<InstanceRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<i64>,
}

#[derive(Serialize)]
struct Jobs {
    jobs: Vec<AnyJob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<i64>,
}

#[derive(Serialize)]
struct Callbacks {
    callbacks: Vec<ListedCallback>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<i64>,
}

#[derive(Serialize)]
struct Held {
    held: Vec<HeldItem>,
    /// Number of items that are not listed.
    left_out: usize,
}

#[derive(Serialize)]
struct Acts {
    acts: Vec<crate::store::AuditEntry>,
}

/// Denied requests, the newest first.
#[derive(Serialize)]
struct RefusalsPage {
    refusals: Vec<Shown>,
}

#[derive(Serialize)]
struct Wrong<'a> {
    error: &'a str,
}

type Answered = Result<Response, Fault>;

/// Answers requests under `/v1`.
pub(super) async fn answer(admin: &Admin, request: &Request, target: &Target) -> Response {
    let segments = target.segments();
    let answered = match &request.method {
        Method::Post => act(admin, request, target, segments.get(1..).unwrap_or_default()).await,
        _ if is_read(request) => read(admin, target, segments.get(1..).unwrap_or_default()).await,
        _ => {
            let fault = Fault::new(405, "only GET, HEAD and POST (for admin operations) are allowed");
            return refuse(&fault).with_header("allow", "GET, HEAD, POST");
        }
    };
    answered.unwrap_or_else(|fault| refuse(&fault))
}

pub(super) fn refuse(fault: &Fault) -> Response {
    json(fault.status, &Wrong { error: &fault.text }).unwrap_or_else(|_| Response::empty(500))
}

fn json(status: u16, value: &impl Serialize) -> Answered {
    let text = serde_json::to_string(value);
    text.map(|text| Response::json(status, text::plain_json(&text).into_owned()))
        .map_err(|_| Fault::new(500, "internal error: the answer cannot be written as JSON; report the log"))
}

async fn read(admin: &Admin, target: &Target, path: &[&str]) -> Answered {
    match path {
        ["instances"] => instances(admin, target).await,
        ["instances", name] => {
            // Unknown parameters are errors everywhere, because a misspelled filter would show too much.
            target.only(&["account"])?;
            let (name, account) = ((*name).to_owned(), target.get("account").map(str::to_owned));
            // Only the latest part of the history: a long one would keep the daemon busy.
            let most = limits::LIST_MAX_COUNT;
            json(200, &admin.read(move |reader| Ok(reader.latest(&name, account.as_deref(), most)?)).await?)
        }
        ["jobs"] => jobs(admin, target).await,
        ["jobs", id] => {
            target.only(&[])?;
            let id = job_id(id)?;
            json(200, &admin.read(move |reader| Ok(reader.any_job(id)?)).await?)
        }
        ["callbacks"] => callbacks(admin, target).await,
        // A held callback is shown like any other.
        ["callbacks", number] | ["held", number] => {
            target.only(&[])?;
            let number = callback_number(number)?;
            json(200, &admin.read(move |reader| Ok(reader.callback_detail(number)?)).await?)
        }
        ["held"] => {
            target.only(&["limit"])?;
            let limit = target.limit(limits::LIST_DEFAULT_COUNT)?;
            let (held, left_out) = admin.read(move |reader| Ok(reader.held_items(limit)?)).await?;
            json(200, &Held { held, left_out })
        }
        ["attention"] => {
            target.only(&["limit"])?;
            let limit = target.limit(limits::LIST_DEFAULT_COUNT)?;
            let now = admin.now();
            json(
                200,
                &admin
                    .read(move |reader| Ok(reader.attention(now, limit, limits::ATTENTION_CHECKED_COUNT)?))
                    .await?,
            )
        }
        ["acts"] => {
            target.only(&["limit"])?;
            let limit = target.limit(limits::LIST_DEFAULT_COUNT)?;
            json(200, &Acts { acts: admin.read(move |reader| Ok(reader.acts(limit)?)).await? })
        }
        ["refusals"] => {
            target.only(&["limit"])?;
            let limit = target.limit(limits::DENIED_SHOWN_COUNT)?;
            json(200, &RefusalsPage { refusals: admin.inner.parts.refusals.latest(limit) })
        }
        _ => Err(Fault::new(
            404,
            "unknown path; /v1 has instances, jobs, callbacks, held, attention, refusals and acts",
        )),
    }
}

pub(super) fn job_id(text: &str) -> Result<Id, Fault> {
    text.parse().map_err(|_| Fault::new(404, "the path or form does not contain a valid job id"))
}

pub(super) fn callback_number(text: &str) -> Result<i64, Fault> {
    text.parse().map_err(|_| Fault::new(404, "the path or form does not contain a valid callback number"))
}

/// Number to continue from, if the page is full.
pub(super) fn next<T>(rows: &[T], limit: usize, number: impl Fn(&T) -> i64) -> Option<i64> {
    // A full page may be the last one; the next page is empty then.
    rows.last().filter(|_| rows.len() >= limit).map(number)
}

/// Filter for instances, from the parameters of the request.
pub(super) fn instances_filter(target: &Target, limit: usize) -> Result<Filter, Fault> {
    let state = target.get("state").map(|word| {
        State::from_word(word).ok_or_else(|| {
            Fault::new(400, format!("`{word}` is not a state; use pending, active, frozen or released"))
        })
    });
    Ok(Filter {
        state: state.transpose()?,
        accounts: target.get("account").map(str::to_owned).into_iter().collect(),
        search: target.get("search").map(str::to_owned),
        before: target.before()?,
        limit: target.limit(limit)?,
        ..Filter::default()
    })
}

async fn instances(admin: &Admin, target: &Target) -> Answered {
    target.only(&["state", "account", "search", "before", "limit"])?;
    let filter = instances_filter(target, limits::LIST_DEFAULT_COUNT)?;
    let limit = filter.limit;
    let instances = admin.read(move |reader| Ok(reader.instances(&filter)?)).await?;
    let next = next(&instances, limit, |row| row.number);
    json(200, &Instances { instances, next })
}

async fn jobs(admin: &Admin, target: &Target) -> Answered {
    target.only(&["state", "kind", "before", "limit"])?;
    let state = target.get("state").map(|word| {
        schedule::JobState::from_word(word).ok_or_else(|| {
            let words = schedule::JobState::ALL.map(schedule::JobState::as_str).join(", ");
            Fault::new(400, format!("`{word}` is not a job state; use {words}"))
        })
    });
    let kind = target.get("kind").map(|word| {
        JobKind::from_word(word).ok_or_else(|| {
            let words = Vec::from_iter(JobKind::all().map(JobKind::as_str)).join(", ");
            Fault::new(400, format!("`{word}` is not a kind of jobs; use {words}"))
        })
    });
    let limit = target.limit(limits::LIST_DEFAULT_COUNT)?;
    let (jobs, kind) = (state.transpose()?.into_iter().collect(), kind.transpose()?);
    let filter = Filter { jobs, kind, before: target.before()?, limit, ..Filter::default() };
    let jobs = admin.read(move |reader| Ok(reader.every_job(&filter)?)).await?;
    let next = next(&jobs, limit, AnyJob::number);
    json(200, &Jobs { jobs, next })
}

fn is_set(target: &Target, name: &str) -> Result<bool, Fault> {
    match target.get(name) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(word) => Err(Fault::new(400, format!("`{name}` must be true or false, not `{word}`"))),
    }
}

async fn callbacks(admin: &Admin, target: &Target) -> Answered {
    target.only(&["unreported", "untold", "held", "account", "before", "limit"])?;
    let limit = target.limit(limits::LIST_DEFAULT_COUNT)?;
    let filter = Filter {
        // `untold` is the former name.
        unreported: is_set(target, "unreported")? || is_set(target, "untold")?,
        disposition: is_set(target, "held")?.then_some(Disposition::Held),
        accounts: target.get("account").map(str::to_owned).into_iter().collect(),
        before: target.before()?,
        limit,
        ..Filter::default()
    };
    let callbacks = admin.read(move |reader| Ok(reader.listed_callbacks(&filter)?)).await?;
    let next = next(&callbacks, limit, |listed| listed.row.number);
    json(200, &Callbacks { callbacks, next })
}

async fn act(admin: &Admin, request: &Request, target: &Target, path: &[&str]) -> Answered {
    target.only(&[])?;
    // Checks in this order: the sender, the content type, the body, and then the person and the reason.
    if !access::is_from_our_page(request) {
        return Err(Fault::new(403, "admin operations are denied for pages of other sites"));
    }
    let kind = request.headers.only("content-type").unwrap_or_default();
    // This content type forces a browser to ask first, so it is part of the protection against other sites.
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Err(Fault::new(415, "send the operation as JSON with content-type application/json"));
    }
    let body: ActBody = serde_json::from_slice(&request.body)
        .map_err(|error| Fault::new(400, format!("the body is not a valid operation: {error}")))?;
    let note = signed(&body.who, &body.why)?;
    let answer = body.answer.as_ref().map(|answer| answer.get().to_owned());
    let given = Given { account: body.account, instead: body.r#as, answer };
    json(200, &admin.act(read_operation(path, given)?, note).await?)
}

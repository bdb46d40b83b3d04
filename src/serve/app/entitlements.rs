//! `GET /v1/entitlements/{name}`, and `GET /v1/entitlements` with `?buyer=…` or `?tenant=…`.
//!
//! The answer comes from committed state. It has an `ETag` over its content. With `If-None-Match` and `wait` a request
//! waits until its answer differs: after a commit, or when a term or the time for a late renewal ends.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{App, AppOptions, AppToken, Refusal, json};
use crate::admin::target::Target;
use crate::net::{Request, Response};
use crate::observe::limits;
use crate::store::{Entitled, EntitledBy};
use spid_core::lifecycle::entitlement::{EntitlementReason, entitlement};
use spid_hook::callback::Action;
use spid_hook::instance::State;

/// Answer to the question: may this customer use the service?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct Entitlement {
    /// Id of the instance, else the name that the marketplace uses.
    pub(super) instance: Option<String>,
    /// Account of the seller.
    pub(super) account: String,
    /// True if the customer may use the service now.
    pub(super) entitled: bool,
    /// Reason: `active`, `trial`, `overrun`, `provisioning`, `term-over`, `frozen` or `released`.
    #[schemars(extend("enum" = ["active", "trial", "overrun", "provisioning", "term-over", "frozen", "released"]))]
    pub(super) reason: &'static str,
    /// State of the instance.
    #[schemars(extend("enum" = ["pending", "active", "frozen", "released"]))]
    pub(super) state: &'static str,
    /// SKU of what was bought.
    pub(super) plan: Option<String>,
    /// Quantities that were bought, by name.
    pub(super) items: BTreeMap<String, String>,
    /// True for a trial.
    pub(super) trial: bool,
    /// Buyer's account at the marketplace.
    pub(super) buyer: Option<String>,
    /// Tenant who has claimed the instance.
    pub(super) tenant: Option<String>,
    /// End of the term.
    pub(super) expires_on: Option<Timestamp>,
    /// End of the time for a late renewal, once the term is over.
    pub(super) grace_until: Option<Timestamp>,
    /// Actions that are owed and not carried out, for example a paid `renew` of a frozen instance.
    pub(super) pending: Vec<&'static str>,
}

/// Answers for several instances.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Entitlements {
    /// The answers, the newest instance first. Released instances are left out.
    pub(super) entitlements: Vec<Entitlement>,
    /// True if there are more than are listed.
    pub(super) more: bool,
}

/// An answer, and the time at which it changes by itself.
struct Timed {
    entitlement: Entitlement,
    changes_at: Option<Timestamp>,
}

fn decide(found: Entitled, now: Timestamp, overrun_ms: i64) -> Timed {
    let name = found.row.name().map(str::to_owned);
    let instance = found.row.instance;
    let verdict = entitlement(&instance, now, overrun_ms);
    let entitlement = Entitlement {
        instance: name,
        account: instance.account,
        entitled: verdict.reason.is_entitled(),
        reason: verdict.reason.as_str(),
        state: instance.state.as_str(),
        plan: instance.sku,
        items: instance.items,
        trial: verdict.reason == EntitlementReason::Trial
            || instance.trial == Some(true) && !instance.converted,
        buyer: instance.buyer,
        tenant: instance.tenant,
        expires_on: instance.expires_on,
        grace_until: verdict.grace_until,
        pending: found.owed.into_iter().map(Action::as_str).collect(),
    };
    Timed { entitlement, changes_at: verdict.changes_at }
}

/// Answers for one instance, by any of its names.
pub(super) async fn one(
    app: &App,
    options: &AppOptions,
    token: &AppToken,
    request: &Request,
    target: &Target,
    name: &str,
) -> Result<Response, Refusal> {
    target.only(&["account", "wait"])?;
    let accounts = accounts(token, target)?;
    let wait = wait(target)?;
    let known = request.headers.text("if-none-match").map(str::to_owned);
    let deadline = Instant::now() + wait;
    // At most this many requests wait. The others are answered at once, and their clients ask again.
    let permit = if wait.is_zero() || known.is_none() { None } else { app.0.waits.try_acquire().ok() };
    let mut commits = app.0.commits.clone();
    loop {
        // Marks the present commit as seen before the read, so that no commit falls between the two.
        commits.borrow_and_update();
        let timed = read_one(app, &accounts, name, options.overrun_ms).await?;
        let tag = tag(&timed.entitlement)?;
        if known.as_deref() != Some(tag.as_str()) {
            return Ok(json(200, &timed.entitlement)?.with_header("etag", tag));
        }
        if permit.is_none() || Instant::now() >= deadline {
            return Ok(Response::empty(304).with_header("etag", tag));
        }
        // Commands of an operator write from another process, whose commits are not announced here.
        let poll = Instant::now() + Duration::from_millis(limits::APP_POLL_MS);
        let mut until = deadline.min(poll);
        if let Some(at) = timed.changes_at {
            let wait = at.as_millisecond().saturating_sub(app.0.clock.now().as_millisecond());
            until = until.min(Instant::now() + Duration::from_millis(u64::try_from(wait).unwrap_or(0)));
        }
        let rest = Instant::now() + Duration::from_millis(limits::APP_REREAD_MS);
        let mut stopping = app.0.stopping.clone();
        tokio::select! {
            biased;
            // A stop must not wait for this request. An error means the same.
            _ = stopping.wait_for(|stop| *stop) => return Ok(Response::empty(304).with_header("etag", tag)),
            _ = timeout_at(until, commits.changed()) => {}
        }
        // A busy store commits thousands of times a second, and each waiting request reads again.
        sleep_until(rest.min(deadline)).await;
    }
}

/// Answers for every instance that is not released: all, those of a buyer, or those of a tenant.
pub(super) async fn list(
    app: &App,
    options: &AppOptions,
    token: &AppToken,
    target: &Target,
) -> Result<Response, Refusal> {
    target.only(&["buyer", "tenant", "account"])?;
    let accounts = accounts(token, target)?;
    let (buyer, tenant) = (target.get("buyer"), target.get("tenant"));
    let by = EntitledBy::Filter { buyer: buyer.map(str::to_owned), tenant: tenant.map(str::to_owned) };
    let now = app.0.clock.now();
    let limit = limits::LIST_DEFAULT_COUNT;
    let mut found = app.read(move |reader| Ok(reader.entitled(&accounts, &by, limit + 1)?)).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let mut entitlements = Vec::with_capacity(found.len());
    for row in found {
        entitlements.push(decide(row, now, options.overrun_ms).entitlement);
    }
    json(200, &Entitlements { entitlements, more })
}

async fn read_one(app: &App, accounts: &[String], name: &str, overrun_ms: i64) -> Result<Timed, Refusal> {
    let by = EntitledBy::Name(name.to_owned());
    let accounts = accounts.to_vec();
    let mut found = app.read(move |reader| Ok(reader.entitled(&accounts, &by, 2)?)).await?;
    // A released instance and its successor may share a name in two accounts; the live one is meant.
    if found.len() > 1 {
        found.retain(|entitled| entitled.row.instance.state != State::Released);
    }
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(decide(only, app.0.clock.now(), overrun_ms)),
        (Some(_), false) => Err(Refusal::new(
            409,
            "several-accounts",
            format!("several accounts of this token have an instance `{name}`: choose one with `account`"),
        )),
        (None, _) => Err(Refusal::new(404, "unknown-instance", format!("there is no instance `{name}`"))),
    }
}

/// Returns the accounts that the request is about: those of the token, or one of them.
pub(super) fn accounts(token: &AppToken, target: &Target) -> Result<Vec<String>, Refusal> {
    match target.get("account") {
        // No account means no access; in a filter it would mean every account.
        None if token.accounts.is_empty() => Err(Refusal::new(403, "account", "the token has no account")),
        None => Ok(token.accounts.clone()),
        Some(account) if token.accounts.iter().any(|known| known == account) => Ok(vec![account.to_owned()]),
        // The same answer for an account that exists and one that does not.
        Some(_) => Err(Refusal::new(403, "account", "the token does not have this account")),
    }
}

/// Reads `wait`: whole seconds, `30` or `30s`.
fn wait(target: &Target) -> Result<Duration, Refusal> {
    let Some(text) = target.get("wait") else { return Ok(Duration::ZERO) };
    let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>().ok();
    match seconds.filter(|seconds| *seconds <= limits::APP_WAIT_MAX_S) {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => {
            let text = format!("`wait` is a number of seconds up to {}, like 30s", limits::APP_WAIT_MAX_S);
            Err(Refusal::new(400, "bad-request", text))
        }
    }
}

/// Returns the tag of an answer: a digest of its content.
fn tag(entitlement: &Entitlement) -> Result<String, Refusal> {
    let text = serde_json::to_vec(entitlement)
        .map_err(|_| Refusal::new(500, "internal", "the answer cannot be written as JSON; report the log"))?;
    let mut digest = hex::encode(Sha256::digest(text));
    digest.truncate(32);
    Ok(format!("\"{digest}\""))
}

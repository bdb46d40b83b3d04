//! Huawei KooGallery: POST of JSON, an HMAC over the raw body with a nonce, signed answers, and a create that is
//! polled.
//!
//! It differs from the query-token family in almost everything. The differences that reach beyond this folder
//! have neutral names in [`spid_hook::callback`]:
//!
//! * the marketplace chooses the marketplace instance id (`marketplace_instance_id`);
//! * a nonce proves that a request is not a copy (`once`);
//! * the marketplace tests the interface twice a day (`test`);
//! * some instances are externally provisioned: the marketplace creates them itself (`externally_provisioned`);
//! * some bodies are structures (`body`);
//! * what was ordered needs an order lookup ([`Dialect::order_lookup`]).
//!
//! Version 2.0 of the vendor's guide posts JSON. Version 1.0, still probed for products on sale, is a GET: see
//! `legacy`. License products speak version 2.0 with their own words. The linked kit is in `kit`.
//! `docs/dialects/koogallery.md` says what is accepted, what is answered, and what is unknown.

mod kit;
mod legacy;
mod order;
mod reply;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::names::Names;
use super::{
    Denial, DetailsError, Dialect, GivesUp, Options, OrderLookup, OutRequest, RawRequest, Reply, Sending,
    Unchecked, read_word,
};
use crate::limits::{NAME_MAX_BYTES, NONCED_WINDOW_MS, QUERY_MAX_COUNT};
use crate::query::{self, Pair};
use crate::signature::{Keys, Parts, Signed, Verified};
use spid_hook::callback::{Action, Callback, Nonce, Outcome, Parameters, ValidationIssue};
use spid_hook::json::Json;
use spid_hook::time::{last_instant, plus_millis};

/// Delivery limit: a create is sent again once an hour for three hours; then the order has failed.
/// Polling has no documented limit.
const DELIVERY_LIMIT: u32 = 3;

/// Delivery limit for license codes: every two minutes, 60 times
/// (…/accessg-marketplace/zh-cn_topic_0070649167.html).
const LICENSE_BUDGET: u32 = 60;

/// Time for which a new or changed order is delivered again, in milliseconds. After that the marketplace
/// unsubscribes it.
const PURCHASE_MS: i64 = 3 * 60 * 60 * 1000;

/// Time for which every other action is delivered again, in milliseconds.
const CHANGE_MS: i64 = 60 * 60 * 1000;

const JSON_TYPE: &str = "application/json";
const ACTIVITY: &str = "activity";
const INSTANCE_ID: &str = "instanceId";
const TEST_FLAG: &str = "testFlag";

/// Prefix of instance ids that answer test orders. Nothing is created for them, and nothing is stored.
const TEST_ID: &str = "spid-test-";

const NAMES: Names = Names {
    instance_id: INSTANCE_ID,
    order_biz_id: "orderLineId",
    order_id: "orderId",
    request_id: "requestId",
    buyer: "customerId",
    product: "productId",
    sku: "skuCode",
    trial: "trialFlag",
    refund: "isRefund",
    expires_on: "expireTime",
    read_date: read_compact,
    // A release, and the expire of version 1.0, name the order of the purchase, so they are not listed.
    ordered: &[Action::Create, Action::Renew, Action::RefundRenew, Action::Upgrade],
};

/// The `koogallery` dialect.
pub(super) struct KooGallery;

impl Dialect for KooGallery {
    fn name(&self) -> &'static str {
        "koogallery"
    }

    fn path_suffixes(&self) -> &'static [&'static str] {
        &kit::PATH_SUFFIXES
    }

    fn delivery_limit(&self) -> Option<u32> {
        Some(DELIVERY_LIMIT)
    }

    fn delivery_limit_of(&self, callback: &Callback) -> Option<u32> {
        match callback.action {
            // Polling has no limit.
            Action::Query => None,
            _ if callback.externally_provisioned => Some(LICENSE_BUDGET),
            _ => self.delivery_limit(),
        }
    }

    fn gives_up(&self, action: Action, first: Timestamp) -> Option<GivesUp> {
        let (after_ms, then) = match action {
            Action::Create | Action::Upgrade => {
                (PURCHASE_MS, "the marketplace cancels the order and refunds the buyer")
            }
            Action::Renew | Action::RefundRenew | Action::Expire | Action::Release => {
                (CHANGE_MS, "the marketplace stops calling; restart the delivery in the seller console")
            }
            Action::SignOn | Action::Payment | Action::Query | Action::Other => return None,
        };
        Some(GivesUp { at: Some(plus_millis(first, after_ms)), then })
    }

    fn parts(&self, request: &RawRequest<'_>, now: Timestamp) -> Result<Signed<Unchecked>, Denial> {
        match request.method {
            "POST" if request.media_type().as_deref() != Some(JSON_TYPE) => {
                Err(Denial::ContentType { expected: JSON_TYPE })
            }
            "POST" if kit::is_kit(request) => kit::parts(request, now),
            "POST" => parts(request, now),
            "GET" => legacy::parts(request),
            other => Err(Denial::Method { method: other.chars().take(16).collect(), allowed: "POST, GET" }),
        }
    }

    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback {
        let signer = verified.signer();
        let Unchecked { parameters, sent_at, nonce: once } = verified.into_payload();
        // Messages of the linked kit name no activity; their members identify them.
        let word = match (read_word(&parameters, ACTIVITY), kit::kind(&parameters)) {
            ("", Some(kind)) => kind.to_owned(),
            (activity, _) => activity.to_owned(),
        };
        let Meaning { action, dated, issue } = Meaning::of(&word, &parameters);
        let mut callback = NAMES.fill(action, &word, parameters, options);
        // The order line names the purchase only on a create: `describe` sets it there.
        callback.subject.order_biz_id = None;
        callback.sent_at = sent_at;
        callback.nonce = once;
        callback.test = callback.parameters.get(TEST_FLAG) == Some("1");
        describe(&mut callback);
        if legacy::is_of(&callback) {
            callback.order_details = legacy::contact(&callback.parameters, &signer, options.field_cipher);
        }
        // Only version 1.0 has no nonce, and only its token does not mark the end of a value.
        if callback.nonce.is_none() {
            callback.issues.extend(legacy::ambiguous(&callback.parameters));
        }
        if kit::is_kind(&word) {
            match kit::typed(&word, &callback.parameters) {
                Ok(body) => callback.body = Some(body),
                Err(issue) => callback.issues.push(issue),
            }
            // A test message may arrive before any instance exists, so its instance id cannot be looked up.
            callback.subject.instance_id = callback.subject.instance_id.filter(|_| !callback.test);
        }
        NAMES.issue(&mut callback, dated);
        callback.issues.extend(issue);
        // An instance and a hook treat the renewed term and the changed product separately, so this makes two
        // jobs.
        if callback.action == Action::Renew && scene(&callback.parameters) == Some(RENEWAL_CHANGE) {
            callback.also = vec![Action::Upgrade];
        }
        callback
    }

    fn split(&self, callback: Callback) -> Vec<Callback> {
        match callback.action {
            // A query with a validation issue is not split: an operator sees it as it came.
            Action::Query if callback.issues.is_empty() => one_query_each(&callback),
            _ => vec![callback],
        }
    }

    fn reply(&self, callback: &Callback, outcome: &Outcome, options: &Options) -> Reply {
        reply::to(callback, outcome, options)
    }

    fn reply_to_all(&self, answered: &[(Callback, Outcome)], options: &Options) -> Reply {
        reply::to_all(answered, options)
    }

    fn refuse(&self, _request: &RawRequest<'_>, refusal: &Denial) -> Reply {
        reply::refuse(refusal)
    }

    fn asked_at(&self) -> Option<&'static str> {
        Some(order::HOST)
    }

    fn order_lookup(&self, callback: &Callback) -> Option<OrderLookup> {
        order::order_lookup(callback)
    }

    fn add_order_details(
        &self,
        callback: &mut Callback,
        status: u16,
        body: &[u8],
    ) -> Result<(), DetailsError> {
        order::add_order_details(callback, status, body)
    }

    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest {
        let named = parameters.iter().any(|(name, _)| name == ACTIVITY);
        let word = (!named && !action.is_empty()).then(|| (ACTIVITY.to_owned(), action.to_owned()));
        let pairs: Vec<Pair> = word.into_iter().chain(parameters.iter().cloned()).collect();
        // Messages of the kit have no activity, so pass the parameters without it.
        if kit::is_kind(action) {
            return kit::request(parameters, keys, send);
        }
        if legacy::is_legacy(&pairs) {
            legacy::request(pairs, keys, send)
        } else {
            request(&pairs, keys, send)
        }
    }
}

/// Returns the signed parts of a request of version 2.0.
/// Query parameters other than timestamp, nonce and signature are not signed, so they are dropped.
fn parts(request: &RawRequest<'_>, now: Timestamp) -> Result<Signed<Unchecked>, Denial> {
    // Check date and nonce before the body: both checks cost less.
    let mut query = query::parse(request.query, None)?;
    // An empty value counts as missing.
    let mut take = |name: &str| {
        let at = query.iter().position(|(known, _)| known == name)?;
        Some(query.swap_remove(at).1).filter(|value| !value.is_empty())
    };
    let timestamp = take("timestamp").ok_or(Denial::Undated)?;
    let sent_at = read_sent_at(&timestamp, now)?;
    let nonce = take("nonce").ok_or_else(|| malformed("the query parameter `nonce` is missing"))?;
    let parameters = read_body(request.body)?;
    let once = Nonce { nonce: nonce.clone(), until: plus_millis(sent_at, NONCED_WINDOW_MS) };
    Ok(Signed {
        presented: take("signature"),
        parts: Parts::Nonced { nonce, timestamp, body: request.body.to_vec(), digested: true },
        payload: Unchecked { parameters, sent_at: Some(sent_at), nonce: Some(once) },
    })
}

fn malformed(detail: impl Into<String>) -> Denial {
    Denial::Malformed { detail: detail.into() }
}

/// Reads the timestamp of a request.
/// The vendor's pages disagree: the Chinese pages say milliseconds, the international pages say seconds, and all
/// samples have 13 digits. The number of digits decides.
fn read_sent_at(text: &str, now: Timestamp) -> Result<Timestamp, Denial> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Denial::Undated);
    }
    let number = || text.parse::<i64>().map_err(|_| Denial::Undated);
    let sent_at = match text.len() {
        10 => Timestamp::from_second(number()?),
        13 => Timestamp::from_millisecond(number()?),
        _ => return Err(Denial::Undated),
    };
    let sent_at = sent_at.map_err(|_| Denial::Undated)?;
    let off_by_ms = now.as_millisecond().saturating_sub(sent_at.as_millisecond());
    if off_by_ms.abs() > NONCED_WINDOW_MS {
        return Err(Denial::Stale { off_by_s: off_by_ms / 1000, limit_s: NONCED_WINDOW_MS / 1000 });
    }
    Ok(sent_at)
}

/// Reads the members of the body: scalars as text, nested values as JSON text.
/// The signature covers the bytes, so a name may be any text. Unknown names are accepted.
fn read_body(body: &[u8]) -> Result<Parameters, Denial> {
    let members = match Json::read(body) {
        Ok(Json::Object(members)) => members,
        Ok(_) => return Err(malformed("the body is not a JSON object")),
        Err(error) => {
            // Report only the position of the error, because `serde_json` messages quote values.
            let (line, column) = (error.line(), error.column());
            return Err(malformed(format!("the body is not valid JSON (line {line}, column {column})")));
        }
    };
    let text = |value: Json| match value {
        Json::Null => String::new(),
        Json::Text(text) => text,
        other => other.to_string(),
    };
    let pairs: Vec<Pair> = members.into_iter().map(|(name, value)| (name, text(value))).collect();
    // Many programs stop reading at a NUL, so the rest of the text would be invisible to them.
    if pairs.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(malformed("the body contains a NUL character; remove it"));
    }
    Ok(pairs.into_iter().collect())
}

/// Reads exactly `yyyyMMddHHmmss`, with or without milliseconds, in UTC. The vendor documents 14 digits and also
/// sends 17.
fn read_compact(text: &str, _zone: &TimeZone) -> Option<Timestamp> {
    if !matches!(text.len(), 14 | 17) || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (seconds, millis) = text.split_at_checked(14)?;
    let civil = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", seconds).ok()?;
    // As everywhere, "for ever" becomes the last instant we can represent.
    let Ok(at) = TimeZone::UTC.to_timestamp(civil) else {
        return (civil.year() == 9999).then(last_instant);
    };
    Some(plus_millis(at, if millis.is_empty() { 0 } else { millis.parse().ok()? }))
}

const RENEWAL_CHANGE: &str = "RENEWAL_CHANGE";

fn scene(parameters: &Parameters) -> Option<&str> {
    parameters.filled("scene")
}

/// Returns true if the request turns a trial into a purchase. Version 1.0 has a flag where 2.0 has a scene.
fn ends_trial(parameters: &Parameters) -> bool {
    scene(parameters) == Some("TRIAL_TO_FORMAL") || parameters.filled("trialToFormal") == Some("1")
}

/// Meaning of an activity.
struct Meaning {
    action: Action,
    /// True if the action requires a date.
    dated: bool,
    issue: Option<ValidationIssue>,
}

impl Meaning {
    fn plain(action: Action) -> Meaning {
        Meaning { action, dated: false, issue: None }
    }

    fn dated(action: Action) -> Meaning {
        Meaning { action, dated: true, issue: None }
    }

    fn unknown(name: &str) -> Meaning {
        Meaning::doubted(ValidationIssue::UnknownValue { name: name.to_owned() })
    }

    fn doubted(issue: ValidationIssue) -> Meaning {
        Meaning { action: Action::Other, dated: false, issue: Some(issue) }
    }

    /// Returns the meaning of an activity. Covers both versions and License products, each with its source page.
    fn of(word: &str, parameters: &Parameters) -> Meaning {
        match word {
            // …/accessg-marketplace/zh-cn_topic_0070649427.html; version 1.0: …0070649013.html
            "newInstance" => Meaning::plain(Action::Create),
            // …0070649429.html; version 1.0: …0070649180.html; License codes: …0070649167.html
            "refreshInstance" | "refreshLicenseCode" => Meaning::of_refresh(parameters),
            // …0070649430.html; License codes: …0070649168.html
            "updateInstanceStatus" | "updateLicenseCodeStatus" => Meaning::of_status("status", parameters),
            // version 1.0: en-us_topic_0070649069.html
            "instanceStatus" => Meaning::of_status("instanceStatus", parameters),
            // version 1.0: en-us_topic_0070649055.html
            "expireInstance" => Meaning::plain(Action::Expire),
            // …0070649431.html; version 1.0: …0070649056.html; License codes: …0070649169.html
            "releaseInstance" | "releaseLicenseCode" => Meaning::plain(Action::Release),
            // …0070649432.html; version 1.0: …0000001297828992.html
            "upgradeInstance" | "upgrade" => Meaning::plain(Action::Upgrade),
            // …0070649428.html
            "queryInstance" => Meaning::of_query(parameters),
            // …0000002411753620.html; online Licenses: …0070649255.html
            "changeInstanceCheck" | "getLicenseAsync" => Meaning::plain(Action::Other),
            kind if kit::is_kind(kind) => Meaning::plain(Action::Other),
            // …0000002091799149.html: reports that an order was created, and asks for nothing
            "orderNotify" => Meaning::plain(Action::Payment),
            _ => Meaning::doubted(ValidationIssue::UnknownAction),
        }
    }

    fn of_refresh(parameters: &Parameters) -> Meaning {
        match scene(parameters) {
            Some("RENEWAL" | "TRIAL_TO_FORMAL" | RENEWAL_CHANGE) => Meaning::dated(Action::Renew),
            Some("UNSUBSCRIBE_RENEWAL_PERIOD") => Meaning::dated(Action::RefundRenew),
            // Version 1.0 has no scenes: a refund has a negative price.
            None if parameters.get(legacy::TIME_STAMP).is_some() => {
                let refunds = parameters.filled("orderAmount").is_some_and(|amount| amount.starts_with('-'));
                Meaning::dated(if refunds { Action::RefundRenew } else { Action::Renew })
            }
            _ => Meaning::unknown("scene"),
        }
    }

    /// Returns the meaning of a status change. An unfreeze is a renewal that leaves the term unchanged.
    fn of_status(name: &str, parameters: &Parameters) -> Meaning {
        match parameters.filled(name) {
            Some("FREEZE") => Meaning::plain(Action::Expire),
            Some("UNFREEZE" | "NORMAL") => Meaning::plain(Action::Renew),
            _ => Meaning::unknown(name),
        }
    }

    fn of_query(parameters: &Parameters) -> Meaning {
        match ids(parameters).count() {
            0 => Meaning { action: Action::Query, ..Meaning::doubted(missing(INSTANCE_ID)) },
            1..=QUERY_MAX_COUNT => Meaning::plain(Action::Query),
            _ => Meaning { action: Action::Query, ..Meaning::unknown(INSTANCE_ID) },
        }
    }
}

fn missing(name: &str) -> ValidationIssue {
    ValidationIssue::MissingParameter { name: name.to_owned() }
}

/// Returns the instance ids of a query, the only activity that may name several.
fn ids(parameters: &Parameters) -> impl Iterator<Item = &str> {
    let ids = parameters.filled(INSTANCE_ID).unwrap_or_default().split(',').map(str::trim);
    ids.filter(|id| !id.is_empty())
}

fn one_query_each(callback: &Callback) -> Vec<Callback> {
    // Only the first part takes the nonce, because a nonce can be consumed only once.
    let mut once = callback.nonce.clone();
    let one = |id: &str| {
        let renamed = callback.parameters.iter().map(|(name, value)| {
            (name.to_owned(), if name == INSTANCE_ID { id.to_owned() } else { value.to_owned() })
        });
        let mut one = Callback { parameters: renamed.collect(), nonce: once.take(), ..callback.clone() };
        one.subject.instance_id = Some(id.to_owned());
        one.marketplace_instance_id = test_id_among(&one);
        one
    };
    // An id that is named twice gets one part only.
    let mut seen = Vec::new();
    ids(&callback.parameters)
        .filter(|id| {
            !seen.contains(id) && {
                seen.push(id);
                true
            }
        })
        .map(one)
        .collect()
}

/// Sets the members that the parameter names alone do not determine.
fn describe(callback: &mut Callback) {
    let text = |name: &str| callback.parameters.filled(name).map(str::to_owned);
    // Version 1.0 writes the flag as 0 or 1, which the neutral reading does not know.
    callback.trial = match callback.parameters.filled(legacy::TRIAL_FLAG) {
        Some("1") => Some(true),
        Some("0") => Some(false),
        _ => callback.trial,
    };
    match callback.action {
        Action::Create => {
            callback.subject.order_biz_id = purchase(&callback.parameters);
            callback.marketplace_instance_id =
                text("businessId").filter(|id| id != "0" && id.len() <= NAME_MAX_BYTES);
        }
        // A list of ids is not a name; each part gets its own id when the query is split.
        Action::Query => callback.subject.instance_id = text(INSTANCE_ID).filter(|id| !id.contains(',')),
        // An expire names the order of the purchase, so the order does not tell one expire from the next.
        Action::Expire => callback.order_id = None,
        // A renewal without a date is an unfreeze; its order does not identify it either.
        Action::Renew if callback.expires_on.is_none() => {
            callback.order_id = None;
            callback.ordered = false;
        }
        Action::Renew if ends_trial(&callback.parameters) => callback.trial = Some(false),
        _ => {}
    }
    if matches!(callback.action, Action::Create | Action::Upgrade) {
        callback.items = legacy::items(&callback.parameters);
    }
    if callback.action_name == "changeInstanceCheck" {
        describe_check(callback);
    }
    if callback.action_name.contains("LicenseCode") {
        // The marketplace creates and issues the license codes itself, so there is no create.
        callback.subject.instance_id = callback.parameters.filled("license").map(str::to_owned);
        callback.externally_provisioned = true;
    }
    if callback.test {
        let order = callback.subject.order_biz_id.as_deref().filter(|_| callback.action == Action::Create);
        callback.marketplace_instance_id = order.map(test_id).or_else(|| test_id_among(callback));
    }
}

/// Sets the members of a check. Every repetition of a check needs a new answer, so its nonce is its request id.
fn describe_check(callback: &mut Callback) {
    let target = callback.parameters.filled("productInfo");
    let target = target.and_then(|text| Json::read(text.as_bytes()).ok());
    let text = |name: &str| target.as_ref()?.get(name)?.as_text().map(str::to_owned);
    callback.product = text("productId");
    callback.sku = text("skuCode");
    callback.request_id = callback.nonce.as_ref().map(|once| once.nonce.clone());
}

/// Returns the id of a purchase: its order with the order line.
/// With pay-per-use one order creates an instance for each billing item, so the product is used. Otherwise, if both
/// are given, both count, because two purchases must never get the same id.
fn purchase(parameters: &Parameters) -> Option<String> {
    let order = parameters.filled("orderId")?;
    let line = parameters.filled("orderLineId");
    let product = parameters.filled("productId");
    let on_demand = parameters.filled("chargingMode").is_some_and(|mode| mode.starts_with("ON_DEMAND"));
    match (line, product) {
        (Some(line), Some(product)) if !on_demand => Some(format!("{order}/{line}/{product}")),
        (_, Some(product)) => Some(format!("{order}/{product}")),
        (Some(line), None) => Some(format!("{order}/{line}")),
        (None, None) => None,
    }
}

/// Returns the instance id for a test order. It is always the same for one order, so nothing needs to be stored.
fn test_id(order: &str) -> String {
    let digest = hex::encode(Sha256::digest(order.as_bytes()));
    format!("{TEST_ID}{}", digest.get(..32).unwrap_or_default())
}

/// Returns the test order's instance id, if the callback is about a test order.
fn test_id_among(callback: &Callback) -> Option<String> {
    let id = callback.subject.instance_id.as_ref();
    id.filter(|id| callback.test && id.starts_with(TEST_ID)).cloned()
}

fn request(pairs: &[Pair], keys: &Keys, send: &Sending) -> OutRequest {
    let timestamp = send.now.as_millisecond().to_string();
    let digest = send.digest(|| {
        let body = write_body(pairs).into_bytes();
        let (nonce, timestamp) = (send.nonce.clone(), timestamp.clone());
        Parts::Nonced { nonce, timestamp, body, digested: true }.sign(keys)
    });
    let mut query: Vec<Pair> = digest.map(|digest| ("signature".to_owned(), digest)).into_iter().collect();
    query.push(("timestamp".to_owned(), timestamp));
    query.push(("nonce".to_owned(), send.nonce.clone()));
    // Changes after signing go only into the body that is sent.
    let body = format!("{}{}", write_body(&send.after_signing(pairs)), send.raw);
    let headers =
        vec![("accept", JSON_TYPE.to_owned()), ("content-type", "application/json;charset=utf8".to_owned())];
    OutRequest { method: "POST", query: query::encode(&query), headers, body: body.into_bytes() }
}

/// Writes one JSON object.
/// A value that is a JSON object or list exactly as [`read_body`] returns it (members sorted, no white space) is
/// sent as JSON. Any other value is sent as a text. So the other side reads what was given here. Written by hand,
/// because a fixture may need the same member twice.
fn write_body(pairs: &[Pair]) -> String {
    let nested = |value: &str| {
        value.starts_with(['{', '['])
            && Json::read(value.as_bytes()).is_ok_and(|read| read.to_string() == value)
    };
    let member = |(name, value): &Pair| {
        let value = if nested(value) { value.clone() } else { Value::from(value.as_str()).to_string() };
        format!("{}:{value}", Value::from(name.as_str()))
    };
    format!("{{{}}}", pairs.iter().map(member).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests;

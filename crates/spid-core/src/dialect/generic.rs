//! Our own plain protocol, for in-house callers, test systems, and marketplaces without a dialect.
//!
//! A request is a `POST` of a JSON object or a form. A header holds an HMAC-SHA256 over `timestamp.body`, valid
//! for five minutes. Parameters have the neutral names of [`spid_hook::callback`]. `docs/dialects/generic.md` is the
//! contract; that page alone is enough to write a caller.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::dates::read_civil;
use super::names::Names;
use super::reply::{message, object};
use super::send::with_action;
use super::{
    Denial, Dialect, FORM_TYPE, Options, OutRequest, RawRequest, Reply, SendForm, Sending, Unchecked,
    read_word,
};
use crate::limits::DATED_WINDOW_MS;
use crate::query::{self, Pair};
use crate::signature::{Keys, Parts, Signed, Verified};
use spid_hook::callback::{Action, Callback, Outcome, ValidationIssue};
use spid_hook::json::Json;
use spid_hook::time::read_rfc3339;

const TIMESTAMP: &str = "spid-timestamp";
const SIGNATURE: &str = "spid-signature";
const JSON_TYPE: &str = "application/json";
const ACTION: &str = "action";
/// Name of the only member that may be an object: the billed quantities.
const ITEMS: &str = "items";
/// Prefix of a billing item's name where items cannot be nested.
const ITEM: &str = "items.";

const NAMES: Names = Names {
    instance_id: "instance_id",
    order_biz_id: "order_biz_id",
    order_id: "order_id",
    request_id: "request_id",
    buyer: "buyer",
    product: "product",
    sku: "sku",
    trial: "trial",
    refund: "refund",
    expires_on: "expires_on",
    read_date: read_instant,
    // An expire or a release may name the order of the purchase, but only to identify the instance.
    ordered: &[Action::Create, Action::Renew, Action::RefundRenew, Action::Upgrade],
};

/// The `generic` dialect.
pub(super) struct Generic;

impl Dialect for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn parts(&self, request: &RawRequest<'_>, now: Timestamp) -> Result<Signed<Unchecked>, Denial> {
        if request.method != "POST" {
            return Err(Denial::method(request, "POST"));
        }
        if !request.query.is_empty() {
            return Err(Denial::malformed("remove the query string: the signature does not cover it"));
        }
        let timestamp = (request.header)(TIMESTAMP).ok_or(Denial::Undated)?;
        // Check the date before the body is read and the digest is computed: an old request costs nothing.
        let sent_at = read_sent_at(timestamp, now)?;
        let pairs = read_body(request)?;
        Ok(Signed {
            parts: Parts::Dated { timestamp: timestamp.to_owned(), body: request.body.to_vec() },
            presented: (request.header)(SIGNATURE).map(str::to_owned),
            payload: Unchecked {
                parameters: pairs.into_iter().collect(),
                sent_at: Some(sent_at),
                nonce: None,
            },
        })
    }

    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback {
        let Unchecked { parameters, sent_at, .. } = verified.into_payload();
        let word = read_word(&parameters, ACTION).to_owned();
        let action = Action::from_word(&word);
        let mut callback = NAMES.read(action.unwrap_or(Action::Other), &word, parameters, options);
        let items = callback.parameters.iter().filter_map(|(name, value)| {
            name.strip_prefix(ITEM).map(|item| (item.to_owned(), value.to_owned()))
        });
        callback.items = items.collect();
        callback.sent_at = sent_at;
        if action.is_none() {
            callback.issues.push(ValidationIssue::UnknownAction);
        }
        callback
    }

    fn reply(&self, _callback: &Callback, outcome: &Outcome, _options: &Options) -> Reply {
        let mut body = BTreeMap::from([("status".to_owned(), Json::from(outcome.as_str()))]);
        match outcome {
            Outcome::Applied { instance_id, answer } => {
                let redirect = answer.redirect.as_ref().map(|url| Json::from(url.expose()));
                let free = answer.body.as_ref().map(|text| free_value(text.expose()));
                let sections = [
                    ("instance_id", instance_id.as_deref().map(Json::from)),
                    ("app", section(object(&answer.app, &[]))),
                    ("host", section(object(&answer.host, &[]))),
                    ("info", section(object(&answer.info, &[]))),
                    ("redirect", redirect),
                    ("answer", free),
                ];
                let told = sections.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
                body.extend(told);
            }
            _ => {
                body.insert("message".to_owned(), Json::from(message(outcome).as_str()));
            }
        }
        Reply::json(200, &body)
    }

    fn refuse(&self, _request: &RawRequest<'_>, refusal: &Denial) -> Reply {
        let body = serde_json::json!({"status": "rejected", "message": refusal.public()});
        Reply::json(refusal.status(), &body).with_allowed_methods(refusal)
    }

    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest {
        let pairs = with_action(ACTION, action, parameters);
        let timestamp = send.now.as_second().to_string();
        // Sign the original body. Changes after signing go only into the body that is sent.
        let digest = send.digest(|| {
            let body = write_body(&pairs, send.form).into_bytes();
            Parts::Dated { timestamp: timestamp.clone(), body }.sign(keys)
        });
        let body = format!("{}{}", write_body(&send.after_signing(&pairs), send.form), send.raw);
        let media_type = match send.form {
            SendForm::Usual => JSON_TYPE,
            SendForm::Form => FORM_TYPE,
        };
        let mut headers = vec![("content-type", media_type.to_owned()), (TIMESTAMP, timestamp)];
        headers.extend(digest.map(|digest| (SIGNATURE, digest)));
        OutRequest { method: "POST", query: String::new(), headers, body: body.into_bytes() }
    }
}

/// Reads RFC 3339 with its offset, or `yyyy-MM-dd HH:mm:ss` in the endpoint's zone.
fn read_instant(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    read_rfc3339(text).or_else(|| read_civil(text, zone))
}

/// Reads the date of a request. A date outside the window is denied before the digest is computed, so it costs
/// nothing.
fn read_sent_at(text: &str, now: Timestamp) -> Result<Timestamp, Denial> {
    // More than 12 digits cannot be seconds; the limit also keeps the parse cheap.
    if text.is_empty() || text.len() > 12 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Denial::Undated);
    }
    let second = text.parse().map_err(|_| Denial::Undated)?;
    let sent_at = Timestamp::from_second(second).map_err(|_| Denial::Undated)?;
    Denial::check_date(sent_at, now, DATED_WINDOW_MS)?;
    Ok(sent_at)
}

fn read_body(request: &RawRequest<'_>) -> Result<Vec<Pair>, Denial> {
    match request.media_type().as_deref() {
        Some(FORM_TYPE) => Ok(query::parse(b"", Some(request.body))?),
        Some(JSON_TYPE) => {
            let pairs = read_json(request.body)?;
            // `items.a` and a nested `a` are two spellings of one item; here they become a duplicate.
            query::check(&pairs)?;
            Ok(pairs)
        }
        _ => Err(Denial::ContentType { expected: "application/json or application/x-www-form-urlencoded" }),
    }
}

/// Denies a body that is not valid JSON. Gives only the position of the error, because `serde_json` messages
/// quote values.
fn malformed(error: &serde_json::Error) -> Denial {
    let (line, column) = (error.line(), error.column());
    Denial::malformed(format!(
        "the body is not a JSON object of the documented form (line {line}, column {column})"
    ))
}

/// Reads an object of scalars into pairs, in the order in which they were sent. Only `items` may be an object.
fn read_json(body: &[u8]) -> Result<Vec<Pair>, Denial> {
    let Members(members) = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
    let mut pairs = Vec::new();
    let mut has_items = false;
    for (name, value) in members {
        if name != ITEMS {
            pairs.push((name, scalar(value)?));
            continue;
        }
        // `items` itself becomes no pair, so the check for duplicates would not see a second one.
        if std::mem::replace(&mut has_items, true) {
            return Err(Denial::malformed("`items` occurs twice; send it once"));
        }
        // Null means absent.
        if value.get() == "null" {
            continue;
        }
        let Members(items) = serde_json::from_str(value.get())
            .map_err(|_| Denial::malformed("`items` must be an object of texts, numbers and booleans"))?;
        for (item, value) in items {
            pairs.push((format!("{ITEM}{item}"), scalar(value)?));
        }
    }
    Ok(pairs)
}

/// Reads a value as text. A number keeps its digits as they were written: a float would lose some.
fn scalar(value: &RawValue) -> Result<String, Denial> {
    let text = match Json::read(value.get().as_bytes()) {
        // Null means absent, as an empty text does.
        Ok(Json::Null) => Some(String::new()),
        Ok(value) => value.to_text(),
        Err(_) => return Err(Denial::malformed("a number is too large to be read")),
    };
    text.ok_or_else(|| Denial::malformed("a value is a list or an object; only `items` may be an object"))
}

fn free_value(text: &str) -> Json {
    Json::read(text.as_bytes()).unwrap_or_else(|_| Json::from(text))
}

fn section(fields: Map<String, Value>) -> Option<Json> {
    (!fields.is_empty()).then_some(Json::from(Value::Object(fields)))
}

fn write_body(pairs: &[Pair], form: SendForm) -> String {
    match form {
        SendForm::Form => query::encode(pairs),
        SendForm::Usual => {
            // JSON nests the items under one member; a form keeps their prefix.
            let (items, plain): (Vec<&Pair>, Vec<&Pair>) =
                pairs.iter().partition(|(name, _)| name.starts_with(ITEM));
            let mut members: Vec<String> = plain.into_iter().map(|(n, v)| member(n, v)).collect();
            if !items.is_empty() {
                let nested = items.iter().map(|(n, v)| member(n.strip_prefix(ITEM).unwrap_or(n), v));
                members.push(format!("\"items\":{{{}}}", nested.collect::<Vec<_>>().join(",")));
            }
            format!("{{{}}}", members.join(","))
        }
    }
}

/// Writes one member. By hand, because a fixture may need the same member twice.
fn member(name: &str, value: &str) -> String {
    format!("{}:{}", Value::from(name), Value::from(value))
}

/// Members of an object, in the order in which they were sent. Both of two members with one name are kept, of which
/// `serde_json` would drop one; [`query::check`] then denies them.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'de>, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}

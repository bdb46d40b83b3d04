//! Replies to KooGallery: `resultCode`, `resultMsg`, and the members of the activity.
//! All of it is ASCII, and signed.
//!
//! Codes: support.huaweicloud.com/accessg-marketplace/zh-cn_topic_0070649421.html. Only `000000` is a success.
//! `000004` is "being processed": after that the marketplace polls a create with `queryInstance`.

use serde_json::{Map, Value, json};

use super::super::reply::{ascii, message, object};
use super::super::{Denial, Options, Protection, Reply};
use super::v1;
use spid_hook::callback::{Action, Answer, Callback, Outcome};
use spid_hook::json::Json;

const SUCCESS: &str = "000000";
const FORBIDDEN: &str = "000001";
const INVALID: &str = "000002";
const UNKNOWN: &str = "000003";
const PROCESSING: &str = "000004";
const INTERNAL: &str = "000005";

/// Codes that a hook may refuse with, as in `000106: sold out`.
const OF_HOOKS: [&str; 12] = [
    "000100", "000101", "000102", "000103", "000104", "000105", "000106", "000107", "000900", "000901",
    "000902", "000903",
];

/// Maximum length of `resultMsg`, in characters.
const MESSAGE_MAX_COUNT: usize = 255;

pub(super) fn to(callback: &Callback, outcome: &Outcome, options: &Options) -> Reply {
    let mut body = verdict(callback, outcome);
    match callback.action {
        Action::Create => {
            let told = match outcome {
                Outcome::Applied { instance_id, .. } => instance_id.as_ref(),
                // The hook has given no id yet, so answer with the marketplace instance id.
                Outcome::NotYet | Outcome::Held { .. } => callback.marketplace_instance_id.as_ref(),
                Outcome::Refused { .. } | Outcome::Unavailable => None,
            };
            body.extend(told.map(|id| ("instanceId".to_owned(), Value::from(id.as_str()))));
            if let Outcome::Applied { answer, .. } = outcome
                && v1::is_of(callback)
            {
                body.extend(app_info(callback, answer, options).map(|app| ("appInfo".to_owned(), app)));
            }
        }
        Action::Query => {
            body.extend(info(callback, outcome, options).map(|info| ("info".to_owned(), json!([info]))));
        }
        _ => {}
    }
    finished(callback, body, options)
}

/// Finishes the reply. Version 1.0 requires the account to be encrypted.
fn finished(callback: &Callback, mut body: Map<String, Value>, options: &Options) -> Reply {
    let account = if v1::is_of(callback) { v1::accounts(&body) } else { Vec::new() };
    if !account.is_empty() {
        body.insert("encryptType".to_owned(), Value::from(v1::encrypt_type(options.field_cipher)));
    }
    let mut reply = reply(200, &Value::Object(body));
    reply.protection.encrypts = account;
    reply.protection.cipher = options.field_cipher;
    reply
}

/// Builds the answer to a query of several instances. It lists only those that are ready; the marketplace asks
/// for the others again.
pub(super) fn to_all(answered: &[(Callback, Outcome)], options: &Options) -> Reply {
    let ready: Vec<Value> =
        answered.iter().filter_map(|(callback, outcome)| info(callback, outcome, options)).collect();
    let undone = answered.iter().find(|(_, outcome)| !outcome.is_success());
    match (undone, answered.first()) {
        (_, Some((callback, outcome))) if callback.action == Action::Query && !ready.is_empty() => {
            // At least one instance is ready, so the query as a whole is a success.
            let told = if outcome.is_success() { outcome } else { &Outcome::done(None) };
            let mut body = verdict(callback, told);
            body.insert("info".to_owned(), Value::from(ready));
            finished(callback, body, options)
        }
        (Some((callback, outcome)), _) | (None, Some((callback, outcome))) => to(callback, outcome, options),
        (None, None) => {
            reply(503, &json!({"resultCode": INTERNAL, "resultMsg": "the request contains no question"}))
        }
    }
}

pub(super) fn refuse(refusal: &Denial) -> Reply {
    let code = match refusal {
        Denial::Signature(_) | Denial::Source | Denial::Undated | Denial::Stale { .. } | Denial::Replayed => {
            FORBIDDEN
        }
        Denial::Parameters(_)
        | Denial::Method { .. }
        | Denial::ContentType { .. }
        | Denial::Malformed { .. } => INVALID,
    };
    reply(refusal.status(), &json!({"resultCode": code, "resultMsg": refusal.public()}))
        .with_allowed_methods(refusal)
}

fn reply(status: u16, body: &Value) -> Reply {
    let protection = Protection { signs: true, ..Protection::default() };
    Reply { body: ascii(&body.to_string()).into_bytes(), protection, ..Reply::json(status, body) }
}

fn verdict(callback: &Callback, outcome: &Outcome) -> Map<String, Value> {
    let said = message(outcome);
    let (code, text) = match outcome {
        Outcome::Applied { answer, .. } if says_no(callback, answer) => {
            (INTERNAL, "the seller does not allow this change")
        }
        Outcome::Applied { .. } => (SUCCESS, "success."),
        Outcome::NotYet => (PROCESSING, said.as_str()),
        // An operator must decide. Meanwhile the marketplace learns about faults that it can correct itself.
        Outcome::Held { .. } if !callback.issues.is_empty() => (INVALID, said.as_str()),
        Outcome::Held { .. } => (PROCESSING, said.as_str()),
        Outcome::Refused { code, reason } => refused(code, reason),
        Outcome::Unavailable => (INTERNAL, said.as_str()),
    };
    let text: String = text.chars().take(MESSAGE_MAX_COUNT).collect();
    Map::from_iter([
        ("resultCode".to_owned(), Value::from(code)),
        ("resultMsg".to_owned(), Value::from(text)),
    ])
}

/// Returns true if a hook answered a check with `{"allowed": false}`.
fn says_no(callback: &Callback, answer: &Answer) -> bool {
    if callback.action_name != "changeInstanceCheck" {
        return false;
    }
    let body = answer.body.as_ref().and_then(|body| Json::read(body.expose().as_bytes()).ok());
    body.is_some_and(|body| body.get("allowed") == Some(&Json::Bool(false)))
}

fn refused<'a>(code: &str, reason: &'a str) -> (&'static str, &'a str) {
    match code {
        "unknown-instance" | "names-nothing" | "paid-for-nothing" | "gone" => (UNKNOWN, reason),
        "not-ready" => (PROCESSING, reason),
        "doubt" => (INVALID, reason),
        _ => {
            let (head, tail) = reason.split_once(':').unwrap_or((reason, ""));
            // Only a documented code is passed on; any other refusal is an internal error with the hook's text.
            match OF_HOOKS.into_iter().find(|known| *known == head.trim()) {
                Some(chosen) if tail.trim().is_empty() => (chosen, "refused by the seller"),
                Some(chosen) => (chosen, tail.trim()),
                None => (INTERNAL, reason),
            }
        }
    }
}

/// Returns one instance of the answer to a query, if there is something to report.
fn info(callback: &Callback, outcome: &Outcome, options: &Options) -> Option<Value> {
    let Outcome::Applied { instance_id, answer } = outcome else { return None };
    // Answer with the id that the marketplace asked for: it expects to read the same name again.
    let id = callback.subject.instance_id.as_ref().or(instance_id.as_ref())?;
    let mut info = Map::from_iter([("instanceId".to_owned(), Value::from(id.as_str()))]);
    info.extend(app_info(callback, answer, options).map(|app| ("appInfo".to_owned(), app)));
    Some(Value::Object(info))
}

/// Returns `appInfo`, or `None` without a front end URL, because the vendor requires that URL.
fn app_info(callback: &Callback, answer: &Answer, options: &Options) -> Option<Value> {
    let mut app = object(&answer.app, &SPELLINGS);
    // The vendor documents only these members of `appInfo`.
    app.retain(|name, _| SPELLINGS.iter().any(|(_, wire)| wire == name));
    // A test order has no instance: answer with the configured URL only.
    if callback.test {
        app = options
            .test_url
            .iter()
            .map(|url| ("frontEndUrl".to_owned(), Value::from(url.as_str())))
            .collect();
    }
    if let Some(memo) = answer.info.get("memo") {
        app.insert("memo".to_owned(), Value::from(memo.expose()));
    }
    app.contains_key("frontEndUrl").then_some(Value::Object(app))
}

const SPELLINGS: [(&str, &str); 4] = [
    ("front_end_url", "frontEndUrl"),
    ("admin_url", "adminUrl"),
    ("username", "userName"),
    ("password", "password"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_may_choose_among_the_documented_codes() {
        assert_eq!(refused("hook", "000106: sold out"), ("000106", "sold out"));
        assert_eq!(refused("hook", "000106"), ("000106", "refused by the seller"));
        assert_eq!(refused("hook", "000000: it is done"), (INTERNAL, "000000: it is done"));
        assert_eq!(refused("hook", "not to this buyer"), (INTERNAL, "not to this buyer"));
        assert_eq!(refused("unknown-instance", "000106: no"), (UNKNOWN, "000106: no"));
    }
}

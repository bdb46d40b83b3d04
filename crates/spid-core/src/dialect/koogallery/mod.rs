//! Huawei KooGallery: POST of JSON, an HMAC over the raw body with a nonce, signed answers, and a create that is
//! polled.
//!
//! It differs from the query-token family in almost everything. The differences that reach beyond this folder
//! have neutral names in [`spid_hook::callback`]:
//!
//! * the marketplace chooses the marketplace instance id (`marketplace_instance_id`);
//! * a nonce proves that a request is not a copy (`nonce`);
//! * the marketplace tests the interface twice a day (`test`);
//! * some instances are externally provisioned: the marketplace creates them itself (`externally_provisioned`);
//! * some bodies are structures (`body`);
//! * what was ordered needs an order lookup ([`Dialect::order_api`]).
//!
//! Version 2.0 of the vendor's guide posts JSON. Version 1.0, still probed for products on sale, is a GET: see
//! `v1`. License products speak version 2.0 with their own words. The
//! directory messages (the vendor's "linked kit") are in `directory`.
//! `docs/dialects/koogallery.md` says what is accepted, what is answered, and what is unknown.

mod action;
mod describe;
mod directory;
mod order;
mod reply;
mod v1;
mod v2;

use jiff::Timestamp;

use self::action::{RENEWAL_CHANGE, scene};
use self::describe::{describe, test_id_among};
use super::dates::read_compact;
use super::names::Names;
use super::send::with_action;
use super::{
    Denial, Dialect, GivesUp, Options, OrderApi, OutRequest, RawRequest, Reply, Sending, Unchecked, read_word,
};
use crate::query::Pair;
use crate::signature::{Keys, Signed, Verified};
use spid_hook::callback::{Action, Callback, Outcome, Parameters, ValidationIssue};
use spid_hook::time::plus_millis;

/// Delivery limit: a create is sent again once an hour for three hours; then the order has failed.
/// Polling has no documented limit.
const DELIVERY_LIMIT: u32 = 3;

/// Delivery limit for license codes: every two minutes, 60 times
/// (…/accessg-marketplace/zh-cn_topic_0070649167.html).
const LICENSE_DELIVERY_LIMIT: u32 = 60;

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
        &directory::PATH_SUFFIXES
    }

    fn delivery_limit(&self, callback: &Callback) -> Option<u32> {
        match callback.action {
            // Polling has no limit.
            Action::Query => None,
            _ if callback.externally_provisioned => Some(LICENSE_DELIVERY_LIMIT),
            _ => Some(DELIVERY_LIMIT),
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
            "POST" if directory::is_directory_message(request) => directory::parts(request, now),
            "POST" => v2::parts(request, now),
            "GET" => v1::parts(request),
            _ => Err(Denial::method(request, "POST, GET")),
        }
    }

    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback {
        let signer = verified.signer();
        let Unchecked { parameters, sent_at, nonce } = verified.into_payload();
        // Directory messages name no activity; their members identify them.
        let word = match (read_word(&parameters, ACTIVITY), directory::kind(&parameters)) {
            ("", Some(kind)) => kind.to_owned(),
            (activity, _) => activity.to_owned(),
        };
        let (action, issue) = action::parse(&word, &parameters);
        let mut callback = NAMES.fill(action, &word, parameters, options);
        // The order line names the purchase only on a create: `describe` sets it there.
        callback.subject.order_biz_id = None;
        callback.sent_at = sent_at;
        callback.nonce = nonce;
        callback.test = callback.parameters.get(TEST_FLAG) == Some("1");
        describe(&mut callback);
        if v1::is_of(&callback) {
            callback.order_details = v1::contact(&callback.parameters, &signer, options.field_cipher);
        }
        // Only version 1.0 has no nonce, and only its token does not mark the end of a value.
        if callback.nonce.is_none() {
            callback.issues.extend(v1::ambiguous(&callback.parameters));
        }
        if directory::is_kind(&word) {
            match directory::typed(&word, &callback.parameters) {
                Ok(body) => callback.body = Some(body),
                Err(issue) => callback.issues.push(issue),
            }
            // A test message may arrive before any instance exists, so its instance id cannot be looked up.
            callback.subject.instance_id = callback.subject.instance_id.filter(|_| !callback.test);
        }
        NAMES.check(&mut callback, action::is_dated(&word, action));
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

    fn order_api(&self) -> Option<&'static OrderApi> {
        Some(&order::ORDER_API)
    }

    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest {
        // Directory messages have no activity, so pass the parameters without it.
        if directory::is_kind(action) {
            return directory::request(parameters, keys, send);
        }
        let pairs = with_action(ACTIVITY, action, parameters);
        if v1::is_v1(&pairs) { v1::request(pairs, keys, send) } else { v2::request(&pairs, keys, send) }
    }
}

fn missing(name: &str) -> ValidationIssue {
    ValidationIssue::MissingParameter { name: name.to_owned() }
}

fn unknown(name: &str) -> ValidationIssue {
    ValidationIssue::UnknownValue { name: name.to_owned() }
}

/// Returns the instance ids of a query, the only activity that may name several.
fn ids(parameters: &Parameters) -> impl Iterator<Item = &str> {
    let ids = parameters.filled(INSTANCE_ID).unwrap_or_default().split(',').map(str::trim);
    ids.filter(|id| !id.is_empty())
}

fn one_query_each(callback: &Callback) -> Vec<Callback> {
    let mut queries: Vec<Callback> = Vec::new();
    for id in ids(&callback.parameters) {
        // An id that is named twice gets one part only.
        if queries.iter().any(|query| query.subject.instance_id.as_deref() == Some(id)) {
            continue;
        }
        let renamed = callback.parameters.iter().map(|(name, value)| {
            (name.to_owned(), if name == INSTANCE_ID { id.to_owned() } else { value.to_owned() })
        });
        let mut query = Callback { parameters: renamed.collect(), ..callback.clone() };
        // Only the first part takes the nonce, because a nonce can be consumed only once.
        query.nonce = query.nonce.filter(|_| queries.is_empty());
        query.subject.instance_id = Some(id.to_owned());
        query.marketplace_instance_id = test_id_among(&query);
        queries.push(query);
    }
    queries
}

#[cfg(test)]
mod tests;

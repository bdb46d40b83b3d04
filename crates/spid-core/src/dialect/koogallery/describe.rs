//! The members of a callback that the parameter names alone do not determine.

use sha2::{Digest, Sha256};

use super::super::text_of;
use super::action::ends_trial;
use super::{INSTANCE_ID, TEST_ID, v1};
use crate::limits::NAME_MAX_BYTES;
use spid_hook::callback::{Action, Callback, Parameters};
use spid_hook::json::Json;

/// Sets the members that the parameter names alone do not determine.
pub(super) fn describe(callback: &mut Callback) {
    // Version 1.0 writes the flag as 0 or 1, which the neutral reading does not know.
    callback.trial = match callback.parameters.filled(v1::TRIAL_FLAG) {
        Some("1") => Some(true),
        Some("0") => Some(false),
        _ => callback.trial,
    };
    match callback.action {
        Action::Create => {
            callback.subject.order_biz_id = purchase(&callback.parameters);
            callback.marketplace_instance_id = text_of(&callback.parameters, "businessId")
                .filter(|id| id != "0" && id.len() <= NAME_MAX_BYTES);
        }
        // A list of ids is not a name; each part gets its own id when the query is split.
        Action::Query => {
            let id = text_of(&callback.parameters, INSTANCE_ID);
            callback.subject.instance_id = id.filter(|id| !id.contains(','));
        }
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
        callback.items = v1::items(&callback.parameters);
    }
    if callback.action_name == "changeInstanceCheck" {
        describe_check(callback);
    }
    if callback.action_name.contains("LicenseCode") {
        // The marketplace creates and issues the license codes itself, so there is no create.
        callback.subject.instance_id = text_of(&callback.parameters, "license");
        callback.externally_provisioned = true;
    }
    if callback.test {
        let order = callback.subject.order_biz_id.as_deref().filter(|_| callback.action == Action::Create);
        callback.marketplace_instance_id = order.map(test_id).or_else(|| test_id_among(callback));
    }
}

/// Sets the members of a check. Every repetition of a check needs a new answer, so its nonce is its request id.
pub(super) fn describe_check(callback: &mut Callback) {
    let target = callback.parameters.filled("productInfo");
    let target = target.and_then(|text| Json::read(text.as_bytes()).ok());
    callback.product = member(target.as_ref(), "productId");
    callback.sku = member(target.as_ref(), "skuCode");
    callback.request_id = callback.nonce.as_ref().map(|nonce| nonce.nonce.clone());
}

fn member(target: Option<&Json>, name: &str) -> Option<String> {
    target?.get(name)?.as_text().map(str::to_owned)
}

/// Returns the id of a purchase: its order with the order line.
/// With pay-per-use one order creates an instance for each billing item, so the product is used. Otherwise, if both
/// are given, both count, because two purchases must never get the same id.
pub(super) fn purchase(parameters: &Parameters) -> Option<String> {
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
pub(super) fn test_id(order: &str) -> String {
    let digest = hex::encode(Sha256::digest(order.as_bytes()));
    format!("{TEST_ID}{}", digest.get(..32).unwrap_or_default())
}

/// Returns the test order's instance id, if the callback is about a test order.
pub(super) fn test_id_among(callback: &Callback) -> Option<String> {
    let id = callback.subject.instance_id.as_ref();
    id.filter(|id| callback.test && id.starts_with(TEST_ID)).cloned()
}

//! Order lookup: asks the marketplace what was ordered.
//!
//! Version 2.0 names the order, but does not describe it. Buyer, product, SKU and term of a purchase, and the SKU
//! of an upgrade, need an order lookup.
//!
//! Source: "Query order", support.huaweicloud.com/accessg-marketplace/zh-cn_topic_0070649350.html. We could read
//! the page's tables only in part. So everything an order contains is kept in `order_details`, with or without a
//! neutral name.

use super::super::dates::read_compact;
use super::super::{DetailsError, OrderApi, OrderLookup};
use super::{ACTIVITY, v1};
use spid_hook::callback::{Action, Callback, Expiry, Parameters};
use spid_hook::json::Json;

/// Base URL of the site for China. The others are mkt-intl.myhuaweicloud.com and mkt.myhuaweicloud.eu.
const HOST: &str = "https://mkt.myhuaweicloud.com";
const PATH: &str = "/api/mkp-openapi-public/global/v1/order/query";

pub(super) static ORDER_API: OrderApi =
    OrderApi { url: HOST, lookup: order_lookup, add_details: add_order_details };

fn order_lookup(callback: &Callback) -> Option<OrderLookup> {
    // Only version 2.0 needs a lookup, and only once: `order_details` is set afterwards, and 1.0 has a `timeStamp`.
    let is_asked_for = matches!(callback.action, Action::Create | Action::Upgrade)
        && callback.order_details.is_none()
        && callback.sku.is_none()
        && callback.parameters.get(ACTIVITY).is_some()
        && callback.parameters.get(v1::TIME_STAMP).is_none();
    let order = callback.order_id.clone().filter(|_| is_asked_for)?;
    let mut query = vec![("orderId".to_owned(), order)];
    let line = callback.parameters.filled("orderLineId");
    query.extend(line.map(|line| ("orderLineId".to_owned(), line.to_owned())));
    Some(OrderLookup { path: PATH, query })
}

fn add_order_details(callback: &mut Callback, status: u16, body: &[u8]) -> Result<(), DetailsError> {
    let answer = Json::read(body).unwrap_or_default();
    check(status, &answer)?;
    let order = answer.get("orderInfo").filter(|order| matches!(order, Json::Object(_)));
    let order = order.ok_or_else(|| later("the marketplace's answer contains no order"))?;
    // Check everything before the first change: after an error the callback must be unchanged.
    if text(order, "orderId") != callback.order_id {
        return Err(later("the marketplace's answer names another order than the callback"));
    }
    let line = line_of(callback, order).ok_or_else(|| later(no_line(callback)))?;
    let product = product_of(callback, line).ok_or_else(|| later(no_product(callback)))?;
    let sku =
        text(product, "skuCode").ok_or_else(|| later("the product of the order line has no `skuCode`"))?;
    callback.sku = Some(sku);
    callback.product = text(product, "productId").or_else(|| callback.product.take());
    if let Some(quantity) = text(product, "linearValue") {
        callback.items.insert("linearValue".to_owned(), quantity);
    }
    // An upgrade keeps its buyer, trial flag and term; only a create takes them from the order.
    if callback.action == Action::Create {
        callback.buyer = order
            .get("buyerInfo")
            .and_then(|buyer| text(buyer, "customerId"))
            .or_else(|| callback.buyer.take());
        callback.trial = text(order, "orderType").map(|kind| kind == "TRIAL").or(callback.trial);
        // Order details have dates in UTC, in the compact form.
        callback.expires_on = text(line, "expireTime").map(|raw| {
            let at = read_compact(&raw, &jiff::tz::TimeZone::UTC);
            Expiry { raw, at }
        });
    }
    callback.order_details = Some(facts(order, line, product));
    Ok(())
}

fn later(text: &str) -> DetailsError {
    DetailsError::Later(text.to_owned())
}

/// Checks the answer's code. Codes have the same ending under both of the vendor's prefixes (`MKT`, formerly
/// `CBC`).
fn check(status: u16, answer: &Json) -> Result<(), DetailsError> {
    let code = text(answer, "resultCode").or_else(|| text(answer, "error_code")).unwrap_or_default();
    // The code comes from outside, so show only a short, plain part of it.
    let shown: String = code.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').take(16).collect();
    let said = format!("the order lookup failed: HTTP {status}, code `{shown}`");
    let number = code.rsplit('.').next().unwrap_or_default();
    match (status, number) {
        (200, "0000" | "000000") => Ok(()),
        (401 | 403, _) | (_, "0150" | "0151" | "0154") => Err(DetailsError::Misconfigured(format!(
            "{said}; check the seller's access key and secret in `orders`"
        ))),
        _ => Err(DetailsError::Later(said)),
    }
}

/// Returns a member as text. Numbers and booleans become text; an empty text counts as absent.
fn text(value: &Json, name: &str) -> Option<String> {
    value.get(name)?.to_text().filter(|text| !text.is_empty())
}

/// Returns a list, or a list of one if the answer has a single object in its place.
fn list<'a>(value: &'a Json, name: &str) -> &'a [Json] {
    match value.get(name) {
        Some(Json::List(list)) => list,
        Some(one @ Json::Object(_)) => std::slice::from_ref(one),
        _ => &[],
    }
}

fn line_of<'a>(callback: &Callback, order: &'a Json) -> Option<&'a Json> {
    let lines = list(order, "orderLine");
    match callback.parameters.filled("orderLineId") {
        Some(wanted) => lines.iter().find(|line| text(line, "orderLineId").as_deref() == Some(wanted)),
        // Without a line id, only an order with a single line is unambiguous.
        None => lines.first().filter(|_| lines.len() == 1),
    }
}

fn no_line(callback: &Callback) -> &'static str {
    match callback.parameters.filled("orderLineId") {
        Some(_) => "the order has no line with the callback's `orderLineId`",
        None => "the order does not have exactly one line, and the callback has no `orderLineId`",
    }
}

fn product_of<'a>(callback: &Callback, line: &'a Json) -> Option<&'a Json> {
    let products = list(line, "productInfo");
    match callback.product.as_deref() {
        Some(wanted) => products.iter().find(|product| text(product, "productId").as_deref() == Some(wanted)),
        None => products.first(),
    }
}

fn no_product(callback: &Callback) -> &'static str {
    match callback.product {
        Some(_) => "the order line does not contain the callback's product",
        None => "the order line has no product",
    }
}

/// Returns every text of the order, under the name it has there.
fn facts(order: &Json, line: &Json, product: &Json) -> Parameters {
    let mut facts = Vec::new();
    let buyer = order.get("buyerInfo").unwrap_or(&Json::Null);
    for (prefix, section) in [("", order), ("buyer.", buyer), ("line.", line), ("product.", product)] {
        let Json::Object(members) = section else { continue };
        let names = members.keys();
        facts.extend(names.filter_map(|name| Some((format!("{prefix}{name}"), text(section, name)?))));
    }
    for (prefix, section) in [("extend.", order), ("line.extend.", line)] {
        for pair in list(section, "extendParams") {
            facts.extend(
                text(pair, "name")
                    .map(|name| (format!("{prefix}{name}"), text(pair, "value").unwrap_or_default())),
            );
        }
    }
    facts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(action: Action) -> Callback {
        let mut callback = Callback::new(action, "x");
        callback.order_id = Some("CS1".into());
        let pairs = [("activity", "newInstance"), ("orderId", "CS1"), ("orderLineId", "CS1-000001")];
        callback.parameters =
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        callback
    }

    fn an_answer() -> Value {
        json!({
            "resultCode": "MKT.0000", "resultMsg": "success",
            "orderInfo": {
                "orderId": "CS1", "orderType": "NEW", "createTime": "20260101000000",
                "orderLine": [
                    {"orderLineId": "CS1-000002", "chargingMode": "ONE_TIME", "productInfo": []},
                    {"orderLineId": "CS1-000001", "chargingMode": "PERIOD", "periodType": "year", "periodNumber": 1,
                     "expireTime": "20270101000000",
                     "productInfo": [{"productId": "OFFI1", "skuCode": "sku-1", "linearValue": 5, "productName": "Desk"}]}
                ],
                "buyerInfo": {"customerId": "buyer-1", "customerName": "Acme"},
                "extendParams": [{"name": "region", "value": "cn-north-4"}]
            }
        })
    }

    fn order_details(callback: &mut Callback, answer: &Value) -> Result<(), DetailsError> {
        add_order_details(callback, 200, answer.to_string().as_bytes())
    }

    #[test]
    fn a_purchase_learns_what_was_bought() {
        let mut callback = asked(Action::Create);
        let order_lookup = order_lookup(&callback).unwrap();
        assert_eq!(crate::query::encode(&order_lookup.query), "orderId=CS1&orderLineId=CS1-000001");
        order_details(&mut callback, &an_answer()).unwrap();
        assert_eq!(callback.buyer.as_deref(), Some("buyer-1"));
        assert_eq!(callback.product.as_deref(), Some("OFFI1"));
        assert_eq!(callback.sku.as_deref(), Some("sku-1"));
        assert_eq!(callback.trial, Some(false));
        assert_eq!(callback.items.get("linearValue").map(String::as_str), Some("5"));
        assert_eq!(callback.expires_on.as_ref().unwrap().at.unwrap().to_string(), "2027-01-01T00:00:00Z");
        let facts = callback.order_details.clone().unwrap();
        assert_eq!(facts.get("extend.region"), Some("cn-north-4"));
        assert_eq!(facts.get("line.chargingMode"), Some("PERIOD"));
        assert_eq!(facts.get("buyer.customerName"), Some("Acme"));
        assert_eq!(super::order_lookup(&callback), None, "it is asked once");
    }

    #[test]
    fn quantities_and_ids_keep_their_digits() {
        let text = an_answer().to_string().replace("\"linearValue\":5", "\"linearValue\":5.10");
        let text = text.replace("\"buyer-1\"", "202611300000000000000001");
        let mut callback = asked(Action::Create);
        add_order_details(&mut callback, 200, text.as_bytes()).unwrap();
        assert_eq!(callback.items.get("linearValue").map(String::as_str), Some("5.10"));
        assert_eq!(callback.buyer.as_deref(), Some("202611300000000000000001"));
        assert_eq!(callback.order_details.unwrap().get("product.linearValue"), Some("5.10"));
    }

    #[test]
    fn an_upgrade_learns_its_sku_and_keeps_its_term() {
        let mut callback = asked(Action::Upgrade);
        order_details(&mut callback, &an_answer()).unwrap();
        assert_eq!(callback.sku.as_deref(), Some("sku-1"));
        assert_eq!((callback.expires_on, callback.buyer, callback.trial), (None, None, None));
    }

    #[test]
    fn what_cannot_be_used_changes_nothing() {
        let with = |change: &dyn Fn(&mut Value)| {
            let mut answer = an_answer();
            change(&mut answer);
            answer
        };
        for (answer, status) in [
            (json!({"resultCode": "MKT.9003"}), 500),
            (json!({"resultCode": "MKT.0250"}), 406),
            (json!({"resultCode": "MKT.0000"}), 200),
            (Value::Null, 200),
            (with(&|answer| answer["orderInfo"]["orderId"] = json!("CS2")), 200),
            (with(&|answer| answer["orderInfo"]["orderLine"] = json!([])), 200),
            (with(&|answer| answer["orderInfo"]["orderLine"][1]["productInfo"] = json!([])), 200),
            (
                with(&|answer| answer["orderInfo"]["orderLine"][1]["productInfo"][0]["skuCode"] = json!("")),
                200,
            ),
        ] {
            let mut callback = asked(Action::Create);
            let error = add_order_details(&mut callback, status, answer.to_string().as_bytes()).unwrap_err();
            assert!(matches!(error, DetailsError::Later(_)), "{error:?}");
            assert_eq!(callback, asked(Action::Create));
        }
        let mut callback = asked(Action::Create);
        for (status, code) in [(401, "MKT.0150"), (403, ""), (200, "CBC.0154")] {
            let body = json!({"resultCode": code}).to_string();
            let error = add_order_details(&mut callback, status, body.as_bytes()).unwrap_err();
            assert!(matches!(error, DetailsError::Misconfigured(_)), "{error:?}");
        }
    }

    #[test]
    fn what_says_it_all_is_not_asked_for() {
        for (action, sku, time_stamp) in [
            (Action::Renew, None, None),
            (Action::Create, Some("s"), None),
            (Action::Create, None, Some("1")),
        ] {
            let mut callback = asked(action);
            callback.sku = sku.map(str::to_owned);
            if let Some(stamp) = time_stamp {
                callback.parameters = std::iter::once(("timeStamp".to_owned(), stamp.to_owned())).collect();
            }
            assert_eq!(order_lookup(&callback), None, "{action}");
        }
    }
}

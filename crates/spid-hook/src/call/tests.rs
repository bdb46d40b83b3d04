//! Tests of calls, and calls for the tests of other modules.

use serde_json::{Value, json};

use super::*;
use crate::callback::Callback;
use crate::instance::State;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(crate) fn an_instance() -> Instance {
    Instance {
        id: Some("i-1".into()),
        order_biz_id: Some("biz-1".into()),
        state: State::Active,
        account: "acme".into(),
        endpoint: "alibaba-cn".into(),
        buyer: Some("10001".into()),
        product: Some("cmgj000001".into()),
        sku: Some("basic".into()),
        order_id: Some("order-1".into()),
        trial: Some(false),
        expires_on: Some(at("2026-06-01T00:00:00Z")),
        expires_on_raw: Some("2026-06-01 08:00:00".into()),
        items: BTreeMap::from([("disk".into(), "10".into()), ("seats".into(), "5".into())]),
        began: true,
        tombstone: false,
        adopted: false,
        converted: false,
        claimed_at: None,
        tenant: None,
        created_at: at("2026-01-01T00:00:00Z"),
        updated_at: at("2026-01-01T00:00:05Z"),
    }
}

pub(crate) fn a_call(callback: &Callback, instance: Option<&Instance>) -> Call {
    Call::new(CallFacts {
        callback,
        instance,
        idempotency_key: "key-1".into(),
        attempt: 1,
        deadline: at("2026-01-01T00:10:00Z"),
        received_at: at("2026-01-01T00:00:00Z"),
        account: "acme",
        endpoint: "alibaba-cn",
        dashscope_euid: None,
    })
    .unwrap()
}

fn sent(action: Action, expires_on: &str) -> Callback {
    Callback {
        expires_on: Some(Expiry { raw: expires_on.into(), at: Some(at(expires_on)) }),
        ..Callback::new(action, action.as_str())
    }
}

fn json(call: &Call) -> Value {
    serde_json::to_value(call).unwrap()
}

#[test]
fn a_create_call_as_json() {
    let mut callback = sent(Action::Create, "2026-06-01T00:00:00Z");
    callback.action_name = "createInstance".into();
    callback.order_id = Some("order-1".into());
    callback.buyer = Some("10001".into());
    callback.product = Some("cmgj000001".into());
    callback.sku = Some("basic".into());
    callback.items = BTreeMap::from([("seats".into(), "5".into())]);
    callback.parameters = [("aliUid".to_owned(), "10001".to_owned())].into_iter().collect();
    let instance = Instance {
        id: None,
        state: State::Pending,
        began: false,
        expires_on: None,
        expires_on_raw: None,
        items: BTreeMap::new(),
        ..an_instance()
    };
    let expected = json!({
        "schema": "spid.hook/1", "action": "create",
        "idempotency_key": "key-1", "attempt": 1,
        "deadline": "2026-01-01T00:10:00Z", "received_at": "2026-01-01T00:00:00Z",
        "account": "acme", "endpoint": "alibaba-cn",
        "action_name": "createInstance", "order_id": "order-1",
        "parameters": {"aliUid": "10001"}, "dashscope_euid": null, "traceparent": null,
        "instance": {
            "id": null, "order_biz_id": "biz-1", "state": "pending", "account": "acme",
            "endpoint": "alibaba-cn", "buyer": "10001", "product": "cmgj000001", "sku": "basic",
            "order_id": "order-1", "trial": false, "expires_on": null, "expires_on_raw": null,
            "items": {}, "began": false, "tombstone": false, "adopted": false,
            "claimed_at": null, "tenant": null,
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:05Z"
        },
        "buyer": "10001", "product": "cmgj000001", "sku": "basic", "trial": null,
        "expires_on": {"raw": "2026-06-01T00:00:00Z", "at": "2026-06-01T00:00:00Z"},
        "items": {"seats": "5"}
    });
    assert_eq!(json(&a_call(&callback, Some(&instance))), expected);
}

#[test]
fn an_upgrade_call_as_json_has_before_after_and_difference() {
    let mut callback = Callback::new(Action::Upgrade, "upgradeInstance");
    callback.sku = Some("pro".into());
    callback.items = BTreeMap::from([("seats".into(), "9".into()), ("nodes".into(), "2".into())]);
    let value = json(&a_call(&callback, Some(&an_instance())));
    let got =
        ["action", "sku", "previous_sku", "items", "previous_items", "changes"].map(|name| &value[name]);
    assert_eq!(got[..3], [&json!("upgrade"), &json!("pro"), &json!("basic")]);
    assert_eq!(got[3], &json!({"disk": "10", "nodes": "2", "seats": "9"}));
    assert_eq!(got[4], &json!({"disk": "10", "seats": "5"}));
    assert_eq!(got[5], &json!({"nodes": {"from": null, "to": "2"}, "seats": {"from": "5", "to": "9"}}));
    assert_eq!(value["instance"]["sku"], "basic");
}

#[test]
fn an_upgrade_that_names_no_sku_keeps_it() {
    let Call::Upgrade(call) = a_call(&Callback::new(Action::Upgrade, "x"), Some(&an_instance())) else {
        panic!("not an upgrade")
    };
    assert_eq!(call.sku.as_deref(), Some("basic"));
    assert!(call.changes.is_empty());
}

#[test]
fn a_renew_never_lowers_the_expiry_and_a_refund_does() {
    let instance = an_instance();
    let late = "2026-03-01T00:00:00Z";
    let Call::Renew(renew) = a_call(&sent(Action::Renew, late), Some(&instance)) else {
        panic!("not a renew")
    };
    assert_eq!(renew.expires_on, instance.expires_on);
    assert_eq!(renew.expires_on_raw.as_deref(), Some(late));
    assert!(!renew.thaws);
    let Call::RefundRenew(refund) = a_call(&sent(Action::RefundRenew, late), Some(&instance)) else {
        panic!("not a refund")
    };
    assert_eq!(refund.expires_on, Some(at(late)));
    assert_eq!(refund.previous_expires_on, instance.expires_on);
}

#[test]
fn a_renew_of_something_frozen_thaws_it() {
    let frozen = Instance { state: State::Frozen, expires_on: None, ..an_instance() };
    let Call::Renew(renew) = a_call(&sent(Action::Renew, "2027-01-01T00:00:00Z"), Some(&frozen)) else {
        panic!("not a renew")
    };
    assert!(renew.thaws);
    assert_eq!(renew.expires_on, Some(at("2027-01-01T00:00:00Z")));
    assert_eq!(renew.previous_expires_on, None);
}

#[test]
fn a_release_says_when_nobody_knows_what_exists() {
    let maybe = |began, id: Option<&str>| {
        let instance = Instance { began, id: id.map(str::to_owned), ..an_instance() };
        let Call::Release(call) = a_call(&Callback::new(Action::Release, "x"), Some(&instance)) else {
            panic!("not a release")
        };
        call.maybe_provisioned
    };
    assert!(maybe(true, None));
    assert!(!maybe(true, Some("i-1")));
    assert!(!maybe(false, None));
}

#[test]
fn only_payment_and_other_go_without_an_instance() {
    for action in Action::ALL {
        let callback = Callback::new(action, "x");
        let facts = CallFacts {
            callback: &callback,
            instance: None,
            idempotency_key: "key-1".into(),
            attempt: 1,
            deadline: Timestamp::UNIX_EPOCH,
            received_at: Timestamp::UNIX_EPOCH,
            account: "acme",
            endpoint: "e",
            dashscope_euid: None,
        };
        let free = matches!(action, Action::Payment | Action::Query | Action::Other);
        assert_eq!(Call::new(facts).is_ok(), free, "{action}");
    }
}

#[test]
fn a_call_is_routed_as_its_callback_and_instance_said() {
    let bare = Instance { product: None, sku: None, buyer: None, ..an_instance() };
    for action in [Action::Create, Action::Payment, Action::Other] {
        let mut callback = Callback::new(action, "x");
        callback.product = Some("p".into());
        callback.sku = Some("s".into());
        callback.buyer = Some("b".into());
        for instance in [&bare, &an_instance()] {
            let call = a_call(&callback, Some(instance));
            assert_eq!(call.subject(), Subject::new("alibaba-cn", &callback, Some(instance)), "{action}");
        }
    }
}

fn kept(call: &Call) {
    let text = serde_json::to_string(call).unwrap();
    assert_eq!(Call::read(text.as_bytes()).as_ref(), Ok(call), "{text}");
    assert_eq!(serde_json::from_str::<Call>(&text).unwrap(), *call);
    assert_eq!(&serde_json::from_value::<Call>(serde_json::to_value(call).unwrap()).unwrap(), call);
    assert_eq!(serde_json::to_string(&Call::read(text.as_bytes()).unwrap()).unwrap(), text);
}

#[test]
fn every_action_is_read_as_it_was_written() {
    for action in Action::ALL {
        kept(&a_call(&Callback::new(action, "x"), Some(&an_instance())));
        kept(&a_call(&sent(action, "2026-06-01T00:00:00Z"), Some(&Instance { id: None, ..an_instance() })));
    }
    kept(&a_call(&Callback::new(Action::Payment, "x"), None));
    kept(&a_call(&Callback::new(Action::Other, "x"), None));
}

#[test]
fn unknown_members_are_ignored_and_an_unknown_version_is_its_own_error() {
    let call = a_call(&sent(Action::Create, "2026-06-01T00:00:00Z"), Some(&an_instance()));
    let mut value = json(&call);
    value["later"] = json!({"a": [1.5]});
    value["instance"]["later"] = json!("x");
    let read = |value: &Value| Call::read(value.to_string().as_bytes());
    assert_eq!(read(&value), Ok(call));
    value["schema"] = json!("spid.hook/2");
    value["instance"] = json!("the version comes first");
    assert_eq!(read(&value), Err(UnreadableCall::Schema("spid.hook/2".into())));
    value["schema"] = json!(SCHEMA);
    value["action"] = json!("\u{1b}teleport");
    assert_eq!(read(&value), Err(UnreadableCall::Action("\\u{1b}teleport".into())));
}

#[test]
fn an_error_names_the_fault_and_no_value() {
    let mut value = json(&a_call(&Callback::new(Action::Expire, "x"), Some(&an_instance())));
    value["attempt"] = json!("fake \"canary\"");
    let error = Call::read(value.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("the expire call cannot be read") && !error.contains("canary"), "{error}");
    value.as_object_mut().unwrap().remove("attempt");
    let error = Call::read(value.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("missing field `attempt`"), "{error}");
    assert_eq!(Call::read(b"{"), Err(UnreadableCall::NotJson { line: 1, column: 1 }));
    assert_eq!(Call::read(b"[1]"), Err(UnreadableCall::NotACall));
    assert_eq!(Call::read(br#"{"action": "create"}"#), Err(UnreadableCall::NotACall));
}

#[test]
fn numbers_of_a_body_keep_their_digits() {
    let call = a_call(&Callback::new(Action::Other, "x"), None);
    let body = |text: &str| {
        let mut json = serde_json::to_string(&call).unwrap();
        json.insert_str(json.len() - 1, &format!(r#","body":{text}"#));
        let Call::Other(call) = Call::read(json.as_bytes()).unwrap() else { panic!("not another") };
        call.body.unwrap()
    };
    for same in ["0", "-7", "18446744073709551615", "0.1", "2.5e-7", "[1.5,{\"a\":null}]", "null"] {
        assert_eq!(body(same).to_string(), same);
    }
    for text in ["202611300000000000000001", "1.50", "0.30000000000000004000"] {
        assert_eq!(body(&format!("[{text}]")), json!([text]));
    }
}

mod round_trip {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z0-9-]{0,12}", any::<String>()]
    }

    fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
        prop::collection::btree_map(text(), text(), 0..4)
    }

    fn instant() -> impl Strategy<Value = Timestamp> {
        (-62_135_596_800_000_i64..253_402_000_000_000)
            .prop_map(|millis| Timestamp::from_millisecond(millis).unwrap())
    }

    fn body() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            prop::num::f64::NORMAL.prop_map(Value::from),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(text(), inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    prop_compose! {
        fn instance()(
            names in prop::array::uniform7(prop::option::of(text())),
            plain in prop::array::uniform2(text()),
            flags in prop::array::uniform4(any::<bool>()),
            state in prop::sample::select(State::ALL.to_vec()),
            trial in any::<Option<bool>>(),
            ends in prop::array::uniform2(prop::option::of(instant())),
            times in prop::array::uniform2(instant()),
            raw in prop::option::of(text()),
            items in texts(),
        ) -> Instance {
            let [id, order_biz_id, buyer, product, sku, order_id, tenant] = names;
            let ([account, endpoint], [began, tombstone, adopted, converted]) = (plain, flags);
            let ([expires_on, claimed_at], [created_at, updated_at]) = (ends, times);
            Instance {
                id, order_biz_id, state, account, endpoint, buyer, product, sku, order_id, trial, expires_on,
                expires_on_raw: raw, items, began, tombstone, adopted, converted, claimed_at, tenant, created_at,
                updated_at,
            }
        }
    }

    prop_compose! {
        fn callback()(
            action in prop::sample::select(Action::ALL.to_vec()),
            action_name in text(),
            names in prop::array::uniform5(prop::option::of(text())),
            flags in prop::array::uniform2(any::<Option<bool>>()),
            ends in prop::option::of((text(), prop::option::of(instant()))),
            items in texts(),
            parameters in texts(),
            order in prop::option::of(texts()),
            body in prop::option::of(body()),
        ) -> Callback {
            let ([order_id, request_id, buyer, product, sku], [trial, refund]) = (names, flags);
            Callback {
                order_id, request_id, buyer, product, sku, trial, refund, items, body,
                expires_on: ends.map(|(raw, at)| Expiry { raw, at }),
                parameters: parameters.into_iter().collect(),
                order_details: order.map(|order| order.into_iter().collect()),
                ..Callback::new(action, action_name)
            }
        }
    }

    proptest! {
        #[test]
        fn every_call_survives_its_json(
            callback in callback(),
            instance in instance(),
            words in prop::array::uniform3(text()),
            euid in prop::option::of(text()),
            attempt in any::<u32>(),
            times in prop::array::uniform2(instant()),
            with_key in any::<bool>(),
        ) {
            let [account, endpoint, key] = &words;
            let key = if with_key { "01890a5d-ac96-774b-bcce-b302099a8057" } else { key.as_str() };
            let free = matches!(callback.action, Action::Payment | Action::Query | Action::Other);
            let instance = Some(&instance).filter(|instance| !(free && instance.began));
            let call = Call::new(CallFacts {
                callback: &callback, instance, idempotency_key: key.to_owned(), attempt, deadline: times[0],
                received_at: times[1], account, endpoint, dashscope_euid: euid,
            }).unwrap();
            kept_in_text(&call);
        }
    }

    /// A value of `serde_json` reads floats less exactly, so only the text is compared here.
    fn kept_in_text(call: &Call) {
        let text = serde_json::to_string(call).unwrap();
        assert_eq!(Call::read(text.as_bytes()).as_ref(), Ok(call), "{text}");
    }
}

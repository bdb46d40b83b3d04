//! Tests: the meaning of KooGallery's requests, and the replies to them.

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::super::by_name;
use super::v2::read_body;
use super::*;
use crate::limits::{NONCED_WINDOW_MS, QUERY_MAX_COUNT};
use crate::signature::{Cipher, Parts};
use spid_hook::Secret;
use spid_hook::callback::Answer;
use spid_hook::callback::Field;

const KEY: &str = "xxxxxxx";

fn now() -> Timestamp {
    Timestamp::from_millisecond(1_680_508_066_618).unwrap()
}

fn keys() -> Keys {
    Keys::single(Secret::new(KEY)).unwrap()
}

fn receive(out: &OutRequest, at: Timestamp) -> Result<Callback, Denial> {
    let header = |name: &str| out.header(name);
    let raw =
        RawRequest { method: out.method, query: out.query.as_bytes(), header: &header, body: &out.body };
    let verified = KooGallery.parts(&raw, at)?.verify(&keys())?;
    Ok(KooGallery.callback(verified, &Options::default()))
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<Pair> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn understood(action: &str, parameters: &[(&str, &str)]) -> Callback {
    let out = KooGallery.request(action, &pairs(parameters), &keys(), &Sending::at(now()));
    receive(&out, now()).unwrap()
}

const CREATE: [(&str, &str); 3] = [("businessId", "b-1"), ("orderId", "CS1"), ("orderLineId", "CS1-000001")];

#[test]
fn a_create_is_known_by_its_order_line_and_named_by_its_first_call() {
    let first = understood("newInstance", &CREATE);
    assert_eq!(first.action, Action::Create);
    assert_eq!(first.subject.order_biz_id.as_deref(), Some("CS1/CS1-000001"));
    assert_eq!(
        (first.marketplace_instance_id.as_deref(), first.order_id.as_deref()),
        (Some("b-1"), Some("CS1"))
    );
    assert!(!first.test && first.issues.is_empty());
    assert_eq!(first.nonce.as_ref().unwrap().until, plus_millis(now(), NONCED_WINDOW_MS));
    let again = understood("newInstance", &[("businessId", "b-2"), CREATE[1], CREATE[2]]);
    assert_eq!(again.subject, first.subject);
    assert_ne!(again.nonce, first.nonce);
}

#[test]
fn pay_per_use_is_known_by_its_product() {
    let biz = |parameters: &[(&str, &str)]| understood("newInstance", parameters).subject.order_biz_id;
    let order = ("orderId", "CS1");
    assert_eq!(biz(&[order, ("productId", "P")]).as_deref(), Some("CS1/P"));
    let line = ("orderLineId", "L");
    assert_eq!(
        biz(&[order, line, ("productId", "P"), ("chargingMode", "ON_DEMAND")]).as_deref(),
        Some("CS1/P")
    );
    assert_eq!(biz(&[order, line, ("productId", "P")]).as_deref(), Some("CS1/L/P"));
    assert_eq!(biz(&[line, ("productId", "P")]), None);
    let issues = understood("newInstance", &[order]).issues;
    assert_eq!(issues, [missing("orderLineId")]);
}

#[test]
fn every_activity_means_what_the_guide_says() {
    let id = (INSTANCE_ID, "b-1");
    let date = ("expireTime", "20270101000000");
    let order = ("orderId", "CS2");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Action);
    let cases: [Case<'_>; 15] = [
        ("refreshInstance", &[id, date, order, ("scene", "RENEWAL")], Action::Renew),
        ("refreshInstance", &[id, date, order, ("scene", "TRIAL_TO_FORMAL")], Action::Renew),
        ("refreshInstance", &[id, date, order, ("scene", "RENEWAL_CHANGE")], Action::Renew),
        ("refreshInstance", &[id, date, order, ("scene", "UNSUBSCRIBE_RENEWAL_PERIOD")], Action::RefundRenew),
        ("updateInstanceStatus", &[id, ("status", "FREEZE")], Action::Expire),
        ("updateInstanceStatus", &[id, ("status", "UNFREEZE")], Action::Renew),
        ("releaseInstance", &[id], Action::Release),
        ("upgradeInstance", &[id, order], Action::Upgrade),
        ("queryInstance", &[id], Action::Query),
        ("changeInstanceCheck", &[id, ("productInfo", "{\"productId\":\"P\"}")], Action::Other),
        ("orderNotify", &[order], Action::Payment),
        ("refreshLicenseCode", &[("license", "l"), date, order, ("scene", "RENEWAL")], Action::Renew),
        ("updateLicenseCodeStatus", &[("license", "l"), ("status", "FREEZE")], Action::Expire),
        ("releaseLicenseCode", &[("license", "l")], Action::Release),
        ("getLicenseAsync", &[id, ("eventId", "e-1")], Action::Other),
    ];
    for (word, parameters, action) in cases {
        let callback = understood(word, parameters);
        assert_eq!((callback.action, callback.action_name.as_str()), (action, word));
        assert_eq!(callback.issues, [], "{word}");
        assert_eq!(callback.externally_provisioned, word.contains("LicenseCode"), "{word}");
        let changes = parameters.last() == Some(&("scene", "RENEWAL_CHANGE"));
        assert_eq!(callback.actions().count(), if changes { 2 } else { 1 }, "{word}");
        assert_eq!(KooGallery.split(callback).len(), 1);
    }
}

#[test]
fn what_the_guide_does_not_say_is_doubted() {
    let unknown = |name: &str| vec![ValidationIssue::UnknownValue { name: name.to_owned() }];
    let date = ("expireTime", "20270101000000");
    let id = (INSTANCE_ID, "b-1");
    assert_eq!(understood("refreshInstance", &[id, date, ("scene", "GIFT")]).issues, unknown("scene"));
    assert_eq!(understood("refreshInstance", &[id, date]).issues, unknown("scene"));
    assert_eq!(understood("updateInstanceStatus", &[id, ("status", "MELT")]).issues, unknown("status"));
    assert_eq!(understood("makeCoffee", &[]).issues, [ValidationIssue::UnknownAction]);
    assert_eq!(understood("queryInstance", &[]).issues, [missing(INSTANCE_ID)]);
    let many: Vec<String> = (0..=QUERY_MAX_COUNT).map(|n| format!("b-{n}")).collect();
    assert_eq!(understood("queryInstance", &[(INSTANCE_ID, &many.join(","))]).issues, unknown(INSTANCE_ID));
    let undated = understood("refreshInstance", &[id, ("expireTime", "soon"), ("scene", "RENEWAL")]);
    assert_eq!(undated.issues, [ValidationIssue::UnreadableDate { name: "expireTime".into() }]);
}

#[test]
fn a_poll_spends_no_budget() {
    let delivery_limit =
        |word: &str, parameters: &[(&str, &str)]| KooGallery.delivery_limit(&understood(word, parameters));
    assert_eq!(delivery_limit("newInstance", &CREATE), Some(DELIVERY_LIMIT));
    assert_eq!(delivery_limit("queryInstance", &[(INSTANCE_ID, "i")]), None);
    assert_eq!(delivery_limit("releaseLicenseCode", &[("license", "l")]), Some(LICENSE_DELIVERY_LIMIT));
}

#[test]
fn dates_are_utc_with_or_without_milliseconds() {
    let at = |text: &str| read_compact(text, &TimeZone::UTC).map(|at| at.to_string());
    assert_eq!(at("20221124023618").as_deref(), Some("2022-11-24T02:36:18Z"));
    assert_eq!(at("20221124023618256").as_deref(), Some("2022-11-24T02:36:18.256Z"));
    for wrong in
        ["", "2022112402361", "202211240236182", "20221124023618Z56", "20221324023618", "2022-11-24 0"]
    {
        assert_eq!(at(wrong), None, "{wrong}");
    }
}

#[test]
fn the_order_of_a_freeze_does_not_tell_it_from_the_next() {
    let freeze =
        understood("updateInstanceStatus", &[(INSTANCE_ID, "i"), ("status", "FREEZE"), ("orderId", "o")]);
    assert_eq!(freeze.order_id, None);
    assert_eq!(freeze.parameters.get("orderId"), Some("o"));
}

#[test]
fn a_trial_that_becomes_formal_is_none_any_more() {
    let date = ("expireTime", "20270101000000");
    let formal = understood("refreshInstance", &[(INSTANCE_ID, "i"), date, ("scene", "TRIAL_TO_FORMAL")]);
    assert_eq!(formal.trial, Some(false));
    assert_eq!(understood("refreshInstance", &[(INSTANCE_ID, "i"), date, ("scene", "RENEWAL")]).trial, None);
}

#[test]
fn a_renewal_that_changes_the_product_is_two_things() {
    let change = understood(
        "refreshInstance",
        &[
            (INSTANCE_ID, "i"),
            ("orderId", "o"),
            ("productId", "p-2"),
            ("expireTime", "20270101000000"),
            ("scene", RENEWAL_CHANGE),
        ],
    );
    assert_eq!(change.actions().collect::<Vec<_>>(), [Action::Renew, Action::Upgrade]);
    let both: Vec<Callback> = change.actions().map(|action| change.part(action)).collect();
    assert_eq!((both[0].product.as_deref(), both[1].product.as_deref()), (None, Some("p-2")));
    assert_eq!((both[0].expires_on.is_some(), both[1].expires_on.is_some()), (true, false));
    assert!((order::ORDER_API.lookup)(&both[0]).is_none() && (order::ORDER_API.lookup)(&both[1]).is_some());
    let order_details = Callback { sku: Some("s-2".into()), ..both[1].clone() };
    let whole = change.clone().with_part(&order_details);
    assert_eq!(Callback { sku: None, ..whole }, change, "what one part learned is all that changes");
}

#[test]
fn a_query_names_up_to_a_hundred() {
    let query = understood("queryInstance", &[(INSTANCE_ID, "a, b,,a,c")]);
    let each = KooGallery.split(query.clone());
    let ids: Vec<_> = each.iter().map(|one| one.subject.instance_id.clone().unwrap()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    assert_eq!(
        each[1].parameters.get(INSTANCE_ID),
        Some("b"),
        "each is the same question wherever it is asked"
    );
    assert_eq!(each.iter().filter(|one| one.nonce.is_some()).count(), 1, "the nonce is spent once");
    let outcomes = [app("https://a.example"), Outcome::NotYet, app("https://c.example")];
    let answered: Vec<_> = each.iter().cloned().zip(outcomes).collect();
    let told = body(&KooGallery.reply_to_all(&answered, &Options::default()));
    assert_eq!(told["resultCode"], "000000");
    assert_eq!(told["info"][1], json!({"instanceId": "c", "appInfo": {"frontEndUrl": "https://c.example"}}));
    let none: Vec<_> = each.into_iter().map(|one| (one, Outcome::NotYet)).collect();
    assert_eq!(body(&KooGallery.reply_to_all(&none, &Options::default()))["resultCode"], "000004");
}

#[test]
fn product_info_may_be_an_object_or_a_text() {
    for sent in ["{\"productId\":\"P\",\"skuCode\":\"S\"}", "{\"productId\": \"P\", \"skuCode\": \"S\"}"] {
        let check = understood("changeInstanceCheck", &[(INSTANCE_ID, "i"), ("productInfo", sent)]);
        assert_eq!((check.product.as_deref(), check.sku.as_deref()), (Some("P"), Some("S")), "{sent}");
        assert!(check.request_id.is_some(), "asked again it is another question");
    }
    let odd = understood("changeInstanceCheck", &[(INSTANCE_ID, "i"), ("productInfo", "everything")]);
    assert_eq!((odd.product, odd.issues), (None, vec![]));
}

#[test]
fn unknown_members_are_tolerated_and_handed_on() {
    let callback = understood(
        "newInstance",
        &[CREATE[0], CREATE[1], CREATE[2], ("buyerInfo", "{\"customerId\":\"7\"}")],
    );
    assert_eq!(callback.parameters.get("buyerInfo"), Some("{\"customerId\":\"7\"}"));
    assert_eq!(callback.issues, []);
}

#[test]
fn a_test_order_has_always_the_same_id_and_never_a_live_one() {
    let test = understood("newInstance", &[CREATE[0], CREATE[1], CREATE[2], (TEST_FLAG, "1")]);
    let id = test.marketplace_instance_id.clone().unwrap();
    assert!(test.test && id.starts_with(TEST_ID) && id.len() <= 64, "{id}");
    let again = understood("newInstance", &[("businessId", "b-9"), CREATE[1], CREATE[2], (TEST_FLAG, "1")]);
    assert_eq!(again.marketplace_instance_id.as_ref(), Some(&id));
    let query = understood("queryInstance", &[(INSTANCE_ID, &format!("{id},b-1")), (TEST_FLAG, "1")]);
    let known: Vec<_> = KooGallery.split(query).into_iter().map(|one| one.marketplace_instance_id).collect();
    assert_eq!(known, [Some(id), None]);
    for flag in ["0", "", "2"] {
        assert!(
            !understood("newInstance", &[CREATE[0], CREATE[1], CREATE[2], (TEST_FLAG, flag)]).test,
            "{flag}"
        );
    }
}

// ---- Answers ------------------------------------------------------------------------------------

fn body(reply: &Reply) -> Value {
    assert_eq!(reply.content_type, "application/json");
    serde_json::from_slice(&reply.body).unwrap()
}

fn app(url: &str) -> Outcome {
    let mut answer = Answer::default();
    answer.app.insert("front_end_url".into(), Field::Plain(url.into()));
    Outcome::Applied { instance_id: Some("x".into()), answer: Box::new(answer) }
}

fn told(callback: &Callback, outcome: &Outcome) -> Value {
    let reply = KooGallery.reply(callback, outcome, &Options::default());
    assert!(reply.protection.signs && reply.status == 200);
    body(&reply)
}

#[test]
fn every_outcome_has_its_code_and_its_message() {
    let create = understood("newInstance", &CREATE);
    let freeze = understood("updateInstanceStatus", &[(INSTANCE_ID, "i"), ("status", "FREEZE")]);
    let refused = |code: &'static str, reason: &str| Outcome::Refused { code, reason: reason.into() };
    for (outcome, code) in [
        (Outcome::done(Some("b-1".into())), "000000"),
        (Outcome::NotYet, "000004"),
        (Outcome::Held { reason: "x".into() }, "000004"),
        (refused("unknown-instance", "no"), "000003"),
        (refused("paid-for-nothing", "no"), "000003"),
        (refused("hook", "no"), "000005"),
        (refused("hook", "000106: sold out"), "000106"),
        (Outcome::Unavailable, "000005"),
    ] {
        for callback in [&create, &freeze] {
            let said = told(callback, &outcome);
            assert_eq!(said["resultCode"], code, "{outcome:?}");
            assert!(!said["resultMsg"].as_str().unwrap().is_empty());
        }
    }
    let unreadable = understood("refreshInstance", &[(INSTANCE_ID, "i"), ("scene", "GIFT")]);
    assert_eq!(told(&unreadable, &Outcome::Held { reason: "x".into() })["resultCode"], "000002");
}

#[test]
fn a_create_is_told_its_id_also_while_it_is_made() {
    let create = understood("newInstance", &CREATE);
    assert_eq!(told(&create, &Outcome::done(Some("first".into())))["instanceId"], "first");
    assert_eq!(told(&create, &Outcome::NotYet)["instanceId"], "b-1");
    assert_eq!(told(&create, &Outcome::Unavailable).get("instanceId"), None);
}

#[test]
fn a_query_tells_what_the_buyer_is_shown() {
    let query = understood("queryInstance", &[(INSTANCE_ID, "b-1")]);
    let mut answer = Answer::default();
    for (name, value) in [
        ("front_end_url", "https://a.example"),
        ("admin_url", "https://a.example/admin"),
        ("username", "admin"),
        ("license_id", "l"),
    ] {
        answer.app.insert(name.into(), Field::Plain(value.into()));
    }
    answer.app.insert("password".into(), Field::Secret(Secret::new("fake-password")));
    answer.info.insert("memo".into(), Field::Plain("会员".into()));
    let outcome = Outcome::Applied { instance_id: Some("hook-id".into()), answer: Box::new(answer) };
    assert_eq!(
        told(&query, &outcome)["info"][0],
        json!({"instanceId": "b-1", "appInfo": {
            "frontEndUrl": "https://a.example", "adminUrl": "https://a.example/admin",
            "userName": "admin", "password": "fake-password", "memo": "会员"
        }})
    );
    let reply = KooGallery.reply(&query, &outcome, &Options::default());
    assert!(reply.body.is_ascii());
    assert_eq!(told(&query, &Outcome::done(None))["info"][0], json!({"instanceId": "b-1"}));
}

#[test]
fn a_check_says_no_when_the_hook_does() {
    let check = understood("changeInstanceCheck", &[(INSTANCE_ID, "i"), ("productInfo", "{}")]);
    let answered = |text: &str| {
        let answer = Answer { body: Some(Secret::new(text)), ..Answer::default() };
        told(&check, &Outcome::Applied { instance_id: None, answer: Box::new(answer) })["resultCode"].clone()
    };
    assert_eq!(answered("{\"allowed\": false}"), "000005");
    assert_eq!(answered("{\"allowed\": true}"), "000000");
    assert_eq!(answered("{}"), "000000");
}

#[test]
fn every_answer_is_signed_over_its_own_bytes() {
    let signer = keys().signer().unwrap();
    let create = understood("newInstance", &CREATE);
    let refusal = Denial::Replayed;
    for reply in [
        KooGallery.reply(&create, &Outcome::NotYet, &Options::default()),
        KooGallery.refuse(&RawRequest::get(b""), &refusal),
    ] {
        let expected = format!("sign_type=\"HMAC-SHA256\", signature=\"{}\"", signer.sign(&reply.body));
        let signed = reply.protected(&signer);
        assert!(signed.headers.contains(&("body-sign", expected)), "{signed:?}");
    }
    let alibaba = by_name("alibaba").unwrap();
    let plain = alibaba.reply(&create, &Outcome::NotYet, &Options::default());
    assert_eq!(plain.clone().protected(&signer), plain, "an answer without a signature is unchanged");
}

// ---- Guards -------------------------------------------------------------------------------------

#[test]
fn the_derived_vector_is_made_and_taken() {
    let parameters = pairs(&[
        ("businessId", "87b94795-0603-4e24-8ae5-69420d60e3c8"),
        ("orderId", "CS2211181819B4LVS"),
        ("orderLineId", "CS2211181819B4LVS-000001"),
        ("testFlag", "1"),
    ]);
    let nonce = "50D83FDECAED6CCD8EF597F2A577950527928BA287D04E6036E92B2806FD17DA";
    let send = Sending { nonce: nonce.into(), ..Sending::at(now()) };
    let out = KooGallery.request("newInstance", &parameters, &keys(), &send);
    assert!(
        out.query.contains("signature=5cba99cdfd4be412ef7ee87accf419acfc21297ae13a457e8776a5d0693ae907"),
        "{}",
        out.query
    );
    assert!(receive(&out, now()).unwrap().test);
}

#[test]
fn a_timestamp_is_milliseconds_or_seconds_within_a_minute() {
    let reason = |timestamp: &str| {
        let body = b"{}".to_vec();
        let parts = Parts::Nonced {
            nonce: "n".into(),
            timestamp: timestamp.into(),
            body: body.clone(),
            digested: true,
        };
        let query = format!("signature={}&timestamp={timestamp}&nonce=n", parts.sign(&keys()));
        let headers = vec![("content-type", "application/json".to_owned())];
        receive(&OutRequest { method: "POST", query, headers, body }, now())
            .map_or_else(|refusal| refusal.reason(), |_| "fine")
    };
    let at = now().as_millisecond();
    for near in [at, at - 60_000, at + 60_000] {
        assert_eq!(reason(&near.to_string()), "fine");
    }
    assert_eq!(reason(&(at / 1000).to_string()), "fine");
    for far in [at - 60_001, at + 60_001] {
        assert_eq!(reason(&far.to_string()), "stale");
    }
    assert_eq!(reason(&(at / 1000 - 60).to_string()), "stale");
    for unreadable in ["", "soon", "16805080666", "-680508066618", "1680508066618000"] {
        assert_eq!(reason(unreadable), "undated", "{unreadable}");
    }
}

#[test]
fn every_guard_refuses() {
    let honest = || KooGallery.request("newInstance", &pairs(&CREATE), &keys(), &Sending::at(now()));
    let reason = |change: &dyn Fn(&mut OutRequest)| {
        let mut out = honest();
        change(&mut out);
        receive(&out, now()).unwrap_err().reason()
    };
    assert_eq!(reason(&|out| out.method = "PUT"), "method");
    assert_eq!(reason(&|out| out.headers.clear()), "content-type");
    assert_eq!(reason(&|out| out.body.clear()), "malformed");
    assert_eq!(reason(&|out| out.body = b"[]".to_vec()), "malformed");
    assert_eq!(reason(&|out| out.body = b"{\"a\":\"\\u0000\"}".to_vec()), "malformed");
    assert_eq!(reason(&|out| out.body.insert(1, b' ')), "wrong-signature");
    assert_eq!(reason(&|out| out.query.push_str("&nonce=x")), "duplicate-parameter");
    assert_eq!(reason(&|out| out.query = out.query.replace("&nonce=", "&nonsense=")), "malformed");
    assert_eq!(reason(&|out| out.query = out.query.replace("&nonce=", "&nonce=x")), "wrong-signature");
    assert_eq!(reason(&|out| out.query = out.query.replace("signature=", "sig=")), "missing-signature");
    assert_eq!(
        reason(&|out| out.query = out.query.replace("signature=", "signature=0")),
        "malformed-signature"
    );
    let mut more = honest();
    more.query.push_str("&contentType=application%2Fjson");
    assert!(receive(&more, now()).is_ok(), "License pages name it among the query's parameters");
}

// ---- Version 1.0 --------------------------------------------------------------------------------

fn legacy(action: &str, parameters: &[(&str, &str)]) -> Callback {
    understood(action, &[parameters, &[("timeStamp", "")]].concat())
}

#[test]
fn the_published_example_of_version_1_is_made_and_taken() {
    let parameters = pairs(&[
        ("businessId", "61e834ba-7b97-4418-b8f7-e5345137278c"),
        ("customerId", "68cbc86abc2018ab880d92f36422fa0e"),
        ("expireTime", "20200727153156"),
        ("orderId", "CS1906666666ABCDE"),
        ("productId", "00301-666666-0--0"),
        ("testFlag", "1"),
        ("timeStamp", "20200727073711903"),
    ]);
    let out = KooGallery.request("newInstance", &parameters, &keys(), &Sending::at(now()));
    assert!(
        out.query.ends_with("authToken=Gzbfjf9LHRBcI3bFVi%2B%2BsLinCNOBF6qa7is1fvjEgYQ%3D"),
        "{}",
        out.query
    );
    let callback = receive(&out, now()).unwrap();
    assert_eq!(callback.subject.order_biz_id.as_deref(), Some("CS1906666666ABCDE/00301-666666-0--0"));
    assert_eq!(callback.buyer.as_deref(), Some("68cbc86abc2018ab880d92f36422fa0e"));
    assert_eq!(callback.expires_on.unwrap().at.unwrap().to_string(), "2020-07-27T15:31:56Z");
    assert_eq!(callback.sent_at.unwrap().to_string(), "2020-07-27T07:37:11.903Z");
    assert!(callback.test && callback.nonce.is_none());
    for changed in ["businessId", "timeStamp", "activity"] {
        let mut other = out.clone();
        other.query = out.query.replace(&format!("{changed}="), &format!("{changed}=x"));
        assert_eq!(receive(&other, now()).unwrap_err().reason(), "wrong-signature", "{changed}");
    }
}

#[test]
fn every_activity_of_version_1() {
    let id = (INSTANCE_ID, "b-1");
    let date = ("expireTime", "20270101000000");
    let order = ("orderId", "CS2");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Action);
    let cases: [Case<'_>; 9] = [
        ("newInstance", &[order, ("productId", "P"), ("businessId", "b")], Action::Create),
        ("refreshInstance", &[id, order, date], Action::Renew),
        ("refreshInstance", &[id, order, date, ("orderAmount", "-12.5")], Action::RefundRenew),
        ("expireInstance", &[id, order], Action::Expire),
        ("releaseInstance", &[id, order], Action::Release),
        ("upgrade", &[id, order, ("skuCode", "s"), ("amount", "5")], Action::Upgrade),
        ("instanceStatus", &[id, ("instanceStatus", "FREEZE")], Action::Expire),
        ("instanceStatus", &[id, ("instanceStatus", "NORMAL")], Action::Renew),
        ("queryInstance", &[id], Action::Query),
    ];
    for (word, parameters, action) in cases {
        let callback = legacy(word, parameters);
        assert_eq!((callback.action, callback.issues.as_slice()), (action, &[][..]), "{word}");
        assert!((order::ORDER_API.lookup)(&callback).is_none(), "{word} says it all");
    }
    let upgrade = legacy("upgrade", cases[5].1);
    assert_eq!(
        (upgrade.sku.as_deref(), upgrade.items.get("amount").map(String::as_str)),
        (Some("s"), Some("5"))
    );
    assert_eq!(legacy("newInstance", &[order, ("trialFlag", "1")]).trial, Some(true));
    let formal = [(INSTANCE_ID, "i"), order, ("expireTime", "20300101000000"), ("trialToFormal", "1")];
    assert_eq!(legacy("refreshInstance", &formal).trial, Some(false));
    assert_eq!(legacy("refreshInstance", &formal[..3]).trial, None);
}

#[test]
fn version_1_tells_the_account_encrypted() {
    let mut answer = Answer::default();
    for (name, value) in [("front_end_url", "https://a.example"), ("username", "admin")] {
        answer.app.insert(name.into(), Field::Plain(value.into()));
    }
    answer.app.insert("password".into(), Field::Secret(Secret::new("fake-password")));
    answer.info.insert("memo".into(), Field::Plain("会员".into()));
    let outcome = Outcome::Applied { instance_id: Some("b-1".into()), answer: Box::new(answer) };
    let create = legacy("newInstance", &[("orderId", "CS1"), ("productId", "P"), ("businessId", "b-1")]);
    let query = legacy("queryInstance", &[(INSTANCE_ID, "b-1")]);
    let signer = keys().signer().unwrap();
    for (cipher, number) in [(Cipher::Aes256, "1"), (Cipher::Aes128, "2")] {
        let options = Options { field_cipher: cipher, ..Options::default() };
        for (callback, section) in [(&create, "/appInfo"), (&query, "/info/0/appInfo")] {
            let reply =
                KooGallery.reply_to_all(&[(callback.clone(), outcome.clone())], &options).protected(&signer);
            assert!(reply.body.is_ascii() && reply.headers.iter().any(|(name, _)| *name == "body-sign"));
            let told = body(&reply);
            assert_eq!((&told["resultCode"], &told["encryptType"]), (&json!("000000"), &json!(number)));
            let app = told.pointer(section).unwrap();
            assert_eq!((&app["frontEndUrl"], &app["memo"]), (&json!("https://a.example"), &json!("会员")));
            let opened =
                |name: &str| signer.decrypt(cipher, app[name].as_str().unwrap()).unwrap().expose().to_owned();
            assert_eq!(
                (opened("userName"), opened("password")),
                ("admin".to_owned(), "fake-password".to_owned())
            );
        }
    }
}

#[test]
fn a_test_purchase_of_version_1_is_told_an_address() {
    let test = legacy(
        "newInstance",
        &[("orderId", "CS1"), ("productId", "P"), ("businessId", "b"), (TEST_FLAG, "1")],
    );
    let options = Options { test_url: Some("https://try.example".into()), ..Options::default() };
    let outcome = Outcome::done(test.marketplace_instance_id.clone());
    let told = body(&KooGallery.reply_to_all(&[(test.clone(), outcome)], &options));
    assert_eq!(told["appInfo"], json!({"frontEndUrl": "https://try.example"}));
    assert_eq!(told["instanceId"].as_str(), test.marketplace_instance_id.as_deref());
}

#[test]
fn version_1_hands_on_what_it_had_encrypted() {
    for phone in ["AbCdEf0123456789012c+Ev6N0AXZ9pmOVyqyA==", "AbCdEf0123456789yKbCVGWSOHv5O6BFfCmbAw=="] {
        let create = legacy("newInstance", &[("orderId", "CS1"), ("productId", "P"), ("mobilePhone", phone)]);
        assert_eq!(create.order_details.unwrap().get("mobilePhone"), Some("15905222222"));
        assert_eq!(create.parameters.get("mobilePhone"), Some(phone), "what was signed stays as it was");
    }
    assert_eq!(legacy("newInstance", &[("orderId", "CS1"), ("email", "a@a.example")]).order_details, None);
}

#[test]
fn a_value_of_version_1_that_may_hide_another_is_doubted() {
    let hidden = legacy("releaseInstance", &[(INSTANCE_ID, "i&orderId=o")]);
    assert_eq!(hidden.issues, [ValidationIssue::AmbiguousValue { name: INSTANCE_ID.into() }]);
    assert_eq!(legacy("releaseInstance", &[(INSTANCE_ID, "R&D")]).issues, []);
}

#[test]
fn the_guards_of_version_1() {
    let out = KooGallery.request(
        "queryInstance",
        &pairs(&[(INSTANCE_ID, "i"), ("timeStamp", "")]),
        &keys(),
        &Sending::at(now()),
    );
    let reason = |change: &dyn Fn(&mut OutRequest)| {
        let mut out = out.clone();
        change(&mut out);
        receive(&out, now()).unwrap_err().reason()
    };
    assert_eq!(reason(&|out| out.body = b"{}".to_vec()), "malformed");
    assert_eq!(reason(&|out| out.query = out.query.replace("authToken", "token")), "missing-signature");
    assert_eq!(reason(&|out| out.query = out.query.replace("timeStamp=", "time=")), "undated");
    assert_eq!(reason(&|out| out.query.push_str("&instanceId=j")), "duplicate-parameter");
    assert_eq!(reason(&|out| out.query.push_str("&more=1")), "wrong-signature");
}

// ---- The linked kit -----------------------------------------------------------------------------

const TENANT: [(&str, &str); 8] = [
    ("instanceId", "b-1"),
    ("orderId", "CS1"),
    ("tenantId", "t-1"),
    ("tenantCode", "acme"),
    ("name", "Acme & Sons"),
    ("domainName", "https://acme.login.example"),
    ("flag", "1"),
    ("timeStamp", "20220420114117642"),
];

#[test]
fn the_kit_is_told_by_its_members_and_handed_on_typed() {
    let tenant = understood("tenantSync", &TENANT);
    assert_eq!((tenant.action, tenant.action_name.as_str()), (Action::Other, "tenantSync"));
    assert_eq!(tenant.subject.instance_id.as_deref(), Some("b-1"));
    assert!(tenant.issues.is_empty() && tenant.nonce.is_some(), "{:?}", tenant.issues);
    assert_eq!(
        tenant.body.unwrap(),
        json!({"kind": "tenant", "change": "add", "tenant_id": "t-1", "tenant_code": "acme",
            "name": "Acme & Sons", "domain_name": "https://acme.login.example"})
    );
    let of = |kind: &str, more: &[(&str, &str)]| {
        let common = [("instanceId", "b-1"), ("tenantId", "t-1"), ("testFlag", "0"), ("timeStamp", "1")];
        let callback = understood(kind, &[&common, more].concat());
        assert_eq!((callback.action_name.as_str(), callback.issues.as_slice()), (kind, &[][..]));
        callback.body.unwrap()
    };
    let app =
        of("applicationSync", &[("appId", "a"), ("clientId", "c"), ("clientSecret", "RSA"), ("flag", "2")]);
    assert_eq!((&app["change"], &app["client_secret"]), (&json!("modify"), &json!("RSA")));
    let users = "[{\"userName\":\"u\",\"name\":\"U\",\"orgCode\":\"1\",\"role\":\"admin\",\"enable\":\"false\",\"employeeType\":1}]";
    let list: Value = serde_json::from_str(users).unwrap();
    for sent in [users.to_owned(), list.to_string()] {
        let auth =
            of("authSync", &[("appId", "a"), ("userList", &sent), ("currentSyncTime", "x"), ("flag", "3")]);
        assert_eq!(auth["change"], "revoke");
        let user = json!([{"user_name": "u", "name": "U", "org_code": "1", "role": "admin", "enabled": false, "more": {"employeeType": "1"}}]);
        assert_eq!(auth["users"], user);
    }
    let one = of("singleOrgSync", &[("orgCode", "1"), ("orgName", "Sales"), ("flag", "0")]);
    assert_eq!(one["org"], json!({"code": "1", "name": "Sales"}));
    let all = of("allOrgSync", &[("orgInfoList", "[{orgCode:\"2\",OrgName:\"Sales\",parentCode:\"1\"}]")]);
    assert_eq!(all["orgs"], json!([{"code": "2", "name": "Sales", "parent": "1"}]));
}

#[test]
fn for_ever_is_a_date() {
    for text in ["99991231235959", "99991231235959999"] {
        let at = read_compact(text, &TimeZone::UTC).unwrap();
        assert!(at.to_string().starts_with("9999-12-30"), "{at}");
    }
    assert_eq!(read_compact("99991331235959", &TimeZone::UTC), None);
}

#[test]
fn numbers_keep_the_digits_they_were_sent_with() {
    let body = r#"{"activity":"newInstance","orderId":202611300000000000000001,"orderAmount":12.50,
                   "extendParams":[{"name":"gb","value":1e3}]}"#;
    let parameters = read_body(body.as_bytes()).unwrap();
    assert_eq!(parameters.get("orderId"), Some("202611300000000000000001"));
    assert_eq!(parameters.get("orderAmount"), Some("12.50"));
    assert_eq!(parameters.get("extendParams"), Some(r#"[{"name":"gb","value":1e3}]"#));
    let users = r#"[{"userName":123456789012345678901234567890,"rate":0.10}]"#;
    let tenant = [("instanceId", "b-1"), ("tenantId", "t-1"), ("testFlag", "0"), ("timeStamp", "1")];
    let more = [("appId", "a"), ("userList", users), ("currentSyncTime", "x"), ("flag", "1")];
    let body = understood("authSync", &[&tenant[..], &more[..]].concat()).body.unwrap();
    assert_eq!(body["users"][0]["user_name"], "123456789012345678901234567890");
    assert_eq!(body["users"][0]["more"], json!({"rate": "0.10"}));
}

#[test]
fn what_the_kit_leaves_out_is_doubted() {
    let mut without = TENANT.to_vec();
    without.retain(|(name, _)| *name != "tenantCode");
    assert_eq!(understood("tenantSync", &without).issues, [missing("tenantCode")]);
    let users =
        understood("authSync", &[("tenantId", "t"), ("appId", "a"), ("flag", "1"), ("userList", "all")]);
    assert_eq!(users.issues, [ValidationIssue::UnknownValue { name: "userList".into() }]);
}

#[test]
fn the_guards_of_the_kit() {
    let out = KooGallery.request("tenantSync", &pairs(&TENANT), &keys(), &Sending::at(now()));
    let reason = |change: &dyn Fn(&mut OutRequest)| {
        let mut out = out.clone();
        change(&mut out);
        receive(&out, now()).unwrap_err().reason()
    };
    let set = |out: &mut OutRequest, name: &str, value: &str| {
        out.headers
            .iter_mut()
            .filter(|(known, _)| *known == name)
            .for_each(|(_, old)| *old = value.to_owned());
    };
    assert_eq!(reason(&|out| out.body.push(b' ')), "wrong-signature");
    assert_eq!(reason(&|out| set(out, "x-nonce", "other")), "wrong-signature");
    assert_eq!(reason(&|out| set(out, "x-nonce", "")), "malformed");
    assert_eq!(reason(&|out| set(out, "x-timestamp", "")), "undated");
    assert_eq!(reason(&|out| set(out, "x-timestamp", "1680508000000")), "stale");
    assert_eq!(reason(&|out| set(out, "x-sign", "")), "missing-signature");
}

/// Builds the signed text by hand, as the vendor's sample does.
#[test]
fn the_kit_of_version_1_signs_its_members() {
    let body = json!({"instanceId": "b-1", "tenantId": "t-1", "orgCode": "1", "orgName": "Sales", "parentCode": "", "flag": 1, "testFlag": 0, "timeStamp": "20220420114117642"});
    let joined =
        "flag=1&instanceId=b-1&orgCode=1&orgName=Sales&tenantId=t-1&testFlag=0&timeStamp=20220420114117642";
    let pairs = joined
        .split('&')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(n, v)| (n.to_owned(), v.to_owned()));
    let token =
        Parts::Stamped { timestamp: "20220420114117642".into(), pairs: pairs.collect() }.sign(&keys());
    let headers = vec![("content-type", "application/json".to_owned()), ("authtoken", token)];
    let out =
        OutRequest { method: "POST", query: String::new(), headers, body: body.to_string().into_bytes() };
    let callback = receive(&out, now()).unwrap();
    assert_eq!((callback.action_name.as_str(), callback.issues.as_slice()), ("singleOrgSync", &[][..]));
    let mut other = out;
    other.body = body.to_string().replace("Sales", "Staff").into_bytes();
    assert_eq!(receive(&other, now()).unwrap_err().reason(), "wrong-signature");
}

/// Sends members with a valid token of version 1.0 that was computed over other members.
fn forged_kit(signed: &[(&str, &str)], sent: &Value) -> Result<Callback, Denial> {
    let token = Parts::Stamped { timestamp: "1".into(), pairs: pairs(signed) }.sign(&keys());
    let headers = vec![("content-type", "application/json".to_owned()), ("authtoken", token)];
    let body = sent.to_string().into_bytes();
    receive(&OutRequest { method: "POST", query: String::new(), headers, body }, now())
}

#[test]
fn unsigned_blank_members_of_kit_version_1_hide_nothing() {
    let signed = [("orgCode", "1"), ("orgName", "Sales"), ("tenantId", "t-1"), ("timeStamp", "1")];
    // The blank member sorts between the two signed ones, and must not hide that the first value reads in two ways.
    let sent = json!({"orgCode": "1&orgName=Sales", "orgD": "", "tenantId": "t-1", "timeStamp": "1"});
    let callback = forged_kit(&signed, &sent).unwrap();
    assert!(
        callback.issues.contains(&ValidationIssue::AmbiguousValue { name: "orgCode".into() }),
        "{:?}",
        callback.issues
    );
    // A blank member changes neither the kind nor the parameters.
    let sent =
        json!({"domainName": " ", "orgCode": "1", "orgName": "Sales", "tenantId": "t-1", "timeStamp": "1"});
    let callback = forged_kit(&signed, &sent).unwrap();
    assert_eq!(callback.action_name, "singleOrgSync");
    assert_eq!(callback.parameters.get("domainName"), None);
}

#[test]
fn member_name_of_kit_version_1_with_a_separator_is_denied() {
    let signed = [("orgCode", "1"), ("orgName", "Sales"), ("tenantId", "t-1"), ("timeStamp", "1")];
    for name in ["orgCode=1&orgName", "orgCode=1"] {
        let mut sent = json!({"tenantId": "t-1", "timeStamp": "1"});
        sent[name] = "Sales".into();
        assert_eq!(forged_kit(&signed, &sent).unwrap_err().reason(), "malformed", "{name}");
    }
}

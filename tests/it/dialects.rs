//! Dialects from the outside: published vectors, every guard, every action in both forms, every reply. All tests use
//! the functions of the daemon.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has said what it found")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use spid_core::dialect;
use spid_core::dialect::{
    Denial, Dialect, Options, OutRequest, RawRequest, Reply, SendForm, SendSignature, Sending, SuccessAs,
};
use spid_core::query::Pair;
use spid_core::signature::Keys;
use spid_hook::Secret;
use spid_hook::callback::{Action, Answer, Callback, Field, Outcome, ValidationIssue};

const KEY: &str = "isvkey";

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn keys(text: &str) -> Keys {
    Keys::single(Secret::new(text)).unwrap()
}

fn named(name: &str) -> &'static dyn Dialect {
    dialect::by_name(name).unwrap()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<Pair> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Parses and verifies a request that was sent `now`.
fn receive(dialect: &dyn Dialect, out: &OutRequest, keys: &Keys) -> Result<Callback, Denial> {
    let header = |name: &str| out.header(name);
    let request =
        RawRequest { method: out.method, query: out.query.as_bytes(), header: &header, body: &out.body };
    let verified = dialect.parts(&request, now())?.verify(keys)?;
    Ok(dialect.callback(verified, &Options::default()))
}

fn in_form(form: SendForm) -> Sending {
    Sending { form, ..Sending::at(now()) }
}

/// Sends a valid request in both forms and returns the callback, which must be the same.
fn understood(dialect: &str, action: &str, parameters: &[(&str, &str)]) -> Callback {
    let dialect = named(dialect);
    let [usual, form] = [SendForm::Usual, SendForm::Form].map(|form| {
        let out = dialect.request(action, &pairs(parameters), &keys(KEY), &in_form(form));
        receive(dialect, &out, &keys(KEY)).unwrap()
    });
    assert_eq!(usual, form, "the form of transport changes nothing");
    usual
}

fn reason(dialect: &str, out: &OutRequest) -> &'static str {
    receive(named(dialect), out, &keys(KEY)).unwrap_err().reason()
}

fn body(reply: &Reply) -> Value {
    assert_eq!(reply.content_type, "application/json");
    serde_json::from_slice(&reply.body).unwrap()
}

fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    reply.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
}

// ---- Vectors ------------------------------------------------------------------------------------

#[derive(serde::Deserialize)]
struct Vector {
    name: String,
    key: String,
    params: BTreeMap<String, String>,
    token: String,
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("../vectors/query-token.json")).unwrap()
}

impl Vector {
    /// The request as names and values, with the token last.
    fn sent(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let token = ("token".to_owned(), self.token.clone());
        let all = self.params.clone().into_iter().chain([token]);
        all.map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect()
    }

    fn holds(&self, sent: &[(Vec<u8>, Vec<u8>)]) -> bool {
        let escape = |text: &[u8]| text.iter().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let query: Vec<String> = sent.iter().map(|(n, v)| format!("{}={}", escape(n), escape(v))).collect();
        let query = query.join("&");
        ["alibaba", "jdcloud"].into_iter().any(|name| {
            let parts = named(name).parts(&RawRequest::get(query.as_bytes()), now());
            parts.is_ok_and(|signed| signed.verify(&keys(&self.key)).is_ok())
        })
    }
}

#[test]
fn every_vector_holds_and_is_made_again() {
    for vector in vectors() {
        assert!(vector.holds(&vector.sent()), "{}", vector.name);
        let parameters: Vec<Pair> = vector.params.clone().into_iter().collect();
        let out = named("jdcloud").request("", &parameters, &keys(&vector.key), &Sending::at(now()));
        assert!(out.query.ends_with(&format!("&token={}", vector.token)), "{}", vector.name);
    }
}

/// Replacements for one byte: one bit changed, and characters with a meaning for a parser.
fn neighbours(byte: u8) -> impl Iterator<Item = u8> {
    let bits = (0..8).map(move |bit| byte ^ (1 << bit));
    bits.chain(*b"\0%&+= a0\xff").filter(move |other| *other != byte)
}

#[test]
fn one_changed_byte_anywhere_breaks_every_vector() {
    for vector in vectors() {
        let honest = vector.sent();
        let mut changes = 0;
        for pair in 0..honest.len() {
            for in_name in [true, false] {
                let length = if in_name { honest[pair].0.len() } else { honest[pair].1.len() };
                for at in 0..length {
                    let mut sent = honest.clone();
                    let half = |sent: &mut Vec<(Vec<u8>, Vec<u8>)>, byte: Option<u8>| {
                        let text = if in_name { &mut sent[pair].0 } else { &mut sent[pair].1 };
                        if let Some(byte) = byte {
                            text[at] = byte;
                        }
                        text[at]
                    };
                    let original = half(&mut sent, None);
                    let is_token = pair == honest.len() - 1 && !in_name;
                    for other in neighbours(original) {
                        if is_token && other.eq_ignore_ascii_case(&original) {
                            continue; // both cases are the same digit
                        }
                        half(&mut sent, Some(other));
                        assert!(!vector.holds(&sent), "{}: {:?}", vector.name, sent[pair]);
                        changes += 1;
                    }
                }
            }
        }
        assert!(changes > 300, "{}: only {changes} changes tried", vector.name);
    }
}

#[test]
fn every_parameter_counts() {
    for vector in vectors() {
        for missing in 0..vector.sent().len() {
            let mut sent = vector.sent();
            sent.remove(missing);
            assert!(!vector.holds(&sent), "{}: without its parameter {missing}", vector.name);
        }
        let mut sent = vector.sent();
        sent.push((b"one".to_vec(), b"more".to_vec()));
        assert!(!vector.holds(&sent), "{}", vector.name);
    }
}

// ---- Guards -------------------------------------------------------------------------------------

fn create() -> Vec<Pair> {
    pairs(&[("orderBizId", "1001"), ("aliUid", "7"), ("expiredOn", "2030-01-01 00:00:00")])
}

#[test]
fn every_guard_of_the_query_token_refuses() {
    let honest = Sending::at(now());
    let with = |signature: SendSignature| Sending { signature, ..honest.clone() };
    let raw = |raw: &str| Sending { raw: raw.to_owned(), ..honest.clone() };
    let cases = [
        (with(SendSignature::Omitted), "missing-signature"),
        (with(SendSignature::Altered), "wrong-signature"),
        (with(SendSignature::Pinned("0".repeat(32))), "wrong-signature"),
        (with(SendSignature::Pinned("0".repeat(31))), "malformed-signature"),
        (with(SendSignature::Pinned("0".repeat(33))), "malformed-signature"),
        (with(SendSignature::Pinned("z".repeat(32))), "malformed-signature"),
        (with(SendSignature::Pinned(String::new())), "malformed-signature"),
        (Sending { altered: pairs(&[("aliUid", "8")]), ..honest.clone() }, "wrong-signature"),
        (Sending { appended: pairs(&[("aliUid", "7")]), ..honest.clone() }, "duplicate-parameter"),
        (Sending { appended: pairs(&[("token", "7")]), ..honest.clone() }, "duplicate-parameter"),
        (Sending { appended: pairs(&[("more", "7")]), ..honest.clone() }, "wrong-signature"),
        (Sending { appended: pairs(&[("a&b", "7")]), ..honest.clone() }, "bad-name"),
        (raw("&x=%zz"), "bad-encoding"),
        (raw("&x=%ff"), "not-utf8"),
        (raw("&x=%00"), "nul"),
        (raw("&=x"), "bad-name"),
    ];
    for (send, expected) in cases {
        for form in [SendForm::Usual, SendForm::Form] {
            for name in ["alibaba", "jdcloud"] {
                let send = Sending { form, ..send.clone() };
                let out = named(name).request("createInstance", &create(), &keys(KEY), &send);
                assert_eq!(reason(name, &out), expected, "{name}: {send:?}");
            }
        }
    }
}

#[test]
fn a_name_in_the_query_and_in_the_form_is_given_twice() {
    let alibaba = named("alibaba");
    let mut out = alibaba.request("createInstance", &create(), &keys(KEY), &in_form(SendForm::Form));
    out.query = "other=1".to_owned();
    assert_eq!(reason("alibaba", &out), "wrong-signature", "both are signed");
    out.query = "aliUid=7".to_owned();
    assert_eq!(reason("alibaba", &out), "duplicate-parameter");
}

#[test]
fn query_and_form_are_one_set_of_parameters() {
    let alibaba = named("alibaba");
    let whole = alibaba.request("createInstance", &create(), &keys(KEY), &Sending::at(now()));
    let (query, form) = whole.query.split_at(whole.query.find('&').unwrap());
    let out = OutRequest {
        method: "POST",
        query: query.to_owned(),
        headers: vec![("content-type", "Application/X-WWW-Form-URLencoded; charset=UTF-8".to_owned())],
        body: form.as_bytes().to_vec(),
    };
    assert!(receive(alibaba, &out, &keys(KEY)).is_ok());
}

#[test]
fn methods_and_bodies_nobody_documented_are_refused() {
    let alibaba = named("alibaba");
    let mut out = alibaba.request("createInstance", &create(), &keys(KEY), &Sending::at(now()));
    out.method = "PUT";
    assert_eq!(reason("alibaba", &out), "method");
    out.method = "POST";
    assert!(receive(alibaba, &out, &keys(KEY)).is_ok(), "a POST may carry all of it in its query");
    out.body = b"{}".to_vec();
    assert_eq!(reason("alibaba", &out), "content-type");
    out.headers = vec![("content-type", "application/json".to_owned())];
    assert_eq!(reason("alibaba", &out), "content-type");
}

#[test]
fn a_previous_key_still_opens_and_says_which_it_was() {
    use spid_core::signature::Key;
    let key = |label: &str, text: &str| Key::new(label, Secret::new(text)).unwrap();
    let both = Keys::new(vec![key("current", "fake-new"), key("previous", "fake-old")]).unwrap();
    let alibaba = named("alibaba");
    let out = alibaba.request("createInstance", &create(), &keys("fake-old"), &Sending::at(now()));
    let signed = alibaba.parts(&RawRequest::get(out.query.as_bytes()), now()).unwrap();
    assert_eq!(&**signed.verify(&both).unwrap().key_label(), "previous");
}

#[test]
fn a_refusal_tells_a_stranger_nothing() {
    let alibaba = named("alibaba");
    let texts: Vec<Vec<u8>> =
        [SendSignature::Omitted, SendSignature::Altered, SendSignature::Pinned("x".into())]
            .map(|signature| {
                let send = Sending { signature, ..Sending::at(now()) };
                let out = alibaba.request("createInstance", &create(), &keys(KEY), &send);
                let refusal = receive(alibaba, &out, &keys(KEY)).unwrap_err();
                let reply = alibaba.refuse(&RawRequest::get(out.query.as_bytes()), &refusal);
                assert_eq!(reply.status, 403);
                reply.body
            })
            .to_vec();
    assert!(texts.windows(2).all(|two| two[0] == two[1]), "every bad signature reads alike");
    assert_eq!(
        serde_json::from_slice::<Value>(&texts[0]).unwrap(),
        json!({"instanceId": "0", "success": false, "message": "forbidden"})
    );
}

#[test]
fn a_browser_gets_a_page_and_a_wrong_method_its_allow() {
    let alibaba = named("alibaba");
    let refusal = Denial::Signature(spid_core::signature::Mismatch::Wrong);
    let page = alibaba.refuse(&RawRequest::get(b"action=verify&instanceId=%3Cscript%3E"), &refusal);
    assert_eq!((page.status, page.content_type), (403, "text/html; charset=utf-8"));
    assert!(!String::from_utf8(page.body).unwrap().contains("script"));
    let refusal = Denial::Method { method: "PUT".into(), allowed: "GET, POST" };
    let reply = alibaba.refuse(&RawRequest::get(b""), &refusal);
    assert_eq!((reply.status, header(&reply, "allow")), (405, Some("GET, POST")));
}

#[test]
fn log_lines_hold_no_value_and_no_line_break() {
    for query in [&b"pass%0aword=hunter2%2"[..], b"pass%0aword=hunter2&pass%0aword=hunter2", b"a=hunter2%ff"]
    {
        let refusal = named("alibaba").parts(&RawRequest::get(query), now()).unwrap_err();
        let line = refusal.to_string();
        assert!(!line.contains("hunter2") && !line.contains('\n'), "{line}");
    }
}

// ---- Alibaba: callbacks ---------------------------------------------------------------------------

#[test]
fn alibaba_create_of_both_sites() {
    let callback = understood(
        "alibaba",
        "createInstance",
        &[
            ("aliUid", "1234567890"),
            ("orderBizId", "1001"),
            ("orderId", "2001"),
            ("productCode", "cmgj00001"),
            ("skuId", "yuncode1000001"),
            ("package_version", "yuncode1000001"),
            ("trial", "false"),
            ("expiredOn", "2030-01-01 00:00:00"),
            ("template", ""),
            ("email", "a@a.example"),
            ("ecsInstanceId", "i-1"),
            ("Count", "2"),
            ("席位", "3"),
        ],
    );
    assert_eq!(callback.action, Action::Create);
    assert_eq!(callback.action_name, "createInstance");
    assert_eq!(callback.subject.order_biz_id.as_deref(), Some("1001"));
    assert_eq!(callback.subject.instance_id, None);
    assert_eq!(callback.order_id.as_deref(), Some("2001"));
    assert_eq!(callback.buyer.as_deref(), Some("1234567890"));
    assert_eq!(callback.product.as_deref(), Some("cmgj00001"));
    assert_eq!(callback.sku.as_deref(), Some("yuncode1000001"));
    assert_eq!(callback.trial, Some(false));
    let expiry = callback.expires_on.unwrap();
    assert_eq!(expiry.raw, "2030-01-01 00:00:00");
    assert_eq!(expiry.at.unwrap().to_string(), "2029-12-31T16:00:00Z");
    let items: Vec<(&str, &str)> = callback.items.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(items, [("Count", "2"), ("席位", "3")]);
    assert_eq!(callback.parameters.len(), 14, "every signed parameter, unknown ones too");
    assert_eq!(callback.parameters.get("template"), Some(""));
    assert_eq!(callback.parameters.get("token"), None);
    assert_eq!(callback.issues, []);

    let international =
        understood("alibaba", "createInstance", &[("aliUid", "1"), ("orderBizId", "1"), ("orderId", "2")]);
    assert_eq!((international.trial, international.expires_on), (None, None));
    assert_eq!(international.issues, []);
}

#[test]
fn alibaba_knows_all_its_actions() {
    let date = ("expiredOn", "2030-01-01 00:00:00");
    let id = ("instanceId", "i-1");
    type Case<'a> = (&'a str, Action, &'a [(&'a str, &'a str)]);
    let cases: [Case<'_>; 9] = [
        ("createInstance", Action::Create, &[("orderBizId", "1")]),
        ("renewInstance", Action::Renew, &[id, ("orderId", "2"), date]),
        ("refundRenewInstance", Action::RefundRenew, &[id, date]),
        ("upgradeInstance", Action::Upgrade, &[id, ("skuId", "s-2")]),
        ("expiredInstance", Action::Expire, &[id]),
        ("releaseInstance", Action::Release, &[id]),
        ("verify", Action::SignOn, &[id, ("timeStamp", "2026-01-01 08:00:00")]),
        ("orderPay", Action::Payment, &[("requestId", "r-1"), ("orderBizId", "1")]),
        ("createIdaas", Action::Other, &[("belongId", "b"), ("publicKey", "p")]),
    ];
    for (word, action, parameters) in cases {
        let callback = understood("alibaba", word, parameters);
        assert_eq!((callback.action, callback.action_name.as_str()), (action, word));
        assert_eq!(callback.issues, [], "{word}");
    }
}

#[test]
fn alibaba_release_refund_is_yes_no_or_unknown() {
    for (sent, read) in [("true", Some(true)), ("false", Some(false)), ("maybe", None), ("", None)] {
        let callback = understood("alibaba", "releaseInstance", &[("instanceId", "i"), ("isRefund", sent)]);
        assert_eq!((callback.refund, callback.issues), (read, vec![]), "{sent}");
    }
    assert_eq!(understood("alibaba", "releaseInstance", &[("instanceId", "i")]).refund, None);
}

#[test]
fn alibaba_upgrade_carries_items_and_renew_does_not() {
    let sent = [("instanceId", "1001"), ("orderId", "2"), ("skuId", "s"), ("Count", "2"), ("Num", "3")];
    assert_eq!(understood("alibaba", "upgradeInstance", &sent).items.len(), 2);
    assert!(understood("alibaba", "renewInstance", &sent).items.is_empty());
}

#[test]
fn alibaba_sign_on_is_dated_in_the_zone() {
    let at = |text: &str| {
        understood("alibaba", "verify", &[("instanceId", "i"), ("timeStamp", text)])
            .sent_at
            .map(|at| at.to_string())
    };
    assert_eq!(at("2026-01-01 08:00:00").as_deref(), Some("2026-01-01T00:00:00Z"));
    assert_eq!(at("yesterday"), None);
    assert_eq!(understood("alibaba", "verify", &[("instanceId", "i")]).sent_at, None);
}

fn issues(action: &str, parameters: &[(&str, &str)]) -> Vec<ValidationIssue> {
    understood("alibaba", action, parameters).issues
}

#[test]
fn what_cannot_be_decided_is_doubted_and_nothing_else() {
    let missing = |name: &str| vec![ValidationIssue::MissingParameter { name: name.into() }];
    let undated = vec![ValidationIssue::UnreadableDate { name: "expiredOn".into() }];
    assert_eq!(issues("createInstance", &[("aliUid", "1")]), missing("orderBizId"));
    assert_eq!(issues("createInstance", &[("orderBizId", "")]), missing("orderBizId"));
    assert_eq!(issues("createInstance", &[("orderBizId", "0")]), missing("orderBizId"));
    assert_eq!(issues("createInstance", &[("orderBizId", "1"), ("expiredOn", "soon")]), []);
    assert_eq!(issues("expiredInstance", &[]), missing("instanceId"));
    assert_eq!(issues("expiredInstance", &[("instanceId", "0")]), missing("instanceId"));
    assert_eq!(issues("releaseInstance", &[("instanceId", "0"), ("orderId", "2")]), []);
    assert_eq!(issues("upgradeInstance", &[("instanceId", ""), ("orderId", "2")]), []);
    assert_eq!(issues("verify", &[("orderId", "2")]), missing("instanceId"));
    assert_eq!(issues("orderPay", &[]), missing("requestId"));
    for word in ["renewInstance", "refundRenewInstance"] {
        for expiry in [&[("instanceId", "i")][..], &[("instanceId", "i"), ("expiredOn", "soon")]] {
            assert_eq!(issues(word, expiry), undated, "{word}");
        }
    }
    let long = "x".repeat(spid::internals::observe::limits::NAME_MAX_BYTES + 1);
    assert_eq!(
        issues("expiredInstance", &[("instanceId", &long)]),
        [ValidationIssue::UnknownValue { name: "instanceId".into() }]
    );
}

#[test]
fn unknown_actions_are_kept_and_doubted() {
    for word in ["bindDomain", "", "CreateInstance", "token"] {
        let callback = understood("alibaba", word, &[("instanceId", "i")]);
        assert_eq!(callback.action, Action::Other);
        assert_eq!(callback.issues, [ValidationIssue::UnknownAction], "{word:?}");
        assert_eq!(callback.parameters.get("instanceId"), Some("i"));
    }
}

#[test]
fn a_parameter_hidden_behind_an_ampersand_has_the_same_token_and_is_held() {
    let alibaba = named("alibaba");
    let honest = pairs(&[("aliUid", "1"), ("expiredOn", "2027-01-01 00:00:00"), ("orderBizId", "7")]);
    let out = alibaba.request("createInstance", &honest, &keys(KEY), &Sending::at(now()));
    let token = out.query.rsplit_once("token=").unwrap().1.to_owned();
    let forged = pairs(&[
        ("action", "createInstance"),
        ("aliUid", "1&expiredOn=2027-01-01 00:00:00"),
        ("orderBizId", "7"),
    ]);
    let send = Sending { signature: SendSignature::Pinned(token), ..Sending::at(now()) };
    let forged = alibaba.request("", &forged, &keys(KEY), &send);
    let callback = receive(alibaba, &forged, &keys(KEY)).unwrap();
    assert_eq!(callback.issues, [ValidationIssue::AmbiguousValue { name: "aliUid".into() }]);
    assert_eq!(issues("createInstance", &[("label", "R&D"), ("orderBizId", "7")]), []);
}

// ---- JD Cloud -----------------------------------------------------------------------------------

#[test]
fn jdcloud_speaks_with_its_own_names() {
    let vector = vectors().into_iter().find(|vector| vector.name == "jdcloud-create").unwrap();
    let sent: Vec<(&str, &str)> = vector.params.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let callback = understood("jdcloud", "createInstance", &sent);
    assert_eq!(callback.action, Action::Create);
    assert_eq!(callback.buyer.as_deref(), Some("bujiaban"));
    assert_eq!(callback.product.as_deref(), Some("FW_GOODS-500232"));
    assert_eq!(callback.sku.as_deref(), Some("FW_GOODS-500232-1"));
    assert_eq!(callback.items, BTreeMap::from([("accountNum".to_owned(), "1".to_owned())]));
    assert_eq!(callback.issues, []);
    assert_eq!(named("jdcloud").delivery_limit(&callback), Some(200));
    assert_eq!(named("alibaba").delivery_limit(&callback), Some(120));
}

#[test]
fn jdcloud_changes_capacity_and_releases() {
    let callback = understood("jdcloud", "dilateInstance", &[("instanceId", "i"), ("accountNum", "9")]);
    assert_eq!(callback.action, Action::Upgrade);
    assert_eq!(callback.items.get("accountNum").map(String::as_str), Some("9"));
    for (word, action) in [
        ("renewInstance", Action::Renew),
        ("upgradeInstance", Action::Upgrade),
        ("expiredInstance", Action::Expire),
        ("verify", Action::SignOn),
        ("releaseInstance", Action::Release),
    ] {
        assert_eq!(understood("jdcloud", word, &[("instanceId", "i")]).action, action, "{word}");
    }
}

/// The page shows both as JSON texts, and its own sample is not valid JSON.
#[test]
fn jdcloud_s_items_stand_in_json_texts_and_keep_their_digits() {
    let items = |parameters: &[(&str, &str)]| {
        let items = understood("jdcloud", "createInstance", parameters).items;
        items.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    let packed = items(&[
        ("orderBizId", "b-1"),
        ("accountNum", "3"),
        ("extraInfo", r#"{"disk":"100","nodes":9007199254740993,"tls":true}"#),
        ("additionInfo", r#"{"region":"north","disk":"200"}"#),
        ("appCode", "a"),
        ("tenantCode", "t"),
        ("userCode", "u"),
    ]);
    for item in ["accountNum=3", "nodes=9007199254740993", "tls=true", "region=north"] {
        assert!(packed.split(' ').any(|it| it == item), "{item}: {packed}");
    }
    let disks: Vec<&str> = packed.split(' ').filter(|item| item.contains("disk=")).collect();
    assert_eq!(disks.len(), 2, "one of two items with one name was lost: {packed}");
    assert!(!packed.contains("Code"), "{packed}");
    // A text that cannot be split without loss stays complete.
    for whole in [
        r#"{"disk":12.50}"#,
        r#"{"disk":100,}"#,
        "[1]",
        "plain",
        r#"{"a":[{"b":1.0}]}"#,
        r#"{"seats":1,"seats":5}"#,
        r#"{"a":[{"seats":1,"seats":5}]}"#,
    ] {
        assert_eq!(items(&[("orderBizId", "b-1"), ("extraInfo", whole)]), format!("extraInfo={whole}"));
    }
    let taken = [("orderBizId", "b-1"), ("seats", "1"), ("extraInfo", r#"{"seats":5,"extraInfo.seats":9}"#)];
    assert_eq!(items(&taken), r#"extraInfo={"seats":5,"extraInfo.seats":9} seats=1"#);
    let taken = [("orderBizId", "b-1"), ("additionInfo", "plain"), ("extraInfo", r#"{"additionInfo":"x"}"#)];
    let taken = items(&taken);
    assert!(taken.contains("plain") && taken.contains('x'), "{taken}");
    assert_eq!(items(&[("orderBizId", "b-1"), ("extraInfo", ""), ("additionInfo", "{}")]), "");
    let renewal =
        understood("jdcloud", "renewInstance", &[("instanceId", "i"), ("extraInfo", r#"{"a":"1"}"#)]);
    assert_eq!(renewal.items, BTreeMap::new());
    assert_eq!(renewal.parameters.get("extraInfo"), Some(r#"{"a":"1"}"#));
}

// ---- Replies of the query-token family ----------------------------------------------------------

fn rich() -> Answer {
    let mut answer = Answer::default();
    let plain = |text: &str| Field::Plain(text.to_owned());
    answer.app.insert("front_end_url".into(), plain("https://f.example"));
    answer.app.insert("license_for_user_guide".into(), plain("guide"));
    answer.app.insert("password".into(), Field::Secret(Secret::new("fake-password")));
    answer.app.insert("auth_url".into(), plain(""));
    answer.app.insert("my_own".into(), plain("kept"));
    answer.host.insert("inner_ip".into(), plain("10.0.0.1"));
    answer.info.insert("front_end_url".into(), plain("free text"));
    answer
}

fn applied(answer: Answer) -> Outcome {
    Outcome::Applied { instance_id: Some("i-1".into()), answer: Box::new(answer) }
}

fn not_applied() -> [Outcome; 4] {
    [
        Outcome::NotYet,
        Outcome::Refused { code: "hook", reason: "no".into() },
        Outcome::Held { reason: "look".into() },
        Outcome::Unavailable,
    ]
}

fn reply_to(word: &str, outcome: &Outcome, options: &Options) -> Reply {
    let callback = understood("alibaba", word, &[("instanceId", "i-1"), ("orderBizId", "1")]);
    named("alibaba").reply(&callback, outcome, options)
}

#[test]
fn create_is_answered_with_the_id_only_when_it_is_true() {
    let options = Options { public_url: Some("https://spi.example/spi".into()), ..Options::default() };
    let reply = reply_to("createInstance", &applied(rich()), &options);
    assert_eq!(reply.status, 200);
    assert_eq!(header(&reply, "cache-control"), Some("no-store"));
    assert_eq!(
        body(&reply),
        json!({
            "instanceId": "i-1",
            "hostInfo": {"innerIp": "10.0.0.1"},
            "appInfo": {
                "frontEndUrl": "https://f.example",
                "licenseForUserGuide": "guide",
                "password": "fake-password",
                "authUrl": "https://spi.example/spi",
                "my_own": "kept",
            },
            "info": {"front_end_url": "free text"},
        })
    );
    for outcome in not_applied().into_iter().chain([Outcome::done(None), Outcome::done(Some(String::new()))])
    {
        let reply = reply_to("createInstance", &outcome, &options);
        assert_eq!((reply.status, body(&reply)), (200, json!({"instanceId": "0"})), "{outcome:?}");
    }
    let plain = reply_to("createInstance", &Outcome::done(Some("i-1".into())), &Options::default());
    assert_eq!(body(&plain), json!({"instanceId": "i-1"}));
}

#[test]
fn a_hook_s_own_sign_on_url_is_left_alone() {
    let options = Options { public_url: Some("https://spi.example/spi".into()), ..Options::default() };
    for spelling in ["auth_url", "authUrl"] {
        let mut answer = Answer::default();
        answer.app.insert(spelling.into(), Field::Plain("https://own.example".into()));
        let reply = reply_to("createInstance", &applied(answer), &options);
        assert_eq!(body(&reply)["appInfo"], json!({"authUrl": "https://own.example"}));
    }
}

const SUCCESS_WORDS: [&str; 6] = [
    "renewInstance",
    "refundRenewInstance",
    "upgradeInstance",
    "expiredInstance",
    "releaseInstance",
    "orderPay",
];

#[test]
fn the_others_are_answered_with_success_or_a_message() {
    for word in SUCCESS_WORDS {
        let reply = reply_to(word, &Outcome::done(None), &Options::default());
        assert_eq!((reply.status, body(&reply)), (200, json!({"success": true})), "{word}");
        for outcome in not_applied() {
            let reply = reply_to(word, &outcome, &Options::default());
            let body = body(&reply);
            assert_eq!((reply.status, &body["success"]), (200, &json!(false)), "{word} {outcome:?}");
            assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()));
        }
    }
}

#[test]
fn success_is_spelt_as_configured_but_never_for_order_pay() {
    let options = Options { success_as: SuccessAs::String, ..Options::default() };
    for word in SUCCESS_WORDS {
        let [yes, no] =
            if word == "orderPay" { [json!(true), json!(false)] } else { [json!("true"), json!("false")] };
        assert_eq!(body(&reply_to(word, &Outcome::done(None), &options))["success"], yes, "{word}");
        assert_eq!(body(&reply_to(word, &Outcome::NotYet, &options))["success"], no, "{word}");
    }
}

#[test]
fn only_renew_shows_the_buyer_something_new() {
    let reply = body(&reply_to("renewInstance", &applied(rich()), &Options::default()));
    assert_eq!(reply["appInfo"]["frontEndUrl"], json!("https://f.example"));
    let reply = body(&reply_to("upgradeInstance", &applied(rich()), &Options::default()));
    assert_eq!(reply, json!({"success": true}));
}

#[test]
fn sign_on_redirects_or_shows_a_page() {
    let to = |url: &str| {
        let answer = Answer { redirect: Some(Secret::new(url)), ..Answer::default() };
        reply_to("verify", &applied(answer), &Options::default())
    };
    let reply = to("https://a.example/in?ticket=fake");
    assert_eq!((reply.status, header(&reply, "location")), (302, Some("https://a.example/in?ticket=fake")));
    assert_eq!(header(&reply, "referrer-policy"), Some("no-referrer"));
    assert!(!String::from_utf8(reply.body).unwrap().contains("ticket"));
    for bad in ["", "/in", "javascript:alert(1)", "https://a.example/\r\nx: y"] {
        let reply = to(bad);
        assert_eq!((reply.status, header(&reply, "location")), (502, None), "{bad:?}");
    }
    for (outcome, status) in not_applied().into_iter().zip([503, 403, 403, 503]) {
        let reply = reply_to("verify", &outcome, &Options::default());
        assert_eq!((reply.status, reply.content_type), (status, "text/html; charset=utf-8"), "{outcome:?}");
        assert_eq!(header(&reply, "retry-after").is_some(), status == 503);
    }
}

#[test]
fn create_idaas_answers_freely_and_never_claims_what_is_not_there() {
    let free = |body: &str| Answer { body: Some(Secret::new(body)), ..Answer::default() };
    let told = r#"{"success":true,"ssoUrl":"https://s.example"}"#;
    let reply = body(&reply_to("createIdaas", &applied(free(told)), &Options::default()));
    assert_eq!(reply, serde_json::from_str::<Value>(told).unwrap());
    for outcome in not_applied().into_iter().chain([applied(Answer::default()), applied(free("{"))]) {
        let reply = body(&reply_to("createIdaas", &outcome, &Options::default()));
        assert_eq!(reply["success"], json!(false), "{outcome:?}");
    }
}

#[test]
fn an_unknown_action_is_answered_no_until_somebody_did_it() {
    let held = Outcome::Held { reason: ValidationIssue::UnknownAction.to_string() };
    assert_eq!(body(&reply_to("bindDomain", &held, &Options::default()))["success"], json!(false));
    let done = reply_to("bindDomain", &Outcome::done(None), &Options::default());
    assert_eq!(body(&done), json!({"success": true}));
}

// ---- Generic ------------------------------------------------------------------------------------

fn generic_post(content_type: &str, body: &str) -> OutRequest {
    let timestamp = now().as_second().to_string();
    let parts = spid_core::signature::Parts::Dated { timestamp: timestamp.clone(), body: body.into() };
    OutRequest {
        method: "POST",
        query: String::new(),
        headers: vec![
            ("content-type", content_type.to_owned()),
            ("spid-timestamp", timestamp),
            ("spid-signature", parts.sign(&keys(KEY))),
        ],
        body: body.into(),
    }
}

fn generic_json(body: &str) -> Result<Callback, Denial> {
    receive(named("generic"), &generic_post("application/json", body), &keys(KEY))
}

#[test]
fn generic_takes_json_and_forms_alike() {
    let json = generic_json(
        r#"{"action": "create", "order_biz_id": "ob-1", "order_id": 2001, "buyer": "acme", "product": "p",
            "sku": "s", "trial": true, "expires_on": "2030-01-01T00:00:00+08:00", "note": null,
            "items": {"seats": 5, "gb": 1.5, "label": "R&D"}}"#,
    )
    .unwrap();
    assert_eq!(json.action, Action::Create);
    assert_eq!(json.order_id.as_deref(), Some("2001"));
    assert_eq!(json.trial, Some(true));
    assert_eq!(json.expires_on.as_ref().unwrap().at.unwrap().to_string(), "2029-12-31T16:00:00Z");
    assert_eq!(json.items.get("seats").map(String::as_str), Some("5"));
    assert_eq!(json.items.get("gb").map(String::as_str), Some("1.5"));
    assert_eq!(json.sent_at, Some(now()));
    assert_eq!(json.issues, [], "a body signed whole has nothing to hide behind an `&`");

    let form = "action=create&order_biz_id=ob-1&order_id=2001&buyer=acme&product=p&sku=s&trial=true\
                &expires_on=2030-01-01T00:00:00%2B08:00&note=&items.seats=5&items.gb=1.5&items.label=R%26D";
    let out = generic_post("application/x-www-form-urlencoded", form);
    assert_eq!(receive(named("generic"), &out, &keys(KEY)).unwrap(), json);
}

#[test]
fn generic_for_ever_is_a_date_in_every_spelling() {
    for text in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59+08:00", "9999-12-31 23:59:59"] {
        for action in ["create", "renew", "refund-renew"] {
            let sent = [("instance_id", "i-1"), ("order_biz_id", "ob-1"), ("expires_on", text)];
            let callback = understood("generic", action, &sent);
            assert_eq!(callback.issues, [], "{action} {text}");
            assert!(callback.expires_on.unwrap().at.unwrap().to_string().starts_with("9999-12-30"), "{text}");
        }
    }
}

#[test]
fn generic_numbers_keep_the_digits_they_were_sent_with() {
    for number in ["202611300000000000000001", "18446744073709551616", "1e3", "1.50", "0.10", "-0", "-1.0E-2"]
    {
        let body = format!(
            r#"{{"action":"create","order_biz_id":{number},"x":{number},"items":{{"seats":{number}}}}}"#
        );
        let callback = generic_json(&body).unwrap();
        assert_eq!(callback.subject.order_biz_id.as_deref(), Some(number));
        assert_eq!(callback.parameters.get("x"), Some(number));
        assert_eq!(callback.items.get("seats").map(String::as_str), Some(number));
    }
}

#[test]
fn a_hook_s_free_answer_keeps_its_digits_on_the_wire() {
    let text = r#"{"amount":1.50,"id":202611300000000000000001,"list":[1e3]}"#;
    let answer = Answer { body: Some(Secret::new(text)), ..Answer::default() };
    let stored = answer.split();
    let answer = Answer::join(stored.open.as_deref(), stored.secret.as_ref()).unwrap();
    let outcome = Outcome::Applied { instance_id: None, answer: Box::new(answer) };
    let generic = named("generic").reply(&understood("generic", "query", &[]), &outcome, &Options::default());
    let told = String::from_utf8(generic.body).unwrap();
    assert!(told.contains(&format!("\"answer\":{text}")), "{told}");
}

#[test]
fn generic_has_every_action_in_every_form() {
    for action in Action::ALL {
        let sent = [
            ("instance_id", "i-1"),
            ("order_biz_id", "ob-1"),
            ("request_id", "r-1"),
            ("expires_on", "2030-01-01 00:00:00"),
            ("refund", "true"),
            ("items.seats", "5"),
        ];
        let callback = understood("generic", action.as_str(), &sent);
        assert_eq!((callback.action, callback.issues.len()), (action, 0), "{action}");
        assert_eq!(callback.refund, Some(true));
        assert_eq!(callback.items.len(), 1);
    }
    assert_eq!(understood("generic", "dance", &[]).issues, [ValidationIssue::UnknownAction]);
}

#[test]
fn generic_json_has_one_reading() {
    for (body, reason) in [
        (r#"{"action":"create","action":"release"}"#, "duplicate-parameter"),
        (r#"{"a":null,"a":"1"}"#, "duplicate-parameter"),
        (r#"{"a":"1","\u0061":"1"}"#, "duplicate-parameter"),
        (r#"{"items":{"a":"1","a":"2"}}"#, "duplicate-parameter"),
        (r#"{"items":{"a":"1"},"items.a":"2"}"#, "duplicate-parameter"),
        (r#"{"items":{"a":"1"},"items":{"b":"2"}}"#, "malformed"),
        (r#"{"items":{"a":{"b":"c"}}}"#, "malformed"),
        (r#"{"items":{"items":{"b":"c"}}}"#, "malformed"),
        (r#"{"items":"5"}"#, "malformed"),
        (r#"{"a":{"b":"c"}}"#, "malformed"),
        (r#"{"a":["b"]}"#, "malformed"),
        (r#"{"a":1e999}"#, "malformed"),
        (r#"{"a":01}"#, "malformed"),
        (r#"{"a":"1"} {"#, "malformed"),
        (r#""hunter2""#, "malformed"),
        ("", "malformed"),
        (r#"{"a":"\u0000"}"#, "nul"),
        (r#"{"":"1"}"#, "bad-name"),
    ] {
        let refusal = generic_json(body).unwrap_err();
        assert_eq!(refusal.reason(), reason, "{body}");
        assert!(!refusal.to_string().contains("hunter2"));
    }
    let many: Vec<String> = (0..200).map(|n| format!("\"p{n}\":1")).collect();
    assert_eq!(generic_json(&format!("{{{}}}", many.join(","))).unwrap_err().reason(), "too-many-parameters");
    let deep = "[".repeat(60_000);
    assert_eq!(generic_json(&format!("{{\"a\":{deep}")).unwrap_err().reason(), "malformed");
}

#[test]
fn generic_guards_refuse() {
    let generic = named("generic");
    let honest = Sending::at(now());
    let parameters = pairs(&[("order_biz_id", "ob-1")]);
    let sent = |send: &Sending| generic.request("create", &parameters, &keys(KEY), send);
    let with = |signature: SendSignature| sent(&Sending { signature, ..honest.clone() });
    assert_eq!(reason("generic", &with(SendSignature::Omitted)), "missing-signature");
    assert_eq!(reason("generic", &with(SendSignature::Altered)), "wrong-signature");
    assert_eq!(reason("generic", &with(SendSignature::Pinned("0".repeat(32)))), "malformed-signature");
    for form in [SendForm::Usual, SendForm::Form] {
        let altered = Sending { form, altered: pairs(&[("order_biz_id", "ob-2")]), ..honest.clone() };
        assert_eq!(reason("generic", &sent(&altered)), "wrong-signature");
        let twice = Sending { form, appended: pairs(&[("order_biz_id", "ob-1")]), ..honest.clone() };
        assert_eq!(reason("generic", &sent(&twice)), "duplicate-parameter");
    }
    assert_eq!(reason("generic", &sent(&Sending { raw: "}".into(), ..honest.clone() })), "malformed");
    assert_eq!(reason("generic", &OutRequest { method: "GET", ..sent(&honest) }), "method");
    assert_eq!(reason("generic", &OutRequest { query: "a=1".into(), ..sent(&honest) }), "malformed");
    assert_eq!(reason("generic", &OutRequest { headers: Vec::new(), ..sent(&honest) }), "undated");
    let headers = vec![("spid-timestamp", now().as_second().to_string())];
    assert_eq!(reason("generic", &OutRequest { headers, ..sent(&honest) }), "content-type");
    for bad in ["", "soon", "-1", "+1767225600", "1767225600.0", "9999999999999", "1e9"] {
        let mut out = sent(&honest);
        out.headers = vec![("content-type", "application/json".into()), ("spid-timestamp", bad.into())];
        assert_eq!(reason("generic", &out), "undated", "{bad}");
    }
}

#[test]
fn generic_is_fresh_for_five_minutes_either_way() {
    let window = SignedDuration::from_millis(spid::internals::observe::limits::DATED_WINDOW_MS);
    let second = SignedDuration::from_secs(1);
    let sent = |at: Timestamp| {
        let out = named("generic").request("query", &[], &keys(KEY), &Sending::at(at));
        receive(named("generic"), &out, &keys(KEY)).map(|_| ()).map_err(|refusal| refusal.reason())
    };
    assert_eq!(sent(now() - window), Ok(()));
    assert_eq!(sent(now() + window), Ok(()));
    assert_eq!(sent(now() - window - second), Err("stale"));
    assert_eq!(sent(now() + window + second), Err("stale"));
}

#[test]
fn generic_answers_in_neutral_words() {
    let callback = understood("generic", "create", &[("order_biz_id", "ob-1")]);
    let reply = |outcome: &Outcome| named("generic").reply(&callback, outcome, &Options::default());
    let done = reply(&applied(rich()));
    assert_eq!(done.status, 200);
    let told = body(&done);
    assert_eq!((&told["status"], &told["instance_id"]), (&json!("applied"), &json!("i-1")));
    assert_eq!(told["app"]["front_end_url"], json!("https://f.example"));
    assert_eq!(told["host"], json!({"inner_ip": "10.0.0.1"}));
    for (outcome, word) in not_applied().into_iter().zip(["not-yet", "refused", "held", "unavailable"]) {
        let told = body(&reply(&outcome));
        assert_eq!(told["status"], json!(word));
        assert!(told["message"].is_string());
    }
    let answer = Answer {
        redirect: Some(Secret::new("https://a.example/in")),
        body: Some(Secret::new(r#"{"a":1}"#)),
        ..Answer::default()
    };
    let told = body(&reply(&Outcome::Applied { instance_id: None, answer: Box::new(answer) }));
    let expected = json!({"status": "applied", "redirect": "https://a.example/in", "answer": {"a": 1}});
    assert_eq!(told, expected);
}

/// Text inside the first fenced block of `language` in a page.
fn block<'a>(page: &'a str, language: &str) -> &'a str {
    let (_, from) = page.split_once(&format!("```{language}\n")).unwrap();
    from.split_once("\n```").unwrap().0
}

#[test]
fn the_page_a_caller_is_written_from_is_true() {
    let page = include_str!("../../docs/dialects/generic.md");
    assert!(page.contains("the key `fake-key`, the timestamp `1767225600`"));
    assert_eq!(now().as_second(), 1_767_225_600);
    let mut out = generic_post("application/json", block(page, "json"));
    out.headers[2].1 = block(page, "text").to_owned();
    let callback = receive(named("generic"), &out, &keys("fake-key")).unwrap();
    assert_eq!((callback.action, callback.buyer.as_deref()), (Action::Create, Some("acme")));
    for action in Action::ALL {
        assert!(page.contains(&format!("| `{action}` |")), "{action} is described");
    }
}

/// Reads one complete HTTP request and answers it with `reply`.
fn serve_once(listener: &TcpListener, reply: &str) -> OutRequest {
    let (mut socket, _) = listener.accept().unwrap();
    let mut text = String::new();
    let mut chunk = [0; 4096];
    loop {
        let count = socket.read(&mut chunk).unwrap();
        text.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let sent: BTreeMap<String, &str> = lines.map(|(name, v)| (name.to_ascii_lowercase(), v)).collect();
        if body.len() < sent["content-length"].parse().unwrap() {
            continue;
        }
        let length = reply.len();
        write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{reply}")
            .unwrap();
        let names = ["content-type", "spid-timestamp", "spid-signature"];
        return OutRequest {
            method: "POST",
            query: String::new(),
            headers: names.map(|name| (name, sent[name].to_owned())).to_vec(),
            body: body.as_bytes().to_vec(),
        };
    }
}

#[test]
fn the_example_caller_is_understood() {
    if Command::new("python3").arg("--version").output().is_err() {
        return; // the example needs Python
    }
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    std::fs::write(&key_file, format!("{KEY}\n")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/generic", listener.local_addr().unwrap());
    let caller = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/generic_caller.py"))
        .args(["--url", &url, "--key-file"])
        .arg(&key_file)
        .args(["create", "order_biz_id=ob-1", "buyer=中", "item.seats=5"])
        .env_remove("http_proxy")
        .env("no_proxy", "127.0.0.1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The thread keeps a caller that never calls from blocking the test.
    let server = std::thread::spawn(move || serve_once(&listener, r#"{"status":"not-yet"}"#));
    let output = caller.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "call again");
    assert!(String::from_utf8(output.stdout).unwrap().contains("not-yet"));
    let out = server.join().unwrap();

    let sent_at = Timestamp::from_second(out.header("spid-timestamp").unwrap().parse().unwrap()).unwrap();
    let header = |name: &str| out.header(name);
    let request = RawRequest { method: "POST", query: b"", header: &header, body: &out.body };
    let verified = named("generic").parts(&request, sent_at).unwrap().verify(&keys(KEY)).unwrap();
    let callback = named("generic").callback(verified, &Options::default());
    assert_eq!((callback.action, callback.buyer.as_deref()), (Action::Create, Some("中")));
    assert_eq!(callback.items.get("seats").map(String::as_str), Some("5"));
}

// ---- Properties ---------------------------------------------------------------------------------

fn any_parameters() -> impl Strategy<Value = Vec<Pair>> {
    prop::collection::btree_map("[^\0&=]{1,12}", "[^\0]{0,40}", 0..8).prop_map(|map| {
        let reserved = ["action", "token", "items"];
        map.into_iter().filter(|(name, _)| !reserved.contains(&name.as_str())).collect()
    })
}

proptest! {
    #[test]
    fn what_is_sent_is_what_was_signed(parameters in any_parameters()) {
        for name in dialect::names() {
            for form in [SendForm::Usual, SendForm::Form] {
                let dialect = named(name);
                let out = dialect.request("query", &parameters, &keys(KEY), &in_form(form));
                let callback = receive(dialect, &out, &keys(KEY)).unwrap();
                prop_assert_eq!(callback.parameters.len(), parameters.len() + 1);
                for (name, value) in &parameters {
                    prop_assert_eq!(callback.parameters.get(name), Some(value.as_str()));
                }
                prop_assert!(receive(dialect, &out, &keys("another-fake-key")).is_err());
            }
        }
    }

    #[test]
    fn no_bytes_make_a_dialect_panic(
        query in prop::collection::vec(any::<u8>(), 0..120),
        body in prop::collection::vec(any::<u8>(), 0..120),
        media_type in prop::sample::select(vec!["application/json", "application/x-www-form-urlencoded", ";", ""]),
        method in prop::sample::select(vec!["GET", "POST", "", "\u{1F}"]),
        timestamp in "[0-9]{0,14}|1767225600",
    ) {
        let header = |name: &str| Some(match name {
            "content-type" => media_type,
            "spid-timestamp" => timestamp.as_str(),
            _ => "00",
        });
        for name in dialect::names() {
            for query in [&query[..], b""] {
                let request = RawRequest { method, query, header: &header, body: &body };
                let refusal = match named(name).parts(&request, now()) {
                    Ok(signed) => signed.verify(&keys(KEY)).map(|_| ()).unwrap_err().into(),
                    Err(refusal) => refusal,
                };
                let reply = named(name).refuse(&request, &refusal);
                prop_assert!((400..500).contains(&reply.status));
            }
        }
    }

    #[test]
    fn every_verified_request_is_understood_somehow(
        action in "[a-zA-Z-]{0,20}|createInstance|renewInstance|orderPay|create|renew",
        parameters in any_parameters(),
        known in prop::collection::btree_map(
            prop::sample::select(vec!["instanceId", "orderBizId", "expiredOn", "timeStamp", "expires_on", "trial"]),
            "[^\0]{0,40}|[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}",
            0..4,
        ),
    ) {
        let parameters: BTreeMap<String, String> =
            parameters.into_iter().chain(known.into_iter().map(|(n, v)| (n.to_owned(), v))).collect();
        let parameters: Vec<Pair> = parameters.into_iter().collect();
        for name in dialect::names() {
            let out = named(name).request(&action, &parameters, &keys(KEY), &Sending::at(now()));
            let callback = receive(named(name), &out, &keys(KEY)).unwrap();
            let reply = named(name).reply(&callback, &Outcome::NotYet, &Options::default());
            prop_assert!(matches!(reply.status, 200 | 503));
        }
    }
}

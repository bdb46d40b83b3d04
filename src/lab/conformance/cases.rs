//! The table of cases, and the code of each case that is more than one request.
//!
//! Every case buys its own instances, and its requests contain only what the case tests. If a request about
//! something else also had a new name, an empty value or a capital letter, one fault would fail many cases.

use std::pin::Pin;
use std::sync::PoisonError;

use super::finding::{AnswerSummary, Finding};
use super::test_run::{MONTH, PurchasedInstance, TestRequest, TestRun, token_with_wrong_end, wrong_token};
use super::token_method::TokenMethod;
use super::{Aspect, Case, Level};
use crate::lab::exchange::{self, Answer};
use crate::observe::limits::CONFORMANCE_CONCURRENT_COUNT;
use spid_core::dialect::SendForm;
use spid_hook::json::Json;

use Check::{Accepted, Computes, Denied, Own, Succeeds};

/// Finding of a case: `Ok` if it passed, `Err` if it failed.
pub(super) type Tested = Result<Finding, Finding>;
/// A running case.
type Running<'a> = Pin<Box<dyn Future<Output = Tested> + Send + 'a>>;
/// Change of a purchase.
type Change = fn(&TestRun, TestRequest) -> TestRequest;

/// Test of a case.
pub(super) enum Check {
    /// A purchase with this description and change must be answered with an id.
    Accepted(&'static str, Change),
    /// A purchase with this description and change must be denied.
    Denied(&'static str, Change),
    /// An instance is bought for this many hours. Then a request about it is sent this many times, and must be
    /// answered with success each time.
    Succeeds(i64, u32, fn(&TestRun, &PurchasedInstance) -> TestRequest),
    /// The endpoint must not compute its token with one of these methods.
    Computes(&'static [TokenMethod]),
    /// Anything else.
    Own(fn(&mut TestRun) -> Running<'_>),
}

impl Check {
    pub(super) async fn run(&self, run: &mut TestRun) -> Tested {
        match self {
            Accepted(what, change) => {
                let (_, purchase) = run.purchase();
                let (id, _) = run.until_id(&change(run, purchase).what(what)).await?;
                Ok(Finding::Id { id })
            }
            Denied(what, change) => {
                let (_, purchase) = run.purchase();
                let answer = run.denied(&change(run, purchase).what(what)).await?;
                Ok(answered(&answer))
            }
            Succeeds(hours, times, request) => {
                let instance = run.buy_for(*hours).await?;
                let request = request(run, &instance);
                run.until_success(&request).await?;
                if *times == 1 { Ok(Finding::Success {}) } else { again(run, request).await }
            }
            Computes(methods) => computes(run, methods),
            Own(test) => test(run).await,
        }
    }
}

fn answered(answer: &Answer) -> Finding {
    Finding::Answered { answer: AnswerSummary::from(answer) }
}

/// Sends a request once more after its success, which must be a success again.
async fn again(run: &mut TestRun, request: TestRequest) -> Tested {
    let what = format!("{}, once more,", request.what);
    run.until_success(&request.what(&what)).await?;
    Ok(Finding::BothSuccess {})
}

fn computes(run: &mut TestRun, methods: &[TokenMethod]) -> Tested {
    run.exchanges.clone_from(&run.discovery.exchanges);
    let method = run.discovery.method;
    if methods.contains(&method) {
        Err(Finding::OtherToken { method })
    } else {
        Ok(Finding::DocumentedToken {})
    }
}

const CREATE: &str = "help.aliyun.com/document_detail/147358.html";
const RENEW: &str = "help.aliyun.com/zh/marketplace/renewinstance";
const REFUND: &str = "help.aliyun.com/zh/marketplace/refundrenewinstance";
const UPGRADE: &str = "help.aliyun.com/document_detail/147369.html";
const EXPIRE: &str = "help.aliyun.com/zh/marketplace/expiredinstance";
const RELEASE: &str = "help.aliyun.com/zh/marketplace/releaseinstance";
const VERIFY: &str = "help.aliyun.com/document_detail/147370.html";
const PAY: &str = "help.aliyun.com/zh/marketplace/orderpay";
const TOKEN: &str = "help.aliyun.com/document_detail/147280.html";
const SPI: &str = "help.aliyun.com/document_detail/445547.htm";
const SELF_TEST: &str = "help.aliyun.com/zh/marketplace/self-test-saas-commodities";
const INTL_UPGRADE: &str = "www.alibabacloud.com/help/en/marketplace/upgradeinstance";
const INTL_RELEASE: &str = "www.alibabacloud.com/help/en/marketplace/releaseinstance";

macro_rules! case {
    ($id:literal, $level:ident, $aspect:ident, $source:ident, [$($needs:literal),*], $check:expr, $rule:literal) => {
        Case {
            id: $id,
            level: Level::$level,
            aspect: Aspect::$aspect,
            rule: $rule,
            source: $source,
            needs: &[$($needs),*],
            check: $check,
        }
    };
}

macro_rules! own {
    ($test:ident) => {
        Own(|run| Box::pin($test(run)))
    };
}

/// Returns all cases in execution order: a case comes after the cases that it needs.
pub fn cases() -> &'static [Case] {
    &CASES
}

#[rustfmt::skip] // a table: a line of facts, a line of code, a line of words
static CASES: [Case; 62] = [
    // Purchase.
    case!("create", Must, Activation, CREATE, [], own!(create),
        "A purchase is answered with an id that is not 0, at once or when the marketplace calls again."),
    case!("create-distinct", Must, Purchase, CREATE, ["create"], own!(create_distinct),
        "Two purchases are two instances."),
    case!("create-repeat", Must, Purchase, CREATE, ["create"], own!(create_repeat),
        "The same purchase again is answered with the same id."),
    case!("create-concurrent", Must, Purchase, CREATE, ["create-repeat"], own!(create_concurrent),
        "The same purchase 32 times at once is one instance."),
    case!("create-trial", Must, Purchase, CREATE, ["create"],
        Accepted("a trial", |_, it| it.with("trial", "true")),
        "A trial purchase is answered with an id."),
    // Token.
    case!("token-order", Must, Signature, TOKEN, ["create"],
        Computes(&[TokenMethod::ByValue, TokenMethod::AsSent]),
        "The token is computed from the parameters, sorted by name."),
    case!("token-decoded", Must, Signature, TOKEN, ["create"],
        Computes(&[TokenMethod::Encoded]),
        "The token is computed from decoded values."),
    case!("token-key", Must, Signature, TOKEN, ["create"],
        Computes(&[TokenMethod::BareKey]),
        "The key is appended as &key=, not alone."),
    case!("token-lower", Must, Signature, TOKEN, ["create"],
        Computes(&[TokenMethod::Capitals]),
        "A lower-case token is accepted: the marketplace sends no other."),
    case!("wrong-token", Must, Signature, TOKEN, ["create"],
        Denied("a purchase with a wrong token", |_, it| it.token(wrong_token)),
        "A request with a wrong token is denied and changes nothing."),
    case!("missing-token", Must, Signature, TOKEN, ["wrong-token"],
        Denied("a purchase without a token", |_, it| it.without_token()),
        "A request without a token is denied and changes nothing."),
    case!("empty-token", Must, Signature, TOKEN, ["wrong-token"],
        Denied("a purchase with an empty token", |_, it| it.token(|_| String::new())),
        "A request with an empty token is denied and changes nothing."),
    case!("token-end", Must, Signature, TOKEN, ["wrong-token"],
        Denied("a purchase with a token wrong in its last digit", |_, it| it.token(token_with_wrong_end)),
        "All digits of the token are compared."),
    case!("token-short", Must, Signature, TOKEN, ["wrong-token", "token-end"],
        Denied("a purchase with the first half of its token", |_, it| it.token(|right| right.chars().take(right.len() / 2).collect())),
        "The first half of a token is denied."),
    case!("token-long", Must, Signature, TOKEN, ["wrong-token", "token-end"],
        Denied("a purchase with two digits behind its token", |_, it| it.token(|right| format!("{right}00"))),
        "A token with additional digits is denied."),
    case!("empty-key", Must, Signature, TOKEN, ["wrong-token"], own!(empty_key),
        "A request that was signed with an empty key, or with the text of an unset one, is denied."),
    case!("altered-expiry", Must, Signature, TOKEN, ["wrong-token"],
        // The forged term is 12 months instead of one.
        Denied("a purchase whose expiry was changed after signing", |run, it| TestRequest { altered: vec![("expiredOn".to_owned(), run.hence(12 * MONTH))], ..it }),
        "A request whose expiry was changed after signing is denied."),
    case!("unknown-parameter", Must, Signature, TOKEN, ["create"],
        Accepted("a purchase with an unknown parameter", |_, it| it.with("channel", "new")),
        "Unknown parameters are part of the token: the vendor may add one at any time."),
    case!("empty-value", Must, Signature, TOKEN, ["create"],
        Accepted("a purchase with an empty template", |_, it| it.with("template", "")),
        "A parameter with an empty value is part of the token."),
    case!("capital-names", Must, Signature, TOKEN, ["unknown-parameter"],
        Accepted("a purchase with Count and Num", |_, it| it.with("Count", "2").with("Num", "3")),
        "Names are sorted by their bytes: capitals come before small letters."),
    case!("space-percent", Must, Signature, TOKEN, ["unknown-parameter"],
        Accepted("a purchase with %20 in expiredOn and in label", |_, it| it.with("label", "two words")),
        "A space encoded as %20 is a space, in every value."),
    case!("space-plus", Must, Signature, TOKEN, ["create"],
        Accepted("a purchase with + in expiredOn", |_, it| TestRequest { plus: true, ..it }),
        "A space encoded as + is a space."),
    case!("utf8", Must, Signature, TOKEN, ["unknown-parameter"],
        Accepted("a purchase with Chinese in a value", |_, it| it.with("label", "中文")),
        "Values are UTF-8."),
    // Single sign-on.
    case!("sign-on", Must, SignOn, VERIFY, ["create-distinct"], own!(sign_on),
        "A buyer's sign-on link is answered with a page or a redirect."),
    case!("sign-on-forged", Must, SignOn, VERIFY, ["sign-on", "wrong-token"], own!(sign_on_forged),
        "A sign-on link with a wrong token is denied."),
    case!("sign-on-stale", Must, SignOn, VERIFY, ["sign-on"], own!(sign_on_stale),
        "A sign-on link that is 24 hours old is denied: timeStamp is checked."),
    // Information in the buyer's console.
    case!("app-info", Must, Information, SELF_TEST, ["create"], own!(app_info),
        "The answer to a purchase contains frontEndUrl, adminUrl, username and password."),
    // Renewal, upgrade, expiry, release.
    case!("renew", Must, Renewal, RENEW, ["create-distinct"],
        Succeeds(MONTH, 1, |run, it| run.renewal(&it.id, 2)),
        "A renewal is answered with success."),
    case!("renew-repeat", Must, Renewal, SPI, ["renew"],
        Succeeds(MONTH, 2, |run, it| run.renewal(&it.id, 2)),
        "The same renewal again is answered with success again: an answer may get lost."),
    case!("upgrade", Must, Lifecycle, UPGRADE, ["create-distinct"],
        Succeeds(MONTH, 2, |run, it| run.upgrade(&it.id)),
        "An upgrade is answered with success."),
    case!("extra-items", Must, Purchase, CREATE, ["unknown-parameter", "upgrade"], own!(extra_items),
        "Extra billing items, called as the seller published them, come with purchases and upgrades."),
    case!("expire", Must, Lifecycle, EXPIRE, ["create-distinct"],
        Succeeds(1, 1, |_, it| TestRun::expiry(&it.id)),
        "The end of a term is answered with success."),
    case!("expire-repeat", Must, Lifecycle, SPI, ["expire"],
        Succeeds(1, 2, |_, it| TestRun::expiry(&it.id)),
        "The same expiry again is answered with success again."),
    case!("expire-again", Must, Lifecycle, EXPIRE, ["expire", "renew"], own!(expire_again),
        "Expiry, renewal and a second expiry are each answered with success. The second expiry is byte for byte the first."),
    case!("release", Must, Lifecycle, RELEASE, ["create-distinct"],
        Succeeds(MONTH, 1, |_, it| TestRun::release(&it.id)),
        "A release is answered with success."),
    case!("release-repeat", Must, Lifecycle, SPI, ["release"],
        Succeeds(MONTH, 2, |_, it| TestRun::release(&it.id)),
        "The same release again is answered with success again."),
    // Rules that follow from the pages, and behavior of only one of the two sites.
    case!("id-is-text", Should, Purchase, CREATE, ["create"], own!(id_is_text),
        "instanceId is a text, not a number."),
    case!("id-is-order", Should, Purchase, CREATE, ["create-repeat", "create-distinct", "id-is-text"], own!(id_is_order),
        "instanceId is the orderBizId, as recommended: the two sites disagree on which of them later requests carry."),
    case!("success-is-boolean", Should, Lifecycle, RENEW, ["renew"], own!(success_is_boolean),
        "success is a boolean, as the tables have it."),
    case!("json-type", Should, Purchase, PAY, ["create"], own!(json_type),
        "Answers are sent as application/json."),
    case!("refusal-status", Should, Signature, TOKEN, ["wrong-token"], own!(refusal_status),
        "A wrong token is answered with a status from 400 to 499, as the vendor's own example does."),
    case!("ampersand", Should, Signature, TOKEN, ["unknown-parameter"],
        Accepted("a purchase with R&D in a value", |_, it| it.with("label", "R&D")),
        "A value with an encoded & in it, like R&D, is one value."),
    case!("image", Should, Purchase, RENEW, ["renew", "release"], own!(image),
        "Image products send ecsInstanceId, too."),
    case!("arrears", Should, Renewal, SPI, ["expire", "renew"], own!(arrears),
        "Arrears freeze a pay-as-you-go instance, and their payment comes as a renewal."),
    case!("refund-renew", Should, Renewal, REFUND, ["renew"], own!(refund_renew),
        "A refunded renewal is answered with success, and so is its repetition."),
    case!("refund-release", Should, Lifecycle, RELEASE, ["release"],
        Succeeds(MONTH, 1, |_, it| TestRun::release(&it.id).with("isRefund", "true").what("a release after a refund")),
        "A release after a refund is answered with success."),
    case!("order-pay", Should, Purchase, PAY, ["create"], own!(order_pay),
        "A payment is answered with status 200, application/json and success, a boolean; so is its repetition."),
    case!("intl-upgrade", Should, Lifecycle, INTL_UPGRADE, ["upgrade"],
        Succeeds(MONTH, 1, |run, it| run.upgrade(&it.id).without("orderId").what("an upgrade without orderId")),
        "The international site upgrades without an orderId."),
    case!("intl-release", Should, Lifecycle, INTL_RELEASE, ["release"],
        Succeeds(MONTH, 1, |_, it| TestRun::release(&it.id).without("isRefund").what("a release without isRefund")),
        "The international site releases without isRefund."),
    case!("renew-unknown", Should, Renewal, RENEW, ["renew"], own!(renew_unknown),
        "A renewal of an unknown instance is not a success, because a buyer paid for it."),
    case!("renew-released", Should, Renewal, RELEASE, ["renew", "release"], own!(renew_released),
        "A renewal of a released instance is not a success, because a buyer paid for it."),
    case!("late-create", Should, Purchase, RELEASE, ["create-repeat", "renew-released"], own!(late_create),
        "A purchase that is repeated after the release creates no instance."),
    // Requests that no page describes.
    case!("token-upper", Hardening, Signature, TOKEN, ["create"], own!(token_upper),
        "An upper-case token is accepted or denied, without a server error."),
    case!("unsigned-parameter", Hardening, Robustness, TOKEN, ["wrong-token", "unknown-parameter"],
        Denied("a purchase with a parameter added after signing", |_, it| TestRequest { behind: "&channel=new", ..it }),
        "A parameter added after signing makes the token wrong."),
    case!("duplicate-before", Hardening, Robustness, TOKEN, ["wrong-token"],
        Denied("a purchase with a second skuId before the signed one", |_, it| TestRequest { before: "skuId=yuncode0000100009&", ..it }),
        "A name given twice is refused: with another value before the signed one."),
    case!("duplicate-behind", Hardening, Robustness, TOKEN, ["wrong-token"],
        Denied("a purchase with a second skuId behind the signed one", |_, it| TestRequest { behind: "&skuId=yuncode0000100009", ..it }),
        "A name given twice is refused: with another value behind the signed one."),
    case!("hidden-parameter", Hardening, Robustness, TOKEN, ["wrong-token"],
        // Both readings of `aliUid=1&expiredOn=…`, as two parameters or as one, have the same token.
        Denied("a purchase whose expiredOn was swallowed by aliUid", |_, it| it.hide_in("aliUid", "expiredOn")),
        "A parameter hidden in the value before it is denied, although the token is valid."),
    case!("broken-encoding", Hardening, Robustness, TOKEN, ["wrong-token"], own!(broken_encoding),
        "Broken percent-encoding, bytes that are not UTF-8, and NUL are denied without a server error."),
    case!("unknown-action", Hardening, Robustness, SPI, ["create"], own!(unknown_action),
        "An unknown action is not a success, and causes no server error."),
    case!("post-form", Hardening, Robustness, TOKEN, ["create"],
        Accepted("a purchase as a POST form", |_, it| TestRequest { form: SendForm::Form, ..it }),
        "A POST form is accepted: the pages say GET, but the vendor's demo takes POST."),
    case!("sign-on-once", Hardening, SignOn, VERIFY, ["sign-on"], own!(sign_on_once),
        "A sign-on link works only once, because it stays in histories and logs."),
    // All earlier requests together, so this case comes last.
    case!("answer-time", Should, Activation, CREATE, ["create"], own!(answer_time),
        "Every answer is in time: a longer job is answered with id 0 and continues."),
];

async fn create(run: &mut TestRun) -> Tested {
    run.exchanges.clone_from(&run.discovery.exchanges);
    match &run.discovery.first {
        Ok(instance) => Ok(Finding::Id { id: instance.id.clone() }),
        Err(found @ Finding::UnsetKeyAccepted { .. }) => Err(found.clone()),
        Err(found) => Err(Finding::NoKnownToken { found: Box::new(found.clone()) }),
    }
}

async fn create_repeat(run: &mut TestRun) -> Tested {
    let (_, request) = run.purchase();
    let (first, _) = run.until_id(&request).await?;
    let request = request.what("the same purchase again");
    for _ in 0..3 {
        let (again, _) = run.until_id(&request).await?;
        if again != first {
            return Err(Finding::AnotherIdAgain { first, again });
        }
    }
    Ok(Finding::IdEachTime { id: first })
}

async fn create_concurrent(run: &mut TestRun) -> Tested {
    let request = run.purchase().1.what("one of 32 at once");
    // "Call again" is a good answer to some of them; only different ids are a fault.
    let answers = run.send_at_once(&request, CONFORMANCE_CONCURRENT_COUNT).await?;
    let ids: Vec<String> = answers.iter().filter_map(Answer::id).collect();
    let (last, _) = run.until_id(&request.what("the same purchase once more")).await?;
    match ids.iter().find(|id| **id != last) {
        Some(one) => Err(Finding::TwoIdsForOneOrder { one: one.clone(), other: last }),
        None => Ok(Finding::OneIdInAnswers { count: ids.len() + 1, id: last }),
    }
}

async fn create_distinct(run: &mut TestRun) -> Tested {
    let (one, other) = (run.buy().await?.id, run.buy().await?.id);
    if one == other { Err(Finding::OneIdForTwoOrders { id: one }) } else { Ok(Finding::Ids { one, other }) }
}

async fn extra_items(run: &mut TestRun) -> Tested {
    let (_, request) = run.purchase();
    let request = request.with("bandwidth", "5").with("seats", "2").what("a purchase of two items");
    let (id, _) = run.until_id(&request).await?;
    let more = run.upgrade(&id).with("bandwidth", "5").with("seats", "7").what("an upgrade of one of them");
    run.until_success(&more).await?;
    Ok(Finding::ItemsUpgraded { id })
}

async fn sign_on(run: &mut TestRun) -> Tested {
    let instance = run.buy().await?;
    let answer = run.follow(&instance, &run.sign_on(&instance.id, 0)).await?;
    Ok(match answer.redirect_target() {
        Some(url) => Finding::LinkLeads { url: exchange::header(url) },
        None => Finding::LinkShows {},
    })
}

/// Buys an instance and follows a good link. Then checks that another link does not lead to the same page.
async fn expect_sign_on_denied(
    run: &mut TestRun,
    other: fn(&TestRun, &PurchasedInstance, TestRequest) -> TestRequest,
) -> Tested {
    let instance = run.buy().await?;
    let link = run.sign_on(&instance.id, 0);
    let good = run.follow(&instance, &link).await?;
    let request = other(run, &instance, link);
    let answer = run.send_to(&run.sign_on_url(&instance), &request).await?;
    let status = answer.status;
    let leads_in = status < 400 && answer.leads_a_browser();
    if leads_in && answer.redirect_target() == good.redirect_target() {
        return Err(Finding::LinkAccepted { request: request.what, status });
    }
    Ok(Finding::AnsweredStatus { status })
}

async fn sign_on_forged(run: &mut TestRun) -> Tested {
    expect_sign_on_denied(run, |run, instance, _| {
        run.sign_on(&instance.id, 0).token(wrong_token).what("a link with a wrong token")
    })
    .await
}

async fn sign_on_stale(run: &mut TestRun) -> Tested {
    // The token is right; only the timestamp is 24 hours old.
    expect_sign_on_denied(run, |run, instance, _| run.sign_on(&instance.id, -24).what("a link a day old"))
        .await
}

async fn sign_on_once(run: &mut TestRun) -> Tested {
    expect_sign_on_denied(run, |_, _, link| link.what("the same link again")).await
}

/// Uses terms of hours, because an SPI endpoint may know that nothing expires a month too early.
async fn expire_again(run: &mut TestRun) -> Tested {
    let instance = run.buy_for(1).await?;
    run.until_success(&TestRun::expiry(&instance.id)).await?;
    let until = run.hence(2);
    run.until_success(&run.renewal(&instance.id, 1).with("expiredOn", &until)).await?;
    run.until_success(&TestRun::expiry(&instance.id).what("the second expiry")).await?;
    Ok(Finding::EachSuccess {})
}

async fn answer_time(run: &mut TestRun) -> Tested {
    // Sends nothing: measures the answers to all earlier cases.
    let limit_ms = run.run.suite.within.as_millis();
    let (ms, request) = run.run.slowest.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if u128::from(ms) > limit_ms {
        return Err(Finding::Slow { request, ms, limit_ms });
    }
    Ok(Finding::Slowest { ms, request })
}

async fn app_info(run: &mut TestRun) -> Tested {
    let instance = run.buy().await?;
    let mut missing = Vec::new();
    // The vendor's self-test asks for these four members, each with a text in it.
    for name in ["frontEndUrl", "adminUrl", "username", "password"] {
        let value = instance.answer.member("appInfo").and_then(|app| app.get(name));
        if value.and_then(Json::as_text).is_none_or(str::is_empty) {
            missing.push(name);
        }
    }
    match missing.is_empty() {
        true => Ok(Finding::AppInfoComplete {}),
        false => Err(Finding::AppInfoLacks { members: missing.join(", ") }),
    }
}

async fn id_is_text(run: &mut TestRun) -> Tested {
    match run.buy().await?.answer.member("instanceId") {
        Some(Json::Text(_)) => Ok(Finding::IdIsText {}),
        other => Err(Finding::IdIsNoText { value: other.cloned().unwrap_or_default() }),
    }
}

async fn id_is_order(run: &mut TestRun) -> Tested {
    let PurchasedInstance { id, order, .. } = run.buy().await?;
    if id == order.biz {
        Ok(Finding::IdIsOrder {})
    } else {
        Err(Finding::IdIsNotOrder { order: order.biz, id })
    }
}

async fn success_is_boolean(run: &mut TestRun) -> Tested {
    let instance = run.buy().await?;
    match run.until_success(&run.renewal(&instance.id, 2)).await?.member("success") {
        Some(Json::Bool(_)) => {}
        other => return Err(Finding::SuccessIsNoBoolean { value: other.cloned().unwrap_or_default() }),
    }
    // Failures may be written by other code. They need no `success`, but one that is there is a boolean.
    let (order, _) = run.purchase();
    let forged = run.renewal(&instance.id, 3).token(wrong_token).what("a renewal with a wrong token");
    let unknown = run.renewal(&order.biz, 2).what("a renewal of an unknown instance");
    for request in [forged, unknown] {
        match run.send(&request).await?.member("success") {
            None | Some(Json::Bool(_)) => {}
            Some(value) => {
                return Err(Finding::FailureIsNoBoolean { request: request.what, value: value.clone() });
            }
        }
    }
    Ok(Finding::SuccessIsBoolean {})
}

/// Tests all five texts, because the language of the endpoint decides which of them an unset key is.
async fn empty_key(run: &mut TestRun) -> Tested {
    match run.accepts_unset_key().await {
        Some(key) => Err(Finding::UnsetKeyAccepted { key: key.name }),
        None => Ok(Finding::EachRefused {}),
    }
}

async fn json_type(run: &mut TestRun) -> Tested {
    content_is_json(&run.buy().await?.answer)
}

fn content_is_json(answer: &Answer) -> Tested {
    // Parameters such as `charset=utf-8` are allowed.
    let kind = answer.content_type.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(Finding::ContentIsJson {}),
        false => Err(Finding::ContentIsNotJson { kind: answer.content_type.clone() }),
    }
}

async fn refusal_status(run: &mut TestRun) -> Tested {
    let request = run.purchase().1.token(wrong_token).what("a purchase with a wrong token");
    let status = run.denied(&request).await?.status;
    let finding = Finding::Status { status };
    if (400..500).contains(&status) { Ok(finding) } else { Err(finding) }
}

async fn image(run: &mut TestRun) -> Tested {
    // Image products send this parameter with every request.
    let (name, machine) = ("ecsInstanceId", "i-0123456789abcdef");
    let request = run.purchase().1.with(name, machine).what("a purchase with ecsInstanceId");
    let (id, _) = run.until_id(&request).await?;
    let renewal = run.renewal(&id, 2).with(name, machine).what("a renewal with ecsInstanceId");
    run.until_success(&renewal).await?;
    let release = TestRun::release(&id).with(name, machine).what("a release with ecsInstanceId");
    run.until_success(&release).await?;
    Ok(Finding::ImageReleased {})
}

/// Buys without a term: with pay-as-you-go `expiredOn` is not sent until the arrears are paid.
async fn arrears(run: &mut TestRun) -> Tested {
    let request = run.purchase().1.without("expiredOn").what("a purchase without a term");
    let (id, _) = run.until_id(&request).await?;
    run.until_success(&TestRun::expiry(&id).what("arrears")).await?;
    run.until_success(&run.renewal(&id, 1).what("the payment of the arrears")).await?;
    Ok(Finding::Unfrozen {})
}

async fn refund_renew(run: &mut TestRun) -> Tested {
    let instance = run.buy().await?;
    run.until_success(&run.renewal(&instance.id, 2)).await?;
    // A refund sets the term back to the term of the purchase.
    let params = [("instanceId", instance.id.as_str()), ("expiredOn", &instance.order.term)];
    let refund = TestRequest::new("the refund of a renewal", "refundRenewInstance", &params);
    run.until_success(&refund).await?;
    again(run, refund).await
}

async fn order_pay(run: &mut TestRun) -> Tested {
    let (order, _) = run.purchase();
    let (request, product) = (format!("{}-paid", order.order), &run.run.suite.product);
    let params = [
        ("requestId", request.as_str()),
        ("aliUid", &product.buyer),
        ("orderBizId", &order.biz),
        ("orderId", &order.order),
        ("productCode", &product.code),
        ("skuId", &product.sku),
    ];
    let payment = TestRequest::new("a payment", "orderPay", &params);
    for _ in 0..2 {
        let answer = run.until_success(&payment).await?;
        if answer.member("success") != Some(&Json::Bool(true)) {
            return Err(Finding::PaymentSuccessIsNoBoolean {});
        }
        content_is_json(&answer)?;
    }
    Ok(Finding::PaymentsAcknowledged {})
}

async fn renew_unknown(run: &mut TestRun) -> Tested {
    // A new order number that was never bought, so no instance has this id.
    let (unknown, _) = run.purchase();
    let request = run.renewal(&unknown.biz, 2).what("a renewal of an unknown instance");
    let answer = run.denied_calmly(&request).await?;
    Ok(answered(&answer))
}

async fn renew_released(run: &mut TestRun) -> Tested {
    let instance = run.buy().await?;
    run.until_success(&TestRun::release(&instance.id)).await?;
    let request = run.renewal(&instance.id, 2).what("a renewal of what was released");
    let answer = run.denied_calmly(&request).await?;
    Ok(answered(&answer))
}

/// Tests with a renewal: from the outside, an instance exists if it can be renewed.
async fn late_create(run: &mut TestRun) -> Tested {
    let (_, request) = run.purchase();
    let (id, _) = run.until_id(&request).await?;
    run.until_success(&TestRun::release(&id)).await?;
    let late = run.patiently(&request.what("the purchase once more, after the release")).await?;
    if let Some(other) = late.id().filter(|other| *other != id) {
        return Err(Finding::AnotherIdAfterRelease { id, other });
    }
    // A renewal shows whether the late purchase created an instance.
    let renewal = run.renewal(&id, 2).what("a renewal after that");
    match run.denied(&renewal).await {
        Ok(_) => Ok(Finding::NotCreatedAgain { answer: AnswerSummary::from(&late) }),
        Err(_) => Err(Finding::CreatedAgain {}),
    }
}

async fn token_upper(run: &mut TestRun) -> Tested {
    let request =
        run.purchase().1.token(str::to_ascii_uppercase).what("a purchase with its token in capitals");
    let answer = run.send(&request).await?;
    // Accepting and denying are both right; a server error or a page is not.
    let is_wrong = answer.status >= 500 || answer.json.is_none() && answer.status < 400;
    if is_wrong { Err(answered(&answer)) } else { Ok(answered(&answer)) }
}

async fn broken_encoding(run: &mut TestRun) -> Tested {
    // In this order: no hex digits, not UTF-8, a NUL, and a `%` at the end.
    for behind in ["&label=%zz", "&label=%ff", "&label=%00", "&label=%"] {
        let what = format!("a purchase with {} behind it", behind.trim_start_matches('&'));
        let (_, purchase) = run.purchase();
        run.denied_calmly(&TestRequest { behind, what, ..purchase }).await?;
    }
    Ok(Finding::EachRefused {})
}

async fn unknown_action(run: &mut TestRun) -> Tested {
    let instance = run.buy().await?;
    let request = TestRequest::new("an unknown action", "rebootInstance", &[("instanceId", &instance.id)]);
    let answer = run.denied_calmly(&request).await?;
    Ok(answered(&answer))
}

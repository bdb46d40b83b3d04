//! The table of cases, and the code of each case.
//!
//! Every case buys its own instances, and its requests contain only what the case tests. If a request about
//! something else also had a new name, an empty value or a capital letter, one fault would fail many cases.

use std::pin::Pin;
use std::sync::PoisonError;

use super::recipe::Recipe;
use super::trial::{Ask, Bought, Heard, Token, Trial};
use super::{Aspect, Case, Level};
use crate::lab::exchange;
use crate::observe::limits::CONFORMANCE_CONCURRENT_COUNT;
use spid_hook::json::Json;

/// Finding of a case: `Ok` if it passed, `Err` if it failed.
type Said = Result<String, String>;
/// A running case.
pub(super) type Judging<'a> = Pin<Box<dyn Future<Output = Said> + Send + 'a>>;
/// Code of a case.
pub(super) type Judge = fn(&mut Trial) -> Judging<'_>;

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

/// Number of hours in 30 days.
const MONTH: i64 = 30 * 24;

macro_rules! case {
    ($id:literal, $level:ident, $aspect:ident, $source:ident, [$($needs:literal),*], $judge:ident, $rule:literal) => {
        Case {
            id: $id,
            level: Level::$level,
            aspect: Aspect::$aspect,
            rule: $rule,
            source: $source,
            needs: &[$($needs),*],
            judge: |trial| Box::pin($judge(trial)),
        }
    };
}

/// Returns all cases in execution order: a case comes after the cases that it needs.
pub fn cases() -> &'static [Case] {
    &CASES
}

#[rustfmt::skip] // a table: a line of facts, a line of words
static CASES: [Case; 61] = [
    // Purchase.
    case!("create", Must, Activation, CREATE, [], create,
        "A purchase is answered with an id that is not 0, at once or when the marketplace calls again."),
    case!("create-distinct", Must, Purchase, CREATE, ["create"], create_distinct,
        "Two purchases are two instances."),
    case!("create-repeat", Must, Purchase, CREATE, ["create"], create_repeat,
        "The same purchase again is answered with the same id."),
    case!("create-concurrent", Must, Purchase, CREATE, ["create-repeat"], create_concurrent,
        "The same purchase 32 times at once is one instance."),
    case!("create-trial", Must, Purchase, CREATE, ["create"], create_trial,
        "A trial purchase is answered with an id."),
    // Token.
    case!("token-order", Must, Signature, TOKEN, ["create"], token_order,
        "The token is computed from the parameters, sorted by name."),
    case!("token-decoded", Must, Signature, TOKEN, ["create"], token_decoded,
        "The token is computed from decoded values."),
    case!("token-key", Must, Signature, TOKEN, ["create"], token_key,
        "The key is appended as &key=, not alone."),
    case!("token-lower", Must, Signature, TOKEN, ["create"], token_lower,
        "A lower-case token is accepted: the marketplace sends no other."),
    case!("wrong-token", Must, Signature, TOKEN, ["create"], wrong_token,
        "A request with a wrong token is denied and changes nothing."),
    case!("missing-token", Must, Signature, TOKEN, ["wrong-token"], missing_token,
        "A request without a token is denied and changes nothing."),
    case!("empty-token", Must, Signature, TOKEN, ["wrong-token"], empty_token,
        "A request with an empty token is denied and changes nothing."),
    case!("token-end", Must, Signature, TOKEN, ["wrong-token"], token_end,
        "All digits of the token are compared."),
    case!("token-short", Must, Signature, TOKEN, ["wrong-token", "token-end"], token_short,
        "The first half of a token is denied."),
    case!("token-long", Must, Signature, TOKEN, ["wrong-token", "token-end"], token_long,
        "A token with additional digits is denied."),
    case!("altered-expiry", Must, Signature, TOKEN, ["wrong-token"], altered_expiry,
        "A request whose expiry was changed after signing is denied."),
    case!("unknown-parameter", Must, Signature, TOKEN, ["create"], unknown_parameter,
        "Unknown parameters are part of the token: the vendor may add one at any time."),
    case!("empty-value", Must, Signature, TOKEN, ["create"], empty_value,
        "A parameter with an empty value is part of the token."),
    case!("capital-names", Must, Signature, TOKEN, ["unknown-parameter"], capital_names,
        "Names are sorted by their bytes: capitals come before small letters."),
    case!("space-percent", Must, Signature, TOKEN, ["unknown-parameter"], space_percent,
        "A space encoded as %20 is a space, in every value."),
    case!("space-plus", Must, Signature, TOKEN, ["create"], space_plus,
        "A space encoded as + is a space."),
    case!("utf8", Must, Signature, TOKEN, ["unknown-parameter"], utf8,
        "Values are UTF-8."),
    // Single sign-on.
    case!("sign-on", Must, SignOn, VERIFY, ["create-distinct"], sign_on,
        "A buyer's sign-on link is answered with a page or a redirect."),
    case!("sign-on-forged", Must, SignOn, VERIFY, ["sign-on", "wrong-token"], sign_on_forged,
        "A sign-on link with a wrong token is denied."),
    case!("sign-on-stale", Must, SignOn, VERIFY, ["sign-on"], sign_on_stale,
        "A sign-on link that is 24 hours old is denied: timeStamp is checked."),
    // Information in the buyer's console.
    case!("app-info", Must, Information, SELF_TEST, ["create"], app_info,
        "The answer to a purchase contains frontEndUrl, adminUrl, username and password."),
    // Renewal, upgrade, expiry, release.
    case!("renew", Must, Renewal, RENEW, ["create-distinct"], renew,
        "A renewal is answered with success."),
    case!("renew-repeat", Must, Renewal, SPI, ["renew"], renew_repeat,
        "The same renewal again is answered with success again: an answer may get lost."),
    case!("upgrade", Must, Life, UPGRADE, ["create-distinct"], upgrade,
        "An upgrade is answered with success."),
    case!("extra-items", Must, Purchase, CREATE, ["unknown-parameter", "upgrade"], extra_items,
        "Extra billing items, called as the seller published them, come with purchases and upgrades."),
    case!("expire", Must, Life, EXPIRE, ["create-distinct"], expire,
        "The end of a term is answered with success."),
    case!("expire-repeat", Must, Life, SPI, ["expire"], expire_repeat,
        "The same expiry again is answered with success again."),
    case!("expire-again", Must, Life, EXPIRE, ["expire", "renew"], expire_again,
        "Expiry, renewal and a second expiry are each answered with success. The second expiry is byte for byte the first."),
    case!("release", Must, Life, RELEASE, ["create-distinct"], release,
        "A release is answered with success."),
    case!("release-repeat", Must, Life, SPI, ["release"], release_repeat,
        "The same release again is answered with success again."),
    // Rules that follow from the pages, and behavior of only one of the two sites.
    case!("id-is-text", Should, Purchase, CREATE, ["create"], id_is_text,
        "instanceId is a text, not a number."),
    case!("id-is-order", Should, Purchase, CREATE, ["create-repeat", "create-distinct", "id-is-text"], id_is_order,
        "instanceId is the orderBizId, as recommended: the two sites disagree on which of them later requests carry."),
    case!("success-is-boolean", Should, Life, RENEW, ["renew"], success_is_boolean,
        "success is a boolean, as the tables have it."),
    case!("json-type", Should, Purchase, PAY, ["create"], json_type,
        "Answers are sent as application/json."),
    case!("refusal-status", Should, Signature, TOKEN, ["wrong-token"], refusal_status,
        "A wrong token is answered with a status from 400 to 499, as the vendor's own example does."),
    case!("ampersand", Should, Signature, TOKEN, ["unknown-parameter"], ampersand,
        "A value with an encoded & in it, like R&D, is one value."),
    case!("image", Should, Purchase, RENEW, ["renew", "release"], image,
        "Image products send ecsInstanceId, too."),
    case!("arrears", Should, Renewal, SPI, ["expire", "renew"], arrears,
        "Arrears freeze a pay-as-you-go instance, and their payment comes as a renewal."),
    case!("refund-renew", Should, Renewal, REFUND, ["renew"], refund_renew,
        "A refunded renewal is answered with success, and so is its repetition."),
    case!("refund-release", Should, Life, RELEASE, ["release"], refund_release,
        "A release after a refund is answered with success."),
    case!("order-pay", Should, Purchase, PAY, ["create"], order_pay,
        "A payment is answered with status 200, application/json and success, a boolean; so is its repetition."),
    case!("intl-upgrade", Should, Life, INTL_UPGRADE, ["upgrade"], intl_upgrade,
        "The international site upgrades without an orderId."),
    case!("intl-release", Should, Life, INTL_RELEASE, ["release"], intl_release,
        "The international site releases without isRefund."),
    case!("renew-unknown", Should, Renewal, RENEW, ["renew"], renew_unknown,
        "A renewal of an unknown instance is not a success, because a buyer paid for it."),
    case!("renew-released", Should, Renewal, RELEASE, ["renew", "release"], renew_released,
        "A renewal of a released instance is not a success, because a buyer paid for it."),
    case!("late-create", Should, Purchase, RELEASE, ["create-repeat", "renew-released"], late_create,
        "A purchase that is repeated after the release creates no instance."),
    // Requests that no page describes.
    case!("token-upper", Hardening, Signature, TOKEN, ["create"], token_upper,
        "An upper-case token is accepted or denied, without a server error."),
    case!("unsigned-parameter", Hardening, Robustness, TOKEN, ["wrong-token", "unknown-parameter"], unsigned_parameter,
        "A parameter added after signing makes the token wrong."),
    case!("duplicate-before", Hardening, Robustness, TOKEN, ["wrong-token"], duplicate_before,
        "A name given twice is refused: with another value before the signed one."),
    case!("duplicate-behind", Hardening, Robustness, TOKEN, ["wrong-token"], duplicate_behind,
        "A name given twice is refused: with another value behind the signed one."),
    case!("hidden-parameter", Hardening, Robustness, TOKEN, ["wrong-token"], hidden_parameter,
        "A parameter hidden in the value before it is denied, although the token is valid."),
    case!("broken-encoding", Hardening, Robustness, TOKEN, ["wrong-token"], broken_encoding,
        "Broken percent-encoding, bytes that are not UTF-8, and NUL are denied without a server error."),
    case!("unknown-action", Hardening, Robustness, SPI, ["create"], unknown_action,
        "An unknown action is not a success, and causes no server error."),
    case!("post-form", Hardening, Robustness, TOKEN, ["create"], post_form,
        "A POST form is accepted: the pages say GET, but the vendor's demo takes POST."),
    case!("sign-on-once", Hardening, SignOn, VERIFY, ["sign-on"], sign_on_once,
        "A sign-on link works only once, because it stays in histories and logs."),
    // All earlier requests together, so this case comes last.
    case!("answer-time", Should, Activation, CREATE, ["create"], answer_time,
        "Every answer is in time: a longer job is answered with id 0 and continues."),
];

async fn create(t: &mut Trial) -> Said {
    t.exchanges = t.learnt.exchanges.clone();
    match &t.learnt.first {
        Ok(bought) => Ok(format!("the id is {}", bought.id)),
        Err(found) => Err(format!(
            "{found}, with every known way to compute the token; check the key, or run `spid verify`"
        )),
    }
}

fn learnt(t: &mut Trial, is_about: fn(Recipe) -> bool) -> Said {
    t.exchanges = t.learnt.exchanges.clone();
    let recipe = t.learnt.recipe;
    if is_about(recipe) {
        let seems = recipe.seems_to();
        return Err(format!(
            "the endpoint seems to {seems}: a purchase with such a token was answered with an id"
        ));
    }
    Ok("a purchase with the documented token was answered with an id".to_owned())
}

async fn token_order(t: &mut Trial) -> Said {
    learnt(t, |recipe| matches!(recipe, Recipe::ByValue | Recipe::AsSent))
}

async fn token_decoded(t: &mut Trial) -> Said {
    learnt(t, |recipe| recipe == Recipe::Encoded)
}

async fn token_key(t: &mut Trial) -> Said {
    learnt(t, |recipe| recipe == Recipe::BareKey)
}

async fn token_lower(t: &mut Trial) -> Said {
    learnt(t, |recipe| recipe == Recipe::Capitals)
}

/// Sends a purchase, changed by `forge`, that must be denied.
async fn forged(t: &mut Trial, forge: impl FnOnce(Ask) -> Ask) -> Result<Heard, String> {
    let order = t.order(MONTH);
    let ask = forge(t.purchase(&order));
    t.refused(&ask).await
}

async fn forged_token(t: &mut Trial, token: Token, what: &str) -> Said {
    let heard = forged(t, |ask| ask.token(token).what(what)).await?;
    Ok(format!("the answer was {}", heard.shortly()))
}

async fn wrong_token(t: &mut Trial) -> Said {
    forged_token(t, Token::Wrong, "a purchase with a wrong token").await
}

async fn missing_token(t: &mut Trial) -> Said {
    forged_token(t, Token::Missing, "a purchase without a token").await
}

async fn empty_token(t: &mut Trial) -> Said {
    forged_token(t, Token::Empty, "a purchase with an empty token").await
}

async fn token_end(t: &mut Trial) -> Said {
    forged_token(t, Token::LastDigit, "a purchase with a token wrong in its last digit").await
}

async fn token_short(t: &mut Trial) -> Said {
    forged_token(t, Token::Short, "a purchase with the first half of its token").await
}

async fn token_long(t: &mut Trial) -> Said {
    forged_token(t, Token::Long, "a purchase with two digits behind its token").await
}

async fn altered_expiry(t: &mut Trial) -> Said {
    // The forged term is 12 months instead of one.
    let later = t.hence(12 * MONTH);
    let what = "a purchase whose expiry was changed after signing";
    let heard = forged(t, |ask| ask.altered("expiredOn", &later).what(what)).await?;
    Ok(format!("the answer was {}", heard.shortly()))
}

/// Sends a purchase, changed by `change`, that must be answered with an id.
async fn honest(t: &mut Trial, change: impl FnOnce(Ask) -> Ask) -> Said {
    let order = t.order(MONTH);
    let ask = change(t.purchase(&order));
    let (id, _) = t.until_id(&ask).await?;
    Ok(format!("the id is {id}"))
}

async fn unknown_parameter(t: &mut Trial) -> Said {
    honest(t, |ask| ask.with("channel", "new").what("a purchase with an unknown parameter")).await
}

async fn empty_value(t: &mut Trial) -> Said {
    honest(t, |ask| ask.with("template", "").what("a purchase with an empty template")).await
}

async fn capital_names(t: &mut Trial) -> Said {
    honest(t, |ask| ask.with("Count", "2").with("Num", "3").what("a purchase with Count and Num")).await
}

async fn space_percent(t: &mut Trial) -> Said {
    honest(t, |ask| ask.with("label", "two words").what("a purchase with %20 in expiredOn and in label"))
        .await
}

async fn space_plus(t: &mut Trial) -> Said {
    honest(t, |ask| ask.with_plus().what("a purchase with + in expiredOn")).await
}

async fn utf8(t: &mut Trial) -> Said {
    honest(t, |ask| ask.with("label", "中文").what("a purchase with Chinese in a value")).await
}

async fn ampersand(t: &mut Trial) -> Said {
    honest(t, |ask| ask.with("label", "R&D").what("a purchase with R&D in a value")).await
}

async fn create_trial(t: &mut Trial) -> Said {
    honest(t, |ask| ask.with("trial", "true").what("a trial")).await
}

async fn create_repeat(t: &mut Trial) -> Said {
    let order = t.order(MONTH);
    let ask = t.purchase(&order);
    let (first, _) = t.until_id(&ask).await?;
    for _ in 0..3 {
        let (again, _) = t.until_id(&ask.clone().what("the same purchase again")).await?;
        if again != first {
            return Err(format!("the id was {first}, and the same purchase again was answered with {again}"));
        }
    }
    Ok(format!("the id is {first} each time"))
}

async fn create_concurrent(t: &mut Trial) -> Said {
    let order = t.order(MONTH);
    let ask = t.purchase(&order).what("one of 32 at once");
    let mut ids = Vec::new();
    // "Call again" is a good answer to some of them; only different ids are a fault.
    for heard in t.send_at_once(&vec![ask.clone(); CONFORMANCE_CONCURRENT_COUNT]).await {
        ids.extend(heard?.id());
    }
    let (last, _) = t.until_id(&ask.what("the same purchase once more")).await?;
    match ids.iter().find(|id| **id != last) {
        Some(other) => Err(format!("one order was answered with the ids {other} and {last}")),
        None => {
            Ok(format!("{} answers contained the id {last}; no answer contained another id", ids.len() + 1))
        }
    }
}

async fn create_distinct(t: &mut Trial) -> Said {
    let (one, other) = (t.buy().await?, t.buy().await?);
    if one.id == other.id {
        return Err(format!("two orders were answered with one id, {}", one.id));
    }
    Ok(format!("the ids are {} and {}", one.id, other.id))
}

async fn extra_items(t: &mut Trial) -> Said {
    let order = t.order(MONTH);
    let ask = t.purchase(&order).with("bandwidth", "5").with("seats", "2").what("a purchase of two items");
    let (id, _) = t.until_id(&ask).await?;
    let more = t.upgrade(&id).with("bandwidth", "5").with("seats", "7").what("an upgrade of one of them");
    t.until_success(&more).await?;
    Ok(format!("bought with {id}, and upgraded"))
}

async fn sign_on(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let heard = t.follow_sign_on(&bought).await?;
    Ok(match heard.door() {
        Some(door) => {
            let door = exchange::header(door);
            format!("the link leads to {door}; check by hand that this is the application")
        }
        None => "the link shows a page; check by hand that this is the application".to_owned(),
    })
}

/// Checks that a link does not lead to the page that the good link leads to.
async fn expect_sign_on_denied(t: &mut Trial, bought: &Bought, good: &Heard, ask: &Ask) -> Said {
    let door = t.sign_on_url(bought);
    let heard = t.send_to(&door, ask).await?;
    if heard.lets_in() && heard.door() == good.door() {
        return Err(format!("{} was answered {}, like a valid link", ask.what_it_is(), heard.status));
    }
    Ok(format!("the answer was {}", heard.status))
}

async fn sign_on_forged(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let good = t.follow_sign_on(&bought).await?;
    let ask = t.sign_on(&bought.id, 0).token(Token::Wrong).what("a link with a wrong token");
    expect_sign_on_denied(t, &bought, &good, &ask).await
}

async fn sign_on_stale(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let good = t.follow_sign_on(&bought).await?;
    // The token is right; only the timestamp is 24 hours old.
    let ask = t.sign_on(&bought.id, -24).what("a link a day old");
    expect_sign_on_denied(t, &bought, &good, &ask).await
}

async fn sign_on_once(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = t.sign_on(&bought.id, 0);
    let good = t.follow(&bought, &ask).await?;
    expect_sign_on_denied(t, &bought, &good, &ask.what("the same link again")).await
}

async fn renew(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = t.renewal(&bought.id, &t.hence(2 * MONTH));
    t.until_success(&ask).await?;
    Ok("the answer was a success".to_owned())
}

/// Sends a request twice; both must be answered with success.
async fn twice(t: &mut Trial, ask: Ask) -> Said {
    t.until_success(&ask).await?;
    let again = format!("{}, once more,", ask.what_it_is());
    t.until_success(&ask.what(&again)).await?;
    Ok("both answers were a success".to_owned())
}

async fn renew_repeat(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = t.renewal(&bought.id, &t.hence(2 * MONTH));
    twice(t, ask).await
}

async fn upgrade(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = t.upgrade(&bought.id);
    twice(t, ask).await
}

async fn expire(t: &mut Trial) -> Said {
    let bought = t.buy_for(1).await?;
    t.until_success(&Trial::expiry(&bought.id)).await?;
    Ok("the answer was a success".to_owned())
}

async fn expire_repeat(t: &mut Trial) -> Said {
    let bought = t.buy_for(1).await?;
    twice(t, Trial::expiry(&bought.id)).await
}

/// Uses terms of hours, because an SPI endpoint may know that nothing expires a month too early.
async fn expire_again(t: &mut Trial) -> Said {
    let bought = t.buy_for(1).await?;
    t.until_success(&Trial::expiry(&bought.id)).await?;
    let ask = t.renewal(&bought.id, &t.hence(2));
    t.until_success(&ask).await?;
    t.until_success(&Trial::expiry(&bought.id).what("the second expiry")).await?;
    Ok("each was answered with success".to_owned())
}

async fn release(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    t.until_success(&Trial::release(&bought.id)).await?;
    Ok("the answer was a success".to_owned())
}

async fn release_repeat(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    twice(t, Trial::release(&bought.id)).await
}

async fn answer_time(t: &mut Trial) -> Said {
    // Sends nothing: measures the answers to all earlier cases.
    let limit = t.run.suite.within.as_millis();
    let (slowest, what) = t.run.slowest.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if u128::from(slowest) > limit {
        return Err(format!("{what} was answered after {slowest} ms; more than {limit} ms is too long"));
    }
    Ok(format!("the slowest answer so far took {slowest} ms, to {what}"))
}

async fn app_info(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    // The vendor's self-test asks for these four members, each with a text in it.
    let told = |name: &&str| {
        let value = bought.answer.member("appInfo").and_then(|app| app.get(name));
        value.and_then(Json::as_text).is_some_and(|text| !text.is_empty())
    };
    let missing: Vec<&str> =
        ["frontEndUrl", "adminUrl", "username", "password"].into_iter().filter(|name| !told(name)).collect();
    if missing.is_empty() {
        return Ok("appInfo contains all four members".to_owned());
    }
    Err(format!("appInfo has no {}; the vendor's self-test requires it", missing.join(", ")))
}

async fn id_is_text(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    match bought.answer.member("instanceId") {
        Some(Json::Text(_)) => Ok("instanceId is a text".to_owned()),
        other => Err(format!("instanceId is {}, without quotes", other.cloned().unwrap_or_default())),
    }
}

async fn id_is_order(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    if bought.id == bought.order.biz {
        return Ok("instanceId is the orderBizId".to_owned());
    }
    Err(format!("orderBizId {} was answered with the id {}", bought.order.biz, bought.id))
}

async fn success_is_boolean(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = t.renewal(&bought.id, &t.hence(2 * MONTH));
    match t.until_success(&ask).await?.member("success") {
        Some(Json::Bool(_)) => Ok("success is a boolean".to_owned()),
        other => Err(format!("success is {}", other.cloned().unwrap_or_default())),
    }
}

async fn json_type(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    is_json(&bought.answer)?;
    Ok("the answer is application/json".to_owned())
}

fn is_json(heard: &Heard) -> Result<(), String> {
    // Parameters such as `charset=utf-8` are allowed.
    let kind = heard.content_type.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(format!("the answer's Content-Type is `{}`", heard.content_type))
}

async fn refusal_status(t: &mut Trial) -> Said {
    let heard = forged(t, |ask| ask.token(Token::Wrong).what("a purchase with a wrong token")).await?;
    if (400..500).contains(&heard.status) {
        return Ok(format!("the status is {}", heard.status));
    }
    Err(format!("the status is {}", heard.status))
}

async fn image(t: &mut Trial) -> Said {
    // Image products send this parameter with every request.
    let machine = ("ecsInstanceId", "i-0123456789abcdef");
    let order = t.order(MONTH);
    let ask = t.purchase(&order).with(machine.0, machine.1).what("a purchase with ecsInstanceId");
    let (id, _) = t.until_id(&ask).await?;
    let renewal = t.renewal(&id, &t.hence(2 * MONTH)).with(machine.0, machine.1);
    t.until_success(&renewal.what("a renewal with ecsInstanceId")).await?;
    let release = Trial::release(&id).with(machine.0, machine.1);
    t.until_success(&release.what("a release with ecsInstanceId")).await?;
    Ok("bought, renewed and released".to_owned())
}

/// Buys without a term: with pay-as-you-go `expiredOn` is not sent until the arrears are paid.
async fn arrears(t: &mut Trial) -> Said {
    let order = t.order(MONTH);
    let ask = t.purchase(&order).without("expiredOn").what("a purchase without a term");
    let (id, _) = t.until_id(&ask).await?;
    t.until_success(&Trial::expiry(&id).what("arrears")).await?;
    let paid = t.renewal(&id, &t.hence(MONTH)).what("the payment of the arrears");
    t.until_success(&paid).await?;
    Ok("frozen and unfrozen".to_owned())
}

async fn refund_renew(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = t.renewal(&bought.id, &t.hence(2 * MONTH));
    t.until_success(&ask).await?;
    // A refund sets the term back to the term of the purchase.
    let params = [("instanceId", bought.id.as_str()), ("expiredOn", &bought.order.term)];
    twice(t, Ask::new("the refund of a renewal", "refundRenewInstance", &params)).await
}

async fn refund_release(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = Trial::release(&bought.id).with("isRefund", "true").what("a release after a refund");
    t.until_success(&ask).await?;
    Ok("the answer was a success".to_owned())
}

async fn order_pay(t: &mut Trial) -> Said {
    let order = t.order(MONTH);
    let request = format!("{}-paid", order.order);
    let goods = &t.run.suite.goods;
    let params = [
        ("requestId", request.as_str()),
        ("aliUid", &goods.buyer),
        ("orderBizId", &order.biz),
        ("orderId", &order.order),
        ("productCode", &goods.product),
        ("skuId", &goods.sku),
    ];
    let ask = Ask::new("a payment", "orderPay", &params);
    for _ in 0..2 {
        let heard = t.until_success(&ask).await?;
        if heard.member("success") != Some(&Json::Bool(true)) {
            return Err("success is not a boolean, as this page has it".to_owned());
        }
        is_json(&heard)?;
    }
    Ok("both payments were acknowledged".to_owned())
}

async fn intl_upgrade(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = t.upgrade(&bought.id).without("orderId").what("an upgrade without orderId");
    t.until_success(&ask).await?;
    Ok("the answer was a success".to_owned())
}

async fn intl_release(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = Trial::release(&bought.id).without("isRefund").what("a release without isRefund");
    t.until_success(&ask).await?;
    Ok("the answer was a success".to_owned())
}

async fn renew_unknown(t: &mut Trial) -> Said {
    // A new order number that was never bought, so no instance has this id.
    let unknown = t.order(MONTH);
    let ask = t.renewal(&unknown.biz, &t.hence(2 * MONTH)).what("a renewal of an unknown instance");
    let heard = t.refused_calmly(&ask).await?;
    Ok(format!("the answer was {}", heard.shortly()))
}

async fn renew_released(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    t.until_success(&Trial::release(&bought.id)).await?;
    let ask = t.renewal(&bought.id, &t.hence(2 * MONTH)).what("a renewal of what was released");
    let heard = t.refused_calmly(&ask).await?;
    Ok(format!("the answer was {}", heard.shortly()))
}

/// Tests with a renewal: from the outside, an instance exists if it can be renewed.
async fn late_create(t: &mut Trial) -> Said {
    let order = t.order(MONTH);
    let ask = t.purchase(&order);
    let (id, _) = t.until_id(&ask).await?;
    t.until_success(&Trial::release(&id)).await?;
    let late = t.patiently(&ask.what("the purchase once more, after the release")).await?;
    if let Some(other) = late.id().filter(|other| *other != id) {
        return Err(format!("the order had the id {id}, and after its release it has {other}"));
    }
    let renewal = t.renewal(&id, &t.hence(2 * MONTH)).what("a renewal after that");
    // A renewal shows whether the late purchase created an instance.
    match t.refused(&renewal).await {
        Ok(_) => Ok(format!("the answer was {}, and the instance cannot be renewed", late.shortly())),
        Err(_) => Err("the instance can be renewed: the late purchase created it again".to_owned()),
    }
}

async fn token_upper(t: &mut Trial) -> Said {
    let order = t.order(MONTH);
    let ask = t.purchase(&order).token(Token::Upper).what("a purchase with its token in capitals");
    let heard = t.send(&ask).await?;
    // Accepting and denying are both right; a server error or a page is not.
    if heard.status >= 500 || heard.json.is_none() && heard.status < 400 {
        return Err(format!("the answer was {}", heard.shortly()));
    }
    Ok(format!("the answer was {}", heard.shortly()))
}

async fn unsigned_parameter(t: &mut Trial) -> Said {
    let what = "a purchase with a parameter added after signing";
    let heard = forged(t, |ask| ask.behind("channel=new").what(what)).await?;
    Ok(format!("the answer was {}", heard.shortly()))
}

async fn duplicate_before(t: &mut Trial) -> Said {
    let what = "a purchase with a second skuId before the signed one";
    let heard = forged(t, |ask| ask.before("skuId=yuncode0000100009").what(what)).await?;
    Ok(format!("the answer was {}", heard.shortly()))
}

async fn duplicate_behind(t: &mut Trial) -> Said {
    let what = "a purchase with a second skuId behind the signed one";
    let heard = forged(t, |ask| ask.behind("skuId=yuncode0000100009").what(what)).await?;
    Ok(format!("the answer was {}", heard.shortly()))
}

/// Both readings of `aliUid=1&expiredOn=…`, as two parameters or as one, have the same token.
async fn hidden_parameter(t: &mut Trial) -> Said {
    let what = "a purchase whose expiredOn was swallowed by aliUid";
    let heard = forged(t, |ask| ask.swallowing("aliUid", "expiredOn").what(what)).await?;
    Ok(format!("the answer was {}", heard.shortly()))
}

async fn broken_encoding(t: &mut Trial) -> Said {
    // In this order: no hex digits, not UTF-8, a NUL, and a `%` at the end.
    for broken in ["label=%zz", "label=%ff", "label=%00", "label=%"] {
        let order = t.order(MONTH);
        let ask = t.purchase(&order).behind(broken).what(&format!("a purchase with {broken} behind it"));
        t.refused_calmly(&ask).await?;
    }
    Ok("each was refused".to_owned())
}

async fn unknown_action(t: &mut Trial) -> Said {
    let bought = t.buy().await?;
    let ask = Ask::new("an unknown action", "rebootInstance", &[("instanceId", &bought.id)]);
    let heard = t.refused_calmly(&ask).await?;
    Ok(format!("the answer was {}", heard.shortly()))
}

async fn post_form(t: &mut Trial) -> Said {
    honest(t, |ask| ask.posted().what("a purchase as a POST form")).await
}

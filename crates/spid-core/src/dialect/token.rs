//! The query-token family.
//! Parameters come in the query string or a form. The token is an MD5 over all of them except `token`. Replies
//! carry `instanceId` or `success`.
//!
//! This file holds the common code. Each marketplace of the family is a table, in a file of its own.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::dates::read_civil;
use super::names::Names;
use super::reply::{message, object};
use super::send::with_action;
use super::{
    Denial, Dialect, FORM_TYPE, GivesUp, Options, OutRequest, RawRequest, Reply, SendForm, Sending,
    SuccessAs, Unchecked, read_word,
};
use crate::query::{self, Pair};
use crate::signature::{Keys, Parts, Signed, Verified};
use spid_hook::Secret;
use spid_hook::callback::{Action, Answer, Callback, Outcome, Parameters, ValidationIssue};
use spid_hook::json::Json;

/// Table that describes one marketplace of the query-token family.
pub(super) struct TokenDialect {
    pub(super) name: &'static str,
    pub(super) delivery_limit: u32,
    /// Returns the time at which the marketplace gives up, and what it does then.
    pub(super) gives_up: fn(Action, Timestamp) -> Option<GivesUp>,
    pub(super) names: Names,
    pub(super) actions: &'static [ActionRow],
    /// Names that the marketplace may send with any action: never billing items.
    pub(super) system: &'static [&'static str],
    /// Names whose value is a JSON object with billing items in it.
    pub(super) packed: &'static [&'static str],
    /// Builds the `x-dashscope-euid` of (product, buyer), if the marketplace has this header.
    pub(super) euid: Option<fn(&str, &str) -> String>,
}

/// An action of a query-token marketplace.
pub(super) struct ActionRow {
    word: &'static str,
    action: Action,
    /// Documented names in addition to `TokenDialect::system`: never billing items either.
    names: &'static [&'static str],
    form: ReplyForm,
}

impl ActionRow {
    pub(super) const fn new(word: &'static str, action: Action, form: ReplyForm) -> ActionRow {
        ActionRow { word, action, names: &[], form }
    }

    pub(super) const fn with_names(self, names: &'static [&'static str]) -> ActionRow {
        ActionRow { names, ..self }
    }
}

/// The family's names: those of Alibaba. Each dialect has its own for the buyer and the product.
pub(super) const NAMES: Names = Names {
    instance_id: "instanceId",
    order_biz_id: "orderBizId",
    order_id: "orderId",
    request_id: "requestId",
    buyer: "aliUid",
    product: "productCode",
    sku: "skuId",
    trial: "trial",
    refund: "isRefund",
    expires_on: "expiredOn",
    read_date: read_civil,
    // refundRenewInstance and expiredInstance carry no order. Alibaba does not say which order releaseInstance names.
    ordered: &[Action::Create, Action::Renew, Action::Upgrade],
};

/// Form of the reply to an action.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplyForm {
    /// `instanceId`, with the information for the buyer. It is `"0"` until the instance exists.
    Instance,
    /// `success`, as a boolean or a text, as the endpoint's options say.
    Success,
    /// `success`, with the information that the buyer sees from now on.
    SuccessWithApp,
    /// `success`, documented to be a boolean.
    Boolean,
    /// A redirect or a page, because the client is a buyer's browser.
    Page,
    /// JSON of the hook, without changes. Without such JSON the answer is no success.
    Free,
}

const ACTION: &str = "action";
const TOKEN: &str = "token";
const TIME_STAMP: &str = "timeStamp";

/// The family's spelling of field names in an answer. A name that is not in this table is passed on unchanged.
const SPELLINGS: [(&str, &str); 12] = [
    ("front_end_url", "frontEndUrl"),
    ("admin_url", "adminUrl"),
    ("auth_url", AUTH_URL),
    ("license_id", "licenseId"),
    ("license_valid_period", "licenseValidPeriod"),
    ("license_for_user_guide", "licenseForUserGuide"),
    ("inner_ip", "innerIp"),
    ("temp_domain", "tempDomain"),
    ("ftp_username", "ftpUsername"),
    ("ftp_password", "ftpPassword"),
    ("beian_info", "beianInfo"),
    ("database_info", "databaseInfo"),
];
const AUTH_URL: &str = "authUrl";

impl Dialect for TokenDialect {
    fn name(&self) -> &'static str {
        self.name
    }

    fn signing(&self) -> &'static str {
        "query-token"
    }

    fn delivery_limit(&self, callback: &Callback) -> Option<u32> {
        // The buyer's browser sends a sign-on, and the buyer may try any number of times.
        (callback.action != Action::SignOn).then_some(self.delivery_limit)
    }

    fn has_sign_on(&self) -> bool {
        self.actions.iter().any(|row| row.action == Action::SignOn)
    }

    fn gives_up(&self, action: Action, first: Timestamp) -> Option<GivesUp> {
        (self.gives_up)(action, first)
    }

    fn parts(&self, request: &RawRequest<'_>, _now: Timestamp) -> Result<Signed<Unchecked>, Denial> {
        if !matches!(request.method, "GET" | "POST") {
            return Err(Denial::method(request, "GET, POST"));
        }
        let mut pairs = query::parse(request.query, form_of(request)?)?;
        let token = pairs.iter().position(|(name, _)| name == TOKEN);
        // The others keep their order: by it `explain` recognises a sender that does not sort.
        let presented = token.map(|at| pairs.remove(at).1);
        let payload = Unchecked { parameters: pairs.iter().cloned().collect(), sent_at: None, nonce: None };
        Ok(Signed { parts: Parts::Pairs(pairs), presented, payload })
    }

    fn dashscope_euid(&self, product: &str, buyer: &str) -> Option<String> {
        let fits = fits_in_a_header(product) && fits_in_a_header(buyer);
        self.euid.filter(|_| fits).map(|euid| euid(product, buyer))
    }

    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback {
        let parameters = verified.into_payload().parameters;
        let word = read_word(&parameters, ACTION).to_owned();
        let row = self.row(&word);
        let action = row.map_or(Action::Other, |row| row.action);
        let mut callback = self.names.read(action, &word, parameters, options);
        callback.items = self.items(row, &callback.parameters);
        callback.sent_at =
            callback.parameters.filled(TIME_STAMP).and_then(|text| read_civil(text, &options.timezone));
        if row.is_none() {
            callback.issues.push(ValidationIssue::UnknownAction);
        }
        // The token does not mark the end of a value, so look for a parameter hidden in one.
        if let Some(name) = query::ambiguous(callback.parameters.iter()) {
            let name = name.to_owned();
            callback.issues.push(ValidationIssue::AmbiguousValue { name });
        }
        callback
    }

    fn reply(&self, callback: &Callback, outcome: &Outcome, options: &Options) -> Reply {
        match self.row(&callback.action_name).map(|row| row.form) {
            Some(ReplyForm::Instance) => instance_reply(outcome, options),
            Some(ReplyForm::Success) => success_reply(outcome, options.success_as),
            Some(ReplyForm::SuccessWithApp) => success_with_app_reply(outcome, options),
            Some(ReplyForm::Boolean) => success_reply(outcome, SuccessAs::Boolean),
            Some(ReplyForm::Page) => page_reply(outcome),
            Some(ReplyForm::Free) => free_reply(outcome).unwrap_or_else(|| no_answer_reply(outcome)),
            None => free_reply(outcome).unwrap_or_else(|| success_reply(outcome, options.success_as)),
        }
    }

    /// Returns true if the client seems to be a buyer's browser. This decides only the format of a denial.
    fn is_for_a_browser(&self, request: &RawRequest<'_>) -> bool {
        // Only a plain `action=verify` counts: the query is not decoded here, because nothing is verified yet.
        request.query.split(|byte| *byte == b'&').filter_map(|pair| pair.strip_prefix(b"action=")).any(
            |word| self.actions.iter().any(|row| row.form == ReplyForm::Page && row.word.as_bytes() == word),
        )
    }

    fn refuse(&self, request: &RawRequest<'_>, refusal: &Denial) -> Reply {
        let status = refusal.status();
        let reply = if self.is_for_a_browser(request) {
            Reply::page(status, WORDS_FOR_A_BUYER)
        } else {
            // The vendors do not document which HTTP statuses are failures. So the body reports failure too, in
            // both ways the family has.
            let body = json!({"instanceId": NOT_READY, "success": false, "message": refusal.public()});
            Reply::json(status, &body)
        };
        reply.with_allowed_methods(refusal)
    }

    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest {
        let signed = with_action(ACTION, action, parameters);
        // Sign the original parameters. Changes after signing go only into the text that is sent.
        let digest = send.digest(|| Parts::Pairs(signed.clone()).sign(keys));
        let mut pairs = send.after_signing(&signed);
        pairs.extend(digest.map(|digest| (TOKEN.to_owned(), digest)));
        let text = format!("{}{}", query::encode(&pairs), send.raw);
        match send.form {
            SendForm::Usual => {
                OutRequest { method: "GET", query: text, headers: Vec::new(), body: Vec::new() }
            }
            SendForm::Form => OutRequest {
                method: "POST",
                query: String::new(),
                headers: vec![("content-type", FORM_TYPE.to_owned())],
                body: text.into_bytes(),
            },
        }
    }
}

/// Returns true if the text can be a header value: visible ASCII only.
fn fits_in_a_header(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl TokenDialect {
    fn row(&self, word: &str) -> Option<&'static ActionRow> {
        self.actions.iter().find(|row| row.word == word)
    }

    /// Returns the quantities that the seller defined when publishing: every name that has no other documented
    /// use.
    fn items(&self, row: Option<&ActionRow>, parameters: &Parameters) -> BTreeMap<String, String> {
        // Only a create and an upgrade carry billing items.
        let Some(row) = row.filter(|row| matches!(row.action, Action::Create | Action::Upgrade)) else {
            return BTreeMap::new();
        };
        let (mut items, mut packed) = (BTreeMap::new(), Vec::new());
        for (name, value) in parameters.iter() {
            if self.system.contains(&name) || row.names.contains(&name) {
                continue;
            }
            if self.packed.contains(&name) {
                packed.push((name, value));
            } else {
                items.insert(name.to_owned(), value.to_owned());
            }
        }
        // Packed names come last, so that a member of a packed object cannot take the name of a plain one.
        for (name, text) in packed {
            unpack(name, text, &mut items);
        }
        items
    }
}

/// Adds the members of a JSON object to the items, each under its own name unless that name is taken.
/// A text that cannot be read without loss becomes one item as it is: a purchased quantity must not be lost, and
/// a change of it must be visible.
fn unpack(name: &str, text: &str, items: &mut BTreeMap<String, String>) {
    if text.is_empty() {
        return;
    }
    if let Some(members) = members_of(text).and_then(|members| named(name, members, items)) {
        items.extend(members);
        return;
    }
    // Lengthen the key until it is free: no item may overwrite another.
    let mut key = name.to_owned();
    while items.contains_key(&key) {
        key = format!("{name}.{key}");
    }
    items.insert(key, text.to_owned());
}

/// Returns the members of a JSON object, if reading it loses none.
fn members_of(text: &str) -> Option<BTreeMap<String, Json>> {
    match Json::read_exact(text.as_bytes())? {
        Json::Object(members) => Some(members),
        _ => None,
    }
}

/// Returns the members as items, each under its own name.
/// If the name is taken, the parameter's name is put before it. `None` when two members would get the same name.
fn named(
    name: &str,
    members: BTreeMap<String, Json>,
    items: &BTreeMap<String, String>,
) -> Option<BTreeMap<String, String>> {
    let mut named = BTreeMap::new();
    for (member, value) in members {
        let value = value.as_text().map_or_else(|| value.to_string(), str::to_owned);
        let key = if items.contains_key(&member) { format!("{name}.{member}") } else { member };
        if items.contains_key(&key) || named.insert(key, value).is_some() {
            return None;
        }
    }
    Some(named)
}

/// Text for a buyer whose sign-on was denied.
const WORDS_FOR_A_BUYER: &str =
    "This link is not valid. Please open the application from the marketplace again.";

/// Returns the body as a form. Any other body is denied, because it was not signed.
fn form_of<'a>(request: &RawRequest<'a>) -> Result<Option<&'a [u8]>, Denial> {
    if request.body.is_empty() {
        return Ok(None);
    }
    match request.media_type().as_deref() {
        Some(FORM_TYPE) => Ok(Some(request.body)),
        _ => Err(Denial::ContentType { expected: FORM_TYPE }),
    }
}

/// The `instanceId` that means "not ready or failed, call again".
const NOT_READY: &str = "0";

fn instance_reply(outcome: &Outcome, options: &Options) -> Reply {
    let told = match outcome {
        Outcome::Applied { instance_id: Some(id), answer } if !id.is_empty() => Some((id, answer)),
        _ => None,
    };
    // Without an id there is no success to report: the marketplace must call again.
    let Some((id, answer)) = told else { return Reply::json(200, &json!({"instanceId": NOT_READY})) };
    let mut body = Map::from_iter([("instanceId".to_owned(), Value::from(id.as_str()))]);
    let mut app = object(&answer.app, &SPELLINGS);
    fill_auth_url(&mut app, options);
    let info = object(&answer.info, &[]);
    for (name, section) in [("hostInfo", object(&answer.host, &SPELLINGS)), ("appInfo", app), ("info", info)]
    {
        if !section.is_empty() {
            body.insert(name.to_owned(), Value::Object(section));
        }
    }
    Reply::json(200, &Value::Object(body))
}

fn fill_auth_url(app: &mut Map<String, Value>, options: &Options) {
    // A URL from the hook has priority over the endpoint's public URL.
    let told = app.get(AUTH_URL).and_then(Value::as_str).is_some_and(|url| !url.is_empty());
    if let (false, Some(url)) = (told, &options.public_url) {
        app.insert(AUTH_URL.to_owned(), Value::from(url.as_str()));
    }
}

fn success_body(outcome: &Outcome, success_as: SuccessAs) -> Map<String, Value> {
    let success = outcome.is_success();
    let spelt = match success_as {
        SuccessAs::Boolean => Value::from(success),
        SuccessAs::String => Value::from(success.to_string()),
    };
    let mut body = Map::from_iter([("success".to_owned(), spelt)]);
    if !success {
        body.insert("message".to_owned(), Value::from(message(outcome)));
    }
    body
}

fn success_reply(outcome: &Outcome, success_as: SuccessAs) -> Reply {
    Reply::json(200, &Value::Object(success_body(outcome, success_as)))
}

fn success_with_app_reply(outcome: &Outcome, options: &Options) -> Reply {
    let mut body = success_body(outcome, options.success_as);
    if let Outcome::Applied { answer, .. } = outcome
        && !answer.app.is_empty()
    {
        let mut app = object(&answer.app, &SPELLINGS);
        fill_auth_url(&mut app, options);
        body.insert("appInfo".to_owned(), Value::Object(app));
    }
    Reply::json(200, &Value::Object(body))
}

/// Returns the hook's own JSON, if the job is done and the hook gave some.
fn free_reply(outcome: &Outcome) -> Option<Reply> {
    let Outcome::Applied { answer, .. } = outcome else { return None };
    let body = Json::read(answer.body.as_ref()?.expose().as_bytes()).ok()?;
    Some(Reply::json(200, &body))
}

/// Reply to an action with a free reply whose hook gave no JSON: never a success.
fn no_answer_reply(outcome: &Outcome) -> Reply {
    if outcome.is_success() {
        let body =
            json!({"success": false, "message": "the seller's hook returned no answer for this action"});
        return Reply::json(200, &body);
    }
    success_reply(outcome, SuccessAs::Boolean)
}

/// Value of `Retry-After`: a browser may try again after this many seconds.
const RETRY_AFTER_S: &str = "5";

fn page_reply(outcome: &Outcome) -> Reply {
    match outcome {
        Outcome::Applied { answer, .. } => redirect_reply(answer),
        Outcome::Refused { .. } | Outcome::Held { .. } => Reply::page(
            403,
            "You cannot be signed in with this link. Please open the application from the marketplace again.",
        ),
        Outcome::NotYet | Outcome::Unavailable => {
            Reply::page(503, "The application is not ready yet. Please try again in a moment.")
                .with("retry-after", RETRY_AFTER_S)
        }
    }
}

fn redirect_reply(answer: &Answer) -> Reply {
    match answer.redirect.as_ref().map(Secret::expose).filter(|url| is_safe_redirect(url)) {
        Some(url) => Reply::page(302, "Signing you in.")
            .with("location", url)
            // The URL signs its bearer in, so the browser must not pass it on in a Referer header.
            .with("referrer-policy", "no-referrer"),
        None => Reply::page(502, "The application returned no sign-on address. Please contact the seller."),
    }
}

/// Returns true if a browser may be redirected to this URL.
/// It needs `http` or `https`, a host, and no character that could end the header it is sent in.
fn is_safe_redirect(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let web = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    web && !host.is_empty() && url.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::super::{alibaba, jdcloud};
    use super::*;

    #[test]
    fn a_redirect_goes_to_the_web_and_ends_no_header() {
        for safe in ["https://a.example/in?ticket=1#top", "http://127.0.0.1:8080", "HTTPS://a.example"] {
            assert!(is_safe_redirect(safe), "{safe}");
        }
        for unsafe_url in [
            "",
            "/in",
            "//a.example",
            "javascript://a.example/%0aalert(1)",
            "data:text/html,x",
            "https://",
            "https:///in",
            "https://a.example/\r\nset-cookie: a=b",
            "https://a.example/ x",
            "https://a.example/\u{7f}",
            "https://ä.example/",
        ] {
            assert!(!is_safe_redirect(unsafe_url), "{unsafe_url:?}");
        }
    }

    #[test]
    fn every_table_is_sound() {
        for dialect in [&alibaba::ALIBABA, &jdcloud::JDCLOUD] {
            for row in dialect.actions {
                let twins = dialect.actions.iter().filter(|other| other.word == row.word).count();
                assert_eq!(twins, 1, "{}: {} stands there once", dialect.name, row.word);
                assert_eq!(row.form == ReplyForm::Instance, row.action == Action::Create, "{}", row.word);
                assert_eq!(row.form == ReplyForm::Page, row.action == Action::SignOn, "{}", row.word);
            }
            assert!(dialect.system.is_sorted(), "{}", dialect.name);
            assert!(!dialect.system.contains(&TOKEN), "it is no parameter");
        }
    }
}

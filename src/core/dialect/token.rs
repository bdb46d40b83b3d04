//! The query-token family: parameters in the query string or a form, an MD5 over all of them but
//! `token`, replies that carry `instanceId` or `success`.
//!
//! What its marketplaces share stands here; each of them is a table, in a file of its own.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    Action, Answer, Callback, Dialect, Doubt, FORM_TYPE, GivesUp, Keys, Names, Options, OutRequest, Outcome,
    Pair, Parameters, Parts, RawRequest, Refusal, Reply, Secret, SendForm, Sending, Signed, SuccessAs,
    Unchecked, Verified, message, object, read_civil, read_word,
};
use crate::core::query;
use crate::hook::json::Json;

/// A marketplace of the query-token family, as a table.
pub(super) struct TokenDialect {
    pub(super) name: &'static str,
    pub(super) budget: u32,
    /// When the marketplace gives up, and what it does then.
    pub(super) gives_up: fn(Action, Timestamp) -> Option<GivesUp>,
    pub(super) names: Names,
    pub(super) verbs: &'static [Verb],
    /// Names the marketplace itself may send with any action: never billing items.
    pub(super) system: &'static [&'static str],
    /// Names whose value is a JSON object with billing items in it.
    pub(super) packed: &'static [&'static str],
    /// Makes the `x-dashscope-euid` of (product, buyer), where there is such a thing.
    pub(super) euid: Option<fn(&str, &str) -> String>,
}

/// One action of a query-token marketplace.
pub(super) struct Verb {
    pub(super) word: &'static str,
    pub(super) action: Action,
    /// Documented names beside the system's: never billing items either.
    pub(super) names: &'static [&'static str],
    pub(super) shape: Shape,
}

/// The shape of the answer to a verb.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `instanceId`, `"0"` until it is true, with what the buyer is shown.
    Instance,
    /// `success`, spelt as the endpoint is configured.
    Success,
    /// The same, with what the buyer is shown from now on.
    SuccessWithApp,
    /// `success`, documented to be a boolean.
    Boolean,
    /// A redirect or a page: the peer is a buyer's browser.
    Page,
    /// Whatever JSON the hook gives; without it there is no success.
    Free,
}

const ACTION: &str = "action";
const TOKEN: &str = "token";
const TIME_STAMP: &str = "timeStamp";

/// How the family spells the names of an answer; a name that is not here is passed on as it is.
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

fn spell(name: &str) -> String {
    let known = SPELLINGS.iter().find(|(neutral, _)| *neutral == name);
    known.map_or(name, |(_, wire)| wire).to_owned()
}

impl Dialect for TokenDialect {
    fn name(&self) -> &'static str {
        self.name
    }

    fn signing(&self) -> &'static str {
        "query-token"
    }

    fn budget(&self) -> Option<u32> {
        Some(self.budget)
    }

    fn gives_up(&self, action: Action, first: Timestamp) -> Option<GivesUp> {
        (self.gives_up)(action, first)
    }

    fn parts(&self, request: &RawRequest<'_>, _now: Timestamp) -> Result<Signed<Unchecked>, Refusal> {
        if !matches!(request.method, "GET" | "POST") {
            let method = request.method.chars().take(16).collect();
            return Err(Refusal::Method { method, allowed: "GET, POST" });
        }
        let mut pairs = query::parse(request.query, form_of(request)?)?;
        let token = pairs.iter().position(|(name, _)| name == TOKEN);
        let presented = token.map(|at| pairs.swap_remove(at).1);
        let payload = Unchecked { parameters: pairs.iter().cloned().collect(), sent_at: None, once: None };
        Ok(Signed { parts: Parts::Pairs(pairs), presented, payload })
    }

    fn dashscope_euid(&self, product: &str, buyer: &str) -> Option<String> {
        let fit = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        self.euid.filter(|_| fit(product) && fit(buyer)).map(|made| made(product, buyer))
    }

    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback {
        let parameters = verified.into_payload().parameters;
        let word = read_word(&parameters, ACTION).to_owned();
        let verb = self.verb(&word);
        let action = verb.map_or(Action::Other, |verb| verb.action);
        let mut callback = self.names.read(action, &word, parameters, options);
        callback.items = self.items(verb, &callback.parameters);
        callback.sent_at =
            callback.parameters.filled(TIME_STAMP).and_then(|text| read_civil(text, &options.timezone));
        if verb.is_none() {
            callback.doubts.push(Doubt::UnknownAction);
        }
        if let Some(name) = query::ambiguous(callback.parameters.iter()) {
            let name = name.to_owned();
            callback.doubts.push(Doubt::AmbiguousValue { name });
        }
        callback
    }

    fn reply(&self, callback: &Callback, outcome: &Outcome, options: &Options) -> Reply {
        match self.verb(&callback.action_name).map(|verb| verb.shape) {
            Some(Shape::Instance) => instance_reply(outcome, options),
            Some(Shape::Success) => success_reply(outcome, options.success_as),
            Some(Shape::SuccessWithApp) => success_with_app_reply(outcome, options),
            Some(Shape::Boolean) => success_reply(outcome, SuccessAs::Boolean),
            Some(Shape::Page) => page_reply(outcome),
            Some(Shape::Free) => free_reply(outcome).unwrap_or_else(|| no_answer_reply(outcome)),
            None => free_reply(outcome).unwrap_or_else(|| success_reply(outcome, options.success_as)),
        }
    }

    /// Whether the sender seems to be a buyer's browser: decides the look of a refusal, no more.
    fn is_for_a_browser(&self, request: &RawRequest<'_>) -> bool {
        let pages = || self.verbs.iter().filter(|verb| verb.shape == Shape::Page);
        request.query.split(|byte| *byte == b'&').any(|pair| {
            let word = pair.strip_prefix(b"action=");
            word.is_some_and(|word| pages().any(|verb| verb.word.as_bytes() == word))
        })
    }

    fn refuse(&self, request: &RawRequest<'_>, refusal: &Refusal) -> Reply {
        let status = refusal.status();
        let reply = if self.is_for_a_browser(request) {
            Reply::page(status, words_for_a_buyer(refusal))
        } else {
            // Which HTTP statuses count as a failure is stated nowhere, so the body says it too, in
            // both ways the family has of saying it.
            let body = json!({"instanceId": NOT_READY, "success": false, "message": refusal.public()});
            Reply::json(status, &body)
        };
        match refusal {
            Refusal::Method { allowed, .. } => reply.with("allow", *allowed),
            _ => reply,
        }
    }

    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest {
        let named = parameters.iter().any(|(name, _)| name == ACTION);
        let word = (!named && !action.is_empty()).then(|| (ACTION.to_owned(), action.to_owned()));
        let signed: Vec<Pair> = word.into_iter().chain(parameters.iter().cloned()).collect();
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

impl TokenDialect {
    fn verb(&self, word: &str) -> Option<&'static Verb> {
        self.verbs.iter().find(|verb| verb.word == word)
    }

    /// The quantities the seller defined when publishing: every name that is nobody else's.
    fn items(&self, verb: Option<&Verb>, parameters: &Parameters) -> BTreeMap<String, String> {
        let Some(verb) = verb.filter(|verb| matches!(verb.action, Action::Create | Action::Upgrade)) else {
            return BTreeMap::new();
        };
        let is_item = |name: &str| !self.system.contains(&name) && !verb.names.contains(&name);
        let (packed, plain): (Vec<_>, Vec<_>) = parameters
            .iter()
            .filter(|(name, _)| is_item(name))
            .partition(|(name, _)| self.packed.contains(name));
        let mut items: BTreeMap<String, String> =
            plain.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        for (name, text) in packed {
            unpack(name, text, &mut items);
        }
        items
    }
}

/// Adds the members of a JSON object to the items, each under its own name unless that is taken. A text that cannot be
/// read so without a loss is one item as it stands: what was bought must not be lost, and a change of it must be seen.
fn unpack(name: &str, text: &str, items: &mut BTreeMap<String, String>) {
    if text.is_empty() {
        return;
    }
    if let Some(members) = members_of(text).and_then(|members| named(name, members, items)) {
        items.extend(members);
        return;
    }
    let mut key = name.to_owned();
    while items.contains_key(&key) {
        key = format!("{name}.{key}");
    }
    items.insert(key, text.to_owned());
}

/// The members of a JSON object, if none is lost by reading it.
fn members_of(text: &str) -> Option<BTreeMap<String, Json>> {
    match Json::read_exact(text.as_bytes())? {
        Json::Object(members) => Some(members),
        _ => None,
    }
}

/// The members as items, each under its own name or, where that is taken, behind the name of the parameter. `None`
/// when two of them would have one name.
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

/// What a buyer reads whose sign-on was turned away.
fn words_for_a_buyer(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::TooManyFromAddress | Refusal::TooManyAtEndpoint => {
            "There is too much going on just now. Please open the application from the marketplace again in a moment."
        }
        _ => "This link is not valid. Please open the application from the marketplace again.",
    }
}

/// The body as a form; a body that is something else was not signed and must not be carried along.
fn form_of<'a>(request: &RawRequest<'a>) -> Result<Option<&'a [u8]>, Refusal> {
    if request.body.is_empty() {
        return Ok(None);
    }
    match request.media_type().as_deref() {
        Some(FORM_TYPE) => Ok(Some(request.body)),
        _ => Err(Refusal::ContentType { expected: FORM_TYPE }),
    }
}

/// The `instanceId` that means "not ready or failed, call again".
const NOT_READY: &str = "0";

fn instance_reply(outcome: &Outcome, options: &Options) -> Reply {
    let told = match outcome {
        Outcome::Applied { instance_id: Some(id), answer } if !id.is_empty() => Some((id, answer)),
        _ => None,
    };
    let Some((id, answer)) = told else { return Reply::json(200, &json!({"instanceId": NOT_READY})) };
    let mut body = Map::from_iter([("instanceId".to_owned(), Value::from(id.as_str()))]);
    let mut app = object(&answer.app, spell);
    fill_auth_url(&mut app, options);
    let info = object(&answer.info, str::to_owned);
    for (name, section) in [("hostInfo", object(&answer.host, spell)), ("appInfo", app), ("info", info)] {
        if !section.is_empty() {
            body.insert(name.to_owned(), Value::Object(section));
        }
    }
    Reply::json(200, &Value::Object(body))
}

fn fill_auth_url(app: &mut Map<String, Value>, options: &Options) {
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
        let mut app = object(&answer.app, spell);
        fill_auth_url(&mut app, options);
        body.insert("appInfo".to_owned(), Value::Object(app));
    }
    Reply::json(200, &Value::Object(body))
}

/// The hook's own JSON, if it is done and gave some.
fn free_reply(outcome: &Outcome) -> Option<Reply> {
    let Outcome::Applied { answer, .. } = outcome else { return None };
    let body = Json::read(answer.body.as_ref()?.expose().as_bytes()).ok()?;
    Some(Reply::json(200, &body))
}

/// A verb that is answered freely has no success without an answer.
fn no_answer_reply(outcome: &Outcome) -> Reply {
    if outcome.is_success() {
        let body = json!({"success": false, "message": "the seller's hook gave no answer"});
        return Reply::json(200, &body);
    }
    success_reply(outcome, SuccessAs::Boolean)
}

/// Seconds after which a browser may try again.
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
            // The URL lets its bearer in: it must not travel on in a Referer.
            .with("referrer-policy", "no-referrer"),
        None => Reply::page(502, "The application gave no address to go to. Please tell the seller."),
    }
}

/// Whether a browser may be sent there: `http` or `https`, a host, and nothing that could end the
/// header it stands in.
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
            for verb in dialect.verbs {
                let twins = dialect.verbs.iter().filter(|other| other.word == verb.word).count();
                assert_eq!(twins, 1, "{}: {} stands there once", dialect.name, verb.word);
                assert_eq!(verb.shape == Shape::Instance, verb.action == Action::Create, "{}", verb.word);
                assert_eq!(verb.shape == Shape::Page, verb.action == Action::SignOn, "{}", verb.word);
            }
            assert!(dialect.system.is_sorted(), "{}", dialect.name);
            assert!(!dialect.system.contains(&TOKEN), "it is no parameter");
        }
    }
}

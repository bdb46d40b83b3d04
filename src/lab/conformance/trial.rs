//! Execution of one case: buys, sends requests, reads answers, and records the exchanges.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::recipe::Recipe;
use super::{Exchange, Suite, Unjudged};
use crate::lab::exchange;
use crate::net::{Client, ClientError, ClientRequest, ClientResponse, Url};
use crate::observe::limits::{CONFORMANCE_RETRIES_COUNT, CONFORMANCE_SHOWN_COUNT};
use spid_core::dialect;
use spid_core::dialect::{Dialect, OutRequest, SendForm, SendSignature, Sending};
use spid_core::query::Pair;
use spid_hook::id::Id;
use spid_hook::json::Json;
use spid_hook::time::plus_millis;

const HOUR_MS: i64 = 3_600_000;
/// Maximum number of requests with a token that is only a guess.
const TRIES_OF_A_GUESS: u32 = 3;
/// Maximum number of requests to release one instance.
const TRIES_TO_GIVE_BACK: usize = 5;
/// Maximum length of an answer that is shown, in characters.
const SHOWN_MAX_CHARS: usize = 600;

/// State that all cases of a run share.
pub(super) struct Run {
    pub(super) suite: Suite,
    pub(super) client: Client,
    pub(super) orders: Orders,
    /// Slowest answer so far: milliseconds, and a description of the request.
    pub(super) slowest: Mutex<(u64, String)>,
}

/// Generator of order numbers that were never used before. They have 18 digits, because sellers store them as
/// numbers.
pub(super) struct Orders(AtomicU64);

impl From<Id> for Orders {
    /// Starts at the milliseconds of the id, followed by two random digits and room for 1,000 orders.
    fn from(id: Id) -> Orders {
        let bytes = id.as_bytes();
        let millis = bytes.iter().take(6).fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
        let random = u64::from(bytes.last().copied().unwrap_or_default() % 100);
        Orders(AtomicU64::new((millis * 100 + random) * 1_000))
    }
}

impl Orders {
    pub(super) fn next(&self) -> String {
        self.0.fetch_add(1, Ordering::Relaxed).to_string()
    }
}

/// Token of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Right,
    Missing,
    Empty,
    /// Every digit differs from the right one.
    Wrong,
    /// Only the last digit differs.
    LastDigit,
    /// First half of the right token.
    Short,
    /// Right token with two more digits.
    Long,
    /// Right token in capital letters.
    Upper,
}

impl Token {
    fn signature(self, right: &str) -> SendSignature {
        let other = |digit: char| if digit == '0' { '1' } else { '0' };
        SendSignature::Pinned(match self {
            Token::Right => right.to_owned(),
            Token::Missing => return SendSignature::Omitted,
            Token::Empty => String::new(),
            Token::Wrong => right.chars().map(other).collect(),
            Token::LastDigit => {
                let mut digits: Vec<char> = right.chars().collect();
                if let Some(last) = digits.last_mut() {
                    *last = other(*last);
                }
                digits.into_iter().collect()
            }
            Token::Short => right.chars().take(right.len() / 2).collect(),
            Token::Long => format!("{right}00"),
            Token::Upper => right.to_ascii_uppercase(),
        })
    }
}

/// Request to the SPI endpoint.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    what: String,
    action: &'static str,
    params: Vec<Pair>,
    token: Token,
    form: SendForm,
    altered: Vec<Pair>,
    /// Encoded, unsigned parameters before the signed ones.
    before: String,
    /// Encoded, unsigned parameters behind the signed ones.
    behind: String,
    /// True if a space is sent as `+`.
    plus: bool,
    recipe: Option<Recipe>,
}

impl Ask {
    pub(super) fn new(what: &str, action: &'static str, params: &[(&str, &str)]) -> Ask {
        Ask {
            what: what.to_owned(),
            action,
            params: owned(params),
            token: Token::Right,
            form: SendForm::Usual,
            altered: Vec::new(),
            before: String::new(),
            behind: String::new(),
            plus: false,
            recipe: None,
        }
    }

    pub(super) fn what(mut self, what: &str) -> Ask {
        what.clone_into(&mut self.what);
        self
    }

    pub(super) fn what_it_is(&self) -> &str {
        &self.what
    }

    pub(super) fn token(mut self, token: Token) -> Ask {
        self.token = token;
        self
    }

    pub(super) fn posted(mut self) -> Ask {
        self.form = SendForm::Form;
        self
    }

    pub(super) fn with_plus(mut self) -> Ask {
        self.plus = true;
        self
    }

    /// Changes a value after signing.
    pub(super) fn altered(mut self, name: &str, value: &str) -> Ask {
        self.altered = owned(&[(name, value)]);
        self
    }

    pub(super) fn before(mut self, encoded: &str) -> Ask {
        self.before = format!("{encoded}&");
        self
    }

    pub(super) fn behind(mut self, encoded: &str) -> Ask {
        self.behind = format!("&{encoded}");
        self
    }

    /// Adds a signed parameter, or replaces its value.
    pub(super) fn with(mut self, name: &str, value: &str) -> Ask {
        self.params.retain(|(known, _)| known != name);
        self.params.extend(owned(&[(name, value)]));
        self
    }

    pub(super) fn without(mut self, name: &str) -> Ask {
        self.params.retain(|(known, _)| known != name);
        self
    }

    /// Moves the pair `name=value` into the value of this parameter. The token stays the same.
    pub(super) fn swallowing(mut self, parameter: &str, name: &str) -> Ask {
        let Some(at) = self.params.iter().position(|(known, _)| known == name) else { return self };
        let (name, value) = self.params.remove(at);
        if let Some((_, swallows)) = self.params.iter_mut().find(|(known, _)| known == parameter) {
            swallows.push_str(&format!("&{name}={value}"));
        }
        self
    }

    /// Builds the request. Also returns its valid token, which may differ from the token that is sent.
    fn request(&self, suite: &Suite, recipe: Recipe) -> (OutRequest, String) {
        let mut pairs = vec![("action".to_owned(), self.action.to_owned())];
        pairs.extend(self.params.iter().cloned());
        let right = self.recipe.unwrap_or(recipe).token(&pairs, self.plus, &suite.keys);
        let sending = Sending {
            form: self.form,
            signature: self.token.signature(&right),
            altered: self.altered.clone(),
            raw: self.behind.clone(),
            ..Sending::at(suite.clock.now())
        };
        let mut out = alibaba().request(self.action, &pairs, &suite.keys, &sending);
        // The dialect encodes a space as `+`. A `+` in a value is encoded as %2B, so every `+` here is a space.
        if !self.plus {
            out.query = out.query.replace('+', "%20");
            out.body = String::from_utf8_lossy(&out.body).replace('+', "%20").into_bytes();
        }
        out.query.insert_str(0, &self.before);
        (out, right)
    }

    /// Returns true if a buyer's browser sends this request; the answer then shows what a signed-on buyer sees.
    fn is_sign_on(&self) -> bool {
        self.action == "verify"
    }
}

fn owned(pairs: &[(&str, &str)]) -> Vec<Pair> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Returns the only dialect that the suite tests.
fn alibaba() -> &'static dyn Dialect {
    dialect::alibaba()
}

/// An answer of the SPI endpoint.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) location: Option<String>,
    pub(super) json: Option<Json>,
}

impl Heard {
    fn of(answer: &ClientResponse) -> Heard {
        let text = |name: &str| answer.headers.text(name).map(str::to_owned);
        Heard {
            status: answer.status,
            content_type: text("content-type").unwrap_or_default(),
            location: text("location"),
            json: Json::read(&answer.body).ok(),
        }
    }

    pub(super) fn member(&self, name: &str) -> Option<&Json> {
        self.json.as_ref()?.get(name)
    }

    /// Returns the id in the answer, unless it is missing, empty, or the 0 that means "call again".
    pub(super) fn id(&self) -> Option<String> {
        let id = match self.member("instanceId")? {
            Json::Text(text) | Json::Number(text) => text.clone(),
            _ => return None,
        };
        (!id.is_empty() && id != "0").then_some(id)
    }

    /// Returns `success`, in either of the two documented forms.
    pub(super) fn success(&self) -> Option<bool> {
        match self.member("success")? {
            Json::Bool(success) => Some(*success),
            Json::Text(text) if text == "true" => Some(true),
            Json::Text(text) if text == "false" => Some(false),
            _ => None,
        }
    }

    /// Returns true if a marketplace would take the answer for "done".
    pub(super) fn reports_success(&self) -> bool {
        self.status < 300 && (self.id().is_some() || self.success() == Some(true))
    }

    /// Returns true if a browser gets a page or a redirect.
    pub(super) fn lets_in(&self) -> bool {
        self.status < 400
    }

    /// Returns the target of a redirect without its query, because the query holds the ticket.
    pub(super) fn door(&self) -> Option<&str> {
        self.location.as_deref().map(|url| url.split(['?', '#']).next().unwrap_or_default())
    }

    /// Describes the answer in a few words.
    pub(super) fn shortly(&self) -> String {
        match (self.id(), self.success()) {
            (Some(id), _) => format!("{} with the id {id}", self.status),
            (None, Some(success)) => format!("{} with success {success}", self.status),
            (None, None) if self.member("instanceId").is_some() => format!("{} with the id 0", self.status),
            (None, None) => format!("{}, without an id and without success", self.status),
        }
    }
}

/// A purchased instance.
#[derive(Debug, Clone)]
pub(super) struct Bought {
    pub(super) id: String,
    pub(super) order: Order,
    pub(super) answer: Heard,
}

/// Numbers of a purchase.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) biz: String,
    pub(super) order: String,
    /// End of the term, as it is sent.
    pub(super) term: String,
}

/// Facts about the SPI endpoint, found before the first case.
#[derive(Debug, Clone)]
pub(super) struct Learnt {
    pub(super) recipe: Recipe,
    /// First purchase, if it was answered with an id.
    pub(super) first: Result<Bought, String>,
    /// Number of requests that this took.
    pub(super) tries: u32,
    pub(super) exchanges: Vec<Exchange>,
}

/// A running case. The `Err` of its methods is the finding of the case.
pub(super) struct Trial {
    pub(super) run: Arc<Run>,
    pub(super) learnt: Arc<Learnt>,
    pub(super) exchanges: Vec<Exchange>,
    pub(super) left_out: u32,
    /// Ids of created instances that are not released yet.
    pub(super) made: BTreeSet<String>,
    recipe: Recipe,
    /// Number of requests sent, with or without an answer.
    sent: u32,
}

impl Trial {
    pub(super) fn new(run: Arc<Run>, learnt: Arc<Learnt>) -> Trial {
        let recipe = learnt.recipe;
        Trial { run, learnt, exchanges: Vec::new(), left_out: 0, made: BTreeSet::new(), recipe, sent: 0 }
    }

    fn now(&self) -> Timestamp {
        self.run.suite.clock.now()
    }

    /// Returns the time a number of hours from now, as the marketplace writes it.
    pub(super) fn hence(&self, hours: i64) -> String {
        let at = plus_millis(self.now(), hours.saturating_mul(HOUR_MS));
        at.to_zoned(self.run.suite.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// Returns the numbers of a new order, with a term of this many hours.
    pub(super) fn order(&self, hours: i64) -> Order {
        let biz = self.run.orders.next();
        Order { order: self.run.orders.next(), biz, term: self.hence(hours) }
    }

    /// Returns the purchase of an order. Its parameters are sorted neither by name nor by value.
    pub(super) fn purchase(&self, order: &Order) -> Ask {
        let goods = &self.run.suite.goods;
        let params = [
            ("productCode", goods.product.as_str()),
            ("aliUid", &goods.buyer),
            ("orderBizId", &order.biz),
            ("orderId", &order.order),
            ("skuId", &goods.sku),
            ("trial", "false"),
            ("expiredOn", &order.term),
        ];
        Ask::new("a purchase", "createInstance", &params)
    }

    /// Sends a request once.
    pub(super) async fn send(&mut self, ask: &Ask) -> Result<Heard, String> {
        let url = self.run.suite.url.clone();
        self.send_to(&url, ask).await
    }

    pub(super) async fn send_to(&mut self, url: &Url, ask: &Ask) -> Result<Heard, String> {
        let prepared = self.prepared(url, ask)?;
        let told = prepared.delivered(&self.run.client).await;
        self.note(told)
    }

    /// Sends requests at the same time.
    pub(super) async fn send_at_once(&mut self, asks: &[Ask]) -> Vec<Result<Heard, String>> {
        let url = self.run.suite.url.clone();
        let mut tasks = tokio::task::JoinSet::new();
        for ask in asks {
            match self.prepared(&url, ask) {
                Ok(prepared) => {
                    let client = self.run.client.clone();
                    tasks.spawn(async move { prepared.delivered(&client).await });
                }
                Err(error) => return vec![Err(error)],
            }
        }
        let all = tasks.join_all().await;
        all.into_iter().map(|told| self.note(told)).collect()
    }

    fn prepared(&self, url: &Url, ask: &Ask) -> Result<Prepared, String> {
        let (out, token) = ask.request(&self.run.suite, self.recipe);
        let request =
            exchange::addressed(&out, url).map_err(|error| format!("cannot send the request: {error}"))?;
        // The exchange is for reports, so it is masked; the request is sent unmasked.
        let exchange = Exchange {
            what: ask.what.clone(),
            method: out.method,
            target: exchange::masked(request.url.target()),
            body: exchange::masked(&String::from_utf8_lossy(&out.body)),
            status: None,
            answer: String::new(),
            duration_ms: 0,
        };
        Ok(Prepared { request, exchange, token, is_sign_on: ask.is_sign_on() })
    }

    fn note(&mut self, (exchange, heard): Told) -> Result<Heard, String> {
        let mut slowest = self.run.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        if exchange.duration_ms > slowest.0 {
            *slowest = (exchange.duration_ms, exchange.what.clone());
        }
        // Release the lock before the rest: all cases share it.
        drop(slowest);
        self.sent += 1;
        let what = exchange.what.clone();
        // Keep the first exchanges and the last one.
        if self.exchanges.len() >= CONFORMANCE_SHOWN_COUNT {
            self.exchanges.pop();
            self.left_out += 1;
        }
        self.exchanges.push(exchange);
        let heard = heard.map_err(|error| format!("{what} got no answer: {error}"))?;
        // An id in a denial belongs to another instance, not to one of ours.
        self.made.extend(heard.id().filter(|_| heard.status < 300));
        Ok(heard)
    }

    /// Repeats a request until `done` accepts the answer, or the answer does not mean "call again".
    async fn until(&mut self, ask: &Ask, tries: u32, done: fn(&Heard) -> bool) -> Result<Heard, String> {
        let mut heard = self.send(ask).await?;
        for _ in 1..tries.min(self.run.suite.limit).max(1) {
            // Only a success status with JSON can mean "call again".
            if done(&heard) || heard.status >= 300 || heard.json.is_none() {
                break;
            }
            sleep(self.run.suite.every).await;
            heard = self.send(ask).await?;
        }
        Ok(heard)
    }

    /// Repeats a request until the answer has an id.
    pub(super) async fn until_id(&mut self, ask: &Ask) -> Result<(String, Heard), String> {
        self.until_id_within(ask, CONFORMANCE_RETRIES_COUNT).await
    }

    async fn until_id_within(&mut self, ask: &Ask, tries: u32) -> Result<(String, Heard), String> {
        let heard = self.until(ask, tries, |heard| heard.id().is_some()).await?;
        match heard.id().filter(|_| heard.status < 300) {
            Some(id) => Ok((id, heard)),
            None => Err(format!("{} was answered {}", ask.what, heard.shortly())),
        }
    }

    /// Repeats a request until the answer is a success.
    pub(super) async fn until_success(&mut self, ask: &Ask) -> Result<Heard, String> {
        let heard = self.until(ask, CONFORMANCE_RETRIES_COUNT, |heard| heard.success() == Some(true)).await?;
        if heard.status >= 300 || heard.success() != Some(true) {
            return Err(format!("{} was answered {}", ask.what, heard.shortly()));
        }
        // The instance is released, so the end of the run need not release it.
        if ask.action == "releaseInstance" {
            self.made
                .retain(|id| !ask.params.iter().any(|(name, value)| name == "instanceId" && value == id));
        }
        Ok(heard)
    }

    /// Repeats a request as often as the first purchase needed.
    /// An SPI endpoint that answers every first request with "call again" has not denied anything by that.
    pub(super) async fn patiently(&mut self, ask: &Ask) -> Result<Heard, String> {
        self.until(ask, self.learnt.tries, Heard::reports_success).await
    }

    /// Sends a request that must fail: a marketplace must not take the answer for "done".
    pub(super) async fn refused(&mut self, ask: &Ask) -> Result<Heard, String> {
        let heard = self.patiently(ask).await?;
        if heard.reports_success() {
            return Err(format!("{} was answered {}", ask.what, heard.shortly()));
        }
        Ok(heard)
    }

    /// Like [`Trial::refused`], and the answer must not be a server error.
    pub(super) async fn refused_calmly(&mut self, ask: &Ask) -> Result<Heard, String> {
        let heard = self.refused(ask).await?;
        if heard.status >= 500 {
            return Err(format!("{} caused a server error: {}", ask.what, heard.status));
        }
        Ok(heard)
    }

    /// Buys an instance for a month.
    pub(super) async fn buy(&mut self) -> Result<Bought, String> {
        self.buy_for(30 * 24).await
    }

    /// Buys an instance for this many hours.
    pub(super) async fn buy_for(&mut self, hours: i64) -> Result<Bought, String> {
        let order = self.order(hours);
        let ask = self.purchase(&order);
        let (id, answer) = self.until_id(&ask).await?;
        Ok(Bought { id, order, answer })
    }

    pub(super) fn renewal(&self, id: &str, until: &str) -> Ask {
        let order = self.run.orders.next();
        Ask::new(
            "a renewal",
            "renewInstance",
            &[("instanceId", id), ("orderId", &order), ("expiredOn", until)],
        )
    }

    pub(super) fn upgrade(&self, id: &str) -> Ask {
        let order = self.run.orders.next();
        let sku = &self.run.suite.goods.upgrade;
        Ask::new("an upgrade", "upgradeInstance", &[("instanceId", id), ("skuId", sku), ("orderId", &order)])
    }

    pub(super) fn expiry(id: &str) -> Ask {
        Ask::new("an expiry", "expiredInstance", &[("instanceId", id)])
    }

    pub(super) fn release(id: &str) -> Ask {
        Ask::new("a release", "releaseInstance", &[("instanceId", id), ("isRefund", "false")])
    }

    pub(super) fn sign_on(&self, id: &str, hours: i64) -> Ask {
        let at = self.hence(hours);
        Ask::new("a sign-on", "verify", &[("instanceId", id), ("timeStamp", &at)])
    }

    /// Follows a valid link as a browser does. Repeats the request while the application is not ready.
    pub(super) async fn follow_sign_on(&mut self, bought: &Bought) -> Result<Heard, String> {
        let ask = self.sign_on(&bought.id, 0);
        self.follow(bought, &ask).await
    }

    /// Follows this link as a browser does.
    pub(super) async fn follow(&mut self, bought: &Bought, ask: &Ask) -> Result<Heard, String> {
        let door = self.sign_on_url(bought);
        let mut heard = self.send_to(&door, ask).await?;
        for _ in 1..TRIES_OF_A_GUESS {
            // 503 means "not ready yet".
            if heard.status != 503 {
                break;
            }
            sleep(self.run.suite.every).await;
            heard = self.send_to(&door, ask).await?;
        }
        if heard.lets_in() {
            Ok(heard)
        } else {
            Err(format!("a new sign-on link was answered {}", heard.status))
        }
    }

    /// Returns the sign-on URL for the buyer of this instance.
    /// A URL on another host is not followed, because that host is not under test.
    pub(super) fn sign_on_url(&self, bought: &Bought) -> Url {
        let suite = &self.run.suite;
        let told =
            bought.answer.member("appInfo").and_then(|app| app.get("authUrl")?.as_text()?.parse().ok());
        // Priority: the option, then the answer's URL on the same host, then the endpoint itself.
        let near = told.filter(|url: &Url| url.authority() == suite.url.authority());
        suite.sign_on.clone().or(near).unwrap_or_else(|| suite.url.clone())
    }
}

type Told = (Exchange, Result<Heard, String>);

/// A request that is ready to be sent.
struct Prepared {
    request: ClientRequest,
    exchange: Exchange,
    /// Valid token of the request.
    token: String,
    is_sign_on: bool,
}

impl Prepared {
    async fn delivered(self, client: &Client) -> Told {
        let Prepared { request, mut exchange, token, is_sign_on } = self;
        let begin = Instant::now();
        let answer = client.send(request).await;
        exchange.duration_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        match answer {
            Ok(answer) => {
                exchange.status = Some(answer.status);
                exchange.answer = shown(&answer, &token, is_sign_on);
                (exchange, Ok(Heard::of(&answer)))
            }
            Err(error) => {
                exchange.answer = error.to_string();
                (exchange, Err(error.to_string()))
            }
        }
    }
}

/// Masks an answer.
/// An SPI endpoint may answer with the token that it expected, and that token is as good as a key for this
/// request. An answer to a sign-on shows data that is for the buyer only.
fn shown(answer: &ClientResponse, token: &str, is_sign_on: bool) -> String {
    let mut text = match is_sign_on && answer.status < 300 {
        true => format!("a page of {} bytes", answer.body.len()),
        false => exchange::body(&answer.body),
    };
    if let Some(location) = answer.headers.text("location") {
        text = format!("location: {} {text}", exchange::header(location));
    }
    // Short or changed tokens are not recognized as digests, so replace the valid token by its text too.
    for written in [token.to_owned(), token.to_ascii_uppercase()].into_iter().filter(|it| !it.is_empty()) {
        text = text.replace(&written, "<token>");
    }
    match text.char_indices().nth(SHOWN_MAX_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Purchase of the first instance. It keeps what it has learned and created so far if it is stopped halfway.
pub(super) struct Learning {
    trial: Trial,
    recipe: Recipe,
    first: Result<Bought, String>,
    tries: u32,
}

impl Learning {
    pub(super) fn new(run: &Arc<Run>) -> Learning {
        let nothing =
            Learnt { recipe: Recipe::Documented, first: Err(String::new()), tries: 1, exchanges: Vec::new() };
        let trial = Trial::new(run.clone(), Arc::new(nothing));
        Learning { trial, recipe: Recipe::Documented, first: Err(String::new()), tries: 1 }
    }

    /// Buys the first instance. If the documented token does not lead to an id, finds out how the SPI endpoint
    /// computes its token.
    pub(super) async fn learn(&mut self) -> Result<(), Unjudged> {
        // Any answer is good enough here; only an endpoint that cannot be reached ends the run.
        is_there(&self.trial.run).await?;
        self.first = self.trial.buy().await;
        self.tries = self.trial.sent;
        // Skipped if the documented token works.
        for recipe in Recipe::WRONG.into_iter().filter(|_| self.first.is_err()).collect::<Vec<_>>() {
            let order = self.trial.order(30 * 24);
            let mut ask = self.trial.purchase(&order).what("a purchase with a token computed in another way");
            ask.recipe = Some(recipe);
            let before = self.trial.sent;
            if let Ok((id, answer)) = self.trial.until_id_within(&ask, TRIES_OF_A_GUESS).await {
                self.first = Ok(Bought { id, order, answer });
                (self.recipe, self.tries) = (recipe, self.trial.sent - before);
                break;
            }
        }
        Ok(())
    }

    /// Returns the result, and the ids of created instances.
    pub(super) fn end(self) -> (Learnt, BTreeSet<String>) {
        let Learning { trial: Trial { exchanges, made, .. }, recipe, first, tries } = self;
        (Learnt { recipe, first, tries, exchanges }, made)
    }
}

/// Checks that the SPI endpoint answers at all, with any answer.
async fn is_there(run: &Run) -> Result<(), Unjudged> {
    let url = &run.suite.url;
    match run.client.send(ClientRequest::get(url.clone())).await {
        Err(
            error @ (ClientError::Connect { .. } | ClientError::Forbidden { .. } | ClientError::NoTls(_)),
        ) => Err(Unjudged::NoAnswer { receiver: url.to_string(), cause: error.to_string() }),
        _ => Ok(()),
    }
}

/// Releases the purchased instances. Returns the ids of those that could not be released.
pub(super) async fn give_back(
    run: &Arc<Run>,
    learnt: &Arc<Learnt>,
    mut made: BTreeSet<String>,
) -> Vec<String> {
    let mut trial = Trial::new(run.clone(), learnt.clone());
    let mut left = Vec::new();
    while let Some(id) = made.pop_first() {
        let ask = Trial::release(&id).what("a release at the end of the run");
        // If nothing can be released, do not spend an hour on repetitions.
        let tries = if left.len() < TRIES_TO_GIVE_BACK { TRIES_TO_GIVE_BACK } else { 1 };
        let tries = u32::try_from(tries).unwrap_or(1);
        let heard = trial.until(&ask, tries, |heard| heard.success() == Some(true)).await;
        if !heard.is_ok_and(|heard| heard.success() == Some(true)) {
            left.push(id);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(status: u16, body: &str) -> Heard {
        let json = Json::read(body.as_bytes()).ok();
        Heard { status, content_type: String::new(), location: None, json }
    }

    #[test]
    fn an_id_and_success_are_read_in_every_way_they_are_written() {
        assert_eq!(heard(200, r#"{"instanceId": "7"}"#).id().as_deref(), Some("7"));
        assert_eq!(heard(200, r#"{"instanceId": 7}"#).id().as_deref(), Some("7"));
        for none in [r#"{"instanceId": "0"}"#, r#"{"instanceId": 0}"#, r#"{"instanceId": ""}"#, "{}", "<p>"] {
            assert_eq!(heard(200, none).id(), None, "{none}");
        }
        assert_eq!(heard(200, r#"{"success": "true"}"#).success(), Some(true));
        assert_eq!(heard(200, r#"{"success": "yes"}"#).success(), None);
        assert!(heard(200, r#"{"success": true}"#).reports_success());
        assert!(!heard(403, r#"{"instanceId": "7"}"#).reports_success());
    }

    #[test]
    fn no_token_but_the_right_one_is_right() {
        let right = "0123456789abcdef0123456789abcdef";
        let sent = |token: Token| match token.signature(right) {
            SendSignature::Pinned(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(sent(Token::Right), right);
        assert_eq!(sent(Token::LastDigit), "0123456789abcdef0123456789abcde0");
        assert_eq!(sent(Token::Short), "0123456789abcdef");
        assert_eq!(sent(Token::Long), format!("{right}00"));
        assert!(sent(Token::Wrong).chars().zip(right.chars()).all(|(one, other)| one != other));
        assert_eq!(Token::Missing.signature(right), SendSignature::Omitted);
    }

    #[test]
    fn order_numbers_fit_a_column_of_numbers() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let orders = Orders::from(Id::from_parts(now, [0xff; 16]));
        let (one, other) = (orders.next(), orders.next());
        assert_eq!(one.len(), 18);
        assert!(one.parse::<i64>().unwrap() < other.parse::<i64>().unwrap());
    }
}

//! Execution of one case: buys, sends requests, reads answers, and records the exchanges.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::finding::{AnswerSummary, Finding};
use super::token_method::TokenMethod;
use super::{Suite, SuiteError};
use crate::lab::exchange::{self, Answer, Exchange, PreparedRequest, Repetitions};
use crate::net::{Client, ClientError, ClientRequest, ClientResponse, Url};
use crate::observe::limits::{CONFORMANCE_RETRIES_COUNT, CONFORMANCE_SHOWN_COUNT};
use spid_core::dialect::{self, OutRequest, SendForm, SendSignature, Sending};
use spid_core::query::Pair;
use spid_hook::id::Id;
use spid_hook::time::plus_millis;

const HOUR_MS: i64 = 3_600_000;
/// Number of hours in 30 days.
pub(super) const MONTH: i64 = 30 * 24;
/// Maximum number of requests with a token that is only a guess.
const GUESSES_COUNT: u32 = 3;
/// Maximum number of requests to release one instance.
const RELEASES_COUNT: usize = 5;
/// Maximum length of an answer that is shown, in characters.
const SHOWN_MAX_CHARS: usize = 600;

/// State that all cases of a run share.
pub(super) struct SuiteRun {
    pub(super) suite: Suite,
    pub(super) client: Client,
    pub(super) orders: OrderNumbers,
    /// Slowest answer so far: milliseconds, and a description of the request.
    pub(super) slowest: Mutex<(u64, String)>,
}

impl SuiteRun {
    pub(super) fn new(suite: &Suite) -> Result<SuiteRun, SuiteError> {
        let orders = OrderNumbers::from(Id::new(suite.clock.now())?);
        // The client waits longer than the time limit, so that a late answer is measured as late.
        let client = Client::new(exchange::client_options(suite.within.saturating_mul(2)));
        Ok(SuiteRun { suite: suite.clone(), client, orders, slowest: Mutex::default() })
    }

    /// Checks that the SPI endpoint answers at all, with any answer.
    async fn check_reachable(&self) -> Result<(), SuiteError> {
        let url = &self.suite.url;
        match self.client.send(ClientRequest::get(url.clone())).await {
            Err(
                error @ (ClientError::Connect { .. } | ClientError::Forbidden { .. } | ClientError::NoTls(_)),
            ) => Err(SuiteError::NoAnswer { receiver: url.to_string(), cause: error.to_string() }),
            _ => Ok(()),
        }
    }
}

/// Generator of order numbers that were never used before. They have 18 digits, because sellers store them as
/// numbers.
pub(super) struct OrderNumbers(AtomicU64);

impl From<Id> for OrderNumbers {
    /// Starts at the milliseconds of the id, followed by two random digits and room for 1,000 orders.
    fn from(id: Id) -> OrderNumbers {
        let bytes = id.as_bytes();
        let millis = bytes.iter().take(6).fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
        let random = u64::from(bytes.last().copied().unwrap_or_default() % 100);
        OrderNumbers(AtomicU64::new((millis * 100 + random) * 1_000))
    }
}

impl OrderNumbers {
    pub(super) fn next(&self) -> String {
        self.0.fetch_add(1, Ordering::Relaxed).to_string()
    }
}

/// Token that is sent, made from the right one.
pub(super) type Token = fn(&str) -> String;

/// Changes every digit of a token.
pub(super) fn wrong_token(right: &str) -> String {
    right.chars().map(|digit| if digit == '0' { '1' } else { '0' }).collect()
}

/// Changes only the last digit of a token.
pub(super) fn token_with_wrong_end(right: &str) -> String {
    let (head, last) = right.split_at_checked(right.len().saturating_sub(1)).unwrap_or_default();
    format!("{head}{}", wrong_token(last))
}

/// Request to the SPI endpoint.
#[derive(Debug, Clone)]
pub(super) struct TestRequest {
    /// Description, in a few words.
    pub(super) what: String,
    pub(super) action: &'static str,
    pub(super) params: Vec<Pair>,
    /// Token that is sent; `None` for none.
    pub(super) token: Option<Token>,
    pub(super) form: SendForm,
    /// Values that are changed after signing.
    pub(super) altered: Vec<Pair>,
    /// Encoded, unsigned parameters before the signed ones, with an `&` at the end.
    pub(super) before: &'static str,
    /// Encoded, unsigned parameters behind the signed ones, with an `&` at the beginning.
    pub(super) behind: &'static str,
    /// True if a space is sent as `+`.
    pub(super) plus: bool,
    /// Method of the token, if it is not that of the endpoint.
    pub(super) method: Option<TokenMethod>,
    /// Text that is signed with instead of the key.
    pub(super) unset_key: Option<UnsetKey>,
}

/// Texts that an endpoint signs with if its key is not set, and their names in findings.
pub(super) const UNSET_KEYS: [UnsetKey; 5] = [
    UnsetKey { text: "", name: "an empty key" },
    UnsetKey { text: "null", name: "the text `null` as the key" },
    UnsetKey { text: "undefined", name: "the text `undefined` as the key" },
    UnsetKey { text: "None", name: "the text `None` as the key" },
    UnsetKey { text: "nil", name: "the text `nil` as the key" },
];

/// Text that an endpoint signs with if its key is not set.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnsetKey {
    text: &'static str,
    pub(super) name: &'static str,
}

impl TestRequest {
    pub(super) fn new(what: &str, action: &'static str, params: &[(&str, &str)]) -> TestRequest {
        TestRequest {
            what: what.to_owned(),
            action,
            params: params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            token: Some(str::to_owned),
            form: SendForm::Usual,
            altered: Vec::new(),
            before: "",
            behind: "",
            plus: false,
            method: None,
            unset_key: None,
        }
    }

    pub(super) fn what(self, what: &str) -> TestRequest {
        TestRequest { what: what.to_owned(), ..self }
    }

    pub(super) fn token(self, token: Token) -> TestRequest {
        TestRequest { token: Some(token), ..self }
    }

    pub(super) fn without_token(self) -> TestRequest {
        TestRequest { token: None, ..self }
    }

    /// Adds a signed parameter, or replaces its value.
    pub(super) fn with(self, name: &str, value: &str) -> TestRequest {
        let mut request = self.without(name);
        request.params.push((name.to_owned(), value.to_owned()));
        request
    }

    pub(super) fn without(mut self, name: &str) -> TestRequest {
        self.params.retain(|(known, _)| known != name);
        self
    }

    /// Moves the pair `name=value` into the value of this parameter. The token stays the same.
    pub(super) fn hide_in(mut self, parameter: &str, name: &str) -> TestRequest {
        let Some(at) = self.params.iter().position(|(known, _)| known == name) else { return self };
        let (name, hidden) = self.params.remove(at);
        if let Some((_, value)) = self.params.iter_mut().find(|(known, _)| known == parameter) {
            value.push_str(&format!("&{name}={hidden}"));
        }
        self
    }

    /// Builds the request. Also returns its valid token, which may differ from the token that is sent.
    fn build(&self, suite: &Suite, method: TokenMethod) -> (OutRequest, String) {
        let mut pairs = vec![("action".to_owned(), self.action.to_owned())];
        pairs.extend(self.params.iter().cloned());
        let parts = self.method.unwrap_or(method);
        let right = match self.unset_key {
            Some(key) => parts.token_of_unset_key(&pairs, self.plus, key.text),
            None => parts.token(&pairs, self.plus, &suite.keys),
        };
        let sending = Sending {
            form: self.form,
            signature: self
                .token
                .map_or(SendSignature::Omitted, |token| SendSignature::Pinned(token(&right))),
            altered: self.altered.clone(),
            raw: self.behind.to_owned(),
            ..Sending::at(suite.clock.now())
        };
        let mut out = dialect::alibaba().request(self.action, &pairs, &suite.keys, &sending);
        // The dialect encodes a space as `+`. A `+` in a value is encoded as %2B, so every `+` here is a space.
        if !self.plus {
            out.query = out.query.replace('+', "%20");
            out.body = String::from_utf8_lossy(&out.body).replace('+', "%20").into_bytes();
        }
        out.query.insert_str(0, self.before);
        (out, right)
    }
}

/// A purchased instance.
#[derive(Debug, Clone)]
pub(super) struct PurchasedInstance {
    pub(super) id: String,
    pub(super) order: Order,
    pub(super) answer: Answer,
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
pub(super) struct Discovery {
    pub(super) method: TokenMethod,
    /// First purchase, if it was answered with an id.
    pub(super) first: Result<PurchasedInstance, Finding>,
    /// Number of requests that this took.
    pub(super) deliveries: u32,
    pub(super) exchanges: Vec<Exchange>,
}

impl Default for Discovery {
    fn default() -> Discovery {
        let first = Err(Finding::NotTried {});
        Discovery { method: TokenMethod::Documented, first, deliveries: 1, exchanges: Vec::new() }
    }
}

/// A running case. The `Err` of its methods is the finding of the case.
pub(super) struct TestRun {
    pub(super) run: Arc<SuiteRun>,
    pub(super) discovery: Arc<Discovery>,
    pub(super) exchanges: Vec<Exchange>,
    pub(super) left_out: u32,
    /// Ids of created instances that are not released yet.
    pub(super) created: BTreeSet<String>,
    /// Purchases whose answer has not come. A stop ends them halfway, and the endpoint may have created the instance.
    pub(super) unanswered: Vec<TestRequest>,
    /// Number of requests sent, with or without an answer.
    sent: u32,
}

impl TestRun {
    pub(super) fn new(run: Arc<SuiteRun>, discovery: Arc<Discovery>) -> TestRun {
        let (exchanges, created, unanswered) = (Vec::new(), BTreeSet::new(), Vec::new());
        TestRun { run, discovery, exchanges, left_out: 0, created, unanswered, sent: 0 }
    }

    /// Returns the time a number of hours from now, as the marketplace writes it.
    pub(super) fn hence(&self, hours: i64) -> String {
        let suite = &self.run.suite;
        let at = plus_millis(suite.clock.now(), hours.saturating_mul(HOUR_MS));
        at.to_zoned(suite.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// Returns the numbers of a new order, with a term of this many hours.
    fn order(&self, hours: i64) -> Order {
        let biz = self.run.orders.next();
        Order { order: self.run.orders.next(), biz, term: self.hence(hours) }
    }

    /// Returns a new order for a month, and its purchase. The parameters are sorted neither by name nor by value.
    pub(super) fn purchase(&self) -> (Order, TestRequest) {
        self.purchase_for(MONTH)
    }

    fn purchase_for(&self, hours: i64) -> (Order, TestRequest) {
        let (order, product) = (self.order(hours), &self.run.suite.product);
        let params = [
            ("productCode", product.code.as_str()),
            ("aliUid", &product.buyer),
            ("orderBizId", &order.biz),
            ("orderId", &order.order),
            ("skuId", &product.sku),
            ("trial", "false"),
            ("expiredOn", &order.term),
        ];
        let request = TestRequest::new("a purchase", "createInstance", &params);
        (order, request)
    }

    pub(super) fn renewal(&self, id: &str, months: i64) -> TestRequest {
        let (order, until) = (self.run.orders.next(), self.hence(months * MONTH));
        let params = [("instanceId", id), ("orderId", &order), ("expiredOn", &until)];
        TestRequest::new("a renewal", "renewInstance", &params)
    }

    pub(super) fn upgrade(&self, id: &str) -> TestRequest {
        let (order, sku) = (self.run.orders.next(), &self.run.suite.product.upgrade_sku);
        let params = [("instanceId", id), ("skuId", sku), ("orderId", &order)];
        TestRequest::new("an upgrade", "upgradeInstance", &params)
    }

    pub(super) fn expiry(id: &str) -> TestRequest {
        TestRequest::new("an expiry", "expiredInstance", &[("instanceId", id)])
    }

    pub(super) fn release(id: &str) -> TestRequest {
        let params = [("instanceId", id), ("isRefund", "false")];
        TestRequest::new("a release", "releaseInstance", &params)
    }

    pub(super) fn sign_on(&self, id: &str, hours: i64) -> TestRequest {
        let params = [("instanceId", id), ("timeStamp", &self.hence(hours))];
        TestRequest::new("a sign-on", "verify", &params)
    }

    /// Sends a request once.
    pub(super) async fn send(&mut self, request: &TestRequest) -> Result<Answer, Finding> {
        let url = self.run.suite.url.clone();
        self.send_to(&url, request).await
    }

    pub(super) async fn send_to(&mut self, url: &Url, request: &TestRequest) -> Result<Answer, Finding> {
        let prepared = self.prepare(url, request)?;
        self.note_purchase(request);
        // In a box, because the futures of the cases contain it.
        let sent = Box::pin(prepared.send(self.run.client.clone())).await;
        self.unanswered.clear();
        self.record(sent)
    }

    /// Sends a request several times at the same time.
    pub(super) async fn send_at_once(
        &mut self,
        request: &TestRequest,
        count: usize,
    ) -> Result<Vec<Answer>, Finding> {
        let url = self.run.suite.url.clone();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..count {
            tasks.spawn(self.prepare(&url, request)?.send(self.run.client.clone()));
        }
        self.note_purchase(request);
        let sent = tasks.join_all().await;
        self.unanswered.clear();
        let mut answers = Vec::new();
        // Record all exchanges before one of them ends the case.
        for sent in sent {
            answers.push(self.record(sent));
        }
        answers.into_iter().collect()
    }

    fn note_purchase(&mut self, request: &TestRequest) {
        if request.action == "createInstance" {
            self.unanswered.push(request.clone());
        }
    }

    fn prepare(&self, url: &Url, request: &TestRequest) -> Result<Prepared, Finding> {
        let (out, token) = request.build(&self.run.suite, self.discovery.method);
        let prepared = PreparedRequest::signed(&out, url)
            .map_err(|error| Finding::Unsendable { error: error.to_string() })?;
        let is_sign_on = request.action == "verify";
        Ok(Prepared { request: prepared, what: request.what.clone(), token, is_sign_on })
    }

    /// Records an exchange, and returns its answer.
    fn record(&mut self, (exchange, answer): Sent) -> Result<Answer, Finding> {
        let mut slowest = self.run.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        if exchange.duration_ms > slowest.0 {
            *slowest = (exchange.duration_ms, exchange.what.clone());
        }
        // Release the lock before the rest: all cases share it.
        drop(slowest);
        self.sent += 1;
        let request = exchange.what.clone();
        // Keep the first exchanges and the last one.
        if self.exchanges.len() >= CONFORMANCE_SHOWN_COUNT {
            self.exchanges.pop();
            self.left_out += 1;
        }
        self.exchanges.push(exchange);
        let answer = answer.map_err(|error| Finding::Unanswered { request, error })?;
        // An id in a denial belongs to another instance, not to one of ours.
        self.created.extend(answer.id().filter(|_| answer.status < 300));
        Ok(answer)
    }

    /// Repeats a request until `is_done` accepts the answer, or the answer does not mean "call again".
    async fn until(
        &mut self,
        request: &TestRequest,
        limit: u32,
        is_done: fn(&Answer) -> bool,
    ) -> Result<Answer, Finding> {
        let suite = &self.run.suite;
        let mut repetitions = Repetitions::every(suite.every, limit.min(suite.limit));
        loop {
            let answer = self.send(request).await?;
            // Only a success status with JSON can mean "call again".
            let is_final = is_done(&answer) || answer.status >= 300 || answer.json.is_none();
            if is_final || !repetitions.again().await {
                return Ok(answer);
            }
        }
    }

    /// Repeats a request until the answer has an id.
    pub(super) async fn until_id(&mut self, request: &TestRequest) -> Result<(String, Answer), Finding> {
        self.until_id_within(request, CONFORMANCE_RETRIES_COUNT).await
    }

    async fn until_id_within(
        &mut self,
        request: &TestRequest,
        limit: u32,
    ) -> Result<(String, Answer), Finding> {
        let answer = self.until(request, limit, |answer| answer.id().is_some()).await?;
        match answer.id().filter(|_| answer.status < 300) {
            Some(id) => Ok((id, answer)),
            None => Err(answered(request, &answer)),
        }
    }

    /// Repeats a request until the answer is a success.
    pub(super) async fn until_success(&mut self, request: &TestRequest) -> Result<Answer, Finding> {
        let is_success = |answer: &Answer| answer.success() == Some(true);
        let answer = self.until(request, CONFORMANCE_RETRIES_COUNT, is_success).await?;
        if answer.status >= 300 || !is_success(&answer) {
            return Err(answered(request, &answer));
        }
        // The instance is released, so the end of the run need not release it.
        if request.action == "releaseInstance" {
            for (_, value) in request.params.iter().filter(|(name, _)| name == "instanceId") {
                self.created.remove(value);
            }
        }
        Ok(answer)
    }

    /// Repeats a request as often as the first purchase needed.
    /// An SPI endpoint that answers every first request with "call again" has not denied anything by that.
    pub(super) async fn patiently(&mut self, request: &TestRequest) -> Result<Answer, Finding> {
        self.until(request, self.discovery.deliveries, Answer::reports_success).await
    }

    /// Sends a request that must fail: a marketplace must not take the answer for "done".
    pub(super) async fn denied(&mut self, request: &TestRequest) -> Result<Answer, Finding> {
        let answer = self.patiently(request).await?;
        if answer.reports_success() { Err(answered(request, &answer)) } else { Ok(answer) }
    }

    /// Like [`TestRun::denied`], and the answer must not be a server error.
    pub(super) async fn denied_calmly(&mut self, request: &TestRequest) -> Result<Answer, Finding> {
        let answer = self.denied(request).await?;
        if answer.status >= 500 {
            return Err(Finding::ServerError { request: request.what.clone(), status: answer.status });
        }
        Ok(answer)
    }

    /// Buys an instance for a month.
    pub(super) async fn buy(&mut self) -> Result<PurchasedInstance, Finding> {
        self.buy_for(MONTH).await
    }

    /// Buys an instance for this many hours.
    pub(super) async fn buy_for(&mut self, hours: i64) -> Result<PurchasedInstance, Finding> {
        let (order, request) = self.purchase_for(hours);
        let (id, answer) = self.until_id(&request).await?;
        Ok(PurchasedInstance { id, order, answer })
    }

    /// Follows a sign-on link as a browser does. Repeats the request while the application is not ready.
    pub(super) async fn follow(
        &mut self,
        instance: &PurchasedInstance,
        link: &TestRequest,
    ) -> Result<Answer, Finding> {
        let url = self.sign_on_url(instance);
        let mut repetitions = Repetitions::every(self.run.suite.every, GUESSES_COUNT);
        loop {
            let answer = self.send_to(&url, link).await?;
            // 503 means "not ready yet".
            if answer.status == 503 && repetitions.again().await {
                continue;
            }
            // A browser gets a page or a redirect. JSON is neither, and may report a failure with status 200.
            return match answer.status {
                status @ ..400 if !answer.leads_a_browser() => Err(Finding::LinkIsNoPage { status }),
                ..400 => Ok(answer),
                status => Err(Finding::NewLinkDenied { status }),
            };
        }
    }

    /// Returns the sign-on URL for the buyer of this instance.
    /// A URL on another host is not followed, because that host is not under test.
    pub(super) fn sign_on_url(&self, instance: &PurchasedInstance) -> Url {
        let suite = &self.run.suite;
        let app = instance.answer.member("appInfo");
        let answered: Option<Url> = app.and_then(|app| app.get("authUrl")?.as_text()?.parse().ok());
        // Priority: the option, then the answer's URL on the same host, then the endpoint itself.
        let near = answered.filter(|url| url.authority() == suite.url.authority());
        suite.sign_on.clone().or(near).unwrap_or_else(|| suite.url.clone())
    }

    /// Buys the first instance. If the documented token does not lead to an id, finds out how the SPI endpoint
    /// computes its token.
    ///
    /// # Errors
    /// [`SuiteError`], if the endpoint cannot be reached. Any answer is good enough.
    pub(super) async fn discover(&mut self, found: &mut Discovery) -> Result<(), SuiteError> {
        self.run.check_reachable().await?;
        found.first = self.buy().await;
        found.deliveries = self.sent;
        if found.first.is_ok() {
            return Ok(());
        }
        for method in TokenMethod::WRONG {
            let (order, mut request) = self.purchase();
            request.what = "a purchase with a token computed in another way".to_owned();
            request.method = Some(method);
            let before = self.sent;
            if let Ok((id, answer)) = self.until_id_within(&request, GUESSES_COUNT).await {
                found.first = Ok(PurchasedInstance { id, order, answer });
                (found.method, found.deliveries) = (method, self.sent - before);
                return Ok(());
            }
        }
        // An endpoint without a key is not judged by its other answers: that anyone can forge orders is the finding.
        if let Some(key) = self.accepts_unset_key().await {
            found.first = Err(Finding::UnsetKeyAccepted { key: key.name });
        }
        Ok(())
    }

    /// Returns the first text that the endpoint takes for its key, although it is what an unset key looks like.
    pub(super) async fn accepts_unset_key(&mut self) -> Option<UnsetKey> {
        for key in UNSET_KEYS {
            let (_, mut request) = self.purchase();
            request.what = format!("a purchase signed with {}", key.name);
            request.unset_key = Some(key);
            if self.until_id_within(&request, GUESSES_COUNT).await.is_ok() {
                return Some(key);
            }
        }
        None
    }

    /// Releases the purchased instances. Returns the ids of those that could not be released.
    ///
    /// An unanswered purchase is sent again, because its answer has the id. One without an answer creates no instance, or
    /// is in the list by its order.
    pub(super) async fn release_all(
        &mut self,
        mut created: BTreeSet<String>,
        unanswered: Vec<TestRequest>,
    ) -> Vec<String> {
        let mut left = Vec::new();
        for request in unanswered {
            let again = request.clone().what("a purchase whose answer did not come, again");
            match self.until_id_within(&again, GUESSES_COUNT).await {
                Ok((id, _)) => _ = created.insert(id),
                // A denial: nothing was created.
                Err(Finding::RequestAnswered { .. }) => {}
                Err(_) => {
                    let order = request.params.iter().find(|(name, _)| name == "orderBizId");
                    left.extend(
                        order.map(|(_, order)| format!("the instance of the order {order}, if there is one")),
                    );
                }
            }
        }
        while let Some(id) = created.pop_first() {
            let request = TestRun::release(&id).what("a release at the end of the run");
            // If nothing can be released, do not spend an hour on repetitions.
            let limit = if left.len() < RELEASES_COUNT { RELEASES_COUNT } else { 1 };
            let limit = u32::try_from(limit).unwrap_or(1);
            let answer = self.until(&request, limit, |answer| answer.success() == Some(true)).await;
            if !answer.is_ok_and(|answer| answer.success() == Some(true)) {
                left.push(id);
            }
        }
        left
    }
}

fn answered(request: &TestRequest, answer: &Answer) -> Finding {
    Finding::RequestAnswered { request: request.what.clone(), answer: AnswerSummary::from(answer) }
}

/// A recorded exchange, with the answer or the reason why there is none.
type Sent = (Exchange, Result<Answer, String>);

/// A request that is ready to be sent.
struct Prepared {
    request: PreparedRequest,
    what: String,
    /// Valid token of the request.
    token: String,
    /// True if a buyer's browser sends the request; the answer then shows what a signed-on buyer sees.
    is_sign_on: bool,
}

impl Prepared {
    async fn send(self, client: Client) -> Sent {
        let PreparedRequest { method, target, body, .. } = &self.request;
        let mut exchange = Exchange {
            what: self.what,
            method,
            target: target.clone(),
            body: body.clone(),
            status: None,
            answer: String::new(),
            duration_ms: 0,
        };
        let begin = Instant::now();
        let response = self.request.send(&client).await;
        exchange.duration_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        match response {
            Ok(response) => {
                exchange.status = Some(response.status);
                exchange.answer = shown(&response, &self.token, self.is_sign_on);
                (exchange, Ok(Answer::from(&response)))
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
    if !token.is_empty() {
        text = text.replace(token, "<token>").replace(&token.to_ascii_uppercase(), "<token>");
    }
    match text.char_indices().nth(SHOWN_MAX_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn wrong_tokens_differ_from_the_right_one_as_they_say() {
        let right = "0123456789abcdef0123456789abcdef";
        assert_eq!(token_with_wrong_end(right), "0123456789abcdef0123456789abcde0");
        assert!(wrong_token(right).chars().zip(right.chars()).all(|(one, other)| one != other));
    }

    #[test]
    fn order_numbers_fit_a_column_of_numbers() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let orders = OrderNumbers::from(Id::from_parts(now, [0xff; 16]));
        let (one, other) = (orders.next(), orders.next());
        assert_eq!(one.len(), 18);
        assert!(one.parse::<i64>().unwrap() < other.parse::<i64>().unwrap());
    }
}

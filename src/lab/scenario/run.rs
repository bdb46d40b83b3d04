//! Runs a scenario: signs, sends and compares.
//!
//! The deliveries of a step run concurrently, as many at once as the step says, and share the [`Observer`]. The state is read right after the answers,
//! because a daemon answers after its commit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use serde::Serialize;
use tokio::time::Instant;

use super::expect::{Failure, Seen, value_at};
use super::value::Variables;
use super::{Scenario, Step};
use crate::lab::exchange::{self, PreparedRequest, Repetitions};
use crate::lab::report;
use crate::net::{Client, ClientError, ClientResponse, Url};
use spid_core::dialect::{Dialect, Options, OutRequest, RawRequest, Sending};
use spid_core::query::Pair;
use spid_core::signature::Keys;
use spid_hook::time::{Clock, plus_millis};

/// Interval between two looks at an instance that is not yet as expected.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Destination of a scenario, and the options for sending it.
#[derive(Debug, Clone)]
pub struct Target {
    /// URL of the SPI endpoint under test, as the marketplace would get it.
    pub url: Url,
    /// Keys of the endpoint; the first one signs.
    pub keys: Keys,
    /// HTTP client.
    pub client: Client,
    /// True if the run goes on after a failed step.
    pub keep_going: bool,
    /// Further endpoints, by their names in the steps.
    pub endpoints: BTreeMap<String, Url>,
    /// Further keys, by their names in the steps.
    pub other_keys: BTreeMap<String, Keys>,
}

impl Target {
    /// Creates a target that stops at the first failed step. Its timeouts equal those of spid's own listener for a
    /// peer.
    pub fn new(url: Url, keys: Keys) -> Target {
        let client = Client::new(exchange::client_options(Duration::ZERO));
        let (endpoints, other_keys) = (BTreeMap::new(), BTreeMap::new());
        Target { url, keys, client, keep_going: false, endpoints, other_keys }
    }
}

/// Access to the stored state of the SPI endpoint under test. Without it, expectations about that state are not
/// checked.
pub trait States: Sync {
    /// Returns the instance with this name, which is its own id or its orderBizId. Names of different accounts are
    /// independent, so `url` is the endpoint that the callback was sent to.
    ///
    /// # Errors
    /// The reason, if the instance cannot be told from one of another account.
    fn state(&self, url: &Url, name: &str) -> Result<Option<Seen>, String>;

    /// Returns the number of callbacks held for an operator.
    fn held(&self) -> u64;
}

/// Observer of a run. Its arguments contain no key, token or secret of a buyer.
pub trait Observer: Send {
    /// Called when a step begins.
    fn step_started(&mut self, name: &str, action: &str) {
        let _ = (name, action);
    }

    /// Called when a request is sent.
    fn sent(&mut self, request: &Sent) {
        let _ = request;
    }

    /// Called when an answer has arrived.
    fn answered(&mut self, answer: &Answered) {
        let _ = answer;
    }

    /// Called after the instance of a step was checked; `None` if there is no instance of that name.
    fn looked(&mut self, name: &str, seen: Option<&Seen>) {
        let _ = (name, seen);
    }

    /// Called when a step has ended.
    fn step_ended(&mut self, step: &StepReport) {
        let _ = step;
    }
}

/// Observer that ignores all events.
impl Observer for () {}

/// A request, safe to show: the token is replaced by `<token>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Number of the delivery in its step, from 1.
    pub delivery: u32,
    /// HTTP method.
    pub method: &'static str,
    /// Path as sent, with the query if there is one.
    pub target: String,
    /// Body as text; empty if there is none.
    pub body: String,
}

/// An answer, safe to show: passwords, license keys and tickets are replaced by `***`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Number of the delivery in its step, from 1.
    pub delivery: u32,
    /// HTTP status.
    pub status: u16,
    /// Target of a redirect.
    pub location: Option<String>,
    /// Body as text.
    pub body: String,
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Title of the scenario.
    pub title: String,
    /// Dialect of the scenario.
    pub dialect: &'static str,
    /// True if every step was run and met its expectations.
    pub passed: bool,
    /// Reason why the run could not continue, regardless of expectations: for example, no server answers at the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Steps that were run, in order.
    pub steps: Vec<StepReport>,
    /// Names of the steps that were not run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_run: Vec<String>,
}

/// Result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepReport {
    /// Name of the step.
    pub name: String,
    /// Number of requests sent, including retries.
    pub requests: u64,
    /// True if everything was as expected.
    pub passed: bool,
    /// Differences from the expectations.
    pub failures: Vec<Failure>,
    /// Names of the expectations that could not be checked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_checked: Vec<&'static str>,
    /// Duration, in milliseconds.
    pub duration_ms: i64,
}

impl StepReport {
    fn unsent(step: &Step, failures: Vec<Failure>) -> StepReport {
        let name = step.name.clone();
        StepReport { name, requests: 0, passed: false, failures, not_checked: Vec::new(), duration_ms: 0 }
    }
}

impl From<&Report> for report::Report {
    fn from(report: &Report) -> report::Report {
        let mut tests = Vec::new();
        for step in &report.steps {
            let failures: Vec<String> = step.failures.iter().map(ToString::to_string).collect();
            let first = failures.first().and_then(|text| text.lines().next());
            tests.push(report::TestReport {
                name: step.name.clone(),
                verdict: if step.passed { report::Verdict::Passed } else { report::Verdict::Failed },
                summary: first.unwrap_or("no answer").to_owned(),
                details: failures.join("\n"),
                duration_ms: u64::try_from(step.duration_ms).unwrap_or_default(),
            });
        }
        for name in &report.not_run {
            tests.push(report::TestReport {
                name: name.clone(),
                verdict: report::Verdict::NotJudged,
                summary: "a step before it failed".to_owned(),
                details: String::new(),
                duration_ms: 0,
            });
        }
        report::Report { name: report.title.clone(), tests }
    }
}

impl Scenario {
    /// Sends the steps one after the other, and compares the answers.
    ///
    /// The run ends at the first failed step, unless the target has `keep_going`. It always ends at a request without
    /// an answer. Dropping the future stops the run.
    pub async fn run(
        &self,
        target: &Target,
        states: Option<&dyn States>,
        clock: &Clock,
        observer: &mut dyn Observer,
    ) -> Report {
        let mut runner = Runner { scenario: self, target, states, clock, observer, known: Variables::new() };
        let mut steps = Vec::new();
        let error = match (self.unmet_names(target), runner.vars()) {
            (Some(unmet), _) => Some(unmet),
            (None, Ok(())) => runner.steps(&mut steps).await.err(),
            (None, Err(error)) => Some(no_randomness(&error)),
        };
        let not_run: Vec<String> = self.steps().skip(steps.len()).map(str::to_owned).collect();
        let passed = error.is_none() && not_run.is_empty() && steps.iter().all(|step| step.passed);
        Report { title: self.title.clone(), dialect: self.dialect.name(), passed, error, steps, not_run }
    }
}

impl Scenario {
    /// Names that the steps use and the target does not have.
    fn unmet_names(&self, target: &Target) -> Option<String> {
        let endpoints = self.endpoints().into_iter().filter(|name| !target.endpoints.contains_key(*name));
        let keys = self.keys().into_iter().filter(|name| !target.other_keys.contains_key(*name));
        let unmet: Vec<String> = endpoints
            .map(|name| format!("an endpoint `{name}` (--endpoint {name}=URL)"))
            .chain(keys.map(|name| format!("a key `{name}` (--other-key {name}=FILE)")))
            .collect();
        (!unmet.is_empty()).then(|| format!("`{}` needs {}", self.title, unmet.join(" and ")))
    }
}

fn no_randomness(error: &getrandom::Error) -> String {
    format!("the system's random generator failed, so no unique value can be created: {error}")
}

struct Runner<'a> {
    scenario: &'a Scenario,
    target: &'a Target,
    states: Option<&'a dyn States>,
    clock: &'a Clock,
    observer: &'a mut dyn Observer,
    known: Variables,
}

impl Runner<'_> {
    fn vars(&mut self) -> Result<(), getrandom::Error> {
        for (name, value) in &self.scenario.vars {
            let value = value.resolve(&self.known, self.clock, &self.scenario.timezone)?;
            self.known.insert(name.clone(), value);
        }
        Ok(())
    }

    /// Runs the steps. The error is the reason why the run could not continue.
    async fn steps(&mut self, reports: &mut Vec<StepReport>) -> Result<(), String> {
        for step in &self.scenario.steps {
            let (report, error) = self.step(step).await?;
            self.observer.step_ended(&report);
            let stops = !report.passed && !self.target.keep_going;
            reports.push(report);
            match error {
                Some(error) => return Err(error),
                None if stops => break,
                None => {}
            }
        }
        Ok(())
    }

    async fn step(&mut self, step: &Arc<Step>) -> Result<(StepReport, Option<String>), String> {
        let started = self.clock.now();
        tokio::time::sleep(step.wait).await;
        self.observer.step_started(&step.name, &step.action);
        let missing: Vec<Failure> = self.missing(step).collect();
        if !missing.is_empty() {
            // With an empty value, the request would be about another instance, or about all of them.
            return Ok((StepReport::unsent(step, missing), None));
        }
        // Count before the first delivery, because the deliveries may add held callbacks.
        let held_before = self.states.map(States::held);
        let delivery = self.delivery(step).map_err(|error| no_randomness(&error))?;
        let mut tally = self.deliver(&delivery).await;
        let mut not_checked = Vec::new();
        // An unexpected answer fails the step already, so check the state only after good answers.
        if tally.failures.is_empty() && tally.error.is_none() {
            self.known.append(&mut tally.captured);
            self.look(&delivery, held_before, &mut tally.failures, &mut not_checked).await;
        }
        let passed = tally.failures.is_empty() && tally.error.is_none();
        let duration_ms = self.clock.now().as_millisecond() - started.as_millisecond();
        let Tally { requests, failures, error, .. } = tally;
        let name = step.name.clone();
        Ok((StepReport { name, requests, passed, failures, not_checked, duration_ms }, error))
    }

    /// Names that this step needs and that an earlier, failed step did not capture.
    fn missing(&self, step: &Step) -> impl Iterator<Item = Failure> {
        let missing = step.needs.iter().filter(|name| !self.known.contains_key(*name));
        missing.map(|name| Failure::new(format!("${{{name}}}"), "a value captured before", "nothing"))
    }

    /// Prepares the deliveries of a step. Values are resolved once, so that every repeat sends the same values.
    fn delivery(&self, step: &Arc<Step>) -> Result<Delivery, getrandom::Error> {
        let zone = &self.scenario.timezone;
        let mut parameters = Vec::new();
        for (name, value) in &step.params {
            parameters.push((name.clone(), value.resolve(&self.known, self.clock, zone)?));
        }
        Ok(Delivery {
            step: step.clone(),
            dialect: self.scenario.dialect,
            target: self.target_of(step),
            clock: self.clock.clone(),
            known: self.known.clone(),
            parameters,
        })
    }

    /// Target of a step, with the step's own endpoint and key if it has them.
    fn target_of(&self, step: &Step) -> Target {
        let mut target = self.target.clone();
        if let Some(url) = step.endpoint.as_ref().and_then(|name| target.endpoints.get(name)) {
            target.url = url.clone();
        }
        if let Some(keys) = step.key.as_ref().and_then(|name| target.other_keys.get(name)) {
            target.keys = keys.clone();
        }
        target
    }

    async fn deliver(&mut self, delivery: &Delivery) -> Tally {
        let observer: &mut dyn Observer = self.observer;
        let (observer, is_over) = (SharedObserver::new(observer), AtomicBool::new(false));
        let numbers = (1..=delivery.step.repeat).take_while(|_| !is_over.load(Ordering::Relaxed));
        let concurrent = usize::try_from(delivery.step.concurrent).unwrap_or(usize::MAX);
        let mut deliveries =
            stream::iter(numbers).map(|number| delivery.make(number, &observer)).buffer_unordered(concurrent);
        let mut tally = Tally::default();
        while let Some(delivered) = deliveries.next().await {
            tally.add(delivered);
            // Deliveries in flight finish; no new one begins.
            is_over.store(tally.is_over(), Ordering::Relaxed);
        }
        tally
    }

    /// Compares the state of the SPI endpoint under test, repeatedly within the time that the step allows.
    async fn look(
        &mut self,
        delivery: &Delivery,
        held_before: Option<u64>,
        failures: &mut Vec<Failure>,
        not_checked: &mut Vec<&'static str>,
    ) {
        let expect = &delivery.step.expect;
        let (Some(states), Some(held_before)) = (self.states, held_before) else {
            not_checked.extend(expect.is_about_an_instance().then_some("state"));
            not_checked.extend(expect.held.map(|_| "held"));
            return;
        };
        let given = expect.instance.as_ref().map(|name| name.fill(&self.known));
        let name = given.or_else(|| delivery.subject(&self.scenario.timezone));
        let deadline = Instant::now() + expect.within;
        // Check at least once, even if the step allows no time.
        loop {
            let (seen, mut found) = self.compare(states, delivery, name.as_deref());
            found.extend(expect.check_held(held_before, states.held()));
            if found.is_empty() || Instant::now() >= deadline {
                if let (Some(name), Some(seen)) = (&name, &seen) {
                    self.observer.looked(name, seen.as_ref());
                }
                failures.extend(found);
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Returns the instance, if the store could be asked for it, and its differences from the expectations.
    fn compare(
        &self,
        states: &dyn States,
        delivery: &Delivery,
        name: Option<&str>,
    ) -> (Option<Option<Seen>>, Vec<Failure>) {
        let expect = &delivery.step.expect;
        let Some(name) = name else {
            let hint = "the callback names no instance; set `instance = \"…\"` in `expect`";
            let unnamed = Failure::new("state", "an instance to look at", hint);
            return (None, expect.is_about_an_instance().then_some(unnamed).into_iter().collect());
        };
        match states.state(&delivery.target.url, name) {
            Ok(seen) => {
                let found = expect.check_instance(name, seen.as_ref(), &self.known, &self.scenario.timezone);
                (Some(seen), found)
            }
            Err(reason) => {
                let ambiguous = Failure::new(format!("state of `{name}`"), "one instance", reason);
                (None, expect.is_about_an_instance().then_some(ambiguous).into_iter().collect())
            }
        }
    }
}

/// Results of a step's deliveries so far.
#[derive(Default)]
struct Tally {
    requests: u64,
    failures: Vec<Failure>,
    error: Option<String>,
    captured: Variables,
}

impl Tally {
    fn is_over(&self) -> bool {
        !self.failures.is_empty() || self.error.is_some()
    }

    /// Adds a delivery that has ended. Only the first failed delivery is reported, because the others would repeat it.
    fn add(&mut self, delivered: Delivered) {
        self.requests += delivered.requests;
        if self.is_over() {
            return;
        }
        match delivered.result {
            Ok(captured) => self.failures = self.contradictions(&captured),
            Err(Ended::Unmet(failures)) => self.failures = failures,
            Err(Ended::Unanswered(error)) => self.error = Some(error),
        }
        for failure in &mut self.failures {
            failure.delivery = Some(delivered.number);
        }
    }

    /// Adds captured values. All deliveries of one callback must get the same values.
    fn contradictions(&mut self, captured: &Variables) -> Vec<Failure> {
        let mut found = Vec::new();
        for (name, value) in captured {
            let first = self.captured.entry(name.clone()).or_insert_with(|| value.clone());
            if first != value {
                found.push(Failure::new(format!("capture {name}"), first.as_str(), value.as_str()));
            }
        }
        found
    }
}

/// Reasons why a delivery failed.
enum Ended {
    /// All its answers differed from the expectations.
    Unmet(Vec<Failure>),
    /// A request got no answer.
    Unanswered(String),
}

/// Observer that the concurrent deliveries of a step share.
type SharedObserver<'o> = Mutex<&'o mut dyn Observer>;

/// A delivery that has ended.
struct Delivered {
    number: u32,
    requests: u64,
    result: Result<Variables, Ended>,
}

/// A callback of a step, ready to be sent any number of times.
struct Delivery {
    step: Arc<Step>,
    dialect: &'static dyn Dialect,
    target: Target,
    clock: Clock,
    known: Variables,
    parameters: Vec<Pair>,
}

impl Delivery {
    /// Sends the callback until its answer is as expected, at most as often as the step allows.
    async fn make(&self, number: u32, observer: &SharedObserver<'_>) -> Delivered {
        let mut requests = 0;
        let mut repetitions = Repetitions::every(self.step.retry.every, self.step.retry.limit);
        let result = loop {
            requests += 1;
            // Only answers are retried: a request without an answer ends the run.
            match self.send(number, observer).await.map(|answer| self.judge(&answer)) {
                Ok(Ok(captured)) => break Ok(captured),
                Ok(Err(failures)) if !repetitions.again().await => break Err(Ended::Unmet(failures)),
                Ok(Err(_)) => {}
                Err(error) => break Err(Ended::Unanswered(error)),
            }
        };
        Delivered { number, requests, result }
    }

    fn judge(&self, answer: &ClientResponse) -> Result<Variables, Vec<Failure>> {
        let mut failures = self.step.expect.check_answer(answer, &self.known);
        let mut captured = Variables::new();
        for (name, path) in &self.step.capture {
            match value_at(&answer.body, path) {
                Some(value) => {
                    captured.insert(name.clone(), value);
                }
                None => failures.push(Failure::new(
                    format!("capture {name}"),
                    format!("a text at `{path}` of the JSON"),
                    "nothing",
                )),
            }
        }
        if failures.is_empty() { Ok(captured) } else { Err(failures) }
    }

    async fn send(&self, number: u32, observer: &SharedObserver<'_>) -> Result<ClientResponse, String> {
        let url = &self.target.url;
        let request = match &self.step.request {
            Some(bytes) => PreparedRequest::recorded(bytes, url),
            None => PreparedRequest::signed(&self.request(), url)
                .map_err(|error| format!("step `{}` cannot be sent: {error}", self.step.name))?,
        };
        // Report the request before it is sent, so that it is visible even without an answer.
        let PreparedRequest { method, target, body, .. } = &request;
        let sent = Sent { delivery: number, method, target: target.clone(), body: body.clone() };
        observer.lock().unwrap_or_else(PoisonError::into_inner).sent(&sent);
        let answer = request.send(&self.target.client).await.map_err(|error| self.explain(&error))?;
        let answered = Answered {
            delivery: number,
            status: answer.status,
            location: answer.headers.text("location").map(exchange::header),
            body: exchange::body(&answer.body),
        };
        observer.lock().unwrap_or_else(PoisonError::into_inner).answered(&answered);
        Ok(answer)
    }

    /// Builds the request with the current time, because a marketplace signs every call again.
    fn request(&self) -> OutRequest {
        let sending = Sending {
            form: self.step.form,
            signature: self.step.signature.clone(),
            altered: self.filled(&self.step.altered),
            appended: self.filled(&self.step.duplicated),
            raw: self.step.raw.clone(),
            ..Sending::at(plus_millis(self.clock.now(), self.step.dated_ms))
        };
        self.dialect.request(&self.step.action, &self.parameters, &self.target.keys, &sending)
    }

    fn filled(&self, pairs: &[(String, super::Template)]) -> Vec<Pair> {
        pairs.iter().map(|(name, text)| (name.clone(), text.fill(&self.known))).collect()
    }

    fn explain(&self, error: &ClientError) -> String {
        let hint = match error {
            ClientError::Connect { .. } => {
                "\nhint: is the SPI endpoint running at this address? `spid serve --dev` listens on \
                 http://127.0.0.1:8080/spi"
            }
            ClientError::Broken(_) => {
                "\nhint: the peer closed the connection, or does not speak plain HTTP. If spid was stopped, start spid and replay \
                 again: stored callbacks are not carried out twice (`spid callbacks list` shows them)"
            }
            _ => "",
        };
        format!("step `{}`, sent to {}: {error}{hint}", self.step.name, self.target.url)
    }

    /// Returns the name of the callback's instance. The dialect reads it from the unaltered form of the request.
    fn subject(&self, zone: &jiff::tz::TimeZone) -> Option<String> {
        let now = self.clock.now();
        let out =
            self.dialect.request(&self.step.action, &self.parameters, &self.target.keys, &Sending::at(now));
        let header = |name: &str| out.header(name);
        let raw =
            RawRequest { method: out.method, query: out.query.as_bytes(), header: &header, body: &out.body };
        // Only a verified request becomes a callback, so sign and verify it here.
        let verified = self.dialect.parts(&raw, now).ok()?.verify(&self.target.keys).ok()?;
        let options = Options { timezone: zone.clone(), ..Options::default() };
        let callback = self.dialect.callback(verified, &options);
        callback.subject.names().next().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use spid_core::dialect;
    use spid_core::dialect::{Denial, SendSignature};
    use spid_hook::Secret;

    fn files(folder: &Path) -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn fixtures() -> Vec<(PathBuf, Scenario)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("spi-fixtures");
        let folders = files(&root);
        assert_eq!(folders.len(), dialect::names().count(), "a folder for every dialect, and nothing else");
        let files = folders.iter().flat_map(|folder| files(folder));
        // Recorded requests are beside their fixtures.
        let files = files.filter(|file| file.extension().is_some_and(|it| it == "toml"));
        files.map(|file| (file.clone(), Scenario::load(&file).unwrap())).collect()
    }

    fn target() -> Target {
        let keys = Keys::single(Secret::new("isvkey")).unwrap();
        Target::new("http://127.0.0.1:9/spi".parse().unwrap(), keys)
    }

    /// Verifies the request of a step as an SPI endpoint would. Every captured value is `x`.
    fn received(scenario: &Scenario, step: &Arc<Step>) -> Result<(), Denial> {
        let (target, clock) = (target(), Clock::default());
        let known = step.needs.iter().map(|name| (name.clone(), "x".to_owned())).collect();
        let mut silent = ();
        let (target, clock, observer) = (&target, &clock, &mut silent);
        let mut runner = Runner { scenario, target, states: None, clock, observer, known };
        runner.vars().unwrap();
        let out = runner.delivery(step).unwrap().request();
        let header = |name: &str| out.header(name);
        let raw =
            RawRequest { method: out.method, query: out.query.as_bytes(), header: &header, body: &out.body };
        scenario.dialect.parts(&raw, clock.now())?.verify(&target.keys)?;
        Ok(())
    }

    #[test]
    fn every_fixture_is_in_the_folder_of_its_dialect_and_signs_as_it_wants() {
        for (file, scenario) in fixtures() {
            let folder = file.parent().unwrap().file_name().unwrap();
            assert_eq!(folder, scenario.dialect.name(), "{}", file.display());
            for step in scenario.steps.iter().filter(|step| step.request.is_none()) {
                let is_honest = step.signature == SendSignature::Computed
                    && step.altered.is_empty()
                    && step.duplicated.is_empty()
                    && step.raw.is_empty()
                    && step.dated_ms == 0;
                let received = received(&scenario, step);
                assert_eq!(received.is_ok(), is_honest, "{}: {}: {received:?}", file.display(), step.name);
                let is_refused = [400, 403].contains(&step.expect.status());
                assert!(is_honest || is_refused, "{}: {}", file.display(), step.name);
            }
        }
    }

    #[test]
    fn every_documented_action_has_a_fixture() {
        let fixtures = fixtures();
        for word in [
            "createInstance",
            "renewInstance",
            "refundRenewInstance",
            "upgradeInstance",
            "expiredInstance",
            "releaseInstance",
            "verify",
            "orderPay",
            "createIdaas",
        ] {
            let alibaba = fixtures.iter().filter(|(_, scenario)| scenario.dialect.name() == "alibaba");
            let mut steps = alibaba.flat_map(|(_, scenario)| &scenario.steps);
            assert!(steps.any(|step| step.action == word), "{word}");
        }
    }

    #[test]
    fn the_first_failed_delivery_is_the_one_reported() {
        let mut tally = Tally::default();
        let ended = |number, result| Delivered { number, requests: 1, result };
        tally.add(ended(1, Ok(Variables::from([("id".to_owned(), "a".to_owned())]))));
        tally.add(ended(2, Ok(Variables::from([("id".to_owned(), "b".to_owned())]))));
        tally.add(ended(3, Err(Ended::Unanswered("gone".to_owned()))));
        assert_eq!(tally.failures.len(), 1);
        assert_eq!(
            tally.failures[0].to_string(),
            "delivery 2: capture id\n  expected  a\n  actual    b",
            "two answers to one question"
        );
        assert_eq!(tally.error, None);
    }
}

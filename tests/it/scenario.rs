//! Scenarios with a receiver of the test: sent requests, comparisons, and reports. `fixtures_live.rs` runs the
//! fixtures with a complete daemon.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde_json::{Value, json};
use spid::internals::lab::scenario::{
    Answered, Failure, Observer, Report, Scenario, Seen, Sent, States, StepReport, Target,
};
use spid::internals::net::{Request, Response, ServerOptions, Url, serve};
use spid_core::dialect::RawRequest;
use spid_core::signature::Keys;
use spid_hook::Secret;
use spid_hook::instance::State;
use spid_hook::time::Clock;
use tokio::net::TcpListener;
use tokio::sync::Barrier;

use crate::support::serving::Serving;

const KEY: &str = "isvkey";
const HEAD: &str = "version = 1\ntitle = \"t\"\ndialect = \"alibaba\"\nsource = \"s\"\n";

fn keys(text: &str) -> Keys {
    Keys::single(Secret::new(text)).unwrap()
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn clock() -> Clock {
    Clock::manual(now())
}

fn scenario(text: &str) -> Scenario {
    Scenario::parse(&format!("{HEAD}{text}"), "test.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn step(name: &str, rest: &str) -> String {
    format!("[[step]]\nname = \"{name}\"\naction = \"createInstance\"\n{rest}\n")
}

/// A receiver that records its requests.
#[derive(Clone)]
struct Receiver {
    target: Target,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Receiver {
    /// Answers each request with the result of `answer`.
    async fn new<A, F>(answer: A) -> Receiver
    where
        A: Fn(Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/spi", listener.local_addr().unwrap()).parse().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let handler = move |request: Request| {
            seen.lock().unwrap().push(request.clone());
            answer(request)
        };
        tokio::spawn(serve(listener, ServerOptions::default(), handler, std::future::pending()));
        Receiver { target: Target::new(url, keys(KEY)), requests }
    }

    /// Gives these answers in order, and the last one for all further requests.
    async fn saying<const N: usize>(answers: [Value; N]) -> Receiver {
        let queue = Arc::new(Mutex::new(VecDeque::from(answers)));
        Receiver::new(move |_| {
            let mut queue = queue.lock().unwrap();
            let answer = if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() };
            let body = answer.unwrap().to_string();
            async { Response::json(200, body) }
        })
        .await
    }

    async fn run(&self, scenario: &Scenario) -> Report {
        scenario.run(&self.target, None, &clock(), &mut ()).await
    }

    fn queries(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|it| String::from_utf8(it.query().to_vec()).unwrap()).collect()
    }
}

fn only(report: &Report) -> &StepReport {
    assert_eq!(report.steps.len(), 1, "{report:?}");
    &report.steps[0]
}

fn whats(failures: &[Failure]) -> Vec<&str> {
    failures.iter().map(|failure| failure.what.as_str()).collect()
}

/// Reason for which the first request would be denied. `None` if it is valid.
fn refusal(receiver: &Receiver, scenario: &Scenario) -> Option<&'static str> {
    let requests = receiver.requests.lock().unwrap();
    let request = requests.first().unwrap();
    let header = |name: &str| request.headers.text(name);
    let raw = RawRequest {
        method: request.method.as_str(),
        query: request.query(),
        header: &header,
        body: &request.body,
    };
    let signed = scenario.dialect().parts(&raw, now());
    let verified = signed.and_then(|signed| signed.verify(&keys(KEY)).map_err(Into::into));
    verified.err().map(|refusal| refusal.reason())
}

#[tokio::test]
async fn variables_times_and_captures_reach_the_wire() {
    let receiver = Receiver::saying([json!({"instanceId": "inst-9", "appInfo": {"n": 7}})]).await;
    let vars = "[vars]\norder = \"o 1\"\nagain = \"${order}/x\"\nend = { time = \"now + 30d\" }\n";
    let buy = step(
        "buy",
        "params = { orderBizId = \"${again}\", expiredOn = \"${end}\" }\ncapture = { id = \"instanceId\", n = \"appInfo.n\" }",
    );
    let renew =
        step("renew", "params = { instanceId = \"${id}\", n = \"${n}\", at = { time = \"now - 1h\" } }");
    let report = receiver.run(&scenario(&format!("{vars}{buy}{renew}"))).await;
    assert!(report.passed, "{report:?}");
    let queries = receiver.queries();
    let begins = "action=createInstance&orderBizId=o+1%2Fx&expiredOn=2026-01-31+08%3A00%3A00&token=";
    assert!(queries[0].starts_with(begins), "{}", queries[0]);
    let begins = "action=createInstance&instanceId=inst-9&n=7&at=2026-01-01+07%3A00%3A00&token=";
    assert!(queries[1].starts_with(begins), "{}", queries[1]);
}

#[tokio::test]
async fn the_zone_is_the_scenarios() {
    let receiver = Receiver::saying([json!({})]).await;
    let text = format!("timezone = \"UTC\"\n{}", step("a", "params = { at = { time = \"now\" } }"));
    assert!(receiver.run(&scenario(&text)).await.passed);
    assert!(receiver.queries()[0].contains("at=2026-01-01+00%3A00%3A00"));
}

#[tokio::test]
async fn unique_variables_differ_from_run_to_run_and_can_be_fixed() {
    let receiver = Receiver::saying([json!({})]).await;
    let text =
        format!("vars = {{ o = {{ unique = \"order\" }} }}\n{}", step("a", "params = { o = \"${o}\" }"));
    let mut scenario = scenario(&text);
    receiver.run(&scenario).await;
    receiver.run(&scenario).await;
    scenario.set("vars.o", "order-7").unwrap();
    receiver.run(&scenario).await;
    receiver.run(&scenario).await;
    let queries = receiver.queries();
    assert!(queries[0] != queries[1] && queries[0].contains("o=order-0"), "{queries:?}");
    assert!(queries[2] == queries[3] && queries[2].contains("o=order-7&"), "{queries:?}");
}

const RETRY: &str = "retry = { every = \"1ms\", limit = 3 }\nexpect = { json = { instanceId = \"i\" } }";

#[tokio::test]
async fn a_delivery_is_sent_again_until_the_answer_fits() {
    let receiver = Receiver::saying([
        json!({"instanceId": "0"}),
        json!({"instanceId": "0"}),
        json!({"instanceId": "i"}),
    ])
    .await;
    let report = receiver.run(&scenario(&step("buy", RETRY))).await;
    assert!(report.passed);
    assert_eq!(only(&report).requests, 3);
    let queries = receiver.queries();
    assert!(queries.iter().all(|query| *query == queries[0]), "a retry says the same again");
}

#[tokio::test]
async fn retries_end() {
    let receiver = Receiver::saying([json!({"instanceId": "0"})]).await;
    let report = receiver.run(&scenario(&step("buy", RETRY))).await;
    let step = only(&report);
    assert_eq!((report.passed, step.passed, step.requests), (false, false, 3));
    assert_eq!(
        step.failures[0].to_string(),
        "delivery 1: json.instanceId\n  expected  \"i\"\n  actual    \"0\""
    );
}

#[tokio::test]
async fn every_repeat_must_fit_and_the_first_that_does_not_ends_them() {
    let good = json!({"instanceId": "i"});
    let receiver = Receiver::saying([good.clone(), good, json!({"instanceId": "0"})]).await;
    let text = step("buy", "repeat = 9\nexpect = { json = { instanceId = \"i\" } }");
    let report = receiver.run(&scenario(&text)).await;
    assert_eq!(only(&report).failures[0].delivery, Some(3));
    let sent = receiver.queries().len();
    assert!((3..9).contains(&sent), "{sent}");
}

#[tokio::test]
async fn concurrent_deliveries_are_under_way_together() {
    // No request is answered before eight have arrived.
    let barrier = Arc::new(Barrier::new(8));
    let receiver = Receiver::new(move |_| {
        let barrier = barrier.clone();
        async move {
            barrier.wait().await;
            Response::json(200, "{\"instanceId\":\"i\"}")
        }
    })
    .await;
    let text = step("buy", "repeat = 16\nconcurrent = 8\ncapture = { id = \"instanceId\" }");
    let report = receiver.run(&scenario(&text)).await;
    assert!(report.passed, "{report:?}");
    assert_eq!(only(&report).requests, 16);
}

#[tokio::test]
async fn deliveries_of_one_thing_that_capture_two_values_fail() {
    let receiver = Receiver::saying([json!({"instanceId": "i-1"}), json!({"instanceId": "i-2"})]).await;
    let text = step("buy", "repeat = 2\ncapture = { id = \"instanceId\" }");
    let report = receiver.run(&scenario(&text)).await;
    let failure = &only(&report).failures[0];
    assert_eq!(
        (failure.what.as_str(), failure.expected.as_str(), failure.actual.as_str()),
        ("capture id", "i-1", "i-2")
    );
}

#[tokio::test]
async fn every_expectation_about_an_answer_is_checked() {
    let receiver = Receiver::new(|_| async {
        Response::text(302, "Signing you in.").with_header("location", "https://app.example/in?ticket=1")
    })
    .await;
    let expect = |rest: &str| scenario(&step("in", &format!("expect = {{ {rest} }}")));
    let good =
        expect("status = 302, header = { location = \"https://app.example/\" }, body_contains = \"Signing\"");
    assert!(receiver.run(&good).await.passed);
    let bad = expect(
        "header = { location = \"https://other.example/\", x-none = \"\" }, body_contains = \"Welcome\", json = {}",
    );
    let report = receiver.run(&bad).await;
    let failures = &only(&report).failures;
    assert_eq!(whats(failures), ["status", "header location", "header x-none", "body", "json"]);
    assert_eq!((failures[0].expected.as_str(), failures[0].actual.as_str()), ("200", "302 Signing you in."));
    assert_eq!(failures[2].actual, "nothing");
}

#[tokio::test]
async fn tampering_is_what_it_says() {
    let pinned = "0123456789abcdef0123456789abcdef";
    for (tamper, reason) in [
        ("", None),
        ("send = \"form\"", None),
        ("token = \"wrong\"", Some("wrong-signature")),
        ("token = \"missing\"", Some("missing-signature")),
        (&format!("token = \"{pinned}\""), Some("wrong-signature")),
        ("token = \"abc\"", Some("malformed-signature")),
        ("alter = { a = \"2\" }", Some("wrong-signature")),
        ("alter = { action = \"releaseInstance\" }", Some("wrong-signature")),
        ("duplicate = { a = \"1\" }", Some("duplicate-parameter")),
        ("raw = \"&b=%zz\"", Some("bad-encoding")),
    ] {
        let receiver = Receiver::saying([json!({})]).await;
        let scenario = scenario(&step("buy", &format!("params = {{ a = \"1\" }}\n{tamper}")));
        receiver.run(&scenario).await;
        assert_eq!(refusal(&receiver, &scenario), reason, "{tamper}");
        let is_form = receiver.requests.lock().unwrap()[0].method.as_str() == "POST";
        assert_eq!(is_form, tamper.contains("form"));
    }
}

#[tokio::test]
async fn dated_requests_can_be_old() {
    let receiver = Receiver::saying([json!({})]).await;
    for (dated, reason) in [("now - 4m", None), ("now - 10m", Some("stale")), ("now + 10m", Some("stale"))] {
        let text = format!(
            "version = 1\ntitle = \"t\"\ndialect = \"generic\"\nsource = \"s\"\n\
             [[step]]\nname = \"a\"\naction = \"create\"\ndated = \"{dated}\"\n"
        );
        let scenario = Scenario::parse(&text, "t.toml").unwrap();
        receiver.requests.lock().unwrap().clear();
        receiver.run(&scenario).await;
        assert_eq!(refusal(&receiver, &scenario), reason, "{dated}");
    }
}

fn token(query: &str) -> &str {
    query.split_once("token=").unwrap().1
}

fn fixture(name: &str) -> Scenario {
    Scenario::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("spi-fixtures").join(name)).unwrap()
}

#[tokio::test]
async fn the_hidden_parameter_carries_the_token_of_the_honest_request() {
    let receiver = Receiver::saying([json!({"instanceId": "i"})]).await;
    for name in ["alibaba/hidden-parameter.toml", "alibaba/create.toml"] {
        let mut scenario = fixture(name);
        scenario.set("vars.order", "order-7").unwrap();
        receiver.run(&scenario).await;
    }
    let queries = receiver.queries();
    assert_eq!(token(&queries[0]), token(&queries[1]));
    assert_ne!(queries[0], queries[1]);
}

/// The worked example on the vendor's page, from the fixture with overrides only.
#[tokio::test]
async fn the_published_worked_example_of_jdcloud_has_its_published_token() {
    let receiver = Receiver::saying([json!({"instanceId": "i"})]).await;
    let target = Target { keys: keys("qweqeqeqe123123123131"), ..receiver.target.clone() };
    let mut scenario = fixture("jdcloud/create.toml");
    for (name, value) in [
        ("params.orderBizId", "444181"),
        ("params.orderId", "556596"),
        ("params.jdPin", "bujiaban"),
        ("params.email", "bujiaban@jd.com"),
        ("buy.params.expiredOn", "2018-06-30 23:59:59"),
    ] {
        scenario.set(name, value).unwrap();
    }
    assert!(scenario.run(&target, None, &clock(), &mut ()).await.passed);
    assert_eq!(token(&receiver.queries()[0]), "9512df22a941f172a9f28068b758ee3e");
}

#[tokio::test]
async fn nobody_there_is_said_with_place_and_hint() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let target = Target {
        keep_going: true,
        ..Target::new(format!("http://{address}/spi").parse().unwrap(), keys(KEY))
    };
    let text = format!("{}{}", step("a", "retry = { every = \"1h\", limit = 9 }"), step("b", ""));
    let report = scenario(&text).run(&target, None, &clock(), &mut ()).await;
    let error = report.error.as_deref().unwrap();
    let begins = format!("step `a`, sent to http://{address}/spi: cannot connect to {address}: ");
    assert!(error.starts_with(&begins) && error.contains("\nhint: "), "{error}");
    assert_eq!((report.passed, report.steps.len(), report.not_run), (false, 1, vec!["b".to_owned()]));
}

#[tokio::test]
async fn a_failed_step_is_the_last_unless_told_to_keep_going() {
    let receiver = Receiver::saying([json!({})]).await;
    let text = [
        step("a", "expect = { status = 201 }\ncapture = { id = \"instanceId\" }"),
        step("b", "params = { instanceId = \"${id}\" }"),
        step("c", ""),
    ]
    .concat();
    let report = receiver.run(&scenario(&text)).await;
    assert_eq!((report.steps.len(), report.not_run), (1, vec!["b".to_owned(), "c".to_owned()]));
    assert_eq!(report.error, None);
    let target = Target { keep_going: true, ..receiver.target.clone() };
    let report = scenario(&text).run(&target, None, &clock(), &mut ()).await;
    let passed: Vec<bool> = report.steps.iter().map(|step| step.passed).collect();
    assert_eq!((report.passed, passed), (false, vec![false, false, true]));
    assert_eq!(whats(&report.steps[0].failures), ["status", "capture id"]);
    assert_eq!((whats(&report.steps[1].failures), report.steps[1].requests), (vec!["${id}"], 0));
}

/// A store for the test. The held count grows with every look.
struct Told(Mutex<VecDeque<u64>>);

impl States for Told {
    fn state(&self, _: &Url, name: &str) -> Result<Option<Seen>, String> {
        Ok((name == "o-1").then(|| Seen {
            id: Some("o-1".to_owned()),
            state: State::Active,
            expires_on: Some("2026-01-31T00:00:00Z".parse().unwrap()),
            sku: Some("basic".to_owned()),
            items: BTreeMap::from([("Count".to_owned(), "2".to_owned())]),
        }))
    }

    fn held(&self) -> u64 {
        self.0.lock().unwrap().pop_front().unwrap()
    }
}

#[tokio::test]
async fn the_state_is_of_the_instance_the_callback_is_about() {
    let receiver = Receiver::saying([json!({})]).await;
    let run = async |expect: &str, held: [u64; 2]| {
        let text = format!(
            "vars = {{ end = {{ time = \"now + 30d\" }} }}\n{}",
            step("buy", &format!("params = {{ orderBizId = \"o-1\" }}\nexpect = {{ {expect} }}"))
        );
        let told = Told(Mutex::new(held.into()));
        let report = scenario(&text).run(&receiver.target, Some(&told), &clock(), &mut ()).await;
        whats(&only(&report).failures).join(", ")
    };
    let all = "state = \"active\", expires_on = \"${end}\", sku = \"basic\", items = { Count = \"2\" }, held = true";
    assert_eq!(run(all, [4, 5]).await, "");
    let none = "state = \"frozen\", expires_on = \"2026-01-31\", sku = \"pro\", items = { Num = \"2\" }, held = false";
    assert_eq!(run(none, [4, 5]).await, "state of `o-1`, expires_on, sku, items.Num, held");
    assert_eq!(run("instance = \"o-2\", state = \"none\"", [0, 0]).await, "");
    assert_eq!(run("state = \"none\"", [0, 0]).await, "state of `o-1`");
}

#[tokio::test]
async fn without_a_look_into_the_store_states_are_not_checked_and_it_says_so() {
    let receiver = Receiver::saying([json!({})]).await;
    let text = step("buy", "params = { orderBizId = \"o-1\" }\nexpect = { state = \"active\", held = true }");
    let report = receiver.run(&scenario(&text)).await;
    assert!(report.passed);
    assert_eq!(only(&report).not_checked, ["state", "held"]);
}

#[tokio::test]
async fn an_instance_nobody_named_is_asked_for() {
    let receiver = Receiver::saying([json!({})]).await;
    let told = Told(Mutex::new([0, 0].into()));
    let text = step("buy", "expect = { state = \"active\" }");
    let report = scenario(&text).run(&receiver.target, Some(&told), &clock(), &mut ()).await;
    assert!(only(&report).failures[0].actual.contains("set `instance ="), "{report:?}");
}

/// Records every event.
#[derive(Default)]
struct Notes(Vec<String>);

impl Observer for Notes {
    fn step_started(&mut self, name: &str, action: &str) {
        self.0.push(format!("start {name} {action}"));
    }

    fn sent(&mut self, request: &Sent) {
        let Sent { delivery, method, target, body } = request;
        self.0.push(format!("sent {delivery} {method} {target} {body}"));
    }

    fn answered(&mut self, answer: &Answered) {
        self.0.push(format!("answered {} {} {}", answer.delivery, answer.status, answer.body));
    }

    fn looked(&mut self, name: &str, seen: Option<&Seen>) {
        self.0.push(format!("looked {name} {}", seen.map_or("none", |seen| seen.state.as_str())));
    }

    fn step_ended(&mut self, step: &StepReport) {
        self.0.push(format!("end {} {}", step.name, step.passed));
    }
}

#[tokio::test]
async fn an_observer_sees_everything_but_keys_and_tokens() {
    let receiver = Receiver::saying([json!({"instanceId": "i"})]).await;
    let text = step("buy", "params = { orderBizId = \"o-1\" }\nrepeat = 2")
        + &step("again", "params = { orderBizId = \"o-2\" }\nsend = \"form\"");
    let told = Told(Mutex::new([0; 4].into()));
    let mut notes = Notes::default();
    let report = scenario(&text).run(&receiver.target, Some(&told), &clock(), &mut notes).await;
    assert!(report.passed);
    let get = "GET /spi?action=createInstance&orderBizId=o-1&token=<token> ";
    let answer = "200 {\"instanceId\":\"i\"}";
    assert_eq!(
        notes.0,
        [
            "start buy createInstance".to_owned(),
            format!("sent 1 {get}"),
            format!("answered 1 {answer}"),
            format!("sent 2 {get}"),
            format!("answered 2 {answer}"),
            "looked o-1 active".to_owned(),
            "end buy true".to_owned(),
            "start again createInstance".to_owned(),
            "sent 1 POST /spi action=createInstance&orderBizId=o-2&token=<token>".to_owned(),
            format!("answered 1 {answer}"),
            "looked o-2 none".to_owned(),
            "end again true".to_owned(),
        ]
    );
    let shown = format!("{notes:?} {report:?} {:?}", receiver.target, notes = notes.0);
    let sent = receiver.queries();
    assert!(!shown.contains(KEY) && !shown.contains(token(&sent[0])), "{shown}");
}

#[tokio::test]
async fn a_report_is_json() {
    let receiver = Receiver::saying([json!({"instanceId": "0"})]).await;
    let text = step("buy", "expect = { json.instanceId = { not = \"0\" } }") + &step("rest", "");
    let report = receiver.run(&scenario(&text)).await;
    assert_eq!(
        serde_json::to_value(&report).unwrap(),
        json!({
            "title": "t",
            "dialect": "alibaba",
            "passed": false,
            "steps": [{
                "name": "buy",
                "requests": 1,
                "passed": false,
                "failures": [{
                    "delivery": 1,
                    "what": "json.instanceId",
                    "expected": "a text other than \"0\"",
                    "actual": "\"0\"",
                }],
                "duration_ms": 0,
            }],
            "not_run": ["rest"],
        })
    );
}

#[test]
fn mistakes_have_file_and_line() {
    let error = Scenario::parse("version = 1\ntitel = \"t\"\n", "a/b.toml").unwrap_err().to_string();
    assert!(error.lines().all(|line| line.starts_with("a/b.toml:")), "{error}");
    assert!(
        error.contains("a/b.toml:2: `titel` is unknown in the scenario; did you mean `title`?"),
        "{error}"
    );
}

#[test]
fn the_example_in_the_documentation_is_a_scenario() {
    let page = include_str!("../../docs/fixtures.md");
    let blocks: Vec<&str> =
        page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let example = blocks.iter().find(|block| block.starts_with("version")).unwrap();
    let scenario = Scenario::parse(example, "docs/fixtures.md").unwrap_or_else(|error| panic!("{error}"));
    assert!(scenario.steps().len() > 1);
}

#[tokio::test]
async fn a_recorded_request_goes_out_byte_for_byte_and_is_shown_without_its_token() {
    let receiver = Receiver::saying([json!({"instanceId": "i"})]).await;
    let text = "[[step]]\nname = \"a\"\nrequest = \"GET /spi?b=%zz&token=0123 HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n\"\n\
                expect = { json = { instanceId = \"i\" } }\n";
    let mut notes = Notes::default();
    let report = scenario(text).run(&receiver.target, None, &clock(), &mut notes).await;
    assert!(report.passed, "{report:?}");
    assert_eq!(receiver.queries(), ["b=%zz&token=0123"]);
    assert_eq!(notes.0[1], "sent 1 GET /spi?b=%zz&token=<token> ");
}

#[tokio::test]
async fn steps_go_to_their_own_endpoint_under_their_own_key() {
    let (one, other) = (Receiver::saying([json!({})]).await, Receiver::saying([json!({})]).await);
    let text = step("a", "") + &step("b", "endpoint = \"intl\"\nkey = \"old\"");
    let scenario = scenario(&text);
    let report = one.run(&scenario).await;
    let error = report.error.unwrap();
    assert!(error.contains("--endpoint intl=URL") && error.contains("--other-key old=FILE"), "{error}");
    assert!(one.queries().is_empty(), "nothing is sent by halves");
    let mut target = one.target.clone();
    target.endpoints.insert("intl".to_owned(), other.target.url.clone());
    target.other_keys.insert("old".to_owned(), keys("another-fake-key"));
    assert!(scenario.run(&target, None, &clock(), &mut ()).await.passed);
    let (first, second) = (one.queries(), other.queries());
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(token(&first[0]), token(&second[0]));
}

/// A store in which the instance is unfrozen after some looks.
struct Thawing(Mutex<u32>);

impl States for Thawing {
    fn state(&self, _: &Url, _: &str) -> Result<Option<Seen>, String> {
        let mut looks = self.0.lock().unwrap();
        *looks += 1;
        let state = if *looks > 3 { State::Active } else { State::Frozen };
        Ok(Some(Seen { id: None, state, expires_on: None, sku: None, items: BTreeMap::new() }))
    }

    fn held(&self) -> u64 {
        0
    }
}

#[tokio::test]
async fn a_state_may_take_its_time_where_the_step_gives_it() {
    let receiver = Receiver::saying([json!({})]).await;
    for (within, passes) in [("within = \"1m\", ", true), ("", false)] {
        let rest = format!("params = {{ orderBizId = \"o-1\" }}\nexpect = {{ {within}state = \"active\" }}");
        let states = Thawing(Mutex::new(0));
        let report =
            scenario(&step("a", &rest)).run(&receiver.target, Some(&states), &clock(), &mut ()).await;
        assert_eq!(report.passed, passes, "{report:?}");
    }
}

fn spid(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut spid = std::process::Command::new(env!("CARGO_BIN_EXE_spid"));
    let output = spid.args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn fixtures_are_checked_without_being_sent_and_the_wrong_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("spi-fixtures");
    let (code, told, complaint) = spid(folder.path(), &["fixtures", "check", root.to_str().unwrap()]);
    assert_eq!(code, 0, "{told}{complaint}");
    assert!(told.contains("alibaba/life.toml: 13 steps: Buy, upgrade"), "{told}");
    let broken = format!("{HEAD}{}", step("a", "repat = 2"));
    std::fs::write(folder.path().join("broken.toml"), broken).unwrap();
    let (code, told, complaint) = spid(folder.path(), &["fixtures", "check", "broken.toml"]);
    assert_eq!((code, complaint.as_str()), (65, "error: 1 of 1 files have mistakes\n"));
    assert_eq!(told, "broken.toml:8: `repat` is unknown in step `a`; did you mean `repeat`?\n");
    assert_eq!(spid(folder.path(), &["fixtures", "check", "none.toml"]).0, 66);
    std::fs::remove_file(folder.path().join("broken.toml")).unwrap();
    let (code, schema, _) = spid(folder.path(), &["fixtures", "schema"]);
    assert_eq!(code, 0);
    assert!(serde_json::from_str::<Value>(&schema).unwrap()["properties"]["step"].is_object());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_told_to_a_build_server() {
    let receiver = Receiver::saying([json!({"instanceId": "0"})]).await;
    let folder = tempfile::tempdir().unwrap();
    let text = step("buy", "expect = { json.instanceId = { not = \"0\" } }") + &step("rest", "");
    std::fs::write(folder.path().join("f.toml"), format!("{HEAD}{text}")).unwrap();
    let url = receiver.target.url.to_string();
    let path = folder.path().to_owned();
    let replay = move || spid(&path, &["replay", "f.toml", "--to", &url, "--dev", "-q", "--junit", "r.xml"]);
    let (code, told, complaint) = tokio::task::spawn_blocking(replay).await.unwrap();
    assert_eq!(code, 1, "{told}{complaint}");
    let xml = std::fs::read_to_string(folder.path().join("r.xml")).unwrap();
    assert!(xml.contains("<testsuite name=\"t\" tests=\"2\" failures=\"1\" skipped=\"1\""), "{xml}");
    assert!(xml.contains("delivery 1: json.instanceId&#10;"), "{xml}");
}

/// Two accounts can have an instance of one name. A replay that waits for its own must not take the other one.
#[test]
fn replay_never_takes_the_instance_of_another_account() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let endpoint = |name: &str| {
        format!(
            "[[endpoint]]\nname = \"{name}\"\npath = \"/{name}\"\ndialect = \"alibaba\"\nkeys = [{{ file = {:?} }}]\nshared_key = true\n",
            folder.path().join("key")
        )
    };
    let store = format!("store.path = {:?}\n", folder.path().join("spid.db"));
    write("key", "fake-key-of-a-test");
    write(
        "spid.toml",
        &format!("{store}{}{}[[hook]]\nname = \"log\"\nlog = {{}}\n", endpoint("one"), endpoint("other")),
    );
    let params = "params = { aliUid = \"1\", orderBizId = \"o-1\", orderId = \"o-2\", productCode = \"p\", skuId = \"s\" }\n";
    let active = "retry = { every = \"100ms\", limit = 100 }\nexpect = { json.instanceId = { not = \"0\" }, state = \"active\" }";
    let denied = "token = \"wrong\"\nexpect = { status = 403, state = \"active\", within = \"300ms\" }";
    write("buy.toml", &format!("{HEAD}{}", step("buy", &format!("{params}{active}"))));
    write("denied.toml", &format!("{HEAD}{}", step("buy", &format!("{params}{denied}"))));
    let daemon = Serving::start(folder.path(), &[]);
    let address = daemon.address().unwrap();
    let replay = |fixture: &str, path: &str, options: &[&str]| {
        let url = format!("http://{address}/{path}");
        spid(folder.path(), &[&["replay", fixture, "--to", &url, "--key-file", "key"], options].concat())
    };
    let by_config = ["--config", "spid.toml"];
    assert_eq!(replay("buy.toml", "other", &by_config).0, 0);
    let (code, told, _) = replay("denied.toml", "one", &by_config);
    assert!(code == 1 && told.contains("expected  active\n  actual    none"), "{told}");
    let (code, told, complaint) = replay("buy.toml", "one", &by_config);
    assert_eq!(code, 0, "{told}{complaint}");
    let (code, told, _) = replay("buy.toml", "one", &["--db", "spid.db"]);
    assert!(
        code == 1
            && told.contains(
                "several accounts have an instance with the name `o-1`: other, one; name one with --account"
            ),
        "{told}"
    );
    assert_eq!(replay("buy.toml", "one", &["--db", "spid.db", "--account", "one"]).0, 0);
    assert_eq!(replay("buy.toml", "one", &["--account", "one"]).0, 64);
}

/// Errors that another implementation of JSON Schema finds, as an editor does.
fn editors_complaints(text: &str) -> Vec<String> {
    let schema: Value = serde_json::from_str(spid::internals::lab::scenario::SCHEMA).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let file: toml::Value = toml::from_str(text).unwrap();
    let file = serde_json::to_value(file).unwrap();
    validator.iter_errors(&file).map(|error| error.to_string()).collect()
}

#[test]
fn an_editor_takes_every_fixture_and_no_mistake() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("spi-fixtures");
    for folder in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let complaints = editors_complaints(&std::fs::read_to_string(&path).unwrap());
            assert!(complaints.is_empty(), "{}: {complaints:?}", path.display());
        }
    }
    for wrong in [
        "repat = 2",
        "repeat = 0",
        "send = \"GET\"",
        "wait = \"5\"",
        "token = \"wrnog\"",
        "dated = \"10m\"",
        "concurrent = 2000",
        "retry = { every = \"1s\" }",
        "params.a = { unique = \"x\" }",
        "params.a = { time = \"soon\" }",
        "expect = { state = \"activ\" }",
        "expect = { status = 1000 }",
        "request = \"GET / HTTP/1.1\"",
    ] {
        let text = format!("{HEAD}{}", step("a", wrong));
        assert!(!editors_complaints(&text).is_empty(), "{wrong}");
        assert!(Scenario::parse(&text, "t.toml").is_err(), "{wrong}");
    }
}

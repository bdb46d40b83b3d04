//! KooGallery through the complete daemon: real sockets, a real database, a marketplace that calls and one that
//! answers order lookups.
//!
//! The tests compute all signatures by hand, of requests and of answers, so that an error in spid's own signatures
//! cannot cancel itself out.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use spid::hook::{
    AnyHook, CreateCall, ExpireCall, HookError, OtherCall, Provisioned, ProvisioningHook, RefundRenewCall,
    ReleaseCall, RenewCall, Reply, Updated, UpgradeCall,
};
use spid::internals::hooks::runner::{NamedHook, Runner};
use spid::internals::market_api::order_lookup::{OrderLookupClient, OrderLookupClients};
use spid::internals::net::{Client, ClientOptions, ClientRequest, ClientResponse, Method};
use spid::internals::observe::metrics::Metric;
use spid::internals::serve::daemon::{Daemon, DaemonOptions};
use spid::internals::serve::intake::Endpoint;
use spid::internals::store::{Filter, JobRow};
use spid_core::dialect;
use spid_core::dialect::{Options, Sending};
use spid_core::lifecycle::schedule::{JobState, Schedule};
use spid_core::signature::{AccessKey, Keys};
use spid_hook::Secret;
use spid_hook::time::Clock;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;

const KEY: &str = "fake-koogallery-key";
const ACCESS: &str = "FAKEACCESSKEY";
const ACCESS_SECRET: &str = "fake-access-secret";
const ALIBABA_KEY: &str = "fake-alibaba-key";
/// The start of every test, on the daemon's clock.
const START: &str = "2026-01-01T00:00:00Z";

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

// ---- The hook ------------------------------------------------------------------------------------

/// Records its calls; its creates wait for a gate.
#[derive(Clone)]
struct Recorder {
    calls: Arc<Mutex<Vec<Value>>>,
    gate: watch::Receiver<bool>,
}

impl Recorder {
    fn note(&self, action: &str, call: &impl serde::Serialize) -> Value {
        let call = serde_json::to_value(call).unwrap();
        let mut noted = call.clone();
        noted["action"] = json!(action);
        self.calls.lock().unwrap().push(noted);
        call
    }
}

impl ProvisioningHook for Recorder {
    async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
        let noted = self.note("create", &call);
        if noted["sku"] == "forbidden" {
            return Err(HookError::refuse("000103: not to this buyer"));
        }
        self.gate.clone().wait_for(|open| *open).await?;
        let key = noted["idempotency_key"].as_str().unwrap_or_default();
        Ok(Provisioned::new().id(format!("tenant-{key}")).app("https://app.example"))
    }
    async fn renew(&self, call: RenewCall) -> Result<Updated, HookError> {
        self.note("renew", &call);
        Ok(Updated::new())
    }
    async fn refund_renew(&self, call: RefundRenewCall) -> Result<Updated, HookError> {
        self.note("refund-renew", &call);
        Ok(Updated::new())
    }
    async fn upgrade(&self, call: UpgradeCall) -> Result<Updated, HookError> {
        self.note("upgrade", &call);
        Ok(Updated::new())
    }
    async fn expire(&self, call: ExpireCall) -> Result<(), HookError> {
        self.note("expire", &call);
        Ok(())
    }
    async fn release(&self, call: ReleaseCall) -> Result<(), HookError> {
        self.note("release", &call);
        Ok(())
    }
    async fn other(&self, call: OtherCall) -> Result<Reply, HookError> {
        let noted = self.note("other", &call);
        Ok(Reply::json(json!({"allowed": noted["sku"] != "smaller"})))
    }
}

// ---- The query-order interface -------------------------------------------------------------------

/// Answers and recorded requests of the simulated query-order interface.
#[derive(Default)]
struct Office {
    /// Number of requests to answer with a fault first.
    faults: u32,
    /// Denies every request.
    locked: bool,
    asked: Vec<String>,
    /// SKU, quantity and expiry by order, beside the documented MOCK orders.
    orders: BTreeMap<String, (&'static str, u32, &'static str)>,
}

/// The nine orders that the guide provides for debugging: kind, charging mode.
const MOCKS: [(&str, &str, &str); 9] = [
    ("MOCKPERIODYEARNEW", "NEW", "PERIOD"),
    ("MOCKONETIMENEW", "NEW", "ONE_TIME"),
    ("MOCKONDEMAND", "NEW", "ON_DEMAND"),
    ("MOCKONDEMANDPKG", "NEW", "ON_DEMAND_PKG"),
    ("MOCKPERIODDAYTRIAL", "TRIAL", "PERIOD"),
    ("MOCKMONTYTRIALTOFORMAL", "TRIAL_TO_FORMAL", "PERIOD"),
    ("MOCKMONTYUNSUBSCRIBE", "UNSUBSCRIBE", "PERIOD"),
    ("MOCKMONTYRENEW", "RENEW", "PERIOD"),
    ("MOCKMONTYCHANGE", "CHANGE", "PERIOD"),
];

impl Office {
    /// Answer to one request, with the documented fields.
    fn answer(&mut self, head: &str) -> (u16, Value) {
        let target = head.split(' ').nth(1).unwrap();
        let (path, query) = target.split_once('?').unwrap();
        assert_eq!(path, "/api/mkp-openapi-public/global/v1/order/query");
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
            line.map(|line| line.split_once(':').unwrap().1.trim().to_owned()).unwrap_or_default()
        };
        let (host, date, kind) = (header("host"), header("x-sdk-date"), header("content-type"));
        let canonical = format!(
            "GET\n{path}/\n{query}\ncontent-type:{kind}\nhost:{host}\nx-sdk-date:{date}\n\ncontent-type;host;x-sdk-date\n{}",
            hex::encode(Sha256::digest(b""))
        );
        let text = format!("SDK-HMAC-SHA256\n{date}\n{}", hex::encode(Sha256::digest(canonical)));
        let signature = hex::encode(hmac(ACCESS_SECRET.as_bytes(), text.as_bytes()));
        let expected = format!(
            "SDK-HMAC-SHA256 Access={ACCESS}, SignedHeaders=content-type;host;x-sdk-date, Signature={signature}"
        );
        if self.locked || header("authorization") != expected {
            return (401, json!({"resultCode": "MKT.0150", "resultMsg": "verify aksk signature fail"}));
        }
        let asked = |name: &str| {
            let pair = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
            pair.unwrap_or_default().to_owned()
        };
        self.asked.push(asked("orderId"));
        if self.faults > 0 {
            self.faults -= 1;
            return (500, json!({"resultCode": "MKT.9001", "resultMsg": "busy"}));
        }
        self.order(&asked("orderId"), &asked("orderLineId"))
    }

    fn order(&self, id: &str, line: &str) -> (u16, Value) {
        let mock = MOCKS.iter().find(|(mock, ..)| *mock == id);
        let (kind, mode, sku, quantity, expires) = match (mock, self.orders.get(id)) {
            (Some((_, kind, mode)), _) => (*kind, *mode, "mock-sku", 1, "20270101000000"),
            (None, Some((sku, quantity, expires))) => ("NEW", "PERIOD", *sku, *quantity, *expires),
            (None, None) => return (400, json!({"resultCode": "MKT.0199", "resultMsg": "no such order"})),
        };
        let order_line = json!({
            "orderLineId": line, "chargingMode": mode, "periodType": "year", "periodNumber": 1,
            "expireTime": expires,
            "productInfo": [{"productId": "OFFI1", "skuCode": sku, "linearValue": quantity, "productName": "Desk"}]
        });
        let order = json!({
            "orderId": id, "orderType": kind, "createTime": "20260101000000", "orderLine": [order_line],
            "buyerInfo": {"customerId": "buyer-1", "customerName": "Acme"},
            "extendParams": [{"name": "region", "value": "north"}]
        });
        (200, json!({"resultCode": "MKT.0000", "resultMsg": "success", "orderInfo": order}))
    }
}

/// Serves the query-order interface on its own port.
async fn open(office: Arc<Mutex<Office>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let office = office.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let (status, body) = office.lock().unwrap().answer(std::str::from_utf8(&head).unwrap());
                let body = body.to_string();
                let answer = format!(
                    "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    format!("http://{address}")
}

// ---- The daemon, and the marketplace that calls --------------------------------------------------

struct World {
    daemon: Daemon,
    folder: TempDir,
    clock: Clock,
    office: Arc<Mutex<Office>>,
    office_url: String,
    calls: Arc<Mutex<Vec<Value>>>,
    gate: watch::Sender<bool>,
    client: Client,
}

/// An answer whose signature was checked.
struct Told {
    status: u16,
    body: Value,
}

impl Told {
    fn code(&self) -> &str {
        self.body["resultCode"].as_str().unwrap()
    }
}

/// A request before it is sent: the signed text, and the body.
#[derive(Clone)]
struct Letter {
    query: String,
    body: String,
}

async fn start(folder: &Path, clock: &Clock, office_url: &str, recorder: Recorder) -> Daemon {
    start_as(Some("koogallery"), folder, clock, office_url, recorder, 0).await
}

/// A daemon whose endpoint at KooGallery has this name. Without a name the account is given up.
async fn start_as(
    name: Option<&str>,
    folder: &Path,
    clock: &Clock,
    office_url: &str,
    recorder: Recorder,
    retry_after_ms: i64,
) -> Daemon {
    let endpoint = |dialect: &str, name: &str, key: &str| Endpoint {
        name: name.into(),
        account: dialect.into(),
        dialect: dialect::by_name(dialect).unwrap(),
        keys: Keys::single(Secret::new(key)).unwrap(),
        options: Options { test_url: Some("https://try.example".into()), ..Options::default() },
    };
    let mut endpoints = vec![("/alibaba".to_owned(), endpoint("alibaba", "alibaba", ALIBABA_KEY))];
    endpoints.extend(name.map(|name| ("/koogallery".to_owned(), endpoint("koogallery", name, KEY))));
    let runner = Runner::new(vec![NamedHook::new("recorder", AnyHook::new(recorder))], Vec::new()).unwrap();
    let mut options = DaemonOptions::new(folder.join("spid.db"), endpoints, runner);
    let key = AccessKey::new(ACCESS, Secret::new(ACCESS_SECRET)).unwrap();
    let lookup_client = OrderLookupClient::new(
        dialect::by_name("koogallery").unwrap().order_api().unwrap(),
        office_url.parse().unwrap(),
        key,
        None,
    );
    options.live.orders = OrderLookupClients::new(name.map(|name| (name.to_owned(), lookup_client)));
    options.retired_accounts = vec!["koogallery".to_owned()];
    options.clock = clock.clone();
    options.live.intake.reply_within = Duration::from_secs(1);
    options.store.schedules = Schedule::from_millis(vec![retry_after_ms; 20]).into();
    options.dispatch.poll = Duration::from_millis(50);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Daemon::start(listener, None, options).await.unwrap()
}

impl World {
    async fn new() -> World {
        let office = Arc::new(Mutex::new(Office::default()));
        let office_url = open(office.clone()).await;
        World::with(office, office_url).await
    }

    async fn with(office: Arc<Mutex<Office>>, office_url: String) -> World {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START.parse().unwrap());
        let (gate, opened) = watch::channel(true);
        let recorder = Recorder { calls: Arc::default(), gate: opened };
        let calls = recorder.calls.clone();
        let daemon = start(folder.path(), &clock, &office_url, recorder).await;
        let client = Client::new(ClientOptions::default());
        World { daemon, folder, clock, office, office_url, calls, gate, client }
    }

    /// Stops the daemon, and starts another one on the same files.
    async fn restart(self) -> World {
        assert!(self.daemon.stop().await.closed);
        let recorder = Recorder { calls: self.calls.clone(), gate: self.gate.subscribe() };
        let daemon = start(self.folder.path(), &self.clock, &self.office_url, recorder).await;
        World { daemon, ..self }
    }

    /// An order that the query-order interface knows.
    fn sells(&self, order: &str, sku: &'static str, quantity: u32, expires: &'static str) {
        self.office.lock().unwrap().orders.insert(order.to_owned(), (sku, quantity, expires));
    }

    /// A request with a new nonce.
    fn letter(&self, activity: &str, members: Value) -> Letter {
        let nonce = hex::encode(spid_hook::id::Id::new(self.clock.now()).unwrap().as_bytes());
        self.letter_with(activity, members, &nonce)
    }

    fn letter_with(&self, activity: &str, mut members: Value, nonce: &str) -> Letter {
        members["activity"] = json!(activity);
        let body = members.to_string();
        let timestamp = self.clock.now().as_millisecond().to_string();
        let inner = hex::encode(hmac(KEY.as_bytes(), body.as_bytes()));
        let signature = hmac(KEY.as_bytes(), format!("{KEY}{nonce}{timestamp}{inner}").as_bytes());
        let query = format!("signature={}&timestamp={timestamp}&nonce={nonce}", hex::encode_upper(signature));
        Letter { query, body }
    }

    async fn send(&self, letter: &Letter) -> Told {
        told(&self.client.send(posting(self.daemon.address(), letter)).await.unwrap())
    }

    async fn ask(&self, activity: &str, members: Value) -> Told {
        self.send(&self.letter(activity, members)).await
    }

    /// Calls until the answer has this code.
    async fn until(&self, code: &str, activity: &str, members: Value) -> Told {
        for _ in 0..200 {
            let told = self.ask(activity, members.clone()).await;
            if told.code() == code {
                return told;
            }
            // The gap between two attempts that redeliveries cause is on the daemon's clock.
            self.clock.advance(SignedDuration::from_secs(31));
        }
        panic!("{activity} never answered {code}");
    }

    async fn done(&self, activity: &str, members: Value) -> Told {
        self.until("000000", activity, members).await
    }

    /// The same daemon, called by another marketplace.
    async fn alibaba(&self, action: &str, parameters: &[(&str, &str)]) -> Value {
        let pairs: Vec<_> = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let keys = Keys::single(Secret::new(ALIBABA_KEY)).unwrap();
        let out = dialect::by_name("alibaba").unwrap().request(
            action,
            &pairs,
            &keys,
            &Sending::at(self.clock.now()),
        );
        let url = format!("http://{}/alibaba?{}", self.daemon.address(), out.query);
        let answer = self.client.send(ClientRequest::get(url.parse().unwrap())).await.unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn calls(&self) -> Vec<Value> {
        self.calls.lock().unwrap().clone()
    }

    fn actions(&self) -> Vec<String> {
        self.calls().iter().map(|call| call["action"].as_str().unwrap().to_owned()).collect()
    }

    fn instance(&self, name: &str) -> Value {
        let mut rows = self.daemon.store().reader().instances_named(name).unwrap();
        assert_eq!(rows.len(), 1, "{name}");
        serde_json::to_value(rows.remove(0)).unwrap()
    }

    /// All stored rows except nonces: instances, jobs, callbacks.
    fn kept(&self) -> Value {
        let reader = self.daemon.store().reader();
        let all = Filter { limit: 10_000, ..Filter::default() };
        json!({
            "instances": reader.instances(&all).unwrap(),
            "jobs": reader.jobs(&all).unwrap(),
            "callbacks": reader.callbacks(&all).unwrap(),
        })
    }

    fn marks(&self) -> i64 {
        let db = rusqlite::Connection::open(self.folder.path().join("spid.db")).unwrap();
        db.query_row("SELECT count(*) FROM once", [], |row| row.get(0)).unwrap()
    }
}

fn posting(address: std::net::SocketAddr, letter: &Letter) -> ClientRequest {
    let url = format!("http://{address}/koogallery?{}", letter.query);
    ClientRequest::post(url.parse().unwrap(), "application/json;charset=utf8", letter.body.clone())
}

/// Checks the signature of the answer over its exact bytes.
fn told(answer: &ClientResponse) -> Told {
    let signature = BASE64.encode(hmac(KEY.as_bytes(), &answer.body));
    let expected = format!("sign_type=\"HMAC-SHA256\", signature=\"{signature}\"");
    assert_eq!(answer.headers.text("body-sign"), Some(expected.as_str()));
    assert_eq!(answer.headers.text("content-type"), Some("application/json"));
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(body["resultMsg"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    Told { status: answer.status, body }
}

fn purchase(business: &str, order: &str) -> Value {
    json!({"businessId": business, "orderId": order, "orderLineId": format!("{order}-000001")})
}

fn about(id: &str) -> Value {
    json!({"instanceId": id})
}

fn status(id: &str, status: &str) -> Value {
    json!({"instanceId": id, "status": status})
}

fn refresh(id: &str, scene: &str, order: &str, expires: &str) -> Value {
    json!({"instanceId": id, "scene": scene, "orderId": order, "orderLineId": format!("{order}-000001"), "expireTime": expires})
}

fn upgrade(id: &str, order: &str) -> Value {
    json!({"instanceId": id, "orderId": order, "orderLineId": format!("{order}-000001")})
}

// ---- A life ---------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_life() {
    let world = World::new().await;
    world.sells("CS1", "basic", 5, "20270101000000");
    world.sells("CS3", "pro", 9, "20280101000000");
    world.gate.send_replace(false);
    let first = world.ask("newInstance", purchase("b-1", "CS1")).await;
    assert_eq!((first.code(), first.body["instanceId"].as_str()), ("000004", Some("b-1")));
    let again = world.ask("newInstance", purchase("b-2", "CS1")).await;
    assert_eq!((again.code(), again.body["instanceId"].as_str()), ("000004", Some("b-1")));
    assert_eq!(world.ask("queryInstance", about("b-1")).await.code(), "000004");
    world.gate.send_replace(true);
    let polled = world.done("queryInstance", about("b-1")).await;
    let info = json!([{"instanceId": "b-1", "appInfo": {"frontEndUrl": "https://app.example"}}]);
    assert_eq!(polled.body["info"], info);
    let late = world.ask("newInstance", purchase("b-3", "CS1")).await;
    assert_eq!((late.code(), late.body["instanceId"].as_str()), ("000000", Some("b-1")));
    assert_eq!(world.ask("queryInstance", about("b-2")).await.code(), "000003", "the first id is the id");

    world.done("updateInstanceStatus", status("b-1", "FREEZE")).await;
    assert_eq!(world.instance("b-1")["state"], "frozen");
    world.done("updateInstanceStatus", status("b-1", "UNFREEZE")).await;
    assert_eq!(world.instance("b-1")["state"], "active");
    assert_eq!(world.instance("b-1")["expires_on"], "2027-01-01T00:00:00Z", "a thaw leaves the term");
    world.done("refreshInstance", refresh("b-1", "RENEWAL", "CS2", "20280101000000")).await;
    assert_eq!(world.instance("b-1")["expires_on"], "2028-01-01T00:00:00Z");
    world
        .done("refreshInstance", refresh("b-1", "UNSUBSCRIBE_RENEWAL_PERIOD", "CS2R", "20270101000000000"))
        .await;
    assert_eq!(world.instance("b-1")["expires_on"], "2027-01-01T00:00:00Z");
    world.done("upgradeInstance", upgrade("b-1", "CS3")).await;
    assert_eq!(
        (&world.instance("b-1")["sku"], &world.instance("b-1")["items"]["linearValue"]),
        (&json!("pro"), &json!("9"))
    );
    world.done("releaseInstance", about("b-1")).await;
    assert_eq!(world.instance("b-1")["state"], "released");
    let dead = world.ask("refreshInstance", refresh("b-1", "RENEWAL", "CS4", "20290101000000")).await;
    assert_eq!(dead.code(), "000003", "what is released stays so");

    let expected = ["create", "expire", "renew", "renew", "refund-renew", "upgrade", "release"];
    assert_eq!(world.actions(), expected);
    let create = &world.calls()[0];
    for (member, value) in [
        ("buyer", json!("buyer-1")),
        ("product", json!("OFFI1")),
        ("sku", json!("basic")),
        ("trial", json!(false)),
    ] {
        assert_eq!(create[member], value, "{member}");
    }
    assert_eq!(create["expires_on"]["at"], "2027-01-01T00:00:00Z");
    assert_eq!(create["items"], json!({"linearValue": "5"}));
    assert_eq!(create["instance"]["buyer"], "buyer-1", "what was learned is kept with the instance");
    assert_eq!(world.office.lock().unwrap().asked, ["CS1", "CS3"], "what was answered is not asked again");
    assert_eq!(world.daemon.store().reader().totals().unwrap().held, 0);
    assert_eq!(world.daemon.store().reader().totals().unwrap().unreported, 0, "what was polled was told");
}

/// A hook can distinguish the two marketplaces only by the endpoint's name, and by the fields in the marketplace's
/// own words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hook_serves_two_marketplaces() {
    let world = World::new().await;
    world.sells("CS1", "basic", 5, "20270101000000");
    world.done("newInstance", purchase("b-1", "CS1")).await;
    world.done("updateInstanceStatus", status("b-1", "FREEZE")).await;
    world.done("refreshInstance", refresh("b-1", "RENEWAL", "CS2", "20280101000000")).await;
    world.done("updateInstanceStatus", status("b-1", "UNFREEZE")).await;
    world.done("releaseInstance", about("b-1")).await;
    let here = std::mem::take(&mut *world.calls.lock().unwrap());
    let bought = [
        ("orderBizId", "1001"),
        ("orderId", "2001"),
        ("aliUid", "buyer-1"),
        ("productCode", "OFFI1"),
        ("skuId", "basic"),
        ("trial", "false"),
        ("expiredOn", "2027-01-01 08:00:00"),
        ("linearValue", "5"),
    ];
    let id = world.alibaba("createInstance", &bought).await["instanceId"].as_str().unwrap().to_owned();
    let named = ("instanceId", id.as_str());
    for (action, more) in [
        ("expiredInstance", vec![]),
        ("renewInstance", vec![("orderId", "2002"), ("expiredOn", "2028-01-01 08:00:00")]),
        ("releaseInstance", vec![]),
    ] {
        let parameters: Vec<_> = std::iter::once(named).chain(more).collect();
        assert_eq!(world.alibaba(action, &parameters).await["success"], true, "{action}");
    }
    let neutral = |calls: &[Value]| -> Vec<Value> {
        let strip = |call: &Value| {
            let mut call = call.clone();
            let own = call.as_object_mut().unwrap();
            for name in [
                "idempotency_key",
                "deadline",
                "received_at",
                "account",
                "endpoint",
                "action_name",
                "order",
                "dashscope_euid",
                "traceparent",
                "order_id",
                "parameters",
                "instance",
                "expires_on_raw",
            ] {
                own.remove(name);
            }
            if let Some(expiry) = own.get_mut("expires_on").and_then(Value::as_object_mut) {
                expiry.remove("raw");
            }
            call
        };
        calls.iter().map(strip).collect()
    };
    assert_eq!(neutral(&here), neutral(&world.calls()));
    assert_eq!(here.len(), 4, "the thaw behind the renewal found nothing to do");
    let ids: Vec<_> = here[1..].iter().map(|call| call["instance"]["id"].clone()).collect();
    assert!(
        ids.iter().all(|id| id.as_str().unwrap().starts_with("tenant-")),
        "its own ids, not the market's: {ids:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_changes_the_product_renews_and_upgrades() {
    let world = World::new().await;
    world.sells("CS1", "basic", 5, "20270101000000");
    world.sells("CS2", "pro", 7, "20280101000000");
    world.done("newInstance", purchase("b-1", "CS1")).await;
    world.done("refreshInstance", refresh("b-1", "RENEWAL_CHANGE", "CS2", "20280101000000")).await;
    let instance = world.instance("b-1");
    assert_eq!((&instance["expires_on"], &instance["sku"]), (&json!("2028-01-01T00:00:00Z"), &json!("pro")));
    assert_eq!(world.actions(), ["create", "renew", "upgrade"]);
}

/// The same words each time for different events: there is no order and no date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_freeze_and_every_thaw_counts() {
    let world = World::new().await;
    world.sells("CS1", "basic", 5, "20300101000000");
    world.done("newInstance", purchase("b-1", "CS1")).await;
    for _ in 0..3 {
        world.done("updateInstanceStatus", status("b-1", "FREEZE")).await;
        assert_eq!(world.instance("b-1")["state"], "frozen", "though it is paid for years");
        world.done("updateInstanceStatus", status("b-1", "FREEZE")).await;
        world.done("updateInstanceStatus", status("b-1", "UNFREEZE")).await;
        assert_eq!(world.instance("b-1")["state"], "active");
        world.clock.advance(SignedDuration::from_hours(24));
    }
    let changes = world.actions().into_iter().skip(1).collect::<Vec<_>>();
    assert_eq!(changes, ["expire", "renew"].repeat(3));
    assert_eq!(world.daemon.store().reader().totals().unwrap().held, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_is_asked_anew_each_time() {
    let world = World::new().await;
    world.sells("CS1", "basic", 5, "20270101000000");
    world.done("newInstance", purchase("b-1", "CS1")).await;
    let check = |info: Value| json!({"instanceId": "b-1", "productInfo": info});
    let to = |sku: &str| json!({"productId": "OFFI1", "skuCode": sku});
    assert_eq!(world.ask("changeInstanceCheck", check(to("bigger"))).await.code(), "000000");
    assert_eq!(
        world.ask("changeInstanceCheck", check(json!(to("bigger").to_string()))).await.code(),
        "000000"
    );
    assert_eq!(world.ask("changeInstanceCheck", check(to("smaller"))).await.code(), "000005");
    assert_eq!(world.ask("changeInstanceCheck", check(to("smaller"))).await.code(), "000005");
    assert_eq!(world.actions().iter().filter(|action| *action == "other").count(), 4);
    assert_eq!(world.instance("b-1")["sku"], "basic", "a check changes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn license_codes_are_made_elsewhere() {
    let world = World::new().await;
    let license = "LC-1";
    let renewal = json!({"license": license, "scene": "RENEWAL", "orderId": "CS1", "orderLineId": "CS1-1", "expireTime": "20280101000000"});
    world.done("refreshLicenseCode", renewal).await;
    assert_eq!(world.instance(license)["expires_on"], "2028-01-01T00:00:00Z");
    world.done("updateLicenseCodeStatus", json!({"license": license, "status": "FREEZE"})).await;
    assert_eq!(world.instance(license)["state"], "frozen");
    world.done("releaseLicenseCode", json!({"license": license})).await;
    assert_eq!(world.instance(license)["state"], "released");
    world.done("releaseLicenseCode", json!({"license": "LC-2"})).await;
    assert_eq!(world.actions(), ["renew", "expire", "release", "release"]);
    let trial = json!({"license": "LC-of-a-saved-case", "status": "FREEZE", "testFlag": "1"});
    assert_eq!(
        world.ask("updateLicenseCodeStatus", trial).await.code(),
        "000000",
        "nobody here can know the codes"
    );
    assert_eq!(world.actions().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_linked_kit_is_called_behind_the_production_address() {
    let world = World::new().await;
    let send = async |path: &str, nonce: &str, members: &Value| {
        let (body, timestamp) = (members.to_string(), world.clock.now().as_millisecond().to_string());
        let sign = hex::encode(hmac(KEY.as_bytes(), format!("{KEY}{nonce}{timestamp}{body}").as_bytes()));
        let url = format!("http://{}/koogallery{path}", world.daemon.address());
        let request = ClientRequest::post(url.parse().unwrap(), "application/json", body)
            .with_header("x-sign", sign)
            .with_header("x-timestamp", timestamp)
            .with_header("x-nonce", nonce);
        world.client.send(request).await.unwrap()
    };
    let org = json!({"instanceId": "b-1", "tenantId": "t-1", "orgCode": "1", "orgName": "Sales", "flag": 1, "testFlag": 0, "timeStamp": "1"});
    let path = "/produceAPI/v2/singleOrgSync";
    assert_eq!(told(&send(path, "n-1", &org).await).code(), "000000");
    assert_eq!(told(&send(path, "n-1", &org).await).status, 403, "a copy");
    assert_eq!(told(&send(path, "n-2", &org).await).code(), "000000", "added again it is there already");
    let mut trial = org.clone();
    trial["testFlag"] = json!(1);
    assert_eq!(told(&send(path, "n-4", &trial).await).code(), "000000", "before there is an instance");
    assert_eq!(send("/produceAPI/v2/makeCoffee", "n-3", &org).await.status, 404);
    let calls = world.calls();
    assert_eq!(calls.len(), 1);
    let body = json!({"kind": "department", "change": "add", "tenant_id": "t-1", "org": {"code": "1", "name": "Sales"}});
    assert_eq!((&calls[0]["action_name"], &calls[0]["body"]), (&json!("singleOrgSync"), &body));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_of_an_order_is_recorded() {
    let world = World::new().await;
    let notice = json!({"orderId": "CS1", "orderLineId": "CS1-1"});
    assert_eq!(world.ask("orderNotify", notice.clone()).await.code(), "000000");
    assert_eq!(world.ask("orderNotify", notice).await.code(), "000000");
    assert_eq!(world.kept()["callbacks"].as_array().unwrap().len(), 1);
}

// ---- What was ordered -----------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_before_it_is_known_what() {
    let world = World::new().await;
    let waiting = world.ask("newInstance", purchase("b-1", "CS1")).await;
    assert_eq!((waiting.code(), waiting.body["instanceId"].as_str()), ("000004", Some("b-1")));
    assert!(!world.office.lock().unwrap().asked.is_empty(), "it was asked for");
    assert!(world.calls().is_empty(), "the hook knows nothing of it");
    world.office.lock().unwrap().faults = 1;
    world.sells("CS1", "basic", 5, "20270101000000");
    world.done("newInstance", purchase("b-2", "CS1")).await;
    assert_eq!(world.actions(), ["create"]);
    assert_eq!(world.instance("b-1")["sku"], "basic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_ask_alerts_and_goes_on_asking() {
    let world = World::new().await;
    world.sells("CS1", "basic", 5, "20270101000000");
    world.office.lock().unwrap().locked = true;
    assert_eq!(world.ask("newInstance", purchase("b-1", "CS1")).await.code(), "000004");
    let alerts = || world.daemon.metrics().value(Metric::Alerts, ["misconfigured", ""]);
    while alerts() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(world.calls().is_empty());
    world.office.lock().unwrap().locked = false;
    world.done("newInstance", purchase("b-1", "CS1")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_instances_are_asked_for_at_once() {
    let world = World::new().await;
    world.done("newInstance", purchase("b-live", "MOCKONETIMENEW")).await;
    let ids: Vec<String> = (0..99).map(|n| format!("b-{n}")).chain(["b-live".to_owned()]).collect();
    let told = world.done("queryInstance", about(&ids.join(","))).await;
    let app = json!({"frontEndUrl": "https://app.example"});
    assert_eq!(told.body["info"], json!([{"instanceId": "b-live", "appInfo": app}]));
    let more = [ids, vec!["b-more".to_owned()]].concat();
    assert_eq!(world.ask("queryInstance", about(&more.join(","))).await.code(), "000002");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mock_order_is_understood() {
    let world = World::new().await;
    for (index, (order, kind, mode)) in MOCKS.into_iter().enumerate() {
        world.done("newInstance", purchase(&format!("b-{index}"), order)).await;
        let instance = world.instance(&format!("b-{index}"));
        assert_eq!(
            (&instance["sku"], &instance["trial"]),
            (&json!("mock-sku"), &json!(kind == "TRIAL")),
            "{order} {mode}"
        );
    }
}

// ---- Copies ---------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_refused_also_after_a_restart() {
    let world = World::new().await;
    world.sells("CS1", "basic", 5, "20270101000000");
    let letter = world.letter("newInstance", purchase("b-1", "CS1"));
    assert_eq!(world.send(&letter).await.status, 200);
    let kept = world.kept();
    let copy = world.send(&letter).await;
    assert_eq!((copy.status, copy.code()), (403, "000001"));
    let world = world.restart().await;
    let copy = world.send(&letter).await;
    assert_eq!((copy.status, copy.code()), (403, "000001"));
    let nonce = letter.query.rsplit('=').next().unwrap();
    let other = world.letter_with("releaseInstance", about("b-1"), nonce);
    assert_eq!(world.send(&other).await.status, 403, "the nonce is spent, whatever it is sent with");
    assert_eq!(world.kept(), kept);
    assert_eq!(
        world.ask("newInstance", purchase("b-1", "CS1")).await.code(),
        "000000",
        "sent anew it is welcome"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_come_again_and_again_cost_no_write() {
    let world = World::new().await;
    let letter = world.letter("newInstance", purchase("b-1", "CS1"));
    assert_eq!(world.send(&letter).await.status, 200);
    let operations = || {
        let page = world.daemon.metrics().render(&spid::internals::observe::metrics::Gauges::default());
        let sum = page.lines().find_map(|line| line.strip_prefix("spid_commit_operations_sum ")).unwrap();
        sum.parse::<f64>().unwrap()
    };
    let before = operations();
    for _ in 0..1_000 {
        assert_eq!(world.send(&letter).await.status, 403);
    }
    let written = operations() - before;
    // One write each would be 1,000. The daemon's own periodic operations are far fewer, even on a busy machine.
    assert!(written < 900.0, "{written} operations");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_copies_at_once_one_is_taken() {
    let world = World::new().await;
    let letter = world.letter("newInstance", purchase("b-1", "CS1"));
    let world = Arc::new(world);
    let mut copies = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (world, letter) = (world.clone(), letter.clone());
        copies.spawn(async move { world.send(&letter).await.status });
    }
    let statuses = copies.join_all().await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(world.kept()["callbacks"][0]["deliveries"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_polls_what_was_refused_hears_it() {
    let world = World::new().await;
    world.sells("CS1", "forbidden", 5, "20270101000000");
    let told = world.until("000103", "newInstance", purchase("b-1", "CS1")).await;
    assert_eq!(told.body["resultMsg"], "not to this buyer");
    assert_eq!(world.ask("queryInstance", about("b-1")).await.code(), "000103");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_verified_leaves_no_mark() {
    let world = World::new().await;
    let mut letter = world.letter("newInstance", purchase("b-1", "CS1"));
    letter.body.push(' ');
    for _ in 0..20 {
        let refused = world.send(&letter).await;
        assert_eq!((refused.status, refused.code()), (403, "000001"));
    }
    assert_eq!(world.marks(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_are_forgotten_once_no_copy_could_pass() {
    let world = World::new().await;
    for _ in 0..30 {
        world.ask("queryInstance", about("b-1")).await;
        world.clock.advance(SignedDuration::from_mins(5));
    }
    assert!((1..=5).contains(&world.marks()), "{}", world.marks());
}

// ---- Trials of the marketplace --------------------------------------------------------------------

/// The marketplace calls the saved cases every morning and every afternoon; five failing days freeze the product.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_week_of_trials_beside_live_traffic() {
    let world = World::new().await;
    let order = |index: i64| format!("CS{index}");
    for index in 0..14 {
        world.sells(&order(index), "basic", 5, "20270101000000");
    }
    world.done("newInstance", purchase("b-live", "CS0")).await;
    let trial = |mut members: Value| {
        members["testFlag"] = json!("1");
        members
    };
    for half_day in 1..14 {
        let live = world.instance("b-live");
        let (kept, calls) = (world.kept(), world.calls().len());
        let id = world.ask("newInstance", trial(purchase("saved", "MOCKPERIODYEARNEW"))).await;
        assert_eq!(id.code(), "000000");
        let id = id.body["instanceId"].as_str().unwrap().to_owned();
        // The case that an operator saved names the instance of the test. A careless one names a live instance.
        for name in [id.as_str(), "b-live"] {
            let asked = world.ask("queryInstance", trial(about(name))).await;
            let app = json!({"frontEndUrl": "https://try.example"});
            assert_eq!(asked.body["info"], json!([{"instanceId": name, "appInfo": app}]), "{name}");
            for (activity, members) in [
                ("refreshInstance", refresh(name, "RENEWAL", "MOCKMONTYRENEW", "20280101000000")),
                ("updateInstanceStatus", status(name, "FREEZE")),
                ("updateInstanceStatus", status(name, "UNFREEZE")),
                ("upgradeInstance", upgrade(name, "MOCKMONTYCHANGE")),
                ("changeInstanceCheck", json!({"instanceId": name, "productInfo": {"productId": "p"}})),
                ("releaseInstance", about(name)),
                ("orderNotify", json!({"orderId": "MOCKPERIODYEARNEW"})),
            ] {
                assert_eq!(world.ask(activity, trial(members)).await.code(), "000000", "{activity} {name}");
            }
        }
        let nobody = world.ask("releaseInstance", trial(about("b-nobody"))).await;
        assert_eq!(nobody.code(), "000003", "the truth");
        let odd = world.ask("refreshInstance", trial(refresh(&id, "GIFT", "o", "20280101000000"))).await;
        assert_eq!(odd.code(), "000002");
        assert_eq!((world.kept(), world.calls().len()), (kept, calls), "nothing comes of a trial");
        assert_eq!(world.instance("b-live"), live);
        let business = format!("b-{half_day}");
        world.done("newInstance", purchase(&business, &order(half_day))).await;
        assert_eq!(world.calls().len(), calls + 1, "while what is meant is done");
        world.clock.advance(SignedDuration::from_hours(12));
    }
    assert_eq!(world.instance("b-live")["state"], "active");
    assert!(world.marks() < 60, "{}", world.marks());
}

// ---- One changed byte -----------------------------------------------------------------------------

#[test]
fn one_changed_byte_of_body_nonce_or_timestamp_is_refused() {
    let koogallery = dialect::by_name("koogallery").unwrap();
    let vectors: Vec<Value> = serde_json::from_str(include_str!("../vectors/koogallery.json")).unwrap();
    let vector = vectors.iter().find(|vector| vector["name"] == "v2-signature").unwrap();
    let text = |name: &str| vector[name].as_str().unwrap().as_bytes().to_vec();
    let keys = Keys::single(Secret::new(vector["accessKey"].as_str().unwrap())).unwrap();
    let now: Timestamp = Timestamp::from_millisecond(1_680_508_066_618).unwrap();
    let holds = |body: &[u8], nonce: &[u8], timestamp: &[u8]| {
        let escape = |text: &[u8]| text.iter().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let signature = vector["signature"].as_str().unwrap();
        let query = format!("signature={signature}&timestamp={}&nonce={}", escape(timestamp), escape(nonce));
        let header = |name: &str| (name == "content-type").then_some("application/json");
        let raw = dialect::RawRequest {
            method: Method::Post.as_str(),
            query: query.as_bytes(),
            header: &header,
            body,
        };
        koogallery.parts(&raw, now).is_ok_and(|signed| signed.verify(&keys).is_ok())
    };
    let honest = [text("body"), text("nonce"), text("timestamp")];
    assert!(holds(&honest[0], &honest[1], &honest[2]));
    let mut tried = 0;
    for part in 0..3 {
        for at in 0..honest[part].len() {
            for bit in 0..8 {
                let mut changed = honest.clone();
                changed[part][at] ^= 1 << bit;
                assert!(!holds(&changed[0], &changed[1], &changed[2]), "part {part}, byte {at}, bit {bit}");
                tried += 1;
            }
        }
        for at in 0..=honest[part].len() {
            let mut longer = honest.clone();
            longer[part].insert(at, b' ');
            assert!(!holds(&longer[0], &longer[1], &longer[2]), "part {part}, one more at {at}");
        }
    }
    assert!(tried > 1_500, "{tried}");
}

// ---- Random signed bodies ------------------------------------------------------------------------

mod anything {
    use proptest::prelude::*;
    use spid_core::dialect::{Denial, RawRequest};
    use spid_hook::callback::Outcome;

    use super::*;

    fn words() -> impl Strategy<Value = String> {
        let known = [
            "newInstance",
            "queryInstance",
            "refreshInstance",
            "updateInstanceStatus",
            "releaseInstance",
            "upgradeInstance",
            "changeInstanceCheck",
            "orderNotify",
            "getLicenseAsync",
            "releaseLicenseCode",
            "RENEWAL",
            "RENEWAL_CHANGE",
            "FREEZE",
            "UNFREEZE",
            "1",
            "",
            "a,b,,c",
            "20270101000000",
            "[{a:1}]",
            "会员",
        ];
        prop_oneof![proptest::sample::select(known.to_vec()).prop_map(str::to_owned), ".{0,12}"]
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            words().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null)
        ];
        leaf.prop_recursive(2, 8, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-z]{1,4}", inner, 0..3).prop_map(|map| json!(map))
            ]
        })
    }

    fn members() -> impl Strategy<Value = Value> {
        let names = [
            "activity",
            "instanceId",
            "orderId",
            "orderLineId",
            "businessId",
            "productId",
            "scene",
            "status",
            "testFlag",
            "expireTime",
            "productInfo",
            "license",
            "userList",
            "orgInfoList",
            "orgCode",
            "domainName",
            "flag",
            "timeStamp",
        ];
        let name =
            prop_oneof![4 => proptest::sample::select(names.to_vec()).prop_map(str::to_owned), 1 => ".{0,8}"];
        proptest::collection::btree_map(name, values(), 0..8).prop_map(|map| json!(map))
    }

    fn now() -> Timestamp {
        START.parse().unwrap()
    }

    /// Answer to a body with a valid signature.
    fn answered(body: &[u8], outcome: &Outcome) -> Result<(), Denial> {
        let koogallery = dialect::by_name("koogallery").unwrap();
        let keys = Keys::single(Secret::new(KEY)).unwrap();
        let timestamp = now().as_millisecond().to_string();
        let inner = hex::encode(hmac(KEY.as_bytes(), body));
        let signature = hex::encode(hmac(KEY.as_bytes(), format!("{KEY}n{timestamp}{inner}").as_bytes()));
        let query = format!("signature={signature}&timestamp={timestamp}&nonce=n");
        let header = |name: &str| (name == "content-type").then_some("application/json");
        let raw = RawRequest { method: "POST", query: query.as_bytes(), header: &header, body };
        let verified = koogallery.parts(&raw, now())?.verify(&keys).unwrap();
        let callback = koogallery.callback(verified, &Options::default());
        assert_eq!(callback.nonce.as_ref().unwrap().nonce, "n");
        let parts = koogallery.split(callback);
        assert!(!parts.is_empty() && parts.iter().filter(|part| part.nonce.is_some()).count() == 1);
        for part in &parts {
            let _ = (koogallery.order_api().unwrap().lookup)(part);
        }
        let all: Vec<_> = parts.into_iter().map(|part| (part, outcome.clone())).collect();
        let reply = koogallery.reply_to_all(&all, &Options::default()).protected(&keys.signer().unwrap());
        assert!(reply.status == 200 && reply.body.is_ascii());
        let told: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(told["resultCode"].as_str().unwrap().len(), 6);
        assert!(told["resultMsg"].as_str().unwrap().chars().count() <= 255);
        assert_eq!(told["resultCode"] == "000000", outcome.is_success());
        Ok(())
    }

    proptest! {
        #[test]
        fn every_signed_object_is_understood_and_answered(members in members(), done in any::<bool>()) {
            let outcome = if done { Outcome::done(Some("i".into())) } else { Outcome::NotYet };
            let read = answered(members.to_string().as_bytes(), &outcome);
            let nul = |text: &str| text.contains('\0');
            let has_nul = members.as_object().unwrap().iter().any(|(name, value)| nul(name) || value.as_str().is_some_and(nul));
            prop_assert_eq!(read.is_err(), has_nul, "{:?}", read);
        }

        #[test]
        fn every_signed_text_is_an_object_or_refused(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Err(refusal) = answered(&body, &Outcome::NotYet) {
                prop_assert_eq!(refusal.reason(), "malformed");
            }
        }
    }
}

async fn send(address: std::net::SocketAddr, letter: &Letter) -> Told {
    told(&Client::new(ClientOptions::default()).send(posting(address, letter)).await.unwrap())
}

/// Accepts every order lookup and answers none.
async fn hanging() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut asked = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            asked.push(connection);
        }
    });
    format!("http://{address}/api/mkp-openapi-public/global/v1")
}

/// More orders wait for the marketplace's answer than hook calls may be in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marketplace_that_hangs_keeps_no_other_marketplaces_orders_waiting() {
    let world = World::with(Arc::default(), hanging().await).await;
    let waiting = spid::internals::observe::limits::JOBS_RUNNING_MAX_COUNT + 6;
    let mut orders = tokio::task::JoinSet::new();
    for number in 0..waiting {
        let letter = world.letter("newInstance", purchase(&format!("b-{number}"), &format!("CS{number}")));
        let address = world.daemon.address();
        orders.spawn(async move { send(address, &letter).await.code().to_owned() });
    }
    assert_eq!(orders.join_all().await, vec!["000004"; waiting]);
    let create = [("aliUid", "1"), ("orderBizId", "biz-1"), ("orderId", "o-1"), ("productCode", "p")];
    for tries in 1.. {
        let answer = world.alibaba("createInstance", &create).await;
        if answer["instanceId"] != "0" {
            break;
        }
        assert!(tries < 500, "it is never made");
    }
    // No order lookup has ended meanwhile.
    let metrics = world.daemon.metrics();
    assert_eq!(metrics.value(Metric::Attempts, ["create", "retry"]), 0);
    assert_eq!(world.actions(), ["create"]);
}

// ---- A removed endpoint --------------------------------------------------------------------------

impl World {
    /// Accepts a purchase while the query-order interface denies requests; then the interface works. The job waits
    /// for its next attempt.
    async fn bought() -> World {
        let world = World::new().await;
        assert!(world.daemon.stop().await.closed);
        let recorder = Recorder { calls: world.calls.clone(), gate: world.gate.subscribe() };
        let daemon = start_as(
            Some("koogallery"),
            world.folder.path(),
            &world.clock,
            &world.office_url,
            recorder,
            1_000,
        );
        let world = World { daemon: daemon.await, ..world };
        world.sells("CS1", "basic", 5, "20270101000000");
        world.office.lock().unwrap().locked = true;
        assert_eq!(world.ask("newInstance", purchase("b-1", "CS1")).await.code(), "000004");
        let note = world.job_that(|job| job.attempts == 1 && job.state == JobState::Queued).await;
        assert!(note.contains("the order lookup failed"), "{note}");
        world.office.lock().unwrap().locked = false;
        world
    }

    /// Starts a daemon whose endpoint at KooGallery has this name, or that has none, and makes the job due.
    async fn started_as(self, name: Option<&str>) -> World {
        assert!(self.daemon.stop().await.closed);
        let recorder = Recorder { calls: self.calls.clone(), gate: self.gate.subscribe() };
        let daemon = start_as(name, self.folder.path(), &self.clock, &self.office_url, recorder, 0).await;
        self.clock.advance(SignedDuration::from_secs(60));
        World { daemon, ..self }
    }

    /// Waits until the only job satisfies the condition, and returns its note.
    async fn job_that(&self, is_wanted: impl Fn(&JobRow) -> bool) -> String {
        let filter = Filter { limit: 2, ..Filter::default() };
        let found = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                let jobs = self.daemon.store().reader().jobs(&filter).unwrap();
                if let Some(job) = jobs.into_iter().find(&is_wanted) {
                    return job.note.unwrap_or_default();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        found.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_ordered_is_asked_by_the_endpoint_under_its_new_name() {
    let world = World::bought().await.started_as(Some("koogallery-cn")).await;
    world.job_that(|job| job.state == JobState::Done).await;
    let calls = world.calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 1);
    assert_eq!((&calls[0]["sku"], &calls[0]["buyer"]), (&json!("basic"), &json!("buyer-1")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_cannot_be_asked_for_any_more_reaches_no_hook() {
    for kept_by_an_older_spid in [false, true] {
        let world = World::bought().await;
        if kept_by_an_older_spid {
            let db = rusqlite::Connection::open(world.folder.path().join("spid.db")).unwrap();
            let sql =
                "UPDATE callback SET body = json_remove(body, '$.dialect') WHERE body LIKE '%\"dialect\"%'";
            assert_eq!(db.execute(sql, []).unwrap(), 1);
        }
        let world = world.started_as(None).await;
        let note = world.job_that(|job| job.state == JobState::Dead).await;
        assert!(note.contains("endpoint `koogallery` is not configured any more"), "{note}");
        assert!(note.contains("`account = \"koogallery\"` and `dialect = \"koogallery\"`"), "{note}");
        assert_eq!(world.calls.lock().unwrap().len(), 0, "a hook was called without knowing what was bought");
    }
}

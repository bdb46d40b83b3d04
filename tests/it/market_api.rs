//! The client of Alibaba Cloud's marketplace APIs against the stand-in, over real sockets; and the vendor's own SDK
//! against the same stand-in, so that both are known to speak alike.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp, tz};
use serde_json::json;
use spid::internals::lab::market_stand_in::{
    Books, Failure, Instance, License, MarketStandIn, Order, StoredNotification,
};
use spid::internals::market_api::client::{CallError, MarketClient, MarketOptions, Site};
use spid::internals::market_api::credentials::{Credentials, DefaultChain, NoKey};
use spid::internals::net::{Request, Response, ServerOptions, Url, serve};
use spid_core::market_api::{
    ApiCall, ErrorClass, Group, LicenseRecord, LicenseStatus, MarketInstance, MarketOrder, Notifications,
    OrderStatus, SellerInstances,
};
use spid_core::signature::ApiKey;
use spid_hook::Secret;
use spid_hook::time::Clock;
use tokio::net::TcpListener;

use crate::support::machine::skipped;

const CODE: &str = "FAKELICENSECODE0000000001";

fn api_key() -> ApiKey {
    ApiKey::new("FAKEID", Secret::new("fake-secret"), None).unwrap()
}

fn books() -> Books {
    let license = License {
        status: "INACTIVATED".into(),
        instance_id: "1001".into(),
        product_code: "cmgj000001".into(),
        plan: "yuncode1".into(),
        buyer: "1234567890".into(),
        orders: vec!["2001".into()],
        expired_time: "2027-01-01 09:00:00".into(),
        activated_for: None,
    };
    let instance = Instance {
        status: "OPENED".into(),
        order_id: "2001".into(),
        product_code: "cmgj000001".into(),
        sku: "cmgj000001-prepay".into(),
        plan: "yuncode1".into(),
        buyer: "1234567890".into(),
        ends_at: "2027-01-01T01:00:00Z".parse().unwrap(),
    };
    let order = Order {
        kind: "NEW".into(),
        status: "NORMAL".into(),
        buyer: "1234567890".into(),
        instances: vec!["1001".into()],
    };
    let notification = |number: u32| StoredNotification {
        id: format!("{number:032}"),
        message: json!({"action": "orderPay", "orderId": format!("{}", 3000 + number), "aliUid": "1234567890"}),
    };
    Books {
        licenses: BTreeMap::from([(CODE.to_owned(), license)]),
        instances: BTreeMap::from([("1001".to_owned(), instance)]),
        orders: BTreeMap::from([("2001".to_owned(), order)]),
        notifications: (1..=3).map(notification).collect(),
    }
}

async fn served(stand_in: &MarketStandIn) -> Url {
    let stand_in = stand_in.clone();
    serve_handler(move |request: Request| stand_in.clone().answer(request)).await
}

async fn serve_handler<H: spid::internals::net::Handler>(handler: H) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, ServerOptions::default(), handler, std::future::pending()));
    format!("http://{address}/").parse().unwrap()
}

fn options(url: Url, credentials: Credentials) -> MarketOptions {
    MarketOptions {
        name: "alibaba".into(),
        site: Site::AlibabaCn,
        base_url: Some(url),
        credentials,
        credentials_for: BTreeMap::new(),
        calls_per_s: 1_000.0,
        concurrency: 4,
        timeout: Duration::from_secs(20),
        tls: None,
        clock: Clock::System,
    }
}

async fn client(stand_in: &MarketStandIn) -> MarketClient {
    MarketClient::new(options(served(stand_in).await, Credentials::key(api_key())))
}

fn stand_in() -> MarketStandIn {
    MarketStandIn::new(vec![api_key()], Clock::System, books())
}

fn code(error: &CallError) -> (&str, ErrorClass) {
    match error {
        CallError::Api(error) => (&error.code, error.class),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_operation_is_understood_and_its_answer_read() {
    let stand_in = stand_in();
    let client = client(&stand_in).await;
    let china = tz::Offset::constant(8);
    let secret = Secret::new(CODE);

    let license = client.call(&ApiCall::describe_license(&secret)).await.unwrap();
    let license = LicenseRecord::read(&license, china).unwrap();
    assert_eq!((license.status, license.instance_id.as_str()), (LicenseStatus::Inactivated, "1001"));
    assert_eq!(license.expires_at, Some("2027-01-01T01:00:00Z".parse().unwrap()));
    client.call(&ApiCall::activate_license(&secret, "1234567890")).await.unwrap();
    let license = client.call(&ApiCall::describe_license(&secret)).await.unwrap();
    assert_eq!(LicenseRecord::read(&license, china).unwrap().status, LicenseStatus::Activated);
    assert_eq!(stand_in.books().licenses[CODE].activated_for.as_deref(), Some("1234567890"));

    let instance = client.call(&ApiCall::describe_instance("1001")).await.unwrap();
    let instance = MarketInstance::read(&instance).unwrap();
    assert_eq!((instance.status.as_str(), instance.ends_at), ("OPENED", license_end()));
    let order = client.call(&ApiCall::describe_order("2001")).await.unwrap();
    let order = MarketOrder::read(&order).unwrap();
    assert_eq!((order.status, order.instances), (OrderStatus::Normal, vec!["1001".to_owned()]));
    client.call(&ApiCall::describe_api_metering()).await.unwrap();
    let refused = client.call(&ApiCall::describe_seller_instances(1, 10)).await.unwrap_err();
    assert_eq!(refused.to_string(), "alibaba-cn does not have the operation DescribeSellerInstances");
    assert!(stand_in.denied().is_empty(), "{:?}", stand_in.denied());
}

#[tokio::test]
async fn the_international_site_lists_instances_and_knows_licences() {
    let stand_in = stand_in();
    let options = options(served(&stand_in).await, Credentials::key(api_key()));
    let client = MarketClient::new(MarketOptions { site: Site::AlibabaIntl, ..options });
    let list = client.call(&ApiCall::describe_seller_instances(1, 10)).await.unwrap();
    assert_eq!(SellerInstances::read(&list).unwrap().list[0].id, "1001");
    client.call(&ApiCall::describe_license(&Secret::new(CODE))).await.unwrap();
    let refused = client.call(&ApiCall::describe_order("2001")).await.unwrap_err();
    assert!(matches!(refused, CallError::Misconfigured(_)), "{refused}");
}

fn license_end() -> Option<Timestamp> {
    Some("2027-01-01T01:00:00Z".parse().unwrap())
}

#[tokio::test]
async fn a_confirmed_notification_leaves_the_first_page() {
    let stand_in = stand_in();
    let client = client(&stand_in).await;
    let mut fetched = Vec::new();
    for _ in 0..3 {
        let page = client.call(&ApiCall::describe_failed_notifications(1, 2)).await.unwrap();
        let page = Notifications::read(&page).unwrap();
        let Some(first) = page.list.first() else { break };
        assert_eq!(first.action, "orderPay");
        fetched.push(first.id.clone());
        client.call(&ApiCall::confirm_notification(&first.id)).await.unwrap();
    }
    assert_eq!(fetched, [1, 2, 3].map(|number: u32| format!("{number:032}")));
    assert!(stand_in.books().notifications.is_empty());
}

#[tokio::test]
async fn a_wrong_secret_a_foreign_key_and_a_wrong_clock_are_named_as_such() {
    let stand_in = stand_in();
    let url = served(&stand_in).await;
    let call = ApiCall::describe_instance("1001");
    let with = |key: ApiKey| MarketClient::new(options(url.clone(), Credentials::key(key)));
    let wrong = with(ApiKey::new("FAKEID", Secret::new("fake-other"), None).unwrap());
    let error = wrong.call(&call).await.unwrap_err();
    assert_eq!(code(&error), ("SignatureDoesNotMatch", ErrorClass::Credentials));
    assert!(!error.to_string().contains("fake-other") && !error.may_be_applied() && !error.is_temporary());
    let foreign = with(ApiKey::new("OTHERID", Secret::new("fake-secret"), None).unwrap());
    assert_eq!(
        code(&foreign.call(&call).await.unwrap_err()),
        ("InvalidAccessKeyId.NotFound", ErrorClass::Credentials)
    );
    let token =
        with(ApiKey::new("FAKEID", Secret::new("fake-secret"), Some(Secret::new("fake-token"))).unwrap());
    assert_eq!(code(&token.call(&call).await.unwrap_err()).1, ErrorClass::Credentials);
    for hours in [-1, 1] {
        let clock = Clock::given(move || Clock::System.now() + SignedDuration::from_hours(hours));
        let late =
            MarketClient::new(MarketOptions { clock, ..options(url.clone(), Credentials::key(api_key())) });
        let error = late.call(&call).await.unwrap_err();
        assert_eq!(code(&error), ("InvalidTimeStamp.Expired", ErrorClass::Clock));
        assert!(error.to_string().contains("the clock of this machine"), "{error}");
    }
    assert!(stand_in.calls().is_empty());
}

#[tokio::test]
async fn a_key_of_one_group_is_used_for_that_group_only() {
    let license = ApiKey::new("FAKELICENSEID", Secret::new("fake-license-secret"), None).unwrap();
    let stand_in = MarketStandIn::new(vec![api_key(), license.clone()], Clock::System, books());
    let mut options = options(served(&stand_in).await, Credentials::key(api_key()));
    options.credentials_for.insert(Group::License, Credentials::key(license));
    let client = MarketClient::new(options);
    client.call(&ApiCall::describe_license(&Secret::new(CODE))).await.unwrap();
    client.call(&ApiCall::describe_instance("1001")).await.unwrap();
    let keys: Vec<String> = stand_in.calls().into_iter().map(|call| call.key).collect();
    assert_eq!(keys, ["FAKELICENSEID", "FAKEID"]);
}

#[tokio::test]
async fn a_failure_says_if_the_call_may_have_been_carried_out() {
    let stand_in = stand_in();
    let client = client(&stand_in).await;
    let call = ApiCall::describe_instance("1001");
    // The documented failures, with the question that decides about a repetition.
    let failures = [
        (Failure::Code(500, "Invalid.Parameter.Instance"), false, false),
        (Failure::Code(500, "Permission.Denied"), false, false),
        (Failure::Code(400, "Auth.SubAccount.Error"), false, false),
        (Failure::Code(500, "UnknownError"), true, true),
        (Failure::Code(503, "ServiceUnavailable"), true, true),
        (Failure::Code(400, "DuplicateClientToken"), true, true),
        (Failure::NotJson, true, true),
    ];
    for (failure, may_be_applied, is_temporary) in failures {
        stand_in.fail(None, failure.clone());
        let error = client.call(&call).await.unwrap_err();
        assert_eq!(
            (error.may_be_applied(), error.is_temporary()),
            (may_be_applied, is_temporary),
            "{failure:?}"
        );
    }
    client.call(&call).await.unwrap();
}

#[tokio::test]
async fn a_nonce_that_was_used_is_replaced_once_and_nothing_else_is_repeated() {
    let stand_in = stand_in();
    let client = client(&stand_in).await;
    let call = ApiCall::describe_instance("1001");
    stand_in.fail(None, Failure::Code(400, "SignatureNonceUsed"));
    client.call(&call).await.unwrap();
    assert_eq!(stand_in.calls().len(), 2);
    stand_in.fail(None, Failure::Code(400, "SignatureNonceUsed"));
    stand_in.fail(None, Failure::Code(400, "SignatureNonceUsed"));
    assert_eq!(code(&client.call(&call).await.unwrap_err()).1, ErrorClass::Nonce);
    assert_eq!(stand_in.calls().len(), 4);
    stand_in.fail(None, Failure::Code(500, "UnknownError"));
    client.call(&call).await.unwrap_err();
    assert_eq!(stand_in.calls().len(), 5);
    // Nonces are random, so a used one means that a copy of this request arrived: it may have activated the code.
    stand_in.fail(None, Failure::Code(400, "SignatureNonceUsed"));
    let activate = ApiCall::activate_license(&Secret::new(CODE), "1234567890");
    let error = client.call(&activate).await.unwrap_err();
    assert!(error.may_be_applied() && error.is_temporary(), "{error}");
    assert_eq!(stand_in.calls().len(), 6);
}

/// A call that its caller gives up while it waits for the pace does not delay the calls after it.
#[tokio::test]
async fn a_call_that_is_given_up_takes_no_time_from_the_others() {
    let stand_in = stand_in();
    let mut options = options(served(&stand_in).await, Credentials::key(api_key()));
    options.calls_per_s = 1.0;
    let client = MarketClient::new(options);
    let call = ApiCall::describe_instance("1001");
    client.call(&call).await.unwrap();
    for _ in 0..600 {
        tokio::select! {
            biased;
            _ = client.call(&call) => panic!("the second call of a second waits"),
            () = std::future::ready(()) => {}
        }
    }
    tokio::time::timeout(Duration::from_secs(60), client.call(&call)).await.unwrap().unwrap();
    assert_eq!(stand_in.calls().len(), 2);
}

/// A message of the vendor may repeat the parameters.
#[tokio::test]
async fn a_failure_does_not_show_the_licence_code() {
    let url = serve_handler(|_: Request| async {
        Response::json(400, format!(r#"{{"Code":"License.Discard","Message":"{CODE} is void"}}"#))
    })
    .await;
    let client = MarketClient::new(options(url, Credentials::key(api_key())));
    let error = client.call(&ApiCall::describe_license(&Secret::new(CODE))).await.unwrap_err();
    assert!(error.to_string().contains("*** is void"), "{error}");
    assert!(!format!("{error:?}").contains(CODE), "{error:?}");
}

#[tokio::test]
async fn a_lost_answer_of_an_activation_is_cleared_up_by_asking() {
    let stand_in = stand_in();
    let mut options = options(served(&stand_in).await, Credentials::key(api_key()));
    options.timeout = Duration::from_millis(500);
    let client = MarketClient::new(options);
    let secret = Secret::new(CODE);
    stand_in.fail(Some("ActivateLicense"), Failure::LostAnswer);
    let error = client.call(&ApiCall::activate_license(&secret, "1234567890")).await.unwrap_err();
    assert!(error.may_be_applied() && error.is_temporary(), "{error}");
    // A loaded machine may need more than the short timeout for an ordinary answer.
    let patient = self::client(&stand_in).await;
    let license = patient.call(&ApiCall::describe_license(&secret)).await.unwrap();
    let license = LicenseRecord::read(&license, tz::Offset::constant(8)).unwrap();
    assert_eq!(license.status, LicenseStatus::Activated);
}

#[tokio::test]
async fn a_throttled_call_slows_the_next_one_down_by_the_wait_that_was_named() {
    let stand_in = stand_in();
    let client = client(&stand_in).await;
    let call = ApiCall::describe_instance("1001");
    stand_in.fail(None, Failure::Throttled(Some(400)));
    let error = client.call(&call).await.unwrap_err();
    assert_eq!(code(&error).1, ErrorClass::Throttled);
    assert!(!error.may_be_applied() && error.is_temporary());
    let begun = std::time::Instant::now();
    client.call(&call).await.unwrap();
    // A lower bound: a busy machine only adds to it. The wait was counted from the answer, a moment before `begun`.
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_address_that_is_gone_is_no_doubt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let client = MarketClient::new(options(url, Credentials::key(api_key())));
    let error = client.call(&ApiCall::describe_instance("1001")).await.unwrap_err();
    assert!(!error.may_be_applied() && error.is_temporary(), "{error}");
    // Without encryption a key is not sent to the world.
    let public: Url = "http://203.0.113.7/".parse().unwrap();
    let client = MarketClient::new(options(public, Credentials::key(api_key())));
    let error = client.call(&ApiCall::describe_instance("1001")).await.unwrap_err();
    assert!(matches!(error, CallError::Misconfigured(_)), "{error}");
}

// ---- The vendor's chain of credentials -------------------------------------------------------------

/// A metadata service and a token service in one. It counts the keys that it gave out.
#[derive(Clone, Default)]
struct KeyService {
    given: Arc<AtomicUsize>,
    requests: Arc<std::sync::Mutex<Vec<String>>>,
    lifetime_s: i64,
    broken: Arc<std::sync::atomic::AtomicBool>,
}

impl KeyService {
    fn key(&self) -> serde_json::Value {
        let number = self.given.fetch_add(1, Ordering::SeqCst);
        let ends_at = Clock::System.now() + SignedDuration::from_secs(self.lifetime_s);
        json!({"Code": "Success", "AccessKeyId": format!("STS.FAKE{number}"), "AccessKeySecret": "fake-secret",
            "SecurityToken": "fake-token", "Expiration": ends_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()})
    }

    async fn answer(self, request: Request) -> Response {
        let shown = format!("{} {}", request.method.as_str(), request.path());
        self.requests.lock().unwrap().push(shown.clone());
        if self.broken.load(Ordering::SeqCst) {
            return Response::empty(503);
        }
        let session = request.headers.text("x-aliyun-ecs-metadata-token");
        match shown.as_str() {
            "PUT /latest/api/token"
                if request.headers.text("x-aliyun-ecs-metadata-token-ttl-seconds") == Some("21600") =>
            {
                Response::text(200, "fake-session")
            }
            "GET /latest/meta-data/ram/security-credentials/" if session == Some("fake-session") => {
                Response::text(200, "spid-role")
            }
            "GET /latest/meta-data/ram/security-credentials/spid-role" if session == Some("fake-session") => {
                Response::json(200, self.key().to_string())
            }
            "POST /" => {
                let body = String::from_utf8_lossy(&request.body).into_owned();
                let query = String::from_utf8_lossy(request.query()).into_owned();
                let by_token = query.contains("Action=AssumeRoleWithOIDC")
                    && body.contains("OIDCToken=fake-oidc-token")
                    && !query.contains("fake-oidc-token");
                let by_key = request.headers.text("x-acs-action") == Some("AssumeRole")
                    && request
                        .headers
                        .text("authorization")
                        .is_some_and(|text| text.contains("Credential=FAKEID"));
                match (by_token || by_key) && query.contains("RoleArn=acs%3Aram%3A%3A1%3Arole%2Fr") {
                    true => {
                        Response::json(200, json!({"RequestId": "R", "Credentials": self.key()}).to_string())
                    }
                    false => {
                        Response::json(403, json!({"Code": "NoPermission", "Message": "no"}).to_string())
                    }
                }
            }
            _ => Response::empty(404),
        }
    }
}

fn chain(variables: &[(&str, &str)], home: Option<PathBuf>, service: Option<&Url>) -> DefaultChain {
    let variables: BTreeMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    DefaultChain {
        variables: Arc::new(move |name: &str| variables.get(name).cloned()),
        home,
        metadata: service.cloned(),
        token_service: service.cloned(),
    }
}

fn found(chain: DefaultChain) -> Credentials {
    Credentials::default_chain(chain, Clock::System, None)
}

#[tokio::test]
async fn the_chain_takes_the_first_place_that_has_something() {
    let home = tempfile::tempdir().unwrap();
    let service = KeyService { lifetime_s: 3_600, ..KeyService::default() };
    let url = serve_handler({
        let service = service.clone();
        move |request: Request| service.clone().answer(request)
    })
    .await;
    let at_home = || Some(home.path().to_owned());
    // The last place first: each further one hides those behind it.
    let key = found(chain(&[], at_home(), Some(&url))).current().await.unwrap();
    assert_eq!(key.id(), "STS.FAKE0");
    assert_eq!(service.requests.lock().unwrap()[0], "PUT /latest/api/token");

    let folder = home.path().join(".alibabacloud");
    std::fs::create_dir(&folder).unwrap();
    let ini = "[default]\ntype = access_key\naccess_key_id = INIFAKEID\naccess_key_secret = fake-ini\n";
    std::fs::write(folder.join("credentials"), ini).unwrap();
    assert_eq!(found(chain(&[], at_home(), Some(&url))).current().await.unwrap().id(), "INIFAKEID");

    let folder = home.path().join(".aliyun");
    std::fs::create_dir(&folder).unwrap();
    let cli = json!({"current": "a", "profiles": [
        {"name": "a", "mode": "AK", "access_key_id": "CLIFAKEID", "access_key_secret": "fake-cli"},
        {"name": "r", "mode": "RamRoleArn", "access_key_id": "FAKEID", "access_key_secret": "fake-secret",
         "ram_role_arn": "acs:ram::1:role/r"}]});
    std::fs::write(folder.join("config.json"), cli.to_string()).unwrap();
    assert_eq!(found(chain(&[], at_home(), Some(&url))).current().await.unwrap().id(), "CLIFAKEID");
    let off = [("ALIBABA_CLOUD_CLI_PROFILE_DISABLED", "true")];
    assert_eq!(found(chain(&off, at_home(), Some(&url))).current().await.unwrap().id(), "INIFAKEID");
    let role = [("ALIBABA_CLOUD_PROFILE", "r")];
    assert_eq!(found(chain(&role, at_home(), Some(&url))).current().await.unwrap().id(), "STS.FAKE1");

    let token = home.path().join("token");
    std::fs::write(&token, "fake-oidc-token\n").unwrap();
    let oidc = [
        ("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/r"),
        ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "acs:ram::1:oidc-provider/p"),
        ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", token.to_str().unwrap()),
    ];
    assert_eq!(found(chain(&oidc, at_home(), Some(&url))).current().await.unwrap().id(), "STS.FAKE2");

    let mut set = oidc.to_vec();
    set.extend([
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "ENVFAKEID"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "fake-env"),
    ]);
    assert_eq!(found(chain(&set, at_home(), Some(&url))).current().await.unwrap().id(), "ENVFAKEID");
}

#[tokio::test]
async fn a_broken_place_is_named_and_hides_nothing_behind_it() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aliyun")).unwrap();
    std::fs::write(home.path().join(".aliyun/config.json"), "{").unwrap();
    let error = found(chain(&[], Some(home.path().to_owned()), None)).current().await.unwrap_err();
    assert!(
        matches!(error, NoKey::Unusable(_)) && error.to_string().contains(".aliyun/config.json"),
        "{error}"
    );
    assert!(!error.is_temporary());
    let off = [("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")];
    let error = found(chain(&off, None, None)).current().await.unwrap_err();
    assert!(error.to_string().contains("ALIBABA_CLOUD_ACCESS_KEY_ID"), "{error}");
}

#[tokio::test]
async fn a_temporary_key_is_renewed_before_its_end_and_kept_if_that_fails() {
    // Ten minutes are less than the margin, so each request asks for a new key.
    let service = KeyService { lifetime_s: 600, ..KeyService::default() };
    let url = serve_handler({
        let service = service.clone();
        move |request: Request| service.clone().answer(request)
    })
    .await;
    let later_s = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let clock = Clock::given({
        let later_s = later_s.clone();
        move || Clock::System.now() + SignedDuration::from_secs(later_s.load(Ordering::SeqCst))
    });
    let credentials = Credentials::default_chain(chain(&[], None, Some(&url)), clock, None);
    assert_eq!(credentials.current().await.unwrap().id(), "STS.FAKE0");
    assert_eq!(credentials.current().await.unwrap().id(), "STS.FAKE1");
    service.broken.store(true, Ordering::SeqCst);
    assert_eq!(credentials.current().await.unwrap().id(), "STS.FAKE1");
    // A service that hangs must not slow down each call, so it is left alone for a while.
    let asked = service.requests.lock().unwrap().len();
    assert_eq!(credentials.current().await.unwrap().id(), "STS.FAKE1");
    assert_eq!(service.requests.lock().unwrap().len(), asked);
    service.broken.store(false, Ordering::SeqCst);
    later_s.store(31, Ordering::SeqCst);
    assert_eq!(credentials.current().await.unwrap().id(), "STS.FAKE2");

    // Those who waited for a failed request do not ask again one after another.
    let broken = KeyService::default();
    broken.broken.store(true, Ordering::SeqCst);
    let url = serve_handler({
        let broken = broken.clone();
        move |request: Request| broken.clone().answer(request)
    })
    .await;
    let credentials = found(chain(&[], None, Some(&url)));
    let ends = tokio::join!(credentials.current(), credentials.current(), credentials.current());
    assert!(ends.0.is_err() && ends.1.is_err() && ends.2.is_err(), "{ends:?}");
    assert_eq!(broken.requests.lock().unwrap().len(), 2, "one request for a session, one for the role");
    assert!(credentials.current().await.is_err());
    assert_eq!(broken.requests.lock().unwrap().len(), 4, "a later call asks again");

    let long = KeyService { lifetime_s: 6 * 3_600, ..KeyService::default() };
    let url = serve_handler({
        let long = long.clone();
        move |request: Request| long.clone().answer(request)
    })
    .await;
    let credentials = found(chain(&[], None, Some(&url)));
    let all: Vec<_> = (0..8)
        .map(|_| {
            let credentials = credentials.clone();
            tokio::spawn(async move { credentials.current().await.unwrap().id().to_owned() })
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap(), "STS.FAKE0");
    }
    assert_eq!(long.given.load(Ordering::SeqCst), 1);
}

// ---- The vendor's SDK ------------------------------------------------------------------------------

/// Calls of the vendor's SDK through a proxy address, so that the real host name is signed.
const SDK: &str = r#"
import json, sys
from alibabacloud_market20151101.client import Client
from alibabacloud_market20151101 import models as m
from alibabacloud_tea_openapi import models as open_api
from alibabacloud_tea_util import models as util

address, secret, code = sys.argv[1:4]
config = open_api.Config(access_key_id='FAKEID', access_key_secret=secret, endpoint=address, protocol='http')
client = Client(config)
options = util.RuntimeOptions(autoretry=False)
calls = [
    ('DescribeLicense', lambda: client.describe_license_with_options(m.DescribeLicenseRequest(license_code=code), options)),
    ('ActivateLicense', lambda: client.activate_license_with_options(m.ActivateLicenseRequest(license_code=code, identification='1234567890'), options)),
    ('DescribeInstanceForIsv', lambda: client.describe_instance_for_isv_with_options(m.DescribeInstanceForIsvRequest(instance_id='1001'), options)),
    ('DescribeOrderForIsv', lambda: client.describe_order_for_isv_with_options(m.DescribeOrderForIsvRequest(order_id='2001'), options)),
    ('DescribeFailedNotifications', lambda: client.describe_failed_notifications_with_options(m.DescribeFailedNotificationsRequest(page_number=1, page_size=10), options)),
    ('ConfirmNotification', lambda: client.confirm_notification_with_options(m.ConfirmNotificationRequest(notification_request_id='%032d' % 1), options)),
]
results = {}
for name, call in calls:
    try:
        call()
        results[name] = 'ok'
    except Exception as error:
        results[name] = getattr(error, 'code', None) or repr(error)
print(json.dumps(results))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_vendor_s_sdk_is_accepted_and_refused_with_a_wrong_secret() {
    let packages = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".ci/cache/alibaba");
    if !packages.join("alibabacloud_market20151101").exists() {
        skipped("with `pip install --target .ci/cache/alibaba alibabacloud_market20151101==4.3.1`");
        return;
    }
    let stand_in = stand_in();
    let url = served(&stand_in).await;
    let run = |secret: &str| {
        let mut python = Command::new("python3");
        python.args(["-c", SDK, &url.authority(), secret, CODE]).env("PYTHONPATH", &packages);
        let output = python.stdin(Stdio::null()).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{shown}");
        serde_json::from_slice::<BTreeMap<String, String>>(&output.stdout).unwrap()
    };
    let accepted = tokio::task::block_in_place(|| run("fake-secret"));
    assert_eq!(accepted.len(), 6);
    assert!(accepted.values().all(|result| result == "ok"), "{accepted:?}");
    let books = stand_in.books();
    assert_eq!((books.licenses[CODE].status.as_str(), books.notifications.len()), ("ACTIVATED", 2));
    let refused = tokio::task::block_in_place(|| run("fake-secreT"));
    assert!(refused.values().all(|result| result == "SignatureDoesNotMatch"), "{refused:?}");
    assert_eq!(stand_in.calls().len(), 6);
}

// ---- `spid market check` ----------------------------------------------------------------------------

/// Runs the check with a configuration of one market at the stand-in.
fn checked(home: &crate::support::daemon::Home, url: &Url, market: &str) -> (i32, String, String) {
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let market =
        format!("\n[[market]]\nname = \"alibaba\"\nbase_url = \"http://{}/\"\n{market}\n", url.authority());
    std::fs::write(home.path("market.toml"), format!("{text}{market}")).unwrap();
    let variables =
        [("FAKE_ID", "FAKEID"), ("FAKE_SECRET", "fake-secret"), ("FAKE_WRONG", "fake-wrong-secret")];
    let ran = home.run_in(&["market", "check", "--json", "--config", "market.toml"], &variables);
    (ran.code, ran.stdout, ran.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_what_each_credential_may_do() {
    let stand_in = stand_in();
    let url = served(&stand_in).await;
    let home = crate::support::daemon::Home::with_log_hook();
    let good = r#"credentials = { access_key_id = { env = "FAKE_ID" }, access_key_secret = { env = "FAKE_SECRET" } }"#;
    let wrong = r#"{ access_key_id = { env = "FAKE_ID" }, access_key_secret = { env = "FAKE_WRONG" } }"#;
    let check = |market: &str| tokio::task::block_in_place(|| checked(&home, &url, market));

    let (code, stdout, stderr) = check(&format!("api = \"alibaba-cn\"\n{good}"));
    assert_eq!(code, 0, "{stdout} {stderr}");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let groups: Vec<&str> = rows.iter().map(|row| row["group"].as_str().unwrap()).collect();
    assert_eq!(groups, ["license", "metering", "read"]);
    assert!(rows.iter().all(|row| row["ok"] == true), "{stdout}");
    // Nothing was changed.
    assert_eq!(stand_in.books().licenses[CODE].status, "INACTIVATED");
    assert_eq!(stand_in.books().notifications.len(), 3);

    let (code, stdout, stderr) =
        check(&format!("api = \"alibaba-cn\"\n{good}\ncredentials_for = {{ license = {wrong} }}"));
    assert_eq!(code, 1, "{stdout} {stderr}");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&rows[0]["ok"], &rows[0]["class"]), (&false.into(), &"credentials".into()), "{stdout}");
    assert_eq!(rows[2]["ok"], true, "{stdout}");
    for secret in ["fake-secret", "fake-wrong-secret"] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{stdout} {stderr}");
    }

    stand_in.fail(Some("DescribeLicense"), Failure::Code(400, "Auth.SubAccount.Error"));
    let (_, stdout, _) = check(&format!("api = \"alibaba-intl\"\n{good}"));
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    assert_eq!(rows[0]["class"], "needs-ram-user", "{stdout}");
    assert!(rows[0]["detail"].as_str().unwrap().contains("credentials_for"), "{stdout}");
    assert_eq!(rows[1]["operation"], "DescribeSellerInstances", "{stdout}");
}

#[test]
fn a_wrong_market_is_refused_with_its_reason() {
    let home = crate::support::daemon::Home::with_log_hook();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let market = "\n[[market]]\nname = \"a\"\napi = \"alibaba-cn\"\ncredentials = \"default\"\n";
    let cases = [
        (market.replace("alibaba-cn", "alibaba"), "`alibaba` is not one of alibaba-cn, alibaba-intl"),
        (market.replace("api = \"alibaba-cn\"\n", ""), "use alibaba-cn or alibaba-intl"),
        (market.replace("\"default\"", "\"defalt\""), "use \"default\", or a table"),
        (market.replace("credentials = \"default\"\n", ""), "use \"default\", or an access key"),
        (
            market.replace("\"default\"", "{ access_key_id = { env = \"FAKE_ID\" } }"),
            "credentials.access_key_secret",
        ),
        (format!("{market}{market}"), "`a` is the name of an earlier market"),
        (format!("{market}base_url = \"market\"\n"), "base_url"),
    ];
    for (market, reason) in cases {
        home.configure(&format!("{text}{market}"));
        let ran = home.run_in(&["check-config", "--config", "spid.toml"], &[("FAKE_ID", "FAKEID")]);
        assert_eq!(ran.code, 78, "{reason}: {ran:?}");
        assert!(ran.stderr.contains(reason), "{reason}: {}", ran.stderr);
    }
    home.configure(&format!("{text}{market}"));
    assert_eq!(home.run(&["check-config", "--config", "spid.toml"]).code, 0);
}

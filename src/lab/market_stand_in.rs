//! Stand-in for the API of Alibaba Cloud Marketplace, for tests and rehearsals.
//!
//! It verifies every signature, date and nonce itself, keeps books of licences, orders, instances and notifications, and
//! plays the documented failures by their codes. It proves only that spid agrees with the documents and with the
//! vendor's own SDK: what no document says is not played.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use spid_core::market_api::ALL as OPERATIONS;
use spid_core::query::{self, Pair};
use spid_core::signature::{ApiKey, ApiSignatureError, ReceivedApiRequest};
use spid_hook::time::Clock;

use crate::net::{Request, Response};

/// Difference of clocks that the gateway allows, in milliseconds.
const CLOCK_MS: i64 = 15 * 60 * 1000;

/// A licence in the books.
#[derive(Debug, Clone)]
pub struct License {
    /// Status: `INACTIVATED`, `ACTIVATED`, `EXPIRED` or `DISCARD`.
    pub status: String,
    /// Id of the instance.
    pub instance_id: String,
    /// Product.
    pub product_code: String,
    /// Plan.
    pub plan: String,
    /// Buyer's account.
    pub buyer: String,
    /// Orders.
    pub orders: Vec<String>,
    /// End of the term as the API writes it.
    pub expired_time: String,
    /// Account for which the licence was activated.
    pub activated_for: Option<String>,
}

/// An instance in the books.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Status: `OPENED`, `EXPIRED`, `CLOSED`.
    pub status: String,
    /// Order that made it.
    pub order_id: String,
    /// Product.
    pub product_code: String,
    /// SKU of the product.
    pub sku: String,
    /// Plan.
    pub plan: String,
    /// Buyer's account.
    pub buyer: String,
    /// End of the term.
    pub ends_at: Timestamp,
}

/// An order in the books.
#[derive(Debug, Clone)]
pub struct Order {
    /// Kind: `NEW`, `RENEW` and others.
    pub kind: String,
    /// Status: `NORMAL`, `REFUND`, `DELETE`.
    pub status: String,
    /// Buyer's account.
    pub buyer: String,
    /// Instances.
    pub instances: Vec<String>,
}

/// A notification in the books.
#[derive(Debug, Clone)]
pub struct StoredNotification {
    /// Id.
    pub id: String,
    /// Parameters of the callback that it stands for.
    pub message: Value,
}

/// Everything that the marketplace knows.
#[derive(Debug, Clone, Default)]
pub struct Books {
    /// Licences by code.
    pub licenses: BTreeMap<String, License>,
    /// Instances by id.
    pub instances: BTreeMap<String, Instance>,
    /// Orders by id.
    pub orders: BTreeMap<String, Order>,
    /// Notifications that were given up, the oldest first.
    pub notifications: Vec<StoredNotification>,
}

/// A failure that the stand-in plays once.
#[derive(Debug, Clone)]
pub enum Failure {
    /// An answer with this status and code. Nothing is carried out.
    Code(u16, &'static str),
    /// Throttling, with the wait in milliseconds that is named.
    Throttled(Option<u64>),
    /// No answer. Nothing is carried out.
    Hang,
    /// The call is carried out, and its answer is lost.
    LostAnswer,
    /// An answer that is no JSON.
    NotJson,
}

/// A call that arrived with a valid signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedCall {
    /// Operation.
    pub action: String,
    /// Parameters.
    pub parameters: Vec<Pair>,
    /// Public id of the key.
    pub key: String,
}

/// The stand-in. Clones share its books. [`MarketStandIn::answer`] is a handler for [`crate::net::serve`].
#[derive(Clone)]
pub struct MarketStandIn(Arc<Shared>);

struct Shared {
    keys: Vec<ApiKey>,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    books: Books,
    failures: VecDeque<(Option<&'static str>, Failure)>,
    nonces: BTreeSet<String>,
    calls: Vec<ReceivedCall>,
    denied: Vec<&'static str>,
}

/// A failure as the API writes it: status and code.
type Denied = (u16, &'static str);

impl MarketStandIn {
    /// Creates a stand-in that knows these keys and this time.
    pub fn new(keys: Vec<ApiKey>, clock: Clock, books: Books) -> MarketStandIn {
        let state = Mutex::new(State { books, ..State::default() });
        MarketStandIn(Arc::new(Shared { keys, clock, state }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plays this failure at the next call, or at the next call of this operation.
    pub fn fail(&self, action: Option<&'static str>, failure: Failure) {
        self.state().failures.push_back((action, failure));
    }

    /// Changes the books.
    pub fn change(&self, change: impl FnOnce(&mut Books)) {
        change(&mut self.state().books);
    }

    /// Returns a copy of the books.
    pub fn books(&self) -> Books {
        self.state().books.clone()
    }

    /// Returns the calls with a valid signature, the oldest first.
    pub fn calls(&self) -> Vec<ReceivedCall> {
        self.state().calls.clone()
    }

    /// Returns the codes of the requests that the gateway denied, the oldest first.
    pub fn denied(&self) -> Vec<&'static str> {
        self.state().denied.clone()
    }

    /// Answers a request.
    pub async fn answer(self, request: Request) -> Response {
        let call = match self.gateway(&request) {
            Ok(call) => call,
            Err(denied) => {
                self.state().denied.push(denied.1);
                return failure(denied, None);
            }
        };
        let played = self.take_failure(&call.action);
        self.state().calls.push(call.clone());
        match played {
            Some(Failure::Code(status, code)) => return failure((status, code), None),
            Some(Failure::Throttled(wait)) => return failure((429, "Throttling.Api"), wait),
            Some(Failure::NotJson) => return Response::text(502, "<html>bad gateway</html>"),
            Some(Failure::Hang) => wait_without_end().await,
            Some(Failure::LostAnswer) => {
                let _ = self.carry_out(&call);
                wait_without_end().await;
            }
            None => {}
        }
        match self.carry_out(&call) {
            Ok(mut document) => {
                if let Some(members) = document.as_object_mut() {
                    members.insert("RequestId".to_owned(), json!(REQUEST_ID));
                }
                Response::json(200, document.to_string())
            }
            Err(denied) => failure(denied, None),
        }
    }

    fn take_failure(&self, action: &str) -> Option<Failure> {
        let mut state = self.state();
        let index =
            state.failures.iter().position(|(wanted, _)| wanted.is_none_or(|wanted| wanted == action))?;
        state.failures.remove(index).map(|(_, failure)| failure)
    }

    /// Checks what the vendor's gateway checks before an operation runs.
    fn gateway(&self, request: &Request) -> Result<ReceivedCall, Denied> {
        let mut headers = Vec::new();
        for (name, value) in request.headers.iter() {
            let value = std::str::from_utf8(value).map_err(|_| (400, "IncompleteSignature"))?;
            headers.push((name.to_owned(), value.to_owned()));
        }
        let query = std::str::from_utf8(request.query()).map_err(|_| (400, "InvalidParameter"))?;
        let received = ReceivedApiRequest {
            method: request.method.as_str(),
            path: request.path(),
            query,
            headers: &headers,
            body: &request.body,
        };
        let key = received.verify(&self.0.keys).map_err(|error| match error {
            ApiSignatureError::Incomplete => (400, "IncompleteSignature"),
            ApiSignatureError::UnknownKey => (404, "InvalidAccessKeyId.NotFound"),
            ApiSignatureError::Token => (400, "InvalidSecurityToken.Malformed"),
            ApiSignatureError::Mismatch => (400, "SignatureDoesNotMatch"),
        })?;
        // All of these are signed: `verify` has checked that.
        let header = |name: &str| request.headers.text(name).unwrap_or_default().to_owned();
        let date: Timestamp = header("x-acs-date").parse().map_err(|_| (400, "InvalidTimeStamp.Format"))?;
        if (date.as_millisecond() - self.0.clock.now().as_millisecond()).abs() > CLOCK_MS {
            return Err((400, "InvalidTimeStamp.Expired"));
        }
        if !self.state().nonces.insert(header("x-acs-signature-nonce")) {
            return Err((400, "SignatureNonceUsed"));
        }
        let action = header("x-acs-action");
        let known = OPERATIONS.iter().find(|operation| operation.action == action);
        let operation = known.ok_or((404, "InvalidApi.NotFound"))?;
        if header("x-acs-version") != operation.version {
            return Err((404, "InvalidApi.NotFound"));
        }
        let parameters =
            query::parse(request.query(), Some(&request.body)).map_err(|_| (400, "InvalidParameter"))?;
        Ok(ReceivedCall { action, parameters, key })
    }

    fn carry_out(&self, call: &ReceivedCall) -> Result<Value, Denied> {
        let mut state = self.state();
        let books = &mut state.books;
        match call.action.as_str() {
            "DescribeLicense" => books.describe_license(call.parameter("LicenseCode")?),
            "ActivateLicense" => {
                books.activate_license(call.parameter("LicenseCode")?, call.parameter("Identification").ok())
            }
            "DescribeInstanceForIsv" => books.describe_instance(call.parameter("InstanceId")?),
            "DescribeOrderForIsv" => books.describe_order(call.parameter("OrderId")?),
            "DescribeFailedNotifications" => {
                books.failed_notifications(call.number("PageNumber")?, call.number("PageSize")?)
            }
            "ConfirmNotification" => {
                let id = call.parameter("NotificationRequestId")?.to_owned();
                books.notifications.retain(|notification| notification.id != id);
                Ok(json!({"Success": true}))
            }
            "DescribeApiMetering" => Ok(json!({"Code": "200", "Success": true, "Count": 0, "Result": []})),
            "DescribeSellerInstances" => books.seller_instances(
                call.number("PageIndex").unwrap_or(1),
                call.number("PageSize").unwrap_or(10),
            ),
            _ => Err((404, "InvalidApi.NotFound")),
        }
    }
}

impl ReceivedCall {
    fn parameter(&self, name: &str) -> Result<&str, Denied> {
        let found = self.parameters.iter().find(|(known, value)| known == name && !value.is_empty());
        found.map(|(_, value)| value.as_str()).ok_or((400, "MissingParameter"))
    }

    fn number(&self, name: &str) -> Result<usize, Denied> {
        let number = self.parameter(name)?.parse().map_err(|_| (400, "InvalidParameter"))?;
        if number == 0 { Err((400, "InvalidParameter")) } else { Ok(number) }
    }
}

impl Books {
    fn usable_license(&mut self, code: &str) -> Result<&mut License, Denied> {
        self.licenses.get_mut(code).ok_or((400, "License.NotFound"))
    }

    fn describe_license(&mut self, code: &str) -> Result<Value, Denied> {
        let license = self.usable_license(code)?;
        let orders = license.orders.join(",");
        Ok(json!({"License": {
            "LicenseCode": code,
            "LicenseStatus": license.status,
            "InstanceId": license.instance_id,
            "ProductCode": license.product_code,
            "ProductSkuId": format!("{}-prepay", license.product_code),
            "ExpiredTime": license.expired_time,
            "ExtendInfo": {"AliUid": license.buyer.parse::<u64>().ok(), "AccountQuantity": 1},
            "ExtendArray": {"LicenseAttribute": [
                {"Code": "package_version", "Value": license.plan},
                {"Code": "orderBizId", "Value": license.instance_id},
                {"Code": "orderId", "Value": orders},
                {"Code": "aliUid", "Value": license.buyer},
                {"Code": "expiresTime", "Value": license.expired_time},
            ]},
        }}))
    }

    fn activate_license(&mut self, code: &str, buyer: Option<&str>) -> Result<Value, Denied> {
        let license = self.usable_license(code)?;
        match license.status.as_str() {
            "INACTIVATED" => {
                license.status = "ACTIVATED".to_owned();
                license.activated_for = Some(buyer.unwrap_or_default().to_owned());
                Ok(json!({"Success": true}))
            }
            "EXPIRED" => Err((400, "License.Expired")),
            "DISCARD" => Err((400, "License.Discard")),
            // No page says what happens. An answer that cannot be mistaken for success is the careful choice.
            _ => Err((400, "License.Invalid")),
        }
    }

    fn describe_instance(&self, id: &str) -> Result<Value, Denied> {
        let instance = self.instances.get(id).ok_or((400, "Invalid.Parameter.Instance"))?;
        Ok(json!({
            "InstanceId": id.parse::<u64>().map_or_else(|_| json!(id), |id| json!(id)),
            "Status": instance.status,
            "OrderId": instance.order_id,
            "ProductCode": instance.product_code,
            "ProductSkuCode": instance.sku,
            "IsTrial": false,
            "EndOn": instance.ends_at.as_millisecond(),
            "ComponentJson": json!({"package_version": instance.plan}).to_string(),
        }))
    }

    fn describe_order(&self, id: &str) -> Result<Value, Denied> {
        let order = self.orders.get(id).ok_or((400, "InvalidParameter"))?;
        Ok(json!({
            "OrderId": id.parse::<u64>().map_or_else(|_| json!(id), |id| json!(id)),
            "OrderType": order.kind,
            "OrderStatus": order.status,
            "PayStatus": "PAID",
            "AliUid": order.buyer.parse::<u64>().ok(),
            "InstanceIds": order.instances,
        }))
    }

    fn failed_notifications(&self, page: usize, size: usize) -> Result<Value, Denied> {
        let mut list = Vec::new();
        for notification in self.notifications.iter().skip((page - 1) * size).take(size) {
            list.push(json!({
                "Action": notification.message.get("action"),
                "NotificationRequestId": notification.id,
                "CreateTime": 1_767_258_000_000_i64,
                "Message": notification.message.to_string(),
            }));
        }
        let total = self.notifications.len();
        Ok(json!({"TotalCount": total, "PageNumber": page, "PageSize": size, "NotificationList": list}))
    }

    fn seller_instances(&self, page: usize, size: usize) -> Result<Value, Denied> {
        let mut list = Vec::new();
        for (id, instance) in self.instances.iter().skip((page - 1) * size).take(size) {
            list.push(json!({
                "InstanceId": id.parse::<u64>().map_or_else(|_| json!(id), |id| json!(id)),
                "InstanceStatus": instance.status,
                "UserId": instance.buyer.parse::<u64>().ok(),
                "CommodityCode": instance.product_code,
                "CreatedOn": 1_767_258_000_000_i64,
            }));
        }
        let count = self.instances.len();
        Ok(
            json!({"Code": "200", "Success": true, "Count": count, "PageNumber": page, "PageSize": size, "Result": list}),
        )
    }
}

/// The vendor's ids have this form.
const REQUEST_ID: &str = "00000000-0000-4000-8000-000000000001";

fn failure((status, code): Denied, retry_after_ms: Option<u64>) -> Response {
    let body = json!({"RequestId": REQUEST_ID, "HostId": "stand-in", "Code": code, "Message": code});
    let response = Response::json(status, body.to_string());
    match retry_after_ms {
        Some(ms) => response.with_header("x-acs-retry-after", ms.to_string()),
        None => response,
    }
}

/// Longer than any client waits. The end of the server ends this, too.
async fn wait_without_end() {
    tokio::time::sleep(Duration::from_secs(24 * 60 * 60)).await;
}

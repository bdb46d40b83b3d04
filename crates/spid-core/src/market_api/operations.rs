//! Operations of Alibaba Cloud's marketplace APIs: what is sent, and what is read of the answers.
//!
//! Only members that spid uses are read. Licences also hold an e-mail address and a telephone number of the buyer;
//! they are left out on purpose.

use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, tz};
use spid_hook::Secret;
use spid_hook::json::Json;

use super::answer::{ApiError, flag, member};
use crate::query::Pair;

/// Place of the parameters of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the query; the body is empty.
    Query,
    /// In the body, as a form.
    Form,
}

/// Rule for sending a request again after its outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Safe to send again.
    Always,
    /// Ask this operation first what has happened.
    AfterAsking(&'static str),
}

spid_hook::words! {
    /// Group of operations that one credential may call. The vendor contradicts itself about which kind of key may call
    /// which operation, so each group can have a key of its own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Group {
        /// Licence codes.
        License = "license",
        /// Usage.
        Metering = "metering",
        /// Everything that only reads, and the confirmation of notifications.
        Read = "read",
    }
}

/// An operation of an API.
#[derive(Debug, PartialEq, Eq)]
pub struct Operation {
    /// Name of the operation.
    pub action: &'static str,
    /// Version of the API.
    pub version: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// Place of its parameters.
    pub place: Place,
    /// Rule for a repetition.
    pub repeat: Repeat,
    /// Group for credentials.
    pub group: Group,
}

impl Operation {
    /// Returns true if the operation belongs to the API of the international site alone.
    pub fn is_international(&self) -> bool {
        self.version == INTERNATIONAL
    }
}

const MARKET: &str = "2015-11-01";
const INTERNATIONAL: &str = "2022-12-30";
/// The only parameter that is a secret.
const LICENSE_CODE: &str = "LicenseCode";

const fn read(action: &'static str, version: &'static str) -> Operation {
    Operation {
        action,
        version,
        method: "POST",
        place: Place::Query,
        repeat: Repeat::Always,
        group: Group::Read,
    }
}

static DESCRIBE_LICENSE: Operation = Operation { group: Group::License, ..read("DescribeLicense", MARKET) };
static ACTIVATE_LICENSE: Operation = Operation {
    group: Group::License,
    repeat: Repeat::AfterAsking("DescribeLicense"),
    ..read("ActivateLicense", MARKET)
};
static DESCRIBE_FAILED_NOTIFICATIONS: Operation = read("DescribeFailedNotifications", MARKET);
static CONFIRM_NOTIFICATION: Operation = read("ConfirmNotification", MARKET);
static DESCRIBE_INSTANCE: Operation = read("DescribeInstanceForIsv", MARKET);
static DESCRIBE_ORDER: Operation = read("DescribeOrderForIsv", MARKET);
// The published metadata of the API allows only GET here.
static DESCRIBE_API_METERING: Operation =
    Operation { method: "GET", group: Group::Metering, ..read("DescribeApiMetering", MARKET) };
static DESCRIBE_SELLER_INSTANCES: Operation = read("DescribeSellerInstances", INTERNATIONAL);

/// Every operation that spid calls.
pub static ALL: [&Operation; 8] = [
    &DESCRIBE_LICENSE,
    &ACTIVATE_LICENSE,
    &DESCRIBE_FAILED_NOTIFICATIONS,
    &CONFIRM_NOTIFICATION,
    &DESCRIBE_INSTANCE,
    &DESCRIBE_ORDER,
    &DESCRIBE_API_METERING,
    &DESCRIBE_SELLER_INSTANCES,
];

/// An operation with its parameters.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiCall {
    /// The operation.
    pub operation: &'static Operation,
    /// The parameters. A licence code among them is a secret.
    pub parameters: Vec<Pair>,
}

/// Shows the names of the parameters without their values.
impl fmt::Debug for ApiCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.parameters.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ApiCall").field("action", &self.operation.action).field("parameters", &names).finish()
    }
}

impl ApiCall {
    fn new(operation: &'static Operation, parameters: &[(&str, &str)]) -> ApiCall {
        let parameters =
            parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ApiCall { operation, parameters }
    }

    /// Returns a failure of this call without the licence code, which a message of the vendor may repeat.
    pub fn masked(&self, mut error: ApiError) -> ApiError {
        for (name, value) in &self.parameters {
            if name == LICENSE_CODE && !value.is_empty() {
                error.message = error.message.replace(value.as_str(), "***");
            }
        }
        error
    }

    /// Asks about a licence code.
    pub fn describe_license(code: &Secret) -> ApiCall {
        ApiCall::new(&DESCRIBE_LICENSE, &[(LICENSE_CODE, code.expose())])
    }

    /// Activates a licence code for a buyer's account.
    pub fn activate_license(code: &Secret, buyer: &str) -> ApiCall {
        ApiCall::new(&ACTIVATE_LICENSE, &[("Identification", buyer), (LICENSE_CODE, code.expose())])
    }

    /// Asks for a page of the notifications that the marketplace has given up sending; the first page is 1.
    pub fn describe_failed_notifications(page: u32, size: u32) -> ApiCall {
        let (page, size) = (page.to_string(), size.to_string());
        ApiCall::new(&DESCRIBE_FAILED_NOTIFICATIONS, &[("PageNumber", &page), ("PageSize", &size)])
    }

    /// Takes a notification off the marketplace's list.
    pub fn confirm_notification(id: &str) -> ApiCall {
        ApiCall::new(&CONFIRM_NOTIFICATION, &[("NotificationRequestId", id)])
    }

    /// Asks about an instance by the marketplace's id.
    pub fn describe_instance(id: &str) -> ApiCall {
        ApiCall::new(&DESCRIBE_INSTANCE, &[("InstanceId", id)])
    }

    /// Asks about an order.
    pub fn describe_order(id: &str) -> ApiCall {
        ApiCall::new(&DESCRIBE_ORDER, &[("OrderId", id)])
    }

    /// Asks for the first page of API usage, which both kinds of keys may do: a test of credentials that changes nothing.
    pub fn describe_api_metering() -> ApiCall {
        ApiCall::new(&DESCRIBE_API_METERING, &[("pageNum", "1")])
    }

    /// Asks for a page of the seller's instances on the international site; the first page is 1.
    pub fn describe_seller_instances(page: u32, size: u32) -> ApiCall {
        let (page, size) = (page.to_string(), size.to_string());
        ApiCall::new(&DESCRIBE_SELLER_INSTANCES, &[("PageIndex", &page), ("PageSize", &size)])
    }
}

/// An answer that lacks something, or has it in an unknown form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer of {action} has no readable `{member}`")]
pub struct UnreadableAnswer {
    /// Name of the operation.
    pub action: &'static str,
    /// The member.
    pub member: &'static str,
}

/// Reader of one answer.
struct Answer<'j> {
    action: &'static str,
    object: &'j Json,
}

impl<'j> Answer<'j> {
    fn new(operation: &'static Operation, object: &'j Json) -> Answer<'j> {
        Answer { action: operation.action, object }
    }

    fn unreadable(&self, member: &'static str) -> UnreadableAnswer {
        UnreadableAnswer { action: self.action, member }
    }

    fn get(&self, name: &str) -> Option<&'j Json> {
        member(self.object, name)
    }

    /// Returns a text, or a number as its digits. Empty is absent.
    fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(Json::to_text).filter(|text| !text.is_empty())
    }

    fn required(&self, name: &'static str) -> Result<String, UnreadableAnswer> {
        self.text(name).ok_or_else(|| self.unreadable(name))
    }

    /// Returns an instant from milliseconds since 1970, written as a number or as text.
    fn millis(&self, name: &'static str) -> Result<Option<Timestamp>, UnreadableAnswer> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let millis = text.parse().map_err(|_| self.unreadable(name))?;
        Timestamp::from_millisecond(millis).map(Some).map_err(|_| self.unreadable(name))
    }

    fn time(&self, name: &'static str, zone: tz::Offset) -> Result<Option<Timestamp>, UnreadableAnswer> {
        let Some(text) = self.text(name) else { return Ok(None) };
        read_time(&text, zone).map(Some).ok_or_else(|| self.unreadable(name))
    }

    fn list(&self, name: &'static str) -> Result<Vec<Answer<'j>>, UnreadableAnswer> {
        match self.get(name) {
            Some(Json::List(list)) => {
                Ok(list.iter().map(|object| Answer { action: self.action, object }).collect())
            }
            None | Some(Json::Null) => Ok(Vec::new()),
            Some(_) => Err(self.unreadable(name)),
        }
    }

    /// Returns a JSON object that is a member, or that is written in a text.
    fn nested(&self, name: &str) -> Json {
        match self.get(name) {
            Some(Json::Text(text)) => Json::read(text.as_bytes()).unwrap_or_default(),
            Some(other) => other.clone(),
            None => Json::Null,
        }
    }
}

/// Reads a time of a licence: `2019-05-25 09:00:00` in the zone, or `2016-05-18T14:14Z`, with or without seconds.
fn read_time(text: &str, zone: tz::Offset) -> Option<Timestamp> {
    let text = text.trim();
    if let Some(utc) = text.strip_suffix('Z') {
        let civil = ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M"]
            .iter()
            .find_map(|form| DateTime::strptime(form, utc).ok())?;
        return civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    }
    let civil = DateTime::strptime("%Y-%m-%d %H:%M:%S", text).ok()?;
    zone.to_timestamp(civil).ok()
}

/// Status of a licence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LicenseStatus {
    /// Not activated.
    Inactivated,
    /// Activated.
    Activated,
    /// The term is over.
    Expired,
    /// Voided.
    Discarded,
    /// A word that no source names: not usable.
    Unknown,
}

/// A licence as the marketplace describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LicenseRecord {
    /// Status.
    pub status: LicenseStatus,
    /// Id of the instance at the marketplace.
    pub instance_id: String,
    /// Product.
    pub product_code: String,
    /// SKU of the product.
    pub sku: Option<String>,
    /// Plan: the attribute `package_version`.
    pub plan: Option<String>,
    /// Buyer's account.
    pub buyer: Option<String>,
    /// Number of accounts that were bought, as digits.
    pub seats: Option<String>,
    /// Orders: the purchase and its renewals.
    pub orders: Vec<String>,
    /// End of the term.
    pub expires_at: Option<Timestamp>,
}

impl LicenseRecord {
    /// Reads the answer of DescribeLicense. `zone` is the zone of times that name none.
    ///
    /// # Errors
    /// Fails without a status, an instance or a product, and if the end of the term is unreadable.
    pub fn read(answer: &Json, zone: tz::Offset) -> Result<LicenseRecord, UnreadableAnswer> {
        let outer = Answer::new(&DESCRIBE_LICENSE, answer);
        let object = outer.get("License").ok_or_else(|| outer.unreadable("License"))?;
        let license = Answer::new(&DESCRIBE_LICENSE, object);
        let extra = license.nested("ExtendInfo");
        let extra = Answer::new(&DESCRIBE_LICENSE, &extra);
        let attributes = license.nested("ExtendArray");
        let attribute = |code: &str| license_attribute(&attributes, code);
        let status = match license.required("LicenseStatus")?.as_str() {
            "INACTIVATED" => LicenseStatus::Inactivated,
            "ACTIVATED" => LicenseStatus::Activated,
            "EXPIRED" => LicenseStatus::Expired,
            "DISCARD" => LicenseStatus::Discarded,
            _ => LicenseStatus::Unknown,
        };
        let mut orders = Vec::new();
        for order in attribute("orderId").unwrap_or_default().split(',') {
            if !order.trim().is_empty() {
                orders.push(order.trim().to_owned());
            }
        }
        let mut expires_at = license.time("ExpiredTime", zone)?;
        if let Some(text) = attribute("expiresTime").filter(|_| expires_at.is_none()) {
            let at = read_time(&text, zone).ok_or_else(|| license.unreadable("expiresTime"))?;
            expires_at = Some(at);
        }
        Ok(LicenseRecord {
            status,
            instance_id: license
                .text("InstanceId")
                .or_else(|| attribute("orderBizId"))
                .ok_or_else(|| license.unreadable("InstanceId"))?,
            product_code: license.required("ProductCode")?,
            sku: license.text("ProductSkuId"),
            plan: attribute("package_version"),
            buyer: extra.text("AliUid").or_else(|| attribute("aliUid")),
            seats: extra.text("AccountQuantity"),
            orders,
            expires_at,
        })
    }
}

/// Returns an attribute of a licence. Some pages show the list itself, others an object that holds it.
fn license_attribute(attributes: &Json, code: &str) -> Option<String> {
    let list = match attributes {
        Json::List(list) => list,
        object => match object.get("LicenseAttribute")? {
            Json::List(list) => list,
            _ => return None,
        },
    };
    let found =
        list.iter().find(|attribute| member(attribute, "Code").and_then(Json::as_text) == Some(code))?;
    member(found, "Value").and_then(Json::to_text).filter(|text| !text.is_empty())
}

/// A notification that the marketplace has given up sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Id to confirm it by.
    pub id: String,
    /// Action of the callback that it stands for.
    pub action: String,
    /// Parameters of that callback. They carry no signature: the signed call that fetched them vouches for them.
    pub parameters: Vec<Pair>,
    /// Time of its creation.
    pub created_at: Option<Timestamp>,
}

/// Action of the callback of a payment.
const PAYMENT: &str = "orderPay";

impl Notification {
    /// Returns the action and the parameters of the payment that the notification stands for.
    ///
    /// The id of the notification stands for the request id of the payment, which the message does not have. `None`: it
    /// stands for something else. The vendor documents this list only for payments.
    pub fn payment(&self) -> Option<(&'static str, Vec<Pair>)> {
        let mut parameters = self.parameters.clone();
        let mut actions = parameters.extract_if(.., |(name, _)| name == "action");
        let is_payment = self.action == PAYMENT && actions.all(|(_, action)| action == PAYMENT);
        drop(actions);
        parameters.retain(|(name, _)| name != "requestId" && name != "token");
        parameters.push(("requestId".to_owned(), self.id.clone()));
        is_payment.then_some((PAYMENT, parameters))
    }
}

/// A page of notifications.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notifications {
    /// Number of notifications on all pages.
    pub total: u64,
    /// Those of this page.
    pub list: Vec<Notification>,
    /// Ids of notifications of this page whose message is unreadable.
    pub unreadable: Vec<String>,
}

impl Notifications {
    /// Reads the answer of DescribeFailedNotifications.
    ///
    /// # Errors
    /// Fails without a count, and if a notification has no id. One with an unreadable message is listed by its id.
    pub fn read(answer: &Json) -> Result<Notifications, UnreadableAnswer> {
        let answer = Answer::new(&DESCRIBE_FAILED_NOTIFICATIONS, answer);
        let total = answer.required("TotalCount")?.parse().map_err(|_| answer.unreadable("TotalCount"))?;
        let mut page = Notifications { total, ..Notifications::default() };
        for entry in answer.list("NotificationList")? {
            let id = entry.required("NotificationRequestId")?;
            match (entry.text("Action"), message_parameters(&entry.nested("Message"))) {
                (Some(action), Some(parameters)) => {
                    let created_at = entry.millis("CreateTime")?;
                    page.list.push(Notification { id, action, parameters, created_at });
                }
                _ => page.unreadable.push(id),
            }
        }
        Ok(page)
    }
}

fn message_parameters(message: &Json) -> Option<Vec<Pair>> {
    let Json::Object(members) = message else { return None };
    let mut parameters = Vec::with_capacity(members.len());
    for (name, value) in members {
        // A nested value is no parameter of a callback.
        parameters.push((name.clone(), value.to_text()?));
    }
    Some(parameters)
}

/// An instance as the marketplace describes it to its seller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarketInstance {
    /// Id at the marketplace.
    pub id: String,
    /// Status: `OPENED`, `CLOSED`, `EXPIRED` and others.
    pub status: String,
    /// Product.
    pub product_code: Option<String>,
    /// SKU of the product.
    pub sku: Option<String>,
    /// Plan: `package_version` of the components.
    pub plan: Option<String>,
    /// Order that made the instance.
    pub order_id: Option<String>,
    /// True for a trial.
    pub trial: Option<bool>,
    /// End of the term.
    pub ends_at: Option<Timestamp>,
}

impl MarketInstance {
    /// Reads the answer of DescribeInstanceForIsv. It does not name the buyer.
    ///
    /// # Errors
    /// Fails without an id or a status, and if the end of the term is unreadable.
    pub fn read(answer: &Json) -> Result<MarketInstance, UnreadableAnswer> {
        let answer = Answer::new(&DESCRIBE_INSTANCE, answer);
        let components = answer.nested("ComponentJson");
        Ok(MarketInstance {
            id: answer.required("InstanceId")?,
            status: answer.required("Status")?,
            product_code: answer.text("ProductCode"),
            sku: answer.text("ProductSkuCode"),
            plan: components.get("package_version").and_then(Json::to_text),
            order_id: answer.text("OrderId"),
            trial: answer.get("IsTrial").and_then(flag),
            ends_at: answer.millis("EndOn")?,
        })
    }
}

/// Status of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderStatus {
    /// Valid.
    Normal,
    /// Refunded.
    Refunded,
    /// Deleted.
    Deleted,
    /// A word that no source names.
    Unknown,
}

/// An order as the marketplace describes it to its seller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarketOrder {
    /// Id.
    pub id: String,
    /// Kind: `NEW`, `RENEW`, `TRIAL`, `UPGRADE`, `DOWNGRADE`, `PURCHASE`.
    pub kind: Option<String>,
    /// Status.
    pub status: OrderStatus,
    /// True if it is paid.
    pub paid: Option<bool>,
    /// Buyer's account.
    pub buyer: Option<String>,
    /// Product.
    pub product_code: Option<String>,
    /// Instances of the order.
    pub instances: Vec<String>,
}

impl MarketOrder {
    /// Reads the answer of DescribeOrderForIsv.
    ///
    /// # Errors
    /// Fails without an id or a status.
    pub fn read(answer: &Json) -> Result<MarketOrder, UnreadableAnswer> {
        let answer = Answer::new(&DESCRIBE_ORDER, answer);
        let status = match answer.required("OrderStatus")?.as_str() {
            "NORMAL" => OrderStatus::Normal,
            "REFUND" => OrderStatus::Refunded,
            "DELETE" => OrderStatus::Deleted,
            _ => OrderStatus::Unknown,
        };
        // The buyer's view of an order has the same list one object deeper.
        let ids = match answer.get("InstanceIds") {
            Some(object @ Json::Object(_)) => member(object, "InstanceId"),
            other => other,
        };
        let mut instances = Vec::new();
        if let Some(Json::List(list)) = ids {
            instances.extend(list.iter().filter_map(Json::to_text));
        }
        Ok(MarketOrder {
            id: answer.required("OrderId")?,
            kind: answer.text("OrderType"),
            status,
            paid: answer.text("PayStatus").map(|word| word == "PAID"),
            buyer: answer.text("AliUid"),
            product_code: answer.text("ProductCode"),
            instances,
        })
    }
}

/// An instance in the list of a seller on the international site. It has no end of term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SellerInstance {
    /// Id at the marketplace.
    pub id: String,
    /// Status: `OPENED` and others.
    pub status: String,
    /// Buyer's account.
    pub buyer: Option<String>,
    /// Product.
    pub product_code: Option<String>,
    /// Time of its creation.
    pub created_at: Option<Timestamp>,
}

/// A page of a seller's instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SellerInstances {
    /// Number of instances on all pages.
    pub total: u64,
    /// Those of this page.
    pub list: Vec<SellerInstance>,
}

impl SellerInstances {
    /// Reads the answer of DescribeSellerInstances.
    ///
    /// # Errors
    /// Fails without a count, and if an instance has no id or no status.
    pub fn read(answer: &Json) -> Result<SellerInstances, UnreadableAnswer> {
        let answer = Answer::new(&DESCRIBE_SELLER_INSTANCES, answer);
        let total = answer.required("Count")?.parse().map_err(|_| answer.unreadable("Count"))?;
        let mut list = Vec::new();
        for entry in answer.list("Result")? {
            list.push(SellerInstance {
                id: entry.required("InstanceId")?,
                status: entry.required("InstanceStatus")?,
                buyer: entry.text("UserId"),
                product_code: entry.text("CommodityCode"),
                created_at: entry.millis("CreatedOn")?,
            });
        }
        Ok(SellerInstances { total, list })
    }
}

#[cfg(test)]
mod tests;

//! What a hook is told: one type per action, built from the callback and the instance as applied.
//!
//! The JSON of a [`Call`] is the contract of the `exec` and `http` hooks, described in
//! `docs/hooks.md`. It grows by members; a change of meaning changes [`SCHEMA`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::core::lifecycle::{Instance, State};
use crate::hook::callback::{Action, Callback, Expiry, Parameters};
use crate::hook::trace::TraceContext;

/// The version of the JSON contract, its first member.
pub const SCHEMA: &str = "spid.hook/1";

/// What every call carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Context {
    /// The same for every attempt at this job, and for nothing else, ever.
    pub idempotency_key: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// When the attempt is given up, whatever it is doing.
    pub deadline: Timestamp,
    /// When the callback was accepted.
    pub received_at: Timestamp,
    /// The seller account the instance belongs to.
    pub account: String,
    /// The endpoint the callback came through.
    pub endpoint: String,
    /// The action as the marketplace spells it.
    pub action_name: String,
    /// The order of this callback, where it has one.
    pub order_id: Option<String>,
    /// Every signed parameter, as sent.
    pub parameters: Parameters,
    /// What the marketplace says of the order beside the parameters, in its own words: what it was asked for,
    /// or had encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Parameters>,
    /// For a product that calls Alibaba's Model Studio: the value of the header `x-dashscope-euid`, ready to
    /// be sent with each of its calls, so that they count for this product and this buyer. `None` for other
    /// marketplaces, and where product or buyer are not known.
    pub dashscope_euid: Option<String>,
    /// This attempt's place in the trace of its job, as W3C Trace Context writes it: pass it on with whatever you
    /// call, and your logs and traces can be told to belong to it. `None` where the key is no id of a job.
    pub traceparent: Option<String>,
}

/// Make what was bought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct CreateCall {
    /// What every call carries.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to be: pending, without an id.
    pub instance: Instance,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The product sold.
    pub product: Option<String>,
    /// The SKU sold.
    pub sku: Option<String>,
    /// Whether it is a trial; `None` when the marketplace did not say.
    pub trial: Option<bool>,
    /// When the term ends; the raw text stands beside the instant, which may be unreadable.
    pub expires_on: Option<Expiry>,
    /// The billed quantities beside the SKU.
    pub items: BTreeMap<String, String>,
}

/// Extend the term.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct RenewCall {
    /// What every call carries.
    #[serde(flatten)]
    pub context: Context,
    /// The instance before the renewal.
    pub instance: Instance,
    /// When the term ends from now on. Never earlier than before: a renewal that comes late does
    /// not shorten what a later one gave.
    pub expires_on: Option<Timestamp>,
    /// The expiry as this callback sent it; it may lie before `expires_on`.
    pub expires_on_raw: Option<String>,
    /// When the term ended before.
    pub previous_expires_on: Option<Timestamp>,
    /// Whether the instance is frozen and is to be used again.
    pub thaws: bool,
}

/// Take a renewal back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct RefundRenewCall {
    /// What every call carries.
    #[serde(flatten)]
    pub context: Context,
    /// The instance before the refund.
    pub instance: Instance,
    /// When the term ends from now on; earlier than before.
    pub expires_on: Option<Timestamp>,
    /// The expiry as this callback sent it.
    pub expires_on_raw: Option<String>,
    /// When the term ended before.
    pub previous_expires_on: Option<Timestamp>,
}

/// One billed quantity before and after an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Change {
    /// What it was; `None` when it is new.
    pub from: Option<String>,
    /// What it is now; `None` when it is gone.
    pub to: Option<String>,
}

/// Change the SKU or the billed quantities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct UpgradeCall {
    /// What every call carries.
    #[serde(flatten)]
    pub context: Context,
    /// The instance before the upgrade.
    pub instance: Instance,
    /// The SKU from now on.
    pub sku: Option<String>,
    /// The SKU before.
    pub previous_sku: Option<String>,
    /// All billed quantities from now on: those before, with what this callback changed.
    pub items: BTreeMap<String, String>,
    /// All billed quantities before.
    pub previous_items: BTreeMap<String, String>,
    /// The quantities that differ.
    pub changes: BTreeMap<String, Change>,
}

/// Take away the use, keep the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct ExpireCall {
    /// What every call carries.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to freeze.
    pub instance: Instance,
}

/// Give everything up for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct ReleaseCall {
    /// What every call carries.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to give up.
    pub instance: Instance,
    /// Whether the buyer got the money back; `None` when the marketplace did not say, which is
    /// not "no".
    pub refund: Option<bool>,
    /// A create was begun and never finished: something may exist under the create's
    /// `order_biz_id`, or nothing. Clean up what is there, and succeed when nothing is.
    pub maybe_provisioned: bool,
}

/// A buyer's browser wants in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct SignOnCall {
    /// What every call carries.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to sign on to. It may be frozen: whether that is let in is yours to say.
    pub instance: Instance,
}

/// An order was paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct PaymentCall {
    /// What every call carries.
    #[serde(flatten)]
    pub context: Context,
    /// The instance paid for, where one is known.
    pub instance: Option<Instance>,
    /// The marketplace's id of the message.
    pub request_id: Option<String>,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The product paid for.
    pub product: Option<String>,
    /// The SKU paid for.
    pub sku: Option<String>,
}

/// Anything the dialect passes on unread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct OtherCall {
    /// What every call carries.
    #[serde(flatten)]
    pub context: Context,
    /// The instance it is about, where one is known.
    pub instance: Option<Instance>,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The product it is about.
    pub product: Option<String>,
    /// The SKU it is about.
    pub sku: Option<String>,
    /// What the request says as a structure, for those whose parameters hold lists in texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
}

/// One invocation of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Make what was bought.
    Create(Box<CreateCall>),
    /// Extend the term.
    Renew(Box<RenewCall>),
    /// Take a renewal back.
    RefundRenew(Box<RefundRenewCall>),
    /// Change the SKU or the billed quantities.
    Upgrade(Box<UpgradeCall>),
    /// Take away the use, keep the data.
    Expire(Box<ExpireCall>),
    /// Give everything up for good.
    Release(Box<ReleaseCall>),
    /// A buyer's browser wants in.
    SignOn(Box<SignOnCall>),
    /// An order was paid.
    Payment(Box<PaymentCall>),
    /// Anything the dialect passes on unread.
    Other(Box<OtherCall>),
}

/// What a [`Call`] is built from.
#[derive(Debug, Clone)]
pub struct CallFacts<'a> {
    /// What was asked.
    pub callback: &'a Callback,
    /// The instance as applied now.
    pub instance: Option<&'a Instance>,
    /// The job's key.
    pub idempotency_key: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// When the attempt is given up.
    pub deadline: Timestamp,
    /// When the callback was accepted.
    pub received_at: Timestamp,
    /// The seller account.
    pub account: &'a str,
    /// The endpoint the callback came through.
    pub endpoint: &'a str,
    /// The value of `x-dashscope-euid`, where there is one.
    pub dashscope_euid: Option<String>,
}

/// A call that needs an instance was built without one: a bug in whoever built it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {action} call needs an instance, and there is none")]
pub struct NoInstance {
    /// What was asked.
    pub action: Action,
}

/// What a call is routed by. The values applied to the instance come first, so that one hook sees
/// an instance's whole life as long as its SKU stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The endpoint the callback came through.
    pub endpoint: &'a str,
    /// The product.
    pub product: Option<&'a str>,
    /// The SKU; before an upgrade, the one that is upgraded from.
    pub sku: Option<&'a str>,
    /// The buyer's account.
    pub buyer: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// What the call for this callback and instance will be routed by.
    pub fn new(endpoint: &'a str, callback: &'a Callback, instance: Option<&'a Instance>) -> Subject<'a> {
        let applied = instance.map_or_else(Subject::default, |instance| Subject::of(endpoint, instance));
        Subject {
            endpoint,
            product: applied.product.or(callback.product.as_deref()),
            sku: applied.sku.or(callback.sku.as_deref()),
            buyer: applied.buyer.or(callback.buyer.as_deref()),
        }
    }

    fn of(endpoint: &'a str, instance: &'a Instance) -> Subject<'a> {
        Subject {
            endpoint,
            product: instance.product.as_deref(),
            sku: instance.sku.as_deref(),
            buyer: instance.buyer.as_deref(),
        }
    }
}

impl Call {
    /// Builds the call for a callback, given what has been applied to its instance so far.
    ///
    /// This is also how an author's tests make calls.
    ///
    /// # Errors
    /// [`NoInstance`] for every action but payment and other when there is no instance.
    pub fn new(facts: CallFacts<'_>) -> Result<Call, NoInstance> {
        let (callback, instance) = (facts.callback, facts.instance.cloned());
        let context = Context::new(&facts);
        let some = |instance: Option<Instance>| instance.ok_or(NoInstance { action: callback.action });
        Ok(match callback.action {
            Action::Create => Call::Create(Box::new(CreateCall::new(context, some(instance)?, callback))),
            Action::Renew => Call::Renew(Box::new(RenewCall::new(context, some(instance)?, callback))),
            Action::RefundRenew => {
                Call::RefundRenew(Box::new(RefundRenewCall::new(context, some(instance)?, callback)))
            }
            Action::Upgrade => Call::Upgrade(Box::new(UpgradeCall::new(context, some(instance)?, callback))),
            Action::Expire => Call::Expire(Box::new(ExpireCall { context, instance: some(instance)? })),
            Action::Release => Call::Release(Box::new(ReleaseCall::new(context, some(instance)?, callback))),
            Action::SignOn => Call::SignOn(Box::new(SignOnCall { context, instance: some(instance)? })),
            Action::Payment => Call::Payment(Box::new(PaymentCall::new(context, instance, callback))),
            Action::Query | Action::Other => {
                Call::Other(Box::new(OtherCall::new(context, instance, callback)))
            }
        })
    }

    /// What is asked.
    pub fn action(&self) -> Action {
        match self {
            Call::Create(_) => Action::Create,
            Call::Renew(_) => Action::Renew,
            Call::RefundRenew(_) => Action::RefundRenew,
            Call::Upgrade(_) => Action::Upgrade,
            Call::Expire(_) => Action::Expire,
            Call::Release(_) => Action::Release,
            Call::SignOn(_) => Action::SignOn,
            Call::Payment(_) => Action::Payment,
            Call::Other(_) => Action::Other,
        }
    }

    /// What every call carries.
    pub fn context(&self) -> &Context {
        match self {
            Call::Create(call) => &call.context,
            Call::Renew(call) => &call.context,
            Call::RefundRenew(call) => &call.context,
            Call::Upgrade(call) => &call.context,
            Call::Expire(call) => &call.context,
            Call::Release(call) => &call.context,
            Call::SignOn(call) => &call.context,
            Call::Payment(call) => &call.context,
            Call::Other(call) => &call.context,
        }
    }

    /// The instance as applied, where there is one.
    pub fn instance(&self) -> Option<&Instance> {
        match self {
            Call::Create(call) => Some(&call.instance),
            Call::Renew(call) => Some(&call.instance),
            Call::RefundRenew(call) => Some(&call.instance),
            Call::Upgrade(call) => Some(&call.instance),
            Call::Expire(call) => Some(&call.instance),
            Call::Release(call) => Some(&call.instance),
            Call::SignOn(call) => Some(&call.instance),
            Call::Payment(call) => call.instance.as_ref(),
            Call::Other(call) => call.instance.as_ref(),
        }
    }

    /// What the call is routed by: the same as [`Subject::new`] of what it was built from.
    pub fn subject(&self) -> Subject<'_> {
        let endpoint = self.context().endpoint.as_str();
        let applied = self.instance().map_or_else(Subject::default, |it| Subject::of(endpoint, it));
        let (product, sku, buyer) = match self {
            Call::Create(call) => (&call.product, &call.sku, &call.buyer),
            Call::Payment(call) => (&call.product, &call.sku, &call.buyer),
            Call::Other(call) => (&call.product, &call.sku, &call.buyer),
            Call::Upgrade(call) => (&None, &call.sku, &None),
            _ => (&None, &None, &None),
        };
        Subject {
            endpoint,
            product: applied.product.or(product.as_deref()),
            sku: applied.sku.or(sku.as_deref()),
            buyer: applied.buyer.or(buyer.as_deref()),
        }
    }
}

impl Context {
    fn new(facts: &CallFacts<'_>) -> Context {
        Context {
            idempotency_key: facts.idempotency_key.clone(),
            attempt: facts.attempt,
            deadline: facts.deadline,
            received_at: facts.received_at,
            account: facts.account.to_owned(),
            endpoint: facts.endpoint.to_owned(),
            action_name: facts.callback.action_name.clone(),
            order_id: facts.callback.order_id.clone(),
            parameters: facts.callback.parameters.clone(),
            order: facts.callback.learned.clone(),
            dashscope_euid: facts.dashscope_euid.clone(),
            traceparent: traceparent(facts),
        }
    }
}

fn traceparent(facts: &CallFacts<'_>) -> Option<String> {
    let job = facts.idempotency_key.parse().ok()?;
    Some(TraceContext::of_attempt(job, facts.attempt).to_string())
}

impl CreateCall {
    fn new(context: Context, instance: Instance, callback: &Callback) -> CreateCall {
        CreateCall {
            context,
            buyer: callback.buyer.clone(),
            product: callback.product.clone(),
            sku: callback.sku.clone(),
            trial: callback.trial,
            expires_on: callback.expires_on.clone(),
            items: callback.items.clone(),
            instance,
        }
    }
}

impl RenewCall {
    fn new(context: Context, instance: Instance, callback: &Callback) -> RenewCall {
        let (at, raw) = expiry(callback);
        RenewCall {
            context,
            expires_on: instance.expires_on.max(at),
            expires_on_raw: raw,
            previous_expires_on: instance.expires_on,
            thaws: instance.state == State::Frozen,
            instance,
        }
    }
}

impl RefundRenewCall {
    fn new(context: Context, instance: Instance, callback: &Callback) -> RefundRenewCall {
        let (expires_on, expires_on_raw) = expiry(callback);
        let previous_expires_on = instance.expires_on;
        RefundRenewCall { context, instance, expires_on, expires_on_raw, previous_expires_on }
    }
}

fn expiry(callback: &Callback) -> (Option<Timestamp>, Option<String>) {
    let sent = callback.expires_on.as_ref();
    (sent.and_then(|expiry| expiry.at), sent.map(|expiry| expiry.raw.clone()))
}

impl UpgradeCall {
    fn new(context: Context, instance: Instance, callback: &Callback) -> UpgradeCall {
        let previous_items = instance.items.clone();
        let mut items = previous_items.clone();
        items.extend(callback.items.clone());
        UpgradeCall {
            context,
            sku: callback.sku.clone().or_else(|| instance.sku.clone()),
            previous_sku: instance.sku.clone(),
            changes: changes(&previous_items, &items),
            items,
            previous_items,
            instance,
        }
    }
}

fn changes(from: &BTreeMap<String, String>, to: &BTreeMap<String, String>) -> BTreeMap<String, Change> {
    let names = from.keys().chain(to.keys());
    let change = |name: &String| Change { from: from.get(name).cloned(), to: to.get(name).cloned() };
    names.map(|name| (name.clone(), change(name))).filter(|(_, change)| change.from != change.to).collect()
}

impl ReleaseCall {
    fn new(context: Context, instance: Instance, callback: &Callback) -> ReleaseCall {
        let maybe_provisioned = instance.began && instance.id.is_none();
        ReleaseCall { context, instance, refund: callback.refund, maybe_provisioned }
    }
}

impl PaymentCall {
    fn new(context: Context, instance: Option<Instance>, callback: &Callback) -> PaymentCall {
        PaymentCall {
            context,
            instance,
            request_id: callback.request_id.clone(),
            buyer: callback.buyer.clone(),
            product: callback.product.clone(),
            sku: callback.sku.clone(),
        }
    }
}

impl OtherCall {
    fn new(context: Context, instance: Option<Instance>, callback: &Callback) -> OtherCall {
        OtherCall {
            context,
            instance,
            buyer: callback.buyer.clone(),
            product: callback.product.clone(),
            sku: callback.sku.clone(),
            body: callback.body.clone(),
        }
    }
}

/// One call as one flat JSON object: the version, the action, then the call's own members.
#[derive(Serialize)]
struct Flat<'a, C> {
    schema: &'static str,
    action: Action,
    #[serde(flatten)]
    call: &'a C,
}

impl Serialize for Call {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn flat<C: Serialize, S: Serializer>(action: Action, call: &C, to: S) -> Result<S::Ok, S::Error> {
            Flat { schema: SCHEMA, action, call }.serialize(to)
        }
        let action = self.action();
        match self {
            Call::Create(call) => flat(action, call, serializer),
            Call::Renew(call) => flat(action, call, serializer),
            Call::RefundRenew(call) => flat(action, call, serializer),
            Call::Upgrade(call) => flat(action, call, serializer),
            Call::Expire(call) => flat(action, call, serializer),
            Call::Release(call) => flat(action, call, serializer),
            Call::SignOn(call) => flat(action, call, serializer),
            Call::Payment(call) => flat(action, call, serializer),
            Call::Other(call) => flat(action, call, serializer),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    pub(crate) fn an_instance() -> Instance {
        Instance {
            id: Some("i-1".into()),
            order_biz_id: Some("biz-1".into()),
            state: State::Active,
            account: "acme".into(),
            endpoint: "alibaba-cn".into(),
            buyer: Some("10001".into()),
            product: Some("cmgj000001".into()),
            sku: Some("basic".into()),
            order_id: Some("order-1".into()),
            trial: Some(false),
            expires_on: Some(at("2026-06-01T00:00:00Z")),
            expires_on_raw: Some("2026-06-01 08:00:00".into()),
            items: BTreeMap::from([("disk".into(), "10".into()), ("seats".into(), "5".into())]),
            began: true,
            tombstone: false,
            adopted: false,
            converted: false,
            claimed_at: None,
            tenant: None,
            created_at: at("2026-01-01T00:00:00Z"),
            updated_at: at("2026-01-01T00:00:05Z"),
        }
    }

    pub(crate) fn a_call(callback: &Callback, instance: Option<&Instance>) -> Call {
        Call::new(CallFacts {
            callback,
            instance,
            idempotency_key: "key-1".into(),
            attempt: 1,
            deadline: at("2026-01-01T00:10:00Z"),
            received_at: at("2026-01-01T00:00:00Z"),
            account: "acme",
            endpoint: "alibaba-cn",
            dashscope_euid: None,
        })
        .unwrap()
    }

    fn sent(action: Action, expires_on: &str) -> Callback {
        Callback {
            expires_on: Some(Expiry { raw: expires_on.into(), at: Some(at(expires_on)) }),
            ..Callback::new(action, action.as_str())
        }
    }

    fn json(call: &Call) -> Value {
        serde_json::to_value(call).unwrap()
    }

    #[test]
    fn a_create_call_as_json() {
        let mut callback = sent(Action::Create, "2026-06-01T00:00:00Z");
        callback.action_name = "createInstance".into();
        callback.order_id = Some("order-1".into());
        callback.buyer = Some("10001".into());
        callback.product = Some("cmgj000001".into());
        callback.sku = Some("basic".into());
        callback.items = BTreeMap::from([("seats".into(), "5".into())]);
        callback.parameters = [("aliUid".to_owned(), "10001".to_owned())].into_iter().collect();
        let instance = Instance {
            id: None,
            state: State::Pending,
            began: false,
            expires_on: None,
            expires_on_raw: None,
            items: BTreeMap::new(),
            ..an_instance()
        };
        let expected = json!({
            "schema": "spid.hook/1", "action": "create",
            "idempotency_key": "key-1", "attempt": 1,
            "deadline": "2026-01-01T00:10:00Z", "received_at": "2026-01-01T00:00:00Z",
            "account": "acme", "endpoint": "alibaba-cn",
            "action_name": "createInstance", "order_id": "order-1",
            "parameters": {"aliUid": "10001"}, "dashscope_euid": null, "traceparent": null,
            "instance": {
                "id": null, "order_biz_id": "biz-1", "state": "pending", "account": "acme",
                "endpoint": "alibaba-cn", "buyer": "10001", "product": "cmgj000001", "sku": "basic",
                "order_id": "order-1", "trial": false, "expires_on": null, "expires_on_raw": null,
                "items": {}, "began": false, "tombstone": false, "adopted": false,
                "claimed_at": null, "tenant": null,
                "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:05Z"
            },
            "buyer": "10001", "product": "cmgj000001", "sku": "basic", "trial": null,
            "expires_on": {"raw": "2026-06-01T00:00:00Z", "at": "2026-06-01T00:00:00Z"},
            "items": {"seats": "5"}
        });
        assert_eq!(json(&a_call(&callback, Some(&instance))), expected);
    }

    #[test]
    fn an_upgrade_call_as_json_has_before_after_and_difference() {
        let mut callback = Callback::new(Action::Upgrade, "upgradeInstance");
        callback.sku = Some("pro".into());
        callback.items = BTreeMap::from([("seats".into(), "9".into()), ("nodes".into(), "2".into())]);
        let value = json(&a_call(&callback, Some(&an_instance())));
        let got =
            ["action", "sku", "previous_sku", "items", "previous_items", "changes"].map(|name| &value[name]);
        assert_eq!(got[..3], [&json!("upgrade"), &json!("pro"), &json!("basic")]);
        assert_eq!(got[3], &json!({"disk": "10", "nodes": "2", "seats": "9"}));
        assert_eq!(got[4], &json!({"disk": "10", "seats": "5"}));
        assert_eq!(got[5], &json!({"nodes": {"from": null, "to": "2"}, "seats": {"from": "5", "to": "9"}}));
        assert_eq!(value["instance"]["sku"], "basic");
    }

    #[test]
    fn an_upgrade_that_names_no_sku_keeps_it() {
        let Call::Upgrade(call) = a_call(&Callback::new(Action::Upgrade, "x"), Some(&an_instance())) else {
            panic!("not an upgrade")
        };
        assert_eq!(call.sku.as_deref(), Some("basic"));
        assert!(call.changes.is_empty());
    }

    #[test]
    fn a_renew_never_lowers_the_expiry_and_a_refund_does() {
        let instance = an_instance();
        let late = "2026-03-01T00:00:00Z";
        let Call::Renew(renew) = a_call(&sent(Action::Renew, late), Some(&instance)) else {
            panic!("not a renew")
        };
        assert_eq!(renew.expires_on, instance.expires_on);
        assert_eq!(renew.expires_on_raw.as_deref(), Some(late));
        assert!(!renew.thaws);
        let Call::RefundRenew(refund) = a_call(&sent(Action::RefundRenew, late), Some(&instance)) else {
            panic!("not a refund")
        };
        assert_eq!(refund.expires_on, Some(at(late)));
        assert_eq!(refund.previous_expires_on, instance.expires_on);
    }

    #[test]
    fn a_renew_of_something_frozen_thaws_it() {
        let frozen = Instance { state: State::Frozen, expires_on: None, ..an_instance() };
        let Call::Renew(renew) = a_call(&sent(Action::Renew, "2027-01-01T00:00:00Z"), Some(&frozen)) else {
            panic!("not a renew")
        };
        assert!(renew.thaws);
        assert_eq!(renew.expires_on, Some(at("2027-01-01T00:00:00Z")));
        assert_eq!(renew.previous_expires_on, None);
    }

    #[test]
    fn a_release_says_when_nobody_knows_what_exists() {
        let maybe = |began, id: Option<&str>| {
            let instance = Instance { began, id: id.map(str::to_owned), ..an_instance() };
            let Call::Release(call) = a_call(&Callback::new(Action::Release, "x"), Some(&instance)) else {
                panic!("not a release")
            };
            call.maybe_provisioned
        };
        assert!(maybe(true, None));
        assert!(!maybe(true, Some("i-1")));
        assert!(!maybe(false, None));
    }

    #[test]
    fn only_payment_and_other_go_without_an_instance() {
        for action in Action::ALL {
            let callback = Callback::new(action, "x");
            let facts = CallFacts {
                callback: &callback,
                instance: None,
                idempotency_key: "key-1".into(),
                attempt: 1,
                deadline: Timestamp::UNIX_EPOCH,
                received_at: Timestamp::UNIX_EPOCH,
                account: "acme",
                endpoint: "e",
                dashscope_euid: None,
            };
            let free = matches!(action, Action::Payment | Action::Query | Action::Other);
            assert_eq!(Call::new(facts).is_ok(), free, "{action}");
        }
    }

    #[test]
    fn a_call_is_routed_as_its_callback_and_instance_said() {
        let bare = Instance { product: None, sku: None, buyer: None, ..an_instance() };
        for action in [Action::Create, Action::Payment, Action::Other] {
            let mut callback = Callback::new(action, "x");
            callback.product = Some("p".into());
            callback.sku = Some("s".into());
            callback.buyer = Some("b".into());
            for instance in [&bare, &an_instance()] {
                let call = a_call(&callback, Some(instance));
                assert_eq!(call.subject(), Subject::new("alibaba-cn", &callback, Some(instance)), "{action}");
            }
        }
    }
}

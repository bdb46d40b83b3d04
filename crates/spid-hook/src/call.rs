//! Calls to a hook: one type per action, built from the callback and the instance as applied so far.
//!
//! The JSON of a [`Call`] is the contract of the `exec` and `http` hooks, described in `docs/hooks.md`. New
//! members may be added to it. A change of meaning changes [`SCHEMA`].
//!
//! The JSON Schema of the contract takes its descriptions from the doc comments of these types.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::callback::{Action, Callback, Expiry, Parameters};
use crate::instance::{Instance, State};
use crate::trace::TraceContext;

/// Version of the JSON contract. It is the first member of a call.
pub const SCHEMA: &str = "spid.hook/1";

/// Members of every call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Context {
    /// Identical for every attempt at this job, and never used for another job.
    pub idempotency_key: String,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// Time at which the attempt is given up, regardless of its progress.
    pub deadline: Timestamp,
    /// Time at which the callback was accepted.
    pub received_at: Timestamp,
    /// The seller account that the instance belongs to.
    pub account: String,
    /// The endpoint that received the callback.
    pub endpoint: String,
    /// The action in the marketplace's spelling.
    pub action_name: String,
    /// The order of this callback, if it has one.
    pub order_id: Option<String>,
    /// Every signed parameter, as sent.
    pub parameters: Parameters,
    /// Details of the order beside the parameters, in the marketplace's own words: the answer of the order
    /// lookup, or values that the marketplace sent encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Parameters>,
    /// For a product that calls Alibaba's Model Studio: the value of the header `x-dashscope-euid`. Send it
    /// with each call to Model Studio, so that the call counts for this product and this buyer. `None` for
    /// other marketplaces, and if the product or the buyer is unknown.
    pub dashscope_euid: Option<String>,
    /// The position of this attempt in the trace of its job, in the format of W3C Trace Context. Pass it on to
    /// the services you call, so that your logs and traces can be assigned to this attempt. `None` if the key
    /// is not the id of a job.
    pub traceparent: Option<String>,
}

/// Create the instance that was bought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct CreateCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to create: pending, without an id.
    pub instance: Instance,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The product sold.
    pub product: Option<String>,
    /// The SKU sold.
    pub sku: Option<String>,
    /// True for a trial; `None` if the marketplace did not say.
    pub trial: Option<bool>,
    /// End of the term: the instant and the raw text. The raw text may be unreadable; then the instant is absent.
    pub expires_on: Option<Expiry>,
    /// The billed quantities beside the SKU.
    pub items: BTreeMap<String, String>,
}

/// Extend the term.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct RenewCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance before the renewal.
    pub instance: Instance,
    /// New end of the term. Never earlier than before: a renewal that arrives late does not shorten the term
    /// that a later renewal gave.
    pub expires_on: Option<Timestamp>,
    /// The expiry as this callback sent it. It may be earlier than `expires_on`.
    pub expires_on_raw: Option<String>,
    /// Previous end of the term.
    pub previous_expires_on: Option<Timestamp>,
    /// True if the instance is frozen and this renewal unfreezes it.
    pub thaws: bool,
}

/// Reverse a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct RefundRenewCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance before the refund.
    pub instance: Instance,
    /// New end of the term; earlier than before.
    pub expires_on: Option<Timestamp>,
    /// The expiry as this callback sent it.
    pub expires_on_raw: Option<String>,
    /// Previous end of the term.
    pub previous_expires_on: Option<Timestamp>,
}

/// A billed quantity before and after an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Change {
    /// Previous value; `None` if the quantity is new.
    pub from: Option<String>,
    /// New value; `None` if the quantity is removed.
    pub to: Option<String>,
}

/// Change the SKU or the billed quantities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct UpgradeCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance before the upgrade.
    pub instance: Instance,
    /// The SKU from now on.
    pub sku: Option<String>,
    /// The SKU before.
    pub previous_sku: Option<String>,
    /// All billed quantities from now on: the previous ones, with the changes of this callback.
    pub items: BTreeMap<String, String>,
    /// All billed quantities before.
    pub previous_items: BTreeMap<String, String>,
    /// The quantities that differ.
    pub changes: BTreeMap<String, Change>,
}

/// Stop the use and keep the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct ExpireCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to freeze.
    pub instance: Instance,
}

/// Delete everything permanently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct ReleaseCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to delete.
    pub instance: Instance,
    /// True if the buyer got the money back; `None` if the marketplace did not say, which does not mean "no".
    pub refund: Option<bool>,
    /// True if a create began and never finished. Something may exist under the create's `order_biz_id`, or
    /// nothing. Delete what exists, and succeed if nothing does.
    pub maybe_provisioned: bool,
}

/// Let a buyer's browser sign on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct SignOnCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to sign on to. It may be frozen; the hook decides if a frozen instance may be used.
    pub instance: Instance,
}

/// Take note that an order was paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct PaymentCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance that was paid for, if it is known.
    pub instance: Option<Instance>,
    /// The marketplace's id of the message.
    pub request_id: Option<String>,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The product that was paid for.
    pub product: Option<String>,
    /// The SKU that was paid for.
    pub sku: Option<String>,
}

/// Handle a request that the dialect passes on without interpreting it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct OtherCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance of the request, if it is known.
    pub instance: Option<Instance>,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The product of the request.
    pub product: Option<String>,
    /// The SKU of the request.
    pub sku: Option<String>,
    /// The request as a structure, for marketplaces whose parameters hold lists in texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
}

/// An invocation of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Create the instance that was bought.
    Create(Box<CreateCall>),
    /// Extend the term.
    Renew(Box<RenewCall>),
    /// Reverse a renewal.
    RefundRenew(Box<RefundRenewCall>),
    /// Change the SKU or the billed quantities.
    Upgrade(Box<UpgradeCall>),
    /// Stop the use and keep the data.
    Expire(Box<ExpireCall>),
    /// Delete everything permanently.
    Release(Box<ReleaseCall>),
    /// Let a buyer's browser sign on.
    SignOn(Box<SignOnCall>),
    /// Take note that an order was paid.
    Payment(Box<PaymentCall>),
    /// Handle a request that the dialect passes on without interpreting it.
    Other(Box<OtherCall>),
}

/// Facts from which a [`Call`] is built.
#[derive(Debug, Clone)]
pub struct CallFacts<'a> {
    /// The callback.
    pub callback: &'a Callback,
    /// The instance as applied so far.
    pub instance: Option<&'a Instance>,
    /// The job's idempotency key.
    pub idempotency_key: String,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// Time at which the attempt is given up.
    pub deadline: Timestamp,
    /// Time at which the callback was accepted.
    pub received_at: Timestamp,
    /// The seller account.
    pub account: &'a str,
    /// The endpoint that received the callback.
    pub endpoint: &'a str,
    /// The value of `x-dashscope-euid`, if there is one.
    pub dashscope_euid: Option<String>,
}

/// Error for a call that needs an instance and was built without one: a bug in the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {action} call needs an instance, and there is none")]
pub struct NoInstance {
    /// The action of the callback.
    pub action: Action,
}

/// Values by which a call is routed. The values applied to the instance take precedence over the callback's. So
/// one hook gets all calls for an instance while its SKU stays the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The endpoint that received the callback.
    pub endpoint: &'a str,
    /// The product.
    pub product: Option<&'a str>,
    /// The SKU. For an upgrade, the SKU before the upgrade.
    pub sku: Option<&'a str>,
    /// The buyer's account.
    pub buyer: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// Returns the values by which the call for this callback and instance will be routed.
    pub fn new(endpoint: &'a str, callback: &'a Callback, instance: Option<&'a Instance>) -> Subject<'a> {
        // The instance's values win: an upgrade to another SKU still goes to the hook that made the instance.
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
    /// Builds the call for a callback, from the instance as applied so far.
    ///
    /// The tests of a hook author make their calls with this function, too.
    ///
    /// # Errors
    /// [`NoInstance`] if there is no instance, for every action except payment, query and other.
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

    /// Returns the action.
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

    /// Returns the members of every call.
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

    /// Returns the instance as applied so far, if there is one.
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

    /// Returns the values by which the call is routed. They equal [`Subject::new`] of the facts from which the
    /// call was built.
    pub fn subject(&self) -> Subject<'_> {
        let endpoint = self.context().endpoint.as_str();
        let applied = self.instance().map_or_else(Subject::default, |it| Subject::of(endpoint, it));
        let (product, sku, buyer) = match self {
            Call::Create(call) => (&call.product, &call.sku, &call.buyer),
            Call::Payment(call) => (&call.product, &call.sku, &call.buyer),
            Call::Other(call) => (&call.product, &call.sku, &call.buyer),
            // The sku of an upgrade call is the new one. It is used only if the instance has none, as in
            // `Subject::new`.
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
            order: facts.callback.order_details.clone(),
            dashscope_euid: facts.dashscope_euid.clone(),
            traceparent: traceparent(facts),
        }
    }
}

/// Returns the attempt's trace context, or `None` if the key is not the id of a job.
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
            // A late renewal must not shorten the term, so take the later of the two dates.
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
        // The callback names only the quantities that it changes.
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
    // The names of both sides, because a quantity can be new or removed.
    let names = from.keys().chain(to.keys());
    let change = |name: &String| Change { from: from.get(name).cloned(), to: to.get(name).cloned() };
    names.map(|name| (name.clone(), change(name))).filter(|(_, change)| change.from != change.to).collect()
}

impl ReleaseCall {
    fn new(context: Context, instance: Instance, callback: &Callback) -> ReleaseCall {
        // An attempt may have created something, and its id was never learned.
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

/// A call as a flat JSON object: the version, the action, then the call's own members.
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

//! Calls to a hook: one type per action, built from the callback and the instance as applied so far.
//!
//! The JSON of a [`Call`] is the contract of the `exec` and `http` hooks, described in `docs/hooks.md`. New
//! members may be added to it. A change of meaning changes [`SCHEMA`].
//!
//! The JSON Schema of the contract takes its descriptions from the doc comments of these types.

use std::collections::BTreeMap;

use jiff::Timestamp;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::callback::{Action, Callback, Expiry, Parameters};
use crate::instance::{Instance, State};
use crate::json::Json;
use crate::text::plain;
use crate::trace::TraceContext;

/// Version of the JSON contract. It is the first member of a call.
pub const SCHEMA: &str = "spid.hook/1";

/// Members of every call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Change {
    /// Previous value; `None` if the quantity is new.
    pub from: Option<String>,
    /// New value; `None` if the quantity is removed.
    pub to: Option<String>,
}

/// Change the SKU or the billed quantities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[non_exhaustive]
pub struct ExpireCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to freeze.
    pub instance: Instance,
}

/// Delete everything permanently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[non_exhaustive]
pub struct SignOnCall {
    /// Members of every call.
    #[serde(flatten)]
    pub context: Context,
    /// The instance to sign on to. It may be frozen; the hook decides if a frozen instance may be used.
    pub instance: Instance,
}

/// Take note that an order was paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
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

/// Error for a call that cannot be read. It shows the version and the action, and no other value of the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableCall {
    /// The call is not JSON.
    #[error("the call is not JSON: line {line}, column {column}")]
    NotJson {
        /// Line of the first wrong byte, from 1.
        line: usize,
        /// Column of the first wrong byte, from 1.
        column: usize,
    },
    /// The call is JSON, but not an object with the members `schema` and `action`.
    #[error("the call is not a JSON object with the texts `schema` and `action`")]
    NotACall,
    /// The version of the contract is not the version that this crate reads.
    #[error(
        "the schema of the call is `{0}`; this program reads `{SCHEMA}`: build it with a newer spid-hook"
    )]
    Schema(String),
    /// An action that this crate does not know.
    #[error("the action of the call is `{0}`, which this program does not know")]
    Action(String),
    /// A member is missing, or its value has the wrong type.
    #[error("the {action} call cannot be read: {fault}")]
    Member {
        /// Action of the call.
        action: Action,
        /// The fault, without values of the call.
        fault: String,
    },
}

/// Maximum length of a word of the call in an error, in characters.
const SHOWN_MAX_CHARS: usize = 64;

/// Members that decide how the rest of a call is read.
#[derive(Deserialize)]
struct Head<'a> {
    schema: String,
    action: String,
    /// The raw text, because the other members are read without the digits of their numbers.
    #[serde(default, borrow, deserialize_with = "present")]
    body: Option<&'a RawValue>,
}

/// Reads a member that is there, also if it is null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Call {
    /// Reads a call from the JSON of the `exec` and `http` hooks. Members that this crate does not know are ignored.
    ///
    /// A number in the body of an `other` call keeps its digits: a number that
    /// [`serde_json::Value`] cannot hold exactly becomes a text.
    ///
    /// ```
    /// use spid_hook::{Call, UnreadableCall};
    ///
    /// let call = br#"{"schema": "spid.hook/2", "action": "create"}"#;
    /// assert_eq!(Call::read(call), Err(UnreadableCall::Schema("spid.hook/2".to_owned())));
    /// ```
    ///
    /// # Errors
    /// [`UnreadableCall`], with the reason.
    pub fn read(text: &[u8]) -> Result<Call, UnreadableCall> {
        let head: Head<'_> = serde_json::from_slice(text).map_err(|error| unread(&error))?;
        // The version comes first: another version may have other actions and members.
        if head.schema != SCHEMA {
            return Err(UnreadableCall::Schema(shown(&head.schema)));
        }
        let action = Action::from_word(&head.action).filter(|action| *action != Action::Query);
        let action = action.ok_or_else(|| UnreadableCall::Action(shown(&head.action)))?;
        read_members(action, text, head.body)
            .map_err(|error| UnreadableCall::Member { action, fault: fault_of(&error) })
    }
}

/// Reads the members of one action's call.
fn read_members(action: Action, text: &[u8], body: Option<&RawValue>) -> serde_json::Result<Call> {
    fn boxed<'de, C: Deserialize<'de>>(text: &'de [u8]) -> serde_json::Result<Box<C>> {
        serde_json::from_slice(text).map(Box::new)
    }
    Ok(match action {
        Action::Create => Call::Create(boxed(text)?),
        Action::Renew => Call::Renew(boxed(text)?),
        Action::RefundRenew => Call::RefundRenew(boxed(text)?),
        Action::Upgrade => Call::Upgrade(boxed(text)?),
        Action::Expire => Call::Expire(boxed(text)?),
        Action::Release => Call::Release(boxed(text)?),
        Action::SignOn => Call::SignOn(boxed(text)?),
        Action::Payment => Call::Payment(boxed(text)?),
        Action::Query | Action::Other => {
            let mut call: Box<OtherCall> = boxed(text)?;
            call.body = body.map(|raw| Json::read(raw.get().as_bytes())).transpose()?.map(exact);
            Call::Other(call)
        }
    })
}

/// Converts a value without a loss. A number that would be written with other digits becomes a text.
fn exact(json: Json) -> serde_json::Value {
    use serde_json::{Number, Value};
    match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(flag),
        Json::Text(text) => Value::String(text),
        Json::List(list) => Value::Array(list.into_iter().map(exact).collect()),
        Json::Object(members) => {
            Value::Object(members.into_iter().map(|(name, value)| (name, exact(value))).collect())
        }
        Json::Number(digits) => {
            let whole = digits.parse::<u64>().map(Number::from);
            let whole = whole.or_else(|_| digits.parse::<i64>().map(Number::from)).ok();
            // `str::parse` rounds correctly; the reader of `serde_json` may be off by one digit.
            let number = whole.or_else(|| digits.parse::<f64>().ok().and_then(Number::from_f64));
            match number {
                Some(number) if number.to_string() == digits => Value::Number(number),
                _ => Value::String(digits),
            }
        }
    }
}

fn unread(error: &serde_json::Error) -> UnreadableCall {
    if error.is_data() {
        return UnreadableCall::NotACall;
    }
    UnreadableCall::NotJson { line: error.line(), column: error.column() }
}

/// Returns the message of an error without values of the call: buyers choose them. Names are in backticks.
fn fault_of(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match (message.find('"'), message.rfind('"')) {
        (Some(from), Some(to)) if from < to => {
            let (head, tail) = (message.get(..from), message.get(to + 1..));
            format!("{}…{}", head.unwrap_or_default(), tail.unwrap_or_default())
        }
        _ => message,
    }
}

/// Shortens a word of the call for an error.
fn shown(word: &str) -> String {
    let short: String = word.chars().take(SHOWN_MAX_CHARS).collect();
    let more = if short.len() < word.len() { "…" } else { "" };
    format!("{}{more}", plain(&short))
}

/// Reads a call as [`Call::read`] does. It works with the deserializers of `serde_json` only, because the call is read
/// from its raw text.
impl<'de> Deserialize<'de> for Call {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Call, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Call::read(raw.get().as_bytes()).map_err(D::Error::custom)
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

    fn kept(call: &Call) {
        let text = serde_json::to_string(call).unwrap();
        assert_eq!(Call::read(text.as_bytes()).as_ref(), Ok(call), "{text}");
        assert_eq!(serde_json::from_str::<Call>(&text).unwrap(), *call);
        assert_eq!(&serde_json::from_value::<Call>(serde_json::to_value(call).unwrap()).unwrap(), call);
        assert_eq!(serde_json::to_string(&Call::read(text.as_bytes()).unwrap()).unwrap(), text);
    }

    #[test]
    fn every_action_is_read_as_it_was_written() {
        for action in Action::ALL {
            kept(&a_call(&Callback::new(action, "x"), Some(&an_instance())));
            kept(&a_call(
                &sent(action, "2026-06-01T00:00:00Z"),
                Some(&Instance { id: None, ..an_instance() }),
            ));
        }
        kept(&a_call(&Callback::new(Action::Payment, "x"), None));
        kept(&a_call(&Callback::new(Action::Other, "x"), None));
    }

    #[test]
    fn unknown_members_are_ignored_and_an_unknown_version_is_its_own_error() {
        let call = a_call(&sent(Action::Create, "2026-06-01T00:00:00Z"), Some(&an_instance()));
        let mut value = json(&call);
        value["later"] = json!({"a": [1.5]});
        value["instance"]["later"] = json!("x");
        let read = |value: &Value| Call::read(value.to_string().as_bytes());
        assert_eq!(read(&value), Ok(call));
        value["schema"] = json!("spid.hook/2");
        value["instance"] = json!("the version comes first");
        assert_eq!(read(&value), Err(UnreadableCall::Schema("spid.hook/2".into())));
        value["schema"] = json!(SCHEMA);
        value["action"] = json!("\u{1b}teleport");
        assert_eq!(read(&value), Err(UnreadableCall::Action("\\u{1b}teleport".into())));
    }

    #[test]
    fn an_error_names_the_fault_and_no_value() {
        let mut value = json(&a_call(&Callback::new(Action::Expire, "x"), Some(&an_instance())));
        value["attempt"] = json!("fake \"canary\"");
        let error = Call::read(value.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("the expire call cannot be read") && !error.contains("canary"), "{error}");
        value.as_object_mut().unwrap().remove("attempt");
        let error = Call::read(value.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("missing field `attempt`"), "{error}");
        assert_eq!(Call::read(b"{"), Err(UnreadableCall::NotJson { line: 1, column: 1 }));
        assert_eq!(Call::read(b"[1]"), Err(UnreadableCall::NotACall));
        assert_eq!(Call::read(br#"{"action": "create"}"#), Err(UnreadableCall::NotACall));
    }

    #[test]
    fn numbers_of_a_body_keep_their_digits() {
        let call = a_call(&Callback::new(Action::Other, "x"), None);
        let body = |text: &str| {
            let mut json = serde_json::to_string(&call).unwrap();
            json.insert_str(json.len() - 1, &format!(r#","body":{text}"#));
            let Call::Other(call) = Call::read(json.as_bytes()).unwrap() else { panic!("not another") };
            call.body.unwrap()
        };
        for same in ["0", "-7", "18446744073709551615", "0.1", "2.5e-7", "[1.5,{\"a\":null}]", "null"] {
            assert_eq!(body(same).to_string(), same);
        }
        for text in ["202611300000000000000001", "1.50", "0.30000000000000004000"] {
            assert_eq!(body(&format!("[{text}]")), json!([text]));
        }
    }

    mod round_trip {
        use proptest::prelude::*;

        use super::*;

        fn text() -> impl Strategy<Value = String> {
            prop_oneof!["[a-z0-9-]{0,12}", any::<String>()]
        }

        fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
            prop::collection::btree_map(text(), text(), 0..4)
        }

        fn instant() -> impl Strategy<Value = Timestamp> {
            (-62_135_596_800_000_i64..253_402_000_000_000)
                .prop_map(|millis| Timestamp::from_millisecond(millis).unwrap())
        }

        fn body() -> impl Strategy<Value = Value> {
            let leaf = prop_oneof![
                Just(Value::Null),
                any::<bool>().prop_map(Value::from),
                any::<i64>().prop_map(Value::from),
                any::<u64>().prop_map(Value::from),
                prop::num::f64::NORMAL.prop_map(Value::from),
                text().prop_map(Value::from),
            ];
            leaf.prop_recursive(3, 16, 4, |inner| {
                prop_oneof![
                    prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                    prop::collection::btree_map(text(), inner, 0..4)
                        .prop_map(|members| Value::Object(members.into_iter().collect())),
                ]
            })
        }

        prop_compose! {
            fn instance()(
                names in prop::array::uniform7(prop::option::of(text())),
                plain in prop::array::uniform2(text()),
                flags in prop::array::uniform4(any::<bool>()),
                state in prop::sample::select(State::ALL.to_vec()),
                trial in any::<Option<bool>>(),
                ends in prop::array::uniform2(prop::option::of(instant())),
                times in prop::array::uniform2(instant()),
                raw in prop::option::of(text()),
                items in texts(),
            ) -> Instance {
                let [id, order_biz_id, buyer, product, sku, order_id, tenant] = names;
                let ([account, endpoint], [began, tombstone, adopted, converted]) = (plain, flags);
                let ([expires_on, claimed_at], [created_at, updated_at]) = (ends, times);
                Instance {
                    id, order_biz_id, state, account, endpoint, buyer, product, sku, order_id, trial, expires_on,
                    expires_on_raw: raw, items, began, tombstone, adopted, converted, claimed_at, tenant, created_at,
                    updated_at,
                }
            }
        }

        prop_compose! {
            fn callback()(
                action in prop::sample::select(Action::ALL.to_vec()),
                action_name in text(),
                names in prop::array::uniform5(prop::option::of(text())),
                flags in prop::array::uniform2(any::<Option<bool>>()),
                ends in prop::option::of((text(), prop::option::of(instant()))),
                items in texts(),
                parameters in texts(),
                order in prop::option::of(texts()),
                body in prop::option::of(body()),
            ) -> Callback {
                let ([order_id, request_id, buyer, product, sku], [trial, refund]) = (names, flags);
                Callback {
                    order_id, request_id, buyer, product, sku, trial, refund, items, body,
                    expires_on: ends.map(|(raw, at)| Expiry { raw, at }),
                    parameters: parameters.into_iter().collect(),
                    order_details: order.map(|order| order.into_iter().collect()),
                    ..Callback::new(action, action_name)
                }
            }
        }

        proptest! {
            #[test]
            fn every_call_survives_its_json(
                callback in callback(),
                instance in instance(),
                words in prop::array::uniform3(text()),
                euid in prop::option::of(text()),
                attempt in any::<u32>(),
                times in prop::array::uniform2(instant()),
                with_key in any::<bool>(),
            ) {
                let [account, endpoint, key] = &words;
                let key = if with_key { "01890a5d-ac96-774b-bcce-b302099a8057" } else { key.as_str() };
                let free = matches!(callback.action, Action::Payment | Action::Query | Action::Other);
                let instance = Some(&instance).filter(|instance| !(free && instance.began));
                let call = Call::new(CallFacts {
                    callback: &callback, instance, idempotency_key: key.to_owned(), attempt, deadline: times[0],
                    received_at: times[1], account, endpoint, dashscope_euid: euid,
                }).unwrap();
                kept_in_text(&call);
            }
        }

        /// A value of `serde_json` reads floats less exactly, so only the text is compared here.
        fn kept_in_text(call: &Call) {
            let text = serde_json::to_string(call).unwrap();
            assert_eq!(Call::read(text.as_bytes()).as_ref(), Ok(call), "{text}");
        }
    }
}

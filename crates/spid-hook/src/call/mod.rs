//! Calls to a hook: one type per action, built from the callback and the instance.
//!
//! The JSON of a [`Call`] is the contract of the `exec` and `http` hooks, described in `docs/hooks.md`. New
//! members may be added to it. A change of meaning changes [`SCHEMA`].
//!
//! The JSON Schema of the contract takes its descriptions from the doc comments of these types.

mod build;
mod json;

use std::collections::BTreeMap;

use jiff::Timestamp;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::callback::{Action, Expiry, Parameters};
use crate::instance::Instance;

pub use build::{CallFacts, NoInstance, Subject};
pub use json::UnreadableCall;

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
    /// Details of the order beside the parameters, in the marketplace's own words (KooGallery): the answer of the order
    /// lookup, or values that the marketplace sent encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Parameters>,
    /// For a product that calls Alibaba's Model Studio: the value of the header `x-dashscope-euid`. Send it
    /// with each call to Model Studio, so that the call counts for this product and this buyer. `None` for
    /// other marketplaces, and if the product or the buyer is unknown.
    pub dashscope_euid: Option<String>,
    /// The position of this attempt in the trace of its job, in the format of W3C Trace Context. Pass it on to
    /// the services you call, so that your logs and traces can be assigned to this attempt. spid always sets it; it is
    /// `None` only in tests.
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
    /// End of the term: the text as it was sent (`raw`) and the instant (`at`), which is absent if the text is
    /// unreadable.
    pub expires_on: Option<Expiry>,
    /// The billed quantities beside the SKU, by name: for example `seats` with the value `5`.
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

/// Handle a request that the dialect passes on without interpreting it, for example `createIdaas` of Alibaba or the
/// directory messages of KooGallery.
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
    /// The request as a structure, for requests whose parameters hold lists in texts (KooGallery).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
}

/// An invocation of a hook.
///
/// To test one method of a hook, let [`testing::call`](crate::testing::call) make the call and change its members:
///
/// ```
/// # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
/// # struct MyHook;
/// # impl ProvisioningHook for MyHook {
/// #     async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new().id("tenant-1")) }
/// #     async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
/// #     async fn expire(&self, _: ExpireCall) -> Result<(), HookError> { Ok(()) }
/// #     async fn release(&self, _: ReleaseCall) -> Result<(), HookError> { Ok(()) }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), HookError> {
/// use spid_hook::{Action, Call, testing};
///
/// let Call::Create(mut call) = testing::call(Action::Create) else { unreachable!() };
/// call.sku = Some("enterprise".to_owned());
/// call.items.insert("seats".to_owned(), "9".to_owned());
/// let made = MyHook.create(*call).await?;
/// assert_eq!(made, Provisioned::new().id("tenant-1"));
/// # Ok(())
/// # }
/// ```
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

impl Call {
    /// Builds the call for a callback and its instance. Only spid does this; tests use
    /// [`testing::call`](crate::testing::call).
    ///
    /// # Errors
    /// [`NoInstance`] if there is no instance, for every action except payment, query and other.
    #[doc(hidden)]
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

    /// Returns the instance, as the jobs that are done have left it, if there is one.
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

    /// Returns the values by which the call is routed; `spid route` shows the route. They equal [`Subject::new`] of the
    /// facts from which the call was built.
    #[doc(hidden)]
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

#[cfg(test)]
pub(crate) mod tests;

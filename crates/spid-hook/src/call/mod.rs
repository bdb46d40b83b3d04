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
use serde::{Deserialize, Serialize, Serializer};

use crate::callback::{Action, Expiry, Parameters};
use crate::instance::Instance;

pub use build::{CallFacts, NoInstance, Subject};
use json::Flat;
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

/// A billed quantity before and after an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Change {
    /// Previous value; `None` if the quantity is new.
    pub from: Option<String>,
    /// New value; `None` if the quantity is removed.
    pub to: Option<String>,
}

/// Defines the type of each action's call, and [`Call`] of them all.
macro_rules! calls {
    (
        $(#[$about:meta])*
        enum Call;
        $($(#[$note:meta])* $action:ident($call:ident) { $($(#[$what:meta])* $member:ident: $type:ty,)+ })+
    ) => {
        $(
            $(#[$note])*
            #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
            #[cfg_attr(feature = "schema", derive(JsonSchema))]
            #[non_exhaustive]
            pub struct $call {
                /// Members of every call.
                #[serde(flatten)]
                pub context: Context,
                $($(#[$what])* pub $member: $type,)+
            }
        )+

        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Call {
            $($(#[$note])* $action(Box<$call>),)+
        }

        impl Call {
            /// Returns the action.
            pub fn action(&self) -> Action {
                match self { $(Call::$action(_) => Action::$action,)+ }
            }

            /// Returns the members of every call.
            pub fn context(&self) -> &Context {
                match self { $(Call::$action(call) => &call.context,)+ }
            }

            /// Returns the instance, as the jobs that are done have left it, if there is one.
            pub fn instance(&self) -> Option<&Instance> {
                match self { $(Call::$action(call) => Option::from(&call.instance),)+ }
            }

            /// Writes the call's own members behind those that all calls have.
            fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let (schema, action) = (SCHEMA, self.action());
                match self { $(Call::$action(call) => Flat { schema, action, call }.serialize(serializer),)+ }
            }
        }
    };
}

calls! {
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
    enum Call;

    /// Create the instance that was bought.
    Create(CreateCall) {
        /// The instance to create: pending, without an id.
        instance: Instance,
        /// The buyer's account at the marketplace.
        buyer: Option<String>,
        /// The product sold.
        product: Option<String>,
        /// The SKU sold.
        sku: Option<String>,
        /// True for a trial; `None` if the marketplace did not say.
        trial: Option<bool>,
        /// End of the term: the text as it was sent (`raw`) and the instant (`at`), which is absent if the text is
        /// unreadable.
        expires_on: Option<Expiry>,
        /// The billed quantities beside the SKU, by name: for example `seats` with the value `5`.
        items: BTreeMap<String, String>,
    }
    /// Extend the term.
    Renew(RenewCall) {
        /// The instance before the renewal.
        instance: Instance,
        /// New end of the term. Never earlier than before: a renewal that arrives late does not shorten the term
        /// that a later renewal gave.
        expires_on: Option<Timestamp>,
        /// The expiry as this callback sent it. It may be earlier than `expires_on`.
        expires_on_raw: Option<String>,
        /// Previous end of the term.
        previous_expires_on: Option<Timestamp>,
        /// True if the instance is frozen and this renewal unfreezes it.
        thaws: bool,
    }
    /// Reverse a renewal.
    RefundRenew(RefundRenewCall) {
        /// The instance before the refund.
        instance: Instance,
        /// New end of the term; earlier than before.
        expires_on: Option<Timestamp>,
        /// The expiry as this callback sent it.
        expires_on_raw: Option<String>,
        /// Previous end of the term.
        previous_expires_on: Option<Timestamp>,
    }
    /// Change the SKU or the billed quantities.
    Upgrade(UpgradeCall) {
        /// The instance before the upgrade.
        instance: Instance,
        /// The SKU from now on.
        sku: Option<String>,
        /// The SKU before.
        previous_sku: Option<String>,
        /// All billed quantities from now on: the previous ones, with the changes of this callback.
        items: BTreeMap<String, String>,
        /// All billed quantities before.
        previous_items: BTreeMap<String, String>,
        /// The quantities that differ.
        changes: BTreeMap<String, Change>,
    }
    /// Stop the use and keep the data.
    Expire(ExpireCall) {
        /// The instance to freeze.
        instance: Instance,
    }
    /// Delete everything permanently.
    Release(ReleaseCall) {
        /// The instance to delete.
        instance: Instance,
        /// True if the buyer got the money back; `None` if the marketplace did not say, which does not mean "no".
        refund: Option<bool>,
        /// True if a create began and never finished. Something may exist under the create's `order_biz_id`, or
        /// nothing. Delete what exists, and succeed if nothing does.
        maybe_provisioned: bool,
    }
    /// Let a buyer's browser sign on.
    SignOn(SignOnCall) {
        /// The instance to sign on to. It may be frozen; the hook decides if a frozen instance may be used.
        instance: Instance,
    }
    /// Take note that an order was paid.
    Payment(PaymentCall) {
        /// The instance that was paid for, if it is known.
        instance: Option<Instance>,
        /// The marketplace's id of the message.
        request_id: Option<String>,
        /// The buyer's account at the marketplace.
        buyer: Option<String>,
        /// The product that was paid for.
        product: Option<String>,
        /// The SKU that was paid for.
        sku: Option<String>,
    }
    /// Handle a request that the dialect passes on without interpreting it, for example `createIdaas` of Alibaba or the
    /// directory messages of KooGallery.
    Other(OtherCall) {
        /// The instance of the request, if it is known.
        instance: Option<Instance>,
        /// The buyer's account at the marketplace.
        buyer: Option<String>,
        /// The product of the request.
        product: Option<String>,
        /// The SKU of the request.
        sku: Option<String>,
        /// The request as a structure, for requests whose parameters hold lists in texts (KooGallery).
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<serde_json::Value>,
    }
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

//! Construction of a call from a callback and the instance.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    Change, Context, CreateCall, OtherCall, PaymentCall, RefundRenewCall, ReleaseCall, RenewCall, UpgradeCall,
};
use crate::callback::{Action, Callback};
use crate::instance::{Instance, State};
use crate::trace::TraceContext;

/// Facts from which a [`Call`](super::Call) is built.
#[derive(Debug, Clone)]
pub struct CallFacts<'a> {
    /// The callback.
    pub callback: &'a Callback,
    /// The instance, as the jobs that are done have left it.
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

    pub(super) fn of(endpoint: &'a str, instance: &'a Instance) -> Subject<'a> {
        Subject {
            endpoint,
            product: instance.product.as_deref(),
            sku: instance.sku.as_deref(),
            buyer: instance.buyer.as_deref(),
        }
    }
}

impl Context {
    pub(super) fn new(facts: &CallFacts<'_>) -> Context {
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
    pub(super) fn new(context: Context, instance: Instance, callback: &Callback) -> CreateCall {
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
    pub(super) fn new(context: Context, instance: Instance, callback: &Callback) -> RenewCall {
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
    pub(super) fn new(context: Context, instance: Instance, callback: &Callback) -> RefundRenewCall {
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
    pub(super) fn new(context: Context, instance: Instance, callback: &Callback) -> UpgradeCall {
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
    let mut changes = BTreeMap::new();
    // The names of both sides, because a quantity can be new or removed.
    for name in from.keys().chain(to.keys()) {
        if from.get(name) != to.get(name) {
            let change = Change { from: from.get(name).cloned(), to: to.get(name).cloned() };
            changes.insert(name.clone(), change);
        }
    }
    changes
}

impl ReleaseCall {
    pub(super) fn new(context: Context, instance: Instance, callback: &Callback) -> ReleaseCall {
        // An attempt may have created something, and its id was never learned.
        let maybe_provisioned = instance.began && instance.id.is_none();
        ReleaseCall { context, instance, refund: callback.refund, maybe_provisioned }
    }
}

impl PaymentCall {
    pub(super) fn new(context: Context, instance: Option<Instance>, callback: &Callback) -> PaymentCall {
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
    pub(super) fn new(context: Context, instance: Option<Instance>, callback: &Callback) -> OtherCall {
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

//! A sold instance, and the effect that a carried-out callback has on it.

use std::collections::BTreeMap;

use jiff::Timestamp;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::callback::{Action, Callback};
use crate::{limits, text};

crate::words! {
    /// State of an instance after the last job that is done. Queued jobs may change it.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    #[cfg_attr(feature = "schema", derive(JsonSchema))]
    #[serde(rename_all = "kebab-case")]
    pub enum State {
        /// Bought, but not provisioned yet.
        #[default]
        Pending = "pending",
        /// In use.
        Active = "active",
        /// Expired or in arrears: data is kept, use is blocked.
        Frozen = "frozen",
        /// Released for good. No action changes it again.
        Released = "released",
    }
}

/// A sold instance, as far as its callbacks are applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Instance {
    /// The id that the hook chose, or the marketplace's `order_biz_id`; `None` until the create hook has finished.
    /// KooGallery knows the instance by an id of its own.
    pub id: Option<String>,
    /// The marketplace's own id of the sold item.
    pub order_biz_id: Option<String>,
    /// Applied state.
    pub state: State,
    /// Account of the seller that the instance belongs to.
    pub account: String,
    /// Endpoint of the first callback.
    pub endpoint: String,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The product sold.
    pub product: Option<String>,
    /// The SKU in force.
    pub sku: Option<String>,
    /// The order that created the instance.
    pub order_id: Option<String>,
    /// True for a trial; `None` if the marketplace did not say.
    pub trial: Option<bool>,
    /// End of the term; `None` if there is no end or the date could not be read.
    pub expires_on: Option<Timestamp>,
    /// The expiry as it was last sent.
    pub expires_on_raw: Option<String>,
    /// The billed quantities in force.
    pub items: BTreeMap<String, String>,
    /// True if an attempt to create it ever began, so the seller may have something to clean up. A hook reads
    /// `maybe_provisioned` of the release instead.
    pub began: bool,
    /// True if its release came before any callback that would have created it. A hook does not need it.
    pub tombstone: bool,
    /// True if spid did not create it but took it over (`adopt`, `import`), so that the hook may not know it.
    pub adopted: bool,
    /// True once a trial has been bought for good. A late notice that the trial ended must not freeze the instance.
    /// A hook does not need it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub converted: bool,
    /// Time of the buyer's claim, as the seller's system reported it; `None` until then. It affects no decision here,
    /// but the hook gets it.
    pub claimed_at: Option<Timestamp>,
    /// The claiming party in the seller's words, for example the name of a tenant.
    pub tenant: Option<String>,
    /// Time of the first callback.
    pub created_at: Timestamp,
    /// Time of the creation, or of the last change that was carried out. A request that was only accepted does not count,
    /// nor does a claim, which is an act of the buyer.
    pub updated_at: Timestamp,
}

impl Instance {
    /// Creates the record for a create or a tombstone: pending, nothing applied.
    pub fn pending(callback: &Callback, account: &str, endpoint: &str, now: Timestamp) -> Instance {
        let mut instance = Instance {
            order_biz_id: callback.subject.order_biz_id.clone().filter(|name| !name.is_empty()),
            account: account.to_owned(),
            endpoint: endpoint.to_owned(),
            created_at: now,
            updated_at: now,
            ..Instance::default()
        };
        instance.describe(callback);
        instance
    }

    /// Creates the record for an externally provisioned instance: active, and the request of the callback is not
    /// applied yet.
    pub fn adopted(callback: &Callback, account: &str, endpoint: &str, now: Timestamp) -> Instance {
        // The SKU of an upgrade is the new one, so it is not in force yet.
        let sku = callback.sku.clone().filter(|_| callback.action != Action::Upgrade);
        Instance {
            id: callback.subject.names().next().map(str::to_owned),
            state: State::Active,
            sku,
            order_id: None,
            expires_on: None,
            expires_on_raw: None,
            items: BTreeMap::new(),
            adopted: true,
            ..Instance::pending(callback, account, endpoint, now)
        }
    }

    /// Sets all values that a create describes.
    pub fn describe(&mut self, callback: &Callback) {
        self.buyer = callback.buyer.clone();
        self.product = callback.product.clone();
        self.sku = callback.sku.clone();
        self.order_id = callback.order_id.clone();
        self.trial = callback.trial;
        self.expires_on = callback.expires_on.as_ref().and_then(|expiry| expiry.at);
        self.expires_on_raw = callback.expires_on.as_ref().map(|expiry| expiry.raw.clone());
        self.items = callback.items.clone();
    }

    /// Applies a callback that the hook carried out. A released instance never changes again.
    pub fn apply(&mut self, callback: &Callback, now: Timestamp) {
        let before = self.expires_on;
        self.effect(callback.action, &RequestedValues::of(callback));
        if self.expires_on != before {
            self.expires_on_raw = callback.expires_on.as_ref().map(|expiry| expiry.raw.clone());
        }
        self.updated_at = now;
    }

    /// Applies the effect of an action.
    pub fn effect(&mut self, action: Action, wants: &RequestedValues) {
        if self.state == State::Released {
            return;
        }
        match action {
            Action::Create => self.state = State::Active,
            Action::Renew => {
                self.state = State::Active;
                // A trial that is paid for is no trial any more, and the end of the trial is not the end of the
                // purchase.
                let converts = wants.converts || self.trial != Some(false) && wants.trial == Some(false);
                self.converted |= converts;
                self.trial = wants.trial.or(self.trial);
                self.expires_on = match wants.expires_on {
                    None if converts => None,
                    // A renewal never shortens the term: only a refund may.
                    until => self.expires_on.max(until),
                };
            }
            Action::RefundRenew => self.expires_on = wants.expires_on.or(self.expires_on),
            // Values that an upgrade does not name stay in force.
            Action::Upgrade => {
                self.sku = wants.sku.clone().or_else(|| self.sku.take());
                self.items.extend(wants.items.clone());
            }
            Action::Expire => self.state = State::Frozen,
            Action::Release => self.state = State::Released,
            Action::SignOn | Action::Payment | Action::Query | Action::Other => {}
        }
    }

    /// Returns true if the text is part of a name, the buyer, the order, the product or the SKU. ASCII letters match in
    /// either case.
    pub fn is_found_by(&self, text: &str) -> bool {
        let wanted = text.to_ascii_lowercase();
        [&self.id, &self.order_biz_id, &self.buyer, &self.order_id, &self.product, &self.sku]
            .into_iter()
            .flatten()
            .any(|word| word.to_ascii_lowercase().contains(&wanted))
    }

    /// Returns true if the callback names another SKU or other quantities than those in force.
    pub fn differs_from(&self, callback: &Callback) -> bool {
        let wants = RequestedValues::of(callback);
        wants.says_what_changes() && !self.has(&wants)
    }

    /// Returns true if the upgrade asks for values that are already in force. An upgrade without values never does,
    /// because its values must be looked up at the marketplace.
    pub fn has(&self, wants: &RequestedValues) -> bool {
        if !wants.says_what_changes() {
            return false;
        }
        let same_sku = wants.sku.is_none() || wants.sku == self.sku;
        same_sku && wants.items.iter().all(|(name, value)| self.items.get(name) == Some(value))
    }
}

/// The values that an action sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestedValues {
    /// The new expiry.
    pub expires_on: Option<Timestamp>,
    /// The new SKU.
    pub sku: Option<String>,
    /// The new billed quantities.
    pub items: BTreeMap<String, String>,
    /// The trial flag from now on.
    pub trial: Option<bool>,
    /// True if the action buys for good an instance that was a trial or another purchase.
    pub converts: bool,
}

impl RequestedValues {
    /// Returns true if the action names a SKU or quantities.
    pub fn says_what_changes(&self) -> bool {
        self.sku.is_some() || !self.items.is_empty()
    }

    /// Returns the values that this callback sets.
    pub fn of(callback: &Callback) -> RequestedValues {
        RequestedValues {
            expires_on: callback.expires_on.as_ref().and_then(|expiry| expiry.at),
            sku: callback.sku.clone(),
            items: callback.items.clone(),
            trial: callback.trial,
            converts: callback.converts,
        }
    }
}

/// Returns the reason why an id from a hook or an operator cannot be the id of an instance.
pub fn fault_of_id(id: &str) -> Option<String> {
    fault_of_any_id(id).or_else(|| text::fault_of_name(id))
}

/// Returns the reason why an id cannot be the id of an instance. It also applies to the marketplace's ids.
pub fn fault_of_any_id(id: &str) -> Option<String> {
    if id.trim().is_empty() {
        return Some("the value is empty".to_owned());
    }
    if id == "0" {
        return Some("`0` tells a marketplace that there is no id yet".to_owned());
    }
    let most = limits::NAME_MAX_BYTES;
    (id.len() > most).then(|| format!("the value is longer than {most} bytes"))
}

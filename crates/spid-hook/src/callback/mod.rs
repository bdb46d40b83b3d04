//! Neutral types shared by all modules: the request of a marketplace and the possible answers, in no dialect.
//!
//! A dialect turns a verified request into a [`Callback`], and an [`Outcome`] into a reply. Between the two, no module
//! depends on the marketplace.

mod action;
mod answer;
mod outcome;

use std::collections::BTreeMap;

use jiff::Timestamp;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use action::Action;
pub use answer::{Answer, Field, Fields, SECRET_FIELDS, SplitAnswer};
pub use outcome::Outcome;

/// The signed parameters of one request, decoded, sorted by name, each name once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(transparent)]
pub struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Value of `name`; `None` if it was not sent. An empty value is `Some("")`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Value of `name`; `None` if it was not sent or is empty.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// All parameters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, String)> for Parameters {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Parameters {
        Parameters(pairs.into_iter().collect())
    }
}

/// Names by which a callback refers to its instance. Either may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRef {
    /// The id that the hook gave the instance, or the default id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// The marketplace's own id of the sold item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_biz_id: Option<String>,
}

impl InstanceRef {
    /// Usable names: not missing, not empty, and not the `0` that means "not ready".
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [self.instance_id.as_deref(), self.order_biz_id.as_deref()]
            .into_iter()
            .flatten()
            .filter(|name| !name.is_empty() && *name != "0")
    }
}

/// An expiry: the text as it was sent, and the instant read from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Expiry {
    /// The text as it was sent.
    pub raw: String,
    /// The instant; `None` if the text is not a readable date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Validation issues, for which a verified callback must wait for an operator before it is decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "doubt", rename_all = "kebab-case")]
pub enum ValidationIssue {
    /// The value of this parameter holds an `&`, behind which another parameter may be hidden. The signature would be
    /// the same.
    #[error("the value of `{name}` holds an `&` behind which another signed parameter may be hidden")]
    AmbiguousValue {
        /// Name of the parameter.
        name: String,
    },
    /// A date that the action requires is missing or unreadable.
    #[error("`{name}` is missing or cannot be read as a date, and the action depends on it")]
    UnreadableDate {
        /// Name of the parameter.
        name: String,
    },
    /// The dialect does not know the action.
    #[error("the dialect does not know this action")]
    UnknownAction,
    /// A parameter that the action requires is missing.
    #[error("`{name}` is missing or empty")]
    MissingParameter {
        /// Name of the parameter.
        name: String,
    },
    /// The value of a parameter is not among those that the marketplace documents.
    #[error("`{name}` has a value that is not documented")]
    UnknownValue {
        /// Name of the parameter.
        name: String,
    },
    /// A payment of the same order was kept under another request id. It is not documented that both ids are the same.
    #[error("a payment of this order was kept under another request id, and this may be the same payment")]
    MaybeSamePayment,
}

/// Nonce of a request. A marketplace that retries uses a new nonce, so a second request with the same nonce is a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce {
    /// The nonce as it was sent.
    pub nonce: String,
    /// End of the time in which a copy would still pass the check of its date.
    pub until: Timestamp,
}

/// A verified request of a marketplace, in no dialect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// Version of the stored body. A spid that reads a higher version than its own leaves the callback to the newer
    /// spid that wrote it.
    #[serde(default = "first_version", skip_serializing_if = "is_first_version")]
    pub version: u32,
    /// The action that the callback asks for.
    pub action: Action,
    /// The action as the marketplace spells it.
    pub action_name: String,
    /// Names of the instance.
    #[serde(default)]
    pub subject: InstanceRef,
    /// The marketplace's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<String>,
    /// The marketplace's id of this message, if it sends one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The buyer's account at the marketplace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buyer: Option<String>,
    /// The product sold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// The SKU sold, or the new SKU of an upgrade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    /// True for a trial; `None` if the marketplace did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<bool>,
    /// The new expiry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_on: Option<Expiry>,
    /// True if the release follows a refund; `None` if the marketplace did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<bool>,
    /// The billed quantities besides the SKU, as the seller defined them when publishing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub items: BTreeMap<String, String>,
    /// Time at which the marketplace says it sent the request, for dated requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// The id that the marketplace chose for the instance of a create, if it chooses ids itself. The id of the hook is
    /// then internal to the seller.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "public_id")]
    pub marketplace_instance_id: Option<String>,
    /// True for a test call of the marketplace, which must have no effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test: bool,
    /// Name of the dialect of the request. With it the order can still be looked up after its endpoint is gone. `None`
    /// for callbacks that an older spid stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
    /// True if the marketplace provisions such instances itself, so that an unknown instance is no error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not", rename = "made_elsewhere")]
    pub externally_provisioned: bool,
    /// True if the request carries an id of the marketplace's own that is new for each order. A repeat of it then asks
    /// "has this order been carried out?". Without such an id, two different events read alike, and a repeat can only
    /// ask "is it so?". The dialect decides; see [`Callback::ordering`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ordered: bool,
    /// Further actions that the same request asks for, after [`action`](Callback::action): for example a renewal that
    /// also changes the product. Each has its own job; the request is answered once all of them are done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Action>,
    /// True for the part of a create that is a renewal: a trial, or an earlier purchase, is now bought for good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub converts: bool,
    /// Nonce of the request, for marketplaces that send one.
    #[serde(skip)]
    pub nonce: Option<Nonce>,
    /// Order details beyond the parameters: the answer of an order lookup, or decrypted fields of the request.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "learned")]
    pub order_details: Option<Parameters>,
    /// The request as JSON, if its parameters hold lists as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
    /// Every signed parameter.
    #[serde(default)]
    pub parameters: Parameters,
    /// Validation issues, for which the callback must wait for an operator; empty for almost every callback.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "doubts")]
    pub issues: Vec<ValidationIssue>,
    /// Time at which most of the content was deleted; see [`Callback::forgotten`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned_at: Option<Timestamp>,
}

const fn first_version() -> u32 {
    1
}

const fn is_first_version(version: &u32) -> bool {
    *version == first_version()
}

impl Callback {
    /// Current version of the stored body. Raise it when an older spid would misunderstand the new content.
    pub const VERSION: u32 = 1;

    /// Creates a callback with its action only; a dialect fills in the rest.
    pub fn new(action: Action, action_name: impl Into<String>) -> Callback {
        Callback {
            version: Callback::VERSION,
            action,
            action_name: action_name.into(),
            ..Callback::default()
        }
    }

    /// Marks the callback as ordered if its action is one of `actions` and it names its order.
    ///
    /// `actions` are those for which the marketplace sends a new order id each time. An expire that names the order of
    /// the purchase is not among them.
    #[must_use]
    pub fn ordering(self, actions: &[Action]) -> Callback {
        let is_named = self.order_id.as_deref().is_some_and(|order| !order.is_empty());
        Callback { ordered: is_named && actions.contains(&self.action), ..self }
    }

    /// All actions that the request asks for, in the order in which they are carried out.
    pub fn actions(&self) -> impl Iterator<Item = Action> {
        std::iter::once(self.action).chain(self.also.iter().copied())
    }

    /// Returns the part of the request that `action` is about, as a separate callback.
    ///
    /// A renewal as a part of a create means that a trial was bought for good.
    #[must_use]
    pub fn part(&self, action: Action) -> Callback {
        let mut part = Callback { action, also: Vec::new(), ..self.clone() };
        match action {
            // The new expiry belongs to the renewal in the same request.
            Action::Upgrade if self.action != Action::Upgrade => part.expires_on = None,
            // The product in the request is the one that the other part changes to.
            Action::Renew if !self.also.is_empty() => part.product = None,
            Action::Renew if self.action == Action::Create => {
                part.trial = Some(false);
                part.converts = true;
            }
            _ => {}
        }
        part
    }

    /// Returns the whole request, with the order details that were added to its `part`.
    #[must_use]
    pub fn with_part(self, part: &Callback) -> Callback {
        if self.action == part.action && self.also.is_empty() {
            return part.clone();
        }
        // Members that [`Callback::part`] changes keep the values of the whole request.
        Callback {
            action: self.action,
            also: self.also,
            expires_on: self.expires_on,
            trial: self.trial,
            converts: self.converts,
            product: part.product.clone().or(self.product),
            ..part.clone()
        }
    }

    /// Returns true if a hook would get the same call for both. The date and the nonce of a delivery do not count, nor
    /// do order details that were added later.
    pub fn asks_the_same(&self, other: &Callback) -> bool {
        // The neutral fields contain the order details too, so compare only the content of the request.
        if self.order_details.is_some() || other.order_details.is_some() {
            return (self.action, &self.also, &self.subject, &self.order_id, &self.parameters)
                == (other.action, &other.also, &other.subject, &other.order_id, &other.parameters);
        }
        self.without_delivery() == other.without_delivery()
    }

    /// Returns the callback without everything that may differ between two deliveries of one request.
    fn without_delivery(&self) -> Callback {
        Callback {
            dialect: None,
            sent_at: None,
            nonce: None,
            order_details: None,
            ordered: false,
            pruned_at: None,
            ..self.clone()
        }
    }

    /// Returns the callback without most of its content, for a callback that is old and done. The order and the values
    /// that it set remain. The buyer, and everything else that the marketplace said, is removed.
    pub fn forgotten(&self, now: Timestamp) -> Callback {
        Callback {
            subject: self.subject.clone(),
            order_id: self.order_id.clone(),
            product: self.product.clone(),
            sku: self.sku.clone(),
            trial: self.trial,
            expires_on: self.expires_on.clone(),
            refund: self.refund,
            ordered: self.ordered,
            also: self.also.clone(),
            pruned_at: Some(now),
            ..Callback::new(self.action, self.action_name.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_empty_name_no_instance() {
        let subject = InstanceRef { instance_id: Some("0".into()), order_biz_id: Some(String::new()) };
        assert_eq!(subject.names().count(), 0);
    }
}

//! Instances as JSON lines: the format that `instances export --as lines` writes and `instances import` reads.
//!
//! Each line is one object with the instance itself: its names, its present state, and the orders that were carried
//! out for it. The format leaves out the history: callbacks, jobs and passwords.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::store::{Import, InstanceExport};
use spid_hook::instance::{Instance, State};
use spid_hook::time::read_rfc3339;

/// Line of the file: a single instance.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InstanceLine {
    account: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_biz_id: Option<String>,
    #[serde(rename = "public_id", skip_serializing_if = "Option::is_none")]
    marketplace_instance_id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buyer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sku: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    orders: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trial: Option<bool>,
    #[serde(default, deserialize_with = "read_expiry", skip_serializing_if = "Option::is_none")]
    expires_on: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_on_raw: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    items: BTreeMap<String, String>,
    /// True if an attempt of the create ever began: something may exist at the seller's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    began: Option<bool>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tombstone: bool,
    /// True if the trial was converted into a purchase.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    converted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    claimed_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<Timestamp>,
}

/// Reads an expiry, which may be the latest possible time ("for ever").
fn read_expiry<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let wrong = || D::Error::custom(format!("`{text}` is not an instant, like 2030-01-01T00:00:00Z"));
    read_rfc3339(&text).map(Some).ok_or_else(wrong)
}

impl From<InstanceExport> for InstanceLine {
    fn from(InstanceExport { row, names, orders, .. }: InstanceExport) -> InstanceLine {
        let instance = row.instance;
        InstanceLine {
            account: instance.account,
            id: instance.id,
            order_biz_id: instance.order_biz_id,
            marketplace_instance_id: row.marketplace_instance_id,
            names,
            state: Some(instance.state),
            endpoint: Some(instance.endpoint),
            buyer: instance.buyer,
            product: instance.product,
            sku: instance.sku,
            order_id: instance.order_id,
            orders,
            trial: instance.trial,
            expires_on: instance.expires_on,
            expires_on_raw: instance.expires_on_raw,
            items: instance.items,
            began: Some(instance.began),
            tombstone: instance.tombstone,
            converted: instance.converted,
            claimed_at: instance.claimed_at,
            tenant: instance.tenant,
            created_at: Some(instance.created_at),
            updated_at: Some(instance.updated_at),
        }
    }
}

impl InstanceLine {
    pub(crate) fn is_pending(&self) -> bool {
        self.state == Some(State::Pending)
    }

    /// Converts the line for the store; `origin` is the file and line where it was read.
    pub(crate) fn import(self, origin: String) -> Import {
        // A placeholder: `dated` below tells the import if the line has a date.
        let created_at = self.created_at.unwrap_or(Timestamp::UNIX_EPOCH);
        let instance = Instance {
            id: self.id,
            order_biz_id: self.order_biz_id,
            state: self.state.unwrap_or(State::Active),
            endpoint: self.endpoint.unwrap_or_else(|| self.account.clone()),
            account: self.account,
            buyer: self.buyer,
            product: self.product,
            sku: self.sku,
            order_id: self.order_id,
            trial: self.trial,
            expires_on: self.expires_on,
            expires_on_raw: self.expires_on_raw,
            items: self.items,
            began: self.began.unwrap_or(true),
            tombstone: self.tombstone,
            converted: self.converted,
            // spid did not create the instance and does not know its history, so an early expire of it is held.
            adopted: true,
            claimed_at: self.claimed_at,
            tenant: self.tenant,
            created_at,
            updated_at: self.updated_at.unwrap_or(created_at),
        };
        let (dated, marketplace_instance_id) = (self.created_at.is_some(), self.marketplace_instance_id);
        Import { origin, instance, dated, marketplace_instance_id, names: self.names, orders: self.orders }
    }
}

//! `GET /v1/instances`: what a token may see.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::entitlements::accounts;
use super::{App, AppToken, Refusal, json};
use crate::admin::target::Target;
use crate::net::Response;
use crate::observe::limits;
use crate::store::{Filter, InstanceRow};
use spid_hook::instance::State;

/// An instance.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AppInstance {
    /// Id of the instance, else the name that the marketplace uses.
    instance: Option<String>,
    /// Account of the seller.
    account: String,
    /// State of the instance.
    #[schemars(extend("enum" = ["pending", "active", "frozen", "released"]))]
    state: &'static str,
    /// Product.
    product: Option<String>,
    /// SKU of what was bought.
    plan: Option<String>,
    /// Quantities that were bought, by name.
    items: BTreeMap<String, String>,
    /// Order that made the instance.
    order: Option<String>,
    /// Buyer's account at the marketplace.
    buyer: Option<String>,
    /// Tenant who has claimed the instance.
    tenant: Option<String>,
    /// End of the term.
    expires_on: Option<Timestamp>,
    /// Time of the first callback.
    created_at: Timestamp,
    /// Time of the creation, or of the last change that was carried out.
    updated_at: Timestamp,
}

/// A page of instances, the newest first.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AppInstances {
    instances: Vec<AppInstance>,
    /// Value of `before` for the next page, if there may be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl From<InstanceRow> for AppInstance {
    fn from(row: InstanceRow) -> AppInstance {
        let name = row.name().map(str::to_owned);
        let instance = row.instance;
        AppInstance {
            instance: name,
            account: instance.account,
            state: instance.state.as_str(),
            product: instance.product,
            plan: instance.sku,
            items: instance.items,
            order: instance.order_id,
            buyer: instance.buyer,
            tenant: instance.tenant,
            expires_on: instance.expires_on,
            created_at: instance.created_at,
            updated_at: instance.updated_at,
        }
    }
}

pub(super) async fn list(app: &App, token: &AppToken, target: &Target) -> Result<Response, Refusal> {
    target.only(&["state", "account", "buyer", "tenant", "before", "limit"])?;
    let accounts = accounts(token, target)?;
    let limit = target.limit(limits::LIST_DEFAULT_COUNT)?;
    let state = match target.get("state") {
        None => None,
        Some(word) => Some(State::from_word(word).ok_or_else(|| {
            let text = format!("`{word}` is not a state; use pending, active, frozen or released");
            Refusal::new(400, "bad-request", text)
        })?),
    };
    let filter = Filter {
        state,
        accounts,
        buyer: target.get("buyer").map(str::to_owned),
        tenant: target.get("tenant").map(str::to_owned),
        before: target.before()?,
        limit,
        ..Filter::default()
    };
    let rows = app.read(move |reader| Ok(reader.instances(&filter)?)).await?;
    // A full page may be the last one; the next page is empty then.
    let next = rows.last().filter(|_| rows.len() >= limit).map(|row| row.number.to_string());
    let instances = rows.into_iter().map(AppInstance::from).collect();
    json(200, &AppInstances { instances, next })
}

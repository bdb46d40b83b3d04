//! `[[market]]`: the APIs of marketplaces that spid may call.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::Environment;
use super::keys;
use super::reader::{Table, unknown};
use crate::market_api::client::{MarketClient, MarketOptions, Site};
use crate::market_api::credentials::{Credentials, DefaultChain};
use crate::net::Url;
use crate::observe::limits;
use crate::serve::intake::Endpoint;
use crate::serve::market_jobs::{FailedNotifications, Market};
use spid_core::market_api::Group;
use spid_core::signature::ApiKey;
use spid_hook::time::Clock;

/// Reads all markets. `endpoints` are those that may keep what a market gave up sending.
pub(super) fn markets(root: &Table<'_>, endpoints: &[(String, Endpoint)]) -> Vec<Market> {
    let mut markets: Vec<Market> = Vec::new();
    let mut names = HashSet::new();
    for table in root.tables("market", false) {
        let name = table.required("name");
        if let Some(name) = &name
            && !names.insert(name.clone())
        {
            table.mistake("name", format!("`{name}` is the name of an earlier market"));
        }
        // The keys of stored jobs begin with the name.
        if name.as_ref().is_some_and(|name| name.contains('/')) {
            table.mistake("name", "the name of a market cannot contain `/`");
        }
        let notifications = notifications(&table, endpoints);
        let client = client(&table, name);
        if notifications.is_some() && client.as_ref().is_some_and(|client| client.site() != Site::AlibabaCn) {
            table.mistake("notifications", "only `alibaba-cn` lists the notifications that failed");
        }
        markets.extend(client.map(|client| Market { client, notifications }));
    }
    markets
}

/// Reads the look for failed notifications.
fn notifications(table: &Table<'_>, endpoints: &[(String, Endpoint)]) -> Option<FailedNotifications> {
    if !table.has("notifications") {
        return None;
    }
    let entry = table.table("notifications");
    let every = Duration::from_millis(limits::FAILED_NOTIFICATIONS_MS.unsigned_abs());
    let every = entry.duration("every", every);
    let endpoint = entry.required("endpoint")?;
    let mut known: Vec<&str> = Vec::new();
    for (_, of) in endpoints {
        if of.dialect.name() == "alibaba" {
            known.push(&of.name);
        }
    }
    if !known.contains(&endpoint.as_str()) {
        let hint = unknown(&endpoint, &known);
        entry.mistake("endpoint", format!("`{endpoint}` is no endpoint with the dialect `alibaba`; {hint}"));
        return None;
    }
    Some(FailedNotifications { endpoint, every })
}

fn client(table: &Table<'_>, name: Option<String>) -> Option<MarketClient> {
    let words = Site::ALL.map(|site| (site.as_str(), Some(site)));
    let site = table.choice("api", None, &words);
    if site.is_none() && !table.has("api") {
        table.mistake("api", "the value is missing: use alibaba-cn or alibaba-intl");
    }
    let base_url = table.optional("base_url", |text| text.parse::<Url>().map_err(|error| error.to_string()));
    let credentials = credentials(table, "credentials");
    if credentials.is_none() && !table.has("credentials") {
        table.mistake("credentials", "the value is missing: use \"default\", or an access key");
    }
    let overrides = table.table("credentials_for");
    let mut credentials_for = BTreeMap::new();
    for group in Group::ALL {
        if let Some(own) = self::credentials(&overrides, group.as_str()) {
            credentials_for.insert(group, own);
        }
    }
    let calls_per_minute = table.count("calls_per_minute", limits::MARKET_CALLS_PER_MINUTE);
    let concurrency = table.count("concurrency", limits::MARKET_CALLS_MAX_COUNT);
    Some(MarketClient::new(MarketOptions {
        name: name?,
        site: site?,
        base_url,
        credentials: credentials?,
        credentials_for,
        calls_per_s: calls_per_minute as f64 / 60.0,
        concurrency,
        timeout: Duration::from_millis(limits::MARKET_CALL_MS),
        tls: None,
        clock: Clock::System,
    }))
}

/// Reads credentials: `"default"`, or a table with an access key.
fn credentials(table: &Table<'_>, key: &'static str) -> Option<Credentials> {
    if table.is_text(key) {
        let word = table.text(key)?;
        if word != "default" {
            table.mistake(key, "use \"default\", or a table with `access_key_id` and `access_key_secret`");
            return None;
        }
        let chain = default_chain(table.reader().environment());
        return Some(Credentials::default_chain(chain, Clock::System, None));
    }
    if !table.has(key) {
        return None;
    }
    let entry = table.table(key);
    let id = secret_of(&entry, "access_key_id");
    let secret = secret_of(&entry, "access_key_secret");
    let token = entry.has("security_token").then(|| secret_of(&entry, "security_token"));
    // A source that is wrong has reported its mistake.
    let token = match token {
        None => None,
        Some(None) => return None,
        Some(token) => token,
    };
    let key = ApiKey::new(id?.expose(), secret?, token);
    key.map(Credentials::key).map_err(|wrong| entry.mistake("", wrong.to_string())).ok()
}

fn secret_of(entry: &Table<'_>, member: &'static str) -> Option<spid_hook::Secret> {
    if !entry.has(member) {
        entry.mistake(
            member,
            "the value is missing: give it as { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }",
        );
        return None;
    }
    keys::secret(&entry.table(member)).map(|(_, secret)| secret)
}

/// Places of the vendor's own tools: variables of this process, and files of its user.
fn default_chain(environment: &dyn Environment) -> DefaultChain {
    // The variables are copied, because the chain outlives the reading of the configuration.
    let names = [
        "ALIBABA_CLOUD_ACCESS_KEY_ID",
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
        "ALIBABA_CLOUD_SECURITY_TOKEN",
        "ALIBABA_CLOUD_ROLE_ARN",
        "ALIBABA_CLOUD_ROLE_SESSION_NAME",
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
        "ALIBABA_CLOUD_PROFILE",
        "ALIBABA_CLOUD_CLI_PROFILE_DISABLED",
        "ALIBABA_CLOUD_CREDENTIALS_FILE",
        "ALIBABA_CLOUD_ECS_METADATA",
        "ALIBABA_CLOUD_ECS_METADATA_DISABLED",
        "ALIBABA_CLOUD_IMDSV1_DISABLED",
        "ALIBABA_CLOUD_STS_REGION",
    ];
    let set: BTreeMap<&str, String> =
        names.into_iter().filter_map(|name| Some((name, environment.get(name)?))).collect();
    DefaultChain {
        variables: Arc::new(move |name: &str| set.get(name).cloned()),
        home: environment.get("HOME").filter(|home| !home.is_empty()).map(Into::into),
        metadata: None,
        token_service: None,
    }
}

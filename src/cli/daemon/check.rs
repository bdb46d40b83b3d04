//! `check-config`: checks a configuration and shows what a daemon would do with it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::app::in_process;
use crate::cli::develop::route;
use crate::cli::keys::signatures::{SignatureKey, recorded_uses};
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Inside};
use crate::config::{self, Checked, ProcessEnvironment};
use crate::serve::app::AppToken;
use crate::serve::market_jobs::Market;
use spid_core::market_api::Group;
use spid_core::span::Span;

#[derive(Args)]
pub(crate) struct CheckArguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", env = "SPID_CONFIG")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A configuration without mistakes, as JSON.
#[derive(Serialize)]
struct Report<'a> {
    file: String,
    warnings: &'a [String],
    endpoints: Vec<EndpointLine<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<AppLine<'a>>,
    markets: Vec<MarketLine<'a>>,
    #[serde(flatten)]
    routing: route::Routing<'a>,
}

#[derive(Serialize)]
struct EndpointLine<'a> {
    path: &'a str,
    name: &'a str,
    account: &'a str,
    dialect: &'static str,
    keys: Vec<SignatureKey>,
}

/// Listener for the seller's application.
#[derive(Serialize)]
struct AppLine<'a> {
    listen: SocketAddr,
    tokens: &'a [AppToken],
}

/// API of a marketplace that spid may call.
#[derive(Serialize)]
struct MarketLine<'a> {
    name: &'a str,
    api: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_url: Option<String>,
    /// Groups of operations with credentials of their own.
    credentials_for: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notifications: Option<NotificationsLine<'a>>,
}

/// Look for notifications that the marketplace has given up sending.
#[derive(Serialize)]
struct NotificationsLine<'a> {
    endpoint: &'a str,
    every: String,
}

impl<'a> MarketLine<'a> {
    fn of(market: &'a Market) -> MarketLine<'a> {
        let notifications = market.notifications.as_ref().map(|options| NotificationsLine {
            endpoint: &options.endpoint,
            every: Span(options.every).to_string(),
        });
        let market = &market.client;
        MarketLine {
            name: market.name(),
            api: market.site().as_str(),
            base_url: market.base_url().map(ToString::to_string),
            credentials_for: market.groups_with_credentials().map(Group::as_str).collect(),
            notifications,
        }
    }
}

pub(crate) fn check(arguments: CheckArguments, hook: Option<Inside>, output: &mut Output) -> Done {
    let hook = in_process(hook.as_ref());
    let Checked { config, mut warnings } = config::check(&arguments.config, &ProcessEnvironment, hook)?;
    // The database was checked above: it may be missing, or be busy at this moment.
    let uses = recorded_uses(&config).unwrap_or_else(|error| {
        warnings.push(format!("the last use of keys cannot be read: {error}"));
        Vec::new()
    });
    let mut endpoints = Vec::new();
    for (path, endpoint) in &config.live.endpoints {
        endpoints.push(EndpointLine {
            path,
            name: &endpoint.name,
            account: &endpoint.account,
            dialect: endpoint.dialect.name(),
            keys: SignatureKey::of(endpoint, &uses),
        });
    }
    let app = config.app_listen.map(|listen| AppLine { listen, tokens: &config.live.app.tokens });
    let markets: Vec<MarketLine<'_>> = config.live.markets.iter().map(MarketLine::of).collect();
    let routing = route::Routing::of(&config.live.runner);
    warnings.extend(routing.unreachable());
    for warning in &warnings {
        output.print_error(&format!("warning: {}", shown(warning)));
    }
    let file = arguments.config.display().to_string();
    if arguments.json {
        return output.json(&Report { file, warnings: &warnings, endpoints, app, markets, routing });
    }
    output.line(&format!("{file}: ok"))?;
    for EndpointLine { path, name, dialect, keys, .. } in &endpoints {
        let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        output.line(&format!("  {path}  {name}  {dialect}  keys: {}", keys.join(", ")))?;
    }
    if let Some(AppLine { listen, tokens }) = &app {
        output.line(&format!("  app  {listen}"))?;
        for AppToken { name, accounts, roles, .. } in *tokens {
            let roles = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ");
            let (name, accounts) = (shown(name), shown(&accounts.join(", ")));
            output.line(&format!("    token {name}  accounts: {accounts}  roles: {roles}"))?;
        }
    }
    for MarketLine { name, api, base_url, credentials_for, notifications } in &markets {
        let at = base_url.as_ref().map(|url| format!("  {url}")).unwrap_or_default();
        let own = match credentials_for.as_slice() {
            [] => String::new(),
            groups => format!("  own credentials: {}", groups.join(", ")),
        };
        output.line(&format!("  market {}  {api}{at}{own}", shown(name)))?;
        if let Some(NotificationsLine { endpoint, every }) = notifications {
            output.line(&format!("    notifications  endpoint: {}  every: {every}", shown(endpoint)))?;
        }
    }
    routing.print(output)
}

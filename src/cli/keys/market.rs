//! `market check`: tries the credentials of each market with a call that changes nothing.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::app::in_process;
use crate::cli::output::{Column, Output, Row};
use crate::cli::{Done, Exit, Failure, Inside, runtime};
use crate::config::{Config, ProcessEnvironment};
use crate::market_api::client::{CallError, MarketClient, Site};
use spid_core::market_api::{ApiCall, ErrorClass, Group};
use spid_hook::Secret;

#[derive(Subcommand)]
pub(crate) enum MarketCommand {
    /// Check the credentials of each market: make a call that changes nothing with each of them.
    Check(CheckArguments),
}

#[derive(Args)]
pub(crate) struct CheckArguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", env = "SPID_CONFIG")]
    config: PathBuf,
    /// Check only this market.
    #[arg(long, value_name = "NAME")]
    market: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Result of one call.
#[derive(Serialize)]
struct Checked {
    market: String,
    group: &'static str,
    operation: &'static str,
    /// True if the credentials may call the operation.
    ok: bool,
    /// Class of the failure, or `unreachable` or `no-key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'static str>,
    detail: String,
}

impl Row for Checked {
    const COLUMNS: &'static [Column<Checked>] = &[
        ("MARKET", |checked| checked.market.clone()),
        ("GROUP", |checked| checked.group.to_owned()),
        ("OPERATION", |checked| checked.operation.to_owned()),
        ("RESULT", |checked| if checked.ok { "ok" } else { checked.class.unwrap_or("failed") }.to_owned()),
        ("DETAIL", |checked| checked.detail.clone()),
    ];
}

/// A licence code that cannot exist: the answer says that it is unknown, and so that the credentials are good.
const NO_LICENSE: &str = "SPID-CHECK-0000000000000000";

/// Returns the harmless call of a group; `None` if the site has none.
fn harmless(site: Site, group: Group) -> Option<ApiCall> {
    match (group, site) {
        (Group::License, _) => Some(ApiCall::describe_license(&Secret::new(NO_LICENSE))),
        (Group::Metering, Site::AlibabaCn) => Some(ApiCall::describe_api_metering()),
        (Group::Metering, Site::AlibabaIntl) => None,
        (Group::Read, Site::AlibabaCn) => Some(ApiCall::describe_failed_notifications(1, 1)),
        (Group::Read, Site::AlibabaIntl) => Some(ApiCall::describe_seller_instances(1, 1)),
    }
}

pub(crate) fn market(command: MarketCommand, hook: Option<Inside>, output: &mut Output) -> Done {
    let MarketCommand::Check(arguments) = command;
    let config = Config::load(&arguments.config, &ProcessEnvironment, &[], in_process(hook.as_ref()))?;
    let mut markets: Vec<MarketClient> =
        config.live.markets.into_iter().map(|market| market.client).collect();
    if let Some(name) = &arguments.market {
        let known: Vec<String> = markets.iter().map(|market| format!("`{}`", market.name())).collect();
        markets.retain(|market| market.name() == name);
        if markets.is_empty() {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Failure::new(
                Exit::Usage,
                format!("there is no market `{name}`; there are: {known}"),
            ));
        }
    }
    if markets.is_empty() {
        return Err(Failure::new(Exit::Config, "the configuration has no [[market]]")
            .hint("`spid config default` shows one"));
    }
    let checked = runtime()?.block_on(check(&markets));
    if arguments.json {
        output.json(&checked)?;
    } else {
        output.rows(&checked)?;
    }
    match checked.iter().filter(|checked| !checked.ok).count() {
        0 => Ok(()),
        failed => Err(Failure::new(Exit::NotMet, format!("{failed} of {} checks failed", checked.len()))),
    }
}

async fn check(markets: &[MarketClient]) -> Vec<Checked> {
    let mut checked = Vec::new();
    for market in markets {
        for group in Group::ALL {
            let Some(call) = harmless(market.site(), group) else { continue };
            let result = market.call(&call).await;
            let (class, detail) = match result {
                Ok(_) => (None, "the credentials may call it".to_owned()),
                // An answer about the licence comes only to a caller who may ask.
                Err(CallError::Api(error)) if error.class == ErrorClass::Fact => {
                    (None, format!("the credentials may call it ({})", error.code))
                }
                Err(CallError::Api(error)) => (Some(error.class.as_str()), error.to_string()),
                Err(CallError::Unanswered { fault, .. }) => (Some("unreachable"), fault),
                Err(CallError::NoKey(fault)) => (Some("no-key"), fault.to_string()),
                Err(CallError::Misconfigured(fault)) => (Some("misconfigured"), fault),
            };
            checked.push(Checked {
                market: market.name().to_owned(),
                group: group.as_str(),
                operation: call.operation.action,
                ok: class.is_none(),
                class,
                detail,
            });
        }
    }
    checked
}

//! `check-config`: checks a configuration and shows what a daemon would do with it.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::app::in_process;
use crate::cli::develop::route;
use crate::cli::keys::signatures::{SignatureKey, recorded_uses};
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Inside};
use crate::config::{self, Checked, ProcessEnvironment};

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
    let routing = route::Routing::of(&config.live.runner);
    warnings.extend(routing.unreachable());
    for warning in &warnings {
        output.print_error(&format!("warning: {}", shown(warning)));
    }
    let file = arguments.config.display().to_string();
    if arguments.json {
        return output.json(&Report { file, warnings: &warnings, endpoints, routing });
    }
    output.line(&format!("{file}: ok"))?;
    for EndpointLine { path, name, dialect, keys, .. } in &endpoints {
        let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        output.line(&format!("  {path}  {name}  {dialect}  keys: {}", keys.join(", ")))?;
    }
    routing.print(output)
}

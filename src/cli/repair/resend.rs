//! `callbacks resend`: sends a stored callback again, with a new signature.

use clap::Args;
use serde_json::json;

use super::{OperationArguments, print_report};
use crate::cli::keys::arguments::{KeyArguments, dialect_named, dialect_or_alibaba};
use crate::cli::lab::scenario::briefly;
use crate::cli::output::Output;
use crate::cli::{Done, Exit, Failure, runtime, words};
use crate::lab::exchange;
use crate::net::{Client, ClientOptions, Url};
use crate::store::OperationReport;
use spid_core::dialect::{Dialect, Sending};
use spid_hook::time::Clock;

#[derive(Args)]
pub(crate) struct ResendArguments {
    #[command(flatten)]
    operation: OperationArguments,
    #[command(flatten)]
    key: KeyArguments,
    /// Dialect, if the callback does not name it (an older spid did not store it). The default is that of its endpoint,
    /// or alibaba.
    #[arg(long, value_parser = words::dialect())]
    dialect: Option<&'static dyn Dialect>,
    /// URL to send the callback to. The default is that of its endpoint in the configuration.
    #[arg(long, value_name = "URL")]
    to: Option<Url>,
    /// Allow an address that is not this machine.
    #[arg(long)]
    yes: bool,
    /// Number of the callback.
    number: i64,
}

pub(crate) fn resend(arguments: ResendArguments, output: &mut Output) -> Done {
    let ResendArguments { operation, key, dialect, to, yes, number } = arguments;
    let found = operation.store.reader()?.callback(number)?;
    let (row, callback) =
        found.ok_or_else(|| Failure::new(Exit::NoInput, format!("there is no callback {number}")))?;
    // Its own endpoint: a signature of another one would be denied.
    let access = key.access(operation.store.config.as_deref(), Some(&row.endpoint))?;
    let to = match (to, &access.url) {
        (Some(to), _) => to,
        (None, Some(url)) => {
            url.parse().map_err(|error| Failure::new(Exit::Config, format!("{url}: {error}")))?
        }
        (None, None) => return Err(Failure::new(Exit::Usage, "give the URL with --to")),
    };
    if !to.is_loopback() && !yes {
        return Err(Failure::new(Exit::Usage, format!("{} is not this machine", to.authority()))
            .hint("add --yes to allow it"));
    }
    // The dialect adds `action` itself when it signs the request.
    let parameters: Vec<(String, String)> = callback
        .parameters
        .iter()
        .filter(|(name, _)| *name != "action")
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Some(at) = callback.pruned_at {
        let text = format!("the content of callback {} was pruned at {at}; there is nothing to send", number);
        return Err(Failure::new(Exit::Data, text));
    }
    // The option overrides the stored dialect.
    let stored = callback.dialect.as_deref().map(dialect_named).transpose()?;
    let dialect = dialect_or_alibaba(dialect.or(stored).or(access.dialect))?;
    let sending = Sending::at(Clock::System.now());
    let request = dialect.request(&callback.action_name, &parameters, &access.keys, &sending);
    let sent =
        exchange::addressed(&request, &to).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    // The audit entry comes before the request: a request that was sent must never be missing from the audit log.
    let (mut operations, act) = operation.begin()?;
    let target = format!("callback {} to {}", number, to.authority());
    operations.record("resend", &target, &act)?;
    let answer = runtime()?
        .block_on(Client::new(ClientOptions::default()).send(sent))
        .map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))?;
    let body = exchange::body(&answer.body);
    let message = format!("{} {}", answer.status, briefly(body.trim()));
    let report = OperationReport { callback: Some(number), ..OperationReport::new("resend", message) };
    print_report(report, &json!({"status": answer.status}), operation.json, output)
}

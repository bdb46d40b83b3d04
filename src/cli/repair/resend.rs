//! `callbacks resend`: sends a stored callback again, with a new signature.

use clap::Args;

use super::ActArguments;
use crate::cli::develop::sign::dialect_named;
use crate::cli::keys::arguments::KeyArguments;
use crate::cli::lab::scenario::briefly;
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure, runtime};
use crate::lab::exchange;
use crate::net::{Client, ClientOptions, Url};
use spid_core::dialect::Sending;
use spid_hook::time::Clock;

#[derive(Args)]
pub(crate) struct ResendArguments {
    #[command(flatten)]
    act: ActArguments,
    #[command(flatten)]
    key: KeyArguments,
    /// Dialect, if the callback does not name it (an older spid did not store it). The default is alibaba.
    #[arg(long)]
    dialect: Option<String>,
    /// URL of the endpoint.
    #[arg(long, value_name = "URL")]
    to: Url,
    /// Allow an address that is not this machine.
    #[arg(long)]
    yes: bool,
    /// Number of the callback.
    number: i64,
}

pub(crate) fn resend(arguments: ResendArguments, output: &mut Output) -> Done {
    if !arguments.to.is_loopback() && !arguments.yes {
        return Err(Failure::new(Exit::Usage, format!("{} is not this machine", arguments.to.authority()))
            .hint("add --yes to allow it"));
    }
    let found = arguments.act.store.reader()?.callback(arguments.number)?;
    let (_, callback) = found
        .ok_or_else(|| Failure::new(Exit::NoInput, format!("there is no callback {}", arguments.number)))?;
    // The dialect adds `action` itself when it signs the request.
    let parameters: Vec<(String, String)> = callback
        .parameters
        .iter()
        .filter(|(name, _)| *name != "action")
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Some(at) = callback.pruned_at {
        let text = format!(
            "the content of callback {} was pruned at {at}; there is nothing to send",
            arguments.number
        );
        return Err(Failure::new(Exit::Data, text));
    }
    // The option overrides the stored dialect.
    let said = arguments.dialect.as_deref().or(callback.dialect.as_deref());
    let dialect = dialect_named(said.unwrap_or("alibaba"))?;
    let sending = Sending::at(Clock::System.now());
    let request = dialect.request(&callback.action_name, &parameters, &arguments.key.keys()?, &sending);
    let sent = exchange::addressed(&request, &arguments.to)
        .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    // The audit entry comes before the request: a request that was sent must never be missing from the audit log.
    let (mut operations, act) = arguments.act.begin()?;
    let target = format!("callback {} to {}", arguments.number, arguments.to.authority());
    operations.record("resend", &target, &act)?;
    let answer = runtime()?
        .block_on(Client::new(ClientOptions::default()).send(sent))
        .map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))?;
    let body = exchange::body(&answer.body);
    output.line(&format!("{} {}", answer.status, shown(briefly(body.trim()))))
}

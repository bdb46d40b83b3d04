//! `route`: shows the hook that an order would go to, and why. It reads only the configuration.

use std::path::PathBuf;

use clap::Args;
use jiff::SignedDuration;
use serde::Serialize;

use crate::cli::app::in_process;
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure, Inside};
use crate::config::{Config, ProcessEnvironment};
use crate::hooks::runner::{NamedHook, Route, Runner};
use spid_core::lifecycle::schedule::Schedule;
use spid_hook::Subject;

#[derive(Args)]
pub(crate) struct RouteArguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", env = "SPID_CONFIG")]
    config: PathBuf,
    /// Name of the endpoint. Optional if there is only one.
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    /// Code of the product at the marketplace.
    #[arg(long, value_name = "CODE")]
    product: Option<String>,
    /// SKU of the order. For an upgrade: the SKU before the upgrade.
    #[arg(long, value_name = "ID")]
    sku: Option<String>,
    /// Account of the buyer at the marketplace.
    #[arg(long, value_name = "ACCOUNT")]
    buyer: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Route of an order, as JSON.
#[derive(Serialize)]
struct Answered<'a> {
    hook: &'a str,
    /// Position of the matching route, from 0; null for the default hook.
    route: Option<usize>,
    /// Routes that were tried before, each with its conditions that did not match.
    passed: Vec<Passed>,
}

#[derive(Serialize)]
struct Passed {
    route: usize,
    unmet: Vec<&'static str>,
}

pub(crate) fn route(arguments: RouteArguments, hook: Option<Inside>, output: &mut Output) -> Done {
    let config = Config::load(&arguments.config, &ProcessEnvironment, &[], in_process(hook.as_ref()))?;
    let subject = Subject {
        endpoint: endpoint(&config, arguments.endpoint.as_deref())?,
        product: arguments.product.as_deref(),
        sku: arguments.sku.as_deref(),
        buyer: arguments.buyer.as_deref(),
    };
    let routed = config.runner.route(&subject);
    // Routes behind the matching one were not tried.
    let tried = routed.route.map_or(usize::MAX, |(index, _)| index);
    let passed = config.runner.routes().enumerate().take(tried);
    let passed =
        passed.map(|(route, it)| Passed { route, unmet: it.unmet(&subject).collect() }).collect::<Vec<_>>();
    if arguments.json {
        let route = routed.route.map(|(index, _)| index);
        return output.json(&Answered { hook: routed.hook, route, passed });
    }
    let why = match routed.route {
        Some((index, route)) => format!("route[{index}] matches: {}", conditions(route)),
        None => "no [[route]] matches, so the first hook gets it".to_owned(),
    };
    output.line(&format!("{}  ({why})", shown(routed.hook)))?;
    for Passed { route, unmet } in &passed {
        output.line(&format!("  not by route[{route}]: {}", unmet.join(", ")))?;
    }
    Ok(())
}

/// Endpoint of the order: the one that was named, or the only one.
fn endpoint<'a>(config: &'a Config, named: Option<&str>) -> Result<&'a str, Failure> {
    let names: Vec<&str> = config.endpoints.iter().map(|(_, endpoint)| &*endpoint.name).collect();
    let known = || format!("use {}", names.join(", "));
    match (named, names.as_slice()) {
        (None, [only]) => Ok(only),
        (None, _) => {
            Err(Failure::new(Exit::Usage, "there are several endpoints: choose one with --endpoint")
                .hint(known()))
        }
        (Some(named), names) => names.iter().copied().find(|name| *name == named).ok_or_else(|| {
            Failure::new(Exit::Usage, format!("no endpoint is called `{}`", shown(named))).hint(known())
        }),
    }
}

/// Prints the hooks, and the routes in the order they are tried, for `check-config`.
pub(crate) fn print_all(runner: &Runner, output: &mut Output) -> Done {
    for hook in runner.hooks() {
        output.line(&format!("  hook {}", described(hook)))?;
        let leads = |name: &str| name == hook.name;
        // Such a hook never runs: probably a route is missing.
        if !leads(runner.default_hook()) && !runner.routes().any(|route| leads(&route.hook)) {
            output.print_error(&format!("warning: no route leads to the hook `{}`", shown(&hook.name)));
        }
    }
    for (index, route) in runner.routes().enumerate() {
        output.line(&format!("  route[{index}]  {} -> {}", conditions(route), shown(&route.hook)))?;
    }
    let rest = if runner.routes().next().is_some() { "everything else" } else { "everything" };
    output.line(&format!("  {rest} -> {}", shown(runner.default_hook())))
}

fn described(hook: &NamedHook) -> String {
    let span = |millis: i64| format!("{:#}", SignedDuration::from_millis(millis));
    let usual = Schedule::default();
    let waits: Vec<String> =
        hook.retry.as_ref().unwrap_or(&usual).millis().iter().map(|wait| span(*wait)).collect();
    let timeout = span(i64::try_from(hook.timeout.as_millis()).unwrap_or(i64::MAX));
    let (name, concurrency) = (shown(&hook.name), hook.concurrency);
    format!("{name}  timeout: {timeout}  concurrency: {concurrency}  retry: {}", waits.join(", "))
}

fn conditions(route: &Route) -> String {
    let conditions: Vec<String> =
        route.conditions().map(|(name, wanted)| format!("{name} = \"{}\"", shown(wanted))).collect();
    if conditions.is_empty() { "everything".to_owned() } else { conditions.join(", ") }
}

//! `route`: shows the hook that an order would go to, and why. It reads only the configuration.

use std::collections::BTreeMap;
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
    let routed = config.live.runner.route(&subject);
    // Routes behind the matching one were not tried.
    let tried = routed.route.map_or(usize::MAX, |(index, _)| index);
    let passed = config.live.runner.routes().enumerate().take(tried);
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
        output.line(&format!("  route[{route}] does not match: {}", unmet.join(", ")))?;
    }
    Ok(())
}

/// Endpoint of the order: the one that was named, or the only one.
fn endpoint<'a>(config: &'a Config, named: Option<&str>) -> Result<&'a str, Failure> {
    let names: Vec<&str> = config.live.endpoints.iter().map(|(_, endpoint)| &*endpoint.name).collect();
    let known = format!("use {}", names.join(", "));
    match (named, names.as_slice()) {
        (None, [only]) => Ok(only),
        (None, _) => {
            Err(Failure::new(Exit::Usage, "there are several endpoints: choose one with --endpoint")
                .hint(known))
        }
        (Some(named), names) => names.iter().copied().find(|name| *name == named).ok_or_else(|| {
            Failure::new(Exit::Usage, format!("no endpoint is called `{}`", shown(named))).hint(known)
        }),
    }
}

/// Hooks and routes of a configuration.
#[derive(Serialize)]
pub(crate) struct Routing<'a> {
    hooks: Vec<HookLine<'a>>,
    /// Routes, in the order in which they are tried.
    routes: Vec<RouteLine<'a>>,
    /// Hook of everything else.
    default_hook: &'a str,
}

#[derive(Serialize)]
struct HookLine<'a> {
    name: &'a str,
    timeout: String,
    concurrency: usize,
    retry: Vec<String>,
}

#[derive(Serialize)]
struct RouteLine<'a> {
    hook: &'a str,
    conditions: BTreeMap<&'static str, &'a str>,
    #[serde(skip)]
    text: String,
}

impl<'a> Routing<'a> {
    pub(crate) fn of(runner: &'a Runner) -> Routing<'a> {
        Routing {
            hooks: runner.hooks().map(HookLine::of).collect(),
            routes: runner.routes().map(RouteLine::of).collect(),
            default_hook: runner.default_hook(),
        }
    }

    /// Warnings about hooks that never run: probably a route is missing.
    pub(crate) fn unreachable(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for HookLine { name, .. } in &self.hooks {
            if *name != self.default_hook && !self.routes.iter().any(|route| route.hook == *name) {
                warnings.push(format!("no route leads to the hook `{name}`"));
            }
        }
        warnings
    }

    pub(crate) fn print(&self, output: &mut Output) -> Done {
        for HookLine { name, timeout, concurrency, retry } in &self.hooks {
            let (name, retry) = (shown(name), retry.join(", "));
            output.line(&format!(
                "  hook {name}  timeout: {timeout}  concurrency: {concurrency}  retry: {retry}"
            ))?;
        }
        for (index, RouteLine { hook, text, .. }) in self.routes.iter().enumerate() {
            output.line(&format!("  route[{index}]  {text} -> {}", shown(hook)))?;
        }
        let rest = if self.routes.is_empty() { "everything" } else { "everything else" };
        output.line(&format!("  {rest} -> {}", shown(self.default_hook)))
    }
}

impl<'a> HookLine<'a> {
    fn of(hook: &'a NamedHook) -> HookLine<'a> {
        let usual = Schedule::default();
        let waits = hook.retry.as_ref().unwrap_or(&usual).millis();
        HookLine {
            name: &hook.name,
            timeout: span(i64::try_from(hook.timeout.as_millis()).unwrap_or(i64::MAX)),
            concurrency: hook.concurrency,
            retry: waits.iter().map(|wait| span(*wait)).collect(),
        }
    }
}

impl<'a> RouteLine<'a> {
    fn of(route: &'a Route) -> RouteLine<'a> {
        RouteLine { hook: &route.hook, conditions: route.conditions().collect(), text: conditions(route) }
    }
}

fn span(millis: i64) -> String {
    format!("{:#}", SignedDuration::from_millis(millis))
}

fn conditions(route: &Route) -> String {
    let mut conditions = Vec::new();
    for (name, wanted) in route.conditions() {
        conditions.push(format!("{name} = \"{}\"", shown(wanted)));
    }
    if conditions.is_empty() { "everything".to_owned() } else { conditions.join(", ") }
}

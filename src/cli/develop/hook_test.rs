//! `hook test`: the test for hook authors, from the shell, for hooks of every kind.
//!
//! The report goes to stdout. Progress goes to stderr; with `--verbose` it contains every call and its result. The
//! calls contain only invented data.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::cli::app::{self, in_process};
use crate::cli::lab::scenario::interrupted;
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure, Inside, runtime, words};
use crate::config::{self, Config, Environment, ProcessEnvironment};
use crate::hooks::exec::ExecHook;
use crate::hooks::http::{HttpHook, HttpHookOptions};
use crate::hooks::runner::{Executor, Runner};
use crate::net::Url;
use crate::observe::limits;
use spid_core::span::Span;
use spid_hook::Secret;
use spid_hook::callback::Action;
use spid_hook::instance::Instance;
use spid_hook::testing::{AttemptReport, Check, Observer, Part};
use spid_hook::webhook::{WebhookKey, WebhookKeys};
use spid_hook::{AnyHook, HookError};

/// Default number of attempts at each action that are interrupted at a random moment; an executable is killed.
const KILLS_COUNT: u32 = 4;

/// Arguments of `hook test`: the hook, and the test to run on it.
#[derive(Args)]
pub(crate) struct TestArguments {
    #[command(flatten)]
    which: Which,
    /// File with the secret `whsec_…` that signs calls. Give the option twice during a key change.
    #[arg(long, value_name = "FILE", requires = "http")]
    secret_file: Vec<PathBuf>,
    /// Environment variable with the secret that signs calls.
    #[arg(long, value_name = "NAME", requires = "http", conflicts_with = "secret_file")]
    secret_env: Option<String>,
    /// Name of the hook in the configuration. The default is the first one.
    #[arg(long, value_name = "NAME", requires = "config")]
    hook: Option<String>,
    #[command(flatten)]
    wares: WaresArguments,
    /// Time limit of one attempt, like 30s or 2m.
    #[arg(long, value_name = "SPAN", value_parser = span)]
    timeout: Option<Duration>,
    /// Number of concurrent attempts.
    #[arg(long, value_name = "COUNT", default_value_t = limits::HOOK_TEST_AT_ONCE_COUNT)]
    at_once: usize,
    /// Number of attempts at each action that are interrupted at a random moment; an executable is killed with all
    /// its children.
    #[arg(long, value_name = "COUNT", default_value_t = KILLS_COUNT)]
    kills: u32,
    /// Seed of the random choices, to repeat a run.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Skip an action, like `upgrade`.
    #[arg(long, value_name = "ACTION", value_parser = words::action())]
    without: Vec<Action>,
    /// Fail if this action is not supported.
    #[arg(long, value_name = "ACTION", value_parser = words::action())]
    require: Vec<Action>,
    /// Allow `pending` as the answer to this action, because a person completes it. The test goes on as if the call
    /// were completed.
    #[arg(long, value_name = "ACTION", value_parser = words::action())]
    pending: Vec<Action>,
    /// Command that restarts the service and ends when the service listens again. The test then repeats calls, which
    /// finds answers that were only kept in memory.
    #[arg(long, value_name = "CMD", num_args = 1.., requires = "http")]
    restart: Vec<String>,
    /// Command that prints how many resources exist for an instance. It gets the instance as JSON on its standard
    /// input, and SPID_ORDER_BIZ_ID and SPID_INSTANCE_ID.
    #[arg(long, value_name = "CMD", num_args = 1..)]
    probe: Vec<String>,
    /// Show every call and its result on stderr.
    #[arg(long, short)]
    verbose: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(multiple = false)]
struct Which {
    /// Executable and its arguments. Write an executable whose name begins with `-` as `--exec=-x`.
    #[arg(long, value_name = "CMD", num_args = 1..)]
    exec: Vec<String>,
    /// URL of an HTTP hook.
    #[arg(long, value_name = "URL")]
    http: Option<Url>,
    /// Configuration file that contains the hook.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Product, SKU and parameters of the test's purchases.
#[derive(Args)]
struct WaresArguments {
    /// Product to buy.
    #[arg(long, value_name = "CODE")]
    product: Option<String>,
    /// SKU to buy.
    #[arg(long, value_name = "SKU")]
    sku: Option<String>,
    /// SKU to upgrade to.
    #[arg(long, value_name = "SKU")]
    upgrade_to: Option<String>,
    /// Account of the buyer.
    #[arg(long, value_name = "ACCOUNT")]
    buyer: Option<String>,
    /// Item to buy beside the SKU, with its quantity, like `seats=5`.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    item: Vec<(String, String)>,
    /// Item of the upgrade, with its new quantity.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    upgraded_item: Vec<(String, String)>,
    /// Parameter to send with every call.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    parameter: Vec<(String, String)>,
}

fn span(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<Span>().map(|span| span.0).ok().filter(|span| !span.is_zero());
    parsed.ok_or_else(|| "not a time span, like 500ms, 30s, 2m or 1d".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(crate) fn test(arguments: TestArguments, inside: Option<Inside>, output: &mut Output) -> Done {
    let Tested { hook, timeout, inside, is_exec, has_sign_on } = arguments.hook(inside)?;
    let mut check = arguments.wares.onto(Check::new(hook.clone()));
    if let Some(timeout) = arguments.timeout.or(timeout) {
        check = check.timeout(timeout);
    }
    if is_exec {
        check = check.starts_for_every_call();
    } else if !arguments.restart.is_empty() {
        let command = arguments.restart.clone();
        check = check.restart(move || restarted(command.clone(), hook.clone()));
    }
    if !has_sign_on && !arguments.require.contains(&Action::SignOn) {
        check = check.without(Action::SignOn);
    }
    check = arguments.pending.iter().fold(check, |check, action| check.pending(*action));
    check = check.at_once(arguments.at_once).kills(arguments.kills).seed(arguments.seed);
    check = arguments.without.iter().fold(check, |check, action| check.without(*action));
    check = arguments.require.iter().fold(check, |check, action| check.requires(*action));
    if !arguments.probe.is_empty() {
        let command = arguments.probe.clone();
        check = check.count(move |instance| counted(command.clone(), instance));
    }
    let runtime = runtime()?;
    let report = runtime.block_on(async {
        app::start(inside).await?;
        let mut teller = Teller { output: &mut *output, verbose: arguments.verbose };
        // Dropping the test kills the processes of the hook, which would otherwise outlive this one.
        tokio::select! {
            report = check.run_watched(&mut teller) => Ok(report),
            () = interrupted() => Err(Failure::new(
                Exit::NotMet,
                "interrupted: nothing was judged, and orders of the test may not be released",
            )),
        }
    })?;
    // Do not wait for a hook that blocks its thread.
    runtime.shutdown_background();
    if arguments.json {
        output.json(&report)?;
    } else {
        report.to_string().lines().try_for_each(|line| output.line(&shown(line)))?;
    }
    match report.passed {
        true => Ok(()),
        false => Err(Failure::new(Exit::NotMet, "the hook did not pass the test")
            .hint("-v shows every call and how it ended")),
    }
}

/// Hook under test.
struct Tested {
    hook: AnyHook,
    /// Configured timeout.
    timeout: Option<Duration>,
    /// Hook inside, if it must be started.
    inside: Option<Inside>,
    /// True if every call starts a program.
    is_exec: bool,
    /// True unless the marketplaces of the configuration have no sign-on.
    has_sign_on: bool,
}

impl TestArguments {
    fn hook(&self, inside: Option<Inside>) -> Result<Tested, Failure> {
        let tested = |hook, is_exec| Tested { hook, timeout: None, inside: None, is_exec, has_sign_on: true };
        let wrong = |from: &str, text: String| Failure::new(Exit::Config, format!("`{from}`: {text}"));
        if !self.which.exec.is_empty() {
            let hook = ExecHook::new(self.which.exec.clone());
            hook.check().map_err(|error| wrong("--exec", error.to_string()))?;
            return Ok(tested(hook.into(), true));
        }
        if let Some(url) = &self.which.http {
            let hook = HttpHook::new(url.clone(), self.keys()?, HttpHookOptions::default());
            hook.check().map_err(|error| wrong("--http", error.to_string()))?;
            return Ok(tested(hook.into(), false));
        }
        if let Some(path) = &self.which.config {
            let config = Config::load(path, &ProcessEnvironment, &[], in_process(inside.as_ref()))?;
            let name = self.hook.as_deref();
            let runner = &config.live.runner;
            let named = runner
                .hook(name)
                .ok_or_else(|| wrong("--hook", not_reached(runner, name.unwrap_or_default())))?;
            let is_exec = matches!(named.hook, Executor::Exec(_));
            let has_sign_on =
                config.live.endpoints.iter().any(|(_, endpoint)| endpoint.dialect.has_sign_on());
            let (hook, timeout) = (named.hook.clone().into(), Some(named.timeout));
            return Ok(Tested { hook, timeout, inside, is_exec, has_sign_on });
        }
        // Without an option only a program that embeds spid has a hook.
        let inside = inside.ok_or_else(|| {
            Failure::new(Exit::Usage, "no hook given").hint("--exec CMD…, --http URL or --config FILE")
        })?;
        let hook = inside.without_configuration()?;
        Ok(Tested { inside: Some(inside), ..tested(hook, false) })
    }

    fn keys(&self) -> Result<WebhookKeys, Failure> {
        let mut secrets: Vec<Result<Secret, String>> =
            self.secret_file.iter().map(|path| config::read_key(path)).collect();
        secrets.extend(self.secret_env.as_ref().map(|name| {
            let value = ProcessEnvironment.get(name).map(Secret::new);
            value.ok_or_else(|| format!("the environment variable `{name}` is not set, or not text"))
        }));
        let mut keys = Vec::new();
        for secret in secrets {
            let key = secret.and_then(|secret| WebhookKey::new(&secret).map_err(|error| error.to_string()));
            keys.push(key.map_err(|text| Failure::new(Exit::Config, text))?);
        }
        let missing = "calls to an HTTP hook are signed: give the secret with --secret-file or --secret-env";
        WebhookKeys::new(keys).ok_or_else(|| Failure::new(Exit::Config, missing))
    }
}

/// Explains why no order goes to a hook of this name.
fn not_reached(runner: &Runner, name: &str) -> String {
    let known: Vec<&str> = runner.hooks().map(|hook| hook.name.as_str()).collect();
    match known.contains(&name) {
        true => format!("no order reaches `{name}`: it is neither the first hook nor named by a route"),
        false => format!("there is no hook `{name}`; {}", config::unknown(name, &known)),
    }
}

impl WaresArguments {
    fn onto(&self, mut check: Check) -> Check {
        for (value, set) in [
            (&self.product, Check::product as fn(Check, String) -> Check),
            (&self.sku, Check::sku),
            (&self.upgrade_to, Check::upgrade_to),
            (&self.buyer, Check::buyer),
        ] {
            if let Some(value) = value {
                check = set(check, value.clone());
            }
        }
        for (name, value) in &self.item {
            check = check.item(name, value);
        }
        for (name, value) in &self.upgraded_item {
            check = check.upgraded_item(name, value);
        }
        for (name, value) in &self.parameter {
            check = check.parameter(name, value);
        }
        check
    }
}

/// Prints progress on stderr.
struct Teller<'o> {
    output: &'o mut Output,
    verbose: bool,
}

impl Observer for Teller<'_> {
    fn section(&mut self, part: Part) {
        self.output.print_error(&format!("* {part}"));
    }

    fn attempted(&mut self, attempted: &AttemptReport<'_>) {
        if !self.verbose {
            return;
        }
        let call = serde_json::to_string(attempted.call).unwrap_or_default();
        let number = attempted.call.context().attempt;
        self.output.print_error(&format!("  -> {}, attempt {number}: {}", attempted.step, shown(&call)));
        self.output.print_error(&format!("  <- {}", shown(&attempted.end.to_string())));
    }
}

/// Runs the author's command that restarts the service, and returns the hook that calls the service.
async fn restarted(command: Vec<String>, hook: AnyHook) -> Result<AnyHook, HookError> {
    let (program, arguments) = command.split_first().ok_or_else(|| HookError::retry("it is empty"))?;
    // The service may inherit the output, so the end of the command is waited for, and not that of its output.
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let status = child.wait().await?;
    match status.success() {
        true => Ok(hook),
        false => Err(HookError::retry(format!("`{program}` ended with {status}"))),
    }
}

/// Runs the probe and reads the number it prints. The probe is the author's own command, so it gets the environment.
async fn counted(command: Vec<String>, instance: Instance) -> Result<usize, HookError> {
    let (program, arguments) = command.split_first().ok_or_else(|| HookError::retry("it is empty"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("SPID_ORDER_BIZ_ID", instance.order_biz_id.as_deref().unwrap_or_default())
        .env("SPID_INSTANCE_ID", instance.id.as_deref().unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    // Dropping stdin closes the pipe, so a probe that reads to the end can continue.
    if let Some(mut stdin) = child.stdin.take() {
        // A probe that reads only its environment may close its input early.
        let _ = stdin.write_all(&serde_json::to_vec(&instance)?).await;
    }
    let ended = child.wait_with_output().await?;
    if !ended.status.success() {
        return Err(HookError::retry(format!("`{program}` ended with {}", ended.status)));
    }
    let said = String::from_utf8_lossy(&ended.stdout);
    said.trim().parse().map_err(|_| HookError::retry(format!("`{program}` did not print a number")))
}

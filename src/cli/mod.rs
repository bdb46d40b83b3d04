//! Command line: one file for each subcommand, and the parts they share.
//!
//! Data goes to stdout, everything else to stderr. A failure is one line that begins with `error:`, and a `hint:`
//! line if the user can do something about it. Exit codes follow `sysexits.h`, so a script can tell a wrong
//! configuration from a full disk.

mod app;
mod daemon;
mod develop;
mod generated;
mod help;
mod inspect;
mod keys;
mod lab;
mod output;
mod repair;
mod words;

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, FromArgMatches, Parser, Subcommand};

use crate::config::{self, Environment as _, LogFormat, Mistakes, ProcessEnvironment, RouteList};
use crate::serve::daemon::StartError;
use crate::store::{Reader, StoreError, StoreOptions};
use daemon::logging::Logging;
use daemon::stderr::Stderr;
use daemon::{check, healthcheck, serve};
use develop::{demo, hook, route, sign, verify};
use inspect::{attention, audit, callbacks, held, instances, jobs};
use keys::{encryption, market, signatures};
use lab::{conformance, fixtures, replay, simulate};
use output::Output;
use repair::{backup, prune};

pub use app::App;
pub(crate) use app::{Inside, Program};

/// Exit code of a failed command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// An expectation of the command was not met: a check, test or comparison failed.
    NotMet = 1,
    /// Wrong command line.
    Usage = 64,
    /// Wrong input data.
    Data = 65,
    /// Missing input: a file, or a row of the database.
    NoInput = 66,
    /// A service that must answer does not answer.
    Unavailable = 69,
    /// Bug in spid.
    Bug = 70,
    /// Reading or writing failed.
    Io = 74,
    /// Temporary failure: the same command may succeed later.
    TryAgain = 75,
    /// Permission denied.
    Permission = 77,
    /// Wrong configuration.
    Config = 78,
}

/// Reason of a failed command, as the user reads it.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Failure {
        let count = mistakes.mistakes.len();
        let message = match count {
            1 => mistakes.to_string(),
            _ => format!("the configuration has {count} mistakes\n{mistakes}"),
        };
        Failure::new(Exit::Config, message)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let exit = match &error {
            // The user must name or restore a database.
            StoreError::NotThere(_) | StoreError::Lost(..) | StoreError::Outdated(..) => Exit::NoInput,
            // Another process uses the database, or the store is overloaded: a later run can succeed.
            StoreError::Busy | StoreError::InUse(_) | StoreError::OtherName(_) | StoreError::Overloaded => {
                Exit::TryAgain
            }
            // The file itself is the problem: a retry does not help.
            StoreError::NotOurs(_)
            | StoreError::NotADatabase(..)
            | StoreError::NotABackup(..)
            | StoreError::Newer(..)
            | StoreError::Older(..)
            | StoreError::Linked(_)
            | StoreError::Unreadable(_)
            | StoreError::Corrupt(_) => Exit::Data,
            StoreError::Seal(_) => Exit::Config,
            StoreError::Denied(_) => Exit::Permission,
            // No command should get these errors: spid has a bug.
            StoreError::Inconsistent(_) | StoreError::Stopped | StoreError::Replayed => Exit::Bug,
            StoreError::Io(_)
            | StoreError::Full
            | StoreError::File(..)
            | StoreError::Moved(_)
            | StoreError::Overwritten(_)
            | StoreError::LogMoved(_) => Exit::Io,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        match error {
            StartError::Store(error) => error.into(),
            StartError::Orphans(orphans) => {
                Failure::new(Exit::Config, orphans.lines().collect::<Vec<_>>().join("\n"))
            }
            StartError::Unguarded(_) => Failure::new(Exit::Config, error.to_string()),
            StartError::Leftovers(_) => Failure::new(Exit::Io, error.to_string()),
            StartError::Listener(error) => {
                Failure::new(Exit::Io, format!("the listener cannot be used: {error}"))
            }
        }
    }
}

type Done = Result<(), Failure>;

/// Receive signed provisioning callbacks of cloud marketplaces, run your hook, and keep the state of every instance.
#[derive(Parser)]
#[command(name = "spid", version, arg_required_else_help = true, subcommand_required = true)]
struct Arguments {
    /// Log filter for stderr: error, warn, info, debug, or a filter like `spid=debug`. Overrides the configuration.
    #[arg(long, global = true, env = "SPID_LOG", value_name = "FILTER", help_heading = "Global options")]
    log: Option<String>,
    /// Log format: text or json. Overrides the configuration.
    #[arg(
        long,
        global = true,
        env = "SPID_LOG_FORMAT",
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon, which receives callbacks and runs hooks.
    Serve(serve::ServeArguments),
    /// Check a configuration and every file it names; show endpoints, keys and routes.
    CheckConfig(check::CheckArguments),
    /// Ask the daemon if it is ready; for containers and scripts.
    Healthcheck(healthcheck::HealthcheckArguments),
    /// Print the default configuration file, with every key.
    #[command(subcommand)]
    Config(generated::ConfigCommand),
    /// List what needs a person: refused, dead, held, pending and unreported orders.
    Attention(attention::AttentionArguments),
    /// Instances that buyers own: list, show, complete, claim, release, import, export.
    #[command(subcommand)]
    Instances(instances::InstancesCommand),
    /// Jobs, the work of hooks: list, show, retry, drop, complete.
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Callbacks, the marketplace's requests and their results: list, show, export, resend.
    #[command(subcommand)]
    Callbacks(callbacks::CallbacksCommand),
    /// Audit log: changes that people made by hand, and why.
    #[command(alias = "acts")]
    Audit(audit::AuditArguments),
    /// Held callbacks, which wait for a decision: list, show, approve, reject, settle.
    #[command(subcommand)]
    Held(held::HeldCommand),
    /// Back up the database; the daemon may be running.
    Backup(backup::BackupArguments),
    /// Restore a backup or a copied database; every unfinished job in it becomes held.
    Restore(backup::RestoreArguments),
    /// Delete old, finished data.
    ///
    /// Instances, orders and everything needed to decide on a later callback are kept.
    Prune(prune::PruneArguments),
    /// Signature keys of each endpoint, the last use of each, and how to change a key.
    ///
    /// To change a key without losing calls: list the new key before the old one in the configuration, and reload. Change
    /// the key at the marketplace. When the last use of the old key stays the same, remove the old key and reload.
    Keys(signatures::KeysArguments),
    /// Sealing keys, which encrypt passwords in the database: count their use, change them.
    #[command(subcommand)]
    Seal(encryption::SealCommand),
    /// Markets, the APIs that spid calls: check their credentials.
    #[command(subcommand)]
    Market(market::MarketCommand),
    /// Demo: buy, upgrade, renew, freeze, unfreeze and release one instance.
    Demo(demo::DemoArguments),
    /// Sign a request as a marketplace would, and print it.
    Sign(sign::SignArguments),
    /// Verify the signature of a request, and explain why it is not valid.
    Verify(verify::VerifyArguments),
    /// Route of an order: the hook that it would go to, and why.
    Route(route::RouteArguments),
    /// Test a hook, or print the JSON Schema of its calls and answers.
    #[command(subcommand)]
    Hook(hook::HookCommand),
    /// Replay fixtures: send them to an endpoint and compare the answers.
    Replay(replay::ReplayArguments),
    /// Fixtures: check them without sending anything.
    #[command(subcommand)]
    Fixtures(fixtures::FixturesCommand),
    /// Test the conformance of an endpoint to Alibaba's protocol; write a self-test report.
    Conformance(Box<conformance::ConformanceArguments>),
    /// Simulate a marketplace with many orders, and count what a seller would lose.
    Simulate(Box<simulate::SimulateArguments>),
    /// Print shell completions.
    Completions(generated::CompletionsArguments),
    /// Print the manual page, or write the pages of all commands.
    Man(generated::ManArguments),
}

/// Location of the database.
#[derive(Args)]
struct StoreArguments {
    /// Configuration file that names the database.
    #[arg(long, value_name = "FILE", env = "SPID_CONFIG")]
    config: Option<PathBuf>,
    /// Database file. Overrides SPID_CONFIG. The default is `spid.db` in the current folder, if no configuration is
    /// given.
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
}

/// Returns true if the configuration was given on the command line. The environment variable applies to every
/// command, so it must not conflict with another choice on the command line.
fn is_typed(config: Option<&Path>) -> bool {
    let known = ProcessEnvironment.get("SPID_CONFIG");
    config.is_some_and(|config| known.is_none_or(|known| Path::new(&known) != config))
}

impl StoreArguments {
    fn reader(&self) -> Result<Reader, Failure> {
        let (path, _) = self.location()?;
        Reader::open(&path).map_err(not_there)
    }

    /// Returns true if the store's options come from a configuration.
    fn is_configured(&self) -> bool {
        self.db.is_none() && self.config.is_some()
    }

    /// Accounts of the configuration that names the database; `None` if the database was named directly.
    fn accounts(&self) -> Result<Option<Vec<String>>, Failure> {
        let named = self.config.as_ref().filter(|_| self.is_configured());
        Ok(named.map(|file| config::accounts_of(file, &ProcessEnvironment)).transpose()?)
    }

    /// Routes of the configuration that names the database; `None` if the database was named directly. An error if
    /// a hook must be found, but there is no configuration.
    fn routes(&self, has_hook_inside: bool, hook: Option<&str>) -> Result<Option<RouteList>, Failure> {
        let Some(file) = self.config.as_ref().filter(|_| self.is_configured()) else {
            return match hook {
                None => Ok(None),
                Some(_) => {
                    Err(Failure::new(Exit::Usage, "`--hook` needs a configuration, which has the routes")
                        .hint("use --config FILE instead of --db"))
                }
            };
        };
        let routes = config::routes_of(file, &ProcessEnvironment, has_hook_inside)?;
        if let Some(hook) = hook {
            routes.check(hook).map_err(|text| Failure::new(Exit::Usage, text))?;
        }
        Ok(Some(routes))
    }

    /// Path of the database, and the store options of the configuration.
    fn location(&self) -> Result<(PathBuf, StoreOptions), Failure> {
        Ok(match (&self.db, &self.config) {
            // Two explicit choices contradict each other; only SPID_CONFIG may be overridden.
            (Some(_), config) if is_typed(config.as_deref()) => {
                return Err(Failure::new(
                    Exit::Usage,
                    "`--db` and `--config` both name a database: give only one",
                ));
            }
            (Some(db), _) => (db.clone(), StoreOptions::default()),
            (None, Some(file)) => config::store_of(file, &ProcessEnvironment)?,
            (None, None) => (PathBuf::from(config::DEFAULT_STORE), StoreOptions::default()),
        })
    }
}

/// Converts an error of opening the store; a missing database gets a hint with the options that name it.
fn not_there(error: StoreError) -> Failure {
    let missing = matches!(error, StoreError::NotThere(_));
    let failure = Failure::from(error);
    if missing { failure.hint("name it with --db FILE, or --config FILE") } else { failure }
}

/// Runs the command line of this process. `hook` is the hook of a program that embeds spid.
pub(crate) fn run(program: Program, hook: Option<Inside>) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // A program of its own without a name is called as its file.
    let program = if hook.is_some() { program.or_called(arguments.first()) } else { program };
    run_from(arguments, program, hook)
}

fn run_from(
    arguments: impl IntoIterator<Item = OsString>,
    program: Program,
    hook: Option<Inside>,
) -> ExitCode {
    let stderr = Stderr::default();
    let mut output = Output::new(stderr.clone(), program.name());
    let parsed = program.command().try_get_matches_from(arguments);
    let arguments = match parsed.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => {
            let text = error.render().to_string();
            match spid_hook::text::without_user_info(&text) {
                // The error repeats the value of the argument, and a URL may contain a password.
                Cow::Owned(masked) => output.print_error(masked.trim_end()),
                Cow::Borrowed(_) => drop(error.print()),
            }
            stderr.flush();
            // `--help` and `--version` also end here, but they are no errors.
            return if error.use_stderr() { code(Exit::Usage) } else { ExitCode::SUCCESS };
        }
    };
    // Arguments are valid from here on. Logging starts first, so that every command can log.
    let usual = usual_log(&arguments.command);
    let logging = Logging::start(arguments.log.as_deref(), usual, arguments.log_format, stderr.clone());
    let code =
        match logging.and_then(|logging| execute(arguments.command, program, hook, logging, &mut output)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                output.print_error(&format!("error: {}", failure.message));
                if let Some(hint) = &failure.hint {
                    output.print_error(&format!("hint: {hint}"));
                }
                code(failure.exit)
            }
        };
    stderr.flush();
    // The process ends after this: write out the lines that are still queued.
    code
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}

fn execute(
    command: Command,
    program: Program,
    hook: Option<Inside>,
    logging: Logging,
    output: &mut Output,
) -> Done {
    match command {
        Command::Serve(arguments) => serve::serve(arguments, program, hook, logging),
        Command::CheckConfig(arguments) => check::check(arguments, hook, output),
        Command::Healthcheck(arguments) => healthcheck::healthcheck(arguments, output),
        Command::Config(command) => generated::config(command, output),
        Command::Demo(arguments) => demo::demo(arguments, hook, output),
        Command::Sign(arguments) => sign::sign(arguments, output),
        Command::Verify(arguments) => verify::verify(arguments, output),
        Command::Replay(arguments) => replay::replay(arguments, output),
        Command::Fixtures(command) => fixtures::fixtures(command, output),
        Command::Conformance(arguments) => conformance::conformance(*arguments, output),
        Command::Simulate(arguments) => simulate::simulate(*arguments, output),
        Command::Hook(command) => hook::hook(command, hook, output),
        Command::Backup(arguments) => backup::backup(arguments, output),
        Command::Restore(arguments) => backup::restore(arguments, output),
        Command::Prune(arguments) => prune::prune(&arguments, output),
        Command::Keys(arguments) => signatures::keys(&arguments, hook, output),
        Command::Market(command) => market::market(command, hook, output),
        Command::Seal(command) => encryption::seal(command, output),
        Command::Audit(arguments) => audit::audit(arguments, output),
        Command::Route(arguments) => route::route(arguments, hook, output),
        Command::Instances(command) => instances::instances(command, output),
        Command::Jobs(command) => jobs::jobs(command, hook.is_some(), output),
        Command::Callbacks(command) => callbacks::callbacks(command, output),
        Command::Attention(arguments) => attention::attention(arguments, output),
        Command::Held(command) => held::held(command, output),
        Command::Completions(arguments) => generated::completions(arguments, program, output),
        Command::Man(arguments) => generated::man(arguments, program, output),
    }
}

/// Default log filter of a command: `serve` logs its work, `demo` prints its work itself.
fn usual_log(command: &Command) -> &'static str {
    match command {
        Command::Serve(_) => "info",
        Command::Demo(_) => "off",
        _ => "warn",
    }
}

/// Tokio runtime for a command that uses sockets.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Io, format!("the runtime did not start: {error}")))
}

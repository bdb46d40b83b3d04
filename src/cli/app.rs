//! `App`: a program of the author's own that is the `spid` command with a hook inside.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use clap::CommandFactory;
use serde::de::DeserializeOwned;
use spid_hook::{AnyHook, HookError, HookErrorKind, ProvisioningHook};
use toml::Spanned;
use toml::de::DeTable;

use super::{Arguments, Exit, Failure, help};
use crate::config::{InProcess, Mistakes};

/// Future of a start, which runs on the thread of its command.
type Starting = std::pin::Pin<Box<dyn Future<Output = Result<(), HookError>>>>;

/// A program with a hook inside. It has every command of `spid`, under its own name and version.
///
/// ```no_run
/// use std::process::ExitCode;
/// # use spid::hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
/// # struct MyHook;
/// # impl ProvisioningHook for MyHook {
/// #     async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new()) }
/// #     async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
/// #     async fn expire(&self, _: ExpireCall) -> Result<(), HookError> { Ok(()) }
/// #     async fn release(&self, _: ReleaseCall) -> Result<(), HookError> { Ok(()) }
/// # }
///
/// fn main() -> ExitCode {
///     spid::App::new(MyHook).name("acme-receiver").version(env!("CARGO_PKG_VERSION")).run()
/// }
/// ```
#[must_use = "an App does nothing until `run`"]
pub struct App {
    program: Program,
    inside: Inside,
}

impl App {
    /// Creates a program with this hook inside: it is the default hook of `serve` and `demo`, and the configuration
    /// needs no `[[hook]]`.
    pub fn new(hook: impl ProvisioningHook) -> App {
        App { program: Program::default(), inside: Inside::of(AnyHook::new(hook)) }
    }

    /// Creates a program whose hook is made by `start`, from the settings in the configuration.
    ///
    /// ```no_run
    /// use std::process::ExitCode;
    /// # use spid::hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
    /// # struct MyHook { plans: String }
    /// # impl ProvisioningHook for MyHook {
    /// #     async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new()) }
    /// #     async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
    /// #     async fn expire(&self, _: ExpireCall) -> Result<(), HookError> { Ok(()) }
    /// #     async fn release(&self, _: ReleaseCall) -> Result<(), HookError> { Ok(()) }
    /// # }
    ///
    /// /// `[[hook]] in_process = { settings = { plans_file = "/etc/my-app/plans.toml" } }`
    /// #[derive(serde::Deserialize)]
    /// #[serde(deny_unknown_fields)]
    /// struct Settings {
    ///     plans_file: String,
    /// }
    ///
    /// async fn start(settings: Settings) -> Result<MyHook, std::io::Error> {
    ///     Ok(MyHook { plans: std::fs::read_to_string(settings.plans_file)? })
    /// }
    ///
    /// fn main() -> ExitCode {
    ///     spid::App::start(start).name("acme-receiver").version(env!("CARGO_PKG_VERSION")).run()
    /// }
    /// ```
    ///
    /// `serve`, `demo` and `hook test` start the hook, once. Every command that reads the configuration checks the
    /// settings, and `check-config` shows each mistake with its key. Without settings in the configuration the type is
    /// read from an empty table.
    pub fn start<S, H, E>(start: impl AsyncFnOnce(S) -> Result<H, E> + 'static) -> App
    where
        S: DeserializeOwned + Send + 'static,
        H: ProvisioningHook,
        E: Into<HookError> + 'static,
    {
        App { program: Program::default(), inside: Inside::started_by(start) }
    }

    /// Sets the name of the program in `--help`, `--version` and the log line `ready`. The default is the
    /// name of its file.
    pub fn name(mut self, name: &'static str) -> App {
        self.program.name = Some(name);
        self
    }

    /// Sets the version of the program in `--help`, `--version` and the log line `ready`.
    pub fn version(mut self, version: &'static str) -> App {
        self.program.version = Some(version);
        self
    }

    /// Runs the command line of this process.
    pub fn run(self) -> ExitCode {
        super::run(self.program, Some(self.inside))
    }
}

/// Name and version of a program that embeds spid.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Program {
    name: Option<&'static str>,
    version: Option<&'static str>,
}

impl Program {
    /// Name of the command.
    pub(super) fn name(&self) -> &'static str {
        self.name.unwrap_or("spid")
    }

    /// The same program; if it has no name, it is called as the file that was started.
    pub(super) fn or_called(self, file: Option<&OsString>) -> Program {
        let called = || Some(Path::new(file?).file_name()?.to_str()?.to_owned());
        // Lives as long as the process, like a name that the author gives.
        let name = self.name.or_else(|| called().map(|name| &*name.leak()));
        Program { name, ..self }
    }

    /// Version of the program, with that of the spid inside; `None` for `spid` itself.
    pub(super) fn version(&self) -> Option<String> {
        const SPID: &str = concat!("spid ", env!("CARGO_PKG_VERSION"));
        match (self.name, self.version) {
            (_, Some(version)) => Some(format!("{version} ({SPID})")),
            (Some(_), None) => Some(format!("({SPID})")),
            (None, None) => None,
        }
    }

    /// Name and version for the log; `None` for `spid` itself.
    pub(super) fn label(&self) -> Option<String> {
        self.version().map(|version| format!("{} {version}", self.name()))
    }

    /// Command line of the program.
    pub(super) fn command(&self) -> clap::Command {
        let command = help::grouped(Arguments::command());
        let (Some(version), Some(label)) = (self.version(), self.label()) else { return command };
        // clap keeps a version for the whole life of the process.
        let version: &'static str = Box::leak(version.into_boxed_str());
        let command = help::renamed(command, self.name());
        command.name(self.name()).bin_name(self.name()).version(version).before_help(label)
    }
}

/// Hook of a program that embeds spid: ready, or made by a start.
pub(crate) struct Inside {
    in_process: InProcess,
    start: Option<Box<dyn FnOnce() -> Starting>>,
}

impl Inside {
    pub(crate) fn of(hook: AnyHook) -> Inside {
        Inside { in_process: InProcess::from(hook), start: None }
    }

    fn started_by<S, H, E>(start: impl AsyncFnOnce(S) -> Result<H, E> + 'static) -> Inside
    where
        S: DeserializeOwned + Send + 'static,
        H: ProvisioningHook,
        E: Into<HookError> + 'static,
    {
        // Filled whenever a configuration is read, and taken by the start.
        let settings: Arc<Mutex<Option<S>>> = Arc::default();
        let given = Arc::clone(&settings);
        let read = move |table: Spanned<DeTable<'_>>| {
            let read = S::deserialize(toml::de::Deserializer::from(table))?;
            *given.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
            Ok(())
        };
        // The runner gets its hook before the hook is there, because the configuration is read first.
        let started: Arc<OnceLock<AnyHook>> = Arc::default();
        let hook = Arc::clone(&started);
        let hook = AnyHook::from_fn(move |call| {
            let hook = hook.get().cloned();
            async move {
                let hook = hook.ok_or_else(|| HookError::retry("this command does not start the hook"))?;
                hook.answer(call).await
            }
        });
        let run = async move || {
            let settings = settings.lock().unwrap_or_else(PoisonError::into_inner).take();
            let settings = settings.ok_or_else(|| HookError::misconfigured("the settings were not read"))?;
            let hook = start(settings).await.map_err(Into::into)?;
            let _ = started.set(AnyHook::new(hook));
            Ok(())
        };
        Inside {
            in_process: InProcess::with_settings(hook, read),
            start: Some(Box::new(move || Box::pin(run()))),
        }
    }

    /// Hook as the configuration places it.
    pub(super) fn in_process(&self) -> InProcess {
        self.in_process.clone()
    }

    /// Hook without a configuration; its settings are read from an empty table.
    pub(super) fn without_configuration(&self) -> Result<AnyHook, Mistakes> {
        self.in_process.without_configuration()
    }

    /// Makes the hook, after the configuration was read.
    pub(super) async fn start(self) -> Result<(), Failure> {
        let Some(start) = self.start else { return Ok(()) };
        start().await.map_err(|error| {
            let exit = match error.kind() {
                HookErrorKind::Misconfigured { .. } => Exit::Config,
                _ => Exit::TryAgain,
            };
            Failure::new(exit, format!("the hook did not start: {}", error.message()))
        })
    }
}

/// Hook for the configuration, if there is one.
pub(super) fn in_process(inside: Option<&Inside>) -> Option<InProcess> {
    inside.map(Inside::in_process)
}

/// Makes the hook, if there is one.
pub(super) async fn start(inside: Option<Inside>) -> Result<(), Failure> {
    match inside {
        Some(inside) => inside.start().await,
        None => Ok(()),
    }
}

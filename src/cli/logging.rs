//! The log on stderr, and what is said in it.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use super::{Exit, Failure};

/// Says what is logged from now on.
type Change = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// What is logged, as far as a configuration may still decide it.
pub(super) struct Logging {
    /// `None` where the command line has decided.
    change: Option<Change>,
}

impl Logging {
    /// Begins to log to stderr: what `filter` says, or else `usual` until a configuration is read.
    pub(super) fn start(filter: Option<&str>, usual: &str) -> Result<Logging, Failure> {
        let text = filter.unwrap_or(usual);
        let read = EnvFilter::try_new(text).map_err(|error| {
            Failure::new(Exit::Usage, format!("`--log {text}` is not a filter: {error}"))
                .hint("it is error, warn, info or debug, or by module: spid::hook=debug,info")
        })?;
        let logger = tracing_subscriber::fmt()
            .with_env_filter(read)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_filter_reloading();
        let handle = logger.reload_handle();
        // In a program that logs already, that program decides.
        let ours = logger.try_init().is_ok() && filter.is_none();
        let change: Change = Box::new(move |filter| drop(handle.reload(filter)));
        Ok(Logging { change: ours.then_some(change) })
    }

    /// What the configuration says.
    pub(super) fn configure(&self, level: LevelFilter) {
        if let Some(change) = &self.change {
            change(EnvFilter::default().add_directive(level.into()));
        }
    }
}

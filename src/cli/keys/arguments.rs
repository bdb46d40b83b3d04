//! Sources of a command's key: a file or an environment variable. Arguments are visible to every user of the machine,
//! so a key is never taken from them.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::{Exit, Failure};
use crate::config::{self, DEV_KEY, Environment, ProcessEnvironment};
use spid_core::signature::{Key, Keys};
use spid_hook::Secret;

/// Key to sign or verify with.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct KeyArguments {
    /// File that contains the key.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Environment variable that contains the key.
    #[arg(long, value_name = "NAME")]
    key_env: Option<String>,
    /// Use the key of `spid serve --dev`.
    #[arg(long)]
    dev: bool,
}

impl KeyArguments {
    pub(crate) fn keys(&self) -> Result<Keys, Failure> {
        let (label, from, secret) = match (&self.key_file, &self.key_env) {
            (Some(path), _) => ("current", "--key-file", config::read_key(path)),
            (None, Some(name)) => {
                let value = ProcessEnvironment.get(name).map(Secret::new);
                (
                    "current",
                    "--key-env",
                    value.ok_or_else(|| format!("the environment variable `{name}` is not set, or not text")),
                )
            }
            // clap requires exactly one source, so this is `--dev`.
            (None, None) => ("dev", "--dev", Ok(Secret::new(DEV_KEY))),
        };
        let key = secret.and_then(|secret| Key::new(label, secret).map_err(|error| error.to_string()));
        let key = key.map_err(|text| Failure::new(Exit::Config, format!("`{from}`: {text}")))?;
        Keys::new(vec![key])
            .ok_or_else(|| Failure::new(Exit::Bug, "internal error: the list of keys is empty"))
    }
}

/// Reads the key in a file.
pub(crate) fn keys_in(path: &Path) -> Result<Keys, Failure> {
    let read =
        config::read_key(path).and_then(|secret| Keys::single(secret).map_err(|error| error.to_string()));
    read.map_err(|text| Failure::new(Exit::Config, format!("{}: {text}", path.display())))
}

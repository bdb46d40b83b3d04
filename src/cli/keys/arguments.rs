//! Sources of a command's key: a file or an environment variable. Arguments are visible to every user of the machine,
//! so a key is never taken from them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::{Exit, Failure, words};
use crate::config::{self, DEV_KEY, EndpointAccess, Environment, ProcessEnvironment};
use crate::net::Url;
use spid_core::dialect::{self, Dialect, Options};
use spid_core::lifecycle::Policy;
use spid_core::signature::{Key, Keys};
use spid_hook::Secret;

/// Key to sign or verify with.
#[derive(Args)]
#[group(required = false, multiple = false)]
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

/// Arguments that name an endpoint under test, and its key.
#[derive(Args)]
pub(crate) struct EndpointArguments {
    /// URL of the endpoint, as the marketplace would be given it. The default is the endpoint of --config, on this machine.
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    to: Option<Url>,
    #[command(flatten)]
    key: KeyArguments,
    /// Configuration of the daemon, which has the key and the address of the endpoint.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Endpoint of the configuration, if it has several.
    #[arg(long, value_name = "NAME", requires = "config")]
    endpoint: Option<String>,
}

impl EndpointArguments {
    /// Returns the URL and the keys.
    pub(crate) fn resolve(&self) -> Result<(Url, Keys), Failure> {
        let access = self.key.access(self.config.as_deref(), self.endpoint.as_deref())?;
        Ok((access.url_or(self.to.as_ref())?, access.keys))
    }
}

/// Arguments that say how to sign or verify: key and dialect, given or from an endpoint of the configuration.
#[derive(Args)]
pub(crate) struct SignatureArguments {
    #[command(flatten)]
    key: KeyArguments,
    /// Configuration file: its endpoint gives key, dialect and address.
    #[arg(long, value_name = "FILE", env = "SPID_CONFIG")]
    config: Option<PathBuf>,
    /// Name of the endpoint. Optional if there is only one.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["key_file", "key_env", "dev"])]
    endpoint: Option<String>,
    /// Dialect of the marketplace. The default is that of the configured endpoint, or alibaba.
    #[arg(long, value_parser = words::dialect())]
    dialect: Option<&'static dyn Dialect>,
}

impl SignatureArguments {
    /// Returns the keys with what is known of the endpoint, and the dialect.
    pub(crate) fn resolve(&self) -> Result<(Access, &'static dyn Dialect), Failure> {
        let access = self.key.access(self.config.as_deref(), self.endpoint.as_deref())?;
        let dialect = dialect_or_alibaba(self.dialect.or(access.dialect))?;
        Ok((access, dialect))
    }
}

/// Returns the dialect with this name.
pub(crate) fn dialect_named(name: &str) -> Result<&'static dyn Dialect, Failure> {
    dialect::by_name(name).ok_or_else(|| {
        let known: Vec<&str> = dialect::names().collect();
        Failure::new(Exit::Usage, format!("`{name}` is not a dialect; use {}", known.join(", ")))
    })
}

/// Returns the given dialect, or else the default one.
pub(crate) fn dialect_or_alibaba(
    given: Option<&'static dyn Dialect>,
) -> Result<&'static dyn Dialect, Failure> {
    given.map_or_else(|| dialect_named("alibaba"), Ok)
}

/// Endpoint that a command signs for, or verifies for.
pub(crate) struct Access {
    pub(crate) keys: Keys,
    /// Dialect of the configured endpoint.
    pub(crate) dialect: Option<&'static dyn Dialect>,
    /// URL of the configured endpoint at this machine; `None` behind TLS, where only a name is valid.
    pub(crate) url: Option<String>,
    /// Path of the configured endpoint.
    pub(crate) path: Option<String>,
    /// Policy of the configuration, or the default one.
    pub(crate) policy: Policy,
    /// Options of the configured endpoint, or the default ones.
    pub(crate) options: Options,
}

impl Access {
    /// Returns the given URL, or else that of the configured endpoint.
    pub(crate) fn url_or(&self, given: Option<&Url>) -> Result<Url, Failure> {
        if let Some(url) = given {
            return Ok(url.clone());
        }
        // A key on the command line goes before the configuration, and has no address.
        let Some(text) = &self.url else {
            return Err(Failure::new(Exit::Usage, "there is no URL of the endpoint").hint("give --to URL"));
        };
        text.parse().map_err(|error| Failure::new(Exit::Config, format!("the URL `{text}`: {error}")))
    }
}

impl KeyArguments {
    pub(crate) fn keys(&self) -> Result<Keys, Failure> {
        let (label, from, secret) = match (&self.key_file, &self.key_env, self.dev) {
            (Some(path), _, _) => ("current", "--key-file", config::read_key(path)),
            (None, Some(name), _) => {
                let value = ProcessEnvironment.get(name).map(Secret::new);
                (
                    "current",
                    "--key-env",
                    value.ok_or_else(|| format!("the environment variable `{name}` is not set, or not text")),
                )
            }
            (None, None, true) => ("dev", "--dev", Ok(Secret::new(DEV_KEY))),
            (None, None, false) => {
                return Err(Failure::new(Exit::Usage, "there is no key").hint(
                    "give --key-file FILE, --key-env NAME, or --dev for the key of `spid serve --dev`",
                ));
            }
        };
        let key = secret.and_then(|secret| Key::new(label, secret).map_err(|error| error.to_string()));
        let key = key.map_err(|text| Failure::new(Exit::Config, format!("`{from}`: {text}")))?;
        Keys::new(vec![key])
            .ok_or_else(|| Failure::new(Exit::Bug, "internal error: the list of keys is empty"))
    }

    /// Key, dialect and address: of these options, or else of an endpoint of the configuration. The name of the
    /// endpoint is optional if there is only one.
    pub(crate) fn access(&self, config: Option<&Path>, name: Option<&str>) -> Result<Access, Failure> {
        // `SPID_CONFIG` applies to every command, so a key on the command line goes before it.
        if self.is_given() {
            let (policy, options) = (Policy::default(), Options::default());
            return Ok(Access { keys: self.keys()?, dialect: None, url: None, path: None, policy, options });
        }
        let Some(config) = config else {
            return Err(Failure::new(Exit::Usage, "there is no key")
                .hint("give --config FILE, --key-file FILE or --key-env NAME, or --dev for the key of `spid serve --dev`"));
        };
        let found = config::endpoints_of(config, &ProcessEnvironment)?;
        let names: Vec<&str> = found.iter().map(|access| &*access.endpoint.name).collect();
        let index = match (name, names.as_slice()) {
            (None, [_]) => Some(0),
            (None, _) => {
                return Err(Failure::new(
                    Exit::Usage,
                    "there are several endpoints: choose one with --endpoint",
                )
                .hint(format!("use {}", names.join(", "))));
            }
            (Some(name), _) => names.iter().position(|known| *known == name),
        };
        let Some(EndpointAccess { endpoint, path, listen, is_tls, policy }) =
            index.and_then(|index| found.get(index))
        else {
            let name = name.unwrap_or_default();
            return Err(Failure::new(Exit::Usage, format!("no endpoint is called `{name}`"))
                .hint(format!("use {}", names.join(", "))));
        };
        let url = (!is_tls).then(|| format!("http://{}{path}", here(*listen)));
        Ok(Access {
            keys: endpoint.keys.clone(),
            dialect: Some(endpoint.dialect),
            url,
            path: Some(path.clone()),
            policy: *policy,
            options: endpoint.options.clone(),
        })
    }
}

impl KeyArguments {
    /// Key, dialect and address, like [`KeyArguments::access`]. The URL chooses the endpoint of the configuration by its
    /// path.
    pub(crate) fn access_at(&self, config: Option<&Path>, url: Option<&Url>) -> Result<Access, Failure> {
        let (Some(file), Some(url)) = (config, url) else { return self.access(config, None) };
        if self.is_given() {
            return self.access(config, None);
        }
        let called = url.target().split('?').next().unwrap_or_default();
        let found = config::endpoints_of(file, &ProcessEnvironment)?;
        match found.iter().find(|access| access.path == called) {
            Some(access) => self.access(config, Some(&access.endpoint.name)),
            None => Err(Failure::new(
                Exit::Usage,
                format!("no endpoint of the configuration has the path `{called}`"),
            )
            .hint("give the key: --key-file FILE or --key-env NAME")),
        }
    }

    /// Returns true if the key is named on the command line.
    fn is_given(&self) -> bool {
        self.key_file.is_some() || self.key_env.is_some() || self.dev
    }
}

/// Replaces an unspecified address by loopback: a listener on every address of this machine is reachable there, too.
pub(crate) fn here(listens: SocketAddr) -> SocketAddr {
    let ip = match listens.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listens.port())
}

/// Reads the key in a file.
pub(crate) fn keys_in(path: &Path) -> Result<Keys, Failure> {
    let read =
        config::read_key(path).and_then(|secret| Keys::single(secret).map_err(|error| error.to_string()));
    read.map_err(|text| Failure::new(Exit::Config, format!("{}: {text}", path.display())))
}

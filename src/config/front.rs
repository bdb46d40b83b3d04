//! What stands before the endpoints: TLS, the proxies before us, who may call, and how often in vain.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;

use super::{Builder, EndpointTable};
use crate::front::{Network, Proxies, ProxyHeader, Rate, RateOptions};
use crate::http::ServerTls;

/// `server.tls`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsTable {
    certificate: FileTable,
    key: FileTable,
}

/// Where a file is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTable {
    file: Option<PathBuf>,
    credential: Option<String>,
}

/// `rate`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RateTable {
    per_address: Option<String>,
    per_endpoint: Option<String>,
}

impl Builder<'_> {
    pub(super) fn server_tls(&mut self, table: Option<TlsTable>) -> Option<ServerTls> {
        let table = table?;
        let certificate = self.file("server.tls.certificate", &table.certificate);
        let key = self.file("server.tls.key", &table.key);
        let loaded = ServerTls::load(&certificate?, &key?);
        loaded.map_err(|error| self.mistake("server.tls", error.to_string())).ok()
    }

    fn file(&mut self, key: &str, table: &FileTable) -> Option<PathBuf> {
        let found = match (&table.file, &table.credential) {
            (Some(path), None) => Ok(path.clone()),
            (None, Some(name)) => self.credential_file(name),
            _ => Err("it has exactly one of `file` and `credential`".to_owned()),
        };
        found.map_err(|text| self.mistake(key, text)).ok()
    }

    /// The file of a systemd credential: it lies in the folder the unit was given.
    pub(super) fn credential_file(&self, name: &str) -> Result<PathBuf, String> {
        let folder = self.environment.get("CREDENTIALS_DIRECTORY").ok_or(
            "there is no CREDENTIALS_DIRECTORY: is this running as a systemd unit with LoadCredential=?",
        )?;
        if name.contains('/') || name.is_empty() {
            return Err(format!("`{name}` is not the name of a credential"));
        }
        Ok(Path::new(&folder).join(name))
    }

    pub(super) fn proxies(&mut self, trusted: &[String], header: ProxyHeader) -> Proxies {
        let trusted: Vec<Network> = self.networks("server.trusted_proxies", trusted);
        if trusted.iter().any(|network| network.is_everything()) {
            self.mistake(
                "server.trusted_proxies",
                "this trusts everybody to say who they are; name the networks your proxies call from",
            );
        }
        Proxies { trusted, header }
    }

    /// Who may call at each endpoint that does not take calls from anywhere.
    pub(super) fn allowed(&mut self, tables: &[EndpointTable]) -> HashMap<Arc<str>, Vec<Network>> {
        let mut allowed = HashMap::new();
        for (index, table) in tables.iter().enumerate() {
            let Some(networks) = &table.allow else { continue };
            let key = format!("endpoint[{index}].allow");
            if networks.is_empty() {
                self.mistake(key.as_str(), "this lets nobody in; leave it out to let everybody in");
            }
            allowed.insert(Arc::from(table.name.as_str()), self.networks(&key, networks));
        }
        allowed
    }

    fn networks(&mut self, key: &str, texts: &[String]) -> Vec<Network> {
        let mut networks = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            match text.parse() {
                Ok(network) => networks.push(network),
                Err(error) => self.mistake(format!("{key}[{index}]"), format!("{error}")),
            }
        }
        networks
    }

    pub(super) fn rate(&mut self, table: &RateTable) -> RateOptions {
        let default = RateOptions::default();
        RateOptions {
            per_address: self.one_rate("rate.per_address", table.per_address.as_deref(), default.per_address),
            per_endpoint: self.one_rate(
                "rate.per_endpoint",
                table.per_endpoint.as_deref(),
                default.per_endpoint,
            ),
        }
    }

    fn one_rate(&mut self, key: &str, text: Option<&str>, default: Option<Rate>) -> Option<Rate> {
        let Some(text) = text.filter(|text| *text != "off") else {
            return default.filter(|_| text.is_none());
        };
        Rate::from_str(text).map_err(|error| self.mistake(key, format!("{error}, or \"off\""))).ok()
    }
}

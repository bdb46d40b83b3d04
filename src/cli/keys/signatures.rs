//! `keys`: the signature keys of each endpoint, and the last use of each.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::app::in_process;
use crate::cli::inspect::or_dash;
use crate::cli::output::{Column, Output, Row};
use crate::cli::{Done, Inside};
use crate::config::{Config, ProcessEnvironment};
use crate::serve::intake::Endpoint;
use crate::store::{KeyUse, Reader, StoreError};

#[derive(Args)]
pub(crate) struct KeysArguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", env = "SPID_CONFIG")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Signature key of an endpoint, and its last use.
#[derive(Serialize)]
pub(crate) struct SignatureKey {
    endpoint: String,
    label: String,
    /// True for the first key of the endpoint; the others are previous keys.
    current: bool,
    /// Time since which the key has been configured; `None` if no daemon has recorded it yet.
    since: Option<Timestamp>,
    /// Time of the last signature, exact to an hour.
    used_at: Option<Timestamp>,
}

impl SignatureKey {
    /// Keys of one endpoint with these uses.
    pub(crate) fn of(endpoint: &Endpoint, uses: &[KeyUse]) -> Vec<SignatureKey> {
        let mut keys = Vec::new();
        for (index, key) in endpoint.configured_keys().enumerate() {
            // The mark differs if the label stood for another key when the use was recorded.
            let recorded = uses
                .iter()
                .find(|row| row.endpoint == *key.endpoint && row.label == *key.label && row.mark == key.mark);
            keys.push(SignatureKey {
                endpoint: key.endpoint.to_string(),
                label: key.label.to_string(),
                current: index == 0,
                since: recorded.map(|row| row.since),
                used_at: recorded.and_then(|row| row.used_at),
            });
        }
        keys
    }
}

impl std::fmt::Display for SignatureKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.used_at, self.since) {
            (Some(at), _) => write!(f, "{} (last used {at})", self.label),
            (None, Some(since)) => write!(f, "{} (unused since {since})", self.label),
            (None, None) => f.write_str(&self.label),
        }
    }
}

/// Recorded uses of keys; none if there is no database yet.
pub(crate) fn recorded_uses(config: &Config) -> Result<Vec<KeyUse>, StoreError> {
    match Reader::open(&config.store_path) {
        Ok(reader) => reader.key_uses(),
        Err(StoreError::NotThere(_)) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

pub(crate) fn keys(arguments: &KeysArguments, hook: Option<Inside>, output: &mut Output) -> Done {
    let config = Config::load(&arguments.config, &ProcessEnvironment, &[], in_process(hook.as_ref()))?;
    let uses = recorded_uses(&config)?;
    let endpoints = config.live.endpoints.iter();
    let keys: Vec<SignatureKey> =
        endpoints.flat_map(|(_, endpoint)| SignatureKey::of(endpoint, &uses)).collect();
    if arguments.json {
        return output.json(&keys);
    }
    output.rows(&keys)
}

impl Row for SignatureKey {
    const COLUMNS: &'static [Column<SignatureKey>] = &[
        ("ENDPOINT", |key| key.endpoint.clone()),
        ("KEY", |key| key.label.clone()),
        ("POSITION", |key| if key.current { "current" } else { "previous" }.to_owned()),
        ("LAST-USED", |key| or_dash(key.used_at)),
        ("SINCE", |key| or_dash(key.since)),
    ];
}

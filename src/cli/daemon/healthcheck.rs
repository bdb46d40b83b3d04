//! `healthcheck`: asks the admin listener of a daemon if it is ready, for a container's runtime and for scripts.
//!
//! The command exists because a small image contains no `curl`. It reads no key and no database, so any user who can
//! read the configuration can run it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cli::keys::arguments::here;
use crate::cli::output::Output;
use crate::cli::{Done, Exit, Failure, runtime};
use crate::config::{self, ProcessEnvironment};
use crate::net::{Client, ClientOptions, ClientRequest, Url};
use crate::observe::limits;

#[derive(Args)]
pub(crate) struct HealthcheckArguments {
    /// Configuration file, which contains the address of the admin listener.
    #[arg(long, value_name = "FILE", env = "SPID_CONFIG", required_unless_present = "url")]
    config: Option<PathBuf>,
    /// Send the request to this URL instead.
    #[arg(long, value_name = "URL", conflicts_with = "live")]
    url: Option<String>,
    /// Ask if the daemon is alive, not if it is ready. A daemon with a full disk is alive but not ready.
    #[arg(long)]
    live: bool,
    /// Print JSON: the body of `/readyz`.
    #[arg(long, conflicts_with = "live")]
    json: bool,
}

pub(crate) fn healthcheck(arguments: HealthcheckArguments, output: &mut Output) -> Done {
    let url = arguments.url()?;
    let within = Duration::from_millis(limits::HEALTHCHECK_MS);
    let client = Client::new(ClientOptions { connect: within, total: within, ..ClientOptions::default() });
    let answer = runtime()?.block_on(client.send(ClientRequest::get(url.clone())));
    let answer = answer.map_err(|error| Failure::new(Exit::Unavailable, format!("{url}: {error}")))?;
    if arguments.json {
        output.text(&String::from_utf8_lossy(&answer.body))?;
    }
    let said = in_words(&answer.body);
    match answer.status {
        200 if arguments.json => Ok(()),
        200 => output.line(&said),
        // A daemon that answers "not ready" (1) differs from one that does not answer (69).
        status => Err(Failure::new(Exit::NotMet, format!("{url}: {status} {said}"))),
    }
}

/// Readiness and its reasons, from the JSON of `/readyz`. Any other body is returned as it is.
fn in_words(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Readiness {
        ready: bool,
        #[serde(default)]
        reasons: Vec<String>,
    }
    match serde_json::from_slice(body) {
        Ok(Readiness { ready: true, .. }) => "ready".to_owned(),
        Ok(Readiness { reasons, .. }) => format!("not ready: {}", reasons.join("; ")),
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    }
}

impl HealthcheckArguments {
    fn url(&self) -> Result<Url, Failure> {
        let text = match (&self.url, &self.config) {
            (Some(url), _) => url.clone(),
            (None, Some(file)) => {
                let admin = here(config::admin_of(file, &ProcessEnvironment)?);
                format!("http://{admin}/{}", if self.live { "livez" } else { "readyz" })
            }
            (None, None) => return Err(Failure::new(Exit::Usage, "give --config or --url")),
        };
        text.parse().map_err(|error| Failure::new(Exit::Usage, format!("--url: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_it_is_not_ready_is_said() {
        assert_eq!(in_words(br#"{"ready":true,"store":{"writable":true}}"#), "ready");
        assert_eq!(in_words(br#"{"ready":false,"reasons":["a","b"]}"#), "not ready: a; b");
        assert_eq!(in_words(b"alive\n"), "alive");
    }

    #[test]
    fn everywhere_is_here_too() {
        for (listens, asks) in [
            ("0.0.0.0:8081", "127.0.0.1:8081"),
            ("[::]:8081", "[::1]:8081"),
            ("10.0.0.1:8081", "10.0.0.1:8081"),
        ] {
            assert_eq!(here(listens.parse().unwrap()).to_string(), asks);
        }
    }
}

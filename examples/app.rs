//! A receiver of one's own: spid with a hook inside, under its own name, with settings in its configuration.
//!
//! ```toml
//! [[hook]]
//! name = "acme"
//! in_process = { timeout = "1m", settings = { tenants = "/var/lib/acme", region = "eu-1" } }
//! ```
//!
//! The program has the complete command line of spid: `app serve --config spid.toml`, `app check-config …`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Deserialize;
use spid::hook::HookError;

mod tenants;

/// Settings of this program. `check-config` shows each mistake with its key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    tenants: PathBuf,
    #[serde(default)]
    region: Option<String>,
}

/// Makes the hook. `serve`, `demo` and `hook test` call it once; an error ends the program.
async fn start(settings: Settings) -> Result<tenants::Tenants, HookError> {
    if let Some(region) = settings.region.filter(|region| !region.starts_with("eu-")) {
        return Err(HookError::misconfigured(format!("there are no tenants in {region}")));
    }
    tokio::fs::create_dir_all(&settings.tenants).await?;
    Ok(tenants::Tenants::new(settings.tenants))
}

fn main() -> ExitCode {
    spid::App::start(start).name("acme-receiver").version("3.1.4").run()
}

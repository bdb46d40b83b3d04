//! A provisioning hook in Rust that spid calls over HTTP, without spid inside.
//!
//! ```sh
//! export SPID_HOOK_SECRET="whsec_$(openssl rand -base64 32)" HOOK_ANSWER_KEY="$(openssl rand -hex 32)"
//! cargo run --example http_main -- 127.0.0.1:8090 /var/lib/my-app
//! ```
//!
//! ```toml
//! [[hook]]
//! name = "provision"
//! http = { url = "http://127.0.0.1:8090/", secret = { env = "SPID_HOOK_SECRET" } }
//! ```
//!
//! There is no TLS: listen on a loopback address or in a private network, or behind a proxy.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use spid_hook::Secret;
use spid_hook::http::{AnswerKey, HttpOptions, http_main};
use spid_hook::webhook::WebhookKeys;

mod tenants;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (root, options) = options()?;
    Ok(http_main(tenants::Tenants::new(root), options))
}

fn options() -> Result<(PathBuf, HttpOptions), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().ok_or("usage: http_main ADDRESS:PORT FOLDER")?.parse()?;
    let root = PathBuf::from(arguments.next().ok_or("usage: http_main ADDRESS:PORT FOLDER")?);
    let secret = variable("SPID_HOOK_SECRET").ok_or("SPID_HOOK_SECRET is not set")?;
    // Two secrets with a space between them, while the secret is changed.
    let mut options = HttpOptions::new(listen, WebhookKeys::read(&secret)?).answers(root.join("answers"));
    // Without a key the answers are not kept, because they hold passwords.
    if let Some(key) = variable("HOOK_ANSWER_KEY") {
        options = options.answer_key(AnswerKey::new(&key)?);
    }
    Ok((root, options))
}

fn variable(name: &str) -> Option<Secret> {
    std::env::var_os(name)?.into_string().ok().map(Secret::new)
}

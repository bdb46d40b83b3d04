//! `sign`: prints a signed request, as a marketplace would send it.

use clap::Args;
use serde::Serialize;

use crate::cli::keys::arguments::{Access, SignatureArguments};
use crate::cli::output::Output;
use crate::cli::{Done, Exit, Failure};
use spid_core::dialect::{OutRequest, SendForm, Sending};
use spid_hook::time::Clock;

#[derive(Args)]
pub(crate) struct SignArguments {
    #[command(flatten)]
    signature: SignatureArguments,
    /// URL that the request is for. The default is that of the configured endpoint, or http://127.0.0.1:8080/spi.
    #[arg(long, alias = "url", value_name = "URL")]
    to: Option<String>,
    /// Send the parameters as a POST form.
    #[arg(long)]
    post: bool,
    /// Print method, URL, headers and body as JSON.
    #[arg(long)]
    json: bool,
    /// Action in the marketplace's spelling, like createInstance.
    action: String,
    /// Parameters of the request.
    #[arg(value_name = "NAME=VALUE")]
    parameters: Vec<String>,
}

#[derive(Serialize)]
struct Signed<'a> {
    method: &'a str,
    url: &'a str,
    headers: std::collections::BTreeMap<&'a str, &'a str>,
    body: &'a str,
}

pub(crate) fn sign(arguments: SignArguments, output: &mut Output) -> Done {
    let (Access { keys, url, .. }, dialect) = arguments.signature.resolve()?;
    let to = arguments.to.or(url).unwrap_or_else(|| "http://127.0.0.1:8080/spi".to_owned());
    let parameters = pairs(&arguments.parameters)?;
    let mut sending = Sending::at(Clock::System.now());
    if arguments.post {
        sending.form = SendForm::Form;
    }
    let request = dialect.request(&arguments.action, &parameters, &keys, &sending);
    let separator = if to.contains('?') { '&' } else { '?' };
    let url = match request.query.as_str() {
        "" => to,
        query => format!("{to}{separator}{query}"),
    };
    let body = String::from_utf8_lossy(&request.body);
    if arguments.json {
        let headers = request.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        return output.json(&Signed { method: request.method, url: &url, headers, body: &body });
    }
    if request.method == "GET" { output.line(&url) } else { print_whole(&request, &url, &body, output) }
}

fn print_whole(request: &OutRequest, url: &str, body: &str, output: &mut Output) -> Done {
    output.line(&format!("{} {url}", request.method))?;
    for (name, value) in &request.headers {
        output.line(&format!("{name}: {value}"))?;
    }
    output.line("")?;
    output.line(body)
}

fn pairs(texts: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut pairs = Vec::new();
    for text in texts {
        let Some((name, value)) = text.split_once('=') else {
            let message = format!("`{text}` is not a parameter: expected NAME=VALUE");
            return Err(Failure::new(Exit::Usage, message));
        };
        pairs.push((name.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

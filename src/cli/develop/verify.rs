//! `verify`: verifies the signature of a request, and explains why it is not valid.
//!
//! The command never prints a key or the digest that a key gives, so the output contains nothing to sign with.
//! [`explain`] finds the likely mistake of the sender.

use clap::Args;
use serde::Serialize;

use crate::cli::keys::arguments::SignatureArguments;
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure};
use spid_core::dialect::{Denial, Options, RawRequest, explain, shown_base};
use spid_core::query::{TOKEN_PLACEHOLDER, names_a_token};
use spid_hook::callback::Callback;
use spid_hook::time::Clock;

#[derive(Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    signature: SignatureArguments,
    /// Body of the request. Makes it a POST request: JSON if the text begins with `{`, else a form.
    #[arg(long, value_name = "TEXT")]
    body: Option<String>,
    /// Header of the request; can be repeated.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Print the verdict as JSON.
    #[arg(long)]
    json: bool,
    /// URL of the request, or only its query string.
    #[arg(default_value = "")]
    url: String,
}

#[derive(Serialize)]
struct Verdict {
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<Callback>,
}

pub(crate) fn verify(arguments: VerifyArguments, output: &mut Output) -> Done {
    let verdict = judge(&arguments)?;
    if arguments.json {
        output.json(&verdict)?;
    } else {
        print(&verdict, output)?;
    }
    if verdict.verified { Ok(()) } else { Err(Failure::new(Exit::NotMet, "the signature is not valid")) }
}

fn judge(arguments: &VerifyArguments) -> Result<Verdict, Failure> {
    let (keys, _, dialect) = arguments.signature.resolve()?;
    let headers = headers(arguments)?;
    // The argument may be a whole URL or only its query string.
    let query = arguments.url.split_once('?').map_or(arguments.url.as_str(), |(_, query)| query);
    // Names are in lower case, because header names are not case-sensitive.
    let header =
        |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let request = RawRequest {
        method: if arguments.body.is_some() { "POST" } else { "GET" },
        query: query.as_bytes(),
        header: &header,
        body: arguments.body.as_deref().unwrap_or_default().as_bytes(),
    };
    let signed = match dialect.parts(&request, Clock::System.now()) {
        Ok(signed) => signed,
        Err(refusal) => return Ok(refused(&refusal)),
    };
    // Verification consumes the request, but the explanation of a failure needs its parts.
    let parts = signed.parts.clone();
    let presented = signed.presented.clone();
    Ok(match signed.verify(&keys) {
        Ok(verified) => Verdict {
            verified: true,
            key: Some(verified.key_label().to_string()),
            reason: None,
            explanation: None,
            base: Some(shown_base(&parts)),
            callback: Some(without_tokens(dialect.callback(verified, &Options::default()))),
        },
        Err(mismatch) => Verdict {
            explanation: Some(explain(mismatch, &parts, presented.as_deref(), &keys)),
            base: Some(shown_base(&parts)),
            ..refused(&mismatch.into())
        },
    })
}

/// Replaces the values of parameters whose names look like a token's.
fn without_tokens(callback: Callback) -> Callback {
    let mut parameters = Vec::new();
    for (name, value) in callback.parameters.iter() {
        let shown = if names_a_token(name) { TOKEN_PLACEHOLDER } else { value };
        parameters.push((name.to_owned(), shown.to_owned()));
    }
    let parameters = parameters.into_iter().collect();
    Callback { parameters, ..callback }
}

fn refused(refusal: &Denial) -> Verdict {
    Verdict {
        verified: false,
        key: None,
        reason: Some(refusal.reason()),
        explanation: Some(refusal.to_string()),
        base: None,
        callback: None,
    }
}

fn headers(arguments: &VerifyArguments) -> Result<Vec<(String, String)>, Failure> {
    let mut headers = Vec::new();
    if let Some(body) = &arguments.body {
        let kind = match body.trim_start().starts_with('{') {
            true => "application/json",
            false => "application/x-www-form-urlencoded",
        };
        headers.push(("content-type".to_owned(), kind.to_owned()));
    }
    for text in &arguments.headers {
        let (name, value) = text.split_once(':').ok_or_else(|| {
            Failure::new(Exit::Usage, format!("`{text}` is not a header: expected NAME: VALUE"))
        })?;
        let name = name.trim().to_ascii_lowercase();
        // A header of the command line replaces the default content type.
        headers.retain(|(known, _)| *known != name);
        headers.push((name, value.trim().to_owned()));
    }
    Ok(headers)
}

fn print(verdict: &Verdict, output: &mut Output) -> Done {
    match &verdict.key {
        Some(label) => output.line(&format!("the signature is valid: key `{label}`"))?,
        None => output.line(&format!(
            "the signature is not valid: {}",
            verdict.explanation.as_deref().unwrap_or_default()
        ))?,
    }
    if let Some(base) = &verdict.base {
        output.line(&format!("base string: {}", shown(base)))?;
    }
    if let Some(callback) = &verdict.callback {
        output.line(&format!("action: {}", callback.action))?;
        for issue in &callback.issues {
            output.line(&format!("the callback would be held: {issue}"))?;
        }
    }
    Ok(())
}

//! `verify`: verifies the signature of a request, and explains why it is not valid.
//!
//! The command never prints a key or the digest that a key gives, so the output contains nothing to sign with.
//! [`explain`] finds the likely mistake of the sender.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::keys::arguments::{Access, SignatureArguments};
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure};
use crate::serve::public::resembles;
use spid_core::dialect::{Denial, Dialect, RawRequest, explain, shown_base};
use spid_core::lifecycle::{Policy, Reason};
use spid_core::query::{TOKEN_PLACEHOLDER, names_a_token};
use spid_hook::callback::{Action, Callback};
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
    /// URL of the request, its first line, or only its query string.
    #[arg(default_value = "")]
    url: String,
}

/// A request as it was pasted: `GET /spi?… HTTP/1.1`, a URL, a path with a query, or a query.
struct Pasted<'a> {
    method: Option<&'a str>,
    /// Path; `None` for a query alone.
    path: Option<&'a str>,
    query: &'a str,
}

impl<'a> Pasted<'a> {
    fn read(text: &'a str) -> Pasted<'a> {
        let text = text.trim().trim_matches(['"', '\'']);
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (method, target) = match words.as_slice() {
            [method, target, rest @ ..]
                if method.bytes().all(|byte| byte.is_ascii_uppercase())
                    && rest.first().is_none_or(|version| version.starts_with("HTTP/")) =>
            {
                (Some(*method), *target)
            }
            _ => (None, text),
        };
        // A value of a query may be a URL, too.
        let before_values = target.split(['?', '=']).next().unwrap_or_default();
        let is_query = !target.starts_with('/') && !before_values.contains("://");
        if is_query {
            return Pasted { method, path: None, query: target.trim_start_matches('?') };
        }
        // A browser shows the part behind `#`, and never sends it.
        let target = target.split('#').next().unwrap_or_default();
        let (before, query) = target.split_once('?').unwrap_or((target, ""));
        let path = match before.split_once("://") {
            Some((_, behind)) => behind.find('/').and_then(|at| behind.get(at..)),
            None => Some(before).filter(|before| before.starts_with('/')),
        };
        Pasted { method, path, query }
    }
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
    /// Reason why the daemon refuses the request although its signature is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
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
    match (verdict.verified, verdict.refusal) {
        (true, None) => Ok(()),
        (true, Some(_)) => {
            Err(Failure::new(Exit::NotMet, "the signature is valid, and spid refuses the request"))
        }
        (false, _) => Err(Failure::new(Exit::NotMet, "the signature is not valid")),
    }
}

fn judge(arguments: &VerifyArguments) -> Result<Verdict, Failure> {
    let (Access { keys, path, policy, options, .. }, dialect) = arguments.signature.resolve()?;
    let headers = headers(arguments)?;
    let pasted = Pasted::read(&arguments.url);
    // Names are in lower case, because header names are not case-sensitive.
    let header =
        |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let request = RawRequest {
        method: pasted.method.unwrap_or(if arguments.body.is_some() { "POST" } else { "GET" }),
        query: pasted.query.as_bytes(),
        header: &header,
        body: arguments.body.as_deref().unwrap_or_default().as_bytes(),
    };
    let now = Clock::System.now();
    let signed = match dialect.parts(&request, now) {
        Ok(signed) => signed,
        Err(refusal) => return Ok(refused(&refusal)),
    };
    // Verification consumes the request, but the explanation of a failure needs its parts.
    let parts = signed.parts.clone();
    let presented = signed.presented.clone();
    Ok(match signed.verify(&keys) {
        Ok(verified) => {
            let key = Some(verified.key_label().to_string());
            let callback = dialect.callback(verified, &options);
            let refusal = fault_of_path(pasted.path, path.as_deref(), dialect)
                .or_else(|| fault_of_time(&callback, policy, now));
            Verdict {
                verified: true,
                key,
                reason: None,
                explanation: None,
                base: Some(shown_base(&parts)),
                refusal,
                callback: Some(without_tokens(callback)),
            }
        }
        Err(mismatch) => Verdict {
            explanation: Some(explain(mismatch, &parts, presented.as_deref(), &keys)),
            base: Some(shown_base(&parts)),
            ..refused(&mismatch.into())
        },
    })
}

/// Explains that the path is not the endpoint's own, but nearly: the daemon compares paths byte by byte. Any other path
/// may be one that a proxy changes.
fn fault_of_path(called: Option<&str>, path: Option<&str>, dialect: &dyn Dialect) -> Option<String> {
    let (called, path) = (called?, path?);
    let own = dialect.path_suffixes().iter().map(|tail| format!("{}{tail}", path.trim_end_matches('/')));
    let own: Vec<String> = std::iter::once(path.to_owned()).chain(own).collect();
    if own.iter().any(|own| own == called) {
        return None;
    }
    let near = own.iter().find(|own| resembles(called, own))?;
    Some(format!("its path is `{called}`, and the endpoint's is `{near}`: the answer is 404"))
}

/// Explains that the daemon takes a sign-on for an old one, as [`lifecycle::decide`](spid_core::lifecycle::decide) does.
fn fault_of_time(callback: &Callback, policy: Policy, now: Timestamp) -> Option<String> {
    (callback.action == Action::SignOn && !policy.is_fresh(callback.sent_at, now))
        .then(|| Reason::SignOnStale.to_string())
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
        refusal: None,
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
    if let Some(refusal) = &verdict.refusal {
        output.line(&format!("spid refuses the request: {}", shown(refusal)))?;
    }
    if let Some(callback) = &verdict.callback {
        output.line(&format!("action: {}", callback.action))?;
        for issue in &callback.issues {
            output.line(&format!("the callback would be held: {issue}"))?;
        }
    }
    Ok(())
}

//! `--reveal`: shows the passwords in a hook's answers. Who asked, and why, is recorded before anything is shown.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use crate::cli::output::{Output, shown};
use crate::cli::repair;
use crate::cli::{Done, Failure, StoreArguments};
use crate::store::{Decrypted, JobRow};
use spid_hook::callback::Answer;

#[derive(Args)]
pub(crate) struct RevealArguments {
    /// Show passwords and license keys of the answers, too. The audit log records who looked, and why.
    #[arg(long, requires = "why")]
    reveal: bool,
    /// Reason for looking, for the audit log.
    #[arg(long, value_name = "TEXT", requires = "reveal")]
    why: Option<String>,
    /// Name of the person who looks; the default is your user name, under sudo the name of the user who called it.
    #[arg(long, value_name = "NAME", requires = "reveal")]
    who: Option<String>,
}

impl RevealArguments {
    /// Secrets in the answers of these jobs; `None` if `--reveal` was not given.
    pub(crate) fn secrets<'j>(
        &self,
        store: &StoreArguments,
        target: &str,
        jobs: impl IntoIterator<Item = &'j JobRow>,
    ) -> Result<Option<Vec<Secrets>>, Failure> {
        if !self.reveal {
            return Ok(None);
        }
        let act = repair::audit_note(self.who.as_deref(), self.why.as_deref().unwrap_or_default())?;
        let jobs: Vec<JobRow> = jobs.into_iter().cloned().collect();
        // `decrypt` writes the audit entry before it decrypts.
        let revealed = repair::operations(store)?.decrypt(target, &jobs, &act)?;
        Ok(Some(revealed.into_iter().map(Secrets::from).collect()))
    }
}

/// JSON output: the shown object, and the secrets if `--reveal` was given.
#[derive(Serialize)]
pub(crate) struct WithSecrets<'a, T> {
    #[serde(flatten)]
    pub(crate) shown: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secrets: Option<Vec<Secrets>>,
}

/// Secrets of one answer, with their names in the JSON of hooks.
#[derive(Serialize)]
pub(crate) struct Secrets {
    job: String,
    action: &'static str,
    values: BTreeMap<String, String>,
}

impl From<Decrypted> for Secrets {
    fn from(Decrypted { job, action, answer }: Decrypted) -> Secrets {
        Secrets { job: job.to_string(), action: action.as_str(), values: values(&answer) }
    }
}

fn values(answer: &Answer) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for (section, fields) in [("app", &answer.app), ("host", &answer.host), ("info", &answer.info)] {
        for (field, value) in fields.iter() {
            values.insert(format!("{section}.{field}"), value.expose().to_owned());
        }
    }
    for (name, text) in [("redirect", &answer.redirect), ("body", &answer.body)] {
        values.extend(text.as_ref().map(|text| (name.to_owned(), text.expose().to_owned())));
    }
    values
}

pub(crate) fn print(secrets: Option<Vec<Secrets>>, output: &mut Output) -> Done {
    let Some(secrets) = secrets else { return Ok(()) };
    output.line("")?;
    if secrets.is_empty() {
        return output.line("no encrypted fields");
    }
    for Secrets { job, action, values } in secrets {
        output.line(&format!("job {job} ({action}) answered"))?;
        for (name, value) in values {
            output.line(&format!("  {} = {}", shown(&name), shown(&value)))?;
        }
    }
    Ok(())
}

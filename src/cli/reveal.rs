//! `--reveal`: the passwords a hook answered with. Who looked, and why, is kept before anything is shown.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::output::{Output, shown};
use super::{Done, Failure, StoreArguments, mend};
use crate::hook::callback::{Answer, Fields};
use crate::store::{JobRow, Revealed};

#[derive(Args)]
pub(super) struct RevealArguments {
    /// Show the passwords and licence keys it was answered with, too. It is kept who looked, and why.
    #[arg(long, requires = "why")]
    reveal: bool,
    /// Why they are looked at.
    #[arg(long, value_name = "TEXT", requires = "reveal")]
    why: Option<String>,
    /// Who looks, if not the user this runs as.
    #[arg(long, value_name = "NAME", requires = "reveal")]
    who: Option<String>,
}

impl RevealArguments {
    /// What is sealed in the answers of these jobs; `None` when nobody asked for it.
    pub(super) fn secrets(
        &self,
        store: &StoreArguments,
        target: &str,
        jobs: &[JobRow],
    ) -> Result<Option<Vec<Secrets>>, Failure> {
        if !self.reveal {
            return Ok(None);
        }
        let act = mend::act(self.who.as_deref(), self.why.as_deref().unwrap_or_default())?;
        let revealed = mend::mender(store)?.reveal(target, jobs, &act)?;
        Ok(Some(revealed.into_iter().map(Secrets::from).collect()))
    }
}

/// What is shown, and the secrets if they were asked for.
#[derive(Serialize)]
pub(super) struct WithSecrets<'a, T> {
    #[serde(flatten)]
    pub(super) shown: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) secrets: Option<Vec<Secrets>>,
}

/// The secrets of one answer, by what they are called in the JSON of hooks.
#[derive(Serialize)]
pub(super) struct Secrets {
    job: String,
    action: &'static str,
    values: BTreeMap<String, String>,
}

impl From<Revealed> for Secrets {
    fn from(Revealed { job, action, answer }: Revealed) -> Secrets {
        Secrets { job: job.to_string(), action: action.as_str(), values: values(&answer) }
    }
}

fn values(answer: &Answer) -> BTreeMap<String, String> {
    let section = |name: &'static str, fields: &Fields| -> Vec<(String, String)> {
        fields.iter().map(|(field, value)| (format!("{name}.{field}"), value.expose().to_owned())).collect()
    };
    let alone = [("redirect", &answer.redirect), ("body", &answer.body)];
    let alone = alone.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.as_ref()?)));
    let sections = [("app", &answer.app), ("host", &answer.host), ("info", &answer.info)];
    let sections = sections.into_iter().flat_map(|(name, fields)| section(name, fields));
    sections.chain(alone.map(|(name, text)| (name, text.expose().to_owned()))).collect()
}

pub(super) fn print(secrets: Option<Vec<Secrets>>, output: &mut Output) -> Done {
    let Some(secrets) = secrets else { return Ok(()) };
    output.line("")?;
    if secrets.is_empty() {
        return output.line("nothing of it is sealed");
    }
    for Secrets { job, action, values } in secrets {
        output.line(&format!("job {job} ({action}) answered"))?;
        for (name, value) in values {
            output.line(&format!("  {} = {}", shown(&name), shown(&value)))?;
        }
    }
    Ok(())
}

//! Ids of jobs on the command line: a whole id, or a beginning that only one job has.

use crate::cli::{Exit, Failure, StoreArguments};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::id::Id;

/// Maximum number of candidates that an error lists.
const CANDIDATES_MAX_COUNT: usize = 10;

/// Finds the job whose id is, or begins with, this text.
pub(crate) fn job_id(store: &StoreArguments, text: &str) -> Result<Id, Failure> {
    let not_an_id = match text.parse::<Id>() {
        Ok(id) => return Ok(id),
        Err(error) => error,
    };
    let wanted = text.to_ascii_lowercase();
    if wanted.is_empty() || !wanted.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-') {
        return Err(Failure::new(Exit::Usage, not_an_id.to_string()));
    }
    let mut found = store.reader()?.job_words()?;
    found.retain(|(id, ..)| id.to_string().starts_with(&wanted));
    match found.as_slice() {
        [(id, ..)] => Ok(*id),
        [] => Err(Failure::new(Exit::NoInput, format!("no job has an id that begins with `{wanted}`"))),
        several => Err(ambiguous(&wanted, several)),
    }
}

fn ambiguous(wanted: &str, jobs: &[(Id, &'static str, JobState)]) -> Failure {
    let mut message = format!("{} jobs have an id that begins with `{wanted}`:", jobs.len());
    for (id, word, state) in jobs.iter().take(CANDIDATES_MAX_COUNT) {
        message.push_str(&format!("\n  {id}  {word}  {}", state.as_str()));
    }
    if jobs.len() > CANDIDATES_MAX_COUNT {
        message.push_str("\n  …");
    }
    Failure::new(Exit::Usage, message)
}

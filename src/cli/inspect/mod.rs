//! Commands that show recorded data. They only read, except `--reveal`: it writes an audit entry before it shows a
//! password.

pub(crate) mod attention;
pub(crate) mod audit;
pub(crate) mod callbacks;
mod decrypt;
mod export;
pub(crate) mod held;
pub(crate) mod ids;
pub(crate) mod instances;
pub(crate) mod jobs;
pub(crate) mod lines;

use clap::Args;

use crate::cli::{Exit, Failure, StoreArguments};
use crate::observe::limits;
use crate::store::ViewError;

const JOB_HINT: &str = "hint: a dead or held job: `spid jobs show JOB`, then `spid jobs retry JOB --why …`, `spid jobs drop JOB --why …`, or do it by hand and `spid instances complete INSTANCE --why …`";

#[derive(Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Maximum number of rows, the newest first.
    #[arg(long, value_name = "COUNT", default_value_t = limits::LIST_DEFAULT_COUNT)]
    limit: usize,
}

#[derive(Args)]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl From<ViewError> for Failure {
    fn from(error: ViewError) -> Failure {
        let text = error.to_string();
        match error {
            ViewError::Store(error) => error.into(),
            ViewError::NotFound(_) => Failure::new(Exit::NoInput, text),
            ViewError::NoInstance(_) => {
                Failure::new(Exit::NoInput, text).hint("`spid instances list` lists the known instances")
            }
            ViewError::Several { name, accounts } => {
                Failure::new(Exit::Usage, format!("several accounts have an instance with the name `{name}`"))
                    .hint(format!("choose one with --account: {}", accounts.join(", ")))
            }
        }
    }
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

/// Text of a value, or a dash.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

//! `instances`, `jobs`, `callbacks`, `held`, `attention`, `acts`: show recorded data. These commands only read,
//! except `--reveal`: it writes an audit entry before it shows a password.

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::output::{Output, shown};
use super::reveal::{self, RevealArguments, WithSecrets};
use super::{Done, Exit, Failure, StoreArguments, export, mend};
use crate::observe::limits;
use crate::store::{
    AttentionItem, AuditEntry, CallbackDetail, CallbackRow, Filter, HeldItem, InstanceHistory, InstanceRow,
    JobDetail, JobRow, ListedCallback, ViewError,
};
use spid_core::lifecycle::schedule;
use spid_hook::callback::Action;
use spid_hook::id::Id;
use spid_hook::instance::State;
use spid_hook::time::Clock;

const JOB_HINT: &str = "hint: a dead or held job: `spid jobs show JOB`, then `spid jobs retry JOB --why …`, `spid jobs drop JOB --why …`, or do it by hand and `spid instances complete INSTANCE --why …`";
const RESET_HINT: &str = "hint: the marketplace stops after its delivery limit; reset the count on the seller's production message retry page";

#[derive(Args)]
pub(super) struct ListArguments {
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
pub(super) struct ShowArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
pub(super) enum InstancesCommand {
    /// List instances, the newest first.
    List {
        #[command(flatten)]
        list: ListArguments,
        /// List only instances in this state: pending, active, frozen or released.
        #[arg(long)]
        state: Option<String>,
        /// List only instances of this account.
        #[arg(long)]
        account: Option<String>,
    },
    /// Show one instance and everything that happened to it.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        #[command(flatten)]
        reveal: RevealArguments,
        /// Id or orderBizId of the instance.
        id: String,
        /// Account of the instance, if several accounts have an instance of that name.
        #[arg(long)]
        account: Option<String>,
    },
    /// Export an instance's history as a scenario that can be replayed, without personal data.
    Export(export::ExportInstanceArguments),
    /// Complete the job that an instance waits for: the hook left it pending, or you did the work by hand.
    Complete(mend::CompleteArguments),
    /// Record that the buyer has claimed the instance: signed up, or chose a tenant.
    Claim(mend::ClaimArguments),
    /// Release an instance, as if the marketplace had asked for it.
    Release(mend::ReleaseArguments),
    /// Import instances that existed before spid did.
    Import(mend::ImportArguments),
}

#[derive(Subcommand)]
pub(super) enum JobsCommand {
    /// List jobs, the newest first.
    List {
        #[command(flatten)]
        list: ListArguments,
        /// List only jobs in this state: queued, running, pending, held, dead, done, refused, dropped or cancelled.
        #[arg(long)]
        state: Option<String>,
    },
    /// Show one job and its attempts.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        #[command(flatten)]
        reveal: RevealArguments,
        /// Id of the job: the idempotency key of the hook's calls.
        id: String,
    },
    /// Retry a job once, now. The attempt does not count against its retry schedule.
    Retry(mend::JobArguments),
    /// Cancel a job without running it. Jobs behind it go on; jobs behind a create end, too, because there is no
    /// instance.
    Drop(mend::JobArguments),
    /// Complete a pending, dead or held job with the answer of work that was done by hand.
    Complete(mend::CompleteJobArguments),
}

#[derive(Subcommand)]
pub(super) enum CallbacksCommand {
    /// List callbacks, the newest first. Redeliveries are counted, not listed.
    List {
        #[command(flatten)]
        list: ListArguments,
        /// List only callbacks with an unreported result: the hook is done, but the marketplace has not called again.
        #[arg(long, alias = "untold")]
        unreported: bool,
    },
    /// Show one callback with all its parameters.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        /// Number of the callback.
        number: i64,
    },
    /// Export callbacks as a scenario that can be replayed, without personal data.
    Export(export::ExportCallbacksArguments),
    /// Resend a callback to a URL, with a new signature. A daemon treats it like any delivery, so a result in the
    /// answer counts as reported to the marketplace.
    Resend(Box<mend::ResendArguments>),
}

#[derive(Subcommand)]
pub(super) enum HeldCommand {
    /// List held callbacks, and jobs that are held, dead or pending.
    List {
        #[command(flatten)]
        list: ListArguments,
    },
    /// Show a held callback with all its parameters.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        /// Number of the callback.
        number: i64,
    },
    /// Approve a held callback, so that it runs.
    Approve(mend::ApproveArguments),
    /// Reject a held callback and its redeliveries.
    Reject(mend::RejectArguments),
    /// Settle a held callback that repeats finished work: answer it with success, and run nothing.
    Settle(mend::RejectArguments),
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct AttentionArguments {
    #[command(subcommand)]
    command: Option<AttentionCommand>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Subcommand)]
enum AttentionCommand {
    /// Dismiss callbacks from the list after you have handled them. Nothing else changes.
    Dismiss(mend::DismissArguments),
}

#[derive(Args)]
pub(super) struct ActsArguments {
    #[command(flatten)]
    list: ListArguments,
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

pub(super) fn instances(command: InstancesCommand, output: &mut Output) -> Done {
    match command {
        InstancesCommand::List { list, state, account } => {
            let state = state
                .map(|word| known(&word, State::from_word(&word), "pending, active, frozen, released"))
                .transpose()?;
            let filter = Filter { state, account, limit: list.limit, ..Filter::default() };
            let rows = list.store.reader()?.instances(&filter)?;
            if list.json { output.json(&rows) } else { instances_table(&rows, output) }
        }
        InstancesCommand::Show { show, reveal, id, account } => {
            let life = show.store.reader()?.life(&id, account.as_deref())?;
            let instance = &life.instance.instance;
            let target = format!("instance {} of {}", text(life.instance.name()), instance.account);
            // The audit entry is written here, before anything is printed.
            let secrets = reveal.secrets(&show.store, &target, &life.jobs)?;
            if show.json {
                return output.json(&WithSecrets { shown: &life, secrets });
            }
            print_life(&life, output)?;
            reveal::print(secrets, output)
        }
        InstancesCommand::Export(arguments) => export::instance(arguments, output),
        InstancesCommand::Complete(arguments) => mend::complete(arguments, output),
        InstancesCommand::Claim(arguments) => mend::claim(arguments, output),
        InstancesCommand::Release(arguments) => mend::release(arguments, output),
        InstancesCommand::Import(arguments) => mend::import(arguments, output),
    }
}

fn known<T>(word: &str, found: Option<T>, words: &str) -> Result<T, Failure> {
    found.ok_or_else(|| Failure::new(Exit::Usage, format!("`{word}` is not a state; use {words}")))
}

fn instances_table(rows: &[InstanceRow], output: &mut Output) -> Done {
    let cells = |row: &InstanceRow| {
        let instance = &row.instance;
        vec![
            text(row.name()),
            instance.state.to_string(),
            instance.account.clone(),
            text(instance.buyer.as_deref()),
            text(instance.product.as_deref()),
            text(instance.sku.as_deref()),
            time(instance.expires_on),
            time(instance.claimed_at),
        ]
    };
    let header = ["ID", "STATE", "ACCOUNT", "BUYER", "PRODUCT", "SKU", "EXPIRES", "CLAIMED"];
    output.table(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.to_string())
}

fn print_life(life: &InstanceHistory, output: &mut Output) -> Done {
    let instance = &life.instance.instance;
    let items: Vec<String> = instance.items.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let facts = [
        ("id", text(instance.id.as_deref())),
        ("public_id", text(life.instance.marketplace_instance_id.as_deref())),
        ("state", instance.state.to_string()),
        ("account", instance.account.clone()),
        ("order_biz_id", text(instance.order_biz_id.as_deref())),
        ("order_id", text(instance.order_id.as_deref())),
        ("buyer", text(instance.buyer.as_deref())),
        ("product", text(instance.product.as_deref())),
        ("sku", text(instance.sku.as_deref())),
        ("items", if items.is_empty() { "-".to_owned() } else { items.join(", ") }),
        ("trial", instance.trial.map_or_else(|| "-".to_owned(), |trial| trial.to_string())),
        ("expires_on", time(instance.expires_on)),
        ("created_at", instance.created_at.to_string()),
        ("claimed_at", time(instance.claimed_at)),
        ("tenant", text(instance.tenant.as_deref())),
    ];
    for (name, value) in facts {
        output.line(&format!("{name:<13} {}", shown(&value)))?;
    }
    output.line("")?;
    callbacks_table(&life.callbacks, output)?;
    output.line("")?;
    jobs_table(&life.jobs, output)
}

pub(super) fn jobs(command: JobsCommand, output: &mut Output) -> Done {
    match command {
        JobsCommand::List { list, state } => {
            let find = |word: &str| schedule::JobState::ALL.into_iter().find(|state| state.as_str() == word);
            let words: Vec<&str> = schedule::JobState::ALL.iter().map(|state| state.as_str()).collect();
            let state = state.map(|word| known(&word, find(&word), &words.join(", "))).transpose()?;
            let filter = Filter { jobs: state.into_iter().collect(), limit: list.limit, ..Filter::default() };
            let rows = list.store.reader()?.jobs(&filter)?;
            if list.json {
                return output.json(&rows);
            }
            jobs_table(&rows, output)?;
            if rows.iter().any(|row| matches!(row.state, schedule::JobState::Dead | schedule::JobState::Held))
            {
                output.print_error(JOB_HINT);
            }
            Ok(())
        }
        JobsCommand::Show { show, reveal, id } => {
            let id: Id = id.parse().map_err(|error| Failure::new(Exit::Usage, format!("{error}")))?;
            let detail = show.store.reader()?.job_detail(id)?;
            let secrets =
                reveal.secrets(&show.store, &format!("job {id}"), std::slice::from_ref(&detail.job))?;
            if show.json {
                return output.json(&WithSecrets { shown: &detail, secrets });
            }
            print_job(&detail, output)?;
            reveal::print(secrets, output)
        }
        JobsCommand::Retry(arguments) => mend::retry(arguments, output),
        JobsCommand::Drop(arguments) => mend::drop_job(arguments, output),
        JobsCommand::Complete(arguments) => mend::complete_job(arguments, output),
    }
}

fn jobs_table(rows: &[JobRow], output: &mut Output) -> Done {
    let cells = |row: &JobRow| {
        vec![
            row.id.to_string(),
            row.action.to_string(),
            row.state.as_str().to_owned(),
            row.attempts.to_string(),
            row.created_at.to_string(),
            // Queued jobs show their next attempt, other jobs their end.
            if row.state == schedule::JobState::Queued { row.due_at.to_string() } else { time(row.ended_at) },
            text(row.note.as_deref()),
        ]
    };
    let header = ["JOB", "ACTION", "STATE", "ATTEMPTS", "CREATED", "DUE/ENDED", "NOTE"];
    output.table(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn print_job(detail: &JobDetail, output: &mut Output) -> Done {
    jobs_table(std::slice::from_ref(&detail.job), output)?;
    output.line(&format!("trace {}", detail.trace_id))?;
    for attempt in &detail.failed_attempts {
        let line = format!(
            "attempt {} ended {} ({}): {}",
            attempt.attempt, attempt.ended_at, attempt.ending, attempt.note
        );
        output.line(&shown(&line))?;
    }
    Ok(())
}

pub(super) fn callbacks(command: CallbacksCommand, output: &mut Output) -> Done {
    match command {
        CallbacksCommand::List { list, unreported } => {
            let filter = Filter { unreported, limit: list.limit, ..Filter::default() };
            let rows = list.store.reader()?.listed_callbacks(&filter)?;
            if list.json {
                return output.json(&rows);
            }
            listed_table(&rows, output)?;
            // The marketplace does not call again by itself after its last delivery.
            if unreported && !rows.is_empty() {
                output.print_error(RESET_HINT);
            }
            Ok(())
        }
        CallbacksCommand::Show { show, number } => show_callback(&show, number, output),
        CallbacksCommand::Export(arguments) => export::callbacks(arguments, output),
        CallbacksCommand::Resend(arguments) => mend::resend(*arguments, output),
    }
}

fn show_callback(show: &ShowArguments, number: i64, output: &mut Output) -> Done {
    let detail = show.store.reader()?.callback_detail(number)?;
    if show.json { output.json(&detail) } else { print_callback(&detail, output) }
}

/// Warns of unreported callbacks for which the marketplace has used at least half of its deliveries. A reported
/// callback needs no warning, because the marketplace does not call again.
fn warn_of_delivery_limit<'r>(rows: impl Iterator<Item = &'r CallbackRow>, output: &mut Output) {
    for row in rows.filter(|row| row.reported_at.is_none()) {
        let Some(delivery_limit) = row.delivery_limit.map(u64::from) else { continue };
        // Half is early enough to act before the marketplace gives up.
        if row.deliveries >= delivery_limit.div_ceil(2) {
            output.print_error(&format!(
                "warning: callback {} ({}): {} of the marketplace's {delivery_limit} deliveries are used",
                row.number, row.action, row.deliveries
            ));
        }
    }
}

fn callbacks_table(rows: &[CallbackRow], output: &mut Output) -> Done {
    let cells = |row: &CallbackRow| {
        vec![
            row.number.to_string(),
            row.action.to_string(),
            row.endpoint.clone(),
            row.disposition.as_str().to_owned(),
            row.tries(),
            row.received_at.to_string(),
            time(row.reported_at),
            text(row.reason.as_deref()),
        ]
    };
    let header = ["CALLBACK", "ACTION", "ENDPOINT", "RESULT", "DELIVERIES", "FIRST", "REPORTED", "REASON"];
    output.table(&header, &rows.iter().map(cells).collect::<Vec<_>>())?;
    warn_of_delivery_limit(rows.iter(), output);
    Ok(())
}

fn listed_table(rows: &[ListedCallback], output: &mut Output) -> Done {
    let cells = |ListedCallback { row, names, buyer }: &ListedCallback| {
        vec![
            row.number.to_string(),
            row.action.to_string(),
            row.endpoint.clone(),
            if names.is_empty() { "-".to_owned() } else { names.join(", ") },
            text(buyer.as_deref()),
            row.disposition.as_str().to_owned(),
            row.tries(),
            row.received_at.to_string(),
            time(row.reported_at),
            text(row.reason.as_deref()),
        ]
    };
    let header = [
        "CALLBACK",
        "ACTION",
        "ENDPOINT",
        "INSTANCE",
        "BUYER",
        "RESULT",
        "DELIVERIES",
        "FIRST",
        "REPORTED",
        "REASON",
    ];
    output.table(&header, &rows.iter().map(cells).collect::<Vec<_>>())?;
    warn_of_delivery_limit(rows.iter().map(|listed| &listed.row), output);
    Ok(())
}

fn print_callback(detail: &CallbackDetail, output: &mut Output) -> Done {
    callbacks_table(std::slice::from_ref(&detail.row), output)?;
    output.line(&format!("signed with key `{}`", shown(&detail.row.key_label)))?;
    if let (Some(job), Some(trace)) = (detail.job_id, detail.trace_id) {
        output.line(&format!("job {job}, trace {trace}"))?;
    }
    if let Some(at) = detail.callback.pruned_at {
        output.line(&format!("the content was pruned at {at}"))?;
    }
    for (name, value) in detail.callback.parameters.iter() {
        output.line(&format!("  {} = {}", shown(name), shown(value)))?;
    }
    Ok(())
}

pub(super) fn held(command: HeldCommand, output: &mut Output) -> Done {
    match command {
        HeldCommand::List { list } => list_held(&list, output),
        HeldCommand::Show { show, number } => show_callback(&show, number, output),
        HeldCommand::Approve(arguments) => mend::approve(arguments, output),
        HeldCommand::Reject(arguments) => mend::reject(arguments, output),
        HeldCommand::Settle(arguments) => mend::settle(arguments, output),
    }
}

fn list_held(list: &ListArguments, output: &mut Output) -> Done {
    let (rows, left_out) = list.store.reader()?.held_items(list.limit)?;
    if left_out > 0 {
        output.print_error(&format!("{left_out} more are not shown; --limit shows more"));
    }
    if list.json {
        return output.json(&rows);
    }
    let cells = |row: &HeldItem| {
        vec![
            row.callback.to_string(),
            row.kind.to_owned(),
            row.action.to_owned(),
            text(row.instance.as_deref()),
            row.since.to_string(),
            row.tries.clone(),
            row.job.map_or_else(|| "-".to_owned(), |id| id.to_string()),
            row.reason.clone(),
        ]
    };
    let header = ["CALLBACK", "KIND", "ACTION", "INSTANCE", "SINCE", "TRIES", "JOB", "REASON"];
    output.table(&header, &rows.iter().map(cells).collect::<Vec<_>>())?;
    // Print only the hints for kinds that are in the list.
    let any = |kinds: &[&str]| rows.iter().any(|row| kinds.contains(&row.kind));
    if any(&["held-callback"]) {
        output.print_error("hint: a held callback: `spid held show CALLBACK`, then `spid held approve CALLBACK --why …`, `spid held settle CALLBACK --why …` or `spid held reject CALLBACK --why …`");
    }
    if any(&["held-job", "dead-job"]) {
        output.print_error(JOB_HINT);
    }
    if any(&["pending-job"]) {
        output.print_error(
            "hint: a pending job: `spid jobs complete JOB --answer FILE --why …` once it is done",
        );
    }
    Ok(())
}

pub(super) fn attention(arguments: AttentionArguments, output: &mut Output) -> Done {
    let AttentionArguments { command, list } = arguments;
    if let Some(AttentionCommand::Dismiss(arguments)) = command {
        return mend::dismiss(arguments, output);
    }
    let attention = list.store.reader()?.attention(Clock::System.now(), list.limit)?;
    if attention.left_out > 0 {
        output.print_error(&format!("{} more are not shown; --limit shows more", attention.left_out));
    }
    if list.json {
        return output.json(&attention.items);
    }
    let tries = |item: &AttentionItem| match item.delivery_limit {
        Some(limit) => format!("{}/{limit}", item.deliveries),
        None => item.deliveries.to_string(),
    };
    let cells = |item: &AttentionItem| {
        vec![
            item.reason.as_str().to_owned(),
            item.callback.map_or_else(|| "-".to_owned(), |number| number.to_string()),
            text(item.action.map(Action::as_str)),
            text(item.instance.as_deref()),
            text(item.order.as_deref()),
            text(item.buyer.as_deref()),
            tries(item),
            item.since.to_string(),
            item.deadline.map_or_else(|| "-".to_owned(), |at| at.to_string()),
            item.detail.clone(),
        ]
    };
    let header = [
        "REASON",
        "CALLBACK",
        "ACTION",
        "INSTANCE",
        "ORDER",
        "BUYER",
        "DELIVERIES",
        "SINCE",
        "DEADLINE",
        "DETAIL",
    ];
    output.table(&header, &attention.items.iter().map(cells).collect::<Vec<_>>())?;
    for item in &attention.items {
        let then = item.then.map(|then| format!(" (otherwise {then})")).unwrap_or_default();
        let subject = match (item.callback, &item.instance) {
            (Some(callback), _) => format!("callback {callback}"),
            (None, instance) => format!("instance {}", text(instance.as_deref())),
        };
        output.print_error(&format!("hint: {subject}: {}{then}", item.todo));
    }
    Ok(())
}

pub(super) fn acts(arguments: ActsArguments, output: &mut Output) -> Done {
    let rows = arguments.list.store.reader()?.acts(arguments.list.limit)?;
    if arguments.list.json {
        return output.json(&rows);
    }
    let cells = |row: &AuditEntry| {
        vec![row.at.to_string(), row.who.clone(), row.act.clone(), row.target.clone(), row.why.clone()]
    };
    output.table(&["AT", "WHO", "ACT", "TARGET", "WHY"], &rows.iter().map(cells).collect::<Vec<_>>())
}

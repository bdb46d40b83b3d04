//! `callbacks export` and `instances export`: print recorded callbacks as a scenario, or instances as JSON lines.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};

use crate::cli::inspect::lines::InstanceLine;
use crate::cli::keys::arguments::dialect_named;
use crate::cli::output::Output;
use crate::cli::{Done, Exit, Failure, StoreArguments};
use crate::lab::scenario::export::{Export, RecordedCallback, SenderOutcome};
use crate::store::{
    CallbackRow, Disposition, Filter, InstanceHistory, InstanceRow, JobRow, Reader, each_instance,
};
use spid_core::lifecycle::schedule;
use spid_hook::callback::Action;
use spid_hook::instance::State;
use spid_hook::text::plain_json;

#[derive(Args)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Dialect of the marketplace: alibaba, generic or jdcloud.
    #[arg(long, default_value = "alibaba")]
    dialect: String,
    /// Keep buyers, order numbers, addresses and secrets in the output.
    #[arg(long)]
    keep_personal: bool,
    /// Keep dates as they were sent. An SPI endpoint may rightly refuse such old dates.
    #[arg(long)]
    keep_dates: bool,
}

#[derive(Args)]
pub(crate) struct ExportCallbacksArguments {
    #[command(flatten)]
    export: ExportArguments,
    /// Numbers of the callbacks, in the order to send them.
    #[arg(required = true, value_name = "NUMBER")]
    numbers: Vec<i64>,
}

#[derive(Args)]
pub(crate) struct ExportInstanceArguments {
    #[command(flatten)]
    export: ExportArguments,
    /// Form of the output: a scenario that can be replayed; or lines for `instances import`, one JSON object for each
    /// instance, with personal data.
    #[arg(long = "as", value_name = "FORM", default_value = "scenario")]
    form: ExportForm,
    /// Id or orderBizId of the instance. With `--as lines` the default is every instance.
    id: Option<String>,
    /// Account of the instance, if several accounts have an instance with this id. With `--as lines`: export only
    /// instances of this account.
    #[arg(long)]
    account: Option<String>,
}

/// Form of exported instances.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportForm {
    Scenario,
    Lines,
}

pub(crate) fn callbacks(arguments: ExportCallbacksArguments, output: &mut Output) -> Done {
    let reader = arguments.export.store.reader()?;
    let jobs = BTreeMap::new();
    let mut recorded = Vec::new();
    for number in &arguments.numbers {
        let (row, callback) = reader
            .callback(*number)?
            .ok_or_else(|| Failure::new(Exit::NoInput, format!("there is no callback {number}")))?;
        // A pruned callback has no parameters left.
        if let Some(at) = callback.pruned_at {
            let text =
                format!("the content of callback {number} was pruned at {at}; there is nothing to export");
            return Err(Failure::new(Exit::Data, text));
        }
        let own = row.instance.map(|instance| jobs_of(&reader, instance)).transpose()?;
        let outcome = outcome(&row, own.as_ref().unwrap_or(&jobs));
        recorded.push(RecordedCallback { callback, outcome });
    }
    let title = match arguments.numbers.as_slice() {
        [one] => format!("Callback {one}, as it was recorded"),
        several => format!("{} callbacks, as they were recorded", several.len()),
    };
    write(&arguments.export, title, None, &recorded, output)
}

pub(crate) fn instance(arguments: ExportInstanceArguments, output: &mut Output) -> Done {
    let reader = arguments.export.store.reader()?;
    if arguments.form == ExportForm::Lines {
        return lines(&arguments, &reader, output);
    }
    let Some(id) = &arguments.id else {
        return Err(Failure::new(Exit::Usage, "no instance given").hint("--as lines prints all of them"));
    };
    let life = reader.life(id, arguments.account.as_deref())?;
    let row = life.instance.clone();
    let recorded = recorded_history(&reader, life)?;
    // A replay cannot repeat the result of these callbacks, so they cannot be steps of a scenario.
    let left_out = recorded.iter().filter(|one| one.outcome == SenderOutcome::Open).count();
    if left_out > 0 {
        output.print_error(&format!(
            "hint: {left_out} callbacks are left out: unfinished, ended by the hook or an operator, or pruned"
        ));
    }
    if !recorded.iter().any(|one| one.outcome == SenderOutcome::Done && one.callback.action == Action::Create)
    {
        output.print_error(
            "warning: the recorded callbacks contain no purchase, so an empty endpoint cannot carry out the others",
        );
    }
    let recorded: Vec<RecordedCallback> =
        recorded.into_iter().filter(|one| one.outcome != SenderOutcome::Open).collect();
    let name = if arguments.export.keep_personal { id.as_str() } else { "an instance" };
    write(&arguments.export, format!("History of {name}, as recorded"), Some(row), &recorded, output)
}

/// Prints instances as JSON lines, the oldest first.
fn lines(arguments: &ExportInstanceArguments, reader: &Reader, output: &mut Output) -> Done {
    let only = arguments.id.as_ref().map(|id| reader.find(id, arguments.account.as_deref())).transpose()?;
    let (path, _) = arguments.export.store.location()?;
    let (mut pending, mut owing) = (0_u64, 0_u64);
    each_instance(&path, |instance_export| -> Done {
        let instance = &instance_export.row.instance;
        let wanted = only.as_ref().is_none_or(|only| only.number == instance_export.row.number)
            && arguments.account.as_ref().is_none_or(|account| *account == instance.account);
        if !wanted {
            return Ok(());
        }
        // An import could not complete a pending instance, because its create stays here.
        if instance.state == State::Pending {
            pending += 1;
            return Ok(());
        }
        owing += u64::from(instance_export.owes);
        let text = serde_json::to_string(&InstanceLine::from(instance_export))
            .map(|text| plain_json(&text).into_owned());
        output.line(&text.map_err(|error| Failure::new(Exit::Bug, format!("a line is not JSON: {error}")))?)
    })?;
    if pending > 0 {
        output.print_error(&format!(
            "warning: {pending} pending instances are left out: their create has not ended"
        ));
    }
    if owing > 0 {
        output.print_error(&format!(
            "warning: {owing} of these instances have unfinished jobs, which the lines do not contain: see `spid jobs list`"
        ));
    }
    Ok(())
}

fn write(
    arguments: &ExportArguments,
    title: String,
    end: Option<InstanceRow>,
    recorded: &[RecordedCallback],
    output: &mut Output,
) -> Done {
    let export = Export {
        title,
        dialect: dialect_named(&arguments.dialect)?.name(),
        keeps_personal: arguments.keep_personal,
        keeps_dates: arguments.keep_dates,
        end: end.map(|row| row.instance.into()),
    };
    output.line(export.scenario(recorded).trim_end())
}

type Jobs = BTreeMap<i64, JobRow>;

fn jobs_of(reader: &Reader, instance: i64) -> Result<Jobs, Failure> {
    let filter = Filter { instance: Some(instance), limit: usize::MAX, ..Filter::default() };
    Ok(reader.jobs(&filter)?.into_iter().map(|job| (job.number, job)).collect())
}

/// Callbacks of an instance, in the order in which they were carried out. A callback that was held first and ran
/// later has the position of its run.
fn recorded_history(reader: &Reader, life: InstanceHistory) -> Result<Vec<RecordedCallback>, Failure> {
    let jobs: Jobs = life.jobs.into_iter().map(|job| (job.row.number, job.row)).collect();
    let mut rows: Vec<CallbackRow> = life.callbacks.into_iter().map(|listed| listed.row).collect();
    // Sign-ons and queries change no instance, so a replay does not need them.
    rows.retain(|row| !matches!(row.action, Action::SignOn | Action::Query));
    rows.sort_by_key(|row| {
        // A job is created when its callback is carried out: at once, or when it is approved.
        let job = row.job.and_then(|number| jobs.get(&number));
        (job.map_or(row.last_received_at, |job| job.created_at), row.number)
    });
    let mut recorded = Vec::new();
    for row in rows {
        let Some((row, callback)) = reader.callback(row.number)? else { continue };
        let outcome = if callback.pruned_at.is_some() { SenderOutcome::Open } else { outcome(&row, &jobs) };
        recorded.push(RecordedCallback { outcome, callback });
    }
    Ok(recorded)
}

fn outcome(row: &CallbackRow, jobs: &Jobs) -> SenderOutcome {
    match row.disposition {
        // Recorded callbacks need no job, so they are done when they are recorded.
        Disposition::Recorded => SenderOutcome::Done,
        Disposition::Held => SenderOutcome::Held,
        Disposition::Refused => SenderOutcome::Refused,
        // A payment is answered as soon as it is recorded, so the later result of its hook does not matter here.
        Disposition::Job if row.action == Action::Payment => SenderOutcome::Done,
        Disposition::Job => match row.job.and_then(|number| jobs.get(&number)).map(|job| job.state) {
            Some(schedule::JobState::Done) => SenderOutcome::Done,
            _ => SenderOutcome::Open,
        },
    }
}

//! Admin operations on callbacks that wait for a decision, or that an attention item is about.

use clap::Args;

use super::{OperationArguments, say_approved};
use crate::cli::output::Output;
use crate::cli::{Done, words};
use crate::store::Instead;

#[derive(Args)]
pub(crate) struct ApproveArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Run a second purchase of an instance as a renewal, an upgrade, or a conversion (a trial is bought for good).
    #[arg(long = "as", value_name = "WHAT", value_parser = words::approve_as())]
    instead: Option<Instead>,
    /// Number of the callback, from `held list`.
    number: i64,
}

#[derive(Args)]
pub(crate) struct RejectArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Number of the callback, from `held list`.
    number: i64,
}

pub(crate) fn approve(arguments: ApproveArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.operation.begin()?;
    let approved = operations.approve(arguments.number, arguments.instead, &act)?;
    say_approved(&approved, output)
}

pub(crate) fn reject(arguments: RejectArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.operation.begin()?;
    operations.reject(arguments.number, &act)?;
    output.line(&format!("callback {} is rejected, and so are its redeliveries", arguments.number))
}

pub(crate) fn settle(arguments: RejectArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.operation.begin()?;
    operations.settle(arguments.number, &act)?;
    output.line(&format!(
        "callback {} is settled: its next delivery is answered with success, and nothing runs",
        arguments.number
    ))
}

#[derive(Args)]
pub(crate) struct DismissArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Numbers of the callbacks, from `attention`.
    #[arg(required = true)]
    numbers: Vec<i64>,
}

pub(crate) fn dismiss(arguments: DismissArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.operation.begin()?;
    for number in arguments.numbers {
        operations.dismiss(number, &act)?;
        output.line(&format!("callback {number} is removed from the attention list"))?;
    }
    Ok(())
}

//! Admin operations on callbacks that wait for a decision, or that an attention item is about.

use clap::Args;

use super::OperationArguments;
use crate::cli::output::Output;
use crate::cli::{Done, words};
use crate::store::{AdminOperation, Instead};

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

pub(crate) fn approve(arguments: &ApproveArguments, output: &mut Output) -> Done {
    let ApproveArguments { operation, instead, number } = arguments;
    operation.run(&AdminOperation::Approve { callback: *number, instead: *instead }, output)
}

pub(crate) fn reject(arguments: &RejectArguments, output: &mut Output) -> Done {
    arguments.operation.run(&AdminOperation::Reject(arguments.number), output)
}

pub(crate) fn settle(arguments: &RejectArguments, output: &mut Output) -> Done {
    arguments.operation.run(&AdminOperation::Settle(arguments.number), output)
}

#[derive(Args)]
pub(crate) struct DismissArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Numbers of the callbacks, from `attention`.
    #[arg(required = true)]
    numbers: Vec<i64>,
}

pub(crate) fn dismiss(arguments: &DismissArguments, output: &mut Output) -> Done {
    arguments.operation.run_all(output, |reports, operations, act| {
        for number in &arguments.numbers {
            reports.add(operations.run(&AdminOperation::Dismiss(*number), None, act)?)?;
        }
        Ok(())
    })
}

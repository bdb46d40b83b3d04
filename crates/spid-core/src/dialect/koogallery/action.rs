//! The action that an activity stands for.

use super::{INSTANCE_ID, directory, ids, missing, unknown, v1};
use crate::limits::QUERY_MAX_COUNT;
use spid_hook::callback::{Action, Parameters, ValidationIssue};

pub(super) const RENEWAL_CHANGE: &str = "RENEWAL_CHANGE";

pub(super) fn scene(parameters: &Parameters) -> Option<&str> {
    parameters.filled("scene")
}

/// Returns true if the request turns a trial into a purchase. Version 1.0 has a flag where 2.0 has a scene.
pub(super) fn ends_trial(parameters: &Parameters) -> bool {
    scene(parameters) == Some("TRIAL_TO_FORMAL") || parameters.filled("trialToFormal") == Some("1")
}

/// Returns the action that an activity asks for, and its validation issue. Covers both versions and License products,
/// each with its source page.
pub(super) fn parse(word: &str, parameters: &Parameters) -> (Action, Option<ValidationIssue>) {
    let action = match word {
        // …/accessg-marketplace/zh-cn_topic_0070649427.html; version 1.0: …0070649013.html
        "newInstance" => Ok(Action::Create),
        // …0070649429.html; version 1.0: …0070649180.html; License codes: …0070649167.html
        "refreshInstance" | "refreshLicenseCode" => refresh(parameters),
        // …0070649430.html; License codes: …0070649168.html
        "updateInstanceStatus" | "updateLicenseCodeStatus" => status("status", parameters),
        // version 1.0: en-us_topic_0070649069.html
        "instanceStatus" => status("instanceStatus", parameters),
        // version 1.0: en-us_topic_0070649055.html
        "expireInstance" => Ok(Action::Expire),
        // …0070649431.html; version 1.0: …0070649056.html; License codes: …0070649169.html
        "releaseInstance" | "releaseLicenseCode" => Ok(Action::Release),
        // …0070649432.html; version 1.0: …0000001297828992.html
        "upgradeInstance" | "upgrade" => Ok(Action::Upgrade),
        // …0070649428.html
        QUERY => query(parameters),
        // …0000002411753620.html; online Licenses: …0070649255.html
        "changeInstanceCheck" | "getLicenseAsync" => Ok(Action::Other),
        kind if directory::is_kind(kind) => Ok(Action::Other),
        // …0000002091799149.html: reports that an order was created, and asks for nothing
        "orderNotify" => Ok(Action::Payment),
        _ => Err(ValidationIssue::UnknownAction),
    };
    match action {
        Ok(action) => (action, None),
        Err(issue) if word == QUERY => (Action::Query, Some(issue)),
        Err(issue) => (Action::Other, Some(issue)),
    }
}

const QUERY: &str = "queryInstance";

/// Returns true if a request with this activity and action requires a date: a refresh, whose term it sets.
pub(super) fn is_dated(word: &str, action: Action) -> bool {
    word.starts_with("refresh") && action != Action::Other
}

fn refresh(parameters: &Parameters) -> Result<Action, ValidationIssue> {
    match scene(parameters) {
        Some("RENEWAL" | "TRIAL_TO_FORMAL" | RENEWAL_CHANGE) => Ok(Action::Renew),
        Some("UNSUBSCRIBE_RENEWAL_PERIOD") => Ok(Action::RefundRenew),
        // Version 1.0 has no scenes: a refund has a negative price.
        None if parameters.get(v1::TIME_STAMP).is_some() => {
            let refunds = parameters.filled("orderAmount").is_some_and(|amount| amount.starts_with('-'));
            Ok(if refunds { Action::RefundRenew } else { Action::Renew })
        }
        _ => Err(unknown("scene")),
    }
}

/// Returns the action of a status change. An unfreeze is a renewal that leaves the term unchanged.
fn status(name: &str, parameters: &Parameters) -> Result<Action, ValidationIssue> {
    match parameters.filled(name) {
        Some("FREEZE") => Ok(Action::Expire),
        Some("UNFREEZE" | "NORMAL") => Ok(Action::Renew),
        _ => Err(unknown(name)),
    }
}

fn query(parameters: &Parameters) -> Result<Action, ValidationIssue> {
    match ids(parameters).count() {
        0 => Err(missing(INSTANCE_ID)),
        1..=QUERY_MAX_COUNT => Ok(Action::Query),
        _ => Err(unknown(INSTANCE_ID)),
    }
}

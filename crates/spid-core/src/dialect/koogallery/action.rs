//! The action that an activity stands for.

use super::{INSTANCE_ID, directory, ids, missing, v1};
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

/// The action that an activity asks for, and its validation issue.
pub(super) struct ParsedAction {
    pub(super) action: Action,
    /// True if the action requires a date.
    pub(super) dated: bool,
    pub(super) issue: Option<ValidationIssue>,
}

impl ParsedAction {
    fn plain(action: Action) -> ParsedAction {
        ParsedAction { action, dated: false, issue: None }
    }

    fn dated(action: Action) -> ParsedAction {
        ParsedAction { action, dated: true, issue: None }
    }

    fn unknown(name: &str) -> ParsedAction {
        ParsedAction::with_issue(ValidationIssue::UnknownValue { name: name.to_owned() })
    }

    fn with_issue(issue: ValidationIssue) -> ParsedAction {
        ParsedAction { action: Action::Other, dated: false, issue: Some(issue) }
    }

    /// Returns the meaning of an activity. Covers both versions and License products, each with its source page.
    pub(super) fn of(word: &str, parameters: &Parameters) -> ParsedAction {
        match word {
            // …/accessg-marketplace/zh-cn_topic_0070649427.html; version 1.0: …0070649013.html
            "newInstance" => ParsedAction::plain(Action::Create),
            // …0070649429.html; version 1.0: …0070649180.html; License codes: …0070649167.html
            "refreshInstance" | "refreshLicenseCode" => ParsedAction::of_refresh(parameters),
            // …0070649430.html; License codes: …0070649168.html
            "updateInstanceStatus" | "updateLicenseCodeStatus" => {
                ParsedAction::of_status("status", parameters)
            }
            // version 1.0: en-us_topic_0070649069.html
            "instanceStatus" => ParsedAction::of_status("instanceStatus", parameters),
            // version 1.0: en-us_topic_0070649055.html
            "expireInstance" => ParsedAction::plain(Action::Expire),
            // …0070649431.html; version 1.0: …0070649056.html; License codes: …0070649169.html
            "releaseInstance" | "releaseLicenseCode" => ParsedAction::plain(Action::Release),
            // …0070649432.html; version 1.0: …0000001297828992.html
            "upgradeInstance" | "upgrade" => ParsedAction::plain(Action::Upgrade),
            // …0070649428.html
            "queryInstance" => ParsedAction::of_query(parameters),
            // …0000002411753620.html; online Licenses: …0070649255.html
            "changeInstanceCheck" | "getLicenseAsync" => ParsedAction::plain(Action::Other),
            kind if directory::is_kind(kind) => ParsedAction::plain(Action::Other),
            // …0000002091799149.html: reports that an order was created, and asks for nothing
            "orderNotify" => ParsedAction::plain(Action::Payment),
            _ => ParsedAction::with_issue(ValidationIssue::UnknownAction),
        }
    }

    fn of_refresh(parameters: &Parameters) -> ParsedAction {
        match scene(parameters) {
            Some("RENEWAL" | "TRIAL_TO_FORMAL" | RENEWAL_CHANGE) => ParsedAction::dated(Action::Renew),
            Some("UNSUBSCRIBE_RENEWAL_PERIOD") => ParsedAction::dated(Action::RefundRenew),
            // Version 1.0 has no scenes: a refund has a negative price.
            None if parameters.get(v1::TIME_STAMP).is_some() => {
                let refunds = parameters.filled("orderAmount").is_some_and(|amount| amount.starts_with('-'));
                ParsedAction::dated(if refunds { Action::RefundRenew } else { Action::Renew })
            }
            _ => ParsedAction::unknown("scene"),
        }
    }

    /// Returns the meaning of a status change. An unfreeze is a renewal that leaves the term unchanged.
    fn of_status(name: &str, parameters: &Parameters) -> ParsedAction {
        match parameters.filled(name) {
            Some("FREEZE") => ParsedAction::plain(Action::Expire),
            Some("UNFREEZE" | "NORMAL") => ParsedAction::plain(Action::Renew),
            _ => ParsedAction::unknown(name),
        }
    }

    fn of_query(parameters: &Parameters) -> ParsedAction {
        match ids(parameters).count() {
            0 => ParsedAction { action: Action::Query, ..ParsedAction::with_issue(missing(INSTANCE_ID)) },
            1..=QUERY_MAX_COUNT => ParsedAction::plain(Action::Query),
            _ => ParsedAction { action: Action::Query, ..ParsedAction::unknown(INSTANCE_ID) },
        }
    }
}

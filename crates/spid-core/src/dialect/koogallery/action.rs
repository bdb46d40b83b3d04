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

/// Meaning of an activity.
pub(super) struct Meaning {
    pub(super) action: Action,
    /// True if the action requires a date.
    pub(super) dated: bool,
    pub(super) issue: Option<ValidationIssue>,
}

impl Meaning {
    fn plain(action: Action) -> Meaning {
        Meaning { action, dated: false, issue: None }
    }

    fn dated(action: Action) -> Meaning {
        Meaning { action, dated: true, issue: None }
    }

    fn unknown(name: &str) -> Meaning {
        Meaning::doubted(ValidationIssue::UnknownValue { name: name.to_owned() })
    }

    fn doubted(issue: ValidationIssue) -> Meaning {
        Meaning { action: Action::Other, dated: false, issue: Some(issue) }
    }

    /// Returns the meaning of an activity. Covers both versions and License products, each with its source page.
    pub(super) fn of(word: &str, parameters: &Parameters) -> Meaning {
        match word {
            // …/accessg-marketplace/zh-cn_topic_0070649427.html; version 1.0: …0070649013.html
            "newInstance" => Meaning::plain(Action::Create),
            // …0070649429.html; version 1.0: …0070649180.html; License codes: …0070649167.html
            "refreshInstance" | "refreshLicenseCode" => Meaning::of_refresh(parameters),
            // …0070649430.html; License codes: …0070649168.html
            "updateInstanceStatus" | "updateLicenseCodeStatus" => Meaning::of_status("status", parameters),
            // version 1.0: en-us_topic_0070649069.html
            "instanceStatus" => Meaning::of_status("instanceStatus", parameters),
            // version 1.0: en-us_topic_0070649055.html
            "expireInstance" => Meaning::plain(Action::Expire),
            // …0070649431.html; version 1.0: …0070649056.html; License codes: …0070649169.html
            "releaseInstance" | "releaseLicenseCode" => Meaning::plain(Action::Release),
            // …0070649432.html; version 1.0: …0000001297828992.html
            "upgradeInstance" | "upgrade" => Meaning::plain(Action::Upgrade),
            // …0070649428.html
            "queryInstance" => Meaning::of_query(parameters),
            // …0000002411753620.html; online Licenses: …0070649255.html
            "changeInstanceCheck" | "getLicenseAsync" => Meaning::plain(Action::Other),
            kind if directory::is_kind(kind) => Meaning::plain(Action::Other),
            // …0000002091799149.html: reports that an order was created, and asks for nothing
            "orderNotify" => Meaning::plain(Action::Payment),
            _ => Meaning::doubted(ValidationIssue::UnknownAction),
        }
    }

    fn of_refresh(parameters: &Parameters) -> Meaning {
        match scene(parameters) {
            Some("RENEWAL" | "TRIAL_TO_FORMAL" | RENEWAL_CHANGE) => Meaning::dated(Action::Renew),
            Some("UNSUBSCRIBE_RENEWAL_PERIOD") => Meaning::dated(Action::RefundRenew),
            // Version 1.0 has no scenes: a refund has a negative price.
            None if parameters.get(v1::TIME_STAMP).is_some() => {
                let refunds = parameters.filled("orderAmount").is_some_and(|amount| amount.starts_with('-'));
                Meaning::dated(if refunds { Action::RefundRenew } else { Action::Renew })
            }
            _ => Meaning::unknown("scene"),
        }
    }

    /// Returns the meaning of a status change. An unfreeze is a renewal that leaves the term unchanged.
    fn of_status(name: &str, parameters: &Parameters) -> Meaning {
        match parameters.filled(name) {
            Some("FREEZE") => Meaning::plain(Action::Expire),
            Some("UNFREEZE" | "NORMAL") => Meaning::plain(Action::Renew),
            _ => Meaning::unknown(name),
        }
    }

    fn of_query(parameters: &Parameters) -> Meaning {
        match ids(parameters).count() {
            0 => Meaning { action: Action::Query, ..Meaning::doubted(missing(INSTANCE_ID)) },
            1..=QUERY_MAX_COUNT => Meaning::plain(Action::Query),
            _ => Meaning { action: Action::Query, ..Meaning::unknown(INSTANCE_ID) },
        }
    }
}

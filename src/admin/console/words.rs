//! Explanations of the store's reason codes, and advice: the tables of docs/operating.md, shown in the console.

use crate::store;

/// Sentence about a finished operation, for the page that is shown afterwards.
pub(super) fn done(act: &str) -> Option<String> {
    let sentence = match act {
        "retry" => "the job is due now, or when the jobs before it have ended",
        "approve" => "approved, and its jobs are queued",
        "release" => "the release is queued",
        _ => {
            let target = match act {
                "drop" => "the job",
                "complete" => "the work",
                _ => "the callback",
            };
            return store::result(act).map(|result| format!("Done: {target} {result}."));
        }
    };
    Some(format!("Done: {sentence}."))
}

/// Badge for a kind of waiting item.
pub(super) fn kind(kind: &str) -> &'static str {
    match kind {
        "dead-job" => "dead",
        "held-job" => "held",
        "pending-job" => "pending",
        _ => "held",
    }
}

/// Explanation of a waiting item, and advice for the operator.
pub(super) fn advice(kind: &str, reason_code: Option<&str>) -> &'static str {
    match (kind, reason_code.unwrap_or_default()) {
        ("dead-job", _) => {
            "All attempts of the schedule failed. Fix the hook and retry, or do the work by hand and complete the job."
        }
        ("held-job", _) => {
            "The id is not usable, or the database is a restored backup. Compare with your product, then retry, drop or complete the job."
        }
        ("pending-job", _) => "The hook answered \"pending\". Complete the job when the work is finished.",
        (_, "early-expire") => {
            "An expire long before the paid term ends: the late end of a trial or of an earlier term, or a replayed URL. Look at the buyer's order; approve it if the buyer is in arrears, settle it if not."
        }
        (_, "unknown-term") => {
            "The trial was converted and its term is unknown. This is probably the end of the trial: check the buyer's order, and settle it if so."
        }
        (_, "conversion-held") => {
            "Another purchase of this instance is held. Decide that one first: if it bought the trial for good, settle or reject this."
        }
        (_, "conflicting-create") => {
            "The orderBizId belongs to another order or buyer; possibly a converted trial. Approve it as renew, upgrade or conversion, or reject it and refund it at the marketplace."
        }
        (_, "ambiguous-repeat" | "left-sku" | "left-expiry" | "refunded-renewal") => {
            "Either a late redelivery of finished work, or a new request of the same kind. Settle a redelivery, approve a new request."
        }
        (_, "doubt") => {
            "A value that may hide another signed parameter, an unreadable date, or an unknown action. Read it, then decide."
        }
        (_, "past-expiry") => "The renewal ends in the past. Look at the order at the marketplace.",
        (_, "name-taken") => {
            "Another instance already uses this name as its id. Nothing was created for this order: compare both instances."
        }
        (_, "unknown-release" | "unknown-product" | "names-nothing") => {
            "spid did not create the instance, or the callback names none. Check your product before you approve."
        }
        _ => "Read it, then approve or reject it.",
    }
}

/// Explanation of a denial, by its reason code.
pub(super) fn refusal(reason: &str) -> &'static str {
    match reason {
        "wrong-signature" => {
            "The configured key differs from the seller console's, a proxy changes the query, or the request is forged."
        }
        "missing-signature" => {
            "The request has no token: a health check, a scanner, or a proxy that removes it."
        }
        "malformed-signature" => "The token has the wrong form.",
        "duplicate-parameter" => {
            "A parameter occurs twice. Two programs could read different values, so the request is denied."
        }
        "undated" | "stale" => {
            "The time is missing, or too far from this machine's clock: compare both clocks."
        }
        "method" | "content-type" => "The dialect does not allow this method or content type.",
        _ => "The request is ambiguous, so it is denied.",
    }
}

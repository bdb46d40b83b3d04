//! Explanations of the store's reason codes, and advice: the tables of docs/operating.md, shown in the console.

/// Sentence about a finished operation, for the page that is shown afterwards.
pub(super) fn done(act: &str) -> Option<&'static str> {
    Some(match act {
        "retry" => "Done: the job is due again, now or as soon as those before it have ended.",
        "drop" => "Done: the job is dropped. If the marketplace still calls for it, that is a new job.",
        "approve" => "Done: approved. What there is to run is queued.",
        "reject" => "Done: refused, and so are its redeliveries.",
        "settle" => "Done: settled. The next delivery is answered with success, and nothing runs.",
        "dismiss" => "Done: off the list of what needs attention.",
        "complete" => "Done: the work is complete. The marketplace hears it when it calls again.",
        "release" => "Done: the release is under way.",
        _ => return None,
    })
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
            "The hook failed as often as the schedule allows. Mend the hook, then retry; or do it by hand and complete it."
        }
        ("held-job", _) => {
            "An id that cannot be used, or a restored backup. Look at both sides, then retry, drop or complete it."
        }
        ("pending-job", _) => "The hook said that somebody finishes this. Complete it once that is so.",
        (_, "early-expire") => {
            "An expire long before the paid term ends: the late end of a trial or of an earlier term, or a replayed URL. Look at the buyer's order; approve it if the buyer is in arrears, settle it if not."
        }
        (_, "unknown-term") => {
            "The trial was bought for good, and nothing says until when: most likely the end of the trial. Look at the buyer's order; settle it if so."
        }
        (_, "conversion-held") => {
            "Another purchase of this instance is held. Decide that one first: if it bought the trial for good, settle or reject this."
        }
        (_, "conflicting-create") => {
            "The same orderBizId by another order or another buyer: perhaps a trial that was bought for good. Approve it as what it is, or reject it and refund it at the marketplace."
        }
        (_, "ambiguous-repeat" | "left-sku" | "left-expiry" | "refunded-renewal") => {
            "A late repeat of something already done, or the same asked once more. Settle it if it is a repeat, approve it if it is meant anew."
        }
        (_, "doubt") => {
            "A value that may hide another signed parameter, an unreadable date, or an unknown action. Read it, then decide."
        }
        (_, "past-expiry") => "The renewal ends in the past. Look at the order at the marketplace.",
        (_, "name-taken") => {
            "Another instance has this name as its id. Nothing was made for this order: find out which is which."
        }
        (_, "unknown-release" | "unknown-product" | "names-nothing") => {
            "The instance was not made here, or nothing names it. Look at your product's side before you approve."
        }
        _ => "Read it, then approve or reject it.",
    }
}

/// Explanation of a denial, by its reason code.
pub(super) fn refusal(reason: &str) -> &'static str {
    match reason {
        "wrong-signature" => {
            "The key here and in the seller console differ, or a proxy changes the query, or somebody guesses."
        }
        "missing-signature" => "There was no token: a health check, a scanner, or a proxy that drops it.",
        "malformed-signature" => "What came as the token cannot be one.",
        "duplicate-parameter" => "A name came twice: two readers could disagree about it, so it is nobody's.",
        "undated" | "stale" => "Its time is missing or too far from this clock: look at both clocks.",
        "method" | "content-type" => "Not the way this dialect is spoken.",
        _ => "It could not be read in one way only, so it was not read.",
    }
}

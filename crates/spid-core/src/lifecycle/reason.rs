//! Reasons to refuse or hold a callback, with their texts and codes.

use jiff::Timestamp;

use spid_hook::callback::{Action, ValidationIssue};
use spid_hook::instance::State;

/// Defines the reasons, each with its code and its text.
macro_rules! reasons {
    ($($(#[$note:meta])* $reason:ident $(($value:ty))? $code:literal $text:literal)*) => {
        /// Reasons to refuse or hold a callback.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        pub enum Reason {
            $($(#[$note])* #[error($text)] $reason $(($value))?,)*
        }

        impl Reason {
            /// Stable code for logs, counters and `--json`.
            pub const fn code(&self) -> &'static str {
                match self { $(Reason::$reason { .. } => $code,)* }
            }
        }
    };
}

reasons! {
    /// No instance of this account has that name.
    UnknownInstance "unknown-instance" "no instance with this name is known here"
    /// Neither an instance id nor an order identifies an instance.
    NamesNothing "names-nothing" "the request names no instance, and no instance was found by its order"
    /// The instance was released, so every further payment for it is in vain.
    PaidForNothing(Action) "paid-for-nothing" "the instance is released; refund this {0}"
    /// The instance was bought, but is not provisioned yet.
    NotReady "not-ready" "the instance has not been created yet"
    /// The state of the instance allows no sign-on.
    NotUsable(State) "not-usable" "the instance is {0}, so sign-on is not possible"
    /// The sign-on was used before.
    SignOnUsed "sign-on-used" "this sign-on was used before"
    /// The date of the sign-on is missing or too far from now.
    SignOnStale "sign-on-stale" "the time of this sign-on is missing, or outside the sign-on window (5 minutes by default)"
    /// A validation issue; an operator must decide.
    ValidationIssue(ValidationIssue) "doubt" "{0}"
    /// Another purchase has the orderBizId of this instance.
    ConflictingCreate "conflicting-create" "this orderBizId was bought before, by another order or another buyer"
    /// The purchase of the instance was repeated with other values.
    RepeatedWithOtherValues "create-repeated-with-other-values" "the purchase was repeated with another SKU, other quantities or another expiry; no hook was run"
    /// An unordered request was repeated, and the instance is no longer as the request asks.
    AmbiguousRepeat(Action) "ambiguous-repeat" "this {0} was carried out before, and the instance has changed since; it may be a late repeat or a new request"
    /// An expire for an instance that was bought for good after a trial, with no known end of the term.
    UnknownTerm "unknown-term" "the trial was bought for good, and the end of that term is unknown; this expire may be for the trial"
    /// An expire while another purchase of the instance is held.
    ConversionHeld "conversion-held" "another purchase of this instance is held and may have bought it for good; decide the held purchase first"
    /// The instance was released, so a query has no result.
    Gone "gone" "the instance has been released"
    /// The orderBizId of this order is the id that a hook gave to the instance of another orderBizId.
    NameTaken(String) "name-taken" "another instance, bought as `{0}`, has this orderBizId as its id; no instance was created for this order"
    /// A create that came after its release.
    LateCreate "late-create" "the release of this instance came before this create"
    /// An expire long before the known expiry, which may be a late repeat or the end of a trial.
    EarlyExpire(Timestamp) "early-expire" "the instance is paid until {0}, and this expire may be a late repeat or the end of an earlier term"
    /// A renewal that was carried out before and taken back later.
    RefundedRenewal "refunded-renewal" "this renewal was carried out before, and the expiry has been lowered since"
    /// A refund of a renewal that was carried out before, followed by another renewal.
    LeftExpiry "left-expiry" "this refund was carried out before, and the expiry has moved since"
    /// An upgrade that the hook refused before the instance changed.
    LeftSku "left-sku" "the hook refused this upgrade, and the instance has changed since"
    /// A renewal to a date in the past.
    PastExpiry "past-expiry" "the instance is frozen, and this renewal ends in the past"
    /// A release of an instance that spid did not create.
    UnknownRelease "unknown-release" "the instance to release was not created by spid"
    /// An unknown instance is to be adopted, but the request does not name the product, which selects the hook.
    UnknownProduct "unknown-product" "the instance is unknown, and the request names no product"
    /// The hook refused.
    Hook(String) "hook" "{0}"
    /// An operator rejected the callback.
    Rejected(String) "rejected" "{0}"
}

impl Reason {
    /// Code of a refusal by the hook.
    pub const HOOK: &'static str = "hook";

    /// Text for the marketplace. It leaves out the operator's words and the purchases of other buyers, because any
    /// sender of a callback can read it.
    pub fn sentence(&self) -> String {
        match self {
            Reason::Rejected(_) => "the seller has declined this".to_owned(),
            Reason::NameTaken(_) => "another instance has this orderBizId as its id".to_owned(),
            other => other.to_string(),
        }
    }
}

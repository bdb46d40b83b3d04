//! Reasons to refuse or hold a callback, with their texts and codes.

use jiff::Timestamp;

use spid_hook::callback::{Action, ValidationIssue};
use spid_hook::instance::State;

/// Reasons to refuse or hold a callback.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No instance of this account has that name.
    #[error("no instance with this name is known here")]
    UnknownInstance,
    /// Neither an instance id nor an order identifies an instance.
    #[error("the request names no instance, and no instance was found by its order")]
    NamesNothing,
    /// The instance was released, so every further payment for it is in vain.
    #[error("the instance is released; refund this {0}")]
    PaidForNothing(Action),
    /// The instance was bought, but is not provisioned yet.
    #[error("the instance has not been created yet")]
    NotReady,
    /// The state of the instance allows no sign-on.
    #[error("the instance is {0}, so sign-on is not possible")]
    NotUsable(State),
    /// The sign-on was used before.
    #[error("this sign-on was used before")]
    SignOnUsed,
    /// The date of the sign-on is missing or too far from now.
    #[error("the time of this sign-on is missing, or outside the sign-on window (5 minutes by default)")]
    SignOnStale,
    /// A validation issue; an operator must decide.
    #[error("{0}")]
    ValidationIssue(ValidationIssue),
    /// Another purchase has the orderBizId of this instance.
    #[error("this orderBizId was bought before, by another order or another buyer")]
    ConflictingCreate,
    /// The purchase of the instance was repeated with other values.
    #[error(
        "the purchase was repeated with another SKU, other quantities or another expiry; no hook was run"
    )]
    RepeatedWithOtherValues,
    /// An unordered request was repeated, and the instance is no longer as the request asks.
    #[error(
        "this {0} was carried out before, and the instance has changed since; it may be a late repeat or a new request"
    )]
    AmbiguousRepeat(Action),
    /// An expire for an instance that was bought for good after a trial, with no known end of the term.
    #[error(
        "the trial was bought for good, and the end of that term is unknown; this expire may be for the trial"
    )]
    UnknownTerm,
    /// An expire while another purchase of the instance is held.
    #[error(
        "another purchase of this instance is held and may have bought it for good; decide the held purchase first"
    )]
    ConversionHeld,
    /// The instance was released, so a query has no result.
    #[error("the instance has been released")]
    Gone,
    /// The orderBizId of this order is the id that a hook gave to the instance of another orderBizId.
    #[error(
        "another instance, bought as `{0}`, has this orderBizId as its id; no instance was created for this order"
    )]
    NameTaken(String),
    /// A create that came after its release.
    #[error("the release of this instance came before this create")]
    LateCreate,
    /// An expire long before the known expiry, which may be a late repeat or the end of a trial.
    #[error(
        "the instance is paid until {0}, and this expire may be a late repeat or the end of an earlier term"
    )]
    EarlyExpire(Timestamp),
    /// A renewal that was carried out before and taken back later.
    #[error("this renewal was carried out before, and the expiry has been lowered since")]
    RefundedRenewal,
    /// A refund of a renewal that was carried out before, followed by another renewal.
    #[error("this refund was carried out before, and the expiry has moved since")]
    LeftExpiry,
    /// An upgrade that the hook refused before the instance changed.
    #[error("the hook refused this upgrade, and the instance has changed since")]
    LeftSku,
    /// A renewal to a date in the past.
    #[error("the instance is frozen, and this renewal ends in the past")]
    PastExpiry,
    /// A release of an instance that spid did not create.
    #[error("the instance to release was not created by spid")]
    UnknownRelease,
    /// An unknown instance is to be adopted, but the request does not name the product, which selects the hook.
    #[error("the instance is unknown, and the request names no product")]
    UnknownProduct,
    /// The hook refused.
    #[error("{0}")]
    Hook(String),
    /// An operator rejected the callback.
    #[error("{0}")]
    Rejected(String),
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

    /// Stable code for logs, counters and `--json`.
    pub const fn code(&self) -> &'static str {
        match self {
            Reason::UnknownInstance => "unknown-instance",
            Reason::NamesNothing => "names-nothing",
            Reason::PaidForNothing(_) => "paid-for-nothing",
            Reason::NotReady => "not-ready",
            Reason::NotUsable(_) => "not-usable",
            Reason::SignOnUsed => "sign-on-used",
            Reason::SignOnStale => "sign-on-stale",
            Reason::ValidationIssue(_) => "doubt",
            Reason::ConflictingCreate => "conflicting-create",
            Reason::RepeatedWithOtherValues => "create-repeated-with-other-values",
            Reason::AmbiguousRepeat(_) => "ambiguous-repeat",
            Reason::UnknownTerm => "unknown-term",
            Reason::ConversionHeld => "conversion-held",
            Reason::Gone => "gone",
            Reason::NameTaken(_) => "name-taken",
            Reason::LateCreate => "late-create",
            Reason::EarlyExpire(_) => "early-expire",
            Reason::RefundedRenewal => "refunded-renewal",
            Reason::LeftExpiry => "left-expiry",
            Reason::LeftSku => "left-sku",
            Reason::PastExpiry => "past-expiry",
            Reason::UnknownRelease => "unknown-release",
            Reason::UnknownProduct => "unknown-product",
            Reason::Hook(_) => Reason::HOOK,
            Reason::Rejected(_) => "rejected",
        }
    }
}

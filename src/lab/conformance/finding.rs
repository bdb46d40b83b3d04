//! Findings of the suite as data: a kind and its values. `Display` tells them in English.

use std::fmt;

use serde::{Serialize, Serializer};

use super::token_method::TokenMethod;
use crate::lab::exchange::Answer;
use spid_hook::json::Json;

/// Defines the kinds of findings, each with its values and its English text.
macro_rules! findings {
    ($($kind:ident { $($value:ident: $type:ty),* } $text:literal)*) => {
        /// Finding of a case: its kind, and the values in it.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Finding {
            $(
                #[doc = $text]
                $kind {
                    $(
                        #[doc = "Value in the text."]
                        $value: $type,
                    )*
                },
            )*
        }

        impl fmt::Display for Finding {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Finding::$kind { $($value),* } => write!(f, $text),)*
                }
            }
        }
    };
}

findings! {
    NotTried {} "no purchase was tried"
    Id { id: String } "the id is {id}"
    IdEachTime { id: String } "the id is {id} each time"
    Ids { one: String, other: String } "the ids are {one} and {other}"
    OneIdInAnswers { count: usize, id: String } "{count} answers contained the id {id}; no answer contained another id"
    OneIdForTwoOrders { id: String } "two orders were answered with one id, {id}"
    TwoIdsForOneOrder { one: String, other: String } "one order was answered with the ids {one} and {other}"
    AnotherIdAgain { first: String, again: String } "the id was {first}, and the same purchase again was answered with {again}"
    AnotherIdAfterRelease { id: String, other: String } "the order had the id {id}, and after its release it has {other}"
    CreatedAgain {} "the instance can be renewed: the late purchase created it again"
    NotCreatedAgain { answer: AnswerSummary } "the answer was {answer}, and the instance cannot be renewed"
    NoKnownToken { found: Box<Finding> } "{found}, with every known way to compute the token; check the key, or run `spid verify`"
    DocumentedToken {} "a purchase with the documented token was answered with an id"
    OtherToken { method: TokenMethod } "the endpoint seems to {method}: a purchase with such a token was answered with an id"
    Answered { answer: AnswerSummary } "the answer was {answer}"
    RequestAnswered { request: String, answer: AnswerSummary } "{request} was answered {answer}"
    Unanswered { request: String, error: String } "{request} got no answer: {error}"
    Unsendable { error: String } "cannot send the request: {error}"
    ServerError { request: String, status: u16 } "{request} caused a server error: {status}"
    Success {} "the answer was a success"
    BothSuccess {} "both answers were a success"
    EachSuccess {} "each was answered with success"
    EachRefused {} "each was refused"
    Status { status: u16 } "the status is {status}"
    AnsweredStatus { status: u16 } "the answer was {status}"
    LinkLeads { url: String } "the link leads to {url}; check by hand that this is the application"
    LinkIsNoPage { status: u16 } "a new sign-on link was answered {status} without a page or a redirect: the buyer's browser shows no application"
    LinkShows {} "the link shows a page; check by hand that this is the application"
    NewLinkDenied { status: u16 } "a new sign-on link was answered {status}"
    LinkAccepted { request: String, status: u16 } "{request} was answered {status}, like a valid link"
    Slow { request: String, ms: u64, limit_ms: u128 } "{request} was answered after {ms} ms; more than {limit_ms} ms is too long"
    Slowest { ms: u64, request: String } "the slowest answer so far took {ms} ms, to {request}"
    AppInfoComplete {} "appInfo contains all four members"
    AppInfoLacks { members: String } "appInfo has no {members}; the vendor's self-test requires it"
    IdIsText {} "instanceId is a text"
    IdIsNoText { value: Json } "instanceId is {value}, without quotes"
    IdIsOrder {} "instanceId is the orderBizId"
    IdIsNotOrder { order: String, id: String } "orderBizId {order} was answered with the id {id}"
    SuccessIsBoolean {} "success is a boolean"
    SuccessIsNoBoolean { value: Json } "success is {value}"
    FailureIsNoBoolean { request: String, value: Json } "success is a boolean in a success, but {request} was answered with {value}"
    UnsetKeyAccepted { key: &'static str } "a purchase that was signed with {key} was answered with an id: anyone can forge orders"
    PaymentSuccessIsNoBoolean {} "success is not a boolean, as this page has it"
    PaymentsAcknowledged {} "both payments were acknowledged"
    ContentIsJson {} "the answer is application/json"
    ContentIsNotJson { kind: String } "the answer's Content-Type is `{kind}`"
    ItemsUpgraded { id: String } "bought with {id}, and upgraded"
    ImageReleased {} "bought, renewed and released"
    Unfrozen {} "frozen and unfrozen"
    Needs { case: &'static str } "needs `{case}`, which did not pass"
}

/// Reports contain the English text.
impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The part of an answer that a marketplace reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerSummary {
    status: u16,
    id: Option<String>,
    success: Option<bool>,
    has_instance_id: bool,
}

impl From<&Answer> for AnswerSummary {
    fn from(answer: &Answer) -> AnswerSummary {
        AnswerSummary {
            status: answer.status,
            id: answer.id(),
            success: answer.success(),
            has_instance_id: answer.member("instanceId").is_some(),
        }
    }
}

impl fmt::Display for AnswerSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status;
        match (&self.id, self.success) {
            (Some(id), _) => write!(f, "{status} with the id {id}"),
            (None, Some(success)) => write!(f, "{status} with success {success}"),
            (None, None) if self.has_instance_id => write!(f, "{status} with the id 0"),
            (None, None) => write!(f, "{status}, without an id and without success"),
        }
    }
}

//! Answers of Alibaba Cloud's APIs: JSON with a `Code` on failure.
//!
//! Codes of the gateway: help.aliyun.com/document_detail/48054.html. Codes of the operations: their pages, listed in
//! `docs/dialects/alibaba-api.md`.

use std::fmt;

use spid_hook::json::Json;
use spid_hook::text::plain_log;

spid_hook::words! {
    /// Kind of a failure: what must happen next.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum ErrorClass {
        /// Too many requests; a later one may pass. The request was not carried out.
        Throttled = "throttled",
        /// The service failed. The request may have been carried out.
        Unavailable = "unavailable",
        /// The same request is being carried out. Wait, then ask again with the same token.
        InProgress = "in-progress",
        /// The clock of this machine differs by more than 15 minutes.
        Clock = "clock",
        /// The nonce was used before. A nonce is random, so a copy of this request arrived earlier and may have been carried
        /// out: a proxy on the way may have sent it again.
        Nonce = "nonce",
        /// The access key or its signature is wrong.
        Credentials = "credentials",
        /// The operation wants the key of a RAM user, and the key belongs to the main account.
        NeedsRamUser = "needs-ram-user",
        /// The operation wants the key of the main account, and the key belongs to a RAM user or a role.
        NeedsMainAccount = "needs-main-account",
        /// The key is right, and may not call this operation.
        Permission = "permission",
        /// The batch is too large.
        TooLarge = "too-large",
        /// A fact about a licence or an order, and not a fault of the request: see [`ApiError::code`].
        Fact = "fact",
        /// The request is wrong. A repetition does not help.
        Invalid = "invalid",
    }
}

impl ErrorClass {
    /// Returns true if a later request may succeed without a change by a person.
    pub const fn is_temporary(self) -> bool {
        matches!(
            self,
            ErrorClass::Throttled | ErrorClass::Unavailable | ErrorClass::InProgress | ErrorClass::Nonce
        )
    }

    /// Returns true if the request may have been carried out although it failed.
    pub const fn may_be_applied(self) -> bool {
        matches!(self, ErrorClass::Unavailable | ErrorClass::InProgress | ErrorClass::Nonce)
    }

    /// Returns the advice for a person, if there is one.
    pub const fn advice(self) -> Option<&'static str> {
        match self {
            ErrorClass::Clock => Some(
                "the clock of this machine differs by more than 15 minutes from the marketplace's: set it by NTP",
            ),
            ErrorClass::Credentials => {
                Some("check the access key id, the secret and, for a temporary key, its end")
            }
            ErrorClass::NeedsRamUser => {
                Some("this operation needs the access key of a RAM user: set it in `credentials_for`")
            }
            ErrorClass::NeedsMainAccount => {
                Some("this operation needs the access key of the main account: set it in `credentials_for`")
            }
            ErrorClass::Permission => {
                Some("grant the key's user this operation, or use another key in `credentials_for`")
            }
            _ => None,
        }
    }

    /// Classifies a failure by its code. The status decides only about codes that no source names.
    fn of(code: &str, status: u16) -> ErrorClass {
        match code {
            "Service.Flow.Control" => ErrorClass::Throttled,
            "DuplicateClientToken" => ErrorClass::InProgress,
            "InvalidTimeStamp.Expired" => ErrorClass::Clock,
            "SignatureNonceUsed" => ErrorClass::Nonce,
            "SignatureDoesNotMatch" | "IncompleteSignature" | "InvalidSecurityToken.Expired" => {
                ErrorClass::Credentials
            }
            "Auth.SubAccount.Error" => ErrorClass::NeedsRamUser,
            "Auth.CallerType" => ErrorClass::NeedsMainAccount,
            "ActionUnauthorized" | "NoPermission" | "Permission.Denied" | "Forbidden" => {
                ErrorClass::Permission
            }
            "Auth.Authorized" | "Auth.ISV" | "Auth.ISV.Error" => ErrorClass::Permission,
            "Metering.Data.Exceeded" => ErrorClass::TooLarge,
            "License.Invalid" | "License.NotFound" | "License.Expired" | "License.Discard" | "Auth.Match" => {
                ErrorClass::Fact
            }
            "ServiceUnavailable" | "InternalError" | "UnknownError" => ErrorClass::Unavailable,
            _ if code == "Throttling" || code.starts_with("Throttling.") => ErrorClass::Throttled,
            _ if code.starts_with("InvalidAccessKeyId") || code.starts_with("InvalidSecurityToken") => {
                ErrorClass::Credentials
            }
            _ if code.starts_with("Forbidden.") => ErrorClass::Permission,
            _ if code.starts_with("Invalid") || code.starts_with("Missing") => ErrorClass::Invalid,
            _ if status == 429 => ErrorClass::Throttled,
            // 408: a proxy has waited too long.
            _ if status >= 500 || status == 408 => ErrorClass::Unavailable,
            // A success status with a body that says otherwise: it is not known what was done.
            _ if status < 300 => ErrorClass::Unavailable,
            _ => ErrorClass::Invalid,
        }
    }
}

/// Failure that an API answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// Kind of the failure.
    pub class: ErrorClass,
    /// The vendor's code; empty if the answer has none.
    pub code: String,
    /// The vendor's message, fit to be shown.
    pub message: String,
    /// The vendor's id of the request, for its support.
    pub request_id: Option<String>,
    /// HTTP status.
    pub status: u16,
    /// Time to wait before the next request, in milliseconds, if the vendor named one.
    pub retry_after_ms: Option<u64>,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code.as_str() {
            "" => write!(f, "HTTP status {}", self.status)?,
            code => write!(f, "{code} (HTTP status {})", self.status)?,
        }
        if !self.message.is_empty() && self.message != self.code {
            write!(f, ": {}", self.message)?;
        }
        if let Some(id) = &self.request_id {
            write!(f, "; request {id}")?;
        }
        match self.class.advice() {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {}

/// Longest text of an answer that is kept for a message.
const MESSAGE_MAX_CHARS: usize = 300;

/// Reads an answer: the document of a success, or the failure.
///
/// `retry_after` is the header `x-acs-retry-after`, in milliseconds. A failure with it that would be
/// [`ErrorClass::Invalid`] is [`ErrorClass::Throttled`], unless its code says something else.
///
/// # Errors
/// Fails if the API says so by its status, or by `Success: false` in an answer with status 200; and if a success is no
/// JSON object, because then it is not known what was done.
///
/// ```
/// use spid_core::market_api::{ErrorClass, read_answer};
/// let body = br#"{"Code": "Invalid.Parameter.Instance", "Message": "no such instance", "RequestId": "R1"}"#;
/// let error = read_answer(500, None, body).unwrap_err();
/// assert_eq!(error.class, ErrorClass::Invalid);
/// assert!(!error.class.may_be_applied());
/// ```
pub fn read_answer(status: u16, retry_after: Option<&str>, body: &[u8]) -> Result<Json, ApiError> {
    let document = Json::read(body).ok().filter(|json| matches!(json, Json::Object(_)));
    let is_success = (200..300).contains(&status);
    match document {
        Some(document) if is_success && !says_failure(&document) => Ok(document),
        Some(document) => Err(failure(status, retry_after, &document)),
        None => {
            let message = match is_success {
                true => "the answer is not a JSON object".to_owned(),
                false => String::new(),
            };
            Err(ApiError { message, ..failure(status, retry_after, &Json::Null) })
        }
    }
}

/// Returns the member of an object by its name. The vendor's SDKs read the name with a small first letter, too.
pub(super) fn member<'j>(object: &'j Json, name: &str) -> Option<&'j Json> {
    object.get(name).or_else(|| {
        let mut letters = name.chars();
        let first = letters.next()?.to_ascii_lowercase();
        object.get(&format!("{first}{}", letters.as_str()))
    })
}

/// Reads a boolean, which some answers write as text.
pub(super) fn flag(value: &Json) -> Option<bool> {
    match value {
        Json::Bool(flag) => Some(*flag),
        Json::Text(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Json::Text(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

fn says_failure(document: &Json) -> bool {
    member(document, "Success").and_then(flag) == Some(false)
}

fn failure(status: u16, retry_after: Option<&str>, document: &Json) -> ApiError {
    let text = |name: &str| member(document, name).and_then(Json::to_text).filter(|text| !text.is_empty());
    let code = text("Code").unwrap_or_default();
    let message = text("Message").unwrap_or_default();
    let message: String = without_echo(&code, &message).chars().take(MESSAGE_MAX_CHARS).collect();
    let retry_after_ms = retry_after.and_then(|text| text.trim().parse().ok()).filter(|ms| *ms > 0);
    let mut class = ErrorClass::of(&code, status);
    // The vendor's SDK turns every error with this header into throttling. A failure of the service stays one, because
    // the request may have been carried out.
    if retry_after_ms.is_some() && class == ErrorClass::Invalid && !is_named(&code) {
        class = ErrorClass::Throttled;
    }
    ApiError {
        class,
        code: plain_log(&code).into_owned(),
        message: plain_log(&message).into_owned(),
        request_id: text("RequestId").map(|id| plain_log(&id).into_owned()),
        status,
        retry_after_ms,
    }
}

/// Returns true if a source names the meaning of this code.
fn is_named(code: &str) -> bool {
    code.starts_with("Invalid") || code.starts_with("Missing")
}

/// Leaves out the request that the gateway quotes if a signature is wrong: it holds session tokens and licence codes.
fn without_echo<'m>(code: &str, message: &'m str) -> &'m str {
    match message.find("server").or_else(|| message.find("Server")) {
        Some(at) if code.contains("Signature") => message.get(..at).unwrap_or_default().trim_end(),
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, body: &str) -> ApiError {
        read_answer(status, None, body.as_bytes()).unwrap_err()
    }

    /// The pages' own codes and statuses, with the class that their text asks for.
    #[test]
    fn a_failure_is_classified_by_its_code_and_not_by_its_status() {
        let said = [
            (400, "InvalidTimeStamp.Expired", ErrorClass::Clock),
            (400, "InvalidTimeStamp.Format", ErrorClass::Invalid),
            (400, "SignatureNonceUsed", ErrorClass::Nonce),
            (400, "SignatureDoesNotMatch", ErrorClass::Credentials),
            (400, "IncompleteSignature", ErrorClass::Credentials),
            (404, "InvalidAccessKeyId.NotFound", ErrorClass::Credentials),
            (400, "InvalidSecurityToken.Expired", ErrorClass::Credentials),
            (400, "Throttling", ErrorClass::Throttled),
            (400, "Throttling.User", ErrorClass::Throttled),
            (429, "Throttling.Api", ErrorClass::Throttled),
            (500, "Service.Flow.Control", ErrorClass::Throttled),
            (403, "Forbidden.RAM", ErrorClass::Permission),
            (403, "ActionUnauthorized", ErrorClass::Permission),
            (503, "ServiceUnavailable", ErrorClass::Unavailable),
            (500, "InternalError", ErrorClass::Unavailable),
            (500, "UnknownError", ErrorClass::Unavailable),
            (400, "MissingLicenseCode", ErrorClass::Invalid),
            (404, "InvalidApi.NotFound", ErrorClass::Invalid),
            (400, "License.Expired", ErrorClass::Fact),
            (400, "License.Discard", ErrorClass::Fact),
            (400, "License.Invalid", ErrorClass::Fact),
            (400, "License.NotFound", ErrorClass::Fact),
            (400, "Auth.Match", ErrorClass::Fact),
            (400, "Auth.SubAccount.Error", ErrorClass::NeedsRamUser),
            (400, "Auth.CallerType", ErrorClass::NeedsMainAccount),
            (400, "Auth.Authorized", ErrorClass::Permission),
            (400, "Auth.ISV", ErrorClass::Permission),
            (400, "Auth.ISV.Error", ErrorClass::Permission),
            (500, "Invalid.Parameter", ErrorClass::Invalid),
            (500, "Invalid.Parameter.Instance", ErrorClass::Invalid),
            (500, "Invalid.Parameter.Metering", ErrorClass::Invalid),
            (500, "Metering.Data.Exceeded", ErrorClass::TooLarge),
            (500, "Permission.Denied", ErrorClass::Permission),
            (400, "DuplicateClientToken", ErrorClass::InProgress),
            (502, "", ErrorClass::Unavailable),
            (408, "", ErrorClass::Unavailable),
            (400, "SomethingNew", ErrorClass::Invalid),
            (429, "SomethingNew", ErrorClass::Throttled),
            (500, "SomethingNew", ErrorClass::Unavailable),
        ];
        for (status, code, class) in said {
            let found = error(status, &format!(r#"{{"Code":"{code}","Message":"m","RequestId":"R"}}"#));
            assert_eq!(found.class, class, "{code}");
            assert_eq!((found.code.as_str(), found.request_id.as_deref()), (code, Some("R")));
        }
    }

    /// Metering: which failures of a push were not applied decides whether it may be sent again.
    #[test]
    fn only_a_failure_of_the_service_or_a_copy_leaves_it_open_if_a_request_was_carried_out() {
        for class in ErrorClass::ALL {
            let open = matches!(class, ErrorClass::Unavailable | ErrorClass::InProgress | ErrorClass::Nonce);
            assert_eq!(class.may_be_applied(), open, "{class:?}");
        }
    }

    #[test]
    fn success_with_status_200_is_not_enough() {
        assert!(read_answer(200, None, br#"{"RequestId":"R","Success":true}"#).is_ok());
        assert!(read_answer(200, None, br#"{"RequestId":"R","Success":"true"}"#).is_ok());
        assert!(read_answer(200, None, br#"{"RequestId":"R"}"#).is_ok());
        let refused = error(200, r#"{"Success":false,"Code":"Permission.Denied","Message":"not listed"}"#);
        assert_eq!(refused.class, ErrorClass::Permission);
        let lower = error(200, r#"{"success":"false","code":"License.Expired","requestId":"r"}"#);
        assert_eq!((lower.class, lower.request_id.as_deref()), (ErrorClass::Fact, Some("r")));
        for body in ["", "<html>", "[]", "7", "\"ok\""] {
            assert_eq!(error(200, body).class, ErrorClass::Unavailable, "{body}");
        }
    }

    #[test]
    fn a_wait_that_the_vendor_names_is_kept_in_milliseconds() {
        let body = br#"{"Code":"Odd","Message":"slow down"}"#;
        let told = read_answer(400, Some("1500"), body).unwrap_err();
        assert_eq!((told.class, told.retry_after_ms), (ErrorClass::Throttled, Some(1500)));
        for odd in ["0", "-1", "soon", "1.5"] {
            assert_eq!(read_answer(400, Some(odd), body).unwrap_err().retry_after_ms, None, "{odd}");
        }
        let named = read_answer(400, Some("1500"), br#"{"Code":"InvalidParameter"}"#).unwrap_err();
        assert_eq!(named.class, ErrorClass::Invalid);
        // A wait does not undo what a failing service may have done.
        for (status, body) in [(500, r#"{"Code":"InternalError"}"#), (503, "<html>"), (200, "<html>")] {
            let failed = read_answer(status, Some("1500"), body.as_bytes()).unwrap_err();
            assert!(failed.class.may_be_applied(), "{status} {body}");
            assert_eq!(failed.retry_after_ms, Some(1500));
        }
    }

    /// The gateway quotes the whole request, with the session token and the parameters.
    #[test]
    fn a_wrong_signature_does_not_show_the_request() {
        let message = "Specified signature does not match our calculation. server StringToSign is [ACS3-HMAC-SHA256\\nab] server CanonicalRequest is [POST\\n/\\nLicenseCode=FAKECODE\\nx-acs-security-token:fake-token]";
        for code in ["SignatureDoesNotMatch", "IncompleteSignature"] {
            let found = error(400, &format!(r#"{{"Code":"{code}","Message":"{message}"}}"#));
            assert_eq!(found.message, "Specified signature does not match our calculation.");
            let shown = format!("{found} {found:?}");
            assert!(!shown.contains("FAKECODE") && !shown.contains("fake-token"), "{shown}");
        }
    }

    #[test]
    fn a_message_of_the_vendor_is_shown_bounded_and_plain() {
        let long = "x".repeat(5_000);
        let found = error(400, &format!(r#"{{"Code":"A\u001b[31m","Message":"a\nb{long}"}}"#));
        assert!(found.message.chars().count() < 400);
        let shown = found.to_string();
        assert!(!shown.contains('\u{1b}') && !shown.contains('\n'), "{shown}");
        let clock =
            error(400, r#"{"Code":"InvalidTimeStamp.Expired","Message":"Specified time stamp is expired."}"#);
        assert!(clock.to_string().ends_with("set it by NTP"), "{clock}");
    }
}

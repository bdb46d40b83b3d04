//! The JSON of a call: written by spid, read by hooks in Rust.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Call, OtherCall, SCHEMA};
use crate::callback::Action;
use crate::json::Json;
use crate::text::plain;

/// A call as a flat JSON object: the version, the action, then the call's own members.
#[derive(Serialize)]
pub(super) struct Flat<'a, C> {
    pub(super) schema: &'static str,
    pub(super) action: Action,
    #[serde(flatten)]
    pub(super) call: &'a C,
}

impl Serialize for Call {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.write(serializer)
    }
}

/// Error for a call that cannot be read. It shows the version and the action, and no other value of the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableCall {
    /// The call is not JSON.
    #[error("the call is not JSON: line {line}, column {column}")]
    NotJson {
        /// Line of the first wrong byte, from 1.
        line: usize,
        /// Column of the first wrong byte, from 1.
        column: usize,
    },
    /// The call is JSON, but not an object with the members `schema` and `action`.
    #[error("the call is not a JSON object with the strings `schema` and `action`")]
    NotACall,
    /// The version of the contract is not the version that this crate reads.
    #[error(
        "the schema of the call is `{0}`; this program reads `{SCHEMA}`: build it with a newer spid-hook"
    )]
    Schema(String),
    /// An action that this crate does not know.
    #[error("the action of the call is `{0}`, which this program does not know")]
    Action(String),
    /// A member is missing, or its value has the wrong type.
    #[error("the {action} call cannot be read: {fault}")]
    Member {
        /// Action of the call.
        action: Action,
        /// The fault, without values of the call.
        fault: String,
    },
}

/// Maximum length of a word of the call in an error, in characters.
const SHOWN_MAX_CHARS: usize = 64;

/// Members that decide how the rest of a call is read.
#[derive(Deserialize)]
struct Head<'a> {
    schema: String,
    action: String,
    /// The raw text, because the other members are read without the digits of their numbers.
    #[serde(default, borrow, deserialize_with = "present")]
    body: Option<&'a RawValue>,
}

/// Reads a member that is there, also if it is null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Call {
    /// Reads a call from the JSON of the `exec` and `http` hooks. Members that this crate does not know are ignored.
    ///
    /// A number in the body of an `other` call keeps its digits: a number that
    /// [`serde_json::Value`] cannot hold exactly becomes a text.
    ///
    /// ```
    /// use spid_hook::{Call, UnreadableCall};
    ///
    /// let call = br#"{"schema": "spid.hook/2", "action": "create"}"#;
    /// assert_eq!(Call::read(call), Err(UnreadableCall::Schema("spid.hook/2".to_owned())));
    /// ```
    ///
    /// # Errors
    /// [`UnreadableCall`], with the reason.
    pub fn read(text: &[u8]) -> Result<Call, UnreadableCall> {
        let head: Head<'_> = serde_json::from_slice(text).map_err(|error| unread(&error))?;
        // The version comes first: another version may have other actions and members.
        if head.schema != SCHEMA {
            return Err(UnreadableCall::Schema(shown(&head.schema)));
        }
        let action = Action::from_word(&head.action).filter(|action| *action != Action::Query);
        let action = action.ok_or_else(|| UnreadableCall::Action(shown(&head.action)))?;
        read_members(action, text, head.body)
            .map_err(|error| UnreadableCall::Member { action, fault: fault_of(&error) })
    }
}

/// Reads the members of one action's call.
fn read_members(action: Action, text: &[u8], body: Option<&RawValue>) -> serde_json::Result<Call> {
    fn boxed<'de, C: Deserialize<'de>>(text: &'de [u8]) -> serde_json::Result<Box<C>> {
        serde_json::from_slice(text).map(Box::new)
    }
    Ok(match action {
        Action::Create => Call::Create(boxed(text)?),
        Action::Renew => Call::Renew(boxed(text)?),
        Action::RefundRenew => Call::RefundRenew(boxed(text)?),
        Action::Upgrade => Call::Upgrade(boxed(text)?),
        Action::Expire => Call::Expire(boxed(text)?),
        Action::Release => Call::Release(boxed(text)?),
        Action::SignOn => Call::SignOn(boxed(text)?),
        Action::Payment => Call::Payment(boxed(text)?),
        Action::Query | Action::Other => {
            let mut call: Box<OtherCall> = boxed(text)?;
            call.body = body.map(|raw| Json::read(raw.get().as_bytes())).transpose()?.map(exact);
            Call::Other(call)
        }
    })
}

/// Converts a value without a loss. A number that would be written with other digits becomes a text.
fn exact(json: Json) -> serde_json::Value {
    use serde_json::{Number, Value};
    match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(flag),
        Json::Text(text) => Value::String(text),
        Json::List(list) => Value::Array(list.into_iter().map(exact).collect()),
        Json::Object(members) => {
            Value::Object(members.into_iter().map(|(name, value)| (name, exact(value))).collect())
        }
        Json::Number(digits) => {
            let whole = digits.parse::<u64>().map(Number::from);
            let whole = whole.or_else(|_| digits.parse::<i64>().map(Number::from)).ok();
            // `str::parse` rounds correctly; the reader of `serde_json` may be off by one digit.
            let number = whole.or_else(|| digits.parse::<f64>().ok().and_then(Number::from_f64));
            match number {
                Some(number) if number.to_string() == digits => Value::Number(number),
                _ => Value::String(digits),
            }
        }
    }
}

fn unread(error: &serde_json::Error) -> UnreadableCall {
    if error.is_data() {
        return UnreadableCall::NotACall;
    }
    UnreadableCall::NotJson { line: error.line(), column: error.column() }
}

/// Returns the message of an error without values of the call: buyers choose them. Names are in backticks.
fn fault_of(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match (message.find('"'), message.rfind('"')) {
        (Some(from), Some(to)) if from < to => {
            let (head, tail) = (message.get(..from), message.get(to + 1..));
            format!("{}…{}", head.unwrap_or_default(), tail.unwrap_or_default())
        }
        _ => message,
    }
}

/// Shortens a word of the call for an error.
fn shown(word: &str) -> String {
    let short: String = word.chars().take(SHOWN_MAX_CHARS).collect();
    let more = if short.len() < word.len() { "…" } else { "" };
    format!("{}{more}", plain(&short))
}

/// Reads a call as [`Call::read`] does. It works with the deserializers of `serde_json` only, because the call is read
/// from its raw text.
impl<'de> Deserialize<'de> for Call {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Call, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Call::read(raw.get().as_bytes()).map_err(D::Error::custom)
    }
}

//! Answers of a hook: builders for Rust, and the reader for the JSON of the `exec` and `http` hooks.
//!
//! The reader is written by hand. A derived reader quotes the values it rejects in its messages, and these
//! values can be passwords.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use super::HookError;
use crate::Secret;
use crate::callback::{Action, Answer, Field, Fields, SECRET_FIELDS};
use crate::json::Json;

pub(super) const APP_FIELDS: [&str; 8] = [
    "front_end_url",
    "admin_url",
    "username",
    "password",
    "auth_url",
    "license_id",
    "license_valid_period",
    "license_for_user_guide",
];

pub(super) const HOST_FIELDS: [&str; 12] = [
    "name",
    "ip",
    "inner_ip",
    "username",
    "password",
    "cname",
    "temp_domain",
    "ftp_username",
    "ftp_password",
    "region",
    "beian_info",
    "database_info",
];

/// Creates a field. The name decides if the value is a secret, so no author has to think of it.
fn field(name: &str, text: impl Into<String>) -> Field {
    if SECRET_FIELDS.contains(&name) { Field::Secret(Secret::new(text)) } else { Field::Plain(text.into()) }
}

fn put(fields: &mut Fields, name: &str, text: impl Into<String>) {
    fields.insert(name.to_owned(), field(name, text));
}

/// Methods of the answers that describe the application.
macro_rules! application {
    ($answer:ident) => {
        impl $answer {
            /// Sets the URL of the application.
            pub fn app(mut self, url: impl Into<String>) -> $answer {
                put(&mut self.0.app, "front_end_url", url);
                self
            }

            /// Sets the URL of the administration, and the login for the first time.
            pub fn admin(
                mut self,
                url: impl Into<String>,
                username: impl Into<String>,
                password: impl Into<String>,
            ) -> $answer {
                put(&mut self.0.app, "admin_url", url);
                put(&mut self.0.app, "username", username);
                put(&mut self.0.app, "password", password);
                self
            }

            /// Sets the license: its key, its period of validity, and the URL of its guide.
            pub fn license(
                mut self,
                id: impl Into<String>,
                valid_period: impl Into<String>,
                guide: impl Into<String>,
            ) -> $answer {
                put(&mut self.0.app, "license_id", id);
                put(&mut self.0.app, "license_valid_period", valid_period);
                put(&mut self.0.app, "license_for_user_guide", guide);
                self
            }
        }

        impl From<$answer> for Answer {
            fn from(answer: $answer) -> Answer {
                answer.0
            }
        }
    };
}

application!(Provisioned);
application!(Updated);

crate::words! {
    /// Plain value of the machine, for products that sell one. Logins have their own methods.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum HostField {
        /// The machine's name.
        Name = "name",
        /// The machine's public address.
        Ip = "ip",
        /// The machine's address inside the cloud's network.
        InnerIp = "inner_ip",
        /// The name that a domain must point to.
        Cname = "cname",
        /// Temporary domain, until the buyer has one.
        TempDomain = "temp_domain",
        /// The machine's region.
        Region = "region",
        /// Information that the buyer needs for the ICP filing of a site in China.
        BeianInfo = "beian_info",
    }
}

/// Answer to a create.
///
/// ```
/// use spid_hook::Provisioned;
/// let made = Provisioned::new()
///     .id("tenant-1")
///     .app("https://tenant-1.app.example")
///     .admin("https://tenant-1.app.example/admin", "root", "fake-password")
///     .license("fake-licence-key", "P1Y", "https://docs.app.example/licence")
///     .info("note", "The first start takes a minute.");
/// assert!(!format!("{made:?}").contains("fake-password"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provisioned(Answer);

impl Provisioned {
    /// Creates an answer without details: the instance exists, and its id is the marketplace's `order_biz_id`.
    pub fn new() -> Provisioned {
        Provisioned::default()
    }

    /// Sets the id of the instance. It must be the same for every attempt, and unique to this instance. Alibaba and JD
    /// Cloud know the instance by it; KooGallery has ids of its own.
    pub fn id(mut self, id: impl Into<String>) -> Provisioned {
        self.0.instance_id = Some(id.into());
        self
    }

    /// Sets the URL to which the marketplace sends a buyer who signs on. Without it the answer holds the
    /// endpoint's public URL.
    pub fn auth_url(mut self, url: impl Into<String>) -> Provisioned {
        put(&mut self.0.app, "auth_url", url);
        self
    }

    /// Sets one value of the machine.
    ///
    /// ```
    /// use spid_hook::{HostField, Provisioned};
    ///
    /// let made = Provisioned::new()
    ///     .host(HostField::Ip, "203.0.113.7")
    ///     .host_login("root", "fake-password")
    ///     .secret_info("backup key", "fake-key");
    /// assert!(format!("{made:?}").contains("203.0.113.7") && !format!("{made:?}").contains("fake-"));
    /// ```
    pub fn host(mut self, name: HostField, value: impl Into<String>) -> Provisioned {
        put(&mut self.0.host, name.as_str(), value);
        self
    }

    /// Sets the login of the machine.
    pub fn host_login(mut self, username: impl Into<String>, password: impl Into<String>) -> Provisioned {
        put(&mut self.0.host, "username", username);
        put(&mut self.0.host, "password", password);
        self
    }

    /// Sets the login of the machine's FTP server.
    pub fn host_ftp(mut self, username: impl Into<String>, password: impl Into<String>) -> Provisioned {
        put(&mut self.0.host, "ftp_username", username);
        put(&mut self.0.host, "ftp_password", password);
        self
    }

    /// Sets the access to the machine's database. It is kept as a secret, because it commonly holds a password.
    pub fn host_database(mut self, text: impl Into<String>) -> Provisioned {
        put(&mut self.0.host, "database_info", text);
        self
    }

    /// Adds a remark for the buyer.
    pub fn info(mut self, name: impl Into<String>, text: impl Into<String>) -> Provisioned {
        self.0.info.insert(name.into(), Field::Plain(text.into()));
        self
    }

    /// Adds a secret remark, which only the buyer may read.
    pub fn secret_info(mut self, name: impl Into<String>, text: impl Into<String>) -> Provisioned {
        self.0.info.insert(name.into(), Field::Secret(Secret::new(text)));
        self
    }
}

/// Answer to a renew, an upgrade or a refunded renewal: the changed values that the buyer sees. Commonly empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Updated(Answer);

impl Updated {
    /// Creates an answer without changes: the work is done, and the values that the buyer sees stay.
    pub fn new() -> Updated {
        Updated::default()
    }
}

/// Answer to a sign-on: the URL to which the buyer's browser goes. The URL lets its bearer in, so it is a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedOn(Secret);

impl SignedOn {
    /// Sends the browser to this URL, which carries a one-time ticket of your own.
    ///
    /// ```
    /// use spid_hook::{HookError, SignOnCall, SignedOn};
    ///
    /// async fn sign_on(call: SignOnCall) -> Result<SignedOn, HookError> {
    ///     let tenant = call.instance.id.ok_or("an instance without an id")?;
    ///     let ticket = "one-time-ticket"; // random, stored, valid for a minute
    ///     Ok(SignedOn::redirect(format!("https://{tenant}.app.example/sign-on?ticket={ticket}")))
    /// }
    /// ```
    pub fn redirect(url: impl Into<String>) -> SignedOn {
        SignedOn(Secret::new(url))
    }
}

impl From<SignedOn> for Answer {
    fn from(signed_on: SignedOn) -> Answer {
        Answer { redirect: Some(signed_on.0), ..Answer::default() }
    }
}

/// Free answer to an `other` call. It may hold credentials, so it is kept as a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply(Secret);

impl Reply {
    /// Answers with this JSON, unchanged.
    ///
    /// ```
    /// use spid_hook::Reply;
    ///
    /// let reply = Reply::json(serde_json::json!({"success": true}));
    /// ```
    pub fn json(value: serde_json::Value) -> Reply {
        Reply(Secret::new(value.to_string()))
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Answer {
        Answer { body: Some(reply.0), ..Answer::default() }
    }
}

/// Error for an answer that cannot be understood. It names members, and never values. Hidden, because only spid reads
/// answers in pieces; [`read_answer`](crate::read_answer) is for everything else.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The answer is not JSON.
    #[error("the answer is not JSON: line {line}, column {column}")]
    NotJson {
        /// Line of the first wrong byte, from 1.
        line: usize,
        /// Column of the first wrong byte, from 1.
        column: usize,
    },
    /// The answer is JSON, but not an object.
    #[error("the answer is not a JSON object")]
    NotAnObject,
    /// A member that the contract does not have.
    #[error("the answer has the unknown member `{0}`; {meant}", meant = meant(.0))]
    Unknown(String),
    /// A member of another type.
    #[error("`{name}` of the answer is not {expected}")]
    Type {
        /// Name of the member.
        name: String,
        /// Type that the contract has for it.
        expected: &'static str,
    },
    /// The answer lacks a member that the action needs.
    #[error("a {action} needs `{member}` in its answer")]
    Missing {
        /// Action of the call.
        action: Action,
        /// Name of the missing member.
        member: &'static str,
    },
    /// The answer to this action is empty.
    #[error("the answer to `{0}` is empty; answer at least `{{}}`")]
    Empty(Action),
}

/// Suggestion for an unknown member: a name that differs only in capitals and underscores, as the marketplaces write
/// them, or that stands in another section.
fn meant(name: &str) -> String {
    let plain = |name: &str| name.replace('_', "").to_lowercase();
    let (section, last) = name.split_once('.').unwrap_or(("", name));
    let wanted = plain(last);
    let of = |section: &'static str, fields: &'static [&'static str]| {
        fields.iter().map(move |field| (section, format!("{section}.{field}"), plain(field)))
    };
    let whole = NULLABLE.iter().map(|name| ("", (*name).to_owned(), plain(name)));
    let known: Vec<_> = whole.chain(of("app", &APP_FIELDS)).chain(of("host", &HOST_FIELDS)).collect();
    let alike =
        || known.iter().filter(|(_, _, plain)| *plain == wanted || *plain == wanted.trim_end_matches("info"));
    match alike().find(|(of, ..)| *of == section).or_else(|| alike().next()) {
        Some((_, full, _)) => format!("did you mean `{full}`?"),
        None => "see `spid hook schema answer`".to_owned(),
    }
}

/// Members that may be null.
const NULLABLE: [&str; 9] =
    ["instance_id", "app", "host", "info", "secret_info", "redirect", "pending", "refuse", "retry_after"];

/// All values that a hook which speaks JSON may answer. Hidden for the same reason as [`Unreadable`].
#[doc(hidden)]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ParsedAnswer {
    /// Values of a success.
    pub answer: Answer,
    /// Note of an answer that says `pending`.
    pub pending: Option<String>,
    /// Reason of an answer that says `refuse`.
    pub refuse: Option<String>,
    /// Delay that the answer asks for.
    pub retry_after: Option<Duration>,
}

impl ParsedAnswer {
    /// Reads an answer. Returns `None` if the text is only white space.
    pub fn read_any(text: &[u8]) -> Result<Option<ParsedAnswer>, Unreadable> {
        let text = text.trim_ascii();
        if text.is_empty() { Ok(None) } else { ParsedAnswer::read(text).map(Some) }
    }

    /// Reads an answer.
    pub fn read(text: &[u8]) -> Result<ParsedAnswer, Unreadable> {
        // `Json` keeps the digits of numbers: an id may be a number of 24 digits.
        let value = Json::read(text)
            .map_err(|error| Unreadable::NotJson { line: error.line(), column: error.column() })?;
        let Json::Object(members) = value else { return Err(Unreadable::NotAnObject) };
        let mut said = ParsedAnswer::default();
        for (name, value) in members {
            said.take(&name, value)?;
        }
        Ok(said)
    }

    fn take(&mut self, name: &str, value: Json) -> Result<(), Unreadable> {
        // JSON null is a valid body; every other member with null counts as not sent.
        if value == Json::Null && NULLABLE.contains(&name) {
            return Ok(());
        }
        let answer = &mut self.answer;
        match name {
            "instance_id" => answer.instance_id = Some(text(name, value)?),
            "app" => answer.app = section(name, value, Some(&APP_FIELDS))?,
            "host" => answer.host = section(name, value, Some(&HOST_FIELDS))?,
            "info" => answer.info.extend(section(name, value, None)?),
            "secret_info" => answer.info.extend(secrets(name, value)?),
            "redirect" => answer.redirect = Some(Secret::new(text(name, value)?)),
            "body" => answer.body = Some(Secret::new(value.to_string())),
            "pending" => self.pending = Some(text(name, value)?),
            "refuse" => self.refuse = Some(text(name, value)?),
            "retry_after" => self.retry_after = Some(seconds(name, &value)?),
            _ => return Err(Unreadable::Unknown(name.to_owned())),
        }
        Ok(())
    }

    /// Checks the answer of a hook that reports success. An empty answer is `None`.
    pub fn success(said: Option<ParsedAnswer>, action: Action) -> Result<Answer, HookError> {
        let Some(said) = said else { return Ok(silence(action)?) };
        // Pending comes first: it is no success yet, so nothing else of the answer counts.
        if let Some(note) = said.pending {
            return Err(HookError::pending(note));
        }
        // `refuse` and `retry_after` contradict a success. A retry is safe; to pick one of the two is not.
        for (member, given) in
            [("refuse", said.refuse.is_some()), ("retry_after", said.retry_after.is_some())]
        {
            if given {
                return Err(HookError::retry(format!(
                    "the hook reports success and its answer has `{member}`; remove `{member}`, or report a failure"
                )));
            }
        }
        Ok(complete(said.answer, action)?)
    }
}

/// Members of an answer as a hook sends them. Texts are borrowed, so that a secret has no second copy here.
#[derive(Default, Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    app: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    host: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    info: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    secret_info: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redirect: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a RawValue>,
}

/// Writes an answer as a hook sends it, with its passwords. The text is one line.
///
/// The result is a [`Secret`], because a [`Secret`] itself is never serialized.
///
/// # Errors
/// The body of the answer is not JSON. The error never contains a value.
pub(crate) fn write(answer: &Answer) -> Result<Secret, String> {
    fn texts(fields: &Fields) -> BTreeMap<&str, &str> {
        fields.iter().map(|(name, field)| (name.as_str(), field.expose())).collect()
    }
    let body = answer.body.as_ref().map(|body| serde_json::from_str(body.expose())).transpose();
    let mut written = Written {
        instance_id: answer.instance_id.as_deref(),
        app: texts(&answer.app),
        host: texts(&answer.host),
        redirect: answer.redirect.as_ref().map(Secret::expose),
        body: body.map_err(|_| "the `body` of the answer is not JSON".to_owned())?,
        ..Written::default()
    };
    // The two kinds of remarks are one section of the answer and two members of its JSON.
    for (name, field) in &answer.info {
        match field {
            Field::Plain(text) => written.info.insert(name, text),
            Field::Secret(secret) => written.secret_info.insert(name, secret.expose()),
        };
    }
    let json = serde_json::to_string(&written).map_err(|_| "the answer cannot be written".to_owned())?;
    Ok(Secret::new(json))
}

/// Accepts an empty success if the action needs no answer. An empty answer to a create more likely comes from a
/// hook that does not know the action than from one that created something.
fn silence(action: Action) -> Result<Answer, Unreadable> {
    match action {
        Action::Renew
        | Action::RefundRenew
        | Action::Upgrade
        | Action::Expire
        | Action::Release
        | Action::Payment => Ok(Answer::default()),
        Action::Create | Action::SignOn | Action::Query | Action::Other => Err(Unreadable::Empty(action)),
    }
}

/// Checks that the answer has the member that the action requires.
fn complete(answer: Answer, action: Action) -> Result<Answer, Unreadable> {
    match action {
        Action::SignOn if answer.redirect.as_ref().is_none_or(Secret::is_empty) => {
            Err(Unreadable::Missing { action, member: "redirect" })
        }
        Action::Query | Action::Other if answer.body.is_none() => {
            Err(Unreadable::Missing { action, member: "body" })
        }
        _ => Ok(answer),
    }
}

/// Reads a text. A number or a boolean is taken as it was written, because `8080` for a port is no mistake.
fn text(name: &str, value: Json) -> Result<String, Unreadable> {
    value.to_text().ok_or_else(|| Unreadable::Type { name: name.to_owned(), expected: "a text" })
}

fn seconds(name: &str, value: &Json) -> Result<Duration, Unreadable> {
    let number = match value {
        Json::Number(digits) => digits.parse().ok(),
        _ => None,
    };
    number
        .map(Duration::from_secs)
        .ok_or_else(|| Unreadable::Type { name: name.to_owned(), expected: "a whole number of seconds" })
}

fn object(name: &str, value: Json) -> Result<BTreeMap<String, Json>, Unreadable> {
    match value {
        Json::Object(members) => Ok(members),
        _ => Err(Unreadable::Type { name: name.to_owned(), expected: "an object" }),
    }
}

/// Reads the fields of one section. A misspelled name is an error, because its value would never reach a buyer.
fn section(section: &str, value: Json, known: Option<&[&str]>) -> Result<Fields, Unreadable> {
    let mut fields = Fields::new();
    for (name, value) in object(section, value)? {
        let full = format!("{section}.{name}");
        if known.is_some_and(|known| !known.contains(&name.as_str())) {
            return Err(Unreadable::Unknown(full));
        }
        if value != Json::Null {
            put(&mut fields, &name, text(&full, value)?);
        }
    }
    Ok(fields)
}

/// Reads the fields of `secret_info`. All of them are secret, regardless of their names.
fn secrets(section: &str, value: Json) -> Result<Fields, Unreadable> {
    let members = object(section, value)?.into_iter().filter(|(_, value)| *value != Json::Null);
    members
        .map(|(name, value)| {
            let secret = Secret::new(text(&format!("{section}.{name}"), value)?);
            Ok((name, Field::Secret(secret)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::HookErrorKind;
    use super::*;

    const CANARY: &str = "fake-canary-password";

    fn read(value: Value) -> Result<ParsedAnswer, Unreadable> {
        ParsedAnswer::read(value.to_string().as_bytes())
    }

    fn success(value: Value, action: Action) -> Result<Answer, HookError> {
        ParsedAnswer::success(Some(read(value).unwrap()), action)
    }

    #[test]
    fn the_json_and_the_builder_say_the_same() {
        let built = Provisioned::new()
            .id("i-1")
            .app("https://a.example")
            .admin("https://a.example/admin", "root", CANARY)
            .auth_url("https://a.example/auth")
            .license(CANARY, "P1Y", "https://a.example/licence")
            .host(HostField::Ip, "192.0.2.1")
            .host_login("root", CANARY)
            .host_ftp("ftp", CANARY)
            .host_database(CANARY)
            .info("note", "hello")
            .secret_info("recovery", CANARY);
        let written = json!({
            "instance_id": "i-1",
            "app": {"front_end_url": "https://a.example", "admin_url": "https://a.example/admin",
                    "username": "root", "password": CANARY, "auth_url": "https://a.example/auth",
                    "license_id": CANARY, "license_valid_period": "P1Y",
                    "license_for_user_guide": "https://a.example/licence"},
            "host": {"ip": "192.0.2.1", "username": "root", "password": CANARY, "ftp_username": "ftp",
                     "ftp_password": CANARY, "database_info": CANARY},
            "info": {"note": "hello"}, "secret_info": {"recovery": CANARY}
        });
        let built = Answer::from(built);
        assert_eq!(success(written, Action::Create).unwrap(), built);
        assert!(!format!("{built:?}").contains(CANARY));
        assert!(!built.split().open.unwrap().contains(CANARY));
    }

    #[test]
    fn the_spelling_of_a_marketplace_is_recognised() {
        for (wrong, right) in [
            (json!({"app": {"frontEndUrl": "x"}}), "did you mean `app.front_end_url`?"),
            (json!({"app": {"FrontendURL": "x"}}), "did you mean `app.front_end_url`?"),
            (json!({"host": {"innerIp": "x"}}), "did you mean `host.inner_ip`?"),
            (json!({"host": {"userName": "x"}}), "did you mean `host.username`?"),
            (json!({"app": {"ip": "x"}}), "did you mean `host.ip`?"),
            (json!({"instanceId": "x"}), "did you mean `instance_id`?"),
            (json!({"appInfo": {}}), "did you mean `app`?"),
            (json!({"hostInfo": {}}), "did you mean `host`?"),
            (json!({"adminUrl": "x"}), "did you mean `app.admin_url`?"),
            (json!({"colour": "x"}), "see `spid hook schema answer`"),
        ] {
            let text = read(wrong).unwrap_err().to_string();
            assert!(text.ends_with(right), "{text}");
        }
    }

    #[test]
    fn no_message_quotes_a_value() {
        for wrong in [
            json!(CANARY),
            json!({"app": CANARY}),
            json!({"app": {"password": [CANARY]}}),
            json!({"secret_info": {"x": {"y": CANARY}}}),
            json!({"retry_after": CANARY}),
            json!({"nonsense": CANARY}),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
        }
        let half = format!(r#"{{"app": {{"password": "{CANARY}""#);
        let error = ParsedAnswer::read(half.as_bytes()).unwrap_err();
        assert!(!error.to_string().contains(CANARY), "{error}");
    }

    #[test]
    fn unknown_members_are_named() {
        assert_eq!(read(json!({"instanceId": "x"})).unwrap_err(), Unreadable::Unknown("instanceId".into()));
        assert_eq!(read(json!({"instanceId": null})).unwrap_err(), Unreadable::Unknown("instanceId".into()));
        let misspelt = read(json!({"app": {"frontend_url": "x"}})).unwrap_err();
        assert_eq!(misspelt, Unreadable::Unknown("app.frontend_url".into()));
    }

    #[test]
    fn null_is_not_sent_and_numbers_are_texts() {
        let answer = success(
            json!({"instance_id": 7, "app": null, "info": {"port": 8080, "x": null}}),
            Action::Create,
        )
        .unwrap();
        assert_eq!(answer.instance_id.as_deref(), Some("7"));
        assert_eq!(answer.info.len(), 1);
        assert_eq!(answer.info["port"], Field::Plain("8080".into()));
    }

    #[test]
    fn numbers_keep_the_digits_the_hook_wrote() {
        for number in ["202611300000000000000001", "1e3", "1.50", "-0", "18446744073709551616"] {
            let text =
                format!(r#"{{"instance_id": {number}, "info": {{"x": {number}}}, "body": [{number}]}}"#);
            let answer =
                ParsedAnswer::success(ParsedAnswer::read_any(text.as_bytes()).unwrap(), Action::Other)
                    .unwrap();
            assert_eq!(answer.instance_id.as_deref(), Some(number));
            assert_eq!(answer.info["x"].expose(), number);
            assert_eq!(answer.body.unwrap().expose(), format!("[{number}]"));
        }
        let wait = |text: &str| ParsedAnswer::read(format!(r#"{{"retry_after": {text}}}"#).as_bytes());
        assert_eq!(wait("5").unwrap().retry_after, Some(Duration::from_secs(5)));
        assert!(wait("5.5").is_err() && wait("-1").is_err() && wait("\"5\"").is_err());
    }

    #[test]
    fn each_action_has_what_it_cannot_do_without() {
        let retry = HookErrorKind::Retry { after: None };
        assert_eq!(success(json!({}), Action::Create), Ok(Answer::default()));
        assert_eq!(success(json!({}), Action::SignOn).unwrap_err().kind(), retry);
        assert_eq!(success(json!({"redirect": ""}), Action::SignOn).unwrap_err().kind(), retry);
        assert_eq!(success(json!({}), Action::Other).unwrap_err().kind(), retry);
        let free = success(json!({"body": {"a": [1]}}), Action::Other).unwrap();
        assert_eq!(free.body.unwrap().expose(), r#"{"a":[1]}"#);
        for action in [Action::Create, Action::SignOn, Action::Other] {
            assert_eq!(ParsedAnswer::success(None, action).unwrap_err().kind(), retry, "{action}");
        }
        for action in [Action::Renew, Action::Upgrade, Action::Expire, Action::Release, Action::Payment] {
            assert_eq!(ParsedAnswer::success(None, action), Ok(Answer::default()), "{action}");
        }
    }

    #[test]
    fn pending_is_no_success_and_a_contradiction_is_a_retry() {
        let pending = success(json!({"pending": "waits for sales"}), Action::Create).unwrap_err();
        assert_eq!(pending, HookError::pending("waits for sales"));
        for contradiction in [json!({"refuse": "no"}), json!({"retry_after": 5})] {
            let error = success(contradiction, Action::Create).unwrap_err();
            assert_eq!(error.kind(), HookErrorKind::Retry { after: None });
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let built = Provisioned::new()
            .id("i-1")
            .app("https://root:fake@a.example")
            .admin("https://a.example/admin", "root", CANARY)
            .license(CANARY, "P1Y", "https://a.example/licence")
            .host(HostField::Ip, "192.0.2.1")
            .host_login("root", CANARY)
            .host_ftp("ftp", CANARY)
            .host_database(CANARY)
            .info("note", "hello \"you\"\n")
            .secret_info("recovery", CANARY);
        let number = ParsedAnswer::read(br#"{"body": {"id": 202611300000000000000001, "price": 1.50}}"#)
            .unwrap()
            .answer;
        for answer in [
            built.into(),
            Updated::new().app("https://b.example").into(),
            SignedOn::redirect("https://a.example/?ticket=x").into(),
            Reply::json(json!({"a": [1, 2.5, null]})).into(),
            Reply::json(Value::Null).into(),
            number,
            Answer::default(),
        ] {
            let json = write(&answer).unwrap();
            let said = ParsedAnswer::read(json.expose().as_bytes()).unwrap();
            assert_eq!(said, ParsedAnswer { answer, ..ParsedAnswer::default() });
        }
        let broken = Answer { body: Some(Secret::new(CANARY)), ..Answer::default() };
        assert_eq!(write(&broken).unwrap_err(), "the `body` of the answer is not JSON");
    }
}

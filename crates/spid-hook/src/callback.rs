//! Neutral types shared by all modules: the request of a marketplace and the possible answers, in no dialect.
//!
//! A dialect turns a verified request into a [`Callback`], and an [`Outcome`] into a reply. Between the two, no module
//! depends on the marketplace.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Secret;
use crate::text::without_user_info;

/// Actions that a callback can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Create an instance.
    Create,
    /// Extend the term of an instance; unfreezes a frozen one.
    Renew,
    /// Take back a renewal: the only action that may lower the expiry.
    RefundRenew,
    /// Change the SKU or the billed quantities; the expiry stays.
    Upgrade,
    /// Freeze: the term ended or payment is in arrears. Data stays.
    Expire,
    /// Give up the instance for good.
    Release,
    /// Sign on the browser of a buyer.
    SignOn,
    /// Report a paid order: a message, so there is nothing to create.
    Payment,
    /// Query the result of an earlier request.
    Query,
    /// Any other action, known to the dialect or not.
    Other,
}

impl Action {
    /// All actions; the index of an action is the number that is stored.
    pub const ALL: [Action; 10] = [
        Action::Create,
        Action::Renew,
        Action::RefundRenew,
        Action::Upgrade,
        Action::Expire,
        Action::Release,
        Action::SignOn,
        Action::Payment,
        Action::Query,
        Action::Other,
    ];

    /// Word for the action in files, logs and `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Create => "create",
            Action::Renew => "renew",
            Action::RefundRenew => "refund-renew",
            Action::Upgrade => "upgrade",
            Action::Expire => "expire",
            Action::Release => "release",
            Action::SignOn => "sign-on",
            Action::Payment => "payment",
            Action::Query => "query",
            Action::Other => "other",
        }
    }

    /// Returns the action with this word.
    pub fn from_word(word: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.as_str() == word)
    }

    /// Returns true if the action changes the lifecycle of an instance, so its job belongs in the instance's queue.
    pub const fn is_lifecycle(self) -> bool {
        matches!(
            self,
            Action::Create
                | Action::Renew
                | Action::RefundRenew
                | Action::Upgrade
                | Action::Expire
                | Action::Release
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The signed parameters of one request, decoded, sorted by name, each name once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(transparent)]
pub struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Value of `name`; `None` if it was not sent. An empty value is `Some("")`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Value of `name`; `None` if it was not sent or is empty.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// All parameters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, String)> for Parameters {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Parameters {
        Parameters(pairs.into_iter().collect())
    }
}

/// Names by which a callback refers to its instance. Either may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRef {
    /// The id that the hook gave the instance, or the default id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// The marketplace's own id of the sold item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_biz_id: Option<String>,
}

impl InstanceRef {
    /// Usable names: not missing, not empty, and not the `0` that means "not ready".
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [self.instance_id.as_deref(), self.order_biz_id.as_deref()]
            .into_iter()
            .flatten()
            .filter(|name| !name.is_empty() && *name != "0")
    }
}

/// An expiry: the text as it was sent, and the instant read from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Expiry {
    /// The text as it was sent.
    pub raw: String,
    /// The instant; `None` if the text is not a readable date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Validation issues, for which a verified callback must wait for an operator before it is decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "doubt", rename_all = "kebab-case")]
pub enum ValidationIssue {
    /// The value of this parameter holds an `&`, behind which another parameter may be hidden. The signature would be
    /// the same.
    AmbiguousValue {
        /// Name of the parameter.
        name: String,
    },
    /// A date that the action requires is missing or unreadable.
    UnreadableDate {
        /// Name of the parameter.
        name: String,
    },
    /// The dialect does not know the action.
    UnknownAction,
    /// A parameter that the action requires is missing.
    MissingParameter {
        /// Name of the parameter.
        name: String,
    },
    /// The value of a parameter is not among those that the marketplace documents.
    UnknownValue {
        /// Name of the parameter.
        name: String,
    },
}

impl fmt::Display for ValidationIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValidationIssue::AmbiguousValue { name } => write!(
                f,
                "the value of `{name}` holds an `&` behind which another signed parameter may be hidden"
            ),
            ValidationIssue::UnreadableDate { name } => {
                write!(f, "`{name}` is missing or cannot be read as a date, and the action depends on it")
            }
            ValidationIssue::UnknownAction => f.write_str("the dialect does not know this action"),
            ValidationIssue::MissingParameter { name } => write!(f, "`{name}` is missing or empty"),
            ValidationIssue::UnknownValue { name } => {
                write!(f, "`{name}` has a value that is not documented")
            }
        }
    }
}

/// Nonce of a request. A marketplace that retries uses a new nonce, so a second request with the same nonce is a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce {
    /// The nonce as it was sent.
    pub nonce: String,
    /// End of the time in which a copy would still pass the check of its date.
    pub until: Timestamp,
}

/// A verified request of a marketplace, in no dialect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// Version of the stored body. A spid that reads a higher version than its own leaves the callback to the newer
    /// spid that wrote it.
    #[serde(default = "first_version", skip_serializing_if = "is_first_version")]
    pub version: u32,
    /// The action that the callback asks for.
    pub action: Action,
    /// The action as the marketplace spells it.
    pub action_name: String,
    /// Names of the instance.
    #[serde(default)]
    pub subject: InstanceRef,
    /// The marketplace's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<String>,
    /// The marketplace's id of this message, if it sends one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The buyer's account at the marketplace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buyer: Option<String>,
    /// The product sold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// The SKU sold, or the new SKU of an upgrade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    /// True for a trial; `None` if the marketplace did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<bool>,
    /// The new expiry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_on: Option<Expiry>,
    /// True if the release follows a refund; `None` if the marketplace did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<bool>,
    /// The billed quantities besides the SKU, as the seller defined them when publishing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub items: BTreeMap<String, String>,
    /// Time at which the marketplace says it sent the request, for dated requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// The id that the marketplace chose for the instance of a create, if it chooses ids itself. The id of the hook is
    /// then internal to the seller.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "public_id")]
    pub marketplace_instance_id: Option<String>,
    /// True for a test call of the marketplace, which must have no effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test: bool,
    /// Name of the dialect of the request. With it the order can still be looked up after its endpoint is gone. `None`
    /// for callbacks that an older spid stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
    /// True if the marketplace provisions such instances itself, so that an unknown instance is no error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not", rename = "made_elsewhere")]
    pub externally_provisioned: bool,
    /// True if the request carries an id of the marketplace's own that is new for each order. A repeat of it then asks
    /// "has this order been carried out?". Without such an id, two different events read alike, and a repeat can only
    /// ask "is it so?". The dialect decides; see [`Callback::ordering`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ordered: bool,
    /// Further actions that the same request asks for, after [`action`](Callback::action): for example a renewal that
    /// also changes the product. Each has its own job; the request is answered once all of them are done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Action>,
    /// True for the part of a create that is a renewal: a trial, or an earlier purchase, is now bought for good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub converts: bool,
    /// Nonce of the request, for marketplaces that send one.
    #[serde(skip)]
    pub nonce: Option<Nonce>,
    /// Order details beyond the parameters: the answer of an order lookup, or decrypted fields of the request.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "learned")]
    pub order_details: Option<Parameters>,
    /// The request as JSON, if its parameters hold lists as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
    /// Every signed parameter.
    #[serde(default)]
    pub parameters: Parameters,
    /// Validation issues, for which the callback must wait for an operator; empty for almost every callback.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "doubts")]
    pub issues: Vec<ValidationIssue>,
    /// Time at which most of the content was deleted; see [`Callback::forgotten`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned_at: Option<Timestamp>,
}

const fn first_version() -> u32 {
    1
}

const fn is_first_version(version: &u32) -> bool {
    *version == first_version()
}

impl Callback {
    /// Current version of the stored body. Raise it when an older spid would misunderstand the new content.
    pub const VERSION: u32 = 1;

    /// Creates a callback with its action only; a dialect fills in the rest.
    pub fn new(action: Action, action_name: impl Into<String>) -> Callback {
        Callback {
            version: Callback::VERSION,
            action,
            action_name: action_name.into(),
            subject: InstanceRef::default(),
            order_id: None,
            request_id: None,
            buyer: None,
            product: None,
            sku: None,
            trial: None,
            expires_on: None,
            refund: None,
            items: BTreeMap::new(),
            sent_at: None,
            marketplace_instance_id: None,
            test: false,
            dialect: None,
            externally_provisioned: false,
            ordered: false,
            also: Vec::new(),
            converts: false,
            nonce: None,
            order_details: None,
            body: None,
            parameters: Parameters::default(),
            issues: Vec::new(),
            pruned_at: None,
        }
    }

    /// Marks the callback as ordered if its action is one of `actions` and it names its order.
    ///
    /// `actions` are those for which the marketplace sends a new order id each time. An expire that names the order of
    /// the purchase is not among them.
    #[must_use]
    pub fn ordering(self, actions: &[Action]) -> Callback {
        let is_named = self.order_id.as_deref().is_some_and(|order| !order.is_empty());
        Callback { ordered: is_named && actions.contains(&self.action), ..self }
    }

    /// All actions that the request asks for, in the order in which they are carried out.
    pub fn actions(&self) -> impl Iterator<Item = Action> {
        std::iter::once(self.action).chain(self.also.iter().copied())
    }

    /// Returns the part of the request that `action` is about, as a separate callback.
    ///
    /// A renewal as a part of a create means that a trial was bought for good.
    #[must_use]
    pub fn part(&self, action: Action) -> Callback {
        let mut part = Callback { action, also: Vec::new(), ..self.clone() };
        match action {
            // The new expiry belongs to the renewal in the same request.
            Action::Upgrade if self.action != Action::Upgrade => part.expires_on = None,
            // The product in the request is the one that the other part changes to.
            Action::Renew if !self.also.is_empty() => part.product = None,
            Action::Renew if self.action == Action::Create => {
                part.trial = Some(false);
                part.converts = true;
            }
            _ => {}
        }
        part
    }

    /// Returns the whole request, with the order details that were added to its `part`.
    #[must_use]
    pub fn with_part(self, part: &Callback) -> Callback {
        if self.action == part.action && self.also.is_empty() {
            return part.clone();
        }
        // Members that [`Callback::part`] changes keep the values of the whole request.
        Callback {
            action: self.action,
            also: self.also,
            expires_on: self.expires_on,
            trial: self.trial,
            converts: self.converts,
            product: part.product.clone().or(self.product),
            ..part.clone()
        }
    }

    /// Returns true if a hook would get the same call for both. The date and the nonce of a delivery do not count, nor
    /// do order details that were added later.
    pub fn asks_the_same(&self, other: &Callback) -> bool {
        // The neutral fields contain the order details too, so compare only the content of the request.
        if self.order_details.is_some() || other.order_details.is_some() {
            return (self.action, &self.also, &self.subject, &self.order_id, &self.parameters)
                == (other.action, &other.also, &other.subject, &other.order_id, &other.parameters);
        }
        // Ignore everything that may differ between two deliveries of one request.
        let bare = |callback: &Callback| Callback {
            dialect: None,
            sent_at: None,
            nonce: None,
            order_details: None,
            ordered: false,
            pruned_at: None,
            ..callback.clone()
        };
        bare(self) == bare(other)
    }

    /// Returns the callback without most of its content, for a callback that is old and done. The order and the values
    /// that it set remain. The buyer, and everything else that the marketplace said, is removed.
    pub fn forgotten(&self, now: Timestamp) -> Callback {
        Callback {
            subject: self.subject.clone(),
            order_id: self.order_id.clone(),
            product: self.product.clone(),
            sku: self.sku.clone(),
            trial: self.trial,
            expires_on: self.expires_on.clone(),
            refund: self.refund,
            ordered: self.ordered,
            also: self.also.clone(),
            pruned_at: Some(now),
            ..Callback::new(self.action, self.action_name.as_str())
        }
    }
}

/// Value in an [`Answer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// Plain text, which may be shown and stored unencrypted.
    Plain(String),
    /// Secret text, which only the marketplace gets. It is encrypted at rest.
    Secret(Secret),
}

impl Field {
    /// Returns the text, secret or not, for the reply to the marketplace.
    pub fn expose(&self) -> &str {
        match self {
            Field::Plain(text) => text,
            Field::Secret(secret) => secret.expose(),
        }
    }
}

/// Named values in one section of an [`Answer`].
pub type Fields = BTreeMap<String, Field>;

/// Result of a hook, which the marketplace shows to the buyer.
///
/// Names are `snake_case`: `front_end_url`, `admin_url`, `username`, `password`, `auth_url`, `license_id`,
/// `license_valid_period`, `license_for_user_guide` in `app`; `name`, `ip`, `inner_ip`, `username`, `password`,
/// `cname`, `temp_domain`, `ftp_username`, `ftp_password`, `region`, `beian_info`, `database_info` in `host`; any name
/// in `info`. Each dialect has its own spelling of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The id that the hook chose for the instance.
    pub instance_id: Option<String>,
    /// Address of the application, and the credentials for it.
    pub app: Fields,
    /// The machine, for products that sell one.
    pub host: Fields,
    /// Remarks for the buyer.
    pub info: Fields,
    /// URL to which a sign-on sends the browser. It signs on its bearer, so it is secret.
    pub redirect: Option<Secret>,
    /// The whole answer as JSON text, for actions with a free answer. It may hold credentials.
    pub body: Option<Secret>,
}

/// Keys of `app` and `host` whose values are always secret.
pub const SECRET_FIELDS: [&str; 4] = ["password", "ftp_password", "database_info", "license_id"];

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct AnswerText {
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    app: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    host: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    info: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redirect: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

impl AnswerText {
    fn is_empty(&self) -> bool {
        self.app.is_empty()
            && self.host.is_empty()
            && self.info.is_empty()
            && self.redirect.is_none()
            && self.body.is_none()
            && self.instance_id.is_none()
    }
}

/// An answer split for storage: one part is stored in plain text, the other is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SplitAnswer {
    /// The plain fields as JSON; `None` when there are none.
    pub open: Option<String>,
    /// The secret fields as JSON; `None` when there are none.
    pub secret: Option<Secret>,
}

impl Answer {
    /// Splits the answer into a plain part and a part to encrypt.
    pub fn split(&self) -> SplitAnswer {
        let mut open = AnswerText { instance_id: self.instance_id.clone(), ..AnswerText::default() };
        // A redirect signs on its bearer, and a free body may hold credentials, so both are secret.
        let mut secret = AnswerText {
            redirect: self.redirect.as_ref().map(|text| text.expose().to_owned()),
            body: self.body.as_ref().map(|text| text.expose().to_owned()),
            ..AnswerText::default()
        };
        split_fields(&self.app, &mut open.app, &mut secret.app);
        split_fields(&self.host, &mut open.host, &mut secret.host);
        split_fields(&self.info, &mut open.info, &mut secret.info);
        SplitAnswer { open: to_json(&open), secret: to_json(&secret).map(Secret::new) }
    }

    /// Joins the parts of a stored answer. Without `secret` the result lacks the secret values.
    ///
    /// # Errors
    /// If the stored text was not written by [`Answer::split`].
    pub fn join(open: Option<&str>, secret: Option<&Secret>) -> Result<Answer, serde_json::Error> {
        let open: AnswerText = open.map(serde_json::from_str).transpose()?.unwrap_or_default();
        let hidden: AnswerText =
            secret.map(|text| serde_json::from_str(text.expose())).transpose()?.unwrap_or_default();
        Ok(Answer {
            instance_id: open.instance_id,
            app: join_fields(open.app, hidden.app),
            host: join_fields(open.host, hidden.host),
            info: join_fields(open.info, hidden.info),
            redirect: hidden.redirect.map(Secret::new),
            body: hidden.body.map(Secret::new),
        })
    }
}

fn to_json(text: &AnswerText) -> Option<String> {
    if text.is_empty() { None } else { serde_json::to_string(text).ok() }
}

fn split_fields(fields: &Fields, open: &mut BTreeMap<String, String>, secret: &mut BTreeMap<String, String>) {
    for (name, field) in fields {
        let side = match field {
            // A URL with a password in it is as secret as the password.
            Field::Plain(text) if matches!(without_user_info(text), Cow::Owned(_)) => &mut *secret,
            Field::Plain(_) => &mut *open,
            Field::Secret(_) => &mut *secret,
        };
        side.insert(name.clone(), field.expose().to_owned());
    }
}

fn join_fields(open: BTreeMap<String, String>, secret: BTreeMap<String, String>) -> Fields {
    let open = open.into_iter().map(|(name, text)| (name, Field::Plain(text)));
    open.chain(secret.into_iter().map(|(name, text)| (name, Field::Secret(Secret::new(text))))).collect()
}

/// Outcome of a callback at the time of its answer. A dialect turns it into a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done. `instance_id` is set if there is an instance.
    Applied {
        /// The id by which the marketplace knows the instance from now on.
        instance_id: Option<String>,
        /// The result of the hook.
        answer: Box<Answer>,
    },
    /// The hook has not finished; the marketplace must call again.
    NotYet,
    /// The hook refused the request, or the lifecycle forbids it.
    Refused {
        /// Stable code of the reason, a word that never changes.
        code: &'static str,
        /// The reason, in words that the marketplace's staff may read.
        reason: String,
    },
    /// The callback is held for an operator; the marketplace must call again.
    Held {
        /// The reason, in words that the marketplace's staff may read.
        reason: String,
    },
    /// The store could not store the callback; the marketplace must call again.
    Unavailable,
}

impl Outcome {
    /// Creates an [`Outcome::Applied`] with an empty answer.
    pub fn done(instance_id: Option<String>) -> Outcome {
        Outcome::Applied { instance_id, answer: Box::default() }
    }

    /// Returns true if this reports success to the marketplace.
    pub const fn is_success(&self) -> bool {
        matches!(self, Outcome::Applied { .. })
    }

    /// All words that [`Outcome::as_str`] can return.
    pub const WORDS: [&'static str; 5] = ["applied", "not-yet", "refused", "held", "unavailable"];

    /// Word for the outcome in logs and `--json`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Outcome::Applied { .. } => "applied",
            Outcome::NotYet => "not-yet",
            Outcome::Refused { .. } => "refused",
            Outcome::Held { .. } => "held",
            Outcome::Unavailable => "unavailable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_splits_and_joins_without_loss() {
        let mut answer = Answer { instance_id: Some("i-1".into()), ..Answer::default() };
        answer.app.insert("admin_url".into(), Field::Plain("https://a.example".into()));
        answer.app.insert("password".into(), Field::Secret(Secret::new("fake-password")));
        answer.info.insert("note".into(), Field::Plain("hello".into()));
        answer.redirect = Some(Secret::new("https://a.example/?ticket=fake"));
        let split = answer.split();
        assert!(!split.open.clone().unwrap().contains("fake-password"));
        assert_eq!(Answer::join(split.open.as_deref(), split.secret.as_ref()).unwrap(), answer);
        let without = Answer::join(split.open.as_deref(), None).unwrap();
        assert!(!without.app.contains_key("password"));
        assert_eq!(without.instance_id.as_deref(), Some("i-1"));
    }

    #[test]
    fn a_url_with_a_password_is_sealed() {
        let url = "https://root:fake@a.example/";
        let mut answer = Answer::default();
        answer.app.insert("admin_url".into(), Field::Plain(url.into()));
        answer.info.insert("shell".into(), Field::Plain(format!("ssh://fake@b.example, {url}")));
        let split = answer.split();
        assert_eq!(split.open, None);
        let told = Answer::join(None, split.secret.as_ref()).unwrap();
        assert_eq!(told.app["admin_url"].expose(), url);
    }

    #[test]
    fn an_empty_answer_stores_nothing() {
        assert_eq!(Answer::default().split(), SplitAnswer::default());
        assert_eq!(Answer::join(None, None).unwrap(), Answer::default());
    }

    #[test]
    fn every_action_has_its_word() {
        for action in Action::ALL {
            assert_eq!(Action::from_word(action.as_str()), Some(action));
        }
        assert_eq!(Action::from_word("nonsense"), None);
    }

    #[test]
    fn zero_and_empty_name_no_instance() {
        let subject = InstanceRef { instance_id: Some("0".into()), order_biz_id: Some(String::new()) };
        assert_eq!(subject.names().count(), 0);
    }
}

//! The words everything else speaks: what a marketplace asked, in no marketplace's dialect, and
//! what it may be told.
//!
//! A dialect turns a verified request into a [`Callback`] and an [`Outcome`] into a reply. Between
//! the two nobody knows which marketplace it was.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::signature::Secret;
use crate::hook::text::without_user_info;

/// What a callback asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Make an instance.
    Create,
    /// Extend an instance; thaws a frozen one.
    Renew,
    /// Take a renewal back: the only action that may lower the expiry.
    RefundRenew,
    /// Change the SKU or the billed quantities; the expiry stays.
    Upgrade,
    /// Freeze: the term ended or arrears stand. Data stays.
    Expire,
    /// Give the instance up for good.
    Release,
    /// A buyer's browser wants in.
    SignOn,
    /// An order was paid; a message, nothing is to be made.
    Payment,
    /// The marketplace asks what it was told before.
    Query,
    /// Anything else the dialect knows or does not know.
    Other,
}

impl Action {
    /// Every action.
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

    /// The word used in files, logs and `--json`.
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

    /// The action with this word.
    pub fn from_word(word: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.as_str() == word)
    }

    /// Whether the action moves an instance through its life, and so has a place in its lane.
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// The value of `name`, `None` when it was not sent. Sent but empty is `Some("")`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of `name`; not sent and sent empty are both `None`.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, String)> for Parameters {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Parameters {
        Parameters(pairs.into_iter().collect())
    }
}

/// The names a callback uses for its instance. Either may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRef {
    /// The id the hook (or the default) gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// The marketplace's own id of what was sold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_biz_id: Option<String>,
}

impl InstanceRef {
    /// The names that say something: not missing, not empty, not the `0` that means "not ready".
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [self.instance_id.as_deref(), self.order_biz_id.as_deref()]
            .into_iter()
            .flatten()
            .filter(|name| !name.is_empty() && *name != "0")
    }
}

/// An expiry as it was sent, and as we read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Expiry {
    /// The text as it was sent.
    pub raw: String,
    /// The instant, `None` when the text could not be read as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Why a verified callback must wait for an operator before anything is decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "doubt", rename_all = "kebab-case")]
pub enum Doubt {
    /// The value of this parameter holds an `&` behind which another parameter could have stood:
    /// the signature would be the same.
    AmbiguousValue {
        /// The parameter.
        name: String,
    },
    /// A date the action cannot do without is missing or unreadable.
    UnreadableDate {
        /// The parameter.
        name: String,
    },
    /// The dialect does not know the action.
    UnknownAction,
    /// A parameter the action cannot do without is missing.
    MissingParameter {
        /// The parameter.
        name: String,
    },
    /// A parameter has a value outside what the marketplace documents.
    UnknownValue {
        /// The parameter.
        name: String,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::AmbiguousValue { name } => write!(
                f,
                "the value of `{name}` holds an `&` behind which another signed parameter may be hidden"
            ),
            Doubt::UnreadableDate { name } => {
                write!(f, "`{name}` is missing or cannot be read as a date, and the action depends on it")
            }
            Doubt::UnknownAction => f.write_str("the action is not one this dialect knows"),
            Doubt::MissingParameter { name } => write!(f, "`{name}` is missing or empty"),
            Doubt::UnknownValue { name } => write!(f, "`{name}` has a value that is not documented"),
        }
    }
}

/// What makes a request one of its kind: a marketplace sends it anew with another one, so whoever sends
/// the same again sends a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    /// The mark, as it was sent.
    pub nonce: String,
    /// Until when a copy would still pass for dated now.
    pub until: Timestamp,
}

/// One verified request from a marketplace, in no marketplace's dialect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// The version of what is stored of it. A spid that reads a higher one than its own leaves the callback
    /// to the newer spid that wrote it.
    #[serde(default = "first_version", skip_serializing_if = "is_first_version")]
    pub version: u32,
    /// What it asks.
    pub action: Action,
    /// The action as the marketplace spells it.
    pub action_name: String,
    /// Which instance it is about.
    #[serde(default)]
    pub subject: InstanceRef,
    /// The marketplace's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<String>,
    /// The marketplace's id of this message, where it sends one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The buyer's account at the marketplace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buyer: Option<String>,
    /// The product sold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// The SKU sold or moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    /// Whether it is a trial; `None` when the marketplace did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<bool>,
    /// The new expiry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_on: Option<Expiry>,
    /// Whether the release follows a refund; `None` when the marketplace did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<bool>,
    /// The billed quantities beside the SKU: whatever the seller defined when publishing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub items: BTreeMap<String, String>,
    /// When the marketplace says it sent this, for requests that are dated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// The id by which this marketplace calls what a create makes, where it chooses that itself. An id of the
    /// hook's is then the seller's own business.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_id: Option<String>,
    /// Whether the marketplace only tries whether it would work: nothing may come of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test: bool,
    /// The dialect it was said in: with it the order can still be asked for when its endpoint is gone. `None`
    /// for what an older spid kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
    /// Whether the marketplace makes such instances itself: an unknown one is no mistake.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_elsewhere: bool,
    /// True if the request carries an id of the marketplace's own that is new for each happening, so that a
    /// repeat of it asks "has this order been carried out?". Without one, two happenings read alike, and a
    /// repeat can only ask "is it so?". The dialect decides; see [`Callback::ordering`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ordered: bool,
    /// Further actions that the same request asks, after [`action`](Callback::action): a renewal that also
    /// changes the product. Each has a job of its own; the request is answered once all of them are done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Action>,
    /// True for the part of a create that is a renewal: what it renews was a trial, or an earlier purchase, and is
    /// bought for good now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub converts: bool,
    /// What proves that it is no copy of an earlier request, for marketplaces that send such a thing.
    #[serde(skip)]
    pub once: Option<Once>,
    /// What is known of the order beside the parameters: what the marketplace said when it was asked, or what
    /// it had encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<Parameters>,
    /// What the request says as a structure, where its parameters hold lists in texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
    /// Every signed parameter.
    #[serde(default)]
    pub parameters: Parameters,
    /// Why it must wait for an operator; empty for almost every callback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<Doubt>,
    /// When most of what it said was forgotten; see [`Callback::forgotten`].
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
    /// The version of what is stored. Raised when an older spid would misunderstand what is new in it.
    pub const VERSION: u32 = 1;

    /// A callback that says nothing but its action; a dialect fills in the rest.
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
            public_id: None,
            test: false,
            dialect: None,
            made_elsewhere: false,
            ordered: false,
            also: Vec::new(),
            converts: false,
            once: None,
            learned: None,
            body: None,
            parameters: Parameters::default(),
            doubts: Vec::new(),
            pruned_at: None,
        }
    }

    /// Marks the callback as ordered if its action is one of `actions` and it names its order.
    ///
    /// `actions` are those for which this marketplace's order id is a new one each time. An expire that
    /// names the order of the purchase is not among them.
    #[must_use]
    pub fn ordering(self, actions: &[Action]) -> Callback {
        let is_named = self.order_id.as_deref().is_some_and(|order| !order.is_empty());
        Callback { ordered: is_named && actions.contains(&self.action), ..self }
    }

    /// Every action the request asks, in the order in which they are carried out.
    pub fn actions(&self) -> impl Iterator<Item = Action> {
        std::iter::once(self.action).chain(self.also.iter().copied())
    }

    /// The part of the request that `action` is about, as a callback of its own.
    ///
    /// A create whose part is a renewal is a trial that was bought for good.
    #[must_use]
    pub fn part(&self, action: Action) -> Callback {
        let mut part = Callback { action, also: Vec::new(), ..self.clone() };
        match action {
            Action::Upgrade if self.action != Action::Upgrade => part.expires_on = None,
            // The product it names is the one that the other part changes to.
            Action::Renew if !self.also.is_empty() => part.product = None,
            Action::Renew if self.action == Action::Create => {
                part.trial = Some(false);
                part.converts = true;
            }
            _ => {}
        }
        part
    }

    /// The whole request again, with what was learned of its `part`.
    #[must_use]
    pub fn with_part(self, part: &Callback) -> Callback {
        if self.action == part.action && self.also.is_empty() {
            return part.clone();
        }
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

    /// True if a hook would be told the same by both. The date and the nonce of a delivery, and what was
    /// learned since, are not what was asked.
    pub fn asks_the_same(&self, other: &Callback) -> bool {
        // What was learned stands in the neutral fields as well, so only what was said can be compared.
        if self.learned.is_some() || other.learned.is_some() {
            return (self.action, &self.also, &self.subject, &self.order_id, &self.parameters)
                == (other.action, &other.also, &other.subject, &other.order_id, &other.parameters);
        }
        let bare = |callback: &Callback| Callback {
            dialect: None,
            sent_at: None,
            once: None,
            learned: None,
            ordered: false,
            pruned_at: None,
            ..callback.clone()
        };
        bare(self) == bare(other)
    }

    /// What is left of it once it is old and done: which order it was, and what that set. Who bought, and
    /// everything the marketplace said beside, is gone.
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

/// One value of an [`Answer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// May be shown and stored as it is.
    Plain(String),
    /// Is shown to nobody but the marketplace, and sealed at rest.
    Secret(Secret),
}

impl Field {
    /// The text, secret or not: for the reply to the marketplace.
    pub fn expose(&self) -> &str {
        match self {
            Field::Plain(text) => text,
            Field::Secret(secret) => secret.expose(),
        }
    }
}

/// Named values of one section of an [`Answer`].
pub type Fields = BTreeMap<String, Field>;

/// What a hook produced, for the marketplace to show to the buyer.
///
/// Names are `snake_case`: `front_end_url`, `admin_url`, `username`, `password`, `auth_url`,
/// `license_id`, `license_valid_period`, `license_for_user_guide` in `app`; `name`, `ip`,
/// `inner_ip`, `username`, `password`, `cname`, `temp_domain`, `ftp_username`, `ftp_password`,
/// `region`, `beian_info`, `database_info` in `host`; anything in `info`. Each dialect spells them
/// its own way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The id the hook wants the instance to have.
    pub instance_id: Option<String>,
    /// Where the application is and how to get in.
    pub app: Fields,
    /// The machine, for products that sell one.
    pub host: Fields,
    /// Remarks for the buyer.
    pub info: Fields,
    /// Where a sign-on sends the browser. It lets the bearer in, so it is secret.
    pub redirect: Option<Secret>,
    /// The whole answer as JSON text, for actions that answer freely. It may hold credentials.
    pub body: Option<Secret>,
}

/// Keys of `app` and `host` that are secret whoever sets them.
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

/// An answer taken apart for storage: what may lie open, and what must be sealed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SplitAnswer {
    /// The plain fields as JSON; `None` when there are none.
    pub open: Option<String>,
    /// The secret fields as JSON; `None` when there are none.
    pub secret: Option<Secret>,
}

impl Answer {
    /// Takes the answer apart into what may lie open and what must be sealed.
    pub fn split(&self) -> SplitAnswer {
        let mut open = AnswerText { instance_id: self.instance_id.clone(), ..AnswerText::default() };
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

    /// Puts a stored answer together again. Without `secret` it is the answer less its secrets.
    ///
    /// # Errors
    /// When the stored text is not what [`Answer::split`] wrote.
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
            // A URL that holds a password is as secret as the password.
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

/// What is true of a callback when it must be answered. A dialect turns it into a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done: `instance_id` is the instance's own id where there is an instance.
    Applied {
        /// The id the marketplace knows the instance by from now on.
        instance_id: Option<String>,
        /// What the hook produced.
        answer: Box<Answer>,
    },
    /// The hook has not finished; the marketplace is to call again.
    NotYet,
    /// It will not be done as things stand: the hook refused it, or the lifecycle forbids it.
    Refused {
        /// Why: the stable word, as in [`crate::instance::Reason::code`].
        code: &'static str,
        /// Why, in words the marketplace's staff may read.
        reason: String,
    },
    /// It waits for an operator; the marketplace is to call again.
    Held {
        /// Why, in words the marketplace's staff may read.
        reason: String,
    },
    /// The store could not take it; the marketplace is to call again.
    Unavailable,
}

impl Outcome {
    /// Done, with nothing to show.
    pub fn done(instance_id: Option<String>) -> Outcome {
        Outcome::Applied { instance_id, answer: Box::default() }
    }

    /// Whether this tells the marketplace that what it asked has been done.
    pub const fn is_success(&self) -> bool {
        matches!(self, Outcome::Applied { .. })
    }

    /// Every word that [`Outcome::as_str`] may be.
    pub const WORDS: [&'static str; 5] = ["applied", "not-yet", "refused", "held", "unavailable"];

    /// The word used in logs and `--json`.
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

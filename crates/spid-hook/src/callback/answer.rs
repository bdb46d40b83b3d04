//! The answer of a hook, with its secret values.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Secret;
use crate::text::without_user_info;

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

#[derive(Default, PartialEq, Serialize, Deserialize)]
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
    if *text == AnswerText::default() { None } else { serde_json::to_string(text).ok() }
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
}

//! Credentials of Alibaba Cloud in the forms in which the vendor's own tools keep them.
//!
//! The order in which sources are tried, the names of variables and the members of files are those of the vendor's
//! library `alibabacloud-credentials` 1.0. Reading a file or asking a service is left to the caller.

use jiff::Timestamp;
use spid_hook::Secret;
use spid_hook::json::Json;

use crate::signature::{ApiKey, BadKey};

/// Path of the file of the vendor's command line, below the home folder.
pub const CLI_FILE: &str = ".aliyun/config.json";
/// Paths of the file of credentials, below the home folder. Some pages name it without its suffix.
pub const CREDENTIALS_FILES: [&str; 2] = [".alibabacloud/credentials.ini", ".alibabacloud/credentials"];
/// Host of the metadata service of a virtual machine. It is plain HTTP and answers only there.
pub const METADATA_HOST: &str = "100.100.100.200";
/// Time in milliseconds before the end of a temporary key at which a new one is fetched.
pub const STALE_BEFORE_END_MS: i64 = 15 * 60 * 1000;

/// A way to get a key.
#[derive(Debug, Clone)]
pub enum Source {
    /// The key itself.
    Key(ApiKey),
    /// The role of the virtual machine, by the metadata service. `None`: the service names the role.
    EcsRole {
        /// Name of the role.
        role: Option<String>,
    },
    /// A role that the key may assume.
    AssumeRole {
        /// The key.
        key: ApiKey,
        /// The role.
        role: Role,
    },
    /// A role that a signed token in a file may assume, as on Kubernetes.
    Oidc {
        /// The identity provider, as a resource name.
        provider: String,
        /// File with the token. It changes, so it is read each time.
        token_file: String,
        /// The role.
        role: Role,
    },
}

/// A role and the name of the session in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Resource name of the role.
    pub arn: String,
    /// Name of the session, which the vendor's audit log shows.
    pub session: String,
}

/// A key that ends.
#[derive(Debug, Clone)]
pub struct TemporaryKey {
    /// The key with its session token.
    pub key: ApiKey,
    /// Its end.
    pub ends_at: Timestamp,
}

impl TemporaryKey {
    /// Returns true if a new key must be fetched before the next request.
    pub fn is_stale(&self, now: Timestamp) -> bool {
        self.ends_at.as_millisecond() - now.as_millisecond() <= STALE_BEFORE_END_MS
    }
}

/// Fault of a source. It never shows a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Something is missing.
    #[error("{place} has no `{member}`")]
    Missing {
        /// Place that was read.
        place: String,
        /// Name of the missing member.
        member: &'static str,
    },
    /// The text has another form.
    #[error("{place} is not readable as {form}")]
    Form {
        /// Place that was read.
        place: String,
        /// Expected form.
        form: &'static str,
    },
    /// A kind of credentials that spid cannot use.
    #[error("{place} has credentials of the kind `{kind}`, which spid does not use; use {usable}")]
    Kind {
        /// Place that was read.
        place: String,
        /// The kind.
        kind: String,
        /// Kinds that can be used there.
        usable: &'static str,
    },
    /// The key has an empty or unclean part.
    #[error("{place}: the access key cannot be used: {fault}")]
    Key {
        /// Place that was read.
        place: String,
        /// The fault.
        fault: BadKey,
    },
    /// The service refused to give a key.
    #[error("{place} gave no key: {code}")]
    Refused {
        /// The service.
        place: String,
        /// Its code.
        code: String,
    },
}

/// Values of one place, with its name for messages.
struct Values<'v> {
    place: String,
    get: &'v dyn Fn(&str) -> Option<String>,
}

impl Values<'_> {
    fn optional(&self, name: &str) -> Option<String> {
        (self.get)(name).filter(|value| !value.trim().is_empty())
    }

    fn required(&self, name: &'static str) -> Result<String, CredentialError> {
        self.optional(name)
            .ok_or_else(|| CredentialError::Missing { place: self.place.clone(), member: name })
    }

    fn key(
        &self,
        [id, secret, token]: [&'static str; 3],
        provider: &'static str,
    ) -> Result<ApiKey, CredentialError> {
        let token = if token.is_empty() { None } else { self.optional(token).map(Secret::new) };
        let key = ApiKey::new(self.required(id)?, Secret::new(self.required(secret)?), token);
        let key = key.map_err(|fault| CredentialError::Key { place: self.place.clone(), fault })?;
        Ok(key.from_provider(provider))
    }

    fn role(&self, arn: &'static str, session: &str) -> Result<Role, CredentialError> {
        let session = self.optional(session).unwrap_or_else(|| "spid".to_owned());
        Ok(Role { arn: self.required(arn)?, session })
    }

    fn kind(&self, kind: String, usable: &'static str) -> CredentialError {
        CredentialError::Kind { place: self.place.clone(), kind, usable }
    }
}

/// Reads the variables of the first two places of the chain: a key, or a token of Kubernetes.
///
/// # Errors
/// Fails if an id stands without a secret, or a key is unclean. `None`: no variable is set.
///
/// ```
/// use spid_core::market_api::credentials::{Source, from_environment};
/// let variables = |name: &str| match name {
///     "ALIBABA_CLOUD_ACCESS_KEY_ID" => Some("FAKEID".to_owned()),
///     "ALIBABA_CLOUD_ACCESS_KEY_SECRET" => Some("fake-secret".to_owned()),
///     _ => None,
/// };
/// assert!(matches!(from_environment(&variables)?, Some(Source::Key(key)) if key.id() == "FAKEID"));
/// # Ok::<(), spid_core::market_api::credentials::CredentialError>(())
/// ```
pub fn from_environment(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Source>, CredentialError> {
    const ID: &str = "ALIBABA_CLOUD_ACCESS_KEY_ID";
    const SECRET: &str = "ALIBABA_CLOUD_ACCESS_KEY_SECRET";
    const OIDC: [&str; 3] =
        ["ALIBABA_CLOUD_ROLE_ARN", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "ALIBABA_CLOUD_OIDC_TOKEN_FILE"];
    let values = Values { place: "the environment".to_owned(), get };
    if values.optional(ID).is_some() || values.optional(SECRET).is_some() {
        let key = values.key([ID, SECRET, "ALIBABA_CLOUD_SECURITY_TOKEN"], "default/env")?;
        return Ok(Some(Source::Key(key)));
    }
    // Like the vendor's library: all three, or the next place is tried.
    let [arn, provider, token_file] = OIDC;
    let (Some(provider), Some(token_file)) = (values.optional(provider), values.optional(token_file)) else {
        return Ok(None);
    };
    if values.optional(arn).is_none() {
        return Ok(None);
    }
    let role = values.role(arn, "ALIBABA_CLOUD_ROLE_SESSION_NAME")?;
    Ok(Some(Source::Oidc { provider, token_file, role }))
}

/// Reads a profile of the vendor's command line (`~/.aliyun/config.json`). `None`: the profile the file calls current.
///
/// # Errors
/// Fails if the text is not JSON, the profile is missing or incomplete, or its mode cannot be used.
pub fn from_cli_file(text: &str, profile: Option<&str>) -> Result<Source, CredentialError> {
    const USABLE: &str = "AK, StsToken, RamRoleArn, EcsRamRole or OIDC";
    let place = format!("~/{CLI_FILE}");
    let file = Json::read(text.as_bytes())
        .map_err(|_| CredentialError::Form { place: place.clone(), form: "JSON" })?;
    let current = file.get("current").and_then(Json::as_text);
    let wanted = profile.or(current).unwrap_or("default");
    let found = match file.get("profiles") {
        Some(Json::List(list)) => {
            list.iter().find(|entry| entry.get("name").and_then(Json::as_text) == Some(wanted))
        }
        _ => None,
    };
    let Some(found) = found else {
        let place = format!("{place}, profile `{wanted}`");
        return Err(CredentialError::Missing { place, member: "profiles" });
    };
    let get = |name: &str| found.get(name).and_then(Json::to_text);
    let values = Values { place: format!("{place}, profile `{wanted}`"), get: &get };
    const KEY: [&str; 3] = ["access_key_id", "access_key_secret", ""];
    const STS: [&str; 3] = ["access_key_id", "access_key_secret", "sts_token"];
    let mode = values.optional("mode").unwrap_or_else(|| "AK".to_owned());
    match mode.as_str() {
        "AK" => Ok(Source::Key(values.key(KEY, "default/cli_profile")?)),
        "StsToken" => {
            values.required("sts_token")?;
            Ok(Source::Key(values.key(STS, "default/cli_profile")?))
        }
        "RamRoleArn" => Ok(Source::AssumeRole {
            key: values.key(STS, "default/cli_profile")?,
            role: values.role("ram_role_arn", "ram_session_name")?,
        }),
        "EcsRamRole" => Ok(Source::EcsRole { role: values.optional("ram_role_name") }),
        "OIDC" => Ok(Source::Oidc {
            provider: values.required("oidc_provider_arn")?,
            token_file: values.required("oidc_token_file")?,
            role: values.role("ram_role_arn", "ram_session_name")?,
        }),
        _ => Err(values.kind(mode, USABLE)),
    }
}

/// Reads a section of a file of credentials, in the INI form. `None`: the section `default`.
///
/// # Errors
/// Fails if a line is neither a section, a comment nor a value; if the section is missing or incomplete; or if its type
/// cannot be used.
pub fn from_credentials_file(text: &str, section: Option<&str>) -> Result<Source, CredentialError> {
    const USABLE: &str = "access_key, ram_role_arn, ecs_ram_role or oidc_role_arn";
    const KEY: [&str; 3] = ["access_key_id", "access_key_secret", ""];
    let wanted = section.unwrap_or("default");
    let place = format!("the credentials file, section [{wanted}]");
    let members = ini_section(text, wanted)
        .ok_or(CredentialError::Form { place: place.clone(), form: "sections of `name = value`" })?;
    if members.is_empty() {
        return Err(CredentialError::Missing { place, member: "type" });
    }
    let get = |name: &str| {
        let found = members.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    };
    let values = Values { place, get: &get };
    let kind = values.required("type")?;
    match kind.as_str() {
        "access_key" => Ok(Source::Key(values.key(KEY, "default/profile")?)),
        "ram_role_arn" => Ok(Source::AssumeRole {
            key: values.key(KEY, "default/profile")?,
            role: values.role("role_arn", "role_session_name")?,
        }),
        "ecs_ram_role" => Ok(Source::EcsRole { role: values.optional("role_name") }),
        "oidc_role_arn" => Ok(Source::Oidc {
            provider: values.required("oidc_provider_arn")?,
            token_file: values.required("oidc_token_file_path")?,
            role: values.role("role_arn", "role_session_name")?,
        }),
        _ => Err(values.kind(kind, USABLE)),
    }
}

/// Returns the members of one section; empty if there is none. `None`: the text has another form.
fn ini_section(text: &str, wanted: &str) -> Option<Vec<(String, String)>> {
    let mut members = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with(';') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            inside = name.strip_suffix(']')?.trim() == wanted;
            continue;
        }
        let (name, value) = line.split_once('=')?;
        // A comment may follow a value, after a space.
        let value = value.split_once(" #").map_or(value, |(value, _)| value).trim();
        if inside {
            members.push((name.trim().to_owned(), value.to_owned()));
        }
    }
    Some(members)
}

/// Reads a temporary key: from the metadata service, from the token service, or from a service of the seller's own.
///
/// # Errors
/// Fails if the service refused, or if a member of the answer is missing.
pub fn read_temporary_key(
    body: &[u8],
    place: &str,
    provider: &'static str,
) -> Result<TemporaryKey, CredentialError> {
    let form = || CredentialError::Form { place: place.to_owned(), form: "JSON" };
    let answer = Json::read(body).map_err(|_| form())?;
    // The token service answers in a member of its own, the metadata service directly.
    let object = answer.get("Credentials").unwrap_or(&answer);
    if let Some(code) = object.get("Code").and_then(Json::as_text).filter(|code| *code != "Success") {
        let code: String = code.chars().take(80).collect();
        return Err(CredentialError::Refused { place: place.to_owned(), code });
    }
    let get = |name: &str| object.get(name).and_then(Json::to_text);
    let values = Values { place: place.to_owned(), get: &get };
    values.required("SecurityToken")?;
    let key = values.key(["AccessKeyId", "AccessKeySecret", "SecurityToken"], provider)?;
    let ends_at = values.required("Expiration")?.parse();
    let ends_at = ends_at
        .map_err(|_| CredentialError::Form { place: place.to_owned(), form: "a time in `Expiration`" })?;
    Ok(TemporaryKey { key, ends_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(set: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    fn key_of(source: Source) -> ApiKey {
        match source {
            Source::Key(key) => key,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn variables_are_a_key_or_a_token_or_nothing() {
        let read = |set| from_environment(&variables(set));
        assert!(read(&[]).unwrap().is_none());
        let half = read(&[("ALIBABA_CLOUD_ACCESS_KEY_ID", "FAKEID")]).unwrap_err().to_string();
        assert_eq!(half, "the environment has no `ALIBABA_CLOUD_ACCESS_KEY_SECRET`");
        let oidc = read(&[
            ("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/r"),
            ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "acs:ram::1:oidc-provider/p"),
            ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", "/var/run/token"),
        ]);
        let Some(Source::Oidc { role, token_file, .. }) = oidc.unwrap() else { panic!() };
        assert_eq!((role.session.as_str(), token_file.as_str()), ("spid", "/var/run/token"));
        assert!(read(&[("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/r")]).unwrap().is_none());
    }

    #[test]
    fn a_profile_of_the_command_line_is_read_by_its_mode() {
        let file = r#"{"current": "prod", "profiles": [
            {"name": "default", "mode": "AK", "access_key_id": "FAKEID1", "access_key_secret": "fake-1"},
            {"name": "prod", "mode": "StsToken", "access_key_id": "FAKEID2", "access_key_secret": "fake-2", "sts_token": "fake-t"},
            {"name": "role", "mode": "RamRoleArn", "access_key_id": "FAKEID3", "access_key_secret": "fake-3", "ram_role_arn": "acs:ram::1:role/r", "ram_session_name": "s"},
            {"name": "machine", "mode": "EcsRamRole"},
            {"name": "sso", "mode": "CloudSSO"},
            {"name": "empty", "mode": "AK", "access_key_id": "FAKEID4", "access_key_secret": ""}]}"#;
        assert_eq!(key_of(from_cli_file(file, None).unwrap()).id(), "FAKEID2");
        assert_eq!(key_of(from_cli_file(file, Some("default")).unwrap()).id(), "FAKEID1");
        let Source::AssumeRole { key, role } = from_cli_file(file, Some("role")).unwrap() else { panic!() };
        assert_eq!((key.id(), role.session.as_str()), ("FAKEID3", "s"));
        assert!(matches!(from_cli_file(file, Some("machine")).unwrap(), Source::EcsRole { role: None }));
        let said = |profile| from_cli_file(file, Some(profile)).unwrap_err().to_string();
        assert!(
            said("sso").contains("`CloudSSO`") && said("sso").contains("profile `sso`"),
            "{}",
            said("sso")
        );
        assert!(said("absent").contains("profile `absent`"), "{}", said("absent"));
        assert!(said("empty").ends_with("has no `access_key_secret`"), "{}", said("empty"));
        assert!(from_cli_file("[", None).unwrap_err().to_string().ends_with("as JSON"));
    }

    #[test]
    fn a_section_of_a_credentials_file_is_read_by_its_type() {
        let file = "\u{feff}# fake keys\n[default]\ntype = access_key  # a comment\naccess_key_id = FAKEID\naccess_key_secret = fake-secret\n\n[role]\ntype=ram_role_arn\naccess_key_id=FAKEID\naccess_key_secret=fake-secret\nrole_arn=acs:ram::1:role/r\n[machine]\ntype = ecs_ram_role\nrole_name = R\n[pair]\ntype = rsa_key_pair\n";
        assert_eq!(key_of(from_credentials_file(file, None).unwrap()).id(), "FAKEID");
        assert!(matches!(from_credentials_file(file, Some("role")).unwrap(), Source::AssumeRole { .. }));
        let machine = from_credentials_file(file, Some("machine")).unwrap();
        assert!(matches!(machine, Source::EcsRole { role: Some(role) } if role == "R"));
        let pair = from_credentials_file(file, Some("pair")).unwrap_err().to_string();
        assert!(pair.contains("`rsa_key_pair`"), "{pair}");
        assert!(from_credentials_file(file, Some("absent")).is_err());
        assert!(from_credentials_file("[default\n", None).is_err());
        assert!(from_credentials_file("a line", None).is_err());
    }

    #[test]
    fn a_temporary_key_is_read_and_ends_early() {
        let metadata = br#"{"Code":"Success","AccessKeyId":"STS.FAKE","AccessKeySecret":"fake-secret","SecurityToken":"fake-token","Expiration":"2026-01-01T06:00:00Z"}"#;
        let service = br#"{"RequestId":"R","Credentials":{"AccessKeyId":"STS.FAKE","AccessKeySecret":"fake-secret","SecurityToken":"fake-token","Expiration":"2026-01-01T06:00:00Z"}}"#;
        for body in [metadata.as_slice(), service] {
            let temporary = read_temporary_key(body, "the service", "default/ecs_ram_role").unwrap();
            assert_eq!(temporary.key.id(), "STS.FAKE");
            assert!(!temporary.is_stale("2026-01-01T05:44:59Z".parse().unwrap()));
            assert!(temporary.is_stale("2026-01-01T05:45:00Z".parse().unwrap()));
            assert!(temporary.is_stale("2026-01-02T00:00:00Z".parse().unwrap()));
            assert!(!format!("{temporary:?}").contains("fake-"));
        }
        let fault = |body: &[u8]| read_temporary_key(body, "the service", "x").unwrap_err().to_string();
        assert_eq!(fault(br#"{"Code":"NoRole"}"#), "the service gave no key: NoRole");
        assert_eq!(
            fault(br#"{"AccessKeyId":"STS.FAKE","AccessKeySecret":"fake-secret"}"#),
            "the service has no `SecurityToken`"
        );
        assert_eq!(fault(b"<html>"), "the service is not readable as JSON");
    }

    #[test]
    fn no_fault_shows_a_secret() {
        let unclean = r#"{"profiles":[{"name":"default","mode":"AK","access_key_id":"FAKEID","access_key_secret":"fake secret\u200b"}]}"#;
        let said = from_cli_file(unclean, None).unwrap_err();
        assert!(
            !said.to_string().contains("fake secret") && !format!("{said:?}").contains("fake secret"),
            "{said:?}"
        );
    }
}

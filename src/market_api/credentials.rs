//! Access keys for requests to Alibaba Cloud: given, found as the vendor's own tools find them, or temporary.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spid_core::market_api::credentials::{
    self as vendor, CREDENTIALS_FILES, CredentialError, METADATA_HOST, Role, Source, TemporaryKey,
};
use spid_core::query::{self, Pair};
use spid_core::signature::{ApiKey, ApiRequest};
use spid_hook::time::Clock;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::client::{USER_AGENT, date, nonce, to_request};
use crate::net::{
    Client, ClientError, ClientOptions, ClientRequest, ClientResponse, Method, OutboundPolicy, Tls, Url,
};
use crate::observe::{files, limits};

/// Version of the API of the token service.
const TOKEN_SERVICE_VERSION: &str = "2015-04-01";

/// Reader of a variable of the environment.
pub type Variables = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Places where the vendor's default chain looks.
#[derive(Clone)]
pub struct DefaultChain {
    /// The environment.
    pub variables: Variables,
    /// Home folder of the user.
    pub home: Option<PathBuf>,
    /// Address of the metadata service, if it is not the vendor's.
    pub metadata: Option<Url>,
    /// Address of the token service, if it is not the vendor's.
    pub token_service: Option<Url>,
}

/// Reason why there is no access key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// A place has something that cannot be used.
    #[error("{0}")]
    Unusable(#[from] CredentialError),
    /// A file cannot be read.
    #[error("{path} cannot be read: {fault}")]
    File {
        /// Path of the file.
        path: String,
        /// The fault.
        fault: String,
    },
    /// A service that gives keys does not answer.
    #[error("{service} gave no access key: {fault}")]
    Service {
        /// The service.
        service: &'static str,
        /// The fault.
        fault: String,
    },
    /// No place of the default chain has credentials.
    #[error(
        "no credentials: neither in ALIBABA_CLOUD_ACCESS_KEY_ID, nor by OIDC, nor in ~/.aliyun/config.json, nor in ~/.alibabacloud/credentials.ini, nor from the metadata service ({metadata})"
    )]
    Nowhere {
        /// Answer of the last place.
        metadata: String,
    },
}

impl NoKey {
    /// Returns true if a later attempt may succeed without a change by a person.
    pub fn is_temporary(&self) -> bool {
        matches!(self, NoKey::Service { .. } | NoKey::Nowhere { .. })
    }
}

/// Credentials of one or several groups of operations. Clones share a temporary key.
#[derive(Clone)]
pub struct Credentials(Arc<Shared>);

struct Shared {
    given: Given,
    clock: Clock,
    tls: Option<Tls>,
    found: Mutex<Found>,
}

enum Given {
    Key(ApiKey),
    Chain(Box<DefaultChain>),
}

#[derive(Default)]
struct Found {
    source: Option<Source>,
    key: Option<TemporaryKey>,
    /// Earliest time of the next renewal after one that failed, so that a service that hangs does not slow each call.
    renew_at: Option<Timestamp>,
    /// The last failure without a key to use, and its time.
    failed: Option<(Instant, NoKey)>,
}

impl Credentials {
    /// Uses this key.
    pub fn key(key: ApiKey) -> Credentials {
        Credentials::new(Given::Key(key), Clock::System, None)
    }

    /// Looks in the places of the vendor's default chain. The first that has something is used from then on.
    pub fn default_chain(chain: DefaultChain, clock: Clock, tls: Option<Tls>) -> Credentials {
        Credentials::new(Given::Chain(Box::new(chain)), clock, tls)
    }

    fn new(given: Given, clock: Clock, tls: Option<Tls>) -> Credentials {
        Credentials(Arc::new(Shared { given, clock, tls, found: Mutex::default() }))
    }

    /// Returns a key for the next request. A temporary key is renewed before its end.
    ///
    /// # Errors
    /// Fails if there is no key. A temporary key that cannot be renewed is used until its end.
    pub async fn current(&self) -> Result<ApiKey, NoKey> {
        let chain = match &self.0.given {
            Given::Key(key) => return Ok(key.clone()),
            Given::Chain(chain) => chain,
        };
        // One request at a time: others wait here for the key that it fetches.
        let asked_at = Instant::now();
        let mut found = self.0.found.lock().await;
        // They share its failure, too: a service that hangs must not make them wait one after another.
        if let Some((_, fault)) = found.failed.as_ref().filter(|(at, _)| *at >= asked_at) {
            return Err(fault.clone());
        }
        let now = self.0.clock.now();
        let waits = found.renew_at.is_some_and(|at| now < at);
        if let Some(kept) = found.key.as_ref()
            && (!kept.is_stale(now) || (waits && kept.ends_at > now))
        {
            return Ok(kept.key.clone());
        }
        let source = match &found.source {
            Some(source) => source.clone(),
            None => self.find(chain)?,
        };
        let fetched = match &source {
            Source::Key(key) => return Ok(key.clone()),
            Source::EcsRole { role } => self.machine_role(chain, role.as_deref()).await,
            Source::AssumeRole { key, role } => self.assumed_role(chain, key, role).await,
            Source::Oidc { provider, token_file, role } => {
                self.token_role(chain, provider, token_file, role).await
            }
        };
        match fetched {
            Ok(key) => {
                found.source = Some(source);
                found.renew_at = None;
                Ok(found.key.insert(key).key.clone())
            }
            Err(fault) => match found.key.as_ref().filter(|kept| kept.ends_at > now) {
                Some(kept) => {
                    tracing::warn!(%fault, ends_at = %kept.ends_at, "a temporary access key could not be renewed; the old one is used until its end");
                    let key = kept.key.clone();
                    found.renew_at = Some(now + Duration::from_millis(limits::KEY_RENEWAL_PAUSE_MS));
                    Ok(key)
                }
                None => {
                    found.failed = Some((Instant::now(), fault.clone()));
                    Err(fault)
                }
            },
        }
    }

    /// Returns the first source of the chain. The metadata service is the last, so it is returned without a question.
    fn find(&self, chain: &DefaultChain) -> Result<Source, NoKey> {
        let variable = |name: &str| (chain.variables)(name).filter(|value| !value.is_empty());
        if let Some(source) = vendor::from_environment(&*chain.variables)? {
            return Ok(source);
        }
        let profile = variable("ALIBABA_CLOUD_PROFILE");
        let is_off = is_set(chain, "ALIBABA_CLOUD_CLI_PROFILE_DISABLED");
        if let Some(home) = chain.home.as_ref().filter(|_| !is_off)
            && let Some(text) = read_if_present(&home.join(vendor::CLI_FILE))?
        {
            return Ok(vendor::from_cli_file(&text, profile.as_deref())?);
        }
        let mut places: Vec<PathBuf> = Vec::new();
        match variable("ALIBABA_CLOUD_CREDENTIALS_FILE") {
            Some(path) => places.push(PathBuf::from(path)),
            None => places
                .extend(chain.home.iter().flat_map(|home| CREDENTIALS_FILES.map(|file| home.join(file)))),
        }
        for place in places {
            if let Some(text) = read_if_present(&place)? {
                return Ok(vendor::from_credentials_file(&text, profile.as_deref())?);
            }
        }
        if is_set(chain, "ALIBABA_CLOUD_ECS_METADATA_DISABLED") {
            return Err(NoKey::Nowhere { metadata: "switched off".to_owned() });
        }
        Ok(Source::EcsRole { role: variable("ALIBABA_CLOUD_ECS_METADATA") })
    }

    /// Gets the key of the machine's role.
    ///
    /// The service gives a session token first, so that a proxy that is tricked into a plain GET gets nothing. A service
    /// that is too old for that is asked without, unless the operator forbids it.
    async fn machine_role(&self, chain: &DefaultChain, role: Option<&str>) -> Result<TemporaryKey, NoKey> {
        const TOKEN: &str = "/latest/api/token";
        const ROLES: &str = "/latest/meta-data/ram/security-credentials/";
        let base = match &chain.metadata {
            Some(url) => url.clone(),
            None => format!("http://{METADATA_HOST}/").parse().map_err(|_| metadata_fault("no address"))?,
        };
        // The only place that asks a metadata service: these credentials are meant for this program.
        let client = self.client(limits::METADATA_MS, OutboundPolicy::Anywhere);
        let mut request = metadata_request(&base, TOKEN, None)?;
        request.method = Method::Other("PUT".to_owned());
        let request = request.with_header("x-aliyun-ecs-metadata-token-ttl-seconds", "21600");
        let session = match text_of(client.send(request).await) {
            Ok(session) => Some(session.trim().to_owned()),
            Err(fault) if is_set(chain, "ALIBABA_CLOUD_IMDSV1_DISABLED") => {
                return Err(NoKey::Nowhere { metadata: fault });
            }
            Err(_) => None,
        };
        let role = match role {
            Some(role) => role.to_owned(),
            None => {
                let request = metadata_request(&base, ROLES, session.as_deref())?;
                let named = text_of(client.send(request).await);
                named.map_err(|metadata| NoKey::Nowhere { metadata })?.trim().to_owned()
            }
        };
        let path = format!("{ROLES}{}", query::encode_text(&role));
        let request = metadata_request(&base, &path, session.as_deref())?;
        let body = text_of(client.send(request).await).map_err(|fault| metadata_fault(&fault))?;
        Ok(vendor::read_temporary_key(body.as_bytes(), METADATA_SERVICE, "default/ecs_ram_role")?)
    }

    /// Exchanges a key for the temporary key of a role.
    async fn assumed_role(
        &self,
        chain: &DefaultChain,
        key: &ApiKey,
        role: &Role,
    ) -> Result<TemporaryKey, NoKey> {
        let url = token_service(chain)?;
        let parameters = role_parameters(role);
        let signed = ApiRequest {
            method: "POST",
            host: &url.authority(),
            path: "/",
            action: "AssumeRole",
            version: TOKEN_SERVICE_VERSION,
            query: &parameters,
            form: &[],
            user_agent: USER_AGENT,
            date: &date(self.0.clock.now()),
            nonce: &nonce(),
        }
        .sign(key);
        let request = to_request(&url, "POST", signed).map_err(token_fault)?;
        let body = self.ask_token_service(request).await?;
        Ok(vendor::read_temporary_key(&body, TOKEN_SERVICE, "default/ram_role_arn")?)
    }

    /// Exchanges a signed token for the temporary key of a role. The token is the proof, so nothing is signed.
    async fn token_role(
        &self,
        chain: &DefaultChain,
        provider: &str,
        token_file: &str,
        role: &Role,
    ) -> Result<TemporaryKey, NoKey> {
        let url = token_service(chain)?;
        let token = read_required(token_file)?;
        let mut query = role_parameters(role);
        for (name, value) in [
            ("Action", "AssumeRoleWithOIDC"),
            ("Format", "JSON"),
            ("Version", TOKEN_SERVICE_VERSION),
            ("Timestamp", &date(self.0.clock.now())),
            ("SignatureNonce", &nonce()),
        ] {
            query.push((name.to_owned(), value.to_owned()));
        }
        // In the body and not in the query, because queries end up in logs of proxies.
        let form: [Pair; 2] = [
            ("OIDCProviderArn".to_owned(), provider.to_owned()),
            ("OIDCToken".to_owned(), token.trim().to_owned()),
        ];
        let target = format!("/?{}", query::encode_sorted(&query));
        let url = url.with_target(&target).map_err(|error| token_fault(error.to_string()))?;
        let body = query::encode_sorted(&form);
        let request = ClientRequest::post(url, "application/x-www-form-urlencoded", body)
            .with_header("accept", "application/json");
        let body = self.ask_token_service(request).await?;
        Ok(vendor::read_temporary_key(&body, TOKEN_SERVICE, "default/oidc_role_arn")?)
    }

    async fn ask_token_service(&self, request: ClientRequest) -> Result<Vec<u8>, NoKey> {
        let client = self.client(limits::MARKET_CALL_MS, OutboundPolicy::Confidential);
        let answer = client.send(request).await.map_err(|error| token_fault(error.to_string()))?;
        match spid_core::market_api::read_answer(answer.status, None, &answer.body) {
            Ok(_) => Ok(answer.body.to_vec()),
            Err(error) => Err(token_fault(error.to_string())),
        }
    }

    fn client(&self, total_ms: u64, outbound: OutboundPolicy) -> Client {
        Client::new(ClientOptions {
            total: Duration::from_millis(total_ms),
            outbound,
            tls: self.0.tls.clone(),
            ..ClientOptions::default()
        })
    }
}

const METADATA_SERVICE: &str = "the metadata service";
const TOKEN_SERVICE: &str = "the token service";

/// Returns true if a switch of the vendor's is on.
fn is_set(chain: &DefaultChain, name: &str) -> bool {
    (chain.variables)(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

fn metadata_fault(fault: &str) -> NoKey {
    NoKey::Service { service: METADATA_SERVICE, fault: fault.to_owned() }
}

fn metadata_request(base: &Url, path: &str, session: Option<&str>) -> Result<ClientRequest, NoKey> {
    let url = base.with_target(path).map_err(|error| metadata_fault(&error.to_string()))?;
    let request = ClientRequest::get(url);
    Ok(match session {
        Some(session) => request.with_header("x-aliyun-ecs-metadata-token", session),
        None => request,
    })
}

fn token_fault(fault: String) -> NoKey {
    NoKey::Service { service: TOKEN_SERVICE, fault }
}

fn token_service(chain: &DefaultChain) -> Result<Url, NoKey> {
    if let Some(url) = &chain.token_service {
        return Ok(url.clone());
    }
    let region = (chain.variables)("ALIBABA_CLOUD_STS_REGION").filter(|region| !region.is_empty());
    let host = match region {
        Some(region) => format!("sts.{region}.aliyuncs.com"),
        None => "sts.aliyuncs.com".to_owned(),
    };
    format!("https://{host}/").parse().map_err(|_| token_fault(format!("`{host}` is no host")))
}

fn role_parameters(role: &Role) -> Vec<Pair> {
    [("DurationSeconds", "3600"), ("RoleArn", &role.arn), ("RoleSessionName", &role.session)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

fn text_of(answer: Result<ClientResponse, ClientError>) -> Result<String, String> {
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.status != 200 {
        return Err(format!("HTTP status {}", answer.status));
    }
    String::from_utf8(answer.body.to_vec()).map_err(|_| "the answer is not text".to_owned())
}

fn read_if_present(path: &std::path::Path) -> Result<Option<String>, NoKey> {
    match files::read_text(path, limits::CREDENTIALS_FILE_MAX_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NoKey::File { path: path.display().to_string(), fault: error.to_string() }),
    }
}

fn read_required(path: &str) -> Result<String, NoKey> {
    match read_if_present(std::path::Path::new(path))? {
        Some(text) => Ok(text),
        None => Err(NoKey::File { path: path.to_owned(), fault: "there is no such file".to_owned() }),
    }
}

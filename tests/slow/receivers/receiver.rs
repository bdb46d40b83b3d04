//! A simple receiver as a seller would write it: correct except for one given fault. It does not use spid's own
//! parsing or signing, so that an error of ours cannot cancel itself out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that panics has said what it found"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use md5::{Digest, Md5};
use serde_json::json;
use spid::internals::net::{Request, Response, ServerOptions, serve};
use tokio::net::TcpListener;
use tokio::sync::Notify;

pub(crate) const KEY: &str = "fake-key-of-a-seller";

/// Fault of a receiver. Most were seen in public code or in complaints of sellers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    SortsByValue,
    DoesNotSort,
    SortsWithoutCase,
    SignsEncoded,
    AppendsBareKey,
    WantsCapitals,
    DropsEmpty,
    SignsKnownNamesOnly,
    KeepsPlus,
    KeepsPercent20,
    TrustsLongTerms,
    ReadsLatin1,
    SplitsAmpersands,
    ChecksNothing,
    ForgivesMissing,
    ForgivesEmpty,
    ComparesHead,
    ComparesPrefix,
    IgnoresTail,
    RefusesWith200,
    FallsOverCapitals,
    TakesLast,
    TakesFirst,
    TakesUnsigned,
    TrustsHidden,
    FallsOverBroken,
    GetOnly,
    NewIdPerRetry,
    RacesOnCreate,
    OneIdForAll,
    OwnIds,
    NumberIds,
    NoTrials,
    NoItems,
    NoApp,
    SuccessAsText,
    TextHtml,
    Slow,
    NoSignOn,
    ForgedSignOn,
    StaleSignOn,
    SignOnTwice,
    RenewsNot,
    RenewsOnce,
    RenewsUnknown,
    RenewsReleased,
    UpgradesNot,
    ExpiresNot,
    ExpiresOnce,
    ExpiresOncePerLife,
    ReleasesNot,
    ReleasesOnce,
    Resurrects,
    NoImages,
    NeedsTerm,
    NoRefundRenew,
    RefundsNot,
    PaysAsText,
    PaysNot,
    NeedsOrderToUpgrade,
    NeedsIsRefund,
    AnythingGoes,
    AlwaysZero,
    Chatters,
    TakesItsTime,
    TakesItsTimeAndChecksNothing,
    /// The official sample as shipped: the key is an empty text.
    HasNoKey,
    /// A second product whose key is not set shares the endpoint.
    TakesEmptyKey,
    TakesNullKey,
    FailsAsText,
    SignOnFailsWith200,
    SignOnIsEmpty,
    SignOnLeadsNowhere,
    /// The first answer to the fifth order never comes.
    HoldsTheFifth,
}

#[derive(Debug, Default)]
struct Sold {
    id: String,
    released: bool,
    frozen: bool,
    expired: bool,
    renewed: BTreeSet<String>,
}

#[derive(Default)]
struct Books {
    sold: BTreeMap<String, Sold>,
    ids: u64,
    links: BTreeSet<String>,
    buying: BTreeSet<String>,
}

#[derive(Clone)]
struct Receiver {
    fault: Fault,
    books: Arc<Mutex<Books>>,
    twin: Arc<Notify>,
    sold: Arc<Notify>,
}

type Pairs = Vec<(String, String)>;

/// What a receiver has sold so far.
pub(crate) struct Sales(Receiver);

impl Sales {
    /// Waits until so many instances were sold.
    pub(crate) async fn bought(&self, count: usize) {
        loop {
            let sold = self.0.sold.notified();
            if self.0.books.lock().unwrap().sold.len() >= count {
                return;
            }
            sold.await;
        }
    }

    pub(crate) fn unreleased(&self) -> Vec<String> {
        let books = self.0.books.lock().unwrap();
        books.sold.values().filter(|sold| !sold.released).map(|sold| sold.id.clone()).collect()
    }
}

/// Listens until the test ends, at the returned URL.
pub(crate) async fn receiver(fault: Fault) -> String {
    counted(fault).await.0
}

pub(crate) async fn counted(fault: Fault) -> (String, Sales) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/spi", listener.local_addr().unwrap());
    let receiver = Receiver { fault, books: Arc::default(), twin: Arc::default(), sold: Arc::default() };
    let sales = Sales(receiver.clone());
    let handler = move |request: Request| {
        let receiver = receiver.clone();
        async move { receiver.answer(&request).await }
    };
    tokio::spawn(serve(listener, ServerOptions::default(), handler, std::future::pending()));
    (url, sales)
}

fn refused(status: u16) -> Response {
    Response::json(status, json!({"instanceId": "0", "success": false}).to_string())
}

/// Decodes percent-encoding. `None` if it is invalid, not UTF-8, or holds a NUL.
fn decode(text: &str, keeps_plus: bool) -> Option<String> {
    let text = if keeps_plus { text.to_owned() } else { text.replace('+', " ") };
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

fn get<'a>(pairs: &'a Pairs, name: &str) -> &'a str {
    pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
}

/// Returns true if the term ends more than half a year from now.
fn ends_far_ahead(pairs: &Pairs) -> bool {
    let now = spid_hook::time::Clock::System.now().to_zoned(jiff::tz::TimeZone::UTC).datetime();
    jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", get(pairs, "expiredOn"))
        .is_ok_and(|until| until.duration_since(now).as_hours() > 24 * 180)
}

const KNOWN: [&str; 18] = [
    "action",
    "aliUid",
    "orderBizId",
    "orderId",
    "productCode",
    "skuId",
    "trial",
    "expiredOn",
    "template",
    "instanceId",
    "isRefund",
    "timeStamp",
    "requestId",
    "ecsInstanceId",
    "package_version",
    "email",
    "mobile",
    "belongId",
];

impl Receiver {
    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    async fn answer(&self, request: &Request) -> Response {
        let is_post = request.method.as_str() == "POST";
        if is_post && self.is(Fault::GetOnly) {
            return refused(405);
        }
        let mut text = String::from_utf8_lossy(request.query()).into_owned();
        if is_post {
            text = String::from_utf8_lossy(&request.body).into_owned();
        }
        let raw: Pairs = text
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let Some(pairs) = self.read(&raw) else {
            return refused(if self.is(Fault::FallsOverBroken) { 500 } else { 400 });
        };
        let pairs = match self.without_duplicates(pairs) {
            Ok(pairs) => pairs,
            Err(refusal) => return refusal,
        };
        if let Some(refusal) = self.check(&raw, &pairs) {
            return refusal;
        }
        let slow = self.is(Fault::Slow) && get(&pairs, "action") == "orderPay";
        if slow {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        let mut answer = match get(&pairs, "action") {
            "createInstance" => self.create(&pairs).await,
            "verify" => self.sign_on(&pairs),
            _ => self.other(&pairs),
        };
        if self.is(Fault::Chatters) {
            answer = match get(&pairs, "action") {
                "createInstance" => answer,
                "verify" => Response::new(200, "text/html", "<p>fake-page</p>"),
                _ => Response::json(
                    200,
                    "Warning: in spi.php{\"appInfo\":{\"password\":\"fake-password\"}}".to_owned(),
                ),
            };
        }
        if self.is(Fault::TextHtml) && !matches!(get(&pairs, "action"), "orderPay" | "verify") {
            answer = Response::new(answer.status, "text/html", answer.body);
        }
        answer
    }

    fn read(&self, raw: &Pairs) -> Option<Pairs> {
        let mut pairs = Vec::new();
        for (name, value) in raw {
            // A receiver that decodes only dates by hand, because only they contained a space.
            if self.is(Fault::KeepsPercent20) && name == "label" && value.contains("%20") {
                pairs.push((name.clone(), value.clone()));
                continue;
            }
            let value = decode(value, self.is(Fault::KeepsPlus))?;
            if self.is(Fault::SplitsAmpersands) && name == "label" {
                for piece in value.split('&') {
                    let (name, value) = piece.split_once('=').unwrap_or((name, piece));
                    pairs.push((name.to_owned(), value.to_owned()));
                }
                continue;
            }
            pairs.push((name.clone(), value));
        }
        Some(pairs)
    }

    fn without_duplicates(&self, pairs: Pairs) -> Result<Pairs, Response> {
        let mut kept: Pairs = Vec::new();
        for (name, value) in pairs {
            match kept.iter_mut().find(|(known, _)| *known == name) {
                None => kept.push((name, value)),
                Some(_) if self.is(Fault::TakesFirst) => {}
                Some(known) if self.is(Fault::TakesLast) => known.1 = value,
                Some(_) => return Err(refused(400)),
            }
        }
        Ok(kept)
    }

    fn token(&self, raw: &Pairs, pairs: &Pairs, key: &str) -> String {
        let mut signed = if self.is(Fault::SignsEncoded) { raw.clone() } else { pairs.clone() };
        signed.retain(|(name, value)| {
            let empty = self.is(Fault::DropsEmpty) && value.is_empty();
            let unknown = self.is(Fault::SignsKnownNamesOnly) && !KNOWN.contains(&name.as_str());
            name != "token" && !empty && !unknown
        });
        if self.is(Fault::TakesUnsigned) {
            // Text after the token is not a part of it.
            let end = raw.iter().position(|(name, _)| name == "token").unwrap_or(raw.len());
            signed.retain(|(name, _)| raw.iter().take(end).any(|(known, _)| known == name));
        }
        match self.fault {
            Fault::SortsByValue => signed.sort_by(|one, other| one.1.cmp(&other.1)),
            Fault::DoesNotSort => {}
            Fault::SortsWithoutCase => signed.sort_by_key(|(name, _)| name.to_lowercase()),
            _ => signed.sort(),
        }
        let joined: String = signed.iter().map(|(name, value)| format!("{name}={value}&")).collect();
        let base = match self.fault {
            Fault::AppendsBareKey => format!("{}{key}", joined.trim_end_matches('&')),
            _ => format!("{joined}key={key}"),
        };
        let bytes: Vec<u8> = match self.fault {
            Fault::ReadsLatin1 => base.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect(),
            _ => base.into_bytes(),
        };
        let token = hex::encode(Md5::digest(bytes));
        if self.is(Fault::WantsCapitals) { token.to_uppercase() } else { token }
    }

    fn check(&self, raw: &Pairs, pairs: &Pairs) -> Option<Response> {
        let right = self.token(raw, pairs, if self.is(Fault::HasNoKey) { "" } else { KEY });
        let token = pairs.iter().find(|(name, _)| name == "token").map(|(_, value)| value.as_str());
        if self.is(Fault::FallsOverCapitals) && token.is_some_and(|token| token != token.to_lowercase()) {
            return Some(Response::text(500, "java.lang.NullPointerException"));
        }
        let is_sign_on = get(pairs, "action") == "verify";
        let holds = match (self.fault, token) {
            (Fault::ChecksNothing | Fault::TakesItsTimeAndChecksNothing, _) => true,
            (Fault::TrustsLongTerms, Some(_)) if ends_far_ahead(pairs) => true,
            (Fault::ForgedSignOn, _) if is_sign_on => true,
            (Fault::ForgivesMissing, None) | (Fault::ForgivesEmpty, Some("")) => true,
            (_, None | Some("")) => false,
            (Fault::ComparesHead, Some(token)) => token.get(..8) == right.get(..8),
            (Fault::ComparesPrefix, Some(token)) => right.starts_with(token),
            (Fault::IgnoresTail, Some(token)) => token.starts_with(&right),
            (Fault::TakesEmptyKey, Some(token)) if token == self.token(raw, pairs, "") => true,
            (Fault::TakesNullKey, Some(token)) if token == self.token(raw, pairs, "null") => true,
            (_, Some(token)) => token == right,
        };
        if self.is(Fault::Chatters) && !holds {
            return Some(Response::text(403, format!("no: it should have been {right}")));
        }
        (!holds).then(|| refused(if self.is(Fault::RefusesWith200) { 200 } else { 403 }))
    }

    fn new_id(&self, biz: &str, books: &mut Books) -> String {
        books.ids += 1;
        match self.fault {
            Fault::NewIdPerRetry | Fault::OwnIds => format!("tenant-{}", books.ids),
            Fault::OneIdForAll => "tenant".to_owned(),
            _ => biz.to_owned(),
        }
    }

    async fn create(&self, pairs: &Pairs) -> Response {
        let biz = get(pairs, "orderBizId").to_owned();
        let has = |name: &str| !get(pairs, name).is_empty();
        let refuses = match self.fault {
            Fault::AlwaysZero => true,
            Fault::NoTrials => get(pairs, "trial") == "true",
            Fault::NoItems => has("bandwidth"),
            Fault::NoImages => has("ecsInstanceId"),
            Fault::NeedsTerm => !has("expiredOn"),
            _ => false,
        };
        let hides = get(pairs, "aliUid").contains('&') && !self.is(Fault::TrustsHidden);
        if refuses || hides {
            return Response::json(200, json!({"instanceId": "0"}).to_string());
        }
        if self.is(Fault::RacesOnCreate) {
            self.race(&biz).await;
        }
        let takes_time = self.is(Fault::TakesItsTime) || self.is(Fault::TakesItsTimeAndChecksNothing);
        // Begun at the first call, done at the second.
        if takes_time && self.books.lock().unwrap().buying.insert(biz.clone()) {
            return Response::json(200, json!({"instanceId": "0"}).to_string());
        }
        let is_new = !self.books.lock().unwrap().sold.contains_key(&biz);
        let response = self.sell(&biz);
        let is_fifth = is_new && self.books.lock().unwrap().sold.len() == 5;
        if is_fifth && self.is(Fault::HoldsTheFifth) {
            std::future::pending::<()>().await;
        }
        response
    }

    fn sell(&self, biz: &str) -> Response {
        let biz = biz.to_owned();
        let mut books = self.books.lock().unwrap();
        let known = books.sold.get(&biz).map(|sold| (sold.id.clone(), sold.released));
        let id = match known {
            Some((id, released)) if !self.is(Fault::NewIdPerRetry) => {
                if released && self.is(Fault::Resurrects) {
                    books.sold.insert(biz.clone(), Sold { id: id.clone(), ..Sold::default() });
                }
                id
            }
            _ => {
                let id = self.new_id(&biz, &mut books);
                books.sold.insert(biz.clone(), Sold { id: id.clone(), ..Sold::default() });
                self.sold.notify_one();
                id
            }
        };
        let mut body = json!({"instanceId": id});
        if self.is(Fault::NumberIds) {
            body = json!({"instanceId": id.parse::<u64>().unwrap()});
        }
        if !self.is(Fault::NoApp) {
            body["appInfo"] = json!({
                "frontEndUrl": "https://app.example", "adminUrl": "https://app.example/admin",
                "username": "admin", "password": "fake-password",
            });
        }
        Response::json(200, body.to_string())
    }

    /// Looks up the order, waits, and then creates a new one. If another request comes meanwhile, it is created
    /// twice.
    async fn race(&self, biz: &str) {
        let (is_known, is_twin) = {
            let mut books = self.books.lock().unwrap();
            (books.sold.contains_key(biz), !books.buying.insert(biz.to_owned()))
        };
        if is_known {
            return;
        }
        let sold = |id: String| Sold { id, ..Sold::default() };
        if is_twin {
            self.books.lock().unwrap().sold.insert(biz.to_owned(), sold(format!("{biz}-2")));
            self.twin.notify_waiters();
            return;
        }
        let _ = tokio::time::timeout(Duration::from_millis(200), self.twin.notified()).await;
        let mut books = self.books.lock().unwrap();
        books.buying.remove(biz);
        books.sold.insert(biz.to_owned(), sold(biz.to_owned()));
    }

    fn sign_on(&self, pairs: &Pairs) -> Response {
        let stamp = get(pairs, "timeStamp");
        let now =
            spid_hook::time::Clock::System.now().to_zoned(jiff::tz::TimeZone::get("Asia/Shanghai").unwrap());
        let fresh = jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", stamp)
            .is_ok_and(|at| (now.datetime().duration_since(at).as_secs()).abs() < 600);
        let link = format!("{}{stamp}{}", get(pairs, "instanceId"), get(pairs, "token"));
        let first = self.books.lock().unwrap().links.insert(link);
        let refuses = match self.fault {
            Fault::NoSignOn => true,
            Fault::StaleSignOn => !first,
            Fault::SignOnTwice => !fresh,
            _ => !fresh || !first,
        };
        match self.fault {
            Fault::SignOnFailsWith200 => Response::json(200, json!({"success": false}).to_string()),
            Fault::SignOnIsEmpty => Response::empty(200),
            Fault::SignOnLeadsNowhere => Response::empty(302),
            _ if refuses => Response::text(403, "no"),
            _ => Response::redirect("https://app.example/in?ticket=fake"),
        }
    }

    fn success(&self, success: bool) -> Response {
        let body = match self.fault {
            Fault::FailsAsText if !success => json!({"success": "false"}),
            Fault::SuccessAsText => json!({"success": success.to_string()}),
            _ => json!({"success": success}),
        };
        Response::json(200, body.to_string())
    }

    fn other(&self, pairs: &Pairs) -> Response {
        let id = get(pairs, "instanceId").to_owned();
        let action = get(pairs, "action");
        if action == "orderPay" {
            let success = match self.fault {
                Fault::PaysAsText => json!("true"),
                fault => json!(fault != Fault::PaysNot),
            };
            return Response::json(200, json!({"success": success}).to_string());
        }
        let mut books = self.books.lock().unwrap();
        let sold = books.sold.values_mut().find(|sold| sold.id == id);
        let Some(sold) = sold else {
            return self.success(self.is(Fault::RenewsUnknown) && action == "renewInstance");
        };
        let has = |name: &str| !get(pairs, name).is_empty();
        self.success(match action {
            "renewInstance" => self.renew(sold, get(pairs, "orderId")),
            "refundRenewInstance" => !self.is(Fault::NoRefundRenew) && !sold.released,
            "upgradeInstance" => {
                let lacks = self.is(Fault::NeedsOrderToUpgrade) && !has("orderId");
                !self.is(Fault::UpgradesNot) && !sold.released && !lacks
            }
            "expiredInstance" => self.expire(sold),
            "releaseInstance" => {
                let again = std::mem::replace(&mut sold.released, true);
                match self.fault {
                    Fault::ReleasesNot => false,
                    Fault::ReleasesOnce => !again,
                    Fault::NeedsIsRefund => has("isRefund"),
                    Fault::RefundsNot => get(pairs, "isRefund") != "true",
                    _ => true,
                }
            }
            _ => self.is(Fault::AnythingGoes),
        })
    }

    fn renew(&self, sold: &mut Sold, order: &str) -> bool {
        let again = !sold.renewed.insert(order.to_owned());
        sold.frozen = false;
        match self.fault {
            Fault::RenewsNot => false,
            Fault::RenewsOnce => !again && !sold.released,
            Fault::RenewsReleased => true,
            _ => !sold.released,
        }
    }

    fn expire(&self, sold: &mut Sold) -> bool {
        let done = match self.fault {
            Fault::ExpiresNot => false,
            Fault::ExpiresOnce => !sold.frozen,
            Fault::ExpiresOncePerLife => sold.frozen || !sold.expired,
            _ => true,
        };
        sold.frozen |= done;
        sold.expired |= done;
        done
    }
}

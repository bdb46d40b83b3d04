//! The marketplace: actions of customers, and their requests. It knows only the answers.

use spid::internals::net::Request;
use spid::internals::serve::intake::Endpoint;
use spid_core::dialect;
use spid_core::signature::{Keys, Parts};
use spid_hook::Secret;
use spid_hook::callback::Action;

use crate::support::random::Random;

/// Start of every simulation, in milliseconds: 2026-01-01T00:00:00Z.
pub(crate) const BEGIN_MS: i64 = 1_767_225_600_000;
const DAY_MS: i64 = 86_400_000;

/// An event at the marketplace. It is announced until its success is reported.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) action: Action,
    pub(crate) order_id: Option<String>,
    pub(crate) sku: Option<String>,
    pub(crate) expires_ms: Option<i64>,
    pub(crate) request_id: Option<String>,
    /// True if it was ever sent with a valid signature.
    pub(crate) sent: bool,
    /// True if its success was reported to the marketplace.
    pub(crate) reported: bool,
    /// The last answer.
    pub(crate) heard: String,
}

/// A sold instance, and its life so far.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) account: usize,
    pub(crate) biz: String,
    pub(crate) events: Vec<Event>,
    /// The id from a success.
    pub(crate) told_id: Option<String>,
}

pub(crate) const ACCOUNTS: [&str; 2] = ["acme", "bcme"];

/// The endpoints: one per account, each with its own key.
/// Path of the account's endpoint.
pub(crate) fn path(account: usize) -> String {
    format!("/{}", ACCOUNTS[account])
}

pub(crate) fn endpoint(account: usize) -> Endpoint {
    Endpoint {
        name: ACCOUNTS[account].into(),
        account: ACCOUNTS[account].into(),
        dialect: dialect::by_name("generic").unwrap(),
        keys: keys(account),
        options: dialect::Options::default(),
    }
}

fn keys(account: usize) -> Keys {
    Keys::single(Secret::new(format!("fake-key-of-{}", ACCOUNTS[account]))).unwrap()
}

impl Event {
    fn of(action: Action) -> Event {
        Event {
            action,
            order_id: None,
            sku: None,
            expires_ms: None,
            request_id: None,
            sent: false,
            reported: false,
            heard: String::new(),
        }
    }

    /// Parameters of the request, with the names of the generic dialect.
    pub(crate) fn parameters(&self, biz: &str) -> Vec<(String, String)> {
        let expires = self.expires_ms.map(|at| spid_hook::time::from_millis(at).to_string());
        let values = [
            ("action", Some(self.action.as_str().to_owned())),
            ("order_biz_id", Some(biz.to_owned())),
            ("order_id", self.order_id.clone()),
            ("sku", self.sku.clone()),
            ("request_id", self.request_id.clone()),
            ("expires_on", expires),
        ];
        values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

impl Order {
    /// A life, mostly in a sensible order.
    pub(crate) fn new(random: &mut Random, number: usize) -> Order {
        // Both accounts sell under the same names.
        let (account, biz) = (number % 2, format!("biz-{}", number / 2));
        let mut order = Order { account, biz, events: Vec::new(), told_id: None };
        if random.percent(95) {
            order.events.push(order.create(random, 0));
        }
        for number in 1..=random.between(1, 7) {
            let event = order.next_event(random, number);
            order.events.push(event);
        }
        if random.percent(8) {
            order.events.push(order.create(random, 99));
        }
        order
    }

    fn create(&self, random: &mut Random, number: u64) -> Event {
        Event {
            order_id: Some(format!("{}-o{number}", self.biz)),
            sku: Some("basic".to_owned()),
            expires_ms: Some(BEGIN_MS + random.between(1, 400) as i64 * DAY_MS),
            ..Event::of(Action::Create)
        }
    }

    fn next_event(&self, random: &mut Random, number: u64) -> Event {
        let action = random.weighted(&[
            (30, Action::Renew),
            (18, Action::Upgrade),
            (22, Action::Expire),
            (10, Action::Release),
            (10, Action::RefundRenew),
            (10, Action::Payment),
        ]);
        let (numbered, far) = (format!("{}-o{number}", self.biz), random.between(1, 900) as i64);
        let order_id = Some(numbered.clone()).filter(|_| !matches!(action, Action::Expire | Action::Release));
        match action {
            Action::Renew | Action::RefundRenew => {
                Event { order_id, expires_ms: Some(BEGIN_MS + far * DAY_MS), ..Event::of(action) }
            }
            // The international site sends no order with an upgrade, so two upgrades can be equal.
            Action::Upgrade => {
                let order_id = order_id.filter(|_| random.percent(50));
                Event { order_id, sku: Some(format!("sku-{}", random.between(1, 3))), ..Event::of(action) }
            }
            Action::Payment => Event { request_id: Some(numbered), ..Event::of(action) },
            _ => Event::of(action),
        }
    }
}

/// Fault in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoilt {
    Nothing,
    /// Signed with another account's key.
    WrongKey,
    /// Signed, and then altered.
    Altered,
    /// Not signed.
    Unsigned,
    /// Signed ten minutes ago.
    Stale,
}

/// The request, signed at `now_ms`.
pub(crate) fn request(account: usize, pairs: &[(String, String)], now_ms: i64, spoilt: Spoilt) -> Request {
    let members: serde_json::Map<String, serde_json::Value> =
        pairs.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let mut body = serde_json::to_string(&members).unwrap().into_bytes();
    let seconds = now_ms.div_euclid(1000) - if spoilt == Spoilt::Stale { 600 } else { 0 };
    let timestamp = seconds.to_string();
    let signer = if spoilt == Spoilt::WrongKey { 1 - account } else { account };
    let signature = Parts::Dated { timestamp: timestamp.clone(), body: body.clone() }.sign(&keys(signer));
    if spoilt == Spoilt::Altered {
        body.push(b' ');
    }
    let request = Request::post(path(account))
        .with_header("content-type", "application/json")
        .with_header("spid-timestamp", &timestamp)
        .with_body(body);
    if spoilt == Spoilt::Unsigned { request } else { request.with_header("spid-signature", &signature) }
}

//! The making of `database.sql`: one row of every kind, kept by the store itself under a clock that stands still.
//!
//! The dump is history: it is the text that a version 3 of the schema held, and later versions of the program must
//! read it. It is not written again when the program changes. To make another one beside it:
//! `SPID_GOLDENS_DATABASE=/tmp/new.sql cargo test --test goldens -- --ignored the_database`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;
use spid::internals::store::encryption::KeySource;
use spid::internals::store::{
    Acceptance, AttemptEnd, AuditNote, Claim, Closed, ConfiguredKey, Filter, Import, Instead, LeasedJob,
    Operations, PruneOptions, Reply, Store, StoreOptions,
};
use spid_core::lifecycle::schedule;
use spid_core::lifecycle::{Policy, UnknownInstance};
use spid_core::signature::{Key, Keys};
use spid_hook::Secret;
use spid_hook::callback::{
    Action, Answer, Callback, Expiry, Field, InstanceRef, Nonce, Outcome, Parameters, ValidationIssue,
};
use spid_hook::id::{Id, Ids};
use spid_hook::instance::{Instance, State};
use spid_hook::time::Clock;
use tokio::time::Instant;

/// The account and the endpoint of the first marketplace.
const ALIBABA: &str = "alibaba-cn";
/// The account and the endpoint of the one that names instances itself.
const KOOGALLERY: &str = "koogallery";
/// The time zone's own text of a term that does not end while this test is of use.
const FAR: &str = "2099-01-01 00:00:00";

/// A store that is written, and what is needed to open it again.
struct Bench {
    folder: tempfile::TempDir,
    clock: Clock,
    options: StoreOptions,
    store: Store,
    closed: Closed,
}

fn instant(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn expiry(text: &str) -> Option<Expiry> {
    let at = text.replace(' ', "T") + "Z";
    Some(Expiry { raw: text.to_owned(), at: Some(instant(&at)) })
}

fn parameters(pairs: &[(&str, &str)]) -> Parameters {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn items(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A callback of the first marketplace that says nothing but its action and its instance.
fn about(action: Action, name: &str, biz: &str) -> Callback {
    let mut callback = Callback::new(action, name);
    callback.subject.order_biz_id = Some(biz.to_owned());
    callback.dialect = Some("alibaba".to_owned());
    callback.buyer = Some("10001".to_owned());
    callback.parameters = parameters(&[("action", name), ("aliUid", "10001"), ("orderBizId", biz)]);
    callback
}

fn create(biz: &str, until: &str) -> Callback {
    let order = format!("order-of-{biz}");
    Callback {
        order_id: Some(order.clone()),
        product: Some("cmgj000001".to_owned()),
        sku: Some("basic".to_owned()),
        trial: Some(false),
        expires_on: expiry(until),
        items: items(&[("seats", "5")]),
        ordered: true,
        parameters: parameters(&[
            ("action", "createInstance"),
            ("aliUid", "10001"),
            ("expiredOn", until),
            ("orderBizId", biz),
            ("orderId", &order),
            ("productCode", "cmgj000001"),
            ("seats", "5"),
            ("skuId", "basic"),
            ("trial", "false"),
        ]),
        ..about(Action::Create, "createInstance", biz)
    }
}

fn renew(biz: &str, order: &str, until: &str) -> Callback {
    Callback {
        order_id: Some(order.to_owned()),
        expires_on: expiry(until),
        ordered: true,
        ..about(Action::Renew, "renewInstance", biz)
    }
}

fn upgrade(biz: &str, sku: &str) -> Callback {
    let items = items(&[("seats", "20")]);
    Callback { sku: Some(sku.to_owned()), items, ..about(Action::Upgrade, "upgradeInstance", biz) }
}

fn expire(biz: &str) -> Callback {
    about(Action::Expire, "expiredInstance", biz)
}

fn release(biz: &str) -> Callback {
    Callback { refund: Some(true), ..about(Action::Release, "releaseInstance", biz) }
}

fn sign_on(biz: &str, at: Timestamp) -> Callback {
    let date = at.to_string();
    let parameters = parameters(&[("action", "verify"), ("orderBizId", biz), ("timeStamp", &date)]);
    Callback { sent_at: Some(at), parameters, ..about(Action::SignOn, "verify", biz) }
}

fn payment(biz: &str, request: &str) -> Callback {
    Callback { request_id: Some(request.to_owned()), ..about(Action::Payment, "orderPay", biz) }
}

/// A message the dialect does not know; it is held.
fn unknown(name: &str, biz: &str) -> Callback {
    Callback { issues: vec![ValidationIssue::UnknownAction], ..about(Action::Other, name, biz) }
}

/// The other marketplace's purchase, with what it says in no other dialect.
fn koo(action: Action, name: &str, id: &str, nonce: &str) -> Callback {
    Callback {
        subject: InstanceRef { instance_id: None, order_biz_id: Some(format!("line-of-{id}")) },
        order_id: Some(format!("CS-{id}")),
        buyer: Some("20002".to_owned()),
        product: Some("p-1".to_owned()),
        expires_on: expiry(FAR),
        sent_at: Some(instant("2024-02-01T00:00:00Z")),
        marketplace_instance_id: Some(id.to_owned()),
        dialect: Some("koogallery".to_owned()),
        externally_provisioned: true,
        ordered: true,
        nonce: Some(Nonce { nonce: nonce.to_owned(), until: instant("2099-01-01T00:00:00Z") }),
        order_details: Some(parameters(&[
            ("amount", "100"),
            ("skuCode", "sku-7"),
            ("userName", "fake-user"),
        ])),
        body: Some(serde_json::json!({"activity": name, "amount": 100, "list": [1, 2.5, "three", null]})),
        parameters: parameters(&[("activity", name), ("businessId", "b-1"), ("orderId", "CS-1")]),
        ..Callback::new(action, name)
    }
}

/// Every member that is kept, in one callback, and every doubt. (`pruned_at` stands in those that were pruned.)
fn everything() -> Callback {
    let name = || "expiredOn".to_owned();
    Callback {
        request_id: Some("request-1".to_owned()),
        sku: Some("gold".to_owned()),
        trial: Some(true),
        refund: Some(false),
        items: items(&[("disk", "40"), ("seats", "7")]),
        test: true,
        also: vec![Action::Upgrade, Action::RefundRenew],
        converts: true,
        issues: vec![
            ValidationIssue::AmbiguousValue { name: name() },
            ValidationIssue::UnreadableDate { name: name() },
            ValidationIssue::UnknownAction,
            ValidationIssue::MissingParameter { name: name() },
            ValidationIssue::UnknownValue { name: name() },
        ],
        subject: InstanceRef {
            instance_id: Some("i-active".to_owned()),
            order_biz_id: Some("biz-active".to_owned()),
        },
        ..koo(Action::Renew, "refreshInstance", "koo-everything", "nonce-of-everything")
    }
}

fn act(why: &str) -> AuditNote {
    AuditNote { who: "an operator".to_owned(), why: why.to_owned() }
}

fn answer(id: &str) -> Answer {
    let plain = |text: &str| Field::Plain(text.to_owned());
    let secret = |text: &str| Field::Secret(Secret::new(text));
    let mut answer = Answer { instance_id: Some(id.to_owned()), ..Answer::default() };
    answer.app.insert("front_end_url".into(), plain("https://app.example.com/"));
    answer.app.insert("admin_url".into(), plain("https://admin:fake-password@app.example.com/"));
    answer.app.insert("username".into(), plain("root"));
    answer.app.insert("password".into(), secret("fake-password"));
    answer.host.insert("ip".into(), plain("203.0.113.7"));
    answer.host.insert("ftp_password".into(), secret("fake-ftp-password"));
    answer.info.insert("note".into(), plain("hello"));
    answer
}

fn done(id: &str) -> AttemptEnd {
    AttemptEnd::Done(answer(id))
}

fn retry() -> AttemptEnd {
    AttemptEnd::Retry { error: "the hook exited with code 75".to_owned(), after: None }
}

/// A failure after which nothing is due for two hours.
fn busy() -> AttemptEnd {
    AttemptEnd::Retry { error: "busy".to_owned(), after: Some(Duration::from_secs(7200)) }
}

impl Bench {
    async fn new(key: &Path) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(instant("2023-01-01T00:00:00Z"));
        let options = StoreOptions {
            sealing_keys: vec![KeySource::File(key.to_owned())],
            ids: Ids::seeded(7),
            ..StoreOptions::default()
        };
        let path = folder.path().join("spid.db");
        let (store, closed) = Store::open(&path, options.clone(), clock.clone()).await.unwrap();
        Bench { folder, clock, options, store, closed }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("spid.db")
    }

    async fn restart(self) -> Bench {
        self.store.flush_counts().await.unwrap();
        drop(self.store);
        self.closed.wait().await;
        let path = self.folder.path().join("spid.db");
        let (store, closed) = Store::open(&path, self.options.clone(), self.clock.clone()).await.unwrap();
        Bench { store, closed, folder: self.folder, clock: self.clock, options: self.options }
    }

    fn operations(&self) -> Operations {
        Operations::open(&self.path(), &self.options, self.clock.clone()).unwrap()
    }

    fn advance(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
    }

    fn go_to(&self, text: &str) {
        self.clock.advance(instant(text).duration_since(self.clock.now()));
    }

    async fn accept_as(
        &self,
        account: &str,
        unknown_instance: UnknownInstance,
        callback: &Callback,
    ) -> Reply {
        self.advance(60);
        let acceptance = Acceptance {
            account: account.into(),
            endpoint: account.into(),
            key_label: "current".into(),
            delivery_limit: (account == ALIBABA).then_some(120),
            callback: Arc::new(callback.clone()),
            received_at: self.clock.now(),
            policy: Policy { unknown_instance, ..Policy::default() },
            fetched: false,
            approved: false,
        };
        self.store.accept(acceptance).await.unwrap().reply
    }

    async fn accept(&self, callback: &Callback) -> Reply {
        self.accept_as(ALIBABA, UnknownInstance::Refuse, callback).await
    }

    async fn take(&self) -> Option<LeasedJob> {
        self.store.take(1).await.unwrap().taken.pop()
    }

    /// Takes the one job that is due, and ends the attempt.
    async fn end(&self, ending: AttemptEnd) -> Id {
        let taken = self.take().await.expect("a job is due");
        self.store.finish(&taken, ending).await.unwrap();
        taken.job.id
    }

    /// Delivers, lets the hook end so, and hears what is told.
    async fn complete_as(
        &self,
        account: &str,
        unknown: UnknownInstance,
        callback: &Callback,
        ending: AttemptEnd,
    ) -> Outcome {
        match self.accept_as(account, unknown, callback).await {
            Reply::Now(outcome) => outcome,
            Reply::Wait(waiting) => {
                self.end(ending).await;
                while let Some(taken) = self.take().await {
                    self.store.finish(&taken, AttemptEnd::Done(Answer::default())).await.unwrap();
                }
                waiting.until(Instant::now()).await
            }
        }
    }

    async fn complete(&self, callback: &Callback, ending: AttemptEnd) -> Outcome {
        self.complete_as(ALIBABA, UnknownInstance::Refuse, callback, ending).await
    }

    /// The same, and it must be a success.
    async fn done(&self, callback: &Callback, ending: AttemptEnd) {
        let outcome = self.complete(callback, ending).await;
        assert!(outcome.is_success(), "{callback:?}: {outcome:?}");
    }

    async fn made(&self, biz: &str) {
        self.done(&create(biz, FAR), done(&biz.replace("biz", "i"))).await;
    }

    /// Lets the job that is due fail until it is dead.
    async fn kill(&self) -> Id {
        loop {
            let taken = self.take().await.expect("a job is due");
            self.store.finish(&taken, retry()).await.unwrap();
            let job = self.store.reader().job(taken.job.id).unwrap().unwrap();
            if job.state == schedule::JobState::Dead {
                return job.id;
            }
            self.clock.advance(job.due_at.duration_since(self.clock.now()));
        }
    }

    fn number_of(&self, name: &str) -> i64 {
        self.store.reader().instances_named(name).unwrap()[0].number
    }

    /// The number of the callback that came last.
    fn last(&self) -> i64 {
        let filter = Filter { limit: 1, ..Filter::default() };
        self.store.reader().callbacks(&filter).unwrap()[0].number
    }
}

/// A life that was over long ago, and what a prune leaves of it.
async fn pruned_life(bench: &Bench) {
    bench.done(&create("biz-old", "2024-01-01 00:00:00"), done("i-old")).await;
    let now = bench.clock.now();
    bench.complete(&sign_on("biz-old", now), AttemptEnd::Done(Answer::default())).await;
    let renewal = renew("biz-old", "renewal-1", "2025-01-01 00:00:00");
    bench.accept(&renewal).await;
    bench.end(retry()).await;
    bench.advance(3600);
    bench.done(&renewal, AttemptEnd::Done(Answer::default())).await;
    bench.done(&upgrade("biz-old", "gold"), AttemptEnd::Done(Answer::default())).await;
    // A payment is told before its hook runs.
    bench.accept(&payment("biz-old", "message-1")).await;
    bench.end(AttemptEnd::Done(Answer::default())).await;
    bench.go_to("2023-03-01T00:00:00Z");
    let options = PruneOptions {
        older_than_ms: 30 * 24 * 60 * 60 * 1000,
        secrets: false,
        dry_run: false,
        rewrite: false,
    };
    let pruned = bench.operations().prune(options, &act("the yearly prune"), &mut |_| {}).unwrap();
    assert!(pruned.callbacks_emptied > 0 && pruned.callbacks_removed > 0, "{pruned:?}");
}

/// Every state of an instance, and how it came to it.
async fn instances(bench: &Bench) {
    bench.made("biz-active").await;
    bench.accept(&create("biz-active", FAR)).await;
    bench.done(&upgrade("biz-active", "gold"), AttemptEnd::Done(Answer::default())).await;
    let claim = Claim { tenant: Some("tenant-7".to_owned()), replace: false };
    bench.operations().claim(bench.number_of("biz-active"), &claim, &act("signed up")).unwrap();

    bench.done(&create("biz-frozen", "2024-03-01 00:00:00"), done("i-frozen")).await;
    bench.done(&create("biz-ends", "2024-03-01 00:00:00"), done("i-ends")).await;
    bench.go_to("2024-03-02T00:00:00Z");
    bench.done(&expire("biz-frozen"), AttemptEnd::Done(Answer::default())).await;

    bench.made("biz-released").await;
    bench.done(&release("biz-released"), AttemptEnd::Done(Answer::default())).await;

    let mut never_seen = release("");
    never_seen.subject = InstanceRef { instance_id: Some("i-never-seen".to_owned()), order_biz_id: None };
    bench.accept_as(ALIBABA, UnknownInstance::Succeed, &never_seen).await;

    let product = Some("cmgj000001".to_owned());
    let adopted =
        Callback { product, sku: Some("basic".to_owned()), ..renew("biz-adopted", "renewal-2", FAR) };
    let nothing = || AttemptEnd::Done(Answer::default());
    bench.complete_as(ALIBABA, UnknownInstance::Adopt, &adopted, nothing()).await;

    // A trial that is bought for good, with a word of the operator's.
    let trial = Callback { trial: Some(true), ..create("biz-trial", "2024-06-01 00:00:00") };
    bench.done(&trial, done("i-trial")).await;
    let mut bought = create("biz-trial", FAR);
    bought.order_id = Some("order-for-good".to_owned());
    bought.sku = Some("gold".to_owned());
    bench.accept(&bought).await;
    let approved =
        bench.operations().approve(bench.last(), Some(Instead::Conversion), &act("bought for good")).unwrap();
    assert!(approved.job.is_some());
    while let Some(taken) = bench.take().await {
        bench.store.finish(&taken, nothing()).await.unwrap();
    }

    bench.made("biz-by-hand").await;
    bench.operations().release(bench.number_of("biz-by-hand"), &act("asked on the phone")).unwrap();
    bench.end(nothing()).await;

    let mut imported =
        Instance::pending(&create("biz-imported", FAR), KOOGALLERY, KOOGALLERY, bench.clock.now());
    imported.id = Some("i-imported".to_owned());
    imported.state = State::Active;
    imported.claimed_at = Some(instant("2022-01-02T00:00:00Z"));
    imported.tenant = Some("tenant-8".to_owned());
    imported.created_at = instant("2022-01-01T00:00:00Z");
    imported.updated_at = instant("2022-01-03T00:00:00Z");
    let import = Import {
        origin: "customers.jsonl, line 1".to_owned(),
        instance: imported,
        dated: true,
        marketplace_instance_id: Some("koo-imported".to_owned()),
        names: vec!["another-name".to_owned()],
        orders: vec!["CS-imported".to_owned()],
    };
    bench.operations().import(&[import], &act("customers from before")).unwrap();
}

/// Every disposition of a callback, and every decision of an operator.
async fn callbacks(bench: &Bench) {
    // Held, and left so: another purchase, and a request that cannot be trusted.
    let another = Callback { order_id: Some("another-order".to_owned()), ..create("biz-active", FAR) };
    bench.accept(&another).await;
    bench.accept_as(KOOGALLERY, UnknownInstance::Refuse, &everything()).await;
    for (name, decide) in
        [("unknownAction", 0), ("rejectedAction", 1), ("settledAction", 2), ("approvedAction", 3)]
    {
        bench.accept(&unknown(name, "biz-active")).await;
        let number = bench.last();
        match decide {
            1 => bench.operations().reject(number, &act("not ours")).unwrap(),
            2 => bench.operations().settle(number, &act("done on the phone")).unwrap(),
            3 => drop(bench.operations().approve(number, None, &act("it is known")).unwrap()),
            _ => {}
        }
    }
    let body = Answer { body: Some(Secret::new("{\"done\":true}")), ..Answer::default() };
    bench.end(AttemptEnd::Done(body)).await;
    // Recorded with a notice; recorded without.
    let others = Callback { items: items(&[("seats", "6")]), ..create("biz-active", FAR) };
    bench.accept(&others).await;
    bench.accept(&expire("biz-frozen")).await;
    // Refused as unknown: two of them, one off the list.
    for biz in ["biz-unknown", "biz-dismissed"] {
        bench.accept(&renew(biz, &format!("renewal-of-{biz}"), FAR)).await;
    }
    bench.operations().dismiss(bench.last(), &act("another seller's")).unwrap();
    bench.accept(&renew("biz-released", "renewal-3", FAR)).await;
    // A payment that the hook refuses, a sign-on with its answer, one that fails, and a question.
    bench.accept(&payment("biz-active", "message-2")).await;
    bench.end(AttemptEnd::Refused { reason: "no such order here".to_owned() }).await;
    let redirect = Secret::new("https://app.example.com/?ticket=fake-ticket");
    let redirect = Answer { redirect: Some(redirect), ..Answer::default() };
    let now = bench.clock.now();
    bench.complete(&sign_on("biz-active", now), AttemptEnd::Done(redirect)).await;
    bench.accept(&sign_on("biz-active", bench.clock.now())).await;
    bench.end(retry()).await;
    bench.accept(&about(Action::Query, "queryInstance", "biz-active")).await;
}

/// The other marketplace: public ids, marks of requests, what is learned of an order.
async fn other_marketplace(bench: &Bench) {
    let purchase = koo(Action::Create, "newInstance", "koo-1", "nonce-1");
    let order_details = Callback { order_details: None, ..purchase };
    let waiting = bench.accept_as(KOOGALLERY, UnknownInstance::Refuse, &order_details).await;
    let taken = bench.take().await.unwrap();
    let order_details = Callback {
        sku: Some("sku-7".to_owned()),
        order_details: Some(parameters(&[("amount", "100"), ("skuCode", "sku-7")])),
        ..order_details
    };
    bench.store.add_order_details(&taken.job, order_details).await.unwrap();
    bench.store.finish(&taken, done("i-koo-1")).await.unwrap();
    drop(waiting);
}

/// Every state of a job.
async fn jobs(bench: &Bench) -> Id {
    bench.accept(&create("biz-refused", FAR)).await;
    bench.accept(&renew("biz-refused", "renewal-4", FAR)).await;
    bench.end(AttemptEnd::Refused { reason: "not to this buyer".to_owned() }).await;

    bench.accept(&create("biz-same-id", FAR)).await;
    bench.end(done("i-active")).await;

    bench.accept(&create("biz-pending-by-hook", FAR)).await;
    bench.end(AttemptEnd::Pending { note: "waits for sales".to_owned() }).await;
    bench.accept(&create("biz-completed", FAR)).await;
    bench.end(AttemptEnd::Pending { note: "waits for sales".to_owned() }).await;
    let number = bench.number_of("biz-completed");
    bench.operations().complete(number, &answer("i-completed"), &act("approved by sales")).unwrap();

    bench.accept(&create("biz-dropped", FAR)).await;
    let dropped = bench.end(retry()).await;
    bench.operations().drop_job(dropped, &act("a test order")).unwrap();

    // Never begun, and given up.
    bench.accept(&create("biz-cancelled", FAR)).await;
    bench.accept(&release("biz-cancelled")).await;
    while let Some(taken) = bench.take().await {
        bench.store.finish(&taken, AttemptEnd::Done(Answer::default())).await.unwrap();
    }

    bench.made("biz-dead").await;
    bench.accept(&upgrade("biz-dead", "gold")).await;
    bench.kill().await;
    bench.accept(&renew("biz-dead", "renewal-5", "2099-06-01 00:00:00")).await;
    bench.accept(&upgrade("biz-dead", "platinum")).await;

    bench.made("biz-tried-again").await;
    bench.accept(&upgrade("biz-tried-again", "gold")).await;
    let dead = bench.kill().await;
    bench.operations().retry(dead, &act("the hook is mended")).unwrap();
    bench.end(AttemptEnd::GivenBack).await;
    dead
}

/// Work that waits, that was lost, that is brought forward, and that runs. Nothing is taken behind this.
async fn open_jobs(bench: Bench, dead: Id) -> Bench {
    // The one that is due since the last step would be taken first.
    bench.take().await.unwrap();
    bench.accept(&create("biz-lost", FAR)).await;
    bench.take().await.unwrap();
    let bench = bench.restart().await;
    bench.advance(60);
    while let Some(taken) = bench.take().await {
        bench.store.finish(&taken, busy()).await.unwrap();
    }
    // Two parts, one done and one still waiting.
    let both = Callback {
        also: vec![Action::Upgrade],
        product: Some("p-2".to_owned()),
        sku: Some("sku-8".to_owned()),
        order_id: Some("CS-both".to_owned()),
        subject: InstanceRef { instance_id: Some("koo-1".to_owned()), order_biz_id: None },
        ..koo(Action::Renew, "refreshInstance", "koo-1", "nonce-2")
    };
    bench.accept_as(KOOGALLERY, UnknownInstance::Refuse, &both).await;
    bench.end(AttemptEnd::Done(Answer::default())).await;
    bench.end(busy()).await;
    bench.accept(&create("biz-brought-forward", FAR)).await;
    bench.end(busy()).await;
    bench.accept(&create("biz-brought-forward", FAR)).await;
    let running = bench.take().await.unwrap();
    assert_eq!(running.job.extra, schedule::Extra::Waiting);
    bench.accept(&create("biz-waits", FAR)).await;
    bench.accept(&renew("biz-waits", "renewal-6", "2099-06-01 00:00:00")).await;
    bench.accept(&payment("biz-active", "message-3")).await;
    bench.accept(&expire("biz-trial")).await;
    bench.accept(&expire("biz-ends")).await;
    bench.accept(&release("biz-frozen")).await;
    let refund = Callback {
        action: Action::RefundRenew,
        ordered: false,
        ..renew("biz-adopted", "renewal-2", "2098-01-01 00:00:00")
    };
    bench.accept(&Callback { action_name: "refundRenewInstance".to_owned(), ..refund }).await;
    bench.accept(&sign_on("biz-active", bench.clock.now())).await;
    bench.accept(&unknown("waitingAction", "biz-active")).await;
    bench.operations().approve(bench.last(), None, &act("it is known")).unwrap();
    bench.operations().retry(dead, &act("the hook is mended for good")).unwrap();
    bench
}

async fn keys_used(bench: &Bench) {
    let key = |label: &str| Key::new(label, Secret::new("fake-isv-key")).unwrap();
    let keys = Keys::new(vec![key("current"), key("previous")]).unwrap();
    let configured = |key: &Key| ConfiguredKey {
        endpoint: ALIBABA.into(),
        label: key.label().clone(),
        mark: key.mark(ALIBABA),
    };
    bench.store.configure_keys(keys.iter().map(configured).collect()).await.unwrap();
    bench.store.note_key_use(&ALIBABA.into(), &"current".into());
    bench.store.flush_counts().await.unwrap();
}

/// Acts of which there is no other trace in the store.
fn other_acts(bench: &Bench) {
    let mut operations = bench.operations();
    operations.record("restore", "everything, from spid-backup.db", &act("the disk died")).unwrap();
    operations.record("resend", "callback 7 to https://spi.example.com/spi", &act("a lost answer")).unwrap();
    operations.reencrypt(false, &act("a new sealing key"), &mut |_| {}).unwrap();
    let jobs = bench.store.reader().jobs(&Filter { limit: 1000, ..Filter::default() }).unwrap();
    operations.decrypt("instance i-active of alibaba-cn", &jobs, &act("the buyer has lost it")).unwrap();
}

/// Makes the database, and gives its dump.
pub(super) fn made(key: &Path) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bench = Bench::new(key).await;
        pruned_life(&bench).await;
        bench.go_to("2024-02-01T00:00:00Z");
        instances(&bench).await;
        callbacks(&bench).await;
        other_marketplace(&bench).await;
        let dead = jobs(&bench).await;
        let bench = open_jobs(bench, dead).await;
        keys_used(&bench).await;
        other_acts(&bench);
        let path = bench.path();
        drop(bench.store);
        bench.closed.wait().await;
        dump(&Connection::open(path).unwrap())
    })
}

/// The database as SQL text, table by table, a row a line, with the two pragmas by which the program knows its own.
pub(super) fn dump(db: &Connection) -> String {
    let text = |sql: &str| -> Vec<String> {
        let mut statement = db.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let pragma =
        |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0)).unwrap();
    let (application, version) = (pragma("application_id"), pragma("user_version"));
    let mut dump = format!(
        "-- A database of version {version}; see database.rs beside this file.\n\
         PRAGMA foreign_keys = off;\nPRAGMA application_id = {application};\nPRAGMA user_version = {version};\n\
         BEGIN TRANSACTION;\n"
    );
    let ours = "type = 'table' AND name NOT LIKE 'sqlite_%'";
    let tables = text(&format!("SELECT name FROM sqlite_schema WHERE {ours} ORDER BY name"));
    let schema = text(&format!(
        "SELECT sql FROM sqlite_schema WHERE {ours} UNION ALL
         SELECT sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
    ));
    for sql in schema {
        dump.push_str(&format!("{sql};\n"));
    }
    for table in tables.iter().map(String::as_str).chain(["sqlite_sequence"]) {
        let columns = text(&format!("SELECT name FROM pragma_table_info('{table}')"));
        let quoted: Vec<String> = columns.iter().map(|column| format!("quote(\"{column}\")")).collect();
        let order: Vec<String> = (1..=columns.len()).map(|column| column.to_string()).collect();
        let (names, quoted, order) = (columns.join(", "), quoted.join(" || ', ' || "), order.join(", "));
        if table == "sqlite_sequence" {
            // The rows above have filled it on the way.
            dump.push_str("DELETE FROM sqlite_sequence;\n");
        }
        let values = text(&format!("SELECT {quoted} FROM (SELECT * FROM \"{table}\" ORDER BY {order})"));
        for values in values {
            dump.push_str(&format!("INSERT INTO {table} ({names}) VALUES ({values});\n"));
        }
    }
    dump.push_str("COMMIT;\n");
    dump
}

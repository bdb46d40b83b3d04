//! The conformance suite with our own daemon, which must pass every case, and with receivers with one fault each,
//! which must fail exactly the case for that fault.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use spid::hook::{
    AnyHook, CreateCall, ExpireCall, HookError, PaymentCall, Provisioned, ProvisioningHook, RefundRenewCall,
    ReleaseCall, RenewCall, SignOnCall, SignedOn, Updated, UpgradeCall,
};
use spid::internals::hooks::runner::{NamedHook, Runner};
use spid::internals::lab::conformance::{
    Case, Level, SelfTestReport, Suite, SuiteError, SuiteObserver, cases,
};
use spid::internals::lab::report::Verdict;
use spid::internals::serve::daemon::{Daemon, DaemonOptions};
use spid::internals::serve::intake::Endpoint;
use spid_core::dialect;
use spid_core::dialect::Options;
use spid_core::signature::Keys;
use spid_hook::Secret;
use tokio::net::TcpListener;

use crate::receiver::{Fault, KEY, receiver};

fn keys() -> Keys {
    Keys::single(Secret::new(KEY)).unwrap()
}

/// A seller's hook, without the provisioning.
struct Complete;

impl ProvisioningHook for Complete {
    async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> {
        let made = Provisioned::new().app("https://app.example");
        Ok(made.admin("https://app.example/admin", "admin", "fake-password"))
    }

    async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> {
        Ok(Updated::new())
    }

    async fn expire(&self, _: ExpireCall) -> Result<(), HookError> {
        Ok(())
    }

    async fn release(&self, _: ReleaseCall) -> Result<(), HookError> {
        Ok(())
    }

    async fn upgrade(&self, _: UpgradeCall) -> Result<Updated, HookError> {
        Ok(Updated::new())
    }

    async fn refund_renew(&self, _: RefundRenewCall) -> Result<Updated, HookError> {
        Ok(Updated::new())
    }

    async fn sign_on(&self, _: SignOnCall) -> Result<SignedOn, HookError> {
        Ok(SignedOn::redirect("https://app.example/in?ticket=fake"))
    }

    async fn payment(&self, _: PaymentCall) -> Result<(), HookError> {
        Ok(())
    }
}

async fn daemon() -> (Daemon, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = Endpoint {
        name: "alibaba".into(),
        account: "alibaba".into(),
        dialect: dialect::alibaba(),
        keys: keys(),
        options: Options::default(),
    };
    let runner = Runner::new(vec![NamedHook::new("complete", AnyHook::new(Complete))], Vec::new()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = folder.path().join("spid.db");
    let options = DaemonOptions::new(store, vec![("/spi".to_owned(), endpoint)], runner);
    (Daemon::start(listener, None, options).await.unwrap(), folder)
}

/// Patient with a slow machine, but not with a receiver that says "call again" forever.
fn suite(url: &str) -> Suite {
    let mut suite = Suite::new(url.parse().unwrap(), keys());
    suite.within = Duration::from_secs(60);
    suite.every = Duration::from_millis(5);
    suite.limit = 3;
    suite
}

async fn test(suite: &Suite) -> SelfTestReport {
    suite.run(&mut ()).await.unwrap()
}

fn failures_of(report: &SelfTestReport) -> String {
    let cases = report.cases.iter().filter(|case| case.verdict != Verdict::Passed);
    cases.map(|case| format!("{} {}: {}\n", case.id, case.verdict.as_str(), case.finding)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_daemon_passes_everything_and_again() {
    let (daemon, _folder) = daemon().await;
    let mut suite = suite(&format!("http://{}/spi", daemon.address()));
    suite.every = Duration::from_millis(100);
    suite.limit = 300;
    for _ in 0..2 {
        let report = test(&suite).await;
        assert!(report.passed, "{}", failures_of(&report));
        assert_eq!(report.cases.len(), cases().len());
        assert_eq!(report.left_behind, Vec::<String>::new());
    }
    for state in [spid_hook::instance::State::Active, spid_hook::instance::State::Frozen] {
        let filter = spid::internals::store::Filter { state: Some(state), limit: 10, ..Default::default() };
        assert!(daemon.store().reader().instances(&filter).unwrap().is_empty(), "{state} is left");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_receiver_without_a_fault_passes_everything() {
    let report = test(&suite(&receiver(Fault::None).await)).await;
    assert!(report.passed, "{}", failures_of(&report));
}

#[tokio::test]
async fn a_receiver_that_takes_its_time_passes_everything() {
    let report = test(&suite(&receiver(Fault::TakesItsTime).await)).await;
    assert!(report.passed, "{}", failures_of(&report));
}

/// A fault, and the only case for it.
const CAUGHT: [(Fault, &str); 70] = [
    (Fault::AlwaysZero, "create"),
    (Fault::SortsByValue, "token-order"),
    (Fault::DoesNotSort, "token-order"),
    (Fault::SignsEncoded, "token-decoded"),
    (Fault::AppendsBareKey, "token-key"),
    (Fault::WantsCapitals, "token-lower"),
    (Fault::ChecksNothing, "wrong-token"),
    (Fault::TakesItsTimeAndChecksNothing, "wrong-token"),
    (Fault::ForgivesMissing, "missing-token"),
    (Fault::ForgivesEmpty, "empty-token"),
    (Fault::ComparesHead, "token-end"),
    (Fault::ComparesPrefix, "token-short"),
    (Fault::IgnoresTail, "token-long"),
    (Fault::SignsKnownNamesOnly, "unknown-parameter"),
    (Fault::DropsEmpty, "empty-value"),
    (Fault::SortsWithoutCase, "capital-names"),
    (Fault::KeepsPlus, "space-plus"),
    (Fault::KeepsPercent20, "space-percent"),
    (Fault::TrustsLongTerms, "altered-expiry"),
    (Fault::ReadsLatin1, "utf8"),
    (Fault::NewIdPerRetry, "create-repeat"),
    (Fault::RacesOnCreate, "create-concurrent"),
    (Fault::OneIdForAll, "create-distinct"),
    (Fault::NoTrials, "create-trial"),
    (Fault::NoItems, "extra-items"),
    (Fault::TakesEmptyKey, "empty-key"),
    (Fault::TakesNullKey, "empty-key"),
    (Fault::NoSignOn, "sign-on"),
    (Fault::SignOnFailsWith200, "sign-on"),
    (Fault::SignOnIsEmpty, "sign-on"),
    (Fault::SignOnLeadsNowhere, "sign-on"),
    (Fault::ForgedSignOn, "sign-on-forged"),
    (Fault::StaleSignOn, "sign-on-stale"),
    (Fault::RenewsNot, "renew"),
    (Fault::RenewsOnce, "renew-repeat"),
    (Fault::UpgradesNot, "upgrade"),
    (Fault::ExpiresNot, "expire"),
    (Fault::ExpiresOnce, "expire-repeat"),
    (Fault::ExpiresOncePerLife, "expire-again"),
    (Fault::ReleasesNot, "release"),
    (Fault::ReleasesOnce, "release-repeat"),
    (Fault::Slow, "answer-time"),
    (Fault::NoApp, "app-info"),
    (Fault::NumberIds, "id-is-text"),
    (Fault::OwnIds, "id-is-order"),
    (Fault::SuccessAsText, "success-is-boolean"),
    (Fault::FailsAsText, "success-is-boolean"),
    (Fault::TextHtml, "json-type"),
    (Fault::RefusesWith200, "refusal-status"),
    (Fault::SplitsAmpersands, "ampersand"),
    (Fault::NoImages, "image"),
    (Fault::NeedsTerm, "arrears"),
    (Fault::NoRefundRenew, "refund-renew"),
    (Fault::RefundsNot, "refund-release"),
    (Fault::PaysAsText, "order-pay"),
    (Fault::PaysNot, "order-pay"),
    (Fault::NeedsOrderToUpgrade, "intl-upgrade"),
    (Fault::NeedsIsRefund, "intl-release"),
    (Fault::RenewsUnknown, "renew-unknown"),
    (Fault::RenewsReleased, "renew-released"),
    (Fault::Resurrects, "late-create"),
    (Fault::FallsOverCapitals, "token-upper"),
    (Fault::TakesUnsigned, "unsigned-parameter"),
    (Fault::TakesLast, "duplicate-before"),
    (Fault::TakesFirst, "duplicate-behind"),
    (Fault::TrustsHidden, "hidden-parameter"),
    (Fault::FallsOverBroken, "broken-encoding"),
    (Fault::AnythingGoes, "unknown-action"),
    (Fault::GetOnly, "post-form"),
    (Fault::SignOnTwice, "sign-on-once"),
];

#[test]
fn every_case_has_its_fault() {
    let caught: BTreeSet<&str> = CAUGHT.iter().map(|(_, case)| *case).collect();
    let all: BTreeSet<&str> = cases().iter().map(|case| case.id).collect();
    assert_eq!(caught, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_fails_the_case_made_for_it_and_no_other() {
    let mut tasks = tokio::task::JoinSet::new();
    for (fault, case) in CAUGHT {
        tasks.spawn(async move {
            let mut suite = suite(&receiver(fault).await);
            if fault == Fault::Slow {
                suite.within = Duration::from_secs(2);
            }
            let mut report = test(&suite).await;
            // A loaded machine may keep the two requests apart for longer than this receiver thinks.
            for _ in 0..3 {
                if fault == Fault::RacesOnCreate && report.passed {
                    report = test(&suite).await;
                }
            }
            let right = report.ids(Verdict::Failed) == [case];
            (!right).then(|| format!("{fault:?} is for {case}:\n{}\n", failures_of(&report)))
        });
    }
    let wrong: String = tasks.join_all().await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn nothing_that_was_sent_can_be_sent_again_by_a_reader_of_the_report() {
    let report = test(&suite(&receiver(Fault::None).await)).await;
    let text = serde_json::to_string(&report).unwrap();
    assert!(!text.contains(KEY) && !text.contains("fake-password") && !text.contains("ticket=fake"));
    let digits = |part: &str| part.bytes().take_while(u8::is_ascii_hexdigit).count();
    assert!(text.split("token=").skip(1).all(|rest| digits(rest) < 2 && rest.starts_with("<token>")));
}

/// Receivers print too much: a warning before the JSON, or the token they expected.
#[tokio::test]
async fn what_a_receiver_blurts_out_is_not_in_the_report() {
    let report = test(&suite(&receiver(Fault::Chatters).await)).await;
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.contains("Warning: in spi.php") && text.contains("should have been <token>"), "{text}");
    let digests = text.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 32);
    assert_eq!(digests.collect::<Vec<_>>(), Vec::<&str>::new());
    for secret in ["fake-password", "fake-page"] {
        assert!(!text.contains(secret), "{secret}");
    }
}

/// Ctrl-C during the run: the instances are released.
#[tokio::test]
async fn a_judgement_that_is_stopped_gives_back_what_it_bought() {
    let suite = suite(&receiver(Fault::None).await);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let stop_it = async move { stopped.await.unwrap() };
    let report = suite.run_until(stop_it, &mut StopsAt("renew", Some(stop))).await.unwrap();
    assert_eq!((report.stopped, report.passed, report.left_behind.len()), (true, false, 0));
    let judged: Vec<&str> = report.cases.iter().map(|case| case.id).collect();
    assert!(judged.contains(&"app-info") && !judged.contains(&"renew"), "{judged:?}");
}

/// The stop comes while a purchase is on its way: the endpoint has created the instance, and nobody has heard its id.
#[tokio::test]
async fn a_stop_gives_back_what_is_on_its_way() {
    let (url, sales) = crate::receiver::counted(Fault::HoldsTheFifth).await;
    let report = suite(&url).run_until(sales.bought(5), &mut ()).await.unwrap();
    assert_eq!((report.stopped, report.left_behind.len()), (true, 0));
    assert_eq!(sales.unreleased(), Vec::<String>::new());
}

struct StopsAt(&'static str, Option<tokio::sync::oneshot::Sender<()>>);

impl SuiteObserver for StopsAt {
    fn case_started(&mut self, case: &Case) {
        if case.id == self.0 {
            self.1.take().unwrap().send(()).unwrap();
        }
    }
}

#[tokio::test]
async fn one_case_is_judged_with_what_it_needs() {
    let mut suite = suite(&receiver(Fault::ComparesPrefix).await);
    suite.only = BTreeSet::from(["token-short".to_owned()]);
    let report = test(&suite).await;
    let ids: Vec<&str> = report.cases.iter().map(|case| case.id).collect();
    assert_eq!(ids, ["create", "wrong-token", "token-end", "token-short"]);
    assert_eq!(report.ids(Verdict::Failed), ["token-short"]);
    suite.level = Level::Must;
    suite.only.clear();
    let report = test(&suite).await;
    assert!(report.cases.iter().all(|case| case.level == Level::Must));
}

#[tokio::test]
async fn a_key_that_is_another_one_fails_the_first_case_and_judges_no_other() {
    let mut suite = suite(&receiver(Fault::None).await);
    suite.keys = Keys::single(Secret::new("another-fake-key")).unwrap();
    let report = test(&suite).await;
    assert_eq!(report.ids(Verdict::Failed), ["create"]);
    assert_eq!(report.ids(Verdict::Passed), Vec::<&str>::new());
    let finding = report.cases[0].finding.to_string();
    assert!(finding.contains("spid verify"), "{finding}");
}

/// The official sample as shipped has no key, and so accepts forged orders.
#[tokio::test]
async fn an_endpoint_without_a_key_is_told_so() {
    let report = test(&suite(&receiver(Fault::HasNoKey).await)).await;
    assert_eq!(report.ids(Verdict::Failed), ["create"]);
    let finding = report.cases[0].finding.to_string();
    let says =
        "a purchase that was signed with an empty key was answered with an id: anyone can forge orders";
    assert_eq!(finding, says);
    assert_eq!(report.left_behind.len(), 1, "what it bought without a valid key it cannot give back");
}

#[tokio::test]
async fn nobody_there_is_no_judgement() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/spi", listener.local_addr().unwrap());
    drop(listener);
    let error = suite(&url).run(&mut ()).await.unwrap_err();
    assert!(matches!(&error, SuiteError::NoAnswer { .. }), "{error}");
}

/// Runs the command with `url` to its end, and returns the exit code, stdout and stderr.
async fn command(url: &str, folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    std::fs::write(folder.join("key"), KEY).unwrap();
    let mut spid = std::process::Command::new(env!("CARGO_BIN_EXE_spid"));
    spid.args(["conformance", "--to", url, "--key-file", "key"]).args(arguments).current_dir(folder);
    let output = tokio::task::spawn_blocking(move || spid.output().unwrap()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_tells_reports_and_exits() {
    let folder = tempfile::tempdir().unwrap();
    let url = receiver(Fault::ComparesPrefix).await;
    let files = ["--report", "r.md", "--report", "r.html", "--junit", "r.xml"];
    let (code, told, complaint) = command(&url, folder.path(), &files).await;
    assert_eq!(code, 1, "{told}{complaint}");
    assert!(complaint.ends_with("error: 1 case failed\n"), "{complaint}");
    assert!(told.contains("failed  must       token-short"), "{told}");
    assert!(told.contains("-> GET /spi?action=createInstance&") && told.contains("token=<token>"), "{told}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    for text in [&told, &complaint, &read("r.md"), &read("r.html"), &read("r.xml")] {
        assert!(!text.contains(KEY) && !text.contains("fake-password"), "{text}");
    }
    assert!(read("r.md").contains("## Failed: `token-short`"));
    assert!(read("r.html").to_lowercase().starts_with("<!doctype html>"));
    assert!(read("r.xml").contains("tests=\"62\" failures=\"1\" skipped=\"0\""), "{}", read("r.xml"));
    let nowhere = ["--level", "must", "--only", "create", "--report", "no-such-folder/r.md"];
    let (code, told, complaint) = command(&url, folder.path(), &nowhere).await;
    assert_eq!(code, 74, "{complaint}");
    assert!(
        told.contains("1 passed") && complaint.contains("no-such-folder/r.md cannot be written"),
        "{told}"
    );
    let (code, told, _) =
        command(&url, folder.path(), &["--level", "must", "--only", "renew", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, report["passed"].as_bool()), (0, Some(true)));
    assert_eq!(report["cases"][0]["exchanges"][0]["method"], "GET");
}

/// A build server that ends the command: the instances are released, and the reports are written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_terminated_gives_back_what_it_bought_and_reports() {
    for signal in ["TERM", "HUP", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let (url, asked) = crate::receiver::counted(Fault::None).await;
        std::fs::write(folder.path().join("key"), KEY).unwrap();
        let mut spid = tokio::process::Command::new(env!("CARGO_BIN_EXE_spid"));
        spid.args(["conformance", "--to", &url, "--key-file", "key", "--report", "r.md"]);
        spid.current_dir(folder.path())
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let spid = spid.spawn().unwrap();
        let id = spid.id().unwrap().to_string();
        asked.bought(4).await;
        let kill = ["-s", signal, &id];
        assert!(std::process::Command::new("kill").args(kill).status().unwrap().success());
        let output = spid.wait_with_output().await.unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{signal}: {complaint}");
        assert!(complaint.contains("error: interrupted: only "), "{complaint}");
        let report = std::fs::read_to_string(folder.path().join("r.md")).unwrap();
        assert!(report.contains("stopped before its end"), "{report}");
        assert_eq!(asked.unreleased(), Vec::<String>::new(), "{signal}");
    }
}

#[tokio::test]
async fn the_command_refuses_what_it_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = "http://127.0.0.1:9/spi";
    for (url, arguments, code, says) in [
        ("http://192.0.2.1/spi", &[][..], 64, "add --yes"),
        (nobody, &["--only", "nonsense"], 64, "unknown case `nonsense`"),
        (nobody, &["--report", "r.pdf"], 64, ".md or .html"),
        (nobody, &["--timezone", "Mars/Olympus"], 64, "not a time zone"),
        (nobody, &[], 69, "no answer from"),
    ] {
        let (exit, _, complaint) = command(url, folder.path(), arguments).await;
        assert_eq!(exit, code, "{complaint}");
        assert!(complaint.contains(says), "{complaint}");
    }
}

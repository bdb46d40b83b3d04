//! Helpers for the tests of hooks: an instance, and calls about it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use spid::hook::{Call, CallFacts};
use spid::internals::hooks::runner::{NamedHook, Runner};
use spid_hook::AttemptResult;
use spid_hook::callback::{Action, Answer, Callback};
use spid_hook::instance::{Instance, State};

/// A secret that must not be in any log or error.
pub(crate) const CANARY: &str = "fake-canary-password";

pub(crate) fn instance() -> Instance {
    Instance {
        id: None,
        order_biz_id: Some("biz-1".into()),
        state: State::Pending,
        account: "acme".into(),
        endpoint: "alibaba-cn".into(),
        buyer: Some("10001".into()),
        product: Some("cmgj000001".into()),
        sku: Some("basic".into()),
        order_id: Some("order-1".into()),
        trial: Some(false),
        expires_on: None,
        expires_on_raw: None,
        items: BTreeMap::new(),
        began: false,
        tombstone: false,
        adopted: false,
        converted: false,
        claimed_at: None,
        tenant: None,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

pub(crate) fn call_for(callback: &Callback, instance: &Instance, key: &str) -> Call {
    Call::new(CallFacts {
        callback,
        instance: Some(instance),
        idempotency_key: key.into(),
        attempt: 3,
        deadline: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        account: "acme",
        endpoint: "alibaba-cn",
        dashscope_euid: None,
    })
    .unwrap()
}

pub(crate) fn call(action: Action) -> Call {
    call_for(&Callback::new(action, "x"), &instance(), "key-1")
}

pub(crate) async fn run_hook(hook: NamedHook, call: Call) -> AttemptResult {
    Runner::new(vec![hook], Vec::new()).unwrap().run(call).await
}

pub(crate) fn done() -> AttemptResult {
    AttemptResult::Done(Answer::default())
}

pub(crate) fn retry(error: &str) -> AttemptResult {
    AttemptResult::Retry { error: error.into(), after: None }
}

pub(crate) fn refused(reason: &str) -> AttemptResult {
    AttemptResult::Refused { reason: reason.into() }
}

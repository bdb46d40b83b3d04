//! Running the seller's hook: a program, an HTTP service or the author's own code.

pub mod exec;
pub mod http;
pub mod log;
pub mod orphaned_hooks;
pub mod runner;

/// Call for an instance, as the tests of this room send it.
#[cfg(test)]
fn a_call(action: spid_hook::callback::Action) -> spid_hook::Call {
    use jiff::Timestamp;
    use spid_hook::callback::Callback;
    use spid_hook::{Call, CallFacts, Instance};

    let callback = Callback::new(action, "x");
    let mut instance = Instance::pending(&callback, "acme", "alibaba-cn", Timestamp::UNIX_EPOCH);
    instance.id = Some("i-1".into());
    Call::new(CallFacts {
        callback: &callback,
        instance: Some(&instance),
        idempotency_key: "key-1".into(),
        attempt: 1,
        deadline: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        account: "acme",
        endpoint: "alibaba-cn",
        dashscope_euid: None,
    })
    .unwrap()
}

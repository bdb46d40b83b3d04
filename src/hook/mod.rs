//! The ISV's own code: what it is told, what it may answer, and how it is kept from doing harm.
//!
//! There is one contract in three forms: a Rust trait ([`ProvisioningHook`]), an executable
//! ([`exec`]) and an HTTP endpoint ([`http`]). All three get the same [`Call`] and give the same answer, so
//! that a seller can begin with a shell script and end with a service without learning anything
//! new. [`runner`] chooses the hook, bounds its time and its number, and survives its panics.
//!
//! A hook is run **at least once** for what the marketplace asked: after a crash or a timeout the
//! same call comes again with the same `idempotency_key`. A hook that remembers the keys it has
//! seen, or whose work can be repeated without harm, is all that is needed for "exactly once".
//!
//! ```
//! use spid::hook::{
//!     CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated,
//! };
//!
//! struct MyHook;
//!
//! impl ProvisioningHook for MyHook {
//!     async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
//!         let seats: u32 = call.items.get("seats").map_or("1", String::as_str).parse()?; // an error is a retry
//!         if seats > 500 {
//!             return Err(HookError::refuse("more seats than one installation can have"));
//!         }
//!         Ok(Provisioned::new().id("tenant-1").app("https://tenant-1.app.example"))
//!     }
//!     async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> {
//!         Ok(Updated::new())
//!     }
//!     async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> {
//!         Ok(())
//!     }
//!     async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> {
//!         Ok(())
//!     }
//! }
//! ```
//!
//! What a call carries is typed: previous and next values, the differences of the billed quantities, and for a
//! product that calls Alibaba's Model Studio the header that says for whom.
//!
//! ```
//! use spid::hook::{HookError, UpgradeCall, Updated};
//!
//! async fn upgrade(call: UpgradeCall) -> Result<Updated, HookError> {
//!     if call.sku != call.previous_sku {
//!         // another edition
//!     }
//!     for (name, change) in &call.changes {
//!         let (from, to) = (change.from.as_deref(), change.to.as_deref()); // "seats": from "5" to "9"
//!         println!("{name}: {from:?} -> {to:?}; from now on {:?}", call.items);
//!     }
//!     if let Some(euid) = &call.context.dashscope_euid {
//!         // keep it with the tenant, and send it as `x-dashscope-euid` with every call of a model
//!         println!("{euid}");
//!     }
//!     Ok(Updated::new())
//! }
//! ```

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::hook::callback::Answer;

pub mod answer;
pub(crate) mod call;
pub mod callback;
pub mod clock;
pub mod json;
pub mod schema;
pub mod testing;
pub mod text;
pub mod trace;

pub use answer::{HostField, Provisioned, Reply, SignedOn, Updated};
pub use call::{
    Call, CallFacts, Change, Context, CreateCall, ExpireCall, NoInstance, OtherCall, PaymentCall,
    RefundRenewCall, ReleaseCall, RenewCall, SCHEMA, SignOnCall, Subject, UpgradeCall,
};

/// Reads an answer in the JSON of the `exec` and `http` hooks: what a person types in for work that was
/// done by hand.
///
/// # Errors
/// What is wrong with it, never a value of it.
pub fn read_answer(text: &[u8]) -> Result<Answer, String> {
    let said = answer::Said::read(text).map_err(|error| error.to_string())?;
    match (said.pending, said.refuse) {
        (None, None) => Ok(said.answer),
        _ => Err("an answer that is `pending` or a `refuse` completes nothing".to_owned()),
    }
}

/// What an author implements.
///
/// Write `async fn`; the trait says `impl Future + Send` only because the daemon moves the work
/// between threads. The four methods every product needs are required; the others are refused as
/// unsupported until they are written, and the daemon alerts when a marketplace asks for one.
///
/// What a call asks may already have been done by an earlier attempt: answer as if it had been
/// done now. The future is dropped at its deadline, at any `await`.
pub trait ProvisioningHook: Send + Sync + 'static {
    /// Make what was bought. Called again with the same key, it returns the same instance.
    fn create(&self, call: CreateCall) -> impl Future<Output = Result<Provisioned, HookError>> + Send;

    /// Extend the term, and thaw what is frozen.
    fn renew(&self, call: RenewCall) -> impl Future<Output = Result<Updated, HookError>> + Send;

    /// Take away the use and keep the data: the term ended or arrears stand.
    fn expire(&self, call: ExpireCall) -> impl Future<Output = Result<(), HookError>> + Send;

    /// Give everything up for good. There may be nothing: see [`ReleaseCall::maybe_provisioned`].
    fn release(&self, call: ReleaseCall) -> impl Future<Output = Result<(), HookError>> + Send;

    /// Change the SKU or the billed quantities. The expiry stays.
    fn upgrade(&self, _call: UpgradeCall) -> impl Future<Output = Result<Updated, HookError>> + Send {
        unsupported("upgrade")
    }

    /// Take a renewal back: the only call that may shorten the term.
    fn refund_renew(
        &self,
        _call: RefundRenewCall,
    ) -> impl Future<Output = Result<Updated, HookError>> + Send {
        unsupported("refund-renew")
    }

    /// Say where the buyer's browser is to go, with a one-time ticket of yours in the URL.
    fn sign_on(&self, _call: SignOnCall) -> impl Future<Output = Result<SignedOn, HookError>> + Send {
        unsupported("sign-on")
    }

    /// Take note that an order was paid. Nothing is to be made yet.
    fn payment(&self, _call: PaymentCall) -> impl Future<Output = Result<(), HookError>> + Send {
        unsupported("payment")
    }

    /// Anything the dialect passes on unread; the answer is free JSON.
    fn other(&self, _call: OtherCall) -> impl Future<Output = Result<Reply, HookError>> + Send {
        unsupported("this action")
    }
}

fn unsupported<T: Send>(what: &str) -> std::future::Ready<Result<T, HookError>> {
    std::future::ready(Err(HookError::unsupported(what)))
}

/// Why a hook did not do what was asked, and what is to happen now.
///
/// It is deliberately no [`std::error::Error`], so that `?` turns every ordinary error into a
/// retry. The text is kept, logged and shown to operators; a refusal's is shown to the marketplace
/// too. Put no secret in it.
///
/// ```
/// use std::error::Error;
/// use spid::hook::{CreateCall, HookError, HookErrorKind, Provisioned};
///
/// fn make_tenant(name: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
///     Ok(format!("https://{name}.app.example"))
/// }
///
/// async fn create(call: CreateCall) -> Result<Provisioned, HookError> {
///     let seats: u32 = call.items.get("seats").map_or("1", String::as_str).parse()?; // any error: try again
///     if seats > 500 {
///         return Err(HookError::refuse("more than 500 seats are not sold here")); // never
///     }
///     if seats > 100 {
///         return Err(HookError::pending("sales approves more than 100 seats")); // a person finishes it
///     }
///     let name = call.instance.order_biz_id.ok_or("an order without a name")?; // a text will do, too
///     Ok(Provisioned::new().app(make_tenant(&name)?)) // so will a box
/// }
///
/// let retry = HookError::from("the database is away");
/// assert_eq!(retry.kind(), HookErrorKind::Retry { after: None });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookError {
    kind: HookErrorKind,
    message: String,
}

/// What is to happen after a [`HookError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookErrorKind {
    /// Try again, by the retry schedule unless the hook named a delay.
    Retry {
        /// The delay the hook asked for.
        after: Option<Duration>,
    },
    /// Try again in the same way; and as it looks like a mistake in how the hook is set up, which
    /// goes away by nobody's waiting, somebody is alerted.
    Misconfigured {
        /// The delay the hook asked for.
        after: Option<Duration>,
    },
    /// Do not try again: it will not be done.
    Refuse,
    /// Accepted; somebody completes it later by hand or through the admin API.
    Pending,
    /// The hook does not know the action. A refusal, and somebody is alerted.
    Unsupported,
}

impl HookError {
    /// It may work later: try again by the schedule.
    pub fn retry(message: impl Into<String>) -> HookError {
        HookError { kind: HookErrorKind::Retry { after: None }, message: message.into() }
    }

    /// It may work after this delay. Clamped to [`crate::limits::RETRY_AFTER_MAX_S`].
    pub fn retry_after(message: impl Into<String>, after: Duration) -> HookError {
        HookError { kind: HookErrorKind::Retry { after: Some(after) }, message: message.into() }
    }

    /// The way to whatever does the work is set up wrongly: try again, and alert somebody.
    pub fn misconfigured(message: impl Into<String>) -> HookError {
        HookError { kind: HookErrorKind::Misconfigured { after: None }, message: message.into() }
    }

    /// It will never be done. The marketplace's staff may read the reason.
    pub fn refuse(reason: impl Into<String>) -> HookError {
        HookError { kind: HookErrorKind::Refuse, message: reason.into() }
    }

    /// It is accepted and will be completed later, by `spid instances complete`. For short manual
    /// approvals: the marketplace goes on spending its tries.
    pub fn pending(note: impl Into<String>) -> HookError {
        HookError { kind: HookErrorKind::Pending, message: note.into() }
    }

    /// An error of this kind.
    #[doc(hidden)]
    pub fn new(kind: HookErrorKind, message: impl Into<String>) -> HookError {
        HookError { kind, message: message.into() }
    }

    /// The hook does not do `what`.
    pub fn unsupported(what: impl fmt::Display) -> HookError {
        HookError { kind: HookErrorKind::Unsupported, message: format!("the hook does not support {what}") }
    }

    /// What is to happen now.
    pub fn kind(&self) -> HookErrorKind {
        self.kind
    }

    /// The error, the reason or the note.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// So that `?` works on whatever says what went wrong: every [`Error`], `Box<dyn Error + Send + Sync>`, the
/// boxes of the error crates, and a mere text. It may work later, so it is a retry.
impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HookError {
    fn from(error: E) -> HookError {
        let error = error.into();
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        HookError::retry(message)
    }
}

/// The future of a hook's answer.
type Answering = Pin<Box<dyn Future<Output = Result<Answer, HookError>> + Send>>;

/// A hook of any kind. Clones share it.
#[derive(Clone)]
pub struct AnyHook(Arc<dyn Fn(Call) -> Answering + Send + Sync>);

impl AnyHook {
    /// Wraps an author's hook.
    pub fn new(hook: impl ProvisioningHook) -> AnyHook {
        let hook = Arc::new(hook);
        AnyHook::from_fn(move |call| {
            let hook = hook.clone();
            async move { answer(&*hook, call).await }
        })
    }

    /// Wraps a function that treats every action alike: a program or a service that gets the call as JSON.
    #[doc(hidden)]
    pub fn from_fn<F>(function: impl Fn(Call) -> F + Send + Sync + 'static) -> AnyHook
    where
        F: Future<Output = Result<Answer, HookError>> + Send + 'static,
    {
        AnyHook(Arc::new(move |call| Box::pin(function(call))))
    }

    /// Runs one call.
    ///
    /// # Errors
    /// The hook's own [`HookError`].
    pub async fn answer(&self, call: Call) -> Result<Answer, HookError> {
        (self.0)(call).await
    }
}

impl<H: ProvisioningHook> From<H> for AnyHook {
    fn from(hook: H) -> AnyHook {
        AnyHook::new(hook)
    }
}

impl fmt::Debug for AnyHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyHook")
    }
}

/// Calls the method of the trait that the call is for.
async fn answer(hook: &impl ProvisioningHook, call: Call) -> Result<Answer, HookError> {
    Ok(match call {
        Call::Create(call) => hook.create(*call).await?.into(),
        Call::Renew(call) => hook.renew(*call).await?.into(),
        Call::RefundRenew(call) => hook.refund_renew(*call).await?.into(),
        Call::Upgrade(call) => hook.upgrade(*call).await?.into(),
        Call::Expire(call) => hook.expire(*call).await.map(|()| Answer::default())?,
        Call::Release(call) => hook.release(*call).await.map(|()| Answer::default())?,
        Call::SignOn(call) => hook.sign_on(*call).await?.into(),
        Call::Payment(call) => hook.payment(*call).await.map(|()| Answer::default())?,
        Call::Other(call) => hook.other(*call).await?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u32, HookError> {
        Ok(text.parse::<u32>()?)
    }

    #[test]
    fn an_ordinary_error_is_a_retry() {
        let error = parse("seven").unwrap_err();
        assert_eq!(error.kind(), HookErrorKind::Retry { after: None });
        assert_eq!(error.message(), "invalid digit found in string");
    }

    #[test]
    fn a_box_of_an_error_and_a_text_are_a_retry_and_what_the_hook_says_itself_stays() {
        fn boxed() -> Result<(), Box<dyn Error + Send + Sync>> {
            Err(Box::new("x".parse::<u8>().unwrap_err()))
        }
        /// What the boxes of the error crates have in common: they turn into the standard one.
        struct Report(Box<dyn Error + Send + Sync>);
        impl From<Report> for Box<dyn Error + Send + Sync> {
            fn from(report: Report) -> Self {
                report.0
            }
        }
        let from = |work: &dyn Fn() -> Result<(), HookError>| work().unwrap_err();
        let retry = HookError::retry("invalid digit found in string");
        assert_eq!(from(&|| Ok(boxed()?)), retry);
        assert_eq!(from(&|| Ok(boxed().map_err(Report)?)), retry);
        assert_eq!(from(&|| Err("no room")?), HookError::retry("no room"));
        assert_eq!(
            from(&|| Ok(None.ok_or_else(|| format!("no {}", "tenant"))?)),
            HookError::retry("no tenant")
        );
        assert_eq!(from(&|| Err(HookError::refuse("no stock"))?), HookError::refuse("no stock"));
    }

    #[test]
    fn the_causes_of_an_error_are_told() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot make the database")]
        struct Outer(#[source] std::num::ParseIntError);
        let error = HookError::from(Outer("x".parse::<u8>().unwrap_err()));
        assert_eq!(error.message(), "cannot make the database: invalid digit found in string");
    }

    #[test]
    fn every_kind_has_its_constructor() {
        let after = Duration::from_secs(3);
        assert_eq!(HookError::retry_after("x", after).kind(), HookErrorKind::Retry { after: Some(after) });
        assert_eq!(HookError::misconfigured("x").kind(), HookErrorKind::Misconfigured { after: None });
        assert_eq!(HookError::refuse("x").kind(), HookErrorKind::Refuse);
        assert_eq!(HookError::pending("x").kind(), HookErrorKind::Pending);
        assert_eq!(HookError::unsupported("upgrade").message(), "the hook does not support upgrade");
    }
}

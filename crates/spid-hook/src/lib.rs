//! The interface to the seller's code: the trait, the calls, the answers and the test kit.
//!
//! The contract has three forms: a Rust trait ([`ProvisioningHook`]), an executable and an HTTP endpoint. All three get
//! the same [`Call`] and give the same answer. A seller can begin with a shell script and end with a service, and learns
//! only one contract. The daemon bounds the time and the concurrency of a hook, and catches its panics.
//!
//! spid runs a hook **at least once** for each request of the marketplace. After a crash or a timeout it sends
//! the same call again with the same `idempotency_key`. For "exactly once", a hook remembers the keys it has
//! seen, or does work that can be repeated without harm.
//!
//! ```
//! use spid_hook::{
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
//! A call is typed. It carries the previous and the next values and the differences of the billed quantities.
//! For a product that calls Alibaba's Model Studio it also carries the header that names the buyer.
//!
//! ```
//! use spid_hook::{HookError, UpgradeCall, Updated};
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

pub mod answer;
mod attempt_result;
mod call;
#[doc(hidden)]
pub mod callback;
mod exec;
#[cfg(feature = "http")]
pub mod http;
#[doc(hidden)]
pub mod id;
#[doc(hidden)]
pub mod instance;
#[doc(hidden)]
pub mod json;
#[doc(hidden)]
pub mod limits;
#[cfg(feature = "schema")]
pub mod schema;
mod secret;
pub mod testing;
#[doc(hidden)]
pub mod text;
#[doc(hidden)]
pub mod time;
#[doc(hidden)]
pub mod trace;
#[cfg(feature = "http")]
pub mod webhook;
mod words;

pub use answer::{HostField, Provisioned, Reply, SignedOn, Updated};
pub use attempt_result::AttemptResult;
pub use call::{
    Call, Change, Context, CreateCall, ExpireCall, OtherCall, PaymentCall, RefundRenewCall, ReleaseCall,
    RenewCall, SCHEMA, SignOnCall, UnreadableCall, UpgradeCall,
};
// Only spid builds calls from callbacks and routes them to hooks.
#[doc(hidden)]
pub use call::{CallFacts, NoInstance, Subject};
pub use callback::{Action, Answer, Expiry, Parameters};
pub use exec::{exec_main, exec_main_with};
#[cfg(feature = "http")]
pub use http::{HttpOptions, http_main, http_main_with};
pub use instance::{Instance, State};
pub use secret::Secret;

/// Reads an answer in the JSON of the `exec` and `http` hooks. `spid jobs complete --answer FILE` reads such a file for
/// work that was done by hand.
///
/// # Errors
/// The reason why the answer is invalid. The text never contains a value of the answer.
pub fn read_answer(text: &[u8]) -> Result<Answer, String> {
    let said = answer::ParsedAnswer::read(text).map_err(|error| error.to_string())?;
    match (said.pending, said.refuse) {
        (None, None) => Ok(said.answer),
        _ => {
            Err("an answer with `pending` or `refuse` does not complete a job; remove that member".to_owned())
        }
    }
}

/// Writes an answer in the JSON of the `exec` and `http` hooks, with its passwords. [`read_answer`] reads it.
///
/// ```
/// use spid_hook::{Provisioned, write_answer};
///
/// let made = Provisioned::new().id("tenant-1").admin("https://a.example", "root", "fake-password");
/// let json = write_answer(&made.into())?;
/// assert!(json.expose().contains("fake-password"));
/// assert_eq!(format!("{json:?}"), "Secret(***)");
/// # Ok::<(), String>(())
/// ```
///
/// # Errors
/// The body of the answer is not JSON. The text never contains a value of the answer.
pub fn write_answer(answer: &Answer) -> Result<Secret, String> {
    answer::write(answer)
}

/// Trait that a hook author implements.
///
/// Write `async fn`. The trait says `impl Future + Send` only because the daemon moves the work between
/// threads. The four methods that every product needs are required. The other methods return "unsupported"
/// until they are written, and the daemon raises an alert when a marketplace asks for one.
///
/// An earlier attempt may already have done the work of a call. Answer then as if this attempt had done it. At
/// its deadline the future is dropped, at any `await`.
pub trait ProvisioningHook: Send + Sync + 'static {
    /// Creates the instance that was bought. Called again with the same key, it returns the same instance.
    fn create(&self, call: CreateCall) -> impl Future<Output = Result<Provisioned, HookError>> + Send;

    /// Extends the term, and unfreezes a frozen instance.
    fn renew(&self, call: RenewCall) -> impl Future<Output = Result<Updated, HookError>> + Send;

    /// Stops the use and keeps the data: the term has ended, or the buyer is in arrears.
    fn expire(&self, call: ExpireCall) -> impl Future<Output = Result<(), HookError>> + Send;

    /// Deletes everything permanently. There may be nothing to delete: see [`ReleaseCall::maybe_provisioned`].
    fn release(&self, call: ReleaseCall) -> impl Future<Output = Result<(), HookError>> + Send;

    /// Changes the SKU or the billed quantities. The expiry stays.
    fn upgrade(&self, _call: UpgradeCall) -> impl Future<Output = Result<Updated, HookError>> + Send {
        unsupported("upgrade")
    }

    /// Reverses a renewal. This is the only call that may shorten the term.
    fn refund_renew(
        &self,
        _call: RefundRenewCall,
    ) -> impl Future<Output = Result<Updated, HookError>> + Send {
        unsupported("refund-renew")
    }

    /// Returns the URL to which the buyer's browser goes. The URL holds a one-time ticket of your own; see
    /// [`SignedOn::redirect`].
    fn sign_on(&self, _call: SignOnCall) -> impl Future<Output = Result<SignedOn, HookError>> + Send {
        unsupported("sign-on")
    }

    /// Takes note that an order was paid. Do not create anything yet.
    fn payment(&self, _call: PaymentCall) -> impl Future<Output = Result<(), HookError>> + Send {
        unsupported("payment")
    }

    /// Handles a request that the dialect passes on without interpreting it. The answer is free JSON.
    fn other(&self, _call: OtherCall) -> impl Future<Output = Result<Reply, HookError>> + Send {
        unsupported("this action")
    }
}

fn unsupported<T: Send>(what: &str) -> std::future::Ready<Result<T, HookError>> {
    std::future::ready(Err(HookError::unsupported(what)))
}

/// Error of a hook: the reason why the work was not done, and what spid does next.
///
/// This type deliberately does not implement [`std::error::Error`], so that `?` turns every ordinary error into
/// a retry. The text is stored, logged and shown to operators. The text of a refusal is also shown to the
/// marketplace. Put no secret in it.
///
/// ```
/// use std::error::Error;
/// use spid_hook::{CreateCall, HookError, HookErrorKind, Provisioned};
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

/// Reaction of spid to a [`HookError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookErrorKind {
    /// Try again, by the retry schedule or after the delay that the hook named.
    Retry {
        /// The delay that the hook asked for.
        after: Option<Duration>,
    },
    /// Try again in the same way, and raise an alert: the hook is probably configured wrongly, and waiting does
    /// not repair that.
    Misconfigured {
        /// The delay that the hook asked for.
        after: Option<Duration>,
    },
    /// Do not try again: the work will not be done.
    Refuse,
    /// Accepted. A person completes the work later, by hand or through the admin API.
    Pending,
    /// The hook does not know the action. This is a refusal, and spid raises an alert.
    Unsupported,
}

impl HookError {
    /// Creates an error that asks for a retry by the schedule: the work may succeed later.
    pub fn retry(message: impl Into<String>) -> HookError {
        HookError { kind: HookErrorKind::Retry { after: None }, message: message.into() }
    }

    /// Creates an error that asks for a retry after this delay, at most 8 hours.
    ///
    /// ```
    /// use std::time::Duration;
    /// use spid_hook::HookError;
    ///
    /// let error = HookError::retry_after("the cluster is upgraded until noon", Duration::from_secs(1800));
    /// assert_eq!(error.message(), "the cluster is upgraded until noon");
    /// ```
    pub fn retry_after(message: impl Into<String>, after: Duration) -> HookError {
        HookError { kind: HookErrorKind::Retry { after: Some(after) }, message: message.into() }
    }

    /// Creates an error for a wrong configuration of the hook: spid tries again and raises an alert.
    ///
    /// ```
    /// use spid_hook::HookError;
    ///
    /// fn api_key() -> Result<String, HookError> {
    ///     std::env::var("MY_API_KEY").map_err(|_| HookError::misconfigured("MY_API_KEY is not set"))
    /// }
    /// # let _ = api_key();
    /// ```
    pub fn misconfigured(message: impl Into<String>) -> HookError {
        HookError { kind: HookErrorKind::Misconfigured { after: None }, message: message.into() }
    }

    /// Creates a refusal: the work will never be done. The marketplace's staff may read the reason.
    pub fn refuse(reason: impl Into<String>) -> HookError {
        HookError { kind: HookErrorKind::Refuse, message: reason.into() }
    }

    /// Creates an error for accepted work that an operator completes later, with `spid instances complete`. Use it
    /// for short manual approvals: the marketplace calls again until the work is done, and gives up on the order after
    /// a number of calls (Alibaba: 120).
    ///
    /// ```
    /// use spid_hook::{CreateCall, HookError, Provisioned};
    ///
    /// async fn create(call: CreateCall) -> Result<Provisioned, HookError> {
    ///     match call.sku.as_deref() {
    ///         Some("enterprise") => Err(HookError::pending("sales signs the contract first")),
    ///         _ => Ok(Provisioned::new()),
    ///     }
    /// }
    /// ```
    pub fn pending(note: impl Into<String>) -> HookError {
        HookError { kind: HookErrorKind::Pending, message: note.into() }
    }

    /// An error of this kind.
    #[doc(hidden)]
    pub fn new(kind: HookErrorKind, message: impl Into<String>) -> HookError {
        HookError { kind, message: message.into() }
    }

    /// Creates a refusal: the hook does not support `what`.
    pub fn unsupported(what: impl fmt::Display) -> HookError {
        HookError { kind: HookErrorKind::Unsupported, message: format!("the hook does not support {what}") }
    }

    /// Returns the reaction that spid shows to this error.
    pub fn kind(&self) -> HookErrorKind {
        self.kind
    }

    /// Returns the text of the error, the reason of a refusal, or the note of pending work.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Conversion for `?`: accepts every [`Error`], `Box<dyn Error + Send + Sync>`, the boxes of the error crates,
/// and a plain text. The result is a retry, because the work may succeed later.
impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HookError {
    fn from(error: E) -> HookError {
        let error = error.into();
        // Append the causes: an outer error alone ("cannot connect") rarely names the reason.
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
    /// ```
    /// # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
    /// # struct MyHook;
    /// # impl ProvisioningHook for MyHook {
    /// #     async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new().id("tenant-1")) }
    /// #     async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
    /// #     async fn expire(&self, _: ExpireCall) -> Result<(), HookError> { Ok(()) }
    /// #     async fn release(&self, _: ReleaseCall) -> Result<(), HookError> { Ok(()) }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), HookError> {
    /// use spid_hook::{Action, AnyHook, testing};
    ///
    /// let answer = AnyHook::new(MyHook).answer(testing::call(Action::Create)).await?;
    /// assert_eq!(answer.instance_id.as_deref(), Some("tenant-1"));
    /// # Ok(())
    /// # }
    /// ```
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
        /// Model of the error crates' boxes: a type that converts into the standard boxed error.
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

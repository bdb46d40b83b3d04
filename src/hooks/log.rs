//! The `log` hook: it provisions nothing and logs what it was asked to do.
//!
//! Use it on the first day, with `--dev`, and for test buyers whose orders must take the whole path but change
//! nothing. It logs ids and the action, and never a parameter, because parameters hold text that buyers typed.

use spid_hook::callback::Action;
use spid_hook::instance::Instance;
use spid_hook::{
    Context, CreateCall, ExpireCall, HookError, OtherCall, PaymentCall, Provisioned, ProvisioningHook,
    RefundRenewCall, ReleaseCall, RenewCall, Reply, SignOnCall, SignedOn, Updated, UpgradeCall,
};

/// Hook that logs every call and answers success.
///
/// It refuses only a sign-on, because there is no application to send a browser to.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogHook;

/// Logs one call: ids and the action only.
fn note(action: Action, context: &Context, instance: Option<&Instance>) {
    let id = instance.and_then(|it| it.id.as_deref().or(it.order_biz_id.as_deref()));
    tracing::info!(
        target: "spid::hook",
        action = action.as_str(),
        instance = id,
        endpoint = context.endpoint,
        order_id = context.order_id,
        idempotency_key = context.idempotency_key,
        attempt = context.attempt,
        "the log hook provisions nothing and reports success"
    );
}

impl ProvisioningHook for LogHook {
    async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
        note(Action::Create, &call.context, Some(&call.instance));
        Ok(Provisioned::new())
    }

    async fn renew(&self, call: RenewCall) -> Result<Updated, HookError> {
        note(Action::Renew, &call.context, Some(&call.instance));
        Ok(Updated::new())
    }

    async fn expire(&self, call: ExpireCall) -> Result<(), HookError> {
        note(Action::Expire, &call.context, Some(&call.instance));
        Ok(())
    }

    async fn release(&self, call: ReleaseCall) -> Result<(), HookError> {
        note(Action::Release, &call.context, Some(&call.instance));
        Ok(())
    }

    async fn upgrade(&self, call: UpgradeCall) -> Result<Updated, HookError> {
        note(Action::Upgrade, &call.context, Some(&call.instance));
        Ok(Updated::new())
    }

    async fn refund_renew(&self, call: RefundRenewCall) -> Result<Updated, HookError> {
        note(Action::RefundRenew, &call.context, Some(&call.instance));
        Ok(Updated::new())
    }

    async fn sign_on(&self, _call: SignOnCall) -> Result<SignedOn, HookError> {
        Err(HookError::refuse("the log hook has no application to sign on to"))
    }

    async fn payment(&self, call: PaymentCall) -> Result<(), HookError> {
        note(Action::Payment, &call.context, call.instance.as_ref());
        Ok(())
    }

    async fn other(&self, call: OtherCall) -> Result<Reply, HookError> {
        note(Action::Other, &call.context, call.instance.as_ref());
        Ok(Reply::json(serde_json::json!({ "success": true })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spid_hook::testing;
    use spid_hook::{AnyHook, HookErrorKind};

    #[tokio::test]
    async fn everything_succeeds_but_a_sign_on() {
        let hook = AnyHook::new(LogHook);
        for action in Action::ALL {
            let call = testing::call(action);
            match hook.answer(call).await {
                Ok(answer) => assert_eq!(answer.instance_id, None, "{action}"),
                Err(error) => {
                    assert_eq!((action, error.kind()), (Action::SignOn, HookErrorKind::Refuse));
                }
            }
        }
    }
}

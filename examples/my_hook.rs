//! Provisioning hook in Rust: one folder per customer, with spid in the same program.
//!
//! The program has the complete command line: try `cargo run --example my_hook -- serve --dev`, or `… -- demo`.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use spid::hook::{
    CreateCall, ExpireCall, HookError, Instance, Provisioned, ProvisioningHook, RefundRenewCall, ReleaseCall,
    RenewCall, SignOnCall, SignedOn, State, Updated, UpgradeCall,
};

struct MyHook {
    root: PathBuf,
}

impl MyHook {
    fn folder(&self, instance: &Instance) -> Result<PathBuf, HookError> {
        let name = instance
            .order_biz_id
            .as_deref()
            .ok_or(HookError::refuse("the instance has no orderBizId, so it has no folder"))?;
        // An empty name would be the folder of all customers.
        if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(HookError::refuse("the orderBizId is not usable as a folder name"));
        }
        Ok(self.root.join(name))
    }

    fn set_state(&self, instance: &Instance, state: &str) -> Result<(), HookError> {
        let folder = self.folder(instance)?;
        std::fs::create_dir_all(&folder)?; // any error is a retry, and doing it twice does no harm
        std::fs::write(folder.join("state"), state)?;
        Ok(())
    }
}

impl ProvisioningHook for MyHook {
    async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
        self.set_state(&call.instance, "active")?;
        let name = call.instance.order_biz_id.unwrap_or_default();
        Ok(Provisioned::new().app(format!("https://{name}.app.example")).id(name))
    }

    async fn renew(&self, call: RenewCall) -> Result<Updated, HookError> {
        self.set_state(&call.instance, "active")?;
        Ok(Updated::new())
    }

    async fn upgrade(&self, call: UpgradeCall) -> Result<Updated, HookError> {
        let folder = self.folder(&call.instance)?;
        std::fs::write(folder.join("sku"), call.sku.unwrap_or_default())?; // `changes` has the differences
        Ok(Updated::new())
    }

    async fn refund_renew(&self, _call: RefundRenewCall) -> Result<Updated, HookError> {
        Ok(Updated::new()) // only the term changes, and spid keeps it
    }

    async fn sign_on(&self, call: SignOnCall) -> Result<SignedOn, HookError> {
        if call.instance.state != State::Active {
            return Err(HookError::refuse("the instance is frozen: renew it before signing on"));
        }
        // Your application accepts the ticket in this file and removes the file, so a ticket works only once.
        let file = self.folder(&call.instance)?.join(format!("ticket-{}", call.context.idempotency_key));
        let ticket = match std::fs::read_to_string(&file) {
            Ok(ticket) => ticket, // asked again, it is answered the same
            Err(_) => new_ticket()?,
        };
        std::fs::write(&file, &ticket)?;
        let name = call.instance.order_biz_id.unwrap_or_default();
        Ok(SignedOn::redirect(format!("https://{name}.app.example/login?ticket={ticket}")))
    }

    async fn expire(&self, call: ExpireCall) -> Result<(), HookError> {
        self.set_state(&call.instance, "frozen")
    }

    async fn release(&self, call: ReleaseCall) -> Result<(), HookError> {
        match std::fs::remove_dir_all(self.folder(&call.instance)?) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()), // nothing there is released already
        }
    }
}

fn new_ticket() -> Result<String, HookError> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn main() -> ExitCode {
    spid::run_with(MyHook { root: PathBuf::from("tenants") })
}

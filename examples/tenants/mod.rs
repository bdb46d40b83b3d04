//! The hook of `exec_main.rs` and `http_main.rs`: a folder for each customer.
//!
//! Nothing is remembered beside the folders. Each step looks first at what is there, so it can be repeated.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spid_hook::{
    CreateCall, ExpireCall, HookError, Instance, OtherCall, PaymentCall, Provisioned, ProvisioningHook,
    RefundRenewCall, ReleaseCall, RenewCall, Reply, SignOnCall, SignedOn, State, Updated, UpgradeCall,
};

/// One folder for each customer, in this folder.
pub(crate) struct Tenants {
    root: PathBuf,
}

impl Tenants {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Tenants {
        Tenants { root: root.into() }
    }

    /// The folder of an instance. The name comes from the marketplace, so it is checked.
    fn folder(&self, instance: &Instance) -> Result<PathBuf, HookError> {
        let name = instance.order_biz_id.as_deref().ok_or("an instance without a name")?;
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(HookError::refuse("the name of the instance cannot be a folder"));
        }
        Ok(self.root.join(name))
    }

    fn set(&self, instance: &Instance, file: &str, value: &str) -> Result<(), HookError> {
        let folder = self.folder(instance)?;
        std::fs::create_dir_all(&folder)?; // any error is a retry
        std::fs::write(folder.join(file), value)?;
        Ok(())
    }

    /// Asks for another attempt while the platform is in maintenance.
    fn is_open(&self) -> Result<(), HookError> {
        if !self.root.is_dir() {
            return Err(HookError::misconfigured(format!("{} is not a folder", self.root.display())));
        }
        if self.root.join("maintenance").exists() {
            return Err(HookError::retry_after("the platform is in maintenance", Duration::from_secs(1)));
        }
        Ok(())
    }
}

impl ProvisioningHook for Tenants {
    async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
        self.is_open()?;
        match call.sku.as_deref() {
            Some("discontinued") => return Err(HookError::refuse("this edition is not sold any more")),
            Some("enterprise") => return Err(HookError::pending("sales approves enterprise orders")),
            _ => {}
        }
        self.set(&call.instance, "state", "active")?;
        let folder = self.folder(&call.instance)?;
        let password = kept_secret(&folder.join("password"))?;
        let name = call.instance.order_biz_id.unwrap_or_default();
        let url = format!("https://{name}.app.example");
        let admin = format!("{url}/admin");
        Ok(Provisioned::new().id(name).app(url).admin(admin, "admin", password))
    }

    async fn renew(&self, call: RenewCall) -> Result<Updated, HookError> {
        self.set(&call.instance, "state", "active")?;
        Ok(Updated::new())
    }

    async fn refund_renew(&self, _call: RefundRenewCall) -> Result<Updated, HookError> {
        Ok(Updated::new()) // only the term changes, and spid keeps it
    }

    async fn upgrade(&self, call: UpgradeCall) -> Result<Updated, HookError> {
        self.set(&call.instance, "sku", call.sku.as_deref().unwrap_or_default())?;
        Ok(Updated::new())
    }

    async fn expire(&self, call: ExpireCall) -> Result<(), HookError> {
        self.set(&call.instance, "state", "frozen")
    }

    async fn release(&self, call: ReleaseCall) -> Result<(), HookError> {
        match std::fs::remove_dir_all(self.folder(&call.instance)?) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()), // nothing there is released already
        }
    }

    async fn sign_on(&self, call: SignOnCall) -> Result<SignedOn, HookError> {
        if call.instance.state != State::Active {
            return Err(HookError::refuse("the instance is not active"));
        }
        let folder = self.folder(&call.instance)?;
        std::fs::create_dir_all(&folder)?;
        // Your application accepts the ticket in this file and removes the file, so a ticket works only once.
        let ticket = kept_secret(&folder.join(format!("ticket-{}", call.context.idempotency_key)))?;
        let name = call.instance.order_biz_id.unwrap_or_default();
        Ok(SignedOn::redirect(format!("https://{name}.app.example/login?ticket={ticket}")))
    }

    async fn payment(&self, _call: PaymentCall) -> Result<(), HookError> {
        Ok(())
    }

    async fn other(&self, _call: OtherCall) -> Result<Reply, HookError> {
        Ok(Reply::json(serde_json::json!({"success": true})))
    }
}

/// The secret in a file that only its owner may read. The first call makes it; every further call returns the same.
fn kept_secret(file: &Path) -> Result<String, HookError> {
    match std::fs::read_to_string(file) {
        Ok(secret) => return Ok(secret),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    // Written whole or not at all: a killed attempt leaves no half of a secret behind.
    let new = file.with_extension("new");
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    out.write_all(secret.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(&new, file)?;
    Ok(secret)
}

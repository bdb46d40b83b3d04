//! Provisioning hook in Rust that sells PostgreSQL databases: one role and one database for each instance, with spid
//! in the same program.
//!
//! ```sh
//! psql -c 'CREATE ROLE provisioner LOGIN CREATEROLE CREATEDB' \
//!      -c 'CREATE DATABASE provisioning OWNER provisioner' \
//!      -c 'REVOKE ALL ON DATABASE provisioning, postgres, template1 FROM PUBLIC'
//! openssl rand -hex 32 > tenant-secret
//! export TENANTS_ADMIN='host=/run/postgresql user=provisioner dbname=provisioning'
//! export TENANTS_SECRET_FILE=tenant-secret
//! export TENANTS_AT=db.example.com:5432      # where buyers find it
//! cargo run --example postgres_tenant -- serve --dev
//! ```
//!
//! | asked | done |
//! |---|---|
//! | create | role and database, closed to everybody else; opened last |
//! | renew, expire | `LOGIN`, `NOLOGIN`; an expire also ends the sessions |
//! | upgrade | the connection limit of the SKU |
//! | release | both dropped |
//!
//! **The hook stores nothing.** Each step looks at what exists and creates what is missing, so an attempt repairs
//! what a killed one left incomplete. The password is derived from a secret and the instance's name: every attempt at
//! a create answers with the same password, and none is stored.
//!
//! **Attempts on the same instance never overlap.** A call holds an advisory lock of its instance for as long as its
//! session lives. A statement of a killed daemon continues to run in the server; its session holds the lock until the
//! statement has ended, and the next attempt begins after that. Advisory locks belong to one database, and every user
//! who may connect to it may take them. So the hook has a database of its own, closed to tenants. Connect to it
//! directly, not through a pooler that lends a session to others.
//!
//! **Ids are hostile**: they come from outside, may contain quotes, and may be longer than the 63 bytes that
//! PostgreSQL uses of a name, so two instances could share a database. For this reason the name of a tenant is a
//! digest.

use std::process::ExitCode;

use hmac::{Hmac, KeyInit, Mac};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_protocol::password::scram_sha_256;
use sha2::{Digest, Sha256};
use spid::hook::{
    CreateCall, ExpireCall, HookError, Instance, Provisioned, ProvisioningHook, RefundRenewCall, ReleaseCall,
    RenewCall, Secret, Updated, UpgradeCall,
};
use tokio_postgres::{Client, Config, NoTls};

/// Settings of a session. A session whose client vanished with its machine ends and releases the lock, too. Notices
/// about steps that were done before are not shown.
const SESSION: &str =
    "SET idle_session_timeout = '1min'; SET lock_timeout = '1min'; SET client_min_messages = warning";

struct Tenants {
    admin: Config,
    secret: Secret,
    /// Address of the server for buyers: `HOST:PORT`.
    at: String,
}

/// Instance as PostgreSQL sees it.
struct Tenant {
    /// Name of its role and its database.
    name: String,
    /// Name of the instance at the marketplace, for people.
    sold: String,
}

impl Tenant {
    fn of(instance: &Instance) -> Result<Tenant, HookError> {
        let order = instance
            .order_biz_id
            .as_deref()
            .ok_or(HookError::refuse("the instance has no orderBizId, so it has no tenant name"))?;
        // A NUL separates account and order because neither can contain one: different instances never get the same
        // digest.
        let digest = hex::encode(Sha256::digest(format!("{}\0{order}", instance.account)));
        let name = format!("tenant_{}", digest.get(..32).unwrap_or(&digest));
        Ok(Tenant { name, sold: format!("{}/{order}", instance.account) })
    }

    fn quoted(&self) -> String {
        escape_identifier(&self.name)
    }
}

/// Connection limit of a SKU. An order for an unknown SKU is paid, so it is not refused: it waits until an operator
/// has looked at it.
fn connections(sku: Option<&str>) -> Result<u32, HookError> {
    match sku {
        Some("basic") => Ok(5),
        Some("pro") => Ok(50),
        other => Err(HookError::misconfigured(format!("no connection limit is known for the SKU {other:?}"))),
    }
}

impl Tenants {
    fn from_environment() -> Result<Tenants, String> {
        let set = |name: &str| {
            let value = std::env::var_os(name).and_then(|value| value.into_string().ok());
            value.ok_or(format!("{name} is not set"))
        };
        let (admin, file, at) = (set("TENANTS_ADMIN")?, set("TENANTS_SECRET_FILE")?, set("TENANTS_AT")?);
        let secret = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
        if secret.trim().len() < 32 {
            return Err(format!("{file}: the secret has fewer than 32 characters; write at least 32"));
        }
        let admin = admin.parse().map_err(|error| format!("TENANTS_ADMIN: {error}"))?;
        Ok(Tenants { admin, secret: Secret::new(secret.trim()), at })
    }

    /// Opens a session that holds the tenant's lock. The lock is released when the session ends: when the client is
    /// dropped.
    async fn lock(&self, tenant: &Tenant) -> Result<Client, HookError> {
        let (client, connection) = self.admin.connect(NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(SESSION).await?;
        client.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", &[&tenant.name]).await?;
        Ok(client)
    }

    fn password(&self, tenant: &Tenant) -> Result<String, HookError> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.expose().as_bytes())?;
        mac.update(tenant.name.as_bytes());
        Ok(hex::encode(mac.finalize().into_bytes()))
    }
}

async fn exists(client: &Client, query: &str, tenant: &Tenant) -> Result<bool, HookError> {
    Ok(client.query_opt(query, &[&tenant.name]).await?.is_some())
}

async fn role_exists(client: &Client, tenant: &Tenant) -> Result<bool, HookError> {
    exists(client, "SELECT FROM pg_roles WHERE rolname = $1", tenant).await
}

async fn database_exists(client: &Client, tenant: &Tenant) -> Result<bool, HookError> {
    exists(client, "SELECT FROM pg_database WHERE datname = $1", tenant).await
}

/// Prevents new sessions, and ends the existing ones.
async fn shut(client: &Client, tenant: &Tenant) -> Result<(), HookError> {
    client.batch_execute(&format!("ALTER ROLE {} NOLOGIN", tenant.quoted())).await?;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1";
    client.execute(end, &[&tenant.name]).await?;
    Ok(())
}

impl ProvisioningHook for Tenants {
    async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
        let (tenant, limit) = (Tenant::of(&call.instance)?, connections(call.sku.as_deref())?);
        let (name, password) = (tenant.quoted(), self.password(&tenant)?);
        let client = self.lock(&tenant).await?;
        if !role_exists(&client, &tenant).await? {
            client.batch_execute(&format!("CREATE ROLE {name} NOLOGIN")).await?;
        }
        // PostgreSQL lets a user create a database only for a role that the user is a member of.
        client.batch_execute(&format!("GRANT {name} TO CURRENT_USER")).await?;
        if !database_exists(&client, &tenant).await? {
            // template0 accepts no connections. A template that is in use cannot be copied.
            client.batch_execute(&format!("CREATE DATABASE {name} OWNER {name} TEMPLATE template0")).await?;
        }
        // By default every role may connect to a new database, including other tenants.
        client.batch_execute(&format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC")).await?;
        let comment = format!("COMMENT ON DATABASE {name} IS {}", escape_literal(&tenant.sold));
        client.batch_execute(&comment).await?;
        // The verifier instead of the password, because a server may log statements.
        let verifier = escape_literal(&scram_sha_256(password.as_bytes()));
        let open = format!("ALTER ROLE {name} LOGIN CONNECTION LIMIT {limit} PASSWORD {verifier}");
        client.batch_execute(&open).await?;
        let url = format!("postgresql://{0}:{password}@{1}/{0}", tenant.name, self.at);
        Ok(Provisioned::new().id(tenant.name).host_database(url))
    }

    async fn renew(&self, call: RenewCall) -> Result<Updated, HookError> {
        let tenant = Tenant::of(&call.instance)?;
        let client = self.lock(&tenant).await?;
        client.batch_execute(&format!("ALTER ROLE {} LOGIN", tenant.quoted())).await?;
        Ok(Updated::new())
    }

    async fn refund_renew(&self, _call: RefundRenewCall) -> Result<Updated, HookError> {
        Ok(Updated::new()) // only the term changes, and spid keeps it
    }

    async fn upgrade(&self, call: UpgradeCall) -> Result<Updated, HookError> {
        let (tenant, limit) = (Tenant::of(&call.instance)?, connections(call.sku.as_deref())?);
        let client = self.lock(&tenant).await?;
        client.batch_execute(&format!("ALTER ROLE {} CONNECTION LIMIT {limit}", tenant.quoted())).await?;
        Ok(Updated::new())
    }

    async fn expire(&self, call: ExpireCall) -> Result<(), HookError> {
        let tenant = Tenant::of(&call.instance)?;
        let client = self.lock(&tenant).await?;
        shut(&client, &tenant).await
    }

    async fn release(&self, call: ReleaseCall) -> Result<(), HookError> {
        let tenant = Tenant::of(&call.instance)?;
        let client = self.lock(&tenant).await?;
        if role_exists(&client, &tenant).await? {
            shut(&client, &tenant).await?; // or somebody comes back before it is dropped
        }
        let name = tenant.quoted();
        client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
        client.batch_execute(&format!("DROP ROLE IF EXISTS {name}")).await?;
        Ok(())
    }
}

fn main() -> ExitCode {
    match Tenants::from_environment() {
        Ok(hook) => spid::run_with(hook),
        Err(mistake) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{mistake}"); // now, and not at the first order
            ExitCode::from(78)
        }
    }
}

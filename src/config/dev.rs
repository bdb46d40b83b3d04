//! Fixed configuration of `serve --dev`.

/// Key of `--dev`: the key in the vendor's documentation. It must not be used for anything else.
pub const DEV_KEY: &str = "isvkey";
pub(super) const DEV_KEY_VARIABLE: &str = "DEV_KEY";
pub(super) const DEV_CONFIG: &str = r#"
[[endpoint]]
name = "dev"
account = "dev"
path = "/spi"
dialect = "alibaba"
keys = [{ env = "DEV_KEY", label = "dev" }]
shared_key = true

[[endpoint]]
name = "dev-jdcloud"
account = "dev-jdcloud"
path = "/jdcloud"
dialect = "jdcloud"
keys = [{ env = "DEV_KEY", label = "dev" }]
shared_key = true

[[endpoint]]
name = "dev-generic"
account = "dev-generic"
path = "/generic"
dialect = "generic"
keys = [{ env = "DEV_KEY", label = "dev" }]

[[endpoint]]
name = "dev-koogallery"
account = "dev-koogallery"
path = "/koogallery"
dialect = "koogallery"
keys = [{ env = "DEV_KEY", label = "dev" }]
orders = { none = true }
"#;

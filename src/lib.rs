//! spid: the ISV-side SPI receiver for cloud marketplaces.
pub mod callback;
pub mod clock;
pub mod dialect;
pub mod hook;
pub mod http;
pub mod instance;
pub mod job;
pub mod limits;
pub mod query;
pub mod scenario;
pub mod seal;
pub mod signature;
pub mod store;

//! spid: the ISV-side SPI receiver for cloud marketplaces.
pub mod callback;
pub mod clock;
pub mod dialect;
pub mod limits;
pub mod query;
pub mod signature;

//! spid: the ISV-side SPI receiver for cloud marketplaces.
pub mod callback;
pub mod clock;
pub mod hook;
pub mod instance;
pub mod limits;
pub mod signature;

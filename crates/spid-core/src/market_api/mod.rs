//! Requests of a seller to the APIs of the marketplaces, and how their answers are read.
//!
//! Everything here is pure: a module that sends is given a [`ApiCall`], signs it, and hands status and body back to
//! [`read_answer`]. A failure is classified by the vendor's `Code` and never by the HTTP status alone, because Alibaba
//! Cloud answers permanent errors with 500 and throttling with 400.
//!
//! Sources, with what they leave open: `docs/dialects/alibaba-api.md`.

mod answer;
pub mod credentials;
mod operations;

pub use answer::{ApiError, ErrorClass, read_answer};
pub use operations::{
    ALL, ApiCall, Group, LicenseRecord, LicenseStatus, MarketInstance, MarketOrder, Notification,
    Notifications, Operation, OrderStatus, Place, Repeat, SellerInstance, SellerInstances, UnreadableAnswer,
};

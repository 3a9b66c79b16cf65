//! The spool.

mod api;
pub use api::*;

//! Delivery: one attempt in, one report out.

mod options;

pub use options::{Options, Timeouts, TlsMode};

//! Delivery: one attempt in, one report out.

mod capabilities;
mod classify;
mod client;
mod envelope;
mod options;
mod received;
mod reply;
mod stream;
#[cfg(test)]
mod testing;
mod tls;
mod transaction;

pub use options::{Options, Timeouts, TlsMode};

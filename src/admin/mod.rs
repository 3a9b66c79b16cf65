//! The admin endpoint.

mod options;

pub use options::Options;

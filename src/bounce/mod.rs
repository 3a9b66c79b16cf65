//! Bounces.

mod options;

pub use options::Options;

//! Dispatch.

mod options;

pub use options::{Options, RetrySchedule};

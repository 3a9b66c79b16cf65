//! A dress rehearsal that needs nothing from outside: the real relay as a child process, a simulated internet on
//! loopback, and a list host that sends a mailing and takes its bounces.
//!
//! `posthaste rehearse` runs it; the tests and benchmarks use the same parts. It believes nobody: what was delivered
//! is what the receivers counted, what bounced is what the list host was told, and only where the deadline cuts a
//! rehearsal short is the relay asked how much it still holds.

pub mod internet;
pub mod list_host;
pub mod relay;
pub mod world;

mod options;
mod overflow;
mod progress;
mod report;
mod run;

pub use options::{Options, ProgressStyle};
pub use overflow::Overflow;
pub use report::{BrokenLimit, HandOver, Report, Site};
pub use run::run;
pub use world::Scenario;

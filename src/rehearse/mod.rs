//! A dress rehearsal that needs nothing from outside: the real relay as a child process, a simulated internet on
//! loopback, and a list host that sends a mailing and takes its bounces.
//!
//! `posthaste rehearse` runs it; the tests and benchmarks use the same parts.

pub mod internet;
pub mod list_host;
pub mod relay;
pub mod world;

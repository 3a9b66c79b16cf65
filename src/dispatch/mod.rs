//! Dispatch: group, coalesce, share (design 7).
//!
//! [`Scheduler`] decides which recipients go out together, when, and who waits; it does no I/O, knows no clock and sees
//! neither spool nor delivery. Facts go in ([`Scheduler::offer`], [`Scheduler::resolved`], [`Scheduler::finished`],
//! ...), each with `now`; what is to be done comes out of [`Scheduler::poll`], and [`Scheduler::next_wakeup`] says when
//! to ask again without a new fact. A week of retries is therefore a unit test.
//!
//! What it holds in memory is bounded: at most [`Options::resident`] recipients, [`Options::read_ahead`] of one
//! destination. What does not fit stays in the spool's index, and a queue remembers only *that* there is more on disk.

mod bundle;
mod fairness;
mod feedback;
mod gather;
mod growth;
mod learned;
mod operator;
mod options;
mod pace;
#[cfg(test)]
mod partner_tests;
mod partners;
mod provider;
mod queue;
mod react;
mod reaction;
mod retry;
mod scheduler;
mod serve;
mod status;
#[cfg(test)]
mod tests;
mod timers;

pub use options::{Options, RetrySchedule};
pub use react::Reacted;
pub use reaction::{Effect, Pattern, Reaction, Reactions};
pub use scheduler::{Action, Finished, Resolution, Scheduler, Stats};
pub use status::{ProviderList, ProviderStatus, SiteStatus, Standing, SuspensionStatus, Unknown};

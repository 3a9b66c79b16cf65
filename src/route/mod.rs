//! Routes: from a destination to the site that serves it (RFC 5321 section 5.1), and from a host to its addresses.
//!
//! A name that somebody else publishes never leads to our own listeners, nor into networks that are not the public Internet
//! unless the configuration allows them. What is permanent (no such domain, null MX, no usable exchanger) is told apart from
//! what is merely unanswered: the status of the [`Reason`](crate::outcome::Reason) is of class 5 or 4.

mod dns;
#[cfg(test)]
mod dnssec_tests;
mod exchangers;
mod memory;
mod network;
mod options;
mod resolver;
pub mod roots;
#[cfg(test)]
mod signing;
mod sts;
#[cfg(test)]
mod sts_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tlsa;

pub use options::{Options, ProviderRule, Sts as StsOptions};
pub use resolver::{Resolved, Resolver, ResolverError};
pub use sts::{StsMode, StsPolicy};
pub use tlsa::{DANE_EE, DANE_TA, Tlsa};

//! Bounces: who is told, when, and in which words.
//!
//! The promise: **a failure that somebody wanted to hear of is reported once, in a form that list software counts
//! right, and a report is never reported on.** This part composes only. It does no I/O and keeps no state: the engine
//! asks [`obligation_for`] while it settles, [`due`] when it looks at what the spool owes, [`compose`] to turn one
//! batch's obligations into one message, and [`last_resort`] when such a message itself cannot be delivered.
//!
//! Why the report is written by hand: it has three parts, one of which (the returned header section) must pass through
//! byte for byte, and libraries that build MIME re-encode parts.
//!
//! | file | holds |
//! |---|---|
//! | `policy` | who is told (RFC 3461 section 5.2), when, and what becomes of an undeliverable report |
//! | `compose` | the message: header section, boundary, the three parts (RFC 6522) |
//! | `text` | part one, for people |
//! | `status` | part two, for machines (RFC 3464, RFC 6533) |
//! | `original` | part three: the original's header section, or all of it |
//! | `wire` | lines: folding, what may stand in one, dot-stuffing |

mod compose;
mod metrics;
mod options;
mod original;
mod policy;
mod status;
mod text;
mod wire;

#[cfg(test)]
mod samples;

pub use compose::{Dsn, Report, compose};
pub use metrics::Metrics;
pub use options::Options;
pub use original::Returned;
pub use policy::{Event, due, last_resort, obligation_for};

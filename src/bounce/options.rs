//! `[bounce]` of the configuration, translated.

use std::sync::Arc;
use std::time::Duration;

/// Everything bounce is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Reporting-MTA.
    pub hostname: Arc<str>,
    /// From of the reports; `MAILER-DAEMON@hostname` if it is not set.
    pub from: Option<String>,
    /// How long a batch's first obligation waits for company, so that one DSN reports them all.
    pub gather: Duration,
    /// How long an undeliverable DSN is retried before it goes to the postmaster.
    pub expire_after: Duration,
    /// Where DSNs go whose list host could not be reached until then: a mailbox at a list host's bounce address.
    pub postmaster: Option<String>,
    /// Most octets of the original message that a RET=FULL report returns.
    pub return_bytes: usize,
}

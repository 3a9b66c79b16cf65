//! `[bounce]` of the configuration, translated.

use std::sync::Arc;
use std::time::Duration;

use crate::mail::Mailbox;

/// Everything bounce is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Reporting-MTA, and the domain of the reports' Message-IDs.
    pub hostname: Arc<str>,
    /// From of the reports; `MAILER-DAEMON@hostname` if it is not set.
    pub from: Option<Mailbox>,
    /// How long a batch's first obligation waits for company, so that one DSN reports them all.
    pub gather: Duration,
    /// Age from which a delay is reported, where NOTIFY=DELAY asked for it.
    pub delay_after: Duration,
    /// How long an undeliverable DSN is retried before it goes to the postmaster.
    pub expire_after: Duration,
    /// Where DSNs go whose list host could not be reached until then: a mailbox at a list host's bounce address. If it
    /// is not set they are dropped, counted and logged.
    pub postmaster: Option<Mailbox>,
    /// Most octets of the original message that a RET=FULL report returns; a longer one returns its header section.
    pub return_bytes: usize,
}

//! What the spool keeps and dispatch hands out: batches, their recipients, and where those go.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::{
    ContentHash, Domain, EnvelopeParams, Mailbox, MailingId, QueueId, RecipientId, RecipientParams, ReversePath,
};
use crate::clock::Tick;

/// Where a recipient goes next, as dispatch groups by it. One destination per transaction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// The world: the exchangers of this domain.
    Domain(Domain),
    /// The bounce lane: the declared address of this list host.
    ListHost(Arc<str>),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Domain(domain) => domain.fmt(f),
            Destination::ListHost(name) => write!(f, "list-host:{name}"),
        }
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What may share a transaction (design 7, attempt key): equal envelopes with one destination coalesce.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// Name of the list host that handed it to us; for a DSN the list host that it goes to.
    pub list_host: Arc<str>,
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// The parameters of MAIL.
    pub params: EnvelopeParams,
    /// The content.
    pub content: ContentHash,
    /// Size of the content in octets as RFC 1870 counts it (not dot-stuffed).
    pub content_size: u64,
    /// Whether the content holds an octet above 127.
    pub eight_bit: bool,
    /// The mailing it belongs to.
    pub mailing: MailingId,
}

/// How a batch came in: what our Received line says (RFC 5321 section 4.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The client's EHLO or HELO name, checked to be a domain or literal, or `unknown`.
    pub helo: Box<str>,
    /// Its address; `None` for what we composed ourselves.
    pub peer: Option<IpAddr>,
    /// The WITH keyword (RFC 3848, RFC 6531 section 4.3): `ESMTP`, `ESMTPS`, `ESMTPSA`, `UTF8SMTP`, ...
    pub protocol: Box<str>,
    /// When it was accepted, as a person reads it.
    pub at: Timestamp,
}

/// One accepted mail transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its name.
    pub id: QueueId,
    /// What its recipients have in common. Shared between the batches of a mailing where they are equal.
    pub envelope: Arc<Envelope>,
    /// How it came in.
    pub trace: Trace,
    /// When it was accepted: retry and expiry count from here.
    pub accepted: Tick,
}

/// One forward-path with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recipient {
    /// RCPT TO, as written.
    pub path: Mailbox,
    /// The parameters of RCPT.
    pub params: RecipientParams,
}

/// A recipient that waits in the queue, as dispatch sees it.
#[derive(Clone, Debug)]
pub struct Queued {
    /// Its name.
    pub id: RecipientId,
    /// Its batch.
    pub batch: Arc<Batch>,
    /// The forward-path.
    pub recipient: Arc<Recipient>,
    /// Where it goes.
    pub destination: Destination,
    /// Attempts that were made and counted.
    pub attempts: u32,
    /// When it may be tried.
    pub due: Tick,
    /// Whether a delay DSN was owed already (at most one is ever sent).
    pub delay_reported: bool,
}

//! The values that pass between dispatch, delivery and settle: an [`Attempt`] goes down the paper path, an
//! [`AttemptReport`] comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Tick;
use crate::mail::{AttemptId, Destination, Envelope, Queued, Trace};
use crate::outcome::{Outcome, Reason};

/// One try for one envelope, one destination, N recipients: at most one accepted transaction.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Stands in the Received line that is composed for this attempt.
    pub id: AttemptId,
    /// Where it goes.
    pub destination: Destination,
    /// The site that serves the destination, as it was resolved.
    pub site: Arc<Site>,
    /// What the recipients have in common.
    pub envelope: Arc<Envelope>,
    /// How the earliest of the batches came in.
    pub trace: Trace,
    /// The recipients, each forward-path once. Never empty.
    pub recipients: Vec<Queued>,
    /// The ceilings that hold for this provider.
    pub limits: Arc<Limits>,
    /// When it was begun.
    pub begun: Tick,
}

/// The domains that are served by exactly the same exchangers share a site: its connections and its reachability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its name: the exchangers in order of preference, or the list host's name. Equal names, equal sites.
    pub name: Arc<str>,
    /// The provider that its limits come from: a rule's name, or the site's own name.
    pub provider: Arc<str>,
    /// What to connect to, in order of preference.
    pub route: Route,
}

/// The kind of next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The exchangers of a domain (RFC 5321 section 5.1).
    Mx(Vec<Exchanger>),
    /// A list host's bounce address: an ordered list, tried one after another.
    ListHost(Vec<BounceAddress>),
    /// A smarthost that takes mail over from us.
    Partner(Arc<Partner>),
}

/// A smarthost that takes mail over from us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partner {
    /// Its configured name.
    pub name: Arc<str>,
    /// Its hosts and their ports, in order.
    pub hosts: Vec<(Arc<str>, u16)>,
    /// What is demanded of TLS.
    pub tls: PartnerTls,
    /// With which it knows us, if it wants to.
    pub credentials: Option<Credentials>,
    /// Whether it is reached by a line of its own, which the uplink's budget does not speak of.
    pub other_line: bool,
    /// What our own Received lines say: mail that bears it never goes to a partner.
    pub own_token: Arc<str>,
}

/// What is demanded of TLS with a partner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartnerTls {
    /// Clear text.
    Off,
    /// TLS, whatever the certificate; else the partner is not used.
    #[default]
    Required,
    /// TLS with a certificate for the host's name that a root certificate vouches for; else the partner is not used.
    Verified,
}

/// User name and password (RFC 4616).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: Box<str>,
    /// The password. Never shown.
    pub password: Box<str>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, ..)", self.user)
    }
}

/// One exchanger. Its addresses are looked up when it is tried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exchanger {
    /// MX preference; 0 for an implicit MX.
    pub preference: u16,
    /// Its name, lower case, no trailing dot.
    pub host: Arc<str>,
}

/// Where a list host takes its bounces (`bounces_to`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BounceAddress {
    /// LMTP (RFC 2033) rather than SMTP.
    pub lmtp: bool,
    /// Host name or address.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
}

/// A provider's configured ceilings (`providers.toml`). What is `None` is not limited.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Open connections at a time, idle ones included.
    pub connections: u32,
    /// New connections per time.
    pub connection_rate: Option<Rate>,
    /// Recipients per time.
    pub recipient_rate: Option<Rate>,
    /// Recipients in a transaction.
    pub recipients_per_transaction: u32,
    /// Transactions on a connection before it is closed.
    pub messages_per_connection: u32,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
}

/// `count` per `period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    /// Longer than zero.
    pub period: Duration,
}

/// What became of an attempt.
#[derive(Clone, Debug)]
pub struct AttemptReport {
    /// The attempt, given back whole.
    pub attempt: Attempt,
    /// One outcome per recipient, in the attempt's order.
    pub outcomes: Vec<Outcome>,
    /// Set if the site as a whole could not be used, or asked for less: what dispatch slows down or suspends on.
    pub trouble: Option<Reason>,
    /// What the next hop said about how much it takes.
    pub pushback: Pushback,
    /// Where the time went, for the `delays=` of the log line.
    pub delays: Delays,
    /// The address that was used.
    pub peer: Option<SocketAddr>,
    /// Octets written to the network for this attempt, before TLS.
    pub bytes: u64,
    /// Whether a transaction was begun (MAIL was sent).
    pub transaction: bool,
}

/// What a next hop says about how much it takes, learned from its refusals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushback {
    /// Recipients refused because of our pace, not for their own sake.
    pub refused: usize,
    /// Recipients that it took in one transaction before it asked for another.
    pub transaction_cap: Option<u32>,
    /// Whether the connection was refused while others of ours were open.
    pub crowded: bool,
}

/// Durations of an attempt's stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delays {
    /// Waiting for a connection slot and for DNS.
    pub wait: Duration,
    /// Connecting, greeting, EHLO, TLS. Zero on a reused connection.
    pub connect: Duration,
    /// MAIL to the reply to the dot.
    pub transmit: Duration,
}

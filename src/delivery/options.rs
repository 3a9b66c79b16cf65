//! `[delivery]` of the configuration, translated.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything delivery is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name that EHLO and the Received line say.
    pub hostname: Arc<str>,
    /// The port at exchangers; 25.
    pub port: u16,
    /// Time between the starts of two connection attempts to one host (RFC 8305 section 5). A lost race costs the
    /// provider a connection, so 2 s rather than 250 ms.
    pub connect_stagger: Duration,
    /// STARTTLS towards exchangers, where no rule says otherwise.
    pub tls: TlsMode,
    /// Rules for certain destinations; the first that matches holds.
    pub tls_rules: Vec<TlsRule>,
    /// STARTTLS towards list hosts, by name, where it is not opportunistic.
    pub list_hosts: HashMap<Arc<str>, TlsMode>,
    /// PEM file of the root certificates to check against; none: the system's.
    pub roots: Option<PathBuf>,
    /// Per command (RFC 5321 section 4.5.3.2).
    pub timeouts: Timeouts,
    /// Connections at a time, over all providers.
    pub connections: usize,
    /// Whether 8-bit content may go to a host without 8BITMIME (otherwise it fails with 5.6.3).
    pub pass_eight_bit: bool,
    /// Where connections to exchangers come from, in the order of the configuration.
    pub sources: Vec<Arc<Source>>,
}

impl Options {
    /// The first source that fits; `None`: the system chooses.
    pub(super) fn source_for(&self, list_host: &str, provider: &str) -> Option<&Arc<Source>> {
        self.sources.iter().find(|source| source.fits(list_host, provider))
    }
}

/// A pool of local addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name in logs and metrics.
    pub name: Arc<str>,
    /// The local addresses; never empty.
    pub addresses: Vec<IpAddr>,
    /// The name that EHLO says from them.
    pub hostname: Arc<str>,
    /// The list hosts whose mail leaves from here; empty: all.
    pub list_hosts: Vec<Arc<str>>,
    /// The providers that it is for, by the names of their rules; empty: all.
    pub providers: Vec<Arc<str>>,
}

impl Source {
    fn fits(&self, list_host: &str, provider: &str) -> bool {
        let is_named = |names: &[Arc<str>], name: &str| names.is_empty() || names.iter().any(|known| **known == *name);
        is_named(&self.list_hosts, list_host) && is_named(&self.providers, provider)
    }

    /// Whether it has an address of the family of `address`.
    pub(super) fn reaches(&self, address: &SocketAddr) -> bool {
        self.addresses.iter().any(|local| local.is_ipv4() == address.is_ipv4())
    }
}

/// STARTTLS towards a next hop, from the least to the most that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Never used.
    Off,
    /// Used where it is offered, without a check of the certificate (RFC 7435); a failed handshake falls back to clear text
    /// on a new connection. What DANE and MTA-STS ask for comes on top.
    #[default]
    Opportunistic,
    /// No mail without it. The certificate is not checked.
    Required,
    /// No mail without it, and the certificate must be valid for the exchanger's name, or a configured one.
    Verified,
}

/// `[[tls_policy]]`: what certain destinations ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsRule {
    /// Recipient domains, lower case; with a leading dot everything below, and the domain itself.
    pub domains: Vec<String>,
    /// Suffixes of exchanger names, on label boundaries. Every exchanger of a site must match one.
    pub mx_suffixes: Vec<String>,
    /// The least that is asked for.
    pub mode: TlsMode,
    /// Names of which a verified certificate must bear one; none: the exchanger's own.
    pub names: Arc<[Box<str>]>,
}

/// How long each command may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP connect, per address.
    pub connect: Duration,
    /// The 220 greeting.
    pub greeting: Duration,
    /// EHLO, STARTTLS and the handshake.
    pub hello: Duration,
    /// MAIL.
    pub mail: Duration,
    /// Each RCPT.
    pub rcpt: Duration,
    /// DATA, up to the 354.
    pub data: Duration,
    /// Each block of content.
    pub block: Duration,
    /// The final dot. Shorter than 10 minutes makes duplicates.
    pub dot: Duration,
    /// QUIT.
    pub quit: Duration,
}

//! `[[listener]]`, `[[list_host]]` and `[ingress]` of the configuration, translated.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::attempt::BounceAddress;
use crate::mail::Mailbox;

/// Everything ingress is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Our own name, for the greeting and the Received line.
    pub hostname: Arc<str>,
    /// Where to listen.
    pub listeners: Vec<Listener>,
    /// Who may relay. Nobody else may; an empty list relays for nobody.
    pub list_hosts: Vec<Arc<ListHost>>,
    /// Largest message in octets, advertised as SIZE (RFC 1870).
    pub message_bytes: u64,
    /// Recipients per transaction, advertised as LIMITS RCPTMAX (RFC 9422); 452 beyond.
    pub recipients_per_transaction: u32,
    /// Idle time after which a session is closed; at least 5 minutes (RFC 5321 section 4.5.3.2.7).
    pub idle_timeout: Duration,
    /// Open sessions at a time, list hosts and strangers together.
    pub connections: u32,
    /// Open sessions from strangers (who get nothing but a refusal) at a time.
    pub stranger_connections: u32,
    /// Received lines above which a message is taken for looping; at least 100 (RFC 5321 section 6.3).
    pub hops: u32,
    /// Where mail to `<postmaster>` without a domain goes (RFC 5321 section 4.5.1); without one it gets 550.
    pub postmaster: Option<Mailbox>,
    /// Header fields that name a mailing, beside Message-ID and List-Id, in order (`X-Listmonk-Campaign`).
    pub campaign_headers: Vec<String>,
}

/// One listening socket.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Address and port. An IPv6 address takes IPv6 connections only: `[::]` stands beside `0.0.0.0`, not for it.
    pub address: SocketAddr,
    /// Certificate and key for STARTTLS, re-read on reload; none: STARTTLS is not offered.
    pub tls: Option<Tls>,
}

/// A certificate chain and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Chain, leaf first.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// A machine that relays to us.
#[derive(Clone, Debug)]
pub struct ListHost {
    /// Its name in logs, metrics and the spool.
    pub name: Arc<str>,
    /// Networks from which it may relay without AUTH.
    pub networks: Vec<IpNet>,
    /// Users that may relay as this list host after AUTH over TLS: name and password hash.
    pub users: Vec<(String, PasswordHash)>,
    /// Domains it may use in reverse-paths; each covers its subdomains.
    pub reverse_path_domains: Vec<String>,
    /// Where its bounces go, in order. The delivery of bounces knows no other way.
    pub bounces_to: Vec<BounceAddress>,
    /// Share in dispatch relative to other list hosts.
    pub weight: u32,
}

/// An argon2 hash in PHC string format. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(pub String);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

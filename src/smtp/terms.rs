//! What a session is told: the terms of the listener, the list host, and the conditions of the moment.

use std::sync::Arc;

use crate::mail::Mailbox;

/// What is offered and demanded; the same for all sessions of a listener.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Our name.
    pub hostname: Arc<str>,
    /// Largest message, in octets (RFC 1870).
    pub message_bytes: u64,
    /// Recipients in a transaction (RFC 9422, RCPTMAX).
    pub recipients: u32,
    /// Received lines above which a message loops (RFC 5321 section 6.3).
    pub hops: u32,
    /// Where `<postmaster>` goes.
    pub postmaster: Option<Mailbox>,
    /// Whether there is a certificate.
    pub starttls: bool,
    /// Whether there are users; AUTH is offered under TLS only.
    pub auth: bool,
    /// Whether REQUIRETLS (RFC 8689) is offered, under TLS only.
    pub requiretls: bool,
}

/// A list host, as far as a session needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Its name.
    pub name: Arc<str>,
    /// Domains that it may use in reverse-paths, lower case; each covers its subdomains.
    pub reverse_path_domains: Vec<String>,
}

/// What new mail is refused for want of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The spool is full.
    Disk,
    /// Memory is above its high mark.
    Memory,
}

/// What changes while a session runs.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// What there is too little of for new mail.
    pub shortage: Option<Shortage>,
    /// Whether we are closing down.
    pub draining: bool,
}

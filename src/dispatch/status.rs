//! What an operator is told about providers and sites, as plain values for the control socket.

use serde::{Deserialize, Serialize};

/// A provider: limits, pace and suspensions belong to it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ProviderStatus {
    /// The rule's name, or the site's own where no rule matches.
    pub name: String,
    /// Whether mail goes there.
    pub standing: Standing,
    /// Who suspended it, since when, until when and why.
    pub suspension: Option<SuspensionStatus>,
    /// The reactions in force.
    pub rules: Vec<SuspensionStatus>,
    /// Milliseconds until its rate allows more, if that holds it.
    pub throttled_ms: Option<u64>,
    /// Attempts that may be in flight now.
    pub window: u32,
    /// The configured ceiling of connections.
    pub connections: u32,
    /// Recipients per second that it was found to take, or is tried with.
    pub pace: Option<f64>,
    /// Attempts in flight.
    pub in_flight: u32,
    /// Recipients waiting in memory.
    pub resident: usize,
    /// Whether there is more of its mail on disk.
    pub more_on_disk: bool,
    /// The last thing it said that was no success.
    pub last_reply: Option<String>,
    /// Milliseconds since then.
    pub last_reply_ago_ms: Option<u64>,
    /// Its sites. In a list of providers: those that are suspended.
    pub sites: Vec<SiteStatus>,
    /// How many sites it has that are known now.
    pub site_count: usize,
}

/// Whether mail goes to a provider or site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Left alone: by the operator, by a rule, or after failures.
    Suspended,
    /// Held by its rate.
    Throttled,
    /// Mail is under way or waits for a turn.
    Busy,
    /// Nothing waits.
    Idle,
}

/// Who suspended what, and why.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SuspensionStatus {
    /// `operator`, `trouble`, `unreachable`, or the rule that took hold.
    pub by: String,
    /// The reply, or what was said.
    pub why: String,
    /// Milliseconds since it began.
    pub since_ms: u64,
    /// Milliseconds until it ends; none: until it is resumed.
    pub left_ms: Option<u64>,
}

/// A site: reachability belongs to it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SiteStatus {
    /// Its exchangers.
    pub name: String,
    /// Domains it serves for which mail is queued, up to twenty of them.
    pub domains: Vec<String>,
    /// How many of them there are.
    pub domain_count: usize,
    /// Attempts in flight.
    pub in_flight: u32,
    /// Recipients waiting in memory.
    pub resident: usize,
    /// Whether and why it is left alone.
    pub suspension: Option<SuspensionStatus>,
}

/// The providers that are known now.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct ProviderList {
    /// Those that mail waits for first.
    pub providers: Vec<ProviderStatus>,
    /// How many there are beyond those listed.
    pub more: usize,
}

/// There is nothing of that name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Unknown {
    /// Names that are near it.
    pub near: Vec<String>,
}

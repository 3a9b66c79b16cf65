//! `[dns]` and `providers.toml`, translated.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::attempt::{BounceAddress, Limits};

/// Everything the resolver is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name servers to ask; empty: the system's.
    pub servers: Vec<SocketAddr>,
    /// Time for one DNS question.
    pub timeout: Duration,
    /// Questions in flight at a time.
    pub concurrency: usize,
    /// Sites that are remembered.
    pub cache_entries: u64,
    /// Whether answers are validated (DNSSEC), without which there is no DANE. Costs several questions for each one.
    pub dnssec: bool,
    /// File of DNSKEY records to start from instead of the root's that are built in.
    pub trust_anchor: Option<PathBuf>,
    /// MTA-STS.
    pub sts: Sts,
    /// Our own names: an exchanger with one of them, and all of higher preference, are dropped (RFC 5321 section 5.1).
    pub own_names: Vec<String>,
    /// Our own listening addresses: never a next hop.
    pub own_addresses: Vec<SocketAddr>,
    /// Addresses that are otherwise prohibited as next hops (loopback, private ranges) but allowed here.
    pub allow_networks: Vec<IpNet>,
    /// Addresses tried per attempt round, over all exchangers.
    pub address_limit: usize,
    /// Rules in order of precedence; the first that matches wins.
    pub providers: Vec<ProviderRule>,
    /// What holds where no rule matches.
    pub default_limits: Arc<Limits>,
    /// The lane to each list host.
    pub list_hosts: HashMap<Arc<str>, Vec<BounceAddress>>,
}

/// One rule of `providers.toml`.
#[derive(Clone, Debug)]
pub struct ProviderRule {
    /// Its name: a metric label and the key that limits are shared under.
    pub name: Arc<str>,
    /// Suffixes of exchanger names, lower case, matched on label boundaries. Every exchanger of a site must match one.
    pub mx_suffixes: Vec<String>,
    /// Recipient domains, matched exactly.
    pub domains: Vec<String>,
    /// Its ceilings.
    pub limits: Arc<Limits>,
}

/// Whether and how MTA-STS policies are fetched (RFC 8461).
#[derive(Clone, Debug)]
pub struct Sts {
    /// Whether domains are asked for policies at all.
    pub enabled: bool,
    /// Directory in which policies are kept over restarts.
    pub cache: Option<PathBuf>,
    /// PEM file of the root certificates that policy hosts are checked against; none: the system's.
    pub roots: Option<PathBuf>,
    /// The port of policy hosts; 443.
    pub port: u16,
}

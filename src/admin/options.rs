//! `[admin]` of the configuration, translated.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// Everything the admin endpoint is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who may ask, beside loopback.
    pub networks: Vec<IpNet>,
    /// Names that a Host header may bear, beside the loopback names and the address itself; lower case.
    pub host_names: Vec<String>,
    /// The control socket's file.
    pub socket: PathBuf,
}

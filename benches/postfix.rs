//! Postfix as the peer, by way of `benches/peers/postfix`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use posthaste::rehearse::relay::{Workspace, free_address};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/postfix");

/// A running Postfix. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Postfix {
    pub(crate) address: SocketAddr,
    directory: PathBuf,
    _workspace: Workspace,
}

impl Postfix {
    /// Starts a Postfix that sends each domain's mail to the address beside it.
    pub(crate) fn start(parent: &Path, routes: &[(String, SocketAddr)]) -> anyhow::Result<Postfix> {
        let workspace = Workspace::new(Some(parent)).context("no place for Postfix")?;
        let (address, directory) = (free_address()?, workspace.path().join("postfix"));
        let map = workspace.path().join("transport");
        std::fs::write(&map, transport(routes))?;
        let postfix = Postfix { address, directory, _workspace: workspace };
        let output = postfix
            .script("start")
            .args(["--listen", &address.port().to_string(), "--transport"])
            .arg(&map)
            .output()
            .with_context(|| format!("cannot run {SCRIPT}"))?;
        ensure!(output.status.success(), "Postfix does not start: {}", String::from_utf8_lossy(&output.stderr));
        Ok(postfix)
    }

    fn script(&self, verb: &str) -> Command {
        let mut command = Command::new(SCRIPT);
        command.arg(verb).arg("--dir").arg(&self.directory);
        command
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if let Err(error) = self.script("stop").status() {
            eprintln!("Postfix in {} could not be stopped: {error}", self.directory.display());
        }
    }
}

/// A transport(5) map.
fn transport(routes: &[(String, SocketAddr)]) -> String {
    let mut map = String::new();
    for (domain, to) in routes {
        let _never_fails = writeln!(map, "{domain}  smtp:[{}]:{}", to.ip(), to.port());
    }
    map
}

//! The relay's configuration for a rehearsal.
//!
//! The operator's own file (`--config`) is the base, so that its limits, windows and routes are what is rehearsed. Where
//! it says nothing, the rehearsal fills in short retries and timeouts, because nobody wants to watch a dead site for five
//! days; and rates per provider that are as many times higher ([`TIME_LAPSE`]), because mail that waits for its turn must
//! not expire meanwhile. Who brings provider rules of their own sees these in real time, with a longer lifetime. And what would touch the world or the real spool is replaced in any case: spool, listeners, list hosts, name
//! servers, port and admin address.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use toml::{Table, Value};

use crate::rehearse::world::PARTNERS_SUFFIXES;

/// What the rehearsal knows and the relay must be told.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The relay's listener.
    pub listen: SocketAddr,
    /// The relay's admin address.
    pub admin: SocketAddr,
    /// The simulated DNS.
    pub dns: SocketAddr,
    /// The port of the simulated exchangers.
    pub port: u16,
    /// The list host's bounce address.
    pub bounces: SocketAddr,
    /// The list host's domain.
    pub list_domain: String,
    /// Lifetime in the queue.
    pub expire_after: Duration,
    /// Recipients a second that a provider starts with.
    pub initial_rate: u32,
}

/// The configuration's text: `own` is the operator's file, if there is one, and lies in the directory `own_directory`.
///
/// # Errors
/// When the operator's file is no TOML.
pub fn compose(setting: &Setting, own: Option<(&str, &Path)>) -> anyhow::Result<String> {
    let mut table: Table = match own {
        Some((text, _)) => text.parse().context("the given configuration is not TOML")?,
        None => Table::new(),
    };
    let forced: Table = forced(setting).parse().context("the rehearsal's own settings")?;
    let filled: Table = filled(setting).parse().context("the rehearsal's own settings")?;
    if let Some((_, directory)) = own {
        anchor_providers(&mut table, directory);
    }
    leave_out(&mut table);
    if table.contains_key("providers") {
        let patient: Table = PATIENT.parse().context("the rehearsal's own settings")?;
        overlay(&mut table, patient, false);
    }
    // The operator's own partners are in the world.
    table.remove("partner");
    overlay(&mut table, forced, true);
    overlay(&mut table, filled, false);
    Ok(table.to_string())
}

/// Addresses of ours that lead to the world cannot reach a simulated one; and signatures would change a message that is
/// counted by its content, beside naming list hosts that are replaced.
fn leave_out(table: &mut Table) {
    for section in ["source", "dkim"] {
        table.remove(section);
    }
}

/// `providers` is relative to the operator's file, and ours lies elsewhere.
fn anchor_providers(table: &mut Table, directory: &Path) {
    if let Some(Value::String(path)) = table.get_mut("providers") {
        *path = directory.join(&*path).to_string_lossy().into_owned();
    }
}

/// Lays `above` over `below`, key by key; with `replace` it wins, without it only fills gaps. Arrays are one value.
pub fn overlay(below: &mut Table, above: Table, replace: bool) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above, replace),
            (Some(_), _) if !replace => {}
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

fn forced(setting: &Setting) -> String {
    let Setting { listen, admin, dns, port, bounces, list_domain, .. } = setting;
    format!(
        r#"
        [spool]
        path = "spool"
        [[listener]]
        address = "{listen}"
        [[list_host]]
        name = "rehearsal"
        networks = ["127.0.0.0/8"]
        reverse_path_domains = ["{list_domain}"]
        bounces_to = "{bounces}"
        [dns]
        servers = ["{dns}"]
        [delivery]
        port = {port}
        allow_networks = ["127.0.0.0/8", "::1/128"]
        [admin]
        address = "{admin}"
        "#
    )
}

/// The configuration with a line of so many octets per second, and a partner that takes over while it is full.
///
/// # Errors
/// When it is no TOML.
pub fn narrow(config: &str, octets: u64, partner: SocketAddr) -> anyhow::Result<String> {
    let mut table: Table = config.parse().context("the relay's configuration")?;
    let narrow: Table = narrow_line(octets, partner).parse().context("the rehearsal's own settings")?;
    overlay(&mut table, narrow, true);
    Ok(table.to_string())
}

fn narrow_line(octets: u64, partner: SocketAddr) -> String {
    let suffixes = PARTNERS_SUFFIXES;
    format!(
        r#"
        [budget]
        uplink = "{}bit/s"
        [[partner]]
        name = "friend"
        hosts = ["{partner}"]
        tls = "off"
        suffixes = {suffixes:?}
        condition = "overflow"
        overflow_above = "90%"
        overflow_below = "70%"
        connections = 2
        [dispatch]
        attempts = {ATTEMPTS_ON_A_NARROW_LINE}
        "#,
        octets * 8
    )
}

fn filled(setting: &Setting) -> String {
    let expire = setting.expire_after.as_millis();
    format!(
        r#"
        hostname = "relay.rehearsal.test"
        providers = "providers.toml"
        [dns]
        timeout = "1s"
        [delivery]
        retry = ["500ms", "1s", "2s", "2s", "3s"]
        expire_after = "{expire}ms"
        connect_stagger = "500ms"
        [delivery.timeouts]
        connect = "2s"
        greeting = "5s"
        hello = "10s"
        mail = "10s"
        rcpt = "10s"
        data = "10s"
        dot = "30s"
        [dispatch]
        initial_rate = "{}/1s"
        suspend_min = "500ms"
        suspend_max = "2s"
        [bounce]
        gather = "500ms"
        "#,
        setting.initial_rate
    )
}

/// What such a line carries at a time with sense: each of them gets 3 kB/s.
const ATTEMPTS_ON_A_NARROW_LINE: usize = 60;

/// Real rates need real time.
const PATIENT: &str = "[delivery]\nexpire_after = \"10m\"\n";

/// How many times faster than in life the rates of a rehearsal are. Its retries are some hundred times faster.
pub(in crate::rehearse) const TIME_LAPSE: u32 = 20;

/// The provider file of a rehearsal: the shipped rules with faster rates, or as good as none.
pub(in crate::rehearse) fn providers(without_rates: bool) -> String {
    let factor = if without_rates { 100_000 } else { TIME_LAPSE };
    let [connections, recipients] = [100, 6000].map(|shipped| shipped * factor);
    format!("[default]\nconnection_rate = \"{connections}/1m\"\nrecipient_rate = \"{recipients}/1m\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> Setting {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Setting {
            listen: address(1),
            admin: address(2),
            dns: address(3),
            port: 4,
            bounces: address(5),
            list_domain: "lists.test".to_owned(),
            initial_rate: 1000,
            expire_after: Duration::from_secs(15),
        }
    }

    #[test]
    fn the_operators_own_values_win_except_where_the_world_would_be_touched() {
        let own = "hostname = \"mine\"\nproviders = \"p.toml\"\n[delivery]\nport = 25\nretry = [\"9s\"]\n[spool]\npath = \"/var/real\"\n[dispatch]\nattempts = 7\n[[listener]]\naddress = \"0.0.0.0:25\"\n[[source]]\nname = \"a\"\n[[dkim]]\nselector = \"a\"";
        let text = compose(&setting(), Some((own, Path::new("/etc/posthaste")))).expect("composed");
        let table: Table = text.parse().expect("TOML");
        assert_eq!(table["hostname"].as_str(), Some("mine"));
        assert_eq!(table["providers"].as_str(), Some("/etc/posthaste/p.toml"));
        assert_eq!(table["delivery"]["retry"].as_array().map(Vec::len), Some(1));
        assert_eq!(table["delivery"]["port"].as_integer(), Some(4));
        assert_eq!(table["delivery"]["expire_after"].as_str(), Some("10m"));
        assert_eq!(table["dispatch"]["attempts"].as_integer(), Some(7));
        assert_eq!(table["spool"]["path"].as_str(), Some("spool"));
        assert!(!table.contains_key("source") && !table.contains_key("dkim"));
        assert_eq!(table["listener"][0]["address"].as_str(), Some("127.0.0.1:1"));
    }

    #[test]
    fn without_a_file_of_the_operators_the_rehearsal_says_it_all() {
        let table: Table = compose(&setting(), None).expect("composed").parse().expect("TOML");
        assert_eq!(table["dns"]["servers"][0].as_str(), Some("127.0.0.1:3"));
        assert_eq!(table["providers"].as_str(), Some("providers.toml"));
    }

    #[test]
    fn the_relay_understands_what_it_is_told() {
        let workspace = super::super::Workspace::new(None).expect("made");
        let text = compose(&setting(), None).expect("composed");
        for without_rates in [false, true] {
            std::fs::write(workspace.path().join("providers.toml"), providers(without_rates)).expect("written");
            let read = crate::config::Config::parse("posthaste.toml", &text, workspace.path());
            assert!(read.is_ok(), "{}\n{text}", read.err().map(|error| error.to_string()).unwrap_or_default());
        }
    }

    #[test]
    fn what_is_no_toml_is_refused() {
        assert!(compose(&setting(), Some(("[spool", Path::new("/")))).is_err());
    }
}

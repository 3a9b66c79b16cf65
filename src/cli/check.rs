//! `posthaste check`: a configuration in the words of what will happen.

use std::fmt::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use anyhow::Context;
use prometheus::Registry;

use super::{ConfigFile, Failure, print};
use crate::budget::Descriptors;
use crate::config::Config;
use crate::config::units::{BounceUrl, Span};
use crate::delivery::Source;
use crate::ingress::ListHost;
use crate::route::Resolver;
use crate::sign::SigningKey;

/// What is checked.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Ask the DNS, too: whether each DKIM key is published
    #[arg(long)]
    dns: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.file.load()?;
    print(&format!("{}: valid\n{}", arguments.file.config.display(), describe(&config)))?;
    if arguments.dns {
        ask_dns(&config)?;
    }
    Ok(())
}

/// Compares each DKIM key with the record that receivers will compare it with.
fn ask_dns(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let problems = runtime.block_on(async {
        let resolver = Resolver::new(config.route.clone(), Descriptors::from_system()?, &Registry::new())?;
        let mut problems = Vec::new();
        for key in &config.sign.keys {
            let name = key.record_name();
            let records = resolver.txt(&name).await.map_err(|reason| anyhow::anyhow!("{reason}")).context("DKIM")?;
            problems.extend(key.private.compare(&records).err().map(|problem| format!("{name}: {problem}")));
        }
        anyhow::Ok(problems)
    })?;
    anyhow::ensure!(problems.is_empty(), "DKIM keys that receivers cannot verify:\n{}", problems.join("\n"));
    print(&format!("  in the DNS     {} DKIM keys are published\n", config.sign.keys.len()))?;
    Ok(())
}

fn describe(config: &Config) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<14} {value}");
    };
    row("hostname", &config.hostname);
    for listener in &config.ingress.listeners {
        let tls = if listener.tls.is_some() { "STARTTLS" } else { "no STARTTLS" };
        row("listens on", &format!("{} ({tls})", listener.address));
    }
    row("spool", &config.spool.path.display().to_string());
    row("admin", &format!("http://{}/metrics", config.admin.address));
    row("retry after", &retries(config));
    row("limits", &limits(config));
    for host in &config.ingress.list_hosts {
        row("list host", &list_host(host));
    }
    for source in &config.delivery.sources {
        row("leaves from", &local_source(source));
    }
    for key in &config.sign.keys {
        row("signs", &signing_key(key));
    }
    if config.ingress.list_hosts.is_empty() {
        row("list hosts", "none: relays for nobody");
    }
    text
}

fn retries(config: &Config) -> String {
    let schedule = &config.dispatch.retry;
    let delays: Vec<String> = schedule.delays.iter().map(|delay| Span(*delay).to_string()).collect();
    format!("{} (the last repeats); expires after {}", delays.join(", "), Span(schedule.expire_after))
}

fn limits(config: &Config) -> String {
    let names: Vec<&str> = config.route.providers.iter().map(|rule| &*rule.name).collect();
    let default = &config.route.default_limits;
    format!(
        "rules for {}; others {} connections, {} recipients a transaction",
        names.join(", "),
        default.connections,
        default.recipients_per_transaction
    )
}

fn list_host(host: &ListHost) -> String {
    let networks = host.networks.iter().map(ToString::to_string);
    let users = host.users.iter().map(|(name, _)| format!("user {name}"));
    let from: Vec<String> = networks.chain(users).collect();
    let bounces: Vec<String> = host.bounces_to.iter().map(|url| BounceUrl(url.clone()).to_string()).collect();
    let weight = if host.weight == 1 { String::new() } else { format!("; weight {}", host.weight) };
    format!(
        "{}: from {}; reverse-paths in {}; bounces to {}{weight}",
        host.name,
        if from.is_empty() { "nowhere".to_owned() } else { from.join(", ") },
        host.reverse_path_domains.join(", "),
        bounces.join(", then "),
    )
}

fn local_source(source: &Source) -> String {
    let list = |what: &str, names: &[Arc<str>]| match names {
        [] => String::new(),
        names => format!(", {what} {}", names.join(", ")),
    };
    let address = |ip: &IpAddr| match UdpSocket::bind((*ip, 0)) {
        Ok(_) => ip.to_string(),
        Err(error) => format!("{ip} (cannot be bound here: {error})"),
    };
    let addresses: Vec<String> = source.addresses.iter().map(address).collect();
    let (hosts, providers) = (list("mail of", &source.list_hosts), list("to", &source.providers));
    format!("{} as {}: {}{hosts}{providers}", source.name, source.hostname, addresses.join(", "))
}

fn signing_key(key: &SigningKey) -> String {
    let hosts = if key.list_hosts.is_empty() { "all list hosts".to_owned() } else { key.list_hosts.join(", ") };
    let (domain, name) = (&key.domain, key.record_name());
    format!("mail from {domain} of {hosts}; publish {name} TXT \"{}\"", key.private.record())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_configuration_is_described_with_who_relays_and_where_bounces_go() {
        let text = concat!(
            "[[list_host]]\nname = \"lists\"\nnetworks = [\"192.0.2.7\"]\nreverse_path_domains = [\"lists.example.org\"]\n",
            "bounces_to = [\"lmtp://192.0.2.7:8024\", \"192.0.2.8:25\"]\n"
        );
        let config = Config::parse("t.toml", text, Path::new("/")).expect("valid");
        let shown = describe(&config);
        let line = "list host      lists: from 192.0.2.7/32; reverse-paths in lists.example.org; \
                    bounces to lmtp://192.0.2.7:8024, then smtp://192.0.2.8:25";
        assert!(shown.contains(line), "{shown}");
    }
}

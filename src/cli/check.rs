//! `posthaste check`: a configuration in the words of what will happen.

use std::fmt::Write as _;

use super::{ConfigFile, Failure, print};
use crate::config::Config;
use crate::config::units::{BounceUrl, Span};
use crate::ingress::ListHost;

pub(super) fn run(file: &ConfigFile) -> Result<(), Failure> {
    let config = file.load()?;
    print(&format!("{}: valid\n{}", file.config.display(), describe(&config)))
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

//! `[[source]]`: pools of local addresses, in an order in which each can be reached.

use std::sync::Arc;

use super::raw::{self, Raw};
use super::translate::Findings;
use crate::delivery::Source;
use crate::mail::Domain;
use crate::route::ProviderRule;

/// Checks every `[[source]]`. `hostname` is what EHLO says where a source says nothing.
pub(super) fn options(
    raw: &Raw,
    findings: &mut Findings<'_>,
    hostname: &Arc<str>,
    rules: &[ProviderRule],
) -> Vec<Arc<Source>> {
    let mut sources: Vec<Arc<Source>> = Vec::with_capacity(raw.source.len());
    for (index, source) in raw.source.iter().enumerate() {
        let at = format!("source[{index}]");
        findings.check_name(&at, &source.name);
        findings.check_names_of_list_hosts(raw, &at, &source.list_hosts);
        check_addresses(source, &at, findings);
        check_providers(source, &at, findings, rules);
        check_order(source, &at, findings, &raw.source[..index]);
        let hostname = source_hostname(source, &at, findings, hostname);
        sources.push(Arc::new(translated(source, hostname)));
    }
    sources
}

fn check_addresses(source: &raw::Source, at: &str, findings: &mut Findings<'_>) {
    if source.addresses.is_empty() {
        findings.error(&format!("{at}.addresses"), "empty: name at least one address of this machine");
    }
    for (index, address) in source.addresses.iter().enumerate() {
        let key = format!("{at}.addresses[{index}]");
        if address.is_unspecified() || address.is_multicast() {
            findings.error(&key, format!("{address} is no address that mail can leave from"));
        }
        if source.addresses[..index].contains(address) {
            findings.error(&key, format!("{address} is named twice"));
        }
    }
}

fn check_providers(source: &raw::Source, at: &str, findings: &mut Findings<'_>, rules: &[ProviderRule]) {
    for (index, name) in source.providers.iter().enumerate() {
        if !rules.iter().any(|rule| *rule.name == **name) {
            let known: Vec<&str> = rules.iter().map(|rule| &*rule.name).collect();
            let message = format!("there is no rule for a provider {name:?}; there are {}", known.join(", "));
            findings.error(&format!("{at}.providers[{index}]"), message);
        }
    }
}

/// A source behind one that takes all its mail can never be reached.
fn check_order(source: &raw::Source, at: &str, findings: &mut Findings<'_>, earlier: &[raw::Source]) {
    let covers = |wide: &[String], narrow: &[String]| {
        wide.is_empty() || !narrow.is_empty() && narrow.iter().all(|name| wide.contains(name))
    };
    for (index, other) in earlier.iter().enumerate() {
        if other.name == source.name {
            findings.error(&format!("{at}.name"), format!("there is a source {:?} already", source.name));
        } else if covers(&other.list_hosts, &source.list_hosts) && covers(&other.providers, &source.providers) {
            let message = format!("never used: source[{index}] {:?} above it takes all of its mail", other.name);
            findings.error(at, message);
        }
    }
}

fn source_hostname(source: &raw::Source, at: &str, findings: &mut Findings<'_>, own: &Arc<str>) -> Arc<str> {
    match source.hostname.as_deref().map(Domain::parse) {
        None => Arc::clone(own),
        Some(Ok(domain)) => domain.as_str().into(),
        Some(Err(error)) => {
            let message = format!("{error}; write it like \"out1.example.net\"");
            findings.error(&format!("{at}.hostname"), message);
            Arc::clone(own)
        }
    }
}

fn translated(source: &raw::Source, hostname: Arc<str>) -> Source {
    let names = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect();
    Source {
        name: source.name.as_str().into(),
        addresses: source.addresses.clone(),
        hostname,
        list_hosts: names(&source.list_hosts),
        providers: names(&source.providers),
    }
}

//! Who may relay: list hosts by network or by password. Default: nobody.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::smtp::session::Relay;

use super::auth::Authenticator;
use super::options::{ListHost, Options};

/// The table of list hosts.
#[derive(Debug)]
pub(super) struct Admission {
    /// Longest prefix first, so that the first match is the best.
    networks: Vec<(IpNet, Arc<Relay>)>,
    /// Those that have passwords.
    pub(super) authenticator: Authenticator,
}

impl Admission {
    /// Translates the list hosts.
    ///
    /// # Errors
    /// Two list hosts claim one network or one user, or a password hash cannot be read.
    pub(super) fn new(options: &Options) -> io::Result<Admission> {
        let hosts: Vec<_> = options.list_hosts.iter().map(|host| (host, relay(host))).collect();
        let mut claimed: BTreeMap<IpNet, Arc<Relay>> = BTreeMap::new();
        for (host, relay) in &hosts {
            for network in host.networks.iter().map(IpNet::trunc) {
                claim(&mut claimed, network, relay)?;
            }
        }
        let mut networks: Vec<_> = claimed.into_iter().collect();
        networks.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_len()));
        let mut users = HashMap::new();
        for (host, relay) in &hosts {
            for (user, hash) in &host.users {
                if users.insert(user.clone(), (hash.clone(), Arc::clone(relay))).is_some() {
                    return Err(invalid(format!("user {user:?} of list host {:?} is there twice", host.name)));
                }
            }
        }
        Ok(Admission { networks, authenticator: Authenticator::new(users)? })
    }

    /// The list host that may relay from this address without a password: that of the longest matching prefix.
    pub(super) fn by_address(&self, address: IpAddr) -> Option<&Arc<Relay>> {
        let address = address.to_canonical();
        self.networks.iter().find(|(network, _)| network.contains(&address)).map(|(_, relay)| relay)
    }
}

fn claim(claimed: &mut BTreeMap<IpNet, Arc<Relay>>, network: IpNet, relay: &Arc<Relay>) -> io::Result<()> {
    match claimed.insert(network, Arc::clone(relay)) {
        Some(other) if other.name != relay.name => {
            let text = format!("network {network} belongs to list hosts {:?} and {:?}", other.name, relay.name);
            Err(invalid(format!("{text}; give each its own, or tell them apart by users")))
        }
        _ => Ok(()),
    }
}

fn relay(host: &ListHost) -> Arc<Relay> {
    let reverse_path_domains = host.reverse_path_domains.iter().map(|domain| normalised(domain)).collect();
    Arc::new(Relay { name: Arc::clone(&host.name), reverse_path_domains })
}

/// As [`crate::mail::Domain`] compares: lower case, A-labels.
fn normalised(domain: &str) -> String {
    let domain = domain.trim_matches('.');
    idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_ascii_lowercase())
}

pub(super) fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::super::tests::support::{list_host, options};
    use super::*;

    fn admission(hosts: Vec<ListHost>) -> io::Result<Admission> {
        Admission::new(&Options { list_hosts: hosts.into_iter().map(Arc::new).collect(), ..options() })
    }

    fn host(name: &str, networks: &[&str]) -> ListHost {
        let networks = networks.iter().map(|network| network.parse().expect("a network")).collect();
        ListHost { name: name.into(), networks, users: vec![], ..list_host() }
    }

    fn found<'a>(admission: &'a Admission, address: &str) -> Option<&'a str> {
        admission.by_address(address.parse().expect("an address")).map(|relay| &*relay.name)
    }

    #[test]
    fn the_longest_prefix_decides() {
        let admission = admission(vec![
            host("wide", &["10.0.0.0/8", "2001:db8::/32"]),
            host("narrow", &["10.1.0.0/16"]),
            host("one", &["10.1.2.3/32"]),
        ])
        .expect("valid");
        assert_eq!(found(&admission, "10.9.9.9"), Some("wide"));
        assert_eq!(found(&admission, "10.1.9.9"), Some("narrow"));
        assert_eq!(found(&admission, "10.1.2.3"), Some("one"));
        assert_eq!(found(&admission, "::ffff:10.1.2.3"), Some("one"));
        assert_eq!(found(&admission, "2001:db8::1"), Some("wide"));
        assert_eq!(found(&admission, "192.0.2.1"), None);
    }

    #[test]
    fn an_empty_configuration_relays_for_nobody() {
        let admission = admission(vec![]).expect("valid");
        assert_eq!(found(&admission, "127.0.0.1"), None);
        assert!(admission.authenticator.is_empty());
    }

    #[test]
    fn a_network_of_two_list_hosts_is_refused() {
        let error = admission(vec![host("a", &["10.0.0.0/8"]), host("b", &["10.3.0.0/8"])]).expect_err("ambiguous");
        assert!(error.to_string().contains("\"a\" and \"b\""), "{error}");
    }

    #[test]
    fn a_user_of_two_list_hosts_is_refused() {
        let error = admission(vec![list_host(), ListHost { networks: vec![], ..list_host() }]).expect_err("ambiguous");
        assert!(error.to_string().contains("\"user\""), "{error}");
    }

    #[test]
    fn declared_domains_are_compared_as_domains_are() {
        assert_eq!(normalised(".B\u{fc}cher.Example"), "xn--bcher-kva.example");
    }
}

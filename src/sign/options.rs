//! `[[dkim]]` of the configuration, translated.

use std::sync::Arc;

use super::key::PrivateKey;
use crate::mail::Domain;

/// Everything the signer is told.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The keys, in the order of the configuration.
    pub keys: Vec<SigningKey>,
}

/// A key and what it signs.
#[derive(Clone, Debug)]
pub struct SigningKey {
    /// The d= tag: signs mail whose From is in this domain or below it.
    pub domain: Domain,
    /// The s= tag.
    pub selector: Arc<str>,
    /// The list hosts whose mail it signs; empty: all.
    pub list_hosts: Vec<Arc<str>>,
    /// The key.
    pub private: Arc<PrivateKey>,
}

impl SigningKey {
    /// Where its public key is published (RFC 6376 section 3.6.2.1).
    pub fn record_name(&self) -> String {
        format!("{}._domainkey.{}", self.selector, self.domain.as_str())
    }

    fn is_for(&self, list_host: &str, author: &Domain) -> bool {
        let host = self.list_hosts.is_empty() || self.list_hosts.iter().any(|name| **name == *list_host);
        host && author.is_within(self.domain.as_str())
    }
}

impl Options {
    /// The keys that sign a message from `author`: those of the nearest domain, all of them, so that receivers without
    /// Ed25519 find an RSA signature and a key can be changed while the old one is still believed.
    pub(super) fn keys_for(&self, list_host: &str, author: &Domain) -> Vec<&SigningKey> {
        let fit = |key: &&SigningKey| key.is_for(list_host, author);
        let nearest = self.keys.iter().filter(fit).map(|key| key.domain.as_str().len()).max();
        self.keys.iter().filter(fit).filter(|key| Some(key.domain.as_str().len()) == nearest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn the_keys_of_the_nearest_domain_sign_and_only_for_their_list_hosts() {
        let key = |domain: &str, selector: &str, list_hosts: &[&str]| SigningKey {
            selector: selector.into(),
            list_hosts: list_hosts.iter().map(|&name| name.into()).collect(),
            ..samples::signing_key(domain, samples::rfc8463())
        };
        let options = Options {
            keys: vec![
                key("example.org", "a", &[]),
                key("lists.example.org", "b", &[]),
                key("lists.example.org", "c", &[]),
                key("lists.example.org", "d", &["other"]),
            ],
        };
        let selectors = |list_host: &str, author: &str| {
            let author = Domain::parse(author).expect("a domain");
            options.keys_for(list_host, &author).iter().map(|key| key.selector.to_string()).collect::<String>()
        };
        assert_eq!(selectors("lists", "example.org"), "a");
        assert_eq!(selectors("lists", "www.example.org"), "a");
        assert_eq!(selectors("lists", "lists.example.org"), "bc");
        assert_eq!(selectors("other", "x.lists.example.org"), "bcd");
        assert_eq!(selectors("lists", "notexample.org"), "");
        assert_eq!(selectors("lists", "org.example"), "");
    }
}

//! `[[dkim]]`: the keys are read with the configuration, so that a wrong one is refused with it and a good one stays in
//! force until then.

use std::path::Path;
use std::sync::Arc;

use super::raw::{self, Raw};
use super::translate::Findings;
use crate::mail::Domain;
use crate::sign::{Options, PrivateKey, SigningKey};

/// Checks every `[[dkim]]` and reads its key.
pub(super) fn options(raw: &Raw, findings: &mut Findings<'_>, directory: &Path) -> Options {
    let mut keys: Vec<SigningKey> = Vec::with_capacity(raw.dkim.len());
    for (index, dkim) in raw.dkim.iter().enumerate() {
        let at = format!("dkim[{index}]");
        findings.check_names_of_list_hosts(raw, &at, &dkim.list_hosts);
        let Some(key) = signing_key(dkim, &at, findings, directory) else { continue };
        match keys.iter().find(|other| other.record_name() == key.record_name()) {
            Some(other) => findings.error(
                &format!("{at}.selector"),
                format!(
                    "another [[dkim]] has the same domain and selector: both keys would be {}",
                    other.record_name()
                ),
            ),
            None => keys.push(key),
        }
    }
    Options { keys }
}

fn signing_key(dkim: &raw::Dkim, at: &str, findings: &mut Findings<'_>, directory: &Path) -> Option<SigningKey> {
    let domain = Domain::parse(&dkim.domain).map_err(|error| {
        let message = format!("{:?}: {error}; write it like \"example.org\"", dkim.domain);
        findings.error(&format!("{at}.domain"), message);
    });
    // A selector is one label or several (RFC 6376 section 3.1): it must make a name with something behind it.
    let selector = Domain::parse(&format!("{}._domainkey", dkim.selector)).map_err(|error| {
        let message = format!("{:?}: {error}; a selector is a DNS label such as \"2026a\"", dkim.selector);
        findings.error(&format!("{at}.selector"), message);
    });
    let private = PrivateKey::read(&directory.join(&dkim.key)).map_err(|message| {
        findings.error(&format!("{at}.key"), message);
    });
    Some(SigningKey {
        domain: domain.ok()?,
        selector: selector.ok()?.as_str().trim_end_matches("._domainkey").into(),
        list_hosts: dkim.list_hosts.iter().map(|name| name.as_str().into()).collect(),
        private: Arc::new(private.ok()?),
    })
}

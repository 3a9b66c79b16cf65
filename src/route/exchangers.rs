//! From MX records to the exchangers of a site (RFC 5321 section 5.1), without I/O.

use std::net::IpAddr;
use std::sync::Arc;

use crate::attempt::Exchanger;

/// Exchangers of one domain that are looked at; what lies beyond, in order of preference, is ignored.
const EXCHANGERS_MAX: usize = 32;

/// One MX record as it was answered: preference and target, in presentation form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MxRecord {
    pub(super) preference: u16,
    pub(super) target: String,
}

/// What the MX records of a domain say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Where its mail goes, in order of preference, then of name: equal sets make equal sites. Never empty.
    Exchangers(Vec<Exchanger>),
    /// The domain takes no mail (RFC 7505).
    NullMx,
    /// There are records, but none that could be a host (RFC 5321 section 5.1: an error, not a reason to try the domain itself).
    Unusable,
    /// We are the best exchanger ourselves: a loop.
    Ourselves,
}

/// Judges the MX records of a domain; without any, the domain is its own exchanger.
pub(super) fn judge(domain: &str, records: &[MxRecord], own_names: &[String]) -> Verdict {
    if records.is_empty() {
        let implicit = Exchanger { preference: 0, host: domain.into() };
        return without_us(vec![implicit], own_names);
    }
    if records.len() == 1 && normal(&records[0].target).is_empty() {
        return Verdict::NullMx;
    }
    let mut exchangers: Vec<_> = records.iter().filter_map(exchanger).collect();
    exchangers.sort();
    // A host that is named twice is tried once, at its better preference.
    let mut seen = std::collections::HashSet::new();
    exchangers.retain(|exchanger| seen.insert(Arc::clone(&exchanger.host)));
    exchangers.truncate(EXCHANGERS_MAX);
    if exchangers.is_empty() { Verdict::Unusable } else { without_us(exchangers, own_names) }
}

/// Drops us and everybody who is no better than us: they would hand the mail to us.
fn without_us(mut exchangers: Vec<Exchanger>, own_names: &[String]) -> Verdict {
    let is_us = |exchanger: &&Exchanger| own_names.iter().any(|name| normal(name) == *exchanger.host);
    if let Some(ours) = exchangers.iter().find(is_us).map(|exchanger| exchanger.preference) {
        exchangers.retain(|exchanger| exchanger.preference < ours);
    }
    if exchangers.is_empty() { Verdict::Ourselves } else { Verdict::Exchangers(exchangers) }
}

fn exchanger(record: &MxRecord) -> Option<Exchanger> {
    let host = normal(&record.target);
    is_host(&host).then(|| Exchanger { preference: record.preference, host: host.into() })
}

fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Whether a target can be a host of the public DNS: not empty, not an address in the guise of a name, not `localhost`.
/// Underscores are against the rules and in use; they pass.
pub(super) fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last = name.rsplit('.').next().unwrap_or("");
    (1..=253).contains(&name.len())
        && name.split('.').all(label)
        && !last.bytes().all(|b| b.is_ascii_digit())
        && last != "localhost"
        && name.parse::<IpAddr>().is_err()
}

/// The site's name: its exchangers in order, `mx1.example.org/10,mx2.example.org/20`.
pub(super) fn site_name(exchangers: &[Exchanger]) -> String {
    let parts: Vec<_> = exchangers.iter().map(|e| format!("{}/{}", e.host, e.preference)).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(list: &[(u16, &str)]) -> Vec<MxRecord> {
        list.iter().map(|&(preference, target)| MxRecord { preference, target: target.to_owned() }).collect()
    }

    fn judged(list: &[(u16, &str)]) -> String {
        match judge("example.org", &records(list), &["relay.example.net".to_owned()]) {
            Verdict::Exchangers(exchangers) => site_name(&exchangers),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_mx_records_mean() {
        for (list, expected) in [
            (&[][..], "example.org/0"),
            (&[(0, ".")], "NullMx"),
            (&[(10, ".")], "NullMx"),
            (&[(0, "."), (10, "mx.example.org.")], "mx.example.org/10"),
            (&[(0, "."), (0, ".")], "Unusable"),
            (&[(20, "B.example.org."), (10, "a.example.org.")], "a.example.org/10,b.example.org/20"),
            (&[(10, "b.example.org."), (10, "a.example.org.")], "a.example.org/10,b.example.org/10"),
            (&[(20, "a.example.org."), (10, "A.example.org")], "a.example.org/10"),
            (&[(10, "192.0.2.1.")], "Unusable"),
            (&[(10, "2001:db8::1")], "Unusable"),
            (&[(10, "localhost.")], "Unusable"),
            (&[(10, "mx.localhost.")], "Unusable"),
            (&[(10, "a..b.")], "Unusable"),
            (&[(10, "m\u{fc}ll.example.")], "Unusable"),
            (&[(10, "\\000.example.")], "Unusable"),
            (&[(10, "my_mx.example.org.")], "my_mx.example.org/10"),
            (&[(10, "relay.example.net.")], "Ourselves"),
            (
                &[(5, "a.example.org."), (10, "Relay.Example.NET."), (10, "b.example.org."), (20, "c.example.org.")],
                "a.example.org/5",
            ),
        ] {
            assert_eq!(judged(list), expected, "{list:?}");
        }
    }

    #[test]
    fn a_domain_of_our_own_name_without_mx_is_a_loop() {
        assert_eq!(judge("relay.example.net", &[], &["Relay.example.net.".to_owned()]), Verdict::Ourselves);
    }

    #[test]
    fn five_hundred_records_are_cut_and_names_have_an_end() {
        let many: Vec<_> =
            (0..500).map(|i| MxRecord { preference: i, target: format!("mx{i}.example.org.") }).collect();
        let Verdict::Exchangers(kept) = judge("example.org", &many, &[]) else { panic!("usable") };
        assert_eq!((kept.len(), kept[31].preference), (EXCHANGERS_MAX, 31));
        assert!(!is_host(&"a.".repeat(128)) && !is_host(&"a".repeat(64)) && !is_host(""));
    }
}

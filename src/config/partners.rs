//! `[[partner]]` to what dispatch is told, with the checks that need more than one key.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{self, PartnerCondition, Raw};
use super::translate::{Findings, is_own};
use super::units::{HostPort, Percent, Span};
use crate::attempt::{Credentials, Limits, Partner, PartnerTls, Rate, Route, Site};
use crate::mail::Domain;
use crate::partner::{self, Condition, Mark, Rule, Suffix};

const DAY: Duration = Duration::from_secs(86_400);
/// An unused connection to a partner is kept for so long.
const IDLE: Duration = Duration::from_secs(30);

/// What is wrong with the partners.
pub(super) fn check(findings: &mut Findings<'_>, raw: &Raw, directory: &Path) {
    for (index, partner) in raw.partner.iter().enumerate() {
        let key = format!("partner[{index}]");
        if raw.partner[..index].iter().any(|other| other.name == partner.name) {
            findings.error(&format!("{key}.name"), format!("there is a partner {:?} already", partner.name));
        }
        findings.check_name(&key, &partner.name);
        check_hosts(findings, &key, partner, raw);
        check_credentials(findings, &key, partner, directory);
        check_suffixes(findings, &key, partner);
        check_condition(findings, &key, partner, raw);
        check_counts(findings, &key, partner);
    }
    check_list_hosts(findings, raw);
}

fn check_hosts(findings: &mut Findings<'_>, key: &str, partner: &raw::Partner, raw: &Raw) {
    if partner.hosts.is_empty() {
        findings.error(&format!("{key}.hosts"), "empty: name at least one, for example [\"smtp.example.net:587\"]");
    }
    for (at, HostPort { host, port }) in partner.hosts.iter().enumerate() {
        let key = format!("{key}.hosts[{at}]");
        let is_ours = |address: SocketAddr| is_own(host, *port, address);
        if let Some(own) = raw.listener.iter().position(|listener| is_ours(listener.address)) {
            findings
                .error(&key, format!("{host}:{port} is our own listener[{own}].address: mail would go in a circle"));
        }
        if raw.hostname.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(host)) {
            findings.error(&key, format!("{host} is our own `hostname`: mail would go in a circle"));
        }
    }
}

fn check_credentials(findings: &mut Findings<'_>, key: &str, partner: &raw::Partner, directory: &Path) {
    match (&partner.user, &partner.password_file) {
        (Some(_), None) => findings.error(&format!("{key}.user"), "password_file is missing beside it"),
        (None, Some(_)) => findings.error(&format!("{key}.password_file"), "user is missing beside it"),
        (Some(user), Some(_)) if user.is_empty() || !user.chars().all(|c| c.is_ascii_graphic()) => {
            findings.error(&format!("{key}.user"), "a user is made of printable ASCII characters without blanks");
        }
        _ => {}
    }
    if let Some(path) = partner.password_file.as_ref().map(|path| directory.join(path))
        && let Err(error) = read_password(&path)
    {
        findings.error(&format!("{key}.password_file"), format!("{}: {error}", path.display()));
    }
    match partner.tls {
        PartnerTls::Off if partner.user.is_some() => {
            findings.error(&format!("{key}.tls"), "off, with a user: the password would go out in clear text");
        }
        PartnerTls::Required if partner.user.is_some() => {
            let message = "anybody's certificate will do, and gets the password: better \"verified\"";
            findings.warn(&format!("{key}.tls"), message);
        }
        _ => {}
    }
}

/// The first line of the file.
fn read_password(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() {
        Err("its first line is to be the password, and is empty".into())
    } else {
        Ok(password.into())
    }
}

fn check_suffixes(findings: &mut Findings<'_>, key: &str, partner: &raw::Partner) {
    if partner.suffixes.is_empty() {
        findings.error(&format!("{key}.suffixes"), "empty: it can never match. \"*\" stands for all domains");
    }
    for (at, text) in partner.suffixes.iter().enumerate() {
        let key = format!("{key}.suffixes[{at}]");
        let Some(suffix) = suffix(text) else {
            let message = format!("{text:?} is not like \".de\", \".co.uk\", \"example.org\" or \"*\"");
            findings.error(&key, message);
            continue;
        };
        let covers = |other: &String| match (self::suffix(other), &suffix) {
            (Some(Suffix::Any), _) => true,
            (Some(earlier), Suffix::Exactly(name)) => earlier.matches(name),
            (Some(Suffix::Below(earlier)), Suffix::Below(later)) => later.ends_with(&*earlier),
            _ => false,
        };
        if let Some(earlier) = partner.suffixes[..at].iter().position(covers) {
            findings.error(&key, format!("never reached: suffixes[{earlier}] of the same partner covers it"));
        }
    }
}

fn check_condition(findings: &mut Findings<'_>, key: &str, partner: &raw::Partner, raw: &Raw) {
    let marks = [
        ("overflow_above", partner.overflow_above.is_some()),
        ("overflow_below", partner.overflow_below.is_some()),
        ("overflow_age", partner.overflow_age.is_some()),
        ("overflow_age_below", partner.overflow_age_below.is_some()),
    ];
    if partner.condition != PartnerCondition::Overflow {
        for (name, _) in marks.iter().filter(|(_, given)| *given) {
            findings.error(&format!("{key}.{name}"), "has no meaning unless condition = \"overflow\"");
        }
        return;
    }
    if partner.overflow_above.is_none() && partner.overflow_age.is_none() {
        let message = "overflow of what? Set overflow_above, overflow_age or both";
        findings.error(&format!("{key}.condition"), message);
    }
    if partner.overflow_above.is_some() && raw.budget.uplink.is_none() {
        let message = "nobody knows how full the line is while [budget] uplink is not set: it would never open";
        findings.error(&format!("{key}.overflow_above"), message);
    }
    if partner.overflow_above.is_some_and(|above| above.0 == 0) {
        findings.error(&format!("{key}.overflow_above"), "0% is reached by an empty line; use condition = \"always\"");
    }
    if partner.overflow_below.is_some_and(|below| partner.overflow_above.is_none_or(|above| below >= above)) {
        findings.error(&format!("{key}.overflow_below"), "must be below overflow_above");
    }
    if partner.overflow_age_below.is_some_and(|below| partner.overflow_age.is_none_or(|age| below >= age)) {
        findings.error(&format!("{key}.overflow_age_below"), "must be below overflow_age");
    }
}

fn check_counts(findings: &mut Findings<'_>, key: &str, partner: &raw::Partner) {
    let counts = [
        ("quota_day", partner.quota_day.map(u64::from)),
        ("quota_mailing", partner.quota_mailing),
        ("weight", Some(partner.weight.into())),
        ("connections", Some(partner.connections.into())),
        ("recipients_per_transaction", Some(partner.recipients_per_transaction.into())),
    ];
    for (name, _) in counts.iter().filter(|(_, count)| *count == Some(0)) {
        findings.error(&format!("{key}.{name}"), "0 would never give it any mail; leave the partner out instead");
    }
}

fn check_list_hosts(findings: &mut Findings<'_>, raw: &Raw) {
    for (index, host) in raw.list_host.iter().enumerate() {
        if let Some(name) = &host.partner
            && !raw.partner.iter().any(|partner| partner.name == *name)
        {
            findings.error(&format!("list_host[{index}].partner"), format!("there is no [[partner]] named {name:?}"));
        }
    }
}

/// Reads `*`, `.de`, or `example.org`.
fn suffix(text: &str) -> Option<Suffix> {
    if text == "*" {
        return Some(Suffix::Any);
    }
    let bare = text.strip_prefix('.').unwrap_or(text);
    // A top-level domain is no mail domain, but a suffix.
    let probe = if bare.contains('.') { bare.to_owned() } else { format!("x.{bare}") };
    let domain = Domain::parse(&probe).ok()?;
    let name = if bare.contains('.') { domain.as_str() } else { domain.as_str().strip_prefix("x.")? };
    match text.starts_with('.') {
        true => Some(Suffix::Below(format!(".{name}").into())),
        false => bare.contains('.').then(|| Suffix::Exactly(name.into())),
    }
}

/// What dispatch is told. [`check`] found nothing wrong.
pub(super) fn options(raw: &Raw, hostname: &str, directory: &Path) -> partner::Options {
    let own_token: Arc<str> = partner::own_token(hostname).into();
    let rules = raw.partner.iter().map(|partner| rule(partner, &own_token, directory)).collect();
    let flagged = raw.list_host.iter().filter(|host| host.partner.is_some());
    partner::Options { rules, from_partners: flagged.map(|host| host.name.as_str().into()).collect() }
}

fn rule(raw: &raw::Partner, own_token: &Arc<str>, directory: &Path) -> Rule {
    let password = raw.password_file.as_ref().and_then(|path| read_password(&directory.join(path)).ok());
    let credentials = raw.user.as_ref().zip(password);
    let name: Arc<str> = raw.name.as_str().into();
    let partner = Partner {
        name: Arc::clone(&name),
        hosts: raw.hosts.iter().map(|HostPort { host, port }| (host.as_str().into(), *port)).collect(),
        tls: raw.tls,
        credentials: credentials
            .map(|(user, password)| Credentials { user: user.as_str().into(), password: password.into() }),
        other_line: raw.other_line,
        own_token: Arc::clone(own_token),
    };
    let site: Arc<str> = format!("partner:{name}").into();
    let per_day = raw.quota_day.map(|count| Rate { count, period: DAY });
    Rule {
        name,
        site: Arc::new(Site { name: Arc::clone(&site), provider: site, route: Route::Partner(Arc::new(partner)) }),
        limits: Arc::new(limits(raw)),
        suffixes: raw.suffixes.iter().filter_map(|text| suffix(text)).collect(),
        condition: condition(raw),
        quotas: raw.quota.map(|quota| quota.0).into_iter().chain(per_day).collect(),
        quota_mailing: raw.quota_mailing,
        weight: raw.weight,
    }
}

fn limits(raw: &raw::Partner) -> Limits {
    Limits {
        connections: raw.connections,
        connection_rate: None,
        recipient_rate: None,
        recipients_per_transaction: raw.recipients_per_transaction,
        messages_per_connection: 1000,
        idle_timeout: IDLE,
    }
}

fn condition(raw: &raw::Partner) -> Condition {
    let share = |percent: Percent| f64::from(percent.0) / 100.0;
    let uplink = raw.overflow_above.map(|above| {
        let low = raw.overflow_below.map_or(share(above) * 0.8, share);
        Mark { high: share(above), low }
    });
    let age = raw.overflow_age.map(|Span(high)| {
        let low = raw.overflow_age_below.map_or(high / 2, |below| below.0);
        Mark { high, low }
    });
    match raw.condition {
        PartnerCondition::Always => Condition::Always,
        PartnerCondition::Overflow => Condition::Overflow { uplink, age },
        PartnerCondition::Fallback => Condition::Fallback,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_is_a_star_something_below_or_one_domain() {
        assert_eq!(suffix("*"), Some(Suffix::Any));
        assert_eq!(suffix(".DE"), Some(Suffix::Below(".de".into())));
        assert_eq!(suffix(".co.uk"), Some(Suffix::Below(".co.uk".into())));
        assert_eq!(suffix("Example.org"), Some(Suffix::Exactly("example.org".into())));
        for bad in ["", ".", "de", "*.de", "..de", "a b.de", "@de"] {
            assert_eq!(suffix(bad), None, "{bad:?}");
        }
    }
}

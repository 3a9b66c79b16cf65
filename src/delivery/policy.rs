//! Which TLS a connection must have (RFC 7672, RFC 8461, RFC 8689): what the operator, the message and the destination's own
//! DNS ask for, put together.
//!
//! [`Demands`] belong to a destination and a message, before anybody is connected to; [`Policy`] is what follows from them at
//! one exchanger. What falls short is refused for this destination alone: the site's other domains go on. A partner is asked for
//! what its own section says, and what falls short of that is refused for the partner: all its mail goes another way.

use std::sync::Arc;

use super::classify::{self, Setback};
use super::options::{Options, TlsMode, TlsRule};
use crate::attempt::{Attempt, PartnerTls, Route, Site};
use crate::mail::{Destination, header};
use crate::outcome::{Enhanced, Phase, Reason, Scope};
use crate::route::{Resolver, StsMode, StsPolicy, Tlsa};

/// What a destination and a message ask of every connection that carries it.
#[derive(Clone, Debug)]
pub(super) struct Demands {
    /// The least that the operator or the message wants.
    floor: TlsMode,
    /// Whether the message wants nothing less, or its sender back (REQUIRETLS, RFC 8689).
    requiretls: bool,
    /// Whom it concerns if a host falls short.
    blames: Scope,
    /// Names of which a verified certificate must bear one; the exchanger's where there are none.
    names: Arc<[Box<str>]>,
    /// Whether exchangers are to be asked for TLSA records.
    dane: bool,
    /// The domain's MTA-STS policy, unless its mode is `none`.
    sts: Option<Arc<StsPolicy>>,
    /// The site's name and all of the above: only connections under equal demands are shared.
    pub(super) lane: Arc<str>,
}

/// What holds at one exchanger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// In clear.
    Off,
    /// TLS where it is offered, whatever the certificate; in clear if that fails. `&str`: for whom it is counted.
    Opportunistic(&'static str),
    /// TLS, whatever the certificate.
    Required,
    /// TLS with a certificate that a root vouches for and that bears one of the names, or else the exchanger's.
    Verified(&'static str, Arc<[Box<str>]>),
    /// TLS that matches a TLSA record.
    Dane(Arc<[Tlsa]>),
}

impl Policy {
    /// Whether mail may go in clear.
    pub(super) fn tolerates_clear(&self) -> bool {
        matches!(self, Policy::Off | Policy::Opportunistic(_))
    }

    /// The policy as a metric label.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Policy::Off => "off",
            Policy::Opportunistic(label) | Policy::Verified(label, _) => label,
            Policy::Required => "required",
            Policy::Dane(_) => "dane",
        }
    }
}

impl Demands {
    /// Finds out what this attempt asks for.
    pub(super) async fn of(attempt: &Attempt, content: &[u8], options: &Options, resolver: &Resolver) -> Demands {
        let rule = rule(options, attempt);
        let configured = match (&attempt.site.route, rule) {
            (_, Some(rule)) => rule.mode,
            (Route::ListHost(_), None) => options.list_hosts.get(&attempt.site.name).copied().unwrap_or_default(),
            (Route::Mx(_), None) => options.tls,
            (Route::Partner(partner), None) => partner_mode(partner.tls),
        };
        let requiretls = attempt.envelope.params.requiretls;
        let floor = if requiretls { TlsMode::Verified } else { configured };
        let names = rule.map(|rule| Arc::clone(&rule.names)).unwrap_or_default();
        let is_partner = matches!(attempt.site.route, Route::Partner(_));
        // One message's wishes say nothing of a partner.
        let blames = if is_partner && !requiretls { Scope::Site } else { Scope::Recipient };
        let lane = Arc::clone(&attempt.site.name);
        let mut demands = Demands { floor, requiretls, blames, names, dane: false, sts: None, lane };
        // What the recipient's domain publishes is about its own exchangers.
        if floor != TlsMode::Off
            && !is_partner
            && let Destination::Domain(domain) = &attempt.destination
        {
            demands.dane = resolver.has_secure_exchangers(&attempt.destination).await;
            demands.sts = resolver.sts(domain).await.filter(|policy| policy.mode != StsMode::None);
            if !requiretls && (demands.dane || demands.sts.is_some()) && waives_tls(content) {
                (demands.dane, demands.sts) = (false, None);
            }
        }
        demands.lane = demands.lane(&attempt.site, options.tls);
        demands
    }

    /// Plain demands, as most have them, need no name of their own.
    fn lane(&self, site: &Site, usual: TlsMode) -> Arc<str> {
        let Demands { floor, requiretls, blames: _, names, dane, sts, lane: _ } = self;
        if *floor == usual && names.is_empty() && !dane && sts.is_none() && !requiretls {
            return Arc::clone(&site.name);
        }
        let sts = sts.as_ref().map(|policy| (policy.mode, &policy.mx));
        format!("{} {floor:?} {names:?} dane={dane} sts={sts:?} requiretls={requiretls}", site.name).into()
    }

    /// What holds at an exchanger: DANE first, because MTA-STS must not overrule it (RFC 8461 section 2).
    ///
    /// # Errors
    /// Why this exchanger must not be used for this destination: no trustworthy answer about its TLSA records, or the domain's
    /// MTA-STS policy does not name it.
    pub(super) async fn at(&self, host: &str, port: u16, resolver: &Resolver) -> Result<Policy, Setback> {
        let records = if self.dane { resolver.tlsa(host, port).await.map_err(untrusted)? } else { Arc::from([]) };
        if records.iter().any(Tlsa::is_usable) {
            return Ok(Policy::Dane(records));
        }
        let found = self.without_dane(host)?;
        // Records that are all unusable still promise TLS (RFC 7672 section 2.1).
        let promised = !records.is_empty() && found.tolerates_clear();
        Ok(if promised { Policy::Required } else { found })
    }

    /// A host without STARTTLS, where there must be TLS. A message with REQUIRETLS goes back at once (RFC 8689 section 5).
    pub(super) fn unencrypted(&self, policy: &Policy, remote: &str) -> Setback {
        let class = if self.requiretls { 5 } else { 4 };
        let text = format!("TLS is required here ({}) and the host does not offer STARTTLS", policy.as_str());
        classify::decided(Phase::Tls, self.blames, Enhanced::new(class, 7, 10), &text, Some(remote))
    }

    /// A failed handshake, where there must be TLS.
    pub(super) fn insecure(&self, setback: Setback) -> Setback {
        let reason = Reason { scope: self.blames, ..setback.reason };
        Setback { reason, permanent: false }
    }

    fn without_dane(&self, host: &str) -> Result<Policy, Setback> {
        match (&self.sts, self.floor) {
            (_, TlsMode::Off) => Ok(Policy::Off),
            (Some(policy), _) if policy.mode == StsMode::Enforce => match policy.names(host) {
                true => Ok(Policy::Verified("sts", Arc::clone(&self.names))),
                false => Err(not_named(host)),
            },
            (_, TlsMode::Verified) => Ok(Policy::Verified("verified", Arc::clone(&self.names))),
            (_, TlsMode::Required) => Ok(Policy::Required),
            (Some(policy), _) if policy.names(host) => Ok(Policy::Opportunistic("sts_testing")),
            (Some(_), _) => Ok(Policy::Opportunistic("sts_testing_not_named")),
            (None, _) => Ok(Policy::Opportunistic("opportunistic")),
        }
    }
}

fn partner_mode(tls: PartnerTls) -> TlsMode {
    match tls {
        PartnerTls::Off => TlsMode::Off,
        PartnerTls::Required => TlsMode::Required,
        PartnerTls::Verified => TlsMode::Verified,
    }
}

/// The operator's first rule for this destination.
fn rule<'a>(options: &'a Options, attempt: &Attempt) -> Option<&'a TlsRule> {
    let Route::Mx(exchangers) = &attempt.site.route else { return None };
    let Destination::Domain(domain) = &attempt.destination else { return None };
    let within = |host: &str, suffix: &str| {
        host.strip_suffix(suffix.trim_start_matches('.')).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    options.tls_rules.iter().find(|rule| {
        let named = rule.domains.iter().any(|name| match name.strip_prefix('.') {
            Some(suffix) => domain.is_within(suffix),
            None => domain.as_str() == name,
        });
        let known = |host: &str| rule.mx_suffixes.iter().any(|suffix| within(host, suffix));
        named || exchangers.iter().all(|exchanger| known(&exchanger.host))
    })
}

/// Whether the message would rather arrive than be protected: `TLS-Required: No` (RFC 8689 section 4.2.2).
fn waives_tls(content: &[u8]) -> bool {
    header::fields(content).any(|field| field.is("TLS-Required") && field.value().eq_ignore_ascii_case("no"))
}

fn untrusted(reason: Reason) -> Setback {
    Setback { reason: Reason { phase: Phase::Tls, scope: Scope::Recipient, ..reason }, permanent: false }
}

fn not_named(host: &str) -> Setback {
    let text = format!("the domain's MTA-STS policy does not name its exchanger {host}");
    // It says nothing of the site, which its other domains may go on using.
    classify::decided(Phase::Tls, Scope::Recipient, Enhanced::new(4, 7, 5), &text, None)
}

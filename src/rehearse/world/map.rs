//! The map of the default world: 312 domains, which of them a large provider serves, and how the others behave.

use std::time::Duration;

use super::scenario::Scenario;

/// Domains in every generated world: as many as the measurements beside other relays used.
pub(super) const DOMAINS: usize = 312;
/// Domains of organisations hosted by each of Google and Microsoft.
const HOSTED: usize = 40;

/// A provider with rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Large {
    Google,
    Outlook,
    Office365,
    Yahoo,
    Apple,
    Comcast,
    Gmx,
    Orange,
}

impl Large {
    pub(super) const ALL: [Large; 8] = [
        Large::Google,
        Large::Outlook,
        Large::Office365,
        Large::Yahoo,
        Large::Apple,
        Large::Comcast,
        Large::Gmx,
        Large::Orange,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Large::Google => "google",
            Large::Outlook => "outlook",
            Large::Office365 => "office365",
            Large::Yahoo => "yahoo",
            Large::Apple => "apple",
            Large::Comcast => "comcast",
            Large::Gmx => "gmx",
            Large::Orange => "orange",
        }
    }

    /// Connections at a time, and transactions per connection: the first as the relay's `providers.toml` ships it, the
    /// second a little above, because it is not ours to say what counts as one.
    pub(super) fn limits(self) -> (u32, u32) {
        match self {
            Large::Google | Large::Outlook | Large::Office365 => (5, 60),
            Large::Yahoo => (10, 24),
            Large::Apple => (10, 6),
            Large::Comcast => (25, 1200),
            Large::Gmx => (4, 24),
            Large::Orange => (2, 120),
        }
    }

    /// Exchangers that the provider's domains share. Office 365 has one per tenant instead.
    pub(super) fn exchangers(self) -> &'static [&'static str] {
        match self {
            Large::Google => &[
                "aspmx.l.google.com",
                "alt1.aspmx.l.google.com",
                "alt2.aspmx.l.google.com",
                "gmail-smtp-in.l.google.com",
                "alt1.gmail-smtp-in.l.google.com",
            ],
            Large::Outlook => &["outlook-com.olc.protection.outlook.com"],
            Large::Office365 => &[],
            Large::Yahoo => &["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net", "mta7.am0.yahoodns.net"],
            Large::Apple => &["mx01.mail.icloud.com", "mx02.mail.icloud.com"],
            Large::Comcast => &["mx1a1.comcast.net", "mx2a1.comcast.net"],
            Large::Gmx => &["mx00.gmx.net", "mx01.gmx.net", "mx-ha02.web.de"],
            Large::Orange => &["smtp-in.orange.fr"],
        }
    }
}

/// How a domain behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Healthy,
    Greylisting(Duration),
    Tarpit(Duration),
    /// `421` to every seventh MAIL.
    Busy,
    /// Ten recipients per transaction.
    Narrow,
    /// The connection is cut after every fifth final dot.
    Cutting,
    /// Before the extensions.
    Plain,
    ImplicitMx,
    /// The first exchanger refuses connections, the second takes mail.
    FirstDead,
    NxDomain,
    NullMx,
    ServFail,
    DnsTimeout,
    NoAddress,
    Refused,
    Resetting,
    BlackHole,
    Silent,
}

impl Mood {
    /// Whether mail arrives in the end.
    pub(super) fn takes_mail(self) -> bool {
        !matches!(
            self,
            Mood::NxDomain
                | Mood::NullMx
                | Mood::ServFail
                | Mood::DnsTimeout
                | Mood::NoAddress
                | Mood::Refused
                | Mood::Resetting
                | Mood::BlackHole
                | Mood::Silent
        )
    }
}

/// One domain.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) domain: String,
    /// Share of the recipients, in any unit.
    pub(super) weight: f64,
    pub(super) large: Option<Large>,
    pub(super) mood: Mood,
}

impl Spot {
    pub(super) fn large(domain: &str, weight: f64, large: Large) -> Spot {
        Spot { domain: domain.to_owned(), weight, large: Some(large), mood: Mood::Healthy }
    }

    /// The name that reports give it.
    pub(super) fn group(&self) -> String {
        self.large.map_or_else(|| self.domain.clone(), |large| large.name().to_owned())
    }
}

/// The webmail domains: what they are called in the rehearsal and their share of the recipients in percent.
const WEBMAIL: [(&str, f64, Large); 12] = [
    ("gmail.com.test", 20.0, Large::Google),
    ("googlemail.com.test", 1.5, Large::Google),
    ("outlook.com.test", 4.0, Large::Outlook),
    ("hotmail.com.test", 6.0, Large::Outlook),
    ("yahoo.com.test", 7.0, Large::Yahoo),
    ("aol.com.test", 1.5, Large::Yahoo),
    ("icloud.com.test", 4.0, Large::Apple),
    ("me.com.test", 1.0, Large::Apple),
    ("comcast.net.test", 3.0, Large::Comcast),
    ("gmx.de.test", 3.0, Large::Gmx),
    ("web.de.test", 2.0, Large::Gmx),
    ("orange.fr.test", 3.0, Large::Orange),
];

/// Top-level domains of the tail, by how often they occur.
const TLDS: [&str; 10] = ["com", "com", "com", "com", "org", "net", "de", "fr", "edu", "ca"];

/// The i-th domain's top-level domain; where partners take a country's mail there is one more country.
fn tld(scenario: Scenario, i: usize) -> &'static str {
    match TLDS[i % 10] {
        "edu" if scenario.uplink().is_some() => "nl",
        tld => tld,
    }
}

/// All domains of a generated world.
pub(super) fn spots(scenario: Scenario) -> Vec<Spot> {
    let mut spots: Vec<Spot> =
        WEBMAIL.iter().map(|(domain, weight, large)| Spot::large(domain, *weight, *large)).collect();
    // Hosted organisations and the tail are each spread like 1/n, as list sizes per domain are.
    for (i, weight) in spread(HOSTED, 7.0) {
        spots.push(Spot::large(&format!("workspace{i}.{}.test", tld(scenario, i)), weight, Large::Google));
        spots.push(Spot::large(&format!("tenant{i}.{}.test", tld(scenario, i)), weight, Large::Office365));
    }
    let tail = scenario.domains() - spots.len();
    for (i, weight) in spread(tail, 30.0) {
        let domain = format!("site{i}.{}.test", tld(scenario, i));
        spots.push(Spot { domain, weight, large: None, mood: scenario.mood(i) });
    }
    spots
}

/// `count` weights like 1/(n+8) that sum to `total`: the first is not much larger than the second.
fn spread(count: usize, total: f64) -> impl Iterator<Item = (usize, f64)> {
    let weight = |i: usize| 1.0 / (i as f64 + 8.0);
    let sum: f64 = (0..count).map(weight).sum();
    (0..count).map(move |i| (i, weight(i) / sum * total))
}

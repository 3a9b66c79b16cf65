//! The scenarios, by name: which moods the tail has, how far away everybody is, and what the relay's limits meet.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::EXPIRE_AFTER;
use super::map::{DOMAINS, Large, Mood, Spot};
use crate::rehearse::internet::{AfterDot, Behaviour, Builder, Domain, Door, Extensions, Policy};
use crate::rehearse::relay::TIME_LAPSE;

/// A kind of weather.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scenario {
    /// A realistic mix: most sites healthy, some greylisting, slow, busy, dead or gone.
    #[default]
    Default,
    /// Receivers without delay, failures or limits: what the relay itself is capable of.
    Fast,
    /// Every site of the tail greylists.
    Greylist,
    /// A third of the tail is dead, in every way there is.
    DeadHosts,
    /// Every shared exchanger refuses a second domain in a transaction.
    OneDomain,
    /// A third of the tail takes a second for every reply.
    Tarpit,
    /// A tenth of all mailboxes is full, a twentieth gone.
    FullHouse,
    /// A line of T1 speed, and a partner that takes over the mail to two countries while it is full.
    T1Overflow,
    /// 5,000 domains and 64 file descriptors.
    Fd64,
}

/// A line of 1.5 Mbit/s, in octets per second.
const T1: u64 = 187_500;
/// What the partner takes.
pub(in crate::rehearse) const PARTNERS_SUFFIXES: [&str; 2] = [".de.test", ".nl.test"];
/// The partner, as a provider of the simulated internet, and its exchanger.
pub(in crate::rehearse) const PARTNER: (&str, &str) = ("partner", "smtp.partner.test");

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 9] = [
        Scenario::Default,
        Scenario::Fast,
        Scenario::Greylist,
        Scenario::DeadHosts,
        Scenario::OneDomain,
        Scenario::Tarpit,
        Scenario::FullHouse,
        Scenario::T1Overflow,
        Scenario::Fd64,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Default => "default",
            Scenario::Fast => "fast",
            Scenario::Greylist => "greylist",
            Scenario::DeadHosts => "dead-hosts",
            Scenario::OneDomain => "one-domain",
            Scenario::Tarpit => "tarpit",
            Scenario::FullHouse => "full-house",
            Scenario::T1Overflow => "t1-overflow",
            Scenario::Fd64 => "fd-64",
        }
    }

    /// Recipients a second that the relay starts with at a provider: in the rehearsal's time, or at once.
    pub fn initial_rate(self) -> u32 {
        if self.is_fast() { 1_000_000 } else { 50 * TIME_LAPSE }
    }

    /// Whether limits and distances are left out.
    pub fn is_fast(self) -> bool {
        self == Scenario::Fast
    }

    /// Shares of mailboxes that are gone and that are full.
    pub(super) fn bad_mailboxes(self) -> (f64, f64) {
        match self {
            Scenario::Fast => (0.0, 0.0),
            Scenario::FullHouse => (0.05, 0.1),
            _ => (0.01, 0.002),
        }
    }

    /// The mood of the i-th site of the tail; the lower `i`, the more recipients it has.
    pub(super) fn mood(self, i: usize) -> Mood {
        match self {
            Scenario::Fast | Scenario::OneDomain | Scenario::FullHouse | Scenario::T1Overflow | Scenario::Fd64 => {
                Mood::Healthy
            }
            Scenario::Greylist => Mood::Greylisting(Duration::from_millis(500 + 250 * (i as u64 % 8))),
            Scenario::DeadHosts if i % 3 == 1 => DEAD[i / 3 % DEAD.len()],
            Scenario::Tarpit if i % 3 == 1 => Mood::Tarpit(Duration::from_secs(1)),
            Scenario::DeadHosts | Scenario::Tarpit => Mood::Healthy,
            Scenario::Default => default_mood(i),
        }
    }

    fn rtt(self, base: u64) -> Duration {
        if self.is_fast() { Duration::ZERO } else { Duration::from_millis(base) }
    }

    /// Domains in the world.
    pub(super) fn domains(self) -> usize {
        if self == Scenario::Fd64 { 5000 } else { DOMAINS }
    }

    /// The limit on the relay's open files, unless the command line sets one.
    pub fn fd_limit(self) -> Option<u64> {
        (self == Scenario::Fd64).then_some(64)
    }

    /// Octets per second that the relay may send.
    pub fn uplink(self) -> Option<u64> {
        (self == Scenario::T1Overflow).then_some(T1)
    }

    /// How long mail may wait in the relay; where the line or the descriptors are scarce, longer.
    pub fn expire_after(self) -> Duration {
        match self {
            Scenario::T1Overflow | Scenario::Fd64 => Duration::from_secs(75),
            _ => EXPIRE_AFTER,
        }
    }

    /// Adds the partner, which is not quick: some of its mail is still here when the line is free again.
    pub(super) fn describe_partner(self, builder: Builder) -> Builder {
        if self.uplink().is_none() {
            return builder;
        }
        let policy = Policy::new().rtt(Duration::from_millis(500)).relays_for(PARTNERS_SUFFIXES);
        builder.provider(PARTNER.0, [PARTNER.1], policy)
    }

    /// Adds the large providers.
    pub(super) fn describe_providers(self, builder: Builder) -> Builder {
        Large::ALL.iter().fold(builder, |builder, large| {
            builder.provider(large.name(), large.exchangers().iter().copied(), self.policy_of(*large))
        })
    }

    fn policy_of(self, large: Large) -> Policy {
        let policy = Policy::new().rtt(self.rtt(if large == Large::Orange { 50 } else { 30 }));
        let (connections, messages) = large.limits();
        let policy = match self {
            Scenario::Fast => policy,
            _ => polite(policy.connections(connections).messages_per_connection(messages)),
        };
        let one_domain = self == Scenario::OneDomain || (large == Large::Google && !self.is_fast());
        Policy { one_domain, ..policy }
    }

    /// Adds a domain.
    pub(super) fn describe(self, builder: Builder, spot: &Spot) -> Builder {
        let name = spot.domain.as_str();
        match spot.large {
            Some(Large::Office365) => {
                let tenant = format!("{}.mail.protection.outlook.com", name.replace('.', "-"));
                let builder = builder.member(Large::Office365.name(), &tenant);
                builder.domain(name, |d| with_mailboxes(d.mx([tenant.as_str()])))
            }
            Some(large) => builder.domain(name, |d| with_mailboxes(d.mx(exchangers_for(name, large)))),
            None => self.describe_tail(builder, name, spot.mood),
        }
    }

    fn describe_tail(self, builder: Builder, name: &str, mood: Mood) -> Builder {
        let distance = 20 + name.bytes().map(u64::from).sum::<u64>() % 31;
        let policy = Policy::new().rtt(self.rtt(distance));
        let policy = if self.is_fast() { policy } else { polite(policy.connections(12).messages_per_connection(120)) };
        if mood == Mood::FirstDead {
            let dead = format!("mx1.{name}");
            let builder = builder.host(&dead, Policy::new().door(Door::Resetting));
            let second = format!("mx2.{name}");
            return builder.domain(name, |d| with_mailboxes(d.mx([dead.as_str(), second.as_str()]).policy(policy)));
        }
        builder.domain(name, |d| moody(with_mailboxes(d), policy, mood))
    }
}

/// The rates of the relay's shipped default in the rehearsal's time, with a fifth on top.
fn polite(policy: Policy) -> Policy {
    let minute = Duration::from_secs(60);
    policy.connection_rate(120 * TIME_LAPSE, minute).recipient_rate(7200 * TIME_LAPSE, minute)
}

fn with_mailboxes(domain: Domain) -> Domain {
    domain.refuse("gone.*").full("full.*")
}

/// Webmail has exchangers of its own where the provider also hosts organisations.
fn exchangers_for(domain: &str, large: Large) -> Vec<&'static str> {
    let is_gmail = domain.starts_with("gmail.") || domain.starts_with("googlemail.");
    let is_web_de = domain.starts_with("web.de");
    let mine = |name: &&str| match large {
        Large::Google => name.contains("gmail-smtp-in") == is_gmail,
        Large::Gmx => name.ends_with("web.de") == is_web_de,
        _ => true,
    };
    large.exchangers().iter().copied().filter(mine).collect()
}

fn moody(domain: Domain, policy: Policy, mood: Mood) -> Domain {
    match mood {
        Mood::Healthy | Mood::FirstDead => domain.policy(policy),
        Mood::Greylisting(delay) => domain.policy(policy).greylist(delay),
        Mood::Tarpit(delay) => domain.policy(policy.rtt(delay)),
        Mood::Busy => domain.policy(policy.busy_every(7)),
        Mood::Narrow => domain.policy(policy.recipients_per_transaction(10)),
        Mood::Cutting => domain.policy(policy.after_dot(AfterDot::CutEvery(5))),
        Mood::Plain => domain.policy(policy.extensions(Extensions::NONE)),
        Mood::ImplicitMx => domain.policy(policy).implicit_mx(),
        Mood::NxDomain => domain.nxdomain(),
        Mood::NullMx => domain.null_mx(),
        Mood::ServFail => domain.servfail(),
        Mood::DnsTimeout => domain.dns(Behaviour::Timeout),
        Mood::NoAddress => domain.exchangers_without_address(),
        Mood::Refused => domain.door(Door::Refused),
        Mood::Resetting => domain.door(Door::Resetting),
        Mood::BlackHole => domain.door(Door::BlackHole),
        Mood::Silent => domain.door(Door::Silent),
    }
}

/// The ways to be dead.
const DEAD: [Mood; 9] = [
    Mood::Refused,
    Mood::NxDomain,
    Mood::BlackHole,
    Mood::ServFail,
    Mood::Resetting,
    Mood::NullMx,
    Mood::Silent,
    Mood::NoAddress,
    Mood::DnsTimeout,
];

/// The default world's tail: about one site in seven is out of the ordinary, the dead ones small.
fn default_mood(i: usize) -> Mood {
    match i {
        10 | 60 | 110 | 160 => Mood::Greylisting(Duration::from_secs(1)),
        20 | 70 => Mood::Greylisting(Duration::from_secs(3)),
        15 | 95 | 175 => Mood::Tarpit(Duration::from_secs(1)),
        25 | 75 | 125 => Mood::Busy,
        30 | 80 => Mood::Narrow,
        35 | 85 => Mood::Cutting,
        40 | 90 => Mood::Plain,
        45 | 100 => Mood::ImplicitMx,
        50 | 105 => Mood::FirstDead,
        120.. if i % 10 == 3 => DEAD[(i - 123) / 10 % DEAD.len()],
        _ => Mood::Healthy,
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Scenario, String> {
        Scenario::ALL.into_iter().find(|scenario| scenario.name() == text).ok_or_else(|| {
            let known: Vec<&str> = Scenario::ALL.iter().map(|scenario| scenario.name()).collect();
            format!("no scenario is called {text:?}; there are {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        for scenario in Scenario::ALL {
            assert_eq!(scenario.name().parse(), Ok(scenario));
        }
        let error = "storm".parse::<Scenario>().expect_err("unknown");
        assert!(error.contains("storm") && error.contains("dead-hosts"), "{error}");
    }

    #[test]
    fn the_default_tail_knows_every_way_to_be_dead() {
        for mood in DEAD {
            assert!((0..220).any(|i| default_mood(i) == mood), "{mood:?}");
            assert!((0..220).any(|i| Scenario::DeadHosts.mood(i) == mood), "{mood:?}");
        }
    }
}

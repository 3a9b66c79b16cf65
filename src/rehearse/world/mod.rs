//! The worlds that a rehearsal can take place in: sites, their shares of the recipients, their rules and their moods.
//!
//! A world is made from a scenario, a seed and a number of recipients, and is the same for the same three. Recipient
//! domains end in `.test`. The exchangers of the large providers bear their real names, served by our own DNS on
//! loopback addresses, so that the relay's rules for `.google.com` and the others are put to use; the simulated limits
//! stand a little above the shipped ones (the relay keeps to its rules or is caught).

mod dice;
mod map;
mod scenario;
mod subscribers;

use std::time::Duration;

use crate::rehearse::internet::{Builder, Counts, Internet};
use crate::rehearse::list_host::{Bounces, Fate, Mailing, Recipients};

pub use scenario::Scenario;
pub use subscribers::domains_of;

use dice::Dice;
use map::Spot;

/// The list host's own domain, where bounces go.
pub const LIST_DOMAIN: &str = "lists.rehearsal.test";
/// The list host's exchanger, where it takes them.
pub const LIST_EXCHANGER: &str = "mx.lists.rehearsal.test";

/// A world before it is brought up.
#[derive(Debug)]
pub struct World {
    /// Its internet.
    pub builder: Builder,
    /// Whom the mailing goes to.
    pub recipients: Recipients,
    /// The groups that reports speak of: providers, or domains without one.
    pub groups: Vec<String>,
    /// The group of each domain, by number.
    pub group_of: Vec<usize>,
}

/// A group's state in a running rehearsal.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupState {
    /// Its name.
    pub name: String,
    /// Recipients of the mailing there.
    pub recipients: u64,
    /// Recipients that have bounced.
    pub bounced: u64,
    /// What its receivers counted.
    pub counts: Counts,
}

impl GroupState {
    /// Recipients whose fate is not known yet.
    pub fn waiting(&self) -> u64 {
        self.recipients.saturating_sub(self.bounced + self.counts.delivered)
    }
}

impl World {
    /// A world of `scenario` with `count` recipients.
    pub fn new(scenario: Scenario, seed: u64, count: u32) -> World {
        let spots = map::spots(scenario);
        let mut dice = Dice::new(seed);
        let mut recipients = Recipients::new(spots.iter().map(|spot| spot.domain.clone()));
        let sums = cumulative(&spots);
        for _ in 0..count {
            let domain = draw(&sums, &mut dice);
            recipients.add(domain, fate(scenario, &spots[domain as usize], &mut dice));
        }
        World::of(scenario, spots, recipients)
    }

    /// A world with the domains of a real list: one recipient for each entry of `domains`, which may repeat.
    pub fn with_subscribers(scenario: Scenario, seed: u64, domains: &[String]) -> World {
        let (spots, numbers) = subscribers::spots(scenario, domains);
        let mut dice = Dice::new(seed);
        let mut recipients = Recipients::new(spots.iter().map(|spot| spot.domain.clone()));
        let mut order = numbers;
        dice.shuffle(&mut order);
        for domain in order {
            recipients.add(domain, fate(scenario, &spots[domain as usize], &mut dice));
        }
        World::of(scenario, spots, recipients)
    }

    fn of(scenario: Scenario, spots: Vec<Spot>, recipients: Recipients) -> World {
        let mut groups: Vec<String> = Vec::new();
        let mut group_of = Vec::new();
        let mut builder = scenario.describe_providers(Internet::builder());
        for spot in spots {
            let name = spot.group();
            let group = groups.iter().position(|known| *known == name).unwrap_or_else(|| {
                groups.push(name);
                groups.len() - 1
            });
            group_of.push(group);
            builder = scenario.describe(builder, &spot);
        }
        let builder = builder.domain(LIST_DOMAIN, |d| d.mx([LIST_EXCHANGER]));
        World { builder, recipients, groups, group_of }
    }
}

/// Where each group of a running rehearsal stands.
pub fn group_states(
    groups: &[String],
    group_of: &[usize],
    internet: &Internet,
    mailing: &Mailing,
    bounces: &Bounces,
) -> Vec<GroupState> {
    let state = |name: &String| GroupState {
        name: name.clone(),
        recipients: 0,
        bounced: 0,
        counts: internet.provider(name).map_or_else(Counts::default, |provider| provider.counts()),
    };
    let mut states: Vec<GroupState> = groups.iter().map(state).collect();
    for index in 0..mailing.recipients.len() {
        states[group_of[mailing.recipients.domain_of(index) as usize]].recipients += 1;
    }
    for (group, bounced) in group_of.iter().zip(bounces.per_domain()) {
        states[*group].bounced += bounced;
    }
    states
}

fn cumulative(spots: &[Spot]) -> Vec<f64> {
    let mut sum = 0.0;
    let add = |spot: &Spot| {
        sum += spot.weight;
        sum
    };
    spots.iter().map(add).collect()
}

fn draw(sums: &[f64], dice: &mut Dice) -> u32 {
    let point = dice.share() * sums.last().copied().unwrap_or(1.0);
    let index = sums.partition_point(|sum| *sum <= point).min(sums.len().saturating_sub(1));
    u32::try_from(index).unwrap_or(0)
}

fn fate(scenario: Scenario, spot: &Spot, dice: &mut Dice) -> Fate {
    let (gone, full) = if spot.mood.takes_mail() { scenario.bad_mailboxes() } else { (0.0, 0.0) };
    match dice.share() {
        share if share < gone => Fate::Gone,
        share if share < gone + full => Fate::Full,
        _ => Fate::Taken,
    }
}

/// How long the relay may hold mail in a rehearsal before it gives up: long enough for several retries, short enough
/// that a rehearsal ends while somebody watches.
pub const EXPIRE_AFTER: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_world() {
        let addresses = |seed| {
            let world = World::new(Scenario::Default, seed, 500);
            (0..500).map(|i| world.recipients.mailbox(i)).collect::<Vec<_>>()
        };
        assert_eq!(addresses(1), addresses(1));
        assert_ne!(addresses(1), addresses(2));
    }

    #[test]
    fn the_default_mix_is_heavy_at_the_top_and_long_in_the_tail() {
        let world = World::new(Scenario::Default, 1, 20_000);
        let mut counts = vec![0u32; world.groups.len()];
        for index in 0..20_000 {
            counts[world.group_of[world.recipients.domain_of(index) as usize]] += 1;
        }
        let google = counts[world.groups.iter().position(|name| name == "google").expect("present")];
        assert!((5_000..6_500).contains(&google), "{google}");
        assert!(counts.iter().filter(|count| **count > 0).count() > 200, "{counts:?}");
        assert_eq!(world.recipients.domains().len(), 312);
        let gone = (0..20_000).filter(|i| world.recipients.fate_of(*i) == Fate::Gone).count();
        assert!((100..300).contains(&gone), "{gone}");
    }

    #[tokio::test]
    async fn every_world_can_be_brought_up() {
        for scenario in Scenario::ALL {
            let world = World::new(scenario, 1, 10);
            world.builder.start().await.unwrap_or_else(|error| panic!("{scenario}: {error}"));
        }
    }

    #[test]
    fn a_real_list_keeps_its_proportions() {
        let list =
            ["gmail.com", "gmail.com", "Hotmail.com", "example.org", "example.org", "tiny.de"].map(str::to_owned);
        let world = World::with_subscribers(Scenario::Fast, 1, &list);
        assert_eq!(world.recipients.len(), 6);
        let at =
            |domain: &str| (0..6).filter(|i| world.recipients.mailbox(*i).ends_with(&format!("@{domain}"))).count();
        assert_eq!((at("gmail.com.test"), at("example.org.test"), at("tiny.de.test")), (2, 2, 1));
    }
}

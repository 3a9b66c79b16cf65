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

use std::collections::HashMap;
use std::time::Duration;

use crate::rehearse::internet::{Builder, Counts, Internet};
use crate::rehearse::list_host::{Bounces, Fate, Recipients};

pub use scenario::Scenario;
pub(super) use scenario::{PARTNER, PARTNERS_SUFFIXES};
pub use subscribers::domains_of;

pub(super) use dice::Dice;
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
    /// What reports call its parts.
    pub groups: Groups,
}

/// The groups that reports speak of: providers, and the domains that no large provider serves.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    names: Vec<String>,
    /// The group of each domain, by number.
    of: Vec<usize>,
    /// Recipients of the mailing in each group.
    recipients: Vec<u64>,
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
        let builder = scenario.describe_partner(scenario.describe_providers(Internet::builder()));
        let builder = spots.iter().fold(builder, |builder, spot| scenario.describe(builder, spot));
        let builder = builder.domain(LIST_DOMAIN, |d| d.mx([LIST_EXCHANGER]));
        let groups = Groups::new(&spots, &recipients);
        World { builder, recipients, groups }
    }
}

impl Groups {
    fn new(spots: &[Spot], recipients: &Recipients) -> Groups {
        let mut groups = Groups::default();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        for spot in spots {
            let next = numbers.len();
            let number = *numbers.entry(spot.group()).or_insert(next);
            if number == next {
                groups.names.push(spot.group());
            }
            groups.of.push(number);
        }
        groups.recipients = vec![0; groups.names.len()];
        for index in 0..recipients.len() {
            groups.recipients[groups.of[recipients.domain_of(index) as usize]] += 1;
        }
        groups
    }

    /// Where each group stands.
    pub fn states(&self, internet: &Internet, bounces: &Bounces) -> Vec<GroupState> {
        let state = |(name, recipients): (&String, &u64)| GroupState {
            name: name.clone(),
            recipients: *recipients,
            bounced: 0,
            counts: internet.provider(name).map_or_else(Counts::default, |provider| provider.counts()),
        };
        let mut states: Vec<GroupState> = self.names.iter().zip(&self.recipients).map(state).collect();
        for (group, bounced) in self.of.iter().zip(bounces.per_domain()) {
            states[*group].bounced += bounced;
        }
        states
    }
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
        let groups = &world.groups;
        let google = groups.recipients[groups.names.iter().position(|name| name == "google").expect("present")];
        assert!((5_000..6_500).contains(&google), "{google}");
        assert!(groups.recipients.iter().filter(|count| **count > 0).count() > 200);
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

//! Turns: who is served next when several want the same provider.
//!
//! Deficit round robin, first by list host (with its weight), then by mailing, counted in recipients. A 20-name post
//! therefore overtakes a 20,000-name newsletter, and a list host with a thousand mailings gets no more than one with a
//! single mailing. The cost of a turn is known only after it was taken, so an account may run into debt by one
//! transaction and pays it back in the rounds that follow.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use crate::mail::MailingId;

/// Recipients that each account is granted per round and unit of weight.
const QUANTUM: i64 = 50;

/// Accounts in a ring, each with its credit.
#[derive(Debug)]
struct Ring<K, T> {
    order: VecDeque<K>,
    accounts: HashMap<K, Account<T>>,
}

#[derive(Debug)]
struct Account<T> {
    credit: i64,
    weight: i64,
    holds: T,
}

impl<K, T> Default for Ring<K, T> {
    fn default() -> Self {
        Ring { order: VecDeque::new(), accounts: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash, T: Default> Ring<K, T> {
    fn entry(&mut self, key: &K, weight: u32) -> &mut T {
        if !self.accounts.contains_key(key) {
            self.order.push_back(key.clone());
        }
        let fresh = || Account { credit: 0, weight: i64::from(weight.max(1)), holds: T::default() };
        &mut self.accounts.entry(key.clone()).or_insert_with(fresh).holds
    }

    /// The account whose turn it is, brought to the front: the first with credit. Those without are granted more as
    /// they are passed.
    fn turn(&mut self) -> Option<(K, &mut T)> {
        for _ in 0..=self.order.len() {
            let key = self.order.front()?.clone();
            let account = self.accounts.get_mut(&key)?;
            if account.credit > 0 {
                return self.accounts.get_mut(&key).map(|account| (key, &mut account.holds));
            }
            account.credit += QUANTUM * account.weight;
            self.order.rotate_left(1);
        }
        self.skip_idle_rounds();
        let front = self.order.iter().position(|key| self.accounts.get(key).is_some_and(|a| a.credit > 0))?;
        self.order.rotate_left(front);
        let key = self.order.front()?.clone();
        self.accounts.get_mut(&key).map(|account| (key, &mut account.holds))
    }

    /// Everybody is in debt: grants at once the rounds that nobody could use, so that a deep debt costs no walks.
    fn skip_idle_rounds(&mut self) {
        let rounds_needed = |a: &Account<T>| (-a.credit).max(0) / (QUANTUM * a.weight) + 1;
        let rounds = self.accounts.values().map(rounds_needed).min().unwrap_or(0);
        for account in self.accounts.values_mut() {
            account.credit += rounds * QUANTUM * account.weight;
        }
    }

    fn charge(&mut self, key: &K, cost: i64) {
        if let Some(account) = self.accounts.get_mut(key) {
            account.credit -= cost;
        }
    }

    /// An account that wants nothing keeps neither credit nor debt.
    fn close(&mut self, key: &K) {
        self.accounts.remove(key);
        match self.order.front() {
            Some(front) if front == key => drop(self.order.pop_front()),
            _ => self.order.retain(|other| other != key),
        }
    }
}

/// What waits for one provider, in order of turns.
#[derive(Debug)]
pub(super) struct Turns<T> {
    hosts: Ring<Arc<str>, Ring<MailingId, VecDeque<T>>>,
}

/// Whose turn was taken, to be charged with what it cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    host: Arc<str>,
    mailing: MailingId,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Turns { hosts: Ring::default() }
    }
}

impl<T> Turns<T> {
    /// Queues `item` behind what the mailing already waits with.
    pub(super) fn push(&mut self, host: &Arc<str>, weight: u32, mailing: MailingId, item: T) {
        self.hosts.entry(host, weight).entry(&mailing, 1).push_back(item);
    }

    /// Takes the next item. The caller charges the turn with its cost, or with 0 if the item was of no use.
    pub(super) fn next(&mut self) -> Option<(Turn, T)> {
        let (host, mailings) = self.hosts.turn()?;
        let (mailing, items) = mailings.turn()?;
        let item = items.pop_front()?;
        Some((Turn { host, mailing }, item))
    }

    /// Books `recipients` on the turn, and forgets accounts that want nothing more.
    pub(super) fn charge(&mut self, turn: &Turn, recipients: usize) {
        let cost = i64::try_from(recipients).unwrap_or(i64::MAX);
        self.hosts.charge(&turn.host, cost);
        let Some(account) = self.hosts.accounts.get_mut(&turn.host) else { return };
        let mailings = &mut account.holds;
        mailings.charge(&turn.mailing, cost);
        if mailings.accounts.get(&turn.mailing).is_some_and(|a| a.holds.is_empty()) {
            mailings.close(&turn.mailing);
        }
        if mailings.accounts.is_empty() {
            self.hosts.close(&turn.host);
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.hosts.accounts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(turns: &mut Turns<u32>, cost: usize, count: usize) -> Vec<u32> {
        (0..count)
            .map(|_| {
                let (turn, item) = turns.next().expect("something waits");
                turns.charge(&turn, cost);
                item
            })
            .collect()
    }

    fn host(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn a_small_mailing_is_served_before_a_big_one_that_came_first_is_through() {
        let mut turns = Turns::default();
        for _ in 0..400 {
            turns.push(&host("lists"), 1, MailingId(1), 1);
        }
        serve(&mut turns, 50, 3);
        turns.push(&host("lists"), 1, MailingId(2), 2);
        assert!(serve(&mut turns, 50, 3).contains(&2));
    }

    #[test]
    fn list_hosts_share_alike_however_many_mailings_each_has() {
        let mut turns = Turns::default();
        for mailing in 0..100 {
            turns.push(&host("busy"), 1, MailingId(mailing), 1);
            turns.push(&host("calm"), 1, MailingId(1000), 2);
        }
        let served = serve(&mut turns, 50, 100);
        let calm = served.iter().filter(|&&item| item == 2).count();
        assert!((49..=51).contains(&calm), "{calm} of 100");
    }

    #[test]
    fn weights_divide_the_turns_in_their_proportion() {
        let mut turns = Turns::default();
        for _ in 0..400 {
            turns.push(&host("heavy"), 3, MailingId(1), 3);
            turns.push(&host("light"), 1, MailingId(2), 1);
        }
        let heavy = serve(&mut turns, 10, 400).iter().filter(|&&item| item == 3).count();
        assert!((290..=310).contains(&heavy), "{heavy} of 400");
    }

    #[test]
    fn cost_counts_and_not_the_number_of_turns() {
        let mut turns = Turns::default();
        for _ in 0..1000 {
            turns.push(&host("a"), 1, MailingId(1), 50);
            turns.push(&host("b"), 1, MailingId(2), 1);
        }
        let mut recipients = HashMap::new();
        for _ in 0..1000 {
            let (turn, cost) = turns.next().expect("something waits");
            turns.charge(&turn, cost as usize);
            *recipients.entry(cost).or_insert(0u32) += cost;
        }
        let (big, small) = (recipients[&50], recipients[&1]);
        assert!(big.abs_diff(small) <= 100, "{big} against {small}");
    }

    #[test]
    fn an_empty_ring_gives_nothing_and_keeps_nothing() {
        let mut turns: Turns<u32> = Turns::default();
        assert!(turns.next().is_none() && turns.is_empty());
        turns.push(&host("a"), 1, MailingId(1), 7);
        assert_eq!(serve(&mut turns, 1_000_000, 1), [7]);
        assert!(turns.is_empty() && turns.next().is_none());
    }
}

//! Who is handed out, and who is to be woken when: kept in memory only. After a restart nobody is handed out, and the
//! wake-ups are found again in the index as they come due.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::clock::Tick;
use crate::mail::{MailingId, RecipientId};

/// A destination, encoded.
pub(super) type Key = Arc<[u8]>;

/// Leases and wake-ups.
#[derive(Debug, Default)]
pub(in super::super) struct Desk {
    leased: HashSet<RecipientId>,
    known: HashMap<Key, Wake>,
    /// The destinations in `known` by when they are to be woken, those that never are left out.
    order: BTreeSet<(Tick, Key)>,
    /// Hints in the index due before this second have been seen.
    seen: u64,
}

/// What is known of a destination.
#[derive(Clone, Copy, Debug)]
struct Wake {
    /// No recipient that is not handed out is due before.
    first: Tick,
    /// `first` holds for all of its recipients, not only for those that were seen since the start.
    complete: bool,
    /// Not to be woken before.
    snoozed: Tick,
    /// The mailing whose turn was last.
    turn: MailingId,
}

impl Wake {
    fn at(&self) -> Tick {
        self.first.max(self.snoozed)
    }
}

impl Desk {
    /// Destinations that are remembered. When they are more all are forgotten and found again in the index.
    const MOST: usize = 200_000;

    /// Whether a recipient is handed out.
    pub(super) fn is_leased(&self, id: RecipientId) -> bool {
        self.leased.contains(&id)
    }

    /// Recipients that are handed out.
    pub(super) fn leased(&self) -> usize {
        self.leased.len()
    }

    /// Hands a recipient out.
    pub(in super::super) fn lease(&mut self, id: RecipientId) {
        self.leased.insert(id);
    }

    /// Takes a recipient back. Answers whether it was handed out.
    pub(super) fn unlease(&mut self, id: RecipientId) -> bool {
        self.leased.remove(&id)
    }

    /// A recipient of `destination` that is not handed out is due at `due`.
    pub(super) fn note(&mut self, destination: &[u8], due: Tick) {
        if let Some((key, &wake)) = self.known.get_key_value(destination) {
            let key = Arc::clone(key);
            if due < wake.first {
                self.set(&key, Wake { first: due, ..wake });
            }
            return;
        }
        if self.known.len() >= Self::MOST {
            *self = Desk { leased: std::mem::take(&mut self.leased), ..Desk::default() };
        }
        let wake = Wake { first: due, complete: false, snoozed: Tick(0), turn: MailingId(0) };
        self.set(&destination.into(), wake);
    }

    /// A hint from the index: something of `destination` may be due at `due`.
    pub(super) fn hint(&mut self, destination: &[u8], due: Tick) {
        if !self.known.get(destination).is_some_and(|wake| wake.complete) {
            self.note(destination, due);
        }
    }

    fn set(&mut self, key: &Key, wake: Wake) {
        let old = self.known.insert(Arc::clone(key), wake);
        if let Some(old) = old {
            self.order.remove(&(old.at(), Arc::clone(key)));
        }
        if wake.at() < Tick::NEVER {
            self.order.insert((wake.at(), Arc::clone(key)));
        }
    }

    /// A look at all of a destination's mailings found nothing that is due before `first`; `turn` was served last.
    pub(super) fn looked(&mut self, destination: &[u8], first: Tick, turn: MailingId) {
        let snoozed = self.known.get(destination).map_or(Tick(0), |wake| wake.snoozed);
        let key = self.known.get_key_value(destination).map_or_else(|| destination.into(), |(key, _)| Arc::clone(key));
        self.set(&key, Wake { first, complete: true, snoozed, turn });
    }

    /// Ends a destination's sleep: there is mail that nobody was told of.
    pub(in super::super) fn rouse(&mut self, destination: &[u8]) {
        self.snooze(destination, Tick(0));
    }

    /// Keeps a destination from being woken before `until`.
    pub(super) fn snooze(&mut self, destination: &[u8], until: Tick) {
        if let Some((key, &wake)) = self.known.get_key_value(destination) {
            let key = Arc::clone(key);
            self.set(&key, Wake { snoozed: until, ..wake });
        }
    }

    /// The mailing that was served last.
    pub(super) fn turn(&self, destination: &[u8]) -> MailingId {
        self.known.get(destination).map_or(MailingId(0), |wake| wake.turn)
    }

    /// The second up to which hints were seen, and a note that they now are up to `second`.
    pub(super) fn advance(&mut self, second: u64) -> u64 {
        let seen = self.seen;
        self.seen = seen.max(second);
        seen
    }

    /// Destinations to wake by `until`, earliest first.
    pub(super) fn wakeups(&self, until: Tick, limit: usize) -> Vec<(Tick, Key)> {
        let due = self.order.iter().take_while(|(at, _)| *at <= until);
        due.take(limit).map(|(at, key)| (*at, Arc::clone(key))).collect()
    }

    /// When the next is to be woken.
    pub(super) fn next(&self) -> Option<Tick> {
        self.order.iter().next().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_woken_at_its_earliest_recipient() {
        let mut desk = Desk::default();
        desk.note(b"a", Tick(50));
        desk.note(b"b", Tick(40));
        desk.note(b"a", Tick(30));
        desk.note(b"a", Tick(60));
        let keys: Vec<_> = desk.wakeups(Tick(45), 9).into_iter().map(|(at, key)| (at.0, key.to_vec())).collect();
        assert_eq!(keys, [(30, b"a".to_vec()), (40, b"b".to_vec())]);
        assert_eq!(desk.next(), Some(Tick(30)));
    }

    #[test]
    fn an_empty_destination_is_not_woken_until_something_is_noted() {
        let mut desk = Desk::default();
        desk.note(b"a", Tick(50));
        desk.looked(b"a", Tick::NEVER, MailingId(3));
        desk.hint(b"a", Tick(10));
        assert_eq!((desk.next(), desk.turn(b"a")), (None, MailingId(3)));
        desk.note(b"a", Tick(70));
        assert_eq!(desk.next(), Some(Tick(70)));
    }

    #[test]
    fn a_snoozed_destination_sleeps_on() {
        let mut desk = Desk::default();
        desk.note(b"a", Tick(50));
        desk.snooze(b"a", Tick(500));
        desk.note(b"a", Tick(20));
        assert_eq!(desk.next(), Some(Tick(500)));
    }
}

//! How many recipients a partner has been given, and how many more it may be.
//!
//! Counted in windows that begin with the first recipient. Not kept over a restart: a new window then begins.

use std::collections::VecDeque;

use crate::attempt::Rate;
use crate::clock::Tick;
use crate::mail::MailingId;

/// Mailings whose share is remembered; of older ones it is forgotten.
const MAILINGS_MAX: usize = 1000;

/// So many per time.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    rate: Rate,
    since: Tick,
    used: u64,
}

impl Quota {
    pub(super) fn new(rate: Rate) -> Quota {
        Quota { rate, since: Tick(0), used: 0 }
    }

    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// Recipients that are left in this window.
    pub(super) fn left(&self, now: Tick) -> u64 {
        let used = if now.since(self.since) >= self.rate.period { 0 } else { self.used };
        u64::from(self.rate.count).saturating_sub(used)
    }

    pub(super) fn charge(&mut self, count: u64, now: Tick) {
        if now.since(self.since) >= self.rate.period {
            (self.since, self.used) = (now, 0);
        }
        self.used += count;
    }

    pub(super) fn refund(&mut self, count: u64) {
        self.used = self.used.saturating_sub(count);
    }
}

/// What of each mailing a partner has been given.
#[derive(Clone, Debug, Default)]
pub(super) struct Mailings {
    /// Oldest first.
    used: VecDeque<(MailingId, u64)>,
}

impl Mailings {
    pub(super) fn used(&self, mailing: MailingId) -> u64 {
        self.used.iter().rev().find(|(known, _)| *known == mailing).map_or(0, |(_, used)| *used)
    }

    pub(super) fn charge(&mut self, mailing: MailingId, count: u64) {
        if let Some((_, used)) = self.used.iter_mut().rev().find(|(known, _)| *known == mailing) {
            *used += count;
            return;
        }
        if self.used.len() >= MAILINGS_MAX {
            self.used.pop_front();
        }
        self.used.push_back((mailing, count));
    }

    pub(super) fn refund(&mut self, mailing: MailingId, count: u64) {
        if let Some((_, used)) = self.used.iter_mut().rev().find(|(known, _)| *known == mailing) {
            *used = used.saturating_sub(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_quota_is_whole_again_when_its_window_is_over() {
        let hour = Duration::from_secs(3600);
        let mut quota = Quota::new(Rate { count: 100, period: hour });
        let now = Tick(1_000_000_000);
        quota.charge(70, now);
        quota.charge(30, now + hour / 2);
        assert_eq!(quota.left(now + hour / 2), 0);
        quota.refund(10);
        assert_eq!(quota.left(now + hour / 2), 10);
        assert_eq!(quota.left(now + hour), 100);
    }

    #[test]
    fn what_is_known_of_mailings_is_bounded() {
        let mut mailings = Mailings::default();
        for mailing in 0..2000 {
            mailings.charge(MailingId(mailing), 5);
        }
        assert_eq!((mailings.used.len(), mailings.used(MailingId(0)), mailings.used(MailingId(1999))), (1000, 0, 5));
    }
}

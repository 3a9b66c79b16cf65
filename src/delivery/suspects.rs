//! Addresses (or whatever else) that failed lately, so that they are tried last (RFC 5321 section 4.5.4.1), or in another way. Bounded; what
//! does not fit is not remembered, which costs a wait and nothing else.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A memory of failures by address, or by another key.
#[derive(Debug)]
pub(super) struct Suspects<K = IpAddr> {
    marks: Mutex<HashMap<K, Mark>>,
    first: Duration,
    longest: Duration,
    capacity: usize,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    until: Instant,
    span: Duration,
}

impl<K: Hash + Eq> Suspects<K> {
    /// A mark lasts `first`, twice as long at each failure after it, `longest` at most.
    pub(super) fn new(first: Duration, longest: Duration, capacity: usize) -> Suspects<K> {
        Suspects { marks: Mutex::default(), first, longest, capacity }
    }

    /// Notes a failure.
    pub(super) fn failed(&self, key: K, now: Instant) {
        let mut marks = self.marks();
        if marks.len() >= self.capacity {
            marks.retain(|_, mark| now < mark.until);
        }
        let span = match marks.get(&key) {
            // Failures of connections that were begun together are one failure.
            Some(mark) if now < mark.until => return,
            Some(mark) => (mark.span * 2).min(self.longest),
            None if marks.len() >= self.capacity => return,
            None => self.first,
        };
        marks.insert(key, Mark { until: now + span, span });
    }

    /// Notes a success: the address is as good as any.
    pub(super) fn succeeded(&self, key: &K) {
        let mut marks = self.marks();
        if !marks.is_empty() {
            marks.remove(key);
        }
    }

    /// Whether it failed lately.
    pub(super) fn is_suspect(&self, key: &K, now: Instant) -> bool {
        self.marks().get(key).is_some_and(|mark| now < mark.until)
    }

    fn marks(&self) -> MutexGuard<'_, HashMap<K, Mark>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[tokio::test(start_paused = true)]
    async fn a_mark_lasts_longer_each_time_and_ends_with_success() {
        let suspects = Suspects::new(MINUTE, MINUTE * 3, 10);
        let start = Instant::now();
        suspects.failed(ip(1), start);
        suspects.failed(ip(1), start);
        assert!(suspects.is_suspect(&ip(1), start) && !suspects.is_suspect(&ip(1), start + MINUTE));
        for (at, lasts) in [(1, 2), (3, 3), (6, 3)] {
            suspects.failed(ip(1), start + MINUTE * at);
            assert!(suspects.is_suspect(&ip(1), start + MINUTE * (at + lasts) - Duration::from_millis(1)));
            assert!(!suspects.is_suspect(&ip(1), start + MINUTE * (at + lasts)));
        }
        suspects.failed(ip(1), start + MINUTE * 9);
        suspects.succeeded(&ip(1));
        assert!(!suspects.is_suspect(&ip(1), start + MINUTE * 9));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_not_remembered_until_there_is_room() {
        let suspects = Suspects::new(MINUTE, MINUTE, 2);
        let start = Instant::now();
        (1..=3).for_each(|last| suspects.failed(ip(last), start));
        assert!(suspects.is_suspect(&ip(2), start) && !suspects.is_suspect(&ip(3), start));
        suspects.failed(ip(3), start + MINUTE);
        assert!(suspects.is_suspect(&ip(3), start + MINUTE));
    }
}

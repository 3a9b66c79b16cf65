//! What a rehearsal with a partner and a narrow line watches: how full the line was, and which way the mail went.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// The time over which the line must keep its rate.
const WINDOW: Duration = Duration::from_secs(10);
/// By how much it may be exceeded.
const TOLERANCE: f64 = 1.03;

/// The octets of the last ten seconds, and the most that there were in any ten.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Moments and the octets sent until then, oldest first.
    seen: VecDeque<(Instant, u64)>,
    peak: f64,
}

impl Line {
    /// Takes note of the octets sent so far.
    pub(super) fn note(&mut self, now: Instant, octets: u64) {
        self.seen.push_back((now, octets));
        while self.seen.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.seen.pop_front();
        }
        let Some((first, before)) = self.seen.front() else { return };
        let time = now.saturating_duration_since(*first);
        if time >= WINDOW {
            self.peak = self.peak.max((octets - before) as f64 / time.as_secs_f64());
        }
    }

    /// The most octets per second over any ten seconds; 0 if it was over sooner.
    pub(super) fn peak(&self) -> f64 {
        self.peak
    }
}

/// How an overflow went.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overflow {
    /// Octets per second that the line was limited to.
    pub limit: u64,
    /// The most that it sent over any ten seconds.
    pub peak: f64,
    /// Recipients that the partner took.
    pub by_partner: u64,
    /// Recipients of the partner's domains that went direct.
    pub direct: u64,
    /// Whether some of them went direct at the end, when nine tenths of all mail had arrived and the line was free again.
    pub came_back: bool,
}

impl Overflow {
    /// What went wrong, in words.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.peak > self.limit as f64 * TOLERANCE {
            let percent = self.peak / self.limit as f64 * 100.0;
            failures.push(format!("the line was used to {percent:.1} % of its budget"));
        }
        if self.by_partner == 0 {
            failures.push("nothing went to the partner while the line was full".to_owned());
        }
        if !self.came_back {
            failures.push("nothing came back from the partner when the line was free".to_owned());
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_peak_is_that_of_the_worst_ten_seconds() {
        let (start, mut line, mut octets) = (Instant::now(), Line::default(), 0);
        for second in 0..40 {
            octets += if (15..25).contains(&second) { 2000 } else { 1000 };
            line.note(start + Duration::from_secs(second), octets);
        }
        assert!((line.peak() - 2000.0).abs() < 1.0, "{}", line.peak());
    }

    #[test]
    fn an_overflow_passes_only_if_mail_went_and_came_back_within_the_budget() {
        let good = Overflow { limit: 1000, peak: 1020.0, by_partner: 5, direct: 5, came_back: true };
        assert!(good.failures().is_empty());
        let bad = [
            Overflow { peak: 1040.0, ..good.clone() },
            Overflow { by_partner: 0, ..good.clone() },
            Overflow { came_back: false, ..good },
        ];
        assert!(bad.iter().all(|bad| bad.failures().len() == 1));
    }
}

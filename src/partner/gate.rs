//! Whether a partner's condition holds, with hysteresis.

use std::time::Duration;

use super::options::{Condition, Mark};

/// How things stand.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Conditions {
    /// The used part of the uplink, 0.0 to 1.0.
    pub uplink: f64,
    /// How overdue the oldest recipient is that could go.
    pub oldest: Duration,
}

/// Whether the overflow is open, as conditions change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gate {
    open: bool,
}

impl Gate {
    pub(super) fn is_open(self) -> bool {
        self.open
    }

    /// Takes note of the conditions; whether that changed anything.
    pub(super) fn observe(&mut self, condition: &Condition, conditions: Conditions) -> bool {
        let before = self.open;
        self.open = match condition {
            Condition::Always | Condition::Fallback => false,
            Condition::Overflow { uplink, age } => {
                holds(*uplink, conditions.uplink, before) || holds(*age, conditions.oldest, before)
            }
        };
        self.open != before
    }
}

fn holds<T: PartialOrd>(mark: Option<Mark<T>>, value: T, before: bool) -> bool {
    mark.is_some_and(|mark| value >= if before { mark.low } else { mark.high })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_opens_at_its_high_mark_and_closes_below_its_low_one() {
        let condition = Condition::Overflow { uplink: Some(Mark { high: 0.9, low: 0.7 }), age: None };
        let mut gate = Gate::default();
        let mut after = |uplink| {
            gate.observe(&condition, Conditions { uplink, oldest: Duration::ZERO });
            gate.is_open()
        };
        assert_eq!([0.8, 0.9, 0.8, 0.7, 0.69, 0.8].map(&mut after), [false, true, true, true, false, false]);
    }

    #[test]
    fn either_mark_opens_and_both_must_be_low_to_close() {
        let second = Duration::from_secs(1);
        let condition = Condition::Overflow {
            uplink: Some(Mark { high: 0.9, low: 0.7 }),
            age: Some(Mark { high: 10 * second, low: 5 * second }),
        };
        let mut gate = Gate::default();
        assert!(gate.observe(&condition, Conditions { uplink: 0.1, oldest: 10 * second }));
        assert!(!gate.observe(&condition, Conditions { uplink: 0.8, oldest: second }));
        assert!(gate.observe(&condition, Conditions { uplink: 0.1, oldest: second }));
        assert!(!gate.is_open());
    }
}

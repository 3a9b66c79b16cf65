//! Memory: above its high mark new mail is refused (452 at MAIL) until it is below the low one; the queue drains meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge, Registry};
use tokio::time::Instant;

/// How long an answer holds: the system is asked ten times a second at most.
const HOLDS: Duration = Duration::from_millis(100);

/// The budget of memory. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The high mark in octets; 0: none.
    high: AtomicU64,
    state: Mutex<State>,
    refusals: IntCounter,
    refusing: IntGauge,
}

#[derive(Debug, Default)]
struct State {
    asked: Option<Instant>,
    refusing: bool,
}

impl Memory {
    /// A budget of `high` octets of resident memory; `None`: without a limit.
    ///
    /// # Errors
    /// If a metric of the same name is registered already.
    pub fn new(high: Option<u64>, registry: &Registry) -> Result<Memory, prometheus::Error> {
        let refusals = "posthaste_budget_memory_refusals_total";
        let refusals = IntCounter::new(refusals, "Transactions refused at MAIL for want of memory.")?;
        let refusing = "posthaste_budget_memory_refusing";
        let refusing = IntGauge::new(refusing, "Whether new mail is refused for want of memory.")?;
        registry.register(Box::new(refusals.clone()))?;
        registry.register(Box::new(refusing.clone()))?;
        let high = AtomicU64::new(high.unwrap_or(0));
        Ok(Memory(Arc::new(Shared { high, state: Mutex::default(), refusals, refusing })))
    }

    /// Changes the high mark.
    pub fn set_high(&self, high: Option<u64>) {
        self.0.high.store(high.unwrap_or(0), Ordering::Release);
    }

    /// Whether there is room for another message; a refusal is counted.
    pub fn has_room(&self) -> bool {
        self.has_room_with(resident_octets)
    }

    fn has_room_with(&self, resident: impl Fn() -> Option<u64>) -> bool {
        let high = self.0.high.load(Ordering::Acquire);
        let now = Instant::now();
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.asked.is_none_or(|asked| now.duration_since(asked) >= HOLDS) {
            let mark = if state.refusing { low(high) } else { high };
            // A system that does not say is no reason to refuse.
            state.refusing = high > 0 && resident().is_some_and(|octets| octets >= mark);
            state.asked = Some(now);
            if self.0.refusing.get() != i64::from(state.refusing) {
                self.0.refusing.set(state.refusing.into());
                tracing::warn!(refusing = state.refusing, high, "memory: new mail");
            }
        }
        if state.refusing {
            self.0.refusals.inc();
        }
        !state.refusing
    }
}

/// Below seven eighths of the high mark mail is taken again.
fn low(high: u64) -> u64 {
    high / 8 * 7
}

/// `VmRSS` of `/proc/self/status`, which is in kB whatever the size of a page.
pub fn resident_octets() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn mail_is_refused_above_the_high_mark_until_below_the_low_one() {
        let memory = Memory::new(Some(1000), &Registry::new()).expect("new");
        let mut answers = Vec::new();
        for resident in [999, 1000, 900, 875, 874, 999] {
            answers.push(memory.has_room_with(|| Some(resident)));
            tokio::time::advance(HOLDS).await;
        }
        assert_eq!(answers, [true, false, false, false, true, true]);
        assert_eq!(memory.0.refusals.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_mark_nothing_is_refused() {
        let memory = Memory::new(None, &Registry::new()).expect("new");
        assert!(memory.has_room_with(|| Some(u64::MAX)));
        assert!(resident_octets().is_some_and(|octets| octets > 1 << 20));
    }
}

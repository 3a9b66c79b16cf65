//! Answers by name, for as long as they are good.
//!
//! What is known is kept for its TTL, within 30 s and a day; a refusal shortly. One question at a time is asked for a name,
//! whoever else waits for the answer. If the DNS falls silent, what was known before holds on for a day: mail to a domain
//! whose servers are down for an hour should reach its exchangers all the same.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use moka::future::Cache;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::outcome::Reason;

/// How long an answer is believed: at least, at most. Zero TTLs would ask per attempt, huge ones never again.
const TTL: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(86_400));
/// How long "no such thing" is believed.
pub(super) const NEGATIVE: Duration = Duration::from_secs(60);
/// How long a failed question is not repeated: enough that a thousand recipients ask once.
const UNKNOWN: Duration = Duration::from_secs(1);
/// How long an answer outlives its TTL while the DNS is silent.
const STALE: Duration = Duration::from_secs(86_400);

/// What asking came to.
pub(super) enum Found<T: ?Sized> {
    Yes(Arc<T>, Duration),
    No(Reason),
    Unknown(Reason),
}

/// What is known by name, bounded; who asks first asks for all.
#[derive(Debug)]
pub(super) struct Memory<K, T: ?Sized>(Cache<K, Arc<Slot<T>>>)
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Send + Sync + 'static;

#[derive(Debug)]
struct Slot<T: ?Sized> {
    known: ArcSwapOption<Known<T>>,
    asking: Mutex<()>,
}

#[derive(Debug)]
struct Known<T: ?Sized> {
    answer: Result<Arc<T>, Reason>,
    until: Instant,
    /// Until when it may stand in for an answer that does not come.
    last_resort: Instant,
}

impl<K, T> Memory<K, T>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    T: ?Sized + Send + Sync + 'static,
{
    pub(super) fn new(entries: u64) -> Memory<K, T> {
        Memory(Cache::new(entries))
    }

    pub(super) async fn get(&self, key: &K, ask: impl Future<Output = Found<T>>) -> Result<Arc<T>, Reason> {
        let fresh = async { Arc::new(Slot { known: ArcSwapOption::empty(), asking: Mutex::new(()) }) };
        let slot = match self.0.get(key).await {
            Some(slot) => slot,
            None => self.0.get_with(key.clone(), fresh).await,
        };
        if let Some(answer) = slot.current() {
            return answer;
        }
        let _asking = slot.asking.lock().await;
        match slot.current() {
            Some(answer) => answer,
            None => slot.learn(ask.await),
        }
    }
}

impl<T: ?Sized> Slot<T> {
    fn current(&self) -> Option<Result<Arc<T>, Reason>> {
        let known = self.known.load();
        known.as_ref().filter(|known| Instant::now() < known.until).map(|known| known.answer.clone())
    }

    fn learn(&self, found: Found<T>) -> Result<Arc<T>, Reason> {
        let now = Instant::now();
        let known = match found {
            Found::Yes(value, ttl) => {
                let until = now + ttl.clamp(TTL.0, TTL.1);
                Known { answer: Ok(value), until, last_resort: until + STALE }
            }
            Found::No(reason) => Known { answer: Err(reason), until: now + NEGATIVE, last_resort: now },
            Found::Unknown(reason) => self.instead(reason, now),
        };
        let answer = known.answer.clone();
        self.known.store(Some(Arc::new(known)));
        answer
    }

    /// What to go by while the DNS is silent. Either way the question is not repeated at once.
    fn instead(&self, reason: Reason, now: Instant) -> Known<T> {
        let until = now + UNKNOWN;
        match self.known.load_full() {
            Some(old) if old.answer.is_ok() && now < old.last_resort => {
                Known { answer: old.answer.clone(), until, last_resort: old.last_resort }
            }
            _ => Known { answer: Err(reason), until, last_resort: now },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::outcome::{Enhanced, Phase, Scope};

    const MINUTE: Duration = Duration::from_secs(60);

    fn no(class: u8) -> Reason {
        let status = Enhanced::new(class, 0, 0);
        Reason { phase: Phase::Resolve, scope: Scope::Site, status, reply: None, text: "no".into(), remote: None }
    }

    /// Asks the memory, which asks this: how often it did, and what came of it.
    async fn ask(memory: &Memory<u8, u32>, asked: &Cell<u32>, found: Found<u32>) -> Result<u32, u8> {
        let ask = async {
            asked.set(asked.get() + 1);
            found
        };
        memory.get(&1, ask).await.map(|value| *value).map_err(|reason| reason.status.class)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_its_ttl_within_bounds() {
        for (ttl, kept) in [(0, 30), (300, 300), (1 << 31, 86_400)] {
            let (memory, asked) = (Memory::new(10), Cell::new(0));
            let yes = |value| Found::Yes(Arc::new(value), Duration::from_secs(ttl));
            assert_eq!(ask(&memory, &asked, yes(1)).await, Ok(1));
            tokio::time::advance(Duration::from_secs(kept) - Duration::from_millis(1)).await;
            assert_eq!(ask(&memory, &asked, yes(2)).await, Ok(1));
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!((ask(&memory, &asked, yes(3)).await, asked.get()), (Ok(3), 2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_kept_for_a_minute_and_silence_for_a_second() {
        let (memory, asked) = (Memory::new(10), Cell::new(0));
        assert_eq!(ask(&memory, &asked, Found::Unknown(no(4))).await, Err(4));
        assert_eq!((ask(&memory, &asked, Found::No(no(5))).await, asked.get()), (Err(4), 1));
        tokio::time::advance(UNKNOWN).await;
        assert_eq!(ask(&memory, &asked, Found::No(no(5))).await, Err(5));
        tokio::time::advance(MINUTE - UNKNOWN).await;
        assert_eq!((ask(&memory, &asked, Found::No(no(5))).await, asked.get()), (Err(5), 2));
        tokio::time::advance(UNKNOWN).await;
        assert_eq!((ask(&memory, &asked, Found::Yes(Arc::new(1), MINUTE)).await, asked.get()), (Ok(1), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_holds_for_a_day_while_the_dns_is_silent() {
        let (memory, asked) = (Memory::new(10), Cell::new(0));
        assert_eq!(ask(&memory, &asked, Found::Yes(Arc::new(1), MINUTE)).await, Ok(1));
        tokio::time::advance(MINUTE * 2).await;
        assert_eq!(ask(&memory, &asked, Found::Unknown(no(4))).await, Ok(1));
        assert_eq!((ask(&memory, &asked, Found::Unknown(no(4))).await, asked.get()), (Ok(1), 2), "not asked at once");
        tokio::time::advance(STALE - MINUTE * 2).await;
        assert_eq!(ask(&memory, &asked, Found::Unknown(no(4))).await, Ok(1));
        tokio::time::advance(MINUTE * 2).await;
        assert_eq!(ask(&memory, &asked, Found::Unknown(no(4))).await, Err(4));
    }
}

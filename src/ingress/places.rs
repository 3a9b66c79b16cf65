//! Places for sessions: how many are open, and who waits for that to change.
//!
//! Strangers have places of their own among all, so that they cannot keep list hosts out.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::watch;

use crate::budget::Lease;

/// How long a reply is held back for load, at most (design 6).
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// How many sessions may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// All of them.
    pub(super) all: usize,
    /// Those of strangers.
    pub(super) strangers: usize,
}

impl Limits {
    /// Where the listening sockets are opened again after they were closed for load: a distance below the limit, so
    /// that they do not flap.
    fn calm(self) -> usize {
        self.all * 3 / 4
    }
}

/// Which limit refused a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// That of all sessions.
    All,
    /// That of strangers.
    Strangers,
}

#[derive(Clone, Copy, Debug, Default)]
struct Open {
    all: usize,
    strangers: usize,
}

/// The count of open sessions.
#[derive(Debug)]
pub(super) struct Places {
    open: watch::Sender<Open>,
    gauge: IntGauge,
}

impl Places {
    pub(super) fn new(gauge: IntGauge) -> Places {
        Places { open: watch::Sender::new(Open::default()), gauge }
    }

    /// A place for a session.
    pub(super) fn take(self: &Arc<Self>, limits: Limits, stranger: bool, lease: Lease) -> Result<Place, Full> {
        let mut refused = None;
        self.open.send_if_modified(|open| {
            refused = match () {
                () if open.all >= limits.all => Some(Full::All),
                () if stranger && open.strangers >= limits.strangers => Some(Full::Strangers),
                () => None,
            };
            if refused.is_none() {
                open.all += 1;
                open.strangers += usize::from(stranger);
            }
            refused.is_none()
        });
        match refused {
            Some(full) => Err(full),
            None => {
                self.gauge.inc();
                Ok(Place { places: Arc::clone(self), stranger, _lease: lease })
            }
        }
    }

    /// Waits until no place is left. `limits` is asked at each change.
    pub(super) async fn full(&self, limits: impl Fn() -> Limits) {
        self.wait(|open| open.all >= limits().all).await;
    }

    /// Waits until enough places are free to listen again.
    pub(super) async fn calm(&self, limits: impl Fn() -> Limits) {
        self.wait(|open| open.all <= limits().calm()).await;
    }

    async fn wait(&self, is_so: impl Fn(&Open) -> bool) {
        // The sender lives in self, so that waiting cannot fail.
        let _ = self.open.subscribe().wait_for(|open| is_so(open)).await;
    }

    /// The limits have changed: who waits asks again.
    pub(super) fn limits_changed(&self) {
        self.open.send_modify(|_| {});
    }

    /// How long a reply is held back now: nothing while a quarter of the places is free, then more and more.
    pub(super) fn pause(&self, limits: Limits) -> Duration {
        let (open, calm) = (self.open.borrow().all, limits.calm());
        let (above, range) = (open.saturating_sub(calm), limits.all.saturating_sub(calm).max(1));
        PAUSE_MAX * u32::try_from(above).unwrap_or(u32::MAX).min(1 << 16) / u32::try_from(range).unwrap_or(u32::MAX)
    }
}

/// One session's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    stranger: bool,
    _lease: Lease,
}

impl Place {
    /// The stranger has shown a password: its place among the strangers is free.
    pub(super) fn is_known_now(&mut self) {
        if std::mem::take(&mut self.stranger) {
            self.places.open.send_modify(|open| open.strangers -= 1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.gauge.dec();
        self.places.open.send_modify(|open| {
            open.all -= 1;
            open.strangers -= usize::from(self.stranger);
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::budget::{Descriptors, Use};

    use super::*;

    const LIMITS: Limits = Limits { all: 4, strangers: 2 };

    fn places() -> (Arc<Places>, Descriptors) {
        let gauge = IntGauge::new("sessions", "help").expect("valid");
        (Arc::new(Places::new(gauge)), Descriptors::with_limit(100).expect("enough"))
    }

    #[test]
    fn strangers_cannot_take_the_places_of_list_hosts() {
        let (places, ledger) = places();
        let take = |stranger| places.take(LIMITS, stranger, ledger.try_lease(Use::Ingress).expect("free"));
        let strangers: Vec<_> = (0..2).map(|_| take(true).expect("free")).collect();
        assert_eq!(take(true).err(), Some(Full::Strangers));
        let mut hosts: Vec<_> = (0..2).map(|_| take(false).expect("free")).collect();
        assert_eq!(take(false).err(), Some(Full::All));
        drop(strangers);
        hosts.push(take(false).expect("free"));
        assert_eq!(places.gauge.get(), 3);
    }

    #[test]
    fn a_stranger_that_is_known_now_makes_room_for_another() {
        let (places, ledger) = places();
        let take = |stranger| places.take(LIMITS, stranger, ledger.try_lease(Use::Ingress).expect("free"));
        let mut open: Vec<_> = (0..2).map(|_| take(true).expect("free")).collect();
        open[0].is_known_now();
        open[0].is_known_now();
        assert!(take(true).is_ok());
    }

    #[test]
    fn replies_slow_down_before_the_sockets_close() {
        let (places, ledger) = places();
        let limits = Limits { all: 8, strangers: 0 };
        let mut open = Vec::new();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            open.push(places.take(limits, false, ledger.try_lease(Use::Ingress).expect("free")).expect("free"));
            pauses.push(places.pause(limits).as_millis());
        }
        assert_eq!(pauses, [0, 0, 0, 0, 0, 0, 25, 50]);
    }
}

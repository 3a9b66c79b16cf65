//! What the core tells those outside its thread.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::watch;

use super::api::Stats;
use super::disk::Disk;

/// How long the answer to "is there room" holds.
const ROOM_HOLDS: Duration = Duration::from_millis(100);

/// Shared between the core and the handles.
#[derive(Debug)]
pub(super) struct Status {
    failure: watch::Sender<Option<Arc<io::Error>>>,
    applied: watch::Sender<u64>,
    missed: AtomicBool,
    room: Mutex<Option<(Instant, bool)>>,
    refusing: IntGauge,
    stats: Mutex<Stats>,
}

impl Status {
    pub(super) fn new(damage: u64, refusing: IntGauge) -> Status {
        Status {
            failure: watch::Sender::new(None),
            applied: watch::Sender::new(0),
            missed: AtomicBool::new(false),
            room: Mutex::new(None),
            refusing,
            stats: Mutex::new(Stats { damage, ..Stats::default() }),
        }
    }

    /// Nothing can be recorded any more.
    pub(super) fn fail(&self, error: io::Error) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| Arc::new(error));
            first
        });
    }

    pub(super) fn is_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    pub(super) fn failure(&self) -> Option<Arc<io::Error>> {
        self.failure.borrow().clone()
    }

    pub(super) fn watch_failure(&self) -> watch::Receiver<Option<Arc<io::Error>>> {
        self.failure.subscribe()
    }

    /// So many more facts are visible.
    pub(super) fn applied(&self, count: u64) {
        if count > 0 {
            self.applied.send_modify(|applied| *applied = applied.saturating_add(count));
        }
    }

    /// No fact will become visible any more: nobody shall wait for one.
    pub(super) fn close(&self) {
        self.applied.send_replace(u64::MAX);
    }

    pub(super) fn watch_applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// A batch was not handed out.
    pub(super) fn miss(&self) {
        self.missed.store(true, Ordering::Release);
    }

    pub(super) fn take_missed(&self) -> bool {
        self.missed.swap(false, Ordering::AcqRel)
    }

    fn room(&self) -> MutexGuard<'_, Option<(Instant, bool)>> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether more than `reserve` octets are free; once they were not, an eighth more must be. Asks the disk every 100 ms at
    /// most.
    pub(super) fn has_room(&self, disk: &dyn Disk, path: &Path, reserve: u64) -> bool {
        let mut room = self.room();
        match *room {
            Some((at, answer)) if at.elapsed() < ROOM_HOLDS => answer,
            before => {
                let refusing = matches!(before, Some((_, false)));
                let reserve = if refusing { reserve.saturating_add(reserve / 8) } else { reserve };
                // A disk that does not say is written to, and says so then.
                let answer = disk.free_space(path).map_or(true, |free| free >= reserve);
                self.note_room(&mut room, answer);
                answer
            }
        }
    }

    /// Asks the disk again at the next occasion.
    #[cfg(test)]
    pub(super) fn forget_room(&self) {
        *self.room() = None;
    }

    /// A write said that the disk is full.
    pub(super) fn set_full(&self) {
        self.note_room(&mut self.room(), false);
    }

    fn note_room(&self, room: &mut Option<(Instant, bool)>, answer: bool) {
        *room = Some((Instant::now(), answer));
        self.refusing.set(i64::from(!answer));
    }

    fn stats_mut(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit is durable.
    pub(super) fn synced(&self, took: Duration) {
        let mut stats = self.stats_mut();
        stats.commits += 1;
        stats.last_fsync = took;
    }

    /// Shows the state; answers it with what only this side counts.
    pub(super) fn report(&self, stats: Stats) -> Stats {
        let mut known = self.stats_mut();
        *known = Stats { commits: known.commits, last_fsync: known.last_fsync, ..stats };
        *known
    }

    pub(super) fn stats(&self) -> Stats {
        *self.stats_mut()
    }
}

//! The derived index: what is queued, when it is due, where contents lie. It answers dispatch's questions without scanning,
//! and it holds nothing that the journal does not say: if it is missing or damaged it is built anew.
//!
//! Changes gather in memory ([`layers`]) and are written to redb by checkpoints, off the committer's path. One lock guards
//! the layers: the committer writes under it (memory only), readers read under it. Nobody holds it across an fsync.

mod apply;
mod base;
mod desk;
mod keys;
mod layers;
mod query;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(super) use apply::Effects;
pub(super) use base::Saved;
use base::Store;
use desk::Desk;
use keys::Table;
pub(super) use keys::{Held, Stored};
use layers::{Frozen, Layer, Layers};

use super::disk::{Disk, Mode};
use super::record::{Mark, Position, Standing};
use super::values::Envelopes;
use crate::mail::RecipientId;

/// The index.
#[derive(Debug)]
pub(super) struct Index {
    layers: RwLock<Layers>,
    desk: Mutex<Desk>,
    envelopes: Mutex<Envelopes>,
    store: Store,
    /// A value did not have its checksum: this index must not be used by the next start.
    damaged: AtomicBool,
    checkpoints: AtomicU64,
    /// How far the store goes.
    durable: Mutex<Position>,
}

/// The index, held for changing it.
pub(super) struct Writing<'a> {
    pub(super) layers: RwLockWriteGuard<'a, Layers>,
    pub(super) desk: MutexGuard<'a, Desk>,
}

impl Writing<'_> {
    /// Tells the desk what a change means for it.
    pub(super) fn tell(&mut self, effects: &mut Effects) {
        for id in effects.settled.drain(..) {
            self.desk.unlease(id);
        }
        for (destination, due) in effects.waiting.drain(..) {
            self.desk.note(&destination, due);
        }
    }

    /// Takes recipients back that were handed out.
    pub(super) fn release(&mut self, ids: &[RecipientId]) -> io::Result<()> {
        for &id in ids {
            if self.desk.unlease(id)
                && let Some(key) = self.layers.queue_key(id)?
            {
                self.desk.note(key.destination(), key.due());
            }
        }
        Ok(())
    }
}

impl Index {
    /// Opens the index in `path`. `None` if there is none, if it belongs to another spool, or if it is damaged: then
    /// [`Index::create`] makes a new one, to be filled from the journal.
    pub(super) fn open(disk: &dyn Disk, path: &Path, cache_bytes: usize, mark: Mark) -> Option<Index> {
        let opened = || -> io::Result<Option<Index>> {
            let file = disk.open(path, Mode::Read)?;
            if file.length()? == 0 {
                return Ok(None);
            }
            let store = Store::open(disk.open(path, Mode::Write)?, cache_bytes)?;
            let Some(saved) = store.saved()?.filter(|saved| saved.mark == mark) else { return Ok(None) };
            let index = Index::over(store, saved)?;
            index.is_plausible(&saved.standing).map(|plausible| plausible.then_some(index))
        };
        // redb asserts what it reads; a damaged file may trip it.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(opened)) {
            Ok(Ok(index)) => index,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the index cannot be read");
                None
            }
            Err(_) => None,
        }
    }

    /// Makes an empty index, in place of whatever is there.
    pub(super) fn create(disk: &dyn Disk, path: &Path, cache_bytes: usize, saved: Saved) -> io::Result<Index> {
        let store = Store::open(disk.open(path, Mode::Fresh)?, cache_bytes)?;
        store.initialise(&saved)?;
        disk.sync_directory(path.parent().unwrap_or(path))?;
        Index::over(store, saved)
    }

    fn over(store: Store, saved: Saved) -> io::Result<Index> {
        let layers =
            Layers { delta: Layer::default(), frozen: None, base: store.base()?, saved, staged: Default::default() };
        Ok(Index {
            layers: RwLock::new(layers),
            desk: Mutex::default(),
            envelopes: Mutex::default(),
            store,
            damaged: AtomicBool::new(false),
            checkpoints: AtomicU64::new(0),
            durable: Mutex::new(saved.applied),
        })
    }

    /// Whether the tables hold as many entries as was counted: a cheap test for what page checksums would find.
    fn is_plausible(&self, standing: &Standing) -> io::Result<bool> {
        let layers = self.read();
        let queued = standing.totals.queued + standing.totals.dsn_queued;
        let batches = layers.base.count(Table::Batches)? == layers.base.count(Table::Open)?;
        let rows = layers.base.count(Table::Rows)? == queued && layers.base.count(Table::Queue)? == queued;
        Ok(batches && rows && layers.base.count(Table::Owed)? == standing.totals.owed)
    }

    fn read(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the index for changing it.
    pub(super) fn write(&self) -> Writing<'_> {
        let layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        Writing { layers, desk: self.desk() }
    }

    /// What is known beside the tables.
    pub(super) fn saved(&self) -> Saved {
        self.read().saved
    }

    /// Changes since the last checkpoint, and whether one is being written.
    pub(super) fn changes(&self) -> (usize, bool) {
        let layers = self.read();
        (layers.delta.changes(), layers.frozen.is_some())
    }

    /// Checkpoints since the start.
    pub(super) fn checkpoints(&self) -> u64 {
        self.checkpoints.load(Ordering::Relaxed)
    }

    /// Sets the changes so far aside for [`Index::checkpoint`]; `applied` is how far the journal is synced, and every
    /// record before it is in the index. False if the last checkpoint is still being written.
    pub(super) fn freeze(&self, applied: Position) -> bool {
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        if layers.frozen.is_some() {
            return false;
        }
        layers.saved.applied = applied;
        let frozen = Frozen { layer: std::mem::take(&mut layers.delta), saved: layers.saved };
        layers.frozen = Some(Arc::new(frozen));
        true
    }

    /// Writes what was set aside. Slow: not for the committer.
    pub(super) fn checkpoint(&self) -> io::Result<()> {
        let Some(frozen) = self.read().frozen.clone() else { return Ok(()) };
        self.store.write(&frozen)?;
        let base = self.store.base()?;
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        layers.base = base;
        layers.frozen = None;
        drop(layers);
        *self.durable.lock().unwrap_or_else(PoisonError::into_inner) = frozen.saved.applied;
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        // Freeing a big map takes a while; nobody waits for it here.
        drop(frozen);
        Ok(())
    }

    /// Gives the file free. Whoever asks afterwards gets an error.
    pub(super) fn close(&self) {
        self.store.close();
    }

    /// How far the index would go if it were opened again.
    pub(super) fn durable(&self) -> Position {
        *self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether an error says that the index itself is damaged, and passes the result on.
    pub(super) fn noting<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
            self.distrust();
        }
        result
    }

    /// Notes that the index is damaged.
    pub(super) fn distrust(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    /// Whether the next start must not use this index.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }
}

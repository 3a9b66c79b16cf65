//! Three layers, the newest on top: `delta` (changes since the last checkpoint, in memory), `frozen` (the changes that a
//! checkpoint is writing just now), and the base (redb). What is found first holds.
//!
//! A key that was put into the delta while nothing lay beneath (`Fresh`) leaves no trace when it is removed again: what
//! went from accepted to settled between two checkpoints never touches the base.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use super::base::{Base, Saved};
use super::keys::Table;
use crate::spool::codec::{Codec, bytes_of, whole};

/// A change to one key.
#[derive(Debug)]
pub(super) enum Entry {
    /// Put where nothing lay beneath.
    Fresh(Box<[u8]>),
    /// Put over something, or over one knows not what.
    Put(Box<[u8]>),
    /// Removed.
    Dead,
}

impl Entry {
    pub(super) fn value(&self) -> Option<&[u8]> {
        match self {
            Entry::Fresh(value) | Entry::Put(value) => Some(value),
            Entry::Dead => None,
        }
    }
}

/// Changes in memory, a sorted map per table.
#[derive(Debug, Default)]
pub(super) struct Layer {
    tables: [BTreeMap<Box<[u8]>, Entry>; Table::ALL.len()],
}

impl Layer {
    pub(super) fn table(&self, table: Table) -> &BTreeMap<Box<[u8]>, Entry> {
        &self.tables[table as usize]
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        match self.tables[table as usize].entry(key.into()) {
            Slot::Vacant(slot) => {
                slot.insert(Entry::Put(value.into()));
            }
            Slot::Occupied(mut slot) => match slot.get_mut() {
                Entry::Fresh(old) | Entry::Put(old) => *old = value.into(),
                entry @ Entry::Dead => *entry = Entry::Put(value.into()),
            },
        }
    }

    /// As `put`, for a key that is known to have no value in any layer.
    fn put_new(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.tables[table as usize]
            .entry(key.into())
            .and_modify(|entry| *entry = Entry::Put(value.into()))
            .or_insert_with(|| Entry::Fresh(value.into()));
    }

    fn remove(&mut self, table: Table, key: &[u8]) {
        let map = &mut self.tables[table as usize];
        match map.get_mut(key) {
            Some(Entry::Fresh(_)) => {
                map.remove(key);
            }
            Some(entry) => *entry = Entry::Dead,
            None => {
                map.insert(key.into(), Entry::Dead);
            }
        }
    }

    fn range(&self, table: Table, from: &[u8], to: &[u8]) -> impl Iterator<Item = (&[u8], &Entry)> {
        // BTreeMap panics on an inverted range.
        let bounds = (Bound::Included(from), Bound::Excluded(to.max(from)));
        let bounds = if from < to { bounds } else { (Bound::Included(from), Bound::Included(from)) };
        let empty = from >= to;
        self.tables[table as usize].range::<[u8], _>(bounds).take_while(move |_| !empty).map(|(k, e)| (&**k, e))
    }

    /// Changes of the largest table: what a checkpoint's size is measured by.
    pub(super) fn changes(&self) -> usize {
        self.tables.iter().map(BTreeMap::len).max().unwrap_or(0)
    }
}

/// What a checkpoint is writing.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) layer: Layer,
    pub(super) saved: Saved,
}

/// The layers together.
#[derive(Debug)]
pub(in super::super) struct Layers {
    pub(super) delta: Layer,
    pub(super) frozen: Option<Arc<Frozen>>,
    pub(super) base: Base,
    /// What is known beside the tables, as of now.
    pub(in super::super) saved: Saved,
    /// Contents whose accept record has not come yet; never any between two commits.
    pub(super) staged: std::collections::HashSet<crate::mail::ContentHash>,
}

impl Layers {
    /// What is stored under a key, as `read` sees it.
    pub(super) fn get<R>(&self, table: Table, key: &[u8], read: impl FnOnce(&[u8]) -> R) -> io::Result<Option<R>> {
        if let Some(entry) = self.delta.table(table).get(key) {
            return Ok(entry.value().map(read));
        }
        if let Some(entry) = self.frozen.as_ref().and_then(|frozen| frozen.layer.table(table).get(key)) {
            return Ok(entry.value().map(read));
        }
        self.base.get(table, key, read)
    }

    /// What is stored under a key, decoded.
    pub(super) fn value<T: Codec>(&self, table: Table, key: &[u8]) -> io::Result<Option<T>> {
        Ok(self.get(table, key, whole)?.transpose()?)
    }

    pub(super) fn put<T: Codec>(&mut self, table: Table, key: &[u8], value: &T) {
        self.delta.put(table, key, &bytes_of(value));
    }

    pub(super) fn put_bytes(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.delta.put(table, key, value);
    }

    /// As [`Layers::put`], for a key that has no value in any layer.
    pub(super) fn put_new<T: Codec>(&mut self, table: Table, key: &[u8], value: &T) {
        self.delta.put_new(table, key, &bytes_of(value));
    }

    pub(super) fn put_new_bytes(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.delta.put_new(table, key, value);
    }

    pub(super) fn remove(&mut self, table: Table, key: &[u8]) {
        self.delta.remove(table, key);
    }

    /// Visits all keys from `from` up to, not including, `to`, in order, until the visitor breaks.
    pub(super) fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> io::Result<ControlFlow<()>>,
    ) -> io::Result<()> {
        let mut delta = self.delta.range(table, from, to).peekable();
        let mut frozen = self.frozen.iter().flat_map(|f| f.layer.range(table, from, to)).peekable();
        let mut base = self.base.range(table, from, to)?;
        let mut lowest = base.next()?;
        loop {
            let upper = match (delta.peek(), frozen.peek()) {
                (Some((d, _)), Some((f, _))) => Some(*d.min(f)),
                (d, f) => d.or(f).map(|(key, _)| *key),
            };
            let in_base = lowest.as_ref().map(|pair| pair.key());
            let flow = match (upper, in_base) {
                (None, None) => return Ok(()),
                (Some(key), below) if below.is_none_or(|below| key <= below) => {
                    let over = delta.next_if(|(k, _)| *k == key).map(|(_, entry)| entry);
                    let under = frozen.next_if(|(k, _)| *k == key).map(|(_, entry)| entry);
                    let flow = match over.or(under).and_then(Entry::value) {
                        Some(value) => visit(key, value)?,
                        None => ControlFlow::Continue(()),
                    };
                    if below == Some(key) {
                        lowest = base.next()?;
                    }
                    flow
                }
                _ => {
                    let flow = lowest
                        .as_ref()
                        .map_or(Ok(ControlFlow::Continue(())), |pair| visit(pair.key(), pair.value(table)?))?;
                    lowest = base.next()?;
                    flow
                }
            };
            if flow.is_break() {
                return Ok(());
            }
        }
    }

    /// The first key from `from` up to, not including, `to`.
    pub(super) fn first(&self, table: Table, from: &[u8], to: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut first = None;
        self.scan(table, from, to, |key, _| {
            first = Some(key.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        Ok(first)
    }
}

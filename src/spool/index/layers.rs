//! Three layers, the newest on top: `delta` (changes since the last checkpoint, in memory), `frozen` (the changes that a
//! checkpoint is writing just now), and the base (redb). What is found first holds.
//!
//! A key that was put into the delta while nothing lay beneath (`Fresh`) leaves no trace when it is removed again: what
//! went from accepted to settled between two checkpoints never touches the base.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use super::base::{Base, Saved};
use super::keys::Table;
use crate::spool::codec::{Codec, bytes_of, whole};

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Put where nothing lay beneath.
    Fresh,
    /// Put over something, or over one knows not what.
    Put,
    /// Removed.
    Dead,
}

/// A change to one key. Key and value share an allocation: there are hundreds of thousands of these.
#[derive(Debug)]
pub(super) struct Entry {
    bytes: Box<[u8]>,
    key: u16,
    change: Change,
}

impl Entry {
    fn new(change: Change, key: &[u8], value: &[u8]) -> Entry {
        let length = u16::try_from(key.len()).expect("a destination has at most 255 octets, the rest of a key 40");
        Entry { bytes: [key, value].concat().into(), key: length, change }
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[..usize::from(self.key)]
    }

    /// The value, unless the key was removed.
    pub(super) fn value(&self) -> Option<&[u8]> {
        (self.change != Change::Dead).then(|| &self.bytes[usize::from(self.key)..])
    }
}

/// By key alone.
impl Borrow<[u8]> for Entry {
    fn borrow(&self) -> &[u8] {
        self.key()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        self.key().cmp(other.key())
    }
}

/// Changes in memory, a sorted set per table.
#[derive(Debug, Default)]
pub(super) struct Layer {
    tables: [BTreeSet<Entry>; Table::ALL.len()],
}

impl Layer {
    pub(super) fn table(&self, table: Table) -> &BTreeSet<Entry> {
        &self.tables[table as usize]
    }

    /// Puts a value. `absent` is what holds if nothing is known of the key here.
    fn put(&mut self, table: Table, key: &[u8], value: &[u8], absent: Change) {
        let entries = &mut self.tables[table as usize];
        let change = match entries.get(key).map(|entry| entry.change) {
            Some(Change::Fresh) => Change::Fresh,
            Some(Change::Put | Change::Dead) => Change::Put,
            None => absent,
        };
        entries.replace(Entry::new(change, key, value));
    }

    fn remove(&mut self, table: Table, key: &[u8]) {
        let entries = &mut self.tables[table as usize];
        if entries.take(key).is_none_or(|entry| entry.change != Change::Fresh) {
            entries.insert(Entry::new(Change::Dead, key, &[]));
        }
    }

    fn range(&self, table: Table, from: &[u8], to: &[u8]) -> impl Iterator<Item = &Entry> {
        // BTreeSet panics on an inverted range.
        let to = Bound::Excluded(to.max(from));
        let from = Bound::Included(from);
        let is_empty = matches!((from, to), (Bound::Included(from), Bound::Excluded(to)) if from == to);
        let entries = self.tables[table as usize].range::<[u8], _>((from, if is_empty { from } else { to }));
        entries.take_while(move |_| !is_empty)
    }

    /// Changes of the largest table: what a checkpoint's size is measured by.
    pub(super) fn changes(&self) -> usize {
        self.tables.iter().map(BTreeSet::len).max().unwrap_or(0)
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
        self.delta.put(table, key, &bytes_of(value), Change::Put);
    }

    pub(super) fn put_bytes(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.delta.put(table, key, value, Change::Put);
    }

    /// As [`Layers::put`], for a key that has no value in any layer.
    pub(super) fn put_new<T: Codec>(&mut self, table: Table, key: &[u8], value: &T) {
        self.delta.put(table, key, &bytes_of(value), Change::Fresh);
    }

    pub(super) fn put_new_bytes(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.delta.put(table, key, value, Change::Fresh);
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
                (Some(d), Some(f)) => Some(d.key().min(f.key())),
                (d, f) => d.or(f).map(|entry| entry.key()),
            };
            let in_base = lowest.as_ref().map(|pair| pair.key());
            let flow = match (upper, in_base) {
                (None, None) => return Ok(()),
                (Some(key), below) if below.is_none_or(|below| key <= below) => {
                    let over = delta.next_if(|entry| entry.key() == key);
                    let under = frozen.next_if(|entry| entry.key() == key);
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

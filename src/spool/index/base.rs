//! The base of the index: a redb file. It is derived: whatever is wrong with it, it is thrown away and built anew from the
//! journal. Every value carries a checksum over table, key and value, because redb checks pages only when asked to,
//! and a recipient whose address changed on disk must not be mailed.

use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use redb::{
    AccessGuard, Builder, Database, Durability, Range, ReadOnlyTable, ReadableDatabase, ReadableTableMetadata,
    StorageBackend, TableDefinition,
};

use super::keys::Table;
use super::layers::Frozen;
use crate::spool::codec::{Codec, Input, Malformed, bytes_of, whole};
use crate::spool::disk::DiskFile;
use crate::spool::record::{Mark, Position, Standing};

type Bytes = &'static [u8];

const META: TableDefinition<'static, Bytes, Bytes> = TableDefinition::new("meta");

const SAVED: &[u8] = b"saved";

fn definition(table: Table) -> TableDefinition<'static, Bytes, Bytes> {
    TableDefinition::new(table.name())
}

/// What is saved beside the tables, in the same transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Saved {
    /// Whose index this is.
    pub(in super::super) mark: Mark,
    /// Everything in the journal before here is in the index.
    pub(in super::super) applied: Position,
    pub(in super::super) standing: Standing,
    /// Octets of the journal that would survive compaction.
    pub(in super::super) live_bytes: u64,
}

impl Codec for Saved {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.mark);
        self.applied.put(out);
        self.standing.put(out);
        self.live_bytes.put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        Ok(Saved {
            mark: input.array()?,
            applied: Codec::take(input)?,
            standing: Codec::take(input)?,
            live_bytes: Codec::take(input)?,
        })
    }
}

fn checksum(table: &str, key: &[u8], value: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c_append(crc32c::crc32c(table.as_bytes()), key);
    crc32c::crc32c_append(crc, value).to_be_bytes()
}

/// The index does not say what was written to it.
fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the index is damaged; it is built anew from the journal at the next start",
    )
}

fn checked<'a>(table: &str, key: &[u8], stored: &'a [u8]) -> io::Result<&'a [u8]> {
    let (crc, value) = stored.split_first_chunk::<4>().ok_or_else(damaged)?;
    if *crc == checksum(table, key, value) { Ok(value) } else { Err(damaged()) }
}

fn guarded(table: &str, key: &[u8], value: &[u8]) -> Vec<u8> {
    [&checksum(table, key, value), value].concat()
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// A redb file over a [`DiskFile`].
#[derive(Debug)]
struct Backend(Arc<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_length(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

/// The database, which is written by checkpoints only. `None` once it is closed.
pub(super) struct Store(Mutex<Option<Database>>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Files up to this size are verified whole when they are opened; larger ones would delay the start.
    const VERIFIED: u64 = 32 << 20;

    /// Opens the database in `file`, or makes one if the file is empty.
    pub(super) fn open(file: Arc<dyn DiskFile>, cache_bytes: usize) -> io::Result<Store> {
        let verify = file.length()? <= Store::VERIFIED;
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes).set_check_integrity_on_open(verify);
        let database = builder.create_with_backend(Backend(file)).map_err(failed)?;
        Ok(Store(Mutex::new(Some(database))))
    }

    fn with<T>(&self, use_it: impl FnOnce(&Database) -> io::Result<T>) -> io::Result<T> {
        let database = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map_or_else(|| Err(io::Error::other("the index is closed")), use_it)
    }

    /// Closes the file. What was read from it so far must not be used any more, and answers errors.
    pub(super) fn close(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// What was saved last; `None` in a new database.
    pub(super) fn saved(&self) -> io::Result<Option<Saved>> {
        let read = self.with(|database| database.begin_read().map_err(failed))?;
        let table = match read.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table.map_err(failed)?,
        };
        let Some(stored) = table.get(SAVED).map_err(failed)? else { return Ok(None) };
        Ok(Some(whole(checked("meta", SAVED, stored.value())?)?))
    }

    /// Makes the tables, and saves `saved`.
    pub(super) fn initialise(&self, saved: &Saved) -> io::Result<()> {
        self.write(&Frozen { layer: Default::default(), saved: *saved })
    }

    /// Writes the changes and what is saved beside them, durably and at once or not at all.
    pub(super) fn write(&self, frozen: &Frozen) -> io::Result<()> {
        let mut transaction = self.with(|database| database.begin_write().map_err(failed))?;
        transaction.set_durability(Durability::Immediate).map_err(failed)?;
        transaction.set_quick_repair(true);
        for table in Table::ALL {
            let mut target = transaction.open_table(definition(table)).map_err(failed)?;
            for entry in frozen.layer.table(table) {
                let key = entry.key();
                match entry.value() {
                    Some(value) => target.insert(key, &*guarded(table.name(), key, value)).map(drop),
                    None => target.remove(key).map(drop),
                }
                .map_err(failed)?;
            }
        }
        let saved = guarded("meta", SAVED, &bytes_of(&frozen.saved));
        transaction.open_table(META).map_err(failed)?.insert(SAVED, &*saved).map_err(failed)?;
        transaction.commit().map_err(failed)
    }

    /// The tables as they are now.
    pub(super) fn base(&self) -> io::Result<Base> {
        let read = self.with(|database| database.begin_read().map_err(failed))?;
        let open = |table| read.open_table(definition(table)).map_err(failed);
        let tables: io::Result<Vec<_>> = Table::ALL.into_iter().map(open).collect();
        Ok(Base(tables?))
    }
}

/// The tables as of one checkpoint.
pub(super) struct Base(Vec<ReadOnlyTable<Bytes, Bytes>>);

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Base")
    }
}

impl Base {
    pub(super) fn get<R>(&self, table: Table, key: &[u8], read: impl FnOnce(&[u8]) -> R) -> io::Result<Option<R>> {
        let Some(stored) = self.0[table as usize].get(key).map_err(failed)? else { return Ok(None) };
        checked(table.name(), key, stored.value()).map(read).map(Some)
    }

    pub(super) fn range(&self, table: Table, from: &[u8], to: &[u8]) -> io::Result<Pairs> {
        if from >= to {
            return Ok(Pairs(None));
        }
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(from), Bound::Excluded(to));
        self.0[table as usize].range::<&[u8]>(bounds).map(|range| Pairs(Some(range))).map_err(failed)
    }

    /// Entries of a table.
    pub(super) fn count(&self, table: Table) -> io::Result<u64> {
        self.0[table as usize].len().map_err(failed)
    }
}

/// Keys and values in order.
pub(super) struct Pairs(Option<Range<'static, Bytes, Bytes>>);

impl Pairs {
    pub(super) fn next(&mut self) -> io::Result<Option<Pair>> {
        match self.0.as_mut().and_then(Iterator::next) {
            None => Ok(None),
            Some(pair) => pair.map(|(key, value)| Some(Pair { key, value })).map_err(failed),
        }
    }
}

/// A key and its value.
pub(super) struct Pair {
    key: AccessGuard<'static, Bytes>,
    value: AccessGuard<'static, Bytes>,
}

impl Pair {
    pub(super) fn key(&self) -> &[u8] {
        self.key.value()
    }

    pub(super) fn value(&self, table: Table) -> io::Result<&[u8]> {
        checked(table.name(), self.key(), self.value.value())
    }
}

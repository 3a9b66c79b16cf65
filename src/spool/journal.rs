//! The journal's writing side: segments that only ever grow, one of them open.
//!
//! A segment whose write or fsync failed is abandoned: never written or synced again, because after a failed fsync the
//! kernel may have dropped the very pages that it failed to write. The next segment's header says how far the abandoned
//! one is to be believed, and facts that cannot be taken back (outcomes: the mail has been relayed) are written again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::Codec;
use super::disk::{Disk, DiskFile, Mode};
use super::record::{self, Header, Kind, Mark, PREAMBLE, Position, Standing};

/// The journal, as it is written.
#[derive(Debug)]
pub(super) struct Journal {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    mark: Mark,
    segment_bytes: u64,
    /// Closed segments and how far each is to be believed.
    sealed: BTreeMap<u64, u64>,
    open: Option<Open>,
    next: u64,
    commit: u32,
    /// Framed records that are written but not synced and must not be lost with their segment.
    facts: Vec<u8>,
    /// The standing before the first of the facts.
    before: Standing,
}

#[derive(Debug)]
struct Open {
    number: u64,
    file: Arc<dyn DiskFile>,
    length: u64,
    synced: u64,
    /// Its name is not durable yet.
    fresh: bool,
}

/// The file name of a segment.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:08}.seg")
}

/// The number in a segment's file name.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    name.strip_suffix(".seg")?.parse().ok()
}

impl Journal {
    /// A journal that goes on behind the `sealed` segments. Nothing is written before there is something to write.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        directory: &Path,
        mark: Mark,
        segment_bytes: u64,
        sealed: BTreeMap<u64, u64>,
        next: u64,
        commit: u32,
    ) -> Journal {
        let directory = directory.to_owned();
        let (facts, before) = (Vec::new(), Standing::default());
        Journal { disk, directory, mark, segment_bytes, sealed, open: None, next, commit, facts, before }
    }

    /// The mark of this spool's records.
    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// The number that records of the commit in progress bear.
    pub(super) fn commit(&self) -> u32 {
        self.commit
    }

    /// The path of a segment.
    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.directory.join(segment_name(number))
    }

    /// Where the next record would go if the segment stays.
    pub(super) fn end(&self) -> Position {
        match &self.open {
            Some(open) => Position { segment: open.number, offset: open.length },
            None => Position { segment: self.next, offset: 0 },
        }
    }

    /// Whether something is written but not synced.
    pub(super) fn is_dirty(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.length > open.synced)
    }

    /// Appends framed records, beginning a segment where needed; answers where they lie. `standing` is the one before
    /// these records.
    pub(super) fn append(&mut self, records: &[u8], standing: &Standing) -> io::Result<Position> {
        self.make_room(standing)?;
        self.write(records)
    }

    /// Appends records that have to survive even if this segment does not.
    pub(super) fn append_facts(&mut self, records: &[u8], standing: &Standing) -> io::Result<Position> {
        // Remembered before anything can fail, but after making room, which may sync and forget the facts before them.
        let room = self.make_room(standing);
        if self.facts.is_empty() {
            self.before = *standing;
        }
        self.facts.extend_from_slice(records);
        room.and_then(|()| self.write(records))
    }

    fn make_room(&mut self, standing: &Standing) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|open| open.length >= self.segment_bytes) {
            self.seal()?;
        }
        if self.open.is_none() { self.begin(standing) } else { Ok(()) }
    }

    fn write(&mut self, records: &[u8]) -> io::Result<Position> {
        let open = self.open.as_mut().expect("room was made");
        open.file.write_at(open.length, records)?;
        let at = Position { segment: open.number, offset: open.length };
        open.length += records.len() as u64;
        Ok(at)
    }

    /// Makes all that was appended durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let Some(open) = self.open.as_mut().filter(|open| open.length > open.synced) else { return Ok(()) };
        open.file.sync()?;
        if open.fresh {
            self.disk.sync_directory(&self.directory)?;
            open.fresh = false;
        }
        open.synced = open.length;
        self.facts.clear();
        self.commit = self.commit.wrapping_add(1);
        Ok(())
    }

    fn seal(&mut self) -> io::Result<()> {
        self.sync()?;
        if let Some(open) = self.open.take() {
            self.sealed.insert(open.number, open.length);
        }
        Ok(())
    }

    fn begin(&mut self, standing: &Standing) -> io::Result<()> {
        let number = self.next;
        let header = Header { ends: self.sealed.iter().map(|(&n, &end)| (n, end)).collect(), standing: *standing };
        let mut bytes = record::preamble(self.mark).to_vec();
        record::frame(&mut bytes, self.mark, self.commit, Kind::Header, number, |out| header.put(out));
        let file = self.disk.open(&self.directory.join(segment_name(number)), Mode::Fresh)?;
        self.next += 1;
        let length = bytes.len() as u64;
        self.open = Some(Open { number, file: Arc::clone(&file), length: 0, synced: 0, fresh: true });
        file.write_at(0, &bytes)?;
        self.open.as_mut().expect("set above").length = length;
        Ok(())
    }

    /// Gives the open segment up and writes the facts that were in it to a fresh one, durably.
    ///
    /// # Errors
    /// The fresh segment failed too. If there are facts, they are not on disk.
    pub(super) fn salvage(&mut self, standing: &Standing) -> io::Result<()> {
        self.abandon();
        self.commit = self.commit.wrapping_add(1);
        let facts = std::mem::take(&mut self.facts);
        let standing = if facts.is_empty() { *standing } else { self.before };
        let written = self.append_facts(&facts, &standing).and_then(|_| self.sync());
        if written.is_err() {
            self.abandon();
        }
        written
    }

    /// Whether outcomes wait for being written again.
    pub(super) fn owes_facts(&self) -> bool {
        !self.facts.is_empty()
    }

    fn abandon(&mut self) {
        let Some(open) = self.open.take() else { return };
        // For the space and for the reader's sake only; what counts is the next header.
        let _ = open.file.set_length(open.synced);
        let is_needed = open.synced > PREAMBLE as u64;
        // One that cannot be removed is named as empty, so that nobody believes what it says.
        if is_needed || self.disk.remove(&self.path(open.number)).is_err() {
            self.sealed.insert(open.number, open.synced);
        }
    }

    /// The closed segments from the oldest on.
    pub(super) fn sealed(&self) -> &BTreeMap<u64, u64> {
        &self.sealed
    }

    /// Removes the oldest closed segment.
    pub(super) fn remove(&mut self, number: u64) -> io::Result<()> {
        match self.disk.remove(&self.path(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.sealed.remove(&number),
        };
        Ok(())
    }

    /// Segments, and the octets in them.
    pub(super) fn size(&self) -> (u64, u64) {
        let open = self.open.as_ref().map(|open| open.length);
        let count = self.sealed.len() as u64 + u64::from(open.is_some());
        (count, self.sealed.values().sum::<u64>() + open.unwrap_or(0))
    }
}

//! The start: from whatever lies on disk to a journal that can be written and an index that says what it says.
//!
//! Read only what follows the index's last checkpoint; everything, if there is no index to be believed. Damage is never
//! repaired in place: it is copied to `quarantine/`, reported, and the rest goes on.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::api::{OpenError, Options};
use super::disk::{Disk, LockGuard, Mode, read_all};
use super::index::{Effects, Index, Saved, Stored};
use super::journal::{Journal, segment_number};
use super::layout::{Layout, content_hash};
use super::metrics::Metrics;
use super::record::{self, HEAD, Head, Header, Kind, Mark, PREAMBLE, Place, Position, Record, Standing, VERSION};
use super::scan::{Found, Scan, survey};

/// Octets of one stretch of damage that are kept in quarantine, at most.
const QUARANTINED: u64 = 1 << 20;

/// Checkpoints' worth of changes that may gather in memory while replaying.
const REPLAYED: usize = 4;

/// Files in quarantine, at most.
const QUARANTINE_FILES: usize = 256;

/// A spool that was opened.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) journal: Journal,
    pub(super) index: Index,
    /// Whether it was made just now.
    pub(super) is_new: bool,
    /// Damaged places found.
    pub(super) damage: u64,
    pub(super) lock: Lock,
}

/// The lock, held for as long as the spool is.
pub(super) struct Lock(#[expect(dead_code, reason = "held for its drop")] LockGuard);

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lock")
    }
}

/// Opens the spool.
pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    layout: &Layout,
    options: &Options,
    metrics: &Metrics,
) -> Result<Recovered, OpenError> {
    for directory in layout.directories() {
        disk.make_directory(directory).map_err(|source| refused(directory.to_owned(), source))?;
    }
    let lock = disk.lock(&layout.lock()).map_err(|source| refused(layout.lock(), source))?;
    let lock = Lock(lock.ok_or_else(|| OpenError::Locked(layout.root.clone()))?);
    let mut opening = Opening { disk: Arc::clone(disk), layout: layout.clone(), metrics: metrics.clone(), damage: 0 };
    opening.open(options, lock)
}

/// Sorts out what the operator can mend: rights, from what the disk has to answer for.
fn refused(path: std::path::PathBuf, source: io::Error) -> OpenError {
    use io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    match source.kind() {
        PermissionDenied | ReadOnlyFilesystem | NotADirectory => OpenError::NotWritable { path, source },
        _ => OpenError::Io { path, source },
    }
}

struct Opening {
    disk: Arc<dyn Disk>,
    layout: Layout,
    metrics: Metrics,
    damage: u64,
}

/// One segment as it was found.
#[derive(Debug)]
struct Segment {
    /// Its header, if it can be read.
    header: Option<Header>,
    /// How far it is to be believed.
    end: u64,
}

impl Opening {
    fn failed(&self, source: io::Error) -> OpenError {
        OpenError::Io { path: self.layout.root.clone(), source }
    }

    fn open(&mut self, options: &Options, lock: Lock) -> Result<Recovered, OpenError> {
        let numbers = self.segments().map_err(|error| self.failed(error))?;
        let mark = self.mark(&numbers)?;
        let is_new = mark.is_none();
        let mark = mark.map_or_else(|| self.make(), Ok).map_err(|source| refused(self.layout.format(), source))?;
        let index = Index::open(&*self.disk, &self.layout.index(), options.index_cache_bytes, mark);
        let applied = index.as_ref().map(|index| index.saved().applied);
        let (segments, last_commit) = self.examine(mark, &numbers, applied).map_err(|error| self.failed(error))?;
        let index = index.filter(|index| reaches(&segments, index.saved().applied));
        let index = match index {
            Some(index) => index,
            None => self.create_index(mark, &segments, options).map_err(|error| self.failed(error))?,
        };
        self.replay(&index, mark, &segments, options)?;
        self.sweep(&index).map_err(|error| self.failed(error))?;
        let applied = index.saved().applied.segment;
        let next = numbers.last().map_or(1, |last| last + 1).max(applied);
        let sealed = segments.iter().map(|(&number, segment)| (number, segment.end)).collect();
        let (disk, directory) = (Arc::clone(&self.disk), &self.layout.journal);
        let commit = last_commit.wrapping_add(1);
        let journal = Journal::new(disk, directory, mark, options.segment_bytes, sealed, next, commit);
        Ok(Recovered { journal, index, is_new, damage: self.damage, lock })
    }

    /// The numbers of the segments, oldest first.
    fn segments(&self) -> io::Result<Vec<u64>> {
        let names = self.disk.list(&self.layout.journal)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The mark of this spool's records; `None` if nothing was ever written here. Refuses newer formats.
    fn mark(&mut self, numbers: &[u64]) -> Result<Option<Mark>, OpenError> {
        let preambles: Vec<_> =
            numbers.iter().filter_map(|&number| self.preamble(&self.layout.segment(number))).collect();
        let format = self.preamble(&self.layout.format());
        let newest = preambles.iter().chain(&format).map(|(version, _)| *version).max();
        if let Some(found) = newest.filter(|&version| version > u32::from(VERSION)) {
            return Err(OpenError::Newer { path: self.layout.root.clone(), found, known: VERSION.into() });
        }
        if let Some((_, mark)) = format {
            return Ok(Some(mark));
        }
        let mark = preambles.first().map(|(_, mark)| *mark).or_else(|| self.mark_of_a_record(numbers));
        if let Some(mark) = mark {
            self.found("the file `format` is missing or damaged; it is written again", &self.layout.format());
            self.write_format(mark).map_err(|source| refused(self.layout.format(), source))?;
        }
        Ok(mark)
    }

    fn preamble(&self, path: &std::path::Path) -> Option<(u32, Mark)> {
        let file = self.disk.open(path, Mode::Read).ok()?;
        let mut bytes = [0; PREAMBLE];
        file.read_at(0, &mut bytes).ok()?;
        record::read_preamble(&bytes)
    }

    /// The mark of the first record of any segment, where all preambles are damaged.
    fn mark_of_a_record(&self, numbers: &[u64]) -> Option<Mark> {
        numbers.iter().find_map(|&number| {
            let file = self.disk.open(&self.layout.segment(number), Mode::Read).ok()?;
            let mut mark = [0; 8];
            file.read_at(PREAMBLE as u64, &mut mark).ok()?;
            let mut scan = Scan::new(file, mark, PREAMBLE as u64, u64::MAX).ok()?;
            matches!(scan.next().ok()??, Found::Record { .. }).then_some(mark)
        })
    }

    fn make(&self) -> io::Result<Mark> {
        let mark: Mark = rand::random();
        self.write_format(mark)?;
        Ok(mark)
    }

    fn write_format(&self, mark: Mark) -> io::Result<()> {
        let path = self.layout.tmp.join("format");
        let file = self.disk.open(&path, Mode::Fresh)?;
        file.write_at(0, &record::preamble(mark))?;
        file.sync()?;
        self.disk.rename(&path, &self.layout.format())?;
        self.disk.sync_directory(&self.layout.root)
    }

    /// Looks at every segment's header, and at the whole of those that no header closed.
    fn examine(
        &mut self,
        mark: Mark,
        numbers: &[u64],
        applied: Option<Position>,
    ) -> io::Result<(BTreeMap<u64, Segment>, u32)> {
        let mut segments = BTreeMap::new();
        let mut last_commit = 0;
        for &number in numbers {
            let (header, commit) = self.header(mark, number)?;
            last_commit = last_commit.max(commit);
            segments.insert(number, Segment { header, end: u64::MAX });
        }
        let newest = segments.values().rev().find_map(|segment| segment.header.clone());
        let ends: BTreeMap<u64, u64> = newest.map_or_else(BTreeMap::new, |header| header.ends.into_iter().collect());
        for &number in numbers {
            let file = self.disk.open(&self.layout.segment(number), Mode::Read)?;
            let length = file.length()?;
            let end = match ends.get(&number) {
                Some(&end) => self.closed(number, end, length),
                None => {
                    let from = applied.filter(|at| at.segment == number).map_or(0, |at| at.offset.min(length));
                    let found = survey(Scan::new(file, mark, from.max(PREAMBLE as u64), u64::MAX)?)?;
                    last_commit = last_commit.max(found.last_commit);
                    self.torn(number, found.end, length)?
                }
            };
            match end {
                Some(end) => segments.entry(number).and_modify(|segment| segment.end = end),
                None => {
                    segments.remove(&number);
                    continue;
                }
            };
        }
        self.report_missing(&ends, numbers);
        Ok((segments, last_commit))
    }

    fn closed(&mut self, number: u64, end: u64, length: u64) -> Option<u64> {
        if length < end {
            self.found("a journal segment is shorter than it was", &self.layout.segment(number));
        }
        Some(end.min(length))
    }

    /// The newest segment ends in what was being written when the power went: not damage.
    fn torn(&mut self, number: u64, end: u64, length: u64) -> io::Result<Option<u64>> {
        if end <= PREAMBLE as u64 {
            // It was being made: nothing in it was ever answered. An empty one is simply removed.
            tracing::info!(segment = number, octets = length, "removing a journal segment without any record");
            self.quarantine(number, 0, length);
            self.disk.remove(&self.layout.segment(number))?;
            return Ok(None);
        }
        if end < length {
            tracing::info!(segment = number, octets = length - end, "ignoring the torn tail of the journal");
        }
        Ok(Some(end))
    }

    fn report_missing(&mut self, ends: &BTreeMap<u64, u64>, numbers: &[u64]) {
        let oldest = numbers.first().copied().unwrap_or(u64::MAX);
        for number in ends.keys().filter(|number| **number > oldest && !numbers.contains(number)) {
            self.found("a journal segment is missing", &self.layout.segment(*number));
        }
    }

    /// The header at the start of a segment, and the newest commit that is sure to lie in it.
    fn header(&self, mark: Mark, number: u64) -> io::Result<(Option<Header>, u32)> {
        let file = self.disk.open(&self.layout.segment(number), Mode::Read)?;
        let mut scan = Scan::new(file, mark, PREAMBLE as u64, u64::MAX)?;
        Ok(match scan.next()? {
            Some(Found::Record { head, record, .. }) if head.kind() == Some(Kind::Header) => {
                match Record::read(Kind::Header, &record[HEAD..]) {
                    Ok(Record::Header(header)) => (Some(header), head.commit),
                    _ => (None, head.commit),
                }
            }
            _ => (None, 0),
        })
    }

    fn create_index(&mut self, mark: Mark, segments: &BTreeMap<u64, Segment>, options: &Options) -> io::Result<Index> {
        let oldest = segments.first_key_value();
        if oldest.is_some() {
            tracing::warn!(path = %self.layout.index().display(), "building the index anew from the journal");
        }
        let mut standing = oldest.and_then(|(_, s)| s.header.as_ref()).map_or_else(Standing::default, |h| h.standing);
        // Those that wait are counted as they are found.
        standing.totals.queued = 0;
        standing.totals.dsn_queued = 0;
        standing.totals.owed = 0;
        let applied = Position { segment: oldest.map_or(1, |(&number, _)| number), offset: 0 };
        let saved = Saved { mark, applied, standing, live_bytes: 0 };
        Index::create(&*self.disk, &self.layout.index(), options.index_cache_bytes, saved)
    }

    /// Brings the index up to the end of the journal.
    fn replay(
        &mut self,
        index: &Index,
        mark: Mark,
        segments: &BTreeMap<u64, Segment>,
        options: &Options,
    ) -> Result<(), OpenError> {
        let from = index.saved().applied;
        for (&number, segment) in segments.range(from.segment..) {
            let offset = if number == from.segment { from.offset } else { 0 };
            self.replay_segment(index, mark, number, offset.max(PREAMBLE as u64), segment.end, options)?;
        }
        index.write().layers.drop_staged().map_err(|error| self.failed(error))
    }

    fn replay_segment(
        &mut self,
        index: &Index,
        mark: Mark,
        number: u64,
        from: u64,
        end: u64,
        options: &Options,
    ) -> Result<(), OpenError> {
        let file = self.disk.open(&self.layout.segment(number), Mode::Read).map_err(|error| self.failed(error))?;
        let mut scan = Scan::new(file, mark, from, end).map_err(|error| self.failed(error))?;
        let mut effects = Effects::default();
        while let Some(found) = scan.next().map_err(|error| self.failed(error))? {
            let behind = match found {
                Found::Damage { offset, length } => {
                    self.damaged(number, offset, length);
                    continue;
                }
                Found::Record { offset, head, record } => {
                    let place = Place { at: Position { segment: number, offset }, length: head.total() };
                    let kind = self.known(&head)?;
                    let applied = match Record::read(kind, &record[HEAD..]) {
                        Ok(record) => index.write().layers.replay(record, place, &mut effects),
                        Err(error) => Err(error.into()),
                    };
                    if let Err(error) = applied {
                        tracing::error!(segment = number, offset, kind = kind.as_str(), %error, "a record cannot be applied");
                        self.damaged(number, offset, head.total());
                    }
                    place.at.plus(head.total())
                }
            };
            self.relieve(index, behind, options).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Writes a checkpoint when much was replayed, so that a long journal does not fill the memory.
    fn relieve(&self, index: &Index, applied: Position, options: &Options) -> io::Result<()> {
        // What a crash leaves to be replayed is less than this: then the start does not wait for a checkpoint.
        let most = options.checkpoint_rows.max(1).saturating_mul(REPLAYED);
        if index.changes().0 >= most && index.freeze(applied) {
            index.checkpoint()?;
        }
        Ok(())
    }

    fn known(&self, head: &Head) -> Result<Kind, OpenError> {
        head.kind().ok_or_else(|| OpenError::Newer {
            path: self.layout.root.clone(),
            found: u32::from(head.version).max(u32::from(VERSION) + 1),
            known: VERSION.into(),
        })
    }

    /// Removes what no record adopted.
    fn sweep(&self, index: &Index) -> io::Result<()> {
        for name in self.disk.list(&self.layout.tmp)? {
            self.disk.remove(&self.layout.tmp.join(name))?;
        }
        if self.damage > 0 {
            // A record that names one of these contents may be among what was damaged: an operator may want it.
            return Ok(());
        }
        for name in self.disk.list(&self.layout.content)? {
            let held = content_hash(&name).map(|hash| index.held(hash)).transpose()?.flatten();
            if !held.is_some_and(|held| matches!(held.stored, Stored::File(_))) {
                self.disk.remove(&self.layout.content.join(name))?;
            }
        }
        Ok(())
    }

    fn found(&mut self, what: &str, path: &std::path::Path) {
        self.damage += 1;
        self.metrics.damage.inc();
        tracing::error!(path = %path.display(), "{what}");
    }

    fn damaged(&mut self, segment: u64, offset: u64, length: u64) {
        let path = self.layout.segment(segment);
        self.found("damage in the journal: copied to quarantine, the rest goes on", &path);
        self.quarantine(segment, offset, length);
    }

    fn quarantine(&self, segment: u64, offset: u64, length: u64) {
        if let Err(error) = quarantine(&*self.disk, &self.layout, segment, offset, length) {
            tracing::warn!(%error, segment, offset, "damaged octets could not be copied to quarantine");
        }
    }
}

/// Whether the journal goes as far as the index says it did.
fn reaches(segments: &BTreeMap<u64, Segment>, applied: Position) -> bool {
    match segments.get(&applied.segment) {
        Some(segment) => applied.offset <= segment.end,
        // It was to be begun next, and was not, or failed at once.
        None => applied.offset == 0,
    }
}

/// Copies damaged octets aside, so that they outlive the segment.
pub(super) fn quarantine(disk: &dyn Disk, layout: &Layout, segment: u64, offset: u64, length: u64) -> io::Result<()> {
    if length == 0 || disk.list(&layout.quarantine)?.len() >= QUARANTINE_FILES {
        return Ok(());
    }
    let file = disk.open(&layout.segment(segment), Mode::Read)?;
    let mut octets = vec![0; length.min(QUARANTINED) as usize];
    if file.read_at(offset, &mut octets).is_err() {
        octets = b"these octets cannot be read from the disk\n".to_vec();
    }
    let path = layout.quarantine.join(format!("{segment:08}-{offset}.bin"));
    disk.open(&path, Mode::Fresh)?.write_at(0, &octets)
}

/// Version and mark of a spool that is only looked at.
pub(super) fn look(disk: &dyn Disk, layout: &Layout) -> io::Result<(u32, Mark)> {
    let format = read_all(disk, &layout.format(), PREAMBLE as u64).ok().and_then(|b| record::read_preamble(&b));
    if let Some(format) = format {
        return Ok(format);
    }
    let mut names = disk.list(&layout.journal)?;
    names.sort_unstable();
    let preambles = names.iter().filter_map(|name| {
        let file = disk.open(&layout.journal.join(name), Mode::Read).ok()?;
        let mut bytes = [0; PREAMBLE];
        file.read_at(0, &mut bytes).ok()?;
        record::read_preamble(&bytes)
    });
    preambles.last().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no spool here"))
}

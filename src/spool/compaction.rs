//! Keeping the journal small: the oldest segment's survivors are copied forward, then it is removed.
//!
//! Strictly oldest first, because a younger segment's outcomes may be about an older one's batch: the outcome must not go
//! while the batch can be replayed. A batch is copied as a snapshot of how it stands now. Nothing is removed
//! before the copies are synced and the index is durably past them, so a crash at any point finds each survivor
//! at least once, and twice does no harm.

use std::io;

use super::codec::Codec;
use super::core::Core;
use super::disk::Mode;
use super::index::Stored;
use super::record::{HEAD, Head, Kind, PREAMBLE, Place, Position};
use super::recovery::quarantine;
use super::scan::{Found, Scan};
use crate::mail::{ContentHash, QueueId};

/// Octets of the old segment that are gone through in one step.
pub(super) const STEP: u64 = 1 << 20;

/// Segments beyond which small ones (every start and every failed write leaves one) are put together.
const SMALL_SEGMENTS: u64 = 64;

/// A segment that is being copied forward.
#[derive(Debug)]
pub(super) struct Compaction {
    segment: u64,
    scan: Scan,
    is_damaged: bool,
}

/// What was copied, relative to where the copies begin.
#[derive(Debug, Default)]
struct Copies {
    out: Vec<u8>,
    contents: Vec<(ContentHash, Place)>,
    batches: Vec<(QueueId, Place)>,
}

impl Core {
    /// Goes on with the compaction that is under way, or begins one where the journal has grown too large. Answers how many
    /// octets of old segments it went through: none if there is nothing to do.
    pub(super) fn compact(&mut self) -> u64 {
        if self.compaction.is_none() {
            let begun = self.begin_compaction();
            self.compaction = begun.unwrap_or_else(|error| {
                tracing::warn!(%error, "the oldest journal segment cannot be read");
                None
            });
        }
        let Some(mut compaction) = self.compaction.take() else { return 0 };
        let before = compaction.scan.position();
        match self.step(&mut compaction) {
            Ok(more) => {
                let gone_through = compaction.scan.position() - before;
                if more {
                    self.compaction = Some(compaction);
                } else {
                    self.retiring.push_back((compaction.segment, self.journal.end()));
                }
                gone_through.max(1)
            }
            Err(error) => {
                // Begun again from the start later; what was copied has moved and is not copied twice.
                self.salvage(&error, self.index.saved().standing);
                0
            }
        }
    }

    /// The oldest segment that is not about to go, if the journal is too large.
    fn begin_compaction(&mut self) -> io::Result<Option<Compaction>> {
        let is_retiring = |number: &u64| self.retiring.iter().any(|(retiring, _)| retiring == number);
        let mut sealed = self.journal.sealed().iter().filter(|(number, _)| !is_retiring(number));
        let Some((&segment, &end)) = sealed.next() else { return Ok(None) };
        let retiring: u64 = self.retiring.iter().filter_map(|(number, _)| self.journal.sealed().get(number)).sum();
        let (count, octets) = self.journal.size();
        let (count, octets) = (count - self.retiring.len() as u64, octets - retiring);
        let live = self.index.saved().live_bytes;
        let large = octets > (4 * self.options.segment_bytes).max(2 * live);
        let littered = count > SMALL_SEGMENTS && octets / count < self.options.segment_bytes / 4;
        if !large && !littered {
            return Ok(None);
        }
        let file = self.disk.open(&self.journal.path(segment), Mode::Read)?;
        let scan = Scan::new(file, self.journal.mark(), PREAMBLE as u64, end)?;
        Ok(Some(Compaction { segment, scan, is_damaged: false }))
    }

    /// Copies what survives of the next stretch; answers whether there is more of the segment.
    fn step(&mut self, compaction: &mut Compaction) -> io::Result<bool> {
        let until = compaction.scan.position() + STEP;
        let mut copies = Copies::default();
        let mut more = true;
        while more && compaction.scan.position() < until {
            more = self.copy_next(compaction, &mut copies)?;
        }
        if !more && compaction.is_damaged {
            self.copy_from_index(compaction.segment, &mut copies)?;
        }
        self.land(copies)?;
        Ok(more)
    }

    fn copy_next(&self, compaction: &mut Compaction, copies: &mut Copies) -> io::Result<bool> {
        let segment = compaction.segment;
        match compaction.scan.next()? {
            None => return Ok(false),
            Some(Found::Damage { offset, length }) => {
                compaction.is_damaged = true;
                self.metrics.damage.inc();
                tracing::error!(segment, offset, length, "damage in the journal: copied to quarantine");
                quarantine(&*self.disk, &self.layout, segment, offset, length)?;
            }
            Some(Found::Record { offset, head, record }) => {
                let place = Place { at: Position { segment, offset }, length: head.total() };
                self.copy_record(place, &head, record, copies)?;
            }
        }
        Ok(true)
    }

    fn copy_record(&self, place: Place, head: &Head, record: &[u8], copies: &mut Copies) -> io::Result<()> {
        let payload = &record[HEAD..];
        match head.kind() {
            Some(Kind::Content) => {
                let hash = ContentHash(*payload.first_chunk().ok_or(io::ErrorKind::InvalidData)?);
                let held = self.index.held(hash)?;
                if held.is_some_and(|held| held.stored == Stored::Journal(place)) {
                    let copy =
                        self.frame(&mut copies.out, Kind::Content, head.id, |out| out.extend_from_slice(payload));
                    copies.contents.push((hash, copy));
                }
            }
            Some(Kind::Accept | Kind::Snapshot) => {
                let id = QueueId(head.id);
                if self.index.is_batch_at(id, place)? {
                    self.copy_batch(id, copies)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn copy_batch(&self, id: QueueId, copies: &mut Copies) -> io::Result<()> {
        let snapshot = self.index.snapshot(id)?;
        if let Some(snapshot) = snapshot {
            let copy = self.frame(&mut copies.out, Kind::Snapshot, id.0, |out| snapshot.put(out));
            copies.batches.push((id, copy));
        }
        Ok(())
    }

    /// What the damaged segment held and can be told from the index: batches whole, contents as lost.
    fn copy_from_index(&self, segment: u64, copies: &mut Copies) -> io::Result<()> {
        let (contents, batches) = self.index.survivors_of(segment)?;
        for id in batches {
            if copies.batches.iter().all(|(copied, _)| *copied != id) {
                self.copy_batch(id, copies)?;
            }
        }
        let copied = |hash: &ContentHash| copies.contents.iter().any(|(copied, _)| copied == hash);
        for hash in contents.into_iter().filter(|hash| !copied(hash)) {
            tracing::error!(content = %hash, "a content is lost; its recipients cannot be delivered until it arrives again");
            self.index.write().layers.lose(hash)?;
        }
        Ok(())
    }

    /// Writes the copies, syncs, and lets the index know where they are.
    fn land(&mut self, copies: Copies) -> io::Result<()> {
        if copies.out.is_empty() {
            return Ok(());
        }
        let standing = self.index.saved().standing;
        let at = self.journal.append(&copies.out, &standing)?;
        self.sync()?;
        self.metrics.compacted.inc_by(copies.out.len() as u64);
        let moved = |place: Place| Place { at: at.plus(place.at.offset), ..place };
        let index = std::sync::Arc::clone(&self.index);
        let mut writing = index.write();
        for (hash, place) in copies.contents {
            writing.layers.content(hash, moved(place))?;
        }
        for (id, place) in copies.batches {
            writing.layers.moved(id, moved(place))?;
        }
        Ok(())
    }
}

//! Reading a segment from front to back: every record that can be believed, and every stretch that cannot.

use std::io;
use std::sync::Arc;

use memchr::memmem;

use super::disk::DiskFile;
use super::record::{HEAD, Head, Mark};

/// Octets that are read at a time.
const CHUNK: u64 = 256 << 10;

/// Octets that are given up at a time where the disk cannot read.
const BLOCK: usize = 4096;

/// What was found next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A whole record whose checksum fits.
    Record { offset: u64, head: Head, record: &'a [u8] },
    /// Octets in which no record begins.
    Damage { offset: u64, length: u64 },
}

/// A reader of one segment, between two offsets.
#[derive(Debug)]
pub(super) struct Scan {
    file: Arc<dyn DiskFile>,
    mark: Mark,
    at: u64,
    end: u64,
    /// Octets of the file from `start` on.
    buffer: Vec<u8>,
    start: u64,
}

impl Scan {
    /// Reads from `from` up to `end`, or as far as the file goes.
    pub(super) fn new(file: Arc<dyn DiskFile>, mark: Mark, from: u64, end: u64) -> io::Result<Scan> {
        let end = end.min(file.length()?);
        Ok(Scan { file, mark, at: from, end, buffer: Vec::new(), start: from })
    }

    /// Where the next record would begin.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// The next record or stretch of damage; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Found<'_>>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let offset = self.at;
        let Some(head) = self.record_here()? else {
            self.seek_record()?;
            return Ok(Some(Found::Damage { offset, length: self.at - offset }));
        };
        self.at += head.total();
        let from = (offset - self.start) as usize;
        let record = &self.buffer[from..from + head.total() as usize];
        Ok(Some(Found::Record { offset, head, record }))
    }

    /// The head of the record that begins at `at`, if a whole one does. Leaves all of it in the buffer.
    fn record_here(&mut self) -> io::Result<Option<Head>> {
        let mark = self.mark;
        let Some(head) = Head::read(mark, self.fill(HEAD as u64)?) else { return Ok(None) };
        if head.total() > self.end - self.at {
            return Ok(None);
        }
        let record = self.fill(head.total())?;
        let believed = head.matches(&record[..head.total() as usize]);
        Ok(believed.then_some(head))
    }

    /// Goes on to where a whole record begins, or to the end.
    fn seek_record(&mut self) -> io::Result<()> {
        loop {
            self.at += 1;
            let mark = self.mark;
            let window = self.fill(CHUNK)?;
            match memmem::find(window, &mark) {
                Some(ahead) => {
                    self.at += ahead as u64;
                    if self.record_here()?.is_some() {
                        return Ok(());
                    }
                }
                // A mark may begin in the last octets of the window.
                None if window.len() as u64 == CHUNK => self.at += CHUNK - mark.len() as u64,
                None => {
                    self.at = self.end;
                    return Ok(());
                }
            }
        }
    }

    /// The octets from `at` on: `want` of them, or what is left before the end; perhaps more.
    fn fill(&mut self, want: u64) -> io::Result<&[u8]> {
        let want = want.min(self.end - self.at.min(self.end));
        let have = (self.start + self.buffer.len() as u64).saturating_sub(self.at);
        if self.at < self.start || have < want {
            let length = want.max(CHUNK).min(self.end - self.at);
            self.buffer.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
            self.start = self.at;
            read_what_can_be_read(&*self.file, self.at, &mut self.buffer);
        }
        let from = ((self.at - self.start) as usize).min(self.buffer.len());
        Ok(&self.buffer[from..])
    }
}

/// Reads `out`, leaving zeros where the disk refuses: a bad sector is damage like any other, and the rest goes on.
fn read_what_can_be_read(file: &dyn DiskFile, offset: u64, out: &mut [u8]) {
    if file.read_at(offset, out).is_ok() || file.read_at(offset, out).is_ok() {
        return;
    }
    for (index, block) in out.chunks_mut(BLOCK).enumerate() {
        if file.read_at(offset + (index * BLOCK) as u64, block).is_err() {
            block.fill(0);
        }
    }
}

/// How far a segment is to be believed that nobody closed: the newest one after a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Records end here; what follows was being written when the power went.
    pub(super) end: u64,
    /// The newest commit in it.
    pub(super) last_commit: u32,
}

/// Finds the torn tail: what lies behind the last whole record. Damage with a whole record behind it is no tail, even if
/// a power cut that wrote pages out of order made it: that record may have been answered 250.
pub(super) fn survey(mut scan: Scan) -> io::Result<Survey> {
    let mut survey = Survey { end: scan.position(), last_commit: 0 };
    while let Some(found) = scan.next()? {
        if let Found::Record { offset, head, .. } = found {
            survey.last_commit = survey.last_commit.max(head.commit);
            survey.end = offset + head.total();
        }
    }
    Ok(survey)
}

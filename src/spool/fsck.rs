//! `posthaste spool fsck`: reads everything, changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;

use serde::Serialize;

use super::content::hash_of;
use super::disk::{Disk, LockGuard, Mode, SystemDisk};
use super::journal::segment_number;
use super::layout::{Layout, content_hash};
use super::record::{HEAD, Kind, Mark, PREAMBLE, Record, VERSION};
use super::recovery::look;
use super::scan::{Found, Scan, survey};
use crate::mail::ContentHash;

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// A running instance has the spool; it changes while it is read.
    #[error("the spool is in use: stop posthaste first, or ask it for its own account (healthz, metrics)")]
    InUse,
    /// A newer program wrote it.
    #[error("the spool has format {0}, which this version does not read")]
    Newer(u32),
    /// There is no spool, or it cannot be read.
    #[error("the spool cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    /// Journal segments.
    pub segments: u64,
    /// Octets in them that are to be believed.
    pub octets: u64,
    /// Records by kind.
    pub records: BTreeMap<&'static str, u64>,
    /// Content files whose hash fits.
    pub content_files: u64,
    /// What is wrong. Empty for a sound spool.
    pub damage: Vec<Damage>,
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file, relative to the spool.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// How many octets.
    pub length: u64,
    /// What is wrong.
    pub what: String,
}

/// Checks the spool below `path`.
///
/// # Errors
/// See [`FsckError`]. Damage is no error but in the report.
pub fn fsck(path: &Path) -> Result<FsckReport, FsckError> {
    fsck_on(&SystemDisk, path)
}

/// A spool that is read and not changed.
pub(super) struct Reading<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) layout: Layout,
    pub(super) mark: Mark,
    /// Segments and how far each is to be believed.
    pub(super) segments: Vec<(u64, u64)>,
    _lock: LockGuard,
}

impl<'a> Reading<'a> {
    /// Opens the spool for reading, unless somebody else has it.
    pub(super) fn open(disk: &'a dyn Disk, path: &Path) -> Result<Reading<'a>, FsckError> {
        let layout = Layout::new(path);
        let (version, mark) = look(disk, &layout)?;
        if version > u32::from(VERSION) {
            return Err(FsckError::Newer(version));
        }
        let lock = disk.lock(&layout.lock())?.ok_or(FsckError::InUse)?;
        let names = disk.list(&layout.journal)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
        numbers.sort_unstable();
        let mut reading = Reading { disk, layout, mark, segments: Vec::new(), _lock: lock };
        reading.segments = reading.ends(&numbers)?;
        Ok(reading)
    }

    fn ends(&self, numbers: &[u64]) -> io::Result<Vec<(u64, u64)>> {
        let mut ends = BTreeMap::new();
        for &number in numbers {
            if let Some(Found::Record { head, record, .. }) = self.scan(number, u64::MAX)?.next()?
                && head.kind() == Some(Kind::Header)
                && let Ok(Record::Header(header)) = Record::read(Kind::Header, &record[HEAD..])
            {
                ends = header.ends.into_iter().collect();
            }
        }
        let end_of = |&number: &u64| match ends.get(&number) {
            Some(&end) => Ok((number, end)),
            None => survey(self.scan(number, u64::MAX)?).map(|survey| (number, survey.end)),
        };
        numbers.iter().map(end_of).collect()
    }

    /// The records of a segment.
    pub(super) fn scan(&self, number: u64, end: u64) -> io::Result<Scan> {
        let file = self.disk.open(&self.layout.segment(number), Mode::Read)?;
        Scan::new(file, self.mark, PREAMBLE as u64, end)
    }
}

pub(super) fn fsck_on(disk: &dyn Disk, path: &Path) -> Result<FsckReport, FsckError> {
    let reading = Reading::open(disk, path)?;
    let mut report = FsckReport::default();
    let mut named = HashSet::new();
    for &(number, end) in &reading.segments {
        check_segment(&reading, number, end, &mut report, &mut named)?;
    }
    check_files(&reading, &mut report, &named)?;
    Ok(report)
}

fn check_segment(
    reading: &Reading<'_>,
    number: u64,
    end: u64,
    report: &mut FsckReport,
    named: &mut HashSet<ContentHash>,
) -> io::Result<()> {
    let file = format!("journal/{}", super::journal::segment_name(number));
    let mut damaged = |offset, length, what: &str| {
        report.damage.push(Damage { file: file.clone(), offset, length, what: what.to_owned() });
    };
    let segment = reading.disk.open(&reading.layout.segment(number), Mode::Read)?;
    let (mut preamble, length) = ([0; PREAMBLE], segment.length()?);
    if segment.read_at(0, &mut preamble).is_err() || super::record::read_preamble(&preamble).is_none() {
        damaged(0, PREAMBLE as u64, "the preamble is damaged");
    }
    if length < end {
        damaged(length, end - length, "the segment is shorter than it was");
    }
    let mut scan = reading.scan(number, end)?;
    while let Some(found) = scan.next()? {
        match found {
            Found::Damage { offset, length } => damaged(offset, length, "no record can be read here"),
            Found::Record { offset, head, record } => {
                let wrong = check_record(head.kind(), &record[HEAD..], named);
                if let Some(what) = wrong {
                    damaged(offset, head.total(), what);
                }
                *report.records.entry(head.kind().map_or("unknown", Kind::as_str)).or_default() += 1;
            }
        }
    }
    report.segments += 1;
    report.octets += end.min(length);
    Ok(())
}

/// What is wrong with a record whose checksum fits.
fn check_record(kind: Option<Kind>, payload: &[u8], named: &mut HashSet<ContentHash>) -> Option<&'static str> {
    match Record::read(kind?, payload) {
        Err(_) => Some("the record cannot be decoded"),
        Ok(Record::Content(hash)) if hash_of(&payload[32..]) != hash => Some("the content does not have its hash"),
        Ok(Record::Accept(accept)) if accept.file.is_some() => {
            named.insert(accept.batch.envelope.content);
            None
        }
        Ok(_) => None,
    }
}

fn check_files(reading: &Reading<'_>, report: &mut FsckReport, named: &HashSet<ContentHash>) -> io::Result<()> {
    for name in reading.disk.list(&reading.layout.content)? {
        let Some(hash) = content_hash(&name) else { continue };
        let file = reading.disk.open(&reading.layout.content_file(hash), Mode::Read)?;
        let length = file.length()?;
        let mut octets = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        if file.read_at(0, &mut octets).is_ok() && hash_of(&octets) == hash {
            report.content_files += 1;
        } else if named.contains(&hash) {
            let file = format!("content/{name}");
            report.damage.push(Damage { file, offset: 0, length, what: "the content does not have its hash".into() });
        }
    }
    Ok(())
}

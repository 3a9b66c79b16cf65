//! Contents on their way in ([`ContentWriter`]) and out ([`Contents`]).
//!
//! A content is known by its hash, and what is read from disk is hashed again before anybody sees it. What does not fit
//! is damaged: its recipients are held by whoever asked, and when the same content arrives once more it is stored anew.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::Bytes;
use moka::future::Cache;

use super::api::{ContentError, NewBody, NewContent, SpooledFile};
use super::disk::{Disk, DiskFile, Mode};
use super::index::{Held, Index, Stored};
use super::layout::Layout;
use super::metrics::Metrics;
use super::record::CONTENT_AT;
use crate::mail::ContentHash;

/// The SHA-256 of `octets`.
pub(super) fn hash_of(octets: &[u8]) -> ContentHash {
    finish_hash(digest(&SHA256, octets))
}

fn finish_hash(digest: aws_lc_rs::digest::Digest) -> ContentHash {
    ContentHash(digest.as_ref().try_into().expect("SHA-256 has 32 octets"))
}

/// Takes one content in, hashing as it goes; large ones go to a file. Dropping it leaves nothing behind.
pub struct ContentWriter {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    most: usize,
    hash: Context,
    inline: Vec<u8>,
    file: Option<SpooledFile>,
}

impl std::fmt::Debug for ContentWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentWriter").field("file", &self.file).finish_non_exhaustive()
    }
}

impl ContentWriter {
    pub(super) fn new(disk: Arc<dyn Disk>, layout: &Layout, inline_bytes: u64) -> ContentWriter {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = layout.tmp.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let most = usize::try_from(inline_bytes).unwrap_or(usize::MAX);
        ContentWriter { disk, path, most, hash: Context::new(&SHA256), inline: Vec::new(), file: None }
    }

    /// Takes the next octets, dot-stuffed. Blocks on the disk once the content is large.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn write(&mut self, stuffed: &[u8]) -> io::Result<()> {
        self.hash.update(stuffed);
        if self.file.is_none() {
            self.inline.extend_from_slice(stuffed);
            return if self.inline.len() > self.most { self.spill() } else { Ok(()) };
        }
        self.append(stuffed)
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = self.disk.open(&self.path, Mode::Fresh)?;
        self.file = Some(SpooledFile { path: self.path.clone(), length: 0, disk: Arc::clone(&self.disk), file });
        let inline = std::mem::take(&mut self.inline);
        self.append(&inline)
    }

    fn append(&mut self, octets: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.file.write_at(file.length, octets)?;
            file.length += octets.len() as u64;
        }
        Ok(())
    }

    /// The content is complete. `size` is what RFC 1870 counts, `eight_bit` whether an octet was above 127.
    ///
    /// # Errors
    /// None at present: the file is synced when it is accepted. Callers treat an error as `451`.
    pub fn finish(mut self, size: u64, eight_bit: bool) -> io::Result<NewContent> {
        let body = match self.file.take() {
            Some(file) => NewBody::File(Arc::new(file)),
            None => {
                self.inline.shrink_to_fit();
                NewBody::Inline(Bytes::from(self.inline))
            }
        };
        Ok(NewContent { hash: finish_hash(self.hash.finish()), size, eight_bit, body })
    }
}

/// Contents that were found damaged and are to be stored anew when they arrive again.
#[derive(Debug, Default)]
pub(super) struct Damaged(Mutex<HashSet<ContentHash>>);

impl Damaged {
    /// How many are remembered. Further ones are found again when they are read again.
    const MOST: usize = 100_000;

    pub(super) fn contains(&self, hash: ContentHash) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&hash)
    }

    /// Answers whether this is news.
    fn insert(&self, hash: ContentHash) -> bool {
        let mut hashes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hashes.len() < Self::MOST && hashes.insert(hash)
    }

    pub(super) fn remove(&self, hash: ContentHash) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash);
    }
}

/// Reads contents.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) layout: Layout,
    pub(super) index: Arc<Index>,
    pub(super) damaged: Arc<Damaged>,
    pub(super) cache: Cache<ContentHash, Bytes>,
    pub(super) metrics: Metrics,
}

/// A cache of contents that holds so many octets.
pub(super) fn cache(bytes: u64) -> Cache<ContentHash, Bytes> {
    let weight = |_: &ContentHash, content: &Bytes| u32::try_from(content.len() + 128).unwrap_or(u32::MAX);
    Cache::builder().max_capacity(bytes).weigher(weight).build()
}

impl Contents {
    /// Reads a content from disk and verifies it. Blocks.
    pub(super) fn read(&self, hash: ContentHash) -> Result<Bytes, ContentError> {
        let mut tried = None;
        loop {
            let held = self.index.held(hash).map_err(|error| ContentError::Io(hash, error))?;
            let Some(held) = held else { return Err(ContentError::Missing(hash)) };
            match self.read_held(hash, held) {
                // Compaction may have moved it on and removed the segment since the place was looked up.
                Err(ContentError::Missing(_)) if tried != Some(held) => tried = Some(held),
                Err(ContentError::Damaged(_)) if tried != Some(held) => tried = Some(held),
                Err(error @ (ContentError::Damaged(_) | ContentError::Missing(_))) => {
                    self.report(hash);
                    return Err(error);
                }
                read => return read,
            }
        }
    }

    fn report(&self, hash: ContentHash) {
        if self.damaged.insert(hash) {
            self.metrics.damage.inc();
            tracing::error!(content = %hash, "a content in the spool is damaged; its recipients cannot be delivered until it arrives again");
        }
    }

    fn read_held(&self, hash: ContentHash, held: Held) -> Result<Bytes, ContentError> {
        let (path, offset, length) = match held.stored {
            Stored::Journal(place) => {
                let length = place.length.saturating_sub(CONTENT_AT);
                (self.layout.segment(place.at.segment), place.at.offset + CONTENT_AT, length)
            }
            Stored::File(length) => (self.layout.content_file(hash), 0, length),
            Stored::Lost => return Err(ContentError::Damaged(hash)),
        };
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => ContentError::Missing(hash),
            io::ErrorKind::UnexpectedEof => ContentError::Damaged(hash),
            _ => ContentError::Io(hash, error),
        };
        let file = self.disk.open(&path, Mode::Read).map_err(failed)?;
        let octets = read_exactly(&*file, offset, length).map_err(failed)?;
        if hash_of(&octets) == hash { Ok(octets.into()) } else { Err(ContentError::Damaged(hash)) }
    }
}

fn read_exactly(file: &dyn DiskFile, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    // A damaged place must not make us allocate more than the file holds.
    if offset.saturating_add(length) > file.length()? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut octets = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_at(offset, &mut octets)?;
    Ok(octets)
}

//! Where things lie below the spool's directory.

use std::path::{Path, PathBuf};

use super::journal::segment_name;
use crate::mail::ContentHash;

/// The paths of one spool.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) journal: PathBuf,
    pub(super) content: PathBuf,
    pub(super) tmp: PathBuf,
    pub(super) quarantine: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Layout {
        Layout {
            root: root.to_owned(),
            journal: root.join("journal"),
            content: root.join("content"),
            tmp: root.join("tmp"),
            quarantine: root.join("quarantine"),
        }
    }

    /// All directories, those above first.
    pub(super) fn directories(&self) -> [&Path; 5] {
        [&self.root, &self.journal, &self.content, &self.tmp, &self.quarantine]
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Version and mark, written once.
    pub(super) fn format(&self) -> PathBuf {
        self.root.join("format")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    /// Where an index goes that turned out damaged, so that the next start builds a new one.
    pub(super) fn damaged_index(&self) -> PathBuf {
        self.root.join("index.damaged")
    }

    /// Space that is given back when the disk is full, so that outcomes can still be recorded.
    pub(super) fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    pub(super) fn segment(&self, number: u64) -> PathBuf {
        self.journal.join(segment_name(number))
    }

    /// A content that is a file of its own.
    pub(super) fn content_file(&self, hash: ContentHash) -> PathBuf {
        self.content.join(hash.to_string())
    }
}

/// The hash that names a content file.
pub(super) fn content_hash(name: &str) -> Option<ContentHash> {
    let digits = name.as_bytes();
    let mut hash = [0; 32];
    if digits.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(ContentHash(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_file_is_named_by_its_hash() {
        let hash = ContentHash(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(content_hash(&hash.to_string()), Some(hash));
        assert_eq!(content_hash("ab"), None);
        assert_eq!(content_hash(&"Ä".repeat(32)), None);
    }
}

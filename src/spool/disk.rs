//! The seam to the file system: everything that the spool does to a disk goes through [`Disk`] and [`DiskFile`], so that
//! tests can take the power away between any two operations, or fail any one of them.
//!
//! What the seam promises, and a test disk models: written bytes are readable at once but survive a power cut only
//! after [`DiskFile::sync`]; a name (made, renamed, removed) survives only after [`Disk::sync_directory`].

use std::any::Any;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// It exists and is only read.
    Read,
    /// It is read and written, and made if it is missing.
    Write,
    /// As `Write`, but empty.
    Fresh,
}

/// A lock that is held until it is dropped.
pub(super) type LockGuard = Box<dyn Any + Send + Sync>;

/// A file system.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// Makes a directory and those above it, for its owner only.
    fn make_directory(&self, path: &Path) -> io::Result<()>;

    /// Takes the lock that the file stands for; `None` if somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Option<LockGuard>>;

    /// Opens a file.
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file a new name, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Octets that are free to us.
    fn free_space(&self, path: &Path) -> io::Result<u64>;

    /// Makes a file that really occupies `length` octets.
    fn allocate(&self, path: &Path, length: u64) -> io::Result<()>;
}

/// An open file. Offsets are absolute: nobody shares a cursor.
pub(super) trait DiskFile: fmt::Debug + Send + Sync {
    /// Its length in octets.
    fn length(&self) -> io::Result<u64>;

    /// Fills `out` from `offset` on.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts or extends (with zeros) to `length`.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
}

/// The file system of the machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct SystemDisk;

impl Disk for SystemDisk {
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<LockGuard>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let writes = mode != Mode::Read;
        let mut options = OpenOptions::new();
        options.read(true).write(writes).create(writes).truncate(mode == Mode::Fresh).mode(0o600);
        Ok(Arc::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let stat = statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn allocate(&self, path: &Path, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        let made = fallocate(&file, FallocateFlags::empty(), 0, length).map_err(io::Error::from);
        if made.is_err() {
            let _ = fs::remove_file(path);
        }
        made
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Whether an error says that the disk is full: of octets, of a quota, or of inodes.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Reads a whole file of at most `most` octets.
pub(super) fn read_all(disk: &dyn Disk, path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Mode::Read)?;
    let length = file.length()?;
    if length > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than it can be"));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_given_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let held = SystemDisk.lock(&path).expect("no error").expect("free");
        assert!(SystemDisk.lock(&path).expect("no error").is_none());
        drop(held);
        assert!(SystemDisk.lock(&path).expect("no error").is_some());
    }

    #[test]
    fn the_system_disk_keeps_what_is_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/er");
        SystemDisk.make_directory(&path).expect("made");
        let file = SystemDisk.open(&path.join("a"), Mode::Fresh).expect("opened");
        file.write_at(3, b"xyz").expect("written");
        file.sync().expect("synced");
        SystemDisk.rename(&path.join("a"), &path.join("b")).expect("renamed");
        SystemDisk.sync_directory(&path).expect("synced");
        assert_eq!(SystemDisk.list(&path).expect("listed"), ["b"]);
        assert_eq!(read_all(&SystemDisk, &path.join("b"), 10).expect("read"), b"\0\0\0xyz");
        assert!(SystemDisk.free_space(&path).expect("known") > 0);
    }
}

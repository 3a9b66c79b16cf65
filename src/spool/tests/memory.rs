//! A disk in memory whose power can be taken away between any two operations, and whose n-th operation can be failed.
//!
//! What was written but not synced is lost with the power, or survives in part: the tester says how much. Names follow
//! their directory's sync.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::spool::disk::{Disk, DiskFile, LockGuard, Mode};

/// What happens at an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The power goes: this operation and all later ones do nothing.
    PowerCut,
    /// This one operation fails.
    Error(io::ErrorKind),
    /// All operations from here on fail.
    Broken(io::ErrorKind),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Where `now` may differ from `durable`, beside their lengths.
    dirty: Option<Range<usize>>,
}

impl Inode {
    fn touch(&mut self, touched: Range<usize>) {
        let dirty = self.dirty.take().unwrap_or(touched.clone());
        self.dirty = Some(dirty.start.min(touched.start)..dirty.end.max(touched.end));
    }

    /// Makes what is now durable.
    fn sync(&mut self) {
        let Some(dirty) = self.dirty.take() else { return };
        self.durable.resize(self.now.len(), 0);
        let dirty = dirty.start.min(self.now.len())..dirty.end.min(self.now.len());
        self.durable[dirty.clone()].copy_from_slice(&self.now[dirty]);
    }
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changing operations so far.
    operations: u64,
    fault: Option<(u64, Fault)>,
    free: u64,
    locked: bool,
    unreadable: bool,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    inode: usize,
}

struct Unlock(MemoryDisk);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}

impl MemoryDisk {
    pub(super) fn new() -> MemoryDisk {
        let disk = MemoryDisk::default();
        disk.state().free = 1 << 40;
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changing operations so far.
    pub(super) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Lets `fault` happen at the `n`-th changing operation from now, counted from 0.
    pub(super) fn fail_at(&self, n: u64, fault: Fault) {
        let mut state = self.state();
        state.fault = Some((state.operations + n, fault));
    }

    /// Whether the power is gone.
    pub(super) fn is_dead(&self) -> bool {
        let state = self.state();
        matches!(state.fault, Some((at, Fault::PowerCut)) if state.operations > at)
    }

    /// Lets every read fail, or no longer.
    pub(super) fn set_unreadable(&self, unreadable: bool) {
        self.state().unreadable = unreadable;
    }

    /// Octets that are free.
    pub(super) fn set_free(&self, free: u64) {
        self.state().free = free;
    }

    /// The disk as it is found after a power cut. Of each file's octets that were not synced, the first `kept` promille
    /// survive.
    pub(super) fn after_power_cut(&self, kept: usize) -> MemoryDisk {
        let state = self.state();
        let inodes = state.inodes.iter().map(|inode| surviving(inode, kept)).collect();
        let names = if kept == 1000 { &state.names } else { &state.durable_names };
        let new =
            State { inodes, names: names.clone(), durable_names: names.clone(), free: state.free, ..State::default() };
        MemoryDisk(Arc::new(Mutex::new(new)))
    }

    /// The paths and contents of all files.
    pub(super) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let state = self.state();
        state.names.iter().map(|(path, &inode)| (path.clone(), state.inodes[inode].now.clone())).collect()
    }

    /// Changes one octet.
    pub(super) fn flip(&self, path: &Path, offset: usize) {
        let mut state = self.state();
        let inode = state.names[path];
        state.inodes[inode].now[offset] ^= 0x20;
        state.inodes[inode].durable[offset] ^= 0x20;
    }

    /// Cuts a file.
    pub(super) fn cut(&self, path: &Path, length: usize) {
        let mut state = self.state();
        let inode = state.names[path];
        state.inodes[inode].now.truncate(length);
        state.inodes[inode].durable.truncate(length);
    }

    /// Removes a file.
    pub(super) fn lose(&self, path: &Path) {
        self.state().names.remove(path);
    }
}

fn surviving(inode: &Inode, kept: usize) -> Inode {
    let mut durable = inode.durable.clone();
    if let Some(dirty) = &inode.dirty {
        let start = dirty.start.min(inode.now.len());
        let keep = start + (inode.now.len() - start) * kept / 1000;
        durable.resize(durable.len().max(keep), 0);
        durable[start..keep].copy_from_slice(&inode.now[start..keep]);
    }
    Inode { now: durable.clone(), durable, dirty: None }
}

impl State {
    /// Counts a changing operation, or refuses it.
    fn operate(&mut self) -> io::Result<()> {
        let n = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, Fault::PowerCut)) if n >= at => Err(io::Error::other("the power is gone")),
            Some((at, Fault::Error(kind))) if n == at => Err(kind.into()),
            Some((at, Fault::Broken(kind))) if n >= at => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn make_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Option<LockGuard>> {
        let mut state = self.state();
        if std::mem::replace(&mut state.locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(Unlock(self.clone()))))
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        let inode = match (state.inode(path), mode) {
            (Ok(inode), Mode::Read | Mode::Write) => inode,
            (Ok(inode), Mode::Fresh) => {
                state.operate()?;
                let length = state.inodes[inode].now.len();
                state.inodes[inode].now.clear();
                state.inodes[inode].touch(0..length);
                inode
            }
            (Err(error), Mode::Read) => return Err(error),
            (Err(_), _) => {
                state.operate()?;
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.names.insert(path.to_owned(), inode);
                inode
            }
        };
        Ok(Arc::new(MemoryFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        let inode = state.inode(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        state.names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let inside = state.names.keys().filter(|name| name.parent() == Some(path));
        Ok(inside.filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        state.durable_names.retain(|name, _| name.parent() != Some(path));
        let inside: Vec<_> = state.names.iter().filter(|(name, _)| name.parent() == Some(path)).collect();
        let inside: Vec<_> = inside.into_iter().map(|(name, &inode)| (name.clone(), inode)).collect();
        state.durable_names.extend(inside);
        Ok(())
    }

    fn free_space(&self, _: &Path) -> io::Result<u64> {
        Ok(self.state().free)
    }

    fn allocate(&self, _: &Path, _: u64) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.inode].now.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        if state.unreadable {
            return Err(io::Error::other("bad sector"));
        }
        let from = offset as usize;
        let octets = state.inodes[self.inode].now.get(from..from + out.len());
        out.copy_from_slice(octets.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let allowed = state.operate();
        let inode = &mut state.inodes[self.inode];
        // A write that fails has written a part.
        let length = if allowed.is_ok() { data.len() } else { data.len() / 2 };
        let (from, to) = (offset as usize, offset as usize + length);
        if inode.now.len() < to {
            inode.touch(inode.now.len()..to);
            inode.now.resize(to, 0);
        }
        inode.now[from..to].copy_from_slice(&data[..length]);
        inode.touch(from..to);
        allowed
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operate()?;
        let inode = &mut state.inodes[self.inode];
        let (old, new) = (inode.now.len(), length as usize);
        inode.now.resize(new, 0);
        inode.touch(old.min(new)..old.max(new));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operate()?;
        state.inodes[self.inode].sync();
        Ok(())
    }
}

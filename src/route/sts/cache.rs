//! Policies on disk, one file per domain: a policy must outlive a restart, or an attacker need only wait for one (RFC 8461
//! section 5.1). A file that is missing or damaged costs a fetch.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::policy::StsPolicy;
use crate::mail::Domain;

/// Files in the directory; what does not fit is remembered in memory only, until a start has removed what is out of date.
const FILES_MAX: usize = 100_000;
/// The largest file that is read.
const FILE_OCTETS_MAX: u64 = 256 * 1024;

/// A policy as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The id under which it was announced.
    pub(super) id: String,
    /// When it was fetched, in seconds since 1970.
    pub(super) fetched: u64,
    pub(super) policy: StsPolicy,
}

impl Entry {
    pub(super) fn new(id: String, policy: StsPolicy) -> Entry {
        Entry { id, fetched: seconds(SystemTime::now()), policy }
    }

    /// How long it has been kept. Nothing, if the clock was set back.
    pub(super) fn age(&self) -> Duration {
        Duration::from_secs(seconds(SystemTime::now()).saturating_sub(self.fetched))
    }

    /// How much longer it may be kept; zero once it has expired.
    pub(super) fn left(&self) -> Duration {
        self.policy.max_age().saturating_sub(self.age())
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Cache(PathBuf);

impl Cache {
    /// Makes the directory and removes what has expired or cannot be read. Blocks; what fails is logged.
    pub(super) fn open(directory: &Path) -> Cache {
        if let Err(error) = std::fs::create_dir_all(directory).and_then(|()| sweep(directory)) {
            tracing::warn!(%error, directory = %directory.display(), "MTA-STS policies cannot be kept on disk");
        }
        Cache(directory.to_owned())
    }

    /// The policy that is kept for a domain, if it has not expired.
    pub(super) async fn load(&self, domain: &Domain) -> Option<Entry> {
        let path = self.path(domain);
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        read.ok()?.filter(|entry| !entry.left().is_zero())
    }

    /// Keeps a policy: whole or not at all.
    pub(super) async fn store(&self, domain: &Domain, entry: &Entry) -> io::Result<()> {
        let (path, entry) = (self.path(domain), entry.clone());
        let written = tokio::task::spawn_blocking(move || write(&path, &entry)).await;
        written.map_err(io::Error::other)?
    }

    fn path(&self, domain: &Domain) -> PathBuf {
        // A domain holds letters, digits, hyphens, underscores and single dots only, and at least two labels.
        self.0.join(domain.as_str())
    }
}

fn read(path: &Path) -> Option<Entry> {
    let small = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() <= FILE_OCTETS_MAX);
    let text = small.then(|| std::fs::read(path).ok()).flatten()?;
    serde_json::from_slice(&text).ok()
}

fn write(path: &Path, entry: &Entry) -> io::Result<()> {
    let temporary = path.with_file_name(format!(".{}", path.file_name().unwrap_or_default().to_string_lossy()));
    if !path.exists()
        && path.parent().map(std::fs::read_dir).transpose()?.is_some_and(|files| files.count() >= FILES_MAX)
    {
        return Err(io::Error::new(io::ErrorKind::StorageFull, "too many policies"));
    }
    std::fs::write(&temporary, serde_json::to_vec(entry)?)?;
    std::fs::rename(&temporary, path)
}

fn sweep(directory: &Path) -> io::Result<()> {
    for file in std::fs::read_dir(directory)? {
        let path = file?.path();
        if read(&path).is_none_or(|entry| entry.left().is_zero()) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::policy::StsMode;
    use super::*;

    fn entry(max_age: u64) -> Entry {
        let policy = StsPolicy { mode: StsMode::Enforce, mx: vec!["mx.example.org".to_owned()], max_age };
        Entry::new("1".to_owned(), policy)
    }

    #[tokio::test]
    async fn a_policy_survives_a_restart_until_it_expires() {
        let directory = tempfile::tempdir().expect("a directory");
        let (domain, other) = (Domain::parse("a.example").expect("ok"), Domain::parse("b.example").expect("ok"));
        let cache = Cache::open(directory.path());
        assert_eq!(cache.load(&domain).await, None);
        cache.store(&domain, &entry(600)).await.expect("stored");
        cache.store(&other, &Entry { fetched: 0, ..entry(600) }).await.expect("stored");
        std::fs::write(directory.path().join("c.example"), "{").expect("written");
        let cache = Cache::open(directory.path());
        assert_eq!(cache.load(&domain).await.map(|entry| entry.id), Some("1".to_owned()));
        assert_eq!(cache.load(&other).await, None);
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 1, "what has expired is gone");
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_written_costs_only_the_memory_of_it() {
        let cache = Cache::open(Path::new("/proc/no/such/place"));
        let domain = Domain::parse("a.example").expect("a domain");
        assert!(cache.store(&domain, &entry(1)).await.is_err());
        assert_eq!(cache.load(&domain).await, None);
    }
}

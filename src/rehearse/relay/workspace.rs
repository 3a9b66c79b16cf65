//! The directory of one rehearsal: configuration, spool and log. Removed at the end, unless something went wrong.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// See the module.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    keep: bool,
}

impl Workspace {
    /// A new directory below `parent`, or below the system's directory for temporary files.
    ///
    /// # Errors
    /// As the system's.
    pub fn new(parent: Option<&Path>) -> io::Result<Workspace> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("posthaste-rehearsal-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Workspace { path, keep: false }),
                // Left by an earlier process that had our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory where it is when the rehearsal ends, for whoever wants to know what happened.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed stays in the directory for temporary files.
            let _best_effort = std::fs::remove_dir_all(&self.path);
        }
    }
}

//! One destination's queue: where it goes, what of it is in memory, and whether there is more on disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::bundle::{BundleId, Pin};
use crate::attempt::{Limits, Site};
use crate::clock::Tick;
use crate::mail::Envelope;

/// How long a resolution is used before the destination is resolved anew (the resolver caches by TTL itself).
const RESOLUTION_LIFETIME: Duration = Duration::from_secs(300);

/// A destination's queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) target: Target,
    pub(super) bundles: HashMap<(Arc<Envelope>, Pin), BundleId>,
    /// Recipients in `bundles` (those in flight are not counted).
    pub(super) resident: usize,
    pub(super) disk: OnDisk,
    /// When it is looked at next although nothing happens: the earliest timer that is set for it.
    pub(super) alarm: Option<Tick>,
    /// Whether it waits for room in memory.
    pub(super) hungry: bool,
    /// Whether to look on disk even though its site is suspended, because there may be mail whose lifetime is over.
    pub(super) sweep: bool,
    /// Whether the resolver was asked and has not answered yet. What was known before holds until then.
    pub(super) asked: bool,
    /// Failures to resolve it, in a row.
    pub(super) dns_failures: u32,
}

/// What is known of where a destination goes.
#[derive(Clone, Debug, Default)]
pub(super) enum Target {
    /// Nothing yet.
    #[default]
    Unknown,
    /// Resolved.
    Known { site: Arc<Site>, limits: Arc<Limits>, since: Tick },
    /// It could not be resolved; asked again at that time.
    Unresolved(Tick),
}

/// Whether the spool holds more recipients of a destination than are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OnDisk {
    /// No.
    #[default]
    Nothing,
    /// Perhaps; worth a look from that time on.
    From(Tick),
    /// A load is under way. `again`: something was added meanwhile.
    Loading { again: bool },
}

impl Queue {
    /// Whether the queue must be resolved (anew) before its mail can go.
    pub(super) fn needs_resolving(&self, now: Tick) -> bool {
        let stale = match self.target {
            Target::Unknown => true,
            Target::Known { since, .. } => now.since(since) >= RESOLUTION_LIFETIME,
            Target::Unresolved(until) => now >= until,
        };
        stale && !self.asked
    }

    /// Notes that there is mail on disk that is due at `at`.
    pub(super) fn more_on_disk(&mut self, at: Tick) {
        self.disk = match self.disk {
            OnDisk::Nothing => OnDisk::From(at),
            OnDisk::From(known) => OnDisk::From(known.min(at)),
            OnDisk::Loading { .. } => OnDisk::Loading { again: true },
        };
    }

    /// Whether it can be forgotten: nothing in memory, nothing known on disk, nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        self.resident == 0 && self.disk == OnDisk::Nothing && !self.hungry && !self.asked
    }
}

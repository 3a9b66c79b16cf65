//! Growth: when a mailing last grew, and whether what it brings can share a transaction at all.
//!
//! A newsletter's batches have one envelope, so a partial transaction is worth holding for the next batch. Where every
//! message has an envelope of its own (VERP, personal content) nobody can join, and waiting would only cost time and
//! connections: all that gathered in a window would leave at once.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::clock::Tick;
use crate::mail::{Batch, QueueId};

/// Batches in a row, each with an envelope that none of them had, after which a mailing counts as personal. A guess that
/// is wrong costs a transaction, until an envelope comes again.
const PERSONAL: usize = 16;

/// What is known of a growing mailing.
#[derive(Debug, Default)]
pub(super) struct Growth {
    at: Tick,
    newest: Option<QueueId>,
    /// Hashes of the newest envelopes, all different; at most [`PERSONAL`].
    envelopes: VecDeque<u64>,
    /// Batches in a row whose envelope was not among them.
    alone: usize,
}

impl Growth {
    /// When it last grew.
    pub(super) fn at(&self) -> Tick {
        self.at
    }

    /// A recipient of this batch came.
    pub(super) fn note(&mut self, batch: &Batch, now: Tick) {
        self.at = now;
        if self.newest.replace(batch.id) == Some(batch.id) {
            return;
        }
        let mut hasher = DefaultHasher::new();
        batch.envelope.hash(&mut hasher);
        let envelope = hasher.finish();
        if self.envelopes.contains(&envelope) {
            self.alone = 0;
            return;
        }
        self.alone = (self.alone + 1).min(PERSONAL);
        if self.envelopes.len() == PERSONAL {
            self.envelopes.pop_front();
        }
        self.envelopes.push_back(envelope);
    }

    /// Whether no company is to be expected for its transactions.
    pub(super) fn is_personal(&self) -> bool {
        self.alone >= PERSONAL
    }
}

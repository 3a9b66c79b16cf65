//! Bundles: the recipients that may share a transaction, gathered across batches.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::clock::Tick;
use crate::mail::{Destination, Envelope, Queued};

/// Names a bundle while it exists; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BundleId(pub(super) u64);

/// Which way recipients may go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Pin {
    /// As the table of partners says at that moment.
    #[default]
    Free,
    /// To the exchangers: a partner gave them back, or they may have arrived there already.
    Direct,
    /// To this partner: they may have arrived there already.
    Partner(Arc<str>),
}

/// Recipients of one destination with equal envelopes that may go the same way.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) destination: Destination,
    pub(super) envelope: Arc<Envelope>,
    pub(super) recipients: VecDeque<Queued>,
    pub(super) state: Gathering,
    pub(super) pin: Pin,
    /// The provider in whose turns it stands while it is [`Gathering::Ready`].
    pub(super) via: Arc<str>,
}

/// Whether a bundle still waits for company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gathering {
    /// Since then. It holds no slot meanwhile.
    Since(Tick),
    /// Nothing more is to be waited for: it came from disk, was offered again, or its time is over.
    Over,
    /// It stands in its provider's turns.
    Ready,
}

impl Bundle {
    /// Takes up to `limit` recipients, each forward-path once: a second copy for the same address needs a
    /// transaction of its own, or the receiver would see it as one.
    pub(super) fn take(&mut self, limit: usize) -> Vec<Queued> {
        let mut taken: Vec<Queued> = Vec::with_capacity(limit.min(self.recipients.len()));
        let mut paths = HashSet::with_capacity(taken.capacity());
        let mut doubles = VecDeque::new();
        while taken.len() < limit {
            let Some(queued) = self.recipients.pop_front() else { break };
            if paths.insert(Arc::clone(&queued.recipient).path.clone()) {
                taken.push(queued);
            } else {
                doubles.push_back(queued);
            }
        }
        doubles.append(&mut self.recipients);
        self.recipients = doubles;
        taken
    }

    /// When it may leave, given when its mailing last grew.
    pub(super) fn leaves_at(
        &self,
        mailing_grew: Tick,
        quiet: std::time::Duration,
        window: std::time::Duration,
    ) -> Tick {
        match self.state {
            Gathering::Since(since) => (mailing_grew.max(since) + quiet).min(since + window),
            Gathering::Over | Gathering::Ready => Tick(0),
        }
    }
}

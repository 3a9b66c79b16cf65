//! The questions that are put to the index.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};

use super::desk::Desk;
use super::keys::{BatchEntry, Held, QueueKey, Table, behind, read_destination};
use super::layers::Layers;
use super::{Index, Stored};
use crate::clock::Tick;
use crate::mail::{Batch, ContentHash, Destination, MailingId, QueueId, Queued, RecipientId};
use crate::spool::api::{Loaded, ObligationKind, Owed, Row};
use crate::spool::codec::{Codec, bytes_of, whole};
use crate::spool::record::{Pending, Place, Snapshot};
use crate::spool::values::group_of;

/// Recipients of one mailing that a load visits before it turns to the next mailing, at least.
const SHARE: usize = 64;

/// A mailing's recipients at one destination, while a load goes through them.
struct Queue {
    mailing: MailingId,
    /// Where to go on.
    from: Vec<u8>,
    /// Behind its last key.
    to: Vec<u8>,
    /// When the first recipient is due that was not handed out; `None` while there may be due ones left.
    next: Option<Tick>,
}

impl Index {
    /// Hands out due recipients of a destination, at most `limit`, from each of its mailings in turn.
    pub(in super::super) fn load(&self, destination: &Destination, now: Tick, limit: usize) -> io::Result<Loaded> {
        self.noting(self.try_load(&bytes_of(destination), now, limit))
    }

    fn try_load(&self, destination: &[u8], now: Tick, limit: usize) -> io::Result<Loaded> {
        let layers = self.read();
        let mut desk = self.desk();
        let (mut queues, mut first) = layers.mailings(destination, now)?;
        let turn = desk.turn(destination);
        queues.sort_by_key(|queue| (queue.mailing <= turn, queue.mailing));
        let share = (limit / queues.len().max(1)).max(SHARE);
        let mut taken: Vec<(QueueKey, Pending)> = Vec::new();
        let mut last = turn;
        while taken.len() < limit && queues.iter().any(|queue| queue.next.is_none()) {
            for queue in queues.iter_mut().filter(|queue| queue.next.is_none()) {
                let room = share.min(limit - taken.len());
                if room == 0 {
                    break;
                }
                last = queue.mailing;
                layers.take_due(queue, &mut desk, now, room, &mut taken)?;
            }
        }
        first = queues.iter().map(|queue| queue.next.unwrap_or(now)).fold(first, Tick::min);
        desk.looked(destination, first, last);
        drop(desk);
        let queued = self.complete(&layers, taken);
        if queued.is_err() {
            // Handed out but not answered: taken back by the next start only, which rebuilds the index.
            tracing::error!("recipients could not be loaded from the index");
        }
        Ok(Loaded { queued: queued?, next: first })
    }

    /// Adds batch and envelope to what was taken.
    fn complete(&self, layers: &Layers, taken: Vec<(QueueKey, Pending)>) -> io::Result<Vec<Queued>> {
        let mut batches: HashMap<QueueId, Arc<Batch>> = HashMap::new();
        let mut queued = Vec::with_capacity(taken.len());
        for (key, Pending { destination, state, .. }) in taken {
            let id = key.id();
            let batch = match batches.get(&id.batch) {
                Some(batch) => Arc::clone(batch),
                None => self.shared_batch(layers, id.batch)?,
            };
            batches.insert(id.batch, Arc::clone(&batch));
            queued.push(Queued {
                id,
                batch,
                recipient: state.recipient,
                destination,
                attempts: state.attempts,
                due: state.due,
                delay_reported: state.delay_reported,
            });
        }
        Ok(queued)
    }

    fn shared_batch(&self, layers: &Layers, id: QueueId) -> io::Result<Arc<Batch>> {
        Ok(Arc::new(self.share(Arc::unwrap_or_clone(layers.batch(id)?))))
    }

    /// The batch, sharing its envelope with others that have an equal one.
    pub(in super::super) fn share(&self, batch: Batch) -> Batch {
        let envelope = Arc::unwrap_or_clone(batch.envelope);
        let group = group_of(&envelope);
        let envelope = self.envelopes.lock().unwrap_or_else(PoisonError::into_inner).share(group, envelope);
        Batch { envelope, ..batch }
    }

    /// Destinations with something due by `until`, earliest first.
    pub(in super::super) fn wakeups(&self, until: Tick, limit: usize) -> io::Result<Vec<(Tick, Destination)>> {
        let layers = self.read();
        let mut desk = self.desk();
        self.noting(layers.see_hints(&mut desk, until))?;
        let wakeups = desk.wakeups(until, limit);
        drop(desk);
        let decoded = wakeups.into_iter().map(|(at, key)| Ok((at, whole(&key)?)));
        self.noting(decoded.collect())
    }

    /// When the next destination is to be woken. May be too early, never too late.
    pub(in super::super) fn next_wakeup(&self) -> io::Result<Option<Tick>> {
        let layers = self.read();
        let mut desk = self.desk();
        let seen = desk.advance(0);
        let hint = self.noting(layers.first(Table::Due, &seen.to_be_bytes(), &[u8::MAX; 9]))?;
        let hint = hint.map(|key| due_of_hint(&key));
        Ok(hint.into_iter().chain(desk.next()).min())
    }

    /// Keeps a destination from being woken before `until`.
    pub(in super::super) fn snooze(&self, destination: &Destination, until: Tick) {
        self.desk().snooze(&bytes_of(destination), until);
    }

    /// Recipients that are handed out.
    pub(in super::super) fn leased(&self) -> usize {
        self.desk().leased()
    }

    /// What is owed, oldest batch first. At most `limit` obligations, but at least one batch's.
    pub(in super::super) fn owed(&self, limit: usize) -> io::Result<Vec<Owed>> {
        let layers = self.read();
        let mut found: Vec<(QueueId, Vec<_>)> = Vec::new();
        let mut count = 0;
        let scanned = layers.scan(Table::Owed, &[], &[u8::MAX; 14], |key, obligation| {
            if count == limit {
                return Ok(ControlFlow::Break(()));
            }
            let (id, _): (RecipientId, ObligationKind) = whole(key)?;
            if found.last().is_none_or(|(batch, _)| *batch != id.batch) {
                found.push((id.batch, Vec::new()));
            }
            if let Some((_, obligations)) = found.last_mut() {
                obligations.push((id, whole(obligation)?));
                count += 1;
            }
            Ok(ControlFlow::Continue(()))
        });
        self.noting(scanned)?;
        let owed = found
            .into_iter()
            .map(|(id, obligations)| self.shared_batch(&layers, id).map(|batch| Owed { batch, obligations }));
        self.noting(owed.collect())
    }

    /// The recipients of a batch that still wait.
    pub(in super::super) fn rows(&self, batch: QueueId) -> io::Result<Vec<Row>> {
        let layers = self.read();
        let rows = layers.keys_of(batch).and_then(|keys| {
            let row = |key: QueueKey| layers.pending(&key).map(|pending| row_of(key.id(), pending));
            keys.into_iter().map(row).collect()
        });
        self.noting(rows)
    }

    /// Where a content lies, and how many batches need it.
    pub(in super::super) fn held(&self, hash: ContentHash) -> io::Result<Option<Held>> {
        self.noting(self.read().value(Table::Contents, &hash.0))
    }

    /// All contents and batches whose place is in `segment`. Reads both tables to the end: for damaged segments only.
    pub(in super::super) fn survivors_of(&self, segment: u64) -> io::Result<(Vec<ContentHash>, Vec<QueueId>)> {
        let layers = self.read();
        let (mut contents, mut batches) = (Vec::new(), Vec::new());
        layers.scan(Table::Contents, &[], &[u8::MAX; 33], |key, value| {
            let held: Held = whole(value)?;
            if matches!(held.stored, Stored::Journal(place) if place.at.segment == segment) {
                contents.push(whole(key)?);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        layers.scan(Table::Batches, &[], &[u8::MAX; 9], |key, value| {
            let entry: BatchEntry = whole(value)?;
            if entry.place.at.segment == segment {
                batches.push(whole(key)?);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((contents, batches))
    }

    /// A batch as it stands now.
    pub(in super::super) fn snapshot(&self, id: QueueId) -> io::Result<Option<Snapshot>> {
        self.noting(self.read().snapshot(id))
    }

    /// Whether the batch's newest record is the one at `place`.
    pub(in super::super) fn is_batch_at(&self, id: QueueId, place: Place) -> io::Result<bool> {
        let read = |bytes: &[u8]| Place::take(&mut crate::spool::codec::Input(bytes));
        let found = self.read().get(Table::Batches, &id.0.to_be_bytes(), read)?.transpose()?;
        Ok(found == Some(place))
    }
}

fn row_of(id: RecipientId, pending: Pending) -> Row {
    let Pending { destination, state, .. } = pending;
    Row {
        id,
        destination,
        recipient: state.recipient,
        attempts: state.attempts,
        due: state.due,
        note: state.note,
        delay_reported: state.delay_reported,
    }
}

fn due_of_hint(key: &[u8]) -> Tick {
    let second = key.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    Tick(second.saturating_mul(1000))
}

impl Layers {
    /// The mailings of a destination that have something due, and when the first of the others is due.
    fn mailings(&self, destination: &[u8], now: Tick) -> io::Result<(Vec<Queue>, Tick)> {
        let end = behind(destination);
        let (mut queues, mut first) = (Vec::new(), Tick::NEVER);
        let mut from = destination.to_vec();
        while let Some(key) = self.first(Table::Queue, &from, &end)? {
            let key = QueueKey::of(&key)?;
            let to = behind(&[destination, &key.mailing().0.to_be_bytes()].concat());
            if key.due() <= now {
                queues.push(Queue { mailing: key.mailing(), from: key.bytes().to_vec(), to: to.clone(), next: None });
            } else {
                first = first.min(key.due());
            }
            from = to;
        }
        Ok((queues, first))
    }

    /// Hands out up to `room` due recipients of one mailing.
    fn take_due(
        &self,
        queue: &mut Queue,
        desk: &mut Desk,
        now: Tick,
        room: usize,
        taken: &mut Vec<(QueueKey, Pending)>,
    ) -> io::Result<()> {
        let (mut left, mut next, mut from) = (room, Some(Tick::NEVER), None);
        self.scan(Table::Queue, &queue.from, &queue.to, |bytes, state| {
            let key = QueueKey::of(bytes)?;
            if desk.is_leased(key.id()) {
                return Ok(ControlFlow::Continue(()));
            }
            if key.due() > now {
                next = Some(key.due());
                return Ok(ControlFlow::Break(()));
            }
            if left == 0 {
                (next, from) = (None, Some(bytes.to_vec()));
                return Ok(ControlFlow::Break(()));
            }
            let pending =
                Pending { index: key.id().index, destination: read_destination(bytes)?, state: whole(state)? };
            desk.lease(key.id());
            taken.push((key, pending));
            left -= 1;
            Ok(ControlFlow::Continue(()))
        })?;
        queue.next = next;
        queue.from = from.unwrap_or_default();
        Ok(())
    }

    /// Tells the desk of the hints that came due since it last looked.
    fn see_hints(&self, desk: &mut Desk, until: Tick) -> io::Result<()> {
        let behind_last = (until.0 / 1000).saturating_add(1);
        let seen = desk.advance(behind_last);
        self.scan(Table::Due, &seen.to_be_bytes(), &behind_last.to_be_bytes(), |key, _| {
            desk.hint(&key[8..], due_of_hint(key));
            Ok(ControlFlow::Continue(()))
        })
    }
}

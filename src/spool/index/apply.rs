//! How each record changes the index. The same functions run when a record is written and when it is replayed, so the
//! index cannot come to differ from the journal.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::keys::{BatchEntry, Held, QueueKey, Stored, Table, behind, owed_key, recipient_key};
use super::layers::Layers;
use crate::clock::Tick;
use crate::mail::{Batch, ContentHash, Destination, QueueId, Recipient, RecipientId};
use crate::spool::api::{End, Fate, Obligation, ObligationKind, Settlement, Totals};
use crate::spool::codec::{Codec, Input, bytes_of, put_prefixed, whole};
use crate::spool::record::{Accept, Outcome, Pending, PendingState, Place, Record, Settled, Snapshot};
use crate::spool::values::group_of;

/// What a change means for others.
#[derive(Debug, Default)]
pub(in super::super) struct Effects {
    /// Recipients that are due at some time and not handed out: encoded destination and time.
    pub(in super::super) waiting: Vec<(Vec<u8>, Tick)>,
    /// Recipients that are no longer handed out.
    pub(in super::super) settled: Vec<RecipientId>,
    /// Content files that nothing needs any more. They may go once the journal is synced.
    pub(in super::super) doomed: Vec<ContentHash>,
}

/// Counts one recipient's end.
fn count_end(totals: &mut Totals, dsn: bool, end: End) {
    let count = match (dsn, end) {
        (false, End::Relayed) => &mut totals.relayed,
        (false, End::Bounced) => &mut totals.bounced,
        (false, End::Expired) => &mut totals.expired,
        (false, End::Cancelled) => &mut totals.cancelled,
        (true, End::Relayed) => &mut totals.dsn_relayed,
        (true, End::Bounced) => &mut totals.dsn_bounced,
        (true, End::Expired) => &mut totals.dsn_expired,
        (true, End::Cancelled) => &mut totals.dsn_cancelled,
    };
    *count += 1;
}

fn queued(totals: &mut Totals, dsn: bool) -> &mut u64 {
    if dsn { &mut totals.dsn_queued } else { &mut totals.queued }
}

impl Layers {
    fn totals(&mut self) -> &mut Totals {
        &mut self.saved.standing.totals
    }

    /// A content lies at a new place.
    pub(in super::super) fn content(&mut self, hash: ContentHash, place: Place) -> io::Result<()> {
        self.store(hash, Stored::Journal(place)).map(drop)
    }

    /// A content's record turned out damaged.
    pub(in super::super) fn lose(&mut self, hash: ContentHash) -> io::Result<()> {
        self.store(hash, Stored::Lost).map(drop)
    }

    fn store(&mut self, hash: ContentHash, stored: Stored) -> io::Result<Held> {
        let old = self.value::<Held>(Table::Contents, &hash.0)?;
        let held = Held { stored, references: old.map_or(0, |old| old.references) };
        self.saved.live_bytes += held.live_bytes();
        match old {
            Some(old) => {
                self.saved.live_bytes -= old.live_bytes();
                self.put(Table::Contents, &hash.0, &held);
            }
            None => {
                self.staged.insert(hash);
                self.put_new(Table::Contents, &hash.0, &held);
            }
        }
        Ok(held)
    }

    /// One more batch needs the content.
    fn refer(&mut self, hash: ContentHash, file: Option<u64>) -> io::Result<()> {
        let mut held = match (self.value::<Held>(Table::Contents, &hash.0)?, file) {
            (Some(held), None) => held,
            (Some(held), Some(_)) if held.stored != Stored::Lost => held,
            (_, Some(length)) => self.store(hash, Stored::File(length))?,
            // Its record was damaged, or comes later because compaction moved it on.
            (None, None) => self.store(hash, Stored::Lost)?,
        };
        self.staged.remove(&hash);
        held.references += 1;
        self.put(Table::Contents, &hash.0, &held);
        Ok(())
    }

    /// One batch less needs the content.
    fn forget(&mut self, hash: ContentHash, effects: &mut Effects) -> io::Result<()> {
        let Some(mut held) = self.value::<Held>(Table::Contents, &hash.0)? else { return Ok(()) };
        held.references = held.references.saturating_sub(1);
        if held.references > 0 {
            self.put(Table::Contents, &hash.0, &held);
            return Ok(());
        }
        self.saved.live_bytes -= held.live_bytes();
        self.remove(Table::Contents, &hash.0);
        if matches!(held.stored, Stored::File(_)) {
            effects.doomed.push(hash);
        }
        Ok(())
    }

    /// Drops contents that no accept record followed: the crash came between the two.
    pub(in super::super) fn drop_staged(&mut self) -> io::Result<()> {
        for hash in std::mem::take(&mut self.staged) {
            if let Some(held) = self.value::<Held>(Table::Contents, &hash.0)?.filter(|held| held.references == 0) {
                self.saved.live_bytes -= held.live_bytes();
                self.remove(Table::Contents, &hash.0);
            }
        }
        Ok(())
    }

    /// A batch was accepted.
    pub(in super::super) fn accept(
        &mut self,
        batch: &Batch,
        recipients: &[(Recipient, Destination)],
        pays: &[(RecipientId, ObligationKind)],
        file: Option<u64>,
        place: Place,
        effects: &mut Effects,
    ) -> io::Result<()> {
        self.begin_batch(batch, file, place, recipients.len() as u64)?;
        let group = group_of(&batch.envelope);
        let mut state = Vec::with_capacity(128);
        for (index, (recipient, destination)) in (0..).zip(recipients) {
            state.clear();
            (batch.accepted, 0u32).put(&mut state);
            (false, Box::<str>::default()).put(&mut state);
            recipient.put(&mut state);
            let id = RecipientId { batch: batch.id, index };
            let destination = bytes_of(destination);
            let key = QueueKey::new(&destination, batch.envelope.mailing, batch.accepted, group, id);
            let accepted = if key.is_dsn() { &mut self.totals().dsn_accepted } else { &mut self.totals().accepted };
            *accepted += 1;
            self.add_row(&key, &state)?;
        }
        self.saved.standing.next_id = self.saved.standing.next_id.max(batch.id.0 + 1);
        for &(id, kind) in pays {
            self.forgive(id, kind, effects)?;
        }
        self.close_if_done(batch.id, effects)
    }

    fn begin_batch(&mut self, batch: &Batch, file: Option<u64>, place: Place, open: u64) -> io::Result<()> {
        let content = batch.envelope.content;
        self.refer(content, file)?;
        let key = batch.id.0.to_be_bytes();
        let mut entry = Vec::with_capacity(320);
        (place, content).put(&mut entry);
        batch.put(&mut entry);
        self.put_new_bytes(Table::Batches, &key, &entry);
        self.put_new(Table::Open, &key, &open);
        self.saved.live_bytes += place.length;
        Ok(())
    }

    fn add_row(&mut self, key: &QueueKey, state: &[u8]) -> io::Result<()> {
        self.put_new_bytes(Table::Queue, key.bytes(), state);
        self.put_new_bytes(Table::Rows, &recipient_key(key.id()), key.row());
        *queued(self.totals(), key.is_dsn()) += 1;
        self.count_due(key, 1)
    }

    fn remove_row(&mut self, key: &QueueKey) -> io::Result<()> {
        self.remove(Table::Queue, key.bytes());
        self.remove(Table::Rows, &recipient_key(key.id()));
        *queued(self.totals(), key.is_dsn()) -= 1;
        self.count_due(key, -1)
    }

    fn count_due(&mut self, key: &QueueKey, change: i64) -> io::Result<()> {
        let key = key.due_key();
        let count: Option<u64> = self.value(Table::Due, &key)?;
        match count.unwrap_or(0).saturating_add_signed(change) {
            0 => self.remove(Table::Due, &key),
            changed if count.is_none() => self.put_new(Table::Due, &key, &changed),
            changed => self.put(Table::Due, &key, &changed),
        }
        Ok(())
    }

    /// Adds to what keeps a batch.
    fn count_open(&mut self, batch: QueueId, change: i64) -> io::Result<()> {
        let key = batch.0.to_be_bytes();
        if let Some(open) = self.value::<u64>(Table::Open, &key)? {
            self.put(Table::Open, &key, &open.saturating_add_signed(change));
        }
        Ok(())
    }

    fn close_if_done(&mut self, batch: QueueId, effects: &mut Effects) -> io::Result<()> {
        let key = batch.0.to_be_bytes();
        if self.value::<u64>(Table::Open, &key)? == Some(0) { self.close(batch, effects) } else { Ok(()) }
    }

    fn close(&mut self, batch: QueueId, effects: &mut Effects) -> io::Result<()> {
        let key = batch.0.to_be_bytes();
        let read = |bytes: &[u8]| <(Place, ContentHash)>::take(&mut Input(bytes));
        if let Some((place, content)) = self.get(Table::Batches, &key, read)?.transpose()? {
            self.saved.live_bytes -= place.length;
            self.forget(content, effects)?;
        }
        self.remove(Table::Batches, &key);
        self.remove(Table::Open, &key);
        Ok(())
    }

    /// Where a recipient stands in the queue.
    pub(super) fn queue_key(&self, id: RecipientId) -> io::Result<Option<QueueKey>> {
        Ok(self.get(Table::Rows, &recipient_key(id), |row| QueueKey::of_row(row, id))?.transpose()?)
    }

    /// Records fates. Answers what of the settlement concerned recipients that still wait: that is what is journaled.
    pub(in super::super) fn settle(&mut self, settlement: Settlement, effects: &mut Effects) -> io::Result<Outcome> {
        let mut fates = Vec::with_capacity(settlement.fates.len());
        for (id, fate) in settlement.fates {
            if let Some(dsn) = self.settle_one(id, &fate, effects)? {
                fates.push(Settled { id, dsn, fate });
            }
        }
        Ok(Outcome { at: settlement.at, fates })
    }

    /// Records one fate; answers whether it was a DSN's, or `None` if no such recipient waits.
    fn settle_one(&mut self, id: RecipientId, fate: &Fate, effects: &mut Effects) -> io::Result<Option<bool>> {
        effects.settled.push(id);
        let Some(key) = self.queue_key(id)? else { return Ok(None) };
        let owes = match fate {
            Fate::Retry { due, attempts, note, owes } => {
                self.reschedule(&key, *due, *attempts, note, owes.is_some())?;
                effects.waiting.push((key.destination().to_vec(), *due));
                owes
            }
            Fate::Done { end, owes, .. } => {
                self.remove_row(&key)?;
                self.count_open(id.batch, -1)?;
                count_end(self.totals(), key.is_dsn(), *end);
                owes
            }
        };
        if let Some(obligation) = owes {
            self.owe(id, obligation)?;
        }
        self.close_if_done(id.batch, effects)?;
        Ok(Some(key.is_dsn()))
    }

    fn reschedule(
        &mut self,
        key: &QueueKey,
        due: Tick,
        attempts: u32,
        note: &str,
        delay_reported: bool,
    ) -> io::Result<()> {
        let state = self.get(Table::Queue, key.bytes(), |state| {
            // Of the old state only who it is remains, and that a delay was reported.
            let mut input = Input(state);
            let _ = <(Tick, u32)>::take(&mut input)?;
            let reported = bool::take(&mut input)?;
            input.text()?;
            let mut new = Vec::with_capacity(state.len() + note.len());
            (due, attempts).put(&mut new);
            (reported || delay_reported).put(&mut new);
            put_prefixed(&mut new, note.as_bytes());
            new.extend_from_slice(input.0);
            Ok(new)
        })?;
        let state: Vec<u8> = state.unwrap_or(Err(crate::spool::codec::Malformed("queue entry")))?;
        let new = key.due_at(due);
        if new == *key {
            self.put_bytes(Table::Queue, key.bytes(), &state);
            return Ok(());
        }
        self.remove(Table::Queue, key.bytes());
        self.count_due(key, -1)?;
        self.put_new_bytes(Table::Queue, new.bytes(), &state);
        self.put_bytes(Table::Rows, &recipient_key(key.id()), new.row());
        self.count_due(&new, 1)
    }

    fn owe(&mut self, id: RecipientId, obligation: &Obligation) -> io::Result<()> {
        let key = owed_key(id, obligation.kind);
        if self.get(Table::Owed, &key, |_| ())?.is_none() {
            self.put_new(Table::Owed, &key, obligation);
            self.totals().owed += 1;
            self.count_open(id.batch, 1)?;
        }
        Ok(())
    }

    /// Drops an obligation, because it was paid or because nobody will pay it. Answers whether there was one.
    pub(in super::super) fn forgive(
        &mut self,
        id: RecipientId,
        kind: ObligationKind,
        effects: &mut Effects,
    ) -> io::Result<bool> {
        let key = owed_key(id, kind);
        if self.get(Table::Owed, &key, |_| ())?.is_none() {
            return Ok(false);
        }
        self.remove(Table::Owed, &key);
        self.totals().owed -= 1;
        self.count_open(id.batch, -1)?;
        self.close_if_done(id.batch, effects)?;
        Ok(true)
    }

    /// A batch's full record lies at a new place.
    pub(in super::super) fn moved(&mut self, id: QueueId, place: Place) -> io::Result<()> {
        let key = id.0.to_be_bytes();
        if let Some(mut entry) = self.value::<BatchEntry>(Table::Batches, &key)? {
            self.saved.live_bytes = self.saved.live_bytes + place.length - entry.place.length;
            entry.place = place;
            self.put(Table::Batches, &key, &entry);
        }
        Ok(())
    }

    /// A batch as it stands now.
    pub(super) fn snapshot(&self, id: QueueId) -> io::Result<Option<Snapshot>> {
        let Some(entry) = self.value::<BatchEntry>(Table::Batches, &id.0.to_be_bytes())? else { return Ok(None) };
        let held = self.value::<Held>(Table::Contents, &entry.content.0)?;
        let file = match held.map(|held| held.stored) {
            Some(Stored::File(length)) => Some(length),
            _ => None,
        };
        let rows = self.keys_of(id)?.into_iter().map(|key| self.pending(&key)).collect::<io::Result<_>>()?;
        Ok(Some(Snapshot { batch: entry.batch, rows, owed: self.owed_by(id)?, file }))
    }

    /// The queue keys of a batch's recipients that still wait.
    pub(super) fn keys_of(&self, id: QueueId) -> io::Result<Vec<QueueKey>> {
        let prefix = id.0.to_be_bytes();
        let mut keys = Vec::new();
        self.scan(Table::Rows, &prefix, &behind(&prefix), |key, row| {
            keys.push(QueueKey::of_row(row, whole(key)?)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(keys)
    }

    pub(super) fn pending(&self, key: &QueueKey) -> io::Result<Pending> {
        let state: Option<PendingState> = self.value(Table::Queue, key.bytes())?;
        let state = state.ok_or(crate::spool::codec::Malformed("queue entry"))?;
        Ok(Pending { index: key.id().index, destination: whole(key.destination())?, state })
    }

    /// What a batch owes.
    pub(super) fn owed_by(&self, id: QueueId) -> io::Result<Vec<(u32, Obligation)>> {
        let prefix = id.0.to_be_bytes();
        let mut owed = Vec::new();
        self.scan(Table::Owed, &prefix, &behind(&prefix), |key, obligation| {
            let (id, _): (RecipientId, ObligationKind) = whole(key)?;
            owed.push((id.index, whole(obligation)?));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(owed)
    }

    /// Replays one record that lies at `place`.
    pub(in super::super) fn replay(&mut self, record: Record, place: Place, effects: &mut Effects) -> io::Result<()> {
        match record {
            Record::Header(header) => self.resume(header.standing),
            Record::Content(hash) => self.content(hash, place)?,
            Record::Accept(accept) => self.replay_accept(&accept, place, effects)?,
            Record::Outcome(outcome) => self.replay_outcome(&outcome, effects)?,
            Record::Forgive(forgive) => {
                for (id, kind) in forgive.debts {
                    self.forgive(id, kind, effects)?;
                }
            }
            Record::Snapshot(snapshot) => self.replay_snapshot(snapshot, place, effects)?,
            Record::Time(time) => self.saved.standing.time = time,
        }
        Ok(())
    }

    /// Takes from a header what the records before it, if they are gone, would have said.
    fn resume(&mut self, standing: crate::spool::record::Standing) {
        let known = &mut self.saved.standing;
        known.next_id = known.next_id.max(standing.next_id);
        if standing.time.tick > known.time.tick {
            known.time = standing.time;
        }
    }

    fn replay_accept(&mut self, accept: &Accept, place: Place, effects: &mut Effects) -> io::Result<()> {
        let known = self.get(Table::Batches, &accept.batch.id.0.to_be_bytes(), |_| ())?.is_some();
        if known {
            return Ok(());
        }
        self.accept(&accept.batch, &accept.recipients, &accept.pays, accept.file, place, effects)
    }

    fn replay_outcome(&mut self, outcome: &Outcome, effects: &mut Effects) -> io::Result<()> {
        for settled in &outcome.fates {
            let applied = self.settle_one(settled.id, &settled.fate, effects)?;
            if let (None, Fate::Done { end, .. }) = (applied, &settled.fate) {
                // What it was accepted as lies in a segment that compaction removed: only the count is ours to keep.
                count_end(self.totals(), settled.dsn, *end);
            }
        }
        Ok(())
    }

    fn replay_snapshot(&mut self, snapshot: Snapshot, place: Place, effects: &mut Effects) -> io::Result<()> {
        let id = snapshot.batch.id;
        let open = snapshot.rows.len() + snapshot.owed.len();
        // The new reference comes first, so that the content is not dropped with the old one.
        let old = self.get(Table::Batches, &id.0.to_be_bytes(), |_| ())?.is_some();
        if old {
            self.refer(snapshot.batch.envelope.content, snapshot.file)?;
            self.clear(id, effects)?;
        }
        self.begin_batch(&snapshot.batch, snapshot.file, place, open as u64)?;
        if old {
            self.forget(snapshot.batch.envelope.content, effects)?;
        }
        let group = group_of(&snapshot.batch.envelope);
        for row in snapshot.rows {
            let (id, mailing) = (RecipientId { batch: id, index: row.index }, snapshot.batch.envelope.mailing);
            let key = QueueKey::new(&bytes_of(&row.destination), mailing, row.state.due, group, id);
            self.add_row(&key, &bytes_of(&row.state))?;
        }
        for (index, obligation) in snapshot.owed {
            self.put_new(Table::Owed, &owed_key(RecipientId { batch: id, index }, obligation.kind), &obligation);
            self.totals().owed += 1;
        }
        self.saved.standing.next_id = self.saved.standing.next_id.max(id.0 + 1);
        Ok(())
    }

    /// Removes all that is known of a batch.
    fn clear(&mut self, id: QueueId, effects: &mut Effects) -> io::Result<()> {
        for key in self.keys_of(id)? {
            self.remove_row(&key)?;
        }
        for (index, obligation) in self.owed_by(id)? {
            self.remove(Table::Owed, &owed_key(RecipientId { batch: id, index }, obligation.kind));
            self.totals().owed -= 1;
        }
        self.close(id, effects)
    }

    /// A batch, decoded.
    pub(super) fn batch(&self, id: QueueId) -> io::Result<Arc<Batch>> {
        let entry: Option<BatchEntry> = self.value(Table::Batches, &id.0.to_be_bytes())?;
        Ok(Arc::new(entry.ok_or(crate::spool::codec::Malformed("batch"))?.batch))
    }
}

//! The spool without its threads: takes requests, writes them, answers them. [`super::committer`] drives it on a thread of its
//! own; a simulation can drive it by hand.
//!
//! Order is everything here. Facts (outcomes, forgiven debts) first: written, then visible. Then the submissions:
//! written, synced, then visible, then answered. Between two commits nothing is half applied, and only there are
//! checkpoints cut and segments compacted.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::api::{AcceptError, Accepted, ObligationKind, OpenError, Options, Settlement, Stats, Submission};
use super::codec::Codec;
use super::compaction::{Compaction, STEP};
use super::content::Damaged;
use super::disk::{Disk, is_full};
use super::index::{Effects, Index, Writing};
use super::journal::Journal;
use super::layout::Layout;
use super::metrics::Metrics;
use super::record::{self, Forgive, Kind, Place, Position, Standing, Time};
use super::recovery::{Lock, recover};
use super::status::Status;
use crate::clock::Tick;
use crate::mail::{ContentHash, QueueId, RecipientId};

/// Fates in one outcome record, at most.
const FATES: usize = 4096;

/// Octets of the journal after which a checkpoint is due, whatever changed.
const CHECKPOINT_BYTES: u64 = 128 << 20;

/// Time after which a checkpoint is due if anything changed.
const CHECKPOINT_AGE: Duration = Duration::from_secs(60);

/// Checkpoints' worth of changes that may gather while one is written before accepting is slowed down, and before it
/// waits. A row takes some 400 octets of memory.
const BEHIND: [usize; 2] = [2, 3];

/// How long closing waits for the checkpoint that is being written, before it gives up writing one more.
const LAST_CHECKPOINT: Duration = Duration::from_secs(5);

/// Time between two looks at what status and metrics show.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Octets of the reserve file, at most.
const RESERVE_FILE: u64 = 8 << 20;

/// A submission that waits for its fsync.
#[derive(Debug)]
pub(super) struct Incoming {
    /// When it was handed in: its batch's acceptance.
    pub(super) at: Tick,
    pub(super) submission: Submission,
    pub(super) reply: oneshot::Sender<Result<QueueId, AcceptError>>,
}

/// What is asked of the core.
#[derive(Debug)]
pub(super) enum Work {
    /// Submissions that share one content, all of which are taken or none.
    Accept(Vec<Incoming>),
    Settle(Settlement),
    Forgive(Vec<(RecipientId, ObligationKind)>),
    Release(Vec<RecipientId>),
    /// Answered when all before it is durable.
    Flush(oneshot::Sender<()>),
    /// As `Flush`, and the core is used no more.
    Close(oneshot::Sender<()>),
}

/// Work, and when it was handed in.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) time: Time,
    pub(super) work: Work,
}

/// The spool without its threads.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) layout: Layout,
    pub(super) options: Options,
    pub(super) journal: Journal,
    pub(super) index: Arc<Index>,
    pub(super) damaged: Arc<Damaged>,
    pub(super) status: Arc<Status>,
    pub(super) metrics: Metrics,
    pub(super) accepted: mpsc::Sender<Accepted>,
    pub(super) next_id: u64,
    /// The newest time that was handed in, and the newest that is in the journal.
    now: Time,
    written: Time,
    dirty_since: Option<Instant>,
    /// Content files that nothing needs once the journal is synced.
    pub(super) doomed: Vec<ContentHash>,
    /// Where the last checkpoint was cut, and when.
    cut: (Position, Instant),
    /// Octets journaled since.
    pub(super) journaled: u64,
    /// Octets journaled since compaction had a turn.
    uncompacted: u64,
    pub(super) compaction: Option<Compaction>,
    /// Segments that are copied forward, and how far the index must be durable before they may go.
    pub(super) retiring: VecDeque<(u64, Position)>,
    has_reserve: bool,
    reported: Option<Instant>,
    /// Who writes checkpoints; without one the core does it itself.
    pub(super) checkpointer: Option<std::sync::mpsc::Sender<()>>,
    _lock: Lock,
}

impl Core {
    /// Opens the spool; answers also whether it is new.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        options: &Options,
        accepted: mpsc::Sender<Accepted>,
        metrics: Metrics,
    ) -> Result<(Core, bool), OpenError> {
        let layout = Layout::new(&options.path);
        let recovered = recover(&disk, &layout, options, &metrics)?;
        let standing = recovered.index.saved().standing;
        let mut core = Core {
            status: Arc::new(Status::new(recovered.damage, metrics.refusing.clone())),
            index: Arc::new(recovered.index),
            journal: recovered.journal,
            damaged: Arc::default(),
            options: options.clone(),
            disk,
            layout,
            metrics,
            accepted,
            next_id: standing.next_id.max(1),
            now: standing.time,
            written: standing.time,
            dirty_since: None,
            doomed: Vec::new(),
            cut: (Position::default(), Instant::now()),
            journaled: 0,
            uncompacted: 0,
            compaction: None,
            retiring: VecDeque::new(),
            has_reserve: false,
            reported: None,
            checkpointer: None,
            _lock: recovered.lock,
        };
        core.make_reserve();
        core.report();
        Ok((core, recovered.is_new))
    }

    /// Does what was asked, all of it with at most one fsync. Answers whether the core was closed.
    pub(super) fn work(&mut self, requests: Vec<Request>) -> bool {
        if requests.is_empty() {
            return false;
        }
        let (mut facts, mut accepts, mut flushes, mut closing) = (Vec::new(), Vec::new(), Vec::new(), false);
        for Request { time, work } in requests {
            if time.tick > self.now.tick {
                self.now = time;
            }
            match work {
                Work::Accept(together) => accepts.push(together),
                Work::Flush(reply) => flushes.push(reply),
                Work::Close(reply) => {
                    closing = true;
                    flushes.push(reply);
                }
                fact => facts.push(fact),
            }
        }
        self.record(facts, closing);
        if !accepts.is_empty() {
            self.accept(accepts);
        } else if !flushes.is_empty() {
            self.sync_facts();
        }
        for reply in flushes {
            // Whoever asked may have gone away.
            let _ = reply.send(());
        }
        closing
    }

    /// What is due without being asked: the fsync of facts, checkpoints, compaction. `idle` if nobody waits. Answers
    /// whether there is more to do at once.
    pub(super) fn turn(&mut self, idle: bool) -> bool {
        if self.dirty_since.is_some_and(|since| since.elapsed() >= self.options.commit_interval) {
            self.sync_facts();
        }
        if self.index.is_damaged() && !self.status.is_failed() {
            self.give_up(io::Error::new(io::ErrorKind::InvalidData, "the index is damaged"));
        }
        if self.journal.is_dirty() || self.status.is_failed() {
            return false;
        }
        if self.is_checkpoint_due() {
            self.cut_checkpoint();
        }
        self.retire();
        let more = self.compact_some(idle);
        if self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            self.report();
        }
        more
    }

    /// Gives compaction its turn: when nobody waits, and else for twice as much as was journaled since, so that the
    /// journal stays small under any load. Answers whether it would go on.
    fn compact_some(&mut self, idle: bool) -> bool {
        if !idle && self.uncompacted < STEP / 2 {
            return false;
        }
        let mut left = if idle { STEP } else { self.uncompacted * 2 };
        self.uncompacted = 0;
        while left > 0 {
            match self.compact() {
                0 => return false,
                octets => left = left.saturating_sub(octets),
            }
        }
        idle
    }

    /// Notes that so many octets were journaled.
    pub(super) fn count(&mut self, octets: usize) {
        self.journaled += octets as u64;
        self.uncompacted += octets as u64;
    }

    /// How long the core can be left alone.
    pub(super) fn patience(&self) -> Duration {
        match self.dirty_since {
            Some(since) => self.options.commit_interval.saturating_sub(since.elapsed()),
            None => Duration::from_millis(250),
        }
    }

    /// How far checkpoints lag behind the changes: not, more than they should, or so far that memory runs out.
    pub(super) fn lag(&self) -> usize {
        let (changes, writing) = self.index.changes();
        if writing { BEHIND.iter().filter(|&&most| changes >= self.options.checkpoint_rows * most).count() } else { 0 }
    }

    /// Writes and applies facts.
    fn record(&mut self, facts: Vec<Work>, closing: bool) {
        let count = facts.len() as u64;
        let (mark, commit, before) = (self.journal.mark(), self.journal.commit(), self.index.saved().standing);
        let mut out = Vec::new();
        let mut effects = Effects::default();
        let index = Arc::clone(&self.index);
        let mut writing = index.write();
        let mut applied = Ok(());
        for fact in facts {
            let frame = |out: &mut Vec<u8>, kind, write: &dyn Fn(&mut Vec<u8>)| {
                record::frame(out, mark, commit, kind, 0, write);
            };
            applied = applied.and(apply_fact(fact, &mut writing, &mut out, &mut effects, frame));
        }
        self.mark_time(&mut out, &mut writing, closing);
        if !out.is_empty() && !self.status.is_failed() {
            let written = self.journal.append_facts(&out, &before);
            self.count(out.len());
            self.dirty_since = self.dirty_since.or_else(|| Some(Instant::now()));
            if let Err(error) = written {
                // What was applied stays applied: the mail has been relayed, whatever the disk says.
                self.salvage(&error, before);
            }
        }
        writing.tell(&mut effects);
        drop(writing);
        self.doomed.append(&mut effects.doomed);
        self.status.applied(count);
        if let Err(error) = self.index.noting(applied) {
            self.give_up(error);
        }
    }

    /// Adds the time to a commit, at most once a second.
    fn mark_time(&mut self, out: &mut Vec<u8>, writing: &mut Writing<'_>, always: bool) {
        let now = self.now;
        if now.tick.since(self.written.tick) < Duration::from_secs(1) && !always {
            return;
        }
        self.written = now;
        writing.layers.saved.standing.time = now;
        record::frame(out, self.journal.mark(), self.journal.commit(), Kind::Time, 0, |out| now.put(out));
    }

    /// Appends a record to `out`; answers its place relative to where `out` begins.
    pub(super) fn frame(&self, out: &mut Vec<u8>, kind: Kind, id: u64, write: impl FnOnce(&mut Vec<u8>)) -> Place {
        let offset = out.len() as u64;
        let length = record::frame(out, self.journal.mark(), self.journal.commit(), kind, id, write);
        Place { at: Position { segment: 0, offset }, length }
    }

    /// Makes what is written durable. On success content files that nothing needs are removed.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.journal.is_dirty() {
            let started = Instant::now();
            self.journal.sync()?;
            let took = started.elapsed();
            self.metrics.fsync.observe(took.as_secs_f64());
            self.status.synced(took);
        }
        self.dirty_since = None;
        for hash in std::mem::take(&mut self.doomed) {
            // What cannot be removed now is removed by the next start.
            if matches!(self.index.held(hash), Ok(None)) {
                let _ = self.disk.remove(&self.layout.content_file(hash));
            }
        }
        Ok(())
    }

    pub(super) fn sync_facts(&mut self) {
        if let Err(error) = self.sync() {
            self.salvage(&error, self.index.saved().standing);
        }
    }

    /// A write or fsync failed: gives the segment up and writes the facts again. `standing` is the one to head a new
    /// segment with if there are no facts.
    pub(super) fn salvage(&mut self, error: &io::Error, standing: Standing) {
        self.metrics.failures.inc();
        tracing::error!(%error, "writing the journal failed; going on with a new segment");
        if is_full(error) {
            self.status.set_full();
            self.give_reserve();
        }
        self.dirty_since = None;
        let owes = self.journal.owes_facts();
        match self.journal.salvage(&standing) {
            Err(second) if !owes && is_full(&second) => {
                tracing::error!(error = %second, "no room for a new segment; waiting for space");
            }
            Err(second) => self.give_up(second),
            Ok(()) => {}
        }
    }

    /// Nothing can be recorded any more: the process has to stop, because relaying without recording is relaying twice.
    pub(super) fn give_up(&mut self, error: io::Error) {
        tracing::error!(%error, "the spool has failed; stop and restart once the disk is well");
        if self.index.is_damaged() || error.kind() == io::ErrorKind::InvalidData {
            self.distrust_index();
        }
        self.status.fail(error);
    }

    /// Puts the index aside, so that the next start builds a new one.
    pub(super) fn distrust_index(&self) {
        let _ = self.disk.rename(&self.layout.index(), &self.layout.damaged_index());
        self.metrics.damage.inc();
    }

    fn make_reserve(&mut self) {
        let length = RESERVE_FILE.min(self.options.reserve_bytes / 2);
        let free = self.disk.free_space(&self.layout.root).unwrap_or(0);
        if length > 0 && free > self.options.reserve_bytes + length {
            self.has_reserve = self.disk.allocate(&self.layout.reserve(), length).is_ok();
        }
    }

    fn give_reserve(&mut self) {
        self.has_reserve = false;
        let _ = self.disk.remove(&self.layout.reserve());
    }

    fn is_checkpoint_due(&self) -> bool {
        let (changes, writing) = self.index.changes();
        let aged = changes > 0 && self.cut.1.elapsed() >= CHECKPOINT_AGE;
        !writing && (changes >= self.options.checkpoint_rows || self.journaled >= CHECKPOINT_BYTES || aged)
    }

    /// Sets the changes aside; the checkpointer writes them. Only while nothing is written but not synced.
    pub(super) fn cut_checkpoint(&mut self) -> bool {
        // redb must not run into a full disk: it could not be read afterwards.
        let needs = (self.index.changes().0 as u64) * 2048 + (8 << 20);
        if self.disk.free_space(&self.layout.root).unwrap_or(0) < needs {
            return false;
        }
        let cut = self.index.freeze(self.journal.end());
        if cut {
            self.cut = (self.journal.end(), Instant::now());
            self.journaled = 0;
            match &self.checkpointer {
                // It ends only with the process, or by failing, which the status knows.
                Some(checkpointer) => drop(checkpointer.send(())),
                None => write_checkpoint(&self.index, &self.status),
            }
        }
        cut
    }

    /// Leaves everything as the next start likes it best: synced, and with a fresh checkpoint.
    pub(super) fn finish(&mut self) {
        self.sync_facts();
        let started = Instant::now();
        while self.index.changes().1 && !self.status.is_failed() && started.elapsed() < LAST_CHECKPOINT {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !self.status.is_failed() && !self.journal.is_dirty() && self.index.changes().0 > 0 {
            self.cut_checkpoint();
        }
    }

    /// Removes segments that were copied forward and that the index is durably past.
    fn retire(&mut self) {
        while let Some(&(segment, needed)) = self.retiring.front() {
            if self.index.durable() < needed {
                return;
            }
            if let Err(error) = self.journal.remove(segment) {
                tracing::warn!(%error, segment, "a journal segment could not be removed");
                return;
            }
            self.retiring.pop_front();
        }
    }

    /// Shows the state in status and metrics.
    fn report(&mut self) {
        self.reported = Some(Instant::now());
        if !self.has_reserve && !self.status.is_failed() {
            self.make_reserve();
        }
        let (segments, journal_bytes) = self.journal.size();
        let saved = self.index.saved();
        let (changes, _) = self.index.changes();
        let stats = Stats {
            segments,
            journal_bytes,
            live_bytes: saved.live_bytes,
            delta_rows: changes as u64,
            leased: self.index.leased() as u64,
            checkpoints: self.index.checkpoints(),
            damage: self.metrics.damage.get(),
            ..Stats::default()
        };
        let stats = self.status.report(stats);
        self.metrics.show(&saved.standing.totals, &stats);
    }
}

/// Writes what was set aside. If that fails the index can be trusted no more, and the next start reads it afresh.
pub(super) fn write_checkpoint(index: &Index, status: &Status) {
    if let Err(error) = index.checkpoint() {
        tracing::error!(%error, "a checkpoint of the index failed");
        status.fail(error);
    }
}

fn apply_fact(
    fact: Work,
    writing: &mut Writing<'_>,
    out: &mut Vec<u8>,
    effects: &mut Effects,
    frame: impl Fn(&mut Vec<u8>, Kind, &dyn Fn(&mut Vec<u8>)),
) -> io::Result<()> {
    match fact {
        Work::Settle(Settlement { at, mut fates }) => {
            while !fates.is_empty() {
                let rest = fates.split_off(fates.len().min(FATES));
                let outcome = writing.layers.settle(Settlement { at, fates }, effects)?;
                if !outcome.fates.is_empty() {
                    frame(out, Kind::Outcome, &|out| outcome.put(out));
                }
                fates = rest;
            }
        }
        Work::Forgive(debts) => {
            let mut forgiven = Vec::new();
            for (id, kind) in debts {
                if writing.layers.forgive(id, kind, effects)? {
                    forgiven.push((id, kind));
                }
            }
            if !forgiven.is_empty() {
                let record = Forgive { debts: forgiven };
                frame(out, Kind::Forgive, &|out| record.put(out));
            }
        }
        Work::Release(ids) => {
            // What was settled before is no longer handed out, and must not be noted as waiting once more.
            writing.tell(effects);
            writing.release(&ids)?;
        }
        Work::Accept(_) | Work::Flush(_) | Work::Close(_) => {}
    }
    Ok(())
}

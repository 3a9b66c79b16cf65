//! The spool: what was answered 250 stays until it is settled.
//!
//! # The promise
//!
//! 250 means: on disk, and synced. Outcomes are written at once and synced with the next commit, at most
//! `commit_interval` later: `kill -9` repeats only what was in flight, a power cut that and the last commit. Nothing is
//! lost, nothing is invented, and the start always succeeds unless another process has the spool, a newer program wrote it,
//! or the disk cannot be written.
//!
//! # Every state on disk
//!
//! | what lies there | a crash leaves it | what the next start does |
//! |---|---|---|
//! | `lock` | unlocked: the kernel does that | takes it |
//! | `format` | absent, or whole (renamed into place) | makes it; if it is damaged writes it again from a segment |
//! | `journal/N.seg`, not the newest | whole up to the end that the newest header names; behind that what a failed write left | reads to that end |
//! | `journal/N.seg`, the newest | whole records, then perhaps a torn one that nobody was answered for | reads to the last whole record; goes on in a new segment |
//! | `journal/N.seg` without any whole record | it was being made | removes it |
//! | `content/HASH` that an accept record names | whole: it was synced before it was renamed | keeps it |
//! | `content/HASH` that no open batch needs | its record did not become durable, or its last batch was settled | removes it |
//! | `tmp/*` | content that was arriving | removes it |
//! | `index.redb` | as of the last checkpoint | replays the journal from there |
//! | `index.redb` missing, foreign or damaged | - | builds it anew from the journal |
//! | `index.damaged` | found damaged while running | lets it lie, for whoever wants to look |
//! | `reserve` | space that is given back when the disk is full | makes it again when there is room |
//! | `quarantine/*` | copies of damaged octets | lets them lie |
//!
//! # How it is built
//!
//! One truth, the [`journal`]; one derived [`index`]. [`core`] orders what happens, [`committer`] gives it a thread,
//! [`recovery`] is the start, [`compaction`] keeps the journal small. All of them see the file system through [`disk`].

mod accept;
mod api;
mod codec;
mod committer;
mod compaction;
mod content;
mod core;
mod disk;
mod dump;
mod fsck;
mod index;
mod journal;
mod layout;
mod metrics;
mod record;
mod recovery;
mod scan;
mod status;
#[cfg(test)]
mod tests;
mod values;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;

pub use api::*;
pub use content::ContentWriter;
pub use dump::dump;
pub use fsck::{Damage, FsckError, FsckReport, fsck};

use self::content::Contents;
use self::core::{Core, Incoming, Request, Work};
use self::disk::{Disk, SystemDisk};
use self::index::Index;
use self::layout::Layout;
use self::metrics::Metrics;
use self::record::Time;
use self::status::Status;
use crate::clock::{Clock, Tick};
use crate::mail::{ContentHash, Destination, QueueId, RecipientId};

/// Memory that submissions may hold while they wait for their fsync, in KiB.
const WAITING_KIB: u32 = 64 << 10;

/// A handle on the spool. Cheap to clone; every clone is the same spool.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    requests: Sender<Request>,
    /// Submissions that wait, in KiB.
    waiting: Semaphore,
    /// Facts that were handed in.
    facts: AtomicU64,
    clock: Clock,
    disk: Arc<dyn Disk>,
    layout: Layout,
    options: Options,
    index: Arc<Index>,
    contents: Arc<Contents>,
    status: Arc<Status>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

impl Spool {
    /// Opens the spool, making it if there is none. Blocks: under a second unless the index has to be built anew.
    /// `accepted` hears of every batch once it is durable; what it has no room for is loaded later
    /// ([`Spool::take_missed`]).
    ///
    /// # Errors
    /// See [`OpenError`]; each names its remedy.
    pub fn open(
        options: Options,
        accepted: mpsc::Sender<Accepted>,
        registry: &prometheus::Registry,
    ) -> Result<Spool, OpenError> {
        Spool::open_on(Arc::new(SystemDisk), options, accepted, registry)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        options: Options,
        accepted: mpsc::Sender<Accepted>,
        registry: &prometheus::Registry,
    ) -> Result<Spool, OpenError> {
        let metrics = Metrics::new(registry)?;
        let (core, is_new) = Core::open(Arc::clone(&disk), &options, accepted, metrics.clone())?;
        let time = core.index.saved().standing.time;
        let known = !is_new && time != Time::default();
        let clock =
            if known { Clock::resume(time.tick, time.timestamp(), options.downtime_max) } else { Clock::start() };
        let (index, status, layout) = (Arc::clone(&core.index), Arc::clone(&core.status), core.layout.clone());
        let contents = Arc::new(Contents {
            disk: Arc::clone(&disk),
            layout: layout.clone(),
            index: Arc::clone(&index),
            damaged: Arc::clone(&core.damaged),
            cache: content::cache(options.content_cache_bytes),
            metrics,
        });
        let failed = |source| OpenError::Io { path: layout.root.clone(), source };
        let (requests, committer) = committer::start(core).map_err(failed)?;
        Ok(Spool(Arc::new(Shared {
            requests,
            waiting: Semaphore::new(WAITING_KIB as usize),
            facts: AtomicU64::new(0),
            clock,
            disk,
            layout,
            options,
            index,
            contents,
            status,
            committer: Mutex::new(Some(committer)),
        })))
    }

    /// The spool's time line, which goes on from where the journal left it.
    pub fn clock(&self) -> Clock {
        self.0.clock.clone()
    }

    fn ask(&self, work: Work) -> bool {
        let clock = &self.0.clock;
        let time = Time { tick: clock.now(), wall: clock.wall().as_millisecond() };
        self.0.requests.send(Request { time, work }).is_ok()
    }

    /// Takes a mail transaction in. When this answers it is durable.
    ///
    /// # Errors
    /// See [`AcceptError`]: nothing of the submission is delivered then.
    pub async fn accept(&self, submission: Submission) -> Result<QueueId, AcceptError> {
        let ids = self.accept_all(vec![submission]).await?;
        ids.first().copied().ok_or(AcceptError::Closing)
    }

    /// Takes several in that share one content, in one commit: all of them or none. (A crash before the answer may leave
    /// some, as it may leave a single one: nobody heard 250, and the client repeats.)
    ///
    /// # Errors
    /// See [`AcceptError`]: nothing of any of them is delivered then.
    pub async fn accept_all(&self, submissions: Vec<Submission>) -> Result<Vec<QueueId>, AcceptError> {
        let Some(content) = submissions.first().map(|submission| submission.content.clone()) else {
            return Ok(Vec::new());
        };
        let inline = if let NewBody::Inline(bytes) = &content.body { bytes.len() } else { 0 };
        let kib = u32::try_from(inline >> 10).unwrap_or(WAITING_KIB).min(WAITING_KIB - 1) + 1;
        let _waiting = self.0.waiting.acquire_many(kib).await.map_err(|_| AcceptError::Closing)?;
        if let NewBody::File(file) = &content.body {
            sync_file(Arc::clone(file)).await.map_err(|error| AcceptError::Io(Arc::new(error)))?;
        }
        let ids = self.hand_in(submissions).await?;
        if let NewBody::Inline(bytes) = content.body {
            self.0.contents.cache.insert(content.hash, bytes).await;
        }
        Ok(ids)
    }

    async fn hand_in(&self, submissions: Vec<Submission>) -> Result<Vec<QueueId>, AcceptError> {
        let at = self.0.clock.now();
        let (together, answers): (Vec<_>, Vec<_>) = submissions
            .into_iter()
            .map(|submission| {
                let (reply, answer) = oneshot::channel();
                (Incoming { at, submission, reply }, answer)
            })
            .unzip();
        if !self.ask(Work::Accept(together)) {
            return Err(self.gone());
        }
        let mut ids = Vec::with_capacity(answers.len());
        for answer in answers {
            ids.push(answer.await.map_err(|_| self.gone())??);
        }
        Ok(ids)
    }

    /// Why nobody answers any more.
    fn gone(&self) -> AcceptError {
        self.0.status.failure().map_or(AcceptError::Closing, AcceptError::Io)
    }

    /// Takes a content in, to be submitted afterwards.
    pub fn content_writer(&self) -> ContentWriter {
        ContentWriter::new(Arc::clone(&self.0.disk), &self.0.layout, self.0.options.inline_content_bytes)
    }

    /// Whether there is room for another message: asked at MAIL, so that a full disk is said early (`452 4.3.1`).
    pub fn has_room(&self) -> bool {
        !self.0.status.is_failed()
            && self.0.status.has_room(&*self.0.disk, &self.0.layout.root, self.0.options.reserve_bytes)
    }

    /// Hands in facts. Their number is bounded by what is handed out: each is about a lease.
    fn fact(&self, work: Work) {
        self.0.facts.fetch_add(1, Ordering::SeqCst);
        if !self.ask(work) {
            tracing::error!("an outcome came after the spool was closed; the recipient will be tried again");
        }
    }

    /// Records the fates of recipients, and takes them back. In the order of the calls; visible to every later
    /// [`Spool::load`].
    pub fn settle(&self, settlement: Settlement) {
        self.fact(Work::Settle(settlement));
    }

    /// Drops obligations that nobody will pay.
    pub fn forgive(&self, debts: Vec<(RecipientId, ObligationKind)>) {
        self.fact(Work::Forgive(debts));
    }

    /// Takes recipients back that were handed out and have no fate yet.
    pub fn release(&self, ids: Vec<RecipientId>) {
        self.fact(Work::Release(ids));
    }

    /// Answers when all that was handed in before is durable.
    pub async fn flush(&self) {
        let (reply, answer) = oneshot::channel();
        if self.ask(Work::Flush(reply)) {
            // If the committer is gone there is nothing left to be flushed.
            let _ = answer.await;
        }
    }

    /// Waits until all facts that were handed in are visible.
    async fn settled(&self) -> io::Result<()> {
        let facts = self.0.facts.load(Ordering::SeqCst);
        let mut applied = self.0.status.watch_applied();
        let mut failure = self.0.status.watch_failure();
        tokio::select! {
            biased;
            seen = applied.wait_for(|applied| *applied >= facts) => {
                seen.map(drop).map_err(|_| io::Error::other("the spool is closed"))
            }
            _ = failure.wait_for(Option::is_some) => Err(io::Error::other("the spool has failed")),
        }
    }

    /// Asks the index, off the runtime's threads.
    async fn query<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Index) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.settled().await?;
        let index = Arc::clone(&self.0.index);
        match spawn_blocking(move || ask(&index)).await {
            Ok(answer) => answer,
            Err(error) => {
                // redb asserts what it reads.
                self.0.index.distrust();
                Err(io::Error::other(error))
            }
        }
    }

    /// Hands out recipients of `destination` that are due, at most `limit`, from each of its mailings in turn. They are
    /// not handed out again before they are settled or released.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn load(&self, destination: Destination, now: Tick, limit: usize) -> io::Result<Loaded> {
        self.query(move |index| index.load(&destination, now, limit)).await
    }

    /// Destinations with a recipient that is due by `until` and not handed out, earliest first.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn wakeups(&self, until: Tick, limit: usize) -> io::Result<Vec<(Tick, Destination)>> {
        self.query(move |index| index.wakeups(until, limit)).await
    }

    /// When to ask for [`Spool::wakeups`] again. May be too early, never too late.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn next_wakeup(&self) -> io::Result<Option<Tick>> {
        self.query(Index::next_wakeup).await
    }

    /// Keeps `destination` out of [`Spool::wakeups`] until then: for one whose recipients cannot be taken just now.
    pub fn snooze(&self, destination: &Destination, until: Tick) {
        self.0.index.snooze(destination, until);
    }

    /// Whether batches were accepted since the last call that `accepted` had no room for: they are found by
    /// [`Spool::wakeups`].
    pub fn take_missed(&self) -> bool {
        self.0.status.take_missed()
    }

    /// A content, from memory or verified from disk.
    ///
    /// # Errors
    /// See [`ContentError`].
    pub async fn content(&self, hash: ContentHash) -> Result<Content, ContentError> {
        if let Some(bytes) = self.0.contents.cache.get(&hash).await {
            return Ok(Content { bytes });
        }
        let contents = Arc::clone(&self.0.contents);
        let read = spawn_blocking(move || contents.read(hash)).await;
        let bytes: Bytes = read.map_err(|error| ContentError::Io(hash, io::Error::other(error)))??;
        self.0.contents.cache.insert(hash, bytes.clone()).await;
        Ok(Content { bytes })
    }

    /// DSNs that are owed, oldest batch first: at most `limit` obligations. There must be one payer only: nothing is
    /// handed out, and what is not paid is answered again.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn owed(&self, limit: usize) -> io::Result<Vec<Owed>> {
        self.query(move |index| index.owed(limit)).await
    }

    /// The recipients of a batch that still wait. Empty if there is no such batch.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn batch_rows(&self, batch: QueueId) -> io::Result<Vec<Row>> {
        self.query(move |index| index.rows(batch)).await
    }

    /// Recipients by fate.
    pub fn totals(&self) -> Totals {
        self.0.index.saved().standing.totals
    }

    /// The state of the machinery, as of the last 100 ms.
    pub fn stats(&self) -> Stats {
        self.0.status.stats()
    }

    /// Answers when nothing can be recorded any more, with the reason. The process has to stop then: what it relays now
    /// it will relay again.
    pub async fn failed(&self) -> Arc<io::Error> {
        let mut failure = self.0.status.watch_failure();
        loop {
            if let Some(error) = failure.borrow_and_update().clone() {
                return error;
            }
            if failure.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Makes all durable, writes a last checkpoint and gives the spool free. Other handles answer errors from then on.
    pub async fn close(self) {
        let (reply, answer) = oneshot::channel();
        if self.ask(Work::Close(reply)) {
            let _ = answer.await;
        }
        let committer = self.0.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = spawn_blocking(move || committer.is_none_or(|thread| thread.join().is_ok()));
        if !ended.await.unwrap_or(false) {
            tracing::error!("the spool's committer panicked");
        }
    }
}

async fn sync_file(file: Arc<SpooledFile>) -> io::Result<()> {
    spawn_blocking(move || file.file.sync()).await.map_err(io::Error::other)?
}

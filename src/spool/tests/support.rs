//! What the tests share: options, submissions, and a spool driven by hand.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use super::memory::MemoryDisk;
use crate::clock::Tick;
use crate::mail::{
    ContentHash, Destination, Domain, EnvelopeParams, Mailbox, MailingId, QueueId, Queued, Recipient, RecipientId,
    RecipientParams, ReversePath, Trace,
};
use crate::outcome::{Enhanced, Phase, Reason, Scope};
use crate::spool::core::{Core, Incoming, Request, Work};
use crate::spool::metrics::Metrics;
use crate::spool::record::Time;
use crate::spool::*;

/// Options for a small spool.
pub(super) fn options(path: &Path) -> Options {
    Options {
        path: path.to_owned(),
        segment_bytes: 16 << 10,
        inline_content_bytes: 4 << 10,
        index_cache_bytes: 1 << 20,
        content_cache_bytes: 1 << 20,
        checkpoint_rows: 1 << 16,
        commit_interval: Duration::from_millis(20),
        reserve_bytes: 1 << 20,
        downtime_max: Duration::from_secs(3600),
    }
}

/// A content in memory.
pub(super) fn content(text: &str) -> NewContent {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    let hash = crate::spool::content::hash_of(&bytes);
    NewContent { hash, size: bytes.len() as u64, eight_bit: false, body: NewBody::Inline(bytes) }
}

/// A submission for these forward-paths.
pub(super) fn submission(text: &str, mailing: u64, paths: &[&str]) -> Submission {
    let recipient = |path: &&str| {
        let path = Mailbox::parse(path, false).expect("an address");
        let destination = Destination::Domain(path.domain());
        (Recipient { path, params: RecipientParams::default() }, destination)
    };
    Submission {
        list_host: "lists".into(),
        reverse_path: ReversePath::Mailbox(Mailbox::parse("list-bounces@lists.example.org", false).expect("valid")),
        params: EnvelopeParams::default(),
        mailing: MailingId(mailing),
        trace: Trace {
            helo: "lists.example.org".into(),
            peer: Some([127, 0, 0, 1].into()),
            protocol: "ESMTP".into(),
            at: Timestamp::UNIX_EPOCH,
        },
        content: content(text),
        recipients: paths.iter().map(recipient).collect(),
        pays: Vec::new(),
    }
}

/// A DSN to the list host that pays these obligations.
pub(super) fn dsn(pays: Vec<(RecipientId, ObligationKind)>) -> Submission {
    let mut dsn = submission("a report", 0, &["list-bounces@lists.example.org"]);
    dsn.reverse_path = ReversePath::Null;
    dsn.recipients[0].1 = Destination::ListHost("lists".into());
    Submission { pays, ..dsn }
}

pub(super) fn domain(name: &str) -> Destination {
    Destination::Domain(Domain::parse(name).expect("a domain"))
}

pub(super) fn obligation(kind: ObligationKind, path: &str) -> Obligation {
    let path = Mailbox::parse(path, false).expect("an address");
    Obligation {
        kind,
        recipient: Arc::new(Recipient { path, params: RecipientParams::default() }),
        reason: Reason {
            phase: Phase::Rcpt,
            scope: Scope::Recipient,
            status: Enhanced::new(5, 1, 1),
            reply: None,
            text: "no such user".into(),
            remote: None,
        },
        since: Tick(1),
    }
}

pub(super) fn relayed() -> Fate {
    Fate::Done { end: End::Relayed, note: "250 ok".into(), owes: None }
}

pub(super) fn bounced(path: &str) -> Fate {
    let owes = Some(obligation(ObligationKind::Failed, path));
    Fate::Done { end: End::Bounced, note: "550 no".into(), owes }
}

pub(super) fn retry(due: u64) -> Fate {
    Fate::Retry { due: Tick(due), attempts: 1, note: "451 later".into(), owes: None }
}

/// A spool without threads, on a disk in memory.
pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) events: mpsc::Receiver<Accepted>,
    pub(super) now: u64,
}

pub(super) const ROOT: &str = "/spool";

impl Bench {
    pub(super) fn open(disk: &MemoryDisk) -> Result<Bench, OpenError> {
        Bench::open_with(disk, options(Path::new(ROOT)))
    }

    pub(super) fn open_with(disk: &MemoryDisk, options: Options) -> Result<Bench, OpenError> {
        let (sender, events) = mpsc::channel(1024);
        let metrics = Metrics::new(&prometheus::Registry::new())?;
        let (core, _) = Core::open(Arc::new(disk.clone()), &options, sender, metrics)?;
        let now = core.index.saved().standing.time.tick.0.max(1000);
        Ok(Bench { core, events, now })
    }

    fn request(&self, work: Work) -> Request {
        Request { time: Time { tick: Tick(self.now), wall: self.now as i64 }, work }
    }

    pub(super) fn accept_all(&mut self, submissions: Vec<Submission>) -> Vec<Result<QueueId, AcceptError>> {
        let (requests, answers): (Vec<_>, Vec<_>) = submissions
            .into_iter()
            .map(|submission| {
                let (reply, answer) = oneshot::channel();
                let incoming = Incoming { at: Tick(self.now), submission, reply };
                (self.request(Work::Accept(vec![incoming])), answer)
            })
            .unzip();
        self.core.work(requests);
        answers.into_iter().map(|mut answer| answer.try_recv().expect("answered")).collect()
    }

    pub(super) fn accept(&mut self, submission: Submission) -> Result<QueueId, AcceptError> {
        self.accept_all(vec![submission]).remove(0)
    }

    pub(super) fn settle(&mut self, fates: Vec<(RecipientId, Fate)>) {
        let settlement = Settlement { at: Tick(self.now), fates };
        self.core.work(vec![self.request(Work::Settle(settlement))]);
    }

    pub(super) fn release(&mut self, ids: Vec<RecipientId>) {
        self.core.work(vec![self.request(Work::Release(ids))]);
    }

    pub(super) fn flush(&mut self) {
        let (reply, _answer) = oneshot::channel();
        self.core.work(vec![self.request(Work::Flush(reply))]);
    }

    pub(super) fn checkpoint(&mut self) {
        self.flush();
        assert!(self.core.cut_checkpoint(), "a checkpoint is cut");
    }

    pub(super) fn compact_all(&mut self) {
        self.flush();
        while self.core.turn(true) {}
    }

    pub(super) fn load(&self, destination: &str, now: u64, limit: usize) -> Vec<Queued> {
        self.core.index.load(&domain(destination), Tick(now), limit).expect("loaded").queued
    }

    pub(super) fn wakeups(&self, until: u64) -> Vec<(u64, String)> {
        let wakeups = self.core.index.wakeups(Tick(until), 100).expect("answered");
        wakeups.into_iter().map(|(at, destination)| (at.0, destination.to_string())).collect()
    }

    pub(super) fn totals(&self) -> Totals {
        self.core.index.saved().standing.totals
    }

    pub(super) fn rows(&self, id: QueueId) -> Vec<Row> {
        self.core.index.rows(id).expect("read")
    }

    pub(super) fn read(&self, hash: ContentHash) -> Result<Bytes, ContentError> {
        let contents = crate::spool::content::Contents {
            disk: Arc::clone(&self.core.disk),
            layout: self.core.layout.clone(),
            index: Arc::clone(&self.core.index),
            damaged: Arc::clone(&self.core.damaged),
            cache: crate::spool::content::cache(0),
            metrics: self.core.metrics.clone(),
        };
        contents.read(hash)
    }
}

pub(super) fn id(batch: QueueId, index: u32) -> RecipientId {
    RecipientId { batch, index }
}

/// Asserts that nobody was lost or invented.
pub(super) fn assert_balance(totals: &Totals) {
    let t = totals;
    assert_eq!(t.accepted, t.queued + t.relayed + t.bounced + t.expired + t.cancelled, "{t:?}");
    assert_eq!(t.dsn_accepted, t.dsn_queued + t.dsn_relayed + t.dsn_bounced + t.dsn_expired + t.dsn_cancelled, "{t:?}");
}

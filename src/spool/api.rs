//! What the other parts say to the spool: values in, values out. Only `server` knows which engine stands behind it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use crate::clock::Tick;
use crate::mail::{
    Batch, ContentHash, Destination, EnvelopeParams, MailingId, Queued, Recipient, RecipientId, ReversePath, Trace,
};
use crate::outcome::Reason;

/// `[spool]` of the configuration, translated.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory; created if it is missing, mode 0700.
    pub path: PathBuf,
    /// Size at which a journal segment is closed and the next begun, in octets.
    pub segment_bytes: u64,
    /// Contents larger than this are files of their own, in octets.
    pub inline_content_bytes: u64,
    /// Cache of the index, in octets.
    pub index_cache_bytes: usize,
    /// Cache of recently used contents, in octets.
    pub content_cache_bytes: u64,
    /// Rows that may change before the index is brought up to date (a checkpoint).
    pub checkpoint_rows: usize,
    /// Longest time between a write of an outcome and its fsync.
    pub commit_interval: Duration,
    /// Free space below which new mail gets 452, in octets. Outcomes may still be written.
    pub reserve_bytes: u64,
    /// Downtime that counts towards retry and expiry, at most.
    pub downtime_max: Duration,
}

/// Content that was received and hashed, on its way into the spool.
#[derive(Clone, Debug)]
pub struct NewContent {
    /// SHA-256 of the dot-stuffed octets.
    pub hash: ContentHash,
    /// Octets as RFC 1870 counts them: without dot-stuffing and without the final dot.
    pub size: u64,
    /// Whether there is an octet above 127.
    pub eight_bit: bool,
    /// The dot-stuffed octets, or the file in the spool that holds them.
    pub body: NewBody,
}

/// Where new content lies.
#[derive(Clone, Debug)]
pub enum NewBody {
    /// In memory, up to `inline_content_bytes`.
    Inline(Bytes),
    /// In a file below the spool, written but not yet adopted; removed again if it is not.
    File(Arc<SpooledFile>),
}

/// A content file that no accept record has adopted yet. Dropping the last handle removes the file unless it was adopted.
/// Made by [`ContentWriter`](super::ContentWriter) only.
#[derive(Debug)]
pub struct SpooledFile {
    /// Its path.
    pub path: PathBuf,
    /// Octets in it.
    pub length: u64,
    /// Where it lies.
    pub(super) disk: Arc<dyn Disk>,
    /// It, open, so that it can be synced.
    pub(super) file: Arc<dyn DiskFile>,
}

impl Drop for SpooledFile {
    fn drop(&mut self) {
        // Adoption renames the file, so there is nothing under this name then. If removing fails, the next start does it.
        let _ = self.disk.remove(&self.path);
    }
}

/// A mail transaction that is to become a batch.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Name of the list host.
    pub list_host: Arc<str>,
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// Parameters of MAIL.
    pub params: EnvelopeParams,
    /// The mailing that it belongs to.
    pub mailing: MailingId,
    /// How it came in.
    pub trace: Trace,
    /// The content.
    pub content: NewContent,
    /// The recipients and where each goes. Never empty; at most 2^24.
    pub recipients: Vec<(Recipient, Destination)>,
    /// The obligations that this submission pays: it is the DSN for them. Empty for mail from list hosts.
    pub pays: Vec<(RecipientId, ObligationKind)>,
}

/// A stored content, read and verified: dot-stuffed, as it goes out between DATA and the final dot.
#[derive(Clone, Debug)]
pub struct Content {
    /// The octets. Ends in CRLF unless empty.
    pub bytes: Bytes,
}

/// The fates of the recipients of one attempt, or of an operator's action.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// When.
    pub at: Tick,
    /// One entry per recipient.
    pub fates: Vec<(RecipientId, Fate)>,
}

/// What is recorded of one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays in the queue.
    Retry {
        /// When it is due again.
        due: Tick,
        /// Attempts made and counted, this one included.
        attempts: u32,
        /// What was said, for `queue` and `trace`.
        note: Box<str>,
        /// A delay DSN that is owed from now on.
        owes: Option<Obligation>,
    },
    /// It leaves the queue for good.
    Done {
        /// How it ended.
        end: End,
        /// What was said.
        note: Box<str>,
        /// A failure or relayed DSN that is owed from now on.
        owes: Option<Obligation>,
    },
}

/// How a recipient left the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The next hop took it.
    Relayed,
    /// Refused for good.
    Bounced,
    /// Its lifetime ended.
    Expired,
    /// An operator cancelled it.
    Cancelled,
}

/// A DSN that is owed for one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obligation {
    /// Which kind of report.
    pub kind: ObligationKind,
    /// The recipient that it reports on.
    pub recipient: Arc<Recipient>,
    /// What is reported.
    pub reason: Reason,
    /// When it arose.
    pub since: Tick,
}

/// The kinds of DSN (RFC 3464 section 2.3.3, Action).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObligationKind {
    /// `failed`.
    Failed,
    /// `delayed`.
    Delayed,
    /// `relayed`: handed to a host without DSN, and NOTIFY=SUCCESS asked for a report.
    Relayed,
}

/// Recipients that are handed out.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// They, grouped by mailing and envelope.
    pub queued: Vec<Queued>,
    /// When the first of those is due that were left behind: in the past where `limit` left some behind that are due
    /// already, [`Tick::NEVER`] where there is none.
    pub next: Tick,
}

/// The obligations of one batch.
#[derive(Clone, Debug)]
pub struct Owed {
    /// The batch.
    pub batch: Arc<Batch>,
    /// Its obligations.
    pub obligations: Vec<(RecipientId, Obligation)>,
}

/// Why the spool did not take a submission. Never the list host's fault: each becomes a 4yz.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Free space is below the reserve (`452 4.3.1`).
    #[error("the spool's file system is full")]
    Full,
    /// Writing or fsync failed; nothing of the submission will be delivered (`451 4.3.0`).
    #[error("the spool could not be written: {0}")]
    Io(Arc<std::io::Error>),
    /// The spool is closing down (`451 4.3.2`).
    #[error("the spool is closing")]
    Closing,
}

/// Why a content could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// What lies on disk does not have the hash it is stored under. Its recipients are held and an alert is raised.
    #[error("content {0} is damaged")]
    Damaged(ContentHash),
    /// No such content. A bug or a damaged spool.
    #[error("content {0} is not in the spool")]
    Missing(ContentHash),
    /// Reading failed; another try may succeed.
    #[error("content {0} could not be read: {1}")]
    Io(ContentHash, std::io::Error),
}

/// A batch that was accepted just now: durable, and its recipients handed out to whoever takes this event.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The batch.
    pub batch: Arc<Batch>,
    /// Its recipients, all due.
    pub queued: Vec<Queued>,
}

/// A recipient as it stands in the spool, for `queue`, `trace` and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub id: RecipientId,
    /// Where it goes.
    pub destination: Destination,
    /// The forward-path.
    pub recipient: Arc<Recipient>,
    /// Attempts that were made and counted.
    pub attempts: u32,
    /// When it may be tried.
    pub due: Tick,
    /// What was said at the last attempt.
    pub note: Box<str>,
    /// Whether a delay DSN was owed already.
    pub delay_reported: bool,
}

/// Recipients by fate, since the spool was made. `accepted = relayed + bounced + expired + cancelled + queued` at any
/// moment. DSNs to list hosts stand outside that equation and have one of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Taken from list hosts.
    pub accepted: u64,
    /// Still in the queue.
    pub queued: u64,
    /// Taken by a next hop.
    pub relayed: u64,
    /// Refused for good.
    pub bounced: u64,
    /// Given up.
    pub expired: u64,
    /// Cancelled by an operator.
    pub cancelled: u64,
    /// DSNs that are owed and not composed yet.
    pub owed: u64,
    /// DSN recipients taken in.
    pub dsn_accepted: u64,
    /// DSN recipients still in the queue.
    pub dsn_queued: u64,
    /// DSN recipients that a list host took.
    pub dsn_relayed: u64,
    /// DSN recipients that a list host refused.
    pub dsn_bounced: u64,
    /// DSN recipients given up.
    pub dsn_expired: u64,
    /// DSN recipients cancelled.
    pub dsn_cancelled: u64,
}

/// The state of the machinery, for `healthz`, `top` and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Journal segments.
    pub segments: u64,
    /// Octets in them.
    pub journal_bytes: u64,
    /// Octets of them that would survive compaction.
    pub live_bytes: u64,
    /// Index entries that changed since the last checkpoint.
    pub delta_rows: u64,
    /// Recipients that are handed out.
    pub leased: u64,
    /// Checkpoints since the start.
    pub checkpoints: u64,
    /// Commits (one fsync each) since the start.
    pub commits: u64,
    /// Damaged places found since the start.
    pub damage: u64,
    /// How long the last fsync took.
    pub last_fsync: Duration,
}

/// Why a spool could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the spool {0} is in use by another process: stop that instance first, or give this one a path of its own ([spool] path)"
    )]
    Locked(PathBuf),
    /// A newer program wrote it. Nothing was touched.
    #[error(
        "the spool {path} was written by a newer version (format {found}; this program reads up to {known}): start that version, or drain the spool with it first"
    )]
    Newer {
        /// The spool.
        path: PathBuf,
        /// The format that was found.
        found: u32,
        /// The newest format that this program knows.
        known: u32,
    },
    /// It cannot be written to.
    #[error(
        "the spool {path} cannot be written: {source}; check that the directory belongs to the user that runs posthaste and that its file system is mounted read-write"
    )]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Reading or writing failed.
    #[error("the spool {path} could not be opened: {source}; check the disk (dmesg), then `posthaste spool fsck`")]
    Io {
        /// The spool.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its metrics could not be registered: two spools share a registry.
    #[error("the spool's metrics could not be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

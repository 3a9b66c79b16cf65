//! What the other parts say to the spool: values in, values out. Only `server` knows which engine stands behind it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Tick;
use crate::mail::{
    Batch, ContentHash, Destination, EnvelopeParams, MailingId, Recipient, RecipientId, ReversePath, Trace,
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
#[derive(Debug)]
pub struct SpooledFile {
    /// Its path.
    pub path: PathBuf,
    /// Octets in it.
    pub length: u64,
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

//! Mail's values: addresses, paths, envelope parameters and identifiers (RFC 5321 section 2.3). No I/O, and nothing of
//! ours is imported here: every other part speaks in these words.
//!
//! A value that exists is valid: an address is checked once, where it enters (*parse, don't validate*), and its type
//! cannot hold a control character afterwards. What was written by the client is kept byte for byte for the wire;
//! what we compare and route by ([`Domain`]) is normalised once.

mod address;
mod batch;
mod envelope;
pub mod header;
mod id;

pub use address::{AddressError, Domain, Mailbox, ReversePath};
pub use batch::{Batch, Destination, Envelope, Queued, Recipient, Trace};
pub use envelope::{Body, EnvelopeParams, Notify, OriginalRecipient, RecipientParams, Ret};
pub use id::{AttemptId, ContentHash, MailingId, QueueId, RecipientId};

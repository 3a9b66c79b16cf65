//! The keys of the index's tables, and the small values in them.
//!
//! | table | key | value |
//! |---|---|---|
//! | `Rows` | recipient | its queue key, without the recipient at its end |
//! | `Queue` | destination, mailing, due, group, recipient | [`PendingState`](super::super::record::PendingState) |
//! | `Due` | second, destination | rows due there and then |
//! | `Batches` | queue id | [`BatchEntry`] |
//! | `Open` | queue id | rows that wait and obligations that are owed: what keeps the batch |
//! | `Contents` | content hash | [`Held`] |
//! | `Owed` | recipient, kind | [`Obligation`](super::super::api::Obligation) |

use super::super::api::ObligationKind;
use super::super::codec::{Codec, Input, Malformed, bytes_of};
use super::super::record::Place;
use crate::clock::Tick;
use crate::mail::{Batch, ContentHash, Destination, MailingId, QueueId, RecipientId};

/// The tables of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Table {
    Rows,
    Queue,
    Due,
    Batches,
    Open,
    Contents,
    Owed,
}

impl Table {
    pub(super) const ALL: [Table; 7] =
        [Table::Rows, Table::Queue, Table::Due, Table::Batches, Table::Open, Table::Contents, Table::Owed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Table::Rows => "r",
            Table::Queue => "q",
            Table::Due => "t",
            Table::Batches => "b",
            Table::Open => "n",
            Table::Contents => "h",
            Table::Owed => "o",
        }
    }
}

/// Octets of a recipient's key: batch and index.
pub(super) const RECIPIENT: usize = 12;

/// Octets of a queue key between destination and recipient: mailing, due, group.
pub(super) const MIDDLE: usize = 24;

/// The key of a recipient.
pub(super) fn recipient_key(id: RecipientId) -> [u8; RECIPIENT] {
    let mut key = [0; RECIPIENT];
    key[..8].copy_from_slice(&id.batch.0.to_be_bytes());
    key[8..].copy_from_slice(&id.index.to_be_bytes());
    key
}

/// The key of an obligation.
pub(super) fn owed_key(id: RecipientId, kind: ObligationKind) -> Vec<u8> {
    bytes_of(&(id, kind))
}

/// A recipient's place in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueKey {
    bytes: Vec<u8>,
}

impl QueueKey {
    /// The place of `id`, `destination` being encoded already.
    pub(super) fn new(destination: &[u8], mailing: MailingId, due: Tick, group: u64, id: RecipientId) -> QueueKey {
        let mut bytes = Vec::with_capacity(destination.len() + MIDDLE + RECIPIENT);
        bytes.extend_from_slice(destination);
        mailing.put(&mut bytes);
        due.put(&mut bytes);
        group.put(&mut bytes);
        id.put(&mut bytes);
        QueueKey { bytes }
    }

    /// From the value in `Rows` and the recipient.
    pub(super) fn of_row(row: &[u8], id: RecipientId) -> Result<QueueKey, Malformed> {
        if row.len() < MIDDLE {
            return Err(Malformed("queue key"));
        }
        Ok(QueueKey { bytes: [row, &recipient_key(id)].concat() })
    }

    /// From a whole key.
    pub(super) fn of(bytes: &[u8]) -> Result<QueueKey, Malformed> {
        if bytes.len() < MIDDLE + RECIPIENT {
            return Err(Malformed("queue key"));
        }
        Ok(QueueKey { bytes: bytes.to_vec() })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What stands in `Rows`.
    pub(super) fn row(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - RECIPIENT]
    }

    /// The destination, encoded.
    pub(super) fn destination(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - RECIPIENT - MIDDLE]
    }

    /// Whether it is a DSN to a list host.
    pub(super) fn is_dsn(&self) -> bool {
        self.bytes[0] == 1
    }

    pub(super) fn mailing(&self) -> MailingId {
        MailingId(self.number(0))
    }

    pub(super) fn due(&self) -> Tick {
        Tick(self.number(8))
    }

    pub(super) fn id(&self) -> RecipientId {
        let at = self.bytes.len() - 4;
        let index = self.bytes[at..].try_into().expect("four octets");
        RecipientId { batch: QueueId(self.number(24)), index: u32::from_be_bytes(index) }
    }

    fn number(&self, at: usize) -> u64 {
        let at = self.destination().len() + at;
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().expect("eight octets"))
    }

    /// The same recipient, due at another time.
    pub(super) fn due_at(&self, due: Tick) -> QueueKey {
        let mut bytes = self.bytes.clone();
        let at = self.destination().len() + 8;
        bytes[at..at + 8].copy_from_slice(&due.0.to_be_bytes());
        QueueKey { bytes }
    }

    /// The key in `Due` under which it is counted.
    pub(super) fn due_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(8 + self.destination().len());
        (self.due().0 / 1000).put(&mut key);
        key.extend_from_slice(self.destination());
        key
    }
}

/// The first key behind all that begin with `prefix`.
pub(super) fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut key = prefix.to_vec();
    while let Some(last) = key.pop() {
        if last < u8::MAX {
            key.push(last + 1);
            return key;
        }
    }
    // Only octets of 255: our keys begin with a tag or a queue id that never gets there.
    vec![u8::MAX; prefix.len() + 1]
}

/// The destination at the front of a key.
pub(super) fn read_destination(key: &[u8]) -> Result<Destination, Malformed> {
    Destination::take(&mut Input(key))
}

/// What the index knows of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct BatchEntry {
    /// Its newest full record: accept or snapshot.
    pub(in super::super) place: Place,
    /// Its content, here once more so that it can be read alone.
    pub(super) content: ContentHash,
    pub(in super::super) batch: Batch,
}

impl Codec for BatchEntry {
    fn put(&self, out: &mut Vec<u8>) {
        self.place.put(out);
        self.content.put(out);
        self.batch.put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        Ok(BatchEntry { place: Codec::take(input)?, content: Codec::take(input)?, batch: Codec::take(input)? })
    }
}

/// Where a content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Stored {
    /// In a content record.
    Journal(Place),
    /// In a file of its own, so many octets.
    File(u64),
    /// Nowhere: its record was damaged. It comes back when the same content arrives again.
    Lost,
}

/// A content and how many batches need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Held {
    pub(in super::super) stored: Stored,
    pub(in super::super) references: u32,
}

impl Held {
    /// Octets of the journal that it keeps.
    pub(super) fn live_bytes(&self) -> u64 {
        if let Stored::Journal(place) = self.stored { place.length } else { 0 }
    }
}

impl Codec for Held {
    fn put(&self, out: &mut Vec<u8>) {
        match self.stored {
            Stored::Journal(place) => {
                out.push(0);
                place.put(out);
            }
            Stored::File(length) => {
                out.push(1);
                length.put(out);
            }
            Stored::Lost => out.push(2),
        }
        self.references.put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        let stored = match u8::take(input)? {
            0 => Stored::Journal(Codec::take(input)?),
            1 => Stored::File(Codec::take(input)?),
            2 => Stored::Lost,
            _ => return Err(Malformed("content place")),
        };
        Ok(Held { stored, references: Codec::take(input)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_key_holds_what_it_was_made_of() {
        let destination = bytes_of(&Destination::ListHost("lists".into()));
        let id = RecipientId { batch: QueueId(0x0102), index: 77 };
        let key = QueueKey::new(&destination, MailingId(9), Tick(123_456), 5, id);
        assert_eq!((key.mailing(), key.due(), key.id(), key.is_dsn()), (MailingId(9), Tick(123_456), id, true));
        assert_eq!(QueueKey::of_row(key.row(), id), Ok(key.clone()));
        assert_eq!(key.due_at(Tick(1)).due(), Tick(1));
        assert_eq!(read_destination(key.bytes()), Ok(Destination::ListHost("lists".into())));
    }

    #[test]
    fn what_lies_behind_a_prefix_is_greater_than_all_that_begin_with_it() {
        assert_eq!(behind(&[1, 255, 255]), [2]);
        assert!(behind(&[255, 255]) > vec![255, 255, 255 - 1]);
    }
}

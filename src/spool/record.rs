//! The records of the journal.
//!
//! ```text
//! record    mark 8 | version 1 | kind 1 | zero 2 | commit 4 | length 4 | id 8 | crc32c 4 | payload of `length`
//! segment   preamble ("PSTHASTE" | version 4 | mark 8 | crc32c 4), then records, the first of them a header
//! ```
//!
//! A record delimits itself: behind damage the next one is found by its mark, and its checksum (over everything before
//! the checksum, and the payload) says whether it is one. The mark is drawn at random when the spool is made, so nobody
//! outside can put something into a message that would be taken for a record. The commit number counts fsyncs: what
//! bears the newest number may have been torn by a power cut, and `dump` shows what was written together.

use std::sync::Arc;

use jiff::Timestamp;

use super::api::{Fate, Obligation, ObligationKind, Totals};
use super::codec::{Codec, Input, Malformed, put_list, whole};
use super::values::records;
use crate::clock::Tick;
use crate::mail::{Batch, ContentHash, Destination, Recipient, RecipientId};

/// The format that this program writes. It reads this one and refuses newer ones untouched.
pub(super) const VERSION: u8 = 1;

/// Octets of a record before its payload.
pub(super) const HEAD: usize = 32;

/// Octets of a segment before its first record.
pub(super) const PREAMBLE: usize = 24;

const PREAMBLE_MAGIC: &[u8; 8] = b"PSTHASTE";

/// What marks this spool's records.
pub(super) type Mark = [u8; 8];

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// [`Header`].
    Header = 1,
    /// A hash and the dot-stuffed octets that have it.
    Content = 2,
    /// [`Accept`].
    Accept = 3,
    /// [`Outcome`].
    Outcome = 4,
    /// [`Forgive`].
    Forgive = 5,
    /// [`Snapshot`].
    Snapshot = 6,
    /// [`Time`].
    Time = 7,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        use Kind::*;
        [Header, Content, Accept, Outcome, Forgive, Snapshot, Time].into_iter().find(|&kind| kind as u8 == byte)
    }

    /// For `dump` and reports.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Header => "header",
            Kind::Content => "content",
            Kind::Accept => "accept",
            Kind::Outcome => "outcome",
            Kind::Forgive => "forgive",
            Kind::Snapshot => "snapshot",
            Kind::Time => "time",
        }
    }
}

/// What stands before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) version: u8,
    pub(super) kind: u8,
    pub(super) commit: u32,
    pub(super) id: u64,
    length: u32,
    crc: u32,
}

impl Head {
    /// Reads a head, if `bytes` begin with `mark`. Whether it is to be believed, [`Head::matches`] says.
    pub(super) fn read(mark: Mark, bytes: &[u8]) -> Option<Head> {
        let mut input = Input(bytes.get(..HEAD)?);
        if input.array::<8>().ok()? != mark {
            return None;
        }
        let (version, kind) = Codec::take(&mut input).ok()?;
        let zero = u16::take(&mut input).ok()?;
        let ((commit, length), (id, crc)) = Codec::take(&mut input).ok()?;
        (zero == 0).then_some(Head { version, kind, commit, id, length, crc })
    }

    /// Octets of the whole record.
    pub(super) fn total(&self) -> u64 {
        HEAD as u64 + u64::from(self.length)
    }

    /// Whether the checksum fits `record`, head and payload.
    pub(super) fn matches(&self, record: &[u8]) -> bool {
        record.len() as u64 == self.total() && checksum(record) == self.crc
    }

    /// The kind, if this version knows it.
    pub(super) fn kind(&self) -> Option<Kind> {
        if self.version == VERSION { Kind::of(self.kind) } else { None }
    }
}

fn checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..HEAD - 4]), &record[HEAD..])
}

/// Appends a record whose payload `write` appends; answers its length in octets.
pub(super) fn frame(
    out: &mut Vec<u8>,
    mark: Mark,
    commit: u32,
    kind: Kind,
    id: u64,
    write: impl FnOnce(&mut Vec<u8>),
) -> u64 {
    let start = out.len();
    out.extend_from_slice(&mark);
    out.extend_from_slice(&[VERSION, kind as u8, 0, 0]);
    commit.put(out);
    out.extend_from_slice(&[0; 4]);
    id.put(out);
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - start - HEAD).expect("sizes are capped at ingress");
    out[start + 16..start + 20].copy_from_slice(&length.to_be_bytes());
    let crc = checksum(&out[start..]);
    out[start + 28..start + 32].copy_from_slice(&crc.to_be_bytes());
    (out.len() - start) as u64
}

/// The first octets of a segment.
pub(super) fn preamble(mark: Mark) -> [u8; PREAMBLE] {
    let mut out = Vec::with_capacity(PREAMBLE);
    out.extend_from_slice(PREAMBLE_MAGIC);
    u32::from(VERSION).put(&mut out);
    out.extend_from_slice(&mark);
    crc32c::crc32c(&out).put(&mut out);
    out.try_into().expect("8 + 4 + 8 + 4 octets")
}

/// Reads a preamble: version and mark.
pub(super) fn read_preamble(bytes: &[u8]) -> Option<(u32, Mark)> {
    let mut input = Input(bytes.get(..PREAMBLE)?);
    let magic = input.array::<8>().ok()?;
    let version = u32::take(&mut input).ok()?;
    let mark = input.array::<8>().ok()?;
    let crc = u32::take(&mut input).ok()?;
    (&magic == PREAMBLE_MAGIC && crc == crc32c::crc32c(&bytes[..PREAMBLE - 4])).then_some((version, mark))
}

/// A place in the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position {
    /// The segment's number.
    pub(super) segment: u64,
    /// Octets from its start.
    pub(super) offset: u64,
}

impl Position {
    /// This place, `octets` further on.
    pub(super) fn plus(self, octets: u64) -> Position {
        Position { offset: self.offset + octets, ..self }
    }
}

/// A record's place and its length in octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: Position,
    pub(super) length: u64,
}

/// What the spool knows beside its rows: carried at the head of every segment, so that neither the loss of the index nor
/// the removal of old segments forgets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Recipients by fate, ever.
    pub(super) totals: Totals,
    /// The queue id that comes next.
    pub(super) next_id: u64,
    /// The newest time.
    pub(super) time: Time,
}

/// Time as it was journaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Time {
    /// On the spool's time line.
    pub(super) tick: Tick,
    /// The wall clock's, in milliseconds since 1970.
    pub(super) wall: i64,
}

impl Time {
    /// The wall clock's time as a timestamp.
    pub(super) fn timestamp(&self) -> Timestamp {
        Timestamp::from_millisecond(self.wall).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// The first record of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// How far each earlier segment is to be believed. What lies behind was abandoned after a failed write, and whoever
    /// brought it was told so.
    pub(super) ends: Vec<(u64, u64)>,
    /// The standing when the segment was begun.
    pub(super) standing: Standing,
}

/// A batch was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Accept {
    pub(super) batch: Batch,
    pub(super) recipients: Vec<(Recipient, Destination)>,
    /// Obligations that it pays, being the DSN for them.
    pub(super) pays: Vec<(RecipientId, ObligationKind)>,
    /// Octets of the content, if it is a file of its own.
    pub(super) file: Option<u64>,
}

/// Fates were recorded: a [`super::Settlement`] without what concerned nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) at: Tick,
    pub(super) fates: Vec<Settled>,
}

/// One recipient's fate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) id: RecipientId,
    /// It was a DSN to a list host, so it is counted apart.
    pub(super) dsn: bool,
    pub(super) fate: Fate,
}

/// Obligations were dropped without a DSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forgive {
    pub(super) debts: Vec<(RecipientId, ObligationKind)>,
}

/// A batch as it stands: replaces all that was said of it before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) batch: Batch,
    pub(super) rows: Vec<Pending>,
    pub(super) owed: Vec<(u32, Obligation)>,
    /// Octets of the content, if it is a file of its own.
    pub(super) file: Option<u64>,
}

/// A recipient that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) index: u32,
    pub(super) destination: Destination,
    pub(super) state: PendingState,
}

/// What may change of a recipient that waits, beside when it is due; and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PendingState {
    pub(super) due: Tick,
    pub(super) attempts: u32,
    pub(super) delay_reported: bool,
    pub(super) note: Box<str>,
    pub(super) recipient: Arc<Recipient>,
}

records! {
    Position { segment, offset }
    Place { at, length }
    Time { tick, wall }
    Totals {
        accepted, queued, relayed, bounced, expired, cancelled, owed,
        dsn_accepted, dsn_queued, dsn_relayed, dsn_bounced, dsn_expired, dsn_cancelled
    }
    Standing { totals, next_id, time }
    Header { ends, standing }
    Accept { batch, recipients, pays, file }
    Outcome { at, fates }
    Settled { id, dsn, fate }
    Forgive { debts }
    Snapshot { batch, rows, owed, file }
    Pending { index, destination, state }
    PendingState { due, attempts, delay_reported, note, recipient }
}

/// Appends the payload of an [`Accept`] from borrowed parts.
pub(super) fn put_accept(
    out: &mut Vec<u8>,
    batch: &Batch,
    recipients: &[(Recipient, Destination)],
    pays: &[(RecipientId, ObligationKind)],
    file: Option<u64>,
) {
    batch.put(out);
    put_list(out, recipients);
    put_list(out, pays);
    file.put(out);
}

/// Octets of a content record before the content.
pub(super) const CONTENT_AT: u64 = HEAD as u64 + 32;

/// A record's payload, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Header(Header),
    /// The content itself stays where it is.
    Content(ContentHash),
    Accept(Accept),
    Outcome(Outcome),
    Forgive(Forgive),
    Snapshot(Snapshot),
    Time(Time),
}

impl Record {
    /// Reads the payload of a record of this kind.
    pub(super) fn read(kind: Kind, payload: &[u8]) -> Result<Record, Malformed> {
        Ok(match kind {
            Kind::Header => Record::Header(whole(payload)?),
            Kind::Content => Record::Content(ContentHash::take(&mut Input(payload))?),
            Kind::Accept => Record::Accept(whole(payload)?),
            Kind::Outcome => Record::Outcome(whole(payload)?),
            Kind::Forgive => Record::Forgive(whole(payload)?),
            Kind::Snapshot => Record::Snapshot(whole(payload)?),
            Kind::Time => Record::Time(whole(payload)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: Mark = *b"\x01marked\xff";

    fn framed(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, MARK, 3, Kind::Time, 42, |out| out.extend_from_slice(payload));
        out
    }

    #[test]
    fn a_record_is_believed_only_whole_and_unchanged() {
        let record = framed(b"payload");
        let head = Head::read(MARK, &record).expect("a head");
        assert_eq!((head.commit, head.id, head.kind(), head.total()), (3, 42, Some(Kind::Time), record.len() as u64));
        assert!(head.matches(&record));
        for at in 0..record.len() {
            let mut flipped = record.clone();
            flipped[at] ^= 1;
            let believed = Head::read(MARK, &flipped).is_some_and(|head| head.matches(&flipped));
            assert!(!believed, "octet {at} was flipped");
        }
    }

    #[test]
    fn a_preamble_names_version_and_mark() {
        let bytes = preamble(MARK);
        assert_eq!(read_preamble(&bytes), Some((1, MARK)));
        for at in 0..bytes.len() {
            let mut flipped = bytes;
            flipped[at] ^= 4;
            assert_eq!(read_preamble(&flipped), None, "octet {at} was flipped");
        }
    }

    proptest! {
        #[test]
        fn hostile_payloads_are_refused_without_a_panic(kind in 1u8..8, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::read(Kind::of(kind).expect("in range"), &bytes);
            let _ = Head::read(MARK, &bytes);
            let _ = read_preamble(&bytes);
        }
    }
}

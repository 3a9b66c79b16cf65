//! What arrived: one small entry per (recipient, message), so that a million deliveries cost some 30 MB, and every
//! duplicate, every damaged content and every stray is seen.
//!
//! A duplicate is *explained* where nobody can avoid it: the relay was killed while the first copy was in flight, or a
//! receiver took the message and cut the connection before its 250 (RFC 1047). Everything else is a fault.

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Width of a bucket of the timeline of deliveries.
const BUCKET: Duration = Duration::from_millis(10);
/// Buckets of the timeline: an hour. What comes later counts in the last.
const BUCKETS_MAX: usize = 360_000;
/// How long before a kill a 250 may have left us and the outcome still not be on the relay's disk: the relay's commit
/// window of 20 ms, and patience with a busy machine.
const IN_FLIGHT: Duration = Duration::from_secs(1);

/// Octets of a message with its trace taken off, as a number: CRC-32C and length. Not proof against an adversary;
/// proof against a relay that loses, adds or changes octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(u64);

impl Digest {
    /// The digest of a content as it stands on the wire (dot-stuffed, without the final dot), our trace fields removed.
    pub fn of(content: &[u8]) -> Digest {
        let content = without_trace(content);
        Digest(u64::from(crc32c::crc32c(content)) << 32 | (content.len() as u64 & 0xffff_ffff))
    }

    /// The digest as a number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Names a message: by its Message-ID, or by its content where it has none.
pub(super) fn message_key(content: &[u8], digest: Digest) -> u64 {
    message_id(content).map_or(digest.0, |id| hash_of(&[id]))
}

/// Names a mailbox; the domain's case does not matter.
pub(super) fn recipient_key(mailbox: &str) -> u64 {
    let (local, domain) = mailbox.rsplit_once('@').unwrap_or((mailbox, ""));
    if domain.bytes().any(|b| b.is_ascii_uppercase()) {
        return hash_of(&[local.as_bytes(), domain.to_ascii_lowercase().as_bytes()]);
    }
    hash_of(&[local.as_bytes(), domain.as_bytes()])
}

pub(super) fn hash_of(parts: &[&[u8]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.iter().for_each(|part| part.hash(&mut hasher));
    hasher.finish()
}

/// The content below what a relay adds on top: DKIM-Signature fields and one Received field, continuation lines
/// included. A Received field of the list host's own, below ours, is content.
pub fn without_trace(content: &[u8]) -> &[u8] {
    let mut rest = content;
    while starts_with_field(rest, b"dkim-signature:") {
        rest = &rest[field_length(rest)..];
    }
    if starts_with_field(rest, b"received:") {
        rest = &rest[field_length(rest)..];
    }
    rest
}

fn starts_with_field(content: &[u8], name: &[u8]) -> bool {
    content.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
}

/// Length of the header field at the start: its line and the continuation lines that begin with white space.
fn field_length(content: &[u8]) -> usize {
    let mut end = 0;
    loop {
        end += memchr::memchr(b'\n', &content[end..]).map_or(content.len() - end, |at| at + 1);
        if !matches!(content.get(end), Some(b' ' | b'\t')) {
            return end;
        }
    }
}

fn message_id(content: &[u8]) -> Option<&[u8]> {
    let mut rest = content;
    while !rest.is_empty() && !rest.starts_with(b"\r\n") {
        let length = field_length(rest);
        if starts_with_field(rest, b"message-id:") {
            return Some(rest[b"message-id:".len()..length].trim_ascii());
        }
        rest = &rest[length..];
    }
    None
}

/// One accepted transaction, as tests see it when the internet keeps contents.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// The exchanger that took it.
    pub host: Arc<str>,
    /// The text between the angle brackets of MAIL.
    pub reverse_path: String,
    /// What followed the reverse-path on the MAIL line.
    pub mail_parameters: String,
    /// The mailboxes, in the order of RCPT.
    pub recipients: Vec<String>,
    /// What followed each forward-path, in the same order.
    pub recipient_parameters: Vec<String>,
    /// The content as it was sent, without dot-stuffing and without the final dot.
    pub content: Vec<u8>,
    /// Whether it came over TLS.
    pub tls: bool,
    /// When.
    pub at: Instant,
}

/// A transaction as the session hands it over.
pub(super) struct Arrival<'a> {
    /// [`recipient_key`] of each.
    pub(super) recipients: &'a [u64],
    /// As on the wire, without the final dot.
    pub(super) content: &'a [u8],
    /// When the connection was opened.
    pub(super) opened: Instant,
    /// Now.
    pub(super) at: Instant,
    /// When the 250 leaves.
    pub(super) answered: Instant,
    /// Whether the client will not hear of it.
    pub(super) reply_lost: bool,
}

/// Totals so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// (Recipient, message) pairs that arrived at least once.
    pub delivered: u64,
    /// Further copies that nothing explains.
    pub duplicates: u64,
    /// Further copies of what was in flight when the relay was killed or when a receiver cut the connection.
    pub explained: u64,
    /// Transactions whose content was not what the list host sent.
    pub damaged: u64,
    /// Accepted transactions.
    pub transactions: u64,
    /// Octets of content in accepted transactions.
    pub content_bytes: u64,
    /// The same if each recipient had had a transaction of its own.
    pub content_bytes_uncoalesced: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// When the newest copy's 250 left, in milliseconds since the start.
    answered: u32,
    /// When its connection was opened.
    opened: u32,
    count: u8,
    reply_lost: bool,
}

/// Keys are hashes already.
#[derive(Default)]
struct Ready(u64);

impl Hasher for Ready {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    start: Instant,
    seen: HashMap<u64, Seen, BuildHasherDefault<Ready>>,
    messages: HashSet<u64>,
    expected: HashMap<u64, Digest>,
    /// Recipients that the list host sent again because a reply of the relay was lost.
    excused: HashSet<u64>,
    totals: Totals,
    timeline: Vec<u32>,
    kills: Vec<u32>,
}

impl Ledger {
    pub(super) fn new(start: Instant) -> Ledger {
        Ledger {
            start,
            seen: HashMap::default(),
            messages: HashSet::new(),
            expected: HashMap::new(),
            excused: HashSet::new(),
            totals: Totals::default(),
            timeline: Vec::new(),
            kills: Vec::new(),
        }
    }

    /// From now on, the message of this content must arrive as it is.
    pub(super) fn expect(&mut self, content: &[u8]) {
        let digest = Digest::of(content);
        self.expected.insert(message_key(content, digest), digest);
    }

    /// The list host sends to this mailbox again, without knowing whether the relay has the message already.
    pub(super) fn excuse(&mut self, mailbox: &str) {
        self.excused.insert(recipient_key(mailbox));
    }

    /// The relay dies now.
    pub(super) fn killed(&mut self, at: Instant) {
        let at = self.milliseconds(at);
        self.kills.push(at);
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Copies that came to `mailbox`, over all messages.
    pub(super) fn copies(&self, mailbox: &str) -> u32 {
        let recipient = recipient_key(mailbox);
        let copies = |message: &u64| self.seen.get(&pair(recipient, *message)).map_or(0, |seen| u32::from(seen.count));
        self.messages.iter().map(copies).sum()
    }

    /// The moment by which `share` (0 to 1) of all deliveries had come, from the start.
    pub(super) fn time_to(&self, share: f64) -> Option<Duration> {
        let wanted = (share * self.totals.delivered as f64).ceil().max(1.0) as u64;
        let mut sum = 0;
        let bucket = self.timeline.iter().position(|count| {
            sum += u64::from(*count);
            sum >= wanted
        })?;
        Some(BUCKET * u32::try_from(bucket + 1).unwrap_or(u32::MAX))
    }

    pub(super) fn arrive(&mut self, arrival: &Arrival<'_>) {
        let digest = Digest::of(arrival.content);
        let message = message_key(arrival.content, digest);
        if self.expected.get(&message).is_some_and(|expected| *expected != digest) {
            self.totals.damaged += 1;
        }
        self.messages.insert(message);
        let length = arrival.content.len() as u64;
        self.totals.transactions += 1;
        self.totals.content_bytes += length;
        self.totals.content_bytes_uncoalesced += length * arrival.recipients.len() as u64;
        arrival.recipients.iter().for_each(|recipient| self.count(*recipient, message, arrival));
    }

    fn count(&mut self, recipient: u64, message: u64, arrival: &Arrival<'_>) {
        let (answered, opened) = (self.milliseconds(arrival.answered), self.milliseconds(arrival.opened));
        let at = self.milliseconds(arrival.at);
        match self.seen.entry(pair(recipient, message)) {
            Entry::Vacant(vacant) => {
                vacant.insert(Seen { answered, opened, count: 1, reply_lost: arrival.reply_lost });
                self.totals.delivered += 1;
                tick(&mut self.timeline, at);
            }
            Entry::Occupied(mut occupied) => {
                let seen = occupied.get_mut();
                let excused = seen.reply_lost || self.excused.contains(&recipient);
                let explained = excused || was_in_flight(*seen, &self.kills);
                *seen = Seen { answered, opened, count: seen.count.saturating_add(1), reply_lost: arrival.reply_lost };
                *if explained { &mut self.totals.explained } else { &mut self.totals.duplicates } += 1;
            }
        }
    }

    fn milliseconds(&self, at: Instant) -> u32 {
        u32::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(u32::MAX)
    }
}

/// Whether the newest copy may have been taken without the relay having written that down: its connection was open
/// when the relay was killed, and the copy came not long before (or after: what lay in the socket).
fn was_in_flight(seen: Seen, kills: &[u32]) -> bool {
    let before = IN_FLIGHT.as_millis() as u32;
    kills.iter().any(|kill| seen.opened <= *kill && seen.answered.saturating_add(before) >= *kill)
}

fn tick(timeline: &mut Vec<u32>, at: u32) {
    let bucket = (at as usize / BUCKET.as_millis() as usize).min(BUCKETS_MAX - 1);
    if timeline.len() <= bucket {
        timeline.resize(bucket + 1, 0);
    }
    timeline[bucket] += 1;
}

fn pair(recipient: u64, message: u64) -> u64 {
    // An odd factor keeps (a, b) apart from (b, a); both halves are good hashes already.
    recipient.rotate_left(31).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ message
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &[u8] = b"Message-ID: <1@lists.test>\r\nSubject: x\r\n\r\nHello\r\n";

    fn relayed(content: &[u8]) -> Vec<u8> {
        [b"Received: from lists.test\r\n\tby relay.test; date\r\n", content].concat()
    }

    fn arrive(ledger: &mut Ledger, content: &[u8], mailbox: &str, milliseconds: u64) {
        let at = ledger.start + Duration::from_millis(milliseconds);
        let recipients = [recipient_key(mailbox)];
        let opened = ledger.start;
        ledger.arrive(&Arrival { recipients: &recipients, content, opened, at, answered: at, reply_lost: false });
    }

    #[test]
    fn a_relayed_message_has_the_digest_of_the_original() {
        assert_eq!(Digest::of(&relayed(CONTENT)), Digest::of(CONTENT));
        let signed = [b"DKIM-Signature: v=1;\r\n b=x\r\n", &relayed(CONTENT)[..]].concat();
        assert_eq!(Digest::of(&signed), Digest::of(CONTENT));
        assert_ne!(Digest::of(b"Subject: y\r\n\r\n"), Digest::of(b"Subject: x\r\n\r\n"));
    }

    #[test]
    fn a_second_copy_is_a_duplicate_and_another_message_is_not() {
        let mut ledger = Ledger::new(Instant::now());
        arrive(&mut ledger, CONTENT, "a@x.test", 10);
        arrive(&mut ledger, &relayed(CONTENT), "a@X.test", 20);
        arrive(&mut ledger, b"Message-ID: <2@l>\r\n\r\n", "a@x.test", 30);
        assert_eq!((ledger.totals().delivered, ledger.totals().duplicates), (2, 1));
        assert_eq!(ledger.copies("a@x.test"), 3);
    }

    #[test]
    fn a_copy_of_what_was_in_flight_at_a_kill_is_explained() {
        let mut ledger = Ledger::new(Instant::now());
        arrive(&mut ledger, CONTENT, "early@x.test", 1_000);
        arrive(&mut ledger, CONTENT, "flying@x.test", 4_900);
        ledger.killed(ledger.start + Duration::from_millis(5_000));
        arrive(&mut ledger, CONTENT, "flying@x.test", 7_000);
        arrive(&mut ledger, CONTENT, "early@x.test", 7_000);
        assert_eq!((ledger.totals().explained, ledger.totals().duplicates), (1, 1));
    }

    #[test]
    fn content_that_differs_from_what_was_sent_is_damaged() {
        let mut ledger = Ledger::new(Instant::now());
        ledger.expect(CONTENT);
        arrive(&mut ledger, &relayed(CONTENT), "a@x.test", 10);
        assert_eq!(ledger.totals().damaged, 0);
        arrive(&mut ledger, b"Message-ID: <1@lists.test>\r\nSubject: x\r\n\r\nHell\r\n", "b@x.test", 10);
        assert_eq!(ledger.totals().damaged, 1);
    }

    #[test]
    fn times_to_a_share_come_from_the_timeline() {
        let mut ledger = Ledger::new(Instant::now());
        for i in 0..10 {
            arrive(&mut ledger, CONTENT, &format!("u{i}@x.test"), i * 100);
        }
        assert_eq!(ledger.time_to(0.5), Some(Duration::from_millis(410)));
        assert_eq!(ledger.time_to(1.0), Some(Duration::from_millis(910)));
    }
}

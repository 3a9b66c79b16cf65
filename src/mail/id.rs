//! Identifiers: small, ordered, and written so that an operator can copy them from a log line.

use std::fmt;
use std::str::FromStr;

/// Crockford's base-32 alphabet: no letter that reads like a digit, so a queue id survives being read out on the phone.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Writes `value` in base 32, most significant digit first, padded to `width` digits.
fn write_base32(f: &mut fmt::Formatter<'_>, value: u64, width: usize) -> fmt::Result {
    let digits = (1..=13).find(|&n| n == 13 || value >> (5 * n) == 0).unwrap_or(13).max(width);
    let text: String =
        (0..digits).rev().map(|i| char::from(ALPHABET[((value as u128 >> (5 * i)) & 31) as usize])).collect();
    f.write_str(&text)
}

fn parse_base32(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > 13 {
        return None;
    }
    let value = text.bytes().try_fold(0u128, |value, byte| {
        let digit = ALPHABET.iter().position(|&a| a == byte.to_ascii_uppercase())?;
        Some(value << 5 | digit as u128)
    })?;
    u64::try_from(value).ok()
}

/// Names one batch: one accepted mail transaction (MAIL, RCPTs, DATA). Never a "message id", which RFC 5322 owns.
/// Ids grow in the order of acceptance and are never used twice in the life of a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u64);

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base32(f, self.0, 8)
    }
}

impl FromStr for QueueId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_base32(text).map(QueueId).ok_or("a queue id is 8 to 13 base-32 digits, for example 0000A2ZK")
    }
}

/// One recipient: its batch and its place among the batch's recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecipientId {
    /// The batch that brought it.
    pub batch: QueueId,
    /// Its place in the batch, from 0, in the order of the RCPT commands.
    pub index: u32,
}

impl fmt::Display for RecipientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.batch, self.index)
    }
}

/// Names one attempt: one try for one content, one reverse-path, one destination and N recipients. Stands in the
/// Received line that we compose, so that a receiver's postmaster can name the attempt to us. Unique while the
/// process runs; the upper bits come from the start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base32(f, self.0, 8)
    }
}

/// Names one mailing: everything of one broadcast of one list host (`crate::mailing` says how it is recognised).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MailingId(pub u64);

impl fmt::Display for MailingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base32(f, self.0, 13)
    }
}

/// SHA-256 of a message content as it is stored: dot-stuffed, without our own Received line. Content is addressed by
/// it, stored once, and checked against it at every read from disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({:02x}{:02x}{:02x}{:02x}..)", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_id_reads_back_as_it_was_written() {
        for value in [0, 1, 31, 32, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
            let id = QueueId(value);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!(QueueId(0).to_string(), "00000000");
    }

    #[test]
    fn what_is_no_queue_id_is_refused() {
        for text in ["", "U", "0000000000000000", "zzzzzzzzzzzzz", "12 34"] {
            assert!(text.parse::<QueueId>().is_err(), "{text:?}");
        }
    }
}

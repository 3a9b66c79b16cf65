//! Lines as they go out: CRLF, at most 998 octets (RFC 5322 section 2.1.1), nothing in them that a peer chose freely.

use jiff::Timestamp;
use memchr::memchr_iter;

/// Octets of a peer's reply that a report repeats.
pub(super) const PEER_TEXT_BYTES: usize = 512;

/// Octets in a line without its CRLF (RFC 5322 section 2.1.1).
pub(super) const LINE_BYTES: usize = 998;

/// Column at which our own lines are folded.
const FOLD_AT: usize = 76;

/// Text that somebody else chose, made fit for a line of ours: printable ASCII, capped. A control character becomes a
/// space, so that no reply can begin a field or a line (CVE-2020-8794); an octet beyond ASCII becomes a `?`.
pub(super) fn printable(text: &str) -> String {
    let clean = |c: char| match c {
        ' '..='~' => c,
        c if c.is_control() => ' ',
        _ => '?',
    };
    text.chars().map(clean).take(PEER_TEXT_BYTES).collect()
}

/// An address as somebody else wrote it, on one line: its own characters, controls replaced.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A moment as RFC 5322 section 3.3 writes it, in UTC.
pub(super) fn date(at: Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

/// Appends `words`, the first line after `first`, further lines after `indent`, folded at [`FOLD_AT`]. A word longer
/// than that stands alone on its line; runs of blanks shrink to one.
pub(super) fn push_folded(out: &mut String, first: &str, indent: &str, words: &str) {
    out.push_str(first);
    let mut column = first.len();
    let mut at_start = true;
    for word in words.split_ascii_whitespace() {
        if !at_start && column + 1 + word.len() > FOLD_AT {
            out.push_str("\r\n");
            out.push_str(indent);
            column = indent.len();
        } else if !at_start {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
        at_start = false;
    }
    out.push_str("\r\n");
}

/// Doubles the dot at the start of every line that begins with one (RFC 5321 section 4.5.2).
pub(super) fn dot_stuffed(plain: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(plain.len() + 16);
    let mut start = 0;
    let ends = memchr_iter(b'\n', plain).map(|at| at + 1).chain([plain.len()]);
    for end in ends {
        if plain.get(start) == Some(&b'.') {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(&plain[start..end]);
        start = end;
    }
    stuffed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_cannot_begin_a_line_of_ours() {
        assert_eq!(printable("no\r\nBcc: x\t\u{1b}[31m\u{85}\u{2028}ü"), "no  Bcc: x  [31m ??");
    }

    #[test]
    fn a_long_reply_is_cut() {
        assert_eq!(printable(&"x".repeat(10_000)).len(), PEER_TEXT_BYTES);
    }

    #[test]
    fn long_text_is_folded_between_words() {
        let mut out = String::new();
        push_folded(&mut out, "Diagnostic-Code: ", "    ", &"word ".repeat(100));
        assert!(out.lines().all(|line| line.len() <= FOLD_AT), "{out}");
        assert!(out.lines().skip(1).all(|line| line.starts_with("    word")), "{out}");
        assert_eq!(out.matches("word").count(), 100);
    }

    #[test]
    fn every_line_that_begins_with_a_dot_is_stuffed() {
        assert_eq!(dot_stuffed(b".\r\n..a\r\nb.\r\n"), b"..\r\n...a\r\nb.\r\n");
        assert_eq!(dot_stuffed(b""), b"");
    }

    #[test]
    fn a_date_reads_as_the_rfc_writes_it() {
        assert_eq!(date(Timestamp::UNIX_EPOCH), "Thu, 01 Jan 1970 00:00:00 +0000");
    }
}

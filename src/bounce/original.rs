//! Part three: what of the original goes back with the report (RFC 3461 section 4.3, RFC 6522 section 3).
//!
//! The octets are returned as they came. Two exceptions, because a report must itself be mail: a header line over 998
//! octets is folded where it has to be, and content with a bare CR or LF (which only a damaged spool could hold) is not
//! returned at all.

use memchr::memchr;

use super::wire::LINE_BYTES;

/// Most octets of a header section that are returned. A longer one ends after the last line that fits.
const HEADER_BYTES: usize = 64 * 1024;

/// How much of the original a report carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Returned {
    /// Nothing: the content could not be read, or is no mail.
    Nothing,
    /// The header section.
    Headers,
    /// The whole message.
    Message,
}

/// The part to return, unstuffed. `full_bytes` is the most that a whole message may have; `None` asks for the header
/// section.
pub(super) fn returned(stuffed: Option<&[u8]>, full_bytes: Option<usize>) -> (Returned, Vec<u8>) {
    let Some(stuffed) = stuffed else { return (Returned::Nothing, Vec::new()) };
    if let Some(message) = full_bytes.and_then(|most| message(stuffed, most)) {
        return (Returned::Message, message);
    }
    match header_section(stuffed) {
        Some(headers) => (Returned::Headers, headers),
        None => (Returned::Nothing, Vec::new()),
    }
}

/// The whole message, if it is not too long and has no line that a report could not carry.
fn message(stuffed: &[u8], most: usize) -> Option<Vec<u8>> {
    if stuffed.is_empty() || stuffed.len() > most {
        return None;
    }
    let mut out = Vec::with_capacity(stuffed.len());
    for line in Lines(stuffed) {
        let line = line.ok().filter(|line| line.len() <= LINE_BYTES)?;
        push_line(&mut out, line);
    }
    Some(out)
}

/// The header section without the empty line that ends it.
fn header_section(stuffed: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for line in Lines(stuffed) {
        let line = line.ok()?;
        if line.is_empty() || out.len() + line.len() > HEADER_BYTES {
            break;
        }
        push_folded_line(&mut out, line);
    }
    (!out.is_empty()).then_some(out)
}

fn push_line(out: &mut Vec<u8>, line: &[u8]) {
    out.extend_from_slice(line);
    out.extend_from_slice(b"\r\n");
}

/// Appends a line, cut into continuation lines if it is too long; never inside a UTF-8 sequence.
fn push_folded_line(out: &mut Vec<u8>, mut line: &[u8]) {
    while line.len() > LINE_BYTES {
        // A continuation line gets a space in front, hence one octet less for everybody.
        let longest = LINE_BYTES - 1;
        let at = (longest - 3..=longest).rev().find(|&at| line[at] & 0xC0 != 0x80).unwrap_or(longest);
        push_line(out, &line[..at]);
        out.push(b' ');
        line = &line[at..];
    }
    push_line(out, line);
}

/// The content holds a CR or LF that is not part of a CRLF, or does not end in one.
struct Damaged;

/// The lines of dot-stuffed content, without CRLF and stuffing.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some(end) = memchr(b'\n', self.0) else {
            self.0 = &[];
            return Some(Err(Damaged));
        };
        let (line, rest) = self.0.split_at(end + 1);
        self.0 = rest;
        let Some(line) = line.strip_suffix(b"\r\n").filter(|line| memchr(b'\r', line).is_none()) else {
            return Some(Err(Damaged));
        };
        Some(Ok(line.strip_prefix(b".").unwrap_or(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIL: &[u8] = b"Subject: x\r\n..dot: y\r\n\r\n..body\r\n";

    #[test]
    fn headers_come_back_without_stuffing_and_without_body() {
        assert_eq!(returned(Some(MAIL), None), (Returned::Headers, b"Subject: x\r\n.dot: y\r\n".to_vec()));
    }

    #[test]
    fn a_whole_message_comes_back_byte_for_byte() {
        let (what, bytes) = returned(Some(MAIL), Some(1000));
        assert_eq!(what, Returned::Message);
        assert_eq!(bytes, b"Subject: x\r\n.dot: y\r\n\r\n.body\r\n");
    }

    #[test]
    fn a_message_that_is_too_long_comes_back_as_headers() {
        assert_eq!(returned(Some(MAIL), Some(10)).0, Returned::Headers);
    }

    #[test]
    fn a_message_with_an_overlong_line_comes_back_as_headers() {
        let mail = [MAIL, &[b'x'; 999], b"\r\n"].concat();
        assert_eq!(returned(Some(&mail), Some(10_000)).0, Returned::Headers);
    }

    #[test]
    fn an_overlong_header_line_is_folded_and_keeps_every_character() {
        let mail = format!("References: {}\r\n\r\n", "ü<a@b> ".repeat(1000));
        let (what, bytes) = returned(Some(mail.as_bytes()), None);
        let text = String::from_utf8(bytes).expect("no character was cut");
        assert_eq!(what, Returned::Headers);
        assert!(text.split("\r\n").all(|line| line.len() <= LINE_BYTES));
        assert_eq!(text.replace("\r\n ", ""), mail.trim_end_matches("\r\n").to_owned() + "\r\n");
    }

    #[test]
    fn a_boundless_header_section_is_cut_after_a_line() {
        let mail = "X-Filler: 0123456789\r\n".repeat(100_000);
        let (_, bytes) = returned(Some(mail.as_bytes()), None);
        assert!(bytes.len() <= HEADER_BYTES + 2 && bytes.ends_with(b"789\r\n"));
    }

    #[test]
    fn damaged_content_is_not_returned() {
        for bad in [&b"Subject: x\nBcc: y\r\n\r\n"[..], b"Subject: \rx\r\n\r\n", b"Subject: x", b""] {
            assert_eq!(returned(Some(bad), Some(1000)).0, Returned::Nothing, "{bad:?}");
        }
        assert_eq!(returned(None, None).0, Returned::Nothing);
    }

    #[test]
    fn a_message_without_header_section_has_none_to_return() {
        assert_eq!(returned(Some(b"\r\nbody\r\n"), None).0, Returned::Nothing);
        assert_eq!(returned(Some(b"\r\nbody\r\n"), Some(1000)).0, Returned::Message);
    }
}

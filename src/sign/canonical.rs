//! The relaxed canonicalisations (RFC 6376 sections 3.4.2 and 3.4.4): what is hashed is not what is sent, so that blanks
//! which a relay changes on the way break no signature.

use aws_lc_rs::digest::{Context, Digest, SHA256};
use memchr::memmem;

use crate::mail::header::Field;

/// Canonical octets that are gathered before they are hashed.
const CHUNK: usize = 16 << 10;

/// Appends a header field in its relaxed form, without a line end.
pub(super) fn push_field(out: &mut Vec<u8>, name: &str, body: &[u8]) {
    out.extend(name.bytes().map(|octet| octet.to_ascii_lowercase()));
    out.push(b':');
    let start = out.len();
    let unfolded = body.iter().copied().filter(|octet| !matches!(octet, b'\r' | b'\n'));
    push_collapsed(out, unfolded);
    if out.get(start) == Some(&b' ') {
        out.remove(start);
    }
}

/// [`push_field`] for a field of a message, with its line end.
pub(super) fn push_line(out: &mut Vec<u8>, name: &str, field: &Field<'_>) {
    push_field(out, name, field.body);
    out.extend_from_slice(b"\r\n");
}

/// Appends octets with each run of blanks as one space, and none at the end.
fn push_collapsed(out: &mut Vec<u8>, octets: impl Iterator<Item = u8>) {
    let mut blank = false;
    for octet in octets {
        if matches!(octet, b' ' | b'\t') {
            blank = true;
            continue;
        }
        if blank {
            out.push(b' ');
        }
        blank = false;
        out.push(octet);
    }
}

/// The hash of a relaxed body. `stuffed` is the body as it goes over the wire, with a dot before each line that begins
/// with one (RFC 5321 section 4.5.2); the receiver, and so the hash, sees it without.
pub(super) fn body_hash(stuffed: &[u8]) -> Digest {
    let mut hash = Context::new(&SHA256);
    let mut out = Vec::with_capacity(CHUNK + 1024);
    let (mut rest, mut empty_lines) = (stuffed, 0);
    let line_end = memmem::Finder::new(b"\r\n");
    while !rest.is_empty() {
        let (line, after) = match line_end.find(rest) {
            Some(at) => (&rest[..at], &rest[at + 2..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = after;
        let line = line.strip_prefix(b".").unwrap_or(line);
        if line.iter().all(|octet| matches!(octet, b' ' | b'\t')) {
            empty_lines += 1;
            continue;
        }
        push_empty_lines(&mut out, &mut hash, std::mem::take(&mut empty_lines));
        push_collapsed(&mut out, line.iter().copied());
        out.extend_from_slice(b"\r\n");
        drain(&mut out, &mut hash);
    }
    hash.update(&out);
    hash.finish()
}

/// Empty lines count once something follows them: those at the end of the body are left out.
fn push_empty_lines(out: &mut Vec<u8>, hash: &mut Context, count: usize) {
    for _ in 0..count {
        out.extend_from_slice(b"\r\n");
        drain(out, hash);
    }
}

fn drain(out: &mut Vec<u8>, hash: &mut Context) {
    if out.len() >= CHUNK {
        hash.update(out);
        out.clear();
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::digest;

    use super::*;
    use crate::mail::header::fields;

    fn assert_body(stuffed: &[u8], canonical: &[u8]) {
        let expected = digest(&SHA256, canonical);
        assert_eq!(body_hash(stuffed).as_ref(), expected.as_ref(), "{:?}", String::from_utf8_lossy(stuffed));
    }

    #[test]
    fn the_example_of_rfc_6376_section_3_4_5_comes_out_as_written_there() {
        let header = b"A: X\r\nB : Y\t\r\n\tZ  \r\n\r\n";
        let mut out = Vec::new();
        for (field, name) in fields(header).zip(["A", "B"]) {
            push_line(&mut out, name, &field);
        }
        assert_eq!(out, b"a:X\r\nb:Y Z\r\n");
        assert_body(b" C \r\nD \t E\r\n\r\n\r\n", b" C\r\nD E\r\n");
    }

    #[test]
    fn a_body_of_nothing_or_of_empty_lines_hashes_as_empty() {
        for body in [&b""[..], b"\r\n", b"\r\n\r\n\r\n", b"  \r\n\t\r\n"] {
            assert_body(body, b"");
        }
    }

    #[test]
    fn a_stuffed_dot_is_not_part_of_the_message() {
        assert_body(b"..\r\n.. x\r\n...y\r\n", b".\r\n. x\r\n..y\r\n");
    }

    #[test]
    fn a_missing_line_end_is_added() {
        assert_body(b"x", b"x\r\n");
    }

    #[test]
    fn empty_lines_between_text_stay_however_many() {
        let lines = b"\r\n".repeat(20_000);
        assert_body(&[b"a\r\n", &lines[..], b"b\r\n", &lines[..]].concat(), &[b"a\r\n", &lines[..], b"b\r\n"].concat());
    }

    #[test]
    fn eight_bit_octets_and_a_lone_cr_pass_unchanged() {
        assert_body(b"\xfc\x00 \rx\r\n", b"\xfc\x00 \rx\r\n");
    }

    #[test]
    fn a_field_of_blanks_is_empty() {
        let mut out = Vec::new();
        push_field(&mut out, "Cc", b" \r\n\t ");
        assert_eq!(out, b"cc:");
    }
}

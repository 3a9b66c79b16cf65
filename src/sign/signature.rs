//! One DKIM-Signature field (RFC 6376 section 3.5): put together, hashed, signed, folded.

use aws_lc_rs::digest::Digest;
use aws_lc_rs::error::Unspecified;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use memchr::memmem;

use super::canonical;
use super::options::SigningKey;
use crate::mail::header::{Field, fields};

/// The fields that are signed where they are present (RFC 6376 section 5.4.1, and RFC 8058 section 4 for List-Unsubscribe and
/// List-Unsubscribe-Post; Feedback-ID because Gmail counts only signed ones).
const SIGNED: [&str; 21] = [
    "From",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Message-ID",
    "Reply-To",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "List-Id",
    "List-Help",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "List-Subscribe",
    "List-Post",
    "List-Owner",
    "List-Archive",
    "Feedback-ID",
];

/// Most fields of one name that are signed, from the bottom up, so that h= stays of a size that receivers take.
const INSTANCES_MAX: usize = 16;

/// Where a line of h= or b= is folded.
const LINE: usize = 72;

/// A message, hashed: what is the same for all its signatures.
pub(super) struct Hashed {
    /// The h= tag, folded.
    names: String,
    /// The signed fields in relaxed form.
    header: Vec<u8>,
    body: Digest,
}

impl Hashed {
    /// Reads a content as it is stored: dot-stuffed.
    pub(super) fn new(content: &[u8]) -> Hashed {
        let present: Vec<Field<'_>> = fields(content).collect();
        let (mut names, mut header) = (Vec::with_capacity(SIGNED.len()), Vec::with_capacity(2048));
        for name in SIGNED {
            for field in present.iter().rev().filter(|field| field.is(name)).take(INSTANCES_MAX) {
                names.push(name);
                canonical::push_line(&mut header, name, field);
            }
        }
        // Once more than it is there: a second From added on the way breaks the signature (RFC 6376 section 8.15).
        names.push("From");
        Hashed { names: fold(&names.join(":"), Some(':')), header, body: canonical::body_hash(body(content)) }
    }

    /// The field that signs the message, with its line end.
    ///
    /// # Errors
    /// If the cryptography fails, for lack of memory or of randomness.
    pub(super) fn sign(&self, key: &SigningKey, at: Timestamp) -> Result<String, Unspecified> {
        let body = format!(
            " v=1; a={}; c=relaxed/relaxed; d={};\r\n\ts={}; t={};\r\n\th={};\r\n\tbh={};\r\n\tb=",
            key.private.algorithm(),
            key.domain.as_str(),
            key.selector,
            at.as_second(),
            self.names,
            STANDARD.encode(self.body),
        );
        let mut signed = self.header.clone();
        canonical::push_field(&mut signed, "DKIM-Signature", body.as_bytes());
        let signature = STANDARD.encode(key.private.sign(&signed)?);
        Ok(format!("DKIM-Signature:{body}{}\r\n", fold(&signature, None)))
    }
}

/// What follows the first empty line, still dot-stuffed.
fn body(content: &[u8]) -> &[u8] {
    if let Some(body) = content.strip_prefix(b"\r\n") {
        return body;
    }
    memmem::find(content, b"\r\n\r\n").map_or(&[], |end| &content[end + 4..])
}

/// Breaks a text into lines, after any character or only after `separator`: blanks are allowed in h= and b= there.
fn fold(text: &str, separator: Option<char>) -> String {
    let mut folded = String::with_capacity(text.len() + text.len() / 20);
    let mut width = 0;
    for piece in text.split_inclusive(|c| separator.is_none_or(|separator| c == separator)) {
        if width + piece.len() > LINE {
            folded.push_str("\r\n\t");
            width = 0;
        }
        folded.push_str(piece);
        width += piece.len();
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    fn h(content: &str) -> String {
        Hashed::new(content.as_bytes()).names.replace("\r\n\t", "")
    }

    #[test]
    fn from_is_signed_once_more_than_it_is_there_and_others_as_often_as_they_are() {
        let content = "To: b@x.example\r\nSubject: x\r\nfrom: a@x.example\r\nX-Other: y\r\n\
                       List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nList-Unsubscribe: <https://x.example/>\r\n\
                       To: c@x.example\r\n\r\nCc: body@x.example\r\n";
        assert_eq!(h(content), "From:To:To:Subject:List-Unsubscribe:List-Unsubscribe-Post:From");
    }

    #[test]
    fn several_fields_of_a_name_are_hashed_from_the_bottom_up() {
        let hashed = Hashed::new(b"To: b@x.example\r\nTo: c@x.example\r\n\r\n");
        assert_eq!(hashed.header, b"to:c@x.example\r\nto:b@x.example\r\n");
    }

    #[test]
    fn the_number_of_signed_fields_is_bounded() {
        let names = h(&("To: x\r\n".repeat(10_000) + "From: a@x.example\r\n\r\n"));
        assert_eq!(names.matches("To").count(), INSTANCES_MAX);
    }

    #[test]
    fn no_line_is_long_and_none_begins_with_a_dot_or_a_letter_but_the_first() {
        let content: String = SIGNED.iter().map(|name| format!("{name}: <a@x.example>\r\n")).collect();
        let key = samples::signing_key("x.example", samples::rsa());
        let signature = Hashed::new(content.as_bytes()).sign(&key, Timestamp::UNIX_EPOCH).expect("signed");
        let lines: Vec<&str> = signature.strip_suffix("\r\n").expect("a line end").split("\r\n").collect();
        assert!(lines.len() > 8 && lines.iter().all(|line| line.len() <= 78), "{signature}");
        assert!(lines[1..].iter().all(|line| line.starts_with('\t')), "{signature}");
    }

    #[test]
    fn the_body_begins_after_the_first_empty_line() {
        assert_eq!(body(b"A: b\r\n\r\nx\r\n\r\ny\r\n"), b"x\r\n\r\ny\r\n");
        assert_eq!(body(b"\r\nx\r\n"), b"x\r\n");
        assert_eq!(body(b"A: b\r\n"), b"");
    }
}

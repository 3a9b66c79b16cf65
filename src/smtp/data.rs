//! The message content between 354 and the final dot (RFC 5321 sections 4.1.1.4 and 4.5.2).
//!
//! The end is CRLF.CRLF and nothing else; the first CRLF of an empty message is that of the DATA command. Content is
//! kept dot-stuffed, as it came and as it will go out. A bare CR or LF does not end the message and does not end a
//! line; it is noted, and the message is refused at its true end.

use memchr::memchr2;

/// Octets in a text line, at most, without CRLF (RFC 5321 section 4.5.3.1.6). Longer lines pass, and are counted.
pub const TEXT_LINE_MAX: u64 = 998;

/// What was found in the content so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Octets as RFC 1870 counts them: without the dots that stuffing added and without the final dot.
    pub size: u64,
    /// Whether there is an octet above 127.
    pub eight_bit: bool,
    /// The longest line, in octets without CRLF.
    pub longest_line: u64,
    /// Whether there is a CR without LF or an LF without CR.
    pub bare: bool,
}

/// What to do with the start of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// That many octets are content, dot-stuffed. The caller takes them off the buffer.
    pub content: usize,
    /// If the end was found: that many octets follow the content and are no part of it (the final `.CRLF`).
    pub end: Option<usize>,
}

/// Finds the end. Between calls the caller keeps what was not content in the buffer: at most three octets, whose
/// meaning depends on what follows. So the state is only where in a line the buffer starts.
#[derive(Debug, Default)]
pub struct Scanner {
    /// Octets of the current line that were taken off before the buffer; 0 at the start of a line.
    line: u64,
    findings: Findings,
}

impl Scanner {
    /// What was found so far.
    pub fn findings(&self) -> Findings {
        self.findings
    }

    /// Scans what is buffered.
    pub fn scan(&mut self, buffer: &[u8]) -> Scan {
        let mut at = 0;
        loop {
            if self.line == 0 {
                match final_dot(&buffer[at..]) {
                    Dot::End => return self.taken(buffer, at, Some(3)),
                    Dot::Unknown => return self.taken(buffer, at, None),
                    Dot::Stuffed => self.skip_stuffed_dot(&mut at),
                    Dot::None => {}
                }
            }
            match self.line_part(&buffer[at..]) {
                Some(length) => at += length,
                None => return self.held_back(buffer, at),
            }
        }
    }

    /// The dot that begins a line with more on it is kept in the content but counted by nobody.
    fn skip_stuffed_dot(&mut self, at: &mut usize) {
        *at += 1;
        self.line = 1;
        self.findings.size = self.findings.size.wrapping_sub(1);
    }

    /// The length of what can be decided up to the next CR or LF, or `None` if that depends on octets to come.
    fn line_part(&mut self, rest: &[u8]) -> Option<usize> {
        let stop = memchr2(b'\r', b'\n', rest)?;
        let line = self.line + stop as u64;
        match (rest[stop], rest.get(stop + 1)) {
            (b'\r', Some(b'\n')) => {
                self.findings.longest_line = self.findings.longest_line.max(line);
                self.line = 0;
                Some(stop + 2)
            }
            (b'\r', None) => None,
            _ => {
                self.findings.bare = true;
                self.line = line + 1;
                Some(stop + 1)
            }
        }
    }

    /// All of the buffer is content, but for a CR at its end.
    fn held_back(&mut self, buffer: &[u8], at: usize) -> Scan {
        let cr = usize::from(buffer.last() == Some(&b'\r'));
        let end = buffer.len().saturating_sub(cr).max(at);
        self.line += (end - at) as u64;
        self.findings.longest_line = self.findings.longest_line.max(self.line);
        self.taken(buffer, end, None)
    }

    fn taken(&mut self, buffer: &[u8], content: usize, end: Option<usize>) -> Scan {
        self.findings.size = self.findings.size.wrapping_add(content as u64);
        self.findings.eight_bit |= !buffer[..content].is_ascii();
        Scan { content, end }
    }
}

/// What a dot at the start of a line means.
enum Dot {
    /// There is none.
    None,
    /// More follows it on the line.
    Stuffed,
    /// It is the final one.
    End,
    /// The octets that decide have not come.
    Unknown,
}

fn final_dot(line: &[u8]) -> Dot {
    match line {
        [b'.', b'\r', b'\n', ..] => Dot::End,
        [b'.'] | [b'.', b'\r'] => Dot::Unknown,
        [b'.', ..] => Dot::Stuffed,
        _ => Dot::None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, BytesMut};

    use super::*;

    /// Content, findings and what follows the end (`None`: no end).
    type Read = (Vec<u8>, Findings, Option<Vec<u8>>);

    fn read(chunks: &[&[u8]]) -> Read {
        let (mut scanner, mut buffer, mut content) = (Scanner::default(), BytesMut::new(), Vec::new());
        for (at, chunk) in chunks.iter().enumerate() {
            buffer.extend_from_slice(chunk);
            let scan = scanner.scan(&buffer);
            content.extend_from_slice(&buffer[..scan.content]);
            buffer.advance(scan.content);
            if let Some(end) = scan.end {
                buffer.advance(end);
                chunks[at + 1..].iter().for_each(|chunk| buffer.extend_from_slice(chunk));
                return (content, scanner.findings(), Some(buffer.to_vec()));
            }
            assert!(buffer.len() <= 3, "held back {buffer:?}");
        }
        (content, scanner.findings(), None)
    }

    /// The definition, as plainly as it can be written: the end is the first CRLF.CRLF of CRLF + input.
    fn end_by_definition(input: &[u8]) -> Option<usize> {
        let stream = [b"\r\n", input].concat();
        stream.windows(5).position(|window| window == b"\r\n.\r\n")
    }

    fn has_bare(content: &[u8]) -> bool {
        let text: Vec<u8> = content.to_vec();
        (0..text.len()).any(|at| match text[at] {
            b'\r' => text.get(at + 1) != Some(&b'\n'),
            b'\n' => at == 0 || text[at - 1] != b'\r',
            _ => false,
        })
    }

    fn check(input: &[u8]) {
        let whole = read(&[input]);
        if let Some(at) = end_by_definition(input) {
            assert_eq!(whole.0, &input[..at], "{input:?}");
            assert_eq!(whole.2.as_deref(), Some(&input[at + 3..]), "{input:?}");
            assert_eq!(whole.1.bare, has_bare(&input[..at]), "{input:?}");
        } else {
            assert_eq!(whole.2, None, "{input:?}");
        }
        for first in 0..=input.len() {
            let parts = read(&[&input[..first], &input[first..]]);
            assert_eq!(parts, whole, "{input:?} split at {first}");
        }
        let single: Vec<_> = input.chunks(1).collect();
        assert_eq!(read(&single), whole, "{input:?} octet by octet");
    }

    #[test]
    fn every_short_string_ends_where_the_definition_says_at_every_split() {
        const ALPHABET: [u8; 5] = [b'\r', b'\n', b'.', 0, b'a'];
        for length in 0..=6_u32 {
            for number in 0..5_u32.pow(length) {
                let middle: Vec<u8> = (0..length).map(|at| ALPHABET[(number / 5_u32.pow(at) % 5) as usize]).collect();
                check(&middle);
                if length <= 4 {
                    check(&[b"a\r\n".as_slice(), &middle, b"\r\n.\r\nMAIL"].concat());
                }
            }
        }
    }

    #[test]
    fn none_of_the_known_smuggling_sequences_ends_a_message() {
        for sequence in [
            "\n.\n",
            "\n.\r\n",
            "\r.\r",
            "\r.\r\n",
            "\r\n.\n",
            "\r\n.\r",
            "\r\n\0.\r\n",
            "\r\n.\0\r\n",
            "\r\n.\r\r\n",
            "\r\r\n.\r\r\n",
            "\n\n.\r\n",
            "\r\n.\r\0\n",
            "\n.\r",
        ] {
            let input = format!("body{sequence}MAIL FROM:<evil@x>\r\n.\r\n");
            let (content, findings, rest) = read(&[input.as_bytes()]);
            assert_eq!(rest.as_deref(), Some(b"".as_slice()), "{sequence:?}");
            assert_eq!(content.len(), input.len() - 3, "{sequence:?}");
            assert_eq!(findings.bare, !sequence.contains('\0') || sequence.contains("\r\0"), "{sequence:?}");
        }
    }

    #[test]
    fn an_empty_message_ends_right_after_354() {
        assert_eq!(read(&[b".\r\nQUIT\r\n"]), (vec![], Findings::default(), Some(b"QUIT\r\n".to_vec())));
    }

    #[test]
    fn stuffing_is_kept_and_not_counted() {
        let (content, findings, _) = read(&[b"..\r\n...a\r\n.x\r\nb\r\n.\r\n"]);
        assert_eq!(content, b"..\r\n...a\r\n.x\r\nb\r\n");
        assert_eq!(findings.size, 3 + 5 + 3 + 3);
    }

    #[test]
    fn long_lines_and_eight_bit_octets_are_found() {
        let input = [&[b'x'; 5000][..], b"\r\n", "\u{e9}".as_bytes(), b"\r\n.\r\n"].concat();
        let (content, findings, _) = read(&input.chunks(700).collect::<Vec<_>>());
        assert_eq!(content.len() as u64, findings.size);
        assert!(findings.eight_bit && !findings.bare);
        assert_eq!(findings.longest_line, 5000);
    }
}

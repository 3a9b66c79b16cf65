//! Command lines: bounded, and ended by CRLF alone (RFC 5321 sections 2.3.8 and 4.5.3.1.4).
//!
//! A line that is not well formed is reported and never executed. After a bare LF the rest up to the next CRLF is
//! dropped as well: for the client that put it there it belonged to the same line, and executing what follows it
//! would run commands that somebody hid in an address.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

/// Octets in a command line, at most. The standard asks for 512; parameters and long paths need more.
pub const COMMAND_MAX: usize = 4096;

/// Octets in a line of an AUTH exchange, at most (RFC 4954 section 4).
pub const AUTH_MAX: usize = 12_288;

/// Octets of an overlong line that are read and dropped, at most; then the connection is given up.
pub const DISCARD_MAX: usize = 65_536;

/// What stands at the start of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A command line, without its CRLF.
    Command(Bytes),
    /// A line that must not be executed.
    Defect(Defect),
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Defect {
    /// It holds LF without CR. Reported where the LF stands.
    BareLineFeed,
    /// It holds CR without LF.
    BareCarriageReturn,
    /// It holds NUL.
    Nul,
    /// It is longer than the limit.
    TooLong,
    /// It does not end within [`DISCARD_MAX`]. Nothing can be read after it.
    Endless,
}

/// Cuts lines off a buffer that grows at its end.
#[derive(Debug, Default)]
pub struct Framer {
    state: State,
}

#[derive(Debug)]
enum State {
    /// At the start of a line, of which `scanned` octets are known to hold no LF.
    Line { scanned: usize },
    /// In a line that is not executed: dropped up to its CRLF.
    Discard { pending: Option<Defect>, dropped: usize },
}

impl Default for State {
    fn default() -> State {
        State::Line { scanned: 0 }
    }
}

impl Framer {
    /// The next line in `buffer`, or `None` if more must be read. `exchange` is true while a line of an AUTH exchange
    /// is expected.
    pub fn next(&mut self, buffer: &mut BytesMut, exchange: bool) -> Option<Line> {
        loop {
            let found = match self.state {
                State::Line { scanned } => self.next_line(buffer, scanned, exchange),
                State::Discard { pending, dropped } => self.discard(buffer, pending, dropped),
            };
            match found {
                Step::Found(line) => return Some(line),
                Step::More => return None,
                Step::Again => {}
            }
        }
    }

    fn next_line(&mut self, buffer: &mut BytesMut, scanned: usize, exchange: bool) -> Step {
        let limit = if exchange || is_auth(buffer) { AUTH_MAX } else { COMMAND_MAX };
        let Some(at) = memchr(b'\n', &buffer[scanned..]).map(|at| at + scanned) else {
            return self.await_end(buffer, limit);
        };
        self.state = State::default();
        if at == 0 || buffer[at - 1] != b'\r' {
            buffer.advance(at + 1);
            self.state = State::Discard { pending: None, dropped: at + 1 };
            return Step::Found(Line::Defect(Defect::BareLineFeed));
        }
        let mut line = buffer.split_to(at + 1).freeze();
        line.truncate(at - 1);
        Step::Found(checked(line, limit))
    }

    fn await_end(&mut self, buffer: &BytesMut, limit: usize) -> Step {
        if buffer.len() > limit {
            self.state = State::Discard { pending: Some(Defect::TooLong), dropped: 0 };
            return Step::Again;
        }
        self.state = State::Line { scanned: buffer.len() };
        Step::More
    }

    fn discard(&mut self, buffer: &mut BytesMut, pending: Option<Defect>, dropped: usize) -> Step {
        let Some(at) = memchr(b'\n', buffer) else {
            let cr = usize::from(buffer.last() == Some(&b'\r'));
            let dropped = dropped + buffer.len() - cr;
            buffer.advance(buffer.len() - cr);
            self.state = State::Discard { pending, dropped };
            return if dropped > DISCARD_MAX { Step::Found(Line::Defect(Defect::Endless)) } else { Step::More };
        };
        let ended = at > 0 && buffer[at - 1] == b'\r';
        buffer.advance(at + 1);
        if ended {
            self.state = State::default();
            return pending.map_or(Step::Again, |defect| Step::Found(Line::Defect(defect)));
        }
        self.state = State::Discard { pending: None, dropped: dropped + at + 1 };
        Step::Found(Line::Defect(Defect::BareLineFeed))
    }
}

enum Step {
    Found(Line),
    Again,
    More,
}

fn is_auth(buffer: &[u8]) -> bool {
    buffer.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "))
}

fn checked(line: Bytes, limit: usize) -> Line {
    if line.len() + 2 > limit {
        return Line::Defect(Defect::TooLong);
    }
    match memchr2(b'\r', 0, &line) {
        None => Line::Command(line),
        Some(at) if line[at] == 0 => Line::Defect(Defect::Nul),
        Some(_) => Line::Defect(Defect::BareCarriageReturn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(chunks: &[&[u8]]) -> Vec<Line> {
        let (mut framer, mut buffer, mut lines) = (Framer::default(), BytesMut::new(), Vec::new());
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            while let Some(line) = framer.next(&mut buffer, false) {
                let endless = line == Line::Defect(Defect::Endless);
                lines.push(line);
                if endless {
                    return lines;
                }
            }
        }
        lines
    }

    fn command(text: &'static str) -> Line {
        Line::Command(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn pipelined_commands_come_one_by_one() {
        assert_eq!(
            lines_of(&[b"NOOP\r\nRSET \r\nQU", b"IT\r", b"\n"]),
            [command("NOOP"), command("RSET "), command("QUIT")]
        );
    }

    #[test]
    fn nothing_is_executed_of_a_line_with_a_bare_line_feed() {
        assert_eq!(
            lines_of(&[b"RCPT TO:<a@b\nRCPT TO:<evil@x>\r\nNOOP\r\n"]),
            [Line::Defect(Defect::BareLineFeed), command("NOOP")]
        );
        assert_eq!(
            lines_of(&[b"NOOP\nQUIT\n"]),
            [Line::Defect(Defect::BareLineFeed), Line::Defect(Defect::BareLineFeed)]
        );
    }

    #[test]
    fn carriage_returns_and_nuls_are_told_apart() {
        assert_eq!(
            lines_of(&[b"NO\rOP\r\nNOOP\r\r\nA\0\r\n"]),
            [
                Line::Defect(Defect::BareCarriageReturn),
                Line::Defect(Defect::BareCarriageReturn),
                Line::Defect(Defect::Nul)
            ]
        );
    }

    #[test]
    fn a_long_line_is_dropped_and_the_session_goes_on() {
        let long = [b"NOOP ".as_slice(), &[b'x'; 5000], b"\r\nQUIT\r\n"].concat();
        assert_eq!(lines_of(&[&long]), [Line::Defect(Defect::TooLong), command("QUIT")]);
        let fits = [b"NOOP ".as_slice(), &[b'x'; 4089], b"\r\n"].concat();
        assert!(matches!(&lines_of(&[&fits])[..], [Line::Command(line)] if line.len() == 4094));
        let auth = [b"auth plain ".as_slice(), &[b'x'; 12_000], b"\r\n"].concat();
        assert!(matches!(&lines_of(&[&auth])[..], [Line::Command(_)]));
    }

    #[test]
    fn an_endless_line_is_given_up_in_constant_memory() {
        let (mut framer, mut buffer) = (Framer::default(), BytesMut::new());
        let mut read = 0;
        let end = loop {
            buffer.extend_from_slice(&[b'x'; 1000]);
            read += 1000;
            assert!(buffer.len() < 8192);
            if let Some(line) = framer.next(&mut buffer, false) {
                break line;
            }
        };
        assert_eq!(end, Line::Defect(Defect::Endless));
        assert!(read < 80_000);
    }

    #[test]
    fn lines_are_the_same_at_every_split() {
        let input = b"A\r\nB\nC\r\n\r\nD\rE\r\nF\0\r\n\n\r\nG\r\r\nH\r\n";
        let whole = lines_of(&[input]);
        for first in 0..=input.len() {
            for second in first..=input.len() {
                let chunks = [&input[..first], &input[first..second], &input[second..]];
                assert_eq!(lines_of(&chunks), whole, "split at {first} and {second}");
            }
        }
    }
}

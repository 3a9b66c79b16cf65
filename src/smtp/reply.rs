//! Replies as values (RFC 5321 section 4.2), with the enhanced status codes of RFC 2034.

use std::borrow::Cow;

/// Octets in a reply line, at most, its CRLF included (RFC 5321 section 4.5.3.1.5).
pub const LINE_MAX: usize = 512;

/// One reply: a code, perhaps an enhanced code, and at least one line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    enhanced: Option<&'static str>,
    lines: Vec<Cow<'static, str>>,
}

impl Reply {
    /// A reply with an enhanced code; its class is the first digit of `code` (RFC 2034 section 4).
    pub fn new(code: u16, enhanced: &'static str, text: impl Into<Cow<'static, str>>) -> Reply {
        debug_assert_eq!(u32::from(code / 100), u32::from(enhanced.as_bytes()[0] - b'0'));
        Reply { code, enhanced: Some(enhanced), lines: vec![text.into()] }
    }

    /// A reply without an enhanced code: the greeting, the replies to EHLO and HELO, and 3yz (RFC 2034 section 4).
    pub fn plain(code: u16, text: impl Into<Cow<'static, str>>) -> Reply {
        Reply { code, enhanced: None, lines: vec![text.into()] }
    }

    /// Adds a line.
    #[must_use]
    pub fn line(mut self, text: impl Into<Cow<'static, str>>) -> Reply {
        self.lines.push(text.into());
        self
    }

    /// The three digits.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced code, if there is one.
    pub fn enhanced(&self) -> Option<&'static str> {
        self.enhanced
    }

    /// The first line of text.
    pub fn text(&self) -> &str {
        &self.lines[0]
    }

    /// Whether it is 4yz or 5yz.
    pub fn is_refusal(&self) -> bool {
        self.code >= 400
    }

    /// Appends the reply as it goes on the wire: the same code on each line, printable ASCII only, no line too long.
    pub fn write_to(&self, wire: &mut Vec<u8>) {
        let last = self.lines.len() - 1;
        for (at, text) in self.lines.iter().enumerate() {
            let start = wire.len();
            wire.extend_from_slice(self.code.to_string().as_bytes());
            wire.push(if at == last { b' ' } else { b'-' });
            if let Some(enhanced) = self.enhanced {
                wire.extend_from_slice(enhanced.as_bytes());
                wire.push(b' ');
            }
            wire.extend(text.bytes().map(|b| if matches!(b, b' '..=b'~') { b } else { b'?' }));
            wire.truncate(start + LINE_MAX - 2);
            wire.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(reply: &Reply) -> String {
        let mut bytes = Vec::new();
        reply.write_to(&mut bytes);
        String::from_utf8(bytes).expect("ASCII")
    }

    #[test]
    fn every_line_of_a_reply_bears_its_code() {
        let reply = Reply::plain(250, "relay.example").line("PIPELINING").line("SIZE 1");
        assert_eq!(wire(&reply), "250-relay.example\r\n250-PIPELINING\r\n250 SIZE 1\r\n");
        assert_eq!(wire(&Reply::new(250, "2.1.0", "ok").line("more")), "250-2.1.0 ok\r\n250 2.1.0 more\r\n");
    }

    #[test]
    fn no_text_can_end_a_line_or_make_it_too_long() {
        let line = wire(&Reply::new(550, "5.1.3", format!("a\r\nb\u{e9}\u{1b}{}", "x".repeat(600))));
        assert!(line.starts_with("550 5.1.3 a??b???x") && line.ends_with("x\r\n"));
        assert_eq!(line.len(), LINE_MAX);
        assert_eq!(line.matches('\n').count(), 1);
    }
}

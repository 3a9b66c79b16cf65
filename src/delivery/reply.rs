//! Replies as they were read: codes by the letter, text made safe for logs, DSNs and terminals (RFC 5321 section 4.2).

use crate::outcome::{Enhanced, Reply};

/// Octets of text kept.
const TEXT_MAX: usize = 512;

/// Reads the raw lines of one reply. `None` if they are no reply: a code outside 200 to 599 or not of three digits, another
/// code on a later line, a separator other than space and hyphen.
pub(super) fn parse(raw: &[u8]) -> Option<Reply> {
    let mut lines = lines(raw);
    let (code, first) = split(lines.next()?)?;
    let first = String::from_utf8_lossy(first);
    let (enhanced, rest) = match enhanced_prefix(&first, code) {
        Some((enhanced, rest)) => (Some(enhanced), rest),
        None => (None, &*first),
    };
    let mut text = String::with_capacity(rest.len());
    append(&mut text, rest);
    for line in lines {
        let (again, more) = split(line)?;
        if again != code {
            return None;
        }
        append_line(&mut text, &String::from_utf8_lossy(more), code, enhanced);
    }
    Some(Reply { code, enhanced, text: text.into_boxed_str() })
}

/// The texts of the lines after the first one: an EHLO reply's keywords.
pub(super) fn keywords(raw: &[u8]) -> impl Iterator<Item = &str> {
    lines(raw).skip(1).filter_map(|line| std::str::from_utf8(split(line)?.1).ok())
}

/// The first word of the text: the name that greeting and EHLO reply begin with.
pub(super) fn first_word(reply: &Reply) -> &str {
    reply.text.split(' ').next().unwrap_or("")
}

fn lines(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    raw.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Code and text of one line.
fn split(line: &[u8]) -> Option<(u16, &[u8])> {
    let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = line else { return None };
    let digit = |byte: &u8| u16::from(byte - b'0');
    let code = digit(a) * 100 + digit(b) * 10 + digit(c);
    match rest {
        [] => Some((code, rest)),
        [b' ' | b'-', text @ ..] => Some((code, text)),
        _ => None,
    }
}

/// An enhanced code at the start of `text`, if its class is the first digit of `code` (RFC 2034 section 4), and what
/// follows it.
fn enhanced_prefix(text: &str, code: u16) -> Option<(Enhanced, &str)> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let mut numbers = word.split('.').map(number);
    let (class, subject, detail) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let whole = numbers.next().is_none() && class == code / 100;
    whole.then_some((Enhanced::new(class as u8, subject, detail), rest))
}

fn number(digits: &str) -> Option<u16> {
    let well_formed = (1..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    if well_formed { digits.parse().ok() } else { None }
}

fn append_line(text: &mut String, line: &str, code: u16, enhanced: Option<Enhanced>) {
    let line = match enhanced_prefix(line, code) {
        Some((again, rest)) if Some(again) == enhanced => rest,
        _ => line,
    };
    append(text, " ");
    append(text, line);
}

/// Appends what fits, control characters replaced: a peer's text must not steer a terminal or forge a log line.
fn append(text: &mut String, more: &str) {
    for c in more.chars() {
        let c = if c.is_control() { '?' } else { c };
        if text.len() + c.len_utf8() > TEXT_MAX {
            return;
        }
        text.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(raw: &str) -> String {
        parse(raw.as_bytes()).map_or_else(|| "none".to_owned(), |reply| reply.to_string())
    }

    #[test]
    fn codes_are_kept_by_the_letter() {
        assert_eq!(parsed("250 2.1.5 Ok\r\n"), "250 2.1.5 Ok");
        assert_eq!(parsed("550 5.7.509 Access denied\r\n"), "550 5.7.509 Access denied");
        assert_eq!(parsed("451 4.7.650 try later\n"), "451 4.7.650 try later");
        assert_eq!(parsed("250\r\n"), "250 ");
        assert_eq!(parsed("550 5.1.1\r\n"), "550 5.1.1 ");
    }

    #[test]
    fn an_enhanced_code_of_another_class_is_text() {
        let reply = parse(b"250 5.1.1 odd\r\n").expect("a reply");
        assert_eq!((reply.code, reply.enhanced, &*reply.text), (250, None, "5.1.1 odd"));
        assert_eq!(parse(b"550 5.1.1000 odd\r\n").expect("a reply").enhanced, None);
        assert_eq!(parse(b"550 5.1.1.1 odd\r\n").expect("a reply").enhanced, None);
    }

    #[test]
    fn lines_are_joined_and_their_enhanced_codes_dropped() {
        let raw = "550-5.7.1 Our system has detected that this message is\r\n550-5.7.1 likely unsolicited\r\n550 5.7.1 mail. abc - gsmtp\r\n";
        assert_eq!(
            parsed(raw),
            "550 5.7.1 Our system has detected that this message is likely unsolicited mail. abc - gsmtp"
        );
    }

    #[test]
    fn what_is_no_reply_is_none() {
        for raw in [
            "",
            "\r\n",
            "HTTP/1.1 400 Bad Request\r\n",
            "999 no\r\n",
            "199 no\r\n",
            "25 no\r\n",
            "2500 no\r\n",
            "250_no\r\n",
            "250-a\r\n550 b\r\n",
            "\0\0\0\r\n",
        ] {
            assert_eq!(parsed(raw), "none", "{raw:?}");
        }
    }

    #[test]
    fn text_cannot_steer_a_terminal_and_has_an_end() {
        let reply = parse(b"550 \x1b[31mred\x07 \xff\r\n").expect("a reply");
        assert_eq!(&*reply.text, "?[31mred? \u{fffd}");
        let long = format!("550 {}\r\n", "\u{e4}".repeat(600));
        assert_eq!(parse(long.as_bytes()).expect("a reply").text.len(), TEXT_MAX);
    }

    #[test]
    fn the_keywords_are_the_lines_after_the_first() {
        let raw = b"250-mx.example.org greets\r\n250-SIZE 1000\r\n250 DSN\r\n";
        assert_eq!(keywords(raw).collect::<Vec<_>>(), ["SIZE 1000", "DSN"]);
        assert_eq!(first_word(&parse(raw).expect("a reply")), "mx.example.org");
    }
}

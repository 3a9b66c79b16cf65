//! What is sent, and to whom: kept so that a million recipients cost a few megabytes.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What the world has in store for a recipient. It shows in the local part, so that a receiver needs no list of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Fate {
    /// The mailbox takes mail: `u1@...`.
    #[default]
    Taken,
    /// `550 5.1.1`: `gone.1@...`.
    Gone,
    /// `452 4.2.2` for ever: `full.1@...`.
    Full,
}

impl Fate {
    /// How the local parts of such mailboxes begin.
    pub fn prefix(self) -> &'static str {
        match self {
            Fate::Taken => "u",
            Fate::Gone => "gone.",
            Fate::Full => "full.",
        }
    }
}

/// All recipients, by number.
#[derive(Clone, Debug, Default)]
pub struct Recipients {
    domains: Vec<String>,
    /// The domain in the upper bits, the fate in the lowest two.
    list: Vec<u32>,
}

impl Recipients {
    /// Nobody yet, at these domains.
    pub fn new(domains: impl IntoIterator<Item = String>) -> Recipients {
        Recipients { domains: domains.into_iter().collect(), list: Vec::new() }
    }

    /// Adds a recipient at the domain of this number.
    pub fn add(&mut self, domain: u32, fate: Fate) {
        self.list.push(domain << 2 | fate as u32);
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        u32::try_from(self.list.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The domains, by number.
    pub fn domains(&self) -> &[String] {
        &self.domains
    }

    /// The number of a recipient's domain.
    pub fn domain_of(&self, index: u32) -> u32 {
        self.list[index as usize] >> 2
    }

    /// What the world has in store for it.
    pub fn fate_of(&self, index: u32) -> Fate {
        match self.list[index as usize] & 3 {
            1 => Fate::Gone,
            2 => Fate::Full,
            _ => Fate::Taken,
        }
    }

    /// The address.
    pub fn mailbox(&self, index: u32) -> String {
        let mut text = String::with_capacity(40);
        self.write_mailbox(&mut text, index);
        text
    }

    pub(super) fn write_mailbox(&self, text: &mut String, index: u32) {
        let domain = &self.domains[self.domain_of(index) as usize];
        let _never_fails = write!(text, "{}{index}@{domain}", self.fate_of(index).prefix());
    }

    /// The number of the recipient with this address.
    pub fn find(&self, mailbox: &str) -> Option<u32> {
        let local = mailbox.split_once('@')?.0;
        let index = local.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
        (index < self.len() && self.mailbox(index).eq_ignore_ascii_case(mailbox)).then_some(index)
    }
}

/// One broadcast: a content, a list and its recipients.
#[derive(Clone, Debug)]
pub struct Mailing {
    /// The list's domain: the reverse-paths are `news-bounces@domain`, or `news-bounces+u1=example.com@domain`.
    pub domain: String,
    /// Header section and body, CRLF line ends, dot-stuffed, ending in CRLF.
    content: Vec<u8>,
    /// Whether each transaction gets a Message-ID of its own: many different messages instead of one newsletter.
    pub distinct: bool,
    /// To whom.
    pub recipients: Recipients,
}

impl Mailing {
    /// A mailing of `message`, whose line ends may be LF or CRLF. It gets a Message-ID if it has none.
    pub fn new(domain: &str, message: &[u8], recipients: Recipients) -> Mailing {
        Mailing { domain: domain.to_owned(), content: wire_form(domain, message), distinct: false, recipients }
    }

    /// A newsletter of about `size` octets, in lines of 72.
    pub fn newsletter(domain: &str, size: usize, recipients: Recipients) -> Mailing {
        let mut message = format!(
            "From: News <news@{domain}>\r\nTo: news@{domain}\r\nSubject: A dress rehearsal\r\nDate: Tue, 24 Nov 2026 \
             08:00:00 +0000\r\nList-Id: <news.{domain}>\r\nPrecedence: list\r\nMIME-Version: 1.0\r\nContent-Type: \
             text/plain; charset=us-ascii\r\n\r\n"
        );
        let line = "All work and no play makes a newsletter that nobody reads to its end.\r\n";
        while message.len() + line.len() <= size {
            message.push_str(line);
        }
        Mailing::new(domain, message.as_bytes(), recipients)
    }

    /// The content of the transaction `id`, as it goes over the wire without the final dot.
    pub fn content(&self, id: u64) -> Cow<'_, [u8]> {
        if !self.distinct {
            return Cow::Borrowed(&self.content);
        }
        let mut content = format!("X-Number: {id}\r\nMessage-ID: <{id}@{}>\r\n", self.domain).into_bytes();
        content.extend_from_slice(&self.content);
        Cow::Owned(content)
    }

    /// The reverse-path of a transaction to `recipients`.
    pub(super) fn reverse_path(&self, recipients: &[u32], verp: bool) -> String {
        match recipients {
            [only] if verp => {
                let mailbox = self.recipients.mailbox(*only).replace('@', "=");
                format!("news-bounces+{mailbox}@{}", self.domain)
            }
            _ => format!("news-bounces@{}", self.domain),
        }
    }
}

/// CRLF line ends, dot-stuffed, with a Message-ID.
fn wire_form(domain: &str, message: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(message.len() + message.len() / 16);
    if !has_message_id(message) {
        wire.extend_from_slice(format!("Message-ID: <rehearsal@{domain}>\r\n").as_bytes());
    }
    for line in message.split_inclusive(|&b| b == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        wire.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        wire.extend_from_slice(b"\r\n");
    }
    wire
}

fn has_message_id(message: &[u8]) -> bool {
    let mut lines = message.split(|&b| b == b'\n').take_while(|line| !line.trim_ascii().is_empty());
    lines.any(|line| line.get(..11).is_some_and(|start| start.eq_ignore_ascii_case(b"message-id:")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipient_is_found_by_its_address() {
        let mut recipients = Recipients::new(["a.test", "b3.test"].map(str::to_owned));
        recipients.add(0, Fate::Taken);
        recipients.add(1, Fate::Gone);
        recipients.add(1, Fate::Full);
        assert_eq!(recipients.mailbox(1), "gone.1@b3.test");
        for index in 0..3 {
            assert_eq!(recipients.find(&recipients.mailbox(index)), Some(index));
        }
        assert_eq!(recipients.find("u1@b3.test"), None);
        assert_eq!(recipients.find("u9@a.test"), None);
    }

    #[test]
    fn a_message_is_brought_into_wire_form() {
        let mailing = Mailing::new("l.test", b"Subject: x\n\n.dot\nend", Recipients::default());
        assert_eq!(&*mailing.content(0), b"Message-ID: <rehearsal@l.test>\r\nSubject: x\r\n\r\n..dot\r\nend\r\n");
        let mailing = Mailing::new("l.test", b"message-id: <1@x>\r\n\r\n", Recipients::default());
        assert_eq!(&*mailing.content(0), b"message-id: <1@x>\r\n\r\n");
    }

    #[test]
    fn verp_names_the_recipient_in_the_reverse_path() {
        let mut recipients = Recipients::new(["a.test".to_owned()]);
        recipients.add(0, Fate::Taken);
        let mailing = Mailing::new("l.test", b"\n", recipients);
        assert_eq!(mailing.reverse_path(&[0], true), "news-bounces+u0=a.test@l.test");
        assert_eq!(mailing.reverse_path(&[0], false), "news-bounces@l.test");
    }
}

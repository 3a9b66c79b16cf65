//! Mailboxes, domains and reverse-paths (RFC 5321 section 4.1.2, RFC 6531 section 3.3).

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Why a text is no address. Each variant is a different reply to the client, so the classes are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The local part breaks the grammar, or is longer than 64 octets in a forward-path (`501 5.1.3`).
    #[error("bad local part")]
    LocalPart,
    /// The domain breaks the grammar, has an empty or too long label, or ends in a dot (`501 5.1.2`).
    #[error("bad domain")]
    Domain,
    /// No `@`, empty, too long (path over 256 octets), or holds a control character (`501 5.1.3`).
    #[error("bad address syntax")]
    Syntax,
    /// Non-ASCII without SMTPUTF8 (`553 5.6.7`).
    #[error("internationalised address without SMTPUTF8")]
    NeedsSmtpUtf8,
    /// An address literal such as `[192.0.2.1]`, which a list relay has no use for (`550 5.7.1`).
    #[error("address literals are not relayed to")]
    Literal,
    /// A domain of one label: a relay must not guess the rest (RFC 5321 section 2.3.5; `550 5.1.2`).
    #[error("not a fully qualified domain name")]
    NotQualified,
}

/// A domain name as we compare and route by it: lower case, A-labels (RFC 5890), no trailing dot, at most 255 octets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<str>);

impl Domain {
    /// Normalises and checks a domain name of two or more labels. Underscores are tolerated, as DNS does.
    ///
    /// # Errors
    /// [`AddressError::Domain`], [`AddressError::Literal`] or [`AddressError::NotQualified`].
    pub fn parse(text: &str) -> Result<Domain, AddressError> {
        if text.starts_with('[') {
            return Err(if is_address_literal(text) { AddressError::Literal } else { AddressError::Domain });
        }
        let ascii = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii(text).map_err(|_| AddressError::Domain)?
        };
        if ascii.len() > 255 || !ascii.split('.').all(is_label) {
            return Err(AddressError::Domain);
        }
        if !ascii.contains('.') {
            return Err(AddressError::NotQualified);
        }
        Ok(Domain(ascii.into()))
    }

    /// The name, in lower case and A-labels.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `suffix` or lies below it. `suffix` is lower case, with or without a leading dot.
    pub fn is_within(&self, suffix: &str) -> bool {
        let suffix = suffix.strip_prefix('.').unwrap_or(suffix);
        self.0.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

/// Whether `text` is an address-literal (RFC 5321 section 4.1.3). None is relayed to; one that is well formed is refused
/// by policy, any other by syntax.
fn is_address_literal(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else { return false };
    match inner.split_once(':') {
        None => inner.parse::<Ipv4Addr>().is_ok(),
        Some((tag, address)) if tag.eq_ignore_ascii_case("IPv6") => address.parse::<Ipv6Addr>().is_ok(),
        Some((tag, content)) => {
            let is_content = |c: char| c.is_ascii_graphic() && !matches!(c, '[' | '\\' | ']');
            is_label(tag) && !content.is_empty() && content.chars().all(is_content)
        }
    }
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A mailbox, `local@domain`, kept exactly as it was written (case and quoting of the local part included), so that
/// it goes out as it came in. The domain is what follows the last unquoted `@`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mailbox {
    text: Box<str>,
    /// Where the separating `@` stands. A path has at most 256 octets (RFC 5321 section 4.5.3.1.3).
    at: u16,
}

impl Mailbox {
    /// Octets in the local part of a forward-path, at most (RFC 5321 section 4.5.3.1.1).
    pub const LOCAL_PART_MAX: usize = 64;

    /// Octets in a mailbox, at most: a path of 256 without its angle brackets (RFC 5321 section 4.5.3.1.3).
    pub const LENGTH_MAX: usize = 254;

    /// Checks `text` against the grammar of RFC 5321 section 4.1.2; with `smtputf8` also that of RFC 6531.
    ///
    /// The local part may be as long as the path: a VERP reverse-path holds a whole address in it, and list hosts send
    /// such. The 64 octets of section 4.5.3.1.1 are asked of forward-paths, where they are read
    /// ([`Mailbox::LOCAL_PART_MAX`]).
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse(text: &str, smtputf8: bool) -> Result<Mailbox, AddressError> {
        if text.is_empty() || text.len() > Mailbox::LENGTH_MAX || text.chars().any(char::is_control) {
            return Err(AddressError::Syntax);
        }
        if !smtputf8 && !text.is_ascii() {
            return Err(AddressError::NeedsSmtpUtf8);
        }
        let at = local_part_length(text)?;
        let domain = text[at..].strip_prefix('@').ok_or(AddressError::Syntax)?;
        Domain::parse(domain)?;
        Ok(Mailbox { text: text.into(), at: at as u16 })
    }

    /// The whole address as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The local part as written, quotes included.
    pub fn local(&self) -> &str {
        &self.text[..usize::from(self.at)]
    }

    /// What the local part means: quotes and quoting backslashes removed (RFC 5321 section 4.1.2: `"a"@b` and `a@b` are
    /// the same mailbox).
    pub fn local_unquoted(&self) -> Cow<'_, str> {
        let Some(inner) = self.local().strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return Cow::Borrowed(self.local());
        };
        if !inner.contains('\\') {
            return Cow::Borrowed(inner);
        }
        let mut chars = inner.chars();
        let mut plain = String::with_capacity(inner.len());
        while let Some(c) = chars.next() {
            plain.extend(if c == '\\' { chars.next() } else { Some(c) });
        }
        Cow::Owned(plain)
    }

    /// The mailbox with this local part, quoted where the grammar asks for it, at this domain.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn compose(local: &str, domain: &str, smtputf8: bool) -> Result<Mailbox, AddressError> {
        let plain = Mailbox::parse(&format!("{local}@{domain}"), smtputf8);
        match plain {
            Ok(mailbox) if mailbox.local() == local && !local.starts_with('"') => Ok(mailbox),
            _ => {
                let escaped = local.replace('\\', "\\\\").replace('"', "\\\"");
                Mailbox::parse(&format!("\"{escaped}\"@{domain}"), smtputf8)
            }
        }
    }

    /// The domain as written (perhaps in U-labels or capitals).
    pub fn domain_as_written(&self) -> &str {
        &self.text[usize::from(self.at) + 1..]
    }

    /// The domain as we route by it.
    pub fn domain(&self) -> Domain {
        Domain::parse(self.domain_as_written()).unwrap_or_else(|_| Domain(self.domain_as_written().into()))
    }

    /// Whether every octet is ASCII, so that the address can go to a host without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }
}

/// Length of the Dot-string or Quoted-string at the start of `text`.
fn local_part_length(text: &str) -> Result<usize, AddressError> {
    if text.starts_with('"') { quoted_string_length(text) } else { dot_string_length(text) }
}

fn quoted_string_length(text: &str) -> Result<usize, AddressError> {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok(at + 1),
            '\\' => match chars.next() {
                Some((_, quoted)) if quoted.is_ascii() && !quoted.is_control() => {}
                _ => return Err(AddressError::LocalPart),
            },
            _ => {}
        }
    }
    Err(AddressError::LocalPart)
}

fn dot_string_length(text: &str) -> Result<usize, AddressError> {
    let local = text.split_once('@').ok_or(AddressError::Syntax)?.0;
    let is_atext = |c: char| c.is_ascii_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~".contains(c);
    let well_formed = local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext));
    if well_formed { Ok(local.len()) } else { Err(AddressError::LocalPart) }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.text)
    }
}

/// The reverse-path of MAIL: where failures are reported to, or the null path, to which nothing is ever reported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReversePath {
    /// `<>`.
    Null,
    /// A mailbox.
    Mailbox(Mailbox),
}

impl ReversePath {
    /// The mailbox, if it is not the null path.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            ReversePath::Null => None,
            ReversePath::Mailbox(mailbox) => Some(mailbox),
        }
    }

    /// The text between the angle brackets.
    pub fn as_str(&self) -> &str {
        self.mailbox().map_or("", Mailbox::as_str)
    }
}

impl fmt::Display for ReversePath {
    /// With its angle brackets, as on the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_kept_as_it_was_written() {
        for text in [
            "a@b.example",
            "First.Last+tag@B.Example",
            "\"a b\"@c.example",
            "\"a\\\"b\"@c.example",
            "\" \"@c.example",
            "\"..\"@c.example",
            "user%d2@d.example",
            "d!user@e.example",
            "o'hara/x=y@under_score.example",
        ] {
            assert_eq!(Mailbox::parse(text, false).map(|mailbox| mailbox.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn the_domain_is_what_follows_the_last_unquoted_at_sign() {
        let mailbox = Mailbox::parse("\"a@evil.example\"@c.example", false).expect("valid");
        assert_eq!(mailbox.domain().as_str(), "c.example");
        assert_eq!(mailbox.local(), "\"a@evil.example\"");
    }

    #[test]
    fn what_is_no_address_is_refused_by_its_class() {
        use AddressError::{Domain, Literal, LocalPart, NeedsSmtpUtf8, NotQualified, Syntax};
        for (text, error) in [
            ("", Syntax),
            ("user", Syntax),
            ("@d.example", LocalPart),
            ("a..b@d.example", LocalPart),
            (".a@d.example", LocalPart),
            ("a b@d.example", LocalPart),
            ("\"open@d.example", LocalPart),
            ("\"a\"b@d.example", Syntax),
            ("a\r\nRCPT TO:<x>@d.example", Syntax),
            ("\"a\r\nb\"@d.example", Syntax),
            ("\"a\\\0\"@d.example", Syntax),
            ("a@b@d.example", Domain),
            ("user@domain.example.", Domain),
            ("user@.d.example", Domain),
            ("user@d..example", Domain),
            ("user@-d.example", Domain),
            ("user@d.example:2525", Domain),
            ("user@", Domain),
            ("user@[1.2.3.4]:25", Domain),
            ("user@[]", Domain),
            ("user@[::1]", Domain),
            ("user@[0x7f.1]", Domain),
            ("user@[IPv6:fe80::1%eth0]", Domain),
            ("user@[127.0.0.1]", Literal),
            ("user@[IPv6:::1]", Literal),
            ("user@[tag:x]", Literal),
            ("user@localhost", NotQualified),
            ("us\u{e9}r@d.example", NeedsSmtpUtf8),
            ("user@d\u{e9}.example", NeedsSmtpUtf8),
        ] {
            assert_eq!(Mailbox::parse(text, false), Err(error), "{text:?}");
        }
    }

    #[test]
    fn the_floors_of_rfc_5321_are_accepted_and_what_is_beyond_is_not() {
        let label = "d".repeat(63);
        let domain = format!("{label}.{label}.{label}");
        assert!(Mailbox::parse(&format!("{}@{}", "l".repeat(62), domain), false).is_ok());
        assert!(Mailbox::parse(&format!("{}@{}", "l".repeat(63), domain), false).is_err());
        assert!(Mailbox::parse(&format!("a@{}.example", "d".repeat(64)), false).is_err());
        assert!(Mailbox::parse(&format!("{}@b.example", "verp".repeat(30)), false).is_ok());
    }

    #[test]
    fn an_internationalised_domain_is_routed_by_its_a_label_and_written_as_it_came() {
        let mailbox = Mailbox::parse("us\u{e9}r@B\u{fc}cher.example", true).expect("valid");
        assert_eq!(mailbox.domain().as_str(), "xn--bcher-kva.example");
        assert_eq!(mailbox.domain_as_written(), "B\u{fc}cher.example");
        assert!(!mailbox.is_ascii());
    }

    #[test]
    fn a_domain_lies_within_itself_and_its_parents_only() {
        let domain = Domain::parse("lists.Example.org").expect("valid");
        for suffix in ["lists.example.org", "example.org", ".example.org", "org"] {
            assert!(domain.is_within(suffix), "{suffix}");
        }
        for suffix in ["ists.example.org", "other.org", "a.lists.example.org"] {
            assert!(!domain.is_within(suffix), "{suffix}");
        }
    }

    #[test]
    fn composing_quotes_only_what_needs_it() {
        let compose = |local| Mailbox::compose(local, "h.example", false).map(|mailbox| mailbox.to_string());
        assert_eq!(compose("a-b=c.example"), Ok("a-b=c.example@h.example".to_owned()));
        assert_eq!(compose("a b"), Ok("\"a b\"@h.example".to_owned()));
        assert_eq!(compose("a@b"), Ok("\"a@b\"@h.example".to_owned()));
        assert_eq!(compose("a\"\\b"), Ok("\"a\\\"\\\\b\"@h.example".to_owned()));
    }

    proptest! {
        #[test]
        fn a_parsed_address_can_neither_end_a_line_nor_a_path(text in "[a@.\"\\\\<>\\[\\]\r\n\0 ]{0,12}(@b\\.c)?") {
            if let Ok(mailbox) = Mailbox::parse(&text, true) {
                prop_assert_eq!(mailbox.as_str(), &text);
                prop_assert!(!text.chars().any(char::is_control));
                prop_assert!(!mailbox.domain_as_written().contains(['@', '>', ' ']));
                let again = Mailbox::compose(&mailbox.local_unquoted(), mailbox.domain_as_written(), true);
                prop_assert_eq!(again.map(|m| m.local_unquoted().into_owned()), Ok(mailbox.local_unquoted().into_owned()));
            }
        }
    }
}

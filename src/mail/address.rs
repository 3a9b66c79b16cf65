//! Mailboxes, domains and reverse-paths (RFC 5321 section 4.1.2, RFC 6531 section 3.3).

use std::fmt;
use std::sync::Arc;

/// Why a text is no address. Each variant is a different reply to the client, so the classes are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The local part breaks the grammar or is longer than 64 octets (`501 5.1.3`).
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
    /// A domain of one label: a relay must not guess the rest (RFC 5321 section 5.1; `550 5.1.2`).
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
            return Err(AddressError::Literal);
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
    /// Checks `text` against the grammar of RFC 5321 section 4.1.2; with `smtputf8` also that of RFC 6531.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse(text: &str, smtputf8: bool) -> Result<Mailbox, AddressError> {
        if text.is_empty() || text.len() > 254 || text.chars().any(char::is_control) {
            return Err(AddressError::Syntax);
        }
        if !smtputf8 && !text.is_ascii() {
            return Err(AddressError::NeedsSmtpUtf8);
        }
        let at = local_part_length(text)?;
        if at == 0 || at > 64 {
            return Err(AddressError::LocalPart);
        }
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
                Some((_, quoted)) if quoted.is_ascii() => {}
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

//! Variable envelope return paths, made here instead of by the list host (Postfix's XVERP): one transaction in, one
//! reverse-path per recipient out.

use crate::mail::Mailbox;

/// The two characters that `MAIL FROM:<owner@host> XVERP=xy` gives: `owner` x `user` y `domain` `@host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delimiters {
    /// Between the owner and the recipient's local part.
    pub owner: char,
    /// In place of the recipient's `@`.
    pub at: char,
}

impl Default for Delimiters {
    /// Those of Postfix's manual page for the service that speaks XVERP, in list-server usage: `owner-user=domain@host`.
    fn default() -> Delimiters {
        Delimiters { owner: '-', at: '=' }
    }
}

impl Delimiters {
    /// Reads the value of XVERP: two characters out of `-=+`, as Postfix's `verp_delimiter_filter` has it.
    pub fn parse(value: &str) -> Option<Delimiters> {
        match value.as_bytes() {
            &[owner @ (b'-' | b'=' | b'+'), at @ (b'-' | b'=' | b'+')] => {
                Some(Delimiters { owner: char::from(owner), at: char::from(at) })
            }
            _ => None,
        }
    }
}

/// The reverse-path for `recipient`. `None` if it would be longer than a path may be (RFC 5321 section 4.5.3.1.3): such
/// a copy keeps the plain reverse-path, which loses the attribution of one bounce and not one recipient's mail.
pub fn reverse_path(owner: &Mailbox, recipient: &Mailbox, delimiters: Delimiters) -> Option<Mailbox> {
    let Delimiters { owner: first, at } = delimiters;
    let (list, user) = (owner.local_unquoted(), recipient.local_unquoted());
    let local = format!("{list}{first}{user}{at}{}", recipient.domain_as_written());
    let smtputf8 = !(owner.is_ascii() && recipient.is_ascii());
    Mailbox::compose(&local, owner.domain_as_written(), smtputf8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text, true).expect("valid")
    }

    fn verp(recipient: &str, delimiters: Delimiters) -> Option<String> {
        reverse_path(&mailbox("list-bounces@h.example"), &mailbox(recipient), delimiters).map(|path| path.to_string())
    }

    #[test]
    fn a_recipient_is_written_into_the_reverse_path() {
        let plus = Delimiters::parse("+=").expect("valid");
        assert_eq!(
            verp("Joe@D.example", Delimiters::default()).as_deref(),
            Some("list-bounces-Joe=D.example@h.example")
        );
        assert_eq!(verp("joe@d.example", plus).as_deref(), Some("list-bounces+joe=d.example@h.example"));
    }

    #[test]
    fn a_quoted_recipient_makes_a_quoted_reverse_path() {
        let path = verp("\"a b\"@d.example", Delimiters::default());
        assert_eq!(path.as_deref(), Some("\"list-bounces-a b=d.example\"@h.example"));
    }

    #[test]
    fn a_reverse_path_longer_than_a_path_may_be_is_not_made() {
        let long = format!("{}@{}.example", "l".repeat(64), ["d".repeat(58), "e".repeat(58), "f".repeat(58)].join("."));
        assert_eq!(verp(&long, Delimiters::default()), None);
    }

    #[test]
    fn only_characters_that_cannot_break_a_path_are_delimiters() {
        for bad in ["", "-", "-=-", "@@", "a=", "<>", "\u{e9}"] {
            assert_eq!(Delimiters::parse(bad), None, "{bad:?}");
        }
    }
}

//! xtext (RFC 3461 section 4) and the forms of ORCPT's address (RFC 3461 section 4.2, RFC 6533 section 3), both ways.
//!
//! Decoded values never hold a control character: `+0D+0A` would write a line of its own into a DSN or a command.

use crate::mail::OriginalRecipient;

/// Decodes xtext. `None` if it breaks the grammar or hides a control character or an octet above 126.
pub fn decode(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let (octet, tail) = match first {
            b'+' => hex_octet(tail)?,
            b'=' => return None,
            b'!'..=b'~' => (*first, tail),
            _ => return None,
        };
        if !(b' '..=b'~').contains(&octet) {
            return None;
        }
        plain.push(char::from(octet));
        rest = tail;
    }
    Some(plain)
}

/// Two hexadecimal digits and what follows them. Lower case is not in the grammar, but unambiguous.
fn hex_octet(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = text.split_at_checked(2)?;
    let value = |digit: u8| char::from(digit).to_digit(16);
    let octet = value(digits[0])? << 4 | value(digits[1])?;
    Some((u8::try_from(octet).ok()?, rest))
}

/// Encodes printable ASCII as xtext.
pub fn encode(text: &str) -> String {
    let mut coded = String::with_capacity(text.len());
    text.bytes().for_each(|octet| encode_octet(octet, &mut coded));
    coded
}

fn encode_octet(octet: u8, coded: &mut String) {
    match octet {
        b'+' | b'=' => coded.push_str(&format!("+{octet:02X}")),
        b'!'..=b'~' => coded.push(char::from(octet)),
        _ => coded.push_str(&format!("+{octet:02X}")),
    }
}

/// Decodes the value of ORCPT: an address type, a semicolon, and the address in xtext, or for the type `utf-8` in one of
/// the forms of RFC 6533 section 3. `None` if it breaks the grammar or hides a control character.
pub fn decode_orcpt(value: &str) -> Option<OriginalRecipient> {
    let (kind, coded) = value.split_once(';')?;
    let is_atom = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !is_atom || coded.is_empty() {
        return None;
    }
    let address = if kind.eq_ignore_ascii_case("utf-8") { decode_utf8_address(coded)? } else { decode(coded)? };
    Some(OriginalRecipient { address_type: kind.into(), address: address.into() })
}

/// utf-8-addr-xtext and utf-8-addr-unitext (RFC 6533 section 3): `\x{2318}` stands for a character, others for
/// themselves. `+` and `=` are taken as xtext, because that is how clients without RFC 6533 send them.
fn decode_utf8_address(coded: &str) -> Option<String> {
    let mut plain = String::with_capacity(coded.len());
    let mut rest = coded;
    while let Some(first) = rest.chars().next() {
        let (c, tail) = match first {
            '\\' => embedded_unicode(rest)?,
            '+' => hex_octet(&rest.as_bytes()[1..]).map(|(octet, _)| (char::from(octet), &rest[3..]))?,
            '=' | ' ' => return None,
            _ => (first, &rest[first.len_utf8()..]),
        };
        if c.is_control() {
            return None;
        }
        plain.push(c);
        rest = tail;
    }
    Some(plain)
}

/// EmbeddedUnicodeChar (RFC 6533 section 3): `\x{` two to six hexadecimal digits `}`.
fn embedded_unicode(text: &str) -> Option<(char, &str)> {
    let (digits, rest) = text.strip_prefix("\\x{")?.split_once('}')?;
    let hex = (2..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let c = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)?;
    hex.then_some((c, rest))
}

/// Encodes ORCPT's value for the next hop. With `smtputf8` a non-ASCII address goes as it is, else as `\x{..}`.
pub fn encode_orcpt(original: &OriginalRecipient, smtputf8: bool) -> String {
    let address = &original.address;
    let coded = match original.address_type.eq_ignore_ascii_case("utf-8") {
        true => encode_utf8_address(address, smtputf8),
        false => encode(address),
    };
    format!("{};{coded}", original.address_type)
}

fn encode_utf8_address(address: &str, smtputf8: bool) -> String {
    let mut coded = String::with_capacity(address.len());
    for c in address.chars() {
        match c {
            '\\' | '+' | '=' | ' ' => coded.push_str(&format!("\\x{{{:02X}}}", u32::from(c))),
            _ if c.is_ascii_graphic() || smtputf8 => coded.push(c),
            _ => coded.push_str(&format!("\\x{{{:02X}}}", u32::from(c))),
        }
    }
    coded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn xtext_hides_no_control_character() {
        for text in ["+00", "a+0D+0Ab", "+0a", "+7F", "+FF", "+0", "+", "+zz", "a=b", "a b", "\u{e9}"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_plus_sign_survives_both_ways() {
        assert_eq!(decode("a+2Bb+3Dc+20d").as_deref(), Some("a+b=c d"));
        assert_eq!(encode("a+b=c d"), "a+2Bb+3Dc+20d");
    }

    #[test]
    fn orcpt_is_an_address_type_and_an_address() {
        let original = decode_orcpt("rfc822;user+2Btag@example.org").expect("valid");
        assert_eq!(&*original.address, "user+tag@example.org");
        assert_eq!(encode_orcpt(&original, false), "rfc822;user+2Btag@example.org");
        for bad in ["rfc822", "rfc822;", ";a", "rf c;a", "rfc822;a+0D+0A", "utf-8;\\x{D}", "utf-8;\\x{110000}"] {
            assert_eq!(decode_orcpt(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_internationalised_original_recipient_is_encoded_as_the_next_hop_can_read_it() {
        let original = decode_orcpt("utf-8;caf\\x{E9}@example.org").expect("valid");
        assert_eq!(&*original.address, "caf\u{e9}@example.org");
        assert_eq!(encode_orcpt(&original, false), "utf-8;caf\\x{E9}@example.org");
        assert_eq!(encode_orcpt(&original, true), "utf-8;caf\u{e9}@example.org");
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes_to_itself(text in "[ -~]{0,40}") {
            prop_assert_eq!(decode(&encode(&text)), Some(text));
        }

        #[test]
        fn any_original_recipient_decodes_to_itself(address in "[ -~\u{e9}\u{4e2d}]{1,40}", smtputf8: bool) {
            let original = OriginalRecipient { address_type: "utf-8".into(), address: address.into() };
            prop_assert_eq!(decode_orcpt(&encode_orcpt(&original, smtputf8)), Some(original));
        }
    }
}

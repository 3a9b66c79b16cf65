//! The domain that a message is from: the From field (RFC 5322 section 3.6.2), which is what DMARC looks at.

use crate::mail::Domain;
use crate::mail::header::{Field, fields};

/// The domain of the From field. `None` if there is no such field, more than one (receivers then disagree about whom to
/// believe), or no address in it.
pub(super) fn domain(content: &[u8]) -> Option<Domain> {
    let mut from = fields(content).filter(|field| field.is("From"));
    match (from.next(), from.next()) {
        (Some(field), None) => domain_of(&field),
        _ => None,
    }
}

fn domain_of(field: &Field<'_>) -> Option<Domain> {
    let bare = without_quotes_and_comments(&field.value());
    let address = match bare.split_once('<') {
        Some((_, rest)) => rest.split_once('>')?.0,
        None => bare.split(',').next()?,
    };
    let (_, domain) = address.rsplit_once('@')?;
    Domain::parse(domain.trim()).ok()
}

/// The field's body with a letter for each quoted string and nothing for comments, so that what is left has no `@`, `<` or
/// comma that means something else.
fn without_quotes_and_comments(body: &str) -> String {
    let mut bare = String::with_capacity(body.len());
    let (mut quoted, mut depth) = (false, 0_u32);
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted || depth > 0 => drop(chars.next()),
            '"' if depth == 0 => {
                quoted = !quoted;
                if quoted {
                    bare.push('q');
                }
            }
            '(' if !quoted => depth += 1,
            ')' if !quoted && depth > 0 => depth -= 1,
            c if !quoted && depth == 0 => bare.push(c),
            _ => {}
        }
    }
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_is_found_in_every_form_of_a_from_field() {
        let forms = [
            "a@Example.ORG",
            "<a@example.org>",
            "A <a@example.org>",
            "\"A, <x@evil.example>\" <a@example.org>",
            "A (not \"b@evil.example\" (nor \\) <c@evil.example>)) <a@example.org>",
            "\"a@evil.example\"@example.org",
            "a@example.org, B <b@example.org>",
            "A\r\n <a@example.org\r\n >",
            "a@example.org (A)",
        ];
        for form in forms {
            let found = domain(format!("Subject: x\r\nFrom: {form}\r\n\r\n").as_bytes());
            assert_eq!(found.as_ref().map(Domain::as_str), Some("example.org"), "{form}");
        }
    }

    #[test]
    fn a_message_without_one_clear_author_is_from_nobody() {
        for header in ["To: a@example.org", "From: A", "From: a@example.org\r\nFROM: b@example.org", "From: A <a@"] {
            assert_eq!(domain(format!("{header}\r\n\r\n").as_bytes()), None, "{header}");
        }
    }
}

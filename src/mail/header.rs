//! Reading a header section (RFC 5322 section 2.2): one linear pass over octets that are not trusted, nothing copied.
//!
//! Nothing is ever written through this module: what we relay leaves as it came.

use std::borrow::Cow;

/// One header field as it stands in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name, without the colon and without the blanks that obsolete syntax allows before it.
    pub name: &'a [u8],
    /// What follows the colon, folds included, without the final line end.
    pub body: &'a [u8],
}

impl<'a> Field<'a> {
    /// Whether this is the field of that name. Names are compared without regard to case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// The body unfolded (RFC 5322 section 2.2.3) and trimmed. Octets that are no UTF-8 are replaced.
    pub fn value(&self) -> Cow<'a, str> {
        match String::from_utf8_lossy(self.body.trim_ascii()) {
            Cow::Borrowed(text) if !text.contains(['\r', '\n']) => Cow::Borrowed(text),
            text => Cow::Owned(text.replace(['\r', '\n'], "")),
        }
    }
}

/// The fields of a header section, in order; ends at the empty line, at the first line that is no field (a body whose
/// header is missing is not searched for fields), or with `octets`.
pub fn fields(octets: &[u8]) -> Fields<'_> {
    Fields { rest: octets }
}

/// See [`fields`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let end = folded_line_end(self.rest);
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = memchr::memchr(b':', line)?;
        let name = line[..colon].trim_ascii_end();
        let well_formed = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        if !well_formed {
            self.rest = &[];
            return None;
        }
        Some(Field { name, body: &line[colon + 1..] })
    }
}

/// Where the line at the start of `octets` ends, with the lines that continue it. An empty line (one or two octets) is
/// continued by nothing: it ends the section.
fn folded_line_end(octets: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', octets)
        .map(|at| at + 1)
        .find(|&end| !matches!(octets.get(end), Some(b' ' | b'\t')) || end <= 2)
        .unwrap_or(octets.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_fields_are_read_as_one_value() {
        let header = b"Subject: a\r\n  long\r\n\tone\r\nFrom:b\r\n\r\nTo: body\r\n";
        let read: Vec<_> = fields(header).map(|field| field.value().into_owned()).collect();
        assert_eq!(read, ["a  long\tone", "b"]);
    }

    #[test]
    fn a_body_without_a_header_has_no_fields() {
        assert_eq!(fields(b"\r\nFrom: x\r\n").count(), 0);
        assert_eq!(fields(b"Hello there: x\r\nFrom: x\r\n").count(), 0);
        assert_eq!(fields(b"no colon\r\nFrom: x\r\n").count(), 0);
        assert_eq!(fields(b"").count(), 0);
    }

    #[test]
    fn names_are_compared_without_case_and_before_blanks() {
        let field = fields(b"MESSAGE-id : <a@b>").next().expect("one field");
        assert!(field.is("Message-ID"));
        assert_eq!(field.value(), "<a@b>");
    }

    #[test]
    fn the_empty_line_ends_the_section_even_before_an_indented_body() {
        assert_eq!(fields(b"From: x\r\n\r\n indented: y\r\n").count(), 1);
    }

    #[test]
    fn a_hundred_thousand_continuation_lines_are_read_in_one_pass() {
        let mut header = b"X: y\r\n".to_vec();
        header.extend(b" z\r\n".repeat(100_000));
        header.extend(b"From: a\r\n");
        assert_eq!(fields(&header).count(), 2);
    }
}

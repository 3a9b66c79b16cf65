//! Text of strangers, made harmless for a line in a log or on a terminal.

use std::fmt::{self, Write};

/// Shows a text with every character escaped that could end the line, move the cursor or turn the direction of reading:
/// C0, DEL, C1, line and paragraph separators, bidirectional controls, zero-width characters and the byte order mark.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(is_harmful) {
            let (harmless, tail) = rest.split_at(at);
            f.write_str(harmless)?;
            let mut chars = tail.chars();
            if let Some(c) = chars.next() {
                write!(f, "\\u{{{:x}}}", u32::from(c))?;
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{feff}')
}

/// Writes `text` as a JSON string, escaped as [`Escaped`] does it but in JSON's own way.
pub(super) fn write_json(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if is_harmful(c) => {
                // All harmful characters lie in the basic plane, so one unit says them.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_forge_a_line_or_turn_the_text_is_escaped() {
        for c in [
            '\r', '\n', '\u{1b}', '\0', '\u{7f}', '\u{85}', '\u{9b}', '\u{2028}', '\u{202e}', '\u{200b}', '\u{feff}',
            '\u{2066}',
        ] {
            let shown = Escaped(&format!("a{c}b")).to_string();
            assert_eq!(shown, format!("a\\u{{{:x}}}b", u32::from(c)));
            let mut json = String::new();
            write_json(&mut json, &format!("a\"{c}b"));
            assert!(!json.contains(c));
            assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), format!("a\"{c}b"));
        }
    }

    #[test]
    fn letters_of_every_script_stay_as_they_are() {
        let text = "bücher 本 <bob@example.org> \\ \"quoted\"";
        assert_eq!(Escaped(text).to_string(), text);
    }
}

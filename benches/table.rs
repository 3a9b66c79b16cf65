//! The table: per row some lines, each a measure of ours, the peer's, and what was to be reached.

use std::fmt;

use serde_json::{Value, json};

/// What a measure must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// At most so much.
    AtMost(f64),
    /// At least so much.
    AtLeast(f64),
    /// The peer's is at least so many times ours.
    Below(f64),
    /// Ours is at least so many times the peer's.
    Above(f64),
    /// Shown only.
    Nothing,
}

/// One measure.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) what: &'static str,
    pub(crate) ours: f64,
    pub(crate) peer: Option<f64>,
    pub(crate) target: Target,
}

impl Line {
    pub(crate) fn new(what: &'static str, ours: f64, target: Target) -> Line {
        Line { what, ours, peer: None, target }
    }

    pub(crate) fn beside(self, peer: Option<f64>) -> Line {
        Line { peer, ..self }
    }

    /// How many times better than the peer, the better way round for the measure.
    fn ratio(&self) -> Option<f64> {
        let peer = self.peer?;
        match self.target {
            Target::Above(_) | Target::AtLeast(_) => Some(self.ours / peer),
            _ => Some(peer / self.ours),
        }
    }

    /// `None`: there was no target, or no peer to hold it against.
    fn met(&self) -> Option<bool> {
        match self.target {
            Target::AtMost(most) => Some(self.ours <= most),
            Target::AtLeast(least) => Some(self.ours >= least),
            Target::Below(times) | Target::Above(times) => self.ratio().map(|ratio| ratio >= times),
            Target::Nothing => None,
        }
    }

    fn verdict(&self) -> &'static str {
        match self.met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        }
    }

    fn json(&self) -> Value {
        let Line { what, ours, peer, target } = self;
        json!({ "what": what, "ours": ours, "postfix": peer, "ratio": self.ratio(), "target": target.to_string(), "met": self.met() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Target::AtMost(most) => format!("<= {}", number(*most)),
            Target::AtLeast(least) => format!(">= {}", number(*least)),
            Target::Below(times) => format!("<= 1/{times} of Postfix"),
            Target::Above(times) => format!(">= {times} x Postfix"),
            Target::Nothing => String::new(),
        };
        f.pad(&text)
    }
}

/// All rows and the machine they were measured on.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<(String, Vec<Line>)>,
    machine: Vec<(&'static str, String)>,
}

impl Table {
    pub(crate) fn new(machine: Vec<(&'static str, String)>) -> Table {
        Table { rows: Vec::new(), machine }
    }

    pub(crate) fn add(&mut self, title: String, lines: Vec<Line>) {
        self.rows.push((title, lines));
    }

    pub(crate) fn all_met(&self) -> bool {
        self.rows.iter().flat_map(|(_, lines)| lines).all(|line| line.met() != Some(false))
    }

    pub(crate) fn json(&self) -> String {
        let row = |(title, lines): &(String, Vec<Line>)| json!({ "row": title, "lines": lines.iter().map(Line::json).collect::<Vec<_>>() });
        let machine: serde_json::Map<String, Value> =
            self.machine.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        json!({ "rows": self.rows.iter().map(row).collect::<Vec<_>>(), "machine": machine }).to_string()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ("", "ours", "Postfix", "ratio", "target", "met");
        writeln!(f, "{:<34}{:>12}{:>12}{:>8}  {:<20}{:<4}", head.0, head.1, head.2, head.3, head.4, head.5)?;
        for (title, lines) in &self.rows {
            writeln!(f, "{title}")?;
            for line in lines {
                let peer = line.peer.map(number).unwrap_or_default();
                let ratio = line.ratio().map(|ratio| format!("{ratio:.1}")).unwrap_or_default();
                let (what, ours, target) = (line.what, number(line.ours), line.target);
                writeln!(f, "  {what:<32}{ours:>12}{peer:>12}{ratio:>8}  {target:<20}{:<4}", line.verdict())?;
            }
        }
        writeln!(f)?;
        self.machine.iter().try_for_each(|(key, value)| writeln!(f, "{key}: {value}"))
    }
}

/// Whole numbers in groups of three, small ones with their fractions.
fn number(value: f64) -> String {
    if value < 100.0 && value.fract() != 0.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

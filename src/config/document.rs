//! A TOML document that remembers where everything stands, so that every problem names its line and key, and that is
//! read to its end: what is wrong is reported and left out, and reading goes on with the rest.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// Most problems of one document that are reported; more of them are usually one mistake.
const PROBLEMS_MAX: usize = 20;

/// One thing that is wrong with a configuration file, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: Arc<str>,
    /// Line and column, from 1; none where a whole file is meant.
    pub place: Option<(usize, usize)>,
    /// The key, `list_host[0].bounces_to`; empty for the file itself.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A configuration file in memory.
pub(super) struct Document {
    file: Arc<str>,
    text: String,
}

impl Document {
    pub(super) fn new(file: impl Into<Arc<str>>, text: impl Into<String>) -> Document {
        Document { file: file.into(), text: text.into() }
    }

    /// Reads the document as a `T`.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the lines, up to [`PROBLEMS_MAX`]. Never an empty list.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Vec<Problem>> {
        let (tree, errors) = DeTable::parse_recoverable(&self.text);
        if !errors.is_empty() {
            return Err(errors.iter().take(PROBLEMS_MAX).map(|error| self.syntax_problem(error)).collect());
        }
        Reading { document: self, original: &tree, left: tree.clone(), broken: Vec::new(), problems: Vec::new() }.run()
    }

    /// A problem of the key at `path`, or of the nearest table above it that is written down.
    pub(super) fn problem(&self, path: &str, message: impl Into<String>) -> Problem {
        let tree = DeTable::parse_recoverable(&self.text).0;
        let span = span_of(tree.as_ref(), path);
        Problem {
            file: Arc::clone(&self.file),
            place: span.map(|span| self.place(span.start)),
            key: path.to_owned(),
            message: message.into(),
        }
    }

    fn syntax_problem(&self, error: &toml::de::Error) -> Problem {
        Problem {
            file: Arc::clone(&self.file),
            place: error.span().map(|span| self.place(span.start)),
            key: String::new(),
            message: format!("not TOML: {}", error.message()),
        }
    }

    /// Line and column of an octet, from 1.
    fn place(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(at)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// Reading with recovery: serde stops at the first error, so the node that it stopped at is taken out and reading
/// starts again.
struct Reading<'a, 'i> {
    document: &'a Document,
    original: &'a Spanned<DeTable<'i>>,
    left: Spanned<DeTable<'i>>,
    /// Keys that were taken out: that they are missing then is no news.
    broken: Vec<String>,
    problems: Vec<Problem>,
}

impl Reading<'_, '_> {
    fn run<T: DeserializeOwned>(mut self) -> Result<T, Vec<Problem>> {
        loop {
            let span = self.left.span();
            let table = Spanned::new(span, DeValue::Table(self.left.get_ref().clone()));
            match T::deserialize(table.into_deserializer()) {
                Ok(value) if self.problems.is_empty() => return Ok(value),
                Ok(_) => break,
                Err(error) => {
                    if !self.note(&error) || self.problems.len() >= PROBLEMS_MAX {
                        break;
                    }
                }
            }
        }
        self.problems.sort_by_key(|problem| problem.place);
        Err(self.problems)
    }

    /// Notes an error and takes its node out. False if there is no such node.
    fn note(&mut self, error: &toml::de::Error) -> bool {
        let span = error.span().unwrap_or_default();
        let path = find(self.original.get_ref(), &span).unwrap_or_default();
        let mut key = render(&path);
        if let Some(missing) = missing_field(error.message()) {
            key = if key.is_empty() { missing.to_owned() } else { format!("{key}.{missing}") };
        }
        if !self.broken.contains(&key) {
            self.problems.push(Problem {
                file: Arc::clone(&self.document.file),
                place: Some(self.document.place(span.start)),
                key: key.clone(),
                message: explain(error.message()),
            });
            self.broken.push(key);
        }
        let node = find(self.left.get_ref(), &span).unwrap_or_default();
        remove(self.left.get_mut(), &node)
    }
}

/// One step from a node to a node below it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

fn render(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.extend([".", key]),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// The way to the deepest node whose key or value stands at `span`.
fn find(table: &DeTable<'_>, span: &Range<usize>) -> Option<Vec<Step>> {
    table.iter().find_map(|(key, value)| {
        let step = Step::Key(key.get_ref().to_string());
        find_below(value, span, step.clone()).or_else(|| (key.span() == *span).then(|| vec![step]))
    })
}

fn find_below(value: &Spanned<DeValue<'_>>, span: &Range<usize>, step: Step) -> Option<Vec<Step>> {
    let deeper = match value.get_ref() {
        DeValue::Table(table) => find(table, span),
        DeValue::Array(array) => {
            array.iter().enumerate().find_map(|(index, item)| find_below(item, span, Step::Index(index)))
        }
        _ => None,
    };
    match deeper {
        Some(mut path) => {
            path.insert(0, step);
            Some(path)
        }
        None => (value.span() == *span).then(|| vec![step]),
    }
}

/// Takes the node at `path` out. False if it is the root or not there.
fn remove(table: &mut DeTable<'_>, path: &[Step]) -> bool {
    match path {
        [Step::Key(key)] => table.remove(key.as_str()).is_some(),
        [Step::Key(key), rest @ ..] => {
            table.get_mut(key.as_str()).is_some_and(|value| remove_below(value.get_mut(), rest))
        }
        _ => false,
    }
}

fn remove_below(value: &mut DeValue<'_>, path: &[Step]) -> bool {
    match (value, path) {
        (DeValue::Table(table), path) => remove(table, path),
        (DeValue::Array(array), [Step::Index(index)]) => {
            let mut kept = DeArray::new();
            array.iter().enumerate().filter(|(at, _)| at != index).for_each(|(_, item)| kept.push(item.clone()));
            let removed = kept.len() < array.len();
            *array = kept;
            removed
        }
        (DeValue::Array(array), [Step::Index(index), rest @ ..]) => {
            array.get_mut(*index).is_some_and(|item| remove_below(item.get_mut(), rest))
        }
        _ => false,
    }
}

/// Where `path` (`list_host[0].weight`) stands; the nearest node above it that exists.
fn span_of(root: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    let mut span = None;
    let mut table = Some(root);
    for part in path.split('.') {
        let (key, indexes) = part.split_once('[').unwrap_or((part, ""));
        let Some((written, mut value)) = table.and_then(|table| table.get_key_value(key)) else { break };
        span = Some(written.span());
        for index in indexes.split(['[', ']']).filter_map(|index| index.parse::<usize>().ok()) {
            let Some(item) = value.get_ref().as_array().and_then(|array| array.get(index)) else { break };
            value = item;
            span = Some(item.span());
        }
        table = value.get_ref().as_table();
    }
    span
}

fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

/// Serde's words, in the words of a person who fixes the file.
fn explain(message: &str) -> String {
    if missing_field(message).is_some() {
        return "required, but missing".to_owned();
    }
    if let Some(unknown) = message.strip_prefix("unknown field `") {
        let mut names = unknown.split('`').step_by(2);
        let written = names.next().unwrap_or_default();
        let known: Vec<&str> = unknown.split('`').skip(2).step_by(2).collect();
        return unknown_key(written, &known);
    }
    message.to_owned()
}

fn unknown_key(written: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|name| (edit_distance(written, name), name)).min();
    let all = known.join(", ");
    match nearest {
        Some((distance, name)) if distance <= 1 + written.len() / 4 => {
            format!("unknown key; did you mean `{name}`? Keys here: {all}")
        }
        _ => format!("unknown key. Keys here: {all}"),
    }
}

/// Levenshtein distance: how many letters differ.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::Raw;

    fn problems(text: &str) -> Vec<String> {
        let problems = Document::new("t.toml", text).read::<Raw>().expect_err("something is wrong");
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_its_neighbour() {
        let found = problems("[delivery]\nport = 25\nexpire_afer = \"5d\"\n");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("t.toml:3:1: delivery.expire_afer: unknown key; did you mean `expire_after`?"));
    }

    #[test]
    fn every_mistake_is_reported_in_the_order_of_the_lines() {
        let found = problems(concat!(
            "hostnam = \"a.example\"\n[spool]\npath = 5\n[[list_host]]\nname = \"l\"\nbounces_to = 7\n",
            "[delivery]\nretry = [\"5m\", \"soon\"]\n[dns]\ntimeout = \"1 fortnight\"\n"
        ));
        let places: Vec<_> = found.iter().map(|line| line.split(": ").nth(1).expect("a key")).collect();
        let expected = ["hostnam", "spool.path", "list_host[0].reverse_path_domains", "list_host[0].bounces_to"];
        assert_eq!(places[..4], expected, "{found:#?}");
        assert_eq!(places[4..], ["delivery.retry[1]", "dns.timeout"], "{found:#?}");
        assert!(found[4].contains("\"soon\" is not a duration"), "{found:#?}");
    }

    #[test]
    fn what_is_no_toml_is_said_with_its_line() {
        let found = problems("[spool\npath = 3\n");
        assert!(found[0].starts_with("t.toml:1:7: not TOML: "), "{found:?}");
    }

    #[test]
    fn a_broken_value_of_a_required_key_is_not_called_missing_too() {
        let found = problems("[[list_host]]\nname = 3\nreverse_path_domains = [\"a.example\"]\nbounces_to = \"a:1\"\n");
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn a_place_counts_characters_not_octets() {
        let document = Document::new("t.toml", "# é\nhostname = \"ü\"\n");
        assert_eq!(document.problem("hostname", "x").place, Some((2, 1)));
        assert_eq!(document.problem("list_host[3].weight", "x").place, None);
    }
}

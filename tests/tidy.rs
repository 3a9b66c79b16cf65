//! The house's own rules, read from the source: who may import whom, how long things may be, what may not be left lying
//! about. Rules that a compiler lint can hold stand in `Cargo.toml` instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file in lines.
const FILE_LINES_MAX: usize = 700;

/// Longest function in lines, signature and closing brace included: one screen.
const FUNCTION_LINES_MAX: usize = 60;

/// What may stand at the top of the repository.
const TOP_LEVEL: [&str; 16] = [
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "clippy.toml",
    "config",
    "deny.toml",
    "deploy",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "src",
    "tests",
];

/// What is there but not part of the repository.
const NOT_OURS: [&str; 3] = [".git", "target", "var"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file with its path from the top and its text.
struct File {
    path: String,
    text: String,
}

/// All text files below `directory` of the repository, in order.
fn files(directory: &str) -> Vec<File> {
    let mut waiting = vec![root().join(directory)];
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("readable").map(|entry| entry.expect("readable").path());
            waiting.extend(entries.filter(|path| !is_left_out(path)));
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.push(File { path: from_top(&path), text });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn is_left_out(path: &Path) -> bool {
    path.is_symlink() || NOT_OURS.contains(&from_top(path).as_str()) || path.ends_with("__pycache__")
}

fn from_top(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the top").display().to_string()
}

fn rust_files(directory: &str) -> Vec<File> {
    files(directory).into_iter().filter(|file| file.path.ends_with(".rs")).collect()
}

/// The lines of a source file that are compiled outside of tests, with their numbers.
fn product_lines(file: &File) -> Vec<(usize, &str)> {
    let is_comment = |line: &str| line.trim_start().starts_with("//");
    let tests = file.text.find("#[cfg(test)]\nmod tests {").unwrap_or(file.text.len());
    let lines = file.text[..tests].lines().enumerate();
    lines.map(|(at, line)| (at + 1, line)).filter(|(_, line)| !is_comment(line)).collect()
}

/// Whether the whole file is compiled for tests only.
fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    path.contains("/tests/") || ["tests", "samples"].contains(&name) || name.ends_with("_tests")
}

fn assert_none(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

/// Which parts a part may import; `None`: all of them.
type Table = BTreeMap<String, Option<BTreeSet<String>>>;

/// The table in the documentation of `src/lib.rs`.
fn import_table() -> Table {
    let library = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let rows = library.lines().filter_map(|line| line.strip_prefix("//! | `")?.split_once(" | "));
    let names =
        |cell: &str| -> BTreeSet<String> { cell.split('`').skip(1).step_by(2).map(|name| name.to_owned()).collect() };
    let mut table = Table::new();
    for (parts, imports) in rows {
        let everything = imports.starts_with("everything") || imports.starts_with("every part");
        for part in names(&format!("`{parts}")) {
            table.insert(part, if everything { None } else { Some(names(imports)) });
        }
    }
    table
}

/// The part that a source file belongs to: its directory or file directly below `src`.
fn part_of(path: &str) -> &str {
    let below = path.strip_prefix("src/").unwrap_or(path);
    below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
}

/// The parts that a text names by `crate::part` or `crate::{part, part::...}`.
fn imports(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = |text: &str| text.split(|c| !is_name(c)).next().unwrap_or_default().to_owned();
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        if text[..at].ends_with(is_name) {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_members(group).iter().map(|member| name(member))),
            None => {
                found.insert(name(rest));
            }
        }
    }
    found.remove("");
    found
}

/// The members of the `{...}` group that `text` stands in, up to its closing brace.
fn group_members(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut members) = (1, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            members.push(text[start..at].trim());
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    members
}

#[test]
fn every_part_imports_only_what_the_table_in_lib_rs_allows() {
    let table = import_table();
    assert!(table.len() > 10, "the table in src/lib.rs was not found: {table:?}");
    let mut offences = Vec::new();
    for file in rust_files("src").iter().filter(|file| !is_test_file(&file.path)) {
        let part = part_of(&file.path);
        if ["lib", "main", "clock"].contains(&part) {
            continue;
        }
        let Some(allowed) = table.get(part) else {
            offences.push(format!("{}: `{part}` is not in the table of src/lib.rs", file.path));
            continue;
        };
        let code: String = product_lines(file).into_iter().map(|(_, line)| format!("{line}\n")).collect();
        let Some(allowed) = allowed else { continue };
        let foreign =
            imports(&code).into_iter().filter(|name| name != part && name != "clock" && !allowed.contains(name));
        offences.extend(foreign.map(|name| format!("{}: `{part}` may not import `{name}`", file.path)));
    }
    assert_none("imports against the table in src/lib.rs", &offences);
}

#[test]
fn imports_are_found_however_they_are_written() {
    let found = imports("use crate::{a, b::{c, d}, e::F};\nfn x(g: crate::g::H) {}\nuse mycrate::z;\nuse crate::i;");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "e", "g", "i"]);
}

#[test]
fn no_source_file_is_longer_than_a_person_reads() {
    let long = rust_files("src").into_iter().filter(|file| file.text.lines().count() > FILE_LINES_MAX);
    let offences: Vec<String> =
        long.map(|file| format!("{}: {} lines", file.path, file.text.lines().count())).collect();
    assert_none(&format!("files over {FILE_LINES_MAX} lines"), &offences);
}

/// Name, first line and length of each function. Relies on rustfmt: the closing brace stands where the signature began.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line.trim_start()) else { continue };
        let close = format!("{}}}", " ".repeat(indent(line)));
        let rest = lines[at..]
            .iter()
            .position(|line| *line == close || (line.ends_with(';') && indent(line) == indent(lines[at])));
        found.push((name.to_owned(), at + 1, rest.map_or(1, |length| length + 1)));
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let mut words =
        line.split(' ').skip_while(|word| word.starts_with("pub") || ["async", "const", "in"].contains(word));
    let name = words.next().filter(|word| *word == "fn").and(words.next())?;
    name.split(['(', '<']).next()
}

#[test]
fn no_function_is_longer_than_a_screen() {
    let mut offences = Vec::new();
    for file in rust_files("src").iter().chain(&rust_files("tests")) {
        let long = functions(&file.text).into_iter().filter(|(_, _, length)| *length > FUNCTION_LINES_MAX);
        offences.extend(long.map(|(name, line, length)| format!("{}:{line}: {name} has {length} lines", file.path)));
    }
    assert_none(&format!("functions over {FUNCTION_LINES_MAX} lines"), &offences);
}

#[test]
fn every_source_file_opens_with_what_it_is_for() {
    let bare = rust_files("src").into_iter().chain(rust_files("tests")).chain(optional("benches"));
    let bare = bare.filter(|file| !file.text.starts_with("//! ") && !is_test_file(&file.path));
    let offences: Vec<String> = bare.map(|file| file.path).collect();
    assert_none("files without a module comment", &offences);
}

/// The Rust files of a directory that may not be there.
fn optional(directory: &str) -> Vec<File> {
    if root().join(directory).exists() { rust_files(directory) } else { Vec::new() }
}

#[test]
fn nothing_unfinished_is_left_lying_about() {
    // Put together here, so that this file does not offend itself.
    let words: Vec<String> = [
        ["to", "do!("],
        ["unimplem", "ented!("],
        ["db", "g!("],
        ["FIX", "ME"],
        ["XX", "X "],
        ["TO", "DO"],
        ["HA", "CK:"],
    ]
    .iter()
    .map(|halves| halves.concat())
    .collect();
    let mut offences = Vec::new();
    for file in files("") {
        for (at, line) in file.text.lines().enumerate() {
            let hit = words.iter().find(|word| line.contains(word.as_str()));
            offences.extend(hit.map(|word| format!("{}:{}: {word}", file.path, at + 1)));
        }
    }
    assert_none("unfinished work", &offences);
}

#[test]
fn no_path_of_a_developers_machine_is_written_down() {
    let places: Vec<String> = ["work", "root", "home"].iter().map(|name| format!("/{name}/")).collect();
    let mut offences = Vec::new();
    for file in files("") {
        for (at, line) in file.text.lines().enumerate() {
            let hit = places.iter().find(|place| line.contains(place.as_str()));
            offences.extend(hit.map(|place| format!("{}:{}: {place}", file.path, at + 1)));
        }
    }
    assert_none("paths of a machine", &offences);
}

#[test]
fn the_top_of_the_repository_holds_only_what_the_design_names() {
    let entries = fs::read_dir(root()).expect("readable").map(|entry| entry.expect("readable").file_name());
    let names = entries.map(|name| name.to_string_lossy().into_owned());
    let foreign: Vec<String> =
        names.filter(|name| !TOP_LEVEL.contains(&name.as_str()) && !NOT_OURS.contains(&name.as_str())).collect();
    assert_none("not part of the design", &foreign);
}

/// Names of the test functions of a file, with their lines.
fn test_names(file: &File) -> Vec<(usize, String)> {
    let lines: Vec<&str> = file.text.lines().map(str::trim_start).collect();
    let is_attribute = |line: &str| line.starts_with("#[test") || line.starts_with("#[tokio::test");
    let starts = lines.iter().enumerate().filter(|(_, line)| is_attribute(line));
    let named = starts.filter_map(|(at, _)| {
        let (below, name) = lines[at..].iter().enumerate().find_map(|(n, line)| Some((n, function_name(line)?)))?;
        Some((at + below + 1, name.to_owned()))
    });
    named.collect()
}

#[test]
fn every_test_is_named_by_a_sentence() {
    let mut offences = Vec::new();
    for file in rust_files("src").iter().chain(&rust_files("tests")) {
        let short = test_names(file).into_iter().filter(|(_, name)| name.split('_').count() < 3);
        offences.extend(short.map(|(line, name)| format!("{}:{line}: {name}", file.path)));
    }
    assert_none("tests whose names are no sentences", &offences);
}

#[test]
fn the_changelog_speaks_of_this_version() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).expect("CHANGELOG.md");
    assert!(changelog.contains(env!("CARGO_PKG_VERSION")), "CHANGELOG.md has no entry for this version");
}

#[test]
fn every_file_that_the_readme_names_is_there() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let places =
        readme.split('`').skip(1).step_by(2).filter(|text| text.contains('/') && !text.contains([' ', ':', '<', '*']));
    let ours = places.filter(|place| TOP_LEVEL.iter().any(|top| place.split('/').next() == Some(top)));
    let missing: Vec<String> = ours
        .map(PathBuf::from)
        .filter(|path| !root().join(path).exists())
        .map(|path| path.display().to_string())
        .collect();
    assert_none("named in README.md but not there", &missing);
}

//! The files in `config/` are what the program believes, and the program refuses a wrong one as it promises.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use posthaste::config::raw::{self, Raw};
use posthaste::config::{Config, ConfigError};
use serde::de::DeserializeOwned;

const DOCUMENTED: &str = include_str!("../config/posthaste.toml");

/// A key that the examples may name.
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/dkim-ed25519.pem");

/// `config/posthaste.toml` with every default and every example switched on.
fn uncommented() -> String {
    let is_setting = |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    let switch_on = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if is_setting(setting) => setting,
        _ => line,
    };
    DOCUMENTED.lines().map(switch_on).collect::<Vec<_>>().join("\n")
}

/// The keys of a table, as serde lists them for one that it does not know.
fn keys<T: DeserializeOwned>() -> Vec<String> {
    let error = toml::from_str::<T>("'?' = 0").err().expect("no table knows this key").to_string();
    let (_, list) = error.split_once("expected ").expect("a list of keys");
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether `key` stands at the beginning of a line of `section`, switched on or off.
fn documents(section: &str, key: &str) -> bool {
    let header = |line: &str| line.trim_start_matches('#').trim_start_matches('[').trim_end_matches(']').to_owned();
    let is_header = |line: &str| line.trim_start_matches('#').starts_with('[');
    let mut current = String::new();
    DOCUMENTED.lines().any(|line| {
        if is_header(line) {
            current = header(line);
        }
        current == section && line.trim_start_matches('#').starts_with(&format!("{key} = "))
    })
}

fn assert_documented<T: DeserializeOwned>(section: &str) {
    for key in keys::<T>() {
        assert!(documents(section, &key), "config/posthaste.toml does not say `{key} = ` in [{section}]");
    }
}

#[test]
fn every_key_stands_in_the_documented_configuration() {
    for key in keys::<Raw>() {
        let is_section = DOCUMENTED.contains(&format!("[{key}]"));
        assert!(is_section || documents("", &key), "config/posthaste.toml lacks {key}");
    }
    assert_documented::<raw::Spool>("spool");
    assert_documented::<raw::Listener>("listener");
    assert_documented::<raw::ListHost>("list_host");
    assert_documented::<raw::Dkim>("dkim");
    assert_documented::<raw::Source>("source");
    assert_documented::<raw::Ingress>("ingress");
    assert_documented::<raw::Dns>("dns");
    assert_documented::<raw::Timeouts>("delivery.timeouts");
    assert_documented::<raw::Tls>("tls");
    assert_documented::<raw::TlsPolicy>("tls_policy");
    assert_documented::<raw::Dispatch>("dispatch");
    assert_documented::<raw::Budget>("budget");
    assert_documented::<raw::Partner>("partner");
    assert_documented::<raw::Bounce>("bounce");
    assert_documented::<raw::Admin>("admin");
    assert_documented::<raw::Log>("log");
    for key in keys::<raw::Delivery>().iter().filter(|key| *key != "timeouts") {
        assert!(documents("delivery", key), "config/posthaste.toml lacks {key} in [delivery]");
    }
}

#[test]
fn the_documented_defaults_are_those_of_the_program() {
    let documented: Raw = toml::from_str(&uncommented()).expect("valid");
    let default = Raw::default();
    assert_eq!(documented.spool, default.spool);
    assert_eq!(documented.ingress, default.ingress);
    assert_eq!(documented.dns, raw::Dns { trust_anchor: documented.dns.trust_anchor.clone(), ..default.dns });
    assert_eq!(documented.delivery, default.delivery);
    assert_eq!(
        documented.tls,
        raw::Tls { roots: documented.tls.roots.clone(), cache: documented.tls.cache.clone(), ..default.tls }
    );
    assert_eq!(documented.dispatch, default.dispatch);
    assert_eq!(documented.admin, raw::Admin { socket: documented.admin.socket.clone(), ..default.admin });
    assert_eq!(documented.log, default.log);
    assert_eq!(
        documented.bounce,
        raw::Bounce {
            from: documented.bounce.from.clone(),
            postmaster: documented.bounce.postmaster.clone(),
            ..default.bounce
        }
    );
    assert_eq!(documented.list_host[0].weight, 1);
}

#[test]
fn the_documented_configuration_is_valid_with_its_examples_too() {
    assert_eq!(toml::from_str::<Raw>(DOCUMENTED).expect("valid"), Raw::default());
    let text = uncommented()
        .replace("providers = \"providers.toml\"", "")
        .replace("roots = \"roots.pem\"", "")
        .replace("\"tls/chain.pem\"", "\"/dev/null\"")
        .replace("\"tls/key.pem\"", "\"/dev/null\"")
        .replace("\"friend.password\"", "\"/proc/version\"")
        .replace("\"dkim/2026a.pem\"", &format!("{KEY:?}"));
    let config = Config::parse("posthaste.toml", &text, Path::new("/")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings, []);
}

#[test]
fn every_example_is_valid_without_a_warning() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
    let examples: Vec<PathBuf> =
        std::fs::read_dir(directory).expect("examples").map(|entry| entry.expect("readable").path()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        let config = Config::load(&example).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.warnings, [], "{}", example.display());
    }
}

#[test]
fn a_wrong_value_is_refused_at_its_own_line_whichever_key_has_it() {
    let text = uncommented()
        .replace("providers = \"providers.toml\"\n", "\n")
        .replace("roots = \"roots.pem\"\n", "\n")
        .replace("\"tls/", "\"/dev/null\" # \"")
        .replace("\"dkim/2026a.pem\"", &format!("{KEY:?}"))
        .replace("\"friend.password\"", "\"/proc/version\"");
    let lines: Vec<&str> = text.lines().collect();
    let (mut refused, mut settings) = (0, 0);
    for (at, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with('#')) else { continue };
        settings += 1;
        for wrong in ["-7", "\"\u{202e}?\"", "[[]]", "{ x = 1 }", "1979-05-27", "nan"] {
            let spoilt = format!("{key} = {wrong}");
            let spoilt = [&lines[..at], &[spoilt.as_str()], &lines[at + 1..]].concat().join("\n");
            match Config::parse("t.toml", &spoilt, Path::new("/")) {
                Ok(_) => {}
                Err(ConfigError::Invalid(problems)) => {
                    refused += 1;
                    let here = problems.iter().any(|problem| problem.place.is_some_and(|(line, _)| line == at + 1));
                    assert!(here, "{key} = {wrong} in line {}: {problems:?}", at + 1);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    // What is taken are free texts: a path may be any.
    assert!(settings > 60 && refused >= settings * 5, "{refused} refused of {settings} settings");
}

fn posthaste(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_posthaste")).args(arguments).output().expect("it runs")
}

#[test]
fn a_wrong_configuration_is_refused_with_exit_code_2_and_all_that_is_wrong() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("posthaste.toml");
    std::fs::write(&file, "[delivery]\nexpire_afer = \"5d\"\n[spool]\npath = 7\n").expect("written");
    let file = file.display().to_string();
    for verb in [&["check"][..], &["config", "show"], &["serve"], &["spool", "fsck"], &["spool", "dump"]] {
        let output = posthaste(&[verb, &["--config", &file]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{file}:2:1: delivery.expire_afer: unknown key; did you mean `expire_after`?")));
        assert!(said.contains(&format!("{file}:4:8: spool.path: ")), "{said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_missing_configuration_and_a_wrong_command_line_exit_with_2() {
    for arguments in [&["check", "--config", "no/such/file.toml"][..], &["chek"], &["check", "--confg", "x"], &[]] {
        assert_eq!(posthaste(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn what_config_show_prints_is_a_configuration() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples/mailman.toml");
    let output = posthaste(&["config", "show", "--config", &example.display().to_string()]);
    assert_eq!(output.status.code(), Some(0));
    let shown = String::from_utf8(output.stdout).expect("UTF-8");
    let (shown, written) =
        (Config::parse("shown", &shown, Path::new("/")).expect("valid"), Config::load(&example).expect("valid"));
    assert_eq!(shown.raw, written.raw);
}

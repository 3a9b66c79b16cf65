//! The configuration: TOML in, each part's `Options` out.
//!
//! **Promise.** A configuration is taken whole or not at all. What is wrong with it is said all at once, each problem
//! with file, line, column, key, and what would be right; nothing is started. What is legal but looks like a mistake is a
//! warning. An empty file is legal: it relays for nobody.
//!
//! [`raw`] is the file as it is written; `translate` checks what only the whole can tell and makes the `Options`;
//! [`providers`] puts the operator's limits over the shipped ones.

mod document;
mod partners;
pub mod providers;
pub mod raw;
pub mod reactions;
mod signing;
mod sources;
mod translate;
pub mod units;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use document::Document;
pub use document::Problem;
use raw::Raw;

use crate::{admin, bounce, delivery, dispatch, ingress, log, route, sign, spool};

/// A configuration that can be started: what every part is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our own name.
    pub hostname: Arc<str>,
    /// The queue on disk.
    pub spool: spool::Options,
    /// Listeners and list hosts.
    pub ingress: ingress::Options,
    /// Resolver, providers, bounce lanes.
    pub route: route::Options,
    /// Towards the world.
    pub delivery: delivery::Options,
    /// Grouping, pacing, retry.
    pub dispatch: dispatch::Options,
    /// Octets per second for all deliveries together.
    pub uplink: Option<u64>,
    /// Resident memory, in octets, above which new mail is refused.
    pub memory: Option<u64>,
    /// Reports.
    pub bounce: bounce::Options,
    /// Metrics and health.
    pub admin: admin::Options,
    /// DKIM.
    pub sign: sign::Options,
    /// The log.
    pub log: log::Options,
    /// The file as it was read, for `config show`.
    pub raw: Raw,
    /// What is legal but looks like a mistake.
    pub warnings: Vec<Problem>,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("{path}: {error}; nothing was started", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Something in it is wrong. Never an empty list.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl Config {
    /// Reads the configuration at `path`, and the providers file that it names.
    ///
    /// # Errors
    /// [`ConfigError`]: unreadable, or with everything that is wrong.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = read(path)?;
        Config::parse(&path.display().to_string(), &text, path.parent().unwrap_or(Path::new("")))
    }

    /// Reads a configuration from `text`. `file` is what errors call it; relative paths in it start at `directory`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &str, text: &str, directory: &Path) -> Result<Config, ConfigError> {
        let document = Document::new(file, text);
        let raw: Raw = document.read().map_err(ConfigError::Invalid)?;
        let own = match &raw.providers {
            Some(path) => Some(providers_document(&document, &directory.join(path))?),
            None => None,
        };
        translate::translate(raw, &document, own.as_ref(), directory).map_err(ConfigError::Invalid)
    }
}

fn providers_document(document: &Document, path: &Path) -> Result<Document, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Document::new(path.display().to_string(), text)),
        Err(error) => {
            let message = format!("{} cannot be read: {error}", path.display());
            Err(ConfigError::Invalid(vec![document.problem("providers", message)]))
        }
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError::Io { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The example of the manual: the smallest configuration that relays.
    const SMALL: &str = r#"
hostname = "relay.example.net"
[spool]
path = "var/spool"
[[listener]]
address = "127.0.0.1:2525"
[[list_host]]
name = "lists"
networks = ["127.0.0.0/8"]
reverse_path_domains = ["Lists.Example.ORG"]
bounces_to = "127.0.0.1:2600"
[dns]
servers = ["127.0.0.1:5300"]
[delivery]
port = 25
allow_networks = ["127.0.0.0/8"]
retry = ["5m", "10m", "20m", "40m", "1h", "2h", "4h"]
expire_after = "5d"
[admin]
address = "127.0.0.1:8025"
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse("posthaste.toml", text, Path::new("/etc/posthaste"))
    }

    /// Keys and messages of what is wrong with [`SMALL`] after `from` was replaced.
    fn problems(from: &str, to: &str) -> Vec<(String, String)> {
        assert!(SMALL.contains(from), "{from}");
        match parse(&SMALL.replacen(from, to, 1)) {
            Ok(config) => config.warnings.into_iter().map(|problem| (problem.key, problem.message)).collect(),
            Err(ConfigError::Invalid(problems)) => {
                problems.into_iter().map(|problem| (problem.key, problem.message)).collect()
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_example_of_the_manual_is_read() {
        let config = parse(SMALL).expect("valid");
        assert_eq!(config.warnings, []);
        assert_eq!(&*config.hostname, "relay.example.net");
        assert_eq!(config.spool.path, Path::new("/etc/posthaste/var/spool"));
        let host = &config.ingress.list_hosts[0];
        assert_eq!(host.reverse_path_domains, ["lists.example.org"]);
        assert_eq!((host.bounces_to[0].port, host.weight), (2600, 1));
        assert_eq!(config.dispatch.retry.delays.len(), 7);
        assert_eq!(config.dispatch.retry.expire_after, Duration::from_secs(5 * 86_400));
        assert_eq!(config.route.own_addresses, [config.ingress.listeners[0].address]);
    }

    #[test]
    fn every_mistake_about_a_source_names_its_key_and_the_remedy() {
        let plain = "name = \"a\"\naddresses = [\"127.0.0.2\"]";
        let twice = format!("{plain}\n[[source]]\nname = \"b\"\nproviders = [\"google\"]\naddresses = [\"127.0.0.3\"]");
        let cases = [
            ("name = \"a b\"\naddresses = [\"127.0.0.2\"]", "source[0].name", "characters"),
            ("name = \"a\"\naddresses = []", "source[0].addresses", "at least one"),
            ("name = \"a\"\naddresses = [\"0.0.0.0\"]", "source[0].addresses[0]", "no address"),
            ("name = \"a\"\naddresses = [\"::1\", \"::1\"]", "source[0].addresses[1]", "twice"),
            (&format!("{plain}\nlist_hosts = [\"x\"]"), "source[0].list_hosts[0]", "no [[list_host]] \"x\""),
            (&format!("{plain}\nproviders = [\"x\"]"), "source[0].providers[0]", "google"),
            (&format!("{plain}\nhostname = \"x\""), "source[0].hostname", "out1.example.net"),
            (&format!("{plain}\n[[source]]\n{plain}"), "source[1].name", "already"),
            (&twice, "source[1]", "source[0] \"a\" above it takes all"),
        ];
        for (lines, key, remedy) in cases {
            assert_problem("[admin]", &format!("[[source]]\n{lines}\n[admin]"), key, remedy);
        }
    }

    #[test]
    fn a_source_with_conditions_may_stand_before_one_without() {
        let sources = "[[source]]\nname = \"g\"\naddresses = [\"127.0.0.2\"]\nproviders = [\"google\"]\n\
                       [[source]]\nname = \"rest\"\naddresses = [\"127.0.0.3\"]\nhostname = \"Out.Example.NET\"\n[admin]";
        let config = parse(&SMALL.replacen("[admin]", sources, 1)).expect("valid");
        let names: Vec<&str> = config.delivery.sources.iter().map(|source| &*source.hostname).collect();
        assert_eq!(names, ["relay.example.net", "out.example.net"]);
    }

    /// A key of the test data.
    const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/dkim-ed25519.pem");
    const TWICE: &str =
        "domain = \"x.org\"\nselector = \"a\"\nkey = \"KEY\"\n[[dkim]]\ndomain = \"X.org\"\nselector = \"A\"";
    const STRANGER: &str = "domain = \"x.org\"\nselector = \"a\"\nlist_hosts = [\"other\"]";

    /// `[[dkim]]` with these lines and this key, before `[admin]`.
    fn dkim(lines: &str, key: &str) -> String {
        format!("[[dkim]]\n{}\nkey = {key:?}\n[admin]", lines.replace("KEY", key))
    }

    #[test]
    fn every_mistake_about_a_signing_key_names_its_key_and_the_remedy() {
        let cases = [
            ("domain = \"org\"\nselector = \"a\"", KEY, "dkim[0].domain", "example.org"),
            ("domain = \"x.org\"\nselector = \"a b\"", KEY, "dkim[0].selector", "2026a"),
            ("domain = \"x.org\"\nselector = \"a\"", "none.pem", "dkim[0].key", "/etc/posthaste/none.pem"),
            ("domain = \"x.org\"\nselector = \"a\"", "/dev/null", "dkim[0].key", "private key in PEM"),
            (TWICE, KEY, "dkim[1].selector", "a._domainkey.x.org"),
            (STRANGER, KEY, "dkim[0].list_hosts[0]", "no [[list_host]] \"other\""),
        ];
        for (lines, file, key, remedy) in cases {
            assert_problem("[admin]", &dkim(lines, file), key, remedy);
        }
    }

    #[test]
    fn an_empty_file_is_valid_and_relays_for_nobody() {
        let config = parse("").expect("valid");
        assert!(config.ingress.list_hosts.is_empty() && config.ingress.listeners.is_empty());
        assert!(config.admin.address.ip().is_loopback());
        assert!(config.warnings.iter().any(|warning| warning.message.contains("relays for nobody")));
    }

    #[test]
    fn every_kind_of_mistake_names_its_key_and_the_remedy() {
        let cases = [
            ("\"relay.example.net\"", "\"relay\"", "hostname", "relay.example.net"),
            ("[\"127.0.0.0/8\"]\nrev", "[\"0.0.0.0/0\"]\nrev", "list_host[0].networks", "open relay"),
            ("[\"Lists.Example.ORG\"]", "[]", "list_host[0].reverse_path_domains", "could send nothing"),
            ("[\"Lists.Example.ORG\"]", "[\"@x.org\"]", "list_host[0].reverse_path_domains[0]", "lists.example.org"),
            ("\"127.0.0.1:2600\"", "[]", "list_host[0].bounces_to", "no other way"),
            ("127.0.0.1:2600", "127.0.0.1:2525", "list_host[0].bounces_to[0]", "come back to us"),
            ("bounces_to", "weight = 0\nbounces_to", "list_host[0].weight", "at least 1"),
            ("port = 25", "port = 0", "delivery.port", "at least 1"),
            (
                "retry = [\"5m\", \"10m\", \"20m\", \"40m\", \"1h\", \"2h\", \"4h\"]",
                "retry = []",
                "delivery.retry",
                "[\"5m\"",
            ),
            ("\"5d\"", "\"4m\"", "delivery.expire_after", "one attempt"),
            ("127.0.0.1:8025", "192.0.2.1:8025", "admin.address", "127.0.0.1"),
            ("127.0.0.1:8025", "127.0.0.1:2525", "listener[0].address", "must move"),
            (
                "[dns]",
                "[[list_host]]\nname = \"lists\"\nnetworks = [\"::1\"]\nreverse_path_domains = [\"a.example\"]\nbounces_to = \"a.example:25\"\n[dns]",
                "list_host[1].name",
                "already",
            ),
            (
                "[[list_host]]",
                "tls_certificate = \"/dev/null\"\n[[list_host]]",
                "listener[0].tls_certificate",
                "tls_key",
            ),
            (
                "bounces_to",
                "users = [{ name = \"u\", password_hash = \"x\" }]\nbounces_to",
                "list_host[0].users[0].password_hash",
                "hash-password",
            ),
            ("[admin]", "[bounce]\nfrom = \"me\"\n[admin]", "bounce.from", "postmaster@example.org"),
        ];
        for (from, to, key, remedy) in cases {
            assert_problem(from, to, key, remedy);
        }
    }

    fn assert_problem(from: &str, to: &str, key: &str, remedy: &str) {
        let found = problems(from, to);
        let hit = found.iter().any(|(at, message)| at == key && message.contains(remedy));
        assert!(hit, "{from} -> {to}: {found:?}");
    }

    #[test]
    fn a_problem_names_file_line_and_column() {
        let error = parse(&SMALL.replacen("port = 25", "port = 0", 1)).expect_err("refused").to_string();
        assert!(error.starts_with("posthaste.toml:15:1: delivery.port: "), "{error}");
    }

    #[test]
    fn what_config_show_prints_can_be_read_again() {
        let config = parse(SMALL).expect("valid");
        let shown = toml::to_string(&config.raw).expect("TOML");
        assert_eq!(parse(&shown).expect("valid").raw, config.raw);
    }

    #[test]
    fn a_password_hash_is_never_shown() {
        let text = SMALL.replacen("bounces_to", "users = [{ name = \"u\", password_hash = \"$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaA\" }]\nbounces_to", 1);
        let config = parse(&text).expect("valid");
        for shown in [toml::to_string(&config.raw).expect("TOML"), format!("{config:?}")] {
            assert!(!shown.contains("c29tZXNhbHQ"), "{shown}");
        }
    }
}

//! The command line: one file per verb.
//!
//! Exit codes: 0 the job is done; 1 the job failed; 2 the command line or the configuration is wrong, and nothing was
//! started.

mod check;
mod config;
mod rehearse;
mod relay;
mod serve;
mod site;
mod spool;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError};
use crate::log::Escaped;

const EXAMPLES: &str = "\
Examples:
  posthaste rehearse                        needs nothing from outside
  posthaste check --config posthaste.toml
  posthaste check --dns                     compares DKIM keys with the DNS
  posthaste serve --config posthaste.toml
  posthaste site list                       what is held, and why
  posthaste config hash-password < FILE     for the users of a [[list_host]]

Signals: SIGTERM drains and ends; SIGHUP reloads the configuration.
Exit codes: 0 done, 1 failed, 2 wrong command line or configuration.";

/// A dedicated outbound smarthost: list servers relay to it, it delivers their mail to the world.
#[derive(Debug, Parser)]
#[command(name = "posthaste", version, after_help = EXAMPLES, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Relay mail until SIGTERM
    Serve(ConfigFile),
    /// Check a configuration and say what it means; start nothing
    Check(check::Arguments),
    /// Show a configuration with every default, or hash a password for it
    #[command(subcommand)]
    Config(config::Verb),
    /// Show where mail goes and what holds it; suspend and resume
    #[command(subcommand)]
    Site(site::Verb),
    /// Check or print a spool that no relay is using
    #[command(subcommand)]
    Spool(spool::Verb),
    /// Rehearse a mailing: the real relay, a simulated internet, nothing leaves this machine
    Rehearse(Box<rehearse::Arguments>),
}

/// Where the configuration is.
#[derive(Clone, Debug, Args)]
struct ConfigFile {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = "/etc/posthaste/posthaste.toml")]
    config: PathBuf,
}

impl ConfigFile {
    /// Reads the configuration and says its warnings.
    fn load(&self) -> Result<Config, Failure> {
        let config = Config::load(&self.config)?;
        for warning in &config.warnings {
            eprintln!("warning: {}", Escaped(&warning.to_string()));
        }
        Ok(config)
    }
}

/// Why a verb did not do its job.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Exit code 2.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Exit code 1.
    #[error("{}", chain(.0))]
    Job(#[from] anyhow::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Config(_) => 2,
            Failure::Job(_) => 1,
        })
    }
}

/// An error with its causes, each said once: many already repeat their cause in their own words.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    text
}

/// Reads the command line and does what it says. A wrong command line ends the process with 2.
pub fn main() -> ExitCode {
    match run(CommandLine::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Line by line: a configuration error has a line per problem.
            for line in failure.to_string().lines() {
                eprintln!("error: {}", Escaped(line));
            }
            failure.exit_code()
        }
    }
}

fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Serve(file) => serve::run(&file),
        Verb::Check(arguments) => check::run(&arguments),
        Verb::Config(verb) => config::run(verb),
        Verb::Site(verb) => site::run(&verb),
        Verb::Spool(verb) => spool::run(&verb),
        Verb::Rehearse(arguments) => rehearse::run(&arguments),
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(anyhow::Error::from(error).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_failure_says_each_of_its_causes_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the spool cannot be read: {0}")]
        struct Unreadable(#[source] std::io::Error);
        let error = anyhow::Error::from(Unreadable(std::io::ErrorKind::NotFound.into())).context("var/spool");
        assert_eq!(Failure::from(error).to_string(), "var/spool: the spool cannot be read: entity not found");
    }

    #[test]
    fn the_help_fits_a_terminal_of_80_columns() {
        // Clap wraps the rest by itself.
        assert!(EXAMPLES.lines().all(|line| line.chars().count() <= 80), "{EXAMPLES}");
    }
}

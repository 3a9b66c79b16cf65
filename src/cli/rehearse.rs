//! `posthaste rehearse`: a dress rehearsal.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{Failure, print};
use crate::rehearse::{self, Options, ProgressStyle, Scenario};

/// What is rehearsed, and with what.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Recipients of the mailing
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    recipients: u32,
    /// Recipients per transaction that the list host sends; 1 is VERP
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    batch: u32,
    /// SMTP sessions of the list host at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    sessions: u32,
    /// Your own subscribers, one address a line; only the domains are used, nothing is sent to them
    #[arg(long, value_name = "FILE")]
    subscribers: Option<PathBuf>,
    /// Your own message, as it would be sent
    #[arg(long, value_name = "FILE.eml")]
    message: Option<PathBuf>,
    /// The weather in the simulated internet: default, fast, greylist, dead-hosts, one-domain, tarpit, full-house,
    /// t1-overflow, fd-64
    #[arg(long, value_name = "NAME", default_value = "default")]
    scenario: Scenario,
    /// Your own configuration: its limits and pacing are rehearsed; addresses, spool and list hosts are replaced
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Makes the run repeatable
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Limit on open files of the relay
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(64..))]
    fd_limit: Option<u64>,
    /// Kill the relay (kill -9) so many times at random moments, and start it again
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1000))]
    kills: u32,
    /// Seconds until what is left counts as queued
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    deadline: u64,
    /// Leave configuration, spool and log where they are
    #[arg(long)]
    keep: bool,
    /// No progress; one JSON object at the end
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn options(&self) -> Options {
        Options {
            recipients: self.recipients,
            batch: self.batch as usize,
            sessions: self.sessions as usize,
            subscribers: self.subscribers.clone(),
            message: self.message.clone(),
            scenario: self.scenario,
            config: self.config.clone(),
            seed: self.seed,
            fd_limit: self.fd_limit,
            kills: self.kills,
            deadline: Duration::from_secs(self.deadline),
            keep: self.keep,
            progress: if self.json { ProgressStyle::Off } else { ProgressStyle::Auto },
            ..Options::default()
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().context("the threads could not be started")?;
    let report = runtime.block_on(rehearse::run(arguments.options()))?;
    print(&if arguments.json { format!("{}\n", report.to_json()) } else { report.to_text() })?;
    if report.passed() {
        return Ok(());
    }
    Err(Failure::Job(anyhow::anyhow!("the rehearsal has not passed: {}", report.failures().join("; "))))
}

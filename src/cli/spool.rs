//! `posthaste spool`: looks at a spool that no relay is using.

use std::fmt::Write as _;
use std::io::{BufWriter, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{Failure, print};
use crate::config::Config;
use crate::spool::{FsckError, FsckReport, dump, fsck};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Check every record and content; change nothing. Exit code 1 if something is damaged
    Fsck {
        #[command(flatten)]
        place: Place,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print every record, one JSON object per line
    Dump {
        #[command(flatten)]
        place: Place,
    },
}

/// Which spool.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Place {
    /// The spool's directory
    path: Option<PathBuf>,
    /// The configuration that names it
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    fn directory(&self) -> Result<PathBuf, Failure> {
        match (&self.path, &self.config) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(config)) => Ok(Config::load(config)?.spool.path),
            (None, None) => Err(Failure::Job(anyhow::anyhow!("which spool? give its directory, or --config FILE"))),
        }
    }
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::Fsck { place, json } => check(place, *json),
        Verb::Dump { place } => print_all(&place.directory()?),
    }
}

fn print_all(path: &Path) -> Result<(), Failure> {
    match dump(path, BufWriter::new(std::io::stdout().lock())) {
        // A reader that has seen enough (`| head`) is no failure.
        Err(FsckError::Io(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        dumped => Ok(dumped.with_context(|| path.display().to_string())?),
    }
}

fn check(place: &Place, json: bool) -> Result<(), Failure> {
    let path = place.directory()?;
    let report = fsck(&path).with_context(|| path.display().to_string())?;
    let text = if json { as_json(&report)? } else { as_text(&report) };
    print(&text)?;
    match report.damage.len() {
        0 => Ok(()),
        count => Err(Failure::Job(anyhow::anyhow!(
            "{count} damaged places; what they held is lost or held, the rest is sound"
        ))),
    }
}

fn as_json(report: &FsckReport) -> Result<String, Failure> {
    Ok(serde_json::to_string(report).map_err(anyhow::Error::from)? + "\n")
}

fn as_text(report: &FsckReport) -> String {
    let mut text =
        format!("{} segments, {} octets, {} content files\n", report.segments, report.octets, report.content_files);
    for (kind, count) in &report.records {
        let _ = writeln!(text, "{count:>10} {kind}");
    }
    for damage in &report.damage {
        let _ =
            writeln!(text, "damaged: {} at {}, {} octets: {}", damage.file, damage.offset, damage.length, damage.what);
    }
    text
}

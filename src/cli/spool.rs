//! `posthaste spool`: looks at a spool that no relay is using.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Failure, print};
use crate::config::Config;
use crate::spool::{FsckReport, dump, fsck};

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
        Verb::Dump { place } => {
            let out = std::io::BufWriter::new(std::io::stdout().lock());
            dump(&place.directory()?, out).map_err(anyhow::Error::from)?;
            Ok(())
        }
    }
}

fn check(place: &Place, json: bool) -> Result<(), Failure> {
    let report = fsck(&place.directory()?).map_err(anyhow::Error::from)?;
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

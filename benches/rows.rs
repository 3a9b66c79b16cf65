//! The rows: what is measured, and what it must come to ("Speed and memory to design for").

use std::path::PathBuf;

use clap::ValueEnum;

use crate::machine;
use crate::stage::{self, Load, Measured, Ours, Stage};
use crate::table::{Line, Target};

/// List-host sessions for batches, and for single messages.
const FEW: usize = 8;
const MANY: usize = 50;
/// How often ours is measured.
const RUNS: usize = 3;
const MEBIBYTE: f64 = (1u64 << 20) as f64;
const MEGABYTE: f64 = 1e6;

/// How all rows are measured.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) quick: bool,
    pub(crate) beside_postfix: bool,
    pub(crate) directory: PathBuf,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// 20,000 recipients in batches of 50.
    Fifty,
    /// 20,000 recipients in batches of 5.
    Five,
    /// 20,000 messages to one recipient each.
    Distinct,
    /// The same, but nothing is delivered.
    Ingest,
    /// 1,000,000 recipients in the queue.
    Million,
}

impl Row {
    fn load(self, setting: &Setting) -> Load {
        let scale = |full: u32, quick: u32| if setting.quick { quick } else { full };
        let load = |recipients, batch, sessions, distinct| Load { recipients, batch, sessions, distinct };
        match self {
            Row::Fifty => load(scale(20_000, 2000), 50, FEW, false),
            Row::Five => load(scale(20_000, 2000), 5, FEW, false),
            Row::Distinct => load(scale(20_000, 2000), 1, MANY, true),
            Row::Ingest => load(scale(50_000, 2000), 1, MANY, true),
            Row::Million => load(scale(1_000_000, 20_000), 1000, FEW, true),
        }
    }

    pub(crate) fn title(self, setting: &Setting) -> String {
        let Load { recipients, batch, sessions, .. } = self.load(setting);
        match self {
            Row::Fifty | Row::Five => format!("{recipients} recipients in batches of {batch}, {sessions} sessions"),
            Row::Distinct => format!("{recipients} distinct messages, end to end, {sessions} sessions"),
            Row::Ingest => format!("{recipients} distinct messages taken and held, {sessions} sessions"),
            Row::Million => format!("{recipients} recipients in the queue"),
        }
    }

    pub(crate) async fn measure(self, setting: &Setting) -> anyhow::Result<Vec<Line>> {
        let load = self.load(setting);
        match self {
            Row::Fifty => batches(setting, load, (8.0, 15.0)).await,
            Row::Five => batches(setting, load, (10.0, 22.0)).await,
            Row::Distinct => distinct(setting, load).await,
            Row::Ingest => ingest(setting, load).await,
            Row::Million => million(setting, load).await,
        }
    }
}

/// Ours and, where wanted, Postfix's. Ours takes a second or two, in which anything may pass over the machine: it is run
/// before and after Postfix, and the median counts.
async fn both(setting: &Setting, load: Load) -> anyhow::Result<(Measured, Option<Measured>)> {
    let (mut ours, mut peer) = (Vec::new(), None);
    for run in 0..if setting.quick { 1 } else { RUNS } {
        ours.push(stage::through_posthaste(&setting.directory, load).await?);
        if run == 0 && setting.beside_postfix {
            peer = Some(stage::through_postfix(&setting.directory, load).await?);
        }
    }
    ours.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    Ok((ours[ours.len() / 2], peer))
}

async fn batches(setting: &Setting, load: Load, (time, bytes): (f64, f64)) -> anyhow::Result<Vec<Line>> {
    let (ours, peer) = both(setting, load).await?;
    let of = |value: fn(&Measured) -> f64| (value(&ours), peer.as_ref().map(value));
    let line = |what, (ours, peer): (f64, Option<f64>), target| Line::new(what, ours, target).beside(peer);
    Ok(vec![
        line("seconds, first MAIL to last", of(|m| m.seconds), Target::Below(time)),
        line("transactions", of(|m| m.transactions as f64), Target::AtMost(700.0)),
        line("megabytes on the wire", of(|m| m.bytes as f64 / MEGABYTE), Target::Below(bytes)),
        line("peak connections", of(|m| f64::from(m.peak_connections)), Target::Nothing),
    ])
}

async fn distinct(setting: &Setting, load: Load) -> anyhow::Result<Vec<Line>> {
    let (ours, peer) = both(setting, load).await?;
    let rate = |measured: &Measured| f64::from(load.recipients) / measured.seconds;
    let connections = Line::new("peak connections", ours.peak_connections.into(), Target::Nothing);
    Ok(vec![
        Line::new("messages per second", rate(&ours), Target::Above(4.0)).beside(peer.as_ref().map(rate)),
        connections.beside(peer.map(|peer| peer.peak_connections.into())),
    ])
}

async fn ingest(setting: &Setting, load: Load) -> anyhow::Result<Vec<Line>> {
    let stage = Stage::set(load.recipients, true).await?;
    let ours = Ours::start(&setting.directory, &stage).await?;
    let taken = stage.hand_over(ours.address, load).await?;
    let [p50, p99, _] = taken.counts.hand_over.map(|wait| wait.as_secs_f64() * 1000.0);
    Ok(vec![
        Line::new("messages per second", f64::from(load.recipients) / taken.seconds, Target::AtLeast(5000.0)),
        Line::new("ms from final dot to 250, p50", p50, Target::Nothing),
        Line::new("ms from final dot to 250, p99", p99, Target::AtMost(50.0)),
    ])
}

async fn million(setting: &Setting, load: Load) -> anyhow::Result<Vec<Line>> {
    let stage = Stage::set(load.recipients, true).await?;
    let ours = Ours::start(&setting.directory, &stage).await?;
    let taken = stage.hand_over(ours.address, load).await?;
    let rss = ours.relay.peaks().rss as f64 / MEBIBYTE;
    let (ours, ready) = ours.restart().await?;
    let again = ours.relay.peaks().rss as f64 / MEBIBYTE;
    let work = machine::cpu_time(ours.relay.pid())?;
    ours.await_queue(load.recipients.into()).await?;
    Ok(vec![
        Line::new("recipients per second taken", f64::from(load.recipients) / taken.seconds, Target::Nothing),
        Line::new("MiB resident at most", rss.max(again), Target::AtMost(256.0)),
        Line::new("seconds from kill -9 to ready", ready.as_secs_f64(), Target::AtMost(1.0)),
        Line::new("of them, processor time", work.as_secs_f64(), Target::Nothing),
    ])
}

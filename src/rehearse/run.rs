//! One rehearsal from beginning to end: world up, relay up, mailing out, kills in between, and the reckoning.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::internet::{Counts, Internet, Totals};
use super::list_host::{self, Bounces, ListHost, Mailing};
use super::options::Options;
use super::overflow::{Line, Overflow};
use super::progress::{Progress, Standing};
use super::relay::{self, Program, Queue, Relay, Setting, Workspace};
use super::report::{BrokenLimit, HandOver, Report, Site, in_seconds};
use super::world::{self, Dice, Groups, PARTNER, PARTNERS_SUFFIXES, World};

/// How often the rehearsal looks around.
const TICK: Duration = Duration::from_millis(20);
/// Longest time for the relay to start, and to drain after SIGTERM.
const RELAY_PATIENCE: Duration = Duration::from_secs(30);
/// How long the relay's own count of its queue may lag behind what everybody has seen arrive.
const QUEUE_LAG_MAX: Duration = Duration::from_secs(10);
/// A relay whose queue is empty and from which nothing has come for this long has lost what is still missing; longer
/// than it may gather failures for one report.
const NOTHING_MORE: Duration = Duration::from_secs(15);
/// Octets of MAIL, DATA and the final dot, which every further transaction would have cost.
const TRANSACTION_COMMANDS: u64 = 70;

/// Runs a rehearsal.
///
/// # Errors
/// When it cannot be carried out: a file that cannot be read, a relay that does not start or dies by itself. What the
/// relay does wrong is no error but a [`Report`] that has not passed.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let mut rehearsal = Rehearsal::set_up(options).await?;
    let ended = rehearsal.play().await;
    rehearsal.progress.end();
    match ended {
        Ok(()) => rehearsal.reckon().await,
        Err(error) => {
            rehearsal.workspace.keep();
            let place = rehearsal.workspace.path().display().to_string();
            Err(error.context(format!("the rehearsal could not be finished; what there is of it is in {place}")))
        }
    }
}

/// Everything on stage.
struct Rehearsal {
    options: Options,
    internet: Arc<Internet>,
    groups: Groups,
    mailing: Arc<Mailing>,
    bounces: Arc<Bounces>,
    list_host: Arc<ListHost>,
    sending: JoinHandle<()>,
    /// `None` only while it is being started again.
    relay: Option<Relay>,
    workspace: Workspace,
    progress: Progress,
    kills: Kills,
    /// When everybody's fate was known.
    settled: Option<Instant>,
    /// Recipients whose fate is known, and since when it has been so many.
    known: (u64, Instant),
    deadline_reached: bool,
    line: Line,
}

/// When the relay is killed: at random shares of the work, so that every kill finds some.
struct Kills {
    /// Shares from 0 to 1, the last first.
    at: Vec<f64>,
    done: u32,
}

impl Kills {
    fn new(count: u32, seed: u64) -> Kills {
        let mut dice = Dice::new(seed ^ 0x6b69_6c6c);
        let mut at: Vec<f64> = (0..count).map(|_| dice.share()).collect();
        at.sort_by(|a, b| b.total_cmp(a));
        Kills { at, done: 0 }
    }

    /// Whether it is time for the next one; that is then done with.
    fn strike(&mut self, share: f64) -> bool {
        let strikes = self.at.last().is_some_and(|at| *at <= share);
        if strikes {
            self.at.pop();
            self.done += 1;
        }
        strikes
    }
}

impl Rehearsal {
    async fn set_up(options: Options) -> anyhow::Result<Rehearsal> {
        ensure!(options.batch > 0 && options.sessions > 0, "a batch and the number of sessions must be at least 1");
        let World { builder, recipients, groups } = make_world(&options)?;
        ensure!(!recipients.is_empty(), "a mailing needs at least one recipient");
        let mailing = Arc::new(make_mailing(&options, recipients)?);
        let bounces = Arc::new(Bounces::new(Arc::clone(&mailing)));
        let taker = Arc::clone(&bounces);
        let builder = builder.watch(world::LIST_DOMAIN, move |dsn| taker.take(&dsn.content));
        let internet = Arc::new(builder.start().await.context("the simulated internet does not start")?);
        if !mailing.distinct {
            internet.expect(&mailing.content(0));
        }
        let workspace = Workspace::new(options.directory.as_deref()).context("no place for the relay's spool")?;
        let (listen, program) = prepare(&options, &internet, &workspace)?;
        let relay = Relay::start(program).await?;
        let list_host = make_list_host(&options, listen, &mailing, &internet);
        let progress = Progress::new(options.progress, mailing.recipients.len().into());
        let kills = Kills::new(options.kills, options.seed);
        let sending = tokio::spawn(Arc::clone(&list_host).send());
        Ok(Rehearsal {
            options,
            internet,
            groups,
            mailing,
            bounces,
            list_host,
            sending,
            relay: Some(relay),
            workspace,
            progress,
            kills,
            settled: None,
            known: (0, Instant::now()),
            deadline_reached: false,
            line: Line::default(),
        })
    }

    /// Until everybody's fate is known and the relay's queue is empty, or the deadline.
    async fn play(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.options.deadline;
        loop {
            let now = Instant::now();
            if self.options.scenario.uplink().is_some() {
                self.line.note(now, self.internet.bytes());
            }
            if self.progress.is_due(now) {
                let standing = self.standing();
                self.progress.show(now, &standing);
            }
            if self.is_over().await {
                return Ok(());
            }
            if now >= deadline {
                self.deadline_reached = true;
                self.list_host.stop();
                return Ok(());
            }
            self.notice_death()?;
            if self.settled.is_none() && self.kills.strike(self.share_done()) {
                self.kill().await?;
            }
            sleep(TICK).await;
        }
    }

    fn standing(&self) -> Standing {
        let states = self.groups.states(&self.internet, &self.bounces);
        let mut waiting: Vec<(String, u64)> =
            states.into_iter().map(|state| (state.name.clone(), state.waiting())).filter(|(_, n)| *n > 0).collect();
        waiting.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Standing {
            recipients: self.mailing.recipients.len().into(),
            accepted: self.list_host.counts().accepted,
            delivered: self.internet.totals().delivered,
            bounced: self.bounces.bounced(),
            waiting,
        }
    }

    async fn is_over(&mut self) -> bool {
        let known = self.internet.totals().delivered + self.bounces.bounced();
        if known != self.known.0 {
            self.known = (known, Instant::now());
        }
        if !self.sending.is_finished() {
            return false;
        }
        if known < self.list_host.counts().accepted {
            return self.known.1.elapsed() > NOTHING_MORE && self.queue().await.is_some_and(|queue| queue.is_empty());
        }
        let settled = *self.settled.get_or_insert_with(Instant::now);
        // A queue that is not empty although nobody is waited for would make duplicates; so it gets its time.
        self.queue().await.is_none_or(|queue| queue.is_empty()) || settled.elapsed() > QUEUE_LAG_MAX
    }

    async fn queue(&self) -> Option<Queue> {
        match &self.relay {
            Some(relay) => relay.queue().await,
            None => None,
        }
    }

    /// What is left at the deadline. Mail is still moving then, between the receivers' count and the relay's, so the
    /// two are compared until they meet, or for a while.
    async fn pending(&self) -> u64 {
        let until = Instant::now() + QUEUE_LAG_MAX;
        loop {
            let bounced = self.bounces.bounced();
            let pending = self.queue().await.map_or(0, |queue| queue.pending(bounced));
            let known = self.internet.totals().delivered + self.bounces.bounced();
            if known + pending == self.list_host.counts().accepted || Instant::now() >= until {
                return pending;
            }
            sleep(TICK).await;
        }
    }

    fn notice_death(&mut self) -> anyhow::Result<()> {
        let Some(relay) = &mut self.relay else { return Ok(()) };
        if let Some(status) = relay.ended()? {
            bail!("the relay died ({status}); its log ends with:\n{}", relay.log_tail());
        }
        Ok(())
    }

    /// How much of the work is done: handing over is one half, delivering and bouncing the other.
    fn share_done(&self) -> f64 {
        let done = self.list_host.counts().accepted + self.known.0;
        done as f64 / (2.0 * f64::from(self.mailing.recipients.len()))
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut relay) = self.relay.take() else { return Ok(()) };
        self.internet.relay_killed();
        relay.kill9().await?;
        self.progress.say(&format!("relay killed ({} to come)", self.kills.at.len()));
        self.relay = Some(relay.restart().await.context("the relay does not start after a kill")?);
        Ok(())
    }

    /// Ends the relay and counts.
    async fn reckon(mut self) -> anyhow::Result<Report> {
        let now = Instant::now();
        let queued = if self.deadline_reached { self.pending().await } else { 0 };
        let mut relay = self.relay.take().context("no relay at the end")?;
        let peaks = relay.peaks();
        let (relay_exit, relay_ended_well) = match relay.terminate(RELAY_PATIENCE).await {
            Ok(status) => (status.to_string(), status.success()),
            Err(error) => (format!("{error:#}"), false),
        };
        self.list_host.stop();
        let started = self.list_host.started().unwrap_or(now);
        let mut report = self.report(started, queued);
        report.seconds = in_seconds(self.settled.unwrap_or(now).saturating_duration_since(started));
        (report.peak_fds, report.peak_rss) = (peaks.fds, peaks.rss);
        (report.relay_exit, report.relay_ended_well) = (relay_exit, relay_ended_well);
        if self.options.keep || !report.passed() {
            self.workspace.keep();
            report.kept = Some(self.workspace.path().to_owned());
        }
        Ok(report)
    }

    fn report(&self, started: Instant, queued: u64) -> Report {
        let (totals, counts) = (self.internet.totals(), self.list_host.counts());
        let bounced = self.bounces.bounced();
        let (uplink_bytes, time_to) =
            (self.internet.bytes(), |share| self.internet.time_to(share, started).map(in_seconds));
        let sites = self.sites(started);
        let broken = self.broken();
        let [p50, p99, max] = counts.hand_over.map(|wait| in_seconds(wait * 1000));
        Report {
            scenario: self.options.scenario.to_string(),
            seed: self.options.seed,
            recipients: self.mailing.recipients.len().into(),
            accepted: counts.accepted,
            refused: counts.refused,
            first_refusal: counts.first_refusal,
            delivered: totals.delivered,
            bounced,
            queued,
            lost: counts.accepted.cast_signed() - (totals.delivered + bounced + queued).cast_signed(),
            duplicates: totals.duplicates,
            repeated_after_kill: totals.explained,
            bounced_twice: self.bounces.repeated(),
            damaged: totals.damaged,
            strays: self.internet.strays(),
            limits_broken: self.internet.limits_broken(),
            broken,
            seconds_to_50: time_to(0.5),
            seconds_to_95: time_to(0.95),
            seconds_to_100: time_to(1.0),
            hand_over_seconds: self.list_host.finished().map(|end| in_seconds(end.saturating_duration_since(started))),
            hand_over_ms: HandOver { p50, p99, max },
            batches: counts.transactions,
            hand_over_deferrals: counts.deferrals,
            transactions: totals.transactions,
            transactions_unmerged: self.list_host.parts(),
            uplink_bytes,
            uplink_bytes_uncoalesced: uncoalesced(&totals, uplink_bytes),
            deferrals: sites.iter().map(|site| site.deferrals).sum(),
            peak_connections: self.internet.peak_connections().into(),
            kills: self.kills.done,
            dsns: self.bounces.messages(),
            deadline_reached: self.deadline_reached,
            overflow: self.options.scenario.uplink().map(|limit| self.overflow(limit, &sites)),
            sites,
            ..Report::default()
        }
    }

    /// All sites, the one with the last delivery first.
    fn sites(&self, started: Instant) -> Vec<Site> {
        let mut states = self.groups.states(&self.internet, &self.bounces);
        states.sort_by_key(|state| std::cmp::Reverse(state.counts.last_delivery));
        let site = |state: world::GroupState| Site {
            name: state.name,
            recipients: state.recipients,
            delivered: state.counts.delivered,
            bounced: state.bounced,
            deferrals: state.counts.deferrals,
            transactions: state.counts.transactions,
            peak_connections: state.counts.peak_connections,
            last_delivery: state.counts.last_delivery.map(|at| in_seconds(at.saturating_duration_since(started))),
        };
        states.into_iter().map(site).collect()
    }

    fn overflow(&self, limit: u64, sites: &[Site]) -> Overflow {
        let partner = self.internet.provider(PARTNER.0).map_or_else(Counts::default, |partner| partner.counts());
        let states = self.groups.states(&self.internet, &self.bounces);
        let started = self.list_host.started().unwrap_or_else(Instant::now);
        let nearly_over = self.internet.time_to(0.9, started).map(|time| started + time);
        let last =
            states.iter().filter(|state| is_partners(&state.name)).filter_map(|state| state.counts.last_delivery);
        Overflow {
            limit,
            peak: self.line.peak(),
            by_partner: partner.delivered,
            direct: sites.iter().filter(|site| is_partners(&site.name)).map(|site| site.delivered).sum(),
            came_back: last.max().is_some_and(|last| nearly_over.is_some_and(|nearly| last > nearly)),
        }
    }

    fn broken(&self) -> Vec<BrokenLimit> {
        let of = |provider: &Arc<super::internet::Provider>| {
            let name = provider.name.clone();
            let broken = provider.counts().broken.into_iter();
            broken.map(move |broken| BrokenLimit {
                provider: name.clone(),
                limit: broken.limit.to_owned(),
                times: broken.times,
                example: broken.example,
            })
        };
        self.internet.providers().iter().flat_map(of).collect()
    }
}

/// Whether the partner takes this domain's mail when the line is full.
fn is_partners(domain: &str) -> bool {
    PARTNERS_SUFFIXES.iter().any(|suffix| domain.ends_with(suffix))
}

/// Octets on the uplink if every recipient had had a transaction of its own.
fn uncoalesced(totals: &Totals, uplink_bytes: u64) -> u64 {
    let commands = uplink_bytes.saturating_sub(totals.content_bytes);
    let further = totals.delivered.saturating_sub(totals.transactions) * TRANSACTION_COMMANDS;
    commands + totals.content_bytes_uncoalesced + further
}

fn make_world(options: &Options) -> anyhow::Result<World> {
    let Options { scenario, seed, recipients, .. } = *options;
    let Some(path) = &options.subscribers else { return Ok(World::new(scenario, seed, recipients)) };
    let domains = world::domains_of(&read(path)?);
    ensure!(!domains.is_empty(), "{} holds no address", path.display());
    Ok(World::with_subscribers(scenario, seed, &domains))
}

fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn make_mailing(options: &Options, recipients: list_host::Recipients) -> anyhow::Result<Mailing> {
    let mut mailing = match &options.message {
        None => Mailing::newsletter(world::LIST_DOMAIN, options.message_size, recipients),
        Some(path) => {
            let message = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            Mailing::new(world::LIST_DOMAIN, &message, recipients)
        }
    };
    mailing.distinct = options.distinct;
    Ok(mailing)
}

fn make_list_host(
    options: &Options,
    relay: std::net::SocketAddr,
    mailing: &Arc<Mailing>,
    internet: &Arc<Internet>,
) -> Arc<ListHost> {
    let Options { sessions, batch, pipelining, .. } = *options;
    let excuser = Arc::clone(internet);
    let options = list_host::Options { sessions, batch, pipelining, ..list_host::Options::new(relay) };
    Arc::new(ListHost::new(options, Arc::clone(mailing), move |mailbox| excuser.excuse(mailbox)))
}

/// Writes the relay's configuration; where it will listen, and how it is started.
fn prepare(
    options: &Options,
    internet: &Internet,
    workspace: &Workspace,
) -> anyhow::Result<(std::net::SocketAddr, Program)> {
    let setting = Setting {
        initial_rate: options.scenario.initial_rate(),
        listen: relay::free_address()?,
        admin: relay::free_address()?,
        dns: internet.dns_address,
        port: internet.port,
        bounces: internet.address_of(world::LIST_EXCHANGER).context("the list host takes no bounces")?,
        list_domain: world::LIST_DOMAIN.to_owned(),
        expire_after: options.expire_after.unwrap_or_else(|| options.scenario.expire_after()),
    };
    let own = options.config.as_ref().map(|path| read(path).map(|text| (text, path))).transpose()?;
    let directory = |path: &Path| std::path::absolute(path).ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let own = own.map(|(text, path)| (text, directory(path).unwrap_or_default()));
    let text = relay::compose(&setting, own.as_ref().map(|(text, directory)| (text.as_str(), directory.as_path())))?;
    let text = match options.scenario.uplink().zip(internet.address_of(PARTNER.1)) {
        Some((octets, partner)) => relay::narrow(&text, octets, partner)?,
        None => text,
    };
    let config = workspace.path().join("posthaste.toml");
    std::fs::write(&config, text)?;
    std::fs::write(workspace.path().join("providers.toml"), relay::providers(options.scenario.is_fast()))?;
    let program = Program {
        path: options.relay.clone().map_or_else(std::env::current_exe, Ok)?,
        config,
        log: workspace.path().join("relay.log"),
        admin: setting.admin,
        fd_limit: options.fd_limit.or(options.scenario.fd_limit()),
        patience: RELAY_PATIENCE,
    };
    Ok((setting.listen, program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_strike_in_order_and_each_once() {
        let mut kills = Kills::new(5, 1);
        let strikes = (0..=100).filter(|percent| kills.strike(f64::from(*percent) / 100.0)).count();
        assert_eq!((strikes, kills.done), (5, 5));
        assert!(!kills.strike(1.0));
    }
}

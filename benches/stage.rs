//! The stage: 312 simulated sites of their own, one of the two relays, and a list host that sends.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use posthaste::rehearse::Scenario;
use posthaste::rehearse::internet::Internet;
use posthaste::rehearse::list_host::{Counts, ListHost, Mailing, Options, Recipients};
use posthaste::rehearse::relay::{self, Program, Relay, Setting, Workspace};
use posthaste::rehearse::world::{LIST_DOMAIN, LIST_EXCHANGER, World};
use tokio::time::{Instant, sleep};

use crate::postfix::Postfix;

/// Octets of a message.
const MESSAGE: usize = 10_000;
/// Without progress for so long, a run has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long metrics may lag behind the queue.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);
/// How often arrivals are looked at. Their times are taken by the receivers.
const TICK: Duration = Duration::from_millis(5);

/// Rates would measure the limits and not the relay. Connections and recipients per transaction stay as shipped.
const PROVIDERS: &str =
    "[default]\nconnections = 20\nconnection_rate = \"1000000/1s\"\nrecipient_rate = \"100000000/1s\"\n";
/// Nothing expires, and what cannot be resolved is left alone while the queue is measured.
const HELD: &str = "[delivery]\nexpire_after = \"5d\"\n[dispatch]\nsuspend_min = \"10m\"\nsuspend_max = \"1h\"\n";

/// A mailing to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) recipients: u32,
    pub(crate) batch: usize,
    pub(crate) sessions: usize,
    /// Whether each transaction brings a message of its own.
    pub(crate) distinct: bool,
}

/// Receivers, and how many recipients each gets.
pub(crate) struct Stage {
    internet: Internet,
    recipients: Recipients,
}

/// What came of a mailing that arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// From the first MAIL to the last delivery.
    pub(crate) seconds: f64,
    pub(crate) transactions: u64,
    /// Octets that the relay sent to exchangers.
    pub(crate) bytes: u64,
    pub(crate) peak_connections: u32,
}

/// What came of a mailing that stays in the queue.
#[derive(Debug)]
pub(crate) struct HandedOver {
    /// From the first MAIL to the last 250.
    pub(crate) seconds: f64,
    pub(crate) counts: Counts,
}

impl Stage {
    /// The domains and shares of the rehearsal's world, but every domain a site of its own. `held`: the DNS fails for all of
    /// them, so that mail stays in the queue.
    pub(crate) async fn set(recipients: u32, held: bool) -> anyhow::Result<Stage> {
        let recipients = World::new(Scenario::Fast, 1, recipients).recipients;
        let builder = Internet::builder().domain(LIST_DOMAIN, |domain| domain.mx([LIST_EXCHANGER]));
        let builder = recipients.domains().iter().fold(builder, |builder, name| {
            builder.domain(name, |domain| if held { domain.servfail() } else { domain })
        });
        let internet = builder.start().await.context("the simulated internet does not start")?;
        Ok(Stage { internet, recipients })
    }

    /// Where each domain's mail goes.
    fn routes(&self) -> anyhow::Result<Vec<(String, SocketAddr)>> {
        let route = |domain: &String| {
            let address = self.internet.address_of(&format!("mx.{domain}"));
            address.map(|address| (domain.clone(), address)).with_context(|| format!("{domain} has no exchanger"))
        };
        self.recipients.domains().iter().map(route).collect()
    }

    fn list_host(&self, relay: SocketAddr, load: Load) -> Arc<ListHost> {
        let mut mailing = Mailing::newsletter(LIST_DOMAIN, MESSAGE, self.recipients.clone());
        mailing.distinct = load.distinct;
        let options = Options { sessions: load.sessions, batch: load.batch, ..Options::new(relay) };
        Arc::new(ListHost::new(options, Arc::new(mailing), |_| {}))
    }

    /// Sends through the relay at this address until all has arrived.
    async fn deliver(&self, relay: SocketAddr, load: Load) -> anyhow::Result<Measured> {
        let list_host = self.list_host(relay, load);
        let sending = tokio::spawn(Arc::clone(&list_host).send());
        let mut progress = (0, Instant::now());
        while progress.0 < u64::from(load.recipients) {
            sleep(TICK).await;
            let delivered = self.internet.totals().delivered;
            if delivered > progress.0 {
                progress = (delivered, Instant::now());
            } else if progress.1.elapsed() > PATIENCE {
                bail!("only {delivered} of {} arrived: {:?}", load.recipients, list_host.counts());
            }
        }
        sending.await?;
        let started = list_host.started().context("nothing was sent")?;
        let totals = self.internet.totals();
        Ok(Measured {
            seconds: self.internet.time_to(1.0, started).context("nothing arrived")?.as_secs_f64(),
            transactions: totals.transactions,
            bytes: self.internet.bytes(),
            peak_connections: self.internet.peak_connections(),
        })
    }

    /// Sends to the relay at this address until it has answered for all.
    pub(crate) async fn hand_over(&self, relay: SocketAddr, load: Load) -> anyhow::Result<HandedOver> {
        let list_host = self.list_host(relay, load);
        Arc::clone(&list_host).send().await;
        let (started, finished) = list_host.started().zip(list_host.finished()).context("nothing was sent")?;
        let counts = list_host.counts();
        anyhow::ensure!(counts.accepted == u64::from(load.recipients), "not all was accepted: {counts:?}");
        Ok(HandedOver { seconds: (finished - started).as_secs_f64(), counts })
    }
}

/// A running Posthaste with its directory.
pub(crate) struct Ours {
    pub(crate) relay: Relay,
    pub(crate) address: SocketAddr,
    _workspace: Workspace,
}

impl Ours {
    /// Starts it in front of `stage`.
    pub(crate) async fn start(parent: &Path, stage: &Stage) -> anyhow::Result<Ours> {
        let workspace = Workspace::new(Some(parent)).context("no place for the spool")?;
        let (listen, admin) = (relay::free_address()?, relay::free_address()?);
        let setting = Setting {
            listen,
            admin,
            dns: stage.internet.dns_address,
            port: stage.internet.port,
            bounces: stage.internet.address_of(LIST_EXCHANGER).context("the list host takes no bounces")?,
            list_domain: LIST_DOMAIN.to_owned(),
            expire_after: Duration::from_secs(5 * 86_400),
            initial_rate: 1_000_000,
        };
        let config = workspace.path().join("posthaste.toml");
        std::fs::write(&config, relay::compose(&setting, Some((HELD, workspace.path())))?)?;
        std::fs::write(workspace.path().join("providers.toml"), PROVIDERS)?;
        let relay = Relay::start(Program {
            path: env!("CARGO_BIN_EXE_posthaste").into(),
            config,
            log: workspace.path().join("relay.log"),
            admin,
            fd_limit: None,
            patience: PATIENCE,
        });
        Ok(Ours { relay: relay.await?, address: listen, _workspace: workspace })
    }

    /// Waits until the relay says that so many recipients are queued: nothing was lost.
    pub(crate) async fn await_queue(&self, expected: u64) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            match self.relay.queue().await {
                Some(queue) if queue.recipients == expected => return Ok(()),
                found if start.elapsed() > QUEUE_PATIENCE => bail!("{found:?} instead of {expected} are queued"),
                _ => sleep(TICK).await,
            }
        }
    }

    /// `kill -9` and a new start; how long that took to be ready.
    pub(crate) async fn restart(mut self) -> anyhow::Result<(Ours, Duration)> {
        self.relay.kill9().await?;
        let start = Instant::now();
        let relay = self.relay.restart().await?;
        Ok((Ours { relay, ..self }, start.elapsed()))
    }
}

/// A mailing through Posthaste, on a stage of its own.
pub(crate) async fn through_posthaste(parent: &Path, load: Load) -> anyhow::Result<Measured> {
    let stage = Stage::set(load.recipients, false).await?;
    let ours = Ours::start(parent, &stage).await?;
    stage.deliver(ours.address, load).await
}

/// The same through Postfix.
pub(crate) async fn through_postfix(parent: &Path, load: Load) -> anyhow::Result<Measured> {
    let stage = Stage::set(load.recipients, false).await?;
    let postfix = Postfix::start(parent, &stage.routes()?)?;
    stage.deliver(postfix.address, load).await
}

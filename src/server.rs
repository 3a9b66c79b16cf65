//! The composition root: builds the parts from the configuration, joins the channels, and drains on a signal.
//!
//! Order of start: what may be refused comes first (file descriptors, spool, ports), listening comes last, so that a
//! server that cannot do its work never takes mail. Order of the end (design 6): listening sockets close, open
//! transactions finish, attempts in flight finish, the spool is flushed; what is not finished at the deadline is cut
//! off, and nothing that was answered 250 is lost by that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use prometheus::Registry;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::admin::api::{self, Desk};
use crate::admin::{Admin, ControlSocket, Health, State};
use crate::bounce;
use crate::budget::{Descriptors, Memory, Uplink};
use crate::config::Config;
use crate::delivery::Delivery;
use crate::engine::{self, ACCEPTED_QUEUE, Control, Engine, Handle, Parts, Payer};
use crate::ingress::{Ingress, Keeper};
use crate::log::{self, DeliveryLog};
use crate::partner;
use crate::route::Resolver;
use crate::sign::Signer;
use crate::spool::{Accepted, Options, Spool};

/// How long attempts in flight and open transactions may take to finish after SIGTERM. Below systemd's default of 90 s.
const DRAIN_DEADLINE: Duration = Duration::from_secs(25);

/// Runs the relay until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// What keeps it from starting, each with its remedy; or a spool that has failed for good while it ran.
pub async fn run(config_path: &Path, config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::install()?;
    let mut server = Server::start(config_path, config).await?;
    tracing::info!(hostname = %server.config.hostname, "ready");
    notify(&[NotifyState::Ready]);
    let failure = server.watch(&mut signals).await;
    notify(&[NotifyState::Stopping]);
    server.drain().await;
    match failure {
        Some(reason) => Err(anyhow::anyhow!("stopped, so that no mail is taken that could be lost: {reason}")),
        None => Ok(()),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn install() -> anyhow::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// The running parts.
struct Server {
    config_path: PathBuf,
    config: Config,
    health: Health,
    spool: Spool,
    resolver: Resolver,
    uplink: Uplink,
    delivery: Delivery,
    signer: Signer,
    bounce: Arc<ArcSwap<bounce::Options>>,
    memory: Memory,
    ingress: Ingress<Keeper>,
    admin: Admin,
    control: Handle,
    socket: ControlSocket,
    engine: JoinHandle<()>,
    payer: JoinHandle<()>,
}

/// Opening replays the journal: not on a thread of the runtime.
async fn open_spool(options: Options, accepted: mpsc::Sender<Accepted>, registry: Registry) -> anyhow::Result<Spool> {
    let opening = tokio::task::spawn_blocking(move || Spool::open(options, accepted, &registry));
    Ok(opening.await.context("opening the spool")??)
}

impl Server {
    async fn start(config_path: &Path, config: Config) -> anyhow::Result<Server> {
        let registry = Registry::new();
        let descriptors = Descriptors::from_system()?;
        tracing::info!(limit = descriptors.limit(), "file descriptors");
        let health = Health::starting();
        let admin = Admin::start(&config.admin, registry.clone(), health.clone())?;
        let (accepted, arrivals) = mpsc::channel(ACCEPTED_QUEUE);
        let spool = open_spool(config.spool.clone(), accepted, registry.clone()).await?;
        health.set_spool(State::Up);
        let resolver = Resolver::new(config.route.clone(), descriptors.clone(), &registry)?;
        let uplink = Uplink::new(config.uplink, &registry)?;
        let delivery =
            Delivery::new(config.delivery.clone(), resolver.clone(), descriptors.clone(), uplink.clone(), &registry)?;
        let signer = Signer::new(config.sign.clone(), spool.clock(), &registry)?;
        let bounce = Arc::new(ArcSwap::from_pointee(config.bounce.clone()));
        let lifetime = config.dispatch.retry.expire_after;
        let (payer, payer_task) =
            Payer::new(spool.clone(), Arc::clone(&bounce), bounce::Metrics::new(&registry)?, lifetime);
        let parts = Parts {
            spool: spool.clone(),
            delivery: delivery.clone(),
            signer: signer.clone(),
            resolver: resolver.clone(),
            uplink: uplink.clone(),
            partners: partner::Metrics::new(&registry)?,
            log: DeliveryLog::start(config.log, log::Metrics::new(&registry)?)?,
            metrics: engine::Metrics::new(&registry)?,
        };
        let engine = Engine::new(parts, config.dispatch.clone(), config.bounce.delay_after, payer);
        let (control, told) = Handle::new();
        let engine = tokio::spawn(engine.run(arrivals, told));
        let payer = tokio::spawn(payer_task.run());
        let desk = Desk { engine: control.clone() };
        let socket = ControlSocket::start(&config.admin.socket, api::routes(desk))?;
        let memory = Memory::new(config.memory, &registry)?;
        let keeper = Keeper { spool: spool.clone(), memory: memory.clone() };
        let ingress = Ingress::start(config.ingress.clone(), keeper, descriptors, &registry)?;
        health.set_listening(State::Up);
        let config_path = config_path.to_owned();
        Ok(Server {
            config_path,
            config,
            health,
            spool,
            resolver,
            uplink,
            delivery,
            signer,
            bounce,
            memory,
            ingress,
            admin,
            control,
            socket,
            engine,
            payer,
        })
    }

    /// Waits for the end: a signal (`None`), or what makes going on impossible. Reloads on SIGHUP meanwhile.
    async fn watch(&mut self, signals: &mut Signals) -> Option<String> {
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return None,
                _ = signals.interrupt.recv() => return None,
                _ = signals.hangup.recv() => self.reload(),
                reason = self.spool.failed() => {
                    self.health.set_spool(State::Down(reason.to_string()));
                    return Some(format!("the spool cannot be written: {reason}"));
                }
                ended = &mut self.engine => return Some(format!("the engine ended: {ended:?}")),
                ended = &mut self.payer => return Some(format!("the payer of reports ended: {ended:?}")),
            }
        }
    }

    /// Takes the configuration over whole, or not at all.
    fn reload(&mut self) {
        notify(&[NotifyState::Reloading]);
        let reloaded = Config::load(&self.config_path).map_err(anyhow::Error::from).and_then(|new| self.apply(new));
        match reloaded {
            Ok(()) => tracing::info!("configuration reloaded"),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "not reloaded; the old configuration stays in force");
            }
        }
        notify(&[NotifyState::Ready]);
    }

    /// What can refuse comes first: ports that cannot be bound, certificates that cannot be read, name servers. If a
    /// later one refuses, the earlier ones get the old options back.
    fn apply(&mut self, new: Config) -> anyhow::Result<()> {
        let admin = (&new.admin.address, &new.admin.socket);
        if new.spool.path != self.config.spool.path || admin != (&self.config.admin.address, &self.config.admin.socket)
        {
            tracing::warn!("[spool] path and [admin] address and socket are taken over at the next start only");
        }
        let engine = self.control.reserve().context("the engine is too busy to take it now")?;
        self.ingress.reload(new.ingress.clone())?;
        if let Err(error) = self.resolver.reload(new.route.clone()) {
            self.ingress.reload(self.config.ingress.clone())?;
            return Err(error.into());
        }
        self.uplink.set_rate(new.uplink);
        self.memory.set_high(new.memory);
        self.delivery.reload(new.delivery.clone());
        self.signer.reload(new.sign.clone());
        self.bounce.store(Arc::new(new.bounce.clone()));
        engine.send(Control::Reload(Box::new(new.dispatch.clone()), new.bounce.delay_after));
        self.config = new;
        Ok(())
    }

    async fn drain(self) {
        tracing::info!("draining");
        self.health.set_listening(State::Down("draining".to_owned()));
        let deadline = tokio::time::Instant::now() + DRAIN_DEADLINE;
        // Attempts stop being started at once; those under way and the open sessions finish side by side.
        let finished = self.control.drain().await;
        let _ = tokio::join!(self.ingress.drain(DRAIN_DEADLINE), tokio::time::timeout_at(deadline, finished));
        self.payer.abort();
        self.engine.abort();
        self.delivery.close(tokio::time::Instant::now() + Duration::from_secs(2)).await;
        self.spool.close().await;
        self.socket.stop().await;
        self.admin.stop().await;
        tracing::info!("stopped");
    }
}

/// Tells systemd, if it listens.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

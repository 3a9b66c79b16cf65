//! A stage for one test: the real relay as a child process, the simulated internet around it, and a list host's ends of
//! both. Every test has its own spool and ports, so all run side by side.

pub(crate) mod bounce_port;
pub(crate) mod client;

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use posthaste::rehearse::internet::{Builder, Delivered, Internet};
use posthaste::rehearse::relay::{Program, Relay, Setting, Workspace, compose, overlay};
use rustix::process::{Pid, Signal, kill_process};
use toml::Table;

pub(crate) use client::Client;

/// How long anything that must happen may take. Real time on a machine that runs other tests beside this one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long a test watches for something that must not happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(400);

/// How long the admin port serves a page of metrics again, and how far the spool's are behind.
const METRICS_CACHE: Duration = Duration::from_millis(1050);
/// How long the books may show nothing after the first 250.
const BOOKS_LAG_MAX: Duration = Duration::from_secs(3);
const METRICS_LAG: Duration = Duration::from_millis(150);

/// The list host's domain; its bounces come to `mx.lists.test`.
pub(crate) const LIST: &str = "lists.test";
/// A reverse-path of the list host.
pub(crate) const BOUNCES: &str = "<news-bounces@lists.test>";

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_posthaste");

/// Short delays, so that what is retried is retried within the test.
const SHORT: &str = r#"
    hostname = "relay.test"
    [dns]
    timeout = "500ms"
    [spool]
    reserve_bytes = "1MiB"
    [delivery]
    retry = ["100ms", "200ms", "300ms"]
    connect_stagger = "100ms"
    [delivery.timeouts]
    connect = "1s"
    greeting = "1s"
    [dispatch]
    coalesce_quiet = "30ms"
    coalesce_window = "300ms"
    suspend_min = "50ms"
    suspend_max = "200ms"
    [bounce]
    gather = "100ms"
"#;

/// An address of 127.255/16 with a free port. Nobody dials from there, so no outgoing connection takes the port before
/// the relay does, and the simulated exchangers live elsewhere.
pub(crate) fn free_address() -> SocketAddr {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id() as u16).to_be_bytes();
    let address = Ipv4Addr::new(127, 255, number[0], number[1].clamp(1, 254));
    TcpListener::bind((address, 0)).and_then(|listener| listener.local_addr()).expect("a free port")
}

/// A stage that is being set up.
pub(crate) struct Plan {
    builder: Builder,
    config: Table,
    providers: Option<String>,
}

impl Plan {
    /// The relay in its short settings among the domains of `builder`.
    pub(crate) fn new(builder: Builder) -> Plan {
        Plan { builder, config: SHORT.parse().expect("TOML"), providers: None }
    }

    /// Lays this TOML over the configuration; arrays are replaced.
    pub(crate) fn with(mut self, toml: &str) -> Plan {
        overlay(&mut self.config, toml.parse().expect("TOML"), true);
        self
    }

    /// The providers file.
    pub(crate) fn providers(self, toml: &str) -> Plan {
        Plan { providers: Some(toml.to_owned()), ..self }
    }

    /// Everything but the relay.
    pub(crate) async fn set_up(self) -> Stage {
        let bounces: Arc<Mutex<Vec<Delivered>>> = Arc::default();
        let taken = Arc::clone(&bounces);
        let builder = self.builder.domain(LIST, |d| d).keep_content().ttl(1);
        let builder = builder.watch(LIST, move |dsn| taken.lock().unwrap_or_else(PoisonError::into_inner).push(dsn));
        let internet = builder.start().await.expect("the simulated internet starts");
        let workspace = Workspace::new(None).expect("a directory");
        let setting = Setting {
            listen: free_address(),
            admin: free_address(),
            dns: internet.dns_address,
            port: internet.port,
            bounces: internet.address_of("mx.lists.test").expect("described"),
            list_domain: LIST.to_owned(),
            expire_after: Duration::from_secs(60),
            initial_rate: 1_000_000,
        };
        // Once below, where `compose` looks for what the operator wants, and once on top, where a test wants otherwise.
        let own = self.config.to_string();
        let composed = compose(&setting, Some((&own, workspace.path()))).expect("composed");
        let mut config: Table = composed.parse().expect("TOML");
        overlay(&mut config, self.config, true);
        let providers = self.providers.unwrap_or_default();
        std::fs::write(workspace.path().join("providers.toml"), providers).expect("written");
        config.insert("providers".to_owned(), "providers.toml".into());
        let program = Program {
            path: BINARY.into(),
            config: workspace.path().join("posthaste.toml"),
            log: workspace.path().join("relay.log"),
            admin: setting.admin,
            fd_limit: None,
            patience: PATIENCE,
        };
        Stage {
            internet,
            listen: setting.listen,
            program,
            config,
            bounces,
            relay: None,
            workspace,
            scraped: Cell::new(None),
        }
    }

    /// Everything, the relay ready.
    pub(crate) async fn start(self) -> Stage {
        let mut stage = self.set_up().await;
        stage.start_relay().await;
        stage
    }
}

/// See the module.
pub(crate) struct Stage {
    pub(crate) internet: Internet,
    pub(crate) listen: SocketAddr,
    pub(crate) program: Program,
    pub(crate) config: Table,
    relay: Option<Relay>,
    bounces: Arc<Mutex<Vec<Delivered>>>,
    workspace: Workspace,
    /// When metrics were last asked for.
    scraped: Cell<Option<Instant>>,
}

impl Stage {
    pub(crate) fn write_config(&self) {
        std::fs::write(&self.program.config, self.config.to_string()).expect("written");
    }

    pub(crate) async fn start_relay(&mut self) {
        self.write_config();
        self.scraped.set(None);
        self.relay = Some(Relay::start(self.program.clone()).await.expect("the relay starts"));
    }

    pub(crate) fn relay(&mut self) -> &mut Relay {
        self.relay.as_mut().expect("the relay runs")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.workspace.path()
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.directory().join("spool")
    }

    pub(crate) async fn client(&self) -> Client {
        Client::greeted(self.listen).await
    }

    /// A client at another address of the loopback network.
    pub(crate) async fn client_from(&self, address: [u8; 4]) -> Client {
        let mut client = Client::connect_from(address.into(), self.listen).await;
        client.expect("EHLO lists.test", "250").await;
        client
    }

    /// Hands a message over for these recipients, each without angle brackets.
    pub(crate) async fn post(&self, recipients: &[&str], content: &[u8]) {
        let recipients: Vec<String> = recipients.iter().map(|recipient| format!("<{recipient}>")).collect();
        let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
        self.client().await.must_take(BOUNCES, &recipients, content).await;
    }

    pub(crate) async fn kill9(&mut self) {
        self.internet.relay_killed();
        self.relay().kill9().await.expect("killed");
        self.relay = None;
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        let pid = i32::try_from(self.relay().pid()).expect("a process id");
        kill_process(Pid::from_raw(pid).expect("a process"), signal).expect("sent");
    }

    /// SIGTERM; the exit must be 0.
    pub(crate) async fn stop(&mut self) {
        let status = self.relay().terminate(PATIENCE).await.expect("ended in time");
        assert!(status.success(), "{status}\n{}", self.log());
        self.relay = None;
    }

    /// Writes what was laid over the configuration and sends SIGHUP; returns when the relay has answered in its log.
    pub(crate) async fn reload(&mut self, toml: &str) {
        overlay(&mut self.config, toml.parse().expect("TOML"), true);
        self.write_config();
        self.hang_up().await;
    }

    /// SIGHUP, and the log's word on it: whether it was taken over.
    pub(crate) async fn hang_up(&mut self) -> bool {
        let words = ["configuration reloaded", "not reloaded"];
        let count = |log: &str| words.map(|word| log.matches(word).count());
        let before = count(&self.log());
        self.signal(Signal::HUP);
        let after =
            self.eventually("an answer to SIGHUP", |stage| Some(count(&stage.log())).filter(|now| *now != before));
        after.await[0] > before[0]
    }

    /// All that the relay logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.program.log).unwrap_or_default()
    }

    /// The relay's line about the latest outcome for this recipient.
    pub(crate) fn outcome(&self, recipient: &str) -> Option<String> {
        let to = format!("to=<{recipient}>");
        self.log().lines().rfind(|line| line.contains(&to)).map(str::to_owned)
    }

    /// What the list host's bounce port took.
    pub(crate) fn bounces(&self) -> Vec<Delivered> {
        self.bounces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Polls until `look` finds something. Fails with the relay's log.
    pub(crate) async fn eventually<T>(&self, what: &str, look: impl Fn(&Stage) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain for {what}; the relay says:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Stage) -> bool) {
        self.eventually(what, |stage| is_so(stage).then_some(())).await;
    }

    /// Waits until each of these got its copy.
    pub(crate) async fn until_delivered(&self, recipients: &[&str]) {
        let arrived = |stage: &Stage| recipients.iter().all(|recipient| stage.internet.delivered(recipient) > 0);
        self.until(&format!("delivery to {recipients:?}"), arrived).await;
    }

    /// The one bounce that comes; waits for it.
    pub(crate) async fn bounce(&self) -> Bounce {
        let first = self.eventually("a bounce", |stage| stage.bounces().into_iter().next()).await;
        Bounce(first)
    }

    /// What the admin port answers: status and body.
    pub(crate) async fn ask(&self, path: &str) -> (u16, String) {
        self.relay.as_ref().expect("the relay runs").ask(path).await.expect("the admin port answers")
    }

    /// The relay's metrics as they are now: the last page that it may have gathered for us before is waited out.
    pub(crate) async fn metrics(&self) -> Metrics {
        let since_last = self.scraped.get().map_or(METRICS_CACHE, |at| at.elapsed());
        tokio::time::sleep(METRICS_CACHE.saturating_sub(since_last).max(METRICS_LAG)).await;
        let (status, body) = self.ask("/metrics").await;
        self.scraped.set(Some(Instant::now()));
        assert_eq!(status, 200);
        Metrics(body)
    }

    /// Waits until the relay holds nothing any more. On a busy machine the books may lag behind the 250: as long as they
    /// show nothing at all they are not believed at once.
    pub(crate) async fn until_empty(&self) {
        let start = Instant::now();
        loop {
            let metrics = self.metrics().await;
            if metrics.is_empty() && (metrics.recipients("accepted") > 0 || start.elapsed() > BOOKS_LAG_MAX) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the queue does not drain; the relay says:\n{}", self.log());
        }
    }

    /// Runs `posthaste` with these arguments to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        Command::new(BINARY).args(arguments).output().expect("started")
    }

    /// Writes a configuration that differs in this, in the same directory, and starts a `serve` of it that is expected
    /// to end by itself: exit code and what it said.
    pub(crate) async fn serve_in_vain(&self, toml: &str) -> (Option<i32>, String) {
        let mut config = self.config.clone();
        overlay(&mut config, toml.parse().expect("TOML"), true);
        let path = self.directory().join("other.toml");
        std::fs::write(&path, config.to_string()).expect("written");
        let mut command = tokio::process::Command::new(BINARY);
        command.arg("serve").arg("--config").arg(path).kill_on_drop(true);
        let output =
            tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends by itself").expect("started");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A page of metrics.
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The value of a series, 0 if it is not there.
    pub(crate) fn value(&self, series: &str) -> u64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse::<f64>().expect("a number") as u64)
    }

    /// Recipients of this fate.
    pub(crate) fn recipients(&self, fate: &str) -> u64 {
        self.value(&format!("posthaste_spool_recipients{{fate=\"{fate}\"}}"))
    }

    /// Whether nothing is queued, no report either, and none is owed.
    fn is_empty(&self) -> bool {
        self.recipients("queued") + self.recipients("dsn_queued") + self.value("posthaste_spool_owed") == 0
    }

    /// How many series there are.
    pub(crate) fn series(&self) -> usize {
        self.0.lines().filter(|line| !line.starts_with('#')).count()
    }
}

/// A DSN as the list host got it.
pub(crate) struct Bounce(pub(crate) Delivered);

impl Bounce {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.content).into_owned()
    }

    /// The recipients it reports, with action and status.
    pub(crate) fn reported(&self) -> Vec<(String, String, String)> {
        let text = self.text();
        let is_recipient = |block: &&str| block.lines().any(|line| line.starts_with("Final-Recipient:"));
        let blocks = text.split("\r\n\r\n").filter(is_recipient);
        let field = |block: &str, name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches(':').rsplit(';').next().unwrap_or_default().trim().to_owned()
        };
        let mut reported: Vec<_> = blocks
            .map(|block| (field(block, "Final-Recipient"), field(block, "Action"), field(block, "Status")))
            .collect();
        reported.sort();
        reported
    }
}

/// A posting to the list; `subject` makes it this one and no other.
pub(crate) fn message(subject: &str) -> Vec<u8> {
    format!(
        "From: editor@lists.test\r\nTo: news@lists.test\r\nSubject: {subject}\r\nMessage-ID: <{subject}@lists.test>\r\n\
         List-Id: <news.lists.test>\r\nDate: Tue, 24 Nov 2026 08:00:00 +0000\r\n\r\nHello {subject}.\r\n"
    )
    .into_bytes()
}

/// `count` recipients `u0@domain`, `u1@domain`, ...
pub(crate) fn subscribers(count: usize, domain: &str) -> Vec<String> {
    (0..count).map(|number| format!("u{number}@{domain}")).collect()
}

/// Writes a certificate for `relay.test` and its key where the listener looks for them.
pub(crate) fn certify(directory: &Path) -> io::Result<rustls::pki_types::CertificateDer<'static>> {
    let made = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).map_err(io::Error::other)?;
    std::fs::write(directory.join("chain.pem"), made.cert.pem())?;
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem())?;
    Ok(made.cert.der().clone())
}

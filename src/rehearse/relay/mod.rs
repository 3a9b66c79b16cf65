//! The relay under test: the real `posthaste serve` as a child process, so that a limit on file descriptors, memory
//! and `kill -9` mean the relay alone.

mod config;
mod http;
mod workspace;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

pub use config::{Setting, compose, narrow, overlay};
pub(super) use config::{TIME_LAPSE, providers};
pub use workspace::Workspace;

/// How often memory and file descriptors are looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// How often readiness is asked for.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// Lines of the relay's log that an error shows.
const LOG_TAIL: usize = 15;

/// Takes a free loopback port, which the caller uses soon.
///
/// # Errors
/// As the system's.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// What the relay still holds, and what it has given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Recipients that wait or are under way.
    pub recipients: u64,
    /// Recipients that failed or expired, reported or not.
    pub failed: u64,
    /// Failure reports that are owed or under way.
    pub reports: u64,
}

impl Queue {
    /// Whether nothing more will come.
    pub fn is_empty(&self) -> bool {
        self.recipients == 0 && self.reports == 0
    }

    /// Recipients whose fate the list host, which has heard of `bounced` failures, does not know yet and will.
    pub fn pending(&self, bounced: u64) -> u64 {
        let unreported = if self.reports > 0 { self.failed.saturating_sub(bounced) } else { 0 };
        self.recipients + unreported
    }
}

/// The most that the relay used, over all its lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peaks {
    /// Open file descriptors, sampled ten times a second.
    pub fds: u64,
    /// Resident memory in octets, as the kernel kept it.
    pub rss: u64,
}

#[derive(Debug, Default)]
struct Samples {
    fds: AtomicU64,
    rss: AtomicU64,
}

impl Samples {
    fn take(&self, pid: u32) {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64);
        let rss = std::fs::read_to_string(format!("/proc/{pid}/status")).map_or(0, |status| peak_rss(&status));
        self.fds.fetch_max(fds, Ordering::Relaxed);
        self.rss.fetch_max(rss, Ordering::Relaxed);
    }
}

/// `VmHWM` of a `/proc/PID/status`, in octets.
fn peak_rss(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// How the relay is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The binary. Tests use `env!("CARGO_BIN_EXE_posthaste")`, the command itself.
    pub path: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// Where its standard error goes.
    pub log: PathBuf,
    /// Its admin address.
    pub admin: SocketAddr,
    /// Limit on its open files; the caller's where it is not set.
    pub fd_limit: Option<u64>,
    /// Longest time from start to ready.
    pub patience: Duration,
}

/// A running relay. Dropping it kills it.
#[derive(Debug)]
pub struct Relay {
    program: Program,
    child: Child,
    pid: u32,
    samples: Arc<Samples>,
    sampler: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.sampler.abort();
    }
}

impl Relay {
    /// Starts the relay and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends before it is ready, or is not ready in time; the end of its log is part of the
    /// message.
    pub async fn start(program: Program) -> anyhow::Result<Relay> {
        Relay::launch(program, Arc::default()).await
    }

    async fn launch(program: Program, samples: Arc<Samples>) -> anyhow::Result<Relay> {
        let child = spawn(&program).with_context(|| format!("cannot start {}", program.path.display()))?;
        let pid = child.id().context("the relay ended at once")?;
        let sampler = tokio::spawn(sample(Arc::clone(&samples), pid));
        let mut relay = Relay { program, child, pid, samples, sampler };
        relay.wait_until_ready().await?;
        Ok(relay)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while !http::get(self.program.admin, "/readyz").await.is_ok_and(|answer| answer.is_success()) {
            if let Some(status) = self.child.try_wait()? {
                bail!("the relay ended before it was ready ({status}); its log ends with:\n{}", self.log_tail());
            }
            ensure!(
                start.elapsed() < self.program.patience,
                "the relay was not ready within {:?}; its log ends with:\n{}",
                self.program.patience,
                self.log_tail()
            );
            sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    /// The last lines that the relay logged.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(&self.program.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The most that was used so far.
    pub fn peaks(&self) -> Peaks {
        self.samples.take(self.pid);
        Peaks { fds: self.samples.fds.load(Ordering::Relaxed), rss: self.samples.rss.load(Ordering::Relaxed) }
    }

    /// Whether the process has ended by itself.
    ///
    /// # Errors
    /// As the system's.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// What the relay still holds, as its metrics say; `None` where they do not or cannot be read.
    pub async fn queue(&self) -> Option<Queue> {
        let answer = http::get(self.program.admin, "/metrics").await.ok()?;
        queue_in(&answer.body)
    }

    /// What the admin port answers to a GET of `path`: status and body.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn ask(&self, path: &str) -> io::Result<(u16, String)> {
        let answer = http::get(self.program.admin, path).await?;
        Ok((answer.status, answer.body))
    }

    /// `kill -9`, and waits for the end. The caller says [`crate::rehearse::internet::Internet::relay_killed`] first.
    ///
    /// # Errors
    /// As the system's.
    pub async fn kill9(&mut self) -> io::Result<()> {
        self.samples.take(self.pid);
        self.child.kill().await
    }

    /// Starts the same relay again after [`Relay::kill9`], on the same spool and ports.
    ///
    /// # Errors
    /// As [`Relay::start`].
    pub async fn restart(self) -> anyhow::Result<Relay> {
        Relay::launch(self.program.clone(), Arc::clone(&self.samples)).await
    }

    /// SIGTERM, and waits at most `deadline` for the drain.
    ///
    /// # Errors
    /// When the relay has not ended by then (it is killed), or as the system's.
    pub async fn terminate(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        match timeout(deadline, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => {
                self.child.kill().await?;
                bail!("the relay had not ended {deadline:?} after SIGTERM and was killed")
            }
        }
    }
}

fn spawn(program: &Program) -> io::Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&program.log)?;
    let mut command = match program.fd_limit {
        None => Command::new(&program.path),
        Some(limit) => limited(&program.path, limit),
    };
    command.arg("serve").arg("--config").arg(&program.config);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true).spawn()
}

/// The binary below a shell that lowers the limit and becomes it, so that the process id stays.
fn limited(path: &Path, limit: u64) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" \"$@\"")).arg(path);
    command
}

async fn sample(samples: Arc<Samples>, pid: u32) {
    loop {
        samples.take(pid);
        sleep(SAMPLE_EVERY).await;
    }
}

/// The queue in the text of `/metrics`.
fn queue_in(metrics: &str) -> Option<Queue> {
    let value = |series: &str| {
        let of = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse::<u64>().ok();
        metrics.lines().find_map(of)
    };
    let fate = |fate: &str| value(&format!("posthaste_spool_recipients{{fate=\"{fate}\"}}"));
    Some(Queue {
        recipients: fate("queued")?,
        failed: fate("bounced")? + fate("expired")?,
        reports: fate("dsn_queued")? + value("posthaste_spool_owed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(script: &str, workspace: &Workspace) -> Program {
        let path = workspace.path().join("relay");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("allowed");
        Program {
            path,
            config: workspace.path().join("c.toml"),
            log: workspace.path().join("log"),
            admin: free_address().expect("free"),
            fd_limit: Some(64),
            patience: Duration::from_secs(5),
        }
    }

    #[tokio::test]
    async fn a_relay_that_ends_at_once_is_reported_with_its_log() {
        let workspace = Workspace::new(None).expect("made");
        let error = Relay::start(program("echo no such spool >&2; exit 2", &workspace)).await.expect_err("ended");
        let text = format!("{error:#}");
        assert!(text.contains("no such spool") && text.contains("exit status: 2"), "{text}");
    }

    #[test]
    fn a_failure_whose_report_is_under_way_is_pending_and_one_without_a_report_is_not() {
        let metrics = "# HELP x\nposthaste_spool_recipients{fate=\"queued\"} 3\n\
            posthaste_spool_recipients{fate=\"bounced\"} 5\nposthaste_spool_recipients{fate=\"expired\"} 2\n\
            posthaste_spool_recipients{fate=\"dsn_queued\"} 1\nposthaste_spool_owed 1\n";
        let queue = queue_in(metrics).expect("there");
        assert_eq!(queue, Queue { recipients: 3, failed: 7, reports: 2 });
        assert_eq!(queue.pending(4), 6);
        assert_eq!(Queue { reports: 0, ..queue }.pending(4), 3);
        assert_eq!(queue_in("posthaste_spool_owed 2\n"), None);
    }

    #[test]
    fn peak_memory_is_read_from_proc() {
        assert_eq!(peak_rss("VmPeak:\t 9 kB\nVmHWM:\t  1024 kB\n"), 1 << 20);
        assert!(peak_rss(&std::fs::read_to_string("/proc/self/status").expect("Linux")) > 0);
    }
}

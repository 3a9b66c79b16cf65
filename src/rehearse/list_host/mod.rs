//! A list host: it hands a mailing to the relay in batches over several SMTP sessions and takes the bounces.
//!
//! It behaves as Mailman was measured to (`reference/users.md`): batches are cut by top-level domain, not by domain; a
//! 4yz makes it try the batch, or the recipients concerned, again later; a refused connection is waited out; and where
//! the 250 to the final dot does not arrive, it sends the same batch again. The last it reports, so that a repeat which
//! nobody can avoid is told apart from one that the relay made.

mod batches;
mod bounces;
mod client;
mod mailing;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub use batches::cut;
pub use bounces::{Bounces, failed_recipients};
pub use mailing::{Fate, Mailing, Recipients};

use client::{Connection, End};

/// Pause before the relay is tried again that refused a connection or dropped it.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);
/// How often an idle session looks for a batch that has come due.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How the mailing is sent.
#[derive(Clone, Debug)]
pub struct Options {
    /// The relay's listener.
    pub relay: SocketAddr,
    /// Parallel SMTP sessions.
    pub sessions: usize,
    /// Recipients per transaction; 1 gives each a reverse-path of its own (VERP).
    pub batch: usize,
    /// Whether commands are pipelined where the relay offers it. Mailman does not; Postfix as a list host does.
    pub pipelining: bool,
    /// How long a batch waits after a 4yz.
    pub retry_after: Duration,
    /// Longest wait for a reply; then the connection is given up.
    pub reply_timeout: Duration,
}

impl Options {
    /// Eight pipelining sessions with batches of 50.
    pub fn new(relay: SocketAddr) -> Options {
        Options {
            relay,
            sessions: 8,
            batch: 50,
            pipelining: true,
            retry_after: Duration::from_millis(500),
            reply_timeout: Duration::from_secs(60),
        }
    }
}

/// Recipients of one transaction, as numbers in the mailing.
#[derive(Clone, Debug)]
struct Batch {
    id: u64,
    recipients: Vec<u32>,
    /// Not before this moment.
    due: Option<Instant>,
}

/// What was counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Recipients whose transaction was answered 250.
    pub accepted: u64,
    /// Recipients that the relay refused for good (5yz).
    pub refused: u64,
    /// Transactions answered 250.
    pub transactions: u64,
    /// Replies of class 4, whole batches and single recipients alike.
    pub deferrals: u64,
    /// Batches sent again because the reply to their final dot did not arrive.
    pub replies_lost: u64,
    /// Connections that could not be made or broke.
    pub broken_connections: u64,
    /// Time from the final dot to its 250: the median, 99 % and the longest.
    pub hand_over: [Duration; 3],
    /// The first refusal, for the report.
    pub first_refusal: Option<String>,
}

#[derive(Debug, Default)]
struct Work {
    batches: VecDeque<Batch>,
    in_hand: usize,
    started: Option<Instant>,
    finished: Option<Instant>,
    waits: Vec<u32>,
    first_refusal: Option<String>,
}

/// Told of each recipient that is about to be sent again although it may have arrived.
type OnRepeat = Box<dyn Fn(&str) + Send + Sync>;

/// See the module.
pub struct ListHost {
    options: Options,
    mailing: Arc<Mailing>,
    on_repeat: OnRepeat,
    parts: u64,
    work: Mutex<Work>,
    accepted: AtomicU64,
    refused: AtomicU64,
    transactions: AtomicU64,
    deferrals: AtomicU64,
    replies_lost: AtomicU64,
    broken_connections: AtomicU64,
    stopped: AtomicBool,
}

impl std::fmt::Debug for ListHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ListHost sending to {}", self.options.relay)
    }
}

impl ListHost {
    /// A list host with its batches cut. `on_repeat` hears of each recipient that is sent again after a lost reply.
    pub fn new(options: Options, mailing: Arc<Mailing>, on_repeat: impl Fn(&str) + Send + Sync + 'static) -> ListHost {
        let batches = cut(&mailing.recipients, options.batch);
        let parts = batches.iter().map(|batch| domains_in(&mailing.recipients, batch)).sum();
        let numbered = batches.into_iter().zip(0..).map(|(recipients, id)| Batch { id, recipients, due: None });
        ListHost {
            options,
            mailing,
            on_repeat: Box::new(on_repeat),
            parts,
            work: Mutex::new(Work { batches: numbered.collect(), ..Work::default() }),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            deferrals: AtomicU64::new(0),
            replies_lost: AtomicU64::new(0),
            broken_connections: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the mailing; returns when the relay has answered for every recipient, or after [`ListHost::stop`].
    pub async fn send(self: Arc<ListHost>) {
        let mut sessions = JoinSet::new();
        for _ in 0..self.options.sessions.max(1) {
            sessions.spawn(Arc::clone(&self).session());
        }
        sessions.join_all().await;
        self.work().finished = Some(Instant::now());
    }

    /// Gives up what is not handed over yet.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The transactions that a relay needs which splits each batch by domain and regroups nothing.
    pub fn parts(&self) -> u64 {
        self.parts
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let work = self.work();
        Counts {
            accepted: self.accepted.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            transactions: self.transactions.load(Ordering::Relaxed),
            deferrals: self.deferrals.load(Ordering::Relaxed),
            replies_lost: self.replies_lost.load(Ordering::Relaxed),
            broken_connections: self.broken_connections.load(Ordering::Relaxed),
            hand_over: quantiles(&work.waits),
            first_refusal: work.first_refusal.clone(),
        }
    }

    /// When the first MAIL was sent.
    pub fn started(&self) -> Option<Instant> {
        self.work().started
    }

    /// When the last batch was answered.
    pub fn finished(&self) -> Option<Instant> {
        self.work().finished
    }

    /// One session after another until nothing is left.
    async fn session(self: Arc<ListHost>) {
        while !self.is_done() {
            let connected = Connection::open(self.options.relay, self.options.reply_timeout, self.options.pipelining);
            match connected.await {
                Ok(mut connection) => self.use_up(&mut connection).await,
                Err(_) => self.broken().await,
            }
        }
    }

    async fn broken(&self) {
        self.broken_connections.fetch_add(1, Ordering::Relaxed);
        sleep(RECONNECT_AFTER).await;
    }

    /// Sends batches over one connection until it breaks or nothing is left.
    async fn use_up(&self, connection: &mut Connection) {
        while !self.is_done() {
            let Some(batch) = self.take() else {
                sleep(LOOK_AGAIN).await;
                continue;
            };
            let end = connection.transact(&self.mailing, batch.id, &batch.recipients, self.options.batch == 1).await;
            let is_usable = self.settle(batch, end);
            if !is_usable {
                return self.broken().await;
            }
        }
        connection.quit().await;
    }

    fn is_done(&self) -> bool {
        let work = self.work();
        self.stopped.load(Ordering::Relaxed) || (work.batches.is_empty() && work.in_hand == 0)
    }

    fn take(&self) -> Option<Batch> {
        let now = Instant::now();
        let mut work = self.work();
        let at = work.batches.iter().position(|batch| batch.due.is_none_or(|due| due <= now))?;
        let batch = work.batches.remove(at)?;
        work.in_hand += 1;
        work.started.get_or_insert(now);
        Some(batch)
    }

    /// Books a transaction's end; whether the connection can be used again.
    fn settle(&self, batch: Batch, end: End) -> bool {
        let is_usable = !matches!(end, End::Broken { .. });
        match end {
            End::Accepted { later, refused, wait } => self.book(&batch, &later, &refused, wait),
            End::Deferred => {
                self.deferrals.fetch_add(1, Ordering::Relaxed);
                self.again(batch.recipients, batch.id, Some(self.options.retry_after));
            }
            End::Refused(text) => self.refuse(batch.recipients.len(), text),
            End::Broken { after_dot } => {
                if after_dot {
                    self.replies_lost.fetch_add(1, Ordering::Relaxed);
                    batch.recipients.iter().for_each(|i| (self.on_repeat)(&self.mailing.recipients.mailbox(*i)));
                }
                self.again(batch.recipients, batch.id, None);
            }
        }
        self.work().in_hand -= 1;
        is_usable
    }

    fn book(&self, batch: &Batch, later: &[u32], refused: &[(u32, String)], wait: Duration) {
        let taken = batch.recipients.len() - later.len() - refused.len();
        self.accepted.fetch_add(taken as u64, Ordering::Relaxed);
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.work().waits.push(u32::try_from(wait.as_micros()).unwrap_or(u32::MAX));
        if let Some((_, text)) = refused.first() {
            self.refuse(refused.len(), text.clone());
        }
        if !later.is_empty() {
            self.deferrals.fetch_add(later.len() as u64, Ordering::Relaxed);
            self.again(later.to_vec(), batch.id, Some(self.options.retry_after));
        }
    }

    fn refuse(&self, recipients: usize, text: String) {
        self.refused.fetch_add(recipients as u64, Ordering::Relaxed);
        self.work().first_refusal.get_or_insert(text);
    }

    fn again(&self, recipients: Vec<u32>, id: u64, after: Option<Duration>) {
        let due = after.map(|after| Instant::now() + after);
        self.work().batches.push_back(Batch { id, recipients, due });
    }
}

fn domains_in(recipients: &Recipients, batch: &[u32]) -> u64 {
    let mut domains: Vec<u32> = batch.iter().map(|index| recipients.domain_of(*index)).collect();
    domains.sort_unstable();
    domains.dedup();
    domains.len() as u64
}

/// The median, the 99th percentile and the maximum of microseconds.
fn quantiles(waits: &[u32]) -> [Duration; 3] {
    let mut sorted = waits.to_vec();
    sorted.sort_unstable();
    let at = |share: f64| {
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        Duration::from_micros(sorted.get(index).copied().unwrap_or(0).into())
    };
    [at(0.5), at(0.99), at(1.0)]
}

#[cfg(test)]
mod tests;

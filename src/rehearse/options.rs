//! What a rehearsal is told.

use std::path::PathBuf;
use std::time::Duration;

use super::world::Scenario;

/// Everything `posthaste rehearse` can be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The relay's binary; default: this very program.
    pub relay: Option<PathBuf>,
    /// Recipients of the mailing.
    pub recipients: u32,
    /// Recipients per transaction of the list host; 1 gives each a reverse-path of its own (VERP).
    pub batch: usize,
    /// Parallel SMTP sessions of the list host.
    pub sessions: usize,
    /// Whether the list host pipelines its commands (Mailman does not, other relays do).
    pub pipelining: bool,
    /// A file with one address a line, whose domains make the world; then `recipients` is not used.
    pub subscribers: Option<PathBuf>,
    /// The message; default: a newsletter of `message_size` octets.
    pub message: Option<PathBuf>,
    /// Size of the default newsletter in octets.
    pub message_size: usize,
    /// Whether every transaction brings a message of its own instead of the one newsletter.
    pub distinct: bool,
    /// Kind of world.
    pub scenario: Scenario,
    /// The operator's configuration, as the base of the relay's (`relay::compose` says what is replaced).
    pub config: Option<PathBuf>,
    /// The world's seed.
    pub seed: u64,
    /// Limit on the relay's open files.
    pub fd_limit: Option<u64>,
    /// Longest time from the first MAIL to the end; what is left then counts as queued.
    pub deadline: Duration,
    /// How often the relay is killed (`kill -9`) and started again, at random shares of the work.
    pub kills: u32,
    /// How long the relay may hold mail; default: 15 s, so that what cannot be delivered bounces soon.
    pub expire_after: Option<Duration>,
    /// Directory below which configuration, spool and log are made; default: the system's for temporary files.
    pub directory: Option<PathBuf>,
    /// Whether that is left in place in any case. After a failed rehearsal it always is.
    pub keep: bool,
    /// Progress on standard error.
    pub progress: ProgressStyle,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressStyle {
    /// A bar where standard error is a terminal, else lines.
    #[default]
    Auto,
    /// A line a second.
    Lines,
    /// None.
    Off,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            relay: None,
            recipients: 20_000,
            batch: 50,
            sessions: 8,
            pipelining: true,
            subscribers: None,
            message: None,
            message_size: 10_000,
            distinct: false,
            scenario: Scenario::Default,
            config: None,
            seed: 1,
            fd_limit: None,
            deadline: Duration::from_secs(180),
            kills: 0,
            expire_after: None,
            directory: None,
            keep: false,
            progress: ProgressStyle::Auto,
        }
    }
}

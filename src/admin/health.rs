//! Whether the relay is well: what `/healthz` and `/readyz` answer.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// The state of one thing that the relay cannot do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not there yet.
    Starting,
    /// As it should be.
    Up,
    /// Not usable, and why.
    Down(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Starting => f.write_str("starting"),
            State::Up => f.write_str("up"),
            State::Down(reason) => write!(f, "down: {reason}"),
        }
    }
}

/// Shared flags, set by `server` and read by the admin endpoint. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health(Arc<RwLock<Flags>>);

#[derive(Debug)]
struct Flags {
    spool: State,
    listening: State,
}

impl Default for Health {
    fn default() -> Health {
        Health::starting()
    }
}

impl Health {
    /// Everything is starting.
    pub fn starting() -> Health {
        Health(Arc::new(RwLock::new(Flags { spool: State::Starting, listening: State::Starting })))
    }

    /// Says how the spool is. [`State::Down`] makes the process unhealthy: it should be looked at, or restarted.
    pub fn set_spool(&self, state: State) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).spool = state;
    }

    /// Says whether list hosts are listened to. [`State::Down`] while draining, or while load keeps the sockets closed.
    pub fn set_listening(&self, state: State) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).listening = state;
    }

    /// Whether the process lives and its spool has not failed, with the report.
    pub(super) fn healthy(&self) -> (bool, String) {
        let flags = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (!matches!(flags.spool, State::Down(_)), format!("spool: {}\n", flags.spool))
    }

    /// Whether list hosts can hand over mail, with the report.
    pub(super) fn ready(&self) -> (bool, String) {
        let flags = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let ready = flags.spool == State::Up && flags.listening == State::Up;
        (ready, format!("spool: {}\nlistening: {}\n", flags.spool, flags.listening))
    }
}

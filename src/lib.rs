//! Posthaste: a dedicated outbound smarthost relay for list servers.
//!
//! # The paper path
//!
//! ```text
//! list host                                                                        next hop
//!    | SMTP                                                                           ^ SMTP
//! ingress --accept--> spool --pending--> dispatch --attempt--> delivery --------------+
//!           250 after   ^                   ^                     | outcome per recipient
//!           fsync       +----- record ------+---- due again ----- settle --> done
//!                       +------- DSN owed, accepted a commit later ----+ bounce (composes only)
//! ```
//!
//! Mail moves in one direction. Loops close in [`settle`] only. Effects are always *durable, then visible*: fsync before
//! 250; the outcome written before the scheduler hears of it; a failure recorded together with the obligation to
//! report it.
//!
//! # Who may import whom
//!
//! `tests/tidy.rs` checks this table. [`clock`] is a leaf that everybody may import.
//!
//! | part | may import |
//! |---|---|
//! | `mail` | `clock` |
//! | `outcome`, `budget` | nothing of ours |
//! | `attempt` | `mail`, `outcome` |
//! | `smtp` | `mail` |
//! | `mailing` | `mail` |
//! | `spool` | `mail`, `outcome` |
//! | `ingress` | `mail`, `smtp`, `spool`, `mailing`, `budget`, `attempt` |
//! | `route` | `mail`, `attempt`, `outcome`, `budget` |
//! | `partner` | `mail`, `attempt`, `outcome` |
//! | `dispatch` | `mail`, `attempt`, `outcome`, `partner` |
//! | `delivery` | `mail`, `smtp`, `attempt`, `outcome`, `route`, `budget` |
//! | `sign` | `mail` |
//! | `bounce` | `mail`, `outcome`, `spool` (values only) |
//! | `log` | `mail`, `outcome` |
//! | `settle` | `mail`, `attempt`, `outcome`, `spool`, `dispatch`, `bounce`, `log` |
//! | `engine` | `mail`, `attempt`, `outcome`, `spool`, `dispatch`, `partner`, `delivery`, `route`, `budget`, `settle`, `bounce`, `log`, `sign` |
//! | `config` | every part's `Options` |
//! | `admin` | `budget`, `spool`, `dispatch`, `engine` |
//! | `rehearse` | `mail`, `smtp`, `config` |
//! | `server`, `cli` | everything |
//!
//! # Where the design's libraries do their work
//!
//! | crate | its part |
//! |---|---|
//! | `tokio` | the runtime: every session, attempt and lookup is a task; scheduling itself is plain code that is told the time |
//! | `tokio-rustls` | STARTTLS at the listener, and towards next hops with verifiers of our own (`delivery::tls`) |
//! | `hickory-resolver` | MX, addresses, TLSA with DNSSEC; `hickory-proto` answers in the simulated internet |
//! | `mail-send` | the connection to a next hop: commands and replies; the pipelined transaction on top is ours |
//! | `dashmap` | idle connections by site (`delivery::pool`) |
//! | `governor` | configured rates, over clocks of ours (`dispatch::pace`, `delivery::pace`) |
//! | `prometheus` | each part registers what it counts; `admin` shows it |
//!
//! # Seams
//!
//! Time is [`clock::Clock`] over tokio's, which tests pause. The disk is `spool::disk::Disk`, which tests make fail at any
//! operation. The network is dialled in one file, `delivery::connect`. The protocol (`smtp`), the scheduler (`dispatch`),
//! `settle`, `bounce` and `mailing` do no I/O at all: facts and the time go in, values come out.
#![forbid(unsafe_code)]

pub mod admin;
pub mod attempt;
pub mod bounce;
pub mod budget;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod dispatch;
pub mod engine;
pub mod ingress;
pub mod log;
pub mod mail;
pub mod mailing;
pub mod outcome;
pub mod partner;
pub mod rehearse;
pub mod route;
pub mod server;
pub mod settle;
pub mod sign;
pub mod smtp;
pub mod spool;

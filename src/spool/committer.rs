//! The threads around the [`Core`]: one commits, one writes checkpoints.
//!
//! While an fsync runs requests gather; the next round takes them all. So the busier the spool, the more submissions share
//! an fsync, and nobody waits for more than the round that is under way and their own.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::core::{Core, Request, Work, write_checkpoint};
use super::index::Index;
use super::status::Status;

/// Requests in one round, at most.
const ROUND: usize = 2048;

/// Rounds without an idle moment after which compaction gets a turn all the same.
const BUSY_ROUNDS: u32 = 16;

/// How long a round waits while checkpoints lag behind: at least, for each change that it made, and at most. A round of single
/// messages loses little, one of long recipient lists no longer outruns the checkpoint.
const SLOW: (Duration, Duration, Duration) =
    (Duration::from_millis(5), Duration::from_micros(40), Duration::from_millis(250));

/// Starts the threads and answers the committer's, which ends when it is told to close or when every sender is gone.
pub(super) fn start(mut core: Core) -> io::Result<(Sender<Request>, JoinHandle<()>)> {
    let (requests, inbox) = channel();
    let (checkpoint, orders) = channel();
    let (index, status) = (Arc::clone(&core.index), Arc::clone(&core.status));
    core.checkpointer = Some(checkpoint);
    let checkpointer = thread::Builder::new()
        .name("spool-checkpoint".into())
        .spawn(move || orders.iter().for_each(|()| guard_checkpoint(&index, &status)))?;
    let committer =
        thread::Builder::new().name("spool-commit".into()).spawn(move || guard(core, &inbox, checkpointer))?;
    Ok((requests, committer))
}

fn guard_checkpoint(index: &Index, status: &Status) {
    if catch_unwind(AssertUnwindSafe(|| write_checkpoint(index, status))).is_err() {
        status.fail(io::Error::other("the checkpointer panicked"));
    }
}

/// Runs the committer. If it panics the spool has failed, and whoever waits is answered.
fn guard(mut core: Core, inbox: &Receiver<Request>, checkpointer: JoinHandle<()>) {
    if catch_unwind(AssertUnwindSafe(|| run(&mut core, inbox))).is_err() {
        core.status.fail(io::Error::other("the committer panicked"));
    }
    // With its orders the checkpointer ends, once it has done what it was told. Then the file may be closed, and last
    // of all, with the core, the lock be given back.
    core.checkpointer = None;
    let _ = checkpointer.join();
    core.index.close();
}

fn run(core: &mut Core, inbox: &Receiver<Request>) {
    let mut more = false;
    let mut busy = 0;
    loop {
        let patience = if more { Duration::ZERO } else { core.patience() };
        let before = core.changes();
        let idle = match inbox.recv_timeout(patience) {
            Ok(first) => {
                let mut round = vec![first];
                round.extend(inbox.try_iter().take(ROUND - 1));
                if core.work(round) {
                    break;
                }
                busy += 1;
                busy > BUSY_ROUNDS
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if idle {
            busy = 0;
        }
        more = core.turn(idle);
        if core.is_behind() {
            core.metrics.slowed.inc();
            thread::sleep(pause(core.changes().saturating_sub(before)));
        }
    }
    core.finish();
    refuse_the_rest(inbox);
}

/// How long a round that made so many changes waits.
fn pause(changes: usize) -> Duration {
    let (least, per_change, most) = SLOW;
    per_change.saturating_mul(u32::try_from(changes).unwrap_or(u32::MAX)).clamp(least, most)
}

/// Dropping a reply tells its owner that the spool is closing.
fn refuse_the_rest(inbox: &Receiver<Request>) {
    inbox.try_iter().for_each(|Request { work, .. }| {
        if let Work::Accept(incoming) = work {
            drop(incoming.reply);
        }
    });
}

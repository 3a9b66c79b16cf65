//! The threads around the [`Core`]: one commits, one writes checkpoints.
//!
//! While an fsync runs requests gather; the next round takes them all. So the busier the spool, the more submissions share
//! an fsync, and nobody waits for more than the round that is under way and their own.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::core::{Core, Request, Work, write_checkpoint};
use super::index::Index;
use super::status::Status;

/// Requests in one round, at most.
const ROUND: usize = 2048;

/// How long a round waits, at most, for the checkpoint that is being written: while changes pile up faster than
/// checkpoints take them away, and when memory for more of them runs out.
const SLOW: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

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
        // Perhaps over the index: what redb reads it asserts. The journal knows everything.
        core.distrust_index();
    }
    // With its orders the checkpointer ends, once it has done what it was told. Then the file may be closed, and last
    // of all, with the core, the lock be given back.
    core.checkpointer = None;
    let _ = checkpointer.join();
    core.index.close();
    core.status.close();
}

fn run(core: &mut Core, inbox: &Receiver<Request>) {
    let mut more = false;
    loop {
        let patience = if more { Duration::ZERO } else { core.patience() };
        let round = match inbox.recv_timeout(patience) {
            Ok(first) => std::iter::once(first).chain(inbox.try_iter().take(ROUND - 1)).collect(),
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let idle = round.is_empty();
        if core.work(round) {
            break;
        }
        more = core.turn(idle);
        slow_down(core);
    }
    core.finish();
    refuse_the_rest(inbox);
}

/// Lets a checkpoint catch up. What waits meanwhile is bounded by [`super::WAITING_KIB`].
fn slow_down(core: &Core) {
    let Some(wait) = core.lag().checked_sub(1).map(|lag| SLOW[lag.min(1)]) else { return };
    core.metrics.slowed.inc();
    let started = Instant::now();
    while core.lag() > 0 && !core.status.is_failed() && started.elapsed() < wait {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Dropping a reply tells its owner that the spool is closing.
fn refuse_the_rest(inbox: &Receiver<Request>) {
    inbox.try_iter().for_each(|Request { work, .. }| {
        if let Work::Accept(together) = work {
            drop(together);
        }
    });
}

//! The disk fails, or the power does, at every single operation of a scenario that touches everything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::memory::{Fault, MemoryDisk};
use super::support::*;
use crate::clock::Tick;
use crate::mail::{QueueId, RecipientId};
use crate::spool::layout::Layout;
use crate::spool::*;

/// What was said about each submission and each fate.
#[derive(Debug, Default)]
struct Told {
    /// Answered 250: text and forward-paths.
    accepted: BTreeMap<QueueId, (String, usize)>,
    /// Answered 4yz while the spool went on: texts.
    refused: BTreeSet<String>,
    /// Handed in as done.
    done: BTreeSet<RecipientId>,
    /// Handed in as done, and flushed since.
    surely_done: BTreeSet<RecipientId>,
    /// Every text that was ever submitted.
    texts: BTreeSet<String>,
}

impl Told {
    fn accept(&mut self, bench: &mut Bench, text: &str, submissions: Vec<Submission>) {
        self.texts.insert(text.to_owned());
        let sizes: Vec<_> = submissions.iter().map(|s| s.recipients.len()).collect();
        for (size, answer) in sizes.into_iter().zip(bench.accept_all(submissions)) {
            match answer {
                Ok(id) => drop(self.accepted.insert(id, (text.to_owned(), size))),
                Err(_) if bench.core.status.is_failed() => {}
                Err(_) => drop(self.refused.insert(text.to_owned())),
            }
        }
    }

    fn done(&mut self, bench: &mut Bench, fates: Vec<(RecipientId, Fate)>) {
        self.done.extend(fates.iter().filter(|(_, f)| matches!(f, Fate::Done { .. })).map(|(id, _)| *id));
        bench.settle(fates);
    }

    fn flush(&mut self, disk: &MemoryDisk, bench: &mut Bench) {
        bench.flush();
        if !bench.core.status.is_failed() && !disk.is_dead() {
            self.surely_done = self.done.clone();
        }
    }
}

fn large(disk: &MemoryDisk, text: &str) -> Option<Submission> {
    let mut writer = ContentWriter::new(Arc::new(disk.clone()), &Layout::new(Path::new(ROOT)), 4096);
    writer.write(text.as_bytes()).ok()?;
    let content = writer.finish(text.len() as u64, false).ok()?;
    if let NewBody::File(file) = &content.body {
        file.file.sync().ok()?;
    }
    Some(Submission { content, ..submission("", 3, &["large@x.org"]) })
}

/// Opens the spool with segments so small that the scenario fills several.
fn open(disk: &MemoryDisk) -> Result<Bench, OpenError> {
    Bench::open_with(disk, Options { segment_bytes: 6 << 10, ..options(Path::new(ROOT)) })
}

/// Accepts, settles, pays, checkpoints, compacts and restarts. Ends early if the spool fails.
fn scenario(disk: &MemoryDisk, told: &mut Told) -> Option<Bench> {
    let mut bench = open(disk).ok()?;
    told.accept(&mut bench, "one", vec![submission("one", 1, &["a@x.org", "b@y.org", "c@z.org"])]);
    let texts = ["two", "three"].map(|t| t.repeat(900));
    for text in &texts {
        told.accept(&mut bench, text, vec![submission(text, 2, &["d@x.org"]), submission(text, 2, &["e@x.org"])]);
    }
    let first = told.accepted.first_key_value().map(|(&id, _)| id);
    if let Some(first) = first {
        let rest = vec![(id(first, 0), bounced("a@x.org")), (id(first, 1), retry(70_000))];
        told.done(&mut bench, rest);
    }
    if let Some(large) = large(disk, &"large ".repeat(1000)) {
        told.accept(&mut bench, &"large ".repeat(1000), vec![large]);
    }
    told.flush(disk, &mut bench);
    if !bench.core.status.is_failed() && !bench.core.journal.is_dirty() {
        bench.core.cut_checkpoint();
    }
    if let Some(first) = first {
        told.accept(&mut bench, "a report", vec![dsn(vec![(id(first, 0), ObligationKind::Failed)])]);
    }
    drop(bench);
    let mut bench = open(disk).ok()?;
    for n in 0..14 {
        let text = format!("{n} ").repeat(1900);
        told.accept(&mut bench, &text, vec![submission(&text, n, &["f@x.org"])]);
        let last = told.accepted.last_key_value().map(|(&id, _)| id);
        told.done(&mut bench, last.map(|last| (id(last, 0), relayed())).into_iter().collect());
        if n % 5 == 4 {
            told.flush(disk, &mut bench);
            while bench.core.turn(true) {}
            bench.core.cut_checkpoint();
        }
    }
    told.flush(disk, &mut bench);
    while bench.core.turn(true) {}
    Some(bench)
}

/// Asserts that what is found keeps every promise that was made.
fn assert_promises(bench: &Bench, told: &Told, at: &str) {
    for (&batch, (text, size)) in &told.accepted {
        let rows = bench.rows(batch);
        for index in 0..*size as u32 {
            let waits = rows.iter().any(|row| row.id.index == index);
            let name = id(batch, index);
            assert!(waits || told.done.contains(&name), "{at}: {name} of {text:.9} was lost");
            assert!(!waits || !told.surely_done.contains(&name), "{at}: {name} of {text:.9} came back");
        }
        if !rows.is_empty() {
            let read = bench.read(content(text).hash);
            assert_eq!(read.expect("readable"), *text, "{at}: the content of {batch}");
        }
    }
    for batch in (0..60).map(QueueId).filter(|batch| !told.accepted.contains_key(batch)) {
        for row in bench.rows(batch) {
            let queued = bench.core.index.load(&row.destination, Tick(u64::MAX - 1), 99).expect("loaded").queued;
            let batch = queued.into_iter().find(|q| q.id == row.id);
            let Some(batch) = batch.map(|queued| queued.batch) else { continue };
            let known = |text: &String| content(text).hash == batch.envelope.content;
            assert!(told.texts.iter().any(known), "{at}: {} was invented", row.id);
            assert!(!told.refused.iter().any(known), "{at}: {} was refused and comes all the same", row.id);
        }
    }
    assert_balance(&bench.totals());
}

fn state(bench: &Bench) -> (Totals, Vec<Vec<Row>>) {
    (bench.totals(), (0..60).map(|batch| bench.rows(QueueId(batch))).collect())
}

/// Opens what is left, with the index and without, and asserts that both say the same.
fn assert_recovers(disk: &MemoryDisk, told: &Told, at: &str) {
    let bench = open(disk).unwrap_or_else(|error| panic!("{at}: the start failed: {error}"));
    assert_promises(&bench, told, at);
    let kept = state(&bench);
    drop(bench);
    disk.lose(&Path::new(ROOT).join("index.redb"));
    let bench = open(disk).unwrap_or_else(|error| panic!("{at}: the start failed: {error}"));
    assert_eq!(state(&bench), kept, "{at}: the index built anew says something else");
}

/// Operations of the scenario.
fn operations() -> u64 {
    let disk = MemoryDisk::new();
    let mut told = Told::default();
    let bench = scenario(&disk, &mut told).expect("nothing fails");
    assert!(bench.core.journal.sealed().keys().next() > Some(&1), "the scenario compacts");
    assert!(told.refused.is_empty());
    assert_recovers(&disk.after_power_cut(0), &told, "undisturbed");
    disk.operations()
}

#[test]
fn nothing_is_lost_or_invented_by_a_power_cut_at_any_operation() {
    for n in 0..operations() {
        let disk = MemoryDisk::new();
        disk.fail_at(n, Fault::PowerCut);
        let mut told = Told::default();
        drop(scenario(&disk, &mut told));
        // None, some or all of what was not synced has reached the disk.
        for kept in [0, 300 + (n as usize * 37) % 400, 1000] {
            assert_recovers(&disk.after_power_cut(kept), &told, &format!("operation {n}, {kept} promille"));
        }
    }
}

fn fail_every_operation(kind: ErrorKind) {
    for n in 0..operations() {
        let disk = MemoryDisk::new();
        disk.fail_at(n, Fault::Error(kind));
        let mut told = Told::default();
        drop(scenario(&disk, &mut told));
        assert_recovers(&disk.after_power_cut(0), &told, &format!("operation {n}, power cut"));
        assert_recovers(&disk.after_power_cut(1000), &told, &format!("operation {n}"));
    }
}

#[test]
fn an_io_error_at_any_operation_costs_only_what_was_told_so() {
    fail_every_operation(ErrorKind::Other);
}

#[test]
fn a_full_disk_at_any_operation_costs_only_what_was_told_so() {
    fail_every_operation(ErrorKind::StorageFull);
}

#[test]
fn a_failed_fsync_refuses_its_commit_and_the_next_is_accepted() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    bench.accept(submission("first", 1, &["a@x.org"])).expect("accepted");
    // The write comes first, then the fsync.
    disk.fail_at(1, Fault::Error(ErrorKind::Other));
    assert!(matches!(bench.accept(submission("second", 1, &["b@x.org"])), Err(AcceptError::Io(_))));
    assert!(!bench.core.status.is_failed());
    bench.accept(submission("third", 1, &["c@x.org"])).expect("accepted");
    let bench = Bench::open(&disk.after_power_cut(1000)).expect("opened");
    let mut paths: Vec<_> = bench.load("x.org", bench.now, 9).iter().map(|q| q.recipient.path.to_string()).collect();
    paths.sort();
    assert_eq!(paths, ["a@x.org", "c@x.org"], "what was refused is not delivered");
}

#[test]
fn outcomes_of_a_failed_fsync_are_written_again() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    let batch = bench.accept(submission("first", 1, &["a@x.org", "b@x.org"])).expect("accepted");
    bench.settle(vec![(id(batch, 0), relayed())]);
    disk.fail_at(0, Fault::Error(ErrorKind::Other));
    bench.flush();
    assert!(!bench.core.status.is_failed());
    assert_eq!(Bench::open(&disk.after_power_cut(0)).expect("opened").rows(batch).len(), 1);
}

#[test]
fn a_disk_that_stays_broken_fails_the_spool_and_nothing_is_accepted() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    disk.fail_at(0, Fault::Broken(ErrorKind::Other));
    assert!(bench.accept(submission("first", 1, &["a@x.org"])).is_err());
    assert!(bench.core.status.is_failed());
    assert!(matches!(bench.accept(submission("second", 1, &["a@x.org"])), Err(AcceptError::Io(_))));
}

#[test]
fn a_full_disk_refuses_mail_records_outcomes_and_recovers_by_itself() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    let batch = bench.accept(submission("first", 1, &["a@x.org", "b@x.org"])).expect("accepted");
    disk.set_free(1000);
    bench.core.status.forget_room();
    assert!(matches!(bench.accept(submission("second", 1, &["a@x.org"])), Err(AcceptError::Full)));
    assert_eq!(bench.core.metrics.refusing.get(), 1);
    bench.settle(vec![(id(batch, 0), relayed())]);
    bench.flush();
    assert_eq!(Bench::open(&disk.after_power_cut(0)).expect("opened").rows(batch).len(), 1);
    disk.set_free(1 << 40);
    bench.core.status.forget_room();
    bench.accept(submission("second", 1, &["a@x.org"])).expect("accepted again");
    assert_eq!(bench.core.metrics.refusing.get(), 0);
}

//! What the spool does when nothing goes wrong.

use std::path::Path;

use tokio::sync::mpsc;

use super::memory::MemoryDisk;
use super::support::*;
use crate::clock::Tick;
use crate::mail::QueueId;
use crate::spool::*;

fn paths(queued: &[crate::mail::Queued]) -> Vec<String> {
    let mut paths: Vec<_> = queued.iter().map(|q| q.recipient.path.to_string()).collect();
    paths.sort();
    paths
}

#[test]
fn a_message_answered_250_survives_a_power_cut() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    let batch = bench.accept(submission("hello", 1, &["a@x.org", "b@y.org"])).expect("accepted");
    let bench = Bench::open(&disk.after_power_cut(0)).expect("opened");
    assert_eq!(bench.rows(batch).len(), 2);
    assert_eq!(bench.read(content("hello").hash).expect("read"), "hello");
    assert_eq!(paths(&bench.load("x.org", bench.now, 9)), ["a@x.org"]);
}

#[test]
fn an_accepted_batch_is_handed_out_once() {
    let mut bench = Bench::open(&MemoryDisk::new()).expect("opened");
    let batch = bench.accept(submission("hello", 1, &["a@x.org"])).expect("accepted");
    let event = bench.events.try_recv().expect("an event");
    assert_eq!((event.batch.id, event.queued.len()), (batch, 1));
    assert!(bench.load("x.org", bench.now, 9).is_empty(), "it is handed out already");
    bench.release(vec![id(batch, 0)]);
    assert_eq!(bench.wakeups(bench.now), [(1000, "x.org".into())]);
    assert_eq!(bench.load("x.org", bench.now, 9).len(), 1);
    assert!(bench.wakeups(bench.now).is_empty());
}

#[test]
fn what_dispatch_has_no_room_for_is_found_by_its_wakeup() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    bench.events.close();
    bench.accept(submission("hello", 1, &["a@x.org"])).expect("accepted");
    assert!(bench.core.status.take_missed());
    assert_eq!(bench.wakeups(bench.now), [(1000, "x.org".into())]);
    assert_eq!(bench.load("x.org", bench.now, 9).len(), 1);
}

#[test]
fn a_deferred_recipient_comes_back_when_it_is_due_and_not_before() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    let batch = bench.accept(submission("hello", 1, &["a@x.org"])).expect("accepted");
    bench.settle(vec![(id(batch, 0), retry(61_500))]);
    for bench in [bench, Bench::open(&disk.after_power_cut(1000)).expect("opened")] {
        assert!(bench.wakeups(60_000).is_empty());
        assert!(bench.core.index.next_wakeup().expect("answered").expect("one") <= Tick(61_500));
        assert_eq!(bench.wakeups(61_500).len(), 1);
        assert!(bench.load("x.org", 61_499, 9).is_empty());
        let queued = bench.load("x.org", 61_500, 9);
        assert_eq!((queued[0].attempts, queued[0].due), (1, Tick(61_500)));
        assert_eq!(&*bench.rows(batch)[0].note, "451 later");
    }
}

#[test]
fn the_ledger_balances_through_every_end_and_dsns_stand_apart() {
    let mut bench = Bench::open(&MemoryDisk::new()).expect("opened");
    let all = ["a@x.org", "b@x.org", "c@x.org", "d@x.org", "e@x.org"];
    let batch = bench.accept(submission("hello", 1, &all)).expect("accepted");
    let done = |end| Fate::Done { end, note: "".into(), owes: None };
    bench.settle(vec![
        (id(batch, 0), relayed()),
        (id(batch, 1), bounced("b@x.org")),
        (id(batch, 2), done(End::Expired)),
        (id(batch, 3), done(End::Cancelled)),
        (id(batch, 3), done(End::Cancelled)),
    ]);
    let report = bench.accept(dsn(vec![(id(batch, 1), ObligationKind::Failed)])).expect("accepted");
    let totals = bench.totals();
    assert_balance(&totals);
    assert_eq!((totals.accepted, totals.queued, totals.dsn_queued, totals.owed), (5, 1, 1, 0));
    bench.settle(vec![(id(report, 0), relayed())]);
    assert_eq!((bench.totals().dsn_relayed, bench.totals().relayed), (1, 1));
}

#[test]
fn an_obligation_stays_until_a_dsn_pays_it_or_it_is_forgiven() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    let batch = bench.accept(submission("hello", 1, &["a@x.org", "b@x.org"])).expect("accepted");
    bench.settle(vec![(id(batch, 0), bounced("a@x.org")), (id(batch, 1), bounced("b@x.org"))]);
    bench.flush();
    let mut bench = Bench::open(&disk.after_power_cut(0)).expect("opened");
    let owed = bench.core.index.owed(10).expect("read");
    assert_eq!((owed.len(), owed[0].obligations.len(), owed[0].batch.id), (1, 2, batch));
    assert!(bench.read(content("hello").hash).is_ok(), "the content is kept for the DSN");
    bench.accept(dsn(vec![(id(batch, 0), ObligationKind::Failed)])).expect("accepted");
    assert_eq!(bench.core.index.owed(10).expect("read")[0].obligations.len(), 1);
    bench.accept(dsn(vec![(id(batch, 1), ObligationKind::Failed)])).expect("accepted");
    assert!(bench.core.index.owed(10).expect("read").is_empty());
    assert!(matches!(bench.read(content("hello").hash), Err(ContentError::Missing(_))));
}

#[test]
fn equal_content_is_stored_once_and_dropped_with_its_last_batch() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    let text = "x".repeat(3000);
    let submissions = (0..50).map(|n| submission(&text, 1, &[&*format!("a{n}@x.org")])).collect();
    let batches: Vec<_> = bench.accept_all(submissions).into_iter().map(|id| id.expect("accepted")).collect();
    bench.accept(submission(&text, 1, &["z@x.org"])).expect("accepted");
    let (_, octets) = bench.core.journal.size();
    assert!(octets < 51 * 1000, "{octets} octets for one content and 51 batches");
    bench.settle(batches.iter().map(|&batch| (id(batch, 0), relayed())).collect());
    assert!(bench.read(content(&text).hash).is_ok());
    bench.settle(vec![(id(QueueId(51), 0), relayed())]);
    assert!(bench.read(content(&text).hash).is_err());
    assert_eq!(bench.core.index.saved().live_bytes, 0);
}

#[test]
fn a_small_mailing_is_not_hidden_behind_a_big_one() {
    let mut bench = Bench::open(&MemoryDisk::new()).expect("opened");
    bench.events.close();
    let many: Vec<_> = (0..1000).map(|n| format!("a{n}@x.org")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    bench.accept(submission("big", 1, &many)).expect("accepted");
    bench.accept(submission("small", 2, &["b@x.org", "c@x.org"])).expect("accepted");
    let queued = bench.load("x.org", bench.now, 256);
    assert_eq!(queued.len(), 256);
    assert_eq!(queued.iter().filter(|q| q.batch.envelope.mailing.0 == 2).count(), 2);
    let mut rest = 256;
    while let n @ 1.. = bench.load("x.org", bench.now, 256).len() {
        rest += n;
    }
    assert_eq!(rest, 1002, "every recipient is handed out exactly once");
}

#[test]
fn recipients_of_one_envelope_are_loaded_side_by_side() {
    let mut bench = Bench::open(&MemoryDisk::new()).expect("opened");
    bench.events.close();
    for n in 0..30 {
        let text = if n % 2 == 0 { "even" } else { "odd" };
        bench.accept(submission(text, 1, &[&*format!("a{n}@x.org")])).expect("accepted");
    }
    let queued = bench.load("x.org", bench.now, 100);
    let changes = queued.windows(2).filter(|w| w[0].batch.envelope != w[1].batch.envelope).count();
    assert_eq!((queued.len(), changes), (30, 1));
    assert!(std::sync::Arc::ptr_eq(&queued[0].batch.envelope, &queued[1].batch.envelope));
}

#[test]
fn wakeups_are_found_again_after_a_restart_with_a_checkpoint() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    let batch = bench.accept(submission("hello", 1, &["a@x.org", "b@y.org", "c@z.org"])).expect("accepted");
    bench.settle(vec![(id(batch, 0), retry(50_000)), (id(batch, 1), retry(20_000))]);
    bench.checkpoint();
    let bench = Bench::open(&disk.after_power_cut(0)).expect("opened");
    let order: Vec<_> = bench.wakeups(60_000).into_iter().map(|(_, name)| name).collect();
    assert_eq!(order, ["z.org", "y.org", "x.org"]);
}

#[test]
fn large_content_is_a_file_and_goes_when_it_is_no_longer_needed() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    let text = "long ".repeat(2000);
    let layout = crate::spool::layout::Layout::new(Path::new(ROOT));
    let large = |text: &str| {
        let mut writer = ContentWriter::new(std::sync::Arc::new(disk.clone()), &layout, 4096);
        text.as_bytes().chunks(700).for_each(|chunk| writer.write(chunk).expect("written"));
        let content = writer.finish(text.len() as u64, false).expect("finished");
        if let NewBody::File(file) = &content.body {
            file.file.sync().expect("synced");
        }
        Submission { content, ..submission("", 1, &["a@x.org"]) }
    };
    let hash = content(&text).hash;
    let first = bench.accept(large(&text)).expect("accepted");
    let second = bench.accept(large(&text)).expect("accepted");
    let mut bench = Bench::open(&disk.after_power_cut(0)).expect("opened");
    assert_eq!(bench.read(hash).expect("read"), text);
    assert!(bench.core.disk.list(&layout.tmp).expect("listed").is_empty());
    bench.settle(vec![(id(first, 0), relayed())]);
    bench.flush();
    assert!(bench.read(hash).is_ok());
    bench.settle(vec![(id(second, 0), relayed())]);
    assert_eq!(bench.core.disk.list(&layout.content).expect("listed").len(), 1, "not before the outcome is durable");
    bench.flush();
    assert!(bench.core.disk.list(&layout.content).expect("listed").is_empty());
}

#[test]
fn compaction_keeps_what_is_live_and_drops_the_rest() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    let keep = bench.accept(submission("keep me", 7, &["a@x.org", "b@y.org", "c@z.org"])).expect("accepted");
    bench.settle(vec![(id(keep, 0), retry(90_000)), (id(keep, 1), bounced("b@y.org"))]);
    for n in 0..100 {
        let text = format!("{n} {}", "x".repeat(3000));
        let batch = bench.accept(submission(&text, n, &["d@x.org"])).expect("accepted");
        bench.settle(vec![(id(batch, 0), relayed())]);
        if n % 10 == 0 {
            bench.compact_all();
            bench.checkpoint();
            bench.compact_all();
        }
    }
    let (totals, rows) = (bench.totals(), bench.rows(keep));
    let (segments, octets) = bench.core.journal.size();
    assert!(octets < 150_000, "{octets} octets in {segments} segments remain of 300,000");
    bench.flush();
    let disk = disk.after_power_cut(0);
    let kept = Bench::open(&disk).expect("opened");
    assert_eq!((kept.totals(), kept.rows(keep)), (totals, rows.clone()));
    drop(kept);
    disk.lose(&Path::new(ROOT).join("index.redb"));
    let rebuilt = Bench::open(&disk).expect("opened");
    assert_eq!((rebuilt.totals(), rebuilt.rows(keep)), (totals, rows), "from the journal alone");
    assert_eq!(rebuilt.core.index.owed(9).expect("read")[0].obligations.len(), 1);
    assert_eq!(rebuilt.read(content("keep me").hash).expect("read"), "keep me");
}

#[test]
fn what_is_settled_between_two_checkpoints_never_touches_the_index_on_disk() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    for n in 0..100 {
        let batch = bench.accept(submission(&n.to_string(), n, &["a@x.org"])).expect("accepted");
        bench.settle(vec![(id(batch, 0), relayed())]);
    }
    assert_eq!(bench.core.index.changes(), (0, false));
}

#[tokio::test]
async fn the_spool_is_opened_used_and_closed_on_a_real_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("spool");
    let open = || {
        let (sender, events) = mpsc::channel(16);
        Spool::open(options(&path), sender, &prometheus::Registry::new()).map(|spool| (spool, events))
    };
    let (spool, mut events) = open().expect("opened");
    assert!(matches!(open(), Err(OpenError::Locked(_))));
    let mut writer = spool.content_writer();
    writer.write(b"Subject: hi\r\n\r\nhello\r\n").expect("written");
    let content = writer.finish(22, false).expect("finished");
    let hash = content.hash;
    let batch = spool.accept(Submission { content, ..submission("", 1, &["a@x.org"]) }).await.expect("accepted");
    assert_eq!(events.recv().await.expect("an event").batch.id, batch);
    assert!(spool.has_room() && !spool.take_missed());
    assert_eq!(spool.content(hash).await.expect("read").bytes, "Subject: hi\r\n\r\nhello\r\n");
    let now = spool.clock().now();
    spool.settle(Settlement { at: now, fates: vec![(id(batch, 0), retry(now.0 + 5))] });
    assert_eq!(spool.load(domain("x.org"), Tick(now.0 + 5), 9).await.expect("loaded").queued.len(), 1);
    spool.close().await;
    let (spool, _events) = open().expect("opened again");
    assert!(spool.clock().now() >= now, "time goes on");
    assert_eq!(spool.batch_rows(batch).await.expect("read").len(), 1);
    assert_eq!(spool.totals().queued, 1);
    spool.close().await;
    assert!(fsck(&path).expect("checked").damage.is_empty());
    let mut lines = Vec::new();
    dump(&path, &mut lines).expect("dumped");
    let lines = String::from_utf8(lines).expect("UTF-8");
    assert!(lines.contains(&batch.to_string()) && lines.contains("a@x.org"), "{lines}");
}

#[tokio::test]
async fn a_closed_spool_answers_errors_and_hangs_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let (sender, _events) = mpsc::channel(16);
    let spool = Spool::open(options(directory.path()), sender, &prometheus::Registry::new()).expect("opened");
    let batch = spool.accept(submission("hello", 1, &["a@x.org"])).await.expect("accepted");
    let other = spool.clone();
    spool.close().await;
    other.settle(Settlement { at: Tick(1), fates: vec![(id(batch, 0), relayed())] });
    assert!(other.load(domain("y.org"), Tick(u64::MAX - 1), 9).await.is_err());
    assert!(matches!(other.accept(submission("hello", 1, &["a@x.org"])).await, Err(AcceptError::Closing)));
    other.flush().await;
}

#[test]
fn the_journal_stays_small_while_nobody_pauses() {
    let mut bench = Bench::open(&MemoryDisk::new()).expect("opened");
    let mut largest = 0;
    for n in 0..1500 {
        let text = format!("{n} {}", "x".repeat(3000));
        let batch = bench.accept(submission(&text, n, &["d@x.org"])).expect("accepted");
        bench.settle(vec![(id(batch, 0), relayed())]);
        bench.flush();
        bench.core.turn(false);
        if n % 100 == 0 {
            bench.core.cut_checkpoint();
        }
        largest = largest.max(bench.core.journal.size().1);
    }
    assert!(largest < 1500 << 10, "{largest} octets of journal for 5 MB of mail that was relayed at once");
}

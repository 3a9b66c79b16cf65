//! Octets change on disk: every one of a small spool, one at a time.

use std::path::{Path, PathBuf};

use super::memory::MemoryDisk;
use super::support::*;
use crate::mail::QueueId;
use crate::spool::*;

const TEXTS: [&str; 3] = ["first content", "second content", "third content"];

/// A spool with three messages, and an index that knows the first two if it is kept.
fn spool() -> MemoryDisk {
    let disk = MemoryDisk::new();
    let mut bench = Bench::open(&disk).expect("opened");
    for (n, text) in TEXTS.iter().enumerate() {
        let paths = [format!("a{n}@x.org"), format!("b{n}@y.org")];
        bench.accept(submission(text, n as u64, &[&paths[0], &paths[1]])).expect("accepted");
        bench.settle(vec![(id(QueueId(n as u64 + 1), 0), retry(80_000))]);
        if n == 1 {
            bench.checkpoint();
        }
    }
    bench.flush();
    drop(bench);
    disk.after_power_cut(0)
}

/// Everything that the spool would hand out is as it was accepted; answers how many recipients there are.
fn assert_unharmed(bench: &Bench, at: &str) -> usize {
    let mut found = 0;
    for batch in 1..4 {
        let text = TEXTS[batch as usize - 1];
        for row in bench.rows(QueueId(batch)) {
            let path = row.recipient.path.as_str();
            let n = batch - 1;
            assert!(path == format!("a{n}@x.org") || path == format!("b{n}@y.org"), "{at}: {path}");
            match bench.read(content(text).hash) {
                Ok(read) => assert_eq!(read, text, "{at}"),
                Err(ContentError::Damaged(_) | ContentError::Missing(_)) => {}
                Err(error) => panic!("{at}: {error}"),
            }
            found += 1;
        }
    }
    found
}

fn copy_of(disk: &MemoryDisk) -> MemoryDisk {
    disk.after_power_cut(1000)
}

fn journal_of(disk: &MemoryDisk) -> (PathBuf, usize) {
    let is_journal = |path: &Path| path.extension().is_some_and(|extension| extension == "seg");
    let (path, octets) = disk.files().into_iter().find(|(path, _)| is_journal(path)).expect("a segment");
    (path, octets.len())
}

#[test]
fn a_flipped_octet_anywhere_in_the_journal_harms_one_record_and_is_reported() {
    let disk = spool();
    let (path, length) = journal_of(&disk);
    for offset in 0..length {
        // With the index only the third message is read from the journal: without it everything is, which takes longer.
        for index in ["kept", "lost"].into_iter().take(1 + usize::from(offset % 3 == 0)) {
            let disk = copy_of(&disk);
            let at = format!("octet {offset}, index {index}");
            disk.flip(&path, offset);
            if index == "lost" {
                disk.lose(&Path::new(ROOT).join("index.redb"));
            }
            let report = fsck::fsck_on(&disk, Path::new(ROOT)).expect("checked");
            let bench = Bench::open(&disk).unwrap_or_else(|error| panic!("{at}: {error}"));
            let found = assert_unharmed(&bench, &at);
            assert!(found >= 4, "{at}: {found} of 6 recipients are left");
            // Damage in the very last record cannot be told from a torn tail.
            let is_last = offset + 200 > length;
            assert!(!report.damage.is_empty() || is_last, "{at}: not reported by fsck");
        }
    }
}

#[test]
fn a_flipped_octet_anywhere_in_the_index_harms_nothing() {
    let disk = spool();
    let path = Path::new(ROOT).join("index.redb");
    let length = disk.files().into_iter().find(|(p, _)| *p == path).expect("an index").1.len();
    // All of the header, then a sample: redb's pages are mostly empty.
    for offset in (0..512).chain((512..length).step_by(997)) {
        let disk = copy_of(&disk);
        disk.flip(&path, offset);
        let bench = Bench::open(&disk).unwrap_or_else(|error| panic!("octet {offset}: {error}"));
        assert_eq!(assert_unharmed(&bench, &format!("octet {offset}")), 6);
        assert_balance(&bench.totals());
    }
}

#[test]
fn a_damaged_format_file_is_written_again() {
    let disk = spool();
    let path = Path::new(ROOT).join("format");
    for offset in 0..24 {
        let disk = copy_of(&disk);
        disk.flip(&path, offset);
        assert_eq!(assert_unharmed(&Bench::open(&disk).expect("opened"), "format"), 6);
        assert_eq!(assert_unharmed(&Bench::open(&disk).expect("opened"), "format, again"), 6);
    }
}

#[test]
fn a_journal_cut_at_any_octet_is_read_up_to_there() {
    let disk = spool();
    let (path, length) = journal_of(&disk);
    for cut in 0..length {
        let disk = copy_of(&disk);
        disk.cut(&path, cut);
        let mut bench = Bench::open(&disk).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert_unharmed(&bench, &format!("cut at {cut}"));
        bench.accept(submission("another", 9, &["c@z.org"])).expect("accepted");
        let again = Bench::open(&disk.after_power_cut(0)).expect("opened again");
        assert_eq!(again.load("z.org", again.now, 9).len(), 1, "cut at {cut}");
    }
}

#[test]
fn damaged_content_that_arrives_again_is_stored_anew() {
    let disk = spool();
    let (path, _) = journal_of(&disk);
    let octets = disk.files().into_iter().find(|(p, _)| *p == path).expect("a segment").1;
    let at = memchr::memmem::find(&octets, TEXTS[0].as_bytes()).expect("it is in there");
    disk.flip(&path, at);
    let mut bench = Bench::open(&disk).expect("opened");
    assert!(matches!(bench.read(content(TEXTS[0]).hash), Err(ContentError::Damaged(_))));
    bench.accept(submission(TEXTS[0], 1, &["c@x.org"])).expect("accepted");
    assert_eq!(bench.read(content(TEXTS[0]).hash).expect("read"), TEXTS[0]);
    let bench = Bench::open(&disk.after_power_cut(0)).expect("opened");
    assert_eq!(bench.read(content(TEXTS[0]).hash).expect("read"), TEXTS[0]);
}

#[test]
fn a_newer_format_is_refused_untouched() {
    let disk = spool();
    let mut newer = record::preamble(*b"whatever");
    newer[11] = 2;
    let crc = crc32c::crc32c(&newer[..20]).to_be_bytes();
    newer[20..].copy_from_slice(&crc);
    let file = disk::Disk::open(&disk, &Path::new(ROOT).join("format"), disk::Mode::Fresh).expect("opened");
    disk::DiskFile::write_at(&*file, 0, &newer).expect("written");
    let before = disk.files();
    assert!(matches!(Bench::open(&disk), Err(OpenError::Newer { found: 2, known: 1, .. })));
    assert_eq!(disk.files(), before);
}

#[test]
fn a_second_instance_is_told_who_is_in_the_way() {
    let disk = MemoryDisk::new();
    let _first = Bench::open(&disk).expect("opened");
    let Err(error) = Bench::open(&disk) else { panic!("both have it") };
    assert!(error.to_string().contains("/spool") && error.to_string().contains("another process"), "{error}");
}

#[test]
fn quarantine_keeps_the_damaged_octets() {
    let disk = spool();
    let (path, _) = journal_of(&disk);
    let octets = disk.files().into_iter().find(|(p, _)| *p == path).expect("a segment").1;
    let at = memchr::memmem::find(&octets, TEXTS[1].as_bytes()).expect("it is in there");
    disk.flip(&path, at);
    disk.lose(&Path::new(ROOT).join("index.redb"));
    let bench = Bench::open(&disk).expect("opened");
    assert_eq!(bench.core.metrics.damage.get(), 1);
    let kept = disk.files().into_iter().find(|(p, _)| p.starts_with("/spool/quarantine")).expect("a copy").1;
    assert!(memchr::memmem::find(&kept, &TEXTS[1].as_bytes()[1..]).is_some());
    assert!(matches!(bench.read(content(TEXTS[1]).hash), Err(ContentError::Damaged(_))));
}

#[test]
fn a_content_that_cannot_be_read_now_can_be_read_later() {
    let disk = spool();
    let bench = Bench::open(&disk).expect("opened");
    disk.set_unreadable(true);
    assert!(matches!(bench.read(content(TEXTS[0]).hash), Err(ContentError::Io(..))));
    disk.set_unreadable(false);
    assert_eq!(bench.read(content(TEXTS[0]).hash).expect("read"), TEXTS[0]);
}

#[test]
fn an_index_that_turns_out_damaged_while_running_is_built_anew() {
    let disk = spool();
    let options = Options { index_cache_bytes: 0, ..options(Path::new(ROOT)) };
    let mut bench = Bench::open_with(&disk, options).expect("opened");
    let index = Path::new(ROOT).join("index.redb");
    let octets = disk.files().into_iter().find(|(path, _)| *path == index).expect("an index").1;
    for at in memchr::memmem::find_iter(&octets, b"a0@x.org") {
        disk.flip(&index, at);
    }
    let loaded = bench.core.index.load(&domain("x.org"), crate::clock::Tick(u64::MAX - 1), 9);
    assert!(loaded.is_err(), "a recipient whose address changed is not handed out");
    bench.core.turn(true);
    assert!(bench.core.status.is_failed(), "the process is told to stop");
    drop(bench);
    assert_eq!(assert_unharmed(&Bench::open(&disk).expect("opened"), "rebuilt"), 6);
}

//! What the numbers were measured on.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Appends that are timed.
const SYNCS: usize = 100;

/// Facts for below the table.
pub(crate) fn facts(directory: &Path) -> io::Result<Vec<(&'static str, String)>> {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let sync = fsync_time(directory)?;
    Ok(vec![
        ("date", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("cores", format!("{cores} x {}", first("/proc/cpuinfo", "model name"))),
        ("memory", first("/proc/meminfo", "MemTotal")),
        ("kernel", kernel.trim().to_owned()),
        ("fsync of 10 KB appended", format!("{:.2} ms (median of {SYNCS})", sync.as_secs_f64() * 1000.0)),
        ("load before the start", load),
    ])
}

/// Processor time that a process has used so far, in the kernel's hundredths of a second (proc(5), `utime` and `stime`).
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn fsync_time(directory: &Path) -> io::Result<Duration> {
    let path = directory.join(format!("posthaste-bench-fsync-{}", std::process::id()));
    let mut file = File::create(&path)?;
    let timed: io::Result<Vec<Duration>> = (0..SYNCS).map(|_| append(&mut file)).collect();
    fs::remove_file(&path)?;
    let mut times = timed?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn append(file: &mut File) -> io::Result<Duration> {
    let start = Instant::now();
    file.write_all(&[b'x'; 10_000])?;
    file.sync_data()?;
    Ok(start.elapsed())
}

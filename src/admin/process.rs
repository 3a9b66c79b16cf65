//! The process as Prometheus knows it: memory, open files, age.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGauge, IntGaugeVec, Opts};
use rustix::process::{Resource, getrlimit};

use crate::budget::resident_octets;

/// Read anew at each scrape. Names are those that Prometheus's own client libraries use, so that dashboards fit.
#[derive(Debug)]
pub(super) struct Process {
    resident_bytes: IntGauge,
    open_files: IntGauge,
    open_files_max: IntGauge,
    started: Gauge,
    build: IntGaugeVec,
}

impl Process {
    pub(super) fn new() -> Result<Process, prometheus::Error> {
        let started = Gauge::new("process_start_time_seconds", "When the process started, in seconds since 1970.")?;
        started.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        let build = IntGaugeVec::new(Opts::new("posthaste_build_info", "1; the version is a label."), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Process {
            resident_bytes: IntGauge::new("process_resident_memory_bytes", "Resident memory.")?,
            open_files: IntGauge::new("process_open_fds", "Open file descriptors.")?,
            open_files_max: IntGauge::new("process_max_fds", "Limit on open file descriptors.")?,
            started,
            build,
        })
    }

    fn read(&self) {
        self.resident_bytes.set(resident_octets().and_then(|octets| i64::try_from(octets).ok()).unwrap_or(0));
        self.open_files.set(fs::read_dir("/proc/self/fd").map_or(0, |files| i64::try_from(files.count()).unwrap_or(0)));
        let limit = getrlimit(Resource::Nofile).current;
        self.open_files_max.set(limit.map_or(i64::MAX, |limit| i64::try_from(limit).unwrap_or(i64::MAX)));
    }

    fn collectors(&self) -> [&dyn Collector; 5] {
        [&self.resident_bytes, &self.open_files, &self.open_files_max, &self.started, &self.build]
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.collectors().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.collectors().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_sees_its_own_memory_and_files() {
        let process = Process::new().expect("sound names");
        process.read();
        assert!(process.resident_bytes.get() > 1 << 20, "{}", process.resident_bytes.get());
        assert!((3..100_000).contains(&process.open_files.get()), "{}", process.open_files.get());
        assert!(process.open_files_max.get() >= process.open_files.get());
    }
}

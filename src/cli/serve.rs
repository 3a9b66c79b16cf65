//! `posthaste serve`: the relay.

use anyhow::Context;

use super::{ConfigFile, Failure};
use crate::config::Config;
use crate::log::Escaped;
use crate::{log, server};

/// Threads for what blocks: fsync of contents, password hashes, metrics. Each holds a stack, and none is on the way of
/// mail that could not wait for another.
const BLOCKING_THREADS_MAX: usize = 32;

pub(super) fn run(file: &ConfigFile) -> Result<(), Failure> {
    let config = Config::load(&file.config)?;
    log::init(config.log);
    for warning in &config.warnings {
        tracing::warn!("{}", Escaped(&warning.to_string()));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("the threads could not be started")?;
    runtime.block_on(server::run(&file.config, config))?;
    Ok(())
}

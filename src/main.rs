//! The `posthaste` program: everything is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // One TLS provider for the whole process, chosen here once. An error says that one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    posthaste::cli::main()
}

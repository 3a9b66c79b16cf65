//! Ingress: the list host is never the one who waits, retries or loses (design 6).

mod options;

pub use options::{ListHost, Listener, Options, PasswordHash, Tls};

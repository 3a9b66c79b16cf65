//! What a session says to its driver: what to do next, what became of it, what to count.

use std::sync::Arc;

use crate::mail::{Destination, EnvelopeParams, Recipient, ReversePath};

use super::data::Findings;
use super::reply::Reply;
use super::sasl::Credentials;
use super::terms::Relay;
use super::transaction::Lint;
use super::verp::Delimiters;

/// What to do next. The reply of [`Step::Reply`] may wait until the input is exhausted (RFC 2920); the others ask for
/// an effect.
#[derive(Debug)]
pub enum Step {
    /// Say this and go on.
    Reply(Reply),
    /// Say this, then hand what comes to [`Session::content`](super::session::Session::content).
    Receive(Reply),
    /// Say this, then negotiate TLS and call [`Session::tls_started`](super::session::Session::tls_started). Input that is there already was sent in the
    /// clear by somebody who wants it to be taken for what comes under TLS.
    StartTls(Reply),
    /// Find out whether this is right, then call [`Session::password_checked`](super::session::Session::password_checked).
    CheckPassword(Credentials),
    /// Say this and close.
    Close(Reply),
}

/// What became of a password.
#[derive(Debug)]
pub enum Checked {
    /// It is that list host's.
    Granted(Arc<Relay>),
    /// It is wrong, or there is no such user.
    Denied,
    /// It could not be checked.
    Unavailable,
}

/// Something to count, and perhaps to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Something passed that is not as it should be.
    Lint(Lint),
    /// A list host used a reverse-path domain that it has not declared: an error of our operator.
    Undeclared {
        /// The list host.
        relay: Arc<str>,
        /// The reverse-path.
        reverse_path: Box<str>,
    },
}

/// What to do with buffered content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// That many octets of the buffer are content.
    pub content: usize,
    /// Whether they are worth keeping. Once false, it stays false until the end.
    pub keep: bool,
    /// If the content is complete: that many octets follow it and are no part of it.
    pub end: Option<usize>,
}

/// A complete transaction that may be accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The list host.
    pub relay: Arc<Relay>,
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// Parameters of MAIL.
    pub params: EnvelopeParams,
    /// Whether each recipient gets a reverse-path of its own.
    pub verp: Option<Delimiters>,
    /// The recipients, each once; never empty.
    pub recipients: Vec<(Recipient, Destination)>,
    /// The start of the content, [`HEADER_MAX`](super::session::HEADER_MAX) octets at most.
    pub head: Vec<u8>,
    /// What was found in the content.
    pub findings: Findings,
    /// The client's name as the Received line gives it.
    pub helo: Box<str>,
    /// The WITH keyword of the Received line.
    pub protocol: &'static str,
}

/// The end of a complete content.
#[derive(Debug)]
pub enum Verdict {
    /// It may become a batch; then call [`Session::conclude`](super::session::Session::conclude).
    Accept(Box<Accepted>),
    /// Say this. The transaction is over.
    Refuse(Reply),
}

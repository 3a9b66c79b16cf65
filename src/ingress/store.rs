//! The spool as ingress's [`Store`].

use std::io;

use super::{ContentSink, Store};
use crate::budget::Memory;
use crate::mail::QueueId;
use crate::smtp::session::Shortage;
use crate::spool::{AcceptError, ContentWriter, NewContent, Spool, Submission};

/// The spool, as long as there is memory too.
#[derive(Clone, Debug)]
pub struct Keeper {
    /// Where mail is kept.
    pub spool: Spool,
    /// What keeping it may cost.
    pub memory: Memory,
}

impl Store for Keeper {
    type Writer = ContentWriter;

    fn writer(&self) -> ContentWriter {
        self.spool.content_writer()
    }

    fn shortage(&self) -> Option<Shortage> {
        if !self.memory.has_room() {
            Some(Shortage::Memory)
        } else if !self.spool.has_room() {
            Some(Shortage::Disk)
        } else {
            None
        }
    }

    async fn accept_all(&self, submissions: Vec<Submission>) -> Result<Vec<QueueId>, AcceptError> {
        self.spool.accept_all(submissions).await
    }
}

impl ContentSink for ContentWriter {
    fn write(&mut self, stuffed: &[u8]) -> io::Result<()> {
        ContentWriter::write(self, stuffed)
    }

    fn finish(self, size: u64, eight_bit: bool) -> io::Result<NewContent> {
        ContentWriter::finish(self, size, eight_bit)
    }
}

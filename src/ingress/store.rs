//! The spool as ingress's [`Store`].

use std::io;

use super::{ContentSink, Store};
use crate::mail::QueueId;
use crate::spool::{AcceptError, ContentWriter, NewContent, Spool, Submission};

impl Store for Spool {
    type Writer = ContentWriter;

    fn writer(&self) -> ContentWriter {
        self.content_writer()
    }

    fn has_room(&self) -> bool {
        Spool::has_room(self)
    }

    async fn accept_all(&self, submissions: Vec<Submission>) -> Result<Vec<QueueId>, AcceptError> {
        Spool::accept_all(self, submissions).await
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

//! The way of a submission through one commit: gathered with the others, written, synced, made visible, answered.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::api::{AcceptError, Accepted, NewBody, NewContent, Submission};
use super::codec::{Codec, bytes_of};
use super::core::{Core, Incoming};
use super::disk::is_full;
use super::index::{Effects, Stored, Writing};
use super::record::{self, Kind, Place, Position};
use crate::mail::{Batch, ContentHash, Envelope, QueueId, Queued, RecipientId};

/// What goes into one commit.
#[derive(Default)]
struct Commit {
    /// The framed records.
    out: Vec<u8>,
    /// Contents that are stored by this commit, and their length if they are files.
    fresh: HashMap<ContentHash, Option<u64>>,
    /// Whether a file was given its name.
    adopted: bool,
    written: Vec<Written>,
}

/// A submission whose records are written. Places are relative to where the commit's records begin.
struct Written {
    incoming: Incoming,
    batch: Batch,
    /// The record of its content, if it brought one that was not there.
    content: Option<Place>,
    accept: Place,
    /// Length of the content, if it is a file.
    file: Option<u64>,
}

/// A reply, what it says, and the event that goes before it.
type Answer = (oneshot::Sender<Result<QueueId, AcceptError>>, QueueId, Option<(mpsc::OwnedPermit<Accepted>, Accepted)>);

impl Core {
    /// Writes submissions, syncs, applies them, answers.
    pub(super) fn accept(&mut self, accepts: Vec<Vec<Incoming>>) {
        if let Some(refusal) = self.refusal() {
            for incoming in accepts.into_iter().flatten() {
                self.answer(incoming.reply, Err(refusal()));
            }
            return self.sync_facts();
        }
        let mut commit = Commit { out: Vec::with_capacity(64 << 10), ..Commit::default() };
        accepts.into_iter().for_each(|together| self.gather_all(together, &mut commit));
        match self.commit(&commit) {
            Ok(at) => self.publish(commit.written, at),
            Err(error) => self.refuse(commit.written, error),
        }
    }

    /// Stores what submissions share, and frames each; or refuses all of them. Only the first can fail: after it their
    /// content is known.
    fn gather_all(&mut self, together: Vec<Incoming>, commit: &mut Commit) {
        let mut failure: Option<Arc<io::Error>> = None;
        for incoming in together {
            if let Some(error) = &failure {
                self.answer(incoming.reply, Err(AcceptError::Io(Arc::clone(error))));
                continue;
            }
            match self.store(&incoming.submission.content, commit) {
                Ok((content, file)) => self.gather(incoming, content, file, commit),
                Err(error) => {
                    let error = failure.insert(Arc::new(error));
                    let error = AcceptError::Io(Arc::clone(error));
                    self.answer(incoming.reply, Err(error));
                }
            }
        }
    }

    /// Why nothing is accepted just now.
    fn refusal(&self) -> Option<Box<dyn Fn() -> AcceptError>> {
        if let Some(error) = self.status.failure() {
            return Some(Box::new(move || AcceptError::Io(Arc::clone(&error))));
        }
        let room = self.status.has_room(&*self.disk, &self.layout.root, self.options.reserve_bytes);
        if room { None } else { Some(Box::new(|| AcceptError::Full)) }
    }

    /// Makes sure that the content is in the spool once the commit is. Answers where its new record is, if it needs one,
    /// and its length if it is a file.
    fn store(&self, content: &NewContent, commit: &mut Commit) -> io::Result<(Option<Place>, Option<u64>)> {
        let known = self.known(content.hash, commit)?;
        self.metrics.contents.with_label_values(&[if known.is_some() { "yes" } else { "no" }]).inc();
        if let Some(file) = known {
            return Ok((None, file));
        }
        let place = match &content.body {
            NewBody::Inline(bytes) => {
                commit.fresh.insert(content.hash, None);
                let id = u64::from_be_bytes(*content.hash.0.first_chunk().expect("a hash has 32 octets"));
                let write = |out: &mut Vec<u8>| {
                    content.hash.put(out);
                    out.extend_from_slice(bytes);
                };
                (Some(self.frame(&mut commit.out, Kind::Content, id, write)), None)
            }
            NewBody::File(file) => {
                self.disk.rename(&file.path, &self.layout.content_file(content.hash))?;
                commit.adopted = true;
                commit.fresh.insert(content.hash, Some(file.length));
                (None, Some(file.length))
            }
        };
        Ok(place)
    }

    /// Whether the content is there, or will be with this commit; and its length if it is a file.
    fn known(&self, hash: ContentHash, commit: &Commit) -> io::Result<Option<Option<u64>>> {
        if let Some(&file) = commit.fresh.get(&hash) {
            return Ok(Some(file));
        }
        if self.damaged.contains(hash) {
            return Ok(None);
        }
        Ok(match self.index.held(hash)?.map(|held| held.stored) {
            Some(Stored::Journal(_)) => Some(None),
            Some(Stored::File(length)) => Some(Some(length)),
            Some(Stored::Lost) | None => None,
        })
    }

    /// Frames the accept record of one submission.
    fn gather(&mut self, incoming: Incoming, content: Option<Place>, file: Option<u64>, commit: &mut Commit) {
        let batch = self.index.share(batch_of(&incoming, QueueId(self.next_id)));
        self.next_id += 1;
        let submission = &incoming.submission;
        let accept = self.frame(&mut commit.out, Kind::Accept, batch.id.0, |out| {
            record::put_accept(out, &batch, &submission.recipients, &submission.pays, file);
        });
        commit.written.push(Written { incoming, batch, content, accept, file });
    }

    /// Writes and syncs; answers where the commit's records begin.
    fn commit(&mut self, commit: &Commit) -> io::Result<Position> {
        if commit.adopted {
            self.disk.sync_directory(&self.layout.content)?;
        }
        let standing = self.index.saved().standing;
        let at = self.journal.append(&commit.out, &standing)?;
        self.count(commit.out.len());
        self.sync()?;
        Ok(at)
    }

    /// The commit is durable: makes its batches visible and answers.
    fn publish(&mut self, written: Vec<Written>, at: Position) {
        let index = Arc::clone(&self.index);
        let mut writing = index.write();
        let mut effects = Effects::default();
        let mut answers = Vec::with_capacity(written.len());
        let mut applied = Ok(());
        for submission in written {
            match self.publish_one(submission, at, &mut writing, &mut effects) {
                Ok(answer) => answers.push(answer),
                Err(error) => applied = Err(error),
            }
        }
        writing.tell(&mut effects);
        drop(writing);
        self.doomed.append(&mut effects.doomed);
        for (reply, id, event) in answers {
            if let Some((permit, accepted)) = event {
                permit.send(accepted);
            }
            self.answer(reply, Ok(id));
        }
        if let Err(error) = self.index.noting(applied) {
            self.give_up(error);
        }
    }

    fn publish_one(
        &self,
        written: Written,
        at: Position,
        writing: &mut Writing<'_>,
        effects: &mut Effects,
    ) -> io::Result<Answer> {
        let Written { incoming: Incoming { submission, reply, .. }, batch, content, accept, file } = written;
        let moved = |place: Place| Place { at: at.plus(place.at.offset), length: place.length };
        let hash = submission.content.hash;
        if let Some(place) = content {
            writing.layers.content(hash, moved(place))?;
        }
        self.damaged.remove(hash);
        writing.layers.accept(&batch, &submission.recipients, &submission.pays, file, moved(accept), effects)?;
        let id = batch.id;
        let Ok(permit) = self.accepted.clone().try_reserve_owned() else {
            self.status.miss();
            self.metrics.missed.inc();
            let waiting = submission.recipients.iter().map(|(_, to)| (bytes_of(to), batch.accepted));
            effects.waiting.extend(waiting);
            submission.recipients.iter().for_each(|(_, to)| writing.desk.rouse(&bytes_of(to)));
            return Ok((reply, id, None));
        };
        let accepted = accepted_event(batch, submission);
        accepted.queued.iter().for_each(|queued| writing.desk.lease(queued.id));
        Ok((reply, id, Some((permit, accepted))))
    }

    /// The commit failed: nothing of it will be delivered, and each submission hears so.
    fn refuse(&mut self, written: Vec<Written>, error: io::Error) {
        self.salvage(&error, self.index.saved().standing);
        let (full, error) = (is_full(&error), Arc::new(error));
        for Written { incoming, .. } in written {
            let answer = if full { AcceptError::Full } else { AcceptError::Io(Arc::clone(&error)) };
            self.answer(incoming.reply, Err(answer));
        }
    }

    fn answer(&self, reply: oneshot::Sender<Result<QueueId, AcceptError>>, answer: Result<QueueId, AcceptError>) {
        let label = match &answer {
            Ok(_) => "accepted",
            Err(AcceptError::Full) => "full",
            Err(AcceptError::Io(_)) => "failed",
            Err(AcceptError::Closing) => "closing",
        };
        self.metrics.accepts.with_label_values(&[label]).inc();
        // A client that went away before its answer comes back and sends again; the batch is accepted all the same.
        let _ = reply.send(answer);
    }
}

fn batch_of(incoming: &Incoming, id: QueueId) -> Batch {
    let submission = &incoming.submission;
    let envelope = Envelope {
        list_host: Arc::clone(&submission.list_host),
        reverse_path: submission.reverse_path.clone(),
        params: submission.params.clone(),
        content: submission.content.hash,
        content_size: submission.content.size,
        eight_bit: submission.content.eight_bit,
        mailing: submission.mailing,
    };
    Batch { id, envelope: Arc::new(envelope), trace: submission.trace.clone(), accepted: incoming.at }
}

fn accepted_event(batch: Batch, submission: Submission) -> Accepted {
    let batch = Arc::new(batch);
    let queued = (0..).zip(submission.recipients).map(|(index, (recipient, destination))| Queued {
        id: RecipientId { batch: batch.id, index },
        batch: Arc::clone(&batch),
        recipient: Arc::new(recipient),
        destination,
        attempts: 0,
        due: batch.accepted,
        delay_reported: false,
    });
    Accepted { queued: queued.collect(), batch: Arc::clone(&batch) }
}

//! `posthaste spool dump`: the journal as lines of JSON, one record a line, for people and for scripts.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::api::Fate;
use super::disk::SystemDisk;
use super::fsck::{FsckError, Reading};
use super::record::{HEAD, Head, Record};
use super::scan::Found;

/// Writes one line per record (or damaged place) of the spool below `path`. Contents themselves are left out.
///
/// # Errors
/// See [`FsckError`]; also if `out` cannot be written.
pub fn dump(path: &Path, mut out: impl Write) -> Result<(), FsckError> {
    let reading = Reading::open(&SystemDisk, path)?;
    for &(segment, end) in &reading.segments {
        let mut scan = reading.scan(segment, end)?;
        while let Some(found) = scan.next()? {
            write_line(&mut out, &line_of(segment, &found))?;
        }
    }
    out.flush()?;
    Ok(())
}

fn write_line(out: &mut impl Write, line: &Value) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn line_of(segment: u64, found: &Found<'_>) -> Value {
    match found {
        Found::Damage { offset, length } => {
            json!({ "segment": segment, "offset": offset, "length": length, "kind": "damage" })
        }
        Found::Record { offset, head, record } => {
            let mut line = json!({
                "segment": segment, "offset": offset, "length": head.total(), "commit": head.commit,
                "kind": head.kind().map_or("unknown", |kind| kind.as_str()),
            });
            if let (Value::Object(line), Value::Object(detail)) = (&mut line, detail_of(head, &record[HEAD..])) {
                line.extend(detail);
            }
            line
        }
    }
}

fn detail_of(head: &Head, payload: &[u8]) -> Value {
    let Some(Ok(record)) = head.kind().map(|kind| Record::read(kind, payload)) else { return json!({}) };
    match record {
        Record::Header(header) => json!({ "number": head.id, "next_id": header.standing.next_id }),
        Record::Content(hash) => json!({ "hash": hash.to_string(), "octets": payload.len() - 32 }),
        Record::Accept(accept) => json!({
            "queue_id": accept.batch.id.to_string(),
            "list_host": &*accept.batch.envelope.list_host,
            "reverse_path": accept.batch.envelope.reverse_path.as_str(),
            "mailing": accept.batch.envelope.mailing.to_string(),
            "content": accept.batch.envelope.content.to_string(),
            "at": accept.batch.trace.at.to_string(),
            "recipients": accept.recipients.iter().map(|(r, _)| r.path.as_str()).collect::<Vec<_>>(),
        }),
        Record::Outcome(outcome) => json!({
            "at": outcome.at.to_string(),
            "fates": outcome.fates.iter().map(|settled| fate(&settled.id.to_string(), &settled.fate)).collect::<Vec<_>>(),
        }),
        Record::Forgive(forgive) => json!({
            "debts": forgive.debts.iter().map(|(id, kind)| format!("{id} {kind:?}")).collect::<Vec<_>>(),
        }),
        Record::Snapshot(snapshot) => json!({
            "queue_id": snapshot.batch.id.to_string(),
            "waiting": snapshot.rows.iter().map(|row| row.state.recipient.path.as_str()).collect::<Vec<_>>(),
            "owed": snapshot.owed.len(),
        }),
        Record::Time(time) => json!({ "tick": time.tick.to_string(), "wall": time.timestamp().to_string() }),
    }
}

fn fate(recipient: &str, fate: &Fate) -> Value {
    match fate {
        Fate::Retry { due, attempts, note, owes } => json!({
            "recipient": recipient, "fate": "retry", "due": due.to_string(), "attempts": attempts, "note": &**note,
            "owes": owes.is_some(),
        }),
        Fate::Done { end, note, owes } => json!({
            "recipient": recipient, "fate": format!("{end:?}").to_lowercase(), "note": &**note, "owes": owes.is_some(),
        }),
    }
}

//! Which mailing a batch belongs to. Pure: header section in, [`MailingId`] out, `now` is an argument.
//!
//! In order:
//!
//! 1. A configured campaign header (`X-Listmonk-Campaign`) names the mailing, together with the list host.
//! 2. Message-ID and List-Id name it. Mailman's batches and its VERP copies all bear the Message-ID of the post.
//! 3. listmonk, phpList and others give every copy a Message-ID of its own. Their copies are a *series*: the same list
//!    host, List-Id and From (or From and Subject, without List-Id), until nothing came for 30 minutes.
//! 4. Without any Message-ID the series alone decides.
//!
//! Whether 2 or 3 holds shows in the second copy: a copy joins the series before it if both went to one recipient and
//! the Message-ID before had come exactly once. A series takes the id of its first copy, so that nothing that was
//! counted need be moved. A Message-ID that came in a batch of several recipients, or twice, is shared: it is
//! remembered, and what bears it belongs to it even where the posts of a VERP list interleave.
//!
//! Where this errs, it errs by putting two small posts of one sender to one list into one mailing, which costs fairness
//! and a line in a report, never a message. From stands in the series' name, beside what design 11 asks for, to keep the
//! posts of different people to a VERP list apart. A restart of ours splits a series in two. The ids of 1 and 2 are
//! hashes and survive it.
//!
//! Both tables are bounded; at the bound the quarter that was idle longest is forgotten and counted.

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::digest;

use crate::clock::Tick;
use crate::mail::MailingId;
use crate::mail::header::fields;

/// Octets of the header section that are looked at.
const HEAD_MAX: usize = 65_536;

/// A series ends when nothing of it came for this long.
pub const IDLE: Duration = Duration::from_secs(30 * 60);

/// Series, and shared Message-IDs, that are remembered at a time.
pub const SERIES_MAX: usize = 4096;

/// What the header section of one message says about its mailing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clue {
    /// The first configured campaign header that is there: its name and value.
    campaign: Option<(String, String)>,
    message_id: Option<String>,
    list_id: Option<String>,
    from: Option<String>,
    subject: Option<String>,
}

impl Clue {
    /// Reads the start of a message (64 KiB at most). `campaign_headers` are tried in order.
    pub fn read(head: &[u8], campaign_headers: &[String]) -> Clue {
        let head = &head[..head.len().min(HEAD_MAX)];
        let first = |name: &str| {
            let value = fields(head).find(|field| field.is(name))?.value();
            (!value.is_empty()).then(|| value.into_owned())
        };
        Clue {
            campaign: campaign_headers.iter().find_map(|name| Some((name.to_ascii_lowercase(), first(name)?))),
            message_id: first("Message-ID"),
            list_id: first("List-Id"),
            from: first("From"),
            subject: first("Subject"),
        }
    }

    /// The name of the series that a personalised copy would belong to.
    fn series(&self, list_host: &str) -> u64 {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        match &self.list_id {
            Some(list_id) => stable_hash(&["series by list", list_host, list_id, &text(&self.from)]),
            None => stable_hash(&["series by subject", list_host, &text(&self.from), &text(&self.subject)]),
        }
    }
}

/// Copies of one broadcast, each with a Message-ID of its own, or the posts of a list one after another.
#[derive(Debug)]
struct Series {
    id: MailingId,
    /// Hash of the Message-ID that came last, and how often it came.
    last: u64,
    copies: u32,
    /// Whether a second Message-ID has joined: from then on others join without question.
    personalised: bool,
    seen: Tick,
}

/// A Message-ID that is known to be shared by several recipients.
#[derive(Debug)]
struct Shared {
    id: MailingId,
    seen: Tick,
}

/// Remembers what came lately.
#[derive(Debug, Default)]
pub struct Recogniser {
    series: HashMap<u64, Series>,
    shared: HashMap<u64, Shared>,
    forgotten: u64,
}

impl Recogniser {
    /// One that remembers nothing yet.
    pub fn new() -> Recogniser {
        Recogniser::default()
    }

    /// Entries that were forgotten at the bound, before they were idle for [`IDLE`]: each may have split a mailing.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The mailing of a batch of `list_host` that came now and has that many recipients.
    pub fn recognise(&mut self, now: Tick, list_host: &str, clue: &Clue, recipients: usize) -> MailingId {
        if let Some((name, value)) = &clue.campaign {
            return MailingId(stable_hash(&["campaign", list_host, name, value]));
        }
        let series = clue.series(list_host);
        let Some(message_id) = &clue.message_id else { return self.join_or_begin(now, series) };
        let list_id = clue.list_id.as_deref().unwrap_or_default();
        let message = stable_hash(&["message", list_host, message_id, list_id]);
        if let Some(shared) = self.shared.get_mut(&message) {
            shared.seen = now;
            return shared.id;
        }
        if recipients == 1 { self.single(now, series, message) } else { self.several(now, series, message) }
    }

    /// A batch of several recipients: its Message-ID names the mailing, or the series that its first copy began. Either
    /// way it is shared, so no other Message-ID joins after it.
    fn several(&mut self, now: Tick, series: u64, message: u64) -> MailingId {
        let begun = self.series.get_mut(&series).filter(|s| s.last == message && now.since(s.seen) <= IDLE);
        let id = begun.map_or(MailingId(message), |series| {
            series.copies += 1;
            series.id
        });
        self.share(now, message, id);
        id
    }

    fn single(&mut self, now: Tick, key: u64, message: u64) -> MailingId {
        match self.series.get_mut(&key) {
            Some(series) if now.since(series.seen) <= IDLE && series.last == message => {
                series.seen = now;
                series.copies += 1;
                let (id, personalised) = (series.id, series.personalised);
                if !personalised {
                    self.share(now, message, id);
                }
                id
            }
            Some(series) if now.since(series.seen) <= IDLE && (series.personalised || series.copies == 1) => {
                (series.seen, series.last, series.copies, series.personalised) = (now, message, 1, true);
                series.id
            }
            _ => self.begin(now, key, message, MailingId(message)),
        }
    }

    /// Without a Message-ID: the series that is open, or a new one, whose id must differ from the one that ended.
    fn join_or_begin(&mut self, now: Tick, key: u64) -> MailingId {
        if let Some(series) = self.series.get_mut(&key).filter(|series| now.since(series.seen) <= IDLE) {
            series.seen = now;
            return series.id;
        }
        let id = MailingId(stable_hash(&["series", &key.to_string(), &now.0.to_string()]));
        self.begin(now, key, 0, id)
    }

    fn begin(&mut self, now: Tick, key: u64, last: u64, id: MailingId) -> MailingId {
        self.forgotten += make_room(&mut self.series, now, |series| series.seen);
        self.series.insert(key, Series { id, last, copies: 1, personalised: false, seen: now });
        id
    }

    fn share(&mut self, now: Tick, message: u64, id: MailingId) {
        self.forgotten += make_room(&mut self.shared, now, |shared| shared.seen);
        self.shared.insert(message, Shared { id, seen: now });
    }
}

/// If the table is full, drops the quarter that was seen longest ago; returns how many of those were not idle yet.
fn make_room<V>(table: &mut HashMap<u64, V>, now: Tick, seen: impl Fn(&V) -> Tick) -> u64 {
    if table.len() < SERIES_MAX {
        return 0;
    }
    let mut ticks: Vec<_> = table.values().map(&seen).collect();
    let (_, &mut oldest_kept, _) = ticks.select_nth_unstable(SERIES_MAX / 4);
    let (before, mut early) = (table.len(), 0);
    table.retain(|_, entry| {
        // Where everything came in the same millisecond, that millisecond goes too: room must be made.
        let keep = seen(entry) > oldest_kept;
        early += u64::from(!keep && now.since(seen(entry)) <= IDLE);
        keep
    });
    debug_assert!(table.len() < before);
    early
}

/// 64 bits of SHA-256 over the parts, each with its length. Stable for ever: mailing ids stand in the journal.
fn stable_hash(parts: &[&str]) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let digest = context.finish();
    digest.as_ref()[..8].iter().fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Tick = Tick(1_000_000);

    fn clue(header: &str) -> Clue {
        Clue::read(header.replace('\n', "\r\n").as_bytes(), &["X-Listmonk-Campaign".to_owned()])
    }

    fn post(number: u32, from: &str) -> Clue {
        clue(&format!("Message-ID: <{number}@x>\nList-Id: <l.x>\nFrom: {from}\nSubject: s\n\n"))
    }

    #[test]
    fn a_campaign_header_names_the_mailing_whatever_else_differs() {
        let mut known = Recogniser::new();
        let copy = |n| clue(&format!("X-Listmonk-Campaign: 42\nMessage-ID: <{n}@x>\nSubject: s{n}\n\n"));
        let id = known.recognise(START, "a", &copy(1), 1);
        assert_eq!(known.recognise(START + IDLE * 9, "a", &copy(2), 1), id);
        assert_ne!(known.recognise(START, "b", &copy(1), 1), id);
        assert_ne!(known.recognise(START, "a", &clue("X-Listmonk-Campaign: 43\n\n"), 1), id);
    }

    #[test]
    fn batches_and_verp_copies_of_one_post_are_one_mailing_across_a_restart() {
        let id = Recogniser::new().recognise(START, "a", &post(1, "f"), 50);
        let mut known = Recogniser::new();
        for recipients in [50, 1, 1, 7, 1] {
            assert_eq!(known.recognise(START, "a", &post(1, "f"), recipients), id);
        }
        let mut known = Recogniser::new();
        for _ in 0..1000 {
            assert_eq!(known.recognise(START, "a", &post(1, "f"), 1), id);
        }
    }

    #[test]
    fn a_post_that_began_with_a_batch_of_one_takes_no_later_post_in() {
        let mut known = Recogniser::new();
        let first = known.recognise(START, "a", &post(1, "f"), 1);
        assert_eq!(known.recognise(START, "a", &post(1, "f"), 50), first);
        assert_ne!(known.recognise(START, "a", &post(2, "f"), 1), first);
    }

    #[test]
    fn two_posts_to_a_list_are_two_mailings() {
        let mut known = Recogniser::new();
        for recipients in [1, 20] {
            let first = known.recognise(START, "a", &post(1, "f"), recipients);
            known.recognise(START, "a", &post(1, "f"), recipients);
            assert_ne!(known.recognise(START, "a", &post(2, "f"), recipients), first);
        }
    }

    #[test]
    fn interleaved_verp_posts_of_two_people_stay_apart() {
        let mut known = Recogniser::new();
        let ids: Vec<_> =
            (0..20).map(|n| known.recognise(START, "a", &post(n % 2, if n % 2 == 0 { "f" } else { "g" }), 1)).collect();
        assert!(ids.chunks(2).all(|pair| pair == &ids[..2]));
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn copies_with_a_message_id_each_are_one_mailing_until_idle() {
        let mut known = Recogniser::new();
        let first = known.recognise(START, "a", &post(0, "f"), 1);
        for n in 1..20_000 {
            assert_eq!(known.recognise(START + Duration::from_secs(n.into()), "a", &post(n, "f"), 1), first);
        }
        let later = START + Duration::from_secs(20_000) + IDLE;
        assert_ne!(known.recognise(later, "a", &post(20_000, "f"), 1), first);
        assert!(known.shared.is_empty() && known.series.len() == 1);
    }

    #[test]
    fn a_repeated_copy_does_not_split_a_personalised_mailing() {
        let mut known = Recogniser::new();
        let first = known.recognise(START, "a", &post(1, "f"), 1);
        for n in [2, 3, 3, 4, 4, 4, 5] {
            assert_eq!(known.recognise(START, "a", &post(n, "f"), 1), first);
        }
    }

    #[test]
    fn without_a_list_id_sender_and_subject_name_the_series() {
        let mut known = Recogniser::new();
        let copy = |n: u32, subject: &str| clue(&format!("Message-ID: <{n}@x>\nFrom: f\nSubject: {subject}\n\n"));
        let first = known.recognise(START, "a", &copy(1, "news"), 1);
        assert_eq!(known.recognise(START, "a", &copy(2, "news"), 1), first);
        assert_ne!(known.recognise(START, "a", &copy(3, "other"), 1), first);
        assert_ne!(known.recognise(START, "b", &copy(4, "news"), 1), first);
    }

    #[test]
    fn without_a_message_id_the_series_decides_and_is_new_after_a_pause() {
        let mut known = Recogniser::new();
        let bare = clue("From: f\nSubject: s\n\n");
        let first = known.recognise(START, "a", &bare, 3);
        assert_eq!(known.recognise(START + IDLE, "a", &bare, 1), first);
        assert_ne!(known.recognise(START + IDLE * 3, "a", &bare, 1), first);
        known.recognise(START, "a", &clue(""), 1);
    }

    #[test]
    fn the_tables_are_bounded_and_say_what_they_forget() {
        let mut known = Recogniser::new();
        for n in 0..20_000_u32 {
            let list = clue(&format!("Message-ID: <{n}@x>\nList-Id: {n}\n\n"));
            known.recognise(START + Duration::from_millis(n.into()), "a", &list, 1 + n as usize % 2);
        }
        assert!(known.series.len() <= SERIES_MAX && known.shared.len() <= SERIES_MAX);
        assert!(known.forgotten() > 0);
        for n in 0..20_000_u32 {
            known.recognise(START, "b", &clue(&format!("Message-ID: <{n}@x>\nList-Id: {n}\n\n")), 1);
        }
        assert!(known.series.len() <= SERIES_MAX);
    }

    #[test]
    fn folded_and_hostile_headers_are_read_in_bounds() {
        let folded = clue("Message-ID:\n <1@x>\nList-Id: A\n list\n <l.x>\nFrom: f\n\n");
        assert_eq!(folded.message_id.as_deref(), Some("<1@x>"));
        assert_eq!(folded.list_id.as_deref(), Some("A list <l.x>"));
        let mut head = b"X: y\r\n".repeat(20_000);
        head.extend(b"Message-ID: <late@x>\r\n\r\n");
        assert_eq!(Clue::read(&head, &[]), Clue::default());
        assert_eq!(Clue::read(b"Message-ID: \r\n\r\n", &[]).message_id, None);
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(stable_hash(&["message", "a", "<1@x>", "<l.x>"]), stable_hash(&["message", "a", "<1@x>", "<l.x>"]));
        assert_ne!(stable_hash(&["ab", "c"]), stable_hash(&["a", "bc"]));
        assert_eq!(stable_hash(&["posthaste"]), STABLE);
    }

    /// Written down once. If this fails, mailings in existing journals lose their names.
    const STABLE: u64 = 5_806_374_610_050_975_467;
}

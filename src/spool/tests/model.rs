//! The spool against a plain map: any sequence of requests, checkpoints, compactions and power cuts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::memory::MemoryDisk;
use super::support::*;
use crate::clock::Tick;
use crate::mail::RecipientId;
use crate::spool::*;

#[derive(Clone, Debug)]
enum Action {
    Accept { text: u8, mailing: u8, recipients: u8, handed_out: bool },
    Relay(prop::sample::Index),
    Bounce(prop::sample::Index),
    Retry(prop::sample::Index, u16),
    Pay,
    Release(prop::sample::Index),
    Load { domain: u8, limit: u8 },
    Wait(u16),
    Checkpoint,
    Freeze,
    Compact,
    PowerCut { index_lost: bool },
}

fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    prop_oneof![
        6 => (0u8..6, 0u8..3, 1u8..5, any::<bool>())
            .prop_map(|(text, mailing, recipients, handed_out)| Accept { text, mailing, recipients, handed_out }),
        4 => any::<prop::sample::Index>().prop_map(Relay),
        2 => any::<prop::sample::Index>().prop_map(Bounce),
        4 => (any::<prop::sample::Index>(), any::<u16>()).prop_map(|(which, due)| Retry(which, due)),
        1 => Just(Pay),
        1 => any::<prop::sample::Index>().prop_map(Release),
        4 => (0u8..3, 1u8..80).prop_map(|(domain, limit)| Load { domain, limit }),
        2 => any::<u16>().prop_map(Wait),
        1 => Just(Checkpoint),
        1 => Just(Freeze),
        1 => Just(Compact),
        1 => any::<bool>().prop_map(|index_lost| PowerCut { index_lost }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Waiting {
    domain: u8,
    text: u8,
    due: u64,
    attempts: u32,
    leased: bool,
}

const DOMAINS: [&str; 3] = ["x.org", "y.org", "z.org"];

struct Pair {
    disk: MemoryDisk,
    bench: Bench,
    waiting: BTreeMap<RecipientId, Waiting>,
    owed: BTreeMap<RecipientId, ()>,
    /// A checkpoint was cut and not written: the checkpointer is slow.
    frozen: bool,
}

fn small() -> Options {
    Options { segment_bytes: 2000, ..options(std::path::Path::new(ROOT)) }
}

impl Pair {
    fn new() -> Pair {
        let disk = MemoryDisk::new();
        let bench = Bench::open_with(&disk, small()).expect("opened");
        Pair { disk, bench, waiting: BTreeMap::new(), owed: BTreeMap::new(), frozen: false }
    }

    fn some(&self, which: prop::sample::Index) -> Option<RecipientId> {
        if self.waiting.is_empty() {
            return None;
        }
        self.waiting.keys().nth(which.index(self.waiting.len())).copied()
    }

    fn run(&mut self, action: Action) {
        match action {
            Action::Accept { text, mailing, recipients, handed_out } => {
                self.accept(text, mailing, recipients, handed_out)
            }
            Action::Relay(which) => {
                if let Some(id) = self.some(which) {
                    self.bench.settle(vec![(id, relayed())]);
                    self.waiting.remove(&id);
                }
            }
            Action::Bounce(which) => {
                if let Some(id) = self.some(which) {
                    self.bench.settle(vec![(id, bounced("a@x.org"))]);
                    self.waiting.remove(&id);
                    self.owed.insert(id, ());
                }
            }
            Action::Retry(which, due) => {
                if let Some(id) = self.some(which) {
                    let due = self.bench.now + u64::from(due);
                    self.bench.settle(vec![(id, retry(due))]);
                    let waiting = self.waiting.get_mut(&id).expect("it waits");
                    *waiting = Waiting { due, attempts: 1, leased: false, ..waiting.clone() };
                }
            }
            Action::Pay => self.pay(),
            Action::Release(which) => {
                if let Some(id) = self.some(which) {
                    self.bench.release(vec![id]);
                    self.waiting.get_mut(&id).expect("it waits").leased = false;
                }
            }
            Action::Load { domain, limit } => self.load(domain, limit),
            Action::Wait(time) => self.bench.now += u64::from(time),
            Action::Checkpoint => {
                self.thaw();
                self.bench.checkpoint();
            }
            Action::Freeze => {
                self.bench.flush();
                let end = self.bench.core.journal.end();
                self.frozen |= self.bench.core.index.freeze(end);
            }
            Action::Compact => {
                self.thaw();
                self.bench.compact_all();
            }
            Action::PowerCut { index_lost } => self.power_cut(index_lost),
        }
    }

    fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            self.bench.core.index.checkpoint().expect("written");
        }
    }

    fn accept(&mut self, text: u8, mailing: u8, recipients: u8, handed_out: bool) {
        if !handed_out {
            self.bench.events.close();
        }
        let paths: Vec<_> = (0..recipients).map(|n| format!("a{n}@{}", DOMAINS[usize::from(n) % 3])).collect();
        let paths: Vec<_> = paths.iter().map(String::as_str).collect();
        let batch = self.bench.accept(submission(&format!("text {text}"), mailing.into(), &paths)).expect("accepted");
        let leased = self.bench.events.try_recv().is_ok();
        for n in 0..recipients {
            let waiting = Waiting { domain: n % 3, text, due: self.bench.now, attempts: 0, leased };
            self.waiting.insert(id(batch, n.into()), waiting);
        }
    }

    fn pay(&mut self) {
        let owed = self.bench.core.index.owed(5).expect("read");
        let Some(owed) = owed.into_iter().next() else { return assert!(self.owed.is_empty()) };
        let pays: Vec<_> = owed.obligations.iter().map(|(id, owed)| (*id, owed.kind)).collect();
        self.owed.retain(|id, _| pays.iter().all(|(paid, _)| paid != id));
        let report = self.bench.accept(dsn(pays)).expect("accepted");
        self.bench.settle(vec![(id(report, 0), relayed())]);
        let _ = self.bench.events.try_recv();
    }

    fn load(&mut self, domain: u8, limit: u8) {
        let now = self.bench.now;
        let is_due = |w: &Waiting| w.domain == domain && w.due <= now && !w.leased;
        let due: Vec<_> = self.waiting.iter().filter(|(_, w)| is_due(w)).map(|(&id, _)| id).collect();
        let woken = self.bench.wakeups(now).iter().any(|(_, name)| name == DOMAINS[usize::from(domain)]);
        assert!(woken || due.is_empty(), "{due:?} wait and nobody is woken");
        let queued = self.bench.load(DOMAINS[usize::from(domain)], now, limit.into());
        assert_eq!(queued.len(), due.len().min(limit.into()), "of {due:?}");
        for queued in queued {
            let waiting = self.waiting.get_mut(&queued.id).expect("it waits");
            assert!(!waiting.leased && due.contains(&queued.id));
            assert_eq!((queued.due.0, queued.attempts), (waiting.due, waiting.attempts));
            assert_eq!(queued.batch.envelope.content, content(&format!("text {}", waiting.text)).hash);
            waiting.leased = true;
        }
    }

    fn power_cut(&mut self, index_lost: bool) {
        self.bench.flush();
        self.disk = self.disk.after_power_cut(0);
        if index_lost {
            self.disk.lose(&std::path::Path::new(ROOT).join("index.redb"));
        }
        let now = self.bench.now;
        self.bench = Bench::open_with(&self.disk, small()).expect("opened");
        self.bench.now = now;
        self.frozen = false;
        self.waiting.values_mut().for_each(|waiting| waiting.leased = false);
    }

    fn check(&self) {
        let totals = self.bench.totals();
        assert_balance(&totals);
        assert_eq!((totals.queued, totals.owed), (self.waiting.len() as u64, self.owed.len() as u64));
        for (&id, waiting) in &self.waiting {
            let rows = self.bench.rows(id.batch);
            let row = rows.iter().find(|row| row.id == id).expect("it waits");
            assert_eq!((row.due, row.attempts), (Tick(waiting.due), waiting.attempts));
            let text = format!("text {}", waiting.text);
            assert_eq!(self.bench.read(content(&text).hash).expect("readable"), text);
        }
        if self.waiting.is_empty() && self.owed.is_empty() {
            assert_eq!(self.bench.core.index.saved().live_bytes, 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_spool_says_what_a_plain_map_says(actions in prop::collection::vec(action(), 1..80)) {
        let mut pair = Pair::new();
        for action in actions {
            pair.run(action);
            pair.check();
        }
        pair.power_cut(true);
        pair.check();
    }
}

//! The list host against simulated receivers, which stand in for the relay.

use super::*;
use crate::rehearse::internet::{Door, Internet, Policy, Stage};

fn mailing(count: u32) -> Arc<Mailing> {
    let mut recipients = Recipients::new(["a.test", "b.test"].map(str::to_owned));
    (0..count).for_each(|i| recipients.add(i % 2, if i % 10 == 9 { Fate::Gone } else { Fate::Taken }));
    Arc::new(Mailing::newsletter("lists.test", 2000, recipients))
}

async fn internet(policy: Policy) -> Internet {
    let built = Internet::builder()
        .provider("relay", ["relay.test"], policy)
        .domain("a.test", |d| d.mx(["relay.test"]).refuse("gone.*"))
        .domain("b.test", |d| d.mx(["relay.test"]).refuse("gone.*"));
    built.start().await.expect("started")
}

fn options(internet: &Internet, batch: usize) -> Options {
    let relay = internet.address_of("relay.test").expect("placed");
    Options { batch, retry_after: Duration::from_millis(20), ..Options::new(relay) }
}

async fn send(options: Options, mailing: &Arc<Mailing>) -> Arc<ListHost> {
    let host = Arc::new(ListHost::new(options, Arc::clone(mailing), |_| {}));
    Arc::clone(&host).send().await;
    host
}

#[tokio::test]
async fn every_recipient_is_handed_over_once_or_refused() {
    let mailing = mailing(1000);
    for pipelining in [true, false] {
        let internet = internet(Policy::new()).await;
        internet.expect(&mailing.content(0));
        let host = send(Options { pipelining, ..options(&internet, 50) }, &mailing).await;
        let (counts, totals) = (host.counts(), internet.totals());
        assert_eq!((counts.accepted, counts.refused, counts.transactions), (900, 100, 20));
        assert_eq!((totals.delivered, totals.duplicates, totals.damaged), (900, 0, 0));
        assert!(counts.hand_over[0] > Duration::ZERO && counts.hand_over[0] <= counts.hand_over[2]);
    }
}

#[tokio::test]
async fn verp_gives_each_recipient_a_transaction() {
    let (mailing, internet) = (mailing(40), internet(Policy::new()).await);
    let host = send(options(&internet, 1), &mailing).await;
    assert_eq!((host.counts().accepted, internet.totals().transactions), (36, 36));
}

#[tokio::test]
async fn distinct_messages_are_no_duplicates_of_each_other() {
    let internet = internet(Policy::new()).await;
    let mut mailing = (*mailing(100)).clone();
    mailing.distinct = true;
    let mailing = Arc::new(mailing);
    send(options(&internet, 10), &mailing).await;
    assert_eq!((internet.totals().delivered, internet.totals().duplicates), (90, 0));
}

#[tokio::test]
async fn what_is_deferred_is_sent_again_later() {
    let policy = Policy::new()
        .recipients_per_transaction(7)
        .answer_times(Stage::Mail, 3, "451 4.3.0 later")
        .answer_times(Stage::Dot, 3, "452 4.3.1 later")
        .answer_times(Stage::Data, 2, "451 4.3.0 later");
    let (mailing, internet) = (mailing(200), internet(policy).await);
    let host = send(options(&internet, 20), &mailing).await;
    assert_eq!(host.counts().accepted, 180);
    assert!(host.counts().deferrals > 8);
    assert_eq!((internet.totals().delivered, internet.totals().duplicates), (180, 0));
}

#[tokio::test]
async fn a_connection_that_is_refused_or_dropped_is_made_again() {
    let policy = Policy::new().busy_every(3).answer_times(Stage::Rcpt, 5, "!");
    let (mailing, internet) = (mailing(200), internet(policy).await);
    let host = send(Options { sessions: 2, ..options(&internet, 20) }, &mailing).await;
    assert_eq!((host.counts().accepted, internet.totals().duplicates), (180, 0));
    assert!(host.counts().broken_connections >= 5);
}

#[tokio::test]
async fn a_lost_reply_to_the_dot_is_reported_before_the_batch_is_repeated() {
    let policy = Policy::new().after_dot(crate::rehearse::internet::AfterDot::KeepAndCutEvery(4));
    let (mailing, internet) = (mailing(200), internet(policy).await);
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    let host = ListHost::new(options(&internet, 20), Arc::clone(&mailing), move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let host = Arc::new(host);
    Arc::clone(&host).send().await;
    assert_eq!((host.counts().accepted, internet.totals().delivered), (180, 180));
    assert_eq!(told.load(Ordering::Relaxed), 20 * host.counts().replies_lost);
    assert_eq!(internet.totals().duplicates, 0, "all repeats are explained");
}

#[tokio::test]
async fn a_relay_that_is_away_is_waited_for_and_a_stop_ends_the_wait() {
    let (mailing, internet) = (mailing(20), internet(Policy::new().door(Door::Resetting)).await);
    let host = Arc::new(ListHost::new(options(&internet, 20), mailing, |_| {}));
    let sending = tokio::spawn(Arc::clone(&host).send());
    while host.counts().broken_connections < 3 {
        tokio::task::yield_now().await;
    }
    assert!(!sending.is_finished());
    host.stop();
    sending.await.expect("ends");
    assert_eq!(host.counts().accepted, 0);
}

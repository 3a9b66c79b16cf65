//! Batches as Mailman 3 cuts them (`mta/bulk.py`, `chunkify`): recipients fall into four buckets by top-level domain,
//! the largest bucket goes first, a batch never spans buckets, and within a bucket there is no order by domain at all.

use super::mailing::Recipients;

/// Mailman's bucket of a domain. A final `.test` or `.example` is looked through: `example.com.test` counts as `.com`.
fn bucket(domain: &str) -> usize {
    let domain = domain.strip_suffix(".test").or_else(|| domain.strip_suffix(".example")).unwrap_or(domain);
    match domain.rsplit('.').next() {
        Some("com") => 1,
        Some("net" | "org") => 2,
        Some("edu" | "us" | "ca") => 3,
        _ => 0,
    }
}

/// Cuts all recipients into batches of at most `size`. The order within a bucket is that of the mailing, which is
/// shuffled when it is made.
pub fn cut(recipients: &Recipients, size: usize) -> Vec<Vec<u32>> {
    let of_domain: Vec<usize> = recipients.domains().iter().map(|domain| bucket(domain)).collect();
    let mut buckets: [Vec<u32>; 4] = Default::default();
    for index in 0..recipients.len() {
        buckets[of_domain[recipients.domain_of(index) as usize]].push(index);
    }
    buckets.sort_by_key(|bucket| std::cmp::Reverse(bucket.len()));
    buckets.iter().flat_map(|bucket| bucket.chunks(size.max(1)).map(<[u32]>::to_vec)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rehearse::list_host::Fate;

    #[test]
    fn a_batch_never_spans_buckets_and_nobody_is_left_out() {
        let mut recipients =
            Recipients::new(["a.com.test", "b.org.test", "c.de.test", "d.com.test"].map(str::to_owned));
        (0..1000).for_each(|i| recipients.add(i % 4, Fate::Taken));
        let batches = cut(&recipients, 50);
        let mut all: Vec<u32> = batches.concat();
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
        assert!(batches.iter().all(|batch| batch.len() <= 50));
        let buckets = |batch: &Vec<u32>| {
            let of = |i: &u32| bucket(&recipients.domains()[recipients.domain_of(*i) as usize]);
            batch.iter().map(of).collect::<std::collections::HashSet<_>>().len()
        };
        assert!(batches.iter().all(|batch| buckets(batch) == 1));
        assert_eq!(bucket(&recipients.domains()[recipients.domain_of(batches[0][0]) as usize]), 1);
    }
}

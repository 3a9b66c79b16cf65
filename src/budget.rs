//! Budgets: work is admitted against what the machine has, never refused by the kernel.
//!
//! One ledger of file descriptors: every connection holds a [`Lease`], and what the program needs for itself (spool,
//! index, log, admin port, DNS, list hosts' sessions) is kept out of the ledger as a reserve. One budget for the octets on
//! the [`Uplink`], and one for [`Memory`].

mod memory;
mod uplink;

pub use memory::{Memory, resident_octets};
pub use uplink::{Lane, Uplink, UplinkUse, Waiting};

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Descriptors that the program itself needs: standard streams, journal, index, content files, runtime, listeners,
/// admin port and its scrapes.
const RESERVE_SELF: u64 = 24;

/// The least limit the program runs with: below it there would be no room for sessions beside deliveries.
pub const DESCRIPTORS_MIN: u64 = 64;

/// The limit on file descriptors is too low to run.
#[derive(Debug, thiserror::Error)]
#[error(
    "the limit on open files is {limit}, but at least {DESCRIPTORS_MIN} are needed: raise it (ulimit -n, or LimitNOFILE= in the systemd unit)"
)]
pub struct TooFewDescriptors {
    /// The limit that was found.
    pub limit: u64,
}

/// What a descriptor is used for. Each use has a share of its own, so that none starves another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// Sessions of list hosts.
    Ingress,
    /// Connections to next hops.
    Delivery,
    /// Connections to list hosts' bounce addresses.
    Bounce,
    /// DNS questions in flight.
    Dns,
}

impl Use {
    /// All uses, in the order of their shares.
    pub const ALL: [Use; 4] = [Use::Ingress, Use::Delivery, Use::Bounce, Use::Dns];

    /// The use as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Use::Ingress => "ingress",
            Use::Delivery => "delivery",
            Use::Bounce => "bounce",
            Use::Dns => "dns",
        }
    }
}

/// The ledger of file descriptors.
#[derive(Clone, Debug)]
pub struct Descriptors(Arc<Shares>);

#[derive(Debug)]
struct Shares {
    limit: u64,
    /// Capacity and free places by use, in the order of [`Use::ALL`].
    shares: [(usize, Arc<Semaphore>); 4],
}

/// One descriptor (or more), given back when dropped.
#[derive(Debug)]
pub struct Lease {
    _permit: OwnedSemaphorePermit,
}

impl Descriptors {
    /// Raises the soft limit to the hard one, then divides what is there.
    ///
    /// # Errors
    /// [`TooFewDescriptors`] if the hard limit is below [`DESCRIPTORS_MIN`].
    pub fn from_system() -> Result<Descriptors, TooFewDescriptors> {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum {
            // A refusal leaves the soft limit as it is, which the ledger then divides.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        }
        Descriptors::with_limit(getrlimit(Resource::Nofile).current.unwrap_or(1 << 20))
    }

    /// Divides `limit` descriptors: a tenth for bounces, a tenth for DNS, a third for ingress, the rest for delivery.
    ///
    /// # Errors
    /// [`TooFewDescriptors`] if `limit` is below [`DESCRIPTORS_MIN`].
    pub fn with_limit(limit: u64) -> Result<Descriptors, TooFewDescriptors> {
        if limit < DESCRIPTORS_MIN {
            return Err(TooFewDescriptors { limit });
        }
        let free = usize::try_from((limit - RESERVE_SELF).min(1 << 20)).unwrap_or(1 << 20);
        let (bounce, dns, ingress) = ((free / 10).min(64), (free / 10).min(256), free / 3);
        let delivery = free - bounce - dns - ingress;
        let share = |places| (places, Arc::new(Semaphore::new(places)));
        Ok(Descriptors(Arc::new(Shares {
            limit,
            shares: [share(ingress), share(delivery), share(bounce), share(dns)],
        })))
    }

    /// The limit that is divided.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// How many descriptors `usage` may hold, and how many it holds now.
    pub fn usage(&self, usage: Use) -> (usize, usize) {
        let (capacity, free) = &self.0.shares[usage as usize];
        (*capacity, capacity - free.available_permits().min(*capacity))
    }

    /// A descriptor for `usage`, or `None` if its share is used up. The caller counts the refusal.
    pub fn try_lease(&self, usage: Use) -> Option<Lease> {
        let permit = Arc::clone(&self.0.shares[usage as usize].1).try_acquire_owned().ok()?;
        Some(Lease { _permit: permit })
    }

    /// A descriptor for `usage`, as soon as there is one.
    pub async fn lease(&self, usage: Use) -> Lease {
        let semaphore = Arc::clone(&self.0.shares[usage as usize].1);
        match semaphore.acquire_owned().await {
            Ok(permit) => Lease { _permit: permit },
            Err(_) => unreachable!("the ledger's semaphores are never closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_has_a_share_even_at_the_least_limit() {
        let ledger = Descriptors::with_limit(DESCRIPTORS_MIN).expect("enough");
        for usage in Use::ALL {
            assert!(ledger.usage(usage).0 >= 2, "{usage:?}");
        }
        let total: usize = Use::ALL.iter().map(|&usage| ledger.usage(usage).0).sum();
        assert!(total as u64 + RESERVE_SELF <= DESCRIPTORS_MIN);
    }

    #[test]
    fn a_lease_is_given_back_when_it_is_dropped() {
        let ledger = Descriptors::with_limit(64).expect("enough");
        let (capacity, _) = ledger.usage(Use::Dns);
        let leases: Vec<_> = (0..capacity).map(|_| ledger.try_lease(Use::Dns).expect("free")).collect();
        assert!(ledger.try_lease(Use::Dns).is_none());
        drop(leases);
        assert!(ledger.try_lease(Use::Dns).is_some());
    }

    #[test]
    fn too_low_a_limit_is_refused_with_its_remedy() {
        let error = Descriptors::with_limit(63).expect_err("too few").to_string();
        assert!(error.contains("63") && error.contains("LimitNOFILE"), "{error}");
    }
}

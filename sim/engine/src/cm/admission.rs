//! Who listens, and how much unfinished business peers may cause.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyverbs_wire::mad::ServiceId;

use super::config::Limits;
use super::counters::Why;
use super::error::Error;
use crate::time::Time;

/// A service that is listened on.
#[derive(Debug)]
struct Listener {
    backlog: usize,
    pending: usize,
}

/// Listeners, and the requests of peers that are not settled yet.
#[derive(Debug)]
pub(super) struct Admission {
    listeners: BTreeMap<ServiceId, Listener>,
    /// Unsettled requests by source address; no zeros.
    sources: BTreeMap<IpAddr, usize>,
    pending: usize,
    limits: Limits,
    bucket: Bucket,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        let bucket = Bucket::new(limits.rate, limits.burst);
        Admission { listeners: BTreeMap::new(), sources: BTreeMap::new(), pending: 0, limits, bucket }
    }

    pub(super) fn listen(&mut self, service: ServiceId, backlog: usize) -> Result<(), Error> {
        if self.listeners.contains_key(&service) {
            return Err(Error::ServiceInUse);
        }
        if self.listeners.len() >= self.limits.listeners {
            return Err(Error::TooManyListeners);
        }
        self.listeners.insert(service, Listener { backlog, pending: 0 });
        Ok(())
    }

    pub(super) fn unlisten(&mut self, service: ServiceId) -> Result<(), Error> {
        self.listeners.remove(&service).map(|_| ()).ok_or(Error::NotListening)
    }

    pub(super) fn listens(&self, service: ServiceId) -> bool {
        self.listeners.contains_key(&service)
    }

    pub(super) fn listeners(&self) -> usize {
        self.listeners.len()
    }

    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    pub(super) fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Whether another message that belongs to no connection may be looked at now.
    pub(super) fn take_token(&mut self, now: Time) -> bool {
        self.bucket.take(now)
    }

    /// Takes up a request. It counts until it is [`settled`](Self::settled).
    pub(super) fn admit(&mut self, source: IpAddr, service: ServiceId) -> Result<(), Why> {
        let from_source = self.sources.get(&source).copied().unwrap_or(0);
        if self.pending >= self.limits.requests || from_source >= self.limits.requests_per_source {
            return Err(Why::OverQuota);
        }
        let listener = self.listeners.get_mut(&service).ok_or(Why::NoListener)?;
        if listener.pending >= listener.backlog {
            return Err(Why::OverQuota);
        }
        listener.pending += 1;
        self.pending += 1;
        self.sources.insert(source, from_source + 1);
        Ok(())
    }

    /// A request has been established, or has ended.
    pub(super) fn settled(&mut self, source: IpAddr, service: ServiceId) {
        self.pending = self.pending.saturating_sub(1);
        // A listener may have been closed, and another opened, meanwhile.
        if let Some(listener) = self.listeners.get_mut(&service) {
            listener.pending = listener.pending.saturating_sub(1);
        }
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }
}

/// A token bucket, as the time at which it will be full: nothing has to be added as time goes by.
#[derive(Debug)]
struct Bucket {
    /// Between two tokens; zero is without limit.
    interval: Duration,
    /// Worth of a full bucket.
    depth: Duration,
    full_at: Time,
}

impl Bucket {
    fn new(rate: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(rate).unwrap_or(Duration::ZERO);
        Bucket { interval, depth: interval.saturating_mul(burst), full_at: Time::ZERO }
    }

    fn take(&mut self, now: Time) -> bool {
        let full_at = self.full_at.max(now) + self.interval;
        let granted = full_at.since(now) <= self.depth;
        if granted {
            self.full_at = full_at;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: ServiceId = ServiceId(7);

    fn source(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(1000, 5);
        let taken = |bucket: &mut Bucket, ns| (0..100).filter(|_| bucket.take(Time::from_nanos(ns))).count();
        assert_eq!(taken(&mut bucket, 0), 5);
        assert_eq!(taken(&mut bucket, 999_999), 0);
        assert_eq!(taken(&mut bucket, 1_000_000), 1);
        assert_eq!(taken(&mut bucket, 4_000_000), 3);
        assert_eq!(taken(&mut bucket, u64::MAX / 2), 5);
        let mut endless = Bucket::new(0, 0);
        assert_eq!(taken(&mut endless, 0), 100);
        let mut closed = Bucket::new(1, 0);
        assert_eq!(taken(&mut closed, 5), 0);
    }

    #[test]
    fn each_bound_holds_and_settling_makes_room() {
        let limits = Limits { requests: 3, requests_per_source: 2, listeners: 2, ..Limits::default() };
        let mut admission = Admission::new(limits);
        assert_eq!(admission.admit(source(1), SERVICE), Err(Why::NoListener));
        admission.listen(SERVICE, 99).unwrap();
        assert_eq!(admission.listen(SERVICE, 99), Err(Error::ServiceInUse));
        admission.listen(ServiceId(8), 1).unwrap();
        assert_eq!(admission.listen(ServiceId(9), 1), Err(Error::TooManyListeners));

        admission.admit(source(1), SERVICE).unwrap();
        admission.admit(source(1), SERVICE).unwrap();
        assert_eq!(admission.admit(source(1), SERVICE), Err(Why::OverQuota));
        admission.admit(source(2), SERVICE).unwrap();
        assert_eq!(admission.admit(source(3), SERVICE), Err(Why::OverQuota));
        admission.settled(source(1), SERVICE);
        admission.admit(source(3), ServiceId(8)).unwrap();
        admission.settled(source(2), SERVICE);
        assert_eq!(admission.admit(source(4), ServiceId(8)), Err(Why::OverQuota));
        assert_eq!((admission.pending(), admission.sources()), (2, 2));
        admission.unlisten(SERVICE).unwrap();
        assert_eq!(admission.unlisten(SERVICE), Err(Error::NotListening));
        admission.settled(source(1), SERVICE);
        admission.settled(source(3), ServiceId(8));
        assert_eq!((admission.pending(), admission.sources()), (0, 0));
    }
}

//! A network that loses, duplicates, reorders, delays and corrupts, by a seed.

mod hold;
mod profile;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, RxBatch, TxBatch, TxEntry, Waiter};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

pub use profile::{FaultProfile, ParseFaultError};

use hold::{Datagram, Hold};

/// Datagrams that overtake a reordered one at most.
const OVERTAKERS_MAX: u64 = 8;

/// How long a reordered datagram waits at most, in case nobody comes to overtake it.
const REORDER_MAX: Duration = Duration::from_micros(100);

/// When to try again what the wrapped link could not take.
const RETRY: Duration = Duration::from_micros(20);

/// Bytes and datagrams on their way from this wrapper to the link that it wraps.
const OUT_BYTES: usize = 256 << 10;
const OUT_DATAGRAMS: usize = 256;

/// How often each fault was decided on. Shared with whoever watches the link.
#[derive(Default, Debug)]
pub struct FaultCounts {
    datagrams: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    reordered: AtomicU64,
    corrupted: AtomicU64,
    delayed: AtomicU64,
    overflowed: AtomicU64,
}

impl FaultCounts {
    /// Datagrams that the NIC sent.
    pub fn datagrams(&self) -> u64 {
        self.datagrams.load(Ordering::Relaxed)
    }

    /// Datagrams that were lost on purpose.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Datagrams that left twice.
    pub fn duplicated(&self) -> u64 {
        self.duplicated.load(Ordering::Relaxed)
    }

    /// Datagrams that were held back to be overtaken.
    pub fn reordered(&self) -> u64 {
        self.reordered.load(Ordering::Relaxed)
    }

    /// Datagrams that left with one bit flipped.
    pub fn corrupted(&self) -> u64 {
        self.corrupted.load(Ordering::Relaxed)
    }

    /// Datagrams and copies of them that were delayed.
    pub fn delayed(&self) -> u64 {
        self.delayed.load(Ordering::Relaxed)
    }

    /// Datagrams and copies that were lost because too many were held back already.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }
}

/// Adds one to a counter that only one thread at a time writes.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// A link whose outgoing datagrams suffer the faults of a profile.
///
/// For each datagram, in the order in which the NIC sends them, the same number of random numbers is
/// drawn whatever the profile: so a profile that differs in one fault leaves the others where they
/// were. The same profile, stream and calls make the same faults.
pub struct Faulty<L: Link> {
    inner: L,
    info: LinkInfo,
    profile: FaultProfile,
    rng: ChaCha8Rng,
    counts: Arc<FaultCounts>,
    hold: Hold,
    /// What goes to the wrapped link next.
    out: TxBatch,
    /// When to try again to send `out`, if the wrapped link did not take all of it.
    retry: Option<Time>,
}

impl<L: Link> Faulty<L> {
    /// Wraps `inner`. `stream` tells the links of one run apart, which share a seed: with the same
    /// stream, two hosts would suffer the same faults.
    pub fn new(inner: L, profile: FaultProfile, stream: u64) -> Faulty<L> {
        let mut seed = *b"........anyverbs faults, seeded.";
        seed[..8].copy_from_slice(&profile.seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(seed);
        rng.set_stream(stream);
        let mut info = inner.info().clone();
        info.reliable &= profile.is_none();
        info.detail = format!("{}, faults {profile}", info.detail);
        let out = TxBatch::with_capacity(OUT_BYTES.max(4 * info.max_datagram), OUT_DATAGRAMS);
        Faulty { inner, info, profile, rng, counts: Arc::default(), hold: Hold::new(), out, retry: None }
    }

    /// The decisions so far, to be read while the NIC has the link.
    pub fn counts(&self) -> Arc<FaultCounts> {
        Arc::clone(&self.counts)
    }

    /// Sends what is due and what the wrapped link did not take before.
    fn pump(&mut self, now: Time) -> Result<(), LinkError> {
        self.hold.release(&mut self.out, now);
        // The wrapped link may have something due itself.
        if !self.out.is_empty() || self.inner.next_deadline().is_some_and(|at| at <= now) {
            self.inner.transmit(&mut self.out, now)?;
        }
        self.retry = (!self.out.is_empty()).then(|| now + RETRY);
        Ok(())
    }

    /// Decides what happens to the datagram of `entry`, and does it.
    fn pass(&mut self, batch: &mut TxBatch, entry: &TxEntry, now: Time) {
        let draws = Draws::new(&mut self.rng);
        count(&self.counts.datagrams);
        let Some(bytes) = batch.bytes_mut().get_mut(entry.range()) else { return };

        if happens(draws.loss, self.profile.loss) {
            count(&self.counts.lost);
            return;
        }
        let bit = below(draws.bit, 8 * bytes.len() as u64) as usize;
        let corrupt = !bytes.is_empty() && happens(draws.corrupt, self.profile.corrupt);
        if corrupt {
            count(&self.counts.corrupted);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let overtakers = if happens(draws.reorder, self.profile.reorder) {
            count(&self.counts.reordered);
            1 + below(draws.overtakers, OVERTAKERS_MAX)
        } else {
            0
        };
        self.forward(entry, bytes, draws.jitter, overtakers as u32, now);

        if happens(draws.duplicate, self.profile.duplicate) {
            if corrupt {
                // The copy is whole.
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            count(&self.counts.duplicated);
            self.forward(entry, bytes, draws.copy_jitter, 0, now);
        }
    }

    /// Sends one datagram on its way: now, or later.
    fn forward(&mut self, entry: &TxEntry, bytes: &[u8], jitter: u64, overtakers: u32, now: Time) {
        let jitter_max = u64::try_from(self.profile.jitter.as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(below(jitter, jitter_max.saturating_add(1)));
        let delay = self.profile.delay.saturating_add(jitter);
        if !delay.is_zero() {
            count(&self.counts.delayed);
        }
        let arrival = now + delay;
        let &TxEntry { destination, source_port, ecn, .. } = entry;
        if overtakers == 0 && arrival == now {
            // The room for it was made sure of before.
            if let Some(target) = self.out.push(destination, source_port, ecn, bytes.len()) {
                target.copy_from_slice(bytes);
            }
        } else {
            let due = if overtakers == 0 { arrival } else { arrival + REORDER_MAX };
            let datagram = Datagram { destination, source_port, ecn, bytes };
            if !self.hold.keep(&datagram, due, overtakers) {
                count(&self.counts.overflowed);
                return;
            }
        }
        if overtakers == 0 {
            self.hold.overtake(arrival);
            self.hold.release(&mut self.out, now);
        }
    }

    /// Whether a datagram of `len` bytes and a copy of it can go to the wrapped link.
    fn has_room(&self, len: usize) -> bool {
        self.out.has_room(2 * len) && self.out.len() + 2 <= OUT_DATAGRAMS
    }
}

impl<L: Link> Link for Faulty<L> {
    fn info(&self) -> &LinkInfo {
        &self.info
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.inner.waiter()
    }

    fn source_port(&self, flow_hash: u32) -> u16 {
        self.inner.source_port(flow_hash)
    }

    fn path_max_datagram(&self, peer: IpAddr) -> usize {
        self.inner.path_max_datagram(peer)
    }

    fn claim_service(&mut self, id: u64) -> io::Result<()> {
        self.inner.claim_service(id)
    }

    fn release_service(&mut self, id: u64) {
        self.inner.release_service(id);
    }

    fn join(&mut self, group: IpAddr) -> io::Result<()> {
        self.inner.join(group)
    }

    fn leave(&mut self, group: IpAddr) {
        self.inner.leave(group);
    }

    fn reveal_ids(&mut self) {
        self.inner.reveal_ids();
    }

    fn too_large(&self) -> u64 {
        self.inner.too_large()
    }

    fn transmit(&mut self, batch: &mut TxBatch, now: Time) -> Result<(), LinkError> {
        self.pump(now)?;
        while let Some(&entry) = batch.entries().first() {
            if !self.has_room(entry.len) {
                self.pump(now)?;
                if !self.has_room(entry.len) {
                    return Ok(());
                }
            }
            self.pass(batch, &entry, now);
            batch.consume(1);
        }
        self.pump(now)
    }

    fn receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError> {
        self.pump(now)?;
        self.inner.receive(batch, now)
    }

    fn next_deadline(&self) -> Option<Time> {
        [self.inner.next_deadline(), self.hold.next_due(), self.retry].into_iter().flatten().min()
    }
}

/// The random numbers of one datagram.
struct Draws {
    loss: u64,
    duplicate: u64,
    reorder: u64,
    corrupt: u64,
    bit: u64,
    overtakers: u64,
    jitter: u64,
    copy_jitter: u64,
}

impl Draws {
    fn new(rng: &mut ChaCha8Rng) -> Draws {
        Draws {
            loss: rng.next_u64(),
            duplicate: rng.next_u64(),
            reorder: rng.next_u64(),
            corrupt: rng.next_u64(),
            bit: rng.next_u64(),
            overtakers: rng.next_u64(),
            jitter: rng.next_u64(),
            copy_jitter: rng.next_u64(),
        }
    }
}

/// Whether something of probability `p` happens: the draw as a fraction of 1 is below it.
fn happens(draw: u64, p: f64) -> bool {
    // 53 bits are what a double holds exactly.
    ((draw >> 11) as f64) < p * (1_u64 << 53) as f64
}

/// A number from 0 to `n` - 1, or 0.
fn below(draw: u64, n: u64) -> u64 {
    ((u128::from(draw) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_at_their_ends() {
        for draw in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(!happens(draw, 0.0) && !happens(draw, f64::NAN) && happens(draw, 1.0));
            assert!(below(draw, 10) < 10 && below(draw, 1) == 0 && below(draw, 0) == 0);
        }
        assert!(happens(u64::MAX / 2, 0.5) && !happens(u64::MAX / 2 + 1, 0.5));
    }
}

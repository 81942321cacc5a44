//! What a network is like.

use std::time::Duration;

/// What a [`Network`](crate::Network) is like, and what bounds a run on it.
///
/// Every pair of hosts has a path of its own: datagrams queue only where they leave their sender.
/// The network loses nothing but what no host, no queue and no datagram limit admits, and never
/// reorders the datagrams from one host to another: losing, reordering, delaying and corrupting
/// is what a link that wraps the virtual one is for.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// What all randomness of the network comes from: each host draws from a stream of its own.
    pub seed: u64,
    /// From the last bit that leaves the sender to the datagram in the receiver's queue.
    pub latency: Duration,
    /// The speed at which each host sends, in bits per second. Zero, and everything above, counts
    /// as 10^15, at which hardly anything takes longer than a nanosecond.
    pub bandwidth_bits_per_s: u64,
    /// The most that is added to the latency of a datagram, evenly distributed from zero on.
    /// A datagram that would overtake an earlier one to the same host arrives with it instead.
    pub jitter: Duration,
    /// The largest datagram (UDP payload) that a host sends, in bytes; larger ones are dropped.
    pub max_datagram: usize,
    /// What every datagram takes on the wire beside its own bytes, in bytes.
    pub overhead_bytes: usize,
    /// How many datagrams a host queues to send. Beyond it they stay with the NIC, which progresses
    /// again when half of the queue has left.
    pub transmit_queue: usize,
    /// How many datagrams that arrived a host keeps until its NIC takes them; more are dropped.
    pub receive_queue: usize,
    /// How far the clock moves when a program [relaxes](anyverbs_nic::link::Waiter::relax).
    ///
    /// While nothing happens on its host, each step is twice as long as the one before, up to
    /// [`relax_step_max`](NetworkConfig::relax_step_max). What happens on its host ends the step,
    /// so that a polling program sees it with no delay.
    pub relax_step: Duration,
    /// The longest step of a polling program.
    pub relax_step_max: Duration,
    /// A run that would go beyond this virtual time fails.
    pub time_limit: Duration,
    /// A run that takes more events than this fails. An event takes about a microsecond, or about
    /// ten if it changes between programs.
    pub event_limit: u64,
}

impl Default for NetworkConfig {
    /// 100 Gb/s, 1 us, no jitter, IPv4 over Ethernet.
    fn default() -> Self {
        NetworkConfig {
            seed: 0,
            latency: Duration::from_micros(1),
            bandwidth_bits_per_s: 100_000_000_000,
            jitter: Duration::ZERO,
            // The largest path MTU, and more headers than any RoCEv2 packet has.
            max_datagram: 4096 + 104,
            // Ethernet header and FCS, IPv4, UDP.
            overhead_bytes: 14 + 4 + 20 + 8,
            transmit_queue: 256,
            receive_queue: 4096,
            relax_step: Duration::from_nanos(100),
            relax_step_max: Duration::from_nanos(6400),
            time_limit: Duration::from_secs(600),
            event_limit: 10_000_000,
        }
    }
}

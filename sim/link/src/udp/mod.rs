//! RoCEv2 over UDP port 4791.
//!
//! What makes it fast is what lets the kernel handle many datagrams at once: runs of equal size
//! leave in one call (UDP_SEGMENT) and arrive in one (UDP_GRO).

mod backend;
mod bind;
mod control;
mod patience;
mod receive;
mod runs;
mod sys;
mod transmit;
mod waiter;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, ROCE_PORT, RxBatch, TxBatch, Waiter};
use rustix::io::Errno;

pub use bind::{BindError, Holder};

use backend::Backend;
use receive::Receiver;
use sys::Ring;
use transmit::Transmitter;
use waiter::UdpWaiter;

/// The most that one receive can bring: an IP packet.
const PACKET_MAX: usize = 65_535;

/// Sends that are handed to the kernel at once at most.
const SENDS_MAX: usize = 16;

/// How a UDP link talks to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Io {
    /// What is faster for each kind of call, of what the system permits: io_uring for several
    /// sends at once, plain system calls for one and for receives.
    #[default]
    Auto,
    /// io_uring for everything, or an error.
    Uring,
    /// Plain system calls.
    Sockets,
}

/// How a UDP link is made.
#[derive(Clone, Default, Debug)]
pub struct UdpOptions {
    /// How it talks to the kernel.
    pub io: Io,
}

/// What a UDP link counts. Shared with whoever watches it.
#[derive(Default, Debug)]
pub struct UdpCounters {
    sent: AtomicU64,
    sends: AtomicU64,
    received: AtomicU64,
    lost: AtomicU64,
    full: AtomicU64,
}

impl UdpCounters {
    /// Datagrams that the kernel took.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends that carried them.
    pub fn sends(&self) -> u64 {
        self.sends.load(Ordering::Relaxed)
    }

    /// Datagrams that arrived.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Datagrams that the kernel refused: no route, a closed gate, too large for the path.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Sends that had to wait because the socket's buffer was full.
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }
}

/// Adds to a counter that only one thread at a time writes.
fn count(counter: &AtomicU64, n: usize) {
    counter.store(counter.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
}

/// A link over UDP port 4791 of one address.
pub struct UdpLink {
    info: LinkInfo,
    waiter: Arc<UdpWaiter>,
    counters: Arc<UdpCounters>,
    backend: Backend,
    transmitter: Transmitter,
    receiver: Receiver,
}

impl UdpLink {
    /// Binds UDP port 4791 of `address`, which has to be an address of this host.
    ///
    /// # Errors
    /// When the port is taken, or is not to be had on this address, or when `options` ask for what
    /// the system does not permit.
    pub fn bind(address: IpAddr, options: &UdpOptions) -> Result<UdpLink, BindError> {
        let bound = bind::bind(address)?;
        let ring = match options.io {
            Io::Sockets => Err("as was asked".to_owned()),
            Io::Auto | Io::Uring => Ring::new(address, bound.gso),
        };
        if let (Io::Uring, Err(reason)) = (options.io, &ring) {
            return Err(BindError::NoUring { reason: reason.clone() });
        }
        let mut detail = vec![match &ring {
            Ok(_) if options.io == Io::Uring => "io_uring".to_owned(),
            Ok(_) => "io_uring where several sends go together, else sockets".to_owned(),
            Err(reason) => format!("sockets ({reason})"),
        }];
        detail.extend(bound.gso.then(|| "GSO".to_owned()));
        detail.extend(bound.gro.then(|| "GRO".to_owned()));
        detail.extend(bound.capped);
        let max_datagram = match address {
            IpAddr::V4(_) => bound.mtu.saturating_sub(20 + 8).min(PACKET_MAX - 20 - 8),
            IpAddr::V6(_) => bound.mtu.saturating_sub(40 + 8).min(PACKET_MAX - 8),
        };
        let info = LinkInfo {
            name: "udp",
            detail: detail.join(", "),
            address,
            max_datagram,
            reliable: false,
            prefix: None,
        };
        let socket = Arc::new(bound.socket);
        let counters = Arc::<UdpCounters>::default();
        Ok(UdpLink {
            info,
            waiter: Arc::new(UdpWaiter::new(Arc::clone(&socket))),
            backend: Backend::new(socket, ring.ok(), options.io == Io::Uring),
            transmitter: Transmitter::new(bound.gso, Arc::clone(&counters)),
            receiver: Receiver::new(address, Arc::clone(&counters)),
            counters,
        })
    }

    /// What this link counts, to be read while the NIC has the link.
    pub fn counters(&self) -> Arc<UdpCounters> {
        Arc::clone(&self.counters)
    }

    fn broken(&self, action: &str, errno: Errno) -> LinkError {
        LinkError { action: format!("{action} {}:{ROCE_PORT}", self.info.address), source: errno.into() }
    }
}

impl Link for UdpLink {
    fn info(&self) -> &LinkInfo {
        &self.info
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        Arc::clone(&self.waiter) as Arc<dyn Waiter>
    }

    fn transmit(&mut self, batch: &mut TxBatch, _now: Time) -> Result<(), LinkError> {
        let done = self.transmitter.transmit(&mut self.backend, batch);
        done.map_err(|errno| self.broken("sending from", errno))
    }

    fn receive(&mut self, batch: &mut RxBatch, _now: Time) -> Result<(), LinkError> {
        let done = self.receiver.receive(&mut self.backend, batch);
        done.map_err(|errno| self.broken("receiving at", errno))
    }
}

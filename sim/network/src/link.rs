//! The link between a NIC and the virtual network, and its clock and bed.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, RxBatch, TxBatch, Waiter};

use crate::scheduler::Shared;
use crate::state::Sleep;

/// The link of one host of a [`Network`](crate::Network).
pub struct VirtualLink {
    shared: Arc<Shared>,
    host: usize,
    info: LinkInfo,
}

impl VirtualLink {
    pub(crate) fn new(shared: &Arc<Shared>, address: IpAddr) -> Self {
        let mut state = shared.lock();
        let info = LinkInfo {
            name: "virtual",
            detail: format!(
                "virtual time, latency {:?}, {} bit/s, seed {}",
                state.config.latency, state.config.bandwidth_bits_per_s, state.config.seed
            ),
            address,
            max_datagram: state.config.max_datagram,
            // A receive queue can overflow, and whatever wraps this link may lose more.
            reliable: false,
            prefix: None,
            warnings: Vec::new(),
        };
        let host = state.host_at(address);
        VirtualLink { shared: Arc::clone(shared), host, info }
    }
}

impl Link for VirtualLink {
    fn info(&self) -> &LinkInfo {
        &self.info
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        Arc::new(VirtualWaiter { shared: Arc::clone(&self.shared), host: self.host })
    }

    /// One of the 16384 ports that RoCEv2 senders spread flows over.
    fn source_port(&self, flow_hash: u32) -> u16 {
        0xC000 | ((flow_hash ^ flow_hash >> 14) & 0x3FFF) as u16
    }

    fn join(&mut self, group: IpAddr) -> io::Result<()> {
        if !group.is_multicast() || group.is_ipv4() != self.info.address.is_ipv4() {
            let text = format!("{group} is no multicast group of the family of {}", self.info.address);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.shared.lock().join(self.host, group);
        Ok(())
    }

    fn leave(&mut self, group: IpAddr) {
        self.shared.lock().leave(self.host, group);
    }

    fn transmit(&mut self, batch: &mut TxBatch, _now: Time) -> Result<(), LinkError> {
        let mut state = self.shared.lock();
        state.touch(self.host);
        state.transmit(self.host, batch);
        Ok(())
    }

    /// # Errors
    /// The buffer of `batch` is smaller than a datagram that arrived.
    fn receive(&mut self, batch: &mut RxBatch, _now: Time) -> Result<(), LinkError> {
        let mut state = self.shared.lock();
        state.touch(self.host);
        state.receive(self.host, batch).map_err(|len| LinkError {
            action: format!("receiving at {}", self.info.address),
            source: io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a datagram of {len} bytes does not fit the receive buffer"),
            ),
        })
    }
}

impl fmt::Debug for VirtualLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualLink").field("address", &self.info.address).finish_non_exhaustive()
    }
}

/// The clock of a [`Network`](crate::Network), and the place where programs wait for one of its hosts.
///
/// A program may wait for any host; usually it is its own.
pub struct VirtualWaiter {
    shared: Arc<Shared>,
    host: usize,
}

impl Waiter for VirtualWaiter {
    fn now(&self) -> Time {
        let mut state = self.shared.lock();
        state.touch(self.host);
        state.now
    }

    /// Gives up the baton until something happens on the host (a datagram arrived or a timer
    /// passed, and its NIC has progressed), until [`wake`](Waiter::wake), or until exactly `deadline`.
    /// With a deadline that has passed it is a [`relax`](Waiter::relax).
    ///
    /// Returns at once on a thread that is no program of the network. Unwinds the program if the
    /// run has failed.
    fn wait(&self, deadline: Option<Time>) {
        self.shared.sleep(self.host, Sleep::Wait(deadline));
    }

    fn wake(&self) {
        let mut state = self.shared.lock();
        state.touch(self.host);
        state.wake(self.host);
    }

    /// Gives up the baton for a [small step](crate::NetworkConfig::relax_step) of virtual time, or
    /// until something happens on the host.
    ///
    /// Returns at once on a thread that is no program of the network. Unwinds the program if the
    /// run has failed.
    fn relax(&self) {
        self.shared.sleep(self.host, Sleep::Relax);
    }

    fn wants_progress_thread(&self) -> bool {
        false
    }
}

impl fmt::Debug for VirtualWaiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualWaiter").field("host", &self.host).finish_non_exhaustive()
    }
}

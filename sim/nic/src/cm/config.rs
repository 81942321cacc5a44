//! What the owner of a device decides for its connection manager, and what peers may take of the device.

use std::time::Duration;

use anyverbs_engine::cm;
use anyverbs_wire::mad::ServiceId;

use crate::attributes::{DeviceAttributes, NicConfig};
use crate::error::{NicError, in_range};
use crate::link::LinkInfo;

/// Times of the connection manager. The default is that of the kernel's rdma_cm. Codes are of 4.096 us x
/// 2^code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CmConfig {
    /// Time that either side has for an answer, a code: 20 is 4.3 s.
    pub response_timeout: u8,
    /// How often a message without an answer is sent again, 0..=15.
    pub max_retries: u8,
    /// The longest that a packet lives in the network, a code: 16 is 268 ms. A connection that is over
    /// keeps its queue pair number for twice that.
    pub packet_lifetime: u8,
    /// Time that a peer is promised for a program that is slow to answer, a code: 24 is 68.7 s.
    pub service_timeout: u8,
    /// How long a request for a service that nobody listens on is held before it is rejected.
    pub hold_unclaimed: Duration,
    /// How long a request of ours that was rejected for want of a listener is repeated before the program
    /// is told.
    pub retry_refused: Duration,
}

impl Default for CmConfig {
    fn default() -> Self {
        let kernel = cm::Config::default();
        CmConfig {
            response_timeout: kernel.response_timeout,
            max_retries: kernel.max_retries,
            packet_lifetime: kernel.packet_lifetime,
            service_timeout: kernel.service_timeout,
            hold_unclaimed: kernel.hold_unclaimed,
            retry_refused: kernel.retry_refused,
        }
    }
}

/// What may be used at once, by all peers and by one. Each bound is enforced, and what it refuses is
/// counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quotas {
    /// Services listened on.
    pub listeners: u32,
    /// Connections in any state, those in timewait included. A request beyond is rejected: no resources.
    pub connections: u32,
    /// The same, with one address.
    pub connections_per_peer: u32,
    /// Requests of peers that are not settled. One beyond is dropped, and its sender repeats it.
    pub requests: u32,
    /// The same, from one address.
    pub requests_per_peer: u32,
    /// Messages a second that belong to no connection, such as requests; 0 is without limit.
    pub request_rate: u32,
    /// How many of them may come at once.
    pub request_burst: u32,
    /// Resolutions of datagram services in progress, ours and peers'.
    pub resolutions: u32,
    /// Queue pairs connected to one address, however they were connected; `None`: all.
    pub qp_per_peer: Option<u32>,
    /// Packets that came early which are kept for one address; `None`: a quarter of
    /// [`NicConfig::max_early`].
    pub early_per_peer: Option<u32>,
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas {
            listeners: 1024,
            connections: 16_384,
            connections_per_peer: 4096,
            requests: 4096,
            requests_per_peer: 512,
            request_rate: 20_000,
            request_burst: 4096,
            resolutions: 4096,
            qp_per_peer: None,
            early_per_peer: None,
        }
    }
}

/// What the quotas of a device refused, since it was opened. What the connection manager's refused is in
/// [`cm::Counters`](super::Counters).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QuotaCounters {
    /// Early packets dropped: their peer has its share of the buffers.
    pub held_quota: u64,
    /// Queue pairs that could not be connected: their peer has its share of them.
    pub qp_per_peer: u64,
}

impl QuotaCounters {
    /// Every counter with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [("held_quota", self.held_quota), ("qp_per_peer", self.qp_per_peer)].into_iter()
    }
}

impl NicConfig {
    /// Checks what this module adds to a device's configuration.
    pub(crate) fn check_connections(&self) -> Result<(), NicError> {
        let CmConfig { response_timeout, max_retries, packet_lifetime, service_timeout, .. } = self.cm;
        in_range("cm.response_timeout", u64::from(response_timeout), 0, 31)?;
        in_range("cm.max_retries", u64::from(max_retries), 0, 15)?;
        in_range("cm.packet_lifetime", u64::from(packet_lifetime), 0, 30)?;
        in_range("cm.service_timeout", u64::from(service_timeout), 0, 31)?;
        // A connection is a few hundred bytes.
        in_range("quotas.connections", u64::from(self.quotas.connections), 0, 1 << 20)
    }

    /// What the connection manager's engine needs to know.
    pub(super) fn engine(&self, device: &DeviceAttributes, link: &LinkInfo) -> cm::Config {
        let (cm, quotas) = (self.cm, self.quotas);
        cm::Config {
            ca_guid: guid(device),
            max_mtu: device.path_mtu,
            response_timeout: cm.response_timeout,
            max_retries: cm.max_retries,
            packet_lifetime: cm.packet_lifetime,
            target_ack_delay: 0,
            service_timeout: cm.service_timeout,
            hold_unclaimed: cm.hold_unclaimed,
            retry_refused: cm.retry_refused,
            comm_id_prefix: link.prefix.map_or(0, |prefix| prefix.value),
            comm_id_prefix_bits: link.prefix.map_or(0, |prefix| prefix.bits as u8),
            limits: cm::Limits {
                listeners: quotas.listeners as usize,
                connections: quotas.connections as usize,
                connections_per_source: quotas.connections_per_peer as usize,
                requests: quotas.requests as usize,
                requests_per_source: quotas.requests_per_peer as usize,
                resolutions: quotas.resolutions as usize,
                rate: quotas.request_rate,
                burst: quotas.request_burst,
                ..cm::Limits::default()
            },
        }
    }
}

/// The GUID of a device: of its address, so that peers recognise a device that was opened again
/// (IBA 12.9.8.3.1), and of the locally administered kind, which nobody owns. All NICs of one address have
/// the same, and different numbers.
fn guid(device: &DeviceAttributes) -> u64 {
    let octets = match device.gid {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    };
    // FNV-1a.
    let hash = octets.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
    });
    hash & !(3 << 56) | 2 << 56
}

/// A service of librdmacm's: a port of a port space (TCP for connections, UDP for datagrams).
///
/// Requests for such a service carry the addresses and the source port before the program's private data,
/// as librdmacm's peers expect (IBA A11).
pub(super) fn has_ip_header(service: ServiceId) -> bool {
    service.port_space().is_some()
}

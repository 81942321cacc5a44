//! What the device offers, and how it is opened.

use std::net::IpAddr;

use anyverbs_engine::congestion::Control;
use anyverbs_engine::{Mtu, Recovery};

use crate::cm::{CmConfig, Quotas};
use crate::link::LinkInfo;
use crate::work::{INLINE_MAX, SGE_MAX};

/// How to open a NIC. The default suits a program that talks to a few hundred peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NicConfig {
    /// Where queue pair numbers, first PSNs and keys come from: a seed for a run that can be
    /// repeated, or `None` for the operating system's entropy.
    pub seed: Option<u64>,
    /// Queue pairs that may exist.
    pub max_qp: u32,
    /// Memory regions that may exist.
    pub max_mr: u32,
    /// Memory windows that may exist.
    pub max_mw: u32,
    /// Protection domains that may exist.
    pub max_pd: u32,
    /// Bytes of device memory.
    pub max_dm_size: u64,
    /// Work requests in a queue.
    pub max_qp_wr: u32,
    /// Entries in a completion queue.
    pub max_cqe: u32,
    /// Completion queues that may exist, and as many completion channels.
    pub max_cq: u32,
    /// Shared receive queues that may exist.
    pub max_srq: u32,
    /// Work requests in a shared receive queue.
    pub max_srq_wr: u32,
    /// Address handles that may exist.
    pub max_ah: u32,
    /// XRC domains that may exist.
    pub max_xrcd: u32,
    /// Multicast groups that queue pairs may be attached to.
    pub max_mcast_grp: u32,
    /// Queue pairs that may be attached to one group.
    pub max_mcast_qp_attach: u32,
    /// Packets that a queue pair may have unacknowledged.
    pub window: u32,
    /// How queue pairs adapt to the network, within that window.
    pub congestion: Control,
    /// Packets that came early which the device keeps, for all queue pairs together, each up to a path
    /// MTU; 0: it drops them, and peers go back. One peer gets a part of them
    /// ([`Quotas::early_per_peer`]).
    pub max_early: u32,
    /// What queue pairs do about packets that their peers miss.
    pub recovery: Recovery,
    /// Tell peers how many receive work requests are posted (end-to-end flow control).
    pub credits: bool,
    /// Times of the connection manager.
    pub cm: CmConfig,
    /// What peers may take of the device.
    pub quotas: Quotas,
}

impl Default for NicConfig {
    fn default() -> Self {
        NicConfig {
            seed: None,
            max_qp: 4096,
            max_mr: 16384,
            max_mw: 16384,
            max_pd: 4096,
            max_dm_size: 1 << 20,
            max_qp_wr: 16384,
            max_cqe: 1 << 20,
            max_cq: 4096,
            max_srq: 1024,
            max_srq_wr: 16384,
            max_ah: 4096,
            max_xrcd: 256,
            max_mcast_grp: 64,
            max_mcast_qp_attach: 64,
            window: 256,
            congestion: Control::Static,
            max_early: 1024,
            recovery: Recovery::Selective,
            credits: false,
            cm: CmConfig::default(),
            quotas: Quotas::default(),
        }
    }
}

/// The limits of an open device; each of them is enforced (`ibv_query_device`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceAttributes {
    /// The GID of the port, as the address that it is.
    pub gid: IpAddr,
    /// The largest path MTU that fits into a datagram of the link.
    pub path_mtu: Mtu,
    /// Queue pairs.
    pub max_qp: u32,
    /// Memory regions.
    pub max_mr: u32,
    /// The longest memory region, in bytes.
    pub max_mr_size: u64,
    /// Memory windows.
    pub max_mw: u32,
    /// Protection domains.
    pub max_pd: u32,
    /// Bytes of device memory, for all together.
    pub max_dm_size: u64,
    /// Work requests in a queue.
    pub max_qp_wr: u32,
    /// Completion queues.
    pub max_cq: u32,
    /// Entries in a completion queue.
    pub max_cqe: u32,
    /// Scatter/gather elements of a work request.
    pub max_sge: u32,
    /// Bytes of an inline send.
    pub max_inline: u32,
    /// Outstanding READs and atomics of a queue pair, in either role.
    pub max_rd_atomic: u8,
    /// Bytes of a message.
    pub max_message: u32,
    /// Shared receive queues.
    pub max_srq: u32,
    /// Work requests in a shared receive queue.
    pub max_srq_wr: u32,
    /// Address handles.
    pub max_ah: u32,
    /// XRC domains.
    pub max_xrcd: u32,
    /// Multicast groups that queue pairs are attached to.
    pub max_mcast_grp: u32,
    /// Queue pairs attached to one group.
    pub max_mcast_qp_attach: u32,
    /// Ticks a millisecond of the clock that completions are stamped with.
    pub hca_core_clock_khz: u64,
}

/// What the one port of a device is like (`ibv_query_port`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortAttributes {
    /// Whether packets pass: false when the link is broken.
    pub active: bool,
    /// The largest path MTU of the device.
    pub max_mtu: Mtu,
    /// The largest path MTU that fits into a datagram of the link now.
    pub active_mtu: Mtu,
    /// Bytes of a message.
    pub max_msg_sz: u32,
    /// Entries in the table of GIDs: the address of the link.
    pub gid_tbl_len: u32,
    /// Entries in the table of P_Keys: the default partition.
    pub pkey_tbl_len: u16,
    /// Datagrams whose P_Key is of no partition of the port.
    pub bad_pkey_cntr: u64,
    /// Datagrams that did not carry the key of their queue pair.
    pub qkey_viol_cntr: u64,
}

/// How many objects a device has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceUsage {
    /// Protection domains.
    pub pd: u32,
    /// Memory regions.
    pub mr: u32,
    /// Memory windows.
    pub mw: u32,
    /// Bytes of device memory.
    pub dm_bytes: u64,
    /// Queue pairs.
    pub qp: u32,
    /// Shared receive queues.
    pub srq: u32,
    /// Completion queues.
    pub cq: u32,
    /// Completion channels.
    pub channel: u32,
    /// Address handles.
    pub ah: u32,
    /// XRC domains.
    pub xrcd: u32,
}

/// Outstanding READs and atomics of a queue pair.
pub(crate) const RD_ATOMIC_MAX: u8 = 16;

/// The largest headers and trailer around a payload: BTH, AtomicETH or RETH with immediate, ICRC.
pub(crate) const OVERHEAD_MAX: usize = 64;

impl DeviceAttributes {
    pub(crate) fn new(link: &LinkInfo, config: &NicConfig) -> Option<Self> {
        let path_mtu = path_mtu(link.max_datagram)?;
        // Half of the numbers that there are, so that one that is free is found soon.
        let numbers = link.prefix.map_or(u32::MAX, |prefix| 1 << (23_u32.saturating_sub(prefix.bits)));
        Some(DeviceAttributes {
            gid: link.address,
            path_mtu,
            max_qp: config.max_qp.min(numbers),
            max_mr: config.max_mr,
            max_mr_size: isize::MAX as u64,
            max_mw: config.max_mw,
            max_pd: config.max_pd,
            max_dm_size: config.max_dm_size,
            max_qp_wr: config.max_qp_wr,
            max_cq: config.max_cq,
            max_cqe: config.max_cqe,
            max_sge: SGE_MAX,
            max_inline: INLINE_MAX,
            max_rd_atomic: RD_ATOMIC_MAX,
            max_message: anyverbs_engine::MESSAGE_MAX,
            max_srq: config.max_srq,
            max_srq_wr: config.max_srq_wr,
            max_ah: config.max_ah,
            max_xrcd: config.max_xrcd,
            max_mcast_grp: config.max_mcast_grp,
            max_mcast_qp_attach: config.max_mcast_qp_attach,
            hca_core_clock_khz: 1_000_000,
        })
    }
}

/// The largest path MTU of which a packet fits into a datagram of so many bytes.
pub(crate) fn path_mtu(max_datagram: usize) -> Option<Mtu> {
    let room = max_datagram.checked_sub(OVERHEAD_MAX)?;
    Mtu::ALL.into_iter().rev().find(|mtu| mtu.bytes() as usize <= room)
}

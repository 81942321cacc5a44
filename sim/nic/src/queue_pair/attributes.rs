//! What queue pairs are made with, and what their transitions need.

use std::net::IpAddr;

use anyverbs_engine::{Mtu, QpState, QpType};
use anyverbs_memory::Access;

use crate::completion::Cq;
use crate::shared_receive::Srq;

/// What a queue pair is made with (`ibv_qp_init_attr`).
#[derive(Clone, Copy)]
pub struct QpInit<'a> {
    /// Its type. The target of an extended reliable connection is made by [`Nic::create_xrc_target`].
    ///
    /// [`Nic::create_xrc_target`]: crate::Nic::create_xrc_target
    pub qp_type: QpType,
    /// Where sends complete.
    pub send_cq: &'a Cq,
    /// Where receives complete.
    pub recv_cq: &'a Cq,
    /// The shared receive queue that it takes receives from, instead of from a queue of its own.
    pub srq: Option<&'a Srq>,
    /// Send work requests that may be outstanding.
    pub max_send_wr: u32,
    /// Receive work requests that may be outstanding, in a queue of its own.
    pub max_recv_wr: u32,
    /// Scatter/gather elements of a send work request.
    pub max_send_sge: u32,
    /// Scatter/gather elements of a receive work request.
    pub max_recv_sge: u32,
    /// Bytes of inline data of a send work request.
    pub max_inline: u32,
    /// Every send writes a completion queue entry, whatever its flag says.
    pub signal_all: bool,
}

impl<'a> QpInit<'a> {
    /// A reliable connection with both queues completing to `cq`, 128 work requests in each, of one element, and 64
    /// bytes of inline data.
    pub fn new(cq: &'a Cq) -> Self {
        QpInit {
            qp_type: QpType::Rc,
            send_cq: cq,
            recv_cq: cq,
            srq: None,
            max_send_wr: 128,
            max_recv_wr: 128,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline: 64,
            signal_all: false,
        }
    }
}

/// The attributes of the transition to ReadyToReceive (`ibv_qp_attr`). UC needs the first four.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RtrAttributes {
    /// The peer's GID.
    pub peer: IpAddr,
    /// The peer's queue pair number.
    pub dest_qpn: u32,
    /// The peer's first PSN.
    pub rq_psn: u32,
    /// The path MTU; not above either device's.
    pub path_mtu: Mtu,
    /// READs and atomics of the peer that may be outstanding.
    pub max_dest_rd_atomic: u8,
    /// Timer code of RNR NAKs, 0..=31.
    pub min_rnr_timer: u8,
}

/// The attributes of the transition to ReadyToSend (`ibv_qp_attr`). UC and UD need the PSN alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RtsAttributes {
    /// Our first PSN, as the peer was told.
    pub sq_psn: u32,
    /// READs and atomics that we may have outstanding.
    pub max_rd_atomic: u8,
    /// How often to send again before giving up, 0..=7.
    pub retry_cnt: u8,
    /// How often to try again after an RNR NAK, 0..=6; 7: for ever.
    pub rnr_retry: u8,
    /// Timeout exponent, 4.096 us x 2^timeout, 0..=31; 0: never.
    pub timeout: u8,
}

/// What transitions have set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct QpModified {
    pub(crate) qkey: u32,
    pub(crate) rtr: Option<RtrAttributes>,
    pub(crate) rts: Option<RtsAttributes>,
}

/// What a queue pair is like now (`ibv_query_qp`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QpAttributes {
    /// Its type.
    pub qp_type: QpType,
    /// Its state.
    pub state: QpState,
    /// What peers may do through it.
    pub access: Access,
    /// UD: the key that datagrams must carry.
    pub qkey: u32,
    /// What the transition to ReadyToReceive set, once it was made.
    pub rtr: Option<RtrAttributes>,
    /// What the transition to ReadyToSend set, once it was made.
    pub rts: Option<RtsAttributes>,
    /// Send work requests that may be outstanding.
    pub max_send_wr: u32,
    /// Receive work requests that may be outstanding, in a queue of its own.
    pub max_recv_wr: u32,
    /// Scatter/gather elements of a send work request.
    pub max_send_sge: u32,
    /// Scatter/gather elements of a receive work request.
    pub max_recv_sge: u32,
    /// Bytes of inline data of a send work request.
    pub max_inline: u32,
}

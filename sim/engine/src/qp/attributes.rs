//! What a queue pair is made with, and what its transitions need.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use anyverbs_wire::{Psn, Qpn};

use super::state::QpType;
use crate::congestion::{Control, NotificationPoint};

/// The longest message, in bytes (IBA 9.7.2). At the smallest path MTU that is half of all PSNs.
pub const MESSAGE_MAX: u32 = 1 << 31;

/// The largest payload of a packet on a path: the path MTU (IBA 9.6.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mtu {
    /// 256 bytes.
    B256,
    /// 512 bytes.
    B512,
    /// 1024 bytes.
    B1024,
    /// 2048 bytes.
    B2048,
    /// 4096 bytes.
    B4096,
}

impl Mtu {
    /// All of them, the smallest first.
    pub const ALL: [Mtu; 5] = [Mtu::B256, Mtu::B512, Mtu::B1024, Mtu::B2048, Mtu::B4096];

    /// In bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Mtu::B256 => 256,
            Mtu::B512 => 512,
            Mtu::B1024 => 1024,
            Mtu::B2048 => 2048,
            Mtu::B4096 => 4096,
        }
    }

    /// The MTU of exactly so many bytes, if there is one.
    pub fn from_bytes(bytes: u32) -> Option<Mtu> {
        Mtu::ALL.into_iter().find(|mtu| mtu.bytes() == bytes)
    }

    /// The PSNs that a message of `len` bytes takes: one a packet, and one if it is empty.
    pub const fn packets(self, len: u32) -> u32 {
        if len == 0 { 1 } else { len.div_ceil(self.bytes()) }
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

/// What the sender does about packets that the peer misses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Recovery {
    /// Sends everything again from there on, as every peer expects.
    GoBackN,
    /// Sends again what is missing, if the peer turns out to keep what came early; goes back
    /// otherwise.
    #[default]
    Selective,
}

/// What the driver decides for a queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Its type.
    pub qp_type: QpType,
    /// Its own number, which datagrams (UD) carry.
    pub qpn: Qpn,
    /// Its receives come from a shared receive queue, which is not its to flush.
    pub shared_receives: bool,
    /// Send work requests that may be outstanding.
    pub max_send_wr: usize,
    /// PSNs that may be unacknowledged, at least 1 and below 2^22. READ responses count.
    pub window: u32,
    /// Early packets of the peer that are kept until those before them have come; 0: none.
    pub reorder: u32,
    /// What is done about packets that the peer misses.
    pub recovery: Recovery,
    /// Tell the peer how many receive work requests are posted, so that it does not send what nobody
    /// is ready for (IBA 9.7.7.2).
    pub credits: bool,
    /// The rate it must not exceed, in bytes of datagrams a second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// How it adapts to the network, within `window` and `bytes_per_second`.
    pub congestion: Control,
    /// How often it may tell the peer that the peer's packets met congestion.
    pub cnp_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            qp_type: QpType::Rc,
            qpn: Qpn::new(0),
            shared_receives: false,
            max_send_wr: 128,
            window: 256,
            reorder: 256,
            recovery: Recovery::Selective,
            credits: false,
            bytes_per_second: None,
            congestion: Control::Static,
            cnp_interval: NotificationPoint::INTERVAL,
        }
    }
}

/// The attributes of the transition to ReadyToReceive. UC needs the first three, UD only the MTU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadyToReceive {
    /// The peer's queue pair.
    pub dest_qpn: Qpn,
    /// The peer's first PSN.
    pub rq_psn: Psn,
    /// The path MTU.
    pub path_mtu: Mtu,
    /// READs and atomics of the peer that may be outstanding.
    pub max_dest_rd_atomic: u8,
    /// The timer code of our RNR NAKs.
    pub min_rnr_timer: u8,
}

/// The attributes of the transition to ReadyToSend. UC and UD need only the PSN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadyToSend {
    /// Our first PSN.
    pub sq_psn: Psn,
    /// READs and atomics that we may have outstanding.
    pub max_rd_atomic: u8,
    /// How often to send again before giving up, 0..=7.
    pub retry_cnt: u8,
    /// How often to try again after an RNR NAK, 0..=6; 7 means for ever.
    pub rnr_retry: u8,
    /// The timeout exponent: 4.096 us x 2^timeout; 0 means never.
    pub timeout: u8,
}

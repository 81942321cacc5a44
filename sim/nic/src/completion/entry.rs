//! Entries of completion queues: as programs see them, and as they lie in the ring.

use anyverbs_engine::{Completion, Queue, ReceiveKind, Status, Time};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::work::opcode;

/// How a work request ended (`ibv_wc_status`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WcStatus {
    /// It was done.
    Success,
    /// The message did not fit into the receive work request (`IBV_WC_LOC_LEN_ERR`).
    LocLenErr,
    /// The work request's own memory may not be used (`IBV_WC_LOC_PROT_ERR`).
    LocProtErr,
    /// Flushed: the queue pair is in the error state (`IBV_WC_WR_FLUSH_ERR`).
    WrFlushErr,
    /// The response was not what the request asked for (`IBV_WC_BAD_RESP_ERR`).
    BadRespErr,
    /// The peer found the request invalid (`IBV_WC_REM_INV_REQ_ERR`).
    RemInvReqErr,
    /// The peer denied access to its memory (`IBV_WC_REM_ACCESS_ERR`).
    RemAccessErr,
    /// The peer could not do the operation (`IBV_WC_REM_OP_ERR`).
    RemOpErr,
    /// The peer did not answer in time (`IBV_WC_RETRY_EXC_ERR`).
    RetryExcErr,
    /// The peer had no receive work request for too long (`IBV_WC_RNR_RETRY_EXC_ERR`).
    RnrRetryExcErr,
    /// The memory window could not be bound so (`IBV_WC_MW_BIND_ERR`).
    MwBindErr,
    /// The queue pair could not do it: the key is not one that it may invalidate (`IBV_WC_LOC_QP_OP_ERR`).
    LocQpOpErr,
}

impl WcStatus {
    const ALL: [WcStatus; 12] = [
        WcStatus::Success,
        WcStatus::LocLenErr,
        WcStatus::LocProtErr,
        WcStatus::WrFlushErr,
        WcStatus::BadRespErr,
        WcStatus::RemInvReqErr,
        WcStatus::RemAccessErr,
        WcStatus::RemOpErr,
        WcStatus::RetryExcErr,
        WcStatus::RnrRetryExcErr,
        WcStatus::MwBindErr,
        WcStatus::LocQpOpErr,
    ];
}

impl From<Status> for WcStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Success => WcStatus::Success,
            Status::LocalLengthError => WcStatus::LocLenErr,
            Status::LocalProtectionError => WcStatus::LocProtErr,
            Status::FlushError => WcStatus::WrFlushErr,
            Status::BadResponse => WcStatus::BadRespErr,
            Status::RemoteInvalidRequest => WcStatus::RemInvReqErr,
            Status::RemoteAccessError => WcStatus::RemAccessErr,
            Status::RemoteOperationError => WcStatus::RemOpErr,
            Status::RetryExceeded => WcStatus::RetryExcErr,
            Status::RnrRetryExceeded => WcStatus::RnrRetryExcErr,
            Status::MemoryWindowBindError => WcStatus::MwBindErr,
            Status::LocalOperationError => WcStatus::LocQpOpErr,
        }
    }
}

/// What a completion is of (`ibv_wc_opcode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WcOpcode {
    /// A SEND.
    Send,
    /// An RDMA WRITE.
    RdmaWrite,
    /// An RDMA READ.
    RdmaRead,
    /// A FETCH_ADD.
    FetchAdd,
    /// A CMP_SWAP.
    CompSwap,
    /// A FLUSH.
    Flush,
    /// An ATOMIC WRITE.
    AtomicWrite,
    /// A receive that a SEND consumed, or that was flushed.
    Recv,
    /// A receive that a WRITE with immediate consumed.
    RecvRdmaWithImm,
    /// The binding of a memory window.
    BindMw,
    /// The invalidation of a key of this side.
    LocalInv,
}

impl WcOpcode {
    const ALL: [WcOpcode; 11] = [
        WcOpcode::Send,
        WcOpcode::RdmaWrite,
        WcOpcode::RdmaRead,
        WcOpcode::FetchAdd,
        WcOpcode::CompSwap,
        WcOpcode::Flush,
        WcOpcode::AtomicWrite,
        WcOpcode::Recv,
        WcOpcode::RecvRdmaWithImm,
        WcOpcode::BindMw,
        WcOpcode::LocalInv,
    ];

    fn new(completion: &Completion, send_opcode: u8) -> Self {
        match (completion.queue, completion.kind, send_opcode) {
            (Queue::Receive, ReceiveKind::Send, _) => WcOpcode::Recv,
            (Queue::Receive, ReceiveKind::WriteImm, _) => WcOpcode::RecvRdmaWithImm,
            (Queue::Send, _, opcode::WRITE | opcode::WRITE_IMM) => WcOpcode::RdmaWrite,
            (Queue::Send, _, opcode::READ) => WcOpcode::RdmaRead,
            (Queue::Send, _, opcode::FETCH_ADD) => WcOpcode::FetchAdd,
            (Queue::Send, _, opcode::COMPARE_SWAP) => WcOpcode::CompSwap,
            (Queue::Send, _, opcode::FLUSH | opcode::FLUSH_REGION) => WcOpcode::Flush,
            (Queue::Send, _, opcode::ATOMIC_WRITE) => WcOpcode::AtomicWrite,
            (Queue::Send, _, opcode::BIND_MW) => WcOpcode::BindMw,
            (Queue::Send, _, opcode::LOCAL_INV) => WcOpcode::LocalInv,
            (Queue::Send, ..) => WcOpcode::Send,
        }
    }
}

/// A completion queue entry (`ibv_wc`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cqe {
    /// The work request, as it was named when posted.
    pub wr_id: u64,
    /// The queue pair.
    pub qpn: u32,
    /// How it ended.
    pub status: WcStatus,
    /// What it was. On errors of receives: [`WcOpcode::Recv`].
    pub opcode: WcOpcode,
    /// Bytes transferred; for receives the length of the message. Of a datagram it counts the 40 bytes in front of
    /// the message, too.
    pub byte_len: u32,
    /// Immediate data that came with it.
    pub imm: Option<u32>,
    /// The key that the message invalidated (`IBV_WC_WITH_INV`).
    pub invalidated: Option<u32>,
    /// The queue pair that a datagram came from; its address is in the first 40 bytes of the buffer:
    /// [`AhAttributes::from_grh`](crate::AhAttributes::from_grh).
    pub source_qpn: Option<u32>,
    /// When it was written to the queue, on the clock of the device.
    pub timestamp: Time,
}

impl Cqe {
    /// A place for an entry.
    pub const EMPTY: Cqe = Cqe {
        wr_id: 0,
        qpn: 0,
        status: WcStatus::Success,
        opcode: WcOpcode::Send,
        byte_len: 0,
        imm: None,
        invalidated: None,
        source_qpn: None,
        timestamp: Time::ZERO,
    };
}

const WITH_IMM: u8 = 1;
const WITH_INV: u8 = 2;
const WITH_SOURCE: u8 = 4;
const SOLICITED: u8 = 8;

/// An entry as it lies in the ring: plain data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Entry {
    wr_id: u64,
    timestamp: u64,
    pub(super) qpn: u32,
    byte_len: u32,
    /// Immediate data, or the key that was invalidated.
    imm: u32,
    source_qpn: u32,
    status: u8,
    opcode: u8,
    flags: u8,
    unused: [u8; 5],
}

impl Entry {
    pub(crate) fn new(wr_id: u64, qpn: u32, send_opcode: u8, completion: &Completion, now: Time) -> Self {
        let flags = [
            (WITH_IMM, completion.imm.is_some()),
            (WITH_INV, completion.invalidated.is_some()),
            (WITH_SOURCE, completion.source.is_some()),
            (SOLICITED, completion.solicited),
        ];
        Entry {
            wr_id,
            timestamp: now.as_nanos(),
            qpn,
            byte_len: completion.len,
            imm: completion.imm.or(completion.invalidated).unwrap_or(0),
            source_qpn: completion.source.map_or(0, |qpn| qpn.value()),
            status: WcStatus::from(completion.status) as u8,
            opcode: WcOpcode::new(completion, send_opcode) as u8,
            flags: flags.into_iter().filter(|(_, set)| *set).fold(0, |flags, (flag, _)| flags | flag),
            unused: [0; 5],
        }
    }

    /// Whether it is one that wakes those who wait for solicited events: asked for by the sender, or an error.
    pub(super) fn is_solicited(&self) -> bool {
        self.flags & SOLICITED != 0 || self.status != WcStatus::Success as u8
    }

    pub(super) fn read(&self) -> Cqe {
        let with = |flag| self.flags & flag != 0;
        Cqe {
            wr_id: self.wr_id,
            qpn: self.qpn,
            status: *WcStatus::ALL.get(usize::from(self.status)).unwrap_or(&WcStatus::RemOpErr),
            opcode: *WcOpcode::ALL.get(usize::from(self.opcode)).unwrap_or(&WcOpcode::Send),
            byte_len: self.byte_len,
            imm: with(WITH_IMM).then_some(self.imm),
            invalidated: with(WITH_INV).then_some(self.imm),
            source_qpn: with(WITH_SOURCE).then_some(self.source_qpn),
            timestamp: Time::from_nanos(self.timestamp),
        }
    }
}

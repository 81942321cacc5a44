//! Work requests and how they end.

use anyverbs_wire::{Feth, Qpn};

/// A send work request, as far as the engine needs to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendRequest {
    /// The driver's name for it; it comes back in actions.
    pub slot: u64,
    /// What to do.
    pub op: Op,
    /// Bytes to transfer, at most 2^31 (IBA 9.7.2). Eight for atomics and ATOMIC WRITE; for a FLUSH the
    /// bytes that it is about.
    pub len: u32,
    /// Write a completion queue entry even on success.
    pub signaled: bool,
    /// Ask for a solicited event at the peer.
    pub solicited: bool,
    /// Wait for all earlier READs and atomics first (IBA 10.8.3.3).
    pub fence: bool,
    /// Whom it is for.
    pub destination: Destination,
}

impl SendRequest {
    /// A signalled request for the peer of the queue pair, without flags.
    pub const fn new(slot: u64, op: Op, len: u32) -> Self {
        let destination = Destination::Connected;
        SendRequest { slot, op, len, signaled: true, solicited: false, fence: false, destination }
    }
}

/// Whom a send work request is for, where the queue pair alone does not say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Destination {
    /// RC, UC: the peer of the queue pair.
    #[default]
    Connected,
    /// UD: a queue pair at the address that the work request names.
    Datagram {
        /// Its number.
        qpn: Qpn,
        /// The key that it admits.
        qkey: u32,
    },
    /// XRC: a shared receive queue of the peer.
    SharedReceive(Qpn),
}

/// The operation of a send work request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// SEND, with immediate data or without.
    Send {
        /// Immediate data.
        imm: Option<u32>,
    },
    /// SEND with invalidate.
    SendInvalidate {
        /// The peer's key that becomes invalid when the message is complete.
        rkey: u32,
    },
    /// RDMA WRITE, with immediate data or without.
    Write {
        /// Where to, in the peer's terms.
        va: u64,
        /// The peer's key.
        rkey: u32,
        /// Immediate data, which consumes a receive work request of the peer.
        imm: Option<u32>,
    },
    /// RDMA READ.
    Read {
        /// Where from, in the peer's terms.
        va: u64,
        /// The peer's key.
        rkey: u32,
    },
    /// Add to eight remote bytes.
    FetchAdd {
        /// Where, in the peer's terms; a multiple of eight.
        va: u64,
        /// The peer's key.
        rkey: u32,
        /// What to add, wrapping.
        add: u64,
    },
    /// Compare eight remote bytes, and replace them if they are equal.
    CompareSwap {
        /// Where, in the peer's terms; a multiple of eight.
        va: u64,
        /// The peer's key.
        rkey: u32,
        /// What they must hold.
        compare: u64,
        /// What replaces them.
        swap: u64,
    },
    /// Wait until what was written before is where it has to be (IBA A19.4).
    Flush {
        /// Where, in the peer's terms.
        va: u64,
        /// The peer's key.
        rkey: u32,
        /// How far, and over what.
        feth: Feth,
    },
    /// Write eight bytes that are seen whole or not at all (IBA A19.5).
    AtomicWrite {
        /// Where to, in the peer's terms; a multiple of eight.
        va: u64,
        /// The peer's key.
        rkey: u32,
    },
    /// Something that concerns this side alone: binding a memory window, or invalidating a key (IBA 10.6.7).
    ///
    /// It takes no packet and no PSN. When all requests before it have begun, and none behind it, the engine
    /// calls [`Memory::execute_local`](crate::Memory::execute_local), once; it completes in its turn.
    Local,
}

impl Op {
    /// Whether the peer answers it by a packet of its own, so that an ACK alone does not complete it.
    pub(crate) fn has_response(&self) -> bool {
        use Op::*;
        matches!(self, Read { .. } | FetchAdd { .. } | CompareSwap { .. } | Flush { .. } | AtomicWrite { .. })
    }

    /// Whether it takes a receive work request of the peer.
    pub(crate) fn consumes_receive(&self) -> bool {
        use Op::*;
        matches!(self, Send { .. } | SendInvalidate { .. } | Write { imm: Some(_), .. })
    }
}

/// What arrived in a receive work request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReceiveKind {
    /// A SEND.
    Send,
    /// The immediate data of a WRITE.
    WriteImm,
}

/// How a work request ended, by the verbs' own names (`ibv_wc_status`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// It was done.
    Success,
    /// The message does not fit into the receive work request, or a datagram not into a packet.
    LocalLengthError,
    /// The memory that the work request itself names may not be used.
    LocalProtectionError,
    /// The queue pair is in the error state; whether the operation was executed is not known.
    FlushError,
    /// The response was not what the request asked for.
    BadResponse,
    /// The peer found the request invalid.
    RemoteInvalidRequest,
    /// The peer denied access to its memory.
    RemoteAccessError,
    /// The peer could not do the operation.
    RemoteOperationError,
    /// The peer did not answer in time.
    RetryExceeded,
    /// The peer had no receive work request for too long.
    RnrRetryExceeded,
    /// A memory window could not be bound as the work request wants it.
    MemoryWindowBindError,
    /// The queue pair could not do what the work request wants, for a reason on this side.
    LocalOperationError,
}

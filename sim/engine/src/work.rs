//! Work requests and how they end.

/// A send work request, as far as the engine needs to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendRequest {
    /// The driver's name for it; it comes back in actions.
    pub slot: u64,
    /// What to do.
    pub op: Op,
    /// Bytes to transfer. Eight for atomics.
    pub len: u32,
    /// Write a completion queue entry even on success.
    pub signaled: bool,
    /// Ask for a solicited event at the peer.
    pub solicited: bool,
    /// Wait for all earlier READs and atomics first (IBA 10.8.3.3).
    pub fence: bool,
}

/// The operation of a send work request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// SEND, with immediate data or without.
    Send {
        /// Immediate data.
        imm: Option<u32>,
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
}

impl Op {
    /// Whether the peer answers with data, so that an ACK alone does not complete it.
    pub(crate) fn has_response(&self) -> bool {
        matches!(self, Op::Read { .. } | Op::FetchAdd { .. } | Op::CompareSwap { .. })
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
    /// The message does not fit into the receive work request.
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
}

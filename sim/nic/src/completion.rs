//! Completion queues.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyverbs_engine::{Completion, Queue, ReceiveKind, Status, Time};
use anyverbs_memory::{Consumer, Producer, ring};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::nic::Nic;
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
}

impl WcStatus {
    const ALL: [WcStatus; 10] = [
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
}

impl WcOpcode {
    const ALL: [WcOpcode; 9] = [
        WcOpcode::Send,
        WcOpcode::RdmaWrite,
        WcOpcode::RdmaRead,
        WcOpcode::FetchAdd,
        WcOpcode::CompSwap,
        WcOpcode::Flush,
        WcOpcode::AtomicWrite,
        WcOpcode::Recv,
        WcOpcode::RecvRdmaWithImm,
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
    /// Bytes transferred; for receives the length of the message.
    pub byte_len: u32,
    /// Immediate data that came with it.
    pub imm: Option<u32>,
}

/// An entry as it lies in the ring: plain data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Entry {
    wr_id: u64,
    qpn: u32,
    byte_len: u32,
    imm: u32,
    status: u8,
    opcode: u8,
    has_imm: u8,
    unused: u8,
}

impl Entry {
    pub(crate) fn new(wr_id: u64, qpn: u32, send_opcode: u8, completion: &Completion) -> Self {
        Entry {
            wr_id,
            qpn,
            byte_len: completion.len,
            imm: completion.imm.unwrap_or(0),
            status: WcStatus::from(completion.status) as u8,
            opcode: WcOpcode::new(completion, send_opcode) as u8,
            has_imm: u8::from(completion.imm.is_some()),
            unused: 0,
        }
    }

    fn read(&self) -> Cqe {
        Cqe {
            wr_id: self.wr_id,
            qpn: self.qpn,
            status: *WcStatus::ALL.get(usize::from(self.status)).unwrap_or(&WcStatus::RemOpErr),
            opcode: *WcOpcode::ALL.get(usize::from(self.opcode)).unwrap_or(&WcOpcode::Send),
            byte_len: self.byte_len,
            imm: (self.has_imm != 0).then_some(self.imm),
        }
    }
}

/// The reading side: the ring, and what was taken out of it while a queue pair was destroyed.
struct Reader {
    ring: Consumer<Entry>,
    /// Older than everything in the ring.
    kept: VecDeque<Entry>,
}

/// The queue itself, shared by its handles and the queue pairs that complete to it.
pub(crate) struct CqCore {
    writer: Mutex<Producer<Entry>>,
    reader: Mutex<Reader>,
    depth: u32,
    overrun: AtomicBool,
}

impl CqCore {
    pub(crate) fn new(depth: u32) -> io::Result<Self> {
        let (writer, reader) = ring(depth)?;
        Ok(CqCore {
            writer: Mutex::new(writer),
            reader: Mutex::new(Reader { ring: reader, kept: VecDeque::new() }),
            depth,
            overrun: AtomicBool::new(false),
        })
    }

    /// Adds an entry. Only the holder of the progress token does, so the lock is never contended.
    pub(crate) fn push(&self, entry: Entry) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.push(entry).is_err() {
            self.overrun.store(true, Ordering::Relaxed);
        }
        writer.publish();
    }

    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, out: &mut [Cqe]) -> usize {
        let mut reader = self.reader();
        let mut taken = 0;
        for place in out.iter_mut() {
            let Some(entry) = reader.kept.pop_front().or_else(|| reader.ring.pop()) else { break };
            *place = entry.read();
            taken += 1;
        }
        taken
    }

    fn is_empty(&self) -> bool {
        let reader = self.reader();
        reader.kept.is_empty() && reader.ring.is_empty()
    }

    /// Takes out all entries of a queue pair. The caller holds the progress token.
    pub(crate) fn purge(&self, qpn: u32) {
        let mut reader = self.reader();
        let Reader { ring, kept } = &mut *reader;
        kept.extend(std::iter::from_fn(|| ring.pop()));
        kept.retain(|entry| entry.qpn != qpn);
    }
}

/// A completion queue (`ibv_cq`). Clones are handles to the same queue; any thread may poll.
#[derive(Clone)]
pub struct Cq {
    pub(crate) core: Arc<CqCore>,
    pub(crate) nic: Nic,
}

impl Cq {
    /// Takes up to `out.len()` completions out of the queue and returns how many.
    ///
    /// If there is none, the NIC makes progress inline, on the calling thread.
    pub fn poll(&self, out: &mut [Cqe]) -> usize {
        self.nic.note_poll();
        let taken = self.core.take(out);
        if taken > 0 || out.is_empty() {
            return taken;
        }
        let heard = self.nic.listen();
        let taken = self.core.take(out);
        // If something arrived it may be what the program looks for in its memory: no time to relax.
        if taken == 0 && !heard {
            self.nic.waiter().relax();
        }
        taken
    }

    /// Sleeps until there is something to poll or `deadline` has passed; says whether there is.
    /// `None` waits without a limit.
    pub fn wait(&self, deadline: Option<Time>) -> bool {
        self.nic.wait_until(deadline, || !self.core.is_empty())
    }

    /// How many entries the queue holds.
    pub fn depth(&self) -> u32 {
        self.core.depth
    }

    /// Whether a completion was lost because the queue was full (`IBV_EVENT_CQ_ERR`).
    pub fn is_overrun(&self) -> bool {
        self.core.overrun.load(Ordering::Relaxed)
    }
}

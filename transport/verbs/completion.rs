//! Completion queues, and what comes out of them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use super::connection::QpNumber;
use super::device::DeviceInner;
use super::error::Error;
use super::pool::Lease;
use super::request::Operation;
use super::slots::{QUEUES_MAX, SlotTable, WorkId};
use crate::provider::{CqBackend, RawCompletion};

/// How a request ended, under the names that verbs have for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Status {
    /// It did what it was asked to do.
    Success,
    /// A buffer on this side was too short for what arrived.
    LocLenErr,
    /// The queue pair was in no state to execute it, or it made no sense.
    LocQpOpErr,
    /// A buffer on this side is not registered as the request needs it.
    LocProtErr,
    /// The queue pair went into its error state before the request's turn came.
    WrFlushErr,
    /// A memory window could not be bound.
    MwBindErr,
    /// The peer answered something that makes no sense.
    BadRespErr,
    /// A buffer on this side could not be accessed.
    LocAccessErr,
    /// The peer found the request invalid: too long for its buffer, not aligned, not permitted on the connection.
    RemInvReqErr,
    /// The peer's memory may not be accessed in this way: the window was revoked, has not the right, or ends
    /// before.
    RemAccessErr,
    /// The peer could not carry the request out.
    RemOpErr,
    /// The peer did not answer, however often it was tried.
    RetryExcErr,
    /// The peer had no buffer posted, however often it was tried.
    RnrRetryExcErr,
    /// The device broke.
    FatalErr,
    /// No answer came in time.
    RespTimeoutErr,
    /// Something else.
    GeneralErr,
}

impl Status {
    /// Whether the request did what it was asked to do.
    pub fn is_success(self) -> bool {
        self == Status::Success
    }

    /// Its name as C programs know it, without the prefix `IBV_WC_`.
    pub fn name(self) -> &'static str {
        match self {
            Status::Success => "SUCCESS",
            Status::LocLenErr => "LOC_LEN_ERR",
            Status::LocQpOpErr => "LOC_QP_OP_ERR",
            Status::LocProtErr => "LOC_PROT_ERR",
            Status::WrFlushErr => "WR_FLUSH_ERR",
            Status::MwBindErr => "MW_BIND_ERR",
            Status::BadRespErr => "BAD_RESP_ERR",
            Status::LocAccessErr => "LOC_ACCESS_ERR",
            Status::RemInvReqErr => "REM_INV_REQ_ERR",
            Status::RemAccessErr => "REM_ACCESS_ERR",
            Status::RemOpErr => "REM_OP_ERR",
            Status::RetryExcErr => "RETRY_EXC_ERR",
            Status::RnrRetryExcErr => "RNR_RETRY_EXC_ERR",
            Status::FatalErr => "FATAL_ERR",
            Status::RespTimeoutErr => "RESP_TIMEOUT_ERR",
            Status::GeneralErr => "GENERAL_ERR",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for Status {}

/// The end of a request.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion {
    /// The queue pair that it was posted to.
    pub qp: QpNumber,
    /// The id of that queue pair: [`QpOptions::id`](crate::QpOptions::id).
    pub qp_id: u64,
    /// The id of the request: [`Request::id`](crate::Request::id), [`Receive::id`](crate::Receive::id).
    pub id: u64,
    /// What the request was.
    pub operation: Operation,
    /// How it ended.
    pub status: Status,
    /// How many bytes it moved; 0 if it failed.
    pub len: usize,
    /// The number that came with a message or a write.
    pub imm: Option<u32>,
    /// The buffer, back again; `None` for requests that had none. Its length is the number of bytes that arrived
    /// in it, and after sends and writes what it was. After a receive, a READ or an atomic that failed it is 0,
    /// although some bytes may have been overwritten.
    pub buffer: Option<Lease>,
}

impl Completion {
    /// What the peer's 8 bytes were before the atomic operation that completed. `None` if it was none, or failed.
    pub fn original(&self) -> Option<u64> {
        match (self.operation, &self.buffer) {
            (Operation::FetchAdd | Operation::CompareSwap, Some(lease)) if self.status.is_success() => {
                lease.first_chunk().copied().map(u64::from_ne_bytes)
            }
            _ => None,
        }
    }

    /// The completion if it was a success. Its buffer goes back to its pool if it was not.
    ///
    /// # Errors
    /// The status of a request that failed.
    pub fn ok(self) -> Result<Completion, Status> {
        if self.status.is_success() { Ok(self) } else { Err(self.status) }
    }

    fn new(table: &SlotTable, raw: RawCompletion) -> Option<Completion> {
        let posted = table.take(WorkId(raw.id))?;
        let (operation, arrived) = match posted.operation {
            Operation::Recv if raw.write_imm => (Operation::RecvWriteImm, Some(0)),
            Operation::Recv => (Operation::Recv, Some(raw.len)),
            Operation::Send | Operation::Write => (posted.operation, None),
            // A READ or an atomic fills exactly what it asked for.
            other => (other, Some(posted.len)),
        };
        let success = raw.status.is_success();
        let mut buffer = posted.lease;
        if let (Some(lease), Some(arrived)) = (&mut buffer, arrived) {
            lease.set_len_reported(if success { arrived } else { 0 });
        }
        let len = match operation {
            _ if !success => 0,
            Operation::Recv | Operation::RecvWriteImm => raw.len,
            _ => posted.len,
        };
        Some(Completion {
            qp: table.number,
            qp_id: table.qp_id,
            id: posted.id,
            operation,
            status: raw.status,
            len: len as usize,
            imm: raw.imm,
            buffer,
        })
    }
}

/// A completion queue: where requests come out when they have ended.
///
/// Any number of queue pairs may share one, as long as it has a place for each of their slots. Cloning it gives
/// another handle to the same queue; several threads may poll it, and each completion goes to one of them.
#[derive(Clone)]
pub struct Cq {
    pub(crate) inner: Arc<CqInner>,
}

pub(crate) struct CqInner {
    pub(crate) backend: Box<dyn CqBackend>,
    depth: u32,
    attached: RwLock<Attached>,
    /// Completions that named no posted request.
    strays: AtomicU64,
    pub(crate) device: Arc<DeviceInner>,
}

/// The queues whose completions come out here.
#[derive(Default)]
struct Attached {
    places: Vec<Place>,
    /// Completions that they have reserved room for, never more than the depth.
    reserved: u32,
}

/// Where a queue can be attached.
#[derive(Default)]
struct Place {
    taken: bool,
    /// `None` before the queue pair is made, too.
    table: Option<Arc<SlotTable>>,
    /// The generation at which the next table begins.
    generation: u64,
}

impl CqInner {
    // Nobody panics while holding the lock.
    fn read(&self) -> RwLockReadGuard<'_, Attached> {
        self.attached.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Attached> {
        self.attached.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cq {
    /// How many completions [`poll`](Cq::poll) hands out at most in one call.
    pub const POLL_MAX: usize = 16;

    pub(crate) fn new(device: &Arc<DeviceInner>, depth: u32) -> Result<Cq, Error> {
        let max = device.backend.attributes().max_cqe;
        if depth == 0 || depth > max {
            return Err(Error::Limit {
                what: "completion queue depth",
                asked: u64::from(depth),
                found: format!("this device has 1 to {max}"),
                remedy: "ask for less, or use several completion queues",
            });
        }
        let backend = device.backend.create_completion_queue(depth)?;
        Ok(Cq {
            inner: Arc::new(CqInner {
                backend,
                depth,
                attached: RwLock::default(),
                strays: AtomicU64::new(0),
                device: Arc::clone(device),
            }),
        })
    }

    /// Hands completions that are there to `sink`, up to [`POLL_MAX`](Cq::POLL_MAX), in the order of their queue;
    /// returns how many. Never blocks.
    ///
    /// The sink may do everything that the program may do elsewhere: post, destroy the queue pair, poll again. If
    /// it panics, the buffers of the completions that it did not see go back to their pools.
    pub fn poll(&self, mut sink: impl FnMut(Completion)) -> usize {
        let mut raw = [RawCompletion::EMPTY; Cq::POLL_MAX];
        let reported = self.inner.backend.poll(&mut raw).min(raw.len());
        if reported == 0 {
            return 0;
        }
        let mut ready = [const { None }; Cq::POLL_MAX];
        let mut count = 0;
        {
            let attached = self.inner.read();
            for &raw in &raw[..reported] {
                let place = attached.places.get(WorkId(raw.id).queue());
                let completion = place
                    .and_then(|place| place.table.as_deref())
                    .and_then(|table| Completion::new(table, raw));
                match completion {
                    Some(completion) => {
                        ready[count] = Some(completion);
                        count += 1;
                    }
                    None => _ = self.inner.strays.fetch_add(1, Ordering::Relaxed),
                }
            }
        }
        // Without the lock, so that the sink may do anything.
        for completion in &mut ready[..count] {
            completion.take().into_iter().for_each(&mut sink);
        }
        count
    }

    /// Sleeps until there may be something to poll. True if so; false if `timeout` went by without.
    ///
    /// [`Duration::MAX`] waits without a limit. In a simulation the time is virtual.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.inner.backend.wait(timeout)
    }

    /// How many completions fit in.
    pub fn depth(&self) -> u32 {
        self.inner.depth
    }

    /// How many places the queues that are attached to it have reserved.
    pub fn reserved(&self) -> u32 {
        self.inner.read().reserved
    }

    /// Completions that named no request that was posted; no buffer is handed out for them. Some may be seen when a
    /// queue pair is destroyed while another thread polls; else, anything but 0 is a bug of the provider.
    pub fn strays(&self) -> u64 {
        self.inner.strays.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Cq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cq")
            .field("depth", &self.depth())
            .field("reserved", &self.reserved())
            .field("strays", &self.strays())
            .finish()
    }
}

/// Room reserved on a completion queue for one queue, given back when dropped.
pub(crate) struct Credit {
    cq: Arc<CqInner>,
    place: usize,
    slots: u32,
}

impl Credit {
    /// Reserves room for the completions of a queue with so many slots.
    pub(crate) fn reserve(cq: &Cq, slots: u32) -> Result<Credit, Error> {
        let inner = &cq.inner;
        let mut attached = inner.write();
        let reserved = attached.reserved.checked_add(slots).filter(|&sum| sum <= inner.depth);
        let Some(reserved) = reserved else {
            return Err(Error::CompletionQueueTooSmall {
                depth: inner.depth,
                reserved: attached.reserved,
                asked: slots,
            });
        };
        let vacant = attached.places.iter().position(|place| !place.taken);
        let place = vacant.unwrap_or(attached.places.len());
        if place >= QUEUES_MAX {
            return Err(Error::Limit {
                what: "queues on one completion queue",
                asked: place as u64 + 1,
                found: format!("it tells {QUEUES_MAX} apart"),
                remedy: "use another completion queue",
            });
        }
        if vacant.is_none() {
            attached.places.push(Place::default());
        }
        attached.places[place].taken = true;
        attached.reserved = reserved;
        drop(attached);
        Ok(Credit { cq: Arc::clone(inner), place, slots })
    }

    /// Makes the slots, and lets their completions find them.
    pub(crate) fn attach(&self, number: QpNumber, qp_id: u64) -> Arc<SlotTable> {
        let mut attached = self.cq.write();
        let place = &mut attached.places[self.place];
        let table = SlotTable::new(self.slots, self.place as u32, place.generation, number, qp_id);
        let table = Arc::new(table);
        place.table = Some(Arc::clone(&table));
        table
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut attached = self.cq.write();
        attached.reserved = attached.reserved.saturating_sub(self.slots);
        let place = &mut attached.places[self.place];
        place.taken = false;
        let table = place.table.take();
        if let Some(table) = &table {
            place.generation = table.next_generation();
        }
        drop(attached);
        // Behind the lock: the table may hold the last handles of pools and domains.
        drop(table);
    }
}

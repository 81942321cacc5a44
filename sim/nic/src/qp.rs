//! A queue pair under the progress token: its engine, its rings, and the memory that they name.

use std::net::IpAddr;
use std::sync::Arc;

use anyverbs_engine::{Completion, Denied, Memory, Need, Queue, QueuePair, Receive, Time};
use anyverbs_memory::{Access, AccessError, Consumer, RegionTable, Span};
use anyverbs_wire::{Feth, Qpn, Selectivity};

use crate::completion::{CqCore, Entry};
use crate::held::Held;
use crate::queue_pair::QpShared;
use crate::work::{RecvWqe, SendWqe};

/// A queue of work requests and how far the NIC has got with it. Slots count from zero for ever;
/// `base` is the slot of the oldest one that is still in the ring.
pub(crate) struct WorkQueue<T> {
    pub(crate) ring: Consumer<T>,
    base: u64,
    /// Handed to the engine and not completed.
    taken: u32,
}

impl<T: Copy + zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable> WorkQueue<T> {
    pub(crate) fn new(ring: Consumer<T>) -> Self {
        WorkQueue { ring, base: 0, taken: 0 }
    }

    /// Takes the next work request, with its slot.
    pub(crate) fn take(&mut self) -> Option<(u64, T)> {
        let wqe = self.ring.get(self.taken)?;
        let slot = self.base + u64::from(self.taken);
        self.taken += 1;
        Some((slot, wqe))
    }

    /// How many wait to be taken.
    pub(crate) fn waiting(&self) -> u32 {
        self.ring.len().saturating_sub(self.taken)
    }

    /// The work request in a slot, if it is still there.
    pub(crate) fn get(&self, slot: u64) -> Option<T> {
        let nth = slot.checked_sub(self.base).filter(|nth| *nth < u64::from(self.taken))?;
        self.ring.get(nth as u32)
    }

    /// Frees the oldest slot, whose work request is done with.
    fn release(&mut self, slot: u64) -> Option<T> {
        debug_assert_eq!(slot, self.base, "work requests complete in order");
        let wqe = self.ring.pop()?;
        self.base += 1;
        self.taken = self.taken.saturating_sub(1);
        Some(wqe)
    }

    /// Drops everything, posted or taken.
    fn clear(&mut self) {
        while self.ring.pop().is_some() {
            self.base += 1;
        }
        self.taken = 0;
    }
}

/// A queue pair, as the holder of the token works on it.
pub(crate) struct QpCore {
    pub(crate) shared: Arc<QpShared>,
    pub(crate) engine: QueuePair,
    pub(crate) pd: u32,
    pub(crate) access: Access,
    /// The peer's address, once connected.
    pub(crate) peer: Option<IpAddr>,
    pub(crate) source_port: u16,
    pub(crate) sq: WorkQueue<SendWqe>,
    pub(crate) rq: WorkQueue<RecvWqe>,
    pub(crate) send_cq: Arc<CqCore>,
    pub(crate) recv_cq: Arc<CqCore>,
    /// Whether it is in the list of those with something to send.
    pub(crate) ready: bool,
    /// Its entry in the timers.
    pub(crate) timer: Option<Time>,
}

impl QpCore {
    /// Writes what a completion says to the right queue, and frees its slot. Returns whether an
    /// entry was written.
    pub(crate) fn complete(&mut self, completion: &Completion) -> bool {
        let (wr_id, opcode, cq) = match completion.queue {
            Queue::Send => {
                let Some(wqe) = self.sq.release(completion.slot) else { return false };
                (wqe.wr_id, wqe.opcode, &self.send_cq)
            }
            Queue::Receive => {
                let Some(wqe) = self.rq.release(completion.slot) else { return false };
                (wqe.wr_id, 0, &self.recv_cq)
            }
        };
        if completion.signaled {
            cq.push(Entry::new(wr_id, self.shared.qpn(), opcode, completion));
        }
        completion.signaled
    }

    /// Forgets what was posted, and what completed, since the engine was reset.
    pub(crate) fn clear(&mut self) {
        self.sq.clear();
        self.rq.clear();
        self.purge();
        self.peer = None;
    }

    /// Takes its entries out of the completion queues.
    pub(crate) fn purge(&self) {
        self.send_cq.purge(self.shared.qpn());
        self.recv_cq.purge(self.shared.qpn());
    }
}

/// The memory and the receive queue of one queue pair, as its engine sees them.
pub(crate) struct View<'a> {
    pub(crate) regions: &'a RegionTable,
    pub(crate) held: &'a mut Held,
    pub(crate) pd: u32,
    /// What peers may do through this queue pair at all.
    pub(crate) access: Access,
    pub(crate) rq: &'a mut WorkQueue<RecvWqe>,
}

impl Memory for View<'_> {
    type Span = Span;

    fn check(&mut self, rkey: u32, va: u64, len: u32, need: Need) -> Result<Span, Denied> {
        let need = match need {
            Need::RemoteWrite => Access::REMOTE_WRITE,
            Need::RemoteRead => Access::REMOTE_READ,
            Need::RemoteAtomic => Access::REMOTE_ATOMIC,
        };
        if !self.access.contains(need) {
            return Err(Denied);
        }
        self.regions.check(rkey, self.pd, va, len, need).map_err(|_| Denied)
    }

    fn fetch_add(&mut self, span: Span, add: u64) -> Result<u64, Denied> {
        self.regions.fetch_add(span, add).map_err(|_| Denied)
    }

    fn compare_swap(&mut self, span: Span, compare: u64, swap: u64) -> Result<u64, Denied> {
        self.regions.compare_swap(span, compare, swap).map_err(|_| Denied)
    }

    fn flush(&mut self, rkey: u32, va: u64, len: u32, feth: Feth) -> Result<(), Denied> {
        // No memory here survives the loss of power.
        if !self.access.contains(Access::FLUSH_GLOBAL) || feth.placement & Feth::PERSISTENT != 0 {
            return Err(Denied);
        }
        // What was placed before is visible already: placing is storing. Only the right is to be checked.
        match self.regions.check(rkey, self.pd, va, len, Access::FLUSH_GLOBAL) {
            Ok(_) => Ok(()),
            // The range does not count.
            Err(AccessError::OutOfBounds) if feth.selectivity == Selectivity::Region => Ok(()),
            Err(_) => Err(Denied),
        }
    }

    fn invalidate(&mut self, _rkey: u32) -> Result<(), Denied> {
        // Peers may invalidate memory windows, and regions of no other kind; there are none.
        Err(Denied)
    }

    fn receives_posted(&self) -> Option<u32> {
        Some(self.rq.waiting())
    }

    fn hold(&mut self) -> Option<u32> {
        self.held.reserve()
    }

    fn take_receive(&mut self, shared: Option<Qpn>) -> Receive {
        if shared.is_some() {
            return Receive::Unknown;
        }
        match self.rq.take() {
            Some((slot, wqe)) => Receive::Taken { slot, capacity: u64::from(wqe.capacity) },
            None => Receive::Empty,
        }
    }
}

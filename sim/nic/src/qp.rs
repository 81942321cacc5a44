//! A queue pair under the progress token: its engine, its rings, and the memory that they name.

use std::net::IpAddr;
use std::sync::Arc;

use anyverbs_engine::{Denied, Memory, Need, QpType, QueuePair, Receive, Status, Time};
use anyverbs_memory::{Access, AccessError, Consumer, RegionTable, Span};
use anyverbs_wire::{Feth, Qpn, Selectivity};
use zerocopy::IntoBytes;

use crate::completion::CqCore;
use crate::event::AsyncEvent;
use crate::held::Held;
use crate::mailbox::Mailbox;
use crate::numbered::Numbered;
use crate::peer_ids::PeerIds;
use crate::queue_pair::{QpModified, QpShared};
use crate::shared_receive::SrqCore;
use crate::work::{Local, RecvWqe, SGE_LEN, SendWqe, Sge, Wqe};

/// A queue of work requests and how far the NIC has got with it. Slots count from zero for ever;
/// `base` is the slot of the oldest one that is still in the ring.
pub(crate) struct WorkQueue<T> {
    pub(crate) ring: Consumer<T>,
    base: u64,
    /// Handed to the engine and not completed.
    taken: u32,
}

impl<T: Wqe> WorkQueue<T> {
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

    /// Where in the ring the work request of a slot is, if it is still there.
    fn nth(&self, slot: u64) -> Option<u32> {
        slot.checked_sub(self.base).filter(|nth| *nth < u64::from(self.taken)).map(|nth| nth as u32)
    }

    /// The work request in a slot, if it is still there.
    pub(crate) fn get(&self, slot: u64) -> Option<T> {
        self.ring.get(self.nth(slot)?)
    }

    /// The elements of a work request.
    pub(crate) fn sges(&self, slot: u64, wqe: &T) -> impl Iterator<Item = Sge> {
        let nth = self.nth(slot);
        (0..wqe.sge_count()).map_while(move |i| {
            let mut sge = Sge::default();
            self.ring.tail(nth?, i * SGE_LEN, sge.as_mut_bytes()).then_some(sge)
        })
    }

    /// Fills `out` from the inline data of a work request, from the byte `at` on.
    pub(crate) fn inline(&self, slot: u64, at: u32, out: &mut [u8]) -> bool {
        self.nth(slot).is_some_and(|nth| self.ring.tail(nth, at as usize, out))
    }

    /// Frees the oldest slot, whose work request is done with.
    pub(crate) fn release(&mut self, slot: u64) -> Option<T> {
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

/// Where the receives of a queue pair come from.
pub(crate) enum Receives {
    /// A queue of its own.
    Own(WorkQueue<RecvWqe>),
    /// A shared receive queue, by its number.
    Shared(u32),
    /// The shared receive queues that packets name, of this XRC domain.
    Xrc(u32),
    /// It receives nothing.
    None,
}

impl Receives {
    /// Its own queue, if it has one.
    pub(crate) fn own(&self) -> Option<&WorkQueue<RecvWqe>> {
        match self {
            Receives::Own(queue) => Some(queue),
            _ => None,
        }
    }
}

/// A queue pair, as the holder of the token works on it.
pub(crate) struct QpCore {
    pub(crate) shared: Arc<QpShared>,
    pub(crate) qp_type: QpType,
    pub(crate) engine: QueuePair,
    /// The protection domain; of an XRC target that of the shared receive queue which the packet in hand names.
    pub(crate) pd: u32,
    pub(crate) access: Access,
    /// The peer's address, once connected.
    pub(crate) peer: Option<IpAddr>,
    /// Its peer's share of the device, once connected.
    pub(crate) share: Option<u32>,
    pub(crate) source_port: u16,
    /// What transitions have set, for those who ask.
    pub(crate) modified: QpModified,
    /// Which IP identifications the peer uses.
    pub(crate) ids: PeerIds,
    pub(crate) sq: WorkQueue<SendWqe>,
    pub(crate) receives: Receives,
    pub(crate) send_cq: Option<Arc<CqCore>>,
    pub(crate) recv_cq: Option<Arc<CqCore>>,
    /// The program was told that it takes nothing more from its shared receive queue.
    pub(crate) last_wqe_told: bool,
    /// Whether it is in the list of those with something to send.
    pub(crate) ready: bool,
    /// Its entry in the timers.
    pub(crate) timer: Option<Time>,
}

impl QpCore {
    /// Forgets what was posted, and what completed, since the engine was reset.
    pub(crate) fn clear(&mut self) {
        self.sq.clear();
        if let Receives::Own(queue) = &mut self.receives {
            queue.clear();
        }
        self.purge();
        self.peer = None;
        self.last_wqe_told = false;
        self.modified = QpModified::default();
        self.ids = PeerIds::default();
    }

    /// Takes its entries out of the completion queues.
    pub(crate) fn purge(&self) {
        for cq in [&self.send_cq, &self.recv_cq].into_iter().flatten() {
            cq.purge(self.shared.qpn());
        }
    }
}

/// The memory and the receives of one queue pair, as its engine sees them.
pub(crate) struct View<'a> {
    pub(crate) regions: &'a mut RegionTable,
    pub(crate) held: &'a mut Held,
    pub(crate) srqs: &'a mut Numbered<SrqCore>,
    pub(crate) events: &'a Mailbox<AsyncEvent>,
    pub(crate) qpn: u32,
    /// Whose share held packets count in.
    pub(crate) share: Option<u32>,
    pub(crate) pd: u32,
    /// What peers may do through this queue pair at all.
    pub(crate) access: Access,
    pub(crate) sq: &'a WorkQueue<SendWqe>,
    pub(crate) receives: &'a mut Receives,
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
        self.regions.check_remote(rkey, self.pd, self.qpn, va, len, need).map_err(|_| Denied)
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
        match self.regions.check_remote(rkey, self.pd, self.qpn, va, len, Access::FLUSH_GLOBAL) {
            Ok(_) => Ok(()),
            // The range does not count.
            Err(AccessError::OutOfBounds) if feth.selectivity == Selectivity::Region => Ok(()),
            Err(_) => Err(Denied),
        }
    }

    fn invalidate(&mut self, rkey: u32) -> Result<(), Denied> {
        self.regions.invalidate(rkey, self.pd, self.qpn).map_err(|_| Denied)
    }

    fn execute_local(&mut self, slot: u64) -> Result<(), Status> {
        match self.sq.get(slot).and_then(|wqe| wqe.local()) {
            Some(Local::Bind(bind)) => {
                self.regions.bind(&bind, self.pd, self.qpn).map_err(|_| Status::MemoryWindowBindError)
            }
            Some(Local::Invalidate(rkey)) => {
                self.regions.invalidate(rkey, self.pd, self.qpn).map_err(|_| Status::LocalOperationError)
            }
            None => Err(Status::LocalOperationError),
        }
    }

    fn receives_posted(&self) -> Option<u32> {
        self.receives.own().map(WorkQueue::waiting)
    }

    fn hold(&mut self) -> Option<u32> {
        self.held.reserve(self.share?)
    }

    fn take_receive(&mut self, named: Option<Qpn>) -> Receive {
        let srqn = match (&mut *self.receives, named) {
            (Receives::Own(queue), None) => {
                return match queue.take() {
                    Some((slot, wqe)) => Receive::Taken { slot, capacity: u64::from(wqe.capacity) },
                    None => Receive::Empty,
                };
            }
            (Receives::Shared(srqn), None) => *srqn,
            (Receives::Xrc(domain), Some(named)) => {
                let of_domain = |srq: &SrqCore| srq.xrc.as_ref().is_some_and(|(own, _)| own == domain);
                if !self.srqs.get(named.value()).is_some_and(of_domain) {
                    return Receive::Unknown;
                }
                named.value()
            }
            // Flushing asks a queue pair without a queue, too.
            (_, None) => return Receive::Empty,
            (_, Some(_)) => return Receive::Unknown,
        };
        match self.srqs.get_mut(srqn) {
            Some(srq) => srq.take(srqn, self.qpn, self.events),
            None => Receive::Unknown,
        }
    }
}

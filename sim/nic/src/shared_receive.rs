//! Shared receive queues, and the domains of extended reliable connections.

use std::sync::{Arc, Mutex, PoisonError};

use anyverbs_engine::Receive;
use anyverbs_memory::{Consumer, Producer, ring_with_tail};
use zerocopy::IntoBytes;

use crate::completion::{Cq, CqCore};
use crate::error::{NicError, PostError, in_range};
use crate::event::AsyncEvent;
use crate::limits::Ticket;
use crate::mailbox::Mailbox;
use crate::nic::Nic;
use crate::queue_pair::post_all;
use crate::region::Pd;
use crate::work::{RecvWqe, RecvWr, SGE_LEN, SGE_MAX, Sge, Wqe};

/// What a shared receive queue is made with (`ibv_srq_init_attr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SrqInit {
    /// Receive work requests that may wait in it.
    pub max_wr: u32,
    /// Scatter/gather elements of a work request.
    pub max_sge: u32,
    /// See [`Srq::set_limit`].
    pub limit: u32,
}

/// What a shared receive queue is like (`ibv_query_srq`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SrqAttributes {
    /// Receive work requests that may wait in it.
    pub max_wr: u32,
    /// Scatter/gather elements of a work request.
    pub max_sge: u32,
    /// The limit that an event is due at; 0: there is none (any more).
    pub limit: u32,
    /// Receive work requests that wait.
    pub waiting: u32,
}

/// A work request that a queue pair has taken.
struct Taken {
    wqe: RecvWqe,
    /// The queue pair that has it; 0: the place is free.
    owner: u32,
}

/// A shared receive queue under the progress token.
///
/// Queue pairs take work requests in order and complete them in any order, so what is taken moves out of the ring to
/// places of its own. A queue pair has few at a time: places are made when queue pairs attach, or else when the
/// first message that needs them comes.
pub(crate) struct SrqCore {
    pub(crate) pd: u32,
    /// XRC: the domain whose queue pairs may use it, and where its receives complete.
    pub(crate) xrc: Option<(u32, Arc<CqCore>)>,
    ring: Consumer<RecvWqe>,
    max_sge: usize,
    limit: u32,
    taken: Vec<Taken>,
    free: Vec<u32>,
    /// Queue pairs that take from it.
    users: usize,
    /// The elements of what is taken, `max_sge` for each place.
    sges: Vec<Sge>,
}

impl SrqCore {
    fn new(pd: u32, ring: Consumer<RecvWqe>, init: &SrqInit, xrc: Option<(u32, Arc<CqCore>)>) -> Self {
        let max_sge = init.max_sge as usize;
        SrqCore {
            pd,
            xrc,
            ring,
            max_sge,
            limit: init.limit,
            taken: Vec::new(),
            free: Vec::new(),
            users: 0,
            sges: Vec::new(),
        }
    }

    /// One more queue pair takes from it, a work request at a time.
    pub(crate) fn attach(&mut self) {
        self.users += 1;
        if self.taken.len() < self.users {
            self.add_place();
        }
    }

    /// Makes a place for one more work request that is taken.
    fn add_place(&mut self) {
        self.free.push(self.taken.len() as u32);
        self.taken.push(Taken { wqe: RecvWqe::default(), owner: 0 });
        self.sges.resize(self.taken.len() * self.max_sge, Sge::default());
    }

    /// Takes the next work request. Tells of it if fewer are left than the limit.
    pub(crate) fn take(&mut self, srqn: u32, owner: u32, events: &Mailbox<AsyncEvent>) -> Receive {
        let Some(wqe) = self.ring.get(0) else { return Receive::Empty };
        if self.free.is_empty() {
            self.add_place();
        }
        let Some(place) = self.free.pop() else { return Receive::Empty };
        let first = place as usize * self.max_sge;
        let sges = &mut self.sges[first..first + wqe.sge_count().min(self.max_sge)];
        self.ring.tail(0, 0, sges.as_mut_bytes());
        self.ring.release(1);
        self.taken[place as usize] = Taken { wqe, owner };
        if self.ring.len() < self.limit {
            // Once; the program sets it again (IBA 10.2.9.2).
            self.limit = 0;
            events.put(AsyncEvent::SrqLimitReached { srqn });
        }
        Receive::Taken { slot: slot(srqn, place), capacity: u64::from(wqe.capacity) }
    }

    /// The elements of a work request that is taken.
    pub(crate) fn sges(&self, place: u32) -> Option<&[Sge]> {
        let taken = self.taken.get(place as usize).filter(|taken| taken.owner != 0)?;
        let first = place as usize * self.max_sge;
        self.sges.get(first..first + taken.wqe.sge_count().min(self.max_sge))
    }

    /// Frees the place of a work request that is done with.
    pub(crate) fn release(&mut self, place: u32) -> Option<RecvWqe> {
        let taken = self.taken.get_mut(place as usize)?;
        if std::mem::take(&mut taken.owner) == 0 {
            return None;
        }
        self.free.push(place);
        Some(taken.wqe)
    }

    /// A queue pair that took from it is gone.
    pub(crate) fn detach(&mut self) {
        self.users = self.users.saturating_sub(1);
    }

    /// Frees the places of a queue pair that is reset or destroyed: its receives are gone with it.
    pub(crate) fn forget(&mut self, owner: u32) {
        for (place, taken) in self.taken.iter_mut().enumerate() {
            if taken.owner == owner {
                taken.owner = 0;
                self.free.push(place as u32);
            }
        }
    }
}

/// The slot of a work request of a shared receive queue: which queue, and which place there.
fn slot(srqn: u32, place: u32) -> u64 {
    u64::from(srqn) << 32 | u64::from(place)
}

/// What a slot says: the number of the queue, and the place there.
pub(crate) fn place_of(slot: u64) -> (u32, u32) {
    ((slot >> 32) as u32, slot as u32)
}

struct SrqInner {
    pd: Pd,
    number: u32,
    max_sge: u32,
    ring: Mutex<Producer<RecvWqe>>,
    /// XRC: the domain lives as long as its queues.
    xrcd: Option<XrcDomain>,
}

impl Drop for SrqInner {
    fn drop(&mut self) {
        let number = self.number;
        let gone = self.pd.nic().control(|core| core.srqs.remove(number));
        self.pd.nic().events().forget(|event| *event == AsyncEvent::SrqLimitReached { srqn: number });
        drop(gone);
    }
}

/// A shared receive queue (`ibv_srq`). Clones are handles to the same queue, and queue pairs that take from it keep
/// it; any thread may post.
#[derive(Clone)]
pub struct Srq(Arc<SrqInner>);

impl Srq {
    pub(crate) fn create(pd: &Pd, init: SrqInit, xrc: Option<(&XrcDomain, &Cq)>) -> Result<Srq, NicError> {
        let nic = pd.nic();
        in_range("srq max_wr", init.max_wr.into(), 1, nic.attributes().max_srq_wr.into())?;
        in_range("srq max_sge", init.max_sge.into(), 1, SGE_MAX.into())?;
        in_range("srq_limit", init.limit.into(), 0, init.max_wr.into())?;
        if let Some((domain, cq)) = xrc {
            for (object, other) in [("XRC domain", &domain.0.nic), ("completion queue", &cq.nic)] {
                if !nic.is_same(other) {
                    return Err(NicError::OtherDevice { object });
                }
            }
        }
        let (producer, consumer) = ring_with_tail(init.max_wr, init.max_sge as usize * SGE_LEN)
            .map_err(NicError::system("allocating a shared receive queue"))?;
        let own = xrc.map(|(domain, cq)| (domain.0.number, Arc::clone(&cq.core)));
        let number = nic.control(|core| {
            let crate::core::Core { srqs, rng, .. } = core;
            let make = |_| SrqCore::new(pd.number(), consumer, &init, own);
            srqs.insert(rng, |number| number != 0, make)
                .ok_or(NicError::Exhausted { object: "shared receive queue", limit: srqs.limit() })
        })?;
        Ok(Srq(Arc::new(SrqInner {
            pd: pd.clone(),
            number,
            max_sge: init.max_sge,
            ring: Mutex::new(producer),
            xrcd: xrc.map(|(domain, _)| domain.clone()),
        })))
    }

    /// Its number: random, and unique on its device; peers name it by that (XRC).
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// The domain that its receives belong to.
    pub fn pd(&self) -> &Pd {
        &self.0.pd
    }

    /// Its XRC domain, if it has one.
    pub fn xrc_domain(&self) -> Option<&XrcDomain> {
        self.0.xrcd.as_ref()
    }

    pub(crate) fn nic(&self) -> &Nic {
        self.0.pd.nic()
    }

    /// Posts receive work requests, in order (`ibv_post_srq_recv`).
    ///
    /// # Errors
    /// [`PostError`] names the first work request that was not posted.
    pub fn post_recv(&self, wrs: &[RecvWr<'_>]) -> Result<(), PostError> {
        post_all(&self.0.ring, wrs, |wr| RecvWqe::new(wr, self.0.max_sge))
    }

    /// Asks for one [`AsyncEvent::SrqLimitReached`] when fewer than `limit` receives wait in the queue
    /// (`ibv_modify_srq`); 0: for none.
    ///
    /// # Errors
    /// [`NicError::OutOfRange`] for more than the queue holds.
    pub fn set_limit(&self, limit: u32) -> Result<(), NicError> {
        in_range("srq_limit", limit.into(), 0, self.attributes().max_wr.into())?;
        self.nic().control(|core| {
            if let Some(srq) = core.srqs.get_mut(self.0.number) {
                srq.limit = limit;
            }
        });
        Ok(())
    }

    /// What it is like now.
    pub fn attributes(&self) -> SrqAttributes {
        let max_wr = self.0.ring.lock().unwrap_or_else(PoisonError::into_inner).capacity();
        let (limit, waiting) = self.nic().control(|core| {
            core.srqs.get_mut(self.0.number).map_or((0, 0), |srq| (srq.limit, srq.ring.len()))
        });
        SrqAttributes { max_wr, max_sge: self.0.max_sge, limit, waiting }
    }
}

struct XrcInner {
    nic: Nic,
    number: u32,
    _ticket: Ticket,
}

/// An XRC domain (`ibv_xrcd`): the queue pairs and the shared receive queues that go together. Clones are handles to
/// the same domain.
#[derive(Clone)]
pub struct XrcDomain(Arc<XrcInner>);

impl XrcDomain {
    pub(crate) fn open(nic: &Nic, number: u32) -> Result<Self, NicError> {
        let ticket = nic.limits().xrcd.take()?;
        Ok(XrcDomain(Arc::new(XrcInner { nic: nic.clone(), number, _ticket: ticket })))
    }

    pub(crate) fn nic(&self) -> &Nic {
        &self.0.nic
    }

    pub(crate) fn number(&self) -> u32 {
        self.0.number
    }
}

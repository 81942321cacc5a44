//! Queue pairs, as programs hold them.

mod attributes;
mod posting;
mod states;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use anyverbs_engine::{Config, QpState, QpType, QueuePair};
use anyverbs_memory::{Access, Consumer, Producer, ring_with_tail};
use anyverbs_wire::Qpn;
use rand_core::Rng;

pub(crate) use attributes::QpModified;
pub use attributes::{QpAttributes, QpInit, RtrAttributes, RtsAttributes};
pub(crate) use posting::post_all;

use crate::afford::afford;
use crate::completion::{Cq, CqCore};
use crate::core::{Core, NO_DOMAIN};
use crate::doorbell::Doorbell;
use crate::error::{NicError, in_range};
use crate::nic::Nic;
use crate::peer_ids::PeerIds;
use crate::qp::{QpCore, Receives, WorkQueue};
use crate::region::Pd;
use crate::shared_receive::{Srq, XrcDomain};
use crate::work::{Caps, INLINE_MAX, MULTICAST_QPN, RecvWqe, SGE_LEN, SGE_MAX, SendWqe};

/// What program and progress share of a queue pair beside its rings.
#[derive(Debug)]
pub(crate) struct QpShared {
    qpn: u32,
    state: AtomicU8,
    /// Of its send queue.
    pub(crate) doorbell: Doorbell,
}

const STATES: [QpState; 7] = [
    QpState::Reset,
    QpState::Init,
    QpState::ReadyToReceive,
    QpState::ReadyToSend,
    QpState::SendQueueDrain,
    QpState::SendQueueError,
    QpState::Error,
];

impl QpShared {
    pub(crate) fn qpn(&self) -> u32 {
        self.qpn
    }

    /// The state, as the engine last left it.
    pub(crate) fn state(&self) -> QpState {
        STATES[usize::from(self.state.load(Ordering::SeqCst)) % STATES.len()]
    }

    /// Shows a state; returns the one before. Only the holder of the token does this.
    pub(crate) fn set_state(&self, state: QpState) -> QpState {
        let before = self.state();
        self.state.store(state as u8, Ordering::SeqCst);
        before
    }
}

/// Bytes that an engine keeps of a send work request, and of everything else, rounded up.
const ENGINE_SEND: usize = 192;
const ENGINE_FIXED: usize = 32 * 1024;

/// Whom a queue pair belongs to.
enum Parent {
    Pd(Pd),
    Xrc(XrcDomain),
}

/// A queue pair (`ibv_qp`). Any thread may post. Dropping it destroys it: then no memory that it names is touched any
/// more, and none of its completions appears.
pub struct Qp {
    parent: Parent,
    shared: Arc<QpShared>,
    initial_psn: u32,
    caps: Caps,
    /// It lives as long as this queue pair.
    srq: Option<Srq>,
    sq: Mutex<Producer<SendWqe>>,
    rq: Option<Mutex<Producer<RecvWqe>>>,
}

/// What a queue pair is made of before it has a number.
struct Parts {
    caps: Caps,
    sq: Consumer<SendWqe>,
    receives: Receives,
    send_cq: Option<Arc<CqCore>>,
    recv_cq: Option<Arc<CqCore>>,
    max_send_wr: u32,
}

impl Qp {
    pub(crate) fn create(pd: Pd, init: QpInit<'_>) -> Result<Qp, NicError> {
        let nic = pd.nic().clone();
        check(&nic, &init)?;
        let caps = Caps {
            qp_type: init.qp_type,
            pd: pd.number(),
            max_send_sge: init.max_send_sge,
            max_recv_sge: init.max_recv_sge,
            max_inline: init.max_inline,
            signal_all: init.signal_all,
        };
        let tail = (init.max_send_sge as usize * SGE_LEN).max(init.max_inline as usize);
        let (sq, sq_consumer) =
            ring_with_tail(init.max_send_wr, tail).map_err(NicError::system("allocating a send queue"))?;
        let (rq, receives) = match (init.srq, init.qp_type) {
            (Some(srq), _) => (None, Receives::Shared(srq.number())),
            (None, QpType::XrcSend) => (None, Receives::None),
            (None, _) => {
                let tail = init.max_recv_sge as usize * SGE_LEN;
                let (rq, consumer) = ring_with_tail(init.max_recv_wr, tail)
                    .map_err(NicError::system("allocating a receive queue"))?;
                (Some(Mutex::new(rq)), Receives::Own(WorkQueue::new(consumer)))
            }
        };
        let core = |cq: &Cq| Some(Arc::clone(&cq.core));
        let parts = Parts {
            caps,
            sq: sq_consumer,
            receives,
            send_cq: core(init.send_cq),
            recv_cq: core(init.recv_cq),
            max_send_wr: init.max_send_wr,
        };
        let (shared, initial_psn) = insert(&nic, parts)?;
        let (parent, srq) = (Parent::Pd(pd), init.srq.cloned());
        Ok(Qp { parent, shared, initial_psn, caps, srq, sq: Mutex::new(sq), rq })
    }

    /// The target of an extended reliable connection: it has no queues, and answers for the shared receive queues of
    /// its domain.
    pub(crate) fn create_xrc_target(domain: XrcDomain) -> Result<Qp, NicError> {
        let nic = domain.nic().clone();
        let (sq, sq_consumer) = ring_with_tail(1, 0).map_err(NicError::system("allocating a queue pair"))?;
        let caps = Caps {
            qp_type: QpType::XrcRecv,
            pd: NO_DOMAIN,
            max_send_sge: 0,
            max_recv_sge: 0,
            max_inline: 0,
            signal_all: false,
        };
        let parts = Parts {
            caps,
            sq: sq_consumer,
            receives: Receives::Xrc(domain.number()),
            send_cq: None,
            recv_cq: None,
            max_send_wr: 1,
        };
        let (shared, initial_psn) = insert(&nic, parts)?;
        let parent = Parent::Xrc(domain);
        Ok(Qp { parent, shared, initial_psn, caps, srq: None, sq: Mutex::new(sq), rq: None })
    }

    pub(crate) fn nic(&self) -> &Nic {
        match &self.parent {
            Parent::Pd(pd) => pd.nic(),
            Parent::Xrc(domain) => domain.nic(),
        }
    }

    /// Its type.
    pub fn qp_type(&self) -> QpType {
        self.caps.qp_type
    }

    /// Its number: random, and unique on its device.
    pub fn qpn(&self) -> u32 {
        self.shared.qpn
    }

    /// A random PSN to start from, the same at each call.
    pub fn initial_psn(&self) -> u32 {
        self.initial_psn
    }

    /// Its state.
    pub fn state(&self) -> QpState {
        self.shared.state()
    }

    /// The domain that it belongs to; the target of an extended reliable connection belongs to an XRC domain instead.
    pub fn pd(&self) -> Option<&Pd> {
        match &self.parent {
            Parent::Pd(pd) => Some(pd),
            Parent::Xrc(_) => None,
        }
    }

    /// The shared receive queue that it takes receives from.
    pub fn srq(&self) -> Option<&Srq> {
        self.srq.as_ref()
    }

    /// What it is like now.
    pub fn attributes(&self) -> QpAttributes {
        let capacity = |queue: &Mutex<Producer<RecvWqe>>| {
            queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).capacity()
        };
        let max_send_wr = self.sq.lock().unwrap_or_else(std::sync::PoisonError::into_inner).capacity();
        let (access, modified) = self
            .nic()
            .control(|core| core.qps.get(self.qpn()).map(|qp| (qp.access, qp.modified)).unwrap_or_default());
        QpAttributes {
            qp_type: self.qp_type(),
            state: self.state(),
            access,
            qkey: modified.qkey,
            rtr: modified.rtr,
            rts: modified.rts,
            max_send_wr: if self.qp_type() == QpType::XrcRecv { 0 } else { max_send_wr },
            max_recv_wr: self.rq.as_ref().map_or(0, capacity),
            max_send_sge: self.caps.max_send_sge,
            max_recv_sge: self.caps.max_recv_sge,
            max_inline: self.caps.max_inline,
        }
    }

    /// UD: receives what is sent to a multicast group, too (`ibv_attach_mcast`).
    ///
    /// # Errors
    /// [`NicError::Invalid`] for another type, [`NicError::Destination`] for what is no group,
    /// [`NicError::Exhausted`] beyond the device's limits, [`NicError::System`] if the link cannot join it.
    pub fn attach_mcast(&self, group: IpAddr) -> Result<(), NicError> {
        if self.qp_type() != QpType::Ud {
            let reason = "only datagram queue pairs hear groups";
            return Err(NicError::Invalid { action: "attaching a queue pair to a multicast group", reason });
        }
        if !group.is_multicast() {
            return Err(NicError::Destination { given: group, reason: "it is no multicast group" });
        }
        let own = self.nic().attributes().gid;
        if group.is_ipv4() != own.is_ipv4() {
            return Err(NicError::AddressFamily { peer: group, own });
        }
        self.nic().control(|core| {
            let Core { groups, link, .. } = core;
            groups.attach(link.as_mut(), group, self.qpn())
        })
    }

    /// Ends [`attach_mcast`](Qp::attach_mcast) (`ibv_detach_mcast`).
    ///
    /// # Errors
    /// [`NicError::Destination`] if it is not attached to that group.
    pub fn detach_mcast(&self, group: IpAddr) -> Result<(), NicError> {
        let was = self.nic().control(|core| {
            let Core { groups, link, .. } = core;
            groups.detach(link.as_mut(), group, self.qpn())
        });
        let reason = "the queue pair is not attached to it";
        was.then_some(()).ok_or(NicError::Destination { given: group, reason })
    }
}

/// Checks what a queue pair is to be made with.
fn check(nic: &Nic, init: &QpInit<'_>) -> Result<(), NicError> {
    for (object, cq) in [("send CQ", init.send_cq), ("receive CQ", init.recv_cq)] {
        if !nic.is_same(&cq.nic) {
            return Err(NicError::OtherDevice { object });
        }
    }
    let action = "creating the queue pair";
    if init.qp_type == QpType::XrcRecv {
        return Err(NicError::Invalid { action, reason: "XRC targets are made by create_xrc_target" });
    }
    if let Some(srq) = init.srq {
        if !nic.is_same(srq.nic()) {
            return Err(NicError::OtherDevice { object: "shared receive queue" });
        }
        if init.qp_type == QpType::XrcSend || srq.xrc_domain().is_some() {
            let reason =
                "packets of extended reliable connections name their shared receive queue themselves";
            return Err(NicError::Invalid { action, reason });
        }
    }
    let limit = u64::from(nic.attributes().max_qp_wr);
    in_range("max_send_wr", init.max_send_wr.into(), 1, limit)?;
    if init.srq.is_none() && init.qp_type != QpType::XrcSend {
        in_range("max_recv_wr", init.max_recv_wr.into(), 1, limit)?;
    }
    in_range("max_send_sge", init.max_send_sge.into(), 0, SGE_MAX.into())?;
    in_range("max_recv_sge", init.max_recv_sge.into(), 0, SGE_MAX.into())?;
    in_range("max_inline_data", init.max_inline.into(), 0, INLINE_MAX.into())
}

/// Gives the parts of a queue pair a number and a place under the token; with a first PSN.
fn insert(nic: &Nic, parts: Parts) -> Result<(Arc<QpShared>, u32), NicError> {
    let exhausted = |limit| NicError::Exhausted { object: "queue pair", limit };
    let qp_type = parts.caps.qp_type;
    afford(parts.max_send_wr as usize * ENGINE_SEND + ENGINE_FIXED)
        .map_err(NicError::system("allocating a queue pair"))?;
    let config = Config {
        qp_type,
        shared_receives: matches!(parts.receives, Receives::Shared(_)),
        max_send_wr: parts.max_send_wr as usize,
        ..nic.engine_config()
    };
    // Early packets are executed later, when the shared receive queue in hand is another one.
    let config = if qp_type == QpType::XrcRecv { Config { reorder: 0, ..config } } else { config };
    let made = nic.control(|core| {
        let Core { qps, srqs, rng, cm, .. } = core;
        let initial_psn = rng.next_u32() & 0x00ff_ffff;
        let shared_queue = match parts.receives {
            Receives::Shared(srqn) => Some(srqn),
            _ => None,
        };
        let mut shared = None;
        let make = |qpn| {
            let own = Arc::new(QpShared {
                qpn,
                state: AtomicU8::new(QpState::Reset as u8),
                doorbell: Doorbell::new(),
            });
            shared = Some(Arc::clone(&own));
            QpCore {
                shared: own,
                qp_type,
                engine: QueuePair::new(Config { qpn: Qpn::new(qpn), ..config }),
                pd: parts.caps.pd,
                access: Access::empty(),
                peer: None,
                share: None,
                source_port: 0,
                ids: PeerIds::default(),
                modified: QpModified::default(),
                sq: WorkQueue::new(parts.sq),
                receives: parts.receives,
                send_cq: parts.send_cq,
                recv_cq: parts.recv_cq,
                last_wqe_told: false,
                ready: false,
                timer: None,
            }
        };
        // 0 and 1 are the management queue pairs, and all ones means multicast (IBA 3.5.1, 10.5).
        // A number that a connection in timewait still has is not given out either.
        let allowed = |qpn| qpn > 1 && qpn != MULTICAST_QPN && !cm.holds(qpn);
        qps.insert(rng, allowed, make).ok_or(exhausted(qps.limit()))?;
        // Behind what may fail: who is not there does not take from the queue.
        if let Some(srq) = shared_queue.and_then(|srqn| srqs.get_mut(srqn)) {
            srq.attach();
        }
        Ok(shared.map(|shared| (shared, initial_psn)))
    })?;
    made.ok_or(exhausted(nic.attributes().max_qp))
}

impl Drop for Qp {
    fn drop(&mut self) {
        let qpn = self.qpn();
        let qp = self.nic().control(|core| {
            core.reset(qpn);
            core.forget_receives(qpn);
            let Core { groups, link, .. } = core;
            groups.forget(link.as_mut(), qpn);
            let qp = core.qps.remove(qpn);
            if let Some(qp) = &qp {
                qp.purge();
                if let Receives::Shared(srqn) = qp.receives
                    && let Some(srq) = core.srqs.get_mut(srqn)
                {
                    srq.detach();
                }
            }
            qp
        });
        self.nic().events().forget(|event| event.qpn() == Some(qpn));
        drop(qp);
    }
}

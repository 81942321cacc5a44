//! Queue pairs, as programs hold them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use anyverbs_engine::{Config, Mtu, QpState, QueuePair, ReadyToReceive, ReadyToSend};
use anyverbs_memory::{Access, Producer, ring};
use anyverbs_wire::{Psn, Qpn};
use rand_core::Rng;

use crate::attributes::RD_ATOMIC_MAX;
use crate::completion::Cq;
use crate::core::Core;
use crate::error::{NicError, PostError, PostReason, in_range};
use crate::qp::{QpCore, WorkQueue};
use crate::region::Pd;
use crate::work::{RecvWqe, RecvWr, SGE_MAX, SendWqe, SendWr};

/// What a queue pair is made with (`ibv_qp_init_attr`).
#[derive(Clone, Copy)]
pub struct QpInit<'a> {
    /// Where sends complete.
    pub send_cq: &'a Cq,
    /// Where receives complete.
    pub recv_cq: &'a Cq,
    /// Send work requests that may be outstanding.
    pub max_send_wr: u32,
    /// Receive work requests that may be outstanding.
    pub max_recv_wr: u32,
    /// Scatter/gather elements of a work request.
    pub max_sge: u32,
    /// Every send writes a completion queue entry, whatever its flag says.
    pub signal_all: bool,
}

/// The attributes of the transition to ReadyToReceive (`ibv_qp_attr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RtrAttributes {
    /// The peer's GID.
    pub peer: IpAddr,
    /// The peer's queue pair number.
    pub dest_qpn: u32,
    /// The peer's first PSN.
    pub rq_psn: u32,
    /// The path MTU; not above either device's.
    pub path_mtu: Mtu,
    /// READs and atomics of the peer that may be outstanding.
    pub max_dest_rd_atomic: u8,
    /// Timer code of RNR NAKs, 0..=31.
    pub min_rnr_timer: u8,
}

/// The attributes of the transition to ReadyToSend (`ibv_qp_attr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RtsAttributes {
    /// Our first PSN, as the peer was told.
    pub sq_psn: u32,
    /// READs and atomics that we may have outstanding.
    pub max_rd_atomic: u8,
    /// How often to send again before giving up, 0..=7.
    pub retry_cnt: u8,
    /// How often to try again after an RNR NAK, 0..=6; 7: for ever.
    pub rnr_retry: u8,
    /// Timeout exponent, 4.096 us x 2^timeout, 0..=31; 0: never.
    pub timeout: u8,
}

/// What program and progress share of a queue pair beside its rings.
#[derive(Debug)]
pub(crate) struct QpShared {
    qpn: u32,
    state: AtomicU8,
    /// A doorbell was rung and not yet answered.
    rung: AtomicBool,
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

    pub(crate) fn set_state(&self, state: QpState) {
        self.state.store(state as u8, Ordering::SeqCst);
    }

    pub(crate) fn answer_doorbell(&self) {
        self.rung.store(false, Ordering::SeqCst);
    }

    /// Notes a doorbell; false if one is waiting to be answered anyway.
    fn ring(&self) -> bool {
        !self.rung.swap(true, Ordering::SeqCst)
    }
}

/// A reliable-connected queue pair (`ibv_qp`). Any thread may post. Dropping it destroys it: then
/// no memory that it names is touched any more, and none of its completions appears.
pub struct Qp {
    pd: Pd,
    shared: Arc<QpShared>,
    initial_psn: u32,
    max_sge: u32,
    signal_all: bool,
    sq: Mutex<Producer<SendWqe>>,
    rq: Mutex<Producer<RecvWqe>>,
}

impl Qp {
    pub(crate) fn create(pd: Pd, init: QpInit<'_>) -> Result<Qp, NicError> {
        let nic = pd.nic().clone();
        for (object, cq) in [("send CQ", init.send_cq), ("receive CQ", init.recv_cq)] {
            if !nic.is_same(&cq.nic) {
                return Err(NicError::OtherDevice { object });
            }
        }
        let limit = u64::from(nic.attributes().max_qp_wr);
        in_range("max_send_wr", u64::from(init.max_send_wr), 1, limit)?;
        in_range("max_recv_wr", u64::from(init.max_recv_wr), 1, limit)?;
        in_range("max_sge", u64::from(init.max_sge), 1, SGE_MAX as u64)?;
        let (sq, sq_consumer) =
            ring(init.max_send_wr).map_err(NicError::system("allocating a send queue"))?;
        let (rq, rq_consumer) =
            ring(init.max_recv_wr).map_err(NicError::system("allocating a receive queue"))?;
        let config = Config {
            max_send_wr: init.max_send_wr as usize,
            window: nic.window(),
            congestion: nic.congestion(),
            credits: nic.credits(),
            recovery: nic.recovery(),
            ..Config::default()
        };
        let made = nic.control(|core| {
            let Core { qps, rng, .. } = core;
            let initial_psn = rng.next_u32() & 0x00ff_ffff;
            let mut shared = None;
            let make = |qpn| {
                let own = Arc::new(QpShared {
                    qpn,
                    state: AtomicU8::new(QpState::Reset as u8),
                    rung: AtomicBool::new(false),
                });
                shared = Some(Arc::clone(&own));
                QpCore {
                    shared: own,
                    engine: QueuePair::new(config),
                    pd: pd.number(),
                    access: Access::empty(),
                    peer: None,
                    source_port: 0,
                    sq: WorkQueue::new(sq_consumer),
                    rq: WorkQueue::new(rq_consumer),
                    send_cq: Arc::clone(&init.send_cq.core),
                    recv_cq: Arc::clone(&init.recv_cq.core),
                    ready: false,
                    timer: None,
                }
            };
            // 0 and 1 are the management queue pairs, and all ones means multicast (IBA 3.5.1, 10.5).
            qps.insert(rng, |qpn| qpn > 1 && qpn != 0x00ff_ffff, make)
                .ok_or(NicError::Exhausted { object: "queue pair", limit: qps.limit() })?;
            Ok(shared.map(|shared| (shared, initial_psn)))
        })?;
        let (shared, initial_psn) =
            made.ok_or(NicError::Exhausted { object: "queue pair", limit: nic.attributes().max_qp })?;
        Ok(Qp {
            pd,
            shared,
            initial_psn,
            max_sge: init.max_sge,
            signal_all: init.signal_all,
            sq: Mutex::new(sq),
            rq: Mutex::new(rq),
        })
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

    /// The domain that it belongs to.
    pub fn pd(&self) -> &Pd {
        &self.pd
    }

    // ---- States -----------------------------------------------------------------------------

    /// Reset -> Init. `access` says what peers may do through this queue pair at all.
    ///
    /// # Errors
    /// [`NicError::State`] from another state.
    pub fn to_init(&self, access: Access) -> Result<(), NicError> {
        self.change(QpState::Init, |core_qp, _| {
            let done = core_qp.engine.to_init();
            if done {
                core_qp.access = access;
            }
            done
        })
    }

    /// Init -> ReadyToReceive: the queue pair answers its peer from here on.
    ///
    /// # Errors
    /// [`NicError::State`] from another state, [`NicError::OutOfRange`] and
    /// [`NicError::AddressFamily`] for attributes that the device does not take.
    pub fn to_rtr(&self, attributes: RtrAttributes) -> Result<(), NicError> {
        let device = self.pd.nic().attributes();
        let mtu_max = u64::from(device.path_mtu.bytes());
        in_range("path_mtu", u64::from(attributes.path_mtu.bytes()), 256, mtu_max)?;
        in_range("dest_qp_num", u64::from(attributes.dest_qpn), 2, 0x00ff_fffe)?;
        in_range("rq_psn", u64::from(attributes.rq_psn), 0, 0x00ff_ffff)?;
        in_range(
            "max_dest_rd_atomic",
            u64::from(attributes.max_dest_rd_atomic),
            0,
            u64::from(RD_ATOMIC_MAX),
        )?;
        in_range("min_rnr_timer", u64::from(attributes.min_rnr_timer), 0, 31)?;
        if attributes.peer.is_ipv4() != device.gid.is_ipv4() {
            return Err(NicError::AddressFamily { peer: attributes.peer, own: device.gid });
        }
        self.change(QpState::ReadyToReceive, |core_qp, link| {
            let done = core_qp.engine.to_rtr(&ReadyToReceive {
                dest_qpn: Qpn::new(attributes.dest_qpn),
                rq_psn: Psn::new(attributes.rq_psn),
                path_mtu: attributes.path_mtu,
                max_dest_rd_atomic: attributes.max_dest_rd_atomic,
                min_rnr_timer: attributes.min_rnr_timer,
            });
            if done {
                core_qp.peer = Some(attributes.peer);
                core_qp.source_port = link.source_port(attributes.dest_qpn ^ core_qp.shared.qpn);
            }
            done
        })
    }

    /// ReadyToReceive -> ReadyToSend: the queue pair makes requests from here on.
    ///
    /// # Errors
    /// [`NicError::State`] from another state, [`NicError::OutOfRange`] for attributes that the
    /// device does not take.
    pub fn to_rts(&self, attributes: RtsAttributes) -> Result<(), NicError> {
        in_range("sq_psn", u64::from(attributes.sq_psn), 0, 0x00ff_ffff)?;
        in_range("max_rd_atomic", u64::from(attributes.max_rd_atomic), 0, u64::from(RD_ATOMIC_MAX))?;
        in_range("retry_cnt", u64::from(attributes.retry_cnt), 0, 7)?;
        in_range("rnr_retry", u64::from(attributes.rnr_retry), 0, 7)?;
        in_range("timeout", u64::from(attributes.timeout), 0, 31)?;
        self.change(QpState::ReadyToSend, |core_qp, _| {
            core_qp.engine.to_rts(&ReadyToSend {
                sq_psn: Psn::new(attributes.sq_psn),
                max_rd_atomic: attributes.max_rd_atomic,
                retry_cnt: attributes.retry_cnt,
                rnr_retry: attributes.rnr_retry,
                timeout: attributes.timeout,
            })
        })
    }

    /// Any state but Reset -> Error: everything that is posted completes as flushed.
    ///
    /// # Errors
    /// [`NicError::State`] from Reset.
    pub fn to_error(&self) -> Result<(), NicError> {
        if self.state() == QpState::Reset {
            return Err(NicError::State { from: QpState::Reset, to: QpState::Error });
        }
        self.pd.nic().control(|core| core.enter_error(self.qpn()));
        self.doorbell();
        Ok(())
    }

    /// Any state -> Reset: everything that is posted is forgotten and does not complete; what has
    /// completed and was not polled is gone, too.
    pub fn to_reset(&self) {
        let mut sq = self.sq.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rq = self.rq.lock().unwrap_or_else(PoisonError::into_inner);
        // What was pushed is visible, so that the reset finds it.
        sq.publish();
        rq.publish();
        self.pd.nic().control(|core| {
            core.reset(self.qpn());
            if let Some(qp) = core.qps.get_mut(self.qpn()) {
                qp.clear();
            }
        });
    }

    fn change(
        &self,
        to: QpState,
        transition: impl FnOnce(&mut QpCore, &dyn crate::link::Link) -> bool,
    ) -> Result<(), NicError> {
        self.pd.nic().control(|core| {
            let Core { qps, link, .. } = core;
            let done = qps.get_mut(self.qpn()).is_some_and(|qp| {
                let done = transition(qp, link.as_ref());
                qp.shared.set_state(qp.engine.state());
                done
            });
            done.then_some(()).ok_or(NicError::State { from: self.state(), to })
        })
    }

    // ---- Posting ----------------------------------------------------------------------------

    /// Posts send work requests, in order, and rings one doorbell (`ibv_post_send`).
    ///
    /// # Errors
    /// [`PostError`] names the first work request that was not posted. Keys and addresses are
    /// checked when the work request is carried out, and show in its completion.
    pub fn post_send(&self, wrs: &[SendWr<'_>]) -> Result<(), PostError> {
        use QpState::*;
        if !matches!(self.state(), ReadyToSend | SendQueueDrain | SendQueueError | Error) {
            return Err(PostError { index: 0, reason: PostReason::BadState });
        }
        let result = post_all(&self.sq, wrs, |wr| SendWqe::new(wr, self.max_sge, self.signal_all));
        self.doorbell();
        result
    }

    /// Posts receive work requests, in order (`ibv_post_recv`).
    ///
    /// # Errors
    /// [`PostError`] names the first work request that was not posted.
    pub fn post_recv(&self, wrs: &[RecvWr<'_>]) -> Result<(), PostError> {
        if self.state() == QpState::Reset {
            return Err(PostError { index: 0, reason: PostReason::BadState });
        }
        let result = post_all(&self.rq, wrs, |wr| RecvWqe::new(wr, self.max_sge));
        // Either the flush of a queue pair that fails just now sees what was posted, or we see here
        // that it has failed.
        fence(Ordering::SeqCst);
        if self.state() == QpState::Error {
            self.doorbell();
        }
        result
    }

    fn doorbell(&self) {
        if self.shared.ring() {
            self.pd.nic().ring_doorbell(self.qpn());
        }
    }
}

/// Puts work requests into a queue and shows them to the NIC all at once.
fn post_all<W, T>(
    queue: &Mutex<Producer<T>>,
    wrs: &[W],
    lay_out: impl Fn(&W) -> Result<T, PostReason>,
) -> Result<(), PostError>
where
    T: Copy + zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable,
{
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let mut result = Ok(());
    for (index, wr) in wrs.iter().enumerate() {
        let posted = lay_out(wr).and_then(|wqe| queue.push(wqe).map_err(|_| PostReason::QueueFull));
        if let Err(reason) = posted {
            result = Err(PostError { index, reason });
            break;
        }
    }
    queue.publish();
    result
}

impl Drop for Qp {
    fn drop(&mut self) {
        let qp = self.pd.nic().control(|core| {
            core.reset(self.qpn());
            let qp = core.qps.remove(self.qpn());
            if let Some(qp) = &qp {
                qp.purge();
            }
            qp
        });
        drop(qp);
    }
}

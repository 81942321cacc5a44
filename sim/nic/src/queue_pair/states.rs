//! Transitions between the states of a queue pair (`ibv_modify_qp`, IBA 10.3.1).

use std::sync::PoisonError;

use anyverbs_engine::{QpState, QpType, ReadyToReceive};
use anyverbs_memory::Access;
use anyverbs_wire::{Psn, Qpn};

use super::{Qp, RtrAttributes, RtsAttributes};
use crate::error::NicError;
use crate::qp::QpCore;

impl Qp {
    /// Reset -> Init. `access` says what peers may do through this queue pair at all.
    ///
    /// # Errors
    /// [`NicError::State`] from another state.
    pub fn to_init(&self, access: Access) -> Result<(), NicError> {
        self.change(QpState::Init, |core_qp| {
            let done = core_qp.engine.to_init();
            if done {
                core_qp.access = access;
            }
            done
        })
    }

    /// What peers may do from now on, in any state but Reset (`IBV_QP_ACCESS_FLAGS`).
    ///
    /// # Errors
    /// [`NicError::State`] in the state Reset.
    pub fn set_access(&self, access: Access) -> Result<(), NicError> {
        self.change(QpState::Init, |core_qp| {
            let done = core_qp.engine.state() != QpState::Reset;
            if done {
                core_qp.access = access;
            }
            done
        })
    }

    /// UD: the key that datagrams must carry from now on (`IBV_QP_QKEY`).
    ///
    /// # Errors
    /// [`NicError::Invalid`] for another type, [`NicError::State`] in the state Reset.
    pub fn set_qkey(&self, qkey: u32) -> Result<(), NicError> {
        self.must_be(QpType::Ud, "setting a Q_Key")?;
        self.change(QpState::Init, |core_qp| {
            let done = core_qp.engine.state() != QpState::Reset;
            if done {
                core_qp.engine.set_qkey(qkey);
                core_qp.modified.qkey = qkey;
            }
            done
        })
    }

    /// UD: Init -> ReadyToReceive. A datagram queue pair has no peer, and takes payloads up to the path MTU of the
    /// device.
    ///
    /// # Errors
    /// [`NicError::Invalid`] for another type, [`NicError::State`] from another state.
    pub fn to_rtr_datagram(&self) -> Result<(), NicError> {
        self.must_be(QpType::Ud, "going to ReadyToReceive without a peer")?;
        let path_mtu = self.nic().attributes().path_mtu;
        self.change(QpState::ReadyToReceive, |core_qp| {
            core_qp.engine.to_rtr(&ReadyToReceive {
                dest_qpn: Qpn::new(0),
                rq_psn: Psn::new(0),
                path_mtu,
                max_dest_rd_atomic: 0,
                min_rnr_timer: 0,
            })
        })
    }

    fn must_be(&self, qp_type: QpType, action: &'static str) -> Result<(), NicError> {
        if self.qp_type() == qp_type {
            return Ok(());
        }
        Err(NicError::Invalid { action, reason: "the queue pair is of another type" })
    }

    /// Init -> ReadyToReceive: the queue pair answers its peer from here on.
    ///
    /// # Errors
    /// [`NicError::State`] from another state, [`NicError::OutOfRange`] and
    /// [`NicError::AddressFamily`] for attributes that the device does not take, [`NicError::PathMtu`] if the path to
    /// the peer does not carry packets of the path MTU, [`NicError::Exhausted`] if
    /// the peer has its share of queue pairs ([`Quotas::qp_per_peer`](crate::cm::Quotas::qp_per_peer)).
    pub fn to_rtr(&self, attributes: RtrAttributes) -> Result<(), NicError> {
        self.nic().control(|core| core.ready_to_receive(self.qpn(), &attributes))
    }

    /// ReadyToReceive -> ReadyToSend: the queue pair makes requests from here on.
    ///
    /// # Errors
    /// [`NicError::State`] from another state, [`NicError::OutOfRange`] for attributes that the
    /// device does not take.
    pub fn to_rts(&self, attributes: RtsAttributes) -> Result<(), NicError> {
        self.nic().control(|core| core.ready_to_send(self.qpn(), &attributes))
    }

    /// ReadyToSend -> SendQueueDrain: no new send is begun. When those that had begun have ended,
    /// [`AsyncEvent::SendQueueDrained`](crate::AsyncEvent::SendQueueDrained) says so.
    ///
    /// # Errors
    /// [`NicError::State`] from another state.
    pub fn to_sqd(&self) -> Result<(), NicError> {
        let qpn = self.qpn();
        let done = self.nic().control(|core| {
            let now = core.waiter.now();
            let done = core.engine(qpn, now, |engine, cx| engine.to_sqd(cx));
            core.carry_out(qpn, now, &[]);
            done.unwrap_or(false)
        });
        done.then_some(()).ok_or(NicError::State { from: self.state(), to: QpState::SendQueueDrain })
    }

    /// SendQueueDrain or SendQueueError -> ReadyToSend: sends go on.
    ///
    /// # Errors
    /// [`NicError::State`] from another state.
    pub fn resume(&self) -> Result<(), NicError> {
        let done = self.change(QpState::ReadyToSend, |core_qp| core_qp.engine.resume());
        // What was posted meanwhile waits in the engine.
        self.nic().control(|core| core.carry_out(self.qpn(), core.waiter.now(), &[]));
        done
    }

    /// Any state but Reset -> Error: everything that is posted completes as flushed.
    ///
    /// # Errors
    /// [`NicError::State`] from Reset.
    pub fn to_error(&self) -> Result<(), NicError> {
        if self.state() == QpState::Reset {
            return Err(NicError::State { from: QpState::Reset, to: QpState::Error });
        }
        self.nic().control(|core| core.enter_error(self.qpn()));
        self.doorbell();
        Ok(())
    }

    /// Any state -> Reset: everything that is posted is forgotten and does not complete; what has
    /// completed and was not polled is gone, too.
    pub fn to_reset(&self) {
        let mut sq = self.sq.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rq = self.rq.as_ref().map(|rq| rq.lock().unwrap_or_else(PoisonError::into_inner));
        // What was pushed is visible, so that the reset finds it.
        sq.publish();
        if let Some(rq) = &mut rq {
            rq.publish();
        }
        self.nic().control(|core| {
            core.reset(self.qpn());
            core.forget_receives(self.qpn());
            if let Some(qp) = core.qps.get_mut(self.qpn()) {
                qp.clear();
            }
        });
    }

    fn change(&self, to: QpState, transition: impl FnOnce(&mut QpCore) -> bool) -> Result<(), NicError> {
        self.nic().control(|core| {
            let done = core.qps.get_mut(self.qpn()).is_some_and(|qp| {
                let done = transition(qp);
                qp.shared.set_state(qp.engine.state());
                done
            });
            done.then_some(()).ok_or(NicError::State { from: self.state(), to })
        })
    }
}

//! From what two ends agreed on to the attributes of their queue pairs.

use std::net::IpAddr;

use anyverbs_engine::cm::{ConnectRequest, ConnectResponse, Transport};
use anyverbs_engine::{Mtu, QpState, QpType, ReadyToReceive, ReadyToSend};
use anyverbs_wire::{Psn, Qpn};

use crate::attributes::{DeviceAttributes, OVERHEAD_MAX, RD_ATOMIC_MAX};
use crate::core::Core;
use crate::error::{NicError, in_range};
use crate::link::Link;
use crate::queue_pair::{RtrAttributes, RtsAttributes};

/// What the side that asks knows of its queue pair's attributes before the peer answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readying {
    pub(super) peer: IpAddr,
    pub(super) path_mtu: Mtu,
    pub(super) min_rnr_timer: u8,
    pub(super) sq_psn: u32,
    /// What we accept, and what we want to have outstanding.
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
    pub(super) retry_cnt: u8,
}

impl Readying {
    pub(super) fn rtr(&self, response: &ConnectResponse) -> RtrAttributes {
        RtrAttributes {
            peer: self.peer,
            dest_qpn: response.qpn.value(),
            rq_psn: response.starting_psn.value(),
            path_mtu: self.path_mtu,
            // The peer may say that it will have fewer outstanding than we accept, but not more.
            max_dest_rd_atomic: response.responder_resources.min(self.responder_resources),
            min_rnr_timer: self.min_rnr_timer,
        }
    }

    pub(super) fn rts(&self, response: &ConnectResponse) -> RtsAttributes {
        RtsAttributes {
            sq_psn: self.sq_psn,
            max_rd_atomic: response.initiator_depth.min(self.initiator_depth),
            retry_cnt: self.retry_cnt,
            rnr_retry: response.rnr_retry_count & 7,
            timeout: response.ack_timeout & 31,
        }
    }
}

/// What the side that is asked answers with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resources {
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
}

impl Resources {
    /// What was asked for as far as the device has it, or what the program wants.
    pub(super) fn of(
        request: &ConnectRequest,
        responder_resources: Option<u8>,
        initiator_depth: Option<u8>,
    ) -> Self {
        let terms = &request.terms;
        let responder_resources = responder_resources.unwrap_or(terms.responder_resources.min(RD_ATOMIC_MAX));
        let initiator_depth = initiator_depth.unwrap_or(terms.initiator_depth.min(RD_ATOMIC_MAX));
        Resources { responder_resources, initiator_depth }
    }

    pub(super) fn rtr(self, request: &ConnectRequest, min_rnr_timer: u8) -> RtrAttributes {
        RtrAttributes {
            peer: request.source,
            dest_qpn: request.terms.qpn.value(),
            rq_psn: request.terms.starting_psn.value(),
            path_mtu: request.terms.path_mtu,
            max_dest_rd_atomic: self.responder_resources,
            min_rnr_timer,
        }
    }

    pub(super) fn rts(self, request: &ConnectRequest, sq_psn: u32) -> RtsAttributes {
        RtsAttributes {
            sq_psn,
            max_rd_atomic: self.initiator_depth,
            retry_cnt: request.terms.retry_count & 7,
            rnr_retry: request.terms.rnr_retry_count & 7,
            timeout: request.path.ack_timeout & 31,
        }
    }
}

impl RtrAttributes {
    /// Checks what the device takes.
    pub(crate) fn check(&self, device: &DeviceAttributes) -> Result<(), NicError> {
        let mtu_max = u64::from(device.path_mtu.bytes());
        in_range("path_mtu", u64::from(self.path_mtu.bytes()), 256, mtu_max)?;
        in_range("dest_qp_num", u64::from(self.dest_qpn), 2, 0x00ff_fffe)?;
        in_range("rq_psn", u64::from(self.rq_psn), 0, 0x00ff_ffff)?;
        in_range("max_dest_rd_atomic", u64::from(self.max_dest_rd_atomic), 0, u64::from(RD_ATOMIC_MAX))?;
        in_range("min_rnr_timer", u64::from(self.min_rnr_timer), 0, 31)?;
        if self.peer.is_ipv4() != device.gid.is_ipv4() {
            return Err(NicError::AddressFamily { peer: self.peer, own: device.gid });
        }
        Ok(())
    }
}

impl RtsAttributes {
    /// Checks what the device takes.
    pub(crate) fn check(&self) -> Result<(), NicError> {
        in_range("sq_psn", u64::from(self.sq_psn), 0, 0x00ff_ffff)?;
        in_range("max_rd_atomic", u64::from(self.max_rd_atomic), 0, u64::from(RD_ATOMIC_MAX))?;
        in_range("retry_cnt", u64::from(self.retry_cnt), 0, 7)?;
        in_range("rnr_retry", u64::from(self.rnr_retry), 0, 7)?;
        in_range("timeout", u64::from(self.timeout), 0, 31)
    }
}

impl Core {
    /// Init -> ReadyToReceive, of a queue pair of this device.
    pub(crate) fn ready_to_receive(&mut self, qpn: u32, attributes: &RtrAttributes) -> Result<(), NicError> {
        attributes.check(&self.cm.device)?;
        let Core { qps, link, peers, .. } = self;
        let not = |from| NicError::State { from, to: QpState::ReadyToReceive };
        let qp = qps.get_mut(qpn).ok_or(not(QpState::Reset))?;
        if qp.qp_type == QpType::Ud {
            let reason = "a datagram queue pair has no peer: use to_rtr_datagram";
            return Err(NicError::Invalid { action: "connecting a queue pair", reason });
        }
        let state = qp.engine.state();
        if state != QpState::Init {
            return Err(not(state));
        }
        check_path(link.as_ref(), attributes.peer, attributes.path_mtu)?;
        let share = peers.enter(attributes.peer)?;
        let done = qp.engine.to_rtr(&ReadyToReceive {
            dest_qpn: Qpn::new(attributes.dest_qpn),
            rq_psn: Psn::new(attributes.rq_psn),
            path_mtu: attributes.path_mtu,
            max_dest_rd_atomic: attributes.max_dest_rd_atomic,
            min_rnr_timer: attributes.min_rnr_timer,
        });
        if !done {
            peers.leave(share);
            return Err(not(state));
        }
        qp.peer = Some(attributes.peer);
        qp.modified.rtr = Some(*attributes);
        qp.share = Some(share);
        qp.source_port = link.source_port(attributes.dest_qpn ^ qpn);
        qp.shared.set_state(qp.engine.state());
        Ok(())
    }

    /// Whether a queue pair of this device is where a connection of this kind can begin.
    pub(super) fn check_init(&mut self, qpn: u32, wanted: Transport) -> Result<(), NicError> {
        let not = |from| NicError::State { from, to: QpState::ReadyToReceive };
        let qp = self.qps.get_mut(qpn).ok_or(not(QpState::Reset))?;
        let own = qp.engine.qp_type();
        if transport(own) != Some(wanted) {
            return Err(NicError::Transport { own, wanted });
        }
        let state = qp.engine.state();
        if state == QpState::Init { Ok(()) } else { Err(not(state)) }
    }

    /// ReadyToReceive -> ReadyToSend, of a queue pair of this device.
    pub(crate) fn ready_to_send(&mut self, qpn: u32, attributes: &RtsAttributes) -> Result<(), NicError> {
        attributes.check()?;
        let not = |from| NicError::State { from, to: QpState::ReadyToSend };
        let qp = self.qps.get_mut(qpn).ok_or(not(QpState::Reset))?;
        let done = qp.engine.to_rts(&ReadyToSend {
            sq_psn: Psn::new(attributes.sq_psn),
            max_rd_atomic: attributes.max_rd_atomic,
            retry_cnt: attributes.retry_cnt,
            rnr_retry: attributes.rnr_retry,
            timeout: attributes.timeout,
        });
        qp.shared.set_state(qp.engine.state());
        if done {
            qp.modified.rts = Some(*attributes);
        }
        done.then_some(()).ok_or(not(qp.engine.state()))
    }
}

/// Refuses a path MTU whose packets would not reach the peer whole.
fn check_path(link: &dyn Link, peer: IpAddr, path_mtu: Mtu) -> Result<(), NicError> {
    let carried = link.path_max_datagram(peer);
    let fits = |mtu: &Mtu| mtu.bytes() as usize + OVERHEAD_MAX <= carried;
    if fits(&path_mtu) {
        return Ok(());
    }
    let fits = Mtu::ALL.into_iter().rev().find(fits).map(Mtu::bytes);
    Err(NicError::PathMtu { peer, given: path_mtu.bytes(), fits, carried })
}

/// The transport service of a type of queue pairs, if they are connected.
fn transport(qp_type: QpType) -> Option<Transport> {
    match qp_type {
        QpType::Rc => Some(Transport::Rc),
        QpType::Uc => Some(Transport::Uc),
        QpType::XrcSend | QpType::XrcRecv => Some(Transport::Xrc),
        QpType::Ud => None,
    }
}

/// The code of a path MTU on the wire, 1 to 5.
pub(super) fn mtu_code(mtu: Mtu) -> u8 {
    (mtu.bytes().ilog2() - 7) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtus_have_the_codes_of_the_wire() {
        assert_eq!(Mtu::ALL.map(mtu_code), [1, 2, 3, 4, 5]);
    }
}

//! A peer that wants to connect.

use std::fmt;
use std::net::IpAddr;

use anyverbs_engine::Time;
use anyverbs_engine::cm::{self, Accept};
use anyverbs_wire::mad::{IpHeader, RejectReason, ServiceId};
use anyverbs_wire::{Psn, Qpn};

use super::config::has_ip_header;
use super::connection::Connection;
use super::handle::Handle;
use super::state::Role;
use super::terms::Resources;
use crate::core::Core;
use crate::error::NicError;
use crate::queue_pair::{Qp, RtrAttributes, RtsAttributes};

/// What to accept a request with. The default is what was asked for, as far as the device has it.
#[derive(Clone, Copy, Debug)]
pub struct AcceptParams<'a> {
    /// For the peer's program: up to 196 bytes.
    pub private_data: &'a [u8],
    /// READs and atomics of the peer that may be outstanding; `None`: what it asks for.
    pub responder_resources: Option<u8>,
    /// READs and atomics that we may have outstanding: at most what the peer takes; `None`: all of them.
    pub initiator_depth: Option<u8>,
    /// The peer's `rnr_retry`; `None`: as it proposes.
    pub rnr_retry_count: Option<u8>,
    /// We do end-to-end flow control.
    pub flow_control: bool,
    /// The queue pair is on a shared receive queue.
    pub srq: bool,
    /// Timer code of our RNR NAKs, 0..=31.
    pub min_rnr_timer: u8,
}

impl Default for AcceptParams<'_> {
    fn default() -> Self {
        AcceptParams {
            private_data: &[],
            responder_resources: None,
            initiator_depth: None,
            rnr_retry_count: None,
            flow_control: true,
            srq: false,
            min_rnr_timer: super::connect::MIN_RNR_TIMER,
        }
    }
}

/// A peer's request. If it is dropped without an answer, it is rejected.
pub struct ConnectRequest {
    /// `None`: it is answered.
    handle: Option<Handle>,
    request: cm::ConnectRequest,
}

impl ConnectRequest {
    pub(super) fn new(handle: Handle, request: cm::ConnectRequest) -> Self {
        ConnectRequest { handle: Some(handle), request }
    }

    /// Where the request comes from: the peer's GID.
    pub fn peer(&self) -> IpAddr {
        self.request.source
    }

    /// The service that it is for.
    pub fn service(&self) -> ServiceId {
        self.request.service_id
    }

    /// What the peer proposes, in our words: its `responder_resources` are those that we would give.
    pub fn terms(&self) -> &cm::Terms {
        &self.request.terms
    }

    /// What stands before the private data in a request for a service of librdmacm's.
    pub fn ip_header(&self) -> Option<IpHeader> {
        self.split().0
    }

    /// The peer's private data, as long as its message has room for.
    pub fn private_data(&self) -> &[u8] {
        self.split().1
    }

    fn split(&self) -> (Option<IpHeader>, &[u8]) {
        match self.request.ip_header().filter(|_| has_ip_header(self.request.service_id)) {
            Some((header, user)) => (Some(header), user),
            None => (None, &self.request.private_data),
        }
    }

    /// Whether the peer has taken the request back, or has lost its patience; then no answer is possible.
    pub fn is_canceled(&self) -> bool {
        use cm::State::{MraReqSent, ReqRcvd};
        self.handle.as_ref().is_some_and(|handle| !matches!(handle.state(), Some(ReqRcvd | MraReqSent)))
    }

    /// Accepts with a queue pair in the Init state, which goes to ReadyToReceive now and to ReadyToSend
    /// when the peer is ready (`rdma_accept`). Receives may be posted before.
    ///
    /// # Errors
    /// If anything is refused nothing has happened, and the request still wants an answer:
    /// [`NicError::Cm`], [`NicError::State`] and [`NicError::Transport`] for a queue pair that is not in Init
    /// or of another type, [`NicError::OutOfRange`], [`NicError::OtherDevice`], [`NicError::Exhausted`] if the
    /// peer has its share of queue pairs.
    pub fn accept(&mut self, qp: &Qp, params: &AcceptParams<'_>) -> Result<Connection, NicError> {
        let psn = qp.initial_psn();
        let nic = self.handle.as_ref().map(|handle| &handle.nic);
        if !nic.is_some_and(|nic| nic.is_same(qp.nic())) {
            return Err(NicError::OtherDevice { object: "queue pair" });
        }
        let resources = self.resources(params);
        let rtr = resources.rtr(&self.request, params.min_rnr_timer);
        let rts = resources.rts(&self.request, psn);
        rts.check()?;
        self.answer(qp.qpn(), psn, params, Some((rtr, rts)))
    }

    /// Accepts with a queue pair that the program moves through its states itself: it is in
    /// ReadyToReceive already, with [`rtr_attributes`](Self::rtr_attributes), and goes to ReadyToSend at
    /// once or when the connection stands, with [`rts_attributes`](Self::rts_attributes).
    ///
    /// # Errors
    /// [`NicError::Cm`].
    pub fn accept_by_number(
        &mut self,
        qpn: u32,
        starting_psn: u32,
        params: &AcceptParams<'_>,
    ) -> Result<Connection, NicError> {
        self.answer(qpn, starting_psn, params, None)
    }

    /// The attributes of our queue pair's transition to ReadyToReceive.
    pub fn rtr_attributes(&self, params: &AcceptParams<'_>) -> RtrAttributes {
        self.resources(params).rtr(&self.request, params.min_rnr_timer)
    }

    /// The attributes of our queue pair's transition to ReadyToSend.
    pub fn rts_attributes(&self, params: &AcceptParams<'_>, starting_psn: u32) -> RtsAttributes {
        self.resources(params).rts(&self.request, starting_psn)
    }

    fn resources(&self, params: &AcceptParams<'_>) -> Resources {
        Resources::of(&self.request, params.responder_resources, params.initiator_depth)
    }

    fn answer(
        &mut self,
        qpn: u32,
        psn: u32,
        params: &AcceptParams<'_>,
        ready: Option<(RtrAttributes, RtsAttributes)>,
    ) -> Result<Connection, NicError> {
        const ACTION: &str = "accepting a connection";
        let resources = self.resources(params);
        let accept = Accept {
            responder_resources: resources.responder_resources,
            initiator_depth: resources.initiator_depth,
            rnr_retry_count: params.rnr_retry_count.unwrap_or(self.request.terms.rnr_retry_count) & 7,
            flow_control: params.flow_control,
            srq: params.srq,
            ..Accept::new(&self.request, Qpn::new(qpn), Psn::new(psn))
        };
        let Some(handle) = self.handle.as_ref() else {
            return Err(NicError::cm(ACTION)(cm::Error::UnknownId));
        };
        let (id, transport) = (handle.id, self.request.terms.transport);
        handle.call(ACTION, |core, now| {
            if let Some((rtr, _)) = &ready {
                core.check_ready(qpn, transport, rtr)?;
            }
            core.accept(now, id, &accept, params.private_data).map_err(NicError::cm(ACTION))?;
            // The answer leaves after this, and it was checked that this is possible.
            if let Some((rtr, _)) = &ready {
                core.ready_to_receive(qpn, rtr)?;
            }
            if let Some(owner) = core.cm.owners.get_mut(&id) {
                owner.qpn = ready.is_some().then_some(qpn);
                owner.role = Role::Accepted(ready.map(|(_, rts)| rts));
            }
            Ok(())
        })?;
        let handle = self.handle.take().ok_or(NicError::cm(ACTION)(cm::Error::UnknownId))?;
        Ok(Connection::new(handle, self.request.source, qpn, None))
    }

    /// Says no (`rdma_reject`): usually with [`RejectReason::CONSUMER`], and up to 148 bytes of private
    /// data.
    ///
    /// # Errors
    /// [`NicError::Cm`]: too much private data, or the peer has taken its request back.
    pub fn reject(&mut self, reason: RejectReason, private_data: &[u8]) -> Result<(), NicError> {
        self.reject_with_info(reason, &[], private_data)
    }

    /// The same, with up to 72 bytes of additional information, which depends on the reason
    /// (IBA 12.6.7.2).
    ///
    /// # Errors
    /// [`NicError::Cm`].
    pub fn reject_with_info(
        &mut self,
        reason: RejectReason,
        info: &[u8],
        private_data: &[u8],
    ) -> Result<(), NicError> {
        const ACTION: &str = "rejecting a connection";
        let unknown = || NicError::cm(ACTION)(cm::Error::UnknownId);
        let handle = self.handle.as_ref().ok_or_else(unknown)?;
        handle.call_engine(ACTION, |engine, now, id, actions| {
            engine.reject(now, id, reason, info, private_data, actions)
        })?;
        self.handle = None;
        Ok(())
    }
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.request.fmt(f)
    }
}

impl Core {
    /// Whether a queue pair can become ready to receive, as [`ready_to_receive`](Core::ready_to_receive)
    /// will find if nothing happens in between.
    fn check_ready(
        &mut self,
        qpn: u32,
        transport: cm::Transport,
        attributes: &RtrAttributes,
    ) -> Result<(), NicError> {
        attributes.check(&self.cm.device)?;
        self.check_init(qpn, transport)?;
        self.peers.check(attributes.peer)
    }

    fn accept(
        &mut self,
        now: Time,
        id: cm::Id,
        accept: &Accept,
        private_data: &[u8],
    ) -> Result<(), cm::Error> {
        self.cm.engine.accept(now, id, accept, private_data, &mut self.cm.actions)
    }
}

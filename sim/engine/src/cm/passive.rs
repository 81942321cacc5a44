//! The side that is asked for a connection (IBA 12.9.7.2).

use std::net::IpAddr;

use anyverbs_wire::mad::{Message, Path, RejectReason, Rep, Repr, Req, Rtu, path_mtu};
use anyverbs_wire::{Psn, Qpn};

use super::config::bounded;
use super::counters::{Outcome, Why};
use super::error::Error;
use super::event::{Action, Cause, ConnectRequest, Event, Id, PrivateData};
use super::table::{Connection, RemoteId, RemoteQp};
use super::terms::{Capabilities, Tag, Terms, Transport};
use super::{Asked, ConnectionManager, Held, Output, State, fixed, usable};
use crate::qp::Mtu;
use crate::time::Time;

/// Failover of the REP if the REQ names an alternate path: not supported (IBA 12.6.8).
const NO_FAILOVER: u8 = 1;

/// What to accept with: the fields of a REP.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Accept {
    /// Our queue pair.
    pub qpn: Qpn,
    /// Our first PSN.
    pub starting_psn: Psn,
    /// READs and atomics that we accept at once.
    pub responder_resources: u8,
    /// READs and atomics that we will have outstanding: at most the request's.
    pub initiator_depth: u8,
    /// The peer's `rnr_retry`: 0..=6; 7 is without end.
    pub rnr_retry_count: u8,
    /// We do end-to-end flow control.
    pub flow_control: bool,
    /// Our queue pair is on a shared receive queue.
    pub srq: bool,
    /// What our device can do beyond the specification. It is told only to a peer that told as well.
    pub capabilities: Option<Capabilities>,
}

impl Accept {
    /// Accepts with all that was asked for.
    ///
    /// An XRC target begins nothing and is always on a shared receive queue: of `initiator_depth`,
    /// `flow_control` and `srq` its REP says so, whatever is here.
    pub const fn new(request: &ConnectRequest, qpn: Qpn, starting_psn: Psn) -> Self {
        Accept {
            qpn,
            starting_psn,
            responder_resources: request.terms.responder_resources,
            initiator_depth: request.terms.initiator_depth,
            rnr_retry_count: request.terms.rnr_retry_count,
            flow_control: true,
            srq: false,
            capabilities: None,
        }
    }
}

impl ConnectionManager {
    /// Accepts a request. The consumer's queue pair is ready to receive. What comes next is `Established`,
    /// `Rejected`, `Unreachable` or `Disconnected`.
    ///
    /// There is room for 196 bytes of private data.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`], [`Error::OutOfState`], [`Error::QpnInUse`], [`Error::InitiatorDepth`],
    /// [`Error::PrivateDataTooLong`].
    pub fn accept(
        &mut self,
        now: Time,
        id: Id,
        accept: &Accept,
        private_data: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        let private_data = fixed(private_data)?;
        let connection = self.table.get(id).ok_or(Error::UnknownId)?;
        if !matches!(connection.state, State::ReqRcvd | State::MraReqSent) {
            return Err(Error::OutOfState(connection.state));
        }
        if accept.initiator_depth > connection.offered {
            return Err(Error::InitiatorDepth { offered: connection.offered });
        }
        self.check_qpn(accept.qpn)?;
        // An XRC target's queue pair goes where the kernel looks for it.
        let xrc = connection.transport == Transport::Xrc;
        let (qpn, ee_context) = if xrc { (Qpn::new(0), accept.qpn) } else { (accept.qpn, Qpn::new(0)) };
        let capabilities = accept.capabilities.filter(|_| connection.told_capabilities);
        let rep = Rep {
            local_comm_id: id.0,
            remote_comm_id: connection.remote_comm_id(),
            ece: Capabilities::to_wire(capabilities, Tag::Rep),
            qkey: 0,
            qpn,
            ee_context,
            starting_psn: accept.starting_psn,
            responder_resources: accept.responder_resources,
            initiator_depth: if xrc { 0 } else { accept.initiator_depth },
            target_ack_delay: self.config.target_ack_delay,
            failover: if connection.alternate { NO_FAILOVER } else { 0 },
            flow_control: accept.flow_control && !xrc,
            rnr_retry_count: accept.rnr_retry_count,
            srq: accept.srq || xrc,
            ca_guid: self.config.ca_guid,
            private_data,
        };
        let mad = Repr { transaction_id: connection.transaction_id, status: 0, message: Message::Rep(rep) };
        self.table.bind_local(id, accept.qpn);
        self.request(&mut Output { now, actions }, id, State::RepSent, mad);
        Ok(())
    }

    /// The first packet of the peer has arrived at a queue pair of ours: the connection stands although its
    /// RTU may be lost ("communication established", IBA 12.9.7.2). False if no connection waited for it.
    pub fn communication_established(&mut self, now: Time, qpn: Qpn, actions: &mut Vec<Action>) -> bool {
        let waiting = self.table.by_local_qpn(qpn).filter(|id| {
            self.state(*id).is_some_and(|state| matches!(state, State::RepSent | State::MraRepRcvd))
        });
        if let Some(id) = waiting {
            self.stands(&mut Output { now, actions }, id, None);
        }
        waiting.is_some()
    }

    /// A connection that was accepted stands.
    fn stands(&mut self, out: &mut Output<'_>, id: Id, private_data: Option<PrivateData>) {
        self.settle(id);
        self.table.disarm(id);
        let Some(connection) = self.table.get_mut(id) else { return };
        connection.state = State::Established;
        connection.request = None;
        connection.answer = None;
        match connection.closing.take() {
            Some(private_data) => self.send_dreq(out, id, Cause::Local, *private_data),
            None => out.tell(connection, Event::Established { id, private_data }),
        }
    }

    /// RTU: the peer is ready (IBA 12.6.9).
    pub(super) fn on_rtu(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, rtu: &Rtu) -> Outcome {
        let found = self.find(source, rtu.remote_comm_id, Some(rtu.local_comm_id), Some(mad.transaction_id));
        let connection = match found {
            Ok(connection) => connection,
            Err(why) => return Outcome::Dropped(why),
        };
        let (id, remote_id) = (connection.id, connection.remote_id());
        match connection.state {
            State::RepSent | State::MraRepRcvd => {
                self.stands(out, id, Some(PrivateData::received(&rtu.private_data)));
                Outcome::Handled
            }
            State::Established | State::DreqSent => Outcome::Duplicate,
            // We gave up, and the peer does not know.
            State::TimeWait => {
                let told = remote_id.is_some_and(|remote| {
                    self.repeat_last_answer(out, source, mad, Asked::Connection(remote))
                });
                if told { Outcome::Duplicate } else { Outcome::Dropped(Why::OutOfState) }
            }
            _ => Outcome::Dropped(Why::OutOfState),
        }
    }

    /// REQ: a peer wants to connect (IBA 12.6.5).
    pub(super) fn on_req(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, req: &Req) -> Outcome {
        let remote_id = RemoteId { address: source, ca_guid: req.ca_guid, comm_id: req.local_comm_id };
        if let Some(id) = self.table.by_remote_id(&remote_id) {
            return self.on_known_req(out, id, source, mad, remote_id);
        }
        let asked = Asked::Connection(remote_id);
        if self.repeat_last_answer(out, source, mad, asked) || self.held.contains(&asked) {
            return Outcome::Duplicate;
        }
        if !self.admission.take_token(out.now) {
            return Outcome::Dropped(Why::Throttled);
        }
        self.on_new_req(out, source, mad, req)
    }

    /// A REQ with the communication id of a connection.
    fn on_known_req(
        &mut self,
        out: &mut Output<'_>,
        id: Id,
        source: IpAddr,
        mad: &Repr,
        remote_id: RemoteId,
    ) -> Outcome {
        let Some(connection) = self.table.get(id) else { return Outcome::Dropped(Why::UnknownId) };
        let again = connection.transaction_id == mad.transaction_id;
        match connection.state {
            // Not the same REQ: the peer uses the id for another connection (IBA 12.6.7.2, reason 30).
            _ if !again => {
                if !self.admission.take_token(out.now) {
                    return Outcome::Dropped(Why::Throttled);
                }
                self.refuse(out, source, mad, RejectReason::DUPLICATE_COMM_ID);
                Outcome::Dropped(Why::Unacceptable)
            }
            State::MraReqSent => self.repeat_answer(out, id),
            State::RepSent => {
                // The REP was lost; its own timer would find out later.
                if let Some(rep) = connection.request.as_deref() {
                    out.send(&mut self.counters, source, *rep);
                }
                Outcome::Duplicate
            }
            State::TimeWait => {
                if !self.repeat_last_answer(out, source, mad, Asked::Connection(remote_id)) {
                    self.refuse(out, source, mad, RejectReason::STALE_CONNECTION);
                }
                Outcome::Duplicate
            }
            _ => Outcome::Duplicate,
        }
    }

    /// A REQ that was not seen before.
    pub(super) fn on_new_req(
        &mut self,
        out: &mut Output<'_>,
        source: IpAddr,
        mad: &Repr,
        req: &Req,
    ) -> Outcome {
        if !usable(req.qpn) {
            return Outcome::Dropped(Why::Invalid);
        }
        let remote_qp = RemoteQp { address: source, ca_guid: req.ca_guid, qpn: req.qpn };
        if let Some(stale) = self.table.by_remote_qp(&remote_qp) {
            self.refuse(out, source, mad, RejectReason::STALE_CONNECTION);
            self.disconnect_stale(out, stale);
            return Outcome::Dropped(Why::Stale);
        }
        if !self.admission.listens(req.service_id) {
            return self.on_unclaimed_req(out, source, mad, req);
        }
        let terms = match self.acceptable(req) {
            Ok(terms) => terms,
            Err(reason) => {
                self.refuse(out, source, mad, reason);
                return Outcome::Dropped(Why::Unacceptable);
            }
        };
        if self.table.is_full() || self.table.with_peer(source) >= self.config.limits.connections_per_source {
            self.refuse(out, source, mad, RejectReason::NO_RESOURCES);
            return Outcome::Dropped(Why::NoResources);
        }
        let Ok(id) = self.draw_id() else {
            self.refuse(out, source, mad, RejectReason::NO_RESOURCES);
            return Outcome::Dropped(Why::NoResources);
        };
        // Beyond its share a request is dropped in silence: its sender repeats it.
        if let Err(why) = self.admission.admit(source, req.service_id) {
            return Outcome::Dropped(why);
        }
        self.open(out, id, source, mad.transaction_id, req, terms);
        Outcome::Handled
    }

    /// Nobody listens: the request waits a while for somebody who does, then it is rejected.
    fn on_unclaimed_req(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, req: &Req) -> Outcome {
        let hold = self.config.hold_unclaimed;
        if hold.is_zero() || self.held.is_full() {
            self.refuse(out, source, mad, RejectReason::INVALID_SERVICE_ID);
            return Outcome::Dropped(Why::NoListener);
        }
        let asked =
            Asked::Connection(RemoteId { address: source, ca_guid: req.ca_guid, comm_id: req.local_comm_id });
        self.held.insert(asked, Held { source, service_id: req.service_id, mad: *mad }, out.now + hold);
        Outcome::Handled
    }

    /// What a REQ proposes, or why the device cannot serve it (IBA 12.6.7.2).
    fn acceptable(&self, req: &Req) -> Result<Terms, RejectReason> {
        let transport = Transport::from_wire(req.transport, req.extended_transport)
            .ok_or(RejectReason::INVALID_TRANSPORT)?;
        let path_mtu = path_mtu(req.path_mtu)
            .and_then(|bytes| Mtu::from_bytes(u32::from(bytes)))
            .filter(|mtu| *mtu <= self.config.max_mtu)
            .ok_or(RejectReason::INVALID_MTU)?;
        Ok(Terms {
            transport,
            qpn: req.qpn,
            starting_psn: req.starting_psn,
            path_mtu,
            pkey: req.pkey,
            responder_resources: req.initiator_depth,
            initiator_depth: req.responder_resources,
            retry_count: req.retry_count,
            rnr_retry_count: req.rnr_retry_count,
            flow_control: req.flow_control,
            srq: req.srq,
            capabilities: Capabilities::from_wire(req.ece, Tag::Req),
        })
    }

    fn open(
        &mut self,
        out: &mut Output<'_>,
        id: Id,
        source: IpAddr,
        transaction_id: u64,
        req: &Req,
        terms: Terms,
    ) {
        let mut connection = Connection::new(id, State::ReqRcvd, source, req.service_id, out.now);
        connection.transaction_id = transaction_id;
        connection.response = self.config.response(req.local_response_timeout);
        connection.service = bounded(req.remote_response_timeout);
        connection.timewait = bounded(req.primary.ack_timeout.max(self.config.ack_timeout(0)));
        connection.max_retries = req.max_cm_retries;
        connection.pending = true;
        connection.offered = terms.initiator_depth;
        connection.transport = terms.transport;
        connection.told_capabilities = terms.capabilities.is_some();
        connection.alternate = req.alternate != Path::NONE;
        let slow_at = out.now + connection.service / 2;
        out.tell(&connection, Event::ConnectRequest(asked_for(id, source, req, terms)));
        self.table.insert(connection);
        self.table.bind_remote(
            id,
            RemoteId { address: source, ca_guid: req.ca_guid, comm_id: req.local_comm_id },
            RemoteQp { address: source, ca_guid: req.ca_guid, qpn: req.qpn },
        );
        self.table.arm(id, slow_at);
    }
}

fn asked_for(id: Id, source: IpAddr, req: &Req, terms: Terms) -> ConnectRequest {
    ConnectRequest {
        id,
        service_id: req.service_id,
        source,
        ca_guid: req.ca_guid,
        terms,
        path: req.primary,
        private_data: PrivateData::received(&req.private_data),
    }
}

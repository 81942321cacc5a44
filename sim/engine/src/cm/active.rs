//! The side that asks for a connection (IBA 12.9.7.1).

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyverbs_wire::mad::{
    IpHeader, Message, Mra, Path, RejectReason, Rep, Repr, Req, Rtu, ServiceId, Subject,
};
use anyverbs_wire::{Psn, Qpn};

use super::config::bounded;
use super::counters::{Outcome, Why};
use super::error::Error;
use super::event::{Action, ConnectResponse, Event, Id, PrivateData};
use super::table::{Connection, RemoteId, RemoteQp};
use super::terms::{Capabilities, Tag, Terms, Transport};
use super::{Asked, ConnectionManager, Output, State, fixed, fixed_after, usable};
use crate::qp::Mtu;
use crate::time::Time;

/// LIDs on Ethernet: there are none.
const NO_LID: u16 = 0xffff;

/// What to ask for: the fields of a REQ.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Connect {
    /// Our address.
    pub source: IpAddr,
    /// The peer's address.
    pub destination: IpAddr,
    /// The service that is asked for.
    pub service_id: ServiceId,
    /// What we propose.
    pub terms: Terms,
    /// Flow label of the path: 20 bits.
    pub flow_label: u32,
    /// Traffic class of the path.
    pub traffic_class: u8,
    /// Hop limit of the path.
    pub hop_limit: u8,
    /// The header that librdmacm's peers expect before the private data (IBA A11).
    pub ip_header: Option<IpHeader>,
}

impl Connect {
    /// Asks for [`Terms::new`] by a path of default class.
    pub const fn new(
        source: IpAddr,
        destination: IpAddr,
        service_id: ServiceId,
        qpn: Qpn,
        starting_psn: Psn,
        path_mtu: Mtu,
    ) -> Self {
        Connect {
            source,
            destination,
            service_id,
            terms: Terms::new(qpn, starting_psn, path_mtu),
            flow_label: 0,
            traffic_class: 0,
            hop_limit: 64,
            ip_header: None,
        }
    }
}

impl ConnectionManager {
    /// Asks for a connection. What comes next is `ConnectResponse`, `Rejected` or `Unreachable`.
    ///
    /// There is room for 92 bytes of private data, with an [`IpHeader`] for 56.
    ///
    /// # Errors
    ///
    /// [`Error::QpnInUse`], [`Error::PrivateDataTooLong`], [`Error::TooManyConnections`],
    /// [`Error::NoFreeId`].
    pub fn connect(
        &mut self,
        now: Time,
        connect: &Connect,
        private_data: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<Id, Error> {
        let private_data = fixed_after(connect.ip_header.as_ref(), private_data)?;
        self.check_qpn(connect.terms.qpn)?;
        if self.table.is_full() {
            return Err(Error::TooManyConnections);
        }
        let id = self.draw_id()?;
        let peer = connect.destination.to_canonical();
        let ack_timeout = self.config.ack_timeout(0);
        let mut connection = Connection::new(id, State::ReqSent, peer, connect.service_id, now);
        connection.transaction_id = (self.entropy)();
        connection.response = self.config.response(self.config.response_timeout);
        connection.service = bounded(self.config.response_timeout);
        connection.timewait = bounded(ack_timeout);
        connection.max_retries = self.config.retries();
        connection.transport = connect.terms.transport;
        connection.told_capabilities = connect.terms.capabilities.is_some();
        let transaction_id = connection.transaction_id;
        self.table.insert(connection);
        self.table.bind_local(id, connect.terms.qpn);
        let req = self.req(connect, id, ack_timeout, private_data);
        let mad = Repr { transaction_id, status: 0, message: Message::Req(req) };
        self.request(&mut Output { now, actions }, id, State::ReqSent, mad);
        Ok(id)
    }

    fn req(&self, connect: &Connect, id: Id, ack_timeout: u8, private_data: [u8; 92]) -> Req {
        let terms = &connect.terms;
        let (transport, extended_transport) = terms.transport.to_wire();
        Req {
            local_comm_id: id.0,
            ece: Capabilities::to_wire(terms.capabilities, Tag::Req),
            service_id: connect.service_id,
            ca_guid: self.config.ca_guid,
            qkey: 0,
            qpn: terms.qpn,
            responder_resources: terms.responder_resources,
            initiator_depth: terms.initiator_depth,
            remote_response_timeout: self.config.response_timeout.min(31),
            transport,
            flow_control: terms.flow_control,
            starting_psn: terms.starting_psn,
            local_response_timeout: self.config.response_timeout.min(31),
            retry_count: terms.retry_count,
            pkey: terms.pkey,
            path_mtu: mtu_code(terms.path_mtu),
            rdc_exists: false,
            rnr_retry_count: terms.rnr_retry_count,
            max_cm_retries: self.config.retries(),
            srq: terms.srq,
            extended_transport,
            primary: Path {
                local_lid: NO_LID,
                remote_lid: NO_LID,
                local_gid: gid(connect.source),
                remote_gid: gid(connect.destination),
                flow_label: connect.flow_label & 0xf_ffff,
                packet_rate: 0,
                traffic_class: connect.traffic_class,
                hop_limit: connect.hop_limit,
                service_level: 0,
                subnet_local: connect.hop_limit <= 1,
                ack_timeout,
            },
            alternate: Path::NONE,
            private_data,
        }
    }

    /// The consumer's queue pair is ready: the connection stands. There is room for 224 bytes of private data.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`], [`Error::OutOfState`], [`Error::PrivateDataTooLong`].
    pub fn establish(
        &mut self,
        now: Time,
        id: Id,
        private_data: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        let private_data = fixed(private_data)?;
        let connection = self.table.get_mut(id).ok_or(Error::UnknownId)?;
        if !matches!(connection.state, State::RepRcvd | State::MraRepSent) {
            return Err(Error::OutOfState(connection.state));
        }
        let rtu = Rtu { local_comm_id: id.0, remote_comm_id: connection.remote_comm_id(), private_data };
        let mad = Repr { transaction_id: connection.transaction_id, status: 0, message: Message::Rtu(rtu) };
        connection.state = State::Established;
        connection.answer = Some(Box::new(mad));
        let peer = connection.peer;
        self.table.disarm(id);
        Output { now, actions }.send(&mut self.counters, peer, mad);
        Ok(())
    }

    /// REP: the peer accepts (IBA 12.6.8).
    pub(super) fn on_rep(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, rep: &Rep) -> Outcome {
        let state = match self.find(source, rep.remote_comm_id, None, Some(mad.transaction_id)) {
            Ok(connection) => connection.state,
            Err(Why::UnknownId) => return self.on_unexpected_rep(out, source, mad, rep),
            Err(why) => return Outcome::Dropped(why),
        };
        let id = Id(rep.remote_comm_id);
        if matches!(state, State::ReqSent | State::MraReqRcvd) {
            return self.on_first_rep(out, id, source, mad, rep);
        }
        let same = self.table.get(id).is_some_and(|connection| is_repeated(connection, rep));
        match state {
            State::RepRcvd | State::DreqSent if same => Outcome::Duplicate,
            // The RTU, or the MRA, was lost.
            State::MraRepSent | State::Established if same => self.repeat_answer(out, id),
            // Not again, but of another life of the peer, which cannot know this connection.
            State::TimeWait | State::RepRcvd | State::MraRepSent | State::Established | State::DreqSent => {
                self.on_unexpected_rep(out, source, mad, rep)
            }
            _ => Outcome::Dropped(Why::OutOfState),
        }
    }

    fn on_first_rep(
        &mut self,
        out: &mut Output<'_>,
        id: Id,
        source: IpAddr,
        mad: &Repr,
        rep: &Rep,
    ) -> Outcome {
        let remote_id = RemoteId { address: source, ca_guid: rep.ca_guid, comm_id: rep.local_comm_id };
        let Some(asked) = self.table.get(id) else { return Outcome::Dropped(Why::UnknownId) };
        let qpn = answering_qpn(asked, rep);
        let remote_qp = RemoteQp { address: source, ca_guid: rep.ca_guid, qpn };
        if !usable(qpn) {
            return Outcome::Dropped(Why::Invalid);
        }
        if let Some(stale) = self.table.by_remote_id(&remote_id) {
            // The peer restarted and uses an id again. Once the old connection is over, its REP will do.
            self.disconnect_stale(out, stale);
            return Outcome::Dropped(Why::Stale);
        }
        if let Some(stale) = self.table.by_remote_qp(&remote_qp) {
            return self.on_stale_rep(out, id, stale, source, mad, remote_id);
        }
        self.table.bind_remote(id, remote_id, remote_qp);
        let ack_timeout = self.config.ack_timeout(rep.target_ack_delay);
        let Some(connection) = self.table.get_mut(id) else {
            return Outcome::Dropped(Why::UnknownId);
        };
        connection.state = State::RepRcvd;
        connection.request = None;
        connection.remote_psn = Some(rep.starting_psn);
        connection.timewait = bounded(ack_timeout);
        // The peer waits for as long as our REQ told it to. An MRA has to come first.
        let slow_at = out.now + connection.service / 2;
        let response = ConnectResponse {
            id,
            ca_guid: rep.ca_guid,
            qpn,
            starting_psn: rep.starting_psn,
            responder_resources: rep.initiator_depth,
            initiator_depth: rep.responder_resources,
            rnr_retry_count: rep.rnr_retry_count,
            ack_timeout,
            flow_control: rep.flow_control,
            srq: rep.srq,
            capabilities: connection
                .told_capabilities
                .then(|| Capabilities::from_wire(rep.ece, Tag::Rep))
                .flatten(),
            private_data: PrivateData::received(&rep.private_data),
        };
        out.tell(connection, Event::ConnectResponse(response));
        self.table.arm(id, slow_at);
        Outcome::Handled
    }

    /// A REP whose queue pair is connected to another one of ours (IBA 12.9.8.3.1).
    fn on_stale_rep(
        &mut self,
        out: &mut Output<'_>,
        id: Id,
        stale: Id,
        source: IpAddr,
        mad: &Repr,
        remote_id: RemoteId,
    ) -> Outcome {
        let rej = self.refuse(out, source, mad, RejectReason::STALE_CONNECTION);
        self.keep_last_answer(out, Asked::Connection(remote_id), rej, Duration::ZERO);
        self.fail(out, id, RejectReason::STALE_CONNECTION, Subject::Rep);
        self.disconnect_stale(out, stale);
        Outcome::Dropped(Why::Stale)
    }

    /// A REP to a connection that is no more: the peer has to know, or it would wait for an RTU for ever.
    fn on_unexpected_rep(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, rep: &Rep) -> Outcome {
        let remote_id = RemoteId { address: source, ca_guid: rep.ca_guid, comm_id: rep.local_comm_id };
        if self.repeat_last_answer(out, source, mad, Asked::Connection(remote_id)) {
            return Outcome::Duplicate;
        }
        if !self.admission.take_token(out.now) {
            return Outcome::Dropped(Why::Throttled);
        }
        self.refuse(out, source, mad, RejectReason::INVALID_COMM_ID);
        Outcome::Dropped(Why::UnknownId)
    }

    /// MRA: the answer takes longer (IBA 12.6.6).
    pub(super) fn on_mra(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, mra: &Mra) -> Outcome {
        let theirs = (mra.subject != Subject::Req).then_some(mra.local_comm_id);
        let connection = match self.find(source, mra.remote_comm_id, theirs, Some(mad.transaction_id)) {
            Ok(connection) => connection,
            Err(why) => return Outcome::Dropped(why),
        };
        let state = match (connection.state, mra.subject) {
            (State::ReqSent, Subject::Req) => State::MraReqRcvd,
            (State::RepSent, Subject::Rep) => State::MraRepRcvd,
            (State::MraReqRcvd, Subject::Req) | (State::MraRepRcvd, Subject::Rep) => {
                return Outcome::Duplicate;
            }
            _ => return Outcome::Dropped(Why::OutOfState),
        };
        let (id, deadline) = (connection.id, out.now + bounded(mra.service_timeout) + connection.response);
        if let Some(connection) = self.table.get_mut(id) {
            connection.state = state;
        }
        self.table.arm(id, deadline);
        Outcome::Handled
    }
}

/// The queue pair of a REP. An XRC target names it in another place, as the kernel does.
fn answering_qpn(asked: &Connection, rep: &Rep) -> Qpn {
    if asked.transport == Transport::Xrc { rep.ee_context } else { rep.qpn }
}

/// Whether a REP is the one that we know. A peer that restarts may answer our REQ again, with an id that it
/// has used before.
fn is_repeated(connection: &Connection, rep: &Rep) -> bool {
    connection.remote_comm_id() == rep.local_comm_id
        && connection.remote_qpn() == answering_qpn(connection, rep)
        && connection.remote_psn == Some(rep.starting_psn)
}

/// The GID of an address: IPv4 is mapped.
fn gid(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// The code of an MTU, 1 to 5.
fn mtu_code(mtu: Mtu) -> u8 {
    match mtu {
        Mtu::B256 => 1,
        Mtu::B512 => 2,
        Mtu::B1024 => 3,
        Mtu::B2048 => 4,
        Mtu::B4096 => 5,
    }
}

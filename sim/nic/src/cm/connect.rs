//! Asking a peer for a connection.

use std::net::IpAddr;
use std::task::Waker;

use anyverbs_engine::cm::{Connect, Event, Terms, Transport};
use anyverbs_engine::{Mtu, Time};
use anyverbs_wire::mad::{IpHeader, ServiceId};
use anyverbs_wire::{Psn, Qpn};

use super::config::has_ip_header;
use super::connection::{ConnectError, Connection};
use super::handle::Handle;
use super::mailbox::Notice;
use super::state::{Owner, Role};
use super::terms::Readying;
use crate::attributes::RD_ATOMIC_MAX;
use crate::core::Core;
use crate::error::{NicError, in_range};
use crate::nic::Nic;
use crate::queue_pair::{Qp, RtrAttributes, RtsAttributes};

/// Timer code of RNR NAKs unless the program chooses: 0.64 ms.
pub(super) const MIN_RNR_TIMER: u8 = 12;

/// What to ask a peer for (`rdma_conn_param`).
#[derive(Clone, Copy, Debug)]
pub struct ConnectParams<'a> {
    /// The peer's GID, which is its address.
    pub peer: IpAddr,
    /// The service.
    pub service: ServiceId,
    /// For the peer's program: up to 92 bytes, or 56 for a service of librdmacm's.
    pub private_data: &'a [u8],
    /// Our port, which such a service's request names.
    pub source_port: u16,
    /// READs and atomics of the peer that may be outstanding.
    pub responder_resources: u8,
    /// READs and atomics that we may have outstanding.
    pub initiator_depth: u8,
    /// `retry_cnt` of both queue pairs, 0..=7.
    pub retry_count: u8,
    /// The peer's `rnr_retry`, 0..=6; 7: for ever.
    pub rnr_retry_count: u8,
    /// We do end-to-end flow control.
    pub flow_control: bool,
    /// The queue pair is on a shared receive queue.
    pub srq: bool,
    /// The transport service of the queue pair.
    pub transport: Transport,
    /// The path MTU, if not the largest of which packets reach the peer whole.
    pub path_mtu: Option<Mtu>,
    /// Timer code of our RNR NAKs, 0..=31.
    pub min_rnr_timer: u8,
}

impl<'a> ConnectParams<'a> {
    /// A reliable connection with one READ or atomic at once each way.
    pub fn new(peer: IpAddr, service: ServiceId) -> Self {
        ConnectParams {
            peer,
            service,
            private_data: &[],
            source_port: 0,
            responder_resources: 1,
            initiator_depth: 1,
            retry_count: 7,
            rnr_retry_count: 7,
            flow_control: true,
            srq: false,
            transport: Transport::Rc,
            path_mtu: None,
            min_rnr_timer: MIN_RNR_TIMER,
        }
    }

    /// The same with private data.
    pub fn private_data(self, private_data: &'a [u8]) -> Self {
        ConnectParams { private_data, ..self }
    }

    fn check(&self) -> Result<(), NicError> {
        let rd_atomic_max = u64::from(RD_ATOMIC_MAX);
        in_range("responder_resources", u64::from(self.responder_resources), 0, rd_atomic_max)?;
        in_range("initiator_depth", u64::from(self.initiator_depth), 0, rd_atomic_max)?;
        in_range("retry_count", u64::from(self.retry_count), 0, 7)?;
        in_range("rnr_retry_count", u64::from(self.rnr_retry_count), 0, 7)?;
        in_range("min_rnr_timer", u64::from(self.min_rnr_timer), 0, 31)
    }
}

/// Our end of a connection that would be.
#[derive(Clone, Copy)]
struct End {
    qpn: u32,
    psn: u32,
    /// The NIC moves the queue pair through its states.
    readied: bool,
}

impl Nic {
    /// Asks a peer to connect a queue pair in the Init state (`rdma_connect`). When it accepts, the queue
    /// pair goes to ReadyToSend and the connection stands. Receives may be posted before.
    ///
    /// # Errors
    /// [`NicError::State`] and [`NicError::Transport`] if the queue pair is not in Init or of another type,
    /// [`NicError::OutOfRange`],
    /// [`NicError::AddressFamily`] and [`NicError::PathMtu`] for what the device cannot ask for,
    /// [`NicError::OtherDevice`], [`NicError::Cm`] for too much private data, a queue pair whose last
    /// connection is in timewait, or if there is no room.
    pub fn connect(&self, qp: &Qp, params: &ConnectParams<'_>) -> Result<Connecting, NicError> {
        if !self.is_same(qp.nic()) {
            return Err(NicError::OtherDevice { object: "queue pair" });
        }
        self.ask(End { qpn: qp.qpn(), psn: qp.initial_psn(), readied: true }, params)
    }

    /// Asks a peer to connect a queue pair that the program moves through its states itself: it makes
    /// [`Connection`] stand by [`Connection::establish`].
    ///
    /// # Errors
    /// As those of [`connect`](Nic::connect), but for the state of the queue pair.
    pub fn connect_by_number(
        &self,
        qpn: u32,
        starting_psn: u32,
        params: &ConnectParams<'_>,
    ) -> Result<Connecting, NicError> {
        self.ask(End { qpn, psn: starting_psn, readied: false }, params)
    }

    fn ask(&self, end: End, params: &ConnectParams<'_>) -> Result<Connecting, NicError> {
        params.check()?;
        let own = self.attributes().gid;
        if params.peer.is_ipv4() != own.is_ipv4() {
            return Err(NicError::AddressFamily { peer: params.peer, own });
        }
        let (handle, readying) = self.control(|core| core.ask(self, end, params))?;
        Ok(Connecting { handle: Some(handle), readying, qpn: end.qpn })
    }
}

impl Core {
    fn ask(
        &mut self,
        nic: &Nic,
        end: End,
        params: &ConnectParams<'_>,
    ) -> Result<(Handle, Readying), NicError> {
        if end.readied {
            self.check_init(end.qpn, params.transport)?;
        }
        let path_mtu = self.offered_mtu(params)?;
        let own = self.cm.device.gid;
        let (qpn, psn) = (Qpn::new(end.qpn), Psn::new(end.psn));
        let header = IpHeader { source: own, destination: params.peer, source_port: params.source_port };
        let connect = Connect {
            terms: Terms {
                transport: params.transport,
                responder_resources: params.responder_resources,
                initiator_depth: params.initiator_depth,
                retry_count: params.retry_count,
                rnr_retry_count: params.rnr_retry_count,
                flow_control: params.flow_control,
                srq: params.srq,
                ..Terms::new(qpn, psn, path_mtu)
            },
            ip_header: has_ip_header(params.service).then_some(header),
            ..Connect::new(own, params.peer, params.service, qpn, psn, path_mtu)
        };
        let readying = Readying {
            peer: params.peer,
            path_mtu,
            min_rnr_timer: params.min_rnr_timer,
            sq_psn: end.psn,
            responder_resources: params.responder_resources,
            initiator_depth: params.initiator_depth,
            retry_cnt: params.retry_count,
        };
        let now = self.waiter.now();
        let asked = self.cm.engine.connect(now, &connect, params.private_data, &mut self.cm.actions);
        let id = asked.map_err(NicError::cm("asking for a connection"))?;
        let role = Role::Asking(end.readied.then(|| Box::new(readying)));
        let qpn = end.readied.then_some(end.qpn);
        let owner = Owner { mailbox: Default::default(), qpn, role };
        let handle = Handle { nic: nic.clone(), id, mailbox: owner.mailbox.clone() };
        self.cm.owners.insert(id, owner);
        self.carry_out_cm(now);
        Ok((handle, readying))
    }

    /// The path MTU that is asked for, or the largest that there is.
    fn offered_mtu(&self, params: &ConnectParams<'_>) -> Result<Mtu, NicError> {
        let peer = params.peer;
        let max_datagram = self.link.path_max_datagram(peer);
        let largest = self.largest_mtu(peer).ok_or(NicError::PathMtu {
            peer,
            given: 256,
            fits: None,
            carried: max_datagram,
        })?;
        let wanted = params.path_mtu.unwrap_or(largest);
        in_range("path_mtu", u64::from(wanted.bytes()), 256, u64::from(largest.bytes()))?;
        Ok(wanted)
    }
}

/// A request of ours that is not answered. If it is dropped, it is taken back.
pub struct Connecting {
    /// `None`: it was answered.
    handle: Option<Handle>,
    readying: Readying,
    qpn: u32,
}

impl Connecting {
    /// The queue pair.
    pub fn qpn(&self) -> u32 {
        self.qpn
    }

    /// What became of the request; `None`: nothing yet, or it was told already. If nothing has happened,
    /// the NIC makes progress inline, on the calling thread.
    pub fn poll(&mut self) -> Option<Result<Connection, ConnectError>> {
        let notice = self.handle.as_ref()?.poll()?;
        self.on_notice(notice)
    }

    /// Sleeps until the peer has answered or `deadline` has passed. `None` waits without a limit: for a
    /// peer that does not answer, `response_timeout` x (`max_retries` + 1) ([`CmConfig`](super::CmConfig)).
    pub fn wait(&mut self, deadline: Option<Time>) -> Option<Result<Connection, ConnectError>> {
        let notice = self.handle.as_ref()?.wait(deadline)?;
        self.on_notice(notice)
    }

    /// Wakes `waker` when there is an answer. It is called while the NIC makes progress, so it must not
    /// call the NIC.
    pub fn set_waker(&self, waker: &Waker) {
        if let Some(handle) = &self.handle {
            handle.set_waker(waker);
        }
    }

    fn on_notice(&mut self, notice: Notice) -> Option<Result<Connection, ConnectError>> {
        let error = match notice {
            Notice::NotReady(error) => ConnectError::NotReady(error),
            Notice::Event(event) => match *event {
                Event::ConnectResponse(response) => {
                    let handle = self.handle.take()?;
                    let answer = Answer { response: Box::new(response), readying: self.readying };
                    return Some(Ok(Connection::new(handle, self.readying.peer, self.qpn, Some(answer))));
                }
                Event::Rejected(rejected) => ConnectError::Rejected(Box::new(rejected)),
                // The others belong to connections that stand.
                _ => ConnectError::Unreachable,
            },
        };
        self.handle = None;
        Some(Err(error))
    }
}

/// How a peer accepted.
pub(super) struct Answer {
    pub(super) response: Box<anyverbs_engine::cm::ConnectResponse>,
    readying: Readying,
}

impl Answer {
    pub(super) fn rtr(&self) -> RtrAttributes {
        self.readying.rtr(&self.response)
    }

    pub(super) fn rts(&self) -> RtsAttributes {
        self.readying.rts(&self.response)
    }
}

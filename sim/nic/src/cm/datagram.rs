//! Datagram services: which queue pair takes a service's datagrams (SIDR).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Waker;

use anyverbs_engine::Time;
use anyverbs_engine::cm::{self, Event, SidrAnswer, SidrAsk, SidrReply};
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{IpHeader, ServiceId, SidrStatus};

use super::config::has_ip_header;
use super::handle::Handle;
use super::listener::Service;
use super::mailbox::{Notice, Requests, poll, wait};
use super::state::{Door, Owner, Role};
use crate::error::NicError;
use crate::nic::Nic;

/// The Q_Key of all of librdmacm's datagram services (`RDMA_UDP_QKEY`).
pub const UD_QKEY: u32 = 0x0123_4567;

/// The default partition, full membership.
const PKEY: u16 = 0xffff;

/// What to ask a peer for.
#[derive(Clone, Copy, Debug)]
pub struct UdParams<'a> {
    /// The peer's GID, which is its address.
    pub peer: IpAddr,
    /// The service.
    pub service: ServiceId,
    /// For the peer's program: up to 216 bytes, or 180 for a service of librdmacm's.
    pub private_data: &'a [u8],
    /// Our port, which such a service's request names.
    pub source_port: u16,
}

impl Nic {
    /// Asks a peer for the queue pair of a datagram service.
    ///
    /// # Errors
    /// [`NicError::AddressFamily`], [`NicError::Cm`] for too much private data, or if there is no room.
    pub fn resolve_ud(&self, params: &UdParams<'_>) -> Result<Resolving, NicError> {
        let (own, peer) = (self.attributes().gid, params.peer);
        if peer.is_ipv4() != own.is_ipv4() {
            return Err(NicError::AddressFamily { peer, own });
        }
        let header = IpHeader { source: own, destination: peer, source_port: params.source_port };
        let ask = SidrAsk {
            destination: peer,
            service_id: params.service,
            pkey: PKEY,
            ip_header: has_ip_header(params.service).then_some(header),
        };
        let handle = self.control(|core| {
            let (now, cm) = (core.waiter.now(), &mut core.cm);
            let id = cm
                .engine
                .sidr_request(now, &ask, params.private_data, &mut cm.actions)
                .map_err(NicError::cm("resolving a datagram service"))?;
            let owner = Owner { mailbox: Arc::default(), qpn: None, role: Role::Resolving };
            let handle = Handle { nic: self.clone(), id, mailbox: Arc::clone(&owner.mailbox) };
            cm.owners.insert(id, owner);
            core.carry_out_cm(now);
            Ok(handle)
        })?;
        Ok(Resolving { handle })
    }

    /// Answers requests for a datagram service; see [`Nic::listen`].
    ///
    /// # Errors
    /// Those of [`Nic::listen`].
    pub fn listen_ud(&self, service: ServiceId, backlog: u32) -> Result<UdListener, NicError> {
        let requests = Arc::new(Requests::new());
        let service = Service::open(self, service, backlog, Door::Datagrams(Arc::clone(&requests)))?;
        Ok(UdListener { service, requests })
    }
}

/// A question that is not answered. If it is dropped, it is asked no more.
pub struct Resolving {
    handle: Handle,
}

impl Resolving {
    /// The answer: queue pair and Q_Key mean something if its status is [`SidrStatus::VALID`].
    /// `Some(None)`: the peer does not answer. `None`: nothing yet, or it was told already. If nothing has
    /// happened the NIC makes progress inline, on the calling thread.
    pub fn poll(&self) -> Option<Option<SidrReply>> {
        self.handle.poll().map(reply)
    }

    /// Sleeps until there is an answer or `deadline` has passed. `None` waits without a limit.
    pub fn wait(&self, deadline: Option<Time>) -> Option<Option<SidrReply>> {
        self.handle.wait(deadline).map(reply)
    }

    /// Wakes `waker` when there is an answer. It is called while the NIC makes progress, so it must not
    /// call the NIC.
    pub fn set_waker(&self, waker: &Waker) {
        self.handle.set_waker(waker);
    }
}

fn reply(notice: Notice) -> Option<SidrReply> {
    match notice {
        Notice::Event(event) => match *event {
            Event::SidrReply(reply) => Some(reply),
            _ => None,
        },
        Notice::NotReady(_) => None,
    }
}

/// A datagram service that is listened on. When it is dropped the service is closed, and requests that were
/// not taken are refused.
pub struct UdListener {
    service: Service,
    requests: Arc<Requests<cm::SidrRequest>>,
}

impl UdListener {
    /// The service.
    pub fn service(&self) -> ServiceId {
        self.service.id
    }

    /// Takes a request, if there is one. If there is none, the NIC makes progress inline, on the calling
    /// thread.
    pub fn poll(&self) -> Option<UdRequest> {
        poll(&self.service.nic, || self.take())
    }

    /// Sleeps until there is a request or `deadline` has passed. `None` waits without a limit.
    pub fn wait(&self, deadline: Option<Time>) -> Option<UdRequest> {
        wait(&self.service.nic, deadline, || !self.requests.is_empty(), || self.take())
    }

    /// Wakes `waker` for each request that comes; at once if there is one. It is called while the NIC
    /// makes progress, so it must not call the NIC.
    pub fn set_waker(&self, waker: &Waker) {
        self.requests.set_waker(waker);
    }

    fn take(&self) -> Option<UdRequest> {
        self.service.take(&self.requests).map(|(handle, request)| UdRequest { handle, request })
    }
}

/// A peer that asks for the queue pair of a datagram service. If it is dropped without an answer, it is
/// refused.
pub struct UdRequest {
    handle: Handle,
    request: cm::SidrRequest,
}

impl UdRequest {
    /// Where the request comes from: the peer's GID.
    pub fn peer(&self) -> IpAddr {
        self.request.source
    }

    /// The service that it is for.
    pub fn service(&self) -> ServiceId {
        self.request.service_id
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

    /// Tells the queue pair and its Q_Key, with up to 136 bytes of private data.
    ///
    /// # Errors
    /// [`NicError::Cm`]: too much private data, or the request is too old.
    pub fn accept(&self, qpn: u32, qkey: u32, private_data: &[u8]) -> Result<(), NicError> {
        self.answer(SidrStatus::VALID, qpn, qkey, private_data)
    }

    /// Says no, with up to 136 bytes of private data.
    ///
    /// # Errors
    /// [`NicError::Cm`]: too much private data, or the request is too old.
    pub fn reject(&self, status: SidrStatus, private_data: &[u8]) -> Result<(), NicError> {
        self.answer(status, 0, 0, private_data)
    }

    fn answer(&self, status: SidrStatus, qpn: u32, qkey: u32, private_data: &[u8]) -> Result<(), NicError> {
        const ACTION: &str = "answering for a datagram service";
        let answer = SidrAnswer { status, qpn: Qpn::new(qpn), qkey, info: &[] };
        self.handle.call(ACTION, |core, now| {
            let cm = &mut core.cm;
            cm.engine
                .sidr_reply(now, self.handle.id, &answer, private_data, &mut cm.actions)
                .map_err(NicError::cm(ACTION))?;
            cm.end(self.handle.id);
            Ok(())
        })
    }
}

impl fmt::Debug for UdRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.request.fmt(f)
    }
}

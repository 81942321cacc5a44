//! Waiting for peers that want to connect.

use std::sync::Arc;
use std::task::Waker;

use anyverbs_engine::Time;
use anyverbs_engine::cm;
use anyverbs_wire::mad::{PortSpace, ServiceId};
use rand_core::Rng;

use super::handle::Handle;
use super::mailbox::{Requests, poll, wait};
use super::request::ConnectRequest;
use super::state::Door;
use crate::core::Core;
use crate::error::{NicError, in_range};
use crate::nic::Nic;

/// Unanswered requests of a listener, at most.
const BACKLOG_MAX: u64 = 1 << 16;

/// The first port, and the common bits, of those that are for nobody in particular.
const DYNAMIC_PORTS: u16 = 0xc000;

/// How many ports are tried.
const TRIES: u32 = 256;

/// A service that is listened on. When it is dropped the service is closed, and requests that were not
/// taken are rejected.
pub struct Listener {
    service: Service,
    requests: Arc<Requests<cm::ConnectRequest>>,
}

impl Nic {
    /// Listens on a service (`rdma_listen`). Up to `backlog` requests that are not settled are taken at
    /// once; what is beyond is dropped, and its sender repeats it.
    ///
    /// # Errors
    /// [`NicError::Cm`] if this device listens on the service or has too many listeners,
    /// [`NicError::ServiceTaken`] if another process at this address has it, [`NicError::OutOfRange`] for
    /// a backlog of nothing or above 65536.
    pub fn listen(&self, service: ServiceId, backlog: u32) -> Result<Listener, NicError> {
        let requests = Arc::new(Requests::new());
        let service = Service::open(self, service, backlog, Door::Connections(Arc::clone(&requests)))?;
        Ok(Listener { service, requests })
    }

    /// Listens on a port that is free, of those that are for nobody in particular (RFC 6335): that of
    /// [`Listener::service`].
    ///
    /// # Errors
    /// Those of [`listen`](Nic::listen), if it finds no port.
    pub fn listen_any(&self, space: PortSpace, backlog: u32) -> Result<Listener, NicError> {
        let mut tries = 0;
        loop {
            let port = self.control(|core| core.rng.next_u32()) as u16 | DYNAMIC_PORTS;
            match self.listen(ServiceId::new(space, port), backlog) {
                Err(NicError::Cm { source: cm::Error::ServiceInUse, .. } | NicError::ServiceTaken { .. })
                    if tries < TRIES =>
                {
                    tries += 1;
                }
                done => return done,
            }
        }
    }
}

impl Listener {
    /// The service.
    pub fn service(&self) -> ServiceId {
        self.service.id
    }

    /// Takes a request, if there is one. If there is none, the NIC makes progress inline, on the calling
    /// thread.
    pub fn poll(&self) -> Option<ConnectRequest> {
        poll(&self.service.nic, || self.take())
    }

    /// Sleeps until there is a request or `deadline` has passed. `None` waits without a limit.
    pub fn wait(&self, deadline: Option<Time>) -> Option<ConnectRequest> {
        wait(&self.service.nic, deadline, || !self.requests.is_empty(), || self.take())
    }

    /// Wakes `waker` for each request that comes; at once if there is one. It is called while the NIC
    /// makes progress, so it must not call the NIC.
    pub fn set_waker(&self, waker: &Waker) {
        self.requests.set_waker(waker);
    }

    fn take(&self) -> Option<ConnectRequest> {
        self.service.take(&self.requests).map(|(handle, request)| ConnectRequest::new(handle, request))
    }
}

/// A service that is open.
pub(super) struct Service {
    pub(super) nic: Nic,
    pub(super) id: ServiceId,
}

impl Service {
    pub(super) fn open(nic: &Nic, id: ServiceId, backlog: u32, door: Door) -> Result<Self, NicError> {
        in_range("backlog", u64::from(backlog), 1, BACKLOG_MAX)?;
        nic.control(|core| core.open_service(id, backlog as usize, door))?;
        Ok(Service { nic: nic.clone(), id })
    }

    /// Takes the next request that its sender has not taken back.
    pub(super) fn take<T>(&self, requests: &Requests<T>) -> Option<(Handle, T)> {
        // One probe without the token, for those who poll.
        if requests.is_empty() {
            return None;
        }
        self.nic.control(|core| {
            let (id, request) = requests.take()?;
            let mailbox = Arc::clone(&core.cm.owners.get(&id)?.mailbox);
            Some((Handle { nic: self.nic.clone(), id, mailbox }, request))
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.nic.control(|core| core.close_service(self.id));
    }
}

impl Core {
    fn open_service(&mut self, id: ServiceId, backlog: usize, door: Door) -> Result<(), NicError> {
        const ACTION: &str = "listening";
        if self.cm.doors.contains_key(&id) {
            return Err(NicError::cm(ACTION)(cm::Error::ServiceInUse));
        }
        self.link.claim_service(id.0).map_err(|source| NicError::ServiceTaken { service: id, source })?;
        let now = self.waiter.now();
        if let Err(error) = self.cm.engine.listen(now, id, backlog, &mut self.cm.actions) {
            self.link.release_service(id.0);
            return Err(NicError::cm(ACTION)(error));
        }
        self.cm.doors.insert(id, door);
        // What came before anybody listened.
        self.carry_out_cm(now);
        Ok(())
    }

    fn close_service(&mut self, id: ServiceId) {
        let Some(door) = self.cm.doors.remove(&id) else { return };
        // It is open, so it is listened on.
        let _ = self.cm.engine.unlisten(id);
        self.link.release_service(id.0);
        let ids = std::iter::from_fn(|| match &door {
            Door::Connections(requests) => requests.take().map(|(id, _)| id),
            Door::Datagrams(requests) => requests.take().map(|(id, _)| id),
        });
        for id in ids {
            if let Some(owner) = self.cm.owners.get(&id) {
                let mailbox = Arc::clone(&owner.mailbox);
                self.let_go(id, &mailbox);
            }
        }
    }
}

//! The connection manager under the progress token, and who hears what it says.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyverbs_engine::cm::{
    self, Action, ConnectResponse, ConnectionManager, Event, Id, SidrAnswer, SidrRequest, State,
};
use anyverbs_engine::{Mtu, QpState, Time};
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{RejectReason, ServiceId, SidrStatus};
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;

use super::mailbox::{Mailbox, Notice, Requests};
use super::terms::{Readying, mtu_code};
use crate::attributes::{DeviceAttributes, NicConfig, path_mtu};
use crate::core::Core;
use crate::link::LinkInfo;
use crate::queue_pair::RtsAttributes;

/// Keeps what the connection manager draws apart from what everything else draws from the same seed.
const STREAM: u64 = 1;

/// The connection manager of a device.
pub(crate) struct Cm {
    pub(super) engine: ConnectionManager,
    pub(super) actions: Vec<Action>,
    pub(super) owners: BTreeMap<Id, Owner>,
    pub(super) doors: BTreeMap<ServiceId, Door>,
    pub(super) device: DeviceAttributes,
    /// Of the next MAD.
    pub(super) next_psn: u32,
    /// Queue pairs that wait for their peer's RTU and got a first packet instead.
    pub(crate) established: Vec<u32>,
    deadline: Option<Time>,
    /// Somebody was told something since this was last looked at.
    told: bool,
}

/// Who answers for an id.
pub(super) struct Owner {
    pub(super) mailbox: Arc<Mailbox>,
    /// The queue pair that is connected, or to be, if the NIC moves it through its states.
    pub(super) qpn: Option<u32>,
    pub(super) role: Role,
}

pub(super) enum Role {
    /// We asked a peer. When it accepts the queue pair is readied, unless the program does that.
    Asking(Option<Box<Readying>>),
    /// A peer asked.
    Asked(ServiceId),
    /// We accepted. When the connection stands the queue pair is readied, unless the program did that.
    Accepted(Option<RtsAttributes>),
    /// It stands.
    Connected,
    /// A datagram service, which we asked for.
    Resolving,
    /// A datagram service, which a peer asks for.
    Resolved(ServiceId),
}

/// Where requests for a service go.
pub(super) enum Door {
    Connections(Arc<Requests<cm::ConnectRequest>>),
    Datagrams(Arc<Requests<SidrRequest>>),
}

impl Door {
    fn remove(&self, id: Id) {
        match self {
            Door::Connections(requests) => requests.remove(id),
            Door::Datagrams(requests) => requests.remove(id),
        }
    }
}

impl Cm {
    pub(crate) fn new(
        config: &NicConfig,
        device: &DeviceAttributes,
        link: &LinkInfo,
        rng: &ChaCha20Rng,
    ) -> Self {
        let mut rng = rng.clone();
        rng.set_stream(STREAM);
        let next_psn = rng.next_u32();
        let engine = config.engine(device, link);
        Cm {
            engine: ConnectionManager::new(engine, Box::new(move || rng.next_u64())),
            actions: Vec::new(),
            owners: BTreeMap::new(),
            doors: BTreeMap::new(),
            device: device.clone(),
            next_psn,
            established: Vec::new(),
            deadline: None,
            told: false,
        }
    }

    /// Whether a connection, maybe one that is over, still has this number, so that no other queue pair
    /// may get it: late packets of the old one would be taken for its own.
    pub(crate) fn holds(&self, qpn: u32) -> bool {
        self.engine.holds_qpn(Qpn::new(qpn))
    }

    /// When there is something to do although nothing arrives.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// Whether somebody was told something since this was last asked.
    pub(crate) fn take_told(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    pub(super) fn put(&mut self, id: Id, notice: Notice) {
        if let Some(owner) = self.owners.get(&id) {
            owner.mailbox.put(notice);
            self.told = true;
        }
    }

    /// An id means nothing any more.
    pub(super) fn end(&mut self, id: Id) {
        if let Some(owner) = self.owners.remove(&id) {
            owner.mailbox.end();
        }
    }

    fn own(&mut self, id: Id, role: Role) {
        self.owners.insert(id, Owner { mailbox: Arc::default(), qpn: None, role });
        self.told = true;
    }
}

impl Core {
    /// Does what is due, and what the packets of this pass lead to.
    pub(crate) fn serve_cm(&mut self, now: Time) {
        let due = self.cm.deadline.is_some_and(|deadline| deadline <= now);
        if !due && self.cm.established.is_empty() {
            return;
        }
        while let Some(qpn) = self.cm.established.pop() {
            self.cm.engine.communication_established(now, Qpn::new(qpn), &mut self.cm.actions);
        }
        if due {
            self.cm.engine.on_timer(now, &mut self.cm.actions);
        }
        self.carry_out_cm(now);
    }

    /// Carries out what the connection manager asks for, in order.
    pub(super) fn carry_out_cm(&mut self, now: Time) {
        while !self.cm.actions.is_empty() {
            let mut actions = std::mem::take(&mut self.cm.actions);
            for action in actions.drain(..) {
                match action {
                    Action::SendMad { destination, mad } => self.send_mad(destination, &mad, now),
                    Action::Event(event) => self.on_cm_event(event, now),
                }
            }
            // Events may have led to further actions. Otherwise the memory is used again.
            if self.cm.actions.is_empty() {
                self.cm.actions = actions;
            }
        }
        self.cm.deadline = self.cm.engine.next_deadline();
    }

    fn on_cm_event(&mut self, event: Event, now: Time) {
        let id = event.id();
        match event {
            Event::ConnectRequest(request) => return self.on_connect_request(request, now),
            Event::SidrRequest(request) => return self.on_sidr_request(request, now),
            Event::ConnectResponse(response) => return self.on_connect_response(response, now),
            Event::Established { .. } => {
                if !self.stands(id, now) {
                    return;
                }
            }
            // The queue pair ends before the answer leaves that starts the peer's timewait.
            Event::Disconnected { .. } => self.end_queue_pair(id),
            Event::Rejected(_) | Event::Unreachable { .. } => {
                let role = self.cm.owners.get(&id).map(|owner| &owner.role);
                if matches!(role, Some(Role::Accepted(_) | Role::Connected)) {
                    self.end_queue_pair(id);
                }
                self.forget_request(id);
            }
            Event::TimewaitExit { .. } => self.forget_request(id),
            Event::SidrReply(_) => {}
        }
        let last = match &event {
            Event::TimewaitExit { .. } | Event::SidrReply(_) => true,
            // Resolutions have no timewait.
            Event::Unreachable { .. } => self.cm.engine.state(id).is_none() && self.is_resolution(id),
            _ => false,
        };
        let notice = Notice::Event(Box::new(event));
        if !last {
            self.cm.put(id, notice);
        } else if let Some(owner) = self.cm.owners.remove(&id) {
            owner.mailbox.put_last(notice);
            self.cm.told = true;
        }
    }

    fn is_resolution(&self, id: Id) -> bool {
        let role = self.cm.owners.get(&id).map(|owner| &owner.role);
        matches!(role, Some(Role::Resolving | Role::Resolved(_)))
    }

    /// A peer wants to connect.
    fn on_connect_request(&mut self, request: cm::ConnectRequest, now: Time) {
        let id = request.id;
        let reason = match self.cm.doors.get(&request.service_id) {
            Some(Door::Connections(requests)) => match self.largest_mtu(request.source) {
                // A packet may have the whole path MTU, and this end has to take it.
                Some(mtu) if request.terms.path_mtu <= mtu => {
                    let requests = Arc::clone(requests);
                    self.cm.own(id, Role::Asked(request.service_id));
                    requests.put(id, request);
                    return;
                }
                mtu => (RejectReason::INVALID_MTU, mtu.map(mtu_code)),
            },
            _ => (RejectReason::INVALID_SERVICE_ID, None),
        };
        let info = reason.1.as_slice();
        // Of the errors none is possible: the request came this moment.
        let _ = self.cm.engine.reject(now, id, reason.0, info, &[], &mut self.cm.actions);
    }

    /// A peer wants to know the queue pair of a datagram service.
    fn on_sidr_request(&mut self, request: SidrRequest, now: Time) {
        let id = request.id;
        if let Some(Door::Datagrams(requests)) = self.cm.doors.get(&request.service_id) {
            let requests = Arc::clone(requests);
            self.cm.own(id, Role::Resolved(request.service_id));
            requests.put(id, request);
            return;
        }
        let none = SidrAnswer { status: SidrStatus::UNSUPPORTED, qpn: Qpn::new(0), qkey: 0, info: &[] };
        // As above.
        let _ = self.cm.engine.sidr_reply(now, id, &none, &[], &mut self.cm.actions);
    }

    /// A peer accepts.
    fn on_connect_response(&mut self, response: ConnectResponse, now: Time) {
        let id = response.id;
        let Some(owner) = self.cm.owners.get_mut(&id) else { return };
        let (qpn, role) = (owner.qpn, std::mem::replace(&mut owner.role, Role::Connected));
        if let (Role::Asking(Some(readying)), Some(qpn)) = (role, qpn) {
            let ready = self
                .ready_to_receive(qpn, &readying.rtr(&response))
                .and_then(|()| self.ready_to_send(qpn, &readying.rts(&response)));
            if let Err(error) = ready {
                // Whatever has become of the queue pair, it is not connected by this.
                self.cm.put(id, Notice::NotReady(error));
                let reason = RejectReason::CONSUMER;
                let _ = self.cm.engine.reject(now, id, reason, &[], &[], &mut self.cm.actions);
                return;
            }
            let _ = self.cm.engine.establish(now, id, &[], &mut self.cm.actions);
        }
        self.cm.put(id, Notice::Event(Box::new(Event::ConnectResponse(response))));
    }

    /// A connection that we accepted stands. False if its queue pair could not be readied.
    fn stands(&mut self, id: Id, now: Time) -> bool {
        let Some(owner) = self.cm.owners.get_mut(&id) else { return true };
        let (qpn, role) = (owner.qpn, std::mem::replace(&mut owner.role, Role::Connected));
        let (Role::Accepted(Some(attributes)), Some(qpn)) = (role, qpn) else { return true };
        match self.ready_to_send(qpn, &attributes) {
            Ok(()) => true,
            Err(error) => {
                self.cm.put(id, Notice::NotReady(error));
                self.end_queue_pair(id);
                let _ = self.cm.engine.disconnect(now, id, &[], &mut self.cm.actions);
                false
            }
        }
    }

    /// Moves the queue pair of a connection to the error state, if it is connected. As long as the id has
    /// an owner nobody else has the number.
    pub(super) fn end_queue_pair(&mut self, id: Id) {
        use QpState::{ReadyToReceive, ReadyToSend, SendQueueDrain, SendQueueError};
        let Some(qpn) = self.cm.owners.get(&id).and_then(|owner| owner.qpn) else { return };
        let state = self.qps.get_mut(qpn).map(|qp| qp.engine.state());
        if matches!(state, Some(ReadyToReceive | ReadyToSend | SendQueueDrain | SendQueueError)) {
            self.enter_error(qpn);
        }
    }

    /// Takes a request out of its listener's queue, if it is still there: its sender has taken it back.
    fn forget_request(&mut self, id: Id) {
        if let Some(Owner { role: Role::Asked(service) | Role::Resolved(service), .. }) =
            self.cm.owners.get(&id)
            && let Some(door) = self.cm.doors.get(service)
        {
            door.remove(id);
        }
    }

    /// The program has let go of what an id means, if it still means that.
    pub(super) fn let_go(&mut self, id: Id, mailbox: &Arc<Mailbox>) {
        if !self.cm.owners.get(&id).is_some_and(|owner| Arc::ptr_eq(&owner.mailbox, mailbox)) {
            return;
        }
        use State::{Established, MraRepRcvd, MraRepSent, RepRcvd, RepSent};
        let state = self.cm.engine.state(id);
        if matches!(state, Some(Established | RepSent | MraRepRcvd | RepRcvd | MraRepSent)) {
            self.end_queue_pair(id);
        }
        self.cm.end(id);
        let now = self.waiter.now();
        // It has an owner, so it is there.
        let _ = self.cm.engine.abandon(now, id, &mut self.cm.actions);
        self.carry_out_cm(now);
    }

    /// The largest path MTU of which a packet reaches `peer`, and comes back, whole.
    pub(super) fn largest_mtu(&self, peer: IpAddr) -> Option<Mtu> {
        path_mtu(self.link.path_max_datagram(peer)).map(|mtu| mtu.min(self.cm.device.path_mtu))
    }
}

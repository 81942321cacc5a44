//! The connections, and the ways to find one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyverbs_wire::mad::{Repr, ServiceId};
use anyverbs_wire::{Psn, Qpn};

use super::event::{Cause, Id};
use super::terms::Transport;
use crate::time::Time;

/// The state of a connection (IBA 12.9.7); the table of the [module](super) says what happens in each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// We asked.
    ReqSent,
    /// We asked; the peer says that it takes longer.
    MraReqRcvd,
    /// The peer asked.
    ReqRcvd,
    /// The peer asked; we said that it takes longer.
    MraReqSent,
    /// We accepted.
    RepSent,
    /// We accepted; the peer says that it takes longer.
    MraRepRcvd,
    /// The peer accepted.
    RepRcvd,
    /// The peer accepted; we said that it takes longer.
    MraRepSent,
    /// The connection stands.
    Established,
    /// We asked for the end.
    DreqSent,
    /// It is over, but packets may be under way.
    TimeWait,
}

/// The peer's name of a connection. The address is part of it: whoever is at another one can neither repeat
/// nor disturb.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct RemoteId {
    pub(super) address: IpAddr,
    pub(super) ca_guid: u64,
    pub(super) comm_id: u32,
}

/// The peer's end of a connection. A queue pair accepts packets of one address only, so it takes that, too, to
/// name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct RemoteQp {
    pub(super) address: IpAddr,
    pub(super) ca_guid: u64,
    pub(super) qpn: Qpn,
}

/// A connection, from its first message to the end of timewait.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: Id,
    pub(super) state: State,
    pub(super) peer: IpAddr,
    pub(super) service_id: ServiceId,
    /// Of the REQ, and of all answers up to the RTU.
    pub(super) transaction_id: u64,
    /// Of our DREQ.
    pub(super) release_id: Option<u64>,
    /// How long to wait for an answer to what we send.
    pub(super) response: Duration,
    /// How long the peer waits for our answer, its way not included.
    pub(super) service: Duration,
    pub(super) timewait: Duration,
    pub(super) max_retries: u8,
    pub(super) retries_left: u8,
    /// What is sent again until an answer comes: REQ, REP or DREQ.
    pub(super) request: Option<Box<Repr>>,
    /// What is sent again when the peer repeats itself: MRA or RTU.
    pub(super) answer: Option<Box<Repr>>,
    /// The peer's request is not settled: it counts against the quota.
    pub(super) pending: bool,
    /// The consumer has let go, and is told nothing any more.
    pub(super) abandoned: bool,
    pub(super) started: Time,
    /// READs and atomics that a peer's REQ accepts at once.
    pub(super) offered: u8,
    pub(super) transport: Transport,
    /// The first PSN of the peer's REP.
    pub(super) remote_psn: Option<Psn>,
    /// The REQ has capabilities, so that the REP may have some, too.
    pub(super) told_capabilities: bool,
    /// A peer's REQ names an alternate path.
    pub(super) alternate: bool,
    /// Why we disconnect.
    pub(super) cause: Cause,
    /// The consumer wants the end of a connection that does not stand yet, with this private data.
    pub(super) closing: Option<Box<[u8; 220]>>,
    // The table's own: what it finds the connection by.
    local_qpn: Option<Qpn>,
    remote_id: Option<RemoteId>,
    remote_qp: Option<RemoteQp>,
    deadline: Option<Time>,
}

impl Connection {
    pub(super) fn new(id: Id, state: State, peer: IpAddr, service_id: ServiceId, now: Time) -> Self {
        Connection {
            id,
            state,
            peer,
            service_id,
            transaction_id: 0,
            release_id: None,
            response: Duration::ZERO,
            service: Duration::ZERO,
            timewait: Duration::ZERO,
            max_retries: 0,
            retries_left: 0,
            request: None,
            answer: None,
            pending: false,
            abandoned: false,
            started: now,
            offered: 0,
            transport: Transport::Rc,
            remote_psn: None,
            told_capabilities: false,
            alternate: false,
            cause: Cause::Local,
            closing: None,
            local_qpn: None,
            remote_id: None,
            remote_qp: None,
            deadline: None,
        }
    }

    /// The peer's communication id; 0 as long as it is not known.
    pub(super) fn remote_comm_id(&self) -> u32 {
        self.remote_id.map_or(0, |remote| remote.comm_id)
    }

    pub(super) fn remote_id(&self) -> Option<RemoteId> {
        self.remote_id
    }

    /// The peer's queue pair; 0 as long as it is not known.
    pub(super) fn remote_qpn(&self) -> Qpn {
        self.remote_qp.map_or(Qpn::new(0), |remote| remote.qpn)
    }

    pub(super) fn local_qpn(&self) -> Option<Qpn> {
        self.local_qpn
    }
}

/// All connections of a manager. Indexes and timers follow each change, so that nothing is ever searched for.
#[derive(Debug)]
pub(super) struct Table {
    connections: BTreeMap<Id, Connection>,
    remote_ids: BTreeMap<RemoteId, Id>,
    remote_qps: BTreeMap<RemoteQp, Id>,
    local_qpns: BTreeMap<Qpn, Id>,
    /// Connections with each address; no zeros.
    peers: BTreeMap<IpAddr, usize>,
    deadlines: BTreeSet<(Time, Id)>,
    limit: usize,
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Table {
            connections: BTreeMap::new(),
            remote_ids: BTreeMap::new(),
            remote_qps: BTreeMap::new(),
            local_qpns: BTreeMap::new(),
            peers: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            limit,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Connections with one address.
    pub(super) fn with_peer(&self, peer: IpAddr) -> usize {
        self.peers.get(&peer).copied().unwrap_or(0)
    }

    /// Entries of all indexes and timers: zero if there is no connection.
    pub(super) fn index_len(&self) -> usize {
        let by_peer = self.remote_ids.len() + self.remote_qps.len() + self.peers.len();
        by_peer + self.local_qpns.len() + self.deadlines.len()
    }

    pub(super) fn contains(&self, id: Id) -> bool {
        self.connections.contains_key(&id)
    }

    pub(super) fn get(&self, id: Id) -> Option<&Connection> {
        self.connections.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    pub(super) fn by_remote_id(&self, remote: &RemoteId) -> Option<Id> {
        self.remote_ids.get(remote).copied()
    }

    pub(super) fn by_remote_qp(&self, remote: &RemoteQp) -> Option<Id> {
        self.remote_qps.get(remote).copied()
    }

    pub(super) fn by_local_qpn(&self, qpn: Qpn) -> Option<Id> {
        self.local_qpns.get(&qpn).copied()
    }

    /// Adds a connection that nothing points to yet; its id must be free.
    pub(super) fn insert(&mut self, connection: Connection) {
        *self.peers.entry(connection.peer).or_default() += 1;
        self.connections.insert(connection.id, connection);
    }

    /// The connection uses a queue pair of ours, which no other one may use.
    pub(super) fn bind_local(&mut self, id: Id, qpn: Qpn) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.local_qpn = Some(qpn);
            self.local_qpns.insert(qpn, id);
        }
    }

    /// The peer has named its end of the connection. Neither name may be in use.
    pub(super) fn bind_remote(&mut self, id: Id, remote_id: RemoteId, remote_qp: RemoteQp) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.remote_id = Some(remote_id);
            connection.remote_qp = Some(remote_qp);
            self.remote_ids.insert(remote_id, id);
            self.remote_qps.insert(remote_qp, id);
        }
    }

    /// The peer's queue pair is no longer connected to ours.
    pub(super) fn unbind_remote_qp(&mut self, id: Id) {
        if let Some(remote) = self.connections.get_mut(&id).and_then(|connection| connection.remote_qp.take())
        {
            self.remote_qps.remove(&remote);
        }
    }

    /// Starts the timer of a connection, or starts it anew.
    pub(super) fn arm(&mut self, id: Id, at: Time) {
        self.set_deadline(id, Some(at));
    }

    /// Stops the timer of a connection.
    pub(super) fn disarm(&mut self, id: Id) {
        self.set_deadline(id, None);
    }

    fn set_deadline(&mut self, id: Id, deadline: Option<Time>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            if let Some(before) = connection.deadline {
                self.deadlines.remove(&(before, id));
            }
            connection.deadline = deadline;
            self.deadlines.extend(deadline.map(|at| (at, id)));
        }
    }

    /// Stops a timer that is due by `now`, and says whose it is.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<Id> {
        let (_, id) = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.disarm(id);
        Some(id)
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Connection> {
        self.disarm(id);
        self.unbind_remote_qp(id);
        let connection = self.connections.remove(&id)?;
        if let Some(remote) = connection.remote_id {
            self.remote_ids.remove(&remote);
        }
        if let Some(qpn) = connection.local_qpn {
            self.local_qpns.remove(&qpn);
        }
        if let Some(count) = self.peers.get_mut(&connection.peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&connection.peer);
            }
        }
        Some(connection)
    }
}

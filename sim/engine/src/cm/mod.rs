//! The connection manager: how two queue pairs learn of each other (IBA 12).
//!
//! A [`ConnectionManager`] is what answers at a device's general services interface. Like all of the engine it
//! is fed events with the time at which they happened, and answers with ordered [`Action`]s. It has no clock,
//! does no I/O, and its random numbers come from a function that it is given.
//!
//! ```text
//!   connect, accept, reject, establish, disconnect --.                         .--> SendMad { destination, mad }
//!   listen, sidr_request, sidr_reply, abandon -------+--> ConnectionManager ---+
//!   on_mad, communication_established, on_timer -----'                         '--> Event(..)
//!                                    next_deadline() says when on_timer is due
//! ```
//!
//! # A connection
//!
//! ```text
//!  active                                                          passive
//!  connect() ------------------ REQ -----------------------------> ConnectRequest
//!  ReqSent                                                         ReqRcvd
//!       (if its consumer is slow <-- MRA --)                       MraReqSent
//!  ConnectResponse <----------- REP -----------------------------  accept()
//!  RepRcvd                                                         RepSent
//!  establish() ---------------- RTU -----------------------------> Established { .. }
//!  Established                                                     Established
//!  disconnect() --------------- DREQ ----------------------------> Disconnected { Peer }
//!  DreqSent                                                        TimeWait
//!  Disconnected { Local } <---- DREP -----------------------------
//!  TimeWait .. TimewaitExit                                        TimeWait .. TimewaitExit
//! ```
//!
//! Peers that connect to each other at the same time get two connections: each side's REQ names a service of
//! the other.
//!
//! # States
//!
//! IBA 12.9.7.1 has the active states, 12.9.7.2 the passive ones. A message that arrives:
//!
//! | state | REQ | MRA | REJ | REP | RTU | DREQ | LAP |
//! |---|---|---|---|---|---|---|---|
//! | none | `ConnectRequest` | - | - | REJ invalid id | - | DREP | APR invalid id |
//! | [`ReqSent`](State::ReqSent) | | to `MraReqRcvd` | `Rejected` | `ConnectResponse`, to `RepRcvd` | - | DREP | APR invalid id |
//! | [`MraReqRcvd`](State::MraReqRcvd) | | again | `Rejected` | `ConnectResponse`, to `RepRcvd` | - | DREP | APR invalid id |
//! | [`ReqRcvd`](State::ReqRcvd) | again | - | `Rejected` | | - | - | - |
//! | [`MraReqSent`](State::MraReqSent) | again: MRA | - | `Rejected` | | - | - | - |
//! | [`RepSent`](State::RepSent) | again: REP | to `MraRepRcvd` | `Rejected` | | `Established` | `Disconnected`, DREP | APR unsupported |
//! | [`MraRepRcvd`](State::MraRepRcvd) | again | again | `Rejected` | | `Established` | `Disconnected`, DREP | APR unsupported |
//! | [`RepRcvd`](State::RepRcvd) | | - | `Rejected` (1) | again | - | - | - |
//! | [`MraRepSent`](State::MraRepSent) | | - | `Rejected` (1) | again: MRA | - | - | - |
//! | [`Established`](State::Established) | again | - | `Disconnected` (1) | again: RTU | again | `Disconnected`, DREP | APR unsupported |
//! | [`DreqSent`](State::DreqSent) | again | - | `Disconnected` (1) | again | again | `Disconnected`, DREP | - |
//! | [`TimeWait`](State::TimeWait) | again: REJ (2) | - | again | REJ (2) | - (2) | again: DREP | - |
//!
//! "-" changes nothing and is counted ([`Counters::out_of_state`], or [`Counters::unknown_id`] without a
//! connection); "again" is a [duplicate](Counters::duplicates), and what follows it is sent again; an empty cell
//! cannot be, since the other side has no name for such a connection. DREP in `DreqSent` is `Disconnected`, in
//! `TimeWait` a duplicate. APR is never asked for. (1) Unless it is of the REQ, which the peer has answered.
//! (2) The REJ that ended the connection again, to an RTU as well; else stale to REQ, invalid id to REP. Before
//! the peer has named itself, a DREQ or LAP with any id of its own is one of no connection.
//!
//! Data at the queue pair does what an RTU does ([`ConnectionManager::communication_established`]). A REP of the
//! same exchange with another id, queue pair or PSN is of another life of the peer, and refused like one to no
//! connection. Time does:
//!
//! | state | when the time is up | after the last time |
//! |---|---|---|
//! | `ReqSent`, `MraReqRcvd` | REQ again, in `ReqSent` | REJ timeout, `Unreachable` |
//! | `ReqRcvd`, `RepRcvd` | MRA, to `MraReqSent` or `MraRepSent` | |
//! | `MraReqSent`, `MraRepSent` | | REJ timeout, `Unreachable` |
//! | `RepSent`, `MraRepRcvd` | REP again, in `RepSent` | REJ timeout, `Unreachable` |
//! | `DreqSent` | DREQ again | `Disconnected` |
//! | `TimeWait` | | `TimewaitExit` |
//!
//! A connection ends with `Rejected`, `Unreachable` or `Disconnected`, or in a call of the consumer
//! (`reject`), and then with `TimewaitExit`, after which its id and its queue-pair number are free. A
//! consumer that does not care calls [`abandon`](ConnectionManager::abandon) at any time and hears no more.
//!
//! Neither REJ nor RTU is ever acknowledged. What makes them reliable is that the other side repeats the
//! message that they answer, so an answer is kept as long as that can happen: a consumer is asked once, and its
//! reason arrives.
//!
//! # Trust
//!
//! Anybody can send a MAD. One that names a connection has to come from its peer's address, with both
//! communication ids and with the transaction id of its exchange, all of which are random; otherwise it is
//! counted and nothing else. What belongs to no connection passes a token bucket first. A request then needs
//! room in the listener's backlog, in its source's share, and in the table ([`Limits`]). Times that a peer may
//! choose are bounded.
//!
//! Every message that arrives is counted once, by what became of it:
//!
//! | what arrives | counter |
//! |---|---|
//! | not 256 bytes; another version, class or method; an unknown message | [`malformed`](Counters::malformed) |
//! | a status other than 0; a queue pair that cannot be connected | [`invalid`](Counters::invalid) |
//! | an id that is not ours, or not with this id of the peer's; a DREQ or LAP with another queue pair; a REP of another life | [`unknown_id`](Counters::unknown_id) |
//! | from another address than the peer's | [`wrong_source`](Counters::wrong_source) |
//! | of another exchange: forged, or late and of an earlier use of the ids | [`wrong_transaction`](Counters::wrong_transaction) |
//! | for another state than the connection's; an APR | [`out_of_state`](Counters::out_of_state) |
//! | of no connection, too many of them | [`throttled`](Counters::throttled) |
//! | a request beyond backlog or share | [`over_quota`](Counters::over_quota) |
//! | a request to a full table, or beyond its source's share of it: REJ no resources | [`no_resources`](Counters::no_resources) |
//! | a request for a service without a listener: REJ invalid service id | [`no_listener`](Counters::no_listener) |
//! | a REQ or REP whose queue pair is connected to us: REJ stale, and DREQ to the old connection; a REP with an id of an old connection: DREQ to that | [`stale`](Counters::stale) |
//! | a REQ that the device cannot serve, or with an id that is in use: REJ; a LAP: APR | [`unacceptable`](Counters::unacceptable) |
//! | once more | [`duplicates`](Counters::duplicates) |
//!
//! What names a connection has to be late by more than its timewait, and meet 64 random bits again, to be taken
//! for another one's. DREQ, DREP and LAP begin or end exchanges of their own: a DREQ and a LAP are known by both
//! ids, queue pair and address alone, a DREP by the DREQ's transaction.

mod active;
mod admission;
mod alternate;
mod config;
mod counters;
mod error;
mod event;
mod expiring;
mod passive;
mod reject;
mod release;
mod sidr;
mod table;
mod terms;
mod timer;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{IpHeader, Message, Packet, Repr, ServiceId, private_data};

use crate::time::Time;
use admission::Admission;
use counters::{Outcome, Why};
use expiring::Expiring;
use sidr::Resolutions;
use table::{Connection, RemoteId, Table};

pub use active::Connect;
pub use config::{Config, Limits};
pub use counters::{Counters, PerMessage};
pub use error::Error;
pub use event::{
    Action, Cause, ConnectRequest, ConnectResponse, Event, Id, PrivateData, Rejected, SidrReply, SidrRequest,
};
pub use passive::Accept;
pub use sidr::{SidrAnswer, SidrAsk};
pub use table::State;
pub use terms::{Capabilities, Terms, Transport};

/// Where random numbers come from: communication ids and transaction ids, which nobody should be able to
/// guess.
pub type Entropy = Box<dyn FnMut() -> u64 + Send>;

/// How often a communication id is drawn before giving up: it fails with a source of numbers that repeats
/// itself, not with a full table.
const DRAWS: usize = 64;

/// The connection manager of a device.
pub struct ConnectionManager {
    config: Config,
    entropy: Entropy,
    table: Table,
    admission: Admission,
    resolutions: Resolutions,
    /// Requests for services that nobody listens on yet.
    held: Expiring<Asked, Held>,
    /// Answers that ended what they answered.
    answers: Expiring<Asked, Repr>,
    counters: Counters,
}

/// The peer's name of what it asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Asked {
    Connection(RemoteId),
    Resolution { address: IpAddr, request_id: u32 },
}

/// A request that waits for a listener.
#[derive(Debug)]
struct Held {
    source: IpAddr,
    service_id: ServiceId,
    mad: Repr,
}

/// Where an event's answers go.
struct Output<'a> {
    now: Time,
    actions: &'a mut Vec<Action>,
}

impl Output<'_> {
    fn send(&mut self, counters: &mut Counters, destination: IpAddr, mad: Repr) {
        counters.sent.count(mad.message.attribute());
        self.actions.push(Action::SendMad { destination, mad });
    }

    /// Tells the consumer of a connection, if there still is one.
    fn tell(&mut self, connection: &Connection, event: Event) {
        if !connection.abandoned {
            self.actions.push(Action::Event(event));
        }
    }
}

/// What a [`ConnectionManager`] holds at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Services listened on.
    pub listeners: usize,
    /// Connections in any state.
    pub connections: usize,
    /// Resolutions in progress.
    pub resolutions: usize,
    /// Requests of peers that are not settled.
    pub pending: usize,
    /// Addresses that they come from.
    pub sources: usize,
    /// Requests held for want of a listener.
    pub held: usize,
    /// Answers kept for repetition.
    pub answers: usize,
    /// Entries of all indexes and timers.
    pub index_entries: usize,
}

impl ConnectionManager {
    /// A connection manager without listeners and connections.
    pub fn new(config: Config, entropy: Entropy) -> Self {
        let limits = config.limits;
        ConnectionManager {
            config,
            entropy,
            table: Table::new(limits.connections),
            admission: Admission::new(limits),
            resolutions: Resolutions::new(limits.resolutions),
            held: Expiring::new(limits.held),
            answers: Expiring::new(limits.answers),
            counters: Counters::default(),
        }
    }

    /// Takes requests for a service: connections and resolutions, up to `backlog` of them at once that are not
    /// settled. Requests that were held for want of a listener come at once.
    ///
    /// # Errors
    ///
    /// [`Error::ServiceInUse`], [`Error::TooManyListeners`].
    pub fn listen(
        &mut self,
        now: Time,
        service: ServiceId,
        backlog: usize,
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        self.admission.listen(service, backlog)?;
        let out = &mut Output { now, actions };
        while let Some(held) = self.held.take(|held| held.service_id == service) {
            match &held.mad.message {
                Message::Req(req) => self.on_new_req(out, held.source, &held.mad, req),
                Message::SidrReq(request) => self.on_new_sidr_req(out, held.source, &held.mad, request),
                _ => Outcome::Handled,
            };
        }
        Ok(())
    }

    /// Takes no further requests for a service. Those that the consumer was told of still want an answer.
    ///
    /// # Errors
    ///
    /// [`Error::NotListening`].
    pub fn unlisten(&mut self, service: ServiceId) -> Result<(), Error> {
        self.admission.unlisten(service)
    }

    /// Handles the payload of a datagram to the general services interface.
    pub fn on_datagram(&mut self, now: Time, source: IpAddr, payload: &[u8], actions: &mut Vec<Action>) {
        match Packet::new_checked(payload) {
            Ok(packet) => self.on_mad(now, source, &Repr::parse(&packet), actions),
            Err(_) => self.counters.malformed += 1,
        }
    }

    /// Handles a MAD that came from the address `source`.
    pub fn on_mad(&mut self, now: Time, source: IpAddr, mad: &Repr, actions: &mut Vec<Action>) {
        let out = &mut Output { now, actions };
        let source = source.to_canonical();
        let outcome = match &mad.message {
            // The status belongs to responses (IBA 13.4.7), of which this class has none.
            _ if mad.status != 0 => Outcome::Dropped(Why::Invalid),
            Message::Req(req) => self.on_req(out, source, mad, req),
            Message::Mra(mra) => self.on_mra(out, source, mad, mra),
            Message::Rej(rej) => self.on_rej(out, source, mad, rej),
            Message::Rep(rep) => self.on_rep(out, source, mad, rep),
            Message::Rtu(rtu) => self.on_rtu(out, source, mad, rtu),
            Message::Dreq(dreq) => self.on_dreq(out, source, mad, dreq),
            Message::Drep(drep) => self.on_drep(out, source, mad, drep),
            Message::SidrReq(request) => self.on_sidr_req(out, source, mad, request),
            Message::SidrRep(reply) => self.on_sidr_rep(out, source, mad, reply),
            Message::Lap(lap) => self.on_lap(out, source, mad, lap),
            Message::Apr(apr) => self.on_apr(source, apr),
        };
        self.counters.outcome(mad.message.attribute(), outcome);
    }

    /// Ends a connection or resolution of which the consumer wants to hear no more, in the way that its state
    /// asks for. No event comes for it from now on; its queue-pair number stays taken as long as
    /// [`holds_qpn`](Self::holds_qpn) says so.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`].
    pub fn abandon(&mut self, now: Time, id: Id, actions: &mut Vec<Action>) -> Result<(), Error> {
        let out = &mut Output { now, actions };
        let Some(connection) = self.table.get_mut(id) else {
            return self.abandon_resolution(out, id);
        };
        connection.abandoned = true;
        match connection.state {
            State::ReqSent | State::MraReqRcvd => self.cancel_request(out, id),
            State::ReqRcvd | State::MraReqSent | State::RepRcvd | State::MraRepSent => {
                self.reject_as_consumer(out, id);
            }
            // The REP is out, and a REJ could be lost with nobody to repeat what it answers. So the connection
            // is carried on, and ended once it stands.
            State::RepSent | State::MraRepRcvd => {
                connection.closing.get_or_insert_with(|| Box::new([0; 220]));
            }
            State::Established => self.send_dreq(out, id, Cause::Local, [0; 220]),
            State::DreqSent | State::TimeWait => {}
        }
        Ok(())
    }

    /// When [`on_timer`](Self::on_timer) is due.
    pub fn next_deadline(&self) -> Option<Time> {
        let deadlines = [
            self.table.next_deadline(),
            self.resolutions.next_deadline(),
            self.held.next_deadline(),
            self.answers.next_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The state of a connection; `None` if there is none of this id.
    pub fn state(&self, id: Id) -> Option<State> {
        self.table.get(id).map(|connection| connection.state)
    }

    /// Whether a connection, maybe one in timewait, has this queue pair of ours, so that the number may not be
    /// given to another one.
    pub fn holds_qpn(&self, qpn: Qpn) -> bool {
        self.table.by_local_qpn(qpn).is_some()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What is held at the moment.
    pub fn usage(&self) -> Usage {
        Usage {
            listeners: self.admission.listeners(),
            connections: self.table.len(),
            resolutions: self.resolutions.len(),
            pending: self.admission.pending(),
            sources: self.admission.sources(),
            held: self.held.len(),
            answers: self.answers.len(),
            index_entries: self.table.index_len() + self.resolutions.index_len(),
        }
    }

    /// An id that is free, with the device's prefix. 0 is not an id: in a REJ it stands for none.
    fn draw_id(&mut self) -> Result<Id, Error> {
        let bits = u32::from(self.config.comm_id_prefix_bits.min(16));
        let prefix = u64::from(self.config.comm_id_prefix) << (32 - bits);
        for _ in 0..DRAWS {
            let id = Id((prefix | ((self.entropy)() & 0xFFFF_FFFF) >> bits) as u32);
            if id.0 != 0 && !self.table.contains(id) && !self.resolutions.contains(id) {
                return Ok(id);
            }
        }
        Err(Error::NoFreeId)
    }

    /// Checks a queue-pair number that a consumer wants to connect.
    fn check_qpn(&self, qpn: Qpn) -> Result<(), Error> {
        if usable(qpn) && !self.holds_qpn(qpn) { Ok(()) } else { Err(Error::QpnInUse) }
    }

    /// The connection that a message names by our id and, unless they are `None`, the peer's and the
    /// transaction.
    fn find(
        &self,
        source: IpAddr,
        ours: u32,
        theirs: Option<u32>,
        transaction_id: Option<u64>,
    ) -> Result<&Connection, Why> {
        let connection = self.table.get(Id(ours)).ok_or(Why::UnknownId)?;
        if connection.peer != source {
            return Err(Why::WrongSource);
        }
        if theirs.is_some_and(|theirs| theirs != connection.remote_comm_id()) {
            return Err(Why::UnknownId);
        }
        if transaction_id.is_some_and(|transaction_id| transaction_id != connection.transaction_id) {
            return Err(Why::WrongTransaction);
        }
        Ok(connection)
    }

    /// Sends a connection's message, and again until [`answered`](Self::answered).
    fn request(&mut self, out: &mut Output<'_>, id: Id, state: State, mad: Repr) {
        if let Some(connection) = self.table.get_mut(id) {
            connection.state = state;
            connection.retries_left = connection.max_retries;
            connection.request = Some(Box::new(mad));
            let (peer, deadline) = (connection.peer, out.now + connection.response);
            self.table.arm(id, deadline);
            out.send(&mut self.counters, peer, mad);
        }
    }

    /// Repeats the answer to a message that came again, if there was one.
    fn repeat_answer(&mut self, out: &mut Output<'_>, id: Id) -> Outcome {
        if let Some(connection) = self.table.get(id)
            && let Some(answer) = connection.answer.as_deref()
        {
            out.send(&mut self.counters, connection.peer, *answer);
        }
        Outcome::Duplicate
    }

    /// Repeats an answer that ended what it answered, if this is the question again.
    fn repeat_last_answer(&mut self, out: &mut Output<'_>, source: IpAddr, mad: &Repr, asked: Asked) -> bool {
        let Some(answer) =
            self.answers.get(&asked).filter(|answer| answer.transaction_id == mad.transaction_id)
        else {
            return false;
        };
        out.send(&mut self.counters, source, *answer);
        self.answers.postpone(&asked, out.now + self.answer_life());
        true
    }

    /// Keeps an answer that ends what it answers. `promised` is what an MRA has told the peer to wait.
    fn keep_last_answer(&mut self, out: &Output<'_>, asked: Asked, answer: Repr, promised: Duration) {
        self.answers.insert(asked, answer, out.now + promised + self.answer_life());
    }

    /// Long enough for some repetitions of a message to get lost.
    fn answer_life(&self) -> Duration {
        self.config.response(self.config.response_timeout) * 4
    }

    /// The peer's request is no longer unfinished business.
    fn settle(&mut self, id: Id) {
        if let Some(connection) = self.table.get_mut(id)
            && std::mem::take(&mut connection.pending)
        {
            self.admission.settled(connection.peer, connection.service_id);
        }
    }
}

impl fmt::Debug for ConnectionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionManager").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

/// Whether a queue pair of this number can be connected: 0 and 1 are the management interfaces, and the last
/// is multicast.
fn usable(qpn: Qpn) -> bool {
    qpn > Qpn::GSI && qpn != Qpn::MULTICAST
}

/// Private data of a message that has room for `N` bytes.
fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Error> {
    private_data(bytes).ok_or(Error::PrivateDataTooLong { max: N })
}

/// The same, after the header that librdmacm's peers expect before it, if they do.
fn fixed_after<const N: usize>(header: Option<&IpHeader>, bytes: &[u8]) -> Result<[u8; N], Error> {
    match header {
        Some(header) => {
            header.with_user_data(bytes).ok_or(Error::PrivateDataTooLong { max: N - IpHeader::LEN })
        }
        None => fixed(bytes),
    }
}

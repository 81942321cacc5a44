//! What the connection manager asks of its owner, and what it tells its consumer.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

use anyverbs_wire::mad::{IpHeader, Path, RejectReason, Repr, ServiceId, SidrStatus, Subject, private_data};
use anyverbs_wire::{Psn, Qpn};

use super::terms::{Capabilities, Terms};

/// Names a connection or a resolution of one manager, from its beginning to [`Event::TimewaitExit`].
///
/// It is the communication id that travels, and random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id(pub(super) u32);

impl Id {
    /// The communication id (or the request id of a resolution).
    pub const fn comm_id(self) -> u32 {
        self.0
    }
}

/// Private data of a message: up to 224 bytes.
///
/// The length does not travel. What was received is as long as its message has room for, zeros at the end
/// included.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrivateData {
    len: u8,
    bytes: [u8; PrivateData::MAX],
}

impl PrivateData {
    /// Room in the roomiest messages, RTU and DREP.
    pub const MAX: usize = 224;

    /// None.
    pub const EMPTY: PrivateData = PrivateData { len: 0, bytes: [0; PrivateData::MAX] };

    /// A copy of `bytes`, of which no message has more than [`MAX`](Self::MAX).
    pub(super) fn received<const N: usize>(bytes: &[u8; N]) -> Self {
        const { assert!(N <= PrivateData::MAX) };
        PrivateData { len: N as u8, bytes: private_data(bytes).unwrap_or([0; PrivateData::MAX]) }
    }
}

impl Deref for PrivateData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

impl fmt::Debug for PrivateData {
    /// The bytes before the zeros at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        write!(f, "{used} of {} bytes", self.len)?;
        self.iter().take(used).try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

/// One thing to do. Actions are carried out in the order in which they were given: a consumer that is told of
/// a disconnection takes its queue pair to the error state before the answer leaves that starts the peer's
/// timewait.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Send a MAD, from our general services interface to the one at `destination`.
    SendMad {
        /// Where to.
        destination: IpAddr,
        /// What.
        mad: Repr,
    },
    /// Tell the consumer.
    Event(Event),
}

/// What a consumer is told. Each event comes at most once for an id, in the order of the table of the
/// [module](super).
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A peer wants to connect. The consumer answers with `accept` or `reject`.
    ConnectRequest(ConnectRequest),
    /// The peer accepts. The consumer readies its queue pair and answers with `establish` or `reject`.
    ConnectResponse(ConnectResponse),
    /// A connection that was accepted stands: the peer is ready.
    Established {
        /// Which.
        id: Id,
        /// What came with the peer's RTU; `None` if data overtook it.
        private_data: Option<PrivateData>,
    },
    /// The connection will not be. Timewait follows.
    Rejected(Rejected),
    /// The peer does not answer, or our own consumer did not for too long. Timewait follows.
    Unreachable {
        /// The connection or resolution.
        id: Id,
    },
    /// A connection that stood, or that the peer believed to stand, is over. Timewait follows.
    Disconnected {
        /// Which.
        id: Id,
        /// Why.
        cause: Cause,
        /// What came with the peer's last message.
        private_data: PrivateData,
    },
    /// The last event of every connection: its id means nothing any more, its queue-pair number may be used
    /// again. It comes with the event before if no packet can be under way.
    TimewaitExit {
        /// Which.
        id: Id,
        /// The queue pair that may be used again, if there was one.
        qpn: Option<Qpn>,
    },
    /// A peer asks for the queue pair of a datagram service. The consumer answers with `sidr_reply`.
    SidrRequest(SidrRequest),
    /// The answer to a resolution of ours, whose id means nothing any more.
    SidrReply(SidrReply),
}

impl Event {
    /// The connection or resolution it is about.
    pub fn id(&self) -> Id {
        match self {
            Event::ConnectRequest(request) => request.id,
            Event::ConnectResponse(response) => response.id,
            Event::Rejected(rejected) => rejected.id,
            Event::SidrRequest(request) => request.id,
            Event::SidrReply(reply) => reply.id,
            Event::Established { id, .. }
            | Event::Unreachable { id }
            | Event::Disconnected { id, .. }
            | Event::TimewaitExit { id, .. } => *id,
        }
    }
}

/// A peer's REQ, as its receiver needs it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ConnectRequest {
    /// The connection that would be.
    pub id: Id,
    /// The service that is asked for.
    pub service_id: ServiceId,
    /// Where the request came from, and where answers go.
    pub source: IpAddr,
    /// GUID of the peer's device.
    pub ca_guid: u64,
    /// What the peer proposes.
    pub terms: Terms,
    /// The path as the peer sees it. Its `ack_timeout` is our `timeout`.
    pub path: Path,
    /// The peer's private data: 92 bytes.
    pub private_data: PrivateData,
}

impl ConnectRequest {
    /// The rdma_cm header of the private data and the consumer's 56 bytes after it, if that is the layout
    /// (IBA A11).
    pub fn ip_header(&self) -> Option<(IpHeader, &[u8])> {
        IpHeader::parse(&self.private_data)
    }
}

/// A peer's REP, as its receiver needs it: resources and depth are *ours*, the peer's swapped.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ConnectResponse {
    /// The connection.
    pub id: Id,
    /// GUID of the peer's device.
    pub ca_guid: u64,
    /// The peer's queue pair: our `dest_qpn`.
    pub qpn: Qpn,
    /// The peer's first PSN: our `rq_psn`.
    pub starting_psn: Psn,
    /// READs and atomics that the peer will have outstanding at us: our `max_dest_rd_atomic`.
    pub responder_resources: u8,
    /// READs and atomics that the peer accepts from us at once: our `max_rd_atomic`.
    pub initiator_depth: u8,
    /// Our `rnr_retry`.
    pub rnr_retry_count: u8,
    /// Our `timeout`: the path's, and the time that the peer's device takes to acknowledge (IBA 12.7.34).
    pub ack_timeout: u8,
    /// The peer does end-to-end flow control.
    pub flow_control: bool,
    /// The peer's queue pair is on a shared receive queue, as that of an XRC target always is.
    pub srq: bool,
    /// What the peer's device can do beyond the specification, if it says so; never without our having told.
    pub capabilities: Option<Capabilities>,
    /// The peer's private data: 196 bytes.
    pub private_data: PrivateData,
}

/// A connection that will not be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rejected {
    /// Which.
    pub id: Id,
    /// Why.
    pub reason: RejectReason,
    /// What was rejected.
    pub subject: Subject,
    /// Additional information, which depends on the reason: up to 72 bytes.
    pub info: [u8; 72],
    /// How much of it means something.
    pub info_len: u8,
    /// The peer's private data: 148 bytes; empty if this side found the reason.
    pub private_data: PrivateData,
}

/// Why a connection is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The peer asked for it (DREQ).
    Peer,
    /// The consumer asked for it, and the peer agreed (DREP).
    Local,
    /// The peer connects its queue pair anew, so that it cannot know this connection any more (IBA 12.4.1).
    Stale,
    /// The peer rejected the connection although it stood for us.
    Rejected(RejectReason),
    /// The consumer asked for it, and the peer does not answer.
    Timeout,
}

/// A peer's SIDR_REQ.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SidrRequest {
    /// The resolution.
    pub id: Id,
    /// The service that is asked for.
    pub service_id: ServiceId,
    /// Where the request came from, and where the answer goes.
    pub source: IpAddr,
    /// The partition.
    pub pkey: u16,
    /// The peer's private data: 216 bytes.
    pub private_data: PrivateData,
}

impl SidrRequest {
    /// The rdma_cm header of the private data and the consumer's 180 bytes after it, if that is the layout.
    pub fn ip_header(&self) -> Option<(IpHeader, &[u8])> {
        IpHeader::parse(&self.private_data)
    }
}

/// A peer's SIDR_REP.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SidrReply {
    /// The resolution.
    pub id: Id,
    /// How it went. Queue pair and Q_Key mean something if it is [`SidrStatus::VALID`].
    pub status: SidrStatus,
    /// The queue pair that takes the service's datagrams.
    pub qpn: Qpn,
    /// Its Q_Key.
    pub qkey: u32,
    /// Additional information, which depends on the status: up to 72 bytes.
    pub info: [u8; 72],
    /// How much of it means something.
    pub info_len: u8,
    /// The peer's private data: 136 bytes.
    pub private_data: PrivateData,
}

//! What the engine asks of whoever drives it.

use anyverbs_wire::{Qpn, Repr};

use crate::time::Time;
use crate::work::{ReceiveKind, Status};

/// One thing to do. Actions are carried out in the order in which they were given.
///
/// `S` is the owner's name for a checked range of registered memory: [`Memory::Span`](crate::Memory).
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Action<S> {
    /// Send a datagram.
    Transmit(Transmit<S>),
    /// Copy payload of the datagram that is being handled to where it belongs.
    Place {
        /// Where it starts in the datagram's payload, in bytes.
        from: u32,
        /// How many bytes.
        len: u32,
        /// Where it goes.
        to: Target<S>,
    },
    /// Store eight bytes of the payload by one atomic store (ATOMIC WRITE).
    PlaceAtomic {
        /// Where they start in the datagram's payload.
        from: u32,
        /// Where they go: eight aligned bytes.
        to: S,
    },
    /// Fill in the 40 bytes at the front of a receive work request that hold the global routing
    /// header, or the IP header, of the datagram that is being handled (UD; IBA 11.4.1.2).
    PlaceGrh {
        /// The receive work request.
        slot: u64,
    },
    /// Keep a copy of the datagram's payload in a buffer that [`Memory::hold`](crate::Memory::hold)
    /// gave: it came early.
    Hold {
        /// The buffer.
        buffer: u32,
    },
    /// A buffer with a kept payload is not needed any more.
    Release {
        /// The buffer.
        buffer: u32,
    },
    /// Store the eight bytes that an atomic operation returned, in the machine's byte order.
    PlaceValue {
        /// The value that the remote memory held before.
        value: u64,
        /// Where it goes.
        to: Target<S>,
    },
    /// A work request is done with.
    Complete(Completion),
    /// Something that the program may want to know.
    Event(Event),
}

/// What is told beside completions (`ibv_event_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The first packet of the peer arrived before the queue pair was ready to send
    /// (`IBV_EVENT_COMM_EST`).
    CommunicationEstablished,
    /// The send queue is drained: what had begun has ended (`IBV_EVENT_SQ_DRAINED`).
    SendQueueDrained,
    /// A request of the peer was invalid, and ended the queue pair (`IBV_EVENT_QP_REQ_ERR`).
    RequestError,
    /// The peer touched what it may not touch, which ended the queue pair (`IBV_EVENT_QP_ACCESS_ERR`).
    AccessError,
}

/// A datagram to send.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Transmit<S> {
    /// Not before this time; now or in the past means at once.
    pub at: Time,
    /// The headers. The pad count is right for the payload.
    pub header: Repr,
    /// What follows the headers.
    pub payload: Source<S>,
}

/// Where the payload of an outgoing datagram is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source<S> {
    /// There is none.
    None,
    /// In the memory that a send work request names. Datagrams (UD) always come from one, which also
    /// says where they go; others only if they have a payload.
    Send {
        /// The work request.
        slot: u64,
        /// Where in its gathered bytes.
        offset: u32,
        /// How many bytes.
        len: u32,
    },
    /// In registered memory that a peer reads.
    Region {
        /// The range.
        span: S,
        /// Its length in bytes.
        len: u32,
    },
}

impl<S> Source<S> {
    /// Its length in bytes.
    pub fn len(&self) -> u32 {
        match self {
            Source::None => 0,
            Source::Send { len, .. } | Source::Region { len, .. } => *len,
        }
    }

    /// Whether there is no payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where incoming payload goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target<S> {
    /// Into the memory that a receive work request names.
    Receive {
        /// The work request.
        slot: u64,
        /// Where in its scattered bytes.
        offset: u32,
    },
    /// Into the memory that a send work request names: the result of a READ or an atomic.
    Send {
        /// The work request.
        slot: u64,
        /// Where in its scattered bytes.
        offset: u32,
    },
    /// Into registered memory that a peer writes.
    Region(S),
}

/// Which queue of a queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queue {
    /// The send queue.
    Send,
    /// The receive queue.
    Receive,
}

/// A work request that is done with, in the order of posting within its queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The queue it was posted to.
    pub queue: Queue,
    /// The slot that it was posted, or taken, with.
    pub slot: u64,
    /// How it went.
    pub status: Status,
    /// Whether to write a completion queue entry. An unsignalled success only frees its slot
    /// (IBA 10.8.6).
    pub signaled: bool,
    /// Bytes transferred.
    pub len: u32,
    /// For receives: what arrived.
    pub kind: ReceiveKind,
    /// The immediate data that arrived with it.
    pub imm: Option<u32>,
    /// The sender asked for a solicited event.
    pub solicited: bool,
    /// The key that was invalidated with it.
    pub invalidated: Option<u32>,
    /// UD: the queue pair that it came from. `len` then counts the 40 bytes in front of the message.
    pub source: Option<Qpn>,
}

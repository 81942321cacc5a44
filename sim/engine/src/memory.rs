//! What the engine must know about memory, and asks its owner.

use anyverbs_wire::{Feth, Qpn};

use crate::work::Status;

/// The right that a remote operation needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// RDMA WRITE and ATOMIC WRITE.
    RemoteWrite,
    /// RDMA READ.
    RemoteRead,
    /// FETCH_ADD, CMP_SWAP.
    RemoteAtomic,
}

/// The memory may not be touched: an unknown key, another protection domain, out of bounds, or a
/// right that was not granted. To the peer they are all one: NAK remote access (IBA 9.7.4.1.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Denied;

/// What the receive queue had to offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receive {
    /// A receive work request, now the engine's until it completes.
    Taken {
        /// Its slot.
        slot: u64,
        /// Bytes that fit into it.
        capacity: u64,
    },
    /// The queue is empty.
    Empty,
    /// There is no such shared receive queue, or the queue pair may not use it.
    Unknown,
}

/// The owner of memory and of the receive queue, as the engine sees it. All calls are synchronous.
pub trait Memory {
    /// A checked range of registered memory. The engine carries it about without looking inside; its
    /// owner validates it again at each use.
    type Span: Copy;

    /// Checks a remote operation on `len > 0` bytes at `va` of the region that `rkey` names.
    ///
    /// # Errors
    /// [`Denied`] when any check fails.
    fn check(&mut self, rkey: u32, va: u64, len: u32, need: Need) -> Result<Self::Span, Denied>;

    /// Adds `add` to the eight aligned bytes at `span` and returns what they held.
    ///
    /// # Errors
    /// [`Denied`] when the span is no longer valid.
    fn fetch_add(&mut self, span: Self::Span, add: u64) -> Result<u64, Denied>;

    /// Replaces the eight aligned bytes at `span` by `swap` if they are `compare`, and returns what
    /// they held.
    ///
    /// # Errors
    /// [`Denied`] when the span is no longer valid.
    fn compare_swap(&mut self, span: Self::Span, compare: u64, swap: u64) -> Result<u64, Denied>;

    /// Makes everything that was placed so far visible, or persistent, as `feth` says: for `len` bytes
    /// at `va`, or for the whole region that `rkey` names. By default nothing can be flushed.
    ///
    /// # Errors
    /// [`Denied`] if the memory may not be touched, or does not have that property.
    fn flush(&mut self, rkey: u32, va: u64, len: u32, feth: Feth) -> Result<(), Denied> {
        let _ = (rkey, va, len, feth);
        Err(Denied)
    }

    /// Invalidates a key, by the peer's wish (SEND with invalidate). By default none can be.
    ///
    /// # Errors
    /// [`Denied`] if there is no such key, or peers may not invalidate it.
    fn invalidate(&mut self, rkey: u32) -> Result<(), Denied> {
        let _ = rkey;
        Err(Denied)
    }

    /// Does what the send work request in `slot` says, which concerns this side alone
    /// ([`Op::Local`](crate::Op::Local)). By default there is nothing that could be done.
    ///
    /// # Errors
    /// The status that the work request ends with; nothing was done then, and its queue fails.
    fn execute_local(&mut self, slot: u64) -> Result<(), Status> {
        let _ = slot;
        Err(Status::LocalOperationError)
    }

    /// Takes the next receive work request off the queue: that of the queue pair, or the shared one
    /// with this number (XRC).
    fn take_receive(&mut self, shared: Option<Qpn>) -> Receive;

    /// How many receive work requests wait in the queue, to tell the peer (IBA 9.7.7.2); `None` if
    /// the queue is shared, and the number says nothing; that is the default.
    fn receives_posted(&self) -> Option<u32> {
        None
    }

    /// Reserves a buffer for the payload of one packet that came early, at most a path MTU. `None` if
    /// there is none, as by default: then the packet is dropped, and asked for again.
    fn hold(&mut self) -> Option<u32> {
        None
    }
}

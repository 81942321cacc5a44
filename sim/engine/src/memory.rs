//! What the engine must know about memory, and asks its owner.

/// The right that a remote operation needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// RDMA WRITE.
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

    /// Takes the next receive work request off the queue.
    fn take_receive(&mut self) -> Receive;
}

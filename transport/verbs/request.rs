//! What a queue can be asked to do.

use std::fmt;

use super::error::PostReason;
use super::pool::Lease;
use super::remote::RemoteSlice;
use crate::provider::{Segment, SendOp, SendWork};

/// What a completed request was.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// A message to the peer, with or without immediate data.
    Send,
    /// Bytes into a window of the peer, with or without immediate data.
    Write,
    /// Bytes out of a window of the peer.
    Read,
    /// Adding to 8 bytes of a window of the peer.
    FetchAdd,
    /// Replacing 8 bytes of a window of the peer if they were as expected.
    CompareSwap,
    /// A message from the peer.
    Recv,
    /// The peer wrote into a window and sent immediate data with it; the receive's buffer was not used.
    RecvWriteImm,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Send => "send",
            Operation::Write => "write",
            Operation::Read => "read",
            Operation::FetchAdd => "fetch-add",
            Operation::CompareSwap => "compare-swap",
            Operation::Recv => "recv",
            Operation::RecvWriteImm => "recv-write-imm",
        })
    }
}

/// A request for a send queue, with the buffer that it works on.
///
/// [`Qp::send`](crate::Qp::send) and its siblings make and post one at once. A `Request` is for what they have no
/// argument for, and for a [`Batch`](crate::Batch).
#[derive(Debug)]
#[must_use = "a request does nothing until it is posted"]
pub struct Request {
    pub(crate) op: SendOp,
    pub(crate) lease: Lease,
    /// The bytes of a peer's window that it is about, for operations on one.
    remote_len: u64,
    pub(crate) id: u64,
    fence: bool,
    solicited: bool,
}

impl Request {
    fn new(op: SendOp, lease: Lease, remote_len: u64) -> Request {
        Request { op, lease, remote_len, id: 0, fence: false, solicited: false }
    }

    /// Sends the lease's bytes: they arrive in the buffer that the peer posted first.
    pub fn send(lease: Lease) -> Request {
        Request::new(SendOp::Send, lease, u64::MAX)
    }

    /// Sends the lease's bytes, and a number that arrives with them.
    pub fn send_imm(lease: Lease, imm: u32) -> Request {
        Request::new(SendOp::SendImm(imm), lease, u64::MAX)
    }

    /// Writes the lease's bytes to the beginning of `remote`; the peer's program is not told.
    pub fn write(lease: Lease, remote: RemoteSlice) -> Request {
        Request::new(SendOp::Write { address: remote.address, key: remote.key }, lease, remote.len)
    }

    /// Writes the lease's bytes to the beginning of `remote`; then a number arrives, as a completion of the
    /// receive that the peer posted first.
    pub fn write_imm(lease: Lease, remote: RemoteSlice, imm: u32) -> Request {
        Request::new(SendOp::WriteImm { address: remote.address, key: remote.key, imm }, lease, remote.len)
    }

    /// Reads all of `remote` into the lease.
    pub fn read(lease: Lease, remote: RemoteSlice) -> Request {
        Request::new(SendOp::Read { address: remote.address, key: remote.key }, lease, remote.len)
    }

    /// Adds `add` to the first 8 bytes of `remote`, which are aligned to 8, at once; what they were arrives in the
    /// lease. Wraps around.
    pub fn fetch_add(lease: Lease, remote: RemoteSlice, add: u64) -> Request {
        Request::new(SendOp::FetchAdd { address: remote.address, key: remote.key, add }, lease, remote.len)
    }

    /// Replaces the first 8 bytes of `remote`, which are aligned to 8, by `new` if they are `expected`, at once;
    /// what they were arrives in the lease.
    pub fn compare_swap(lease: Lease, remote: RemoteSlice, expected: u64, new: u64) -> Request {
        let op = SendOp::CompareSwap { address: remote.address, key: remote.key, expected, new };
        Request::new(op, lease, remote.len)
    }

    /// Gives it a number of the program's own, which its completion carries. 0 without this.
    pub fn id(mut self, id: u64) -> Request {
        self.id = id;
        self
    }

    /// Lets it begin only when all READs and atomics posted before it are complete.
    pub fn fence(mut self) -> Request {
        self.fence = true;
        self
    }

    /// Marks its arrival as an event that wakes a peer who waits for solicited events only.
    pub fn solicited(mut self) -> Request {
        self.solicited = true;
        self
    }

    /// The buffer; the request is forgotten.
    pub fn into_lease(self) -> Lease {
        self.lease
    }

    /// What it is.
    pub fn operation(&self) -> Operation {
        self.op.operation()
    }

    /// How many bytes it moves.
    ///
    /// # Errors
    /// [`PostReason::TooLong`] or [`PostReason::TooShort`] if the buffer and the remote slice do not fit together.
    fn len(&self) -> Result<u32, PostReason> {
        let capacity = self.lease.capacity() as u64;
        let len = match self.op {
            SendOp::Send | SendOp::SendImm(_) | SendOp::Write { .. } | SendOp::WriteImm { .. } => {
                let len = self.lease.len() as u64;
                if len > self.remote_len {
                    return Err(PostReason::TooLong);
                }
                len
            }
            SendOp::Read { .. } => self.remote_len,
            SendOp::FetchAdd { .. } | SendOp::CompareSwap { .. } => {
                if self.remote_len < 8 || capacity < 8 {
                    return Err(PostReason::TooShort);
                }
                8
            }
        };
        match u32::try_from(len) {
            Ok(short) if len <= capacity => Ok(short),
            _ => Err(PostReason::TooLong),
        }
    }

    /// The work of the request for the provider, but for its id.
    pub(crate) fn work(&self) -> Result<SendWork<'static>, PostReason> {
        let local = self.lease.local();
        Ok(SendWork {
            id: 0,
            op: self.op,
            local: Segment { address: local.base, len: self.len()?, key: local.key },
            fence: self.fence,
            solicited: self.solicited,
            inline: None,
        })
    }

    /// Puts a request together again that was taken apart to be posted.
    pub(crate) fn again(template: Parts, lease: Lease) -> Request {
        let Parts { op, remote_len, id, fence, solicited } = template;
        Request { op, lease, remote_len, id, fence, solicited }
    }

    /// Takes the lease out, and keeps what is needed to put the request together again.
    pub(crate) fn apart(self) -> (Parts, Lease) {
        let Request { op, lease, remote_len, id, fence, solicited } = self;
        (Parts { op, remote_len, id, fence, solicited }, lease)
    }
}

/// A request without its lease.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) op: SendOp,
    remote_len: u64,
    pub(crate) id: u64,
    fence: bool,
    solicited: bool,
}

/// A buffer for a receive queue.
///
/// A [`Lease`] alone is one with the id 0.
#[derive(Debug)]
#[must_use = "a buffer receives nothing until it is posted"]
pub struct Receive {
    pub(crate) lease: Lease,
    pub(crate) id: u64,
}

impl Receive {
    /// Receives into all of the lease, whatever its length is.
    pub fn new(lease: Lease) -> Receive {
        Receive { lease, id: 0 }
    }

    /// Gives it a number of the program's own, which its completion carries.
    pub fn id(mut self, id: u64) -> Receive {
        self.id = id;
        self
    }
}

impl From<Lease> for Receive {
    fn from(lease: Lease) -> Receive {
        Receive::new(lease)
    }
}

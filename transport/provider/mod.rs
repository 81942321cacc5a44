//! Who does the work: the traits between the safe API and the devices under it, and how one is chosen.
//!
//! A provider implements five object-safe traits. They are not public, since the soundness of the safe API stands
//! on what their comments promise: above all that after [`RegionBackend::deregister`] and [`QpBackend::destroy`]
//! nothing touches the memory any more.

pub(crate) mod any;
mod options;
pub(crate) mod soft;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyverbs_memory::{Access, Block};

pub use any::{Candidate, candidates};
pub use options::{DeviceOptions, LinkKind, ProviderKind};

use crate::verbs::completion::Status;
use crate::verbs::connection::Endpoint;
use crate::verbs::device::DeviceAttributes;
use crate::verbs::error::{Error, PostReason};
use crate::verbs::queue_pair::QpOptions;
use crate::verbs::request::Operation;

/// A device that is open.
pub(crate) trait DeviceBackend: Send + Sync {
    /// What it is; the same at every call.
    fn attributes(&self) -> &DeviceAttributes;

    /// Makes a protection domain.
    fn allocate_domain(&self) -> Result<Box<dyn DomainBackend>, Error>;

    /// Makes a completion queue with at least `depth` places.
    fn create_completion_queue(&self, depth: u32) -> Result<Box<dyn CqBackend>, Error>;

    /// Called between two looks for something that was not there.
    fn relax(&self);

    /// The clock that waiting is measured with.
    fn now(&self) -> Duration;

    /// Why it works no more, if so.
    fn failure(&self) -> Option<String>;

    /// What was counted.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

/// A protection domain of a device.
pub(crate) trait DomainBackend: Send + Sync {
    /// Registers a range of a block. The provider may keep the block, and touches it only as `access` and work
    /// requests that name the registration allow.
    fn register(
        &self,
        block: &Arc<Block>,
        range: Range<usize>,
        access: Access,
    ) -> Result<Box<dyn RegionBackend>, Error>;

    /// Makes a queue pair, ready for receives.
    ///
    /// A completion queue that is not of this provider is an error.
    fn create_queue_pair(&self, request: &QpRequest<'_>) -> Result<Box<dyn QpBackend>, Error>;
}

/// What a queue pair is made of.
pub(crate) struct QpRequest<'a> {
    pub(crate) send_cq: &'a dyn CqBackend,
    pub(crate) recv_cq: &'a dyn CqBackend,
    /// Checked against the attributes.
    pub(crate) options: &'a QpOptions,
}

/// A registration.
pub(crate) trait RegionBackend: Send + Sync {
    /// What work requests on this side call it.
    fn local(&self) -> LocalKey;

    /// The address of its first byte and the key, as peers call it.
    fn remote(&self) -> (u64, u64);

    /// Ends it. After `Ok` neither the device nor a peer touches the memory through it. On an error they may.
    fn deregister(self: Box<Self>) -> Result<(), Error>;
}

pub(crate) use crate::verbs::region::LocalKey;

/// A completion queue.
pub(crate) trait CqBackend: Any + Send + Sync {
    /// Takes completions that are there, as many as fit into `out`, and returns how many. Each posted request is
    /// reported once, unless its queue pair is destroyed first. Never blocks, but if there are none it lets others
    /// run, as `relax` does.
    fn poll(&self, out: &mut [RawCompletion]) -> usize;

    /// Sleeps until there may be something to poll, or `timeout` is over; true in the first case.
    fn wait(&self, timeout: Duration) -> bool;
}

/// A completion, as a provider reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawCompletion {
    /// The id that was posted.
    pub(crate) id: u64,
    pub(crate) status: Status,
    /// A receive that was used up by a write with immediate data.
    pub(crate) write_imm: bool,
    /// Bytes received.
    pub(crate) len: u32,
    pub(crate) imm: Option<u32>,
}

impl RawCompletion {
    /// For arrays that are filled later.
    pub(crate) const EMPTY: RawCompletion =
        RawCompletion { id: 0, status: Status::GeneralErr, write_imm: false, len: 0, imm: None };
}

/// A queue pair.
pub(crate) trait QpBackend: Send + Sync {
    /// Its number.
    fn number(&self) -> u32;

    /// The sequence number that it begins to send with.
    fn initial_psn(&self) -> u32;

    /// Connects it. The MTU of `peer` is the one to use.
    fn connect(&self, peer: &Endpoint, options: &QpOptions) -> Result<(), Error>;

    /// Posts requests in order, with one doorbell, if all can be; otherwise those before the refused one.
    fn post_send(&self, work: &[SendWork<'_>]) -> Result<(), Refusal>;

    /// Posts a buffer.
    fn post_recv(&self, work: &RecvWork) -> Result<(), PostReason>;

    /// Destroys it. After `Ok` its requests touch no memory any more, and no poll that begins then reports one.
    /// On an error they may.
    fn destroy(self: Box<Self>) -> Result<(), Error>;
}

/// Which request was not posted, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    pub(crate) index: usize,
    pub(crate) reason: PostReason,
}

/// Local memory of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) key: u64,
}

/// A request for a send queue, always signalled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendWork<'a> {
    pub(crate) id: u64,
    pub(crate) op: SendOp,
    pub(crate) local: Segment,
    pub(crate) fence: bool,
    pub(crate) solicited: bool,
    /// The bytes themselves, instead of `local`.
    pub(crate) inline: Option<&'a [u8]>,
}

impl SendWork<'_> {
    /// For arrays that are filled later.
    pub(crate) const EMPTY: SendWork<'static> = SendWork {
        id: 0,
        op: SendOp::Send,
        local: Segment { address: 0, len: 0, key: 0 },
        fence: false,
        solicited: false,
        inline: None,
    };
}

/// What a send queue does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SendOp {
    Send,
    SendImm(u32),
    Write { address: u64, key: u64 },
    WriteImm { address: u64, key: u64, imm: u32 },
    Read { address: u64, key: u64 },
    FetchAdd { address: u64, key: u64, add: u64 },
    CompareSwap { address: u64, key: u64, expected: u64, new: u64 },
}

impl SendOp {
    /// What a program calls it.
    pub(crate) fn operation(self) -> Operation {
        match self {
            SendOp::Send | SendOp::SendImm(_) => Operation::Send,
            SendOp::Write { .. } | SendOp::WriteImm { .. } => Operation::Write,
            SendOp::Read { .. } => Operation::Read,
            SendOp::FetchAdd { .. } => Operation::FetchAdd,
            SendOp::CompareSwap { .. } => Operation::CompareSwap,
        }
    }
}

/// A buffer for a receive queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecvWork {
    pub(crate) id: u64,
    pub(crate) local: Segment,
}

impl fmt::Debug for dyn DeviceBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.attributes(), f)
    }
}

//! What can go wrong: setting up, with words; posting, with a small code.

use std::io;

use anyverbs_engine::{QpState, QpType, cm};
use anyverbs_wire::mad::ServiceId;

/// Why an object could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The link's datagrams do not hold the smallest path MTU.
    #[error("the link carries datagrams of {max_datagram} bytes; RoCEv2 needs at least 320: raise its MTU")]
    LinkMtu {
        /// What the link carries, in bytes.
        max_datagram: usize,
    },
    /// The device has no more of these.
    #[error("the device has no room for another {object}: its limit is {limit}")]
    Exhausted {
        /// What was asked for.
        object: &'static str,
        /// How many there can be.
        limit: u32,
    },
    /// An attribute is out of range.
    #[error("{attribute} is {given}; it must be between {min} and {max}")]
    OutOfRange {
        /// The attribute, by its verbs name.
        attribute: &'static str,
        /// What was given.
        given: u64,
        /// The smallest allowed value.
        min: u64,
        /// The largest allowed value.
        max: u64,
    },
    /// The range is not inside the memory.
    #[error("bytes {start}..{end} are not inside a memory block of {len} bytes")]
    OutsideMemory {
        /// Start of the range.
        start: usize,
        /// End of the range.
        end: usize,
        /// Length of the block.
        len: usize,
    },
    /// Peers may not write where the owner may not (`ibv_reg_mr`).
    #[error("access {access:?} lets peers write without LOCAL_WRITE: add LOCAL_WRITE")]
    AccessFlags {
        /// What was asked for.
        access: anyverbs_memory::Access,
    },
    /// The memory may only be read, and a right to write was asked for.
    #[error("access {access:?} has a right to write, and the memory may only be read: leave that right out")]
    ReadOnlyMemory {
        /// What was asked for.
        access: anyverbs_memory::Access,
    },
    /// Something still uses the object (EBUSY).
    #[error("{users} {by} still use this {object}: end them first")]
    InUse {
        /// What was to end, or to change.
        object: &'static str,
        /// How many use it.
        users: u32,
        /// What uses it.
        by: &'static str,
    },
    /// Objects of this kind cannot do that (EOPNOTSUPP).
    #[error("a {object} cannot be {action}")]
    Unsupported {
        /// What was given.
        object: &'static str,
        /// What was asked for.
        action: &'static str,
    },
    /// An element names memory that may not be used so.
    #[error("element {index}: {source}")]
    Element {
        /// Which one.
        index: usize,
        /// Why.
        source: anyverbs_memory::AccessError,
    },
    /// The transition is not allowed from the present state.
    #[error("a queue pair cannot go from {from:?} to {to:?}")]
    State {
        /// The present state.
        from: QpState,
        /// The state that was asked for.
        to: QpState,
    },
    /// The peer's address is of another family than the device's.
    #[error("the peer's GID {peer} and this device's GID {own} are of different address families")]
    AddressFamily {
        /// The peer's.
        peer: std::net::IpAddr,
        /// Our own.
        own: std::net::IpAddr,
    },
    /// The path to the peer does not carry packets of this path MTU.
    #[error(
        "path_mtu is {given}, and the path to {peer} carries datagrams of {carried} bytes, headers included; {}",
        path_remedy(*.fits)
    )]
    PathMtu {
        /// The peer's GID.
        peer: std::net::IpAddr,
        /// What was given.
        given: u32,
        /// The largest path MTU that fits, if one does.
        fits: Option<u32>,
        /// The largest datagram that the path carries.
        carried: usize,
    },
    /// An object of another device was passed.
    #[error("the {object} belongs to another device")]
    OtherDevice {
        /// What was passed.
        object: &'static str,
    },
    /// An address that cannot be the destination of anything.
    #[error("{given} is no destination: {reason}")]
    Destination {
        /// The address.
        given: std::net::IpAddr,
        /// Why not.
        reason: &'static str,
    },
    /// The object's type or state does not allow it.
    #[error("{action} is not possible: {reason}")]
    Invalid {
        /// What was asked for.
        action: &'static str,
        /// Why it cannot be.
        reason: &'static str,
    },
    /// The connection manager refused.
    #[error("{action}: {source}")]
    Cm {
        /// What was being done.
        action: &'static str,
        /// Why not.
        source: cm::Error,
    },
    /// The queue pair is of another kind than the connection.
    #[error("a queue pair of type {own:?} cannot have a connection of type {wanted:?}")]
    Transport {
        /// The type of the queue pair.
        own: QpType,
        /// The transport service of the connection.
        wanted: cm::Transport,
    },
    /// Requests for the service go to somebody else at this address.
    #[error("listening on service {service}: {source}")]
    ServiceTaken {
        /// The service.
        service: ServiceId,
        /// Who has it, as the link says.
        source: io::Error,
    },
    /// Memory or entropy could not be had from the system.
    #[error("{action}: {source}")]
    System {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn path_remedy(fits: Option<u32>) -> String {
    match fits {
        Some(fits) => format!("take {fits}, or raise the MTU of the networks on the way"),
        None => "not even a path_mtu of 256 fits: raise the MTU of the networks on the way".to_owned(),
    }
}

impl NicError {
    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> NicError {
        move |source| NicError::System { action, source }
    }

    pub(crate) fn cm(action: &'static str) -> impl FnOnce(cm::Error) -> NicError {
        move |source| NicError::Cm { action, source }
    }
}

/// Checks an attribute against its range.
pub(crate) fn in_range(attribute: &'static str, given: u64, min: u64, max: u64) -> Result<(), NicError> {
    if (min..=max).contains(&given) {
        Ok(())
    } else {
        Err(NicError::OutOfRange { attribute, given, min, max })
    }
}

/// A post that stopped: the work requests before `index` are posted, it and those behind it are not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("work request {index}: {reason}")]
pub struct PostError {
    /// The first work request that was not posted.
    pub index: usize,
    /// Why.
    pub reason: PostReason,
}

/// Why a work request was not posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PostReason {
    /// The queue is full (ENOMEM).
    #[error("the queue is full")]
    QueueFull,
    /// The queue pair is in a state that takes no work requests of this kind (EINVAL).
    #[error("the queue pair is not in a state that takes this work request")]
    BadState,
    /// More scatter/gather elements than the queue pair was made for (EINVAL).
    #[error("too many scatter/gather elements")]
    TooManySges,
    /// More inline data than the device takes, or inline data for an operation that takes none.
    #[error("inline data is too long, or the operation takes none")]
    BadInline,
    /// The queue pair's type does not do this operation, or not for such a destination (EINVAL).
    #[error("the type of the queue pair does not do this operation, or needs another kind of destination")]
    BadOperation,
    /// The address handle is of another protection domain (EINVAL).
    #[error("the address handle is of another protection domain than the queue pair")]
    BadDestination,
    /// The queue pair takes its receives from a shared receive queue, or takes none (EINVAL).
    #[error("the queue pair has no receive queue of its own")]
    NoReceiveQueue,
    /// The message is longer than the device's limit, or an atomic's buffer is not eight bytes, or there are
    /// elements where none belong.
    #[error("the message has a length that is not allowed")]
    BadLength,
    /// A memory window of type 1 is bound by `Qp::bind_mw`, one of type 2 by a work request (EINVAL).
    #[error("a memory window of this type is not bound in this way")]
    BadWindow,
}

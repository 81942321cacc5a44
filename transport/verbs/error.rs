//! What can go wrong: in words when setting up, in small values on the data path.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::provider::Candidate;

/// A set-up call that failed: what was asked, what was found, and what to do.
///
/// The data path has smaller errors: [`PostError`], and the [`Status`](crate::Status) of a completion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// None of the devices that the options allow can be used.
    #[error("no usable device for `{asked}`{}", list(candidates))]
    NoDevice {
        /// The options, as text.
        asked: String,
        /// Every device that was considered, and why it was not taken.
        candidates: Vec<Candidate>,
    },

    /// The capture file could not be made.
    #[error("cannot write a capture to {}: {source}; choose a file in a directory that you may write to", path.display())]
    Capture {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The system gave no memory.
    #[error(
        "cannot allocate {len} bytes of memory that can be registered: {source}; ask for less, or raise the limit (`ulimit -l`, `ulimit -v`, the memory limit of the container)"
    )]
    Memory {
        /// How many bytes were asked for.
        len: usize,
        /// What the system said.
        source: io::Error,
    },

    /// An argument is outside of what the device can do.
    #[error("{what}: {asked} asked for, but {found}; {remedy}")]
    Limit {
        /// What was asked for: "completion queue depth".
        what: &'static str,
        /// The value asked for.
        asked: u64,
        /// What there is: "this device allows 1 to 65536".
        found: String,
        /// What to do.
        remedy: &'static str,
    },

    /// The completion queue has no room left for the completions of one more queue.
    ///
    /// Every send and receive slot of a queue pair reserves a place on its completion queue, so that a completion
    /// queue can never overflow.
    #[error(
        "the completion queue has {depth} places, {reserved} of them reserved by other queues: {asked} more do not fit; make it at least {} deep, or the queue pair shallower",
        u64::from(*reserved) + u64::from(*asked)
    )]
    CompletionQueueTooSmall {
        /// Places that the completion queue has.
        depth: u32,
        /// Places that the queues attached to it have reserved.
        reserved: u32,
        /// Places that this queue pair needs on it.
        asked: u32,
    },

    /// Two things that were put together belong to two devices.
    #[error("the {what} belongs to another device; make both from one `Device`")]
    ForeignDevice {
        /// What belongs to another device: "send completion queue".
        what: &'static str,
    },

    /// The peer's endpoint cannot be reached from this device.
    #[error("cannot connect {local} to {peer}: {reason}")]
    Unreachable {
        /// Our address.
        local: std::net::IpAddr,
        /// The peer's address.
        peer: std::net::IpAddr,
        /// Why, and what to do.
        reason: &'static str,
    },

    /// The provider refused, for a reason of its own.
    #[error("{action}: {source}")]
    Provider {
        /// What was being done: "creating a queue pair".
        action: &'static str,
        /// What the provider said.
        source: Box<dyn StdError + Send + Sync + 'static>,
    },
}

impl Error {
    /// Wraps what a provider said.
    pub(crate) fn provider(
        action: &'static str,
        source: impl Into<Box<dyn StdError + Send + Sync + 'static>>,
    ) -> Error {
        Error::Provider { action, source: source.into() }
    }
}

fn list(candidates: &[Candidate]) -> String {
    let mut text = String::new();
    for candidate in candidates {
        text.push_str("\n  ");
        text.push_str(&candidate.to_string());
    }
    text
}

/// Why a request was not posted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum PostReason {
    /// Every slot of the queue holds a request whose completion was not polled yet. Poll, then post again.
    QueueFull,
    /// The batch holds [`Batch::CAPACITY`](crate::Batch::CAPACITY) requests. Submit it, then push again.
    BatchFull,
    /// The message is longer than the remote slice, than the buffer, than `max_inline`, or than the device's
    /// `max_message`.
    TooLong,
    /// An atomic needs 8 bytes, and the buffer or the remote slice has fewer.
    TooShort,
    /// The buffer comes from another [`Domain`](crate::Domain) than the queue pair.
    WrongDomain,
    /// The queue pair takes no requests in the state in which it is.
    BadState,
    /// The provider refused for a reason of its own.
    Refused,
}

impl fmt::Display for PostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PostReason::QueueFull => "the queue is full: poll its completion queue first",
            PostReason::BatchFull => "the batch is full: submit it first",
            PostReason::TooLong => "the message is too long for where it goes",
            PostReason::TooShort => "an atomic operation needs 8 bytes on both sides",
            PostReason::WrongDomain => "the buffer belongs to another protection domain",
            PostReason::BadState => "the queue pair is in a state that takes no requests",
            PostReason::Refused => "the provider refused the request",
        })
    }
}

impl StdError for PostReason {}

/// A request that was not posted, handed back.
#[derive(Debug)]
pub struct PostError<T> {
    /// Why it was not posted.
    pub reason: PostReason,
    /// What was to be posted: the lease, or the whole request.
    pub request: T,
}

impl<T> fmt::Display for PostError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not posted: {}", self.reason)
    }
}

impl<T: fmt::Debug> StdError for PostError<T> {}

impl<T> From<PostError<T>> for PostReason {
    fn from(error: PostError<T>) -> PostReason {
        error.reason
    }
}

/// A range that leaves the memory that it was meant for, or an atomic that is not aligned to 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error(
    "{len} bytes at offset {offset} are not inside of {size} bytes, or not aligned as an atomic has to be"
)]
pub struct OutOfBounds {
    /// Where the range starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// How much memory there is, in bytes.
    pub size: u64,
}

/// Bytes or text from elsewhere that are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not {expected}: {problem}")]
pub struct ParseError {
    /// What was expected: "an endpoint".
    pub expected: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl ParseError {
    pub(crate) fn new(expected: &'static str, problem: impl Into<String>) -> ParseError {
        ParseError { expected, problem: problem.into() }
    }
}

//! Both sides of a row: the client, which measures, and the server, which answers and checks.

mod bandwidth;
mod content;
mod latency;
mod limit;
mod recorder;
mod row;
mod verbs;

use std::io;
use std::time::{Duration, Instant};

pub(crate) use recorder::Recorder;
pub(crate) use row::Row;
pub(crate) use verbs::Local;

use crate::control::{Connection, ControlError, Message};
use crate::pattern::Mismatch;
use crate::signals;

/// For so long a client waits for one operation before it calls the run stuck. An RC queue pair reports a
/// peer that does not answer well before.
const STALL_LIMIT: Duration = Duration::from_secs(10);

/// Empty polls between two looks at the clock, the signals and the control connection.
const LOOK_EVERY: u32 = 64;

/// Why a row ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    /// The other process, or the connection to it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Something could not be set up.
    #[error(transparent)]
    Setup(#[from] anyverbs::Error),
    /// A request was not taken.
    #[error("operation {sequence} was refused: {reason}")]
    Refused {
        /// Which.
        sequence: u64,
        /// Why.
        reason: anyverbs::PostReason,
    },
    /// An operation failed.
    #[error("{operation:?} {sequence} failed: {status}")]
    Failed {
        /// What.
        operation: anyverbs::Operation,
        /// Which.
        sequence: u64,
        /// Why.
        status: anyverbs::Status,
    },
    /// The content is not what was sent.
    #[error("wrong content: {0}")]
    Content(String),
    /// Nothing happens.
    #[error("no completion for {} s after {done} operations", STALL_LIMIT.as_secs())]
    Stalled {
        /// How many were complete.
        done: u64,
    },
    /// The other side's end does not fit.
    #[error("the other side's end of the row cannot be used: {0}")]
    BadEnd(String),
    /// Messages that were acknowledged did not come.
    #[error("{missing} messages were acknowledged and never arrived")]
    Missing {
        /// How many.
        missing: u64,
    },
    /// The raw sockets do not get through to each other.
    #[error("raw datagrams get no answer: {0}")]
    RawSilent(String),
    /// A raw socket broke.
    #[error("raw socket: {0}")]
    Raw(#[from] io::Error),
    /// A bug in this program, said instead of a panic.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl MeasureError {
    /// Whether an operation was only taken along by another one's failure.
    pub(crate) fn is_flush(&self) -> bool {
        matches!(self, MeasureError::Failed { status: anyverbs::Status::WrFlushErr, .. })
    }

    /// Whether it is the user who wants to stop.
    pub(crate) fn is_interrupt(&self) -> bool {
        matches!(self, MeasureError::Control(ControlError::Interrupted))
    }

    /// What it says, for the other side to say it as an error of its own.
    pub(crate) fn into_words(self) -> String {
        match self {
            MeasureError::Content(words) => words,
            other => other.to_string(),
        }
    }

    /// Whether the other rows can still be measured: the limit is missing, and nothing else.
    pub(crate) fn concerns_raw_only(&self) -> bool {
        matches!(self, MeasureError::RawSilent(_) | MeasureError::Raw(_))
    }
}

impl From<Mismatch> for MeasureError {
    fn from(mismatch: Mismatch) -> Self {
        MeasureError::Content(mismatch.to_string())
    }
}

impl From<anyverbs::OutOfBounds> for MeasureError {
    fn from(_: anyverbs::OutOfBounds) -> Self {
        MeasureError::Internal("a range outside of a buffer")
    }
}

/// What a client measured in one slice of a row.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Slice {
    /// Operations that completed.
    pub operations: u64,
    /// Payload bytes that they moved.
    pub bytes: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// Messages of which this side checked every byte.
    pub whole: u64,
    /// Messages of which this side checked the ends.
    pub ends: u64,
    /// Raw datagrams' bytes that did not arrive, or echoes that did not come.
    pub lost: u64,
}

/// What a polling loop looks at when it finds nothing, now and then: whether it should still go on.
pub(crate) struct Watch<'c> {
    control: &'c Connection,
    empty: u32,
    quiet_since: Option<Instant>,
    limit: Option<Duration>,
    done: u64,
}

impl<'c> Watch<'c> {
    /// For a client: nothing may come over the control connection, and silence has a limit.
    pub(crate) fn client(control: &'c Connection) -> Self {
        Watch { control, empty: 0, quiet_since: None, limit: Some(STALL_LIMIT), done: 0 }
    }

    /// For a server: the client decides when it is over.
    pub(crate) fn server(control: &'c Connection) -> Self {
        Watch { limit: None, ..Watch::client(control) }
    }

    /// Something was done.
    #[inline]
    pub(crate) fn progress(&mut self) {
        self.done += 1;
        self.empty = 0;
        self.quiet_since = None;
    }

    /// Nothing was done. Gives a message of the other side, if there is one.
    ///
    /// # Errors
    /// The other side is gone or gave up; the user wants to stop; it has been quiet for too long.
    #[inline]
    pub(crate) fn idle(&mut self) -> Result<Option<Message>, MeasureError> {
        self.empty = self.empty.wrapping_add(1);
        if self.empty.is_multiple_of(LOOK_EVERY) { self.look() } else { Ok(None) }
    }

    /// As [`idle`](Self::idle), where no message may come.
    ///
    /// # Errors
    /// As there, and a message came.
    #[inline]
    pub(crate) fn idle_alone(&mut self) -> Result<(), MeasureError> {
        match self.idle()? {
            None => Ok(()),
            Some(message) => Err(self.control.unexpected(&message, "nothing").into()),
        }
    }

    #[cold]
    fn look(&mut self) -> Result<Option<Message>, MeasureError> {
        if signals::pending() {
            return Err(ControlError::Interrupted.into());
        }
        let since = *self.quiet_since.get_or_insert_with(Instant::now);
        if self.limit.is_some_and(|limit| since.elapsed() > limit) {
            return Err(MeasureError::Stalled { done: self.done });
        }
        Ok(self.control.try_receive()?)
    }
}

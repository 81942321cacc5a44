//! What goes into each message and what has to come out, by operation.
//!
//! *send*: message `n` holds pattern `n`. In a verified pass, and for small messages always, all of it is
//! written and checked; in a timed pass the ends of every message and the whole of every 64th.
//!
//! *write*: as send when it is answered one by one. In a pipelined stream message `n` goes to slot `n` modulo
//! depth of a window that was wiped before; its body is that of the slot, its ends say `n`, and the server
//! checks every slot whole at the end of each slice.
//!
//! *read*: slots hold a pattern each; the reader spoils its buffer before the request and checks it afterwards.
//!
//! *fetch-add*: each adds one, and each answer has to be the number of those before it.

use anyverbs::{Completion, Lease, Operation, RemoteSlice, RemoteToken, Request};

use super::MeasureError;
use crate::control::Phase;
use crate::pattern::Pattern;
use crate::plan::{Action, RowSpec};

/// In a timed pass, every so-manieth message is checked whole.
const WHOLE_EVERY: u64 = 64;

/// Whether every byte of this message counts.
#[inline]
pub(crate) fn is_whole(phase: Phase, sequence: u64) -> bool {
    phase == Phase::Verify || sequence.is_multiple_of(WHOLE_EVERY)
}

/// Who wrote a message: a message that was reflected is not one that was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Author {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// What a side checked.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Checked {
    /// Messages of which every byte was checked.
    pub whole: u64,
    /// Messages of which the ends were checked.
    pub ends: u64,
}

/// The content of the messages of one row, one way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pattern: Pattern,
    spec: RowSpec,
}

impl Content {
    /// The content that `author` writes in a row.
    pub(crate) fn new(spec: RowSpec, author: Author) -> Self {
        let kind = 2 * spec.action as u8 + (author == Author::Server) as u8;
        Content { pattern: Pattern::new(kind, spec.size), spec }
    }

    /// The patterns underneath.
    pub(crate) fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// The slot of a window that an operation of a stream uses.
    #[inline]
    pub(crate) fn slot(&self, sequence: u64) -> u64 {
        sequence % self.spec.depth as u64
    }

    /// Writes message `sequence`; the rest of the buffer may be an older message unless all of it counts.
    #[inline]
    pub(crate) fn compose(&self, phase: Phase, sequence: u64, buffer: &mut [u8]) {
        if is_whole(phase, sequence) {
            self.pattern.fill(sequence, buffer);
        } else {
            self.pattern.refresh(sequence, buffer);
        }
    }

    /// Checks message `sequence` as strictly as it was written.
    #[inline]
    pub(crate) fn check(
        &self,
        phase: Phase,
        sequence: u64,
        found: &[u8],
        checked: &mut Checked,
    ) -> Result<(), MeasureError> {
        if is_whole(phase, sequence) || self.pattern.is_small() {
            self.pattern.check(sequence, found)?;
            checked.whole += 1;
        } else {
            self.pattern.check_ends(sequence, found)?;
            checked.ends += 1;
        }
        Ok(())
    }

    /// Prepares the buffer of operation `sequence` of a stream; `fresh` if it was not used in this stream yet.
    #[inline]
    pub(crate) fn prepare(&self, phase: Phase, sequence: u64, fresh: bool, lease: &mut Lease) {
        match self.spec.action {
            Action::Send => {
                let phase = if fresh { Phase::Verify } else { phase };
                self.compose(phase, sequence, lease);
            }
            Action::Write if fresh => self.pattern.fill_with(self.slot(sequence), sequence, lease),
            // The buffer came back from the same slot, since operations complete in order.
            Action::Write => self.pattern.stamp(sequence, lease),
            Action::Read if is_whole(phase, sequence) => lease.fill(0),
            Action::Read => self.pattern.spoil(lease),
            _ => {}
        }
    }

    /// The request of operation `sequence` of a stream.
    ///
    /// # Errors
    /// The other side's window is too small.
    #[inline]
    pub(crate) fn request(
        &self,
        sequence: u64,
        lease: Lease,
        remote: &RemoteToken,
    ) -> Result<Request, MeasureError> {
        Ok(match self.spec.action {
            Action::Send => Request::send(lease),
            Action::Write => Request::write(lease, self.remote_slot(sequence, remote)?),
            Action::Read => Request::read(lease, self.remote_slot(sequence, remote)?),
            Action::FetchAdd => Request::fetch_add(lease, remote.at(0, 8)?, 1),
            _ => return Err(MeasureError::Internal("a raw row with verbs")),
        })
    }

    fn remote_slot(&self, sequence: u64, remote: &RemoteToken) -> Result<RemoteSlice, MeasureError> {
        let size = self.spec.size as u64;
        Ok(remote.at(self.slot(sequence) * size, size)?)
    }

    /// Checks what the completion of operation `sequence` brought to this side, and gives its buffer.
    ///
    /// # Errors
    /// The operation failed, or brought something wrong.
    #[inline]
    pub(crate) fn accept(
        &self,
        phase: Phase,
        sequence: u64,
        completion: Completion,
        checked: &mut Checked,
    ) -> Result<Lease, MeasureError> {
        if completion.status != anyverbs::Status::Success {
            let Completion { operation, status, .. } = completion;
            return Err(MeasureError::Failed { operation, sequence, status });
        }
        match completion.operation {
            Operation::Read => {
                let found = completion.buffer.as_deref().unwrap_or_default();
                let slot = self.slot(sequence);
                if is_whole(phase, sequence) || self.pattern.is_small() {
                    self.pattern.check(slot, found)?;
                    checked.whole += 1;
                } else {
                    self.pattern.check_ends(slot, found)?;
                    checked.ends += 1;
                }
            }
            Operation::FetchAdd => {
                let found = completion.original();
                if found != Some(sequence) {
                    let found = found.map_or("nothing".into(), |n| n.to_string());
                    return Err(MeasureError::Content(format!(
                        "fetch-add {sequence} brought {found}, not {sequence}"
                    )));
                }
                checked.whole += 1;
            }
            _ => {}
        }
        completion.buffer.ok_or(MeasureError::Internal("a completion without its buffer"))
    }
}

//! Many operations at a time.

use std::time::{Duration, Instant};

use anyverbs::{Batch, Lease, Operation, PostReason, Request};

use super::content::Checked;
use super::verbs::Verbs;
use super::{MeasureError, Slice, Watch};
use crate::control::{Done, Message, Phase};
use crate::plan::{Action, Length};
use crate::signals;

/// How long a server waits for messages that were acknowledged and that it has not seen yet.
const LATE: Duration = Duration::from_secs(5);

impl Verbs {
    /// The client's part of a slice: keeps `depth` operations under way. The clock runs from the first post to
    /// the last completion.
    ///
    /// # Errors
    /// An operation failed, brought something wrong, or did not complete.
    pub(crate) fn measure_bandwidth(
        &mut self,
        watch: &mut Watch<'_>,
        phase: Phase,
        length: Length,
    ) -> Result<Slice, MeasureError> {
        let spec = self.parts.spec;
        // A reader looks for what the server wrote; everything else is written here.
        let content = if spec.action == Action::Read { self.parts.theirs } else { self.parts.ours };
        let most = match length {
            Length::Operations(n) => n,
            Length::Time(_) => u64::MAX,
        };
        let first = self.next;
        let mut buffers = Vec::with_capacity(spec.depth);
        for sequence in (first..).take(most.min(spec.depth as u64) as usize) {
            let mut lease = self.buffer(watch)?;
            content.prepare(phase, sequence, true, &mut lease);
            buffers.push(lease);
        }

        let start = Instant::now();
        let mut stream = Stream { issued: first, done: first, checked: Checked::default(), failure: None };
        let mut batch = self.qp.batch();
        for lease in buffers {
            stream.issue(&mut batch, content.request(stream.issued, lease, &self.remote)?)?;
        }
        submit(&mut batch, stream.issued)?;
        let mut open = true;
        while stream.done < stream.issued {
            let taken = self.parts.cq.poll(|completion| {
                let more = open && stream.issued - first < most;
                if let Err(error) = stream.turn(completion, more, &content, phase, &self.remote, &mut batch) {
                    stream.failure.get_or_insert(error);
                }
            });
            if let Some(failure) = stream.failure.take() {
                return Err(self.cause(failure));
            }
            submit(&mut batch, stream.issued)?;
            if taken == 0 {
                watch.idle_alone()?;
            } else {
                watch.progress();
                open = open
                    && !signals::pending()
                    && match length {
                        Length::Time(time) => start.elapsed() < time,
                        Length::Operations(_) => true,
                    };
            }
        }
        let elapsed = start.elapsed();
        drop(batch);
        self.next = stream.done;
        let operations = stream.done - first;
        Ok(Slice {
            operations,
            bytes: operations * spec.size as u64,
            elapsed,
            whole: stream.checked.whole,
            ends: stream.checked.ends,
            lost: 0,
        })
    }

    /// What made a queue pair flush its requests, if that is all a completion says: the failure itself may
    /// come behind requests that it took along.
    #[cold]
    fn cause(&self, failure: MeasureError) -> MeasureError {
        let mut cause = failure;
        for _ in 0..1000 {
            if !cause.is_flush() {
                break;
            }
            self.parts.cq.poll(|completion| {
                if let Err(error) = self.succeeded(&completion)
                    && cause.is_flush()
                {
                    cause = error;
                }
            });
        }
        cause
    }

    /// The server's part of a stream of sends: takes messages, checks them, posts their buffers again.
    ///
    /// # Errors
    /// An operation failed, or messages are missing. Wrong content is noted in what is returned.
    pub(crate) fn sink_sends(&mut self, watch: &mut Watch<'_>, phase: Phase) -> Result<Done, MeasureError> {
        let mut checked = Checked::default();
        let mut mismatch = None;
        let mut end = None;
        loop {
            let mut next = self.next;
            let mut failure = None;
            let taken = self.parts.cq.poll(|completion| {
                if let Err(error) = self.succeeded(&completion) {
                    failure = Some(error);
                    return;
                }
                if completion.operation != Operation::Recv {
                    return;
                }
                let Some(buffer) = completion.buffer else { return };
                let found = buffer.get(..completion.len).unwrap_or_default();
                if let Err(error) = self.parts.theirs.check(phase, next, found, &mut checked) {
                    mismatch.get_or_insert(error);
                }
                next += 1;
                if let Err(error) = self.receive_into(buffer) {
                    failure = Some(error);
                }
            });
            self.next = next;
            if let Some(failure) = failure {
                return Err(failure);
            }
            if taken > 0 {
                watch.progress();
                continue;
            }
            if let Some(Message::Stop { end: said, .. }) = watch.idle()? {
                end = Some((said, Instant::now()));
            }
            if let Some((end, since)) = end {
                if self.next >= end {
                    let mismatch = mismatch.map(MeasureError::into_words);
                    return Ok(Done {
                        whole: checked.whole,
                        ends: checked.ends,
                        mismatch,
                        ..Done::default()
                    });
                }
                if since.elapsed() > LATE {
                    return Err(MeasureError::Missing { missing: end - self.next });
                }
            }
        }
    }

    /// The server's part of one-sided operations: it polls, as a busy program does, and checks at the end.
    ///
    /// # Errors
    /// An operation failed. Wrong content is noted in what is returned.
    pub(crate) fn stand_by(&mut self, watch: &mut Watch<'_>) -> Result<Done, MeasureError> {
        let first = self.next;
        loop {
            if self.reap()? > 0 {
                watch.progress();
                continue;
            }
            if let Some(Message::Stop { end, .. }) = watch.idle()? {
                self.next = end;
                return Ok(match self.check_after(first, end) {
                    Ok(checked) => Done { whole: checked.whole, ends: checked.ends, ..Done::default() },
                    Err(error) => Done { mismatch: Some(error.into_words()), ..Done::default() },
                });
            }
        }
    }

    /// What a server can check only after the last of the operations `first..end`.
    fn check_after(&mut self, first: u64, end: u64) -> Result<Checked, MeasureError> {
        match self.parts.spec.action {
            Action::Write => self.parts.check_slots(first, end),
            Action::FetchAdd => match self.parts.window.load_u64(0)? {
                sum if sum == end => Ok(Checked::default()),
                sum => {
                    Err(MeasureError::Content(format!("the counter is {sum} after {end} additions of one")))
                }
            },
            _ => Ok(Checked::default()),
        }
    }
}

/// Where a stream is.
struct Stream {
    issued: u64,
    done: u64,
    checked: Checked,
    failure: Option<MeasureError>,
}

impl Stream {
    fn issue(&mut self, batch: &mut Batch<'_>, request: Request) -> Result<(), MeasureError> {
        if batch.len() == Batch::CAPACITY {
            submit(batch, self.issued)?;
        }
        batch.push(request).map_err(|e| MeasureError::Refused { sequence: self.issued, reason: e.reason })?;
        self.issued += 1;
        Ok(())
    }

    /// Takes a completion, and issues the next operation with its buffer.
    #[inline]
    fn turn(
        &mut self,
        completion: anyverbs::Completion,
        more: bool,
        content: &super::content::Content,
        phase: Phase,
        remote: &anyverbs::RemoteToken,
        batch: &mut Batch<'_>,
    ) -> Result<(), MeasureError> {
        let mut lease: Lease = content.accept(phase, self.done, completion, &mut self.checked)?;
        self.done += 1;
        if more {
            content.prepare(phase, self.issued, false, &mut lease);
            let request = content.request(self.issued, lease, remote)?;
            self.issue(batch, request)?;
        }
        Ok(())
    }
}

/// Rings the doorbell. A queue that is full now has room after the next completion.
#[inline]
fn submit(batch: &mut Batch<'_>, sequence: u64) -> Result<(), MeasureError> {
    if batch.is_empty() {
        return Ok(());
    }
    match batch.submit() {
        Ok(()) | Err(PostReason::QueueFull) => Ok(()),
        Err(reason) => Err(MeasureError::Refused { sequence, reason }),
    }
}

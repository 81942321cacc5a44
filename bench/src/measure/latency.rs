//! One operation at a time.
//!
//! The loop is closed: an operation starts when the one before it is over, and each sample is one operation.
//! A pause of the machine therefore appears once, in the operation that it hit, and not in those that a steady
//! stream of requests would have issued meanwhile (coordinated omission): the percentiles are those of
//! operations, not of a service under a given load.
//!
//! The clock runs from just before the request is posted until its effect is seen. Buffers are written before,
//! and checked after. The server checks a message after it has answered, while the client checks the answer.

use std::time::{Duration, Instant};

use anyverbs::{Lease, Operation};

use super::content::Checked;
use super::verbs::Verbs;
use super::{MeasureError, Recorder, Slice, Watch};
use crate::control::{Done, Message, Phase};
use crate::plan::{Action, Length};
use crate::signals;

/// How long the bytes of a write may lag behind its last ones: the specification promises an order only at a
/// completion, and this receiver looks at memory.
const SETTLE: Duration = Duration::from_millis(2);

/// A message that arrived.
struct Arrival {
    buffer: Lease,
    len: usize,
}

impl Verbs {
    /// The client's part of a slice.
    ///
    /// # Errors
    /// An operation failed, brought something wrong, or did not complete.
    pub(crate) fn measure_latency(
        &mut self,
        watch: &mut Watch<'_>,
        phase: Phase,
        length: Length,
        recorder: &mut Recorder,
    ) -> Result<Slice, MeasureError> {
        let start = Instant::now();
        let first = self.next;
        let mut checked = Checked::default();
        let mut busy = Duration::ZERO;
        while !signals::pending() {
            let over = match length {
                Length::Operations(n) => self.next - first >= n,
                Length::Time(time) => start.elapsed() >= time,
            };
            if over {
                break;
            }
            let time = match self.parts.spec.action {
                Action::Send => self.ping(watch, phase, &mut checked)?,
                Action::Write => self.write_there_and_back(watch, phase, &mut checked)?,
                _ => self.fetch(watch, phase, &mut checked)?,
            };
            recorder.record(time);
            busy += time;
            self.next += 1;
            watch.progress();
        }
        let operations = self.next - first;
        Ok(Slice {
            operations,
            bytes: operations * self.parts.spec.size as u64,
            elapsed: busy,
            whole: checked.whole,
            ends: checked.ends,
            lost: 0,
        })
    }

    fn ping(
        &mut self,
        watch: &mut Watch<'_>,
        phase: Phase,
        checked: &mut Checked,
    ) -> Result<Duration, MeasureError> {
        let mut lease = self.buffer(watch)?;
        self.parts.ours.compose(phase, self.next, &mut lease);
        let start = Instant::now();
        self.post_send(lease)?;
        let arrival = loop {
            if let Some(arrival) = self.arrival()? {
                break arrival;
            }
            watch.idle_alone()?;
        };
        let time = start.elapsed();
        self.look_at(phase, arrival, checked)?;
        Ok(time)
    }

    /// The server's part of a ping-pong of sends.
    ///
    /// # Errors
    /// An operation failed. Wrong content is no error here but noted in what is returned.
    pub(crate) fn answer_sends(&mut self, watch: &mut Watch<'_>, phase: Phase) -> Result<Done, MeasureError> {
        let mut checked = Checked::default();
        let mut mismatch = None;
        loop {
            let mut reply = self.buffer(watch)?;
            self.parts.ours.compose(phase, self.next, &mut reply);
            let arrival = loop {
                if let Some(arrival) = self.arrival()? {
                    break arrival;
                }
                if let Some(message) = watch.idle()? {
                    return done(&message, self.next, checked, mismatch);
                }
            };
            self.post_send(reply)?;
            if let Err(error) = self.look_at(phase, arrival, &mut checked) {
                mismatch.get_or_insert(error);
            }
            self.next += 1;
            watch.progress();
        }
    }

    fn post_send(&self, lease: Lease) -> Result<(), MeasureError> {
        self.qp.send(lease).map_err(|e| MeasureError::Refused { sequence: self.next, reason: e.reason })
    }

    /// A message, if one has arrived.
    #[inline]
    fn arrival(&self) -> Result<Option<Arrival>, MeasureError> {
        let mut arrival = None;
        let mut failure = None;
        self.parts.cq.poll(|completion| {
            if let Err(error) = self.succeeded(&completion) {
                failure = Some(error);
            } else if completion.operation == Operation::Recv {
                let len = completion.len;
                arrival = completion.buffer.map(|buffer| Arrival { buffer, len });
            }
        });
        failure.map_or(Ok(arrival), Err)
    }

    /// Checks a message, and posts its buffer again.
    fn look_at(&self, phase: Phase, arrival: Arrival, checked: &mut Checked) -> Result<(), MeasureError> {
        let found = arrival.buffer.get(..arrival.len).unwrap_or_default();
        let result = self.parts.theirs.check(phase, self.next, found, checked);
        self.receive_into(arrival.buffer)?;
        result
    }

    fn write_there_and_back(
        &mut self,
        watch: &mut Watch<'_>,
        phase: Phase,
        checked: &mut Checked,
    ) -> Result<Duration, MeasureError> {
        let mut lease = self.buffer(watch)?;
        self.parts.ours.compose(phase, self.next, &mut lease);
        let start = Instant::now();
        self.post_write(lease)?;
        while !self.poll_window()? {
            watch.idle_alone()?;
        }
        let time = start.elapsed();
        self.look_at_window(phase, checked)?;
        Ok(time)
    }

    /// The server's part of a ping-pong of writes.
    ///
    /// # Errors
    /// An operation failed. Wrong content is no error here but noted in what is returned.
    pub(crate) fn answer_writes(
        &mut self,
        watch: &mut Watch<'_>,
        phase: Phase,
    ) -> Result<Done, MeasureError> {
        let mut checked = Checked::default();
        let mut mismatch = None;
        loop {
            let mut reply = self.buffer(watch)?;
            self.parts.ours.compose(phase, self.next, &mut reply);
            while !self.poll_window()? {
                if let Some(message) = watch.idle()? {
                    return done(&message, self.next, checked, mismatch);
                }
            }
            self.post_write(reply)?;
            if let Err(error) = self.look_at_window(phase, &mut checked) {
                mismatch.get_or_insert(error);
            }
            self.next += 1;
            watch.progress();
        }
    }

    fn post_write(&self, lease: Lease) -> Result<(), MeasureError> {
        let at = self.parts.ping_offset(self.next) as u64;
        let slot = self.remote.at(at, self.parts.spec.size as u64)?;
        let refused =
            |e: anyverbs::PostError<Lease>| MeasureError::Refused { sequence: self.next, reason: e.reason };
        self.qp.write(lease, slot).map_err(refused)
    }

    /// Whether the message that is due is in the window. A software NIC places it while the queue is polled.
    #[inline]
    fn poll_window(&self) -> Result<bool, MeasureError> {
        if self.parts.has_arrived(self.next) {
            return Ok(true);
        }
        self.reap()?;
        Ok(self.parts.has_arrived(self.next))
    }

    fn look_at_window(&mut self, phase: Phase, checked: &mut Checked) -> Result<(), MeasureError> {
        let mut since = None;
        loop {
            self.parts.window.read(self.parts.ping_offset(self.next), &mut self.parts.scratch)?;
            let result = self.parts.theirs.check(phase, self.next, &self.parts.scratch, checked);
            if result.is_ok() || since.get_or_insert_with(Instant::now).elapsed() > SETTLE {
                return result;
            }
            self.reap()?;
        }
    }

    /// A read or a fetch-add, from the request to its completion.
    fn fetch(
        &mut self,
        watch: &mut Watch<'_>,
        phase: Phase,
        checked: &mut Checked,
    ) -> Result<Duration, MeasureError> {
        let mut lease = self.buffer(watch)?;
        let content = self.parts.theirs;
        content.prepare(phase, self.next, false, &mut lease);
        let request = content.request(self.next, lease, &self.remote)?;
        let start = Instant::now();
        self.qp.post(request).map_err(|e| MeasureError::Refused { sequence: self.next, reason: e.reason })?;
        let completion = loop {
            let mut found = None;
            if self.parts.cq.poll(|completion| found = Some(completion)) > 0
                && let Some(completion) = found
            {
                break completion;
            }
            watch.idle_alone()?;
        };
        let time = start.elapsed();
        content.accept(phase, self.next, completion, checked)?;
        Ok(time)
    }
}

/// What a server answers when the client says that it is over.
fn done(
    message: &Message,
    next: u64,
    checked: Checked,
    mismatch: Option<MeasureError>,
) -> Result<Done, MeasureError> {
    match *message {
        Message::Stop { end, .. } if end > next => Err(MeasureError::Missing { missing: end - next }),
        Message::Stop { .. } => Ok(Done {
            whole: checked.whole,
            ends: checked.ends,
            mismatch: mismatch.map(MeasureError::into_words),
            ..Done::default()
        }),
        _ => Err(MeasureError::Internal("another message where stop was due")),
    }
}

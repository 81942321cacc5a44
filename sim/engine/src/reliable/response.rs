//! The requester's other side: what answers mean, and giving up (IBA 9.7.5.1, 9.7.6).

use std::time::Duration;

use anyverbs_wire::{Aeth, Ext, Missing, NakCode, Operation, Psn, Repr, Syndrome, rnr};

use super::recovery::Advice;
use super::requester::{Cursor, Requester, Wqe};
use crate::action::{Action, Target};
use crate::memory::Memory;
use crate::qp::{Context, Path, Verdict};
use crate::work::{Op, Status};

impl Requester {
    /// Handles a packet that answers a request.
    pub(crate) fn on_response<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        operation: Operation,
        packet: &Repr,
        payload: u32,
    ) -> Verdict {
        // Unsigned on purpose: what is before `una` turns out beyond everything.
        let ahead = packet.bth.psn.distance(self.psn(self.una)) as i64 as u64;
        let Some(position) = self.una.checked_add(ahead).filter(|position| *position < self.sent_max) else {
            // An old acknowledgement, or one of something that was never sent (C9-138).
            cx.counters.unexpected_response += 1;
            return Verdict::Alive;
        };
        match (operation, packet.ext) {
            (Operation::Acknowledge, Ext::Aeth(aeth)) => self.on_acknowledge(cx, position, aeth),
            // A response that says that there is none is not one (IBA 9.7.5.1).
            (_, Ext::AtomicAck(aeth, _) | Ext::Aeth(aeth)) if !is_positive(aeth) => {
                self.bad_response(cx, position)
            }
            (Operation::AtomicAcknowledge, Ext::AtomicAck(aeth, value)) => {
                self.credits.learn(aeth);
                self.on_atomic(cx, position, value)
            }
            (_, ext) => {
                if let Ext::Aeth(aeth) = ext {
                    self.credits.learn(aeth);
                }
                self.on_read_response(cx, path, operation, position, payload)
            }
        }
    }

    fn on_acknowledge<M: Memory>(&mut self, cx: &mut Context<'_, M>, position: u64, aeth: Aeth) -> Verdict {
        match aeth.syndrome {
            Syndrome::Ack { .. } => {
                self.credits.learn(aeth);
                if position < self.acked {
                    // It came again: the credits may be new, and the reminder of what is missing.
                    cx.counters.unexpected_response += 1;
                }
                self.executed(cx, position + 1, true);
                Verdict::Alive
            }
            // What the peer has executed since then it no longer complains of.
            Syndrome::RnrNak { .. } | Syndrome::Nak(NakCode::PsnSequenceError) if position < self.acked => {
                cx.counters.unexpected_response += 1;
                Verdict::Alive
            }
            Syndrome::RnrNak { timer } => {
                cx.counters.rcvd_rnr_err += 1;
                self.executed(cx, position, false);
                self.on_rnr(cx, position, timer)
            }
            Syndrome::Nak(NakCode::PsnSequenceError) => {
                cx.counters.rcvd_seq_err += 1;
                self.on_sequence_error(cx, position);
                Verdict::Alive
            }
            Syndrome::Nak(code) => {
                cx.counters.req_remote_errors += 1;
                self.executed(cx, position, false);
                let status = match code {
                    NakCode::RemoteAccess => Status::RemoteAccessError,
                    NakCode::RemoteOperation => Status::RemoteOperationError,
                    _ => Status::RemoteInvalidRequest,
                };
                self.fail_position(cx, position, status);
                Verdict::Fatal
            }
            Syndrome::Reserved(_) => {
                cx.counters.unexpected_response += 1;
                Verdict::Alive
            }
        }
    }

    /// The peer misses a request, and has executed those before it (C9-114).
    fn on_sequence_error<M: Memory>(&mut self, cx: &mut Context<'_, M>, position: u64) {
        // Before the acknowledgement in the NAK: it says where the answer to a repair points.
        let advice = self.recovery.on_nak(cx.now, position, self.timeout.round_trip_bound());
        self.note_executed(cx, position);
        match advice {
            Advice::GoBack => self.go_back_once(cx),
            Advice::Repair => {
                self.timeout.arm(cx.now);
                self.outflow.congestion.on_loss(cx.now);
            }
        }
    }

    /// The peer keeps what comes early, and says what it misses.
    pub(crate) fn on_missing<M: Memory>(&mut self, cx: &mut Context<'_, M>, psn: Psn, missing: &Missing) {
        let ahead = psn.distance(self.psn(self.una)) as i64 as u64;
        let position = self.una.checked_add(ahead).filter(|position| *position < self.sent_max);
        let Some(position) = position.filter(|position| *position >= self.acked) else {
            cx.counters.unexpected_response += 1;
            return;
        };
        cx.counters.rcvd_missing += 1;
        self.timeout.arm(cx.now);
        if self.recovery.on_missing(position, missing, self.sent_max) {
            self.outflow.congestion.on_loss(cx.now);
        }
        self.executed(cx, position, false);
    }

    /// The first and the last packet that were sent and not executed: the last, unless it is of a request
    /// whose responses have places, too.
    fn unanswered(&self) -> [Option<u64>; 2] {
        let is_data = |position: &u64| {
            let place = self.locate(*position);
            place.is_some_and(|place| !self.queue[place.index].request.op.has_response())
        };
        let first = Some(self.acked).filter(|first| *first < self.sent_max);
        let last = self.sent_max.checked_sub(1).filter(|last| *last > self.acked);
        [first, last.filter(is_data)]
    }

    /// RNR NAK: nothing leaves until the peer's timer is over (IBA 9.7.5.2.8).
    fn on_rnr<M: Memory>(&mut self, cx: &mut Context<'_, M>, position: u64, timer: u8) -> Verdict {
        if self.rnr_until.is_some() {
            return Verdict::Alive;
        }
        if self.rnr_retry != 7 {
            if self.rnr_left == 0 {
                cx.counters.retry_rnr_exceeded_err += 1;
                self.fail_position(cx, position, Status::RnrRetryExceeded);
                return Verdict::Fatal;
            }
            self.rnr_left -= 1;
        }
        self.rnr_until = Some(cx.now + rnr::delay(timer));
        self.timeout.excuse(cx.now);
        self.timeout.disarm();
        if self.recovery.on_rnr(position) == Advice::GoBack {
            self.go_back(cx);
        }
        Verdict::Alive
    }

    fn on_atomic<M: Memory>(&mut self, cx: &mut Context<'_, M>, position: u64, value: u64) -> Verdict {
        let Some(wqe) = self.wqe_at(position) else {
            return self.bad_response(cx, position);
        };
        if !matches!(wqe.request.op, Op::FetchAdd { .. } | Op::CompareSwap { .. }) {
            return self.bad_response(cx, position);
        }
        let to = Target::Send { slot: wqe.request.slot, offset: 0 };
        self.arrive(cx, position, Some(Action::PlaceValue { value, to }));
        Verdict::Alive
    }

    /// A READ response, or the empty one that answers FLUSH and ATOMIC WRITE (IBA A19.4.3).
    fn on_read_response<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        operation: Operation,
        position: u64,
        payload: u32,
    ) -> Verdict {
        let Some((slot, offset, expected)) = self.response_at(path, operation, position) else {
            return self.bad_response(cx, position);
        };
        if payload != expected {
            return self.bad_response(cx, position);
        }
        let to = Target::Send { slot, offset };
        let place = (payload > 0).then_some(Action::Place { from: 0, len: payload, to });
        self.arrive(cx, position, place);
        Verdict::Alive
    }

    /// What a READ response at a position belongs to: a work request, an offset in it, and the bytes that
    /// it has to have.
    ///
    /// Where the parts of a READ begin and end is not remembered, but with the work request the last of them
    /// ends, too, and what answers a FLUSH or an ATOMIC WRITE is one packet.
    fn response_at(&self, path: &Path, operation: Operation, position: u64) -> Option<(u64, u32, u32)> {
        use Operation::{ReadResponseLast, ReadResponseOnly};
        let place = self.locate(position)?;
        let request = &self.queue[place.index].request;
        let only = operation == ReadResponseOnly;
        match request.op {
            Op::Read { .. } => {
                let offset = place.packet * path.mtu.bytes();
                let (left, mtu) = (request.len - offset, path.mtu.bytes());
                let ends = only || (operation == ReadResponseLast && offset > 0);
                (ends || left > mtu).then_some((request.slot, offset, left.min(mtu)))
            }
            Op::Flush { .. } | Op::AtomicWrite { .. } => only.then_some((request.slot, 0, 0)),
            _ => None,
        }
    }

    /// A response is there. It says that everything up to its request was executed (IBA 9.7.5.1.2); the
    /// responses before it that are not there are missing (C9-104).
    fn arrive<M: Memory>(&mut self, cx: &mut Context<'_, M>, position: u64, place: Option<Action<M::Span>>) {
        if position == self.una && self.acked <= position {
            // All in order, as it nearly always is.
            self.acked = position + 1;
            cx.actions.extend(place);
            self.advance(cx, position + 1);
            self.heed_executed(cx, false);
            return;
        }
        // The peer is at work, however far it is.
        self.timeout.arm(cx.now);
        self.note_executed(cx, position);
        if self.arrived.contains(position) {
            cx.counters.unexpected_response += 1;
            return;
        }
        if position != self.una {
            cx.counters.implied_nak_seq_err += 1;
        }
        if position != self.una && !self.recovery.is_selective() {
            self.go_back_for_response(cx);
            return;
        }
        cx.actions.extend(place);
        self.arrived.insert(position);
        let (una, arrived) = (self.una, &self.arrived);
        self.recovery.on_response(position, |position| position < una || arrived.contains(position));
        self.note_executed(cx, position + 1);
        if self.recovery.is_selective() {
            self.heed_executed(cx, false);
        }
        // Otherwise it is what was asked for again, in order, and what is behind it is on its way.
    }

    fn bad_response<M: Memory>(&mut self, cx: &mut Context<'_, M>, position: u64) -> Verdict {
        self.fail_position(cx, position, Status::BadResponse);
        Verdict::Fatal
    }

    fn wqe_at(&self, position: u64) -> Option<Wqe> {
        self.locate(position).map(|place| self.queue[place.index])
    }

    // ---- Progress ---------------------------------------------------------------------------

    /// The peer has executed everything before `to`, and nothing else if that is `all` that it says; what
    /// it said nothing of may have to go again.
    fn executed<M: Memory>(&mut self, cx: &mut Context<'_, M>, to: u64, all: bool) {
        self.note_executed(cx, to);
        self.heed_executed(cx, all);
    }

    /// Looks whether something has to go again, after the peer told how far it is.
    fn heed_executed<M: Memory>(&mut self, cx: &mut Context<'_, M>, all: bool) {
        if self.recovery.is_idle() && self.una == self.acked {
            return;
        }
        if let Some(sent_at) = self.recovery.answered(self.acked) {
            self.timeout.measure_first(cx.now - sent_at);
        }
        if self.recovery.on_ack(cx.now, self.acked, all) == Advice::GoBack {
            self.go_back_once(cx);
        }
        if self.una < self.acked && !self.recovery.is_selective() {
            // A response is missing: an implied NAK (C9-104).
            self.go_back_for_response(cx);
        }
    }

    /// Takes everything before `to` as executed, and completes what needs no response, or has it.
    fn note_executed<M: Memory>(&mut self, cx: &mut Context<'_, M>, to: u64) {
        self.acked = self.acked.max(to.min(self.sent_max));
        let mut una = self.una;
        for wqe in self.queue.iter().take(self.started) {
            una = match wqe.request.op.has_response() {
                true => self.arrived.take_run(una.max(wqe.first), wqe.end()),
                false => una.max(wqe.end().min(self.acked)),
            };
            if una < wqe.end() {
                break;
            }
        }
        if una > self.una {
            self.advance(cx, una);
        }
    }

    /// Moves `una` forward and completes what lies before it.
    fn advance<M: Memory>(&mut self, cx: &mut Context<'_, M>, to: u64) {
        let packets = (to - self.una) as u32;
        self.una = to;
        self.probing = false;
        self.gap = None;
        self.rnr_left = self.rnr_retry;
        let round_trip = self.timeout.progress(to, cx.now);
        self.recovery.on_progress(to, to >= self.acked);
        self.outflow.congestion.on_ack(cx.now, round_trip, packets, false);
        while self.outstanding.front().is_some_and(|end| *end <= to) {
            self.outstanding.pop_front();
        }
        while self.started > 0 && self.queue.front().is_some_and(|wqe| wqe.end() <= to) {
            self.pop(cx, Status::Success);
        }
        if self.cursor.index == 0 && self.started > 0 {
            let done = to.saturating_sub(self.queue[0].first) as u32;
            self.cursor.packet = self.cursor.packet.max(done);
        }
        if self.una == self.sent_max { self.timeout.disarm() } else { self.timeout.arm(cx.now) }
    }

    /// Takes the oldest work request off the queue and reports it.
    fn pop<M: Memory>(&mut self, cx: &mut Context<'_, M>, status: Status) {
        let Some(wqe) = self.queue.pop_front() else { return };
        self.started = self.started.saturating_sub(1);
        self.cursor = match self.cursor.index.checked_sub(1) {
            Some(index) => Cursor { index, ..self.cursor },
            None => Cursor::default(),
        };
        cx.complete_send(&wqe.request, status);
    }

    /// Completes what has ended at the front of the queue.
    pub(super) fn complete_done<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        while self.started > 0 && self.queue.front().is_some_and(|wqe| wqe.end() <= self.una) {
            self.pop(cx, Status::Success);
        }
    }

    // ---- Going back, and giving up ----------------------------------------------------------

    /// Goes back to `una` for a response that is missing. Before it comes, those come that were asked for
    /// already: two round trips.
    fn go_back_for_response<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        let bound = self.timeout.round_trip_bound();
        self.go_back_unless_done(cx, bound.map(|bound| bound * 2));
    }

    /// Goes back to `una`, unless that was done a moment ago and nothing moved since.
    fn go_back_once<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        self.go_back_unless_done(cx, self.timeout.round_trip_bound());
    }

    fn go_back_unless_done<M: Memory>(&mut self, cx: &mut Context<'_, M>, bound: Option<Duration>) {
        let done = self
            .gap
            .is_some_and(|(at, when)| at == self.una && bound.is_none_or(|bound| cx.now - when < bound));
        if !done {
            self.gap = Some((self.una, cx.now));
            self.outflow.congestion.on_loss(cx.now);
            self.go_back(cx);
            self.timeout.arm(cx.now);
        }
    }

    /// Everything from `una` is transmitted again.
    fn go_back<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        cx.counters.completer_retry_err += 1;
        self.cursor = self.locate(self.una).unwrap_or_default();
        self.since_ack_request = 0;
        self.timeout.forget_sample();
    }

    pub(crate) fn on_timer<M: Memory>(&mut self, cx: &mut Context<'_, M>) -> Verdict {
        if self.rnr_until.is_some_and(|until| until <= cx.now) {
            self.rnr_until = None;
        }
        if self.paced_until.is_some_and(|until| until <= cx.now) {
            self.paced_until = None;
        }
        let bound = self.timeout.round_trip_bound();
        self.recovery.on_timer(cx.now, self.una, self.acked, bound);
        if self.timeout.fired(cx.now) {
            cx.counters.local_ack_timeout_err += 1;
            if self.timeout.exhausted(cx.now) {
                cx.counters.retry_exceeded_err += 1;
                self.fail_position(cx, self.una, Status::RetryExceeded);
                return Verdict::Fatal;
            }
            self.gap = None;
            self.probe_due = true;
            self.paced_until = None;
            self.outflow.congestion.on_timeout(cx.now);
            match self.recovery.on_timeout(self.una, self.acked, self.unanswered()) {
                Advice::Repair => self.timeout.arm(cx.now),
                Advice::GoBack => {
                    self.probing = true;
                    self.go_back(cx);
                }
            }
        }
        Verdict::Alive
    }

    /// Fails the work request that a position belongs to.
    fn fail_position<M: Memory>(&mut self, cx: &mut Context<'_, M>, position: u64, status: Status) {
        match self.wqe_at(position) {
            Some(wqe) => self.fail_slot(cx, wqe.request.slot, status),
            None => self.flush(cx),
        }
    }

    /// Fails one work request with its own status; those before and behind it are flushed.
    pub(crate) fn fail_slot<M: Memory>(&mut self, cx: &mut Context<'_, M>, slot: u64, status: Status) {
        while let Some(wqe) = self.queue.front() {
            let own = if wqe.request.slot == slot { status } else { Status::FlushError };
            self.pop(cx, own);
        }
        self.stop();
    }

    /// Flushes everything, in order.
    pub(crate) fn flush<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        while !self.queue.is_empty() {
            self.pop(cx, Status::FlushError);
        }
        self.stop();
    }

    fn stop(&mut self) {
        self.timeout.disarm();
        self.rnr_until = None;
        self.paced_until = None;
        self.outstanding.clear();
        self.recovery.stop();
    }
}

/// Whether it acknowledges; only such a header may come with a response.
fn is_positive(aeth: Aeth) -> bool {
    matches!(aeth.syndrome, Syndrome::Ack { .. })
}

//! The requester: the half that sends requests, and sends them again (IBA 9.7.5, 9.7.6).
//!
//! ```text
//!   una                 cursor          sent_max
//!    | acknowledged up    | next to        | one past the highest
//!    | to here            | transmit       | PSN ever transmitted
//! ---+--------------------+----------------+--------> PSN
//! ```
//! Going back sets the cursor to `una`; a NAK acknowledges what is before it, so `una` is always
//! where to go back to.

use std::collections::VecDeque;
use std::time::Duration;

use anyverbs_wire::{Aeth, AtomicEth, Ext, NakCode, Operation, Psn, Repr, Reth, Syndrome, rnr};

use crate::action::{Action, Completion, Queue, Source, Target, Transmit};
use crate::congestion::{Congestion, Control};
use crate::memory::Memory;
use crate::pacer::{OVERHEAD, Outflow};
use crate::qp::{Config, Context, Mtu, Path, ReadyToSend, Verdict};
use crate::time::Time;
use crate::timeout::Timeout;
use crate::work::{Op, ReceiveKind, SendRequest, Status};

/// A READ goes out as requests for at most so many packets each, so that the window also bounds
/// the responses that are on their way to us.
///
/// The cuts are always at the same places: a request that is sent again never asks for more than
/// the one that the responder remembers (C9-105).
const READ_CHUNK: u32 = 64;

/// Packets without a request for acknowledgement, at most.
const ACK_INTERVAL: u32 = 64;

/// Time without a request for acknowledgement, at most, while packets leave: at a slow pace so many
/// packets would take longer than the retransmit timer.
const ACK_PERIOD: Duration = Duration::from_micros(250);

#[derive(Clone, Copy, Debug)]
struct Wqe {
    request: SendRequest,
    /// Its first PSN, from the moment that it starts.
    first: Psn,
    /// The PSNs that it takes.
    packets: u32,
}

impl Wqe {
    fn end(&self) -> Psn {
        self.first.add(self.packets)
    }
}

/// The next packet to transmit: a work request by its place in the queue, and a packet of it.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    index: usize,
    packet: u32,
}

#[derive(Debug)]
pub(crate) struct Requester {
    queue: VecDeque<Wqe>,
    max_send_wr: usize,
    /// How many at the front of the queue have their PSNs.
    started: usize,
    next_psn: Psn,
    una: Psn,
    sent_max: Psn,
    cursor: Cursor,
    /// The most PSNs that may be unacknowledged; congestion control may allow fewer.
    window: u32,
    /// After a timeout one packet is a probe; the window opens again with the first progress.
    probing: bool,
    since_ack_request: u32,
    ack_requested_at: Time,
    /// Ends of the READ and atomic requests that are on the wire.
    responses_due: VecDeque<Psn>,
    max_rd_atomic: usize,
    /// The `una` at which we last went back for a gap: the rest of the same burst is no news.
    gap_at: Option<Psn>,
    rnr_until: Option<Time>,
    rnr_retry: u8,
    rnr_left: u8,
    timeout: Timeout,
    control: Control,
    pub(crate) outflow: Outflow,
    paced_until: Option<Time>,
}

impl Requester {
    pub(crate) fn new(config: &Config) -> Self {
        Requester {
            queue: VecDeque::with_capacity(config.max_send_wr),
            max_send_wr: config.max_send_wr,
            started: 0,
            next_psn: Psn::new(0),
            una: Psn::new(0),
            sent_max: Psn::new(0),
            cursor: Cursor::default(),
            window: config.window.max(1),
            probing: false,
            since_ack_request: 0,
            ack_requested_at: Time::ZERO,
            responses_due: VecDeque::with_capacity(usize::from(u8::MAX)),
            max_rd_atomic: 0,
            gap_at: None,
            rnr_until: None,
            rnr_retry: 0,
            rnr_left: 0,
            timeout: Timeout::new(0, 0),
            control: config.congestion,
            outflow: Outflow::new(
                Congestion::new(&config.congestion, config.window, Mtu::B1024.bytes() + OVERHEAD),
                config.bytes_per_second,
            ),
            paced_until: None,
        }
    }

    /// The path is known: congestion control starts, for requests and for READ responses.
    pub(crate) fn set_mtu(&mut self, mtu: Mtu) {
        self.outflow.congestion = Congestion::new(&self.control, self.window, mtu.bytes() + OVERHEAD);
    }

    pub(crate) fn start(&mut self, attributes: &ReadyToSend) {
        self.next_psn = attributes.sq_psn;
        self.una = attributes.sq_psn;
        self.sent_max = attributes.sq_psn;
        self.max_rd_atomic = usize::from(attributes.max_rd_atomic);
        self.rnr_retry = attributes.rnr_retry;
        self.rnr_left = attributes.rnr_retry;
        self.timeout = Timeout::new(attributes.timeout, attributes.retry_cnt);
    }

    pub(crate) fn post(&mut self, request: SendRequest) -> bool {
        let room = self.queue.len() < self.max_send_wr;
        if room {
            self.queue.push_back(Wqe { request, first: Psn::new(0), packets: 0 });
        }
        room
    }

    pub(crate) fn wants_transmit(&self) -> bool {
        self.cursor.index < self.queue.len() && self.rnr_until.is_none()
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        [self.rnr_until, self.paced_until, self.timeout.deadline()].into_iter().flatten().min()
    }

    // ---- Sending ----------------------------------------------------------------------------

    /// Emits up to `budget` packets, and says whether more could leave at once.
    pub(crate) fn transmit<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        mut budget: usize,
    ) -> bool {
        while let Some((psn, room)) = self.next_packet(path) {
            if budget == 0 {
                return true;
            }
            let at = match self.outflow.ready(cx.now) {
                Ok(at) => at,
                Err(later) => {
                    self.paced_until = Some(later);
                    return false;
                }
            };
            budget -= 1;
            if self.una == self.sent_max {
                self.timeout.excuse(cx.now);
            }
            let (header, payload) = self.build(at, path, psn, room);
            self.outflow.sent(cx.now, at, payload.len());
            cx.actions.push(Action::Transmit(Transmit { at, header, payload }));
            self.timeout.arm_if_idle(cx.now);
        }
        false
    }

    /// The PSN of the next packet and the PSNs that the window has room for from there, if a packet
    /// may leave.
    fn next_packet(&mut self, path: &Path) -> Option<(Psn, u32)> {
        if !self.wants_transmit() {
            return None;
        }
        if self.cursor.index == self.started {
            let wqe = &mut self.queue[self.started];
            wqe.first = self.next_psn;
            wqe.packets = path.mtu.packets(wqe.request.len);
            self.next_psn = wqe.end();
            self.started += 1;
        }
        let wqe = &self.queue[self.cursor.index];
        let psn = wqe.first.add(self.cursor.packet);
        let window = if self.probing { 1 } else { self.outflow.congestion.window_packets() };
        let ahead = psn.distance(self.una).max(0) as u32;
        let room = window.checked_sub(ahead).filter(|room| *room > 0)?;
        if matches!(wqe.request.op, Op::Read { .. }) && ahead > 0 && room < self.read_chunk(wqe) {
            return None;
        }
        let fenced = wqe.request.fence && self.cursor.packet == 0 && !self.responses_due.is_empty();
        let throttled = wqe.request.op.has_response() && self.responses_due.len() >= self.max_rd_atomic;
        (!fenced && !throttled).then_some((psn, room))
    }

    /// The PSNs of the READ request at the cursor: up to the next cut.
    fn read_chunk(&self, wqe: &Wqe) -> u32 {
        let chunk = READ_CHUNK.min(self.window);
        (chunk - self.cursor.packet % chunk).min(wqe.packets - self.cursor.packet)
    }

    /// Builds the packet at the cursor and moves the cursor behind it.
    fn build<S>(&mut self, at: Time, path: &Path, psn: Psn, room: u32) -> (Repr, Source<S>) {
        let wqe = self.queue[self.cursor.index];
        let (repr, payload, psns) = match wqe.request.op {
            Op::Send { .. } | Op::Write { .. } => self.build_data(at, path, &wqe, psn, room),
            Op::Read { va, rkey } => {
                let done = self.cursor.packet * path.mtu.bytes();
                let psns = self.read_chunk(&wqe);
                let len = (psns * path.mtu.bytes()).min(wqe.request.len - done);
                let reth = Reth { va: va.wrapping_add(u64::from(done)), rkey, len };
                let bth = path.bth(Operation::ReadRequest, psn, 0);
                (Repr { bth, xrc_srqn: None, ext: Ext::Reth(reth) }, Source::None, psns)
            }
            Op::FetchAdd { va, rkey, add } => {
                let eth = AtomicEth { va, rkey, swap_add: add, compare: 0 };
                let bth = path.bth(Operation::FetchAdd, psn, 0);
                (Repr { bth, xrc_srqn: None, ext: Ext::Atomic(eth) }, Source::None, 1)
            }
            Op::CompareSwap { va, rkey, compare, swap } => {
                let eth = AtomicEth { va, rkey, swap_add: swap, compare };
                let bth = path.bth(Operation::CompareSwap, psn, 0);
                (Repr { bth, xrc_srqn: None, ext: Ext::Atomic(eth) }, Source::None, 1)
            }
        };
        let after = psn.add(psns);
        if wqe.request.op.has_response() {
            self.responses_due.push_back(after);
        }
        let again = after.distance(self.sent_max) <= 0;
        if again {
            self.timeout.forget_sample();
        } else {
            self.sent_max = after;
            let answered = wqe.request.op.has_response() && self.outflow.congestion.wants_round_trips();
            if repr.bth.ack_request || answered {
                self.timeout.sample_from(psn, at);
            }
        }
        self.cursor.packet += psns;
        if self.cursor.packet >= wqe.packets {
            self.cursor = Cursor { index: self.cursor.index + 1, packet: 0 };
        }
        (repr, payload)
    }

    /// Builds a packet of a SEND or WRITE (IBA 9.5).
    fn build_data<S>(
        &mut self,
        at: Time,
        path: &Path,
        wqe: &Wqe,
        psn: Psn,
        room: u32,
    ) -> (Repr, Source<S>, u32) {
        let mtu = path.mtu.bytes();
        let offset = self.cursor.packet * mtu;
        let len = (wqe.request.len - offset).min(mtu);
        let first = self.cursor.packet == 0;
        let last = self.cursor.packet + 1 == wqe.packets;
        let (operation, ext) = data_header(&wqe.request, first, last);
        let mut bth = path.bth(operation, psn, len);
        self.since_ack_request += 1;
        let interval = self.outflow.congestion.ack_interval().unwrap_or(ACK_INTERVAL).min(ACK_INTERVAL);
        let overdue = self.outflow.is_paced() && at - self.ack_requested_at >= ACK_PERIOD;
        bth.ack_request = last || room == 1 || overdue || self.since_ack_request >= interval;
        bth.solicited = last && wqe.request.solicited;
        if bth.ack_request {
            self.since_ack_request = 0;
            self.ack_requested_at = at;
        }
        let payload = match len {
            0 => Source::None,
            _ => Source::Send { slot: wqe.request.slot, offset, len },
        };
        (Repr { bth, xrc_srqn: None, ext }, payload, 1)
    }

    // ---- Responses --------------------------------------------------------------------------

    /// Handles a packet that answers a request (IBA 9.7.5.1, 9.7.6).
    pub(crate) fn on_response<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        operation: Operation,
        packet: &Repr,
        payload: u32,
    ) -> Verdict {
        let psn = packet.bth.psn;
        if psn.distance(self.una) < 0 || psn.distance(self.sent_max) >= 0 {
            // An old acknowledgement, or one of something that was never sent (C9-138).
            cx.counters.unexpected_response += 1;
            return Verdict::Alive;
        }
        match (operation, packet.ext) {
            (Operation::Acknowledge, Ext::Aeth(aeth)) => self.on_acknowledge(cx, psn, aeth),
            (Operation::AtomicAcknowledge, Ext::AtomicAck(_, value)) => self.on_atomic(cx, psn, value),
            _ => self.on_read_response(cx, path, psn, payload),
        }
    }

    fn on_acknowledge<M: Memory>(&mut self, cx: &mut Context<'_, M>, psn: Psn, aeth: Aeth) -> Verdict {
        match aeth.syndrome {
            Syndrome::Ack { .. } => {
                let whole = self.acknowledge(cx, psn.add(1));
                if !whole {
                    self.go_back_once(cx);
                }
                Verdict::Alive
            }
            Syndrome::RnrNak { timer } => {
                cx.counters.rcvd_rnr_err += 1;
                self.acknowledge(cx, psn);
                self.on_rnr(cx, timer)
            }
            Syndrome::Nak(NakCode::PsnSequenceError) => {
                cx.counters.rcvd_seq_err += 1;
                self.acknowledge(cx, psn);
                self.go_back_once(cx);
                Verdict::Alive
            }
            Syndrome::Nak(code) => {
                cx.counters.req_remote_errors += 1;
                self.acknowledge(cx, psn);
                let status = match code {
                    NakCode::RemoteAccess => Status::RemoteAccessError,
                    NakCode::RemoteOperation => Status::RemoteOperationError,
                    _ => Status::RemoteInvalidRequest,
                };
                self.fail_psn(cx, psn, status);
                Verdict::Fatal
            }
            Syndrome::Reserved(_) => {
                cx.counters.unexpected_response += 1;
                Verdict::Alive
            }
        }
    }

    /// RNR NAK: nothing leaves until the peer's timer is over (IBA 9.7.5.2.8).
    fn on_rnr<M: Memory>(&mut self, cx: &mut Context<'_, M>, timer: u8) -> Verdict {
        if self.rnr_until.is_some() {
            return Verdict::Alive;
        }
        if self.rnr_retry != 7 {
            if self.rnr_left == 0 {
                cx.counters.retry_rnr_exceeded_err += 1;
                self.fail_front(cx, Status::RnrRetryExceeded);
                return Verdict::Fatal;
            }
            self.rnr_left -= 1;
        }
        self.rnr_until = Some(cx.now + rnr::delay(timer));
        self.timeout.excuse(cx.now);
        self.timeout.disarm();
        self.go_back(cx);
        Verdict::Alive
    }

    fn on_atomic<M: Memory>(&mut self, cx: &mut Context<'_, M>, psn: Psn, value: u64) -> Verdict {
        if !self.expects(psn) {
            return self.response_gap(cx, psn);
        }
        let slot = self.wqe_at(psn).map(|wqe| (wqe.request.slot, wqe.request.op));
        let Some((slot, Op::FetchAdd { .. } | Op::CompareSwap { .. })) = slot else {
            return self.bad_response(cx, psn);
        };
        cx.actions.push(Action::PlaceValue { value, to: Target::Send { slot, offset: 0 } });
        self.advance(cx, psn.add(1));
        Verdict::Alive
    }

    fn on_read_response<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        psn: Psn,
        payload: u32,
    ) -> Verdict {
        if !self.expects(psn) {
            return self.response_gap(cx, psn);
        }
        let Some(wqe) = self.wqe_at(psn).copied() else {
            return self.bad_response(cx, psn);
        };
        let offset = psn.distance(wqe.first) as u32 * path.mtu.bytes();
        let expected = (wqe.request.len - offset).min(path.mtu.bytes());
        if !matches!(wqe.request.op, Op::Read { .. }) || payload != expected {
            return self.bad_response(cx, psn);
        }
        if payload > 0 {
            let to = Target::Send { slot: wqe.request.slot, offset };
            cx.actions.push(Action::Place { from: 0, len: payload, to });
        }
        self.advance(cx, psn.add(1));
        Verdict::Alive
    }

    /// Whether a response with this PSN is the next one due. A response acknowledges all requests
    /// before it (IBA 9.7.5.1.2), but no response that is missing.
    fn expects(&self, psn: Psn) -> bool {
        self.limit(psn.add(1)) == psn
    }

    /// A response is missing: an implied NAK (C9-104).
    fn response_gap<M: Memory>(&mut self, cx: &mut Context<'_, M>, psn: Psn) -> Verdict {
        self.acknowledge(cx, psn);
        self.go_back_once(cx);
        Verdict::Alive
    }

    fn bad_response<M: Memory>(&mut self, cx: &mut Context<'_, M>, psn: Psn) -> Verdict {
        self.fail_psn(cx, psn, Status::BadResponse);
        Verdict::Fatal
    }

    fn wqe_at(&self, psn: Psn) -> Option<&Wqe> {
        self.queue
            .iter()
            .take(self.started)
            .find(|wqe| psn.distance(wqe.first) >= 0 && psn.distance(wqe.end()) < 0)
    }

    /// How far an acknowledgement of everything before `to` reaches: up to the first response that
    /// is still due.
    fn limit(&self, to: Psn) -> Psn {
        for wqe in self.queue.iter().take(self.started) {
            if wqe.request.op.has_response() {
                let due = if wqe.first.distance(self.una) > 0 { wqe.first } else { self.una };
                return if to.distance(due) > 0 { due } else { to };
            }
            if wqe.end().distance(to) >= 0 {
                break;
            }
        }
        to
    }

    /// Takes everything before `to` as acknowledged, as far as it can be; false if a missing
    /// response stops it.
    fn acknowledge<M: Memory>(&mut self, cx: &mut Context<'_, M>, to: Psn) -> bool {
        let limit = self.limit(to);
        if limit.distance(self.una) > 0 {
            self.advance(cx, limit);
        }
        limit == to
    }

    /// Moves `una` forward and completes what lies before it.
    fn advance<M: Memory>(&mut self, cx: &mut Context<'_, M>, to: Psn) {
        let packets = to.distance(self.una).max(0) as u32;
        self.una = to;
        self.probing = false;
        self.gap_at = None;
        self.rnr_left = self.rnr_retry;
        let round_trip = self.timeout.progress(to, cx.now);
        self.outflow.congestion.on_ack(cx.now, round_trip, packets, false);
        while self.responses_due.front().is_some_and(|end| end.distance(to) <= 0) {
            self.responses_due.pop_front();
        }
        while self.started > 0 && self.queue.front().is_some_and(|wqe| wqe.end().distance(to) <= 0) {
            self.pop(cx, Status::Success);
        }
        if self.cursor.index == 0 && self.started > 0 {
            let done = to.distance(self.queue[0].first).max(0) as u32;
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
        cx.actions.push(Action::Complete(Completion {
            queue: Queue::Send,
            slot: wqe.request.slot,
            status,
            // An error is reported even for an unsignalled request (IBA 10.7.3.1).
            signaled: wqe.request.signaled || status != Status::Success,
            len: wqe.request.len,
            kind: ReceiveKind::Send,
            imm: None,
            solicited: false,
        }));
    }

    // ---- Going back, and giving up ----------------------------------------------------------

    /// Goes back to `una`, unless that was done already and nothing moved since.
    fn go_back_once<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        if self.gap_at != Some(self.una) {
            self.gap_at = Some(self.una);
            self.outflow.congestion.on_loss(cx.now);
            self.go_back(cx);
            self.timeout.arm(cx.now);
        }
    }

    /// Everything from `una` is transmitted again.
    fn go_back<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        cx.counters.completer_retry_err += 1;
        let packet = match self.queue.front() {
            Some(wqe) if self.started > 0 => self.una.distance(wqe.first).max(0) as u32,
            _ => 0,
        };
        self.cursor = Cursor { index: 0, packet };
        self.responses_due.clear();
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
        if self.timeout.fired(cx.now) {
            cx.counters.local_ack_timeout_err += 1;
            if self.timeout.exhausted(cx.now) {
                cx.counters.retry_exceeded_err += 1;
                self.fail_front(cx, Status::RetryExceeded);
                return Verdict::Fatal;
            }
            self.probing = true;
            self.gap_at = None;
            self.outflow.congestion.on_timeout(cx.now);
            self.go_back(cx);
        }
        Verdict::Alive
    }

    /// Fails the oldest work request.
    fn fail_front<M: Memory>(&mut self, cx: &mut Context<'_, M>, status: Status) {
        self.pop(cx, status);
        self.flush(cx);
    }

    /// Fails the work request that a PSN belongs to.
    fn fail_psn<M: Memory>(&mut self, cx: &mut Context<'_, M>, psn: Psn, status: Status) {
        match self.wqe_at(psn).map(|wqe| wqe.request.slot) {
            Some(slot) => self.fail_slot(cx, slot, status),
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
        self.responses_due.clear();
    }
}

/// Opcode and extended headers of a packet of a SEND or WRITE, by its place in the message.
fn data_header(request: &SendRequest, first: bool, last: bool) -> (Operation, Ext) {
    use Operation as O;
    match request.op {
        Op::Write { va, rkey, imm } => {
            let reth = Reth { va, rkey, len: request.len };
            match (first, last, imm) {
                (true, true, None) => (O::WriteOnly, Ext::Reth(reth)),
                (true, true, Some(imm)) => (O::WriteOnlyImm, Ext::RethImm(reth, imm)),
                (true, false, _) => (O::WriteFirst, Ext::Reth(reth)),
                (false, false, _) => (O::WriteMiddle, Ext::None),
                (false, true, None) => (O::WriteLast, Ext::None),
                (false, true, Some(imm)) => (O::WriteLastImm, Ext::Imm(imm)),
            }
        }
        Op::Send { imm } => match (first, last, imm) {
            (true, true, None) => (O::SendOnly, Ext::None),
            (true, true, Some(imm)) => (O::SendOnlyImm, Ext::Imm(imm)),
            (true, false, _) => (O::SendFirst, Ext::None),
            (false, false, _) => (O::SendMiddle, Ext::None),
            (false, true, None) => (O::SendLast, Ext::None),
            (false, true, Some(imm)) => (O::SendLastImm, Ext::Imm(imm)),
        },
        Op::Read { .. } | Op::FetchAdd { .. } | Op::CompareSwap { .. } => {
            unreachable!("requests with responses are built by their own branches")
        }
    }
}

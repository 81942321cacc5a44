//! The requester: the half that sends requests, and sends them again (IBA 9.7.5, 9.7.6).
//!
//! ```text
//!   una              acked            cursor          sent_max
//!    | done up to      | executed by    | next to        | one past the last
//!    | here            | the peer       | transmit       | packet ever sent
//! ---+-----------------+----------------+----------------+--------> position
//! ```
//! Between `una` and `acked` only responses are missing. A repair sends again what lies between `una`
//! and `sent_max` without moving the cursor; going back moves the cursor to `una`.
//!
//! What happens to what was sent is in `response.rs`.

use std::collections::VecDeque;
use std::time::Duration;

use anyverbs_wire::{AtomicEth, Bth, Ext, Operation, Psn, Repr, Reth};

use super::arrivals::Arrivals;
use super::credit::Credits;
use super::recovery::Recovery;
use super::timeout::Timeout;
use crate::action::{Action, Source, Transmit};
use crate::congestion::{Congestion, Control};
use crate::memory::Memory;
use crate::pacer::{OVERHEAD, Outflow};
use crate::qp::{Config, Context, Mtu, Path, ReadyToSend, Verdict};
use crate::segment::data_header;
use crate::time::Time;
use crate::work::{Destination, Op, SendRequest};

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

/// Where a work request is that has not begun: behind everything.
const NOWHERE: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct Wqe {
    pub(super) request: SendRequest,
    /// The position of its first packet, from the moment that it begins.
    pub(super) first: u64,
    /// The PSNs that it takes: none before it begins, nor if it is local.
    packets: u32,
    /// Its number among the messages, for credits.
    ssn: u32,
    /// It began beyond the credits: its second packet waits for an answer to the first.
    limited: bool,
}

impl Wqe {
    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.packets))
    }
}

/// A packet of a work request, by its place in the queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    pub(super) index: usize,
    pub(super) packet: u32,
}

/// A packet that may leave.
#[derive(Clone, Copy, Debug)]
struct Next {
    place: Cursor,
    position: u64,
    /// PSNs that there is room for, from this one on. A READ request asks for no more.
    room: u32,
    why: Why,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    /// It is at the cursor.
    Turn,
    /// The peer misses the request.
    Repair,
    /// Its response is missing here.
    Response,
}

#[derive(Debug)]
pub(crate) struct Requester {
    pub(super) queue: VecDeque<Wqe>,
    max_send_wr: usize,
    /// How many at the front of the queue have begun.
    pub(super) started: usize,
    /// The PSN of position 0.
    base: Psn,
    /// The position of the next work request to begin.
    next: u64,
    pub(super) una: u64,
    pub(super) acked: u64,
    pub(super) sent_max: u64,
    pub(super) cursor: Cursor,
    pub(super) arrived: Arrivals,
    /// The most PSNs that may be unacknowledged; congestion control may allow fewer.
    window: u32,
    /// After a timeout one packet is a probe; the window opens again with the first progress.
    pub(super) probing: bool,
    /// A packet leaves whatever the pace is: the retransmit timer has fired.
    pub(super) probe_due: bool,
    pub(super) since_ack_request: u32,
    ack_requested_at: Time,
    /// Ends of the READ and atomic requests that are on the wire.
    pub(super) outstanding: VecDeque<u64>,
    max_rd_atomic: usize,
    pub(super) credits: Credits,
    pub(super) recovery: Recovery,
    /// Where and when we last went back for a gap: the rest of the same burst is no news.
    pub(super) gap: Option<(u64, Time)>,
    pub(super) rnr_until: Option<Time>,
    pub(super) rnr_retry: u8,
    pub(super) rnr_left: u8,
    pub(super) timeout: Timeout,
    control: Control,
    pub(crate) outflow: Outflow,
    pub(super) paced_until: Option<Time>,
}

impl Requester {
    pub(crate) fn new(config: &Config) -> Self {
        Requester {
            queue: VecDeque::with_capacity(config.max_send_wr),
            max_send_wr: config.max_send_wr,
            started: 0,
            base: Psn::new(0),
            next: 0,
            una: 0,
            acked: 0,
            sent_max: 0,
            cursor: Cursor::default(),
            arrived: Arrivals::new(2 * config.window.max(1)),
            window: config.window.max(1),
            probing: false,
            probe_due: false,
            since_ack_request: 0,
            ack_requested_at: Time::ZERO,
            outstanding: VecDeque::new(),
            max_rd_atomic: 0,
            credits: Credits::default(),
            recovery: Recovery::new(config.recovery),
            gap: None,
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
        self.base = attributes.sq_psn;
        self.max_rd_atomic = usize::from(attributes.max_rd_atomic);
        self.outstanding.reserve(self.max_rd_atomic);
        self.rnr_retry = attributes.rnr_retry;
        self.rnr_left = attributes.rnr_retry;
        self.timeout = Timeout::new(attributes.timeout, attributes.retry_cnt);
    }

    pub(crate) fn post(&mut self, request: SendRequest) -> bool {
        let room = self.queue.len() < self.max_send_wr;
        if room {
            self.queue.push_back(Wqe { request, first: NOWHERE, packets: 0, ssn: 0, limited: false });
        }
        room
    }

    /// The PSN of a position.
    pub(super) fn psn(&self, position: u64) -> Psn {
        self.base.add((position & 0x00ff_ffff) as u32)
    }

    /// Whether no work request has begun that has not ended.
    pub(crate) fn is_idle(&self) -> bool {
        self.started == 0
    }

    pub(crate) fn wants_transmit(&self) -> bool {
        let repairs = || self.recovery.next_request(self.sent_max).is_some() || self.misses_response();
        self.rnr_until.is_none() && (self.cursor.index < self.queue.len() || repairs())
    }

    /// Whether there may be responses to ask for again.
    fn misses_response(&self) -> bool {
        self.recovery.is_selective() && self.recovery.asked().max(self.una) < self.acked
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let waits = Time::earliest(self.rnr_until, self.paced_until);
        let deadline = Time::earliest(waits, self.timeout.deadline());
        if self.recovery.is_idle() {
            return deadline;
        }
        Time::earliest(deadline, self.recovery.next_deadline(self.timeout.round_trip_bound()))
    }

    /// Where in the queue a position that has begun is.
    pub(super) fn locate(&self, position: u64) -> Option<Cursor> {
        let front = self.queue.front().is_some_and(|wqe| position < wqe.end());
        let index = if front { 0 } else { self.queue.partition_point(|wqe| wqe.end() <= position) };
        let wqe = self.queue.get(index).filter(|wqe| wqe.first <= position)?;
        Some(Cursor { index, packet: (position - wqe.first) as u32 })
    }

    /// Emits up to `budget` packets, and says whether a work request failed, and whether more could leave at
    /// once. While the send queue drains, no work request begins.
    pub(crate) fn transmit<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        draining: bool,
        mut budget: usize,
    ) -> (Verdict, bool) {
        loop {
            let Some(next) = self.next_packet(path, draining) else {
                match self.execute_local(cx, draining) {
                    Some(Verdict::Alive) if budget > 0 => {
                        budget -= 1;
                        continue;
                    }
                    None => return (Verdict::Alive, false),
                    Some(verdict) => return (verdict, verdict == Verdict::Alive),
                }
            };
            if budget == 0 {
                return (Verdict::Alive, true);
            }
            let at = match self.outflow.ready(cx.now) {
                Ok(at) => at,
                // The pace fell because of the timeout, and must not keep us from finding out.
                Err(_) if self.probe_due => cx.now,
                Err(later) => {
                    self.paced_until = Some(later);
                    return (Verdict::Alive, false);
                }
            };
            budget -= 1;
            self.probe_due = false;
            if self.una == self.sent_max {
                self.timeout.excuse(cx.now);
            }
            let (header, payload, psns) = self.build(at, path, &next);
            self.note_sent(cx, &next, &header, psns, at);
            self.outflow.sent(cx.now, at, payload.len());
            cx.actions.push(Action::Transmit(Transmit { at, header, payload }));
            self.timeout.arm_if_idle(cx.now);
        }
    }

    // ---- What may leave ---------------------------------------------------------------------

    #[inline]
    fn next_packet(&mut self, path: &Path, draining: bool) -> Option<Next> {
        if self.rnr_until.is_some() {
            return None;
        }
        if self.recovery.is_idle() && self.una == self.acked {
            return self.next_in_turn(path, draining);
        }
        self.missing_response()
            .or_else(|| self.missing_request())
            .or_else(|| self.next_in_turn(path, draining))
    }

    /// The first responses that are missing and were not asked for again: a READ request for exactly
    /// these packets, or an atomic again (C9-104, C9-105).
    fn missing_response(&mut self) -> Option<Next> {
        if !self.misses_response() {
            return None;
        }
        let mut position = self.recovery.asked().max(self.una);
        while position < self.acked {
            let place = self.locate(position)?;
            let wqe = &self.queue[place.index];
            if !wqe.request.op.has_response() {
                position = wqe.end();
            } else if let Some(end) = self.recovery.response_under_way(position) {
                position = end;
            } else if self.arrived.contains(position) {
                position += 1;
            } else {
                let end = wqe.end().min(self.acked);
                let gap = (position..end).take_while(|position| !self.arrived.contains(*position));
                let room = gap.count() as u32;
                return Some(Next { place, position, room, why: Why::Response });
            }
        }
        self.recovery.responses_complete(position);
        None
    }

    fn missing_request(&self) -> Option<Next> {
        let (position, end) = self.recovery.next_request(self.sent_max)?;
        let place = self.locate(position)?;
        Some(Next { place, position, room: (end - position) as u32, why: Why::Repair })
    }

    /// The packet at the cursor, if window, fence, limits and credits let it leave.
    #[inline]
    fn next_in_turn(&mut self, path: &Path, draining: bool) -> Option<Next> {
        if self.cursor.index >= self.queue.len() || self.recovery.is_trial() {
            return None;
        }
        if self.cursor.index == self.started {
            if draining || self.queue[self.started].request.op == Op::Local {
                return None;
            }
            self.begin(path);
        }
        let place = self.cursor;
        let wqe = &self.queue[place.index];
        if wqe.packets == 0 {
            self.step_over_executed();
            return self.next_in_turn(path, draining);
        }
        let position = wqe.first + u64::from(place.packet);
        let window = if self.probing { 1 } else { self.outflow.congestion.window_packets() };
        let ahead = position.saturating_sub(self.una);
        // Responses that are here already are not on their way: one that is missing before them does not
        // stop the others, for another window.
        let early = u64::from(self.arrived.len().min(window));
        let room = (u64::from(window) + early).checked_sub(ahead).filter(|room| *room > 0)? as u32;
        let op = &wqe.request.op;
        if matches!(op, Op::Read { .. }) && ahead > 0 && room < self.read_chunk(wqe, place) {
            return None;
        }
        // What was sent once is counted already, and its receive work request may have been taken.
        if position >= self.sent_max {
            let starts = place.packet == 0;
            let fenced = wqe.request.fence && starts && !self.outstanding.is_empty();
            let throttled = op.has_response() && self.outstanding.len() >= self.max_rd_atomic;
            let limited = starts && ahead > 0 && op.consumes_receive() && !self.credits.allow(wqe.ssn);
            let unanswered = !starts && wqe.limited && self.acked <= wqe.first;
            if fenced || throttled || limited || unanswered {
                return None;
            }
        }
        Some(Next { place, position, room, why: Why::Turn })
    }

    /// Moves the cursor behind what takes no packet: it was executed when its turn came, and has no part in
    /// going back.
    #[cold]
    fn step_over_executed(&mut self) {
        while self.cursor.index < self.started && self.queue[self.cursor.index].packets == 0 {
            self.cursor = Cursor { index: self.cursor.index + 1, packet: 0 };
        }
    }

    /// Executes the work request at the cursor, if it takes no packet and nothing holds it back, and says
    /// how that went. It completes when all before it have.
    fn execute_local<M: Memory>(&mut self, cx: &mut Context<'_, M>, draining: bool) -> Option<Verdict> {
        if draining || self.cursor.index != self.started {
            return None;
        }
        let wqe = self.queue.get_mut(self.started).filter(|wqe| wqe.request.op == Op::Local)?;
        if wqe.request.fence && !self.outstanding.is_empty() {
            return None;
        }
        let slot = wqe.request.slot;
        wqe.first = self.next;
        self.started += 1;
        self.cursor = Cursor { index: self.started, packet: 0 };
        if let Err(status) = cx.memory.execute_local(slot) {
            self.fail_slot(cx, slot, status);
            return Some(Verdict::Fatal);
        }
        self.complete_done(cx);
        Some(Verdict::Alive)
    }

    /// Gives the work request at the cursor its PSNs.
    fn begin(&mut self, path: &Path) {
        let chunk = READ_CHUNK.min(self.window);
        let wqe = &mut self.queue[self.started];
        wqe.first = self.next;
        wqe.packets = path.mtu.packets(wqe.request.len);
        let messages = match wqe.request.op {
            // Each request for a part is a message to the responder.
            Op::Read { .. } => wqe.packets.div_ceil(chunk),
            // It moves no data, whatever range it is about.
            Op::Flush { .. } => {
                wqe.packets = 1;
                1
            }
            _ => 1,
        };
        wqe.ssn = self.credits.number(messages);
        self.next = wqe.end();
        self.started += 1;
    }

    /// The PSNs of the READ request at a place: up to the next cut.
    fn read_chunk(&self, wqe: &Wqe, place: Cursor) -> u32 {
        let chunk = READ_CHUNK.min(self.window);
        (chunk - place.packet % chunk).min(wqe.packets - place.packet)
    }

    // ---- Packets ----------------------------------------------------------------------------

    /// Builds a packet; says how many PSNs it takes.
    #[inline]
    fn build<S>(&mut self, at: Time, path: &Path, next: &Next) -> (Repr, Source<S>, u32) {
        match self.queue[next.place.index].request.op {
            Op::Send { .. } | Op::SendInvalidate { .. } | Op::Write { .. } => self.build_data(at, path, next),
            _ => self.build_answered(path, next),
        }
    }

    /// Builds a request that is answered by more than an acknowledgement.
    fn build_answered<S>(&self, path: &Path, next: &Next) -> (Repr, Source<S>, u32) {
        let wqe = &self.queue[next.place.index];
        let len = wqe.request.len;
        let (operation, ext, psns) = match wqe.request.op {
            Op::Read { va, rkey } => {
                let done = next.place.packet * path.mtu.bytes();
                let psns = match next.why {
                    Why::Response => self.read_chunk(wqe, next.place).min(next.room),
                    _ => self.read_chunk(wqe, next.place),
                };
                let part = (u64::from(psns) * u64::from(path.mtu.bytes())).min(u64::from(len - done));
                let reth = Reth { va: va.wrapping_add(u64::from(done)), rkey, len: part as u32 };
                (Operation::ReadRequest, Ext::Reth(reth), psns)
            }
            Op::FetchAdd { va, rkey, add } => {
                let eth = AtomicEth { va, rkey, swap_add: add, compare: 0 };
                (Operation::FetchAdd, Ext::Atomic(eth), 1)
            }
            Op::CompareSwap { va, rkey, compare, swap } => {
                let eth = AtomicEth { va, rkey, swap_add: swap, compare };
                (Operation::CompareSwap, Ext::Atomic(eth), 1)
            }
            Op::Flush { va, rkey, feth } => (Operation::Flush, Ext::Flush(feth, Reth { va, rkey, len }), 1),
            Op::AtomicWrite { va, rkey } => {
                (Operation::AtomicWrite, Ext::AtomicWrite(Reth { va, rkey, len }), 1)
            }
            Op::Send { .. } | Op::SendInvalidate { .. } | Op::Write { .. } | Op::Local => {
                unreachable!("SEND and WRITE are built by their own branch, and what is local is not built")
            }
        };
        let payload = match operation {
            Operation::AtomicWrite => Source::Send { slot: wqe.request.slot, offset: 0, len },
            _ => Source::None,
        };
        let bth = path.bth(operation, self.psn(next.position), payload.len());
        (request(wqe, bth, ext), payload, psns)
    }

    /// Builds a packet of a SEND or WRITE (IBA 9.5).
    #[inline]
    fn build_data<S>(&mut self, at: Time, path: &Path, next: &Next) -> (Repr, Source<S>, u32) {
        let overdue = self.is_ack_overdue(at);
        let psn = self.psn(next.position);
        let wqe = &mut self.queue[next.place.index];
        let Next { place, position, room, .. } = *next;
        let offset = place.packet * path.mtu.bytes();
        let len = (wqe.request.len - offset).min(path.mtu.bytes());
        let (first, last) = (place.packet == 0, place.packet + 1 == wqe.packets);
        let (operation, ext) = data_header(&wqe.request, first, last);
        let mut bth = path.bth(operation, psn, len);
        bth.solicited = last && wqe.request.solicited;
        // The first packet of a message beyond the credits.
        if first && position >= self.sent_max && wqe.request.op.consumes_receive() {
            wqe.limited = !self.credits.allow(wqe.ssn);
        }
        if last || room == 1 || overdue || (first && wqe.limited) {
            bth.ack_request = true;
            self.since_ack_request = 0;
            self.ack_requested_at = at;
        }
        let payload = match len {
            0 => Source::None,
            _ => Source::Send { slot: wqe.request.slot, offset, len },
        };
        (request(wqe, bth, ext), payload, 1)
    }

    /// Counts a packet, and says whether it is time to ask for an acknowledgement.
    #[inline]
    fn is_ack_overdue(&mut self, at: Time) -> bool {
        self.since_ack_request += 1;
        let interval = self.outflow.congestion.ack_interval().unwrap_or(ACK_INTERVAL).min(ACK_INTERVAL);
        let late = self.outflow.is_paced() && at - self.ack_requested_at >= ACK_PERIOD;
        late || self.since_ack_request >= interval
    }

    /// Moves on after a packet that takes `psns` PSNs and leaves at `at`.
    #[inline]
    fn note_sent<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        next: &Next,
        header: &Repr,
        psns: u32,
        at: Time,
    ) {
        let after = next.position + u64::from(psns);
        match next.why {
            Why::Turn => {}
            Why::Repair => {
                cx.counters.completer_retry_err += 1;
                self.timeout.doubt_sample();
                self.recovery.request_sent(at, next.position, after, self.sent_max);
                return;
            }
            Why::Response => {
                cx.counters.completer_retry_err += 1;
                self.timeout.doubt_sample();
                self.recovery.responses_asked(at, next.position, after, self.sent_max);
                self.outflow.congestion.on_loss(cx.now);
                return;
            }
        }
        let wqe = &self.queue[next.place.index];
        let has_response = wqe.request.op.has_response();
        let done = next.place.packet + psns >= wqe.packets;
        if after <= self.sent_max {
            self.timeout.forget_sample();
        } else {
            if has_response {
                self.outstanding.push_back(after);
            }
            self.sent_max = after;
            if header.bth.ack_request || has_response {
                self.timeout.sample_from(next.position, at);
            }
        }
        self.cursor = match done {
            true => Cursor { index: next.place.index + 1, packet: 0 },
            false => Cursor { packet: next.place.packet + psns, ..next.place },
        };
    }
}

/// The headers of a request. For XRC they name the shared receive queue (IBA A14.3).
#[inline]
fn request(wqe: &Wqe, bth: Bth, ext: Ext) -> Repr {
    let xrc_srqn = match wqe.request.destination {
        Destination::SharedReceive(srqn) => Some(srqn),
        Destination::Connected | Destination::Datagram { .. } => None,
    };
    Repr { bth, xrc_srqn, ext }
}

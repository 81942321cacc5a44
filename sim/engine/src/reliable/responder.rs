//! The responder: the half that executes requests (IBA 9.7.4). Its answers are in `answer.rs`.
//!
//! | the PSN is | what happens | rule |
//! |---|---|---|
//! | the expected one | it is executed; then early packets whose turn it is | IBA 9.7.4.1 |
//! | ahead, within `reorder` | it is kept; one NAK of the expected PSN, then silence until that comes | C9-114 |
//! | further ahead | it is dropped; the same NAK | C9-114 |
//! | before it | a duplicate: acknowledged, answered again, or dropped | C9-105 |
//!
//! | executing it | is answered by | and the queue pair |
//! |---|---|---|
//! | succeeds | ACK if asked for, READ responses, or a result | goes on |
//! | finds no receive work request | RNR NAK, then silence | goes on |
//! | is out of place, of a wrong length, not allowed | NAK invalid request | ends |
//! | touches what it may not | NAK remote access | ends |

use std::collections::VecDeque;

use anyverbs_wire::{AtomicEth, Ext, Feth, NakCode, Operation, Psn, Qpn, Repr, Reth, Selectivity, Syndrome};

use super::answer::{Outcome, Reply, Resource};
use super::early::{EarlyPackets, Kept};
use crate::action::{Action, Completion, Event, Queue, Target};
use crate::memory::{Memory, Need, Receive};
use crate::qp::{Config, Context, MESSAGE_MAX, Mtu, Path, ReadyToReceive, Verdict};
use crate::segment::{Piece, is_right_length, piece};
use crate::time::Time;
use crate::work::{ReceiveKind, Status};

/// A message of several packets, between its First and its Last.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inbound {
    Send { slot: u64, capacity: u64, received: u32 },
    Write { reth: Reth, received: u32 },
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// No receive work request: try again later.
    NotReady,
    /// The request may not be done; the queue pair ends.
    Nak(NakCode),
    /// The same, and a receive work request that it took ends with its own status.
    Receive { slot: u64, status: Status, code: NakCode },
}

const INVALID: Refusal = Refusal::Nak(NakCode::InvalidRequest);
const ACCESS: Refusal = Refusal::Nak(NakCode::RemoteAccess);

/// Whether a NAK was sent that waits for the expected packet: no other is sent meanwhile (C9-114).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Silence {
    No,
    /// After a sequence error.
    Sequence,
    /// After RNR, or an error that ends the queue pair.
    Other,
}

/// A packet whose turn it is.
#[derive(Clone, Copy)]
struct Arrived<'a> {
    operation: Operation,
    packet: &'a Repr,
    payload: u32,
    /// Its payload is where it belongs already.
    placed: bool,
}

#[derive(Debug)]
pub(crate) struct Responder {
    /// The PSN of position 0.
    base: Psn,
    /// The position of the expected packet.
    pub(super) expected: u64,
    pub(super) msn: u32,
    min_rnr_timer: u8,
    pub(super) max_resources: usize,
    pub(super) tells_credits: bool,
    pub(super) silence: Silence,
    pub(super) inbound: Option<Inbound>,
    /// XRC: the shared receive queue that its First packet named.
    inbound_srqn: Option<Qpn>,
    pub(super) replies: VecDeque<Reply>,
    pub(super) ack_due: bool,
    /// Whether the sender is to be told what is missing, beyond what a NAK says.
    pub(super) missing_due: bool,
    pub(super) resources: VecDeque<Resource>,
    pub(super) early: EarlyPackets,
    /// A READ response waits for its time, and everything behind it.
    pub(super) paced_until: Option<Time>,
    /// When the last answer leaves: none overtakes it.
    pub(super) last_at: Time,
}

impl Responder {
    pub(crate) fn new(config: &Config) -> Self {
        Responder {
            base: Psn::new(0),
            expected: 0,
            msn: 0,
            min_rnr_timer: 0,
            max_resources: 0,
            tells_credits: config.credits,
            silence: Silence::No,
            inbound: None,
            inbound_srqn: None,
            replies: VecDeque::new(),
            ack_due: false,
            missing_due: false,
            resources: VecDeque::new(),
            early: EarlyPackets::new(config.reorder),
            paced_until: None,
            last_at: Time::ZERO,
        }
    }

    pub(crate) fn start(&mut self, attributes: &ReadyToReceive) {
        self.base = attributes.rq_psn;
        self.min_rnr_timer = attributes.min_rnr_timer;
        self.max_resources = usize::from(attributes.max_dest_rd_atomic);
        // Twice as many duplicates may wait, and a NAK behind each.
        self.replies.reserve(6 * self.max_resources + 2);
        self.resources.reserve(self.max_resources);
    }

    /// The PSN of a position.
    pub(super) fn psn(&self, position: u64) -> Psn {
        self.base.add((position & 0x00ff_ffff) as u32)
    }

    // ---- In order, early, or late -----------------------------------------------------------

    /// Handles a request packet (IBA 9.7.3: the PSN decides what it is).
    pub(crate) fn on_request<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        operation: Operation,
        packet: &Repr,
        payload: u32,
    ) -> Verdict {
        let ahead = packet.bth.psn.distance(self.psn(self.expected));
        if ahead < 0 {
            cx.counters.duplicate_request += 1;
            self.on_duplicate(path.mtu, self.expected.wrapping_sub(u64::from(ahead.unsigned_abs())), packet);
            return Verdict::Alive;
        }
        if ahead > 0 {
            cx.counters.out_of_seq_request += 1;
            self.on_early(cx, path.mtu, ahead as u32, operation, packet, payload);
            return Verdict::Alive;
        }
        self.on_expected(cx, path, Arrived { operation, packet, payload, placed: false })
    }

    /// Handles the expected packet.
    fn on_expected<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        arrived: Arrived<'_>,
    ) -> Verdict {
        self.silence = Silence::No;
        let before = self.expected;
        let done = self.execute(cx, path, arrived);
        let psns = (self.expected - before) as u32;
        self.early.advance(psns, |kept| release(cx, kept));
        match done {
            Ok(()) => {
                self.ack_due |= arrived.packet.bth.ack_request;
                if self.early.has_gap() {
                    // The sender does not know that something else is missing, too.
                    self.nak_once(Silence::Sequence, Syndrome::Nak(NakCode::PsnSequenceError));
                    self.missing_due = true;
                }
                Verdict::Alive
            }
            Err(refusal) => self.refuse(cx, refusal),
        }
    }

    /// Keeps a packet that came early, if that is possible, and tells the sender once what is missing
    /// (C9-114); again if the sender went back and that packet was lost again.
    fn on_early<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        mtu: Mtu,
        ahead: u32,
        operation: Operation,
        packet: &Repr,
        payload: u32,
    ) {
        if self.early.has_room(ahead) && payload <= mtu.bytes() {
            let placed = self.place_early(cx, mtu, ahead, operation, payload);
            let buffer = if placed || payload == 0 { None } else { cx.memory.hold() };
            if placed || payload == 0 || buffer.is_some() {
                cx.actions.extend(buffer.map(|buffer| Action::Hold { buffer }));
                // The NAK of the first gap may be lost; who asks for an answer gets one.
                self.missing_due |= self.early.opens_gap(ahead) || packet.bth.ack_request;
                self.early.keep(ahead, Kept { operation, packet: *packet, payload, buffer, placed });
                cx.counters.rx_kept_early += 1;
            }
        }
        let went_back = self.early.goes_back(self.expected + u64::from(ahead));
        if went_back && self.silence == Silence::Sequence {
            self.silence = Silence::No;
        }
        self.nak_once(Silence::Sequence, Syndrome::Nak(NakCode::PsnSequenceError));
    }

    /// Places a Middle packet of the WRITE in progress: its place follows from its PSN.
    fn place_early<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        mtu: Mtu,
        ahead: u32,
        operation: Operation,
        payload: u32,
    ) -> bool {
        let Some(Inbound::Write { reth, received }) = self.inbound else { return false };
        let offset = u64::from(received) + u64::from(ahead) * u64::from(mtu.bytes());
        let middle = operation == Operation::WriteMiddle
            && payload == mtu.bytes()
            && offset + u64::from(payload) < u64::from(reth.len);
        if !middle {
            return false;
        }
        let Ok(span) = cx.memory.check(reth.rkey, reth.va.wrapping_add(offset), payload, Need::RemoteWrite)
        else {
            return false;
        };
        cx.actions.push(Action::Place { from: 0, len: payload, to: Target::Region(span) });
        true
    }

    /// Whether a packet that came early is the expected one now.
    #[inline]
    pub(crate) fn has_turn(&self) -> bool {
        self.early.has_turn()
    }

    /// Handles that packet, and says where its payload was kept.
    pub(crate) fn on_turn<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
    ) -> Option<(Option<u32>, Verdict)> {
        let Kept { operation, packet, payload, buffer, placed } = self.early.take()?;
        let verdict = self.on_expected(cx, path, Arrived { operation, packet: &packet, payload, placed });
        Some((buffer, verdict))
    }

    // ---- Execution --------------------------------------------------------------------------

    fn refuse<M: Memory>(&mut self, cx: &mut Context<'_, M>, refusal: Refusal) -> Verdict {
        let code = match refusal {
            Refusal::NotReady => {
                cx.counters.send_rnr_err += 1;
                self.nak_once(Silence::Other, Syndrome::RnrNak { timer: self.min_rnr_timer });
                return Verdict::Alive;
            }
            Refusal::Nak(code) => code,
            Refusal::Receive { slot, status, code } => {
                if status == Status::LocalLengthError {
                    cx.counters.resp_local_length_error += 1;
                }
                cx.complete_receive(slot, status);
                self.forget_receive(slot);
                code
            }
        };
        if code == NakCode::RemoteAccess {
            cx.counters.resp_remote_access_errors += 1;
            cx.event(Event::AccessError);
        } else {
            cx.counters.resp_remote_invalid_requests += 1;
            cx.event(Event::RequestError);
        }
        self.nak_once(Silence::Other, Syndrome::Nak(code));
        Verdict::Fatal
    }

    /// Queues a NAK of the expected PSN behind the answers before it, and then falls silent.
    fn nak_once(&mut self, silence: Silence, syndrome: Syndrome) {
        if self.silence == Silence::No {
            self.silence = silence;
            // It acknowledges everything before it, and says more than one that has not left yet.
            self.ack_due = false;
            if matches!(self.replies.back(), Some(Reply::Nak { .. })) {
                self.replies.pop_back();
            }
            self.replies.push_back(Reply::Nak { position: self.expected, syndrome });
        }
    }

    fn execute<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        arrived: Arrived<'_>,
    ) -> Result<(), Refusal> {
        use Operation as O;
        let Arrived { operation, packet, payload, .. } = arrived;
        if let Some((piece, reth)) = piece(operation, packet, payload) {
            if piece.first {
                self.inbound_srqn = packet.xrc_srqn;
            }
            // XRC: all packets of a message name the same shared receive queue (IBA A14.3).
            if !is_right_length(path.mtu, &piece) || packet.xrc_srqn != self.inbound_srqn {
                return Err(INVALID);
            }
            return match piece.is_write {
                true => self.write(cx, reth, &piece, &arrived),
                false => self.send(cx, &piece, packet.xrc_srqn),
            };
        }
        match (operation, packet.ext) {
            (O::ReadRequest, Ext::Reth(reth)) => self.read(cx, path.mtu, reth, payload),
            (O::FetchAdd | O::CompareSwap, Ext::Atomic(eth)) => self.atomic(cx, operation, eth, payload),
            (O::Flush, Ext::Flush(feth, reth)) => self.flush_memory(cx, feth, reth, payload),
            (O::AtomicWrite, Ext::AtomicWrite(reth)) => self.atomic_write(cx, reth, payload),
            _ => Err(INVALID),
        }
    }

    /// Takes the receive work request of a message: for XRC from the shared queue that it names.
    fn take_receive<M: Memory>(cx: &mut Context<'_, M>, srqn: Option<Qpn>) -> Result<(u64, u64), Refusal> {
        match cx.memory.take_receive(srqn) {
            Receive::Taken { slot, capacity } => Ok((slot, capacity)),
            Receive::Empty => Err(Refusal::NotReady),
            // IBA A14.5.2: an XRCETH that names nothing usable is an invalid request.
            Receive::Unknown => Err(INVALID),
        }
    }

    /// One packet of a SEND.
    fn send<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        piece: &Piece,
        srqn: Option<Qpn>,
    ) -> Result<(), Refusal> {
        let (slot, capacity, received) = match (piece.first, self.inbound) {
            (true, None) => {
                let (slot, capacity) = Self::take_receive(cx, srqn)?;
                (slot, capacity, 0)
            }
            (false, Some(Inbound::Send { slot, capacity, received })) => (slot, capacity, received),
            _ => return Err(INVALID),
        };
        // IBA 9.7.4.1.7: the responder reports a length error, the requester an invalid request.
        let (status, code) = (Status::LocalLengthError, NakCode::InvalidRequest);
        let total = received.checked_add(piece.payload).filter(|total| u64::from(*total) <= capacity);
        let total = total.ok_or(Refusal::Receive { slot, status, code })?;
        if piece.payload > 0 {
            let to = Target::Receive { slot, offset: received };
            cx.actions.push(Action::Place { from: 0, len: piece.payload, to });
        }
        if let Some(rkey) = piece.invalidate {
            // The key is gone before the completion says so (IBA 9.4.1.1.3). One that may not be
            // invalidated is an access that was not granted.
            let (status, code) = (Status::RemoteInvalidRequest, NakCode::RemoteAccess);
            cx.memory.invalidate(rkey).map_err(|_| Refusal::Receive { slot, status, code })?;
        }
        self.expected += 1;
        self.inbound = (!piece.last).then_some(Inbound::Send { slot, capacity, received: total });
        if piece.last {
            self.finish(cx, slot, ReceiveKind::Send, total, piece);
        }
        Ok(())
    }

    /// One packet of a WRITE.
    fn write<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        reth: Option<Reth>,
        piece: &Piece,
        arrived: &Arrived<'_>,
    ) -> Result<(), Refusal> {
        let (reth, received) = match (reth, self.inbound) {
            (Some(reth), None) => (reth, 0),
            (None, Some(Inbound::Write { reth, received })) => (reth, received),
            _ => return Err(INVALID),
        };
        let total = received.checked_add(piece.payload).ok_or(INVALID)?;
        let complete = total == reth.len;
        if reth.len > MESSAGE_MAX || total > reth.len || piece.last != complete {
            return Err(INVALID);
        }
        // A zero-length WRITE needs no valid key (C9-88).
        let span = if piece.payload > 0 {
            if piece.first {
                check(cx, reth.rkey, reth.va, reth.len, Need::RemoteWrite)?;
            }
            let va = reth.va.wrapping_add(u64::from(received));
            Some(check(cx, reth.rkey, va, piece.payload, Need::RemoteWrite)?)
        } else {
            None
        };
        let receive = match piece.imm {
            Some(_) => Some(Self::take_receive(cx, arrived.packet.xrc_srqn)?.0),
            None => None,
        };
        if let Some(span) = span.filter(|_| !arrived.placed) {
            cx.actions.push(Action::Place { from: 0, len: piece.payload, to: Target::Region(span) });
        }
        self.expected += 1;
        self.inbound = (!piece.last).then_some(Inbound::Write { reth, received: total });
        match (piece.last, receive) {
            (true, Some(slot)) => self.finish(cx, slot, ReceiveKind::WriteImm, total, piece),
            (true, None) => self.count_message(),
            _ => {}
        }
        Ok(())
    }

    /// A message that consumed a receive work request is complete.
    fn finish<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        slot: u64,
        kind: ReceiveKind,
        len: u32,
        piece: &Piece,
    ) {
        self.count_message();
        cx.actions.push(Action::Complete(Completion {
            queue: Queue::Receive,
            slot,
            status: Status::Success,
            signaled: true,
            len,
            kind,
            imm: piece.imm,
            solicited: piece.solicited,
            invalidated: piece.invalidate,
            source: None,
        }));
    }

    fn count_message(&mut self) {
        self.msn = (self.msn + 1) & 0x00ff_ffff;
    }

    /// A READ request: its answer leaves with `transmit`; the MSN counts it now (C9-148).
    fn read<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        mtu: Mtu,
        reth: Reth,
        payload: u32,
    ) -> Result<(), Refusal> {
        self.check_resources(payload == 0)?;
        if reth.len > MESSAGE_MAX {
            return Err(INVALID);
        }
        if reth.len > 0 {
            check(cx, reth.rkey, reth.va, reth.len, Need::RemoteRead)?;
        }
        let (first, packets) = (self.expected, mtu.packets(reth.len));
        self.remember(Resource::Read { first, packets, reth });
        self.replies.push_back(Reply::Read { reth, first, sent: 0, again: false });
        self.expected += u64::from(packets);
        self.count_message();
        Ok(())
    }

    /// An atomic operation: executed now, once.
    fn atomic<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        operation: Operation,
        eth: AtomicEth,
        payload: u32,
    ) -> Result<(), Refusal> {
        self.check_resources(payload == 0)?;
        if !eth.va.is_multiple_of(8) {
            // IBA 9.7.4.1.4: a misaligned atomic is an invalid request.
            return Err(INVALID);
        }
        let span = check(cx, eth.rkey, eth.va, 8, Need::RemoteAtomic)?;
        let before = match operation {
            Operation::FetchAdd => cx.memory.fetch_add(span, eth.swap_add),
            _ => cx.memory.compare_swap(span, eth.compare, eth.swap_add),
        };
        let value = before.map_err(|_| ACCESS)?;
        self.answer_once(Outcome::Value(value));
        Ok(())
    }

    /// FLUSH: what was placed before is where it has to be (IBA A19.4). An empty range is allowed, and
    /// its key is not looked at.
    fn flush_memory<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        feth: Feth,
        reth: Reth,
        payload: u32,
    ) -> Result<(), Refusal> {
        self.check_resources(payload == 0)?;
        let known = Feth::GLOBAL | Feth::PERSISTENT;
        let placement = feth.placement != 0 && feth.placement & !known == 0;
        if !placement || matches!(feth.selectivity, Selectivity::Reserved(_)) {
            return Err(INVALID);
        }
        if reth.len > 0 || feth.selectivity == Selectivity::Region {
            cx.memory.flush(reth.rkey, reth.va, reth.len, feth).map_err(|_| ACCESS)?;
        }
        self.answer_once(Outcome::Done);
        Ok(())
    }

    /// ATOMIC WRITE: eight bytes, seen whole or not at all (IBA A19.5).
    fn atomic_write<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        reth: Reth,
        payload: u32,
    ) -> Result<(), Refusal> {
        self.check_resources(payload == 8)?;
        if reth.len != 8 || !reth.va.is_multiple_of(8) {
            return Err(INVALID);
        }
        let to = check(cx, reth.rkey, reth.va, 8, Need::RemoteWrite)?;
        cx.actions.push(Action::PlaceAtomic { from: 0, to });
        self.answer_once(Outcome::Done);
        Ok(())
    }

    /// An operation of one packet was executed; its result answers duplicates, too.
    fn answer_once(&mut self, result: Outcome) {
        let position = self.expected;
        self.remember(Resource::Once { position, result });
        self.replies.push_back(Reply::Once { position, result, again: false });
        self.expected += 1;
        self.count_message();
    }

    /// Operations with responses may come between messages only, carry the payload that is theirs, and
    /// not more of them than agreed may wait (C9-90).
    fn check_resources(&self, right_payload: bool) -> Result<(), Refusal> {
        let waiting = self.replies.iter().filter(|reply| reply.is_first()).count();
        if self.inbound.is_some() || !right_payload || waiting >= self.max_resources {
            return Err(INVALID);
        }
        Ok(())
    }

    // ---- Ending -----------------------------------------------------------------------------

    /// Forgets the receive work request of the message in progress: it was reported.
    pub(crate) fn forget_receive(&mut self, slot: u64) {
        if matches!(self.inbound, Some(Inbound::Send { slot: own, .. }) if own == slot) {
            self.inbound = None;
        }
    }

    /// Flushes the receive work request of the message in progress, and drops early packets.
    pub(crate) fn flush<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        if let Some(Inbound::Send { slot, .. }) = self.inbound.take() {
            cx.complete_receive(slot, Status::FlushError);
        }
        self.ack_due = false;
        self.missing_due = false;
        // Answers to what was executed before the NAK leave with it; without one the peer is told nothing.
        if !self.replies.iter().any(|reply| matches!(reply, Reply::Nak { .. })) {
            self.replies.clear();
        }
        self.release_early(cx);
    }

    /// Drops early packets, and gives their buffers back.
    pub(crate) fn release_early<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        self.early.clear(|kept| release(cx, kept));
    }
}

fn check<M: Memory>(
    cx: &mut Context<'_, M>,
    rkey: u32,
    va: u64,
    len: u32,
    need: Need,
) -> Result<M::Span, Refusal> {
    cx.memory.check(rkey, va, len, need).map_err(|_| ACCESS)
}

fn release<M: Memory>(cx: &mut Context<'_, M>, kept: Kept) {
    cx.actions.extend(kept.buffer.map(|buffer| Action::Release { buffer }));
}

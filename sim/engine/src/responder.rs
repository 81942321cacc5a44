//! The responder: the half that executes requests and answers them (IBA 9.7.4, 9.7.5.1).

use std::collections::VecDeque;

use anyverbs_wire::{Aeth, AtomicEth, Ext, NakCode, Operation, Psn, Repr, Reth, Syndrome};

use crate::action::{Action, Completion, Queue, Source, Target, Transmit};
use crate::memory::{Memory, Need, Receive};
use crate::pacer::Outflow;
use crate::qp::{Context, Mtu, Path, ReadyToReceive, Verdict};
use crate::time::Time;
use crate::work::{ReceiveKind, Status};

/// The longest message, in bytes (IBA 9.7.2).
const MESSAGE_MAX: u32 = 1 << 31;

/// The credit code that means "no limit" (IBA 9.7.7.2).
const CREDIT_UNLIMITED: u8 = 0x1f;

/// A message of several packets, between its First and its Last.
#[derive(Clone, Copy, Debug)]
enum Inbound {
    Send { slot: u64, capacity: u64, received: u32 },
    Write { reth: Reth, received: u32 },
}

/// An answer that still has to leave. Answers leave in the order of their requests (C9-108).
#[derive(Clone, Copy, Debug)]
enum Reply {
    Read { reth: Reth, first: Psn, sent: u32, again: bool },
    Atomic { psn: Psn, value: u64, again: bool },
    Nak { psn: Psn, syndrome: Syndrome },
}

impl Reply {
    /// Whether it is the first answer to its request. Answers to duplicates take no resource of
    /// their own: the requester counts its requests, not how often it sent them.
    fn is_first(&self) -> bool {
        matches!(self, Reply::Read { again: false, .. } | Reply::Atomic { again: false, .. })
    }
}

/// What was promised to be remembered for duplicates: a responder resource (IBA 9.7.4.1.2).
#[derive(Clone, Copy, Debug)]
enum Resource {
    Read { first: Psn, packets: u32, reth: Reth },
    Atomic { psn: Psn, value: u64 },
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// No receive work request: try again later.
    NotReady,
    /// The request may not be done; the queue pair ends.
    Nak(NakCode),
    /// The message does not fit into the receive work request that it took.
    TooLong { slot: u64 },
}

/// What a packet of a message adds to it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    first: bool,
    last: bool,
    payload: u32,
    imm: Option<u32>,
    solicited: bool,
}

#[derive(Debug)]
pub(crate) struct Responder {
    epsn: Psn,
    msn: u32,
    min_rnr_timer: u8,
    max_resources: usize,
    /// A NAK of sequence or RNR was sent: silence until the expected PSN arrives (C9-114).
    nak_sent: bool,
    inbound: Option<Inbound>,
    replies: VecDeque<Reply>,
    ack_due: bool,
    resources: VecDeque<Resource>,
    /// A READ response waits for its time, and everything behind it.
    paced_until: Option<Time>,
    /// When the last answer leaves: none overtakes it.
    last_at: Time,
}

impl Default for Responder {
    fn default() -> Self {
        Responder {
            epsn: Psn::new(0),
            msn: 0,
            min_rnr_timer: 0,
            max_resources: 0,
            nak_sent: false,
            inbound: None,
            replies: VecDeque::new(),
            ack_due: false,
            resources: VecDeque::new(),
            paced_until: None,
            last_at: Time::ZERO,
        }
    }
}

impl Responder {
    pub(crate) fn new(attributes: &ReadyToReceive) -> Self {
        let max_resources = usize::from(attributes.max_dest_rd_atomic);
        Responder {
            epsn: attributes.rq_psn,
            min_rnr_timer: attributes.min_rnr_timer,
            max_resources,
            // Twice as many duplicates may wait, and one NAK.
            replies: VecDeque::with_capacity(3 * max_resources + 1),
            resources: VecDeque::with_capacity(max_resources),
            ..Responder::default()
        }
    }

    pub(crate) fn wants_transmit(&self) -> bool {
        self.paced_until.is_none() && (self.ack_due || !self.replies.is_empty())
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.paced_until
    }

    /// Looks at the pace again: it may have risen.
    pub(crate) fn on_timer(&mut self) {
        self.paced_until = None;
    }

    // ---- Requests ---------------------------------------------------------------------------

    /// Handles a request packet.
    pub(crate) fn on_request<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        operation: Operation,
        packet: &Repr,
        payload: u32,
    ) -> Verdict {
        let ahead = packet.bth.psn.distance(self.epsn);
        if ahead < 0 {
            cx.counters.duplicate_request += 1;
            self.on_duplicate(path.mtu, packet);
            return Verdict::Alive;
        }
        if ahead > 0 {
            cx.counters.out_of_seq_request += 1;
            self.nak_once(Syndrome::Nak(NakCode::PsnSequenceError));
            return Verdict::Alive;
        }
        self.nak_sent = false;
        match self.execute(cx, path.mtu, operation, packet, payload) {
            Ok(()) => {
                self.ack_due |= packet.bth.ack_request;
                Verdict::Alive
            }
            Err(refusal) => self.refuse(cx, refusal),
        }
    }

    fn refuse<M: Memory>(&mut self, cx: &mut Context<'_, M>, refusal: Refusal) -> Verdict {
        let code = match refusal {
            Refusal::NotReady => {
                cx.counters.send_rnr_err += 1;
                self.nak_once(Syndrome::RnrNak { timer: self.min_rnr_timer });
                return Verdict::Alive;
            }
            Refusal::Nak(code) => code,
            Refusal::TooLong { slot } => {
                // IBA 9.7.4.1.7: the responder reports a length error, the requester an invalid
                // request.
                cx.counters.resp_local_length_error += 1;
                cx.complete_receive(slot, Status::LocalLengthError);
                self.forget_receive(slot);
                NakCode::InvalidRequest
            }
        };
        if code == NakCode::RemoteAccess {
            cx.counters.resp_remote_access_errors += 1;
        }
        self.nak_once(Syndrome::Nak(code));
        Verdict::Fatal
    }

    /// Queues a NAK of the expected PSN behind the answers before it, and then falls silent.
    fn nak_once(&mut self, syndrome: Syndrome) {
        if !self.nak_sent {
            self.nak_sent = true;
            self.replies.push_back(Reply::Nak { psn: self.epsn, syndrome });
        }
    }

    fn execute<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        mtu: Mtu,
        operation: Operation,
        packet: &Repr,
        payload: u32,
    ) -> Result<(), Refusal> {
        use Operation as O;
        let piece = |first, last, imm| Piece { first, last, payload, imm, solicited: packet.bth.solicited };
        match (operation, packet.ext) {
            (O::SendFirst, _) => self.send(cx, mtu, piece(true, false, None)),
            (O::SendMiddle, _) => self.send(cx, mtu, piece(false, false, None)),
            (O::SendLast, _) => self.send(cx, mtu, piece(false, true, None)),
            (O::SendLastImm, Ext::Imm(imm)) => self.send(cx, mtu, piece(false, true, Some(imm))),
            (O::SendOnly, _) => self.send(cx, mtu, piece(true, true, None)),
            (O::SendOnlyImm, Ext::Imm(imm)) => self.send(cx, mtu, piece(true, true, Some(imm))),
            (O::WriteFirst, Ext::Reth(reth)) => self.write(cx, mtu, Some(reth), piece(true, false, None)),
            (O::WriteMiddle, _) => self.write(cx, mtu, None, piece(false, false, None)),
            (O::WriteLast, _) => self.write(cx, mtu, None, piece(false, true, None)),
            (O::WriteLastImm, Ext::Imm(imm)) => self.write(cx, mtu, None, piece(false, true, Some(imm))),
            (O::WriteOnly, Ext::Reth(reth)) => self.write(cx, mtu, Some(reth), piece(true, true, None)),
            (O::WriteOnlyImm, Ext::RethImm(reth, imm)) => {
                self.write(cx, mtu, Some(reth), piece(true, true, Some(imm)))
            }
            (O::ReadRequest, Ext::Reth(reth)) => self.read(cx, mtu, reth, payload),
            (O::FetchAdd | O::CompareSwap, Ext::Atomic(eth)) => self.atomic(cx, operation, eth, payload),
            // SEND with invalidate, FLUSH and ATOMIC WRITE are not offered.
            _ => Err(Refusal::Nak(NakCode::InvalidRequest)),
        }
    }

    /// One packet of a SEND.
    fn send<M: Memory>(&mut self, cx: &mut Context<'_, M>, mtu: Mtu, piece: Piece) -> Result<(), Refusal> {
        check_length(mtu, &piece)?;
        let (slot, capacity, received) = match (piece.first, self.inbound) {
            (true, None) => match cx.memory.take_receive() {
                Receive::Taken { slot, capacity } => (slot, capacity, 0),
                Receive::Empty => return Err(Refusal::NotReady),
            },
            (false, Some(Inbound::Send { slot, capacity, received })) => (slot, capacity, received),
            _ => return Err(Refusal::Nak(NakCode::InvalidRequest)),
        };
        let total = received.checked_add(piece.payload).ok_or(Refusal::TooLong { slot })?;
        if u64::from(total) > capacity {
            return Err(Refusal::TooLong { slot });
        }
        if piece.payload > 0 {
            let to = Target::Receive { slot, offset: received };
            cx.actions.push(Action::Place { from: 0, len: piece.payload, to });
        }
        self.epsn = self.epsn.add(1);
        self.inbound = (!piece.last).then_some(Inbound::Send { slot, capacity, received: total });
        if piece.last {
            self.finish(cx, slot, ReceiveKind::Send, total, &piece);
        }
        Ok(())
    }

    /// One packet of a WRITE.
    fn write<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        mtu: Mtu,
        reth: Option<Reth>,
        piece: Piece,
    ) -> Result<(), Refusal> {
        check_length(mtu, &piece)?;
        let (reth, received) = match (reth, self.inbound) {
            (Some(reth), None) => (reth, 0),
            (None, Some(Inbound::Write { reth, received })) => (reth, received),
            _ => return Err(Refusal::Nak(NakCode::InvalidRequest)),
        };
        let total = received.checked_add(piece.payload).ok_or(Refusal::Nak(NakCode::InvalidRequest))?;
        let complete = total == reth.len;
        if reth.len > MESSAGE_MAX || total > reth.len || piece.last != complete {
            return Err(Refusal::Nak(NakCode::InvalidRequest));
        }
        // A zero-length WRITE needs no valid key (C9-88).
        let span = if piece.payload > 0 {
            if piece.first {
                self.check(cx, reth.rkey, reth.va, reth.len, Need::RemoteWrite)?;
            }
            let va = reth.va.wrapping_add(u64::from(received));
            Some(self.check(cx, reth.rkey, va, piece.payload, Need::RemoteWrite)?)
        } else {
            None
        };
        let receive = match piece.imm {
            Some(_) => match cx.memory.take_receive() {
                Receive::Taken { slot, .. } => Some(slot),
                Receive::Empty => return Err(Refusal::NotReady),
            },
            None => None,
        };
        if let Some(span) = span {
            cx.actions.push(Action::Place { from: 0, len: piece.payload, to: Target::Region(span) });
        }
        self.epsn = self.epsn.add(1);
        self.inbound = (!piece.last).then_some(Inbound::Write { reth, received: total });
        match (piece.last, receive) {
            (true, Some(slot)) => self.finish(cx, slot, ReceiveKind::WriteImm, total, &piece),
            (true, None) => self.count_message(),
            _ => {}
        }
        Ok(())
    }

    fn check<M: Memory>(
        &self,
        cx: &mut Context<'_, M>,
        rkey: u32,
        va: u64,
        len: u32,
        need: Need,
    ) -> Result<M::Span, Refusal> {
        cx.memory.check(rkey, va, len, need).map_err(|_| Refusal::Nak(NakCode::RemoteAccess))
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
        self.check_resources(payload)?;
        if reth.len > MESSAGE_MAX {
            return Err(Refusal::Nak(NakCode::InvalidRequest));
        }
        if reth.len > 0 {
            self.check(cx, reth.rkey, reth.va, reth.len, Need::RemoteRead)?;
        }
        let (first, packets) = (self.epsn, mtu.packets(reth.len));
        self.remember(Resource::Read { first, packets, reth });
        self.replies.push_back(Reply::Read { reth, first, sent: 0, again: false });
        self.epsn = self.epsn.add(packets);
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
        self.check_resources(payload)?;
        if !eth.va.is_multiple_of(8) {
            // IBA 9.7.4.1.4: a misaligned atomic is an invalid request.
            return Err(Refusal::Nak(NakCode::InvalidRequest));
        }
        let span = self.check(cx, eth.rkey, eth.va, 8, Need::RemoteAtomic)?;
        let before = match operation {
            Operation::FetchAdd => cx.memory.fetch_add(span, eth.swap_add),
            _ => cx.memory.compare_swap(span, eth.compare, eth.swap_add),
        };
        let value = before.map_err(|_| Refusal::Nak(NakCode::RemoteAccess))?;
        let psn = self.epsn;
        self.remember(Resource::Atomic { psn, value });
        self.replies.push_back(Reply::Atomic { psn, value, again: false });
        self.epsn = psn.add(1);
        self.count_message();
        Ok(())
    }

    /// A READ or atomic may come between messages only, carries no payload, and not more of them
    /// than agreed may wait (C9-90).
    fn check_resources(&self, payload: u32) -> Result<(), Refusal> {
        let waiting = self.replies.iter().filter(|reply| reply.is_first()).count();
        if self.inbound.is_some() || payload != 0 || waiting >= self.max_resources {
            return Err(Refusal::Nak(NakCode::InvalidRequest));
        }
        Ok(())
    }

    fn remember(&mut self, resource: Resource) {
        if self.resources.len() == self.max_resources {
            self.resources.pop_front();
        }
        self.resources.push_back(resource);
    }

    /// A request that was executed before (C9-105): SEND and WRITE are acknowledged again, a READ
    /// is executed again, an atomic's result is replayed, and what is not remembered is dropped.
    fn on_duplicate(&mut self, mtu: Mtu, packet: &Repr) {
        let psn = packet.bth.psn;
        let reply = match packet.ext {
            Ext::Reth(reth) if packet.bth.opcode.operation() == Some(Operation::ReadRequest) => {
                let remembered = self.resources.iter().any(|resource| resource.covers_read(mtu, psn, &reth));
                remembered.then_some(Reply::Read { reth, first: psn, sent: 0, again: true })
            }
            Ext::Atomic(_) => self.resources.iter().find_map(|resource| match resource {
                Resource::Atomic { psn: own, value } if *own == psn => {
                    Some(Reply::Atomic { psn, value: *value, again: true })
                }
                _ => None,
            }),
            _ => {
                self.ack_due = true;
                None
            }
        };
        if let Some(reply) = reply
            && self.replies.len() < 2 * self.max_resources
        {
            self.replies.push_back(reply);
        }
    }

    // ---- Answers ----------------------------------------------------------------------------

    /// Emits up to `budget` packets; says whether the queue pair goes on, and whether more could
    /// leave at once.
    pub(crate) fn transmit<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        outflow: &mut Outflow,
        mut budget: usize,
    ) -> (Verdict, bool) {
        self.paced_until = None;
        while let Some(reply) = self.replies.front().copied() {
            if budget == 0 {
                return (Verdict::Alive, true);
            }
            budget -= 1;
            match reply {
                Reply::Read { reth, first, sent, again } => {
                    if !self.is_time(cx.now, outflow) {
                        return (Verdict::Alive, false);
                    }
                    if !self.read_response(cx, path, outflow, reth, first, sent) {
                        cx.counters.resp_remote_access_errors += 1;
                        let syndrome = Syndrome::Nak(NakCode::RemoteAccess);
                        self.replies.pop_front();
                        self.replies.push_front(Reply::Nak { psn: first.add(sent), syndrome });
                        if !again {
                            self.replies.truncate(1);
                            return (Verdict::Fatal, true);
                        }
                        // A duplicate may be late: the READ was answered, and the memory is gone since.
                        // That ends nothing here, and a requester that has its answer ignores the NAK.
                    }
                }
                Reply::Atomic { psn, value, .. } => {
                    self.replies.pop_front();
                    let ext = Ext::AtomicAck(self.ack(), value);
                    self.emit(cx, path, Operation::AtomicAcknowledge, psn, ext, Source::None);
                }
                Reply::Nak { psn, syndrome } => {
                    self.replies.pop_front();
                    let ext = Ext::Aeth(Aeth { syndrome, msn: self.msn });
                    self.emit(cx, path, Operation::Acknowledge, psn, ext, Source::None);
                }
            }
        }
        if self.ack_due {
            self.ack_due = false;
            let ext = Ext::Aeth(self.ack());
            self.emit(cx, path, Operation::Acknowledge, self.epsn.sub(1), ext, Source::None);
        }
        (Verdict::Alive, false)
    }

    /// Whether the pace allows another packet of a READ response, and since when if so.
    fn is_time(&mut self, now: Time, outflow: &Outflow) -> bool {
        match outflow.ready(now) {
            Ok(at) => self.last_at = self.last_at.max(at),
            Err(later) => self.paced_until = Some(later),
        }
        self.paced_until.is_none()
    }

    /// Emits the next packet of a READ response; false if the memory may no longer be read.
    fn read_response<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        outflow: &mut Outflow,
        reth: Reth,
        first: Psn,
        sent: u32,
    ) -> bool {
        use Operation as O;
        let packets = path.mtu.packets(reth.len);
        let psn = first.add(sent);
        let offset = sent * path.mtu.bytes();
        let len = (reth.len - offset).min(path.mtu.bytes());
        let payload = if len == 0 {
            Source::None
        } else {
            let va = reth.va.wrapping_add(u64::from(offset));
            match cx.memory.check(reth.rkey, va, len, Need::RemoteRead) {
                Ok(span) => Source::Region { span, len },
                Err(_) => return false,
            }
        };
        let last = sent + 1 == packets;
        let (operation, ext) = match (sent == 0, last) {
            (true, true) => (O::ReadResponseOnly, Ext::Aeth(self.ack())),
            (true, false) => (O::ReadResponseFirst, Ext::Aeth(self.ack())),
            (false, false) => (O::ReadResponseMiddle, Ext::None),
            (false, true) => (O::ReadResponseLast, Ext::Aeth(self.ack())),
        };
        outflow.sent(cx.now, self.last_at, payload.len());
        self.emit(cx, path, operation, psn, ext, payload);
        if last {
            self.replies.pop_front();
        } else if let Some(Reply::Read { sent, .. }) = self.replies.front_mut() {
            *sent += 1;
        }
        true
    }

    /// Emits an answer, behind those before it.
    fn emit<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        operation: Operation,
        psn: Psn,
        ext: Ext,
        payload: Source<M::Span>,
    ) {
        let bth = path.bth(operation, psn, payload.len());
        let header = Repr { bth, xrc_srqn: None, ext };
        self.last_at = self.last_at.max(cx.now);
        cx.actions.push(Action::Transmit(Transmit { at: self.last_at, header, payload }));
    }

    fn ack(&self) -> Aeth {
        Aeth { syndrome: Syndrome::Ack { credit: CREDIT_UNLIMITED }, msn: self.msn }
    }

    // ---- Ending -----------------------------------------------------------------------------

    /// Forgets the receive work request of the message in progress: it was reported.
    pub(crate) fn forget_receive(&mut self, slot: u64) {
        if matches!(self.inbound, Some(Inbound::Send { slot: own, .. }) if own == slot) {
            self.inbound = None;
        }
    }

    /// Flushes the receive work request of the message in progress.
    pub(crate) fn flush<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        if let Some(Inbound::Send { slot, .. }) = self.inbound.take() {
            cx.complete_receive(slot, Status::FlushError);
        }
        self.ack_due = false;
    }
}

impl Resource {
    /// Whether a READ request asks for a part of this one (C9-105): same key, inside its range, and
    /// at the place that its PSN says.
    fn covers_read(&self, mtu: Mtu, psn: Psn, again: &Reth) -> bool {
        let Resource::Read { first, packets, reth } = self else {
            return false;
        };
        let ahead = psn.distance(*first);
        if ahead < 0 || ahead as u32 >= *packets || again.rkey != reth.rkey {
            return false;
        }
        let offset = u64::from(ahead as u32) * u64::from(mtu.bytes());
        again.va == reth.va.wrapping_add(offset) && offset + u64::from(again.len) <= u64::from(reth.len)
    }
}

/// First and Middle packets are full; Last ones are not empty; none is longer (IBA 9.7.4.1.6).
fn check_length(mtu: Mtu, piece: &Piece) -> Result<(), Refusal> {
    let full = piece.payload == mtu.bytes();
    let fits = piece.payload <= mtu.bytes();
    let right = match (piece.first, piece.last) {
        (_, false) => full,
        (true, true) => fits,
        (false, true) => fits && piece.payload > 0,
    };
    right.then_some(()).ok_or(Refusal::Nak(NakCode::InvalidRequest))
}

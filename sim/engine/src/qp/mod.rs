//! A queue pair: its state, and the events it takes.

mod attributes;
mod path;
mod state;

use anyverbs_wire::{Ext, Opcode, Operation, Qpn, Repr};

pub use attributes::{Config, MESSAGE_MAX, Mtu, ReadyToReceive, ReadyToSend, Recovery};
pub use path::Context;
pub(crate) use path::{Path, Verdict};
pub use state::{QpState, QpType};

use crate::action::{Action, Event, Source, Transmit};
use crate::congestion::{CE, Congestion, NotificationPoint};
use crate::memory::{Memory, Receive};
use crate::reliable::{Requester, Responder};
use crate::time::Time;
use crate::unreliable::{Receiver, Sender};
use crate::work::{SendRequest, Status};

/// Packets sent per call of [`QueuePair::transmit`] by a half of the queue pair, by default enough
/// for a few segmented sends.
const QUANTUM: usize = 64;

/// The two halves of a queue pair, by what they do about lost packets.
#[derive(Debug)]
enum Halves {
    Reliable { requester: Box<Requester>, responder: Box<Responder> },
    Unreliable { sender: Box<Sender>, receiver: Box<Receiver> },
}

impl Halves {
    fn new(config: &Config) -> Self {
        if config.qp_type.is_reliable() {
            Halves::Reliable {
                requester: Box::new(Requester::new(config)),
                responder: Box::new(Responder::new(config)),
            }
        } else {
            Halves::Unreliable {
                sender: Box::new(Sender::new(config)),
                receiver: Box::new(Receiver::new(config)),
            }
        }
    }
}

/// An early packet whose turn came: see [`QueuePair::on_early`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Early {
    /// The buffer in which its payload was kept, if it had any that was not placed at once.
    pub buffer: Option<u32>,
}

/// A queue pair.
#[derive(Debug)]
pub struct QueuePair {
    config: Config,
    state: QpState,
    path: Path,
    halves: Halves,
    notification: NotificationPoint,
    cnp_due: bool,
    /// The program was told that communication is established, or moved on by itself.
    established: bool,
    /// The program was told that the send queue is drained.
    drained: bool,
}

impl QueuePair {
    /// A queue pair in the Reset state.
    pub fn new(config: Config) -> Self {
        QueuePair {
            config,
            state: QpState::Reset,
            path: Path { service: config.qp_type.service(), dest_qpn: Qpn::new(0), mtu: Mtu::B1024 },
            halves: Halves::new(&config),
            notification: NotificationPoint::new(config.cnp_interval),
            cnp_due: false,
            established: false,
            drained: false,
        }
    }

    /// Its state.
    pub fn state(&self) -> QpState {
        self.state
    }

    /// Its type.
    pub fn qp_type(&self) -> QpType {
        self.config.qp_type
    }

    // ---- Transitions ------------------------------------------------------------------------

    /// Reset -> Init. False, and nothing done, from another state.
    pub fn to_init(&mut self) -> bool {
        self.transition(QpState::Reset, QpState::Init)
    }

    /// Init -> ReadyToReceive. False, and nothing done, from another state.
    pub fn to_rtr(&mut self, attributes: &ReadyToReceive) -> bool {
        let done = self.transition(QpState::Init, QpState::ReadyToReceive);
        if done {
            self.path.dest_qpn = attributes.dest_qpn;
            self.path.mtu = attributes.path_mtu;
            match &mut self.halves {
                Halves::Reliable { requester, responder } => {
                    responder.start(attributes);
                    requester.set_mtu(attributes.path_mtu);
                }
                Halves::Unreliable { sender, receiver } => {
                    receiver.start(attributes.rq_psn);
                    sender.set_mtu(attributes.path_mtu);
                }
            }
        }
        done
    }

    /// ReadyToReceive -> ReadyToSend. False, and nothing done, from another state.
    pub fn to_rts(&mut self, attributes: &ReadyToSend) -> bool {
        let done = self.transition(QpState::ReadyToReceive, QpState::ReadyToSend);
        if done {
            self.established = true;
            match &mut self.halves {
                Halves::Reliable { requester, .. } => requester.start(attributes),
                Halves::Unreliable { sender, .. } => sender.start(attributes.sq_psn),
            }
        }
        done
    }

    /// ReadyToSend -> SendQueueDrain: no new work request is begun. When those that had begun have
    /// ended, [`Event::SendQueueDrained`] says so (IBA 10.3.1.5). False, and nothing done, from another
    /// state.
    pub fn to_sqd<M: Memory>(&mut self, cx: &mut Context<'_, M>) -> bool {
        let done = self.transition(QpState::ReadyToSend, QpState::SendQueueDrain);
        if done {
            self.drained = false;
            self.note_drained(cx);
        }
        done
    }

    /// SendQueueDrain or SendQueueError -> ReadyToSend. False, and nothing done, from another state.
    pub fn resume(&mut self) -> bool {
        self.transition(QpState::SendQueueDrain, QpState::ReadyToSend)
            || self.transition(QpState::SendQueueError, QpState::ReadyToSend)
    }

    /// Any state -> Reset: what was posted is forgotten and does not complete.
    pub fn reset<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        if let Halves::Reliable { responder, .. } = &mut self.halves {
            responder.release_early(cx);
        }
        *self = QueuePair::new(self.config);
    }

    /// UD: the key that packets must carry (IBA 10.2.5).
    pub fn set_qkey(&mut self, qkey: u32) {
        if let Halves::Unreliable { receiver, .. } = &mut self.halves {
            receiver.set_qkey(qkey);
        }
    }

    fn transition(&mut self, from: QpState, to: QpState) -> bool {
        let allowed = self.state == from;
        if allowed {
            self.state = to;
        }
        allowed
    }

    /// Says once that nothing is under way any more.
    fn note_drained<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        if self.state != QpState::SendQueueDrain || self.drained {
            return;
        }
        let idle = match &self.halves {
            Halves::Reliable { requester, .. } => requester.is_idle(),
            Halves::Unreliable { sender, .. } => sender.is_idle(),
        };
        if idle {
            self.drained = true;
            cx.event(Event::SendQueueDrained);
        }
    }

    // ---- Events -----------------------------------------------------------------------------

    /// Takes a send work request. It leaves with the next [`transmit`](Self::transmit); in the error
    /// states it is flushed at once.
    ///
    /// Returns false, and does nothing, if the queue is full, or if the type or the state of the queue
    /// pair does not allow the request.
    pub fn post_send<M: Memory>(&mut self, cx: &mut Context<'_, M>, request: SendRequest) -> bool {
        use QpState::*;
        let state = matches!(self.state, ReadyToSend | SendQueueDrain | SendQueueError | Error);
        if !state || !self.config.qp_type.can_do(&request) || request.len > MESSAGE_MAX {
            return false;
        }
        let posted = match &mut self.halves {
            Halves::Reliable { requester, .. } => requester.post(request),
            Halves::Unreliable { sender, .. } => sender.post(request),
        };
        if matches!(self.state, SendQueueError | Error) {
            self.flush_sends(cx);
        }
        posted
    }

    /// What congestion control thinks.
    pub fn congestion(&self) -> &Congestion {
        match &self.halves {
            Halves::Reliable { requester, .. } => &requester.outflow.congestion,
            Halves::Unreliable { sender, .. } => &sender.outflow.congestion,
        }
    }

    fn congestion_mut(&mut self) -> &mut Congestion {
        match &mut self.halves {
            Halves::Reliable { requester, .. } => &mut requester.outflow.congestion,
            Halves::Unreliable { sender, .. } => &mut sender.outflow.congestion,
        }
    }

    /// The two ECN bits for the IP header of its datagrams.
    pub fn ecn(&self) -> u8 {
        self.congestion().ecn()
    }

    /// Handles a packet from the peer with `payload` bytes of payload, and these two ECN bits in its
    /// IP header. Then [`on_early`](Self::on_early) is called until there is nothing more.
    ///
    /// The caller has checked the ICRC and, unless the queue pair is UD, the source address.
    pub fn on_packet<M: Memory>(&mut self, cx: &mut Context<'_, M>, packet: &Repr, payload: u32, ecn: u8) {
        if packet.bth.opcode == Opcode::CNP {
            self.on_cnp(cx, packet);
            return;
        }
        if packet.bth.opcode == Opcode::MISSING {
            self.on_missing(cx, packet);
            return;
        }
        let Some(operation) = self.admitted(cx, packet) else { return };
        cx.counters.rcvd_pkts += 1;
        self.note_mark(cx, operation, ecn);
        if self.state == QpState::ReadyToReceive && !std::mem::replace(&mut self.established, true) {
            cx.event(Event::CommunicationEstablished);
        }
        let verdict = match &mut self.halves {
            Halves::Reliable { requester, .. } if operation.is_response() => {
                requester.on_response(cx, &self.path, operation, packet, payload)
            }
            Halves::Reliable { responder, .. } => {
                responder.on_request(cx, &self.path, operation, packet, payload)
            }
            Halves::Unreliable { receiver, .. } => {
                receiver.on_packet(cx, &self.path, operation, packet, payload)
            }
        };
        self.heed(cx, verdict);
        self.note_drained(cx);
    }

    /// Handles the early packet whose turn has come, if there is one. The payload that its actions name
    /// is the one in the buffer; when they are carried out the buffer is free.
    ///
    /// One packet at a time, since a packet may act on what the one before it placed.
    #[inline]
    pub fn on_early<M: Memory>(&mut self, cx: &mut Context<'_, M>) -> Option<Early> {
        let Halves::Reliable { responder, .. } = &mut self.halves else { return None };
        if !responder.has_turn() || !self.state.answers() {
            return None;
        }
        let (buffer, verdict) = responder.on_turn(cx, &self.path)?;
        self.heed(cx, verdict);
        Some(Early { buffer })
    }

    /// Remembers to tell the peer of a mark. Acknowledgements do not count: their sender has no rate
    /// to lower. Datagrams (UD) do not either: there is no peer to tell.
    fn note_mark<M: Memory>(&mut self, cx: &mut Context<'_, M>, operation: Operation, ecn: u8) {
        use Operation::{Acknowledge, AtomicAcknowledge};
        let datagram = self.config.qp_type == QpType::Ud;
        if ecn & CE != CE || datagram || matches!(operation, Acknowledge | AtomicAcknowledge) {
            return;
        }
        cx.counters.np_ecn_marked_roce_packets += 1;
        self.cnp_due |= self.notification.on_packet(cx.now, ecn);
    }

    /// Handles a congestion notification: its requests and READ responses slow down (IBA A17.9.3).
    fn on_cnp<M: Memory>(&mut self, cx: &mut Context<'_, M>, packet: &Repr) {
        if !self.state.answers() || self.config.qp_type == QpType::Ud {
            cx.counters.rx_out_of_state += 1;
            return;
        }
        if !path::in_partition(packet) {
            cx.counters.bad_pkey_cntr += 1;
            return;
        }
        cx.counters.rcvd_pkts += 1;
        let now = cx.now;
        if self.congestion_mut().on_cnp(now) {
            cx.counters.rp_cnp_handled += 1;
        } else {
            cx.counters.rp_cnp_ignored += 1;
        }
    }

    /// Handles what a peer says that it misses.
    fn on_missing<M: Memory>(&mut self, cx: &mut Context<'_, M>, packet: &Repr) {
        let (Halves::Reliable { requester, .. }, Ext::Missing(missing)) = (&mut self.halves, &packet.ext)
        else {
            cx.counters.rx_wrong_service += 1;
            return;
        };
        if !self.state.requests() || self.config.qp_type == QpType::XrcRecv {
            cx.counters.rx_out_of_state += 1;
        } else if !path::in_partition(packet) {
            cx.counters.bad_pkey_cntr += 1;
        } else {
            cx.counters.rcvd_pkts += 1;
            requester.on_missing(cx, packet.bth.psn, missing);
            self.note_drained(cx);
        }
    }

    /// The operation of a packet that this queue pair may look at now, in the order of the checks of
    /// IBA 9.6.1. What fails one is counted, and changes nothing else.
    fn admitted<M: Memory>(&self, cx: &mut Context<'_, M>, packet: &Repr) -> Option<Operation> {
        let opcode = packet.bth.opcode;
        let Some(operation) = opcode.operation().filter(|_| opcode.is_of(self.path.service)) else {
            cx.counters.rx_wrong_service += 1;
            return None;
        };
        let direction = match self.config.qp_type {
            QpType::XrcSend => operation.is_response(),
            QpType::XrcRecv => operation.is_request(),
            _ => true,
        };
        let ready = match operation.is_response() {
            true => self.state.requests(),
            false => self.state.answers(),
        };
        if !ready || !direction {
            cx.counters.rx_out_of_state += 1;
            return None;
        }
        if !path::in_partition(packet) {
            cx.counters.bad_pkey_cntr += 1;
            return None;
        }
        Some(operation)
    }

    /// Handles timers that are due by now.
    pub fn on_timer<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        let (now, requests) = (cx.now, self.state.requests());
        self.congestion_mut().on_timer(now);
        let verdict = match &mut self.halves {
            Halves::Reliable { requester, responder } => {
                responder.on_timer();
                if requests { requester.on_timer(cx) } else { Verdict::Alive }
            }
            Halves::Unreliable { sender, .. } => {
                sender.on_timer();
                Verdict::Alive
            }
        };
        self.heed(cx, verdict);
    }

    /// Emits packets that may leave now: requests first, then answers, so that an acknowledgement
    /// leaves behind, or in one send with, the reply that the program posted meanwhile.
    ///
    /// Returns whether there is more to send at once.
    pub fn transmit<M: Memory>(&mut self, cx: &mut Context<'_, M>) -> bool {
        let before = cx.actions.len();
        let mut more = false;
        if std::mem::take(&mut self.cnp_due) && self.state.answers() {
            cx.counters.np_cnp_sent += 1;
            let header = self.path.cnp();
            cx.actions.push(Action::Transmit(Transmit { at: cx.now, header, payload: Source::None }));
        }
        let draining = self.state == QpState::SendQueueDrain;
        let requests = self.state.requests();
        // In the error state what was promised before still leaves: the NAK that says why.
        let answers = self.state.answers() || self.state == QpState::Error;
        let mut verdict = Verdict::Alive;
        match &mut self.halves {
            Halves::Reliable { requester, responder } => {
                if requests {
                    let (heed, pending) = requester.transmit(cx, &self.path, draining, QUANTUM);
                    more |= pending;
                    verdict = heed;
                }
                if answers {
                    let outflow = &mut requester.outflow;
                    let (heed, pending) = responder.transmit(cx, &self.path, outflow, QUANTUM);
                    more |= pending;
                    verdict = verdict.max(heed);
                }
            }
            Halves::Unreliable { sender, .. } if requests => {
                let (sent, pending) = sender.transmit(cx, &self.path, draining, QUANTUM);
                more |= pending;
                if sent.is_err() {
                    self.enter_send_queue_error(cx);
                }
            }
            Halves::Unreliable { .. } => {}
        }
        self.heed(cx, verdict);
        cx.counters.sent_pkts +=
            cx.actions[before..].iter().filter(|action| matches!(action, Action::Transmit(_))).count() as u64;
        self.note_drained(cx);
        more
    }

    /// Whether [`transmit`](Self::transmit) may have something to send.
    pub fn wants_transmit(&self) -> bool {
        self.cnp_due
            || match &self.halves {
                Halves::Reliable { requester, responder } => {
                    responder.wants_transmit() || (self.state.requests() && requester.wants_transmit())
                }
                Halves::Unreliable { sender, .. } => self.state.requests() && sender.wants_transmit(),
            }
    }

    /// When [`on_timer`](Self::on_timer) is due.
    pub fn next_deadline(&self) -> Option<Time> {
        if matches!(self.state, QpState::Reset | QpState::Init) {
            return None;
        }
        let congestion = match self.state {
            QpState::Error => None,
            _ => self.congestion().next_deadline(),
        };
        let requests = self.state.requests();
        match &self.halves {
            Halves::Reliable { requester, responder } => {
                let requests = if requests { requester.next_deadline() } else { None };
                Time::earliest(requests, Time::earliest(congestion, responder.next_deadline()))
            }
            Halves::Unreliable { sender, .. } => {
                Time::earliest(if requests { sender.next_deadline() } else { None }, congestion)
            }
        }
    }

    // ---- Errors -----------------------------------------------------------------------------

    /// Ends a send work request whose own memory may not be used, and with it the queue pair
    /// (IBA 10.8.5: local protection error), or for UC and UD only its send queue.
    pub fn local_error<M: Memory>(&mut self, cx: &mut Context<'_, M>, slot: u64, status: Status) {
        if !self.state.requests() {
            return;
        }
        match &mut self.halves {
            Halves::Reliable { requester, .. } => {
                requester.fail_slot(cx, slot, status);
                self.enter_error(cx);
            }
            Halves::Unreliable { sender, .. } => {
                sender.fail_slot(cx, slot, status);
                self.enter_send_queue_error(cx);
            }
        }
    }

    /// Ends the send queue, or for reliable types the queue pair, after a send work request failed in
    /// the same breath as it completed.
    pub fn send_failed<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        match &self.halves {
            Halves::Reliable { .. } => self.enter_error(cx),
            Halves::Unreliable { .. } => self.enter_send_queue_error(cx),
        }
    }

    /// Ends a receive work request whose own memory may not be used, and with it the queue pair.
    pub fn receive_error<M: Memory>(&mut self, cx: &mut Context<'_, M>, slot: u64, status: Status) {
        if self.state != QpState::Error {
            cx.complete_receive(slot, status);
            match &mut self.halves {
                Halves::Reliable { responder, .. } => responder.forget_receive(slot),
                Halves::Unreliable { receiver, .. } => receiver.forget_receive(slot),
            }
            self.enter_error(cx);
        }
    }

    /// Enters the error state: every work request of both queues is flushed, in order
    /// (IBA 10.3.1, "Error").
    pub fn enter_error<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        if self.state == QpState::Reset {
            return;
        }
        self.state = QpState::Error;
        self.flush_sends(cx);
        match &mut self.halves {
            Halves::Reliable { responder, .. } => responder.flush(cx),
            Halves::Unreliable { receiver, .. } => receiver.flush(cx),
        }
        self.flush_receives(cx);
    }

    /// A send of an unreliable queue pair failed: what is behind it is flushed, and receives go on.
    fn enter_send_queue_error<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        if self.state.requests() {
            self.state = QpState::SendQueueError;
            self.flush_sends(cx);
        }
    }

    fn flush_sends<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        match &mut self.halves {
            Halves::Reliable { requester, .. } => requester.flush(cx),
            Halves::Unreliable { sender, .. } => sender.flush(cx),
        }
    }

    /// Flushes receives that were posted in the error state. Those of a shared queue are not the queue
    /// pair's to flush (IBA 10.2.9.3).
    pub fn flush_receives<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        let own = !self.config.shared_receives && self.config.qp_type != QpType::XrcRecv;
        if self.state == QpState::Error && own {
            while let Receive::Taken { slot, .. } = cx.memory.take_receive(None) {
                cx.complete_receive(slot, Status::FlushError);
            }
        }
    }

    fn heed<M: Memory>(&mut self, cx: &mut Context<'_, M>, verdict: Verdict) {
        if verdict == Verdict::Fatal && self.state != QpState::Error {
            self.enter_error(cx);
        }
    }
}

//! A reliable-connected queue pair: its state, and the events it takes.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use anyverbs_wire::{Bth, Ext, Opcode, Operation, Psn, Qpn, Repr, Service};

use crate::action::{Action, Completion, Queue, Source, Transmit};
use crate::congestion::{CE, Congestion, Control, NotificationPoint};
use crate::counters::Counters;
use crate::memory::{Memory, Receive};
use crate::requester::Requester;
use crate::responder::Responder;
use crate::time::Time;
use crate::work::{ReceiveKind, SendRequest, Status};

/// The default partition, full membership (IBA 10.9.1.2).
const DEFAULT_PKEY: u16 = 0xffff;

/// Packets sent per call of [`QueuePair::transmit`] by a half of the queue pair, by default enough
/// for a few segmented sends.
const QUANTUM: usize = 64;

/// The state of a queue pair (IBA 10.3.1).
///
/// ```text
/// Reset --to_init--> Init --to_rtr--> ReadyToReceive --to_rts--> ReadyToSend
///   any state --error--> Error      any state --reset--> Reset (a new QueuePair)
/// ```
///
/// | state | receives may be posted | sends may be posted | requests are answered | requests are made |
/// |---|---|---|---|---|
/// | Reset | no | no | no | no |
/// | Init | yes | no | no | no |
/// | ReadyToReceive | yes | no | yes | no |
/// | ReadyToSend | yes | yes | yes | yes |
/// | Error | yes, flushed | yes, flushed | no | no |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QpState {
    /// As created.
    Reset,
    /// Receives may be posted.
    Init,
    /// Answers requests.
    ReadyToReceive,
    /// Answers and makes requests.
    ReadyToSend,
    /// Everything is flushed.
    Error,
}

/// The largest payload of a packet on a path: the path MTU (IBA 9.6.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mtu {
    /// 256 bytes.
    B256,
    /// 512 bytes.
    B512,
    /// 1024 bytes.
    B1024,
    /// 2048 bytes.
    B2048,
    /// 4096 bytes.
    B4096,
}

impl Mtu {
    /// All of them, the smallest first.
    pub const ALL: [Mtu; 5] = [Mtu::B256, Mtu::B512, Mtu::B1024, Mtu::B2048, Mtu::B4096];

    /// In bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Mtu::B256 => 256,
            Mtu::B512 => 512,
            Mtu::B1024 => 1024,
            Mtu::B2048 => 2048,
            Mtu::B4096 => 4096,
        }
    }

    /// The MTU of exactly so many bytes, if there is one.
    pub fn from_bytes(bytes: u32) -> Option<Mtu> {
        Mtu::ALL.into_iter().find(|mtu| mtu.bytes() == bytes)
    }

    /// The PSNs that a message of `len` bytes takes: one a packet, and one if it is empty.
    pub const fn packets(self, len: u32) -> u32 {
        if len == 0 { 1 } else { len.div_ceil(self.bytes()) }
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

/// What the driver decides for a queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Send work requests that may be outstanding.
    pub max_send_wr: usize,
    /// PSNs that may be unacknowledged, at least 1. READ responses count.
    pub window: u32,
    /// The rate it must not exceed, in bytes of datagrams a second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// How it adapts to the network, within `window` and `bytes_per_second`.
    pub congestion: Control,
    /// How often it may tell the peer that the peer's packets met congestion.
    pub cnp_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_send_wr: 128,
            window: 256,
            bytes_per_second: None,
            congestion: Control::Static,
            cnp_interval: NotificationPoint::INTERVAL,
        }
    }
}

/// The attributes of the transition to ReadyToReceive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadyToReceive {
    /// The peer's queue pair.
    pub dest_qpn: Qpn,
    /// The peer's first PSN.
    pub rq_psn: Psn,
    /// The path MTU.
    pub path_mtu: Mtu,
    /// READs and atomics of the peer that may be outstanding.
    pub max_dest_rd_atomic: u8,
    /// The timer code of our RNR NAKs.
    pub min_rnr_timer: u8,
}

/// The attributes of the transition to ReadyToSend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadyToSend {
    /// Our first PSN.
    pub sq_psn: Psn,
    /// READs and atomics that we may have outstanding.
    pub max_rd_atomic: u8,
    /// How often to send again before giving up, 0..=7.
    pub retry_cnt: u8,
    /// How often to try again after an RNR NAK, 0..=6; 7 means for ever.
    pub rnr_retry: u8,
    /// The timeout exponent: 4.096 us x 2^timeout; 0 means never.
    pub timeout: u8,
}

/// What comes with an event: when it happened, whom to ask, and where the answers go.
pub struct Context<'a, M: Memory> {
    /// When.
    pub now: Time,
    /// The owner of memory and receive queue.
    pub memory: &'a mut M,
    /// What to do, in order.
    pub actions: &'a mut Vec<Action<M::Span>>,
    /// What happened.
    pub counters: &'a mut Counters,
}

impl<M: Memory> Context<'_, M> {
    /// A receive work request is done with.
    pub(crate) fn complete_receive(&mut self, slot: u64, status: Status) {
        self.actions.push(Action::Complete(Completion {
            queue: Queue::Receive,
            slot,
            status,
            signaled: true,
            len: 0,
            kind: ReceiveKind::Send,
            imm: None,
            solicited: false,
        }));
    }
}

/// Where packets go, and how large they may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) dest_qpn: Qpn,
    pub(crate) mtu: Mtu,
}

impl Path {
    /// The BTH of a packet to the peer.
    pub(crate) fn bth(&self, operation: Operation, psn: Psn, payload: u32) -> Bth {
        Bth {
            opcode: Opcode::new(Service::Rc, operation),
            solicited: false,
            migrated: true,
            pad: (payload.wrapping_neg() & 3) as u8,
            pkey: DEFAULT_PKEY,
            fecn: false,
            becn: false,
            dest_qpn: self.dest_qpn,
            ack_request: false,
            psn,
        }
    }

    /// The notification that packets of the peer met congestion (IBA A17.9.3).
    fn cnp(&self) -> Repr {
        let bth = Bth {
            opcode: Opcode::CNP,
            solicited: false,
            migrated: false,
            pad: 0,
            pkey: DEFAULT_PKEY,
            fecn: false,
            becn: true,
            dest_qpn: self.dest_qpn,
            ack_request: false,
            psn: Psn::new(0),
        };
        Repr { bth, xrc_srqn: None, ext: Ext::Cnp }
    }
}

/// What one half of a queue pair says after an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It goes on.
    Alive,
    /// The queue pair has to enter the error state; what failed has been reported.
    Fatal,
}

/// A reliable-connected queue pair.
#[derive(Debug)]
pub struct QueuePair {
    state: QpState,
    path: Path,
    requester: Requester,
    responder: Responder,
    notification: NotificationPoint,
    cnp_due: bool,
}

impl QueuePair {
    /// A queue pair in the Reset state.
    pub fn new(config: Config) -> Self {
        QueuePair {
            state: QpState::Reset,
            path: Path { dest_qpn: Qpn::new(0), mtu: Mtu::B1024 },
            requester: Requester::new(&config),
            responder: Responder::default(),
            notification: NotificationPoint::new(config.cnp_interval),
            cnp_due: false,
        }
    }

    /// Its state.
    pub fn state(&self) -> QpState {
        self.state
    }

    /// Reset -> Init. False, and nothing done, from another state.
    pub fn to_init(&mut self) -> bool {
        self.transition(QpState::Reset, QpState::Init)
    }

    /// Init -> ReadyToReceive. False, and nothing done, from another state.
    pub fn to_rtr(&mut self, attributes: &ReadyToReceive) -> bool {
        let done = self.transition(QpState::Init, QpState::ReadyToReceive);
        if done {
            self.path = Path { dest_qpn: attributes.dest_qpn, mtu: attributes.path_mtu };
            self.responder = Responder::new(attributes);
            self.requester.set_mtu(attributes.path_mtu);
        }
        done
    }

    /// ReadyToReceive -> ReadyToSend. False, and nothing done, from another state.
    pub fn to_rts(&mut self, attributes: &ReadyToSend) -> bool {
        let done = self.transition(QpState::ReadyToReceive, QpState::ReadyToSend);
        if done {
            self.requester.start(attributes);
        }
        done
    }

    fn transition(&mut self, from: QpState, to: QpState) -> bool {
        let allowed = self.state == from;
        if allowed {
            self.state = to;
        }
        allowed
    }

    /// Takes a send work request. It leaves with the next [`transmit`](Self::transmit); in the error
    /// state it is flushed at once.
    ///
    /// Returns false, and does nothing, if the queue is full or the state does not allow sends.
    pub fn post_send<M: Memory>(&mut self, cx: &mut Context<'_, M>, request: SendRequest) -> bool {
        match self.state {
            QpState::ReadyToSend => self.requester.post(request),
            QpState::Error => {
                let posted = self.requester.post(request);
                self.requester.flush(cx);
                posted
            }
            _ => false,
        }
    }

    /// What congestion control thinks.
    pub fn congestion(&self) -> &Congestion {
        &self.requester.outflow.congestion
    }

    /// The two ECN bits for the IP header of its datagrams.
    pub fn ecn(&self) -> u8 {
        self.congestion().ecn()
    }

    /// Handles a packet from the peer with `payload` bytes of payload, and these two ECN bits in its
    /// IP header.
    ///
    /// The caller has checked the ICRC and the source address.
    pub fn on_packet<M: Memory>(&mut self, cx: &mut Context<'_, M>, packet: &Repr, payload: u32, ecn: u8) {
        if packet.bth.opcode == Opcode::CNP {
            self.on_cnp(cx, packet);
            return;
        }
        let Some(operation) = self.admitted(packet) else {
            cx.counters.rx_out_of_state += 1;
            return;
        };
        cx.counters.rcvd_pkts += 1;
        self.note_mark(cx, operation, ecn);
        let verdict = if is_response(operation) {
            self.requester.on_response(cx, &self.path, operation, packet, payload)
        } else {
            self.responder.on_request(cx, &self.path, operation, packet, payload)
        };
        self.heed(cx, verdict);
    }

    /// Remembers to tell the peer of a mark. Acknowledgements do not count: their sender has no rate
    /// to lower.
    fn note_mark<M: Memory>(&mut self, cx: &mut Context<'_, M>, operation: Operation, ecn: u8) {
        if ecn & CE != CE || matches!(operation, Operation::Acknowledge | Operation::AtomicAcknowledge) {
            return;
        }
        cx.counters.np_ecn_marked_roce_packets += 1;
        self.cnp_due |= self.notification.on_packet(cx.now, ecn);
    }

    /// Handles a congestion notification: its requests and READ responses slow down (IBA A17.9.3).
    fn on_cnp<M: Memory>(&mut self, cx: &mut Context<'_, M>, packet: &Repr) {
        let sends = matches!(self.state, QpState::ReadyToReceive | QpState::ReadyToSend);
        if !sends || !in_partition(packet) {
            cx.counters.rx_out_of_state += 1;
            return;
        }
        cx.counters.rcvd_pkts += 1;
        if self.requester.outflow.congestion.on_cnp(cx.now) {
            cx.counters.rp_cnp_handled += 1;
        } else {
            cx.counters.rp_cnp_ignored += 1;
        }
    }

    /// The operation of a packet that this queue pair may look at now (IBA 9.6.1).
    fn admitted(&self, packet: &Repr) -> Option<Operation> {
        if packet.bth.opcode.service() != Some(Service::Rc) || !in_partition(packet) {
            return None;
        }
        let operation = packet.bth.opcode.operation()?;
        let ready = match self.state {
            QpState::ReadyToSend => true,
            QpState::ReadyToReceive => !is_response(operation),
            QpState::Reset | QpState::Init | QpState::Error => false,
        };
        ready.then_some(operation)
    }

    /// Handles timers that are due by now.
    pub fn on_timer<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        self.requester.outflow.congestion.on_timer(cx.now);
        self.responder.on_timer();
        if self.state == QpState::ReadyToSend {
            let verdict = self.requester.on_timer(cx);
            self.heed(cx, verdict);
        }
    }

    /// Emits packets that may leave now: requests first, then answers, so that an acknowledgement
    /// leaves behind, or in one send with, the reply that the program posted meanwhile.
    ///
    /// Returns whether there is more to send at once.
    pub fn transmit<M: Memory>(&mut self, cx: &mut Context<'_, M>) -> bool {
        let before = cx.actions.len();
        let mut more = false;
        if std::mem::take(&mut self.cnp_due) {
            cx.counters.np_cnp_sent += 1;
            let header = self.path.cnp();
            cx.actions.push(Action::Transmit(Transmit { at: cx.now, header, payload: Source::None }));
        }
        if self.state == QpState::ReadyToSend {
            more |= self.requester.transmit(cx, &self.path, QUANTUM);
        }
        // In the error state what was promised before still leaves: the NAK that says why.
        if matches!(self.state, QpState::ReadyToReceive | QpState::ReadyToSend | QpState::Error) {
            let outflow = &mut self.requester.outflow;
            let (verdict, pending) = self.responder.transmit(cx, &self.path, outflow, QUANTUM);
            more |= pending;
            self.heed(cx, verdict);
        }
        cx.counters.sent_pkts +=
            cx.actions[before..].iter().filter(|action| matches!(action, Action::Transmit(_))).count() as u64;
        more
    }

    /// Whether [`transmit`](Self::transmit) may have something to send.
    pub fn wants_transmit(&self) -> bool {
        self.cnp_due
            || self.responder.wants_transmit()
            || (self.state == QpState::ReadyToSend && self.requester.wants_transmit())
    }

    /// When [`on_timer`](Self::on_timer) is due.
    pub fn next_deadline(&self) -> Option<Time> {
        let congestion = self.congestion().next_deadline();
        let answers = self.responder.next_deadline();
        let deadlines = match self.state {
            QpState::ReadyToSend => [self.requester.next_deadline(), congestion, answers],
            QpState::ReadyToReceive => [None, congestion, answers],
            QpState::Error => [None, None, answers],
            QpState::Reset | QpState::Init => return None,
        };
        deadlines.into_iter().flatten().min()
    }

    /// Ends a send work request whose own memory may not be used, and with it the queue pair
    /// (IBA 10.8.5: local protection error).
    pub fn local_error<M: Memory>(&mut self, cx: &mut Context<'_, M>, slot: u64, status: Status) {
        if self.state == QpState::ReadyToSend {
            self.requester.fail_slot(cx, slot, status);
            self.enter_error(cx);
        }
    }

    /// Ends a receive work request whose own memory may not be used, and with it the queue pair.
    pub fn receive_error<M: Memory>(&mut self, cx: &mut Context<'_, M>, slot: u64, status: Status) {
        if self.state != QpState::Error {
            cx.complete_receive(slot, status);
            self.responder.forget_receive(slot);
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
        self.requester.flush(cx);
        self.responder.flush(cx);
        self.flush_receives(cx);
    }

    /// Flushes receives that were posted in the error state.
    pub fn flush_receives<M: Memory>(&mut self, cx: &mut Context<'_, M>) {
        if self.state == QpState::Error {
            while let Receive::Taken { slot, .. } = cx.memory.take_receive() {
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

/// Whether a packet is of the default partition, which its membership bit does not tell.
fn in_partition(packet: &Repr) -> bool {
    (packet.bth.pkey ^ DEFAULT_PKEY) & 0x7fff == 0
}

/// Whether a packet answers a request of ours.
fn is_response(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::ReadResponseFirst
            | Operation::ReadResponseMiddle
            | Operation::ReadResponseLast
            | Operation::ReadResponseOnly
            | Operation::Acknowledge
            | Operation::AtomicAcknowledge
    )
}

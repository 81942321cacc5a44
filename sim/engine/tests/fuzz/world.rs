//! The queue pair under test, its driver, and what has to hold after every event.

mod actions;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use anyverbs_engine::*;
use anyverbs_wire::{Ext, Opcode, Operation, Packet, Repr, Service, Syndrome};

use crate::memory::{Span, TestMemory};
use crate::model::{Requests, Sends};

/// Counters of packets that are not looked at: exactly one of these, or `rcvd_pkts`.
const DROPPED: [&str; 4] = ["rx_malformed", "rx_wrong_service", "rx_out_of_state", "bad_pkey_cntr"];

/// Counters that say why an expected request was not executed.
const REFUSED: [&str; 4] =
    ["send_rnr_err", "resp_local_length_error", "resp_remote_invalid_requests", "resp_remote_access_errors"];

/// Counters that say why a packet ended a queue pair.
const FATAL: [&str; 5] = [
    "resp_remote_invalid_requests",
    "resp_remote_access_errors",
    "req_remote_errors",
    "retry_rnr_exceeded_err",
    "req_cqe_error",
];

/// The event that is under way, as far as the rules differ.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    /// Its opcode, and the class of its syndrome.
    Packet(u8, u8),
    Early,
    Timer,
    Transmit,
    Post,
    Driver,
}

pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) mtu: Mtu,
    pub(crate) max_dest_rd_atomic: u8,
    pub(crate) qp: QueuePair,
    pub(crate) memory: TestMemory,
    pub(crate) counters: Counters,
    pub(crate) now: Time,
    pub(crate) sends: Sends,
    pub(crate) requests: Requests,
    /// What is new about this run: hashes of what happened together.
    pub(crate) features: BTreeSet<u64>,
    /// Packets that were fed, and those that were accepted.
    pub(crate) packets: u64,
    /// A request ended the queue pair, and the NAK that says so has not left.
    owes_nak: bool,
    actions: Vec<Action<Span>>,
    before: String,
    after: String,
}

impl World {
    pub(crate) fn new(config: Config, mtu: Mtu, max_dest_rd_atomic: u8) -> Self {
        World {
            config,
            mtu,
            max_dest_rd_atomic,
            qp: QueuePair::new(config),
            memory: TestMemory::new(),
            counters: Counters::default(),
            now: Time::ZERO,
            sends: Sends::default(),
            requests: Requests::default(),
            features: BTreeSet::new(),
            packets: 0,
            owes_nak: false,
            actions: Vec::new(),
            before: String::new(),
            after: String::new(),
        }
    }

    pub(crate) fn is_reliable(&self) -> bool {
        !matches!(self.config.qp_type, QpType::Uc | QpType::Ud)
    }

    /// How much the counters of these names grew since `before`.
    fn grown(&self, before: &Counters, names: &[&str]) -> u64 {
        let counted = |counters: &Counters| -> u64 {
            counters.iter().filter(|(name, _)| names.contains(name)).map(|(_, n)| n).sum()
        };
        counted(&self.counters) - counted(before)
    }

    // ---- Events -----------------------------------------------------------------------------

    /// One event: the engine's answers are carried out, and everything is checked. `payload` is the length
    /// of the payload that the event is about.
    pub(crate) fn event<R>(
        &mut self,
        kind: Kind,
        payload: u32,
        f: impl FnOnce(&mut QueuePair, &mut Context<'_, TestMemory>) -> R,
    ) -> R {
        let state = self.qp.state();
        let before = self.counters;
        self.memory.grants.clear();
        self.memory.effects = 0;
        let mut actions = std::mem::take(&mut self.actions);
        let World { qp, memory, counters, .. } = self;
        let mut cx = Context { now: self.now, memory, actions: &mut actions, counters };
        let result = f(qp, &mut cx);
        let mut seen = 0u16;
        for action in &actions {
            seen |= self.carry_out(kind, action, payload);
        }
        assert!(self.memory.reserved.is_empty(), "a buffer was reserved, and nothing is kept in it");
        self.check_count(kind, &actions);
        actions.clear();
        self.actions = actions;
        self.check_transition(kind, state, &before);
        let touched: Vec<bool> =
            self.counters.iter().zip(before.iter()).map(|(now, then)| now.1 != then.1).collect();
        let mut hasher = DefaultHasher::new();
        (self.config.qp_type as u8, kind, state as u8, self.qp.state() as u8, touched, seen)
            .hash(&mut hasher);
        self.features.insert(hasher.finish());
        result
    }

    /// A datagram arrives, well-formed or not; what came early and has its turn now follows.
    pub(crate) fn datagram(&mut self, datagram: &[u8], ecn: u8) {
        self.packets += 1;
        let Ok(packet) = Packet::new_checked(datagram) else {
            self.counters.rx_malformed += 1;
            return;
        };
        let repr = Repr::parse(&packet);
        assert!(repr.is_consistent(), "{repr}");
        let payload = packet.payload().len() as u32;
        let before = self.counters;
        let mut snapshot = std::mem::take(&mut self.before);
        snapshot.clear();
        let _ = write!(snapshot, "{:?}", self.qp);
        let class = match repr.ext {
            Ext::Aeth(aeth) | Ext::AtomicAck(aeth, _) => aeth.syndrome.to_u8() >> 5,
            _ => 0,
        };
        let kind = Kind::Packet(repr.bth.opcode.value(), class);
        let (operation, state) = (repr.bth.opcode.operation(), self.qp.state());
        // The work requests that it completes are off the queue afterwards.
        let position = self.sends.position(repr.bth.psn);
        let acted = self.event(kind, payload, |qp, cx| {
            qp.on_packet(cx, &repr, payload, ecn);
            !cx.actions.is_empty()
        });
        // Printing is most of the work: what has acted need not be looked at each time.
        let mut changed = acted;
        if !acted || self.packets.is_multiple_of(8) {
            self.after.clear();
            let _ = write!(self.after, "{:?}", self.qp);
            changed |= self.after != snapshot;
            self.check_size();
        }
        self.before = snapshot;
        self.check_counted(&repr, &before, state, acted, changed);
        let missing = repr.bth.opcode == Opcode::MISSING;
        let known = operation.is_some() || missing;
        if self.counters.rcvd_pkts > before.rcvd_pkts && self.is_reliable() && known {
            if missing || operation.is_some_and(Operation::is_response) {
                // One that came again, or that nobody asked for, must not have done anything.
                if self.counters.unexpected_response == before.unexpected_response {
                    self.note_response(&repr, position);
                }
                let Sends { claimed, acked, .. } = self.sends;
                assert!(claimed <= acked, "{repr}: complete up to {claimed}, acknowledged up to {acked}");
            } else {
                self.note_request(&repr, payload, &before, state);
            }
        }
        self.take_turns();
    }

    /// Early packets whose turn it is, as the driver has to.
    fn take_turns(&mut self) {
        loop {
            let (before, state) = (self.counters, self.qp.state());
            let expected = self.requests.expected;
            let kept = self.requests.early.get(&expected.value()).copied();
            let payload = kept.map_or(0, |(_, payload)| payload);
            let Some(early) = self.event(Kind::Early, payload, |qp, cx| qp.on_early(cx)) else {
                assert!(kept.is_none() || !state.answers(), "{kept:?} does not have its turn");
                return;
            };
            if let Some(buffer) = early.buffer {
                let len = self.memory.held.remove(&buffer);
                assert_eq!(len, Some(payload), "a buffer that does not hold this packet");
            }
            let (packet, payload) = kept.expect("nothing was kept whose turn it is");
            self.requests.early.remove(&expected.value());
            self.note_executed(&packet, payload, &before);
        }
    }

    /// Time goes on, to the next deadline or only a little.
    pub(crate) fn wait(&mut self, at_most: Duration) {
        let until = self.now + at_most;
        self.now = self.qp.next_deadline().map_or(until, |deadline| deadline.min(until).max(self.now));
        for _ in 0..4 {
            if self.qp.next_deadline().is_none_or(|deadline| deadline > self.now) {
                return;
            }
            self.event(Kind::Timer, 0, |qp, cx| qp.on_timer(cx));
        }
        let deadline = self.qp.next_deadline();
        assert!(deadline.is_none_or(|deadline| deadline > self.now), "a timer fires for ever: {:?}", self.qp);
    }

    pub(crate) fn transmit(&mut self) {
        let more = self.event(Kind::Transmit, 0, |qp, cx| qp.transmit(cx));
        let done = !more && self.qp.next_deadline().is_none() && self.qp.state() == QpState::Error;
        assert!(!done || !self.owes_nak, "a request ended the queue pair, and its sender was not told");
    }

    pub(crate) fn post_send(&mut self, request: SendRequest) {
        self.sends.post(self.mtu, request);
        let (posted, acted) = self.event(Kind::Post, 0, |qp, cx| {
            let posted = qp.post_send(cx, request);
            (posted, !cx.actions.is_empty())
        });
        if !posted {
            assert!(!acted, "a post that was refused did something");
            self.sends.unpost();
        }
    }

    pub(crate) fn reset(&mut self) {
        self.event(Kind::Driver, 0, |qp, cx| qp.reset(cx));
        assert!(self.memory.held.is_empty(), "a reset keeps {} buffers", self.memory.held.len());
        self.sends = Sends::default();
        self.requests = Requests::default();
        self.memory.taken.clear();
        self.owes_nak = false;
    }

    // ---- What has to hold -------------------------------------------------------------------

    /// Every packet is counted: as dropped, once, and then it changes nothing, or as received; and one that
    /// was received and changes nothing has a second counter that says why.
    fn check_counted(&self, packet: &Repr, before: &Counters, state: QpState, acted: bool, changed: bool) {
        let dropped = self.grown(before, &DROPPED);
        let received = self.counters.rcvd_pkts - before.rcvd_pkts;
        assert_eq!(dropped + received, 1, "{packet}: dropped {dropped}, received {received}");
        let right = self.fate(packet, state);
        assert_eq!(self.grown(before, &[right]), 1, "{packet} is not counted as {right} in {state:?}");
        let total = |counters: &Counters| counters.iter().map(|(_, n)| n).sum::<u64>();
        let counted = total(&self.counters) - total(before);
        if dropped == 1 {
            assert!(!changed && counted == 1, "{packet} was dropped, and did something");
        } else {
            assert!(changed || counted > 1, "{packet} did nothing, and is counted nowhere");
            // An unreliable queue pair does what it is told, or says why not: only an empty WRITE is neither.
            let empty_write = matches!(packet.ext, Ext::Reth(reth) if reth.len == 0);
            let silent = !self.is_reliable() && !acted && !empty_write;
            assert!(!silent || counted > 1, "{packet} was not executed, and is counted nowhere");
        }
    }

    /// The counter that a well-formed packet belongs to, by what stands in it and the state (IBA 9.6.1).
    fn fate(&self, packet: &Repr, state: QpState) -> &'static str {
        use QpState::*;
        let qp_type = self.config.qp_type;
        let service = match qp_type {
            QpType::Rc => Service::Rc,
            QpType::Uc => Service::Uc,
            QpType::Ud => Service::Ud,
            QpType::XrcSend | QpType::XrcRecv => Service::Xrc,
        };
        let opcode = packet.bth.opcode;
        let notification = opcode == Opcode::CNP;
        let missing = opcode == Opcode::MISSING;
        if missing && !self.is_reliable() {
            return "rx_wrong_service";
        }
        if !notification && !missing && (opcode.service() != Some(service) || opcode.operation().is_none()) {
            return "rx_wrong_service";
        }
        let response = missing || opcode.operation().is_some_and(Operation::is_response);
        let in_state = match state {
            ReadyToSend | SendQueueDrain => true,
            ReadyToReceive | SendQueueError => !response,
            Reset | Init | Error => false,
        };
        let direction = match qp_type {
            _ if notification => qp_type != QpType::Ud,
            QpType::XrcSend => response,
            QpType::XrcRecv => !response,
            _ => true,
        };
        if !in_state || !direction {
            return "rx_out_of_state";
        }
        if packet.bth.pkey & 0x7fff == 0x7fff { "rcvd_pkts" } else { "bad_pkey_cntr" }
    }

    /// Only what is allowed ends a queue pair, and nothing else moves it (IBA 10.3.1).
    fn check_transition(&mut self, kind: Kind, from: QpState, before: &Counters) {
        let to = self.qp.state();
        if from == to || matches!(kind, Kind::Driver) {
            return;
        }
        let in_use = matches!(from, QpState::ReadyToReceive | QpState::ReadyToSend | QpState::SendQueueDrain);
        match (kind, to) {
            (Kind::Packet(..) | Kind::Early, QpState::Error) => {
                assert!(self.is_reliable() && in_use, "a packet ended {from:?}");
                assert!(self.grown(before, &FATAL) > 0, "a packet ended it, and no counter says why");
                let request = matches!(kind, Kind::Early)
                    || matches!(kind, Kind::Packet(opcode, _)
                        if Opcode::from_value(opcode).operation().is_some_and(Operation::is_request));
                self.owes_nak = request;
            }
            (Kind::Timer, QpState::Error) => {
                assert!(self.counters.retry_exceeded_err > before.retry_exceeded_err)
            }
            (Kind::Transmit, QpState::Error) => {
                assert!(self.counters.resp_remote_access_errors > before.resp_remote_access_errors);
                self.owes_nak = true;
            }
            (Kind::Transmit, QpState::SendQueueError) => assert!(!self.is_reliable()),
            _ => panic!("{kind:?} moved it from {from:?} to {to:?}"),
        }
    }

    /// An event does a bounded number of things.
    fn check_count(&self, kind: Kind, actions: &[Action<Span>]) {
        let transmits = actions.iter().filter(|action| matches!(action, Action::Transmit(_))).count();
        let rest = actions
            .iter()
            .filter(|action| {
                !matches!(action, Action::Transmit(_) | Action::Complete(_) | Action::Release { .. })
            })
            .count();
        let transmits_max = if kind == Kind::Transmit { 2 * 64 + 2 } else { 0 };
        assert!(transmits <= transmits_max, "{kind:?}: {transmits} packets");
        assert!(rest <= 8, "{kind:?}: {rest} actions");
    }

    /// Nothing in the queue pair grows beyond what its limits imply: what it prints as tells.
    fn check_size(&self) {
        let Config { max_send_wr, window, reorder, .. } = self.config;
        let answers = 8 * usize::from(self.max_dest_rd_atomic) + 4;
        let max = 4000 + 500 * max_send_wr + 600 * reorder as usize + 24 * window as usize + 200 * answers;
        assert!(self.after.len() <= max, "{} bytes of {max}: {}", self.after.len(), self.after);
    }

    // ---- The model --------------------------------------------------------------------------

    /// What an answer that was accepted may acknowledge.
    fn note_response(&mut self, packet: &Repr, position: Option<u64>) {
        let position = position.filter(|position| *position < self.sends.sent_max);
        let Some(position) = position else { return };
        let to = match packet.ext {
            Ext::Aeth(aeth) if packet.bth.opcode.operation() == Some(Operation::Acknowledge) => {
                match aeth.syndrome {
                    Syndrome::Ack { .. } => position + 1,
                    Syndrome::RnrNak { .. } | Syndrome::Nak(_) => position,
                    Syndrome::Reserved(_) => return,
                }
            }
            Ext::Aeth(aeth) | Ext::AtomicAck(aeth, _) if !matches!(aeth.syndrome, Syndrome::Ack { .. }) => {
                assert_eq!(self.qp.state(), QpState::Error, "{packet} was taken for a response");
                return;
            }
            // What is missing is the first packet that was not executed.
            Ext::Missing(_) => position,
            _ => position + 1,
        };
        self.sends.acked = self.sends.acked.max(to);
    }

    /// A request that was accepted is a duplicate, early, or the expected one, by its PSN alone.
    fn note_request(&mut self, packet: &Repr, payload: u32, before: &Counters, state: QpState) {
        assert!(state.answers());
        let ahead = packet.bth.psn.distance(self.requests.expected);
        let late = self.counters.duplicate_request - before.duplicate_request;
        let early = self.counters.out_of_seq_request - before.out_of_seq_request;
        assert_eq!((late, early), (u64::from(ahead < 0), u64::from(ahead > 0)), "{packet} is {ahead} ahead");
        if ahead == 0 {
            self.note_executed(packet, payload, before);
            return;
        }
        assert_eq!(self.memory.effects, 0, "{packet} was executed out of its turn");
        if self.counters.rx_kept_early > before.rx_kept_early {
            assert!((ahead as u32) < self.config.reorder, "{packet} is kept {ahead} ahead");
            let twice = self.requests.early.insert(packet.bth.psn.value(), (*packet, payload));
            assert!(twice.is_none(), "{packet} is kept twice");
        }
    }

    fn note_executed(&mut self, packet: &Repr, payload: u32, before: &Counters) {
        if self.grown(before, &REFUSED) == 0 {
            self.requests.executed(self.mtu, packet, payload);
        }
        if self.qp.state() == QpState::Error {
            assert!(self.memory.held.len() <= 1, "buffers are kept that nobody needs any more");
            self.requests.early.clear();
        }
    }
}

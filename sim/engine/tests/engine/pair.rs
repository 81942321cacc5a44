//! Two queue pairs and a wire in virtual time, through the same entry points that the NIC uses.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use anyverbs_engine::*;
use anyverbs_wire::{Feth, Packet, Psn, Qpn, Repr, icrc::finish};

/// The one region of each side.
pub(crate) const RKEY: u32 = 0x1234;

/// What the wire does to packets, as probabilities in parts per thousand.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) loss: u64,
    pub(crate) duplicate: u64,
    pub(crate) reorder: u64,
    /// How often a side is too busy to send before the next packet arrives.
    pub(crate) lazy: u64,
}

/// A small generator (xorshift64*), so that a seed is a run.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// A range of the region.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    offset: usize,
    len: usize,
}

/// Says which packets of which side are lost.
pub(crate) type DropIf = Box<dyn FnMut(usize, &Repr) -> bool>;

/// One side's memory and receive queue.
#[derive(Default)]
pub(crate) struct TestMemory {
    pub(crate) region: Vec<u8>,
    pub(crate) revoked: bool,
    posted: VecDeque<(u64, Vec<u8>)>,
    pub(crate) taken: BTreeMap<u64, Vec<u8>>,
    pub(crate) sends: BTreeMap<u64, Vec<u8>>,
    /// Receives of the shared queue, and its number: for XRC.
    pub(crate) shared: Option<Qpn>,
    pub(crate) states_credits: bool,
    pub(crate) invalidated: Vec<u32>,
    pub(crate) flushed: Vec<(u64, u32)>,
    /// Local work requests that were executed, and the one that fails.
    pub(crate) executed: Vec<u64>,
    pub(crate) cannot: Option<u64>,
    /// Payloads of early packets, by buffer; at most as many as `buffers`.
    held: BTreeMap<u32, Vec<u8>>,
    reserved: u32,
    pub(crate) buffers: usize,
}

impl Memory for TestMemory {
    type Span = Span;

    fn check(&mut self, rkey: u32, va: u64, len: u32, _need: Need) -> Result<Span, Denied> {
        let fits = va.checked_add(u64::from(len)).is_some_and(|end| end <= self.region.len() as u64);
        (rkey == RKEY && fits && !self.revoked)
            .then_some(Span { offset: va as usize, len: len as usize })
            .ok_or(Denied)
    }

    fn fetch_add(&mut self, span: Span, add: u64) -> Result<u64, Denied> {
        let at = span.offset;
        let before = u64::from_ne_bytes(self.region[at..at + 8].try_into().unwrap());
        self.region[at..at + 8].copy_from_slice(&before.wrapping_add(add).to_ne_bytes());
        Ok(before)
    }

    fn compare_swap(&mut self, span: Span, compare: u64, swap: u64) -> Result<u64, Denied> {
        let at = span.offset;
        let before = u64::from_ne_bytes(self.region[at..at + 8].try_into().unwrap());
        if before == compare {
            self.region[at..at + 8].copy_from_slice(&swap.to_ne_bytes());
        }
        Ok(before)
    }

    fn flush(&mut self, rkey: u32, va: u64, len: u32, feth: Feth) -> Result<(), Denied> {
        if feth.placement & Feth::PERSISTENT != 0 {
            return Err(Denied);
        }
        self.check(rkey, va, len, Need::RemoteWrite)?;
        self.flushed.push((va, len));
        Ok(())
    }

    fn invalidate(&mut self, rkey: u32) -> Result<(), Denied> {
        let fits = rkey == RKEY && !self.revoked;
        self.revoked |= fits;
        self.invalidated.extend(fits.then_some(rkey));
        fits.then_some(()).ok_or(Denied)
    }

    fn execute_local(&mut self, slot: u64) -> Result<(), Status> {
        if self.cannot == Some(slot) {
            return Err(Status::MemoryWindowBindError);
        }
        self.executed.push(slot);
        Ok(())
    }

    fn receives_posted(&self) -> Option<u32> {
        self.states_credits.then_some(self.posted.len() as u32)
    }

    fn hold(&mut self) -> Option<u32> {
        if self.held.len() >= self.buffers {
            return None;
        }
        self.reserved += 1;
        self.held.insert(self.reserved, Vec::new());
        Some(self.reserved)
    }

    fn take_receive(&mut self, shared: Option<Qpn>) -> Receive {
        if shared != self.shared {
            return Receive::Unknown;
        }
        match self.posted.pop_front() {
            Some((slot, buffer)) => {
                let capacity = buffer.len() as u64;
                self.taken.insert(slot, buffer);
                Receive::Taken { slot, capacity }
            }
            None => Receive::Empty,
        }
    }
}

pub(crate) struct Side {
    pub(crate) qp: QueuePair,
    pub(crate) memory: TestMemory,
    pub(crate) completions: Vec<Completion>,
    pub(crate) events: Vec<Event>,
    pub(crate) counters: Counters,
}

type Flight = (Time, u64, usize, Vec<u8>);

pub(crate) struct Pair {
    pub(crate) sides: [Side; 2],
    pub(crate) now: Time,
    pub(crate) faults: Faults,
    pub(crate) rng: Rng,
    /// What was posted on side 0.
    pub(crate) ops: BTreeMap<u64, Op>,
    /// Every packet, in the order of sending: its side and header.
    pub(crate) sent: Vec<(usize, Repr)>,
    /// Drops the packets for which it says so.
    pub(crate) drop_if: Option<DropIf>,
    /// Where requests go.
    pub(crate) destination: Destination,
    wire: BinaryHeap<Reverse<Flight>>,
    sequence: u64,
    actions: Vec<Action<Span>>,
}

const MTU: Mtu = Mtu::B256;
const LATENCY: Duration = Duration::from_micros(5);

impl Pair {
    /// Two connected queue pairs whose PSNs start at `psn`.
    pub(crate) fn new(psn: u32, seed: u64) -> Pair {
        Pair::with(psn, seed, Config::default(), 4)
    }

    pub(crate) fn with(psn: u32, seed: u64, config: Config, rd_atomic: u8) -> Pair {
        Pair::of([config; 2], psn, seed, rd_atomic)
    }

    /// Two connected queue pairs of these kinds: requests go from the first to the second.
    pub(crate) fn of(configs: [Config; 2], psn: u32, seed: u64, rd_atomic: u8) -> Pair {
        let side = |qpn: u32| {
            let config = configs[1 - qpn as usize];
            let mut qp = QueuePair::new(config);
            assert!(qp.to_init());
            assert!(qp.to_rtr(&ReadyToReceive {
                dest_qpn: Qpn::new(qpn),
                rq_psn: Psn::new(psn),
                path_mtu: MTU,
                max_dest_rd_atomic: rd_atomic,
                min_rnr_timer: 12,
            }));
            assert!(qp.to_rts(&ReadyToSend {
                sq_psn: Psn::new(psn),
                max_rd_atomic: rd_atomic,
                retry_cnt: 7,
                rnr_retry: 6,
                timeout: 14,
            }));
            Side {
                qp,
                memory: TestMemory { region: vec![0; 1 << 16], buffers: usize::MAX, ..TestMemory::default() },
                completions: Vec::new(),
                events: Vec::new(),
                counters: Counters::default(),
            }
        };
        Pair {
            sides: [side(1), side(0)],
            now: Time::ZERO,
            faults: Faults::default(),
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            ops: BTreeMap::new(),
            sent: Vec::new(),
            drop_if: None,
            destination: Destination::Connected,
            wire: BinaryHeap::new(),
            sequence: 0,
            actions: Vec::new(),
        }
    }

    /// Posts a send work request on side 0 whose memory is `data`.
    pub(crate) fn post(&mut self, slot: u64, op: Op, data: Vec<u8>) {
        let len = data.len() as u32;
        self.sides[0].memory.sends.insert(slot, data);
        self.ops.insert(slot, op);
        let destination = self.destination;
        let request =
            SendRequest { slot, op, len, signaled: true, solicited: false, fence: false, destination };
        self.with_context(0, |qp, cx| assert!(qp.post_send(cx, request)));
    }

    /// Posts a receive work request of `len` bytes on side 1.
    pub(crate) fn post_receive(&mut self, slot: u64, len: usize) {
        self.sides[1].memory.posted.push_back((slot, vec![0xee; len]));
    }

    pub(crate) fn with_context<R>(
        &mut self,
        side: usize,
        f: impl FnOnce(&mut QueuePair, &mut Context<'_, TestMemory>) -> R,
    ) -> R {
        self.call(side, &[], f)
    }

    fn call<R>(
        &mut self,
        side: usize,
        payload: &[u8],
        f: impl FnOnce(&mut QueuePair, &mut Context<'_, TestMemory>) -> R,
    ) -> R {
        let mut actions = std::mem::take(&mut self.actions);
        let Side { qp, memory, counters, .. } = &mut self.sides[side];
        let mut cx = Context { now: self.now, memory, actions: &mut actions, counters };
        let result = f(qp, &mut cx);
        self.carry_out(side, &actions, payload);
        actions.clear();
        self.actions = actions;
        result
    }

    fn carry_out(&mut self, side: usize, actions: &[Action<Span>], payload: &[u8]) {
        for action in actions {
            match *action {
                Action::Transmit(transmit) => self.send(side, transmit),
                Action::Place { from, len, to } => {
                    let bytes = &payload[from as usize..(from + len) as usize];
                    self.place(side, to, bytes);
                }
                Action::PlaceValue { value, to } => self.place(side, to, &value.to_ne_bytes()),
                Action::PlaceAtomic { from, to } => {
                    let bytes = &payload[from as usize..from as usize + 8];
                    self.place(side, Target::Region(to), bytes);
                }
                Action::PlaceGrh { slot } => {
                    self.place(side, Target::Receive { slot, offset: 0 }, &[0xdd; 40])
                }
                Action::Hold { buffer } => {
                    let held = self.sides[side].memory.held.get_mut(&buffer).expect("a reserved buffer");
                    held.extend_from_slice(payload);
                }
                Action::Release { buffer } => {
                    self.sides[side].memory.held.remove(&buffer).expect("a buffer that is held");
                }
                Action::Complete(completion) => self.sides[side].completions.push(completion),
                Action::Event(event) => self.sides[side].events.push(event),
            }
        }
    }

    fn place(&mut self, side: usize, to: Target<Span>, bytes: &[u8]) {
        let memory = &mut self.sides[side].memory;
        let (buffer, at) = match to {
            Target::Receive { slot, offset } => (memory.taken.get_mut(&slot).unwrap(), offset as usize),
            Target::Send { slot, offset } => (memory.sends.get_mut(&slot).unwrap(), offset as usize),
            Target::Region(span) => (&mut memory.region, span.offset),
        };
        buffer[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn send(&mut self, side: usize, transmit: Transmit<Span>) {
        let memory = &self.sides[side].memory;
        let payload: &[u8] = match transmit.payload {
            Source::None => &[],
            Source::Send { slot, offset, len } => {
                &memory.sends[&slot][offset as usize..(offset + len) as usize]
            }
            Source::Region { span, .. } => &memory.region[span.offset..][..span.len],
        };
        let header = transmit.header;
        let mut datagram = vec![0; header.header_len()];
        header.emit(&mut datagram);
        datagram.extend_from_slice(payload);
        datagram.extend(std::iter::repeat_n(0, usize::from(header.bth.pad)));
        datagram.extend_from_slice(&finish(0));
        self.sent.push((side, header));
        if self.drop_if.as_mut().is_some_and(|drop| drop(side, &header)) || self.chance(self.faults.loss) {
            return;
        }
        let copies = if self.chance(self.faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut at = transmit.at.max(self.now) + LATENCY;
            if self.chance(self.faults.reorder) {
                at = at + Duration::from_micros(self.rng.below(40));
            }
            self.sequence += 1;
            self.wire.push(Reverse((at, self.sequence, 1 - side, datagram.clone())));
        }
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.rng.below(1000) < per_mille
    }

    /// Goes to the next moment at which anything happens; false if nothing ever will.
    pub(crate) fn step(&mut self) -> bool {
        for side in 0..2 {
            let busy = !self.wire.is_empty() && self.chance(self.faults.lazy);
            while !busy && self.with_context(side, |qp, cx| qp.transmit(cx)) {}
        }
        let arrival = self.wire.peek().map(|Reverse(flight)| flight.0);
        let timers = self.sides.iter().filter_map(|side| side.qp.next_deadline()).min();
        let Some(next) = [arrival, timers].into_iter().flatten().min() else {
            return false;
        };
        self.now = self.now.max(next);
        if arrival == Some(next) {
            let Some(Reverse((_, _, side, datagram))) = self.wire.pop() else {
                return false;
            };
            self.deliver(side, &datagram);
        } else {
            for side in 0..2 {
                self.with_context(side, |qp, cx| qp.on_timer(cx));
            }
        }
        true
    }

    /// Hands a datagram to a side.
    pub(crate) fn deliver(&mut self, side: usize, datagram: &[u8]) {
        let packet = Packet::new_checked(datagram).expect("our own packets are well-formed");
        let repr = Repr::parse(&packet);
        let payload = &datagram[packet.payload_range()];
        self.call(side, payload, |qp, cx| qp.on_packet(cx, &repr, payload.len() as u32, 0));
        loop {
            // What its actions name is the payload that was kept, which the engine names afterwards.
            let mut actions = std::mem::take(&mut self.actions);
            let Side { qp, memory, counters, .. } = &mut self.sides[side];
            let mut cx = Context { now: self.now, memory, actions: &mut actions, counters };
            let early = qp.on_early(&mut cx);
            let kept = early
                .and_then(|early| early.buffer)
                .map(|buffer| self.sides[side].memory.held.remove(&buffer).expect("a buffer that is held"));
            self.carry_out(side, &actions, kept.as_deref().unwrap_or(&[]));
            actions.clear();
            self.actions = actions;
            if early.is_none() {
                return;
            }
        }
    }

    /// How many early packets a side keeps.
    pub(crate) fn held(&self, side: usize) -> usize {
        self.sides[side].memory.held.len()
    }

    /// Runs until nothing is left to do.
    pub(crate) fn drive(&mut self) {
        for _ in 0..2_000_000 {
            if !self.step() {
                return;
            }
        }
        panic!("still busy after two million events: no liveness");
    }

    /// Slots and statuses of what completed on a queue of a side, in order.
    pub(crate) fn completed(&self, side: usize, queue: Queue) -> Vec<(u64, Status)> {
        self.sides[side]
            .completions
            .iter()
            .filter(|completion| completion.queue == queue)
            .map(|completion| (completion.slot, completion.status))
            .collect()
    }
}

/// Loses the first packet of a side with each of these PSNs.
pub(crate) fn lose(side: usize, psns: &[u32]) -> Option<DropIf> {
    let mut left = psns.to_vec();
    Some(Box::new(move |from, repr| {
        let found = left.iter().position(|psn| from == side && repr.bth.psn == Psn::new(*psn));
        found.map(|index| left.remove(index)).is_some()
    }))
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (seed.wrapping_mul(31) ^ i ^ (i >> 8).wrapping_mul(7)) as u8).collect()
}

//! Several senders, one switch queue that marks packets, one receiver: real queue pairs, virtual
//! time, and headers only, since nobody looks at the bytes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use anyverbs_engine::congestion::{CE, Control};
use anyverbs_engine::*;
use anyverbs_wire::{Psn, Qpn, Repr};

/// Ethernet, IP and UDP headers and the ICRC: what a datagram has around its transport headers.
const AROUND: u64 = 14 + 20 + 8 + 4;

/// The length of a work request.
const MESSAGE: u32 = 1 << 20;

/// Work requests that a sender keeps posted, so that it always has something to send.
const POSTED: u64 = 3;

/// Memory that allows everything and holds nothing.
pub(crate) struct NoMemory;

impl Memory for NoMemory {
    type Span = ();

    fn check(&mut self, _rkey: u32, _va: u64, _len: u32, _need: Need) -> Result<(), Denied> {
        Ok(())
    }

    fn fetch_add(&mut self, _span: (), _add: u64) -> Result<u64, Denied> {
        Err(Denied)
    }

    fn compare_swap(&mut self, _span: (), _compare: u64, _swap: u64) -> Result<u64, Denied> {
        Err(Denied)
    }

    fn take_receive(&mut self, _shared: Option<Qpn>) -> Receive {
        Receive::Empty
    }
}

/// A queue that marks with a probability that rises between two lengths (RED as switches do it).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marking {
    pub(crate) kmin: u64,
    pub(crate) kmax: u64,
    pub(crate) pmax: f64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) flows: usize,
    pub(crate) control: Control,
    pub(crate) window: u32,
    /// Bytes a second of every link.
    pub(crate) line: u64,
    /// Of a link, one way.
    pub(crate) latency: Duration,
    pub(crate) marking: Marking,
    /// Bytes of the switch queue.
    pub(crate) buffer: u64,
    /// Between the starts of neighbouring flows.
    pub(crate) stagger: Duration,
    /// Let the flows READ from the senders instead of WRITE from them.
    pub(crate) read: bool,
    /// Of the switch's coin.
    pub(crate) seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A flow begins.
    Start(usize),
    /// A packet that was handed out ahead of its time is due.
    Leave {
        from: usize,
        packet: usize,
    },
    /// A packet has crossed its first link.
    AtSwitch {
        from: usize,
        packet: usize,
    },
    /// A packet has left the switch.
    Arrive {
        to: usize,
        packet: usize,
    },
    Timer(usize),
}

#[derive(Clone, Copy)]
struct InFlight {
    header: Repr,
    payload: u32,
    ecn: u8,
}

impl InFlight {
    fn bytes(&self) -> u64 {
        AROUND + self.header.header_len() as u64 + u64::from(self.payload) + u64::from(self.header.bth.pad)
    }
}

/// A queue pair: the one of flow `i` at its own host has number `2 * i`, its peer at the common
/// receiver `2 * i + 1`.
struct End {
    qp: QueuePair,
    counters: Counters,
    timer: Option<Time>,
    posted: u64,
    /// When its host's link is free again.
    link_free: Time,
    placed: u64,
}

/// What came out of a stretch of time.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Payload bytes a second, by flow.
    pub(crate) goodput: Vec<f64>,
    /// The longest queue, in bytes, since the last look.
    pub(crate) queue_max: u64,
    /// Packets dropped by the full queue, ever.
    pub(crate) dropped: u64,
}

impl Outcome {
    /// Jain's index of fairness: 1 for equal shares, 1/n if one of n has everything.
    pub(crate) fn jain(&self) -> f64 {
        let sum: f64 = self.goodput.iter().sum();
        let squares: f64 = self.goodput.iter().map(|x| x * x).sum();
        sum * sum / (self.goodput.len() as f64 * squares)
    }

    /// The share of the line rate that was payload.
    pub(crate) fn utilisation(&self, line: u64) -> f64 {
        self.goodput.iter().sum::<f64>() / line as f64
    }
}

pub(crate) struct Bottleneck {
    pub(crate) now: Time,
    setup: Setup,
    ends: Vec<End>,
    packets: Vec<InFlight>,
    free: Vec<usize>,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
    /// When the switch has sent all that is in its queue.
    switch_free: Time,
    queue_max: u64,
    dropped: u64,
    random: u64,
    actions: Vec<Action<()>>,
}

impl Bottleneck {
    pub(crate) fn new(setup: Setup) -> Self {
        let ends = (0..2 * setup.flows).map(|number| end(&setup, number)).collect();
        let mut this = Bottleneck {
            now: Time::ZERO,
            setup,
            ends,
            packets: Vec::new(),
            free: Vec::new(),
            events: BinaryHeap::new(),
            sequence: 0,
            switch_free: Time::ZERO,
            queue_max: 0,
            dropped: 0,
            random: setup.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            actions: Vec::new(),
        };
        for flow in 0..setup.flows {
            this.at(Time::ZERO + setup.stagger * flow as u32, Event::Start(flow));
        }
        this
    }

    pub(crate) fn qp(&self, number: usize) -> &QueuePair {
        &self.ends[number].qp
    }

    pub(crate) fn counters(&self, number: usize) -> &Counters {
        &self.ends[number].counters
    }

    /// Lets so much time go by and says what arrived in it.
    pub(crate) fn run(&mut self, time: Duration) -> Outcome {
        self.queue_max = 0;
        for end in &mut self.ends {
            end.placed = 0;
        }
        let until = self.now + time;
        while let Some(Reverse((at, _, _))) = self.events.peek().filter(|next| next.0.0 <= until) {
            self.now = *at;
            if let Some(Reverse((_, _, event))) = self.events.pop() {
                self.handle(event);
            }
        }
        self.now = until;
        let goodput = (0..self.setup.flows)
            .map(|flow| self.ends[2 * flow + 1].placed as f64 / time.as_secs_f64())
            .collect();
        Outcome { goodput, queue_max: self.queue_max, dropped: self.dropped }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Start(flow) => {
                let number = self.poster(flow);
                for _ in 0..POSTED {
                    self.post(number);
                }
                self.serve(number);
            }
            Event::Leave { from, packet } => self.leave(from, packet),
            Event::AtSwitch { from, packet } => self.at_switch(from, packet),
            Event::Arrive { to, packet } => {
                let InFlight { header, payload, ecn } = self.packets[packet];
                self.free.push(packet);
                self.with_context(to, |qp, cx| qp.on_packet(cx, &header, payload, ecn));
                self.serve(to);
            }
            Event::Timer(number) => {
                if self.ends[number].timer == Some(self.now) {
                    self.ends[number].timer = None;
                    self.with_context(number, |qp, cx| qp.on_timer(cx));
                    self.serve(number);
                }
            }
        }
    }

    /// The queue pair of a flow that posts work requests.
    fn poster(&self, flow: usize) -> usize {
        2 * flow + usize::from(self.setup.read)
    }

    fn post(&mut self, number: usize) {
        let slot = self.ends[number].posted;
        self.ends[number].posted += 1;
        let op = match self.setup.read {
            true => Op::Read { va: 0, rkey: 1 },
            false => Op::Write { va: 0, rkey: 1, imm: None },
        };
        let request = SendRequest::new(slot, op, MESSAGE);
        self.with_context(number, |qp, cx| assert!(qp.post_send(cx, request)));
    }

    /// What a NIC does after each event: sends what may be sent, and sets the timer.
    fn serve(&mut self, number: usize) {
        let mut more = self.ends[number].qp.wants_transmit();
        while more {
            more = self.with_context(number, |qp, cx| qp.transmit(cx));
        }
        let deadline = self.ends[number].qp.next_deadline().map(|at| at.max(self.now));
        if let Some(at) = deadline
            && deadline != self.ends[number].timer
        {
            self.ends[number].timer = deadline;
            self.at(at, Event::Timer(number));
        }
    }

    fn with_context<R>(
        &mut self,
        number: usize,
        f: impl FnOnce(&mut QueuePair, &mut Context<'_, NoMemory>) -> R,
    ) -> R {
        let mut actions = std::mem::take(&mut self.actions);
        let End { qp, counters, .. } = &mut self.ends[number];
        let mut cx = Context { now: self.now, memory: &mut NoMemory, actions: &mut actions, counters };
        let result = f(qp, &mut cx);
        let mut completed = 0;
        for action in actions.drain(..) {
            match action {
                Action::Transmit(transmit) => self.transmit(number, &transmit),
                Action::Place { len, .. } => self.ends[number].placed += u64::from(len),
                Action::Complete(completion) => {
                    assert_eq!(completion.status, Status::Success, "of queue pair {number}");
                    completed += 1;
                }
                _ => {}
            }
        }
        self.actions = actions;
        for _ in 0..completed {
            self.post(number);
        }
        result
    }

    fn transmit(&mut self, from: usize, transmit: &Transmit<()>) {
        let ecn = self.ends[from].qp.ecn();
        let in_flight = InFlight { header: transmit.header, payload: transmit.payload.len(), ecn };
        let packet = self.free.pop().unwrap_or(self.packets.len());
        match self.packets.get_mut(packet) {
            Some(place) => *place = in_flight,
            None => self.packets.push(in_flight),
        }
        self.at(transmit.at.max(self.now), Event::Leave { from, packet });
    }

    /// The sender's own link. What the receiver sends is not the bottleneck, and never waits.
    fn leave(&mut self, from: usize, packet: usize) {
        let time = self.serialise(self.packets[packet].bytes());
        if from % 2 == 1 {
            self.at(self.now + time + 2 * self.setup.latency, Event::Arrive { to: from - 1, packet });
            return;
        }
        let end = &mut self.ends[from];
        end.link_free = end.link_free.max(self.now) + time;
        let at = end.link_free + self.setup.latency;
        self.at(at, Event::AtSwitch { from, packet });
    }

    /// The queue in front of the receiver.
    fn at_switch(&mut self, from: usize, packet: usize) {
        let bytes = self.packets[packet].bytes();
        let wait_ns = (self.switch_free - self.now).as_nanos() as u64;
        let queue = (u128::from(wait_ns) * u128::from(self.setup.line) / 1_000_000_000) as u64;
        if queue + bytes > self.setup.buffer {
            self.dropped += 1;
            self.free.push(packet);
            return;
        }
        self.queue_max = self.queue_max.max(queue + bytes);
        if self.packets[packet].ecn != 0 && self.marks(queue) {
            self.packets[packet].ecn = CE;
        }
        self.switch_free = self.switch_free.max(self.now) + self.serialise(bytes);
        self.at(self.switch_free + self.setup.latency, Event::Arrive { to: from + 1, packet });
    }

    fn marks(&mut self, queue: u64) -> bool {
        let Marking { kmin, kmax, pmax } = self.setup.marking;
        if queue <= kmin || queue > kmax {
            return queue > kmax;
        }
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let uniform = (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64;
        uniform < pmax * (queue - kmin) as f64 / (kmax - kmin) as f64
    }

    fn serialise(&self, bytes: u64) -> Duration {
        Duration::from_nanos((bytes * 1_000_000_000).div_ceil(self.setup.line))
    }

    fn at(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }
}

fn end(setup: &Setup, number: usize) -> End {
    let config = Config { window: setup.window, congestion: setup.control, ..Config::default() };
    let mut qp = QueuePair::new(config);
    assert!(qp.to_init());
    assert!(qp.to_rtr(&ReadyToReceive {
        dest_qpn: Qpn::new(number as u32 ^ 1),
        rq_psn: Psn::new(0xff_ff00),
        path_mtu: Mtu::B4096,
        max_dest_rd_atomic: 16,
        min_rnr_timer: 12,
    }));
    assert!(qp.to_rts(&ReadyToSend {
        sq_psn: Psn::new(0xff_ff00),
        max_rd_atomic: 16,
        retry_cnt: 7,
        rnr_retry: 6,
        timeout: 14,
    }));
    End { qp, counters: Counters::default(), timer: None, posted: 0, link_free: Time::ZERO, placed: 0 }
}

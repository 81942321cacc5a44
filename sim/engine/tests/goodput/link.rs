//! Two queue pairs at the ends of a full-duplex link that loses packets, in virtual time: headers only, since
//! nobody looks at the bytes.
//!
//! A host hands packets to its link while few of them wait there, as a driver with a short ring does; so a
//! packet that is sent again does not wait behind a whole window. Nothing is lost but what the seed says, and
//! a seed is a run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use anyverbs_engine::*;
use anyverbs_wire::{Psn, Qpn, Repr};

/// The length of a work request.
pub(crate) const MESSAGE: u32 = 1 << 20;

/// Work requests that are posted and not completed.
const DEPTH: u64 = 8;

/// Messages before the clock starts: the first round trip is measured by then.
const WARM_UP: u64 = 8;

/// What a packet of a full path MTU has on the wire besides its payload: preamble, Ethernet, IP, UDP and
/// transport headers, ICRC, frame check sequence, gap.
pub(crate) const AROUND: u64 = 8 + 14 + 20 + 8 + 4 + 4 + 12;

/// Bytes of payload of a full packet.
const PAYLOAD: u64 = 4096;

/// Bytes that wait at a host's link at most when its queue pair is asked for more.
const RING: u64 = 16 * PAYLOAD;

/// How packets are lost, in both directions alike.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Loss {
    /// Each with this probability.
    Random(f64),
    /// All of them during bursts (Gilbert and Elliott): the part of all packets, and the mean length in full
    /// packets. A burst takes its time whether or not packets leave: nobody can sit it out by trying often.
    Bursts(f64, f64),
}

/// Who does what about losses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheme {
    /// Everything again, by a sender that tries nothing else, to a receiver that keeps nothing.
    GoBackN,
    /// What is missing again, and a receiver that keeps what is early.
    Selective,
    /// A sender that would send only what is missing, and a receiver that keeps nothing.
    Fallback,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) scheme: Scheme,
    pub(crate) loss: Loss,
    /// Let side 0 READ instead of WRITE.
    pub(crate) read: bool,
    pub(crate) gigabits: u64,
    /// Of the empty link.
    pub(crate) round_trip: Duration,
    pub(crate) window: u32,
    pub(crate) seed: u64,
}

/// What came of a run.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Outcome {
    /// Payload that was completed in a second, as a part of what a link full of full packets carries.
    pub(crate) goodput: f64,
    /// Packets that carried payload, as a multiple of those that were needed.
    pub(crate) sent: f64,
    /// Times that the retransmit timer of the requester fired.
    pub(crate) timeouts: u64,
}

/// Memory that allows everything and holds nothing.
struct NoMemory;

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

    fn hold(&mut self) -> Option<u32> {
        Some(0)
    }

    fn take_receive(&mut self, _shared: Option<Qpn>) -> Receive {
        Receive::Empty
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive {
        to: usize,
        packet: usize,
    },
    /// Few packets wait at this side's link.
    Room(usize),
    Timer(usize),
}

struct Side {
    qp: QueuePair,
    counters: Counters,
    timer: Option<Time>,
    /// When its link has sent all that it was given.
    link_free: Time,
    room_asked: bool,
    coin: Coin,
    carried: u64,
}

/// Decides what is lost.
struct Coin {
    loss: Loss,
    random: u64,
    in_burst: bool,
}

impl Coin {
    fn new(loss: Loss, seed: u64) -> Self {
        Coin { loss, random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, in_burst: false }
    }

    /// Between 0 and 1, by a small generator (xorshift64*).
    fn uniform(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether a packet is lost that leaves so many packets' times after the one before it.
    fn loses(&mut self, packets: u64) -> bool {
        let uniform = self.uniform();
        match self.loss {
            Loss::Random(part) => uniform < part,
            Loss::Bursts(part, mean) => {
                let leave = 1.0 / mean;
                let enter = leave * part / (1.0 - part);
                let before = if self.in_burst { 1.0 } else { 0.0 };
                // Not `powf`, whose last digit depends on the platform. Nothing is remembered for longer.
                let kept = (0..packets.min(200)).fold(1.0, |kept, _| kept * (1.0 - leave - enter));
                self.in_burst = uniform < part + (before - part) * kept;
                self.in_burst
            }
        }
    }
}

struct Link {
    now: Time,
    setup: Setup,
    sides: [Side; 2],
    packets: Vec<(Repr, u32)>,
    free: Vec<usize>,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
    posted: u64,
    completed: u64,
    actions: Vec<Action<()>>,
}

/// Runs until so many messages are completed, those before the clock starts not counted.
pub(crate) fn run(setup: Setup, messages: u64) -> Outcome {
    let mut link = Link::new(setup);
    link.run_to(WARM_UP);
    let (start, carried) = (link.now, link.carried());
    link.run_to(WARM_UP + messages);
    let bytes = messages * u64::from(MESSAGE);
    let full = (bytes / PAYLOAD) as f64 * link.serialise(PAYLOAD + 12 + AROUND).as_secs_f64();
    Outcome {
        goodput: full / (link.now - start).as_secs_f64(),
        sent: (link.carried() - carried) as f64 / (bytes / PAYLOAD) as f64,
        timeouts: link.sides[0].counters.local_ack_timeout_err,
    }
}

impl Link {
    fn new(setup: Setup) -> Self {
        let mut link = Link {
            now: Time::ZERO,
            setup,
            sides: [0, 1].map(|side| new_side(&setup, side)),
            packets: Vec::new(),
            free: Vec::new(),
            events: BinaryHeap::new(),
            sequence: 0,
            posted: 0,
            completed: 0,
            actions: Vec::new(),
        };
        for _ in 0..DEPTH {
            link.post();
        }
        link.serve(0);
        link
    }

    /// Packets that carried payload.
    fn carried(&self) -> u64 {
        self.sides.iter().map(|side| side.carried).sum()
    }

    fn run_to(&mut self, completed: u64) {
        while self.completed < completed {
            let Some(Reverse((at, _, event))) = self.events.pop() else {
                panic!("nothing more happens: {:?}", self.setup);
            };
            self.now = at;
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { to, packet } => {
                let (header, payload) = self.packets[packet];
                self.free.push(packet);
                self.with_context(to, |qp, cx| {
                    qp.on_packet(cx, &header, payload, 0);
                    while qp.on_early(cx).is_some() {}
                });
                self.serve(to);
            }
            Event::Room(side) => {
                self.sides[side].room_asked = false;
                self.serve(side);
            }
            Event::Timer(side) => {
                if self.sides[side].timer == Some(self.now) {
                    self.sides[side].timer = None;
                    self.with_context(side, |qp, cx| qp.on_timer(cx));
                    self.serve(side);
                }
            }
        }
    }

    fn post(&mut self) {
        let op = match self.setup.read {
            true => Op::Read { va: 0, rkey: 1 },
            false => Op::Write { va: 0, rkey: 1, imm: None },
        };
        let request = SendRequest::new(self.posted, op, MESSAGE);
        self.posted += 1;
        self.with_context(0, |qp, cx| assert!(qp.post_send(cx, request)));
    }

    /// What a NIC does after each event: sends what may be sent, and sets the timer.
    fn serve(&mut self, side: usize) {
        let ring = self.serialise(RING);
        let mut more = self.sides[side].qp.wants_transmit();
        while more {
            let free = self.sides[side].link_free;
            if free > self.now + ring {
                if !std::mem::replace(&mut self.sides[side].room_asked, true) {
                    self.at(self.now + (free - (self.now + ring)), Event::Room(side));
                }
                break;
            }
            more = self.with_context(side, |qp, cx| qp.transmit(cx));
        }
        let deadline = self.sides[side].qp.next_deadline().map(|at| at.max(self.now));
        if deadline != self.sides[side].timer {
            self.sides[side].timer = deadline;
            if let Some(at) = deadline {
                self.at(at, Event::Timer(side));
            }
        }
    }

    fn with_context<R>(
        &mut self,
        side: usize,
        f: impl FnOnce(&mut QueuePair, &mut Context<'_, NoMemory>) -> R,
    ) -> R {
        let mut actions = std::mem::take(&mut self.actions);
        let Side { qp, counters, .. } = &mut self.sides[side];
        let mut cx = Context { now: self.now, memory: &mut NoMemory, actions: &mut actions, counters };
        let result = f(qp, &mut cx);
        let mut completed = 0;
        for action in actions.drain(..) {
            match action {
                Action::Transmit(transmit) => self.transmit(side, &transmit),
                Action::Complete(completion) => {
                    assert_eq!(completion.status, Status::Success, "{:?}", self.setup);
                    completed += 1;
                }
                _ => {}
            }
        }
        self.actions = actions;
        self.completed += completed;
        for _ in 0..completed {
            self.post();
        }
        result
    }

    fn transmit(&mut self, from: usize, transmit: &Transmit<()>) {
        let payload = transmit.payload.len();
        let bytes = AROUND + transmit.header.header_len() as u64 + u64::from(payload);
        let time = self.serialise(bytes);
        let full = self.serialise(PAYLOAD + 12 + AROUND);
        let now = self.now.max(transmit.at);
        let side = &mut self.sides[from];
        let idle = ((now - side.link_free).as_nanos() / full.as_nanos()) as u64;
        side.link_free = side.link_free.max(now) + time;
        side.carried += u64::from(payload > 0);
        let arrives = side.link_free + self.setup.round_trip / 2;
        if side.coin.loses(1 + idle) {
            return;
        }
        let packet = self.free.pop().unwrap_or(self.packets.len());
        match self.packets.get_mut(packet) {
            Some(place) => *place = (transmit.header, payload),
            None => self.packets.push((transmit.header, payload)),
        }
        self.at(arrives, Event::Arrive { to: 1 - from, packet });
    }

    fn serialise(&self, bytes: u64) -> Duration {
        Duration::from_nanos((bytes * 8).div_ceil(self.setup.gigabits))
    }

    fn at(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }
}

fn new_side(setup: &Setup, side: usize) -> Side {
    let recovery = match setup.scheme {
        Scheme::GoBackN => Recovery::GoBackN,
        Scheme::Selective | Scheme::Fallback => Recovery::Selective,
    };
    let reorder = if setup.scheme == Scheme::Selective { setup.window } else { 0 };
    // A READ is asked for in parts of 64 packets, and twice a window of them may be on the way.
    let max_rd_atomic = (setup.window / 32).max(16) as u8;
    let mut qp = QueuePair::new(Config { window: setup.window, reorder, recovery, ..Config::default() });
    assert!(qp.to_init());
    assert!(qp.to_rtr(&ReadyToReceive {
        dest_qpn: Qpn::new(side as u32 ^ 1),
        rq_psn: Psn::new(0xff_ff00),
        path_mtu: Mtu::B4096,
        max_dest_rd_atomic: max_rd_atomic,
        min_rnr_timer: 12,
    }));
    assert!(qp.to_rts(&ReadyToSend {
        sq_psn: Psn::new(0xff_ff00),
        max_rd_atomic,
        retry_cnt: 7,
        rnr_retry: 6,
        timeout: 14,
    }));
    Side {
        qp,
        counters: Counters::default(),
        timer: None,
        link_free: Time::ZERO,
        room_asked: false,
        coin: Coin::new(setup.loss, setup.seed * 2 + side as u64 + 1),
        carried: 0,
    }
}

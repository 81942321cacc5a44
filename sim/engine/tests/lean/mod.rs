//! Two queue pairs and next to nothing between them: headers go from one to the other by two queues, and no
//! byte of payload exists. What runs here is the engine, so that what it costs can be counted.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use anyverbs_engine::*;
use anyverbs_wire::{Feth, Psn, Qpn, Repr};

/// Packets that a side takes in before it sends again, like the passes of a NIC.
const PASS: usize = 64;

/// The time between two passes.
const PERIOD: Duration = Duration::from_micros(20);

/// Messages that are posted and not completed.
const DEPTH: u64 = 8;

/// Capacity of the queues between the two sides and of the lists of actions: more than a window.
const ROOM: usize = 1024;

/// As large as the NIC's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Span {
    _key: u64,
    _va: u64,
    _len: u64,
}

/// Memory in which everything is allowed, and receives that never run out.
#[derive(Default)]
pub(crate) struct Boundless {
    receives: u64,
    word: u64,
}

impl Memory for Boundless {
    type Span = Span;

    fn check(&mut self, rkey: u32, va: u64, len: u32, _need: Need) -> Result<Span, Denied> {
        Ok(Span { _key: rkey.into(), _va: va, _len: len.into() })
    }

    fn fetch_add(&mut self, _span: Span, add: u64) -> Result<u64, Denied> {
        let before = self.word;
        self.word = before.wrapping_add(add);
        Ok(before)
    }

    fn compare_swap(&mut self, _span: Span, compare: u64, swap: u64) -> Result<u64, Denied> {
        let before = self.word;
        if before == compare {
            self.word = swap;
        }
        Ok(before)
    }

    fn flush(&mut self, _rkey: u32, _va: u64, _len: u32, _feth: Feth) -> Result<(), Denied> {
        Ok(())
    }

    fn invalidate(&mut self, _rkey: u32) -> Result<(), Denied> {
        Ok(())
    }

    fn receives_posted(&self) -> Option<u32> {
        Some(DEPTH as u32)
    }

    fn hold(&mut self) -> Option<u32> {
        Some(0)
    }

    fn take_receive(&mut self, _shared: Option<Qpn>) -> Receive {
        self.receives += 1;
        Receive::Taken { slot: self.receives, capacity: u64::from(u32::MAX) }
    }
}

/// What a queue pair is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input {
    Post(SendRequest),
    Packet { header: Repr, payload: u32 },
    Timer,
    Transmit,
}

/// A queue pair with what it needs.
pub(crate) struct Side {
    qp: QueuePair,
    memory: Boundless,
    pub(crate) counters: Counters,
    /// What the last input led to.
    pub(crate) actions: Vec<Action<Span>>,
}

impl Side {
    /// A queue pair that is ready to send. Side 0 and side 1 fit each other.
    pub(crate) fn new(side: usize, config: Config, path_mtu: Mtu) -> Side {
        let psn = |side: usize| Psn::new([0x00ff_f000, 77][side]);
        let mut qp = QueuePair::new(config);
        assert!(qp.to_init());
        assert!(qp.to_rtr(&ReadyToReceive {
            dest_qpn: Qpn::new(2 + (1 - side as u32)),
            rq_psn: psn(1 - side),
            path_mtu,
            max_dest_rd_atomic: 16,
            min_rnr_timer: 1,
        }));
        assert!(qp.to_rts(&ReadyToSend {
            sq_psn: psn(side),
            max_rd_atomic: 16,
            retry_cnt: 7,
            rnr_retry: 7,
            timeout: 14,
        }));
        let (memory, counters) = (Boundless::default(), Counters::default());
        Side { qp, memory, counters, actions: Vec::with_capacity(ROOM) }
    }

    /// Tells the queue pair something, and asks it what a NIC asks after each call. Returns whether it has
    /// more to send at once. The one place that calls the engine.
    pub(crate) fn feed(&mut self, now: Time, input: &Input) -> bool {
        let Side { qp, memory, counters, actions } = self;
        actions.clear();
        let mut cx = Context { now, memory, actions, counters };
        let more = match input {
            Input::Post(request) => {
                assert!(qp.post_send(&mut cx, *request), "the depth is below the queue's");
                false
            }
            Input::Packet { header, payload } => {
                qp.on_packet(&mut cx, header, *payload, 0);
                while qp.on_early(&mut cx).is_some() {}
                false
            }
            Input::Timer => {
                qp.on_timer(&mut cx);
                false
            }
            Input::Transmit => qp.transmit(&mut cx),
        };
        black_box((qp.wants_transmit(), qp.next_deadline()));
        more
    }
}

/// How packets are lost, and overtake each other: in parts per thousand, by a small generator (xorshift64*).
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) loss: u64,
    pub(crate) reorder: u64,
    pub(crate) seed: u64,
}

impl Faults {
    fn strikes(&mut self, per_mille: u64) -> bool {
        if per_mille == 0 {
            return false;
        }
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        (self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % 1000 < per_mille
    }
}

/// Side 0 makes requests, side 1 answers them.
pub(crate) struct Pair {
    pub(crate) sides: [Side; 2],
    pub(crate) faults: Faults,
    /// Packets that the faults took, or for which there was no room.
    pub(crate) lost: u64,
    now: Time,
    inboxes: [VecDeque<(Repr, u32)>; 2],
    posted: u64,
    completed: u64,
}

impl Pair {
    pub(crate) fn new(config: Config, path_mtu: Mtu) -> Pair {
        Pair {
            sides: [0, 1].map(|side| Side::new(side, config, path_mtu)),
            faults: Faults::default(),
            lost: 0,
            now: Time::ZERO,
            inboxes: [0, 1].map(|_| VecDeque::with_capacity(ROOM)),
            posted: 0,
            completed: 0,
        }
    }

    /// Runs until so many more messages are completed, each of `len` bytes. `watch` sees every input of a
    /// side and what it led to.
    pub(crate) fn run(
        &mut self,
        messages: u64,
        op: Op,
        len: u32,
        mut watch: impl FnMut(usize, Time, &Input, &[Action<Span>]),
    ) {
        let end = self.completed + messages;
        let mut passes = 0;
        while self.completed < end {
            while self.posted < end && self.posted - self.completed < DEPTH {
                let slot = self.posted;
                let destination = Destination::Connected;
                let request = SendRequest {
                    slot,
                    op,
                    len,
                    signaled: true,
                    solicited: false,
                    fence: false,
                    destination,
                };
                self.posted += 1;
                self.feed(0, Input::Post(request), &mut watch);
            }
            self.now = self.now + PERIOD;
            for side in [0, 1] {
                self.pass(side, &mut watch);
            }
            passes += 1;
            assert!(passes < 1_000_000, "{} of {end} messages, and nothing moves", self.completed);
        }
    }

    fn pass(&mut self, side: usize, watch: &mut impl FnMut(usize, Time, &Input, &[Action<Span>])) {
        if self.sides[side].qp.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.feed(side, Input::Timer, watch);
        }
        for _ in 0..PASS {
            let Some((header, payload)) = self.inboxes[side].pop_front() else { break };
            self.feed(side, Input::Packet { header, payload }, watch);
        }
        while self.feed(side, Input::Transmit, watch) {}
    }

    fn feed(
        &mut self,
        side: usize,
        input: Input,
        watch: &mut impl FnMut(usize, Time, &Input, &[Action<Span>]),
    ) -> bool {
        let more = self.sides[side].feed(self.now, &input);
        let actions = &self.sides[side].actions;
        watch(side, self.now, &input, actions);
        for action in actions {
            match action {
                Action::Transmit(transmit) => {
                    let inbox = &mut self.inboxes[1 - side];
                    let place = inbox.len();
                    // Packets that are sent again and again may be more than there is room for, as in a switch.
                    if self.faults.strikes(self.faults.loss) || place == ROOM {
                        self.lost += 1;
                        continue;
                    }
                    inbox.push_back((transmit.header, transmit.payload.len()));
                    if place > 0 && self.faults.strikes(self.faults.reorder) {
                        inbox.swap(place - 1, place);
                    }
                }
                Action::Complete(completion) => {
                    assert_eq!(completion.status, Status::Success);
                    self.completed += u64::from(completion.queue == Queue::Send);
                }
                _ => {}
            }
        }
        more
    }
}

//! Both sides' consumers, and what befalls them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;
use std::time::Duration;

use super::check::{check_next, check_timewait};
use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_engine::{Mtu, Time};
use anyverbs_wire::mad::RejectReason;
use anyverbs_wire::{Psn, Qpn};

/// Queue-pair numbers of a side: few, so that they are used again.
const QPNS: Range<u32> = 100..124;

/// What both sides have to agree on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Parameters {
    pub(super) active: (Qpn, Psn),
    pub(super) passive: (Qpn, Psn),
    pub(super) mtu: Mtu,
    /// READs and atomics from the active side to the passive one, and back.
    pub(super) depths: (u8, u8),
}

/// One side's view of an attempt.
#[derive(Debug)]
pub(super) struct View {
    pub(super) side: usize,
    pub(super) attempt: u16,
    pub(super) qpn: Option<Qpn>,
    /// Our consumer has accepted: a queue pair is connected.
    pub(super) accepted: bool,
    pub(super) parameters: Option<Parameters>,
    pub(super) stands: bool,
    /// What was heard, and when by this side's clock.
    pub(super) events: Vec<(Time, Event)>,
    pub(super) abandoned: bool,
}

impl View {
    pub(super) fn heard(&self, what: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(|(_, event)| what(event))
    }

    pub(super) fn over(&self) -> bool {
        self.heard(|event| matches!(event, Event::TimewaitExit { .. }))
    }

    /// This side waited in vain, and the other one need not have heard of that.
    pub(super) fn gave_up(&self) -> bool {
        self.heard(|event| match event {
            Event::Unreachable { .. } => true,
            // What an answer brings has a length.
            Event::Disconnected { cause: Cause::Timeout | Cause::Stale, private_data, .. } => {
                private_data.is_empty()
            }
            _ => false,
        })
    }
}

/// Something that a consumer does later, or that happens to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Deed {
    Connect,
    Accept(Id),
    Reject(Id),
    Establish(Id),
    Disconnect(Id),
    Abandon(Id),
    /// The first packet of the peer arrives at a queue pair.
    Data(Qpn),
    /// Everything is forgotten. The queue pairs, the ids and the MADs under way are the same as before.
    Restart,
    /// The clock leaps ahead.
    Jump,
    /// Nothing that this side sends arrives, or everything again.
    Cut(bool),
}

/// When, order, which side in which of its lives, what.
type Planned = (Time, u64, usize, u32, Deed);

pub(super) struct Swarm {
    pub(super) world: World,
    pub(super) rng: Rng,
    pub(super) views: BTreeMap<(usize, Id), View>,
    /// Views whose id was used again.
    pub(super) past: Vec<View>,
    requests: BTreeMap<(usize, Id), ConnectRequest>,
    /// What was asked for, by attempt.
    asked: BTreeMap<u16, Connect>,
    /// How often its listener was told, by attempt.
    pub(super) told: BTreeMap<u16, u32>,
    /// Nothing is delayed or forgotten so much that a listener has to be told twice.
    once: bool,
    plan: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    attempts: u16,
    lives: [u32; 2],
    pub(super) configs: [Config; 2],
    /// Attempts that a restart made ambiguous.
    pub(super) broken: BTreeSet<u16>,
    /// A side may give up although the other one does not know: it has few retries, its clock leaped, or its
    /// peer's restart left little time.
    pub(super) hasty: bool,
    /// Ids of few random bits come again.
    pub(super) few_ids: bool,
    /// Slow or deaf consumers, in parts per thousand.
    slow: u64,
    silent: u64,
    refusing: u64,
    pub(super) crossed: usize,
}

impl Swarm {
    pub(super) fn new(seed: u64) -> Swarm {
        let mut rng = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let mut some = |n: u64| if rng.chance(500) { rng.below(n) } else { 0 };
        let faults = Faults {
            loss: some(300),
            duplicate: some(300),
            jitter_ms: some(200),
            tail: some(100),
            replay: some(500),
        };
        let (slow, silent, refusing, tiny) = (some(400), some(200), some(300), some(2) == 1);
        let (brisk, few_ids) = (some(2) == 1, rng.chance(500));
        let limits = if tiny {
            Limits { connections: 8, requests_per_source: 2, answers: 2, held: 1, ..Limits::default() }
        } else {
            Limits::default()
        };
        let mut configs = [0, 1].map(|side| Config { limits, ..config(side) });
        if brisk {
            // One side repeats itself sooner than the other one's timewait ends.
            let side = rng.below(2) as usize;
            configs[side].packet_lifetime = 12;
            configs.iter_mut().for_each(|config| config.response_timeout = 13);
            configs[side].max_retries = 3 + rng.below(10) as u8;
        }
        let mut world = World::with_ids(configs, seed, if few_ids { 3 } else { ANY_ID });
        world.faults = faults;
        Swarm {
            world,
            rng,
            views: BTreeMap::new(),
            past: Vec::new(),
            requests: BTreeMap::new(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            once: faults.tail == 0 && faults.loss < 30 && !tiny && !brisk && !few_ids,
            plan: BinaryHeap::new(),
            planned: 0,
            attempts: 0,
            lives: [0; 2],
            configs,
            broken: BTreeSet::new(),
            hasty: brisk,
            few_ids,
            slow,
            silent,
            refusing,
            crossed: 0,
        }
    }

    pub(super) fn plan(&mut self, after: Duration, side: usize, deed: Deed) {
        self.planned += 1;
        self.plan.push(Reverse((self.world.now + after, self.planned, side, self.lives[side], deed)));
    }

    /// How long a consumer takes: mostly milliseconds, sometimes longer than its peer expects.
    fn thinking(&mut self) -> Duration {
        if self.rng.chance(self.slow) { self.rng.millis(90_000) } else { self.rng.millis(20) }
    }

    pub(super) fn run(&mut self, until: Option<Time>) {
        loop {
            let deed = self.plan.peek().map(|Reverse(entry)| entry.0);
            let event = self.world.next_event();
            let next = deed.into_iter().chain(event).min();
            let Some(at) = next.filter(|at| until.is_none_or(|until| *at <= until)) else { break };
            self.world.now = self.world.now.max(at);
            if deed.is_some_and(|deed| deed <= at) {
                let Some(Reverse((_, _, side, life, deed))) = self.plan.pop() else { break };
                // What a side does whoever it knows, and what happens to it, does not end with its life.
                let lasting = matches!(deed, Deed::Connect | Deed::Restart | Deed::Jump | Deed::Cut(_));
                if lasting || life == self.lives[side] {
                    self.act(side, deed);
                }
            } else {
                self.world.step(at);
            }
            self.hear();
        }
    }

    fn act(&mut self, side: usize, deed: Deed) {
        match deed {
            Deed::Connect => self.connect(side),
            Deed::Accept(id) => self.accept(side, id),
            Deed::Reject(id) => {
                let reason = RejectReason::CONSUMER;
                let _ = self.world.call(side, |cm, now, out| cm.reject(now, id, reason, b"", b"no", out));
            }
            Deed::Establish(id) => self.establish(side, id),
            Deed::Disconnect(id) => {
                let _ = self.world.disconnect(side, id);
            }
            Deed::Abandon(id) => {
                if self.world.call(side, |cm, now, out| cm.abandon(now, id, out)).is_ok()
                    && let Some(view) = self.views.get_mut(&(side, id))
                {
                    view.abandoned = true;
                }
            }
            Deed::Data(qpn) => {
                self.world.call(side, |cm, now, out| cm.communication_established(now, qpn, out));
            }
            Deed::Restart => self.restart(side),
            Deed::Jump => {
                self.world.ahead[side] += self.rng.millis(100_000);
                (self.once, self.hasty) = (false, true);
            }
            Deed::Cut(cut) => {
                self.world.cut[side] = cut;
                self.once = false;
            }
        }
    }

    /// A queue-pair number that nobody has. The manager has to know it as long as we do.
    fn free_qpn(&mut self, side: usize) -> Option<Qpn> {
        for view in self.views.values().filter(|view| view.side == side && !view.abandoned) {
            if let (Some(qpn), false) = (view.qpn, view.over()) {
                assert!(self.world.sides[side].cm.holds_qpn(qpn), "{qpn} is free before timewait ends");
            }
        }
        let cm = &self.world.sides[side].cm;
        let free: Vec<_> = QPNS.map(Qpn::new).filter(|qpn| !cm.holds_qpn(*qpn)).collect();
        (!free.is_empty()).then(|| free[self.rng.below(free.len() as u64) as usize])
    }

    fn connect(&mut self, side: usize) {
        let Some(qpn) = self.free_qpn(side) else { return };
        let attempt = self.attempts;
        self.attempts += 1;
        let asked = self.world.request(side, 2);
        let terms = Terms {
            qpn,
            starting_psn: Psn::new(self.rng.next() as u32),
            path_mtu: Mtu::ALL[self.rng.below(5) as usize],
            responder_resources: self.rng.below(17) as u8,
            initiator_depth: self.rng.below(17) as u8,
            capabilities: self.rng.chance(500).then_some(Capabilities { keeps_early_packets: true }),
            ..asked.terms
        };
        let connect = Connect { terms, ..asked };
        let id = self.world.call(side, |cm, now, out| cm.connect(now, &connect, &attempt.to_be_bytes(), out));
        let Ok(id) = id else { return };
        self.asked.insert(attempt, connect);
        self.view(side, id, attempt).qpn = Some(qpn);
        if self.rng.chance(self.refusing / 3) {
            let after = self.rng.millis(10_000);
            self.plan(after, side, Deed::Abandon(id));
        }
    }

    /// A new view. An earlier one of this id has to be over.
    fn view(&mut self, side: usize, id: Id, attempt: u16) -> &mut View {
        if let Some(view) = self.views.remove(&(side, id)) {
            assert!(view.over() || view.abandoned, "{id:?} is given away: {view:?}");
            self.past.push(view);
        }
        self.views.entry((side, id)).or_insert(View {
            side,
            attempt,
            qpn: None,
            accepted: false,
            parameters: None,
            stands: false,
            events: Vec::new(),
            abandoned: false,
        })
    }

    fn accept(&mut self, side: usize, id: Id) {
        let Some(request) = self.requests.get(&(side, id)).copied() else { return };
        let Some(qpn) = self.free_qpn(side) else { return };
        let psn = Psn::new(self.rng.next() as u32);
        let accept = Accept {
            initiator_depth: request.terms.initiator_depth.min(self.rng.below(17) as u8),
            responder_resources: self.rng.below(17) as u8,
            ..Accept::new(&request, qpn, psn)
        };
        if self.world.call(side, |cm, now, out| cm.accept(now, id, &accept, b"", out)).is_err() {
            return;
        }
        if let Some(view) = self.views.get_mut(&(side, id)) {
            view.accepted = true;
            view.qpn = Some(qpn);
            view.parameters = Some(Parameters {
                active: (request.terms.qpn, request.terms.starting_psn),
                passive: (qpn, psn),
                mtu: request.terms.path_mtu,
                depths: (accept.responder_resources, accept.initiator_depth),
            });
        }
        if self.rng.chance(self.refusing / 3) {
            let after = self.rng.millis(100);
            let deed = if self.rng.chance(500) { Deed::Abandon(id) } else { Deed::Disconnect(id) };
            self.plan(after, side, deed);
        }
    }

    fn establish(&mut self, side: usize, id: Id) {
        if self.world.establish(side, id).is_err() {
            return;
        }
        let Some(view) = self.views.get_mut(&(side, id)) else { return };
        view.stands = true;
        let peer_qpn = view.parameters.map(|parameters| parameters.passive.0);
        self.lives_on(side, id);
        // The first packets leave, too, and may arrive before the RTU.
        if let Some(qpn) = peer_qpn.filter(|_| self.rng.chance(300)) {
            let after = self.rng.millis(200);
            self.plan(after, 1 - side, Deed::Data(qpn));
        }
    }

    /// A connection stands: it may be ended by this side, in a while, or by both at once.
    fn lives_on(&mut self, side: usize, id: Id) {
        if !self.rng.chance(500) {
            return;
        }
        let after = self.rng.millis(if self.rng.0 & 1 == 0 { 200 } else { 60_000 });
        if self.rng.chance(200) {
            return self.plan(after, side, Deed::Abandon(id));
        }
        self.plan(after, side, Deed::Disconnect(id));
        let attempt = self.views.get(&(side, id)).map(|view| view.attempt);
        let theirs = |(key, view): (&(usize, Id), &View)| {
            (key.0 != side && Some(view.attempt) == attempt && view.stands).then_some(key.1)
        };
        if let Some(theirs) = self.views.iter().find_map(theirs)
            && self.rng.chance(300)
        {
            self.crossed += 1;
            self.plan(after, 1 - side, Deed::Disconnect(theirs));
        }
    }

    fn restart(&mut self, side: usize) {
        let dead: Vec<_> = self.views.keys().filter(|key| key.0 == side).copied().collect();
        // What the restarted side had begun or been asked for is lost on one side only.
        for key in dead {
            let view = self.views.remove(&key);
            self.broken.extend(view.map(|view| view.attempt));
        }
        let on_the_way = self.asked.keys().copied();
        self.broken.extend(on_the_way);
        self.lives[side] += 1;
        (self.once, self.hasty) = (false, true);
        let config = self.configs[side];
        self.world.restart(side, config);
    }

    /// The consumers hear their events, and make plans.
    fn hear(&mut self) {
        for side in 0..2 {
            for event in self.world.take(side) {
                self.hear_event(side, event);
            }
        }
    }

    fn hear_event(&mut self, side: usize, event: Event) {
        let (id, now) = (event.id(), self.world.local(side));
        if let Event::ConnectRequest(request) = &event {
            self.hear_request(side, request);
        }
        let Some(view) = self.views.get_mut(&(side, id)) else {
            panic!("an event of nothing: {event:?}");
        };
        assert!(!view.abandoned, "an event after letting go: {event:?}");
        check_next(&view.events, &event);
        view.events.push((now, event.clone()));
        check_timewait(view, &self.configs[side]);
        match &event {
            Event::ConnectRequest(_) => {
                let after = self.thinking();
                match self.rng.below(1000) {
                    n if n < self.silent => {}
                    n if n < self.silent + self.refusing => self.plan(after, side, Deed::Reject(id)),
                    _ => self.plan(after, side, Deed::Accept(id)),
                }
            }
            Event::ConnectResponse(response) => self.hear_response(side, response),
            Event::Established { .. } => {
                view.stands = true;
                self.lives_on(side, id);
            }
            Event::Disconnected { .. } => view.stands = false,
            _ => {}
        }
    }

    fn hear_request(&mut self, side: usize, request: &ConnectRequest) {
        let attempt = u16::from_be_bytes([request.private_data[0], request.private_data[1]]);
        let asked = self.asked[&attempt].terms;
        let swapped = Terms {
            responder_resources: asked.initiator_depth,
            initiator_depth: asked.responder_resources,
            ..asked
        };
        assert_eq!(request.terms, swapped);
        self.requests.insert((side, request.id), *request);
        let told = self.told.entry(attempt).or_default();
        *told += 1;
        assert!(*told == 1 || !self.once, "attempt {attempt} came twice");
        self.view(side, request.id, attempt);
    }

    fn hear_response(&mut self, side: usize, response: &ConnectResponse) {
        let id = response.id;
        let Some(view) = self.views.get_mut(&(side, id)) else { return };
        let asked = self.asked[&view.attempt].terms;
        view.parameters = Some(Parameters {
            active: (asked.qpn, asked.starting_psn),
            passive: (response.qpn, response.starting_psn),
            mtu: asked.path_mtu,
            depths: (response.initiator_depth, response.responder_resources),
        });
        let after = self.thinking();
        match self.rng.below(1000) {
            n if n < self.silent / 2 => {}
            n if n < self.refusing / 2 => self.plan(after, side, Deed::Reject(id)),
            _ => self.plan(after, side, Deed::Establish(id)),
        }
    }
}

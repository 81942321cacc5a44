//! Hosts, links and programs in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyverbs_engine::{Completion, Context, Counters, QpState, Queue, QueuePair, Status, Time};
use anyverbs_wire::{Packet, Repr, icrc};

use crate::book::{Book, CANARY, End, Fact, READABLE, READABLE_LEN, When, pattern};
use crate::driver::{self, Arrival, Deed, EndMemory, View};
use crate::network::{Chaos, Decision, Fault, Flight, Link, Totals, flow};
use crate::oracles::{Oracles, Violation};
use crate::plan::{Plan, Setup, readable};
use crate::rng::{Rng, Stream};

mod sessions;

/// More events than any run needs: what goes on for longer does so for ever.
const EVENTS_MAX: u64 = 400_000;

type Actions = Vec<anyverbs_engine::Action<driver::Span>>;

#[derive(Clone, Debug)]
enum Event {
    Deliver(Flight),
    Pump(usize),
    Timer(usize),
    Program(usize),
    Receives(usize),
    Version(usize),
    Incident(usize),
    Reconnect(usize),
    Heal,
    DueIntact(usize),
}

/// A host's clock: it may run fast or slow, and leap forwards. It never goes back, which is what the engine
/// is promised.
#[derive(Clone, Copy, Debug)]
struct Clock {
    world: Time,
    local: Time,
    ppm: i64,
}

impl Clock {
    fn local(&self, world: Time) -> Time {
        let passed = (world - self.world).as_nanos() as i128;
        self.local + Duration::from_nanos((passed * (1_000_000 + i128::from(self.ppm)) / 1_000_000) as u64)
    }

    /// When this clock will show at least `local`.
    fn world(&self, local: Time) -> Time {
        let left = (local - self.local).as_nanos() as i128;
        let scaled = left * 1_000_000 / (1_000_000 + i128::from(self.ppm));
        self.world + Duration::from_nanos(scaled as u64 + u64::from(left > 0) * 2)
    }
}

struct Host {
    clock: Clock,
    /// Which endpoint a queue pair number is.
    table: BTreeMap<u32, usize>,
    /// The word that all sessions share.
    shared: [u8; 8],
    up: bool,
}

struct Endpoint {
    at: End,
    host: usize,
    peer_host: usize,
    qpn: u32,
    qp: QueuePair,
    memory: EndMemory,
    counters: Counters,
    setup: Setup,
    alive: bool,
    timer: Option<Time>,
    /// The program waits for room in the send queue.
    waits: bool,
    receives_posted: u64,
    completed: usize,
    rng: Rng,
    /// Occasions to be busy, or to refuse.
    moods: u64,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Result<(), Violation>,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) hash: u64,
    /// How send work requests ended.
    pub(crate) endings: Vec<Status>,
}

pub(crate) struct World {
    seed: u64,
    plan: Plan,
    now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    hosts: Vec<Host>,
    links: Vec<Vec<Link>>,
    endpoints: Vec<Endpoint>,
    /// The current session of each wiring.
    current: Vec<usize>,
    book: Book,
    oracles: Oracles,
    chaos: Chaos,
    totals: Totals,
    due_at: Time,
    hash: u64,
    endings: Vec<Status>,
    /// Packets and completions are printed.
    trace: bool,
}

type Checked = Result<(), Violation>;

impl World {
    pub(crate) fn new(seed: u64, chaos: Chaos) -> World {
        let plan = Plan::new(seed);
        let clock = |host: usize| Clock {
            world: Time::ZERO,
            local: Time::from_nanos(1_000_000_000),
            ppm: plan.drifts[host],
        };
        let host = |host| Host { clock: clock(host), table: BTreeMap::new(), shared: [0; 8], up: true };
        let link = |from: usize, to: usize| Link::new(from, to, plan.rates[from][to]);
        World {
            seed,
            now: Time::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            hosts: (0..plan.hosts).map(host).collect(),
            links: (0..plan.hosts).map(|from| (0..plan.hosts).map(|to| link(from, to)).collect()).collect(),
            endpoints: Vec::new(),
            current: Vec::new(),
            book: Book::default(),
            oracles: Oracles::default(),
            chaos,
            totals: Totals::default(),
            due_at: plan.heal_at,
            hash: 0xcbf2_9ce4_8422_2325,
            endings: Vec::new(),
            trace: std::env::var_os("ANYVERBS_TRACE").is_some(),
            plan,
        }
    }

    pub(crate) fn run(mut self) -> Outcome {
        let verdict = self.play();
        let World { chaos, hash, endings, .. } = self;
        Outcome { verdict, decisions: chaos.taken.take(), hash, endings }
    }

    /// The whole run: programs under faults, then without; then everything is closed.
    fn play(&mut self) -> Checked {
        for pair in 0..self.plan.wirings.len() {
            let session = self.open(pair, None)?;
            self.current.push(session);
        }
        for incident in 0..self.plan.incidents.len() {
            self.at(self.plan.incidents[incident].0, Event::Incident(incident));
        }
        self.at(self.plan.heal_at, Event::Heal);
        let mut events = 0;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            if self.chaos.healed && at > self.due_at {
                self.queue.insert((at, 0), event);
                break;
            }
            self.handle(event)?;
            events += 1;
            if events > EVENTS_MAX {
                return Err(Violation {
                    oracle: "liveness",
                    what: format!("still busy after {events} events"),
                });
            }
        }
        self.fact(Fact::Due)?;
        for e in 0..self.endpoints.len() {
            self.close(e)?;
        }
        let in_flight = self.queue.values().filter(|event| matches!(event, Event::Deliver(_))).count() as u64;
        self.fact(Fact::Finished { totals: self.totals, in_flight })
    }

    fn at(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.queue.insert((time.max(self.now), self.sequence), event);
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Shows a fact that belongs to no host to the oracles.
    fn fact(&mut self, fact: Fact<'_>) -> Checked {
        self.oracles.see(&self.book, When { world: self.now, local: self.now }, &fact)
    }

    fn when(&self, e: usize) -> When {
        When { world: self.now, local: self.hosts[self.endpoints[e].host].clock.local(self.now) }
    }

    fn fact_at(&mut self, e: usize, fact: Fact<'_>) -> Checked {
        self.oracles.see(&self.book, self.when(e), &fact)
    }

    fn note(&mut self, words: &[u64]) {
        for word in words {
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn handle(&mut self, event: Event) -> Checked {
        match event {
            Event::Deliver(flight) => self.deliver(flight),
            Event::Pump(e) => self.pump(e),
            Event::Timer(e) => self.timer(e),
            Event::Program(e) => self.program(e),
            Event::Receives(e) => self.post_receives(e, 1),
            Event::Version(e) => self.write_version(e),
            Event::Incident(nth) => self.incident(nth),
            Event::Reconnect(host) => self.reconnect(host),
            Event::Heal => self.heal(),
            Event::DueIntact(session) => self.fact(Fact::DueIntact { session }),
        }
    }

    // ---- Programs ---------------------------------------------------------------------------

    /// Whether a mood of the host takes it now.
    fn mood(&mut self, e: usize, rate: u64, fault: Fault) -> bool {
        let endpoint = &mut self.endpoints[e];
        endpoint.moods += 1;
        let nth = endpoint.moods;
        let mut rng = Rng::stream(self.seed, Stream::Mood(e as u32), nth);
        self.chaos.strikes(rng.chance(rate), fault, e as u32, nth)
    }

    /// The program of an end posts some of its send work requests.
    fn program(&mut self, e: usize) -> Checked {
        if !self.endpoints[e].alive {
            return Ok(());
        }
        let count = 1 + self.endpoints[e].rng.below(3);
        for _ in 0..count {
            let End { session, side } = self.endpoints[e].at;
            let local = self.when(e).local;
            let version = self.book.side(self.endpoints[e].at.peer()).version;
            let book = &mut self.book.sessions[session].sides[side];
            let index = book.posted;
            let Some(wr) = book.wrs.get_mut(index) else { return self.pump(e) };
            (wr.posted_at, wr.version) = (local, version);
            let wr = *wr;
            let endpoint = &mut self.endpoints[e];
            let room = index - endpoint.completed < endpoint.setup.config.max_send_wr;
            let at = endpoint.at;
            let buffer =
                (0..wr.len as usize).map(|i| if wr.carries_data() { pattern(at, index, i) } else { CANARY });
            // In the book first: in the error state it completes at once.
            if room {
                book.posted += 1;
                endpoint.memory.sends.insert(index as u64, buffer.collect());
            }
            let posted = self.call(e, None, |qp, cx| qp.post_send(cx, driver::request(&wr, index as u64)))?;
            if posted != room {
                let what = format!("{at:?}: request {index} was taken: {posted}, room: {room}");
                return Err(Violation { oracle: "completion", what });
            }
            if !room {
                self.endpoints[e].waits = true;
                return self.pump(e);
            }
        }
        let delay = Duration::from_micros(1 + self.endpoints[e].rng.below(100));
        self.after(delay, Event::Program(e));
        self.pump(e)
    }

    /// The program of an end writes its readable area anew.
    fn write_version(&mut self, e: usize) -> Checked {
        let endpoint = &mut self.endpoints[e];
        if endpoint.alive {
            let side = &mut self.book.sessions[endpoint.at.session].sides[endpoint.at.side];
            side.version += 1;
            let area = &mut endpoint.memory.region[READABLE..READABLE + READABLE_LEN];
            area.iter_mut().zip(readable(side.version)).for_each(|(byte, now)| *byte = now);
        }
        Ok(())
    }

    /// Posts receives, at most as many as the peer's program needs and two more.
    fn post_receives(&mut self, e: usize, count: u64) -> Checked {
        if !self.endpoints[e].alive {
            return Ok(());
        }
        let Endpoint { at, setup, receives_posted: from, .. } = self.endpoints[e];
        let to = from.saturating_add(count).min(setup.receives + 2);
        for slot in from..to {
            self.endpoints[e].memory.posted.push_back((slot, vec![CANARY; setup.receive_len as usize]));
            self.fact_at(e, Fact::ReceivePosted { at, slot })?;
        }
        self.endpoints[e].receives_posted = to;
        if to < setup.receives {
            let delay = Duration::from_micros(1 + self.endpoints[e].rng.below(1500));
            self.after(delay, Event::Receives(e));
        }
        self.call(e, None, |qp, cx| qp.flush_receives(cx))
    }

    // ---- The engine -------------------------------------------------------------------------

    fn deliver(&mut self, flight: Flight) -> Checked {
        self.totals.delivered += 1;
        let Flight { from, to, datagram, hostile, ecn } = flight;
        let Ok(packet) = Packet::new_checked(&datagram[..]) else { return Ok(()) };
        let Some(&e) = self.hosts[to].table.get(&packet.dest_qpn().value()) else { return Ok(()) };
        if self.endpoints[e].peer_host != from || icrc::verify(&flow(from, to), &datagram).is_none() {
            return Ok(());
        }
        let (at, header) = (self.endpoints[e].at, Repr::parse(&packet));
        let payload = &datagram[packet.payload_range()];
        self.book.sessions[at.session].hostile |= hostile;
        let psn = header.bth.psn;
        self.note(&[self.now.as_nanos(), e as u64, u64::from(datagram[0]), u64::from(psn.value())]);
        self.fact_at(e, Fact::Delivered { at, header: &header })?;
        let arrival = Some(Arrival { psn, payload });
        self.call(e, arrival, |qp, cx| qp.on_packet(cx, &header, payload.len() as u32, ecn))?;
        self.handle_early(e)?;
        // What was refused to the request is there for a flush.
        self.call(e, None, |qp, cx| qp.flush_receives(cx))?;
        self.pump(e)
    }

    fn timer(&mut self, e: usize) -> Checked {
        self.endpoints[e].timer = None;
        let local = self.when(e).local;
        let endpoint = &self.endpoints[e];
        if endpoint.alive && endpoint.qp.next_deadline().is_some_and(|deadline| deadline <= local) {
            self.call(e, None, |qp, cx| qp.on_timer(cx))?;
        }
        self.pump(e)
    }

    /// Lets a queue pair send, if its host has time.
    fn pump(&mut self, e: usize) -> Checked {
        if !self.endpoints[e].alive {
            return Ok(());
        }
        if self.endpoints[e].qp.wants_transmit() {
            if self.mood(e, self.plan.moods.busy, Fault::Busy) {
                let delay = Duration::from_micros(1 + self.endpoints[e].rng.below(200));
                self.after(delay, Event::Pump(e));
                return Ok(());
            }
            let mut calls = 0;
            while self.call(e, None, |qp, cx| qp.transmit(cx))? {
                calls += 1;
                if calls > 1000 {
                    return Err(Violation {
                        oracle: "liveness",
                        what: format!("endpoint {e} never stops sending"),
                    });
                }
            }
        }
        let clock = self.hosts[self.endpoints[e].host].clock;
        if let Some(deadline) = self.endpoints[e].qp.next_deadline() {
            let at = clock.world(deadline).max(self.now);
            if self.endpoints[e].timer.is_none_or(|timer| at < timer) {
                self.endpoints[e].timer = Some(at);
                self.at(at, Event::Timer(e));
            }
        }
        Ok(())
    }

    /// Calls the engine, and carries out what it answers.
    fn call<R>(
        &mut self,
        e: usize,
        arrival: Option<Arrival<'_>>,
        f: impl FnOnce(&mut QueuePair, &mut Context<'_, View<'_>>) -> R,
    ) -> Result<R, Violation> {
        let (result, actions) = self.ask(e, arrival.is_some(), f)?;
        self.answer(e, actions, arrival)?;
        Ok(result)
    }

    /// Lets a queue pair handle the early packets whose turn has come. What their actions name is the
    /// payload that was kept, and the engine says afterwards which that is.
    fn handle_early(&mut self, e: usize) -> Checked {
        loop {
            let (early, actions) = self.ask(e, true, |qp, cx| qp.on_early(cx))?;
            let held = &mut self.endpoints[e].memory.held;
            let kept = early.and_then(|early| early.buffer).map(|buffer| held.remove(&buffer).flatten());
            if kept.as_ref().is_some_and(Option::is_none) {
                return Err(Violation {
                    oracle: "safety",
                    what: format!("endpoint {e}: {early:?} holds nothing"),
                });
            }
            let kept = kept.flatten();
            let arrival = kept.as_ref().map(|kept| Arrival { psn: kept.psn, payload: &kept.payload });
            self.answer(e, actions, arrival)?;
            if early.is_none() {
                return Ok(());
            }
        }
    }

    fn ask<R>(
        &mut self,
        e: usize,
        by_peer: bool,
        f: impl FnOnce(&mut QueuePair, &mut Context<'_, View<'_>>) -> R,
    ) -> Result<(R, Actions), Violation> {
        // Only a request of a peer is refused memory: a flush takes all there are.
        let refuse = by_peer && self.mood(e, self.plan.moods.refuse, Fault::Refuse);
        let no_buffer = by_peer && self.mood(e, self.plan.moods.no_buffer, Fault::NoBuffer);
        let now = self.when(e).local;
        let mut actions = Actions::new();
        let endpoint = &mut self.endpoints[e];
        let (at, shared) = (endpoint.at, &mut self.hosts[endpoint.host].shared);
        let mut view = View { own: &mut endpoint.memory, shared, refuse, no_buffer, executed: Vec::new() };
        let counters = &mut endpoint.counters;
        let result =
            f(&mut endpoint.qp, &mut Context { now, memory: &mut view, actions: &mut actions, counters });
        for (operand, before) in view.executed {
            self.fact_at(e, Fact::Executed { at, operand, before })?;
        }
        Ok((result, actions))
    }

    fn answer(&mut self, e: usize, actions: Actions, arrival: Option<Arrival<'_>>) -> Checked {
        self.carry_out(e, actions, arrival)?;
        let at = self.endpoints[e].at;
        let side = &mut self.book.sessions[at.session].sides[at.side];
        if !side.errored && self.endpoints[e].qp.state() == QpState::Error {
            side.errored = true;
            self.fact_at(e, Fact::Errored { at })?;
        }
        Ok(())
    }

    fn carry_out(&mut self, e: usize, actions: Actions, arrival: Option<Arrival<'_>>) -> Checked {
        let at = self.endpoints[e].at;
        for action in &actions {
            let deed = driver::carry_out(&mut self.endpoints[e].memory, action, arrival)
                .map_err(|what| Violation { oracle: "safety", what: format!("{at:?} {what}") })?;
            match deed {
                Deed::Send { at: leaves, header, payload } => {
                    self.print(e, format_args!("at {leaves:?} {header}"));
                    self.fact_at(e, Fact::Sent { at, header: &header, payload: &payload })?;
                    self.send(e, leaves, &header, &payload);
                }
                Deed::Placed { psn, to, bytes } => {
                    self.fact_at(e, Fact::Placed { at, psn, to, bytes: &bytes })?
                }
                Deed::Completed { completion, buffer } => self.completed(e, &completion, &buffer)?,
                Deed::Unseen => {}
            }
        }
        Ok(())
    }

    /// Prints a line of a trace, if there is to be one.
    fn print(&self, e: usize, what: std::fmt::Arguments<'_>) {
        if self.trace {
            let End { session, side } = self.endpoints[e].at;
            println!("{:?} {session}.{side} {what}", self.now);
        }
    }

    fn completed(&mut self, e: usize, completion: &Completion, buffer: &[u8]) -> Checked {
        let at = self.endpoints[e].at;
        self.print(e, format_args!("{:?} {} {:?}", completion.queue, completion.slot, completion.status));
        self.note(&[self.now.as_nanos(), e as u64, completion.slot, completion.status as u64]);
        self.fact_at(e, Fact::Completed { at, completion, buffer })?;
        if completion.queue == Queue::Send {
            self.endings.push(completion.status);
            self.endpoints[e].completed += 1;
            if std::mem::take(&mut self.endpoints[e].waits) {
                self.after(Duration::from_nanos(200), Event::Program(e));
            }
        }
        Ok(())
    }

    fn send(&mut self, e: usize, leaves: Time, header: &Repr, payload: &[u8]) {
        let Endpoint { host: from, peer_host: to, .. } = self.endpoints[e];
        let leaves = self.hosts[from].clock.world(leaves).max(self.now);
        let mut datagram = vec![0; header.datagram_len(payload.len())];
        let headers = header.emit(&mut datagram);
        datagram[headers..headers + payload.len()].copy_from_slice(payload);
        let end = datagram.len() - icrc::LEN;
        let sum = icrc::compute(&flow(from, to), 0, &datagram[..end]);
        datagram[end..].copy_from_slice(&sum);
        let flights =
            self.links[from][to].pass(self.seed, &mut self.chaos, &mut self.totals, self.now, datagram);
        for (delay, flight) in flights {
            self.at(leaves + delay, Event::Deliver(flight));
        }
    }
}

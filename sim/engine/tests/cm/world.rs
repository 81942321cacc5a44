//! Two connection managers and a wire in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;
use std::time::Duration;

use anyverbs_engine::cm::*;
use anyverbs_engine::{Mtu, Time};
use anyverbs_wire::mad::{Attribute, Message, Packet, PortSpace, Rep, Repr, Req, ServiceId};
use anyverbs_wire::{Psn, Qpn};

/// The service that both sides listen on in most tests.
pub(crate) const SERVICE: ServiceId = ServiceId::new(PortSpace::Tcp, 7471);

/// A second, in the tests' own words.
pub(crate) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Until a message without an answer is sent again, with the default settings.
pub(crate) fn round() -> Duration {
    use anyverbs_wire::mad::timeout;
    timeout(20) + timeout(16) * 2
}

/// A small generator (splitmix64), so that a seed is a run.
#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    pub(crate) fn millis(&mut self, below: u64) -> Duration {
        Duration::from_micros(self.below(below * 1000))
    }
}

/// What the wire does to MADs: parts per thousand, and the delay's spread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) loss: u64,
    pub(crate) duplicate: u64,
    pub(crate) jitter_ms: u64,
    /// Parts per thousand that take up to three seconds, longer than any packet may live.
    pub(crate) tail: u64,
    /// Parts per thousand of answers that come once more, up to twenty seconds later.
    pub(crate) replay: u64,
}

pub(crate) struct Side {
    pub(crate) cm: ConnectionManager,
    pub(crate) address: IpAddr,
    pub(crate) events: Vec<Event>,
}

/// In flight: arrival, order, from, to, bytes.
type Flight = (Time, u64, usize, usize, Vec<u8>);
type DropIf = Box<dyn FnMut(usize, &Repr) -> bool>;

pub(crate) struct World {
    pub(crate) sides: [Side; 2],
    pub(crate) now: Time,
    /// How far the clock of each side is ahead of `now`.
    pub(crate) ahead: [Duration; 2],
    /// Sides of which nothing arrives.
    pub(crate) cut: [bool; 2],
    /// Random bits of a communication id: with few of them, ids of other times and other lives come again.
    id_bits: u32,
    /// Every event of each side in its life.
    pub(crate) heard: [Vec<Event>; 2],
    /// The transaction of the last REQ or REP in which a side called itself by an id.
    exchanges: [BTreeMap<u32, u64>; 2],
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    /// Every MAD in the order of sending: when, by whom.
    pub(crate) sent: Vec<(Time, usize, Repr)>,
    /// Loses the MADs for which it says so.
    pub(crate) drop_if: Option<DropIf>,
    wire: BinaryHeap<Reverse<Flight>>,
    sequence: u64,
}

const LATENCY: Duration = Duration::from_micros(50);

/// All bits of an id are random.
pub(crate) const ANY_ID: u32 = 32;

/// A manager whose numbers come from a seed. Transaction ids are random whatever `id_bits` is: they are all
/// that tells an id from its next use.
fn manager(config: Config, seed: u64, id_bits: u32) -> ConnectionManager {
    let mut rng = Rng(seed);
    let lost = (1 << 32) - (1_u64 << id_bits);
    ConnectionManager::new(config, Box::new(move || rng.next() & !lost))
}

pub(crate) fn config(side: usize) -> Config {
    Config { ca_guid: 0xa0 + side as u64, ..Config::default() }
}

impl World {
    pub(crate) fn new() -> World {
        World::with([config(0), config(1)], 1)
    }

    /// Two managers that listen on [`SERVICE`].
    pub(crate) fn with(configs: [Config; 2], seed: u64) -> World {
        World::with_ids(configs, seed, ANY_ID)
    }

    /// The same, with ids of few random bits.
    pub(crate) fn with_ids(configs: [Config; 2], seed: u64, id_bits: u32) -> World {
        let mut rng = Rng(seed);
        let sides = [0, 1].map(|side| Side {
            cm: manager(configs[side], rng.next(), id_bits),
            address: [10, 0, 0, side as u8 + 1].into(),
            events: Vec::new(),
        });
        let mut world = World {
            sides,
            now: Time::ZERO,
            ahead: [Duration::ZERO; 2],
            cut: [false; 2],
            id_bits,
            heard: [Vec::new(), Vec::new()],
            exchanges: [BTreeMap::new(), BTreeMap::new()],
            rng,
            faults: Faults::default(),
            sent: Vec::new(),
            drop_if: None,
            wire: BinaryHeap::new(),
            sequence: 0,
        };
        for side in 0..2 {
            world.call(side, |cm, now, actions| cm.listen(now, SERVICE, 1000, actions)).unwrap();
        }
        world
    }

    /// Calls a manager, and carries out what it asks for.
    pub(crate) fn call<R>(
        &mut self,
        side: usize,
        call: impl FnOnce(&mut ConnectionManager, Time, &mut Vec<Action>) -> R,
    ) -> R {
        let mut actions = Vec::new();
        let now = self.local(side);
        let result = call(&mut self.sides[side].cm, now, &mut actions);
        for action in actions {
            match action {
                Action::SendMad { destination, mad } => self.send(side, destination, mad),
                Action::Event(event) => {
                    self.heard[side].push(event.clone());
                    self.sides[side].events.push(event);
                }
            }
        }
        result
    }

    /// What the clock of a side shows.
    pub(crate) fn local(&self, side: usize) -> Time {
        self.now + self.ahead[side]
    }

    fn send(&mut self, from: usize, destination: IpAddr, mad: Repr) {
        self.sent.push((self.now, from, mad));
        if let Message::Req(Req { local_comm_id, .. }) | Message::Rep(Rep { local_comm_id, .. }) = mad.message
        {
            self.exchanges[from].insert(local_comm_id, mad.transaction_id);
        }
        let Some(to) = self.sides.iter().position(|side| side.address == destination) else { return };
        if self.cut[from] || self.drop_if.as_mut().is_some_and(|drop_if| drop_if(from, &mad)) {
            return;
        }
        let answer = !matches!(mad.message.attribute(), Attribute::Req | Attribute::Dreq);
        if answer && self.rng.chance(self.faults.replay) {
            self.sequence += 1;
            let arrival = self.now + self.rng.millis(20_000);
            self.wire.push(Reverse((arrival, self.sequence, from, to, mad.emit().to_vec())));
        }
        let copies = 1 + u64::from(self.rng.chance(self.faults.duplicate));
        for _ in 0..copies {
            if self.rng.chance(self.faults.loss) {
                continue;
            }
            let jitter = self.rng.millis(1 + self.faults.jitter_ms);
            // A DREQ names its connection by ids and queue pair alone. One that outlives the timewait of all
            // three ends what has them next: random ids are what makes that never happen.
            let tailed = self.id_bits == ANY_ID || mad.message.attribute() != Attribute::Dreq;
            let tail = if tailed && self.rng.chance(self.faults.tail) {
                self.rng.millis(3000)
            } else {
                Duration::ZERO
            };
            let jitter = if self.faults.jitter_ms == 0 { Duration::ZERO } else { jitter };
            self.sequence += 1;
            let arrival = self.now + LATENCY + jitter + tail;
            self.wire.push(Reverse((arrival, self.sequence, from, to, mad.emit().to_vec())));
        }
    }

    /// When something happens next by itself.
    pub(crate) fn next_event(&self) -> Option<Time> {
        let arrival = self.wire.peek().map(|Reverse(flight)| flight.0);
        let timers = (0..2).filter_map(|side| {
            let due = self.sides[side].cm.next_deadline()?.since(Time::ZERO + self.ahead[side]);
            Some(Time::ZERO + due)
        });
        arrival.into_iter().chain(timers).min()
    }

    /// Goes to the next event and handles it. False if there is none by `end`.
    pub(crate) fn step(&mut self, end: Time) -> bool {
        let Some(at) = self.next_event().filter(|at| *at <= end) else {
            return false;
        };
        self.now = self.now.max(at);
        if self.wire.peek().is_some_and(|Reverse(flight)| flight.0 <= at)
            && let Some(Reverse((_, _, from, to, bytes))) = self.wire.pop()
        {
            self.deliver(from, to, &bytes);
            return true;
        }
        for side in 0..2 {
            self.call(side, |cm, now, actions| cm.on_timer(now, actions));
        }
        true
    }

    /// A MAD arrives. What answers it in the receiver's state has to leave at once: no timer would make it good.
    fn deliver(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let (source, sent, before) =
            (self.sides[from].address, self.sent.len(), *self.sides[to].cm.counters());
        self.call(to, |cm, now, actions| cm.on_datagram(now, source, bytes, actions));
        let after = self.sides[to].cm.counters();
        let mad = Repr::parse(&Packet::new_checked(bytes).unwrap());
        let same = after.duplicates.total() > before.duplicates.total();
        let taken = same || after.handled > before.handled;
        let stands = |id| self.named(to, id) == Some(State::Established);
        let owed = match mad.message {
            Message::Dreq(_) if taken => Some(Attribute::Drep),
            Message::Rep(rep) if same && stands(rep.remote_comm_id) => Some(Attribute::Rtu),
            _ => None,
        };
        let answer = |(_, by, answer): &&(_, usize, Repr)| {
            *by == to
                && answer.transaction_id == mad.transaction_id
                && Some(answer.message.attribute()) == owed
        };
        if after.handled > before.handled {
            self.check_exchange(to, &mad);
        }
        if owed.is_some() {
            assert_eq!(self.sent[sent..].iter().filter(answer).count(), 1, "no answer to {mad}");
        }
    }

    /// What did something belongs to the exchange that the receiver is in: the last one for which it named the
    /// id that it is named by.
    fn check_exchange(&self, to: usize, mad: &Repr) {
        let named = match &mad.message {
            Message::Rep(rep) => rep.remote_comm_id,
            Message::Rtu(rtu) => rtu.remote_comm_id,
            Message::Mra(mra) => mra.remote_comm_id,
            _ => return,
        };
        let exchange = self.exchanges[to].get(&named).copied();
        assert_eq!(exchange, Some(mad.transaction_id), "of another use of its id: {mad}");
    }

    /// The state of the connection that a side knows by a communication id, if its consumer was told of it or
    /// began it.
    fn named(&self, side: usize, comm_id: u32) -> Option<State> {
        let mut ids = self.heard[side].iter().map(Event::id);
        ids.find(|id| id.comm_id() == comm_id).and_then(|id| self.state(side, id))
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until nothing happens any more.
    pub(crate) fn settle(&mut self) {
        let mut steps = 0;
        while self.step(Time::from_nanos(u64::MAX)) {
            steps += 1;
            assert!(steps < 1_000_000, "does not settle");
        }
    }

    /// Forgets what a side knew.
    pub(crate) fn restart(&mut self, side: usize, config: Config) {
        let seed = self.rng.next();
        self.sides[side].cm = manager(config, seed, self.id_bits);
        self.sides[side].events.clear();
        self.heard[side].clear();
        self.call(side, |cm, now, actions| cm.listen(now, SERVICE, 1000, actions)).unwrap();
    }

    /// The events of a side since they were taken last.
    pub(crate) fn take(&mut self, side: usize) -> Vec<Event> {
        std::mem::take(&mut self.sides[side].events)
    }

    pub(crate) fn state(&self, side: usize, id: Id) -> Option<State> {
        self.sides[side].cm.state(id)
    }

    /// How many of a message a side sent.
    pub(crate) fn count(&self, side: usize, message: Attribute) -> usize {
        self.sent.iter().filter(|(_, from, mad)| *from == side && mad.message.attribute() == message).count()
    }

    pub(crate) fn request(&self, side: usize, qpn: u32) -> Connect {
        let (source, destination) = (self.sides[side].address, self.sides[1 - side].address);
        Connect::new(source, destination, SERVICE, Qpn::new(qpn), Psn::new(qpn * 3), Mtu::B1024)
    }

    /// Side `side` asks the other one.
    pub(crate) fn connect(&mut self, side: usize, qpn: u32) -> Id {
        let connect = self.request(side, qpn);
        self.call(side, |cm, now, actions| cm.connect(now, &connect, b"hello", actions)).unwrap()
    }

    pub(crate) fn accept(&mut self, side: usize, request: &ConnectRequest, qpn: u32) -> Result<(), Error> {
        let accept = Accept::new(request, Qpn::new(qpn), Psn::new(qpn * 5));
        self.call(side, |cm, now, actions| cm.accept(now, request.id, &accept, b"welcome", actions))
    }

    pub(crate) fn establish(&mut self, side: usize, id: Id) -> Result<(), Error> {
        self.call(side, |cm, now, actions| cm.establish(now, id, b"ready", actions))
    }

    pub(crate) fn disconnect(&mut self, side: usize, id: Id) -> Result<(), Error> {
        self.call(side, |cm, now, actions| cm.disconnect(now, id, b"bye", actions))
    }

    pub(crate) fn abandon(&mut self, side: usize, id: Id) {
        self.call(side, |cm, now, actions| cm.abandon(now, id, actions)).unwrap();
    }

    /// Brings a request to the other side, which does nothing yet.
    pub(crate) fn ask(&mut self, qpn: u32) -> (Id, ConnectRequest) {
        let id = self.connect(0, qpn);
        self.run(Duration::from_millis(1));
        (id, only_request(&self.take(1)))
    }

    /// Brings the answer back to side 0, which does nothing yet.
    pub(crate) fn ask_and_accept(&mut self, qpn: u32) -> (Id, Id) {
        let (id, request) = self.ask(qpn);
        self.accept(1, &request, qpn + 100).unwrap();
        self.run(Duration::from_millis(1));
        assert!(matches!(self.take(0)[..], [Event::ConnectResponse(_)]));
        (id, request.id)
    }

    /// A connection that stands: side 0's id and side 1's.
    pub(crate) fn connected(&mut self, qpn: u32) -> (Id, Id) {
        let (active, passive) = self.ask_and_accept(qpn);
        self.establish(0, active).unwrap();
        self.run(Duration::from_millis(1));
        assert!(matches!(self.take(1)[..], [Event::Established { .. }]));
        (active, passive)
    }

    /// Nothing is left but listeners, and every message received was counted once.
    pub(crate) fn assert_clean(&self) {
        for side in &self.sides {
            let usage = side.cm.usage();
            assert_eq!(usage, Usage { listeners: usage.listeners, ..Usage::default() });
            assert_eq!(side.cm.next_deadline(), None);
        }
        self.assert_counted();
    }

    pub(crate) fn assert_counted(&self) {
        for side in &self.sides {
            let counters = side.cm.counters();
            let outcomes = counters.handled + counters.duplicates.total() + counters.dropped();
            assert_eq!(counters.received.total(), outcomes, "{counters:?}");
        }
    }
}

/// The one event there is, a request.
pub(crate) fn only_request(events: &[Event]) -> ConnectRequest {
    match events {
        [Event::ConnectRequest(request)] => *request,
        other => panic!("not a request: {other:?}"),
    }
}

/// Loses the first `n` messages of a kind that a side sends.
pub(crate) fn lose(side: usize, message: Attribute, mut n: usize) -> Option<DropIf> {
    Some(Box::new(move |from, mad| {
        let hit = from == side && mad.message.attribute() == message && n > 0;
        n -= usize::from(hit);
        hit
    }))
}

/// The last message of a kind that was sent.
pub(crate) fn last(world: &World, message: Attribute) -> Repr {
    world.sent.iter().rev().find(|(_, _, mad)| mad.message.attribute() == message).unwrap().2
}

/// A MAD as its receiver reads it from the wire.
pub(crate) fn reread(mad: &Repr) -> Repr {
    Repr::parse(&Packet::new_checked(mad.emit()).unwrap())
}

/// The message with other contents.
pub(crate) fn altered(mad: &Repr, alter: impl FnOnce(&mut Message)) -> Repr {
    let mut mad = *mad;
    alter(&mut mad.message);
    mad
}

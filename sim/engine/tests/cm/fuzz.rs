//! Inputs that are programs: each takes two managers to a state, makes hostile MADs of those that were sent
//! there, and delivers them. Nothing panics, no limit is exceeded, every MAD is counted once, and when all is
//! quiet nothing is left.
//!
//! An input is bytes, and any bytes are an input: the scene, the MAD to begin with, then steps of three bytes
//! each. It names no id, so that it means the same whatever the ids are. `corpus/cm/` has inputs that reach what
//! no other one there does, and each run begins with them.
//!
//! `ANYVERBS_FUZZ_SECONDS` goes on for so long, with other inputs each time; `ANYVERBS_FUZZ_INPUT` runs one, in
//! hexadecimal digits. `ANYVERBS_FUZZ_KEEP` names a directory for inputs that reach something new.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_wire::mad::{
    Attribute, HEADER_LEN, LEN, Lap, Message, Path as MadPath, RejectReason, Repr, ServiceId,
};
use anyverbs_wire::{Psn, Qpn};

/// Inputs of a quick run.
const QUICK: u64 = 6000;
const STEPS_MAX: usize = 24;
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/cm");
const LIMITS: Limits = Limits {
    listeners: 2,
    connections: 6,
    connections_per_source: 5,
    resolutions: 3,
    requests: 4,
    requests_per_source: 3,
    held: 2,
    answers: 3,
    rate: 100,
    burst: 20,
};

/// Brings side 0 and side 1 to a state; the last is the one that each scene is for.
fn scene(n: u8) -> World {
    let mut world = World::with([0, 1].map(|side| Config { limits: LIMITS, ..config(side) }), 7);
    match n % SCENES {
        0 => {}
        1 => {
            world.ask(50);
        }
        2 => {
            world.ask(50);
            world.run(seconds(3));
        }
        3 => {
            let (_, request) = world.ask(50);
            world.cut[1] = true;
            world.accept(1, &request, 60).unwrap();
            world.cut[1] = false;
        }
        4 => {
            world.ask_and_accept(50);
        }
        5 => {
            world.ask_and_accept(50);
            world.run(seconds(3));
        }
        6 => {
            world.connected(50);
        }
        7 => {
            let (active, _) = world.connected(50);
            world.cut[0] = true;
            world.disconnect(0, active).unwrap();
            world.cut[0] = false;
        }
        8 => {
            let (active, _) = world.connected(50);
            world.disconnect(0, active).unwrap();
            world.run(Duration::from_millis(1));
        }
        9 => {
            let (_, request) = world.ask(50);
            let reason = RejectReason::CONSUMER;
            world.call(1, |cm, now, out| cm.reject(now, request.id, reason, b"", b"", out)).unwrap();
            world.run(Duration::from_millis(1));
        }
        10 => {
            // Held, since nobody listens.
            let connect = Connect { service_id: ServiceId(9), ..world.request(0, 50) };
            world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
            world.run(Duration::from_millis(1));
        }
        11 => {
            let ask = SidrAsk {
                destination: world.sides[1].address,
                service_id: SERVICE,
                pkey: 0xffff,
                ip_header: None,
            };
            world.call(0, |cm, now, out| cm.sidr_request(now, &ask, b"", out)).unwrap();
            world.run(Duration::from_millis(1));
        }
        12 => {
            let (_, passive) = world.ask_and_accept(50);
            world.abandon(1, passive);
        }
        _ => {
            let terms = Terms { transport: Transport::Xrc, ..world.request(0, 50).terms };
            let connect = Connect { terms, ..world.request(0, 50) };
            world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
            world.run(Duration::from_millis(1));
        }
    }
    world
}

const SCENES: u8 = 14;

/// Where fields begin, and how long they are.
const FIELDS: [(usize, usize); 14] = [
    (4, 2),
    (8, 8),
    (16, 2),
    (20, 4),
    (HEADER_LEN, 4),
    (HEADER_LEN + 4, 4),
    (HEADER_LEN + 8, 4),
    (HEADER_LEN + 8, 8),
    (HEADER_LEN + 12, 3),
    (HEADER_LEN + 16, 8),
    (HEADER_LEN + 32, 3),
    (HEADER_LEN + 43, 1),
    (HEADER_LEN + 47, 4),
    (HEADER_LEN + 51, 1),
];

/// A run of an input.
struct Fuzz {
    world: World,
    mad: Vec<u8>,
    source: IpAddr,
    to: usize,
    qpn: u32,
    /// What was reached: scene, message, and the counter that it ended in.
    reached: BTreeSet<(u8, u16, &'static str)>,
    scene: u8,
}

impl Fuzz {
    fn run(input: &[u8]) -> BTreeSet<(u8, u16, &'static str)> {
        let (first, base) = (input.first().copied().unwrap_or(0), input.get(1).copied().unwrap_or(0));
        let world = scene(first);
        let source = world.sides[0].address;
        let scene = first % SCENES;
        let mut fuzz =
            Fuzz { world, mad: vec![0; LEN], source, to: 1, qpn: 200, reached: BTreeSet::new(), scene };
        fuzz.take(base);
        for step in input.get(2..).unwrap_or(&[]).chunks_exact(3).take(STEPS_MAX) {
            fuzz.step(step[0], step[1], step[2]);
        }
        fuzz.deliver();
        fuzz.finish();
        fuzz.reached
    }

    /// Begins with a MAD that was sent, for who it was sent to; or with a LAP, which nobody sends.
    fn take(&mut self, n: u8) {
        let sent = &self.world.sent;
        let (from, mad) = match sent.get(usize::from(n) % (sent.len() + 1)) {
            Some((_, from, mad)) => (*from, *mad),
            None => self.lap(),
        };
        self.source = self.world.sides[from].address;
        self.to = 1 - from;
        self.mad = mad.emit().to_vec();
    }

    /// A LAP from who received the last REP.
    fn lap(&self) -> (usize, Repr) {
        let rep = |(_, from, mad): &(_, usize, Repr)| match mad.message {
            Message::Rep(rep) => Some((1 - from, rep.remote_comm_id, rep.local_comm_id, rep.qpn)),
            _ => None,
        };
        let last = self.world.sent.iter().rev().find_map(rep);
        let (from, local_comm_id, remote_comm_id, remote_qpn) = last.unwrap_or((0, 1, 2, Qpn::new(3)));
        let lap = Lap {
            local_comm_id,
            remote_comm_id,
            remote_qpn,
            remote_response_timeout: 20,
            path: MadPath::NONE,
            private_data: [0; 168],
        };
        (from, Repr { transaction_id: 1, status: 0, message: Message::Lap(lap) })
    }

    fn step(&mut self, op: u8, x: u8, y: u8) {
        let at = usize::from(x);
        match op % 16 {
            0 => self.take(x),
            1 | 2 => self.deliver(),
            3 => self.set(at, &[y]),
            4 => {
                let byte = self.mad.get(at).copied().unwrap_or(0);
                self.set(at, &[byte ^ 1 << (y % 8)]);
            }
            5 => self.set(16, &(0x10 + u16::from(x % 12)).to_be_bytes()),
            6 => {
                // The sender's id where the receiver's should be.
                if let Some(ids) = self.mad.get_mut(HEADER_LEN..HEADER_LEN + 8) {
                    ids.rotate_left(4);
                }
            }
            7 => {
                let (at, len) = FIELDS[at % FIELDS.len()];
                self.set(at, &[[0, 0xff, 0x80, 0x7f][usize::from(y % 4)]; 8][..len]);
            }
            8 => {
                // A field of another MAD.
                let (at, len) = FIELDS[at % FIELDS.len()];
                let other = self.world.sent.get(usize::from(y)).map(|(_, _, mad)| mad.emit());
                self.set(at, &other.unwrap_or([y; LEN])[at..at + len]);
            }
            9 => self.mad.resize([0, 1, 24, 255, 257, 300, LEN, at][at % 8], 0),
            10 => {
                let strangers = [[192, 0, 2, y].into(), self.world.sides[self.to].address];
                self.source = strangers[at % 2];
            }
            11 => self.to = 1 - self.to,
            12 => self.world.run(Duration::from_millis(u64::from(y) * u64::from(x % 40))),
            13 => {
                let side = at % 2;
                self.world.ahead[side] += Duration::from_millis(u64::from(y) * 100);
                self.world.run(Duration::ZERO);
            }
            14 => self.call(x, y),
            _ => {
                // The id by which the receiver knows something.
                let known = self.world.heard[self.to].iter().map(|event| event.id().comm_id()).nth(at % 4);
                self.set(HEADER_LEN + 4, &known.unwrap_or(0).to_be_bytes());
            }
        }
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.mad.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn deliver(&mut self) {
        let (source, to, mad) = (self.source, self.to, self.mad.clone());
        let counts = |fuzz: &Fuzz| fuzz.world.sides[to].cm.counters().iter().collect::<Vec<_>>();
        let before = counts(self);
        self.world.call(to, |cm, now, out| cm.on_datagram(now, source, &mad, out));
        let message = mad.get(16..18).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
        let message = if (0x10..=0x1a).contains(&message) { message } else { 0 };
        for ((name, was), (_, is)) in before.into_iter().zip(counts(self)) {
            if is > was && !name.contains("_msgs/") {
                self.reached.insert((self.scene, message, name));
            }
        }
        self.check_limits();
    }

    /// The consumer does something, with no regard for states.
    fn call(&mut self, x: u8, y: u8) {
        let side = usize::from(x % 2);
        self.qpn += 1;
        let events = self.world.heard[side].clone();
        let Some(event) = events.get(usize::from(x / 2) % events.len().max(1)) else {
            let connect = self.world.request(side, self.qpn);
            let _ = self.world.call(side, |cm, now, out| cm.connect(now, &connect, b"", out));
            return;
        };
        let id = event.id();
        let _ = match (y % 8, event) {
            (0 | 1, Event::ConnectRequest(request)) => self.world.accept(side, request, self.qpn),
            (2, _) => self.world.establish(side, id),
            (3, _) => self.world.disconnect(side, id),
            (4, _) => {
                let reason = RejectReason(u16::from(y));
                self.world.call(side, |cm, now, out| cm.reject(now, id, reason, b"i", b"p", out))
            }
            (5, _) => self.world.call(side, |cm, now, out| cm.abandon(now, id, out)),
            (6, Event::ConnectRequest(_)) => {
                let _ = self.world.call(side, |cm, _, _| cm.unlisten(SERVICE));
                self.world.call(side, |cm, now, out| cm.listen(now, ServiceId(9), 1, out))
            }
            _ => {
                let qpn = Qpn::new(self.qpn - u32::from(y / 8));
                self.world.call(side, |cm, now, out| cm.communication_established(now, qpn, out));
                let (from, to) = (self.world.sides[side].address, self.world.sides[1 - side].address);
                let connect = Connect::new(from, to, SERVICE, qpn, Psn::new(0), anyverbs_engine::Mtu::B256);
                self.world.call(side, |cm, now, out| cm.connect(now, &connect, &[y; 9], out)).map(|_| ())
            }
        };
        self.check_limits();
    }

    fn check_limits(&self) {
        for side in &self.world.sides {
            let usage = side.cm.usage();
            assert!(
                usage.listeners <= LIMITS.listeners && usage.connections <= LIMITS.connections,
                "{usage:?}"
            );
            assert!(usage.resolutions <= LIMITS.resolutions && usage.pending <= LIMITS.requests, "{usage:?}");
            assert!(usage.held <= LIMITS.held && usage.answers <= LIMITS.answers, "{usage:?}");
            assert!(usage.sources <= usage.pending, "{usage:?}");
        }
    }

    /// Left alone, what does not stand ends; what stands is ended.
    fn finish(&mut self) {
        self.world.settle();
        for side in 0..2 {
            for event in self.world.heard[side].clone() {
                let _ = self.world.disconnect(side, event.id());
            }
        }
        self.world.settle();
        self.world.assert_clean();
    }
}

fn hexadecimal(input: &[u8]) -> String {
    input.iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// Runs an input. If it fails, says how to run it again.
fn run(input: &[u8]) -> BTreeSet<(u8, u16, &'static str)> {
    std::panic::catch_unwind(|| Fuzz::run(input)).unwrap_or_else(|panic| {
        eprintln!(
            "replay with\nANYVERBS_FUZZ_INPUT={} cargo test -p anyverbs-engine --test cm no_input_breaks",
            hexadecimal(input)
        );
        std::panic::resume_unwind(panic)
    })
}

fn corpus(directory: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Another input: mostly one that is known, a little changed.
fn next_input(rng: &mut Rng, known: &[Vec<u8>]) -> Vec<u8> {
    let mut input = match known.len() as u64 {
        len if len > 0 && rng.chance(600) => known[rng.below(len) as usize].clone(),
        _ => (0..2 + 3 * rng.below(12)).map(|_| rng.next() as u8).collect(),
    };
    for _ in 0..rng.below(4) {
        if input.len() < 2 + 3 * STEPS_MAX && rng.chance(400) {
            input.extend([rng.next() as u8, rng.next() as u8, rng.next() as u8]);
        }
        let at = rng.below(input.len() as u64) as usize;
        input[at] = rng.next() as u8;
    }
    input
}

#[test]
fn no_input_breaks_a_connection_manager() {
    if let Ok(digits) = std::env::var("ANYVERBS_FUZZ_INPUT") {
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let input: Vec<_> = (0..digits.len() / 2).map(|nth| byte(2 * nth)).collect();
        eprintln!("{:?}", run(&input));
        return;
    }
    let time = std::env::var("ANYVERBS_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let keep = std::env::var_os("ANYVERBS_FUZZ_KEEP");
    let mut known = corpus(Path::new(CORPUS));
    let mut reached = BTreeSet::new();
    for input in &known {
        reached.extend(run(input));
    }
    // A quick run is always the same.
    let seed = match time {
        Some(_) => SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64),
        None => 1,
    };
    let (mut rng, began, mut done) = (Rng(seed), Instant::now(), 0);
    while time.map_or(done < QUICK, |time| began.elapsed() < Duration::from_secs(time)) {
        let input = next_input(&mut rng, &known);
        let new: BTreeSet<_> = run(&input).difference(&reached).copied().collect();
        if !new.is_empty() {
            if let Some(directory) = &keep {
                let name = format!("{:04}-{}", new.len(), hexadecimal(&input[..2]));
                std::fs::write(Path::new(directory).join(format!("{name}-{done}")), &input).unwrap();
            }
            reached.extend(new);
            known.push(input);
        }
        done += 1;
    }
    eprintln!("{done} inputs, {} of them kept, reached {}", known.len(), reached.len());
    // Inputs that are dropped at the door would prove nothing.
    let counters: BTreeSet<_> = reached.iter().map(|(_, _, counter)| *counter).collect();
    for counter in [
        "cm_rx_handled",
        "cm_rx_malformed",
        "cm_rx_invalid",
        "cm_rx_unknown_id",
        "cm_rx_wrong_source",
        "cm_rx_wrong_transaction",
        "cm_rx_out_of_state",
        "cm_rx_no_listener",
        "cm_rx_stale",
        "cm_rx_unacceptable",
    ] {
        assert!(counters.contains(counter), "{counter} was never reached: {counters:?}");
    }
    assert!(reached.len() > 300, "{}", reached.len());
    let laps = (Attribute::Lap.value(), "cm_rx_unacceptable");
    assert!(reached.iter().any(|(_, message, counter)| (*message, *counter) == laps));
}

#[test]
fn the_corpus_is_small() {
    let inputs = corpus(Path::new(CORPUS));
    assert!((10..=50).contains(&inputs.len()) && inputs.iter().all(|input| input.len() < 300));
}

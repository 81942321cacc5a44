//! What a seed stands for: hosts, limits, faults and programs. Each seed enables a random few of the
//! faults (swarm testing): all of them at once would hide what one of them shows.

use std::num::NonZeroU64;
use std::time::Duration;

use anyverbs_engine::congestion::{Control, DcqcnParameters, DelayParameters};
use anyverbs_engine::{Config, Mtu, Op, ReadyToReceive, ReadyToSend, Recovery, Status, Time};
use anyverbs_wire::{Psn, Qpn};

use crate::book::{Answer, End, PLACES, READABLE_LEN, Session, Side, WORDS, Wr, operand, readable_word};
use crate::network::Rates;
use crate::rng::{Rng, Stream};

/// Something that happens to a host, a link or an end at a planned time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Incident {
    Partition { from: usize, to: usize, length: Duration },
    Forget { end: End },
    Restart { host: usize, back_after: Duration },
    ClockJump { host: usize, by: Duration },
    Deregister { end: End },
}

/// The faults that are possible in a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moods {
    /// How often a host is too busy to send, in parts per thousand.
    pub(crate) busy: u64,
    /// How often a host has no memory for a receive.
    pub(crate) refuse: u64,
    /// How often it has no buffer for an early packet.
    pub(crate) no_buffer: u64,
    /// Receives are posted late.
    pub(crate) late_receives: bool,
    /// Programs make mistakes.
    pub(crate) mistakes: bool,
}

/// A pair of queue pairs, and between which hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wiring {
    pub(crate) hosts: [usize; 2],
    pub(crate) qpns: [Qpn; 2],
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) hosts: usize,
    pub(crate) wirings: Vec<Wiring>,
    pub(crate) rates: Vec<Vec<Rates>>,
    pub(crate) moods: Moods,
    /// How much faster each host's clock runs, in parts per million.
    pub(crate) drifts: Vec<i64>,
    pub(crate) incidents: Vec<(Time, Incident)>,
    pub(crate) heal_at: Time,
}

fn micros(n: u64) -> Duration {
    Duration::from_micros(n)
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Plan {
        let mut rng = Rng::stream(seed, Stream::Plan, 0);
        let hosts = 2 + rng.below(3) as usize;
        let pairs = 1 + rng.below(4);
        let wirings: Vec<Wiring> = (0..pairs).map(|pair| wiring(&mut rng, hosts, pair)).collect();
        // A few kinds of faults for the whole run; how much of each differs from link to link.
        let mut kinds = [false; 9];
        kinds.iter_mut().for_each(|kind| *kind = rng.chance(300));
        // Forgeries end what can be expected of a session, so they are rarer.
        kinds[6] = rng.chance(80);
        let rates = (0..hosts).map(|_| (0..hosts).map(|_| rates(&mut rng, &kinds)).collect()).collect();
        let moods = Moods {
            busy: if rng.chance(300) { rng.pick(&[100, 500, 900]) } else { 0 },
            refuse: if rng.chance(200) { rng.pick(&[30, 200]) } else { 0 },
            no_buffer: if rng.chance(200) { rng.pick(&[30, 300]) } else { 0 },
            late_receives: rng.chance(300),
            mistakes: rng.chance(100),
        };
        let drifts =
            (0..hosts).map(|_| if rng.chance(300) { rng.below(200_001) as i64 - 100_000 } else { 0 });
        let drifts = drifts.collect();
        let heal_at = Time::from_nanos(rng.pick(&[1_000_000, 5_000_000, 20_000_000]));
        let count = if rng.chance(400) { 1 + rng.below(3) } else { 0 };
        let mut incidents = Vec::new();
        for _ in 0..count {
            let early = rng.pick(&[1, 4, 20]);
            let at = Time::from_nanos(10_000 + rng.below(heal_at.as_nanos() / early));
            incidents.push((at, incident(&mut rng, hosts, wirings.len())));
        }
        Plan { hosts, wirings, rates, moods, drifts, incidents, heal_at }
    }
}

fn wiring(rng: &mut Rng, hosts: usize, pair: u64) -> Wiring {
    let from = rng.below(hosts as u64) as usize;
    let to = (from + 1 + rng.below(hosts as u64 - 1) as usize) % hosts;
    let qpns = [0x100 + 16 * pair, 0x108 + 16 * pair].map(|qpn| Qpn::new((qpn + rng.below(8)) as u32));
    Wiring { hosts: [from, to], qpns }
}

fn rates(rng: &mut Rng, kinds: &[bool; 9]) -> Rates {
    let mut rate = |kind: usize, levels: &[u64]| if kinds[kind] { rng.pick(levels) } else { 0 };
    Rates {
        loss: rate(0, &[0, 10, 50, 150, 400]),
        burst: rate(1, &[0, 5, 30]),
        duplicate: rate(2, &[0, 20, 100, 500]),
        reorder: rate(3, &[0, 30, 200, 500]),
        tail: rate(4, &[0, 10, 50, 150]),
        flip: rate(5, &[0, 10, 50]),
        repaired: rate(6, &[2, 20, 100]),
        truncate: rate(7, &[0, 10, 50]),
        mark: rate(8, &[0, 50, 500]),
    }
}

fn incident(rng: &mut Rng, hosts: usize, pairs: usize) -> Incident {
    let host = rng.below(hosts as u64) as usize;
    let end = End { session: rng.below(pairs as u64) as usize, side: rng.below(2) as usize };
    match rng.below(5) {
        0 => {
            let to = (host + 1 + rng.below(hosts as u64 - 1) as usize) % hosts;
            Incident::Partition { from: host, to, length: micros(100 + rng.below(30_000)) }
        }
        1 => Incident::Forget { end },
        2 => Incident::Restart { host, back_after: micros(20 + rng.below(1000)) },
        3 => Incident::ClockJump { host, by: micros(100 << rng.below(20)) },
        _ => Incident::Deregister { end },
    }
}

/// The rate of a link, in bytes a second: a packet takes a microsecond.
const LINE_RATE: NonZeroU64 = NonZeroU64::new(1_000_000_000).expect("not zero");

/// How a queue pair of a session is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) rtr: ReadyToReceive,
    pub(crate) rts: ReadyToSend,
    pub(crate) rkey: u32,
    pub(crate) base: u64,
    pub(crate) region_len: usize,
    /// Receives that the peer's program needs, and how long each of them is.
    pub(crate) receives: u64,
    pub(crate) receive_len: u32,
    /// Buffers for early packets.
    pub(crate) buffers: usize,
}

/// The key of the word that all sessions of a host share.
pub(crate) const SHARED_RKEY: u32 = 0x5a5a_0001;
pub(crate) const SHARED_VA: u64 = 0x4000;

/// Draws a session: limits, first PSNs and programs. `old` are the first PSNs of the session that it
/// takes the place of.
///
/// The new PSNs are far from the old ones, as random ones nearly always are: nothing in the protocol tells
/// a late packet of an earlier incarnation apart whose PSN happens to be the expected one. (A connection
/// manager waits before it uses a queue pair number again.)
pub(crate) fn session(
    seed: u64,
    index: usize,
    wiring: &Wiring,
    moods: &Moods,
    old: Option<[Psn; 2]>,
) -> (Session, [Setup; 2]) {
    let mut rng = Rng::stream(seed, Stream::Workload(0), index as u64);
    let mtu = rng.pick(&[Mtu::B256, Mtu::B256, Mtu::B256, Mtu::B512, Mtu::B1024]);
    let psns = [0, 1].map(|side| match old {
        Some(old) => old[side].add(rng.pick(&[1, 7]) << 20).add(rng.below(1 << 20) as u32),
        None => Psn::new((0x100_0000 - rng.below(64)) as u32),
    });
    let rd_atomics = [0, 1].map(|_| rng.pick(&[1, 1, 2, 4, 16u8]));
    let receive_len = 9 * mtu.bytes() + 9;
    let keys = [0, 1].map(|side| ((rng.next() as u32) & !1) | side);
    let buffers = [0, 1].map(|_| rng.pick(&[0, 1, 4, 64, 256]));
    let bases = [0, 1].map(|_| 0x10_0000 * (1 + rng.below(1 << 20)) + 64 * rng.below(64));
    let mut sides = Vec::new();
    let mut setups = Vec::new();
    let mut lens = [0; 2];
    for side in 0..2 {
        let end = End { session: index, side };
        let (timeout, max_rd_atomic) = (rng.pick(&[9, 10, 12u8]), rd_atomics[1 - side]);
        let rts = ReadyToSend {
            sq_psn: psns[side],
            max_rd_atomic: 1 + rng.below(u64::from(max_rd_atomic)) as u8,
            retry_cnt: rng.pick(&[1, 3, 7, 7]),
            rnr_retry: rng.pick(&[0, 1, 6, 7, 7, 7]),
            timeout,
        };
        let config = Config {
            max_send_wr: rng.pick(&[1, 2, 4, 16, 64]),
            window: rng.pick(&[1, 2, 3, 4, 8, 16, 64, 256]),
            reorder: rng.pick(&[0, 1, 2, 8, 32, 256, 256]),
            recovery: rng.pick(&[Recovery::GoBackN, Recovery::Selective]),
            credits: rng.chance(300),
            bytes_per_second: NonZeroU64::new(rng.pick(&[0, 0, 0, 50_000_000])),
            congestion: match rng.below(6) {
                0 => Control::Dcqcn(DcqcnParameters::new(LINE_RATE)),
                1 => Control::Delay(DelayParameters::new(Duration::from_micros(30))),
                _ => Control::Static,
            },
            ..Config::default()
        };
        let rtr = ReadyToReceive {
            dest_qpn: wiring.qpns[1 - side],
            rq_psn: psns[1 - side],
            path_mtu: mtu,
            max_dest_rd_atomic: rd_atomics[side],
            min_rnr_timer: rng.pick(&[1, 3, 8, 12]),
        };
        let program = program(seed, end, mtu, keys[1 - side], bases[1 - side], receive_len, moods);
        lens[1 - side] = program.region_len;
        sides.push(Side {
            sq_psn: psns[side],
            retry_cnt: rts.retry_cnt,
            rnr_retry: rts.rnr_retry,
            max_rd_atomic: rts.max_rd_atomic,
            timeout: Duration::from_nanos(4096 << timeout),
            wrs: program.wrs,
            posted: 0,
            version: 0,
            dead: false,
            closed: false,
            errored: false,
            deregistered: false,
        });
        setups.push((config, rtr, rts, program.messages));
    }
    let setups = [0, 1].map(|side| {
        let (config, rtr, rts, _) = setups[side];
        let receives = setups[1 - side].3;
        Setup {
            config,
            rtr,
            rts,
            rkey: keys[side],
            base: bases[side],
            region_len: lens[side],
            receives,
            receive_len,
            buffers: buffers[side],
        }
    });
    let sides = sides.try_into().expect("two sides");
    (Session { mtu, sides, hostile: false }, setups)
}

struct Program {
    wrs: Vec<Wr>,
    /// How large the peer's region has to be.
    region_len: usize,
    messages: u64,
}

/// Draws the program of one end, and works out what each of its requests must do: a reliable connection
/// executes them one after the other, each once.
fn program(seed: u64, end: End, mtu: Mtu, rkey: u32, base: u64, receive_len: u32, moods: &Moods) -> Program {
    let mut rng = Rng::stream(seed, Stream::Workload(1), end.id() as u64);
    let count = rng.pick(&[0, 1, 4, 12, 24]);
    let mistake = (moods.mistakes && rng.chance(500)).then(|| rng.below(count.max(1)));
    let mut words = [0u64; 4];
    let mut region_len = PLACES;
    let (mut messages, mut next) = (0, 0);
    let mut wrs: Vec<Wr> = Vec::new();
    for index in 0..count {
        let bytes = mtu.bytes();
        let mut len = rng.pick(&[0, 1, 7, bytes - 1, bytes, bytes + 1, 3 * bytes, 5 * bytes + 3, 9 * bytes]);
        let mut place = 0;
        let mut answer = Answer::Nothing;
        let imm = rng.chance(400).then_some(index as u32 + 1000);
        let index = index as usize;
        let kind = rng.below(9);
        let op = match kind {
            0..3 => Op::Send { imm },
            3..5 => {
                place = region_len + rng.below(16) as usize;
                region_len = place + len as usize + 16;
                Op::Write { va: base + place as u64, rkey, imm }
            }
            5 => {
                let written = wrs.iter().rposition(|wr| matches!(wr.op, Op::Write { .. }));
                let (of, at) = match written.filter(|_| rng.chance(500)) {
                    Some(of) => (Answer::Written(of), wrs[of].place),
                    None => {
                        let at = 8 * rng.below(16) as usize;
                        (Answer::Versions(at), crate::book::READABLE + at)
                    }
                };
                len = match of {
                    Answer::Written(of) => wrs[of].len,
                    _ => (len * rng.pick(&[1, 4])).min(READABLE_LEN as u32 - 128),
                };
                answer = of;
                Op::Read { va: base + at as u64, rkey }
            }
            6 => {
                (len, answer) = (8, Answer::Shared);
                Op::FetchAdd { va: SHARED_VA, rkey: SHARED_RKEY, add: operand(end, index) }
            }
            _ => {
                let word = rng.below(4) as usize;
                (len, answer) = (8, Answer::Value(words[word]));
                let va = base + (WORDS + 8 * word) as u64;
                if kind == 7 {
                    let add = operand(end, index);
                    words[word] = words[word].wrapping_add(add);
                    Op::FetchAdd { va, rkey, add }
                } else {
                    let swap = operand(end, index);
                    let compare = if rng.chance(700) { words[word] } else { !words[word] };
                    words[word] = if compare == words[word] { swap } else { words[word] };
                    Op::CompareSwap { va, rkey, compare, swap }
                }
            }
        };
        let fails = (mistake == Some(index as u64)).then(|| spoil(op, &mut len, receive_len)).flatten();
        let op = fails.map_or(op, |(spoilt, _)| spoilt);
        let takes_receive = matches!(op, Op::Send { .. } | Op::Write { imm: Some(_), .. });
        let packets = u64::from(mtu.packets(len));
        wrs.push(Wr {
            op,
            len,
            signaled: rng.chance(600),
            solicited: rng.chance(100),
            fence: rng.chance(150),
            first: next,
            packets,
            message: takes_receive.then_some(messages),
            place,
            answer,
            fails: fails.map(|(_, status)| status),
            version: 0,
            posted_at: Time::ZERO,
        });
        next += packets;
        messages += u64::from(takes_receive);
    }
    Program { wrs, region_len: region_len + 64, messages }
}

/// Turns an operation into one that the peer has to refuse, if there is a way.
fn spoil(op: Op, len: &mut u32, receive_len: u32) -> Option<(Op, Status)> {
    match op {
        Op::Send { imm } => {
            *len = receive_len + 1;
            Some((Op::Send { imm }, Status::RemoteInvalidRequest))
        }
        Op::Write { va, rkey, imm } if *len > 0 => {
            Some((Op::Write { va, rkey: rkey ^ 0x100, imm }, Status::RemoteAccessError))
        }
        Op::Read { va, rkey } if *len > 0 => {
            Some((Op::Read { va: va + (1 << 32), rkey }, Status::RemoteAccessError))
        }
        Op::FetchAdd { va, rkey, add } => {
            Some((Op::FetchAdd { va: va + 4, rkey, add }, Status::RemoteInvalidRequest))
        }
        _ => None,
    }
}

/// The readable area at a version.
pub(crate) fn readable(version: u32) -> impl Iterator<Item = u8> {
    (0..READABLE_LEN / 8).flat_map(move |index| readable_word(version, index))
}

//! What a packet of 4 KiB costs in the engine, one side at a time.
//!
//! A pair of queue pairs is run once, and what one of them is told is recorded; then a new queue pair is told
//! the same, which is all that the measured part does. `ci/engine-cost` counts its instructions:
//!
//! ```text
//! cargo bench -p anyverbs-engine --bench cost                      nanoseconds per packet, for people
//! cost SCENARIO PACKETS                                            replays once, for `ci/engine-cost`
//! ```

#[path = "../tests/lean/mod.rs"]
mod lean;

use std::env;
use std::process::ExitCode;
use std::time::Instant;

use anyverbs_engine::{Action, Config, Mtu, Op, Time};
use lean::{Input, Pair, Side, Span};

/// Bytes of a message.
const MESSAGE: u32 = 1 << 20;

/// Messages that are recorded, however few packets are replayed, so that the recording costs the same.
const MESSAGES: u64 = 64;

/// Replays for a figure in nanoseconds, of which the fastest counts.
const ROUNDS: u32 = 20;

const WRITE: Op = Op::Write { va: 0, rkey: 7, imm: None };
const SEND: Op = Op::Send { imm: None };
const READ: Op = Op::Read { va: 0, rkey: 7 };

/// What is measured: its name, what side 0 requests, and the side whose cost counts.
const SCENARIOS: [(&str, Op, usize); 6] = [
    ("write-sender", WRITE, 0),
    ("write-receiver", WRITE, 1),
    ("send-sender", SEND, 0),
    ("send-receiver", SEND, 1),
    ("read-requester", READ, 0),
    ("read-responder", READ, 1),
];

/// One thing that the recorded side was told.
struct Event {
    now: Time,
    input: Input,
    /// Packets with payload that it has sent or received by then.
    packets: u64,
    /// Actions that it has asked for by then.
    actions: usize,
}

fn record(op: Op, recorded: usize) -> Vec<Event> {
    let mut pair = Pair::new(Config::default(), Mtu::B4096);
    let mut events: Vec<Event> = Vec::new();
    let carries = |action: &Action<Span>| matches!(action, Action::Transmit(it) if !it.payload.is_empty());
    pair.run(MESSAGES, op, MESSAGE, |side, now, input, done| {
        if side == recorded {
            let received = matches!(input, Input::Packet { payload: 1.., .. });
            let sent = done.iter().filter(|action| carries(action)).count();
            let (packets, actions) = events.last().map_or((0, 0), |event| (event.packets, event.actions));
            let packets = packets + u64::from(received) + sent as u64;
            events.push(Event { now, input: *input, packets, actions: actions + done.len() });
        }
    });
    assert_eq!(pair.lost, 0);
    for side in &pair.sides {
        let counters = &side.counters;
        assert_eq!((counters.completer_retry_err, counters.local_ack_timeout_err), (0, 0), "sent again");
    }
    events
}

/// All that is measured. Returns how many actions the queue pair asked for.
#[inline(never)]
fn replay(side: &mut Side, events: &[Event]) -> usize {
    let mut actions = 0;
    for event in events {
        side.feed(event.now, &event.input);
        actions += side.actions.len();
    }
    actions
}

/// The first events, with `packets` packets or a few more, and how many exactly.
fn cut(events: &[Event], packets: u64) -> Option<(&[Event], u64)> {
    let last = events.partition_point(|event| event.packets < packets);
    events.get(last).map(|event| (&events[..=last], event.packets))
}

/// Replays to a new queue pair, which has to ask for what the recorded one asked for.
fn replay_to_new(events: &[Event], side: usize) {
    let actions = replay(&mut Side::new(side, Config::default(), Mtu::B4096), events);
    assert_eq!(Some(actions), events.last().map(|event| event.actions), "the replay took another course");
}

fn nanoseconds(events: &[Event], side: usize) -> u128 {
    let time = |_| {
        let start = Instant::now();
        replay_to_new(events, side);
        start.elapsed().as_nanos()
    };
    (0..ROUNDS).map(time).min().unwrap_or_default()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments[..] {
        [] => {
            for (name, op, side) in SCENARIOS {
                let events = record(op, side);
                let packets = events.last().map_or(1, |event| event.packets);
                println!("{name:<16} {:>4} ns per packet", nanoseconds(&events, side) / u128::from(packets));
            }
            ExitCode::SUCCESS
        }
        [list] if list == "--list" => {
            SCENARIOS.iter().for_each(|(name, ..)| println!("{name}"));
            ExitCode::SUCCESS
        }
        [name, packets] => {
            let scenario = SCENARIOS.iter().find(|(own, ..)| own == name);
            let (Some(&(_, op, side)), Ok(packets)) = (scenario, packets.parse()) else {
                eprintln!("cost: no scenario {name}, or {packets} is no number");
                return ExitCode::FAILURE;
            };
            let events = record(op, side);
            let Some((events, packets)) = cut(&events, packets) else {
                eprintln!("cost: fewer than {packets} packets are recorded");
                return ExitCode::FAILURE;
            };
            replay_to_new(events, side);
            println!("packets {packets}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: cost [--list | SCENARIO PACKETS]");
            ExitCode::FAILURE
        }
    }
}

//! Reliable-connected queue pairs in virtual time: each operation, each error, and runs with faults.

use crate::pair::{Faults, Pair, RKEY, Rng, pattern};
use anyverbs_engine::*;
use anyverbs_wire::{Feth, Opcode, Operation, Psn, Qpn, Selectivity};

const SEND: Op = Op::Send { imm: None };

fn ok(slots: std::ops::Range<u64>) -> Vec<(u64, Status)> {
    slots.map(|slot| (slot, Status::Success)).collect()
}

fn operations(pair: &Pair, side: usize) -> Vec<Operation> {
    pair.sent.iter().filter(|(from, _)| *from == side).filter_map(|(_, r)| r.bth.opcode.operation()).collect()
}

#[test]
fn send_is_segmented_placed_and_acknowledged() {
    use Operation as O;
    for (len, expected) in [
        (0, vec![O::SendOnly]),
        (1, vec![O::SendOnly]),
        (256, vec![O::SendOnly]),
        (257, vec![O::SendFirst, O::SendLast]),
        (1000, vec![O::SendFirst, O::SendMiddle, O::SendMiddle, O::SendLast]),
    ] {
        let mut pair = Pair::new(0xff_fffe, 1);
        pair.post_receive(7, 1000);
        pair.post(0, SEND, pattern(1, len));
        pair.drive();
        assert_eq!(operations(&pair, 0), expected, "{len} bytes");
        assert_eq!(operations(&pair, 1), [O::Acknowledge], "one acknowledgement for {len} bytes");
        assert_eq!(pair.completed(0, Queue::Send), ok(0..1));
        assert_eq!(pair.completed(1, Queue::Receive), ok(7..8));
        assert_eq!(pair.sides[1].completions[0].len, len as u32);
        assert_eq!(pair.sides[1].memory.taken[&7][..len], pattern(1, len)[..]);
        assert!(pair.sides[1].memory.taken[&7][len..].iter().all(|byte| *byte == 0xee), "canary");
    }
}

#[test]
fn immediate_data_and_write_with_immediate_reach_the_receiver() {
    let mut pair = Pair::new(0, 1);
    pair.post_receive(0, 16);
    pair.post_receive(1, 0);
    pair.post(0, Op::Send { imm: Some(0xabcd) }, pattern(1, 16));
    pair.post(1, Op::Write { va: 100, rkey: RKEY, imm: Some(5) }, pattern(2, 600));
    pair.drive();
    let receives: Vec<_> = pair.sides[1].completions.iter().map(|c| (c.kind, c.imm, c.len)).collect();
    assert_eq!(receives, [(ReceiveKind::Send, Some(0xabcd), 16), (ReceiveKind::WriteImm, Some(5), 600)]);
    assert_eq!(pair.sides[1].memory.region[100..700], pattern(2, 600)[..]);
}

#[test]
fn write_read_and_atomics_do_what_they_say() {
    let mut pair = Pair::new(0xff_fff0, 1);
    pair.post(0, Op::Write { va: 0, rkey: RKEY, imm: None }, pattern(3, 5000));
    pair.post(1, Op::Read { va: 0, rkey: RKEY }, vec![0; 5000]);
    pair.post(2, Op::Write { va: 8192, rkey: RKEY, imm: None }, 40u64.to_ne_bytes().to_vec());
    pair.post(3, Op::FetchAdd { va: 8192, rkey: RKEY, add: 2 }, vec![0; 8]);
    pair.post(4, Op::CompareSwap { va: 8192, rkey: RKEY, compare: 42, swap: 7 }, vec![0; 8]);
    pair.post(5, Op::CompareSwap { va: 8192, rkey: RKEY, compare: 42, swap: 9 }, vec![0; 8]);
    pair.post(6, Op::Read { va: 0, rkey: RKEY }, Vec::new());
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..7));
    let sends = &pair.sides[0].memory.sends;
    assert_eq!(sends[&1], pattern(3, 5000));
    assert_eq!(sends[&3], 40u64.to_ne_bytes());
    assert_eq!(sends[&4], 42u64.to_ne_bytes());
    assert_eq!(sends[&5], 7u64.to_ne_bytes(), "the second swap finds another value and does nothing");
    assert_eq!(pair.sides[1].memory.region[8192..8200], 7u64.to_ne_bytes());
}

#[test]
fn a_lost_packet_is_naked_once_and_sent_again() {
    let mut pair = Pair::new(0, 1);
    let mut lost = false;
    pair.drop_if = Some(Box::new(move |side, repr| {
        let drop = side == 0 && repr.bth.psn == Psn::new(2) && !lost;
        lost |= drop;
        drop
    }));
    pair.post(0, Op::Write { va: 0, rkey: RKEY, imm: None }, pattern(4, 256 * 10));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..1));
    assert_eq!(pair.sides[1].memory.region[..2560], pattern(4, 2560)[..]);
    assert_eq!(pair.sides[0].counters.rcvd_seq_err, 1, "one NAK for the gap, then silence");
    assert_eq!(pair.sides[0].counters.local_ack_timeout_err, 0, "no timeout was needed");
}

#[test]
fn several_losses_in_a_window_are_told_and_repaired_at_once() {
    let mut pair = Pair::new(0, 1);
    // The first message measures the round trip.
    pair.post(0, Op::Write { va: 0, rkey: RKEY, imm: None }, pattern(4, 256));
    pair.drive();
    let mut lost = vec![3, 7, 8, 15];
    pair.drop_if = Some(Box::new(move |side, repr| {
        let place = lost.iter().position(|psn| side == 0 && repr.bth.psn == Psn::new(*psn));
        place.map(|place| lost.remove(place)).is_some()
    }));
    pair.sent.clear();
    let start = pair.now;
    pair.post(1, Op::Write { va: 0, rkey: RKEY, imm: None }, pattern(4, 256 * 20));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..2));
    assert_eq!(pair.sides[1].memory.region[..5120], pattern(4, 5120)[..]);
    let psns = |side| pair.sent.iter().filter(move |(own, _)| *own == side).map(|(_, header)| header);
    assert_eq!(psns(0).count(), 20 + 4, "each again once");
    let told: Vec<_> = psns(1).filter(|header| header.bth.opcode == Opcode::MISSING).collect();
    assert!(!told.is_empty());
    let round_trip = std::time::Duration::from_micros(10);
    assert_eq!(pair.now - start, round_trip * 2, "one round trip more than without losses");
}

#[test]
fn who_goes_back_does_not_mind_being_told_what_is_missing() {
    let kinds =
        [Recovery::GoBackN, Recovery::Selective].map(|recovery| Config { recovery, ..Config::default() });
    let mut pair = Pair::of(kinds, 0, 1, 4);
    let mut lost = vec![3, 7, 8, 15];
    pair.drop_if = Some(Box::new(move |side, repr| {
        let place = lost.iter().position(|psn| side == 0 && repr.bth.psn == Psn::new(*psn));
        place.map(|place| lost.remove(place)).is_some()
    }));
    pair.post(0, Op::Write { va: 0, rkey: RKEY, imm: None }, pattern(4, 256 * 20));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..1));
    assert_eq!(pair.sides[1].memory.region[..5120], pattern(4, 5120)[..]);
}

#[test]
fn a_lost_read_response_is_asked_for_again_from_where_it_is_missing() {
    let mut pair = Pair::new(0, 1);
    let mut lost = false;
    pair.drop_if = Some(Box::new(move |side, repr| {
        let drop = side == 1 && repr.bth.psn == Psn::new(5) && !lost;
        lost |= drop;
        drop
    }));
    pair.post(0, Op::Read { va: 0, rkey: RKEY }, vec![0; 256 * 12]);
    pair.sides[1].memory.region[..3072].copy_from_slice(&pattern(9, 3072));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..1));
    assert_eq!(pair.sides[0].memory.sends[&0], pattern(9, 3072));
    let requests: Vec<_> = pair.sent.iter().filter(|(side, _)| *side == 0).map(|(_, r)| r.bth.psn).collect();
    assert_eq!(requests, [Psn::new(0), Psn::new(5)]);
}

#[test]
fn a_lost_atomic_answer_is_replayed_not_executed_again() {
    let mut pair = Pair::new(0, 1);
    let mut lost = false;
    pair.drop_if = Some(Box::new(move |side, _| {
        let drop = side == 1 && !lost;
        lost |= drop;
        drop
    }));
    pair.post(0, Op::FetchAdd { va: 0, rkey: RKEY, add: 5 }, vec![0xff; 8]);
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..1));
    assert_eq!(pair.sides[0].memory.sends[&0], 0u64.to_ne_bytes());
    assert_eq!(pair.sides[1].memory.region[..8], 5u64.to_ne_bytes(), "added exactly once");
}

#[test]
fn a_late_receive_is_waited_for() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, SEND, pattern(1, 700));
    pair.post(1, SEND, pattern(2, 10));
    for _ in 0..6 {
        assert!(pair.step());
    }
    assert_eq!(pair.completed(0, Queue::Send), []);
    pair.post_receive(0, 700);
    pair.post_receive(1, 700);
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..2));
    assert_eq!(pair.sides[1].memory.taken[&0], pattern(1, 700));
    assert!(pair.sides[1].counters.send_rnr_err >= 1);
}

#[test]
fn a_receive_that_never_comes_ends_in_rnr_retry_exceeded() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, SEND, pattern(1, 10));
    pair.post(1, SEND, pattern(1, 10));
    pair.drive();
    let expected = [(0, Status::RnrRetryExceeded), (1, Status::FlushError)];
    assert_eq!(pair.completed(0, Queue::Send), expected);
    assert_eq!(pair.sides[1].counters.send_rnr_err, 7, "the first and rnr_retry = 6 more");
    assert_eq!(pair.sides[0].qp.state(), QpState::Error);
}

#[test]
fn a_silent_peer_ends_in_retry_exceeded_within_the_attributes_time() {
    let mut pair = Pair::new(0, 1);
    pair.drop_if = Some(Box::new(|_, _| true));
    pair.post(0, SEND, pattern(1, 10));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), [(0, Status::RetryExceeded)]);
    let limit = std::time::Duration::from_nanos((4096 << 14) * 8);
    let took = pair.now - Time::ZERO;
    assert!(took >= limit && took < limit * 5 / 4, "{took:?} against {limit:?}");
}

#[test]
fn a_process_that_was_stopped_for_long_tries_before_it_gives_up() {
    let mut pair = Pair::new(0, 1);
    pair.drop_if = Some(Box::new(move |side, _| side == 0));
    pair.post(0, SEND, pattern(1, 10));
    pair.post_receive(0, 10);
    pair.with_context(0, |qp, cx| qp.transmit(cx));
    // Nobody ran for longer than all retries take; then the peer can be reached again.
    pair.now = pair.now + std::time::Duration::from_secs(60);
    pair.drop_if = None;
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..1));
}

#[test]
fn refused_requests_end_both_queue_pairs_with_the_right_statuses() {
    let write = |va, rkey| Op::Write { va, rkey, imm: None };
    for (op, data, status, peer) in [
        (write(0, RKEY + 1), pattern(1, 8), Status::RemoteAccessError, None),
        (write((1 << 16) - 4, RKEY), pattern(1, 8), Status::RemoteAccessError, None),
        (write(u64::MAX - 3, RKEY), pattern(1, 8), Status::RemoteAccessError, None),
        (Op::Read { va: 1 << 16, rkey: RKEY }, vec![0; 8], Status::RemoteAccessError, None),
        (Op::FetchAdd { va: 4, rkey: RKEY, add: 1 }, vec![0; 8], Status::RemoteInvalidRequest, None),
        (SEND, pattern(1, 17), Status::RemoteInvalidRequest, Some(Status::LocalLengthError)),
        (SEND, pattern(1, 1700), Status::RemoteInvalidRequest, Some(Status::LocalLengthError)),
    ] {
        let mut pair = Pair::new(0, 1);
        pair.post_receive(0, 16);
        pair.post_receive(1, 16);
        pair.post(0, op, data);
        pair.post(1, SEND, pattern(1, 8));
        pair.drive();
        assert_eq!(pair.completed(0, Queue::Send), [(0, status), (1, Status::FlushError)], "{op:?}");
        let expected = [(0, peer.unwrap_or(Status::FlushError)), (1, Status::FlushError)];
        assert_eq!(pair.completed(1, Queue::Receive), expected, "{op:?}");
        assert_eq!([pair.sides[0].qp.state(), pair.sides[1].qp.state()], [QpState::Error; 2]);
        assert!(pair.sides[1].memory.region.iter().all(|byte| *byte == 0), "nothing was written: {op:?}");
    }
}

#[test]
fn zero_length_rdma_needs_no_key() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, Op::Write { va: 77, rkey: 0, imm: None }, Vec::new());
    pair.post(1, Op::Read { va: 77, rkey: 0 }, Vec::new());
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..2));
}

#[test]
fn memory_revoked_in_the_middle_of_a_read_stops_it() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, Op::Read { va: 0, rkey: RKEY }, vec![0; 1 << 16]);
    pair.post(1, Op::Read { va: 0, rkey: RKEY }, vec![0; 1 << 16]);
    // The first READ fills the window; the second is asked for when its answers arrive.
    while pair.sent.iter().filter(|(side, _)| *side == 1).count() < 256 {
        assert!(pair.step());
    }
    pair.sides[1].memory.revoked = true;
    pair.drive();
    let expected = [(0, Status::Success), (1, Status::RemoteAccessError)];
    assert_eq!(pair.completed(0, Queue::Send), expected);
}

#[test]
fn a_late_duplicate_of_a_read_whose_memory_is_gone_ends_nothing() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, Op::Read { va: 0, rkey: RKEY }, vec![0; 300]);
    pair.drive();
    let (_, request) = pair.sent[0];
    let mut datagram = vec![0; request.header_len() + 4];
    request.emit(&mut datagram);
    pair.sides[1].memory.revoked = true;
    pair.deliver(1, &datagram);
    pair.drive();
    assert_eq!([pair.sides[0].qp.state(), pair.sides[1].qp.state()], [QpState::ReadyToSend; 2]);
    pair.post_receive(0, 8);
    pair.post(1, SEND, pattern(1, 8));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..2));
}

#[test]
fn a_window_bounds_what_is_unacknowledged() {
    let config = Config { window: 8, ..Config::default() };
    let mut pair = Pair::with(0, 1, config, 4);
    pair.drop_if = Some(Box::new(|side, _| side == 1));
    pair.post(0, Op::Write { va: 0, rkey: RKEY, imm: None }, pattern(1, 256 * 100));
    pair.step();
    assert_eq!(pair.sent.len(), 8);
    assert!(pair.sent[7].1.bth.ack_request, "the last packet that fits asks, or it would wait for a timeout");
}

#[test]
fn a_rate_limit_spaces_packets() {
    let config = Config { bytes_per_second: std::num::NonZeroU64::new(10_000_000), ..Config::default() };
    let mut pair = Pair::with(0, 1, config, 4);
    pair.post(0, Op::Write { va: 0, rkey: RKEY, imm: None }, pattern(1, 256 * 100));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..1));
    let ideal = 99 * (256 + 58) * 100; // 100 ns a byte, the last packet leaves without waiting
    let took = pair.now.as_nanos();
    assert!(took >= ideal && took < ideal + 100_000, "{took} ns against {ideal} ns");
}

/// One random program under random faults; every oracle that a run can be judged by.
fn swarm(seed: u64) {
    let mut rng = Rng(seed.wrapping_mul(0xd6e8_feb8_6659_fd93) | 1);
    let config = |rng: &mut Rng| Config {
        window: [4, 16, 256][rng.below(3) as usize],
        reorder: [0, 3, 256][rng.below(3) as usize],
        recovery: [Recovery::GoBackN, Recovery::Selective, Recovery::Selective][rng.below(3) as usize],
        credits: rng.below(2) == 0,
        ..Config::default()
    };
    let mut configs = [config(&mut rng), config(&mut rng)];
    let xrc = rng.below(4) == 0;
    if xrc {
        configs[0].qp_type = QpType::XrcSend;
        configs[1].qp_type = QpType::XrcRecv;
    }
    let start = (0x100_0000 - rng.below(64)) as u32;
    let mut pair = Pair::of(configs, start, seed, 1 + rng.below(4) as u8);
    pair.sides[1].memory.buffers = [2, 256][rng.below(2) as usize];
    pair.sides[1].memory.states_credits = !xrc && rng.below(2) == 0;
    if xrc {
        pair.sides[1].memory.shared = Some(Qpn::new(9));
        pair.destination = Destination::SharedReceive(Qpn::new(9));
    }
    pair.faults = Faults {
        loss: [0, 10, 50, 100][rng.below(4) as usize],
        duplicate: [0, 20, 100][rng.below(3) as usize],
        reorder: [0, 50, 200][rng.below(3) as usize],
        lazy: [0, 300, 950][rng.below(3) as usize],
    };
    let count = 1 + rng.below(40);
    let mut receives = 0;
    let mut added = 0u64;
    for slot in 0..count {
        let len = [0, 1, 7, 256, 257, 3000][rng.below(6) as usize];
        // Every slot has its own place, behind the counter.
        let va = 1024 + slot * 1024;
        match rng.below(8) {
            7 => pair.post(slot, Op::Local, Vec::new()),
            5 => {
                let feth = Feth { placement: Feth::GLOBAL, selectivity: Selectivity::Range };
                pair.post(slot, Op::Flush { va, rkey: RKEY, feth }, vec![0; len.min(1024)]);
            }
            6 => pair.post(slot, Op::AtomicWrite { va, rkey: RKEY }, pattern(slot, 8)),
            0 => {
                pair.post_receive(receives, 4096);
                receives += 1;
                pair.post(slot, SEND, pattern(slot, len));
            }
            1 => pair.post(slot, Op::Write { va, rkey: RKEY, imm: None }, pattern(slot, len.min(1024))),
            2 => {
                pair.post_receive(receives, 0);
                receives += 1;
                let op = Op::Write { va, rkey: RKEY, imm: Some(slot as u32) };
                pair.post(slot, op, pattern(slot, len.min(1024)));
            }
            3 => {
                pair.post(slot, Op::Read { va: 60_000, rkey: RKEY }, vec![0xcc; len]);
            }
            _ => {
                added += slot + 1;
                pair.post(slot, Op::FetchAdd { va: 0, rkey: RKEY, add: slot + 1 }, vec![0; 8]);
            }
        }
    }
    pair.sides[1].memory.region[60_000..63_000].copy_from_slice(&pattern(99, 3000));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..count), "seed {seed}: exactly once, in order");
    assert_eq!(pair.completed(1, Queue::Receive), ok(0..receives), "seed {seed}");
    check_data(&pair, seed, added);
}

fn check_data(pair: &Pair, seed: u64, added: u64) {
    let target = &pair.sides[1].memory;
    assert_eq!(target.region[..8], added.to_ne_bytes(), "seed {seed}: atomics exactly once");
    let mut counter = 0;
    let mut receive = 0;
    for (slot, data) in &pair.sides[0].memory.sends {
        let sent = pattern(*slot, data.len());
        match pair.ops[slot] {
            Op::Send { .. } => {
                let (message, canary) = target.taken[&receive].split_at(data.len());
                assert_eq!(message, sent, "seed {seed}: SEND {slot}");
                assert!(canary.iter().all(|byte| *byte == 0xee), "seed {seed}: canary behind SEND {slot}");
                receive += 1;
            }
            Op::Write { va, imm, .. } => {
                let at = va as usize;
                assert_eq!(target.region[at..at + data.len()], sent[..], "seed {seed}: WRITE {slot}");
                receive += u64::from(imm.is_some());
            }
            Op::Read { .. } => {
                assert_eq!(data[..], pattern(99, 3000)[..data.len()], "seed {seed}: READ {slot}");
            }
            Op::FetchAdd { add, .. } => {
                assert_eq!(data[..], u64::to_ne_bytes(counter), "seed {seed}: FETCH_ADD {slot}");
                counter += add;
            }
            Op::AtomicWrite { va, .. } => {
                let at = va as usize;
                assert_eq!(target.region[at..at + 8], sent[..], "seed {seed}: ATOMIC WRITE {slot}");
            }
            Op::Flush { va, .. } => {
                let flushed = target.flushed.contains(&(va, data.len() as u32));
                assert!(flushed || data.is_empty(), "seed {seed}: FLUSH {slot}");
            }
            Op::CompareSwap { .. } | Op::SendInvalidate { .. } | Op::Local => {}
        }
    }
    let locals = pair.ops.iter().filter(|(_, op)| **op == Op::Local).map(|(slot, _)| *slot);
    let executed = &pair.sides[0].memory.executed;
    assert_eq!(*executed, locals.collect::<Vec<_>>(), "seed {seed}: each once, in order");
    assert_eq!([pair.held(0), pair.held(1)], [0, 0], "seed {seed}: buffers of early packets leak");
}

#[test]
fn random_programs_survive_random_faults() {
    let seeds = std::env::var("ANYVERBS_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let first = std::env::var("ANYVERBS_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for seed in first..first + seeds {
        swarm(seed);
    }
}

//! Early packets are kept, and only what is missing is sent again.

use crate::pair::{Pair, RKEY, lose, pattern};
use anyverbs_engine::*;
use anyverbs_wire::{Operation as O, Psn};

const SEND: Op = Op::Send { imm: None };

fn write(va: u64) -> Op {
    Op::Write { va, rkey: RKEY, imm: None }
}

fn sent_psns(pair: &Pair, side: usize) -> Vec<u32> {
    pair.sent.iter().filter(|(from, _)| *from == side).map(|(_, repr)| repr.bth.psn.value()).collect()
}

#[test]
fn one_lost_packet_is_sent_again_alone() {
    for op in [SEND, write(0)] {
        let mut pair = Pair::new(0, 1);
        pair.drop_if = lose(0, &[3]);
        pair.post_receive(0, 5000);
        pair.post(0, op, pattern(1, 5000));
        pair.drive();
        assert_eq!(pair.completed(0, Queue::Send), [(0, Status::Success)]);
        let expected: Vec<u32> = (0..20).chain([3]).collect();
        assert_eq!(sent_psns(&pair, 0), expected, "{op:?}");
        assert_eq!(pair.held(1), 0);
    }
}

#[test]
fn the_next_gap_is_named_at_once_and_the_sender_goes_on() {
    let mut pair = Pair::new(0, 1);
    pair.drop_if = lose(0, &[3, 9, 15]);
    pair.post(0, write(0), pattern(1, 20 * 256));
    pair.drive();
    assert_eq!(sent_psns(&pair, 0)[20..], [3, 9, 15]);
    assert_eq!(pair.sides[0].counters.rcvd_seq_err, 3);
    assert_eq!(pair.sides[0].counters.local_ack_timeout_err, 0);
    // The peer is known to keep what is early: new messages do not wait for a repair.
    pair.drop_if = lose(0, &[21]);
    pair.post(1, write(0), pattern(2, 256 * 5));
    while !pair.sent.iter().any(|(side, repr)| *side == 1 && repr.bth.psn == Psn::new(21)) {
        assert!(pair.step());
    }
    pair.post(2, write(8192), pattern(3, 256));
    let before = pair.sent.len();
    pair.drive();
    let after: Vec<u32> =
        pair.sent[before..].iter().filter(|(side, _)| *side == 0).map(|(_, r)| r.bth.psn.value()).collect();
    assert_eq!(after, [25, 21], "the new message, then the repair that was asked for meanwhile");
    assert_eq!(pair.completed(0, Queue::Send).len(), 3);
}

#[test]
fn a_burst_is_repaired_by_ever_longer_runs() {
    let mut pair = Pair::new(0, 1);
    // First it learns that the peer keeps what is early.
    pair.drop_if = lose(0, &[1]);
    pair.post(0, write(0), pattern(1, 256 * 10));
    pair.drive();
    pair.drop_if = lose(0, &[12, 13, 14, 15, 16, 17, 18]);
    pair.post(1, write(0), pattern(2, 256 * 20));
    pair.drive();
    assert_eq!(sent_psns(&pair, 0)[11 + 20..], [12, 13, 14, 15, 16, 17, 18], "1, 2 and 4: each packet once");
    assert_eq!(pair.sides[0].counters.local_ack_timeout_err, 0);
}

#[test]
fn a_peer_that_keeps_nothing_is_found_out() {
    let configs = [Config::default(), Config { reorder: 0, ..Config::default() }];
    let mut pair = Pair::of(configs, 0, 1, 4);
    pair.drop_if = lose(0, &[2]);
    pair.post(0, write(0), pattern(1, 256 * 6));
    pair.drive();
    assert_eq!(sent_psns(&pair, 0), [0, 1, 2, 3, 4, 5, 2, 3, 4, 5], "a trial, and then the rest");
    for _ in 0..2 {
        let psn =
            pair.sent.iter().filter(|(side, _)| *side == 0).map(|(_, r)| r.bth.psn.value()).max().unwrap();
        let mut lost = false;
        pair.drop_if = Some(Box::new(move |side, repr| {
            let drop = side == 0 && repr.bth.psn == Psn::new(psn + 2) && !lost;
            lost |= drop;
            drop
        }));
        pair.post(u64::from(psn), write(0), pattern(1, 256 * 6));
        pair.drive();
    }
    // Believed now: no trial any more.
    pair.drop_if = lose(0, &[20]);
    pair.post(99, write(0), pattern(1, 256 * 6));
    let before = pair.sent.len();
    pair.drive();
    let sent: Vec<u32> =
        pair.sent[before..].iter().filter(|(side, _)| *side == 0).map(|(_, r)| r.bth.psn.value()).collect();
    assert_eq!(sent, [18, 19, 20, 21, 22, 23, 20, 21, 22, 23]);
    let naks = pair.sides[1].counters.out_of_seq_request;
    assert!(naks > 0 && pair.sides[1].counters.rx_kept_early == 0);
}

#[test]
fn only_missing_responses_are_asked_for_again() {
    let mut pair = Pair::new(0, 1);
    pair.sides[1].memory.region[..12 * 256].copy_from_slice(&pattern(7, 12 * 256));
    pair.drop_if = lose(1, &[2, 3, 7, 12]);
    pair.post(0, Op::Read { va: 0, rkey: RKEY }, vec![0; 12 * 256]);
    pair.post(1, Op::FetchAdd { va: 60_000, rkey: RKEY, add: 5 }, vec![0xff; 8]);
    pair.post(2, write(30_000), pattern(1, 8));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), [0, 1, 2].map(|slot| (slot, Status::Success)));
    assert_eq!(pair.sides[0].memory.sends[&0], pattern(7, 12 * 256));
    assert_eq!(pair.sides[1].memory.region[60_000], 5, "added once");
    // READ, FETCH_ADD and WRITE; then two packets, one packet, and the atomic again.
    assert_eq!(sent_psns(&pair, 0), [0, 12, 13, 2, 7, 12]);
    let reads: Vec<String> =
        pair.sent.iter().filter(|(side, _)| *side == 0).map(|(_, r)| r.to_string()).collect();
    assert!(reads[3].ends_with("dma 512") && reads[4].ends_with("dma 256"), "{reads:?}");
}

/// Programs look at memory that peers write: a later WRITE is never seen before an earlier one, and the
/// last byte of a WRITE never before the others.
#[test]
fn a_write_is_never_seen_before_what_was_written_earlier() {
    let mut pair = Pair::new(0, 1);
    pair.drop_if = lose(0, &[4]);
    pair.post(0, write(0), vec![1; 256 * 8]);
    pair.post(1, write(8192), vec![2; 1]);
    let mut seen = 0;
    loop {
        let region = &pair.sides[1].memory.region;
        let body = region[..256 * 8].iter().filter(|byte| **byte == 1).count();
        if region[256 * 8 - 1] == 1 || region[8192] == 2 {
            assert_eq!(body, 256 * 8, "the last byte, or the flag, came first");
        }
        seen = seen.max(body * usize::from(body < 256 * 8));
        if !pair.step() {
            break;
        }
    }
    assert_eq!(pair.completed(0, Queue::Send).len(), 2);
    assert_eq!(seen, 256 * 6, "but middle packets are placed when they come, without being kept");
    assert_eq!(pair.sides[1].counters.rx_kept_early, 4);
}

#[test]
fn an_early_packet_is_executed_in_its_turn_and_no_sooner() {
    let mut pair = Pair::new(0, 1);
    pair.drop_if = lose(0, &[0]);
    // The add must not happen before the write that it depends on, though it arrives first.
    pair.post(0, write(0), 40u64.to_ne_bytes().to_vec());
    pair.post(1, Op::FetchAdd { va: 0, rkey: RKEY, add: 2 }, vec![0; 8]);
    pair.post(2, Op::CompareSwap { va: 0, rkey: RKEY, compare: 42, swap: 7 }, vec![0; 8]);
    pair.post_receive(0, 8);
    pair.post(3, Op::SendInvalidate { rkey: RKEY }, pattern(3, 8));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), [0, 1, 2, 3].map(|slot| (slot, Status::Success)));
    assert_eq!(pair.sides[1].memory.region[0], 7);
    assert_eq!(pair.sides[0].memory.sends[&1], 40u64.to_ne_bytes());
    assert_eq!(pair.sides[0].memory.sends[&2], 42u64.to_ne_bytes());
    assert_eq!(sent_psns(&pair, 0), [0, 1, 2, 3, 0]);
}

#[test]
fn without_buffers_early_packets_are_dropped_and_come_again() {
    for buffers in [0, 1, 3] {
        let mut pair = Pair::new(0, 1);
        pair.sides[1].memory.buffers = buffers;
        pair.drop_if = lose(0, &[1]);
        for slot in 0..8 {
            pair.post_receive(slot, 256);
            pair.post(slot, SEND, pattern(slot, 256));
        }
        pair.drive();
        let expected: Vec<_> = (0..8).map(|slot| (slot, Status::Success)).collect();
        assert_eq!(pair.completed(0, Queue::Send), expected, "{buffers} buffers");
        assert_eq!(pair.completed(1, Queue::Receive), expected);
        for slot in 0..8 {
            assert_eq!(pair.sides[1].memory.taken[&slot], pattern(slot, 256));
        }
        assert_eq!(pair.sides[0].counters.local_ack_timeout_err, 0);
        assert_eq!(pair.held(1), 0);
    }
}

#[test]
fn early_sends_wait_for_receives_like_others() {
    let mut pair = Pair::new(0, 1);
    pair.drop_if = lose(0, &[0]);
    for slot in 0..4 {
        pair.post(slot, SEND, pattern(slot, 8));
    }
    pair.post_receive(0, 8);
    for _ in 0..12 {
        pair.step();
    }
    for slot in 1..4 {
        pair.post_receive(slot, 8);
    }
    pair.drive();
    assert_eq!(pair.completed(1, Queue::Receive), [0, 1, 2, 3].map(|slot| (slot, Status::Success)));
    assert!(pair.sides[1].counters.send_rnr_err >= 1);
    assert_eq!(pair.held(1), 0);
}

#[test]
fn an_error_gives_back_what_was_kept() {
    let mut pair = Pair::new(0, 1);
    pair.drop_if = Some(Box::new(|side, repr| side == 0 && repr.bth.psn == Psn::new(0)));
    for slot in 0..4 {
        pair.post_receive(slot, 8);
        pair.post(slot, SEND, pattern(slot, 8));
    }
    for _ in 0..5 {
        pair.step();
    }
    assert_eq!(pair.held(1), 3);
    pair.with_context(1, |qp, cx| qp.enter_error(cx));
    assert_eq!(pair.held(1), 0);
    let operations = pair.sent.iter().filter(|(_, r)| r.bth.opcode.operation() == Some(O::SendOnly)).count();
    assert_eq!(operations, 4 + 1);
}

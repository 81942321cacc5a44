//! Work requests that concern this side alone: in order with the others, once, and without a packet.

use crate::pair::{Pair, RKEY, lose, pattern};
use anyverbs_engine::*;
use anyverbs_wire::{Psn, Qpn};

const SEND: Op = Op::Send { imm: None };
const WRITE: Op = Op::Write { va: 0, rkey: RKEY, imm: None };
const READ: Op = Op::Read { va: 0, rkey: RKEY };

fn ok(slots: std::ops::Range<u64>) -> Vec<(u64, Status)> {
    slots.map(|slot| (slot, Status::Success)).collect()
}

fn post_fenced(pair: &mut Pair, slot: u64, op: Op) {
    let request = SendRequest { fence: true, ..SendRequest::new(slot, op, 0) };
    pair.with_context(0, |qp, cx| assert!(qp.post_send(cx, request)));
}

/// Lets side 0 send everything that may leave, of which nothing arrives yet.
fn send_all(pair: &mut Pair) {
    while pair.with_context(0, |qp, cx| qp.transmit(cx)) {}
}

fn psns(pair: &Pair) -> Vec<Psn> {
    pair.sent.iter().filter(|(side, _)| *side == 0).map(|(_, repr)| repr.bth.psn).collect()
}

#[test]
fn alone_it_completes_at_once_without_a_packet() {
    let mut pair = Pair::new(0, 1);
    for slot in 0..3 {
        pair.post(slot, Op::Local, Vec::new());
    }
    assert!(pair.sides[0].qp.wants_transmit());
    assert!(pair.sides[0].memory.executed.is_empty(), "posting executes nothing");
    send_all(&mut pair);
    assert_eq!(pair.sides[0].memory.executed, [0, 1, 2]);
    assert_eq!(pair.completed(0, Queue::Send), ok(0..3));
    assert!(pair.sent.is_empty());
    assert!(!pair.sides[0].qp.wants_transmit());
    assert_eq!(pair.sides[0].qp.next_deadline(), None);
}

#[test]
fn an_unsignaled_one_only_frees_its_slot() {
    let mut pair = Pair::new(0, 1);
    let request = SendRequest { signaled: false, ..SendRequest::new(0, Op::Local, 0) };
    pair.with_context(0, |qp, cx| assert!(qp.post_send(cx, request)));
    send_all(&mut pair);
    let [completion] = pair.sides[0].completions[..] else { panic!("one completion") };
    assert_eq!((completion.slot, completion.signaled, completion.len), (0, false, 0));
}

#[test]
fn it_takes_no_psn_and_completes_behind_those_before_it() {
    let mut pair = Pair::new(0xff_ffff, 1);
    pair.post(0, WRITE, pattern(1, 300));
    pair.post(1, Op::Local, Vec::new());
    pair.post(2, Op::Local, Vec::new());
    pair.post(3, WRITE, pattern(2, 8));
    pair.post(4, Op::Local, Vec::new());
    send_all(&mut pair);
    assert_eq!(pair.sides[0].memory.executed, [1, 2, 4]);
    assert!(pair.sides[0].completions.is_empty(), "the WRITE before them is not acknowledged");
    assert_eq!(psns(&pair), [0xff_ffff, 0, 1].map(Psn::new));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..5));
    assert_eq!(psns(&pair).len(), 3, "nothing went again");
}

#[test]
fn those_before_it_have_all_left_and_none_behind_it_has() {
    let mut pair = Pair::new(0, 1);
    // More packets than leave in one call, and more than the window.
    pair.post(0, WRITE, pattern(1, 256 * 300));
    pair.post(1, Op::Local, Vec::new());
    pair.post(2, WRITE, pattern(2, 8));
    pair.sides[1].memory.region = vec![0; 1 << 17];
    while pair.sides[0].memory.executed.is_empty() {
        assert!(psns(&pair).len() <= 300, "the second WRITE has begun before");
        assert!(pair.step());
    }
    assert!(psns(&pair).len() >= 300, "the first WRITE has not left yet");
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..3));
}

#[test]
fn a_fence_waits_for_reads_and_atomics_and_holds_back_what_is_behind() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, READ, vec![0; 1000]);
    post_fenced(&mut pair, 1, Op::Local);
    pair.post(2, WRITE, pattern(1, 8));
    send_all(&mut pair);
    assert!(pair.sides[0].memory.executed.is_empty(), "the READ is under way");
    assert_eq!(psns(&pair).len(), 1);
    pair.drive();
    assert_eq!(pair.sides[0].memory.executed, [1]);
    assert_eq!(pair.completed(0, Queue::Send), ok(0..3));
    let mut unfenced = Pair::new(0, 1);
    unfenced.post(0, READ, vec![0; 1000]);
    unfenced.post(1, Op::Local, Vec::new());
    send_all(&mut unfenced);
    assert_eq!(unfenced.sides[0].memory.executed, [1]);
    assert!(unfenced.sides[0].completions.is_empty());
}

#[test]
fn whatever_is_lost_around_it_it_is_executed_once() {
    for recovery in [Recovery::GoBackN, Recovery::Selective] {
        // Every packet of the requests once, and every packet of the answers.
        for (side, lost) in (0..2).flat_map(|side| (0..9).map(move |lost| (side, lost))) {
            let mut pair = Pair::with(0, 1, Config { recovery, ..Config::default() }, 4);
            pair.drop_if = lose(side, &[lost]);
            pair.post_receive(0, 1000);
            pair.post(0, WRITE, pattern(1, 700));
            pair.post(1, Op::Local, Vec::new());
            pair.post(2, READ, vec![0; 700]);
            post_fenced(&mut pair, 3, Op::Local);
            pair.post(4, SEND, pattern(2, 400));
            pair.post(5, Op::Local, Vec::new());
            pair.post(6, Op::FetchAdd { va: 1024, rkey: RKEY, add: 1 }, vec![0; 8]);
            pair.post(7, Op::Local, Vec::new());
            pair.drive();
            let case = format!("{recovery:?}, packet {lost} of side {side}");
            assert_eq!(pair.completed(0, Queue::Send), ok(0..8), "{case}");
            assert_eq!(pair.sides[0].memory.executed, [1, 3, 5, 7], "{case}");
            assert_eq!(pair.sides[0].memory.sends[&2], pattern(1, 700), "{case}");
            assert_eq!(pair.sides[1].memory.region[1024], 1, "{case}");
        }
    }
}

#[test]
fn a_timeout_that_goes_back_does_not_execute_it_again() {
    let mut pair = Pair::with(0, 1, Config { recovery: Recovery::GoBackN, ..Config::default() }, 4);
    // All of the first flight is lost.
    let mut left = 3;
    pair.drop_if = Some(Box::new(move |side, _| {
        let lost = side == 0 && left > 0;
        left -= i32::from(lost);
        lost
    }));
    pair.post(0, WRITE, pattern(1, 8));
    pair.post(1, Op::Local, Vec::new());
    pair.post(2, WRITE, pattern(1, 8));
    pair.post(3, Op::Local, Vec::new());
    pair.post(4, WRITE, pattern(1, 8));
    pair.drive();
    assert_eq!(pair.sides[0].counters.local_ack_timeout_err, 1);
    assert_eq!(pair.sides[0].memory.executed, [1, 3]);
    assert_eq!(pair.completed(0, Queue::Send), ok(0..5));
}

#[test]
fn a_peer_that_is_not_ready_does_not_make_it_run_again() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, SEND, pattern(1, 8));
    pair.post(1, Op::Local, Vec::new());
    for _ in 0..6 {
        pair.step();
    }
    assert_eq!(pair.sides[0].memory.executed, [1]);
    assert!(pair.sides[0].completions.is_empty(), "the SEND found no receive");
    pair.post(2, Op::Local, Vec::new());
    send_all(&mut pair);
    pair.post_receive(0, 8);
    pair.drive();
    assert_eq!(pair.sides[0].memory.executed, [1, 2]);
    assert_eq!(pair.completed(0, Queue::Send), ok(0..3));
}

#[test]
fn one_that_fails_ends_the_queue_pair_and_nothing_behind_it_leaves() {
    let mut pair = Pair::new(0, 1);
    pair.sides[0].memory.cannot = Some(1);
    pair.post(0, WRITE, pattern(1, 8));
    pair.drive();
    pair.sent.clear();
    for (slot, op) in [(1, Op::Local), (2, Op::Local), (3, WRITE)] {
        pair.post(slot, op, Vec::new());
    }
    pair.drive();
    let expected = [
        (0, Status::Success),
        (1, Status::MemoryWindowBindError),
        (2, Status::FlushError),
        (3, Status::FlushError),
    ];
    assert_eq!(pair.completed(0, Queue::Send), expected);
    assert_eq!(psns(&pair), []);
    assert_eq!(pair.sides[0].qp.state(), QpState::Error);
    assert!(pair.sides[0].memory.executed.is_empty());
    assert_eq!(pair.sides[0].counters.req_cqe_error, 1);
    pair.post(4, Op::Local, Vec::new());
    assert_eq!(pair.completed(0, Queue::Send)[4], (4, Status::FlushError));
    assert!(pair.sides[0].memory.executed.is_empty(), "the error state executes nothing");
}

#[test]
fn what_had_not_been_executed_is_flushed() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, READ, vec![0; 8]);
    post_fenced(&mut pair, 1, Op::Local);
    send_all(&mut pair);
    pair.with_context(0, |qp, cx| qp.enter_error(cx));
    assert_eq!(pair.completed(0, Queue::Send), [(0, Status::FlushError), (1, Status::FlushError)]);
    pair.drive();
    assert!(pair.sides[0].memory.executed.is_empty());
}

#[test]
fn none_begins_while_the_send_queue_drains() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, WRITE, pattern(1, 8));
    send_all(&mut pair);
    pair.with_context(0, |qp, cx| assert!(qp.to_sqd(cx)));
    pair.post(1, Op::Local, Vec::new());
    pair.drive();
    assert!(pair.sides[0].memory.executed.is_empty());
    assert_eq!(pair.sides[0].events, [Event::SendQueueDrained]);
    assert!(pair.sides[0].qp.resume());
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..2));
}

#[test]
fn uc_executes_them_in_turn_and_its_send_queue_fails_with_one() {
    let mut pair = Pair::of([Config { qp_type: QpType::Uc, ..Config::default() }; 2], 0, 1, 1);
    pair.post(0, WRITE, pattern(1, 600));
    pair.post(1, Op::Local, Vec::new());
    pair.post(2, WRITE, pattern(2, 8));
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), ok(0..3));
    assert_eq!(psns(&pair), [0, 1, 2, 3].map(Psn::new));
    pair.sides[0].memory.cannot = Some(3);
    pair.post(3, Op::Local, Vec::new());
    pair.post(4, WRITE, pattern(2, 8));
    pair.drive();
    let ends = pair.completed(0, Queue::Send);
    assert_eq!(ends[3..], [(3, Status::MemoryWindowBindError), (4, Status::FlushError)]);
    assert_eq!(pair.sides[0].qp.state(), QpState::SendQueueError);
    assert_eq!(pair.sides[0].memory.executed, [1]);
    assert_eq!(psns(&pair).len(), 4);
}

#[test]
fn only_connected_types_that_send_take_them() {
    let srqn = Destination::SharedReceive(Qpn::new(9));
    let datagram = Destination::Datagram { qpn: Qpn::new(1), qkey: 1 };
    for (qp_type, destination, taken) in [
        (QpType::Rc, Destination::Connected, true),
        (QpType::Uc, Destination::Connected, true),
        (QpType::XrcSend, srqn, true),
        (QpType::XrcRecv, srqn, false),
        (QpType::Ud, datagram, false),
    ] {
        let mut pair = Pair::of([Config { qp_type, ..Config::default() }; 2], 0, 1, 1);
        let request = SendRequest { destination, ..SendRequest::new(0, Op::Local, 0) };
        assert_eq!(pair.with_context(0, |qp, cx| qp.post_send(cx, request)), taken, "{qp_type:?}");
        send_all(&mut pair);
        assert_eq!(pair.sides[0].memory.executed.len(), usize::from(taken), "{qp_type:?}");
    }
}

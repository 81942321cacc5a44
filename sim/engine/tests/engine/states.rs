//! Transitions, draining, credits, and events.

use crate::pair::{Pair, RKEY, pattern};
use anyverbs_engine::*;
use anyverbs_wire::{Ext, Psn, Qpn, Syndrome};

const SEND: Op = Op::Send { imm: None };
const WRITE: Op = Op::Write { va: 0, rkey: RKEY, imm: None };

const RTR: ReadyToReceive = ReadyToReceive {
    dest_qpn: Qpn::new(5),
    rq_psn: Psn::new(0),
    path_mtu: Mtu::B256,
    max_dest_rd_atomic: 1,
    min_rnr_timer: 0,
};
const RTS: ReadyToSend =
    ReadyToSend { sq_psn: Psn::new(0), max_rd_atomic: 1, retry_cnt: 7, rnr_retry: 7, timeout: 14 };

/// Every transition from every state, against the table in the documentation of [`QpState`].
#[test]
fn no_transition_but_those_of_the_table() {
    use QpState::*;
    let reach = |qp_type, state| {
        let mut pair = Pair::of([Config { qp_type, ..Config::default() }; 2], 0, 1, 1);
        pair.with_context(0, |qp, cx| qp.reset(cx));
        let mut steps = 0;
        while pair.sides[0].qp.state() != state {
            steps += 1;
            assert!(steps < 10, "{qp_type:?} has no {state:?}");
            pair.with_context(0, |qp, cx| match (qp.state(), state) {
                (Reset, _) => assert!(qp.to_init()),
                (Init, _) => assert!(qp.to_rtr(&RTR)),
                (ReadyToReceive, _) => assert!(qp.to_rts(&RTS)),
                (ReadyToSend, SendQueueDrain) => assert!(qp.to_sqd(cx)),
                (ReadyToSend, SendQueueError) => qp.send_failed(cx),
                (_, Error) => qp.enter_error(cx),
                (from, to) => panic!("no way from {from:?} to {to:?}"),
            });
        }
        pair
    };
    let all = [Reset, Init, ReadyToReceive, ReadyToSend, SendQueueDrain, SendQueueError, Error];
    for from in all {
        let qp_type = if from == SendQueueError { QpType::Uc } else { QpType::Rc };
        type Step = fn(&mut Pair) -> bool;
        let steps: [(&str, Step, &[QpState], QpState); 6] = [
            ("to_init", |pair| pair.sides[0].qp.to_init(), &[Reset], Init),
            ("to_rtr", |pair| pair.sides[0].qp.to_rtr(&RTR), &[Init], ReadyToReceive),
            ("to_rts", |pair| pair.sides[0].qp.to_rts(&RTS), &[ReadyToReceive], ReadyToSend),
            ("to_sqd", |pair| pair.with_context(0, |qp, cx| qp.to_sqd(cx)), &[ReadyToSend], SendQueueDrain),
            ("resume", |pair| pair.sides[0].qp.resume(), &[SendQueueDrain, SendQueueError], ReadyToSend),
            (
                "reset",
                |pair| {
                    pair.with_context(0, |qp, cx| {
                        qp.reset(cx);
                        true
                    })
                },
                &all,
                Reset,
            ),
        ];
        for (name, step, allowed, to) in steps {
            let mut pair = reach(qp_type, from);
            let done = step(&mut pair);
            assert_eq!(done, allowed.contains(&from), "{name} from {from:?}");
            assert_eq!(pair.sides[0].qp.state(), if done { to } else { from }, "{name} from {from:?}");
        }
        let mut pair = reach(qp_type, from);
        pair.with_context(0, |qp, cx| qp.enter_error(cx));
        assert_eq!(pair.sides[0].qp.state(), if from == Reset { Reset } else { Error });
    }
}

#[test]
fn a_draining_queue_ends_what_began_and_begins_nothing() {
    for qp_type in [QpType::Rc, QpType::Uc] {
        let mut pair = Pair::of([Config { qp_type, ..Config::default() }; 2], 0xff_fff0, 1, 4);
        pair.post(0, WRITE, pattern(1, 256 * 100));
        pair.post(1, WRITE, pattern(2, 256));
        // One turn is 64 packets: the first is under way.
        pair.with_context(0, |qp, cx| assert!(qp.transmit(cx)));
        assert!(pair.with_context(0, |qp, cx| qp.to_sqd(cx)));
        assert_eq!(pair.sides[0].events, [], "{qp_type:?}: not yet");
        pair.post(2, WRITE, pattern(3, 8));
        pair.drive();
        assert_eq!(pair.completed(0, Queue::Send), [(0, Status::Success)], "{qp_type:?}");
        assert_eq!(pair.sides[0].events, [Event::SendQueueDrained]);
        assert_eq!(pair.sides[0].qp.state(), QpState::SendQueueDrain);
        assert!(pair.sides[0].qp.resume());
        pair.drive();
        assert_eq!(pair.completed(0, Queue::Send).len(), 3);
        assert_eq!(pair.sides[0].events, [Event::SendQueueDrained], "told once");
        // With nothing under way it is told at once.
        assert!(pair.with_context(0, |qp, cx| qp.to_sqd(cx)));
        assert_eq!(pair.sides[0].events, [Event::SendQueueDrained; 2]);
    }
}

#[test]
fn a_draining_queue_still_answers() {
    let mut pair = Pair::new(0, 1);
    assert!(pair.with_context(1, |qp, cx| qp.to_sqd(cx)));
    pair.post_receive(0, 8);
    pair.post(0, SEND, pattern(1, 8));
    pair.post(1, Op::Read { va: 0, rkey: RKEY }, vec![0; 8]);
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send), [(0, Status::Success), (1, Status::Success)]);
}

#[test]
fn the_first_packet_tells_that_communication_is_established() {
    let mut pair = Pair::new(0, 1);
    pair.with_context(1, |qp, cx| {
        qp.reset(cx);
        assert!(qp.to_init() && qp.to_rtr(&RTR));
    });
    pair.post(0, WRITE, pattern(1, 8));
    pair.post(1, WRITE, pattern(1, 8));
    pair.drive();
    assert_eq!(pair.sides[1].events, [Event::CommunicationEstablished]);
    assert!(pair.sides[1].qp.to_rts(&RTS));
}

#[test]
fn a_reset_forgets_everything_and_completes_nothing() {
    let mut pair = Pair::new(0, 1);
    pair.drop_if = Some(Box::new(|side, repr| side == 0 && repr.bth.psn == Psn::new(1)));
    pair.post_receive(0, 2000);
    pair.post(0, SEND, pattern(1, 2000));
    for _ in 0..6 {
        pair.step();
    }
    assert!(pair.held(1) > 0, "packets came early");
    for side in [0, 1] {
        pair.with_context(side, |qp, cx| qp.reset(cx));
        assert_eq!(pair.held(side), 0, "buffers are given back");
        assert_eq!(pair.sides[side].qp.next_deadline(), None);
        assert_eq!(pair.sides[side].qp.state(), QpState::Reset);
    }
    pair.drive();
    assert!(pair.sides.iter().all(|side| side.completions.is_empty()));
}

#[test]
fn a_queue_pair_that_is_moved_to_the_error_state_answers_no_more() {
    let mut pair = Pair::new(0, 1);
    pair.post(0, Op::Read { va: 0, rkey: RKEY }, vec![0; 256 * 60]);
    while pair.with_context(0, |qp, cx| qp.transmit(cx)) {}
    let (_, request) = pair.sent[0];
    let mut datagram = vec![0; request.header_len() + 4];
    request.emit(&mut datagram);
    pair.deliver(1, &datagram);
    pair.with_context(1, |qp, cx| qp.enter_error(cx));
    while pair.with_context(1, |qp, cx| qp.transmit(cx)) {}
    assert_eq!(pair.sent.len(), 1, "the READ has no answer");
}

// ---- Credits --------------------------------------------------------------------------------

fn credits(receives: u64) -> Pair {
    let mut pair = Pair::with(0xff_fffc, 1, Config { credits: true, ..Config::default() }, 4);
    pair.sides[1].memory.states_credits = true;
    for slot in 0..receives {
        pair.post_receive(slot, 1000);
    }
    pair
}

#[test]
fn acknowledgements_say_how_many_receives_are_posted() {
    let mut pair = credits(5);
    for slot in 0..3 {
        pair.post(slot, SEND, pattern(slot, 300));
        pair.drive();
    }
    pair.post(3, Op::Read { va: 0, rkey: RKEY }, vec![0; 8]);
    pair.drive();
    let said = pair.sent.iter().filter_map(|(_, repr)| match repr.ext {
        Ext::Aeth(aeth) => Some(aeth.syndrome),
        _ => None,
    });
    let said: Vec<_> = said.collect();
    let credit = |credit| Syndrome::Ack { credit };
    assert_eq!(said, [credit(4), credit(3), credit(2), credit(2)], "codes of 4, 3, 2 and 2");
}

#[test]
fn beyond_the_credits_one_packet_asks() {
    let mut pair = credits(1);
    pair.post(0, SEND, pattern(0, 8));
    pair.drive();
    // The answer said that no receive is left.
    for slot in 1..4 {
        pair.post(slot, SEND, pattern(slot, 700));
    }
    let before = pair.sent.len();
    while pair.with_context(0, |qp, cx| qp.transmit(cx)) {}
    assert_eq!(pair.sent.len() - before, 1, "three messages of three packets wait");
    assert!(pair.sent[before].1.bth.ack_request);
    for slot in 1..4 {
        pair.post_receive(slot, 1000);
    }
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send).len(), 4);
    assert_eq!(pair.sides[0].counters.rcvd_rnr_err, 0, "nobody was unready");
}

#[test]
fn what_takes_no_receive_needs_no_credit() {
    let mut pair = credits(1);
    pair.post(0, SEND, pattern(0, 8));
    pair.drive();
    pair.post(1, WRITE, pattern(1, 8));
    pair.post(2, WRITE, pattern(1, 8));
    pair.post(3, Op::Read { va: 0, rkey: RKEY }, vec![0; 8]);
    let before = pair.sent.len();
    while pair.with_context(0, |qp, cx| qp.transmit(cx)) {}
    assert_eq!(pair.sent.len() - before, 3);
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send).len(), 4);
}

#[test]
fn credits_hold_for_thousands_of_messages_of_every_kind() {
    let mut pair = credits(0);
    for slot in 0..120u64 {
        let receive = slot % 3 != 2;
        match slot % 3 {
            0 => pair.post(slot, SEND, pattern(slot, 600)),
            1 => pair.post(slot, Op::Write { va: 0, rkey: RKEY, imm: Some(1) }, pattern(slot, 300)),
            _ => pair.post(slot, Op::Read { va: 0, rkey: RKEY }, vec![0; 40_000]),
        }
        if receive {
            pair.post_receive(slot, 1000);
        }
        if slot % 7 == 0 {
            pair.drive();
        }
    }
    pair.drive();
    assert_eq!(pair.completed(0, Queue::Send).len(), 120);
    assert!(pair.completed(0, Queue::Send).iter().all(|(_, status)| *status == Status::Success));
    assert_eq!(pair.sides[0].counters.rcvd_rnr_err, 0);
}

//! The services beside RC, and the operations beside SEND, WRITE, READ and atomics.

use crate::pair::{Faults, Pair, RKEY, Rng, lose, pattern};
use anyverbs_engine::*;
use anyverbs_wire::{Ext, Feth, Operation as O, Qpn, Selectivity, Service};

const SEND: Op = Op::Send { imm: None };
const WRITE: Op = Op::Write { va: 0, rkey: RKEY, imm: None };
const SRQN: Qpn = Qpn::new(0x77);

fn pair(qp_type: QpType) -> Pair {
    let types = match qp_type {
        QpType::XrcSend => [QpType::XrcSend, QpType::XrcRecv],
        other => [other; 2],
    };
    let configs = types.map(|qp_type| Config { qp_type, qpn: Qpn::new(0x11), ..Config::default() });
    let mut pair = Pair::of(configs, 0xff_fffe, 1, 4);
    match qp_type {
        QpType::Ud => {
            pair.destination = Destination::Datagram { qpn: Qpn::new(1), qkey: 0xabc };
            pair.sides[1].qp.set_qkey(0xabc);
        }
        QpType::XrcSend => {
            pair.destination = Destination::SharedReceive(SRQN);
            pair.sides[1].memory.shared = Some(SRQN);
        }
        _ => {}
    }
    pair
}

fn statuses(pair: &Pair, side: usize, queue: Queue) -> Vec<Status> {
    pair.completed(side, queue).into_iter().map(|(_, status)| status).collect()
}

// ---- UC -------------------------------------------------------------------------------------

#[test]
fn uc_sends_and_writes_are_placed_and_not_answered() {
    let mut pair = pair(QpType::Uc);
    pair.post_receive(0, 1000);
    pair.post_receive(1, 0);
    pair.post(0, Op::Send { imm: Some(9) }, pattern(1, 700));
    pair.post(1, Op::Write { va: 64, rkey: RKEY, imm: Some(7) }, pattern(2, 300));
    pair.post(2, WRITE, Vec::new());
    pair.drive();
    assert_eq!(
        pair.completed(0, Queue::Send),
        (0..3).map(|slot| (slot, Status::Success)).collect::<Vec<_>>()
    );
    let receives: Vec<_> = pair.sides[1].completions.iter().map(|c| (c.kind, c.imm, c.len)).collect();
    assert_eq!(receives, [(ReceiveKind::Send, Some(9), 700), (ReceiveKind::WriteImm, Some(7), 300)]);
    assert_eq!(pair.sides[1].memory.taken[&0][..700], pattern(1, 700)[..]);
    assert_eq!(pair.sides[1].memory.region[64..364], pattern(2, 300)[..]);
    assert!(pair.sent.iter().all(|(side, repr)| *side == 0 && repr.bth.opcode.is_of(Service::Uc)));
}

#[test]
fn a_lost_packet_of_uc_costs_its_message_and_no_receive() {
    for lost in 0..4 {
        let mut pair = pair(QpType::Uc);
        // PSNs begin at 0xfffffe: the first message has 0xfffffe..=1, the second 2..=4.
        pair.drop_if = lose(0, &[(0xff_fffe + lost) & 0xff_ffff]);
        pair.post_receive(0, 1000);
        pair.post(0, SEND, pattern(1, 1000));
        pair.post(1, SEND, pattern(2, 600));
        pair.drive();
        assert_eq!(statuses(&pair, 0, Queue::Send), [Status::Success; 2], "nobody tells the sender");
        assert_eq!(pair.completed(1, Queue::Receive), [(0, Status::Success)], "lost {lost}");
        assert_eq!(pair.sides[1].memory.taken[&0][..600], pattern(2, 600)[..], "the receive serves the next");
        assert_eq!(pair.sides[1].completions[0].len, 600);
    }
}

#[test]
fn what_uc_may_not_do_is_dropped_and_changes_nothing() {
    for (op, data, counter) in [
        (Op::Write { va: 0, rkey: RKEY + 1, imm: None }, 8, "resp_remote_access_errors"),
        (Op::Write { va: 65_000, rkey: RKEY, imm: None }, 1000, "resp_remote_access_errors"),
        (SEND, 17, "resp_local_length_error"),
        (SEND, 1700, "resp_local_length_error"),
    ] {
        let mut pair = pair(QpType::Uc);
        pair.post_receive(0, 16);
        pair.post(0, op, pattern(1, data));
        pair.post(1, SEND, pattern(2, 16));
        pair.drive();
        let counters: Vec<_> = pair.sides[1].counters.iter().filter(|(_, value)| *value > 0).collect();
        assert!(counters.contains(&(counter, 1)), "{op:?}: {counters:?}");
        assert_eq!(statuses(&pair, 0, Queue::Send), [Status::Success; 2]);
        assert_eq!(pair.completed(1, Queue::Receive), [(0, Status::Success)]);
        assert_eq!(pair.sides[1].memory.taken[&0], pattern(2, 16));
        assert!(pair.sides[1].memory.region.iter().all(|byte| *byte == 0), "{op:?}");
        assert_eq!(pair.sides[1].qp.state(), QpState::ReadyToSend);
    }
    let mut none = pair(QpType::Uc);
    none.post(0, SEND, pattern(1, 8));
    none.drive();
    assert_eq!(none.sides[1].counters.out_of_buffer, 1);
}

// ---- UD -------------------------------------------------------------------------------------

#[test]
fn a_datagram_arrives_behind_forty_bytes_and_says_who_sent_it() {
    let mut pair = pair(QpType::Ud);
    pair.post_receive(0, 40 + 256);
    pair.post_receive(1, 40);
    pair.post(0, Op::Send { imm: Some(3) }, pattern(1, 256));
    pair.post(1, SEND, Vec::new());
    pair.drive();
    let receives: Vec<_> = pair.sides[1].completions.iter().map(|c| (c.imm, c.len, c.source)).collect();
    let source = Some(Qpn::new(0x11));
    assert_eq!(receives, [(Some(3), 296, source), (None, 40, source)]);
    let (grh, message) = pair.sides[1].memory.taken[&0].split_at(40);
    assert_eq!((grh, message), (&[0xdd; 40][..], &pattern(1, 256)[..]));
    assert!(pair.sent.iter().all(|(_, repr)| repr.bth.opcode.is_of(Service::Ud)));
}

#[test]
fn a_datagram_with_another_key_or_without_room_is_dropped() {
    let mut pair = pair(QpType::Ud);
    pair.sides[1].qp.set_qkey(0xdef);
    pair.post_receive(0, 100);
    pair.post(0, SEND, pattern(1, 8));
    pair.drive();
    assert_eq!(pair.sides[1].counters.qkey_viol_cntr, 1);
    pair.sides[1].qp.set_qkey(0xabc);
    pair.post(1, SEND, pattern(1, 61));
    pair.post(2, SEND, pattern(2, 60));
    pair.post(3, SEND, pattern(3, 8));
    pair.drive();
    assert_eq!(pair.sides[1].counters.resp_local_length_error, 1);
    assert_eq!(pair.sides[1].counters.out_of_buffer, 1);
    assert_eq!(pair.completed(1, Queue::Receive), [(0, Status::Success)]);
    assert_eq!(pair.sides[1].memory.taken[&0][40..], pattern(2, 60)[..]);
}

#[test]
fn a_datagram_that_is_no_packet_ends_the_send_queue_alone() {
    let mut pair = pair(QpType::Ud);
    pair.post_receive(0, 100);
    pair.post(0, SEND, pattern(1, 60));
    pair.post(1, SEND, pattern(2, 257));
    pair.post(2, SEND, pattern(3, 60));
    pair.drive();
    let expected = [Status::Success, Status::LocalLengthError, Status::FlushError];
    assert_eq!(statuses(&pair, 0, Queue::Send), expected);
    assert_eq!(pair.sides[0].qp.state(), QpState::SendQueueError);
    pair.post(3, SEND, pattern(3, 60));
    assert_eq!(statuses(&pair, 0, Queue::Send)[3..], [Status::FlushError], "still in the error");
    assert!(pair.sides[0].qp.resume());
    pair.post_receive(1, 100);
    pair.post(4, SEND, pattern(4, 60));
    pair.drive();
    assert_eq!(statuses(&pair, 0, Queue::Send)[4..], [Status::Success]);
    assert_eq!(statuses(&pair, 1, Queue::Receive), [Status::Success; 2], "its receives were never touched");
}

#[test]
fn operations_and_destinations_of_other_types_are_refused() {
    let read = Op::Read { va: 0, rkey: RKEY };
    let datagram = Destination::Datagram { qpn: Qpn::new(1), qkey: 0 };
    for (qp_type, op, destination) in [
        (QpType::Uc, read, Destination::Connected),
        (QpType::Uc, Op::SendInvalidate { rkey: RKEY }, Destination::Connected),
        (QpType::Uc, SEND, datagram),
        (QpType::Ud, WRITE, datagram),
        (QpType::Ud, SEND, Destination::Connected),
        (QpType::Rc, SEND, datagram),
        (QpType::Rc, SEND, Destination::SharedReceive(SRQN)),
        (QpType::XrcSend, SEND, Destination::Connected),
    ] {
        let mut pair = pair(qp_type);
        let request = SendRequest { destination, ..SendRequest::new(0, op, 8) };
        assert!(!pair.with_context(0, |qp, cx| qp.post_send(cx, request)), "{qp_type:?} {op:?}");
    }
    let mut xrc = pair(QpType::XrcSend);
    let request =
        SendRequest { destination: Destination::SharedReceive(SRQN), ..SendRequest::new(0, SEND, 8) };
    assert!(!xrc.with_context(1, |qp, cx| qp.post_send(cx, request)), "a target sends nothing");
    let long = SendRequest::new(0, WRITE, MESSAGE_MAX + 1);
    assert!(!pair(QpType::Rc).with_context(0, |qp, cx| qp.post_send(cx, long)), "longer than 2 GiB");
}

// ---- XRC ------------------------------------------------------------------------------------

#[test]
fn xrc_requests_name_the_shared_receive_queue_and_answers_do_not() {
    let mut pair = pair(QpType::XrcSend);
    pair.post_receive(0, 700);
    pair.post_receive(1, 0);
    pair.post(0, SEND, pattern(1, 700));
    pair.post(1, Op::Write { va: 0, rkey: RKEY, imm: Some(5) }, pattern(2, 300));
    pair.post(2, Op::Read { va: 0, rkey: RKEY }, vec![0; 300]);
    pair.post(3, Op::FetchAdd { va: 8192, rkey: RKEY, add: 2 }, vec![0; 8]);
    pair.drive();
    assert_eq!(statuses(&pair, 0, Queue::Send), [Status::Success; 4]);
    assert_eq!(statuses(&pair, 1, Queue::Receive), [Status::Success; 2]);
    assert_eq!(pair.sides[1].memory.taken[&0], pattern(1, 700));
    assert_eq!(pair.sides[0].memory.sends[&2], pattern(2, 300));
    for (side, repr) in &pair.sent {
        assert!(repr.bth.opcode.is_of(Service::Xrc) && repr.is_consistent(), "{repr}");
        assert_eq!(repr.xrc_srqn, (*side == 0).then_some(SRQN));
    }
}

#[test]
fn an_xrc_request_for_an_unknown_queue_is_invalid() {
    let mut pair = pair(QpType::XrcSend);
    pair.destination = Destination::SharedReceive(Qpn::new(0x78));
    pair.post_receive(0, 8);
    pair.post(0, SEND, pattern(1, 8));
    pair.drive();
    assert_eq!(statuses(&pair, 0, Queue::Send), [Status::RemoteInvalidRequest]);
    assert_eq!(statuses(&pair, 1, Queue::Receive), [], "a shared queue is not flushed");
    assert_eq!(pair.sides[1].events, [Event::CommunicationEstablished, Event::RequestError][1..]);
}

#[test]
fn a_message_that_changes_its_shared_receive_queue_is_invalid() {
    let mut pair = pair(QpType::XrcSend);
    pair.post_receive(0, 1000);
    pair.post(0, SEND, pattern(1, 700));
    while pair.with_context(0, |qp, cx| qp.transmit(cx)) {}
    let headers: Vec<_> = pair.sent.iter().map(|(_, header)| *header).collect();
    for (nth, mut header) in headers.into_iter().enumerate().take(2) {
        header.xrc_srqn = if nth == 1 { Some(Qpn::new(0x78)) } else { header.xrc_srqn };
        let mut datagram = vec![0; header.header_len() + 256 + 4];
        header.emit(&mut datagram);
        pair.deliver(1, &datagram);
    }
    assert_eq!(pair.sides[1].qp.state(), QpState::Error);
    assert_eq!(pair.sides[1].counters.resp_remote_invalid_requests, 1);
}

// ---- SEND with invalidate, FLUSH, ATOMIC WRITE ----------------------------------------------

#[test]
fn a_send_with_invalidate_takes_the_key_away_before_it_completes() {
    for len in [0, 8, 700] {
        let mut pair = pair(QpType::Rc);
        pair.post_receive(0, 1000);
        pair.post(0, WRITE, pattern(1, 100));
        pair.post(1, Op::SendInvalidate { rkey: RKEY }, pattern(2, len));
        pair.drive();
        assert_eq!(statuses(&pair, 0, Queue::Send), [Status::Success; 2]);
        let [receive] = pair.sides[1].completions[..] else { panic!("one receive") };
        assert_eq!((receive.invalidated, receive.len), (Some(RKEY), len as u32));
        assert_eq!(pair.sides[1].memory.invalidated, [RKEY]);
        pair.post(2, WRITE, pattern(3, 100));
        pair.drive();
        assert_eq!(statuses(&pair, 0, Queue::Send)[2..], [Status::RemoteAccessError]);
        assert_eq!(pair.sides[1].memory.region[..100], pattern(1, 100)[..]);
    }
}

#[test]
fn a_key_that_may_not_be_invalidated_ends_both_sides() {
    let mut pair = pair(QpType::Rc);
    pair.post_receive(0, 8);
    pair.post(0, Op::SendInvalidate { rkey: RKEY + 1 }, pattern(2, 8));
    pair.drive();
    assert_eq!(statuses(&pair, 0, Queue::Send), [Status::RemoteAccessError]);
    assert_eq!(statuses(&pair, 1, Queue::Receive), [Status::RemoteInvalidRequest]);
    assert_eq!(pair.sides[1].events, [Event::AccessError]);
}

#[test]
fn flush_and_atomic_write_are_answered_by_an_empty_read_response() {
    let mut pair = pair(QpType::Rc);
    let feth = |selectivity| Feth { placement: Feth::GLOBAL, selectivity };
    pair.post(0, Op::AtomicWrite { va: 4096, rkey: RKEY }, pattern(1, 8));
    pair.post(1, Op::Flush { va: 4096, rkey: RKEY, feth: feth(Selectivity::Range) }, vec![0; 5000]);
    pair.post(2, Op::Flush { va: 0, rkey: RKEY, feth: feth(Selectivity::Region) }, Vec::new());
    pair.drive();
    assert_eq!(statuses(&pair, 0, Queue::Send), [Status::Success; 3]);
    assert_eq!(pair.sides[1].memory.region[4096..4104], pattern(1, 8)[..]);
    assert_eq!(pair.sides[1].memory.flushed, [(4096, 5000), (0, 0)]);
    let answers: Vec<_> = pair.sent.iter().filter(|(side, _)| *side == 1).map(|(_, repr)| *repr).collect();
    for (answer, psn) in answers.iter().zip([0xff_fffe, 0xff_ffff, 0]) {
        assert_eq!(answer.bth.opcode.operation(), Some(O::ReadResponseOnly));
        assert_eq!((answer.bth.psn.value(), answer.header_len()), (psn, 16));
    }
    assert_eq!(answers.len(), 3, "whatever range a FLUSH is about, it takes one PSN");
}

#[test]
fn flush_and_atomic_write_that_may_not_be_are_refused() {
    let flush =
        |placement, selectivity, rkey| Op::Flush { va: 0, rkey, feth: Feth { placement, selectivity } };
    let (invalid, access) = (Status::RemoteInvalidRequest, Status::RemoteAccessError);
    for (op, len, status) in [
        (flush(0, Selectivity::Range, RKEY), 8, invalid),
        (flush(4, Selectivity::Range, RKEY), 8, invalid),
        (flush(1, Selectivity::Reserved(2), RKEY), 8, invalid),
        (flush(1, Selectivity::Range, RKEY + 1), 8, access),
        (flush(Feth::PERSISTENT, Selectivity::Range, RKEY), 8, access),
        (Op::AtomicWrite { va: 4, rkey: RKEY }, 8, invalid),
        (Op::AtomicWrite { va: 0, rkey: RKEY }, 4, invalid),
        (Op::AtomicWrite { va: 0, rkey: RKEY + 1 }, 8, access),
        (Op::AtomicWrite { va: 65_536, rkey: RKEY }, 8, access),
    ] {
        let mut pair = pair(QpType::Rc);
        pair.post(0, op, vec![1; len]);
        pair.drive();
        assert_eq!(statuses(&pair, 0, Queue::Send), [status], "{op:?}");
        assert!(pair.sides[1].memory.region.iter().all(|byte| *byte == 0), "{op:?}");
    }
}

#[test]
fn a_lost_answer_of_an_atomic_write_is_replayed_and_not_written_again() {
    let mut pair = pair(QpType::Rc);
    let mut lost = false;
    pair.drop_if = Some(Box::new(move |side, repr| {
        let drop = side == 1 && !lost && matches!(repr.ext, Ext::Aeth(_));
        lost |= drop;
        drop
    }));
    pair.post(0, Op::AtomicWrite { va: 0, rkey: RKEY }, pattern(1, 8));
    while pair.sent.len() < 2 {
        assert!(pair.step());
    }
    // Somebody on the other side changes it between the write and its repetition.
    assert_eq!(pair.sides[1].memory.region[..8], pattern(1, 8)[..]);
    pair.sides[1].memory.region[..8].copy_from_slice(&[9; 8]);
    pair.drive();
    assert_eq!(statuses(&pair, 0, Queue::Send), [Status::Success]);
    assert_eq!(pair.sides[1].memory.region[..8], [9; 8]);
    assert_eq!(pair.sides[1].counters.duplicate_request, 1);
}

// ---- Random programs ------------------------------------------------------------------------

/// What arrives over UC or UD is what was sent, whole, at most as often as the network repeats it, and
/// without repetition or reordering in the network in order and at most once.
fn unreliable_swarm(seed: u64) {
    let mut rng = Rng(seed.wrapping_mul(0xd6e8_feb8_6659_fd93) | 1);
    let qp_type = [QpType::Uc, QpType::Ud][rng.below(2) as usize];
    let mut pair = pair(qp_type);
    pair.rng = Rng(seed | 1);
    let orderly = rng.below(2) == 0;
    pair.faults = Faults {
        loss: [0, 20, 200][rng.below(3) as usize],
        duplicate: if orderly { 0 } else { 50 },
        reorder: if orderly { 0 } else { 100 },
        lazy: 0,
    };
    let count = 1 + rng.below(60);
    let mut lens = Vec::new();
    for slot in 0..count {
        pair.post_receive(slot, 40 + 1500);
        let len = [0, 1, 255, 256, 257, 1500][rng.below(if qp_type == QpType::Ud { 4 } else { 6 }) as usize];
        lens.push(len);
        let imm = Some(slot as u32);
        if qp_type == QpType::Uc && rng.below(4) == 0 {
            pair.post(slot, Op::Write { va: slot * 1024, rkey: RKEY, imm }, pattern(slot, len.min(1024)));
        } else {
            pair.post(slot, Op::Send { imm }, pattern(slot, len));
        }
        if rng.below(3) == 0 {
            pair.drive();
        }
    }
    pair.drive();
    assert_eq!(statuses(&pair, 0, Queue::Send), vec![Status::Success; count as usize], "seed {seed}");
    let receives: Vec<Completion> = pair.sides[1].completions.clone();
    let mut last = None;
    for (nth, receive) in receives.iter().enumerate() {
        assert_eq!((receive.slot, receive.status), (nth as u64, Status::Success), "seed {seed}");
        let message = receive.imm.expect("every message has its number");
        let slot = u64::from(message);
        let data = match receive.kind {
            ReceiveKind::WriteImm => &pair.sides[1].memory.region[slot as usize * 1024..],
            ReceiveKind::Send if qp_type == QpType::Ud => &pair.sides[1].memory.taken[&receive.slot][40..],
            ReceiveKind::Send => &pair.sides[1].memory.taken[&receive.slot][..],
        };
        let len = pair.sides[0].memory.sends[&slot].len();
        assert_eq!(data[..len], pattern(slot, len)[..], "seed {seed}: message {message}");
        let overhead = if qp_type == QpType::Ud { 40 } else { 0 };
        assert_eq!(receive.len as usize, len + overhead, "seed {seed}");
        if orderly {
            assert!(last < Some(message), "seed {seed}: {message} after {last:?}");
            last = Some(message);
        }
    }
    if orderly && pair.faults.loss == 0 {
        assert_eq!(receives.len(), lens.len(), "seed {seed}: nothing was lost");
    }
}

#[test]
fn unreliable_services_deliver_whole_messages_or_nothing() {
    (1..=600).for_each(unreliable_swarm);
}

//! Notifications on the wire: who sends them, when, and who obeys them.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::bottleneck::NoMemory;
use crate::one::{One, us};
use anyverbs_engine::congestion::{CE, Control, DcqcnParameters, ECT_0, NOT_ECT, NotificationPoint};
use anyverbs_engine::*;
use anyverbs_wire::{Opcode, Operation, Repr};

#[test]
fn at_most_one_notification_leaves_per_interval() {
    let mut point = NotificationPoint::new(Duration::from_micros(50));
    for unmarked in [NOT_ECT, ECT_0, 0b01] {
        assert!(!point.on_packet(us(0), unmarked));
    }
    let sent: Vec<u64> = (7..300).filter(|at| point.on_packet(us(*at), CE)).collect();
    assert_eq!(sent, [7, 57, 107, 157, 207, 257]);
    assert!(point.on_packet(us(1_000_000), CE), "the first after a pause is reported at once");
    let mut never = NotificationPoint::new(Duration::MAX);
    assert!(never.on_packet(us(1), CE) && !never.on_packet(us(1_000_000), CE));
}

fn dcqcn() -> Control {
    Control::Dcqcn(DcqcnParameters::new(NonZeroU64::new(1_000_000_000).unwrap()))
}

/// The packets of a WRITE of so many full ones.
fn write(packets: u32) -> Vec<Repr> {
    let mut sender = One::new(Control::Static).ready_to_send();
    sender.post(us(0), packets * 4096).iter().map(|transmit| transmit.header).collect()
}

fn notifications(sent: &[Transmit<()>]) -> usize {
    sent.iter().filter(|transmit| transmit.header.bth.opcode == Opcode::CNP).count()
}

#[test]
fn a_marked_request_is_answered_with_the_packet_that_network_cards_send() {
    let request = write(1)[0];
    // Whatever its own control is: what to make of a notification is for the peer to know.
    for control in [Control::Static, dcqcn()] {
        let mut receiver = One::new(control);
        let sent = receiver.arrives(us(0), &request, 4096, CE);
        assert_eq!(sent.len(), 2, "the notification, then the acknowledgement");
        let mut bytes = vec![0xff; sent[0].header.header_len()];
        sent[0].header.emit(&mut bytes);
        // As captured from a ConnectX-4 Lx.
        let expected = [0x81, 0, 0xff, 0xff, 0x40, 0, 1, 0x18, 0, 0, 0, 0];
        assert_eq!((&bytes[..12], &bytes[12..]), (&expected[..], &[0; 16][..]));
        assert_eq!((sent[0].at, sent[0].payload), (us(0), Source::None));
        assert_eq!(receiver.counters.np_cnp_sent, 1);
        assert_eq!(receiver.counters.sent_pkts, 2);
    }
}

#[test]
fn marks_within_an_interval_share_a_notification() {
    let mut receiver = One::new(Control::Static);
    let sent: usize = write(100)
        .iter()
        .zip(0..)
        .map(|(packet, at)| notifications(&receiver.arrives(us(at), packet, 4096, CE)))
        .sum();
    assert_eq!(sent, 2, "at 0 and 50 us");
    assert_eq!(receiver.counters.np_ecn_marked_roce_packets, 100);
    let unmarked = One::new(Control::Static).arrives(us(0), &write(1)[0], 4096, ECT_0);
    assert_eq!(notifications(&unmarked), 0);
}

#[test]
fn a_marked_acknowledgement_or_a_packet_that_is_not_admitted_is_not_reported() {
    let mut sender = One::new(dcqcn()).ready_to_send();
    let request = sender.post(us(0), 4096)[0].header;
    let acknowledgement = One::new(dcqcn()).arrives(us(1), &request, 4096, NOT_ECT)[0].header;
    assert_eq!(acknowledgement.bth.opcode.operation(), Some(Operation::Acknowledge));
    assert_eq!(notifications(&sender.arrives(us(2), &acknowledgement, 0, CE)), 0);
    let mut foreign = request;
    foreign.bth.pkey = 0x1234;
    assert_eq!(notifications(&sender.arrives(us(3), &foreign, 4096, CE)), 0);
    assert_eq!(sender.counters.np_ecn_marked_roce_packets, 0);
}

#[test]
fn a_notification_slows_requests_down_and_only_where_it_was_asked_for() {
    let cnp = One::new(Control::Static).arrives(us(0), &write(1)[0], 4096, CE)[0].header;
    for (control, obeys) in [(Control::Static, false), (dcqcn(), true)] {
        let mut sender = One::new(control).ready_to_send();
        assert_eq!(sender.qp.ecn(), if obeys { ECT_0 } else { NOT_ECT });
        assert!(sender.arrives(us(0), &cnp, 0, NOT_ECT).is_empty());
        assert_eq!(
            (sender.counters.rp_cnp_handled, sender.counters.rp_cnp_ignored),
            (u64::from(obeys), u64::from(!obeys))
        );
        sender.act(us(60), |qp, cx| qp.on_timer(cx));
        let sent = sender.post(us(60), 4 * 4096);
        let at: Vec<u64> = sent.iter().map(|transmit| transmit.at.as_nanos() - 60_000).collect();
        // 4096 + 58 bytes at 257/512 of 1 GB/s.
        let pause = if obeys { 8276 } else { 0 };
        assert_eq!(at, [0, pause, 2 * pause, 3 * pause]);
    }
}

#[test]
fn a_marked_packet_that_asks_for_nothing_is_reported_nevertheless() {
    let packets = write(2);
    assert!(!packets[0].bth.ack_request);
    let mut receiver = One::new(Control::Static);
    let mut actions = Vec::new();
    let mut cx = Context {
        now: us(0),
        memory: &mut NoMemory,
        actions: &mut actions,
        counters: &mut receiver.counters,
    };
    assert!(!receiver.qp.wants_transmit());
    receiver.qp.on_packet(&mut cx, &packets[0], 4096, CE);
    assert!(receiver.qp.wants_transmit());
    receiver.qp.transmit(&mut cx);
    assert!(!receiver.qp.wants_transmit());
    assert!(actions.iter().any(|action| matches!(action, Action::Transmit(_))));
}

#[test]
fn a_notification_of_another_partition_or_before_its_time_is_dropped() {
    let mut cnp = One::new(Control::Static).arrives(us(0), &write(1)[0], 4096, CE)[0].header;
    let mut early = QueuePair::new(Config { congestion: dcqcn(), ..Config::default() });
    assert!(early.to_init());
    let mut receiver = One { qp: early, counters: Counters::default() };
    receiver.arrives(us(0), &cnp, 0, NOT_ECT);
    cnp.bth.pkey = 0x1234;
    let mut sender = One::new(dcqcn()).ready_to_send();
    sender.arrives(us(0), &cnp, 0, NOT_ECT);
    assert_eq!((receiver.counters.rx_out_of_state, sender.counters.bad_pkey_cntr), (1, 1));
    for one in [&receiver, &sender] {
        assert_eq!(one.counters.rp_cnp_handled, 0);
        assert_eq!(one.qp.congestion().next_deadline(), None);
    }
}

#[test]
fn the_lower_of_the_configured_and_the_controlled_rate_counts() {
    for (limit, pause) in [(100_000_000, 41_540), (2_000_000_000, 4_154)] {
        let config =
            Config { congestion: dcqcn(), bytes_per_second: NonZeroU64::new(limit), ..Config::default() };
        let sent = One::with(config).ready_to_send().post(us(0), 2 * 4096);
        assert_eq!(sent[1].at.since(sent[0].at).as_nanos(), pause);
    }
}

#[test]
fn what_a_queue_pair_sends_makes_it_recover() {
    let Control::Dcqcn(parameters) = dcqcn() else { return };
    let increase_bytes = NonZeroU64::new(2 * 4154);
    let cnp = One::new(Control::Static).arrives(us(0), &write(1)[0], 4096, CE)[0].header;
    let mut sender = One::new(Control::Dcqcn(DcqcnParameters { increase_bytes, ..parameters }));
    sender = sender.ready_to_send();
    sender.arrives(us(0), &cnp, 0, NOT_ECT);
    sender.act(us(60), |qp, cx| qp.on_timer(cx));
    let rate = |sender: &One| sender.qp.congestion().rate_bytes_per_second().map_or(0, NonZeroU64::get);
    assert_eq!(rate(&sender), 501_953_125);
    sender.post(us(60), 2 * 4096);
    assert_eq!(rate(&sender), 750_976_562);
}

#[test]
fn duplicates_that_wait_for_their_time_are_not_held_against_the_reader() {
    let mut reader = One::new(Control::Static).ready_to_send();
    let op = Op::Read { va: 0, rkey: 1 };
    let mut read = |slot| {
        let request = SendRequest::new(slot, op, 4096);
        reader.act(us(0), |qp, cx| assert!(qp.post_send(cx, request)))
    };
    let first: Vec<Repr> = (0..4).flat_map(&mut read).map(|sent| sent.header).collect();
    assert_eq!(first.len(), 4, "as many as agreed");
    let mut later = first[3];
    later.bth.psn = later.bth.psn.add(1);

    // 4154 us a response: the reader loses patience, and asks for all of them again.
    let slow = Config { bytes_per_second: NonZeroU64::new(1_000_000), ..Config::default() };
    let mut responder = One::with(slow);
    let mut sent = Vec::new();
    for request in first.iter().chain(&first) {
        sent.extend(responder.arrives(us(0), request, 0, NOT_ECT));
    }
    while sent.len() < 4 {
        let deadline = responder.qp.next_deadline().expect("the rest has a time");
        sent.extend(responder.act(deadline, |qp, cx| qp.on_timer(cx)));
    }
    responder.arrives(sent[3].at, &later, 0, NOT_ECT);
    assert_eq!(responder.qp.state(), QpState::ReadyToReceive, "it was not one too many");
}

#[test]
fn read_responses_slow_down_too_and_no_answer_overtakes_them() {
    let mut reader = One::new(Control::Static).ready_to_send();
    let op = Op::Read { va: 0, rkey: 1 };
    let request = SendRequest::new(0, op, 20 * 4096);
    let read = reader.act(us(0), |qp, cx| assert!(qp.post_send(cx, request)))[0].header;
    let write = reader.post(us(0), 4096)[0].header;
    let cnp = One::new(Control::Static).arrives(us(0), &write, 4096, CE);
    let cnp = cnp[0].header;

    // It only answers: it is not ready to send, and slows down nevertheless.
    let mut responder = One::new(dcqcn());
    responder.arrives(us(0), &cnp, 0, NOT_ECT);
    assert!(responder.qp.next_deadline().is_some());
    responder.act(us(60), |qp, cx| qp.on_timer(cx));
    let mut sent = responder.arrives(us(60), &read, 0, NOT_ECT);
    sent.extend(responder.arrives(us(60), &write, 4096, NOT_ECT));
    assert!(sent.len() < 20, "some wait for their time");
    while sent.len() < 21 {
        assert!(!responder.qp.wants_transmit(), "a paced queue pair must not spin");
        let deadline = responder.qp.next_deadline().expect("the rest has a time");
        sent.extend(responder.act(deadline, |qp, cx| qp.on_timer(cx)));
    }
    assert!(sent.is_sorted_by_key(|transmit| transmit.at));
    assert!(sent[19].at >= us(60 + 19 * 5), "they are paced");
    let last = sent[20].header.bth;
    assert_eq!(last.opcode.operation(), Some(Operation::Acknowledge), "behind the responses");
}

//! The delay-based law against figures worked out by hand.

use std::time::Duration;

use crate::one::{One, us};
use anyverbs_engine::congestion::{Congestion, Control, Delay, DelayParameters, NOT_ECT};
use anyverbs_engine::{Config, Op, Recovery, SendRequest};
use anyverbs_wire::{Aeth, Ext, NakCode, Opcode, Operation, Psn, Repr, Service, Syndrome};

const TARGET: Duration = Duration::from_micros(100);

/// No scaling, so that the target is a number, and the whole window from the start.
fn parameters() -> DelayParameters {
    DelayParameters {
        flow_scaling: Duration::ZERO,
        increase_thousandths: 1000,
        window_initial: u32::MAX,
        ..DelayParameters::new(TARGET)
    }
}

const SHORT: Option<Duration> = Some(Duration::from_micros(50));
const DOUBLE: Option<Duration> = Some(Duration::from_micros(200));
const HUGE: Option<Duration> = Some(Duration::from_secs(1));

#[test]
fn below_the_target_a_window_of_packets_adds_one() {
    let parameters = DelayParameters { window_initial: 10, ..parameters() };
    let mut delay = Delay::new(&parameters, 256, 4154);
    assert_eq!(delay.window(), 10.0);
    delay.on_ack(us(50), SHORT, 10);
    assert_eq!(delay.window(), 11.0);
    // What is acknowledged without a measurement counts with the next one.
    delay.on_ack(us(60), None, 8);
    assert_eq!(delay.window(), 11.0);
    delay.on_ack(us(100), SHORT, 3);
    assert_eq!(delay.window(), 12.0);
}

#[test]
fn above_the_target_it_shrinks_by_the_excess_once_a_round_trip() {
    let mut delay = Delay::new(&parameters(), 200, 4154);
    delay.on_ack(us(1000), DOUBLE, 1);
    assert_eq!(delay.window(), 120.0, "0.8 of the excess of one half");
    delay.on_ack(us(1199), DOUBLE, 1);
    assert_eq!(delay.window(), 120.0, "measured before the cut could tell");
    delay.on_ack(us(1200), DOUBLE, 1);
    assert_eq!(delay.window(), 72.0);
    delay.on_ack(us(2_000_000), HUGE, 1);
    assert_eq!(delay.window(), 36.0, "by half at most");
}

#[test]
fn it_stays_between_its_limits() {
    let mut delay = Delay::new(&parameters(), 20, 4154);
    delay.on_ack(us(1), SHORT, 1000);
    assert_eq!(delay.window(), 20.0);
    for s in 1..100 {
        delay.on_ack(us(s * 1_000_000), HUGE, 1);
    }
    assert_eq!(delay.window(), 0.01);
    for window in [0, 1, u32::MAX] {
        let nonsense = DelayParameters {
            target: Duration::ZERO,
            flow_scaling: Duration::MAX,
            increase_thousandths: u32::MAX,
            decrease_thousandths: u32::MAX,
            decrease_max_thousandths: u32::MAX,
            window_min_thousandths: 0,
            window_initial: 0,
        };
        let mut congestion = Congestion::new(&Control::Delay(nonsense), window, 0);
        for round_trip in [Some(Duration::ZERO), None, HUGE, Some(Duration::MAX)] {
            congestion.on_ack(us(5), round_trip, u32::MAX, false);
            congestion.on_timeout(us(5));
            assert!((1..=window.max(1)).contains(&congestion.window_packets()));
            assert_ne!(congestion.ack_interval(), Some(0));
        }
    }
}

#[test]
fn a_part_of_a_packet_becomes_a_pace() {
    let mut delay = Delay::new(&parameters(), 1, 4000);
    assert_eq!((delay.window_packets(), delay.rate_bytes_per_second()), (1, None), "nothing is known yet");
    delay.on_ack(us(1000), DOUBLE, 1);
    assert_eq!(delay.window(), 0.6);
    assert_eq!(delay.window_packets(), 1);
    let rate = delay.rate_bytes_per_second().unwrap().get();
    assert!(rate.abs_diff(12_000_000) <= 1, "0.6 x 4000 bytes in 200 us, not {rate}");
    let mut large = Delay::new(&parameters(), 100, 4000);
    large.on_ack(us(1000), SHORT, 1);
    assert_eq!(large.rate_bytes_per_second(), None);
}

#[test]
fn loss_halves_it_and_silence_ends_at_the_smallest_window() {
    let mut delay = Delay::new(&parameters(), 64, 4154);
    delay.on_ack(us(100), SHORT, 1);
    delay.on_loss(us(1000));
    assert_eq!(delay.window(), 32.0);
    delay.on_loss(us(1049));
    assert_eq!(delay.window(), 32.0, "the same burst");
    for (timeout, expected) in [(1, 16.0), (2, 8.0), (3, 4.0), (4, 2.0), (5, 0.01)] {
        delay.on_timeout(us(1000 + timeout * 1000));
        assert_eq!(delay.window(), expected);
    }
    delay.on_ack(us(10_000), None, 1);
    delay.on_timeout(us(11_000));
    assert_eq!(delay.window(), 0.01, "as small as it gets");
    // An acknowledgement between them ends the count.
    let mut heard = Delay::new(&parameters(), 64, 4154);
    for timeout in 1..=4 {
        heard.on_timeout(us(timeout * 1000));
    }
    heard.on_ack(us(4500), None, 1);
    heard.on_timeout(us(5000));
    assert_eq!(heard.window(), 2.0);
}

#[test]
fn a_small_window_tolerates_a_longer_queue() {
    let scaled = DelayParameters { flow_scaling: TARGET, ..parameters() };
    let target = |window| Delay::new(&scaled, window, 4154).target();
    assert_eq!(target(100), TARGET);
    assert_eq!(target(1000), TARGET);
    assert!(target(4) > target(16) && target(16) > target(64));
    let mut tiny = Delay::new(&scaled, 1, 4154);
    for s in 1..100 {
        tiny.on_ack(us(s * 1_000_000), HUGE, 1);
    }
    assert_eq!(tiny.target(), 2 * TARGET);
}

/// What the queue pair's law has learnt.
fn window(sender: &One) -> f64 {
    sender.qp.congestion().delay().map_or(0.0, Delay::window)
}

/// An answer to packet `psn`.
fn answer(psn: u32, syndrome: Syndrome) -> Repr {
    let mut packet = One::new(Control::Static).ready_to_send().post(us(0), 0)[0].header;
    packet.bth.opcode = Opcode::new(Service::Rc, Operation::Acknowledge);
    packet.bth.psn = Psn::new(psn);
    packet.ext = Ext::Aeth(Aeth { syndrome, msn: 0 });
    packet
}

const ACK: Syndrome = Syndrome::Ack { credit: 31 };

#[test]
fn a_queue_pair_tells_its_law_of_round_trips_gaps_and_timeouts() {
    let parameters = DelayParameters { window_initial: 16, ..parameters() };
    let config =
        Config { congestion: Control::Delay(parameters), recovery: Recovery::GoBackN, ..Config::default() };
    let mut sender = One::with(config).ready_to_send();
    let acknowledge = answer(3, ACK);
    let gap = answer(5, Syndrome::Nak(NakCode::PsnSequenceError));
    let sent = sender.post(us(0), 100 * 4096);
    assert_eq!(sent.len(), 16, "the window");
    let asking: Vec<u32> = sent
        .iter()
        .filter(|sent| sent.header.bth.ack_request)
        .map(|sent| sent.header.bth.psn.value())
        .collect();
    assert_eq!(asking, [3, 7, 11, 15], "four acknowledgements a window");

    let sent = sender.arrives(us(50), &acknowledge, 0, NOT_ECT);
    assert_eq!(window(&sender), 16.25, "4 of 16 packets came in 50 us");
    assert_eq!(sent.len(), 4, "as many leave as arrived");
    assert_eq!(sender.arrives(us(60), &gap, 0, NOT_ECT).len(), 9, "half of the window, from the gap on");
    assert_eq!(window(&sender), 8.125);
    let timeout = sender.qp.next_deadline().expect("a timer");
    assert!(timeout > us(1000));
    assert_eq!(sender.act(timeout, |qp, cx| qp.on_timer(cx)).len(), 1, "a probe");
    assert_eq!(window(&sender), 4.0625);
}

#[test]
fn a_round_trip_begins_when_a_paced_packet_leaves() {
    let parameters = DelayParameters { window_initial: 16, ..parameters() };
    let mut sender = One::new(Control::Delay(parameters)).ready_to_send();
    let acknowledge = |psn| answer(psn, ACK);
    sender.post(us(0), 4096);
    // A long round trip cuts the window to 9.6, of which one leaves every 21 us.
    sender.arrives(us(200), &acknowledge(0), 0, NOT_ECT);
    assert!((window(&sender) - 9.6).abs() < 1e-9);
    let sent = sender.post(us(200), 3 * 4096);
    assert_eq!(sent.len(), 3, "handed out ahead of their times");
    assert!(sent[1].header.bth.ack_request && sent[1].at > us(220));
    // Less than the target since it left, but more since it was handed out.
    sender.arrives(us(310), &acknowledge(2), 0, NOT_ECT);
    assert!(window(&sender) > 9.7);
}

#[test]
fn a_read_measures_a_round_trip_too() {
    let parameters = DelayParameters { window_initial: 16, ..parameters() };
    let mut reader = One::new(Control::Delay(parameters)).ready_to_send();
    let op = Op::Read { va: 0, rkey: 1 };
    let request = SendRequest::new(0, op, 4096);
    let sent = reader.act(us(0), |qp, cx| assert!(qp.post_send(cx, request)));
    let response = One::new(Control::Static).arrives(us(25), &sent[0].header, 0, NOT_ECT);
    assert_eq!(response.len(), 1);
    reader.arrives(us(50), &response[0].header, 4096, NOT_ECT);
    assert_eq!(window(&reader), 16.0625);
}

//! The reaction point against figures worked out by hand or published.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use anyverbs_engine::Time;
use anyverbs_engine::congestion::{Congestion, Control, Dcqcn, DcqcnParameters};

/// 100 Gb/s.
const LINE: u64 = 12_500_000_000;

fn us(us: u64) -> Time {
    Time::from_nanos(us * 1000)
}

/// `us` microseconds and a nanosecond.
fn past(us: u64) -> Time {
    Time::from_nanos(us * 1000 + 1)
}

fn parameters() -> DcqcnParameters {
    DcqcnParameters {
        alpha_interval: Duration::from_micros(50),
        decrease_interval: Duration::from_micros(50),
        increase_interval: Duration::from_micros(55),
        increase_bytes: None,
        gain_inverse: NonZeroU32::new(256).unwrap(),
        fast_recovery_steps: 1,
        ..DcqcnParameters::new(NonZeroU64::new(LINE).unwrap())
    }
}

fn gbps(dcqcn: &Dcqcn) -> f64 {
    dcqcn.rate() * 8.0 / 1e9
}

/// Runs to `until` by the deadlines alone.
fn drive(dcqcn: &mut Dcqcn, until: Time) {
    while let Some(at) = dcqcn.next_deadline().filter(|at| *at <= until) {
        dcqcn.on_timer(at);
    }
}

#[test]
fn one_notification_gives_the_published_trace_exactly() {
    let mut dcqcn = Dcqcn::new(&parameters());
    assert_eq!(gbps(&dcqcn), 100.0);
    assert_eq!(dcqcn.next_deadline(), None);
    dcqcn.on_cnp(Time::ZERO);
    assert_eq!((gbps(&dcqcn), dcqcn.alpha()), (100.0, 1.0));
    let trace = [(50, 50.1953125), (105, 75.09765625), (160, 87.548828125), (215, 93.7744140625)];
    for (at, expected) in trace {
        assert_eq!(dcqcn.next_deadline(), Some(past(at)), "nothing changes in between");
        let before = gbps(&dcqcn);
        dcqcn.on_timer(us(at));
        assert_eq!(gbps(&dcqcn), before, "not a nanosecond early");
        if at == 50 {
            assert_eq!(dcqcn.alpha(), 0.99609375);
        }
        dcqcn.on_timer(past(at));
        assert_eq!(gbps(&dcqcn), expected, "at {at}.001 us");
    }
}

#[test]
fn the_trace_does_not_depend_on_who_asks_when() {
    let (mut late, mut often, mut punctual) =
        (Dcqcn::new(&parameters()), Dcqcn::new(&parameters()), Dcqcn::new(&parameters()));
    let notifications = [3, 51, 90, 400, 410, 1000, 5000, 5049];
    for at in notifications {
        for ns in (often_since(at)..us(at).as_nanos()).step_by(997) {
            often.on_timer(Time::from_nanos(ns));
        }
        drive(&mut punctual, us(at));
        for dcqcn in [&mut late, &mut often, &mut punctual] {
            dcqcn.on_cnp(us(at));
        }
        assert_eq!(gbps(&late), gbps(&often));
        assert_eq!(gbps(&late), gbps(&punctual));
    }
    for dcqcn in [&mut late, &mut often, &mut punctual] {
        dcqcn.on_timer(us(6000));
        assert!(gbps(dcqcn) < 100.0, "still recovering");
    }
    assert_eq!(late, often);
    assert_eq!(late, punctual);
}

fn often_since(at: u64) -> u64 {
    us(at.saturating_sub(300)).as_nanos()
}

#[test]
fn it_recovers_to_the_line_rate_and_comes_to_rest() {
    let mut dcqcn = Dcqcn::new(&parameters());
    dcqcn.on_cnp(Time::ZERO);
    drive(&mut dcqcn, us(10_000));
    assert_eq!(gbps(&dcqcn), 100.0);
    assert_eq!(dcqcn.next_deadline(), None, "an idle queue pair has no timer");
    assert_eq!(dcqcn, Dcqcn::new(&parameters()), "and all is forgotten");
    // A day later it begins anew, and a clock that jumps does not keep anybody busy.
    let day = 86_400_000_000;
    dcqcn.on_timer(us(day));
    dcqcn.on_cnp(us(day));
    assert_eq!(dcqcn.next_deadline(), Some(past(day + 50)));
    dcqcn.on_timer(us(2 * day));
    assert_eq!(dcqcn, Dcqcn::new(&parameters()));
}

#[test]
fn it_arrives_at_the_line_rate_although_nothing_is_to_be_added() {
    let parameters = DcqcnParameters { additive_increase: 0, hyper_increase: 0, ..parameters() };
    let mut dcqcn = Dcqcn::new(&DcqcnParameters { clamp_target: true, ..parameters });
    for at in [0, 60, 120] {
        dcqcn.on_cnp(us(at));
    }
    dcqcn.on_timer(us(3_600_000_000));
    assert_eq!(gbps(&dcqcn), 100.0);
    assert_eq!(dcqcn.next_deadline(), None);
}

#[test]
fn alpha_decays_between_notifications_and_makes_the_next_cut_smaller() {
    let mut dcqcn = Dcqcn::new(&parameters());
    dcqcn.on_cnp(us(0));
    dcqcn.on_cnp(us(260));
    dcqcn.on_timer(us(300));
    // Five intervals without a notification, then one with it.
    let decayed = (255.0f64 / 256.0).powi(5) * 255.0 / 256.0 + 1.0 / 256.0;
    assert!((dcqcn.alpha() - decayed).abs() < 1e-12);
    let before = gbps(&dcqcn);
    dcqcn.on_timer(past(300));
    assert!((gbps(&dcqcn) - before * (1.0 - decayed / 2.0)).abs() < 1e-9);
}

#[test]
fn steady_notifications_drive_it_to_its_floor_and_no_further() {
    let floor = NonZeroU64::new(LINE / 1000).unwrap();
    let mut dcqcn = Dcqcn::new(&DcqcnParameters { rate_min: floor, ..parameters() });
    for at in (0..2_000).step_by(10) {
        dcqcn.on_cnp(us(at));
        assert!(dcqcn.rate_bytes_per_second() >= floor);
    }
    assert_eq!(dcqcn.rate_bytes_per_second(), floor);
    assert!(dcqcn.alpha() > 0.99);
}

/// What each of `steps` steps up adds to the target, after a cut far below the line rate.
fn rises(parameters: DcqcnParameters, steps: usize, mut step: impl FnMut(&mut Dcqcn)) -> Vec<f64> {
    let mut dcqcn = Dcqcn::new(&DcqcnParameters { clamp_target: true, ..parameters });
    for at in [0, 60, 110, 160] {
        dcqcn.on_cnp(us(at));
    }
    dcqcn.on_timer(past(200));
    assert!(gbps(&dcqcn) < 10.0);
    (0..steps)
        .map(|_| {
            let (rate, target) = (dcqcn.rate(), dcqcn.target());
            step(&mut dcqcn);
            assert_eq!(dcqcn.rate(), rate / 2.0 + dcqcn.target() / 2.0, "half of the way");
            dcqcn.target() - target
        })
        .collect()
}

#[test]
fn the_target_stays_then_rises_slowly_then_fast() {
    let parameters = DcqcnParameters {
        fast_recovery_steps: 3,
        additive_increase: 1 << 20,
        hyper_increase: 1 << 24,
        ..parameters()
    };
    let (slow, fast) = ((1 << 20) as f64, (1 << 24) as f64);
    let by_time = rises(parameters, 7, |dcqcn| dcqcn.on_timer(dcqcn.next_deadline().unwrap()));
    assert_eq!(by_time, [0.0, 0.0, 0.0, slow, fast, fast, fast]);
    // With bytes counted besides, it takes both to rise fast.
    let each = NonZeroU64::new(1 << 20).unwrap();
    let parameters = DcqcnParameters { increase_bytes: Some(each), ..parameters };
    let by_bytes = rises(parameters, 6, |dcqcn| {
        dcqcn.on_sent(us(201), 1 << 19);
        dcqcn.on_sent(us(201), 1 << 19);
    });
    assert_eq!(by_bytes, [0.0, 0.0, 0.0, slow, slow, slow]);
    let mut turn = 0;
    let by_both = rises(parameters, 11, |dcqcn| {
        turn += 1;
        match turn % 2 {
            0 => dcqcn.on_timer(dcqcn.next_deadline().unwrap()),
            _ => dcqcn.on_sent(us(200), 1 << 20),
        }
    });
    // Two by time and three by bytes when the sixth comes; four and four when the ninth does.
    assert_eq!(by_both, [0.0, 0.0, 0.0, 0.0, 0.0, slow, slow, slow, fast, fast, fast]);
}

#[test]
fn a_cut_starts_recovery_from_its_beginning() {
    let mut dcqcn = Dcqcn::new(&DcqcnParameters {
        additive_increase: 1 << 20,
        clamp_target: true,
        increase_bytes: NonZeroU64::new(1000),
        ..parameters()
    });
    for at in [0, 60, 110, 160] {
        dcqcn.on_cnp(us(at));
    }
    dcqcn.on_timer(past(300));
    dcqcn.on_sent(past(300), 2400);
    dcqcn.on_cnp(us(310));
    dcqcn.on_timer(past(350));
    let (rate, target) = (dcqcn.rate(), dcqcn.target());
    dcqcn.on_sent(us(351), 999);
    assert_eq!(dcqcn.rate(), rate, "bytes are counted from the cut on");
    dcqcn.on_sent(us(352), 501);
    assert_eq!(dcqcn.rate(), rate / 2.0 + target / 2.0, "fast recovery");
    assert_eq!(dcqcn.target(), target);
    dcqcn.on_sent(us(353), 500);
    assert_eq!(dcqcn.target(), target + (1 << 20) as f64, "the 500 bytes before counted");
}

#[test]
fn a_second_cut_keeps_the_target_unless_told_to_clamp_it() {
    for (clamp_target, expected) in [(false, 100.0), (true, 50.1953125)] {
        let mut dcqcn = Dcqcn::new(&DcqcnParameters { clamp_target, ..parameters() });
        dcqcn.on_cnp(us(0));
        dcqcn.on_cnp(us(60));
        dcqcn.on_timer(past(100));
        assert_eq!(dcqcn.target() * 8.0 / 1e9, expected);
        assert!(gbps(&dcqcn) < 26.0, "cut twice");
    }
}

#[test]
fn nonsense_parameters_and_times_do_no_harm() {
    let one = NonZeroU64::MIN;
    let mut dcqcn = Dcqcn::new(&DcqcnParameters {
        line_rate: one,
        rate_min: NonZeroU64::MAX,
        alpha_interval: Duration::ZERO,
        decrease_interval: Duration::ZERO,
        increase_interval: Duration::MAX,
        increase_bytes: Some(one),
        gain_inverse: NonZeroU32::MAX,
        fast_recovery_steps: 0,
        additive_increase: u64::MAX,
        hyper_increase: u64::MAX,
        clamp_target: true,
    });
    for now in [us(1), us(0), Time::from_nanos(u64::MAX), us(5), Time::from_nanos(u64::MAX)] {
        dcqcn.on_cnp(now);
        dcqcn.on_sent(now, u64::MAX);
        dcqcn.on_timer(now);
        assert_eq!(dcqcn.rate_bytes_per_second(), one);
    }
}

type Event = fn(&mut Congestion);

#[test]
fn a_timeout_and_an_echo_count_as_notifications_and_a_gap_does_not() {
    let events: [(Event, bool); 5] = [
        (|c| assert!(c.on_cnp(us(1))), true),
        (|c| c.on_timeout(us(1)), true),
        (|c| c.on_ack(us(1), None, 1, true), true),
        (|c| c.on_ack(us(1), Some(Duration::from_secs(1)), 1, false), false),
        (|c| c.on_loss(us(1)), false),
    ];
    for (index, (event, slows)) in events.into_iter().enumerate() {
        let mut congestion = Congestion::new(&Control::Dcqcn(parameters()), 77, 4154);
        event(&mut congestion);
        assert_eq!(congestion.next_deadline().is_some(), slows, "event {index}");
        congestion.on_timer(us(60));
        assert_eq!(congestion.rate_bytes_per_second() < NonZeroU64::new(LINE), slows, "event {index}");
        assert_eq!(congestion.window_packets(), 77);
    }
}

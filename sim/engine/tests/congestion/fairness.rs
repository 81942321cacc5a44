//! Queue pairs that share a bottleneck: how even their shares are, what the queue does, and whether
//! anything is lost.

use std::io::Write;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::bottleneck::{Bottleneck, Marking, Outcome, Setup};
use anyverbs_engine::congestion::*;

/// 100 Gb/s.
const LINE: u64 = 12_500_000_000;

const MS: Duration = Duration::from_millis(1);

/// Two WRITE flows of 100 Gb/s each into a link of 100 Gb/s; one starts 2 ms after the other.
const TWO: Setup = Setup {
    flows: 2,
    control: Control::Static,
    window: 256,
    line: LINE,
    latency: Duration::from_micros(1),
    marking: Marking { kmin: 400_000, kmax: 1_600_000, pmax: 0.2 },
    buffer: 16_000_000,
    stagger: Duration::from_millis(2),
    read: false,
    seed: 1,
};

fn dcqcn(line: u64) -> Control {
    Control::Dcqcn(DcqcnParameters::new(NonZeroU64::new(line).unwrap()))
}

fn delay() -> Control {
    Control::Delay(DelayParameters::new(Duration::from_micros(25)))
}

/// Lets the flows settle, then measures, prints what it measured, and checks it.
fn measure(name: &str, setup: Setup, times: [Duration; 2], jain: f64, utilisation: f64) -> Outcome {
    let mut net = Bottleneck::new(setup);
    let start = net.run(times[0]);
    let outcome = net.run(times[1]);
    println!(
        "{name}: {} flows, Jain {:.4}, {:.1} % of the line, longest queue {} KB at first, {} KB then, {} lost",
        setup.flows,
        outcome.jain(),
        100.0 * outcome.utilisation(setup.line),
        start.queue_max / 1000,
        outcome.queue_max / 1000,
        outcome.dropped
    );
    assert!(outcome.jain() >= jain, "{name}: Jain index {:.4} of {:?}", outcome.jain(), outcome.goodput);
    assert!(outcome.utilisation(setup.line) >= utilisation, "{name}: {:.3}", outcome.utilisation(setup.line));
    assert_eq!(outcome.dropped, 0, "{name}: nothing is lost");
    outcome
}

#[test]
fn static_windows_share_a_link_and_fill_its_queue() {
    let outcome = measure("static", TWO, [3 * MS, 4 * MS], 0.999, 0.98);
    assert!(outcome.queue_max > 1_600_000, "both windows stand in the queue");
    let none = Setup { flows: 1, ..TWO };
    measure("static, alone", none, [MS, 2 * MS], 0.999, 0.98);
}

#[test]
fn dcqcn_shares_a_link_and_keeps_the_queue_at_the_marks() {
    let outcome = measure("dcqcn", Setup { control: dcqcn(LINE), ..TWO }, [8 * MS, 16 * MS], 0.9, 0.93);
    assert!(outcome.queue_max < 800_000, "a third of what static windows keep there");
    let slower = Setup {
        control: dcqcn(LINE / 10),
        line: LINE / 10,
        marking: Marking { kmin: 40_000, kmax: 160_000, pmax: 0.2 },
        ..TWO
    };
    let outcome = measure("dcqcn, 10 Gb/s, 40/160 KB", slower, [20 * MS, 60 * MS], 0.95, 0.93);
    assert!(outcome.queue_max < 160_000);
    let lower =
        Setup { control: dcqcn(LINE), marking: Marking { kmin: 5_000, kmax: 200_000, pmax: 0.01 }, ..TWO };
    measure("dcqcn, 5/200 KB at 0.01", lower, [8 * MS, 16 * MS], 0.85, 0.9);
}

#[test]
fn an_incast_of_fifteen_under_dcqcn_is_fair_and_loses_nothing() {
    let incast = Setup { flows: 15, control: dcqcn(LINE), stagger: Duration::ZERO, ..TWO };
    measure("dcqcn incast", incast, [4 * MS, 20 * MS], 0.95, 0.93);
    // The first round trip is the windows' alone: before any notification could come back.
    let shallow = Setup { window: 64, buffer: 4_000_000, ..incast };
    measure("dcqcn incast, window 64, buffer 4 MB", shallow, [6 * MS, 10 * MS], 0.95, 0.93);
    let read = Setup { read: true, ..incast };
    measure("dcqcn incast of READs", read, [4 * MS, 10 * MS], 0.95, 0.9);
}

#[test]
fn delay_based_control_shares_a_link_and_keeps_the_round_trip() {
    let two = Setup { control: delay(), ..TWO };
    let outcome = measure("delay", two, [6 * MS, 6 * MS], 0.98, 0.97);
    // 25 us target, and up to as much again for small windows, at 12.5 GB/s.
    assert!(outcome.queue_max < 450_000);
    let slower = Setup { line: LINE / 10, ..two };
    measure("delay, 10 Gb/s", slower, [8 * MS, 20 * MS], 0.98, 0.95);
    measure("delay, READs", Setup { read: true, ..two }, [4 * MS, 4 * MS], 0.98, 0.97);
    let incast = Setup { flows: 15, stagger: Duration::ZERO, ..two };
    let outcome = measure("delay incast", incast, [3 * MS, 5 * MS], 0.98, 0.97);
    assert!(outcome.queue_max < 600_000);
}

#[test]
fn a_hundred_delay_based_flows_get_by_with_less_than_a_packet_each() {
    let parameters = DelayParameters {
        flow_scaling: Duration::from_micros(16),
        ..DelayParameters::new(Duration::from_micros(8))
    };
    let control = Control::Delay(parameters);
    let setup = Setup { flows: 100, control, stagger: Duration::ZERO, ..TWO };
    let mut net = Bottleneck::new(setup);
    net.run(4 * MS);
    let outcome = net.run(8 * MS);
    let window = |flow: usize| net.qp(2 * flow).congestion().delay().map_or(0.0, Delay::window);
    let mean = (0..100).map(window).sum::<f64>() / 100.0;
    println!(
        "delay, 100 flows: Jain {:.4}, {:.1} % of the line, windows of {mean:.2} packets, longest queue {} KB",
        outcome.jain(),
        100.0 * outcome.utilisation(LINE),
        outcome.queue_max / 1000
    );
    assert!(mean < 1.0);
    assert!(outcome.jain() >= 0.95 && outcome.utilisation(LINE) > 0.95);
    assert!(outcome.queue_max < 520_000, "a packet each and a fourth");
    assert_eq!(outcome.dropped, 0);
}

#[test]
fn a_slow_pace_is_not_taken_for_silence() {
    // 100 Mb/s on a link of 100 Gb/s: 64 packets take 21 ms, and the retransmit timer 1 ms.
    let slow = NonZeroU64::new(LINE / 1000).unwrap();
    let setup = Setup { flows: 1, control: Control::Dcqcn(DcqcnParameters::new(slow)), ..TWO };
    let mut net = Bottleneck::new(setup);
    let outcome = net.run(100 * MS);
    assert_eq!(net.counters(0).local_ack_timeout_err, 0);
    assert!(outcome.goodput[0] > 0.95 * slow.get() as f64, "{:?}", outcome.goodput);
}

#[test]
fn a_run_is_the_same_every_time() {
    let setup = Setup { flows: 3, control: dcqcn(LINE), ..TWO };
    let run = || {
        let mut net = Bottleneck::new(setup);
        let outcome = net.run(3 * MS);
        let rates: Vec<_> =
            (0..3).map(|flow| net.qp(2 * flow).congestion().rate_bytes_per_second()).collect();
        (outcome.goodput, outcome.queue_max, rates, *net.counters(1))
    };
    let first = run();
    assert!(first.3.np_cnp_sent > 0);
    assert_eq!(first, run());
}

/// Marks are drawn by a coin, so one run is an anecdote: this is the table of thirty.
///
/// `ANYVERBS_LONG=1 cargo test --release -p anyverbs-engine --test congestion -- --nocapture`
#[test]
fn dcqcn_is_fair_whatever_the_coin_says() {
    if std::env::var_os("ANYVERBS_LONG").is_none() {
        // Not `println!`, which the harness keeps to itself.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: the fairness of 30 seeds takes a minute; set ANYVERBS_LONG"
        );
        return;
    }
    let two = Setup { control: dcqcn(LINE), ..TWO };
    let incast = Setup { flows: 15, stagger: Duration::ZERO, ..two };
    let lower = Marking { kmin: 100_000, kmax: 400_000, pmax: 0.2 };
    let lowest = Marking { kmin: 5_000, kmax: 200_000, pmax: 0.01 };
    let slower = Setup {
        control: dcqcn(LINE / 10),
        line: LINE / 10,
        marking: Marking { kmin: 40_000, kmax: 160_000, pmax: 0.2 },
        ..two
    };
    let shallow = Setup { window: 64, buffer: 4_000_000, ..incast };
    for (name, setup, settle, time) in [
        ("2 flows", two, 10, 40),
        ("2 flows, READ", Setup { read: true, ..two }, 10, 40),
        ("2 flows, 100/400 KB", Setup { marking: lower, ..two }, 10, 40),
        ("2 flows, 5/200 KB at 0.01", Setup { marking: lowest, ..two }, 15, 30),
        ("2 flows, 10 Gb/s, 40/160 KB", slower, 20, 100),
        ("15:1", incast, 4, 40),
        ("15:1, 10 ms", incast, 4, 10),
        ("15:1, 100/400 KB", Setup { marking: lower, ..incast }, 4, 40),
        ("15:1, window 64, buffer 4 MB", shallow, 4, 40),
        ("15:1, READ", Setup { read: true, ..incast }, 4, 40),
    ] {
        let (mut jain, mut utilisation, mut queue) = (Vec::new(), Vec::new(), [0; 2]);
        for seed in 101..=130 {
            let mut net = Bottleneck::new(Setup { seed, ..setup });
            let first = net.run(settle * MS);
            let outcome = net.run(time * MS);
            assert_eq!(outcome.dropped, 0, "{name}, seed {seed}");
            jain.push(outcome.jain());
            utilisation.push(outcome.utilisation(setup.line));
            queue = [queue[0].max(first.queue_max), queue[1].max(outcome.queue_max)];
        }
        jain.sort_by(f64::total_cmp);
        utilisation.sort_by(f64::total_cmp);
        println!(
            "{name}: Jain {:.4} at worst, {:.4} in the middle; {:.1} % of the line at worst; queue {} KB at first, {} KB then",
            jain[0],
            jain[15],
            100.0 * utilisation[0],
            queue[0] / 1000,
            queue[1] / 1000
        );
        assert!(jain[0] > 0.9 && jain[15] > 0.95, "{name}: {jain:?}");
    }
}

//! What losses cost: figures of `benches/goodput.rs`, on a smaller scale, that must not become worse.

mod link;

use std::time::Duration;

use link::{Loss, Outcome, Scheme, Setup};

/// Messages of a run: 64 MiB. With fewer the few answers that are lost, which cost a timeout each where packets
/// are sent from there on, decide the figure.
const MESSAGES: u64 = 64;

const SEEDS: u64 = 4;

const PATH: Setup = Setup {
    scheme: Scheme::Selective,
    loss: Loss::Random(0.0),
    read: false,
    gigabits: 25,
    round_trip: Duration::from_micros(40),
    window: 256,
    seed: 0,
};

/// Losses, with the least part of the link that a sender and a receiver have to fill that repair selectively.
const LOSSES: [(Loss, f64); 6] = [
    (Loss::Random(0.0), 0.999),
    (Loss::Random(0.0001), 0.98),
    (Loss::Random(0.001), 0.97),
    (Loss::Random(0.01), 0.95),
    (Loss::Bursts(0.01, 8.0), 0.94),
    (Loss::Random(0.05), 0.80),
];

/// The mean over the seeds.
fn goodput(setup: Setup) -> f64 {
    let run = |seed| link::run(Setup { seed, ..setup }, MESSAGES).goodput;
    (1..=SEEDS).map(run).sum::<f64>() / SEEDS as f64
}

/// One test, since all of it is compared with going back.
#[test]
fn selective_repair_fills_the_link_and_costs_nearly_nothing_if_the_receiver_keeps_nothing() {
    for read in [false, true] {
        for (loss, floor) in LOSSES {
            let setup = Setup { loss, read, ..PATH };
            let [selective, back, fallback] = [Scheme::Selective, Scheme::GoBackN, Scheme::Fallback]
                .map(|scheme| goodput(Setup { scheme, ..setup }));
            assert!(selective >= back, "{selective:.3} against {back:.3}: {setup:?}");
            assert!(selective >= floor, "{selective:.3}, below {floor}: {setup:?}");
            assert!(fallback >= 0.95 * back, "fallback {fallback:.3} against {back:.3}: {setup:?}");
        }
    }
}

#[test]
fn only_what_is_missing_is_sent_again() {
    for read in [false, true] {
        let Outcome { sent, timeouts, .. } =
            link::run(Setup { loss: Loss::Random(0.01), read, seed: 1, ..PATH }, MESSAGES);
        assert!(sent < 1.03, "{sent:.3} times the packets, read {read}");
        assert_eq!(timeouts, 0, "read {read}");
    }
}

#[test]
fn a_window_that_is_full_before_an_answer_comes_bounds_the_goodput() {
    let far = Setup { gigabits: 100, round_trip: Duration::from_micros(100), ..PATH };
    let (small, large) = (goodput(far), goodput(Setup { window: 1024, ..far }));
    assert!(small > 0.6 && small < 0.8, "{small:.3}");
    assert!(large > 0.99, "{large:.3}");
}

#[test]
fn a_seed_is_a_run() {
    let setup = Setup { loss: Loss::Bursts(0.01, 8.0), seed: 7, ..PATH };
    assert_eq!(link::run(setup, MESSAGES), link::run(setup, MESSAGES));
    assert_ne!(link::run(setup, MESSAGES), link::run(Setup { seed: 8, ..setup }, MESSAGES));
}

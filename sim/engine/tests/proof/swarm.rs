//! Many seeds, each a run of its own.

use std::collections::BTreeSet;

use anyverbs_engine::Status;

use crate::network::Fault;
use crate::oracles::Violation;
use crate::shrink::{run, shrink};

/// Seeds that fit into a few seconds of a debug build.
const SEEDS: u64 = 500;
const SEEDS_LONG: u64 = 20_000;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// The report on a seed that broke a rule: what, how to see it again, and the faults that it takes.
fn report(seed: u64, nth: u64, violation: &Violation) -> String {
    let Violation { oracle, what } = violation;
    let decisions = run(seed, None).decisions;
    println!("---- the faults are reduced from here on ----");
    let least = shrink(seed, oracle, &decisions);
    let mut text = format!(
        "seed {seed}: oracle `{oracle}`: {what}\n\
         found after {nth} seeds by oracle {oracle}\n\
         ANYVERBS_SEED={seed} ANYVERBS_SEEDS=1 cargo test -p anyverbs-engine --test proof\n\
         {} of {} faults are enough:",
        least.len(),
        decisions.len(),
    );
    least.iter().for_each(|decision| text += &format!("\n  {decision:?}"));
    text
}

#[test]
fn no_seed_breaks_a_rule() {
    let first = number("ANYVERBS_SEED").unwrap_or(1);
    let default = if number("ANYVERBS_LONG") == Some(1) { SEEDS_LONG } else { SEEDS };
    let count = number("ANYVERBS_SEEDS").unwrap_or(default);
    let mut faults = BTreeSet::new();
    let mut endings: Vec<Status> = Vec::new();
    for nth in 1..=count {
        let seed = first + nth - 1;
        let outcome = run(seed, None);
        if let Err(violation) = &outcome.verdict {
            panic!("{}", report(seed, nth, violation));
        }
        faults.extend(outcome.decisions.iter().map(|decision| decision.fault));
        for status in outcome.endings {
            if !endings.contains(&status) {
                endings.push(status);
            }
        }
    }
    if count >= SEEDS {
        // Faults that never strike, and endings that never come, would prove nothing.
        for fault in Fault::ALL {
            assert!(faults.contains(&fault), "{fault:?} never struck");
        }
        for status in [
            Status::Success,
            Status::FlushError,
            Status::RetryExceeded,
            Status::RnrRetryExceeded,
            Status::RemoteAccessError,
            Status::RemoteInvalidRequest,
        ] {
            assert!(endings.contains(&status), "nothing ended with {status:?}");
        }
    }
}

#[test]
fn a_seed_is_a_run() {
    let hashes: Vec<u64> = (1..=20).map(|seed| run(seed, None).hash).collect();
    let again: Vec<u64> = (1..=20).map(|seed| run(seed, None).hash).collect();
    assert_eq!(hashes, again, "two runs of one seed differ");
    let different: BTreeSet<u64> = hashes.iter().copied().collect();
    assert_eq!(different.len(), hashes.len(), "two seeds give the same run");
}

#[test]
fn the_faults_of_a_run_repeat_it() {
    for seed in 1..=20 {
        let outcome = run(seed, None);
        let again = run(seed, Some(outcome.decisions.iter().copied().collect()));
        assert_eq!(outcome.hash, again.hash, "seed {seed}");
    }
}

//! From a seed to a verdict, and from a bad verdict to the few faults that it takes.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::network::{Chaos, Decision};
use crate::oracles::Violation;
use crate::world::{Outcome, World};

/// Runs spent on shrinking, at most.
const RUNS_MAX: usize = 300;

/// Runs a seed, with no other faults than those allowed.
pub(crate) fn run(seed: u64, allowed: Option<BTreeSet<Decision>>) -> Outcome {
    let chaos = Chaos { allowed, ..Chaos::default() };
    let taken = Rc::clone(&chaos.taken);
    catch_unwind(AssertUnwindSafe(|| World::new(seed, chaos).run())).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = text.unwrap_or_else(|| "no message".to_owned());
        Outcome {
            verdict: Err(Violation { oracle: "no panic", what }),
            decisions: taken.take(),
            hash: 0,
            endings: Vec::new(),
        }
    })
}

/// The fewest faults found with which a seed still breaks the same rule (delta debugging).
pub(crate) fn shrink(seed: u64, oracle: &str, decisions: &[Decision]) -> Vec<Decision> {
    let mut runs = 0;
    let mut fails = |faults: &[Decision]| {
        runs += 1;
        let outcome = run(seed, Some(faults.iter().copied().collect()));
        runs <= RUNS_MAX && outcome.verdict.is_err_and(|violation| violation.oracle == oracle)
    };
    minimise(decisions, &mut fails)
}

/// Leaves out parts of a list, smaller and smaller ones, for as long as what is left still fails.
fn minimise<T: Clone>(list: &[T], fails: &mut dyn FnMut(&[T]) -> bool) -> Vec<T> {
    let mut left = list.to_vec();
    if fails(&[]) {
        return Vec::new();
    }
    let mut part = left.len().div_ceil(2).max(1);
    while !left.is_empty() {
        let mut from = 0;
        let mut smaller = false;
        while from < left.len() {
            let mut rest = left.clone();
            rest.drain(from..(from + part).min(left.len()));
            if fails(&rest) {
                left = rest;
                smaller = true;
            } else {
                from += part;
            }
        }
        if part == 1 && !smaller {
            break;
        }
        part = part.div_ceil(2).max(1);
    }
    left
}

#[test]
fn what_is_not_needed_is_left_out() {
    let list: Vec<u32> = (0..100).collect();
    let least = minimise(&list, &mut |part| part.contains(&17) && part.contains(&80));
    assert_eq!(least, [17, 80]);
    assert_eq!(minimise(&list, &mut |_| true), []);
}

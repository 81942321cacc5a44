//! A device under attack: whatever arrives is counted by one cause, its connections are unharmed, nothing grows.
//!
//! By default some 200,000 packets of the attacker; `ANYVERBS_LONG=1` sends ten million. The seed is printed, and
//! `ANYVERBS_SEED` repeats one.

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod attacker;
mod heap;
mod traffic;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyverbs_nic::{Counters, QpState};

use attacker::{Attacker, KINDS};
use rig::{descriptors, long, seed, threads};
use traffic::Traffic;

/// What becomes of a datagram, by the last check that looks at it: each is counted by exactly one of these.
///
/// What passes is `rcvd_pkts`, and the counters that tell what came of it on its queue pair are of that.
fn disposed(counters: &Counters) -> u64 {
    let Counters {
        rx_malformed,
        rx_unknown_qp,
        rx_wrong_source,
        rx_icrc_encapsulated,
        rx_icrc_unproven_id,
        rx_wrong_service,
        rx_out_of_state,
        bad_pkey_cntr,
        rcvd_pkts,
        ..
    } = *counters;
    rx_malformed
        + rx_unknown_qp
        + rx_wrong_source
        + rx_icrc_encapsulated
        + rx_icrc_unproven_id
        + rx_wrong_service
        + rx_out_of_state
        + bad_pkey_cntr
        + rcvd_pkts
}

/// What may not grow.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    descriptors: usize,
    threads: usize,
    heap: usize,
    resident_kib: usize,
}

fn footprint() -> Footprint {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident_kib = line.trim().trim_end_matches(" kB").parse().unwrap();
    Footprint { descriptors: descriptors(), threads: threads(), heap: heap::live(), resident_kib }
}

#[test]
fn whatever_arrives_is_counted_once_and_harms_nothing() {
    let seed = seed("hostile");
    let packets: u64 = if long() { 10_000_000 } else { 200_000 };
    let traffic = Traffic::new(seed);
    let mut attacker = Attacker::new(&traffic, seed);
    let stop = AtomicBool::new(false);
    let (before, after) = thread::scope(|scope| {
        let honest = scope.spawn(|| traffic.run(&stop));
        // What stops the traffic also when an assertion here fails.
        let _stop = StopAtEnd(&stop);
        // Buffers and queues find the size that they need.
        attacker.attack(packets / 10);
        let before = footprint();
        attacker.attack(packets - packets / 10);
        let after = footprint();
        stop.store(true, Ordering::Relaxed);
        let rounds = honest.join().expect("the traffic went on to the end");
        assert!(rounds > 0, "no traffic went on meanwhile");
        (before, after)
    });
    let counters = traffic.settled_counters();
    let arrived = traffic.victim.udp.received();
    assert_eq!(disposed(&counters), arrived, "one cause for each datagram: {counters:#?}");
    attacker.check(&counters, traffic.victim.udp.discarded());
    for qp in traffic.queue_pairs() {
        assert_eq!(qp.state(), QpState::ReadyToSend, "a connection was harmed");
    }
    assert_eq!((after.descriptors, after.threads), (before.descriptors, before.threads));
    // The harness and the traffic have a few buffers in hand at any time.
    assert!(after.heap < before.heap + (256 << 10), "the heap grew: {before:?}, {after:?}");
    assert!(after.resident_kib < before.resident_kib + (8 << 10), "memory grew: {before:?}, {after:?}");
    // One last time, alone: every connection still works.
    traffic.run_rounds(20);
    assert_eq!(KINDS.len(), attacker.kinds_used(), "every kind of packet was sent");
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

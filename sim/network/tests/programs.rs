//! How programs sleep, wake one another, and live beside threads that are no programs.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use anyverbs_network::{Network, Program};
use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, Progress, Waiter};
use common::{FakeNic, address, ns, plain};

#[test]
fn outside_of_a_run_nothing_blocks_and_the_clock_stands() {
    let network = Network::new(plain());
    let nic = FakeNic::open(&network, 1);
    let target = FakeNic::open(&network, 2);
    nic.waiter.wait(None);
    nic.waiter.wait(Some(ns(500)));
    nic.waiter.relax();
    assert_eq!(network.now(), ns(0));
    // What is sent before the run arrives in it.
    nic.send(address(2), &[9; 100]);
    let receiver = Arc::clone(&target);
    network.run(vec![Program::new(address(2), move || assert_eq!(receiver.recv().at, ns(1100)))]).unwrap();
    nic.waiter.wait(None);
    assert_eq!(nic.now(), ns(1100));
    // The clock and the trace go on in the next run.
    let receiver = Arc::clone(&target);
    nic.send(address(2), &[9; 100]);
    let trace = network
        .run(vec![Program::new(address(2), move || assert_eq!(receiver.recv().at, ns(2200)))])
        .unwrap();
    assert_eq!((trace.sent, trace.end), (2, ns(2200)));
    // Nothing to run is no deadlock.
    network.run(Vec::new()).unwrap();
}

#[test]
fn wake_ends_a_sleep_or_spares_the_next_one() {
    let network = Network::new(plain());
    let waiter = network.host(address(1)).waiter();
    let other = network.host(address(2)).waiter();
    let sleeper = Arc::clone(&waiter);
    network
        .run(vec![
            Program::new(address(1), move || {
                sleeper.wait(None);
                assert_eq!(sleeper.now(), ns(300));
                sleeper.wake();
                sleeper.wait(None);
                assert_eq!(sleeper.now(), ns(300));
                sleeper.wait(Some(ns(5000)));
                assert_eq!(sleeper.now(), ns(5000), "one wake spares one sleep");
            }),
            Program::new(address(2), move || {
                other.wait(Some(ns(300)));
                waiter.wake();
            }),
        ])
        .unwrap();
}

#[test]
fn one_wake_ends_all_sleeps_on_its_host() {
    let network = Network::new(plain());
    let count = Arc::new(AtomicU32::new(0));
    let mut programs: Vec<_> = (0..3)
        .map(|_| {
            let (waiter, count) = (network.host(address(1)).waiter(), Arc::clone(&count));
            Program::new(address(1), move || {
                waiter.wait(None);
                assert_eq!(waiter.now(), ns(40));
                count.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    let waiter = network.host(address(1)).waiter();
    programs.push(Program::new(address(1), move || {
        waiter.wait(Some(ns(40)));
        waiter.wake();
    }));
    network.run(programs).unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 3);
}

#[test]
fn exactly_one_program_runs_and_they_begin_in_order() {
    let network = Network::new(plain());
    let order = Arc::new(Mutex::new(Vec::new()));
    let running = Arc::new(AtomicU32::new(0));
    let programs = (1..=8u8).map(|n| {
        let waiter = network.host(address(n)).waiter();
        let (order, running) = (Arc::clone(&order), Arc::clone(&running));
        Program::new(address(n), move || {
            for _ in 0..50 {
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                order.lock().unwrap().push(n);
                std::thread::yield_now();
                assert_eq!(running.fetch_sub(1, Ordering::SeqCst), 1);
                waiter.relax();
            }
        })
    });
    network.run(programs.collect()).unwrap();
    let round: Vec<u8> = (1..=8).collect();
    assert_eq!(*order.lock().unwrap(), round.repeat(50));
}

/// Programs that pass a value outside the network: one looks for it and relaxes in between.
#[test]
fn a_program_that_relaxes_lets_others_run() {
    let network = Network::new(plain());
    let (sender, receiver) = std::sync::mpsc::channel();
    let (first, second) = (network.host(address(1)).waiter(), network.host(address(2)).waiter());
    network
        .run(vec![
            Program::new(address(1), move || {
                let value = loop {
                    match receiver.try_recv() {
                        Ok(value) => break value,
                        Err(_) => first.relax(),
                    }
                };
                assert_eq!(value, 42);
                assert!(first.now() >= ns(10_000) && first.now() < ns(10_000 + 6400));
            }),
            Program::new(address(2), move || {
                second.wait(Some(ns(10_000)));
                sender.send(42).unwrap();
            }),
        ])
        .unwrap();
}

#[test]
fn a_nic_that_is_dropped_progresses_no_more() {
    let network = Network::new(plain());
    let (client, server) = (FakeNic::open(&network, 1), FakeNic::echo(&network, 2));
    network
        .run(vec![
            Program::new(address(1), move || {
                client.send(address(2), &[0; 100]);
                client.recv();
                client.waiter.wait(Some(ns(10_000)));
                client.send(address(2), &[0; 100]);
                client.waiter.wait(Some(ns(20_000)));
                assert_eq!(client.poll(), None);
            }),
            Program::new(address(2), move || {
                server.sleep_until(ns(5000));
                drop(server);
            }),
        ])
        .unwrap();
}

#[test]
fn a_datagram_to_oneself_goes_through_the_network() {
    let network = Network::new(plain());
    let nic = FakeNic::open(&network, 1);
    network
        .run(vec![Program::new(address(1), move || {
            nic.send(address(1), &[5; 10]);
            let seen = nic.recv();
            assert_eq!((seen.at, seen.from), (ns(1010), address(1)));
        })])
        .unwrap();
}

/// A NIC that calls whatever it should not.
struct Unruly(Arc<dyn Waiter>);

impl Progress for Unruly {
    fn progress(&self) -> Option<Time> {
        self.0.wake();
        self.0.relax();
        self.0.wait(None);
        None
    }
}

#[test]
fn a_nic_that_sleeps_and_always_wakes_neither_blocks_nor_stops_the_clock() {
    let network = Network::new(plain());
    let waiter = network.host(address(1)).waiter();
    let nic = Arc::new(Unruly(Arc::clone(&waiter)));
    let weak: Weak<Unruly> = Arc::downgrade(&nic);
    network.attach(address(1), weak);
    network
        .run(vec![Program::new(address(1), move || {
            waiter.relax();
            assert_eq!(waiter.now(), ns(100));
        })])
        .unwrap();
}

#[test]
fn timers_are_noticed_when_a_program_ends_or_waits_for_another_host() {
    let network = Network::new(plain());
    let (first, second) = (FakeNic::open(&network, 1), FakeNic::open(&network, 2));
    let (other, observed) = (Arc::clone(&second), Arc::clone(&first));
    network
        .run(vec![
            Program::new(address(1), move || {
                other.waiter.wait(Some(ns(10))); // both NICs have progressed
                other.set_timer(ns(300));
                other.waiter.wait(None);
                assert_eq!(other.now(), ns(300));
                first.set_timer(ns(400));
            }),
            Program::new(address(3), move || second.sleep_until(ns(1000))),
        ])
        .unwrap();
    assert_eq!(observed.timer_passed(), [ns(400)]);
}

/// What a failed run leaves behind wakes nobody in the next one.
#[test]
fn a_network_runs_again_after_a_failure() {
    let network = Network::new(plain());
    let programs = [1, 2, 3].map(|n| {
        let waiter = network.host(address(n)).waiter();
        Program::new(address(n), move || {
            waiter.wait(Some(ns(50 * u64::from(n))));
            assert_ne!(n, 1, "the first to wake up fails");
        })
    });
    network.run(programs.into()).unwrap_err();
    let waiter = network.host(address(1)).waiter();
    let trace = network.run(vec![Program::new(address(1), move || {
        waiter.wait(Some(ns(120)));
        assert_eq!(waiter.now(), ns(120));
        waiter.wait(Some(ns(500)));
        assert_eq!(waiter.now(), ns(500));
    })]);
    assert_eq!(trace.unwrap().end, ns(500));
}

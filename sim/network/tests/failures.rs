//! Runs that cannot go on end with an error that says why.

mod common;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyverbs_network::{Failure, Network, NetworkConfig, Program};
use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, Progress, Waiter};
use common::{FakeNic, address, ns, plain};

/// Counts when it is dropped, after a destructor's usual mischief.
struct Guard(Arc<AtomicU32>, Arc<dyn Waiter>);

impl Drop for Guard {
    fn drop(&mut self) {
        let deadline = self.1.now() + Duration::from_micros(5);
        while self.1.now() < deadline {
            self.1.wait(Some(deadline));
            self.1.relax();
        }
        self.1.wait(Some(deadline));
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn waiter(network: &Network, n: u8) -> Arc<dyn Waiter> {
    network.host(address(n)).waiter()
}

#[test]
fn a_deadlock_names_who_waits() {
    let network = Network::new(NetworkConfig { seed: 77, ..plain() });
    let dropped = Arc::new(AtomicU32::new(0));
    let mut programs: Vec<_> = [2, 1]
        .map(|n| {
            let nic = FakeNic::open(&network, n);
            let guard = Guard(Arc::clone(&dropped), Arc::clone(&nic.waiter));
            Program::new(address(n), move || {
                let _guard = guard;
                nic.send(address(3 - n), &[n; 100]);
                nic.recv();
                nic.recv();
                unreachable!("only one datagram was sent");
            })
        })
        .into();
    let third = waiter(&network, 3);
    programs.push(Program::new(address(3), move || third.wait(Some(ns(50)))));
    let error = network.run(programs).unwrap_err();
    let Failure::Deadlock { waiting, at } = &error.failure else { panic!("{error}") };
    assert_eq!((&waiting[..], *at), (&[address(2), address(1)][..], ns(1100)));
    assert_eq!((error.trace.sent, error.trace.delivered), (2, 2));
    let text = error.to_string();
    assert!(text.contains("deadlock") && text.contains("10.0.0.2, 10.0.0.1"), "{text}");
    assert!(text.contains("seed 77"), "{text}");
    assert_eq!(dropped.load(Ordering::Relaxed), 2, "all programs are unwound");
}

#[test]
fn a_panic_is_reported_with_its_host_and_stops_the_others() {
    let network = Network::new(plain());
    let dropped = Arc::new(AtomicU32::new(0));
    let programs = (1..=4u8).map(|n| {
        let waiter = waiter(&network, n);
        let guard = Guard(Arc::clone(&dropped), Arc::clone(&waiter));
        Program::new(address(n), move || {
            let _guard = guard;
            match n {
                1 => waiter.wait(None),
                2 => waiter.wait(Some(ns(1_000_000))),
                3 => {
                    waiter.wait(Some(ns(500)));
                    panic!("the {} is lost", "cause");
                }
                _ => loop {
                    waiter.relax();
                },
            }
            unreachable!("nobody goes on after a panic");
        })
    });
    let error = network.run(programs.collect()).unwrap_err();
    let Failure::HostPanicked { host, message, .. } = &error.failure else { panic!("{error}") };
    assert_eq!((*host, message.as_str()), (address(3), "the cause is lost"));
    assert_eq!(dropped.load(Ordering::Relaxed), 4);
    assert!(error.to_string().contains("the program on 10.0.0.3 panicked: the cause is lost"));
}

#[test]
fn a_panic_whose_destructors_block_is_still_reported() {
    struct Stuck(Arc<dyn Waiter>);
    impl Drop for Stuck {
        fn drop(&mut self) {
            self.0.wait(None);
        }
    }
    let network = Network::new(plain());
    let (first, second) = (Stuck(waiter(&network, 1)), waiter(&network, 2));
    let programs = vec![
        Program::new(address(1), move || {
            let _stuck = first;
            panic!("origin");
        }),
        Program::new(address(2), move || second.wait(None)),
    ];
    let error = network.run(programs).unwrap_err();
    assert!(
        matches!(&error.failure, Failure::HostPanicked { host, message, .. } if *host == address(1) && message == "origin"),
        "{error}"
    );
}

#[test]
fn programs_that_never_began_are_dropped() {
    let network = Network::new(plain());
    let dropped = Arc::new(AtomicU32::new(0));
    let guard = Guard(Arc::clone(&dropped), waiter(&network, 2));
    let programs = vec![
        Program::new(address(1), || std::panic::panic_any(5)),
        Program::new(address(2), move || {
            let _guard = guard;
            unreachable!("the first program has panicked");
        }),
    ];
    let error = network.run(programs).unwrap_err();
    assert!(matches!(error.failure, Failure::HostPanicked { host, .. } if host == address(1)), "{error}");
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
}

#[test]
fn a_nic_that_panics_is_named() {
    struct Bomb;
    impl Progress for Bomb {
        fn progress(&self) -> Option<Time> {
            panic!("tick");
        }
    }
    let network = Network::new(plain());
    let bomb = Arc::new(Bomb);
    let weak: Weak<Bomb> = Arc::downgrade(&bomb);
    let client = FakeNic::open(&network, 1);
    let programs = vec![Program::new(address(1), move || {
        send_then_wait(&client);
    })];
    network.host(address(2));
    network.attach(address(2), weak);
    let error = network.run(programs).unwrap_err();
    assert!(
        matches!(&error.failure, Failure::NicPanicked { host, message, .. } if *host == address(2) && message == "tick"),
        "{error}"
    );
}

fn send_then_wait(nic: &FakeNic) {
    nic.send(address(2), &[0; 10]);
    nic.waiter.wait(None);
    unreachable!("the NIC at the other end panics");
}

#[test]
fn a_poll_without_end_meets_the_limit_of_time() {
    let network = Network::new(NetworkConfig { time_limit: Duration::from_millis(1), ..plain() });
    let waiter = waiter(&network, 1);
    let error = network
        .run(vec![Program::new(address(1), move || {
            loop {
                waiter.relax();
            }
        })])
        .unwrap_err();
    let Failure::TimeLimit { limit, unfinished } = &error.failure else { panic!("{error}") };
    assert_eq!((*limit, &unfinished[..]), (ns(1_000_000), &[address(1)][..]));
    assert!(error.trace.end <= ns(1_000_000));
}

#[test]
fn waking_oneself_for_ever_meets_the_limit_of_events() {
    let network = Network::new(NetworkConfig { event_limit: 1000, ..plain() });
    let waiter = waiter(&network, 1);
    let error = network
        .run(vec![Program::new(address(1), move || {
            loop {
                waiter.wake();
                waiter.wait(None);
            }
        })])
        .unwrap_err();
    assert!(
        matches!(&error.failure, Failure::EventLimit { limit: 1000, unfinished, at } if unfinished[..] == [address(1)] && *at == ns(0)),
        "{error}"
    );
    // The limit is for each run.
    network.run(vec![Program::new(address(1), || {})]).unwrap();
}

#[test]
fn a_nic_that_always_wants_to_progress_cannot_stop_the_clock() {
    struct Eager(Arc<dyn Waiter>);
    impl Progress for Eager {
        fn progress(&self) -> Option<Time> {
            Some(self.0.now())
        }
    }
    let network = Network::new(plain());
    let waiter = waiter(&network, 1);
    let nic = Arc::new(Eager(Arc::clone(&waiter)));
    let weak: Weak<Eager> = Arc::downgrade(&nic);
    network.attach(address(1), weak);
    network
        .run(vec![Program::new(address(1), move || {
            while waiter.now() < ns(1000) {
                waiter.wait(None);
            }
        })])
        .unwrap();
}

#[test]
fn datagrams_that_nobody_can_take_are_counted() {
    let network = Network::new(NetworkConfig { max_datagram: 1000, receive_queue: 3, ..plain() });
    let nic = FakeNic::open(&network, 1);
    network.host(address(2)); // without a NIC
    let nowhere: IpAddr = "fd00::1".parse().unwrap();
    let trace = network
        .run(vec![Program::new(address(1), move || {
            nic.send(nowhere, &[0; 10]);
            nic.send(address(2), &[0; 1001]);
            for _ in 0..5 {
                nic.send(address(2), &[0; 1000]);
            }
            nic.waiter.wait(Some(ns(5010 + 1000)));
            nic.send(address(2), &[0; 1000]);
        })])
        .unwrap();
    assert_eq!((trace.sent, trace.delivered, trace.dropped, trace.in_flight), (8, 3, 4, 1));
}

#[test]
fn a_network_runs_one_set_of_programs_at_a_time() {
    let network = Network::new(plain());
    let again = network.clone();
    network
        .run(vec![Program::new(address(1), move || {
            let error = again.run(Vec::new()).unwrap_err();
            assert!(matches!(error.failure, Failure::AlreadyRunning), "{error}");
        })])
        .unwrap();
}

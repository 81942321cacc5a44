//! The virtual clock is exact: every time here is computed by hand.

mod common;

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyverbs_network::{Network, NetworkConfig, Program};
use common::{FakeNic, Seen, address, ns, plain};

#[test]
fn a_round_trip_takes_twice_latency_and_serialisation() {
    let network = Network::new(plain());
    let (client, server) = (FakeNic::open(&network, 1), FakeNic::echo(&network, 2));
    let trace = network
        .run(vec![Program::new(address(1), move || {
            client.send(address(2), &[7; 250]);
            let seen = client.recv();
            let expected = Seen {
                at: ns(2500),
                from: address(2),
                destination: address(1),
                source_port: 50_001,
                ecn: 1,
                bytes: vec![7; 250],
            };
            assert_eq!(Seen { bytes: vec![7; 250], ..seen.clone() }, expected);
            assert_eq!((seen.bytes[0], &seen.bytes[1..]), (8, &[7; 249][..]));
            assert_eq!(client.now(), ns(2500));
        })])
        .unwrap();
    assert_eq!((trace.sent, trace.delivered, trace.dropped, trace.in_flight), (2, 2, 0, 0));
    assert_eq!(trace.end, ns(2500));
    drop(server);
}

#[test]
fn the_default_network_frames_as_ethernet_does() {
    let network = Network::new(NetworkConfig::default());
    let (client, server) = (FakeNic::open(&network, 1), FakeNic::open(&network, 2));
    network
        .run(vec![
            Program::new(address(1), move || {
                // A RoCEv2 packet with 4096 bytes of payload is 4158 bytes on the wire: 332.64 ns.
                for _ in 0..3 {
                    client.send(address(2), &[0; 4096 + 16]);
                }
                client.waiter.wait(Some(ns(5000)));
            }),
            Program::new(address(2), move || {
                let arrivals = [server.recv().at, server.recv().at, server.recv().at];
                assert_eq!(arrivals, [ns(1333), ns(1666), ns(1998)]);
            }),
        ])
        .unwrap();
}

#[test]
fn datagrams_queue_behind_one_another_at_their_sender_only() {
    let network = Network::new(plain());
    let nics: Vec<_> = (1..=3).map(|n| FakeNic::open(&network, n)).collect();
    let target = Arc::clone(&nics[2]);
    let senders = (1..=2u8).map(|n| {
        let nic = Arc::clone(&nics[usize::from(n) - 1]);
        Program::new(address(n), move || {
            for i in 0..3 {
                nic.send(address(3), &[10 * n + i; 100]);
            }
            nic.waiter.wait(Some(ns(10_000)));
        })
    });
    let receiver = Program::new(address(3), move || {
        let seen: Vec<_> = (0..6).map(|_| target.recv()).map(|s| (s.at.as_nanos(), s.bytes[0])).collect();
        assert_eq!(seen, [(1100, 10), (1100, 20), (1200, 11), (1200, 21), (1300, 12), (1300, 22)]);
    });
    network.run(senders.chain([receiver]).collect()).unwrap();
}

#[test]
fn wait_ends_at_its_deadline_exactly_and_relax_after_growing_steps() {
    let network = Network::new(plain());
    let nic = FakeNic::open(&network, 1);
    network
        .run(vec![Program::new(address(1), move || {
            nic.waiter.wait(Some(ns(12_345)));
            assert_eq!(nic.now(), ns(12_345));
            for elapsed in [100, 300, 700, 1500, 3100, 6300, 12_700, 19_100] {
                nic.waiter.relax();
                assert_eq!(nic.now(), ns(12_345 + elapsed));
            }
            // Something happens, and steps are small again.
            nic.waiter.wake();
            let before = nic.now();
            nic.waiter.relax();
            assert_eq!(nic.now(), before + Duration::from_nanos(100));
            // A deadline that has passed must not stop the clock.
            nic.waiter.wait(None); // the wake from above
            let before = nic.now();
            nic.waiter.wait(Some(before));
            assert!(nic.now() > before);
        })])
        .unwrap();
}

#[test]
fn timers_of_nics_fire_on_time_even_if_a_program_sets_them() {
    let network = Network::new(plain());
    let nic = FakeNic::open(&network, 1);
    let observer = Arc::clone(&nic);
    network
        .run(vec![Program::new(address(1), move || {
            nic.set_timer(ns(9000));
            nic.waiter.wait(Some(ns(10)));
            assert_eq!(nic.now(), ns(10), "the deadline comes first");
            nic.set_timer(ns(700)); // replaces 9000
            nic.waiter.wait(None);
            assert_eq!(nic.now(), ns(700));
            nic.set_timer(ns(800));
            nic.waiter.wait(Some(ns(20_000)));
            assert_eq!(nic.now(), ns(800));
            nic.waiter.wait(Some(ns(20_000)));
            assert_eq!(nic.now(), ns(20_000));
        })])
        .unwrap();
    assert_eq!(observer.timer_passed(), [ns(700), ns(800)]);
}

#[test]
fn a_nic_progresses_while_its_program_sleeps_or_has_ended() {
    let network = Network::new(plain());
    let (client, server) = (FakeNic::open(&network, 1), FakeNic::echo(&network, 2));
    let sleeper = Arc::clone(&server);
    network
        .run(vec![
            Program::new(address(2), move || sleeper.waiter.wait(Some(ns(1)))),
            Program::new(address(1), move || {
                for round in 1..=3u64 {
                    client.send(address(2), &[0; 100]);
                    assert_eq!(client.recv().at, ns(2200 * round));
                }
            }),
        ])
        .unwrap();
}

#[test]
fn a_full_wire_leaves_datagrams_with_the_nic_and_stays_busy() {
    let network = Network::new(NetworkConfig { transmit_queue: 4, ..plain() });
    let (client, server) = (FakeNic::open(&network, 1), FakeNic::open(&network, 2));
    let arrivals = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&arrivals);
    network
        .run(vec![
            Program::new(address(1), move || {
                for i in 0..20 {
                    client.send(address(2), &[i; 100]);
                }
                assert_eq!(client.backlog(), 16);
                client.sleep_until(ns(300));
                assert!(client.backlog() < 16);
                client.sleep_until(ns(50_000));
            }),
            Program::new(address(2), move || {
                for _ in 0..20 {
                    let seen = server.recv();
                    noted.lock().unwrap().push((seen.bytes[0], seen.at.as_nanos()));
                }
            }),
        ])
        .unwrap();
    let expected: Vec<_> = (0..20u8).map(|i| (i, 1100 + 100 * u64::from(i))).collect();
    assert_eq!(*arrivals.lock().unwrap(), expected);
}

#[test]
fn a_polling_program_sees_a_datagram_when_it_arrives() {
    let network = Network::new(plain());
    let (client, server) = (FakeNic::open(&network, 1), FakeNic::open(&network, 2));
    network
        .run(vec![
            Program::new(address(1), move || {
                for round in 0..100u64 {
                    client.send(address(2), &[1; 64]);
                    let seen = client.recv_polling();
                    assert_eq!(client.now(), seen.at);
                    assert_eq!(seen.at, ns((round + 1) * 2 * 1064));
                }
            }),
            Program::new(address(2), move || {
                for _ in 0..100 {
                    let seen = server.recv_polling();
                    server.send(seen.from, &seen.bytes);
                }
                // Let the last reply leave: the run ends with its last program.
                server.sleep_until(ns(1_000_000));
            }),
        ])
        .unwrap();
}

#[test]
fn a_group_hears_what_is_sent_to_it_and_nobody_else() {
    let network = Network::new(plain());
    let nics = [1, 2, 3, 4].map(|n| FakeNic::open(&network, n));
    let group = IpAddr::from([239, 0, 0, 9]);
    for n in [0, 1, 2] {
        nics[n].join(group).unwrap();
        nics[n].join(group).unwrap();
    }
    let body = {
        let nics = nics.clone();
        move || {
            nics[0].send(group, &[7; 100]);
            for nic in &nics[..3] {
                nic.sleep_until(ns(2000));
                let seen = nic.poll().unwrap();
                assert_eq!((seen.from, seen.destination, seen.bytes), (address(1), group, vec![7; 100]));
                assert_eq!(nic.poll(), None);
            }
            assert_eq!(nics[3].poll(), None);
            // Without its members a group is nobody.
            for nic in &nics[..3] {
                nic.leave(group);
            }
            nics[3].send(group, &[8; 100]);
            nics[3].sleep_until(ns(5000));
            assert!(nics.iter().all(|nic| nic.poll().is_none()));
        }
    };
    let trace = network.run(vec![Program::new(address(1), body)]).unwrap();
    // Each copy counts.
    assert_eq!((trace.sent, trace.delivered, trace.dropped, trace.in_flight), (4, 3, 1, 0));
    for (wrong, nic) in [(address(2), &nics[0]), ("ff02::1".parse().unwrap(), &nics[0])] {
        let error = nic.join(wrong).unwrap_err();
        assert!(error.to_string().contains(&wrong.to_string()), "{error}");
    }
}

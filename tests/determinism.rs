//! A run in virtual time is a function of its seed.

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyverbs::sim::{Failure, Simulation, SimulationError, Trace};
use anyverbs::{Device, Endpoint, QpOptions, Rc, RemoteToken, Rights};

type Card = (Endpoint, RemoteToken);

/// Exchanges cards with the other host, then writes, reads and adds forty times, and sees that it was right.
fn program(device: Device, to: Sender<Card>, from: Receiver<Card>) {
    let domain = device.domain().unwrap();
    let cq = device.completion_queue(64).unwrap();
    let options = QpOptions::new().send_depth(32).recv_depth(32).ack_timeout(Duration::from_millis(4));
    let qp = domain.queue_pair::<Rc>(&options, &cq, &cq).unwrap();
    let window = domain.window(8192, Rights::all()).unwrap();
    let pool = domain.pool(4, 8192).unwrap();

    to.send((qp.endpoint(), window.token())).unwrap();
    let (peer, token) = device.wait_until(|| from.try_recv().ok());
    let qp = qp.connect(&peer).unwrap();
    let counter = token.at(0, 8).unwrap();
    let bytes = token.at(8, 6000).unwrap();
    for round in 0..40u8 {
        let mut lease = pool.lease().unwrap();
        lease.set_len(6000).unwrap();
        lease.fill(round);
        qp.write(lease, bytes).unwrap();
        qp.read(pool.lease().unwrap(), bytes).unwrap();
        qp.fetch_add(pool.lease().unwrap(), counter, 1).unwrap();
        let mut left = 3;
        while left > 0 {
            cq.poll(|completion| {
                let completion = completion.ok().unwrap();
                left -= 1;
                if let Some(original) = completion.original() {
                    assert_eq!(original, u64::from(round));
                } else {
                    assert!(completion.buffer.unwrap().iter().all(|&byte| byte == round));
                }
            });
        }
    }
    // Only when the peer says that it is done may this host go away.
    to.send((peer, token)).unwrap();
    device.wait_until(|| from.try_recv().ok());
}

fn run(seed: u64, faults: Option<&str>) -> Trace {
    let (to_b, from_a) = channel();
    let (to_a, from_b) = channel();
    let mut simulation = Simulation::new(seed);
    if let Some(faults) = faults {
        simulation = simulation.fault(faults.parse().unwrap());
    }
    simulation
        .host([10, 0, 0, 1], move |device| program(device, to_b, from_b))
        .host([10, 0, 0, 2], move |device| program(device, to_a, from_a))
        .run()
        .unwrap()
}

#[test]
fn one_seed_gives_one_trace() {
    for faults in [None, Some("loss=0.05,duplicate=0.02,reorder=0.05,corrupt=0.02,jitter=5us")] {
        let first = run(1, faults);
        assert_eq!(first, run(1, faults), "the same seed again");
        assert_ne!(first.hash, run(2, faults).hash, "another seed");
    }
}

#[test]
fn faults_leave_their_mark_and_the_data_alone() {
    let (clean, faulty) = (run(7, None), run(7, Some("loss=0.05")));
    assert!(faulty.sent > clean.sent, "what was lost was sent again: {clean} and {faulty}");
    assert!(faulty.end > clean.end);
    assert_ne!(run(7, Some("loss=0.05,seed=1")).hash, faulty.hash, "a profile has a seed, too");
}

#[test]
fn latency_and_bandwidth_are_what_was_asked_for() {
    let ping = |simulation: Simulation| {
        let hosts = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        let (sender, receiver) = channel();
        let run = simulation.hosts(hosts, move |[a, b]| {
            let (domain_a, domain_b) = (a.domain().unwrap(), b.domain().unwrap());
            let (cq_a, cq_b) = (a.completion_queue(128).unwrap(), b.completion_queue(128).unwrap());
            let qp_a = domain_a.queue_pair::<Rc>(&QpOptions::new(), &cq_a, &cq_a).unwrap();
            let qp_b = domain_b.queue_pair::<Rc>(&QpOptions::new(), &cq_b, &cq_b).unwrap();
            let window = domain_b.window(4096, Rights::READ).unwrap();
            let (to_a, to_b) = (qp_a.endpoint(), qp_b.endpoint());
            let (qp_a, _qp_b) = (qp_a.connect(&to_b).unwrap(), qp_b.connect(&to_a).unwrap());
            let before = a.now();
            qp_a.read(domain_a.pool(1, 4096).unwrap().lease().unwrap(), window.token().all()).unwrap();
            assert!(cq_a.wait(Duration::from_secs(1)));
            sender.send(a.now() - before).unwrap();
        });
        run.run().unwrap();
        receiver.recv().unwrap()
    };
    let near = ping(Simulation::new(1).latency(Duration::from_micros(10)));
    let far = ping(Simulation::new(1).latency(Duration::from_micros(110)));
    assert_eq!(far - near, Duration::from_micros(200), "one way there, one way back");
    let slow = ping(Simulation::new(1).latency(Duration::from_micros(10)).bandwidth(1_000_000_000));
    // More than 4096 bytes at 1 Gb/s take 33 us and more.
    assert!(slow - near > Duration::from_micros(32), "{slow:?}, {near:?}");
}

#[test]
fn a_program_that_panics_ends_the_run_and_is_named() {
    let run = Simulation::new(3).host([10, 0, 0, 9], |_| panic!("on purpose")).run();
    let error = run.unwrap_err();
    let text = error.to_string();
    let SimulationError::Run(error) = error else { panic!("{error}") };
    assert!(matches!(error.failure, Failure::HostPanicked { .. }));
    assert!(text.contains("on purpose") && text.contains("10.0.0.9") && text.contains("seed 3"), "{text}");
}

#[test]
fn programs_that_wait_for_nothing_are_a_deadlock() {
    let run = Simulation::new(1).host([10, 0, 0, 1], |device| {
        let cq = device.completion_queue(1).unwrap();
        cq.wait(Duration::MAX);
    });
    let error = run.run().unwrap_err();
    assert!(error.to_string().contains("deadlock"), "{error}");
}

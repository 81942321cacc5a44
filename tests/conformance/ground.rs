//! Where the two devices of a case are.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyverbs::sim::Simulation;
use anyverbs::{Device, DeviceOptions, FaultProfile, LinkKind};

use crate::Pair;

/// A pair of devices, and how to run a case on it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ground {
    UdpSockets,
    UdpUring,
    UdpFaulty,
    Virtual,
    VirtualFaulty,
}

/// More than any network does, and still so little that seven retries are enough.
const FAULTS: &str = "loss=0.03,duplicate=0.03,reorder=0.05,corrupt=0.02,jitter=20us";

impl Ground {
    pub(crate) fn run(self, case: fn(&mut Pair)) {
        match self {
            Ground::UdpSockets => udp(LinkKind::UdpSockets, None, case),
            Ground::UdpUring => udp(LinkKind::UdpUring, None, case),
            Ground::UdpFaulty => udp(LinkKind::Udp, Some(faults(1)), case),
            Ground::Virtual => simulate(1, None, case),
            Ground::VirtualFaulty => (1..=2).for_each(|seed| simulate(seed, Some(faults(0)), case)),
        }
    }
}

fn faults(seed: u64) -> FaultProfile {
    FaultProfile { seed, ..FAULTS.parse().expect("the profile is well-formed") }
}

fn udp(link: LinkKind, fault: Option<FaultProfile>, case: fn(&mut Pair)) {
    let mut options = DeviceOptions::new().link(link);
    if let Some(fault) = fault {
        options = options.fault(fault);
    }
    let candidates = anyverbs::candidates(&options);
    if !candidates.iter().any(|candidate| candidate.usable) {
        for candidate in candidates {
            // Not `println!`, which the harness keeps to itself.
            let _ = writeln!(std::io::stderr(), "skipped: {candidate}");
        }
        return;
    }
    let open = || Device::open(&options).expect("a candidate is usable");
    case(&mut Pair::new(open(), open(), fault.is_some()));
}

fn simulate(seed: u64, fault: Option<FaultProfile>, case: fn(&mut Pair)) {
    let mut simulation = Simulation::new(seed).time_limit(Duration::from_secs(3600));
    if let Some(fault) = fault {
        simulation = simulation.fault(fault);
    }
    if let Some(directory) = std::env::var_os("CONFORMANCE_CAPTURES") {
        simulation = simulation.capture(directory);
    }
    let hosts = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
    let done = simulation.hosts(hosts, move |[a, b]| case(&mut Pair::new(a, b, fault.is_some()))).run();
    done.unwrap_or_else(|error| panic!("{error}"));
}

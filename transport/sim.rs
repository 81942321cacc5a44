//! Hosts that do not exist, in virtual time: programs of this crate's API, a network with faults, one seed.
//!
//! ```
//! use anyverbs::sim::Simulation;
//! use anyverbs::{QpOptions, Rc};
//! use std::sync::mpsc;
//!
//! fn run(seed: u64) -> anyverbs::sim::Trace {
//!     let (to_alice, from_bob) = mpsc::channel();
//!     let (to_bob, from_alice) = mpsc::channel();
//!     Simulation::new(seed)
//!         .fault("loss=0.1".parse().unwrap())
//!         .host([10, 0, 0, 1], move |alice| {
//!             let domain = alice.domain().unwrap();
//!             let cq = alice.completion_queue(128).unwrap();
//!             let qp = domain.queue_pair::<Rc>(&QpOptions::new(), &cq, &cq).unwrap();
//!             to_bob.send(qp.endpoint()).unwrap();
//!             let qp = qp.connect(&alice.wait_until(|| from_bob.try_recv().ok())).unwrap();
//!             qp.send_inline(b"hello", 1).unwrap();
//!             while cq.poll(|completion| assert!(completion.status.is_success())) == 0 {}
//!         })
//!         .host([10, 0, 0, 2], move |bob| {
//!             let domain = bob.domain().unwrap();
//!             let cq = bob.completion_queue(128).unwrap();
//!             let qp = domain.queue_pair::<Rc>(&QpOptions::new(), &cq, &cq).unwrap();
//!             qp.post_recv(domain.pool(1, 64).unwrap().lease().unwrap()).unwrap();
//!             to_alice.send(qp.endpoint()).unwrap();
//!             let _qp = qp.connect(&bob.wait_until(|| from_alice.try_recv().ok())).unwrap();
//!             while cq.poll(|c| assert_eq!(&c.buffer.unwrap()[..], b"hello")) == 0 {}
//!             // Stay for a while: Alice asks again if an acknowledgement was lost.
//!             cq.wait(std::time::Duration::from_secs(1));
//!         })
//!         .run()
//!         .unwrap()
//! }
//! assert_eq!(run(1).hash, run(1).hash);
//! assert_ne!(run(1).hash, run(2).hash);
//! ```
//!
//! # What it asks of programs
//! One program runs at a time, until it polls in vain, waits or relaxes; so a program that waits for another one by
//! anything else than its device stops the simulation. Look with `try_recv` or `try_lock` in
//! [`Device::wait_until`]. The machine's time, its entropy and the order of a `HashMap` are not the seed's.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyverbs_link::fault::FaultProfile;
pub use anyverbs_network::{Failure, Trace};
use anyverbs_network::{Network, NetworkConfig, Program};

use crate::provider::{DeviceOptions, soft};
use crate::verbs::device::Device;
use crate::verbs::error::Error;

/// A run to be: hosts, what runs on them, and the network between them.
#[must_use = "nothing happens until it runs"]
pub struct Simulation {
    config: NetworkConfig,
    fault: Option<FaultProfile>,
    captures: Option<PathBuf>,
    programs: Vec<Start>,
}

/// A program that waits for its devices.
struct Start {
    addresses: Vec<IpAddr>,
    program: Box<dyn FnOnce(Vec<Device>) + Send>,
}

impl Simulation {
    /// A network of 100 Gb/s and 1 us, without faults, on which all that is random comes from `seed`.
    pub fn new(seed: u64) -> Simulation {
        Simulation {
            config: NetworkConfig { seed, ..NetworkConfig::default() },
            fault: None,
            captures: None,
            programs: Vec::new(),
        }
    }

    /// How long a datagram is under way from one host to another.
    pub fn latency(mut self, latency: Duration) -> Simulation {
        self.config.latency = latency;
        self
    }

    /// How fast every host sends, in bits per second.
    pub fn bandwidth(mut self, bits_per_s: u64) -> Simulation {
        self.config.bandwidth_bits_per_s = bits_per_s;
        self
    }

    /// After how much virtual time the run is given up as hanging. 10 minutes without this.
    pub fn time_limit(mut self, limit: Duration) -> Simulation {
        self.config.time_limit = limit;
        self
    }

    /// What goes wrong between every host and the network. The simulation's seed is mixed into the profile's, and
    /// each host has its own.
    pub fn fault(mut self, profile: FaultProfile) -> Simulation {
        self.fault = Some(profile);
        self
    }

    /// Writes what each host sends and receives to a pcapng file named by its address, in a directory that exists.
    /// Timestamps are virtual.
    pub fn capture(mut self, directory: impl Into<PathBuf>) -> Simulation {
        self.captures = Some(directory.into());
        self
    }

    /// Adds a host at `address` whose program gets its device. Programs begin in the order in which they are added.
    pub fn host(
        self,
        address: impl Into<IpAddr>,
        program: impl FnOnce(Device) + Send + 'static,
    ) -> Simulation {
        self.hosts([address.into()], move |[device]| program(device))
    }

    /// Adds several hosts that one program drives: it gets a device of each, in the order of the addresses.
    pub fn hosts<const N: usize>(
        mut self,
        addresses: [IpAddr; N],
        program: impl FnOnce([Device; N]) + Send + 'static,
    ) -> Simulation {
        let program = move |devices: Vec<Device>| {
            // One device an address: the conversion cannot fail.
            if let Ok(devices) = <[Device; N]>::try_from(devices) {
                program(devices);
            }
        };
        self.programs.push(Start { addresses: addresses.to_vec(), program: Box::new(program) });
        self
    }

    /// Runs all programs to their end.
    ///
    /// # Errors
    /// [`SimulationError`]: a program panicked, all wait for one another, or a limit was reached. It names the seed.
    pub fn run(self) -> Result<Trace, SimulationError> {
        let Simulation { config, fault, captures, programs } = self;
        let seed = config.seed;
        let network = Network::new(config);
        let mut bodies = Vec::with_capacity(programs.len());
        for Start { addresses, program } in programs {
            let mut devices = Vec::with_capacity(addresses.len());
            for &address in &addresses {
                let mut options = DeviceOptions::new().seed(derive(seed, "nic", address));
                if let Some(profile) = fault {
                    let seed = derive(seed ^ profile.seed, "fault", address);
                    options = options.fault(FaultProfile { seed, ..profile });
                }
                if let Some(directory) = &captures {
                    options = options.capture(directory.join(format!("{address}.pcapng")));
                }
                let device = open(&network, &options, address)
                    .map_err(|source| SimulationError::Device { address, source })?;
                devices.push(device);
            }
            // A program without a host has nothing that it could do to anybody; it runs on no address that is taken.
            let home = addresses.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
            bodies.push(Program::new(home, move || program(devices)));
        }
        Ok(network.run(bodies)?)
    }
}

/// Opens a device on a virtual link, and gives its progress to the network's scheduler.
fn open(network: &Network, options: &DeviceOptions, address: IpAddr) -> Result<Device, Error> {
    let device = soft::open(Box::new(network.host(address)), options)?;
    network.attach(address, device.progress());
    Ok(Device::from_backend(Box::new(device)))
}

/// A seed for one purpose on one host: FNV-1a over all three, then mixed (the finalizer of SplitMix64), so that
/// neighbouring seeds and addresses give streams that have nothing in common.
fn derive(seed: u64, purpose: &str, address: IpAddr) -> u64 {
    let address = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let bytes = seed.to_le_bytes().into_iter().chain(purpose.bytes()).chain(address.octets());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.programs.iter().map(|start| &start.addresses).collect();
        f.debug_struct("Simulation")
            .field("config", &self.config)
            .field("fault", &self.fault)
            .field("captures", &self.captures)
            .field("hosts", &hosts)
            .finish()
    }
}

/// A run that did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulationError {
    /// A device could not be opened.
    #[error("the device at {address}: {source}")]
    Device {
        /// Its address.
        address: IpAddr,
        /// Why.
        source: Error,
    },
    /// A program failed, or the run as a whole.
    #[error(transparent)]
    Run(#[from] anyverbs_network::SimulationError),
}

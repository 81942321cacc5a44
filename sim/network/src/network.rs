//! The network as its users hold it.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::thread;

use anyverbs_nic::Time;
use anyverbs_nic::link::Progress;

use crate::scheduler::Shared;
use crate::state::State;
use crate::{Failure, NetworkConfig, SimulationError, Trace, VirtualLink};

/// A virtual network; clones are the same network.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

/// A program, and the host that it runs on.
pub struct Program {
    /// The host. It is made if the network has none there.
    pub address: IpAddr,
    /// What it does. The run ends when all programs have ended.
    pub body: Box<dyn FnOnce() + Send>,
}

impl Program {
    /// The program `body` on the host at `address`.
    pub fn new(address: IpAddr, body: impl FnOnce() + Send + 'static) -> Self {
        Program { address, body: Box::new(body) }
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Network {
    /// A network without hosts, at virtual time zero.
    pub fn new(config: NetworkConfig) -> Self {
        Network { shared: Arc::new(Shared::new(State::new(config))) }
    }

    /// The link of the host at `address`, which is made if there is none.
    ///
    /// Links of one host share its wire, its receive queue and its clock.
    pub fn host(&self, address: IpAddr) -> VirtualLink {
        VirtualLink::new(&self.shared, address)
    }

    /// Gives the progress of the NIC at `address` to the scheduler, from now on and until the NIC
    /// is dropped. Another NIC that had it loses it.
    ///
    /// `progress` is called on some thread of the network, while no program runs and with no lock
    /// held. It does not block, and calls [`wake`](anyverbs_nic::link::Waiter::wake) if there is
    /// something new for a program to see.
    pub fn attach(&self, address: IpAddr, nic: Weak<dyn Progress>) {
        let mut state = self.shared.lock();
        let host = state.host_at(address);
        let former = state.hosts[host].nic.replace(nic);
        state.touch(host);
        drop(state);
        drop(former);
    }

    /// The virtual time.
    pub fn now(&self) -> Time {
        self.shared.lock().now
    }

    /// What has happened so far.
    pub fn trace(&self) -> Trace {
        self.shared.lock().trace()
    }

    /// Runs programs, one on a thread of its own each, until all have ended. They begin in the
    /// order given. Several may run on one host.
    ///
    /// What is under way when the last one ends stays under way. The network can run again: clock
    /// and trace go on from there.
    ///
    /// # Errors
    /// A program or a NIC panicked, the programs wait for one another, a limit was reached, or a
    /// thread could not be started: see [`Failure`]. All programs have been unwound then: their
    /// `wait` or `relax` panicked, without a message, and what they owned is dropped. While they
    /// are unwound, both return at once, as if the deadline had come.
    pub fn run(&self, programs: Vec<Program>) -> Result<Trace, SimulationError> {
        self.begin(&programs)?;
        thread::scope(|scope| {
            for (index, Program { address, body }) in programs.into_iter().enumerate() {
                let shared = &*self.shared;
                let spawned = thread::Builder::new()
                    .name(format!("host {address}"))
                    .spawn_scoped(scope, move || shared.run_program(index, body));
                if let Err(source) = spawned {
                    let mut state = shared.lock();
                    for unstarted in index..state.programs.len() {
                        state.finish_program(unstarted);
                    }
                    state.failure = Some(Failure::Spawn { host: address, source });
                    break;
                }
            }
            self.shared.start();
        });
        let mut state = self.shared.lock();
        state.end_run();
        match state.failure.take() {
            Some(failure) => Err(error(&state, failure)),
            None => Ok(state.trace()),
        }
    }

    fn begin(&self, programs: &[Program]) -> Result<(), SimulationError> {
        let mut state = self.shared.lock();
        if state.running {
            return Err(error(&state, Failure::AlreadyRunning));
        }
        state.begin_run();
        for program in programs {
            let host = state.host_at(program.address);
            state.add_program(host);
        }
        Ok(())
    }
}

fn error(state: &State, failure: Failure) -> SimulationError {
    SimulationError { seed: state.config.seed, trace: state.trace(), failure }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("trace", &self.trace()).finish_non_exhaustive()
    }
}

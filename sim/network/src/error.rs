//! How a run can fail.

use std::fmt;
use std::io;
use std::net::IpAddr;

use anyverbs_nic::Time;

use crate::Trace;

/// A run that did not come to its end, and what is needed to see it again.
#[derive(Debug)]
pub struct SimulationError {
    /// The seed of the network.
    pub seed: u64,
    /// What had happened until then.
    pub trace: Trace,
    /// What went wrong.
    pub failure: Failure,
}

impl fmt::Display for SimulationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (seed {}, {})", self.failure, self.seed, self.trace)
    }
}

impl std::error::Error for SimulationError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.failure)
    }
}

/// What went wrong in a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A program panicked; the others were unwound.
    #[error("at {at:?} the program on {host} panicked: {message}")]
    HostPanicked {
        /// The program's host.
        host: IpAddr,
        /// What it panicked with.
        message: String,
        /// When.
        at: Time,
    },
    /// The progress of a NIC panicked; all programs were unwound.
    #[error("at {at:?} the NIC on {host} panicked: {message}")]
    NicPanicked {
        /// The NIC's host.
        host: IpAddr,
        /// What it panicked with.
        message: String,
        /// When.
        at: Time,
    },
    /// All programs that are left wait without a deadline, and no event is left that could wake one.
    #[error("deadlock at {at:?}: nothing is left that could wake the programs on {}", List(.waiting))]
    Deadlock {
        /// The hosts of the programs that wait, in the order in which the programs were given.
        waiting: Vec<IpAddr>,
        /// When.
        at: Time,
    },
    /// The clock came to [`NetworkConfig::time_limit`](crate::NetworkConfig::time_limit).
    #[error("the limit of virtual time, {limit:?}, is reached; unfinished: {}", List(.unfinished))]
    TimeLimit {
        /// The limit.
        limit: Time,
        /// The hosts of the programs that had not ended.
        unfinished: Vec<IpAddr>,
    },
    /// The run took [`NetworkConfig::event_limit`](crate::NetworkConfig::event_limit) events.
    #[error("at {at:?} the limit of {limit} events is reached; unfinished: {}", List(.unfinished))]
    EventLimit {
        /// The limit.
        limit: u64,
        /// The hosts of the programs that had not ended.
        unfinished: Vec<IpAddr>,
        /// When.
        at: Time,
    },
    /// The network runs already: a network runs one set of programs at a time.
    #[error("this network is running already")]
    AlreadyRunning,
    /// A program's thread could not be started.
    #[error("starting the thread of the program on {host}: {source}")]
    Spawn {
        /// The program's host.
        host: IpAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Addresses, separated by commas.
struct List<'a>(&'a [IpAddr]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, address) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{address}")?;
        }
        Ok(())
    }
}

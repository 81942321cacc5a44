//! A small network in virtual time, on which several simulated hosts run ordinary blocking programs
//! in one process. A run is a pure function of its seed.
//!
//! # How it works
//! Every program has its own thread, and exactly one of them runs at any moment: the one that holds
//! the baton. A program gives the baton up when it sleeps
//! ([`Waiter::wait`](anyverbs_nic::link::Waiter::wait)), when a poll found nothing
//! ([`Waiter::relax`](anyverbs_nic::link::Waiter::relax)), and when it ends. The thread that gives it
//! up first works through the events that are due, in the order of their virtual time and, within
//! one instant, of their making: datagrams that arrive, timers of NICs, programs that wake up. It
//! stops at the first program that wakes up, and that one goes on. Programs and NICs compute in no
//! virtual time at all: the clock moves between events only.
//!
//! The scheduler owns the progress of all attached NICs. A NIC progresses when a datagram reaches
//! its host, when the deadline passes that its last progress returned, when its link can send again,
//! and when a program that used its link or clock gives up the baton: what the program started may
//! have a deadline that only progress can tell.
//!
//! # What it asks of programs
//! * A program that spins without ever calling `wait` or `relax`, or that blocks on something
//!   else (a channel, a mutex that another program sleeps with, a sleep of the machine), keeps the
//!   baton and stops the simulation. That cannot be detected. Programs that pass values to one
//!   another outside the network look with `try_lock` or `try_recv`, and `relax` in between.
//! * Whoever calls `wait` or `relax` holds no lock that a NIC's progress needs.
//! * Threads that a program starts are not scheduled. `wait` and `relax` return to them at once,
//!   and whatever they do is outside of the determinism.
//! * Time and randomness come from the network's clock and the program's own seeds, and no order
//!   from a `HashMap`.
//!
//! On threads that are no program of the network (set-up before a run, destructors after it), `wait`
//! and `relax` return at once, and the clock stands still.
//!
//! ```
//! use std::net::IpAddr;
//! use std::time::Duration;
//! use anyverbs_network::{Network, NetworkConfig, Program};
//! use anyverbs_nic::link::Link;
//!
//! let network = Network::new(NetworkConfig::default());
//! let address: IpAddr = "10.0.0.1".parse().unwrap();
//! let waiter = network.host(address).waiter();
//! let trace = network
//!     .run(vec![Program::new(address, move || {
//!         let alarm = waiter.now() + Duration::from_secs(3);
//!         waiter.wait(Some(alarm));
//!         assert_eq!(waiter.now(), alarm);
//!     })])
//!     .unwrap();
//! assert_eq!(trace.end.as_nanos(), 3_000_000_000);
//! ```
#![forbid(unsafe_code)]

mod config;
mod error;
mod hash;
mod host;
mod link;
mod network;
mod scheduler;
mod state;
mod trace;

pub use config::NetworkConfig;
pub use error::{Failure, SimulationError};
pub use link::{VirtualLink, VirtualWaiter};
pub use network::{Network, Program};
pub use trace::Trace;

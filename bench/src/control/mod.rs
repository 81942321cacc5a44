//! The control connection: how the two processes of a benchmark agree on what to do.
//!
//! It is a TCP connection that carries one JSON object a line. The first line of each side names the
//! program and the version of this protocol, and is the only one that other versions have to understand.

mod connection;
mod message;

pub(crate) use connection::{Connection, ControlError, Listener};
pub(crate) use message::{DeviceDescription, Done, End, Message, Phase};

/// The version of this protocol. Two programs with different ones do not measure together.
pub(crate) const PROTOCOL: u32 = 1;

/// The TCP port that `--listen` uses, that of perftest.
pub(crate) const DEFAULT_PORT: u16 = 18515;

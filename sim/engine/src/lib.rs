//! The InfiniBand transport as a state machine (in progress).
#![forbid(unsafe_code)]

mod time;

pub use time::Time;

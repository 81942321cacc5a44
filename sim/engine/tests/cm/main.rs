//! The connection manager in virtual time: two of them, and a wire that loses, repeats and reorders.

mod connect;
mod hostile;
mod limits;
mod refuse;
mod release;
mod sidr;
mod swarm;
mod trust;
mod world;

//! The connection manager in virtual time: two of them, and a wire that loses, repeats and reorders.

mod alternate;
mod connect;
mod fuzz;
mod hostile;
mod limits;
mod matrix;
mod refuse;
mod release;
mod sidr;
mod swarm;
mod terms;
mod trust;
mod world;

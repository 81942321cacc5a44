//! The engine in virtual time, through the entry points that the NIC uses.

mod hostile;
mod local;
mod malformed;
mod pair;
mod rc;
mod selective;
mod services;
mod states;
